/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The deltas of a disk: see chain.h.
 *
 * BATs are merged into the map by threads that do not wait for each other: an
 * entry goes in by compare-and-swap if its delta is higher than that of the word
 * it finds.  So the order in which they are read does not matter, and a chain
 * takes as long to open as its BATs take to read.
 */

#include <config.h>

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chain.h"
#include "lock.h"

/* ---- Sources ----------------------------------------------------------- */

static void
clear_source (gpointer opaque)
{
  struct chain_source *source = opaque;

  g_free (source->path);
  if (source->path_fd >= 0)
    close (source->path_fd);
}

GArray *
chain_sources_new (void)
{
  GArray *sources = g_array_new (FALSE, FALSE, sizeof (struct chain_source));

  g_array_set_clear_func (sources, clear_source);
  return sources;
}

void
chain_sources_add (GArray *sources, const char *path, int path_fd,
                   bool may_be_raw)
{
  const struct chain_source source = { g_strdup (path), path_fd, may_be_raw };

  g_array_append_val (sources, source);
}

/* ---- Opening ----------------------------------------------------------- */

static bool
is_same_directory (const struct delta *delta, const struct delta *other)
{
  g_autofree char *a = g_path_get_dirname (delta->path);
  g_autofree char *b = g_path_get_dirname (other->path);

  return strcmp (a, b) == 0;
}

/* The top delta's lock on the descriptor is good for those beside it. */
static bool
lock_beside (struct delta *delta, const struct delta *top, GError **error)
{
  return delta->remote || is_same_directory (delta, top)
         || lock_descriptor (delta->path,
                             top->read_only ? DESCRIPTOR_LOCK_READER
                                            : DESCRIPTOR_LOCK_BASE,
                             &delta->descriptor_lock_fd, error);
}

/* Is the file that SOURCE says one of those above LEVEL?  To be asked before it is
 * locked, for its own lock would be in the way.
 */
static bool
is_twice (const struct chain *chain, unsigned level,
          const struct chain_source *source, GError **error)
{
  struct stat st, above;

  if ((source->path_fd >= 0 ? fstat (source->path_fd, &st)
                            : stat (source->path, &st)) == -1)
    return false;               /* opening it says why, or it is a URI */
  for (unsigned i = level + 1; i < chain->nr_levels; i++)
    if (fstat (chain->levels[i]->fd, &above) == 0
        && st.st_dev == above.st_dev && st.st_ino == above.st_ino) {
      g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                   "%s: is twice in the chain: each delta is given once, from "
                   "the one below the top to the base", source->path);
      return true;
    }
  return false;
}

/* The smallest disk of those above LEVEL. */
static const struct delta *
smallest_above (const struct chain *chain, unsigned level)
{
  const struct delta *smallest = chain_top (chain);

  while (++level < chain->nr_levels)
    if (chain->levels[level]->layout.size < smallest->layout.size)
      smallest = chain->levels[level];
  return smallest;
}

/* Does LEVEL, just opened, fit those above it? */
static bool
fits (const struct chain *chain, unsigned level, const struct log *log,
      GError **error)
{
  const struct delta *delta = chain->levels[level];
  const struct delta *top = chain_top (chain);
  const struct delta *smallest = smallest_above (chain, level);

  if (delta->layout.cluster_size != top->layout.cluster_size) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_FORMAT,
                 "%s: cluster size is %" G_GUINT32_FORMAT " bytes, but that of "
                 "%s, above it, is %" G_GUINT32_FORMAT ": they are not of one "
                 "chain", delta->path, delta->layout.cluster_size, top->path,
                 top->layout.cluster_size);
    return false;
  }
  if (delta->layout.size > smallest->layout.size)
    log_warning (log, "%s: has a disk of %" G_GUINT64_FORMAT " bytes, larger "
                 "than that of %s, above it (%" G_GUINT64_FORMAT "): is this the "
                 "right order?", delta->path, delta->layout.size,
                 smallest->path, smallest->layout.size);
  return true;
}

static bool
open_level (struct chain *chain, unsigned level,
            const struct chain_source *source,
            const struct chain_options *options, GError **error)
{
  const struct delta_source of_delta = {
    .path = source->path,
    .path_fd = source->path_fd,
    .raw_cluster_size =
      source->may_be_raw ? chain_top (chain)->layout.cluster_size : 0,
    .descriptor_is_locked = true,       /* see lock_beside */
    .log = options->log,
    .give_up = options->give_up,
    .give_up_opaque = options->give_up_opaque,
  };

  if (is_twice (chain, level, source, error))
    return false;
  chain->levels[level] =
    delta_open_source (&of_delta, DELTA_LOCK_READER, error);
  return chain->levels[level]
         && lock_beside (chain->levels[level], chain_top (chain), error)
         && fits (chain, level, options->log, error);
}

bool
chain_open (struct chain *chain, const GArray *sources, struct delta *top,
            const struct chain_options *options, GError **error)
{
  chain->nr_levels = sources->len;
  chain->levels = g_new0 (struct delta *, chain->nr_levels);
  chain->levels[sources->len - 1] = top;
  if (chain->nr_levels > CHAIN_MAX_LEVELS) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: its chain has %u deltas, more than the %u that the format "
                 "allows", top->path, chain->nr_levels, CHAIN_MAX_LEVELS);
    chain_close (chain);
    return false;
  }
  for (unsigned level = sources->len - 1; level-- > 0;)
    if (!open_level (chain, level,
                     &g_array_index (sources, struct chain_source, level),
                     options, error)) {
      chain_close (chain);
      return false;
    }
  return true;
}

bool
chain_lock (struct chain *chain, const char *descriptor, GError **error)
{
  const struct delta *top = chain_top (chain);
  g_autofree char *beside = lock_descriptor_name (top->path);
  int fd;

  if (strcmp (beside, descriptor) == 0)
    return true;
  if (!lock_descriptor_file (descriptor, descriptor,
                             top->read_only ? DESCRIPTOR_LOCK_READER
                                            : DESCRIPTOR_LOCK_WRITER,
                             &fd, error))
    return false;
  chain->lock_fd = MAX (fd, 0);
  return true;
}

void
chain_stop (const struct chain *chain)
{
  for (unsigned i = 0; i < chain->nr_levels; i++)
    delta_stop (chain->levels[i]);
}

void
chain_close (struct chain *chain)
{
  for (unsigned i = 0; i < chain->nr_levels; i++)
    delta_close (chain->levels[i]);
  if (chain->lock_fd > 0)
    close (chain->lock_fd);
  chain->lock_fd = 0;
  g_clear_pointer (&chain->levels, g_free);
  chain->nr_levels = 0;
}

/* ---- Loading ----------------------------------------------------------- */

/* What the threads share. */
struct loading {
  const struct chain *chain;
  struct map *map;
  const struct log *log;
  struct chain_summary *summary;
  _Atomic unsigned nr_begun;    /* levels, from the top down */
  _Atomic bool failed;
  GMutex lock;                  /* for error */
  GError *error;                /* the first one */
};

/* What one level needs. */
struct loading_level {
  struct loading *loading;
  unsigned level;
};

static void
load_entry (void *opaque, uint32_t index, uint32_t entry)
{
  const struct loading_level *level = opaque;
  struct map *map = level->loading->map;

  /* A lower delta may be larger. */
  if (index < map->nr_clusters)
    map_merge (map, index, map_word (level->level, entry, 0));
}

static void
load_leak (void *opaque, uint64_t first, uint64_t nr)
{
  const struct loading_level *level = opaque;
  const struct chain_summary *summary = level->loading->summary;

  summary->leak (summary->opaque, first, nr);
}

/* All clusters of a raw disk that are not holes of its file. */
static void
load_raw (struct loading_level *level, const struct delta *delta)
{
  const uint32_t cluster_size = delta->layout.cluster_size;
  uint64_t start = 0, stop, next = 0;

  while (delta_next_data_at_open (delta, delta->file_size, &start, &stop)) {
    for (next = MAX (next, start / cluster_size); next * cluster_size < stop;
         next++)
      load_entry (level, (uint32_t) next, (uint32_t) next);
    start = stop;
  }
}

static int
load_level (struct loading_level *level, GError **error)
{
  struct loading *loading = level->loading;
  const struct delta *delta = loading->chain->levels[level->level];
  const bool is_top = level->level == chain_top_level (loading->chain);
  g_autoptr (GArray) lost = g_array_new (FALSE, FALSE, sizeof (uint32_t));
  struct bat_loader loader = { .entry = load_entry, .opaque = level };

  if (delta->is_raw) {
    load_raw (level, delta);
    return 0;
  }
  if (is_top && loading->summary->leak)
    loader.leak = load_leak;
  return bat_load (delta, &loader, loading->log,
                   is_top ? loading->summary->lost : lost,
                   is_top ? &loading->summary->top : NULL, error);
}

static void
keep_error (struct loading *loading, GError *error)
{
  g_mutex_lock (&loading->lock);
  if (loading->error)
    g_error_free (error);
  else
    loading->error = error;
  g_mutex_unlock (&loading->lock);
  atomic_store (&loading->failed, true);
}

static gpointer
load_levels (gpointer opaque)
{
  struct loading *loading = opaque;
  unsigned n;

  while (!atomic_load (&loading->failed)
         && (n = atomic_fetch_add (&loading->nr_begun, 1))
              < loading->chain->nr_levels) {
    struct loading_level level = { loading,
                                   loading->chain->nr_levels - 1 - n };
    GError *error = NULL;

    if (load_level (&level, &error) < 0)
      keep_error (loading, error);
  }
  return NULL;
}

int
chain_load (const struct chain *chain, struct map *map, const struct log *log,
            struct chain_summary *summary, GError **error)
{
  struct loading loading = {
    .chain = chain,
    .map = map,
    .log = log,
    .summary = summary,
  };
  const unsigned nr_helpers =
    MIN (g_get_num_processors (), chain->nr_levels) - 1;
  g_autofree GThread **helpers = g_new (GThread *, nr_helpers);

  g_mutex_init (&loading.lock);
  for (unsigned i = 0; i < nr_helpers; i++)
    helpers[i] = g_thread_try_new ("ploop-load", load_levels, &loading, NULL);
  load_levels (&loading);
  for (unsigned i = 0; i < nr_helpers; i++)
    if (helpers[i])
      g_thread_join (helpers[i]);
  g_mutex_clear (&loading.lock);
  if (!loading.error)
    return 0;
  g_propagate_error (error, loading.error);
  return -1;
}
