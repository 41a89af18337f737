#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves, on images that other programs made, that a guest reads what it must
# (the SHA-256 of the manifest), and that damaged and hostile images (group h)
# end in an error that names file, field and value, or in the manifest's
# content; never in a crash or a hang.  No file is changed by being read,
# whether it is served for writing or not.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires nbdcopy nbdinfo sha256sum timeout

limit=60
nbdkit_is_plain || limit=900
unpack_corpus
nr_read=0 nr_refused=0

# openssl is several times as fast where the processor helps.
sum_stdin ()
{
  if command -v openssl > /dev/null; then
    openssl dgst -sha256 -r
  else
    sha256sum
  fi | cut -d ' ' -f 1
}

# try_serving FILE [-r]: sets `size`, and `sha`, empty when the image was
# refused (with a good error). A large image is read in both ways, but its sum
# is made only once, for it takes long: `sha` is "not made" then.
try_serving ()
{
  local file=$1
  shift
  sha="" size=""
  if ! start_nbdkit "$@" file="$file"; then
    check_log
    [ "$nbdkit_status" -eq 1 ] ||
      fail "$file: exit status $nbdkit_status, must be 1"
    grep -q "error: .*${file##*/}.*[0-9\"]" "$nbdkit_log" ||
      fail "$file: the error does not name the file and a value"
    return 0
  fi
  size=$(timeout "$limit" nbdinfo --size "$uri") ||
    fail "$file: nbdinfo: exit status $?"
  if [ "$size" -gt $((256 << 20)) ] && [ "${1:-}" = -r ]; then
    timeout "$limit" nbdcopy "$uri" null: || fail "$file: nbdcopy failed"
    sha="not made"
  else
    sha=$(timeout "$limit" nbdcopy "$uri" - | sum_stdin) ||
      fail "$file: nbdcopy failed"
  fi
  stop_nbdkit
}

# choose_modes: for writing, and for reading only (-r).  Short runs try each image
# in one of them.
choose_modes ()
{
  modes=()
  if chosen "$nr_groups"; then modes+=(''); fi
  if chosen $((nr_groups + 1)); then modes+=(-r); fi
}

# must_read NAME FILE SHA BYTES
must_read ()
{
  local mode before
  choose_modes
  for mode in "${modes[@]}"; do
    before=$(file_state "$2")
    try_serving "$2" $mode
    [ -n "$sha" ] || fail "$1 ($mode): refused: $(cat "$nbdkit_log")"
    [ "$sha" = "$3" ] || [ "$sha" = "not made" ] ||
      fail "$1 ($mode): content is $sha, must be $3"
    [ "$size" = "$4" ] || fail "$1 ($mode): size is $size, must be $4"
    [ "$(file_state "$2")" = "$before" ] || fail "$1 ($mode): file changed"
  done
  nr_read=$((nr_read + 1))
}

# may_read NAME FILE SHA: what it reads is SHA, or it is refused.
may_read ()
{
  local mode before
  choose_modes
  for mode in "${modes[@]}"; do
    before=$(file_state "$2")
    try_serving "$2" $mode
    [ "$(file_state "$2")" = "$before" ] || fail "$1 ($mode): file changed"
    if [ -z "$sha" ]; then
      say "$1 ($mode): refused: $(grep -m 1 error: "$nbdkit_log")"
      nr_refused=$((nr_refused + 1))
    else
      [ "$sha" = "$3" ] || fail "$1 ($mode): content is $sha, must be $3"
      say "$1 ($mode): content as in the manifest"
      nr_read=$((nr_read + 1))
    fi
  done
}

# image_of ENTRY: the image beside a descriptor, if there is just one.
image_of ()
{
  case $1 in
    */DiskDescriptor.xml) file=$tmp/corpus/${1%/*}/root.hds ;;
    *.hds) file=$tmp/corpus/$1 ;;
    *) file= ;;
  esac
}

nr_groups=0
while IFS=$'\t' read -r name _ _ entry sha256 bytes _; do
  image_of "$entry"
  case $name in
    name | *@* | c-* | i-* | d-split2)
      # The heading; chains, split disks and descriptors are not served yet.
      continue ;;
    a-raw)
      try_serving "$file"
      [ -z "$sha" ] || fail "$name: a raw file was served"
      grep -qi 'signature\|not .*ploop' "$nbdkit_log" ||
        fail "$name: the error does not say that it is no ploop image"
      say "$name: refused: $(cat "$nbdkit_log")" ;;
    h-ok)
      sha_of_ok=$sha256
      may_read "$name" "$file" "$sha256" ;;
    h-ext-garbage)
      # qemu, which the manifest asked, falls over the extension; a guest has
      # the same data all the same.
      may_read "$name" "$file" "$sha_of_ok" ;;
    h-*) may_read "$name" "$file" "$sha256" ;;
    *) must_read "$name" "$file" "$sha256" "$bytes" ;;
  esac
  nr_groups=$((nr_groups + 1))
done < "$PLOOP_CORPUS/MANIFEST.tsv"
[ "$nr_groups" -ge 30 ] || fail "only $nr_groups images in the manifest"

# Bitmaps that a write would make untrue keep an image read-only, and it says
# why.
for name in one two; do
  start_nbdkit file="$tmp/corpus/g-cbt/$name.hds"
  nbdinfo --is read-only "$uri" ||
    fail "g-$name: can be written, and its bitmaps would be lost"
  grep -qi 'bitmap' "$nbdkit_log" || fail "g-$name: no word about bitmaps"
  stop_nbdkit
done

say "$nr_groups images: $nr_read read, $nr_refused refused"
