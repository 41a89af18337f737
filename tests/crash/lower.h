/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The deltas below the one that is written to: made at random, with stamps
 * (rules.h) in some of their clusters, and never written again.
 *
 * A merged sector is the highest delta's that has its cluster, as the format
 * says; not a line of it is the library's.
 */

#ifndef PLOOP_TESTS_LOWER_H
#define PLOOP_TESTS_LOWER_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "reader.h"

#define LOWER_MAX_IMAGES 2u

struct lower_shape {
  unsigned nr_images;           /* at most LOWER_MAX_IMAGES */
  bool raw_base;                /* below them */
  unsigned filled;              /* of a hundred clusters of each */
  uint64_t end;                 /* none has a cluster from here on; 0: no limit */
};

struct lower;

/* Make them in DIRECTORY, for a disk of NR_SECTORS in clusters of
 * CLUSTER_SECTORS; each may be smaller, or an image larger, and of any version.
 */
struct lower *lower_new (const char *directory,
                         const struct lower_shape *shape,
                         uint32_t cluster_sectors, uint32_t nr_sectors,
                         GRand *random);

/* Remove the files, too.  NULL, here and below: there are none. */
void lower_free (struct lower *lower);
typedef struct lower lower_t;
G_DEFINE_AUTOPTR_CLEANUP_FUNC (lower_t, lower_free)

/* For struct ploop_open_options. */
const char *const *lower_bases (const struct lower *lower);

/* Is CLUSTER in one of them? */
bool lower_has (const struct lower *lower, uint64_t cluster);

/* The same of all clusters. */
const bool *lower_covered (const struct lower *lower);

/* The 512 bytes that a disk holds at SECTOR whose top delta is TOP; NULL: an
 * empty one.
 */
const uint8_t *lower_merged (const struct lower *lower,
                             const struct reader *top, uint64_t sector);

/* Is each file what it was?  Else rules_break. */
void lower_check_untouched (const struct lower *lower);

#endif /* PLOOP_TESTS_LOWER_H */
