# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034
#
# What ploop-attach and ploop-detach share: what is attached, and how it is let go.
# Their sources read this file; what is installed has it in place of that line.
#
# Each device nbdN that ploop-attach has taken is a directory nbdN in $run_directory,
# with the server's socket and process id, a file "attaching" with ploop-attach's own while
# that is at it, and "state" once it is done.  To make the directory is to claim the
# device: of two that try, one fails.  The kernel
# says by nbdN/pid in /sys/block whether a device is connected, and by whom; that process
# has ended long since.

program=${0##*/}
program=${program%.bash}
# A build puts the version here.
version=@PACKAGE_VERSION@
run_directory=/run/ploop-attach

# ---- Saying

warn ()
{
  echo "$program: $*" >&2
}

die ()
{
  warn "$@"
  exit 1
}

usage_error ()
{
  warn "$* (see $program --help)"
  exit 2
}

show_version ()
{
  echo "$program (ploop-nbd) $version"
}

# number OPTION VALUE MINIMUM MAXIMUM: refuse what is not a decimal number in there.
number ()
{
  [[ $2 =~ ^[0-9]{1,9}$ ]] && [ "$((10#$2))" -ge "$3" ] && [ "$((10#$2))" -le "$4" ] ||
    usage_error "--$1=$2: must be a number from $3 to $4"
}

need_root ()
{
  [ "$EUID" -eq 0 ] ||
    die "only root can do this; try: sudo $program"
}

# need_command COMMAND PACKAGE: PACKAGE is Debian's name for what has it.
need_command ()
{
  command -v "$1" > /dev/null || die "$1 is not installed (Debian's package $2 has it)"
}

# ---- Waiting

# A twentieth of a second, without a process for it: nothing is ever written to the pipe.
exec {never}<> <(:)
nap ()
{
  read -r -t 0.05 -u "$never" _ || :
}

# wait_until SECONDS COMMAND...: nonzero if COMMAND has not succeeded by then.
wait_until ()
{
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    nap
  done
}

has_ended ()
{
  ! kill -0 "$1" 2> /dev/null
}

# settle: wait for udev, where it runs, to have looked at new devices.
settle ()
{
  if [ -e /run/udev/control ] && command -v udevadm > /dev/null; then
    udevadm settle --timeout=20 || :
  fi
}

# ---- A device, by its name in /dev

is_device_name ()
{
  [[ $1 =~ ^/dev/nbd(0|[1-9][0-9]{0,3})$ ]]
}

is_connected ()
{
  [ -e "/sys/block/${1#/dev/}/pid" ]
}

is_disconnected ()
{
  ! is_connected "$1"
}

# Sets partitions, the names in /dev of DEVICE's, in order.
find_partitions ()
{
  local name=${1#/dev/} path
  partitions=()
  for path in "/sys/block/$name/$name"p{?,??,???}; do
    [ ! -e "$path" ] || partitions+=("/dev/${path##*/}")
  done
}

# Sets directory, that of DEVICE.
find_directory ()
{
  directory=$run_directory/${1#/dev/}
}

# Sets attached, the devices that ploop-attach has taken.
find_attached ()
{
  local path
  attached=()
  for path in "$run_directory"/nbd{?,??,???,????}; do
    [ ! -d "$path" ] || attached+=("/dev/${path##*/}")
  done
}

# ---- What is known of an attached device

# save_state DEVICE: the variables below.
save_state ()
{
  local directory name
  find_directory "$1"
  read -r client < "/sys/block/${1#/dev/}/pid"
  for name in disk uri snapshot mode connections client mounted; do
    printf '%s=%q\n' "$name" "${!name}"
  done > "$directory/state.new"
  mv "$directory/state.new" "$directory/state"
  rm "$directory/attaching"
}

# load_state DEVICE: sets disk (or uri), snapshot, mode (ro or rw), connections, client
# (the process that has connected it), mounted (where ploop-attach has mounted it).
# Nonzero, and all empty, if it was never attached completely.
load_state ()
{
  local directory
  # shellcheck disable=SC2034  # not everybody uses all of them
  disk='' uri='' snapshot='' mode='' connections='' client='' mounted=''
  find_directory "$1"
  [ -e "$directory/state" ] || return 1
  # The directory is root's.
  # shellcheck disable=SC1091
  . "$directory/state"
}

# Whether the connection of DEVICE, whose state has been loaded, is still the one that
# ploop-attach has made.
is_our_connection ()
{
  local pid=''
  read -r pid 2> /dev/null < "/sys/block/${1#/dev/}/pid" || return 1
  [ -z "$client" ] || [ "$pid" = "$client" ]
}

# Sets server, the process id of DEVICE's server; empty if there is none.  Process ids are
# used again: the server's command line has the socket in it.
find_server ()
{
  local directory pid='' words=() word
  server=''
  find_directory "$1"
  read -r pid 2> /dev/null < "$directory/server.pid" || :
  [[ $pid =~ ^[0-9]+$ ]] || return 0
  mapfile -t -d '' words 2> /dev/null < "/proc/$pid/cmdline" || return 0
  for word in ${words[@]+"${words[@]}"}; do
    [ "$word" != "$directory/socket" ] || server=$pid
  done
}

has_no_server ()
{
  local server
  find_server "$1"
  [ -z "$server" ]
}

# ---- Who uses a device

# find_mounts DEVICE, lines of mountinfo on standard input: sets mounts, the mount points
# of it and its partitions, each once.  btrfs is not found by numbers there, only by the
# name of what was mounted.
find_mounts ()
{
  local name=${1#/dev/} numbers=' ' file line fields behind mount
  local -A seen=()
  mounts=()
  for file in "/sys/block/$name/dev" "/sys/block/$name/$name"p*/dev; do
    [ ! -e "$file" ] || numbers+="$(< "$file") "
  done
  while IFS= read -r line; do
    IFS=' ' read -r -a fields <<< "$line"
    IFS=' ' read -r _ behind _ <<< "${line#* - }"
    if [[ $numbers = *" ${fields[2]} "* || $behind =~ ^$1(p[0-9]+)?$ ]]; then
      printf -v mount '%b' "${fields[4]//\\/\\0}"
      [ -n "${seen[$mount]:-}" ] || mounts+=("$mount")
      seen[$mount]=1
    fi
  done
}

# ---- Letting go

# disconnect DEVICE [SECONDS]: whoever still uses it gets errors from now on, and keeps
# it from being free.
disconnect ()
{
  is_connected "$1" || return 0
  nbd-client -d "$1" > /dev/null 2>&1 || :
  wait_until "${2:-30}" is_disconnected "$1" || {
    warn "$1: cannot be disconnected: see the kernel's log (dmesg)"
    return 1
  }
}

# end_server DEVICE SECONDS: nonzero if it still runs then.
end_server ()
{
  local server
  find_server "$1"
  [ -n "$server" ] || return 0
  kill -TERM "$server" 2> /dev/null || :
  wait_until "$2" has_no_server "$1"
}

kill_server ()
{
  local server
  find_server "$1"
  [ -z "$server" ] || kill -KILL "$server" 2> /dev/null || :
  wait_until 10 has_no_server "$1" || :
}

forget ()
{
  local directory
  find_directory "$1"
  rm -rf "$directory"
}
