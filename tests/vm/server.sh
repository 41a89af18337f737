# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034

# A server on the host for guests' kernels, on TCP, that ends and comes back.  Sourced
# after guest.sh.
#
# The test has a network of its own (own_network), with nothing in it but the loopback
# device: whatever else runs on this host, the port is free, also while the server is
# away.

server_pid=
server_log=$tmp/server.log
server_arguments=()

# own_network SCRIPT: runs the test anew in a network of its own.  To be called first.
own_network ()
{
  [ -z "${PLOOP_OWN_NETWORK:-}" ] || { ip link set lo up; return; }
  requires unshare ip
  unshare --net true 2> /dev/null || skip "no network of its own (unshare --net)"
  rm -rf "$tmp"
  PLOOP_OWN_NETWORK=1 exec unshare --net "$BASH" "$1"
}

# serve ARG...: the plugin with these arguments, on 127.0.0.1.
serve ()
{
  server_arguments=("$@")
  rm -f "$tmp/server.pid"
  # shellcheck disable=SC2086  # several words
  nbdkit -f -i 127.0.0.1 -P "$tmp/server.pid" "$PLUGIN" "$@" ${PLOOP_PARAMETERS:-} \
    < /dev/null >> "$server_log" 2>&1 &
  server_pid=$!
  wait_until _server_is_up || fail "the server does not come up"
  [ -s "$tmp/server.pid" ] || { cat "$server_log"; fail "not served: $*"; }
}

_server_is_up ()
{
  [ -s "$tmp/server.pid" ] || _has_ended "$server_pid"
}

# stop_server: with no client left, it must end in order.
stop_server ()
{
  local status=0
  kill -TERM "$server_pid"
  wait_until _has_ended "$server_pid" || fail "the server does not end"
  wait "$server_pid" || status=$?
  server_pid=
  [ "$status" -eq 0 ] || fail "the server's exit status is $status"
}

# end_server SIGNAL: below its clients, which are hung up after a second.
end_server ()
{
  local i ended=''
  kill "-$1" "$server_pid"
  for ((i = 0; i < 100; i++)); do
    if _has_ended "$server_pid"; then ended=1; break; fi
    nap
  done
  [ -n "$ended" ] || say "the server does not end by SIG$1: it is killed"
  kill -KILL "$server_pid" 2> /dev/null || :
  { wait "$server_pid" || :; } 2> /dev/null
  server_pid=
}

# serve_again: as before.
serve_again ()
{
  serve "${server_arguments[@]}"
}

answer_guest ()
{
  touch "$share/answer"
}

_clean_up_server ()
{
  [ -z "$server_pid" ] || kill -KILL "$server_pid" 2> /dev/null
}
cleanup_fn _clean_up_server

# expect_sound IMAGE: no errors; leaks of a server that was killed, and holes, may be.
expect_sound ()
{
  local status=0
  "$PLOOP_IMG" check "$1" > "$tmp/check.log" 2>&1 || status=$?
  [ "$status" -eq 0 ] || [ "$status" -eq 3 ] ||
    { cat "$tmp/check.log"; fail "$1 has errors"; }
}

# expect_files_on_host DISK DIRECTORY: read without the guest's kernel, DIRECTORY of the
# ext4 on DISK has exactly the files that DIRECTORY.sums beside it tells of.
expect_files_on_host ()
{
  local out=$tmp/files
  rm -rf "$out" "$tmp/raw"
  mkdir "$out"
  nbdkit -U - -r "$PLUGIN" "$1" --run "nbdcopy \"\$uri\" '$tmp/raw'"
  e2fsck -f -n "$tmp/raw" > "$tmp/fsck.log" 2>&1 ||
    { cat "$tmp/fsck.log"; fail "$1: the file system has errors"; }
  debugfs -R "rdump $2 $2.sums $out" "$tmp/raw" 2> "$tmp/debugfs.log" ||
    { cat "$tmp/debugfs.log"; fail "$1: debugfs"; }
  (cd "$out/$2" && find . -type f -print0 | sort -z | xargs -0 sha256sum) |
    cmp - "$out/$2.sums" || fail "$1: not the files that the guest wrote"
}

# make_chain DIRECTORY MIB GUID: a disk of that size whose lower delta, the snapshot
# GUID, has data everywhere: what is written needs copies.
make_chain ()
{
  mkdir -p "$1"
  head -c "$2M" /dev/urandom > "$tmp/random"
  "$PLOOP_IMG" create -q --from="$tmp/random" --descriptor "$1/root.hds"
  rm "$tmp/random"
  "$PLOOP_IMG" snapshot create --guid="$3" "$1" > /dev/null
}
