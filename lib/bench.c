/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Measuring the store on which disks lie: ploop_bench in ploop-core.h.
 *
 * Only what is data is read: a hole costs nothing, and says nothing of the store.  To
 * write, there is an image of its own, in a directory of its own (for one that holds a
 * DiskDescriptor.xml is locked by whoever opens a file in it); both names are gone as
 * soon as it is open, so that nothing can leave it behind.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "error.h"
#include "load.h"

#define DEFAULT_MILLISECONDS 3000u
#define DEFAULT_SIZE (UINT64_C (256) << 20)
#define DEFAULT_DEPTH 16u
#define DEFAULT_BLOCK 4096u
#define SEQUENTIAL_BLOCK (UINT32_C (1) << 20)

static const char *const names[PLOOP_NR_BENCHES] = {
  [PLOOP_BENCH_SEQUENTIAL_WRITE] = "sequential writing",
  [PLOOP_BENCH_RANDOM_WRITE] = "random writing",
  [PLOOP_BENCH_FLUSH] = "flushing",
  [PLOOP_BENCH_RANDOM_READ] = "random reading",
  [PLOOP_BENCH_SEQUENTIAL_READ] = "sequential reading",
};

/* A range of the disk that is data. */
struct span {
  uint64_t offset, length;      /* bytes of the disk */
  uint64_t before;              /* bytes of data before it */
};

struct bench {
  const char *path;
  struct ploop_bench_options options;   /* with all defaults filled in */
  ploop_progress_fn progress;
  void *opaque;
  ploop_image *image;
  GArray *spans;                /* of struct span, in order */
  uint64_t data_bytes;          /* their sum */
  unsigned nr_done, nr_in_all;  /* measurements */
  struct ploop_bench_result *result;

  /* The one that is being made. */
  gint64 begun;                 /* us */
  bool is_random;
  uint32_t block_size;
  uint64_t position;            /* in the data, of the next sequential request */
  uint64_t left;                /* bytes that may be asked for */
  GRand *random;
};

/* ---- Options ----------------------------------------------------------- */

static struct ploop_bench_options
with_defaults (const struct ploop_bench_options *options)
{
  struct ploop_bench_options all = { 0 };

  if (options)
    all = *options;
  if (all.milliseconds == 0)
    all.milliseconds = DEFAULT_MILLISECONDS;
  if (all.size == 0)
    all.size = all.write ? DEFAULT_SIZE : UINT64_MAX;
  if (all.depth == 0)
    all.depth = DEFAULT_DEPTH;
  if (all.block_size == 0)
    all.block_size = DEFAULT_BLOCK;
  return all;
}

static bool
check_options (const struct bench *bench, GError **error)
{
  const struct ploop_bench_options *options = &bench->options;

  if (options->milliseconds <= PLOOP_MAX_DELAY
      && options->depth <= PLOOP_BENCH_MAX_DEPTH
      && options->block_size <= PLOOP_BENCH_MAX_BLOCK
      && options->block_size % 512 == 0
      && options->size >= options->block_size)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: an option is out of range: time %u ms (at most %u), depth %u "
               "(%u), block size %" G_GUINT32_FORMAT " (a multiple of 512, at most "
               "%" G_GUINT32_FORMAT "), size %" G_GUINT64_FORMAT " (a block at "
               "least)", bench->path, options->milliseconds, PLOOP_MAX_DELAY,
               options->depth, PLOOP_BENCH_MAX_DEPTH, options->block_size,
               PLOOP_BENCH_MAX_BLOCK, options->size);
  return false;
}

/* ---- What is data ------------------------------------------------------ */

static int
add_span (void *opaque, uint64_t offset, uint64_t length, bool hole)
{
  struct bench *bench = opaque;
  const struct span span = { offset, length, bench->data_bytes };

  if (hole)
    return 0;
  g_array_append_val (bench->spans, span);
  bench->data_bytes += length;
  return 0;
}

/* Returns 0 or a negative errno. */
static int
find_data (struct bench *bench)
{
  g_array_set_size (bench->spans, 0);
  bench->data_bytes = 0;
  return ploop_extents (bench->image, ploop_size (bench->image), 0,
                        PLOOP_EXTENTS_DETAIL, add_span, bench);
}

/* The span that byte POSITION of the data is in. */
static const struct span *
span_at (const struct bench *bench, uint64_t position)
{
  const struct span *spans = (const struct span *) bench->spans->data;
  guint low = 0, high = bench->spans->len;

  while (high - low > 1) {
    const guint middle = low + (high - low) / 2;

    if (spans[middle].before <= position)
      low = middle;
    else
      high = middle;
  }
  return &spans[low];
}

/* ---- Requests ---------------------------------------------------------- */

static uint64_t
random_below (struct bench *bench, uint64_t end)
{
  const uint64_t high = g_rand_int (bench->random);

  return (high << 32 | g_rand_int (bench->random)) % end;
}

/* A block of the data, aligned in its span.  The last one of a span may be shorter. */
static void
pick_block (struct bench *bench, uint64_t *offset, uint64_t *length)
{
  const uint64_t position = random_below (bench, bench->data_bytes);
  const struct span *span = span_at (bench, position);
  const uint64_t in_span =
    (position - span->before) / bench->block_size * bench->block_size;

  *offset = span->offset + in_span;
  *length = MIN (bench->block_size, span->length - in_span);
}

/* The next block of a sequence.  Returns false behind its end. */
static bool
take_block (struct bench *bench, uint64_t *offset, uint64_t *length)
{
  const struct span *span;
  uint64_t in_span;

  if (bench->position >= bench->data_bytes)
    return false;
  span = span_at (bench, bench->position);
  in_span = bench->position - span->before;
  *offset = span->offset + in_span;
  *length = MIN (bench->block_size, span->length - in_span);
  bench->position += *length;
  return true;
}

static bool
next_block (void *opaque, uint64_t *offset, uint64_t *length)
{
  struct bench *bench = opaque;

  if (bench->left == 0)
    return false;
  if (bench->is_random)
    pick_block (bench, offset, length);
  else if (!take_block (bench, offset, length))
    return false;
  bench->left -= MIN (bench->left, *length);
  return true;
}

/* ---- Measuring --------------------------------------------------------- */

/* Milliseconds of what is being measured, as far as there may be so many. */
static uint64_t
passed (const struct bench *bench)
{
  const gint64 us = g_get_monotonic_time () - bench->begun;

  return MIN ((uint64_t) us / 1000, bench->options.milliseconds);
}

/* Tell how far it is, NOW milliseconds into a measurement.  False: stop. */
static bool
tell_progress (const struct bench *bench, uint64_t now)
{
  const uint64_t each = bench->options.milliseconds;

  return !bench->progress
         || bench->progress (bench->opaque, bench->nr_done * each + now,
                             bench->nr_in_all * each);
}

static bool
tick (void *opaque)
{
  const struct bench *bench = opaque;

  return tell_progress (bench, passed (bench));
}

/* How much HISTOGRAM has grown since BEFORE. */
static void
subtract (struct ploop_histogram *histogram,
          const struct ploop_histogram *before)
{
  histogram->count -= before->count;
  histogram->sum_ns -= before->sum_ns;
  for (unsigned i = 0; i < PLOOP_HISTOGRAM_NR_BUCKETS; i++)
    histogram->buckets[i] -= before->buckets[i];
}

static bool
writes (enum ploop_bench_kind kind)
{
  return kind <= PLOOP_BENCH_FLUSH;
}

static enum ploop_operation
operation_of (enum ploop_bench_kind kind)
{
  if (kind == PLOOP_BENCH_FLUSH)
    return PLOOP_FLUSH;
  return writes (kind) ? PLOOP_WRITE : PLOOP_READ;
}

/* Many requests at a time. */
static int
measure_load (struct bench *bench, enum ploop_bench_kind kind,
              struct load_result *result)
{
  const struct load load = {
    .image = bench->image,
    .operation = operation_of (kind),
    .depth = bench->options.depth,
    .block_size = bench->block_size,
    .next = next_block,
    .opaque = bench,
    .milliseconds = bench->options.milliseconds,
    .tick = tick,
  };
  const int r = load_run (&load, result);

  return r < 0 || !writes (kind) ? r : ploop_flush (bench->image);
}

static int
write_and_flush (struct bench *bench, uint8_t *block, uint64_t offset,
                 size_t length)
{
  const guint32 number = g_rand_int (bench->random);
  int r;

  /* Not what is there already. */
  memcpy (block, &number, sizeof number);
  r = ploop_pwrite (bench->image, block, length, offset, 0);
  return r < 0 ? r : ploop_flush (bench->image);
}

/* One at a time. */
static int
measure_flush (struct bench *bench, struct load_result *result)
{
  const uint64_t milliseconds = bench->options.milliseconds;
  g_autofree uint8_t *block = g_malloc0 (bench->block_size);
  uint64_t offset, length, told = 0, now;
  int r = 0;

  result->begun = bench->begun;
  while (r == 0 && !result->interrupted
         && (now = passed (bench)) < milliseconds
         && next_block (bench, &offset, &length)) {
    r = write_and_flush (bench, block, offset, (size_t) length);
    result->bytes += length;
    if (now - told < 100)
      continue;
    told = now;
    result->interrupted = !tell_progress (bench, now);
  }
  return r;
}

static void
prepare (struct bench *bench, enum ploop_bench_kind kind)
{
  bench->is_random = kind != PLOOP_BENCH_SEQUENTIAL_READ
                     && kind != PLOOP_BENCH_SEQUENTIAL_WRITE;
  bench->block_size =
    bench->is_random ? bench->options.block_size : SEQUENTIAL_BLOCK;
  bench->position = 0;
  bench->left = bench->options.size;
  bench->begun = g_get_monotonic_time ();
}

static int
measure (struct bench *bench, enum ploop_bench_kind kind, GError **error)
{
  struct ploop_bench_measurement *measurement =
    &bench->result->measurements[kind];
  const enum ploop_operation operation = operation_of (kind);
  struct ploop_statistics before, after;
  struct load_result result = { 0 };
  int r;

  ploop_get_statistics (bench->image, &before);
  prepare (bench, kind);
  r = kind == PLOOP_BENCH_FLUSH ? measure_flush (bench, &result)
                                : measure_load (bench, kind, &result);
  measurement->ns =
    (uint64_t) (g_get_monotonic_time () - result.begun) * 1000;
  ploop_get_statistics (bench->image, &after);
  measurement->bytes = result.bytes;
  measurement->latency = after.operations[operation];
  subtract (&measurement->latency, &before.operations[operation]);
  measurement->nr_requests = measurement->latency.count;
  bench->nr_done++;
  if (r < 0) {
    error_set_system (error, r, "%s: %s failed", bench->path, names[kind]);
    return -1;
  }
  bench->result->interrupted =
    result.interrupted || !tell_progress (bench, 0);
  return 0;
}

/* From the kind FIRST to the last one. */
static int
measure_from (struct bench *bench, enum ploop_bench_kind first,
              GError **error)
{
  int r = 0;

  for (unsigned kind = first;
       kind < PLOOP_NR_BENCHES && r == 0 && !bench->result->interrupted;
       kind++)
    r = measure (bench, (enum ploop_bench_kind) kind, error);
  return r;
}

/* ---- A disk that is there ---------------------------------------------- */

/* For options->give_up: a store that is full is an error, soon. */
static bool
give_up (void *opaque G_GNUC_UNUSED)
{
  return true;
}

static ploop_image *
open_image (const struct bench *bench, const char *path, GError **error)
{
  const struct ploop_bench_options *options = &bench->options;
  const struct ploop_open_options open_options = {
    .read_only = !options->write,
    .measure_latency = true,
    .cache = options->page_cache ? PLOOP_CACHE_WRITEBACK : PLOOP_CACHE_NONE,
    .runners = MIN (options->depth, PLOOP_MAX_RUNNERS),
    .enospc = PLOOP_ENOSPC_WAIT,
    .give_up = give_up,
    .log = options->log,
    .log_opaque = options->log_opaque,
  };

  return ploop_open (path, &open_options, error);
}

/* Find the data of what is open. */
static int
look_for_data (struct bench *bench, GError **error)
{
  const int r = find_data (bench);

  if (r < 0) {
    error_set_system (error, r, "%s: what is data cannot be found out",
                      bench->path);
    return -1;
  }
  if (bench->data_bytes > 0)
    return 0;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: has no data, so there is nothing to read: give another disk, "
               "or a directory to write in", bench->path);
  return -1;
}

static int
bench_disk (struct bench *bench, GError **error)
{
  bench->image = open_image (bench, bench->path, error);
  if (!bench->image || look_for_data (bench, error) == -1)
    return -1;
  return measure_from (bench, PLOOP_BENCH_RANDOM_READ, error);
}

/* ---- A new one --------------------------------------------------------- */

static bool
is_directory (const char *path, GError **error)
{
  struct stat st;

  if (stat (path, &st) == -1) {
    error_set_system (error, errno, "%s: cannot be examined", path);
    return false;
  }
  if (S_ISDIR (st.st_mode))
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: is not a directory: writing is measured in a new image, for "
               "which a directory is given, and never in one that is there", path);
  return false;
}

/* Whoever else writes there must not run out of space because of us. */
static bool
has_space (const struct bench *bench, GError **error)
{
  struct statvfs fs;
  uint64_t available;

  if (statvfs (bench->path, &fs) == -1) {
    error_set_system (error, errno, "%s: cannot be examined", bench->path);
    return false;
  }
  available = (uint64_t) fs.f_bavail * fs.f_frsize;
  if (bench->options.size <= available / 2)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: size is %" G_GUINT64_FORMAT " bytes, more than half of the %"
               G_GUINT64_FORMAT " that are free: choose a smaller one",
               bench->path, bench->options.size, available);
  return false;
}

static ploop_image *
make_image (const struct bench *bench, const char *path, GError **error)
{
  const struct ploop_create_options options = {
    .size = bench->options.size / 512 * 512,
  };
  ploop_image *image;

  if (ploop_create (path, &options, error) == -1)
    return NULL;
  image = open_image (bench, path, error);
  unlink (path);
  return image;
}

/* Make an image that has no name. */
static ploop_image *
make_nameless (const struct bench *bench, GError **error)
{
  g_autofree char *directory =
    g_build_filename (bench->path, ".ploop-bench-XXXXXX", NULL);
  g_autofree char *path = NULL;
  ploop_image *image;

  if (!mkdtemp (directory)) {
    error_set_system (error, errno, "%s: no directory can be made in it",
                      bench->path);
    return NULL;
  }
  path = g_build_filename (directory, "bench.hds", NULL);
  image = make_image (bench, path, error);
  rmdir (directory);
  return image;
}

/* What is written first is all that is data after that. */
static int
bench_directory (struct bench *bench, GError **error)
{
  if (!is_directory (bench->path, error) || !has_space (bench, error))
    return -1;
  bench->image = make_nameless (bench, error);
  if (!bench->image)
    return -1;
  add_span (bench, 0, ploop_size (bench->image), false);
  if (measure (bench, PLOOP_BENCH_SEQUENTIAL_WRITE, error) == -1)
    return -1;
  if (bench->result->interrupted)
    return 0;
  if (look_for_data (bench, error) == -1)
    return -1;
  return measure_from (bench, PLOOP_BENCH_RANDOM_WRITE, error);
}

/* ---- All of it --------------------------------------------------------- */

int
ploop_bench (const char *path, const struct ploop_bench_options *options,
             ploop_progress_fn progress, void *opaque,
             struct ploop_bench_result *result, GError **error)
{
  struct bench bench = {
    .path = path,
    .options = with_defaults (options),
    .progress = progress,
    .opaque = opaque,
    .result = result,
  };
  int r = -1;

  *result = (struct ploop_bench_result) { false };
  if (!check_options (&bench, error))
    return -1;
  bench.nr_in_all = bench.options.write ? PLOOP_NR_BENCHES : 2;
  if (!tell_progress (&bench, 0)) {
    result->interrupted = true;
    return 0;
  }
  bench.spans = g_array_new (FALSE, FALSE, sizeof (struct span));
  bench.random = g_rand_new ();
  r = bench.options.write ? bench_directory (&bench, error)
                          : bench_disk (&bench, error);
  /* What was written is nobody's, so it does not matter what became of it. */
  ploop_close (bench.image, NULL);
  g_rand_free (bench.random);
  g_array_unref (bench.spans);
  return r;
}
