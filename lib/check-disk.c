/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Checking a whole disk: ploop_check_disk in ploop-core.h.  Each image is checked by
 * itself (check-delta.h), and so are the shots (check-shots.h); here it is found out
 * whether images, shots and descriptor belong together.  Only one image is open at a
 * time, so what is compared is remembered of each.
 */

#include <config.h>

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check-delta.h"
#include "check-shots.h"
#include "delta.h"
#include "descriptor.h"
#include "findings.h"
#include "location.h"
#include "lock.h"

/* What is remembered of an image of the descriptor. */
struct level {
  const struct descriptor_image *image;
  guint part;
  char *path;                   /* NULL: there is no such file */
  dev_t device;
  ino_t inode;
  bool is_open;                 /* it could be, so the rest is known */
  bool is_raw;
  bool is_dirty;
  unsigned version;             /* 0: raw */
  uint64_t size;                /* of its disk, bytes */
};

struct disk_check {
  struct descriptor *descriptor; /* NULL: cannot be parsed */
  bool allow_outside;
  struct findings findings;
  GHashTable *shots;            /* by GUID; the first of each */
  GPtrArray *levels;            /* of struct level */
};

static void
free_level (gpointer opaque)
{
  struct level *level = opaque;

  g_free (level->path);
  g_free (level);
}

static const struct level *
get_level (const struct disk_check *check, guint i)
{
  return g_ptr_array_index (check->levels, i);
}

/* ---- Images, each by itself -------------------------------------------- */

static const struct descriptor_shot *
get_shot (const struct disk_check *check, guint i)
{
  return g_ptr_array_index (check->descriptor->shots, i);
}

static const struct descriptor_shot *
find_shot (const struct disk_check *check, const char *guid)
{
  return g_hash_table_lookup (check->shots, guid);
}

static const struct descriptor_storage *
get_storage (const struct disk_check *check, guint part)
{
  return g_ptr_array_index (check->descriptor->storages, part);
}

static uint32_t
cluster_size (const struct disk_check *check, guint part)
{
  return get_storage (check, part)->cluster_sectors * FORMAT_SECTOR_SIZE;
}

/* Has nobody a parent for it?  Then it may be raw. */
static bool
is_base (const struct disk_check *check, const struct level *level)
{
  const struct descriptor_shot *shot = find_shot (check, level->image->guid);

  return shot && !shot->parent_guid;
}

/* Has an image before LEVEL the same file? */
static bool
is_twice (struct disk_check *check, const struct level *level)
{
  for (guint i = 0; i < check->levels->len; i++) {
    const struct level *other = get_level (check, i);

    if (other == level)
      return false;
    if (other->path && other->device == level->device
        && other->inode == level->inode) {
      findings_add (
        &check->findings, check->descriptor->path, PLOOP_FINDING_ERROR,
        "<Storage> number %u: the images %s and %s have one file, %s: a write "
        "to one would change the other",
        level->part, other->image->guid, level->image->guid, level->path);
      return true;
    }
  }
  return false;
}

static void
check_type (struct disk_check *check, const struct level *level)
{
  if (level->is_raw && level->size % FORMAT_SECTOR_SIZE != 0)
    findings_add (&check->findings, level->path, PLOOP_FINDING_NOTE,
                  "a raw disk of %" G_GUINT64_FORMAT
                  " bytes, not a multiple of %u",
                  level->size, FORMAT_SECTOR_SIZE);
  if (!level->is_raw && level->image->is_plain && is_base (check, level))
    findings_add (&check->findings, level->path, PLOOP_FINDING_NOTE,
                  "<Type> is Plain, a raw disk, but the file has the signature "
                  "of an expandable image, and is taken for one");
}

static void
check_against_storage (struct disk_check *check, const struct level *level,
                       const struct delta *delta)
{
  const uint32_t wanted = cluster_size (check, level->part);

  if (delta->layout.cluster_size != wanted)
    findings_add (
      &check->findings, level->path, PLOOP_FINDING_ERROR,
      "cluster size is %" G_GUINT32_FORMAT
      " sectors, but <Blocksize> of the descriptor is %" G_GUINT32_FORMAT
      ": they do not belong together",
      delta->layout.cluster_size / FORMAT_SECTOR_SIZE,
      wanted / FORMAT_SECTOR_SIZE);
}

static void
remember (struct level *level, const struct delta *delta)
{
  level->is_open = true;
  level->is_raw = delta->is_raw;
  level->is_dirty = !delta->is_raw && format_is_dirty (delta->header.in_use);
  level->version = delta->header.version;
  level->size = delta->layout.size;
}

/* PATH_FD is the file, opened by its checked name.  NULL with ERROR set. */
static struct delta *
open_level (const struct disk_check *check, const struct level *level,
            int path_fd, GError **error)
{
  g_autofree char *directory = g_path_get_dirname (level->path);
  const struct delta_source source = {
    .path = level->path,
    .path_fd = path_fd,
    .raw_cluster_size = level->image->is_plain && is_base (check, level)
                          ? cluster_size (check, level->part)
                          : 0,
    .descriptor_is_locked =
      strcmp (directory, check->descriptor->directory) == 0,
  };

  return delta_open_source (&source, DELTA_LOCK_READER, error);
}

/* Returns 0, or -1 with ERROR set when the check cannot go on. */
static int
check_open (struct disk_check *check, struct level *level, int path_fd,
            GError **error)
{
  g_autoptr (GError) why = NULL;
  struct delta *delta = open_level (check, level, path_fd, &why);
  int r = 0;

  if (!delta) {
    if (!g_error_matches (why, PLOOP_ERROR, PLOOP_ERROR_FORMAT)
        && !g_error_matches (why, PLOOP_ERROR, PLOOP_ERROR_CORRUPT)) {
      g_propagate_error (error, g_steal_pointer (&why));
      return -1;
    }
    findings_add_error (&check->findings, level->path, why,
                        g_error_matches (why, PLOOP_ERROR, PLOOP_ERROR_FORMAT)
                            && is_base (check, level) && !level->image->is_plain
                          ? ": of a raw disk, <Type> must be Plain"
                          : "");
    return 0;
  }
  remember (level, delta);
  check_against_storage (check, level, delta);
  check_type (check, level);
  check->findings.file = level->path;
  if (!delta->is_raw)
    r = check_delta (delta, findings_pass_on, &check->findings,
                     &check->findings.result, error);
  delta_close (delta);
  return r;
}

static int
check_level (struct disk_check *check, struct level *level, GError **error)
{
  const struct descriptor *descriptor = check->descriptor;
  g_autoptr (GError) why = NULL;
  g_autofree char *inside = NULL;
  const int fd =
    descriptor_open_file (descriptor, level->image, true, &level->path, &why);
  const int inside_fd =
    fd == -1
      ? -1
      : descriptor_open_file (descriptor, level->image, false, &inside, &why);
  struct stat st;
  int r = 0;

  if (fd != -1 && fstat (fd, &st) == 0) {
    level->device = st.st_dev;
    level->inode = st.st_ino;
  }
  if (fd != -1 && inside_fd == -1 && check->allow_outside) {
    findings_add (&check->findings, descriptor->path, PLOOP_FINDING_NOTE,
                  "the image %s is %s, outside the directory of the descriptor",
                  level->image->guid, level->path);
    g_clear_error (&why);
  }
  if (why)
    findings_add_error (&check->findings, descriptor->path, why, "");
  else if (!is_twice (check, level))
    r = check_open (check, level, fd, error);
  if (fd != -1)
    close (fd);
  if (inside_fd != -1)
    close (inside_fd);
  return r;
}

static int
check_images (struct disk_check *check, GError **error)
{
  for (guint part = 0; part < check->descriptor->storages->len; part++) {
    const GPtrArray *images = get_storage (check, part)->images;

    for (guint i = 0; i < images->len; i++) {
      struct level *level = g_new0 (struct level, 1);

      level->image = g_ptr_array_index (images, i);
      level->part = part;
      g_ptr_array_add (check->levels, level);
      if (check_level (check, level, error) < 0)
        return -1;
    }
  }
  return 0;
}

/* ---- Images, as they rest on each other -------------------------------- */

/* The images of PART by GUID, the first of each. */
static GHashTable *
index_levels (struct disk_check *check, guint part)
{
  GHashTable *levels = g_hash_table_new (g_str_hash, g_str_equal);

  for (guint i = 0; i < check->levels->len; i++) {
    const struct level *level = get_level (check, i);

    if (level->part != part)
      continue;
    if (g_hash_table_contains (levels, level->image->guid))
      findings_add (&check->findings, check->descriptor->path,
                    PLOOP_FINDING_ERROR,
                    "<Storage> number %u: two images have the GUID %s: which "
                    "of them is meant cannot be told",
                    part, level->image->guid);
    else
      g_hash_table_insert (levels, level->image->guid, (gpointer) level);
  }
  return levels;
}

static void
check_reached (struct disk_check *check, const struct level *level)
{
  if (find_shot (check, level->image->guid))
    return;
  findings_add (
    &check->findings, check->descriptor->path, PLOOP_FINDING_LEAK,
    "the image %s (%s) belongs to no <Shot>: no snapshot has its content",
    level->image->guid, level->image->file);
}

static void
check_pair (struct disk_check *check, const struct level *upper,
            const struct level *lower)
{
  if (lower->size > upper->size)
    findings_add (&check->findings, lower->path, PLOOP_FINDING_NOTE,
                  "has a disk of %" G_GUINT64_FORMAT
                  " bytes, larger than that of %s (%" G_GUINT64_FORMAT
                  "), which rests on it: the Virtuozzo kernel refuses that, "
                  "and what lies behind cannot be read from above",
                  lower->size, upper->path, upper->size);
  if (!lower->is_raw && lower->version != upper->version)
    findings_add (&check->findings, upper->path, PLOOP_FINDING_NOTE,
                  "is of version %u, but rests on %s, of version %u: the "
                  "Virtuozzo kernel wants one version",
                  upper->version, lower->path, lower->version);
}

/* SHOT must have an image in PART that goes with its parent's. */
static void
check_shot (struct disk_check *check, const struct descriptor_shot *shot,
            guint part, GHashTable *levels)
{
  const struct level *level = g_hash_table_lookup (levels, shot->guid);
  const struct level *lower =
    shot->parent_guid ? g_hash_table_lookup (levels, shot->parent_guid) : NULL;

  if (!level)
    findings_add (
      &check->findings, check->descriptor->path, PLOOP_FINDING_ERROR,
      "<Storage> number %u: no <Image> has the GUID %s, which a <Shot> has",
      part, shot->guid);
  else if (level->is_open && level->is_dirty
           && descriptor_has_children (check->descriptor, shot->guid))
    findings_add (
      &check->findings, level->path, PLOOP_FINDING_NOTE,
      "is marked as in use, but others rest on it: it was the top when it was "
      "not closed, or a merge was interrupted, or somebody writes to it");
  if (level && lower && level->is_open && lower->is_open && level != lower)
    check_pair (check, level, lower);
}

/* The header of the top image rules; the descriptor may be stale. */
static void
check_top_size (struct disk_check *check, guint part, GHashTable *levels)
{
  const struct descriptor_storage *storage = get_storage (check, part);
  const struct level *top =
    g_hash_table_lookup (levels, check->descriptor->top_guid);
  const uint64_t length =
    (storage->end_sectors - storage->start_sectors) * FORMAT_SECTOR_SIZE;
  const bool is_last = part + 1 == check->descriptor->storages->len;

  if (!top || !top->is_open || top->size == length)
    return;
  if (top->size < length && !is_last)
    findings_add (&check->findings, top->path, PLOOP_FINDING_ERROR,
                  "has %" G_GUINT64_FORMAT
                  " bytes, but <Storage> number %u has %" G_GUINT64_FORMAT
                  ": its end is missing",
                  top->size, part, length);
  else
    findings_add (&check->findings, check->descriptor->path, PLOOP_FINDING_NOTE,
                  "<Storage> number %u has %" G_GUINT64_FORMAT
                  " bytes, but %s, its top, %" G_GUINT64_FORMAT ": %s",
                  part, length, top->path, top->size,
                  is_last ? "the image rules"
                          : "what lies behind cannot be read");
}

static void
check_part (struct disk_check *check, guint part)
{
  g_autoptr (GHashTable) levels = index_levels (check, part);

  for (guint i = 0; i < check->levels->len; i++)
    if (get_level (check, i)->part == part)
      check_reached (check, get_level (check, i));
  for (guint i = 0; i < check->descriptor->shots->len; i++)
    check_shot (check, get_shot (check, i), part, levels);
  check_top_size (check, part, levels);
}

static void
check_relations (struct disk_check *check)
{
  const struct descriptor *descriptor = check->descriptor;
  const guint nr = descriptor->storages->len;
  const uint64_t end_sectors = get_storage (check, nr - 1)->end_sectors;

  if (nr > 1)
    findings_add (&check->findings, descriptor->path, PLOOP_FINDING_NOTE,
                  "has %u <Storage>: a split disk, which ploop refuses", nr);
  if (descriptor->size_sectors != end_sectors)
    findings_add (&check->findings, descriptor->path, PLOOP_FINDING_NOTE,
                  "<Disk_size> is %" G_GUINT64_FORMAT
                  " sectors, but the last <Storage> ends at %" G_GUINT64_FORMAT,
                  descriptor->size_sectors, end_sectors);
  for (guint part = 0; part < nr; part++)
    check_part (check, part);
}

/* ---- Images that nobody names ------------------------------------------ */

static gint
compare_names (gconstpointer a, gconstpointer b)
{
  const char *const *left = a, *const *right = b;

  return strcmp (*left, *right);
}

/* The image files in the directory, sorted; none if it cannot be read. */
static GPtrArray *
list_images (const char *directory)
{
  GPtrArray *names = g_ptr_array_new_with_free_func (g_free);
  DIR *stream = opendir (directory);
  const struct dirent *entry;

  while (stream && (entry = readdir (stream)))
    if ((entry->d_type == DT_REG || entry->d_type == DT_UNKNOWN)
        && location_is_image (dirfd (stream), entry->d_name, O_NOFOLLOW))
      g_ptr_array_add (names,
                       g_build_filename (directory, entry->d_name, NULL));
  if (stream)
    closedir (stream);
  g_ptr_array_sort (names, compare_names);
  return names;
}

static bool
is_named (const struct disk_check *check, const struct stat *st)
{
  for (guint i = 0; i < check->levels->len; i++) {
    const struct level *level = get_level (check, i);

    if (level->path && level->device == st->st_dev
        && level->inode == st->st_ino)
      return true;
  }
  return false;
}

/* Not a leak: it may as well be somebody's copy. */
static void
check_strays (struct disk_check *check)
{
  g_autoptr (GPtrArray) names = list_images (check->descriptor->directory);
  struct stat st;

  for (guint i = 0; i < names->len; i++) {
    const char *path = g_ptr_array_index (names, i);

    if (lstat (path, &st) == 0 && !is_named (check, &st))
      findings_add (&check->findings, path, PLOOP_FINDING_NOTE,
                    "is an image that the descriptor does not name: a copy, or "
                    "left behind by a snapshot or merge that was interrupted");
  }
}

/* ---- All --------------------------------------------------------------- */

static int
check_described (struct disk_check *check, GError **error)
{
  check->shots = check_shots (check->descriptor, &check->findings);
  check->levels = g_ptr_array_new_with_free_func (free_level);
  if (check_images (check, error) < 0)
    return -1;
  check_relations (check);
  check_strays (check);
  return 0;
}

static int
check_alone (struct disk_check *check, const char *path, GError **error)
{
  struct ploop_check_result result;

  check->findings.file = path;
  if (ploop_check (path, findings_pass_on, &check->findings, &result, error)
      == -1)
    return -1;
  check_add_result (&check->findings.result, &result);
  return 0;
}

/* XML cannot be used: which images are its, nobody knows. */
static int
check_undescribed (struct disk_check *check, const char *xml, GError **error)
{
  g_autofree char *directory = g_path_get_dirname (xml);
  g_autoptr (GPtrArray) names = list_images (directory);

  for (guint i = 0; i < names->len; i++)
    if (check_alone (check, g_ptr_array_index (names, i), error) == -1)
      return -1;
  return 0;
}

/* A file of another name that is no descriptor is none; one of this name is a broken
 * one.
 */
static bool
is_broken (const char *xml, const GError *why)
{
  g_autofree char *name = g_path_get_basename (xml);

  return g_error_matches (why, PLOOP_ERROR, PLOOP_ERROR_CORRUPT)
         || (g_error_matches (why, PLOOP_ERROR, PLOOP_ERROR_FORMAT)
             && strcmp (name, DESCRIPTOR_FILE_NAME) == 0);
}

static int
check_descriptor (struct disk_check *check, const char *xml, GError **error)
{
  g_autoptr (GError) why = NULL;
  int r;

  check->descriptor = descriptor_load (xml, &why);
  if (check->descriptor)
    r = check_described (check, error);
  else if (is_broken (xml, why)) {
    findings_add_error (&check->findings, xml, why, "");
    r = check_undescribed (check, xml, error);
  }
  else {
    g_propagate_error (error, g_steal_pointer (&why));
    r = -1;
  }
  g_clear_pointer (&check->levels, g_ptr_array_unref);
  g_clear_pointer (&check->shots, g_hash_table_unref);
  descriptor_free (check->descriptor);
  return r;
}

/* The descriptor that PATH is or holds, resolved (g_free); NULL: it is an image. */
static char *
find_descriptor (const char *path)
{
  g_autofree char *xml = location_descriptor (path);
  char *real = xml ? realpath (xml, NULL) : NULL;
  char *resolved = g_strdup (real ? real : xml);

  free (real);
  return resolved;
}

int
ploop_check_disk (const char *path, bool allow_outside,
                  ploop_disk_finding_fn report, void *opaque,
                  struct ploop_check_result *result, GError **error)
{
  struct disk_check check = {
    .allow_outside = allow_outside,
    .findings = { .report = report, .opaque = opaque },
  };
  g_autofree char *xml = find_descriptor (path);
  int lock_fd = -1, r;

  if (!xml)
    r = check_alone (&check, path, error);
  else if (access (xml, F_OK) == 0
           && !lock_descriptor_file (xml, xml, DESCRIPTOR_LOCK_READER, &lock_fd,
                                     error))
    r = -1;
  else
    r = check_descriptor (&check, xml, error);
  if (lock_fd != -1)
    close (lock_fd);
  if (r == 0 && result)
    *result = check.findings.result;
  return r;
}
