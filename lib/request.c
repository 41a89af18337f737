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
 *
 * A cluster that only a lower delta has is copied before it is changed (copy-up.h).
 *
 * A cluster of which parts are trimmed is a piece of its own for a write, too,
 * which tells trims.h before and after.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "copy-up.h"
#include "extent.h"
#include "request.h"

/* ---- Reading ----------------------------------------------------------- */

/* Is a piece to be copied to the top delta because it is read? */
static bool
is_to_be_kept (const struct disk *disk, const struct extent *extent)
{
  return disk->keeps_remote && map_word_is_mapped (extent->word)
         && chain_delta (&disk->chain, extent->word)->remote;
}

/* Copy the cluster at OFFSET to the top delta as it is.  For the runner that owns
 * it.  When that fails, for lack of space for example, it is read where it is.
 */
static void
keep (struct disk *disk, uint64_t offset)
{
  const uint64_t cluster_size = disk->delta->layout.cluster_size;
  struct extent nothing =
    first_piece (disk, cluster_size, offset / cluster_size * cluster_size);

  nothing.length = 0;
  copy_up (disk, &nothing, NULL, nothing.cluster * cluster_size);
}

static int
read_extent (struct disk *disk, void *buf, const struct extent *extent,
             uint64_t offset)
{
  const struct delta *delta;
  size_t n;

  if (G_UNLIKELY (extent->word & MAP_FILLING)) {
    const int r = fills_read (&disk->fills, buf, (size_t) extent->length,
                              offset);

    if (r != FILLS_WHOLE)
      return r;
  }
  /* What no delta has reads as zeros: nothing to look up on disk. */
  if (!map_word_is_mapped (extent->word)) {
    memset (buf, 0, (size_t) extent->length);
    return 0;
  }
  delta = chain_delta (&disk->chain, extent->word);
  n = (size_t) delta_length_inside (delta, extent->length, offset);
  memset ((char *) buf + n, 0, (size_t) extent->length - n);
  return delta_pread (delta, buf, n, extent->host_offset);
}

/* The next piece of a read, from where it is to be read. */
static int
next_read (struct disk *disk, uint64_t length, uint64_t offset,
           unsigned flags, struct extent *extent)
{
  *extent = next_extent (disk, length, offset);
  if (G_LIKELY (!is_to_be_kept (disk, extent)))
    return 0;
  if (!(flags & REQUEST_OWNER))
    return REQUEST_NEEDS_OWNER;
  keep (disk, offset);
  *extent = first_piece (disk, length, offset);
  return 0;
}

int
request_read (struct disk *disk, void *buf, size_t length, uint64_t offset,
              unsigned flags)
{
  while (length > 0) {
    struct extent extent;
    int r = next_read (disk, length, offset, flags, &extent);

    if (r == 0)
      r = read_extent (disk, buf, &extent, offset);
    if (r != 0)
      return r;
    buf = (char *) buf + extent.length;
    offset += extent.length;
    length -= (size_t) extent.length;
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
    changes_note (&disk->changes);
    /* The last cluster that there was may have gone to this very place. */
    *word = map_lookup (&disk->map, cluster);
    return map_word_is_mapped (*word)
             ? 0 : disk_explain (disk, r, REQUEST_NEEDS_CLUSTER);
  }
  ours = map_word (chain_top_level (&disk->chain), entry, MAP_NEW);
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

/* Allocate the cluster of a piece at OFFSET. */
static int
make_extent (struct disk *disk, uint64_t offset, struct extent *extent)
{
  int r = allocate (disk, extent->cluster, &extent->word);

  extent->host_offset = host_cluster_offset (disk, extent->word)
                        + offset % disk->delta->layout.cluster_size;
  return r;
}

/* The next piece of a write: as many mapped clusters as have what they need, or
 * one that is new, or becomes so, or that was trimmed in part.  Or, with
 * REQUEST_NEEDS_OWNER, one that only a lower delta has.
 */
static int
next_mapped_extent (struct disk *disk, uint64_t length, uint64_t offset,
                    struct extent *extent)
{
  for (;;) {
    int r = 0;

    *extent = first_piece (disk, length, offset);
    if (!map_word_is_mapped (extent->word))
      r = make_extent (disk, offset, extent);
    else if (is_lower (disk, extent->word))
      r = REQUEST_NEEDS_OWNER;
    if (r != 0)
      return r;
    if (G_LIKELY (!(extent->word & MAP_TRIMMED))) {
      if (!map_word_is_new (extent->word))
        join_mapped (disk, extent, length);
      return 0;
    }
    tell_trims (disk, extent->cluster, extent->length, offset);
    /* It may have been unmapped while we waited, and looks as before if not. */
    if (map_word_is_same_place (map_lookup (&disk->map, extent->cluster),
                                extent->word))
      return 0;
  }
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

/* Write one piece, which is at OFFSET.  Returns COMMIT_REMAPPED when it has to be
 * done again.
 */
static int
write_extent (struct disk *disk, const void *buf, const struct extent *extent,
              uint64_t offset)
{
  int r = put_extent (disk, buf, extent, offset);

  /* Noted also when it failed: some of it may have been written. */
  changes_note (&disk->changes);
  tell_trims_of_all (disk, extent->length, offset);
  if (!map_word_is_new (extent->word))
    return r;
  if (r == 0)
    r = commit_write_entry (&disk->commit, extent->cluster, extent->word);
  if (r < 0)
    take_back (disk, extent);
  return r;
}

/* Write the next piece of a range, wherever it is.  Its length is in *LENGTH
 * then, 0 if it has to be done again.
 */
static int
write_next (struct disk *disk, const void *buf, size_t *length,
            uint64_t offset, unsigned flags)
{
  struct extent extent;
  int r = next_mapped_extent (disk, *length, offset, &extent);

  *length = (size_t) extent.length;
  if (r == REQUEST_NEEDS_OWNER && (flags & REQUEST_OWNER))
    return copy_up (disk, &extent, buf, offset);
  if (r != 0)
    return r;
  r = write_extent (disk, buf, &extent, offset);
  if (r == COMMIT_REMAPPED) {
    *length = 0;
    return 0;
  }
  return disk_explain (disk, r, REQUEST_NEEDS_ROOM);
}

static int
write_all (struct disk *disk, const void *buf, size_t length, uint64_t offset,
           unsigned flags)
{
  while (length > 0) {
    size_t n = length;
    int r = write_next (disk, buf, &n, offset, flags);

    if (r != 0)
      return r;
    buf = (const char *) buf + n;
    offset += n;
    length -= n;
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

  if (extent.length < length || !map_word_is_mapped (extent.word)
      || is_lower (disk, extent.word) || (extent.word & MAP_TRIMMED))
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
               uint64_t offset, uint64_t host_offset)
{
  int r = delta_pwrite_durable (disk->delta, buf, length, host_offset);

  tell_trims_of_all (disk, length, offset);
  stats_add (disk->stats, STATS_DURABLE_WRITES, 1);
  /* Others may see the data now: a flush has to ask the kernel about it. */
  if (r < 0)
    changes_note (&disk->changes);
  return disk_explain (disk, r, REQUEST_NEEDS_ROOM);
}

static int
write_data (struct disk *disk, const void *buf, size_t length,
            uint64_t offset, unsigned flags, bool *durable)
{
  uint64_t host_offset;

  if ((flags & PLOOP_FUA) && !commit_is_busy (&disk->commit)
      && is_durable_alone (disk, length, offset, &host_offset))
    return write_durable (disk, buf, length, offset, host_offset);
  *durable = false;
  return write_all (disk, buf, length, offset, flags);
}

/* ---- Writing zeros ----------------------------------------------------- */

static bool
is_zeros (const char *buf, size_t length)
{
  /* What memcmp compares with itself, a byte further on, is all like its first:
   * at the speed of memory.
   */
  return buf[0] == 0 && memcmp (buf, buf + 1, length - 1) == 0;
}

/* The longest piece of a write at OFFSET that ends where a cluster does and whose
 * parts in each cluster are all zeros, or none of them is.
 */
static size_t
like_piece (const struct disk *disk, const char *buf, size_t length,
            uint64_t offset, bool *zeros)
{
  const uint64_t cluster_size = disk->delta->layout.cluster_size;
  size_t n = (size_t) MIN (length, cluster_size - offset % cluster_size);

  *zeros = is_zeros (buf, n);
  while (n < length) {
    const size_t more = (size_t) MIN (length - n, cluster_size);

    if (is_zeros (buf + n, more) != *zeros)
      break;
    n += more;
  }
  return n;
}

/* Zeros over what no delta has are there already.  Elsewhere they are written, or
 * zeroed and given back.
 */
static int
write_zeros (struct disk *disk, const char *buf, size_t length,
             uint64_t offset, unsigned flags, bool *durable)
{
  int r = 0;

  if (disk->detect_zeroes == PLOOP_DETECT_ZEROES_UNMAP) {
    r = request_zero (disk, length, offset, flags | PLOOP_UNMAP, durable);
    return r == 0 ? request_end_unmapping (disk, length, offset) : r;
  }
  for (size_t done = 0, n; done < length && r == 0; done += n) {
    n = (size_t) unmapped_length (disk, length - done, offset + done);
    if (n > 0)
      *durable = false;         /* as for zeroing */
    else {
      n = (size_t) first_piece (disk, length - done, offset + done).length;
      r = write_data (disk, buf + done, n, offset + done, flags, durable);
    }
  }
  return r;
}

static int
write_detecting (struct disk *disk, const char *buf, size_t length,
                 uint64_t offset, unsigned flags, bool *durable)
{
  int r = 0;

  while (length > 0 && r == 0) {
    bool zeros;
    const size_t n = like_piece (disk, buf, length, offset, &zeros);

    r = zeros ? write_zeros (disk, buf, n, offset, flags, durable)
              : write_data (disk, buf, n, offset, flags, durable);
    buf += n;
    offset += n;
    length -= n;
  }
  return r;
}

int
request_write (struct disk *disk, const void *buf, size_t length,
               uint64_t offset, unsigned flags, bool *durable)
{
  int r;

  if (length == 0)
    return 0;
  if ((flags & PLOOP_FUA) && commit_has_failed (&disk->commit))
    return -EIO;
  r = commit_begin (&disk->commit);
  if (r < 0)
    return r;
  if (disk->detect_zeroes != PLOOP_DETECT_ZEROES_OFF)
    return write_detecting (disk, buf, length, offset, flags, durable);
  return write_data (disk, buf, length, offset, flags, durable);
}
