/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Listing the snapshots of a disk: ploop_list_snapshots in ploop-core.h. */

#include <config.h>

#include <sys/stat.h>
#include <unistd.h>

#include "delta.h"
#include "descriptor.h"
#include "location.h"

void
ploop_snapshot_free (struct ploop_snapshot *snapshot)
{
  if (!snapshot)
    return;
  g_free (snapshot->guid);
  g_free (snapshot->parent);
  g_free (snapshot->path);
  g_free (snapshot);
}

static void
free_snapshot (gpointer opaque)
{
  ploop_snapshot_free (opaque);
}

/* What the file of a snapshot tells about it: nothing when it cannot be read,
 * which whoever opens the snapshot is told.
 */
static void
look_at_file (const struct descriptor *descriptor, bool allow_outside,
              struct ploop_snapshot *snapshot)
{
  /* A split disk's others were frozen with the first one's. */
  const struct descriptor_image *image =
    descriptor_find_image (descriptor, 0, snapshot->guid);
  struct delta_source source = { .path_fd = -1 };
  struct delta *delta;
  struct stat st;

  if (image)
    source.path_fd = descriptor_open_file (descriptor, image, allow_outside,
                                           &snapshot->path, NULL);
  if (source.path_fd == -1)
    return;
  source.path = snapshot->path;
  source.raw_cluster_size = image->is_plain ? FORMAT_DEFAULT_CLUSTER : 0;
  delta = delta_open_source (&source, DELTA_LOCK_NONE, NULL);
  if (delta) {
    snapshot->size = delta->layout.size;
    if (fstat (delta->fd, &st) == 0)
      snapshot->last_change = st.st_mtime;
  }
  delta_close (delta);
  close (source.path_fd);
}

static struct ploop_snapshot *
describe_shot (const struct descriptor *descriptor,
               const struct descriptor_shot *shot, bool allow_outside)
{
  struct ploop_snapshot *snapshot = g_new0 (struct ploop_snapshot, 1);

  snapshot->guid = g_strdup (shot->guid);
  snapshot->parent = g_strdup (shot->parent_guid);
  snapshot->is_temporary = shot->temporary != DESCRIPTOR_PERMANENT;
  look_at_file (descriptor, allow_outside, snapshot);
  return snapshot;
}

GPtrArray *
ploop_list_snapshots (const char *path, bool allow_outside, GError **error)
{
  g_autoptr (GPtrArray) list = g_ptr_array_new_with_free_func (free_snapshot);
  g_autofree char *xml = location_descriptor (path);
  g_autoptr (Descriptor) descriptor = NULL;

  if (!xml)
    return g_steal_pointer (&list);
  descriptor = descriptor_load (xml, error);
  if (!descriptor)
    return NULL;
  for (guint i = 0; i < descriptor->shots->len; i++) {
    const struct descriptor_shot *shot =
      g_ptr_array_index (descriptor->shots, i);

    if (!descriptor_is_top (descriptor, shot->guid))
      g_ptr_array_add (list, describe_shot (descriptor, shot, allow_outside));
  }
  return g_steal_pointer (&list);
}
