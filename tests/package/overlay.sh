# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash

# A root to install packages in: this one, under an overlay in memory that is gone
# afterwards.  Sourced behind ../functions.sh.

# overlay_or_skip: skip where there can be none.
overlay_or_skip ()
{
  requires unshare chroot
  [ "$(id -u)" -eq 0 ] || skip "only root can put an overlay over /"
  in_overlay "$tmp" true 2> overlay.log ||
    skip "no overlay over / here: $(tail -n 1 overlay.log)"
}

# in_overlay DIRECTORY COMMAND...: run it as root in that root, with DIRECTORY as its
# /mnt, where it starts, and /tmp empty.  Below /mnt/changed is what has changed in /,
# below /mnt/before what was there.  All processes end with it.
in_overlay ()
{
  local directory=$1
  shift
  # /usr/local comes last: the packages are tried, not what somebody has installed there.
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin LC_ALL=C.UTF-8 HOME=/root \
    DEBIAN_FRONTEND=noninteractive TMPDIR=/tmp \
    unshare --mount --pid --fork --kill-child -- \
    bash -euc '
      directory=$1
      shift
      memory=$directory/memory
      mkdir -p "$memory" "$directory/changed" "$directory/before"
      mount -t tmpfs memory "$memory"
      mkdir "$memory"/upper "$memory"/work "$memory"/root
      mount -t overlay overlay \
        -o "lowerdir=/,upperdir=$memory/upper,workdir=$memory/work" "$memory/root"
      root=$memory/root
      mount --rbind /dev "$root/dev"
      mount -t proc proc "$root/proc"
      mount --rbind /sys "$root/sys"
      mount -t tmpfs tmp "$root/tmp"
      mount -t tmpfs run "$root/run"
      mount --bind "$directory" "$root/mnt"
      mount --bind "$memory/upper" "$root/mnt/changed"
      mount --bind -o ro / "$root/mnt/before"
      cd "$root/mnt"
      chroot "$root" bash -c "cd /mnt && exec \"\$@\"" - "$@"
    ' - "$directory" "$@"
}
