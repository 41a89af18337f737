# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034
#
# ploop-attach(8): ../examples-run.sh tells what this table says.

example 'ploop-attach --mount=/mnt' --after '! mountpoint -q /mnt'
example 'ploop-attach --read-only disk.hds'
example 'dd if=/dev/nbd1 of=old.raw' \
  --after "ploop-img compare --snapshot='{00000001-1111-2222-3333-444444444444}' \
             /vz/private/101/root.hdd old.raw"
example 'ploop-attach disk.hds -- cache=none'
example 'ploop-attach --uri=nbd://store/golden' --before start_store
