/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The two kinds of locks that keep the other programs out, and us where they
 * are at work:
 *
 *   byte-range locks on the image  qemu (7.2: OFD locks) and libploop 9: byte
 *                                  100+n for a permission used, 200+n for one
 *                                  not shared
 *   flock on DiskDescriptor.xml.lck  ploop 1.15; only where an image has a
 *                                  DiskDescriptor.xml beside it
 *
 * Both are held by open file descriptions, so they live through a fork and end
 * with the process however it ends.
 */

#ifndef PLOOP_LIB_LOCK_H
#define PLOOP_LIB_LOCK_H

#include <stdbool.h>

#include <glib.h>

#include "error.h"

/* Lock the image file open at FD.  As a WRITER: nobody else may use it.
 * Otherwise: others may read it.  Never waits.  Returns false and sets ERROR
 * (PLOOP_ERROR_IN_USE, or SYSTEM where the file system has no locks) without
 * PATH, which it is given only for the text.  Closing FD unlocks.
 */
bool lock_image (int fd, const char *path, bool writer, GError **error);

/* Lock the descriptor beside the image PATH (its real path), when there is
 * one.  *FD becomes the descriptor that holds the lock, or -1 when there is
 * nothing to lock: no DiskDescriptor.xml, or a reader finds no lock file.
 * Waits a fraction of a second at most.  Closing *FD unlocks.
 */
bool lock_descriptor (const char *path, bool writer, int *fd, GError **error);

/* What others hold of the image open at FD, without locking anything. */
enum ploop_lock_state lock_look (int fd);

#endif /* PLOOP_LIB_LOCK_H */
