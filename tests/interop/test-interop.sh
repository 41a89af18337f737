#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that we and the other programs read what each of us wrote: nbdcopy in,
# qemu-img check, ploop check and qemu-img compare against a raw oracle; qemu-io
# through NBD, then qemu on the file, then us again; images made by ploop-img,
# by ploop and by qemu; qemu-img over NBD; a server in the background.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires qemu-img qemu-io nbdcopy nbdinfo

# make_raw FILE SECTORS: a sparse file with data here and there, also in its
# last sector.
make_raw ()
{
  local i sectors=$2
  truncate -s $((sectors * 512)) "$1"
  for i in 0 1 127 128 2047 2048 5000 9999 20000 $((sectors - 1)); do
    [ "$i" -lt "$sectors" ] || continue
    dd if=/dev/urandom of="$1" bs=512 seek="$i" conv=notrunc status=none \
      count=$((sectors - i < 40 ? sectors - i : 40)) iflag=fullblock
  done
}

# qemu_clean FILE
qemu_clean ()
{
  qemu-img check -f parallels "$1" > "$tmp/check.log" 2>&1 || {
    cat "$tmp/check.log"
    fail "qemu-img check: $1"
  }
}

qemu_equal ()
{
  qemu-img compare -q -f parallels -F raw "$1" "$2" ||
    fail "$1 is not what it must be, says qemu"
}

# write_both COMMAND...: qemu-io through us, and the same to the oracle.
write_both ()
{
  local args=() c
  for c in "$@"; do args+=(-c "$c"); done
  qemu-io -f raw "${args[@]}" -c flush "$uri" > "$tmp/io.log" ||
    { cat "$tmp/io.log"; fail "qemu-io over NBD"; }
  qemu-io -f raw "${args[@]}" "$tmp/raw" > /dev/null
}

# The round of one image FILE; `ploop` as second argument: ploop check must
# find it clean, too.
round ()
{
  local file=$1 checker=${2:-} sectors
  say "$(basename "$file"): $(qemu-img info -f parallels "$file" |
         grep 'virtual size')"
  start_nbdkit file="$file"
  sectors=$(($(nbdinfo --size "$uri") / 512))
  rm -f "$tmp/raw"
  make_raw "$tmp/raw" "$sectors"
  nbdcopy --flush "$tmp/raw" "$uri"
  [ "$(in_use "$file")" = 746f6e59 ] || fail "$file: not marked in use"
  stop_nbdkit
  [ "$(in_use "$file")" = 00000000 ] || fail "$file: still marked in use"
  qemu_clean "$file"
  if [ -n "$checker" ]; then ploop_check_delta "$file"; fi
  qemu_equal "$file" "$tmp/raw"

  say "  qemu-io through us, qemu reads the file"
  start_nbdkit file="$file"
  write_both 'write -P 0x41 0 512' 'write -P 0x42 3000k 300k' \
    'write -z 1000k 70k' 'write -P 0x43 4093k 4k' 'write -P 0x44 100k 1536' \
    'read -P 0x42 3000k 300k' 'read -P 0 1000k 70k' \
    "write -P 0x45 $(((sectors - 1) * 512)) 512"
  stop_nbdkit
  qemu_clean "$file"
  qemu_equal "$file" "$tmp/raw"

  say "  qemu writes the file, we read it"
  qemu-io -f parallels -c 'write -P 0x51 5000k 333k' -c 'write -P 0x52 0 1k' \
    "$file" > /dev/null
  qemu-io -f raw -c 'write -P 0x51 5000k 333k' -c 'write -P 0x52 0 1k' \
    "$tmp/raw" > /dev/null
  start_nbdkit -r file="$file"
  qemu-img compare -q -f raw -F raw "$uri" "$tmp/raw" ||
    fail "$file: we do not read what qemu wrote"
  stop_nbdkit

  say "  and we write on"
  start_nbdkit file="$file"
  write_both 'write -P 0x61 5100k 64k' 'write -P 0x62 7000k 1M'
  nbdcopy "$uri" "$tmp/out"
  cmp "$tmp/out" "$tmp/raw" || fail "$file: nbdcopy reads something else"
  rm "$tmp/out"
  stop_nbdkit
  qemu_clean "$file"
  qemu_equal "$file" "$tmp/raw"
  if [ -n "$checker" ]; then ploop_check_delta "$file"; fi
  "$PLOOP_IMG" check "$file" > "$tmp/check.log" ||
    { cat "$tmp/check.log"; fail "ploop-img check $file"; }
}

has_ploop=
if has_ploop; then
  has_ploop=ploop
else
  say "no ploop here: neither its images nor its check"
fi

for version in 1 2; do
  for cluster in 32K 64K 1M; do
    due || continue
    file=$tmp/img-v$version-$cluster.hds
    "$PLOOP_IMG" create -q --version=$version --cluster-size=$cluster \
      "$file" 16M
    round "$file" $has_ploop
    rm "$file"
  done
  # ploop does not know disks that end inside a cluster.
  file=$tmp/img-v$version-odd.hds
  "$PLOOP_IMG" create -q --version=$version --cluster-size=1M "$file" \
    $((16 * 1048576 + 512))
  round "$file"
  rm "$file"
done

# qemu's own; ploop refuses those whose clusters it does not know.
for cluster in 512 4096 258048; do
  due || continue
  file=$tmp/qemu-$cluster.hds
  qemu-img create -q -f parallels -o cluster_size=$cluster "$file" 9M
  round "$file"
  rm "$file"
done
for cluster in 65536 1048576; do
  due || continue
  file=$tmp/qemu-$cluster.hds
  qemu-img create -q -f parallels -o cluster_size=$cluster "$file" 16M
  round "$file" $has_ploop
  rm "$file"
done

if [ -n "$has_ploop" ]; then
  # Version 2 ploop only makes where its kernel module is loaded.
  for cluster in 64 2048; do
    dir=$tmp/ploop-$cluster
    mkdir "$dir"
    run_ploop "$dir" init -s 16M -v 1 -t none -b $cluster root.hds \
      > /dev/null 2>&1 || fail "ploop init"
    round "$dir/root.hds" ploop
    # The descriptor beside it is left alone, and the real tool still takes
    # image and descriptor together.
    run_ploop "$dir" check DiskDescriptor.xml > "$tmp/check.log" 2>&1 || {
      # It checks whether the file is sparse even here.
      grep -q 'sparse' "$tmp/check.log" ||
        { cat "$tmp/check.log"; fail "ploop check DiskDescriptor.xml"; }
    }
    run_ploop "$dir" info -s -d DiskDescriptor.xml > "$tmp/info.log" 2>&1 ||
      { cat "$tmp/info.log"; fail "ploop info"; }
  done
fi

say "qemu-img over NBD"
file=$tmp/over-nbd.hds
"$PLOOP_IMG" create -q "$file" 40M
rm -f "$tmp/raw"
make_raw "$tmp/raw" $((40 * 2048))
start_nbdkit file="$file"
qemu-img info "$uri" | grep -q 'virtual size: 40 MiB' || fail "qemu-img info"
qemu-img convert -n -f raw -O raw "$tmp/raw" "$uri"
qemu-img convert -f raw -O qcow2 "$uri" "$tmp/out.qcow2"
qemu-img compare -q -f qcow2 -F raw "$tmp/out.qcow2" "$tmp/raw" ||
  fail "qemu-img convert over NBD"
qemu-img map -f raw --output=json "$uri" > /dev/null
stop_nbdkit
qemu_clean "$file"
qemu_equal "$file" "$tmp/raw"

# nbdkit forks between opening the image and serving it.
if nbdkit_is_plain; then
  say "in the background"
  rm -f "$sock" "$pid_file"
  nbdkit -U "$sock" -P "$pid_file" "$PLUGIN" file="$file"
  # The parent is gone before the child has written its number.
  wait_until test -s "$pid_file" || fail "the server does not come up"
  nbdkit_pid=$(cat "$pid_file")
  write_both 'write -P 0x71 0 4k' 'write -P 0x72 39M 1M'
  if qemu-io -f parallels -c 'read 0 512' "$file" > /dev/null 2>&1; then
    fail "the lock was lost in the background"
  fi
  kill -TERM "$nbdkit_pid"
  wait_until _has_ended "$nbdkit_pid" || fail "the server does not end"
  nbdkit_pid=
  [ "$(in_use "$file")" = 00000000 ] || fail "still marked in use"
  qemu_clean "$file"
  qemu_equal "$file" "$tmp/raw"
fi
say "passed"
