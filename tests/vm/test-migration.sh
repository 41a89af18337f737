#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# The commands of the manual's section MIGRATION, as printed, in a guest: a container
# and a virtual machine of OpenVZ become an archive, a volume and a qcow2 image, with
# all that was in them, and the ploop disks stay as they were.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
# shellcheck source=tests/vm/guest.sh
. "$abs_srcdir/guest.sh"

requires_guest
requires sfdisk mke2fs e2fsck resize2fs qemu-img nbdcopy setfattr tar losetup

# ---- What there is

# In the guest, which can mount: a container's root file system.
cat > "$tmp/script" <<'SCRIPT'
set -euo pipefail
cd "$1"
modprobe loop
truncate -s 32M ct.raw
printf 'label: gpt\nstart=2048,size=61440\n' | sfdisk -q ct.raw > /dev/null
loop=$(losetup --find --show -o 1M --sizelimit 30M ct.raw)
mkfs.ext4 -q "$loop"
mount "$loop" /mnt
mkdir /mnt/etc /mnt/bin
echo ct101 > /mnt/etc/hostname
chown 4711:815 /mnt/etc/hostname
echo x > /mnt/bin/ping
chmod 4755 /mnt/bin/ping
setfattr -n user.origin -v openvz /mnt/bin/ping
setfattr -n security.origin -v openvz /mnt/bin/ping
mknod /mnt/null c 1 3
umount /mnt
losetup -d "$loop"
SCRIPT
run_guest "$tmp/script" "$share" || fail "the disk cannot be made: status $?"
mkdir "$share/root.hdd" "$share/harddisk.hdd"
"$PLOOP_IMG" create -q --descriptor --from="$share/ct.raw" "$share/root.hdd/root.hds"
head -c 3M /dev/urandom > "$tmp/data"
truncate -s 64M "$share/vm.raw"
dd if="$tmp/data" of="$share/vm.raw" bs=1M seek=20 conv=notrunc status=none
"$PLOOP_IMG" create -q --descriptor --from="$share/vm.raw" "$share/harddisk.hdd/root.hds"
before=$(file_state "$share/root.hdd/root.hds"; file_state "$share/harddisk.hdd/root.hds")

# ---- What the manual says

awk '/^=head1 / { on = $2 == "MIGRATION" } on && /^ / { print substr ($0, 2) }' \
  "$abs_top_srcdir/man/nbdkit-ploop-plugin.pod" > "$share/commands"
[ "$(grep -c '^nbdkit ' "$share/commands")" -ge 5 ] ||
  fail "the manual has no commands about migration"
cat > "$tmp/script" <<'SCRIPT'
set -euo pipefail
modprobe loop
mkdir -p /vz/private/101
cp -r "$1/root.hdd" /vz/private/101
# A volume.
truncate -s 48M "$1/volume"
mkdir -p /dev/vg0
ln -s "$(losetup --find --show "$1/volume")" /dev/vg0/ct101
cd "$1"
set -x
. ./commands
set +x

# Where it is unpacked must be a file system that has attributes.
mkdir /unpacked
truncate -s 48M other.raw
mkfs.ext4 -q other.raw
mount -o loop other.raw /unpacked
tar -C /unpacked --numeric-owner --xattrs --xattrs-include='*' --acls \
  -xzf rootfs.tar.gz
mount /dev/vg0/ct101 /mnt
for tree in /unpacked /mnt; do
  cd $tree
  [ "$(cat etc/hostname)" = ct101 ]
  [ "$(stat -c %u:%g etc/hostname)" = 4711:815 ]
  [ "$(stat -c %a bin/ping)" = 4755 ]
  [ "$(getfattr --only-values -n user.origin bin/ping)" = openvz ]
  [ "$(getfattr --only-values -n security.origin bin/ping)" = openvz ]
  [ "$(stat -c %t:%T null)" = 1:3 ]
  cd "$1"
done
[ "$(blockdev --getsize64 /dev/vg0/ct101)" -eq $((48 << 20)) ]
[ "$(df -k --output=size /mnt | tail -n 1)" -gt 35000 ]
umount /mnt /unpacked
SCRIPT
status=0
run_guest "$tmp/script" "$share" > "$tmp/guest.log" 2>&1 || status=$?
[ $status -eq 0 ] || { cat "$tmp/guest.log"; fail "migration: status $status"; }

cmp "$share/ct101.raw" "$share/ct.raw" || fail "the copy from dir= differs"
"$PLOOP_IMG" compare -q "$share/harddisk.hdd" "$share/vm.raw"
qemu-img compare -q -f raw -F qcow2 "$share/vm.raw" "$share/vm101.qcow2" ||
  fail "the qcow2 image differs"
[ "$(file_state "$share/root.hdd/root.hds"; file_state "$share/harddisk.hdd/root.hds")" = \
  "$before" ] || fail "a ploop disk has changed"
say "passed"
