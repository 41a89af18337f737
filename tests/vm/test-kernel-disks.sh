#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# All kinds of disks, exports of one server by their names (dir=), are block devices of
# a guest's kernel, one after the other and several at a time: both versions of the
# format, a size that is no whole number of 4096-byte blocks, a disk in a directory of
# its own whose snapshot is mounted while the disk is written to; with ext4, XFS and
# btrfs.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
# shellcheck source=tests/vm/guest.sh
. "$abs_srcdir/guest.sh"
# shellcheck source=tests/vm/server.sh
. "$abs_srcdir/server.sh"

requires_guest
requires libslirp-helper nbd-client nbdcopy mkfs.ext4 e2fsck debugfs fstrim ss \
  mkfs.xfs xfs_repair mkfs.btrfs btrfs
own_network "$0"

guid='{00000001-1111-2222-3333-444444444444}'
disks=$tmp/disks
odd_size=99998208
mkdir -p "$disks/old" "$disks/101"
"$PLOOP_IMG" create -q "$disks/image.hds" 400M
"$PLOOP_IMG" create -q --version=1 "$disks/old/disk.hds" 128M
"$PLOOP_IMG" create -q --cluster-size=64K "$disks/odd.hds" "$odd_size"
mkdir "$disks/101/root.hdd"
"$PLOOP_IMG" create -q --descriptor "$disks/101/root.hdd/root.hds" 64M

cat > "$tmp/script" <<'SCRIPT'
set -euo pipefail
. "$1"
guid=$2 odd_size=$3

# fill FILE_SYSTEM DEVICE: make one, write, delete and trim.
fill ()
{
  local directory=/mnt/${2#/dev/}
  mkdir -p "$directory"
  make_file_system "$1" "$2"
  mount "$2" "$directory"
  write_files "$directory/files" 3 1024 500
  cp "$directory/files.sums" "/tmp/${2#/dev/}.sums"
  head -c 8M /dev/urandom > "$directory/gone"
  sync -f "$directory"
  rm "$directory/gone"
  sync -f "$directory"
  trim "$directory" "$2"
  unmount "$directory" "$2"
  check_file_system "$1" "$2"
}

# reread DEVICE: what was written is there.
reread ()
{
  local directory=/mnt/${1#/dev/}
  mount "$1" "$directory"
  expect_files "$directory/files" "/tmp/${1#/dev/}.sums"
  unmount "$directory" "$1"
}

# use_disk FILE_SYSTEM NAME [OPTION...]: all of a file system's life.
use_disk ()
{
  local kind=$1 name=$2 device=/dev/nbd0
  shift 2
  connect_nbd "$device" "$name" 2 "$@"
  fill "$kind" "$device"
  disconnect_nbd "$device"
  connect_nbd "$device" "$name" 2 "$@"
  reread "$device"
  disconnect_nbd "$device"
  echo "$name: $kind is well"
}

# The last sector, which is in no whole block of 4096 bytes.
use_odd_end ()
{
  connect_nbd /dev/nbd2 odd.hds 1
  expect_size /dev/nbd2 "$odd_size"
  head -c 512 /dev/urandom > "$share/last-sector"
  dd if="$share/last-sector" of=/dev/nbd2 bs=512 seek=$((odd_size / 512 - 1)) \
    oflag=direct conv=notrunc,fsync status=none
  disconnect_nbd /dev/nbd2
}

load_nbd
use_disk ext4 old/disk.hds
use_disk xfs image.hds -b 4096
use_disk btrfs image.hds -nonetlink
use_odd_end

# At the same time, two file systems on two disks of one server.
connect_nbd /dev/nbd1 101/root.hdd 2
connect_nbd /dev/nbd2 odd.hds 2
fill ext4 /dev/nbd1 &
other=$!
fill ext4 /dev/nbd2
wait "$other"
disconnect_nbd /dev/nbd1
disconnect_nbd /dev/nbd2
connect_nbd /dev/nbd1 101/root.hdd 2
connect_nbd /dev/nbd2 odd.hds 2
reread /dev/nbd1
reread /dev/nbd2
disconnect_nbd /dev/nbd1
disconnect_nbd /dev/nbd2
echo "101/root.hdd and odd.hds are well"

ask_host snapshot
connect_nbd /dev/nbd1 101/root.hdd 2
connect_nbd /dev/nbd3 "101/root.hdd/$guid" 2
[ "$(blockdev --getro /dev/nbd3)" = 1 ] || give_up "the snapshot can be written"
mkdir -p /mnt/nbd3
mount /dev/nbd1 /mnt/nbd1
mount -o ro,noload /dev/nbd3 /mnt/nbd3
rm -r /mnt/nbd1/files
write_files /mnt/nbd1/later 3 1024 300
trim /mnt/nbd1 /dev/nbd1
echo 3 > /proc/sys/vm/drop_caches
expect_files /mnt/nbd3/files /tmp/nbd1.sums
expect_files /mnt/nbd1/later /mnt/nbd1/later.sums
unmount /mnt/nbd1 /dev/nbd1
unmount /mnt/nbd3 /dev/nbd3
check_file_system ext4 /dev/nbd1
check_file_system ext4 /dev/nbd3
disconnect_nbd /dev/nbd1
disconnect_nbd /dev/nbd3
echo "101/root.hdd and its snapshot are well"
expect_clean_log
SCRIPT

snapshots=0
guest_says ()
{
  [ "$1" = snapshot ] || fail "the guest says: $1"
  stop_server
  "$PLOOP_IMG" snapshot create --guid="$guid" "$disks/101/root.hdd" > /dev/null
  serve_again
  snapshots=$((snapshots + 1))
  answer_guest
}

serve "dir=$disks"
run_guest -n "$tmp/script" "$abs_srcdir/guest-functions.sh" "$guid" "$odd_size" ||
  fail "the guest's script: status $?"
stop_server
[ "$snapshots" -eq 1 ] || fail "$snapshots snapshots, must be 1"

for disk in image.hds odd.hds old/disk.hds 101/root.hdd; do
  expect_sound "$disks/$disk"
done
expect_files_on_host "$disks/old/disk.hds" files
expect_files_on_host "$disks/101/root.hdd" later
expect_files_on_host "$disks/odd.hds" files
tail -c 512 "$tmp/raw" | cmp - "$share/last-sector" ||
  fail "odd.hds: its last sector is not what was written"
say "passed"
