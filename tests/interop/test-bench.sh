#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that ploop-img bench measures what it says, and does no harm: a disk is read
# (all that is data, and nothing else) and stays as it is; writing goes to an image that
# has no name, of which nothing is left, whether it ends by itself, by a signal or by
# SIGKILL; and what cannot be measured is an error.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires perl
unpack_corpus

# bench STATUS ARG...: ploop-img bench must exit with STATUS.
bench ()
{
  local want=$1 status=0
  shift
  "$PLOOP_IMG" bench "$@" > "$tmp/bench" 2> "$tmp/bench.err" || status=$?
  [ $status -eq "$want" ] ||
    { cat "$tmp/bench" "$tmp/bench.err"; fail "bench $*: exit status $status, not $want"; }
}

# expect_error TEXT ARG...
expect_error ()
{
  local text=$1
  shift
  bench 1 "$@"
  [ ! -s "$tmp/bench" ] || fail "bench $*: printed something, though it failed"
  grep -q -e "$text" "$tmp/bench.err" ||
    { cat "$tmp/bench.err"; fail "bench $*: does not say '$text'"; }
}

# json EXPRESSION: of $m, what was printed, and %n, its measurements by name.
json ()
{
  perl -MJSON::PP -0777 -e 'my $m = decode_json (<STDIN>);
    my %n = map { ($_->{name}, $_) } @{$m->{measurements}};
    my $r = eval ($ARGV[0]); die $@ if $@; print $r' "$1" < "$tmp/bench"
}

# What was measured makes sense.
expect_sense ()
{
  [ "$(json 'join " ", map { $_->{name} } @{$m->{measurements}}')" = "$1" ] ||
    { cat "$tmp/bench"; fail "not measured: $1"; }
  json 'for (@{$m->{measurements}}) {
    my $o = $_;
    my @q = map { $o->{"latency-$_-ns"} } qw(50 99 99.9 100);
    $q[0] > 0 && $q[0] <= $q[1] && $q[1] <= $q[2] && $q[2] <= $q[3]
      or die "quantiles of $o->{name}: @q\n";
    $o->{"latency-mean-ns"} > 0 && $o->{"latency-mean-ns"} <= $q[3]
      or die "mean of $o->{name}\n";
    $o->{requests} > 0 && $o->{bytes} > 0 && $o->{"duration-ns"} > 0
      or die "nothing in $o->{name}\n";
    my $rate = $o->{requests} * 1e9 / $o->{"duration-ns"};
    abs ($rate - $o->{"requests-per-second"}) <= 1 or die "rate of $o->{name}\n";
    $rate = $o->{bytes} * 1e9 / $o->{"duration-ns"};
    abs ($rate - $o->{"bytes-per-second"}) <= 1 or die "bytes a second of $o->{name}\n";
  }' > /dev/null || { cat "$tmp/bench"; fail "what makes no sense"; }
}

# ---- Reading

say "reading"
for disk in c-chain3-v2-b64 d-split2 b-data-v1-b128 e-qemu-oddsize/i.hds; do
  disk=$tmp/corpus/$disk
  before=$(find "$disk" -type f -exec sha256sum {} + | sort)
  bench 0 --output=json --seconds=0.2 "$disk"
  expect_sense 'random-read sequential-read'
  [ "$(json '$m->{result}')" = measured ] || fail "$disk: result"
  # All that is data, once.
  data=$("$PLOOP_IMG" map --output=json --view=disk "$disk" |
    perl -MJSON::PP -0777 -e 'my $n = 0; $n += $_->{kind} eq "data" ? $_->{length} : 0
      for @{decode_json (<STDIN>)->{extents}}; print $n')
  [ "$(json '$n{"sequential-read"}{bytes}')" = "$data" ] || fail "$disk: not $data bytes"
  [ "$(find "$disk" -type f -exec sha256sum {} + | sort)" = "$before" ] ||
    fail "$disk was changed"
done

say "limits"
disk=$tmp/corpus/b-data-v2-b2048
bench 0 --output=json --seconds=100 --size=64K --block-size=8K "$disk"
[ "$(json '"$n{q(random-read)}{requests} $n{q(random-read)}{bytes}"')" = '8 65536' ] ||
  { cat "$tmp/bench"; fail "--size and --block-size: not 8 requests"; }
bench 0 --seconds=0.05 --depth=1 --page-cache "$disk"
grep -Eq '^random-read +[0-9.]+ +[0-9.]+ +[0-9.]+ ms' "$tmp/bench" || fail "no table"
! grep -q write "$tmp/bench" || fail "writing is measured unasked"
bench 0 --seconds=0.05 --depth=256 --block-size=1M --output=json "$disk"
expect_sense 'random-read sequential-read'

# The manual has all members.
for name in $(json 'my %k; for ($m, @{$m->{measurements}}) { $k{$_}++ for keys %$_ }
                   join " ", sort keys %k'); do
  grep -q "^=item.*C<$name>" "$abs_top_srcdir/man/ploop-img.pod" ||
    fail "ploop-img(1) does not describe $name"
done

# ---- Writing

# nothing_is_left DIRECTORY: nothing, whatever it is called, that was not there.
nothing_is_left ()
{
  [ "$(find "$1" | sort | sha256sum)" = "$listed" ] || { find "$1"; fail "$2: not as it was"; }
}

say "writing"
mkdir "$tmp/store"
for directory in "$tmp/store" "$tmp/corpus/c-chain3-v2-b64"; do
  listed=$(find "$directory" | sort | sha256sum)
  before=$(find "$directory" -type f -exec sha256sum {} + | sort)
  bench 0 --write --output=json --seconds=0.2 --size=8M "$directory"
  expect_sense 'sequential-write random-write flush random-read sequential-read'
  [ "$(json '$n{"sequential-write"}{bytes} <= 8 << 20 && $n{flush}{requests} <= 2048')" = 1 ] ||
    fail "more than --size says"
  nothing_is_left "$directory" "writing"
  [ "$(find "$directory" -type f -exec sha256sum {} + | sort)" = "$before" ] ||
    fail "$directory was changed"
done

# start_bench ARG...: in the background, until it measures.  Sets bench_pid.  The shell
# starts what is in the background with SIGINT ignored, which the tool respects.
start_bench ()
{
  : > "$tmp/progress"
  perl -e '$SIG{INT} = "DEFAULT"; exec @ARGV' "$PLOOP_IMG" bench --progress "$@" > "$tmp/bench" 2> "$tmp/progress" &
  bench_pid=$!
  wait_until grep -q ' [1-9][0-9]* %' "$tmp/progress" || fail "bench does not begin"
}

has_nameless_image ()
{
  local fd
  for fd in "/proc/$1/fd"/*; do
    [[ $(readlink "$fd") != *'bench.hds (deleted)' ]] || return 0
  done
  return 1
}

say "signals"
listed=$(find "$tmp/store" | sort | sha256sum)
for signal in INT TERM HUP KILL; do
  start_bench --write --seconds=20 --size=64M --output=json "$tmp/store"
  has_nameless_image $bench_pid || fail "the image is not written where it should be"
  nothing_is_left "$tmp/store" "while it runs"
  kill -$signal $bench_pid
  status=0
  wait $bench_pid 2> /dev/null || status=$?
  nothing_is_left "$tmp/store" "SIG$signal"
  [ $signal != KILL ] || continue
  [ $status -eq 2 ] || fail "SIG$signal: exit status $status, not 2"
  [ "$(json '$m->{result}')" = interrupted ] || fail "SIG$signal: result"
  grep -q 'interrupted: not all' "$tmp/progress" || fail "SIG$signal: nothing is said"
done
start_bench --seconds=20 "$disk"
kill -INT $bench_pid
status=0
wait $bench_pid || status=$?
[ $status -eq 2 ] || fail "SIGINT while reading: exit status $status, not 2"

# ---- What cannot be measured

say "errors"
file_before=$(file_state "$tmp/corpus/e-qemu-oddsize/i.hds")
expect_error 'i.hds: is not a directory: .*never in one that is there' \
  --write "$tmp/corpus/e-qemu-oddsize/i.hds"
[ "$(file_state "$tmp/corpus/e-qemu-oddsize/i.hds")" = "$file_before" ] ||
  fail "a disk was written to"
expect_error 'No such file' "$tmp/nonexistent"
expect_error 'No such file' --write "$tmp/nonexistent"
expect_error 'more than half' --write --size=1P "$tmp/store"
expect_error 'DiskDescriptor.xml' "$tmp/store"
"$PLOOP_IMG" create -q "$tmp/empty.hds" 1G
expect_error 'empty.hds: has no data' "$tmp/empty.hds"
expect_error 'overlaps' "$tmp/corpus/h-corrupt/dup.hds"
expect_error 'DISK is missing'
expect_error 'unexpected argument' "$disk" "$disk"
expect_error "--output: 'svg'" --output=svg "$disk"
for n in 0 -1 x '' 3601 0.0001 1e3 0x10 inf ' 1' 1.2.3; do
  expect_error "--seconds: '$n' is not" --seconds="$n" "$disk"
done
for n in 0 -1 x '' 257 1.5 99999999999999999999; do
  expect_error "--depth: '$n' is not" --depth="$n" "$disk"
done
for n in 0 -1 x '' 511 2M; do
  expect_error "--block-size: '$n' is" --block-size="$n" "$disk"
done
for n in 0 -1 x '' 513; do
  expect_error "--size: '$n' is" --size="$n" "$disk"
done
expect_error 'size 512 (a block at least)' --size=512 "$disk"
[ -z "$(find "$tmp/corpus" -name '*.lck')" ] || fail "a lock file was left behind"
start_nbdkit file="$tmp/corpus/e-qemu-oddsize/i.hds"
expect_error 'i.hds: .*in use' "$tmp/corpus/e-qemu-oddsize/i.hds"
stop_nbdkit
if [ -c /dev/full ]; then
  ! "$PLOOP_IMG" bench --seconds=0.01 "$disk" > /dev/full 2> /dev/null ||
    fail "a full disk is not noticed"
fi
say "passed"
