#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that ploop-img compact gives back what was trimmed through the server,
# and that qemu and ploop find the image sound and its content as it was: also
# after kill -9 or SIGTERM in the middle, and on a file system that is full.

set -euo pipefail

# In a mount namespace of its own, so that no mount can be left behind.
if [ -z "${IN_OWN_NAMESPACE:-}" ] && [ "$(id -u)" = 0 ] &&
   unshare -m true 2> /dev/null; then
  IN_OWN_NAMESPACE=1 exec unshare -m "$BASH" "$0"
fi

. "$abs_top_srcdir/tests/functions.sh"
requires qemu-img qemu-io nbdcopy perl

has_ploop=
if has_ploop; then
  has_ploop=ploop
else
  say "no ploop here: its check is left out"
fi

# ---- Images

# serve_and_trim FILE MEGABYTES STEP: fill the disk of FILE, then trim all but
# every STEPth MiB.  What it reads then is in $tmp/raw.
serve_and_trim ()
{
  local i commands=()
  head -c $(($2 << 20)) /dev/urandom > "$tmp/raw"
  start_nbdkit file="$1"
  nbdcopy --flush "$tmp/raw" "$uri"
  for ((i = 0; i < $2; i++)); do
    [ $((i % $3)) -ne 0 ] || continue
    commands+=(-c "discard ${i}M 1M")
  done
  qemu-io -f raw -d unmap "${commands[@]}" -c flush "$uri" > "$tmp/io.log" ||
    { cat "$tmp/io.log"; fail "qemu-io cannot trim"; }
  stop_nbdkit
  # Not before: parts of clusters are punched a while after they are trimmed, at
  # the latest when the image is closed.
  start_nbdkit -r file="$1"
  nbdcopy "$uri" "$tmp/raw"
  stop_nbdkit
}

# same FILE: it reads as before.
same ()
{
  qemu-img compare -q -f parallels -F raw "$1" "$tmp/raw" ||
    fail "$1 is not what it was, says qemu"
}

# same_for_us FILE: the same, of an image that may be marked as in use, which
# qemu may want to repair.
same_for_us ()
{
  start_nbdkit -r file="$1"
  nbdcopy "$uri" "$tmp/out"
  stop_nbdkit
  cmp "$tmp/out" "$tmp/raw" || fail "$1 is not what it was, say we"
  rm "$tmp/out"
}

# sound FILE [ploop]
sound ()
{
  [ "$(in_use "$1")" = 00000000 ] || fail "$1: marked in use"
  qemu-img check -f parallels "$1" > "$tmp/check.log" 2>&1 ||
    { cat "$tmp/check.log"; fail "qemu-img check: $1"; }
  "$PLOOP_IMG" check "$1" > "$tmp/check.log" ||
    { cat "$tmp/check.log"; fail "ploop-img check: $1"; }
  if [ -n "${2:-}" ]; then
    cp --sparse=always "$1" "$tmp/copy.hds"
    ploop_check_delta "$tmp/copy.hds"
    rm "$tmp/copy.hds"
  fi
}

# member NAME: of the JSON in $tmp/out.json.
member ()
{
  perl -MJSON::PP -0777 -e 'print decode_json (<STDIN>)->{$ARGV[0]}' "$1" \
    < "$tmp/out.json"
}

# compact FILE [OPTION...]: into $tmp/out.json.  That an image was not closed is
# worth a warning.
compact ()
{
  "$PLOOP_IMG" compact --output=json "$@" > "$tmp/out.json" 2> "$tmp/err" ||
    fail "ploop-img compact $*: status $?: $(cat "$tmp/err")"
  ! grep -v 'was not closed' "$tmp/err" || fail "ploop-img compact $*"
}

# ---- What comes back

# round FILE [ploop]: a disk of 48 MiB, a third of which stays.
round ()
{
  local file=$1 before after state
  say "$(basename "$file")"
  serve_and_trim "$file" 48 3
  before=$(stat -c %s "$file")

  state=$(file_state "$file")
  compact "$file" --dry-run
  [ "$state" = "$(file_state "$file")" ] || fail "a dry run changed $file"
  [ "$(member result)" = dry-run ] || fail "a dry run says: $(member result)"
  after=$(member file-size-after)

  compact "$file"
  [ "$(member result)" = compacted ] || fail "it says $(member result)"
  [ "$(member file-size-before)" = "$before" ] || fail "file-size-before"
  [ "$(stat -c %s "$file")" = "$after" ] ||
    fail "the file has $(stat -c %s "$file") bytes, not $after"
  # 16 MiB, and what belongs to clusters that were trimmed only in part.
  [ "$after" -lt $((25 << 20)) ] || fail "the file still has $after bytes"
  [ "$(member moved-clusters)" -gt 0 ] || fail "nothing was moved"
  sound "$@"
  same "$file"

  state=$(file_state "$file")
  compact "$file"
  [ "$(member moved-clusters)" = 0 ] || fail "moved again"
  [ "$state" = "$(file_state "$file")" ] || fail "changed with nothing to do"

  # It serves on.
  start_nbdkit file="$file"
  qemu-io -f raw -c 'write -P 7 1M 5M' -c flush "$uri" > /dev/null
  stop_nbdkit
  qemu-io -f raw -c 'write -P 7 1M 5M' "$tmp/raw" > /dev/null
  sound "$@"
  same "$file"
  rm "$file"
}

for cluster in 65536 1048576; do
  due || continue
  file=$tmp/qemu-$cluster.hds
  qemu-img create -q -f parallels -o cluster_size=$cluster "$file" 48M
  round "$file" $has_ploop
done
file=$tmp/qemu-258048.hds
qemu-img create -q -f parallels -o cluster_size=258048 "$file" 48M
round "$file"
for version in 1 2; do
  chosen $version || continue
  file=$tmp/v$version.hds
  "$PLOOP_IMG" create -q --version=$version --cluster-size=32K "$file" 48M
  round "$file" $has_ploop
done

say "without holes"
file=$tmp/no-holes.hds
"$PLOOP_IMG" create -q "$file" 48M
serve_and_trim "$file" 48 3
cp --sparse=never "$file" "$tmp/full.hds"
compact "$tmp/full.hds" --no-holes
sound "$tmp/full.hds" $has_ploop
same "$tmp/full.hds"
[ $(($(stat -c %b "$tmp/full.hds") * 512)) -ge \
  "$(stat -c %s "$tmp/full.hds")" ] || fail "it has holes"
rm "$tmp/full.hds" "$file"

# ---- Ended early

# compact_until PER_CENT FILE SIGNAL: send SIGNAL when the bar has come that far.
# Sets status.
compact_until ()
{
  local pid drawn
  rm -f "$tmp/bar"
  mkfifo "$tmp/bar"
  "$PLOOP_IMG" compact --progress "$2" > "$tmp/out" 2> "$tmp/bar" &
  pid=$!
  exec 5< "$tmp/bar"
  while IFS= read -r -d % drawn <&5; do
    drawn=${drawn##*] }
    [ "${drawn//[^0-9]/}" -lt "$1" ] || break
  done
  kill "-$3" "$pid" 2> /dev/null || :
  # So that it does not die of writing to nobody.
  cat <&5 > "$tmp/err"
  exec 5<&-
  status=0
  wait "$pid" || status=$?
}

say "kill -9"
file=$tmp/kill.hds
"$PLOOP_IMG" create -q --cluster-size=64K "$file" 280M
# 70 MiB to move: more than a batch.
serve_and_trim "$file" 280 2
nr_cut_short=0
for percent in 0 20 50 89 95; do
  cp --sparse=always "$file" "$tmp/killed.hds"
  compact_until $percent "$tmp/killed.hds" KILL
  if [ $status -eq 137 ]; then
    nr_cut_short=$((nr_cut_short + 1))
    same_for_us "$tmp/killed.hds"
  fi
  compact "$tmp/killed.hds"
  sound "$tmp/killed.hds"
  same "$tmp/killed.hds"
  [ "$(stat -c %s "$tmp/killed.hds")" -lt $((150 << 20)) ] ||
    fail "killed and compacted again, it is as large as before"
done
say "  $nr_cut_short of 5 times in the middle"
[ $nr_cut_short -gt 0 ] || fail "it was never killed in the middle"

say "SIGTERM"
nr_cut_short=0
for percent in 10 92; do
  cp --sparse=always "$file" "$tmp/ended.hds"
  compact_until $percent "$tmp/ended.hds" TERM
  [ $status -eq 2 ] || [ $status -eq 0 ] ||
    fail "exit status $status: $(cat "$tmp/err")"
  if [ $status -eq 2 ]; then
    nr_cut_short=$((nr_cut_short + 1))
    grep -q interrupted "$tmp/err" || fail "it does not say so"
  fi
  [ "$(in_use "$tmp/ended.hds")" = 00000000 ] || fail "marked in use"
  same "$tmp/ended.hds"
  compact "$tmp/ended.hds"
  sound "$tmp/ended.hds"
  same "$tmp/ended.hds"
done
say "  $nr_cut_short of 2 times in the middle"
[ $nr_cut_short -gt 0 ] || fail "it was never ended in the middle"
rm "$tmp/killed.hds" "$tmp/ended.hds" "$file"

# ---- In use

say "while others use it"
file=$tmp/busy.hds
"$PLOOP_IMG" create -q "$file" 16M
start_nbdkit -r file="$file"
if "$PLOOP_IMG" compact "$file" > "$tmp/out" 2> "$tmp/err"; then
  fail "compacted while it is served"
fi
grep -q 'in use' "$tmp/err" || fail "it does not say why: $(cat "$tmp/err")"
"$PLOOP_IMG" compact -n "$file" > "$tmp/out" || fail "no look while it is read"
stop_nbdkit

# ---- A file system that is full

if [ -z "${IN_OWN_NAMESPACE:-}" ] || ! command -v mkfs.ext4 > /dev/null; then
  say "passed, but for a full file system: needs root and mkfs.ext4"
  exit 0
fi

fs=$tmp/fs
mkdir "$fs"
unmount_fs ()
{
  ! mountpoint -q "$fs" || umount "$fs"
}
cleanup_fn unmount_fs
truncate -s 96M "$tmp/fs.img"
mkfs.ext4 -q -F -m 0 -J size=4 "$tmp/fs.img"
if ! mount -o loop "$tmp/fs.img" "$fs" 2> "$tmp/mount.log"; then
  say "passed, but for a full file system: $(cat "$tmp/mount.log")"
  exit 0
fi

say "a full file system"
file=$fs/disk.hds
"$PLOOP_IMG" create -q --cluster-size=64K "$file" 48M
serve_and_trim "$file" 48 2
# No room at all, and then for a tenth of what has to be moved.
fallocate -l 1M "$fs/spare"
sync -f "$fs"
for ((size = 16 << 20; size >= 4096; size /= 2)); do
  n=0
  while fallocate -l $size "$fs/filler.$size.$n" 2> /dev/null; do
    n=$((n + 1))
  done
  rm "$fs/filler.$size.$n"
done
sync -f "$fs"
status=0
"$PLOOP_IMG" compact "$file" > "$tmp/out" 2> "$tmp/err" || status=$?
[ $status -eq 1 ] || fail "there is no space, but its status is $status"
grep -q 'No space left' "$tmp/err" || fail "it does not say why"
[ "$(in_use "$file")" = 00000000 ] || fail "no space: marked in use"
same "$file"
rm "$fs/spare"
sync -f "$fs"
compact "$file"
sound "$file" $has_ploop
same "$file"
[ "$(stat -c %s "$file")" -lt $((26 << 20)) ] || fail "as large as before"
say "passed"
