#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that each command of ploop-img does right by disks made at random: of both
# versions, with any cluster size and order in the file, holes, leaks, bitmaps, raw and
# smaller bases, snapshots in chains and trees, split disks, disks that were not closed.
# What must be read is known beforehand, and not from our library; qemu and ploop have
# to agree where they take such a disk.
#
# To add a command: write a function that is called try_ and its name, and add that to
# `commands`.  It finds the disk in $disk ($dir is around it, see manifest), and must
# leave it alone: what changes a disk works on that which copy_disk makes.
#
# PLOOP_TEST_SEED is printed, and makes the same disks again.  PLOOP_TEST_SCALE, per
# cent, makes more of them or fewer.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires qemu-img qemu-io nbdcopy nbdinfo cmp perl

commands=(
  info check map compare convert compact resize snapshot merge serve write qemu ploop
  rescue descriptor_restore repair bitmap
)
forms=(
  "--kind=image"
  "--kind=chain"
  "--kind=tree"
  "--kind=image --odd-clusters"
  "--kind=chain --for-ploop"
  "--kind=chain --split"
  "--kind=image --dirty"
  "--kind=chain --mixed-versions"
  "--kind=image --for-ploop"
  "--kind=tree --dirty"
  "--kind=tree --for-ploop"
  "--kind=tree --split"
)
dir=$tmp/generated

# ---- What the functions below are made of

# run STATUS COMMAND ARG...: ploop-img must end with that status.  What it says is in
# $tmp/said.
run ()
{
  local want=$1 status=0
  shift
  "$PLOOP_IMG" "$@" > "$tmp/said" 2>&1 || status=$?
  [ $status -eq "$want" ] ||
    { cat "$tmp/said"; fail "ploop-img $*: exit status $status, not $want"; }
}

# copy_disk: sets `copy`, for what changes a disk.  It is gone with the next one.
copy_disk ()
{
  rm -rf "$tmp/copy"
  cp -r --sparse=always "$dir" "$tmp/copy"
  copy=$tmp/copy/${disk#"$dir/"}
}

# has TRAIT: of the delta that was read last from the manifest.
has ()
{
  [[ ,$traits, = *,"$1",* ]]
}

# each_delta FUNCTION: call it with the file of each delta, and what the manifest says
# of it in variables.
# shellcheck disable=SC2034  # not all are of use yet
each_delta ()
{
  local path guid parent storage version cluster traits
  local allocated leaked free tail
  while IFS=$'\t' read -r -u 3 path guid parent storage version cluster traits \
      allocated leaked free tail; do
    "$1" "$dir/$path"
  done 3< <(manifest "$dir" delta)
}

# each_content FUNCTION: call it with the name of the disk's and each snapshot's
# content, the raw file that says what it is, and the option that chooses it.
each_content ()
{
  local name raw size
  while IFS=$'\t' read -r -u 3 name raw size; do
    if [ "$name" = TOP ]; then
      "$1" "$name" "$dir/$raw"
    else
      "$1" "$name" "$dir/$raw" "--snapshot=$name"
    fi
  done 3< <(manifest "$dir" content)
}

# sound FILE: an image that we made, in the eyes of all.
sound ()
{
  run 0 check "$1"
  qemu-img check -f parallels "$1" > "$tmp/check.log" 2>&1 ||
    { cat "$tmp/check.log"; fail "qemu-img check: $1"; }
}

# ---- Commands

info_delta ()
{
  has raw && return
  run 0 info --output=json "$1"
  for line in "\"version\" : $version" "\"cluster-size\" : $cluster" \
      "\"allocated-clusters\" : $allocated"; do
    # The entries that a crash has left behind are there, too.
    if has dirty && [[ $line = *allocated* ]]; then continue; fi
    grep -q "$line\\b" "$tmp/said" ||
      { cat "$tmp/said"; fail "info $1: not $line"; }
  done
}

try_info ()
{
  each_delta info_delta
}

check_delta ()
{
  local status=0
  has raw && return
  [ $((leaked + tail)) -eq 0 ] || status=3
  run $status check --output=json "$1"
  for line in "\"errors\" : 0" "\"leaked-clusters\" : $((leaked + tail))" \
      "\"free-clusters\" : $free"; do
    grep -q "$line\\b" "$tmp/said" ||
      { cat "$tmp/said"; fail "check $1: not $line"; }
  done
}

try_check ()
{
  each_delta check_delta
}

# Read from the files where the map says, it is what must be read.
map_content ()
{
  "$PLOOP_IMG" map --output=json ${3:+"$3"} "$disk" > "$tmp/map" 2> "$tmp/said" ||
    { cat "$tmp/said"; fail "map $disk ${3:-}"; }
  perl "$abs_srcdir/check-map.pl" "$tmp/map" "$2" > "$tmp/said" 2>&1 ||
    { cat "$tmp/map" "$tmp/said"; fail "map $disk ${3:-}: is not true"; }
}

try_map ()
{
  each_content map_content
}

compare_content ()
{
  local status=0
  run 0 compare --strict "$disk" "$2" ${3:+"$3"}
  [ "$1" != TOP ] || return 0
  cmp -s "$2" "$dir/expected/TOP.raw" || status=1
  run $status compare --strict "$disk" "$disk" "$3"
}

try_compare ()
{
  each_content compare_content
}

# convert_to_image NAME RAW FORM [OPTION]: and back.
convert_to_image ()
{
  # shellcheck disable=SC2086  # several words
  run 0 convert $3 --force ${4:+"$4"} "$disk" "$tmp/image"
  sound "$tmp/image"
  # ploop takes whole clusters only.
  [ $(($(stat -c %s "$2") % 262144)) -ne 0 ] || [ -z "$has_ploop" ] ||
    ploop_check_delta "$tmp/image"
  qemu-img compare -q -f parallels -F raw "$tmp/image" "$2" ||
    fail "convert $3: $1: qemu reads something else"
  run 0 convert -O raw --force "$tmp/image" "$tmp/raw"
  cmp "$tmp/raw" "$2" || fail "convert $3 and back: $1"
}

convert_content ()
{
  local to
  "$PLOOP_IMG" convert -O raw ${3:+"$3"} "$disk" - | cmp - "$2" ||
    fail "convert to raw: $1"
  for to in "--version=1 --cluster-size=32K" "--version=2 --cluster-size=256K"; do
    # Both for the disk, and a few for its snapshots.
    [ "$1" = TOP ] || [ $((RANDOM / 7 % 4)) -eq 0 ] || continue
    convert_to_image "$1" "$2" "$to" ${3:+"$3"}
  done
}

try_convert ()
{
  each_content convert_content
}

compact_delta ()
{
  local before
  copy_disk
  if has extension; then
    before=$(file_state "$copy")
    run 1 compact "$copy"
    grep -q bitmap "$tmp/said" || { cat "$tmp/said"; fail "compact: why not?"; }
    [ "$(file_state "$copy")" = "$before" ] || fail "compact: changed it"
    return
  fi
  before=$(stat -c %s "$copy")
  run 0 compact "$copy"
  # qemu takes what is before the data of an empty image for a leak.
  if [ "$allocated" -gt 0 ]; then sound "$copy"; else run 0 check "$copy"; fi
  [ "$(stat -c %s "$copy")" -le "$before" ] || fail "compact: larger"
  run 0 compare --strict "$copy" "$dir/expected/TOP.raw"
  qemu-img compare -q -f parallels -F raw "$copy" "$dir/expected/TOP.raw" ||
    fail "compact: qemu reads something else"
}

# A single image.
try_compact ()
{
  if [ -f "$disk" ]; then each_delta compact_delta; fi
}

# compare_snapshot NAME RAW OPTION: of the copy; one that is called $gone is not there.
gone=
compare_snapshot ()
{
  [ "$1" = TOP ] || [ "$1" = "$gone" ] || run 0 compare --strict "$copy" "$2" "$3"
}

# Damage, after a change of the copy?  A file may be gone, and a leak may stay.
check_copied_delta ()
{
  local file=$tmp/copy/${1#"$dir/"} status=0
  if has raw || [ ! -e "$file" ]; then return; fi
  "$PLOOP_IMG" check "$file" > "$tmp/said" 2>&1 || status=$?
  [ $status -eq 0 ] || [ $status -eq 3 ] ||
    { cat "$tmp/said"; fail "$file: check says $status"; }
}

# refused COMMAND ARG...: because of bitmaps, and without a change of the copy.
refused ()
{
  local before
  before=$(find "$tmp/copy" -type f ! -name '*.lck' -exec sha256sum {} +)
  run 1 "$@"
  grep -q bitmap "$tmp/said" || { cat "$tmp/said"; fail "$*: why not?"; }
  [ "$(find "$tmp/copy" -type f ! -name '*.lck' -exec sha256sum {} +)" = "$before" ] ||
    fail "$*: refused, but something was changed"
}

top_guid ()
{
  sed -n 's/.*<TopGUID>\(.*\)<.*/\1/p' "$disk/DiskDescriptor.xml"
}

# mergeable: lines of the pairs of deltas that can be merged, the upper's and the lower's
# GUID.  Nothing else rests on the lower one.
mergeable ()
{
  awk -F '\t' -v top="$(top_guid)" '
    $1 == "content" { size[$2 == "TOP" ? top : $2] = $4 }
    $1 == "delta" && $5 == 0 { lower[$3] = $4; nr_upper[$4]++ }
    END {
      for (guid in lower)
        if (nr_upper[lower[guid]] == 1 && lower[guid] in size)
          print guid, lower[guid]
    }' "$dir/manifest.tsv" | sort
}

# tops: the lines of the deltas that are written to, one a part of the disk, in order.
tops ()
{
  if [ -f "$disk" ]; then
    manifest "$dir" delta
  else
    manifest "$dir" delta | grep -F -e "$(top_guid)" | awk -F '\t' -v top="$(top_guid)" \
      '$2 == top' | sort -t $'\t' -k 4n
  fi
}

# Do they carry bitmaps?
top_has_bitmaps ()
{
  tops | cut -f 7 | grep -q extension
}

try_resize ()
{
  local size
  copy_disk
  size=$(($(stat -c %s "$dir/expected/TOP.raw") + (RANDOM * 32768 + RANDOM + 1) * 512))
  # Only the last part gets another size.
  if tops | tail -n 1 | cut -f 7 | grep -q extension; then
    refused resize "$copy" $size
    return
  fi
  cp --sparse=always "$dir/expected/TOP.raw" "$tmp/resized"
  truncate -s $size "$tmp/resized"
  run 0 resize "$copy" $size
  run 0 compare --strict "$copy" "$tmp/resized"
  each_content compare_snapshot
  each_delta check_copied_delta
  rm "$tmp/resized"
}

# There is nothing to lose: what is repaired is leaks.
try_repair ()
{
  copy_disk
  run 0 check --repair=all "$copy"
  run 0 compare --strict "$copy" "$dir/expected/TOP.raw"
  each_content compare_snapshot
}

bitmaps_of_delta ()
{
  local file=$tmp/copy/${1#"$dir/"} uuid=01234567-89ab-cdef-0123-456789abcdef
  # One that was not closed has to be closed first, and a valid one is kept.
  if has raw || has dirty || { has extension && [ "$(in_use "$file")" != 312e3276 ]; }; then
    return
  fi
  run 0 bitmap add --uuid=$uuid --set "$file"
  run 0 bitmap dump --uuid=$uuid "$file"
  "$PLOOP_IMG" bitmap list "$file" | grep -q $uuid || fail "bitmap: it is not there"
  run 0 bitmap remove --uuid=$uuid "$file"
  if "$PLOOP_IMG" bitmap list "$file" | grep -q $uuid; then fail "bitmap: it stays"; fi
}

try_bitmap ()
{
  copy_disk
  each_delta bitmaps_of_delta
  run 0 compare --strict "$copy" "$dir/expected/TOP.raw"
  each_content compare_snapshot
  each_delta check_copied_delta
}

try_snapshot ()
{
  local guid='{01234567-89ab-cdef-0123-456789abcdef}'
  [ -d "$disk" ] || return 0
  copy_disk
  run 0 snapshot create --guid="$guid" "$copy"
  run 0 compare --strict "$copy" "$dir/expected/TOP.raw"
  run 0 compare --strict --snapshot="$guid" "$copy" "$dir/expected/TOP.raw"
  each_content compare_snapshot
  each_delta check_copied_delta

  mapfile -t snapshots < <(manifest "$dir" content | cut -f 1 | grep -v TOP)
  [ ${#snapshots[@]} -gt 0 ] || return 0
  guid=${snapshots[RANDOM % ${#snapshots[@]}]}
  run 0 snapshot switch --keep "$copy" "$guid"
  run 0 compare --strict "$copy" "$dir/expected/$guid.raw"
  each_content compare_snapshot
}

# A delta into the one below it.
# bitmaps_of GUID: a line for each part of the disk: raw, none, stale or valid.
# shellcheck disable=SC2034  # fields that are not needed
bitmaps_of ()
{
  local path guid parent storage version cluster traits rest
  while IFS=$'\t' read -r path guid parent storage version cluster traits rest; do
    [ "$guid" = "$1" ] || continue
    if has raw; then
      echo raw
    elif ! has extension; then
      echo none
    elif [ "$(in_use "$dir/$path")" = 312e3276 ]; then
      echo valid
    else
      echo stale
    fi
  done < <(manifest "$dir" delta | sort -t $'\t' -k 4n)
}

# Those of the lower delta must not be lost, nor can all have those of the upper one.
loses_bitmaps ()
{
  paste -d ' ' <(bitmaps_of "$1") <(bitmaps_of "$2") |
    grep -qE '^(none|stale) (valid|stale)$|^valid (raw|stale)$'
}

try_merge ()
{
  local upper lower
  [ -d "$disk" ] || return 0
  mapfile -t pairs < <(mergeable)
  [ ${#pairs[@]} -gt 0 ] || return 0
  read -r upper lower <<< "${pairs[RANDOM % ${#pairs[@]}]}"
  copy_disk
  if loses_bitmaps "$upper" "$lower"; then
    refused merge --snapshot="$upper" "$copy"
    return
  fi
  run 0 merge --snapshot="$upper" "$copy"
  gone=$lower
  run 0 compare --strict "$copy" "$dir/expected/TOP.raw"
  each_content compare_snapshot
  each_delta check_copied_delta
  run 2 compare --snapshot="$lower" "$copy" "$dir/expected/TOP.raw"
  gone=
}

serve_content ()
{
  local at=$uri
  [ "$1" = TOP ] || at="nbd+unix:///%7B${1:1:36}%7D?socket=$sock"
  nbdcopy "$at" "$tmp/out"
  cmp "$tmp/out" "$2" || fail "served: $1"
  rm "$tmp/out"
}

try_serve ()
{
  start_nbdkit -r file="$disk" || fail "not served: $(cat "$nbdkit_log")"
  each_content serve_content
  stop_nbdkit
}

# random_requests SIZE: sets `requests` for qemu-io, which a disk of so many bytes is
# large enough for.
random_requests ()
{
  local i first nr sectors=$(($1 / 512))
  requests=()
  for ((i = 0; i < 12; i++)); do
    first=$(((RANDOM * 32768 + RANDOM) % sectors))
    nr=$((1 + RANDOM % 300))
    [ $((first + nr)) -le $sectors ] || nr=$((sectors - first))
    case $((RANDOM % 4)) in
      0) requests+=("write -z $((first * 512)) $((nr * 512))") ;;
      *) requests+=("write -P $((1 + i)) $((first * 512)) $((nr * 512))") ;;
    esac
  done
}

# What is written is read again, and no snapshot sees it.
try_write ()
{
  local size
  copy_disk
  cp --sparse=always "$dir/expected/TOP.raw" "$tmp/raw"
  size=$(stat -c %s "$tmp/raw")
  start_nbdkit file="$copy" || fail "not served: $(cat "$nbdkit_log")"
  if nbdinfo --is read-only "$uri"; then
    # A bitmap that is not kept would lie.
    manifest "$dir" bitmap | grep -q . || fail "read-only, for no reason"
    stop_nbdkit
    return
  fi
  random_requests "$size"
  io_both "${requests[@]}"
  expect_content "written"
  stop_nbdkit
  run 0 compare --strict "$copy" "$tmp/raw"
  each_content compare_snapshot
}

# ---- What others say: of the generator, too

# chain_of GUID STORAGE: the files from the base to it, as qemu takes them.
chain_of ()
{
  manifest "$dir" delta | perl -MJSON::PP -F'\t' -lane '
    BEGIN { ($dir, $guid, $storage) = splice (@ARGV, 0, 3); }
    $delta{$F[1]} = { parent => $F[2], path => $F[0], raw => $F[4] == 0 }
      if $F[3] == $storage;
    sub node
    {
      my $delta = $delta{$_[0]} or return ();
      return { driver => $delta->{raw} ? "raw" : "parallels",
               file => { driver => "file", filename => "$dir/$delta->{path}" },
               map { (backing => $_) } node ($delta->{parent}) };
    }
    END { print "json:" . encode_json (node ($guid)); }' "$dir" "$1" "$2" -
}

qemu_content ()
{
  local guid=$1
  if [ -d "$disk" ]; then
    # An entry past the end of the file: to qemu it is zeros, and no lower delta's.
    [[ $guid = TOP && $form = *--dirty* ]] && return
    [ "$guid" != TOP ] ||
      guid=$(top_guid)
    qemu-img convert -O raw "$(chain_of "$guid" 0)" "$tmp/out"
  else
    qemu-img convert -f parallels -O raw "$disk" "$tmp/out"
  fi
  cmp "$tmp/out" "$2" || fail "qemu reads something else: $1"
}

qemu_check_delta ()
{
  local status=0 want=0
  # What an empty image's file has is no business of qemu's.
  if has raw || has dirty || [ "$allocated" -eq 0 ]; then return; fi
  [ "$tail" -eq 0 ] || want=3
  qemu-img check -f parallels "$1" > "$tmp/check.log" 2>&1 || status=$?
  [ $status -eq $want ] ||
    { cat "$tmp/check.log"; fail "qemu-img check $1: $status, not $want"; }
}

# It knows no split disks.
try_qemu ()
{
  each_delta qemu_check_delta
  grep -q $'^disk\t.*\t1$' "$dir/manifest.tsv" || return 0
  each_content qemu_content
}

ploop_delta ()
{
  ! has ploop || ploop_check_delta "$tmp/copy/${1#"$dir/"}"
}

try_ploop ()
{
  [ -n "$has_ploop" ] || return 0
  copy_disk
  each_delta ploop_delta
  [ -d "$disk" ] && [[ $form = *--for-ploop* ]] || return 0
  run_ploop "$copy" snapshot-list DiskDescriptor.xml > "$tmp/ploop.log" 2>&1 ||
    { cat "$tmp/ploop.log"; fail "ploop snapshot-list"; }
  [ "$(grep -c '^{' "$tmp/ploop.log")" -eq "$(manifest "$dir" delta | wc -l)" ] ||
    { cat "$tmp/ploop.log"; fail "ploop snapshot-list: not all"; }
}

# What is not damaged is rescued whole.  Clusters that were never flushed, and the rest
# of one in which a file ends, are doubtful.
rescue_content ()
{
  local status=0
  "$PLOOP_IMG" rescue -O raw ${3:+"$3"} "$disk" - 2> "$tmp/said" > "$tmp/raw" ||
    status=$?
  cmp "$tmp/raw" "$2" || fail "rescue: $1"
  if [ $status -eq 2 ] && ! grep -Eq '^(lost|older)' "$tmp/said"; then status=0; fi
  [ $status -eq 0 ] ||
    { cat "$tmp/said"; fail "rescue: $1: exit status $status"; }
}

try_rescue ()
{
  each_content rescue_content
}

# A descriptor whose end is missing still says all.
try_descriptor_restore ()
{
  [ -d "$disk" ] || return 0
  copy_disk
  run 1 descriptor restore "$copy"
  perl -0pi -e 's{</Snapshots>.*}{}s' "$copy/DiskDescriptor.xml"
  if [[ $form = *--split* ]]; then
    run 1 descriptor restore "$copy"
    return
  fi
  run 0 descriptor restore "$copy"
  run 0 compare --strict "$copy" "$dir/expected/TOP.raw"
  gone=
  each_content compare_snapshot
}

# ---- Disks

has_ploop=
if has_ploop; then
  has_ploop=ploop
else
  say "no ploop here: its check is left out"
fi

# state_of_disk: what must not change; content does not without the time of change.
state_of_disk ()
{
  find "$dir" -printf '%p %s %T@ %C@ %i\n'
}

# The same seed and options make the same bytes.
generate 1 "$dir" --kind=tree
generate 1 "$tmp/again" --kind=tree
diff -r "$dir" "$tmp/again" || fail "one seed, two disks"
rm -rf "$dir" "$tmp/again"

rounds=$((${#forms[@]} * ${PLOOP_TEST_SCALE:-100} / 100))
[ $rounds -ge 2 ] || rounds=2
for ((i = 0; i < rounds; i++)); do
  seed=$((_seed * 1000 + i))
  form=${forms[(_seed + i) % ${#forms[@]}]}
  say "generate --seed=$seed $form"
  # shellcheck disable=SC2086  # several words
  generate $seed "$dir" $form
  before=$(state_of_disk)
  for command in "${commands[@]}"; do
    due || continue
    "try_$command"
    [ "$(state_of_disk)" = "$before" ] || fail "$command: changed the disk"
  done
  rm -rf "$dir"
done
say "passed"
