/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Copying a disk into another form: ploop_convert in ploop-core.h.
 *
 * What is data of the source is read piece by piece, and what of that is not zeros is
 * written.  A source that comes through a pipe is read to its end, on one thread, and
 * how large it is only that tells.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format.h"
#include "location.h"
#include "pieces.h"
#include "sink.h"
#include "store.h"
#include "stream.h"

struct conversion {
  struct store *store;          /* this, or: */
  int fd;                       /* a stream; -1: none */
  struct sink *sink;
  uint8_t *bufs[PIECES_NR_THREADS];
  uint64_t written;             /* bytes; by all threads */
  pthread_mutex_t lock;         /* for written */

  const char *path;
  const struct ploop_convert_options *options;
  struct log log;               /* the options' */
  ploop_progress_fn progress;   /* or NULL */
  void *progress_opaque;
  uint64_t size;                /* of the copy, or SINK_GROWS */
  uint64_t done;                /* of a stream, bytes */
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
set_write_error (uint64_t offset, int r, GError **error)
{
  error_set_system (error, r, "the copy cannot be written at byte %"
                    G_GUINT64_FORMAT, offset);
  return -1;
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
  return r < 0 ? set_write_error (offset, r, error) : 0;
}

/* ---- A disk that is there ---------------------------------------------- */

static int
copy_store (struct conversion *conversion,
            struct ploop_convert_result *result, GError **error)
{
  struct pieces pieces = {
    .size = store_size (conversion->store),
    .next_data = next_data,
    .work = convert_piece,
    .opaque = conversion,
    .in_order = sink_is_stream (conversion->sink),
    .progress = conversion->progress,
    .progress_opaque = conversion->progress_opaque,
  };
  const int r = pieces_run (&pieces, error);

  result->bytes_read = pieces.worked;
  result->interrupted = r == 0 && pieces.cancelled;
  return r;
}

/* ---- A disk that comes through a pipe ---------------------------------- */

static bool
goes_on (void *opaque)
{
  const struct conversion *conversion = opaque;

  return !conversion->progress
         || conversion->progress (conversion->progress_opaque,
                                  conversion->done,
                                  conversion->size == SINK_GROWS
                                    ? 0 : conversion->size);
}

/* Of what can only be read once, nothing but a raw disk can be read. */
static bool
check_stream (const struct conversion *conversion, const uint8_t *buf,
              size_t length, GError **error)
{
  const char *name = stream_title (conversion->path);
  struct format_header header;

  if (length == 0 && conversion->done == 0)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_FORMAT,
                 "%s: is empty: there is no disk", name);
  else if (conversion->done == 0 && length >= FORMAT_HEADER_SIZE
           && format_decode_header (buf, &header))
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_FORMAT,
                 "%s: what comes is a ploop image, which cannot be read in order: "
                 "give the name of its file", name);
  else if (length > conversion->size - conversion->done)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: is larger than the size that was given, %"
                 G_GUINT64_FORMAT " bytes", name, conversion->size);
  else
    return true;
  return false;
}

/* Returns 1 when there is more, 0 in the end, -1 with ERROR set. */
static int
copy_next (struct conversion *conversion, bool *interrupted, GError **error)
{
  uint8_t *buf = conversion->bufs[0];
  const ssize_t n = stream_read (conversion->fd, buf, PIECES_BYTES, goes_on,
                                 conversion);
  int r;

  *interrupted = n == -ECANCELED;
  if (*interrupted)
    return 0;
  if (n < 0) {
    error_set_system (error, (int) n, "%s: cannot be read at byte %"
                      G_GUINT64_FORMAT, stream_title (conversion->path),
                      conversion->done);
    return -1;
  }
  if (!check_stream (conversion, buf, (size_t) n, error))
    return -1;
  r = write_data (conversion, 0, buf, (size_t) n, conversion->done);
  if (r < 0)
    return set_write_error (conversion->done, r, error);
  conversion->done += (uint64_t) n;
  *interrupted = !goes_on (conversion);
  return n == PIECES_BYTES && !*interrupted;
}

static int
copy_stream (struct conversion *conversion,
             struct ploop_convert_result *result, GError **error)
{
  int r = goes_on (conversion) ? 1 : 0;

  result->interrupted = r == 0;
  while (r > 0)
    r = copy_next (conversion, &result->interrupted, error);
  result->bytes_read = conversion->done;
  if (conversion->size == SINK_GROWS) {
    conversion->size = conversion->done;
    sink_set_size (conversion->sink, conversion->size);
  }
  return r;
}

/* ---- Any of them ------------------------------------------------------- */

static int
copy_content (struct conversion *conversion,
              struct ploop_convert_result *result, GError **error)
{
  int r;

  pthread_mutex_init (&conversion->lock, NULL);
  for (unsigned i = 0; i < PIECES_NR_THREADS; i++)
    conversion->bufs[i] = g_malloc (PIECES_BYTES);
  r = conversion->store ? copy_store (conversion, result, error)
                        : copy_stream (conversion, result, error);
  for (unsigned i = 0; i < PIECES_NR_THREADS; i++)
    g_free (conversion->bufs[i]);
  pthread_mutex_destroy (&conversion->lock);
  result->bytes_written = conversion->written;
  return r;
}

/* Returns 0, also when interrupted. */
/* Is it the image that is read, alone, which is to be replaced by its copy? */
static bool
is_in_place (const struct conversion *conversion, const char *target)
{
  struct stat source, old;

  return conversion->store && !conversion->options->raw
         && location_is_image (AT_FDCWD, conversion->path, 0)
         && stat (conversion->path, &source) == 0 && lstat (target, &old) == 0
         && S_ISREG (old.st_mode) && source.st_dev == old.st_dev
         && source.st_ino == old.st_ino;
}

static int
open_sink (struct conversion *conversion, const char *target,
           struct ploop_convert_result *result, GError **error)
{
  const struct ploop_convert_options *options = conversion->options;
  const struct sink_options sink_options = {
    .raw = options->raw,
    .version = options->version,
    .cluster_size = options->cluster_size,
    .space = options->space,
    .descriptor = options->descriptor,
    .progress = conversion->progress,
    .progress_opaque = conversion->progress_opaque,
    .overwrite = options->overwrite,
    .in_place = is_in_place (conversion, target),
    .is_zero = options->target_is_zero,
    .nr_threads = PIECES_NR_THREADS,
  };

  conversion->sink =
    sink_open (target, conversion->size, &sink_options, &conversion->log,
               &result->interrupted, error);
  return conversion->sink || result->interrupted ? 0 : -1;
}

/* The copy has no bitmaps, and there would be nothing else that has. */
static bool
would_lose_bitmaps (const struct conversion *conversion, const char *target,
                    GError **error)
{
  struct ploop_info info;

  if (!is_in_place (conversion, target)
      || ploop_get_info (target, &info, NULL) == -1
      || info.extension_offset == 0 || info.cleanliness == PLOOP_DIRTY)
    return false;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: carries changed-block bitmaps, which its copy would not have: "
               "choose another name, or remove them (ploop-img bitmap remove)",
               target);
  return true;
}

static int
convert_to (struct conversion *conversion, const char *target,
            struct ploop_convert_result *result, GError **error)
{
  int r = would_lose_bitmaps (conversion, target, error)
            ? -1 : open_sink (conversion, target, result, error);

  if (!conversion->sink)
    return r;
  r = copy_content (conversion, result, error);
  result->size = conversion->size;
  if (r == 0 && !result->interrupted)
    return sink_finish (conversion->sink, error);
  sink_abandon (conversion->sink);
  return r;
}

static bool
take_size (struct conversion *conversion, GError **error)
{
  const uint64_t size = store_size (conversion->store);
  const uint64_t wanted = conversion->options->size;

  conversion->size = wanted ? wanted : size;
  if (conversion->size >= size)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: has %" G_GUINT64_FORMAT " bytes, and the copy cannot have "
               "less: %" G_GUINT64_FORMAT, conversion->path, size,
               conversion->size);
  return false;
}

static bool
open_source (struct conversion *conversion, GError **error)
{
  const struct ploop_convert_options *options = conversion->options;

  if (!stream_is (conversion->path)) {
    conversion->store =
      store_open (conversion->path, options->snapshot, &conversion->log,
                  error);
    return conversion->store && take_size (conversion, error);
  }
  conversion->size = options->size ? options->size : SINK_GROWS;
  if (options->snapshot) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: snapshot is %s, but what comes through a pipe is a raw disk, "
                 "and has none", stream_title (conversion->path),
                 options->snapshot);
    return false;
  }
  conversion->fd = stream_open (conversion->path, error);
  return conversion->fd >= 0;
}

/* Of an image only. */
static bool
check_target (const char *target, const struct ploop_convert_options *options,
              GError **error)
{
  const bool is_image =
    !options->raw && strcmp (target, "-") != 0 && !strstr (target, "://");

  if (is_image
      || (options->space == PLOOP_CREATE_SPARSE && !options->descriptor))
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: only an image can be preallocated or have a descriptor",
               target);
  return false;
}

int
ploop_convert (const char *path, const char *target,
               const struct ploop_convert_options *options,
               ploop_progress_fn progress, void *opaque,
               struct ploop_convert_result *result, GError **error)
{
  static const struct ploop_convert_options none;
  const struct ploop_convert_options *o = options ? options : &none;
  struct conversion conversion = {
    .fd = -1,
    .path = path,
    .options = o,
    .log = { o->log, o->log_opaque },
    .progress = progress,
    .progress_opaque = opaque,
  };
  int r = -1;

  *result = (struct ploop_convert_result) { .interrupted = false };
  if (check_target (target, o, error)
      && open_source (&conversion, error))
    r = convert_to (&conversion, target, result, error);
  store_close (conversion.store);
  if (conversion.fd >= 0)
    close (conversion.fd);
  return r;
}
