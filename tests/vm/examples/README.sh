# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034
#
# README.md: ../examples-run.sh tells what this table says.

first='{00000001-1111-2222-3333-444444444444}'

# A cluster that nothing refers to, and one that two entries of the table do.
damage ()
{
  truncate -s +1M disk.hds
  # The second entry becomes like the first.
  dd if=disk.hds of=disk.hds bs=4 skip=16 seek=17 count=1 conv=notrunc
}

elsewhere 'sudo ./scripts/quickstart    # build, serve a small image, read it back' \
  'test-first-steps.sh runs it'
elsewhere 'sudo ./scripts/test          # build and run every test; the last line counts' \
  'it runs all tests, this one too'
elsewhere 'nbdkit build/plugin/.libs/nbdkit-ploop-plugin.so file=build/demo/disk.hds' \
  'test-first-steps.sh runs it'
elsewhere 'build/tools/ploop-img info build/demo/disk.hds' \
  'test-first-steps.sh runs it'
for command in 'sudo ./scripts/packages.sh build     # what Debian has; elsewhere: its list' \
               'autoreconf -i' ./configure make 'sudo make install' 'sudo ldconfig'; do
  elsewhere "$command" 'test-first-steps.sh runs it'
done
for command in 'sudo ./scripts/packages.sh build test package' 'make dist' \
               'rpmbuild -tb --nodeps --without check ploop-nbd-*.tar.xz'; do
  elsewhere "$command" 'test-rpm.sh runs it, of make check-packages'
done
elsewhere 'DEB_BUILD_OPTIONS=nocheck dpkg-buildpackage -us -uc' \
  'test-deb.sh runs it, of make check-packages'
elsewhere 'sudo dpkg -i ../libploop-core0_*.deb ../ploop-img_*.deb \
  ../nbdkit-plugin-ploop_*.deb ../ploop-attach_*.deb' \
  'test-deb.sh runs it, of make check-packages'

example 'ploop-img create disk.hds 10G' --before 'rm disk.hds'
example 'snapshot switch --keep' --after 'ploop-img compare root.hdd disk.raw'
example 'merge --all' --before 'ploop-img convert -O raw root.hdd before.raw' \
  --after 'grep -q "</svg>" map.svg; same root.hdd before.raw; ! ls root.hdd/root.hds.*'
example 'zstdcat disk.raw.zst' \
  --before 'rm disk.hds; zstdcat disk.raw.zst > unpacked.raw; rm disk.raw' \
  --after 'same copy.hds unpacked.raw; same disk.hds disk.raw'
example 'ploop-img rescue' --before 'damage; one_snapshot root.hdd; rm root.hdd/DiskDescriptor.xml' \
  --status '2 2 0 0 0' \
  --after 'ls disk.hds.backup; same disk.hds saved.hds; ploop-img check root.hdd'
example 'ploop-img compact disk.hds' --before 'truncate -s +8M disk.hds' \
  --after 'same disk.hds disk.raw; [ "$(stat -c %s disk.hds)" -lt $((16 << 20)) ]'
example 'nbdkit -U /tmp/disk.sock ploop disk.hds          # a Unix socket' --each-alone
example 'nbdinfo --list nbd://localhost' \
  --after 'ploop-img compare --snapshot=$first /vz/private/101/root.hdd old.raw'
example 'file=root.hdd overlay=trial.hds' --each-alone
example 'base=nbd://store/golden' --before start_store
example 'nbdcopy disk.raw nbd://localhost' --goes-on --after 'cmp disk.raw copy.raw'
example 'qemu-img convert -n -O raw disk.qcow2 nbd://localhost' \
  --after 'same disk.qcow2 disk.hds'
example "--run 'nbdcopy" --after 'same copy.raw disk.hds'
example 'enable --now nbdkit-ploop@101.socket' \
  --after 'systemctl disable --now nbdkit-ploop@101.socket'
