#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that ploop-img convert copies a disk whole into every other form: images of
# both versions and any cluster size, chains, snapshots, raw files of any length and
# exports, to images, raw files and exports.  Holes stay holes; qemu-img and ploop
# accept the images.  Whatever ends it (kill -9, a signal, an error on either side),
# what was there before is there, or all of the copy, and the next try succeeds.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires qemu-img nbdcopy nbdinfo cmp awk ploop
for plugin in memory file; do
  nbdkit "$plugin" --version > /dev/null 2>&1 || skip "no nbdkit-$plugin-plugin"
done
unpack_corpus

# convert STATUS ARG...: what it says is in $tmp/convert.log.
convert ()
{
  local want=$1 status=0
  shift
  "$PLOOP_IMG" convert "$@" > "$tmp/convert.log" 2>&1 || status=$?
  [ $status -eq "$want" ] ||
    { cat "$tmp/convert.log"; fail "convert $*: exit status $status, not $want"; }
}

# says TEXT: an extended regular expression, in what was said last.
says ()
{
  grep -Eq -- "$1" "$tmp/convert.log" ||
    { cat "$tmp/convert.log"; fail "it does not say '$1'"; }
}

# expect_same A B
expect_same ()
{
  "$PLOOP_IMG" compare -q "$1" "$2" || fail "$1 and $2 differ"
}

# expect_sound IMAGE: in the eyes of others, too.
expect_sound ()
{
  "$PLOOP_IMG" check "$1" > "$tmp/check.log" ||
    { cat "$tmp/check.log"; fail "$1: ploop-img check"; }
  qemu-img check -f parallels "$1" > "$tmp/check.log" 2>&1 ||
    { cat "$tmp/check.log"; fail "$1: qemu-img check"; }
}

no_part ()
{
  [ ! -e "$1.part" ] || fail "$1.part was left"
}

# ---- Every form to every other

raw=$tmp/raw
size=$((9 * (1 << 20) + 777))
truncate -s $size "$raw"
for at in 0 130 3000 5555 9100; do
  dd if=/dev/urandom of="$raw" bs=1k seek=$at count=100 conv=notrunc status=none
done
truncate -s $size "$raw"
start_remote memory 16M
nbdcopy "$raw" "$remote_uri"

say "forms"
for source in "$raw" "$remote_uri" "$tmp"/corpus/{b-data-v1-b128,e-v1-63/i.hds} \
    "$tmp"/corpus/c-*; do
  [ -e "$source" ] || [ "$source" = "$remote_uri" ] || continue
  "$PLOOP_IMG" compare -q "$source" "$source" 2> /dev/null || continue
  for form in '-O raw' '--version=1 --cluster-size=32K' '--cluster-size=64K' \
      '--version=2'; do
    due || continue
    # shellcheck disable=SC2086  # several words
    convert 0 $form --force "$source" "$tmp/copy"
    says 'copied to'
    expect_same "$source" "$tmp/copy"
    no_part "$tmp/copy"
    [ "$form" = '-O raw' ] || expect_sound "$tmp/copy"
  done
done
stop_remote KILL

say "snapshots"
dir=$(echo "$tmp"/corpus/c-chain3-v2*)
guid='{00000001-1111-2222-3333-444444444444}'
if [ -d "$dir" ] && grep -q "$guid" "$dir/DiskDescriptor.xml"; then
  convert 0 --force --snapshot=$guid "$dir" "$tmp/copy"
  "$PLOOP_IMG" compare -q --snapshot=$guid "$dir" "$tmp/copy" ||
    fail "the copy of a snapshot"
fi

say "exports"
head -c 10M /dev/urandom > "$tmp/old"
for filter in '' --filter=nozero --filter=noparallel; do
  # shellcheck disable=SC2086  # none, or one
  start_remote $filter memory 10M
  nbdcopy "$tmp/old" "$remote_uri"
  convert 0 "$raw" "$remote_uri"
  expect_same "$raw" "$remote_uri"
  stop_remote KILL
done
start_remote memory 10M
convert 0 --target-is-zero "$raw" "$remote_uri"
expect_same "$raw" "$remote_uri"
convert 0 --force "$remote_uri" "$tmp/copy"
stop_remote KILL
# A server of ours, with several connections.
"$PLOOP_IMG" create -q --cluster-size=64K "$tmp/served.hds" 10M
start_nbdkit file="$tmp/served.hds"
convert 0 "$raw" "$uri"
stop_nbdkit
expect_same "$raw" "$tmp/served.hds"

say "standard output"
for source in "$raw" "$tmp/served.hds"; do
  "$PLOOP_IMG" convert -O raw "$source" - > "$tmp/copy.raw" 2> "$tmp/convert.log" ||
    { cat "$tmp/convert.log"; fail "convert to a pipe"; }
  [ ! -s "$tmp/convert.log" ] || fail "convert to a pipe is not quiet"
  "$PLOOP_IMG" compare -q -s "$source" "$tmp/copy.raw" || fail "through a pipe"
  "$PLOOP_IMG" convert -O raw "$source" - | cmp - "$tmp/copy.raw" ||
    fail "a pipe and a file"
done
rm "$tmp/copy.raw"
convert 1 "$raw" -
says 'standard output'
convert 1 -O raw --output=json "$raw" -
convert 1 -O raw "$tmp/nonexistent" -

# ---- Holes

say "holes"
truncate -s 1T "$tmp/large"
printf x | dd of="$tmp/large" bs=1 seek=$((700 << 30)) conv=notrunc status=none
convert 0 --force "$tmp/large" "$tmp/copy"
[ "$(du -k "$tmp/copy" | cut -f 1)" -lt 16384 ] || fail "holes take space: $(du -k "$tmp/copy")"
convert 0 --force -O raw "$tmp/copy" "$tmp/copy.raw"
[ "$(du -k "$tmp/copy.raw" | cut -f 1)" -lt 2048 ] || fail "holes take space in a raw file"
expect_same "$tmp/large" "$tmp/copy.raw"
# What is not a hole, but zeros.
head -c 8M /dev/zero > "$tmp/zeros"
convert 0 --force "$tmp/zeros" "$tmp/copy"
"$PLOOP_IMG" check "$tmp/copy" | grep -q 'of which 0 allocated' ||
  fail "zeros were allocated"
rm -f "$tmp/large" "$tmp/copy.raw"

# ---- What is refused

say "refused"
convert 0 --force "$raw" "$tmp/copy"
before=$(file_state "$tmp/copy")
convert 1 "$raw" "$tmp/copy"
says 'copy: exists already'
mkdir "$tmp/directory"
convert 1 --force "$raw" "$tmp/directory"
says 'not a regular file'
convert 1 "$tmp/nonexistent" "$tmp/other"
says 'nonexistent.*No such file'
convert 1 "$raw" "$tmp/no/directory"
says 'No such file'
convert 1 --format=qcow2 "$raw" "$tmp/other"
convert 1 --cluster-size=33K "$raw" "$tmp/other"
convert 1 "$tmp/corpus/h-corrupt/dup.hds" "$tmp/other"
says 'dup.hds'
start_nbdkit file="$tmp/copy"
convert 1 --force "$raw" "$tmp/copy"
says 'in use'
stop_nbdkit
# A raw disk in the place of its own image.
convert 1 --force -O raw "$tmp/copy" "$tmp/copy"
says 'in use'
start_remote memory 9M
convert 1 "$raw" "$remote_uri"
says '9437184 bytes, but 9437961 are needed'
stop_remote KILL
start_remote -r memory 10M
convert 1 "$raw" "$remote_uri"
says 'read-only'
stop_remote KILL
[ "$(file_state "$tmp/copy")" = "$before" ] || fail "changed by what was refused"
for left in other other.part; do
  [ ! -e "$tmp/$left" ] || fail "$left was left"
done

# ---- What fails on the way

say "failures"
for program in "" prlimit; do
  [ -z "$program" ] || command -v $program > /dev/null || continue
  if [ -z "$program" ]; then
    # The source cannot be read.
    start_remote --filter=error file "$raw" error-pread=EIO error-pread-rate=100%
    convert 1 --force "$remote_uri" "$tmp/copy"
    says 'cannot be read at byte'
    stop_remote KILL
  else
    # The target cannot grow.
    for form in ploop raw; do
      status=0
      prlimit --fsize=2000000 "$PLOOP_IMG" convert --force -O $form "$raw" \
        "$tmp/copy" > "$tmp/convert.log" 2>&1 || status=$?
      [ $status -ne 0 ] || fail "it grew beyond the limit"
    done
  fi
  expect_same "$raw" "$tmp/copy"
done
rm -f "$tmp/copy.part"

# Both to one name, that is there or not: one may be refused, or both, when they
# look at the same moment; what is there in the end is one of them, whole.
say "two at once"
head -c 24M /dev/urandom > "$tmp/one"
head -c 24M /dev/urandom > "$tmp/two"
nr_made=0
for ((i = 0; i < 16; i++)); do
  [ $((i % 2)) -eq 0 ] || rm -f "$tmp/copy"
  pids=()
  for source in one two; do
    "$PLOOP_IMG" convert -q --force "$tmp/$source" "$tmp/copy" \
      2>> "$tmp/convert.log" &
    pids+=($!)
  done
  status=0
  for pid in "${pids[@]}"; do wait "$pid" || status=$((status + 1)); done
  [ $status -lt 2 ] || continue
  nr_made=$((nr_made + 1))
  "$PLOOP_IMG" compare -q "$tmp/one" "$tmp/copy" ||
    expect_same "$tmp/two" "$tmp/copy"
done
[ $nr_made -gt 0 ] || fail "none was ever made"
rm -f "$tmp/copy.part"

say "signals"
head -c 64M /dev/urandom > "$tmp/big"
for signal in INT TERM KILL KILL KILL; do
  for form in ploop raw; do
    due || continue
    convert 0 --force -O $form "$raw" "$tmp/copy"
    "$PLOOP_IMG" convert -q --force -O $form "$tmp/big" "$tmp/copy" \
      2> "$tmp/convert.log" &
    pid=$!
    wait_until test -e "$tmp/copy.part" || :
    read -r -t "0.0$((RANDOM % 10))" -u "$_never" _ || :
    kill -$signal $pid 2> /dev/null || :
    status=0
    wait $pid 2> /dev/null || status=$?
    case $status in
      0) expect_same "$tmp/big" "$tmp/copy" ;;
      2) expect_same "$raw" "$tmp/copy"; no_part "$tmp/copy" ;;
      *) [ $signal = KILL ] || fail "$signal: exit status $status"
         "$PLOOP_IMG" compare -q "$raw" "$tmp/copy" ||
           expect_same "$tmp/big" "$tmp/copy" ;;
    esac
    convert 0 --force -O $form "$tmp/big" "$tmp/copy"
    expect_same "$tmp/big" "$tmp/copy"
    no_part "$tmp/copy"
  done
done

# Another one begins when the image is closed and has not got its name yet.
if command -v strace > /dev/null && nbdkit_is_plain; then
  say "two, one after the other is closed"
  rm -f "$tmp/copy" "$tmp/copy.part"
  strace -f -o "$tmp/trace" -e trace=renameat,renameat2 \
    -e inject=renameat,renameat2:delay_enter=2500000 \
    "$PLOOP_IMG" convert -q "$tmp/one" "$tmp/copy" 2> "$tmp/convert.log" &
  pid=$!
  for ((i = 0; i < 50; i++)); do nap; done
  strace -f -o "$tmp/trace.2" -e trace=renameat2 \
    -e inject=renameat2:delay_enter=4000000 \
    "$PLOOP_IMG" convert -q "$tmp/two" "$tmp/copy" 2> "$tmp/convert.log.2" &
  other=$!
  wait $pid || { cat "$tmp/convert.log"; fail "the first copy was refused"; }
  expect_same "$tmp/one" "$tmp/copy"
  if wait $other; then fail "the second copy was made, too"; fi
  expect_same "$tmp/one" "$tmp/copy"
fi

# What is on disk before it gets its name, and its name after that.
if command -v strace > /dev/null && nbdkit_is_plain; then
  say "order"
  for form in ploop raw; do
    strace -f -y -e trace=fsync,fdatasync,renameat,renameat2 -o "$tmp/trace" \
      "$PLOOP_IMG" convert -q --force -O $form "$raw" "$tmp/copy"
    awk -v part="$tmp/copy.part>" '
      /sync/ && index ($0, part) && !renamed { synced = 1 }
      /renameat/ { if (!synced) bad = 1; renamed = 1 }
      /fsync/ && renamed { named = 1 }
      END { exit bad || !renamed || !named }' "$tmp/trace" ||
      { cat "$tmp/trace"; fail "$form: the order of syncs"; }
  done
fi
say "in place"
"$PLOOP_IMG" convert -q --force --version=1 --cluster-size=256K "$tmp/raw" "$tmp/place.hds"
"$PLOOP_IMG" convert -q --force --version=2 --cluster-size=64K "$tmp/place.hds" \
  "$tmp/place.hds"
"$PLOOP_IMG" info "$tmp/place.hds" > "$tmp/log"
grep -q 'version 2$' "$tmp/log" && grep -q 'cluster size: 64 KiB' "$tmp/log" ||
  { cat "$tmp/log"; fail "in place: another form"; }
"$PLOOP_IMG" compare -q "$tmp/place.hds" "$tmp/raw" || fail "in place: content"
[ ! -e "$tmp/place.hds.part" ] || fail "in place: something is left"
"$PLOOP_IMG" bitmap add -q "$tmp/place.hds"
before=$(file_state "$tmp/place.hds")
"$PLOOP_IMG" convert -q --force "$tmp/place.hds" "$tmp/place.hds" 2> "$tmp/log" &&
  fail "in place: bitmaps are lost"
grep -q 'changed-block bitmaps' "$tmp/log" || { cat "$tmp/log"; fail "in place: unclear"; }
[ "$(file_state "$tmp/place.hds")" = "$before" ] || fail "in place: refused, but changed"

say "as ploop convert"
for form in raw preallocated; do
  rm -rf "$tmp/theirs"
  mkdir "$tmp/theirs"
  # Of a disk that ends inside a cluster, ploop loses what is there.
  "$PLOOP_IMG" create -q --version=1 --descriptor "$tmp/theirs/root.hds" 9M
  qemu-io -f parallels -c 'write -P 1 0 3M' -c 'write -P 2 5M 100k' \
    "$tmp/theirs/root.hds" > /dev/null
  "$PLOOP_IMG" convert -q --force -O raw "$tmp/theirs" "$tmp/ours"
  run_ploop "$tmp/theirs" convert -f $form DiskDescriptor.xml > "$tmp/ploop.log" 2>&1 ||
    { cat "$tmp/ploop.log"; fail "ploop convert"; }
  if [ $form = raw ]; then
    cmp "$tmp/theirs/root.hds" "$tmp/ours" || fail "ploop convert makes something else"
  fi
  "$PLOOP_IMG" compare -q --strict "$tmp/theirs" "$tmp/ours" ||
    fail "ploop convert -f $form: other content"
done

say "beside the disk that is copied"
mkdir "$tmp/hdd"
"$PLOOP_IMG" create -q --descriptor "$tmp/hdd/root.hds" 4M
"$PLOOP_IMG" snapshot create -q "$tmp/hdd"
[ -e "$tmp/hdd/DiskDescriptor.xml.lck" ] || fail "there is no lock to be in the way"
"$PLOOP_IMG" convert -q "$tmp/hdd" "$tmp/hdd/copy.hds"
: > "$tmp/hdd/copy.hds.part"
"$PLOOP_IMG" convert -q --force "$tmp/hdd" "$tmp/hdd/copy.hds"
[ ! -e "$tmp/hdd/copy.hds.part" ] || fail "beside: something is left"
# But not in the place of one of its own deltas.
before=$(file_state "$tmp/hdd/root.hds")
"$PLOOP_IMG" convert -q --force "$tmp/hdd" "$tmp/hdd/root.hds" 2> "$tmp/log" &&
  fail "a delta was replaced by the disk"
[ "$(file_state "$tmp/hdd/root.hds")" = "$before" ] || fail "a delta was changed"

say "passed"
