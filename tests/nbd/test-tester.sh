#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that a disk has what was written to it, in the eyes of tester: on several
# connections, on others afterwards, and when the server was started again; with random
# requests, and with those of mkfs and of a system that boots, as traces.  And that
# tester would notice, if it were not so: of servers that forget all, that forget what
# was written when they are started again, and that cannot do what is asked, it says
# so.  It prints throughput, which is not judged.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires nbdcopy
: "${TESTER:?run this test with make check}"

image=$tmp/image.hds
scale=${PLOOP_TEST_SCALE:-100}

# tester STATUS ARG...: what it prints is in tester.log.
tester ()
{
  local want=$1 status=0
  shift
  "$TESTER" "$@" > "$tmp/tester.log" 2>&1 || status=$?
  [ $status -eq "$want" ] ||
    { cat "$tmp/tester.log"; fail "tester $*: exit status $status, not $want"; }
}

# says TEXT: tester did, an extended regular expression.
says ()
{
  grep -Eq -- "$1" "$tmp/tester.log" ||
    { cat "$tmp/tester.log"; fail "tester does not say '$1'"; }
}

# A server that tester can start again by itself: $tmp/restart.
cat > "$tmp/restart" <<END
set -eu
pid=\$(cat "$pid_file")
kill -TERM \$pid
while grep -qs '^State:[[:space:]]*[^Z[:space:]]' /proc/\$pid/status; do sleep 0.02; done
rm -f "$sock" "$pid_file"
[ -z "\${1:-}" ] || "$PLOOP_IMG" create -q --force --cluster-size=64K "$image" 32M
${NBDKIT_PRELOAD:+LD_PRELOAD=$NBDKIT_PRELOAD} ${NBDKIT:-nbdkit} -U "$sock" \
  -P "$pid_file" "$PLUGIN" file="$image" ${PLOOP_PARAMETERS:-} 2>> "$nbdkit_log"
while ! [ -s "$pid_file" ]; do sleep 0.02; done
END

kill_daemon ()
{
  [ ! -s "$pid_file" ] || kill -KILL "$(cat "$pid_file")" 2> /dev/null
}
cleanup_fn kill_daemon

has_gone ()
{
  ! grep -qs '^State:[[:space:]]*[^Z[:space:]]' "/proc/$1/status"
}

# serve: a new image, by a server in the background.
serve ()
{
  rm -f "$image" "$sock" "$pid_file"
  "$PLOOP_IMG" create -q --cluster-size=64K "$image" 32M
  run_nbdkit -U "$sock" -P "$pid_file" "$PLUGIN" file="$image" \
    ${PLOOP_PARAMETERS:-} 2>> "$nbdkit_log"
  wait_until test -s "$pid_file" || fail "the server does not come up"
}

end_serving ()
{
  local pid status=0
  pid=$(< "$pid_file")
  kill -TERM "$pid"
  wait_until has_gone "$pid" || fail "the server does not end"
  rm "$pid_file"
  check_log
  [ "$(in_use "$image")" = 00000000 ] || fail "still marked in use"
  "$PLOOP_IMG" check -q "$image" || status=$?
  [ $status -eq 0 ] || [ $status -eq 3 ] || fail "ploop-img check: status $status"
}

say "integrity"
serve
tester 0 integrity --connections=4 --depth=16 --requests=$((20 * scale)) --rounds=2 \
  --between="sh $tmp/restart" "$uri"
says 'round 2: all is as it must be'
say "throughput"
tester 0 throughput --connections=2 --depth=8 --seconds=1 --write=50 "$uri"
says '^[0-9.]+ MB/s, [1-9][0-9]* IOPS$'
says '^microseconds: p50 [0-9]+, p90 [0-9]+, p99 [0-9]+, p99.9 [0-9]+, max [0-9]+$'
grep -A 3 requests "$tmp/tester.log"
tester 0 throughput --sequential --block=1M --depth=2 --seconds=1 "$uri"
end_serving

say "traces"
for like in mkfs boot; do
  tester 0 trace --like=$like --size=32M "$tmp/$like"
  [ "$(grep -c '^[rwztfb]' "$tmp/$like")" -gt 20 ] || fail "hardly a trace: $like"
done
cat "$tmp/mkfs" "$tmp/boot" > "$tmp/trace"
serve
tester 0 replay --trace="$tmp/trace" --connections=4 --depth=32 \
  --between="sh $tmp/restart" "$uri"
end_serving
# One seed: the same bytes, whoever has them and however many connections there are.
# What is trimmed is zeros with both.
export PLOOP_TEST_SEED=7
serve
tester 0 replay --trace="$tmp/trace" --depth=1 "$uri"
nbdcopy "$uri" "$tmp/ours"
end_serving
start_remote memory 32M
tester 0 replay --trace="$tmp/trace" --connections=8 --depth=64 "$remote_uri"
nbdcopy "$remote_uri" "$tmp/theirs"
cmp "$tmp/ours" "$tmp/theirs" || fail "two servers, one trace, and two disks"
stop_remote
unset PLOOP_TEST_SEED

say "what tester must notice"
start_remote null 32M
tester 1 integrity "$remote_uri"
says 'is 0x00, must be 0x|is 0x.*, but an extent with it has the flags 3'
# nbdkit may abort when a client ends with requests in flight, as tester just did.
stop_remote
start_remote null 32M
tester 1 replay --trace="$tmp/trace" "$remote_uri"
says 'is 0x00, must be 0x'
stop_remote
serve
tester 1 integrity --requests=500 --between="sh $tmp/restart empty" "$uri"
says 'read back: .*must be 0x'
printf 'w 1M 64K\n' > "$tmp/one"
tester 1 replay --trace="$tmp/one" --between="sh $tmp/restart empty" "$uri"
says 'read back: .*must be 0x'
tester 1 integrity --between=false "$uri"
says "'false' ends with status"
printf 'r 31M 2M\n' > "$tmp/beyond"
tester 1 replay --trace="$tmp/beyond" "$uri"
says 'request 1 of the trace is beyond the disk'
end_serving
start_remote --filter=error memory 32M error-pwrite-rate=1%
tester 1 integrity "$remote_uri"
says 'write.*Input/output error'
stop_remote
start_remote -r memory 32M
tester 1 integrity "$remote_uri"
says 'is read-only'
tester 1 replay --trace="$tmp/one" "$remote_uri"
says 'is read-only'
tester 0 throughput --seconds=1 "$remote_uri"
stop_remote
start_remote --filter=multi-conn memory 32M multi-conn-mode=disable
tester 1 integrity --connections=2 "$remote_uri"
says 'multi-conn'
tester 0 integrity --requests=200 "$remote_uri"
stop_remote
start_remote --filter=nozero --filter=fua memory 32M zeromode=none fuamode=discard
tester 0 integrity --connections=2 --requests=200 "$remote_uri"
stop_remote

say "what is no trace, and what is no command"
for line in 'x 0 1' 'r' 'r 0' 'r 0 0' 'r -1 1' 'r 0 1Q' 'w 0 1 now' 'r 0 1 fua' \
    'w 0 1 fua fua' 'f 1' 'r 99999999999999999999 1' 'r 16777216T 1'; do
  printf '# comment\n\nw 0 4K fua  # and another\n%s\n' "$line" > "$tmp/bad"
  tester 1 replay --trace="$tmp/bad" "$uri"
  says 'bad: line 4 is no request'
done
tester 2 "$uri"
tester 2 nothing "$uri"
says 'nothing: there is no such mode'
tester 2 integrity --depth=0 "$uri"
says '--depth=0: must be from 1'
tester 2 integrity --deep=1 "$uri"
tester 1 integrity "nbd+unix:///?socket=$tmp/nobody"
says 'No such file'
say "passed"
