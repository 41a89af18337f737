/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The disks below a directory: which there are, and where the one is that somebody
 * asks for by its relative name.
 *
 * A disk is a directory that holds a DiskDescriptor.xml, of which nothing below is
 * looked at, or an image file in any other directory.  Each has one name only: what
 * is reached by a link is not listed, and refused.
 */

#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "beneath.h"
#include "descriptor.h"
#include "error.h"
#include "location.h"

/* Directories in directories; a name could not be longer much more deeply. */
#define MAX_DEPTH 64u

/* What is shown of a name that a stranger has given. */
#define MOST_SHOWN 100

static bool
has_descriptor (int directory_fd, const char *name)
{
  g_autofree char *xml =
    g_strdup_printf ("%s/%s", name, DESCRIPTOR_FILE_NAME);

  return faccessat (directory_fd, xml, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* One that is a link describes what lies elsewhere. */
static bool
has_own_descriptor (int directory_fd, const char *name)
{
  g_autofree char *xml =
    g_strdup_printf ("%s/%s", name, DESCRIPTOR_FILE_NAME);
  struct stat st;

  return fstatat (directory_fd, xml, &st, AT_SYMLINK_NOFOLLOW) == 0
         && S_ISREG (st.st_mode);
}

/* Nor by a link. */
static bool
is_image (int directory_fd, const char *name)
{
  return location_is_image (directory_fd, name, O_NOFOLLOW);
}

/* ---- All of them ------------------------------------------------------- */

static void walk (int directory_fd, const char *name, unsigned depth,
                  GPtrArray *list);

static bool
is_directory (int directory_fd, const struct dirent *entry)
{
  struct stat st;

  if (entry->d_type != DT_UNKNOWN)
    return entry->d_type == DT_DIR;
  return fstatat (directory_fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0
         && S_ISDIR (st.st_mode);
}

/* DIRECTORY is the name of the one that ENTRY is in, or empty. */
static void
look_at (int directory_fd, const char *directory, const struct dirent *entry,
         unsigned depth, GPtrArray *list)
{
  g_autofree char *name = *directory == '\0'
                            ? g_strdup (entry->d_name)
                            : g_strdup_printf ("%s/%s", directory,
                                               entry->d_name);

  if (is_directory (directory_fd, entry)) {
    const int fd = openat (directory_fd, entry->d_name,
                           O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

    if (fd != -1)
      walk (fd, name, depth + 1, list);
  }
  else if ((entry->d_type == DT_REG || entry->d_type == DT_UNKNOWN)
           && is_image (directory_fd, entry->d_name))
    g_ptr_array_add (list, g_steal_pointer (&name));
}

/* What cannot be read is left out.  Takes DIRECTORY_FD over. */
static void
walk (int directory_fd, const char *name, unsigned depth, GPtrArray *list)
{
  const struct dirent *entry;
  DIR *stream;

  if (has_descriptor (directory_fd, ".")) {
    if (has_own_descriptor (directory_fd, "."))
      g_ptr_array_add (list, g_strdup (name));
    close (directory_fd);
    return;
  }
  stream = depth <= MAX_DEPTH ? fdopendir (directory_fd) : NULL;
  if (!stream) {
    close (directory_fd);
    return;
  }
  while ((entry = readdir (stream)))
    if (strcmp (entry->d_name, ".") != 0 && strcmp (entry->d_name, "..") != 0)
      look_at (directory_fd, name, entry, depth, list);
  closedir (stream);
}

static gint
compare_names (gconstpointer a, gconstpointer b)
{
  const char *const *left = a, *const *right = b;

  return strcmp (*left, *right);
}

static int
open_directory (const char *directory, int flags, GError **error)
{
  int fd = open (directory, O_DIRECTORY | O_CLOEXEC | flags);

  if (fd == -1)
    error_set_system (error, errno, "%s: is not a directory that can be read",
                      directory);
  else if (has_descriptor (fd, ".")) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: holds a " DESCRIPTOR_FILE_NAME ", so it is a disk: serve "
                 "it with file=", directory);
    close (fd);
    fd = -1;
  }
  return fd;
}

GPtrArray *
ploop_list_disks (const char *directory, GError **error)
{
  GPtrArray *list;
  const int fd = open_directory (directory, O_RDONLY, error);

  if (fd == -1)
    return NULL;
  list = g_ptr_array_new_with_free_func (g_free);
  walk (fd, "", 0, list);
  g_ptr_array_sort (list, compare_names);
  return list;
}

/* ---- One of them ------------------------------------------------------- */

static void
refuse (const char *directory, const char *name, const char *why,
        GError **error)
{
  g_autofree char *start = g_strndup (name, MOST_SHOWN);
  g_autofree char *shown = g_strescape (start, NULL);

  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: there is no disk '%s%s': %s", directory, shown,
               strlen (name) > MOST_SHOWN ? "..." : "", why);
}

/* Is it in, or one of, a directory that is a disk as a whole? */
static bool
is_part_of_disk (int directory_fd, const char *name)
{
  for (const char *end = strchr (name, '/'); end; end = strchr (end + 1, '/')) {
    g_autofree char *above = g_strndup (name, (gsize) (end - name));

    if (has_descriptor (directory_fd, above))
      return true;
  }
  return false;
}

/* May what is open at FD, below the directory as NAME, be served?  NULL, or why not.
 */
static const char *
judge (int directory_fd, const char *name, int fd)
{
  struct stat st;

  if (fstat (fd, &st) == -1)
    return g_strerror (errno);
  if (is_part_of_disk (directory_fd, name))
    return "it is part of a disk that a DiskDescriptor.xml describes: give the "
           "directory of that";
  if (S_ISDIR (st.st_mode))
    return has_own_descriptor (directory_fd, name)
             ? NULL : "the directory holds no DiskDescriptor.xml of its own";
  return is_image (directory_fd, name) ? NULL : "it is no ploop image";
}

/* Is PATH what NAME below the directory at DIRECTORY_FD says, letter by letter? */
static bool
is_own_name (int directory_fd, const char *name, const char *path)
{
  g_autofree char *directory = NULL;
  g_autofree char *own = NULL;
  const int fd = beneath_open_anywhere (directory_fd, ".", &directory);

  if (fd < 0 || !directory || !path)
    return false;
  close (fd);
  own = g_strdup_printf ("%s/%s", strcmp (directory, "/") == 0 ? "" : directory,
                         name);
  return strcmp (own, path) == 0;
}

static char *
find_disk (int directory_fd, const char *directory, const char *name,
           GError **error)
{
  g_autofree char *path = NULL;
  const int fd =
    *name == '\0' ? -ENOENT : beneath_open (directory_fd, name, &path);
  const char *why;

  if (*name == '\0')
    why = "give the relative name of one, as the server lists them";
  else if (fd == -EXDEV)
    why = "that leaves the directory";
  else if (fd < 0)
    why = g_strerror (-fd);
  else if (!is_own_name (directory_fd, name, path))
    why = "that is another name, or a link to something: ask for what it is";
  else
    why = judge (directory_fd, name, fd);
  if (fd >= 0)
    close (fd);
  if (!why)
    return g_steal_pointer (&path);
  refuse (directory, name, why, error);
  return NULL;
}

char *
ploop_find_disk (const char *directory, const char *name, GError **error)
{
  const int fd = open_directory (directory, O_PATH, error);
  char *path;

  if (fd == -1)
    return NULL;
  path = find_disk (fd, directory, name, error);
  close (fd);
  return path;
}
