/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A recorder of what is done to one image file, and power cuts made from it.
 *
 * The test program links with --wrap for pwrite, fallocate, ftruncate and
 * fdatasync.  Each call is done for real and written down, in one order.  A
 * sync only writes down when it began and ended.  A power cut at some moment
 * is then a file that holds: all that a sync which had ended covers; of the
 * rest that had been done, any sectors, and any changes of the size.  That is
 * more than a file system would lose (it keeps its own changes in order), so
 * what survives this survives there.
 */

#ifndef PLOOP_TESTS_RECORDER_H
#define PLOOP_TESTS_RECORDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <glib.h>

#define RECORDER_SECTOR 512u

/* Begin to record, with the file as it is now as what is on the disk.  To
 * extend the file by more than MAX_STEP bytes at once fails with ENOSPC, so that
 * it happens often.
 */
void recorder_start (const char *path, uint64_t max_step);

/* The file that was recorded is closed: nothing more comes. */
void recorder_stop (void);

/* Now, as a moment: the number of events so far. */
uint64_t recorder_now (void);

/* Write the file that a power cut at MOMENT leaves, chosen by RANDOM, to PATH.
 * KEEP is the chance of each unsynced sector to be on the disk, 0 to 1.
 * With BROKEN_SYNC no sync has ever worked: to see that a test notices.
 */
void recorder_cut (uint64_t moment, double keep, bool broken_sync,
                   GRand *random, const char *path);

/* Does the file that the last cut left differ from the first one anywhere
 * outside the 20 bytes of the header that hold the in-use mark?
 */
bool recorder_cut_changed (void);

#endif /* PLOOP_TESTS_RECORDER_H */
