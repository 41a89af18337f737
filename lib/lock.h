/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The two kinds of locks that keep the other programs out, and us where they
 * are at work (and where a kernel is, which holds none: mounted.h):
 *
 *   byte-range locks on the image  qemu (7.2: OFD locks) and libploop 9: byte
 *                                  100+n for a permission used, 200+n for one
 *                                  not shared
 *   flock on DiskDescriptor.xml.lck  ploop 1.15: the lock of the descriptor that
 *                                  it was given, whatever its name; and of the
 *                                  DiskDescriptor.xml beside an image
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

/* How ploop's lock is taken. */
enum descriptor_lock {
  DESCRIPTOR_LOCK_READER,       /* others may read; leaves no file behind */
  DESCRIPTOR_LOCK_BASE,         /* the same, for who writes to a delta that rests
                                   on the disk: the lock file is made if it is
                                   not there and can be */
  DESCRIPTOR_LOCK_WRITER,       /* alone; makes the lock file */
};

/* Lock the descriptor DESCRIPTOR, an existing file's name; PATH is only for the
 * text of errors.  *FD becomes the file
 * descriptor that holds the lock, or -1 when there is nothing to lock: who does not
 * write to the disk finds no lock file.  Waits a fraction of a second at most.
 * Closing *FD unlocks.
 */
bool lock_descriptor_file (const char *descriptor, const char *path,
                           enum descriptor_lock lock, int *fd,
                           GError **error);

/* The same for the DiskDescriptor.xml beside the image PATH (its real path), if
 * there is one.
 */
bool lock_descriptor (const char *path, enum descriptor_lock lock, int *fd,
                      GError **error);

/* The name of that (g_free), whether it is there or not. */
char *lock_descriptor_name (const char *path);

/* What others hold of the image open at FD, without locking anything. */
enum ploop_lock_state lock_look (int fd);

#endif /* PLOOP_LIB_LOCK_H */
