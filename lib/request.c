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
 * A cluster that only a lower delta has is copied before it is changed.  What is
 * written goes into the copy before anybody else can see it; then the copy takes
 * the place of the original in the map.  Only the runner that owns a cluster
 * copies it, so two who want to write meet in its queue, and the second finds the
 * copy.  The BAT has its entry only after a sync: until then the disk has what
 * the lower delta has.  A hole cannot be expressed above a lower delta: what is
 * trimmed there stays mapped.
 *
 * A cluster of which parts are trimmed is a piece of its own for a write, too,
 * which tells trims.h before and after.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "copy.h"
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
  return format_entry_offset (&chain_delta (&disk->chain, word)->layout,
                              map_word_entry (word));
}

/* Is a cluster only in lower deltas? */
static bool
is_lower (const struct disk *disk, uint64_t word)
{
  return map_word_is_mapped (word)
         && map_word_level (word) != chain_top_level (&disk->chain);
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

/* The cluster behind a range of the disk. */
static uint64_t
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

/* As much of LENGTH bytes at OFFSET, not 0, as no delta has: 0 if the first one
 * is mapped.
 */
static uint64_t
unmapped_length (const struct disk *disk, uint64_t length, uint64_t offset)
{
  const uint64_t first = offset / disk->delta->layout.cluster_size;
  const uint64_t mapped =
    map_next_mapped (&disk->map, first, end_cluster (disk, length, offset));

  return mapped == first
           ? 0 : cluster_offset (disk, mapped, offset + length) - offset;
}

/* Add the clusters that follow, up to LENGTH bytes in all, as long as they are
 * mapped to one range of a file with the first, and all of them new or none, all
 * trimmed in part or none.  One that is being filled is a piece of its own.
 */
static void
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

static struct extent
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

/* Is a piece at OFFSET all there is of its cluster?  The disk's last one may be
 * shorter than others.
 */
static bool
is_whole_cluster (const struct disk *disk, const struct extent *piece,
                  uint64_t offset)
{
  const struct format_layout *layout = &disk->delta->layout;

  return offset % layout->cluster_size == 0
         && (piece->length == layout->cluster_size
             || offset + piece->length == layout->size);
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

/* ---- Copy-on-write ----------------------------------------------------- */

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

/* Copy the cluster of PIECE, which only a lower delta has, to the top one, changed
 * by BUF or zeros.  For the runner that owns it.
 */
static int
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
    return explain (disk, r, REQUEST_NEEDS_CLUSTER);
  }
  alloc_keep (&disk->alloc);
  r = begin_copy (disk, piece, buf, offset, entry, &fill);
  changes_note (&disk->changes);
  if (r < 0) {
    /* The map never had it, but something may be written there. */
    alloc_free (&disk->alloc, entry, 0);
    return explain (disk, r, REQUEST_NEEDS_ROOM);
  }
  publish_copy (disk, piece, entry, fill);
  return 0;
}

/* ---- Copies that are being filled --------------------------------------- */

/* Write a piece to the top delta, or zeros if BUF is NULL.  A cluster that has
 * become whole meanwhile is where it was.
 */
static int
put_piece (struct disk *disk, const void *buf, const struct extent *piece,
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

/* ---- Writing to what is mapped ----------------------------------------- */

/* Some of a cluster is written to, or was a moment ago: that part is trimmed no
 * longer.
 */
static void
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
static void
tell_trims_of_all (struct disk *disk, uint64_t length, uint64_t offset)
{
  const uint64_t end = end_cluster (disk, length, offset);

  for (uint64_t c = offset / disk->delta->layout.cluster_size; c < end; c++)
    if (G_UNLIKELY (map_lookup (&disk->map, c) & MAP_TRIMMED))
      tell_trims (disk, c, length, offset);
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
  int r = put_piece (disk, buf, extent, offset);

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
  return explain (disk, r, REQUEST_NEEDS_ROOM);
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
  return explain (disk, r, REQUEST_NEEDS_ROOM);
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

/* ---- Unmapping --------------------------------------------------------- */

/* A cluster that is new belongs to a write that runs at the same time: let that
 * be the later of the two.
 */
static int
unmap_cluster (struct disk *disk, uint64_t cluster, uint64_t word)
{
  uint64_t removal;
  int r = commit_begin (&disk->commit);

  if (r < 0)
    return r;
  if (commit_remove (&disk->commit, cluster, word, &removal))
    alloc_free (&disk->alloc, map_word_entry (word), removal);
  return 0;
}

/* A piece of a range: whole clusters that no delta has, or what lies in one that
 * is mapped.
 */
static struct extent
next_piece (const struct disk *disk, uint64_t length, uint64_t offset)
{
  struct extent piece = { .length = unmapped_length (disk, length, offset) };

  return piece.length > 0 ? piece : first_piece (disk, length, offset);
}

/* A part of a cluster is given up; with nothing left, so is the cluster, if no
 * lower delta has it.
 */
static int
trim_part (struct disk *disk, const struct extent *piece, uint64_t offset)
{
  const uint32_t from =
    (uint32_t) (offset % disk->delta->layout.cluster_size);
  int r = commit_begin (&disk->commit);

  if (r == 0)
    trims_add (&disk->trims, piece->cluster, piece->word, from,
               from + (uint32_t) piece->length);
  return r;
}

static int
trim_piece (struct disk *disk, const struct extent *piece, uint64_t offset)
{
  if (!map_word_is_mapped (piece->word) || map_word_is_new (piece->word)
      || is_lower (disk, piece->word))
    return 0;
  if (!(piece->word & MAP_COVERS) && is_whole_cluster (disk, piece, offset))
    return unmap_cluster (disk, piece->cluster, piece->word);
  if ((piece->word & MAP_FILLING)
      && !fills_trim (&disk->fills, piece->length, offset))
    return 0;
  return trim_part (disk, piece, offset);
}

int
request_trim (struct disk *disk, uint64_t length, uint64_t offset,
              bool *durable)
{
  int r = 0;

  if (disk->discard == PLOOP_DISCARD_OFF)
    return 0;
  *durable = false;             /* as for zeroing */
  while (length > 0 && r == 0) {
    const struct extent piece = next_piece (disk, length, offset);

    r = trim_piece (disk, &piece, offset);
    offset += piece.length;
    length -= piece.length;
  }
  return r;
}

int
request_end_unmapping (struct disk *disk, uint64_t length, uint64_t offset)
{
  int r;

  if (length == 0)
    return 0;
  r = commit_write_back (&disk->commit,
                         offset / disk->delta->layout.cluster_size,
                         end_cluster (disk, length, offset) - 1);
  if (r < 0)
    flusher_ask (&disk->flusher, FLUSHER_WRITE_BACK);
  return r;
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

/* ---- Zeroing ----------------------------------------------------------- */

/* What is zeroed in place may be given back in the background, too.  That is put
 * down first: who writes meanwhile takes it back, and what is there in the end
 * stays.
 */
static int
zero_in_place (struct disk *disk, const struct extent *extent,
               uint64_t offset, unsigned flags)
{
  const bool gives_back = (flags & PLOOP_UNMAP)
                          && disk->discard != PLOOP_DISCARD_OFF
                          && !map_word_is_new (extent->word);
  int r = gives_back ? trim_part (disk, extent, offset)
                     : commit_begin (&disk->commit);

  if (r < 0)
    return r;
  r = put_piece (disk, NULL, extent, offset);
  changes_note (&disk->changes);
  /* What it left as it was stays so. */
  if (r < 0 && gives_back)
    tell_trims (disk, extent->cluster, extent->length, offset);
  return explain (disk, r, REQUEST_NEEDS_ROOM);
}

/* Is it zeroed by unmapping it? */
static bool
may_unmap (const struct disk *disk, const struct extent *extent,
           uint64_t offset, unsigned flags)
{
  return (flags & PLOOP_UNMAP) && disk->discard != PLOOP_DISCARD_OFF
         && !map_word_is_new (extent->word) && !(extent->word & MAP_COVERS)
         && is_whole_cluster (disk, extent, offset);
}

/* What no delta has is zeros already.  A cluster that is new and whose write
 * fails is unmapped again: zeros, too.
 */
static int
zero_piece (struct disk *disk, const struct extent *extent, uint64_t offset,
            unsigned flags)
{
  if (!map_word_is_mapped (extent->word))
    return 0;
  if (is_lower (disk, extent->word))
    return flags & REQUEST_OWNER ? copy_up (disk, extent, NULL, offset)
                                 : REQUEST_NEEDS_OWNER;
  if (may_unmap (disk, extent, offset, flags))
    return unmap_cluster (disk, extent->cluster, extent->word);
  return zero_in_place (disk, extent, offset, flags);
}

/* The next piece to be zeroed: a whole range of the file, unless clusters are to
 * be unmapped one by one, or copied.
 */
static struct extent
next_zeroed (const struct disk *disk, uint64_t length, uint64_t offset,
             unsigned flags)
{
  struct extent extent;

  if (flags & PLOOP_UNMAP)
    return next_piece (disk, length, offset);
  extent = next_extent (disk, length, offset);
  return is_lower (disk, extent.word) ? first_piece (disk, length, offset)
                                      : extent;
}

/* Can a piece be zeroed without copying, or writing zeros? */
static bool
is_fast (const struct disk *disk, const struct extent *piece, uint64_t offset,
         unsigned flags)
{
  if (!map_word_is_mapped (piece->word))
    return true;
  if (is_lower (disk, piece->word))
    return is_whole_cluster (disk, piece, offset);
  return may_unmap (disk, piece, offset, flags)
         || delta_zero_is_fast (disk->delta, piece->length,
                                piece->host_offset);
}

bool
request_zero_is_fast (const struct disk *disk, uint64_t length,
                      uint64_t offset, unsigned flags)
{
  bool fast = true;

  while (length > 0 && fast) {
    const struct extent piece = next_piece (disk, length, offset);

    fast = is_fast (disk, &piece, offset, flags);
    offset += piece.length;
    length -= piece.length;
  }
  return fast;
}

int
request_zero (struct disk *disk, uint64_t length, uint64_t offset,
              unsigned flags, bool *durable)
{
  int r = 0;

  /* Also where nothing is mapped: the removal of an old entry, by a trim, may
   * not be durable yet.
   */
  *durable = false;
  while (length > 0 && r == 0) {
    const struct extent extent = next_zeroed (disk, length, offset, flags);

    r = zero_piece (disk, &extent, offset, flags);
    offset += extent.length;
    length -= extent.length;
  }
  return r;
}

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
