#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# On the host of a Virtuozzo kernel: what its ploop driver has as a device is neither
# served nor changed nor copied, and what it only reads is read.  The guest has no such
# driver; what that tells in sysfs is made up in its place.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
# shellcheck source=tests/vm/guest.sh
. "$abs_srcdir/guest.sh"

requires_guest

cat > "$tmp/script" <<'SCRIPT'
set -euo pipefail

# tell READ_ONLY: the driver has disk.hds as /dev/ploop12345.
tell ()
{
  mkdir -p /sys/block/ploop12345/pdelta/0
  echo /root/disk.hds > /sys/block/ploop12345/pdelta/0/image
  echo "$1" > /sys/block/ploop12345/pdelta/0/ro
}

# refused COMMAND...: it fails, says what has the image, and changes nothing.
refused ()
{
  local before after
  before=$(sha256sum < disk.hds)
  if "$@" > log 2>&1; then echo "not refused: $*"; exit 1; fi
  grep -q 'disk.hds: in use by this kernel.s ploop driver as /dev/ploop12345' log ||
    { cat log; exit 1; }
  after=$(sha256sum < disk.hds)
  [ "$before" = "$after" ] || { echo "changed: $*"; exit 1; }
}

ploop-img create disk.hds 64M > /dev/null
nbdkit -U - ploop disk.hds --run 'nbdcopy /etc/services "$uri"'
mount -t tmpfs block /sys/block

tell 0
refused nbdkit -U - ploop disk.hds --run true
refused nbdkit -r -U - ploop disk.hds --run true
refused ploop-img resize disk.hds 128M
refused ploop-img compact disk.hds
refused ploop-img check --repair=all disk.hds
refused ploop-img convert -O raw disk.hds disk.raw
ploop-img info disk.hds

tell 1
refused nbdkit -U - ploop disk.hds --run true
refused ploop-img resize disk.hds 128M
nbdkit -r -U - ploop disk.hds --run 'nbdinfo --size "$uri"'
ploop-img convert -O raw disk.hds disk.raw
ploop-img compare disk.hds disk.raw

rm -r /sys/block/ploop12345
ploop-img resize disk.hds 128M
SCRIPT
run_guest "$tmp/script" || fail "the guest's script: status $?"
say "passed"
