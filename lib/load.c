/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Requests to measure by: see load.h.
 *
 * Whichever thread completes a request begins the next one in its place, so that none
 * waits for the thread that called.  That one only looks at the clock.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "load.h"

/* Good for every device's direct I/O. */
#define BUFFER_ALIGNMENT 4096u

/* What is told apart by whoever looks for blocks that are the same. */
#define STAMP_BYTES 4096u

#define TICK_NS 100000000

struct slot {
  ploop_request request;
  struct run *run;
};

/* What the threads share. */
struct run {
  const struct load *load;
  struct slot *slots;
  uint8_t *buffers;
  uint64_t stamp;               /* the next one */
  gint64 begun, end;            /* us of the monotonic clock */
  pthread_mutex_t lock;         /* for what follows, and load->next */
  pthread_cond_t ended;
  unsigned nr_under_way;
  uint64_t bytes;               /* of what is complete */
  bool stopped;
  int result;                   /* the first error, or 0 */
};

/* ---- Requests ---------------------------------------------------------- */

static void
stamp (struct run *run, ploop_request *request)
{
  for (uint64_t i = 0; i + sizeof run->stamp <= request->length;
       i += STAMP_BYTES) {
    memcpy ((char *) request->buf + i, &run->stamp, sizeof run->stamp);
    run->stamp++;
  }
}

/* With the lock: is REQUEST to be begun once more?  It is filled in then. */
static bool
fill_request (struct run *run, ploop_request *request)
{
  const struct load *load = run->load;

  if (run->stopped || run->result < 0 || g_get_monotonic_time () >= run->end
      || !load->next (load->opaque, &request->offset, &request->length))
    return false;
  if (load->operation == PLOOP_WRITE)
    stamp (run, request);
  return true;
}

/* With the lock: a request has come to its end, and no other takes its place. */
static void
end_one (struct run *run, int result)
{
  if (run->result == 0)
    run->result = result;
  run->nr_under_way--;
  pthread_cond_signal (&run->ended);
}

/* Begin REQUEST, which counts as under way. */
static void
begin (struct run *run, ploop_request *request)
{
  const int r = ploop_submit (run->load->image, request);

  if (r == 0)
    return;
  pthread_mutex_lock (&run->lock);
  end_one (run, r);
  pthread_mutex_unlock (&run->lock);
}

static void
complete (ploop_request *request, int result)
{
  struct run *run = ((struct slot *) request->opaque)->run;
  bool again;

  pthread_mutex_lock (&run->lock);
  if (result == 0)
    run->bytes += request->length;
  else if (run->result == 0)
    run->result = result;
  again = fill_request (run, request);
  if (!again)
    end_one (run, 0);
  pthread_mutex_unlock (&run->lock);
  if (again)
    begin (run, request);
}

static void
begin_all (struct run *run)
{
  const struct load *load = run->load;

  for (unsigned i = 0; i < load->depth; i++) {
    struct slot *slot = &run->slots[i];
    bool begun;

    slot->run = run;
    slot->request.operation = load->operation;
    slot->request.flags = 0;
    slot->request.buf = run->buffers + (size_t) i * load->block_size;
    slot->request.complete = complete;
    slot->request.opaque = slot;
    pthread_mutex_lock (&run->lock);
    begun = fill_request (run, &slot->request);
    run->nr_under_way += begun;
    pthread_mutex_unlock (&run->lock);
    if (begun)
      begin (run, &slot->request);
  }
}

/* ---- Waiting ----------------------------------------------------------- */

/* With the lock: wait until a request ends, or for a tick. */
static void
wait_a_tick (struct run *run)
{
  struct timespec until;

  clock_gettime (CLOCK_MONOTONIC, &until);
  until.tv_nsec += TICK_NS;
  if (until.tv_nsec >= 1000000000) {
    until.tv_nsec -= 1000000000;
    until.tv_sec++;
  }
  pthread_cond_timedwait (&run->ended, &run->lock, &until);
}

static bool
tick (struct run *run)
{
  bool goes_on;

  pthread_mutex_unlock (&run->lock);
  goes_on = run->load->tick (run->load->opaque);
  pthread_mutex_lock (&run->lock);
  return goes_on;
}

static void
wait_for_all (struct run *run)
{
  pthread_mutex_lock (&run->lock);
  while (run->nr_under_way > 0) {
    wait_a_tick (run);
    if (run->load->tick && !run->stopped && !tick (run))
      run->stopped = true;
  }
  pthread_mutex_unlock (&run->lock);
}

/* ---- All of it --------------------------------------------------------- */

/* Not zeros, nor anything that a store could make small. */
static void
fill_buffers (const struct run *run, size_t bytes)
{
  GRand *random = g_rand_new ();

  for (size_t i = 0; i + sizeof (guint32) <= bytes; i += sizeof (guint32)) {
    const guint32 number = g_rand_int (random);

    memcpy (run->buffers + i, &number, sizeof number);
  }
  g_rand_free (random);
}

static void
init_locks (struct run *run)
{
  pthread_condattr_t attributes;

  pthread_condattr_init (&attributes);
  pthread_condattr_setclock (&attributes, CLOCK_MONOTONIC);
  pthread_cond_init (&run->ended, &attributes);
  pthread_condattr_destroy (&attributes);
  pthread_mutex_init (&run->lock, NULL);
}

int
load_run (const struct load *load, struct load_result *result)
{
  const size_t bytes = (size_t) load->depth * load->block_size;
  g_autofree struct slot *slots = g_new0 (struct slot, load->depth);
  struct run run = {
    .load = load,
    .slots = slots,
    .stamp = (uint64_t) g_get_real_time () << 16,
  };
  void *buffers = NULL;

  if (posix_memalign (&buffers, BUFFER_ALIGNMENT, bytes) != 0)
    return -ENOMEM;
  run.buffers = buffers;
  if (load->operation == PLOOP_WRITE)
    fill_buffers (&run, bytes);
  init_locks (&run);
  run.begun = g_get_monotonic_time ();
  run.end = run.begun + (gint64) load->milliseconds * 1000;
  begin_all (&run);
  wait_for_all (&run);
  pthread_cond_destroy (&run.ended);
  pthread_mutex_destroy (&run.lock);
  free (buffers);
  *result = (struct load_result) { run.bytes, run.begun, run.stopped };
  return run.result;
}
