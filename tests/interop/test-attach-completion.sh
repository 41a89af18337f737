#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that completion in bash offers what the help of ploop-attach and ploop-detach
# says: every option, the values that these take, GUIDs of snapshots, files.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
# shellcheck source=scripts/completion/ploop-attach
. "$abs_top_srcdir/scripts/completion/ploop-attach"

# shellcheck source=tests/interop/completion.sh
. "$abs_srcdir/completion.sh"
completer=_ploop_attach

# The completion asks for GUIDs by this name.
ploop-img ()
{
  "$PLOOP_IMG" "$@"
}

for program in ploop-attach ploop-detach; do
  complete -p "$program" > /dev/null || fail "$program is not completed"
  program=$abs_top_builddir/scripts/$program
  # Long options, read another way than the completion does.
  long=$("$program" --help | sed -n '/^Options/,$p' |
           perl -ne 'print "$1\n" if /^ +(?:-\w, )?(--[a-z-]+=?)/')
  [ "$(wc -l <<< "$long")" -gt 4 ] || fail "no options are found in the help"
  offers "$long" --
  offers "$(grep '^--t' <<< "$long")" x.hds --t
  offers_files ''
  offers_files x
  offers_files -- --
  offers "$(ls /dev | sed -n 's,^nbd[0-9]*$,/dev/&,p')" /dev/nbd
  offers_nothing --timeout = ''
  offers_nothing -t ''
done

program=$abs_top_builddir/scripts/ploop-attach
offers $'512\n1024\n2048\n4096' --block-size = ''
offers 4096 -b 4
offers $'human\njson' --list --output ''
(COMP_WORDBREAKS=' ' && offers --output=json --list --output=j)
offers_files --plugin = ''
offers '' --mount ''
[ "$compopts" = ' -o dirnames' ] || fail "no directories for --mount"

unpack_corpus
chain=$tmp/corpus/c-chain3-v2-b64
guids=$("$PLOOP_IMG" snapshot list --output=json "$chain" |
          perl -ne 'print "$1\n" if /"guid" : "(.*)"/')
[ "$(wc -l <<< "$guids")" -eq 3 ] || fail "not the chain's GUIDs: $guids"
offers "$guids" "$chain" -s ''
offers '{00000001-1111-2222-3333-444444444444}' "$chain" --snapshot = '{00000001'
say "passed"
