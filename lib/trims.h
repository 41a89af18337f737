/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Parts of clusters that are trimmed.
 *
 * A trim of less than a cluster is answered when it has been put down here; the
 * flusher punches later, what lies together in one call.  The hard part is that
 * a guest may write again to what was trimmed before that has happened.  So the
 * cluster's map word says that there is a record (MAP_TRIMMED), and whoever
 * writes to such a cluster comes here, before and after:
 *
 *   before   what is written is trimmed no longer; only who wants to write what
 *            is being punched at this moment waits for that.  The cluster may
 *            have been unmapped: it is looked up again
 *   after    the same, for trims that came while it was written: either the
 *            write is the later one, or it was punched for good
 *
 * A record holds what has been trimmed since anybody wrote.  When that is the
 * whole cluster, it is unmapped.  Records do not live for ever, and do not
 * outlive the server; so what was punched is looked at as well: a cluster whose
 * place in the file has become one hole reads as zeros, and is unmapped.  Nobody
 * may be about to write to it then: the flag has been there for a grace period,
 * and who saw it has come here.
 *
 *   WAITING   there is something to punch
 *   BUSY      it is being punched
 *   SETTLING  punched; a grace period later it is looked at
 *   RESTING   nothing to do until it is trimmed again or written to
 *
 * A cluster that a lower delta has, too, is punched like others, but never
 * unmapped: the lower delta's data would show.
 */

#ifndef PLOOP_LIB_TRIMS_H
#define PLOOP_LIB_TRIMS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "alloc.h"
#include "commit.h"
#include "delta.h"
#include "map.h"

struct trims {
  struct delta *delta;
  struct map *map;
  struct commit *commit;
  struct alloc *alloc;
  bool punches;                 /* else only whole clusters are of use */
  void (*news) (void *opaque);
  void *opaque;

  _Atomic uint64_t nr_records;
  _Atomic unsigned nr_graces;   /* grace periods that we will be told of */
  pthread_mutex_t lock;         /* for what follows */
  pthread_cond_t changed;       /* something is BUSY no longer, or is gone */
  GHashTable *records;          /* struct trims_record, by cluster */
  uint64_t last_serial;
  GQueue waiting, settled, resting;     /* of struct trims_ticket */
};

struct trims_options {
  bool punches;
  /* There is something for trims_work.  From any thread; must not block. */
  void (*news) (void *opaque);
  void *opaque;
};

void trims_init (struct trims *trims, struct delta *delta, struct map *map,
                 struct commit *commit, struct alloc *alloc,
                 const struct trims_options *options);

/* When nobody is inside the gate any more. */
void trims_destroy (struct trims *trims);

/* The bytes FROM up to TO of CLUSTER, whose map word is WORD, are trimmed; both
 * are rounded to sectors, inwards.  When nothing of the cluster is left it is
 * unmapped, if no lower delta has it.  From inside the gate; after commit_begin.
 */
void trims_add (struct trims *trims, uint64_t cluster, uint64_t word,
                uint32_t from, uint32_t to);

/* Somebody will write, or has written, to the bytes FROM up to TO of CLUSTER,
 * whose word has MAP_TRIMMED.  From inside the gate.  Waits while some of it is
 * being punched.  Who will write looks up again afterwards where the cluster is.
 */
void trims_write (struct trims *trims, uint64_t cluster, uint32_t from,
                  uint32_t to);

/* Before a trim, outside the gate: wait while there are as many records as may
 * be.
 */
void trims_wait_for_room (struct trims *trims);

/* Punch some of what waits, and unmap what has turned out to be empty.  Returns
 * true when there is more to do now.  For the flusher; one call at a time.
 */
bool trims_work (struct trims *trims);

/* When nobody is inside the gate, or works, any more: do all of it. */
void trims_finish (struct trims *trims);

#endif /* PLOOP_LIB_TRIMS_H */
