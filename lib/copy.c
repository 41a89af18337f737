/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Copying a cluster: see copy.h. */

#include <config.h>

#include "copy.h"

/* Read and written at once. */
#define PIECE_BYTES ((uint32_t) 256 << 10)

static int
read_and_write (struct delta *target, uint64_t target_offset,
                const struct delta *source, uint64_t offset, uint64_t length)
{
  uint8_t *buf = g_aligned_alloc (1, PIECE_BYTES, 4096);
  int r = 0;

  while (length > 0 && r == 0) {
    const size_t n = (size_t) MIN (length, PIECE_BYTES);

    r = delta_pread (source, buf, n, offset);
    if (r == 0)
      r = delta_pwrite (target, buf, n, target_offset);
    offset += n;
    target_offset += n;
    length -= n;
  }
  g_aligned_free (buf);
  return r;
}

static int
copy_data (struct delta *target, uint64_t target_offset,
           struct delta *source, uint64_t offset, uint64_t length)
{
  if (!atomic_load_explicit (&source->no_copy_from, memory_order_relaxed)) {
    const int r =
      delta_copy_range (target, target_offset, source, offset, length);

    if (r != -ENOTSUP)
      return r;
    delta_lacks (source, &source->no_copy_from,
                 "the kernel does not copy from here to the top: data is read "
                 "and written");
  }
  return read_and_write (target, target_offset, source, offset, length);
}

/* What is not data reads as zeros on both sides. */
int
copy_range (struct delta *target, uint64_t target_offset,
            struct delta *source, uint64_t offset, uint64_t length)
{
  const uint64_t end = offset + length;
  uint64_t start = offset, stop;
  int r = 0;

  while (r == 0 && delta_next_data (source, end, &start, &stop)) {
    r = copy_data (target, target_offset + (start - offset), source,
                   start, stop - start);
    start = stop;
  }
  return r;
}

static int
copy_part (struct delta *target, uint64_t target_offset,
           struct delta *source, uint64_t offset, struct copy_part part)
{
  return copy_range (target, target_offset + part.from, source,
                     offset + part.from, part.to - part.from);
}

/* Sharing blocks takes a whole cluster as fast as a part of one, and leaves both
 * files in one piece.
 */
static bool
try_clone (struct delta *target, uint64_t target_offset,
           struct delta *source, uint64_t offset, uint32_t length, int *result)
{
  /* Half a block at the end of a disk or a file cannot be shared. */
  if (!copy_may_clone (source) || length < source->layout.cluster_size
      || offset + length > source->file_size)
    return false;
  *result = delta_clone_range (target, target_offset, source, offset, length);
  if (*result != -ENOTSUP)
    return true;
  delta_lacks (source, &source->no_clone_from,
               "no blocks can be shared with the top: data is copied");
  return false;
}

int
copy_cluster (struct delta *target, uint64_t target_offset,
              struct delta *source, uint64_t offset, uint32_t length,
              struct copy_part left_out)
{
  const struct copy_part before = { 0, MIN (left_out.from, length) };
  const struct copy_part after = { MIN (left_out.to, length), length };
  int r;

  if (before.from == before.to && after.from == after.to)
    return 0;
  if (try_clone (target, target_offset, source, offset, length, &r))
    return r;
  r = copy_part (target, target_offset, source, offset, before);
  if (r == 0)
    r = copy_part (target, target_offset, source, offset, after);
  return r;
}
