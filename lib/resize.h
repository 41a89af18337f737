/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Making a delta's disk larger, for whoever has the file to himself. */

#ifndef PLOOP_LIB_RESIZE_H
#define PLOOP_LIB_RESIZE_H

#include <stdint.h>

#include <glib.h>

#include "delta.h"
#include "error.h"

/* Let the disk of DELTA, opened for writing and taken over, have SIZE bytes, which is no
 * less than it has.  Returns 0; or -1 with ERROR set, and DELTA as large as it was, or
 * as it is to be.
 */
int resize_grow (struct delta *delta, uint64_t size, const struct log *log,
                 GError **error);

#endif /* PLOOP_LIB_RESIZE_H */
