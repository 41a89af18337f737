#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that what changes a disk loses nothing where its descriptor, or the names of its
# files, are not as a program would make them: files that are links, or have several
# names, or lie deeper; a descriptor that names one file twice, or itself; one that does
# not name its top; raw disks that are larger than clusters allow; chains that are longer
# than can be.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires qemu-io cmp awk
img=$PLOOP_IMG

disk=$tmp/disk
top='{5fbaabe3-6958-40ff-92a7-860e329aab41}'
one='{11111111-1111-1111-1111-111111111111}'
none='{00000000-0000-0000-0000-000000000000}'
two='{22222222-2222-2222-2222-222222222222}'

# new_disk: of 1 MiB, with data, and $tmp/raw that has the same.
new_disk ()
{
  rm -rf "$disk" "$tmp/raw"
  mkdir "$disk"
  "$img" create -q --cluster-size=32K "$disk/root.hds" 1M
  cat > "$disk/DiskDescriptor.xml" <<XML
<?xml version="1.0"?>
<Parallels_disk_image>
  <Disk_Parameters><Disk_size>2048</Disk_size></Disk_Parameters>
  <StorageData>
    <Storage>
      <Start>0</Start><End>2048</End><Blocksize>64</Blocksize>
      <Image><GUID>$top</GUID><Type>Compressed</Type><File>root.hds</File></Image>
    </Storage>
  </StorageData>
  <Snapshots>
    <TopGUID>$top</TopGUID>
    <Shot>
      <GUID>$top</GUID>
      <ParentGUID>$none</ParentGUID>
    </Shot>
  </Snapshots>
</Parallels_disk_image>
XML
  truncate -s 1M "$tmp/raw"
  change 1
}

# change PATTERN: write to the disk and to what is wanted.
change ()
{
  start_nbdkit file="$disk"
  io_both "write -P $1 96k 200k"
  stop_nbdkit
}

# add GUID PARENT FILE: a delta that the descriptor names.
add ()
{
  sed -i "s#</Storage>#<Image><GUID>$1</GUID><Type>Compressed</Type><File>$3</File></Image></Storage>#
          s#</Snapshots>#<Shot><GUID>$1</GUID><ParentGUID>$2</ParentGUID></Shot></Snapshots>#" \
    "$disk/DiskDescriptor.xml"
}

# expect WHAT [SNAPSHOT]: the disk, or the snapshot, is what is wanted.
expect ()
{
  "$img" compare -q ${2:+--snapshot="$2"} "$disk" "$tmp/raw" || fail "$1"
}

# state: all that must not change when nothing is changed.
state ()
{
  (cd "$disk" && find . -type f ! -name '*.lck' -exec sha256sum {} + | sort -k 2)
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

say "a delta by another name"
new_disk
"$img" snapshot create -q --guid="$one" "$disk"
change 2
delta=$(find "$disk" -name 'root.hds.*')
ln -s root.hds "$disk/soft"
ln "$disk/root.hds" "$disk/hard"
ln "$delta" "$disk/upper"
for name in soft hard upper; do
  refused 'is one delta of' resize --discard "$disk/$name" 512K
done
refused 'is one delta of' merge --base="$disk/hard" "$disk/upper"
refused 'is one delta of' merge --base="$disk/soft" "$delta"
expect "another name"

say "more deltas than a chain can have"
new_disk
bases=()
for ((n = 0; n < 254; n++)); do
  cp "$disk/root.hds" "$tmp/$n.hds"
  bases=(--base="$tmp/$n.hds" "${bases[@]}")
done
before=$(cat "$tmp"/*.hds | sha256sum)
refused 'has 254 bases' merge -a "${bases[@]}" "$disk/root.hds"
[ "$(cat "$tmp"/*.hds | sha256sum)" = "$before" ] || fail "a chain that is too long"
rm "$tmp"/*.hds

say "a base that is a link to a file further down"
new_disk
mkdir "$disk/sub"
mv "$disk/root.hds" "$disk/sub/real.hds"
for link in sub/real.hds "$disk/sub/real.hds"; do
  ln -sf "$link" "$disk/root.hds"
  cp "$tmp/raw" "$tmp/before"
  "$img" snapshot create -q --guid="$one" "$disk"
  expect "a snapshot of a link"
  change 2
  "$img" snapshot switch -q --keep "$disk" "$one"
  cp "$tmp/before" "$tmp/raw"
  expect "switched"
  change 3
  other=$(awk -F '[<>]' '/<Shot>/ { shot = 1 } shot && /<GUID>/ { print $3 }' \
    "$disk/DiskDescriptor.xml" | grep -v "$one\|$top")
  "$img" snapshot delete -q "$disk" "$other"
  "$img" merge -q "$disk"
  expect "merged into a link"
  [ -L "$disk/root.hds" ] || fail "the link is gone"
  [ "$(find "$disk" -name '*.hds*' | wc -l)" -eq 2 ] || fail "a delta is left over"
done

say "a descriptor that names itself, and its lock"
for name in DiskDescriptor.xml DiskDescriptor.xml.lck; do
  new_disk
  "$img" snapshot create -q --guid="$one" "$disk"
  add "$two" "$one" $name
  "$img" snapshot delete -q "$disk" "$two"
  [ -e "$disk/$name" ] || fail "$name was removed"
  expect "$name is what it was"
  if grep -q "$two" "$disk/DiskDescriptor.xml"; then fail "$two is still there"; fi
done

say "a file that two have"
for file in root.hds ./root.hds hard; do
  new_disk
  "$img" snapshot create -q --guid="$one" "$disk"
  cp "$tmp/raw" "$tmp/before"
  change 2
  ln "$disk/root.hds" "$disk/hard"
  add "$two" "$none" $file
  refused 'they are one file' merge "$disk"
  refused 'they are one file' snapshot delete "$disk" "$one"
  expect "a file that two have"
  "$img" compare -q --snapshot="$two" "$disk" "$tmp/before" || fail "its other snapshot"
  # Nothing is written to what is only removed.
  "$img" snapshot delete -q "$disk" "$two"
  expect "a file that two had"
done

say "a split disk of which a part is broken"
new_disk
"$img" snapshot create -q --guid="$one" "$disk"
"$img" resize -q "$disk" 2M
truncate -s 1M "$disk/root.hds" "$disk/b.hds" "$disk/c.hds"
head -c 1M /dev/urandom > "$disk/root.hds"
sed -i "s/Compressed/Plain/
        s#</StorageData>#<Storage><Start>4096</Start><End>6144</End><Blocksize>64</Blocksize><Image><GUID>$one</GUID><Type>Plain</Type><File>b.hds</File></Image><Image><GUID>$top</GUID><Type>Compressed</Type><File>c.hds</File></Image></Storage>&#" \
  "$disk/DiskDescriptor.xml"
refused 'not an expandable ploop image' merge "$disk"

say "a raw disk larger than its clusters allow"
new_disk
cp "$tmp/raw" "$disk/root.hds"
sed -i 's/Compressed/Plain/; s#<Blocksize>64#<Blocksize>1#' "$disk/DiskDescriptor.xml"
expect "a raw disk"
refused 'at most the 274877906432 that' resize "$disk" 256G
refused 'at most the 274877906432 that' resize --dry-run "$disk" 4T
expect "a raw disk that keeps its size"

# shots: the GUIDs of all deltas but the top.
shots ()
{
  awk -F '[<>]' '/<TopGUID>/ { top = $3 } /<Shot>/ { shot = 1 }
                 shot && /<GUID>/ { print $3 }
                 END { print top }' "$disk/DiskDescriptor.xml" | sort | uniq -u
}

# round: a snapshot, back to it, and all into the base.
round ()
{
  local guid
  "$img" snapshot create -q --guid="$two" "$disk" || fail "$1: create"
  cp "$tmp/raw" "$tmp/before"
  expect "$1, with a snapshot"
  change 4
  "$img" snapshot switch -q --keep "$disk" "$two" || fail "$1: switch"
  mv "$tmp/before" "$tmp/raw"
  expect "$1, switched"
  change 5
  "$img" snapshot create -q "$disk"
  change 6
  while [ -n "$(shots)" ]; do
    for guid in $(shots); do
      "$img" snapshot delete -q "$disk" "$guid" 2> /dev/null || continue
      expect "$1, $guid deleted"
      continue 2
    done
    fail "$1: none of $(shots) can be deleted"
  done
  [ "$(find "$disk" -name '*.hds*' | wc -l)" -eq 1 ] || fail "$1: a delta is left over"
}

say "a tree that does not name its top"
new_disk
"$img" snapshot create -q --guid="$one" "$disk"
change 2
"$img" snapshot switch -q --keep "$disk" "$one"
change 2
sed -i '/<TopGUID>/d' "$disk/DiskDescriptor.xml"
round "no <TopGUID>"

say "a base that has the name of the top, as the first ploops had it"
new_disk
"$img" snapshot create -q --guid="$one" "$disk"
change 2
sed -i "s/$top/{aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa}/; s/$one/$top/" \
  "$disk/DiskDescriptor.xml"
round "the first ploops"

say "a lower delta that cannot become as large as the upper one"
new_disk
rm "$disk/root.hds"
"$img" create -q --version=1 --cluster-size=1M "$disk/root.hds" 1M
sed -i 's#<Blocksize>64#<Blocksize>2048#' "$disk/DiskDescriptor.xml"
"$img" snapshot create -q --guid="$one" "$disk"
"$img" create -q --force --version=2 --cluster-size=1M "$(echo "$disk"/root.hds.*)" 3T
refused 'must become as large as' merge --dry-run "$disk"
refused 'must become as large as' merge "$disk"

say "a descriptor that cannot be read"
new_disk
"$img" snapshot create -q --guid="$one" "$disk"
change 2
truncate -s -20 "$disk/DiskDescriptor.xml"
delta=$(find "$disk" -name 'root.hds.*')
refused 'not well-formed' merge --base="$disk/root.hds" "$delta"
refused 'move it away' resize "$disk/root.hds" 2M
mv "$disk/DiskDescriptor.xml" "$tmp"
"$img" resize -q "$delta" 2M
"$img" merge -q --base="$disk/root.hds" "$delta"
truncate -s 2M "$tmp/raw"
"$img" compare -q "$disk/root.hds" "$tmp/raw" || fail "without the descriptor"

# may_write FILE: can a program that knows only the locks of files write to it?
may_write ()
{
  qemu-io -f raw -c 'write -P 9 33k 1k' "$1" > "$tmp/io.log" 2>&1
}

# The descriptor is replaced late, while somebody tries.
if command -v strace > /dev/null && strace -o "$tmp/log" true 2> /dev/null; then
  say "others are kept out until the descriptor is replaced"
  for command in "snapshot create" "snapshot switch --keep" \
      "snapshot switch --discard" merge; do
    new_disk
    "$img" snapshot create -q --guid="$one" "$disk"
    change 2
    delta=$(find "$disk" -name 'root.hds.*')
    args=()
    case $command in *switch*) args=("$one") ;; esac
    may_write "$delta" || { cat "$tmp/io.log"; fail "$delta cannot be written to"; }
    cp "$delta" "$tmp/before.hds"
    # shellcheck disable=SC2086  # several words
    strace -f -o "$tmp/log" -e trace=renameat,renameat2,rename \
      -e inject=renameat,renameat2,rename:delay_enter=1500000 \
      "$img" $command -q "$disk" ${args[@]+"${args[@]}"} &
    tracer=$!
    wait_until compgen -G "$disk/.DiskDescriptor.xml.*" > /dev/null ||
      fail "$command: the descriptor is not replaced"
    if may_write "$delta"; then fail "$command: qemu could write to $delta"; fi
    wait $tracer || fail "$command"
    if [ -e "$delta" ] && ! cmp -s "$delta" "$tmp/before.hds"; then
      fail "$command: $delta was changed"
    fi
  done

  say "no space for what is in the way of a longer BAT"
  new_disk
  size=$(stat -c %s "$disk/root.hds")
  # The first write is the mark, the second one what is copied.
  if strace -f -o "$tmp/trace" -e trace=pwrite64 \
      -e inject=pwrite64:error=ENOSPC:when=2 \
      "$img" resize -q "$disk" 2T 2> "$tmp/log"; then
    fail "resized, without the space for it"
  fi
  grep -q 'cannot be moved' "$tmp/log" || { cat "$tmp/log"; fail "another error"; }
  expect "a disk that could not be resized"
  [ "$(stat -c %s "$disk/root.hds")" -eq "$size" ] || fail "the file is longer now"
  "$img" check -q "$disk" || fail "check"
fi
