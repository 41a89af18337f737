/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* One commit for many: see group.h.
 *
 * At its end the leader takes those whom its commit covers out of the list, and
 * one of the others that sleep to lead the next.  That one is woken first, so
 * that the disk does not wait for the answers.  The lead is handed over as it
 * is: nobody who comes meanwhile can take it.
 *
 * A waiter that is out of the list is gone as soon as it has been told, its
 * semaphore too: nothing of it may be read after that.
 */

#include <config.h>

#include <semaphore.h>

#include "group.h"

void
group_init (struct commit_group *group, struct stats *stats,
            void (*need_leader) (void *opaque), void *opaque)
{
  *group = (struct commit_group) {
    .stats = stats,
    .need_leader = need_leader,
    .opaque = opaque,
    .waiters_end = &group->waiters,
  };
  pthread_mutex_init (&group->lock, NULL);
}

void
group_destroy (struct commit_group *group)
{
  pthread_mutex_destroy (&group->lock);
}

/* ---- The list and the lead, with the lock held ------------------------- */

static void
append (struct commit_group *group, struct group_waiter *waiter)
{
  waiter->next = NULL;
  *group->waiters_end = waiter;
  group->waiters_end = &waiter->next;
}

/* Take out of the list those that a commit up to COVERED answers. */
static struct group_waiter *
take_covered (struct commit_group *group, uint64_t covered)
{
  struct group_waiter **link = &group->waiters, *list = NULL;

  while (*link) {
    struct group_waiter *waiter = *link;

    if (waiter->target > covered) {
      link = &waiter->next;
      continue;
    }
    *link = waiter->next;
    waiter->next = list;
    list = waiter;
  }
  group->waiters_end = link;
  return list;
}

/* A thread that sleeps until a commit covers it, or it has to lead. */
struct sleeper {
  struct group_waiter waiter;
  sem_t wake;
  bool leads;
  int result;
};

/* Take out of the list one that may lead the next. */
static struct sleeper *
take_leader (struct commit_group *group)
{
  struct group_waiter **link = &group->waiters;

  for (; *link; link = &(*link)->next)
    if ((*link)->sync) {
      struct sleeper *sleeper = (struct sleeper *) *link;

      *link = sleeper->waiter.next;
      if (!*link)
        group->waiters_end = link;
      return sleeper;
    }
  return NULL;
}

static void
set_led (struct commit_group *group, bool led)
{
  /* Relaxed: the lock orders one who leads after another, and so does the
   * semaphore when the lead is handed over.
   */
  atomic_store_explicit (&group->led, led, memory_order_relaxed);
}

/* ---- Coming ------------------------------------------------------------ */

static void
wake_sleeper (struct group_waiter *waiter, int result)
{
  struct sleeper *sleeper = (struct sleeper *) waiter;

  sleeper->result = result;
  sem_post (&sleeper->wake);
}

bool
group_wait (struct commit_group *group, uint64_t target, int *result)
{
  struct sleeper sleeper = {
    .waiter = { .target = target, .sync = true, .done = wake_sleeper },
  };

  /* Not read from the sleeper: it may be chosen as soon as the lock is free. */
  bool leads;

  pthread_mutex_lock (&group->lock);
  leads = !group_is_led (group);
  if (leads)
    set_led (group, true);
  else {
    sem_init (&sleeper.wake, 0, 0);
    append (group, &sleeper.waiter);
  }
  pthread_mutex_unlock (&group->lock);
  if (!leads) {
    while (sem_wait (&sleeper.wake) == -1)
      continue;                 /* a signal */
    sem_destroy (&sleeper.wake);
    leads = sleeper.leads;
  }
  if (leads)
    stats_add (group->stats, STATS_COMMIT_WAITERS, 1);
  else
    *result = sleeper.result;
  return leads;
}

void
group_join (struct commit_group *group, struct group_waiter *waiter,
            uint64_t target)
{
  waiter->target = target;
  waiter->sync = false;
  pthread_mutex_lock (&group->lock);
  append (group, waiter);
  pthread_mutex_unlock (&group->lock);
}

bool
group_take_lead (struct commit_group *group)
{
  bool leads;

  pthread_mutex_lock (&group->lock);
  leads = group->waiters && !group_is_led (group);
  if (leads)
    set_led (group, true);
  pthread_mutex_unlock (&group->lock);
  return leads;
}

/* ---- Ending ------------------------------------------------------------ */

/* Let somebody else lead, if anybody waits.  Returns those who are not in the
 * list any more, to be answered.
 */
static struct group_waiter *
pass_on (struct commit_group *group, uint64_t covered)
{
  struct group_waiter *answered;
  struct sleeper *next;
  bool need_leader = false;

  pthread_mutex_lock (&group->lock);
  answered = take_covered (group, covered);
  next = take_leader (group);
  if (next)
    next->leads = true;
  else {
    set_led (group, false);
    need_leader = group->waiters != NULL;
  }
  pthread_mutex_unlock (&group->lock);
  if (next)
    sem_post (&next->wake);
  else if (need_leader && group->need_leader)
    group->need_leader (group->opaque);
  return answered;
}

void
group_end (struct commit_group *group, uint64_t covered, int result)
{
  struct group_waiter *answered = pass_on (group, covered);
  uint64_t nr = 0;

  while (answered) {
    struct group_waiter *waiter = answered;

    answered = waiter->next;
    waiter->done (waiter, result);
    nr++;
  }
  stats_add (group->stats, STATS_COMMIT_WAITERS, nr);
}
