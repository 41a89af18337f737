#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# The one place that knows which Debian packages this project needs.
#
# Sourced, it gives install_missing GROUP...; run, it calls that:
#
#     sudo ./scripts/packages.sh build run test
#
# Packages that are there already are left alone, and nothing is asked of a
# mirror when none is missing.

set -euo pipefail

# libc6-dev: gcc only recommends it, and recommendations are not installed.
# perl: pod2man and podchecker.
build_packages=(gcc libc6-dev make autoconf automake libtool pkgconf
                nbdkit nbdkit-plugin-dev libglib2.0-dev libjson-glib-dev
                liburcu-dev liburing-dev libev-dev libnbd-dev libxml2-dev
                libsystemd-dev perl)
# libnbd-bin: nbdcopy, nbdinfo and nbdfuse.  e2fsprogs: mke2fs and debugfs.
run_packages=(nbdkit libnbd-bin e2fsprogs)
# check: unit tests.  qemu-utils, ploop: the other implementations.  spin: checks
# the model of the commit protocol.  zstd: unpacks the corpus.  strace: counts system
# calls.  libxml2-utils: xmllint.  xfsprogs, btrfs-progs: file systems that share blocks.  xz-utils: make
# distcheck.
test_packages=(check libnbd-bin libxml2-utils qemu-utils ploop e2fsprogs zstd
               xfsprogs btrfs-progs shellcheck spin strace xz-utils)
# user-mode-linux: the guest of tests/vm; it needs no right and no hardware for that.
# libslirp-helper: its network.  nbd-client: the kernel's NBD client.  kmod: modprobe.
# systemd, udev: process 1 of some guests.  fdisk: sfdisk.  gnutls-bin: certtool and
# psktool.  qemu-system-x86: machines that boot from what is served (20 MB to download).
# libvirt-clients: virt-xml-validate.  attr: setfattr.  bash-completion: what nbdkit's own
# completion needs.
test_packages+=(user-mode-linux libslirp-helper nbd-client kmod systemd udev fdisk
                gnutls-bin qemu-system-x86 libvirt-clients attr bash-completion
                sudo iproute2 procps)
# What make check-vm needs beyond that: qemu emulates several CPUs, for a kernel that is
# unpacked and not installed, in an initramfs (cpio).
vm_packages=(qemu-system-x86 qemu-system-common cpio)
valgrind_packages=(valgrind)
# What make bench and make fuzz need beyond build and test.
bench_packages=(fio python3)
fuzz_packages=(clang libclang-rt-14-dev)
# What make check-packages needs beyond build and test.
package_packages=(dpkg-dev debhelper lintian blhc rpm rpmlint)

groups="build, run, test, vm, valgrind, bench, fuzz, package"

# packages_of GROUP...: the groups' packages, one a line, each once.
packages_of ()
{
  local group
  for group; do
    case $group in
      build)    printf '%s\n' "${build_packages[@]}" ;;
      run)      printf '%s\n' "${run_packages[@]}" ;;
      test)     printf '%s\n' "${test_packages[@]}" ;;
      vm)       printf '%s\n' "${vm_packages[@]}" ;;
      valgrind) printf '%s\n' "${valgrind_packages[@]}" ;;
      bench)    printf '%s\n' "${bench_packages[@]}" ;;
      fuzz)     printf '%s\n' "${fuzz_packages[@]}" ;;
      package)  printf '%s\n' "${package_packages[@]}" ;;
      *)        echo "packages.sh: no group of packages is called" \
                     "'$group': use $groups" >&2
                return 2 ;;
    esac
  done | sort -u
}

# missing_of PACKAGE...: those of them that are not installed, one a line.
missing_of ()
{
  local package
  for package; do
    dpkg-query -W -f '${db:Status-Abbrev}\n' "$package" 2>/dev/null \
      | grep -q '^.i' || printf '%s\n' "$package"
  done
}

# known PACKAGE...: those of them that apt can install, one a line.
known ()
{
  apt-cache madison "$@" 2>/dev/null | awk '{ print $1 }' | sort -u
}

# unknown_of PACKAGE...: those of them that apt cannot install, one a line.
unknown_of ()
{
  comm -23 <(printf '%s\n' "$@" | sort -u) <(known "$@")
}

# install_missing GROUP...: returns when every package of the groups is there.
install_missing ()
{
  local list packages=() missing=() unknown=() as_root=() log
  list=$(packages_of "$@")
  mapfile -t packages <<<"$list"
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "   not a Debian system: what Debian calls ${packages[*]} must be there"
    return 0
  fi
  mapfile -t missing < <(missing_of "${packages[@]}")
  if [ "${#missing[@]}" -eq 0 ]; then
    echo "   nothing to install"
    return 0
  fi
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "   missing packages; as root: apt-get install ${missing[*]}" >&2
      return 1
    fi
    as_root=(sudo)
  fi
  as_root+=(env DEBIAN_FRONTEND=noninteractive
            apt-get -q -y -o DPkg::Lock::Timeout=300)
  log=$(mktemp)
  # A mirror of something else that does not answer is no reason to stop: what
  # counts is whether these packages can be installed.
  "${as_root[@]}" update >"$log" 2>&1 </dev/null ||
    echo "   apt-get update had errors; trying to install all the same"
  # Newer releases have no ploop, for example.
  mapfile -t unknown < <(unknown_of "${missing[@]}")
  if [ "${#unknown[@]}" -gt 0 ]; then
    echo "   this system has no ${unknown[*]}: what needs them is skipped, or fails"
    mapfile -t missing < <(known "${missing[@]}")
  fi
  if [ "${#missing[@]}" -eq 0 ]; then
    rm -f "$log"
    return 0
  fi
  echo "   installing ${missing[*]}"
  if ! "${as_root[@]}" install --no-install-recommends "${missing[@]}" \
       >>"$log" 2>&1 </dev/null; then
    tail -n 30 "$log" >&2
    rm -f "$log"
    echo "   apt-get could not install ${missing[*]}" >&2
    return 1
  fi
  rm -f "$log"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  if [ $# -eq 0 ]; then
    echo "usage: $0 GROUP...    ($groups)" >&2
    exit 2
  fi
  install_missing "$@"
fi
