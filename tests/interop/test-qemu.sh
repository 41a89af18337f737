#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that qemu can use what is served: that a machine boots from the live disk, reads
# and writes it, and at the same time another one from a snapshot, for reading, or writing to
# something that is thrown away; that disks come out as qcow2 and raw, and in; and that one
# client copies a disk in while another reads it, who sees what was there or what
# comes, and nothing else.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires qemu-img qemu-io nbdcopy nbdinfo perl cmp

guid='{00000001-aaaa-bbbb-cccc-444444444444}'
snapshot_uri="nbd+unix:///%7B${guid:1:36}%7D?socket=$sock"

# ---- Copies

say "out, as qcow2 and as raw"
disk=$tmp/disk
mkdir "$disk"
"$PLOOP_IMG" create -q --descriptor --cluster-size=64K "$disk/root.hds" 32M
start_nbdkit file="$disk"
io 'write -P 1 0 300k' 'write -P 2 5M 1M' 'write -P 3 32764k 4k'
stop_nbdkit
"$PLOOP_IMG" snapshot create -q --guid="$guid" "$disk"
start_nbdkit file="$disk"
io 'write -P 4 100k 100k' 'write -z 5M 64k' 'discard 6144k 64k'
for from in "$uri" "$snapshot_uri"; do
  nbdcopy "$from" "$tmp/raw"
  qemu-img convert -f raw -O qcow2 "$from" "$tmp/out.qcow2"
  qemu-img compare -q -f raw -F qcow2 "$tmp/raw" "$tmp/out.qcow2" || fail "qcow2: $from"
  # What is not there takes no space in the copy either.
  [ "$(stat -c %s "$tmp/out.qcow2")" -lt 4000000 ] || fail "the copy is not sparse"
  qemu-img convert -f raw -O raw "$from" "$tmp/out"
  cmp "$tmp/out" "$tmp/raw" || fail "raw: $from"
  qemu-img compare -q -f raw -F raw "$from" "$tmp/raw" || fail "qemu-img compare: $from"
done
stop_nbdkit

say "in, from qcow2"
"$PLOOP_IMG" create -q "$tmp/in.hds" 32M
start_nbdkit file="$tmp/in.hds"
qemu-img convert -n -f qcow2 -O raw "$tmp/out.qcow2" "$uri"
stop_nbdkit
"$PLOOP_IMG" compare -q "$tmp/in.hds" "$tmp/raw" || fail "in: not the same"
"$PLOOP_IMG" check "$tmp/in.hds" > /dev/null || fail "in: not sound"

# ---- A copy in, and a reader beside it

# block_by_block OLD NEW SEEN: each 4 KiB of SEEN are what OLD or NEW has there.
block_by_block ()
{
  perl -e '
    my @file = map { open (my $f, "<:raw", $_) or die "$_: $!\n"; $f } @ARGV;
    for (my $n = 0; ; $n++) {
      my @block = map { my $b = ""; read ($_, $b, 4096); $b } @file;
      last if $block[2] eq "";
      die "block $n is neither the old one nor the new one\n"
        if $block[2] ne $block[0] && $block[2] ne $block[1];
    }' "$@"
}

say "in, while another client reads"
size=$((64 << 20))
perl -e 'for my $n (1 .. 16384) { print pack ("V", $n) x 1024 }' > "$tmp/new"
cp "$tmp/new" "$tmp/old"
qemu-io -f raw -c "write -P 0xee 0 $size" "$tmp/old" > /dev/null
"$PLOOP_IMG" create -q --cluster-size=64K --from="$tmp/old" "$tmp/live.hds"
start_nbdkit file="$tmp/live.hds" --filter=rate rate=300M
nbdcopy --connections=2 "$tmp/new" "$uri" &
writer=$!
nr_looks=0
while kill -0 "$writer" 2> /dev/null; do
  qemu-img convert -f raw -O raw "$uri" "$tmp/seen" || fail "the reader"
  block_by_block "$tmp/old" "$tmp/new" "$tmp/seen" || fail "the reader saw something else"
  nr_looks=$((nr_looks + 1))
done
wait "$writer" || fail "the writer"
[ $nr_looks -gt 0 ] || fail "nobody has read"
nbdcopy "$uri" "$tmp/seen"
cmp "$tmp/seen" "$tmp/new" || fail "not what was copied in"
stop_nbdkit
say "looked $nr_looks times meanwhile"

# ---- Machines

for command in qemu-system-x86_64 as ld; do
  command -v $command > /dev/null ||
    skip "copies passed; $command is not installed, no machine was booted"
done
checked=2016 written=4090 pattern=$((0x2a2b2c2d))
as --32 -defsym CHECKED=$checked -defsym WRITTEN=$written -defsym PATTERN=$pattern \
  -o "$tmp/boot.o" "$abs_srcdir/boot.s" 2> "$tmp/as.log" &&
  ld -m elf_i386 -e start -Ttext 0x7c00 --oformat binary -o "$tmp/boot" "$tmp/boot.o" ||
  skip "copies passed; this assembler cannot make a boot sector of a PC"
[ "$(stat -c %s "$tmp/boot")" -eq 512 ] || fail "the boot sector is too large"

# bootable FILE TEXT: a raw disk for the program in boot.s.
bootable ()
{
  cp "$tmp/boot" "$1"
  truncate -s 8M "$1"
  printf '%s\n\0' "$2" | dd of="$1" bs=512 seek=1 conv=notrunc status=none
  perl -e 'print pack ("V", $_) x 128 for $ARGV[0] .. $ARGV[0] + 63' $checked |
    dd of="$1" bs=512 seek=$checked conv=notrunc status=none
}

# machine LOG OPTION...: a machine without anything but a disk.
machine ()
{
  local log=$1
  shift
  timeout 150 qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
    -M pc -m 16 -accel tcg -device isa-debug-exit,iobase=0xf4,iosize=1 \
    -chardev file,id=serial,path="$log" -serial chardev:serial "$@" \
    > "$log.qemu" 2>&1 < /dev/null
}

# booted STATUS LOG CODE LINE...: it has ended with CODE, and has said LINEs.
booted ()
{
  local status=$1 log=$2
  shift 2
  # isa-debug-exit: twice the number and one.
  [ "$status" -eq $((2 * $1 + 1)) ] && diff <(printf '%s\n' "${@:2}") "$log" ||
    { cat "$log" "$log.qemu"; fail "the machine: status $status, must be $((2 * $1 + 1))"; }
}

say "a machine from the live disk, and one from a snapshot beside it"
rm -rf "$disk"
mkdir "$disk"
bootable "$tmp/raw" snapshot
"$PLOOP_IMG" create -q --descriptor --cluster-size=64K --from="$tmp/raw" "$disk/root.hds"
"$PLOOP_IMG" snapshot create -q --guid="$guid" "$disk"
start_nbdkit file="$disk"
printf 'live disk\n\0' > "$tmp/text"
truncate -s 512 "$tmp/text"
io "write -s $tmp/text 512 512"
before=$(file_state "$disk/root.hds")

machine "$tmp/live" -drive "file=$uri,format=raw,if=virtio" &
live=$!
status=0
machine "$tmp/shot" -drive "file=$snapshot_uri,format=raw,if=virtio,readonly=on" ||
  status=$?
booted $status "$tmp/shot" 0x12 snapshot "read, but not written"
status=0
wait $live || status=$?
booted $status "$tmp/live" 0x10 "live disk" "read and written"
status=0
machine "$tmp/shot" -snapshot -drive "file=$snapshot_uri,format=raw,if=virtio" ||
  status=$?
booted $status "$tmp/shot" 0x10 snapshot "read and written"

cp "$tmp/raw" "$tmp/then"
dd if="$tmp/text" of="$tmp/raw" bs=512 seek=1 conv=notrunc status=none
perl -e 'print pack ("V", $ARGV[0]) x 1024' $pattern |
  dd of="$tmp/raw" bs=512 seek=$written conv=notrunc status=none
expect_content "the live disk"
nbdcopy "$snapshot_uri" "$tmp/out"
cmp "$tmp/out" "$tmp/then" || fail "the snapshot has changed"
stop_nbdkit
"$PLOOP_IMG" check "$disk" > /dev/null || fail "not sound"
"$PLOOP_IMG" compare -q "$disk" "$tmp/raw" || fail "not what the machine wrote"
[ "$(file_state "$disk/root.hds")" = "$before" ] || fail "the lower delta has changed"

# A disk that gives a machine errors does not get worse.
say "a machine that is told of errors"
start_nbdkit file="$disk" --filter=error error-pwrite-rate=100% error=ENOSPC
status=0
machine "$tmp/live" -drive "file=$uri,format=raw,if=virtio,werror=report" || status=$?
booted $status "$tmp/live" 0x12 "live disk" "read, but not written"
stop_nbdkit
"$PLOOP_IMG" compare -q "$disk" "$tmp/raw" || fail "errors: not what it was"
say "passed"
