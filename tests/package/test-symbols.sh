#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that the library exports what ploop-core.map and Debian's symbols file list, and
# nothing else; that its soname is that of Debian's package; and that the plugin exports
# what nbdkit looks for.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires readelf
cd "$tmp"

# exported FILE: its symbols with their versions, one a line, sorted.
exported ()
{
  # NM may be several words.
  # shellcheck disable=SC2086
  $NM -D --defined-only --with-symbol-versions "$1" |
    awk '{ sub (/@@/, "@", $3); print $3 }' | LC_ALL=C sort
}

# same WHAT THERE: the file THERE is what is exported.
same ()
{
  diff exported "$2" > difference || { cat difference; fail "$1"; }
}

exported "$LIBRARY" > all
version=$(grep -v @ all)
[ "$(wc -l <<< "$version")" = 1 ] || fail "without a version: $version"
grep @ all > exported
[ "$(wc -l < exported)" -gt 10 ] || fail "the library's symbols are not found"
say "$(wc -l < exported) functions in $version"

sed -n "s/^ *\(ploop_[a-z0-9_]*\);\$/\1@$version/p" "$abs_top_srcdir/lib/ploop-core.map" |
  LC_ALL=C sort > map
same "what lib/ploop-core.map lists (>) is not what the library exports (<)" map

symbols=$abs_top_srcdir/debian/libploop-core0.symbols
sed -n 's/^ \(ploop_[^ ]*\) .*/\1/p' "$symbols" | LC_ALL=C sort > listed
same "what debian/libploop-core0.symbols lists (>) is not what the library exports (<)" \
  listed
grep -q "^ $version@$version " "$symbols" || fail "$symbols: no $version"
soname=$(readelf -d "$LIBRARY" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')
[ "$(sed -n '1s/ #MINVER#$//p' "$symbols")" = "$soname libploop-core${soname##*.so.}" ] ||
  fail "$symbols is not of $soname"

# nbdkit sets debug flags by their names.
exported "$PLUGIN" | grep -vE '^ploop_debug_[a-z]+$' > exported
echo plugin_init > map
same "the plugin exports more than nbdkit looks for (<)" map
say "passed"
