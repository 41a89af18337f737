#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that a server that is told to end, does, in whatever way it is told: by each
# signal that nbdkit takes, with many writes in flight, by a second signal while it is
# ending, with clients that never say a word or stop in the middle of one (nbdkit 1.32
# waits until these have gone), with a write that waits for space, when its parent dies,
# and when the command of --run ends or is killed.  Afterwards the image is closed, has
# no error, and nothing in it but what was written.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires perl prlimit qemu-img qemu-io

image=$tmp/image.hds
nr_aborted=0

new_image ()
{
  rm -f "$image"
  "$PLOOP_IMG" create -q --cluster-size=64K "$image" 64M
}

# check_content BYTE...: the image has these bytes, in octal, and zeros.
check_content ()
{
  local others
  others=$("$PLOOP_IMG" convert -q -O raw "$image" - |
    tr -d "\\0$(printf '\\%s' "$@")" | wc -c)
  [ "$others" -eq 0 ] || fail "$others bytes that nobody wrote"
}

# check_closed: what trimming and preallocating leaves is no error (status 3).
check_closed ()
{
  local status=0
  [ "$(in_use "$image")" = 00000000 ] || fail "still marked in use"
  "$PLOOP_IMG" check "$image" > "$tmp/check.log" || status=$?
  [ $status -eq 0 ] || [ $status -eq 3 ] ||
    { cat "$tmp/check.log"; fail "ploop-img check: status $status"; }
}

# nbdkit 1.32 has an assertion of its own that fails when a connection ends with
# requests in flight.
was_aborted_by_nbdkit ()
{
  [ "$1" -eq 134 ] &&
    grep -Eq '(connections|protocol|backend)\.c:.*Assertion' "$nbdkit_log"
}

# signal_nbdkit SIGNAL...: one after the other, at once.
signal_nbdkit ()
{
  local signal
  for signal; do
    kill "-$signal" "$nbdkit_pid" 2> /dev/null || true
  done
}

# expect_end WHAT: of the server, that was told to.
expect_end ()
{
  local status=0 pid=$nbdkit_pid
  wait_until _has_ended "$pid" || fail "the server does not end"
  wait "$pid" || status=$?
  nbdkit_pid=
  check_log
  if was_aborted_by_nbdkit $status; then
    nr_aborted=$((nr_aborted + 1))
    "$PLOOP_IMG" check --repair=leaks -q "$image" || [ $? -eq 3 ] ||
      fail "$*: errors after nbdkit aborted"
    return
  fi
  [ $status -eq 0 ] || fail "$*: exit status $status"
  check_closed
}

# end_nbdkit SIGNAL...
end_nbdkit ()
{
  signal_nbdkit "$@"
  expect_end "$*"
}

# ---- Writers

writers=()

end_writers ()
{
  local pid
  for pid in "${writers[@]}"; do
    kill -KILL "$pid" 2> /dev/null || true
    wait "$pid" 2> /dev/null || true
  done
  writers=()
}
cleanup_fn end_writers

# Byte 7 all over the disk, with a pause for nobody.
start_writers ()
{
  local i
  for i in 1 2 3; do
    qemu-img bench -w --pattern=7 -c 100000000 -d 16 -s $((i * 16384)) \
      -S $((i * 81920)) -f raw "$uri" > "$tmp/bench.log" 2>&1 &
    writers+=($!)
  done
  wait_until file_has_grown || fail "nothing is written"
}

file_has_grown ()
{
  [ "$(stat -c %s "$image")" -gt $((4 << 20)) ]
}

say "signals under load"
for signals in TERM INT QUIT HUP 'TERM TERM INT'; do
  due || continue
  new_image
  start_nbdkit file="$image"
  start_writers
  # shellcheck disable=SC2086  # several words
  end_nbdkit $signals
  end_writers
  check_content 007
done

# ---- Clients that say nothing

silent=

end_silent ()
{
  [ -n "$silent" ] || return 0
  kill -KILL "$silent" 2> /dev/null || true
  wait "$silent" 2> /dev/null || true
  silent=
}
cleanup_fn end_silent

# connect_silently [STEP...]: a client that sends these and waits for ever: `flags`
# and `go` are what a handshake begins and ends with, `write` is a request for 64 KiB
# with half of its data.
connect_silently ()
{
  perl -MIO::Socket::UNIX -e '
    my ($path, @steps) = @ARGV;
    my %bytes = (
      flags => pack ("N", 3),
      go => "IHAVEOPT" . pack ("N3n", 7, 6, 0, 0),
      write => pack ("NnnQ>2N", 0x25609513, 0, 1, 1, 65536, 65536) . "x" x 32768,
    );
    my $s = IO::Socket::UNIX->new (Peer => $path) or die "$path: $!";
    for my $step (@steps) {
      syswrite ($s, $bytes{$step}) == length ($bytes{$step}) or die;
      # What comes back does not matter, but that it comes.
      sysread ($s, my $some, 18) or die if $step ne "write";
    }
    $| = 1;
    print "ready\n";
    sleep 1000;' "$sock" "$@" > "$tmp/silent" &
  silent=$!
  wait_until grep -q ready "$tmp/silent" || fail "the client is not ready"
}

say "silent clients"
for steps in '' flags 'flags go' 'flags go write'; do
  due || continue
  new_image
  start_nbdkit file="$image"
  io 'write -P 5 0 1M'
  # shellcheck disable=SC2086  # several words
  connect_silently $steps
  signal_nbdkit TERM
  end_silent
  expect_end "silent after '$steps'"
  check_content 005
done

# ---- A write that waits for space

waits_for_space ()
{
  [ "$(grep -c 'pwrite count=' "$nbdkit_log")" -ge 1 ] && file_has_grown &&
    [ "$(stat -c %s "$image")" -gt $(((8 << 20) - (192 << 10))) ]
}

say "a write that waits for space"
for signals in TERM INT 'TERM INT'; do
  due || continue
  new_image
  NBDKIT="prlimit --fsize=$((8 << 20)) ${NBDKIT:-nbdkit}" \
    start_nbdkit -v enospc=wait prealloc=64K file="$image"
  qemu-io -f raw -c 'write -P 5 0 32M' "$uri" > "$tmp/writer.log" 2>&1 &
  writers=($!)
  wait_until waits_for_space || fail "the file does not reach its limit"
  ! _has_ended "${writers[0]}" || fail "the write was answered"
  # shellcheck disable=SC2086  # several words
  end_nbdkit $signals
  end_writers
  check_content 005
done

# ---- A parent that dies

# has_gone PID: of a process that may be nobody's child any more.
has_gone ()
{
  ! grep -qs "^State:[[:space:]]*[^Z[:space:]]" "/proc/$1/status"
}

say "--exit-with-parent"
new_image
rm -f "$pid_file" "$sock"
# shellcheck disable=SC2016  # for the shell that is the parent
"$BASH" -c '"$@" & wait' parent ${NBDKIT:-nbdkit} -f --exit-with-parent -U "$sock" \
  -P "$pid_file" "$PLUGIN" file="$image" > "$nbdkit_log" 2>&1 &
parent=$!
wait_until test -s "$pid_file" || fail "the server does not come up"
child=$(< "$pid_file")
start_writers
kill -KILL $parent
wait $parent 2> /dev/null || true
wait_until has_gone "$child" || fail "the server outlives its parent"
end_writers
if ! grep -q Assertion "$nbdkit_log"; then check_closed; fi
check_content 007

# ---- --run

# runs STATUS COMMAND: of a server that lives as long as COMMAND.
runs ()
{
  local status=0
  new_image
  run_nbdkit -U - "$PLUGIN" file="$image" --run "$2" > "$nbdkit_log" 2>&1 ||
    status=$?
  check_log
  [ $status -eq "$1" ] || fail "--run '$2': exit status $status, must be $1"
  check_closed
  check_content 005
  "$PLOOP_IMG" convert -q --force -O raw "$image" "$tmp/raw"
  [ "$(tr -dc '\005' < "$tmp/raw" | wc -c)" -eq $((1 << 20)) ] ||
    fail "--run '$2': what was written is not there"
}

say "--run"
# shellcheck disable=SC2016  # nbdkit's variable
write='qemu-io -t writeback -f raw -c "write -P 5 0 1M" "$uri"'
runs 0 "$write"
runs 7 "$write; exit 7"
# shellcheck disable=SC2016  # of the shell that nbdkit runs
runs $((128 + 9)) "$write; kill -KILL \$\$"
# shellcheck disable=SC2016
runs $((128 + 15)) "$write; kill -TERM \$\$"

say "nbdkit aborted $nr_aborted times by an assertion of its own"
say "passed"
