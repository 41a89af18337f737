#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# The server ends, by SIGTERM and by kill -9, while a guest's kernel writes to its disk,
# and is started again.  The kernel's client does not survive that by itself; through a
# relay, as nbdkit-ploop-plugin(1) tells, no request fails and nothing is lost: neither
# what was synced nor what was only answered.  The kernel does not send the latter
# again, so a chain, whose copies kill -9 may lose, needs cache=writethrough.
#
# Without a relay, the kernel says that the disk has failed, at once or when -timeout is
# over, and what was synced is there when it is connected anew.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
# shellcheck source=tests/vm/guest.sh
. "$abs_srcdir/guest.sh"
# shellcheck source=tests/vm/server.sh
. "$abs_srcdir/server.sh"

requires_guest
requires libslirp-helper nbd-client nbdcopy mkfs.ext4 e2fsck debugfs
own_network "$0"

rounds=4
[ "${PLOOP_TEST_SCALE:-100}" -ge 100 ] || rounds=2

cat > "$tmp/relayed" <<'SCRIPT'
set -euo pipefail
. "$1"
rounds=$2
relay=/run/relay
device=/dev/nbd0

# The last 4 MiB of the device are ours, not the file system's.
mib=60
write_answered ()
{
  head -c 4M /dev/urandom > /tmp/answered
  dd if=/tmp/answered of="$device" bs=64k seek=$((mib * 16)) oflag=direct \
    conv=notrunc status=none
}

expect_answered ()
{
  dd if="$device" bs=64k skip=$((mib * 16)) iflag=direct status=none |
    cmp - /tmp/answered
}

load_nbd
nbdkit -U "$relay" -P /run/relay.pid --filter=retry nbd \
  "uri=nbd://$server:$server_port" \
  retries=1000 retry-delay=1 retry-exponential=no
connect_nbd "$device" '' 4 -unix "$relay"
mkfs.ext4 -q -F -J size=4 -b 4096 "$device" $((mib * 256))
mount "$device" /mnt
for ((round = 1; round <= rounds; round++)); do
  signal=KILL
  [ $((round % 2)) -ne 0 ] || signal=TERM
  write_files "/mnt/before.$round" 2 512 100
  write_files "/mnt/during.$round" 3 1024 200 &
  writers=$!
  write_answered
  ask_host "$signal"
  expect_answered
  wait "$writers"
  expect_files "/mnt/before.$round" "/mnt/before.$round.sums"
done
unmount /mnt "$device"
check_file_system ext4 "$device"
expect_answered
disconnect_nbd "$device"
expect_clean_log

# As the server has it, without the relay.
connect_nbd "$device" '' 1 -readonly
mount -o ro "$device" /mnt
for ((round = 1; round <= rounds; round++)); do
  expect_files "/mnt/before.$round" "/mnt/before.$round.sums"
  expect_files "/mnt/during.$round" "/mnt/during.$round.sums"
done
unmount /mnt "$device"
disconnect_nbd "$device"
SCRIPT

cat > "$tmp/alone" <<'SCRIPT'
set -euo pipefail
. "$1"
device=/dev/nbd0
load_nbd
connect_nbd "$device" '' 4 -timeout 10
make_file_system ext4 "$device"
mount "$device" /mnt
write_files /mnt/synced 2 512 100
dd if=/dev/urandom of=/mnt/under-way bs=64k count=500 oflag=sync status=none &
under_way=$!
ask_host KILL
start=$SECONDS
if wait "$under_way"; then
  give_up "written, although the server had gone"
fi
if dd if=/dev/zero of=/mnt/lost bs=1M count=1 conv=fsync status=none; then
  give_up "written, although the server had gone"
fi
[ $((SECONDS - start)) -lt 60 ] || give_up "the error took $((SECONDS - start)) s"
dmesg | grep -q 'I/O error' || give_up "the kernel's log has no error"
umount /mnt
disconnect_nbd "$device"

connect_nbd "$device" '' 4
status=0
e2fsck -f -p "$device" > /tmp/fsck.log || status=$?
[ "$status" -le 1 ] || { cat /tmp/fsck.log; give_up "e2fsck: status $status"; }
mount "$device" /mnt
expect_files /mnt/synced /mnt/synced.sums
unmount /mnt "$device"
disconnect_nbd "$device"
SCRIPT

restarts=0
guest_says ()
{
  say "$1"
  end_server "$1"
  # For so long, all that the kernel sends is held.
  sleep "$(((RANDOM / 7) % 3)).$((RANDOM % 10))"
  serve_again
  restarts=$((restarts + 1))
  answer_guest
}

# check SCRIPT DISK RESTARTS ARG...
check ()
{
  local script=$1 disk=$2
  restarts=0
  serve "$disk" "${@:4}"
  run_guest -n "$tmp/$script" "$abs_srcdir/guest-functions.sh" "$rounds" ||
    fail "the guest's script $script: status $?"
  stop_server
  [ "$restarts" -eq "$3" ] || fail "$restarts restarts, must be $3"
  expect_sound "$disk"
}

"$PLOOP_IMG" create -q "$tmp/disk.hds" 64M
check relayed "$tmp/disk.hds" "$rounds"
for ((round = 1; round <= rounds; round++)); do
  expect_files_on_host "$tmp/disk.hds" "during.$round"
done
say "an image: nothing is lost"

make_chain "$tmp/root.hdd" 64 '{00000001-1111-2222-3333-444444444444}'
check relayed "$tmp/root.hdd" "$rounds" cache=writethrough
say "a chain: nothing is lost"

rm "$tmp/disk.hds"
"$PLOOP_IMG" create -q "$tmp/disk.hds" 64M
check alone "$tmp/disk.hds" 1
expect_files_on_host "$tmp/disk.hds" synced
say "passed"
