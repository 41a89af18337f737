#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that a server ends when it is told to, whatever its clients do, and leaves
# closed images: clients that are connected and silent, by each kind of socket; requests
# under way, which are answered, also from a base on another server; and nothing but
# its own clients is hung up.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
requires qemu-io prlimit

image=$tmp/disk.hds
"$PLOOP_IMG" create -q "$image" 64M

clients=()
end_clients ()
{
  [ ${#clients[@]} -eq 0 ] || kill "${clients[@]}" 2> /dev/null
}
cleanup_fn end_clients

# connect URI: a client that writes something, says so, and stays without a word.
connect ()
{
  local log=$tmp/client-${#clients[@]} client
  mkfifo "$log.in"
  stdbuf -oL qemu-io -f raw "$1" < "$log.in" > "$log" 2>&1 &
  clients+=($!)
  exec {client}> "$log.in"
  echo 'write 1M 64k' >&"$client"
  wait_until grep -q 'wrote' "$log" || { cat "$log"; fail "no client at $1"; }
}

# end SIGNAL WHAT: the server that has these clients.
end ()
{
  local status=0
  [ "$(in_use "$image")" != 00000000 ] || fail "written to, and not marked"
  kill "-$1" "$nbdkit_pid"
  wait_until _has_ended "$nbdkit_pid" || fail "does not end: $2"
  wait "$nbdkit_pid" || status=$?
  nbdkit_pid=
  check_log
  [ $status -eq 0 ] || fail "exit status $status: $2"
  [ "$(in_use "$image")" = 00000000 ] || fail "the image was not closed: $2"
}

# ---- Silent clients

start_nbdkit "$image"
connect "$uri"
connect "$uri"
end TERM "silent clients on a Unix socket"

start_nbdkit "$image"
connect "$uri"
end INT "a silent client, SIGINT"

# Also with as many files open as it may have.
if nbdkit_is_plain; then
  start_nbdkit "$image"
  connect "$uri"
  prlimit --pid "$(cat "$pid_file")" --nofile=3
  end TERM "a silent client, and no file descriptor is left"
fi

# On TCP there is no option of start_nbdkit: it has a Unix socket.
port=
for try in {1..20}; do
  port=$((20000 + RANDOM))
  rm -f "$pid_file"
  (_launch_nbdkit -f -i 127.0.0.1 -p "$port" -P "$pid_file" "$PLUGIN" "$image") \
    < /dev/null >> "$nbdkit_log" 2>&1 &
  nbdkit_pid=$!
  is_up_or_has_ended () { [ -s "$pid_file" ] || _has_ended "$nbdkit_pid"; }
  wait_until is_up_or_has_ended || fail "does not come up on TCP"
  [ ! -s "$pid_file" ] || break
  wait "$nbdkit_pid" || :
  nbdkit_pid=
done
[ -n "$nbdkit_pid" ] || fail "no free port in $try tries"
connect "nbd://127.0.0.1:$port"
end TERM "a silent client on TCP"

# ---- A request under way is answered, and no other connection is hung up

# flush_at_the_end: one that takes two seconds.
flush_at_the_end ()
{
  local pid flusher
  NBDKIT="strace -f -yy -o $tmp/trace -e trace=shutdown,fdatasync
          -e inject=fdatasync:delay_enter=2000000 nbdkit" \
    start_nbdkit -v "$image" base="$remote_uri"
  connect "$uri"
  stdbuf -oL qemu-io -f raw -c 'write 2M 64k' -c flush "$uri" > "$tmp/answer" 2>&1 &
  flusher=$!
  clients+=("$flusher")
  wait_until grep -q 'debug: ploop: flush' "$nbdkit_log" ||
    fail "the request does not arrive"
  pid=$nbdkit_pid
  kill "$(cat "$pid_file")"
  wait_until _has_ended "$pid" || fail "does not end with a request under way"
  wait "$pid" || fail "exit status $? with a request under way"
  nbdkit_pid=
  wait "$flusher" || { cat "$tmp/answer"; fail "the request was not answered"; }
  ! grep 'failed' "$tmp/answer" || fail "the request was not answered"
}

if command -v strace > /dev/null && nbdkit_is_plain; then
  truncate -s 64M "$tmp/base"
  start_remote file "$tmp/base"
  "$PLOOP_IMG" create -q --force "$image" 64M
  flush_at_the_end
  grep 'shutdown(.*SHUT_RD' "$tmp/trace" > "$tmp/shutdowns" || fail "nobody was hung up"
  ! grep -v "$sock\"" "$tmp/shutdowns" || fail "others than clients were hung up"
  stop_remote
fi

# ---- A server that listens on no socket: one client, who goes at once

"$PLOOP_IMG" create -q --force "$image" 64M
status=0
run_nbdkit -s "$PLUGIN" "$image" < /dev/null > "$tmp/greeting" 2>> "$nbdkit_log" ||
  status=$?
[ $status -le 1 ] || fail "nbdkit -s: exit status $status"
[ "$(head -c 8 "$tmp/greeting")" = NBDMAGIC ] || fail "nbdkit -s: no greeting"
check_log
say "passed"
