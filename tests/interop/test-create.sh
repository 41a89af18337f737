#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that ploop-img create makes what it says: preallocated images and disks with a
# descriptor as ploop init makes them, images with the content of any disk, and overlays
# that can be served.  ploop takes snapshots of the disks.  What is refused, fails or is
# cut short leaves nothing behind.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires ploop qemu-img qemu-io nbdcopy perl cmp
unpack_corpus
cd "$tmp"

# create STATUS ARG...: what it says is in $tmp/create.log.
create ()
{
  local want=$1 status=0
  shift
  "$PLOOP_IMG" create "$@" > "$tmp/create.log" 2>&1 || status=$?
  [ $status -eq "$want" ] ||
    { cat "$tmp/create.log"; fail "create $*: exit status $status, not $want"; }
}

# says TEXT: an extended regular expression, in what was said last.
says ()
{
  grep -Eq -- "$1" "$tmp/create.log" ||
    { cat "$tmp/create.log"; fail "it does not say '$1'"; }
}

# refuses TEXT ARG...: in the empty directory refused.
refuses ()
{
  local text=$1
  shift
  mkdir refused
  cd refused
  create 1 "$@"
  cd ..
  says "$text"
  rmdir refused || fail "create $*: left something behind"
}

expect_same ()
{
  "$PLOOP_IMG" compare -q "$1" "$2" || fail "$1 and $2 differ"
}

expect_sound ()
{
  "$PLOOP_IMG" check "$1" > check.log ||
    { cat check.log; fail "$1: ploop-img check"; }
  qemu-img check -f parallels "$1" > check.log 2>&1 ||
    { cat check.log; fail "$1: qemu-img check"; }
}

# member NAME < JSON
member ()
{
  perl -MJSON::PP -0777 -e '
    my $value = decode_json (<STDIN>)->{$ARGV[0]};
    print defined $value ? $value : "none", "\n";' "$1"
}

# blocks FILE: bytes of storage that it takes.
blocks ()
{
  echo $(($(stat -c '%b' "$1") * 512))
}

raw=$tmp/raw
head -c $((5 * (1 << 20) + 777)) /dev/urandom > "$raw"
dd if=/dev/zero of="$raw" bs=1k seek=700 count=2500 conv=notrunc status=none

# ---- A descriptor

say "descriptors"
for size in 10M 100M 1000M 9000M; do
  for sectors in 64 2048; do
    due || continue
    rm -rf ours theirs
    mkdir ours theirs
    create 0 --descriptor --version=1 --cluster-size=$((sectors * 512)) \
      ours/root.hds $size
    says 'created ours/DiskDescriptor.xml'
    run_ploop theirs init -s $size -v1 -b $sectors -t none root.hds > ploop.log 2>&1
    diff -r ours theirs || fail "$size, $sectors: not as ploop makes it"
    [ "$(stat -c %a ours/DiskDescriptor.xml)" = \
      "$(stat -c %a theirs/DiskDescriptor.xml)" ] || fail "another mode"
  done
done
# What ploop makes of it, it can go on with.
run_ploop ours snapshot DiskDescriptor.xml > ploop.log 2>&1 ||
  { cat ploop.log; fail "ploop snapshot"; }
run_ploop ours check DiskDescriptor.xml > ploop.log 2>&1 ||
  { cat ploop.log; fail "ploop check"; }
run_ploop ours snapshot-list DiskDescriptor.xml > ploop.log 2>&1
grep -q root.hds ploop.log || { cat ploop.log; fail "ploop snapshot-list"; }
start_nbdkit file=ours
io 'write -P 7 0 1M'
stop_nbdkit
# Version 2, which ploop makes with its kernel module only.
rm -rf ours
mkdir ours
create 0 --descriptor ours/root.hds 10M
run_ploop ours check DiskDescriptor.xml > ploop.log 2>&1 ||
  { cat ploop.log; fail "ploop check of version 2"; }
# Names that XML has its own way to write, and a link to the image.
for name in '<&".hds' 'a b' 'ä.hds'; do
  rm -rf ours
  mkdir ours
  create 0 --descriptor "ours/$name" 10M
  start_nbdkit -r file=ours
  stop_nbdkit
done
rm -rf ours links
mkdir ours links
"$PLOOP_IMG" create -q ours/root.hds 10M
ln -s "$tmp/ours/root.hds" links/link.hds
create 0 --force --descriptor links/link.hds 20M
"$PLOOP_IMG" compare -q -s ours ours/root.hds ||
  fail "the descriptor is not beside the image"
[ ! -e links/DiskDescriptor.xml ] || fail "a descriptor beside the link"

say "descriptors that are there"
before=$(file_state ours/DiskDescriptor.xml)
create 1 --descriptor ours/other.hds 10M
says 'ours/DiskDescriptor.xml: exists already'
create 1 --descriptor --force ours/root.hds 10M
create 1 --descriptor --from="$raw" ours/other.hds
says 'ours/DiskDescriptor.xml: exists already'
[ "$(file_state ours/DiskDescriptor.xml)" = "$before" ] || fail "it was changed"
[ "$(ls ours)" = "$(printf 'DiskDescriptor.xml\nroot.hds')" ] || fail "something was left"
refuses 'DiskDescriptor.xml: an image of this name cannot' \
  --descriptor DiskDescriptor.xml 10M
refuses 'cannot be in a' --descriptor $'a\nb' 10M
refuses 'cannot be in a' --descriptor $'\xff.hds' 10M
refuses 'cannot be in a' --descriptor --from="$raw" ' a.hds'
refuses 'No such file' --descriptor no/root.hds 10M

# Each of several at once has its own image; one of them is the disk.
say "two at once"
rm -rf ours
mkdir ours
pids=()
for i in 1 2 3 4; do
  "$PLOOP_IMG" create -q --descriptor ours/$i.hds 10M 2>> race.log & pids+=($!)
done
nr=0
for pid in "${pids[@]}"; do if wait "$pid"; then nr=$((nr + 1)); fi; done
[ $nr -eq 1 ] || fail "$nr of them were made"
[ "$(find ours -type f | wc -l)" -eq 2 ] || { ls -la ours; fail "something was left"; }

# ---- Preallocation

say "preallocation"
for space in off metadata falloc full; do
  for version in 1 2; do
    for cluster in 32K 1M; do
      # Half of them, others with each seed.
      [ $(((_seed + version + ${#space} + ${#cluster}) % 2)) = 0 ] || continue
      rm -rf ours theirs
      mkdir ours theirs
      create 0 --descriptor --preallocation=$space --version=$version \
        --cluster-size=$cluster ours/root.hds 10M
      expect_sound ours/root.hds
      "$PLOOP_IMG" check ours/root.hds > ours.log
      [ $space = off ] ||
        grep -Eq 'clusters: ([0-9]+), of which \1 allocated' ours.log ||
        fail "$space: not all clusters are there"
      case $space in
        off | metadata) [ "$(blocks ours/root.hds)" -le 1100000 ] ||
            fail "$space: takes $(blocks ours/root.hds) bytes" ;;
        *) [ "$(blocks ours/root.hds)" -ge 10485760 ] ||
            fail "$space: takes $(blocks ours/root.hds) bytes" ;;
      esac
      ploop_check_delta ours/root.hds
      "$PLOOP_IMG" convert -q --force -O raw ours out
      cmp -n 10485760 out /dev/zero || fail "$space: not zeros"
      # Nothing is allocated.
      length=$(stat -c %s ours/root.hds)
      start_nbdkit file=ours
      io 'write -P 5 3M 4M' 'read -P 0 7M 3M' flush
      stop_nbdkit
      [ $space = off ] || [ "$(stat -c %s ours/root.hds)" = "$length" ] ||
        fail "$space: the file has grown"
      expect_sound ours/root.hds
    done
  done
done
# The empty flag, byte 52, apart: that would stay.
rm -rf ours theirs
mkdir ours theirs
create 0 --descriptor --preallocation=falloc --version=1 ours/root.hds 10M
run_ploop theirs init -s 10M -f preallocated -v1 -t none root.hds > ploop.log 2>&1
cmp ours/DiskDescriptor.xml theirs/DiskDescriptor.xml || fail "not as ploop's"
[ "$(cmp -l ours/root.hds theirs/root.hds | tr -s ' ')" = " 53 0 1" ] ||
  { cmp -l ours/root.hds theirs/root.hds; fail "not as ploop's"; }
# The end of the last cluster is behind the disk.
create 0 --force --preallocation=full --cluster-size=64K odd.hds 100000256
expect_sound odd.hds
refuses "'some' is not known: use off" --preallocation=some x.hds 1M
# Space that is not there.
refuses 'cannot be written|File too large' --preallocation=falloc \
  --cluster-size=64M x.hds 100T
if command -v prlimit > /dev/null; then
  status=0
  (trap '' XFSZ; prlimit --fsize=2000000 "$PLOOP_IMG" create \
     --preallocation=full x.hds 10M) > create.log 2>&1 || status=$?
  [ $status -eq 1 ] || fail "it grew beyond the limit"
  says 'cannot be written'
  [ ! -e x.hds ] || fail "x.hds was left"
fi

say "signals"
for force in '' --force; do
  for signal in TERM KILL; do
    rm -f big.hds
    [ -z $force ] || "$PLOOP_IMG" create -q big.hds 10M
    # shellcheck disable=SC2086  # none, or one
    "$PLOOP_IMG" create $force --preallocation=full big.hds 8G > signal.log 2>&1 &
    pid=$!
    for ((i = 0; i < 10; i++)); do nap; done
    kill -$signal $pid
    status=0
    wait $pid 2> signal.log || status=$?
    [ $status -eq 2 ] || [ $signal = KILL ] || fail "$signal: exit status $status"
    if [ -z $force ]; then
      [ ! -e big.hds ] || fail "$signal: there is an image"
    else
      [ "$("$PLOOP_IMG" info --output=json big.hds | member size)" = 10485760 ] ||
        fail "$signal: it was replaced"
    fi
    rm -f .big.hds.*
  done
done

# ---- With the content of a disk

say "contents"
start_remote memory 16M
nbdcopy "$raw" "$remote_uri"
for source in "$raw" "$remote_uri" corpus/b-data-v1-b128 corpus/c-chain3-v2*; do
  for options in '' '--descriptor' '--preallocation=full --version=1' \
      '--preallocation=metadata --descriptor --cluster-size=64K'; do
    due || continue
    rm -rf ours
    mkdir ours
    # shellcheck disable=SC2086  # several words
    create 0 $options --from="$source" ours/root.hds
    says 'are data'
    expect_same "$source" ours/root.hds
    expect_sound ours/root.hds
    case $options in
      *descriptor*) expect_same "$source" ours
          run_ploop ours check DiskDescriptor.xml > ploop.log 2>&1 ||
            { cat ploop.log; fail "ploop check"; } ;;
      *) [ "$(ls ours)" = root.hds ] || fail "more than an image" ;;
    esac
  done
done
stop_remote KILL
create 0 --force --output=json --from="$raw" x.hds 8M
[ "$(member size < create.log) $(member from < create.log)" = "8388608 $raw" ] ||
  { cat create.log; fail "the object of create"; }
expect_same "$raw" x.hds
create 0 --force --from=- x.hds 8M < "$raw"
expect_same "$raw" x.hds
rm x.hds
refuses 'cannot have less: 1048576' --from="$raw" x.hds 1M
refuses 'No such file' --from=nonexistent x.hds
refuses 'FILE must be a file' --from="$raw" -
refuses 'FILE must be a file' --from="$raw" nbd://localhost/
refuses 'give one of them' --from="$raw" --overlay-of="$raw" x.hds
refuses 'SIZE is missing' x.hds
refuses 'must not be 0' --from="$raw" x.hds 0
refuses 'snapshot' --snapshot='{00000001-1111-2222-3333-444444444444}' x.hds 1M
refuses 'has none' --from="$raw" --snapshot='{00000001-1111-2222-3333-444444444444}' x.hds
# When its target fails, there is no disk.
if command -v prlimit > /dev/null; then
  rm -rf ours
  mkdir ours
  status=0
  (trap '' XFSZ; prlimit --fsize=2000000 "$PLOOP_IMG" create --descriptor \
     --from="$raw" ours/root.hds) > create.log 2>&1 || status=$?
  [ $status -eq 1 ] || fail "it grew beyond the limit"
  rmdir ours || fail "something was left"
fi

# ---- Overlays

say "overlays"
start_remote file "$raw"
cluster=$((64 << 10))
"$PLOOP_IMG" convert -q --version=1 --cluster-size=$cluster "$raw" one.hds
for below in "$raw" "$remote_uri" one.hds corpus/c-chain3-v2*; do
  due || continue
  rm -f over.hds
  create 0 --output=json --overlay-of="$below" over.hds
  case $below in
    one.hds) want="1 $cluster" ;;
    corpus*) want="2 $("$PLOOP_IMG" info --output=json "$below"/root.hds |
                         member cluster-size)" ;;
    *) want="2 1048576" ;;
  esac
  [ "$(member version < create.log) $(member cluster-size < create.log)" = "$want" ] ||
    { cat create.log; fail "$below: the overlay is not like it"; }
  "$PLOOP_IMG" convert -q --force -O raw "$below" "$tmp/raw.below"
  create 0 --force --overlay-of="$below" over.hds
  # What it says is what works.
  command=$(sed -n 's/^to serve it: nbdkit ploop //p' create.log)
  eval "arguments=($command)"
  # shellcheck disable=SC2154  # by eval
  start_nbdkit "${arguments[@]}"
  truncate -s %512 "$tmp/raw.below"
  nbdcopy "$uri" out
  cmp out "$tmp/raw.below" || fail "$below: through the overlay"
  io 'write -P 9 1M 70000'
  stop_nbdkit
  expect_sound over.hds
done
stop_remote KILL
# Larger, and above a snapshot.
create 0 --force --overlay-of=one.hds over.hds 20M
start_nbdkit file=one.hds overlay=over.hds
io 'read -P 0 6M 14M' 'write -P 3 19M 1M'
stop_nbdkit
dir=$(echo corpus/c-chain3-v2*)
guid='{00000001-1111-2222-3333-444444444444}'
if grep -q "$guid" "$dir/DiskDescriptor.xml"; then
  create 0 --force --overlay-of="$dir" --snapshot=$guid over.hds
  "$PLOOP_IMG" convert -q --force -O raw --snapshot=$guid "$dir" below
  eval "arguments=($(sed -n 's/^to serve it: nbdkit ploop //p' create.log))"
  start_nbdkit "${arguments[@]}"
  nbdcopy "$uri" out
  stop_nbdkit
  cmp out below || fail "an overlay above a snapshot"
fi
before=$(file_state one.hds)
cd "$tmp"
refuses 'cannot be smaller' --overlay-of=../one.hds x.hds 1M
refuses 'cluster size is 1048576 bytes, but' --overlay-of=../one.hds --cluster-size=1M x.hds
refuses 'version is 2, but' --overlay-of=../one.hds --version=2 x.hds
refuses 'cannot be preallocated' --overlay-of=../one.hds --preallocation=full x.hds
refuses 'cannot have a descriptor' --overlay-of=../one.hds --descriptor x.hds
refuses 'No such file' --overlay-of=nonexistent x.hds
start_nbdkit file=one.hds
refuses 'in use' --overlay-of=../one.hds x.hds
stop_nbdkit
[ "$(file_state one.hds)" = "$before" ] || fail "the disk below was changed"
create 1 --overlay-of=one.hds over.hds
says 'exists already'

# ---- On disk, in order: the image, its name, the descriptor

if command -v strace > /dev/null && nbdkit_is_plain; then
  say "order"
  for from in '' "--from=$raw"; do
    rm -rf ours
    mkdir ours
    # shellcheck disable=SC2086  # none, or one
    strace -f -y -e trace=fsync,linkat,renameat,renameat2 -o trace \
      "$PLOOP_IMG" create -q --descriptor $from ours/root.hds 10M
    awk '
      /(linkat|renameat2).*root\.hds/ { if (!nr_synced) bad = 1; named = NR }
      /renameat2.*DiskDescriptor/ { if (!named || !synced_name || !synced_xml) bad = 1
                                    described = NR }
      /fsync.*DiskDescriptor/ { synced_xml = 1 }
      /fsync/ && !named { nr_synced++ }
      /fsync.*ours>/ && named && !described { synced_name = 1 }
      /fsync.*ours>/ && described { last = 1 }
      END { exit bad || !last }' trace || { cat trace; fail "the order of syncs"; }
  done

  # Each of these calls fails once: nothing is left; or, of a copy that has its name and
  # whose directory cannot be synced, the image.
  say "failures"
  for from in '' "--from=$raw"; do
    for call in fsync linkat renameat2; do
      for ((i = 1; i < 20; i++)); do
        rm -rf ours
        mkdir ours
        # shellcheck disable=SC2086  # none, or one
        if strace -f -o trace -e trace=$call -e inject=$call:error=EIO:when=$i \
            "$PLOOP_IMG" create -q --descriptor $from ours/root.hds 10M 2> create.log
        then
          break
        fi
        [ -z "$(ls -A ours)" ] ||
          { [ "$from $(ls -A ours)" = "--from=$raw root.hds" ] && [ $call = fsync ] &&
              grep -q 'cannot be put in its place' create.log; } ||
          { cat create.log trace; ls -A ours; fail "$call $i fails: something is left"; }
      done
      [ "$(ls -A ours | wc -l)" -eq 2 ] || fail "$call: there is no disk in the end"
      [ $i -gt 1 ] || [ "$from $call" = "--from=$raw linkat" ] || fail "$call was not called"
    done
  done
fi
say "passed"
