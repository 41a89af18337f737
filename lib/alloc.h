/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Which host clusters are free, and when a freed one may be used again.
 *
 * A cluster that is handed out is *fresh*: it reads as zeros, the file's size
 * that covers it is on stable storage, and its space is reserved where that is
 * asked for.  So a BAT entry that names it may reach the disk at any time,
 * before or after its data: the guest reads zeros, which is what it read before.
 *
 * Fresh clusters are a bitmap.  Taking one is an atomic and, giving one back an
 * atomic or; the lowest goes first, but for a race.  They come from three places:
 *
 *   the end of the file   is moved, ahead of need, by whom alloc_init names in
 *                         LOW; only one who finds nothing has to wait for it
 *   leaked clusters       those that no BAT entry named when the file was opened
 *                         (a crash, another program) take the same way as freed
 *                         ones, a few at a time
 *   freed clusters        come back in three steps (freed.h), as *holes*:
 *                         all but reserved, so that their space is the file
 *                         system's until it is needed.  They go before the end
 *                         of the file, and some that lie below all that is fresh
 *                         are reserved at once, so that the tail stays free
 */

#ifndef PLOOP_LIB_ALLOC_H
#define PLOOP_LIB_ALLOC_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "changes.h"
#include "delta.h"
#include "error.h"
#include "freed.h"
#include "stats.h"

struct alloc {
  struct delta *delta;
  struct stats *stats;
  const struct log *log;
  struct freed freed;           /* not free yet */

  _Atomic uint64_t *fresh;      /* a bit a cell */
  uint64_t capacity;            /* bits */
  uint64_t base;                /* cells below it were in the file at open */
  _Atomic uint64_t hint;        /* word where to look first */
  _Atomic int64_t nr_fresh;
  _Atomic int64_t nr_wanted;    /* guest clusters that have no host cluster */
  _Atomic uint64_t nr_held;     /* taken, not kept or given back yet */
  _Atomic uint64_t nr_returned; /* given back, or holes now; only grows */
  _Atomic bool ahead_failed;    /* so wait until somebody needs a cluster */

  void (*low) (void *opaque);
  void *opaque;

  pthread_mutex_t extend_lock;  /* for what follows */
  uint64_t step;                /* cells that one extension adds */
  uint64_t burst;               /* that many times, while it grows quickly */
  int64_t extended_at;          /* us: the last time ahead of need */
  uint64_t size_ahead;          /* cells that the durable size goes ahead */
  _Atomic uint64_t limit;       /* cells below it were fresh once, or in use at
                                   open; only grows */
  uint64_t durable_limit;       /* cells that the file's durable size covers */
  bool covering;                /* somebody makes it larger */
  pthread_cond_t covered;       /* nobody does any more */
  uint64_t data_end;            /* at open: what lies beyond is nobody's */
  GArray *leaks;                /* of struct alloc_leak; the reclaimer's */
  guint nr_reclaimed;           /* of them */
  uint64_t *holes;              /* a bit a cell */
  uint64_t hole_hint;           /* word where to look first */
  _Atomic uint64_t nr_holes;
  bool tail_cut;                /* the file ends at data_end or beyond limit */
  int failed;                   /* a sync failed: do not extend again */
};

/* Cells FIRST to FIRST + NR - 1, in the file and below its data's end, that
 * nobody uses.
 */
struct alloc_leak {
  uint64_t first, nr;
};

struct alloc_options {
  GArray *leaks;                /* of struct alloc_leak, or NULL */
  uint64_t data_end;            /* end of the highest host cluster in use, bytes
                                   of the file */
  uint64_t nr_unmapped;         /* guest clusters without a host cluster */
  uint64_t prealloc;            /* bytes that one extension adds, not 0 */
  /* Called, from any thread, when fresh clusters become few, and when there is
   * something to scrub.  Must not block.
   */
  void (*low) (void *opaque);
  void (*freed) (void *opaque);
  void *opaque;
};

/* Changes nothing in the file.  Returns 0 or a negative errno. */
int alloc_init (struct alloc *alloc, struct delta *delta,
                struct changes *changes, struct stats *stats,
                const struct log *log, const struct alloc_options *options);

/* Nobody may be in an RCU read-side section that uses clusters. */
void alloc_destroy (struct alloc *alloc);

/* ---- Taking ------------------------------------------------------------ */

/* Take a fresh host cluster; *ENTRY is its BAT entry.  The caller says soon what
 * becomes of it, without waiting for anybody: alloc_keep or alloc_give_back.
 *
 * Blocks, while the file is extended, only when there is no fresh one.  Returns
 * 0 or a negative errno, -ENOSPC when the file cannot grow and nobody holds a
 * cluster that may come back.  The in-use mark must be on disk (commit_begin).
 */
int alloc_take (struct alloc *alloc, uint32_t *entry);

/* A map word names the cluster that was taken. */
void alloc_keep (struct alloc *alloc);

/* Nothing was written to the cluster that was taken, and no map word ever
 * named it.
 */
void alloc_give_back (struct alloc *alloc, uint32_t entry);

/* Are there few fresh clusters, and could the disk use more? */
bool alloc_is_low (const struct alloc *alloc);

/* Make clusters fresh ahead of need, as long as alloc_is_low.  For the flusher.
 */
int alloc_extend (struct alloc *alloc);

/* A number that changes when clusters come back. */
static inline uint64_t
alloc_nr_returned (const struct alloc *alloc)
{
  return atomic_load (&alloc->nr_returned);
}

/* Guest clusters that have no host cluster. */
uint64_t alloc_nr_wanted (const struct alloc *alloc);

/* Host clusters that are free, or on their way there. */
uint64_t alloc_nr_free (const struct alloc *alloc);

/* ---- Freeing ----------------------------------------------------------- */

/* No map word names ENTRY's cluster any more, and from change number REMOVAL on
 * no BAT entry on disk does.  Requests that found it before may still use it.
 */
void alloc_free (struct alloc *alloc, uint32_t entry, uint64_t removal);

/* Clusters that were freed and are not holes yet. */
static inline uint64_t
alloc_nr_pending (const struct alloc *alloc)
{
  return freed_nr_pending (&alloc->freed);
}

/* See freed_expects_news; in the thread that calls alloc_scrub. */
static inline bool
alloc_expects_news (const struct alloc *alloc)
{
  return freed_expects_news (&alloc->freed);
}

/* Move what was freed a step on (freed_scrub); what has come to its end are
 * holes.
 */
void alloc_scrub (struct alloc *alloc);

/* Let some of the leaked clusters go the way of freed ones.  After the in-use
 * mark is on disk; for the flusher.  Returns true when there are more.
 */
bool alloc_reclaim (struct alloc *alloc);

/* ---- At the end -------------------------------------------------------- */

/* When nobody takes or frees any more, and all removals are durable: wait for
 * the grace periods, punch what is left and what was reserved for nobody, and
 * cut off the file behind its last cluster if this alloc has made that tail;
 * with OLD_TAIL also what was there when the file was opened.  Returns 0 or a
 * negative errno.
 */
int alloc_finish (struct alloc *alloc, bool old_tail);

#endif /* PLOOP_LIB_ALLOC_H */
