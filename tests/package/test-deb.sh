#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves that the tarball makes Debian packages, as README says, of which lintian has
# nothing to say, with all that hardens them; that these install, work, go and leave
# nothing behind.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
. "$abs_top_srcdir/tests/package/overlay.sh"
. "$abs_top_srcdir/tests/package/readme.sh"
requires dpkg-buildpackage dh xz
[ -e "$TARBALL" ] || fail "there is no $TARBALL: run make check-packages"
cd "$tmp"
mkdir packages

dpkg-checkbuilddeps "$abs_top_srcdir/debian/control" 2> missing ||
  skip "$(sed 's/.*error: //' missing)"

build=$(readme_command dpkg-buildpackage)
say "$build"
tar -C packages -xJf "$TARBALL"
(
  cd packages/ploop-nbd-*/
  # What make check has set up is not for the packages.
  unset MAKEFLAGS MFLAGS MAKELEVEL LD_LIBRARY_PATH
  bash -euc "$build"
) > build.log 2>&1 || { tail -n 40 build.log; fail "dpkg-buildpackage"; }
rm -r packages/ploop-nbd-*/
# grep finds nothing: good.
if grep -E '^dpkg-gensymbols: warning|^dh_[a-z]*: warning' build.log; then
  fail "warnings of debhelper"
fi

if command -v blhc > /dev/null; then
  say "blhc"
  blhc --bindnow build.log || fail "not all is hardened"
fi

if command -v lintian > /dev/null; then
  say "lintian"
  lintian --allow-root -i -I --pedantic --fail-on error,warning,info,pedantic \
    packages/*.changes > lintian.log 2>&1 || { cat lintian.log; fail "lintian"; }
fi

# ---- Install, use, remove

overlay_or_skip
for package in packages/*_*.deb; do
  name=${package#packages/} name=${name%%_*}
  ! dpkg-query -W -f '${db:Status-Status}' "$name" 2> /dev/null | grep -q '^installed' ||
    skip "$name is installed on this machine"
done
cp -r "$abs_top_srcdir/debian/tests" .
readme_command 'dpkg -i' > install
cat > inside << 'INSIDE'
set -euo pipefail
echo "install"
# It is root already.
sudo ()
{
  "$@"
}
mkdir packages/clone
(cd packages/clone && . ../../install) > dpkg.log 2>&1 || { cat dpkg.log; exit 1; }
dpkg -i packages/*.deb >> dpkg.log 2>&1 || { cat dpkg.log; exit 1; }
grep -vE '^(Selecting|Preparing|Unpacking|Setting up|Processing|\(Reading)' dpkg.log || :
names=()
for package in packages/*.deb; do
  name=${package#packages/}
  names+=("${name%%_*}")
done
for name in "${names[@]}"; do
  [ -z "$(dpkg --verify "$name")" ] || { dpkg --verify "$name"; exit 1; }
done

echo "use"
version=$(ploop-img --version | sed -n '1s/.* //p')
nbdkit ploop --dump-plugin | grep -qx "version=$version"
[ "$(pkg-config --modversion ploop-core)" = "$version" ]
for program in ploop-attach ploop-detach; do
  [ "$("$program" --version | sed -n '1s/.* //p')" = "$version" ]
done
for test in $(sed -n 's/^Tests: //p' tests/control); do
  echo "debian/tests/$test"
  bash "tests/$test"
done
if [ -e /usr/share/bash-completion/bash_completion ]; then
  echo "completion"
  bash --norc --noprofile -c '
    . /usr/share/bash-completion/bash_completion
    complete -p nbdkit' | grep -qF -- '-F _nbdkit_ploop '
fi
if command -v man > /dev/null; then
  echo "man pages"
  dpkg -L "${names[@]}" | grep -E '/man[0-9]/.*\.gz$' > pages
  while read -r page; do
    man --warnings -E UTF-8 -l -Tutf8 -Z "$page" 2> warnings > /dev/null
    [ ! -s warnings ] || { cat warnings; echo "$page"; exit 1; }
  done < pages
fi

echo "remove"
dpkg -r "${names[@]}" > dpkg.log 2>&1 || { cat dpkg.log; exit 1; }
! command -v ploop-img || exit 1
dpkg -P "${names[@]}" > dpkg.log 2>&1 || { cat dpkg.log; exit 1; }
echo "what is left"
# dpkg's and its triggers' own; nbdkit writes nothing outside /tmp and /run.
find changed -mindepth 1 ! -type d | sed 's/^changed//' | grep -vE \
  '^/(var/(lib/dpkg|log/dpkg.log|log/alternatives.log|cache/(ldconfig|man|debconf))|etc/ld\.so\.cache)' \
  > left || :
find changed -mindepth 1 -type d -empty | sed 's/^changed//' | while read -r directory; do
  [ -d "before$directory" ] || echo "$directory"
done >> left
[ ! -s left ] || { cat left; exit 1; }
INSIDE
in_overlay "$tmp" bash inside || fail "the packages, installed"
say "passed"
