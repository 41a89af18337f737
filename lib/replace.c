/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A file in the place of another: see replace.h.
 *
 * The hard part is the order: owner before mode, both and the content before
 * the name, the name before its directory.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "replace.h"

int
replace_begin (struct replacement *replacement, int directory_fd,
               const char *name)
{
  const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;

  replacement->directory_fd = directory_fd;
  replacement->name = name;
  replacement->beside = g_strdup_printf (".%s.%08x", name, g_random_int ());
  replacement->fd = openat (directory_fd, replacement->beside, flags, 0600);
  return replacement->fd == -1 ? -errno : 0;
}

/* Let the new file look like the old one, for good. */
static int
finish_file (int fd, const struct stat *old, struct stat *new)
{
  /* Only root may give files away.  Before fchmod: it takes bits away. */
  if (fchown (fd, old->st_uid, old->st_gid) == -1
      && fchown (fd, (uid_t) -1, old->st_gid) == -1 && errno != EPERM)
    return -errno;
  if (fchmod (fd, old->st_mode & 07777) == -1 || fsync (fd) == -1
      || fstat (fd, new) == -1)
    return -errno;
  return 0;
}

int
replace_end (struct replacement *replacement, int r, const struct stat *old,
             struct stat *new)
{
  const int directory_fd = replacement->directory_fd;
  struct stat st;

  if (r == 0)
    r = finish_file (replacement->fd, old, &st);
  /* After fsync there is nothing that close could still lose. */
  close (replacement->fd);
  if (r == 0
      && renameat (directory_fd, replacement->beside, directory_fd,
                   replacement->name) == -1)
    r = -errno;
  if (r == 0)
    *new = st;
  else
    unlinkat (directory_fd, replacement->beside, 0);
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
