#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that the examples for libvirt are what libvirt takes, by its own schema: the
# machine, and the same machine with the disk that is to be attached to it; and that
# the disks in them are NBD exports that a client finds where this plugin serves them.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires virt-xml-validate xmllint nbdinfo

examples=$abs_top_srcdir/examples

# valid FILE
valid ()
{
  virt-xml-validate "$1" domain > "$tmp/validate.log" 2>&1
}

for file in "$examples"/libvirt-*.xml; do
  xmllint --noout "$file" || fail "$file is not well-formed"
done
valid "$examples/libvirt-domain.xml" ||
  { cat "$tmp/validate.log"; fail "libvirt does not take libvirt-domain.xml"; }

# The second disk among the first one's devices.
awk -v disk="$examples/libvirt-disk.xml" '
  /<\/devices>/ { while ((getline line < disk) > 0) print line } { print }' \
  "$examples/libvirt-domain.xml" > "$tmp/both.xml"
valid "$tmp/both.xml" ||
  { cat "$tmp/validate.log"; fail "libvirt does not take libvirt-disk.xml"; }
[ "$(xmllint --xpath 'count(//disk)' "$tmp/both.xml")" = 2 ] || fail "not two disks"

# This test can fail.
sed "s/protocol='nbd'/protocol='ploop'/" "$tmp/both.xml" > "$tmp/wrong.xml"
if valid "$tmp/wrong.xml"; then fail "libvirt takes anything"; fi

# value XPATH: of the two disks.
value ()
{
  xmllint --xpath "string($1)" "$tmp/both.xml"
}

guid=$(value "//disk[2]/source/@name")
mkdir "$tmp/disk"
"$PLOOP_IMG" create -q --descriptor "$tmp/disk/root.hds" 8M
"$PLOOP_IMG" snapshot create -q --guid="$guid" "$tmp/disk"
sock=$tmp/$(basename "$(value "//disk[1]/source/host/@socket")")
start_nbdkit file="$tmp/disk"
nbdinfo "nbd+unix:///?socket=$sock" > /dev/null || fail "the first disk"
nbdinfo --is read-only "nbd+unix:///%7B${guid:1:36}%7D?socket=$sock" ||
  fail "the second disk is not there, or can be written"
stop_nbdkit
[ "$(value "//disk[1]/driver/@type")$(value "//disk[2]/driver/@type")" = rawraw ] ||
  fail "qemu would look for a format in what is served"
say "passed"
