/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A file in the place of another: see replace.h. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "replace.h"

/* Returns 0 or a negative errno. */
static int
write_all (int fd, const char *buf, size_t length)
{
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

/* Fill the new file; it looks like the old one then. */
static int
fill_file (int fd, GBytes *text, const struct stat *old)
{
  gsize length;
  const char *buf = g_bytes_get_data (text, &length);
  int r;

  /* Only root may give files away.  Before fchmod: it takes bits away. */
  if (fchown (fd, old->st_uid, old->st_gid) == -1
      && fchown (fd, (uid_t) -1, old->st_gid) == -1 && errno != EPERM)
    return -errno;
  if (fchmod (fd, old->st_mode & 07777) == -1)
    return -errno;
  r = write_all (fd, buf, length);
  if (r == 0 && fsync (fd) == -1)
    r = -errno;
  return r;
}

int
replace_file (int directory_fd, const char *name, GBytes *text,
              const struct stat *old, struct stat *new)
{
  const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  g_autofree char *beside =
    g_strdup_printf (".%s.%08x", name, g_random_int ());
  int fd = openat (directory_fd, beside, flags, 0600);
  struct stat st;
  int r;

  if (fd == -1)
    return -errno;
  r = fill_file (fd, text, old);
  if (r == 0 && fstat (fd, &st) == -1)
    r = -errno;
  /* After fsync there is nothing that close could still lose. */
  close (fd);
  if (r == 0 && renameat (directory_fd, beside, directory_fd, name) == -1)
    r = -errno;
  if (r == 0)
    *new = st;
  else
    unlinkat (directory_fd, beside, 0);
  return r;
}

int
replace_sync (int directory_fd)
{
  int fd = openat (directory_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  int r = fd == -1 || fsync (fd) == -1 ? -errno : 0;

  if (fd != -1)
    close (fd);
  return r;
}
