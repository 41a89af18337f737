#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# The example of the asynchronous API copies a file into an image; what it reads
# back, and what qemu reads from the image, is what was in the file.

set -euo pipefail
source "${abs_top_srcdir}/tests/functions.sh"

requires qemu-img

cd "$tmp"

# Data, holes, and an end that is no multiple of anything.
size=$((37 * 1024 * 1024 + 512 * 3))

random_at ()
{
  head -c "$2" /dev/urandom |
    dd of=raw conv=notrunc status=none oflag=seek_bytes seek="$1" bs=1M
}

truncate -s $size raw
random_at 0 9000000
random_at 20000000 700001
random_at $((size - 5000)) 5000
wanted=$(sha256sum < raw)

for cluster_size in 32K 1M; do
  "$PLOOP_IMG" create -q --cluster-size=$cluster_size image $size
  got=$("$ASYNC_COPY" raw image)
  [ "$got  -" = "$wanted" ] ||
    fail "clusters of $cluster_size: read back $got instead of $wanted"
  qemu-img convert -f parallels -O raw image back
  [ "$(sha256sum < back)" = "$wanted" ] ||
    fail "clusters of $cluster_size: qemu reads something else"
  "$PLOOP_IMG" check image > check.log || fail "$(cat check.log)"
  rm image back
done
