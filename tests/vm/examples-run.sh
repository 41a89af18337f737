# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash

# Runs a document's commands in a guest, exactly as they are printed.  Sourced there, before
# a table that says what there is to each block (tests/vm/examples/NAME.sh) and what
# examples.pl has found; then `finish`.
#
# Each block is run as a reader would type it: one command after the other, in one shell,
# in a directory of its own that has the files of a reader (examples.sh makes them:
# disk.hds, disk.raw, root.hdd and so on; /vz/private/101/root.hdd is made anew, too).
# A server that goes to the background serves until the end of the block; one that is to
# stay in the foreground has a terminal of its own.  Each command must succeed and print
# what the document says that it prints.  Then the servers are ended, no device may be
# connected, and every image that was changed must be sound and closed.
#
# The table:
#
#   example PATTERN OPTION...    of the one block that has PATTERN in its heading and
#                                commands, a line each:
#     --before CODE     run before the commands
#     --after CODE      run after them, and after the servers have ended: must succeed; in a
#                       pass with services it has to end these
#     --status 'N N...' exit statuses of the commands, instead of 0
#     --goes-on         the next block is in the same directory, beside the same servers
#     --each-alone      the commands are alternatives: servers end after each
#     --damaged         what is left may have errors
#     --connected       what is connected then is for the reader to disconnect
#     --ignore TEXT     what it prints has a line with TEXT that is due to the guest
#
#   elsewhere COMMAND REASON     not run here; what runs it, or why nothing has to

#
# Blocks with systemctl need a guest of their own, with systemd as process 1: the
# argument PASS is services for those, and plain for all others.  With a PLOOP_TEST_SCALE
# below 100, every second block is left out.

set -o pipefail
share=$1 pass=$2 scale=$3 seed=$4
nr_run=0 nr_elsewhere=0 nr_left_out=0 nr_failures=0 nr_blocks=0
patterns=() before=() after=() statuses=() flags=() ignored=() nr_used=()
declare -A reasons=() is_elsewhere_used=()
file_names=() file_texts=()
goes_on='' is_chosen='' is_left_out=''

example ()
{
  local i=${#patterns[@]}
  patterns+=("$1") before+=('') after+=('') statuses+=('') flags+=('')
  ignored+=('') nr_used+=(0)
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --before) before[i]=$2; shift 2 ;;
      --after)  after[i]=$2; shift 2 ;;
      --ignore) ignored[i]=$2; shift 2 ;;
      --status) statuses[i]=$2; shift 2 ;;
      --goes-on|--each-alone|--damaged|--connected) flags[i]+=" $1 "; shift ;;
      *) echo "the table: $1 means nothing"; exit 1 ;;
    esac
  done
}

elsewhere ()
{
  reasons[$1]=$2
}

# ---- What examples.pl prints

doc_block ()
{
  heading=$1 intro=$2 commands=() outputs=()
}

doc_command ()
{
  commands+=("$1") outputs+=("${2:-}")
}

# A file, for the commands of the next block.
doc_file ()
{
  file_names+=("$1") file_texts+=("$2")
}

doc_end ()
{
  local text
  [ ${#commands[@]} -gt 0 ] || return 0
  if all_elsewhere; then return; fi
  find_example
  # What goes on from block to block is run, or not, as a whole.
  [ -n "$goes_on" ] || choose_block
  if [ -n "$is_chosen" ]; then
    text="${commands[*]} ${before[number]} ${after[number]}"
    [ -n "$goes_on" ] || fresh_directory "$text"
    put_files "$text"
    run_block
    return
  fi
  [ -z "$is_left_out" ] || nr_left_out=$((nr_left_out + ${#commands[@]}))
  file_names=() file_texts=() goes_on=
  if has_flag --goes-on; then goes_on=yes; fi
}

choose_block ()
{
  local its_pass=plain
  case ${commands[*]} in *systemctl*) its_pass=services ;; esac
  nr_blocks=$((nr_blocks + 1))
  is_chosen='' is_left_out=''
  [ "$its_pass" = "$pass" ] || return 0
  [ "$scale" -ge 100 ] || [ $(((nr_blocks + seed) % 2)) -eq 0 ] || {
    is_left_out=yes
    return 0
  }
  is_chosen=yes
}

finish ()
{
  local i command
  [ -z "$goes_on" ] || failed "the table: the last block does not go on"
  for i in "${!patterns[@]}"; do
    [ "${nr_used[i]}" -eq 1 ] ||
      failed "the table: '${patterns[i]}' is in ${nr_used[i]} blocks, must be in one"
  done
  for command in "${!reasons[@]}"; do
    [ -n "${is_elsewhere_used[$command]:-}" ] ||
      failed "the table: no block has the command '$command'"
  done
  echo "@@ counted $nr_run $nr_elsewhere $nr_left_out"
  echo "$nr_run commands run, $nr_elsewhere elsewhere, $nr_left_out left out;" \
       "$nr_failures failures"
  [ "$nr_failures" -eq 0 ]
  exit
}

# ---- Running

failed ()
{
  echo "FAILED: $*"
  nr_failures=$((nr_failures + 1))
}

# Count the block's commands that are not run here; true if none is left.
all_elsewhere ()
{
  local i command
  for i in "${!commands[@]}"; do
    command=${commands[i]}
    [ -n "${reasons[$command]:-}" ] || continue
    echo "elsewhere: $command"
    echo "    ${reasons[$command]}"
    is_elsewhere_used[$command]=yes
    nr_elsewhere=$((nr_elsewhere + 1))
    unset "commands[i]"
  done
  [ ${#commands[@]} -eq 0 ]
}

# number: the block's line of the table; a line of nothing if it has none.
find_example ()
{
  local i text
  printf -v text '%s\n' "$heading" "${commands[@]}"
  number=${#patterns[@]}
  before[number]='' after[number]='' statuses[number]='' flags[number]=''
  ignored[number]=''
  for i in "${!patterns[@]}"; do
    case $text in
      *"${patterns[i]}"*) number=$i nr_used[i]=$((nr_used[i] + 1)) ;;
    esac
  done
}

# A directory for the reader, and what TEXT mentions of /vz.
fresh_directory ()
{
  mkdir "/reader/block-$nr_blocks"
  cd "/reader/block-$nr_blocks" || exit 1
  case $1 in
    */vz/*) rm -rf /vz/*
            mkdir -p /vz/private/101
            cp -a --sparse=always "$share/standard/root.hdd" /vz/private/101 ;;
  esac
  : > /run/block-began
}

# put_files TEXT: those of a reader's files that TEXT mentions.  Processes are slow to
# start in a guest, so all at once, and no others.
put_files ()
{
  local name wanted=()
  for name in "$share"/standard/*; do
    [ ! -e "${name##*/}" ] || continue
    case $1 in *"${name##*/}"*) wanted+=("$name") ;; esac
  done
  [ ${#wanted[@]} -eq 0 ] || cp -a --sparse=always "${wanted[@]}" .
}

has_flag ()
{
  case ${flags[number]} in *" $1 "*) ;; *) return 1 ;; esac
}

run_block ()
{
  local status=0 i
  for i in "${!file_names[@]}"; do
    mkdir -p "$(dirname "${file_names[i]}")"
    printf '%s' "${file_texts[i]}" > "${file_names[i]}"
  done
  file_names=() file_texts=()
  echo "---- $SECONDS s: $heading${intro:+: ${intro##*$'\n'}}"
  check "before it" "${before[number]}"
  # Whatever the commands change of the shell ends with them.
  (run_commands)
  status=$?
  nr_run=$((nr_run + ${#commands[@]}))
  nr_failures=$((nr_failures + status))
  if has_flag --goes-on; then
    goes_on=yes
    check_after
  else
    close_block
  fi
}

# Returns how many of them failed.
run_commands ()
{
  local i n=0 status expected nr_bad=0 output
  set +u
  read -ra expected <<< "${statuses[number]}"
  for i in "${!commands[@]}"; do
    output=$share/outputs/$(printf '%04d' $((nr_run + n)))
    status=0
    echo "\$ ${commands[i]}"
    run_command "${commands[i]}" < /dev/null > "$output.output" 2>&1 || status=$?
    if [ -n "${ignored[number]}" ]; then
      sed -i "/${ignored[number]//\//\\/}/d" "$output.output"
    fi
    if [ -n "${outputs[i]}" ]; then
      printf '%s' "${outputs[i]}" > "$output.expected"
      printf '%s' "${commands[i]}" > "$output.command"
    fi
    if [ "$status" -ne "${expected[n]:-0}" ]; then
      echo "FAILED: exit status $status, must be ${expected[n]:-0}"
      cat "$output.output"
      nr_bad=$((nr_bad + 1))
    fi
    if has_flag --each-alone; then end_servers; fi
    n=$((n + 1))
  done
  return "$nr_bad"
}

# Neither `set -e' nor a variable of ours changes what the command does.
run_command ()
{
  case $1 in
    'nbdkit -f '*) in_a_terminal_of_its_own "$1" ;;
    *) eval "$1" ;;
  esac
}

listening_sockets ()
{
  grep -hE '^[^ ]+ [^ ]+ [^ ]+ 00010000 |^ *[0-9]+: [^ ]+ [^ ]+ 0A ' \
    /proc/net/unix /proc/net/tcp /proc/net/tcp6
}

in_a_terminal_of_its_own ()
{
  local before i
  before=$(listening_sockets)
  (eval "$1") &
  for ((i = 0; i < 200; i++)); do
    [ "$(listening_sockets)" = "$before" ] || return 0
    kill -0 $! || { wait $!; return; }
    sleep 0.1
  done
  echo "does not listen"
  return 1
}

# ---- After a block

close_block ()
{
  goes_on=
  [ ${#commands[@]} -gt 0 ] || return 0
  # A server does not end as long as it has a client.
  [ "$pass" = services ] || check_devices
  check_after
  check_devices
  end_servers
  has_flag --damaged || check_images
  cd / || exit 1
  commands=()
}

check_after ()
{
  if [ "$pass" = plain ] && ! has_flag --goes-on; then end_servers; fi
  check "after it" "${after[number]}"
  after[number]=
}

# check WHEN CODE: all of CODE must succeed.  Not in a condition, where set -e is void.
check ()
{
  local status
  (set -e; eval "$2") < /dev/null > /run/check.log 2>&1
  status=$?
  [ "$status" -eq 0 ] || {
    failed "$1: '$2': exit status $status"
    cat /run/check.log
  }
}

servers ()
{
  local directory name
  for directory in /proc/[0-9]*; do
    { read -r name < "$directory/comm"; } 2> /dev/null || continue
    [ "$name" != nbdkit ] || echo "${directory#/proc/}"
  done
}

end_servers ()
{
  local pids i
  pids=$(servers)
  [ -n "$pids" ] || return 0
  # shellcheck disable=SC2086  # several
  kill $pids
  for ((i = 0; i < 300; i++)); do
    [ -n "$(servers)" ] || { rm -f /tmp/*.sock; return 0; }
    sleep 0.1
  done
  failed "a server does not end"
  # shellcheck disable=SC2086
  kill -KILL $pids
}

check_devices ()
{
  local device
  for device in /sys/block/nbd*/pid; do
    [ -e "$device" ] || continue
    has_flag --connected || failed "left connected: ${device%/pid}"
    device=${device%/pid}
    nbd-client -d "/dev/${device##*/}"
  done
}

check_images ()
{
  local disk image
  shopt -s nullglob globstar
  for disk in **/DiskDescriptor.xml /vz/**/DiskDescriptor.xml; do
    [ "$disk" -nt /run/block-began ] || has_changed "${disk%/*}"/* || continue
    check_disk "$disk"
  done
  for image in **/*.hds **/*.hds.'{'* /vz/**/*.hds /vz/**/*.hds.'{'*; do
    [ "$image" -nt /run/block-began ] || continue
    [ -e "${image%/*}/DiskDescriptor.xml" ] || check_disk "$image"
    case $(od -A n -t x4 -j 44 -N 4 "$image") in
      # Closed; and the same by a program that knows of bitmaps, if there are some.
      ' 00000000'|' 312e3276') ;;
      *) failed "left marked as in use: $image" ;;
    esac
  done
  shopt -u nullglob globstar
}

has_changed ()
{
  local name
  for name; do
    if [ "$name" -nt /run/block-began ]; then return; fi
  done
  return 1
}

# Leaks, such as holes between clusters in use, are no damage.
check_disk ()
{
  local status=0
  ploop-img check --allow-outside "$1" > /run/image.log 2>&1 || status=$?
  [ "$status" -eq 0 ] || [ "$status" -eq 3 ] || {
    failed "ploop-img check $1: exit status $status"
    cat /run/image.log
  }
}

# ---- For the tables

# same A B: two disks, in whatever form, read alike.
same ()
{
  case "$1$2" in
    *qcow2*) qemu-img compare "$1" "$2" ;;
    *) ploop-img compare "$1" "$2" ;;
  esac
}

# write_disk 'PARAMETER...' COMMAND...: qemu-io on a disk.
write_disk ()
{
  local args=() c
  for c in "${@:2}"; do args+=(-c "'$c'"); done
  # shellcheck disable=SC2086  # several words
  nbdkit -U - ploop $1 --run "qemu-io -d unmap -f raw ${args[*]} \$uri"
}

# one_snapshot DIRECTORY: a disk of 16 MiB with one snapshot, in its place.
one_snapshot ()
{
  rm -rf "$1"
  cp -a --sparse=never "$share/standard/one.hdd" "$1"
}

# name_store ADDRESS: which machine is called store.
name_store ()
{
  printf '%s\n' '127.0.0.1 localhost guest' "$1 store" > /etc/hosts
}

# A machine called store, which exports disk.raw as golden.
start_store ()
{
  if [ ! -e /run/netns/store ]; then
    ip netns add store
    ip link add store type veth peer name eth0 netns store
    ip addr add 192.0.2.1/24 dev store
    ip link set store up
    ip -n store addr add 192.0.2.2/24 dev eth0
    ip -n store link set eth0 up
  fi
  name_store 192.0.2.2
  ip netns exec store nbdkit -r -e golden file "$share/standard/disk.raw"
}

# qemu without a window, which ends when what it boots has said so to its serial line.
cat > /usr/local/sbin/qemu-system-x86_64 <<'QEMU'
#!/bin/bash
serial=/run/serial
: > "$serial"
/usr/bin/qemu-system-x86_64 -display none -serial file:$serial "$@" &
for ((i = 0; i < 600; i++)); do
  sleep 0.2
  if grep -q 'booted from ploop' "$serial"; then
    kill $!
    wait $!
    exit
  fi
  kill -0 $! || { wait $!; exit; }
done
echo "has not booted"
kill -KILL $!
exit 1
QEMU
chmod +x /usr/local/sbin/qemu-system-x86_64

# Not the overlay that / is: it does not tell holes truly.  And without what is on this
# host.
mkdir -p /reader /vz
mount -t tmpfs -o size=90% reader /reader
mount -t tmpfs -o size=90% vz /vz
rm -f /tmp/*.sock
# qemu wants more memory than it uses.
echo 1 > /proc/sys/vm/overcommit_memory
mkdir -p "$share/outputs"
