/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Host clusters on their way from freed to free again:
 *
 *   1  a grace period: no request uses the cluster any more; and the removal of
 *      its BAT entry is durable
 *   2  it is punched, so that it reads as zeros and takes no space
 *   3  the punch is durable
 *
 * Were one left out, a power cut could show a guest what another cluster holds,
 * or what it trimmed, or give one host cluster to two guest clusters.
 *
 * They travel in batches, so that a grace period, a punch and a commit serve
 * many of them.  A batch collects until it is closed; RCU tells when its grace
 * period is over; the commits are other people's.
 */

#ifndef PLOOP_LIB_FREED_H
#define PLOOP_LIB_FREED_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "changes.h"
#include "delta.h"
#include "error.h"
#include "stats.h"

struct freed_batch;

struct freed {
  struct delta *delta;
  struct changes *changes;
  struct stats *stats;
  const struct log *log;
  void (*news) (void *opaque);
  void *opaque;
  struct freed_batch *closed;   /* a list; the scrubber's */
  _Atomic unsigned nr_graces;   /* grace periods that we will be told of */
  pthread_mutex_t lock;         /* for what follows */
  struct freed_batch *open;     /* collects; NULL: none */
  _Atomic uint64_t nr_pending;  /* clusters in these */
};

/* NEWS is called, from any thread, when there is something for freed_scrub; it
 * must not block.
 */
void freed_init (struct freed *freed, struct delta *delta,
                 struct changes *changes, struct stats *stats,
                 const struct log *log, void (*news) (void *opaque),
                 void *opaque);

/* Nobody may be in an RCU read-side section that uses clusters. */
void freed_destroy (struct freed *freed);

/* No map word names ENTRY's cluster any more, and from change number REMOVAL on
 * no BAT entry on disk does.  Requests that found it before may still use it.
 * From any thread; does not wait for any of the steps.
 */
void freed_add (struct freed *freed, uint32_t entry, uint64_t removal);

/* The same for LENGTH bytes of the file at OFFSET, whole clusters that no map
 * word and no BAT entry on disk has named since the file was opened.
 */
void freed_add_unused (struct freed *freed, uint64_t offset, uint64_t length);

/* Clusters that have not come to their end. */
static inline uint64_t
freed_nr_pending (const struct freed *freed)
{
  return atomic_load_explicit (&freed->nr_pending, memory_order_acquire);
}

/* Is there any for which news will come, because requests may still use it?  Not while
 * freed_scrub runs.
 */
bool freed_expects_news (const struct freed *freed);

/* LENGTH bytes of the file at OFFSET, neighbouring clusters, may be used again.
 */
typedef void freed_back (void *opaque, uint64_t offset, uint64_t length);

/* Move what was freed a step on, as far as it is ready, without waiting: a
 * commit is for the caller to wait for.  Notes a change when it punches.  One
 * call at a time.  What cannot be cleared is left alone, with a warning.
 */
void freed_scrub (struct freed *freed, freed_back *back, void *opaque);

/* When nobody frees or takes any more, and all removals are durable: wait for
 * the grace periods, and punch what is left.
 */
void freed_finish (struct freed *freed, freed_back *back, void *opaque);

#endif /* PLOOP_LIB_FREED_H */
