/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Pieces of ranges: see extent.h. */

#include <config.h>

#include "extent.h"

uint64_t
host_cluster_offset (const struct disk *disk, uint64_t word)
{
  return format_entry_offset (&chain_delta (&disk->chain, word)->layout,
                              map_word_entry (word));
}

struct extent
first_piece (const struct disk *disk, uint64_t length, uint64_t offset)
{
  const uint64_t cluster_size = disk->delta->layout.cluster_size;
  const uint64_t in_cluster = offset % cluster_size;
  struct extent extent = { .cluster = offset / cluster_size };

  extent.word = map_lookup (&disk->map, extent.cluster);
  extent.length = MIN (length, cluster_size - in_cluster);
  extent.host_offset = host_cluster_offset (disk, extent.word) + in_cluster;
  return extent;
}

uint64_t
end_cluster (const struct disk *disk, uint64_t length, uint64_t offset)
{
  const uint64_t cluster_size = disk->delta->layout.cluster_size;

  return (offset + length + cluster_size - 1) / cluster_size;
}

/* Where CLUSTER begins on the disk, or LIMIT if that is not behind it. */
static uint64_t
cluster_offset (const struct disk *disk, uint64_t cluster, uint64_t limit)
{
  return MIN (cluster * disk->delta->layout.cluster_size, limit);
}

uint64_t
unmapped_length (const struct disk *disk, uint64_t length, uint64_t offset)
{
  const uint64_t first = offset / disk->delta->layout.cluster_size;
  const uint64_t mapped =
    map_next_mapped (&disk->map, first, end_cluster (disk, length, offset));

  return mapped == first
           ? 0 : cluster_offset (disk, mapped, offset + length) - offset;
}

void
join_mapped (const struct disk *disk, struct extent *extent, uint64_t length)
{
  const uint64_t cluster_size = disk->delta->layout.cluster_size;
  uint64_t next = extent->cluster + 1;

  if (extent->word & MAP_FILLING)
    return;
  for (; extent->length < length; next++) {
    const uint64_t word = map_lookup (&disk->map, next);

    if (((word ^ extent->word)
         & (MAP_MAPPED | MAP_NEW | MAP_TRIMMED | MAP_FILLING | MAP_LEVEL_MASK))
        || host_cluster_offset (disk, word)
             != extent->host_offset + extent->length)
      return;
    extent->length += MIN (length - extent->length, cluster_size);
  }
}

struct extent
next_extent (const struct disk *disk, uint64_t length, uint64_t offset)
{
  struct extent extent = first_piece (disk, length, offset);

  if (map_word_is_mapped (extent.word))
    join_mapped (disk, &extent, length);
  else if (extent.length < length)
    /* It may have been mapped a moment ago. */
    extent.length = MAX (unmapped_length (disk, length, offset),
                         extent.length);
  return extent;
}

bool
is_whole_cluster (const struct disk *disk, const struct extent *piece,
                  uint64_t offset)
{
  const struct format_layout *layout = &disk->delta->layout;

  return offset % layout->cluster_size == 0
         && (piece->length == layout->cluster_size
             || offset + piece->length == layout->size);
}

struct extent
next_piece (const struct disk *disk, uint64_t length, uint64_t offset)
{
  struct extent piece = { .length = unmapped_length (disk, length, offset) };

  return piece.length > 0 ? piece : first_piece (disk, length, offset);
}

/* Some of a cluster is written to, or was a moment ago: that part is trimmed no
 * longer.
 */
void
tell_trims (struct disk *disk, uint64_t cluster, uint64_t length,
            uint64_t offset)
{
  const uint64_t start = cluster * disk->delta->layout.cluster_size;
  const uint64_t from = MAX (offset, start);
  const uint64_t to = MIN (offset + length,
                           start + disk->delta->layout.cluster_size);

  trims_write (&disk->trims, cluster, (uint32_t) (from - start),
               (uint32_t) (to - start));
}

/* The same for all clusters of a range that have been trimmed in part. */
void
tell_trims_of_all (struct disk *disk, uint64_t length, uint64_t offset)
{
  const uint64_t end = end_cluster (disk, length, offset);

  for (uint64_t c = offset / disk->delta->layout.cluster_size; c < end; c++)
    if (G_UNLIKELY (map_lookup (&disk->map, c) & MAP_TRIMMED))
      tell_trims (disk, c, length, offset);
}
