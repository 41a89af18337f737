/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Merging deltas of a disk that is held: what deleting a snapshot and ploop_merge
 * share.
 */

#ifndef PLOOP_LIB_MERGE_H
#define PLOOP_LIB_MERGE_H

#include <stdbool.h>

#include <glib.h>

#include "described.h"
#include "error.h"
#include "ploop-core.h"

/* How it is done, and what came of it. */
struct merge {
  struct described *described;
  const struct log *log;
  bool dry_run;
  ploop_progress_fn progress;
  void *opaque;
  struct ploop_merge_result *result;
};

/* Let the delta UPPER, and all between it and its ancestor LOWER, become one with
 * LOWER, in the file that was LOWER's and under the GUID that was UPPER's; all others
 * of them are gone then, and their files removed.  GUIDs in lower case.
 *
 * Returns 0, also when cancelled; or -1 with ERROR set.  The disk, and every snapshot
 * but those that are to go, reads the same at any time.
 */
int merge_range (struct merge *merge, const char *lower, const char *upper,
                 GError **error);

#endif /* PLOOP_LIB_MERGE_H */
