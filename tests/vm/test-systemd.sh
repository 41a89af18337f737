#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# A disk as a service, with systemd as process 1: the first client starts its server,
# which is confined and still does all it can; clients outlive kill -9 and a restart; a
# disk that cannot be served is tried again, and its socket stays; what the manual page
# says of drop-ins is so; a stop under load leaves an image that was closed.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
# shellcheck source=tests/vm/guest.sh
. "$abs_srcdir/guest.sh"

requires_guest
requires_systemd
requires_units
requires nbdinfo qemu-io mkfs.ext4 losetup
# A file system of its own for the disk: one that can do direct I/O.
mkdir -p "$tmp/vz/private/101/root.hdd"
"$PLOOP_IMG" create -q --descriptor "$tmp/vz/private/101/root.hdd/root.hds" 64M
truncate -s 500M "$share/vz"
mkfs.ext4 -q -d "$tmp/vz" "$share/vz"

cat > "$tmp/prepare" <<PREPARE
set -e
mkdir -p /vz /etc/ploop
echo "$share/vz /vz ext4 loop" > /etc/fstab
modprobe loop
cat > /etc/ploop/101.conf << 'CONF'
DISK=/vz/private/101/root.hdd
OPTIONS="cache=none runners=2"
NBDKIT_OPTIONS="--threads=4"
CONF
systemctl enable nbdkit-ploop@101.socket
PREPARE

# dropin UNIT: the one that the manual page has for it, an indented paragraph.
dropin ()
{
  sed -n "s/^ //; /^\[$1\]/,/^\$/p" "$abs_top_srcdir/man/nbdkit-ploop-plugin.pod"
}
dropin Socket > "$share/socket.conf"
dropin Service > "$share/service.conf"

cat > "$tmp/script" <<'SCRIPT'
set -euo pipefail
share=$1
unit=nbdkit-ploop@101
sock=/run/nbdkit-ploop/101.sock
uri="nbd+unix:///?socket=$sock"
directory=/vz/private/101/root.hdd

fail ()
{
  echo "FAILED: $*"
  exit 1
}

at_exit ()
{
  local status=$?
  if [ $status -ne 0 ]; then journalctl --no-pager -b -o short-monotonic -t systemd -t nbdkit > "$share/journal" || :; fi
}
trap at_exit EXIT

property ()
{
  systemctl show --value -P "$1" "$unit.service"
}

expect_property ()
{
  [ "$(property "$1")" = "$2" ] || fail "$3: $1 is $(property "$1"), must be $2"
}

until_true ()
{
  local end=$((SECONDS + 60))
  until "$@"; do
    [ $SECONDS -lt $end ] || fail "not within a minute: $*"
    sleep 0.1
  done
}

echo "@@ the first client starts the server"
systemctl is-active --quiet "$unit.socket" || fail "the socket is not there after boot"
expect_property ActiveState inactive "before the first client"
[ "$(stat -c '%a %U' "$sock")" = '660 root' ] || fail "$(stat -c '%a %U' "$sock")"
[ "$(nbdinfo --size "$uri")" = 67108864 ] || fail "not the size of the disk"
expect_property ActiveState active "with the first client"
[ "$(property Type)" != notify ] ||
  expect_property StatusText "Serving $directory for writing" "ready"
pid=$(property MainPID)

echo "@@ it is confined"
for line in 'CapBnd:	0000000000000000' 'NoNewPrivs:	1' 'Seccomp:	2'; do
  grep -qx "$line" "/proc/$pid/status" || fail "its status has no '$line'"
done
nsenter -t "$pid" -m test ! -w /var || fail "it may write to /var"
nsenter -t "$pid" -m test ! -e /home || [ -z "$(nsenter -t "$pid" -m ls /home)" ] ||
  fail "it sees /home"
[ "$(readlink "/proc/$pid/ns/net")" != "$(readlink /proc/1/ns/net)" ] ||
  fail "it is in the network"

echo "@@ and still does all that it can"
# A thread that writes past the page cache, which is not at the beginning of the file,
# has an io_uring as long as its client stays.
has_io_uring ()
{
  find "/proc/$pid/fd" -lname 'anon_inode:\[io_uring\]' | grep -q .
}
exec {client}> >(exec qemu-io -f raw -d unmap "$uri" > /root/log 2>&1)
client_pid=$!
printf '%s\n' 'write 32M 16M' 'write -P 7 1M 2M' 'discard 2M 1M' 'write -z 3M 1M' flush >&$client
until_true has_io_uring
exec {client}>&-
wait $client_pid || fail "it does not write, trim, zero or flush"
! grep -i 'failed' /root/log || fail "it does not write, trim, zero or flush"
! journalctl --no-pager -u "$unit.service" | grep -Ei 'not permitted|denied' ||
  fail "something is forbidden that it wants"

same ()
{
  qemu-io -f raw -c 'read -P 7 1M 1M' -c 'read -P 0 2M 2M' "$uri" > /root/log &&
    ! grep failed /root/log
}
same || fail "not the content that was written"

echo "@@ kill -9"
kill -9 "$pid"
until_true systemctl is-active --quiet "$unit.socket"
same || fail "what was answered is not there after kill -9"
[ "$(property MainPID)" != "$pid" ] || fail "it was not killed"
expect_property NRestarts 1 "after kill -9"

echo "@@ a disk that is not there yet"
systemctl stop "$unit.service"
mv "$directory" "$directory.away"
same &
waiting=$!
has_failed () { [ "$(property NRestarts)" -ge 2 ]; }
until_true has_failed
systemctl is-active --quiet "$unit.socket" || fail "the socket has gone with its disk"
mv "$directory.away" "$directory"
wait $waiting || fail "the client that waited was not served"

echo "@@ the drop-ins of the manual page"
# add_dropin KIND NAME SED-EXPRESSION...: with other names of what is on this machine.
add_dropin ()
{
  local kind=$1 directory=/etc/systemd/system/nbdkit-ploop@$2.$1.d
  shift 2
  mkdir "$directory"
  sed "$@" "$share/$kind.conf" > "$directory/here.conf"
  systemctl daemon-reload
}
add_dropin socket 101 -e s/192.0.2.1/127.0.0.1/ -e s/libvirt-qemu/daemon/
systemctl restart $unit.socket
[ "$(stat -c '%a %G' "$sock")" = '660 daemon' ] || fail "$(stat -c '%a %G' "$sock")"
[ "$(nbdinfo --size nbd://127.0.0.1)" = 67108864 ] || fail "not on TCP"
same || fail "not on the Unix socket as well"

# Another server's export is the base of a disk in another place, of somebody else.
mkdir -m 0700 /images
head -c 64M /dev/zero | tr '\0' '\7' > /root/base
nbdkit -i 127.0.0.1 -p 10810 file /root/base
ploop-img create -q /images/one.hds 64M
chown -R daemon: /images
echo 'DISK=/images/one.hds
OPTIONS="base=nbd://127.0.0.1:10810"' > /etc/ploop/one.conf
add_dropin service one -e s/^User=.*/User=daemon/
systemctl start nbdkit-ploop@one.socket
qemu-io -f raw -c 'read -P 7 1M 1M' -c 'write -P 8 1M 64k' -c 'read -P 8 1M 64k' \
  -c 'read -P 7 1088k 64k' 'nbd+unix:///?socket=/run/nbdkit-ploop/one.sock' > /root/log
! grep failed /root/log || { cat /root/log; fail "a remote base"; }

# A block device is.
loop=$(losetup --find --show /root/base)
ploop-img create -q /images/two.hds 64M
echo "DISK=/images/two.hds
OPTIONS=base=$loop" > /etc/ploop/two.conf
add_dropin service two -e /^User=/d -e "s,/dev/vg0/golden,$loop,"
chown -R root: /images
systemctl start nbdkit-ploop@two.socket
qemu-io -f raw -c 'read -P 7 1M 1M' -c 'write -P 8 1M 64k' -c 'read -P 7 1088k 64k' \
  'nbd+unix:///?socket=/run/nbdkit-ploop/two.sock' > /root/log
! grep failed /root/log || { cat /root/log; fail "a block device as base"; }

# Without, a disk in another place is served for reading.
ploop-img create -q /images/three.hds 64M
echo DISK=/images/three.hds > /etc/ploop/three.conf
systemctl start nbdkit-ploop@three.socket
nbdinfo --json 'nbd+unix:///?socket=/run/nbdkit-ploop/three.sock' |
  grep -q '"is_read_only": true' || fail "writes where it may not"

echo "@@ stop under load, and with a client that is silent"
before=$(stat -c %y "$directory/root.hds")
write_for_ever ()
{
  while :; do printf 'aio_write -P 7 %uM 1M\n' {16..63} 2> /dev/null || return; done
}
qemu-io -f raw "$uri" < <(write_for_ever) > /root/load 2>&1 &
load=$!
is_writing () { [ "$(stat -c %y "$directory/root.hds")" != "$before" ]; }
until_true is_writing
exec {client}> >(exec qemu-io -f raw "$uri" > /root/log 2>&1)
systemctl stop "$unit.socket"
exec {client}>&-
kill "$load" 2> /dev/null || :
expect_property ActiveState inactive "after the stop of its socket"
expect_property Result success "after the stop of its socket"
expect_property ExecMainStatus 0 "after the stop of its socket"
[ ! -e "$sock" ] || fail "the socket is still there"
ploop-img check "$directory" > /root/check || [ $? -eq 3 ] ||
  { cat /root/check; fail "errors in the image"; }
[ "$(od -A n -t x4 -j 44 -N 4 "$directory/root.hds" | tr -d ' ')" = 00000000 ] ||
  fail "the image is in use"
SCRIPT

guest_limit=400
run_guest -s "$tmp/prepare" "$tmp/script" "$share" || {
  status=$?
  tail -n 100 "$share/journal"
  fail "the guest's script: status $status"
}
say "passed"
