#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# A guest's kernel has a disk over several TCP connections: what parallel writers wrote
# and synced is there when the device was connected anew, and on the host without any
# kernel's help; what was deleted and trimmed takes no space; nobody complains.
# test-kernel-disks.sh does it with all kinds of disks.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
# shellcheck source=tests/vm/guest.sh
. "$abs_srcdir/guest.sh"
# shellcheck source=tests/vm/server.sh
. "$abs_srcdir/server.sh"

requires_guest
requires libslirp-helper nbd-client nbdcopy mkfs.ext4 e2fsck debugfs fstrim ss
own_network "$0"

disk=$tmp/disk.hds
"$PLOOP_IMG" create "$disk" 128M > /dev/null
serve "$disk"

cat > "$tmp/script" <<'SCRIPT'
set -euo pipefail
. "$1"
device=/dev/nbd0

load_nbd
connect_nbd "$device" '' 4
expect_connections 4
expect_size "$device" $((128 << 20))
make_file_system ext4 "$device"
mount "$device" /mnt
write_files /mnt/files 4 1024 1000
before=$(requests "$device" flush)
head -c 12M /dev/urandom > /mnt/gone
sync -f /mnt
[ "$(requests "$device" flush)" -gt "$before" ] || give_up "no flush was sent"
ask_host full
rm /mnt/gone
trim /mnt "$device"
cp /mnt/files.sums /tmp/first.sums
unmount /mnt "$device"

mount "$device" /mnt
expect_files /mnt/files /tmp/first.sums
unmount /mnt "$device"
check_file_system ext4 "$device"
disconnect_nbd "$device"

connect_nbd "$device" '' 1 -readonly
mount -o ro "$device" /mnt
expect_files /mnt/files /tmp/first.sums
unmount /mnt "$device"
disconnect_nbd "$device"
expect_clean_log
SCRIPT

mib () { du -m "$disk" | cut -f 1; }

full=
guest_says ()
{
  [ "$1" = full ] || fail "the guest says: $1"
  full=$(mib)
  answer_guest
}

run_guest -n "$tmp/script" "$abs_srcdir/guest-functions.sh" ||
  fail "the guest's script: status $?"
[ -n "$full" ] || fail "the guest did not say that its disk was full"
stop_server
expect_sound "$disk"
expect_files_on_host "$disk" files
[ "$(mib)" -le $((full - 10)) ] ||
  fail "$(mib) MiB, and $full before 12 MiB of it were trimmed"
say "passed"
