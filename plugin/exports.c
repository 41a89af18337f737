/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The server's exports: see exports.h. */

#include <config.h>

#include <string.h>

#include "exports.h"

static struct export disk;
static const char *disk_path;
static struct ploop_open_options snapshot_options;

static GMutex lock;             /* for what follows, and nr_users */
static GHashTable *snapshots;   /* struct export, by GUID */

void
exports_init (ploop_image *image, const char *path,
              const struct ploop_open_options *options)
{
  disk.image = image;
  disk_path = path;
  snapshot_options = *options;
  snapshot_options.read_only = true;
  snapshot_options.defer_start = false;
  snapshot_options.bases = NULL;
  snapshot_options.overlay = NULL;
  snapshot_options.beside = image;
  snapshots = g_hash_table_new (g_str_hash, g_str_equal);
}

/* What is shown of a name that a client has given. */
#define MOST_SHOWN 100

/* Is GUID that of a snapshot?  The client has called it NAME. */
static bool
is_snapshot (const char *guid, const char *name, GError **error)
{
  g_autoptr (GPtrArray) list =
    ploop_list_snapshots (disk_path, snapshot_options.allow_outside, error);
  g_autofree char *start = g_strndup (name, MOST_SHOWN);
  g_autofree char *shown = NULL;

  if (!list)
    return false;
  for (guint i = 0; i < list->len; i++) {
    const struct ploop_snapshot *snapshot = g_ptr_array_index (list, i);

    if (g_str_equal (snapshot->guid, guid))
      return true;
  }
  shown = g_strescape (start, NULL);
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: there is no export '%s%s': give no name for the disk, or a "
               "snapshot's GUID in braces", disk_path, shown,
               strlen (name) > MOST_SHOWN ? "..." : "");
  return false;
}

/* With the lock held. */
static struct export *
open_snapshot (const char *guid, const char *name, GError **error)
{
  struct ploop_open_options options = snapshot_options;
  struct export *export;
  ploop_image *image;

  if (!is_snapshot (guid, name, error))
    return NULL;
  options.snapshot = guid;
  image = ploop_open (disk_path, &options, error);
  if (!image)
    return NULL;
  export = g_new0 (struct export, 1);
  export->image = image;
  export->guid = g_strdup (guid);
  g_hash_table_insert (snapshots, export->guid, export);
  return export;
}

struct export *
exports_get (const char *name, GError **error)
{
  g_autofree char *guid = NULL;
  struct export *export;

  if (*name == '\0')
    return &disk;
  guid = g_ascii_strdown (name, -1);
  g_mutex_lock (&lock);
  export = g_hash_table_lookup (snapshots, guid);
  if (!export)
    export = open_snapshot (guid, name, error);
  if (export)
    export->nr_users++;
  g_mutex_unlock (&lock);
  return export;
}

/* A snapshot is only read: closing it cannot fail. */
static void
free_snapshot (struct export *export)
{
  ploop_close (export->image, NULL);
  g_free (export->guid);
  g_free (export);
}

void
exports_put (struct export *export)
{
  bool last = false;

  if (export == &disk)
    return;
  g_mutex_lock (&lock);
  if (--export->nr_users == 0) {
    g_hash_table_remove (snapshots, export->guid);
    last = true;
  }
  g_mutex_unlock (&lock);
  if (last)
    free_snapshot (export);
}

static void
stop_snapshot (gpointer key, gpointer value, gpointer opaque)
{
  struct export *export = value;

  (void) key;
  (void) opaque;
  ploop_stop (export->image, NULL);
}

void
exports_stop (void)
{
  g_mutex_lock (&lock);
  if (snapshots)
    g_hash_table_foreach (snapshots, stop_snapshot, NULL);
  g_mutex_unlock (&lock);
}

void
exports_close (void)
{
  GHashTableIter iter;
  gpointer export;

  if (!snapshots)
    return;
  g_hash_table_iter_init (&iter, snapshots);
  while (g_hash_table_iter_next (&iter, NULL, &export)) {
    g_hash_table_iter_remove (&iter);
    free_snapshot (export);
  }
  g_clear_pointer (&snapshots, g_hash_table_unref);
}
