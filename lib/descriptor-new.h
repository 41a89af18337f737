/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The DiskDescriptor.xml of a new disk that is one image beside it.
 *
 * It is what makes the disk, so the image has to be on stable storage first.
 */

#ifndef PLOOP_LIB_DESCRIPTOR_NEW_H
#define PLOOP_LIB_DESCRIPTOR_NEW_H

#include <stdbool.h>

#include <glib.h>

#include "error.h"

/* Can there be one beside IMAGE, which need not be there yet?  Returns false and sets
 * ERROR when there is one already (PLOOP_ERROR_EXISTS), or the image's name cannot be
 * in it (PLOOP_ERROR_ARGUMENT).
 */
bool descriptor_new_is_possible (const char *image, GError **error);

/* Write it, as ploop does, for good.  SPACE is how the image was made.
 *
 * Returns 0; or -1 with ERROR set, and there is none.
 */
int descriptor_new_write (const char *image, enum ploop_create_space space,
                          GError **error);

#endif /* PLOOP_LIB_DESCRIPTOR_NEW_H */
