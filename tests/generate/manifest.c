/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What must be read: the content of the disk and of each snapshot as raw files, the
 * bits of each bitmap, and a list of all that a test may want to know of what was made
 * (manifest.tsv; usage in generate.c tells its form).
 */

#include <config.h>

#include <string.h>
#include <unistd.h>

#include "disk.h"

static uint64_t
size_of (const struct disk *disk, const struct shot *shot)
{
  uint64_t size = 0;

  for (unsigned i = 0; i < disk->nr_storages; i++)
    size += shot->deltas[i].size_sectors;
  return size * SECTOR;
}

static bool
write_content (const char *directory, const char *name,
               const struct disk *disk, const struct shot *shot,
               GString *list, GError **error)
{
  g_autofree char *relative = g_strdup_printf ("expected/%s.raw", name);
  g_autofree char *path = g_build_filename (directory, relative, NULL);
  const int fd = file_create (path, error);
  uint64_t offset = 0;

  if (fd == -1)
    return false;
  for (unsigned i = 0; i < disk->nr_storages; i++) {
    const struct delta *delta = &shot->deltas[i];
    const size_t length = (size_t) delta->size_sectors * SECTOR;

    if (!file_write_sparsely (fd, path, delta->content, length, offset,
                              error)) {
      close (fd);
      return false;
    }
    offset += length;
  }
  g_string_append_printf (list, "content\t%s\t%s\t%" G_GUINT64_FORMAT "\n",
                          name, relative, size_of (disk, shot));
  return file_finish (fd, path, offset, error);
}

static void
add_trait (GString *traits, bool has, const char *name)
{
  if (has)
    g_string_append_printf (traits, "%s%s", traits->len > 0 ? "," : "", name);
}

/* Does ploop 1.15 take this file, and the kernel? */
static bool
is_for_ploop (const struct delta *delta)
{
  const uint32_t cluster = delta->cluster_sectors;

  return !delta->is_raw && delta->in_use == IN_USE_CLOSED
         && delta->nr_bitmaps == 0 && !delta->is_cut
         && (delta->flags == 0 || delta->nr_allocated + delta->nr_tail == 0)
         && cluster >= 64 && (cluster & (cluster - 1)) == 0
         && delta->size_sectors % cluster == 0
         && delta->data_sectors
              == clusters_of (bat_end_of (delta), cluster) * cluster;
}

static void
list_delta (const char *directory, const struct disk *disk,
            const struct shot *shot, unsigned storage, GString *list)
{
  const struct delta *delta = &shot->deltas[storage];
  g_autoptr (GString) traits = g_string_new ("");

  add_trait (traits, is_for_ploop (delta), "ploop");
  add_trait (traits, delta->is_raw, "raw");
  add_trait (traits, delta->in_use == IN_USE_OPEN, "dirty");
  add_trait (traits, delta->nr_bitmaps > 0, "extension");
  add_trait (traits, delta->is_cut, "cut");
  if (traits->len == 0)
    g_string_append (traits, "-");
  g_string_append_printf (
    list, "delta\t%s%s%s\t%s\t%s\t%u\t%u\t%u\t%s\t%u\t%u\t%u\t%u\n",
    directory ? directory : "", directory ? "/" : "", delta->path,
    directory ? shot->guid : "-",
    shot->parent < 0 ? "-" : disk->shots[shot->parent].guid, storage,
    delta->is_raw ? 0 : delta->version, delta->cluster_sectors * SECTOR,
    traits->str, delta->nr_allocated, delta->nr_leaked, delta->nr_free,
    delta->nr_tail);
}

static char *
uuid_of (const struct bitmap *bitmap)
{
  GString *text = g_string_new ("");

  for (size_t i = 0; i < sizeof bitmap->uuid; i++)
    g_string_append_printf (text, "%s%02x",
                            i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
                            bitmap->uuid[i]);
  return g_string_free (text, FALSE);
}

static bool
write_bitmap (const char *directory, const char *image,
              const struct bitmap *bitmap, GString *list, GError **error)
{
  g_autofree char *uuid = uuid_of (bitmap);
  g_autofree char *relative = g_strdup_printf ("expected/%s.bits", uuid);
  g_autofree char *path = g_build_filename (directory, relative, NULL);
  g_autofree char *text = g_malloc (bitmap->nr_bits);

  for (uint32_t i = 0; i < bitmap->nr_bits; i++)
    text[i] = bitmap->bits[i] ? '1' : '0';
  g_string_append_printf (list, "bitmap\t%s\t%s\t%u\t%s\n", image, uuid,
                          bitmap->granularity * SECTOR, relative);
  return g_file_set_contents (path, text, bitmap->nr_bits, error);
}

static bool
write_bitmaps (const char *directory, const char *place,
               const struct delta *delta, GString *list, GError **error)
{
  g_autofree char *image =
    place ? g_build_filename (place, delta->path, NULL)
          : g_strdup (delta->path);

  for (unsigned i = 0; i < delta->nr_bitmaps; i++)
    if (!write_bitmap (directory, image, &delta->bitmaps[i], list, error))
      return false;
  return true;
}

bool
manifest_write (const char *directory, const char *path,
                const struct disk *disk, GError **error)
{
  const char *place = disk->kind == KIND_IMAGE ? NULL : path;
  g_autoptr (GString) list = g_string_new ("");
  g_autofree char *manifest =
    g_build_filename (directory, "manifest.tsv", NULL);

  g_string_append_printf (list, "disk\t%s\t%" G_GUINT64_FORMAT "\t%u\n", path,
                          size_of (disk, &disk->shots[disk->top]),
                          disk->nr_storages);
  if (!write_content (directory, "TOP", disk, &disk->shots[disk->top], list,
                      error))
    return false;
  for (unsigned i = 0; i < disk->nr_shots; i++) {
    const struct shot *shot = &disk->shots[i];

    if (place && i != disk->top
        && !write_content (directory, shot->guid, disk, shot, list, error))
      return false;
    for (unsigned j = 0; j < disk->nr_storages; j++) {
      list_delta (place, disk, shot, j, list);
      if (!write_bitmaps (directory, place, &shot->deltas[j], list, error))
        return false;
    }
  }
  return g_file_set_contents (manifest, list->str, (gssize) list->len, error);
}
