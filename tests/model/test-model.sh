#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves, by looking at every state of the models in commit.pml, copies.pml and
# trims.pml, that requests, commits, copies from lower deltas, the scrubbing of
# freed clusters and the punching of parts of clusters keep the rules together,
# whatever order they run in and, for commits and copies, wherever the power fails;
# and that the models would notice if they did not: each of their BUG_* macros must
# be found.  With PLOOP_TEST_SCALE below 100, a third of these, by PLOOP_TEST_SEED.
#
# To see how an error comes about:
#
#     spin -a -DCONFIG_TRIM -DBUG_NO_GRACE_PERIOD commit.pml
#     gcc -O2 -DSAFETY -DCOLLAPSE -o pan pan.c && ./pan -m10000 -i
#     spin -t -p -g -l -DCONFIG_TRIM -DBUG_NO_GRACE_PERIOD commit.pml

set -euo pipefail

models=${abs_srcdir:-$(cd "$(dirname "$0")" && pwd)}
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

# search MODEL LEVEL MACRO...: look through the model, compiled with -OLEVEL; what
# was found is in pan.log.
search ()
{
  local model=$models/$1 level=$2
  shift 2
  tmp=$(mktemp -d)
  trap 'rm -rf "$tmp"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  cd "$tmp"
  timeout 300 spin -a "${@/#/-D}" "$model" > spin.log 2>&1 ||
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

# summary WHAT
summary ()
{
  say "$1: $(number 'states, stored') states," \
      "$(sed -n 's/^pan: elapsed time //p' pan.log)"
}

# holds MODEL CONFIG: no state of it breaks a rule, and all were looked at.
holds ()
{
  search "$1" 2 "CONFIG_$2"
  grep -q 'errors: 0$' pan.log || { cat pan.log; fail "$1: CONFIG_$2"; }
  if grep -Eq 'max search depth|out of memory|reached -DMEMLIM|not completed' \
       pan.log || ! grep -q '^Full statespace search' pan.log ||
     ! grep -q 'elapsed time' pan.log; then
    cat pan.log
    fail "$1: CONFIG_$2: not all states were looked at"
  fi
  summary "$1: CONFIG_$2"
}

# finds MODEL CONFIG BUG: with BUG, a state breaks a rule.
finds ()
{
  search "$1" 0 "CONFIG_$2" "BUG_$3"
  grep -q 'errors: [1-9]' pan.log ||
    { cat pan.log; fail "$1: BUG_$3 was not found in CONFIG_$2"; }
  summary "$1: BUG_$3: found in CONFIG_$2"
}

# The longest first.
list ()
{
  grep '^[hf]' <<'END'
holds commit.pml TRIM
holds commit.pml GROUP
holds commit.pml ZERO
holds commit.pml WRITERS
holds commit.pml FLUSH
holds commit.pml DURABLE
holds commit.pml DELAY
holds copies.pml FILLS
holds copies.pml LAZY
holds copies.pml FLUSH
holds copies.pml PAGE
holds copies.pml COPY
holds trims.pml PARTS
holds trims.pml PIECES
holds trims.pml AGAIN

A freed cluster.
finds commit.pml TRIM NO_GRACE_PERIOD
finds commit.pml TRIM REUSE_BEFORE_REMOVAL
finds commit.pml TRIM REUSE_BEFORE_PUNCH
A cluster that two write while it is new.
finds commit.pml WRITERS UNDO_IGNORES_NEW
finds commit.pml WRITERS REMAP_UNNOTICED
finds commit.pml WRITERS NEW_CLEARED_FIRST
finds commit.pml TRIM CLEARED_UNWRITTEN
What a commit covers.
finds commit.pml TRIM COVERED_AFTER_SYNC
finds commit.pml ZERO DIRTY_CLEARED_FIRST
finds commit.pml FLUSH NOTE_BEFORE_WRITE
finds commit.pml ZERO UNMAP_BEFORE_NOTE
finds commit.pml ZERO ZERO_WITHOUT_COMMIT
A cluster that the file's size does not cover.
finds commit.pml FLUSH SIZE_NOT_SYNCED
Who leads, and who wakes whom.
finds commit.pml GROUP LEADS_READ_UNLOCKED
finds commit.pml GROUP ALL_ANSWERED
finds commit.pml GROUP NO_LEADER_NEEDED
What is written is not trimmed any more.
finds trims.pml PARTS WRITTEN_PART_PUNCHED
finds trims.pml PARTS WRITE_UNDER_A_PUNCH
Nothing is left of a cluster, and somebody writes to it.
finds trims.pml PIECES NOT_LOOKED_UP_AGAIN
finds trims.pml PIECES UNMAPPED_UNLOCKED
finds trims.pml PIECES NO_GRACE_PERIOD
finds trims.pml AGAIN RECORD_OF_ANOTHER_TIME
A copy.
finds copies.pml COPY REST_NOT_COPIED
finds copies.pml COPY TWO_COPIES
finds copies.pml COPY COPY_IS_STABLE
When its entry may be on disk, and when it has to.
finds copies.pml PAGE UNSTABLE_WRITTEN
finds copies.pml PAGE STABLE_BEFORE_SYNC
finds copies.pml PAGE ALL_STABLE_AFTER_SYNC
finds copies.pml COPY NOT_PUT_DOWN
finds copies.pml COPY PUBLISHED_FIRST
A lazy one.
finds copies.pml LAZY FLUSH_WITHOUT_FILLS
finds copies.pml FILLS FILLING_COVERED
finds copies.pml FILLS PAGE_FORGOTTEN
finds copies.pml LAZY FILL_UNLOCKED
finds copies.pml LAZY WRITE_PAST_FILL
END
}

# All that hold, and those of the others whose turn it is.
chosen ()
{
  local turn=${PLOOP_TEST_SEED:-$RANDOM} stride=3
  [ "${PLOOP_TEST_SCALE:-100}" -lt 100 ] || stride=1
  say "PLOOP_TEST_SEED=$turn PLOOP_TEST_SCALE=${PLOOP_TEST_SCALE:-100}" >&2
  list | awk -v turn=$((turn % stride)) -v stride=$stride \
    '/^holds/ || NR % stride == turn'
}

if [ $# -gt 0 ]; then
  "$@"
  exit
fi
for cmd in spin gcc; do
  command -v $cmd > /dev/null ||
    { say "skipped: $cmd is not installed"; exit 77; }
done
chosen | xargs -P "$(nproc)" -L 1 "$BASH" "$0" || fail "see above"
