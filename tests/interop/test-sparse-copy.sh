#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that clients see the holes of a disk: nbdcopy moves the data of a
# sparse disk of 1 TiB and nothing else, out of an image and into one, counted
# byte by byte; qemu-img map says the same of the export as of the file; nbdinfo
# adds up a disk of 16 TiB, empty and with some data.  (The disk is a cluster
# short of 1 TiB: qemu 7.2 falls to an assertion where it asks a parallels image
# about 2^31 sectors.)

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires qemu-img qemu-io nbdcopy nbdinfo awk

log=$tmp/requests.log

# Every request of the clients, with its count, is in $log.
start_logged ()
{
  rm -f "$log"
  start_nbdkit --filter=log "$@" logfile="$log" ||
    fail "the server does not start: $(tail -n 1 "$nbdkit_log")"
}

# bytes_of OPERATION: the sum of what was asked for.
bytes_of ()
{
  local sum=0 count
  while read -r count; do
    sum=$((sum + count))
  done < <(sed -En "s/.* $1 id=[0-9]+ .*count=(0x[0-9a-f]+).*/\1/p" "$log")
  echo $sum
}

# map_totals: what nbdinfo adds up, as "BYTES FLAGS" lines, by flags.
map_totals ()
{
  nbdinfo --map --totals "$uri" | awk '{ print $1, $3 }' | sort -k 2n
}

# expect_totals DATA HOLE
expect_totals ()
{
  local expected
  expected=$([ "$1" = 0 ] || echo "$1 0"; echo "$2 3")
  map_totals > "$tmp/totals"
  [ "$(cat "$tmp/totals")" = "$expected" ] ||
    { cat "$tmp/totals"; fail "the totals must be: $expected"; }
}

# normal_map FILE: qemu-img's map, neighbours joined where they are the same, as
# "START LENGTH ZERO DATA" lines.
normal_map ()
{
  local area='.*"start": ([0-9]+), "length": ([0-9]+),'
  area=$area'.*"zero": ([a-z]+), "data": ([a-z]+).*'
  sed -En "s/$area/\1 \2 \3 \4/p" "$1" |
    awk '{
      if (NR > 1 && $3 == zero && $4 == data)
        length_ += $2
      else {
        if (NR > 1) printf "%.0f %.0f %s %s\n", start, length_, zero, data
        start = $1; length_ = $2; zero = $3; data = $4
      }
    }
    END { if (NR > 0) printf "%.0f %.0f %s %s\n", start, length_, zero, data }'
}

# Where data is, in 64 KiB pieces: no two in one cluster of 1 MiB, some in
# neighbours, the first and the last of the disk.
tib=$(((1 << 40) - (1 << 20)))
piece=65536
places=(0)
for ((i = 0; i < 12; i++)); do
  places+=($((i * 83 * (1 << 30) + (7 + i) * (1 << 20))))
done
for i in 0 1 2; do
  places+=($(((500 << 30) + (i << 20))))
done
places+=($((tib - piece)))

writes=()
for place in "${places[@]}"; do
  writes+=(-c "write -P $((1 + place / piece % 251)) $place $piece")
done

# ---- Out of an image

file=$tmp/disk.hds
"$PLOOP_IMG" create -q "$file" "$tib"
# Not reserved in the file system: what is, ext4 takes for data as soon as it is
# in the page cache, and so it is after it was read, or read ahead.
start_nbdkit file="$file" prealloc=8M prealloc-mode=truncate
expect_totals 0 "$tib"
qemu-io -t writeback -f raw "${writes[@]}" -c flush "$uri" > "$tmp/io.log" ||
  { cat "$tmp/io.log"; fail "qemu-io"; }
data=$((${#places[@]} << 20))
# Without this, copying would take its time.
expect_totals $data $((tib - data))
stop_nbdkit

# copy_out COMMAND MOST PARAMETER...: COMMAND may read MOST bytes.
copy_out ()
{
  local copy=$1 most=$2 bytes
  shift 2
  rm -f "$tmp/raw"
  start_logged -r file="$file" "$@"
  case $copy in
    nbdcopy) nbdcopy "$uri" "$tmp/raw" ;;
    qemu-img) qemu-img convert -f raw -O raw "$uri" "$tmp/raw" ;;
  esac
  stop_nbdkit
  bytes=$(bytes_of Read)
  say "copied out by $copy: $bytes bytes read $*"
  [ "$bytes" -ge $((${#places[@]} * piece)) ] || fail "that cannot be all"
  [ "$bytes" -le "$most" ] || fail "$most are enough"
  qemu-img compare -q -f parallels -F raw "$file" "$tmp/raw" ||
    fail "the copy is not equal"
}

copy_out nbdcopy $data
copy_out nbdcopy $data extents=cluster fast-path=off
truncate -s 1M "$tmp/hole"
dd if=/dev/zero of="$tmp/hole" bs=4096 count=1 conv=notrunc,fsync status=none
if qemu-img map -f raw --output=json "$tmp/hole" | grep -q '"data": false'; then
  # nbdcopy reads no less than the preferred block, a cluster.
  copy_out nbdcopy $data extents=detail
  copy_out qemu-img $((${#places[@]} * piece * 2)) extents=detail
else
  say "the file system does not tell holes: extents=detail is not tried"
fi

# ---- Into an image

copy=$tmp/copy.hds
"$PLOOP_IMG" create -q "$copy" "$tib"
start_logged file="$copy" prealloc=8M
nbdcopy --flush "$tmp/raw" "$uri"
# What was nowhere written is a hole still.
expect_totals $data $((tib - data))
stop_nbdkit
bytes=$(bytes_of Write)
say "copied in: $bytes bytes written," \
    "$(bytes_of Zero) zeroed, $(bytes_of Trim) trimmed"
[ "$bytes" -ge $((${#places[@]} * piece)) ] || fail "that cannot be all"
[ "$bytes" -le $data ] || fail "$data are enough"
qemu-img check -q -f parallels "$copy" || fail "qemu-img check"
"$PLOOP_IMG" check "$copy" > "$tmp/check.log" ||
  { cat "$tmp/check.log"; fail "ploop-img check"; }
qemu-img compare -q -f parallels -F raw "$copy" "$tmp/raw" ||
  fail "what was copied in is not equal"
rm "$tmp/raw" "$copy"

# ---- What qemu says of the export and of the file

# same_map FILE SIZE
same_map ()
{
  local nr
  qemu-img map --output=json -f parallels "$1" > "$tmp/file.json"
  normal_map "$tmp/file.json" > "$tmp/file.map"
  start_nbdkit -r file="$1"
  qemu-img map --output=json -f raw "$uri" > "$tmp/export.json"
  stop_nbdkit
  normal_map "$tmp/export.json" > "$tmp/export.map"
  nr=$(wc -l < "$tmp/file.map")
  [ "$(awk '{ n += $2 } END { printf "%.0f", n }' "$tmp/file.map")" = "$2" ] ||
    fail "the map of $1 was not understood"
  diff "$tmp/file.map" "$tmp/export.map" > "$tmp/diff" ||
    { head -n 20 "$tmp/diff"; fail "qemu-img map sees something else in $1"; }
  say "qemu-img map: $nr areas of $(basename "$1"), the same"
}

same_map "$file" "$tib"
for cluster in 32256 258048 65536; do
  small=$tmp/small-$cluster.hds
  qemu-img create -q -f parallels -o cluster_size=$cluster "$small" 16M
  args=()
  for i in 0 1 2 9 11 12 30 31 32 33 50; do
    args+=(-c "write -P 7 $((i * cluster + 1024)) 512")
  done
  args+=(-c "write -P 8 $(((16 << 20) - 512)) 512")
  qemu-io -f parallels "${args[@]}" "$small" > "$tmp/io.log" ||
    { cat "$tmp/io.log"; fail "qemu-io"; }
  same_map "$small" $((16 << 20))
done

# ---- The totals of the largest disk

"$PLOOP_IMG" create -q "$tmp/large.hds" 16T
start_nbdkit file="$tmp/large.hds" prealloc=8M
expect_totals 0 $((16 << 40))
qemu-io -t writeback -f raw -c 'write -P 1 0 4k' -c 'write -P 2 4095M 2M' \
  -c 'write -P 3 8T 4k' -c "write -P 4 $(((16 << 40) - 512)) 512" -c flush \
  "$uri" > "$tmp/io.log" || { cat "$tmp/io.log"; fail "qemu-io"; }
expect_totals $((5 << 20)) $(((16 << 40) - (5 << 20)))
stop_nbdkit
start_nbdkit -r file="$tmp/large.hds"
expect_totals $((5 << 20)) $(((16 << 40) - (5 << 20)))
stop_nbdkit
say "passed"
