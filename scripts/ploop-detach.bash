#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Lets go of what ploop-attach has attached: nobody may use the device any more, what was
# written must be on the disk, the server must have ended, and the image must be closed.
# What is hard about it is to say what is not so, instead of waiting for ever or of
# ending as if all were well.

set -euo pipefail
shopt -s inherit_errexit

# shellcheck source=scripts/ploop-devices.bash
. "$(dirname "${BASH_SOURCE[0]}")/ploop-devices.bash"

usage ()
{
  cat <<TXT
Usage:
  ploop-detach [OPTION...] /dev/nbdN|DISK|URI|DIRECTORY
  ploop-detach [OPTION...] --all

Let go of a block device that ploop-attach has made: named by the device, by what is
attached, or by the directory where it is mounted.

Options:
  -a, --all              Everything that is attached
  -u, --umount           Unmount first what ploop-attach --mount has mounted
  -f, --force            Although it is in use, and although the server does not end
  -t, --timeout=SECONDS  How long to wait for what was written, and for the server
  -h, --help             Show this help
  -V, --version          Show the version

The exit status is 0 if all is well, 1 if something could not be detached, 2 if the
command line is wrong, and 3 if it was detached, but what was written last may be lost.
TXT
}

take_options ()
{
  local parsed
  parsed=$(getopt -n "$program" -o auft:hV \
             -l all,umount,force,timeout:,help,version -- "$@") ||
    { warn "see $program --help"; exit 2; }
  eval set -- "$parsed"
  all='' umount='' force='' timeout=300
  while [ "$1" != -- ]; do
    case $1 in
      -a|--all)     all=1 ;;
      -u|--umount)  umount=1 ;;
      -f|--force)   force=1 ;;
      -t|--timeout) timeout=$2; shift ;;
      -h|--help)    usage; exit 0 ;;
      -V|--version) show_version; exit 0 ;;
    esac
    shift
  done
  shift
  number timeout "$timeout" 1 86400
  if [ -n "$all" ]; then
    [ $# -eq 0 ] || usage_error "--all takes no arguments"
  else
    [ $# -gt 0 ] || usage_error "which device?"
    [ $# -eq 1 ] || usage_error "too many arguments: ${*:2}"
    [ -n "$1" ] || usage_error "the name is empty"
  fi
  target=${1:-}
}

# ---- Which device

# is_target DEVICE: does target name it?  A disk is named by any path that leads there.
is_target ()
{
  local mount mounts
  [ "$target" != "$1" ] || return 0
  load_state "$1" || return 1
  [ "$target" != "$uri" ] || return 0
  [ "$resolved" != "$disk" ] || return 0
  find_mounts "$1" < /proc/self/mountinfo
  for mount in ${mounts[@]+"${mounts[@]}"}; do
    [ "$resolved" != "$mount" ] || return 0
  done
  return 1
}

# Sets device.
find_target ()
{
  local each attached found=() resolved
  # A partition stands for its device.
  if [[ $target =~ ^(/dev/nbd[0-9]+)p[0-9]+$ ]]; then target=${BASH_REMATCH[1]}; fi
  resolved=$(realpath -m -- "$target")
  resolved=${resolved%/DiskDescriptor.xml}
  find_attached
  for each in ${attached[@]+"${attached[@]}"}; do
    if is_target "$each"; then found+=("$each"); fi
  done
  case ${#found[@]} in
    1) device=${found[0]} ;;
    0) if is_device_name "$target" && is_connected "$target"; then
         die "$target: was not attached by ploop-attach; if nothing uses it:" \
             "nbd-client -d $target"
       fi
       die "$target: is not attached (ploop-attach --list shows what is)" ;;
    *) die "$target: is attached as ${found[*]}: say which" ;;
  esac
}

# ---- Who uses it

# Each adds to users, an array.

# In any mount namespace.
mount_users ()
{
  local mounts
  find_mounts "$device" < <(cat /proc/[0-9]*/mountinfo 2> /dev/null | sort -u)
  users+=(${mounts[@]+"${mounts[@]/#/mounted on }"})
}

holder_users ()
{
  local path name=${device#/dev/} source
  for path in "/sys/block/$name"/holders/* "/sys/block/$name/$name"p*/holders/*; do
    [ ! -e "$path" ] || users+=("part of /dev/${path##*/}")
  done
  while read -r source _; do
    [[ ! $source =~ ^$device(p[0-9]+)?$ ]] || users+=("swap space $source")
  done < /proc/swaps
}

process_users ()
{
  local path pid name
  while IFS= read -r path; do
    pid=${path#/proc/}
    pid=${pid%%/*}
    read -r name 2> /dev/null < "/proc/$pid/comm" || continue
    users+=("open in process $pid ($name)")
  done < <(find /proc/[0-9]*/fd \( -lname "$device" -o -lname "${device}p*" \) \
             2> /dev/null)
}

find_users ()
{
  users=()
  mount_users
  holder_users
  loop_users
  process_users
}

# A loop device is backed by it, and has no name for that in any process.
loop_users ()
{
  local file backing
  for file in /sys/block/loop*/loop/backing_file; do
    [ -e "$file" ] && read -r backing 2> /dev/null < "$file" || continue
    [[ $backing =~ ^$device(p[0-9]+)?$ ]] || continue
    file=${file#/sys/block/}
    users+=("part of /dev/${file%%/*}")
  done
}

# Whoever looks at a device that was just unmounted or closed is done in a moment.
is_unused ()
{
  settle
  find_users
  [ ${#users[@]} -eq 0 ]
}

refuse_if_in_use ()
{
  local users in_use
  wait_until 3 is_unused && return
  printf -v in_use ', %s' "${users[@]}"
  in_use=${in_use#, }
  if [ -n "$force" ]; then
    warn "$device is in use, and is detached all the same: $in_use"
    return
  fi
  warn "$device is in use: $in_use"
  return 1
}

is_mounted_there ()
{
  local mount mounts
  find_mounts "$device" < /proc/self/mountinfo
  for mount in ${mounts[@]+"${mounts[@]}"}; do
    [ "$mount" != "$mounted" ] || return 0
  done
  return 1
}

unmount ()
{
  [ -n "$umount" ] && [ -n "$mounted" ] || return 0
  is_mounted_there || return 0
  umount -- "$mounted" || {
    warn "$device: cannot be unmounted from $mounted"
    return 1
  }
}

# ---- What was written

# The server may not answer at all.
flush ()
{
  local pid status=0
  [ "$mode" != ro ] || return 0
  # Nothing can be written back any more.
  if has_no_server "$device"; then return; fi
  sync -- "$device" 2> /dev/null &
  pid=$!
  if ! wait_until "$timeout" has_ended "$pid"; then
    warn "$device: the server has not written back what was written after $timeout s"
    if [ -n "$force" ]; then unsafe "it is lost"; return; fi
    warn "wait and try again, or give it up with --force"
    return 1
  fi
  wait "$pid" || status=$?
  [ "$status" -eq 0 ] || unsafe "writing back fails (input/output error)"
}

# unsafe TEXT: the exit status will be 3.
unsafe ()
{
  warn "$device (${disk:-$uri}): $*: what was written last may be missing"
  lost=1 told=1
}

end_server_or_say ()
{
  local server
  if has_no_server "$device"; then
    [ "$mode" != rw ] || unsafe "its server had ended before"
    return 0
  fi
  if end_server "$device" "$timeout"; then return; fi
  if [ -z "$force" ]; then
    find_server "$device"
    warn "$device is disconnected, but its server (process $server) has not ended after" \
         "$timeout s; wait and try again, or end it with --force"
    return 1
  fi
  kill_server "$device"
  unsafe "its server did not end, and was killed"
}

# An image that was written to is marked until it has been closed.
check_closed ()
{
  local info
  [ -z "$told" ] && [ "$mode" = rw ] && [ -n "$disk" ] || return 0
  command -v ploop-img > /dev/null || return 0
  info=$(ploop-img info --output=json -- "$disk" 2> /dev/null) || return 0
  # Somebody else may have opened it since.
  if [[ $info = *'"lock" : "none"'* && $info =~ \"in-use\"\ :\ [1-9] ]]; then
    unsafe "it was not closed as it should be; see the system's log"
  fi
}

# A device that is in use is not free before its users have let it go.
disconnect_or_give_up ()
{
  local users
  if [ -z "$force" ] || is_unused; then
    disconnect "$device"
    return
  fi
  disconnect "$device" 2 2> /dev/null ||
    warn "$device is disconnected, but stays taken until nobody uses it any more"
}

# ---- All together

# Or ploop-attach was killed, and will not go on.
is_attached_completely ()
{
  local directory pid='' words=()
  find_directory "$device"
  read -r pid 2> /dev/null < "$directory/attaching" || return 0
  mapfile -t -d '' words 2> /dev/null < "/proc/$pid/cmdline" || return 0
  [[ ${words[*]:-} = *ploop-attach* ]] || return 0
  warn "$device: ploop-attach (process $pid) is still at it"
  return 1
}

# Nonzero if the device is not detached.
detach ()
{
  local told=''
  is_attached_completely || return 1
  load_state "$device" || :
  # Somebody may have disconnected it by other means, and even connected something else.
  if is_our_connection "$device"; then
    unmount || return 1
    refuse_if_in_use || return 1
    flush || return 1
    disconnect_or_give_up || return 1
  fi
  end_server_or_say || return 1
  check_closed
  forget "$device"
}

main ()
{
  local device status=0 lost='' devices=() attached
  take_options "$@"
  need_root
  need_command nbd-client nbd-client
  if [ -n "$all" ]; then
    find_attached
    devices=(${attached[@]+"${attached[@]}"})
  else
    find_target
    devices=("$device")
  fi
  for device in ${devices[@]+"${devices[@]}"}; do
    detach || status=1
  done
  if [ "$status" -eq 0 ] && [ -n "$lost" ]; then status=3; fi
  exit "$status"
}

main "$@"
