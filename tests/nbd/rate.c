/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Throughput; see rate.h.  The time of every request is kept and sorted at the end, so
 * percentiles are exact.  A connection has a thread, and an answer's slot is used again
 * at once.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libnbd.h>

#include "harness.h"
#include "rate.h"
#include "server.h"

struct worker;

struct slot {
  struct worker *worker;
  uint8_t *buf;
  double begin;
  bool is_free;
};

struct worker {
  const struct rate *rate;
  pthread_t thread;
  struct nbd_handle *nbd;
  struct rng rng;
  uint64_t first, nr_blocks, next;      /* of those that are its own */
  double end;
  unsigned nr_in_flight;
  struct slot slots[RATE_MAX_DEPTH];
  float *microseconds;
  size_t nr_answered, room;
};

static int
answered (void *opaque, int *error)
{
  struct slot *slot = opaque;
  struct worker *worker = slot->worker;

  if (*error != 0)
    fail ("a request fails: %s", strerror (*error));
  if (worker->nr_answered == worker->room) {
    worker->room = worker->room == 0 ? 4096 : 2 * worker->room;
    worker->microseconds = realloc (worker->microseconds,
                                    worker->room * sizeof (float));
    if (worker->microseconds == NULL)
      abort ();
  }
  worker->microseconds[worker->nr_answered++] =
    (float) ((now_seconds () - slot->begin) * 1e6);
  worker->nr_in_flight--;
  slot->is_free = true;
  return 1;
}

static uint64_t
choose_offset (struct worker *worker)
{
  const uint64_t n = worker->rate->sequential
                       ? worker->next++ % worker->nr_blocks
                       : rng_below (&worker->rng, worker->nr_blocks);

  return (worker->first + n) * worker->rate->block;
}

static void
start_request (struct worker *worker, struct slot *slot)
{
  const struct rate *rate = worker->rate;
  const nbd_completion_callback done = {
    .callback = answered, .user_data = slot,
  };
  const uint64_t offset = choose_offset (worker);
  int64_t r;

  slot->is_free = false;
  slot->begin = now_seconds ();
  worker->nr_in_flight++;
  if (rng_percent (&worker->rng, rate->write_percent))
    r = nbd_aio_pwrite (worker->nbd, slot->buf, rate->block, offset, done, 0);
  else
    r = nbd_aio_pread (worker->nbd, slot->buf, rate->block, offset, done, 0);
  if (r == -1)
    fail_nbd ("throughput");
}

static void *
run_worker (void *arg)
{
  struct worker *worker = arg;
  const unsigned depth = worker->rate->depth;

  for (;;) {
    for (unsigned i = 0; i < depth && now_seconds () < worker->end; i++)
      if (worker->slots[i].is_free)
        start_request (worker, &worker->slots[i]);
    if (worker->nr_in_flight == 0)
      return NULL;
    if (nbd_poll (worker->nbd, HANG_SECONDS * 1000) != 1)
      fail_nbd ("throughput");
  }
}

static void
prepare (struct worker *worker, const struct rate *rate, unsigned number)
{
  const uint64_t nr_blocks = rate->length / rate->block;

  worker->rate = rate;
  worker->nbd = server_connect_uri (rate->uri);
  rng_init (&worker->rng, 1000 + number);
  worker->nr_blocks =
    rate->sequential ? nr_blocks / rate->nr_connections : nr_blocks;
  worker->first = rate->sequential ? number * worker->nr_blocks : 0;
  for (unsigned i = 0; i < rate->depth; i++) {
    worker->slots[i] = (struct slot) {
      .worker = worker, .buf = malloc (rate->block), .is_free = true,
    };
    if (worker->slots[i].buf == NULL)
      abort ();
    memset (worker->slots[i].buf, (int) (number + i) | 1, rate->block);
  }
}

static int
compare_floats (const void *a, const void *b)
{
  const float x = *(const float *) a, y = *(const float *) b;

  return (x > y) - (x < y);
}

/* All workers' times, sorted (free). */
static float *
sort_times (const struct worker *workers, unsigned nr_workers, size_t *nr)
{
  float *all;

  *nr = 0;
  for (unsigned i = 0; i < nr_workers; i++)
    *nr += workers[i].nr_answered;
  all = malloc ((*nr + 1) * sizeof *all);
  if (all == NULL)
    abort ();
  *nr = 0;
  for (unsigned i = 0; i < nr_workers; i++)
    for (size_t n = 0; n < workers[i].nr_answered; n++)
      all[(*nr)++] = workers[i].microseconds[n];
  qsort (all, *nr, sizeof *all, compare_floats);
  return all;
}

static void
report (const struct rate *rate, const struct worker *workers, double seconds)
{
  static const double percentiles[] = { 50, 90, 99, 99.9 };
  size_t nr;
  float *times = sort_times (workers, rate->nr_connections, &nr);

  if (nr == 0)
    fail ("no request was answered");
  printf ("%zu requests of %" PRIu64 " bytes, %u%% writes, %s, %u connections, "
          "%u in flight each\n", nr, rate->block, rate->write_percent,
          rate->sequential ? "sequential" : "random", rate->nr_connections,
          rate->depth);
  printf ("%.1f MB/s, %.0f IOPS\nmicroseconds:",
          (double) nr * (double) rate->block / seconds / 1e6,
          (double) nr / seconds);
  for (size_t i = 0; i < ARRAY_SIZE (percentiles); i++)
    printf (" p%g %.0f,", percentiles[i],
            times[(size_t) ((double) (nr - 1) * percentiles[i] / 100)]);
  printf (" max %.0f\n", times[nr - 1]);
  free (times);
}

void
rate_run (const struct rate *rate)
{
  struct worker *workers = calloc (rate->nr_connections, sizeof *workers);
  double begin;

  if (workers == NULL)
    abort ();
  for (unsigned i = 0; i < rate->nr_connections; i++)
    prepare (&workers[i], rate, i);
  begin = now_seconds ();
  for (unsigned i = 0; i < rate->nr_connections; i++) {
    workers[i].end = begin + rate->seconds;
    if (pthread_create (&workers[i].thread, NULL, run_worker, &workers[i]) != 0)
      fail ("pthread_create");
  }
  for (unsigned i = 0; i < rate->nr_connections; i++)
    pthread_join (workers[i].thread, NULL);
  report (rate, workers, now_seconds () - begin);
  for (unsigned i = 0; i < rate->nr_connections; i++) {
    server_disconnect (workers[i].nbd);
    for (unsigned n = 0; n < rate->depth; n++)
      free (workers[i].slots[n].buf);
    free (workers[i].microseconds);
  }
  free (workers);
}
