/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Disks with a descriptor, held: see described.h. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "described.h"
#include "lock.h"

static bool
need_descriptor (const char *path, char **xml, GError **error)
{
  *xml = location_descriptor (path);
  if (*xml)
    return true;
  if (access (path, F_OK) == -1)
    error_set_system (error, errno, "%s: cannot be found", path);
  else
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: is no DiskDescriptor.xml, nor a directory that holds one: "
                 "only these have snapshots", path);
  return false;
}

/* Read before it is locked, to know whose lock it is; and again when nobody can change
 * it any more.
 */
static bool
lock_and_load (struct described *described, const char *xml, bool writer,
               GError **error)
{
  const enum descriptor_lock lock =
    writer ? DESCRIPTOR_LOCK_WRITER : DESCRIPTOR_LOCK_READER;
  g_autoptr (Descriptor) before = descriptor_load (xml, error);

  if (!before
      || !lock_descriptor_file (before->path, before->path, lock,
                                &described->lock_fd, error))
    return false;
  described->descriptor = descriptor_load (before->path, error);
  return described->descriptor != NULL;
}

bool
described_open (struct described *described, const char *path, bool writer,
                GError **error)
{
  g_autofree char *xml = NULL;

  *described = (struct described) {
    .lock_fd = -1,
    .file_fds = g_array_new (FALSE, FALSE, sizeof (int)),
  };
  if (need_descriptor (path, &xml, error)
      && lock_and_load (described, xml, writer, error))
    return true;
  described_close (described);
  return false;
}

void
described_close (struct described *described)
{
  g_clear_pointer (&described->descriptor, descriptor_free);
  for (guint i = 0; described->file_fds && i < described->file_fds->len; i++)
    close (g_array_index (described->file_fds, int, i));
  g_clear_pointer (&described->file_fds, g_array_unref);
  if (described->lock_fd > 0)
    close (described->lock_fd);
  described->lock_fd = -1;
}

bool
described_locate (const struct described *described, guint storage,
                  const GPtrArray *images, guint nr,
                  struct location *location, GError **error)
{
  struct descriptor *descriptor = described->descriptor;
  const struct descriptor_storage *in =
    g_ptr_array_index (descriptor->storages, storage);

  *location = (struct location) {
    .deltas = chain_sources_new (),
    .descriptor = descriptor,
    .descriptor_is_locked = true,
    .cluster_size = in->cluster_sectors * FORMAT_SECTOR_SIZE,
    .nr_parts = 1,
  };
  for (guint i = 0; i < nr; i++)
    if (!location_add_image (location->deltas, descriptor,
                             g_ptr_array_index (images, i), false, error)) {
      described_forget (location);
      return false;
    }
  return true;
}

void
described_forget (struct location *location)
{
  location->descriptor = NULL;
  location_clear (location);
}

bool
described_is_sound (const struct described *described, const char *guid,
                    GError **error)
{
  for (guint i = 0; i < described->descriptor->storages->len; i++) {
    g_autoptr (GPtrArray) chain =
      descriptor_chain (described->descriptor, i, guid, error);

    if (!chain)
      return false;
  }
  return true;
}

/* PATH is the file open at PATH_FD, for messages. */
static bool
lock_file (struct described *described, int path_fd, const char *path,
           GError **error)
{
  g_autofree char *self = g_strdup_printf ("/proc/self/fd/%d", path_fd);
  const int fd = open (self, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

  if (fd == -1) {
    error_set_system (error, errno, "%s: cannot be opened to keep others out",
                      path);
    return false;
  }
  g_array_append_val (described->file_fds, fd);
  return lock_image (fd, path, true, error);
}

/* A file that is not there is in nobody's way. */
static bool
is_missing (const struct descriptor *descriptor,
            const struct descriptor_image *image)
{
  struct stat st;

  return fstatat (descriptor->directory_fd, image->file, &st,
                  AT_SYMLINK_NOFOLLOW) == -1 && errno == ENOENT;
}

static bool
collect_file (struct described *described,
              const struct descriptor_image *image, bool lock,
              GPtrArray *paths, GError **error)
{
  char *path = NULL;
  const int fd =
    descriptor_open_file (described->descriptor, image, false, &path, error);
  bool ok;

  if (fd == -1)
    return false;
  g_ptr_array_add (paths, path);
  ok = !lock || lock_file (described, fd, path, error);
  close (fd);
  return ok;
}

bool
described_collect_files (struct described *described, const char *guid,
                         bool lock, GPtrArray *paths, GError **error)
{
  const struct descriptor *descriptor = described->descriptor;

  for (guint i = 0; i < descriptor->storages->len; i++) {
    const struct descriptor_image *image =
      descriptor_find_image (descriptor, i, guid);

    if (image && !is_missing (descriptor, image)
        && !collect_file (described, image, lock, paths, error))
      return false;
  }
  return true;
}

/* Does DESCRIPTOR name the file that ST is of, for any GUID but EXCEPT (may be NULL)?
 * What cannot be told is taken for yes: the file stays.
 */
static const struct descriptor_image *
find_name (const struct descriptor *descriptor, const struct stat *st,
           const char *except)
{
  for (guint i = 0; i < descriptor->storages->len; i++) {
    const struct descriptor_storage *storage =
      g_ptr_array_index (descriptor->storages, i);

    for (guint j = 0; j < storage->images->len; j++) {
      const struct descriptor_image *image =
        g_ptr_array_index (storage->images, j);

      if ((!except || strcmp (image->guid, except) != 0)
          && descriptor_is_file_of (descriptor, image, st, true))
        return image;
    }
  }
  return NULL;
}

bool
described_has_own_files (const struct described *described, const char *guid,
                         GError **error)
{
  const struct descriptor *descriptor = described->descriptor;

  for (guint i = 0; i < descriptor->storages->len; i++) {
    const struct descriptor_image *image =
      descriptor_find_image (descriptor, i, guid);
    const struct descriptor_image *other;
    struct stat st;

    if (!image
        || fstatat (descriptor->directory_fd, image->file, &st, 0) == -1)
      continue;                 /* opening it says why */
    other = find_name (descriptor, &st, guid);
    if (!other)
      continue;
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
                 "%s: <File> of %s is %s, and that of %s is %s: they are one file, "
                 "or it cannot be told: a write to one would change the other",
                 descriptor->path, image->guid, image->file, other->guid,
                 other->file);
    return false;
  }
  return true;
}

/* A descriptor from strangers may have had its own name, or its lock's, for a delta. */
static bool
is_needed (const struct described *described, const char *path)
{
  const struct descriptor *descriptor = described->descriptor;
  struct stat st, lock;

  if (stat (path, &st) == -1)
    return false;
  if (st.st_dev == descriptor->read.st_dev
      && st.st_ino == descriptor->read.st_ino)
    return true;
  if (fstat (described->lock_fd, &lock) == 0 && st.st_dev == lock.st_dev
      && st.st_ino == lock.st_ino)
    return true;
  return find_name (descriptor, &st, NULL) != NULL;
}

bool
described_remove_files (const struct described *described,
                        const GPtrArray *paths, GError **error)
{
  bool ok = true;

  for (guint i = 0; i < paths->len; i++) {
    const char *path = g_ptr_array_index (paths, i);

    if (is_needed (described, path) || unlink (path) == 0
        || errno == ENOENT)
      continue;
    if (ok)
      error_set_system (error, errno, "%s: is of no more use, but cannot be "
                        "removed", path);
    ok = false;
  }
  return ok;
}
