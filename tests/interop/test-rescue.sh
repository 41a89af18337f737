#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that ploop-img rescue copies all that can be read of a damaged disk and lists
# the rest: every image and chain of the corpus, damage of each kind, headers that have
# to be told, missing deltas, bad sectors, random bit flips; into each kind of target,
# as a list for people, JSON and a map of ddrescue; and that it never changes the disk,
# never guesses, and never takes older data unasked.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires cmp awk perl qemu-img qemu-io nbdcopy
unpack_corpus
cd "$tmp"

# rescue STATUS ARG...: what it says is in rescue.log.
rescue ()
{
  local want=$1 status=0
  shift
  "$PLOOP_IMG" rescue "$@" > rescue.log 2>&1 || status=$?
  [ $status -eq "$want" ] ||
    { cat rescue.log; fail "rescue $*: exit status $status, not $want"; }
}

# says TEXT: an extended regular expression, in what was said last.
says ()
{
  grep -Eq -- "$1" rescue.log || { cat rescue.log; fail "it does not say '$1'"; }
}

# refuses TEXT ARG...: with an error, and without a target.
refuses ()
{
  local text=$1
  shift
  rescue 1 "$@"
  says "$text"
  [ ! -e none ] && [ ! -e none.part ] && [ ! -e none.map ] ||
    fail "rescue $*: left something behind"
}

# expect_sha FILE SHA256
expect_sha ()
{
  [ "$(sha256sum < "$1" | cut -d ' ' -f 1)" = "$2" ] ||
    fail "$1: not the content that it must have"
}

# sha_of ENTRY: by the MANIFEST.
sha_of ()
{
  awk -F '\t' -v e="$1" '$4 == e { print $5; exit }' "$PLOOP_CORPUS/MANIFEST.tsv"
}

poke ()
{
  perl -e 'my ($file, $offset, @values) = @ARGV;
           open (my $f, "+<", $file) or die "$file: $!\n";
           seek ($f, $offset, 0);
           print $f pack ("V*", map { /^0x/ ? hex : $_ } @values);' "$@"
}

# ---- What is whole

say "the corpus"
while IFS=$'\t' read -r _ _ _ entry sha size _; do
  case "$entry" in
    c-*'#'*) args=(--snapshot="${entry#*#}" "corpus/${entry%%#*}") ;;
    [a-g]-*) args=("corpus/$entry") ;;
    *) continue ;;
  esac
  [ "$sha" != - ] || continue
  due || continue
  if [ "$size" -gt $((64 << 20)) ]; then
    rescue 0 --force -O raw "${args[@]}" copy
    "$PLOOP_IMG" compare -q "${args[-1]}" copy || fail "$entry: not the same"
  else
    # Not to a file, which would be synced.
    "$PLOOP_IMG" rescue -O raw "${args[@]}" - > copy 2> rescue.log ||
      { cat rescue.log; fail "$entry: exit status $?"; }
    expect_sha copy "$sha"
  fi
  says '^nothing is lost$'
done < <(tail -n +2 "$PLOOP_CORPUS/MANIFEST.tsv")

# ---- What is damaged

say "damage"
h=corpus/h-corrupt
while IFS='|' read -r name status text; do
  before=$(file_state $h/$name.hds)
  rescue "$status" --force -O raw $h/$name.hds copy
  says "$text"
  [ "$(file_state $h/$name.hds)" = "$before" ] || fail "$name: was changed"
  # Half a GiB, nearly all of it a hole.
  if [ $name = in-bat-area ]; then
    qemu-img compare -q -f raw -F parallels copy $h/$name.hds || fail "$name"
  else
    expect_sha copy "$(sha_of h-corrupt/$name.hds)"
  fi
done <<'END'
ok|0|^nothing is lost$
dup|2|^doubtful: 32 KiB at byte 327680: .*, that at byte 32768$
beyond-eof|2|^lost: 32 KiB at byte 327680: .*past the end
bat-ffffffff|2|^lost: 32 KiB at byte 327680: .*past the end
v1-unaligned|2|^doubtful: 32 KiB at byte 65536: .*in one place
in-bat-area|2|^lost: 32 KiB at byte 327680: .*points into itself
tail-cut-1000|2|^doubtful: 1000 bytes at byte 195608: .*the file ends before it
leak-tail|0|^nothing is lost$
off-zero|0|^nothing is lost$
off-huge|0|warning: .*first data offset is 4294967232
inuse-garbage|0|^nothing is lost$
short-100|2|^lost: 7.7 MiB at byte 294912: .*the file ends inside the table
END

say "an image that was not closed"
rescue 0 --force -O raw corpus/e-qemu-killed/i.hds copy
cp $h/beyond-eof.hds dirty.hds
end=$(stat -c %s dirty.hds)
poke dirty.hds 44 0x746F6E59
poke dirty.hds $((64 + 10 * 4)) $((end / 32768 + 1))
rescue 2 --force -O raw dirty.hds copy
says '^doubtful: .*never flushed'
"$PLOOP_IMG" convert -q -O raw dirty.hds opened
cmp copy opened || fail "a cluster that was never flushed: not as it is opened"

# ---- Headers

say "headers"
ok=$(sha_of h-corrupt/ok.hds)
refuses 'cluster size is 0.*256 clusters make 16384.*version 2 with clusters of 32 KiB' \
  -O raw $h/sectors-0.hds none
rescue 0 --force -O raw --cluster-size=32K $h/sectors-0.hds copy
expect_sha copy "$ok"
refuses 'must be 256 BAT entries, but their number is 4294967295' \
  -O raw $h/nbat-huge.hds none
rescue 0 --force -O raw --size=8M $h/nbat-huge.hds copy
expect_sha copy "$ok"
refuses 'disk size is 18446744073709551615 sectors.*8388608 bytes' \
  -O raw $h/size-huge.hds none
rescue 0 --force -O raw --size=8M $h/size-huge.hds copy
expect_sha copy "$ok"

cp $h/ok.hds signature.hds
poke signature.hds 0 0 0 0 0
refuses 'signature is "".*give its version.*version 2 with clusters of 32 KiB' \
  -O raw signature.hds none
rescue 2 --force -O raw --version=2 signature.hds copy
says '^lost: .*zeros there, like the header'
expect_sha copy "$ok"

# The first sector is gone, and with it the first 112 entries; those behind it are not.
"$PLOOP_IMG" create -q --version=1 --cluster-size=64K wiped.hds 32M
truncate -s 32M raw
for at in 1 50 200 300; do
  perl -e 'print chr ($_ % 250 + 1) x 512 for 1 .. 128' |
    dd of=raw bs=64K seek=$at conv=notrunc status=none
done
qemu-img convert -n -f raw -O parallels raw wiped.hds
dd if=/dev/zero of=wiped.hds bs=512 count=1 conv=notrunc status=none
refuses 'version 1 with clusters of 64 KiB' -O raw wiped.hds none
rescue 2 --force -O raw --version=1 --cluster-size=64K --size=32M wiped.hds copy
says '^lost: 7 MiB at byte 0: .*zeros there'
cmp -i $((7 << 20)) raw copy || fail "what is behind the wiped sector"
cmp -n $((7 << 20)) copy /dev/zero || fail "what is in the wiped sector"

say "an interrupted conversion"
refuses 'conversion was interrupted.*\.idx' -O raw $h/flag-convert-inuse.hds none
head -c 32768 $h/ok.hds > image.idx
cp $h/flag-convert-inuse.hds converted.hds
poke converted.hds 64 64 128 192 256
rescue 0 --force -O raw --index=image.idx converted.hds copy
expect_sha copy "$ok"
rescue 0 --force -O raw --index=$h/flag-convert-inuse.hds \
  $h/flag-convert-inuse.hds copy
expect_sha copy "$ok"

# ---- Chains

say "chains"
chain=corpus/c-chain3-v2-b64
mapfile -t files < <(awk -F '[<>]' '$2 == "File" { print $3 }' \
  "$chain/DiskDescriptor.xml")
rescue 0 --force -O raw $chain whole
middle=$chain/${files[1]} top=$chain/${files[2]}
cp -r $chain single
rm single/DiskDescriptor.xml
rescue 0 --force -O raw --base="single/${files[1]}" --base="single/${files[0]}" \
  "single/${files[2]}" copy
cmp whole copy || fail "the files one by one"
refuses 'is one delta of a disk' -O raw "$top" none

mv "$middle" away
refuses "${files[1]}" -O raw $chain none
rescue 2 --force -O raw --missing-ok --output=json $chain lost
says '"reason" : "missing"'
rescue 2 --force -O raw --missing-ok --fall-through $chain older
says '^older: .*missing'
# What the top has is there; the rest is lost, or the base's.
perl -e '
  local $/;
  my ($whole, $lost, $older, $base) = map { open (my $f, "<", $_) or die; <$f> } @ARGV;
  my $top = 0;
  for (my $i = 0; $i < length ($whole); $i += 32768) {
    my ($w, $l, $o, $b) = map { substr ($_, $i, 32768) } $whole, $lost, $older, $base;
    if ($l =~ /[^\0]/) { die "lost: $i\n" if $l ne $w; $top++; }
    else { die "older: $i\n" if $o ne $b && $o ne $w; }
  }
  die "nothing is left of the top\n" if !$top;' \
  whole lost older <("$PLOOP_IMG" convert -q -O raw \
    --snapshot='{00000001-1111-2222-3333-444444444444}' $chain - ) ||
  fail "a missing delta"
mv away "$middle"

# An entry of the top that is wrong: lost, or what is below it.
entry=$((64 + 4 * $(perl -e '
  open (my $f, "<", $ARGV[0]); read ($f, my $b, 1000);
  my @e = unpack ("V*", substr ($b, 64, 400));
  for (0 .. $#e) { if ($e[$_]) { print $_; last; } }' "$top")))
cp "$top" saved
poke "$top" $entry 0xfffffff
rescue 2 --force -O raw $chain lost
at=$(((entry - 64) / 4 * 32768))
says "^lost: 32 KiB at byte $at: "
cmp -s -n 32768 -i $at:0 lost /dev/zero || fail "older data, unasked"
rescue 2 --force -O raw --fall-through $chain older
"$PLOOP_IMG" convert -q --force -O raw \
  --snapshot='{00000002-1111-2222-3333-444444444444}' $chain below
cmp -n 32768 -i $at older below || fail "what is below it"
cmp -n $at older whole || fail "what is before it"
cp saved "$top"

mv "$top" away
refuses "${files[2]}" -O raw $chain none
rescue 2 --force -O raw --missing-ok --fall-through $chain older
cmp older below || fail "the top is missing"
mv away "$top"
printf '<Parallels_disk_image>' > broken.xml
refuses 'restore the descriptor, or give the files' -O raw broken.xml none

# ---- Bad sectors

if nbdkit eval --version > /dev/null 2>&1; then
  say "bad sectors"
  truncate -s 4M base.raw
  perl -e 'print chr ($_ % 250 + 1) x 512 for 0 .. 8191' > base.raw
  "$PLOOP_IMG" create -q --cluster-size=64K over.hds 4M
  export BAD_FILE=$tmp/base.raw
  # Two sectors, and one at the end, in a device that gives nothing of a request that
  # touches them.
  start_remote eval get_size='stat -c %s $BAD_FILE' pread='
    first=$(($4 / 512)) end=$((($4 + $3 + 511) / 512))
    for bad in 777 778 8191; do
      if [ $first -le $bad ] && [ $bad -lt $end ]; then
        echo EIO broken >&2; exit 1
      fi
    done
    dd if=$BAD_FILE iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none'
  rescue 2 --force -O raw --base="$remote_uri" over.hds copy
  says '^lost: 1 KiB at byte 397824: nbd.*cannot be read'
  says '^lost: 512 bytes at byte 4193792: nbd.*cannot be read'
  cp base.raw expected
  dd if=/dev/zero of=expected bs=512 seek=777 count=2 conv=notrunc status=none
  dd if=/dev/zero of=expected bs=512 seek=8191 count=1 conv=notrunc status=none
  cmp copy expected || fail "what lies beside bad sectors"
  stop_remote
fi

# ---- Targets and lists

say "targets"
rescue 2 $h/dup.hds copy.hds
"$PLOOP_IMG" check -q copy.hds || fail "the copy has damage itself"
rescue 2 --force -O raw $h/dup.hds copy
"$PLOOP_IMG" compare -q copy.hds copy || fail "an image and a raw file differ"
rescue 2 --target-version=1 --target-cluster-size=64K $h/dup.hds one.hds
[ "$("$PLOOP_IMG" info --output=json one.hds | grep -c -E \
  '"(version" : 1|cluster-size" : 65536),')" -eq 2 ] || fail "what was asked for"
"$PLOOP_IMG" compare -q one.hds copy || fail "a version 1 image"
status=0
"$PLOOP_IMG" rescue -O raw $h/dup.hds - > stream 2> rescue.log || status=$?
[ $status -eq 2 ] || fail "to standard output: exit status $status"
says '^doubtful: 32 KiB at byte 327680'
cmp stream copy || fail "standard output"
start_nbdkit file=copy.hds
rescue 2 $h/tail-cut-1000.hds "$uri"
nbdcopy "$uri" out
expect_sha out "$(sha_of h-corrupt/tail-cut-1000.hds)"
stop_nbdkit
rescue 2 -q --force -O raw $h/dup.hds copy
[ ! -s rescue.log ] || fail "--quiet is not"

say "lists"
rescue 2 --force -O raw --map=disk.map --output=json $h/beyond-eof.hds copy
perl -MJSON::PP -0777 -e '
  my $o = decode_json (<STDIN>);
  my $r = $o->{ranges};
  die if $o->{result} ne "partial" || $o->{"lost-bytes"} != 32768
      || $o->{"nr-ranges"} != 1 || @$r != 1 || $r->[0]{kind} ne "lost"
      || $r->[0]{reason} ne "past-end" || $r->[0]{offset} != 327680
      || $r->[0]{length} != 32768 || $r->[0]{file} !~ /beyond-eof/;' \
  < rescue.log || { cat rescue.log; fail "JSON"; }
cat > expected.map <<'END'
0x00000000  0x00050000  +
0x00050000  0x00008000  -
0x00058000  0x007A8000  +
END
grep '^0x' disk.map | tail -n +2 | diff - expected.map || fail "the map"
if command -v ddrescuelog > /dev/null; then
  [ "$(ddrescuelog -l- disk.map | wc -l)" -eq 64 ] || fail "ddrescuelog"
fi
rescue 2 --force -O raw --map=disk.map $h/dup.hds copy
[ "$(grep -c '  \*$' disk.map)" -eq 2 ] || fail "the map of what is doubtful"
rescue 0 --force -O raw --map=disk.map $h/ok.hds copy
[ "$(grep '^0x' disk.map | tail -n +2)" = '0x00000000  0x00800000  +' ] ||
  fail "the map of a whole disk"

# ---- Errors

say "errors"
refuses 'absent: .*No such file' absent none
refuses 'TARGET is missing' $h/ok.hds
refuses "'x' is not a version" --version=x $h/ok.hds none
refuses "^ploop-img rescue: --target-version: '3'" --target-version=3 $h/ok.hds none
refuses "^ploop-img rescue: --cluster-size: '0' cannot be" --cluster-size=0 $h/ok.hds none
refuses "^ploop-img rescue: --size: '1000'" --size=1000 $h/ok.hds none
refuses "--target-cluster-size: 'x'" --target-cluster-size=x $h/ok.hds none
refuses 'cluster size is 49152 bytes.*power of two' --target-cluster-size=48K \
  $h/ok.hds none
refuses "cluster size is 4294966784 bytes" --cluster-size=4294966784 $h/ok.hds none
refuses "--format: 'qcow2'" --format=qcow2 $h/ok.hds none
refuses "--output: 'xml'" --output=xml $h/ok.hds none
refuses 'absent: .*No such file' --index=absent $h/ok.hds none
refuses 'bases and an index are for' --index=image.idx $chain none
refuses 'bases and an index are for' --base=raw $chain none
refuses 'absent: .*No such file' --base=absent $h/ok.hds none
refuses 'only a DiskDescriptor.xml' --snapshot='{00000001-1111-2222-3333-444444444444}' \
  $h/ok.hds none
refuses 'no snapshot has the GUID' \
  --snapshot='{00000009-1111-2222-3333-444444444444}' $chain none
refuses 'cluster size is 32768 bytes, but that of' --base=$h/ok.hds wiped.hds none \
  --version=1 --cluster-size=64K --size=32M
refuses 'signature is' -O raw raw none
refuses 'disk.map: exists already' -O raw --map=disk.map $h/ok.hds none
refuses 'copy: exists already' $h/ok.hds copy
refuses 'how large the disk is, is not known' --missing-ok absent none
refuses 'must be at most' --missing-ok --size=4096P absent none
refuses '--output=json: standard output' --output=json -O raw $h/ok.hds -
refuses 'cannot be written to standard output' $h/ok.hds -
refuses 'in use' -O raw --force $h/ok.hds $h/ok.hds
: > empty
refuses 'signature is ""' empty none
start_nbdkit file=copy.hds
refuses 'in use' copy.hds none
stop_nbdkit

say "a signal"
if nbdkit --filter=delay null --version > /dev/null 2>&1; then
  "$PLOOP_IMG" create -q big.hds 512M
  start_remote --filter=delay pattern 512M rdelay=100ms
  "$PLOOP_IMG" rescue -O raw --base="$remote_uri" big.hds none > rescue.log 2>&1 &
  pid=$!
  wait_until test -e none.part
  kill -TERM $pid
  status=0
  wait $pid || status=$?
  # Before it catches signals, one kills.
  [ $status -eq 3 ] || [ $status -eq 143 ] || fail "a signal: exit status $status"
  [ $status -eq 143 ] || [ ! -e none.part ] || fail "a signal: none.part is left"
  [ ! -e none ] || fail "a signal: there is a copy"
  rm -f none.part
  stop_remote
fi

# ---- At random

say "random damage"
for ((i = 0; i < 24; i++)); do
  due || continue
  seed=$((_seed * 100 + i))
  cp $h/ok.hds random.hds
  perl -e '
    my ($file, $seed) = @ARGV;
    srand ($seed);
    open (my $f, "+<", $file) or die;
    read ($f, my $b, 2000);
    for (0 .. rand (6)) {
      my $at = rand () < 0.3 ? 16 + rand (48) : 64 + rand (1024);
      substr ($b, $at, 1) ^= chr (1 << rand (8));
    }
    seek ($f, 0, 0);
    print $f $b;
    truncate ($f, rand (-s $file)) if rand () < 0.2;' random.hds $seed
  before=$(file_state random.hds)
  status=0
  rm -f copy
  timeout 60 "$PLOOP_IMG" rescue -O raw random.hds copy > rescue.log 2>&1 ||
    status=$?
  [ $status -le 2 ] ||
    { cat rescue.log; fail "seed $seed: exit status $status"; }
  [ "$(file_state random.hds)" = "$before" ] || fail "seed $seed: it was changed"
  # What can be opened reads the same.
  if "$PLOOP_IMG" convert -q --force -O raw random.hds opened 2> /dev/null; then
    cmp copy opened || fail "seed $seed: not as it is opened"
  fi
done
say "passed"
