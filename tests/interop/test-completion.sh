#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that completion in bash and zsh offers what the help of ploop-img says: every
# subcommand, of one word or two, every option of each, the values that these take, files
# and the GUIDs of snapshots; and nothing else.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires perl
completion=$abs_top_srcdir/scripts/completion
cd "$tmp"

# ---- What the help says: read another way than the completion does

# names: one a line.
"$PLOOP_IMG" help > help
perl -ne 'print "$1\n" if (/^Subcommands:/ .. /^$/) && /^  ((?:[a-z-]+ )+)/' help |
  sed 's/ *$//' > names
[ "$(wc -l < names)" -gt 5 ] || fail "the subcommands are not found in the help"

# options_of NAME: one a line, "-O|--format=ploop|raw" or "--force".
options_of ()
{
  # shellcheck disable=SC2086  # one word, or two
  "$PLOOP_IMG" help $1 |
    perl -ne 'print "$1\n" if s/, --/|--/ || 1 and /^  (-\S+)/'
}

# ---- bash

# shellcheck source=scripts/completion/ploop-img
. "$completion/ploop-img"
# shellcheck source=tests/interop/completion.sh
. "$abs_srcdir/completion.sh"

# ploop-img, with what its help says kept: it is asked for that again and again.
img ()
{
  local kept="kept-${*//[^a-z]/_}"
  if [ "$1" != help ]; then
    "$PLOOP_IMG" "$@"
    return
  fi
  [ -e "$kept" ] || "$PLOOP_IMG" "$@" > "$kept"
  cat "$kept"
}
program=img completer=_ploop_img

say "bash: subcommands"
first=$(cut -d ' ' -f 1 names | sort -u)
offers "$first" ''
offers "$first" help ''
offers $'--help\n--version' --
offers "$(grep '^co' <<< "$first")" co
offers_nothing none ''
for group in $(awk 'NF == 2 { print $1 }' names | sort -u); do
  offers "$(sed -n "s/^$group //p" names)" "$group" ''
  offers "$(sed -n "s/^$group //p" names)" help "$group" ''
done

say "bash: options"
nr_options=0
while read -ra name; do
  [ "${name[0]}" != help ] && due || continue
  options_of "${name[*]}" > options
  [ -s options ] || fail "no options are found in the help of ${name[*]}"
  offers "$(grep -oE -e '--[a-z-]+=?' options)" "${name[@]}" --
  offers "$(tr '|' '\n' < options | grep -E '^-' | sed 's/=.*/=/')" "${name[@]}" -
  while read -r option; do
    nr_options=$((nr_options + 1))
    long=$(grep -oE -e '--[a-z-]+' <<< "$option")
    # What begins so, too.
    offers "$(grep -oE -e '--[a-z-]+=?' options | grep -e "^${long%?}")" "${name[@]}" \
      x "${long%?}" || fail "$long"
    case $option in
      *=*'|'*)
        values=$(tr '|' '\n' <<< "${option#*=}")
        offers "$values" "${name[@]}" "$long" = ''
        offers "$values" "${name[@]}" "$long" ''
        offers "$(head -n 1 <<< "$values")" "${name[@]}" "$long" = \
          "$(head -n 1 <<< "$values")" ;;
      *=SIZE | *=N) offers_nothing "${name[@]}" "$long" = '' ;;
      *=DISK | *=FILE) offers_files "${name[@]}" "$long" = '' ;;
    esac
  done < <(grep -v -- '--other-\|--size\|--snapshot' options)
done < names
say "$nr_options options"

say "bash: arguments"
offers_files create ''
offers_nothing create x.hds ''
offers_nothing create --force x.hds 1G ''
offers_files create --output json ''
offers_files convert -q -O raw a ''
offers_nothing convert a b ''
offers_files compare -- -a ''
offers_files convert -- --
# Where = does not break words.
(COMP_WORDBREAKS=' ' && offers $'--output=human\n--output=json' create --output=)
(COMP_WORDBREAKS=' ' && offers '--output=json' create --output=j)
offers_nothing '='
# Whatever it is called.
program=$PLOOP_IMG offers "$first" ''
program=/nonexistent offers_nothing ''

mkdir disk 'a disk'
"$PLOOP_IMG" create -q --descriptor disk/root.hds 10M
guid='{12345678-1234-abcd-1234-123456789abc}'
"$PLOOP_IMG" snapshot create -q --guid="$guid" disk
cp disk/* 'a disk'
"$PLOOP_IMG" snapshot list --output=json disk > guids 2> errors ||
  "$PLOOP_IMG" info --output=json disk > guids 2> errors || :
if grep -q "$guid" guids; then
  say "bash: GUIDs"
  for words in "convert --snapshot = %" "convert disk --snapshot = %" \
      "convert disk x --snapshot %" "snapshot delete disk %" \
      "create --from = disk --snapshot = %" "create --overlay-of disk --snapshot = %" \
      "compare x disk --other-snapshot = %"; do
    [ "$words" != "convert --snapshot = %" ] || continue
    read -ra line <<< "$words"
    offers "$guid" "${line[@]/\%/\{1234}"
    offers "$(tr -d '{}' <<< "$guid")" "${line[@]/\%/1234}"
    complete_words "${line[@]/\%/}"
    grep -qxF -- "$guid" offered || fail "bash: no GUID: $words"
  done
  offers "$guid" convert 'a\ disk' --snapshot = '{1234'
  offers "$guid" convert '"a disk"' --snapshot = '{1234'
  offers_nothing convert nonexistent --snapshot = ''
else
  say "GUIDs: skipped: there is no subcommand that lists them"
fi

# ---- zsh

command -v zsh > zsh-path ||
  { say "zsh: skipped: it is not installed"; say "passed"; exit 0; }
zsh -fn "$completion/_ploop-img" || fail "zsh: syntax"
zsh -fc 'zmodload zsh/zpty && autoload -Uz +X compinit' 2> zsh.log ||
  { say "zsh: skipped: it has no zsh/zpty or no compinit"; say "passed"; exit 0; }

# Lines to complete, each with what must be offered, and in the end DONE.  compadd says
# what there is; the widget, when that is all.
ln -s "$PLOOP_IMG" ploop-img
cat > zsh-session << 'END'
autoload -Uz compinit
compinit -D -u
compadd () {
  local -a hits
  if [[ "${@[1,(i)(-|--)]}" != *-[AOD]\ * ]]; then
    builtin compadd -A hits "$@"
    print -rl -- $hits >> offered.zsh
  fi
  builtin compadd "$@"
}
complete_and_tell () {
  zle list-choices
  print DONE >> offered.zsh
  zle kill-buffer
}
zle -N complete_and_tell
bindkey '^T' complete_and_tell
zstyle ':completion:*' completer _complete
setopt no_beep
print READY >> offered.zsh
END
cat > zsh-driver << 'END'
zmodload zsh/zpty zsh/zselect
wait_for () {
  for ((i = 0; i < 9000; i++)); do
    grep -q "^$1\$" offered.zsh && return
    zselect -t 2
    while zpty -rt z junk; do :; done
  done
  exit 1
}
: > offered.zsh
zpty z zsh -f -i
zpty -w z "fpath=($1 \$fpath) path=(. \$path) PS1='> '; source ./zsh-session"
wait_for READY
while IFS= read -r line; do
  : > offered.zsh
  zpty -w -n z "$line"$'\x14'
  wait_for DONE
  print -r -- "== $line"
  grep -vx DONE offered.zsh | sort -u
done
zpty -d z
END
# lines: what to type, a tab, what must be offered, with spaces between.
{
  printf 'ploop-img \t%s\n' "$(tr '\n' ' ' <<< "$first")"
  printf 'ploop-img help \t%s\n' "$(tr '\n' ' ' <<< "$first")"
  for group in $(awk 'NF == 2 { print $1 }' names | sort -u); do
    printf 'ploop-img %s \t%s\n' "$group" "$(sed -n "s/^$group //p" names | tr '\n' ' ')"
  done
  while read -ra name; do
    [ "${name[0]}" != help ] || continue
    options_of "${name[*]}" > options
    printf 'ploop-img %s --\t%s\n' "${name[*]}" \
      "$(grep -oE -e '--[a-z-]+' options | tr '\n' ' ')"
    while read -r option; do
      printf 'ploop-img %s %s=\t%s\n' "${name[*]}" \
        "$(grep -oE -e '--[a-z-]+' <<< "$option")" "$(tr '|' ' ' <<< "${option#*=}")"
    done < <(grep '=.*|' options)
  done < names
  printf 'ploop-img info dis\tdisk\n'
  if grep -q "$guid" guids; then
    printf 'ploop-img convert disk --snapshot=1234\t%s\n' "$(tr -d '{}' <<< "$guid")"
    printf 'ploop-img convert disk --snapshot=\\{1234\t%s\n' "$guid"
    printf 'ploop-img compare x disk --other-snapshot \\{1234\t%s\n' "$guid"
  fi
} > lines
cut -f 1 lines > typed
say "zsh: $(wc -l < typed) lines"
zsh -f ./zsh-driver "$completion" < typed > zsh.log 2>&1 ||
  { tail -n 20 zsh.log; fail "zsh does not complete"; }
while IFS=$'\t' read -r line want; do
  got=$(grep -A 9999 -xF -- "== $line" zsh.log | sed '1d; /^== /,$d' |
          sed 's/[=\/]$//; s/\\//g' | sort -u | tr '\n' ' ')
  want=$(tr ' ' '\n' <<< "$want" | sed '/^$/d' | sort -u | tr '\n' ' ')
  [ "${got# }" = "$want" ] || fail "zsh: $line: '$got', must be '$want'"
done < lines
say "passed"
