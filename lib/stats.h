/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What an image has done so far: counts, and how long requests took.
 *
 * Counting must cost a request next to nothing, and threads that count must not
 * pass a cache line to and fro.  So there are several shards of everything; a
 * thread is given one when it first counts, in turn, and only ever adds to that
 * one.  More threads than shards share: additions are atomic.  Who wants
 * totals adds the shards up, without a lock.
 *
 *   call             which threads     costs
 *   stats_add        any               one addition
 *   stats_begin      any               a clock read, if latency is measured
 *   stats_end        any, not only     one addition; if latency is measured, a
 *                    that of begin     clock read and two
 *   stats_collect    any               a few microseconds
 *
 * Ordering: everything here is relaxed.  Counts order nothing; a total has
 * what happened before the collection (in its thread, or in another that has
 * told it so by other means), and of what happens meanwhile some.
 */

#ifndef PLOOP_LIB_STATS_H
#define PLOOP_LIB_STATS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "ploop-core.h"

/* The fields of struct ploop_statistics, which says what they mean. */
enum stats_counter {
  STATS_READ_BYTES,
  STATS_WRITE_BYTES,
  STATS_ZERO_BYTES,
  STATS_TRIM_BYTES,
  STATS_FUA,
  STATS_FAST_PATH,
  STATS_QUEUED,
  STATS_FAILED,
  STATS_ALLOCATIONS,
  STATS_FREES,
  STATS_REUSES,
  STATS_COPIES,
  STATS_LAZY_COPIES,
  STATS_FILL_BYTES,
  STATS_COMMITS,
  STATS_COMMIT_WAITERS,
  STATS_SYNCS,
  STATS_DURABLE_WRITES,
  STATS_BAT_WRITES,
  STATS_BAT_BYTES,
  STATS_EXTENSIONS,
  STATS_EXTENSION_SYNCS,
  STATS_PUNCHES,
  STATS_ENOSPC_WAITS,
  STATS_WRITEBACK_RETRIES,
  STATS_NR_COUNTERS,
};

#define STATS_NR_SHARDS 16u     /* a power of two */
#define STATS_CACHE_LINE 64

struct stats_operation {
  _Atomic uint64_t nr_unmeasured;
  _Atomic uint64_t sum_ns;
  _Atomic uint64_t buckets[PLOOP_HISTOGRAM_NR_BUCKETS];
};

struct stats_shard {
  _Alignas (STATS_CACHE_LINE) _Atomic uint64_t counters[STATS_NR_COUNTERS];
  struct stats_operation operations[PLOOP_NR_OPERATIONS];
};

/* Some 80 kB.  For this file and stats.c only. */
struct stats {
  bool measure_latency;         /* never changes */
  struct stats_shard shards[STATS_NR_SHARDS];
};

/* Counts of 0.  Never NULL. */
struct stats *stats_new (bool measure_latency);

/* When nobody counts any more.  NULL is ignored. */
void stats_free (struct stats *stats);

/* The shard of this thread, in every struct stats, plus one; 0: none yet. */
extern _Thread_local unsigned stats_thread_shard;

/* Give this thread a shard. */
unsigned stats_enter_thread (void);

static inline struct stats_shard *
stats_shard (struct stats *stats)
{
  unsigned shard = stats_thread_shard;

  if (G_UNLIKELY (shard == 0))
    shard = stats_enter_thread ();
  return &stats->shards[shard - 1];
}

/* Count N more of COUNTER. */
static inline void
stats_add (struct stats *stats, enum stats_counter counter, uint64_t n)
{
  atomic_fetch_add_explicit (&stats_shard (stats)->counters[counter], n,
                             memory_order_relaxed);
}

/* The monotonic clock in ns. */
uint64_t stats_now (void);

/* A request begins.  Returns what stats_end wants to know. */
static inline uint64_t
stats_begin (const struct stats *stats)
{
  return stats->measure_latency ? stats_now () : 0;
}

/* A request is complete that began when stats_begin returned BEGUN: count it,
 * and its latency if that is measured.
 */
void stats_end (struct stats *stats, enum ploop_operation operation,
                uint64_t begun);

/* Add everything to what STATISTICS has.  Others may count meanwhile: what comes
 * out is a moment's, each number of its own.
 */
void stats_collect (const struct stats *stats,
                    struct ploop_statistics *statistics);

#endif /* PLOOP_LIB_STATS_H */
