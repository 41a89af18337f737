/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What is to be told of one image that is open. */

#ifndef PLOOP_LIB_INFO_H
#define PLOOP_LIB_INFO_H

#include <glib.h>

#include "delta.h"
#include "ploop-core.h"

/* Fill in INFO as ploop_get_info does.  Of a raw disk, the clusters that are
 * allocated are those that are no holes.
 *
 * Returns 0, or -1 with ERROR set when DELTA cannot be read.
 */
int info_get (const struct delta *delta, struct ploop_info *info,
              GError **error);

#endif /* PLOOP_LIB_INFO_H */
