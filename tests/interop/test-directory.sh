#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that a server of a directory has just the disks below it, and their
# snapshots, as exports: they are listed, and found under the very names of the
# list; no name leads to anything else, inside or outside, by a link or another
# spelling; whatever strangers ask for hurts nobody and forges no log.  A disk that
# is added is found, one that is damaged or used by others is refused by itself, and
# can be had when that is over.  Disks are locked and marked while they have
# clients, and given back afterwards.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires nbdcopy nbdinfo qemu-io qemu-img sha256sum mkfifo

# ---- Names

# encode NAME: as a part of a URI.
encode ()
{
  printf %s "$1" | od -A n -v -t x1 | tr -d '\n' | sed 's/ /%/g'
}

# uri_of NAME: of the export.
uri_of ()
{
  echo "nbd+unix:///$(encode "$1")?socket=$sock"
}

# ---- What is asked of a server

serve ()
{
  start_nbdkit "$@" || fail "refused: $* : $(cat "$nbdkit_log")"
}

# io NAME COMMAND...: qemu-io on an export.
io ()
{
  local args=() c at
  at=$(uri_of "$1")
  shift
  for c in "$@"; do args+=(-c "$c"); done
  qemu-io -t writeback -f raw "${args[@]}" "$at" > "$tmp/io.log" 2>&1 ||
    { cat "$tmp/io.log"; fail "qemu-io: $*"; }
  if grep -q 'Pattern verification failed' "$tmp/io.log"; then
    cat "$tmp/io.log"
    fail "something else is there: $*"
  fi
}

sha_of ()
{
  local sum
  sum=$(nbdcopy "$(uri_of "$1")" - | sha256sum)
  echo "${sum%% *}"
}

# expect_exports NAME...: these are listed and no others, in any order.
expect_exports ()
{
  nbdinfo --list --json "$uri" > "$tmp/list" 2> "$tmp/list.err" ||
    { cat "$tmp/list.err"; fail "nbdinfo --list"; }
  diff <([ $# -eq 0 ] || printf '%s\n' "$@" | sort) \
    <(sed -n 's/^[[:space:]]*"export-name": "\(.*\)",$/\1/p' "$tmp/list" | sort) ||
    fail "not the exports that there must be"
}

# expect_refused NAME [TEXT]: there is no such export, that is the server's answer,
# and its log says TEXT.
expect_refused ()
{
  local status=0 name=${1:0:60} before
  before=$(wc -c < "$nbdkit_log")
  nbdinfo "$(uri_of "$1")" > "$tmp/refused.log" 2>&1 || status=$?
  [ $status -eq 1 ] ||
    { cat "$tmp/refused.log"; wrong "status $status, not a refusal: '$name'"; }
  [ $status -eq 0 ] || grep -aEq 'server (replied with error|has no export)' "$tmp/refused.log" ||
    { cat "$tmp/refused.log"; wrong "another error: '$name'"; }
  tail -c "+$((before + 1))" "$nbdkit_log" > "$tmp/log.new"
  grep -Eqi -- "${2:-there is no}" "$tmp/log.new" ||
    { cat "$tmp/log.new"; wrong "refused without saying '${2:-}': '$name'"; }
}

# Names are many: the others are looked at, too.
nr_wrong=0
wrong ()
{
  say "WRONG: $*"
  nr_wrong=$((nr_wrong + 1))
}

expect_none_wrong ()
{
  [ $nr_wrong -eq 0 ] || fail "$nr_wrong of $1"
}

_is_unmarked ()
{
  [ "$(in_use "$1")" = 00000000 ]
}

# ---- Clients that stay

held=()
hold_fds=()
end_held ()
{
  [ ${#held[@]} -eq 0 ] || kill "${held[@]}" 2> /dev/null
}
cleanup_fn end_held

# hold NR NAME [OPTION]: its commands come through a pipe.
hold ()
{
  local fd
  mkfifo "$tmp/pipe.$1"
  # What an earlier client of this number was told is not this one's.
  : > "$tmp/held.$1"
  # shellcheck disable=SC2086  # no option is no word
  qemu-io ${3:-} -t writeback -f raw "$(uri_of "$2")" < "$tmp/pipe.$1" \
    > "$tmp/held.$1" 2>&1 &
  held[$1]=$!
  exec {fd}> "$tmp/pipe.$1"
  hold_fds[$1]=$fd
}

# tell NR COMMAND: and wait for the answer.
tell ()
{
  local nr
  nr=$(grep -c ' ops; ' "$tmp/held.$1" || true)
  echo "$2" >&"${hold_fds[$1]}"
  wait_until _has_answered "$1" $((nr + 1)) ||
    { cat "$tmp/held.$1"; fail "client $1 gets no answer: $2"; }
  if grep -Ei 'fail|error' "$tmp/held.$1"; then fail "client $1: $2"; fi
}

_has_answered ()
{
  [ "$(grep -c ' ops; ' "$tmp/held.$1")" -ge "$2" ] ||
    grep -Eqi 'fail|error' "$tmp/held.$1"
}

release ()
{
  local fd=${hold_fds[$1]}
  echo quit >&"$fd"
  exec {fd}>&-
  wait "${held[$1]}" || { cat "$tmp/held.$1"; fail "client $1 has failed"; }
  rm "$tmp/pipe.$1"
  unset "held[$1]"
}

# ---- A second server

other_pid=
kill_other ()
{
  [ -z "$other_pid" ] || kill -KILL "$other_pid"
}
cleanup_fn kill_other

# turn: to the other server, and back; the variables are that one's.
# shellcheck disable=SC2034
turn ()
{
  local pid=$nbdkit_pid
  nbdkit_pid=$other_pid
  other_pid=$pid
  if [ "$sock" = "$tmp/sock" ]; then
    sock=$tmp/sock2 pid_file=$tmp/pid2 nbdkit_log=$tmp/log2
  else
    sock=$tmp/sock pid_file=$tmp/nbdkit.pid nbdkit_log=$tmp/nbdkit.log
  fi
  uri="nbd+unix:///?socket=$sock"
}

# ---- What there is

dir=$tmp/disks
mkdir -p "$dir/a/b/c" "$dir/ct1/root.hdd/sub" "$dir/ct2" "$dir/empty" "$tmp/outside"

new_image ()
{
  "$PLOOP_IMG" create -q --cluster-size=64K "$1" 4M
}

g1='{00000001-aaaa-bbbb-cccc-444444444444}'
g2='{00000002-aaaa-bbbb-cccc-444444444444}'
g9='{00000009-aaaa-bbbb-cccc-444444444444}'
top='{5fbaabe3-6958-40ff-92a7-860e329aab41}'

# write_descriptor DIRECTORY GUID...: of deltas that are called by their numbers.
write_descriptor ()
{
  local to=$1 guid parent='{00000000-0000-0000-0000-000000000000}' i=0
  local images='' shots=''
  shift
  for guid in "$@"; do
    i=$((i + 1))
    images+="<Image><GUID>$guid</GUID><Type>Compressed</Type>"
    images+="<File>$i.hds</File></Image>"
    shots+="<Shot><GUID>$guid</GUID><ParentGUID>$parent</ParentGUID></Shot>"
    parent=$guid
  done
  cat > "$to/DiskDescriptor.xml" << XML
<?xml version="1.0"?>
<Parallels_disk_image>
  <Disk_Parameters><Disk_size>8192</Disk_size><Padding>0</Padding></Disk_Parameters>
  <StorageData><Storage>
    <Start>0</Start><End>8192</End><Blocksize>128</Blocksize>$images
  </Storage></StorageData>
  <Snapshots><TopGUID>$top</TopGUID>$shots</Snapshots>
</Parallels_disk_image>
XML
}

root=ct1/root.hdd
new_image "$dir/plain.hds"
new_image "$dir/a/b/disk.hds"
new_image "$dir/a/b/c/no extension"
new_image "$dir/a/{brace}"
new_image "$dir/a/größe.hds"
new_image "$dir/.hidden"
new_image "$tmp/outside/outside.hds"
for i in 1 2 3; do
  new_image "$dir/$root/$i.hds"
  case $i in
    1) write_descriptor "$dir/$root" "$top" ;;
    2) write_descriptor "$dir/$root" "$g1" "$top" ;;
    3) write_descriptor "$dir/$root" "$g1" "$g2" "$top" ;;
  esac
  # Snapshots have what was written before them.
  serve file="$dir/$root"
  io '' "write -P $((16 + i)) $((i - 1))M 1M" "write -P $i 3M 64k"
  shas[i]=$(sha_of '')
  stop_nbdkit
done
new_image "$dir/$root/sub/inside.hds"
mkdir "$dir/ct2/root.hdd"
new_image "$dir/ct2/root.hdd/1.hds"
write_descriptor "$dir/ct2/root.hdd" "$top"
lower_before="$(file_state "$dir/$root/1.hds") $(file_state "$dir/$root/2.hds")"

# Nothing of that is a disk.
echo "this is no image, but it is long enough that it could be one by its size" \
  > "$dir/text.hds"
head -c 63 "$dir/plain.hds" > "$dir/short.hds"
: > "$dir/a/nothing"
mkfifo "$dir/a/fifo"
ln -s plain.hds "$dir/link"
ln -s ../../plain.hds "$dir/a/b/link-up"
ln -s "$dir/plain.hds" "$dir/link-absolute"
ln -s a "$dir/link-directory"
ln -s ct1/root.hdd "$dir/link-disk"
ln -s .. "$dir/a/link-parent"
ln -s ../outside/outside.hds "$dir/link-outside"
ln -s ../outside "$dir/link-directory-outside"
ln -s nowhere "$dir/link-dangling"
ln -s link-loop "$dir/link-loop"

all=(plain.hds a/b/disk.hds 'a/b/c/no extension' 'a/{brace}' 'a/größe.hds' .hidden
  "$root" "$root/$g1" "$root/$g2" ct2/root.hdd)

# ---- The list, and each of it

say "the list"
serve dir="$dir"
expect_exports "${all[@]}"
expect_refused ''
for name in "${all[@]}"; do
  [ "$(nbdinfo --size "$(uri_of "$name")")" = 4194304 ] ||
    fail "'$name' is listed, but cannot be had"
  case $name in
    */\{0*) nbdinfo --is read-only "$(uri_of "$name")" ||
              fail "'$name' is not read-only" ;;
    *) nbdinfo --can write "$(uri_of "$name")" ||
         fail "'$name' cannot be written" ;;
  esac
done
[ "$(sha_of $root)" = "${shas[3]}" ] || fail "the disk has something else"
[ "$(sha_of "$root/$g1")" = "${shas[1]}" ] || fail "snapshot 1"
[ "$(sha_of "$root/$g2")" = "${shas[2]}" ] || fail "snapshot 2"
[ "$(sha_of "$root/${g2^^}")" = "${shas[2]}" ] || fail "large letters"

# ---- Names that are none

say "names"
long=$(printf '%04096d' 0)
slashes=$(printf '%04000d' 0 | tr 0 /)
guids=$(printf "/$g1%.0s" $(seq 100))
refused_names=(
  . .. / ./ ../ ../outside/outside.hds "$dir/plain.hds" /plain.hds //plain.hds
  "../disks/plain.hds" "./plain.hds" "plain.hds/" "plain.hds/." "plain.hds/.."
  "plain.hds/x" a//b/disk.hds a/./b/disk.hds a/../plain.hds a/b/../b/disk.hds
  a/b/disk.hds/ a a/ a/b ct1 ct2/ "$root/" "$root/." "$root/../root.hdd" empty
  PLAIN.HDS "plain.hds " " plain.hds" plain
  link a/b/link-up link-absolute link-disk "link-disk/$g1" link-outside
  link-dangling link-loop link-directory/b/disk.hds link-directory-outside
  link-directory-outside/outside.hds a/link-parent/plain.hds
  a/link-parent/../outside/outside.hds link-directory "link-directory/{brace}"
  /proc/self/root/etc/hostname ../../../../../../../../etc/hostname
  "$root/1.hds" "$root/3.hds" "$root/DiskDescriptor.xml" "$root/sub"
  "$root/sub/inside.hds" "$root/sub/$g1" "$root/3.hds/$g1"
  "$root/$g9" "$root/$top" "$root/$g1/" "$root//$g1" "$root/./$g1" "$root/{}"
  "$root/{" "$root/${g1:1}" "$root/$g1 " "$root/$g1/." "$root/$g1/.."
  "$root/$g1/$g1" "$root/$g1/$g2" "$root/$g1/1.hds" "$root$guids" "$root/{../../plain.hds}"
  "$g1" "/$g1" "plain.hds/$g1" "a/$g1" "a/{brace}/$g1" "{}" "{" "ct2/root.hdd/$g1"
  text.hds short.hds a/nothing a/fifo missing a/missing missing/missing "a/{none}"
  $'\377\376\200' $'\001\033[2J' $'plain.hds\n' $'x\nnbdkit: error: forged'
  '%s%n%s%n' "$long" "${slashes}plain.hds" "a/${long:2}" "${long:39}/$g1"
  "$root/{${long:18}}" "$(printf '%02000d' 0 | sed 's,0,a/,g')"
  "$(printf '%02000d' 0 | sed 's,0,{/,g')"
)
for name in "${refused_names[@]}"; do
  expect_refused "$name" 'error: .+'
done
if grep -q '^nbdkit: error: forged' "$nbdkit_log"; then
  wrong "a client can write lines of its own to the log"
fi
# Escaped and cut.
if LC_ALL=C grep -aq '[^ -~]' "$nbdkit_log"; then
  LC_ALL=C grep -a '[^ -~]' "$nbdkit_log" | cat -v
  wrong "the log has control characters"
fi
[ "$(wc -L < "$nbdkit_log")" -lt 600 ] ||
  wrong "the log has lines of $(wc -L < "$nbdkit_log") characters"
expect_none_wrong "${#refused_names[@]} names"
say "${#refused_names[@]} names refused"
expect_exports "${all[@]}"
io plain.hds 'read -P 0 0 4M'
stop_nbdkit

# ---- What changes while the server runs

say "changes"
serve dir="$dir" idle-close=0
expect_refused new/late.hds 'No such file'
mkdir "$dir/new"
new_image "$dir/new/late.hds"
expect_exports "${all[@]}" new/late.hds
io new/late.hds 'write -P 7 1M 64k' 'read -P 7 1M 64k'
rm "$dir/new/late.hds"
expect_refused new/late.hds 'No such file'
expect_exports "${all[@]}"

# A damaged image is listed, as it begins as images do, and refused.
hold 1 plain.hds
tell 1 'write -P 11 0 64k'
mv "$dir/a/b/disk.hds" "$tmp/whole"
cp "$tmp/whole" "$dir/a/b/disk.hds"
printf '\377\377\377\177' |
  dd of="$dir/a/b/disk.hds" bs=1 seek=64 conv=notrunc status=none
for i in 1 2 3; do
  expect_refused a/b/disk.hds 'a/b/disk\.hds.*BAT'
done
tell 1 'read -P 11 0 64k'
io ct2/root.hdd 'write -P 12 0 64k' 'read -P 12 0 64k'
mv "$tmp/whole" "$dir/a/b/disk.hds"
io a/b/disk.hds 'read -P 0 0 64k'
expect_none_wrong "those that change"

# So is a descriptor.
cp "$dir/$root/DiskDescriptor.xml" "$tmp/xml"
echo '<broken' > "$dir/$root/DiskDescriptor.xml"
expect_refused $root 'root\.hdd/DiskDescriptor\.xml'
expect_refused "$root/$g1" 'root\.hdd/DiskDescriptor\.xml'
tell 1 'read -P 11 0 64k'
cp "$tmp/xml" "$dir/$root/DiskDescriptor.xml"
[ "$(sha_of "$root/$g1")" = "${shas[1]}" ] || fail "snapshot 1, mended"
expect_none_wrong "broken descriptors"

# A descriptor that is a link leads nowhere else.
mkdir "$dir/ct3" "$tmp/outside/disk"
mv "$tmp/outside/outside.hds" "$tmp/outside/disk/1.hds"
write_descriptor "$tmp/outside/disk" "$top"
ln -s "$tmp/outside/disk/DiskDescriptor.xml" "$dir/ct3/DiskDescriptor.xml"
outside_before=$(file_state "$tmp/outside/disk/1.hds")
expect_refused ct3 'error: .+'
# Nor does a delta.
rm "$dir/ct3/DiskDescriptor.xml"
write_descriptor "$dir/ct3" "$top"
ln -s "$tmp/outside/disk/1.hds" "$dir/ct3/1.hds"
expect_refused ct3 'error: .+'
rm -r "$dir/ct3"
[ "$(file_state "$tmp/outside/disk/1.hds")" = "$outside_before" ] ||
  fail "an image outside was changed"
expect_none_wrong "links in a disk"

# ---- Closed as soon as the last client has gone

say "idle-close=0"
[ "$(in_use "$dir/plain.hds")" = 746f6e59 ] || fail "written to, but not marked"
release 1
wait_until _is_unmarked "$dir/plain.hds" || fail "not closed"
qemu-img check -q -f parallels "$dir/plain.hds" || fail "qemu-img check"
"$PLOOP_IMG" check "$dir/plain.hds" > "$tmp/check.log" ||
  { cat "$tmp/check.log"; fail "ploop-img check"; }
# A snapshot keeps its disk open, and gives it back.
hold 1 "$root/$g1" -r
tell 1 'read -P 17 0 1M'
if qemu-io -f parallels -c 'write 0 512' "$dir/$root/3.hds" > "$tmp/io.log" 2>&1
then
  fail "a disk whose snapshot is used can be written by another program"
fi
grep -qi lock "$tmp/io.log" ||
  { cat "$tmp/io.log"; fail "qemu-io failed for another reason"; }
release 1
_can_be_written ()
{
  qemu-io -f parallels -c 'write -P 19 2M 512' "$1" > "$tmp/io.log" 2>&1
}
wait_until _can_be_written "$dir/$root/3.hds" ||
  { cat "$tmp/io.log"; fail "a snapshot's disk is not closed"; }

# ---- Used by another server

say "another server"
turn
serve file="$dir/plain.hds"
io '' 'write -P 21 0 64k'
turn
for i in 1 2; do
  expect_refused plain.hds 'plain\.hds.*(in use|lock)'
done
io a/b/disk.hds 'write -P 22 0 64k'
turn
stop_nbdkit
turn
io plain.hds 'read -P 21 0 64k' 'write -P 23 64k 64k'
expect_none_wrong "those that others use"
# Two servers of the same directory, with a disk for each.
turn
serve dir="$dir" idle-close=0
hold 1 plain.hds
tell 1 'write -P 24 0 64k'
turn
expect_refused plain.hds 'plain\.hds.*(in use|lock)'
hold 2 a/b/disk.hds
tell 2 'read -P 22 0 64k'
turn
expect_refused a/b/disk.hds 'disk\.hds.*(in use|lock)'
release 1
stop_nbdkit
turn
release 2
io plain.hds 'read -P 24 0 64k' 'read -P 23 64k 64k'
expect_none_wrong "those that others use"
stop_nbdkit

# ---- Several clients at once

say "several clients"
serve dir="$dir" idle-close=1
for i in 1 2 3; do hold $i $root; done
hold 4 "$root/$g1" -r
hold 5 "$root/${g1^^}" -r
hold 6 "$root/$g2" -r
for i in 1 2 3; do
  tell $i "write -P $((40 + i)) $((i - 1))M 1M"
  for j in 1 2 3; do tell $j "read -P $((40 + i)) $((i - 1))M 1M"; done
done
for i in 4 5; do
  tell $i 'read -P 17 0 1M'
  tell $i 'read -P 0 1M 2M'
  tell $i 'read -P 1 3M 64k'
done
tell 6 'read -P 18 1M 1M'
[ "$(sha_of "$root/$g1")" = "${shas[1]}" ] || fail "snapshot 1 has changed"
[ "$(sha_of "$root/$g2")" = "${shas[2]}" ] || fail "snapshot 2 has changed"
if qemu-io -f raw -c 'write 0 512' "$(uri_of "$root/$g1")" > "$tmp/io.log" 2>&1
then
  fail "a snapshot was written to"
fi
# Those that stay mind nobody who goes, disk or snapshot.
release 1
release 4
release 2
tell 5 'read -P 17 0 1M'
release 3
tell 6 'read -P 2 3M 64k'
[ "$(sha_of "$root/$g1")" = "${shas[1]}" ] || fail "snapshot 1 has changed"
release 5
release 6
wait_until _is_unmarked "$dir/$root/3.hds" || fail "not closed when idle"
wait_until _can_be_written "$dir/$root/3.hds" || fail "still locked when idle"
io $root 'read -P 41 0 1M' 'read -P 42 1M 1M' 'read -P 19 2M 512'
stop_nbdkit
[ "$(file_state "$dir/$root/1.hds") $(file_state "$dir/$root/2.hds")" = \
  "$lower_before" ] || fail "lower deltas were changed"
"$PLOOP_IMG" check "$dir/$root/3.hds" > "$tmp/check.log" ||
  { cat "$tmp/check.log"; fail "ploop-img check"; }

# ---- For reading only

say "read-only"
before=$(file_state "$dir/plain.hds")
serve -r dir="$dir"
expect_exports "${all[@]}"
for name in "${all[@]}"; do
  nbdinfo --is read-only "$(uri_of "$name")" || fail "'$name' with -r"
done
hold 1 plain.hds -r
tell 1 'read -P 24 0 64k'
# Readers share.
turn
serve -r dir="$dir"
hold 2 plain.hds -r
tell 2 'read -P 24 0 64k'
release 2
stop_nbdkit
serve dir="$dir"
expect_refused plain.hds 'plain\.hds.*(in use|lock)'
stop_nbdkit
turn
release 1
stop_nbdkit
[ "$(file_state "$dir/plain.hds")" = "$before" ] || fail "changed with -r"
expect_none_wrong "writers"

# ---- How the directory is given

say "the directory"
cd "$tmp"
serve dir=disks
expect_exports "${all[@]}"
io plain.hds 'read -P 24 0 64k'
stop_nbdkit
cd "$dir/a"
serve dir=.
expect_exports b/disk.hds 'b/c/no extension' '{brace}' größe.hds
expect_refused ../plain.hds 'leaves'
stop_nbdkit
cd /
ln -s disks "$tmp/link"
serve dir="$tmp/link/"
expect_exports "${all[@]}"
io plain.hds 'read -P 24 0 64k'
expect_refused link 'another name'
stop_nbdkit
serve dir="$dir/empty"
expect_exports
expect_refused ''
stop_nbdkit
expect_none_wrong "names"

expect_refusal 'file=' dir="$dir/$root"
expect_refusal 'missing' dir="$tmp/missing"
expect_refusal 'plain\.hds' dir="$dir/plain.hds"
expect_refusal 'dir=' dir=
expect_refusal 'dir=' dir="$dir" dir="$dir"
expect_refusal 'file=' dir="$dir" file="$dir/plain.hds"
expect_refusal 'file=' "$dir/plain.hds" dir="$dir"
expect_refusal 'base=' dir="$dir" base="$dir/plain.hds"
expect_refusal 'overlay=' dir="$dir" overlay="$tmp/overlay.hds"
[ ! -e "$tmp/overlay.hds" ] || fail "an overlay was made"
expect_refusal 'snapshot=' dir="$dir" snapshot="$g1"
expect_refusal 'idle-close=' file="$dir/plain.hds" idle-close=1
say "passed"
