/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Writes by io_uring, waited for: pwrite, but that the kernel treats the
 * request as an asynchronous one.
 *
 * For direct I/O to space that was reserved and never written.  ext4 keeps its
 * lock of the inode in a synchronous write until the data has reached the disk,
 * so that such writes go one by one; in an asynchronous one only until it has
 * been handed to the disk.
 *
 * Each thread has a ring of its own, made when it first asks, and given back
 * when it ends.  A child of fork must not use its parent's.
 */

#ifndef PLOOP_LIB_RING_H
#define PLOOP_LIB_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Does this thread have a ring?  Not if the kernel refuses, as it does where
 * io_uring is disabled; nobody tries again then.
 */
bool ring_is_there (void);

/* As pwrite: the length that was written, or -1 and errno.  LENGTH is at most
 * 2^32 - 1.  Blocks.  Only when ring_is_there, and to be asked again after
 * EINTR.
 */
ssize_t ring_pwrite (int fd, const void *buf, size_t length, off_t offset);

#endif /* PLOOP_LIB_RING_H */
