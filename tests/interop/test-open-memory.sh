#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that a large, empty disk costs no memory: 16 TiB in clusters of 1 MiB
# (a BAT of 64 MiB), made by ploop-img and by qemu-img.  The time to open it is
# printed, not judged.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires qemu-img qemu-io nbdinfo

limit_kib=$((40 * 1024))

milliseconds ()
{
  echo $(($(date +%s%N) / 1000000))
}

# measure FILE [OPTION...]
measure ()
{
  local file=$1 begin opened peak size
  shift
  begin=$(milliseconds)
  start_nbdkit "$@" file="$file"
  opened=$(milliseconds)
  size=$(nbdinfo --size "$uri")
  [ "$size" = $((16 << 40)) ] || fail "$file: size is $size"
  peak=$(awk '/^VmHWM/ { print $2 }' "/proc/$nbdkit_pid/status")
  say "$(basename "$file") $*: up in $((opened - begin)) ms," \
      "nbdinfo done $(($(milliseconds) - opened)) ms later," \
      "peak $peak KiB"
  if nbdkit_is_plain && [ "$peak" -ge $limit_kib ]; then
    fail "$file: peak of $peak KiB, must be below $limit_kib"
  fi
  if [ "${1:-}" != -r ]; then
    # Far apart, so many pages of everything.
    qemu-io -f raw -c 'write -P 1 0 4k' -c 'write -P 2 8T 4k' \
      -c 'write -P 3 17592186040320 4k' -c 'read -P 2 8T 4k' -c flush \
      "$uri" > "$tmp/io.log" || { cat "$tmp/io.log"; fail "qemu-io"; }
    peak=$(awk '/^VmHWM/ { print $2 }' "/proc/$nbdkit_pid/status")
    say "  peak after three writes $peak KiB"
    if nbdkit_is_plain && [ "$peak" -ge $limit_kib ]; then
      fail "$file: peak of $peak KiB, must be below $limit_kib"
    fi
  fi
  stop_nbdkit
}

"$PLOOP_IMG" create -q "$tmp/ours.hds" 16T
qemu-img create -q -f parallels -o cluster_size=1M "$tmp/qemu.hds" 16T
for file in "$tmp/ours.hds" "$tmp/qemu.hds"; do
  measure "$file" -r
  measure "$file"
  measure "$file" -r
done
say "passed"
