/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Copying a disk into another form: ploop_convert in ploop-core.h.
 *
 * What is data of the source is read piece by piece, and what of that is not zeros is
 * written.
 */

#include <config.h>

#include <pthread.h>
#include <string.h>

#include "format.h"
#include "pieces.h"
#include "sink.h"
#include "store.h"

struct conversion {
  struct store *store;
  struct sink *sink;
  uint8_t *bufs[PIECES_NR_THREADS];
  uint64_t written;             /* bytes; by all threads */
  pthread_mutex_t lock;         /* for written */
};

static uint64_t
next_data (void *opaque, uint64_t offset)
{
  struct conversion *conversion = opaque;
  const uint64_t size = store_size (conversion->store);
  uint64_t stop;

  return store_next_data (conversion->store, size, &offset, &stop) ? offset
                                                                   : size;
}

/* Returns 0 or a negative errno. */
static int
write_data (struct conversion *conversion, unsigned thread,
            const uint8_t *buf, size_t length, uint64_t offset)
{
  uint64_t written;
  const int r = sink_write_data (conversion->sink, thread, buf, length, offset,
                                 &written);

  pthread_mutex_lock (&conversion->lock);
  conversion->written += written;
  pthread_mutex_unlock (&conversion->lock);
  return r;
}

static int
convert_piece (void *opaque, unsigned thread, uint64_t offset, size_t length,
               GError **error)
{
  struct conversion *conversion = opaque;
  uint8_t *buf = conversion->bufs[thread];
  int r = store_read (conversion->store, buf, length, offset);

  if (r < 0) {
    error_set_system (error, r, "%s: cannot be read at byte %"
                      G_GUINT64_FORMAT, store_name (conversion->store),
                      offset);
    return -1;
  }
  r = write_data (conversion, thread, buf, length, offset);
  if (r < 0)
    error_set_system (error, r, "the copy cannot be written at byte %"
                      G_GUINT64_FORMAT, offset);
  return r < 0 ? -1 : 0;
}

static int
copy_content (struct conversion *conversion, struct pieces *pieces,
              GError **error)
{
  int r;

  pthread_mutex_init (&conversion->lock, NULL);
  for (unsigned i = 0; i < PIECES_NR_THREADS; i++)
    conversion->bufs[i] = g_malloc (PIECES_BYTES);
  r = pieces_run (pieces, error);
  for (unsigned i = 0; i < PIECES_NR_THREADS; i++)
    g_free (conversion->bufs[i]);
  pthread_mutex_destroy (&conversion->lock);
  return r;
}

static int
convert_store (struct conversion *conversion, const char *target,
               const struct ploop_convert_options *options,
               struct pieces *pieces, struct ploop_convert_result *result,
               GError **error)
{
  const struct log log = { options->log, options->log_opaque };
  const struct sink_options sink_options = {
    .raw = options->raw,
    .version = options->version,
    .cluster_size = options->cluster_size,
    .overwrite = options->overwrite,
    .is_zero = options->target_is_zero,
    .nr_threads = PIECES_NR_THREADS,
  };
  int r;

  result->size = pieces->size = store_size (conversion->store);
  conversion->sink =
    sink_open (target, result->size, &sink_options, &log, error);
  if (!conversion->sink)
    return -1;
  pieces->in_order = sink_is_stream (conversion->sink);
  r = copy_content (conversion, pieces, error);
  result->bytes_read = pieces->worked;
  result->bytes_written = conversion->written;
  result->interrupted = r == 0 && pieces->cancelled;
  if (r == 0 && !result->interrupted)
    return sink_finish (conversion->sink, error);
  sink_abandon (conversion->sink);
  return r;
}

int
ploop_convert (const char *path, const char *target,
               const struct ploop_convert_options *options,
               ploop_progress_fn progress, void *opaque,
               struct ploop_convert_result *result, GError **error)
{
  static const struct ploop_convert_options none;
  const struct ploop_convert_options *o = options ? options : &none;
  const struct log log = { o->log, o->log_opaque };
  struct conversion conversion = { .store = NULL };
  struct pieces pieces = {
    .next_data = next_data,
    .work = convert_piece,
    .opaque = &conversion,
    .progress = progress,
    .progress_opaque = opaque,
  };
  int r;

  *result = (struct ploop_convert_result) { .interrupted = false };
  conversion.store = store_open (path, o->snapshot, &log, error);
  if (!conversion.store)
    return -1;
  r = convert_store (&conversion, target, o, &pieces, result, error);
  store_close (conversion.store);
  return r;
}
