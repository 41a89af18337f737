/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* From a name to the files of a disk: see location.h. */

#include <config.h>

#include <errno.h>
#include <sys/stat.h>

#include "location.h"

static struct chain_source *
last_delta (const struct location *location)
{
  return &g_array_index (location->deltas, struct chain_source,
                         location->deltas->len - 1);
}

void
location_clear (struct location *location)
{
  g_clear_pointer (&location->deltas, g_array_unref);
}

/* ---- A file and those below it ----------------------------------------- */

/* Only the base may be a raw disk, and only if something is above it. */
static bool
find_files (struct location *location, const char *path,
            const struct ploop_open_options *options, GError **error)
{
  const char *const none = NULL;
  const char *const *bases = options->bases ? options->bases : &none;
  guint nr = g_strv_length ((gchar **) bases);

  if (nr == 0) {
    chain_sources_add (location->deltas, path, -1, options->overlay != NULL);
    return true;
  }
  if (nr >= CHAIN_MAX_LEVELS) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: has %u bases, but a chain has %u deltas at most", path,
                 nr, CHAIN_MAX_LEVELS);
    return false;
  }
  for (guint i = nr; i-- > 0;)
    chain_sources_add (location->deltas, bases[i], -1, i == nr - 1);
  chain_sources_add (location->deltas, path, -1, false);
  return true;
}

/* ---- An overlay -------------------------------------------------------- */

/* As large as the disk that it goes over, with clusters as large as its. */
static bool
create_overlay (const struct location *location, const char *path,
                const struct log *log, GError **error)
{
  const struct chain_source *over = last_delta (location);
  const struct delta_source source = {
    .path = over->path,
    .path_fd = over->path_fd,
    .raw_cluster_size = over->may_be_raw ? FORMAT_DEFAULT_CLUSTER : 0,
  };
  struct delta *delta = delta_open_source (&source, DELTA_LOCK_NONE, error);
  struct ploop_create_options options = { 0 };

  if (!delta)
    return false;
  options.size = (delta->layout.size + FORMAT_SECTOR_SIZE - 1)
                 / FORMAT_SECTOR_SIZE * FORMAT_SECTOR_SIZE;
  options.cluster_size = delta->layout.cluster_size;
  delta_close (delta);
  if (ploop_create (path, &options, error) == -1) {
    g_prefix_error (error, "overlay: ");
    return false;
  }
  log_debug (log, "%s: created as an overlay on %s", path, over->path);
  return true;
}

static bool
add_overlay (struct location *location,
             const struct ploop_open_options *options, const struct log *log,
             GError **error)
{
  struct stat st;

  if (stat (options->overlay, &st) == -1) {
    if (errno == ENOENT && options->read_only) {
      g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                   "%s: there is no such overlay, and it is not created for "
                   "reading only: leave it out", options->overlay);
      return false;
    }
    if (errno != ENOENT) {
      error_set_system (error, errno, "%s: cannot be examined",
                        options->overlay);
      return false;
    }
    if (!create_overlay (location, options->overlay, log, error))
      return false;
  }
  chain_sources_add (location->deltas, options->overlay, -1, false);
  return true;
}

/* ---- All of it --------------------------------------------------------- */

bool
location_find (struct location *location, const char *path,
               const struct ploop_open_options *options,
               const struct log *log, GError **error)
{
  *location = (struct location) {
    .deltas = chain_sources_new (),
    .read_only = options->read_only,
  };
  if (find_files (location, path, options, error)
      && (!options->overlay || add_overlay (location, options, log, error)))
    return true;
  location_clear (location);
  return false;
}
