#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Disks that are block devices after every boot: one that ploop-attach@.service serves
# by itself, one that has its own server, both mounted by /etc/fstab, and one through
# /etc/nbdtab.  A device that is in use is not torn from under its user.  When the
# machine goes down, file systems are unmounted before their devices go, these before
# their servers, and those before the file system that the images are on; what was
# written without a sync is there, and the images are closed.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
# shellcheck source=tests/vm/guest.sh
. "$abs_srcdir/guest.sh"

requires_guest
requires_systemd
requires_units
requires mkfs.ext4 debugfs nbd-client
find "$STAGE" -path '*/sbin/ploop-attach' | grep -q . ||
  skip "this build installs no ploop-attach"

# make_disk NAME: with a file system, in $tmp/vz/private/NAME/root.hdd.
make_disk ()
{
  mkdir -p "$tmp/files" "$tmp/vz/private/$1/root.hdd"
  echo "this is $1" > "$tmp/files/name"
  rm -f "$tmp/raw"
  truncate -s 64M "$tmp/raw"
  mkfs.ext4 -q -d "$tmp/files" "$tmp/raw"
  "$PLOOP_IMG" create -q --from="$tmp/raw" --descriptor \
    "$tmp/vz/private/$1/root.hdd/root.hds"
}

make_disk 101
make_disk 102
make_disk 103
truncate -s 500M "$share/vz"
mkfs.ext4 -q -d "$tmp/vz" "$share/vz"
rm -r "$tmp/vz"

cat > "$tmp/prepare" <<PREPARE
set -e
modprobe loop
mkdir -p /vz /mnt/ct101 /mnt/ct103 /etc/ploop
examples=\$(echo /usr/*/doc/ploop-nbd/examples /usr/*/*/doc/ploop-nbd/examples)
for directory in \$examples; do
  [ ! -d "\$directory" ] || cp "\$directory/101.conf" /etc/ploop
  [ ! -d "\$directory" ] || cp "\$directory/nbdtab" /etc
done
echo DIRECTORY=/vz/private > /etc/ploop/containers.conf
cat > /etc/ploop/103.conf << 'CONF'
DISK=/vz/private/103/root.hdd
URI=nbd+unix:///?socket=/run/nbdkit-ploop/103.sock
DEVICE=/dev/nbd3
CONF
systemctl enable nbdkit-ploop@containers.socket nbdkit-ploop@103.socket
cat > /etc/fstab << 'FSTAB'
$share/vz /vz ext4 loop
/dev/nbd0 /mnt/ct101 ext4 _netdev,x-systemd.requires=ploop-attach@101.service
/dev/nbd3 /mnt/ct103 ext4 _netdev,x-systemd.requires=ploop-attach@103.service
FSTAB
PREPARE

cat > "$tmp/script" <<'SCRIPT'
set -euo pipefail
share=$1

fail ()
{
  echo "FAILED: $*"
  exit 1
}

at_exit ()
{
  local status=$?
  if [ $status -ne 0 ]; then
    journalctl --no-pager -b -o short-monotonic -t systemd -t nbdkit -t ploop-attach \
      > "$share/journal" || :
    systemctl --no-pager status 'ploop-attach@*' 'nbdkit-ploop@*' '*.mount' \
      >> "$share/journal" || :
  fi
}
trap at_exit EXIT

is_mounted ()
{
  [ "$(cat "/mnt/$1/name" 2> /dev/null)" = "this is ${1#ct}" ]
}

echo "@@ after boot, both are mounted"
is_mounted ct101 || fail "not mounted: 101, which ploop-attach@ serves"
is_mounted ct103 || fail "not mounted: 103, which nbdkit-ploop@ serves"

echo "@@ the service is stopped and started"
systemctl stop ploop-attach@101.service
! is_mounted ct101 || fail "still mounted"
[ ! -e /sys/block/nbd0/pid ] || fail "still attached"
systemctl start mnt-ct101.mount
is_mounted ct101 || fail "the mount does not start its device"

echo "@@ a device that somebody has open stays"
exec 5< /dev/nbd0
! systemctl stop ploop-attach@101.service 2> /dev/null ||
  [ "$(systemctl is-active ploop-attach@101.service)" = failed ] ||
  fail "it is said to be detached"
dd if=/dev/nbd0 of=/dev/null bs=4096 count=1 iflag=direct status=none ||
  fail "its server was ended"
exec 5<&-
ploop-detach /dev/nbd0
systemctl reset-failed ploop-attach@101.service
systemctl start mnt-ct101.mount
is_mounted ct101 || fail "not attached again"

echo "@@ nbdtab"
nbd-client nbd1
mount /dev/nbd1 /mnt/ct102 --mkdir -o ro
is_mounted ct102 || fail "not mounted: 102, by nbdtab"
umount /mnt/ct102
nbd-client -d /dev/nbd1

echo "written at the end" > /mnt/ct101/last
echo "written at the end" > /mnt/ct103/last
SCRIPT

guest_limit=400
run_guest -s "$tmp/prepare" "$tmp/script" "$share" || {
  status=$?
  tail -n 100 "$share/journal"
  fail "the guest's script: status $status"
}

# ---- How the machine went down

# The lines of the console from then on, without colours.
sed -n '/Stopp\(ed\|ing\).*guest-script/,$ s/\x1b\[[0-9;]*[mK]//gp' "$guest_console" \
  > "$tmp/end"

# expect_order TEXT...: each for the first time after the one before.
expect_order ()
{
  local text line last=0
  for text; do
    line=$(grep -nm 1 -- "$text" "$tmp/end" | cut -d : -f 1)
    [ -n "$line" ] || { cat "$tmp/end"; fail "not at the end: $text"; }
    [ "$line" -gt "$last" ] || { cat "$tmp/end"; fail "too early: $text"; }
    last=$line
  done
}

expect_order 'Unmounted .*/mnt/ct101' 'Stopped ploop-attach@101' 'Unmounted .*/vz\.'
expect_order 'Unmounted .*/mnt/ct103' 'Stopped ploop-attach@103' \
  'Stopped nbdkit-ploop@103' 'Unmounted .*/vz\.'

for name in 101 103; do
  debugfs -R "dump /private/$name/root.hdd/root.hds $tmp/root.hds" "$share/vz" \
    2> /dev/null
  "$PLOOP_IMG" check -q "$tmp/root.hds" || [ $? -eq 3 ] || fail "$name has errors"
  [ "$(in_use "$tmp/root.hds")" = 00000000 ] || fail "$name was not closed"
  "$PLOOP_IMG" convert -q --force -O raw "$tmp/root.hds" "$tmp/raw"
  [ "$(debugfs -R 'cat /last' "$tmp/raw" 2> /dev/null)" = "written at the end" ] ||
    fail "what was written to $name at the end is not there"
done
say "passed"
