#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that the plugin works in whatever way nbdkit is run: in the foreground and in
# the background, on a socket that a client or systemd has opened, read-only, with an
# export by name, as swap, and as another user; and that what nbdkit shows of the plugin
# is complete and of one mind.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires nbdcopy nbdinfo qemu-io

image=$tmp/image.hds
raw=$tmp/raw

new_image ()
{
  rm -f "$image"
  "$PLOOP_IMG" create -q --cluster-size=64K "$image" 8M
}

# expect_image: closed, without an error, with what is in $raw.
expect_image ()
{
  local status=0
  [ "$(in_use "$image")" = 00000000 ] || fail "$1: still marked in use"
  "$PLOOP_IMG" check -q "$image" || status=$?
  [ $status -eq 0 ] || [ $status -eq 3 ] || fail "$1: check: status $status"
  "$PLOOP_IMG" compare -q "$image" "$raw" || fail "$1: not what was written"
}

# write_raw: what a disk is filled with.
{ head -c 3M /dev/urandom; head -c 1M /dev/zero; head -c 4M /dev/urandom; } > "$raw"

# has_gone PID: of a process that may be nobody's child.
has_gone ()
{
  ! grep -qs "^State:[[:space:]]*[^Z[:space:]]" "/proc/$1/status"
}

# free_again FILE: closed, and locked by nobody.
free_again ()
{
  local status=0
  [ "$(in_use "$1")" = 00000000 ] || return 1
  "$PLOOP_IMG" check -q "$1" 2> /dev/null || status=$?
  [ $status -ne 1 ]
}

# end_other PID: one that start_nbdkit has not started.
end_other ()
{
  kill -TERM "$1"
  wait_until has_gone "$1" || fail "the server does not end"
  other=
}

other=
kill_other ()
{
  [ -z "$other" ] || kill -KILL "$other" 2> /dev/null
}
cleanup_fn kill_other

# ---- What nbdkit shows

say "--dump-plugin"
run_nbdkit --dump-plugin "$PLUGIN" > "$tmp/dump"
if grep -Ev '^[a-z0-9_]+=.+' "$tmp/dump"; then fail "a line without key or value"; fi
[ -z "$(grep -v '^plugin_' "$tmp/dump" | cut -d = -f 1 | sort | uniq -d)" ] ||
  fail "a key that is there twice"
[ -z "$(sort "$tmp/dump" | uniq -d)" ] || fail "a line that is there twice"
version=$("$PLOOP_IMG" --version | sed -n '1s/.* //p')
for line in "path=$(realpath "$PLUGIN")" name=ploop "version=$version" api_version=2 \
    struct_size=[0-9]+ max_thread_model=parallel thread_model=parallel \
    errno_is_preserved=1 magic_config_key=file "ploop_core_version=$version" \
    plugin_feature=[a-z0-9-]+ plugin_parameter=[a-z-]+; do
  grep -Eqx -- "$line" "$tmp/dump" || fail "--dump-plugin: no line $line"
done
# All that a plugin for disks can have, but for what only others need.
for callback in longname description unload config config_complete config_help \
    dump_plugin get_ready after_fork cleanup list_exports open close get_size \
    block_size export_description can_write is_rotational can_multi_conn can_fua \
    can_fast_zero can_extents can_cache pread pwrite zero trim extents cache flush; do
  grep -qx "has_$callback=1" "$tmp/dump" || fail "--dump-plugin: no has_$callback"
done

say "--help and --version"
run_nbdkit "$PLUGIN" --help > "$tmp/help"
while IFS="=" read -r _ parameter; do
  grep -Eq "^\[?$parameter=|^ *\[?$parameter=" "$tmp/help" ||
    fail "--help does not have $parameter="
done < <(grep '^plugin_parameter=' "$tmp/dump")
grep -Eq 'file=' "$tmp/help" || fail "--help does not have file="
if awk 'length > 100' "$tmp/help" | grep .; then fail "--help: a line is too long"; fi
run_nbdkit "$PLUGIN" --version > "$tmp/version"
grep -qw "ploop $version" "$tmp/version" ||
  { cat "$tmp/version"; fail "--version is not $version"; }
# Neither looks at a disk.
run_nbdkit "$PLUGIN" --help file=/nonexistent > /dev/null ||
  fail "--help with a file that is not there"

# ---- Where it runs

say "in the background"
new_image
rm -f "$pid_file"
# Its standard error is a pipe that it must let go of, or this would never end.
run_nbdkit -U "$sock" -P "$pid_file" "$PLUGIN" file="$image" 2>&1 | cat > "$nbdkit_log"
wait_until test -s "$pid_file" || fail "there is no pid file"
other=$(< "$pid_file")
[ "$(stat -c %s "$pid_file")" -eq $((${#other} + 1)) ] || fail "the pid file"
[ "$(readlink "/proc/$other/cwd")" = / ] || fail "it holds the directory"
nbdcopy "$raw" "$uri"
end_other "$other"
expect_image "in the background"

say "a socket that a client has opened"
new_image
nbdcopy -- "$raw" [ ${NBDKIT:-nbdkit} -f "$PLUGIN" file="$image" ]
wait_until free_again "$image" || fail "the server outlives its client"
expect_image "a client's server"
nbdcopy -- [ ${NBDKIT:-nbdkit} -f -r "$PLUGIN" file="$image" ] "$tmp/out"
cmp "$raw" "$tmp/out" || fail "a client's server reads something else"

say "a socket of systemd's"
if command -v systemd-socket-activate > /dev/null; then
  new_image
  rm -f "$sock"
  systemd-socket-activate --listen="$sock" ${NBDKIT:-nbdkit} -f "$PLUGIN" \
    file="$image" < /dev/null > "$nbdkit_log" 2>&1 &
  other=$!
  wait_until test -S "$sock" || fail "nobody listens"
  nbdcopy "$raw" "$uri"
  nbdcopy "$uri" "$tmp/out"
  cmp "$raw" "$tmp/out" || fail "socket activation: reads something else"
  end_other "$other"
  wait
  expect_image "socket activation"
else
  say "no systemd-socket-activate: socket activation is not tried"
fi

say "--run, and the export that it names"
unpack_corpus
leaf='{00000002-1111-2222-3333-444444444444}'
want=$(awk -F '\t' -v e="c-tree-v2-b64/DiskDescriptor.xml#$leaf" \
  '$4 == e { print $5 }' "$tmp/corpus/MANIFEST.tsv" "$PLOOP_CORPUS/MANIFEST.tsv" \
  2> /dev/null | head -n 1)
# shellcheck disable=SC2016  # nbdkit's variable
run_nbdkit -r -U - -e "$leaf" "$PLUGIN" file="$tmp/corpus/c-tree-v2-b64" \
  --run 'nbdcopy "$uri" -' | sha256sum | grep -q "^$want " ||
  fail "-e $leaf: not that snapshot"
# shellcheck disable=SC2016
if run_nbdkit -r -U - -e nobody "$PLUGIN" file="$tmp/corpus/c-tree-v2-b64" \
   --run 'nbdinfo "$uri"' > "$tmp/log" 2>&1; then
  fail "-e nobody: served"
fi
grep -q "there is no export 'nobody'" "$tmp/log" ||
  { cat "$tmp/log"; fail "-e nobody: the error does not name it"; }

say "read-only"
new_image
before=$(file_state "$image")
start_nbdkit -r file="$image"
if qemu-io -f raw -c 'write 0 4k' "$uri" > "$tmp/io.log" 2>&1; then
  fail "-r: written"
fi
nbdinfo "$uri" | grep -q 'is_read_only: true' || fail "-r: not announced"
stop_nbdkit
[ "$(file_state "$image")" = "$before" ] || fail "-r: the file has changed"

# ---- As root

if [ "$(id -u)" != 0 ] || ! nbdkit_is_plain; then
  say "not root, or not nbdkit alone: --swap and --user are not tried"
  say "passed"
  exit 0
fi

say "--swap"
new_image
if start_nbdkit --swap file="$image"; then
  [ "$(awk '$1 == "VmLck:" { print $2 }' "/proc/$nbdkit_pid/status")" -gt 0 ] ||
    fail "--swap: no memory is locked"
  nbdcopy "$raw" "$uri"
  stop_nbdkit
  expect_image "--swap"
else
  grep -q 'mlockall' "$nbdkit_log" || fail "--swap: refused"
  say "memory cannot be locked here: --swap is not tried"
fi

# The file is opened before the user changes, the threads start after.
say "--user"
new_image
chmod 600 "$image"
chmod 1777 "$tmp"               # for the pid file
start_nbdkit -u nobody -g nogroup file="$image"
[ "$(awk '$1 == "Uid:" { print $3 }' "/proc/$nbdkit_pid/status")" -eq "$(id -u nobody)" ] ||
  fail "-u nobody: is somebody else"
for task in /proc/"$nbdkit_pid"/task/*; do
  [ "$(awk '$1 == "Uid:" { print $3 }' "$task/status")" -eq "$(id -u nobody)" ] ||
    fail "-u nobody: the thread $(cat "$task/comm") is somebody else"
done
nbdcopy "$raw" "$uri"
stop_nbdkit
expect_image "-u nobody"
# A snapshot is opened when it is asked for; then nobody must be able to read it.
cp -a "$tmp/corpus/c-tree-v2-b64" "$tmp/tree"
leaf_uri=${leaf/\{/%7B}
leaf_uri="nbd+unix:///${leaf_uri/\}/%7D}?socket=$sock"
chmod 755 "$tmp/tree"
chmod 600 "$tmp"/tree/*
start_nbdkit -r -u nobody -g nogroup file="$tmp/tree"
nbdinfo --size "$uri" > /dev/null || fail "-u nobody: the disk, which is open"
if nbdinfo --size "$leaf_uri" > "$tmp/log" 2>&1; then
  fail "-u nobody: a snapshot that nobody may read"
fi
grep -q 'tree/.*Permission denied' "$nbdkit_log" ||
  fail "-u nobody: the error does not say why"
stop_nbdkit
chmod 644 "$tmp"/tree/*
start_nbdkit -r -u nobody -g nogroup file="$tmp/tree"
nbdinfo --size "$leaf_uri" > /dev/null ||
  fail "-u nobody: a snapshot that anybody may read"
stop_nbdkit
say "passed"
