/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Copy-on-write: a cluster that only a lower delta has, copied to the top one. */

#ifndef PLOOP_LIB_COPY_UP_H
#define PLOOP_LIB_COPY_UP_H

#include "extent.h"

/* Copy the cluster of PIECE, which only a lower delta has, to the top one, changed
 * by BUF, or zeros if it is NULL, at PIECE; a piece of no length changes nothing.
 * For the runner that owns it.  Blocks for as long as copying takes.
 *
 * Returns 0, a negative errno, or an enum request_result.
 */
int copy_up (struct disk *disk, const struct extent *piece, const void *buf,
             uint64_t offset);

/* Write a piece to the top delta, where it is mapped, or zeros if BUF is NULL: also
 * to a copy that is not whole yet.  From any thread.  Returns 0 or a negative errno.
 */
int put_extent (struct disk *disk, const void *buf,
                const struct extent *piece, uint64_t offset);

#endif /* PLOOP_LIB_COPY_UP_H */
