#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Every command in ploop-attach(8) is run exactly as printed, in a guest.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"
# shellcheck source=tests/vm/guest.sh
. "$abs_srcdir/guest.sh"
# shellcheck source=tests/vm/examples.sh
. "$abs_srcdir/examples.sh"

requires_examples
make_standard_files
run_examples "$abs_top_srcdir/man/ploop-attach.pod" \
  "$abs_srcdir/examples/ploop-attach.sh"
say "passed"
