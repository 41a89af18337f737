#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that completion in bash offers, behind "nbdkit ploop", the parameters that the
# plugin has, the values that it takes and no others, files, directories and the GUIDs of
# snapshots; and that everything else stays with nbdkit's own completion.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
nbdkit_is_plain || skip "completion asks nbdkit as it is"
completion=$abs_top_srcdir/scripts/completion/nbdkit-ploop
cd "$tmp"
ln -s "$PLOOP_IMG" ploop-img
PATH=$tmp:$PATH

# shellcheck source=scripts/completion/nbdkit-ploop
. "$completion"
# shellcheck source=tests/interop/completion.sh
. "$abs_srcdir/completion.sh"
program=nbdkit completer=_nbdkit_ploop

# nbdkit, with what its help says kept: it is asked for that again and again.
nbdkit ()
{
  local kept="kept-${*//[^a-z]/_}"
  [ -e "$kept" ] || command nbdkit "$@" > "$kept"
  cat "$kept"
}

# Not even files.
offers_nothing ()
{
  offers '' "$@"
  [ "$compopts" = ' +o default' ] || fail "files, or what not: nbdkit $*: $compopts"
}

# leaves_it_to_the_shell OPTIONS WORD...: to complete as these options of compopt say.
leaves_it_to_the_shell ()
{
  local want=$1
  shift
  offers '' "$@"
  [ "$compopts" = " $want" ] || fail "nbdkit $*: compopt$compopts"
}

# ---- Names

command nbdkit "$PLUGIN" --dump-plugin > dump
# file is the magic key.
names=$({ sed -n 's/^plugin_parameter=//p; s/^magic_config_key=//p' dump; } | sort -u)
[ "$(wc -l <<< "$names")" -gt 10 ] || fail "the plugin's parameters are not found"
say "names"
offers "${names//$'\n'/$'=\n'}=" "$PLUGIN" ''
offers "${names//$'\n'/$'=\n'}=" -f -U - "$PLUGIN" x.hds ''
offers 'base=
base-cache=' --filter cow "$PLUGIN" x.hds b
offers 'base-cache=' --filter=cow -rP pid "$PLUGIN" file = x base-
[ "$compopts" = ' +o default -o nospace' ] || fail "a space behind ="
# The word behind an option is no plugin, nor is what looks like it behind one.
offers '' -e "$PLUGIN" ''
offers '' -rU "$PLUGIN" ''
offers 'base=
base-cache=' -U- --tls=off "$PLUGIN" x.hds b
offers '' memory "$PLUGIN" ''
offers '' "$PLUGIN" --fi
offers '' "$PLUGIN" --run ''

# ---- Values: what the plugin says that it takes is what is offered

"$PLOOP_IMG" create -q nothing.hds 1M
nr_lists=0
for name in $names; do
  [ "$name" != file ] && [ "$name" != snapshot ] || continue
  command nbdkit -U - "$PLUGIN" nothing.hds "$name=no such value" --run : 2> errors ||
    :
  values=$(sed -n "s/.*$name=no such value: must be one of: //p" errors | head -n 1)
  if [ -n "$values" ]; then
    nr_lists=$((nr_lists + 1))
    offers "${values//, /$'\n'}" "$PLUGIN" "$name" = ''
    offers "${values%%,*}" "$PLUGIN" x "$name" = "${values%%,*}"
    offers_nothing "$PLUGIN" "$name" = nosuch
  elif grep -q 'could not decipher boolean' errors; then
    nr_lists=$((nr_lists + 1))
    offers $'off\non' "$PLUGIN" "$name" = ''
  fi
done
say "$nr_lists parameters with lists of values"
[ "$nr_lists" -ge 8 ] || fail "too few"

say "files"
mkdir disk 'a disk'
touch disk.hds 'disk 2.hds'
leaves_it_to_the_shell '-o default' "$PLUGIN" file = d
leaves_it_to_the_shell '-o default' "$PLUGIN" x.hds base = ''
leaves_it_to_the_shell '-o default' "$PLUGIN" x.hds overlay = d
leaves_it_to_the_shell '-o dirnames +o default' "$PLUGIN" dir = ''
leaves_it_to_the_shell '-o default' "$PLUGIN" base = nbd : //store/gold
offers_nothing "$PLUGIN" runners = ''
offers_nothing "$PLUGIN" prealloc = 1
offers_nothing "$PLUGIN" nosuch = ''
# The first may be a disk.
offers 'dir=
discard=
disk.hds
disk\ 2.hds
disk/' "$PLUGIN" di
leaves_it_to_the_shell '+o default -o default' "$PLUGIN" /
offers $'dir=\ndiscard=' "$PLUGIN" file = x di
# Where = does not break words.
(COMP_WORDBREAKS=' ' && offers $'enospc=report\nenospc=wait' "$PLUGIN" enospc=)
(COMP_WORDBREAKS=' ' && offers $'file=disk\nfile=disk.hds\nfile=disk 2.hds' \
   "$PLUGIN" file=di)
(COMP_WORDBREAKS=' ' && offers $'dir=disk' "$PLUGIN" dir=di)

say "GUIDs"
guid='{12345678-1234-abcd-1234-123456789abc}'
"$PLOOP_IMG" create -q --descriptor 'a disk/root.hds' 10M
"$PLOOP_IMG" snapshot create -q --guid="$guid" 'a disk'
for words in 'a\ disk' 'file=a\ disk' '"a disk"'; do
  offers "$guid" "$PLUGIN" "$words" snapshot = '{1234'
done
offers "$guid" "$PLUGIN" runners = 1 file = 'a\ disk' snapshot = '{1234'
offers_nothing "$PLUGIN" nothing snapshot = ''
offers_nothing "$PLUGIN" snapshot = ''

# ---- nbdkit's own completion, as bash-completion finds it

unset -f nbdkit compopt
for file in bash_completion completions/nbdkit; do
  [ -e /usr/share/bash-completion/$file ] ||
    { say "nbdkit's own: skipped: there is no $file"; say "passed"; exit 0; }
done
say "nbdkit's own completion"
cat > session << 'END'
. /usr/share/bash-completion/bash_completion
. "$1"
tab ()
{
  COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
  COMPREPLY=()
  "$(complete -p nbdkit | sed 's/.* -F \([^ ]*\) .*/\1/')"
  printf '%s\n' "${COMPREPLY[@]}"
}
PLOOP=$2
for i in 1 2; do
  tab nbdkit --fore
  tab nbdkit memor
  tab nbdkit "$PLOOP" --fore
  tab nbdkit "$PLOOP" x.hds enospc = w
  tab nbdkit memory siz
  complete -p nbdkit
done
END
bash --norc --noprofile session "$completion" "$PLUGIN" > told 2> errors ||
  { cat errors; fail "nbdkit's completion with ours"; }
want='--foreground
memory
--foreground
wait
size=
complete -o default -F _nbdkit_ploop nbdkit'
[ "$(cat told)" = "$want"$'\n'"$want" ] || { cat told errors; fail "nbdkit's own"; }
say "passed"
