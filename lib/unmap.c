/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Trimming and zeroing: the part of request.h that gives space back.
 *
 * Clusters are unmapped as a whole; what is less is put down in trims.h, and punched
 * later.  A hole cannot be expressed above a lower delta: what is trimmed there stays
 * mapped.
 */

#include <config.h>

#include "copy-up.h"
#include "extent.h"
#include "request.h"

/* ---- Trimming ---------------------------------------------------------- */

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
  r = put_extent (disk, NULL, extent, offset);
  changes_note (&disk->changes);
  /* What it left as it was stays so. */
  if (r < 0 && gives_back)
    tell_trims (disk, extent->cluster, extent->length, offset);
  return disk_explain (disk, r, REQUEST_NEEDS_ROOM);
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
