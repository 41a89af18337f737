#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that ploop-img compare tells whether two disks read the same, and where they
# begin to differ: images, chains, snapshots, raw files of any length and NBD exports,
# against cmp and qemu-img compare; that it changes nothing; and that what it cannot
# tell is an error with a status of its own.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires qemu-img qemu-io nbdcopy cmp awk
unpack_corpus

# compare STATUS ARG...: ploop-img compare must exit with STATUS.  What it says is in
# $tmp/compare.log.
compare ()
{
  local want=$1 status=0
  shift
  "$PLOOP_IMG" compare "$@" > "$tmp/compare.log" 2>&1 || status=$?
  [ $status -eq "$want" ] ||
    { cat "$tmp/compare.log"; fail "compare $*: exit status $status, not $want"; }
}

# expect_difference OFFSET ARG...
expect_difference ()
{
  local at=$1
  shift
  compare 1 "$@"
  grep -q "differ from byte $at on\$" "$tmp/compare.log" ||
    { cat "$tmp/compare.log"; fail "compare $*: not byte $at"; }
}

# ---- The same, and one byte that is not

mib=12
size=$((mib * (1 << 20) + 777))
truncate -s $size "$tmp/raw"
for at in 0 70 500 3000 9000 12000; do
  dd if=/dev/urandom of="$tmp/raw" bs=1k seek=$at count=200 conv=notrunc status=none
done
truncate -s $size "$tmp/raw"
"$PLOOP_IMG" create -q --cluster-size=64K "$tmp/disk.hds" $((size + 1024 - size % 512))
qemu-img convert -n -f raw -O parallels "$tmp/raw" "$tmp/disk.hds"
before=$(file_state "$tmp/disk.hds")

say "the same"
for pair in "raw disk.hds" "disk.hds raw" "raw raw" "disk.hds disk.hds"; do
  compare 0 "$tmp/${pair% *}" "$tmp/${pair#* }"
  grep -q 'are the same$' "$tmp/compare.log" || fail "$pair: what is said"
done

say "one byte"
for at in 0 1 4095 4096 71680 $((3 << 20)) $((3000 * 1024 + 99999)) \
    $(((1 << 20) - 1)) $((1 << 20)) $((size - 778)) $((size - 1)); do
  due || continue
  cp --sparse=always "$tmp/raw" "$tmp/other"
  # Whatever is there, another byte.
  byte=$(dd if="$tmp/raw" bs=1 skip="$at" count=1 status=none | od -A n -t u1)
  printf '%b' "\\0$(printf %o $(((byte + 1) % 256)))" |
    dd of="$tmp/other" bs=1 seek="$at" conv=notrunc status=none
  # And one behind it.
  printf '\001' | dd of="$tmp/other" bs=1 seek=$size conv=notrunc status=none
  expect_difference "$at" "$tmp/other" "$tmp/disk.hds"
  expect_difference "$at" "$tmp/disk.hds" "$tmp/other"
  [ "$(cmp "$tmp/raw" "$tmp/other" | awk '{ print $5 }')" = "$((at + 1))," ] ||
    fail "the test's own idea of where they differ"
done
[ "$(file_state "$tmp/disk.hds")" = "$before" ] || fail "the image was changed"

say "sizes"
cp --sparse=always "$tmp/raw" "$tmp/longer"
truncate -s $((size + 3000000)) "$tmp/longer"
compare 0 "$tmp/longer" "$tmp/raw"
compare 0 "$tmp/raw" "$tmp/longer"
compare 1 -s "$tmp/raw" "$tmp/longer"
grep -q "has $size bytes, and .* has $((size + 3000000))\$" "$tmp/compare.log" ||
  fail "what is said of sizes"
printf x >> "$tmp/longer"
expect_difference $((size + 3000000)) "$tmp/longer" "$tmp/raw"
expect_difference $((size + 3000000)) "$tmp/disk.hds" "$tmp/longer"
: > "$tmp/empty"
truncate -s 1M "$tmp/zeros"
compare 0 "$tmp/zeros" "$tmp/zeros"

# ---- Chains, snapshots, exports

say "chains"
for dir in "$tmp"/corpus/c-*/; do
  due || continue
  [ -e "$dir/DiskDescriptor.xml" ] || continue
  start_nbdkit -r file="$dir" || { say "left out: $dir"; continue; }
  nbdcopy "$uri" "$tmp/copy"
  compare 0 "$dir" "$uri"
  compare 0 "$uri" "$dir/DiskDescriptor.xml"
  compare 0 "$dir" "$tmp/copy"
  mapfile -t guids < <(nbdinfo --list "$uri" 2> /dev/null |
    sed -n 's/^export="\({.*}\)":$/\1/p')
  for guid in ${guids[@]+"${guids[@]}"}; do
    nbdcopy "nbd+unix:///%7B${guid:1:36}%7D?socket=$sock" "$tmp/snapshot"
    compare 0 --snapshot="$guid" "$dir" "$tmp/snapshot"
    compare 0 --other-snapshot="$guid" "$tmp/snapshot" "$dir"
    want=0
    cmp -s "$tmp/snapshot" "$tmp/copy" || want=1
    compare $want --snapshot="$guid" "$dir" "$dir"
  done
  stop_nbdkit
done

# ---- What cannot be told

say "errors"
compare 2 "$tmp/nonexistent" "$tmp/raw"
grep -q 'nonexistent: .*No such file' "$tmp/compare.log" || fail "no file: unclear"
compare 2 "$tmp/raw" "$tmp/nonexistent"
compare 2 "$tmp/raw"
compare 2 --output=xml "$tmp/raw" "$tmp/raw"
compare 2 --snapshot='{00000001-1111-2222-3333-444444444444}' "$tmp/raw" "$tmp/raw"
grep -q 'no ploop disk' "$tmp/compare.log" || fail "a raw file's snapshot: unclear"
compare 2 "nbd+unix:///?socket=$tmp/none" "$tmp/raw"
for image in "$tmp"/corpus/h-corrupt/{dup,beyond-eof}.hds; do
  compare 2 "$image" "$tmp/raw"
  grep -q "$(basename "$image")" "$tmp/compare.log" || fail "$image: unclear"
done
start_nbdkit file="$tmp/disk.hds"
compare 2 "$tmp/disk.hds" "$tmp/raw"
grep -q 'disk.hds: .*in use' "$tmp/compare.log" ||
  { cat "$tmp/compare.log"; fail "an image that is served: unclear"; }
compare 0 "$uri" "$tmp/raw"
stop_nbdkit
compare 0 -q "$tmp/disk.hds" "$tmp/raw"
[ ! -s "$tmp/compare.log" ] || fail "-q is not quiet"
# A device or a file that fails, but behind the first difference.
if nbdkit --filter=error null --version > /dev/null 2>&1; then
  start_remote --filter=error --filter=offset file "$tmp/raw" offset=0 \
    error-pread=EIO error-pread-rate=100%
  compare 2 "$remote_uri" "$tmp/raw"
  grep -q 'cannot be read at byte 0: Input/output error' "$tmp/compare.log" ||
    { cat "$tmp/compare.log"; fail "a read that fails: unclear"; }
  stop_remote
fi

say "JSON"
"$PLOOP_IMG" compare --output=json "$tmp/raw" "$tmp/disk.hds" > "$tmp/json"
for line in '"result" : "same"' "\"size\" : $size" '"read-bytes" : '; do
  grep -q "$line" "$tmp/json" || { cat "$tmp/json"; fail "JSON: no $line"; }
done
compare 1 --output=json "$tmp/other" "$tmp/raw"
grep -q '"offset" : [0-9]' "$tmp/compare.log" || fail "JSON: no offset"
say "passed"
