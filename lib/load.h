/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Requests to a disk to measure it by: a number of them under way at all times, until
 * there are no more or time is up.
 */

#ifndef PLOOP_LIB_LOAD_H
#define PLOOP_LIB_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "ploop-core.h"

struct load {
  ploop_image *image;
  enum ploop_operation operation;       /* PLOOP_READ or PLOOP_WRITE */
  unsigned depth;               /* requests at a time */
  uint32_t block_size;          /* bytes of the largest */
  /* Where the next request goes: at most block_size bytes on the disk.  Returns false
   * when there is none.  One thread at a time.
   */
  bool (*next) (void *opaque, uint64_t *offset, uint64_t *length);
  void *opaque;
  unsigned milliseconds;        /* after that, none is begun */
  /* Called by the thread that waits, about ten times a second; NULL: nobody.  Returns
   * false to end it.
   */
  bool (*tick) (void *opaque);
};

/* What came of it. */
struct load_result {
  uint64_t bytes;
  gint64 begun;                 /* us of the monotonic clock */
  bool interrupted;
};

/* Run LOAD until its last request is complete.  Each block that is written is like no
 * other.  Returns 0, or the negative errno of the first request that failed.
 */
int load_run (const struct load *load, struct load_result *result);

#endif /* PLOOP_LIB_LOAD_H */
