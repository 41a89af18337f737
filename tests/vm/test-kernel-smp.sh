#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# A guest with four CPUs, whose kernel really uses four connections at the same time:
# each carries data; parallel writers, trims, and a server that is killed in the middle
# lose nothing.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
# shellcheck source=tests/vm/guest.sh
. "$abs_srcdir/guest.sh"
# shellcheck source=tests/vm/qemu.sh
. "$abs_srcdir/qemu.sh"
# shellcheck source=tests/vm/server.sh
. "$abs_srcdir/server.sh"

requires_qemu_guest
requires nbd-client nbdcopy mkfs.ext4 e2fsck debugfs fstrim ss taskset
own_network "$0"
guest_limit=1500

disk=$tmp/disk.hds
"$PLOOP_IMG" create -q "$disk" 64M
serve "$disk"

cat > "$tmp/script" <<'SCRIPT'
set -euo pipefail
. "$1"
device=/dev/nbd0
relay=/run/relay

# write_from_all_cpus DIRECTORY: past the page cache, so that each CPU sends its own.
write_from_all_cpus ()
{
  local cpu pids=() pid
  for cpu in 0 1 2 3; do
    taskset -c "$cpu" dd if=/dev/urandom of="$1/cpu.$cpu" bs=64k count=16 \
      oflag=direct conv=fsync status=none &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    wait "$pid"
  done
}

# expect_all_connections_used: by 100 KB at the least.
expect_all_connections_used ()
{
  local sent
  sent=$(ss -Htin state established dport = ":$server_port" |
         grep -o 'bytes_sent:[0-9]*' | cut -d : -f 2)
  echo "bytes sent by the connections:" $sent
  [ "$(wc -l <<< "$sent")" -eq 4 ] || give_up "not 4 connections"
  awk '$1 < 100000 { exit 1 }' <<< "$sent" || give_up "one was not used"
}

[ "$(nproc)" -eq 4 ] || give_up "$(nproc) CPUs"
load_nbd
connect_nbd "$device" '' 4
expect_connections 4
[ "$(ls "/sys/block/${device#/dev/}/mq" | wc -l)" -eq 4 ] || give_up "not 4 queues"
make_file_system ext4 "$device"
mount "$device" /mnt
write_from_all_cpus /mnt
expect_all_connections_used
write_files /mnt/files 4 512 100
head -c 4M /dev/urandom > /mnt/gone
sync -f /mnt
rm /mnt/gone
sync -f /mnt
trim /mnt "$device"
sum_files /mnt/files > /tmp/files.sums
unmount /mnt "$device"
disconnect_nbd "$device"

nbdkit -U "$relay" -P /run/relay.pid --filter=retry nbd \
  "uri=nbd://$server:$server_port" \
  retries=1000 retry-delay=1 retry-exponential=no
connect_nbd "$device" '' 4 -unix "$relay"
mount "$device" /mnt
expect_files /mnt/files /tmp/files.sums
write_files /mnt/during 4 512 100 &
writers=$!
ask_host KILL
wait "$writers"
unmount /mnt "$device"
check_file_system ext4 "$device"
mount "$device" /mnt
expect_files /mnt/files /mnt/files.sums
expect_files /mnt/during /mnt/during.sums
unmount /mnt "$device"
disconnect_nbd "$device"
expect_clean_log
SCRIPT

restarts=0
guest_says ()
{
  end_server "$1"
  serve_again
  restarts=$((restarts + 1))
  answer_guest
}

run_guest -c 4 -m 1024 -n "$tmp/script" "$abs_srcdir/guest-functions.sh" ||
  fail "the guest's script: status $?"
stop_server
[ "$restarts" -eq 1 ] || fail "$restarts restarts, must be 1"
expect_sound "$disk"
expect_files_on_host "$disk" files
expect_files_on_host "$disk" during
say "passed"
