/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Direct I/O (O_DIRECT) for requests of any alignment.
 *
 * The kernel moves whole blocks at aligned memory only.  A request's whole
 * blocks go from and to the caller's memory, or through a bounce buffer when
 * that is not aligned.  What is less than a block is read whole; to be written,
 * its block is read, modified and written back (RMW).
 *
 * The hard part is that an RMW also writes the rest of the block, as it was a
 * moment ago.  So nobody else may change a block under an RMW.  The file's
 * regions are striped over read-write locks:
 *
 *   who                                         the range's stripes
 *   writes whole blocks                         shared
 *   lets the kernel clear or cut off a range    shared: direct_begin_change
 *   RMW                                         exclusively
 *   direct_stop                                 all, exclusively
 *   reads                                       none
 *
 * Who takes several takes them in ascending order.  Nobody waits for anything
 * but the disk while he holds one.
 */

#ifndef PLOOP_LIB_DIRECT_H
#define PLOOP_LIB_DIRECT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DIRECT_MAX_ALIGNMENT (64u << 10)

/* Bounce buffers, small and large: there is a small one for each of some busy
 * connections' threads, since most requests are small and making a large one
 * takes longer than to fill it.
 */
#define DIRECT_SMALL_SIZE (64u << 10)
#define DIRECT_BUFFER_SIZE (1u << 20)
#define DIRECT_MAX_KEPT 128u    /* of the small ones */
#define DIRECT_MAX_KEPT_LARGE 16u

#define DIRECT_NR_STRIPES 64u
#define DIRECT_REGION_SIZE (1u << 20)
#define DIRECT_CACHE_LINE 64

struct direct_pool {
  size_t size;                  /* of a buffer, bytes */
  unsigned most;                /* that are kept */
  /* Those that nobody uses at the moment. */
  _Alignas (DIRECT_CACHE_LINE) pthread_mutex_t lock;
  unsigned nr_kept;
  void *kept[DIRECT_MAX_KEPT];
};

struct direct_stripe {
  _Alignas (DIRECT_CACHE_LINE) pthread_rwlock_t lock;
};

/* Of use to others: block_size and memory_alignment, powers of two, which tests
 * raise before the first request.
 */
struct direct {
  int fd;
  int durable_fd;               /* O_DSYNC; -1 for a reader */
  uint32_t block_size;          /* of offsets and lengths, bytes */
  uint32_t memory_alignment;    /* bytes */
  _Atomic bool stopped;         /* only goes up */

  struct direct_pool small, large;
  struct direct_stripe stripes[DIRECT_NR_STRIPES];
};

/* Take over two descriptors of one file, both opened with O_DIRECT, find the
 * alignments and try a read.  DURABLE_FD, opened with O_DSYNC too, may be -1:
 * nothing is written then.
 *
 * Returns 0 or a negative errno, in particular -EINVAL, -ENOTBLK or -EOPNOTSUPP
 * when the file system has no direct I/O for this file; both are closed then.
 */
int direct_open (int fd, int durable_fd, struct direct **direct);

/* When no request runs any more.  NULL is ignored. */
void direct_close (struct direct *direct);

/* Read or write; offsets and lengths are bytes of the file.  Past its end a
 * file reads as zeros.  DURABLE: on stable storage at return.
 *
 * A file that ends inside the last block that is written ends with that block
 * afterwards, what is new as zeros: it reads as before, and past the page cache
 * the kernel writes no less.
 *
 * Return 0 or a negative errno.  -ENOTBLK: the kernel refuses although all is
 * aligned, or direct_stop was called.  A part may have been written then; the
 * caller stops, and writes all of it through the page cache.  -ENOMEM: there is
 * no memory for a bounce buffer.
 *
 * Block; from any thread.
 */
int direct_pread (struct direct *direct, void *buf, size_t length,
                  uint64_t offset);
int direct_pwrite (struct direct *direct, const void *buf, size_t length,
                   uint64_t offset, bool durable);

/* The caller changes a range by other means than direct_pwrite (fallocate,
 * ftruncate): keeps RMWs of its first and last block out meanwhile.  Every
 * begin needs its end, by the same thread.  Blocks while an RMW runs.
 */
void direct_begin_change (struct direct *direct, uint64_t length,
                          uint64_t offset);
void direct_end_change (struct direct *direct, uint64_t length,
                        uint64_t offset);

/* Stop for good: no direct write runs when this returns, and none ever will, so
 * the page cache may be written from now on.  Returns true to one caller: the
 * first.
 */
bool direct_stop (struct direct *direct);

#endif /* PLOOP_LIB_DIRECT_H */
