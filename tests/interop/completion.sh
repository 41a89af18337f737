# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034

# What the tests of completion in bash share: to complete words as the shell does, and to
# compare what is offered.  Sourced after ../functions.sh and the completion itself; the
# test sets program, the name of what is completed, and completer, the function.

# What is left to the shell, as the words of compopt with a space before each call's.
compopts=
compopt ()
{
  compopts+=" $*"
}

# complete_words WORD...: what is offered for the last one, in $tmp/offered, one a line,
# sorted.
complete_words ()
{
  COMP_WORDS=("$program" "$@") COMP_CWORD=$# compopts=
  set +eu
  "$completer"
  set -eu
  printf '%s\n' ${COMPREPLY[@]+"${COMPREPLY[@]}"} | sort -u > "$tmp/offered"
}

# offers TEXT WORD...: the lines of TEXT, and no other, are offered for WORDs.
offers ()
{
  local want
  want=$(sort -u <<< "$1")
  shift
  complete_words "$@"
  [ "$(cat "$tmp/offered")" = "$want" ] || {
    diff <(echo "$want") "$tmp/offered" || :
    fail "bash: ${program##*/} $*"
  }
}

# offers_files WORD...
offers_files ()
{
  offers '' "$@"
  case $compopts in
    *'-o default'*) ;;
    *) fail "bash: no files: ${program##*/} $*" ;;
  esac
}

offers_nothing ()
{
  offers '' "$@"
  [ -z "$compopts" ] || fail "bash: files: ${program##*/} $*"
}
