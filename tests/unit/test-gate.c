/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/gate.c: who holds the gate is alone; who closes it lets nobody in again,
 * but for those who were admitted before.
 */

#include <config.h>

#include <semaphore.h>

#include "gate.h"
#include "run.h"

#define NR_THREADS 6

/* Is CONDITION true before a generous deadline? */
#define comes_true(condition)                                                 \
  ({                                                                          \
    const gint64 deadline = g_get_monotonic_time () + 60 * G_USEC_PER_SEC;    \
    while (!(condition) && g_get_monotonic_time () < deadline)                \
      g_usleep (1000);                                                        \
    (condition);                                                              \
  })

/* Long enough for what must not happen to show itself, mostly. */
static void
linger (void)
{
  g_usleep (50000);
}

/* A thread that does one thing to the gate and says when it is done. */
struct actor {
  struct gate *gate;
  pthread_t thread;
  sem_t leave;
  _Atomic bool inside, over;
  int result;
};

static void *
visit (void *opaque)
{
  struct actor *actor = opaque;

  actor->result = gate_enter (actor->gate);
  if (actor->result == 0) {
    actor->inside = true;
    while (sem_wait (&actor->leave) == -1)
      continue;
    gate_leave (actor->gate);
  }
  actor->over = true;
  return NULL;
}

static void *
visit_late (void *opaque)
{
  struct actor *actor = opaque;

  gate_enter_late (actor->gate);
  actor->inside = true;
  gate_leave (actor->gate);
  actor->over = true;
  return NULL;
}

static void *
hold (void *opaque)
{
  struct actor *actor = opaque;

  gate_hold (actor->gate);
  actor->over = true;
  return NULL;
}

static void *
close_it (void *opaque)
{
  struct actor *actor = opaque;

  gate_close (actor->gate);
  actor->over = true;
  return NULL;
}

static void
start (struct actor *actor, struct gate *gate, void *(*run) (void *))
{
  *actor = (struct actor) { .gate = gate };
  sem_init (&actor->leave, 0, 0);
  ck_assert_int_eq (pthread_create (&actor->thread, NULL, run, actor), 0);
}

static int
end (struct actor *actor)
{
  sem_post (&actor->leave);
  pthread_join (actor->thread, NULL);
  sem_destroy (&actor->leave);
  return actor->result;
}

START_TEST (open_gate_lets_all_in_at_once)
{
  struct gate gate;
  struct actor visitors[3];

  gate_init (&gate);
  for (int i = 0; i < 3; i++)
    start (&visitors[i], &gate, visit);
  for (int i = 0; i < 3; i++)
    ck_assert (comes_true (visitors[i].inside));
  ck_assert_int_eq (gate_enter (&gate), 0);
  gate_leave (&gate);
  for (int i = 0; i < 3; i++)
    ck_assert_int_eq (end (&visitors[i]), 0);
  gate_destroy (&gate);
}
END_TEST

START_TEST (hold_waits_for_those_inside)
{
  struct gate gate;
  struct actor visitor, holder;

  gate_init (&gate);
  start (&visitor, &gate, visit);
  ck_assert (comes_true (visitor.inside));
  start (&holder, &gate, hold);
  ck_assert (comes_true (gate.state == GATE_HELD));
  linger ();
  ck_assert (!holder.over);
  end (&visitor);
  end (&holder);
  gate_release (&gate);
  ck_assert_int_eq (gate_enter (&gate), 0);
  gate_leave (&gate);
  gate_destroy (&gate);
}
END_TEST

START_TEST (held_gate_keeps_others_out_until_the_last_release)
{
  struct gate gate;
  struct actor visitor, late;

  gate_init (&gate);
  gate_hold (&gate);
  gate_hold (&gate);
  start (&visitor, &gate, visit);
  start (&late, &gate, visit_late);
  linger ();
  gate_release (&gate);
  linger ();
  ck_assert (!visitor.inside);
  ck_assert (!late.inside);
  gate_release (&gate);
  ck_assert (comes_true (visitor.inside && late.inside));
  ck_assert_int_eq (end (&visitor), 0);
  end (&late);
  gate_destroy (&gate);
}
END_TEST

START_TEST (admission_does_not_wait_for_a_held_gate)
{
  struct gate gate;

  gate_init (&gate);
  gate_hold (&gate);
  ck_assert_int_eq (gate_admit (&gate), 0);
  gate_leave (&gate);
  gate_release (&gate);
  ck_assert_int_eq (gate_admit (&gate), 0);
  gate_leave (&gate);
  gate_close (&gate);
  ck_assert_int_eq (gate_admit (&gate), -ESHUTDOWN);
  gate_destroy (&gate);
}
END_TEST

START_TEST (closing_sends_those_who_are_held_back_away)
{
  struct gate gate;
  struct actor visitors[3], late;

  gate_init (&gate);
  gate_hold (&gate);
  for (int i = 0; i < 3; i++)
    start (&visitors[i], &gate, visit);
  start (&late, &gate, visit_late);
  linger ();
  gate_close (&gate);
  for (int i = 0; i < 3; i++)
    ck_assert_int_eq (end (&visitors[i]), -ESHUTDOWN);
  end (&late);
  ck_assert (late.inside);
  /* And no release opens it again. */
  gate_release (&gate);
  ck_assert_int_eq (gate_enter (&gate), -ESHUTDOWN);
  gate_hold (&gate);
  gate_release (&gate);
  ck_assert_int_eq (gate_enter (&gate), -ESHUTDOWN);
  gate_enter_late (&gate);
  gate_leave (&gate);
  gate_destroy (&gate);
}
END_TEST

START_TEST (closing_waits_for_those_inside)
{
  struct gate gate;
  struct actor visitor, closer;

  gate_init (&gate);
  start (&visitor, &gate, visit);
  ck_assert (comes_true (visitor.inside));
  start (&closer, &gate, close_it);
  ck_assert (comes_true (gate.state == GATE_CLOSED));
  linger ();
  ck_assert (!closer.over);
  end (&visitor);
  end (&closer);
  gate_destroy (&gate);
}
END_TEST

/* Many enter and leave; whoever holds is alone. */
struct traffic {
  struct gate gate;
  _Atomic int nr_inside, nr_holders;
  _Atomic bool stop, wrong;
  _Atomic unsigned nr_entered;
};

static void *
come_and_go (void *opaque)
{
  struct traffic *traffic = opaque;

  while (gate_enter (&traffic->gate) == 0) {
    traffic->nr_inside++;
    if (traffic->nr_holders > 0)
      traffic->wrong = true;
    traffic->nr_entered++;
    traffic->nr_inside--;
    gate_leave (&traffic->gate);
    /* Writers that wait for a grace period need some room. */
    if (traffic->nr_entered % 64 == 0)
      sched_yield ();
  }
  return NULL;
}

static void *
hold_again_and_again (void *opaque)
{
  struct traffic *traffic = opaque;

  for (int i = 0; i < 30; i++) {
    gate_hold (&traffic->gate);
    traffic->nr_holders++;
    if (traffic->nr_inside != 0)
      traffic->wrong = true;
    sched_yield ();
    if (traffic->nr_inside != 0)
      traffic->wrong = true;
    traffic->nr_holders--;
    gate_release (&traffic->gate);
  }
  return NULL;
}

START_TEST (whoever_holds_is_alone)
{
  struct traffic traffic = { 0 };
  pthread_t threads[NR_THREADS], holders[2];
  unsigned entered;

  gate_init (&traffic.gate);
  for (int i = 0; i < NR_THREADS; i++)
    pthread_create (&threads[i], NULL, come_and_go, &traffic);
  for (int i = 0; i < 2; i++)
    pthread_create (&holders[i], NULL, hold_again_and_again, &traffic);
  for (int i = 0; i < 2; i++)
    pthread_join (holders[i], NULL);
  entered = traffic.nr_entered;
  ck_assert (comes_true (traffic.nr_entered > entered));
  gate_close (&traffic.gate);
  ck_assert_int_eq (traffic.nr_inside, 0);
  for (int i = 0; i < NR_THREADS; i++)
    pthread_join (threads[i], NULL);
  ck_assert (!traffic.wrong);
  gate_destroy (&traffic.gate);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, open_gate_lets_all_in_at_once);
  tcase_add_test (tcase, hold_waits_for_those_inside);
  tcase_add_test (tcase, held_gate_keeps_others_out_until_the_last_release);
  tcase_add_test (tcase, admission_does_not_wait_for_a_held_gate);
  tcase_add_test (tcase, closing_sends_those_who_are_held_back_away);
  tcase_add_test (tcase, closing_waits_for_those_inside);
  tcase_add_loop_test (tcase, whoever_holds_is_alone, 0, 5);
}

int
main (void)
{
  return run_tests ("gate", add_tests);
}
