/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Opening and closing a chain of deltas: see image.h.
 *
 * Opening reads all BATs into the map and refuses an image whose BAT cannot be
 * right, before a byte is served; all that has threads is started after that.
 * The one thing that is taken as it is: in an image that was never closed, entries
 * that point past the end of the file.  A server that was killed, or a power cut,
 * leaves such when the entry reached the disk and the file's new size did not;
 * nothing that was flushed is there.
 */

#include <config.h>

#include <errno.h>

#include "bat.h"
#include "image.h"

/* Of the page cache, at once: nothing that waits for a runner waits long. */
#define FORGET_BYTES (UINT64_C (256) << 20)

/* ---- Its deltas -------------------------------------------------------- */

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
    /* By another image in this process, by the disk's first part, or by who opens
     * it.
     */
    .descriptor_is_locked = options->beside || location->part > 0
                            || location->descriptor_is_locked,
    .log = log,
  };
  struct delta *delta =
    delta_open_source (&top, location->read_only ? DELTA_LOCK_READER
                                                 : DELTA_LOCK_WRITER, error);

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
  return delta_open_source (&top, DELTA_LOCK_READER, error);
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
  return true;
}

static bool
open_located (struct chain *chain, const struct location *location,
              const struct ploop_open_options *options,
              const struct log *log, GError **error)
{
  const struct chain_options chain_options = {
    .log = log,
    .give_up = options->give_up,
    .give_up_opaque = options->give_up_opaque,
  };
  struct delta *top = open_top (location, options, log, error);

  if (!top
      || !chain_open (chain, location->deltas, top, &chain_options, error))
    return false;
  if (check_location (location, top, error))
    return true;
  chain_close (chain);
  return false;
}

/* All are locked, too. */
static void
describe_levels (const struct chain *chain, const struct log *log)
{
  for (unsigned i = 0; i < chain->nr_levels; i++) {
    const struct delta *delta = chain->levels[i];
    g_autofree char *format =
      delta->is_raw ? g_strdup ("raw")
                    : g_strdup_printf ("version %u, in use 0x%08"
                                       G_GINT32_MODIFIER "x",
                                       delta->header.version,
                                       delta->header.in_use);

    log_debug (log, "level %u: %s: %s, %" G_GUINT64_FORMAT " bytes in a file of %"
               G_GUINT64_FORMAT ", for %s%s", i, delta->path, format,
               delta->layout.size, delta->file_size,
               delta->read_only ? "reading" : "writing",
               delta->descriptor_lock_fd == -1
                 ? "" : ", with its descriptor locked");
  }
}

/* As it is in effect, but for what a request will find out. */
static void
describe_options (const struct image *image)
{
  static const char *const caches[] = {
    [PLOOP_CACHE_WRITEBACK] = "writeback",
    [PLOOP_CACHE_NONE] = "none",
    [PLOOP_CACHE_WRITETHROUGH] = "writethrough",
  };
  static const char *const discards[] = {
    [PLOOP_DISCARD_UNMAP] = "unmap",
    [PLOOP_DISCARD_KEEP] = "keep",
    [PLOOP_DISCARD_OFF] = "off",
  };
  static const char *const zeroes[] = {
    [PLOOP_DETECT_ZEROES_OFF] = "off",
    [PLOOP_DETECT_ZEROES_ON] = "on",
    [PLOOP_DETECT_ZEROES_UNMAP] = "unmap",
  };
  const struct ploop_open_options *options = &image->options;

  log_debug (&image->log, "%s: cache=%s%s, discard=%s, detect-zeroes=%s, "
             "enospc=%s, prealloc=%" G_GUINT64_FORMAT ", prealloc-mode=%s, "
             "fast-path=%s, copy-on-write=%s, copy-delay=%u, writeback-delay=%u%s",
             image->disk.delta->path, caches[options->cache],
             options->cache != PLOOP_CACHE_NONE || image->disk.delta->direct
               ? "" : " (in vain)",
             discards[options->discard], zeroes[options->detect_zeroes],
             options->enospc == PLOOP_ENOSPC_WAIT ? "wait" : "report",
             options->prealloc,
             options->prealloc_mode == PLOOP_PREALLOC_FALLOC ? "falloc"
                                                             : "truncate",
             options->no_fast_path ? "off" : "on",
             options->copy_on_write == PLOOP_COPY_LAZY ? "lazy" : "eager",
             options->copy_delay, options->writeback_delay,
             image->disk.keeps_remote ? ", base-cache=on" : "");
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
load_map (struct image *image, struct chain_summary *summary,
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

static void
ask_to_fill (void *opaque)
{
  struct disk *disk = opaque;

  flusher_ask (&disk->flusher, FLUSHER_FILL);
}

/* A job of ours, beside requests: image_stop waits for all of them. */
static void
begin_job (struct image *image, struct runner_job *job, unsigned index,
           void (*run) (struct runner_job *, unsigned))
{
  pthread_mutex_lock (&image->job_lock);
  image->nr_jobs++;
  pthread_mutex_unlock (&image->job_lock);
  job->run = run;
  runner_submit (image->disk.runners, index, job);
}

static void
end_job (struct image *image)
{
  pthread_mutex_lock (&image->job_lock);
  image->nr_jobs--;
  pthread_cond_broadcast (&image->job_ended);
  pthread_mutex_unlock (&image->job_lock);
}

static void
wait_for_jobs (struct image *image)
{
  pthread_mutex_lock (&image->job_lock);
  while (image->nr_jobs > 0)
    pthread_cond_wait (&image->job_ended, &image->job_lock);
  pthread_mutex_unlock (&image->job_lock);
}

static int
complete_fills (void *opaque)
{
  struct disk *disk = opaque;

  return fills_complete (&disk->fills);
}

/* A piece a job, so that others of this runner have their turn. */
static void
fill_behind (struct runner_job *job, unsigned index)
{
  struct image *image = caa_container_of (job, struct image, fill);

  if (!atomic_load (&image->stopped) && fills_work (&image->disk.fills)) {
    runner_submit (image->disk.runners, index, job);
    return;
  }
  atomic_store (&image->filling, false);
  end_job (image);
}

/* The flusher's.  Returns true to be called again. */
static bool
begin_filling (void *opaque)
{
  struct image *image = opaque;

  if (!fills_are_due (&image->disk.fills)
      || atomic_exchange (&image->filling, true))
    return true;
  begin_job (image, &image->fill, image->filler++ % image->disk.runners->nr,
             fill_behind);
  return false;
}

/* What only a writer needs. */
static int
prepare_writing (struct image *image,
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
    .fill = complete_fills,
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
  const struct fills_options fills_options = {
    .lazy = image->options.copy_on_write == PLOOP_COPY_LAZY,
    .log = &image->log,
    .news = ask_to_fill,
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
  fills_init (&disk->fills, &disk->chain, &disk->map, disk->stats,
              &fills_options);
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
  if (r == 0 && delta->log)
    log_debug (delta->log, "%s: was not closed (in use is 0x%08"
               G_GINT32_MODIFIER "x): synced, to be read from the disk",
               delta->path, delta->header.in_use);
  if (r < 0)
    error_set_system (error, r, "%s: was not closed, and cannot be synced",
                      delta->path);
  return r;
}

static int
load_image (struct image *image, GError **error)
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
  image->nr_allocated = summary.top.nr_allocated;
  log_debug (&image->log, "%s: version %u, %" G_GUINT64_FORMAT " bytes, "
             "clusters of %" G_GUINT32_FORMAT " bytes, %" G_GUINT32_FORMAT
             " of %" G_GUINT32_FORMAT " allocated, %u lower deltas, opened for "
             "%s",
             image->disk.delta->path, image->disk.delta->header.version,
             image->disk.delta->layout.size,
             image->disk.delta->layout.cluster_size,
             summary.top.nr_allocated, image->disk.delta->layout.nr_entries,
             chain_top_level (&image->disk.chain),
             image_is_read_only (image) ? "reading" : "writing");
  if (image_is_read_only (image))
    return 0;
  return prepare_writing (image, &summary.top, lost, leaks, error);
}

/* ---- Opening ----------------------------------------------------------- */

static void
init_engine (struct image *image)
{
  struct disk *disk = &image->disk;
  const struct flusher_options flusher_options = {
    .copy_delay = image->options.copy_delay,
    .wait_for_space = image->options.enospc == PLOOP_ENOSPC_WAIT,
    .give_up = image->options.give_up,
    .give_up_opaque = image->options.give_up_opaque,
    .fill = begin_filling,
    .fill_opaque = image,
  };

  disk->stats = stats_new (image->options.measure_latency);
  gate_init (&disk->gate);
  disk->discard = image->options.discard;
  disk->detect_zeroes = image->options.detect_zeroes;
  disk->keeps_remote = image->options.base_cache && !image_is_read_only (image);
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

void
image_free (struct image *image)
{
  /* A grace period that ends now still asks the flusher. */
  trims_destroy (&image->disk.trims);
  fills_destroy (&image->disk.fills);
  alloc_destroy (&image->disk.alloc);
  flusher_destroy (&image->disk.flusher);
  engine_destroy (&image->own);
  submit_destroy (&image->submit);
  gate_destroy (&image->disk.gate);
  commit_destroy (&image->disk.commit);
  map_destroy (&image->disk.map);
  stats_free (image->disk.stats);
  chain_close (&image->disk.chain);
  pthread_mutex_destroy (&image->job_lock);
  pthread_cond_destroy (&image->job_ended);
  g_free (image);
}

struct image *
image_open (const struct location *location,
            const struct ploop_open_options *options, GError **error)
{
  struct image *image = g_new0 (struct image, 1);

  image->log = (struct log) { options->log, options->log_opaque };
  image->options = *options;
  /* Only good until ploop_open returns. */
  image->options.bases = NULL;
  image->options.overlay = image->options.snapshot = NULL;
  image->options.beside = NULL;
  if (!open_located (&image->disk.chain, location, options, &image->log,
                     error)) {
    g_free (image);
    return NULL;
  }
  pthread_mutex_init (&image->job_lock, NULL);
  pthread_cond_init (&image->job_ended, NULL);
  image->disk.delta = chain_top (&image->disk.chain);
  describe_levels (&image->disk.chain, &image->log);
  init_engine (image);
  describe_options (image);
  if (load_image (image, error) < 0) {
    image_free (image);
    return NULL;
  }
  return image;
}

/* Below an overlay the deltas' own locks on the descriptor must do: others may
 * read.
 */
bool
image_lock (struct image *image, const struct location *location,
            const struct ploop_open_options *options, GError **error)
{
  if (!location->descriptor)
    return true;
  if (!options->beside && !options->overlay
      && !chain_lock (&image->disk.chain, location->descriptor->path, error))
    return false;
  return location_is_current (location, error);
}

/* What has to be mended, a commit mends: entries of clusters that never came to be. */
int
image_recover (struct image *image)
{
  if (image_is_read_only (image)
      || !format_is_dirty (image->disk.delta->header.in_use))
    return 0;
  return commit_begin (&image->disk.commit);
}

/* A piece a job, so that others of this runner have their turn. */
static void
forget_cached (struct runner_job *job, unsigned index)
{
  struct image *image = caa_container_of (job, struct image, forget);
  const struct delta *delta = image->disk.delta;

  if (image->forgotten >= delta->file_size || atomic_load (&image->stopped)) {
    end_job (image);
    return;
  }
  delta_forget_cached (delta, FORGET_BYTES, image->forgotten);
  image->forgotten += FORGET_BYTES;
  runner_submit (image->disk.runners, index, job);
}

/* What was read or written through the page cache before. */
static void
start_forgetting (struct image *image)
{
  if (!image->disk.delta->direct || image_is_read_only (image))
    return;
  begin_job (image, &image->forget, 0, forget_cached);
}

int
image_start (struct image *image, GError **error)
{
  struct disk *disk = &image->disk;
  ploop_engine *engine = image->options.engine;
  int r = 0;

  if (image->started)
    return 0;
  if (!engine) {
    engine = &image->own;
    r = engine_start (engine, image->options.runners,
                      !image_is_read_only (image));
  }
  if (r < 0) {
    error_set_system (error, r, "%s: threads cannot be started",
                      disk->delta->path);
    return -1;
  }
  disk->runners = &engine->runners;
  if (!image_is_read_only (image))
    flusher_start (&disk->flusher, &engine->loop);
  image->started = true;
  log_debug (&image->log, "%s: started, with %u runners%s", disk->delta->path,
             engine->runners.nr,
             image->options.engine ? " that other disks have, too" : "");
  start_forgetting (image);
  return 0;
}

/* ---- Closing ----------------------------------------------------------- */

/* Let every request that was accepted end, and no other begin.  What was written
 * to lazy copies is filled in as long as a server below is still asked; what cannot
 * be makes the last flush fail.  Returns 0, or why it could not be.
 */
static int
stop_requests (struct image *image)
{
  struct disk *disk = &image->disk;
  int r = 0;

  gate_close (&disk->gate);
  flusher_give_up (&disk->flusher);
  if (!image_is_read_only (image))
    r = fills_stop (&disk->fills);
  chain_stop (&disk->chain);
  submit_drain (&image->submit);
  /* It begins jobs. */
  flusher_stop (&disk->flusher);
  wait_for_jobs (image);
  engine_stop (&image->own);
  return r;
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
image_stop (struct image *image, GError **error)
{
  int filled = 0, r = 0;

  if (atomic_exchange (&image->stopped, true))
    return 0;
  if (image->started)
    filled = stop_requests (image);
  if (!image_is_read_only (image))
    r = finish (&image->disk);
  /* What it was that failed: by now the server below is not asked any more. */
  if (r < 0 && filled < 0)
    r = filled;
  if (r < 0)
    error_set_system (error, r, "%s: could not be closed and stays marked as "
                      "in use; what was written since the last flush may be "
                      "lost", image->disk.delta->path);
  return r < 0 ? -1 : 0;
}

/* ---- Holding requests back --------------------------------------------- */

int
image_suspend (struct image *image)
{
  int r;

  gate_hold (&image->disk.gate);
  if (image_is_read_only (image))
    return 0;
  flusher_hold (&image->disk.flusher);
  r = commit_flush (&image->disk.commit);
  if (r < 0)
    image_resume (image);
  return r;
}

void
image_resume (struct image *image)
{
  if (!image_is_read_only (image))
    flusher_release (&image->disk.flusher);
  gate_release (&image->disk.gate);
}

/* ---- Its state --------------------------------------------------------- */

/* Clusters that a file of SIZE bytes has room for. */
static uint64_t
nr_in_file (const struct delta *delta, uint64_t size)
{
  return size <= delta->layout.data_start
           ? 0 : (size - delta->layout.data_start) / delta->layout.cluster_size;
}

int
image_add_state (const struct image *image, struct ploop_state *state)
{
  const struct disk *disk = &image->disk;
  const uint64_t nr_clusters = disk->map.nr_clusters;
  uint64_t allocated = image->nr_allocated, size = 0, space = 0;
  const int r = delta_space (disk->delta, &size, &space);

  state->nr_clusters += nr_clusters;
  state->file_size += size;
  state->file_space += space;
  if (!image_is_read_only (image)) {
    const uint64_t in_file = nr_in_file (disk->delta, size);

    allocated = nr_clusters - MIN (alloc_nr_wanted (&disk->alloc), nr_clusters);
    /* What alloc_finish has cut off is still counted there. */
    state->nr_free += MIN (alloc_nr_free (&disk->alloc),
                           in_file - MIN (allocated, in_file));
    state->sync_failed |= commit_has_failed (&disk->commit);
  }
  state->nr_allocated += allocated;
  return r;
}
