/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A request's way: see submit.h.
 *
 * Runners own stripes of the disk by turns: runner I of N has stripes I, N + I,
 * 2N + I and so on.  A stripe is at least STRIPE_BYTES, so that neighbouring
 * small clusters are still read and written together.
 */

#include <config.h>

#include <errno.h>
#include <semaphore.h>

#include "submit.h"

#define STRIPE_BYTES (UINT64_C (1) << 20)

/* Zeroing and trimming take the gate anew for each piece of about this many
 * bytes, so that a request for a whole disk holds nobody up.
 */
#define PIECE_BYTES (UINT64_C (1) << 30)

/* One runner's part of a request: in its queue, or waiting for space. */
union part {
  struct runner_job job;
  struct flusher_waiter waiter;
};

/* What the library keeps in a request. */
struct work {
  union part parts[PLOOP_MAX_RUNNERS];
  struct group_waiter waiter;
  struct submit *submit;
  uint64_t begun;
  _Atomic unsigned nr_parts;    /* that are not done */
  _Atomic int result;           /* of the first that failed */
  _Atomic bool durable;         /* no part needs a commit */
  _Atomic unsigned waited;      /* parts that have waited for room: bits */
};

G_STATIC_ASSERT (sizeof (struct work)
                 <= sizeof (((ploop_request *) NULL)->reserved));

static struct work *
request_work (ploop_request *request)
{
  return (struct work *) request->reserved;
}

static ploop_request *
request_of (struct work *work)
{
  return (ploop_request *) ((char *) work
                            - offsetof (ploop_request, reserved));
}

void
submit_init (struct submit *submit, struct disk *disk, bool fast_path,
             bool force)
{
  const uint64_t cluster_size = disk->delta->layout.cluster_size;

  *submit = (struct submit) {
    .disk = disk,
    .fast_path = fast_path,
    .force = force,
    .stripe = MAX (STRIPE_BYTES / cluster_size, 1) * cluster_size,
  };
  pthread_mutex_init (&submit->drain_lock, NULL);
  pthread_cond_init (&submit->drained, NULL);
}

void
submit_destroy (struct submit *submit)
{
  pthread_mutex_destroy (&submit->drain_lock);
  pthread_cond_destroy (&submit->drained);
}

/* ---- What a request does ----------------------------------------------- */

static bool
is_forced (const struct submit *submit, const ploop_request *request)
{
  return request->operation != PLOOP_READ
         && request->operation != PLOOP_FLUSH
         && (submit->force || (request->flags & PLOOP_FUA));
}

/* Do LENGTH bytes of REQUEST that begin DONE bytes into it.  OWNER is 0 or
 * REQUEST_OWNER.  *DURABLE is cleared when a commit is needed for FUA.
 */
static int
do_range (struct submit *submit, const ploop_request *request, uint64_t done,
          uint64_t length, unsigned owner, bool *durable)
{
  struct disk *disk = submit->disk;
  char *buf = (char *) request->buf + done;
  const uint64_t offset = request->offset + done;

  switch (request->operation) {
  case PLOOP_READ:
    return request_read (disk, buf, (size_t) length, offset, owner);
  case PLOOP_WRITE:
    return request_write (disk, buf, (size_t) length, offset,
                          owner | (is_forced (submit, request) ? PLOOP_FUA : 0),
                          durable);
  case PLOOP_ZERO:
    return request_zero (disk, length, offset, owner | request->flags,
                         durable);
  case PLOOP_TRIM:
    return request_trim (disk, length, offset, durable);
  case PLOOP_FLUSH:
    return 0;
  default:
    return -EINVAL;
  }
}

/* May clusters be unmapped by it? */
static bool
is_unmapping (const ploop_request *request)
{
  return request->operation == PLOOP_TRIM
         || (request->operation == PLOOP_ZERO
             && (request->flags & PLOOP_UNMAP));
}

/* Outside the gate, before a piece of it. */
static void
prepare_unmapping (struct submit *submit, const ploop_request *request)
{
  if (is_unmapping (request))
    trims_wait_for_room (&submit->disk->trims);
}

/* After all of it.  Zeros have been promised; of what is trimmed, nothing. */
static int
end_unmapping (struct submit *submit, const ploop_request *request, int r)
{
  int end;

  if (!is_unmapping (request))
    return r;
  end = request_end_unmapping (submit->disk, request->length,
                               request->offset);
  return r == 0 && request->operation == PLOOP_ZERO ? end : r;
}

/* A disk that nobody may write has nothing to commit. */
static bool
needs_commit (const struct submit *submit, const ploop_request *request,
              int result, bool durable)
{
  if (request->operation == PLOOP_FLUSH)
    return result == 0 && !submit->disk->delta->read_only;
  return result == 0 && !durable && is_forced (submit, request);
}

static void
count (struct submit *submit, const ploop_request *request, int result,
       uint64_t begun, enum stats_counter way)
{
  static const enum stats_counter bytes[] = {
    [PLOOP_READ] = STATS_READ_BYTES,
    [PLOOP_WRITE] = STATS_WRITE_BYTES,
    [PLOOP_ZERO] = STATS_ZERO_BYTES,
    [PLOOP_TRIM] = STATS_TRIM_BYTES,
  };
  struct stats *stats = submit->disk->stats;

  if (request->operation != PLOOP_FLUSH)
    stats_add (stats, bytes[request->operation], request->length);
  if (is_forced (submit, request))
    stats_add (stats, STATS_FUA, 1);
  stats_add (stats, way, 1);
  if (G_UNLIKELY (result < 0))
    stats_add (stats, STATS_FAILED, 1);
  stats_end (stats, request->operation, begun);
}

/* ---- Through the runners ----------------------------------------------- */

static void
complete (struct work *work, int result)
{
  ploop_request *request = request_of (work);
  struct submit *submit = work->submit;

  count (submit, request, result, work->begun, STATS_QUEUED);
  request->complete (request, result);
  /* The request is gone. */
  if (atomic_fetch_sub (&submit->nr_accepted, 1) == 1
      && atomic_load (&submit->draining)) {
    pthread_mutex_lock (&submit->drain_lock);
    pthread_cond_broadcast (&submit->drained);
    pthread_mutex_unlock (&submit->drain_lock);
  }
}

static void
complete_after_commit (struct group_waiter *waiter, int result)
{
  complete (caa_container_of (waiter, struct work, waiter), result);
}

/* All parts are done. */
static void
finish (struct work *work)
{
  struct submit *submit = work->submit;
  struct disk *disk = submit->disk;
  ploop_request *request = request_of (work);
  int result = atomic_load (&work->result);

  result = end_unmapping (submit, request, result);
  if (needs_commit (submit, request, result, atomic_load (&work->durable))) {
    work->waiter.done = complete_after_commit;
    if (!commit_join (&disk->commit, &work->waiter, &result)) {
      flusher_ask (&disk->flusher, FLUSHER_LEAD);
      return;
    }
  }
  complete (work, result);
}

static void
end_part (struct work *work, int result)
{
  int none = 0;

  if (result < 0)
    atomic_compare_exchange_strong (&work->result, &none, result);
  if (atomic_fetch_sub (&work->nr_parts, 1) == 1)
    finish (work);
}

static struct work *
work_of (union part *part, unsigned index)
{
  return caa_container_of (part - index, struct work, parts[0]);
}

static void run_part (struct runner_job *job, unsigned index);

static void
queue_part (struct work *work, unsigned index)
{
  work->parts[index].job.run = run_part;
  runner_submit (work->submit->disk->runners, index,
                 &work->parts[index].job);
}

static void
resume_part (struct flusher_waiter *waiter, int result)
{
  const unsigned index = waiter->tag;
  struct work *work =
    work_of (caa_container_of (waiter, union part, waiter), index);

  if (result < 0)
    end_part (work, result);
  else
    queue_part (work, index);
}

/* A write that found no room has given back the cluster that it took, and that
 * is on its way like those that were trimmed: hoping for it again and again would
 * never end.  So one time must do, but where waiting is what was asked for.
 */
static bool
may_wait (struct work *work, unsigned index, int needed)
{
  const unsigned bit = 1u << index;

  return needed == REQUEST_NEEDS_CLUSTER
         || work->submit->disk->flusher.wait_for_space
         || !(atomic_fetch_or (&work->waited, bit) & bit);
}

static void
wait_for_space (struct work *work, unsigned index, int needed)
{
  struct flusher_waiter *waiter = &work->parts[index].waiter;

  waiter->tag = index;
  waiter->needs_cluster = needed == REQUEST_NEEDS_CLUSTER;
  waiter->resume = resume_part;
  flusher_wait (&work->submit->disk->flusher, waiter);
}

/* The stripe of ours after the one at START.  What no delta has need not be
 * trimmed.
 */
static uint64_t
next_start (struct work *work, uint64_t start, uint64_t round)
{
  const struct submit *submit = work->submit;
  const ploop_request *request = request_of (work);
  const uint64_t cluster_size = submit->disk->delta->layout.cluster_size;
  const struct map *map = &submit->disk->map;
  uint64_t mapped;

  start += round;
  if (request->operation != PLOOP_TRIM)
    return start;
  mapped = map_next_mapped (map, MIN (start / cluster_size, map->nr_clusters),
                            map->nr_clusters);
  if (mapped * cluster_size >= start + submit->stripe)
    start += (mapped * cluster_size - start) / round * round;
  return start;
}

/* Do what runner INDEX owns of a request. */
static int
do_part (struct work *work, unsigned index, bool *durable)
{
  struct submit *submit = work->submit;
  const ploop_request *request = request_of (work);
  const uint64_t stripe = submit->stripe;
  const uint64_t round = stripe * submit->disk->runners->nr;
  const uint64_t end = request->offset + request->length;
  /* The stripe of ours that begins last at or before the request. */
  uint64_t start = request->offset / round * round + index * stripe;
  int r = 0;

  for (; start < end && r == 0; start = next_start (work, start, round)) {
    const uint64_t from = MAX (start, request->offset);
    const uint64_t to = MIN (start + stripe, end);

    if (from >= to)
      continue;                 /* the request begins behind it */
    prepare_unmapping (submit, request);
    gate_enter_late (&submit->disk->gate);
    r = do_range (submit, request, from - request->offset, to - from,
                  REQUEST_OWNER, durable);
    gate_leave (&submit->disk->gate);
  }
  return r;
}

static void
run_part (struct runner_job *job, unsigned index)
{
  struct work *work = work_of (caa_container_of (job, union part, job), index);
  bool durable = true;
  int r = do_part (work, index, &durable);

  if (!durable)
    atomic_store (&work->durable, false);
  if (r <= 0)
    end_part (work, r);
  else if (may_wait (work, index, r))
    wait_for_space (work, index, r);
  else
    end_part (work, -ENOSPC);
}

/* Which runners own a part of a request: bits. */
static unsigned
owners (const struct submit *submit, const ploop_request *request)
{
  const unsigned nr = submit->disk->runners->nr;
  const uint64_t first = request->offset / submit->stripe;
  const uint64_t last =
    (request->offset + MAX (request->length, 1) - 1) / submit->stripe;
  unsigned bits = 0;

  if (request->length == 0)
    return 1;
  for (uint64_t stripe = first; stripe <= last && stripe < first + nr;
       stripe++)
    bits |= 1u << stripe % nr;
  return bits;
}

int
submit_queue (struct submit *submit, ploop_request *request)
{
  struct work *work = request_work (request);
  unsigned bits;
  int r = gate_admit (&submit->disk->gate);

  if (r < 0)
    return r;
  atomic_fetch_add (&submit->nr_accepted, 1);
  gate_leave (&submit->disk->gate);

  if (request->operation == PLOOP_FLUSH)
    request->length = request->offset = 0;
  bits = owners (submit, request);
  work->submit = submit;
  work->begun = stats_begin (submit->disk->stats);
  work->nr_parts = (unsigned) __builtin_popcount (bits);
  work->result = 0;
  work->durable = true;
  work->waited = 0;
  /* With the last part queued, the request may be gone. */
  for (; bits != 0; bits &= bits - 1)
    queue_part (work, (unsigned) __builtin_ctz (bits));
  return 0;
}

void
submit_drain (struct submit *submit)
{
  pthread_mutex_lock (&submit->drain_lock);
  atomic_store (&submit->draining, true);
  while (atomic_load (&submit->nr_accepted) > 0)
    pthread_cond_wait (&submit->drained, &submit->drain_lock);
  pthread_mutex_unlock (&submit->drain_lock);
}

/* ---- Waiting ----------------------------------------------------------- */

struct sleeper {
  sem_t wake;
  int result;
};

static void
wake_sleeper (ploop_request *request, int result)
{
  struct sleeper *sleeper = request->opaque;

  sleeper->result = result;
  sem_post (&sleeper->wake);
}

static int
queue_and_sleep (struct submit *submit, ploop_request *request)
{
  struct sleeper sleeper;
  int r;

  sem_init (&sleeper.wake, 0, 0);
  request->complete = wake_sleeper;
  request->opaque = &sleeper;
  r = submit_queue (submit, request);
  if (r == 0) {
    while (sem_wait (&sleeper.wake) == -1)
      continue;                 /* a signal */
    r = sleeper.result;
  }
  sem_destroy (&sleeper.wake);
  return r;
}

/* In the caller's thread, LENGTH bytes that begin DONE bytes into it. */
static int
do_inside (struct submit *submit, const ploop_request *request, uint64_t done,
           uint64_t length, bool *durable)
{
  int r = gate_enter (&submit->disk->gate);

  if (r < 0)
    return r;
  r = do_range (submit, request, done, length, 0, durable);
  gate_leave (&submit->disk->gate);
  return r;
}

/* How much of a request, of which DONE bytes are done, is done at once.  Clusters
 * are not cut: half of one is trimmed in another way.
 */
static uint64_t
next_piece (const struct submit *submit, const ploop_request *request,
            uint64_t done)
{
  const uint64_t left = request->length - done;
  const uint64_t piece =
    MAX (PIECE_BYTES / submit->stripe, 1) * submit->stripe;

  if (request->operation != PLOOP_ZERO && request->operation != PLOOP_TRIM)
    return left;
  return MIN (left, piece - (request->offset + done) % piece);
}

static int
do_here (struct submit *submit, const ploop_request *request)
{
  const uint64_t begun = stats_begin (submit->disk->stats);
  bool durable = true;
  uint64_t done = 0;
  int r;

  do {
    const uint64_t n = next_piece (submit, request, done);

    prepare_unmapping (submit, request);
    r = do_inside (submit, request, done, n, &durable);
    done += n;
  } while (r == 0 && done < request->length);
  if (r <= 0)
    r = end_unmapping (submit, request, r);
  /* Outside the gate: nobody shall wait for a sync who waits for a grace
   * period.
   */
  if (needs_commit (submit, request, r, durable))
    r = commit_flush (&submit->disk->commit);
  if (r <= 0)
    count (submit, request, r, begun, STATS_FAST_PATH);
  return r;
}

int
submit_and_wait (struct submit *submit, ploop_request *request)
{
  if (submit->fast_path) {
    int r = do_here (submit, request);

    if (r <= 0)
      return r;
  }
  return queue_and_sleep (submit, request);
}
