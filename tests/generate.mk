# SPDX-License-Identifier: LGPL-2.1-or-later

# Where tests find the generator of disks: a Makefile.am that includes this exports
# GENERATE='$(GENERATE)' to them.  A make check of one directory alone makes it, too.
GENERATE = $(abs_top_builddir)/tests/generate/generate
check_DATA = $(GENERATE)

.PHONY: make-generate
$(GENERATE): make-generate
	$(MAKE) $(AM_MAKEFLAGS) -C $(top_builddir)/tests/generate generate
