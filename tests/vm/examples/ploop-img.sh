# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034
#
# ploop-img(1): ../examples-run.sh tells what this table says.

disk=/vz/private/101/root.hdd

snapshot_f2 ()
{
  ploop-img snapshot create --guid="{f2a8c8d6-1f3c-4c8e-9a55-7f0e0b3a4f11}" root.hdd
}

# marked DIRECTORY: a disk with a bitmap, in its place.
marked ()
{
  rm -rf "$1"
  cp -a --sparse=never "$share/standard/marked.hdd" "$1"
}

# An image with a bitmap, and then closed by a program that knows none.
bitmap_behind_its_back ()
{
  ploop-img bitmap add "$1"
  dd if=/dev/zero of="$1" bs=4 seek=11 count=1 conv=notrunc
}

# A bitmap of the same size and another name, in a lower image.
bitmap_0f ()
{
  ploop-img bitmap add --set --uuid=0f6a2a9e-4a53-4f53-8a4c-1fb0a8f4f0c2 root.hdd/root.hds
}

example 'create disk.hds 100G' --before 'rm disk.hds'
example 'create --descriptor' --before 'rm -r $disk' --goes-on --after 'same ct101.raw $disk'
example 'create --overlay-of' --after 'ploop-img check trial.hds'
example 'info disk.hds' --before 'rm disk.hds; ploop-img create disk.hds 100G'
example 'info /vz/private/101/root.hdd' --before 'one_snapshot $disk'
example 'map /vz/private/101/root.hdd' --before 'one_snapshot $disk' --goes-on
example 'map --output=svg' --after 'grep -q "</svg>" root.svg'
example 'check --repair=all disk.hds' --before 'cp "$share/standard/shared.hds" disk.hds'
example 'check disk.hds' --before 'rm disk.hds; ploop-img create disk.hds 100G'
example 'check root.hdd' --before 'one_snapshot root.hdd; rm root.hdd/root.hds' \
  --status 2 --damaged
example 'compact disk.hds' --before 'write_disk disk.hds "write 4M 8M" "discard 4M 4M"'
example 'compare' --before 'ploop-img convert --force -O raw $disk ct101.raw'
example 'convert -O raw /vz/private/101/root.hdd ct101.raw' \
  --before 'rm ct101.raw disk.hds' \
  --after 'same $disk ct101.raw; same disk.raw disk.hds'
example 'convert -O raw root.hdd -' --after 'same root.hdd copy.hds'
example 'resize root.hdd 2T'
example 'snapshot list root.hdd' \
  --before 'ploop-img snapshot switch --discard root.hdd \
              {00000001-1111-2222-3333-444444444444}'
example 'snapshot create root.hdd'
example 'snapshot delete root.hdd' --before snapshot_f2
example 'snapshot switch --keep root.hdd' --before snapshot_f2
example 'snapshot mark-temporary root.hdd' --before snapshot_f2
example 'merge --all root.hdd' --after '! ls root.hdd/root.hds.*'
example 'bench --write' --ignore 'does not allow direct I/O'
example 'rescue -O raw --map=root.map root.hds root.raw' \
  --before 'cp root.hdd/root.hds .; truncate -s 3M root.hds' --status 2 --damaged
example 'rescue -O raw --version=2' \
  --before 'ploop-img create root.hds 10G; write_disk root.hds "write -P 5 200M 1M"
            ploop-img convert -O raw root.hds before.raw
            dd if=/dev/zero of=root.hds bs=512 count=1 conv=notrunc' \
  --status 2 --after 'same before.raw root.raw' --damaged
example 'descriptor restore /vz/private/101/root.hdd' \
  --before 'one_snapshot $disk; rm $disk/DiskDescriptor.xml' --after 'ploop-img check $disk'
example 'descriptor restore --file=base.hds' \
  --before 'cd root.hdd; rm DiskDescriptor.xml; mv root.hds base.hds
            mv $(ls -tr root.hds.* | head -n 1) second.hds; mv root.hds.* top.hds' \
  --after 'ploop-img check root.hdd'
example 'bitmap list' --before 'marked $disk'
example 'bitmap add --granularity=1M disk.hds'
example 'bitmap remove --all disk.hds' --before 'bitmap_behind_its_back disk.hds'
example 'bitmap dump' --before 'marked root.hdd'
example 'bitmap merge' --before 'marked root.hdd; bitmap_0f'
