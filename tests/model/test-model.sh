#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves, by looking at every state of the models in commit.pml and trims.pml,
# that requests, commits, the scrubbing of freed clusters and the punching of
# parts of clusters keep the rules together, whatever order they run in and, for
# commits, wherever the power fails; and that the models would notice if they did
# not: each of their BUG_* macros must be found.
#
# To see how an error comes about:
#
#     spin -a -DCONFIG_TRIM -DBUG_NO_GRACE_PERIOD commit.pml
#     gcc -O2 -DSAFETY -DCOLLAPSE -o pan pan.c && ./pan -m10000 -i
#     spin -t -p -g -l -DCONFIG_TRIM -DBUG_NO_GRACE_PERIOD commit.pml

set -euo pipefail

models=${abs_srcdir:-$(cd "$(dirname "$0")" && pwd)}
model=$models/commit.pml
max_mib=1000
max_depth=10000

say ()
{
  echo "${0##*/}: $*"
}

fail ()
{
  say "FAILED: $*" >&2
  exit 1
}

for cmd in spin gcc; do
  command -v $cmd > /dev/null ||
    { say "skipped: $cmd is not installed"; exit 77; }
done

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
cd "$tmp"

# search LEVEL MACRO...: look through the model, compiled with -OLEVEL; what was
# found is in pan.log.
search ()
{
  local level=$1
  shift
  rm -f pan*
  timeout 60 spin -a "${@/#/-D}" "$model" > spin.log 2>&1 ||
    { cat spin.log; fail "spin does not take the model with $*"; }
  gcc "-O$level" -w -DSAFETY -DCOLLAPSE -DMEMLIM=$max_mib -o pan pan.c ||
    fail "what spin made of $* cannot be compiled"
  nice -n 10 ./pan -m$max_depth > pan.log 2>&1 || true
}

# number TEXT: what stands before it in pan.log, 0 when it is not there.
number ()
{
  sed -n "s/^ *\([0-9.e+]*\) $1.*/\1/p" pan.log | head -n 1
}

# holds CONFIG: no state of it breaks a rule, and all were looked at.
holds ()
{
  search 2 "CONFIG_$1"
  grep -q 'errors: 0$' pan.log || { cat pan.log; fail "CONFIG_$1"; }
  if grep -Eq 'max search depth|out of memory|reached -DMEMLIM|not completed' \
       pan.log || ! grep -q '^Full statespace search' pan.log ||
     ! grep -q 'elapsed time' pan.log; then
    cat pan.log
    fail "CONFIG_$1: not all states were looked at"
  fi
  say "CONFIG_$1: $(number 'states, stored') states," \
      "$(sed -n 's/^pan: elapsed time //p' pan.log)"
}

# finds BUG CONFIG: with BUG, a state breaks a rule.
finds ()
{
  search 0 "CONFIG_$2" "BUG_$1"
  grep -q 'errors: [1-9]' pan.log ||
    { cat pan.log; fail "BUG_$1 was not found in CONFIG_$2"; }
  say "BUG_$1: found in CONFIG_$2:" \
      "$(number 'states, stored') states," \
      "$(sed -n 's/^pan: elapsed time //p' pan.log)"
}

holds WRITERS
holds FLUSH
holds DELAY
holds DURABLE
holds TRIM
holds ZERO
holds GROUP

# A freed cluster.
finds NO_GRACE_PERIOD TRIM
finds REUSE_BEFORE_REMOVAL TRIM
finds REUSE_BEFORE_PUNCH TRIM
# A cluster that two write while it is new.
finds UNDO_IGNORES_NEW WRITERS
finds REMAP_UNNOTICED WRITERS
finds NEW_CLEARED_FIRST WRITERS
finds CLEARED_UNWRITTEN TRIM
# What a commit covers.
finds COVERED_AFTER_SYNC TRIM
finds DIRTY_CLEARED_FIRST ZERO
finds NOTE_BEFORE_WRITE FLUSH
finds UNMAP_BEFORE_NOTE ZERO
finds ZERO_WITHOUT_COMMIT ZERO
# A cluster that the file's size does not cover.
finds SIZE_NOT_SYNCED FLUSH
# Who commits.
finds LEADS_READ_UNLOCKED GROUP
finds ALL_ANSWERED GROUP
finds NO_LEADER_NEEDED GROUP

model=$models/trims.pml
holds PARTS
holds PIECES
holds AGAIN

# What is written is not trimmed any more.
finds WRITTEN_PART_PUNCHED PARTS
finds WRITE_UNDER_A_PUNCH PARTS
# Nothing is left of a cluster, and somebody writes to it.
finds NOT_LOOKED_UP_AGAIN PIECES
finds UNMAPPED_UNLOCKED PIECES
finds NO_GRACE_PERIOD PIECES
finds RECORD_OF_ANOTHER_TIME AGAIN
