/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Changing a descriptor, in memory, and storing it: see descriptor.h.
 *
 * What becomes of deltas is changed in the document, from which all else is read
 * anew: so what is in memory is what a reader of the file will find, and what nobody
 * would read is an error here, before it is stored.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "descriptor.h"
#include "format.h"
#include "replace.h"
#include "xml.h"

/* ---- Size and top ------------------------------------------------------ */

/* Says false of a change for which there was no memory. */
static bool
made (const struct descriptor *descriptor, bool is_made, GError **error)
{
  if (!is_made)
    error_set_system (error, ENOMEM, "%s: cannot be changed",
                      descriptor->path);
  return is_made;
}

bool
descriptor_set_size_sectors (struct descriptor *descriptor,
                             uint64_t size_sectors, GError **error)
{
  struct descriptor_storage *last =
    g_ptr_array_index (descriptor->storages, descriptor->storages->len - 1);
  g_autofree char *text =
    g_strdup_printf ("%" G_GUINT64_FORMAT, size_sectors);
  xmlNode *root = xmlDocGetRootElement (descriptor->doc);

  if (size_sectors <= last->start_sectors
      || size_sectors > FORMAT_MAX_SIZE_SECTORS) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: <Disk_size> cannot become %s, must be from %"
                 G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT " sectors",
                 descriptor->path, text, last->start_sectors + 1,
                 FORMAT_MAX_SIZE_SECTORS);
    return false;
  }
  if (!made (descriptor,
             xml_set_text (xml_first (xml_first (root, "Disk_Parameters"),
                                      "Disk_size"), text)
               && xml_set_text (xml_first (last->node, "End"), text),
             error))
    return false;
  descriptor->size_sectors = size_sectors;
  last->end_sectors = size_sectors;
  return true;
}

/* Name the top in the document, in new elements where there are none. */
static bool
set_top_text (const struct descriptor *descriptor, const char *guid)
{
  xmlNode *root = xmlDocGetRootElement (descriptor->doc);
  xmlNode *snapshots = xml_first (root, "Snapshots");
  xmlNode *top;

  if (!snapshots) {
    snapshots = xmlNewChild (root, root->ns, (const xmlChar *) "Snapshots",
                             NULL);
    if (!snapshots)
      return false;
  }
  top = xml_first (snapshots, "TopGUID");
  return top ? xml_set_text (top, guid)
             : xml_add_first (snapshots, "TopGUID", guid);
}

bool
descriptor_set_top (struct descriptor *descriptor, const char *guid,
                    GError **error)
{
  const struct descriptor_shot *shot = descriptor_need_shot (descriptor, guid, error);

  if (!shot || !made (descriptor, set_top_text (descriptor, shot->guid), error))
    return false;
  g_free (descriptor->top_guid);
  descriptor->top_guid = g_strdup (shot->guid);
  return true;
}

/* ---- Deltas ------------------------------------------------------------ */

static xmlNode *
get_snapshots (const struct descriptor *descriptor)
{
  return xml_first (xmlDocGetRootElement (descriptor->doc), "Snapshots");
}

static bool
append_shot (xmlNode *snapshots, const char *guid, const char *parent_guid)
{
  xmlNode *shot = xml_add_last (snapshots, "Shot", NULL);

  return shot && xml_add_last (shot, "GUID", guid)
         && xml_add_last (shot, "ParentGUID",
                          parent_guid ? parent_guid : DESCRIPTOR_NO_GUID);
}

/* A descriptor need not speak of snapshots as long as there are none: let it. */
static bool
write_shots (struct descriptor *descriptor, GError **error)
{
  xmlNode *root = xmlDocGetRootElement (descriptor->doc);
  const struct descriptor_shot *shot =
    g_ptr_array_index (descriptor->shots, 0);
  xmlNode *snapshots = get_snapshots (descriptor);

  if (shot->node)
    return true;
  if (!snapshots)
    snapshots = xml_add_last (root, "Snapshots", NULL);
  return made (descriptor,
               snapshots
                 && (xml_first (snapshots, "TopGUID")
                     || xml_add_last (snapshots, "TopGUID",
                                      descriptor->top_guid))
                 && append_shot (snapshots, shot->guid, NULL),
               error)
         && descriptor_parse (descriptor, error);
}

bool
descriptor_add_shot (struct descriptor *descriptor, const char *guid,
                     const char *parent_guid, GError **error)
{
  return write_shots (descriptor, error)
         && made (descriptor,
                  append_shot (get_snapshots (descriptor), guid, parent_guid),
                  error)
         && descriptor_parse (descriptor, error);
}

bool
descriptor_add_image (struct descriptor *descriptor, guint storage,
                      const char *guid, const char *file, GError **error)
{
  const struct descriptor_storage *in =
    g_ptr_array_index (descriptor->storages, storage);
  xmlNode *image;

  if (!write_shots (descriptor, error))
    return false;
  image = xml_add_last (in->node, "Image", NULL);
  return made (descriptor,
               image && xml_add_last (image, "GUID", guid)
                 && xml_add_last (image, "Type", "Compressed")
                 && xml_add_last (image, "File", file),
               error)
         && descriptor_parse (descriptor, error);
}

bool
descriptor_set_file (struct descriptor *descriptor, guint storage,
                     const char *guid,
                     const struct descriptor_image *other, GError **error)
{
  const struct descriptor_image *image =
    descriptor_find_image (descriptor, storage, guid);
  xmlNode *type = xml_first (image->node, "Type");
  const char *of_type = other->is_plain ? "Plain" : "Compressed";
  g_autofree char *file = g_strdup (other->file);

  return made (descriptor,
               xml_set_text (xml_first (image->node, "File"), file)
                 && (type ? xml_set_text (type, of_type)
                          : xml_add_last (image->node, "Type", of_type) != NULL),
               error)
         && descriptor_parse (descriptor, error);
}

/* Let TEXT stand in the element NAME of PARENT where GUID stands. */
static bool
replace_guid (xmlNode *parent, const char *name, const char *guid,
              const char *text)
{
  xmlNode *node = xml_first (parent, name);
  g_autofree char *old = node ? xml_text ("", node, NULL) : NULL;
  g_autofree char *normal = old ? descriptor_normalise_guid (old) : NULL;

  return !normal || strcmp (normal, guid) != 0 || xml_set_text (node, text);
}

static bool
rename_images (const struct descriptor_storage *storage, const char *guid,
               const char *new_guid)
{
  for (guint i = 0; i < storage->images->len; i++) {
    const struct descriptor_image *image =
      g_ptr_array_index (storage->images, i);

    if (!replace_guid (image->node, "GUID", guid, new_guid))
      return false;
  }
  return true;
}

static bool
rename_all (const struct descriptor *descriptor, const char *guid,
            const char *new_guid)
{
  for (guint i = 0; i < descriptor->storages->len; i++)
    if (!rename_images (g_ptr_array_index (descriptor->storages, i), guid,
                        new_guid))
      return false;
  for (guint i = 0; i < descriptor->shots->len; i++) {
    const struct descriptor_shot *shot =
      g_ptr_array_index (descriptor->shots, i);

    if (!replace_guid (shot->node, "GUID", guid, new_guid)
        || !replace_guid (shot->node, "ParentGUID", guid, new_guid))
      return false;
  }
  return true;
}

bool
descriptor_rename (struct descriptor *descriptor, const char *guid,
                   const char *new_guid, GError **error)
{
  /* The caller may have it from what is read anew. */
  g_autofree char *old = g_strdup (guid);

  /* A top that is not named would be found by its GUID, and not be found any more. */
  return write_shots (descriptor, error)
         && made (descriptor,
                  set_top_text (descriptor, descriptor->top_guid)
                    && rename_all (descriptor, old, new_guid), error)
         && descriptor_parse (descriptor, error);
}

bool
descriptor_remove (struct descriptor *descriptor, const char *guid,
                   GError **error)
{
  const struct descriptor_shot *shot = descriptor_find_shot (descriptor, guid);
  const char *parent_guid =
    shot->parent_guid ? shot->parent_guid : DESCRIPTOR_NO_GUID;

  for (guint i = 0; i < descriptor->shots->len; i++) {
    const struct descriptor_shot *other =
      g_ptr_array_index (descriptor->shots, i);

    if (!made (descriptor,
               replace_guid (other->node, "ParentGUID", shot->guid,
                             parent_guid), error))
      return false;
  }
  for (guint i = 0; i < descriptor->storages->len; i++) {
    const struct descriptor_image *image =
      descriptor_find_image (descriptor, i, shot->guid);

    if (image)
      xml_remove (image->node);
  }
  xml_remove (shot->node);
  return descriptor_parse (descriptor, error);
}

bool
descriptor_set_temporary (struct descriptor *descriptor, const char *guid,
                          bool is_temporary, GError **error)
{
  static const char *const markers[] = {
    "Temporary", "TemporaryZero", "TemporaryZeroSwap",
  };
  xmlNode *shot, *marker;

  if (!write_shots (descriptor, error))
    return false;
  shot = descriptor_find_shot (descriptor, guid)->node;
  for (size_t i = 0; i < G_N_ELEMENTS (markers); i++)
    while ((marker = xml_first (shot, markers[i])) != NULL)
      xml_remove (marker);
  return made (descriptor,
               !is_temporary || xml_add_last (shot, "Temporary", NULL) != NULL,
               error)
         && descriptor_parse (descriptor, error);
}

/* ---- Storing ----------------------------------------------------------- */

/* Is the file still the one that was read? */
static bool
is_same_file (const struct stat *a, const struct stat *b)
{
  return a->st_dev == b->st_dev && a->st_ino == b->st_ino
         && a->st_size == b->st_size
         && a->st_mtim.tv_sec == b->st_mtim.tv_sec
         && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static bool
judge_old_file (const struct descriptor *descriptor, struct stat *old,
                GError **error)
{
  if (fstatat (descriptor->directory_fd, descriptor_base_name (descriptor), old,
               AT_SYMLINK_NOFOLLOW) == -1) {
    error_set_system (error, errno, "%s: cannot be examined",
                      descriptor->path);
    return false;
  }
  if (is_same_file (&descriptor->read, old))
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_IN_USE,
               "%s: another program has changed it since it was read: stop "
               "that first, and try again", descriptor->path);
  return false;
}

/* Returns 0 or a negative errno. */
static int
write_text (int fd, GBytes *text)
{
  gsize length;
  const char *buf = g_bytes_get_data (text, &length);

  while (length > 0) {
    const ssize_t r = write (fd, buf, length);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1)
      return -errno;
    buf += r;
    length -= (size_t) r;
  }
  return 0;
}

/* Put TEXT in the place of the file.  Returns 0 or a negative errno. */
static int
replace_text (struct descriptor *descriptor, GBytes *text,
              const struct stat *old)
{
  struct replacement replacement;
  g_autofree char *beside = NULL;
  const int r = replace_begin (&replacement, descriptor->directory_fd,
                               descriptor_base_name (descriptor));

  beside = replacement.beside;
  if (r < 0)
    return r;
  return replace_end (&replacement, write_text (replacement.fd, text), old,
                      &descriptor->read);
}

bool
descriptor_store (struct descriptor *descriptor, GError **error)
{
  g_autoptr (GBytes) text = xml_print (descriptor->doc);
  struct stat old;
  int r;

  if (!made (descriptor, text != NULL, error)
      || !judge_old_file (descriptor, &old, error))
    return false;
  r = replace_text (descriptor, text, &old);
  if (r < 0) {
    error_set_system (error, r, "%s: cannot be replaced, and is what it was",
                      descriptor->path);
    return false;
  }
  r = replace_sync (descriptor->directory_fd);
  if (r < 0)
    error_set_system (error, r, "%s: was replaced, but the directory cannot "
                      "be synced: after a power cut the old one may be there",
                      descriptor->path);
  return r == 0;
}
