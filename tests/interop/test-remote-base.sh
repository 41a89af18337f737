#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that a base may be what another NBD server exports: it is read as it
# is, and all writes stay here.  A server that is killed and started again costs
# time, not data, neither read nor written, copied eagerly or lazily; one that
# answers with errors, or with an export of another size, costs errors as long as
# it does, and never what is wrong; and one that is not there is an error that says
# so.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires nbdkit nbdcopy nbdinfo qemu-io qemu-img sha256sum
for plugin in file memory pattern eval; do
  nbdkit "$plugin" --version > /dev/null 2>&1 || skip "no nbdkit-$plugin-plugin"
done
nbdkit --filter=error null --version > /dev/null 2>&1 ||
  skip "no nbdkit-error-filter"

# ---- Ours

# io_fails COMMAND: an input/output error, on what is served only.
io_fails ()
{
  if qemu-io -t writeback -f raw -c "$1" "$uri" > "$tmp/io.log" 2>&1; then
    cat "$tmp/io.log"
    fail "no error: $1"
  fi
  grep -q 'Input/output error' "$tmp/io.log" ||
    { cat "$tmp/io.log"; fail "another error: $1"; }
}

# new_top SIZE: an empty image to be put over the base.
new_top ()
{
  rm -f "$tmp/top.hds"
  "$PLOOP_IMG" create -q --cluster-size=64K "$tmp/top.hds" "$1"
}

work ()
{
  start_nbdkit file="$tmp/top.hds" base="$remote_uri" "$@" ||
    fail "refused: $(cat "$nbdkit_log")"
}

make_raw ()
{
  rm -f "$1"
  truncate -s "$2" "$1"
  for at in 0 70 500 1000 3000 5000 6000 7990; do
    dd if=/dev/urandom of="$1" bs=1k seek=$at count=200 conv=notrunc \
      status=none
  done
}

# ---- Content

# around WHAT: reads and writes over what the remote serves, which is in
# $tmp/raw; the top is as large.
around ()
{
  local size
  say "$1"
  size=$(stat -c %s "$tmp/raw")
  new_top "$size"
  work
  [ "$(nbdinfo --size "$uri")" = "$size" ] || fail "$1: wrong size"
  expect_content "$1"
  io_both 'write -P 0x11 0 512' 'write -P 0x12 130k 100k' 'write -z -u 500k 200k' \
    'write -P 0x13 5100k 3k' "write -P 0x14 $((size - 512)) 512" flush
  expect_content "$1, written"
  stop_nbdkit
  work -r
  expect_content "$1, read again"
  stop_nbdkit
}

make_raw "$tmp/base.raw" $((10 << 20))
cp --sparse=always "$tmp/base.raw" "$tmp/raw"
before=$(file_state "$tmp/base.raw")
start_remote file "$tmp/base.raw"
around "a file"
[ "$(file_state "$tmp/base.raw")" = "$before" ] || fail "the base was changed"

# With an overlay as well.
cp --sparse=always "$tmp/raw" "$tmp/raw.top"
before=$(file_state "$tmp/top.hds")
for state in new found; do
  work overlay="$tmp/overlay.hds"
  expect_content "an overlay, $state"
  io_both "write -P 0x21 200k 1M" "write -P 0x22 8M 9k"
  expect_content "an overlay, $state, written"
  stop_nbdkit
done
[ "$(file_state "$tmp/top.hds")" = "$before" ] || fail "the top was changed"
mv "$tmp/raw.top" "$tmp/raw"
work -r
expect_content "an overlay, left out"
stop_nbdkit
stop_remote

start_remote pattern 8389120
rm -f "$tmp/raw"
nbdcopy "$remote_uri" "$tmp/raw"
around "a pattern"
stop_remote

start_remote memory 8M
make_raw "$tmp/raw" $((8 << 20))
truncate -s $((8 << 20)) "$tmp/raw"
nbdcopy "$tmp/raw" "$remote_uri"
cp --sparse=always "$tmp/raw" "$tmp/raw.before"
around "memory"
nbdcopy "$remote_uri" "$tmp/out"
cmp "$tmp/out" "$tmp/raw.before" || fail "what was written went to the base"
# A base that is smaller is filled up with zeros.
nbdcopy "$remote_uri" "$tmp/raw"
truncate -s $((9 << 20)) "$tmp/raw"
around "memory, less of it"
stop_remote

# Ours: a disk of many deltas as the base of others.
"$PLOOP_IMG" create -q "$tmp/base.hds" 10M
qemu-img convert -n -f raw -O parallels "$tmp/base.raw" "$tmp/base.hds"
cp --sparse=always "$tmp/base.raw" "$tmp/raw"
if nbdkit_is_plain; then
  start_remote -r "$PLUGIN" file="$tmp/base.hds"
  around "an image that we serve"
  stop_remote
fi

# ---- A server that comes and goes

say "killed and started again"
cp --sparse=always "$tmp/base.raw" "$tmp/raw"

new_top 10M
start_remote file "$tmp/base.raw"
work

# The first half is only read, by several at once.
read_on ()
{
  local i
  for ((i = 0; i < 6; i++)); do
    nbdcopy "$uri" "$tmp/copy.$1" || return 1
    cmp -n $((5 << 20)) "$tmp/copy.$1" "$tmp/base.raw" || return 1
  done
}

# The second half is written.  What is answered is there.
write_on ()
{
  local i
  for ((i = 0; i < 12; i++)); do
    io_both "write -P $((i + 1)) $((5200 + i * 333))k 70k" \
      "write -P $((i + 100)) $((9900 - i * 111))k 1k"
  done
}

readers=()
for i in 1 2; do
  read_on $i > "$tmp/reader.$i.log" 2>&1 &
  readers+=($!)
done
(write_on) > "$tmp/writer.log" 2>&1 &
writer=$!
for signal in KILL TERM KILL; do
  sleep 0.3
  # nbdkit waits for clients that ask for nothing.
  kill -$signal "$remote_pid"
  sleep 0.1
  stop_remote KILL
  start_remote file "$tmp/base.raw"
done
for i in 1 2; do
  wait "${readers[i - 1]}" ||
    { cat "$tmp/reader.$i.log"; fail "a reader met an error, or other data"; }
done
wait $writer || { cat "$tmp/writer.log"; fail "a writer met an error"; }
expect_content "killed and started again"

# What is here already needs no base; a write of part of another cluster waits
# for it.
stop_remote KILL
io_both 'write -P 0x32 5200k 70k' 'read -P 0x32 5200k 70k' flush
io_both 'write -P 0x31 64k 1k' &
writer=$!
sleep 0.3
start_remote file "$tmp/base.raw"
wait $writer || fail "a write that waited has failed"
expect_content "a write that waited"

# nbdkit forks between opening the base and serving it.
if nbdkit_is_plain; then
  stop_nbdkit
  rm -f "$sock" "$pid_file"
  nbdkit -U "$sock" -P "$pid_file" "$PLUGIN" file="$tmp/top.hds" \
    base="$remote_uri"
  wait_until test -s "$pid_file" || fail "the server does not come up"
  nbdkit_pid=$(cat "$pid_file")
  expect_content "in the background"
  io_both 'write -P 0x34 2001k 5k' flush
  stop_remote KILL
  start_remote file "$tmp/base.raw"
  expect_content "in the background, the base's server started again"
  kill -TERM "$nbdkit_pid"
  wait_until _has_ended "$nbdkit_pid" || fail "the server does not end"
  nbdkit_pid=
  work
fi

# We are killed: what was flushed is there.
io_both 'write -P 0x33 3001k 5k' flush
kill -KILL "$nbdkit_pid"
wait "$nbdkit_pid" 2> /dev/null || true
nbdkit_pid=
work
expect_content "we were killed"
stop_nbdkit
stop_remote

# ---- A server that answers with errors

say "errors"
cp --sparse=always "$tmp/base.raw" "$tmp/raw"
new_top 10M
start_remote --filter=error file "$tmp/base.raw" error-pread=EPERM \
  error-pread-rate=100% error-pread-file="$tmp/trigger"
work
io_both 'write -P 0x41 1M 64k'
for round in 1 2; do
  touch "$tmp/trigger"
  io_fails 'read 0 512'
  io_fails 'read 5001k 64k'
  # Part of a cluster: the rest must come from the base.
  io_fails "write -P 0x42 $((round * 100))k 1k"
  io_fails "write -z $((400 + round * 100))k 1k"
  io_fails 'read 0 10M'
  # What is here, whole clusters, and what the base has not, need no base.
  io_both 'read -P 0x41 1056k 32k' "write -P $((0x42 + round)) $((round + 1))M 64k" \
    'write -P 0x45 1028k 1k' flush
  rm "$tmp/trigger"
  expect_content "errors, round $round"
  io_both "write -P $((0x50 + round)) $((round * 100))k 1k" \
    "write -z $((400 + round * 100))k 1k"
  expect_content "errors, round $round, written"
done
stop_nbdkit
"$PLOOP_IMG" check "$tmp/top.hds" > "$tmp/check.log" ||
  { cat "$tmp/check.log"; fail "ploop-img check"; }
work
expect_content "errors, opened again"
stop_nbdkit
stop_remote

# ---- Copied lazily

# Writes wait for nothing; flushes do, and tell what cannot be copied.
say "lazily"
cp --sparse=always "$tmp/base.raw" "$tmp/raw"
new_top 10M
start_remote --filter=error file "$tmp/base.raw" error-pread=EIO \
  error-pread-rate=100% error-pread-file="$tmp/trigger"
work copy-on-write=lazy copy-delay=3600000
for round in 1 2; do
  touch "$tmp/trigger"
  writes=()
  for ((c = round; c < 160; c += 9)); do
    writes+=("write -P $((0x70 + round)) $((c * 64 + 3))k 1k")
  done
  io_both "${writes[@]}" "write -z $((round * 64 + 9))k 5k"
  io_fails "write -f -P $((0x70 + round)) $((round * 64 + 3))k 1k"
  io_both "read -P $((0x70 + round)) $((round * 64 + 3))k 1k"
  rm "$tmp/trigger"
  expect_content "lazily, round $round"
  io_both flush
done
grep -q 'copied lazily.*Input/output error' "$nbdkit_log" ||
  fail "no word of what could not be copied"
# The server goes, and comes back before ours ends.
stop_remote KILL
io_both 'write -P 0x75 5000k 1k' 'write -P 0x76 6003k 1k'
start_remote file "$tmp/base.raw"
stop_nbdkit
work
expect_content "lazily, opened again"
stop_nbdkit
stop_remote

# One place that cannot be read keeps nothing else from being copied.
new_top 10M
cat > "$tmp/pread.sh" <<END
if [ \$4 -le 8192 ] && [ \$((\$4 + \$3)) -gt 8192 ]; then
  echo EIO bad >&2
  exit 1
fi
dd if="$tmp/base.raw" iflag=skip_bytes,count_bytes skip=\$4 count=\$3 bs=64k \
  status=none
END
start_remote -r eval get_size="echo $((10 << 20))" pread=". $tmp/pread.sh"
work copy-on-write=lazy copy-delay=3600000
writes=()
for ((c = 0; c < 160; c += 9)); do
  writes+=("write -P 0x77 $((c * 64))k 512")
done
cp --sparse=always "$tmp/base.raw" "$tmp/raw"
io_both "${writes[@]}"
kill -TERM "$nbdkit_pid"
wait_until _has_ended "$nbdkit_pid" || fail "the server does not end"
wait "$nbdkit_pid" || :
nbdkit_pid=
grep -q 'top.hds: could not be closed.*Input/output error' "$nbdkit_log" ||
  { cat "$nbdkit_log"; fail "no word of what is lost"; }
stop_remote
start_remote file "$tmp/base.raw"
cp --sparse=always "$tmp/base.raw" "$tmp/raw"
others=()
for c in "${writes[@]:1}"; do others+=(-c "$c"); done
qemu-io -f raw "${others[@]}" "$tmp/raw" > /dev/null
work
expect_content "lazily, beside what cannot be read"
stop_nbdkit
stop_remote

# ---- Another export

say "another size"

for size in $((10 << 20 | 512)) $((9 << 20)); do
  cp --sparse=always "$tmp/base.raw" "$tmp/raw"
  new_top 10M
  start_remote file "$tmp/base.raw"
  work
  io_both 'write -P 0x61 1M 64k'
  stop_remote KILL
  head -c "$size" /dev/urandom > "$tmp/other.raw"
  truncate -s "$size" "$tmp/other.raw"
  start_remote file "$tmp/other.raw"
  io_fails 'read 0 64k'
  io_fails 'write -P 0x62 70k 1k'
  io_both 'read -P 0x61 1M 64k' 'write -P 0x63 1050k 1k' flush
  grep -q "$remote_sock.*10485760.*$size" "$nbdkit_log" ||
    fail "no word of what has changed"
  stop_remote
  start_remote file "$tmp/base.raw"
  expect_content "the export as it was"
  io_both 'write -P 0x64 70k 1k'
  expect_content "the export as it was, written"
  stop_nbdkit
  stop_remote
done

# ---- None at all

say "no server"
before=$(file_state "$tmp/top.hds")
expect_refusal "$remote_sock.*(No such file|refused).*nbdinfo" \
  file="$tmp/top.hds" base="$remote_uri"
expect_refusal "$remote_sock.*(No such file|refused).*nbdinfo" \
  -r file="$tmp/top.hds" base="$remote_uri"
expect_refusal 'nbd\+unix:///: cannot' file="$tmp/top.hds" base="nbd+unix:///"
expect_refusal 'gopher://' file="$tmp/top.hds" base="gopher://localhost/x"
start_remote null 0
expect_refusal "$remote_sock.*empty" file="$tmp/top.hds" base="$remote_uri"
stop_remote
# One that is no NBD server, or has another export.
start_remote --filter=exportname null 1M exportname=disk \
  exportname-strict=true
expect_refusal "$remote_sock" file="$tmp/top.hds" base="$remote_uri"
start_nbdkit file="$tmp/top.hds" \
  base="nbd+unix:///disk?socket=$remote_sock" || fail "the named export"
stop_nbdkit
stop_remote
[ "$(file_state "$tmp/top.hds")" = "$before" ] ||
  fail "changed by what was refused"
say "passed"
