/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A recorder of what is done to one image file, and power cuts made from it.
 *
 * The test program links with --wrap for pwrite, fallocate, ftruncate,
 * fdatasync, statx, copy_file_range and ioctl.  Each call is done for real and
 * written down, in one order; a sync only writes down when it began and ended.
 * What copies from another file, by sharing its blocks or not, is a write here.
 * Calls dawdle before and after, and fail on demand.
 *
 * A power cut at some moment is then a file that holds: all that a sync which
 * had ended covers; of the rest that had been done, any sectors, and any
 * changes of the size.  That is more than a file system would lose (it keeps
 * its own changes in order), so what survives this survives there.
 *
 * When a sync fails, what was not durable then may be lost although a later
 * sync succeeds, and each other descriptor learns of it once: as with Linux.
 */

#ifndef PLOOP_TESTS_RECORDER_H
#define PLOOP_TESTS_RECORDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <glib.h>

#define RECORDER_SECTOR 512u

/* What fails.  Chances are of each call, 0 to 1. */
struct recorder_faults {
  double data_eio;              /* writes and clears of the data area */
  double bat_eio;               /* writes of header and BAT */
  double no_space;              /* of writes of data, reservations, growth */
  double partial;               /* writes that stop early; EINTR */
  uint64_t data_start;          /* where the data area begins: bytes */
  uint64_t max_size;            /* of the file: ENOSPC beyond; 0: none */
  unsigned failing_sync;        /* the Nth fails; 0: none */
  uint32_t direct_block;        /* what the file system says that direct I/O
                                   needs: bytes; 0: what it is */
  bool no_punch, no_zero_range, no_reserve;     /* EOPNOTSUPP */
  bool no_clone, no_copy_range;                 /* the same, and EXDEV */
  bool one_thread;              /* nobody could overtake: calls do not dawdle */
};

/* Begin to record, with the file as it is now as what is on the disk. */
void recorder_start (const char *path, const struct recorder_faults *faults,
                     uint32_t seed);

/* The file that was recorded is closed: nothing more comes. */
void recorder_stop (void);

/* Now, as a moment: the number of events so far. */
uint64_t recorder_now (void);

/* How often the file was changed so far. */
uint64_t recorder_nr_changes (void);

/* The moment before the first write that put these bytes at OFFSET; UINT64_MAX: none
 * did.
 */
uint64_t recorder_find_write (uint64_t offset, const void *bytes,
                              size_t length);

/* What was done to a file that is not the recorded one, first; NULL: nothing
 * was.
 */
const char *recorder_stray (void);

/* Describe what the change after the first NR was (g_free). */
char *recorder_describe_change (uint64_t nr);

/* Had a sync failed at MOMENT? */
bool recorder_sync_had_failed (uint64_t moment);

/* What a power cut leaves. */
struct recorder_cut {
  uint8_t *bytes;               /* zeros from size to capacity */
  uint64_t size, capacity;
  uint8_t *touched;             /* a byte a block: not all zeros, perhaps */
  bool changed;                 /* from the first file, outside the 20 bytes of
                                   the header that hold the in-use mark */
};

/* A power cut at MOMENT, chosen by RANDOM.  KEEP is the chance of each unsynced
 * sector to be on the disk, 0 to 1.  With BROKEN_SYNC no sync has ever worked:
 * to see that a test notices.
 */
struct recorder_cut *recorder_cut (uint64_t moment, double keep,
                                   bool broken_sync, GRand *random);
void recorder_cut_free (struct recorder_cut *cut);
typedef struct recorder_cut recorder_cut_t;
G_DEFINE_AUTOPTR_CLEANUP_FUNC (recorder_cut_t, recorder_cut_free)

/* Write it to PATH, holes as holes. */
void recorder_cut_save (const struct recorder_cut *cut, const char *path);

/* Is this, byte for byte, what is in the file PATH? */
bool recorder_cut_is_file (const struct recorder_cut *cut, const char *path);

#endif /* PLOOP_TESTS_RECORDER_H */
