# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034
#
# nbdkit-ploop-plugin(1): ../examples-run.sh tells what this table says.

example 'ploop-img create disk.hds 10G' \
  --before 'rm -f disk.hds' \
  --after 'cmp -n $((16 << 20)) disk.raw copy.raw; same disk.hds copy.raw'
example "nbdinfo --list 'nbd+unix:///?socket=/tmp/ct.sock'" --goes-on
example 'snapshot.raw' \
  --after 'ploop-img compare --snapshot="{00000001-1111-2222-3333-444444444444}" \
             /vz/private/101/root.hdd snapshot.raw'
example $'EXAMPLES\nnbdkit -r -i 127.0.0.1 ploop dir=/vz/private' \
  --after 'same /vz/private/101/root.hdd ct101.raw'
example 'nbdkit ploop file=root.hdd overlay=/tmp/trial.hds' \
  --after 'ploop-img check /tmp/trial.hds'
example 'base=nbd://store/golden' --before start_store
example '"$uri" disk.qcow2' --after 'same disk.hds disk.qcow2'
example 'mount /dev/nbd0 /mnt' --after 'grep Hello /mnt/hello.txt' --goes-on
example 'umount /mnt'

# ---- EXAMPLES of access and encryption

example 'mkdir -m 700 pki' --goes-on
example 'nbdkit --tls=require --tls-certificates=pki' --before 'name_store 127.0.0.1' \
  --after 'same disk.hds copy.raw; same disk.hds disk.qcow2'
example 'psktool' --after 'same disk.hds copy.raw'

# ---- THE KERNEL'S CLIENT

example 'nbd-client store /dev/nbd0 -b 512 -C 4' --connected \
  --before 'name_store 127.0.0.1; nbdkit -i 127.0.0.1 ploop disk.hds'
example 'nbd-client -unix /run/relay.sock' --connected \
  --before 'modprobe nbd; name_store 127.0.0.1; nbdkit -i 127.0.0.1 ploop disk.hds'

# ---- Services

example 'enable --now nbdkit-ploop@101.socket' --goes-on
example 'enable --now nbdkit-ploop@containers.socket' \
  --after 'systemctl disable --now nbdkit-ploop@containers.socket'
example 'enable --now ploop-attach@golden.service' --before start_store \
  --after 'systemctl disable --now ploop-attach@golden.service'

# ---- MIGRATION

# The disk of a container, with a partition.
parted ()
{
  rm -r root.hdd
  cp -a "$share/standard/parted.hdd" root.hdd
}

# A volume, as /dev/vg0/ct101.
volume ()
{
  modprobe loop
  truncate -s 20M /reader/volume
  mkdir /dev/vg0
  ln -s "$(losetup --find --show /reader/volume)" /dev/vg0/ct101
}

example 'nbdcopy "$uri" rootfs.img' --before 'parted; modprobe loop' \
  --after 'tar -xzOf rootfs.tar.gz ./etc/hostname | grep ct101'
example 'nbdcopy "$uri" /dev/vg0/ct101' --before 'parted; volume' \
  --after 'e2fsck -fn /dev/vg0/ct101; losetup -D
           [ "$(dumpe2fs -h /reader/volume | grep -c "Block count: *20480")" -eq 1 ]'
example 'convert -O qcow2 "$uri" vm101.qcow2' --goes-on \
  --before 'cp -a "$share/standard/root.hdd" harddisk.hdd'
example 'compare -f raw -F qcow2 "$uri" vm101.qcow2'
example $'A host full of them\nnbdkit -r' --after 'same /vz/private/101/root.hdd ct101.raw'

# ---- FILTERS

example $'FILTERS\nnbdkit -U cow.sock' --before 'ploop-img create --force disk.hds 16M
  cp disk.hds before.hds' --after 'cmp disk.hds before.hds'
example '--filter=readahead' --after 'same disk.hds copy.raw'
example '--filter=stats' --after 'grep -q "^write:" stats.txt; same disk.hds disk.raw'
example '--filter=log' --after 'grep -q Connect requests.txt'
example '--filter=retry ploop' --after 'same root.hdd copy.raw'
example 'part1.raw' --before parted --after 'e2fsck -fn part1.raw'
example '--filter=ext2' --before parted
example '--filter=multi-conn' --after 'same disk.hds disk.raw'
example '--filter=rate' --after 'same disk.hds copy.raw'
example '--filter=delay' --after 'same disk.hds disk.raw'
example '--filter=error' --after 'same disk.hds disk.raw'
example '--filter=exitlast' --after 'same disk.hds disk.raw'

# ---- Statistics

example 'stats-file=/var/lib/prometheus/node-exporter/ploop-disk.prom' \
  --after 'grep -q "^ploop_requests_total" /var/lib/prometheus/node-exporter/*.prom'
example $'SIGUSR1\nkill -USR1' \
  --before 'nbdkit -P /run/ploop.pid -U /tmp/disk.sock ploop disk.hds'
