# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034

# A machine to throw away, for what needs a kernel with an NBD client, root, or a
# service manager: User-mode Linux, which is an ordinary process, with this host's
# file system as its own below an overlay in memory.  So all that is installed here is
# there, this project is installed in it (make install, into the directory STAGE),
# and nothing that the guest does is seen here; but for the directory $share, which is
# the host's own in both.
#
# A guest is up in three seconds.  It has one CPU, so the kernel uses one connection
# of an NBD device; qemu.sh is for guests with more.  Sourced after ../functions.sh;
# guest-init is what runs in it.

: "${STAGE:?run this test with make check}"
: "${abs_srcdir:?run this test with make check}"

share=$tmp/share
mkdir "$share"

uml_modules=/usr/lib/uml/modules
guest_console=$tmp/guest-console.log
guest_pid=

# Seconds that a guest may run.
: "${guest_limit:=240}"

# requires_guest: skip unless a guest can be started.
requires_guest ()
{
  command -v linux.uml > /dev/null ||
    skip "User-mode Linux is not installed (package user-mode-linux)"
  [ -d "$uml_modules" ] || skip "no modules in $uml_modules"
  requires insmod modprobe timeout
  [ "$(id -u)" -eq 0 ] ||
    skip "only root sees the whole file system that the guest has as its own"
}

# requires_systemd: skip unless a guest can have systemd as process 1, with udev.
requires_systemd ()
{
  requires systemctl udevadm
  [ -x /lib/systemd/systemd ] || skip "systemd is not installed"
}

# requires_units: skip unless this build has installed systemd units.
requires_units ()
{
  find "$STAGE" -path '*/systemd/system/nbdkit-ploop@.service' | grep -q . ||
    skip "this build installs no units (configure --with-systemdsystemunitdir)"
}

# run_guest [-c CPUS] [-s PREPARE] [-m MEGABYTES] [-n] SCRIPT [ARG...]: start a guest, run
# the file SCRIPT with ARGs in it, as root in bash, and print what it prints.  Returns
# its exit status, or 137 after kill_guest.
#
#   -c CPUS     that many, emulated by qemu (see qemu.sh)
#   -s PREPARE  systemd is process 1, and the script a service after basic.target and
#               remote-fs.target; the file PREPARE is run before systemd, by bash, as
#               what an administrator did before this boot
#   -m          its memory, which also holds all files that it writes; 768 by default
#   -n          with a network: 10.0.2.2 in the guest is 127.0.0.1 of this host
run_guest ()
{
  local memory=768 network='' prepare='' cpus='' option OPTIND=1 status=
  while getopts c:m:ns: option; do
    case $option in
      c) cpus=$OPTARG ;;
      s) prepare=$OPTARG ;;
      m) memory=$OPTARG ;;
      n) network=yes ;;
      *) fail "run_guest: no such option" ;;
    esac
  done
  shift $((OPTIND - 1))
  _write_guest_config "$prepare" "$network" "$cpus" "$@"
  guest_was_killed=
  mkfifo "$tmp/guest-output"
  if [ -n "$cpus" ]; then
    _boot_qemu "$memory" "$network" "$cpus" &
  else
    _boot_guest "$memory" "$network" &
  fi
  guest_pid=$!
  _read_guest < "$tmp/guest-output"
  { wait "$guest_pid" || say "the guest's process ended with status $?"; } 2> /dev/null
  guest_pid=
  rm "$tmp/guest-output"
  [ -z "$guest_was_killed" ] || return 137
  if [ -z "$status" ]; then
    tail -n 30 "$guest_console"
    fail "the guest ended, or was ended after $guest_limit s, without a result"
  fi
  return "$status"
}

# guest_says LINE: called for every line that a guest prints with "@@ " in front.
# A test may have its own, to do something on the host at the right moment.
guest_says ()
{
  say "from the guest: $*"
}

# kill_guest: from guest_says, at once, as if its power were cut.  Of User-mode Linux's
# other processes, which all are its children, some would live on and hold what it has
# open.
kill_guest ()
{
  local kernel
  kernel=$(pgrep -P "$guest_pid" -x linux.uml) || fail "there is no guest to kill"
  guest_was_killed=yes
  # shellcheck disable=SC2046  # one a line
  kill -KILL "$kernel" $(pgrep -P "$kernel") 2> /dev/null || :
}

# _write_guest_config PREPARE NETWORK CPUS SCRIPT [ARG...]
_write_guest_config ()
{
  local prepare=$1 network=$2 modules=$uml_modules share_type=hostfs
  [ -z "$3" ] || modules=$qemu_modules share_type=virtiofs
  shift 3
  {
    printf 'prepare=%q network=%q share=%q share_type=%q stage=%q modules=%q\n' \
      "$prepare" "$network" "$share" "$share_type" "$STAGE" "$modules"
    printf 'arguments=('
    printf '%q ' "$@"
    echo ')'
  } > "$tmp/guest-config"
}

# The guest's second serial line carries what it prints, so that no message of its
# kernel can break a line of that.
_boot_guest ()
{
  local args=("mem=${1}M" root=/dev/root rootfstype=hostfs rootflags=/ ro
              "init=$abs_srcdir/guest-init" "PLOOP_GUEST=$tmp/guest-config"
              quiet panic=-1 audit=0 con=null "con0=null,fd:1"
              ssl=null "ssl1=null,fd:3")
  local run=(timeout -k 5 "$guest_limit" linux.uml)
  exec < /dev/null 3> "$tmp/guest-output" > "$guest_console" 2>&1
  if [ -n "$2" ]; then
    # Its network device is one end of a pair of sockets, as file descriptor 9.
    args+=("vec0:transport=fd,fd=9,vec=0")
    run=(perl "$abs_srcdir/slirp.pl" "${run[@]}")
  fi
  exec "${run[@]}" "${args[@]}"
}

# Sets status, of run_guest.
_read_guest ()
{
  local line
  while IFS= read -r line; do
    line=${line%$'\r'}
    case $line in
      '@@ status '*) status=${line#@@ status } ;;
      '@@ '*)        guest_says "${line#@@ }" ;;
      *)             printf '%s\n' "$line" ;;
    esac
  done
}

_end_guest ()
{
  [ -z "$guest_pid" ] || kill "$guest_pid" 2> /dev/null
}
cleanup_fn _end_guest
