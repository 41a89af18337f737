/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What an image does by itself, in the background, on the thread of a loop that it
 * may share with others (loop.h).
 *
 *   extend       fresh clusters are few: the file grows ahead of need
 *   scrub        freed clusters go a step on
 *   reclaim      leaked ones are freed, once the file may be changed
 *   trim         parts of clusters that were trimmed a moment ago are punched
 *   write back   entries that were put off are due, or could not be written
 *   commit       unstable entries have waited for copy_delay
 *   fill         clusters that were copied lazily are to be made whole, by others
 *   lead         a commit that nobody waits for in a thread of their own
 *   space        somebody waits for it: freed clusters are hurried on, and
 *                with enospc=wait it is looked for again and again
 *
 * When there is nothing to do, there is no timer.
 */

#ifndef PLOOP_LIB_FLUSHER_H
#define PLOOP_LIB_FLUSHER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include <ev.h>

#include "alloc.h"
#include "commit.h"
#include "error.h"
#include "loop.h"
#include "stats.h"
#include "trims.h"

/* Whoever needs space that is not there. */
struct flusher_waiter {
  struct flusher_waiter *next;  /* the room's */
  bool needs_cluster;           /* else room on the file system */
  unsigned tag;                 /* the caller's */
  /* Called on the flusher's thread, or from flusher_wait or flusher_give_up; must
   * not block.  RESULT is 0: look again; or -ENOSPC: give up.
   */
  void (*resume) (struct flusher_waiter *waiter, int result);
};

struct flusher {
  struct alloc *alloc;
  struct commit *commit;
  struct trims *trims;
  struct stats *stats;
  const struct log *log;
  unsigned copy_delay;          /* ms */
  bool wait_for_space;          /* enospc=wait */
  bool (*give_up) (void *opaque);
  void *give_up_opaque;

  struct loop *loop;            /* NULL: not started */
  struct loop_client client;
  bool (*fill) (void *opaque);
  void *fill_opaque;
  gint64 waiting_since;         /* us; 0: nobody waits; the thread's */
  ev_timer commit_timer, write_back_timer, retry_timer, trim_timer, fill_timer;
  _Atomic unsigned work;        /* what was asked for: bits by enum */

  pthread_mutex_t lock;         /* for what follows */
  struct flusher_waiter *waiters;
  bool hopeless;                /* nobody may wait any more */
  uint64_t nr_returned;         /* the alloc's, when last looked at; the thread's */
  unsigned nr_holds;
  bool busy;                    /* the thread is at work */
  pthread_cond_t changed;       /* it is so no longer */
};

enum flusher_work {
  FLUSHER_EXTEND = 1,
  FLUSHER_SCRUB = 2,
  FLUSHER_WRITE_BACK = 4,
  FLUSHER_COMMIT = 8,
  FLUSHER_SPACE = 16,
  FLUSHER_LEAD = 32,
  FLUSHER_RECLAIM = 64,
  FLUSHER_TRIM = 128,
  FLUSHER_FILL = 256,
  FLUSHER_COMMIT_NOW = 512,     /* the flusher's own */
  FLUSHER_TRIM_NOW = 1024,      /* likewise */
};

struct flusher_options {
  unsigned copy_delay;
  bool wait_for_space;
  bool (*give_up) (void *opaque);       /* asked while somebody waits; or NULL */
  void *give_up_opaque;
  /* Called a moment after FLUSHER_FILL was asked for, and again a moment later as
   * long as it returns true.  Must not block; or NULL.
   */
  bool (*fill) (void *opaque);
  void *fill_opaque;
};

/* Before flusher_start, flusher_ask does nothing. */
void flusher_init (struct flusher *flusher, struct alloc *alloc,
                   struct commit *commit, struct trims *trims,
                   struct stats *stats, const struct log *log,
                   const struct flusher_options *options);

/* Work on LOOP, which is started and outlives FLUSHER. */
void flusher_start (struct flusher *flusher, struct loop *loop);

/* Ask for some work.  From any thread, until flusher_destroy; does not block.
 */
void flusher_ask (struct flusher *flusher, enum flusher_work work);

/* Wait for space; WAITER's resume will be called.  Only when flusher_may_wait
 * or a short while after.
 */
void flusher_wait (struct flusher *flusher, struct flusher_waiter *waiter);

/* Is there any hope that space comes? */
bool flusher_may_wait (const struct flusher *flusher);

/* Let all who wait for space, and those who will, give up. */
void flusher_give_up (struct flusher *flusher);

/* Let it finish what it is at, and begin nothing else.  Not from the loop's thread.
 * Calls nest.
 */
void flusher_hold (struct flusher *flusher);
void flusher_release (struct flusher *flusher);

/* Finish what it is at and do nothing any more, held or not.  Nobody may wait. */
void flusher_stop (struct flusher *flusher);

void flusher_destroy (struct flusher *flusher);

#endif /* PLOOP_LIB_FLUSHER_H */
