/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* One commit for many: who of those that need one does it, and who waits.
 *
 * Whoever comes names its target, the number of the last change that it needs
 * to be durable (changes.h).  Who is told to lead does one commit, as it knows
 * how, and then calls group_end with what that covers and how it went.  Others
 * meanwhile sleep, or are told later if they have no thread to spare.
 *
 *   - At most one leads.
 *   - A waiter is answered once, by the first commit that covers its target.
 *   - Somebody leads as long as a thread sleeps here; when only waiters without
 *     a thread are left, need_leader is called.
 *
 *   function          may be called from          blocks
 *   group_wait        threads that do not lead    until it is answered or leads
 *   group_take_lead   threads that do not lead    no
 *   group_join        any thread                  no
 *   group_end         the thread that leads       no
 */

#ifndef PLOOP_LIB_GROUP_H
#define PLOOP_LIB_GROUP_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "stats.h"

/* Whoever waits without blocking. */
struct group_waiter {
  struct group_waiter *next;    /* the room's */
  uint64_t target;              /* the room's */
  bool sync;                    /* the room's: a thread sleeps */
  /* Called by the thread that led, out of group_end; must not block.  The
   * waiter is the caller's again by then.
   */
  void (*done) (struct group_waiter *waiter, int result);
};

struct commit_group {
  struct stats *stats;
  void (*need_leader) (void *opaque);
  void *opaque;
  pthread_mutex_t lock;         /* for all below */
  _Atomic bool led;             /* somebody leads; changes under the lock */
  struct group_waiter *waiters, **waiters_end;
};

/* NEED_LEADER is called when somebody should call group_take_lead.  It must not
 * block; may be NULL.
 */
void group_init (struct commit_group *group, struct stats *stats,
                 void (*need_leader) (void *opaque), void *opaque);

/* When nobody waits or leads. */
void group_destroy (struct commit_group *group);

/* Wait for a commit that covers TARGET.  Returns false, with *RESULT set, when
 * somebody else has done it; true when the caller leads now.
 */
bool group_wait (struct commit_group *group, uint64_t target, int *result);

/* The same for WAITER, whose done is set, and without waiting: done will be
 * called.  Somebody has to call group_take_lead after this.
 */
void group_join (struct commit_group *group, struct group_waiter *waiter,
                 uint64_t target);

/* Returns true when the caller leads now: somebody waits, and nobody led. */
bool group_take_lead (struct commit_group *group);

/* The caller led; its commit has ended with RESULT.  Let another one lead, if
 * anybody is left, and answer all whose targets are not above COVERED.
 */
void group_end (struct commit_group *group, uint64_t covered, int result);

/* Does somebody lead?  Not for long, perhaps: only a hint. */
static inline bool
group_is_led (const struct commit_group *group)
{
  return atomic_load_explicit (&group->led, memory_order_relaxed);
}

#endif /* PLOOP_LIB_GROUP_H */
