#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that chains of deltas that other programs made are read as they must
# be, by their descriptor, by its directory and snapshot by snapshot (the
# SHA-256 of the manifest); that reading changes nothing on disk; that hostile
# descriptors end in an error that names file, element and value; that what is
# written goes to the top delta only, and ploop and qemu take it; that the real
# ploop makes snapshots of what we wrote and we read them; and that a disk that
# is served is locked, its lower deltas too.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires nbdcopy nbdinfo qemu-io qemu-img qemu-nbd sha256sum timeout flock
[ -x "${FCNTL_HOLD:-}" ] || fail "FCNTL_HOLD is not set: use make check"
unpack_corpus
corpus=$tmp/corpus

# corpus_state: all that must not change of it when it is only read: which files
# there are, their content, size, time and number.
corpus_state ()
{
  (cd "$corpus" && shopt -s nullglob &&
   set -- a-* c-* d-* i-* &&
   find "$@" -type f -exec sha256sum {} + &&
   find "$@" -printf '%p %s %T@ %i\n') | sort
}

# expect_no_change WHAT
expect_no_change ()
{
  local after
  after=$(corpus_state)
  [ "$after" = "$before" ] || {
    diff <(echo "$before") <(echo "$after") || true
    fail "changed on disk: $1"
  }
}

# content_of [ARG...]: copy what is served with ARGs to $tmp/out; sets `size` and
# `sha`, its SHA-256.
content_of ()
{
  start_nbdkit "$@" || fail "refused: $* : $(cat "$nbdkit_log")"
  rm -f "$tmp/out"
  nbdcopy "$uri" "$tmp/out"
  stop_nbdkit
  size=$(stat -c %s "$tmp/out")
  sha=$(sha256sum < "$tmp/out" | cut -d ' ' -f 1)
}

# chain_of DIR [GUID]: the files of a disk, top first.  For descriptors with one
# element a line, as ploop writes them.
chain_of ()
{
  awk -v want="${2:-}" '
    { gsub (/^[ \t]+|[ \t\r]+$/, ""); text = $0
      gsub (/<[^>]*>/, "", text) }
    /^<TopGUID>/ { if (want == "") want = text }
    /^<GUID>/ { guid = tolower (text) }
    /^<ParentGUID>/ { parent[guid] = tolower (text) }
    /^<File>/ { file[guid] = text }
    END { for (g = tolower (want); g in file; g = parent[g]) print file[g] }
  ' "$1/DiskDescriptor.xml"
}

# qemu_chain DIR [GUID]: the same, as qemu wants it.
qemu_chain ()
{
  local dir=$1 file json='' format
  while read -r file; do
    format=parallels
    head -c 12 "$dir/$file" | grep -q '^WithouFreSpa\|^WithoutFreeS' ||
      format=raw
    json="$(printf '{"driver":"%s","file":{"driver":"file","filename":"%s"}' \
              $format "$dir/$file")${json:+,\"backing\":$json}}"
  done < <(chain_of "$@" | tac)
  echo "json:$json"
}

# ---- What others made

# must_read NAME ENTRY SHA BYTES: by descriptor and, in short runs by turns, by
# directory, with -r and without; a snapshot only as such.
must_read ()
{
  local file=$corpus/${2%%#*} snapshot=''
  local dir=${file%/*}
  case $2 in
    *'#'*) snapshot=snapshot=${2##*#} ;;
  esac
  content_of -r file="$file" ${snapshot:+"$snapshot"}
  [ "$size" = "$4" ] || fail "$1: size is $size, must be $4"
  [ "$sha" = "$3" ] || fail "$1: content is $sha, must be $3"
  chosen "$nr" || return 0
  if [ -n "$snapshot" ]; then
    # Never to be written, so nothing is touched without -r either.  The GUID
    # may be written in other ways.
    content_of "$dir" "$(echo "$snapshot" | tr -d '{}' | sed 's/=.*/\U&/;
      s/^SNAPSHOT/snapshot/')" -D ploop.metadata=1 -v
    [ "$sha" = "$3" ] || fail "$1: content is $sha, must be $3"
    grep -q 'opened for reading' "$nbdkit_log" ||
      fail "$1: a snapshot is opened for writing"
  else
    content_of -r file="$dir"
    [ "$sha" = "$3" ] || fail "$1: content is $sha, must be $3"
  fi
}

# may_read NAME ENTRY SHA BYTES TEXT: the same, or refused with TEXT.
may_read ()
{
  if start_nbdkit -r file="$corpus/$2"; then
    stop_nbdkit
    must_read "$1" "$2" "$3" "$4"
  else
    expect_refusal "DiskDescriptor\\.xml.*$5" -r file="$corpus/$2"
    expect_refusal "DiskDescriptor\\.xml.*$5" -r file="$corpus/${2%/*}"
  fi
}

before=$(corpus_state)
nr=0
while IFS=$'\t' read -r name _ _ entry sha256 bytes _; do
  case $name:$entry in
    d-split2:*) may_read "$name" "$entry" "$sha256" "$bytes" '<Storage>' ;;
    [acd]-*:*DiskDescriptor.xml*)
      must_read "$name" "$entry" "$sha256" "$bytes" ;;
    *) continue ;;
  esac
  nr=$((nr + 1))
done < "$PLOOP_CORPUS/MANIFEST.tsv"
say "$nr disks of the corpus"
[ $nr -ge 20 ] || fail "only $nr rows"
expect_no_change "by being read"

# ---- Odd descriptors

# try_xml FILE [TEXT]: served with what root.hds holds, or, with TEXT, refused
# saying so.
try_xml ()
{
  if [ -n "${2:-}" ]; then
    expect_refusal "$1.*$2" file="$corpus/i-xml/$1"
  else
    content_of -r file="$corpus/i-xml/$1"
    [ "$sha" = "$sha_of_root" ] || fail "$1: content is $sha"
  fi
}

content_of -r file="$corpus/i-xml/root.hds"
sha_of_root=$sha
nr=0
for file in "$corpus"/i-xml/x-*.xml; do
  name=${file##*/}
  case $name in
    x-2storage.xml) try_xml "$name" '<Storage>' ;;
    x-badguid.xml) try_xml "$name" '<GUID>.*\{xyz\}' ;;
    x-bs63.xml) try_xml "$name" '<Blocksize>.*63' ;;
    x-cyc.xml) try_xml "$name" '(<ParentGUID>|<Shot>).*\{5fbaabe3-' ;;
    x-ent.xml | x-lol.xml) try_xml "$name" '(DOCTYPE|document type|entit)' ;;
    x-missing.xml) try_xml "$name" '<File>.*nothere\.hds' ;;
    x-trav.xml) try_xml "$name" '<File>.*\.\./\.\./\.\./\.\./etc/hostname' ;;
    *) try_xml "$name" ;;
  esac
  nr=$((nr + 1))
done
[ $nr -ge 13 ] || fail "only $nr odd descriptors"
expect_no_change "by odd descriptors"

# A descriptor that is not called so, one that is empty, a directory without.
cp "$corpus/c-chain3-v2-b64/DiskDescriptor.xml" "$corpus/c-chain3-v2-b64/o.xml"
start_nbdkit -r file="$corpus/c-chain3-v2-b64/o.xml" || fail "another name"
stop_nbdkit
rm "$corpus/c-chain3-v2-b64/o.xml"
mkdir "$tmp/empty"
expect_refusal 'empty/DiskDescriptor.xml' file="$tmp/empty"
[ -z "$(ls "$tmp/empty")" ] || fail "something was left in $tmp/empty"

# Which snapshots there are is said when it is another one.
for guid in 00000009-1111-2222-3333-444444444444 nonsense; do
  expect_refusal "DiskDescriptor.xml.*$guid.*00000001-1111-2222" \
    "$corpus/c-chain3-v2-b64" "snapshot=$guid"
done
expect_refusal "DiskDescriptor.xml.*'\\{\\}'.*00000001-1111-2222" \
  "$corpus/c-chain3-v2-b64" 'snapshot={}'
expect_refusal snapshot "$corpus/c-chain3-v2-b64" snapshot=

# ---- Writing

dir=$tmp/disk

# round NAME: write to a copy of a disk of the corpus.
round ()
{
  local name=$1 top lower size kib before=() i
  rm -rf "$dir"
  cp -a "$corpus/$name" "$dir"
  mapfile -t lower < <(chain_of "$dir")
  top=${lower[0]}
  lower=("${lower[@]:1}")
  say "$name: ${#lower[@]} lower deltas"
  [ ${#lower[@]} -gt 0 ] || fail "$name: no lower deltas"
  for file in "${lower[@]}"; do
    before+=("$(file_state "$dir/$file")")
  done
  rm -f "$tmp/raw"
  qemu-img convert -O raw "$(qemu_chain "$dir")" "$tmp/raw"

  start_nbdkit file="$dir"
  size=$(nbdinfo --size "$uri")
  kib=$((size / 1024))
  qemu-img compare -q -f raw -F raw "$uri" "$tmp/raw" ||
    fail "$name: we read something else than qemu"
  # Whole clusters and parts of them, where lower deltas have data and where
  # none has.
  io_both 'write -P 0x41 0 512' 'write -P 0x42 900k 300k' \
    'write -P 0x43 2047k 3k' 'write -z 1000k 70k' 'write -z -u 2048k 1M' \
    'write -P 0x44 64k 64k' "write -P 0x45 $((kib - 1))k 1k" 'write -z 300k 4k' \
    'write -z -u 33k 7k' flush
  # Zeros or what was written last, sector by sector; never what a lower delta
  # has, once something was written above it.
  io 'write -P 0x46 1M 1M' 'discard 1M 1M' flush
  nbdcopy "$uri" "$tmp/out"
  [ "$(dd if="$tmp/out" bs=1M skip=1 count=1 status=none |
         tr -d '\0\106' | wc -c)" = 0 ] ||
    fail "$name: a range that was trimmed has something else"
  io_both 'write -P 0x47 1M 1M'
  nbdcopy --flush "$tmp/raw" "$uri"
  io_both 'write -P 0x48 1500k 10k'
  io_both 'discard 3M 512k' 'write -P 0x49 3M 512k' flush
  nbdcopy "$uri" "$tmp/out"
  cmp "$tmp/out" "$tmp/raw" || fail "$name: not what was written"
  [ "$(in_use "$dir/$top")" = 746f6e59 ] || fail "$name: not marked"
  stop_nbdkit
  [ "$(in_use "$dir/$top")" = 00000000 ] || fail "$name: still marked"

  i=0
  for file in "${lower[@]}"; do
    [ "$(file_state "$dir/$file")" = "${before[i]}" ] ||
      fail "$name: $file was changed"
    i=$((i + 1))
  done
  cmp "$dir/DiskDescriptor.xml" "$corpus/$name/DiskDescriptor.xml" ||
    fail "$name: the descriptor was changed"
  qemu-img compare -q -F raw "$(qemu_chain "$dir")" "$tmp/raw" ||
    fail "$name: qemu reads something else"
  qemu-img check -q -f parallels "$dir/$top" || fail "$name: qemu-img check"
  "$PLOOP_IMG" check "$dir/$top" > "$tmp/check.log" ||
    { cat "$tmp/check.log"; fail "$name: ploop-img check"; }
  if has_ploop; then ploop_takes "$name" "$dir/$top"; fi
  content_of -r file="$dir/DiskDescriptor.xml"
  cmp "$tmp/out" "$tmp/raw" || fail "$name: not what was written, read again"
}

# ploop_takes NAME TOP
ploop_takes ()
{
  ploop_check_delta "$2"
  run_ploop "$dir" info -s -d DiskDescriptor.xml > "$tmp/ploop.log" 2>&1 ||
    { cat "$tmp/ploop.log"; fail "$1: ploop info"; }
  # It minds holes in files even where it made them.
  run_ploop "$dir" check -r -S DiskDescriptor.xml > "$tmp/ploop.log" 2>&1 ||
    grep -q sparse "$tmp/ploop.log" ||
    { cat "$tmp/ploop.log"; fail "$1: ploop check DiskDescriptor.xml"; }
}

nr=0
for name in c-chain3-v1-b2048 c-tree-v2-b64 c-rawbase-v2-b2048 \
  c-growntop-v2-b64 c-hole-in-top-v2-b64; do
  if chosen $nr; then round $name; fi
  nr=$((nr + 1))
done

# Snapshots keep what they had, whatever is written over them.
rm -rf "$dir"
cp -a "$corpus/c-chain3-v2-b64" "$dir"
start_nbdkit file="$dir"
io 'write -P 0x51 0 16M' flush
stop_nbdkit
while IFS=$'\t' read -r name _ _ entry sha256 _; do
  case $name in
    c-chain3-v2-b64@*)
      content_of "$dir" "snapshot=${entry##*#}"
      [ "$sha" = "$sha256" ] || fail "$name: changed by a write to the top" ;;
  esac
done < "$PLOOP_CORPUS/MANIFEST.tsv"

# ---- Snapshots that the real ploop makes of what we wrote

# snapshot_of NR
snapshot_of ()
{
  echo "{0000000$1-aaaa-BBBB-cccc-444444444444}"
}

if has_ploop; then
  say "ploop snapshot"
  dir=$tmp/made
  mkdir "$dir"
  run_ploop "$dir" init -s 16M -v 1 -t none -b 128 root.hds \
    > /dev/null 2>&1 || fail "ploop init"
  rm -f "$tmp/raw"
  truncate -s 16M "$tmp/raw"
  nr_snapshots=3
  for ((i = 1; i <= nr_snapshots; i++)); do
    start_nbdkit file="$dir"
    io_both "write -P $((16 + i)) $((i * 100))k 1000k" \
      "write -P $((32 + i)) $((8 + i))M 70k" "write -z -u $((i * 200))k 130k" \
      "write -P $((48 + i)) $((i * 500 + 1))k 512" \
      "write -P $((64 + i)) 16776704 512"
    # An acknowledged flush is all that is needed: it may be killed then.
    io flush
    if [ $i -eq 2 ]; then
      kill -KILL "$nbdkit_pid"
      wait "$nbdkit_pid" 2> /dev/null || true
      nbdkit_pid=
      start_nbdkit file="$dir"
      io_both 'write -P 0x60 5M 1k'
    fi
    stop_nbdkit
    cp --sparse=always "$tmp/raw" "$tmp/raw.$i"
    run_ploop "$dir" snapshot -u "$(snapshot_of $i)" DiskDescriptor.xml \
      > "$tmp/ploop.log" 2>&1 ||
      { cat "$tmp/ploop.log"; fail "ploop snapshot $i"; }
  done
  for ((i = 1; i <= nr_snapshots; i++)); do
    content_of "$dir" "snapshot=$(snapshot_of $i)"
    cmp "$tmp/out" "$tmp/raw.$i" || fail "snapshot $i has something else"
    qemu-img compare -q -F raw "$(qemu_chain "$dir" "$(snapshot_of $i)")" \
      "$tmp/raw.$i" || fail "snapshot $i has something else for qemu"
  done
  start_nbdkit file="$dir"
  io_both 'write -P 0x61 0 64k' 'write -P 0x62 12M 300k' flush
  stop_nbdkit
  qemu-img compare -q -F raw "$(qemu_chain "$dir")" "$tmp/raw" ||
    fail "the top has something else for qemu"

  # ploop merges what we wrote down into one delta.
  run_ploop "$dir" snapshot-merge -A DiskDescriptor.xml \
    > "$tmp/ploop.log" 2>&1 ||
    { cat "$tmp/ploop.log"; fail "ploop snapshot-merge"; }
  content_of -r file="$dir"
  cmp "$tmp/out" "$tmp/raw" || fail "merged, it has something else"
else
  say "no ploop here: its snapshots are not tried"
fi

# ---- Locks

# second TEXT ARG...: another server with ARGs, while the first runs; it must be
# refused and say TEXT, or come up when TEXT is empty.
second ()
{
  local text=$1 status=0
  shift
  timeout "$hang_seconds" \
    env ${NBDKIT_PRELOAD:+LD_PRELOAD="$NBDKIT_PRELOAD"} \
    ${NBDKIT:-nbdkit} -U - "$PLUGIN" "$@" --run 'nbdinfo "$uri"' \
    > "$tmp/second.log" 2>&1 < /dev/null || status=$?
  if [ -z "$text" ]; then
    [ $status -eq 0 ] ||
      { cat "$tmp/second.log"; fail "second server kept out: $*"; }
    return
  fi
  [ $status -eq 1 ] ||
    { cat "$tmp/second.log"; fail "second server, status $status: $*"; }
  grep -Eq "error: .*$text.*(in use|lock)" "$tmp/second.log" ||
    { cat "$tmp/second.log"; fail "refused without naming $text: $*"; }
}

qemu_refused ()
{
  if qemu-io -f parallels "$@" > "$tmp/qemu.log" 2>&1; then
    fail "qemu-io $* could use the image"
  fi
  grep -qi 'lock' "$tmp/qemu.log" ||
    { cat "$tmp/qemu.log"; fail "qemu-io failed for another reason"; }
}

qemu_allowed ()
{
  qemu-io -f parallels "$@" > "$tmp/qemu.log" 2>&1 ||
    { cat "$tmp/qemu.log"; fail "qemu-io $* was kept out"; }
}

# lower_are_locked: nobody may write to them; who only reads may.
lower_are_locked ()
{
  local file
  for file in "${lower[@]}"; do
    qemu_refused -c 'write 0 512' "$dir/$file"
    qemu_allowed -r -c 'read 0 512' "$dir/$file"
  done
}

# The real tool waits for its lock for ever, and minds no SIGTERM meanwhile.
ploop_is_kept_out ()
{
  local status=0
  has_ploop || return 0
  PLOOP_LIMIT='timeout -s KILL 1' run_ploop "$dir" "$@" DiskDescriptor.xml \
    > "$tmp/ploop.log" 2>&1 || status=$?
  [ $status -eq 137 ] ||
    { cat "$tmp/ploop.log"; fail "ploop $* was let in: status $status"; }
}

say "locks"
dir=$tmp/locked
cp -a "$corpus/c-chain3-v2-b64" "$dir"
mapfile -t lower < <(chain_of "$dir")
top=${lower[0]}
lower=("${lower[@]:1}")
xml_before=$(cat "$dir/DiskDescriptor.xml")
start_nbdkit file="$dir"
second "${top//[\{\}]/.}" file="$dir"
second "${top//[\{\}]/.}" -r file="$dir/DiskDescriptor.xml"
second "${top//[\{\}]/.}" -r file="$dir/$top"
qemu_refused -r -c 'read 0 512' "$dir/$top"
lower_are_locked
"$FCNTL_HOLD" try write "$dir/root.hds" > "$tmp/hold.log" &&
  fail "something like libploop 9 was let in"
io 'write -P 0x71 0 64k' flush
ploop_is_kept_out check
[ "$(in_use "$dir/$top")" = 746f6e59 ] || fail "ploop took the mark away"
stop_nbdkit
[ "$(cat "$dir/DiskDescriptor.xml")" = "$xml_before" ] ||
  fail "the descriptor was changed"

say "locks, for reading"
start_nbdkit -r file="$dir"
second '' -r file="$dir"
second '' "$dir" 'snapshot={00000001-1111-2222-3333-444444444444}'
second "${top//[\{\}]/.}" file="$dir"
lower_are_locked
ploop_is_kept_out snapshot
stop_nbdkit

say "locks of others"
qemu-nbd -f parallels -t -k "$tmp/qsock" --pid-file "$tmp/qpid" \
  "$dir/root.hds" &
qemu_nbd=$!
cleanup_fn eval 'kill $qemu_nbd 2> /dev/null'
wait_until test -s "$tmp/qpid" || fail "qemu-nbd does not come up"
expect_refusal 'root\.hds.*in use' file="$dir"
expect_refusal 'root\.hds.*in use' -r file="$dir"
kill "$qemu_nbd"
wait "$qemu_nbd" || true
qemu_nbd=

# None is left behind.
for file in "$top" "${lower[@]}"; do
  "$FCNTL_HOLD" try write "$dir/$file" > /dev/null || fail "$file is locked"
done
flock -n "$dir/DiskDescriptor.xml.lck" true || fail "ploop's lock is held"
say "passed"
