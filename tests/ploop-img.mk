# SPDX-License-Identifier: LGPL-2.1-or-later

# Where tests find ploop-img.  What libtool makes under its name is a shell script
# that costs four times what the program does; tests call it hundreds of times.
find_ploop_img = \
	PLOOP_IMG='$(abs_top_builddir)/tools/ploop-img'; \
	if test -x '$(abs_top_builddir)/tools/.libs/ploop-img'; then \
	  PLOOP_IMG='$(abs_top_builddir)/tools/.libs/ploop-img'; \
	  LD_LIBRARY_PATH='$(abs_top_builddir)/lib/.libs'"$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}"; \
	  export LD_LIBRARY_PATH; \
	fi;
