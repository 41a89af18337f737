/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* An image whose clusters are moved in its file, by who has it to himself: what
 * compacting, resizing and repairing share.
 *
 * A cluster is moved as copy-on-write would do it: copied, and its map word made
 * unstable, so that its entry reaches the disk after a sync of the copy (commit.h).
 * Only when that is committed is the old place given up; until then both hold the
 * same, and it does not matter which one the disk's entry names.
 *
 * The hard thing is what was there before.  A cell that is free in the BAT as we read it
 * may have an owner in the BAT on the disk, when somebody trimmed a cluster, was killed,
 * and nobody has synced.  The sync of the in-use mark, which comes before the first
 * copy, makes the two the same.
 *
 * What fails first is remembered; mover_report tells it.
 */

#ifndef PLOOP_LIB_MOVER_H
#define PLOOP_LIB_MOVER_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "cells.h"
#include "commit.h"
#include "delta.h"
#include "error.h"
#include "map.h"
#include "ploop-core.h"

/* Read and written at once, between two calls of the progress callback. */
#define MOVER_PIECE_BYTES ((size_t) 1 << 20)

/* Whose a cell is: a guest cluster's index and 1; 0: nobody's. */
#define MOVER_PINNED UINT32_MAX /* under a cluster off the grid */

struct mover {
  struct delta *delta;
  struct log log;
  bool keep_holes_out;          /* make no holes in the file */
  bool keeps_extension;         /* see commit_keep_extension */
  bool marks_repair;            /* see commit_mark_repair */
  bool is_marked;               /* the file may say that it is in use */

  /* For progress. */
  ploop_progress_fn progress;   /* or NULL */
  void *opaque;
  uint64_t nr_bytes_done, nr_bytes_to_do;
  bool interrupted;
  uint64_t bytes_copied;        /* holes are not */

  /* The image. */
  struct map map;
  GArray *lost;                 /* of uint32_t: see bat_load */
  struct cells cells;
  uint32_t *owners;             /* by cell */
  uint64_t nr_on_grid;          /* clusters */
  uint64_t pinned_end;          /* bytes; of the highest cluster off the grid */
  uint64_t file_size;           /* now */

  /* Private. */
  struct changes changes;
  struct stats *stats;
  struct commit commit;
  uint8_t *buffer;
  int error;                    /* the first that was met, or 0 */
  char *failed;                 /* what failed with it */
};

/* MOVER is zeros but for delta, which is taken over, log, keep_holes_out and progress.
 * Make room for its clusters and NR_MORE cells behind the end of the file.  Returns 0;
 * or -1 with ERROR set.
 */
int mover_init (struct mover *mover, uint64_t nr_more, GError **error);

/* Closes the delta, too. */
void mover_destroy (struct mover *mover);

/* Read the BAT of a sound image, as bat_load does.  Returns 0; or -1 with ERROR set. */
int mover_load (struct mover *mover, GError **error);

/* Or: what is on the disk counts, not what a failed sync has left in memory (0 or a
 * negative errno); then tell it of each sound entry.
 */
int mover_forget_cached (const struct mover *mover);
void mover_add_entry (struct mover *mover, uint32_t index, uint32_t entry);

/* In the file, bytes. */
static inline uint64_t
mover_offset (const struct mover *mover, uint64_t cell)
{
  return format_cell_offset (&mover->delta->layout, cell);
}

/* ---- Changing ---------------------------------------------------------- */

/* These return 0 or a negative errno, which is remembered. */

/* From here on the file is changed: mark it as in use. */
int mover_begin (struct mover *mover);

/* Let the file be so long that cell CELL is in it. */
int mover_reach (struct mover *mover, uint64_t cell);

/* Copy the cluster at byte FROM of the file to cell TO, which is free.  -ECANCELED when
 * the callback wants an end of it: TO is half written then, and still free.  Is not
 * remembered: the caller may know a way.
 */
int mover_copy (struct mover *mover, uint64_t from, uint64_t to);

/* Let LENGTH bytes at OFFSET of the file be a hole, or zeros. */
int mover_clear (struct mover *mover, uint64_t length, uint64_t offset);

/* Cluster INDEX is in cell TO now: with the next commit. */
void mover_publish (struct mover *mover, uint32_t index, uint64_t to);

/* Cluster INDEX is nowhere from now on: its entry goes with the next commit, and only
 * then its place may be used.  Does nothing when it is not mapped.
 */
void mover_drop (struct mover *mover, uint32_t index);

/* Let everything published or dropped be on disk. */
int mover_commit (struct mover *mover);

/* The file ends at byte END now, if it did so later. */
int mover_cut (struct mover *mover, uint64_t end);

/* Give the space of free cells below byte END back. */
int mover_punch_free (struct mover *mover, uint64_t end);

/* Leave the file as one that was closed, with all that was published on disk; its free
 * space given back if END is not 0: where it may end.  What may have failed before is no
 * reason not to.
 */
int mover_finish (struct mover *mover, uint64_t end);

/* Remember what failed with R, unless something else has before.  Returns R. */
int mover_fail (struct mover *mover, int r, const char *format, ...)
  G_GNUC_PRINTF (3, 4);

/* Set ERROR to what failed, if anything has; AGAIN is what to do with an image that is
 * still marked as in use then.  Returns 0 or -1.
 */
int mover_report (const struct mover *mover, const char *again,
                  GError **error);

/* ---- Looking ----------------------------------------------------------- */

/* Where the file may end: behind the last cell that is in use; bytes. */
uint64_t mover_end (const struct mover *mover);

/* How many of LENGTH bytes at OFFSET of the file may be data. */
uint64_t mover_count_data (const struct mover *mover, uint64_t length,
                           uint64_t offset);

/* The same in free cells, below byte END of the file. */
uint64_t mover_count_free_data (const struct mover *mover, uint64_t end);

/* Call the progress callback: NR_BYTES more are done. */
void mover_tell (struct mover *mover, uint64_t nr_bytes);

#endif /* PLOOP_LIB_MOVER_H */
