#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that ploop-img map tells the truth about where everything of a disk is:
# check-map.pl reads each extent from its file at its host offset, and finds what the
# disk has there, for the corpus (images, chains, snapshots, a split disk), images and
# chains made at random, raw and remote bases; that qemu-img map says the same of
# single images, and a server of the holes; that what is damaged or in use is an
# error; that nothing is changed; and that the picture is valid and no larger than it
# may be.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires perl qemu-img nbdinfo cmp
unpack_corpus

# map ARG...: ploop-img map must succeed.  What it prints is in $tmp/map.
map ()
{
  "$PLOOP_IMG" map "$@" > "$tmp/map" 2> "$tmp/map.err" ||
    { cat "$tmp/map.err"; fail "map $*"; }
}

# content BYTES DISK [OPTION]: what it reads as, in $tmp/raw; by the way that is quicker:
# without a sync, or with holes.
content ()
{
  local bytes=$1
  shift
  if [ "$bytes" -gt $((64 << 20)) ]; then
    "$PLOOP_IMG" convert -q -O raw --force "$@" "$tmp/raw"
  else
    "$PLOOP_IMG" convert -O raw "$@" - > "$tmp/raw"
  fi
}

# expect_error TEXT ARG...: exit status 1, TEXT on standard error, nothing else.
expect_error ()
{
  local text=$1 status=0
  shift
  "$PLOOP_IMG" map "$@" > "$tmp/map" 2> "$tmp/map.err" || status=$?
  [ $status -eq 1 ] || fail "map $*: exit status $status, not 1"
  [ ! -s "$tmp/map" ] || fail "map $*: printed something, though it failed"
  grep -q -e "$text" "$tmp/map.err" ||
    { cat "$tmp/map.err"; fail "map $*: does not say '$text'"; }
}

# expect_true WHAT CONTENT [URI=FILE]: $tmp/map is a true map of CONTENT.
expect_true ()
{
  local what=$1
  shift
  perl "$abs_srcdir/check-map.pl" "$tmp/map" "$@" 2> "$tmp/check.err" ||
    { cat "$tmp/map" "$tmp/check.err"; fail "$what: the map is not true"; }
}

# json EXPRESSION: of $m, the map.
json ()
{
  perl -MJSON::PP -0777 -e 'my $m = decode_json (<STDIN>);
                            print eval ($ARGV[0]) // die $@' "$1" < "$tmp/map"
}

# expect_svg WHAT: $tmp/map is XML, and not too large.
expect_svg ()
{
  [ "$(stat -c %s "$tmp/map")" -lt 4000000 ] || fail "$1: a large picture"
  grep -q '^</svg>$' "$tmp/map" || fail "$1: a picture without an end"
  if command -v xmllint > /dev/null; then
    xmllint --noout "$tmp/map" || fail "$1: a picture that is no XML"
  fi
}

# As qemu has it: clusters that are joined if they are in a row on the disk and in
# the file, holes in them or not.
compare_with_qemu ()
{
  qemu-img map --output=json -f parallels "$1" > "$tmp/qemu"
  perl -MJSON::PP -e '
    sub extents {
      local $/; open (my $f, "<", $_[0]); my $json = decode_json (<$f>);
      my @joined;
      for (@{ref $json eq "HASH" ? $json->{extents} : $json}) {
        my $at = $_->{"host-offset"} // $_->{offset};
        $at = undef if ($_->{kind} // "") eq "unmapped";
        next unless defined $at;
        my $start = $_->{start} // $_->{offset};
        my $last = $joined[-1];
        if ($last && $last->[0] + $last->[2] == $start
                  && $last->[1] + $last->[2] == $at) {
          $last->[2] += $_->{length};
        }
        else { push @joined, [$start, $at, $_->{length}]; }
      }
      return join "", map { "@$_\n" } @joined;
    }
    my ($ours, $theirs) = map { extents ($_) } @ARGV;
    $ours eq $theirs or die "ours:\n${ours}theirs:\n$theirs";' \
    "$tmp/map" "$tmp/qemu" || fail "$1: not what qemu-img map says"
}

# ---- The corpus

say "corpus"
while IFS=$'\t' read -r name _ _ entry sha bytes _; do
  case "$name" in
    name | i-* | h-*) continue ;;
  esac
  due || continue
  path=$tmp/corpus/${entry%#*} snapshot=
  case "$entry" in
    *#*) snapshot=--snapshot=${entry#*#} ;;
  esac
  map $snapshot --output=json "$path"
  content "$bytes" "$path" $snapshot
  # A sum of the larger ones takes seconds, and test-corpus.sh makes it.
  [ "$bytes" -gt $((64 << 20)) ] || [ "$sha" = "$(sha256sum < "$tmp/raw" | cut -d' ' -f1)" ] ||
    fail "$name: not the content that it must have"
  expect_true "$name" "$tmp/raw"
  [ "$(json '$m->{size}')" = "$bytes" ] || fail "$name: size of the disk"
  case "$path" in
    */e-*) compare_with_qemu "$path" ;;
  esac
  map $snapshot --output=svg "$path"
  expect_svg "$name"
done < "$tmp/corpus/MANIFEST.tsv"

# The test's own eyes: what is not true is seen.
say "check-map.pl"
map --output=json "$tmp/corpus/c-chain3-v2-b64"
content 0 "$tmp/corpus/c-chain3-v2-b64"
expect_true chain "$tmp/raw"
cp "$tmp/map" "$tmp/true"
for lie in 's/"host-offset":2129920/"host-offset":2129921/' \
    's/"length":2097152,"kind"/"length":2097151,"kind"/' \
    's/"use":"hidden"/"use":"data"/' 's/"use":"data"/"use":"hidden"/' \
    's/"delta":1,"host/"delta":0,"host/' 's/"kind":"unmapped"/"kind":"data","delta":0,"host-offset":32768/' \
    's/"fragments":2/"fragments":3/' 's/"hidden-bytes":./&0/' \
    's/"disk-offset":15728640/"disk-offset":15597568/'; do
  sed "$lie" "$tmp/true" > "$tmp/map"
  ! cmp -s "$tmp/map" "$tmp/true" || fail "no lie: $lie"
  ! perl "$abs_srcdir/check-map.pl" "$tmp/map" "$tmp/raw" 2> /dev/null ||
    fail "not seen: $lie"
done

# ---- What is in files

say "leaks, holes, bitmaps"
map --output=json "$tmp/corpus/g-cbt/one.hds"
[ "$(json '$m->{deltas}[0]{"extension-bytes"}')" = 65536 ] || fail "bitmaps"
map --output=json "$tmp/corpus/g-cbt/inuse.hds"
[ "$(json '$m->{deltas}[0]{"extension-bytes"}')" = 0 ] || fail "stale bitmaps"
[ "$(json '$m->{deltas}[0]{"leaked-bytes"} > 0')" = 1 ] || fail "stale bitmaps leak"
map --output=json "$tmp/corpus/g-cbt/badmd5.hds"
grep -q 'warning: .*badmd5.hds: .*shown as leaked' "$tmp/map.err" || fail "a bad MD5"
map --output=json "$tmp/corpus/h-corrupt/leak-tail.hds"
[ "$(json '$m->{deltas}[0]{"leaked-bytes"} + $m->{deltas}[0]{"free-bytes"} > 0')" = 1 ] ||
  fail "a leaked tail"
# A cluster that no table names: in a hole it is free.
"$PLOOP_IMG" create -q --cluster-size=64K "$tmp/leak.hds" 1M
truncate -s $((65536 * 3)) "$tmp/leak.hds"
dd if=/dev/urandom of="$tmp/leak.hds" bs=64k seek=3 count=1 conv=notrunc status=none
map --output=json "$tmp/leak.hds"
"$PLOOP_IMG" check --output=json "$tmp/leak.hds" > "$tmp/check" || :
grep -q '"leaked-clusters" : 3,' "$tmp/check" || fail "the image has no leaked clusters"
[ "$(json '$m->{deltas}[0]{"leaked-bytes"} + $m->{deltas}[0]{"free-bytes"}')" = \
  $((65536 * 3)) ] || fail "a leaked cluster"
[ "$(json '$m->{deltas}[0]{"leaked-bytes"} >= 65536')" = 1 ] || fail "a leaked cluster"

# ---- Images made at random

# random_image FILE SEED...: and what is true of any.
random_image ()
{
  perl "$abs_srcdir/random-image.pl" "$@" || fail "random-image.pl $*"
}

seeds=${PLOOP_MAP_SEEDS:-$(seq $((_seed * 100)) $((_seed * 100 + 11)))}
say "random images, seeds" $seeds
for seed in $seeds; do
  image=$tmp/random.hds
  random_image "$image" "$seed"
  before=$(file_state "$image")
  map --output=json "$image"
  qemu-img convert -f parallels -O raw "$image" "$tmp/raw"
  expect_true "seed $seed" "$tmp/raw"
  compare_with_qemu "$image"
  map --output=svg "$image"
  expect_svg "seed $seed"
  [ "$(file_state "$image")" = "$before" ] || fail "seed $seed: the image was changed"
done

say "random chains"
for seed in $seeds; do
  [ $((seed % 3)) -eq 0 ] || continue
  cluster=$((1 << (3 + seed % 5)))
  bases=()
  for level in 0 1 2 3; do
    image=$tmp/level$level.hds
    random_image "$image" $((seed + level * 1000)) $cluster $((40 + seed % 7))
    bases=("--base=$image" ${bases[@]+"${bases[@]}"})
  done
  random_image "$tmp/top.hds" $((seed + 4000)) $cluster $((40 + seed % 7))
  # The base as a raw disk, now and then.
  if [ $((seed % 2)) -eq 0 ]; then
    qemu-img convert -f parallels -O raw "$tmp/level0.hds" "$tmp/level0.raw"
    bases[3]=--base=$tmp/level0.raw
  fi
  map --output=json "${bases[@]}" "$tmp/top.hds"
  overlay_bases=()
  for base in "${bases[@]}"; do overlay_bases+=("base=${base#--base=}"); done
  start_nbdkit -r file="$tmp/top.hds" "${overlay_bases[@]}" ||
    fail "seed $seed: not served"
  nbdcopy "$uri" "$tmp/raw"
  nbdinfo --map --json "$uri" > "$tmp/served"
  stop_nbdkit
  expect_true "chain of seed $seed" "$tmp/raw"
  map --output=svg "${bases[@]}" "$tmp/top.hds"
  expect_svg "chain of seed $seed"
done

# ---- As a server tells it

say "extents of a server"
random_image "$tmp/served.hds" "$_seed" 128 200
start_nbdkit -r extents=detail file="$tmp/served.hds"
nbdinfo --map --json "$uri" > "$tmp/served"
stop_nbdkit
map --output=json "$tmp/served.hds"
perl -MJSON::PP -e '
  sub holes {
    local $/; open (my $f, "<", $_[0]); my $json = decode_json (<$f>);
    my ($data, @joined);
    for (@{ref $json eq "HASH" ? $json->{extents} : $json}) {
      my $is = exists $_->{kind} ? $_->{kind} eq "data" : $_->{type} == 0;
      if (@joined && $is == $data) { $joined[-1][1] += $_->{length} }
      else { push @joined, [$_->{offset}, $_->{length}, $is ? 1 : 0] }
      $data = $is;
    }
    return join "", map { "@$_\n" } @joined;
  }
  my ($ours, $theirs) = map { holes ($_) } @ARGV;
  $ours eq $theirs or die "map:\n${ours}server:\n$theirs";' \
  "$tmp/map" "$tmp/served" || fail "not the holes that a server tells"

say "a remote base"
head -c 3000000 /dev/urandom > "$tmp/base.raw"
truncate -s 4M "$tmp/base.raw"
"$PLOOP_IMG" create -q --cluster-size=64K "$tmp/over.hds" 4M
start_remote file "$tmp/base.raw"
map --output=json --base="$remote_uri" "$tmp/over.hds"
expect_true "a remote base" "$tmp/base.raw" "$remote_uri=$tmp/base.raw"
stop_remote

# ---- Forms

say "forms"
disk=$tmp/corpus/c-chain3-v2-b64
map "$disk"
grep -q '^ *offset  *length  kind  *delta  *host offset$' "$tmp/map" || fail "human: no table"
grep -q '^delta 2: /.*: level 2, version 2, file of 448 KiB$' "$tmp/map" || fail "human: no delta"
grep -q '^  metadata 32 KiB, data 4 MiB, hidden 1 MiB; 160 clusters in 2 fragments$' "$tmp/map" ||
  fail "human: no summary"
! grep -q 'disk offset' "$tmp/map" || fail "human: files unasked"
cp "$tmp/map" "$tmp/disk-view"
map --view=disk --output=human "$disk"
cmp "$tmp/map" "$tmp/disk-view" || fail "human is not the disk"
map --view=files "$disk"
grep -q '^ *offset  *length  use  *disk offset$' "$tmp/map" || fail "files: no table"
! grep -q 'host offset' "$tmp/map" || fail "files: disk unasked"
map --view=all "$disk"
grep -q 'disk offset' "$tmp/map" && grep -q 'host offset' "$tmp/map" || fail "all: not all"
map --view=disk --output=json "$disk"
[ "$(json 'exists $m->{deltas}[0]{ranges} ? 0 : scalar @{$m->{extents}}')" = 12 ] ||
  fail "JSON: of the disk"
map --view=files --output=json "$disk"
[ "$(json 'exists $m->{extents} ? 0 : scalar @{$m->{deltas}[1]{ranges}}')" = 5 ] ||
  fail "JSON: of the files"
# The manual has all members.
map --output=json "$disk"
for name in $(json 'my %n; for ($m, @{$m->{deltas}}, @{$m->{extents}},
                   map { @{$_->{ranges}} } @{$m->{deltas}}) { $n{$_}++ for keys %$_ }
                   join " ", sort keys %n'); do
  grep -q "^=item.*C<$name>" "$abs_top_srcdir/man/ploop-img.pod" ||
    fail "ploop-img(1) does not describe $name"
done

say "names"
for name in 'a<b>&"c'"'"'.hds' $'con\x01trol\x1b\n.hds' $'bad\xff.hds'; do
  cp --sparse=always "$tmp/random.hds" "$tmp/$name"
  map --output=svg -- "$tmp/$name"
  expect_svg "name"
  map --output=json -- "$tmp/$name"
  json '$m->{size}' > /dev/null || fail "JSON of a name"
done

# ---- Large disks

say "large disks"
"$PLOOP_IMG" create -q "$tmp/large.hds" 16T
map --output=json "$tmp/large.hds"
[ "$(json 'scalar @{$m->{extents}}')" = 1 ] || fail "16 TiB of nothing"
map --output=svg "$tmp/large.hds"
expect_svg "16 TiB"
# 200000 clusters without order, 25 GiB of holes.
perl -e 'my $n = 200000; my $first = 7;
  open (my $f, ">:raw", $ARGV[0]) or die;
  print $f pack ("a16V5Q<V3Q<", "WithouFreSpacExt", 2, 16, 1, 256, $n, $n * 256, 0,
                 $first * 256, 0, 0);
  print $f pack ("V*", map { $first + $_ * 77777 % $n } 0 .. $n - 1);
  truncate ($f, ($first + $n) * 131072) or die;' "$tmp/motley.hds"
map --output=svg "$tmp/motley.hds"
expect_svg "200000 fragments"
map "$tmp/motley.hds"
grep -q '; 200000 clusters in 200000 fragments, 1 would do$' "$tmp/map" ||
  { tail -n 1 "$tmp/map"; fail "200000 fragments are not told"; }

# ---- What is no map

say "errors"
for name in dup beyond-eof bat-ffffffff in-bat-area flag-convert-inuse nbat-huge \
    off-huge sectors-0 short-100 size-huge v1-unaligned; do
  for form in human json svg; do
    expect_error "$name.hds: " --output=$form "$tmp/corpus/h-corrupt/$name.hds"
  done
done
expect_error 'No such file' "$tmp/nonexistent"
expect_error 'not an expandable ploop image' "$tmp/base.raw"
expect_error 'DISK is missing'
expect_error 'unexpected argument' "$disk" "$disk"
expect_error "--output: 'xml' .*human, json, svg" --output=xml "$disk"
expect_error "--output: '' " --output= "$disk"
expect_error "--view: 'both' .*disk, files, all" --view=both "$disk"
expect_error '--view: .*svg' --view=files --output=svg "$disk"
expect_error '33333333-' --snapshot='{33333333-1111-2222-3333-444444444444}' "$disk"
expect_error 'has snapshots' --snapshot='{00000001-1111-2222-3333-444444444444}' "$tmp/random.hds"
expect_error 'nonexistent' --base="$tmp/nonexistent" "$tmp/over.hds"
expect_error 'leave out base=' --base="$tmp/over.hds" "$disk"
expect_error 'is twice' --base="$tmp/over.hds" "$tmp/over.hds"
mkdir "$tmp/outside"
sed 's,<File>root.hds</File>,<File>../root.hds</File>,' \
  "$tmp/corpus/d-noshot/DiskDescriptor.xml" > "$tmp/outside/DiskDescriptor.xml"
cp --sparse=always "$tmp/corpus/d-noshot/root.hds" "$tmp"
expect_error 'outside' "$tmp/outside"
map --allow-outside --output=json "$tmp/outside"
if [ -c /dev/full ]; then
  for form in human json svg; do
    ! "$PLOOP_IMG" map --output=$form "$disk" > /dev/full 2> /dev/null ||
      fail "$form: a full disk is not noticed"
  done
fi

say "locks"
cp --sparse=always "$tmp/random.hds" "$tmp/locked.hds"
start_nbdkit file="$tmp/locked.hds"
io 'write -P 7 0 512'
expect_error 'locked.hds: .*in use' "$tmp/locked.hds"
stop_nbdkit
start_nbdkit -r file="$tmp/locked.hds"
map "$tmp/locked.hds"
stop_nbdkit
[ -z "$(find "$tmp/corpus" -name '*.lck')" ] || fail "a lock file was left behind"
say "passed"
