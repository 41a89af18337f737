#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Images that ploop-img creates are those that ploop would have made: header
# equal byte for byte, and accepted by qemu-img and by ploop.
#
# Without its kernel module ploop makes no v2 images, and none of 2 TiB or
# more.  Versions differ in nothing but the signature in the first 16 bytes, so
# a v2 header is compared with that of v1 from byte 16 on; the signature, and a
# few whole headers, with images of the corpus.

set -euo pipefail
source "${abs_top_srcdir}/tests/functions.sh"

requires ploop qemu-img qemu-io perl

K=1024 M=$((1024 * 1024)) T=$((1024 * 1024 * 1024 * 1024))

cd "$tmp"
unpack_corpus

# header FILE [FROM]: bytes FROM to 63.
header ()
{
  od -A n -v -t x1 -j "${2:-0}" -N $((64 - ${2:-0})) "$1"
}

# json_members NAME... < JSON
json_members ()
{
  perl -MJSON::PP -0777 -e '
    my $members = decode_json (<STDIN>);
    print join (" ", map { $members->{$_} } @ARGV), "\n";' "$@"
}

signatures=([1]=$(header corpus/a-init-v1-b2048/root.hds | head -n 1)
            [2]=$(header corpus/a-init-v2-b2048/root.hds | head -n 1))

# The header that ploop writes for a disk of SIZE bytes, from byte 16 on.
ploop_header ()
{
  local size=$1 cluster_size=$2

  rm -rf ploop-init
  mkdir ploop-init
  run_ploop ploop-init init -s $((size / K))K -v1 \
            -b $((cluster_size / 512)) -t none d.hds >log 2>&1 ||
    fail "ploop init -s $size -b $cluster_size: $(cat log)"
  header ploop-init/d.hds 16
  rm -r ploop-init
}

is_accepted_by_qemu ()
{
  qemu-img info -f parallels --output=json d.hds >qemu.json ||
    fail "$what: qemu-img info"
  test "$(json_members virtual-size <qemu.json)" = "$size" ||
    fail "$what: qemu-img sees $(json_members virtual-size <qemu.json) bytes"
  rc=0
  qemu-img check -f parallels d.hds >log 2>&1 || rc=$?
  if test $rc -eq 0; then
    return 0
  fi
  # qemu 7.2 takes all but the first cluster of header and BAT for leaks as long
  # as nothing is allocated, also in an image that ploop made.
  if test $rc -ne 3 || test "$(stat -c %s d.hds)" -le "$cluster_size"; then
    fail "$what: qemu-img check: $(cat log)"
  fi
  cp d.hds copy.hds
  qemu-io -f parallels -c 'write 0 512' copy.hds >/dev/null ||
    fail "$what: qemu-io cannot write to it"
  qemu-img check -f parallels copy.hds >log 2>&1 ||
    fail "$what: qemu-img check, with one cluster: $(cat log)"
  rm copy.hds
}

# check may write to the image, so it gets a copy.  It must find nothing: what
# it found it would have mended.
is_accepted_by_ploop ()
{
  cp --sparse=never d.hds copy.hds
  run_ploop . check -f -c copy.hds >log 2>&1 ||
    fail "$what: ploop check: $(cat log)"
  cmp d.hds copy.hds || fail "$what: ploop check changed it: $(cat log)"
  rm copy.hds
}

is_right_for_ploop_img ()
{
  local clusters=$(((size + cluster_size - 1) / cluster_size))
  local offset=$(((64 + 4 * clusters + cluster_size - 1) / cluster_size *
                 cluster_size))

  "$PLOOP_IMG" check d.hds >log 2>&1 ||
    fail "$what: ploop-img check: $(cat log)"
  "$PLOOP_IMG" info --output=json d.hds >info.json || fail "$what: info"
  test "$(json_members version size cluster-size clusters allocated-clusters \
            data-offset flags in-use state extension-offset <info.json)" = \
       "$version $size $cluster_size $clusters 0 $offset 1 0 clean 0" ||
    fail "$what: ploop-img info: $(cat info.json)"
  test "$(stat -c %s d.hds)" -eq $offset ||
    fail "$what: the file has $(stat -c %s d.hds) bytes, not $offset"
}

# create VERSION SIZE CLUSTER_SIZE: makes d.hds, and checks what holds always.
create ()
{
  version=$1 size=$2 cluster_size=$3
  what="v$version, size $size, cluster $cluster_size"
  rm -f d.hds
  "$PLOOP_IMG" create --version=$version --cluster-size=$cluster_size \
               d.hds $size >log 2>&1 || fail "$what: $(cat log)"
  test "$(header d.hds | head -n 1)" = "${signatures[version]}" ||
    fail "$what: wrong signature: $(header d.hds | head -n 1)"
  is_accepted_by_qemu
  is_right_for_ploop_img
}

# ---- Sizes that ploop makes ------------------------------------------------

# The last ones are the largest that v1 can have: there the BAT takes one
# cluster of 64 MiB, or 9 of 1 MiB, and the last cluster of a full image must
# begin before 2 TiB.
# The geometry has a rule of its own above 504 MiB and below 8 GiB.
while read -r size cluster_size; do
  expected=$(ploop_header $((size)) $((cluster_size)))
  for version in 1 2; do
    due || continue
    create $version $((size)) $((cluster_size))
    is_accepted_by_ploop
    test "$(header d.hds 16)" = "$expected" ||
      fail "$what: header: $(header d.hds 16), and that of ploop: $expected"
  done
done <<'END'
M       32*K
M       64*K
M       M
100*M   32*K
100*M   64*K
100*M   M
64*M    64*M
128*M   64*M
3277*32*K 32*K
1639*64*K 64*K
103*M   M
504*M   32*K
504*M+32*K 32*K
8192*M-32*K 32*K
8192*M  M
8193*M  M
2*T-64*M 64*M
2*T-9*M M
END

# ---- Sizes that only v2 can have -------------------------------------------

# size, cluster size, heads, cylinders: above 8 GiB sectors is 32 and heads 16
# for every multiple of 256 KiB.
while read -r size cluster_size cylinders; do
  create 2 $((size)) $((cluster_size))
  is_accepted_by_ploop
  test "$(json_members heads cylinders <info.json)" = "16 $((cylinders))" ||
    fail "$what: geometry: $(cat info.json)"
done <<'END'
2*T     M       2*T/512/512
2*T     64*M    2*T/512/512
16*T    M       16*T/512/512
16*T    64*M    16*T/512/512
END

# ---- Whole headers, made by ploop of both versions -------------------------

while read -r name; do
  image=corpus/$name/root.hds
  "$PLOOP_IMG" info --output=json $image >info.json
  read -r version size cluster_size \
       < <(json_members version size cluster-size <info.json)
  create $version $size $cluster_size
  test "$(header d.hds)" = "$(header $image)" ||
    fail "$what: header: $(header d.hds), and that of $image: $(header $image)"
  cmp d.hds $image || fail "$what: not as $image"
done <<'END'
a-init-v1-b2048
a-init-v2-b64
a-init-v2-b2048
a-init9-v2-b2048
END

# An image that was written to differs only behind the header.
create 2 $((1024 * M)) $((32 * K))
test "$(header d.hds)" = "$(header corpus/b-multibat-v2-b64/root.hds)" ||
  fail "$what: header: $(header d.hds)"

# ---- Disks that are no multiple of the cluster: not for ploop --------------

while read -r size cluster_size; do
  for version in 1 2; do
    if due; then create $version $((size)) $((cluster_size)); fi
  done
done <<'END'
512             32*K
M               64*M
100*M           64*M
100*M+512       32*K
100*M+512       M
100*M-512       64*K
3*64*M-512      64*M
2*T-64*M-512    64*M
END

# ---- What cannot be --------------------------------------------------------

# refuses PATTERN OPTION... SIZE
refuses ()
{
  local pattern="$1"
  shift
  mkdir refused
  if (cd refused && "$PLOOP_IMG" create x.hds "$@") >out 2>err; then
    fail "create $*: not refused"
  fi
  grep -q -i -e "$pattern" err || fail "create $*: no '$pattern': $(cat err)"
  test ! -s out || fail "create $*: printed: $(cat out)"
  rmdir refused || fail "create $*: left a file behind"
}

# The messages must say what to do.
for size in $((2 * T - 8 * M)) $((2 * T - 512)) 2T 2199023255552 3T 16T; do
  due || continue
  refuses 'version.*2' --version=1 $size
done
for cluster_size in 512 4K 16K 31.5K 63K 48K 96K 252K 3M 65M 127M 128M 1G; do
  due || continue
  refuses 'cluster.*power' --cluster-size=$cluster_size 1G
done
# More clusters than the number of BAT entries can say.
refuses 'cluster' --cluster-size=32K 1024P
