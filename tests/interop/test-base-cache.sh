#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that base-cache=on keeps in the top delta what was read of a base on
# another server: the base's server is not asked for it again, nor needed, also
# after a restart of ours, as its own log shows; that what is written, zeroed or
# trimmed wins over what is fetched, before, after and meanwhile; and that
# without base-cache=on nothing is kept.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires nbdkit nbdcopy nbdinfo qemu-io qemu-img
nbdkit file --version > /dev/null 2>&1 || skip "no nbdkit-file-plugin"
for filter in log delay; do
  nbdkit --filter=$filter null --version > /dev/null 2>&1 ||
    skip "no nbdkit-$filter-filter"
done

kib=8192

# ---- The server of the base

remote_log=$tmp/remote.reads
# start_logged ARG...: with a new log of what it is asked for.
start_logged ()
{
  : > "$remote_log"
  start_remote -r --filter=log --filter=delay file "$tmp/base.raw" \
    logfile="$remote_log" "$@"
}

# reads: what it was asked for, OFFSET LENGTH in bytes.
reads ()
{
  local offset count
  while read -r offset count; do
    echo "$((offset)) $((count))"
  done < <(sed -n 's/.* Read id=.*offset=\(0x[0-9a-f]*\) count=\(0x[0-9a-f]*\).*/\1 \2/p' \
             "$remote_log")
}

# asked_for KIB LENGTH: was it asked for any of this range?
asked_for ()
{
  reads | awk -v from=$(($1 * 1024)) -v to=$((($1 + $2) * 1024)) '
    $1 < to && from < $1 + $2 { found = 1 } END { exit !found }'
}

# expect_asked KIB LENGTH WHAT
expect_asked ()
{
  asked_for "$1" "$2" ||
    { cat "$remote_log"; fail "$3: the base was not asked for ${1}k, +${2}k"; }
}

# expect_not_asked KIB LENGTH WHAT
expect_not_asked ()
{
  ! asked_for "$1" "$2" ||
    { cat "$remote_log"; fail "$3: the base was asked for ${1}k, +${2}k"; }
}

# ---- Ours

# expect_range KIB LENGTH WHAT: is what the oracle has.
expect_range ()
{
  qemu-io -r -f raw -c "read -v ${1}k ${2}k" "$uri" > "$tmp/io.log" 2>&1 ||
    { tail -n 3 "$tmp/io.log"; fail "$3: cannot be read"; }
  qemu-io -r -f raw -c "read -v ${1}k ${2}k" "$tmp/raw" > "$tmp/io.raw" 2>&1
  cmp -s <(grep '^[0-9a-f]\{8,\}:' "$tmp/io.log") \
    <(grep '^[0-9a-f]\{8,\}:' "$tmp/io.raw") ||
    fail "$3: ${1}k, +${2}k has something else"
}

# expect_zeros_or PATTERN KIB LENGTH WHAT: never what the base has.
expect_zeros_or ()
{
  local pattern=$1 from=$2 length=$3 what=$4
  nbdcopy "$uri" "$tmp/out" || fail "$what: cannot be read"
  [ "$(dd if="$tmp/out" bs=1k skip="$from" count="$length" status=none |
         tr -d "\\000\\$(printf %o "$pattern")" | wc -c)" = 0 ] ||
    fail "$what: a range that was trimmed has something else"
}

# new_top: an empty image to be put over the base, and the oracle.
new_top ()
{
  rm -f "$tmp/top.hds"
  "$PLOOP_IMG" create -q --cluster-size=64K "$tmp/top.hds" "${kib}K"
  cp --sparse=always "$tmp/base.raw" "$tmp/raw"
}

work ()
{
  start_nbdkit file="$tmp/top.hds" base="$remote_uri" "$@" ||
    fail "refused: $(cat "$nbdkit_log")"
}

# kill_ours: as kill -9 does.
kill_ours ()
{
  kill -KILL "$nbdkit_pid"
  wait "$nbdkit_pid" 2> /dev/null || true
  nbdkit_pid=
}

# expect_sound WHAT: the top, when nobody serves it.
expect_sound ()
{
  [ "$(in_use "$tmp/top.hds")" = 00000000 ] || fail "$1: still marked"
  "$PLOOP_IMG" check "$tmp/top.hds" > "$tmp/check.log" ||
    { cat "$tmp/check.log"; fail "$1: ploop-img check"; }
  qemu-img check -q -f parallels "$tmp/top.hds" || fail "$1: qemu-img check"
}

# No byte of the base is zero or one of the patterns that are written, 0x11 to
# 0x1f, so that each can be told from the others.
head -c $((kib * 1024)) /dev/urandom | tr '\000-\037' '\100-\137' \
  > "$tmp/base.raw"
base_before=$(file_state "$tmp/base.raw")

# ---- What was read is here

say "kept"
new_top
start_logged
work base-cache=on
expect_range 0 1 "one sector of a cluster"
expect_range 200 300 "parts of clusters, and some whole ones"
expect_range 8191 1 "the end"
for range in '0 64' '192 320' '8128 64'; do
  # shellcheck disable=SC2086
  expect_asked $range "read for the first time"
done
# What nobody asked for is not fetched.
expect_not_asked 1024 6144 "never read"
nr=$(reads | wc -l)
# The whole clusters, not only what was read of them.
expect_range 0 64 "again"
expect_range 192 320 "again"
expect_range 8128 64 "again"
[ "$(reads | wc -l)" = "$nr" ] ||
  { cat "$remote_log"; fail "the base was asked again for what is kept"; }

# Nobody is needed for it.
stop_remote KILL
expect_range 0 64 "without the base"
expect_range 192 320 "without the base"
expect_range 8128 64 "without the base"
# Back, and not asked, by the next server of ours either.
start_logged
stop_nbdkit
expect_sound "kept"
work base-cache=on
for round in on off; do
  expect_range 0 64 "after a restart, $round"
  expect_range 192 320 "after a restart, $round"
  expect_range 8128 64 "after a restart, $round"
  [ -z "$(reads)" ] ||
    { cat "$remote_log"; fail "after a restart, the base was asked"; }
  stop_nbdkit
  work base-cache=off
done
expect_content "after a restart"
expect_asked 64 128 "what was not kept"
stop_nbdkit

# All of it, by several at once; then the base can go.
work base-cache=on
copies=()
for i in 1 2 3; do
  nbdcopy "$uri" "$tmp/copy.$i" > "$tmp/copy.log.$i" 2>&1 &
  copies+=($!)
done
for i in 1 2 3; do
  wait "${copies[i - 1]}" || { cat "$tmp/copy.log.$i"; fail "reader $i"; }
  cmp "$tmp/copy.$i" "$tmp/raw" || fail "reader $i got something else"
done
stop_remote KILL
expect_content "all of it is kept"
# It survives kill -9 after a flush.
io_both 'write -P 0x11 100k 1k' flush
kill_ours
start_logged
work base-cache=on
expect_content "killed"
[ -z "$(reads)" ] || { cat "$remote_log"; fail "killed: the base was asked"; }
io_both 'write -P 0x12 200k 1k'
stop_nbdkit
expect_sound "all of it is kept"
stop_remote

# ---- Off, or to be read only: nothing is kept

say "off"
for args in base-cache=off '' '-r base-cache=on'; do
  new_top
  start_logged
  before=$(file_state "$tmp/top.hds")
  # shellcheck disable=SC2086
  work $args
  expect_range 0 64 "'$args'"
  nr=$(reads | wc -l)
  expect_range 0 64 "'$args', again"
  [ "$(reads | wc -l)" -gt "$nr" ] || fail "'$args': the base was not asked"
  stop_nbdkit
  [ "$(file_state "$tmp/top.hds")" = "$before" ] ||
    fail "'$args': the top was changed by reading"
  stop_remote
done

# ---- Who writes wins

say "writes"
new_top
start_logged
work base-cache=on
# Before it is read, whole clusters and parts; after; and back and forth.
io_both 'write -P 0x11 0 64k' 'write -P 0x12 130k 3k' 'write -z -u 256k 64k' \
  'write -z 330k 5k' 'write -z -u 400k 20k'
expect_not_asked 0 64 "a whole cluster is written"
expect_not_asked 256 64 "a whole cluster is zeroed"
expect_range 0 640 "written, then read"
io_both 'write -P 0x13 512k 1k' 'write -P 0x14 575k 2k' 'write -z -u 192k 64k' \
  'write -P 0x15 131k 1k' flush
nr=$(reads | wc -l)
expect_range 0 512 "read, then written"
[ "$(reads | wc -l)" = "$nr" ] ||
  { cat "$remote_log"; fail "the base was asked for what was written"; }
expect_content "written"
stop_nbdkit
work base-cache=on
expect_content "written, after a restart"
expect_not_asked 0 64 "written, after a restart"
stop_nbdkit
stop_remote
expect_sound "writes"

# Meanwhile: the base takes its time, and the same clusters are read by some and
# written by others.
new_top
start_logged delay-read=100ms
work base-cache=on runners=8
copies=()
for i in 1 2; do
  nbdcopy "$uri" "$tmp/copy.$i" > "$tmp/copy.log.$i" 2>&1 &
  copies+=($!)
done
for ((round = 0; round < 8; round++)); do
  io_both "write -z -u $((round * 900 + 450))k 80k" \
    "write -P $((16 + round)) $((round * 1000 + 7))k 33k" \
    "write -P $((16 + round)) $(((round * 15 + 3) * 64))k 64k" \
    "write -P $((16 + round)) $((8000 - round * 700))k 512" \
    "read -P $((16 + round)) $((8000 - round * 700))k 512" \
    "read -P $((16 + round)) $((round * 1000 + 7))k 33k"
done
for i in 1 2; do
  wait "${copies[i - 1]}" || { cat "$tmp/copy.log.$i"; fail "reader $i"; }
done
expect_content "written while it is fetched"
stop_remote KILL
expect_content "written while it is fetched, all of it kept"
start_logged
stop_nbdkit
expect_sound "written while it is fetched"
work -r
expect_content "written while it is fetched, after a restart"
[ -z "$(reads)" ] || { cat "$remote_log"; fail "the base was asked"; }
stop_nbdkit
stop_remote

# ---- Trims do not bring the base back

say "trims"
new_top
start_logged
work base-cache=on
# Kept, then trimmed: whole clusters are zeros.  Never read: they are, too, or
# still what they were; from then on they do not change.
expect_range 0 640 "to be trimmed"
io_both 'write -P 0x11 512k 128k'
qemu-io -t writeback -f raw -c 'discard 128k 128k' -c 'discard 512k 64k' \
  -c flush "$uri" > "$tmp/io.log" 2>&1 || { cat "$tmp/io.log"; fail "trim"; }
nr=$(reads | wc -l)
# copy_has_zeros: where it was trimmed.
copy_has_zeros ()
{
  local range
  nbdcopy "$uri" "$tmp/out" || fail "it cannot be read"
  for range in '128 128' '512 64'; do
    cmp -s -n $((${range#* } * 1024)) -i $((${range% *} * 1024)):0 \
      "$tmp/out" /dev/zero || return
  done
}
# trimmed_is_zero WHAT: it is punched in the background.
trimmed_is_zero ()
{
  wait_until copy_has_zeros || fail "$1: no zeros"
  qemu-io -f raw -c 'write -z 128k 128k' -c 'write -z 512k 64k' "$tmp/raw" \
    > /dev/null
  cmp "$tmp/out" "$tmp/raw" || fail "$1: more than that was changed"
}
expect_range 576 64 "beside what was trimmed"
trimmed_is_zero "trimmed"
reads | tail -n "+$((nr + 1))" > "$tmp/reads.since"
awk '$1 < 655360 { bad = 1 } END { exit bad }' "$tmp/reads.since" ||
  { cat "$tmp/reads.since"; fail "the base was asked for what was trimmed"; }
stop_nbdkit
work base-cache=on
trimmed_is_zero "trimmed, after a restart"
io_both 'write -P 0x12 130k 1k' 'write -P 0x13 575k 1k'
expect_content "written again"
# Parts of clusters are zeros or as before, and nothing around them changes.
qemu-io -t writeback -f raw -c 'discard 2050k 30k' -c 'discard 2180k 200k' \
  -c flush "$uri" > "$tmp/io.log" 2>&1 || { cat "$tmp/io.log"; fail "trim"; }
# parts_are_right WHAT: a byte that differs is a zero, and was trimmed.  Sets the
# oracle to what was found.
parts_are_right ()
{
  nbdcopy "$uri" "$tmp/out" || fail "$1: cannot be read"
  { cmp -l "$tmp/out" "$tmp/raw" || true; } | awk '
    function in_range(from, length_) {
      return $1 > from * 1024 && $1 <= (from + length_) * 1024
    }
    $2 != 0 || !(in_range(2050, 30) || in_range(2180, 200)) {
      print "at", $1 - 1, "there is", $2, "and was", $3; exit 1
    }' || fail "$1: neither what was there nor zeros that were asked for"
  cp "$tmp/out" "$tmp/raw"
}
parts_are_right "parts trimmed"
stop_nbdkit
# Once it reads as zeros it does so for ever: the oracle has them now, but for
# what was punched later.
work base-cache=on
parts_are_right "parts trimmed, after a restart"
stop_nbdkit
expect_sound "trims"
work -r
expect_content "at the end"
stop_nbdkit

# What was written here and trimmed before the base was ever read of it.
new_top
work base-cache=on
io_both 'write -P 0x14 1000k 600k'
qemu-io -t writeback -f raw -c 'discard 1010k 500k' -c flush "$uri" \
  > "$tmp/io.log" 2>&1 || { cat "$tmp/io.log"; fail "trim"; }
for state in "at once" "after a restart"; do
  expect_zeros_or 0x14 1000 600 "written, then trimmed, $state"
  stop_nbdkit
  work base-cache=on
done
stop_nbdkit
stop_remote

[ "$(file_state "$tmp/base.raw")" = "$base_before" ] ||
  fail "the base was changed"
say "passed"
