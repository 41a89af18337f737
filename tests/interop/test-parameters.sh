#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that each parameter takes what the manual says, and nothing else: with
# a good value the server serves, and leaves a clean image; a bad one is refused
# with a text that names the parameter, the value and what is allowed.  And that
# what is to be seen of the parameters from outside is there: threads by name,
# statistics, a warning where direct I/O is not to be had.

set -euo pipefail

# In a mount namespace of its own, so that no mount can be left behind.
if [ -z "${IN_OWN_NAMESPACE:-}" ] && [ "$(id -u)" = 0 ] &&
   unshare -m true 2> /dev/null; then
  IN_OWN_NAMESPACE=1 exec unshare -m "$BASH" "$0"
fi

. "$abs_top_srcdir/tests/functions.sh"
requires qemu-io

image=$tmp/image.hds

# ---- Bad values

nr_wrong=0

wrong ()
{
  say "WRONG: $*"
  nr_wrong=$((nr_wrong + 1))
}

# refused KEY VALUE ALLOWED: the server must not start, and must say KEY, VALUE
# and what is ALLOWED (an extended regular expression).
refused ()
{
  local key=$1 value=$2 allowed=$3 text
  due || return 0
  if start_nbdkit file="$image" "$key=$value"; then
    stop_nbdkit
    wrong "served with $key=$value"
    return
  fi
  check_log
  text=$(< "$nbdkit_log")
  [ "$nbdkit_status" -eq 1 ] ||
    wrong "$key=$value: exit status $nbdkit_status: $text"
  [[ $text = *"$key"* ]] ||
    wrong "$key=$value: does not name the parameter: $text"
  [[ $text = *"$value"* ]] ||
    wrong "$key=$value: does not name the value: $text"
  [[ $text =~ $allowed ]] ||
    wrong "$key=$value: does not say what is allowed: $text"
}

say "bad values"
"$PLOOP_IMG" create -q --cluster-size=64K "$image" 8M
before=$(file_state "$image")
for value in '' foo Writeback none,none ' none'; do
  refused cache "$value" 'writeback, none, writethrough'
done
for value in '' foo WAIT 1; do
  refused enospc "$value" 'report, wait'
done
for value in '' foo fallocate; do
  refused prealloc-mode "$value" 'falloc, truncate'
done
for value in '' foo Unmap on; do
  refused discard "$value" 'unmap, keep, off'
done
for value in '' foo true; do
  refused detect-zeroes "$value" 'off, on, unmap'
done
for value in '' foo on; do
  refused extents "$value" 'cluster, detail'
done
for value in '' maybe 2; do
  refused fast-path "$value" 'on.*off'
done
for value in 0 -1 '' x 2T 1025G 99999999999999999999; do
  refused prealloc "$value" '1 to 1099511627776'
done
for value in 0 17 x '' -1 1.5 4294967297; do
  refused runners "$value" '1 to 16'
done
for value in -1 x '' 3600001; do
  refused writeback-delay "$value" '0 to 3600000'
done
for value in 0 -1 x '' 3600001; do
  refused copy-delay "$value" '1 to 3600000'
done
for value in '' maybe 2; do
  refused allow-outside "$value" 'on.*off'
  refused base-cache "$value" 'on.*off'
done
for value in -1 x '' 86401; do
  refused idle-close "$value" '0 to 86400'
done
refused idle-close 1 'dir='
for value in 0 -1 x '' 3601; do
  refused stats-interval "$value" '1 to 3600'
done
refused stats-interval 5 'stats-file='
refused stats-file '' 'path'
refused stats-file /nonexistent/stats 'No such file'
refused dir / 'file='
for value in '' off 1 Lazy; do
  refused copy-on-write "$value" 'eager.*lazy'
done
refused base '' 'path'
refused base /nonexistent/base 'No such file'
refused overlay '' 'path'
refused overlay /nonexistent/overlay 'No such file'
refused snapshot '' 'GUID'
refused snapshot '{00000001-1111-2222-3333-444444444444}' 'DiskDescriptor.xml'
if start_nbdkit file="$image" discard=keep prealloc-mode=truncate; then
  stop_nbdkit
  wrong "discard=keep with prealloc-mode=truncate, which makes holes"
fi
grep -q 'discard=keep.*prealloc-mode=falloc' "$nbdkit_log" ||
  wrong "the refusal does not say what to do: $(cat "$nbdkit_log")"
[ "$(file_state "$image")" = "$before" ] ||
  fail "a refusal has changed the image"

# ---- Good values

# serves ARG...: ARGs are taken, and the disk is as good as with any other.
serves ()
{
  rm -f "$image"
  "$PLOOP_IMG" create -q --cluster-size=64K "$image" 8M
  start_nbdkit file="$image" "$@" ||
    { cat "$nbdkit_log"; fail "refused: $*"; }
  io -c 'write -P 1 0 200k' -c 'write -P 2 4095k 65k' -c 'write -P 3 8188k 4k' \
    -c flush -c 'write -P 4 1k 513' -c 'discard 128k 64k' -c 'write -z 4M 4k' \
    -c 'read -P 1 0 1k' -c 'read -P 4 1k 513' -c 'read -P 2 4095k 1k'
  stop_nbdkit
  [ "$(in_use "$image")" = 00000000 ] || fail "$*: still marked in use"
  # What was trimmed has left a hole.
  "$PLOOP_IMG" check "$image" > "$tmp/check.log" || [ $? -eq 3 ] ||
    { cat "$tmp/check.log"; fail "$*: ploop-img check"; }
  grep -q ', of which 6 allocated, [01] leaked' "$tmp/check.log" ||
    { cat "$tmp/check.log"; fail "$*: ploop-img check"; }
  start_nbdkit -r file="$image" "$@"
  io -r -c 'read -P 1 0 1k' -c 'read -P 4 1k 513' -c 'read -P 1 1537 129535' \
    -c 'read -P 0 128k 64k' -c 'read -P 1 192k 8k' -c 'read -P 2 4095k 1k' \
    -c 'read -P 0 4M 4k' -c 'read -P 2 4100k 60k' -c 'read -P 0 4160k 3M' \
    -c 'read -P 3 8188k 4k'
  stop_nbdkit
}

# io ARG...: of qemu-io, which sends FUA with each write unless -t is given.
io ()
{
  qemu-io -t writeback -f raw "$@" "$uri" > "$tmp/io.log" 2>&1 ||
    { cat "$tmp/io.log"; fail "qemu-io $*"; }
  if grep -i 'fail' "$tmp/io.log"; then
    fail "qemu-io $*"
  fi
}

say "good values"
for parameter in cache={writeback,none,writethrough} enospc={report,wait} \
    discard={unmap,keep} detect-zeroes={off,on,unmap} \
    extents={cluster,detail} prealloc-mode={falloc,truncate} fast-path={on,off,true,0} \
    prealloc={1,4095,1M,64K,1T} runners={1,3,16} \
    writeback-delay={0,1,100,3600000} copy-delay={1,500,3600000} \
    copy-on-write={eager,lazy}; do
  due || continue
  serves "$parameter"
done
say "all together"
serves cache=none enospc=wait prealloc=1M prealloc-mode=truncate runners=5 \
  fast-path=off writeback-delay=50 copy-delay=1 copy-on-write=lazy
serves cache=writethrough enospc=wait prealloc=200K runners=2 \
  writeback-delay=3600000
serves discard=keep detect-zeroes=unmap extents=detail cache=none
# The last one counts.
serves cache=none cache=writeback runners=1 runners=2

# discard=off: accepted, and nothing is done.
"$PLOOP_IMG" create -q --cluster-size=64K --force "$image" 8M
start_nbdkit file="$image" discard=off
io -c 'write -P 1 0 192k' -c 'discard 64k 64k' -c 'discard 4k 4k' \
  -c 'read -P 1 0 192k' -c 'write -z -u 64k 64k' -c 'read -P 0 64k 64k'
stop_nbdkit
"$PLOOP_IMG" check "$image" | grep -q ', of which 3 allocated, 0 leaked' ||
  wrong "discard=off: a cluster was given back"

# What the server says of itself and what it takes are the same.
run_nbdkit --dump-plugin "$PLUGIN" | sed -n 's/^plugin_parameter=//p' |
  sort > "$tmp/dumped"
run_nbdkit "$PLUGIN" --help |
  sed -nE '/^plugin: /,$ s/^([a-z-]+)=[^ ].*/\1/p' | sort > "$tmp/helped"
printf '%s\n' allow-outside base base-cache cache copy-delay copy-on-write detect-zeroes \
  dir discard \
  enospc extents fast-path idle-close overlay prealloc prealloc-mode runners snapshot \
  stats-file stats-interval \
  writeback-delay > "$tmp/known"
diff "$tmp/dumped" "$tmp/known" || wrong "--dump-plugin has other parameters"
diff "$tmp/helped" "$tmp/known" || wrong "--help has other parameters"

# ---- Threads

# names: of the server's threads, those that are the library's.
names ()
{
  cat /proc/"$(cat "$pid_file")"/task/*/comm | grep '^ploop-' | sort |
    tr '\n' ' '
}

# expect_names NAMES ARG...
expect_names ()
{
  local names=$1 found
  shift
  start_nbdkit file="$image" "$@"
  found=$(names)
  stop_nbdkit
  [ "$found" = "$names" ] ||
    wrong "$*: the threads are '$found', must be '$names'"
}

if [ -z "${PLOOP_PARAMETERS:-}" ]; then
  say "threads"
  expect_names 'ploop-flush ploop-run-0 ploop-stats ' runners=1
  expect_names 'ploop-flush ploop-run-0 ploop-run-1 ploop-run-2 ploop-stats ' \
    runners=3
  expect_names 'ploop-run-0 ploop-stats ' -r runners=1 || true
  start_nbdkit file="$image"
  nr=$(names | wc -w)
  stop_nbdkit
  cpus=$(nproc)
  [ "$nr" -eq $((2 + (cpus < 16 ? cpus : 16))) ] ||
    wrong "by default there are $nr threads, on $cpus CPUs"
fi

# ---- What the log says

# said TEXT: so often.
said ()
{
  grep -Ec -- "$1" "$nbdkit_log" || :
}

say "the log"
start_nbdkit -v file="$image"
io -c 'write 0 64k'
stop_nbdkit
[ "$(said "debug: $image: ploop version 2, .* opened for writing")" -eq 1 ] &&
  [ "$(said "debug: $image: stopped")" -eq 1 ] ||
  wrong "-v does not say what is opened and stopped"
[ "$(said "debug: $image: (cache=|marked)|debug: level")" -eq 0 ] ||
  wrong "-v alone says more"
start_nbdkit -v -D ploop.metadata=1 file="$image" discard=keep writeback-delay=7 \
  enospc=wait
io -c 'write 0 64k'
stop_nbdkit
for text in "level 0: $image: version 2, in use 0x0+, 8388608 bytes .*, for writing" \
    "$image: cache=[a-z]+, discard=keep, .*enospc=wait, .*writeback-delay=7" \
    "$image: started, with [0-9]+ runners$" "$image: marked as in use" \
    "$image: closed"; do
  [ "$(said "debug: $text")" -eq 1 ] || wrong "not said once: $text"
done
start_nbdkit -r -v -D ploop.metadata=1 file="$image"
stop_nbdkit
[ "$(said "debug: level 0: $image: .*, for reading")" -eq 1 ] ||
  wrong "not said: for reading"

# ---- Statistics

say "statistics"
start_nbdkit -v -D ploop.stats=1 file="$image"
io -c 'write -P 1 6M 64k' -c 'read 0 64k' -c flush
stop_nbdkit
grep 'stats: ' "$nbdkit_log" > "$tmp/stats" || fail "no statistics"
for text in 'operation +count +mean +p50 +p99 +p99.9 +max' \
    'read +1 ' 'write +1 ' 'flush +[1-9]' 'data read +64\.0 KiB' \
    'data written +64\.0 KiB' 'clusters allocated +1$' 'commits +[1-9]' \
    'syncs +[1-9]'; do
  grep -Eq "stats: $text" "$tmp/stats" ||
    { cat "$tmp/stats"; wrong "the statistics are without '$text'"; }
done
for flags in '-v' '-D ploop.stats=1'; do
  # shellcheck disable=SC2086  # several words
  start_nbdkit $flags file="$image"
  io -c 'write -P 1 6M 64k'
  stop_nbdkit
  if grep -q 'stats: ' "$nbdkit_log"; then
    wrong "statistics with $flags alone"
  fi
done

# ---- No direct I/O

# ramfs has none; nor has it fallocate.
if [ -z "${IN_OWN_NAMESPACE:-}" ] || ! mkdir "$tmp/ram" ||
   ! mount -t ramfs none "$tmp/ram"; then
  say "cannot mount here: cache=none without direct I/O is not tried"
else
  cleanup_fn umount "$tmp/ram"
  if dd if=/dev/zero of="$tmp/ram/probe" bs=4096 count=1 oflag=direct \
     2> /dev/null; then
    say "ramfs takes direct I/O: cache=none without it is not tried"
  else
    say "cache=none without direct I/O"
    image=$tmp/ram/image.hds
    serves cache=none
    start_nbdkit cache=none file="$image"
    stop_nbdkit
    grep -q 'warning: .*image.hds.*direct I/O' "$nbdkit_log" ||
      wrong "no warning that there is no direct I/O"
    serves cache=none prealloc-mode=truncate fast-path=off
  fi
fi

[ $nr_wrong -eq 0 ] || fail "$nr_wrong things were wrong"
say "passed"
