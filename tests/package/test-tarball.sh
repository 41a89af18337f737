#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that the tarball has every file of the repository, and makes itself again, byte
# for byte.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires xz tar
[ -e "$TARBALL" ] || fail "there is no $TARBALL: run make check-packages"
cd "$tmp"

if git -C "$abs_top_srcdir" rev-parse --is-inside-work-tree > /dev/null 2>&1; then
  say "every file of the repository"
  # What only the repository needs stays there.
  git -c safe.directory='*' -C "$abs_top_srcdir" ls-files |
    grep -vxF -e .gitignore -e .ci/run | LC_ALL=C sort > files
  [ -s files ] || fail "git lists no files"
  tar -tJf "$TARBALL" | sed -n 's,^[^/]*/\(.*[^/]\)$,\1,p' | LC_ALL=C sort > there
  LC_ALL=C comm -23 files there > missing
  [ ! -s missing ] || { cat missing; fail "not in the tarball"; }
else
  say "every file of the repository: skipped: $abs_top_srcdir is none"
fi

say "again, from the tarball"
unset MAKEFLAGS MFLAGS MAKELEVEL LD_LIBRARY_PATH
tar -xJf "$TARBALL"
mkdir build
(cd build && "../ploop-nbd-$VERSION/configure" -q && make dist) > build.log 2>&1 ||
  { tail -n 40 build.log; fail "make dist"; }
cmp "$TARBALL" build/ploop-nbd-*.tar.xz || fail "another tarball"
say "passed"
