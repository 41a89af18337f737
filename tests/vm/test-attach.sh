#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# ploop-attach and ploop-detach with a kernel that has NBD: partitions, file systems,
# snapshots and remote exports are there, and what was written is in the image.
# test-attach-failures.sh has what can go wrong.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
# shellcheck source=tests/vm/guest.sh
. "$abs_srcdir/guest.sh"
cp "$abs_srcdir/attach-functions.sh" "$share/functions"

guest_limit=600
requires_guest
requires nbd-client mkfs.ext4 sfdisk blkid mkswap

unpack_corpus
cp -a "$tmp/corpus/c-chain3-v2-b64" "$share/chain.hdd"
chain_snapshot='{00000001-1111-2222-3333-444444444444}'
IFS=$'\t' read -r _ _ _ _ snapshot_sum _ \
  < <(grep "^c-chain3-v2-b64@1"$'\t' "$PLOOP_CORPUS/MANIFEST.tsv")
for name in disk other blank; do
  "$PLOOP_IMG" create -q "$share/$name.hds" 64M
done

cat > "$tmp/script" <<'SCRIPT'
set -euo pipefail
cd "$1"
snapshot=$2 snapshot_sum=$3
. ./functions

echo "@@ no module"
echo 'install nbd /bin/false' > /etc/modprobe.d/none.conf
fails 1 'has no NBD client: module nbd' ploop-attach disk.hds
rm /etc/modprobe.d/none.conf

echo "@@ a partition table, a file system"
device=$(ploop-attach disk.hds)
[ "$device" = /dev/nbd0 ] || fail "attached as $device"
[ "$(cat /sys/block/nbd0/queue/logical_block_size)" = 512 ] || fail "size of a sector"
sfdisk -q --no-reread --no-tell-kernel "$device" <<< $'label: gpt\n,16M\n,'
fails 1 "in use by another.*attached as $device" ploop-attach disk.hds
ploop-detach "$device"
nothing_left ploop-detach
device=$(ploop-attach disk.hds)
mkswap -q "${device}p1"
mkfs.ext4 -q "${device}p2"
ploop-detach "${device}p1"
# The second is the first with a file system.
mkdir '/root/a place'
ploop-attach --mount '/root/a place' disk.hds /dev/nbd2 > /root/log
[ "$(cat /root/log)" = /dev/nbd2 ] || fail "the device is not printed"
seq 100000 > '/root/a place/numbers'
fails 1 'in use: mounted on /root/a place' ploop-detach /dev/nbd2
ploop-attach --list > /root/log
said "/dev/nbd2 +rw +1 +$(pid_of_server nbd2) +attached +$PWD/disk.hds on /root/a place"
ploop-attach -l --output=json > /root/log
said '"mounts" : \["/root/a place"\]'
cd '/root/a place'
fails 1 '/root/a place' ploop-detach --umount "$OLDPWD/disk.hds"
cd "$OLDPWD"
ploop-detach --umount '/root/a place'
nothing_left "ploop-detach --umount"

echo "@@ for reading"
ploop-attach -r -m /mnt disk.hds > /dev/null
cmp /mnt/numbers <(seq 100000) || fail "the file is not what was written"
[ "$(blockdev --getro /dev/nbd0)" = 1 ] || fail "can be written"
fails 1 'in use for .*disk.hds' ploop-attach -r disk.hds /dev/nbd0
fails 1 'no such device' ploop-attach -r disk.hds /dev/nbd99

echo "@@ a snapshot, and two at once"
[ "$(ploop-attach -s "$snapshot" chain.hdd)" = /dev/nbd1 ] || fail "not the second device"
[ "$(sha256sum < /dev/nbd1)" = "$snapshot_sum  -" ] || fail "not the snapshot's content"
fails 1 'no snapshot|not found|is not' \
  ploop-attach -s '{deadbeef-0000-0000-0000-000000000000}' chain.hdd
fails 1 'too short for a ploop image' ploop-attach /etc/hosts
ploop-attach other.hds > /root/first & ploop-attach blank.hds > /root/second
wait $!
[ "$(sort /root/first /root/second | tr '\n' ' ')" = '/dev/nbd2 /dev/nbd3 ' ] ||
  fail "two at once: $(cat /root/first /root/second)"
fails 1 'nbd0 is in use' ploop-detach --all
[ "$(ls /run/ploop-attach)" = nbd0 ] || fail "--all has not detached what it can"
umount /mnt
ploop-detach disk.hds
fails 1 'not attached' ploop-detach disk.hds

echo "@@ a remote export, whose server is killed and started again"
serve () { rm -f /root/socket; nbdkit -U /root/socket -P /root/pid ploop disk.hds 2> /dev/null; }
uri='nbd+unix:///?socket=/root/socket'
fails 1 'cannot be attached' ploop-attach --uri "$uri"
serve
device=$(ploop-attach --uri "$uri" -m /mnt)
kill -KILL "$(cat /root/pid)"
(sleep 1; serve) &
cp /mnt/numbers /mnt/copy
sync /mnt/copy
wait $!
umount /mnt
ploop-detach "$uri"
kill "$(cat /root/pid)"
wait_for_end
ploop-attach -r -m /mnt disk.hds > /dev/null
cmp /mnt/copy <(seq 100000) || fail "the copy is not what was written"
ploop-detach -u /mnt
nothing_left "the end"
echo "@@ done"
SCRIPT
finished=
guest_says () { finished=$1; say "$1"; }
run_guest "$tmp/script" "$share" "$chain_snapshot" "$snapshot_sum" ||
  fail "the guest's script: status $?"
[ "$finished" = 'done' ] || fail "the guest did not say that it was done"
for name in disk other blank; do
  "$PLOOP_IMG" check -q "$share/$name.hds" || [ $? -eq 3 ] || fail "$name.hds has errors"
done
say "passed"
