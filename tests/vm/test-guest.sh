#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# An image is a block device of the guest's kernel: a file system is made on it, used,
# trimmed, and read back after the device was connected anew.  What is left is
# looked at on the host, too.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
# shellcheck source=tests/vm/guest.sh
. "$abs_srcdir/guest.sh"

requires_guest
requires nbd-client mkfs.ext4 e2fsck

"$PLOOP_IMG" create "$share/disk.hds" 256M > /dev/null

cat > "$tmp/script" <<'SCRIPT'
set -euo pipefail
image=$1
modprobe nbd

attach ()
{
  nbdkit -U /run/sock -P /run/pid ploop "$image"
  nbd-client -unix /run/sock /dev/nbd0 -b 4096 "$@"
}

detach ()
{
  nbd-client -d /dev/nbd0
  kill "$(cat /run/pid)"
  while [ -e "/proc/$(cat /run/pid)" ]; do sleep 0.1; done
  rm /run/sock
}

attach
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 /mnt
seq 1000000 > /mnt/numbers
head -c 50M /dev/urandom > /mnt/random
sha256sum /mnt/numbers > /root/sums
rm /mnt/random
fstrim -v /mnt
umount /mnt
detach
attach -readonly
mount -o ro /dev/nbd0 /mnt
sha256sum -c /root/sums
umount /mnt
e2fsck -fn /dev/nbd0
[ "$(blockdev --getro /dev/nbd0)" = 1 ] || { echo "can be written"; exit 1; }
detach
echo "@@ done"
SCRIPT
finished=
guest_says () { finished=$1; }
run_guest "$tmp/script" "$share/disk.hds" || fail "the guest's script: status $?"
[ "$finished" = 'done' ] || fail "the guest did not say that it was done"

# Free clusters before the last one in use are holes, which count as leaks.
status=0
"$PLOOP_IMG" check "$share/disk.hds" || status=$?
[ "$status" -eq 0 ] || [ "$status" -eq 3 ] || fail "the image has errors"
size=$(du -m "$share/disk.hds" | cut -f 1)
[ "$size" -lt 50 ] || fail "$size MiB, although most of it was trimmed"

# A status that is not 0 comes through.
echo 'exit 7' > "$tmp/script"
status=0
run_guest "$tmp/script" || status=$?
[ "$status" -eq 7 ] || fail "exit status $status, must be 7"
say "passed"
