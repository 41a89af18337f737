/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What is done to a range of the guest's disk: read, write, zero, trim, describe,
 * prefetch.
 *
 * Any thread may call these, several at once, inside the gate (gate.h), which
 * is where they look clusters up and use them.  They take no lock unless a
 * cluster is new.  The caller has checked that the range lies on the disk and
 * that the disk may be written.
 */

#ifndef PLOOP_LIB_REQUEST_H
#define PLOOP_LIB_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
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

/* What requests work on. */
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

/* Of FLAGS, REQUEST_OWNER counts. */
int request_read (struct disk *disk, void *buf, size_t length,
                  uint64_t offset, unsigned flags);

/* Those that change the disk clear *DURABLE when it takes a commit to make what
 * they did durable.  Of FLAGS, PLOOP_FUA and REQUEST_OWNER count.
 */
int request_write (struct disk *disk, const void *buf, size_t length,
                   uint64_t offset, unsigned flags, bool *durable);

/* PLOOP_UNMAP and REQUEST_OWNER. */
int request_zero (struct disk *disk, uint64_t length, uint64_t offset,
                  unsigned flags, bool *durable);

/* Would that write no zeros and copy nothing, as far as is known? */
bool request_zero_is_fast (const struct disk *disk, uint64_t length,
                           uint64_t offset, unsigned flags);

/* Clusters that lie in the range as a whole are unmapped, parts of others put
 * down to be punched.
 */
int request_trim (struct disk *disk, uint64_t length, uint64_t offset,
                  bool *durable);

/* After the last piece of a range in which clusters may have been unmapped, not
 * necessarily inside the gate: let killing the process not undo it.  Returns 0
 * or a negative errno; what could not be written is written later then.
 */
int request_end_unmapping (struct disk *disk, uint64_t length,
                           uint64_t offset);

/* Tell FN what the range is made of, as ploop_extents does. */
int request_extents (const struct disk *disk, uint64_t length,
                     uint64_t offset, unsigned flags, ploop_extent_fn fn,
                     void *opaque);

void request_prefetch (const struct disk *disk, uint64_t length,
                       uint64_t offset);

#endif /* PLOOP_LIB_REQUEST_H */
