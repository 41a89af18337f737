/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/runner.c: jobs of one runner run one at a time, in the order in which
 * they came, and none is lost: not when the runner sleeps, not at the end.
 */

#include <config.h>

#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>

#include <glib.h>

#include "run.h"
#include "runner.h"

#define NR_PRODUCERS 6
#define NR_JOBS 2000u

/* ---- Order ------------------------------------------------------------- */

/* One producer's job NUMBER. */
struct numbered {
  struct runner_job job;
  unsigned producer, number;
};

static _Atomic int nr_running;
static _Atomic bool wrong;
static unsigned next_number[NR_PRODUCERS];      /* the runner's alone */
static _Atomic unsigned nr_run;

static void
run_numbered (struct runner_job *job, unsigned index)
{
  struct numbered *numbered = caa_container_of (job, struct numbered, job);

  if (nr_running++ != 0 || index != 1
      || next_number[numbered->producer]++ != numbered->number)
    wrong = true;
  nr_running--;
  nr_run++;
  g_free (numbered);
}

struct producer {
  struct runners *runners;
  pthread_t thread;
  unsigned number;
};

static void *
produce (void *opaque)
{
  struct producer *producer = opaque;

  for (unsigned i = 0; i < NR_JOBS; i++) {
    struct numbered *numbered = g_new0 (struct numbered, 1);

    numbered->job.run = run_numbered;
    numbered->producer = producer->number;
    numbered->number = i;
    runner_submit (producer->runners, 1, &numbered->job);
    /* Now and then long enough for the runner to fall asleep. */
    if (i % 100 == 0)
      g_usleep (300);
  }
  return NULL;
}

static void
produce_all (struct runners *runners)
{
  struct producer producers[NR_PRODUCERS];

  for (unsigned i = 0; i < NR_PRODUCERS; i++) {
    producers[i] = (struct producer) { .runners = runners, .number = i };
    pthread_create (&producers[i].thread, NULL, produce, &producers[i]);
  }
  for (unsigned i = 0; i < NR_PRODUCERS; i++)
    pthread_join (producers[i].thread, NULL);
}

START_TEST (jobs_run_in_order_and_one_at_a_time)
{
  struct runners runners;

  memset (next_number, 0, sizeof next_number);
  nr_run = 0;
  ck_assert_int_eq (runners_start (&runners, 3), 0);
  produce_all (&runners);
  /* All that was accepted is done by then. */
  runners_stop (&runners);
  ck_assert (!wrong);
  ck_assert_uint_eq (nr_run, NR_PRODUCERS * NR_JOBS);
}
END_TEST

/* ---- Jobs that submit jobs --------------------------------------------- */

struct relay {
  struct runner_job job;
  struct runners *runners;
  unsigned remaining;
  unsigned nr_runners;
  sem_t *over;
};

/* On to the next runner, with the same job: it is ours again. */
static void
pass_on (struct runner_job *job, unsigned index)
{
  struct relay *relay = caa_container_of (job, struct relay, job);

  if (relay->remaining-- == 0)
    sem_post (relay->over);
  else
    runner_submit (relay->runners, (index + 1) % relay->nr_runners, job);
}

static void
run_relays (unsigned nr_runners, unsigned nr_relays, unsigned length)
{
  struct runners runners;
  g_autofree struct relay *relays = g_new0 (struct relay, nr_relays);
  sem_t over;

  sem_init (&over, 0, 0);
  ck_assert_int_eq (runners_start (&runners, nr_runners), 0);
  for (unsigned i = 0; i < nr_relays; i++) {
    relays[i] = (struct relay) { { .run = pass_on }, &runners, length,
                                 nr_runners, &over };
    runner_submit (&runners, i % nr_runners, &relays[i].job);
  }
  for (unsigned i = 0; i < nr_relays; i++)
    while (sem_wait (&over) == -1)
      continue;
  runners_stop (&runners);
  sem_destroy (&over);
}

/* With one relay and two runners, each falls asleep for each step: a lost
 * wake-up would be a hang.
 */
START_TEST (no_wake_up_is_lost)
{
  run_relays (2, 1, 20000);
}
END_TEST

START_TEST (jobs_that_jobs_submit_are_run)
{
  run_relays (1, 1, 5000);
  run_relays (4, 50, 1000);
}
END_TEST

/* Ping-pong between this thread and a runner. */
static sem_t pong;

static void
answer (struct runner_job *job, unsigned index)
{
  (void) job;
  (void) index;
  sem_post (&pong);
}

START_TEST (sleeping_runner_wakes_for_each_job)
{
  struct runners runners;
  struct runner_job job = { .run = answer };

  sem_init (&pong, 0, 0);
  ck_assert_int_eq (runners_start (&runners, 1), 0);
  for (int i = 0; i < 10000; i++) {
    runner_submit (&runners, 0, &job);
    while (sem_wait (&pong) == -1)
      continue;
    if (i % 1000 == 0)
      g_usleep (1000);
  }
  runners_stop (&runners);
  sem_destroy (&pong);
}
END_TEST

/* ---- The end ----------------------------------------------------------- */

START_TEST (stopping_runs_what_jobs_submit_to_their_own_runner)
{
  struct runners runners;
  struct relay relay = { { .run = pass_on }, &runners, 100, 1, NULL };
  sem_t over;

  sem_init (&over, 0, 0);
  relay.over = &over;
  ck_assert_int_eq (runners_start (&runners, 1), 0);
  runner_submit (&runners, 0, &relay.job);
  runners_stop (&runners);
  ck_assert_int_eq (sem_trywait (&over), 0);
  sem_destroy (&over);
}
END_TEST

START_TEST (runners_stop_and_start_again)
{
  struct runners runners;

  for (int i = 0; i < 20; i++) {
    ck_assert_int_eq (runners_start (&runners, 4), 0);
    ck_assert_uint_eq (runners.nr, 4);
    runners_stop (&runners);
    ck_assert_uint_eq (runners.nr, 0);
  }
  /* What is not started can be stopped. */
  runners_stop (&runners);
}
END_TEST

/* ---- The threads ------------------------------------------------------- */

struct look {
  struct runner_job job;
  char name[16];
  sigset_t blocked;
  sem_t over;
};

static void
look_around (struct runner_job *job, unsigned index)
{
  struct look *look = caa_container_of (job, struct look, job);

  (void) index;
  pthread_getname_np (pthread_self (), look->name, sizeof look->name);
  pthread_sigmask (SIG_SETMASK, NULL, &look->blocked);
  sem_post (&look->over);
}

START_TEST (threads_are_named_and_deaf_to_signals)
{
  static const int signals[] = { SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGCHLD,
                                 SIGPIPE, SIGALRM };
  struct runners runners;
  sigset_t ours;

  ck_assert_int_eq (runners_start (&runners, 2), 0);
  for (unsigned i = 0; i < 2; i++) {
    g_autofree char *name = g_strdup_printf ("ploop-run-%u", i);
    struct look look = { .job.run = look_around };

    sem_init (&look.over, 0, 0);
    runner_submit (&runners, i, &look.job);
    while (sem_wait (&look.over) == -1)
      continue;
    ck_assert_str_eq (look.name, name);
    for (size_t s = 0; s < G_N_ELEMENTS (signals); s++)
      ck_assert_int_eq (sigismember (&look.blocked, signals[s]), 1);
    sem_destroy (&look.over);
  }
  runners_stop (&runners);
  /* Those of the thread that started them are as before. */
  pthread_sigmask (SIG_SETMASK, NULL, &ours);
  ck_assert_int_eq (sigismember (&ours, SIGTERM), 0);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_loop_test (tcase, jobs_run_in_order_and_one_at_a_time, 0, 3);
  tcase_add_test (tcase, no_wake_up_is_lost);
  tcase_add_test (tcase, jobs_that_jobs_submit_are_run);
  tcase_add_test (tcase, sleeping_runner_wakes_for_each_job);
  tcase_add_test (tcase, stopping_runs_what_jobs_submit_to_their_own_runner);
  tcase_add_test (tcase, runners_stop_and_start_again);
  tcase_add_test (tcase, threads_are_named_and_deaf_to_signals);
}

int
main (void)
{
  return run_tests ("runner", add_tests);
}
