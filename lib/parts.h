/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The images that make a disk, one behind the other.
 *
 * Nearly all disks have one part.  A split disk has several, and a range of it may
 * lie in more than one: it is cut where they meet.
 */

#ifndef PLOOP_LIB_PARTS_H
#define PLOOP_LIB_PARTS_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "image.h"
#include "location.h"

struct part {
  struct image *image;
  uint64_t start, length;       /* bytes of the disk */
};

struct ploop_image {
  struct part *parts;
  unsigned nr_parts;
  unsigned nr_open;             /* of them, while the disk is opened */
  uint64_t size;                /* bytes */
  bool read_only;               /* one part that may not be written is enough */
};

/* Add IMAGE, opened at LOCATION, behind the parts that there are; it is freed with
 * the others, also when this fails: returns false and sets ERROR when it does not
 * have what LOCATION says.
 */
bool parts_add (ploop_image *disk, const struct location *location,
                struct image *image, GError **error);

/* Open what LOCATION says, a disk of one part, and start it; OPTIONS as of ploop_open,
 * which it is otherwise.  Implemented with that.
 */
ploop_image *parts_open (const struct location *location,
                         const struct ploop_open_options *options,
                         GError **error);

/* Is a file of LOCATION one that a part of DISK has open?  Returns true and sets
 * ERROR then.
 */
bool parts_share_file (const ploop_image *disk,
                       const struct location *location, GError **error);

/* What ploop-core.h says of the functions called alike, for a range that lies on
 * the disk.
 */
int parts_check_fast (const ploop_image *disk, uint64_t length,
                      uint64_t offset, unsigned flags);
int parts_extents (ploop_image *disk, uint64_t length, uint64_t offset,
                   unsigned flags, ploop_extent_fn fn, void *opaque);
int parts_prefetch (ploop_image *disk, uint64_t length, uint64_t offset);

/* Of a disk with several parts: do REQUEST, and wait; or begin it. */
int parts_do (ploop_image *disk, ploop_request *request);
int parts_submit (ploop_image *disk, ploop_request *request);

#endif /* PLOOP_LIB_PARTS_H */
