/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The workload: see workload.h.
 *
 * A thread never has two requests in flight for one sector, so that histories
 * have an order.  Completions only note the moment and the result; the thread
 * adds to the history when it comes by.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "rules.h"
#include "workload.h"

#define NR_SECTORS WORKLOAD_NR_SECTORS
#define SECTOR 512u
/* Sectors in a row that belong to one thread, in the shared half. */
#define RUN 8u
#define MAX_LENGTH 192u         /* sectors of a request */
#define MAX_IN_FLIGHT 16u

enum what {
  DO_WRITE,
  DO_ZERO,
  DO_TRIM,
  DO_STRAY_TRIM,
  DO_READ,
  DO_FLUSH,
};

/* Sectors that belong to one thread. */
struct piece {
  uint64_t first, nr;
};

struct worker;

struct operation {
  ploop_request request;
  struct worker *worker;
  enum what what;
  uint64_t sector, nr;
  struct change change;
  unsigned stray_trim;
  int result;
  bool busy;
  _Atomic bool done;
  uint8_t *memory, *buf;        /* at any alignment */
};

struct worker {
  const struct workload *workload;
  unsigned index;
  pthread_t thread;
  GRand *random;
  GArray *pieces;               /* of struct piece */
  struct operation operations[MAX_IN_FLIGHT];
  sem_t completed;
};

static ploop_image *image;
static _Atomic bool working;

static uint64_t
nr_clusters (const struct workload *workload)
{
  return (NR_SECTORS + workload->cluster_sectors - 1)
         / workload->cluster_sectors;
}

/* The half where threads share clusters: sectors. */
static uint64_t
shared_end (const struct workload *workload)
{
  return nr_clusters (workload) / 2 * workload->cluster_sectors;
}

static bool
chance (GRand *random, unsigned percent)
{
  return (unsigned) g_rand_int_range (random, 0, 100) < percent;
}

static uint64_t
up_to (GRand *random, uint64_t n)
{
  return (uint64_t) g_rand_int_range (random, 0, (gint32) n);
}

/* ---- Who owns what ----------------------------------------------------- */

static GArray *
own_pieces (const struct workload *workload, unsigned index)
{
  GArray *pieces = g_array_new (FALSE, FALSE, sizeof (struct piece));
  const uint64_t shared = shared_end (workload);
  const uint64_t group =
    MAX (3u, 3 * RUN / workload->cluster_sectors) * workload->cluster_sectors;

  for (uint64_t s = index * RUN; s < shared; s += RUN * workload->nr_threads) {
    const struct piece piece = { s, MIN (RUN, shared - s) };

    g_array_append_val (pieces, piece);
  }
  for (uint64_t s = shared + index * group; s < NR_SECTORS;
       s += group * workload->nr_threads) {
    const struct piece piece = { s, MIN (group, NR_SECTORS - s) };

    /* As often as all runs together, roughly. */
    for (uint64_t i = 0; i < group; i += RUN)
      g_array_append_val (pieces, piece);
  }
  return pieces;
}

/* The part of a range that is whole clusters: sectors. */
static void
whole_clusters (const struct workload *workload, uint64_t sector, uint64_t nr,
                uint64_t *first, uint64_t *end)
{
  const uint64_t size = workload->cluster_sectors;

  *first = MIN ((sector + size - 1) / size * size, sector + nr);
  *end = sector + nr == NR_SECTORS ? NR_SECTORS
                                   : (sector + nr) / size * size;
  *end = MAX (*first, *end);
}

/* ---- One operation ----------------------------------------------------- */

static bool
is_busy (const struct worker *worker, uint64_t sector, uint64_t nr)
{
  for (unsigned i = 0; i < worker->workload->in_flight; i++) {
    const struct operation *other = &worker->operations[i];

    if (other->busy && other->what != DO_FLUSH && other->what != DO_STRAY_TRIM
        && sector < other->sector + other->nr
        && other->sector < sector + nr)
      return true;
  }
  return false;
}

static enum what
choose_what (struct worker *worker)
{
  const struct workload *w = worker->workload;
  unsigned n = (unsigned) up_to (worker->random, 100);

  if (n < w->flushes)
    return DO_FLUSH;
  n -= w->flushes;
  if (n < w->zeroes)
    return DO_ZERO;
  n -= w->zeroes;
  if (n < w->trims)
    return DO_TRIM;
  n -= w->trims;
  if (n < w->stray_trims)
    return DO_STRAY_TRIM;
  n -= w->stray_trims;
  return n < w->reads ? DO_READ : DO_WRITE;
}

static const struct piece *
choose_piece (struct worker *worker)
{
  double x = g_rand_double (worker->random);

  if (worker->workload->hot)
    x = x * x * x;
  return &g_array_index (worker->pieces, struct piece,
                         (guint) (x * worker->pieces->len));
}

/* A range of the thread's own that nothing in flight touches. */
static bool
choose_own_range (struct worker *worker, struct operation *operation)
{
  for (int tries = 0; tries < 8; tries++) {
    const struct piece *piece = choose_piece (worker);
    uint64_t from = up_to (worker->random, piece->nr);
    uint64_t nr = 1 + up_to (worker->random, piece->nr - from);

    /* Whole clusters, as a rule. */
    if (operation->what == DO_TRIM && chance (worker->random, 80)) {
      from -= from % worker->workload->cluster_sectors;
      nr = MIN (piece->nr - from,
                nr + worker->workload->cluster_sectors);
    }
    operation->sector = piece->first + from;
    operation->nr = MIN (nr, MAX_LENGTH);
    if (!is_busy (worker, operation->sector, operation->nr))
      return true;
  }
  return false;
}

static void
choose_shared_range (struct worker *worker, struct operation *operation)
{
  const uint64_t shared = shared_end (worker->workload);

  operation->sector = up_to (worker->random, shared);
  operation->nr =
    1 + up_to (worker->random, MIN (shared - operation->sector,
                                    4 * worker->workload->cluster_sectors));
}

static void
fill_request (struct worker *worker, struct operation *operation)
{
  static const enum ploop_operation codes[] = {
    [DO_WRITE] = PLOOP_WRITE,
    [DO_ZERO] = PLOOP_ZERO,
    [DO_TRIM] = PLOOP_TRIM,
    [DO_STRAY_TRIM] = PLOOP_TRIM,
    [DO_READ] = PLOOP_READ,
    [DO_FLUSH] = PLOOP_FLUSH,
  };
  const bool changes =
    operation->what != DO_READ && operation->what != DO_FLUSH;
  const bool fua = changes && chance (worker->random, worker->workload->forced);
  ploop_request *request = &operation->request;

  request->operation = codes[operation->what];
  request->flags = fua ? PLOOP_FUA : 0;
  if (operation->what == DO_ZERO && chance (worker->random, 60))
    request->flags |= PLOOP_UNMAP;
  request->buf = operation->buf;
  request->offset = operation->sector * SECTOR;
  request->length = operation->nr * SECTOR;
  operation->change = (struct change) {
    .forced = fua || worker->workload->options.cache
                       == PLOOP_CACHE_WRITETHROUGH,
    .trim = operation->what == DO_TRIM,
  };
}

static void
stamp_all (struct operation *operation)
{
  operation->change.number = rules_new_number ();
  for (uint64_t i = 0; i < operation->nr; i++)
    rules_stamp (operation->buf + i * SECTOR, operation->sector + i,
                 operation->change.number);
}

/* Returns false when all that it could touch is busy. */
static bool
prepare (struct worker *worker, struct operation *operation)
{
  operation->what = choose_what (worker);
  operation->sector = operation->nr = 0;
  if (operation->what == DO_STRAY_TRIM)
    choose_shared_range (worker, operation);
  else if (operation->what != DO_FLUSH
           && !choose_own_range (worker, operation))
    return false;
  operation->buf =
    operation->memory + (chance (worker->random, 50)
                           ? 0 : 8 * up_to (worker->random, 512));
  fill_request (worker, operation);
  if (operation->what == DO_WRITE)
    stamp_all (operation);
  operation->change.begun = recorder_now ();
  if (operation->what == DO_STRAY_TRIM)
    operation->stray_trim =
      rules_begin_stray_trim (operation->sector,
                              operation->sector + operation->nr,
                              operation->change.begun);
  return true;
}

/* May a request have failed with this? */
static void
judge_result (const struct workload *workload, int result)
{
  if (result == 0 || (result == -ENOSPC && workload->may_lack_space)
      || (result == -EIO && workload->may_fail))
    return;
  rules_break ("a request failed: %s", g_strerror (-result));
}

/* What was copied lazily is filled in at the latest then. */
static bool
may_not_close (const struct workload *workload)
{
  return workload->may_fail
         || (workload->may_lack_space
             && workload->options.copy_on_write == PLOOP_COPY_LAZY);
}

/* Whole clusters are zeros from then on.  Parts of others may be, at any time, or
 * stay: like a change that has failed.  So may clusters that cannot be unmapped,
 * because a lower delta has them.
 */
static void
add_trim (const struct workload *workload, const struct operation *operation)
{
  const uint64_t stop = operation->sector + operation->nr;
  struct change part = operation->change;
  uint64_t first, end;

  part.failed = true;
  whole_clusters (workload, operation->sector, operation->nr, &first, &end);
  rules_add_change (operation->sector, first - operation->sector, &part);
  for (uint64_t next; first < end; first = next) {
    const uint64_t cluster = first / workload->cluster_sectors;

    next = MIN ((cluster + 1) * workload->cluster_sectors, end);
    rules_add_change (first, next - first,
                      workload->covered && workload->covered[cluster]
                        ? &part : &operation->change);
  }
  rules_add_change (end, stop - end, &part);
}

/* Answered: put down what may be there from now on, and judge what was read. */
static void
end_operation (struct worker *worker, struct operation *operation)
{
  const struct claim now = rules_claim_now ();
  struct change *change = &operation->change;

  change->failed = operation->result < 0;
  judge_result (worker->workload, operation->result);
  switch (operation->what) {
  case DO_WRITE:
  case DO_ZERO:
    rules_add_change (operation->sector, operation->nr, change);
    break;
  case DO_TRIM:
    add_trim (worker->workload, operation);
    break;
  case DO_STRAY_TRIM:
    rules_end_stray_trim (operation->stray_trim, change->answered);
    break;
  case DO_FLUSH:
    if (!change->failed)
      rules_add_flush (change->begun, change->answered);
    break;
  case DO_READ:
    for (uint64_t i = 0; i < operation->nr && !change->failed; i++)
      rules_check_sector (operation->buf + i * SECTOR, operation->sector + i,
                          &now, "read");
    break;
  }
  operation->busy = false;
}

static void
on_complete (ploop_request *request, int result)
{
  struct operation *operation = request->opaque;

  operation->result = result;
  operation->change.answered = recorder_now ();
  atomic_store (&operation->done, true);
  sem_post (&operation->worker->completed);
}

static int
do_and_wait (const ploop_request *request)
{
  switch (request->operation) {
  case PLOOP_READ:
    return ploop_pread (image, request->buf, request->length,
                        request->offset);
  case PLOOP_WRITE:
    return ploop_pwrite (image, request->buf, request->length,
                         request->offset, request->flags);
  case PLOOP_ZERO:
    return ploop_zero (image, request->length, request->offset,
                       request->flags);
  case PLOOP_TRIM:
    return ploop_trim (image, request->length, request->offset,
                       request->flags);
  default:
    return ploop_flush (image);
  }
}

static void
begin_operation (struct worker *worker, struct operation *operation)
{
  int r;

  operation->busy = true;
  if (worker->workload->in_flight == 1 || chance (worker->random, 30)) {
    operation->result = do_and_wait (&operation->request);
    operation->change.answered = recorder_now ();
    end_operation (worker, operation);
    return;
  }
  operation->done = false;
  operation->request.complete = on_complete;
  operation->request.opaque = operation;
  r = ploop_submit (image, &operation->request);
  if (r < 0)
    g_error ("ploop_submit: %s", g_strerror (-r));
}

/* ---- Threads ----------------------------------------------------------- */

/* Returns one that is not in flight; NULL when all are. */
static struct operation *
collect (struct worker *worker)
{
  struct operation *idle = NULL;

  for (unsigned i = 0; i < worker->workload->in_flight; i++) {
    struct operation *operation = &worker->operations[i];

    if (operation->busy && atomic_load (&operation->done))
      end_operation (worker, operation);
    if (!operation->busy)
      idle = operation;
  }
  return idle;
}

static bool
has_busy (const struct worker *worker)
{
  for (unsigned i = 0; i < worker->workload->in_flight; i++)
    if (worker->operations[i].busy)
      return true;
  return false;
}

static void *
work (void *opaque)
{
  struct worker *worker = opaque;

  for (unsigned i = 0; i < worker->workload->nr_operations && !rules_broken;) {
    struct operation *operation = collect (worker);

    if (operation && prepare (worker, operation)) {
      begin_operation (worker, operation);
      i++;
    }
    else if (!operation)
      sem_wait (&worker->completed);
  }
  for (collect (worker); has_busy (worker); collect (worker))
    sem_wait (&worker->completed);
  return NULL;
}

static struct worker *
start_worker (const struct workload *workload, unsigned index, uint32_t seed)
{
  struct worker *worker = g_new0 (struct worker, 1);

  worker->workload = workload;
  worker->index = index;
  worker->random = g_rand_new_with_seed (seed + index);
  worker->pieces = own_pieces (workload, index);
  sem_init (&worker->completed, 0, 0);
  for (unsigned i = 0; i < workload->in_flight; i++) {
    worker->operations[i].worker = worker;
    worker->operations[i].memory =
      g_aligned_alloc (MAX_LENGTH * SECTOR + 4096, 1, 4096);
  }
  if (pthread_create (&worker->thread, NULL, work, worker) != 0)
    g_error ("pthread_create");
  return worker;
}

static void
end_worker (struct worker *worker)
{
  pthread_join (worker->thread, NULL);
  for (unsigned i = 0; i < worker->workload->in_flight; i++)
    g_aligned_free (worker->operations[i].memory);
  g_array_unref (worker->pieces);
  g_rand_free (worker->random);
  sem_destroy (&worker->completed);
  g_free (worker);
}

/* ---- The keeper -------------------------------------------------------- */

/* Read all that others write meanwhile.  A sector may be read half written, but
 * never as another's.
 */
static void
look_at_all (const struct workload *workload, uint8_t *bytes)
{
  const int r = ploop_pread (image, bytes, NR_SECTORS * SECTOR, 0);
  uint64_t number;

  judge_result (workload, r);
  for (uint64_t i = 0; i < NR_SECTORS && r == 0; i++)
    if (rules_read_stamp (bytes + i * SECTOR, i, &number) == STAMP_FOREIGN)
      rules_break ("rule 4, all read: sector %" G_GUINT64_FORMAT " holds what "
                   "was written to sector %" G_GUINT64_FORMAT, i, number);
}

static void
suspend (const struct workload *workload, GRand *random, GArray *suspended)
{
  const int r = ploop_suspend (image);
  uint64_t moment, nr_changes;

  judge_result (workload, r);
  if (r < 0)
    return;
  nr_changes = recorder_nr_changes ();
  moment = recorder_now ();
  rules_add_flush (moment, moment);
  moment++;
  g_array_append_val (suspended, moment);
  g_usleep (up_to (random, 2000));
  if (recorder_nr_changes () != nr_changes) {
    g_autofree char *text = recorder_describe_change (nr_changes);

    rules_break ("rule 7: the file changed while suspended (moment %"
                 G_GUINT64_FORMAT "): %s", moment, text);
  }
  ploop_resume (image);
}

struct keeper {
  const struct workload *workload;
  uint32_t seed;
  GArray *suspended;
};

static void *
keep (void *opaque)
{
  struct keeper *keeper = opaque;
  GRand *random = g_rand_new_with_seed (keeper->seed + 100);
  g_autofree uint8_t *bytes = g_malloc (NR_SECTORS * SECTOR);

  while (atomic_load (&working) && !rules_broken) {
    const gint64 begun = g_get_monotonic_time ();

    if (keeper->workload->suspends && chance (random, 70))
      suspend (keeper->workload, random, keeper->suspended);
    else
      look_at_all (keeper->workload, bytes);
    /* Leave the others most of the time. */
    g_usleep (up_to (random, 4000)
              + 2 * (gulong) (g_get_monotonic_time () - begun));
  }
  g_rand_free (random);
  return NULL;
}

/* ---- All together ------------------------------------------------------ */

/* Nobody writes any more. */
static void
check_all (const struct workload *workload)
{
  const struct claim now = rules_claim_now ();
  g_autofree uint8_t *bytes = g_malloc (NR_SECTORS * SECTOR);
  const int r = ploop_pread (image, bytes, NR_SECTORS * SECTOR, 0);

  judge_result (workload, r);
  for (uint64_t i = 0; i < NR_SECTORS && r == 0; i++)
    rules_check_sector (bytes + i * SECTOR, i, &now, "read at the end");
}

void
workload_run (const struct workload *workload, const char *path,
              uint32_t seed, uint64_t *closing, GArray *suspended)
{
  struct keeper keeper = { workload, seed, suspended };
  struct worker *workers[16];
  g_autoptr (GError) error = NULL;
  pthread_t keeper_thread;

  image = ploop_open (path, &workload->options, &error);
  if (!image) {
    /* One that was not closed is synced first, which may be what fails. */
    if (!workload->may_fail || !strstr (error->message, "cannot be synced"))
      rules_break ("it does not open for writing: %s", error->message);
    *closing = recorder_now ();
    return;
  }
  atomic_store (&working, true);
  if (pthread_create (&keeper_thread, NULL, keep, &keeper) != 0)
    g_error ("pthread_create");
  for (unsigned i = 0; i < workload->nr_threads; i++)
    workers[i] = start_worker (workload, i, seed);
  for (unsigned i = 0; i < workload->nr_threads; i++)
    end_worker (workers[i]);
  atomic_store (&working, false);
  pthread_join (keeper_thread, NULL);

  check_all (workload);
  *closing = recorder_now ();
  if (ploop_close (image, &error) == -1 && !may_not_close (workload))
    rules_break ("%s", error->message);
}
