#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that check --repair mends what check finds: images damaged at random, in header,
# BAT and extension, are clean after it, and every sector that could be read before reads
# the same; nothing of a lower delta shows through; the plan is told and the backup has
# what was changed; what cannot be repaired is left alone, byte for byte.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires qemu-img qemu-io cmp perl
img=$PLOOP_IMG
disk=$tmp/disk.hds
unpack_corpus

# damage FILE NR SEED: change NR BAT entries: duplicates, past the end, inside the BAT,
# random.  On standard output, the guest clusters whose entry names nothing now, or shares
# its place: what they read as is no matter.
damage ()
{
  perl -e '
    my ($file, $nr, $seed) = @ARGV;
    srand ($seed);
    open (my $f, "+<", $file) or die;
    binmode ($f);
    my $size = -s $f;
    read ($f, my $header, 64) == 64 or die;
    my ($magic, $type, $heads, $cylinders, $cluster, $entries, $sectors, $in_use,
        $start, $flags, $ext) = unpack ("a16V5Q<V3Q<", $header);
    my $v1 = $magic eq "WithoutFreeSpace";
    my $unit = $v1 ? 1 : $cluster;
    read ($f, my $bytes, 4 * $entries) == 4 * $entries or die;
    my @bat = unpack ("V*", $bytes);
    my @used = grep { $bat[$_] } 0 .. $#bat;
    for (1 .. $nr) {
      my $i = int (rand (4)) ? $used[rand @used] : int (rand ($entries));
      my $kind = int (rand (5));
      $bat[$i] = $kind == 0 ? $bat[$used[rand @used]]
               : $kind == 1 ? int ($size / 512 / $unit) + 1 + int (rand (5)) * ($v1 ? $cluster : 1)
               : $kind == 2 ? 0xffffffff - int (rand (3))
               : $kind == 3 ? ($v1 ? 1 : $start > $cluster ? 1 : 0xfffffff0)
               : int (rand (0xffffffff)) + 1;
    }
    seek ($f, 64, 0);
    print $f pack ("V*", @bat);' "$@"
}

# readable FILE: a reader of our own.  Lines: guest cluster, and the SHA-256 of what is
# there, of each whose entry names a place in the data area; of all that share one.
readable ()
{
  perl -MDigest::SHA=sha256_hex -e '
    my ($file) = @ARGV;
    open (my $f, "<", $file) or die;
    binmode ($f);
    my $size = -s $f;
    read ($f, my $header, 64);
    my ($magic, $type, $heads, $cylinders, $cluster, $entries, $sectors, $in_use,
        $start) = unpack ("a16V5Q<V2", $header);
    my $unit = ($magic eq "WithoutFreeSpace" ? 1 : $cluster) * 512;
    my $first = $start ? $start * 512 : int ((64 + 4 * $entries + 511) / 512) * 512;
    read ($f, my $bytes, 4 * $entries);
    my @bat = unpack ("V*", $bytes);
    for my $i (0 .. $#bat) {
      my $at = $bat[$i] * $unit;
      next if $bat[$i] == 0 || $at < $first || $at >= $size;
      seek ($f, $at, 0);
      my $length = $cluster * 512;
      my $left = $sectors * 512 - $i * $length;
      $length = $left if $left < $length;
      next if $length <= 0;
      my $data = "";
      read ($f, $data, $length);
      $data .= "\0" x ($length - length ($data));
      print "$i ", sha256_hex ($data), "\n";
    }' "$1"
}

# repair STATUS ARG...: check --repair must exit with STATUS; what it says is in $tmp/log.
repair ()
{
  local want=$1 status=0
  shift
  "$img" check "$@" > "$tmp/log" 2>&1 || status=$?
  [ $status -eq "$want" ] ||
    { cat "$tmp/log"; fail "check $*: exit status $status, not $want"; }
}

# expect_mended FILE BEFORE: clean, and what could be read still is.
expect_mended ()
{
  local status=0
  "$img" check "$1" > "$tmp/check.log" || status=$?
  [ $status -eq 0 ] ||
    { cat "$tmp/check.log"; fail "$1: check says $status after it was repaired"; }
  readable "$1" > "$tmp/after"
  grep -vxF -f "$tmp/after" "$2" > "$tmp/lost" || true
  [ ! -s "$tmp/lost" ] || { cat "$tmp/lost"; fail "$1: these clusters have changed"; }
  [ "$(in_use "$1")" = 00000000 ] || [ "$(in_use "$1")" = 312e3276 ] ||
    fail "$1: not closed"
  # qemu from 8.1 on wants a data offset in the header where the format has none, and
  # 10.0 ends in an assertion of its own with some.
  qemu-img check -f parallels "$1" > "$tmp/check.log" 2>&1 ||
    { grep -q 'data_off field has incorrect value' "$tmp/check.log" &&
      grep -q '^1 errors were found' "$tmp/check.log"; } ||
    grep -q 'block/parallels.c:.* Assertion .* failed' "$tmp/check.log" ||
    { cat "$tmp/check.log"; fail "$1: qemu-img check"; }
}

say "random damage"
for ((round = 0; round < 12; round++)); do
  chosen $round || continue
  seed=$((_seed * 100 + round))
  version=$((RANDOM % 2 + 1))
  cluster=$((32 << RANDOM % 3))K
  "$img" create -q --force --version=$version --cluster-size=$cluster "$disk" 6000K
  args=()
  for ((i = 0; i < 25; i++)); do
    args+=(-c "write -P $((RANDOM % 255 + 1)) $((RANDOM % 5900))K $((RANDOM % 90 + 1))K")
  done
  start_nbdkit file="$disk"
  qemu-io -f raw "${args[@]}" "$uri" > /dev/null
  stop_nbdkit
  damage "$disk" $((RANDOM % 8 + 1)) $seed
  [ $((RANDOM % 3)) -ne 0 ] || printf 'Ynot' |
    dd of="$disk" bs=1 seek=44 conv=notrunc status=none
  cp --sparse=always "$disk" "$tmp/damaged.hds"
  readable "$disk" > "$tmp/before"
  before=$(file_state "$disk")
  status=0
  "$img" check -q "$disk" || status=$?
  "$img" check --repair=all --dry-run "$disk" > "$tmp/plan" 2>&1 || true
  [ "$(file_state "$disk")" = "$before" ] || fail "seed $seed: --dry-run changed it"
  rm -f "$disk".backup*
  repair 0 --repair=all "$disk"
  expect_mended "$disk" "$tmp/before"
  # The plan is what was done.
  diff <(grep '^repair: ' "$tmp/plan") <(grep '^repair: ' "$tmp/log") ||
    fail "seed $seed: another plan"
  [ $status -eq 0 ] || grep -q '^repair: ' "$tmp/log" ||
    { cat "$tmp/log"; fail "seed $seed: no plan"; }
  if [ -e "$disk.backup" ]; then
    # Header and BAT, and all that is gone, are in the backup at their places.
    cmp -n $((64 + 6000 / ${cluster%K} * 4)) "$disk.backup" "$tmp/damaged.hds" ||
      fail "seed $seed: the backup"
  else
    [ $status -ne 2 ] || fail "seed $seed: errors repaired without a backup"
  fi
done

say "the corpus"
for image in "$tmp"/corpus/h-corrupt/*; do
  [ -f "$image" ] || continue
  status=0
  "$img" check -q "$image" 2> "$tmp/err" || status=$?
  before=$(file_state "$image")
  case $status in
    0 | 2 | 3)
      readable "$image" > "$tmp/before"
      code=0
      "$img" check --repair=all "$image" > "$tmp/log" 2>&1 || code=$?
      if [ $code -eq 0 ]; then
        expect_mended "$image" "$tmp/before"
      else
        # An implausible header: found, not repaired.
        [ "$(file_state "$image")" = "$before" ] || fail "$image: changed, not repaired"
        say "not repaired: ${image##*/}: $(grep -v '^note' "$tmp/log" | head -n 1)"
      fi
      ;;
    *)
      [ "$(file_state "$image")" = "$before" ] || fail "$image: changed"
      ;;
  esac
done

say "leaks"
"$img" create -q --force --cluster-size=64K "$disk" 4M
qemu-io -f parallels -c 'write -P 1 0 1M' "$disk" > /dev/null
# Entries 3 and 5 go, and something lies behind the end.
for i in 3 5; do
  printf '\0\0\0\0' | dd of="$disk" bs=1 seek=$((64 + 4 * i)) conv=notrunc status=none
done
head -c 200000 /dev/zero | tr '\0' x >> "$disk"
readable "$disk" > "$tmp/before"
repair 0 --repair=leaks "$disk"
grep -q 'host clusters that nothing names' "$tmp/log" || { cat "$tmp/log"; fail "leaks"; }
expect_mended "$disk" "$tmp/before"
[ ! -e "$disk.backup.2" ] || fail "a backup for leaks"
repair 0 --repair=leaks "$disk"
if grep -q '^repair: ' "$tmp/log"; then fail "there is nothing to repair"; fi

say "leaks stay while there are errors"
printf '\0\0\0\0' | dd of="$disk" bs=1 seek=$((64 + 4 * 7)) conv=notrunc status=none
printf '\377\0\0\377' | dd of="$disk" bs=1 seek=$((64 + 4 * 8)) conv=notrunc status=none
before=$(file_state "$disk")
repair 2 --repair=leaks "$disk"
grep -q 'left alone: there are errors' "$tmp/log" || { cat "$tmp/log"; fail "errors first"; }
[ "$(file_state "$disk")" = "$before" ] || fail "leaks repaired in spite of errors"
# What clusters 7 and 8 had is in the backup.
rm -f "$disk".backup*
cp "$disk" "$tmp/damaged.hds"
repair 0 --repair=all "$disk"
[ -e "$disk.backup" ] || fail "no backup"
cmp <(tr -d '\0' < "$disk.backup" | tail -c +40 | wc -c) <(echo 0) > /dev/null &&
  fail "the backup does not have what nothing named"
perl -e 'my ($a, $b) = @ARGV;
  open (my $f, "<", $a) or die; open (my $g, "<", $b) or die;
  while (read ($f, my $x, 4096)) {
    read ($g, my $y, 4096);
    die "byte ", tell ($f) - 4096, " differs\n" if $x =~ /[^\0]/ && $x ne $y;
  }' "$disk.backup" "$tmp/damaged.hds" || fail "the backup is not what was there"

say "a repair taken back"
# As the manual says.  Clusters are of 63 sectors: blocks of the file system lie across
# them.  What nothing names is between two that something does.
perl -e '
  print pack ("a16V5Q<V3Q<", "WithoutFreeSpace", 2, 16, 16, 63, 5, 5 * 63, 0, 63, 0, 0),
    pack ("V5", 63, 3 * 63, 63, 0xfffffff0, 0), "\0" x (63 * 512 - 84),
    map { $_ x (63 * 512) } qw(a b c d);' > "$disk"
cp "$disk" "$tmp/before.hds"
rm -f "$disk".backup*
command=$(sed -n 's/^C<\(dd [^>]*\)>.*/\1/p' "$abs_top_srcdir/man/ploop-img.pod" |
  grep 'disk\.hds\.backup')
# What is less than a block of the file system cannot be given back: still a leak.
"$img" check -q --repair=all "$disk" || [ $? -eq 3 ] || fail "not repaired"
cmp -s "$disk" "$tmp/before.hds" && fail "nothing was repaired"
truncate -r "$disk.backup" "$disk"
(cd "$tmp" && $command status=none)
cmp "$disk" "$tmp/before.hds" || fail "the repair was not taken back"

say "bitmaps that are not to be trusted"
# bitmap IN_USE SECTOR...: an image whose extension is in its second cluster, with a bitmap
# for each SECTOR where its bits are.
bitmap ()
{
  perl -MDigest::MD5=md5 -e '
    my ($in_use, @sectors) = @ARGV;
    my $features = "";
    for my $i (0 .. $#sectors) {
      $features .= pack ("Q<2V2", 0x20385FAE252CB34A, 0, 40, 0)
        . pack ("Q<a16V2Q<", 640, chr (65 + $i) x 16, 1, 1, $sectors[$i]);
    }
    $features .= "\0" x (64 * 512 - 24 - length ($features));
    print pack ("a16V5Q<V3Q<", "WithouFreSpacExt", 2, 16, 16, 64, 10, 640, hex ($in_use), 64,
                0, 64), pack ("V10", 4, (0) x 9), "\0" x (64 * 512 - 104),
      pack ("Q<", 0xAB234CEF23DCEA87), md5 ($features), $features, "b" x (2 * 64 * 512),
      "d" x (64 * 512);' "$@" > "$disk"
}
rm -f "$disk".backup*
bitmap 312e3276 128 192
repair 0 --repair=all "$disk"
[ "$(in_use "$disk")" = 312e3276 ] || fail "sound bitmaps are dropped"
bitmap 312e3276 128 128
repair 0 --repair=all "$disk"
grep -q 'the extension.* is dropped' "$tmp/log" || { cat "$tmp/log"; fail "two in one place"; }
# The plan says so of stale ones, too.
bitmap 746F6E59 128 192
repair 3 --repair=all --dry-run "$disk"
grep -q 'the extension is dropped: the image was not closed' "$tmp/log" ||
  { cat "$tmp/log"; fail "stale bitmaps go untold"; }
# A cluster of zeros is in no bitmap.
bitmap 312e3276 128 192
printf '\377\377\377\377' | dd of="$disk" bs=1 seek=$((64 + 4 * 7)) conv=notrunc status=none
repair 0 --repair=all "$disk"
[ "$(in_use "$disk")" = 00000000 ] || { cat "$tmp/log"; fail "bitmaps that lie are kept"; }
rm -f "$disk".backup*

say "where the backup goes"
for i in 1 2 3; do
  cp "$tmp/damaged.hds" "$disk"
  repair 0 --repair=all "$disk"
done
[ -e "$disk.backup.3" ] || fail "a backup was replaced"
cp "$tmp/damaged.hds" "$disk"
before=$(file_state "$disk")
repair 1 --repair=all --backup-file="$disk.backup" "$disk"
grep -q 'backup cannot be created' "$tmp/log" || { cat "$tmp/log"; fail "unclear"; }
[ "$(file_state "$disk")" = "$before" ] || fail "repaired without the backup"
repair 0 --repair=all --backup-file="$tmp/elsewhere" "$disk"
[ -s "$tmp/elsewhere" ] || fail "--backup-file"
rm -f "$disk".backup*
cp "$tmp/damaged.hds" "$disk"
repair 0 --repair=all --no-backup "$disk"
[ ! -e "$disk.backup" ] || fail "--no-backup"

say "nothing shows through"
base=$tmp/base.hds
top=$tmp/top.hds
"$img" create -q --force --version=1 --cluster-size=64K "$base" 4M
qemu-io -f parallels -c 'write -P 1 0 4M' "$base" > /dev/null
"$img" create -q --force --version=1 --cluster-size=64K "$top" 4M
qemu-io -f parallels -c 'write -P 2 0 2M' "$top" > /dev/null
for i in 2 9; do
  printf '\377\377\377\377' |
    dd of="$top" bs=1 seek=$((64 + 4 * i)) conv=notrunc status=none
done
repair 0 --repair=all "$top"
start_nbdkit -r file="$top" base="$base"
qemu-io -r -f raw -c 'read -P 0 128K 64K' -c 'read -P 0 576K 64K' -c 'read -P 2 0 128K' \
  -c 'read -P 2 192K 384K' -c 'read -P 1 2M 2M' "$uri" > "$tmp/io.log" 2>&1 || true
if grep -q 'Pattern verification failed' "$tmp/io.log"; then
  cat "$tmp/io.log"
  fail "the lower delta shows through"
fi
stop_nbdkit

say "behind the end of the disk"
"$img" create -q --force --cluster-size=64K "$disk" 4M
qemu-io -f parallels -c 'write -P 1 3M 64K' -c 'write -P 0 3200K 64K' "$disk" > /dev/null
# 3 MiB, of which the BAT knows more.
printf '\0\30\0\0' | dd of="$disk" bs=1 seek=36 conv=notrunc status=none
repair 3 --repair=all "$disk"
grep -q 'left alone: BAT entry 48, behind the end' "$tmp/log" ||
  { cat "$tmp/log"; fail "data behind the end"; }
printf '\0\40\0\0' | dd of="$disk" bs=1 seek=36 conv=notrunc status=none
qemu-io -r -f parallels -c 'read -P 1 3M 64K' "$disk" | grep -q failed &&
  fail "data behind the end is gone"

say "whole disks"
mkdir "$tmp/hdd"
"$img" create -q --cluster-size=64K "$tmp/hdd/root.hds" 4M
cat > "$tmp/hdd/DiskDescriptor.xml" <<'XML'
<Parallels_disk_image><Disk_Parameters><Disk_size>8192</Disk_size></Disk_Parameters>
<StorageData><Storage><Start>0</Start><End>8192</End><Blocksize>128</Blocksize><Image>
<GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><Type>Compressed</Type>
<File>root.hds</File></Image></Storage></StorageData></Parallels_disk_image>
XML
qemu-io -f parallels -c 'write -P 1 0 1M' "$tmp/hdd/root.hds" > /dev/null
"$img" snapshot create -q "$tmp/hdd"
for file in "$tmp"/hdd/root.hds*; do
  printf '\377\377\377\377' | dd of="$file" bs=1 seek=80 conv=notrunc status=none
done
repair 0 --repair=all "$tmp/hdd"
[ "$(grep -c '^backup: ' "$tmp/log")" -eq 2 ] || { cat "$tmp/log"; fail "two backups"; }
"$img" check -q "$tmp/hdd" || fail "the disk is not clean"

say "bitmaps of another disk"
"$img" create -q --force --cluster-size=64K "$disk" 4M
qemu-io -f parallels -c 'write -P 1 0 1M' "$disk" > /dev/null
"$img" bitmap add -q "$disk"
# 2 MiB and 64 KiB less.
printf '\200\37\0\0' | dd of="$disk" bs=1 seek=36 conv=notrunc status=none
readable "$disk" > "$tmp/before"
repair 2 "$disk"
repair 0 --repair=all "$disk"
grep -q 'extension.*is dropped' "$tmp/log" || { cat "$tmp/log"; fail "bitmaps"; }
expect_mended "$disk" "$tmp/before"

say "errors"
repair 1 --repair=some "$disk"
repair 1 --backup "$disk"
repair 1 --dry-run "$disk"
repair 1 --repair=all --backup --no-backup "$disk"
repair 1 --repair=all --allow-outside "$disk"
grep -q 'allow-outside is only' "$tmp/log" || { cat "$tmp/log"; fail "--allow-outside"; }
start_nbdkit file="$disk"
repair 1 --repair=all "$disk"
grep -q 'in use' "$tmp/log" || fail "a served image"
stop_nbdkit
"$img" check --repair=all --output=json "$disk" > "$tmp/json" || true
perl -MJSON::PP -0777 -ne 'my $o = decode_json ($_); die unless $o->{repair}{steps};' \
  "$tmp/json" || { cat "$tmp/json"; fail "JSON"; }
say "passed"
