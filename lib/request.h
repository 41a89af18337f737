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

#include "disk.h"
#include "ploop-core.h"

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
