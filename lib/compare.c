/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Comparing two disks: ploop_compare in ploop-core.h.
 *
 * Several threads take pieces in order, read them from both and compare; holes that
 * both have are left out.  The first difference of all is wanted, so a thread that
 * finds one lets those that are at pieces before it go on.
 */

#include <config.h>

#include <pthread.h>
#include <string.h>

#include "store.h"
#include "thread.h"

#define PIECE_BYTES (UINT64_C (1) << 20)
#define NR_THREADS 4u

struct comparison {
  struct store *stores[2];
  uint64_t size;                /* of the larger one */

  pthread_mutex_t lock;         /* for what follows */
  pthread_cond_t changed;
  uint64_t next;                /* where the next piece is looked for */
  uint64_t done;                /* bytes, holes too */
  uint64_t compared;            /* bytes that were read */
  uint64_t difference;          /* the first one known; UINT64_MAX: none */
  unsigned nr_running;
  bool cancelled;
  GError *error;                /* the one at the lowest offset */
  uint64_t error_offset;        /* UINT64_MAX: none */
};

struct piece {
  uint64_t offset;
  size_t length;
};

/* Where the next data of either is, from OFFSET on. */
static uint64_t
next_data (struct comparison *comparison, uint64_t offset)
{
  uint64_t first = comparison->size;

  for (unsigned i = 0; i < 2; i++) {
    uint64_t start = offset, stop;

    if (store_next_data (comparison->stores[i], first, &start, &stop))
      first = MIN (first, start);
  }
  return first;
}

/* With the lock held.  Returns false when there is nothing left. */
static bool
take_piece (struct comparison *comparison, struct piece *piece)
{
  const uint64_t begin = comparison->next;
  uint64_t end;

  if (comparison->cancelled || comparison->error
      || begin >= comparison->difference || begin >= comparison->size)
    return false;
  piece->offset = next_data (comparison, begin);
  end = MIN ((piece->offset / PIECE_BYTES + 1) * PIECE_BYTES,
             comparison->size);
  comparison->next = piece->offset == comparison->size ? piece->offset : end;
  comparison->done += piece->offset - begin;
  piece->length = (size_t) (comparison->next - piece->offset);
  return piece->length > 0;
}

/* Where two pieces differ first; they do. */
static size_t
first_difference (const uint8_t *a, const uint8_t *b, size_t length)
{
  size_t i = 0;

  while (length - i > 4096 && memcmp (a + i, b + i, 4096) == 0)
    i += 4096;
  while (a[i] == b[i])
    i++;
  return i;
}

/* With the lock held: STORE has not let the piece be read.  Pieces are taken in
 * order, so all that lie before it are read, too, or about to be.
 */
static void
note_error (struct comparison *comparison, const struct piece *piece,
            const struct store *store, int r)
{
  if (piece->offset >= comparison->error_offset)
    return;
  comparison->error_offset = piece->offset;
  g_clear_error (&comparison->error);
  error_set_system (&comparison->error, r, "%s: cannot be read at byte %"
                    G_GUINT64_FORMAT, store_name (store), piece->offset);
}

/* With the lock held: the piece has been read into BUFS. */
static void
judge (struct comparison *comparison, const struct piece *piece,
       uint8_t *const bufs[2], bool same)
{
  comparison->done += piece->length;
  comparison->compared += piece->length;
  if (!same)
    comparison->difference =
      MIN (comparison->difference,
           piece->offset + first_difference (bufs[0], bufs[1], piece->length));
}

static int
read_both (struct comparison *comparison, const struct piece *piece,
           uint8_t *const bufs[2], unsigned *which)
{
  int r = 0;

  for (*which = 0; *which < 2; ++*which) {
    r = store_read (comparison->stores[*which], bufs[*which], piece->length,
                    piece->offset);
    if (r < 0)
      break;
  }
  return r;
}

static void
compare_piece (struct comparison *comparison, const struct piece *piece,
               uint8_t *const bufs[2])
{
  unsigned which;
  const int r = read_both (comparison, piece, bufs, &which);
  const bool same = r == 0 && memcmp (bufs[0], bufs[1], piece->length) == 0;

  pthread_mutex_lock (&comparison->lock);
  if (r == 0)
    judge (comparison, piece, bufs, same);
  else
    note_error (comparison, piece, comparison->stores[which], r);
  pthread_cond_broadcast (&comparison->changed);
}

/* Takes and leaves the lock. */
static void *
work (void *opaque)
{
  struct comparison *comparison = opaque;
  uint8_t *const bufs[2] = { g_malloc (PIECE_BYTES), g_malloc (PIECE_BYTES) };
  struct piece piece;

  pthread_mutex_lock (&comparison->lock);
  while (take_piece (comparison, &piece)) {
    pthread_mutex_unlock (&comparison->lock);
    compare_piece (comparison, &piece, bufs);
  }
  comparison->nr_running--;
  pthread_cond_broadcast (&comparison->changed);
  pthread_mutex_unlock (&comparison->lock);
  g_free (bufs[0]);
  g_free (bufs[1]);
  return NULL;
}

/* With the lock held, which is let go meanwhile. */
static void
tell_progress (struct comparison *comparison, ploop_progress_fn progress,
               void *opaque)
{
  const uint64_t done = comparison->done;
  bool goes_on;

  if (!progress || comparison->cancelled)
    return;
  pthread_mutex_unlock (&comparison->lock);
  goes_on = progress (opaque, done, comparison->size);
  pthread_mutex_lock (&comparison->lock);
  comparison->cancelled = !goes_on;
}

/* Returns 0 or a negative errno. */
static int
run_threads (struct comparison *comparison, ploop_progress_fn progress,
             void *opaque)
{
  pthread_t threads[NR_THREADS];
  unsigned nr = 0;
  int r = 0;

  pthread_mutex_lock (&comparison->lock);
  for (; nr < NR_THREADS && r == 0; nr += r == 0) {
    r = thread_start (&threads[nr], "ploop-compare", work, comparison);
    comparison->nr_running += r == 0;
  }
  tell_progress (comparison, progress, opaque);
  while (comparison->nr_running > 0) {
    pthread_cond_wait (&comparison->changed, &comparison->lock);
    tell_progress (comparison, progress, opaque);
  }
  pthread_mutex_unlock (&comparison->lock);
  for (unsigned i = 0; i < nr; i++)
    pthread_join (threads[i], NULL);
  return nr > 0 ? 0 : r;
}

static int
compare_content (struct comparison *comparison, ploop_progress_fn progress,
                 void *opaque, GError **error)
{
  int r;

  pthread_mutex_init (&comparison->lock, NULL);
  pthread_cond_init (&comparison->changed, NULL);
  r = run_threads (comparison, progress, opaque);
  pthread_mutex_destroy (&comparison->lock);
  pthread_cond_destroy (&comparison->changed);
  if (r < 0) {
    error_set_system (error, r, "threads cannot be started");
    return -1;
  }
  /* A difference before what cannot be read is one all the same. */
  if (comparison->error
      && comparison->difference >= comparison->error_offset) {
    g_propagate_error (error, comparison->error);
    return -1;
  }
  g_clear_error (&comparison->error);
  return 0;
}

static int
compare_stores (struct comparison *comparison,
                const struct ploop_compare_options *options,
                ploop_progress_fn progress, void *opaque,
                struct ploop_compare_result *result, GError **error)
{
  for (unsigned i = 0; i < 2; i++)
    result->sizes[i] = store_size (comparison->stores[i]);
  comparison->size = MAX (result->sizes[0], result->sizes[1]);
  if (options->strict && result->sizes[0] != result->sizes[1])
    result->offset = MIN (result->sizes[0], result->sizes[1]);
  else {
    if (compare_content (comparison, progress, opaque, error) == -1)
      return -1;
    result->offset = comparison->difference;
  }
  result->same = result->offset == UINT64_MAX;
  result->bytes_read = comparison->compared;
  result->interrupted = result->same && comparison->cancelled;
  return 0;
}

int
ploop_compare (const char *path, const char *other,
               const struct ploop_compare_options *options,
               ploop_progress_fn progress, void *opaque,
               struct ploop_compare_result *result, GError **error)
{
  static const struct ploop_compare_options none;
  const struct ploop_compare_options *o = options ? options : &none;
  const char *const names[] = { path, other };
  const struct log log = { o->log, o->log_opaque };
  struct comparison comparison = {
    .difference = UINT64_MAX,
    .error_offset = UINT64_MAX,
  };
  int r = 0;

  *result = (struct ploop_compare_result) { .same = false };
  for (unsigned i = 0; i < 2 && r == 0; i++) {
    comparison.stores[i] = store_open (names[i], o->snapshots[i], &log, error);
    r = comparison.stores[i] ? 0 : -1;
  }
  if (r == 0)
    r = compare_stores (&comparison, o, progress, opaque, result, error);
  store_close (comparison.stores[1]);
  store_close (comparison.stores[0]);
  return r;
}
