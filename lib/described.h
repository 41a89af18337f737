/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A disk that has a descriptor, for commands that change which deltas it has: the
 * descriptor, read under its lock, and the files that it names.
 */

#ifndef PLOOP_LIB_DESCRIBED_H
#define PLOOP_LIB_DESCRIBED_H

#include <stdbool.h>

#include <glib.h>

#include "descriptor.h"
#include "location.h"

struct described {
  struct descriptor *descriptor;
  int lock_fd;                  /* -1: a reader found nothing to lock */
  GArray *file_fds;             /* of int, which hold locks on files */
};

/* Read and lock the descriptor PATH, or the one that the directory PATH holds; to
 * change it, or only to read.  Returns false and sets ERROR when there is none, or
 * somebody else has it.
 */
bool described_open (struct described *described, const char *path,
                     bool writer, GError **error);

/* Of one of zeros, does nothing. */
void described_close (struct described *described);

/* Where the lowest NR of IMAGES (of struct descriptor_image, base first; of storage
 * number STORAGE) lie: for image_open, as part of a disk whose descriptor is locked.
 * Returns false and sets ERROR when a file cannot be found.
 */
bool described_locate (const struct described *described, guint storage,
                       const GPtrArray *images, guint nr,
                       struct location *location, GError **error);

/* To be used instead of location_clear. */
void described_forget (struct location *location);

/* Does each storage have the chain of GUID (NULL: the top), as descriptor_chain says?
 * To be asked after a change, before it is stored.
 */
bool described_is_sound (const struct described *described, const char *guid,
                         GError **error);

/* Has the image of GUID, in each storage, its file to itself?  If not, a write to it would
 * change what another GUID has: returns false and sets ERROR.
 */
bool described_has_own_files (const struct described *described,
                              const char *guid, GError **error);

/* The names of files, to be removed when nothing names them any more: that of GUID in
 * each storage, if it is there, is added to PATHS (of char *).  With LOCK, nobody else
 * may use them from now on.  Returns false and sets ERROR when one cannot be opened, or
 * is in use.
 */
bool described_collect_files (struct described *described, const char *guid,
                              bool lock, GPtrArray *paths, GError **error);

/* Remove those files, with the descriptor that does not name them stored; one that it
 * names all the same, by another GUID, stays.  Returns false and sets ERROR when one
 * cannot be removed, having tried all.
 */
bool described_remove_files (const struct described *described,
                             const GPtrArray *paths, GError **error);

#endif /* PLOOP_LIB_DESCRIBED_H */
