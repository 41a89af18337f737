#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that ploop-img descriptor restore makes a DiskDescriptor.xml with which a disk
# has the content that it had: for the corpus and for disks and snapshots that ploop
# makes, of which ploop takes it; from files alone, and from what is left of an old
# descriptor, cut off anywhere.  And that it never guesses: what it cannot know, it
# refuses, with nothing changed.  Above all of three files and more: no time, size or
# mark tells a chain from a tree of snapshots.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires awk cmp perl ploop
unpack_corpus
cd "$tmp"

# restore STATUS ARG...: what it says is in restore.log.
restore ()
{
  local want=$1 status=0
  shift
  "$PLOOP_IMG" descriptor restore "$@" > restore.log 2>&1 || status=$?
  [ $status -eq "$want" ] ||
    { cat restore.log; fail "restore $*: exit status $status, not $want"; }
}

# says TEXT: an extended regular expression, in what was said last.
says ()
{
  grep -Eq -- "$1" restore.log || { cat restore.log; fail "it does not say '$1'"; }
}

# dir_state DIR: what must not change when nothing is changed.
dir_state ()
{
  (cd "$1" && stat -c '%n %s %y %i %a' -- * | sort && sha256sum -- * | sort)
}

# refuses TEXT DIR ARG...: with nothing changed.
refuses ()
{
  local text=$1 dir=$2 before
  shift 2
  before=$(dir_state "$dir")
  restore 1 "$dir" "$@"
  says "$text"
  [ "$(dir_state "$dir")" = "$before" ] || fail "$dir: was changed by an error"
}

# refuses_guess DIR: three files and more, of which nothing says that they are a chain.
# A dry run shows the guess, its reasons and the options that say so.
refuses_guess ()
{
  refuses "one chain.*tree.*give the files of one branch with --file, base first" "$1"
  refuses "one chain.*tree.*give the files of one branch with --file, base first" \
    "$1" --dry-run
  says '^order: likely$'
  says "^a guess.*: --file='"
}

sha_of ()
{
  awk -F '\t' -v e="$1" '$4 == e { print $5; exit }' "$PLOOP_CORPUS/MANIFEST.tsv"
}

# expect_disk DIR SHA256: that content, and a descriptor that ploop takes.
expect_disk ()
{
  [ "$("$PLOOP_IMG" convert -q -O raw "$1" - | sha256sum | cut -d ' ' -f 1)" = \
    "$2" ] || fail "$1: not the content that it must have"
  run_ploop "$1" snapshot-list DiskDescriptor.xml > ploop.log 2>&1 ||
    { cat ploop.log; fail "$1: ploop snapshot-list"; }
}

# files_of DIR: as the descriptor has them.
files_of ()
{
  awk -F '[<>]' '$2 == "File" { print $3 }' "$1/DiskDescriptor.xml"
}

# fresh NAME: a disk of the corpus, in $disk, with its files in the array files and one
# option --file for each in given.
fresh ()
{
  rm -rf disk
  cp -a "corpus/$1" disk
  disk=disk
  mapfile -t files < <(files_of disk)
  given=("${files[@]/#/--file=}")
}

# take_guess: the options of the guess that was said last, in the array given.
take_guess ()
{
  eval "given=($(sed -n 's/^a guess.*: --file=/--file=/p' restore.log))"
}

# age FILE...: each was changed a minute after the one before it.
age ()
{
  local minute=10 file
  for file; do
    touch -d "2020-01-01 10:$minute:00" "$disk/$file"
    minute=$((minute + 1))
  done
}

# ---- Of the files alone

say "files alone"
for dir in corpus/[abcd]-*/; do
  due || continue
  name=$(basename "$dir")
  # Half a GiB and more, or not one chain.
  case $name in b-multibat* | b-grown* | d-split2 | c-tree*) continue ;; esac
  fresh "$name"
  rm disk/DiskDescriptor.xml
  sha=$(sha_of "$name/DiskDescriptor.xml")
  if [ ${#files[@]} -gt 2 ]; then
    age "${files[@]}"
    refuses_guess disk
  elif [ $name != a-raw ]; then
    age "${files[@]}"
    restore 0 disk
    says '^order: certain$'
    expect_disk disk "$sha"
    rm disk/DiskDescriptor.xml*
  fi
  restore 0 disk "${given[@]}"
  says '^order: given$'
  expect_disk disk "$sha"
done

say "a descriptor as ploop's"
fresh c-rawbase-v2-b2048
mv disk/DiskDescriptor.xml old.xml
restore 0 disk
perl -pe 's/\{[0-9a-f]{8}-.*?\}/{}/g if /GUID/' old.xml > old
perl -pe 's/\{[0-9a-f]{8}-.*?\}/{}/g if /GUID/' disk/DiskDescriptor.xml > new
diff old new || fail "not as ploop writes it"
[ "$(stat -c %a disk/DiskDescriptor.xml)" = 644 ] || fail "its mode"

say "snapshots that ploop makes"
for ((i = 0; i < 3; i++)); do
  due || continue
  rm -rf disk made
  mkdir disk
  disk=disk
  run_ploop disk init -s 16M -v 1 -b 128 -t none root.hds > ploop.log 2>&1 ||
    { cat ploop.log; fail "ploop init"; }
  for ((n = 0; n < 2 + RANDOM % 3; n++)); do
    [ $n -eq 0 ] || run_ploop disk snapshot DiskDescriptor.xml > ploop.log 2>&1 ||
      { cat ploop.log; fail "ploop snapshot"; }
    start_nbdkit file=disk
    io "write -P $((n + 1)) $((RANDOM % 200 * 65536)) 100k" \
      "write -P $((n + 11)) $((RANDOM % 200 * 65536)) 70000"
    stop_nbdkit
  done
  "$PLOOP_IMG" convert -q -O raw disk - > made
  mapfile -t files < <(files_of disk)
  age "${files[@]}"
  rm disk/DiskDescriptor.xml*
  given=()
  if [ ${#files[@]} -gt 2 ]; then
    refuses_guess disk
    take_guess
  fi
  restore 0 disk "${given[@]}"
  expect_disk disk "$(sha256sum < made | cut -d ' ' -f 1)"
  [ "$(files_of disk)" = "$(printf '%s\n' "${files[@]}")" ] || fail "the order"
done

# Three files that ploop has made as a tree look like a chain: times, sizes, names.
say "a tree that ploop makes"
rm -rf disk made
mkdir disk
run_ploop disk init -s 16M -v 1 -b 128 -t none root.hds > ploop.log 2>&1 ||
  { cat ploop.log; fail "ploop init"; }
run_ploop disk snapshot DiskDescriptor.xml > ploop.log 2>&1 ||
  { cat ploop.log; fail "ploop snapshot"; }
run_ploop disk snapshot DiskDescriptor.xml > ploop.log 2>&1 ||
  { cat ploop.log; fail "ploop snapshot"; }
perl -0ne 'my ($base) = m{<Shot>\s*<GUID>([^<]*)</GUID>\s*<ParentGUID>\{0{8}-};
  print $base' disk/DiskDescriptor.xml > base.guid
run_ploop disk snapshot-switch -u "$(cat base.guid)" DiskDescriptor.xml \
  > ploop.log 2>&1 || { cat ploop.log; fail "ploop snapshot-switch"; }
start_nbdkit file=disk
io "write -P 7 0 1M"
stop_nbdkit
"$PLOOP_IMG" convert -q -O raw disk - > made
mapfile -t files < <(files_of disk)
[ ${#files[@]} -eq 3 ] || fail "not three files"
top=$("$PLOOP_IMG" info --output=json disk | perl -MJSON::PP -0777 -ne '
  print map { $_->{file} } grep { $_->{current} } @{decode_json ($_)->{deltas}}')
age "${files[@]}"
rm disk/DiskDescriptor.xml*
refuses_guess disk
restore 0 disk --file=root.hds --file="$top"
expect_disk disk "$(sha256sum < made | cut -d ' ' -f 1)"

# ---- Doubt

say "doubt"
fresh c-chain3-v2-b64
sha=$(sha_of c-chain3-v2-b64/DiskDescriptor.xml)
rm disk/DiskDescriptor.xml
refuses 'nothing tells which one' disk
says '^may be: '
# Times that say it, but not by a second.
touch -d '2020-01-01 10:00:00.2' "disk/${files[1]}"
touch -d '2020-01-01 10:00:00.9' "disk/${files[2]}"
refuses 'nothing tells which one' disk
# The disk is larger, whatever the times are; that does not make it a chain.
fresh c-chain3-v2-b64
mv disk/DiskDescriptor.xml away
age "${files[0]}" "${files[2]}" "${files[1]}"
perl -e 'open (my $f, "+<", $ARGV[0]) or die; seek ($f, 32, 0);
         print $f pack ("VV", 520, 520 * 64);' "disk/${files[2]}"
refuses_guess disk
says "${files[2]}: above .*: its disk is larger"
# Two of one age, one of them in use.
fresh c-chain3-v2-b64
rm disk/DiskDescriptor.xml
perl -e 'open (my $f, "+<", $ARGV[0]) or die; seek ($f, 44, 0);
         print $f pack ("V", 0x746F6E59);' "disk/${files[2]}"
age "${files[0]}" "${files[2]}"
touch -r "disk/${files[2]}" "disk/${files[1]}"
refuses_guess disk
says "${files[2]}: above .*: it is marked as in use"
restore 0 disk "${given[@]}"
expect_disk disk "$sha"
rm disk/DiskDescriptor.xml*
age "${files[0]}" "${files[2]}" "${files[1]}"
refuses 'is marked as in use, as only a top is' disk
# An empty one.
fresh c-chain3-v2-b64
empty="root.hds.{00000000-1111-2222-3333-444444444444}"
rm disk/DiskDescriptor.xml "disk/${files[2]}"
"$PLOOP_IMG" create -q --cluster-size=32K "disk/$empty" 16M
age "${files[0]}" "$empty"
touch -r "disk/$empty" "disk/${files[1]}"
refuses_guess disk
says "$empty: above .*: it is empty"
# A chain over a raw base is one of three files, too.
fresh c-chain3-v2-b64
rm disk/DiskDescriptor.xml
{ head -c 510 /dev/zero; printf '\125\252'; } > disk/root.hds
truncate -s 16M disk/root.hds
age "${files[@]}"
refuses_guess disk
# With two, the name says which one is lower, but a base does not change below a delta.
fresh c-chain3-v2-b64
rm disk/DiskDescriptor.xml "disk/${files[2]}"
age "${files[1]}" "${files[0]}"
restore 0 disk
says '^root.hds: was changed later than root.hds.*above it'
says '^order: likely$'

say "what does not belong together"
fresh b-grown-v2-b64
rm disk/DiskDescriptor.xml
refuses 'before.hds and root.hds are not named as a base' disk
fresh d-split2
rm disk/DiskDescriptor.xml
refuses 's0.hds and s1.hds are not named' disk
fresh c-chain3-v2-b64
rm disk/DiskDescriptor.xml disk/root.hds
refuses 'are not named as a base' disk
rm "disk/${files[1]}"
refuses 'is named after a base called root.hds, which is not there' disk
fresh b-data-v2-b64
rm disk/DiskDescriptor.xml
truncate -s 1M disk/other.raw
restore 0 disk
rm disk/DiskDescriptor.xml
printf '\125\252' | dd of=disk/other.raw bs=1 seek=510 conv=notrunc status=none
refuses 'root.hds and other.raw are not named' disk
says 'other.raw: .*a partition table'
rm disk/root.hds
restore 0 disk
says '^order: certain$'
grep -q '<Type>Plain</Type>' disk/DiskDescriptor.xml || fail "a raw disk"
# What is called a delta of the disk and is none: the rest is not all of it.
fresh c-chain3-v2-b64
rm disk/DiskDescriptor.xml
: > "disk/${files[1]}"
refuses "is named as a delta above root.hds, but is no image" disk
head -c 1M /dev/zero > "disk/${files[1]}"
refuses "is named as a delta above root.hds, but is no image" disk
restore 0 disk --file=root.hds --file="${files[2]}"
fresh b-data-v2-b64
rm disk/DiskDescriptor.xml
cp corpus/h-corrupt/sectors-0.hds disk/
refuses 'cluster size is 0.*while this file is damaged' disk --file=sectors-0.hds
refuses 'cluster size is 0.*while this file is damaged' disk
rm -rf empty-dir
mkdir empty-dir
echo text > empty-dir/README
refuses 'there is no image' empty-dir

# ---- What is left of a descriptor

say "old descriptors"
fresh c-tree-v2-b64
tree_sha=$(sha_of c-tree-v2-b64/DiskDescriptor.xml)
leaf='{00000002-1111-2222-3333-444444444444}'
leaf_sha=$(sha_of "c-tree-v2-b64/DiskDescriptor.xml#$leaf")
refuses 'is sound, and there is nothing to restore' disk
# The last element and all that closes is gone; all is still said.
perl -0pi -e 's{</Snapshots>.*}{}s' disk/DiskDescriptor.xml
cp disk/DiskDescriptor.xml broken.xml
restore 0 disk
says 'still says how all images rest'
says '^order: certain$'
expect_disk disk "$tree_sha"
"$PLOOP_IMG" convert -q --force -O raw --snapshot="$leaf" disk copy
[ "$(sha256sum < copy | cut -d ' ' -f 1)" = "$leaf_sha" ] || fail "a leaf"
cmp disk/DiskDescriptor.xml.bak broken.xml || fail "the backup"
# A second one does not replace the first.
printf x > disk/DiskDescriptor.xml
chmod 600 disk/DiskDescriptor.xml
restore 0 disk "${given[@]}"
says 'the old descriptor is DiskDescriptor.xml.bak1$'
cmp disk/DiskDescriptor.xml.bak broken.xml || fail "the first backup"
[ "$(cat disk/DiskDescriptor.xml.bak1)" = x ] || fail "the second backup"
[ "$(stat -c %a disk/DiskDescriptor.xml)" = 600 ] || fail "the old one's mode"

# Without the top's shot the tree is not known; that it is one, still is.
fresh c-tree-v2-b64
age "${files[@]}"
perl -0pi -e 's{<Snapshots>.*}{}s; s{<File>root.hds.\{720d.*?</File>}{}' \
  disk/DiskDescriptor.xml
refuses_guess disk
printf '%s' '<Shot><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>
  <ParentGUID>{00000001-1111-2222-3333-444444444444}</ParentGUID></Shot>' \
  >> disk/DiskDescriptor.xml
perl -0pi -e 's{(<GUID>\{5fbaabe3[^<]*</GUID>\s*<Type>Compressed</Type>)}
  {$1<File>root.hds.{720d3604-2588-4fa8-a5b7-eb3e142f4ea8}</File>}x' \
  disk/DiskDescriptor.xml
refuses 'the old descriptor has .* directly above root.hds' disk

# What it names must be there, and what it calls the top must be the top.
fresh c-chain3-v2-b64
rm "disk/${files[1]}"
perl -0pi -e 's{<Snapshots>.*}{}s' disk/DiskDescriptor.xml
refuses "the old descriptor names ${files[1]}, which is not there" disk
fresh c-chain3-v2-b64
rm "disk/${files[1]}" "disk/${files[2]}"
perl -0pi -e 's{<Snapshots>.*}{}s' disk/DiskDescriptor.xml
refuses "the old descriptor names ${files[1]}, which is not there" disk
fresh c-chain3-v2-b64
rm "disk/${files[1]}" "disk/${files[2]}"
perl -0pi -e 's{<StorageData>.*</StorageData>}{}s' disk/DiskDescriptor.xml
refuses 'the old descriptor has 3 snapshots, more than there are files' disk
fresh b-data-v2-b64
perl -0pi -e 's{<Snapshots>.*}{}s' disk/DiskDescriptor.xml
left="root.hds.{00000000-1111-2222-3333-444444444444}"
"$PLOOP_IMG" create -q --cluster-size=32K "disk/$left" 16M
refuses "the old descriptor names root.hds as the top, but $left seems to be above" \
  disk

# All that is lost is which one is the top: each rests where the old one says.
fresh c-chain3-v2-b64
age "${files[@]}"
perl -0pi -e 's{<TopGUID>.*?</TopGUID>}{}s; s{</Snapshots>.*}{}s' \
  disk/DiskDescriptor.xml
restore 0 disk
says "${files[2]}: above .*: the old descriptor says so"
says '^order: certain$'
expect_disk disk "$(sha_of c-chain3-v2-b64/DiskDescriptor.xml)"
# What is said of two of three links is not enough.
fresh c-chain3-v2-b64
age "${files[@]}"
perl -0pi -e 's{</ParentGUID>\s*</Shot>\s*</Snapshots>.*}{}s' disk/DiskDescriptor.xml
refuses_guess disk

# A copy that somebody has kept is not trusted, for it may be old, but is named.
fresh c-chain3-v2-b64
cp disk/DiskDescriptor.xml disk/DiskDescriptor.xml~
mv disk/DiskDescriptor.xml disk/DiskDescriptor.xml.Backup
echo junk > disk/DiskDescriptor.xml.bak
age "${files[@]}"
refuses_guess disk
says '^DiskDescriptor.xml.Backup: is a sound descriptor'
says '^DiskDescriptor.xml~: is a sound descriptor'
if grep -q '^DiskDescriptor.xml.bak:' restore.log; then fail "junk is named"; fi

# Cut off anywhere: the same disk, or a refusal.
nr_restored=0
for name in c-tree-v2-b64 c-chain3-v2-b64 c-rawbase-v2-b2048; do
  sha=$(sha_of $name/DiskDescriptor.xml)
  size=$(stat -c %s corpus/$name/DiskDescriptor.xml)
  for ((i = 0; i < 12; i++)); do
    due || continue
    fresh $name
    at=$((i == 0 ? 0 : i == 1 ? size - 40 : RANDOM % size))
    truncate -s $at disk/DiskDescriptor.xml
    if "$PLOOP_IMG" descriptor restore disk > restore.log 2>&1; then
      nr_restored=$((nr_restored + 1))
      says '^order: certain$'
      expect_disk disk "$sha"
    else
      [ "$(stat -c %s disk/DiskDescriptor.xml)" -eq $at ] ||
        fail "$name: cut off at $at: changed, though it failed"
    fi
  done
done
[ $nr_restored -ge 2 ] || fail "hardly a descriptor was restored"

say "GUIDs"
fresh c-chain3-v2-b64
perl -0pi -e 's{<Snapshots>.*}{}s' disk/DiskDescriptor.xml
restore 0 disk "${given[@]}"
expect_disk disk "$(sha_of c-chain3-v2-b64/DiskDescriptor.xml)"
for n in 1 2; do
  guid="{0000000$n-1111-2222-3333-444444444444}"
  [ "$("$PLOOP_IMG" convert -q -O raw --snapshot="$guid" disk - | sha256sum |
    cut -d ' ' -f 1)" = "$(sha_of "c-chain3-v2-b64/DiskDescriptor.xml#$guid")" ] ||
    fail "$guid"
done
fresh c-chain3-v2-b64
rm disk/DiskDescriptor.xml
restore 0 disk/ "${given[@]}"
grep -q "<GUID>{${files[1]#*.hds.\{}</GUID>" disk/DiskDescriptor.xml ||
  fail "the GUID in the name"

# ---- Other ways to say it

say "dry run and JSON"
fresh c-chain3-v2-b64
: > disk/DiskDescriptor.xml
age "${files[@]}"
before=$(dir_state disk)
"$PLOOP_IMG" descriptor restore -n "${given[@]}" disk > new.xml 2> restore.log
[ "$(dir_state disk)" = "$before" ] || fail "a dry run changed something"
# A guess: what it would be, and that it is not taken.
status=0
"$PLOOP_IMG" descriptor restore -n disk > guess.xml 2> restore.log || status=$?
[ $status -eq 1 ] || fail "a dry run of a guess: exit status $status"
grep -v GUID new.xml > a
grep -v GUID guess.xml | cmp a - || fail "the guess is not what it must be"
status=0
"$PLOOP_IMG" descriptor restore -n --output=json disk > json 2> restore.log ||
  status=$?
[ $status -eq 1 ] || fail "a dry run of a guess: exit status $status"
says 'give the files of one branch with --file'
cp json guess.json
"$PLOOP_IMG" descriptor restore --output=json disk > json 2> restore.log &&
  fail "a guess was taken"
[ ! -s json ] || fail "an object, though nothing was restored"
[ "$(dir_state disk)" = "$before" ] || fail "a guess changed something"
"$PLOOP_IMG" descriptor restore --output=json "${given[@]}" \
  disk/DiskDescriptor.xml > json
perl -MJSON::PP -0777 -e '
  my ($json, $guess, $xml) =
    map { open (my $f, "<", $_) or die; local $/; <$f> } @ARGV;
  my ($o, $g) = (decode_json ($json), decode_json ($guess));
  die if $o->{result} ne "restored" || $o->{confidence} ne "given"
      || $o->{xml} ne $xml || $o->{backup} ne "DiskDescriptor.xml.bak"
      || @{$o->{images}} != 3 || @{$o->{reasons}} != 3
      || $o->{images}[0]{file} ne "root.hds" || exists $o->{images}[0]{parent}
      || $o->{images}[0]{type} ne "ploop" || $o->{images}[0]{top}
      || !$o->{images}[2]{top} || $o->{images}[2]{parent} ne $o->{images}[1]{guid};
  die if $g->{result} ne "dry-run" || $g->{confidence} ne "likely"
      || exists $g->{backup} || @{$g->{reasons}} < 5
      || "@{[map { $_->{file} } @{$g->{images}}]}"
         ne "@{[map { $_->{file} } @{$o->{images}}]}"
      || join (" ", sort keys %$g, "backup") ne join (" ", sort keys %$o);' \
  json guess.json disk/DiskDescriptor.xml || { cat json guess.json; fail "JSON"; }
grep -v GUID disk/DiskDescriptor.xml | cmp a - || fail "a dry run prints something else"
fresh b-data-v2-b64
rm disk/DiskDescriptor.xml
restore 0 -q disk
[ ! -s restore.log ] || fail "--quiet is not"

# ---- Errors

say "errors"
restore 1
says 'DIRECTORY is missing'
restore 1 absent
says 'absent: is not a directory'
fresh c-chain3-v2-b64
rm disk/DiskDescriptor.xml
refuses 'absent.hds: .*No such file' disk --file=absent.hds
refuses 'is given twice' disk --file=root.hds --file=disk/root.hds
refuses 'does not lie in disk' disk --file=corpus/h-corrupt/ok.hds
refuses "unexpected argument 'root.hds'" disk root.hds
refuses "--output: 'xml'" disk --output=xml
cp corpus/a-init-v2-b2048/root.hds disk/other.hds
refuses 'has clusters of 64 sectors, and other.hds of 2048' disk --file=root.hds \
  --file=other.hds
printf '%1024s' ' ' > disk/raw
refuses 'raw is no image, and a raw disk can only be the base' disk --file=root.hds \
  --file=raw
ln -s root.hds disk/link
refuses 'link' disk --file=link
rm disk/link disk/raw disk/other.hds
newline=$'root.hds\n.{00000000-1111-2222-3333-444444444444}'
mv "disk/${files[1]}" "disk/$newline"
refuses 'cannot have this file name' disk --file=root.hds --file="$newline"
mv "disk/$newline" "disk/${files[1]}"
fresh d-split2
perl -0pi -e 's{</Snapshots>.*}{}s' disk/DiskDescriptor.xml
refuses 'split disk has to be written by hand' disk

say "in use"
fresh b-data-v2-b64
mv disk/DiskDescriptor.xml away
start_nbdkit file=disk/root.hds
restore 1 disk
says 'in use'
stop_nbdkit
[ ! -e disk/DiskDescriptor.xml ] || fail "restored, though in use"
if command -v flock > /dev/null; then
  exec {fd}> disk/DiskDescriptor.xml.lck
  flock $fd
  restore 1 disk
  says 'DiskDescriptor.xml'
  [ ! -e disk/DiskDescriptor.xml ] || fail "restored, though ploop has it"
  exec {fd}>&-
fi
restore 0 disk
say "passed"
