#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that the numbers a running server tells are those of what was asked of it:
# in the file for Prometheus, which is right and whole whenever it is read, up to the
# end of the server, and in the log on SIGUSR1, which ends no server at any time.
# Names of disks cannot break the file; nothing else is ever replaced by it; and a
# file that cannot be written stops no server that runs.

set -euo pipefail

# In a mount namespace of its own, so that no mount can be left behind.
if [ -z "${IN_OWN_NAMESPACE:-}" ] && [ "$(id -u)" = 0 ] &&
   unshare -m true 2> /dev/null; then
  IN_OWN_NAMESPACE=1 exec unshare -m "$BASH" "$0"
fi

. "$abs_top_srcdir/tests/functions.sh"
requires qemu-io qemu-img perl prlimit

# Below a directory of its own, so that what is left behind is seen.
dir=$tmp/stats
mkdir "$dir"
stats=$dir/ploop.prom
image=$tmp/disk.hds
cluster=65536

new_image ()
{
  rm -f "$image"
  "$PLOOP_IMG" create -q --cluster-size=64K "$image" 8M
}

# ---- Reading the file

check_metrics ()
{
  perl "$abs_srcdir/check-metrics.pl" "$@" 2> "$tmp/check.log"
}

# expect_right [OLD]: the file is right, and goes on from OLD.
expect_right ()
{
  check_metrics "$@" "$stats" || fail "$(cat "$tmp/check.log")"
}

# serve ARG...: with a file.  The PID file is there before it, and it before anybody
# is served.
serve ()
{
  rm -f "$stats"
  start_nbdkit "$@" stats-file="$stats" || fail "not served: $(cat "$nbdkit_log")"
  wait_until test -e "$stats" || fail "no file"
}

# value_of SERIES: its number; empty when there is none.  In the format's own words.
value_of ()
{
  local line
  while IFS= read -r line; do
    if [ "${line% *}" = "$1" ]; then
      echo "${line##* }"
      return
    fi
  done < "$stats"
}

# of METRIC [LABEL]: of the disk that is served without a name.
of ()
{
  value_of "ploop_$1{disk=\"$image\"${2:+,$2}}"
}

expect ()
{
  local wanted=$1 found
  shift
  found=$(of "$@")
  [ "$found" = "$wanted" ] || fail "$* is '$found', must be $wanted"
}

_is_at_least ()
{
  local found
  found=$(value_of "$2")
  [ -n "$found" ] && [ "$found" -ge "$1" ]
}

# wait_for N SERIES: until it is at least N.
wait_for ()
{
  wait_until _is_at_least "$@" || fail "$2 does not become $1"
}

# Nothing but the file itself is there.
expect_nothing_left ()
{
  local found
  found=$(cd "$dir" && echo *)
  [ "$found" = "${1-ploop.prom}" ] || fail "in the file's directory: $found"
}

# nr_said TEXT: lines of the log with it.
nr_said ()
{
  grep -c -- "$1" "$nbdkit_log" || :
}

_has_said ()
{
  [ "$(nr_said "$2")" -ge "$1" ]
}

wait_until_said ()
{
  wait_until _has_said "$@" || fail "not said $1 times: $2"
}

# What runs in the background.
load=
_end_load ()
{
  [ -z "$load" ] || kill "$load" 2> /dev/null
}
cleanup_fn _end_load

# ---- The judge can say no

say "wrong files"
new_image
serve "$image"
stop_nbdkit
expect_right
cp "$stats" "$tmp/right"
# refuses WHAT PERL: the file, changed so, is not right.
refuses ()
{
  perl -0777 -pe "$2" "$tmp/right" > "$tmp/wrong"
  ! cmp -s "$tmp/right" "$tmp/wrong" || fail "$1: nothing was changed"
  ! check_metrics "$tmp/wrong" || fail "$1: not noticed"
}
refuses "cut off" 's/.{20}\z//s'
refuses "cut off at a line" 's/[^\n]*\n\z//'
refuses "cut off at a metric" 's/# HELP ploop_writeback.*//s'
refuses "not UTF-8" 's/disk="/disk="\xff/'
refuses "an escape" 's/disk="/disk="\\x/'
refuses "a quote" 's/disk="/disk="a"b/'
refuses "a line's end in a label" 's/disk="/disk="\n/'
refuses "a label twice" 's/\{disk=("[^"]*")/{disk=$1,disk=$1/'
refuses "a series twice" 's/(ploop_disk_size_bytes\{.*?\n)/$1$1/'
refuses "a metric twice" 's/(# HELP ploop_disk_size.*?)(?=# HELP)/$1$1/s'
refuses "no type" 's/# TYPE ploop_commits.*?\n//'
refuses "no help" 's/# HELP ploop_commits.*?\n//'
refuses "another type" 's/(ploop_commits_total) counter/$1 gauge/'
refuses "no number" 's/(ploop_commits_total\{.*?\}) \d+/$1 x/'
refuses "less than nothing" 's/(ploop_commits_total\{.*?\}) /$1 -/'
refuses "a comma in a number" 's/(duration_seconds_sum\{.*?\} 0)\./$1,/'
refuses "a bucket too few" 's/(le="\+Inf")/le="9"/'
refuses "a bucket that shrinks" 's/(le="8.192e-06"\}) 0/$1 7/'
refuses "another count" 's/(duration_seconds_count\{.*?\}) \d+/$1 99/'
refuses "no sum" 's/[^\n]*duration_seconds_sum\{[^\n]*\n//'
perl -pe 's/(ploop_server_start.*) \d+/$1 1/; s/(_writes_total\{.*\}) 0/$1 1/' \
  "$stats" > "$tmp/later"
check_metrics "$stats" "$tmp/later" || fail "$(cat "$tmp/check.log")"
! check_metrics "$tmp/later" "$stats" || fail "backwards: not noticed"

# ---- One disk

say "known requests"
new_image
umask 022
serve "$image" stats-interval=1
expect_right
expect_nothing_left
[ "$(stat -c %a "$stats")" = 644 ] || fail "a collector may not read it"
for operation in read write zero trim flush; do
  expect 0 requests_total "operation=\"$operation\""
done
for series in disk_open:1 disk_size_bytes:8388608 \
    disk_cluster_size_bytes:$cluster disk_clusters:128 \
    disk_allocated_clusters:0 disk_free_clusters:0 disk_sync_failed:0 \
    disk_file_size_bytes:"$(stat -c %s "$image")"; do
  expect "${series#*:}" "${series%:*}"
done
expect 1 disk_info 'format="2",mode="rw"'
version=$(run_nbdkit --dump-plugin "$PLUGIN" |
          sed -n 's/^ploop_core_version=//p')
[ "$(value_of "ploop_server_info{served=\"$image\",version=\"$version\"}")" = 1 ] ||
  fail "the server's version is not told"
cp "$stats" "$tmp/old"
io 'write 0 256k' 'write 1M 4k' 'write -f 2M 8k' 'read 0 100k' 'read 4M 512' \
  'read 0 4k' 'write -z 3M 64k' 'discard 64k 128k' flush
wait_for 3 "ploop_requests_total{disk=\"$image\",operation=\"read\"}"
expect_right "$tmp/old"
cp "$stats" "$tmp/old"
stop_nbdkit
expect_right "$tmp/old"
expect_nothing_left
expect 3 requests_total 'operation="read"'
expect 3 requests_total 'operation="write"'
expect 1 requests_total 'operation="zero"'
expect 1 requests_total 'operation="trim"'
expect $((100 * 1024 + 512 + 4096)) request_bytes_total 'operation="read"'
expect $((256 * 1024 + 4096 + 8192)) request_bytes_total 'operation="write"'
expect 65536 request_bytes_total 'operation="zero"'
expect 131072 request_bytes_total 'operation="trim"'
expect 1 fua_requests_total
expect 0 failed_requests_total
expect 6 cluster_allocations_total
expect 2 cluster_frees_total
expect 3 request_duration_seconds_count 'operation="read"'
expect 3 request_duration_seconds_bucket 'operation="write",le="+Inf"'
flushes=$(of requests_total 'operation="flush"')
[ "$flushes" -ge 1 ] || fail "no flush was counted"
[ $(($(of fast_path_requests_total) + $(of queued_requests_total))) -eq \
  $((8 + flushes)) ] || fail "not all requests were served in some way"
# The last numbers are those of the file that is left.
expect 4 disk_allocated_clusters
expect "$(stat -c %s "$image")" disk_file_size_bytes
"$PLOOP_IMG" check "$image" > "$tmp/check.log" || [ $? -eq 3 ] ||
  { cat "$tmp/check.log"; fail "ploop-img check"; }
grep -q ', of which 4 allocated' "$tmp/check.log" ||
  { cat "$tmp/check.log"; fail "ploop-img check counts others"; }

say "requests that fail"
NBDKIT="prlimit --fsize=$((1024 * 1024)) ${NBDKIT:-nbdkit}" \
  serve "$image" prealloc=64K
if qemu-io -t writeback -f raw -c 'write 4M 2M' "$uri" > "$tmp/io.log" 2>&1 &&
   ! grep -q 'failed' "$tmp/io.log"; then
  cat "$tmp/io.log"
  fail "written past the limit"
fi
stop_nbdkit
expect_right
[ "$(of failed_requests_total)" -ge 1 ] || fail "no failure was counted"

say "read-only"
serve -r "$image"
qemu-io -r -f raw -c 'read 0 64k' "$uri" > "$tmp/io.log" || fail "cannot be read"
stop_nbdkit
expect_right
expect 1 disk_info 'format="2",mode="ro"'
expect 1 requests_total 'operation="read"'
expect 0 disk_free_clusters

# ---- Whole whenever it is read

say "read all the time"
serve "$image" stats-interval=1
check_metrics --watch "$stats" 2.5 > "$tmp/nr" || fail "$(cat "$tmp/check.log")"
[ "$(cat "$tmp/nr")" -ge 2 ] || fail "it was not written anew"
stop_nbdkit

# ---- SIGUSR1

say "the signal"
start_nbdkit "$image" || fail "not served"
io 'write 0 64k' 'read 0 64k'
kill -USR1 "$nbdkit_pid"
wait_until_said 1 'statistics: 1 disk open$'
wait_until_said 1 "statistics: $image: write  *1$"
wait_until_said 1 "statistics: $image: [0-9]* of 128 clusters allocated, "
io 'read 0 64k'
stop_nbdkit

say "the signal under load, and while the server ends"
serve "$image" stats-interval=1
qemu-img bench -q -f raw -c 20000 -d 16 -s 4096 "$uri" > "$tmp/io.log" 2>&1 &
load=$!
for _ in {1..50}; do
  kill -USR1 "$nbdkit_pid"
  nap
done
wait "$load" || fail "the client has seen an error"
wait_until_said 2 'statistics: 1 disk open$'
kill -TERM "$nbdkit_pid"
while kill -USR1 "$nbdkit_pid" 2> /dev/null; do nap; done
status=0
wait "$nbdkit_pid" || status=$?
nbdkit_pid=
check_log
[ $status -eq 0 ] || fail "exit status $status"
expect_right
expect 20000 requests_total 'operation="read"'

# As soon as the image is open, long before it serves.
say "the signal while the server starts"
for _ in 1 2 3; do
  : > "$nbdkit_log"
  rm -f "$pid_file" "$sock"
  (_launch_nbdkit -v -f -U "$sock" -P "$pid_file" "$PLUGIN" "$image") \
    < /dev/null >> "$nbdkit_log" 2>&1 &
  nbdkit_pid=$!
  wait_until_said 1 'opened for writing'
  kill -USR1 "$nbdkit_pid" || fail "ended by the signal"
  wait_until test -s "$pid_file" || fail "it does not come up"
  wait_until_said 1 'statistics: 1 disk open$'
  stop_nbdkit
done

# With --run, it is the parent whose number the user knows.  The thread sanitizer
# keeps signals back while that waits for the command.
if nbdkit_is_plain; then
  say "the signal with --run"
  cat > "$tmp/command" <<'EOF'
kill -USR1 $PPID
for _ in $(seq 500); do
  grep -q 'statistics: 1 disk open' "$1" && exit 0
  sleep 0.02
done
exit 3
EOF
  : > "$nbdkit_log"
  run_nbdkit -U - "$PLUGIN" "$image" \
    --run "exec sh '$tmp/command' '$nbdkit_log'" > "$nbdkit_log" 2>&1 ||
    fail "not answered"
fi

# ---- A directory, with names that would break the file if they could

say "hostile names"
disks=$tmp/disks
mkdir "$disks"
# By what the client sends, how the label must look.
declare -A label=(
  [plain.hds]='plain.hds'
  [a%22b.hds]='a\"b.hds'
  [back%5Cslash.hds]='back\\slash.hds'
  [two%0Alines.hds]='two\nlines.hds'
  [%5Cn.hds]='\\n.hds'
  [gr%C3%B6%C3%9Fe.hds]='größe.hds'
  [bad%FF.hds]=$'bad\xef\xbf\xbdff.hds'
  [bad%EF%BF%BDff.hds]=$'bad\xef\xbf\xbdef\xef\xbf\xbdbf\xef\xbf\xbdbdff.hds'
  [long%E2%82.hds]=$'long\xef\xbf\xbde2\xef\xbf\xbd82.hds'
  [%22%7D%201%0A%23%20HELP.hds]='\"} 1\n# HELP.hds'
  [%20.hds]=' .hds'
)
for name in "${!label[@]}"; do
  printf -v file '%b' "${name//%/\\x}"
  "$PLOOP_IMG" create -q --cluster-size=64K "$disks/$file" 1M
done

uri_of ()
{
  echo "nbd+unix:///$1?socket=$sock"
}

# named METRIC NAME [LABEL]
named ()
{
  value_of "ploop_$1{disk=\"$disks/${label[$2]}\"${3:+,$3}}"
}

write_to ()
{
  qemu-io -t writeback -f raw -c 'write 0 4k' "$(uri_of "$1")" > "$tmp/io.log" 2>&1 ||
    { cat "$tmp/io.log"; fail "qemu-io: $1"; }
}

serve dir="$disks" stats-interval=1 idle-close=0
expect_right
cp "$stats" "$tmp/old"
for name in "${!label[@]}"; do write_to "$name"; done
write_to plain.hds
wait_for 2 "ploop_requests_total{disk=\"$disks/plain.hds\",operation=\"write\"}"
_all_are_closed ()
{
  ! grep -q '^ploop_disk_open.* 1$' "$stats"
}
wait_until _all_are_closed || fail "a disk stays open"
kill -USR1 "$nbdkit_pid"
wait_until_said 1 'statistics: 0 disks open$'
expect_right "$tmp/old"
cp "$stats" "$tmp/old"
for name in "${!label[@]}"; do
  wanted=1
  [ "$name" != plain.hds ] || wanted=2
  [ "$(named requests_total "$name" 'operation="write"')" = $wanted ] ||
    fail "$name: not the writes that it got"
  # What closing does counts, too.
  [ "$(named commits_total "$name")" -ge $wanted ] || fail "$name: no commit"
  [ "$(named disk_open "$name")" = 0 ] || fail "$name: is not closed"
  [ -z "$(named disk_size_bytes "$name")" ] || fail "$name: closed, with a size"
done
[ "$(grep -c '^ploop_disk_open' "$stats")" -eq ${#label[@]} ] ||
  fail "not as many disks as there are"
# With some of them in use while it is written.
qemu-img bench -q -w -f raw -c 5000 -s 4096 "$(uri_of plain.hds)" \
  > "$tmp/load.log" 2>&1 &
load=$!
for _ in {1..10}; do write_to a%22b.hds; write_to %5Cn.hds; done
kill -USR1 "$nbdkit_pid"
wait "$load" || fail "the client has seen an error"
stop_nbdkit
expect_right "$tmp/old"
[ "$(named requests_total plain.hds 'operation="write"')" = 5002 ] ||
  fail "the counter does not go on"
[ "$(named requests_total a%22b.hds 'operation="write"')" = 11 ] ||
  fail "the counter does not go on"
if grep 'statistics: ' "$nbdkit_log" | grep -v 'nbdkit: .*error: statistics: '; then
  fail "a name looks like lines of the log"
fi

say "snapshots"
guid='{00000001-aaaa-2222-3333-444444444444}'
mkdir "$disks/root.hdd"
"$PLOOP_IMG" create -q --cluster-size=64K --descriptor "$disks/root.hdd/root.hds" 1M
"$PLOOP_IMG" snapshot create -q --guid="$guid" "$disks/root.hdd"
root=$disks/root.hdd
serve dir="$disks"
qemu-io -r -f raw -c 'read 0 4k' -c 'read 0 4k' \
  "$(uri_of "root.hdd/%7B${guid:1:36}%7D")" > "$tmp/io.log" 2>&1 ||
  { cat "$tmp/io.log"; fail "qemu-io"; }
write_to root.hdd
stop_nbdkit
expect_right
shot="disk=\"$root\",snapshot=\"$guid\""
[ "$(value_of "ploop_requests_total{$shot,operation=\"read\"}")" = 2 ] ||
  fail "the snapshot's reads"
[ "$(value_of "ploop_requests_total{disk=\"$root\",operation=\"read\"}")" = 0 ] ||
  fail "the disk has got its snapshot's reads"
[ "$(value_of "ploop_requests_total{disk=\"$root\",operation=\"write\"}")" = 1 ] ||
  fail "the disk's write"
[ "$(value_of "ploop_disk_info{$shot,format=\"2\",mode=\"ro\"}")" = 1 ] ||
  fail "what the snapshot is"
# A server of one disk and its snapshot, under both names.
serve "$root" snapshot="$guid"
qemu-io -r -f raw -c 'read 0 4k' "$(uri_of "%7B${guid:1:36}%7D")" > "$tmp/io.log" ||
  fail "qemu-io"
qemu-io -r -f raw -c 'read 0 4k' -c 'read 0 4k' "$(uri_of '')" > "$tmp/io.log" ||
  fail "qemu-io"
stop_nbdkit
expect_right
[ "$(value_of "ploop_requests_total{$shot,operation=\"read\"}")" = 1 ] ||
  fail "the snapshot's reads by its name"
[ "$(value_of "ploop_requests_total{disk=\"$root\",operation=\"read\"}")" = 2 ] ||
  fail "the snapshot's reads without a name"

# Many that were closed: the last of them are remembered.
if chosen 0; then
  say "many disks"
  mkdir "$tmp/many"
  "$PLOOP_IMG" create -q --cluster-size=32K "$tmp/many/0.hds" 32K
  for i in {1..270}; do cp "$tmp/many/0.hds" "$tmp/many/$i.hds"; done
  serve dir="$tmp/many" idle-close=0
  nbdinfo --list "$uri" > "$tmp/list" || fail "nbdinfo --list"
  stop_nbdkit
  expect_right
  nr=$(grep -c '^ploop_disk_open' "$stats")
  [ "$nr" -eq 256 ] || fail "$nr disks are remembered"
  rm -r "$tmp/many"
fi

# ---- What cannot be written

# expect_no_file TEXT PATH: refused, and nothing was changed.
expect_no_file ()
{
  local before
  before=$(ls -lA --time-style=full-iso "$dir" "$tmp/image-state")
  expect_refusal "stats-file=.*$1" "$image" stats-file="$2"
  [ "$(ls -lA --time-style=full-iso "$dir" "$tmp/image-state")" = "$before" ] ||
    fail "refused, with something changed: $2"
}

say "refused"
mkdir "$tmp/image-state"
cp "$image" "$tmp/image-state/other.hds"
mkdir "$dir/directory"
ln -s nowhere "$dir/link"
echo 'something of mine' > "$dir/text"
mkfifo "$dir/fifo"
expect_no_file 'No such file or directory' "$dir/missing/ploop.prom"
expect_no_file 'Not a directory' "$dir/text/ploop.prom"
for name in directory link text fifo; do
  expect_no_file 'exists, and is not' "$dir/$name"
done
expect_no_file 'exists, and is not' "$tmp/image-state/other.hds"
expect_refusal 'stats-file=.*exists, and is not' "$image" stats-file="$image"
expect_refusal 'stats-file=.*overlay=' "$image" stats-file="$dir/over" \
  overlay="$dir/./over"
[ ! -e "$dir/over" ] || fail "an overlay was made"
expect_refusal 'stats-file=.*one file' "$image" stats-file="$stats" \
  stats-file="$stats"
expect_refusal 'stats-interval=5 .*stats-file=' "$image" stats-interval=5
# An overlay is not made for a server that will not be.
expect_refusal 'exists, and is not' "$image" overlay="$tmp/overlay.hds" \
  stats-file="$dir/text"
[ ! -e "$tmp/overlay.hds" ] || fail "an overlay was made"
rm -r "$dir/directory" "$dir/link" "$dir/text" "$dir/fifo"
# What is empty may be replaced.
: > "$stats"
start_nbdkit "$image" stats-file="$stats" || fail "not served"
stop_nbdkit
expect_right
expect_nothing_left

say "a relative name, in the background"
rm -f "$pid_file" "$sock" "$stats"
(cd "$dir" && run_nbdkit -U "$sock" -P "$pid_file" "$PLUGIN" "$image" \
   stats-file=ploop.prom > "$tmp/background.log" 2>&1) ||
  { cat "$tmp/background.log"; fail "not served"; }
wait_until test -s "$pid_file" || fail "it does not come up"
load=$(< "$pid_file")
wait_until test -e "$stats" || fail "no file"
expect_right
io 'read 0 4k'
kill "$load"
wait_until _has_ended "$load" || fail "it does not end"
expect_right
expect 1 requests_total 'operation="read"'
expect_nothing_left

if [ "$(id -u)" = 0 ] && nbdkit_is_plain && id nobody > /dev/null 2>&1; then
  say "as another user"
  # The PID file is written as that user, too.
  chmod 733 "$tmp"
  # By now the PID file is there: it only shows whether the server comes up.
  if start_nbdkit -u nobody "$image" stats-file="$stats"; then
    wait_until _has_ended "$nbdkit_pid" || fail "served"
    wait "$nbdkit_pid" || nbdkit_status=$?
    nbdkit_pid=
  fi
  [ "$nbdkit_status" -eq 1 ] || fail "exit status $nbdkit_status, must be 1"
  grep -q "stats-file=$stats: .*Permission denied (as user $(id -u nobody))" \
    "$nbdkit_log" || fail "it is not said why it is refused"
  mkdir -m 755 "$dir/nobody"
  chown nobody "$dir/nobody"
  start_nbdkit -u nobody "$image" stats-file="$dir/nobody/ploop.prom" ||
    { cat "$nbdkit_log"; fail "not served"; }
  stop_nbdkit
  [ "$(stat -c %U "$dir/nobody/ploop.prom")" = nobody ] || fail "another's file"
  check_metrics "$dir/nobody/ploop.prom" || fail "$(cat "$tmp/check.log")"
  rm -r "$dir/nobody"
fi

# ---- The system's log

# log_here: from now on, what is sent to /dev/log is in $tmp/syslog.
log_here ()
{
  local name
  mkdir "$tmp/dev"
  mount --bind /dev "$tmp/dev"
  cleanup_fn umount -l "$tmp/dev"
  mount -t tmpfs none /dev
  for name in null zero full random urandom; do
    touch "/dev/$name"
    mount --bind "$tmp/dev/$name" "/dev/$name"
  done
  ln -s /proc/self/fd /dev/fd
  perl -MIO::Socket::UNIX -e '
    my $s = IO::Socket::UNIX->new (Type => SOCK_DGRAM, Local => "/dev/log") or die;
    $| = 1;
    while (sysread $s, my $m, 65536) { print "$m\n"; }' > "$tmp/syslog" &
  load=$!
  wait_until test -S /dev/log || fail "no log"
}

if [ -n "${IN_OWN_NAMESPACE:-}" ]; then
  say "the system's log"
  log_here
  for option in --log=syslog --log=stderr; do
    start_nbdkit $option "$image" || fail "not served"
    : > "$tmp/syslog"
    kill -USR1 "$nbdkit_pid"
    nbdkit_log=$([ $option = --log=stderr ] || echo "$tmp/syslog")
    nbdkit_log=${nbdkit_log:-$tmp/nbdkit.log}
    wait_until_said 1 'statistics: 1 disk open$'
    nbdkit_log=$tmp/nbdkit.log
    stop_nbdkit
  done
  kill "$load"
  wait "$load" || :
  load=
fi

# ---- No space, for a while

if [ -z "${IN_OWN_NAMESPACE:-}" ] ||
   ! mount -t tmpfs -o size=128k none "$dir"; then
  say "cannot mount here: a full file system is not tried"
  say "passed"
  exit 0
fi
cleanup_fn umount "$dir"
say "no space"
fill ()
{
  dd if=/dev/zero of="$dir/filling" bs=4k > /dev/null 2>&1 || :
}
fill
expect_refusal 'stats-file=.*No space left' "$image" stats-file="$stats"
expect_nothing_left filling
rm "$dir/filling"
serve "$image" stats-interval=1
fill
wait_until_said 1 'stats-file=.*No space left.*served all the same'
cp "$stats" "$tmp/old"
io 'write 0 64k' 'read 0 64k'
# Two more times.
read -r -t 2.2 -u "$_never" _ || :
[ "$(nr_said 'No space left')" -eq 1 ] || fail "said more than once"
cmp "$stats" "$tmp/old" || fail "it was changed without space for it"
[ "$(cd "$dir" && echo *)" = 'filling ploop.prom' ] || fail "something is left behind"
rm "$dir/filling"
wait_until_said 1 'stats-file=.*is written again'
wait_for 1 "ploop_requests_total{disk=\"$image\",operation=\"read\"}"
expect_right "$tmp/old"
fill
stop_nbdkit
say "passed"
