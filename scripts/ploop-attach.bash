#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Makes a ploop disk, or what an NBD server exports, a block device of this host: a
# server of its own on a private socket, and the kernel's NBD client connected to it.
# What is hard about it is to leave nothing behind when a step fails (on_exit undoes
# what was done until then), and not to touch a device that somebody else uses.

set -euo pipefail
shopt -s inherit_errexit

# shellcheck source=scripts/ploop-devices.bash
. "$(dirname "${BASH_SOURCE[0]}")/ploop-devices.bash"

usage ()
{
  cat <<TXT
Usage:
  ploop-attach [OPTION...] DISK [/dev/nbdN] [-- PARAMETER...]
  ploop-attach [OPTION...] --uri=URI [/dev/nbdN] [-- PARAMETER...]
  ploop-attach --list [--output=human|json]

Make a ploop disk a block device of this host, and print the device's name.  DISK is
an image, a DiskDescriptor.xml or the directory that holds one.  PARAMETERs are for
nbdkit and its plugin.

Options:
  -r, --read-only              Attach for reading only
  -s, --snapshot=GUID          A snapshot of the disk, for reading
  -u, --uri=URI                What an NBD server exports, instead of a disk
  -m, --mount=DIRECTORY        Mount the file system there
      --partition=N            The partition to mount, 0 for the whole disk
  -o, --mount-options=OPTIONS  For mount
  -n, --connections=N          Connections of the kernel to the server
  -b, --block-size=512|1024|2048|4096
                               Bytes of a sector of the device
  -t, --timeout=SECONDS        How long a request may take
      --persist=SECONDS        With --uri: how long to wait for a server that has gone
      --plugin=FILE            The plugin, if it is not installed
  -l, --list                   Show what is attached
      --output=human|json      How to show it
  -h, --help                   Show this help
  -V, --version                Show the version
TXT
}

# ---- The command line

# take VARIABLE OPTION VALUE
take ()
{
  [ -n "$3" ] || usage_error "$2: the value is empty"
  printf -v "$1" '%s' "$3"
}

take_options ()
{
  local parsed
  parsed=$(getopt -n "$program" -o rs:u:m:o:n:b:t:lhV -l read-only,snapshot:,uri:,mount: \
             -l partition:,mount-options:,connections:,block-size:,timeout:,persist: \
             -l plugin:,list,output:,help,version -- "$@") ||
    { warn "see $program --help"; exit 2; }
  eval set -- "$parsed"
  while [ "$1" != -- ]; do
    case $1 in
      -r|--read-only)     mode=ro ;;
      -s|--snapshot)      take snapshot "$@"; shift ;;
      -u|--uri)           take uri "$@"; shift ;;
      -m|--mount)         take mount "$@"; shift ;;
      --partition)        take partition "$@"; shift ;;
      -o|--mount-options) take mount_options "$@"; shift ;;
      -n|--connections)   take connections "$@"; shift ;;
      -b|--block-size)    take block_size "$@"; shift ;;
      -t|--timeout)       take timeout "$@"; shift ;;
      --persist)          take persist "$@"; shift ;;
      --plugin)           take plugin "$@"; shift ;;
      -l|--list)          action=list ;;
      --output)           take output "$@"; shift ;;
      -h|--help)          usage; exit 0 ;;
      -V|--version)       show_version; exit 0 ;;
    esac
    shift
  done
  shift
  arguments=("$@")
}

# Sets the variables of the options, arguments, and parameters (behind --).
take_command_line ()
{
  local own=()
  action=attach output='' disk='' uri='' snapshot='' mode=rw mount='' partition=''
  mount_options='' connections='' block_size='' timeout='' persist='' plugin=''
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    own+=("$1")
    shift
  done
  parameters=("${@:2}")
  take_options ${own[@]+"${own[@]}"}
}

check_list_options ()
{
  [ ${#arguments[@]} -eq 0 ] && [ ${#parameters[@]} -eq 0 ] ||
    usage_error "--list takes no arguments"
  case ${output:=human} in
    human|json) ;;
    *) usage_error "--output=$output: must be human or json" ;;
  esac
}

# Sets disk and device.
take_arguments ()
{
  if [ -z "$uri" ]; then
    [ ${#arguments[@]} -ge 1 ] || usage_error "which disk?"
    disk=${arguments[0]}
    arguments=("${arguments[@]:1}")
    [ -n "$disk" ] || usage_error "the name of the disk is empty"
  fi
  [ ${#arguments[@]} -le 1 ] || usage_error "too many arguments: ${arguments[*]:1}"
  device=${arguments[0]:-}
  [ -z "$device" ] || is_device_name "$device" ||
    usage_error "$device: must be a device like /dev/nbd0"
}

# Fill in what was not given, and refuse what cannot be.
check_options ()
{
  [ -z "$output" ] || usage_error "--output is for --list"
  [ -z "$snapshot" ] || mode=ro
  [ -z "$uri" ] || [ -z "$snapshot$plugin" ] ||
    usage_error "--snapshot and --plugin are for a disk, not for --uri"
  [ -n "$uri" ] || [ -z "$persist" ] || usage_error "--persist is for --uri"
  [ -n "$mount" ] || [ -z "$partition$mount_options" ] ||
    usage_error "--partition and --mount-options are for --mount"
  number connections "${connections:=$(default_connections)}" 1 64
  number timeout "${timeout:=600}" 1 86400
  number persist "${persist:=60}" 0 86399
  [ -z "$uri" ] || [ "$persist" -lt "$timeout" ] ||
    usage_error "--persist=$persist: must be less than --timeout=$timeout"
  [ -z "$partition" ] || number partition "$partition" 0 255
  case $block_size in
    ''|512|1024|2048|4096) ;;
    *) usage_error "--block-size=$block_size: must be 512, 1024, 2048 or 4096" ;;
  esac
  case $plugin in */*|'') ;; *) plugin=./$plugin ;; esac
}

# The kernel has no use for more than one a CPU.
default_connections ()
{
  local cpus
  cpus=$(nproc)
  echo $((cpus < 16 ? cpus : 16))
}

# ---- What must be there

check_source ()
{
  if [ -n "$uri" ]; then
    [[ $uri == nbd*://* ]] || die "$uri: not the URI of an NBD server (nbd://host/name)"
    return
  fi
  [ -e "$disk" ] || die "$disk: no such file or directory"
  disk=$(realpath -- "$disk")
  disk=${disk%/DiskDescriptor.xml}
}

check_mount_point ()
{
  [ -n "$mount" ] || return 0
  [ -e "$mount" ] || die "$mount: no such directory"
  [ -d "$mount" ] || die "$mount: not a directory"
  mount=$(realpath -- "$mount")
}

check_programs ()
{
  need_command nbd-client nbd-client
  need_command nbdkit nbdkit
  [ -z "$uri" ] || need_command nbdinfo libnbd-bin
  if [ -n "$uri" ]; then
    plugin=nbd
  elif [ -z "$plugin" ]; then
    plugin=ploop
  elif [ ! -e "$plugin" ]; then
    die "$plugin: no such plugin"
  fi
}

load_module ()
{
  local why
  [ ! -d /sys/module/nbd ] || return 0
  need_command modprobe kmod
  why=$(modprobe nbd max_part=16 2>&1) ||
    die "this kernel ($(uname -r)) has no NBD client: module nbd cannot be loaded:" \
        "${why:-modprobe fails}.  Debian's package linux-image-amd64 has it; kernels for" \
        "clouds often leave it out, and in a container it is the host's to load"
}

# ---- The device

# is_free DEVICE: nobody is connected, nor has it claimed.
is_free ()
{
  local directory
  find_directory "$1"
  is_disconnected "$1" && [ ! -e "$directory" ]
}

claim ()
{
  find_directory "$1"
  mkdir -m 0700 "$directory" 2> /dev/null || return 1
  claimed=$1
  echo $$ > "$directory/attaching"
}

claim_given_device ()
{
  local what
  if claim "$device"; then
    is_disconnected "$device" ||
      die "$device: is in use, by another program than ploop-attach"
    [ -b "$device" ] ||
      die "$device: no such device; the module nbd has the parameter nbds_max"
    return
  fi
  # In a process of its own, whose variables are not ours.
  what=$(load_state "$device" && echo "${disk:-$uri}") || :
  [ -z "$what" ] || die "$device: is in use for $what"
  die "$device: another ploop-attach is at it, or has left it: ploop-detach $device"
}

# Sets device to one that comes after the one numbered LAST.
claim_free_device ()
{
  local number=$(($1 + 1))
  while [ -b "/dev/nbd$number" ]; do
    device=/dev/nbd$number
    if is_free "$device" && claim "$device"; then return; fi
    number=$((number + 1))
  done
  [ "$number" -gt 0 ] ||
    die "there is no device /dev/nbd0: load the module nbd with nbds_max=16"
  die "all $number devices /dev/nbdN are in use: ploop-detach one, or load the module" \
      "nbd with a larger nbds_max"
}

# ---- The server

# Sets source, the arguments of nbdkit that say what is served.
take_source ()
{
  if [ -n "$uri" ]; then
    source=(nbd "uri=$uri")
  else
    source=("$plugin" "file=$disk" ${snapshot:+"snapshot=$snapshot"})
  fi
  if [ "$mode" = ro ]; then source+=(-r); fi
  source+=(${parameters[@]+"${parameters[@]}"})
}

# Through a server without a filter that waits, so that what is wrong is said at once.
# Sets sector, if it must be larger.
ask_remote ()
{
  local info
  # shellcheck disable=SC2016  # nbdkit's uri
  info=$(nbdkit -U - "${source[@]}" --run 'nbdinfo --json "$uri"') ||
    die "$uri: cannot be attached"
  if [[ $info =~ \"block_size_minimum\":\ ([0-9]+) && ${BASH_REMATCH[1]} -gt 512 ]]; then
    sector=${BASH_REMATCH[1]}
  fi
}

start_server ()
{
  local retry=()
  if [ -n "$uri" ] && [ "$persist" -gt 0 ]; then
    retry=(--filter=retry "retries=$persist" retry-delay=1 retry-exponential=no)
  fi
  nbdkit -U "$directory/socket" -P "$directory/server.pid" \
    "${source[@]}" ${retry[@]+"${retry[@]}"} < /dev/null {never}<&- ||
    die "${disk:-$uri}: the server did not start$(advice)"
  wait_until 30 server_is_ready ||
    die "${disk:-$uri}: the server has ended at once: see the system's log"
}

# What ploop-attach knows of why a server did not start.
advice ()
{
  local each wanted=$disk attached
  if [ "$plugin" = ploop ] && ! nbdkit ploop --dump-plugin > /dev/null 2>&1; then
    printf '; nbdkit-ploop-plugin is not installed (or name its file with --plugin)'
    return
  fi
  find_attached
  for each in ${attached[@]+"${attached[@]}"}; do
    if load_state "$each" && [ -n "$disk" ] && [ "$disk" = "$wanted" ]; then
      printf '; it is attached as %s' "$each"
    fi
  done
}

server_is_ready ()
{
  [ -s "$directory/server.pid" ] && [ -S "$directory/socket" ]
}

# ---- Connecting

# connect NUMBER: with so many connections.  What was said is in the file "log".
connect ()
{
  nbd-client -unix "$directory/socket" "$device" -block-size "$sector" \
    -connections "$1" -timeout "$timeout" > "$directory/log" 2>&1 < /dev/null ||
    return 1
  connected=1
  wait_until 30 has_size
}

has_size ()
{
  local sectors=0
  read -r sectors 2> /dev/null < "/sys/block/${device#/dev/}/size" || :
  [ "$sectors" -gt 0 ]
}

# Every CPU reads, so that every connection carries a request.
all_connections_answer ()
{
  local cpu readers=() reader
  for ((cpu = 0; cpu < $(nproc --all); cpu++)); do
    taskset -c "$cpu" dd if="$device" of=/dev/null bs=4096 count=1 iflag=direct \
      > /dev/null 2>&1 < /dev/null &
    readers+=($!)
  done
  for reader in "${readers[@]}"; do
    wait_until 10 has_ended "$reader" || return 1
  done
}

# A kernel that is slow to start the threads that wait for replies (Linux 6.1, a small or
# busy machine) may start one thread only for several connections; what the others are
# asked is never answered.  When it connects again, the threads are there.
connect_so_that_all_answer ()
{
  local tries
  for ((tries = 0; tries < 3; tries++)); do
    [ "$connections" -gt 1 ] || break
    connect "$connections" || break
    if all_connections_answer; then return; fi
    disconnect "$device" || return 1
    connected=''
  done
  # The kernel also wants a server (a filter may change that) that says that a flush on
  # one connection covers all.
  if [ "$connections" -gt 1 ] && is_disconnected "$device"; then
    warn "$device: $connections connections cannot be had; there will be one"
    connections=1
  fi
  [ "$connections" -eq 1 ] && connect 1
}

# Nonzero if another program has just taken the device: the kernel lets one have it.
attach_to_device ()
{
  start_server
  connect_so_that_all_answer && return
  if [ -z "$connected" ] && is_connected "$device"; then
    undo
    return 1
  fi
  cat "$directory/log" >&2
  die "$device: the kernel's NBD client cannot be connected: see its log (dmesg)"
}

# A server may refuse to be written to: it has said so itself.
find_mode ()
{
  local is_read_only
  read -r is_read_only < "/sys/block/${device#/dev/}/ro"
  [ "$is_read_only" -eq 0 ] || mode=ro
}

attach ()
{
  local last=-1
  [ -d "$run_directory" ] || mkdir -m 0700 "$run_directory"
  if [ -n "$device" ]; then
    claim_given_device
    attach_to_device || die "$device: another program has just taken it"
    return
  fi
  until
    claim_free_device "$last"
    attach_to_device
  do
    last=${device#/dev/nbd}
  done
}

# ---- Partitions and file systems

# probe FIELD DEVICE: what blkid finds, such as TYPE; nothing if that is nothing.
probe ()
{
  blkid -p -s "$1" -o value "$2" 2> /dev/null || :
}

wait_for_partitions ()
{
  local partitions
  settle
  find_partitions "$device"
  [ ${#partitions[@]} -eq 0 ] && [ -n "$(probe PTTYPE "$device")" ] || return 0
  # The kernel does not look for them itself when nbd was loaded with max_part=0.
  partx --add "$device" > /dev/null 2>&1 || :
  settle
  find_partitions "$device"
  [ ${#partitions[@]} -gt 0 ] ||
    warn "$device has a partition table, but the kernel shows no partitions: load the" \
         "module nbd with max_part=16"
}

has_file_system ()
{
  [ "$(probe USAGE "$1")" = filesystem ]
}

# Sets chosen, what is to be mounted.
choose_partition ()
{
  local partitions candidate
  find_partitions "$device"
  if [ -n "$partition" ]; then
    chosen=$device
    [ "$partition" -eq 0 ] || chosen=${device}p$((10#$partition))
    [ -b "$chosen" ] ||
      die "$device has no partition $partition, but ${#partitions[@]} partitions" \
          "${partitions[*]}"
    return
  fi
  for candidate in "$device" ${partitions[@]+"${partitions[@]}"}; do
    chosen=$candidate
    if has_file_system "$candidate"; then return; fi
  done
  die "nothing to mount: there is no file system that is known on $device" \
      "${partitions[*]} ($(describe "$device" ${partitions[@]+"${partitions[@]}"}))"
}

describe ()
{
  local each type description=''
  for each; do
    type=$(probe TYPE "$each")
    if [ -z "$type" ] && [ -n "$(probe PTTYPE "$each")" ]; then type="partition table"; fi
    description+=${description:+, }"${each#/dev/}: ${type:-not known}"
  done
  echo "$description"
}

mount_it ()
{
  local options=$mode type
  choose_partition
  if mount -o "$options${mount_options:+,$mount_options}" -- "$chosen" "$mount"; then
    mounted=$mount
    return
  fi
  type=$(probe TYPE "$chosen")
  case $mode,$type in
    ro,ext[34]) warn "if its journal must be replayed first: --mount-options=noload" ;;
    ro,xfs)     warn "if its log must be replayed first: --mount-options=norecovery" ;;
  esac
  die "$chosen (${type:-no file system that is known}) cannot be mounted on $mount"
}

# ---- Leaving nothing behind

# Let go of the device, and of everything that was started for it.
undo ()
{
  [ -n "$claimed" ] || return 0
  if [ -n "$mounted" ] && ! umount -- "$mounted"; then return; fi
  # A signal may have come just when it was connected.
  if [ -n "$connected" ] || grep -qsxF "Connected $device" "$directory/log"; then
    disconnect "$device" || return 0
  fi
  end_server "$device" 60 || kill_server "$device"
  forget "$device"
  claimed='' connected='' mounted=''
}

on_exit ()
{
  local status=$?
  trap '' INT TERM HUP
  [ "$status" -eq 0 ] || undo
  exit "$status"
}

# ---- What is attached

# Sets what the lists show of DEVICE, beside its state: state, server, mounts.
look_at ()
{
  load_state "$1" || :
  find_server "$1"
  find_mounts "$1" < /proc/self/mountinfo
  state=attached
  if [ -z "$server" ]; then state="no server"; fi
  if ! is_our_connection "$1"; then state="not connected"; fi
  if [ -z "$disk$uri" ]; then state=incomplete; fi
}

list_human ()
{
  local each attached format='%-12s %-4s %-4s %-8s %-13s %s\n'
  find_attached
  # shellcheck disable=SC2059
  printf "$format" DEVICE MODE CONN SERVER STATE DISK
  for each in ${attached[@]+"${attached[@]}"}; do
    look_at "$each"
    # shellcheck disable=SC2059
    printf "$format" "$each" "${mode:--}" "${connections:--}" "${server:--}" "$state" \
      "${disk:-$uri}${snapshot:+ snapshot $snapshot}${mounts:+ on ${mounts[*]}}"
  done
}

json_string ()
{
  local LC_ALL=C text=$1 i character escaped=''
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  for ((i = 0; i < ${#text}; i++)); do
    character=${text:i:1}
    if [[ $character < ' ' ]]; then printf -v character '\\u%04x' "'$character"; fi
    escaped+=$character
  done
  printf '"%s"' "$escaped"
}

# json_strings TEXT...: with commas between them.
json_strings ()
{
  local each comma=''
  for each; do
    printf '%s%s' "$comma" "$(json_string "$each")"
    comma=', '
  done
}

# json_or_null VALUE: a number, or null if it is empty.
json_or_null ()
{
  printf '%s' "${1:-null}"
}

list_json ()
{
  local each attached separator=''
  find_attached
  echo '['
  for each in ${attached[@]+"${attached[@]}"}; do
    look_at "$each"
    printf '%s  {\n    "device" : "%s",\n' "$separator" "$each"
    printf '    "state" : "%s",\n' "$state"
    [ -z "$disk" ] || printf '    "disk" : %s,\n' "$(json_string "$disk")"
    [ -z "$uri" ] || printf '    "uri" : %s,\n' "$(json_string "$uri")"
    [ -z "$snapshot" ] || printf '    "snapshot" : %s,\n' "$(json_string "$snapshot")"
    printf '    "read-only" : %s,\n' "$(if [ "$mode" = ro ]; then echo true; else echo false; fi)"
    printf '    "connections" : %s,\n' "$(json_or_null "$connections")"
    printf '    "server-pid" : %s,\n    "mounts" : [' "$(json_or_null "$server")"
    json_strings ${mounts[@]+"${mounts[@]}"}
    printf ']\n  }'
    separator=$',\n'
  done
  printf '\n]\n'
}

# ---- All together

main ()
{
  local arguments=() parameters=() source=()
  claimed='' connected='' mounted='' directory=''
  take_command_line "$@"
  if [ "$action" = list ]; then
    check_list_options
    need_root
    "list_$output"
    return
  fi
  take_arguments
  check_options
  need_root
  check_source
  check_mount_point
  check_programs
  load_module
  take_source
  sector=512
  [ -z "$uri" ] || ask_remote
  sector=${block_size:-$sector}

  trap on_exit EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  attach
  find_mode
  wait_for_partitions
  [ -z "$mount" ] || mount_it
  save_state "$device"
  echo "$device"
}

main "$@"
