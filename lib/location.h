/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Which files make up the disk that a user has named. */

#ifndef PLOOP_LIB_LOCATION_H
#define PLOOP_LIB_LOCATION_H

#include <stdbool.h>

#include <glib.h>

#include "chain.h"
#include "descriptor.h"
#include "error.h"

struct location {
  GArray *deltas;               /* of struct chain_source, base first; the last
                                   is the top */
  bool read_only;               /* it must not be written */
  struct descriptor *descriptor;        /* that says so; NULL: none */
  bool descriptor_is_locked;    /* by who opens it */
  uint32_t cluster_size;        /* bytes; by the descriptor, else 0 */
  const char *created;          /* the overlay's name, if it was created */
  unsigned part, nr_parts;      /* of a split disk; else 0 of 1 */
  uint64_t start, length;       /* bytes of the disk; 0 of any for the whole */
};

/* Find the files of the disk PATH as ploop_open says; of a split disk, those of
 * part number PART (0 is always there).  Creates the overlay that OPTIONS name if
 * there is none, and changes nothing else.
 *
 * Returns false and sets ERROR when there is no such disk.
 */
bool location_find (struct location *location, const char *path, unsigned part,
                    const struct ploop_open_options *options,
                    const struct log *log, GError **error);

/* The descriptor that PATH is or, being a directory, holds (g_free); NULL when it is
 * something else.  By its content, or its name: one that is damaged is one, too.
 */
char *location_descriptor (const char *path);

/* *OWNER becomes the DiskDescriptor.xml beside the file PATH, if it names that file
 * (g_free); or NULL.  Returns false and sets ERROR when there is one that cannot be read.
 */
bool location_find_owner (const char *path, char **owner, GError **error);

/* Add the image that DESCRIPTOR knows to DELTAS (of struct chain_source), above those
 * that there are.  ALLOW_OUTSIDE and errors as of descriptor_open_file.
 */
bool location_add_image (GArray *deltas, const struct descriptor *descriptor,
                         const struct descriptor_image *image,
                         bool allow_outside, GError **error);

/* The GUID that the descriptor beside the image PATH has for it, that descriptor, and
 * the GUID of the delta that it rests on, if any (each g_free); NULL: there is none
 * that knows it.
 */
char *location_guid (const char *path, char **descriptor_path, char **parent);

/* Does the file NAME, below the directory at DIRECTORY_FD, begin as an image does?
 * Only a regular file or a block device can; a fifo or the like is not waited for.
 * FLAGS are more of those of open.
 */
bool location_is_image (int directory_fd, const char *name, int flags);

/* Is its top a raw disk? */
bool location_is_raw (const struct location *location);

/* Open delta number I, counted from the base, by itself.  LOG may be NULL, and is for
 * what is remote.  Returns NULL and sets ERROR as delta_open_source does.
 */
struct delta *location_open_delta (const struct location *location, guint i,
                                   enum delta_lock lock,
                                   const struct log *log, GError **error);

/* With all deltas open and locked: is the descriptor still what was read?  Returns
 * false and sets ERROR when somebody has replaced it meanwhile.
 */
bool location_is_current (const struct location *location, GError **error);

/* The disk could not be opened: leave behind what was there before. */
void location_undo (const struct location *location);

/* Of one of zeros, does nothing. */
void location_clear (struct location *location);

#endif /* PLOOP_LIB_LOCATION_H */
