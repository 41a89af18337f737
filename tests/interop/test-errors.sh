#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that what a user can get wrong ends in a text that helps, and never in
# a crash; that nbdkit can tell what the plugin is; and that a full disk is
# answered as such, loses nothing, and is over when there is space again.

set -euo pipefail

# In a mount namespace of its own, so that no mount can be left behind.
if [ -z "${IN_OWN_NAMESPACE:-}" ] && [ "$(id -u)" = 0 ] &&
   unshare -m true 2> /dev/null; then
  IN_OWN_NAMESPACE=1 exec unshare -m "$BASH" "$0"
fi

. "$abs_top_srcdir/tests/functions.sh"
requires nbdinfo qemu-io qemu-img

image=$tmp/image.hds
"$PLOOP_IMG" create -q --cluster-size=64K "$image" 8M

# ---- Parameters

expect_refusal 'file='
expect_refusal 'file' file=
expect_refusal 'nosuchparameter' file="$image" nosuchparameter=1
expect_refusal 'twice|more than once' file="$image" file="$image"
expect_refusal 'missing\.hds.*No such file' file="$tmp/missing.hds"
expect_refusal 'No such file' file="$tmp/no/such/directory.hds"
expect_refusal 'Not a directory' file="$image/x"
mkdir "$tmp/directory"
expect_refusal 'directory' file="$tmp/directory"
mkfifo "$tmp/fifo"
expect_refusal 'fifo.*not a regular file' file="$tmp/fifo"
expect_refusal '/dev/null.*not a regular file' file=/dev/null
ln -s loop "$tmp/loop"
expect_refusal 'loop.*symbolic links' file="$tmp/loop"

# ---- Files

for size in 0 1 16 63; do
  head -c $size "$image" > "$tmp/short.hds"
  expect_refusal "short.hds.*size is $size" file="$tmp/short.hds"
  expect_refusal "short.hds.*size is $size" -r file="$tmp/short.hds"
done
for size in 64 65 100 511; do
  head -c $size "$image" > "$tmp/short.hds"
  expect_refusal "short.hds.*file .*$size" file="$tmp/short.hds"
done
# What begins with '<' is taken for a descriptor.
{ printf '\377'; head -c 100000 /dev/urandom; } > "$tmp/noise"
expect_refusal 'noise.*signature' file="$tmp/noise"
echo '<?xml version="1.0"?><Parallels_disk_image></Parallels_disk_image>' \
  > "$tmp/DiskDescriptor.xml"
head -c 4096 /dev/zero >> "$tmp/DiskDescriptor.xml"
expect_refusal 'DiskDescriptor.xml' file="$tmp/DiskDescriptor.xml"
rm "$tmp/DiskDescriptor.xml"*

# Every field of the header, with values that nobody would write.  Refused, or
# served; but nothing worse, and the file stays as it is.
cp "$image" "$tmp/field.hds"
nr_served=0 nr_tried=0
values=('\377\377\377\377' '\1\0\0\0')
if nbdkit_is_plain; then
  values+=('\0\0\0\0' '\377\377\377\177' '\0\0\0\200' '\176\0\0\0')
fi
for offset in 16 20 24 28 32 36 40 44 48 52 56 60 64; do
  for value in "${values[@]}"; do
    due || continue
    nr_tried=$((nr_tried + 1))
    cp "$image" "$tmp/field.hds"
    printf "$value" |
      dd of="$tmp/field.hds" bs=1 seek=$offset conv=notrunc status=none
    before=$(file_state "$tmp/field.hds")
    if start_nbdkit file="$tmp/field.hds"; then
      size=$(nbdinfo --size "$uri")
      # The first and last bytes of whatever it takes the disk for.
      [ "$size" = 0 ] ||
        qemu-io -r -f raw -c 'read 0 512' -c "read $((size - 512)) 512" \
          "$uri" > "$tmp/io.log" 2>&1 ||
        { cat "$tmp/io.log"; fail "header byte $offset, $value: no read"; }
      stop_nbdkit
      nr_served=$((nr_served + 1))
    else
      check_log
      [ "$nbdkit_status" -eq 1 ] ||
        fail "header byte $offset, $value: exit status $nbdkit_status"
      grep -q 'error: .*field.hds.*[0-9]' "$nbdkit_log" ||
        fail "header byte $offset, $value: no good error"
    fi
    [ "$(file_state "$tmp/field.hds")" = "$before" ] ||
      fail "header byte $offset, $value: the file was changed"
  done
done
say "header fields: $nr_tried tried, $nr_served could be served"

# ---- Names

mkdir "$tmp/a dir"
cp "$image" "$tmp/a dir/it's=a disk.hds"
start_nbdkit file="$tmp/a dir/it's=a disk.hds"
nbdinfo --size "$uri" > /dev/null
stop_nbdkit
start_nbdkit "$image" || fail "file= cannot be left out"
stop_nbdkit
cd "$tmp"
start_nbdkit file=image.hds || fail "a relative name"
qemu-io -f raw -c 'write 0 1k' "$uri" > /dev/null
stop_nbdkit
cd /

# ---- About the plugin

run_nbdkit --dump-plugin "$PLUGIN" > "$tmp/dump"
grep '^plugin_feature=' "$tmp/dump" || fail "no plugin_feature= lines"
grep -q '^name=ploop$' "$tmp/dump" || fail "--dump-plugin: no name"
grep -q '^magic_config_key=file$' "$tmp/dump" || fail "no magic key"
grep -q '^thread_model=parallel$' "$tmp/dump" || fail "not parallel"
grep -q '^errno_is_preserved=1$' "$tmp/dump" || fail "errno is not preserved"
run_nbdkit "$PLUGIN" --help > "$tmp/help"
grep -q 'file=' "$tmp/help" || fail "--help does not show file="
run_nbdkit "$PLUGIN" --version | grep -q ploop || fail "--version"
start_nbdkit -D ploop.requests=1 -D ploop.metadata=1 -v file="$image"
qemu-io -f raw -c 'write 0 1k' -c flush "$uri" > /dev/null
stop_nbdkit
grep -q 'write.*1024' "$nbdkit_log" || fail "-D ploop.requests=1 says nothing"

# ---- No space

small=$tmp/small
mkdir "$small"
if [ -z "${IN_OWN_NAMESPACE:-}" ] ||
   ! mount -t tmpfs -o size=8m none "$small"; then
  say "cannot mount here: a full disk is not tried"
  say "passed"
  exit 0
fi
cleanup_fn umount "$small"
file=$small/full.hds
nr=128

# pattern I: of the I-th 64 KiB
pattern () { echo $((1 + $1 % 250)); }

# expect_content WHAT: all that was answered, and zeros elsewhere.
expect_content ()
{
  local i args=()
  for ((i = 0; i < nr; i++)); do
    args+=(-c "read -P ${has[i]} $((i * 65536)) 64k")
  done
  qemu-io -r -f raw "${args[@]}" "$uri" > "$tmp/io.log" 2>&1 ||
    { grep -i fail "$tmp/io.log"; fail "$1: wrong, or cannot be read"; }
}

# write_all_missing: try each 64 KiB that was not written yet, one by one, so
# that each has an answer of its own.  Sets nr_refused.
write_all_missing ()
{
  local i args=() order=() line k=0
  for ((i = 0; i < nr; i++)); do
    if [ "${has[i]}" = 0 ]; then
      args+=(-c "write $1 -P $(pattern $i) $((i * 65536)) 64k")
      order+=("$i")
    fi
  done
  # Without -t writeback qemu-io sends FUA with each write.
  qemu-io -t writeback -f raw "${args[@]}" "$uri" > "$tmp/io.log" 2>&1 || true
  nr_refused=0
  while read -r line; do
    case $line in
      "wrote 65536/65536"*)
        has[${order[k]}]=$(pattern "${order[k]}"); k=$((k + 1)) ;;
      *"No space left on device"*)
        nr_refused=$((nr_refused + 1)); k=$((k + 1)) ;;
      *"failed"*) fail "not answered as ENOSPC: $line" ;;
    esac
  done < "$tmp/io.log"
  [ $k -eq ${#order[@]} ] ||
    { cat "$tmp/io.log"; fail "$k of ${#order[@]} writes were answered"; }
}

nr_ways=0
for flags in '' -f; do
  nr_ways=$((nr_ways + 1))
  chosen $nr_ways || continue
  say "a full disk${flags:+, with FUA}"
  rm -f "$file"
  "$PLOOP_IMG" create -q --cluster-size=64K "$file" 16M
  head -c 5M /dev/zero > "$small/filler"
  has=()
  for ((i = 0; i < nr; i++)); do has[i]=0; done
  start_nbdkit file="$file"
  write_all_missing "$flags"
  first=$nr_refused
  [ "$first" -gt 0 ] || fail "the disk did not get full"
  [ "$first" -lt $nr ] || fail "not one cluster could be written"
  expect_content "a full disk"
  write_all_missing "$flags"
  [ "$nr_refused" -le "$first" ] || fail "it gets worse"
  # Where there is a cluster already no space is needed.
  qemu-io -f raw -c "write -P ${has[0]} 0 64k" -c flush "$uri" > "$tmp/io.log"
  expect_content "a full disk, tried again"

  # Half of the space comes back, with the server running.
  truncate -s 4M "$small/filler"
  write_all_missing "$flags"
  [ "$nr_refused" -lt "$first" ] || fail "does not notice that there is space"
  say "  $first refused at first, $nr_refused when 1 MiB was freed"
  expect_content "1 MiB was freed"
  stop_nbdkit
  [ "$(in_use "$file")" = 00000000 ] || fail "still marked in use"
  qemu-img check -f parallels "$file" > /dev/null || fail "qemu-img check"
  "$PLOOP_IMG" check "$file" > /dev/null || fail "ploop-img check: $?"

  # A server that starts on a full disk.
  start_nbdkit file="$file"
  expect_content "reopened"
  write_all_missing "$flags"
  rm "$small/filler"
  write_all_missing "$flags"
  expect_content "all space was freed"
  say "  $nr_refused refused when all was freed"
  [ "$nr_refused" -eq 0 ] || [ "$(stat -f -c %f "$small")" -lt 100 ] ||
    fail "refused, and there is space"
  stop_nbdkit
  qemu-img check -f parallels "$file" > /dev/null || fail "qemu-img check"
  "$PLOOP_IMG" check "$file" > /dev/null || fail "ploop-img check: $?"
  start_nbdkit -r file="$file"
  expect_content "at the end"
  stop_nbdkit
done
say "passed"
