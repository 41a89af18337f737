/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* DiskDescriptor.xml: see descriptor.h.
 *
 * The parsed document is kept beside what was read out of it: a change is made
 * in both, and storing prints the document.  So what is not understood here
 * stays: Parallels Desktop and backup programs write more than ploop knows.
 *
 * Loading judges each element for itself.  What elements say together, that
 * shots and images make a chain, is judged for one snapshot at a time, when it
 * is asked for: one broken snapshot costs no other one.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "beneath.h"
#include "descriptor.h"
#include "format.h"
#include "xml.h"

/* How many GUIDs an error names. */
#define MAX_NAMED 20u

static void
free_image (gpointer opaque)
{
  struct descriptor_image *image = opaque;

  g_free (image->guid);
  g_free (image->file);
  g_free (image);
}

static void
free_storage (gpointer opaque)
{
  struct descriptor_storage *storage = opaque;

  g_ptr_array_unref (storage->images);
  g_free (storage);
}

static void
free_shot (gpointer opaque)
{
  struct descriptor_shot *shot = opaque;

  g_free (shot->guid);
  g_free (shot->parent_guid);
  g_free (shot);
}

void
descriptor_free (struct descriptor *descriptor)
{
  if (!descriptor)
    return;
  g_free (descriptor->path);
  g_free (descriptor->directory);
  g_ptr_array_unref (descriptor->storages);
  g_ptr_array_unref (descriptor->shots);
  g_free (descriptor->top_guid);
  if (descriptor->doc)
    xmlFreeDoc (descriptor->doc);
  if (descriptor->directory_fd != -1)
    close (descriptor->directory_fd);
  g_free (descriptor);
}

static struct descriptor *
new_descriptor (void)
{
  struct descriptor *descriptor = g_new0 (struct descriptor, 1);

  descriptor->storages = g_ptr_array_new_with_free_func (free_storage);
  descriptor->shots = g_ptr_array_new_with_free_func (free_shot);
  descriptor->directory_fd = -1;
  return descriptor;
}

static struct descriptor_storage *
get_storage (const struct descriptor *descriptor, guint i)
{
  return g_ptr_array_index (descriptor->storages, i);
}

static struct descriptor_image *
get_image (const struct descriptor_storage *storage, guint i)
{
  return g_ptr_array_index (storage->images, i);
}

static struct descriptor_shot *
get_shot (const struct descriptor *descriptor, guint i)
{
  return g_ptr_array_index (descriptor->shots, i);
}

/* ---- GUIDs ------------------------------------------------------------- */

char *
descriptor_normalise_guid (const char *guid)
{
  const size_t length = strlen (guid);
  const bool has_braces =
    length == 38 && guid[0] == '{' && guid[length - 1] == '}';

  if (length != 36 && !has_braces)
    return NULL;
  guid += has_braces;
  for (int i = 0; i < 36; i++)
    if (i == 8 || i == 13 || i == 18 || i == 23 ? guid[i] != '-'
                                                : !g_ascii_isxdigit (guid[i]))
      return NULL;
  if (has_braces)
    return g_ascii_strdown (guid - 1, 38);
  else {
    g_autofree char *lower = g_ascii_strdown (guid, 36);

    return g_strdup_printf ("{%s}", lower);
  }
}

bool
descriptor_is_top (const struct descriptor *descriptor, const char *guid)
{
  g_autofree char *normal = descriptor_normalise_guid (guid);

  return normal && strcmp (normal, descriptor->top_guid) == 0;
}

static const struct descriptor_shot *
find_normal (const struct descriptor *descriptor, const char *guid)
{
  for (guint i = 0; guid && i < descriptor->shots->len; i++)
    if (strcmp (get_shot (descriptor, i)->guid, guid) == 0)
      return get_shot (descriptor, i);
  return NULL;
}

const struct descriptor_shot *
descriptor_find_shot (const struct descriptor *descriptor, const char *guid)
{
  g_autofree char *normal = descriptor_normalise_guid (guid);

  return find_normal (descriptor, normal);
}

const struct descriptor_shot *
descriptor_find_parent (const struct descriptor *descriptor,
                        const struct descriptor_shot *shot)
{
  return find_normal (descriptor, shot->parent_guid);
}

bool
descriptor_has_children (const struct descriptor *descriptor,
                         const char *guid)
{
  g_autoptr (GPtrArray) children =
    descriptor_list_children (descriptor, guid);

  return children->len > 0;
}

const struct descriptor_image *
descriptor_find_image (const struct descriptor *descriptor, guint storage,
                       const char *guid)
{
  const struct descriptor_storage *in = get_storage (descriptor, storage);
  g_autofree char *normal = descriptor_normalise_guid (guid);

  for (guint i = 0; normal && i < in->images->len; i++)
    if (strcmp (get_image (in, i)->guid, normal) == 0)
      return get_image (in, i);
  return NULL;
}

GPtrArray *
descriptor_list_children (const struct descriptor *descriptor,
                          const char *guid)
{
  g_autofree char *normal = descriptor_normalise_guid (guid);
  GPtrArray *children = g_ptr_array_new ();

  for (guint i = 0; normal && i < descriptor->shots->len; i++) {
    struct descriptor_shot *shot = get_shot (descriptor, i);

    if (shot->parent_guid && strcmp (shot->parent_guid, normal) == 0)
      g_ptr_array_add (children, shot);
  }
  return children;
}

/* The GUIDs of SHOTS, not too many, for an error (g_free). */
static char *
name_shots (const GPtrArray *shots)
{
  g_autoptr (GString) names = g_string_new (NULL);

  for (guint i = 0; i < shots->len && i < MAX_NAMED; i++) {
    const struct descriptor_shot *shot = g_ptr_array_index (shots, i);

    g_string_append_printf (names, "%s%s", i ? ", " : "", shot->guid);
  }
  if (shots->len > MAX_NAMED)
    g_string_append_printf (names, " and %u more", shots->len - MAX_NAMED);
  return g_strdup (names->str);
}

/* The element NAME inside PARENT as a GUID, normalised (g_free). */
static char *
need_guid (const char *path, xmlNode *parent, const char *name,
           GError **error)
{
  xmlNode *node = xml_need (path, parent, name, error);
  g_autofree char *text = node ? xml_text (path, node, error) : NULL;
  g_autofree char *quoted = NULL;
  char *guid;

  if (!text)
    return NULL;
  guid = descriptor_normalise_guid (text);
  if (guid)
    return guid;
  quoted = xml_quote (text);
  xml_set_error (error, path, node, "is %s, must be a GUID such as %s", quoted,
                 DESCRIPTOR_TOP_GUID);
  return NULL;
}

/* The same, of what exists: not the GUID that means none. */
static char *
need_own_guid (const char *path, xmlNode *parent, GError **error)
{
  g_autofree char *guid = need_guid (path, parent, "GUID", error);

  if (!guid || strcmp (guid, DESCRIPTOR_NO_GUID) != 0)
    return g_steal_pointer (&guid);
  xml_set_error (error, path, parent, "has the GUID %s, which means none",
                 guid);
  return NULL;
}

/* ---- Reading the file -------------------------------------------------- */

/* Where the file is, whatever links lead to it. */
static bool
find_file (struct descriptor *descriptor, const char *path, GError **error)
{
  g_autofree char *real = NULL;
  char *resolved = realpath (path, NULL);

  if (!resolved) {
    error_set_system (error, errno, "%s: cannot be found", path);
    return false;
  }
  descriptor->path = g_strdup (resolved);
  free (resolved);
  descriptor->directory = g_path_get_dirname (descriptor->path);
  descriptor->directory_fd =
    open (descriptor->directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (descriptor->directory_fd != -1)
    return true;
  error_set_system (error, errno, "%s: cannot be opened",
                    descriptor->directory);
  return false;
}

/* Can the open file be a descriptor? */
static bool
judge_file (struct descriptor *descriptor, int fd, GError **error)
{
  if (fstat (fd, &descriptor->read) == -1)
    error_set_system (error, errno, "%s: cannot be examined",
                      descriptor->path);
  else if (!S_ISREG (descriptor->read.st_mode))
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_FORMAT,
                 "%s: is %s: give the DiskDescriptor.xml file itself",
                 descriptor->path,
                 S_ISDIR (descriptor->read.st_mode) ? "a directory"
                                                    : "not a regular file");
  else if (descriptor->read.st_size > (off_t) DESCRIPTOR_MAX_SIZE)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_FORMAT,
                 "%s: has %" G_GINT64_FORMAT " bytes, more than the %u of the "
                 "largest disk descriptor: give the DiskDescriptor.xml file, "
                 "not an image", descriptor->path,
                 (gint64) descriptor->read.st_size, DESCRIPTOR_MAX_SIZE);
  else
    return true;
  return false;
}

/* Read up to SIZE bytes.  Returns how many, or a negative errno. */
static ssize_t
read_all (int fd, char *buf, size_t size)
{
  size_t length = 0;

  while (length < size) {
    const ssize_t r = read (fd, buf + length, size - length);

    if (r == 0)
      break;
    if (r > 0)
      length += (size_t) r;
    else if (errno != EINTR)
      return -errno;
  }
  return (ssize_t) length;
}

static bool
read_doc (struct descriptor *descriptor, GError **error)
{
  const int flags = O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW;
  int fd = openat (descriptor->directory_fd, descriptor_base_name (descriptor), flags);
  g_autofree char *text = NULL;
  ssize_t length;

  if (fd == -1) {
    error_set_system (error, errno, "%s: cannot be opened", descriptor->path);
    return false;
  }
  if (!judge_file (descriptor, fd, error)) {
    close (fd);
    return false;
  }
  /* What somebody appends meanwhile is not read. */
  text = g_malloc ((gsize) descriptor->read.st_size + 1);
  length = read_all (fd, text, (size_t) descriptor->read.st_size);
  close (fd);
  if (length < 0) {
    error_set_system (error, (int) length, "%s: cannot be read",
                      descriptor->path);
    return false;
  }
  text[length] = 0;
  descriptor->doc = xml_parse (descriptor->path, text, (size_t) length, error);
  return descriptor->doc != NULL;
}

/* ---- Storages ---------------------------------------------------------- */

/* The root element, if it is one of ploop's. */
static xmlNode *
need_root (const struct descriptor *descriptor, GError **error)
{
  xmlNode *root = xmlDocGetRootElement (descriptor->doc);
  g_autofree char *name = NULL;

  if (strcmp ((const char *) root->name, "Parallels_disk_image") == 0
      || strcmp ((const char *) root->name, "Virtuozzo_disk_image") == 0)
    return root;
  name = xml_quote ((const char *) root->name);
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_FORMAT,
               "%s: root element is %s, must be 'Parallels_disk_image' or "
               "'Virtuozzo_disk_image': not a disk descriptor",
               descriptor->path, name);
  return NULL;
}

static bool
parse_size (struct descriptor *descriptor, xmlNode *root, GError **error)
{
  const char *path = descriptor->path;
  xmlNode *parameters = xml_need (path, root, "Disk_Parameters", error);
  xmlNode *size = parameters ? xml_need (path, parameters, "Disk_size", error)
                             : NULL;

  return size
         && xml_number (path, size, 1, FORMAT_MAX_SIZE_SECTORS,
                        &descriptor->size_sectors, error);
}

static bool
parse_type (const char *path, xmlNode *node, bool *is_plain, GError **error)
{
  xmlNode *type;
  g_autofree char *text = NULL, *quoted = NULL;

  if (!xml_find (path, node, "Type", &type, error))
    return false;
  *is_plain = false;
  if (!type)
    return true;
  text = xml_text (path, type, error);
  if (!text)
    return false;
  *is_plain = strcmp (text, "Plain") == 0;
  if (*is_plain || strcmp (text, "Compressed") == 0)
    return true;
  quoted = xml_quote (text);
  xml_set_error (error, path, type,
                 "is %s, must be 'Compressed' (expandable) or 'Plain' (raw)",
                 quoted);
  return false;
}

static char *
parse_file (const char *path, xmlNode *node, GError **error)
{
  xmlNode *file = xml_need (path, node, "File", error);
  g_autofree char *text = file ? xml_text (path, file, error) : NULL;

  if (text && !*text) {
    xml_set_error (error, path, file,
                   "is '', must be the name of the image file");
    return NULL;
  }
  return g_steal_pointer (&text);
}

static bool
parse_image (const char *path, xmlNode *node, GPtrArray *images,
             GError **error)
{
  struct descriptor_image *image = g_new0 (struct descriptor_image, 1);

  g_ptr_array_add (images, image);
  image->node = node;
  image->guid = need_own_guid (path, node, error);
  return image->guid && parse_type (path, node, &image->is_plain, error)
         && (image->file = parse_file (path, node, error)) != NULL;
}

/* A number of sectors inside a storage. */
static bool
parse_sectors (const char *path, xmlNode *storage, const char *name,
               uint64_t min, uint64_t max, uint64_t *sectors, GError **error)
{
  xmlNode *node = xml_need (path, storage, name, error);

  return node && xml_number (path, node, min, max, sectors, error);
}

static bool
parse_images (struct descriptor *descriptor,
              struct descriptor_storage *storage, unsigned *nr_images,
              GError **error)
{
  for (xmlNode *node = xml_first (storage->node, "Image"); node;
       node = xml_next (node, "Image")) {
    if ((*nr_images)++ >= DESCRIPTOR_MAX_IMAGES) {
      xml_set_error (error, descriptor->path, node,
                     "is one more than the %u that a disk may have",
                     DESCRIPTOR_MAX_IMAGES);
      return false;
    }
    if (!parse_image (descriptor->path, node, storage->images, error))
      return false;
  }
  if (storage->images->len > 0)
    return true;
  xml_set_error (error, descriptor->path, storage->node,
                 "has no <Image>, which must be there");
  return false;
}

static bool
parse_storage (struct descriptor *descriptor, xmlNode *node,
               unsigned *nr_images, GError **error)
{
  struct descriptor_storage *storage = g_new0 (struct descriptor_storage, 1);
  uint64_t cluster_sectors;

  storage->images = g_ptr_array_new_with_free_func (free_image);
  storage->node = node;
  g_ptr_array_add (descriptor->storages, storage);

  if (!parse_sectors (descriptor->path, node, "Start", 0,
                      FORMAT_MAX_SIZE_SECTORS - 1, &storage->start_sectors,
                      error)
      || !parse_sectors (descriptor->path, node, "End",
                         storage->start_sectors + 1, FORMAT_MAX_SIZE_SECTORS,
                         &storage->end_sectors, error)
      || !parse_sectors (descriptor->path, node, "Blocksize", 1,
                         FORMAT_MAX_CLUSTER_SECTORS, &cluster_sectors, error))
    return false;
  storage->cluster_sectors = (uint32_t) cluster_sectors;
  return parse_images (descriptor, storage, nr_images, error);
}

static int
compare_starts (gconstpointer opaque_a, gconstpointer opaque_b)
{
  const struct descriptor_storage *const *a = opaque_a, *const *b = opaque_b;

  return ((*a)->start_sectors > (*b)->start_sectors)
         - ((*a)->start_sectors < (*b)->start_sectors);
}

/* A disk has neither gaps nor two contents. */
static bool
judge_starts (const struct descriptor *descriptor, GError **error)
{
  uint64_t end = 0;

  for (guint i = 0; i < descriptor->storages->len; i++) {
    const struct descriptor_storage *storage = get_storage (descriptor, i);

    if (storage->start_sectors != end) {
      xml_set_error (error, descriptor->path, storage->node,
                     "has the <Start> %" G_GUINT64_FORMAT ", must be %"
                     G_GUINT64_FORMAT ", where the one before it ends",
                     storage->start_sectors, end);
      return false;
    }
    end = storage->end_sectors;
  }
  return true;
}

static bool
parse_storages (struct descriptor *descriptor, xmlNode *root, GError **error)
{
  xmlNode *data = xml_need (descriptor->path, root, "StorageData", error);
  unsigned nr_images = 0;

  if (!data)
    return false;
  for (xmlNode *node = xml_first (data, "Storage"); node;
       node = xml_next (node, "Storage"))
    if (!parse_storage (descriptor, node, &nr_images, error))
      return false;
  if (descriptor->storages->len == 0) {
    xml_set_error (error, descriptor->path, data,
                   "has no <Storage>, which must be there");
    return false;
  }
  g_ptr_array_sort (descriptor->storages, compare_starts);
  return judge_starts (descriptor, error);
}

/* ---- Shots ------------------------------------------------------------- */

static enum descriptor_temporary
parse_temporary (xmlNode *node)
{
  if (xml_first (node, "TemporaryZeroSwap"))
    return DESCRIPTOR_TEMPORARY_ZERO_SWAP;
  if (xml_first (node, "TemporaryZero"))
    return DESCRIPTOR_TEMPORARY_ZERO;
  if (xml_first (node, "Temporary"))
    return DESCRIPTOR_TEMPORARY;
  return DESCRIPTOR_PERMANENT;
}

static bool
parse_shot (struct descriptor *descriptor, xmlNode *node, GError **error)
{
  struct descriptor_shot *shot = g_new0 (struct descriptor_shot, 1);

  g_ptr_array_add (descriptor->shots, shot);
  shot->node = node;
  shot->temporary = parse_temporary (node);
  shot->guid = need_own_guid (descriptor->path, node, error);
  if (!shot->guid)
    return false;
  shot->parent_guid = need_guid (descriptor->path, node, "ParentGUID", error);
  if (!shot->parent_guid)
    return false;
  if (strcmp (shot->parent_guid, DESCRIPTOR_NO_GUID) == 0)
    g_clear_pointer (&shot->parent_guid, g_free);
  return true;
}

/* Nothing is said about snapshots: the only image is the only delta. */
static bool
add_only_shot (struct descriptor *descriptor, xmlNode *root, GError **error)
{
  const char *guid = get_image (get_storage (descriptor, 0), 0)->guid;
  struct descriptor_shot *shot;

  for (guint i = 0; i < descriptor->storages->len; i++) {
    const struct descriptor_storage *storage = get_storage (descriptor, i);

    if (storage->images->len == 1
        && strcmp (get_image (storage, 0)->guid, guid) == 0)
      continue;
    xml_set_error (error, descriptor->path, root,
                   "has no <Shot> in <Snapshots>, which must say how its "
                   "images rest on each other, as they are more than one");
    return false;
  }
  shot = g_new0 (struct descriptor_shot, 1);
  shot->guid = g_strdup (guid);
  g_ptr_array_add (descriptor->shots, shot);
  return true;
}

static bool
parse_shots (struct descriptor *descriptor, xmlNode *root, GError **error)
{
  xmlNode *snapshots;

  if (!xml_find (descriptor->path, root, "Snapshots", &snapshots, error))
    return false;
  for (xmlNode *node = snapshots ? xml_first (snapshots, "Shot") : NULL; node;
       node = xml_next (node, "Shot")) {
    if (descriptor->shots->len >= DESCRIPTOR_MAX_SHOTS) {
      xml_set_error (error, descriptor->path, node,
                     "is one more than the %u that a disk may have",
                     DESCRIPTOR_MAX_SHOTS);
      return false;
    }
    if (!parse_shot (descriptor, node, error))
      return false;
  }
  return descriptor->shots->len > 0 || add_only_shot (descriptor, root, error);
}

/* The shots that no other rests on. */
static GPtrArray *
find_leaves (const struct descriptor *descriptor)
{
  g_autoptr (GHashTable) parents = g_hash_table_new (g_str_hash, g_str_equal);
  GPtrArray *leaves = g_ptr_array_new ();

  for (guint i = 0; i < descriptor->shots->len; i++)
    if (get_shot (descriptor, i)->parent_guid)
      g_hash_table_add (parents, get_shot (descriptor, i)->parent_guid);
  for (guint i = 0; i < descriptor->shots->len; i++)
    if (!g_hash_table_contains (parents, get_shot (descriptor, i)->guid))
      g_ptr_array_add (leaves, get_shot (descriptor, i));
  return leaves;
}

/* The top of a descriptor that does not name it. */
static char *
guess_top (const struct descriptor *descriptor, xmlNode *root, GError **error)
{
  g_autoptr (GPtrArray) leaves = NULL;
  g_autofree char *names = NULL;

  if (find_normal (descriptor, DESCRIPTOR_TOP_GUID))
    return g_strdup (DESCRIPTOR_TOP_GUID);
  leaves = find_leaves (descriptor);
  if (leaves->len == 1) {
    const struct descriptor_shot *leaf = g_ptr_array_index (leaves, 0);

    return g_strdup (leaf->guid);
  }
  names = name_shots (leaves->len ? leaves : descriptor->shots);
  xml_set_error (error, descriptor->path, root,
                 "has no <TopGUID> in <Snapshots>, which must be one of %s",
                 names);
  return NULL;
}

static bool
find_top (struct descriptor *descriptor, xmlNode *root, GError **error)
{
  xmlNode *snapshots = xml_first (root, "Snapshots"), *top = NULL;

  if (snapshots
      && !xml_find (descriptor->path, snapshots, "TopGUID", &top, error))
    return false;
  descriptor->top_guid =
    top ? need_guid (descriptor->path, snapshots, "TopGUID", error)
        : guess_top (descriptor, root, error);
  descriptor->top_is_named = top != NULL;
  return descriptor->top_guid != NULL;
}

bool
descriptor_parse (struct descriptor *descriptor, GError **error)
{
  xmlNode *root = need_root (descriptor, error);

  g_ptr_array_set_size (descriptor->storages, 0);
  g_ptr_array_set_size (descriptor->shots, 0);
  g_clear_pointer (&descriptor->top_guid, g_free);
  return root
         && parse_size (descriptor, root, error)
         && parse_storages (descriptor, root, error)
         && parse_shots (descriptor, root, error)
         && find_top (descriptor, root, error);
}

struct descriptor *
descriptor_load (const char *path, GError **error)
{
  g_autoptr (Descriptor) descriptor = new_descriptor ();

  if (!find_file (descriptor, path, error) || !read_doc (descriptor, error)
      || !descriptor_parse (descriptor, error))
    return NULL;
  return g_steal_pointer (&descriptor);
}

/* ---- Chains ------------------------------------------------------------ */

/* Shots by GUID; NULL when two have the same. */
static GHashTable *
index_shots (const struct descriptor *descriptor, GError **error)
{
  g_autoptr (GHashTable) shots = g_hash_table_new (g_str_hash, g_str_equal);

  for (guint i = 0; i < descriptor->shots->len; i++) {
    struct descriptor_shot *shot = get_shot (descriptor, i);

    if (!g_hash_table_insert (shots, shot->guid, shot)) {
      xml_set_error (error, descriptor->path, shot->node,
                     "has the GUID %s, as one before it: remove one",
                     shot->guid);
      return NULL;
    }
  }
  return g_steal_pointer (&shots);
}

/* The same of a storage's images. */
static GHashTable *
index_images (const struct descriptor *descriptor,
              const struct descriptor_storage *storage, GError **error)
{
  g_autoptr (GHashTable) images = g_hash_table_new (g_str_hash, g_str_equal);

  for (guint i = 0; i < storage->images->len; i++) {
    struct descriptor_image *image = get_image (storage, i);

    if (!g_hash_table_insert (images, image->guid, image)) {
      xml_set_error (error, descriptor->path, image->node,
                     "has the GUID %s, as one before it in this <Storage>: "
                     "remove one", image->guid);
      return NULL;
    }
  }
  return g_steal_pointer (&images);
}

const struct descriptor_shot *
descriptor_need_shot (const struct descriptor *descriptor, const char *guid,
                      GError **error)
{
  const struct descriptor_shot *shot =
    descriptor_find_shot (descriptor, guid ? guid : descriptor->top_guid);
  g_autofree char *names = NULL, *quoted = NULL;

  if (shot)
    return shot;
  names = name_shots (descriptor->shots);
  quoted = xml_quote (guid ? guid : descriptor->top_guid);
  if (guid)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: no snapshot has the GUID %s: give one of %s",
                 descriptor->path, quoted, names);
  else
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
                 "%s: <TopGUID> is %s, which no <Shot> has: must be one of %s",
                 descriptor->path, quoted, names);
  return NULL;
}

/* Add the image of SHOT to the chain, after those that rest on it. */
static bool
add_level (const struct descriptor *descriptor,
           const struct descriptor_shot *shot, GHashTable *images,
           GHashTable *seen, GPtrArray *chain, GError **error)
{
  struct descriptor_image *image = g_hash_table_lookup (images, shot->guid);

  if (!g_hash_table_add (seen, shot->guid))
    xml_set_error (error, descriptor->path, shot->node,
                   "of the GUID %s is its own ancestor: correct the "
                   "<ParentGUID> of one of its ancestors", shot->guid);
  else if (chain->len == DESCRIPTOR_MAX_LEVELS)
    xml_set_error (error, descriptor->path, shot->node,
                   "of the GUID %s has more than %u levels over it: merge "
                   "snapshots", shot->guid, DESCRIPTOR_MAX_LEVELS - 1);
  else if (!image)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
                 "%s: no <Image> has the GUID %s, which a <Shot> has: its file "
                 "must be named in each <Storage>", descriptor->path,
                 shot->guid);
  else {
    g_ptr_array_add (chain, image);
    return true;
  }
  return false;
}

static void
reverse (GPtrArray *chain)
{
  for (guint i = 0, j = chain->len - 1; i < j; i++, j--) {
    gpointer image = chain->pdata[i];

    chain->pdata[i] = chain->pdata[j];
    chain->pdata[j] = image;
  }
}

GPtrArray *
descriptor_chain (const struct descriptor *descriptor, guint storage,
                  const char *guid, GError **error)
{
  g_autoptr (GHashTable) shots = index_shots (descriptor, error);
  g_autoptr (GHashTable) images = NULL;
  g_autoptr (GHashTable) seen = g_hash_table_new (g_str_hash, g_str_equal);
  g_autoptr (GPtrArray) chain = g_ptr_array_new ();
  const struct descriptor_shot *shot = NULL;

  g_assert (storage < descriptor->storages->len);
  if (shots)
    images = index_images (descriptor, get_storage (descriptor, storage),
                           error);
  if (images)
    shot = descriptor_need_shot (descriptor, guid, error);
  if (!shot)
    return NULL;

  for (;;) {
    const char *parent_guid = shot->parent_guid;

    if (!add_level (descriptor, shot, images, seen, chain, error))
      return NULL;
    if (!parent_guid)
      break;
    if (!g_hash_table_contains (shots, parent_guid)) {
      xml_set_error (error, descriptor->path, shot->node,
                     "of the GUID %s has the <ParentGUID> %s, which no <Shot> "
                     "has", shot->guid, parent_guid);
      return NULL;
    }
    shot = g_hash_table_lookup (shots, parent_guid);
  }
  reverse (chain);
  return g_steal_pointer (&chain);
}

/* ---- Image files ------------------------------------------------------- */

static void
set_open_error (const struct descriptor *descriptor,
                const struct descriptor_image *image, const char *path, int r,
                GError **error)
{
  g_autofree char *file = xml_quote (image->file);
  g_autofree char *real = path ? xml_quote (path) : NULL;
  const xmlNode *node = xml_first (image->node, "File");

  if (r == -EXDEV)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: line %ld: <File> is %s%s%s, outside the directory of "
                 "the descriptor: give allow-outside=true if you trust it",
                 descriptor->path, xmlGetLineNo (node), file,
                 real ? ", which is " : "", real ? real : "");
  else
    error_set_system (error, r, "%s: line %ld: <File> is %s, which cannot be "
                      "opened", descriptor->path, xmlGetLineNo (node), file);
}

/* Can the open file be an image? */
static bool
judge_image (const struct descriptor *descriptor,
             const struct descriptor_image *image, int fd, GError **error)
{
  g_autofree char *file = xml_quote (image->file);
  struct stat st;

  if (fstat (fd, &st) == -1)
    error_set_system (error, errno, "%s: <File> is %s, which cannot be "
                      "examined", descriptor->path, file);
  else if (!S_ISREG (st.st_mode))
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_FORMAT,
                 "%s: line %ld: <File> is %s, which is %s: must be an image "
                 "file", descriptor->path,
                 xmlGetLineNo (xml_first (image->node, "File")), file,
                 S_ISDIR (st.st_mode) ? "a directory" : "not a regular file");
  else
    return true;
  return false;
}

int
descriptor_open_file (const struct descriptor *descriptor,
                      const struct descriptor_image *image,
                      bool allow_outside, char **path, GError **error)
{
  g_autofree char *real = NULL;
  const int fd =
    allow_outside
      ? beneath_open_anywhere (descriptor->directory_fd, image->file, &real)
      : beneath_open (descriptor->directory_fd, image->file, &real);

  if (fd < 0) {
    set_open_error (descriptor, image, real, fd, error);
    return -1;
  }
  if (!judge_image (descriptor, image, fd, error)) {
    close (fd);
    return -1;
  }
  *path = real ? g_steal_pointer (&real)
               : g_build_filename (descriptor->directory, image->file, NULL);
  return fd;
}

bool
descriptor_is_file_of (const struct descriptor *descriptor,
                       const struct descriptor_image *image,
                       const struct stat *st, bool if_unknown)
{
  struct stat named;

  if (fstatat (descriptor->directory_fd, image->file, &named,
               AT_NO_AUTOMOUNT) == -1)
    return if_unknown && errno != ENOENT && errno != ENOTDIR && errno != ELOOP;
  return named.st_dev == st->st_dev && named.st_ino == st->st_ino;
}
