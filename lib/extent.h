/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A request's range, piece by piece: the longest ones that are one range of a file,
 * or that no delta has.
 *
 * What is found is a moment's: others map and unmap clusters meanwhile.  Inside the
 * gate a place in the file that was found is not given to anybody else.  None of
 * these blocks, but as trims_write does.
 */

#ifndef PLOOP_LIB_EXTENT_H
#define PLOOP_LIB_EXTENT_H

#include <stdbool.h>
#include <stdint.h>

#include "disk.h"

/* A piece of a request. */
struct extent {
  uint64_t cluster;             /* the first guest cluster of the piece */
  uint64_t word;                /* and its map word */
  uint64_t length;              /* bytes, not 0 */
  uint64_t host_offset;         /* in the file; if mapped */
};

/* Is a cluster only in lower deltas? */
static inline bool
is_lower (const struct disk *disk, uint64_t word)
{
  return map_word_is_mapped (word)
         && map_word_level (word) != chain_top_level (&disk->chain);
}

uint64_t host_cluster_offset (const struct disk *disk, uint64_t word);

/* The piece at OFFSET of at most LENGTH bytes that lies in one cluster. */
struct extent first_piece (const struct disk *disk, uint64_t length,
                           uint64_t offset);

/* The longest one. */
struct extent next_extent (const struct disk *disk, uint64_t length,
                           uint64_t offset);

/* A piece of a range: whole clusters that no delta has, or what lies in one that
 * is mapped.
 */
struct extent next_piece (const struct disk *disk, uint64_t length,
                          uint64_t offset);

/* As much of LENGTH bytes at OFFSET, not 0, as no delta has: 0 if the first one
 * is mapped.
 */
uint64_t unmapped_length (const struct disk *disk, uint64_t length,
                          uint64_t offset);

/* Add the clusters that follow, up to LENGTH bytes in all, as long as they are
 * mapped to one range of a file with the first, and all of them new or none, all
 * trimmed in part or none.  One that is being filled is a piece of its own.
 */
void join_mapped (const struct disk *disk, struct extent *extent,
                  uint64_t length);

/* Is a piece at OFFSET all there is of its cluster?  The disk's last one may be
 * shorter than others.
 */
bool is_whole_cluster (const struct disk *disk, const struct extent *piece,
                       uint64_t offset);

/* The cluster behind a range of the disk. */
uint64_t end_cluster (const struct disk *disk, uint64_t length,
                      uint64_t offset);

/* Some of a cluster is written to, or was a moment ago: that part is trimmed no
 * longer.  And the same for all clusters of a range that have been trimmed in part.
 */
void tell_trims (struct disk *disk, uint64_t cluster, uint64_t length,
                 uint64_t offset);
void tell_trims_of_all (struct disk *disk, uint64_t length, uint64_t offset);

#endif /* PLOOP_LIB_EXTENT_H */
