/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Creating an empty image, by itself, as a disk with a descriptor, or as an overlay on
 * another disk: ploop_create in ploop-core.h.
 */

#include <config.h>

#include <unistd.h>

#include "blank.h"
#include "descriptor-new.h"
#include "store.h"

/* ---- An overlay -------------------------------------------------------- */

/* Do OPTIONS, as the caller has them, agree with what is right over the disk? */
static bool
fits (const char *path, const struct ploop_create_options *options,
      const struct ploop_create_options *below, GError **error)
{
  if (options->space != PLOOP_CREATE_SPARSE)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: an overlay cannot be preallocated: its clusters would hide "
                 "what is below them", path);
  else if (options->descriptor)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: an overlay cannot have a descriptor of its own: one that "
                 "lists all deltas is made by taking a snapshot", path);
  else if (options->size != 0 && options->size < below->size)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: size is %" G_GUINT64_FORMAT " bytes, but that of %s is %"
                 G_GUINT64_FORMAT ", and an overlay cannot be smaller", path,
                 options->size, options->overlay_of, below->size);
  else if (below->cluster_size != 0 && options->cluster_size != 0
           && options->cluster_size != below->cluster_size)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: cluster size is %u bytes, but that of %s is %u, and an "
                 "overlay has the same: leave it out", path,
                 options->cluster_size, options->overlay_of,
                 below->cluster_size);
  else if (below->version != 0 && options->version != 0
           && options->version != below->version)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: format version is %u, but that of %s is %u, and an overlay "
                 "has the same: leave it out", path, options->version,
                 options->overlay_of, below->version);
  else
    return true;
  return false;
}

/* Of a raw disk, the caller may choose. */
static bool
take_over (const char *path, const struct store *store,
           struct ploop_create_options *options, GError **error)
{
  struct ploop_create_options below = *options;

  if (store_nr_parts (store) > 1) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: is a split disk, which cannot have an overlay",
                 options->overlay_of);
    return false;
  }
  blank_like (store_size (store), store_cluster_size (store),
              store_version (store), &below);
  if (!fits (path, options, &below, error))
    return false;
  if (options->size == 0)
    options->size = below.size;
  if (below.cluster_size != 0)
    options->cluster_size = below.cluster_size;
  if (below.version != 0)
    options->version = below.version;
  return true;
}

/* The disk stays locked until its overlay is there. */
static int
create_overlay (const char *path, struct ploop_create_options *options,
                GError **error)
{
  const struct log log = { options->log, options->log_opaque };
  struct store *store =
    store_open (options->overlay_of, options->snapshot, &log, error);
  int r = -1;

  if (!store)
    return -1;
  if (take_over (path, store, options, error))
    r = blank_create (path, options, error);
  store_close (store);
  return r;
}

/* ---- With a descriptor ------------------------------------------------- */

static int
create_described (const char *path,
                  const struct ploop_create_options *options, GError **error)
{
  const bool is_new = access (path, F_OK) == -1;
  int r;

  if (!descriptor_new_is_possible (path, error))
    return -1;
  r = blank_create (path, options, error);
  if (r != 0)
    return r;
  r = descriptor_new_write (path, options->space, error);
  if (r == -1 && is_new)
    unlink (path);
  else if (r == -1)
    g_prefix_error (error, "%s: is replaced, but has no descriptor: ", path);
  return r;
}

/* ---- Any of them ------------------------------------------------------- */

int
ploop_create (const char *path, const struct ploop_create_options *options,
              GError **error)
{
  struct ploop_create_options o = *options;

  if (o.overlay_of)
    return create_overlay (path, &o, error);
  if (!o.snapshot)
    return o.descriptor ? create_described (path, &o, error)
                        : blank_create (path, &o, error);
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: snapshot is %s, but it is not to be an overlay", path,
               o.snapshot);
  return -1;
}
