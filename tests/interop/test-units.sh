#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that the systemd units are what systemd understands, are confined as far as they
# should be, and mean with the server what the manual page says; without systemd as
# process 1 (../vm/test-systemd.sh has it).

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
requires systemd-analyze systemd-socket-activate nbdinfo qemu-io
: "${UNITS:?run this test with make check}"

page=$abs_top_srcdir/man/nbdkit-ploop-plugin.pod
sources=$abs_top_srcdir/systemd

# ---- systemd understands them

# Programs and manual pages that are not installed are not what this is about.
mkdir "$tmp/units"
for unit in "$UNITS"/*@.service "$sources"/*@.socket; do
  sed -e '/^Documentation=/d' -e 's,/[^ ]*/ploop-\(attach\|detach\),/bin/true,' \
    "$unit" > "$tmp/units/${unit##*/}"
done
cd "$tmp/units"
instances=()
for unit in *; do instances+=("./${unit/@/@101}"); done
[ ${#instances[@]} -eq 3 ] || fail "not three units: ${instances[*]}"
# What it says is about other units, too; these are what has to be silent.
systemd-analyze verify "${instances[@]}" > "$tmp/verify" 2>&1 ||
  { cat "$tmp/verify"; fail "systemd-analyze verify"; }
if grep -E 'ploop' "$tmp/verify"; then fail "systemd-analyze verify has something to say"; fi

# This can fail.
sed 's/^ProtectHome=.*/ProtectHome=perhaps/' nbdkit-ploop@.service > wrong@.service
{ systemd-analyze verify ./wrong@1.service 2>&1 || :; } | grep -q 'perhaps' ||
  fail "systemd-analyze does not see what is wrong"

# expect_exposure UNIT TENTHS: at most.
expect_exposure ()
{
  local said
  said=$(systemd-analyze security --offline=true --no-pager "./$1" |
         sed -n 's/.*Overall exposure level for .*: \([0-9.]*\) .*/\1/p')
  say "$1: exposure $said"
  [ -n "$said" ] && [ "${said/./}" -le "$2" ] || fail "$1 is not confined enough"
}
# Versions of systemd count differently, a little.
if systemd-analyze security --help | grep -q -e --offline; then
  expect_exposure nbdkit-ploop@101.service 20
fi

# ---- The server does what its line says

# exec_line KEY UNIT: the shell command of that key, as systemd would pass it.
shell_command ()
{
  sed -e ':more' -e '/\\$/ { N; s/\\\n *//; b more; }' "$2" |
    sed -n "s/^$1=.*sh -fc '\(.*\)'\$/\1/p" | sed 's/\$\$/$/g'
}

# As /etc/ploop/NAME.conf would say, for the plugin that was built.
serve_line=$(shell_command ExecStart nbdkit-ploop@.service)
[ -n "$serve_line" ] || fail "nbdkit-ploop@.service starts nothing"
serve_line=${serve_line/ ploop / \"\$PLUGIN\" }

activated=
end_activated ()
{
  [ -z "$activated" ] || kill "$activated" 2> /dev/null
}
cleanup_fn end_activated

# activate NAME=VALUE...: what the service would run, on $sock.
activate ()
{
  rm -f "$sock"
  systemd-socket-activate -l "$sock" -E PLUGIN="$PLUGIN" \
    ${NBDKIT_PRELOAD:+-E LD_PRELOAD="$NBDKIT_PRELOAD"} "${@/#/-E}" \
    /bin/sh -fc "$serve_line" > "$nbdkit_log" 2>&1 &
  activated=$!
  wait_until test -S "$sock" || fail "systemd-socket-activate does not listen"
}

# What was activated is the process that listened.
deactivate ()
{
  local status=0
  kill "$activated"
  wait "$activated" || status=$?
  activated=
  check_log
  [ $status -eq 0 ] || fail "the server's exit status is $status"
}

mkdir -p "$tmp/private/a disk"
disk="$tmp/private/a disk/root.hds"
"$PLOOP_IMG" create -q "$disk" 64M
activate DISK="$disk" OPTIONS="cache=none runners=2" NBDKIT_OPTIONS="--threads=4 -v"
nbdinfo --size "$uri" > /dev/null || fail "not served by what it was given"
grep -q 'config key=cache, value=none' "$nbdkit_log" || fail "OPTIONS do not arrive"
grep -q 'processing requests with 4 threads' "$nbdkit_log" ||
  fail "NBDKIT_OPTIONS do not arrive"
io 'write -P 5 0 1M'

# ---- SIGTERM with clients connected and requests under way

write_for_ever ()
{
  while :; do
    printf 'aio_write -P 7 %uM 1M\n' {1..63} 2> /dev/null || return 0
  done
}
before=$(stat -c %y "$disk")
qemu-io -f raw "$uri" < <(write_for_ever) > /dev/null 2>&1 &
load=$!
has_changed ()
{
  [ "$(stat -c %y "$disk")" != "$before" ]
}
wait_until has_changed || fail "no load"
[ "$(in_use "$disk")" != 00000000 ] || fail "written to, and not marked as in use"
deactivate
kill "$load" 2> /dev/null || :
wait "$load" || :
[ "$(in_use "$disk")" = 00000000 ] || fail "the image was not closed"
"$PLOOP_IMG" check -q "$disk" || [ $? -eq 3 ] || fail "the image has errors"

# ---- A directory

activate DIRECTORY="$tmp/private" DISK=/nothing
nbdinfo --list "$uri" | grep -q 'a disk/root.hds' || fail "DIRECTORY is not served"
deactivate

# ---- What is written about them

for unit in *@.service nbdkit-ploop@.socket; do
  case $unit in wrong*) continue ;; esac
  grep -q "${unit/@/@NAME}" "$page" || fail "$unit is not in nbdkit-ploop-plugin(1)"
done
for name in $(grep -ohE '\$\$\{?[A-Z_]+' ./*ploop*.service | tr -d '${' | sort -u); do
  grep -q "^=item B<$name=>" "$page" || fail "$name is not in nbdkit-ploop-plugin(1)"
  [ "$name" = URI ] || [ "$name" = DIRECTORY ] ||
    grep -q "^$name=" "$sources/101.conf" || fail "$name is not in 101.conf"
done
say "passed"
