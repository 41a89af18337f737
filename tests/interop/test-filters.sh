#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that the filters of nbdkit that the manual speaks of do above this plugin what
# the manual says, and that the disk is right under them: what is read through them is
# what the disk has (SHA-256), snapshots too, by name; the map is the same; what is
# written through them is there afterwards, in an image that is sound; and lower deltas
# stay as they are.  Every filter of the manual is tried, and its command run as printed.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires nbdcopy nbdinfo qemu-io qemu-img sfdisk mke2fs sha256sum cmp
unpack_corpus

manual=$abs_top_srcdir/man/nbdkit-ploop-plugin.pod
chain="c-chain3-v2-b64"
guids=('{00000001-1111-2222-3333-444444444444}' '{00000002-1111-2222-3333-444444444444}')

# ---- The disk, of three deltas

# fresh: the disk as the corpus has it, in $disk.
disk=$tmp/disk
fresh ()
{
  rm -rf "$disk"
  cp -r "$tmp/corpus/$chain" "$disk"
}

# expected_sum NAME: of the manifest.
expected_sum ()
{
  awk -F '\t' -v name="$1" '$1 == name { print $5 }' "$PLOOP_CORPUS/MANIFEST.tsv"
}

live_sum=$(expected_sum $chain)
snapshot_sums=("$(expected_sum $chain@1)" "$(expected_sum $chain@2)")
[ ${#live_sum} -eq 64 ] && [ "${#snapshot_sums[1]}" -eq 64 ] ||
  fail "the manifest has no sums of $chain"

# uri_of GUID
uri_of ()
{
  local name=${1//\{/%7B}
  echo "nbd+unix:///${name//\}/%7D}?socket=$sock"
}

# expect_sum WHAT URI SUM
expect_sum ()
{
  local sum
  sum=$(nbdcopy "$2" - | sha256sum) || fail "$1: cannot be read"
  [ "${sum%% *}" = "$3" ] || fail "$1: not the content that it must have"
}

expect_snapshots ()
{
  local i
  for i in 0 1; do
    expect_sum "$1: snapshot $((i + 1))" "$(uri_of "${guids[i]}")" "${snapshot_sums[i]}"
  done
}

# lower_state: what must never change.
lower_state ()
{
  local file
  for file in "$disk"/root.hds*; do
    [ "$file" = "$top" ] || file_state "$file"
  done
}

# serve ARG...
serve ()
{
  start_nbdkit "$@" || fail "refused: $* : $(cat "$nbdkit_log")"
}

fresh
top=$("$PLOOP_IMG" info --output=json "$disk" |
      grep -oE 'root\.hds\.\{[-0-9a-f]*\}' | tail -n 1)
top=$disk/$top
serve -r file="$disk"
nbdinfo --map "$uri" > "$tmp/map"
nbdinfo --map "$(uri_of "${guids[0]}")" > "$tmp/map-of-snapshot"
nbdcopy "$uri" "$tmp/content"
stop_nbdkit
grep -q hole "$tmp/map" || fail "the disk has no holes"

# expect_sound WHAT: the disk, which nobody serves any more, is, and has $tmp/raw.
expect_sound ()
{
  [ "$(in_use "$top")" = 00000000 ] || fail "$1: still marked in use"
  "$PLOOP_IMG" check "$disk" > "$tmp/check.log" ||
    { cat "$tmp/check.log"; fail "$1: ploop-img check"; }
  "$PLOOP_IMG" compare -q "$disk" "$tmp/raw" ||
    fail "$1: not what was written"
  [ "$(lower_state)" = "$lower" ] || fail "$1: a lower delta has changed"
}

# One pattern each, over borders of clusters, above lower deltas and holes.
write_all_kinds ()
{
  io_both 'write -P 1 0 200k' 'write -P 2 1000k 65k' 'write -P 3 16380k 4k' flush \
    'write -P 4 1k 512' 'write -z 2M 100k' 'write -f -P 5 5M 32k' flush
  # Whole clusters that no lower delta has read as zeros when they are trimmed.
  io 'write -P 6 6M 128k' 'discard 6176k 64k'
  qemu-io -f raw -c 'write -P 6 6M 128k' -c 'write -z 6176k 64k' "$tmp/raw" > /dev/null
}

# right_under WHAT ARG...: ARGs bring in filters that change nothing of the disk.
right_under ()
{
  local what=$1 lower
  shift
  say "right under $what"
  fresh
  lower=$(lower_state)
  cp "$tmp/content" "$tmp/raw"
  serve file="$disk" "$@"
  expect_sum "$what" "$uri" "$live_sum"
  expect_snapshots "$what"
  nbdinfo --map "$uri" | diff - "$tmp/map" || fail "$what: another map"
  nbdinfo --map "$(uri_of "${guids[0]}")" | diff - "$tmp/map-of-snapshot" ||
    fail "$what: another map of a snapshot"
  nbdinfo --is read-only "$(uri_of "${guids[0]}")" ||
    fail "$what: a snapshot can be written"
  write_all_kinds
  expect_content "$what"
  expect_snapshots "$what, after writing"
  stop_nbdkit
  expect_sound "$what"
}

# milliseconds COMMAND...: sets `took`.
milliseconds ()
{
  local start=${EPOCHREALTIME/[.,]/}
  "$@"
  took=$(((${EPOCHREALTIME/[.,]/} - start) / 1000))
}

# ---- What each filter does

# All that is written goes to a file that nobody sees; even a snapshot can be
# written to.  What one client has written all of them see.
try_cow ()
{
  local before
  fresh
  cp "$tmp/content" "$tmp/raw"
  before=$(file_state "$top"; lower_state)
  serve --filter=cow file="$disk"
  expect_sum cow "$uri" "$live_sum"
  write_all_kinds
  expect_content "cow, another connection"
  stop_nbdkit
  [ "$(file_state "$top"; lower_state)" = "$before" ] || fail "cow: a file has changed"

  serve --filter=cow file="$disk" snapshot="${guids[0]}"
  expect_sum "cow above a snapshot" "$uri" "${snapshot_sums[0]}"
  io 'write -P 9 0 1M' 'read -P 9 0 1M'
  stop_nbdkit
  serve --filter=cow file="$disk" snapshot="${guids[0]}"
  expect_sum "cow, started again" "$uri" "${snapshot_sums[0]}"
  stop_nbdkit
  [ "$(file_state "$top"; lower_state)" = "$before" ] || fail "cow: a file has changed"
}

# The plugin is asked to prefetch, unless there is no page cache to prefetch to.
try_readahead ()
{
  right_under readahead --filter=readahead
  serve -r --filter=readahead --filter=log file="$disk" logfile="$tmp/log"
  nbdcopy --request-size=65536 "$uri" null:
  stop_nbdkit
  grep -Eq '\.\.\.Cache .*return=0' "$tmp/log" || fail "readahead: nothing is prefetched"
  if grep -Eq '\.\.\.Cache .*return=-1' "$tmp/log"; then fail "readahead: errors"; fi

  serve -r --filter=readahead --filter=log file="$disk" logfile="$tmp/log" cache=none
  expect_sum "readahead, cache=none" "$uri" \
    "$("$PLOOP_IMG" convert -q -O raw --force "$disk" "$tmp/raw"
       sha256sum < "$tmp/raw" | cut -d ' ' -f 1)"
  stop_nbdkit
  if grep -q Cache "$tmp/log"; then fail "readahead: prefetches with cache=none"; fi
  grep -q "readahead: warning" "$nbdkit_log" || fail "readahead: no warning"
}

# It counts what clients have asked for.
try_stats ()
{
  right_under stats --filter=stats statsfile="$tmp/stats"
  serve --filter=stats file="$disk" statsfile="$tmp/stats"
  io 'read 0 64k' 'read 64k 64k' 'write 1M 4k' 'discard 2M 64k' 'write -z 3M 64k'
  stop_nbdkit
  local line
  for line in 'read: 2 ops, .* 128.00 KiB' 'write: 1 ops, .* 4.00 KiB' \
      'trim: 1 ops, .* 64.00 KiB' 'zero: 1 ops, .* 64.00 KiB' 'flush: [1-9]'; do
    grep -q "^$line" "$tmp/stats" ||
      { cat "$tmp/stats"; fail "stats: without '$line'"; }
  done
}

# One line for each request and for each answer, with the client's name for the export.
try_log ()
{
  right_under log --filter=log logfile="$tmp/log"
  local line
  for line in 'Connect export="" .* size=0x1000000 .* prefsize=0x8000 .* write=1 ' \
      'Connect export="{00000001-.*write=0 ' 'Write .* offset=0x0 count=0x32000 ' \
      'Zero .* offset=0x200000 count=0x19000 ' 'Trim .* offset=0x608000 count=0x10000 ' \
      'Extents ' 'Flush '; do
    grep -q -- "$line" "$tmp/log" || { cat "$tmp/log"; fail "log: without '$line'"; }
  done
  if grep -q 'return=-1' "$tmp/log"; then fail "log: a request has failed"; fi
}

# A request that fails is repeated on a connection made anew to the plugin.

# Has something failed since fail_once, by the log?
_has_failed ()
{
  [ "$(grep -c 'return=-1 error=EIO' "$tmp/log")" -gt "$nr_failed" ]
}

# fail_once COMMAND...: what fails while $tmp/failing is there fails once under
# COMMAND, or until the repetition after that.
fail_once ()
{
  local mending
  nr_failed=$(grep -c 'return=-1 error=EIO' "$tmp/log" || true)
  touch "$tmp/failing"
  { wait_until _has_failed; rm "$tmp/failing"; } &
  mending=$!
  "$@"
  if [ -e "$tmp/failing" ]; then
    kill $mending
    fail "retry: it did not fail before: $*"
  fi
  wait $mending
}

try_retry ()
{
  local what
  right_under retry --filter=retry retry-delay=1

  # What fails is a filter below: reading, writing, and reading a snapshot.
  serve --filter=retry --filter=log --filter=error file="$disk" retry-delay=1 \
    logfile="$tmp/log" error-rate=100% error-file="$tmp/failing"
  for what in 'read -P 4 1k 512' 'write -P 7 3M 4k' 'discard 7M 64k'; do
    fail_once io "$what"
  done
  fail_once expect_sum "retry: snapshot" "$(uri_of "${guids[0]}")" "${snapshot_sums[0]}"
  io 'read -P 7 3M 4k'
  stop_nbdkit
  "$PLOOP_IMG" check "$disk" > /dev/null || fail "retry: the image is not sound"

  # What fails is the plugin, because the base's server does.
  truncate -s 8M "$tmp/base.raw"
  qemu-io -f raw -c 'write -P 8 0 8M' "$tmp/base.raw" > /dev/null
  "$PLOOP_IMG" create -q "$tmp/thin.hds" 8M
  start_remote --filter=error file "$tmp/base.raw" error-pread-rate=100% \
    error-pread-file="$tmp/failing"
  serve --filter=retry --filter=log file="$tmp/thin.hds" base="$remote_uri" \
    retry-delay=1 logfile="$tmp/log"
  fail_once io 'write -P 1 0 4k'
  io 'read -P 1 0 4k' 'read -P 8 4k 64k'
  stop_nbdkit
  stop_remote
  grep -q 'Write .*return=-1 error=EIO' "$tmp/log" || fail "retry: the plugin did not fail"
  try_retry_in_a_directory
}

# With dir=, making the connection anew closes the disk and opens it again.
try_retry_in_a_directory ()
{
  local at="nbd+unix:///disk?socket=$sock"
  fresh
  cp "$tmp/content" "$tmp/raw"
  serve --filter=retry --filter=log --filter=error dir="$tmp" idle-close=0 \
    retry-delay=1 logfile="$tmp/log" error-pwrite-rate=100% \
    error-pwrite-file="$tmp/failing"
  uri=$at fail_once io 'write -P 6 0 100k'
  stop_nbdkit
  qemu-io -f raw -c 'write -P 6 0 100k' "$tmp/raw" > /dev/null
  [ "$(grep -c ' Connect export="*disk' "$tmp/log")" -ge 2 ] ||
    { cat "$tmp/log"; fail "retry, dir=: was not opened again"; }
  "$PLOOP_IMG" compare -q "$disk" "$tmp/raw" || fail "retry, dir=: not what was written"
}

# A directory as a container's: /etc/hostname.
mkdir -p "$tmp/container/etc"
echo "ct101" > "$tmp/container/etc/hostname"

# with_partitions FILE TABLE: a disk of 32 MiB with the partitions that TABLE (of sfdisk)
# has, in the last of them, from $at on, 16 MiB of ext4 with what a container has.
with_partitions ()
{
  rm -f "$1"
  truncate -s 32M "$1"
  sfdisk -q "$1" <<< "$2" > /dev/null
  mke2fs -q -F -t ext4 -b 1024 -d "$tmp/container" -E offset="$at" "$1" 16M 2> /dev/null
}

# Containers have one partition.
as_container ()
{
  local at=$((1 << 20))
  with_partitions "$1" $'label: gpt\nstart=2048,size=61440'
}

# describe RAW DIR: a disk with a descriptor, of the same content.
describe ()
{
  rm -rf "$2"
  mkdir "$2"
  "$PLOOP_IMG" create -q --descriptor --from="$1" "$2/root.hds"
}

# The export is the partition, of the live disk and of a snapshot; the rest of the disk
# is out of reach.
try_partition ()
{
  local label at=$((18432 * 512))
  for label in gpt dos; do
    say "partition: $label"
    with_partitions "$tmp/parts.raw" \
      "label: $label"$'\nstart=2048,size=16384\nstart=18432,size=32768'
    describe "$tmp/parts.raw" "$disk"
    "$PLOOP_IMG" snapshot create -q --guid="${guids[0]}" "$disk"
    serve --filter=partition file="$disk" partition=2
    [ "$(nbdinfo --size "$uri")" = $((16 << 20)) ] || fail "partition: another size"
    nbdcopy "$uri" "$tmp/out"
    cmp -i "0:$at" -n $((16 << 20)) "$tmp/out" "$tmp/parts.raw" ||
      fail "partition: not its content"
    nbdinfo --map "$uri" | grep -q hole || fail "partition: no hole in its map"
    io 'write -P 0x77 1M 64k' 'write -P 0x78 16380k 4k' 'write -z 2M 64k'
    nbdcopy "$(uri_of "${guids[0]}")" "$tmp/out"
    cmp -i "0:$at" -n $((16 << 20)) "$tmp/out" "$tmp/parts.raw" ||
      fail "partition: not the snapshot's content"
    stop_nbdkit
    qemu-io -f raw -c "write -P 0x77 $((at + (1 << 20))) 64k" \
      -c "write -P 0x78 $((at + (16380 << 10))) 4k" \
      -c "write -z $((at + (2 << 20))) 64k" "$tmp/parts.raw" > /dev/null
    "$PLOOP_IMG" compare -q "$disk" "$tmp/parts.raw" ||
      fail "partition: something else was written to"
    serve -r --filter=partition file="$disk" partition=3
    if nbdinfo "$uri" > /dev/null 2>&1; then fail "partition 3 is served"; fi
    stop_nbdkit
  done
}

# A file of a file system, without mounting it.
try_ext2 ()
{
  as_container "$tmp/parts.raw"
  describe "$tmp/parts.raw" "$disk"
  serve -r --filter=ext2 --filter=partition file="$disk" partition=1 \
    ext2file=exportname
  [ "$(nbdcopy "nbd+unix:///etc/hostname?socket=$sock" -)" = ct101 ] || fail "ext2: the file"
  if nbdinfo "nbd+unix:///nothing?socket=$sock" > /dev/null 2>&1; then
    fail "ext2: a file is served that is not there"
  fi
  stop_nbdkit
}

# What clients are told; with one of its modes, flushes that are not needed do not
# reach the plugin.
try_multi-conn ()
{
  local mode
  for mode in auto emulate; do
    right_under "multi-conn-mode=$mode" --filter=multi-conn multi-conn-mode=$mode
    serve -r --filter=multi-conn file="$disk" multi-conn-mode=$mode
    nbdinfo --can multi-conn "$uri" || fail "multi-conn-mode=$mode: not announced"
    stop_nbdkit
  done
  right_under "multi-conn-mode=disable" --filter=multi-conn multi-conn-mode=disable
  serve --filter=multi-conn --filter=log file="$disk" multi-conn-mode=disable \
    logfile="$tmp/log"
  if nbdinfo --can multi-conn "$uri"; then fail "multi-conn-mode=disable: announced"; fi
  stop_nbdkit
  serve --filter=multi-conn --filter=log file="$disk" \
    multi-conn-track-dirty=fast logfile="$tmp/log"
  io 'write 0 4k' flush flush flush flush
  stop_nbdkit
  [ "$(grep -c ' Flush ' "$tmp/log")" -eq 1 ] ||
    { cat "$tmp/log"; fail "multi-conn-track-dirty=fast: not one flush"; }
}

# 16 MiB are 134 megabits; of these 2 seconds' worth may pass at once.
try_rate ()
{
  right_under rate --filter=rate rate=10G
  serve --filter=rate file="$disk" rate=56M
  milliseconds io 'read 0 16M'
  [ "$took" -ge 200 ] || fail "rate: 134 megabits at 56 a second in $took ms"
  stop_nbdkit
}

try_delay ()
{
  right_under delay --filter=delay rdelay=1ms wdelay=1ms
  serve --filter=delay file="$disk" rdelay=200ms wdelay=300ms
  milliseconds io 'read 0 4k' 'write 0 4k'
  [ "$took" -ge 500 ] || fail "delay: took $took ms"
  stop_nbdkit
}

# Errors are the client's, and what was answered without one is there.
try_error ()
{
  local i nr_errors=0 lower
  right_under "error, which does not come" --filter=error error-rate=100% \
    error-file="$tmp/nothing"
  say "errors at random"
  fresh
  lower=$(lower_state)
  cp "$tmp/content" "$tmp/raw"
  serve --filter=error file="$disk" error=ENOSPC error-pwrite-rate=50%
  for i in {1..24}; do
    if qemu-io -t writeback -f raw -c "write -P $i ${i}00k 70k" "$uri" \
       > "$tmp/io.log" 2>&1; then
      qemu-io -f raw -c "write -P $i ${i}00k 70k" "$tmp/raw" > /dev/null
    else
      grep -q 'No space left' "$tmp/io.log" || { cat "$tmp/io.log"; fail "error: which?"; }
      nr_errors=$((nr_errors + 1))
    fi
  done
  [ $nr_errors -gt 0 ] && [ $nr_errors -lt 24 ] || fail "error: $nr_errors of 24"
  expect_content error
  stop_nbdkit
  expect_sound error

  serve -r --filter=error file="$disk" error-pread-rate=100% error-extents-rate=100%
  if nbdcopy "$uri" null: 2> /dev/null; then fail "error: reading did not fail"; fi
  stop_nbdkit
}

# The server ends with its last client, in order: the image is closed.
try_exitlast ()
{
  local lower status=0
  fresh
  lower=$(lower_state)
  cp "$tmp/content" "$tmp/raw"
  serve --filter=exitlast file="$disk"
  io_both 'write -P 1 0 200k'
  wait_until _has_ended "$nbdkit_pid" || fail "exitlast: the server does not end"
  wait "$nbdkit_pid" || status=$?
  nbdkit_pid=
  check_log
  [ $status -eq 0 ] || fail "exitlast: exit status $status"
  expect_sound exitlast
}

# ---- The manual

# The filters that it speaks of.
documented ()
{
  sed -n '/^=head1 FILTERS/,/^=head1 [^F]/ s/^=item B<--filter=\(.*\)>$/\1/p' "$manual"
}

# printed FILTER: the commands about it.
printed ()
{
  awk -v item="=item B<--filter=$1>" '
    /^=(item|back|head)/ { on = $0 == item } on && /^ / { print substr ($0, 2) }' "$manual"
}

# What the commands find: an image, a disk with a descriptor and a partition, a copy.
prepare_printed ()
{
  rm -rf "$tmp/printed"
  mkdir "$tmp/printed"
  as_container "$tmp/printed/disk.raw"
  "$PLOOP_IMG" create -q --from="$tmp/printed/disk.raw" "$tmp/printed/disk.hds"
  describe "$tmp/printed/disk.raw" "$tmp/printed/root.hdd"
}

# run_printed FILTER: in a shell where nbdkit finds the plugin that was built, and
# leaves the number of a server in the background.
run_printed ()
{
  local commands server
  commands=$(printed "$1")
  [ -n "$commands" ] || fail "the manual has no command about --filter=$1"
  (
    cd "$tmp/printed"
    NBDKIT=${NBDKIT:-$(type -P nbdkit)}
    nbdkit ()
    {
      local args=() arg
      for arg; do
        if [ "$arg" = ploop ]; then arg=$PLUGIN; fi
        args+=("$arg")
      done
      run_nbdkit -P "$tmp/printed/pid" "${args[@]}"
    }
    eval "$commands"
  ) > "$tmp/printed.log" 2>&1 ||
    { cat "$tmp/printed.log"; fail "the manual's commands fail: $commands"; }
  if [ -s "$tmp/printed/pid" ]; then
    server=$(< "$tmp/printed/pid")
    kill "$server" 2> /dev/null || true
    wait_until _has_ended "$server" || fail "the server of the example does not end"
  fi
  "$PLOOP_IMG" check "$tmp/printed/disk.hds" > /dev/null &&
    "$PLOOP_IMG" check "$tmp/printed/root.hdd" > /dev/null ||
    fail "an image is not sound after: $commands"
}

tried=(cow readahead stats log retry partition ext2 multi-conn rate delay error exitlast)
diff <(documented | sort) <(printf '%s\n' "${tried[@]}" | sort) ||
  fail "the manual speaks of other filters than those that are tried"
prepare_printed
for filter in "${tried[@]}"; do
  say "$filter"
  "try_$filter"
  run_printed "$filter"
done
say "passed"
