#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves what happens on a real file system that is full, one smaller than the
# disk.  enospc=report answers with ENOSPC, keeps all that was answered, and
# goes on when there is space again: trimmed, or freed by somebody else.
# enospc=wait holds the write until then, and lets the server end meanwhile.  A
# limit of the file's size is no space, too.  The image and the file system are
# checked after each.

set -euo pipefail

# In a mount namespace of its own, so that no mount can be left behind.
if [ -z "${IN_OWN_NAMESPACE:-}" ] && [ "$(id -u)" = 0 ] &&
   unshare -m true 2> /dev/null; then
  IN_OWN_NAMESPACE=1 exec unshare -m "$BASH" "$0"
fi

. "$abs_top_srcdir/tests/functions.sh"
requires mkfs.ext4 e2fsck qemu-io prlimit
[ -n "${IN_OWN_NAMESPACE:-}" ] || skip "needs root and mount namespaces"

# ---- A small file system

device=$tmp/fs.img
fs=$tmp/fs
file=$fs/disk.hds
cluster=65536
mkdir "$fs"

# 24 of its 64 MiB are a dummy's, to be deleted.
make_fs ()
{
  rm -f "$device"
  truncate -s 64M "$device"
  mkfs.ext4 -q -F -m 0 -J size=4 "$device"
  mount -o loop "$device" "$fs" 2> "$tmp/mount.log" ||
    skip "cannot mount: $(cat "$tmp/mount.log")"
  fallocate -l 24M "$fs/dummy"
  "$PLOOP_IMG" create -q --cluster-size=64K "$file" 1G
}

unmount_fs ()
{
  ! mountpoint -q "$fs" || umount "$fs"
}
cleanup_fn unmount_fs

# What was trimmed late and not used again lies between the others: status 3.
check_image ()
{
  local status=0
  [ "$(in_use "$file")" = 00000000 ] || fail "still marked in use"
  "$PLOOP_IMG" check "$file" > "$tmp/check.log" || status=$?
  [ $status -eq 0 ] || [ $status -eq 3 ] ||
    { cat "$tmp/check.log"; fail "ploop-img check: status $status"; }
}

check_fs ()
{
  unmount_fs
  e2fsck -fn "$device" > "$tmp/e2fsck.log" 2>&1 ||
    { cat "$tmp/e2fsck.log"; fail "e2fsck: status $?"; }
}

# fill_fs NAME: leave no room for a cluster, with files called NAME.SIZE.N.
# What was deleted a moment ago is free only after a sync.
fill_fs ()
{
  local size n
  sync -f "$fs"
  for ((size = 16 << 20; size >= 4096; size /= 2)); do
    n=0
    while fallocate -l $size "$fs/$1.$size.$n" 2> /dev/null; do
      n=$((n + 1))
    done
    rm "$fs/$1.$size.$n"
  done
  sync -f "$fs"
  [ "$(($(stat -f -c %a "$fs") * $(stat -f -c %S "$fs")))" -lt $cluster ] ||
    fail "the file system is not full"
}

# ---- Writing, with an account of what was answered

# Clusters that are tried: more than fit beside the dummy, fewer than without.
nr=720
has=()                          # the byte that each is full of
generation=0
io_options=(-t writeback)       # else qemu-io sends FUA with each write

forget_all ()
{
  local i
  for ((i = 0; i < nr; i++)); do
    has[i]=0
  done
}

# put CLUSTER...: write each by itself.  Sets `refused`, those that were
# answered with ENOSPC; any other error fails.
put ()
{
  local i byte args=() bytes=() line k=0 order=("$@")
  refused=()
  generation=$((generation + 1))
  for i in "$@"; do
    byte=$((1 + (i + generation * 37) % 255))
    bytes+=("$byte")
    args+=(-c "write -P $byte $((i * cluster)) $cluster")
  done
  [ $# -gt 0 ] || return 0
  qemu-io "${io_options[@]}" -f raw "${args[@]}" "$uri" \
    > "$tmp/io.log" 2>&1 || true
  while read -r line; do
    case $line in
      "wrote $cluster/$cluster"*)
        has[order[k]]=${bytes[k]}; k=$((k + 1)) ;;
      *"No space left on device"*)
        refused+=("${order[k]}"); k=$((k + 1)) ;;
      *failed*) fail "not answered as ENOSPC: $line" ;;
    esac
  done < "$tmp/io.log"
  [ $k -eq $# ] ||
    { tail "$tmp/io.log"; fail "$k of $# writes were answered"; }
}

# trim CLUSTER...: answered.
trim ()
{
  local i args=()
  for i in "$@"; do
    args+=(-c "discard $((i * cluster)) $cluster")
    has[i]=0
  done
  qemu-io -t writeback -f raw "${args[@]}" "$uri" > "$tmp/io.log" 2>&1 ||
    { cat "$tmp/io.log"; fail "discard"; }
}

# Sets `missing`, what was not written yet, and `present`.
account ()
{
  local i
  missing=() present=()
  for ((i = 0; i < nr; i++)); do
    if [ "${has[i]}" = 0 ]; then missing+=("$i"); else present+=("$i"); fi
  done
}

# expect_content WHAT: all that was answered, and zeros elsewhere.
expect_content ()
{
  local i args=()
  for ((i = 0; i < nr; i++)); do
    args+=(-c "read -P ${has[i]} $((i * cluster)) $cluster")
  done
  qemu-io -r -f raw "${args[@]}" "$uri" > "$tmp/io.log" 2>&1 ||
    { grep -i fail "$tmp/io.log"; fail "$1: wrong, or cannot be read"; }
}

# ---- Reported

# judge_parameters PARAMETER...: sets takes_blocks_late.
judge_parameters ()
{
  takes_blocks_late=no
  case " $* ${PLOOP_PARAMETERS:-} " in
    *" prealloc-mode=truncate "*) takes_blocks_late=yes ;;
  esac
}

# fill_up: write until there is no space; sets `refused` and `present`.
fill_up ()
{
  account
  put "${missing[@]}"
  account
  [ ${#refused[@]} -gt 0 ] || fail "it did not get full"
  [ ${#present[@]} -gt 0 ] || fail "not one cluster could be written"
  expect_content "when it got full"
}

# What was written can be written again, to the last cluster.
overwrite_all ()
{
  put "${present[@]}"
  [ ${#refused[@]} -eq 0 ] ||
    fail "no space to overwrite ${#refused[@]} of ${#present[@]} clusters"
  expect_content "overwritten"
}

# Each try ends with a flush, for qemu-io closes with one.
_fits ()
{
  put "${refused[@]}"
  [ ${#refused[@]} -eq 0 ]
}

# Trimmed space serves as many others: at once when clusters are what lacks,
# because a write waits for those that are on their way; when it is blocks of
# the file system (prealloc-mode=truncate), as soon as they are punched.
trim_and_write_others ()
{
  local given taken
  account
  given=("${present[@]:0:$1}")
  taken=("${missing[@]: -$1}")
  trim "${given[@]}"
  put "${taken[@]}"
  if [ ${#refused[@]} -ne 0 ]; then
    [ $takes_blocks_late = yes ] ||
      fail "$1 clusters were trimmed, but ${#refused[@]} of as many are refused"
    say "  ${#refused[@]} of $1 refused at first"
    wait_until _fits ||
      fail "$1 clusters were trimmed, but ${#refused[@]} are always refused"
  fi
  expect_content "trimmed and used again"
}

report ()
{
  say "report: $* ${io_options[*]}"
  judge_parameters "$@"
  make_fs
  forget_all
  start_nbdkit file="$file" "$@"
  fill_up
  say "  ${#present[@]} clusters, then no space"
  overwrite_all
  trim_and_write_others 1
  trim_and_write_others 32
  rm "$fs/dummy"
  account
  put "${missing[@]}"
  [ ${#refused[@]} -eq 0 ] ||
    fail "there is space again, but ${#refused[@]} are refused"
  expect_content "with space again"
  stop_nbdkit
  check_image
  start_nbdkit -r file="$file"
  expect_content "opened again"
  stop_nbdkit
  check_fs
}

if chosen 0; then report; fi
if chosen 1; then report prealloc-mode=truncate; fi
if chosen 0; then report fast-path=off prealloc=1M; fi
io_options=()
if chosen 1; then report prealloc=4M; fi
if chosen 0; then report cache=none prealloc-mode=truncate; fi
io_options=(-t writeback)

# ---- A limit of the file's size

# SIGXFSZ would kill a server that does not ignore it.
limited ()
{
  say "a limit of the file's size: $*"
  takes_blocks_late=no
  make_fs
  rm "$fs/dummy"
  forget_all
  NBDKIT="prlimit --fsize=$((10 << 20)):unlimited ${NBDKIT:-nbdkit}" \
    start_nbdkit file="$file" "$@"
  fill_up
  say "  ${#present[@]} clusters, then no space"
  [ ${#present[@]} -ge 120 ] || fail "not even half of the limit was used"
  overwrite_all
  trim_and_write_others 16
  prlimit --pid "$(cat "$pid_file")" --fsize=unlimited
  account
  put "${missing[@]}"
  [ ${#refused[@]} -eq 0 ] ||
    fail "the limit has gone, but ${#refused[@]} are refused"
  expect_content "without the limit"
  stop_nbdkit
  check_image
  check_fs
}

if chosen 0; then limited; fi
if chosen 1; then limited prealloc-mode=truncate fast-path=off; fi

# ---- Waiting

writer_pid=

kill_writer ()
{
  [ -z "$writer_pid" ] || kill -KILL "$writer_pid" 2> /dev/null
}
cleanup_fn kill_writer

# begin_to_write CLUSTER: in the background; it must not be answered.
begin_to_write ()
{
  qemu-io -t writeback -f raw \
    -c "write -P 99 $(($1 * cluster)) $cluster" "$uri" \
    > "$tmp/writer.log" 2>&1 &
  writer_pid=$!
  # nbdkit says so when it hands the request to the plugin.
  wait_until grep -q "pwrite count=$cluster offset=$(($1 * cluster))" \
    "$nbdkit_log" || fail "the write does not reach the server"
}

expect_waiting ()
{
  ! _has_ended "$writer_pid" ||
    { cat "$tmp/writer.log"; fail "the write was answered: there is no space"; }
}

# Sets writer_status.
end_writer ()
{
  writer_status=0
  wait_until _has_ended "$writer_pid" || fail "the writer does not end"
  wait "$writer_pid" || writer_status=$?
  writer_pid=
}

# The server does everything else meanwhile.
serve_others ()
{
  put 0 1 2
  [ ${#refused[@]} -eq 0 ] || fail "cannot overwrite while another waits"
  expect_content "while another waits"
}

wait_for_space ()
{
  say "wait: $*"
  make_fs
  forget_all
  start_nbdkit file="$file"
  put 0 1 2 3 4 5 6 7
  stop_nbdkit
  fill_fs filler

  start_nbdkit -v -D ploop.stats=1 enospc=wait file="$file" "$@"
  begin_to_write 100
  serve_others
  expect_waiting
  rm "$fs/dummy"
  end_writer
  [ $writer_status -eq 0 ] ||
    { cat "$tmp/writer.log"; fail "there is space, but the write failed"; }
  has[100]=99
  expect_content "after waiting"
  stop_nbdkit
  grep -Eq 'stats: waits for space +[1-9]' "$nbdkit_log" ||
    fail "nobody has waited for space"
  [ "$(grep -c 'there is no space: requests wait' "$nbdkit_log")" -ge 1 ] ||
    fail "it is not said that a request waits"
  check_image

  # Trimmed space is space, too.
  fill_fs filler2
  start_nbdkit -v -D ploop.stats=1 enospc=wait file="$file" "$@"
  begin_to_write 101
  serve_others
  expect_waiting
  trim 3
  end_writer
  [ $writer_status -eq 0 ] ||
    { cat "$tmp/writer.log"; fail "space was trimmed, but the write failed"; }
  has[101]=99
  expect_content "after waiting for a trim"

  # The end, with somebody waiting.
  fill_fs filler3
  begin_to_write 102
  serve_others
  expect_waiting
  stop_nbdkit
  end_writer
  [ $writer_status -ne 0 ] || fail "the server has ended, the write succeeded"
  check_image
  start_nbdkit -r file="$file"
  expect_content "ended while another waited"
  stop_nbdkit
  check_fs
}

nr=0
for path in on off; do
  for mode in falloc truncate; do
    if chosen $((nr + nr / 2)); then
      wait_for_space fast-path=$path prealloc-mode=$mode
    fi
    nr=$((nr + 1))
  done
done
say "passed"
