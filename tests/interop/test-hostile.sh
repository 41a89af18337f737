#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that strangers can do no harm beyond what SECURITY.md says: a base's server that
# breaks the protocol, or lies, is an error of the disk above it, soon; and links that
# other users have put where this software writes lead nowhere.  (Clients that break
# the protocol are test-wire's matter.)

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires perl nbdcopy timeout
perl -MIO::Socket::UNIX -e 1 2> /dev/null || skip "perl has no IO::Socket::UNIX"

lying=$abs_srcdir/lying-server.pl

image=$tmp/image.hds
"$PLOOP_IMG" create -q --cluster-size=64K "$image" 8M

# ---- Servers

nr_cases=0
say "a base's servers"
"$PLOOP_IMG" create -q "$tmp/thin.hds" 8M
before=$(file_state "$tmp/thin.hds")
end_liar ()
{
  [ -z "$liar" ] || kill -KILL "$liar" 2> /dev/null
}
liar=
cleanup_fn end_liar
while read -r case; do
  due || continue
  rm -f "$remote_sock"
  perl "$lying" "$remote_sock" "$case" 2> /dev/null &
  liar=$!
  wait_until test -S "$remote_sock" || fail "server: $case"
  status=0
  # What is asked for first may be the export, or its content.
  run_nbdkit -U - -r "$PLUGIN" file="$tmp/thin.hds" base="$remote_uri" --run \
    'timeout 60 nbdcopy "$uri" null:' > "$tmp/liar.log" 2>&1 || status=$?
  [ $status -ne 0 ] || fail "a base that is none was read: $case"
  [ $status -lt 124 ] || { cat "$tmp/liar.log"; fail "status $status: $case"; }
  grep -q "$remote_sock" "$tmp/liar.log" ||
    { cat "$tmp/liar.log"; fail "the error does not name the base: $case"; }
  nr_cases=$((nr_cases + 1))
  kill -KILL $liar
  wait $liar 2> /dev/null || true
  liar=
done < <(perl "$lying")
[ $nr_cases -gt 0 ] || fail "no case was tried"
[ "$(file_state "$tmp/thin.hds")" = "$before" ] || fail "the image has changed"

# ---- Links of others

say "links"
mkdir "$tmp/shared"
cd "$tmp/shared"
ln -s victim new.hds
for command in "create -q" "create -q --force"; do
  # shellcheck disable=SC2086  # several words
  if "$PLOOP_IMG" $command new.hds 8M 2> /dev/null; then fail "$command: through a link"; fi
done
if "$PLOOP_IMG" convert -q "$image" new.hds 2> /dev/null; then fail "convert: a link"; fi
if "$PLOOP_IMG" rescue -q "$image" new.hds 2> /dev/null; then fail "rescue: a link"; fi
expect_refusal 'new\.hds' file="$image" overlay=new.hds
mkdir disk
"$PLOOP_IMG" create -q --descriptor disk/root.hds 8M
ln -s ../victim disk/DiskDescriptor.xml.lck
expect_refusal 'DiskDescriptor.xml.lck' file="$tmp/shared/disk"
if [ -e victim ]; then fail "a link was followed"; fi
# What is made is nobody else's to read.
(umask 022; "$PLOOP_IMG" create -q private.hds 8M)
[ "$(stat -c %a private.hds)" = 600 ] || fail "others can read a new image"
say "passed"
