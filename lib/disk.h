/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What requests work on: a disk, with all that belongs to it. */

#ifndef PLOOP_LIB_DISK_H
#define PLOOP_LIB_DISK_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>

#include "alloc.h"
#include "chain.h"
#include "changes.h"
#include "commit.h"
#include "delta.h"
#include "fills.h"
#include "flusher.h"
#include "gate.h"
#include "map.h"
#include "ploop-core.h"
#include "runner.h"
#include "stats.h"
#include "trims.h"

struct disk {
  struct chain chain;
  struct delta *delta;          /* the top one, which is written to */
  struct map map;
  struct changes changes;
  struct alloc alloc;
  struct commit commit;
  struct trims trims;
  struct fills fills;
  struct flusher flusher;
  struct runners *runners;      /* once started */
  struct gate gate;
  struct stats *stats;
  enum ploop_discard discard;
  enum ploop_detect_zeroes detect_zeroes;
  bool keeps_remote;            /* what is read from a remote delta */
};

/* Results beside 0 and a negative errno: there is no space now, but there is
 * hope (flusher_may_wait).  The range may have been done in part; it is to be
 * done again as a whole, by who can wait outside the gate.
 */
enum request_result {
  REQUEST_NEEDS_CLUSTER = 1,
  REQUEST_NEEDS_ROOM = 2,
  /* No lack of space: some of the range is to be copied from a lower delta, by the
   * runner that owns it.
   */
  REQUEST_NEEDS_OWNER = 3,
};

/* A flag beside those of ploop-core.h: the caller is the runner that owns all of
 * the range, so that nobody else copies clusters of it.
 */
#define REQUEST_OWNER (1u << 16)

/* What a request says that has failed with R: an error, or that it needs what
 * NEEDED names and may hope for.
 */
static inline int
disk_explain (const struct disk *disk, int r, enum request_result needed)
{
  if (!delta_is_no_space (r))
    return r;
  return flusher_may_wait (&disk->flusher) ? (int) needed : -ENOSPC;
}

#endif /* PLOOP_LIB_DISK_H */
