#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that clusters which no entry of the table names come back: those that a
# killed server had freed, and those that another program forgot, full of old
# data.  A server that writes finds them, scrubs them and uses them: a limit of
# the file's size leaves it nothing else.  Nothing of what was in them shows.
# At the end of the file they are cut off.  Reading changes nothing.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires qemu-io qemu-img prlimit od dd

file=$tmp/disk.hds
cluster=65536
nr=64                           # clusters with data
nr_entries=512
declare -A has                  # by guest cluster: the byte that it begins with

# ---- The image

data_offset ()
{
  echo $(($(od -A n -t u4 -j 48 -N 4 "$file") * 512))
}

# Entries of the table that are not 0.
nr_allocated ()
{
  od -A n -v -t u4 -w4 -j 64 -N $((4 * nr_entries)) "$file" |
    awk '$1 != 0 { n++ } END { print n + 0 }'
}

usage ()
{
  echo $(($(stat -c %b "$file") * 512))
}

# io [-r] COMMAND...: by qemu-io, without FUA; all must succeed.
io ()
{
  local c args=()
  if [ "$1" = -r ]; then
    args=(-r)
    shift
  fi
  for c in "$@"; do
    args+=(-c "$c")
  done
  qemu-io -t writeback -f raw "${args[@]}" "$uri" > "$tmp/io.log" 2>&1 ||
    { cat "$tmp/io.log"; fail "qemu-io"; }
  if grep -i 'failed' "$tmp/io.log"; then
    fail "a request failed"
  fi
}

# An image of $nr clusters, full of data, in the guest's order.
make_full ()
{
  local i args=()
  rm -f "$file"
  "$PLOOP_IMG" create -q --cluster-size=64K "$file" $((nr_entries * cluster))
  has=()
  for ((i = 0; i < nr; i++)); do
    has[$i]=$((1 + i))
    args+=("write -P $((1 + i)) $((i * cluster)) $cluster")
  done
  start_nbdkit file="$file" prealloc=1M
  io "${args[@]}" flush
}

# forget FIRST LAST: take entries away, as a program might that has crashed.
forget ()
{
  local i
  dd if=/dev/zero of="$file" bs=4 seek=$((16 + $1)) count=$(($2 - $1 + 1)) \
    conv=notrunc status=none
  for ((i = $1; i <= $2; i++)); do
    unset "has[$i]"
  done
}

# mark_open: as if the last server had been killed.
mark_open ()
{
  printf '\x59\x6e\x6f\x74' |
    dd of="$file" bs=1 seek=44 conv=notrunc status=none
  [ "$(in_use "$file")" = 746f6e59 ] || fail "not marked"
}

kill_nbdkit ()
{
  kill -KILL "$nbdkit_pid"
  wait "$nbdkit_pid" 2> /dev/null || true
  nbdkit_pid=
}

# ---- Judging

# What was written and nothing else, in as many clusters as are used: WHOLE
# clusters have one byte, the others only begin with it.
expect_content ()
{
  local i args=() length
  for ((i = 0; i < nr_entries; i++)); do
    if [ -z "${has[$i]:-}" ]; then
      args+=("read -P 0 $((i * cluster)) $cluster")
    else
      length=$cluster
      [ "$i" -lt $nr ] || length=512
      args+=("read -P ${has[$i]} $((i * cluster)) $length")
      [ $length = $cluster ] ||
        args+=("read -P 0 $((i * cluster + 512)) $((cluster - 512))")
    fi
  done
  io -r "${args[@]}"
}

# expect_clean NR: no leak, NR clusters allocated and the file as long as they.
expect_clean ()
{
  local size
  [ "$(in_use "$file")" = 00000000 ] || fail "still marked in use"
  [ "$(nr_allocated)" = "$1" ] ||
    fail "$(nr_allocated) clusters are allocated, must be $1"
  "$PLOOP_IMG" check "$file" > "$tmp/check.log" ||
    { cat "$tmp/check.log"; fail "ploop-img check is not content"; }
  qemu-img check -q -f parallels "$file" || fail "qemu-img check"
  size=$(stat -c %s "$file")
  [ "$size" -le $(($(data_offset) + $1 * cluster)) ] ||
    fail "$1 clusters need $(($(data_offset) + $1 * cluster)) bytes," \
         "but the file has $size"
}

# fits CLUSTER...: try to write each again until it is.
_fits ()
{
  local i args=() line k=0 left=()
  for i in "${wanted[@]}"; do
    args+=(-c "write -P $((i % 251 + 1)) $((i * cluster)) 512")
  done
  qemu-io -t writeback -f raw "${args[@]}" "$uri" > "$tmp/io.log" 2>&1 || true
  while read -r line; do
    case $line in
      "wrote 512/512"*)
        has[${wanted[k]}]=$((wanted[k] % 251 + 1)); k=$((k + 1)) ;;
      *"No space left on device"*)
        left+=("${wanted[k]}"); k=$((k + 1)) ;;
      *failed*) fail "not answered as ENOSPC: $line" ;;
    esac
  done < "$tmp/io.log"
  [ $k -eq ${#wanted[@]} ] || fail "$k of ${#wanted[@]} were answered"
  wanted=("${left[@]}")
  [ ${#wanted[@]} -eq 0 ]
}

# use_leaked NR PARAMETER...: with no room for more than there was, NR clusters
# can be written, and the image is clean after it.
use_leaked ()
{
  local i leaked=$1 limit
  shift
  limit=$(($(data_offset) + nr * cluster))
  [ $((nr - $(nr_allocated))) -eq "$leaked" ] ||
    fail "$(nr_allocated) clusters are allocated, must be $((nr - leaked))"
  NBDKIT="prlimit --fsize=$limit ${NBDKIT:-nbdkit}" \
    start_nbdkit file="$file" prealloc=1M "$@"
  expect_content
  wanted=()
  for ((i = 0; i < leaked; i++)); do
    wanted+=($((100 + i * 7)))
  done
  wait_until _fits ||
    fail "$leaked clusters are leaked, but ${#wanted[@]} writes find no space"
  expect_content
  stop_nbdkit
  expect_clean $nr
  start_nbdkit -r file="$file"
  expect_content
  stop_nbdkit
}

# ---- A killed server's

for parameters in discard=unmap discard=keep cache=none fast-path=off; do
  say "freed by a server that was killed: $parameters"
  make_full
  stop_nbdkit
  start_nbdkit file="$file" prealloc=1M $parameters
  io "discard $((16 * cluster)) $((24 * cluster))" flush flush
  wait_until test "$(nr_allocated)" = $((nr - 24)) ||
    fail "the entries are there after a flush"
  kill_nbdkit
  # What it had preallocated is above the limit: never any use.
  truncate -s $(($(data_offset) + nr * cluster)) "$file"
  for ((i = 16; i < 40; i++)); do unset "has[$i]"; done
  use_leaked 24 $parameters
done

# ---- Another program's, full of data

for parameters in discard=unmap discard=keep cache=none; do
  say "forgotten by another program: $parameters"
  make_full
  stop_nbdkit
  forget 10 29
  status=0
  "$PLOOP_IMG" check "$file" > "$tmp/check.log" || status=$?
  [ $status -eq 3 ] || fail "ploop-img check does not see leaks: $status"
  # Nothing is done to them for a reader, nor for a writer that only reads.
  before=$(file_state "$file")
  for option in -r ''; do
    start_nbdkit ${option:+"$option"} file="$file" $parameters
    expect_content
    stop_nbdkit
    [ "$(file_state "$file")" = "$before" ] || fail "reading changed the file"
  done
  use_leaked 20 $parameters

  say "  with the mark of an open image"
  make_full
  stop_nbdkit
  forget 0 5
  forget 31 44
  mark_open
  use_leaked 20 $parameters
done

# ---- Space that nobody asks for

say "scrubbed after the first write"
make_full
stop_nbdkit
full=$(usage)
forget 10 49
start_nbdkit file="$file" prealloc=64K prealloc-mode=truncate
io "write -P 1 0 512"
_is_smaller ()
{
  [ "$(usage)" -le $((full - 38 * cluster)) ]
}
wait_until _is_smaller ||
  fail "40 clusters are leaked, but the file takes $(usage) of $full bytes"
expect_content
stop_nbdkit

say "all that a killed server had"
make_full
kill_nbdkit
start_nbdkit file="$file"
io "write -P 1 0 512"
expect_content
stop_nbdkit
expect_clean $nr

say "all that a killed server had, and had freed"
make_full
io "discard $cluster $(((nr - 1) * cluster))" flush
kill_nbdkit
has=([0]=1)
start_nbdkit file="$file"
io "write -P 1 0 512"
expect_content
stop_nbdkit
expect_clean 1
say "forgotten at the end of the file"
make_full
stop_nbdkit
forget 40 63
start_nbdkit file="$file"
io "write -P 1 0 512"
expect_content
stop_nbdkit
expect_clean 40

say "passed"
