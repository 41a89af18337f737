/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A cluster of one delta copied to a fresh place in another: the data part of
 * copy-on-write.
 *
 * The cheapest way that works is taken: let both files share the blocks
 * (reflink), let the kernel copy, read and write.  Holes are not copied.  What the
 * file systems have refused of a source is not tried again.
 */

#ifndef PLOOP_LIB_COPY_H
#define PLOOP_LIB_COPY_H

#include <stdint.h>

#include "delta.h"

/* Bytes of a cluster. */
struct copy_part {
  uint32_t from, to;
};

/* Copy LENGTH bytes at OFFSET of SOURCE, a cluster or the beginning of one, to
 * TARGET_OFFSET of TARGET, a place that reads as zeros, but for what LEFT_OUT
 * says: it may be copied or not, or be anything in between when this fails.
 *
 * Blocks for as long as it takes.  From any thread.  Returns 0 or a negative
 * errno.
 */
int copy_cluster (struct delta *target, uint64_t target_offset,
                  struct delta *source, uint64_t offset, uint32_t length,
                  struct copy_part left_out);

/* The same for any range, without sharing blocks. */
int copy_range (struct delta *target, uint64_t target_offset,
                struct delta *source, uint64_t offset, uint64_t length);

/* Can blocks of SOURCE be shared, as far as is known? */
static inline bool
copy_may_clone (const struct delta *source)
{
  return !source->remote
         && !atomic_load_explicit (&source->no_clone_from,
                                   memory_order_relaxed);
}

#endif /* PLOOP_LIB_COPY_H */
