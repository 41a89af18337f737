# shellcheck shell=bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Building from a checkout into a directory of its own, for scripts/quickstart
# and scripts/test, which source this.  They set $top, the source tree.

: "${top:?}"

die ()
{
  echo "${0##*/}: $*" >&2
  exit 1
}

# logged LOG COMMAND...: run COMMAND, its output to LOG; show the end of that
# if it fails.
logged ()
{
  local log=$1
  shift
  if ! "$@" >>"$log" 2>&1 </dev/null; then
    echo
    tail -n 40 "$log" >&2
    die "'$*' failed; all of its output is in $log"
  fi
}

# build_in DIRECTORY [CONFIGURE-ARGUMENT...]: configure and make there.  What
# was built before is kept and brought up to date.
build_in ()
{
  local directory=$1 log=$1/build.log
  shift
  [ ! -e "$top/config.status" ] ||
    die "$top is configured in place: run 'make distclean' there first"
  mkdir -p "$directory"
  : >"$log"
  if [ ! -e "$top/configure" ]; then
    echo "   autoreconf"
    (cd "$top" && logged "$log" autoreconf --force --install)
  fi
  if [ ! -e "$directory/config.status" ] ||
     [ "$(cat "$directory/configured-with" 2>/dev/null)" != "$*" ]; then
    echo "   configure $*"
    (cd "$directory" && logged "$log" "$top/configure" "$@")
    echo "$*" >"$directory/configured-with"
  fi
  echo "   make"
  logged "$log" make -C "$directory" -j "$(nproc)"
}

# Give what root made in the source tree to the tree's owner, so that he can
# go on without sudo.
give_back ()
{
  local made=()
  [ "$(id -u)" -eq 0 ] || return 0
  [ "$(stat -c %u "$top")" -ne 0 ] || return 0
  mapfile -t -d '' made < <(find "$top" -mindepth 1 -maxdepth 1 \( \
    -name 'build' -o -name 'build-*' -o -name 'configure*' \
    -o -name 'config.h.in*' -o -name aclocal.m4 -o -name autom4te.cache \
    -o -name m4 \) -print0)
  chown -Rh --from=root --reference="$top" "${made[@]}"
  find "$top" -name Makefile.in -exec \
    chown -h --from=root --reference="$top" {} +
}
