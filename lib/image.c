/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Opening and closing an image, and the public face of requests: see
 * ploop-core.h.
 *
 * Opening reads the whole BAT into the map and refuses an image whose BAT
 * cannot be right, before a byte is served; all that has threads is started
 * after that.  The one thing that is taken as it
 * is: in an image that was never closed, entries that point past the end of
 * the file.  A server that was killed, or a power cut, leaves such when the
 * entry reached the disk and the file's new size did not; nothing that was
 * flushed is there.
 */

#include <config.h>

#include <errno.h>

#include "bat.h"
#include "location.h"
#include "submit.h"

#define DEFAULT_PREALLOC (UINT64_C (128) << 20)
#define DEFAULT_COPY_DELAY 500u /* ms */

/* Of the page cache, at once: nothing that waits for a runner waits long. */
#define FORGET_BYTES (UINT64_C (256) << 20)

struct ploop_image {
  struct disk disk;
  struct submit submit;
  struct ploop_open_options options;    /* with defaults filled in */
  struct log log;
  struct runner_job forget;     /* the page cache, piece by piece */
  uint64_t forgotten;           /* bytes of the file */
  bool started;
  _Atomic bool stopped;
};

/* ---- Opening ----------------------------------------------------------- */

/* The lock of the descriptor is held by IMAGE, if that is not NULL. */
static enum delta_lock
reader_lock (const ploop_image *beside)
{
  return beside ? DELTA_LOCK_LOWER : DELTA_LOCK_READER;
}

/* Open for writing where that is asked for and can be done, else for reading.
 */
static struct delta *
open_top (const struct location *location,
          const struct ploop_open_options *options, const struct log *log,
          GError **error)
{
  const struct chain_source *source =
    &g_array_index (location->deltas, struct chain_source,
                    location->deltas->len - 1);
  const struct delta_source top = {
    .path = source->path,
    .path_fd = source->path_fd,
    .raw_cluster_size = source->may_be_raw ? location->cluster_size : 0,
    .log = log,
  };
  const enum delta_lock reader = reader_lock (options->beside);
  struct delta *delta =
    delta_open_source (&top, location->read_only ? reader : DELTA_LOCK_WRITER,
                       error);

  if (!delta || location->read_only)
    return delta;
  if (delta->read_only) {
    log_warning (log, "%s: may not be written (permissions or file system): "
                 "opened read-only", delta->path);
    return delta;
  }
  if (!delta->is_raw && !format_has_valid_extension (&delta->header))
    return delta;
  log_warning (log, delta->is_raw
               ? "%s: is a raw disk, which is only read here: use overlay= to "
                 "write, or nbdkit's file plugin: opened read-only"
               : "%s: carries changed-block bitmaps, which a write would make "
                 "untrue: opened read-only", delta->path);
  delta_close (delta);
  return delta_open_source (&top, reader, error);
}

/* What the descriptor says must be true of the images. */
static bool
check_location (const struct location *location, const struct delta *top,
                GError **error)
{
  if (!location->descriptor)
    return true;
  if (location->cluster_size != top->layout.cluster_size) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
                 "%s: <Blocksize> is %" G_GUINT32_FORMAT " sectors, but the "
                 "clusters of %s have %" G_GUINT32_FORMAT ": they do not belong "
                 "together; serve the image by itself if it is the right one",
                 location->descriptor->path,
                 location->cluster_size / FORMAT_SECTOR_SIZE, top->path,
                 top->layout.cluster_size / FORMAT_SECTOR_SIZE);
    return false;
  }
  return location_is_current (location, error);
}

static bool
open_located (struct chain *chain, const struct location *location,
              const struct ploop_open_options *options,
              const struct log *log, GError **error)
{
  struct delta *top = open_top (location, options, log, error);

  if (!top || !chain_open (chain, location->deltas, top, log, error))
    return false;
  if (check_location (location, top, error))
    return true;
  chain_close (chain);
  return false;
}

static void
describe_levels (const struct chain *chain, const struct log *log)
{
  for (unsigned i = 0; i < chain->nr_levels; i++) {
    const struct delta *delta = chain->levels[i];

    if (delta->is_raw)
      log_debug (log, "level %u: %s: raw, %" G_GUINT64_FORMAT " bytes", i,
                 delta->path, delta->layout.size);
    else
      log_debug (log, "level %u: %s: version %u, %" G_GUINT64_FORMAT " bytes",
                 i, delta->path, delta->header.version, delta->layout.size);
  }
}

static bool
open_chain (struct chain *chain, const char *path,
            const struct ploop_open_options *options, const struct log *log,
            GError **error)
{
  struct location location;
  bool ok;

  if (!location_find (&location, path, options, log, error))
    return false;
  ok = open_located (chain, &location, options, log, error);
  location_clear (&location);
  if (ok)
    describe_levels (chain, log);
  return ok;
}

static void
load_leak (void *opaque, uint64_t first, uint64_t nr)
{
  GArray *leaks = opaque;
  const struct alloc_leak leak = { first, nr };

  g_array_append_val (leaks, leak);
}

/* Read the BATs into the map. */
static int
load_map (struct ploop_image *image, struct chain_summary *summary,
          GError **error)
{
  const struct delta *delta = image->disk.delta;
  int r;

  r = map_init (&image->disk.map, delta->layout.nr_entries);
  if (r < 0) {
    error_set_system (error, r, "%s: no memory for a map of %" G_GUINT32_FORMAT
                      " clusters", delta->path, delta->layout.nr_entries);
    return -1;
  }
  return chain_load (&image->disk.chain, &image->disk.map, &image->log,
                     summary, error);
}

/* ---- What goes on behind requests -------------------------------------- */

/* Nothing of this is called before a request has changed something, or after
 * the flusher has ended.
 */

static void
ask_to_extend (void *opaque)
{
  struct disk *disk = opaque;

  flusher_ask (&disk->flusher, FLUSHER_EXTEND);
}

static void
ask_to_scrub (void *opaque)
{
  struct disk *disk = opaque;

  flusher_ask (&disk->flusher, FLUSHER_SCRUB);
}

static void
ask_to_write_back (void *opaque)
{
  struct disk *disk = opaque;

  flusher_ask (&disk->flusher, FLUSHER_WRITE_BACK);
}

static void
ask_to_commit (void *opaque)
{
  struct disk *disk = opaque;

  flusher_ask (&disk->flusher, FLUSHER_COMMIT);
}

static void
ask_to_lead (void *opaque)
{
  struct disk *disk = opaque;

  flusher_ask (&disk->flusher, FLUSHER_LEAD);
}

/* What was freed may go a step on. */
static void
after_commit (void *opaque)
{
  struct disk *disk = opaque;

  if (alloc_nr_pending (&disk->alloc) > 0)
    flusher_ask (&disk->flusher, FLUSHER_SCRUB);
}

static void
ask_to_reclaim (void *opaque)
{
  struct disk *disk = opaque;

  if (disk->alloc.leaks && disk->alloc.leaks->len > 0)
    flusher_ask (&disk->flusher, FLUSHER_RECLAIM);
}

static void
ask_to_punch_parts (void *opaque)
{
  struct disk *disk = opaque;

  flusher_ask (&disk->flusher, FLUSHER_TRIM);
}

/* What only a writer needs. */
static int
prepare_writing (struct ploop_image *image,
                 const struct bat_summary *summary, GArray *lost,
                 GArray *leaks, GError **error)
{
  struct disk *disk = &image->disk;
  const struct alloc_options alloc_options = {
    .leaks = leaks,
    .data_end = summary->data_end,
    .nr_unmapped =
      disk->map.nr_clusters - (summary->nr_allocated - lost->len),
    .prealloc = image->options.prealloc,
    .low = ask_to_extend,
    .freed = ask_to_scrub,
    .opaque = disk,
  };
  const struct commit_hooks hooks = {
    .marked = ask_to_reclaim,
    .need_leader = ask_to_lead,
    .put_off = ask_to_write_back,
    .unstable = ask_to_commit,
    .committed = after_commit,
    .opaque = disk,
  };
  const struct trims_options trims_options = {
    .punches = image->options.discard == PLOOP_DISCARD_UNMAP,
    .news = ask_to_punch_parts,
    .opaque = disk,
  };
  int r;

  r = alloc_init (&disk->alloc, disk->delta, &disk->changes, disk->stats,
                  &image->log, &alloc_options);
  if (r == 0)
    r = commit_init (&disk->commit, disk->delta,
                     chain_top_level (&disk->chain), &disk->map,
                     &disk->changes, disk->stats, &image->log, &hooks,
                     image->options.writeback_delay, g_array_ref (lost));
  if (r < 0) {
    error_set_system (error, r, "%s: no memory to write", disk->delta->path);
    return -1;
  }
  trims_init (&disk->trims, disk->delta, &disk->map, &disk->commit,
              &disk->alloc, &trims_options);
  return 0;
}

/* Whoever left the image open may have met a failed sync, after which the page
 * cache holds what the disk does not, and nobody would write it again.  What is
 * on the disk counts.
 */
static int
forget_unsynced (const struct delta *delta, GError **error)
{
  int r;

  if (delta->read_only || !format_is_dirty (delta->header.in_use))
    return 0;
  r = delta_sync_and_forget (delta, delta->file_size);
  if (r < 0)
    error_set_system (error, r, "%s: was not closed, and cannot be synced",
                      delta->path);
  return r;
}

static int
load_image (struct ploop_image *image, GError **error)
{
  g_autoptr (GArray) lost = g_array_new (FALSE, FALSE, sizeof (uint32_t));
  g_autoptr (GArray) leaks =
    g_array_new (FALSE, FALSE, sizeof (struct alloc_leak));
  struct chain_summary summary = {
    .lost = lost,
    .leak = load_leak,
    .opaque = leaks,
  };

  if (forget_unsynced (image->disk.delta, error) < 0
      || load_map (image, &summary, error) < 0)
    return -1;
  log_debug (&image->log, "%s: version %u, %" G_GUINT64_FORMAT " bytes, "
             "clusters of %" G_GUINT32_FORMAT " bytes, %" G_GUINT32_FORMAT
             " of %" G_GUINT32_FORMAT " allocated, %u lower deltas, opened for "
             "%s",
             image->disk.delta->path, ploop_version (image),
             ploop_size (image), ploop_cluster_size (image),
             summary.top.nr_allocated, image->disk.delta->layout.nr_entries,
             chain_top_level (&image->disk.chain),
             ploop_is_read_only (image) ? "reading" : "writing");
  if (ploop_is_read_only (image))
    return 0;
  return prepare_writing (image, &summary.top, lost, leaks, error);
}

/* ---- Options ----------------------------------------------------------- */

static unsigned
default_runners (void)
{
  return MIN (g_get_num_processors (), PLOOP_MAX_RUNNERS);
}

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
      && options->prealloc <= PLOOP_MAX_PREALLOC
      && options->copy_delay <= PLOOP_MAX_DELAY
      && options->writeback_delay <= PLOOP_MAX_DELAY)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: an option is out of range: runners %u (at most %u), prealloc "
               "%" G_GUINT64_FORMAT " (%" G_GUINT64_FORMAT "), copy delay %u "
               "and write-back delay %u ms (%u), cache %d, prealloc mode %d, "
               "enospc %d, discard %d, detect zeroes %d", path, options->runners, PLOOP_MAX_RUNNERS,
               options->prealloc, PLOOP_MAX_PREALLOC, options->copy_delay,
               options->writeback_delay, PLOOP_MAX_DELAY, (int) options->cache,
               (int) options->prealloc_mode, (int) options->enospc,
               (int) options->discard, (int) options->detect_zeroes);
  return false;
}

static struct ploop_open_options
with_defaults (const struct ploop_open_options *options)
{
  struct ploop_open_options all = *options;

  /* Only good until ploop_open returns. */
  all.bases = NULL;
  all.overlay = all.snapshot = NULL;
  all.beside = NULL;
  if (all.runners == 0)
    all.runners = default_runners ();
  if (all.prealloc == 0)
    all.prealloc = DEFAULT_PREALLOC;
  if (all.copy_delay == 0)
    all.copy_delay = DEFAULT_COPY_DELAY;
  return all;
}

/* ---- Opening ----------------------------------------------------------- */

static void
init_engine (struct ploop_image *image)
{
  struct disk *disk = &image->disk;
  const struct flusher_options flusher_options = {
    .copy_delay = image->options.copy_delay,
    .wait_for_space = image->options.enospc == PLOOP_ENOSPC_WAIT,
    .give_up = image->options.give_up,
    .give_up_opaque = image->options.give_up_opaque,
  };

  disk->stats = stats_new (image->options.measure_latency);
  gate_init (&disk->gate);
  disk->discard = image->options.discard;
  disk->detect_zeroes = image->options.detect_zeroes;
  flusher_init (&disk->flusher, &disk->alloc, &disk->commit, &disk->trims,
                disk->stats, &image->log, &flusher_options);
  submit_init (&image->submit, disk, !image->options.no_fast_path,
               image->options.cache == PLOOP_CACHE_WRITETHROUGH);
  if (image->options.cache == PLOOP_CACHE_NONE)
    for (unsigned i = 0; i < disk->chain.nr_levels; i++)
      delta_use_direct (disk->chain.levels[i], &image->log);
  if (image->options.prealloc_mode == PLOOP_PREALLOC_TRUNCATE)
    delta_reserve_nothing (disk->delta);
  if (image->options.discard == PLOOP_DISCARD_KEEP)
    delta_make_no_holes (disk->delta);
}

static void
free_image (struct ploop_image *image)
{
  /* A grace period that ends now still asks the flusher. */
  trims_destroy (&image->disk.trims);
  alloc_destroy (&image->disk.alloc);
  flusher_destroy (&image->disk.flusher);
  submit_destroy (&image->submit);
  gate_destroy (&image->disk.gate);
  commit_destroy (&image->disk.commit);
  map_destroy (&image->disk.map);
  stats_free (image->disk.stats);
  chain_close (&image->disk.chain);
  g_free (image);
}

ploop_image *
ploop_open (const char *path, const struct ploop_open_options *options,
            GError **error)
{
  static const struct ploop_open_options no_options;
  struct ploop_image *image;

  if (!options)
    options = &no_options;
  if (!check_options (options, path, error))
    return NULL;

  image = g_new0 (struct ploop_image, 1);
  image->log = (struct log) { options->log, options->log_opaque };
  image->options = with_defaults (options);
  if (!open_chain (&image->disk.chain, path, options, &image->log, error)) {
    g_free (image);
    return NULL;
  }
  image->disk.delta = chain_top (&image->disk.chain);
  init_engine (image);
  if (load_image (image, error) < 0
      || (!image->options.defer_start && ploop_start (image, error) == -1)) {
    free_image (image);
    return NULL;
  }
  return image;
}

/* A piece a job, so that others of this runner have their turn. */
static void
forget_cached (struct runner_job *job, unsigned index)
{
  struct ploop_image *image = caa_container_of (job, struct ploop_image, forget);
  const struct delta *delta = image->disk.delta;

  if (image->forgotten >= delta->file_size || atomic_load (&image->stopped))
    return;
  delta_forget_cached (delta, FORGET_BYTES, image->forgotten);
  image->forgotten += FORGET_BYTES;
  runner_submit (&image->disk.runners, index, job);
}

/* What was read or written through the page cache before. */
static void
start_forgetting (struct ploop_image *image)
{
  if (!image->disk.delta->direct || ploop_is_read_only (image))
    return;
  image->forget.run = forget_cached;
  runner_submit (&image->disk.runners, 0, &image->forget);
}

int
ploop_start (ploop_image *image, GError **error)
{
  struct disk *disk = &image->disk;
  int r;

  if (image->started)
    return 0;
  r = runners_start (&disk->runners, image->options.runners);
  if (r == 0 && !ploop_is_read_only (image))
    r = flusher_start (&disk->flusher);
  if (r < 0) {
    runners_stop (&disk->runners);
    error_set_system (error, r, "%s: threads cannot be started",
                      disk->delta->path);
    return -1;
  }
  image->started = true;
  start_forgetting (image);
  return 0;
}

/* ---- Closing ----------------------------------------------------------- */

/* Let every request that was accepted end, and no other begin. */
static void
stop_requests (struct ploop_image *image)
{
  struct disk *disk = &image->disk;

  gate_close (&disk->gate);
  flusher_give_up (&disk->flusher);
  chain_stop (&disk->chain);
  submit_drain (&image->submit);
  runners_stop (&disk->runners);
  flusher_stop (&disk->flusher);
}

/* Leave the file as one that was closed.  Returns 0 or a negative errno. */
static int
finish (struct disk *disk)
{
  /* What lies behind the last cluster is nobody's; but a session that changed
   * nothing changes nothing.
   */
  const bool changed = commit_is_marked (&disk->commit);
  int r;

  trims_finish (&disk->trims);
  while (changed && alloc_reclaim (&disk->alloc))
    continue;
  r = commit_flush (&disk->commit);
  if (r < 0) {
    /* What can still be saved: entries that were put off. */
    commit_write_back (&disk->commit, 0, disk->map.nr_clusters - 1);
    return r;
  }
  /* Whether the cut or the cleared mark reaches the disk first is all the
   * same: a file may be longer than its clusters.
   */
  r = alloc_finish (&disk->alloc, changed);
  if (r < 0)
    return r;
  return commit_unmark (&disk->commit);
}

int
ploop_stop (ploop_image *image, GError **error)
{
  int r = 0;

  if (atomic_exchange (&image->stopped, true))
    return 0;
  if (image->started)
    stop_requests (image);
  if (!ploop_is_read_only (image))
    r = finish (&image->disk);
  if (r < 0)
    error_set_system (error, r, "%s: could not be closed and stays marked as "
                      "in use; what was written since the last flush may be "
                      "lost", image->disk.delta->path);
  return r < 0 ? -1 : 0;
}

int
ploop_close (ploop_image *image, GError **error)
{
  int r;

  if (!image)
    return 0;
  r = ploop_stop (image, error);
  free_image (image);
  return r;
}

/* ---- The guest's disk -------------------------------------------------- */

uint64_t
ploop_size (const ploop_image *image)
{
  return image->disk.delta->layout.size;
}

uint32_t
ploop_cluster_size (const ploop_image *image)
{
  return image->disk.delta->layout.cluster_size;
}

unsigned
ploop_version (const ploop_image *image)
{
  return image->disk.delta->header.version;
}

bool
ploop_is_read_only (const ploop_image *image)
{
  return image->disk.delta->read_only;
}

bool
ploop_is_rotational (const ploop_image *image)
{
  return delta_is_rotational (image->disk.delta);
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

/* A disk that nobody may write has nothing to flush. */
static bool
is_idle_flush (const ploop_image *image, const ploop_request *request)
{
  return request->operation == PLOOP_FLUSH && ploop_is_read_only (image);
}

/* Whoever asked for speed or nothing gets its answer before anything is done. */
static int
check_speed (ploop_image *image, const ploop_request *request)
{
  int r;

  if (!(request->flags & PLOOP_FAST))
    return 0;
  /* Only the map is looked at: no need to wait while requests are held back. */
  r = gate_admit (&image->disk.gate);
  if (r < 0)
    return r;
  if (!request_zero_is_fast (&image->disk, request->length, request->offset,
                             request->flags))
    r = -ENOTSUP;
  gate_leave (&image->disk.gate);
  return r;
}

static int
do_request (ploop_image *image, ploop_request *request)
{
  int r = check_request (image, request);

  if (r == 0)
    r = check_speed (image, request);
  if (r < 0 || is_idle_flush (image, request))
    return r;
  return submit_and_wait (&image->submit, request);
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
  int r;

  if (!is_on_disk (image, length, offset)
      || (flags & ~PLOOP_EXTENTS_DETAIL) != 0)
    return -EINVAL;
  r = gate_enter (&image->disk.gate);
  if (r < 0)
    return r;
  r = request_extents (&image->disk, length, offset, flags, fn, opaque);
  gate_leave (&image->disk.gate);
  return r;
}

int
ploop_prefetch (ploop_image *image, uint64_t length, uint64_t offset)
{
  int r;

  if (!is_on_disk (image, length, offset))
    return -EINVAL;
  r = gate_enter (&image->disk.gate);
  if (r < 0)
    return r;
  request_prefetch (&image->disk, length, offset);
  gate_leave (&image->disk.gate);
  return 0;
}

int
ploop_submit (ploop_image *image, ploop_request *request)
{
  int r = check_request (image, request);

  if (r == 0)
    r = check_speed (image, request);
  return r < 0 ? r : submit_queue (&image->submit, request);
}

/* ---- Holding requests back --------------------------------------------- */

int
ploop_suspend (ploop_image *image)
{
  int r;

  gate_hold (&image->disk.gate);
  if (ploop_is_read_only (image))
    return 0;
  flusher_hold (&image->disk.flusher);
  r = commit_flush (&image->disk.commit);
  if (r < 0)
    ploop_resume (image);
  return r;
}

void
ploop_resume (ploop_image *image)
{
  if (!ploop_is_read_only (image))
    flusher_release (&image->disk.flusher);
  gate_release (&image->disk.gate);
}

/* ---- Statistics -------------------------------------------------------- */

void
ploop_get_statistics (const ploop_image *image,
                      struct ploop_statistics *statistics)
{
  stats_collect (image->disk.stats, statistics);
}
