# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034

# What the shell tests share: to say what is needed, to fail, to serve an image
# and to leave nothing behind.  Sourced by bash with `set -euo pipefail`.
#
# From the outside: PLUGIN, PLOOP_IMG, PLOOP_CORPUS and GENERATE (set by make check),
# NBDKIT (a command prefix), NBDKIT_PRELOAD (LD_PRELOAD of the server only),
# PLOOP_PARAMETERS (more parameters of the plugin), PLOOP_TEST_SCALE, PLOOP_TEST_SEED,
# PLOOP_TEST_KEEP (keep the temporary directory).

: "${PLUGIN:?run this test with make check}"
: "${PLOOP_IMG:?run this test with make check}"
: "${PLOOP_CORPUS:?run this test with make check}"

# The path of a socket must stay below 108 bytes.
case "${TMPDIR:-/tmp}" in
  /*) tmp=${TMPDIR:-/tmp} ;;
  *) tmp=/tmp ;;
esac
if [ ${#tmp} -gt 60 ]; then tmp=/tmp; fi
tmp=$(mktemp -d "$tmp/ploop-test-XXXXXX")
sock=$tmp/sock
uri="nbd+unix:///?socket=$sock"
pid_file=$tmp/nbdkit.pid
nbdkit_log=$tmp/nbdkit.log
nbdkit_pid=
touch "$nbdkit_log"

# Seconds after which anything counts as hung.
hang_seconds=180

# ---- Saying, failing, skipping

say ()
{
  echo "${0##*/}: $*"
}

fail ()
{
  say "FAILED: $*" >&2
  exit 1
}

skip ()
{
  say "skipped: $*"
  exit 77
}

# requires CMD...: skip unless every CMD is installed.
requires ()
{
  local cmd
  for cmd in "$@"; do
    command -v "$cmd" > /dev/null || skip "$cmd is not installed"
    [ "$cmd" != ploop ] || has_ploop || skip "ploop cannot be used by $(id -un)"
  done
}

# Whether ploop can be used: with what it locks, which is root's in most places.
has_ploop ()
{
  local path=/var/lock/ploop/ploop.lck
  command -v ploop > /dev/null || return 1
  while [ ! -e "$path" ]; do path=${path%/*}; done
  [ -w "$path" ]
}

# True when NBDKIT is plain nbdkit: no valgrind, no sanitizer.
nbdkit_is_plain ()
{
  [ "${NBDKIT:-nbdkit}" = nbdkit ] && [ -z "${NBDKIT_PRELOAD:-}" ]
}

# What PLOOP_TEST_SCALE below 100 leaves out is another half with each
# PLOOP_TEST_SEED.
_seed=${PLOOP_TEST_SEED:-$RANDOM} RANDOM=$_seed
say "PLOOP_TEST_SEED=$_seed PLOOP_TEST_SCALE=${PLOOP_TEST_SCALE:-100}"

# chosen INDEX: every second one.
chosen ()
{
  [ "${PLOOP_TEST_SCALE:-100}" -ge 100 ] || [ $((($1 + _seed) % 2)) -eq 0 ]
}

# due: half of the cases, by chance.
due ()
{
  [ "${PLOOP_TEST_SCALE:-100}" -ge 100 ] || [ $((RANDOM / 7 % 2)) -eq 0 ]
}

# ---- Cleaning up

_cleanup_fns=()

# cleanup_fn CMD [ARG...]: run at exit, the last one first.
cleanup_fn ()
{
  _cleanup_fns+=("$(printf '%q ' "$@")")
}

_clean_up ()
{
  local status=$? i
  set +e
  trap '' INT TERM
  if [ $status -ne 0 ] && [ $status -ne 77 ]; then
    say "exit status $status"
  fi
  if [ $status -ne 0 ] && [ $status -ne 77 ] && [ -s "$nbdkit_log" ]; then
    echo "---- log of nbdkit"
    tail -n 200 "$nbdkit_log"
    echo "----"
  fi
  if [ -n "$nbdkit_pid" ]; then
    kill -KILL "$nbdkit_pid" 2> /dev/null
    wait "$nbdkit_pid" 2> /dev/null
  fi
  for ((i = ${#_cleanup_fns[@]} - 1; i >= 0; i--)); do
    eval "${_cleanup_fns[i]}"
  done
  if [ -n "${PLOOP_TEST_KEEP:-}" ]; then
    say "kept $tmp"
  else
    rm -rf "$tmp"
  fi
  exit $status
}
trap _clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# ---- Waiting

# nap: a fiftieth of a second, without a process for it.  Nothing is ever written
# to the pipe.
exec {_never}<> <(:)
nap ()
{
  read -r -t 0.02 -u "$_never" _ || :
}

# wait_until CMD [ARG...]: poll CMD until it succeeds; nonzero after
# hang_seconds.
wait_until ()
{
  local end=$((SECONDS + hang_seconds))
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    nap
  done
}

_has_ended ()
{
  ! kill -0 "$1" 2> /dev/null
}

# ---- Serving

# Fail when a sanitizer or valgrind, if there is one, has found something.
check_log ()
{
  local bad='ERROR: AddressSanitizer|ERROR: LeakSanitizer|runtime error:'
  bad="$bad|ThreadSanitizer|^==[0-9]+== "
  if nbdkit_is_plain; then return; fi
  if grep -E "$bad" "$nbdkit_log" | grep -v 'Warning: set address range'; then
    fail "the server's log has an error found by a sanitizer or valgrind"
  fi
}

# run_nbdkit ARG...: nbdkit in the foreground with the prefix and the preload.
# Not for what must come up: see start_nbdkit.
run_nbdkit ()
{
  if [ -n "${NBDKIT_PRELOAD:-}" ]; then
    env LD_PRELOAD="$NBDKIT_PRELOAD" ${NBDKIT:-nbdkit} "$@"
  else
    ${NBDKIT:-nbdkit} "$@"
  fi
}

_launch_nbdkit ()
{
  if [ -n "${NBDKIT_PRELOAD:-}" ]; then
    export LD_PRELOAD=$NBDKIT_PRELOAD
  fi
  exec ${NBDKIT:-nbdkit} "$@"
}

# Where start_nbdkit listens, in nbdkit's options, if that is not $sock.
listen=()

# start_nbdkit ARG...: serve with PLUGIN and ARGs on $sock ($uri).  Options of
# nbdkit may stand among them.  Sets nbdkit_pid.  When the server does not come
# up: nonzero, nbdkit_status is its exit status, and $nbdkit_log has the text.
start_nbdkit ()
{
  local end=$((SECONDS + hang_seconds)) address=("${listen[@]}")
  [ ${#address[@]} -gt 0 ] || address=(-U "$sock")
  [ -z "$nbdkit_pid" ] || fail "a server runs already"
  if [ -e "$sock" ] || [ -e "$pid_file" ]; then rm -f "$sock" "$pid_file"; fi
  : > "$nbdkit_log"
  # shellcheck disable=SC2086  # several words
  (_launch_nbdkit -f "${address[@]}" -P "$pid_file" "$PLUGIN" "$@" \
     ${PLOOP_PARAMETERS:-}) \
    < /dev/null >> "$nbdkit_log" 2>&1 &
  nbdkit_pid=$!
  nbdkit_status=0
  until [ -s "$pid_file" ]; do
    if _has_ended "$nbdkit_pid"; then
      wait "$nbdkit_pid" || nbdkit_status=$?
      nbdkit_pid=
      return 1
    fi
    [ $SECONDS -lt $end ] || fail "the server does not come up"
    nap
  done
}

# stop_nbdkit: SIGTERM, wait, check the exit status and the log.
stop_nbdkit ()
{
  local status=0 pid=$nbdkit_pid
  [ -n "$pid" ] || fail "no server runs"
  kill -TERM "$pid" || fail "the server has gone before it was stopped"
  wait_until _has_ended "$pid" || fail "the server does not end"
  wait "$pid" || status=$?
  nbdkit_pid=
  check_log
  [ $status -eq 0 ] || fail "the server's exit status is $status"
}

# expect_refusal TEXT ARG...: nbdkit PLUGIN ARGs must exit with an error (not
# by a signal), not hang, and say TEXT (an extended regular expression).
expect_refusal ()
{
  local text=$1 line=
  shift
  if start_nbdkit "$@"; then
    stop_nbdkit
    fail "served, must be refused: $*"
  fi
  check_log
  [ "$nbdkit_status" -eq 1 ] ||
    fail "exit status $nbdkit_status, must be 1: $*"
  grep -Eqi -- "$text" "$nbdkit_log" ||
    fail "refused without saying '$text': $*"
  read -r line < "$nbdkit_log" || :
  say "refused: $line"
}

# ---- Content

# io COMMAND...: qemu-io on what is served.
io ()
{
  local args=() c
  for c in "$@"; do args+=(-c "$c"); done
  qemu-io -t writeback -f raw "${args[@]}" "$uri" > "$tmp/io.log" 2>&1 ||
    { cat "$tmp/io.log"; fail "qemu-io: $*"; }
}

# io_both COMMAND...: the same, and on $tmp/raw, which says what must be there.
io_both ()
{
  local args=() c
  io "$@"
  for c in "$@"; do args+=(-c "$c"); done
  qemu-io -f raw "${args[@]}" "$tmp/raw" > /dev/null
}

# expect_content WHAT: what is served is what $tmp/raw has.
expect_content ()
{
  nbdcopy "$uri" "$tmp/out" || fail "$1: cannot be read"
  cmp "$tmp/out" "$tmp/raw" || fail "$1: not the content that it must have"
}

# ---- A server below ours

remote_sock=$tmp/rsock
remote_uri="nbd+unix:///?socket=$remote_sock"
remote_pid=

_end_remote ()
{
  [ -z "$remote_pid" ] || kill -KILL "$remote_pid" 2> /dev/null
}
cleanup_fn _end_remote

# start_remote ARG...: nbdkit with ARGs, at $remote_uri.
start_remote ()
{
  rm -f "$remote_sock" "$tmp/rpid"
  nbdkit -f -U "$remote_sock" -P "$tmp/rpid" "$@" \
    < /dev/null >> "$tmp/remote.log" 2>&1 &
  remote_pid=$!
  wait_until test -s "$tmp/rpid" ||
    { cat "$tmp/remote.log"; fail "the base's server does not come up"; }
}

# stop_remote [SIGNAL]: it may have ended by itself.
stop_remote ()
{
  kill "-${1:-TERM}" "$remote_pid" 2> /dev/null || true
  wait "$remote_pid" 2> /dev/null || true
  remote_pid=
}

# ---- Images

# unpack_corpus: the shared corpus, in $tmp/corpus.
unpack_corpus ()
{
  requires zstd tar
  tar --zstd -xSf "$PLOOP_CORPUS/corpus.tar.zst" -C "$tmp"
}

# generate SEED DIR [OPTION...]: a disk made at random, in DIR, which must not exist
# yet.  Its path is in `disk`; generate/generate.c tells what else is in DIR.
generate ()
{
  local _
  [ -x "${GENERATE:-}" ] || fail "GENERATE is not set: use make check"
  "$GENERATE" --seed="$1" "${@:3}" "$2" || fail "generate $*"
  IFS=$'\t' read -r disk _ < <(manifest "$2" disk)
  disk=$2/$disk
}

# manifest DIR KIND: the lines of that kind in the manifest of a generated disk,
# without this first field.
manifest ()
{
  sed -n "s/^$2\t//p" "$1/manifest.tsv"
}

printf -v _filling '%9000s' ''

# run_ploop DIR ARG...: the real ploop tool, run in DIR.  It needs a large
# environment, for it overwrites it with its title.  PLOOP_LIMIT, when set, is a
# command that runs it.
run_ploop ()
{
  (cd "$1" && shift &&
   X=$_filling exec ${PLOOP_LIMIT:-} ploop "$@")
}

# ploop_check_delta FILE: FILE must be clean in the eyes of ploop check, which
# changes nothing because of -r.  It takes the unwritten extents of ext4 for
# holes and would fill them; with -S as well it only says so.
ploop_check_delta ()
{
  run_ploop "$(dirname "$1")" check -f -c -r -S "$(basename "$1")" \
    > "$tmp/ploop.log" 2>&1 || {
    cat "$tmp/ploop.log"
    fail "ploop check: $1"
  }
}

# in_use FILE: the in-use field, in hexadecimal.
in_use ()
{
  od -A n -t x4 -j 44 -N 4 "$1" | tr -d ' '
}

# file_state FILE: what must not change when FILE is only read.  Not its blocks:
# a sync may allocate what was put off.
file_state ()
{
  echo "$(sha256sum < "$1") $(stat -c '%s %y %i' "$1")"
}
