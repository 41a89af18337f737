/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Worker threads: see runner.h.
 *
 * The hard part is going to sleep.  The runner says that it will, looks into
 * its queue once more, and sleeps; a producer puts its job in and then looks
 * whether the runner said so.  With a full barrier between the two steps on
 * either side, at least one of them sees the other: no wake-up is lost.
 */

#include <config.h>

#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <glib.h>

#include "runner.h"
#include "thread.h"

/* ---- Sleeping ---------------------------------------------------------- */

static void
futex_wait (_Atomic int *word, int value)
{
  /* Woken for no reason or with a changed word: the caller looks again. */
  syscall (SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void
futex_wake (_Atomic int *word)
{
  syscall (SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void
wake (struct runner *runner)
{
  /* Pairs with the fence in sleep_until_work. */
  atomic_thread_fence (memory_order_seq_cst);
  if (atomic_load_explicit (&runner->asleep, memory_order_relaxed)
      && atomic_exchange (&runner->asleep, 0))
    futex_wake (&runner->asleep);
}

static bool
has_work (struct runner *runner)
{
  return !cds_wfcq_empty (&runner->head, &runner->tail)
         || atomic_load (runner->stopping);
}

static void
sleep_until_work (struct runner *runner)
{
  atomic_store_explicit (&runner->asleep, 1, memory_order_relaxed);
  /* Pairs with the fence in wake. */
  atomic_thread_fence (memory_order_seq_cst);
  while (!has_work (runner) && atomic_load (&runner->asleep))
    futex_wait (&runner->asleep, 1);
  atomic_store_explicit (&runner->asleep, 0, memory_order_relaxed);
}

/* ---- Working ----------------------------------------------------------- */

/* Run what is queued now.  Returns false when there was nothing. */
static bool
run_batch (struct runner *runner)
{
  struct __cds_wfcq_head head;
  struct cds_wfcq_tail tail;
  struct cds_wfcq_node *node, *next;

  __cds_wfcq_init (&head, &tail);
  if (__cds_wfcq_splice_blocking (&head, &tail, &runner->head, &runner->tail)
      == CDS_WFCQ_RET_SRC_EMPTY)
    return false;
  /* The next one is looked up before a job runs: it may be gone after. */
  __cds_wfcq_for_each_blocking_safe (&head, &tail, node, next) {
    struct runner_job *job = caa_container_of (node, struct runner_job, node);

    TAKES_OVER (job);
    job->run (job, runner->index);
  }
  return true;
}

static void *
run (void *opaque)
{
  struct runner *runner = opaque;

  for (;;) {
    if (run_batch (runner))
      continue;
    /* Nothing can follow what was put in before. */
    if (atomic_load (runner->stopping) && !run_batch (runner))
      return NULL;
    sleep_until_work (runner);
  }
}

void
runner_submit (struct runners *runners, unsigned index,
               struct runner_job *job)
{
  struct runner *runner = &runners->runner[index];

  HANDS_OVER (job);
  cds_wfcq_node_init (&job->node);
  cds_wfcq_enqueue (&runner->head, &runner->tail, &job->node);
  wake (runner);
}

/* ---- Starting and stopping --------------------------------------------- */

static int
start_runner (struct runners *runners, unsigned index)
{
  struct runner *runner = &runners->runner[index];
  char name[32];

  runner->index = index;
  runner->stopping = &runners->stopping;
  __cds_wfcq_init (&runner->head, &runner->tail);
  snprintf (name, sizeof name, "ploop-run-%u", index);
  return thread_start (&runner->thread, name, run, runner);
}

int
runners_start (struct runners *runners, unsigned nr)
{
  *runners = (struct runners) { 0 };
  runners->runner = g_aligned_alloc0 (nr, sizeof *runners->runner, 64);
  for (; runners->nr < nr; runners->nr++) {
    int r = start_runner (runners, runners->nr);

    if (r < 0) {
      runners_stop (runners);
      return r;
    }
  }
  return 0;
}

void
runners_stop (struct runners *runners)
{
  atomic_store (&runners->stopping, true);
  for (unsigned i = 0; i < runners->nr; i++)
    wake (&runners->runner[i]);
  for (unsigned i = 0; i < runners->nr; i++)
    pthread_join (runners->runner[i].thread, NULL);
  g_clear_pointer (&runners->runner, g_aligned_free);
  runners->nr = 0;
}
