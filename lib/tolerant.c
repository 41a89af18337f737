/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Reading around bad sectors: see tolerant.h.
 *
 * The page cache reads pages: with one bad sector, none of a page's eight can be had
 * through it.  So sectors are read past it, where the file system lets us.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tolerant.h"

#define PAGE_BYTES 4096u

static struct delta *
open_delta (const char *path, int path_fd, enum delta_lock lock,
            const struct log *log, GError **error)
{
  const struct delta_source source = {
    .path = path,
    .path_fd = path_fd,
    .any_header = true,
    .raw_cluster_size = strstr (path, "://") ? FORMAT_DEFAULT_CLUSTER : 0,
    .log = log,
  };

  return delta_open_source (&source, lock, error);
}

/* The last copy of somebody's data may lie where nothing can be locked. */
static struct delta *
open_without_lock (const char *path, int path_fd, const struct log *log)
{
  struct delta *delta =
    open_delta (path, path_fd, DELTA_LOCK_NONE, log, NULL);

  if (delta)
    log_warning (log, "%s: cannot be locked: make sure that nobody writes to it",
                 path);
  return delta;
}

static int
open_direct (const struct delta *delta)
{
  char self[64];

  if (delta->fd == -1)
    return -1;
  snprintf (self, sizeof self, "/proc/self/fd/%d", delta->fd);
  return open (self, O_RDONLY | O_DIRECT | O_CLOEXEC | O_NOCTTY);
}

struct tolerant *
tolerant_open (const char *path, int path_fd, const struct log *log,
               GError **error)
{
  g_autoptr (GError) why = NULL;
  struct delta *delta =
    open_delta (path, path_fd, DELTA_LOCK_READER, log, &why);
  struct tolerant *file;

  if (!delta && g_error_matches (why, PLOOP_ERROR, PLOOP_ERROR_SYSTEM))
    delta = open_without_lock (path, path_fd, log);
  if (!delta) {
    g_propagate_error (error, g_steal_pointer (&why));
    return NULL;
  }
  file = g_new (struct tolerant, 1);
  *file = (struct tolerant) { delta, open_direct (delta) };
  return file;
}

void
tolerant_close (struct tolerant *file)
{
  if (!file)
    return;
  if (file->direct_fd >= 0)
    close (file->direct_fd);
  delta_close (file->delta);
  g_free (file);
}

/* LENGTH bytes of one sector, from its beginning on.  Did it succeed? */
static bool
read_direct (const struct tolerant *file, void *buf, size_t length,
             uint64_t offset)
{
  g_autofree uint8_t *memory = g_malloc (PAGE_BYTES + FORMAT_SECTOR_SIZE);
  uint8_t *aligned =
    memory + (PAGE_BYTES - (uintptr_t) memory % PAGE_BYTES) % PAGE_BYTES;
  ssize_t n;

  if (file->direct_fd == -1 || offset % FORMAT_SECTOR_SIZE != 0)
    return false;
  do
    n = pread (file->direct_fd, aligned, FORMAT_SECTOR_SIZE, (off_t) offset);
  while (n == -1 && errno == EINTR);
  if (n < (ssize_t) MIN (length, file->delta->file_size - offset))
    return false;
  memset (aligned + n, 0, FORMAT_SECTOR_SIZE - (size_t) n);
  memcpy (buf, aligned, length);
  return true;
}

/* The sectors of a page that cannot be read as a whole. */
static void
read_sectors (const struct tolerant *file, uint8_t *buf, size_t length,
              uint64_t offset, tolerant_bad_fn bad, void *opaque)
{
  for (size_t n; length > 0; buf += n, offset += n, length -= n) {
    n = (size_t) MIN (length,
                      FORMAT_SECTOR_SIZE - offset % FORMAT_SECTOR_SIZE);
    if (read_direct (file, buf, n, offset)
        || delta_pread (file->delta, buf, n, offset) == 0)
      continue;
    memset (buf, 0, n);
    bad (opaque, offset, n);
  }
}

void
tolerant_read (const struct tolerant *file, void *buf, size_t length,
               uint64_t offset, tolerant_bad_fn bad, void *opaque)
{
  uint64_t middle = (offset + length / 2) / PAGE_BYTES * PAGE_BYTES;
  size_t first;

  if (delta_pread (file->delta, buf, length, offset) == 0)
    return;
  if (length <= PAGE_BYTES) {
    read_sectors (file, buf, length, offset, bad, opaque);
    return;
  }
  if (middle <= offset)
    middle += PAGE_BYTES;
  first = (size_t) (middle - offset);
  tolerant_read (file, buf, first, offset, bad, opaque);
  tolerant_read (file, (uint8_t *) buf + first, length - first, middle, bad,
                 opaque);
}
