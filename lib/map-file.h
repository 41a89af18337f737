/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What the file of a delta consists of, from its beginning to its end: metadata,
 * clusters, and what is nobody's.
 */

#ifndef PLOOP_LIB_MAP_FILE_H
#define PLOOP_LIB_MAP_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "chain.h"
#include "error.h"
#include "map.h"
#include "ploop-core.h"

/* Which file, of which disk. */
struct map_file {
  const struct chain *chain;
  const struct map *map;        /* of the chain */
  unsigned level;               /* of the delta */
  unsigned index;               /* by which it is told */
  uint64_t start, length;       /* the part of the disk that is read from the chain,
                                   bytes */
  const struct log *log;
};

/* Call RANGE (NULL: nobody) for each range of the file as struct ploop_map_visitor
 * says, until it returns false: *STOPPED then.  USAGE becomes the sum of them.
 *
 * Returns 0, or -1 with ERROR set when the file cannot be read.
 */
int map_file_tell (const struct map_file *file,
                   bool (*range) (void *opaque,
                                  const struct ploop_map_range *range),
                   void *opaque, struct ploop_map_usage *usage, bool *stopped,
                   GError **error);

#endif /* PLOOP_LIB_MAP_FILE_H */
