#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that ploop-attach and ploop-detach refuse what is wrong before they touch
# anything, with a text that names it and says what to do: the command line, who runs
# them, what is not installed, a kernel without an NBD client.  With such a kernel they
# are tried in tests/vm.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires setpriv unshare

attach=$abs_top_builddir/scripts/ploop-attach
detach=$abs_top_builddir/scripts/ploop-detach
disk=$tmp/disk.hds
"$PLOOP_IMG" create -q "$disk" 8M
before=$(file_state "$disk")

# refused STATUS TEXT PROGRAM ARG...: it must end so, and say TEXT, an extended regular
# expression.
refused ()
{
  local status=0
  "${@:3}" > "$tmp/log" 2>&1 || status=$?
  [ "$status" -eq "$1" ] || { cat "$tmp/log"; fail "status $status, must be $1: ${*:3}"; }
  grep -Eq -- "$2" "$tmp/log" || { cat "$tmp/log"; fail "no '$2': ${*:3}"; }
}

say "the command line"
refused 2 'which disk' "$attach"
refused 2 'is empty' "$attach" ''
refused 2 "unrecognized option '--foo'" "$attach" --foo "$disk"
refused 2 "'t'" "$attach" "$disk" -t
refused 2 'too many arguments: c' "$attach" "$disk" /dev/nbd0 c
for device in /dev/sda nbd0 /dev/nbd /dev/nbd0p1 /dev/nbd00 /dev/nbd99999 ../dev/nbd0; do
  refused 2 "$device: must be a device like /dev/nbd0" "$attach" "$disk" "$device"
done
for option in snapshot uri mount partition mount-options connections block-size timeout \
    persist plugin output; do
  refused 2 "--$option: the value is empty" "$attach" "--$option=" "$disk"
done
for value in 0 65 x -1 1.5 99999999999; do
  refused 2 "connections=$value.* 1 to 64" "$attach" "--connections=$value" "$disk"
done
for value in 0 86401 1h; do
  refused 2 "timeout=$value: .* 1 to 86400" "$attach" -t "$value" "$disk"
  refused 2 "timeout=$value: .* 1 to 86400" "$detach" -t "$value" "$disk"
done
for value in 0 511 8192 4k; do
  refused 2 "block-size=$value: .*512, 1024, 2048 or 4096" \
    "$attach" "--block-size=$value" "$disk"
done
refused 2 'partition=256: .* 0 to 255' "$attach" -m / --partition=256 "$disk"
refused 2 'partition.* --mount' "$attach" --partition=1 "$disk"
refused 2 'mount-options.* --mount' "$attach" -o ro "$disk"
refused 2 'persist is for --uri' "$attach" --persist=3 "$disk"
refused 2 'less than --timeout=5' "$attach" --persist=5 -t 5 --uri=nbd://localhost
refused 2 'not for --uri' "$attach" -s '{x}' --uri=nbd://localhost
refused 2 'is for --list' "$attach" --output=json "$disk"
refused 2 'human or json' "$attach" --list --output=xml
refused 2 'takes no arguments' "$attach" --list "$disk"
refused 2 'takes no arguments' "$detach" --all "$disk"
refused 2 'which device' "$detach"
refused 2 'is empty' "$detach" ''
refused 2 'too many arguments: b' "$detach" a b

say "help"
for program in "$attach" "$detach" "$attach.bash" "$detach.bash"; do
  case $program in *.bash) program=$abs_top_srcdir/scripts/${program##*/} ;; esac
  "$program" --help | grep -q '^Usage:' || fail "$program --help"
  "$program" --version | grep -q '^ploop-[ad]e*tt*ach (ploop-nbd) ' ||
    fail "$program --version"
done
"$attach" --version | grep -q '[0-9]\.[0-9]' || fail "no version: $("$attach" --version)"

say "not root"
nobody=()
if [ "$(id -u)" -eq 0 ]; then nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups); fi
chmod a+rx "$tmp"
# The build directory may be hidden from others.
cp "$attach" "$detach" "$tmp"
refused 1 'only root.*sudo ploop-attach' "${nobody[@]}" "$BASH" "$tmp/ploop-attach" "$disk"
refused 1 'only root.*sudo ploop-attach' "${nobody[@]}" "$BASH" "$tmp/ploop-attach" --list
refused 1 'only root.*sudo ploop-detach' "${nobody[@]}" "$BASH" "$tmp/ploop-detach" "$disk"

[ "$(id -u)" -eq 0 ] || { say "passed, but for what needs root"; exit 0; }

# In a mount namespace of its own, in which nobody is attached and nothing is installed
# but what is in $tmp/bin.
isolated ()
{
  # shellcheck disable=SC2016
  unshare -m "$BASH" -c '
    mount -t tmpfs run /run && PATH=$1 && shift && exec "$BASH" "$@"' \
    "$BASH" "$tmp/bin" "$@"
}

# installed PROGRAM...: those, and what the scripts take for granted.
installed ()
{
  local program
  rm -rf "${tmp:?}/bin"
  mkdir "$tmp/bin"
  for program in getopt nproc realpath mkdir rm mount "$@"; do
    ln -s "$(command -v "$program")" "$tmp/bin"
  done
}

if ! unshare -m true 2> /dev/null; then
  say "passed, but for what needs a mount namespace"
  exit 0
fi
requires nbd-client nbdkit modprobe

say "what is not there"
installed
refused 1 "$tmp/none.hds: no such file" isolated "$attach" "$tmp/none.hds"
refused 1 'not the URI of an NBD server' isolated "$attach" --uri=http://localhost
refused 1 "$tmp/none: no such directory" isolated "$attach" -m "$tmp/none" "$disk"
refused 1 "$disk: not a directory" isolated "$attach" -m "$disk" "$disk"
refused 1 'nbd-client is not installed.*nbd-client' isolated "$attach" "$disk"
refused 1 'nbd-client is not installed.*nbd-client' isolated "$detach" --all
installed nbd-client
refused 1 'nbdkit is not installed.*nbdkit' isolated "$attach" "$disk"
installed nbd-client nbdkit
refused 1 'nbdinfo is not installed.*libnbd-bin' \
  isolated "$attach" --uri=nbd://localhost
refused 1 "$tmp/none.so: no such plugin" isolated "$attach" --plugin="$tmp/none.so" "$disk"
refused 1 'not attached.*--list' isolated "$detach" "$disk"
refused 1 'not attached.*--list' isolated "$detach" /dev/nbd0
isolated "$detach" --all || fail "to detach all, when nothing is attached"
[ "$(isolated "$attach" --list --output=json | tr -d '\n ')" = '[]' ] || fail "--list"

if [ ! -d /sys/module/nbd ]; then
  say "no NBD client in the kernel"
  refused 1 'modprobe is not installed' isolated "$attach" --plugin="$PLUGIN" "$disk"
  printf '#!%s\necho "modprobe: FATAL: none"; exit 1\n' "$BASH" > "$tmp/modprobe"
  chmod +x "$tmp/modprobe"
  PATH=$tmp:$PATH installed nbd-client nbdkit modprobe uname
  refused 1 'no NBD client: module nbd .*FATAL: none.*Debian' \
    isolated "$attach" --plugin="$PLUGIN" "$disk"
fi
[ "$(file_state "$disk")" = "$before" ] || fail "the image has changed"
say "passed"
