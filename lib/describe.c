/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Describing and prefetching: the part of request.h that changes nothing. */

#include <config.h>

#include "extent.h"
#include "request.h"

/* ---- Describing -------------------------------------------------------- */

/* What was found last and not told yet: the next piece may be like it. */
struct description {
  ploop_extent_fn fn;
  void *opaque;
  uint64_t offset, length;
  bool hole;
};

static int
tell_last (struct description *description)
{
  return description->length == 0
           ? 0 : description->fn (description->opaque, description->offset,
                                  description->length, description->hole);
}

static int
describe (struct description *description, uint64_t length, uint64_t offset,
          bool hole)
{
  int r = 0;

  if (description->hole == hole) {
    description->length += length;
    return 0;
  }
  r = tell_last (description);
  description->offset = offset;
  description->length = length;
  description->hole = hole;
  return r;
}

/* Can the file's holes tell what an extent holds?  Unmapped a moment ago, it is a
 * hole that the next look finds; what is being filled has what is below.
 */
static bool
is_told_by_holes (const struct extent *extent)
{
  return map_word_is_mapped (extent->word) && !(extent->word & MAP_FILLING);
}

/* What a mapped extent at OFFSET holds, by the file system's holes. */
static int
describe_inside (const struct disk *disk, const struct extent *extent,
                 uint64_t offset, struct description *description)
{
  const struct delta *delta = chain_delta (&disk->chain, extent->word);
  const uint64_t end = extent->host_offset + extent->length;
  uint64_t at = extent->host_offset;
  int r = 0;

  while (at < end && r == 0) {
    uint64_t data = at, stop;

    if (!delta_next_data (delta, end, &data, &stop))
      data = stop = end;
    if (data > at)
      r = describe (description, data - at,
                    offset + (at - extent->host_offset), true);
    if (stop > data && r == 0)
      r = describe (description, stop - data,
                    offset + (data - extent->host_offset), false);
    at = stop;
  }
  return r;
}

int
request_extents (const struct disk *disk, uint64_t length, uint64_t offset,
                 unsigned flags, ploop_extent_fn fn, void *opaque)
{
  struct description description = { .fn = fn, .opaque = opaque };
  int r = 0;

  description.offset = offset;
  while (length > 0 && r == 0) {
    struct extent extent = { .length =
                               unmapped_length (disk, length, offset) };

    if (extent.length > 0)
      r = describe (&description, extent.length, offset, true);
    else {
      extent = next_extent (disk, length, offset);
      r = (flags & PLOOP_EXTENTS_DETAIL) && is_told_by_holes (&extent)
            ? describe_inside (disk, &extent, offset, &description)
            : describe (&description, extent.length, offset,
                        !map_word_is_mapped (extent.word));
    }
    offset += extent.length;
    length -= extent.length;
  }
  return r != 0 ? r : tell_last (&description);
}

/* ---- Prefetching ------------------------------------------------------- */

void
request_prefetch (const struct disk *disk, uint64_t length, uint64_t offset)
{
  while (length > 0) {
    const struct extent extent = next_extent (disk, length, offset);

    if (map_word_is_mapped (extent.word))
      delta_prefetch (chain_delta (&disk->chain, extent.word), extent.length,
                      extent.host_offset);
    offset += extent.length;
    length -= extent.length;
  }
}
