/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Copy-on-write: see copy-up.h.
 *
 * A cluster that only a lower delta has is copied before it is changed.  What is
 * written goes into the copy before anybody else can see it; then the copy takes
 * the place of the original in the map.  Only the runner that owns a cluster
 * copies it, so two who want to write meet in its queue, and the second finds the
 * copy.  The BAT has its entry only after a sync: until then the disk has what
 * the lower delta has.
 */

#include <config.h>

#include "copy.h"
#include "copy-up.h"

/* Fill a host cluster of the top delta, at HOST, with what the cluster of PIECE is
 * in a lower one, and then BUF, or zeros if it is NULL, at PIECE.
 */
static int
fill_copy (struct disk *disk, const struct extent *piece, const void *buf,
           uint64_t offset, uint64_t host)
{
  const uint32_t cluster_size = disk->delta->layout.cluster_size;
  const uint32_t from = (uint32_t) (offset % cluster_size);
  const struct copy_part ours = { from, from + (uint32_t) piece->length };
  const bool whole = is_whole_cluster (disk, piece, offset);
  struct delta *lower = chain_delta (&disk->chain, piece->word);
  int r = 0;

  if (!whole)
    r = copy_cluster (disk->delta, host, lower, piece->host_offset - from,
                      (uint32_t) delta_length_inside (lower, cluster_size,
                                                      offset - from), ours);
  if (r < 0)
    return r;
  if (buf)
    return delta_pwrite (disk->delta, buf, (size_t) piece->length,
                         host + from);
  return whole ? 0 : delta_zero (disk->delta, piece->length, host + from);
}

/* Begin to copy, if that may be lazy: what is written is there then, and *FILL
 * has the rest; NULL otherwise.
 */
static int
begin_copy (struct disk *disk, const struct extent *piece, const void *buf,
            uint64_t offset, uint32_t entry, struct fill **fill)
{
  int r;

  *fill = NULL;
  if (piece->length > 0 && !is_whole_cluster (disk, piece, offset))
    *fill = fills_begin (&disk->fills, piece->cluster, piece->word, entry);
  if (!*fill)
    return fill_copy (disk, piece, buf, offset,
                      format_entry_offset (&disk->delta->layout, entry));
  r = fill_write (*fill, buf, (size_t) piece->length, offset);
  if (r < 0)
    fill_drop (&disk->fills, *fill);
  return r;
}

static void
publish_copy (struct disk *disk, const struct extent *piece, uint32_t entry,
              struct fill *fill)
{
  const bool filling = fill && !fill_is_whole (fill);
  uint64_t word = piece->word;

  if (!commit_publish_copy (&disk->commit, piece->cluster, &word,
                            map_word (chain_top_level (&disk->chain), entry,
                                      MAP_UNSTABLE | MAP_COVERS
                                      | (filling ? MAP_FILLING : 0))))
    g_assert_not_reached ();    /* nobody else changes such a word */
  stats_add (disk->stats, STATS_ALLOCATIONS, 1);
  stats_add (disk->stats, STATS_COPIES, 1);
  if (!fill)
    return;
  stats_add (disk->stats, STATS_LAZY_COPIES, 1);
  fill_published (&disk->fills, fill);
}

int
copy_up (struct disk *disk, const struct extent *piece, const void *buf,
         uint64_t offset)
{
  struct fill *fill;
  uint32_t entry;
  int r = commit_begin (&disk->commit);

  if (r < 0)
    return r;
  r = alloc_take (&disk->alloc, &entry);
  if (r < 0) {
    changes_note (&disk->changes);      /* as in allocate */
    return disk_explain (disk, r, REQUEST_NEEDS_CLUSTER);
  }
  alloc_keep (&disk->alloc);
  r = begin_copy (disk, piece, buf, offset, entry, &fill);
  changes_note (&disk->changes);
  if (r < 0) {
    /* The map never had it, but something may be written there. */
    alloc_free (&disk->alloc, entry, 0);
    return disk_explain (disk, r, REQUEST_NEEDS_ROOM);
  }
  publish_copy (disk, piece, entry, fill);
  return 0;
}

/* A cluster that has become whole meanwhile is where it was. */
int
put_extent (struct disk *disk, const void *buf, const struct extent *piece,
           uint64_t offset)
{
  int r = FILLS_WHOLE;

  if (G_UNLIKELY (piece->word & MAP_FILLING))
    r = fills_write (&disk->fills, buf, (size_t) piece->length, offset);
  if (r != FILLS_WHOLE)
    return r;
  return buf ? delta_pwrite (disk->delta, buf, (size_t) piece->length,
                             piece->host_offset)
             : delta_zero (disk->delta, piece->length, piece->host_offset);
}
