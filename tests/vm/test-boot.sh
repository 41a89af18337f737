#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Linux boots under qemu with its root file system on a partition of what is served: from
# the live disk, and at the same time from a snapshot.  It checks what is there, writes,
# trims and syncs, and after the next boot reads it back; the file system, the image and
# the snapshot are sound afterwards.
#
# Kernel and busybox are Debian's, which are not installed, only downloaded and unpacked.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
# shellcheck source=tests/vm/qemu.sh
. "$abs_srcdir/qemu.sh"

requires qemu-system-x86_64 apt-get dpkg-deb sfdisk mke2fs e2fsck nbdcopy

# ---- The kernel

fetch_kernel
vmlinuz=("$KERNEL"/boot/vmlinuz-*)
modules=("$KERNEL"/lib/modules/*/kernel/drivers)

# One program for all that there is to do, without libraries.
mkdir "$tmp/busybox"
(cd "$tmp/busybox" && apt-get -q -o APT::Sandbox::User=root download busybox-static) \
  > "$tmp/apt.log" 2>&1 ||
  { cat "$tmp/apt.log"; skip "apt-get cannot download the package busybox-static"; }
dpkg-deb -x "$tmp/busybox"/*.deb "$tmp/busybox"
busybox=$tmp/busybox/bin/busybox

# What comes before the root file system: the driver of the disk is a module.
mkdir -p "$tmp/first/bin" "$tmp/first/dev" "$tmp/first/root"
cp "$busybox" "$tmp/first/bin"
drivers=(virtio/virtio_ring virtio/virtio virtio/virtio_pci_modern_dev
         virtio/virtio_pci_legacy_dev virtio/virtio_pci block/virtio_blk)
for driver in "${drivers[@]}"; do
  cp "${modules[0]}/$driver.ko" "$tmp/first"
done
cat > "$tmp/first/init" <<INIT
#!/bin/busybox sh
for driver in ${drivers[*]##*/}; do /bin/busybox insmod /\$driver.ko; done
/bin/busybox mount -t devtmpfs dev /dev
n=0
while ! [ -b /dev/vda1 ]; do
  n=\$((n + 1))
  [ \$n -lt 30 ] || /bin/busybox reboot -f
  /bin/busybox sleep 1
done
/bin/busybox mount -t ext4 /dev/vda1 /root
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
INIT
chmod +x "$tmp/first/init"
(cd "$tmp/first" && find . | "$busybox" cpio -o -H newc) > "$tmp/initrd" 2> /dev/null

# ---- The disk, as a container's

tree=$tmp/tree
mkdir -p "$tree"/{bin,sbin,dev,proc,data}
cp "$busybox" "$tree/bin"
head -c 20M /dev/urandom > "$tree/data/random"
(cd "$tree" && sha256sum data/random bin/busybox) > "$tree/sums"
cat > "$tree/sbin/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
exec > /dev/ttyS0 2>&1
set -e
trap 'echo "@@ status $?"; sync; mount -o remount,ro /; reboot -f' EXIT
cd /
mount -t proc proc /proc
mount -o remount,rw /
sha256sum -c sums
if [ -e new.sums ]; then
  echo "@@ second boot"
  sha256sum -c new.sums
else
  echo "@@ first boot"
  head -c 8000000 /dev/urandom > new
  cp data/random copy
  sha256sum new > new.sums
  sync
  rm copy
  fstrim /
fi
INIT
chmod +x "$tree/sbin/init"
truncate -s 96M "$tmp/disk.raw"
printf 'label: gpt\nstart=2048,size=188416\n' | sfdisk -q "$tmp/disk.raw" > /dev/null
mke2fs -q -F -t ext4 -d "$tree" -E offset=1048576 "$tmp/disk.raw" 92M 2> /dev/null
guid='{00000001-aaaa-bbbb-cccc-444444444444}'
mkdir "$tmp/root.hdd"
"$PLOOP_IMG" create -q --descriptor --from="$tmp/disk.raw" "$tmp/root.hdd/root.hds"
"$PLOOP_IMG" snapshot create -q --guid="$guid" "$tmp/root.hdd"
before=$(file_state "$tmp/root.hdd/root.hds")

# ---- Machines

# boot LOG URI [OPTION...]
boot ()
{
  timeout 240 qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
    -M pc -m 256 -accel tcg -cpu qemu64,+rdrand -kernel "${vmlinuz[0]}" \
    -initrd "$tmp/initrd" -append "console=ttyS0 quiet panic=-1 mitigations=off" \
    -chardev "file,id=serial,path=$1" -serial chardev:serial \
    -drive "file=$2,format=raw,if=virtio,discard=unmap" "${@:3}" \
    < /dev/null > "$1.qemu" 2>&1
}

# said LOG LINE: all went well, in what LINE says.
said ()
{
  tr -d '\r' < "$1" > "$1.lines"
  grep -qxF "@@ $2" "$1.lines" && grep -qxF "@@ status 0" "$1.lines" ||
    { cat "$1.lines" "$1.qemu"; fail "no $2, or it failed"; }
  say "$2: passed"
}

start_nbdkit file="$tmp/root.hdd"
boot "$tmp/live" "$uri" &
live=$!
boot "$tmp/snapshot" "nbd+unix:///%7B${guid:1:36}%7D?socket=$sock" -snapshot ||
  fail "qemu, from the snapshot: status $?"
wait $live || fail "qemu, from the live disk: status $?"
said "$tmp/live" "first boot"
said "$tmp/snapshot" "first boot"
stop_nbdkit

start_nbdkit file="$tmp/root.hdd"
boot "$tmp/live" "$uri" || fail "qemu, the second time: status $?"
said "$tmp/live" "second boot"
stop_nbdkit

status=0
"$PLOOP_IMG" check "$tmp/root.hdd" > "$tmp/check.log" || status=$?
[ $status -eq 0 ] || [ $status -eq 3 ] || { cat "$tmp/check.log"; fail "not sound"; }
run_nbdkit -U - -r --filter=partition "$PLUGIN" "$tmp/root.hdd" partition=1 \
  --run "nbdcopy \"\$uri\" $tmp/part.raw"
e2fsck -fn "$tmp/part.raw" > "$tmp/fsck.log" 2>&1 ||
  { cat "$tmp/fsck.log"; fail "the file system is damaged"; }
"$PLOOP_IMG" compare -q --snapshot="$guid" "$tmp/root.hdd" "$tmp/disk.raw" ||
  fail "the snapshot has changed"
[ "$(file_state "$tmp/root.hdd/root.hds")" = "$before" ] || fail "its file has changed"
say "passed"
