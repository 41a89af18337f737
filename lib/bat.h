/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The BAT of a delta as a whole: read it, and judge every entry.
 *
 * An entry that is not zero must name a host cluster inside the data area and
 * inside the file, and no two may name the same bytes.  Opening an image stops
 * at the first fault; a check goes on and reports all.
 *
 * Holes in the file are skipped, so an empty BAT costs nothing however large
 * the disk.
 */

#ifndef PLOOP_LIB_BAT_H
#define PLOOP_LIB_BAT_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "delta.h"
#include "error.h"

enum bat_fault_kind {
  BAT_BELOW_DATA,               /* inside the header or the BAT */
  BAT_PAST_END,                 /* begins at or past the end of the file */
  BAT_SHARED,                   /* overlaps another entry's host cluster */
};

struct bat_fault {
  enum bat_fault_kind kind;
  uint32_t index;               /* of the entry: the guest cluster */
  uint32_t entry;               /* as stored */
  uint32_t other;               /* BAT_SHARED: index of the other entry */
};

/* What a scan tells its caller.  Each returns false to end the scan. */
struct bat_visitor {
  bool (*entry) (void *opaque, uint32_t index, uint32_t entry);
  bool (*fault) (void *opaque, const struct bat_fault *fault);
  /* After all others: NR cells from FIRST on, below data_end, are named by no
   * entry.  Neighbours are told together, in ascending order.
   */
  void (*leak) (void *opaque, uint64_t first, uint64_t nr);
  void *opaque;
};

struct bat_summary {
  uint32_t nr_allocated;        /* entries that are not zero */
  uint64_t data_end;            /* end of the highest sound host cluster; at
                                   least data_start; bytes */
  uint64_t nr_leaked;           /* cells inside the file that none names */
};

/* Read the whole BAT of DELTA.  Sound entries go to visitor->entry, others to
 * visitor->fault; each may be NULL.  SUMMARY may be NULL.  In the order of
 * the BAT, but for entries that share a host cluster, which come last; the one
 * that has it first counts as sound.
 *
 * Returns 0, also when a visitor ended the scan (SUMMARY is not complete
 * then), or -1 with ERROR set when the BAT cannot be read.
 */
int bat_scan (const struct delta *delta, const struct bat_visitor *visitor,
              struct bat_summary *summary, GError **error);

/* Is this the trace of a cluster that was never flushed: in an image that is
 * marked as in use, an entry past the end of the file, no further than one step
 * of preallocation?  It counts as unallocated.
 *
 * Anything further is a file that was cut off, and whose clusters were there.
 */
bool bat_fault_is_unfinished (const struct delta *delta,
                              const struct bat_fault *fault);

/* Is OFFSET of a file of FILE_SIZE bytes no further past its end than that? */
bool bat_is_within_preallocation (const struct format_layout *layout,
                                  uint64_t file_size, uint64_t offset);

/* How many of the NR cells from FIRST on, which are nobody's, waste space (see
 * delta_wastes_space).  Takes time that grows with the data in them, not with NR.
 */
uint64_t bat_count_wasted (const struct delta *delta, uint64_t first,
                           uint64_t nr);

/* Describe a fault: field and value, not the file (g_free). */
char *bat_fault_describe (const struct delta *delta,
                          const struct bat_fault *fault);

struct bat_loader {
  void (*entry) (void *opaque, uint32_t index, uint32_t entry);
  /* As a visitor's; NULL: not wanted. */
  void (*leak) (void *opaque, uint64_t first, uint64_t nr);
  void *opaque;
};

/* Read the BAT of an image that is going to be used: every entry goes to
 * loader->entry, but for those of clusters that were never flushed (see
 * bat_fault_is_unfinished), whose guest clusters are added to LOST (of
 * uint32_t).  An image that was not closed is worth a warning.
 *
 * Returns 0, or -1 with ERROR set when the BAT cannot be read, has any other
 * fault, or is half converted to another version.
 */
int bat_load (const struct delta *delta, const struct bat_loader *loader,
              const struct log *log, GArray *lost,
              struct bat_summary *summary, GError **error);

#endif /* PLOOP_LIB_BAT_H */
