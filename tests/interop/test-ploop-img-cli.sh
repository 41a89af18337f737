#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# What ploop-img does with its command line: help, good errors, sizes, JSON as
# its man page describes it, never overwriting unasked, and never saying that
# all went well when its output was lost.

set -euo pipefail
source "${abs_top_srcdir}/tests/functions.sh"

requires perl
cd "$tmp"

# Run the tool.  Its exit status is in $rc, what it printed in out and err.
run_img ()
{
  rc=0
  "$PLOOP_IMG" "$@" >out 2>err || rc=$?
}

succeeds ()
{
  run_img "$@"
  test $rc -eq 0 || fail "ploop-img $*: exit status $rc: $(cat err)"
  test ! -s err || fail "ploop-img $*: on standard error: $(cat err)"
}

# refuses PATTERN ARG...: exit status 1, PATTERN in the message, no output.
refuses ()
{
  local pattern="$1"
  shift
  run_img "$@"
  test $rc -eq 1 || fail "ploop-img $*: exit status $rc, not 1"
  test ! -s out || fail "ploop-img $*: printed, though it failed: $(cat out)"
  grep -q -e "$pattern" err ||
    fail "ploop-img $*: no '$pattern' in its error: $(cat err)"
}

# refuses_usage SUBCOMMAND PATTERN ARG...: the same, and the last line of the
# error tells where help is.
refuses_usage ()
{
  local topic="${1:+ $1}"
  shift
  refuses "$@"
  test "$(tail -n 1 err)" = "try ploop-img$topic --help" ||
    fail "ploop-img $*: last line of its error: $(tail -n 1 err)"
}

# json_member NAME < JSON
json_member ()
{
  perl -MJSON::PP -0777 -e 'print decode_json (<STDIN>)->{$ARGV[0]}' "$1"
}

# json_schema < JSON: the names and types of the members, sorted.
json_schema ()
{
  perl -MJSON::PP -0777 -e '
    my $members = decode_json (<STDIN>);
    for (sort keys %$members) {
      my $text = JSON::PP->new->allow_nonref->encode ($members->{$_});
      my $type = $text =~ /^\[/ ? "array"
               : $text =~ /^"/ ? "string"
               : $text =~ /^[0-9]+$/ ? "number" : "other";
      print "$_ $type\n";
    }'
}

# poke FILE OFFSET VALUE...: write 32-bit little-endian words.
poke ()
{
  perl -e 'my ($file, $offset, @values) = @ARGV;
           open (my $f, "+<", $file) or die "$file: $!\n";
           seek ($f, $offset, 0);
           print $f pack ("V*", map { /^0x/ ? hex : $_ } @values);' "$@"
}

# ---- Usage errors ----------------------------------------------------------

refuses_usage '' 'no subcommand'
refuses_usage '' "unknown subcommand 'frobnicate'" frobnicate
refuses_usage '' 'create, info, check, compact' frobnicate
refuses_usage '' "unknown subcommand ''" ''
refuses_usage '' "unknown option '--frobnicate'" --frobnicate
refuses_usage '' "unknown option '--frobnicate'" --frobnicate info x
refuses_usage '' "unknown subcommand 'frobnicate'" help frobnicate
refuses_usage help "unexpected argument 'info'" help create info

refuses_usage create 'FILE is missing' create
refuses_usage create 'SIZE is missing' create x.hds
refuses_usage create "unexpected argument '2M'" create x.hds 1M 2M
refuses_usage create '--frobnicate' create --frobnicate x.hds 1M
refuses_usage create '--cluster-size' create x.hds 1M --cluster-size
refuses_usage create "--version: '3'.*1 or 2" create --version=3 x.hds 1M
refuses_usage create "--version: ''" create --version= x.hds 1M
refuses_usage create "--version: '1x'" create --version 1x x.hds 1M
for sub in info check compact; do
  refuses_usage $sub '\(FILE\|DISK\) is missing' $sub
  refuses_usage $sub "unexpected argument 'y'" $sub x y
  refuses_usage $sub '--frobnicate' $sub --frobnicate x
  refuses_usage $sub "--output: 'xml'.*human or json" $sub --output=xml x
  refuses 'absent\.hds.*No such file' $sub absent.hds
  refuses 'absent\.hds.*No such file' $sub --output=json absent.hds
done
refuses_usage '' 'of several: use one of snapshot list, snapshot create, .*mark' snapshot
refuses_usage '' "unknown subcommand 'snapshot x': use one of snapshot list" \
  snapshot x
refuses_usage 'snapshot create' 'DISK is missing' snapshot create
refuses_usage 'snapshot delete' 'GUID is missing' snapshot delete x
refuses_usage 'snapshot switch' 'give one of both' snapshot switch --keep --discard x y
refuses_usage help "unexpected argument 'y'" help snapshot create y
refuses_usage resize 'give one of both' resize --shrink --discard x 1M
test ! -e x.hds || fail "a usage error left a file behind"

# ---- Help ------------------------------------------------------------------

succeeds --help
for sub in create info check compact help; do
  grep -q "^  $sub " out || fail "--help does not list $sub"
done
grep -q '^  snapshot create DISK ' out || fail "--help does not list a pair of words"
cp out help
for arguments in -h help 'help help' 'help --help'; do
  succeeds $arguments
  cmp out help
done

while read -r sub options; do
  succeeds "$sub" --help
  cp out help
  grep -q "ploop-img $sub \[OPTION\.\.\.\] \(FILE\|DISK\)" help ||
    fail "$sub --help: no usage"
  for option in $options --help; do
    grep -q -e "$option" help || fail "$sub --help: no $option"
  done
  succeeds help "$sub"
  cmp out help
  succeeds "$sub" however many arguments there are -h
  cmp out help
done <<'END'
create --version=1|2 --cluster-size=SIZE --force --quiet
info --allow-outside --output=human|json
check --allow-outside --output=human|json --quiet
compact --dry-run --no-holes --output=human|json --progress --quiet
END

succeeds help snapshot
grep -q '^  snapshot switch DISK GUID ' out || fail "help snapshot"
if grep -q compact out; then fail "help snapshot shows others"; fi
cp out help
succeeds snapshot --help
cmp out help
succeeds help snapshot create
cp out help
succeeds snapshot create --help
cmp out help
grep -q 'ploop-img snapshot create \[OPTION\.\.\.\] DISK' out || fail "no usage"

succeeds --version
grep -q '^ploop-img [0-9]' out

# ---- Sizes -----------------------------------------------------------------

while read -r text bytes cluster_size; do
  succeeds create --quiet --force --cluster-size=$cluster_size s.hds "$text"
  test ! -s out || fail "create --quiet printed: $(cat out)"
  succeeds info --output=json s.hds
  test "$(json_member size <out)" = "$bytes" ||
    fail "size $text: $(json_member size <out) bytes, not $bytes"
done <<'END'
512 512 32K
1048576 1048576 32k
00512 512 32768
100k 102400 32KiB
100K 102400 0.03125M
100KiB 102400 32K
0.5k 512 32K
1M 1048576 32K
1mib 1048576 32K
1.5M 1572864 32K
1.50000000000000000000000M 1572864 32K
2.00048828125M 2097664 32K
1G 1073741824 32K
1.5G 1610612736 32K
1.5Gib 1610612736 32K
0.125g 134217728 32K
0.001953125T 2147483648 1M
1T 1099511627776 1M
4t 4398046511104 1M
0.25P 281474976710656 64M
END
rm s.hds

while IFS='|' read -r text pattern; do
  refuses_usage create "'$text' $pattern" create s.hds -- "$text"
  refuses_usage create "cluster-size: '$text' $pattern" \
                create s.hds 1M --cluster-size="$text"
done <<'END'
|is not a size.*K, M, G, T or P
 |is not a size
 1M|is not a size
1M |is not a size
-1|is not a size
-512|is not a size
+512|is not a size
0x200|is not a size
5e2|is not a size
M|is not a size
.|is not a size
.5G|is not a size
1.G|is not a size
1..5G|is not a size
1,5G|is not a size
1.5.5G|is not a size
12Q|is not a size
1E|is not a size
1B|is not a size
1KB|is not a size
1Ki|is not a size
1iB|is not a size
1MiBs|is not a size
1 M|is not a size
1M1|is not a size
1|is not a multiple of 512
511|is not a multiple of 512
1000|is not a multiple of 512
512.5|is not a multiple of 512
0.25k|is not a multiple of 512
1.3G|is not a multiple of 512
1.9999999999999999999999G|is not a multiple of 512
18446744073709551616|is too large.*16384P
99999999999999999999999999|is too large
18014398509481984K|is too large
16384P|is too large
16777216T|is too large
END
refuses_usage create "cluster-size: '0' .*32K to 64M" \
              create s.hds 1M --cluster-size=0
refuses_usage create "cluster-size: '4G' .*32K to 64M" \
              create s.hds 1M --cluster-size=4G
refuses 's\.hds' create s.hds 0
test ! -e s.hds || fail "a refused size left a file behind"

# ---- Overwriting -----------------------------------------------------------

succeeds create o.hds 10M
test "$(cat out)" = \
     'created o.hds: 10 MiB (10485760 bytes), version 2, clusters of 1 MiB'
cp o.hds before
refuses 'o\.hds' create o.hds 20M
cmp o.hds before || fail "create without --force changed a file"
echo something else >text
cp text before
refuses 'text' create text 20M
cmp text before || fail "create without --force changed a file"

succeeds create --force --version=1 --cluster-size=64k o.hds 20M
succeeds info --output=json o.hds
test "$(json_member size <out)" = 20971520
test "$(json_member version <out)" = 1
test "$(json_member cluster-size <out)" = 65536
succeeds create text 20M --force
succeeds check text

# A failure leaves neither the file nor a part of it.
mkdir empty
refuses 'cluster' create empty/x.hds 1M --cluster-size=48K
refuses 'x\.hds' create empty/absent/x.hds 1M
test -z "$(ls -A empty)" || fail "left behind: $(ls -A empty)"
refuses 'empty' create empty 1M --force

# ---- File names ------------------------------------------------------------

for name in --force -x 'a b' $'caf\xc3\xa9' $'bad\xff'; do
  succeeds create -- "$name" 1M
  test -f "./$name" || fail "create did not make the file '$name'"
  for sub in info check compact; do
    succeeds $sub -- "$name"
    succeeds $sub --output=json -- "$name"
    json_schema <out >/dev/null || fail "$sub: not JSON: $(cat out)"
  done
done
# The first argument that cannot be an option ends nothing.
succeeds create o.hds 1M --force -q
succeeds create --force o.hds -q 1M

# ---- JSON and what people read ---------------------------------------------

succeeds create j.hds 100M
succeeds info --output=json j.hds
json_schema <out >schema
cat >expected <<'END'
allocated-clusters number
bitmaps array
cluster-size number
clusters number
cylinders number
data-offset number
disk-usage number
extension string
extension-offset number
file string
file-size number
flag-names array
flags number
format string
heads number
in-use number
last-change number
lock string
size number
state string
version number
END
diff expected schema || fail "info --output=json: not the members documented"
cp out info.json
while read -r name value; do
  test "$(json_member $name <info.json)" = "$value" ||
    fail "info: $name is $(json_member $name <info.json), not $value"
done <<END
file j.hds
format ploop
version 2
size 104857600
cluster-size 1048576
clusters 100
allocated-clusters 0
heads 16
cylinders 400
data-offset 1048576
flags 1
in-use 0
state clean
lock none
extension-offset 0
file-size $(stat -c %s j.hds)
disk-usage $(($(stat -c '%b * %B' j.hds)))
END
grep -A 2 flag-names info.json | grep -q '"empty"'

succeeds info j.hds
while read -r line; do
  grep -q -x "$line" out || fail "info: no line '$line' in: $(cat out)"
done <<END
file: j\.hds
format: ploop, version 2
disk size: 100 MiB (104857600 bytes)
cluster size: 1 MiB (1048576 bytes)
clusters: 100, of which 0 allocated (0\.00 %)
geometry: 16 heads, 400 cylinders
data: from byte 1048576
flags: empty
state: closed (0x0)
lock: none
extension: none
file size: .*$(stat -c %s j.hds) bytes.*
disk usage: .*bytes.*
END
cp out info.human
succeeds info --output=human j.hds
cmp out info.human

# Every mark and flag that the format knows, and some that it does not.
while read -r in_use state sentence; do
  cp j.hds m.hds
  poke m.hds 44 $in_use
  succeeds info --output=json m.hds
  test "$(json_member in-use <out) $(json_member state <out)" = \
       "$((in_use)) $state" || fail "in use $in_use: $(cat out)"
  succeeds info m.hds
  grep -q -x "state: $sentence ($in_use)" out ||
    fail "in use $in_use: $(cat out)"
done <<'END'
0x0 clean closed
0x746f6e59 dirty open for writing, or never closed
0x312e3276 clean-extension closed, with a valid extension
0x37316470 clean-desktop closed by Parallels Desktop
0x32326470 clean-desktop closed by Parallels Desktop
0x1234 unknown marked with an unknown value
END
while read -r flags names words; do
  cp j.hds m.hds
  poke m.hds 52 $flags
  succeeds info --output=json m.hds
  test "$(json_member flags <out)" = $((flags))
  perl -MJSON::PP -0777 -e 'print join (",", "names",
    @{decode_json (<STDIN>)->{"flag-names"}}), "\n";' <out >flag-names
  test "$(cat flag-names)" = $names || fail "flags $flags: $(cat flag-names)"
  succeeds info m.hds
  grep -q -x "flags: $words" out || fail "flags $flags: $(cat out)"
done <<'END'
0x0 names none
0x1 names,empty empty
0x2 names,conversion conversion
0x3 names,empty,conversion empty, conversion
0x10 names unknown (0x10)
0x13 names,empty,conversion empty, conversion, unknown (0x10)
END
# Changed-block bitmaps that cannot be: info reads no more than the header.
cp j.hds m.hds
poke m.hds 56 2048 0
succeeds info m.hds
grep -q -x 'extension: at byte 1048576' out
poke m.hds 56 0xffffffff 0xffffffff
succeeds info m.hds
succeeds info --output=json m.hds
grep -q '"extension-offset" : 1[.0-9]*e+19' out ||
  fail "an extension far out: $(cat out)"

succeeds check --output=json j.hds
json_schema <out >schema
cat >expected <<'END'
allocated-clusters number
clusters number
errors number
file string
findings array
free-clusters number
leaked-clusters number
leaks number
notes number
result string
END
diff expected schema || fail "check --output=json: not the members documented"
test "$(json_member result <out)" = clean
test "$(json_member clusters <out)" = 100
succeeds check j.hds
test "$(tail -n 1 out)" = 'result: clean'
succeeds check --quiet j.hds
test ! -s out || fail "check --quiet printed: $(cat out)"

cp expected check-members

succeeds compact --output=json --dry-run j.hds
test "$(json_member result <out)" = dry-run
succeeds compact --output=json j.hds
json_schema <out >schema
cat >expected <<'END'
copied-bytes number
disk-usage-after number
disk-usage-before number
file string
file-size-after number
file-size-before number
moved-clusters number
result string
END
diff expected schema ||
  fail "compact --output=json: not the members documented"
test "$(json_member result <out)" = compacted
test "$(json_member file-size-after <out)" = "$(stat -c %s j.hds)"
succeeds compact j.hds
grep -q -x 'j\.hds: moved 0 clusters and copied 0 bytes' out
grep -q -x 'came back: 0 bytes' out
succeeds compact -n j.hds
grep -q -x 'would come back: 0 bytes or more' out
succeeds compact --quiet j.hds
test ! -s out || fail "compact --quiet printed: $(cat out)"

# The members are those of the man page.
for name in $(sed 's/ .*//' expected check-members) \
            $(perl -MJSON::PP -0777 -e 'print join " ",
              keys %{decode_json (<STDIN>)}' <info.json); do
  grep -q "^=item.*C<$name>" "$abs_top_srcdir/man/ploop-img.pod" ||
    fail "ploop-img(1) does not describe $name"
done

# ---- Output that does not arrive -------------------------------------------

if test -c /dev/full; then
  for arguments in --help --version help 'help create' 'create --help' \
                   'info j.hds' 'info --output=json j.hds' \
                   'check j.hds' 'check --output=json j.hds' \
                   'compact j.hds' 'compact --output=json -n j.hds' \
                   'create --force o.hds 1M'; do
    rc=0
    "$PLOOP_IMG" $arguments >/dev/full 2>err || rc=$?
    test $rc -eq 1 || fail "ploop-img $arguments >/dev/full: status $rc, not 1"
    grep -q 'standard output' err ||
      fail "ploop-img $arguments >/dev/full: error: $(cat err)"
  done
fi

# With standard output closed, files that are opened must not take its place.
rc=0
"$PLOOP_IMG" create c.hds 1M >&- 2>err || rc=$?
test $rc -eq 1 || fail "create >&-: exit status $rc, not 1: $(cat err)"
succeeds create q.hds 1M
cmp c.hds q.hds || fail "create >&- made another image"
"$PLOOP_IMG" create --quiet --force c.hds 1M <&- >&- 2>&- ||
  fail "create --quiet with everything closed: exit status $?"
cmp c.hds q.hds || fail "create with everything closed made another image"
