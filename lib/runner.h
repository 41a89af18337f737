/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Worker threads and their queues.
 *
 * Each runner has one queue.  Any thread may put a job into it without waiting
 * for anybody; the runner takes all that are there at once, and sleeps when
 * there are none.  Jobs of one runner run one after the other, in the order in
 * which they were put in: what must not happen at the same time goes to the
 * same runner.
 *
 *   function        may be called from
 *   runner_submit   any thread, jobs too, until runners_stop is called
 *   the others      one thread
 */

#ifndef PLOOP_LIB_RUNNER_H
#define PLOOP_LIB_RUNNER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "rcu.h"

struct runner_job {
  struct cds_wfcq_node node;    /* the queue's */
  /* Called on runner INDEX.  The job is the caller's again by then. */
  void (*run) (struct runner_job *job, unsigned index);
};

struct runner {
  /* The producers' end and the consumer's on cache lines of their own. */
  struct cds_wfcq_tail tail __attribute__ ((aligned (64)));
  _Atomic int asleep;           /* a futex: 1 while the runner sleeps */
  struct __cds_wfcq_head head __attribute__ ((aligned (64)));
  unsigned index;
  pthread_t thread;
  _Atomic bool *stopping;
};

struct runners {
  struct runner *runner;        /* an array */
  unsigned nr;                  /* 0: not started */
  _Atomic bool stopping;
};

/* Start NR threads, named ploop-run-0 and so on, all signals blocked.  Returns
 * 0 or a negative errno, with none running.
 */
int runners_start (struct runners *runners, unsigned nr);

/* Run the jobs that are queued, and those that they submit to their own runner,
 * and end.
 */
void runners_stop (struct runners *runners);

/* Put JOB, whose run is set, into the queue of runner INDEX.  Wait-free; one
 * system call when the runner sleeps.
 */
void runner_submit (struct runners *runners, unsigned index,
                    struct runner_job *job);

#endif /* PLOOP_LIB_RUNNER_H */
