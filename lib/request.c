/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Requests: see request.h.
 *
 * A request is cut into extents: the longest pieces that are one range of the
 * file, or that no delta has.  A piece of a cluster that no delta has is the
 * interesting case of a write: take a fresh host cluster, publish it in the
 * map with one compare-and-swap, put its entry into the BAT, write.  Fresh
 * clusters read as zeros, so at each instant in between the guest reads what it
 * read before.  Whoever loses the race for a cluster gives its own back and
 * writes to the winner's.
 *
 * A cluster whose data could not be written stays mapped, as zeros: that is
 * what the guest read before, and the next write finds it there.
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
 * like the first: not mapped, or mapped to one range of the file with all
 * entries written or not.
 */
static void
join_clusters (const struct disk *disk, struct extent *extent,
               uint64_t length)
{
  const uint64_t cluster_size = disk->delta->layout.cluster_size;
  uint64_t next = extent->cluster + 1;

  for (; extent->length < length; next++) {
    const uint64_t word = map_lookup (&disk->map, next);

    if ((word ^ extent->word) & (MAP_MAPPED | MAP_UNWRITTEN))
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
    commit_note_change (&disk->commit);
    /* The last cluster that there was may have gone to this very place. */
    *word = map_lookup (&disk->map, cluster);
    return map_word_is_mapped (*word) ? 0 : r;
  }
  ours = map_word (0, entry, MAP_UNWRITTEN);
  if (map_publish (&disk->map, cluster, ours, &found)) {
    alloc_keep (&disk->alloc);
    *word = ours;
  }
  else {
    alloc_give_back (&disk->alloc, entry);
    *word = found;
  }
  return 0;
}

/* A cluster is ready for a write that may be answered when it is mapped and
 * its entry written.
 */
static bool
is_ready (uint64_t word)
{
  return map_word_is_mapped (word) && !map_word_is_unwritten (word);
}

/* Make the cluster of a piece ready. */
static int
prepare_piece (struct disk *disk, uint64_t offset, struct extent *extent)
{
  if (!map_word_is_mapped (extent->word)) {
    int r = allocate (disk, extent->cluster, &extent->word);

    if (r < 0)
      return r;
    extent->host_offset = host_cluster_offset (disk, extent->word)
                          + offset % disk->delta->layout.cluster_size;
  }
  return is_ready (extent->word)
           ? 0 : commit_write_entry (&disk->commit, extent->cluster);
}

/* The next piece of a write: as many clusters as are ready, or one that is
 * made so.
 */
static int
next_ready_extent (struct disk *disk, uint64_t length, uint64_t offset,
                   struct extent *extent)
{
  *extent = first_piece (disk, length, offset);
  if (!is_ready (extent->word))
    return prepare_piece (disk, offset, extent);
  join_clusters (disk, extent, length);
  return 0;
}

/* Is this one range of the file, with BAT entries that are durable already? */
static bool
is_durable_alone (const struct disk *disk, uint64_t length, uint64_t offset,
                  uint64_t *host_offset)
{
  const uint64_t cluster_size = disk->delta->layout.cluster_size;
  const struct extent extent = next_extent (disk, length, offset);

  if (extent.length < length || !is_ready (extent.word))
    return false;
  for (uint64_t c = extent.cluster; c <= (offset + length - 1) / cluster_size;
       c++)
    if (!commit_entry_is_durable (&disk->commit, c))
      return false;
  *host_offset = extent.host_offset;
  return true;
}

/* A forced write whose BAT entries are durable needs no more than itself. */
static int
write_durable (struct disk *disk, const void *buf, size_t length,
               uint64_t host_offset)
{
  int r =
    delta_pwrite_durable (disk->delta, buf, length, host_offset);

  /* Others may see the data now: a flush has to ask the kernel about it. */
  if (r < 0)
    commit_note_change (&disk->commit);
  return r;
}

int
request_write (struct disk *disk, const void *buf, size_t length,
               uint64_t offset, bool fua)
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
  if (fua && is_durable_alone (disk, length, offset, &host_offset))
    return write_durable (disk, buf, length, host_offset);

  while (length > 0) {
    struct extent extent;
    size_t n;

    r = next_ready_extent (disk, length, offset, &extent);
    if (r < 0)
      return r;
    n = (size_t) extent.length;
    r = delta_pwrite (disk->delta, buf, n, extent.host_offset);
    /* Noted also when it failed: some of it may have been written. */
    commit_note_change (&disk->commit);
    if (r < 0)
      return r;
    buf = (const char *) buf + n;
    offset += n;
    length -= n;
  }
  return fua ? commit_flush (&disk->commit) : 0;
}

/* ---- Zeroing ----------------------------------------------------------- */

int
request_zero (struct disk *disk, uint64_t length, uint64_t offset, bool fua)
{
  bool changed = false;
  int r;

  if (fua && commit_has_failed (&disk->commit))
    return -EIO;
  while (length > 0) {
    const struct extent extent = next_extent (disk, length, offset);

    /* What no delta has is zeros already. */
    if (map_word_is_mapped (extent.word)) {
      r = commit_begin (&disk->commit);
      if (r < 0)
        return r;
      changed = true;
      r = delta_zero (disk->delta, extent.length, extent.host_offset);
      commit_note_change (&disk->commit);
      if (r < 0)
        return r;
    }
    offset += extent.length;
    length -= extent.length;
  }
  return fua && changed ? commit_flush (&disk->commit) : 0;
}

int
request_flush (struct disk *disk)
{
  return commit_flush (&disk->commit);
}
