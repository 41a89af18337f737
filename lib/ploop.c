/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The public face of a disk: see ploop-core.h.
 *
 * A disk is one image, or, if it is split, several in a row.  What is asked of a
 * range is checked here, and handed to the images that have it.
 */

#include <config.h>

#include <errno.h>

#include "engine.h"
#include "image.h"
#include "parts.h"

#define DEFAULT_PREALLOC (UINT64_C (128) << 20)
#define DEFAULT_COPY_DELAY 500u /* ms */

/* ---- Options ----------------------------------------------------------- */

static bool
check_options (const struct ploop_open_options *options, const char *path,
               GError **error)
{
  if (options->runners <= PLOOP_MAX_RUNNERS
      && options->cache <= PLOOP_CACHE_WRITETHROUGH
      && options->prealloc_mode <= PLOOP_PREALLOC_TRUNCATE
      && options->enospc <= PLOOP_ENOSPC_WAIT
      && options->discard <= PLOOP_DISCARD_OFF
      && options->detect_zeroes <= PLOOP_DETECT_ZEROES_UNMAP
      && options->copy_on_write <= PLOOP_COPY_LAZY
      && options->prealloc <= PLOOP_MAX_PREALLOC
      && options->copy_delay <= PLOOP_MAX_DELAY
      && options->writeback_delay <= PLOOP_MAX_DELAY)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: an option is out of range: runners %u (at most %u), prealloc "
               "%" G_GUINT64_FORMAT " (%" G_GUINT64_FORMAT "), copy delay %u "
               "and write-back delay %u ms (%u), cache %d, prealloc mode %d, "
               "enospc %d, discard %d, detect zeroes %d, copy-on-write %d", path,
               options->runners, PLOOP_MAX_RUNNERS, options->prealloc,
               PLOOP_MAX_PREALLOC, options->copy_delay,
               options->writeback_delay, PLOOP_MAX_DELAY, (int) options->cache,
               (int) options->prealloc_mode, (int) options->enospc,
               (int) options->discard, (int) options->detect_zeroes,
               (int) options->copy_on_write);
  return false;
}

static struct ploop_open_options
with_defaults (const struct ploop_open_options *options)
{
  struct ploop_open_options all = { 0 };

  if (options)
    all = *options;
  if (all.runners == 0)
    all.runners = engine_default_runners ();
  if (all.prealloc == 0)
    all.prealloc = DEFAULT_PREALLOC;
  if (all.copy_delay == 0)
    all.copy_delay = DEFAULT_COPY_DELAY;
  return all;
}

/* ---- Opening and closing ----------------------------------------------- */

/* LOCATION is the caller's to clear, whatever comes of it. */
static bool
open_part (ploop_image *image, const char *path, unsigned part,
           const struct ploop_open_options *options,
           struct location *location, GError **error)
{
  const struct log log = { options->log, options->log_opaque };
  struct image *opened;

  if (!location_find (location, path, part, options, &log, error))
    return false;
  if (part > 0 && location->nr_parts != image->nr_parts) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_IN_USE,
                 "%s: was changed while the disk was opened: try again", path);
    return false;
  }
  if (parts_share_file (image, location, error))
    return false;
  opened = image_open (location, options, error);
  return opened && parts_add (image, location, opened, error);
}

static bool
open_other_parts (ploop_image *image, const char *path,
                  const struct ploop_open_options *options, GError **error)
{
  bool ok = true;

  for (unsigned i = 1; ok && i < image->nr_parts; i++) {
    struct location location = { NULL };

    ok = open_part (image, path, i, options, &location, error);
    location_clear (&location);
  }
  return ok;
}

/* The descriptor is locked last: what is refused leaves no lock file behind. */
static bool
open_parts (ploop_image *image, const char *path,
            const struct ploop_open_options *options, GError **error)
{
  struct location location = { NULL };
  const bool ok =
    open_part (image, path, 0, options, &location, error)
    && open_other_parts (image, path, options, error)
    && image_lock (image->parts[0].image, &location, options, error);

  if (!ok)
    location_undo (&location);
  location_clear (&location);
  return ok;
}

static void
free_parts (ploop_image *image)
{
  for (unsigned i = 0; i < image->nr_open; i++)
    image_free (image->parts[i].image);
  g_free (image->parts);
  g_free (image);
}

ploop_image *
ploop_open (const char *path, const struct ploop_open_options *options,
            GError **error)
{
  const struct ploop_open_options all = with_defaults (options);
  ploop_image *image;
  bool ok;

  if (!check_options (&all, path, error))
    return NULL;
  image = g_new0 (ploop_image, 1);
  ok = open_parts (image, path, &all, error);
  if (!ok || (!all.defer_start && ploop_start (image, error) == -1)) {
    /* Those that have started end, too. */
    ploop_stop (image, NULL);
    free_parts (image);
    return NULL;
  }
  return image;
}

ploop_image *
parts_open (const struct location *location,
            const struct ploop_open_options *options, GError **error)
{
  const struct ploop_open_options all = with_defaults (options);
  struct image *opened = image_open (location, &all, error);
  ploop_image *image;

  if (!opened)
    return NULL;
  image = g_new0 (ploop_image, 1);
  if (parts_add (image, location, opened, error)
      && ploop_start (image, error) == 0)
    return image;
  ploop_close (image, NULL);
  return NULL;
}

int
ploop_start (ploop_image *image, GError **error)
{
  int r = 0;

  for (unsigned i = 0; i < image->nr_open && r == 0; i++)
    r = image_start (image->parts[i].image, error);
  return r;
}

int
ploop_stop (ploop_image *image, GError **error)
{
  int r = 0;

  /* The first error is told, but all are stopped. */
  for (unsigned i = 0; i < image->nr_open; i++)
    if (image_stop (image->parts[i].image, r == 0 ? error : NULL) == -1)
      r = -1;
  return r;
}

int
ploop_close (ploop_image *image, GError **error)
{
  int r;

  if (!image)
    return 0;
  r = ploop_stop (image, error);
  free_parts (image);
  return r;
}

/* ---- The guest's disk -------------------------------------------------- */

/* What is told of a split disk is told of its first part. */
static const struct disk *
first (const ploop_image *image)
{
  return &image->parts[0].image->disk;
}

uint64_t
ploop_size (const ploop_image *image)
{
  return image->size;
}

uint32_t
ploop_cluster_size (const ploop_image *image)
{
  return first (image)->delta->layout.cluster_size;
}

unsigned
ploop_version (const ploop_image *image)
{
  return first (image)->delta->header.version;
}

bool
ploop_is_read_only (const ploop_image *image)
{
  return image->read_only;
}

bool
ploop_is_rotational (const ploop_image *image)
{
  return delta_is_rotational (first (image)->delta);
}

/* The flags that a request may have. */
static unsigned
known_flags (enum ploop_operation operation)
{
  switch (operation) {
  case PLOOP_WRITE:
  case PLOOP_TRIM:
    return PLOOP_FUA;
  case PLOOP_ZERO:
    return PLOOP_FUA | PLOOP_UNMAP | PLOOP_FAST;
  default:
    return 0;
  }
}

static bool
is_on_disk (const ploop_image *image, uint64_t length, uint64_t offset)
{
  const uint64_t size = ploop_size (image);

  return offset <= size && length <= size - offset;
}

/* 0, or why a request is refused. */
static int
check_request (const ploop_image *image, const ploop_request *request)
{
  const bool changes = request->operation == PLOOP_WRITE
                       || request->operation == PLOOP_ZERO
                       || request->operation == PLOOP_TRIM;

  if (request->operation == PLOOP_FLUSH)
    return request->flags == 0 ? 0 : -EINVAL;
  if (request->operation != PLOOP_READ && !changes)
    return -EINVAL;
  if (!is_on_disk (image, request->length, request->offset)
      || (request->flags & ~known_flags (request->operation)) != 0)
    return -EINVAL;
  return changes && ploop_is_read_only (image) ? -EROFS : 0;
}

/* Whoever asked for speed or nothing gets its answer before anything is done. */
static int
check_speed (const ploop_image *image, const ploop_request *request)
{
  if (!(request->flags & PLOOP_FAST))
    return 0;
  return parts_check_fast (image, request->length, request->offset,
                           request->flags);
}

static int
do_request (ploop_image *image, ploop_request *request)
{
  int r = check_request (image, request);

  if (r == 0)
    r = check_speed (image, request);
  if (r < 0)
    return r;
  if (G_LIKELY (image->nr_parts == 1))
    return submit_and_wait (&image->parts[0].image->submit, request);
  return parts_do (image, request);
}

int
ploop_pread (ploop_image *image, void *buf, size_t length, uint64_t offset)
{
  ploop_request request;

  request.operation = PLOOP_READ;
  request.flags = 0;
  request.buf = buf;
  request.length = length;
  request.offset = offset;
  return do_request (image, &request);
}

int
ploop_pwrite (ploop_image *image, const void *buf, size_t length,
              uint64_t offset, unsigned flags)
{
  ploop_request request;

  request.operation = PLOOP_WRITE;
  request.flags = flags;
  request.buf = (void *) buf;
  request.length = length;
  request.offset = offset;
  return do_request (image, &request);
}

static int
do_without_data (ploop_image *image, enum ploop_operation operation,
                 uint64_t length, uint64_t offset, unsigned flags)
{
  ploop_request request;

  request.operation = operation;
  request.flags = flags;
  request.buf = NULL;
  request.length = length;
  request.offset = offset;
  return do_request (image, &request);
}

int
ploop_zero (ploop_image *image, uint64_t length, uint64_t offset,
            unsigned flags)
{
  return do_without_data (image, PLOOP_ZERO, length, offset, flags);
}

int
ploop_trim (ploop_image *image, uint64_t length, uint64_t offset,
            unsigned flags)
{
  return do_without_data (image, PLOOP_TRIM, length, offset, flags);
}

int
ploop_flush (ploop_image *image)
{
  return do_without_data (image, PLOOP_FLUSH, 0, 0, 0);
}

int
ploop_extents (ploop_image *image, uint64_t length, uint64_t offset,
               unsigned flags, ploop_extent_fn fn, void *opaque)
{
  if (!is_on_disk (image, length, offset)
      || (flags & ~PLOOP_EXTENTS_DETAIL) != 0)
    return -EINVAL;
  return parts_extents (image, length, offset, flags, fn, opaque);
}

int
ploop_prefetch (ploop_image *image, uint64_t length, uint64_t offset)
{
  if (!is_on_disk (image, length, offset))
    return -EINVAL;
  return parts_prefetch (image, length, offset);
}

int
ploop_submit (ploop_image *image, ploop_request *request)
{
  int r = check_request (image, request);

  if (r == 0)
    r = check_speed (image, request);
  if (r < 0)
    return r;
  if (G_LIKELY (image->nr_parts == 1))
    return submit_queue (&image->parts[0].image->submit, request);
  return parts_submit (image, request);
}

/* ---- Holding requests back --------------------------------------------- */

static void
resume_first (ploop_image *image, unsigned nr)
{
  for (unsigned i = 0; i < nr; i++)
    image_resume (image->parts[i].image);
}

int
ploop_suspend (ploop_image *image)
{
  for (unsigned i = 0; i < image->nr_parts; i++) {
    const int r = image_suspend (image->parts[i].image);

    if (r < 0) {
      resume_first (image, i);
      return r;
    }
  }
  return 0;
}

void
ploop_resume (ploop_image *image)
{
  resume_first (image, image->nr_parts);
}

/* ---- Statistics -------------------------------------------------------- */

void
ploop_get_statistics (const ploop_image *image,
                      struct ploop_statistics *statistics)
{
  *statistics = (struct ploop_statistics) { 0 };
  for (unsigned i = 0; i < image->nr_parts; i++)
    stats_collect (image->parts[i].image->disk.stats, statistics);
}

int
ploop_get_state (const ploop_image *image, struct ploop_state *state)
{
  int r = 0;

  *state = (struct ploop_state) { 0 };
  for (unsigned i = 0; i < image->nr_parts; i++) {
    const int failed = image_add_state (image->parts[i].image, state);

    r = r == 0 ? failed : r;
  }
  if (r < 0)
    state->file_size = state->file_space = 0;
  return r;
}
