/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/group.c: one leads at a time, and hands over to one that sleeps; whom a
 * commit covers is answered, once, and nobody else.  For what a commit costs
 * that many share, see test-commit.c.
 */

#include <config.h>

#include <errno.h>
#include <semaphore.h>

#include "group.h"
#include "run.h"

#define NR_EARLY 3
#define NR_LATE 2

/* Is CONDITION true before a generous deadline? */
#define comes_true(condition)                                                 \
  ({                                                                          \
    const gint64 deadline = g_get_monotonic_time () + 60 * G_USEC_PER_SEC;    \
    while (!(condition) && g_get_monotonic_time () < deadline)                \
      g_usleep (1000);                                                        \
    (condition);                                                              \
  })

struct bed {
  struct commit_group group;
  struct stats *stats;
  unsigned nr_need_leader;
};

static void
on_need_leader (void *opaque)
{
  ((struct bed *) opaque)->nr_need_leader++;
}

static void
set_up (struct bed *bed)
{
  *bed = (struct bed) { .stats = stats_new (false) };
  group_init (&bed->group, bed->stats, on_need_leader, bed);
}

static void
tear_down (struct bed *bed)
{
  group_destroy (&bed->group);
  stats_free (bed->stats);
}

static unsigned
nr_waiting (struct bed *bed)
{
  unsigned nr = 0;

  pthread_mutex_lock (&bed->group.lock);
  for (struct group_waiter *w = bed->group.waiters; w; w = w->next)
    nr++;
  pthread_mutex_unlock (&bed->group.lock);
  return nr;
}

/* This thread leads, if nobody did. */
static bool
lead (struct bed *bed, uint64_t target)
{
  int result;

  return group_wait (&bed->group, target, &result);
}

/* A thread that waits; it does not end what it leads. */
struct sleeping {
  struct bed *bed;
  uint64_t target;
  pthread_t thread;
  bool leads;
  int result;
  _Atomic bool is_over;
};

static void *
wait_in_group (void *opaque)
{
  struct sleeping *s = opaque;

  s->leads = group_wait (&s->bed->group, s->target, &s->result);
  s->is_over = true;
  return NULL;
}

static void
start (struct sleeping *s, struct bed *bed, uint64_t target,
       void *(*run) (void *))
{
  *s = (struct sleeping) { .bed = bed, .target = target };
  ck_assert_int_eq (pthread_create (&s->thread, NULL, run, s), 0);
}

static void
end (struct sleeping *s, bool leads, int result)
{
  pthread_join (s->thread, NULL);
  ck_assert (s->leads == leads);
  ck_assert_int_eq (s->result, result);
}

/* A waiter without a thread. */
struct answer {
  struct group_waiter waiter;
  unsigned nr;
  int result;
};

static void
on_answer (struct group_waiter *waiter, int result)
{
  struct answer *answer = (struct answer *) waiter;

  answer->result = result;
  answer->nr++;
}

static void
join (struct bed *bed, struct answer *answer, uint64_t target)
{
  *answer = (struct answer) { .waiter.done = on_answer };
  group_join (&bed->group, &answer->waiter, target);
}

START_TEST (those_who_are_covered_are_answered_and_another_leads)
{
  struct bed bed;
  struct sleeping early[NR_EARLY], late[NR_LATE];
  struct answer early_answer, late_answer;
  struct ploop_statistics statistics = { 0 };
  int leader;

  set_up (&bed);
  ck_assert (lead (&bed, 5));
  for (int i = 0; i < NR_EARLY; i++)
    start (&early[i], &bed, 5, wait_in_group);
  for (int i = 0; i < NR_LATE; i++)
    start (&late[i], &bed, 6, wait_in_group);
  join (&bed, &late_answer, 6);
  join (&bed, &early_answer, 4);
  ck_assert (comes_true (nr_waiting (&bed) == NR_EARLY + NR_LATE + 2));

  group_end (&bed.group, 5, -ENOSPC);
  for (int i = 0; i < NR_EARLY; i++)
    end (&early[i], false, -ENOSPC);
  ck_assert_uint_eq (early_answer.nr, 1);
  ck_assert_int_eq (early_answer.result, -ENOSPC);
  ck_assert (comes_true (late[0].is_over || late[1].is_over));
  leader = late[0].is_over ? 0 : 1;
  end (&late[leader], true, 0);
  ck_assert (group_is_led (&bed.group));
  ck_assert_uint_eq (nr_waiting (&bed), 2);
  ck_assert_uint_eq (late_answer.nr, 0);

  group_end (&bed.group, 6, 0);
  end (&late[!leader], false, 0);
  ck_assert_uint_eq (late_answer.nr, 1);
  ck_assert_int_eq (late_answer.result, 0);
  ck_assert_uint_eq (early_answer.nr, 1);
  ck_assert (!group_is_led (&bed.group));
  ck_assert_uint_eq (nr_waiting (&bed), 0);
  ck_assert_uint_eq (bed.nr_need_leader, 0);
  stats_collect (bed.stats, &statistics);
  ck_assert_uint_eq (statistics.nr_commit_waiters, NR_EARLY + NR_LATE + 3);
  tear_down (&bed);
}
END_TEST

START_TEST (leader_is_asked_for_when_nobody_is_left_who_sleeps)
{
  struct bed bed;
  struct answer answer, last;

  set_up (&bed);
  ck_assert (!group_take_lead (&bed.group));
  ck_assert (lead (&bed, 1));
  join (&bed, &answer, 2);
  ck_assert (!group_take_lead (&bed.group));
  ck_assert_uint_eq (bed.nr_need_leader, 0);
  group_end (&bed.group, 1, 0);
  ck_assert_uint_eq (bed.nr_need_leader, 1);
  ck_assert_uint_eq (answer.nr, 0);
  ck_assert (!group_is_led (&bed.group));

  ck_assert (group_take_lead (&bed.group));
  /* Behind one that is taken out of the list. */
  join (&bed, &last, 2);
  group_end (&bed.group, 2, 0);
  ck_assert_uint_eq (answer.nr, 1);
  ck_assert_uint_eq (last.nr, 1);
  ck_assert (!group_take_lead (&bed.group));
  ck_assert_uint_eq (bed.nr_need_leader, 1);

  /* The list is whole after that. */
  join (&bed, &answer, 3);
  ck_assert (group_take_lead (&bed.group));
  group_end (&bed.group, 3, 0);
  ck_assert_uint_eq (answer.nr, 1);
  tear_down (&bed);
}
END_TEST

/* The list is whole whichever of its members is taken out. */
START_TEST (next_leader_may_be_first_or_last_in_the_list)
{
  struct bed bed;
  struct sleeping next;
  struct answer before, after;

  set_up (&bed);
  ck_assert (lead (&bed, 1));
  if (_i & 1)
    join (&bed, &before, 2);
  start (&next, &bed, 2, wait_in_group);
  ck_assert (comes_true (nr_waiting (&bed) == 1u + (_i & 1)));
  if (_i & 2)
    join (&bed, &after, 3);
  group_end (&bed.group, 1, 0);
  end (&next, true, 0);
  if (!(_i & 2))
    join (&bed, &after, 3);
  ck_assert_uint_eq (nr_waiting (&bed), 1u + (_i & 1));
  group_end (&bed.group, 3, 0);
  if (_i & 1)
    ck_assert_uint_eq (before.nr, 1);
  ck_assert_uint_eq (after.nr, 1);
  tear_down (&bed);
}
END_TEST

/* ---- Who is woken is there --------------------------------------------- */

/* Two threads that are held up at the worst moment: one that has put itself
 * into the list of those who wait, and one that has made it the leader and is
 * about to wake it.
 */
static _Thread_local bool lingers_after_unlock, lingers_before_post;
static _Atomic bool is_in_list, is_chosen, woke_the_dead;
static struct sleeping chosen;

int __real_pthread_mutex_unlock (pthread_mutex_t *lock);
int __wrap_pthread_mutex_unlock (pthread_mutex_t *lock);
int __real_sem_post (sem_t *sem);
int __wrap_sem_post (sem_t *sem);

int
__wrap_pthread_mutex_unlock (pthread_mutex_t *lock)
{
  int r = __real_pthread_mutex_unlock (lock);

  if (lingers_after_unlock && lock == &chosen.bed->group.lock) {
    lingers_after_unlock = false;
    is_in_list = true;
    while (!is_chosen)
      g_usleep (1000);
  }
  return r;
}

int
__wrap_sem_post (sem_t *sem)
{
  if (lingers_before_post) {
    lingers_before_post = false;
    is_chosen = true;
    /* It must still be there, however long this takes. */
    for (int i = 0; i < 200 && !chosen.is_over; i++)
      g_usleep (1000);
    if (chosen.is_over) {
      woke_the_dead = true;
      return 0;
    }
  }
  return __real_sem_post (sem);
}

static void *
wait_and_be_chosen (void *opaque)
{
  lingers_after_unlock = true;
  return wait_in_group (opaque);
}

START_TEST (new_leader_is_there_until_it_has_been_woken)
{
  struct bed bed;

  set_up (&bed);
  ck_assert (lead (&bed, 1));
  start (&chosen, &bed, 2, wait_and_be_chosen);
  ck_assert (comes_true (is_in_list));
  lingers_before_post = true;
  group_end (&bed.group, 1, 0);
  end (&chosen, true, 0);
  ck_assert_msg (!woke_the_dead, "a semaphore is posted that is gone");
  group_end (&bed.group, 2, 0);
  tear_down (&bed);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, those_who_are_covered_are_answered_and_another_leads);
  tcase_add_test (tcase, leader_is_asked_for_when_nobody_is_left_who_sleeps);
  tcase_add_loop_test (tcase, next_leader_may_be_first_or_last_in_the_list, 0,
                       4);
  tcase_add_test (tcase, new_leader_is_there_until_it_has_been_woken);
}

int
main (void)
{
  return run_tests ("group", add_tests);
}
