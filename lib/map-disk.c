/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Where everything of a disk is: ploop_map_disk in ploop-core.h.
 *
 * The disk is opened as a server opens it, so that this is the map that a guest would
 * be served by; but no threads are started.
 */

#include <config.h>

#include <sys/stat.h>

#include "extent.h"
#include "map-file.h"
#include "parts.h"

struct mapping {
  const ploop_image *image;
  const struct ploop_map_visitor *visitor;
  void *opaque;
  const struct log *log;
  struct ploop_map_extent last; /* not told yet; length 0: none */
  bool stopped;
};

/* One image of the disk, and the index of its base. */
struct mapped_part {
  const struct part *range;     /* where it lies on the disk */
  const struct disk *disk;
  unsigned number, first;
};

/* The one behind PART; of zeros, that is the first.  Returns false when there is
 * none.
 */
static bool
next_part (const struct mapping *mapping, struct mapped_part *part)
{
  const ploop_image *image = mapping->image;

  if (part->range) {
    part->number++;
    part->first += part->disk->chain.nr_levels;
  }
  if (part->number == image->nr_parts)
    return false;
  part->range = &image->parts[part->number];
  part->disk = &part->range->image->disk;
  return true;
}

static unsigned
count_deltas (const ploop_image *image)
{
  unsigned nr = 0;

  for (unsigned i = 0; i < image->nr_parts; i++)
    nr += image->parts[i].image->disk.chain.nr_levels;
  return nr;
}

/* ---- Deltas ------------------------------------------------------------ */

static uint64_t
disk_usage (const struct delta *delta)
{
  struct stat st;

  return delta->remote || fstat (delta->fd, &st) == -1
           ? 0 : (uint64_t) st.st_blocks * 512;
}

static bool
tell_delta (const struct mapping *mapping, const struct mapped_part *part,
            unsigned level)
{
  const struct delta *delta = part->disk->chain.levels[level];
  const struct ploop_map_delta told = {
    .index = part->first + level,
    .path = delta->path,
    .part = part->number,
    .level = level,
    .version = delta->header.version,
    .size = delta->layout.size,
    .cluster_size = delta->layout.cluster_size,
    .file_size = delta->file_size,
    .disk_usage = disk_usage (delta),
  };

  return mapping->visitor->delta (mapping->opaque, &told);
}

static void
tell_deltas (struct mapping *mapping)
{
  struct mapped_part part = { NULL };

  while (next_part (mapping, &part))
    for (unsigned i = 0; i < part.disk->chain.nr_levels && !mapping->stopped;
         i++)
      mapping->stopped = !tell_delta (mapping, &part, i);
}

/* ---- Extents ----------------------------------------------------------- */

static void
tell_last (struct mapping *mapping)
{
  if (mapping->last.length > 0 && !mapping->stopped)
    mapping->stopped =
      !mapping->visitor->extent (mapping->opaque, &mapping->last);
}

static bool
goes_on (const struct ploop_map_extent *last,
         const struct ploop_map_extent *extent)
{
  return last->length > 0 && last->kind == extent->kind
         && (extent->kind == PLOOP_MAP_UNMAPPED
             || (last->delta == extent->delta
                 && last->host_offset + last->length == extent->host_offset));
}

static void
tell (struct mapping *mapping, const struct ploop_map_extent *extent)
{
  if (extent->length == 0)
    return;
  if (goes_on (&mapping->last, extent)) {
    mapping->last.length += extent->length;
    return;
  }
  tell_last (mapping);
  mapping->last = *extent;
}

/* The next piece of the mapped range REST: up to where data ends, or begins. */
static struct ploop_map_extent
first_cut (const struct delta *delta, const struct ploop_map_extent *rest)
{
  const uint64_t end = rest->host_offset + rest->length;
  struct ploop_map_extent piece = *rest;
  uint64_t start = rest->host_offset, stop;

  if (!delta_next_data (delta, end, &start, &stop))
    start = end;
  piece.kind = start > rest->host_offset ? PLOOP_MAP_ZERO : PLOOP_MAP_DATA;
  piece.length =
    (piece.kind == PLOOP_MAP_ZERO ? start : stop) - rest->host_offset;
  return piece;
}

static void
advance (struct ploop_map_extent *rest, uint64_t length)
{
  rest->offset += length;
  rest->host_offset += length;
  rest->length -= length;
}

/* REST is mapped, and in one piece in the file; it begins at OFFSET of the part. */
static void
tell_mapped (struct mapping *mapping, const struct delta *delta,
             uint64_t offset, struct ploop_map_extent rest)
{
  const uint64_t length = rest.length;
  const uint64_t inside = delta_length_inside (delta, length, offset);

  rest.length = inside;
  while (rest.length > 0 && !mapping->stopped) {
    const struct ploop_map_extent piece = first_cut (delta, &rest);

    tell (mapping, &piece);
    advance (&rest, piece.length);
  }
  rest.kind = PLOOP_MAP_ZERO;
  rest.length = length - inside;
  tell (mapping, &rest);
}

/* What begins at OFFSET of the part.  Returns how long it is. */
static uint64_t
tell_extent (struct mapping *mapping, const struct mapped_part *part,
             uint64_t offset)
{
  const struct disk *disk = part->disk;
  const struct extent extent =
    next_extent (disk, part->range->length - offset, offset);
  struct ploop_map_extent told = {
    .offset = part->range->start + offset,
    .length = extent.length,
    .kind = PLOOP_MAP_UNMAPPED,
  };

  if (!map_word_is_mapped (extent.word)) {
    tell (mapping, &told);
    return extent.length;
  }
  told.delta = part->first + map_word_level (extent.word);
  told.host_offset = extent.host_offset;
  tell_mapped (mapping, chain_delta (&disk->chain, extent.word), offset, told);
  return extent.length;
}

static void
tell_extents (struct mapping *mapping)
{
  struct mapped_part part = { NULL };

  while (next_part (mapping, &part)) {
    uint64_t offset = 0;

    while (offset < part.range->length && !mapping->stopped)
      offset += tell_extent (mapping, &part, offset);
  }
  tell_last (mapping);
}

/* ---- Files ------------------------------------------------------------- */

static int
tell_file (struct mapping *mapping, const struct mapped_part *part, unsigned level,
           GError **error)
{
  const struct ploop_map_visitor *visitor = mapping->visitor;
  const struct map_file file = {
    .chain = &part->disk->chain,
    .map = &part->disk->map,
    .level = level,
    .index = part->first + level,
    .start = part->range->start,
    .length = part->range->length,
    .log = mapping->log,
  };
  struct ploop_map_usage usage;

  if (map_file_tell (&file, visitor->range, mapping->opaque, &usage,
                     &mapping->stopped, error) < 0)
    return -1;
  if (!mapping->stopped && visitor->usage)
    mapping->stopped = !visitor->usage (mapping->opaque, &usage);
  return 0;
}

static int
tell_files (struct mapping *mapping, GError **error)
{
  struct mapped_part part = { NULL };

  while (next_part (mapping, &part))
    for (unsigned i = 0; i < part.disk->chain.nr_levels && !mapping->stopped;
         i++)
      if (tell_file (mapping, &part, i, error) < 0)
        return -1;
  return 0;
}

/* ---- All of it --------------------------------------------------------- */

static int
tell_all (struct mapping *mapping, GError **error)
{
  const struct ploop_map_visitor *visitor = mapping->visitor;
  const ploop_image *image = mapping->image;

  if (visitor->disk)
    mapping->stopped =
      !visitor->disk (mapping->opaque, image->size, count_deltas (image));
  if (visitor->delta && !mapping->stopped)
    tell_deltas (mapping);
  if (visitor->extent && !mapping->stopped)
    tell_extents (mapping);
  if ((visitor->range || visitor->usage) && !mapping->stopped)
    return tell_files (mapping, error);
  return 0;
}

int
ploop_map_disk (const char *path, const struct ploop_map_options *options,
                const struct ploop_map_visitor *visitor, void *opaque,
                GError **error)
{
  static const struct ploop_map_options none;
  const struct ploop_map_options *o = options ? options : &none;
  const struct ploop_open_options open_options = {
    .read_only = true,
    .defer_start = true,
    .snapshot = o->snapshot,
    .allow_outside = o->allow_outside,
    .bases = o->bases,
    .log = o->log,
    .log_opaque = o->log_opaque,
  };
  const struct log log = { o->log, o->log_opaque };
  ploop_image *image = ploop_open (path, &open_options, error);
  struct mapping mapping = {
    .image = image,
    .visitor = visitor,
    .opaque = opaque,
    .log = &log,
  };
  int r;

  if (!image)
    return -1;
  r = tell_all (&mapping, error);
  ploop_close (image, NULL);
  return r;
}
