#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that ploop-img bitmap reads what other programs have written, in both ways of
# padding, and writes what they can read; that a change touches nothing of the guest's
# disk, and of the bitmaps only what it is asked to; and that what is stale, damaged,
# unknown or in use is refused, or dropped only when that is asked for.  bitmap.pl
# beside this is the second opinion.

set -euo pipefail
# In memory, where that is offered: nothing here need really be durable.
if [ -z "${TMPDIR:-}" ] && [ -w /dev/shm ]; then export TMPDIR=/dev/shm; fi
. "$abs_top_srcdir/tests/functions.sh"
requires perl qemu-img cmp numfmt
unpack_corpus
cd "$tmp"
u1=11111111-2222-3333-4444-555555555555
u2=22222222-aaaa-bbbb-cccc-dddddddddddd
u3=33333333-0000-0000-0000-000000000000
cbt=e4f2eed0-37fe-4539-b50b-85d2e7fd235f

pl ()
{
  perl "$abs_srcdir/bitmap.pl" "$@"
}

# img STATUS ARG...: ploop-img bitmap must exit with STATUS; what it prints is in out
# and err.
img ()
{
  local want=$1 status=0
  shift
  "$PLOOP_IMG" bitmap "$@" > out 2> err || status=$?
  [ $status -eq "$want" ] ||
    { cat out err; fail "bitmap $*: exit status $status, not $want"; }
}

# refused PATTERN FILE ARG...: it fails, says so, prints nothing, and FILE is what it was.
refused ()
{
  local pattern=$1 file=$2 before
  shift 2
  before=$(file_state "$file")
  img 1 "$@"
  grep -qE -- "$pattern" err || { cat err; fail "bitmap $*: no '$pattern'"; }
  [ ! -s out ] || fail "bitmap $*: printed, though it failed"
  [ "$(file_state "$file")" = "$before" ] || fail "bitmap $*: $file was changed"
}

# refused_for PATTERN FILE WORDS: the same, with FILE for @ in WORDS.
refused_for ()
{
  # shellcheck disable=SC2086  # words to split
  refused "$1" "$2" ${3/@/$2}
}

# new_image FILE SIZE CLUSTER VERSION: with data here and there, as FILE.raw has it.
new_image ()
{
  local file=$1 size
  size=$(numfmt --from=iec "$2")
  perl -e 'my ($size, @at) = @ARGV;
           for (1 .. 4) { seek (STDOUT, $at[$_ - 1] * 512 % ($size / 2), 0);
                          print chr ($_) x ($size / 16); }
           truncate (STDOUT, $size)' \
    "$size" $RANDOM $RANDOM $RANDOM $RANDOM > "$file.raw"
  "$PLOOP_IMG" convert -q --force --cluster-size="$3" --version="$4" "$file.raw" "$file"
}

# same_disk FILE: its disk reads as FILE.raw, in our eyes and in qemu's.
same_disk ()
{
  "$PLOOP_IMG" compare -q "$1" "$1.raw" || fail "$1: the disk has changed"
  qemu-img compare -f parallels -F raw -q "$1" "$1.raw" > qemu.log 2>&1 ||
    { cat qemu.log; fail "$1: the disk has changed, or qemu cannot read it"; }
}

# as_foretold FILE ARG...: the same with status 0, and a dry run before it that changes
# nothing and says how long the file will be.  Nothing is left over in it.
as_foretold ()
{
  local file=$1 before after
  shift
  before=$(file_state "$file")
  img 0 "$@" -n --output=json
  after=$(sed -n 's/.*"file-size-after" : \([0-9]*\).*/\1/p' out)
  [ "$(file_state "$file")" = "$before" ] || fail "$*: a dry run has changed $file"
  img 0 "$@"
  [ "$(stat -c %s "$file")" -eq "$after" ] ||
    fail "$*: $(stat -c %s "$file") bytes, not $after"
  "$PLOOP_IMG" check -q "$file" || fail "$*: $file is not clean"
}

# marks FILE UUID: what dump prints, in order.
marks ()
{
  img 0 dump --uuid="$2" "$1"
  cat out
}

# expected_marks FILE UUID: the same, by the second opinion.
expected_marks ()
{
  pl read "$1" | awk -v uuid="$2" \
    '$1 == "bitmap" { on = $2 == uuid } on && $1 == "range" { print $2, $3 }'
}

same_marks ()
{
  marks "$1" "$2" > got
  expected_marks "$1" "$2" > want
  cmp got want || { diff got want | head; fail "$1: marks of $2 ($3)"; }
}

# some_ranges SIZE NR: "range OFFSET LENGTH" lines.
some_ranges ()
{
  local i
  for ((i = 0; i < $2; i++)); do
    echo "range $(((RANDOM * 32768 + RANDOM) % $1)) $((RANDOM % 5 * 70000 + 1))"
  done | awk -v size="$1" '{ if ($2 + $3 > size) $3 = size - $2; print }'
}

# or_marks GRANULARITY SIZE FILE...: what any of the files of marks has, in whole pieces.
or_marks ()
{
  local granularity=$1 size=$2
  shift 2
  awk -v g="$granularity" -v size="$size" '
    { for (i = int ($1 / g); i * g < $1 + $2; i++) bits[i] = 1 }
    END {
      nr = int ((size + g - 1) / g)
      for (i = 0; i <= nr; i++)
        if (bits[i] && from == "") from = i
        else if (!bits[i] && from != "") {
          to = i * g; if (to > size) to = size
          print from * g, to - from * g
          from = ""
        }
    }' "$@"
}

# ---- The corpus

say "images of other programs"
cp corpus/g-cbt/*.hds .
for pair in "one $cbt 2" "two $cbt 2" "two 00010203-0405-0607-0809-0a0b0c0d0e0f 1"; do
  read -r name uuid nr <<< "$pair"
  [ "$(marks $name.hds "$uuid" | wc -l)" -eq "$nr" ] || fail "$name: $uuid"
  same_marks $name.hds "$uuid" "as it came"
done
[ "$(marks one.hds $cbt)" = $'0 65536\n196608 65536' ] || fail "one: marks"
img 0 list inuse.hds
grep -q "^$cbt .* stale\$" out || fail "inuse: not stale"
refused 'MD5.*remove --all' badmd5.hds list badmd5.hds
refused 'granularity is 0 sectors.*remove --all' gran0.hds list gran0.hds
for sub in "add @" "remove --uuid=$cbt @" "dump --uuid=$cbt @" "merge --into=$cbt @ $u1"
do
  refused_for 'MD5' badmd5.hds "$sub"
  refused_for 'granularity is 0' gran0.hds "$sub"
  refused_for 'not closed|stale' inuse.hds "$sub"
done

say "what cannot be used is dropped when that is asked for"
for name in badmd5 gran0 inuse; do
  "$PLOOP_IMG" convert -q -O raw --force $name.hds before.raw
  before=$(file_state $name.hds)
  img 0 remove -n --all $name.hds
  grep -q 'would remove .* stale or damaged' out || fail "$name: what is said"
  [ "$(file_state $name.hds)" = "$before" ] || fail "$name: a dry run changed it"
  mark=$(in_use $name.hds)
  img 0 remove --all $name.hds
  [ "$mark" != 312e3276 ] || mark=00000000
  [ "$(in_use $name.hds)" = "$mark" ] || fail "$name: in use is $(in_use $name.hds)"
  "$PLOOP_IMG" info $name.hds | grep -qx 'extension: none' || fail "$name: still there"
  img 0 list $name.hds
  grep -qx "$name.hds: no bitmaps" out || fail "$name: list"
  "$PLOOP_IMG" compare -q $name.hds before.raw || fail "$name: the disk has changed"
done
"$PLOOP_IMG" check -q badmd5.hds || fail "badmd5: is not clean without its extension"
img 0 remove --all badmd5.hds
grep -qx "badmd5.hds: no bitmaps" out || fail "nothing to remove: what is said"

# ---- By chance

# A round of everything, on one image.  SEED is for another shell to draw the same.
one_round ()
{
  local seed=$1 size cluster version padding g1 g2 big
  RANDOM=$seed
  size=$(((RANDOM % 40 + 1) * 262144 + RANDOM % 100 * 512))
  cluster=$((32768 << RANDOM % 4))
  version=$((RANDOM % 2 + 1))
  g1=$((512 << RANDOM % 9))
  g2=$((512 << RANDOM % 9))
  padding=rounded
  [ $((RANDOM % 2)) -eq 0 ] || padding=plain
  say "seed $seed: $size bytes, clusters of $cluster, version $version, $padding," \
    "granularity $g1 and $g2"
  new_image r.hds $size $cluster $version
  some_ranges $size 12 > ranges1
  some_ranges $size 12 > ranges2
  {
    echo "feature 1122334455667788 2 $(printf '%*s' $((RANDOM % 9 * 2)) '' | tr ' ' 5)"
    echo "bitmap $u1 $size $g1"
    cat ranges1
    echo "feature 0000334455667788 2 0102030405"
    echo "bitmap $u2 $size $g2"
    cat ranges2
    echo "feature 99 0 0102"
  } | pl write r.hds $padding
  # Which features there are when all is in its place.
  pl read r.hds $padding | grep '^feature' | grep -v ' 0 0102$' > features

  same=$(file_state r.hds)
  img 0 list --output=json r.hds
  [ "$(grep -c '"state" : "valid"' out)" -eq 2 ] || fail "list"
  for u in $u1 $u2; do
    marks r.hds $u > got
    pl read r.hds $padding | awk -v uuid=$u \
      '$1 == "bitmap" { on = $2 == uuid } on && $1 == "range" { print $2, $3 }' > want
    cmp got want || fail "marks of $u as written"
  done
  img 0 add -n r.hds
  img 0 merge -n --into=$u1 r.hds $u2
  would=$(sed 's/.*would mark //' out)
  img 0 remove -n --uuid=$u2 r.hds
  [ "$(file_state r.hds)" = "$same" ] || fail "a dry run has changed it"

  img 0 add --set --granularity=$g2 --uuid=$u3 r.hds
  grep -q 'dropped' err || fail "a feature that is to be dropped: no word of it"
  pl read r.hds $padding | grep '^feature' | cmp - features || fail "features"
  [ "$(marks r.hds $u3)" = "0 $size" ] || fail "all set"
  marks r.hds $u1 > marks1
  marks r.hds $u2 > marks2
  or_marks $g1 $size marks1 marks2 > want
  img 0 merge --into=$u1 r.hds "{${u2^^}}"
  [ "$(sed 's/.*marks //' out)" = "$would" ] || fail "merge and its dry run differ"
  marks r.hds $u1 | cmp - want || fail "merged"
  img 0 list --output=json r.hds
  [ "$(grep -A 3 $u1 out | sed -n 's/.*dirty-bytes" : \([0-9]*\).*/\1/p')" -eq \
    "$(awk '{ n += $2 } END { print n + 0 }' want)" ] || fail "dirty bytes"
  marks r.hds $u2 | cmp - marks2 || fail "what was merged has changed"
  pl read r.hds $padding > /dev/null || fail "merged: not as it must be"
  img 0 merge --into=$u2 r.hds $u3
  [ "$(marks r.hds $u2)" = "0 $size" ] || fail "merged with all"
  pl read r.hds $padding | grep '^feature' | cmp - features || fail "features, merged"
  "$PLOOP_IMG" compare -q r.hds r.hds.raw || fail "the disk has changed"

  for u in $u2 $u3 $u1; do
    img 0 remove --uuid=$u r.hds
    pl read r.hds $padding | grep -q $u && fail "$u is still there"
  done
  pl read r.hds $padding | cmp - features || fail "features, alone"
  "$PLOOP_IMG" compare -q r.hds r.hds.raw || fail "the disk has changed"

  # And without features that qemu does not know.
  new_image r.hds $size $cluster $version
  big=$(stat -c %s r.hds)
  as_foretold r.hds add --uuid=$u1 --granularity=$g1 r.hds
  same_disk r.hds
  {
    echo "bitmap $u2 $size $g2"
    cat ranges2
  } > other
  new_image other.hds $size 65536 2
  pl write other.hds rounded < other
  for i in 1 2; do
    as_foretold r.hds merge --into=$u1 --source=other.hds r.hds $u2
    pl read r.hds > /dev/null || fail "merged from another: not as it must be"
  done
  marks other.hds $u2 > marks2
  or_marks $g1 $size marks2 > want
  marks r.hds $u1 | cmp - want || fail "merged from another"
  same_marks r.hds $u1 merged
  same_disk r.hds
  as_foretold r.hds add --uuid=$u2 --granularity=$g2 r.hds
  as_foretold r.hds merge --into=$u2 r.hds $u1
  as_foretold r.hds remove --uuid=$u1 r.hds
  same_disk r.hds
  as_foretold r.hds remove --all r.hds
  [ "$(stat -c %s r.hds)" -le "$big" ] || fail "space was not given back"
  [ "$(in_use r.hds)" = 00000000 ] || fail "it is not closed"
  qemu-img check -q -f parallels r.hds || fail "it is not clean, says qemu"
  same_disk r.hds
}

for i in 1 2 3; do
  due || continue
  one_round $((RANDOM + i))
done

# ---- Other programs

say "qemu"
new_image q.hds 8M 64K 2
img 0 add -q --uuid=$u1 q.hds
[ ! -s out ] || fail "-q is not quiet"
img 0 add --set --uuid=$u2 q.hds
qemu-img info -f parallels q.hds > /dev/null || fail "qemu-img info"
status=0
qemu-img check -f parallels q.hds > qemu.log 2>&1 || status=$?
# qemu 7.2 takes the extension for a leak.
[ $status -eq 0 ] || [ $status -eq 3 ] || { cat qemu.log; fail "qemu-img check"; }
same_disk q.hds

say "an empty table, as libploop 9 begins"
new_image l.hds 4M 32K 2
echo "empty $u1 4194304 65536" | pl write l.hds plain
[ -z "$(marks l.hds $u1)" ] || fail "an empty table marks something"
img 0 add --uuid=$u2 --set l.hds
img 0 merge --into=$u1 l.hds $u2
[ "$(marks l.hds $u1)" = "0 4194304" ] || fail "merged into an empty table"
same_marks l.hds $u1 merged

say "closed by a program that knows no bitmaps"
new_image z.hds 4M 32K 2
printf 'bitmap %s 4194304 65536\nrange 0 1\nshut 0\n' $u1 | pl write z.hds rounded
img 0 list z.hds
grep -q "$u1 .* stale\$" out || fail "not stale"
refused 'stale' z.hds dump --uuid=$u1 z.hds
refused 'stale.*remove --all' z.hds add z.hds
img 0 remove --all z.hds
"$PLOOP_IMG" check -q z.hds || fail "stale ones removed: not clean"
same_disk z.hds

# ---- What must not be changed, or cannot be

say "features that are necessary"
new_image n.hds 4M 32K 2
printf 'bitmap %s 4194304 65536\nrange 0 1\nfeature 77 1 00\n' $u1 |
  pl write n.hds rounded
[ "$(marks n.hds $u1)" = '0 65536' ] || fail "cannot be read"
for sub in "add @" "remove --uuid=$u1 @" "remove --all @" "merge --into=$u1 @ $u1"; do
  refused_for 'necessary and unknown' n.hds "$sub"
done

say "absurd extensions"
while read -r pattern pokes; do
  new_image a.hds 4M 32K 2
  { printf 'bitmap %s 4194304 512\nrange 0 1\n' $u1; echo "poke $pokes"; } |
    pl write a.hds rounded
  refused "$pattern" a.hds list a.hds
  refused "$pattern" a.hds add a.hds
  img 0 remove --all a.hds
  "$PLOOP_IMG" compare -q a.hds a.hds.raw || fail "$pattern: the disk has changed"
  "$PLOOP_IMG" check -q a.hds || fail "$pattern: not clean"
done << 'END'
granularity 72 00000000
granularity 72 03000000
disk.size 48 ffffffffffffffff
L1.length 76 ffffff7f
L1.entry 80 ffffffffffffffff
L1.entry 80 0200000000000000
data.size 40 ffffffff
END
# The extension as a cluster of bits.
new_image a.hds 4M 32K 2
sector=$((($(stat -c %s a.hds) + 32768) / 512))
printf 'bitmap %s 0 1024\nrange 0 1\npoke 80 %s\n' $u1 \
  "$(perl -e 'print unpack ("H*", pack ("Q<", $ARGV[0]))' $sector)" |
  pl write a.hds rounded
refused 'two clusters overlap' a.hds list a.hds
# A cluster of bits that is the guest's, too.
new_image a.hds 4M 32K 2
printf 'bitmap %s 0 512\nrange 0 1\npoke 80 4000000000000000\n' $u1 |
  pl write a.hds rounded
[ "$(in_use a.hds)" = 312e3276 ] || fail "the test's own idea"
refused 'BAT entry' a.hds add a.hds
img 0 remove --all a.hds
same_disk a.hds

say "bad input"
new_image b.hds 4M 32K 2
img 0 add --uuid=$u1 b.hds
refused 'not a UUID' b.hds add --uuid=xyz b.hds
refused 'not a UUID' b.hds add --uuid= b.hds
refused 'not a UUID' b.hds add --uuid="{$u2" b.hds
refused 'not a UUID' b.hds dump --uuid=1 b.hds
refused 'not a UUID' b.hds merge --into=1 b.hds $u1
refused 'not a UUID' b.hds merge --into=$u1 b.hds 1
refused 'already' b.hds add --uuid=$u1 b.hds
refused 'power of two' b.hds add --granularity=0 b.hds
refused 'power of two' b.hds add --granularity=3K b.hds
refused 'power of two' b.hds add --granularity=4G b.hds
refused 'not a size' b.hds add --granularity=x b.hds
refused "no bitmap with the UUID $u2" b.hds dump --uuid=$u2 b.hds
refused "no bitmap with the UUID $u2" b.hds remove --uuid=$u2 b.hds
refused "no bitmap with the UUID $u2" b.hds merge --into=$u2 b.hds $u1
refused "no bitmap with the UUID $u2" b.hds merge --into=$u1 b.hds $u2
refused 'into itself' b.hds merge --into=$u1 b.hds $u1
refused 'into itself' b.hds merge --into=$u1 --source=./b.hds b.hds $u1
refused 'either --uuid=UUID or --all' b.hds remove b.hds
refused 'either --uuid=UUID or --all' b.hds remove --all --uuid=$u1 b.hds
refused 'into=UUID is missing' b.hds merge b.hds $u1
refused 'SOURCE_UUID is missing' b.hds merge --into=$u1 b.hds
refused 'uuid=UUID is missing' b.hds dump b.hds
refused 'human or json' b.hds list --output=xml b.hds
refused 'No such file' b.hds merge --into=$u1 --source=none.hds b.hds $u1
for sub in "list @" "add @" "remove --all @" "dump --uuid=$u1 @"; do
  refused 'none.hds.*No such file' b.hds ${sub/@/none.hds}
  refused_for 'not an expandable ploop image' b.hds.raw "$sub"
done
new_image c.hds 8M 32K 2
img 0 add --uuid=$u2 c.hds
refused 'not of one disk' b.hds merge --into=$u1 --source=c.hds b.hds $u2
# 64 TiB in bits of 512 bytes take more than a cluster of 32 KiB names.
"$PLOOP_IMG" create -q --cluster-size=32K h.hds 2T
refused 'one cluster.*granularity' h.hds add --granularity=512 h.hds
chmod a-w h.hds
if [ ! -w h.hds ]; then refused 'may not be written' h.hds add h.hds; fi
# Two of one name.
new_image t.hds 4M 32K 2
printf "bitmap $u1 0 65536\nrange 0 1\nbitmap $u1 0 65536\n" | pl write t.hds rounded
refused 'two bitmaps have the UUID' t.hds dump --uuid=$u1 t.hds
img 0 remove --all t.hds
grep -q 'removed 2 bitmaps' out || fail "two of one name: what is said"

# ---- Descriptors and locks

say "a disk with a descriptor"
cp -r corpus/c-chain3-v2-b64 chain
"$PLOOP_IMG" convert -q -O raw chain chain.raw
img 0 add --uuid=$u1 --granularity=32K chain
img 0 list chain/DiskDescriptor.xml
grep -q "^$u1 " out || fail "descriptor: list"
carriers=0
for delta in chain/*.hds*; do
  [ "$(in_use "$delta")" != 312e3276 ] || carriers=$((carriers + 1))
done
[ $carriers -eq 1 ] || fail "$carriers deltas carry it"
"$PLOOP_IMG" compare -q chain chain.raw || fail "descriptor: the disk has changed"
# A lower delta's bitmap, with the descriptor's lock held for the top.
for delta in chain/*.hds*; do
  [ "$(in_use "$delta")" = 00000000 ] || continue
  img 0 add --set --uuid=$u2 "$delta"
  img 0 merge --into=$u1 --source="$delta" chain $u2
  break
done
img 0 list --output=json chain
size=$(sed -n 's/.*"size" : \([0-9]*\).*/\1/p' out)
grep -q "\"dirty-bytes\" : $size" out || fail "merged from a lower delta"
img 0 remove --all chain
"$PLOOP_IMG" compare -q chain chain.raw || fail "descriptor: the disk has changed"
refused 'split disk' corpus/d-split2/DiskDescriptor.xml list corpus/d-split2

say "locks"
start_nbdkit file="$tmp/c.hds"
img 0 list c.hds
refused 'in use' c.hds add c.hds
refused 'in use' c.hds remove --all c.hds
stop_nbdkit
new_image w.hds 4M 32K 2
start_nbdkit file="$tmp/w.hds"
refused 'in use' w.hds list w.hds
refused 'in use' w.hds add w.hds
refused 'in use' b.hds merge --into=$u1 --source=w.hds b.hds $u1
stop_nbdkit

# ---- The forms of output

say "JSON"
json_members ()
{
  perl -MJSON::PP -0777 -e 'print join (" ", sort keys %{decode_json (<STDIN>)}), "\n"' \
    < out
}
members ()
{
  local want=$1 name
  shift
  img 0 "$@"
  [ "$(json_members)" = "$want" ] || { cat out; fail "$*: members"; }
  for name in $want; do
    grep -q "^=item.*C<$name>" "$abs_top_srcdir/man/ploop-img.pod" ||
      fail "ploop-img(1) does not describe $name"
  done
}
sizes="file-size-after file-size-before"
members "bitmaps file" list --output=json b.hds
members "dirty-bytes file $sizes granularity result size uuid" \
  add --output=json --uuid=$u2 --set b.hds
members "file ranges uuid" dump --output=json --uuid=$u2 b.hds
grep -q '{ "offset" : 0, "length" : 4194304 }' out || fail "JSON: ranges"
members "file ranges uuid" dump --output=json --uuid=$u1 b.hds
grep -q '"ranges" : \[\]' out || fail "JSON: no ranges"
members "dirty-bytes file $sizes granularity result size uuid" \
  merge --output=json --into=$u1 b.hds $u2
members "file $sizes removed-bitmaps result state" remove --output=json --all b.hds
grep -q '"file-size-after" : '"$(stat -c %s b.hds)" out || fail "JSON: size"
members "file $sizes removed-bitmaps result state" remove --output=json --all -n b.hds
grep -q '"result" : "dry-run"' out || fail "JSON: dry run"
say "passed"
