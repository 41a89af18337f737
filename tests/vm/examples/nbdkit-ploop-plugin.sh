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
example 'nbdcopy nbd://127.0.0.1/101/root.hdd ct101.raw' \
  --after 'same /vz/private/101/root.hdd ct101.raw'
example 'nbdkit ploop file=root.hdd overlay=/tmp/trial.hds' \
  --after 'ploop-img check /tmp/trial.hds'
example 'base=nbd://store/golden' --before start_store
example "--run 'qemu-img convert -O qcow2" --after 'same disk.hds disk.qcow2'
example 'mount /dev/nbd0 /mnt' --after 'grep Hello /mnt/hello.txt' --goes-on
example 'umount /mnt'
