#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What ploop-attach and ploop-detach do when something goes wrong on the way: nothing to
# mount; a server that dies, or answers nothing, or errors; a journal that was not
# replayed; a device that another program has, or takes at the same moment; a kernel that
# shows no partitions; ploop-attach ended by a signal.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
# shellcheck source=tests/vm/guest.sh
. "$abs_srcdir/guest.sh"

guest_limit=600
requires_guest
requires nbd-client mkfs.ext4 sfdisk partx losetup

for name in disk other; do
  "$PLOOP_IMG" create -q "$share/$name.hds" 64M
done
cp "$abs_srcdir/attach-functions.sh" "$share/functions"

cat > "$tmp/script" <<'SCRIPT'
set -euo pipefail
cd "$1"
. ./functions

echo "@@ no partitions"
modprobe nbd max_part=0
device=$(ploop-attach --connections=3 disk.hds -- cache=none 2> /dev/null)
ploop-attach --list > /root/log
said ' rw +3 +'
sfdisk -q --no-reread --no-tell-kernel "$device" <<< $'label: gpt\n,1M\n,'
ploop-detach "$device"
ploop-attach -n 2 disk.hds -- --filter=multi-conn multi-conn-mode=disable \
  > /root/device 2> /root/log
said '2 connections cannot be had'
device=$(cat /root/device)
[ -b "${device}p2" ] || fail "no partitions"
mkfs.ext4 -q "${device}p2"
modprobe loop
losetup /dev/loop0 "${device}p1"
fails 1 'part of /dev/loop0' ploop-detach "$device"
losetup -d /dev/loop0
exec 8< "$device"
fails 1 "open in process $$ \\(bash\\)" ploop-detach "$device"
exec 8<&-

ploop-detach "$device"

echo "@@ what cannot be mounted"
fails 1 'has no partition 7' ploop-attach -m /mnt --partition=7 disk.hds
fails 1 'cannot be mounted' ploop-attach -m /mnt --partition=1 disk.hds
fails 1 'no file system.*nbd0: not known' ploop-attach -m /mnt other.hds
fails 1 'not a directory' ploop-attach -m /etc/hosts disk.hds
nothing_left "a failure to mount"

echo "@@ another program's device"
nbdkit -U /root/socket -P /root/pid memory 1M
nbd-client -unix /root/socket /dev/nbd0 > /dev/null 2>&1
fails 1 'another program' ploop-attach disk.hds /dev/nbd0
fails 1 'not attached by ploop-attach' ploop-detach /dev/nbd0
[ "$(ploop-attach disk.hds)" = /dev/nbd1 ] || fail "not the second device"
nbd-client -d /dev/nbd1 > /dev/null
nbd-client -unix /root/socket /dev/nbd1 > /dev/null 2>&1
ploop-attach --list > /root/log
said 'not connected'
ploop-detach /dev/nbd1
for device in nbd0 nbd1; do
  [ "$(cat "/sys/block/$device/size")" = 2048 ] || fail "$device is not left alone"
done
nbd-client -d /dev/nbd1 > /dev/null
nbd-client -d /dev/nbd0 > /dev/null
kill "$(cat /root/pid)"

echo "@@ a server that dies"
ploop-attach disk.hds /dev/nbd1 > /dev/null
kill -KILL "$(pid_of_server nbd1)"
! dd if=/dev/nbd1 of=/dev/null bs=4096 count=1 iflag=direct 2> /dev/null ||
  fail "a dead server reads"
ploop-attach --list > /root/log
said 'no server'
fails 3 'its server had ended before' ploop-detach /dev/nbd1
nothing_left "a server that died"

echo "@@ a server that does not answer"
device=$(ploop-attach disk.hds)
server=$(pid_of_server nbd0)
kill -STOP "$server"
fails 1 'has not written back .* after 1 s.*--force' ploop-detach -t 1 "$device"
kill -CONT "$server"
ploop-detach "$device"
nothing_left "a slow server"
device=$(ploop-attach disk.hds)
server=$(pid_of_server nbd0)
kill -STOP "$server"
dd if="$device" of=/dev/null iflag=direct bs=4096 count=1 2> /root/dd &
until grep -q '^ *[1-9]' /sys/block/nbd0/inflight; do sleep 0.1; done
kill -KILL "$server"
fails 1 'in use: open in process .*dd' ploop-detach "$device"
fails 3 'its server had ended before' ploop-detach --force "$device"
wait $! && fail "the dead server has answered"
nothing_left "--force"

echo "@@ a journal"
ploop-attach -m /mnt disk.hds > /dev/null
seq 1000 > /mnt/numbers
sync /mnt/numbers
kill -KILL "$(pid_of_server nbd0)"
fails 3 'its server had ended before' ploop-detach --umount /mnt
fails 1 'mount-options=noload' ploop-attach -r -m /mnt disk.hds
nothing_left "a journal"
ploop-attach -r -m /mnt -o noload disk.hds > /dev/null 2>&1
ploop-detach -u /mnt
ploop-attach -m /mnt disk.hds > /dev/null 2>&1
cmp /mnt/numbers <(seq 1000) || fail "the file is not what was written"
ploop-detach -u /mnt

echo "@@ errors"
rm -f /root/socket
nbdkit -U /root/socket -P /root/pid eval get_size='echo 1M' can_write='exit 0' \
  pread='head -c $3 /dev/zero' pwrite='cat > /dev/null' can_flush='exit 0' \
  flush='echo EIO >&2; exit 1'
device=$(ploop-attach --persist=0 --uri='nbd+unix:///?socket=/root/socket' -- -t 1)
fails 3 'writing back fails' ploop-detach "$device"
kill "$(cat /root/pid)"
wait_for_end
nothing_left "errors"

echo "@@ another program is faster"
cat > /usr/local/sbin/nbd-client <<'TXT'
#!/bin/sh
if [ "$1" = -unix ] && [ ! -e /root/taken ]; then
  touch /root/taken
  rm -f /root/socket
  nbdkit -U /root/socket -P /root/pid memory 1M
  /usr/sbin/nbd-client -unix /root/socket "$3" > /dev/null 2>&1
fi
exec /usr/sbin/nbd-client "$@"
TXT
chmod +x /usr/local/sbin/nbd-client
device=$(ploop-attach disk.hds)
[ "$device" = /dev/nbd1 ] || fail "took $device"
[ "$(blockdev --getsize64 /dev/nbd0)" = 1048576 ] || fail "the other one has lost it"
nbd-client -d /dev/nbd0 > /dev/null
kill "$(cat /root/pid)"
rm /root/taken
fails 1 'another program has just taken it' ploop-attach other.hds /dev/nbd2
nbd-client -d /dev/nbd2 > /dev/null
kill "$(cat /root/pid)"
ploop-detach "$device"
wait_for_end
nothing_left "another program"

echo "@@ signals"
# In the middle of it, when everything is there.
cat > /usr/local/sbin/nbd-client <<'TXT'
#!/bin/sh
/usr/sbin/nbd-client "$@" && [ "$1" = -unix ] && kill "-$(cat /root/signal)" $PPID
TXT
echo TERM > /root/signal
fails 143 '' ploop-attach disk.hds
nothing_left "SIGTERM"
echo KILL > /root/signal
fails 137 '' ploop-attach disk.hds
rm /usr/local/sbin/nbd-client
ploop-attach --list > /root/log
said '/dev/nbd0 .*incomplete'
fails 1 'another ploop-attach .*ploop-detach /dev/nbd0' ploop-attach other.hds /dev/nbd0
ploop-detach --all
nothing_left "SIGKILL"
echo "@@ done"
SCRIPT
finished=
guest_says () { finished=$1; say "$1"; }
run_guest "$tmp/script" "$share" || fail "the guest's script: status $?"
[ "$finished" = 'done' ] || fail "the guest did not say that it was done"
say "passed"
