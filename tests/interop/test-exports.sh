#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that the live disk and all of its snapshots are exports of one server:
# that they are listed with date, parent and size; that each snapshot is
# read-only and keeps what the guest had then (SHA-256), whatever is written to
# the live disk meanwhile; that its extents agree with its content; that all
# other names are refused and hurt nobody; and that lower deltas stay as they
# are, byte by byte.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires nbdcopy nbdinfo qemu-io qemu-img sha256sum flock
[ -x "${FCNTL_HOLD:-}" ] || fail "FCNTL_HOLD is not set: use make check"
unpack_corpus

# ---- Names

# encode NAME: as a part of a URI.
encode ()
{
  local name=$1
  case $name in
    *[!0-9A-Za-z{}-]*)
      printf %s "$name" | od -A n -v -t x1 | tr -d '\n' | sed 's/ /%/g' ;;
    *)
      name=${name//\{/%7B}
      echo "${name//\}/%7D}" ;;
  esac
}

# uri_of NAME: of the export.
uri_of ()
{
  echo "nbd+unix:///$(encode "$1")?socket=$sock"
}

# Of the snapshots, from 1 on.
guids=('')
for i in 1 2 3 4 5 6 7 8 9; do
  guids+=("{0000000$i-aaaa-bbbb-cccc-444444444444}")
done
top_guid='{5fbaabe3-6958-40ff-92a7-860e329aab41}'
null_guid='{00000000-0000-0000-0000-000000000000}'

# ---- What is served

# serve ARG...
serve ()
{
  start_nbdkit "$@" || fail "refused: $* : $(cat "$nbdkit_log")"
}

# sha_of NAME: SHA-256 of the export's content.
sha_of ()
{
  local sum
  sum=$(nbdcopy "$(uri_of "$1")" - | sha256sum)
  echo "${sum%% *}"
}

# list_exports: nbdinfo --list, each line with the export's name before it.
list_exports ()
{
  nbdinfo --list "$uri" > "$tmp/list" || fail "nbdinfo --list"
  awk '/^export="/ { name = substr ($0, 9, length ($0) - 10) }
       { print "[" name "]" $0 }' "$tmp/list" > "$tmp/list.named"
}

# expect_exports NAME...: these are listed and no others, in any order.
expect_exports ()
{
  list_exports
  diff <(printf '%s\n' "$@" | sort) \
    <(sed -n 's/^export="\(.*\)":$/\1/p' "$tmp/list" | sort) ||
    fail "not the exports that there must be"
}

# expect_listed NAME TEXT: a line about the export has TEXT.
expect_listed ()
{
  grep -F "[$1]" "$tmp/list.named" | grep -Fq -- "$2" ||
    { cat "$tmp/list"; fail "export '$1' is listed without '$2'"; }
}

# expect_refused NAME: there is no such export, and that is the server's answer.
expect_refused ()
{
  local status=0
  nbdinfo "$(uri_of "$1")" > "$tmp/refused.log" 2>&1 || status=$?
  [ $status -eq 1 ] ||
    { cat "$tmp/refused.log"
      fail "status $status, not a refusal: export '${1:0:80}'"; }
  grep -aEq 'server (replied with error|has no export)' "$tmp/refused.log" ||
    { cat "$tmp/refused.log"; fail "another error: export '${1:0:80}'"; }
}

# expect_read_only NAME: as such it is announced, and no client can write.
expect_read_only ()
{
  local what=$1 at
  at=$(uri_of "$what")
  nbdinfo --is read-only "$at" || fail "export '$what' is not read-only"
  if qemu-io -f raw -c 'write -P 0xff 0 512' "$at" > "$tmp/io.log" 2>&1; then
    fail "export '$what' was written to by qemu-io"
  fi
  printf '%065536d' 1 > "$tmp/ones"
  nbdcopy "$tmp/ones" "$at" > "$tmp/io.log" 2>&1 &&
    fail "export '$what' was written to by nbdcopy"
  return 0
}

# expect_true_map NAME FILE: the map of the export covers FILE, its content, all
# of it in order, and what it calls zero is.
expect_true_map ()
{
  local at=0 start length type rest
  nbdinfo --map "$(uri_of "$1")" > "$tmp/map" || fail "nbdinfo --map: $1"
  while read -r start length type rest; do
    [ "$start" = "$at" ] || { cat "$tmp/map"; fail "$1: the map has a gap"; }
    at=$((start + length))
    [ $((type & 2)) -ne 0 ] || continue
    cmp -s -n "$length" -i "$start:0" "$2" /dev/zero ||
      { cat "$tmp/map"; fail "$1: data at $start, +$length in a hole: $rest"; }
  done < "$tmp/map"
  [ "$at" = "$(stat -c %s "$2")" ] ||
    { cat "$tmp/map"; fail "$1: the map ends at $at"; }
}

# type_at OFFSET: of what $tmp/map has there.
type_at ()
{
  awk -v at="$1" '$1 + 0 <= at && at < $1 + $2 { print $3 }' "$tmp/map"
}

# ---- A disk with three snapshots

dir=$tmp/disk
mkdir "$dir"
kib=12288
nr_snapshots=0

# delta_of NR: the file of a delta, the base is 1.
delta_of ()
{
  echo "disk.$1.hds"
}

# write_descriptor: of the deltas of the snapshots and of the top.
write_descriptor ()
{
  local i guid parent=$null_guid images='' shots=''
  for ((i = 1; i <= nr_snapshots + 1; i++)); do
    guid=${guids[i]}
    if [ $i -gt $nr_snapshots ]; then guid=$top_guid; fi
    images+="<Image><GUID>$guid</GUID><Type>Compressed</Type>"
    images+="<File>$(delta_of $i)</File></Image>"
    shots+="<Shot><GUID>$guid</GUID><ParentGUID>$parent</ParentGUID></Shot>"
    parent=$guid
  done
  cat > "$dir/DiskDescriptor.xml" << XML
<?xml version="1.0"?>
<Parallels_disk_image>
  <Disk_Parameters>
    <Disk_size>$((kib * 2))</Disk_size>
    <Cylinders>$((kib * 2 / 512))</Cylinders>
    <Heads>16</Heads>
    <Sectors>32</Sectors>
    <Padding>0</Padding>
  </Disk_Parameters>
  <StorageData><Storage>
    <Start>0</Start><End>$((kib * 2))</End><Blocksize>128</Blocksize>
    $images
  </Storage></StorageData>
  <Snapshots><TopGUID>$top_guid</TopGUID>$shots</Snapshots>
</Parallels_disk_image>
XML
}

# new_top: an empty delta above the others.  Of version 1: ploop makes no
# snapshots of the other one without its kernel.
new_top ()
{
  "$PLOOP_IMG" create -q --version=1 --cluster-size=64K \
    "$dir/$(delta_of $((nr_snapshots + 1)))" "${kib}K"
  write_descriptor
}

# What only a snapshot and later ones have, a cluster of its own.
marks=('' $((9 << 20)) $((10 << 20)) $((11 << 20)))

sizes=()
shas=()
dates=()
truncate -s "${kib}K" "$tmp/raw"
new_top
for i in 1 2 3; do
  serve file="$dir"
  io_both "write -P $((16 + i)) $((i * 100))k 1000k" \
    "write -P $((32 + i)) ${marks[i]} 70k" \
    "write -z -u $((i * 200))k 130k" \
    "write -P $((48 + i)) $((i * 500 + 1))k 512" \
    "write -P $((64 + i)) $((kib * 1024 - 512)) 512" flush
  [ $i -eq 3 ] && io_both 'write -z -u 1M 1M' flush
  shas[i]=$(sha_of '')
  stop_nbdkit
  sizes[i]=$((kib * 1024))
  cp --sparse=always "$tmp/raw" "$tmp/raw.$i"
  [ "${shas[i]}" = "$(sha256sum < "$tmp/raw.$i" | cut -d ' ' -f 1)" ] ||
    fail "not what was written, before snapshot $i"
  dates[i]="202$i-03-0$i 12:3$i:56"
  touch -d "${dates[i]}" "$dir/$(delta_of $i)"
  nr_snapshots=$i
  # The disk grows once.
  if [ $i -eq 1 ]; then
    kib=16384
    truncate -s "${kib}K" "$tmp/raw"
  fi
  new_top
done
[ "$(printf '%s\n' "${shas[@]}" | sort -u | wc -l)" = 3 ] ||
  fail "snapshots do not differ"

# all_state: of what must never change.
all_state ()
{
  local i
  for ((i = 1; i <= nr_snapshots; i++)); do
    file_state "$dir/$(delta_of $i)"
  done
  file_state "$dir/DiskDescriptor.xml"
}
lower_before=$(all_state)

# expect_snapshots WHAT: each has what it had, and a map that is true.
expect_snapshots ()
{
  local i
  for ((i = 1; i <= nr_snapshots; i++)); do
    [ "$(sha_of "${guids[i]}")" = "${shas[i]}" ] ||
      fail "$1: snapshot $i has something else"
  done
}

# ---- The list

# expect_list LIVE: three snapshots and what is under the empty name.
expect_list ()
{
  local i guid
  expect_exports '' "${guids[1]}" "${guids[2]}" "${guids[3]}"
  expect_listed '' "export-size: $1"
  for i in 1 2 3; do
    guid=${guids[i]}
    expect_listed "$guid" "export-size: ${sizes[i]}"
    expect_listed "$guid" 'is_read_only: true'
    grep -F "[$guid]" "$tmp/list.named" | grep 'description:' > "$tmp/text" ||
      fail "snapshot $i has no description"
    grep -Fq "${dates[i]}" "$tmp/text" ||
      { cat "$tmp/text"; fail "snapshot $i: not its date, ${dates[i]}"; }
    grep -Eq "(^|[^0-9])${sizes[i]}([^0-9]|$)" "$tmp/text" ||
      { cat "$tmp/text"; fail "snapshot $i: not its size, ${sizes[i]}"; }
    sed 's/^\[[^]]*\]//' "$tmp/text" > "$tmp/text.alone"
    if [ $i -eq 1 ]; then
      grep -q '{' "$tmp/text.alone" &&
        { cat "$tmp/text"; fail "snapshot 1 has a parent"; }
    else
      grep -Fq "${guids[i - 1]}" "$tmp/text.alone" ||
        { cat "$tmp/text"; fail "snapshot $i: not its parent"; }
    fi
  done
}

say "the list"
serve file="$dir"
expect_list $((kib * 1024))
expect_listed '' 'is_read_only: false'
nbdinfo --can write "$uri" || fail "the live disk cannot be written"
stop_nbdkit
serve -r file="$dir/DiskDescriptor.xml"
expect_list $((kib * 1024))
expect_listed '' 'is_read_only: true'
expect_snapshots "with -r"
stop_nbdkit
[ "$(all_state)" = "$lower_before" ] || fail "changed by being listed"

# ---- Read-only, with the right content and the right map

say "read-only"
serve file="$dir"
nbdcopy "$uri" "$tmp/out"
cmp "$tmp/out" "$tmp/raw" || fail "the live disk has something else"
for i in 1 2 3; do
  expect_read_only "${guids[i]}"
  expect_true_map "${guids[i]}" "$tmp/raw.$i"
  cp "$tmp/map" "$tmp/map.$i"
  # A cluster that was written later is a hole; one that was written is not.
  for j in 1 2 3; do
    if [ $j -le $i ]; then want=0; else want=3; fi
    [ "${marks[j]}" -lt "${sizes[i]}" ] || continue
    [ "$(type_at "${marks[j]}")" = $want ] ||
      { cat "$tmp/map"; fail "snapshot $i: mark $j is no $want in the map"; }
  done
done
expect_snapshots "after writes that were refused"
stop_nbdkit
[ "$(all_state)" = "$lower_before" ] || fail "changed by being read"

# ---- Names that are none

say "names"
serve file="$dir"
# The descriptor's letters are not the client's.
name=$(echo "${guids[2]}" | tr a-f A-F)
[ "$(sha_of "$name")" = "${shas[2]}" ] || fail "'$name' is something else"
bare=$(echo "${guids[2]}" | tr -d '{}')
long=$(printf '%04096d' 0)
refused_names=(
  "$bare" "{$bare" "{$bare}x" " {$bare}" "{$bare}{$bare}" "{}" "{00000002}"
  "${guids[9]}" "$top_guid" "$null_guid" "disk" "$(delta_of 1)"
  "$dir/$(delta_of 1)" "/" ".." "../" "../disk/$(delta_of 1)"
  "../../../../../../../../etc/hostname" "/{$bare}" "{$bare}/"
  "{$bare}/../$(delta_of 1)" "{../../etc/hostname}"
  $'\377\376\200' $'{\355\240\200}' $'\001\033[2J'
  $'x\nnbdkit: error: forged' '%s%n%s%n' '<Shot>&amp;' "snapshot={$bare}"
  "$long" "{${long:2}}" "{$bare}${long:38}"
)
for name in "${refused_names[@]}"; do
  expect_refused "$name"
done
grep -q '^nbdkit: error: forged' "$nbdkit_log" &&
  fail "a client can write lines of its own to the log"
say "${#refused_names[@]} names refused"
nbdcopy "$uri" "$tmp/out"
cmp "$tmp/out" "$tmp/raw" || fail "the live disk after names that were refused"
stop_nbdkit

# ---- All at once

held=()
hold_fds=()
end_held ()
{
  [ ${#held[@]} -eq 0 ] || kill "${held[@]}" 2> /dev/null
}
cleanup_fn end_held

# hold NR NAME: a client that stays; its commands come through a pipe.
hold ()
{
  local fd
  mkfifo "$tmp/pipe.$1"
  # What an earlier client of this number was told is not this one's.
  : > "$tmp/held.$1"
  qemu-io -r -f raw "$(uri_of "$2")" < "$tmp/pipe.$1" > "$tmp/held.$1" 2>&1 &
  held[$1]=$!
  exec {fd}> "$tmp/pipe.$1"
  hold_fds[$1]=$fd
}

# ask_held NR PATTERN OFFSET [PATTERN OFFSET...]: the client reads 512 bytes at
# each offset that must be PATTERN.  One command at a time: qemu-io does not see
# a second one that came with the first.
ask_held ()
{
  local client=$1 nr
  nr=$(grep -c 'read 512/512' "$tmp/held.$client" || true)
  shift
  while [ $# -gt 0 ]; do
    echo "read -P $1 $2 512" >&"${hold_fds[client]}"
    nr=$((nr + 1))
    shift 2
    wait_until held_has_answered "$client" "$nr" ||
      { cat "$tmp/held.$client"; fail "client $client gets no answer"; }
  done
  ! grep -Ei 'fail|error' "$tmp/held.$client" || fail "client $client"
}

held_has_answered ()
{
  [ "$(grep -c 'read 512/512' "$tmp/held.$1")" -ge "$2" ] ||
    grep -Eqi 'failed|error' "$tmp/held.$1"
}

# Others have the pipe open as well: its end would not come.
release ()
{
  local fd=${hold_fds[$1]}
  echo quit >&"$fd"
  exec {fd}>&-
  wait "${held[$1]}" || { cat "$tmp/held.$1"; fail "client $1 has failed"; }
  rm "$tmp/pipe.$1"
  unset "held[$1]"
}

# read_on NR: snapshot NR again and again, while the live disk is written.
read_on ()
{
  local again=1
  while [ $again -ne 0 ]; do
    if [ -e "$tmp/written" ]; then again=0; fi
    [ "$(sha_of "${guids[$1]}")" = "${shas[$1]}" ] ||
      { echo "snapshot $1 has something else"; return 1; }
  done
}

say "all at once"
serve file="$dir"
# Two clients for each snapshot and two for the live disk, all of them open.
for i in 1 2 3; do
  hold $i "${guids[i]}"
  hold $((4 + i)) "${guids[i]}"
done
hold 4 ''
hold 8 ''
for i in 1 2 3; do
  for client in $i $((4 + i)); do
    ask_held $client $((32 + i)) "${marks[i]}" \
      $((64 + i)) $((sizes[i] - 512))
  done
  if [ $i -lt 3 ]; then ask_held 3 $((32 + i)) "${marks[i]}"; fi
done
ask_held 4 35 "${marks[3]}"
ask_held 8 67 16776704

readers=()
for i in 1 2 3; do
  read_on $i > "$tmp/reader.$i" 2>&1 &
  readers[i]=$!
done
# What is trimmed is written at once, for the oracle to know it.
for ((round = 1; round <= 3; round++)); do
  mark=${marks[round % 3 + 1]}
  io_both "write -P $((128 + round)) $((round * 37))k 900k" \
    "write -z -u $((round * 300 + 5))k 700k" \
    "write -z $((round * 800))k 64k" \
    "write -P $((144 + round)) $((4096 + round * 513))k 1k" \
    'discard 6M 3M' "discard $mark 128k" 'discard 10000k 33k' \
    'discard 13M 1000k' flush "write -P $((176 + round)) 6M 3M" \
    'write -P 201 9M 3M' 'write -P 202 13M 1000k' \
    "write -P $((160 + round)) $mark 70k" flush
done
io_both 'discard 0 16M' 'write -z -u 0 16M' 'write -P 203 3M 5M' flush
touch "$tmp/written"
for i in 1 2 3; do
  wait "${readers[i]}" || { cat "$tmp/reader.$i"; fail "reader $i"; }
done

# Who was there all the time sees the same; the live disk's see what is new.
for i in 1 2 3; do
  for client in $i $((4 + i)); do
    ask_held $client $((32 + i)) "${marks[i]}" \
      $((64 + i)) $((sizes[i] - 512))
  done
done
for client in 4 8; do
  ask_held $client 203 5M 0 "${marks[2]}"
done
expect_snapshots "the live disk was written"
for i in 1 2 3; do
  expect_true_map "${guids[i]}" "$tmp/raw.$i"
  cmp "$tmp/map" "$tmp/map.$i" || fail "snapshot $i has another map"
done
nbdcopy "$uri" "$tmp/out"
cmp "$tmp/out" "$tmp/raw" || fail "the live disk is not what was written"
# One client fewer leaves the other alone; the last one that goes leaves all.
for i in 1 2 3; do release $i; done
for i in 1 2 3; do
  ask_held $((4 + i)) $((32 + i)) "${marks[i]}"
  release $((4 + i))
done
release 4
release 8
expect_snapshots "opened again"
# The live disk's locks are there still, though others of the same files went.
for i in 1 2 3 4; do
  "$FCNTL_HOLD" try write "$dir/$(delta_of $i)" > /dev/null 2>&1 &&
    fail "delta $i is no longer locked for libploop 9"
  qemu-io -f parallels -c 'write 0 512' "$dir/$(delta_of $i)" \
    > "$tmp/io.log" 2>&1 && fail "delta $i is no longer locked for qemu"
  grep -qi lock "$tmp/io.log" ||
    { cat "$tmp/io.log"; fail "qemu-io failed for another reason"; }
done
flock -n "$dir/DiskDescriptor.xml.lck" true &&
  fail "the disk is no longer locked for ploop"
stop_nbdkit

# ---- The server is told to end while clients are there

serve file="$dir"
hold 1 "${guids[1]}"
hold 2 ''
ask_held 1 33 "${marks[1]}"
ask_held 2 203 5M
kill -TERM "$nbdkit_pid"
for client in 1 2; do
  fd=${hold_fds[client]}
  echo quit >&"$fd"
  exec {fd}>&-
  wait "${held[client]}" || true
  rm "$tmp/pipe.$client"
  unset "held[$client]"
done
wait_until _has_ended "$nbdkit_pid" || fail "the server does not end"
wait "$nbdkit_pid" || fail "the server's exit status is $?"
nbdkit_pid=
check_log

# ---- On disk

# expect_clean WHAT: the lower deltas are what they were, and the top is sound.
expect_clean ()
{
  local top
  top=$dir/$(delta_of $((nr_snapshots + 1)))
  [ "$(all_state)" = "$lower_before" ] || fail "$1: lower deltas were changed"
  [ "$(in_use "$top")" = 00000000 ] || fail "$1: still marked"
  qemu-img check -q -f parallels "$top" || fail "$1: qemu-img check"
  "$PLOOP_IMG" check "$top" > "$tmp/check.log" ||
    { cat "$tmp/check.log"; fail "$1: ploop-img check"; }
  has_ploop || return 0
  # It may write to what it checks.
  cp -a "$dir" "$tmp/copy"
  ploop_check_delta "$tmp/copy/${top##*/}"
  run_ploop "$tmp/copy" info -s -d DiskDescriptor.xml > "$tmp/ploop.log" 2>&1 ||
    { cat "$tmp/ploop.log"; fail "$1: ploop info"; }
  # It minds holes in files even where it made them.
  run_ploop "$tmp/copy" check -r -S DiskDescriptor.xml > "$tmp/ploop.log" 2>&1 ||
    grep -q sparse "$tmp/ploop.log" ||
    { cat "$tmp/ploop.log"; fail "$1: ploop check DiskDescriptor.xml"; }
  rm -r "$tmp/copy"
}
expect_clean "after all at once"

# ---- One snapshot chosen, beside the others

say "snapshot="
top_before=$(file_state "$dir/$(delta_of 4)")
serve file="$dir" "snapshot=${guids[2]}"
expect_list "${sizes[2]}"
expect_listed '' 'is_read_only: true'
expect_read_only ''
[ "$(sha_of '')" = "${shas[2]}" ] || fail "snapshot=: not what was chosen"
expect_snapshots "snapshot="
expect_refused "$top_guid"
stop_nbdkit
[ "$(file_state "$dir/$(delta_of 4)")" = "$top_before" ] ||
  fail "snapshot= changes the top"
[ "$(all_state)" = "$lower_before" ] || fail "snapshot= changes lower deltas"

# An overlay above the disk takes its writes; the snapshots stay.
serve file="$dir" overlay="$tmp/overlay.hds"
io 'write -P 0xee 0 16M' flush
expect_exports '' "${guids[1]}" "${guids[2]}" "${guids[3]}"
expect_listed '' 'is_read_only: false'
expect_snapshots "under an overlay"
stop_nbdkit
[ "$(file_state "$dir/$(delta_of 4)")" = "$top_before" ] ||
  fail "an overlay's disk was changed"

# ---- A snapshot that ploop makes is one more

if has_ploop; then
  say "ploop snapshot"
  run_ploop "$dir" snapshot -u '{00000004-AAAA-bbbb-CCCC-444444444444}' \
    DiskDescriptor.xml > "$tmp/ploop.log" 2>&1 ||
    { cat "$tmp/ploop.log"; fail "ploop snapshot"; }
  serve file="$dir"
  expect_exports '' "${guids[1]}" "${guids[2]}" "${guids[3]}" \
    "${guids[4]}"
  io 'write -P 0x99 0 16M' flush
  [ "$(sha_of "${guids[4]}")" = \
    "$(sha256sum < "$tmp/raw" | cut -d ' ' -f 1)" ] ||
    fail "the snapshot that ploop made has something else"
  expect_read_only "${guids[4]}"
  stop_nbdkit
fi

# ---- Disks without snapshots

# expect_none WHAT ARG...: the empty name and no other.
expect_none ()
{
  local what=$1
  shift
  serve "$@"
  expect_exports ''
  expect_refused "${guids[1]}"
  [ "$(sha_of '')" = "${shas[1]}" ] || fail "$what: something else"
  stop_nbdkit
}

say "no snapshots"
mkdir "$tmp/plain"
kib=12288
nr_snapshots=0
cp "$dir/$(delta_of 1)" "$tmp/plain.hds"
cp "$dir/$(delta_of 1)" "$tmp/plain/"
cp "$dir/$(delta_of 1)" "$tmp/middle.hds"
"$PLOOP_IMG" create -q --cluster-size=64K "$tmp/top.hds" 12M
dir=$tmp/plain
write_descriptor
expect_none "an image" file="$tmp/plain.hds"
expect_none "a descriptor" file="$dir"
expect_none "a chain without a descriptor" file="$tmp/top.hds" \
  base="$tmp/middle.hds"

# ---- What others made: trees, bases that are raw, deltas of both versions

say "the corpus"
nr=0
while read -r name; do
  serve file="$tmp/corpus/$name"
  rows=0
  io 'write -P 0xaa 0 4M' flush
  while IFS=$'\t' read -r row _ _ entry sha256 bytes _; do
    case $entry in
      "$name/DiskDescriptor.xml#"*) ;;
      *) continue ;;
    esac
    rows=$((rows + 1))
    guid=$(echo "${entry##*#}" | tr A-F a-f)
    [ $rows -gt 1 ] || list_exports
    expect_listed "$guid" "export-size: $bytes"
    nbdcopy "$(uri_of "$guid")" "$tmp/out"
    [ "$(sha256sum < "$tmp/out" | cut -d ' ' -f 1)" = "$sha256" ] ||
      fail "$row: something else"
    expect_true_map "$guid" "$tmp/out"
    nbdinfo --is read-only "$(uri_of "$guid")" || fail "$row: not read-only"
  done < "$PLOOP_CORPUS/MANIFEST.tsv"
  nr=$((nr + rows))
  stop_nbdkit
done < <(sed -n 's,.*\t\([^\t]*\)/DiskDescriptor\.xml#.*,\1,p' \
           "$PLOOP_CORPUS/MANIFEST.tsv" | sort -u)
say "$nr snapshots"
[ $nr -ge 5 ] || fail "only $nr snapshots in the corpus"

# A leaf of a tree is no part of the live chain: it is locked while it is used.
# One whose file has gone is refused, by itself.
dir=$tmp/corpus/c-tree-v2-b64
leaf='{00000002-1111-2222-3333-444444444444}'
leaf_file=$dir/$(tr -d '\n' < "$dir/DiskDescriptor.xml" |
  sed 's/.*<GUID>'"$leaf"'<\/GUID>[^/]*\/Type>[^<]*<File>\([^<]*\).*/\1/')
[ -f "$leaf_file" ] || fail "the leaf's file is not found: $leaf_file"
serve file="$dir"
mv "$leaf_file" "$tmp/leaf"
expect_refused "$leaf"
grep -Fq "${leaf_file##*/}" "$nbdkit_log" ||
  fail "refused without naming the file"
io 'write -P 0xab 0 64k' 'read -P 0xab 0 64k'
mv "$tmp/leaf" "$leaf_file"
hold 1 "$leaf"
echo 'read 0 512' >&"${hold_fds[1]}"
wait_until held_has_answered 1 1 || fail "the leaf cannot be read"
if qemu-io -f parallels -c 'write 0 512' "$leaf_file" > "$tmp/io.log" 2>&1
then
  fail "a snapshot in use can be written by another program"
fi
grep -qi lock "$tmp/io.log" ||
  { cat "$tmp/io.log"; fail "qemu-io failed for another reason"; }
release 1

say "a descriptor that was damaged meanwhile"
cp "$dir/DiskDescriptor.xml" "$tmp/xml"
echo '<broken' > "$dir/DiskDescriptor.xml"
expect_exports ''
grep -Fq 'DiskDescriptor.xml' "$nbdkit_log" || fail "no word of it"
expect_refused "$leaf"
io 'write -P 0xac 0 64k' 'read -P 0xac 0 64k'
cp "$tmp/xml" "$dir/DiskDescriptor.xml"
stop_nbdkit
say "passed"
