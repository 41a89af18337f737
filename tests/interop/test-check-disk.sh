#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves what ploop-img check finds that test-ploop-img-check.sh does not damage: each
# rule that descriptor and images of a disk may break, one by one; what else of one
# image is worth telling; and that an image with flipped bits which it calls clean reads
# as before.  Whatever it finds, nothing is changed.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires perl qemu-img cmp
unpack_corpus
cd "$tmp"

top='{5fbaabe3-6958-40ff-92a7-860e329aab41}'
one='{00000001-1111-2222-3333-444444444444}'
two='{00000002-1111-2222-3333-444444444444}'
three='{00000003-1111-2222-3333-444444444444}'
none='{00000000-0000-0000-0000-000000000000}'

# state DISK: what must not change.
state ()
{
  local where=$1
  case $where in *.xml) where=${where%/*} ;; esac
  [ ! -e "$where" ] || find "$where" -printf '%p %y %i %s %T@ %C@\n'
}

# checks STATUS DISK [PATTERN [FILE]]: ploop-img check DISK ends with STATUS, in all
# forms of output; a finding about FILE (its base name) matches PATTERN.
checks ()
{
  local want=$1 disk=$2 pattern=${3:-} file=${4:-} before form rc
  before=$(state "$disk")
  for form in --output=human --output=json --quiet; do
    rc=0
    # This says nothing that the others do not say.
    [ $form != --quiet ] || [ "$want" -eq 1 ] || [ $((RANDOM % 4)) -eq 0 ] ||
      continue
    "$PLOOP_IMG" check $form ${outside:-} "$disk" > "out$form" 2> "err$form" ||
      rc=$?
    [ $rc -eq "$want" ] || { cat "out$form" "err$form"
      fail "$disk: $form: exit status $rc, not $want"; }
    [ $rc -eq 1 ] || [ ! -s "err$form" ] ||
      { cat "err$form"; fail "$disk: on standard error"; }
  done
  [ "$before" = "$(state "$disk")" ] || fail "$disk: check changed it"
  if [ "$want" -eq 1 ]; then
    [ ! -s out--output=json ] || fail "$disk: JSON, though it failed"
    grep -q "^ploop-img: .*$pattern" err--quiet || fail "$disk: no '$pattern'"
    return
  fi
  perl -MJSON::PP -0777 -e '
    my ($pattern, $file, $human) = @ARGV;
    my $all = decode_json (<STDIN>);
    my %count = (error => 0, leak => 0, note => 0);
    my ($found, $lines) = (0, "");
    for (@{$all->{findings}}) {
      $count{$_->{kind}}++;
      my $of = $_->{file} eq $all->{file} ? "" : "$_->{file}: ";
      $lines .= "$_->{kind}: $of$_->{message}\n";
      $found = 1 if "$_->{kind}: $_->{message}" =~ $pattern
                    && $_->{file} =~ m{(^|/)\Q$file\E$};
    }
    for (qw(error leak note)) {
      $all->{"${_}s"} == $count{$_} or die "wrong count of $_\n";
    }
    open (my $h, "<", $human) or die;
    my $text = join ("", <$h>);
    index ($text, $lines) == 0 or die "JSON says something else:\n$lines$text";
    $pattern eq "" || $found
      or die "no \"$pattern\" about \"$file\" in:\n$text";
    ' "$pattern" "$file" out--output=human < out--output=json ||
    fail "$disk: what is found"
}

# without KIND: no such finding was made by the last check.
without ()
{
  ! grep -E "^($1)" out--output=human || fail "unexpected"
}

# copy NAME [FROM]: a disk to damage, chain by default; $xml is its descriptor.
copy ()
{
  cp -r --sparse=always "corpus/${2:-c-chain3-v2-b64}" "$1"
  disk=$1 xml=$1/DiskDescriptor.xml
  middle=$(cd "$1" && sed -n 's/.*<File>\(.*\)<.File>/\1/p' DiskDescriptor.xml |
           sed -n 2p)
  upper=$(cd "$1" && sed -n 's/.*<File>\(.*\)<.File>/\1/p' DiskDescriptor.xml |
          tail -n 1)
}

# edit CODE: perl CODE on the whole descriptor, which must change it.
edit ()
{
  cp "$xml" before.xml
  perl -0777 -pi -e "$1" "$xml"
  ! cmp -s "$xml" before.xml || fail "this changes nothing: $1"
}

# poke FILE OFFSET VALUE...: write 32-bit little-endian words.
poke ()
{
  perl -e 'my ($file, $offset, @values) = @ARGV;
           open (my $f, "+<", $file) or die "$file: $!\n";
           seek ($f, $offset, 0);
           print $f pack ("V*", map { /^0x/ ? hex : $_ } @values);' "$@"
}

# ---- Sound disks

say "sound disks"
for sound in corpus/[a-d]-*/; do
  checks 0 "$sound"
  checks 0 "${sound}DiskDescriptor.xml"
  without 'error|leak'
done
checks 0 corpus/b-grown-v2-b64 'note: .*does not name' before.hds
checks 0 corpus/c-mixedver 'note: .*version 1, but rests on .* version 2' \
       "$(cd corpus/c-mixedver && ls root.hds.*)"
checks 0 corpus/d-split2 'note: has 2 <Storage>' DiskDescriptor.xml
checks 0 corpus/d-noshot 'note: has no <Shot>' DiskDescriptor.xml
while read -r name want; do
  checks "$want" corpus/i-xml/x-$name.xml
done << 'END'
2storage 2
badguid 2
bs63 2
cyc 2
ent 1
lol 1
missing 2
noshot 0
ns 0
trav 2
upperguid 0
vz 0
ws 0
END

# ---- The images of a disk

say "images"
copy image
poke "$disk/root.hds" 64 0xffffffff
checks 2 "$disk" 'error: .*entry 0 is 4294967295' root.hds
copy header
poke "$disk/$middle" 28 0
checks 2 "$disk" 'error: cluster size is 0' "$middle"
copy signature
printf x | dd of="$disk/$middle" conv=notrunc status=none
checks 2 "$disk" 'error: signature' "$middle"
copy short
truncate -s 30 "$disk/$middle"
checks 2 "$disk" 'error: file size is 30 bytes' "$middle"
copy missing
rm "$disk/$middle"
checks 2 "$disk" 'error: .*<File> is .*No such file' DiskDescriptor.xml
copy directory
rm "$disk/$middle"
mkdir "$disk/$middle"
checks 2 "$disk" 'error: .*is a directory' DiskDescriptor.xml
copy fifo
rm "$disk/$middle"
mkfifo "$disk/$middle"
checks 2 "$disk" 'error: .*not a regular file' DiskDescriptor.xml
copy leak
truncate -s +1M "$disk/$upper"
checks 3 "$disk" 'leak: 32 clusters' "$upper"
copy dirty
poke "$disk/root.hds" 44 0x746f6e59
checks 0 "$disk" 'note: is marked as in use, but others rest on it' root.hds
copy dirty-top
poke "$disk/$upper" 44 0x746f6e59
checks 0 "$disk" 'note: in use is 0x746f6e59' "$upper"
without 'note: .*others rest on it'

# Clusters are those of all images.
"$PLOOP_IMG" check corpus/c-chain3-v2-b64 | grep '^clusters: 1536,' > /dev/null ||
  fail "the sum of clusters"

# ---- How images go together

say "images together"
copy blocksize
edit 's{<Blocksize>64<}{<Blocksize>128<}'
for file in root.hds "$middle" "$upper"; do
  checks 2 "$disk" 'error: cluster size is 64 .*<Blocksize> .* is 128' "$file"
done
copy cluster
"$PLOOP_IMG" create -q --force --cluster-size=64K "$disk/$middle" 16M
checks 2 "$disk" 'error: cluster size is 128' "$middle"
copy lower-larger
"$PLOOP_IMG" create -q --force --cluster-size=32K "$disk/root.hds" 17M
checks 0 "$disk" 'note: has a disk of 17825792 bytes, larger than that of' root.hds
copy stale
edit 's{<Disk_size>\d+<}{<Disk_size>4096<}'
checks 0 "$disk" 'note: <Disk_size> is 4096 sectors, but .* ends at 32768' \
       DiskDescriptor.xml
copy stale-end
edit 's{<(Disk_size|End)>\d+<}{<$1>65536<}g'
checks 0 "$disk" 'note: <Storage> number 0 has 33554432 .*the image rules' \
       DiskDescriptor.xml
copy part-short d-split2
"$PLOOP_IMG" create -q --force "$disk/s0.hds" 3M
checks 2 "$disk" 'error: has 3145728 .* its end is missing' s0.hds
copy part-long d-split2
"$PLOOP_IMG" create -q --force "$disk/s0.hds" 5M
checks 0 "$disk" 'note: .*4194304 .*5242880: what lies behind' DiskDescriptor.xml
copy part-image d-split2
edit "s{<Image>\\s*<GUID>[^<]*(</GUID>\\s*<Type>Compressed</Type>\\s*<File>s1)}{<Image><GUID>$three\$1}s"
checks 2 "$disk" "error: <Storage> number 1: no <Image> has the GUID $top" \
       DiskDescriptor.xml

# Raw and not.
copy raw-base c-rawbase-v2-b2048
edit 's{Plain}{Compressed}g'
checks 2 "$disk" 'error: signature .*raw disk, <Type> must be Plain' root.hds
copy raw-upper c-rawbase-v2-b2048
cp "$disk/root.hds" "$disk/$upper"
checks 2 "$disk" 'error: signature' "$upper"
copy raw-odd c-rawbase-v2-b2048
truncate -s -100 "$disk/root.hds"
checks 0 "$disk" 'note: a raw disk of 6291356 bytes' root.hds
copy plain-image
edit 's{Compressed}{Plain}'
checks 0 "$disk" 'note: <Type> is Plain' root.hds

# ---- Files by several names, or none

say "files"
copy twice
edit "s{<File>\\Q$middle\\E<}{<File>root.hds<}"
checks 2 "$disk" 'error: .*have one file, .*/root.hds' DiskDescriptor.xml
checks 2 "$disk" 'note: .*does not name' "$middle"
copy linked
ln -f "$disk/root.hds" "$disk/$middle"
checks 2 "$disk" 'error: .*have one file' DiskDescriptor.xml
copy unused
edit "s{(.*<Image>.*?</Image>)}{\$1<Image><GUID>$three</GUID><File>lost.hds</File></Image>}s"
"$PLOOP_IMG" create -q --cluster-size=32K "$disk/lost.hds" 16M
checks 3 "$disk" "leak: the image $three .lost.hds. belongs to no <Shot>" \
       DiskDescriptor.xml
copy stray
cp "$disk/root.hds" "$disk/stray"
echo text > "$disk/README"
checks 0 "$disk" 'note: is an image that the descriptor does not name' stray
without 'note: .*README'
copy elsewhere
mv "$disk/root.hds" away.hds
edit 's{<File>root.hds<}{<File>../away.hds<}'
checks 2 "$disk" 'error: .*outside the directory' DiskDescriptor.xml
outside=--allow-outside checks 0 "$disk" 'note: .*outside the directory' \
       DiskDescriptor.xml
copy linked-out
mv "$disk/root.hds" away.hds
ln -s ../away.hds "$disk/root.hds"
checks 2 "$disk" 'error: .*outside the directory' DiskDescriptor.xml
outside=--allow-outside checks 0 "$disk"

# ---- What the descriptor says of shots

say "shots"
copy parent
edit "s{<ParentGUID>\\Q$one\\E<}{<ParentGUID>$three<}"
checks 2 "$disk" "error: the <Shot> $two has the <ParentGUID> $three, which no" \
       DiskDescriptor.xml
copy bases
edit "s{<ParentGUID>\\Q$one\\E<}{<ParentGUID>$none<}"
checks 0 "$disk" 'note: 2 <Shot> have no parent' DiskDescriptor.xml
copy circle
edit "s{<ParentGUID>\\Q$none\\E<}{<ParentGUID>$two<}"
checks 2 "$disk" 'error: the <Shot> .* is its own ancestor' DiskDescriptor.xml
[ "$(grep -c 'own ancestor' out--output=human)" -eq 1 ] || fail "a circle, twice"
copy same-shot
edit "s{(<Shot>.*?</Shot>)}{\$1\$1}s"
checks 2 "$disk" "error: two <Shot> have the GUID $one" DiskDescriptor.xml
copy same-image
edit "s{(<Image>.*?</Image>)}{\$1\$1}s"
checks 2 "$disk" "error: .*two images have the GUID $one" DiskDescriptor.xml
copy no-image
edit "s{<Image>\\s*<GUID>\\Q$two\\E.*?</Image>}{}s"
checks 2 "$disk" "error: .*no <Image> has the GUID $two" DiskDescriptor.xml
copy no-top
edit 's{<TopGUID>.*?</TopGUID>}{}'
checks 0 "$disk" "note: has no <TopGUID>: $top is taken" DiskDescriptor.xml
copy two-tops c-tree-v2-b64
edit "s{<TopGUID>.*?</TopGUID>}{}; s{\\Q$top\\E}{$three}g"
checks 2 "$disk" "error: .*no <TopGUID>.*must be one of" DiskDescriptor.xml
copy wrong-top
edit "s{<TopGUID>.*?<}{<TopGUID>$three<}"
checks 2 "$disk" "error: <TopGUID> is $three, which no <Shot> has" \
       DiskDescriptor.xml
copy old-top
edit "s{\\Q$top\\E}{$three}g"
checks 0 "$disk" "note: <TopGUID> is $three, as older" DiskDescriptor.xml
copy other-top c-tree-v2-b64
edit "s{<TopGUID>.*?<}{<TopGUID>$two<}"
checks 0 "$disk" "note: <TopGUID> is $two, but there is a <Shot> $top" \
       DiskDescriptor.xml
copy low-top
edit "s{<TopGUID>.*?<}{<TopGUID>$two<}"
checks 2 "$disk" "error: <TopGUID> is $two, on which others rest" \
       DiskDescriptor.xml

# levels N DIR: a disk of N levels.
levels ()
{
  mkdir "$2"
  "$PLOOP_IMG" create -q --cluster-size=32K "$2/0.hds" 1M
  perl -MFile::Copy -e '
    my ($n, $dir, $none) = @ARGV;
    my ($images, $shots, $parent) = ("", "", $none);
    for (0 .. $n - 1) {
      my $guid = sprintf ("{%08x-0000-4000-8000-00000000abcd}", $_);
      copy ("$dir/0.hds", "$dir/$_.hds") if $_;
      $images .= "<Image><GUID>$guid</GUID><File>$_.hds</File></Image>\n";
      $shots = "<Shot><GUID>$guid</GUID><ParentGUID>$parent</ParentGUID></Shot>\n"
               . $shots;
      $parent = $guid;
    }
    print "<Parallels_disk_image><Disk_Parameters><Disk_size>2048</Disk_size>",
          "</Disk_Parameters><StorageData><Storage><Start>0</Start>",
          "<End>2048</End><Blocksize>64</Blocksize>$images</Storage>",
          "</StorageData><Snapshots><TopGUID>$parent</TopGUID>$shots",
          "</Snapshots></Parallels_disk_image>\n";' \
    "$1" "$2" "$none" > "$2/DiskDescriptor.xml"
}
levels 254 deep
checks 0 deep 'note: has 253 snapshots: ploop makes 126' DiskDescriptor.xml
without 'error'
levels 255 deeper
checks 2 deeper 'error: the <Shot> {000000fe.* more than 254 levels' \
       DiskDescriptor.xml
[ "$(grep -c '^error' out--output=human)" -eq 1 ] || fail "too deep, more than once"

# ---- Descriptors that cannot be read

say "broken descriptors"
for code in 's{</Snapshots>}{}' 's{.*}{}s' 's{<StorageData>.*</StorageData>}{}s' \
    's{<Blocksize>64}{<Blocksize>0}' 's{<Start>0}{<Start>7}' \
    's{<Disk_size>.*?</Disk_size>}{}' 's{Compressed}{Shiny}' \
    's{<File>root.hds}{<File>}' 's{Parallels_disk_image}{something}g' \
    's{^}{garbage}' 's{<GUID>.}{<GUID>}' 's{.*}{"\0" x 4096}es'; do
  due || continue
  rm -rf broken
  copy broken
  edit "$code"
  poke "$disk/$middle" 64 0xffffffff
  # Found, and each image is looked at.
  checks 2 "$disk" 'error' DiskDescriptor.xml
  checks 2 "$xml" 'error: .*4294967295' "$middle"
done
mkdir other
echo '<domain/>' > other/other.xml
checks 1 other/other.xml 'not a disk descriptor'
mkdir nothing
checks 1 nothing 'No such file'
checks 1 absent 'No such file'

# In use.
copy used
: > "$xml.lck"
exec 9< "$xml.lck"
flock -x 9
checks 1 "$disk" 'in use'
exec 9<&-
checks 0 "$disk"

# ---- One image

say "one image"
"$PLOOP_IMG" create -q --cluster-size=32K good.hds 8M
poke good.hds 64 1 2 3
poke good.hds 52 0
dd if=/dev/urandom of=good.hds bs=32K seek=1 count=3 status=none
checks 0 good.hds
# image OFFSET VALUES STATUS PATTERN: poked into a copy of it, and what is found.
image ()
{
  cp good.hds poked.hds
  # shellcheck disable=SC2086
  poke poked.hds "$1" $2
  checks "$3" ./poked.hds "$4" poked.hds
}
image 44 0x312e3276 0 'note: in use is 0x312e3276.* there is none'
image 52 2 0 'note: flags are 2: .*being converted'
image 52 0x40 0 'note: flags are 64, of which 64 are unknown'
image 36 16383 0 'note: disk size is 16383 sectors, not a multiple'
image 36 0 3 'note: disk size is 0 sectors'
image 36 16000 0 'note: number of BAT entries is 256, but .* only 250'
image 20 3 0 'note: heads and cylinders are 3 and'
image 2000 1 0 'note: byte 2000 between'
image 1088 1 0 'note: byte 1088 between'
image 36 64 3 'leak: 2 BAT entries lie past the end of the disk'
# qemu's geometry is one, too.
qemu-img create -q -f parallels -o cluster_size=1M qemu.hds 100M
checks 0 ./qemu.hds
without 'note: heads'

"$PLOOP_IMG" create -q --version=1 --cluster-size=32K v1.hds 8M
poke v1.hds 64 64 128 192
poke v1.hds 52 0
truncate -s 131072 v1.hds
checks 0 ./v1.hds
cp v1.hds upper.hds
poke upper.hds 40 7
checks 0 ./upper.hds 'note: bytes 40 to 43 are 0x00000007' upper.hds
cp v1.hds off-grid.hds
poke off-grid.hds 72 0 224
truncate -s $((288 * 512)) off-grid.hds
checks 0 ./off-grid.hds 'note: 1 clusters do not lie' off-grid.hds

# Bitmaps.  bitmaps FILE CODE: change the cluster of the extension, $c, with perl CODE,
# and seal it.
bitmaps ()
{
  cp corpus/g-cbt/two.hds "$1"
  perl -MDigest::MD5=md5 -e '
    my ($file, $code) = @ARGV;
    open (my $f, "+<:raw", $file) or die;
    my $at = 512 * 2752;
    seek ($f, 56, 0); read ($f, my $field, 8);
    $at = 512 * unpack ("Q<", $field);
    seek ($f, $at, 0); read ($f, our $c, 32768);
    eval $code; die $@ if $@;
    substr ($c, 8, 16) = md5 (substr ($c, 24));
    seek ($f, $at, 0); print $f $c;' "$1" "$2"
}
bitmaps same.hds ''
checks 0 ./same.hds
without 'error|note: .*bitmap|note: extension'
bitmaps size.hds 'substr ($c, 48, 8) = pack ("Q<", 32768 - 64)'
checks 2 ./size.hds 'error: bitmap 0: is of a disk of 32704 sectors' size.hds
bitmaps granularity.hds 'substr ($c, 72, 4) = pack ("V", 96)'
checks 2 ./granularity.hds 'error: bitmap 0: granularity is 96' granularity.hds
bitmaps magic.hds 'substr ($c, 0, 1) = "x"'
checks 2 ./magic.hds 'error: extension magic' magic.hds
bitmaps uuid.hds 'my $n = unpack ("V", substr ($c, 40, 4));
  substr ($c, 24 + 24 + $n + 24 + 8, 16) = substr ($c, 56, 16)'
checks 2 ./uuid.hds 'error: bitmap 1: has the UUID of one before' uuid.hds
bitmaps long.hds 'my $n = unpack ("V", substr ($c, 40, 4));
  my $l1 = unpack ("V", substr ($c, 76, 4));
  substr ($c, 40, 4) = pack ("V", $n + 8); substr ($c, 76, 4) = pack ("V", $l1 + 1);
  substr ($c, 48 + $n, 0) = pack ("Q<", 0); $c = substr ($c, 0, 32768)'
checks 0 ./long.hds 'note: bitmap 0: L1 length is 2, but .* only 1' long.hds
bitmaps unknown.hds 'substr ($c, 24, 0) = pack ("Q<Q<VVQ<", 77, 0, 8, 0, 5);
  $c = substr ($c, 0, 32768)'
checks 0 ./unknown.hds 'note: extension: has 1 features of an unknown' unknown.hds
bitmaps necessary.hds 'substr ($c, 24, 0) = pack ("Q<Q<VVQ<", 77, 1, 8, 0, 5);
  $c = substr ($c, 0, 32768)'
checks 2 ./necessary.hds 'error: .*necessary and unknown' necessary.hds
bitmaps shared.hds 'my $n = unpack ("V", substr ($c, 40, 4));
  substr ($c, 48 + $n + 24 + 32, 8) = substr ($c, 80, 8)'
checks 2 ./shared.hds 'error: extension: two clusters overlap' shared.hds
cp corpus/g-cbt/two.hds mapped.hds
poke mapped.hds $((64 + 4 * 500)) 43
checks 2 ./mapped.hds 'error: BAT entry 500 is 43 .*a cluster of the extension' \
       mapped.hds

# ---- Flipped bits

# What is called clean must be opened, and read as qemu reads it, if it does; and as
# before, up to where it ends now, unless the clusters have another size: nobody can
# tell that then.
flip ()
{
  perl -e '
    my ($from, $to, $seed, $bytes) = @ARGV;
    srand ($seed);
    open (my $f, "<:raw", $from) or die; local $/; my $all = <$f>;
    for (0 .. int (rand (3))) {
      my $at = int (rand (rand () < 0.5 ? 64 : $bytes));
      substr ($all, $at, 1) ^= chr (1 << int (rand (8)));
    }
    open ($f, ">:raw", $to) or die; print $f $all;' "$@"
}

scale=${PLOOP_TEST_SCALE:-100}

# flips IMAGE BYTES: in the first BYTES of it.
flips ()
{
  local seed rc clean=0 damaged=0
  "$PLOOP_IMG" convert -q --force -O raw "$1" plain
  for ((seed = _seed; seed < _seed + 8 + 32 * scale / 100; seed++)); do
    flip "$1" flipped.hds $seed "$2"
    rc=0
    "$PLOOP_IMG" check flipped.hds > flipped.log 2>&1 || rc=$?
    [ $rc -le 3 ] || { cat flipped.log; fail "seed $seed: exit status $rc"; }
    if [ $rc -ne 0 ]; then
      damaged=$((damaged + 1))
      continue
    fi
    clean=$((clean + 1))
    rm -f read
    "$PLOOP_IMG" convert -q -O raw flipped.hds read 2>> flipped.log ||
      { cat flipped.log; fail "$1, seed $seed: clean, but cannot be read"; }
    ! cmp -s -n 36 "$1" flipped.hds || cmp -n "$(stat -c %s read)" read plain ||
      { cat flipped.log; fail "$1, seed $seed: clean, but another content"; }
    qemu-img compare -q -f parallels -F raw flipped.hds read 2>> flipped.log ||
      [ $? -eq 2 ] || { cat flipped.log
        fail "$1, seed $seed: clean, but qemu reads something else"; }
  done
  say "$1: clean: $clean, damaged: $damaged"
  [ $damaged -gt 0 ] || fail "no damage in all these images"
}

say "flipped bits"
flips good.hds 1088
flips v1.hds 1088
flips corpus/g-cbt/two.hds 2112
flips corpus/e-qemu-c4096/i.hds 4096

# A whole disk that is called clean can be opened.
say "flipped bits of whole disks"
for ((seed = _seed; seed < _seed + 5 + 20 * scale / 100; seed++)); do
  rm -rf flipped read
  copy flipped
  for file in DiskDescriptor.xml root.hds "$middle" "$upper"; do
    [ $((RANDOM % 2)) -eq 0 ] || continue
    cp "$disk/$file" whole
    flip whole "$disk/$file" $seed 1000
  done
  rc=0
  "$PLOOP_IMG" check "$disk" > flipped.log 2>&1 || rc=$?
  [ $rc -le 3 ] || { cat flipped.log; fail "seed $seed: exit status $rc"; }
  "$PLOOP_IMG" info "$disk" > info.log 2>&1 || [ $? -eq 1 ] ||
    { cat info.log; fail "seed $seed: info"; }
  [ $rc -ne 0 ] || "$PLOOP_IMG" convert -q -O raw "$disk" read 2>> flipped.log ||
    { cat flipped.log; fail "seed $seed: clean, but cannot be read"; }
done
