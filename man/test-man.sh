#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# The manual pages say all that the programs can do, and nothing else: every
# parameter, feature and debug flag of the plugin, every subcommand and option of
# ploop-img, every option of ploop-attach and ploop-detach, every function of
# libploop-core as the header declares it; and the example program works.

set -euo pipefail
# expect_none counts, at the end of pipes.
shopt -s lastpipe

: "${srcdir:?}" "${top_srcdir:?}" "${PLUGIN:?}" "${PLOOP_IMG:?}" "${SCRIPTS:?}"
: "${PODCHECKER:?}" "${COMPILE:?}" "${LINK:?}" "${LIBS:?}"

if [ "$PODCHECKER" = no ]; then
  echo "podchecker is not installed"
  exit 77
fi

plugin_pod=$srcdir/nbdkit-ploop-plugin.pod
tool_pod=$srcdir/ploop-img.pod
library_pod=$srcdir/libploop-core.pod
attach_pod=$srcdir/ploop-attach.pod
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
failures=0

# expect_none WHAT, items on standard input: each of them is a failure.
expect_none ()
{
  local what=$1 item
  while read -r item; do
    [ -n "$item" ] || continue
    echo "FAIL: $what: $item"
    failures=$((failures + 1))
  done
}

# section FILE HEADING: what stands under that =head1.
section ()
{
  awk -v heading="=head1 $2" \
      '/^=head1 / { on = $0 == heading; next } on' "$1"
}

# subsection FILE HEADING SUBHEADING: what stands under that =head2 of it.
subsection ()
{
  section "$1" "$2" |
    awk -v heading="=head2 $3" '/^=head2 / { on = $0 == heading; next } on'
}

# not_in LIST, items on standard input: those that are no line of LIST.
not_in ()
{
  grep -vxF -f <(printf '%s\n' "$1") || :
}

# Two lists must be the same, and not empty: an empty one means that this test
# no longer understands what it reads.
expect_same ()
{
  local what=$1 there=$2 documented=$3
  if [ -z "$there" ]; then
    expect_none "cannot be found out" <<<"$what"
    return
  fi
  not_in "$documented" <<<"$there" | expect_none "$what, not documented"
  not_in "$there" <<<"$documented" | expect_none "$what, documented but not there"
}

# The server, as the other tests run it.
server ()
{
  local nbdkit
  read -ra nbdkit <<<"${NBDKIT:-nbdkit}"
  env ${NBDKIT_PRELOAD:+LD_PRELOAD="$NBDKIT_PRELOAD"} "${nbdkit[@]}" "$@"
}

# ---- All pages -----------------------------------------------------------

for pod in "$plugin_pod" "$tool_pod" "$library_pod" "$attach_pod"; do
  "$PODCHECKER" "$pod" 2>&1 |
    grep -v 'pod syntax OK' | expect_none "podchecker" || :
done

# ---- nbdkit-ploop-plugin -------------------------------------------------

# What the help promises and what the code compares with.
server "$PLUGIN" --help >"$directory/help"
parameters=$(
  {
    sed -n '/^plugin: /,$ s/^\[\{0,1\}\([a-z][a-z0-9-]*\)=.*/\1/p' \
        "$directory/help"
    cat "$top_srcdir"/plugin/*.c | tr -s ' \n' ' ' |
      grep -oE 'strcmp \(key, "[^"]*"' | cut -d'"' -f2
  } | sort -u
)
documented_parameters ()
{
  section "$plugin_pod" PARAMETERS |
    sed -n 's/^=item \[\{0,1\}B<\([a-z][a-z0-9-]*\)=>.*/\1/p'
}
expect_same "a parameter of the plugin" "$parameters" \
            "$(documented_parameters)"

# This test can fail: a parameter that nobody wrote about is found.
if [ "$(not_in "$(documented_parameters)" <<<'made-up')" != made-up ]; then
  expect_none "not noticed" <<<"the parameter made-up is not documented"
fi

server "$PLUGIN" --dump-plugin >"$directory/dump"
expect_same "a feature of the plugin" \
  "$(sed -n 's/^plugin_feature=//p' "$directory/dump" | sort -u)" \
  "$(sed -n 's/^=item C<plugin_feature=\(.*\)>$/\1/p' "$plugin_pod" | sort -u)"

expect_same "a debug flag" \
  "$(cat "$top_srcdir"/plugin/*.c | grep -oE 'ploop_debug_[a-z_]+' |
     sed 's/^ploop_debug_//' | sort -u)" \
  "$(sed -n 's/^=item B<-D ploop\.\([a-z_]*\)=1>$/\1/p' "$plugin_pod" |
     sort -u)"

# ---- ploop-img -----------------------------------------------------------

"$PLOOP_IMG" help >"$directory/help"
subcommands=$(sed -nE '/^Subcommands:/,/^$/ s/^  ([a-z-]+( [a-z-]+)?) [A-Z[].*/\1/p' \
                  "$directory/help" | sort -u)
expect_same "a subcommand" "$subcommands" \
  "$(section "$tool_pod" SUBCOMMANDS | sed -n 's/^=head2 //p' | sort -u)"
expect_same "an option of ploop-img" \
  "$(sed -n '/^Usage:/,/^$/p' "$directory/help" |
     grep -oE -e '--[a-z-]+' | sort -u)" \
  "$(section "$tool_pod" OPTIONS |
     sed -n 's/^=item B<\(--[a-z-]*\)>.*/\1/p' | sort -u)"

# The options that a help text lists, short and long, one a line.
options_of ()
{
  sed -n 's/^  *\(-[a-zA-Z-].*\)/\1/p' "$1" | sed 's/   *.*//' |
    grep -oE -e '(^|[ ,])--?[a-zA-Z][a-z-]*' | tr -d ' ,' | sort -u
}

documented_options ()
{
  sed -n 's/^=item B<\(--*[a-zA-Z][a-z-]*\)>.*/\1/p' | sort -u
}

# What is the same everywhere is written once.
common=$(section "$tool_pod" "COMMON OPTIONS" | documented_options)

while read -ra subcommand; do
  "$PLOOP_IMG" help "${subcommand[@]}" >"$directory/help"
  # help itself has no options, and is shown the general help.
  [ "${subcommand[*]}" != help ] || continue
  expect_same "an option of ploop-img ${subcommand[*]}" \
    "$(options_of "$directory/help")" \
    "$({
         subsection "$tool_pod" SUBCOMMANDS "${subcommand[*]}" |
           documented_options
         options_of "$directory/help" | grep -xF -e "$common"
       } | sort -u)"
done <<<"$subcommands"

# ---- ploop-attach, ploop-detach -----------------------------------------

for program in ploop-attach ploop-detach; do
  "$SCRIPTS/$program" --help >"$directory/help"
  expect_same "an option of $program" \
    "$(options_of "$directory/help")" \
    "$(section "$attach_pod" "OPTIONS OF ${program^^}" | documented_options)"
done

# ---- libploop-core -------------------------------------------------------

# The declarations of a C text without comments, one a line: 'X foo (...);' and
# 'struct x { ... };'.
declarations ()
{
  perl -0777 -ne '
    s{/\*.*?\*/}{}gs;
    s{^\s*\#.*?$}{}gm;
    s{\s+}{ }g;
    s{ ?([,;(){}*]) ?}{$1}g;
    print "$1\n" while /((?:struct|enum) \w+\{[^}]*\};)/g;
    print "$1\n" while /([\w* ]+?\bploop_\w+\([^()]*\);)/g;' |
    sed 's/^ *//' | sort -u
}

functions=$(sed -n 's/^ *\(ploop_[a-z_]*\);$/\1/p' \
                "$top_srcdir/lib/ploop-core.map")
[ -n "$functions" ] ||
  expect_none "cannot be found out" <<<"the library's functions"
in_header=$(declarations <"$top_srcdir/lib/ploop-core.h")
in_page=$(sed -n '/^=head1 EXAMPLE/,/^=head1 SEE/d; /^ /p' "$library_pod" |
          declarations)
not_in "$in_header" <<<"$in_page" |
  expect_none "not declared so in ploop-core.h"
for function in $functions; do
  declaration=$(grep -E "\b$function\(" <<<"$in_header") || :
  if [ -z "$declaration" ]; then
    expect_none "not in ploop-core.h" <<<"$function"
  fi
  not_in "$in_page" <<<"$declaration" |
    expect_none "not in libploop-core(3) as in ploop-core.h"
done

section "$library_pod" EXAMPLE | sed -n '/^ #include/,/^ }/ s/^ //p; /^$/p' \
  >"$directory/example.c"
(
  cd "$directory"
  # What the build was configured with are words to split.
  # shellcheck disable=SC2086
  $COMPILE -Wall -Wextra -Werror -c example.c -o example.o
  # shellcheck disable=SC2086
  $LINK example.o -o example $LIBS
) || expect_none "does not compile" <<<"the example of libploop-core(3)"
if [ -x "$directory/example" ]; then
  said=$("$directory/example" "$directory/example.hds") || :
  [ "$said" = "Hello, disk!" ] ||
    expect_none "the example of libploop-core(3) says" <<<"'$said'"
  "$PLOOP_IMG" check "$directory/example.hds" ||
    expect_none "ploop-img check finds damage after" <<<"the example"
fi

echo "$failures failures"
[ "$failures" -eq 0 ]
