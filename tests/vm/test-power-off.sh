#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# The promise of the whole machine, from fsync(2) in a guest to the image: a program in
# a guest syncs record after record and tells the host of each.  Now the server is
# killed (kill -9), now the guest, now both at once, at random moments; each time the
# image opens without repair, ext4 replays its journal, and every record of which the
# host was told is there.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
# shellcheck source=tests/vm/guest.sh
. "$abs_srcdir/guest.sh"
# shellcheck source=tests/vm/server.sh
. "$abs_srcdir/server.sh"

requires_guest
requires libslirp-helper nbd-client nbdcopy mkfs.ext4 e2fsck debugfs perl pgrep
own_network "$0"
guest_limit=400

# Each guest sees some servers end, and ends itself.
scale=${PLOOP_TEST_SCALE:-100}
guests=$((3 * scale / 100)) servers_of_a_guest=2
[ "$guests" -ge 2 ] || guests=2

disk=$tmp/disk.hds
"$PLOOP_IMG" create -q "$disk" 64M
serve "$disk"

cat > "$tmp/script" <<'SCRIPT'
set -euo pipefail
. "$1"
records=$2
device=/dev/nbd0
load_nbd
while true; do
  # A request that is under way when the server ends fails after so many seconds.
  connect_nbd "$device" '' 2 -timeout 8
  if blkid "$device" > /dev/null; then
    status=0
    e2fsck -p "$device" > /tmp/fsck.log || status=$?
    [ "$status" -le 1 ] || { cat /tmp/fsck.log; give_up "e2fsck: status $status"; }
  else
    make_file_system ext4 "$device"
  fi
  mount "$device" /mnt
  # It ends when the server has.
  perl "$records" write /mnt "$(cat "$share/next")" ||
    echo "the server has gone"
  umount /mnt
  disconnect_nbd "$device"
  ask_host server
done
SCRIPT

acked=0 end_at=0 ends='' kills=0

# plan_end WHAT: soon, WHAT is killed: server, guest or both.
plan_end ()
{
  ends=$1
  end_at=$((acked + 3 + RANDOM / 7 % 60))
  echo $((acked + 1)) > "$share/next"
}

kill_server ()
{
  kill -KILL "$server_pid"
  { wait "$server_pid" || :; } 2> /dev/null
  server_pid=
}

# look_at_image: every record that was told of is there.
look_at_image ()
{
  local out=$tmp/out
  rm -rf "$out" "$tmp/raw"
  mkdir "$out"
  expect_sound "$disk"
  nbdkit -U - -r "$PLUGIN" "$disk" --run "nbdcopy \"\$uri\" '$tmp/raw'"
  e2fsck -f -p "$tmp/raw" > "$tmp/fsck.log" 2>&1 || [ $? -le 1 ] ||
    { cat "$tmp/fsck.log"; fail "the file system has errors"; }
  debugfs -R "rdump / $out" "$tmp/raw" 2> /dev/null
  perl "$abs_srcdir/records.pl" verify "$out" "$acked" ||
    fail "a record that was synced is not there"
  kills=$((kills + 1))
  say "$ends killed: $acked records are there"
}

servers_left=0
next_end ()
{
  if [ "$servers_left" -gt 0 ]; then
    servers_left=$((servers_left - 1))
    plan_end server
  elif due; then
    plan_end guest
  else
    plan_end both
  fi
}

# The guest may tell of more records while it is being killed.
guest_says ()
{
  case $1 in
    server)
      # On a busy host a request may have taken too long: so the server ends now.
      [ -z "$server_pid" ] || kill_server
      look_at_image
      serve_again
      next_end
      answer_guest ;;
    *)
      acked=$1
      [ "$acked" -eq "$end_at" ] || return 0
      [ "$ends" = server ] || kill_guest
      [ "$ends" = guest ] || kill_server ;;
  esac
}

for ((guest = 1; guest <= guests; guest++)); do
  servers_left=$servers_of_a_guest
  next_end
  status=0
  run_guest -n "$tmp/script" "$abs_srcdir/guest-functions.sh" \
    "$abs_srcdir/records.pl" || status=$?
  [ "$status" -eq 137 ] || fail "the guest's script: status $status"
  [ -z "$server_pid" ] || stop_server
  look_at_image
  serve_again
done
stop_server
[ "$kills" -ge $((guests * (servers_of_a_guest + 1))) ] || fail "only $kills kills"
say "passed"
