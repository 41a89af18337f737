# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034

# What the tests of the documents' examples share.  Sourced after guest.sh.
# examples.pl says what an example is, examples-run.sh how it is run, and the table
# examples/NAME.sh what there is to those of the document NAME.

requires_examples ()
{
  requires_guest
  requires perl nbdcopy nbdinfo mke2fs sfdisk qemu-img qemu-system-x86_64 zstd sudo ip od
}

# The files of a reader, in $share/standard: a bootable disk with a file system, as a raw
# disk, an image, a disk with two snapshots, and a chain without a descriptor.
make_standard_files ()
{
  local here=$share/standard
  local boot='\xfc\x31\xc0\x8e\xd8\xbe\x16\x7c\xac\x84\xc0\x74\x06\xba\xf8\x03\xee\xeb\xf5'
  mkdir -p "$here/root.hdd" "$tmp/files"
  echo "Hello from inside a ploop image." > "$tmp/files/hello.txt"
  truncate -s 16M "$here/disk.raw"
  mke2fs -q -t ext4 -d "$tmp/files" "$here/disk.raw"
  # It writes its text to the first serial line and halts.
  printf '%b' "$boot"'\xf4\xeb\xfdbooted from ploop\r\n\0' |
    dd of="$here/disk.raw" conv=notrunc status=none
  printf '\x55\xaa' | dd of="$here/disk.raw" bs=1 seek=510 conv=notrunc status=none
  cp --sparse=always "$here/disk.raw" "$here/base.raw"
  cp --sparse=always "$here/disk.raw" "$here/ct101.raw"
  (
    cd "$here"
    "$PLOOP_IMG" create --from=disk.raw disk.hds
    zstd -q disk.raw -o disk.raw.zst
    "$PLOOP_IMG" create --descriptor --from=disk.raw root.hdd/root.hds
    "$PLOOP_IMG" snapshot create --guid='{00000001-1111-2222-3333-444444444444}' root.hdd
    change_disk file=root.hdd
    "$PLOOP_IMG" snapshot create --guid='{00000002-1111-2222-3333-444444444444}' root.hdd
    change_disk file=root.hdd
    "$PLOOP_IMG" create --overlay-of=base.raw middle.hds
    change_disk file=middle.hds base=base.raw
    "$PLOOP_IMG" create --overlay-of=middle.hds top.hds
    change_disk file=top.hds base=middle.hds base=base.raw
    make_one_snapshot one.hdd
    make_marked marked.hdd
    make_shared shared.hds
    make_parted parted.hdd
  ) > "$tmp/standard.log" || { cat "$tmp/standard.log"; fail "the standard files"; }
}

# A disk of 16 MiB with one snapshot, which differs from it.
make_one_snapshot ()
{
  mkdir "$1"
  "$PLOOP_IMG" create --descriptor "$1/root.hds" 16M
  write_disk "$1" 'write 0 1M' 'write 1M 1M' 'write 2M 1M'
  "$PLOOP_IMG" snapshot create "$1"
  write_disk "$1" 'write 1M 1M' 'write 2M 1M'
}

# One with a changed-block bitmap, in which two ranges are marked.
make_marked ()
{
  local uuid name=3f2b8c1e-5d0a-4e0f-9d3c-6a1c2f7b9e44
  make_one_snapshot "$1"
  unpack_corpus
  "$PLOOP_IMG" bitmap add --uuid=$name "$1"
  uuid=$("$PLOOP_IMG" bitmap list "$tmp/corpus/g-cbt/one.hds" | sed -n '2s/ .*//p')
  "$PLOOP_IMG" bitmap merge --into=$name --source="$tmp/corpus/g-cbt/one.hds" "$1" "$uuid"
}

# An image with two clusters of the disk in one place.
make_shared ()
{
  "$PLOOP_IMG" create --cluster-size=32K "$1" 8M
  write_disk "$1" 'write 0 128k'
  # The entries of the table are from byte 64 on.
  dd if="$1" of="$1" bs=4 skip=17 seek=26 count=1 conv=notrunc status=none
}

# A disk as containers have it, with one partition.
make_parted ()
{
  local raw=$tmp/parted.raw
  truncate -s 16M "$raw"
  echo 2048,,L | sfdisk -q --label gpt "$raw"
  mkdir -p "$tmp/files/etc"
  echo ct101 > "$tmp/files/etc/hostname"
  mke2fs -q -t ext4 -d "$tmp/files" -E offset=1048576 "$raw" 14M
  mkdir "$1"
  "$PLOOP_IMG" create --descriptor --from="$raw" "$1/root.hds"
}

# write_disk DISK COMMAND...: qemu-io on it.
write_disk ()
{
  start_nbdkit "$1"
  io "${@:2}"
  stop_nbdkit
}

# change_disk PARAMETER...: something new in the last two clusters of a disk.
change_disk ()
{
  start_nbdkit "$@"
  io 'write -P 7 14M 4k' 'write -P 9 15M 64k'
  stop_nbdkit
}

# run_examples DOCUMENT TABLE: run the commands of a document, all of them but those that
# the table names with the reason, and compare what they print.
run_examples ()
{
  local nr_commands nr_done=0 run=0 elsewhere=0 left_out=0
  perl "$abs_srcdir/examples.pl" "$1" > "$tmp/examples" || fail "examples.pl $1"
  nr_commands=$(grep -c "^doc_command '" "$tmp/examples") || :
  cat "$abs_srcdir/examples-run.sh" "$2" "$tmp/examples" - > "$tmp/script" <<< finish
  _run_pass plain
  nr_done=$((run + left_out))
  if grep -q '^doc_command .*systemctl' "$tmp/examples"; then
    requires_systemd
    requires_units
    _run_pass services -s "$tmp/prepare"
    nr_done=$((nr_done + run + left_out))
  fi
  [ "$nr_commands" -gt 0 ] && [ $((nr_done + elsewhere)) -eq "$nr_commands" ] ||
    fail "${1##*/} has $nr_commands commands: $nr_done were run or left out," \
         "$elsewhere are run elsewhere"
  say "${1##*/}: $nr_commands commands, $elsewhere of them elsewhere"
}

# Sets run, elsewhere and left_out, of run_examples: how many commands.
_run_pass ()
{
  local pass=$1 status=0 counted='' scale=${PLOOP_TEST_SCALE:-100}
  shift
  say "pass: $pass"
  guest_says () { counted=$1; }
  : > "$tmp/prepare"
  rm -rf "$share/outputs"
  # shellcheck disable=SC2034  # of guest.sh
  guest_limit=900
  run_guest "$@" -m 1024 "$tmp/script" "$share" "$pass" "$scale" "$_seed" || status=$?
  perl "$abs_srcdir/examples.pl" --compare "$share/outputs" || status=1
  [ "$status" -eq 0 ] || fail "not as printed"
  read -r _ run elsewhere left_out <<< "$counted"
  [ "$left_out" -eq 0 ] || [ "$scale" -lt 100 ] || fail "commands were left out"
}
