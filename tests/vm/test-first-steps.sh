#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# From a fresh clone, as README.md has it: quickstart, what it leaves behind, the next
# commands that it prints; and the build by hand.  All of it exactly as printed.  What
# only builds is done on this host, in copies of the sources; what installs, in guests
# that have nothing of this project yet.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
# shellcheck source=tests/vm/guest.sh
. "$abs_srcdir/guest.sh"

requires_guest
requires perl sudo unshare ip autoreconf libtoolize

# make is run in other directories than that of make check.
unset MAKEFLAGS MAKELEVEL MFLAGS

nothing_installed=$tmp/nothing-installed
mkdir "$nothing_installed"
nr_done=0

# ---- What README.md prints

# The commands below a heading.
commands_below ()
{
  perl "$abs_srcdir/examples.pl" "$abs_top_srcdir/README.md" > "$tmp/examples"
  (
    heading=
    doc_block () { heading=$1; }
    doc_command () { [ "$heading" != "$wanted" ] || printf '%s\0' "$1"; }
    doc_end () { :; }
    doc_file () { :; }
    wanted=$1
    # shellcheck disable=SC1091
    . "$tmp/examples"
  )
}

# nr_left_to_us: how many commands test-examples-readme.sh leaves to this test.
nr_left_to_us ()
{
  local n=0
  example () { :; }
  elsewhere () { [ "$2" != 'test-first-steps.sh runs it' ] || n=$((n + 1)); }
  # shellcheck source=tests/vm/examples/README.sh
  . "$abs_srcdir/examples/README.sh"
  echo "$n"
}

as_printed ()
{
  say "\$ $1"
  eval "$1" < /dev/null > "$tmp/log" 2>&1 || { cat "$tmp/log"; fail "$1"; }
  nr_done=$((nr_done + 1))
}

# ---- A fresh clone

# fresh_clone NAME: the sources, without anything that was generated, in $tmp/NAME.
fresh_clone ()
{
  local relative
  relative=$(realpath --relative-to="$abs_top_builddir" "$tmp/$1")
  make -s -C "$abs_top_builddir" distdir \
    distdir="$relative" > "$tmp/log" 2>&1 || { cat "$tmp/log"; fail "make distdir"; }
  cd "$tmp/$1"
  rm -rf configure aclocal.m4 config.h.in build-aux m4
  find . -name Makefile.in -delete
}

# ---- quickstart

# The commands of a file in a network of their own, for they use the port that
# everybody uses.  What they leave running ends with them, as all processes of such a
# namespace do with the first one.
apart ()
{
  unshare --net --pid --fork --mount-proc \
    bash -euo pipefail -c 'ip link set lo up; . "$1"' - "$1" > "$tmp/log" 2>&1 ||
    { cat "$tmp/log"; fail "exit status $? of $(cat "$1")"; }
}

# The commands that quickstart prints: those for the other terminal need the server of
# the first.
run_next_commands ()
{
  {
    grep '^   nbdkit -f' "$tmp/quickstart.log"
    echo 'server=$!'
    echo 'until (: < /dev/tcp/localhost/10809) 2> /dev/null; do'
    echo '  kill -0 $server; sleep 0.1; done'
    sed -n '/another:$/,/^To install/ s/^   //p' "$tmp/quickstart.log"
    echo 'kill $server; wait $server'
  } | sed '/nbdkit -f/ s/$/ \&/' > "$tmp/next"
  [ "$(wc -l < "$tmp/next")" -eq 8 ] || fail "quickstart prints other commands: $(cat "$tmp/next")"
  apart "$tmp/next"
  cmp copy.raw build/demo/files.raw || fail "copy.raw is not what was served"
}

test_quickstart ()
{
  local commands install
  fresh_clone quickstart
  mapfile -d '' commands < <(commands_below 'Two commands')
  as_printed "${commands[0]}"
  cp "$tmp/log" "$tmp/quickstart.log"
  run_next_commands
  mapfile -d '' commands < <(commands_below Use)
  as_printed "${commands[1]}"
  printf '%s\n' "${commands[0]}" 'nbdinfo nbd://localhost' > "$tmp/next"
  apart "$tmp/next"
  nr_done=$((nr_done + 1))
  install=$(sed -n '/^To install/,/^After/ s/^   //p' "$tmp/quickstart.log")
  printf '%s\n' "$install" 'cd build/demo' 'nbdkit ploop file=disk.hds' \
    'nbdinfo nbd://localhost' 'ploop-img help' > "$tmp/script"
  install_in_guest
}

# install_in_guest: run $tmp/script in the directory of the sources, where make check has
# installed nothing; then what it has installed must be there.
install_in_guest ()
{
  {
    echo 'set -euo pipefail'
    printf 'cd %q\n' "$PWD"
    cat "$tmp/script"
    echo 'nbdkit ploop --dump-plugin; ploop-img --version'
    echo 'ls /usr/local/share/man/man1/ploop-img.1 /usr/local/include/ploop-core.h'
  } > "$tmp/guest-script"
  # shellcheck disable=SC2034  # of guest.sh
  STAGE=$nothing_installed guest_limit=900
  run_guest -m 1024 "$tmp/guest-script" > "$tmp/log" 2>&1 ||
    { cat "$tmp/log"; fail "the installation"; }
}

# ---- By hand

test_by_hand ()
{
  local commands command
  fresh_clone by-hand
  : > "$tmp/script"
  mapfile -d '' commands < <(commands_below 'Build and install by hand')
  export CFLAGS=-O0 MAKEFLAGS=-j2
  for command in "${commands[@]}"; do
    if [ "$command" = 'sudo make install' ] || [ -s "$tmp/script" ]; then
      echo "$command" >> "$tmp/script"
      nr_done=$((nr_done + 1))
    else
      as_printed "$command"
    fi
  done
  unset CFLAGS MAKEFLAGS
  [ -s "$tmp/script" ] || fail "nothing is installed by hand"
  install_in_guest
}

test_quickstart
test_by_hand
[ "$nr_done" -eq "$(nr_left_to_us)" ] ||
  fail "$nr_done commands were run, but $(nr_left_to_us) are left to this test"
say "passed"
