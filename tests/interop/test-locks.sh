#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that nobody can use an image in a way that would hurt while somebody
# else does: qemu, ploop (its flock beside the descriptor), something that locks
# as libploop 9 does, and a second server are kept out while we serve, and we
# while they are at work, with an error that says what to do.  Readers share.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires qemu-img qemu-io qemu-nbd flock timeout
[ -x "${FCNTL_HOLD:-}" ] || fail "FCNTL_HOLD is not set: use make check"

image=$tmp/image.hds
"$PLOOP_IMG" create -q --cluster-size=64K "$image" 8M

# ---- Others that try

# A refusal is one only when the lock is named as its cause.
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

# A second server, while the first one runs.  Its socket is never used.
second_refused ()
{
  local status=0
  timeout "$hang_seconds" \
    env ${NBDKIT_PRELOAD:+LD_PRELOAD="$NBDKIT_PRELOAD"} \
    ${NBDKIT:-nbdkit} -f -U "$tmp/sock2" "$PLUGIN" "$@" \
    > "$tmp/second.log" 2>&1 < /dev/null || status=$?
  [ $status -eq 1 ] ||
    { cat "$tmp/second.log"; fail "second server: exit status $status"; }
  says_in_use "$tmp/second.log"
}

first_pid=

kill_first ()
{
  [ -z "$first_pid" ] || kill -KILL "$first_pid"
}
cleanup_fn kill_first

# The first server's variables are put aside meanwhile.
# shellcheck disable=SC2034
second_allowed ()
{
  first_pid=$nbdkit_pid
  nbdkit_pid=
  sock=$tmp/sock2
  pid_file=$tmp/pid2
  start_nbdkit "$@" || fail "second server was kept out: $(cat "$nbdkit_log")"
  stop_nbdkit
  sock=$tmp/sock
  pid_file=$tmp/nbdkit.pid
  nbdkit_pid=$first_pid
  first_pid=
}

# The error names the file and tells what can be done.
says_in_use ()
{
  grep -q "error: .*$(basename "$image")" "$1" ||
    { cat "$1"; fail "the error does not name the file"; }
  grep -Eqi 'in use|lock' "$1" ||
    { cat "$1"; fail "the error does not say that it is in use"; }
  grep -Eqi 'stop|close|wait|read-only' "$1" ||
    { cat "$1"; fail "the error does not say what to do"; }
}

we_are_refused ()
{
  if start_nbdkit "$@" file="$image"; then
    stop_nbdkit
    fail "we could use the image: $*"
  fi
  [ "$nbdkit_status" -eq 1 ] || fail "exit status $nbdkit_status"
  says_in_use "$nbdkit_log"
}

libploop9_refused ()
{
  local mode
  for mode in read write; do
    if "$FCNTL_HOLD" try $mode "$image" > "$tmp/hold.log"; then
      fail "a holder like libploop 9 ($mode) was let in"
    fi
    grep -q refused "$tmp/hold.log" || fail "fcntl-hold did not work"
  done
}

# ---- Others that hold

holder_pid=

# hold CMD...: start something that holds the image.
hold ()
{
  "$@" > "$tmp/holder.log" 2>&1 &
  holder_pid=$!
  cleanup_fn eval 'kill $holder_pid 2> /dev/null'
}

release ()
{
  kill "$holder_pid"
  wait "$holder_pid" || true
  holder_pid=
}

hold_with_qemu_nbd ()
{
  hold qemu-nbd -f parallels -t -k "$tmp/qsock" --pid-file "$tmp/qpid" "$@" \
    "$image"
  wait_until test -s "$tmp/qpid" || fail "qemu-nbd does not come up"
}

after_qemu_nbd ()
{
  release
  rm -f "$tmp/qpid"
}

# ---- While we serve

say "we write: nobody else"
start_nbdkit file="$image"
qemu_refused -c 'write 0 512' "$image"
qemu_refused -r -c 'read 0 512' "$image"
if qemu-img check -f parallels "$image" > /dev/null 2>&1; then
  fail "qemu-img check was let in"
fi
if qemu-img create -q -f parallels "$image" 1M > /dev/null 2>&1; then
  fail "qemu-img create was let in"
fi
second_refused file="$image"
second_refused -r file="$image"
libploop9_refused
if "$PLOOP_IMG" create -q --force "$image" 8M 2> "$tmp/force.log"; then
  fail "ploop-img create --force took the image from the server"
fi
ln -s "$image" "$tmp/link.hds"
ln "$image" "$tmp/hard.hds"
second_refused file="$tmp/link.hds"
if start=$(ls "$tmp"/DiskDescriptor* 2> /dev/null); then
  fail "a lock file where no descriptor is: $start"
fi
# Still the same after something was written.
qemu-io -f raw -c 'write 0 64k' "$uri" > /dev/null
qemu_refused -c 'write 0 512' "$image"
qemu_refused -r -c 'read 0 512' "$tmp/hard.hds"
stop_nbdkit
rm "$tmp/link.hds" "$tmp/hard.hds"

say "we are killed: the lock is gone"
start_nbdkit file="$image"
kill -KILL "$nbdkit_pid"
wait "$nbdkit_pid" 2> /dev/null || true
nbdkit_pid=
qemu_allowed -c 'write 0 512' "$image"

say "we read: readers may, writers not"
start_nbdkit -r file="$image"
qemu_allowed -r -c 'read 0 512' "$image"
qemu_refused -c 'write 0 512' "$image"
second_allowed -r file="$image"
second_refused file="$image"
libploop9_refused
"$PLOOP_IMG" check "$image" > /dev/null || fail "ploop-img check was kept out"
stop_nbdkit

say "nobody: all may"
qemu_allowed -c 'write 0 512' "$image"
"$FCNTL_HOLD" try write "$image" > /dev/null ||
  fail "a lock is left behind"

# ---- While others are at work

say "qemu writes: we may not even read"
hold_with_qemu_nbd
we_are_refused
we_are_refused -r
after_qemu_nbd

say "qemu reads: we may read"
hold_with_qemu_nbd -r
we_are_refused
start_nbdkit -r file="$image" || fail "kept out by a reader"
stop_nbdkit
after_qemu_nbd

say "libploop 9 holds it"
for mode in read write; do
  hold "$FCNTL_HOLD" hold $mode "$image"
  wait_until grep -q locked "$tmp/holder.log" || fail "fcntl-hold hangs"
  we_are_refused
  we_are_refused -r
  release
done
start_nbdkit file="$image"
stop_nbdkit

# ---- ploop 1.15

say "the descriptor's lock"
dir=$tmp/disk
mkdir "$dir"
image=$dir/root.hds
"$PLOOP_IMG" create -q "$image" 16M
unpack_corpus
cp "$tmp/corpus/a-init-v2-b2048/DiskDescriptor.xml" "$dir/"
lock=$dir/DiskDescriptor.xml.lck

# A reader leaves nothing behind where ploop has never been.
start_nbdkit -r file="$image"
[ ! -e "$lock" ] || fail "a reader made $lock"
stop_nbdkit

start_nbdkit file="$image"
if flock -n "$lock" true; then
  fail "$lock is not locked while we write"
fi
stop_nbdkit
flock -n "$lock" true || fail "$lock is still locked"

# Through a link elsewhere it is the same disk.
ln -s "$image" "$tmp/elsewhere.hds"
start_nbdkit file="$tmp/elsewhere.hds"
if flock -n "$lock" true; then
  fail "$lock is not locked when the image is served through a link"
fi
stop_nbdkit

# A reader keeps ploop, which would write, out.
start_nbdkit -r file="$image"
if flock -n "$lock" true; then
  fail "$lock is not locked while we read"
fi
second_allowed -r file="$image"
stop_nbdkit

hold flock --no-fork "$lock" sleep infinity
wait_until sh -c "! flock -n '$lock' true" || fail "flock does not lock"
we_are_refused
grep -q 'ploop' "$nbdkit_log" || fail "the error does not say who"
we_are_refused -r
release
start_nbdkit file="$image"
stop_nbdkit

# The real tool waits for its lock for ever, and minds no SIGTERM meanwhile.
if has_ploop; then
  say "the real ploop"
  start_nbdkit file="$image"
  qemu-io -f raw -c 'write -P 7 0 64k' "$uri" > /dev/null
  status=0
  PLOOP_LIMIT='timeout -s KILL 3' run_ploop "$dir" check DiskDescriptor.xml \
    > "$tmp/ploop.log" 2>&1 || status=$?
  [ $status -eq 137 ] ||
    { cat "$tmp/ploop.log"; fail "ploop check was let in: status $status"; }
  [ "$(in_use "$image")" = 746f6e59 ] || fail "ploop took the mark away"
  stop_nbdkit
  run_ploop "$dir" info -s -d DiskDescriptor.xml > "$tmp/ploop.log" 2>&1 ||
    { cat "$tmp/ploop.log"; fail "ploop is kept out for good"; }
fi
say "passed"
