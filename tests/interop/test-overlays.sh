#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that an overlay takes all writes and leaves what is below it as it is,
# byte by byte: over an image, a raw file of any size, a disk with snapshots and
# a snapshot of it; that it is created when it is missing and found again; and
# that deltas that cannot be a chain end in an error that names file and value,
# with nothing changed on disk.  Also that a descriptor leads nowhere out of its
# directory unless that is allowed.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires nbdcopy nbdinfo qemu-io qemu-img sha256sum

# tree_state DIR: all that must not change below DIR.  Who writes to an overlay
# makes ploop's lock file, to keep it out.
tree_state ()
{
  (cd "$1" && find . -type f ! -name '*.lck' -exec sha256sum {} + &&
   find . -type d -printf '%p\n' &&
   find . ! -type d ! -name '*.lck' -printf '%p %s %T@ %i\n') | sort
}

# fill RAW KIB...: data at some places of a file.
fill ()
{
  local file=$1 at
  shift
  for at in "$@"; do
    dd if=/dev/urandom of="$file" bs=1k seek="$at" count=20 conv=notrunc \
      status=none
  done
}

# make_image FILE CLUSTER SIZE: with data, and the same in FILE.raw.
make_image ()
{
  truncate -s "$3" "$1.raw"
  fill "$1.raw" 0 100 1023 2000 3000
  "$PLOOP_IMG" create -q --cluster-size="$2" "$1" "$3"
  qemu-img convert -n -f raw -O parallels "$1.raw" "$1"
}

# ---- All writes go to the overlay

work=$tmp/work
mkdir "$work"
overlay=$tmp/overlay.hds

# use_overlay WHAT SIZE CLUSTER ARG...: over what ARGs serve, which lies in $work
# and is in $tmp/raw, sectors filled up.
use_overlay ()
{
  local what=$1 size=$2 cluster=$3 before state
  shift 3
  say "over $what"
  rm -f "$overlay"
  before=$(tree_state "$work")
  expect_refusal 'overlay\.hds.*no such overlay' -r "$@" overlay="$overlay"
  [ ! -e "$overlay" ] || fail "$what: an overlay was made for a reader"

  start_nbdkit "$@" overlay="$overlay" || fail "refused: $(cat "$nbdkit_log")"
  [ "$(nbdinfo --size "$uri")" = "$size" ] || fail "$what: wrong size"
  expect_content "$what"
  stop_nbdkit
  [ "$(od -A n -t u4 -j 28 -N 4 "$overlay" | tr -d ' ')" = \
    $((cluster / 512)) ] || fail "$what: other clusters than below"
  [ "$(tree_state "$work")" = "$before" ] || fail "$what: changed by opening"

  start_nbdkit "$@" overlay="$overlay"
  io_both 'write -P 0x21 0 512' 'write -P 0x22 1000k 200k' 'write -z -u 2000k 10k' \
    'write -z -u 1M 64k' 'write -P 0x23 3333k 1k' \
    "write -P 0x24 $((size - 512)) 512"
  expect_content "$what, written"
  io_both flush
  state=$(file_state "$overlay")
  io_both 'write -P 0x25 100k 1k'
  expect_content "$what, written again"
  [ "$(file_state "$overlay")" != "$state" ] || fail "$what: written elsewhere"
  stop_nbdkit
  [ "$(in_use "$overlay")" = 00000000 ] || fail "$what: still marked"
  qemu-img check -q -f parallels "$overlay" || fail "$what: qemu-img check"

  # Found again, to be read and to be written.
  state=$(file_state "$overlay")
  start_nbdkit -r "$@" overlay="$overlay"
  expect_content "$what, found again"
  nbdinfo --is read-only "$uri" || fail "$what: can be written in spite of -r"
  stop_nbdkit
  [ "$(file_state "$overlay")" = "$state" ] || fail "$what: changed by reading"
  start_nbdkit "$@" overlay="$overlay"
  io_both 'write -P 0x26 2001k 3k' flush
  expect_content "$what, on and on"
  stop_nbdkit
  [ "$(tree_state "$work")" = "$before" ] || fail "$what: changed"
}

# qemu_reads WHAT FORMAT FILE: so does qemu, told what the overlay lies on.
qemu_reads ()
{
  local file='"file":{"driver":"file","filename"'
  qemu-img compare -q -F raw "json:{\"driver\":\"parallels\",$file:\"$overlay\"},
    \"backing\":{\"driver\":\"$2\",$file:\"$3\"}}}" "$tmp/raw" ||
    fail "$1: qemu reads something else"
}

make_image "$work/base.hds" 64K 8M
cp --sparse=always "$work/base.hds.raw" "$tmp/raw"
use_overlay "an image" $((8 << 20)) 65536 file="$work/base.hds"
qemu_reads "an image" parallels "$work/base.hds"
# The overlay is an image as any other.
start_nbdkit file="$overlay" base="$work/base.hds"
expect_content "an overlay as the top of a chain"
stop_nbdkit
start_nbdkit file="$overlay" base="$work/base.hds" overlay="$tmp/second.hds"
expect_content "an overlay over an overlay"
io_both 'write -P 0x31 0 1M' 'write -P 0x32 7M 100k'
expect_content "an overlay over an overlay, written"
stop_nbdkit

rm -rf "$work" && mkdir "$work"
size=$((5 * 1048576 + 777))
truncate -s $size "$work/disk.raw"
fill "$work/disk.raw" 0 1500 3000
echo 'the last bytes' | dd of="$work/disk.raw" bs=1 seek=$((size - 15)) \
  conv=notrunc status=none
cp --sparse=always "$work/disk.raw" "$tmp/raw"
size=$((5 * 1048576 + 1024))
truncate -s $size "$tmp/raw"
expect_refusal 'disk\.raw.*signature' file="$work/disk.raw"
use_overlay "a raw file" $size 1048576 file="$work/disk.raw"
qemu_reads "a raw file" raw "$work/disk.raw"

# One byte, and one that is all hole.
for size in 1 100000; do
  rm -f "$overlay"
  : > "$work/tiny"
  truncate -s $size "$work/tiny"
  truncate -s $(((size + 511) / 512 * 512)) "$tmp/raw"
  cp --sparse=always "$work/tiny" "$tmp/raw"
  truncate -s $(((size + 511) / 512 * 512)) "$tmp/raw"
  start_nbdkit file="$work/tiny" overlay="$overlay"
  expect_content "a raw file of $size bytes"
  io_both 'write -P 0x33 0 512'
  expect_content "a raw file of $size bytes, written"
  stop_nbdkit
done
: > "$work/tiny"
rm -f "$overlay"
expect_refusal 'tiny.*size is 0' file="$work/tiny" overlay="$overlay"
[ ! -e "$overlay" ] || fail "an overlay was left over an empty file"

unpack_corpus
nr=0
for row in c-chain3-v2-b64 c-chain3-v2-b64@1 c-chain3-v1-b2048@2 \
  c-rawbase-v2-b2048; do
  nr=$((nr + 1))
  # The last is what the next test begins with.
  chosen $nr || [ $nr -eq 4 ] || continue
  entry=$(awk -F '\t' -v row=$row '$1 == row { print $4 }' \
            "$PLOOP_CORPUS/MANIFEST.tsv")
  rm -rf "$work"
  cp -a "$tmp/corpus/${row%@*}" "$work"
  args=(file="$work")
  case $entry in
    *'#'*) args+=("snapshot=${entry##*#}") ;;
  esac
  start_nbdkit -r "${args[@]}"
  rm -f "$tmp/raw"
  nbdcopy "$uri" "$tmp/raw"
  size=$(nbdinfo --size "$uri")
  stop_nbdkit
  case $row in
    *-b64*) cluster=32768 ;;
    *) cluster=1048576 ;;
  esac
  use_overlay "$row" "$size" $cluster "${args[@]}"
done

# The base of a chain is raw here: it is a snapshot too.
guid=$(awk '/<GUID>/ { gsub (/[ \t]|<[^>]*>/, ""); print; exit }' \
         "$work/DiskDescriptor.xml")
cp --sparse=always "$work/root.hds" "$tmp/raw"
use_overlay "a raw snapshot" "$(stat -c %s "$work/root.hds")" 1048576 \
  file="$work" "snapshot=$guid"

# ---- What cannot be a chain

rm -rf "$work" && mkdir "$work"
overlay=$work/overlay.hds
for name in base mid top; do
  make_image "$work/$name.hds" 64K 8M
done
make_image "$work/large.hds" 128K 8M
rm "$work"/*.hds.raw
head -c 1000000 /dev/urandom > "$work/noise"
head -c 70000 "$work/base.hds" > "$work/cut.hds"
mkdir "$work/directory"
mkfifo "$work/fifo"
ln -s nowhere "$work/dangling.hds"
before=$(tree_state "$work")

# refused TEXT ARG...: with that text, and nothing changed.
refused ()
{
  local after
  expect_refusal "$@"
  after=$(tree_state "$work")
  [ "$after" = "$before" ] || {
    diff <(echo "$before") <(echo "$after") || true
    shift
    fail "changed by what was refused: $*"
  }
}

base=base=$work/base.hds mid=base=$work/mid.hds top=file=$work/top.hds
over=overlay=$overlay
say "what cannot be"
# Only the last may be raw.
refused 'noise.*signature' "$top" base="$work/noise" "$base"
refused 'noise.*signature' file="$work/noise" "$base"
refused 'mid\.hds.*twice' "$top" "$mid" "$mid" "$base"
refused 'base\.hds.*twice' -r file="$work/base.hds" "$mid" "$base"
refused 'large\.hds.*131072.*top\.hds.*65536' "$top" "$mid" \
  base="$work/large.hds"
refused 'base\.hds.*65536.*large\.hds.*131072' file="$work/large.hds" "$base"
refused 'missing\.hds.*No such file' "$top" "$mid" base="$work/missing.hds"
refused 'directory.*is a directory' "$top" base="$work/directory"
refused 'fifo.*not a regular file' "$top" base="$work/fifo"
refused 'dangling\.hds.*No such file' "$top" base="$work/dangling.hds"
refused 'base=' "$top" base=
refused 'cut\.hds' "$top" base="$work/cut.hds" "$base"
mapfile -t many < <(for ((i = 0; i < 255; i++)); do echo "$base"; done)
refused 'top\.hds.*255 bases' "$top" "${many[@]}"
refused 'nbd.*unix.*base of a chain' "$top" \
  base="nbd+unix:///?socket=$work/none" "$base"
refused 'top\.hds.*snapshot.*\{00000001-1111-2222-3333-444444444444\}' "$top" \
  'snapshot={00000001-1111-2222-3333-444444444444}'
refused 'top\.hds.*snapshot.*nonsense' "$top" "$base" snapshot=nonsense
refused 'overlay=' "$top" overlay=
refused 'overlay=.*once' "$top" "$over" "$over"
refused 'no/such/overlay\.hds' "$top" overlay="$work/no/such/overlay.hds"
refused 'directory.*is a directory' "$top" overlay="$work/directory"
refused 'fifo.*not a regular file' "$top" overlay="$work/fifo"
refused 'dangling\.hds' "$top" overlay="$work/dangling.hds"
refused 'noise.*signature' "$top" overlay="$work/noise"
refused '131072|65536' "$top" "$base" overlay="$work/large.hds"
refused 'top\.hds' "$top" "$base" overlay="$work/top.hds"
refused 'missing\.hds.*No such file' file="$work/missing.hds" "$over"
refused 'directory' file="$work/directory" "$over"
refused 'allow-outside=perhaps' "$top" allow-outside=perhaps

cp -a "$tmp/corpus/c-chain3-v2-b64" "$work/disk"
before=$(tree_state "$work")
refused 'DiskDescriptor\.xml.*base=' file="$work/disk" "$base"
refused 'DiskDescriptor\.xml.*base=' file="$work/disk/DiskDescriptor.xml" \
  "$base" "$over"
refused 'DiskDescriptor\.xml.*none' file="$work/disk" snapshot=none "$over"

# Whatever is larger or smaller below is cut or filled up with zeros.
say "other sizes"
rm -f "$work"/*.hds "$work/noise"
make_image "$work/small.hds" 64K $((3 * 1048576 + 512))
truncate -s $((8 << 20)) "$work/small.hds.raw"
cp --sparse=always "$work/small.hds.raw" "$tmp/raw"
"$PLOOP_IMG" create -q --cluster-size=64K "$work/top.hds" 8M
start_nbdkit file="$work/top.hds" base="$work/small.hds"
expect_content "a smaller base"
io_both 'write -P 0x41 3145k 2k' 'write -P 0x42 4M 1k'
expect_content "a smaller base, written"
stop_nbdkit
make_image "$work/large.hds" 64K 12M
"$PLOOP_IMG" create -q --cluster-size=64K "$work/cut.hds" $((4 * 1048576 + 512))
head -c $((4 * 1048576 + 512)) "$work/large.hds.raw" > "$tmp/raw"
start_nbdkit file="$work/cut.hds" base="$work/large.hds"
grep -q 'warning: .*large\.hds.*12582912.*cut\.hds.*4194816' "$nbdkit_log" ||
  fail "no warning that the base is larger"
expect_content "a larger base"
stop_nbdkit

# ---- Out of the directory

say "out of the directory"
rm -rf "$work" && mkdir "$work"
cp -a "$tmp/corpus/d-noshot" "$work/disk"
mv "$work/disk/root.hds" "$work/elsewhere.hds"
mkdir "$work/disk/sub"
cp "$work/elsewhere.hds" "$work/disk/sub/inside.hds"
ln -s ../elsewhere.hds "$work/disk/link.hds"
ln -s "$work" "$work/disk/linked"
ln -s sub/inside.hds "$work/disk/good.hds"
start_nbdkit -r file="$work/elsewhere.hds"
sha=$(nbdcopy "$uri" - | sha256sum)
stop_nbdkit

# name_file FILE: the descriptor names FILE.
name_file ()
{
  sed -i "s|<File>.*</File>|<File>$1</File>|" "$work/disk/DiskDescriptor.xml"
  before=$(tree_state "$work")
}

is_served ()
{
  start_nbdkit -r file="$work/disk" "$@" || fail "refused: $(cat "$nbdkit_log")"
  [ "$(nbdcopy "$uri" - | sha256sum)" = "$sha" ] || fail "other content"
  stop_nbdkit
  [ "$(tree_state "$work")" = "$before" ] || fail "changed by being read"
}

for name in ../elsewhere.hds "$work/elsewhere.hds" link.hds \
  linked/elsewhere.hds sub/../../elsewhere.hds; do
  name_file "$name"
  refused "DiskDescriptor\\.xml.*<File> is '$name'.*allow-outside" \
    file="$work/disk"
  refused "DiskDescriptor\\.xml.*<File> is '$name'.*allow-outside" \
    file="$work/disk" allow-outside=off overlay="$work/overlay.hds"
  is_served allow-outside=on
done
for name in sub/inside.hds good.hds sub/../sub/inside.hds ./sub//inside.hds \
  "$work/disk/sub/inside.hds" linked/disk/sub/inside.hds; do
  name_file "$name"
  is_served
done
# What lies elsewhere is not made outside.
name_file ../missing.hds
refused 'DiskDescriptor\.xml.*missing\.hds.*No such file' file="$work/disk" \
  allow-outside=true
say "passed"
