/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* An image whose size is known only when all of it was written, in order: what comes
 * through a pipe.
 *
 * The table in front of the clusters grows with the disk.  So the clusters begin where
 * those of a small disk do; what is in the table's way in the end, one cluster for some
 * thousands, is moved behind the others.
 */

#ifndef PLOOP_LIB_GROWING_H
#define PLOOP_LIB_GROWING_H

#include <stddef.h>
#include <stdint.h>

#include <glib.h>

struct growing;

/* Begin an image in the empty file FD, which must last as long, for CLUSTER_SIZE and
 * VERSION that an image can have.  It is none before it is ended.  Takes 4 bytes of
 * memory for each cluster of the disk.
 */
struct growing *growing_begin (int fd, uint32_t cluster_size,
                               unsigned version);

/* Write LENGTH bytes at OFFSET of the disk, behind all that was written before; what is
 * left out are zeros.  Returns 0 or a negative errno; -EFBIG when no such image
 * can be so large.
 */
int growing_write (struct growing *growing, const void *buf, size_t length,
                   uint64_t offset);

/* Make it an image of a disk of SIZE bytes, a multiple of 512; syncs nothing.  Returns
 * 0, or -1 with ERROR set: a system call failed, or there is no such image.
 */
int growing_end (struct growing *growing, uint64_t size, GError **error);

/* NULL is ignored. */
void growing_free (struct growing *growing);

#endif /* PLOOP_LIB_GROWING_H */
