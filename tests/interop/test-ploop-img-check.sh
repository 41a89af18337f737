#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# The exit status of ploop-img check, on images damaged by hand and on those of
# the corpus: 0 clean, 1 could not be checked, 2 errors, 3 leaks.  Whatever it
# finds, it never changes the file.

set -euo pipefail
source "${abs_top_srcdir}/tests/functions.sh"

requires perl

cd "$tmp"

# poke FILE OFFSET VALUE...: write 32-bit little-endian words.
poke ()
{
  perl -e 'my ($file, $offset, @values) = @ARGV;
           open (my $f, "+<", $file) or die "$file: $!\n";
           seek ($f, $offset, 0);
           print $f pack ("V*", map { /^0x/ ? hex : $_ } @values);' "$@"
}

# checks STATUS FILE [PATTERN]: ploop-img check FILE ends with STATUS, in all
# forms of output; PATTERN is in what it prints.
checks ()
{
  local expected=$1 file=$2 pattern=${3:-} before rc form
  before=$(sha256sum <"$file")

  for form in --output=human --output=json --quiet; do
    rc=0
    "$PLOOP_IMG" check $form "$file" >out.$form 2>err.$form || rc=$?
    test $rc -eq "$expected" ||
      fail "$file: $form: exit status $rc, not $expected:" \
           "$(cat out.$form err.$form)"
  done
  test "$before" = "$(sha256sum <"$file")" || fail "$file: check changed it"

  if test $rc -eq 1; then
    test ! -s out.--output=json || fail "$file: JSON, though it failed"
    for form in --output=human --output=json --quiet; do
      grep -q "^ploop-img: .*$pattern" err.$form ||
        fail "$file: $form: no '$pattern' in its error: $(cat err.$form)"
    done
    return 0
  fi
  cat err.* >err
  test ! -s err || fail "$file: on standard error: $(cat err)"
  test ! -s out.--quiet || fail "$file: --quiet printed: $(cat out.--quiet)"
  grep -q -e "$pattern" out.--output=human ||
    fail "$file: no '$pattern' in: $(cat out.--output=human)"
  agrees_with_itself "$file" $rc
}

# Do the findings, the counts, the verdict and the status say the same, for
# people and in JSON?
agrees_with_itself ()
{
  local verdict=([0]=clean [2]=errors [3]=leaks)

  test "$(tail -n 1 out.--output=human)" = "result: ${verdict[$2]}" ||
    fail "$1: exit status $2, but: $(cat out.--output=human)"
  perl -MJSON::PP -0777 -e '
    my $members = decode_json (<STDIN>);
    my %count = (error => 0, leak => 0, note => 0);
    for (@{$members->{findings}}) {
      $count{$_->{kind}}++;
      print "$_->{kind}: $_->{message}\n";
    }
    for (qw(error leak note)) {
      $members->{"${_}s"} == $count{$_} or die "wrong count of $_\n";
    }
    printf "clusters: %s, of which %s allocated, %s leaked\n",
           map { $members->{$_} } qw(clusters allocated-clusters
                                     leaked-clusters);
    $members->{"free-clusters"} == 0
      or printf "free: %s clusters of the file, which take no space\n",
                $members->{"free-clusters"};
    printf "found: errors %s, leaks %s, notes %s\nresult: %s\n",
           map { $members->{$_} } qw(errors leaks notes result);
    ' <out.--output=json >from-json || fail "$1: JSON: $(cat out.--output=json)"
  diff out.--output=human from-json || fail "$1: JSON says something else"
}

# ---- Damaged by hand -------------------------------------------------------

# 256 entries, behind them one cluster of the header; three clusters of data.
"$PLOOP_IMG" create --quiet --cluster-size=32K good.hds 8M
checks 0 good.hds 'of which 0 allocated'
poke good.hds 64 1 2 3
poke good.hds 52 0                      # no longer empty
truncate -s $((4 * 32768)) good.hds
checks 0 good.hds 'of which 3 allocated, 0 leaked'

# damaged NAME: a copy to work on.
damaged ()
{
  cp --sparse=always good.hds "$1.hds"
}

damaged duplicate
poke duplicate.hds 68 1
checks 2 duplicate.hds '^error: .*entry 1\b'

damaged past-end
poke past-end.hds 72 100
checks 2 past-end.hds '^error: .*entry 2\b.*100'

damaged ffffffff
poke ffffffff.hds 72 0xffffffff
checks 2 ffffffff.hds '^error: .*4294967295'

damaged just-past-end
poke just-past-end.hds 76 4
checks 2 just-past-end.hds '^error: .*entry 3\b'

damaged leaked-tail
truncate -s $((9 * 32768)) leaked-tail.hds
checks 3 leaked-tail.hds '3 allocated, 5 leaked'
grep -q '^leak: ' out.--output=human

damaged leaked-middle
poke leaked-middle.hds 68 0
poke leaked-middle.hds 70000 1
checks 3 leaked-middle.hds '2 allocated, 1 leaked'

# One that is a hole takes no space.
damaged free-middle
poke free-middle.hds 68 0
checks 0 free-middle.hds '2 allocated, 0 leaked'
grep -q '^free: 1 ' out.--output=human || fail "no word of the free cluster"

damaged both
poke both.hds 68 1
truncate -s $((9 * 32768)) both.hds
checks 2 both.hds '^leak: '

# 16384 entries, behind them 3 clusters of header.
"$PLOOP_IMG" create --quiet --cluster-size=32K in-bat.hds 512M
poke in-bat.hds 64 3 4 5
poke in-bat.hds 52 0
truncate -s $((6 * 32768)) in-bat.hds
checks 0 in-bat.hds
poke in-bat.hds 68 2
checks 2 in-bat.hds '^error: .*entry 1\b'

# Version 1 counts in sectors.
"$PLOOP_IMG" create --quiet --version=1 --cluster-size=32K v1.hds 8M
poke v1.hds 64 64 128 192
poke v1.hds 52 0
truncate -s $((4 * 32768)) v1.hds
checks 0 v1.hds
cp v1.hds v1-unaligned.hds
poke v1-unaligned.hds 68 129
checks 2 v1-unaligned.hds '^error: .*entry 1\b.*129'
cp v1.hds v1-past-end.hds
poke v1-past-end.hds 68 0xffffffc0
checks 2 v1-past-end.hds '^error: .*entry 1\b.*4294967232'

# Never closed, but nothing wrong: serving it is safe, so it is no error.
damaged in-use
poke in-use.hds 44 0x746f6e59
checks 0 in-use.hds '^note: '

# Many errors: every one is reported.
damaged many
poke many.hds 76 $(seq 1000 1252)
checks 2 many.hds 'found: errors 25[3-9]'

# ---- Not to be checked -----------------------------------------------------

: >empty
checks 1 empty 'empty'
head -c 1000000 /dev/zero >zeros
checks 1 zeros 'zeros'
echo 'Once upon a time' >text
checks 1 text 'text'
head -c 63 good.hds >cut-header
checks 1 cut-header 'cut-header'
mkdir directory
for name in absent directory /dev/null absent/absent; do
  rc=0
  "$PLOOP_IMG" check $name >out 2>err || rc=$?
  test $rc -eq 1 || fail "$name: exit status $rc, not 1"
  test ! -s out || fail "$name: printed: $(cat out)"
  grep -q "^ploop-img: .*$name" err || fail "$name: $(cat err)"
done
test ! -e absent || fail "check made a file"

if test "$(id -u)" -ne 0; then
  damaged unreadable
  chmod 0 unreadable.hds
  rc=0
  "$PLOOP_IMG" check unreadable.hds || rc=$?
  test $rc -eq 1 || fail "unreadable.hds: exit status $rc, not 1"
fi

# A file that may only be read can be checked all the same.
damaged read-only
chmod 444 read-only.hds
checks 0 read-only.hds

# ---- The corpus ------------------------------------------------------------

unpack_corpus

while read -r name expected pattern; do
  checks "$expected" corpus/h-corrupt/$name.hds "$pattern"
done <<'END'
ok 0 of which 4 allocated, 0 leaked
dup 2 ^error: .*entry
beyond-eof 2 ^error: .*entry
bat-ffffffff 2 ^error: .*4294967295
v1-unaligned 2 ^error: .*entry
in-bat-area 2 ^error: .*entry
tail-cut-1000 0 ^note: .*162840
off-zero 0 ^note: .*offset is 0
leak-tail 3 ^leak: 
off-huge 2 ^error: .*4294967232
sectors-0 2 ^error: .*cluster size is 0
nbat-huge 2 ^error: .*4294967295
size-huge 2 ^error: .*size is 18446744073709551615
inuse-garbage 0 ^note: .*0x00001234
ext-garbage 2 ^error: .*extension
flag-convert-inuse 2 ^error: .*conversion
short-100 2 ^error: .*100
END

# Images that real programs made are sound.
for image in corpus/[a-e]-*/*.hds*; do
  case $image in
    corpus/a-raw/*) expected=1 ;;                # no header: that is raw
    corpus/c-rawbase-*/root.hds) expected=1 ;;
    corpus/e-qemu-killed/*) expected=3 ;;        # preallocated
    *) expected=0 ;;
  esac
  checks $expected $image
done

# ---- In use ----------------------------------------------------------------

# stop_qemu_nbd LOCK
stop_qemu_nbd ()
{
  if test -s $1.pid; then
    kill "$(cat $1.pid)" 2>/dev/null || :
  fi
}

nobody_holds ()
{
  "$PLOOP_IMG" info --output=json $1 >out
  grep -q '"lock" : "none"' out
}

# held LOCK STATUS OPTION...: what info and check say of an image that qemu-nbd
# serves with OPTIONs.
held ()
{
  local lock=$1 expected=$2 rc=0

  shift 2
  damaged $lock
  cleanup_fn stop_qemu_nbd $lock
  qemu-nbd "$@" --fork --pid-file="$tmp/$lock.pid" --socket="$tmp/$lock.sock" \
           --persistent -f parallels $lock.hds
  "$PLOOP_IMG" info --output=json $lock.hds >out
  grep -q "\"lock\" : \"$lock\"" out || fail "qemu-nbd $*: $(cat out)"
  "$PLOOP_IMG" check $lock.hds >out 2>err || rc=$?
  test $rc -eq $expected ||
    fail "qemu-nbd $*: exit status $rc, not $expected: $(cat out err)"
  if test $rc -eq 1; then
    grep -q "^ploop-img: .*$lock\.hds.* use" err ||
      fail "qemu-nbd $*: $(cat err)"
  fi
  # Nor is it replaced under those who use it.
  rc=0
  "$PLOOP_IMG" create --force $lock.hds 1M >out 2>err || rc=$?
  test $rc -eq 1 || fail "qemu-nbd $*: create --force: exit status $rc, not 1"
  "$PLOOP_IMG" info $lock.hds >out
  grep -q '^disk size: 8 MiB' out || fail "qemu-nbd $*: the image was replaced"
  stop_qemu_nbd $lock
  wait_until nobody_holds $lock.hds || fail "qemu-nbd does not end"
}

if qemu-nbd --version >/dev/null 2>&1; then
  held writing 1
  held reading 0 --read-only
fi
