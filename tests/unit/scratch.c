/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Image files for unit tests: see scratch.h. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <glib.h>

#include "scratch.h"

static char *directory;
static pid_t owner;

static void
die (const char *what)
{
  fprintf (stderr, "scratch: %s: %s\n", what, g_strerror (errno));
  exit (EXIT_FAILURE);
}

/* Tests run in children of the process that made the directory; each leaves
 * its files to it.
 */
static void
remove_directory (void)
{
  GDir *dir;
  const char *name;

  if (getpid () != owner)
    return;
  dir = g_dir_open (directory, 0, NULL);
  while (dir && (name = g_dir_read_name (dir)) != NULL) {
    g_autofree char *path = g_build_filename (directory, name, NULL);

    unlink (path);
  }
  if (dir)
    g_dir_close (dir);
  rmdir (directory);
}

char *
scratch_path (const char *name)
{
  static unsigned counter;

  if (!directory) {
    directory = g_dir_make_tmp ("ploop-unit-XXXXXX", NULL);
    if (!directory)
      die ("temporary directory");
    owner = getpid ();
    atexit (remove_directory);
  }
  return g_strdup_printf ("%s/%ld-%u-%s", directory, (long) getpid (),
                          counter++, name);
}

struct format_header
scratch_header (unsigned version, uint32_t cluster_sectors,
                uint32_t nr_entries)
{
  const uint64_t cluster_size =
    (uint64_t) cluster_sectors * FORMAT_SECTOR_SIZE;
  const uint64_t bat_end = format_bat_offset (nr_entries);

  return (struct format_header) {
    .version = version,
    .type = 2,
    .cluster_sectors = cluster_sectors,
    .nr_entries = nr_entries,
    .size_sectors = (uint64_t) nr_entries * cluster_sectors,
    .data_sectors =
      (uint32_t) ((bat_end + cluster_size - 1) / cluster_size
                  * cluster_sectors),
  };
}

static int
open_file (const char *path, int flags)
{
  int fd = open (path, flags | O_CLOEXEC, 0600);

  if (fd == -1)
    die (path);
  return fd;
}

char *
scratch_image (const char *name, const struct format_header *header,
               const uint32_t *entries, uint64_t file_size)
{
  char *path = scratch_path (name);
  uint8_t bytes[FORMAT_HEADER_SIZE];
  int fd = open_file (path, O_WRONLY | O_CREAT | O_EXCL);

  if (ftruncate (fd, (off_t) file_size) == -1)
    die (path);
  close (fd);
  format_encode_header (header, bytes);
  scratch_write (path, bytes, sizeof bytes, 0);
  for (uint32_t i = 0; entries && i < header->nr_entries; i++)
    if (entries[i] != 0)
      scratch_write_le32 (path, entries[i], format_bat_offset (i));
  return path;
}

void
scratch_read (const char *path, void *buf, size_t length, uint64_t offset)
{
  int fd = open_file (path, O_RDONLY);

  if (pread (fd, buf, length, (off_t) offset) != (ssize_t) length)
    die (path);
  close (fd);
}

void
scratch_write (const char *path, const void *buf, size_t length,
               uint64_t offset)
{
  int fd = open_file (path, O_WRONLY);

  if (pwrite (fd, buf, length, (off_t) offset) != (ssize_t) length)
    die (path);
  close (fd);
}

uint32_t
scratch_read_le32 (const char *path, uint64_t offset)
{
  uint8_t bytes[4];

  scratch_read (path, bytes, sizeof bytes, offset);
  return format_get_le32 (bytes);
}

void
scratch_write_le32 (const char *path, uint32_t value, uint64_t offset)
{
  value = GUINT32_TO_LE (value);
  scratch_write (path, &value, sizeof value, offset);
}

uint64_t
scratch_size (const char *path)
{
  struct stat st;

  if (stat (path, &st) == -1)
    die (path);
  return (uint64_t) st.st_size;
}
