/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Working through a disk: see pieces.h.
 *
 * What counts is the first piece that fails or ends it.  When a later one does so
 * earlier, those before it have been taken already, and come to their end.
 */

#include <config.h>

#include <pthread.h>

#include "error.h"
#include "pieces.h"
#include "thread.h"

struct run {
  struct pieces *pieces;
  pthread_mutex_t lock;         /* for what follows */
  pthread_cond_t changed;
  uint64_t next;                /* where the next piece is looked for */
  uint64_t done;                /* bytes, holes too */
  uint64_t limit;               /* the piece there was the last one wanted */
  GError *error;                /* of the piece there; NULL: it ended it */
  unsigned nr_begun, nr_running;
};

struct piece {
  uint64_t offset;
  size_t length;
};

/* With the lock held.  Returns false when there is nothing left. */
static bool
take (struct run *run, struct piece *piece)
{
  struct pieces *pieces = run->pieces;
  const uint64_t begin = run->next;
  uint64_t end;

  if (pieces->cancelled || run->limit != UINT64_MAX || begin >= pieces->size)
    return false;
  piece->offset = pieces->next_data (pieces->opaque, begin);
  end = MIN ((piece->offset / PIECES_BYTES + 1) * PIECES_BYTES, pieces->size);
  run->next = MAX (piece->offset, end);
  run->done += piece->offset - begin;
  piece->length = (size_t) (run->next - piece->offset);
  return piece->length > 0;
}

/* With the lock held: work on the piece has returned R. */
static void
note (struct run *run, const struct piece *piece, int r, GError *error)
{
  run->done += piece->length;
  run->pieces->worked += piece->length;
  if (r != 0 && piece->offset < run->limit) {
    run->limit = piece->offset;
    g_clear_error (&run->error);
    run->error = error;
  }
  else if (error)
    g_error_free (error);
  pthread_cond_broadcast (&run->changed);
}

static void *
work (void *opaque)
{
  struct run *run = opaque;
  const struct pieces *pieces = run->pieces;
  struct piece piece;
  unsigned thread;

  pthread_mutex_lock (&run->lock);
  thread = run->nr_begun++;
  while (take (run, &piece)) {
    GError *error = NULL;
    int r;

    pthread_mutex_unlock (&run->lock);
    r = pieces->work (pieces->opaque, thread, piece.offset, piece.length,
                      &error);
    pthread_mutex_lock (&run->lock);
    note (run, &piece, r, error);
  }
  run->nr_running--;
  pthread_cond_broadcast (&run->changed);
  pthread_mutex_unlock (&run->lock);
  return NULL;
}

/* With the lock held, which is let go meanwhile. */
static void
tell (struct run *run)
{
  struct pieces *pieces = run->pieces;
  const uint64_t done = run->done;
  bool goes_on;

  if (!pieces->progress || pieces->cancelled)
    return;
  pthread_mutex_unlock (&run->lock);
  goes_on = pieces->progress (pieces->progress_opaque, done, pieces->size);
  pthread_mutex_lock (&run->lock);
  pieces->cancelled = !goes_on;
}

/* One thread is enough.  Returns 0 or a negative errno. */
static int
run_threads (struct run *run)
{
  pthread_t threads[PIECES_NR_THREADS];
  const unsigned nr_wanted = run->pieces->in_order ? 1 : PIECES_NR_THREADS;
  unsigned nr = 0;
  int r = 0;

  pthread_mutex_lock (&run->lock);
  tell (run);
  for (; nr < nr_wanted; nr++) {
    r = thread_start (&threads[nr], "ploop-pieces", work, run);
    if (r < 0)
      break;
    run->nr_running++;
  }
  while (run->nr_running > 0) {
    pthread_cond_wait (&run->changed, &run->lock);
    tell (run);
  }
  pthread_mutex_unlock (&run->lock);
  for (unsigned i = 0; i < nr; i++)
    pthread_join (threads[i], NULL);
  return nr > 0 ? 0 : r;
}

int
pieces_run (struct pieces *pieces, GError **error)
{
  struct run run = { .pieces = pieces, .limit = UINT64_MAX };
  int r;

  pieces->worked = 0;
  pieces->cancelled = false;
  pthread_mutex_init (&run.lock, NULL);
  pthread_cond_init (&run.changed, NULL);
  r = run_threads (&run);
  pthread_mutex_destroy (&run.lock);
  pthread_cond_destroy (&run.changed);
  if (r < 0)
    error_set_system (error, r, "threads cannot be started");
  else if (run.error) {
    g_propagate_error (error, run.error);
    r = -1;
  }
  return r < 0 ? -1 : 0;
}
