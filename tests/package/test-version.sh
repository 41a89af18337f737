#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that the version, which is AC_INIT's in configure.ac, is the same wherever it is
# told: by the programs, in what is installed, in the packages' files, NEWS and README; and
# that those agree whether it has been released, and on which day.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires perl
cd "$tmp"

# tells WHERE TEXT: TEXT is the version.
tells ()
{
  say "$1: $2"
  [ "$2" = "$VERSION" ] || fail "$1 says '$2', and configure.ac $VERSION"
}

tells configure.ac \
  "$(sed -n 's/^AC_INIT(\[ploop-nbd\], \[\(.*\)\]).*/\1/p' "$abs_top_srcdir/configure.ac")"

run_nbdkit "$PLUGIN" --dump-plugin > dump
tells "the plugin" "$(sed -n 's/^version=//p' dump)"
tells "the plugin's library" "$(sed -n 's/^ploop_core_version=//p' dump)"
tells "ploop-img" "$("$PLOOP_IMG" --version | sed -n '1s/.* //p')"
tells "ploop-core.pc" \
  "$(sed -n 's/^Version: //p' "$abs_top_builddir/lib/ploop-core.pc")"
for page in "$abs_top_builddir"/man/*.[138]; do
  [ -e "$page" ] || { say "man pages: skipped: they are not built"; break; }
  # Another name of a page that is told of.
  ! grep -q '^\.so ' "$page" || continue
  tells "${page##*/}" "$(sed -n 's/^\.TH .*"ploop-nbd \([^"]*\)".*/\1/p' "$page")"
done

spec=$abs_top_builddir/ploop-nbd.spec
tells "ploop-nbd.spec" "$(sed -n 's/^Version: *//p' "$spec")"
tells "ploop-nbd.spec, %changelog" \
  "$(sed -n '/^%changelog/,$ s/^\* .* - \(.*\)-1$/\1/p' "$spec" | head -n 1)"

changelog=$abs_top_srcdir/debian/changelog
tells debian/changelog "$(sed -n '1s/^ploop-nbd (\(.*\)) .*/\1/p' "$changelog")"
tells NEWS "$(sed -n 's/^Version \([^ ]*\) .*/\1/p' "$abs_top_srcdir/NEWS" | head -n 1)"
tells README.md "$(sed -n 's/^Version \([0-9.]*[0-9]\).*/\1/p' "$abs_top_srcdir/README.md")"

# ---- Released, or not

released=$(sed -n 's/^Version [^ ]* (\(.*\))$/\1/p' "$abs_top_srcdir/NEWS" | head -n 1)
distribution=$(sed -n '1s/.*) \(.*\);.*/\1/p' "$changelog")
if [ "$released" = "not released" ]; then
  [ "$distribution" = UNRELEASED ] ||
    fail "debian/changelog is for '$distribution', and NEWS says: not released"
  grep -q '^Version [0-9.]*, not released' "$abs_top_srcdir/README.md" ||
    fail "README.md says nothing of that it is not released"
  say "it is not released yet"
else
  [ "$distribution" != UNRELEASED ] ||
    fail "debian/changelog is for UNRELEASED, and NEWS says: $released"
  if grep '^Version [0-9.]*, not released' "$abs_top_srcdir/README.md"; then
    fail "NEWS says: $released"
  fi
  [ "$RELEASE_DATE" = "$released" ] ||
    fail "RELEASE_DATE in configure.ac is $RELEASE_DATE, and NEWS says: $released"
  for day in "$(sed -n 's/^ -- .*>  //p' "$changelog" | head -n 1)" \
      "$(sed -n '/^%changelog/,$ s/^\* \(.*\) ploop-nbd.*/\1/p' "$spec" | head -n 1)"; do
    [ "$(date -u -d "$day" +%F)" = "$released" ] ||
      fail "debian/changelog or ploop-nbd.spec is of '$day', and NEWS of $released"
  done
fi
say "passed"
