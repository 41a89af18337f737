/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A guest's requests: read, write, zero, flush.
 *
 * They run in the caller's thread, on as many threads as there are callers,
 * and take no lock unless a cluster is new.  The caller has checked that a
 * range lies on the disk and that the disk may be written.
 */

#ifndef PLOOP_LIB_REQUEST_H
#define PLOOP_LIB_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "alloc.h"
#include "commit.h"
#include "delta.h"
#include "map.h"

/* What requests work on. */
struct disk {
  struct delta *delta;
  struct map map;
  struct alloc alloc;
  struct commit commit;
};

/* Each returns 0 or a negative errno. */
int request_read (const struct disk *disk, void *buf, size_t length,
                  uint64_t offset);
int request_write (struct disk *disk, const void *buf, size_t length,
                   uint64_t offset, bool fua);
int request_zero (struct disk *disk, uint64_t length, uint64_t offset,
                  bool fua);
int request_flush (struct disk *disk);

#endif /* PLOOP_LIB_REQUEST_H */
