#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves, by counting system calls, that a server without work does none, and
# that a read or an overwrite costs one call on the image and no more: no lock
# that sleeps, no sync, nothing that nbdkit with its file plugin does without.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires strace qemu-io stdbuf
nbdkit_is_plain || skip "the server would not be alone in its process"
[ -z "${PLOOP_PARAMETERS:-}" ] || skip "PLOOP_PARAMETERS is set"

image=$tmp/image.hds
raw=$tmp/image.raw

# ---- A client that stays

client_pid=
nr_asked=0

# start_client: qemu-io, which does what `ask` tells it.
start_client ()
{
  rm -f "$tmp/orders"
  mkfifo "$tmp/orders"
  exec 3<> "$tmp/orders"
  # Without -t it would send FUA with each write.
  stdbuf -oL qemu-io -t writeback -f raw "$uri" \
    < "$tmp/orders" > "$tmp/client.log" 2>&1 3>&- &
  client_pid=$!
}

kill_client ()
{
  [ -z "$client_pid" ] || kill -KILL "$client_pid"
}
cleanup_fn kill_client

# ask COMMAND...: one by one, for qemu-io looks at its input again only when
# something new comes.
ask ()
{
  local command
  for command in "$@"; do
    wait_until _is_prompting || fail "no answer"
    nr_asked=$((nr_asked + 1))
    printf '%s\n' "$command" >&3
  done
  wait_until _is_prompting || fail "no answer"
  if grep -i 'failed' "$tmp/client.log"; then
    fail "a request failed"
  fi
}

# There is a prompt before each command, and one after the last.
_is_prompting ()
{
  [ "$(grep -o 'qemu-io> ' "$tmp/client.log" | wc -l)" -gt $nr_asked ]
}

stop_client ()
{
  echo quit >&3
  wait_until _has_ended "$client_pid" || fail "the client does not end"
  wait "$client_pid" || fail "the client's exit status is $?"
  client_pid=
  nr_asked=0
  exec 3>&-
}

# ---- Counting

strace_pid=

stop_strace ()
{
  [ -n "$strace_pid" ] || return 0
  kill -INT "$strace_pid"
  wait "$strace_pid" || true
  strace_pid=
}
cleanup_fn stop_strace

# A file for each thread.
start_strace ()
{
  rm -f "$tmp"/trace.*
  : > "$tmp/strace.log"
  strace -ff -y -s 0 -o "$tmp/trace" -p "$(cat "$pid_file")" \
    2> "$tmp/strace.log" &
  strace_pid=$!
  wait_until _is_attached || fail "strace does not attach"
}

_is_attached ()
{
  if _has_ended "$strace_pid"; then
    cat "$tmp/strace.log"
    skip "strace cannot trace here"
  fi
  grep -q 'attached' "$tmp/strace.log" &&
    [ "$(find "$tmp" -name 'trace.*' | wc -l)" -ge "$(nr_threads)" ]
}

nr_threads ()
{
  find "/proc/$(cat "$pid_file")/task" -mindepth 1 -maxdepth 1 | wc -l
}

# What was begun and, but for the last line of each, has ended.
nr_lines ()
{
  cat "$tmp"/trace.* | wc -lc
}

# Calls that have ended, as lines of "COUNT NAME".
histogram ()
{
  grep -hE '\) += ' "$tmp"/trace.* | sed 's/(.*//' | sort | uniq -c |
    sed 's/^ *//'
}

# nr_calls NAME: of those on the image.
nr_calls ()
{
  grep -hE "^$1\([0-9]+<$image>" "$tmp"/trace.* | grep -cE '\) += ' || true
}

# Has something been called since `seen` was set?
_is_settled ()
{
  local before=$seen
  seen=$(nr_lines)
  [ "$seen" = "$before" ]
}

# Until the threads sleep again.
settle ()
{
  seen=
  wait_until _is_settled || fail "the server is never at rest"
}

# ---- Idle

# expect_idle WHAT: in ten seconds nothing is called.  A timer that is late on a
# slow machine may still be running, so there are three tries: what repeats
# itself is seen in each of them.
expect_idle ()
{
  local try before after
  start_strace
  for try in 1 2 3; do
    settle
    before=$(nr_lines)
    sleep 10
    after=$(nr_lines)
    [ "$before" != "$after" ] || break
  done
  stop_strace
  if [ "$before" != "$after" ]; then
    tail -n 5 "$tmp"/trace.*
    fail "$1: not idle in three times ten seconds"
  fi
  say "$1: idle at the $try. try"
}

# Something of everything: new clusters, trims that leave clusters to be
# scrubbed, overwrites, flushes.
work ()
{
  ask 'write -P 1 0 4M' flush 'discard 0 1M' 'write -P 2 8M 64k' \
    'write -P 3 8M 4k' flush 'discard 2M 64k' 'read 0 4M' flush
}

for parameters in cache=writeback cache=none \
    'writeback-delay=100 enospc=wait' 'fast-path=off copy-delay=1'; do
  due || continue
  rm -f "$image"
  "$PLOOP_IMG" create -q --cluster-size=64K "$image" 64M
  # shellcheck disable=SC2086  # several words
  start_nbdkit file="$image" $parameters
  start_client
  work
  expect_idle "$parameters, with a client"
  # One that has trimmed last, and does not flush.
  [ "$parameters" != cache=writeback ] ||
    { ask 'discard 3M 512k'; expect_idle "trimmed and not flushed"; }
  stop_client
  stop_nbdkit
done

# ---- What a request costs

nr=100

# requests VERB FIRST: of 4 KiB each, the commands.
requests ()
{
  local i
  for ((i = 0; i < nr; i++)); do
    echo "$1 $(($2 + i * 4096)) 4096"
  done
}

# count_calls NAME: what NR reads and overwrites, one by one, make the server
# call: in $tmp/NAME.
count_calls ()
{
  local commands
  start_client
  ask 'write -P 1 0 4M' flush 'read 0 4096'
  start_strace
  ask 'read 0 4096'
  settle
  histogram > "$tmp/before"
  reads_before=$(nr_calls pread64)
  writes_before=$(nr_calls pwrite64)
  mapfile -t commands < <(requests 'read' 0; requests 'write -P 2' 65536)
  ask "${commands[@]}"
  settle
  histogram > "$tmp/after"
  nr_reads=$(($(nr_calls pread64) - reads_before))
  nr_writes=$(($(nr_calls pwrite64) - writes_before))
  stop_strace
  stop_client
  join -1 2 -2 2 -a 2 -e 0 -o 0,1.1,2.1 \
    <(sort -k 2 "$tmp/before") <(sort -k 2 "$tmp/after") |
    awk '$3 > $2 { print $3 - $2, $1 }' > "$tmp/$1"
  say "$1: $(tr '\n' ',' < "$tmp/$1")"
}

# With one thread a connection, so that nbdkit's threads do not meet.
[ -e "$image" ] || "$PLOOP_IMG" create -q --cluster-size=64K "$image" 64M
start_nbdkit -t 1 file="$image"
count_calls ploop
stop_nbdkit
[ "$nr_reads" -eq $nr ] || fail "$nr reads took $nr_reads calls of pread64"
[ "$nr_writes" -eq $nr ] ||
  fail "$nr overwrites took $nr_writes calls of pwrite64"
if grep -E 'futex|sync|fallocate|stat|epoll|eventfd|^[0-9]+ write$' \
   "$tmp/ploop"; then
  fail "a read or an overwrite calls more than it needs"
fi

if run_nbdkit --dump-plugin file > /dev/null 2>&1; then
  truncate -s 64M "$raw"
  PLUGIN="file" start_nbdkit -t 1 file="$raw"
  count_calls file
  stop_nbdkit
  diff "$tmp/file" "$tmp/ploop" ||
    fail "a read or an overwrite costs more than in nbdkit's file plugin"
else
  say "nbdkit has no file plugin: not compared"
fi
say "passed"
