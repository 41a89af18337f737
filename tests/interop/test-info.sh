#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that ploop-img info and snapshot list tell of a whole disk what is so: sizes
# and allocation as each image has them, the tree of snapshots whatever it looks like,
# bitmaps, locks, what cannot be opened and why; that both forms of output say the same;
# and that nothing is changed.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires perl
unpack_corpus
cd "$tmp"

top='{5fbaabe3-6958-40ff-92a7-860e329aab41}'
one='{00000001-1111-2222-3333-444444444444}'
two='{00000002-1111-2222-3333-444444444444}'
three='{00000003-1111-2222-3333-444444444444}'
none='{00000000-0000-0000-0000-000000000000}'

state ()
{
  find corpus -printf '%p %y %i %s %T@ %C@\n'
}

# get EXPRESSION < JSON: a perl expression on the object $o.
get ()
{
  perl -MJSON::PP -0777 -e '
    our $o = decode_json (<STDIN>);
    my $v = eval $ARGV[0]; die $@ if $@;
    print ref $v ? join (" ", map { $_ // "-" } @$v) : $v // "-", "\n";' "$1"
}

# is WHAT EXPRESSION VALUE: of the last JSON.
is ()
{
  local got
  got=$(get "$2" < json)
  [ "$got" = "$3" ] || { cat json; fail "$1: $2 is '$got', not '$3'"; }
}

# run ARG...: ploop-img, for people to $tmp/human, and as JSON to $tmp/json.
run ()
{
  "$PLOOP_IMG" "$@" > human 2> err && [ ! -s err ] ||
    { cat human err; fail "$*: exit status $?"; }
  "$PLOOP_IMG" "$@" --output=json > json || fail "$*: as JSON"
}

# refuses PATTERN ARG...
refuses ()
{
  local pattern=$1 rc=0
  shift
  "$PLOOP_IMG" "$@" > human 2> err || rc=$?
  [ $rc -eq 1 ] && [ ! -s human ] && grep -q "^ploop-img.*$pattern" err ||
    { cat human err; fail "$*: exit status $rc, or not '$pattern'"; }
}

before=$(state)

# ---- Whole disks

say "every image of a disk is described as alone"
for disk in corpus/[a-d]-*/; do
  due || continue
  run info "$disk"
  cp json whole
  get '[map { $_->{path} } @{$o->{deltas}}]' < whole > paths
  read -ra paths < paths
  [ ${#paths[@]} -eq "$(grep -c '<Image>' "$disk/DiskDescriptor.xml")" ] ||
    fail "$disk: number of images"
  i=0
  for path in "${paths[@]}"; do
    if [ "$(get "\$o->{deltas}[$i]{format}" < whole)" = raw ]; then
      is "$path" "\$o->{deltas}[$i]{size}" "$(stat -c %s "$path")"
    else
      "$PLOOP_IMG" info --output=json "$path" > alone
      perl -MJSON::PP -0777 -e '
        open (my $w, "<", "whole"); open (my $a, "<", "alone"); local $/;
        my $d = decode_json (<$w>)->{deltas}[$ARGV[0]];
        my $o = decode_json (<$a>);
        my $j = JSON::PP->new->canonical->allow_nonref;
        for (keys %$o) {
          next if $_ eq "file" || $_ eq "descriptor";
          $j->encode ($d->{$_}) eq $j->encode ($o->{$_}) or die "$_ differs\n";
        }' $i || fail "$path: not what info says of it alone"
    fi
    i=$((i + 1))
  done
  # The same by the descriptor's name, in both forms.
  "$PLOOP_IMG" info "$disk/DiskDescriptor.xml" > other
  cmp human other
  [ "$(grep -c '^delta: ' human)" -eq $i ] || fail "$disk: for people"
  [ "$(get '$o->{size}' < whole)" = "$("$PLOOP_IMG" info "$disk" |
    sed -n 's/^disk size: .*(\([0-9]*\) bytes)/\1/p')" ] || fail "$disk: its size"
done

say "what a disk is"
run info corpus/c-growntop-v2-b64
is grown '$o->{size}' "$(get '$o->{deltas}[1]{size}' < json)"
is grown '$o->{deltas}[0]{size} < $o->{size}' 1
is grown '$o->{format}' ploop
is grown '$o->{top}' "$top"
is grown '[map { $_->{current} ? 1 : 0 } @{$o->{deltas}}]' '0 1'
is grown '$o->{lock}' none
run info corpus/d-split2
is split '[map { $_->{start} } @{$o->{parts}}]' '0 4194304'
is split '[map { $_->{length} } @{$o->{parts}}]' '4194304 4194304'
is split '[map { $_->{part} } @{$o->{deltas}}]' '0 1'
is split '$o->{size}' 8388608
is split '$o->{snapshots}[0]{size}' 8388608
grep -q '^parts: 2$' human || fail "a split disk, for people"
run info corpus/c-rawbase-v2-b2048
is raw '[map { $_->{format} } @{$o->{deltas}}]' 'raw ploop'
is raw 'exists $o->{deltas}[0]{version} ? 1 : 0' 0
grep -q '^  format: raw$' human || fail "a raw base, for people"
run info corpus/c-tree-v2-b64
is tree '[map { $_->{guid} } @{$o->{deltas}}]' "$one $two $top"
is tree '[map { $_->{parent} } @{$o->{deltas}}]' "- $one $one"

say "an image that a descriptor knows"
run info corpus/c-tree-v2-b64/root.hds
is image '$o->{guid}' "$one"
is image 'exists $o->{parent} ? 1 : 0' 0
is image '$o->{descriptor}' "$(realpath corpus/c-tree-v2-b64/DiskDescriptor.xml)"
run info "$(ls corpus/c-growntop-v2-b64/root.hds.*)"
is image '$o->{parent}' "$one"
grep -q "^parent: $one\$" human || fail "an upper image, for people"
run info corpus/h-corrupt/ok.hds
is alone 'exists $o->{guid} || exists $o->{descriptor} ? 1 : 0' 0

say "bitmaps"
run info corpus/g-cbt/two.hds
is two '$o->{extension}' valid
is two '[map { $_->{uuid} } @{$o->{bitmaps}}]' \
   '{e4f2eed0-37fe-4539-b50b-85d2e7fd235f} {00010203-0405-0607-0809-0a0b0c0d0e0f}'
is two '[map { $_->{granularity} } @{$o->{bitmaps}}]' '65536 4096'
is two '[map { $_->{size} } @{$o->{bitmaps}}]' '16777216 16777216'
[ "$(grep -c '^bitmap: ' human)" -eq 2 ] || fail "bitmaps, for people"
run info corpus/g-cbt/inuse.hds
is inuse '$o->{extension}' stale
run info corpus/g-cbt/badmd5.hds
is badmd5 '$o->{extension}' damaged
is badmd5 'scalar @{$o->{bitmaps}}' 0
is badmd5 '$o->{"extension-problem"} =~ /MD5/' 1
run info corpus/g-cbt/gran0.hds
is gran0 '$o->{"extension-problem"} =~ /granularity is 0/' 1
run info corpus/h-corrupt/ext-garbage.hds
is garbage '$o->{extension}' damaged

# ---- What is wrong with it

say "disks that have something wrong"
for name in cyc missing trav 2storage bs63 noshot; do
  run info corpus/i-xml/x-$name.xml
  run snapshot list corpus/i-xml/x-$name.xml
done
cp -r corpus/c-chain3-v2-b64 holed
middle=$(cd holed && sed -n 's/.*<File>\(.*\)<.File>/\1/p' DiskDescriptor.xml |
         sed -n 2p)
rm "holed/$middle"
run info holed
is holed '[map { exists $_->{problem} ? 1 : 0 } @{$o->{deltas}}]' '0 1 0'
is holed '$o->{deltas}[1]{problem} =~ /No such file/' 1
is holed 'exists $o->{deltas}[1]{size} ? 1 : 0' 0
is holed '$o->{size}' 16777216
grep -q '^  problem: .*No such file' human || fail "a missing image, for people"
run snapshot list holed
is holed '$o->{snapshots}[1]{size}' 0
is holed '$o->{snapshots}[1]{problem} =~ /No such file/' 1
printf x | dd of=holed/root.hds conv=notrunc status=none
run info holed
is holed '$o->{deltas}[0]{problem} =~ /signature/' 1
mv holed/root.hds away.hds
ln -s ../away.hds holed/root.hds
run info holed
is holed '$o->{deltas}[0]{problem} =~ /outside/' 1
run info --allow-outside holed
is holed '$o->{deltas}[0]{problem} =~ /signature/' 1
run snapshot list holed
is holed '$o->{snapshots}[0]{problem} =~ /outside/' 1
run snapshot list --allow-outside holed
is holed '$o->{snapshots}[0]{problem} =~ /signature/' 1
cp -r corpus/c-chain3-v2-b64 unused
perl -0777 -pi -e "s{(<Image>.*?</Image>)}{\$1<Image><GUID>$three</GUID>
  <File>root.hds</File></Image>}s" unused/DiskDescriptor.xml
run info unused
is unused '[map { $_->{unused} ? 1 : 0 } @{$o->{deltas}}]' '0 0 0 1'
cp -r corpus/c-chain3-v2-b64 stale
perl -0777 -pi -e 's{<Disk_size>.*?<}{<Disk_size>4096<}' stale/DiskDescriptor.xml
run info stale
is stale '$o->{"descriptor-size"}' 2097152
grep -q '^disk size by the descriptor: 2 MiB' human || fail "stale, for people"

# ---- Locks

say "locks"
cp -r corpus/c-chain3-v2-b64 locked
: > locked/DiskDescriptor.xml.lck
exec 9< locked/DiskDescriptor.xml.lck
flock -x 9
run info locked
is locked '$o->{lock}' writing
run snapshot list locked
exec 9<&-
run info locked
is unlocked '$o->{lock}' none

# ---- Trees

# describe DIR [GUID PARENT MARK]...: a disk of these shots, all with one content.
describe ()
{
  local dir=$1 images='' shots=''
  mkdir -p "$dir"
  shift
  while [ $# -gt 0 ]; do
    cp image.hds "$dir/$1.hds"
    images+="<Image><GUID>$1</GUID><File>$1.hds</File></Image>"
    shots+="<Shot><GUID>$1</GUID><ParentGUID>$2</ParentGUID>$3</Shot>"
    shift 3
  done
  cat > "$dir/DiskDescriptor.xml" << END
<Parallels_disk_image><Disk_Parameters><Disk_size>2048</Disk_size></Disk_Parameters>
<StorageData><Storage><Start>0</Start><End>2048</End><Blocksize>64</Blocksize>$images
</Storage></StorageData><Snapshots><TopGUID>$top</TopGUID>$shots</Snapshots>
</Parallels_disk_image>
END
}

"$PLOOP_IMG" create -q --cluster-size=32K image.hds 1M
touch -d '2020-02-03 04:05:06' image.hds

# draws DIR < TREE: what stands in front of the first digits of the GUIDs.
draws ()
{
  run snapshot list "$1"
  sed 's/^\([^{]*{[0-9a-f]*\)-.*/\1/; s/0000000//' human > drawn
  diff - drawn || { cat human; fail "$1: not drawn so"; }
}

say "trees"
describe line "$top" "$two" '' "$two" "$one" '<Temporary/>' "$one" "$none" ''
draws line << 'END'
  {1
  {2
* {5fbaabe3
END
is line '[map { $_->{temporary} ? 1 : 0 } @{$o->{snapshots}}]' '0 1 0'
is line '[map { $_->{depth} } @{$o->{snapshots}}]' '0 1 2'
is line '[map { $_->{"last-change"} > 0 ? 1 : 0 } @{$o->{snapshots}}]' '1 1 1'
grep -q "$two.* 1 MiB .*(temporary)\$" human || fail "temporary, for people"
run info line
is line '[map { $_->{guid} } @{$o->{deltas}}]' "$one $two $top"

describe fork "$one" "$none" '' "$two" "$one" '' "$three" "$two" '' "$top" "$one" ''
draws fork << 'END'
  {1
  |-- {2
  |   {3
* `-- {5fbaabe3
END
is fork '[map { $_->{parent} } @{$o->{snapshots}}]' "- $one $two $one"

describe roots "$one" "$none" '' "$top" "$one" '' "$two" "$none" '' "$three" "$two" ''
draws roots << 'END'
  |-- {1
* |   {5fbaabe3
  `-- {2
      {3
END

describe circle "$one" "$two" '' "$two" "$one" '' "$top" "$none" ''
draws circle << 'END'
* |-- {5fbaabe3
  `-- {1
      {2
END
describe self "$top" "$top" ''
draws self << 'END'
* {5fbaabe3
END
describe orphan "$top" "$three" '' "$one" "$none" ''
draws orphan << 'END'
* |-- {5fbaabe3
  `-- {1
END
is orphan '$o->{snapshots}[0]{parent}' "$three"

# At random: each once, behind its parent, one deeper.
for ((seed = _seed; seed < _seed + 8; seed++)); do
  due || continue
  rm -rf random
  perl -e '
    srand ($ARGV[0]);
    my @g = ($ARGV[1], map { sprintf ("{%08x-0000-4000-8000-000000000000}", $_) }
             1 .. rand (12));
    my @shots = map { "$g[$_] " . ($_ && rand () < 0.9 ? $g[rand ($_)] : $ARGV[2])
                      . " -\n" } 0 .. $#g;
    print sort { rand () <=> 0.5 } @shots;' $seed "$top" "$none" > shots
  mapfile -t words < <(tr ' ' '\n' < shots)
  for ((i = 2; i < ${#words[@]}; i += 3)); do words[i]=''; done
  describe random "${words[@]}"
  run snapshot list random
  perl -MJSON::PP -0777 -e '
    my %parent; open (my $f, "<", "shots"); local $/ = "\n";
    while (<$f>) { my ($g, $p) = split; $parent{$g} = $p }
    local $/; open ($f, "<", "json");
    my (%depth, $line);
    open (my $h, "<", "human"); my @human = split (/\n/, <$h>);
    for (@{decode_json (<$f>)->{snapshots}}) {
      my ($g, $p) = ($_->{guid}, $_->{parent} // $ARGV[0]);
      exists $depth{$g} and die "$g twice\n";
      $p eq $parent{$g} or die "$g: parent\n";
      $p eq $ARGV[0] || exists $depth{$p} or die "$g before its parent\n";
      $depth{$g} = $p eq $ARGV[0] ? 0 : $depth{$p} + 1;
      $depth{$g} == $_->{depth} or die "$g: depth\n";
      (shift @human) =~ /\Q$g\E/ or die "$g: for people\n";
    }
    %depth == %parent or die "some are missing\n";' "$none" ||
    { cat shots human; fail "seed $seed: a tree at random"; }
done

# A chain as long as can be stays in its columns.
shots=()
parent=$none
for ((i = 1; i < 254; i++)); do
  guid=$(printf '{%08x-0000-4000-8000-000000000000}' $i)
  shots+=("$guid" "$parent" '')
  parent=$guid
done
describe long "${shots[@]}" "$top" "$parent" ''
run snapshot list long
[ "$(wc -l < human)" -eq 254 ] || fail "a long chain"
[ "$(cut -d '{' -f 1 human | sort -u | wc -l)" -eq 2 ] || fail "a long chain moves"
is long '$o->{snapshots}[253]{depth}' 253
run info long
is long 'scalar @{$o->{deltas}}' 254

# ---- What is no disk

say "errors"
refuses 'absent.*No such file' info absent
refuses 'absent.*No such file' snapshot list absent
refuses 'only a DiskDescriptor' snapshot list corpus/h-corrupt/ok.hds
mkdir nothing
refuses 'No such file' info nothing
refuses 'No such file' snapshot list nothing
refuses 'DISK is missing' snapshot list
refuses "unexpected argument 'b'" snapshot list a b
refuses "unknown subcommand 'snapshot frobnicate': use one of .*snapshot list" \
        snapshot frobnicate
refuses "'xml' is not known" snapshot list --output=xml holed
refuses 'allow-inside' info --allow-inside holed
for name in badguid ent lol; do
  refuses "x-$name.xml: line" info corpus/i-xml/x-$name.xml
  refuses "x-$name.xml: line" snapshot list corpus/i-xml/x-$name.xml
done
head -c 5000 /dev/zero > nothing/DiskDescriptor.xml
refuses 'nothing/DiskDescriptor.xml' info nothing
refuses 'nothing/DiskDescriptor.xml' info nothing/DiskDescriptor.xml

[ "$(state)" = "$before" ] || fail "something was changed"
