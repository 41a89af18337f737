/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Comparing two disks: ploop_compare in ploop-core.h. */

#include <config.h>

#include <pthread.h>
#include <string.h>

#include "pieces.h"
#include "store.h"

struct comparison {
  struct store *stores[2];
  uint64_t size;                /* of the larger one */
  uint8_t *bufs[PIECES_NR_THREADS][2];
  pthread_mutex_t lock;         /* for: */
  uint64_t difference;          /* the first one known; UINT64_MAX: none */
};

/* Where the next data of either is. */
static uint64_t
next_data (void *opaque, uint64_t offset)
{
  struct comparison *comparison = opaque;
  uint64_t first = comparison->size;

  for (unsigned i = 0; i < 2; i++) {
    uint64_t start = offset, stop;

    if (store_next_data (comparison->stores[i], first, &start, &stop))
      first = MIN (first, start);
  }
  return first;
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

static bool
read_both (struct comparison *comparison, uint8_t *const bufs[2],
           uint64_t offset, size_t length, GError **error)
{
  for (unsigned i = 0; i < 2; i++) {
    struct store *store = comparison->stores[i];
    const int r = store_read (store, bufs[i], length, offset);

    if (r < 0) {
      error_set_system (error, r, "%s: cannot be read at byte %"
                        G_GUINT64_FORMAT, store_name (store), offset);
      return false;
    }
  }
  return true;
}

static int
compare_piece (void *opaque, unsigned thread, uint64_t offset, size_t length,
               GError **error)
{
  struct comparison *comparison = opaque;
  uint8_t *const *bufs = comparison->bufs[thread];
  uint64_t difference;

  if (!read_both (comparison, bufs, offset, length, error))
    return -1;
  if (memcmp (bufs[0], bufs[1], length) == 0)
    return 0;
  difference = offset + first_difference (bufs[0], bufs[1], length);
  pthread_mutex_lock (&comparison->lock);
  comparison->difference = MIN (comparison->difference, difference);
  pthread_mutex_unlock (&comparison->lock);
  return 1;
}

static int
compare_content (struct comparison *comparison, struct pieces *pieces,
                 GError **error)
{
  int r;

  pthread_mutex_init (&comparison->lock, NULL);
  for (unsigned i = 0; i < 2 * PIECES_NR_THREADS; i++)
    comparison->bufs[i / 2][i % 2] = g_malloc (PIECES_BYTES);
  r = pieces_run (pieces, error);
  for (unsigned i = 0; i < 2 * PIECES_NR_THREADS; i++)
    g_free (comparison->bufs[i / 2][i % 2]);
  pthread_mutex_destroy (&comparison->lock);
  return r;
}

static int
compare_stores (struct comparison *comparison, bool strict,
                struct pieces *pieces, struct ploop_compare_result *result,
                GError **error)
{
  for (unsigned i = 0; i < 2; i++)
    result->sizes[i] = store_size (comparison->stores[i]);
  comparison->size = pieces->size =
    MAX (result->sizes[0], result->sizes[1]);
  if (strict && result->sizes[0] != result->sizes[1])
    result->offset = MIN (result->sizes[0], result->sizes[1]);
  else {
    if (compare_content (comparison, pieces, error) == -1)
      return -1;
    result->offset = comparison->difference;
  }
  result->same = result->offset == UINT64_MAX;
  result->bytes_read = pieces->worked;
  result->interrupted = result->same && pieces->cancelled;
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
  struct comparison comparison = { .difference = UINT64_MAX };
  struct pieces pieces = {
    .next_data = next_data,
    .work = compare_piece,
    .opaque = &comparison,
    .progress = progress,
    .progress_opaque = opaque,
  };
  int r = 0;

  *result = (struct ploop_compare_result) { .same = false };
  for (unsigned i = 0; i < 2 && r == 0; i++) {
    comparison.stores[i] = store_open (names[i], o->snapshots[i], &log, error);
    r = comparison.stores[i] ? 0 : -1;
  }
  if (r == 0)
    r = compare_stores (&comparison, o->strict, &pieces, result, error);
  store_close (comparison.stores[1]);
  store_close (comparison.stores[0]);
  return r;
}
