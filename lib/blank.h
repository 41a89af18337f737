/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The file of an empty image: header, BAT, and, if wanted, the clusters. */

#ifndef PLOOP_LIB_BLANK_H
#define PLOOP_LIB_BLANK_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "error.h"

/* As ploop_create says, and its errors; but only one file: OPTIONS' overlay_of,
 * snapshot and descriptor are left to the caller.
 */
int blank_create (const char *path, const struct ploop_create_options *options,
                  GError **error);

/* Let OPTIONS be those of an overlay on a disk of SIZE bytes: its sectors, all of
 * them, and its CLUSTER_SIZE and VERSION, of which 0 is any.
 */
void blank_like (uint64_t size, uint32_t cluster_size, unsigned version,
                 struct ploop_create_options *options);

#endif /* PLOOP_LIB_BLANK_H */
