/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Ranges of the guest's disk: see request.h.
 *
 * A range is cut into extents: the longest pieces that are one range of the
 * file, or that no delta has.  A piece of a cluster that no delta has is the
 * interesting case of a write: take a fresh host cluster, publish it in the
 * map with one compare-and-swap, write, see to it that the BAT has its entry.
 * Fresh clusters read as zeros, so at each instant in between the guest reads
 * what it read before.  Whoever loses the race for a cluster gives its own back
 * and writes to the winner's.
 *
 * When the write fails the cluster is unmapped again, unless another request has
 * written to it meanwhile (commit.c tells how that is known).
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "request.h"

/* A piece of a request. */
struct extent {
  uint64_t cluster;             /* the first guest cluster of the piece */
  uint64_t word;                /* and its map word */
  uint64_t length;              /* bytes, not 0 */
  uint64_t host_offset;         /* in the file; if mapped */
};

static uint64_t
host_cluster_offset (const struct disk *disk, uint64_t word)
{
  return format_entry_offset (&disk->delta->layout, map_word_entry (word));
}

/* The piece at OFFSET of at most LENGTH bytes that lies in one cluster. */
static struct extent
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

/* Add the clusters that follow, up to LENGTH bytes in all, as long as they are
 * like the first: not mapped, or mapped to one range of the file, and all new or
 * none.
 */
static void
join_clusters (const struct disk *disk, struct extent *extent,
               uint64_t length)
{
  const uint64_t cluster_size = disk->delta->layout.cluster_size;
  uint64_t next = extent->cluster + 1;

  for (; extent->length < length; next++) {
    const uint64_t word = map_lookup (&disk->map, next);

    if ((word ^ extent->word) & (MAP_MAPPED | MAP_NEW))
      return;
    if (map_word_is_mapped (word)
        && host_cluster_offset (disk, word)
             != extent->host_offset + extent->length)
      return;
    extent->length += MIN (length - extent->length, cluster_size);
  }
}

static struct extent
next_extent (const struct disk *disk, uint64_t length, uint64_t offset)
{
  struct extent extent = first_piece (disk, length, offset);

  join_clusters (disk, &extent, length);
  return extent;
}

/* ---- Reading ----------------------------------------------------------- */

int
request_read (const struct disk *disk, void *buf, size_t length,
              uint64_t offset)
{
  while (length > 0) {
    const struct extent extent = next_extent (disk, length, offset);
    const size_t n = (size_t) extent.length;

    /* What no delta has reads as zeros: nothing to look up on disk. */
    if (!map_word_is_mapped (extent.word))
      memset (buf, 0, n);
    else {
      int r = delta_pread (disk->delta, buf, n, extent.host_offset);

      if (r < 0)
        return r;
    }
    buf = (char *) buf + n;
    offset += n;
    length -= n;
  }
  return 0;
}

/* ---- Writing ----------------------------------------------------------- */

/* What a request says that has failed with R: an error, or that it needs what
 * NEEDED names and may hope for.
 */
static int
explain (const struct disk *disk, int r, enum request_result needed)
{
  if (!delta_is_no_space (r))
    return r;
  return flusher_may_wait (&disk->flusher) ? (int) needed : -ENOSPC;
}

/* Give CLUSTER, which no delta has, a host cluster: ours, or that of whoever
 * was faster.  *WORD is its map word then.
 */
static int
allocate (struct disk *disk, uint64_t cluster, uint64_t *word)
{
  uint32_t entry;
  uint64_t ours, found;
  int r;

  r = alloc_take (&disk->alloc, &entry);
  if (r < 0) {
    /* What failed may have been a sync: let the next flush ask the kernel. */
    changes_note (&disk->changes);
    /* The last cluster that there was may have gone to this very place. */
    *word = map_lookup (&disk->map, cluster);
    return map_word_is_mapped (*word)
             ? 0 : explain (disk, r, REQUEST_NEEDS_CLUSTER);
  }
  ours = map_word (0, entry, MAP_NEW);
  if (map_publish (&disk->map, cluster, ours, &found)) {
    alloc_keep (&disk->alloc);
    stats_add (disk->stats, STATS_ALLOCATIONS, 1);
    *word = ours;
  }
  else {
    alloc_give_back (&disk->alloc, entry);
    *word = found;
  }
  return 0;
}

/* The next piece of a write: as many mapped clusters as have what they need, or
 * one that is new, or becomes so.
 */
static int
next_mapped_extent (struct disk *disk, uint64_t length, uint64_t offset,
                    struct extent *extent)
{
  *extent = first_piece (disk, length, offset);
  if (!map_word_is_mapped (extent->word)) {
    int r = allocate (disk, extent->cluster, &extent->word);

    if (r != 0)
      return r;
    extent->host_offset = host_cluster_offset (disk, extent->word)
                          + offset % disk->delta->layout.cluster_size;
  }
  if (!map_word_is_new (extent->word))
    join_clusters (disk, extent, length);
  return 0;
}

/* Nothing came of a new cluster. */
static void
take_back (struct disk *disk, const struct extent *extent)
{
  uint64_t removal;

  if (!commit_undo (&disk->commit, extent->cluster, extent->word, &removal))
    return;
  alloc_free (&disk->alloc, map_word_entry (extent->word), removal);
}

/* Write one piece.  Returns COMMIT_REMAPPED when it has to be done again. */
static int
write_extent (struct disk *disk, const void *buf, const struct extent *extent)
{
  int r = delta_pwrite (disk->delta, buf, (size_t) extent->length,
                        extent->host_offset);

  /* Noted also when it failed: some of it may have been written. */
  changes_note (&disk->changes);
  if (!map_word_is_new (extent->word))
    return r;
  if (r == 0)
    r = commit_write_entry (&disk->commit, extent->cluster, extent->word);
  if (r < 0)
    take_back (disk, extent);
  return r;
}

static int
write_all (struct disk *disk, const void *buf, size_t length, uint64_t offset)
{
  while (length > 0) {
    struct extent extent;
    int r = next_mapped_extent (disk, length, offset, &extent);

    if (r != 0)
      return r;
    r = write_extent (disk, buf, &extent);
    if (r == COMMIT_REMAPPED)
      continue;
    if (r < 0)
      return explain (disk, r, REQUEST_NEEDS_ROOM);
    buf = (const char *) buf + extent.length;
    offset += extent.length;
    length -= extent.length;
  }
  return 0;
}

/* Is this one range of the file, with BAT entries that are durable already? */
static bool
is_durable_alone (const struct disk *disk, uint64_t length, uint64_t offset,
                  uint64_t *host_offset)
{
  const uint64_t cluster_size = disk->delta->layout.cluster_size;
  const struct extent extent = next_extent (disk, length, offset);

  if (extent.length < length || !map_word_is_mapped (extent.word))
    return false;
  for (uint64_t c = extent.cluster; c <= (offset + length - 1) / cluster_size;
       c++)
    if (!commit_entry_is_durable (&disk->commit, c,
                                  map_lookup (&disk->map, c)))
      return false;
  *host_offset = extent.host_offset;
  return true;
}

/* A forced write whose BAT entries are durable needs no more than itself. */
static int
write_durable (struct disk *disk, const void *buf, size_t length,
               uint64_t host_offset)
{
  int r = delta_pwrite_durable (disk->delta, buf, length, host_offset);

  stats_add (disk->stats, STATS_DURABLE_WRITES, 1);
  /* Others may see the data now: a flush has to ask the kernel about it. */
  if (r < 0)
    changes_note (&disk->changes);
  return explain (disk, r, REQUEST_NEEDS_ROOM);
}

int
request_write (struct disk *disk, const void *buf, size_t length,
               uint64_t offset, bool fua, bool *durable)
{
  uint64_t host_offset;
  int r;

  if (length == 0)
    return 0;
  if (fua && commit_has_failed (&disk->commit))
    return -EIO;
  r = commit_begin (&disk->commit);
  if (r < 0)
    return r;
  if (fua && !commit_is_busy (&disk->commit)
      && is_durable_alone (disk, length, offset, &host_offset))
    return write_durable (disk, buf, length, host_offset);
  *durable = false;
  return write_all (disk, buf, length, offset);
}

/* ---- Zeroing ----------------------------------------------------------- */

int
request_zero (struct disk *disk, uint64_t length, uint64_t offset,
              bool *durable)
{
  /* Also where nothing is mapped: the removal of an old entry, by a trim, may
   * not be durable yet.
   */
  *durable = false;
  while (length > 0) {
    const struct extent extent = next_extent (disk, length, offset);

    /* What no delta has is zeros already.  A cluster that is new and whose
     * write fails is unmapped again: zeros, too.
     */
    if (map_word_is_mapped (extent.word)) {
      int r = commit_begin (&disk->commit);

      if (r < 0)
        return r;
      r = delta_zero (disk->delta, extent.length, extent.host_offset);
      changes_note (&disk->changes);
      if (r < 0)
        return explain (disk, r, REQUEST_NEEDS_ROOM);
    }
    offset += extent.length;
    length -= extent.length;
  }
  return 0;
}

/* ---- Trimming ---------------------------------------------------------- */

/* A cluster that is new belongs to a write that runs at the same time: let that
 * be the later of the two.
 */
static int
trim_cluster (struct disk *disk, uint64_t cluster)
{
  const uint64_t word = map_lookup (&disk->map, cluster);
  uint64_t removal;
  int r;

  if (!map_word_is_mapped (word) || map_word_is_new (word))
    return 0;
  r = commit_begin (&disk->commit);
  if (r < 0)
    return r;
  if (commit_remove (&disk->commit, cluster, word, &removal))
    alloc_free (&disk->alloc, map_word_entry (word), removal);
  return 0;
}

/* The clusters FIRST up to END that lie in a range as a whole.  The disk's last
 * one may be shorter than others.
 */
static void
whole_clusters (const struct disk *disk, uint64_t length, uint64_t offset,
                uint64_t *first, uint64_t *end)
{
  const struct format_layout *layout = &disk->delta->layout;
  const uint64_t stop = offset + length;

  *first = (offset + layout->cluster_size - 1) / layout->cluster_size;
  *end = stop == layout->size ? layout->nr_entries
                              : stop / layout->cluster_size;
}

int
request_trim (struct disk *disk, uint64_t length, uint64_t offset,
              bool *durable)
{
  uint64_t cluster, end;
  int r = 0;

  *durable = false;             /* as for zeroing */
  whole_clusters (disk, length, offset, &cluster, &end);
  for (; cluster < end && r == 0; cluster++)
    r = trim_cluster (disk, cluster);
  return r;
}

void
request_end_trim (struct disk *disk, uint64_t length, uint64_t offset)
{
  uint64_t first, end;

  whole_clusters (disk, length, offset, &first, &end);
  /* What could not be written is written later: the content of what was
   * trimmed is not promised to anybody.
   */
  if (first < end && commit_write_back (&disk->commit, first, end - 1) < 0)
    flusher_ask (&disk->flusher, FLUSHER_WRITE_BACK);
}
