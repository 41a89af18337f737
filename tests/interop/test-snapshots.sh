#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that taking, deleting, returning to and merging snapshots leaves the disk, and
# each snapshot that stays, what they were: on disks that are written to in between,
# with trees, raw bases and both versions; that ploop makes of the same disk the same,
# and goes on with ours; and that what cannot be done is refused with nothing changed.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires qemu-img qemu-io nbdcopy cmp ploop awk xmllint
unpack_corpus
img=$PLOOP_IMG

# ---- A disk, and what it and its snapshots must contain: $tmp/want/{GUID or top}

disk=$tmp/disk
want=$tmp/want

# new_disk VERSION CLUSTER_SIZE SIZE: by ploop-img, with a descriptor as ploop's.
new_disk ()
{
  local sectors=$((${3%K} * 2)) cluster
  cluster=$((${2%K} * 2))
  rm -rf "$disk" "$want"
  mkdir -p "$disk" "$want"
  "$img" create -q --version="$1" --cluster-size="$2" "$disk/root.hds" "$3"
  cat > "$disk/DiskDescriptor.xml" <<XML
<?xml version="1.0"?>
<Parallels_disk_image>
  <Disk_Parameters>
    <Disk_size>$sectors</Disk_size>
    <Cylinders>80</Cylinders>
    <Heads>16</Heads>
    <Sectors>32</Sectors>
    <Padding>0</Padding>
  </Disk_Parameters>
  <StorageData>
    <Storage>
      <Start>0</Start>
      <End>$sectors</End>
      <Blocksize>$cluster</Blocksize>
      <Image>
        <GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>
        <Type>Compressed</Type>
        <File>root.hds</File>
      </Image>
    </Storage>
  </StorageData>
  <Snapshots>
    <TopGUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</TopGUID>
    <Shot>
      <GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>
      <ParentGUID>{00000000-0000-0000-0000-000000000000}</ParentGUID>
    </Shot>
  </Snapshots>
</Parallels_disk_image>
XML
  truncate -s "$3" "$want/top"
}

# change N: N random writes, zeros and trims, to the disk and to what is wanted.
change ()
{
  local i size at length args=()
  size=$(stat -c %s "$want/top")
  for ((i = 0; i < $1; i++)); do
    at=$(((RANDOM * 32768 + RANDOM) % (size / 512) * 512))
    length=$(((RANDOM % 500 + 1) * 512))
    [ $((at + length)) -le "$size" ] || length=$((size - at))
    # The first one is data.
    case $((i == 0 ? 2 : RANDOM % 6)) in
      0) args+=("write -z $at $length") ;;
      1) args+=("write -z -u $at $length") ;;
      *) args+=("write -P $((RANDOM % 255 + 1)) $at $length") ;;
    esac
  done
  start_nbdkit file="$disk" || fail "the disk cannot be served"
  local c cmds=()
  for c in "${args[@]}"; do cmds+=(-c "$c"); done
  qemu-io -t writeback -f raw "${cmds[@]}" "$uri" > "$tmp/io.log" 2>&1 ||
    { cat "$tmp/io.log"; fail "qemu-io"; }
  stop_nbdkit
  qemu-io -f raw "${cmds[@]}" "$want/top" > /dev/null
}

guids ()
{
  find "$want" -name '{*}' -printf '%f\n' | sort
}

# expect_all WHAT: the disk and all its snapshots, no more and no less, are what is
# wanted; every file is named, and clean.
expect_all ()
{
  local guid file
  "$img" compare -q "$disk" "$want/top" || fail "$1: the disk has changed"
  for guid in $(guids); do
    "$img" compare -q --snapshot="$guid" "$disk" "$want/$guid" ||
      fail "$1: the snapshot $guid has changed"
  done
  [ "$(grep -c '<Shot>' "$disk/DiskDescriptor.xml")" -eq $(($(guids | wc -l) + 1)) ] ||
    fail "$1: not as many shots as there must be"
  for file in "$disk"/*; do
    case ${file##*/} in
      DiskDescriptor.xml | DiskDescriptor.xml.lck) continue ;;
    esac
    grep -qF "<File>${file##*/}</File>" "$disk/DiskDescriptor.xml" ||
      fail "$1: ${file##*/} is left over"
    if "$img" info "$file" > /dev/null 2>&1; then
      "$img" check -q "$file" || fail "$1: check $file"
      [ "$(in_use "$file")" = 00000000 ] || fail "$1: ${file##*/} is not closed"
    fi
  done
  xmllint --noout "$disk/DiskDescriptor.xml" || fail "$1: the descriptor"
  run_ploop "$disk" snapshot-list DiskDescriptor.xml > "$tmp/ploop.log" 2>&1 ||
    { cat "$tmp/ploop.log"; fail "$1: ploop does not take the descriptor"; }
}

# take: a snapshot; its GUID is in $guid.
take ()
{
  guid=$("$img" snapshot create --output=json "$@" "$disk" |
    sed -n 's/.*"snapshot" : "\(.*\)".*/\1/p')
  [ ${#guid} -eq 38 ] || fail "no GUID is told"
  cp --sparse=always "$want/top" "$want/$guid"
}

# state: all that must not change when nothing is changed.
state ()
{
  (cd "$disk" && sha256sum -- * | grep -v '\.lck$')
}

# refused TEXT ARG...: exit status 1, TEXT, and nothing changed.
refused ()
{
  local text=$1 before status=0
  shift
  before=$(state)
  "$img" "$@" > "$tmp/log" 2>&1 || status=$?
  [ $status -eq 1 ] || { cat "$tmp/log"; fail "$*: exit status $status, not 1"; }
  grep -q -- "$text" "$tmp/log" || { cat "$tmp/log"; fail "$*: no '$text'"; }
  [ "$(state)" = "$before" ] || fail "$*: refused, but something was changed"
}

# ---- Random disks

random_guid ()
{
  guids | shuf -n 1
}

# step: one random change of the tree.
step ()
{
  local guid before
  what=nothing
  case $((RANDOM % 6)) in
    5)
      # Lower deltas are smaller than the disk from now on.
      what="resize"
      truncate -s +$((RANDOM % 700 + 1))K "$want/top"
      "$img" resize -q "$disk" "$(stat -c %s "$want/top")"
      ;;
    0 | 1)
      take
      what="create"
      ;;
    2)
      guid=$(random_guid)
      [ -n "$guid" ] || return 0
      what="delete $guid"
      if "$img" snapshot delete -q "$disk" "$guid" 2> "$tmp/log"; then
        rm "$want/$guid"
      else
        grep -q 'deltas rest on' "$tmp/log" || { cat "$tmp/log"; fail "$what"; }
      fi
      ;;
    3)
      guid=$(random_guid)
      [ -n "$guid" ] || return 0
      what="switch $guid"
      if [ $((RANDOM % 2)) -eq 0 ]; then
        "$img" snapshot switch -q --discard "$disk" "$guid" || fail "$what"
      else
        before=$("$img" snapshot switch --keep --output=json "$disk" "$guid" |
          sed -n 's/.*"kept" : "\(.*\)".*/\1/p')
        mv "$want/top" "$want/$before"
      fi
      cp --sparse=always "$want/$guid" "$want/top"
      ;;
    4)
      what="merge the top"
      guid=$(awk '/<Shot>/ { shot = 1 } shot && /<GUID>/ { top = /5fbaabe3-/ }
                  shot && top && /<ParentGUID>/ { gsub (/ *<[^>]*>/, ""); print }' \
        "$disk/DiskDescriptor.xml")
      if [ ! -e "$want/$guid" ]; then return 0; fi
      if "$img" merge -q "$disk" 2> "$tmp/log"; then
        rm "$want/$guid"
      else
        grep -q 'too, which cannot be merged' "$tmp/log" ||
          { cat "$tmp/log"; fail "$what"; }
      fi
      ;;
  esac
}

for round in 1 2 3 4; do
  due || continue
  version=$((RANDOM % 2 + 1))
  cluster=$((32 << RANDOM % 4))K
  size=$((2000 + RANDOM % 2000))K
  say "random disk $round: version $version, clusters of $cluster, $size"
  new_disk $version $cluster $size
  change 8
  for ((n = 0; n < 9; n++)); do
    step
    expect_all "$what"
    change 4
  done
  while guid=$(random_guid) && [ -n "$guid" ]; do
    "$img" snapshot delete -q "$disk" "$guid" 2> /dev/null || continue
    rm "$want/$guid"
  done
  expect_all "all deleted"
  [ "$(find "$disk" -name 'root.hds*' | wc -l)" -eq 1 ] || fail "more than one file"
done

say "a raw base"
new_disk 2 64K 3000K
rm "$disk/root.hds"
cp "$want/top" "$disk/root.hds"
sed -i 's/Compressed/Plain/' "$disk/DiskDescriptor.xml"
qemu-io -f raw -c 'write -P 7 100k 1000k' "$disk/root.hds" > /dev/null
cp "$disk/root.hds" "$want/top"
take
change 10
take
change 10
expect_all "two snapshots of a raw base"
"$img" merge -q "$disk"
rm "$want/$guid"
expect_all "the second one merged"
for guid in $(guids); do
  "$img" snapshot delete -q "$disk" "$guid"
  rm "$want/$guid"
done
expect_all "merged into the raw base"
cmp "$disk/root.hds" "$want/top" || fail "the raw base"

say "a chain into its base, some of it in one go"
new_disk 1 128K 4000K
all=()
for ((n = 0; n < 6; n++)); do
  change 6
  take
  all+=("$guid")
done
change 6
"$img" merge -q --snapshot="${all[3]}" --into="${all[1]}" "$disk"
rm "$want/${all[1]}" "$want/${all[2]}"
expect_all "1 to 3 merged"
before=$(state)
"$img" merge --dry-run --all "$disk" > "$tmp/log"
grep -q 'would merge 4 deltas' "$tmp/log" || { cat "$tmp/log"; fail "--dry-run"; }
[ "$(state)" = "$before" ] || fail "--dry-run changed something"
"$img" merge -q --all "$disk"
rm "$want/{"*
expect_all "all merged"

# Names of files are random, and ploop writes the geometry anew.
plain ()
{
  sed 's/root.hds\.{.*}/X/; /<Cylinders>\|<Heads>\|<Sectors>/d' "$1" | tail -n +2
}

say "ploop makes the same"
for way in "snapshot-delete -u" "snapshot-merge -u" "snapshot-merge -A" \
    "snapshot-switch -u"; do
  due || continue
  # Of a disk that ends inside a cluster, ploop loses what is there; and without the
  # kernel it makes no delta of version 2.
  new_disk 1 1024K 9216K
  change 5
  take
  change 5
  take
  middle=$guid
  change 5
  rm -rf "$tmp/theirs"
  cp -r "$disk" "$tmp/theirs"
  case $way in
    *-u) args=("$middle") ;;
    *) args=() ;;
  esac
  # shellcheck disable=SC2086  # two words
  run_ploop "$tmp/theirs" $way ${args[@]+"${args[@]}"} DiskDescriptor.xml \
    > "$tmp/ploop.log" 2>&1 || { cat "$tmp/ploop.log"; fail "ploop $way"; }
  case $way in
    snapshot-delete*) "$img" snapshot delete -q "$disk" "$middle" ;;
    snapshot-switch*) "$img" snapshot switch -q --discard "$disk" "$middle" ;;
    *-A) "$img" merge -q -a "$disk" ;;
    *) "$img" merge -q --snapshot="$middle" "$disk" ;;
  esac
  [ "$way" = "snapshot-switch -u" ] || "$img" compare -q "$tmp/theirs" "$want/top" ||
    fail "ploop $way: not what it must be"
  "$img" compare -q "$disk" "$tmp/theirs" || fail "ploop $way makes another disk"
  diff <(plain "$disk/DiskDescriptor.xml") <(plain "$tmp/theirs/DiskDescriptor.xml") ||
    fail "ploop $way makes another descriptor"
  # And goes on with ours.
  run_ploop "$disk" snapshot DiskDescriptor.xml > "$tmp/ploop.log" 2>&1 ||
    { cat "$tmp/ploop.log"; fail "ploop snapshot after ours"; }
  "$img" compare -q "$disk" "$tmp/theirs" || fail "after ploop's snapshot"
done

say "files without a descriptor"
mkdir "$tmp/files"
truncate -s 2M "$tmp/raw"
qemu-io -f raw -c 'write -P 1 0 1M' "$tmp/raw" > /dev/null
cp "$tmp/raw" "$tmp/files/base.raw"
start_nbdkit file="$tmp/files/base.raw" overlay="$tmp/files/a.hds"
io_both 'write -P 2 500k 1M'
stop_nbdkit
start_nbdkit file="$tmp/files/a.hds" base="$tmp/files/base.raw" \
  overlay="$tmp/files/b.hds" || fail "an overlay on an overlay"
io_both 'write -P 3 100k 1k' 'write -z -u 1000k 64k'
stop_nbdkit
cp -r "$tmp/files" "$tmp/files2"
"$img" merge -q --base="$tmp/files/a.hds" --base="$tmp/files/base.raw" "$tmp/files/b.hds"
start_nbdkit -r file="$tmp/files/a.hds" base="$tmp/files/base.raw"
expect_content "merged into the one below"
stop_nbdkit
cmp "$tmp/files/base.raw" "$tmp/files2/base.raw" || fail "the base was changed"
"$img" merge -q -a --base="$tmp/files2/a.hds" --base="$tmp/files2/base.raw" \
  "$tmp/files2/b.hds"
cmp "$tmp/files2/base.raw" "$tmp/raw" || fail "all merged into a raw base"

# ---- What is refused

say "errors"
new_disk 2 64K 3000K
change 3
take
first=$guid
change 3
other='{01234567-89ab-cdef-0123-456789abcdef}'
refused 'no snapshot has the GUID' snapshot delete "$disk" "$other"
refused 'no snapshot has the GUID' snapshot switch --discard "$disk" "$other"
refused 'no snapshot has the GUID' snapshot delete "$disk" nonsense
refused 'is the disk as it is now' snapshot delete "$disk" \
  '{5FBAABE3-6958-40ff-92a7-860e329aab41}'
refused '--keep.* or lost (--discard)' snapshot switch "$disk" "$first"
refused 'must be one such as' snapshot create --guid=nonsense "$disk"
refused 'another snapshot has' snapshot create --guid="$first" "$disk"
refused 'top delta' snapshot create --guid='{5fbaabe3-6958-40ff-92a7-860e329aab41}' "$disk"
refused 'rests on nothing' merge --snapshot="$first" "$disk"
refused 'does not rest on' merge --snapshot='{5fbaabe3-6958-40ff-92a7-860e329aab41}' \
  --into='{5fbaabe3-6958-40ff-92a7-860e329aab41}' "$disk"
refused 'is no DiskDescriptor.xml' snapshot create "$disk/root.hds"
refused 'is one delta of' merge --base="$disk/root.hds" "$disk"/root.hds.*
refused 'No such file' snapshot create "$disk/nothing"
for n in 1 2; do
  "$img" snapshot switch -q --keep "$disk" "$first"
done
refused 'deltas rest on' snapshot delete "$disk" "$first"
refused 'too, which cannot be merged' merge "$disk"

say "in use"
new_disk 2 64K 3000K
change 3
take
first=$guid
start_nbdkit file="$disk"
refused 'in use' snapshot create "$disk"
refused 'in use' snapshot delete "$disk" "$first"
refused 'in use' snapshot switch --discard "$disk" "$first"
refused 'in use' snapshot mark-temporary "$disk" "$first"
refused 'in use' merge "$disk"
stop_nbdkit
start_nbdkit -r file="$disk" snapshot="$first"
refused 'in use' snapshot delete "$disk" "$first"
stop_nbdkit

say "marks"
before=$(state)
"$img" snapshot mark-temporary -q --dry-run "$disk" "$first"
[ "$(state)" = "$before" ] || fail "mark-temporary --dry-run changed something"
"$img" snapshot mark-temporary -q "$disk" "$first"
grep -q '<Temporary/>' "$disk/DiskDescriptor.xml" || fail "the mark is not there"
"$img" snapshot mark-temporary -q --off "$disk" "$first"
if grep -q '<Temporary/>' "$disk/DiskDescriptor.xml"; then fail "the mark stays"; fi
take --temporary
[ "$(grep -c '<Temporary/>' "$disk/DiskDescriptor.xml")" -eq 1 ] || fail "--temporary"
expect_all "marks"

say "a delta that cannot be read"
new_disk 1 64K 3000K
change 3
take
first=$guid
change 3
poke=$(find "$disk" -name 'root.hds.*')
cp "$poke" "$tmp/good"
printf '\377\377\377\177' | dd of="$poke" bs=1 seek=64 conv=notrunc status=none
refused 'BAT entry' merge "$disk"
refused 'BAT entry' snapshot create "$disk"
"$img" snapshot switch -q --discard "$disk" "$first" || fail "away from a damaged top"
cp "$want/$first" "$want/top"
expect_all "away from a damaged top"

say "a top that was not closed"
change 2
top=$(find "$disk" -name 'root.hds.*')
printf 'Ynot' | dd of="$top" bs=1 seek=44 conv=notrunc status=none
take 2> /dev/null
expect_all "a top that was not closed"

say "changed-block bitmaps go with what is written to"
new_disk 2 64K 3000K
change 5
uuid=0f0e0d0c-1111-2222-3333-444455556666
"$img" bitmap add -q --uuid=$uuid --set "$disk/root.hds"
"$img" bitmap add -q "$disk/root.hds"
"$img" bitmap list "$disk/root.hds" | grep -v "^file:" > "$tmp/bitmaps"
"$img" bitmap dump --uuid=$uuid "$disk/root.hds" > "$tmp/dump"
# tracked FILE: all bitmaps are there.
tracked ()
{
  "$img" bitmap list "$1" | grep -v '^file:' | diff "$tmp/bitmaps" - ||
    fail "${1##*/} does not have the bitmaps"
  "$img" bitmap dump --uuid=$uuid "$1" | diff "$tmp/dump" - || fail "another bitmap"
}
take
"$img" compare -q "$disk" "$want/top" || fail "a snapshot with bitmaps"
tracked "$disk"/root.hds.*
[ "$(in_use "$disk/root.hds")" = 00000000 ] || fail "the snapshot has bitmaps, too"
"$img" merge -q "$disk"
rm "$want/$guid"
tracked "$disk/root.hds"
"$img" compare -q "$disk" "$want/top" || fail "merged with bitmaps"
# As if a snapshot had been cut short behind the descriptor: the lower one has them, too.
take
cp "$disk"/root.hds.* "$tmp/top"
"$img" merge -q --dry-run "$disk"
"$img" bitmap add -q --uuid=$uuid "$disk/root.hds"
"$img" merge -q "$disk" 2> /dev/null || fail "bitmaps in both"
rm "$want/$guid"
tracked "$disk/root.hds"
# But those that only the lower one has are not lost.
take
"$img" bitmap remove -q --all "$disk"/root.hds.*
"$img" bitmap add -q --uuid=$uuid "$disk/root.hds"
refused 'bitmap' merge "$disk"

say "killed"
# Whenever it ends, the disk reads the same, and the same again completes it.
for delay in 0.002 0.005 0.01 0.02 0.04; do
  due || continue
  new_disk 2 64K 30000K
  change 60
  take
  first=$guid
  change 100
  "$img" snapshot delete -q "$disk" "$first" & pid=$!
  sleep $delay
  kill -KILL $pid 2> /dev/null || true
  wait $pid 2> /dev/null || true
  "$img" compare -q "$disk" "$want/top" 2> "$tmp/log" ||
    { cat "$tmp/log"; fail "killed: the disk has changed"; }
  if grep -q "$first" "$disk/DiskDescriptor.xml"; then
    "$img" snapshot delete -q "$disk" "$first" 2> /dev/null ||
      fail "killed: cannot be completed"
  fi
  rm "$want/$first"
  # A file that was to be removed when it was killed is all that may be left.
  find "$disk" -name 'root.hds.*' -delete
  expect_all "killed"
done
say "passed"
