#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that ploop-img convert copies a raw disk out of a pipe, whose size only its end
# tells: from standard input, fifos and <(...), to images of any shape, raw files, exports
# and standard output.  Zeros take no space, and qemu-img and ploop accept the images.
# What comes to nothing leaves nothing, and who keeps it waiting does not keep it from
# ending.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires qemu-img nbdcopy cmp
unpack_corpus

# convert STATUS ARG...: standard input is that of the caller; what it says is in
# $tmp/convert.log.
convert ()
{
  local want=$1 status=0
  shift
  "$PLOOP_IMG" convert "$@" > "$tmp/convert.log" 2>&1 || status=$?
  [ $status -eq "$want" ] ||
    { cat "$tmp/convert.log"; fail "convert $*: exit status $status, not $want"; }
}

says ()
{
  grep -Eq -- "$1" "$tmp/convert.log" ||
    { cat "$tmp/convert.log"; fail "it does not say '$1'"; }
}

# is IMAGE TEXT: does its information have that?
is ()
{
  "$PLOOP_IMG" info --output=json "$1" > "$tmp/info"
  grep -q -- "$2" "$tmp/info"
}

# Image A has what the raw file B has, and its sectors.
expect_image ()
{
  "$PLOOP_IMG" compare -q "$1" "$2" || fail "$1 and $2 differ"
  is "$1" "\"size\" : $((($(stat -c %s "$2") + 511) / 512 * 512))," ||
    { cat "$tmp/info"; fail "$1: its size"; }
  "$PLOOP_IMG" check "$1" > "$tmp/check.log" ||
    { cat "$tmp/check.log"; fail "$1: ploop-img check"; }
  qemu-img check -f parallels "$1" > "$tmp/check.log" 2>&1 ||
    { cat "$tmp/check.log"; fail "$1: qemu-img check"; }
}

nothing_left ()
{
  local left
  for left in copy copy.part; do
    [ ! -e "$tmp/$left" ] || fail "$left was left"
  done
}

# ---- Random disks, into every form

raw=$tmp/raw
for ((seed = _seed; seed < _seed + 6; seed++)); do
  RANDOM=$seed
  say "seed $seed"
  rm -f "$raw"
  for ((i = RANDOM % 20; i >= 0; i--)); do
    dd if=/dev/urandom of="$raw" bs=4k seek=$((RANDOM % 8000)) \
      count=$((RANDOM % 100 + 1)) conv=notrunc status=none
  done
  truncate -s +$((RANDOM * RANDOM % 3000000)) "$raw"
  version=$((RANDOM % 2 + 1)) cluster=$((32768 << RANDOM % 7))
  convert 0 --force --version=$version --cluster-size=$cluster - "$tmp/copy" < <(cat "$raw")
  says 'are data'
  expect_image "$tmp/copy" "$raw"
  is "$tmp/copy" "\"version\" : $version," || fail "another version"
  convert 0 --force -O raw - "$tmp/copy" < "$raw"
  cmp "$tmp/copy" "$raw" || fail "to a raw file"
  convert 0 --force --size=64M <(cat "$raw") "$tmp/copy"
  "$PLOOP_IMG" compare -q "$tmp/copy" "$raw" || fail "with a size"
  is "$tmp/copy" '"size" : 67108864,' || fail "another size"
done
# shellcheck disable=SC2002  # a pipe is the point
cat "$raw" | "$PLOOP_IMG" convert -O raw - - | cmp - "$raw" || fail "from pipe to pipe"

say "a fifo"
mkfifo "$tmp/fifo"
"$PLOOP_IMG" convert -q --force "$tmp/fifo" "$tmp/copy" &
pid=$!
# Somebody who comes late, and writes by and by.
(for ((i = 0; i < 15; i++)); do nap; done
 for i in 1 2 3; do head -c 500K /dev/zero | tr '\0' $i; nap; done) > "$tmp/fifo"
wait $pid || fail "from a fifo"
for i in 1 2 3; do head -c 500K /dev/zero | tr '\0' $i; done > "$tmp/want"
expect_image "$tmp/copy" "$tmp/want"

say "ends anywhere"
for size in 1 511 512 513 4096 1048575 1048576 1048577 2097152; do
  head -c $size /dev/urandom > "$tmp/want"
  convert 0 --force - "$tmp/copy" < <(cat "$tmp/want")
  expect_image "$tmp/copy" "$tmp/want"
done

# ---- A table that grows, and zeros

say "a large disk"
large=400M
truncate -s $large "$tmp/large"
for at in 0 1 2 300 399; do
  dd if=/dev/urandom of="$tmp/large" bs=1M seek=$at count=1 conv=notrunc status=none
done
for version in 1 2; do
  due || continue
  convert 0 --force --version=$version --cluster-size=32K - "$tmp/copy" < <(cat "$tmp/large")
  expect_image "$tmp/copy" "$tmp/large"
  [ "$(du -k "$tmp/copy" | cut -f 1)" -lt 6000 ] ||
    fail "takes $(du -k "$tmp/copy") KiB"
  has_ploop && ploop_check_delta "$tmp/copy"
done
convert 0 --force -O raw - "$tmp/copy" < <(cat "$tmp/large")
[ "$(du -k "$tmp/copy" | cut -f 1)" -lt 6000 ] || fail "takes $(du -k "$tmp/copy") KiB"
cmp "$tmp/copy" "$tmp/large"
convert 0 --force - "$tmp/copy" < <(head -c 40M /dev/zero)
is "$tmp/copy" '"allocated-clusters" : 0,' ||
  fail "zeros were allocated"
rm "$tmp/large"

# ---- Exports

if nbdkit memory --version > /dev/null 2>&1; then
  say "exports"
  start_remote memory 40M
  head -c 40M /dev/urandom > "$tmp/old"
  nbdcopy "$tmp/old" "$remote_uri"
  convert 0 - "$remote_uri" < <(cat "$raw")
  "$PLOOP_IMG" compare -q "$raw" "$remote_uri" || fail "to an export"
  convert 1 - "$remote_uri" < <(cat "$tmp/old"; echo more)
  says 'No space left'
  convert 1 --size=41M - "$remote_uri" < <(cat "$raw")
  says '42991616 are needed'
  stop_remote KILL
fi

# ---- What is refused

say "refused"
rm -f "$tmp/copy"
convert 1 - "$tmp/copy" < /dev/null
says 'standard input: is empty'
convert 1 - "$tmp/copy" < "$tmp"/corpus/b-data-v1-b128/root.hds
says 'is a ploop image'
convert 1 --size=1M - "$tmp/copy" < <(cat "$raw")
says 'larger than the size that was given, 1048576 bytes'
convert 1 --snapshot='{00000001-1111-2222-3333-444444444444}' - "$tmp/copy" < "$raw"
says 'has none'
convert 1 --size=1M "$raw" "$tmp/copy"
says 'cannot have less'
convert 1 --size=0 - "$tmp/copy" < "$raw"
convert 1 --size=many - "$tmp/copy" < "$raw"
convert 1 --cluster-size=33K - "$tmp/copy" < "$raw"
convert 1 - "$tmp/no/directory" < "$raw"
convert 1 - - < "$raw"
nothing_left
status=0
"$PLOOP_IMG" create --from=- --preallocation=full "$tmp/copy" < "$raw" \
  > "$tmp/convert.log" 2>&1 || status=$?
[ $status -eq 1 ] || fail "preallocated for a size that is not known"
says 'give a size'
status=0
"$PLOOP_IMG" convert - "$tmp/copy" <&- > "$tmp/convert.log" 2>&1 || status=$?
[ $status -eq 1 ] || fail "from a closed standard input"
nothing_left
if command -v prlimit > /dev/null; then
  (trap '' XFSZ; prlimit --fsize=2000000 "$PLOOP_IMG" convert - "$tmp/copy" \
     < <(head -c 9M /dev/urandom 2> "$tmp/head.log")) > "$tmp/convert.log" 2>&1 &&
    fail "it grew beyond the limit"
  says 'cannot be written at byte|File too large'
  nothing_left
fi
# What is there stays.
convert 0 - "$tmp/copy" < "$raw"
before=$(file_state "$tmp/copy")
convert 1 - "$tmp/copy" < "$raw"
says 'exists already'
convert 1 --force - "$tmp/copy" < /dev/null
[ "$(file_state "$tmp/copy")" = "$before" ] || fail "changed by what was refused"

# ---- Signals, while nothing comes

say "signals"
for signal in HUP TERM; do
  for source in - "$tmp/fifo"; do
    rm -f "$tmp/copy"
    "$PLOOP_IMG" convert "$source" "$tmp/copy" <&$_never > "$tmp/convert.log" 2>&1 &
    pid=$!
    wait_until test -e "$tmp/copy.part"
    kill -$signal $pid
    status=0
    wait $pid || status=$?
    [ $status -eq 2 ] || { cat "$tmp/convert.log"; fail "$signal: exit status $status"; }
    nothing_left
  done
done
# Killed, and tried again.
(head -c 3M /dev/urandom; exec sleep 60) | "$PLOOP_IMG" convert -q - "$tmp/copy" &
wait_until test -e "$tmp/copy.part"
pid=$!
kill -KILL $pid
wait $pid 2> "$tmp/wait.log" || :
[ ! -e "$tmp/copy" ] || fail "there is a copy"
convert 0 - "$tmp/copy" < "$raw"
expect_image "$tmp/copy" "$raw"
[ ! -e "$tmp/copy.part" ] || fail "copy.part was left"
say "passed"
