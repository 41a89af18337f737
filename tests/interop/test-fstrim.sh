#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that a real file system gives its space back: ext4 on a loop device on
# nbdfuse on the export is filled, files are deleted, and after fstrim the image
# takes little more than it did when the file system was new.  The files that
# were kept have the right content, e2fsck, qemu-img check and ploop-img check
# find nothing.  With discard=keep no hole is ever made in the image, and what
# was trimmed is used again.

set -euo pipefail

# In a mount namespace of its own, so that no mount can be left behind.
if [ -z "${IN_OWN_NAMESPACE:-}" ] && [ "$(id -u)" = 0 ] &&
   unshare -m true 2> /dev/null; then
  IN_OWN_NAMESPACE=1 exec unshare -m "$BASH" "$0"
fi

. "$abs_top_srcdir/tests/functions.sh"
requires nbdfuse losetup mkfs.ext4 e2fsck fstrim mountpoint qemu-img sha256sum
[ -n "${IN_OWN_NAMESPACE:-}" ] || skip "needs root and mount namespaces"
[ -c /dev/fuse ] || skip "there is no /dev/fuse"

file=$tmp/disk.hds
fuse=$tmp/fuse
fs=$tmp/fs
mkdir "$fuse" "$fs"
mib=$((1 << 20))

# Of files that are deleted again; enough to tell from the slack.
fill_mib=$((96 * ${PLOOP_TEST_SCALE:-100} / 100))
[ $fill_mib -ge 64 ] || fill_mib=64
kept_mib=12
# What is kept ready for new clusters, and the file system's own.
slack_mib=20

# ---- The stack: nbdfuse, loop, mount

loop=
nbdfuse_pid=

detach ()
{
  ! mountpoint -q "$fs" || umount "$fs"
  if [ -n "$loop" ]; then
    losetup -d "$loop"
    loop=
  fi
  ! mountpoint -q "$fuse" || umount "$fuse"
  if [ -n "$nbdfuse_pid" ]; then
    wait_until _has_ended "$nbdfuse_pid" || fail "nbdfuse does not end"
    wait "$nbdfuse_pid" || fail "nbdfuse: exit status $?"
    nbdfuse_pid=
  fi
}

# The same with the server gone, on the way out.
tear_down ()
{
  umount "$fs" 2> /dev/null || umount -l "$fs" 2> /dev/null
  [ -z "$loop" ] || losetup -d "$loop"
  umount "$fuse" 2> /dev/null || umount -l "$fuse" 2> /dev/null
  if [ -n "$nbdfuse_pid" ]; then
    kill -KILL "$nbdfuse_pid" 2> /dev/null
    wait "$nbdfuse_pid" 2> /dev/null
  fi
}
cleanup_fn tear_down

_is_up_or_gone ()
{
  [ -s "$tmp/nbdfuse.pid" ] || _has_ended "$nbdfuse_pid"
}

attach ()
{
  rm -f "$tmp/nbdfuse.pid"
  nbdfuse -P "$tmp/nbdfuse.pid" "$fuse/disk" "$uri" \
    < /dev/null > "$tmp/nbdfuse.log" 2>&1 &
  nbdfuse_pid=$!
  wait_until _is_up_or_gone || fail "nbdfuse does not come up"
  [ -s "$tmp/nbdfuse.pid" ] || skip "nbdfuse: $(cat "$tmp/nbdfuse.log")"
  loop=$(losetup -f --show "$fuse/disk" 2> "$tmp/losetup.log") ||
    skip "losetup: $(cat "$tmp/losetup.log")"
  [ "$(cat "/sys/block/${loop#/dev/}/queue/discard_max_bytes")" -gt 0 ] ||
    skip "the loop device cannot trim"
}

mount_fs ()
{
  mount "$@" "$loop" "$fs" 2> "$tmp/mount.log" ||
    skip "cannot mount: $(cat "$tmp/mount.log")"
}

# ---- Files

# The image's space in MiB.
usage_mib ()
{
  echo $(($(stat -c %b "$file") * 512 / mib))
}

# fill NAME MIB: random bytes in files of 1 MiB, on disk when it returns.
fill ()
{
  local i
  mkdir "$fs/$1"
  for ((i = 0; i < $2; i++)); do
    head -c $mib /dev/urandom > "$fs/$1/$i"
  done
  sync -f "$fs"
}

# What was deleted can be trimmed when the journal is on disk.
delete_and_trim ()
{
  rm -r "${fs:?}/$1"
  sync -f "$fs"
  fstrim "$fs"
  sync -f "$fs"
}

# Something is written and flushed: what was trimmed may be used again when that
# is durable.
flush_fs ()
{
  date > "$fs/date"
  sync -f "$fs"
}

expect_kept ()
{
  (cd "$fs" && sha256sum --quiet -c "$tmp/sums") || fail "$1: wrong content"
}

_is_small ()
{
  [ "$(usage_mib)" -le $((new_mib + kept_mib + slack_mib)) ]
}

# A new file system, with files that are kept.  Sets new_mib.
make_fs ()
{
  rm -f "$file"
  "$PLOOP_IMG" create -q --cluster-size=64K "$file" 512M
  start_nbdkit file="$file" prealloc=1M "$@"
  attach
  # All at once, so that nothing is written behind our back later.
  mkfs.ext4 -q -F -J size=4 -E lazy_itable_init=0,lazy_journal_init=0 "$loop"
  mount_fs
  sync -f "$fs"
  new_mib=$(usage_mib)
  fill kept $kept_mib
  (cd "$fs" && sha256sum kept/*) > "$tmp/sums"
}

# Everything is taken down; the checkers find nothing, and the file system is
# as it was.
check_all ()
{
  local status=0
  detach
  stop_nbdkit
  [ "$(in_use "$file")" = 00000000 ] || fail "still marked in use"
  qemu-img check -q -f parallels "$file" || status=$?
  [ $status -eq 0 ] || [ $status -eq 3 ] || fail "qemu-img check: $status"
  # What was trimmed and not used again lies between the others: status 3.
  status=0
  "$PLOOP_IMG" check "$file" > "$tmp/check.log" || status=$?
  [ $status -eq 0 ] || [ $status -eq 3 ] ||
    { cat "$tmp/check.log"; fail "ploop-img check: status $status"; }
  qemu-img convert -f parallels -O raw "$file" "$tmp/raw"
  e2fsck -fn "$tmp/raw" > "$tmp/e2fsck.log" 2>&1 ||
    { cat "$tmp/e2fsck.log"; fail "e2fsck is not content"; }
  rm "$tmp/raw"
  start_nbdkit -r file="$file"
  attach_read_only
  expect_kept "opened again"
  detach
  stop_nbdkit
}

attach_read_only ()
{
  rm -f "$tmp/nbdfuse.pid"
  nbdfuse -r -P "$tmp/nbdfuse.pid" "$fuse/disk" "$uri" \
    < /dev/null > "$tmp/nbdfuse.log" 2>&1 &
  nbdfuse_pid=$!
  wait_until _is_up_or_gone || fail "nbdfuse does not come up"
  [ -s "$tmp/nbdfuse.pid" ] || fail "nbdfuse: $(cat "$tmp/nbdfuse.log")"
  loop=$(losetup -r -f --show "$fuse/disk")
  mount_fs -o ro
}

# ---- Space is given back

given_back ()
{
  local full_mib trimmed_mib
  say "fill, delete, fstrim: $*"
  make_fs "$@"
  fill filler $fill_mib
  full_mib=$(usage_mib)
  [ "$full_mib" -ge $((new_mib + kept_mib + fill_mib * 9 / 10)) ] ||
    fail "takes $full_mib MiB with $fill_mib MiB of files"
  delete_and_trim filler
  wait_until _is_small ||
    fail "$new_mib MiB when new, $full_mib when full, $(usage_mib) when" \
         "trimmed"
  trimmed_mib=$(usage_mib)
  expect_kept "trimmed"
  # The same again, in the space that was given back.
  flush_fs
  fill filler $fill_mib
  delete_and_trim filler
  wait_until _is_small ||
    fail "the second time it takes $(usage_mib) MiB when trimmed"
  check_all
  say "  $new_mib MiB when new, $full_mib when full, $trimmed_mib when" \
      "trimmed, $(usage_mib) when closed; a file of" \
      "$(($(stat -c %s "$file") / mib))"
  _is_small || fail "takes $(usage_mib) MiB when it is closed"
  [ "$(stat -c %s "$file")" -le $(((full_mib + 2 * slack_mib) * mib)) ] ||
    fail "the file is larger than when it was full"
}

given_back
given_back cache=none

# ---- Without any hole

# holes: blocks in the data area, before the last block of the file, that are in
# no extent.  Nothing when the file system does not tell.
holes ()
{
  local first
  first=$(($(od -A n -t u4 -j 48 -N 4 "$file") * 512))
  filefrag -s -v "$file" 2> /dev/null |
    awk -v first="$first" '
      /blocks? of [0-9]+ bytes/ {
        for (i = 1; i < NF; i++)
          if ($i == "of" && $(i + 2) ~ /^bytes/) size = $(i + 1)
        next_ = int (first / size)
      }
      /^ *[0-9]+:/ {
        gsub (/[.:]+/, " ")
        if ($2 > next_) sum += $2 - next_
        if ($3 + 1 > next_) next_ = $3 + 1
        found = 1
      }
      END { if (found) print sum + 0 }'
}

expect_no_holes ()
{
  [ "$(holes)" = 0 ] || fail "$1: $(holes) blocks of the file are holes"
}

# Fill and trim, again and again.  What was trimmed last may be on its way still,
# what was trimmed before that may not.
used_again ()
{
  local full_mib again_mib i
  say "without holes: discard=keep $*"
  make_fs discard=keep "$@"
  if [ -z "$(holes)" ]; then
    say "  filefrag does not tell where holes are"
    expect_no_holes () { :; }
  fi
  fill filler $fill_mib
  full_mib=$(usage_mib)
  expect_no_holes "filled"
  for i in 1 2 3; do
    delete_and_trim filler
    flush_fs
    expect_no_holes "trimmed $i"
    flush_fs
    fill filler $fill_mib
    expect_no_holes "filled again $i"
  done
  again_mib=$(usage_mib)
  say "  $full_mib MiB when full, $again_mib after three more times"
  [ "$again_mib" -le $((full_mib + fill_mib + slack_mib)) ] ||
    fail "what was trimmed is not used again"
  expect_kept "filled again"
  delete_and_trim filler
  check_all
  expect_no_holes "closed"
}

if command -v filefrag > /dev/null; then
  used_again
  used_again cache=none
else
  say "filefrag is not installed: discard=keep is not tried"
fi
say "passed"
