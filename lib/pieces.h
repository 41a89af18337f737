/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A whole disk, piece by piece, by several threads: pieces are taken in order, holes
 * are left out, the caller's thread tells how far it is.
 */

#ifndef PLOOP_LIB_PIECES_H
#define PLOOP_LIB_PIECES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <glib.h>

#include "ploop-core.h"

/* A piece is at most so long, and lies between multiples of it. */
#define PIECES_BYTES (UINT64_C (1) << 20)
#define PIECES_NR_THREADS 4u

struct pieces {
  uint64_t size;                /* bytes, of the disk */
  /* Where the next data is, from OFFSET on; size when there is none.  One thread at
   * a time.
   */
  uint64_t (*next_data) (void *opaque, uint64_t offset);
  /* Called on thread number THREAD for a piece.  Returns 0; 1 when no piece behind
   * this one is wanted; or -1 with ERROR set.
   */
  int (*work) (void *opaque, unsigned thread, uint64_t offset, size_t length,
               GError **error);
  void *opaque;
  bool in_order;                /* one thread only */
  ploop_progress_fn progress;   /* or NULL */
  void *progress_opaque;

  /* What came of it. */
  uint64_t worked;              /* bytes */
  bool cancelled;
};

/* Do it.  Returns 0, also when cancelled or ended early; or -1 with ERROR set: the
 * error of the first piece that failed, if none before it has ended it.
 */
int pieces_run (struct pieces *pieces, GError **error);

#endif /* PLOOP_LIB_PIECES_H */
