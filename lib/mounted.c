/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Reading what the kernel's ploop driver tells in sysfs: see mounted.h.  On all other
 * kernels there is no device of that name, and one directory is read.
 */

#include <config.h>

#include <sys/stat.h>

#include <glib.h>

#include "mounted.h"

/* The one line of the file NAME in DIRECTORY, or NULL. */
static char *
read_line (const char *directory, const char *name)
{
  g_autofree char *path = g_build_filename (directory, name, NULL);
  char *line;

  if (!g_file_get_contents (path, &line, NULL, NULL))
    return NULL;
  return g_strchomp (line);
}

/* DELTA is a device's directory of one delta. */
static bool
is_delta_of (const char *delta, const struct stat *file)
{
  g_autofree char *image = read_line (delta, "image");
  struct stat st;

  return image && stat (image, &st) == 0
         && st.st_dev == file->st_dev && st.st_ino == file->st_ino;
}

static bool
find_delta (const char *device, const struct stat *file, bool *writes)
{
  g_autofree char *deltas = g_build_filename (device, "pdelta", NULL);
  g_autoptr (GDir) directory = g_dir_open (deltas, 0, NULL);
  const char *level;

  while (directory && (level = g_dir_read_name (directory)) != NULL) {
    g_autofree char *delta = g_build_filename (deltas, level, NULL);
    g_autofree char *read_only = NULL;

    if (!is_delta_of (delta, file))
      continue;
    read_only = read_line (delta, "ro");
    *writes = g_strcmp0 (read_only, "1") != 0;
    return true;
  }
  return false;
}

bool
mounted_find (const char *sysfs, int fd, char **device, bool *writes)
{
  g_autoptr (GDir) directory = g_dir_open (sysfs, 0, NULL);
  struct stat st;
  const char *name;

  if (!directory || fstat (fd, &st) == -1)
    return false;
  while ((name = g_dir_read_name (directory)) != NULL) {
    g_autofree char *path = g_build_filename (sysfs, name, NULL);

    if (g_str_has_prefix (name, "ploop") && find_delta (path, &st, writes)) {
      *device = g_strdup (name);
      return true;
    }
  }
  return false;
}
