#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that the service manager is told the truth, by sd_notify: that the server is
# ready when clients can connect, also by a socket that it was given; what it serves;
# that it ends, and how long that may take, before the images are closed; and nothing
# that a file's name makes up.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
requires perl qemu-io nbdinfo
run_nbdkit "$PLUGIN" --dump-plugin | grep -qx 'ploop_sd_notify=yes' ||
  skip "the plugin was built without libsystemd"

messages=$tmp/messages
touch "$messages"
perl "$abs_srcdir/notify.pl" "$tmp/notify" "$messages" &
manager=$!
end_manager ()
{
  kill "$manager"
}
cleanup_fn end_manager
wait_until test -S "$tmp/notify"
export NOTIFY_SOCKET=$tmp/notify

is_told ()
{
  grep -qx "$1" "$messages"
}

# expect_message WHAT LINE...: one of the messages must be exactly LINEs.
expect_message ()
{
  local what=$1
  shift
  wait_until is_told "$1" || fail "the service manager is not told $what"
  perl -0 -e '($want, $file) = @ARGV; open F, "<", $file; local $/ = "\n\n";
              exit !grep { $_ eq "$want\n\n" } <F>' \
    "$(printf '%s\n' "$@")" "$messages" ||
    { cat "$messages"; fail "not the message about $what"; }
}

ending ()
{
  expect_message "the end" 'STOPPING=1' 'EXTEND_TIMEOUT_USEC=600000000' \
    "STATUS=Closing $1"
  [ "$(grep -c '^READY=1$' "$messages")" -eq 1 ] || fail "ready more than once"
  [ "$(grep -c '^STOPPING=1$' "$messages")" -eq 1 ] || fail "ended more than once"
  [ "$(tail -n 2 "$messages" | head -n 1)" = "STATUS=Closing $1" ] ||
    fail "something else came after the end"
  : > "$messages"
}

# ---- A disk, for writing and for reading

image=$tmp/disk.hds
"$PLOOP_IMG" create -q "$image" 256M
start_nbdkit "$image"
expect_message "that it is ready" 'READY=1' \
  "STATUS=Serving $image for writing"
nbdinfo --size "$uri" > /dev/null || fail "said to be ready, but is not"
io 'write 0 1M'
! is_told 'STOPPING=1' || fail "said to end, but serves"
stop_nbdkit
ending "$image"

start_nbdkit -r "$image"
expect_message "that it is ready" 'READY=1' \
  "STATUS=Serving $image for reading"
stop_nbdkit
ending "$image"

# ---- Those of a directory, with a name that would be a second line

directory=$tmp/$'disks\nMAINPID=1'
mkdir "$directory"
start_nbdkit dir="$directory"
expect_message "that it is ready" 'READY=1' \
  "STATUS=Serving the disks below ${directory/$'\n'/?}"
stop_nbdkit
ending "${directory/$'\n'/?}"

# ---- What cannot be served is never ready

expect_refusal 'no such file' "$tmp/missing.hds"
[ ! -s "$messages" ] || fail "told something of a disk that cannot be served"

# ---- Images are closed after it has been told

if command -v strace > /dev/null && nbdkit_is_plain; then
  NBDKIT="strace -f -e trace=sendmsg,fdatasync,listen -o $tmp/trace nbdkit" \
    start_nbdkit "$image"
  io 'write 1M 1M'
  pid=$(cat "$pid_file")
  kill "$pid"
  wait "$nbdkit_pid" || fail "the server's exit status is $?"
  nbdkit_pid=
  order=$(sed -nE 's/.*listen\(.*/listen/p; s/.*sendmsg.*READY=1.*/ready/p
                   s/.*sendmsg.*STOPPING=1.*/stopping/p
                   s/.*fdatasync\(.*/sync/p' "$tmp/trace" | uniq | tr '\n' ' ')
  [[ $order =~ ^listen\ ready\ .*stopping\ sync\ $ ]] ||
    fail "not in the right order: $order"
  ending "$image"
fi

# ---- Without a service manager, or one that does not answer

NOTIFY_SOCKET=$tmp/nobody
start_nbdkit "$image"
stop_nbdkit
unset NOTIFY_SOCKET
start_nbdkit "$image"
stop_nbdkit
[ ! -s "$messages" ] || fail "told somebody else"
say "passed"
