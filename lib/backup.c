/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Parts of a file, kept: see backup.h. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup.h"
#include "replace.h"

#define PIECE_BYTES ((size_t) 1 << 20)

/* As many names are tried. */
#define MAX_NAMES 1000u

struct backup {
  const struct delta *delta;
  char *path;
  uint64_t size;                /* bytes; the image's */
  int fd;
  uint8_t *buf;
};

static int
create (const char *path, const struct delta *delta)
{
  const int fd =
    open (path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  struct stat st;

  /* Whoever may read the image may read this, as far as we may say so. */
  if (fd >= 0 && fstat (delta->fd, &st) == 0
      && fchown (fd, st.st_uid, st.st_gid) == 0)
    fchmod (fd, st.st_mode & 0777);
  return fd;
}

/* PATH.backup, PATH.backup.2, ... */
static int
create_beside (const struct delta *delta, char **path)
{
  for (unsigned i = 1; i <= MAX_NAMES; i++) {
    int fd;

    *path = i == 1 ? g_strdup_printf ("%s.backup", delta->path)
                   : g_strdup_printf ("%s.backup.%u", delta->path, i);
    fd = create (*path, delta);
    if (fd >= 0 || errno != EEXIST || i == MAX_NAMES)
      return fd;
    g_free (*path);
  }
  g_assert_not_reached ();
}

struct backup *
backup_begin (const struct delta *delta, const char *path, GError **error)
{
  struct backup *backup = g_new0 (struct backup, 1);

  backup->delta = delta;
  backup->path = g_strdup (path);
  backup->fd = path ? create (path, delta)
                    : create_beside (delta, &backup->path);
  if (backup->fd == -1)
    error_set_system (error, errno, "%s: the backup cannot be created: nothing was "
                      "changed: give another place for it (--backup-file)",
                      backup->path);
  else if (delta_size (delta, &backup->size) < 0
           || ftruncate (backup->fd, (off_t) backup->size) == -1)
    error_set_system (error, errno, "%s: the backup cannot be made as long as the "
                      "image: nothing was changed", backup->path);
  else {
    backup->buf = g_malloc (PIECE_BYTES);
    return backup;
  }
  backup_abandon (backup);
  return NULL;
}

static int
write_all (int fd, const uint8_t *buf, size_t length, uint64_t offset)
{
  while (length > 0) {
    const ssize_t n = pwrite (fd, buf, length, (off_t) offset);

    if (n == -1 && errno == EINTR)
      continue;
    if (n <= 0)
      return n == 0 ? -EIO : -errno;
    buf += n;
    length -= (size_t) n;
    offset += (uint64_t) n;
  }
  return 0;
}

static int
copy (struct backup *backup, uint64_t start, uint64_t stop)
{
  while (start < stop) {
    const size_t n = (size_t) MIN (stop - start, PIECE_BYTES);
    int r = delta_pread (backup->delta, backup->buf, n, start);

    if (r == 0)
      r = write_all (backup->fd, backup->buf, n, start);
    if (r < 0)
      return r;
    start += n;
  }
  return 0;
}

int
backup_add (struct backup *backup, uint64_t length, uint64_t offset,
            GError **error)
{
  const uint64_t end = MIN (offset + length, backup->size);
  uint64_t stop;
  int r = 0;

  while (r == 0 && delta_next_data (backup->delta, end, &offset, &stop)) {
    r = copy (backup, offset, stop);
    offset = stop;
  }
  if (r == 0)
    return 0;
  error_set_system (error, r, "%s: the backup cannot take what is at byte %"
                    G_GUINT64_FORMAT " of %s: nothing was changed", backup->path,
                    offset, backup->delta->path);
  return -1;
}

static int
sync_name (const char *path)
{
  g_autofree char *directory = g_path_get_dirname (path);
  const int fd = open (directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
  int r;

  if (fd == -1)
    return -errno;
  r = replace_sync (fd);
  close (fd);
  /* Some file systems cannot sync a directory; it is theirs to keep then. */
  return r == -EINVAL ? 0 : r;
}

static void
release (struct backup *backup)
{
  if (backup->fd >= 0)
    close (backup->fd);
  g_free (backup->path);
  g_free (backup->buf);
  g_free (backup);
}

char *
backup_finish (struct backup *backup, GError **error)
{
  int r = fsync (backup->fd) == -1 ? -errno : sync_name (backup->path);
  char *path;

  if (r < 0) {
    error_set_system (error, r, "%s: the backup cannot be synced: nothing was "
                      "changed", backup->path);
    backup_abandon (backup);
    return NULL;
  }
  path = g_steal_pointer (&backup->path);
  release (backup);
  return path;
}

void
backup_abandon (struct backup *backup)
{
  if (!backup)
    return;
  if (backup->fd >= 0)
    unlink (backup->path);
  release (backup);
}
