# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash

# What scripts do in a guest whose kernel is a client of a server on the host: to
# connect, to put files on a device and find them again, and to see that the kernel had
# nothing to complain about.  Sourced by bash with `set -euo pipefail`; a command that
# fails ends the script and is told with the end of the kernel's log.
#
# The hard part is Linux 6.1's NBD driver.  Each connection has a receiver, which is a
# job of a work queue and runs until the connection ends.  When the kernel cannot start
# a thread for it soon, as on a slow machine, the one thread that the queue keeps for
# such times takes all receivers that wait, to run one after the other: nobody reads
# what comes on the other connections, and each request there waits for 30 seconds.
# So connect_nbd counts the receivers and connects anew when one is missing, and
# nothing may be read before: no partitions are looked for.

server=10.0.2.2
server_port=10809

set -E
trap '_tell_failure "${BASH_SOURCE[0]##*/}" "$LINENO" "$BASH_COMMAND"' ERR

_tell_failure ()
{
  echo "failed in the guest: $1: line $2: $3"
  dmesg | tail -n 15
}

give_up ()
{
  echo "$*"
  false
}

load_nbd ()
{
  modprobe nbd max_part=0
  # What there was before is not about our devices.
  dmesg -C
}

# poll SECONDS COMMAND...: until it succeeds.
poll ()
{
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.1
  done
}

# ---- Connections

_receivers ()
{
  { grep -l recv_work /proc/[0-9]*/stack 2> /dev/null || :; } | wc -l
}

_has_receivers ()
{
  [ "$(_receivers)" -ge "$1" ]
}

# connect_nbd DEVICE NAME CONNECTIONS [OPTION...]: DEVICE is the export NAME, which may
# be empty.  OPTIONs are nbd-client's; with -unix PATH as the first, not the server on
# the host is meant.  By default a request may take ten minutes: on a busy host, 30
# seconds are soon over.
connect_nbd ()
{
  local device=$1 name=$2 connections=$3 to=("$server" "$server_port") before try
  shift 3
  [ "${1:-}" != -unix ] || { to=(-unix "$2"); shift 2; }
  # No -N is the empty name; nbd-client 3.24 takes no empty -N.
  [ -z "$name" ] || set -- -N "$name" "$@"
  for try in 1 2 3 4 5; do
    before=$(_receivers)
    nbd-client "${to[@]}" "$device" -b 512 -C "$connections" -timeout 600 "$@" \
      > /tmp/nbd-client.log 2>&1 ||
      { cat /tmp/nbd-client.log; give_up "$device: not connected"; return 1; }
    if poll 5 _has_receivers $((before + connections)); then return; fi
    echo "$device: try $try: not every connection has its receiver"
    disconnect_nbd "$device"
  done
  give_up "$device: no receiver for each of $connections connections"
}

_is_disconnected ()
{
  ! nbd-client -c "$1" > /dev/null
}

disconnect_nbd ()
{
  nbd-client -d "$1" > /tmp/nbd-client.log
  poll 20 _is_disconnected "$1" || give_up "$1: still connected"
}

# expect_connections NUMBER: so many have been made to the server on the host.
expect_connections ()
{
  local have
  have=$(ss -Htn state established dport = ":$server_port" | wc -l)
  [ "$have" -eq "$1" ] || give_up "$have connections, must be $1"
}

expect_size ()
{
  local size
  size=$(blockdev --getsize64 "$1")
  [ "$size" -eq "$2" ] || give_up "$1: $size bytes, must be $2"
}

# requests DEVICE KIND: how many of them the kernel has sent.
requests ()
{
  local fields
  read -r -a fields < "/sys/block/${1#/dev/}/stat"
  case $2 in
    write)   echo "${fields[4]}" ;;
    discard) echo "${fields[11]}" ;;
    flush)   echo "${fields[15]}" ;;
    *)       give_up "requests: $2" ;;
  esac
}

# ---- File systems

make_file_system ()
{
  case $1 in
    # A small journal, since all of it is written; all else is written at once, too,
    # for nothing is to be written behind the test's back.
    ext4)  mkfs.ext4 -q -F -J size=4 -E lazy_itable_init=0,lazy_journal_init=0 "$2" ;;
    xfs)   mkfs.xfs -q -f "$2" ;;
    btrfs) mkfs.btrfs -q -f "$2" > /dev/null ;;
    *)     give_up "make_file_system: $1" ;;
  esac
}

check_file_system ()
{
  local command text
  case $1 in
    ext4)  command=(e2fsck -f -n) ;;
    xfs)   command=(xfs_repair -n) ;;
    btrfs) command=(btrfs check) ;;
    *)     give_up "check_file_system: $1" ;;
  esac
  text=$("${command[@]}" "$2" 2>&1) ||
    { echo "$text"; give_up "$2: the file system has errors"; }
}

_write_one ()
{
  mkdir -p "$1/small.$2"
  dd if=/dev/urandom "of=$1/random.$2" bs=64k count="$3" conv=fsync status=none
  seq "$4" | split -a 3 -l 20 - "$1/small.$2/"
  sync -f "$1"
}

# write_files DIRECTORY WRITERS KIB LINES: writers at the same time, each a file of KIB
# random KiB, and small ones; the checksums are in DIRECTORY.sums.  All are synced.
write_files ()
{
  local directory=$1 pids=() writer pid
  mkdir -p "$directory"
  for ((writer = 0; writer < $2; writer++)); do
    _write_one "$directory" "$writer" $(($3 / 64)) "$4" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    wait "$pid"
  done
  sum_files "$directory" > "$directory.sums"
  sync -f "$directory"
}

# sum_files DIRECTORY: checksums of all files in it.
sum_files ()
{
  (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
}

# expect_files DIRECTORY SUMS: exactly the files that sum_files has seen.
expect_files ()
{
  sum_files "$1" | cmp - "$2" || give_up "$1: other files, or other content"
}

# trim DIRECTORY DEVICE: of the file system there; the kernel must have sent it on.
trim ()
{
  local before
  before=$(requests "$2" discard)
  fstrim "$1"
  [ "$(requests "$2" discard)" -gt "$before" ] || give_up "$2: nothing was trimmed"
}

# unmount DIRECTORY DEVICE: and forget what was read of it.
unmount ()
{
  umount "$1"
  blockdev --flushbufs "$2"
  echo 3 > /proc/sys/vm/drop_caches
}

# expect_clean_log [PATTERN]: but for lines with PATTERN.
expect_clean_log ()
{
  local bad='I/O error|EXT4-fs (error|warning)|XFS.*(error|corrupt)|BTRFS (error|warning)'
  bad="$bad|Call Trace|BUG:|Oops|WARNING:|blocked for more"
  bad="$bad|nbd[0-9]+: .*(imed out|failed|Dead|dead|Double|wrong|Unexpected)"
  if dmesg | grep -Ev -- "${1:-^$}" | grep -E "$bad"; then
    give_up "the kernel has complained"
  fi
}

# ---- The host

# ask_host WORD: the test on the host does what WORD stands for; returns when it has.
ask_host ()
{
  rm -f "$share/answer"
  echo "@@ $1"
  poll 120 test -e "$share/answer" || give_up "$1: the host does not answer"
}
