/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Describing a whole disk: ploop_describe_disk in ploop-core.h.
 *
 * Whoever asks has a disk that something may be wrong with.  So what cannot be opened
 * is told of, with the reason, and never keeps the rest from being told.
 */

#include <config.h>

#include <sys/stat.h>
#include <unistd.h>

#include "delta.h"
#include "descriptor.h"
#include "extension.h"
#include "info.h"
#include "location.h"
#include "lock.h"
#include "snapshots.h"

static void
free_bitmap (gpointer opaque)
{
  struct ploop_bitmap_info *bitmap = opaque;

  g_free (bitmap->uuid);
  g_free (bitmap);
}

static void
free_delta (gpointer opaque)
{
  struct ploop_delta_info *info = opaque;

  g_free (info->guid);
  g_free (info->parent);
  g_free (info->file);
  g_free (info->path);
  g_free (info->problem);
  g_free (info->extension_problem);
  g_ptr_array_unref (info->bitmaps);
  g_free (info);
}

void
ploop_disk_info_free (struct ploop_disk_info *info)
{
  if (!info)
    return;
  g_free (info->descriptor);
  g_free (info->top);
  g_array_unref (info->parts);
  g_ptr_array_unref (info->deltas);
  g_ptr_array_unref (info->snapshots);
  g_free (info);
}

static struct ploop_disk_info *
new_info (void)
{
  struct ploop_disk_info *info = g_new0 (struct ploop_disk_info, 1);

  info->parts = g_array_new (FALSE, FALSE, sizeof (struct ploop_part_info));
  info->deltas = g_ptr_array_new_with_free_func (free_delta);
  info->snapshots = g_ptr_array_new ();
  return info;
}

static struct ploop_delta_info *
add_delta (struct ploop_disk_info *info, const char *file)
{
  struct ploop_delta_info *delta_info = g_new0 (struct ploop_delta_info, 1);

  delta_info->file = g_strdup (file);
  delta_info->bitmaps = g_ptr_array_new_with_free_func (free_bitmap);
  g_ptr_array_add (info->deltas, delta_info);
  return delta_info;
}

/* ---- The extension ----------------------------------------------------- */

/* As libploop writes it: the bytes of a uuid_t, in their order. */
static char *
format_uuid (const uint8_t uuid[16])
{
  GString *text = g_string_new ("{");

  for (int i = 0; i < 16; i++)
    g_string_append_printf (text, "%s%02x",
                            i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
                            uuid[i]);
  g_string_append_c (text, '}');
  return g_string_free (text, FALSE);
}

static void
list_bitmaps (const struct extension *extension, GPtrArray *list)
{
  for (guint i = 0; i < extension->bitmaps->len; i++) {
    const struct extension_bitmap *bitmap =
      &g_array_index (extension->bitmaps, struct extension_bitmap, i);
    struct ploop_bitmap_info *info = g_new0 (struct ploop_bitmap_info, 1);

    info->uuid = format_uuid (bitmap->uuid);
    info->size = bitmap->size_sectors * FORMAT_SECTOR_SIZE;
    info->granularity = (uint64_t) bitmap->granularity * FORMAT_SECTOR_SIZE;
    g_ptr_array_add (list, info);
  }
}

/* Returns NULL, or what is wrong (g_free). */
static char *
read_bitmaps (const struct delta *delta, GPtrArray *list)
{
  const struct format_layout *layout = &delta->layout;
  char *wrong =
    extension_check_place (&delta->header, layout, delta->file_size);
  g_autofree uint8_t *bytes = NULL;
  struct extension extension;
  int r = -ENOMEM;

  if (wrong)
    return wrong;
  if (layout->cluster_size > FORMAT_MAX_CREATE_CLUSTER)
    return g_strdup_printf ("extension in a cluster of %" G_GUINT32_FORMAT
                            " bytes", layout->cluster_size);
  bytes = g_try_malloc (layout->cluster_size);
  if (bytes)
    r = delta_pread (delta, bytes, layout->cluster_size,
                     delta->header.extension_sectors * FORMAT_SECTOR_SIZE);
  if (r < 0)
    return g_strdup_printf ("extension cannot be read: %s", g_strerror (-r));
  wrong = extension_parse (bytes, layout, delta->file_size, &extension);
  if (wrong)
    return wrong;
  list_bitmaps (&extension, list);
  extension_clear (&extension);
  return NULL;
}

static void
describe_extension (const struct delta *delta, struct ploop_delta_info *info)
{
  info->extension = PLOOP_EXTENSION_NONE;
  if (delta->is_raw || delta->header.extension_sectors == 0)
    return;
  info->extension_problem = read_bitmaps (delta, info->bitmaps);
  if (info->extension_problem)
    info->extension = PLOOP_EXTENSION_DAMAGED;
  else
    info->extension = format_has_valid_extension (&delta->header)
                        ? PLOOP_EXTENSION_VALID : PLOOP_EXTENSION_STALE;
}

/* ---- One image --------------------------------------------------------- */

static bool
describe_delta (const struct delta *delta, struct ploop_delta_info *info,
                GError **error)
{
  struct stat st;

  if (info_get (delta, &info->info, error) < 0)
    return false;
  info->is_raw = delta->is_raw;
  if (fstat (delta->fd, &st) == 0)
    info->last_change = st.st_mtime;
  describe_extension (delta, info);
  return true;
}

/* PATH is an image: it must be one that can be read. */
static struct ploop_disk_info *
describe_image (const char *path, GError **error)
{
  struct delta *delta = delta_open (path, DELTA_LOCK_NONE, error);
  struct ploop_disk_info *info;
  struct ploop_delta_info *only;

  if (!delta)
    return NULL;
  info = new_info ();
  only = add_delta (info, path);
  info->is_image = true;
  if (!describe_delta (delta, only, error)) {
    delta_close (delta);
    ploop_disk_info_free (info);
    return NULL;
  }
  only->path = g_strdup (delta->path);
  only->guid = location_guid (delta->path, &info->descriptor, &only->parent);
  info->size = only->info.size;
  info->disk_usage = only->info.disk_usage;
  delta_close (delta);
  return info;
}

/* ---- A disk ------------------------------------------------------------ */

static bool
describe_file (const struct descriptor *descriptor,
               const struct descriptor_storage *storage,
               const struct descriptor_image *image, bool allow_outside,
               struct ploop_delta_info *info, GError **error)
{
  const int fd = descriptor_open_file (descriptor, image, allow_outside,
                                       &info->path, error);
  const struct delta_source source = {
    .path = info->path,
    .path_fd = fd,
    .raw_cluster_size = image->is_plain && !info->parent
                          ? storage->cluster_sectors * FORMAT_SECTOR_SIZE : 0,
  };
  struct delta *delta =
    fd == -1 ? NULL : delta_open_source (&source, DELTA_LOCK_NONE, error);
  const bool is_described = delta && describe_delta (delta, info, error);

  delta_close (delta);
  if (fd != -1)
    close (fd);
  return is_described;
}

static void
add_image (struct ploop_disk_info *info, const struct descriptor *descriptor,
           guint part, const struct descriptor_image *image,
           const struct ploop_snapshot *snapshot, bool allow_outside)
{
  const struct descriptor_storage *storage =
    g_ptr_array_index (descriptor->storages, part);
  struct ploop_delta_info *delta = add_delta (info, image->file);
  g_autoptr (GError) why = NULL;

  delta->guid = g_strdup (image->guid);
  delta->parent = snapshot ? g_strdup (snapshot->parent) : NULL;
  delta->part = part;
  delta->has_shot = snapshot != NULL;
  if (!describe_file (descriptor, storage, image, allow_outside, delta, &why))
    delta->problem = g_strdup (why->message);
  else
    info->disk_usage += delta->info.disk_usage;
}

/* The images of one part whose GUID is SNAPSHOT's; of NULL, those of no shot. */
static void
add_part (struct ploop_disk_info *info, const struct descriptor *descriptor,
          guint part, const struct ploop_snapshot *snapshot, bool allow_outside)
{
  const struct descriptor_storage *storage =
    g_ptr_array_index (descriptor->storages, part);

  for (guint i = 0; i < storage->images->len; i++) {
    const struct descriptor_image *image =
      g_ptr_array_index (storage->images, i);

    if (snapshot ? g_str_equal (image->guid, snapshot->guid)
                 : !descriptor_find_shot (descriptor, image->guid))
      add_image (info, descriptor, part, image, snapshot, allow_outside);
  }
}

/* Two shots of one GUID have the same images. */
static void
add_deltas (struct ploop_disk_info *info, const struct descriptor *descriptor,
            bool allow_outside)
{
  g_autoptr (GHashTable) listed = g_hash_table_new (g_str_hash, g_str_equal);
  const guint nr_parts = descriptor->storages->len;

  for (guint i = 0; i < info->snapshots->len; i++) {
    const struct ploop_snapshot *snapshot =
      g_ptr_array_index (info->snapshots, i);

    if (g_hash_table_add (listed, snapshot->guid))
      for (guint part = 0; part < nr_parts; part++)
        add_part (info, descriptor, part, snapshot, allow_outside);
  }
  for (guint part = 0; part < nr_parts; part++)
    add_part (info, descriptor, part, NULL, allow_outside);
}

static void
add_parts (struct ploop_disk_info *info, const struct descriptor *descriptor)
{
  for (guint i = 0; i < descriptor->storages->len; i++) {
    const struct descriptor_storage *storage =
      g_ptr_array_index (descriptor->storages, i);
    const struct ploop_part_info part = {
      .start = storage->start_sectors * FORMAT_SECTOR_SIZE,
      .length = (storage->end_sectors - storage->start_sectors)
                * FORMAT_SECTOR_SIZE,
      .cluster_size = storage->cluster_sectors * FORMAT_SECTOR_SIZE,
    };

    g_array_append_val (info->parts, part);
  }
}

static const struct ploop_delta_info *
find_top (const struct ploop_disk_info *info, guint part)
{
  for (guint i = 0; i < info->deltas->len; i++) {
    const struct ploop_delta_info *delta = g_ptr_array_index (info->deltas, i);

    if (delta->part == part && g_str_equal (delta->guid, info->top))
      return delta;
  }
  return NULL;
}

/* Of a split disk, what is last may have grown since the descriptor was written. */
static uint64_t
disk_size (const struct ploop_disk_info *info)
{
  const guint last = info->parts->len - 1;
  const struct ploop_delta_info *top = find_top (info, last);

  if (!top || top->problem)
    return 0;
  return g_array_index (info->parts, struct ploop_part_info, last).start
         + top->info.size;
}

/* Only a writer's lock can be told from none without disturbing readers. */
static enum ploop_lock_state
look_at_lock (const char *descriptor)
{
  int fd;

  if (!lock_descriptor_file (descriptor, descriptor, DESCRIPTOR_LOCK_READER, &fd,
                             NULL))
    return PLOOP_LOCKED_FOR_WRITING;
  if (fd != -1)
    close (fd);
  return PLOOP_UNLOCKED;
}

struct ploop_disk_info *
ploop_describe_disk (const char *path, bool allow_outside, GError **error)
{
  g_autofree char *xml = location_descriptor (path);
  g_autoptr (Descriptor) descriptor = NULL;
  struct ploop_disk_info *info;

  if (!xml)
    return describe_image (path, error);
  descriptor = descriptor_load (xml, error);
  if (!descriptor)
    return NULL;
  info = new_info ();
  info->descriptor = g_strdup (descriptor->path);
  info->descriptor_size = descriptor->size_sectors * FORMAT_SECTOR_SIZE;
  info->top = g_strdup (descriptor->top_guid);
  info->lock = look_at_lock (descriptor->path);
  add_parts (info, descriptor);
  g_ptr_array_unref (info->snapshots);
  info->snapshots = snapshots_tree (descriptor, allow_outside);
  add_deltas (info, descriptor, allow_outside);
  info->size = disk_size (info);
  return info;
}
