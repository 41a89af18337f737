#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that a disk that gets another size reads as before as far as it goes, and as
# zeros behind that; that the image is one that check, ploop and qemu take, with the
# header that ploop grow gives it; that nothing is lost unasked; and that what cannot be
# done is refused with nothing changed.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires qemu-img qemu-io nbdcopy cmp ploop
img=$PLOOP_IMG
disk=$tmp/disk.hds

# fill FILE FORMAT N: N random writes; the same to $tmp/want.
fill ()
{
  local i size at length args=()
  size=$(stat -c %s "$tmp/want")
  for ((i = 0; i < $3; i++)); do
    at=$(((RANDOM * 32768 + RANDOM) % (size / 512) * 512))
    length=$(((RANDOM % 200 + 1) * 512))
    [ $((at + length)) -le "$size" ] || length=$((size - at))
    args+=(-c "write -P $((RANDOM % 255 + 1)) $at $length")
  done
  start_nbdkit file="$1"
  qemu-io -t writeback -f raw "${args[@]}" "$uri" > "$tmp/io.log" 2>&1 ||
    { cat "$tmp/io.log"; fail "qemu-io"; }
  stop_nbdkit
  qemu-io -f raw "${args[@]}" "$tmp/want" > /dev/null
}

# expect WHAT FILE [STATUS]: it reads as $tmp/want, has its size, and is sound; or what
# check says of it is STATUS.
expect ()
{
  local status=0
  "$img" compare -q --strict "$2" "$tmp/want" || fail "$1: the content"
  if [ -d "$2" ]; then return; fi
  "$img" check "$2" > "$tmp/log" || status=$?
  [ $status -eq "${3:-0}" ] || [ $status -eq 0 ] ||
    { cat "$tmp/log"; fail "$1: check says $status"; }
  [ "$(in_use "$2")" = 00000000 ] || fail "$1: not closed"
  qemu-img check -q -f parallels "$2" > "$tmp/log" 2>&1 ||
    { cat "$tmp/log"; fail "$1: qemu-img check"; }
}

# refused TEXT ARG...: exit status 1, TEXT, and nothing changed.
refused ()
{
  local text=$1 before status=0
  shift
  before=$(find "$tmp" -name '*.hds' -o -name '*.xml' | sort | xargs sha256sum)
  "$img" resize "$@" > "$tmp/log" 2>&1 || status=$?
  [ $status -eq 1 ] || { cat "$tmp/log"; fail "$*: exit status $status, not 1"; }
  grep -q -- "$text" "$tmp/log" || { cat "$tmp/log"; fail "$*: no '$text'"; }
  [ "$(find "$tmp" -name '*.hds' -o -name '*.xml' | sort | xargs sha256sum)" = \
    "$before" ] || fail "$*: refused, but something was changed"
}

# It fills holes, so it gets a copy.
ploop_takes ()
{
  cp --sparse=always "$1" "$tmp/copy.hds"
  ploop_check_delta "$tmp/copy.hds"
}

# ---- Larger and smaller

# At 32 KiB a cluster, a BAT of one cluster is for 256 MiB.
for round in 1 2 3 4 5 6; do
  due || continue
  version=$((RANDOM % 2 + 1))
  cluster=$((32 << RANDOM % 3))
  size=$((RANDOM % 20000 + 1000))
  say "round $round: version $version, clusters of $cluster KiB, $size sectors"
  "$img" create -q --force --version=$version --cluster-size=${cluster}K "$disk" \
    $((size * 512))
  rm -f "$tmp/want"
  truncate -s $((size * 512)) "$tmp/want"
  fill "$disk" parallels 20
  for larger in 100 30000 600000 5000000 40000000; do
    due || continue
    size=$((size + RANDOM % larger + 1))
    "$img" resize -q "$disk" $((size * 512))
    truncate -s $((size * 512)) "$tmp/want"
    expect "to $size sectors" "$disk"
    ploop_takes "$disk"
    fill "$disk" parallels 10
  done
  for part in 3 4 2; do
    size=$((size * part / 5))
    "$img" resize -q --discard "$disk" $((size * 512))
    truncate -s $((size * 512)) "$tmp/want"
    expect "down to $size sectors" "$disk"
    ploop_takes "$disk"
    # And what was lost stays lost.
    if chosen $part; then
      size=$((size * 4 / 3))
      "$img" resize -q "$disk" $((size * 512))
      truncate -s $((size * 512)) "$tmp/want"
      expect "up to $size sectors" "$disk"
    fi
    fill "$disk" parallels 10
  done
done

say "what other programs leave behind the end of the disk does not come to light"
"$img" create -q --force --cluster-size=1M "$disk" 2560K
rm "$tmp/want"
truncate -s 2560K "$tmp/want"
qemu-io -f parallels -c 'write -P 5 2M 512K' "$disk" > /dev/null
qemu-io -f raw -c 'write -P 5 2M 512K' "$tmp/want" > /dev/null
# The rest of that cluster, which is the first in the file.
head -c 512K /dev/zero | tr '\0' x |
  dd of="$disk" bs=512K seek=3 conv=notrunc status=none
"$img" resize -q "$disk" 3M
truncate -s 3M "$tmp/want"
expect "garbage behind the end" "$disk"

say "old images of qemu: the BAT is not padded, or by sectors"
# header VERSION_AND_DATA_SECTORS...: as qemu 1.x could have read it.
for start in 0 2 3; do
  due || continue
  perl -e '
    my ($file, $start) = @ARGV;
    my ($nr, $cluster, $used) = (40, 16, 30);
    my $first = $start || 1;
    open (my $f, ">", $file) or die;
    print $f pack ("a16V5 Q<V3Q<", "WithoutFreeSpace", 2, 16, 80, $cluster, $nr,
                   $nr * $cluster, 0, $start, 0, 0);
    print $f pack ("V*", map { $first + $_ * 7 % $used * $cluster } 0 .. $used - 1);
    print $f "\0" x 40;
    for my $i (0 .. $used - 1) {
      seek ($f, ($first + $i * 7 % $used * $cluster) * 512, 0);
      print $f chr (65 + $i) x ($cluster * 512);
    }' "$disk" $start
  "$img" convert -q --format=raw --force "$disk" "$tmp/want"
  for size in 4M 400K 33M; do
    "$img" resize -q --discard "$disk" $size
    truncate -s $size "$tmp/want"
    # What is free and does not begin with a block of the file system is no hole.
    expect "first data offset $start, to $size" "$disk" 3
  done
done

say "as ploop grow"
for size in 50M 1000M 300G 1900G; do
  due || continue
  "$img" create -q --force --version=1 "$disk" 10M
  qemu-io -f parallels -c 'write -P 1 0 3M' -c 'write -P 2 5M 3M' "$disk" > /dev/null
  rm -rf "$tmp/theirs"
  mkdir "$tmp/theirs"
  cp "$disk" "$tmp/theirs/disk.hds"
  run_ploop "$tmp/theirs" grow -s $size disk.hds > "$tmp/ploop.log" 2>&1 ||
    { cat "$tmp/ploop.log"; fail "ploop grow"; }
  "$img" resize -q "$disk" $size
  "$img" compare -q --strict "$disk" "$tmp/theirs/disk.hds" || fail "ploop grow: content"
  # But for the flag that says that it is empty, which ploop leaves.
  cmp <(head -c 52 "$disk") <(head -c 52 "$tmp/theirs/disk.hds") ||
    fail "ploop grow to $size makes another header"
done

say "no holes"
"$img" create -q --force --version=1 --cluster-size=64K "$disk" 10M
qemu-io -f parallels -c 'write -P 1 0 10M' "$disk" > /dev/null
"$img" resize -q --no-holes "$disk" 5G
"$img" check "$disk" > "$tmp/log"
if grep -q 'has holes' "$tmp/log"; then fail "--no-holes makes holes"; fi

# ---- Disks with a descriptor

say "a chain"
mkdir "$tmp/chain"
cat > "$tmp/chain/DiskDescriptor.xml" <<'XML'
<?xml version="1.0"?>
<Parallels_disk_image>
  <Disk_Parameters>
    <Disk_size>8192</Disk_size>
  </Disk_Parameters>
  <StorageData>
    <Storage>
      <Start>0</Start>
      <End>8192</End>
      <Blocksize>128</Blocksize>
      <Image>
        <GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>
        <Type>Compressed</Type>
        <File>root.hds</File>
      </Image>
    </Storage>
  </StorageData>
</Parallels_disk_image>
XML
"$img" create -q --cluster-size=64K "$tmp/chain/root.hds" 4M
rm "$tmp/want"
truncate -s 4M "$tmp/want"
fill "$tmp/chain" parallels 10
for size in 5M 9000K 100M; do
  cp --sparse=always "$tmp/want" "$tmp/then"
  "$img" snapshot create -q "$tmp/chain"
  "$img" resize -q "$tmp/chain" $size
  truncate -s $size "$tmp/want"
  expect "a chain" "$tmp/chain"
  grep -q "<Disk_size>$(($(stat -c %s "$tmp/want") / 512))</Disk_size>" \
    "$tmp/chain/DiskDescriptor.xml" || fail "the descriptor's size"
  fill "$tmp/chain" parallels 10
done
refused 'below the top, has a disk of' "$tmp/chain" 4M
refused 'below the top, has a disk of' --discard "$tmp/chain" 4M
refused 'is one delta of' "$tmp/chain/root.hds" 400M
# Merging makes the lower delta as large.
"$img" merge -q "$tmp/chain"
expect "merged" "$tmp/chain"
"$img" merge -q --all "$tmp/chain"
expect "merged into the base" "$tmp/chain"
expect "the base by itself" "$tmp/chain/root.hds"
"$img" resize -q --discard "$tmp/chain" 3M
truncate -s 3M "$tmp/want"
expect "smaller" "$tmp/chain"

say "a raw disk"
mv "$tmp/chain" "$tmp/raw"
cp "$tmp/want" "$tmp/raw/root.hds"
sed -i 's/Compressed/Plain/' "$tmp/raw/DiskDescriptor.xml"
"$img" resize -q "$tmp/raw" 7M
truncate -s 7M "$tmp/want"
cmp "$tmp/want" "$tmp/raw/root.hds" || fail "a raw disk"
qemu-io -f raw -c 'write -P 1 6M 4K' "$tmp/raw/root.hds" > /dev/null
refused 'there is data' "$tmp/raw" 6M
refused 'byte 6291456 of the disk' --shrink "$tmp/raw" 6M
qemu-io -f raw -c 'write -P 0 6M 4K' "$tmp/raw/root.hds" > /dev/null
"$img" resize -q --shrink "$tmp/raw" 6M
truncate -s 6M "$tmp/want"
cmp "$tmp/want" "$tmp/raw/root.hds" || fail "a raw disk, smaller"

# ---- What is refused

say "errors"
"$img" create -q --force --cluster-size=64K "$disk" 4M
qemu-io -f parallels -c 'write -P 0 3M 64K' -c 'write -P 1 3200K 64K' "$disk" > /dev/null
refused 'cluster 48 of the disk' "$disk" 3M
refused 'byte 3276800 of the disk' --shrink "$disk" 3M
refused 'is not zero' --shrink "$disk" 3205K
refused 'is not zero' "$disk" 3205K
refused 'disk size cannot become' "$disk" 100P
refused "'x'" "$disk" x
refused 'multiple of 512' "$disk" 1000
refused 'cannot become 0' "$disk" 0
refused 'No such file' "$tmp/nothing" 4M
"$img" resize --dry-run "$disk" 1T | grep -q 'would have 1 TiB' || fail "--dry-run"
"$img" resize --dry-run --discard "$disk" 1M | grep -q 'dropped: 2 clusters' ||
  fail "--dry-run of a smaller one"
refused 'is not zero' --shrink --dry-run "$disk" 3M
qemu-io -f parallels -c 'write -P 0 3200K 64K' "$disk" > /dev/null
"$img" resize -q --shrink "$disk" 3M
"$img" create -q --force --version=1 "$disk" 4M
refused 'disk size cannot become' "$disk" 2048G
start_nbdkit file="$disk"
refused 'in use' "$disk" 5M
stop_nbdkit
cp "$disk" "$tmp/bad.hds"
printf '\377\377\377\377' | dd of="$tmp/bad.hds" bs=1 seek=64 conv=notrunc status=none
refused 'BAT entry 0' "$tmp/bad.hds" 5M
unpack_corpus
for image in "$tmp"/corpus/g-*/*.hds "$tmp"/corpus/g-*.hds; do
  [ -e "$image" ] || continue
  [ "$(in_use "$image")" = 312e3276 ] || continue
  refused 'changed-block bitmaps' "$image" 100G
done

say "an image that was not closed"
"$img" create -q --force --cluster-size=64K "$disk" 4M
qemu-io -f parallels -c 'write -P 1 1M 64K' "$disk" > /dev/null
"$img" convert -q --format=raw --force "$disk" "$tmp/want"
printf 'Ynot' | dd of="$disk" bs=1 seek=44 conv=notrunc status=none
# And the entry of a cluster that never came to be.
printf '\100\0\0\0' | dd of="$disk" bs=1 seek=$((64 + 4 * 3)) conv=notrunc status=none
"$img" resize -q "$disk" 2G 2> /dev/null
truncate -s 2G "$tmp/want"
expect "not closed" "$disk"

say "killed"
for delay in 0.002 0.004 0.008 0.016 0.03; do
  due || continue
  "$img" create -q --force --cluster-size=32K "$disk" 40M
  qemu-io -f parallels -c 'write -P 1 0 40M' "$disk" > /dev/null
  "$img" convert -q --format=raw --force "$disk" "$tmp/want"
  "$img" resize -q "$disk" 100G & pid=$!
  sleep $delay
  kill -KILL $pid 2> /dev/null || true
  wait $pid 2> /dev/null || true
  "$img" compare -q "$disk" "$tmp/want" 2> "$tmp/log" ||
    { cat "$tmp/log"; fail "killed: content"; }
  "$img" resize -q "$disk" 100G 2> /dev/null || fail "killed: not again"
  truncate -s 100G "$tmp/want"
  expect "killed" "$disk"
done
say "passed"
