# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034

# A guest with several CPUs, whose kernel so uses several connections of an NBD device:
# qemu emulates them, without KVM.  What is in it is the same as in the other guests,
# this host's file system below an overlay; here it comes by virtiofs.  Only the dynamic
# linker does not know this project's library.  It takes some twenty seconds of CPU time
# to boot.  Sourced after guest.sh; then
#
#     run_guest -c 4 -n SCRIPT
#
# The kernel is Debian's for clouds: its package is downloaded and unpacked in the
# build directory, not installed, and kept there.  The initramfs has what it takes to
# mount the host's file system (qemu-init), and guest-init does the rest.

: "${KERNEL:?run this test with make check}"

virtiofsd=/usr/lib/qemu/virtiofsd
qemu_modules=$KERNEL/lib/modules

# requires_qemu_guest: skip unless one can be started.
requires_qemu_guest ()
{
  requires qemu-system-x86_64 cpio gzip insmod modprobe depmod timeout
  [ -x "$virtiofsd" ] ||
    skip "no $virtiofsd (package qemu-system-common)"
  [ "$(id -u)" -eq 0 ] ||
    skip "only root sees the whole file system that the guest has as its own"
  fetch_kernel
}

# fetch_kernel: in $KERNEL, or skip.
fetch_kernel ()
{
  local package
  exec {_kernel_lock}> "$KERNEL.lock"
  flock "$_kernel_lock"
  if [ ! -d "$KERNEL" ]; then
    requires apt-get apt-cache dpkg-deb
    package=$(apt-cache depends linux-image-cloud-amd64 2> /dev/null |
              sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1) || :
    [ -n "$package" ] ||
      skip "no kernel: apt-cache knows no package linux-image-cloud-amd64"
    _unpack_kernel "$package"
  fi
  exec {_kernel_lock}>&-
}

_unpack_kernel ()
{
  local part=$KERNEL.part
  rm -rf "$part"
  mkdir "$part"
  (cd "$part" && apt-get -q -o APT::Sandbox::User=root download "$1") \
    > "$tmp/apt.log" 2>&1 ||
    { cat "$tmp/apt.log"; rm -rf "$part"
      skip "no kernel: apt-get cannot download the package $1"; }
  dpkg-deb -x "$part"/*.deb "$part"
  rm "$part"/*.deb
  depmod -b "$part" "$(ls "$part/lib/modules")"
  mv "$part" "$KERNEL"
}

# _make_initramfs DIRECTORY FILE
_make_initramfs ()
{
  local root=$1 version program path library module
  version=$(ls "$qemu_modules")
  mkdir -p "$root"/{bin,dev,proc,host,modules}
  for program in bash mount insmod chroot; do
    path=$(realpath "$(command -v "$program")")
    # insmod is a link to kmod, which does what the name says that it is called by.
    cp "$path" "$root/bin/$program"
    ldd "$path" | grep -o '/[^ ]*' | while read -r library; do
      mkdir -p "$root/${library%/*}"
      cp -Ln "$library" "$root/${library%/*}/"
    done
  done
  # Each once, and before it what it needs.
  for module in virtio_pci virtio_net virtiofs; do
    modprobe -d "$KERNEL" -S "$version" --show-depends "$module"
  done | awk '!seen[$2]++ { print $2 }' | while read -r path; do
    cp "$path" "$root/modules/"
    echo "${path##*/}" >> "$root/modules/order"
  done
  cp "$abs_srcdir/qemu-init" "$root/init"
  chmod +x "$root/init"
  (cd "$root" && find . | cpio -o -H newc --quiet) | gzip -1 > "$2"
}

# _share_by_virtiofs TAG DIRECTORY: sets qemu's arguments for it.
_share_by_virtiofs ()
{
  "$virtiofsd" --socket-path="$tmp/$1.sock" -o "source=$2,sandbox=chroot" -f \
    < /dev/null > "$tmp/virtiofsd-$1.log" 2>&1 &
  wait_until test -S "$tmp/$1.sock"
  args+=(-chardev "socket,id=$1,path=$tmp/$1.sock"
         -device "vhost-user-fs-pci,chardev=$1,tag=$1")
}

# _boot_qemu MEGABYTES NETWORK CPUS: as _boot_guest.
_boot_qemu ()
{
  local args=() version
  exec < /dev/null 3> "$tmp/guest-output" > "$guest_console" 2>&1
  version=$(ls "$qemu_modules")
  _make_initramfs "$tmp/initramfs" "$tmp/initramfs.gz"
  _share_by_virtiofs host /
  _share_by_virtiofs share "$share"
  # qemu64 has the least to emulate; without rdrand, programs would wait for entropy.
  # All CPUs take turns in one thread: on few real ones that is quicker by far.
  args+=(-nodefaults -no-user-config -display none -no-reboot -M pc
         -accel "tcg,thread=single" -cpu "qemu64,+rdrand" -smp "$3" -m "$1"
         -object "memory-backend-memfd,id=memory,size=${1}M,share=on"
         -machine memory-backend=memory
         -kernel "$KERNEL/boot/vmlinuz-$version" -initrd "$tmp/initramfs.gz"
         -chardev "file,id=console,path=$guest_console,append=on"
         -serial chardev:console -serial stdio
         -append "console=ttyS0 quiet panic=-1 audit=0 mitigations=off tsc=reliable\
 PLOOP_GUEST=$tmp/guest-config PLOOP_INIT=$abs_srcdir/guest-init")
  [ -z "$2" ] ||
    args+=(-netdev "user,id=net,ipv6=off"
           -device "virtio-net-pci,netdev=net,romfile=")
  exec timeout -k 5 "$guest_limit" qemu-system-x86_64 "${args[@]}" >&3
}
