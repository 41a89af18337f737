/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* One image file: open, lock, read, write, extend, punch, sync, close.
 *
 * Interrupted, short and partial system calls are dealt with here, once; all
 * others see whole requests.  What lies past the end of the file reads as
 * zeros.  Offsets and lengths are bytes of the file.
 *
 * All requests may be called from any thread at once.
 *
 * A delta may also be a raw disk on an NBD server, to be read only.
 *
 * With delta_use_direct the guest's data goes past the page cache, but for what
 * lies near the BAT.  Each byte of the file is written in one of the two ways
 * only, so nobody reads what is stale.  What fallocate clears and ftruncate
 * cuts off, the kernel keeps coherent with both.
 */

#ifndef PLOOP_LIB_DELTA_H
#define PLOOP_LIB_DELTA_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <glib.h>

#include "direct.h"
#include "error.h"
#include "format.h"
#include "remote.h"

struct delta {
  char *path;                   /* resolved; or a URI */
  struct remote *remote;        /* not NULL: there is no file, only this */
  int fd;                       /* -1: remote */
  int apart_fd;                 /* a second open file description, O_DSYNC;
                                   -1 for a reader */
  int descriptor_lock_fd;       /* -1: none */
  bool read_only;
  bool is_raw;                  /* no header and no BAT: see delta_source */
  uint64_t file_size;           /* at open */
  dev_t device;                 /* that holds the file */
  uint32_t block_size;          /* of the file system; 4096 at most, bytes */
  struct format_header header;  /* at open; zeros for a raw disk */
  struct format_layout layout;
  bool holes_are_true;          /* the file system tells holes reliably */
  struct direct *direct;        /* NULL: all goes through the page cache */
  uint64_t direct_start;        /* below it all goes through the page cache */
  const struct log *log;        /* NULL: nobody listens */
  _Atomic bool no_fallocate;    /* the file system said so once */
  _Atomic bool no_zero_range;
  _Atomic bool no_punch;
  _Atomic bool no_clone_from;   /* nothing can be cloned out of it */
  _Atomic bool no_copy_from;    /* nor copied by the kernel */
  bool no_holes;                /* none is to be made: delta_make_no_holes */
};

/* How a delta is locked at open. */
enum delta_lock {
  DELTA_LOCK_NONE,
  DELTA_LOCK_READER,
  DELTA_LOCK_WRITER,
};

/* Which file, and what it may be. */
struct delta_source {
  const char *path;             /* or the URI of an NBD export: a raw disk */
  int path_fd;                  /* the file, opened with O_PATH, when its name
                                   was checked; -1: go by the name */
  uint32_t raw_cluster_size;    /* bytes; if not 0, what has no ploop signature
                                   is a raw disk, a block device too, of which
                                   BAT entry I is cluster I */
  bool any_header;              /* nothing is read of the file, which may be a block
                                   device: header and layout stay zeros, to be
                                   filled in by who opens it */
  bool descriptor_is_locked;    /* the one beside it, by who opens it */
  const struct log *log;        /* outlives the delta; or NULL */
  /* For what is remote: see remote_options. */
  bool (*give_up) (void *opaque);
  void *give_up_opaque;
};

/* Open and lock a file and check its header.  A writer whose file does not
 * allow writing gets a reader's, with read_only set.
 */
struct delta *delta_open_source (const struct delta_source *source,
                                 enum delta_lock lock, GError **error);

/* The same for an image of which only the name is known. */
struct delta *delta_open (const char *path, enum delta_lock lock,
                          GError **error);

/* Set FLAG, one of DELTA's, which says what its file system cannot do; whoever looks
 * for faults is told once, in the words of INSTEAD.
 */
void delta_lacks (const struct delta *delta, _Atomic bool *flag,
                  const char *instead);

/* Release the locks and free.  NULL is ignored. */
void delta_close (struct delta *delta);

/* Let the guest's data go past the page cache (O_DIRECT) from now on.  To be
 * called before the first request; LOG must live as long as DELTA.
 *
 * Returns false, with a warning and nothing changed, when the file system does
 * not allow it.  One that refuses later, it gets its requests through the page
 * cache from then on; that too is worth a warning.
 *
 * A write, or a delta_zero, may then lengthen a file that ends inside a block
 * (64 KiB at most, mostly less) to the end of this block, which reads as zeros.
 */
bool delta_use_direct (struct delta *delta, const struct log *log);

/* With direct I/O: let the kernel forget what the page cache holds of the
 * guest's data, LENGTH bytes of the file at OFFSET, once that is on disk.  A
 * direct write has to drop such pages one by one, and one that is submitted
 * without waiting is handed to a thread of the kernel to do so.  Only advice:
 * changes nothing that is read.  May block for as long as LENGTH is cached.
 */
void delta_forget_cached (const struct delta *delta, uint64_t length,
                          uint64_t offset);

/* Each returns 0 or a negative errno. */
int delta_pread (const struct delta *delta, void *buf, size_t length,
                 uint64_t offset);
int delta_pwrite (const struct delta *delta, const void *buf, size_t length,
                  uint64_t offset);

/* Write, and return when these bytes are on stable storage.
 *
 * This and delta_sync_apart go through an open file description of their own.
 * The kernel reports a failed write-back once to each description; so an error
 * here is this caller's alone, and hides nothing from delta_sync.
 */
int delta_pwrite_durable (const struct delta *delta, const void *buf,
                          size_t length, uint64_t offset);

/* Make a range read as zeros, without changing the file's size (but see
 * delta_use_direct); by the file system where it can.  Where it cannot, zeros
 * are written, which takes as long as any write.
 */
int delta_zero (struct delta *delta, uint64_t length, uint64_t offset);

/* Would that be done by the file system, as far as is known? */
bool delta_zero_is_fast (const struct delta *delta, uint64_t length,
                         uint64_t offset);

/* Give a range's space back to the file system; it reads as zeros. -ENOTSUP
 * when the file system cannot.
 */
int delta_punch (struct delta *delta, uint64_t length, uint64_t offset);

/* Let LENGTH bytes at TARGET_OFFSET of TARGET be those at OFFSET of SOURCE, by
 * sharing blocks, or by letting the kernel copy.  TARGET's file reaches that far,
 * and keeps its size; past the end of SOURCE's there is nothing to copy.
 *
 * -ENOTSUP, with nothing done, when the file system does not do it, or not for
 * these two files (direct I/O), and will not for others of them either; cloning
 * returns it also for what is not aligned as the file system wants it.
 */
int delta_clone_range (struct delta *target, uint64_t target_offset,
                       const struct delta *source, uint64_t offset,
                       uint64_t length);
int delta_copy_range (struct delta *target, uint64_t target_offset,
                      const struct delta *source, uint64_t offset,
                      uint64_t length);

/* For programs that read the file by its extents and know no holes (kernels of
 * OpenVZ 6 and 7): delta_punch will not be supported, and delta_zero writes
 * zeros instead of leaving blocks unwritten, but for whole clusters.  Before the
 * first request.
 */
void delta_make_no_holes (struct delta *delta);

/* Reserve space for FROM up to TO, inside the file, where the file system can
 * and delta_reserve_nothing was not called.  The file's size and content stay.
 */
int delta_reserve (struct delta *delta, uint64_t from, uint64_t to);
void delta_reserve_nothing (struct delta *delta);

/* Cut the file off, or grow it by a hole. */
int delta_truncate (const struct delta *delta, uint64_t size);

/* Everything written before this call is on stable storage when it returns 0;
 * the file's size too.  An error is reported once by the kernel: remember it.
 */
int delta_sync (const struct delta *delta);

/* The same, for callers that are not the ones to remember an error. */
int delta_sync_apart (const struct delta *delta);

/* Sync, and let the first LENGTH bytes of the file be read from the disk next
 * time, if the kernel takes the advice.
 */
int delta_sync_and_forget (const struct delta *delta, uint64_t length);

/* Present size of the file. */
int delta_size (const struct delta *delta, uint64_t *size);

/* The same, and the bytes that it takes in its file system. */
int delta_space (const struct delta *delta, uint64_t *size, uint64_t *space);

/* Find the next range of the file at or after *START and below END that may
 * hold data.  Returns false when there is none.
 *
 * Leaves out holes only on file systems that are known to tell them truly.
 * Some have reported a hole where data was written a moment ago (OpenZFS up to
 * 2.2.1), and a BAT that is taken for empty costs the disk.
 */
bool delta_next_data (const struct delta *delta, uint64_t end,
                      uint64_t *start, uint64_t *stop);

/* The same, for one thread only, of what an NBD server has, too; delta_next_data
 * takes all of that for data.
 */
bool delta_next_data_at_open (const struct delta *delta, uint64_t end,
                              uint64_t *start, uint64_t *stop);

/* The server that a delta is on, if any, is not waited for any longer. */
void delta_stop (struct delta *delta);

/* Is it certain that LENGTH bytes at OFFSET are a hole, so zeros? */
bool delta_is_hole (const struct delta *delta, uint64_t length,
                    uint64_t offset);

/* Find the first byte that is not zero from START to END of the file.  Returns 0 with
 * *POSITION, END when there is none; or a negative errno with *POSITION near what could
 * not be read.
 */
int delta_find_nonzero (const struct delta *delta, uint64_t start,
                        uint64_t end, uint64_t *position);

/* Is anything gained by giving LENGTH bytes at OFFSET, which are nobody's, back: does a
 * whole block of the file system hold data there, or is anything but zeros in the parts of
 * blocks at their ends?  What cannot be read counts.
 */
bool delta_wastes_space (const struct delta *delta, uint64_t length,
                         uint64_t offset);

/* Read LENGTH bytes at OFFSET into the page cache soon.  Only advice; does
 * nothing for what goes past it.
 */
void delta_prefetch (const struct delta *delta, uint64_t length,
                     uint64_t offset);

/* Does a request's result say that the file cannot take more now? */
static inline bool
delta_is_no_space (int r)
{
  return r == -ENOSPC || r == -EDQUOT || r == -EFBIG;
}

/* How many of LENGTH bytes at OFFSET of the disk a delta has: a lower one may end
 * before the disk does.
 */
static inline uint64_t
delta_length_inside (const struct delta *delta, uint64_t length,
                     uint64_t offset)
{
  const uint64_t size = delta->layout.size;

  return size <= offset ? 0 : MIN (length, size - offset);
}

/* True when the kernel says that the file's device rotates. */
bool delta_is_rotational (const struct delta *delta);

#endif /* PLOOP_LIB_DELTA_H */
