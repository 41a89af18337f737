#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that the tarball, which has the spec file, makes RPMs, as README says, that hold
# what Debian's packages do.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
. "$abs_top_srcdir/tests/package/readme.sh"
requires rpmbuild rpmspec xz
[ -e "$TARBALL" ] || fail "there is no $TARBALL: run make check-packages"
cd "$tmp"
unset MAKEFLAGS MFLAGS MAKELEVEL LD_LIBRARY_PATH

tar --wildcards --strip-components 1 -xJf "$TARBALL" '*/ploop-nbd.spec'
if command -v rpmlint > /dev/null; then
  say "rpmlint"
  # What other distributions want; and the project names no place to download it from.
  cat > rpmlint.toml << 'TOML'
Filters = ["no-buildroot-tag", "lib-package-without-%mklibname", "invalid-url Source0"]
TOML
  if ! rpmlint -c rpmlint.toml ploop-nbd.spec > rpmlint.log 2>&1 ||
      grep -E ': [EW]: ' rpmlint.log; then
    cat rpmlint.log
    fail "rpmlint"
  fi
fi

if [ "${PLOOP_TEST_SCALE:-100}" -lt 100 ]; then
  say "rpmbuild, the source package only: all of them take a minute"
  HOME=$tmp rpmbuild -ts --nodeps "$TARBALL" > build.log 2>&1 ||
    { tail -n 40 build.log; fail "rpmbuild"; }
  say "passed"
  exit 0
fi

build=$(readme_command rpmbuild)
say "$build"
cp "$TARBALL" .
HOME=$tmp bash -euc "$build" > build.log 2>&1 ||
  { tail -n 40 build.log; fail "rpmbuild"; }
if grep -iE '^warning|File not found|Installed \(but unpackaged\)' build.log; then
  fail "rpmbuild warns"
fi

# contains PACKAGE FILE...: and no other but documents and build ids.
contains ()
{
  local package=$1
  shift
  rpm -qlp rpmbuild/RPMS/*/"$package-$VERSION"-*.rpm |
    grep -vE '/(\.build-id|doc|licenses)(/|$)' | sed 's/\.gz$//; s,/lib64/,/lib/,' |
    LC_ALL=C sort > files
  printf '%s\n' "$@" | LC_ALL=C sort > want
  diff want files || fail "$package"
}
contains nbdkit-ploop-plugin /etc/bash_completion.d/nbdkit-ploop \
  /usr/lib/nbdkit/plugins/nbdkit-ploop-plugin.so \
  /usr/lib/systemd/system/nbdkit-ploop@.service \
  /usr/lib/systemd/system/nbdkit-ploop@.socket \
  /usr/share/man/man1/nbdkit-ploop-plugin.1
contains ploop-attach /usr/lib/systemd/system/ploop-attach@.service \
  /usr/sbin/ploop-attach /usr/sbin/ploop-detach \
  /usr/share/bash-completion/completions/ploop-attach \
  /usr/share/bash-completion/completions/ploop-detach \
  /usr/share/man/man8/ploop-attach.8 /usr/share/man/man8/ploop-detach.8
contains ploop-img /usr/bin/ploop-img /usr/share/bash-completion/completions/ploop-img \
  /usr/share/man/man1/ploop-img.1 /usr/share/zsh/site-functions/_ploop-img
contains libploop-core /usr/lib/libploop-core.so.0 /usr/lib/libploop-core.so.0.0.0
contains libploop-core-devel /usr/include/ploop-core.h /usr/lib/libploop-core.so \
  /usr/lib/pkgconfig/ploop-core.pc /usr/share/man/man3/libploop-core.3
say "passed"
