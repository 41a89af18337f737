#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that copy-on-write shares blocks where the file system can: on xfs and on
# btrfs, small writes to every cluster of a raw base and of a lower delta take next
# to no space, eagerly and lazily copied; what is read is right, before and after a
# restart, and the base has not changed.

set -euo pipefail

# In a mount namespace of its own, so that no mount can be left behind.
if [ -z "${IN_OWN_NAMESPACE:-}" ] && [ "$(id -u)" = 0 ] &&
   unshare -m true 2> /dev/null; then
  IN_OWN_NAMESPACE=1 exec unshare -m "$BASH" "$0"
fi

. "$abs_top_srcdir/tests/functions.sh"
requires mkfs.xfs mkfs.btrfs qemu-img qemu-io nbdcopy
[ -n "${IN_OWN_NAMESPACE:-}" ] || skip "needs root and mount namespaces"

fs=$tmp/fs
mkdir "$fs"
mib=24

unmount_fs ()
{
  ! mountpoint -q "$fs" || umount "$fs"
}
cleanup_fn unmount_fs

# used: KiB of the file system, with nothing left to be written.
used ()
{
  sync -f "$fs"
  df --output=used "$fs" | tail -n 1
}

# expect_content WHAT: the disk is what $tmp/raw is.
expect_content ()
{
  nbdcopy "$uri" "$tmp/out" || fail "$1: cannot be read"
  cmp "$tmp/out" "$tmp/raw" || fail "$1: reads otherwise"
}

# write_all_clusters: some of every cluster, no two places alike.
write_all_clusters ()
{
  local c commands=()
  for ((c = 0; c < mib; c++)); do
    commands+=(-c "write -P $((c + 1)) $((c * 1024 + c * 37))k $((1 + c % 5 * 3))k")
  done
  qemu-io -t writeback -f raw "${commands[@]}" -c flush "$uri" \
    > "$tmp/io.log" 2>&1 || { cat "$tmp/io.log"; fail "it cannot be written"; }
  qemu-io -f raw "${commands[@]}" "$tmp/raw" > /dev/null
}

# share WHAT BASE MODE: small writes above BASE.
share ()
{
  local sum before more
  cp "$fs/content" "$tmp/raw"
  "$PLOOP_IMG" create -q "$fs/top.hds" ${mib}M
  sum=$(sha256sum < "$2")
  before=$(used)
  start_nbdkit file="$fs/top.hds" base="$2" copy-on-write="$3" prealloc=1M
  write_all_clusters
  expect_content "$1, $3"
  stop_nbdkit
  more=$(($(used) - before))
  # A copy would take 1024 KiB for each.
  [ $more -lt $((mib * 1024 / 4)) ] ||
    fail "$1, $3: $mib small writes took $more KiB"
  say "$1, $3: $mib small writes took $more KiB"
  start_nbdkit -r file="$fs/top.hds" base="$2"
  expect_content "$1, $3, after a restart"
  stop_nbdkit
  "$PLOOP_IMG" check "$fs/top.hds" > "$tmp/check.log" ||
    { cat "$tmp/check.log"; fail "$1, $3: is damaged"; }
  [ "$(sha256sum < "$2")" = "$sum" ] || fail "$1, $3: the base has changed"
  rm "$fs/top.hds"
}

nr_done=0
for type in xfs btrfs; do
  truncate -s 512M "$tmp/fs.img"
  mkfs.$type -q "$tmp/fs.img" > /dev/null 2>&1 || fail "mkfs.$type"
  if ! mount -o loop -t $type "$tmp/fs.img" "$fs" 2> "$tmp/mount.log"; then
    say "$type: left out: $(cat "$tmp/mount.log")"
    rm "$tmp/fs.img"
    continue
  fi
  head -c ${mib}M /dev/urandom > "$fs/content"
  "$PLOOP_IMG" create -q "$fs/lower.hds" ${mib}M
  qemu-img convert -n -f raw -O parallels "$fs/content" "$fs/lower.hds"
  for mode in eager lazy; do
    share "$type, raw base" "$fs/content" $mode
    share "$type, lower delta" "$fs/lower.hds" $mode
  done
  umount "$fs"
  rm "$tmp/fs.img"
  nr_done=$((nr_done + 1))
done
[ $nr_done -gt 0 ] || skip "neither xfs nor btrfs can be mounted"
