/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Listing the snapshots of a disk: ploop_list_snapshots and ploop_list_tree in
 * ploop-core.h.
 *
 * What shots say of their parents may be wrong in every way: parents that are not
 * there, circles, two shots of one GUID.  Each shot is listed once all the same.
 */

#include <config.h>

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "delta.h"
#include "descriptor.h"
#include "location.h"
#include "snapshots.h"

void
ploop_snapshot_free (struct ploop_snapshot *snapshot)
{
  if (!snapshot)
    return;
  g_free (snapshot->guid);
  g_free (snapshot->parent);
  g_free (snapshot->path);
  g_free (snapshot->problem);
  g_free (snapshot);
}

static void
free_snapshot (gpointer opaque)
{
  ploop_snapshot_free (opaque);
}

/* ---- One of them ------------------------------------------------------- */

static bool
look_at_delta (const struct descriptor_image *image, int path_fd,
               const char *path, struct ploop_snapshot *snapshot,
               GError **error)
{
  const struct delta_source source = {
    .path = path,
    .path_fd = path_fd,
    .raw_cluster_size = image->is_plain && !snapshot->parent
                          ? FORMAT_DEFAULT_CLUSTER : 0,
  };
  struct delta *delta = delta_open_source (&source, DELTA_LOCK_NONE, error);
  struct stat st;

  if (!delta)
    return false;
  snapshot->size += delta->layout.size;
  if (fstat (delta->fd, &st) == 0)
    snapshot->last_change = MAX (snapshot->last_change, st.st_mtime);
  delta_close (delta);
  return true;
}

/* What the file of one part tells about a snapshot.  A split disk's were all frozen
 * together.
 */
static bool
look_at_part (const struct descriptor *descriptor, guint part,
              bool allow_outside, struct ploop_snapshot *snapshot,
              GError **error)
{
  const struct descriptor_image *image =
    descriptor_find_image (descriptor, part, snapshot->guid);
  g_autofree char *path = NULL;
  bool is_known;
  int fd;

  if (!image) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
                 "%s: no <Image> has the GUID %s", descriptor->path,
                 snapshot->guid);
    return false;
  }
  fd = descriptor_open_file (descriptor, image, allow_outside, &path, error);
  if (fd == -1)
    return false;
  is_known = look_at_delta (image, fd, path, snapshot, error);
  close (fd);
  if (part == 0)
    snapshot->path = g_steal_pointer (&path);
  return is_known;
}

/* Not all that there is to know may be found out: whoever opens the snapshot is
 * told why.
 */
static struct ploop_snapshot *
describe_shot (const struct descriptor *descriptor,
               const struct descriptor_shot *shot, bool allow_outside)
{
  struct ploop_snapshot *snapshot = g_new0 (struct ploop_snapshot, 1);
  g_autoptr (GError) why = NULL;

  snapshot->guid = g_strdup (shot->guid);
  snapshot->parent = g_strdup (shot->parent_guid);
  snapshot->is_temporary = shot->temporary != DESCRIPTOR_PERMANENT;
  snapshot->is_current = descriptor_is_top (descriptor, shot->guid);
  for (guint part = 0; part < descriptor->storages->len && !why; part++)
    look_at_part (descriptor, part, allow_outside, snapshot, &why);
  if (why) {
    snapshot->problem = g_strdup (why->message);
    snapshot->size = 0;
    snapshot->last_change = 0;
  }
  return snapshot;
}

/* ---- All of them ------------------------------------------------------- */

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

/* ---- As a tree --------------------------------------------------------- */

struct tree {
  const struct descriptor *descriptor;
  bool allow_outside;
  GHashTable *children;         /* GUID of a parent to GPtrArray of shots */
  GHashTable *listed;           /* shots that LIST has */
  GPtrArray *list;              /* of struct ploop_snapshot */
};

/* A shot whose turn comes. */
struct branch {
  const struct descriptor_shot *shot;
  unsigned depth;
};

static void
free_children (gpointer opaque)
{
  g_ptr_array_unref (opaque);
}

static void
index_children (struct tree *tree)
{
  const GPtrArray *shots = tree->descriptor->shots;

  for (guint i = 0; i < shots->len; i++) {
    struct descriptor_shot *shot = g_ptr_array_index (shots, i);
    GPtrArray *siblings;

    if (!shot->parent_guid)
      continue;
    siblings = g_hash_table_lookup (tree->children, shot->parent_guid);
    if (!siblings) {
      siblings = g_ptr_array_new ();
      g_hash_table_insert (tree->children, shot->parent_guid, siblings);
    }
    g_ptr_array_add (siblings, shot);
  }
}

/* The last child first: the first is taken off the end first. */
static void
add_branches (const struct tree *tree, const struct branch *parent,
              GArray *branches)
{
  const GPtrArray *children =
    g_hash_table_lookup (tree->children, parent->shot->guid);

  for (guint i = children ? children->len : 0; i-- > 0;) {
    const struct branch child = { g_ptr_array_index (children, i),
                                  parent->depth + 1 };

    g_array_append_val (branches, child);
  }
}

/* List SHOT and all that rest on it, each before those that rest on it. */
static void
list_branch (struct tree *tree, const struct descriptor_shot *shot)
{
  g_autoptr (GArray) branches =
    g_array_new (FALSE, FALSE, sizeof (struct branch));
  const struct branch root = { shot, 0 };

  g_array_append_val (branches, root);
  while (branches->len > 0) {
    const struct branch branch =
      g_array_index (branches, struct branch, branches->len - 1);
    struct ploop_snapshot *snapshot;

    g_array_set_size (branches, branches->len - 1);
    if (!g_hash_table_add (tree->listed, (gpointer) branch.shot))
      continue;
    snapshot =
      describe_shot (tree->descriptor, branch.shot, tree->allow_outside);
    snapshot->depth = branch.depth;
    g_ptr_array_add (tree->list, snapshot);
    add_branches (tree, &branch, branches);
  }
}

/* First what has no parent, then what goes round in circles. */
static void
list_all (struct tree *tree)
{
  const struct descriptor *descriptor = tree->descriptor;

  for (guint i = 0; i < descriptor->shots->len; i++) {
    const struct descriptor_shot *shot =
      g_ptr_array_index (descriptor->shots, i);

    if (!descriptor_find_parent (descriptor, shot))
      list_branch (tree, shot);
  }
  for (guint i = 0; i < descriptor->shots->len; i++)
    list_branch (tree, g_ptr_array_index (descriptor->shots, i));
}

GPtrArray *
snapshots_tree (const struct descriptor *descriptor, bool allow_outside)
{
  struct tree tree = {
    .descriptor = descriptor,
    .allow_outside = allow_outside,
    .children = g_hash_table_new_full (g_str_hash, g_str_equal, NULL,
                                       free_children),
    .listed = g_hash_table_new (NULL, NULL),
    .list = g_ptr_array_new_with_free_func (free_snapshot),
  };

  index_children (&tree);
  list_all (&tree);
  g_hash_table_unref (tree.children);
  g_hash_table_unref (tree.listed);
  return tree.list;
}

GPtrArray *
ploop_list_tree (const char *path, bool allow_outside, GError **error)
{
  g_autofree char *xml = location_descriptor (path);
  g_autoptr (Descriptor) descriptor = NULL;

  if (!xml && access (path, F_OK) == -1) {
    error_set_system (error, errno, "%s: cannot be opened", path);
    return NULL;
  }
  if (!xml) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: only a DiskDescriptor.xml, or a directory that holds one, "
                 "has snapshots", path);
    return NULL;
  }
  descriptor = descriptor_load (xml, error);
  return descriptor ? snapshots_tree (descriptor, allow_outside) : NULL;
}
