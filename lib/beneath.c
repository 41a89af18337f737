/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Staying in a directory: see beneath.h.
 *
 * Since Linux 5.6 openat2 does it.  It refuses every way that leaves the
 * directory, though, also one that comes back, as an absolute name of a file in
 * the directory does.  Those, and older kernels, take two steps.  First the
 * kernel follows everything, and says where it ended: in the directory, or not.
 * That answer may be out of date already.  So, second, what is left of the path
 * below the directory, which has no more links, is walked down from the
 * directory by its names; a link that turns up on this way is not followed.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <glib.h>

#ifdef SYS_openat2
#include <linux/openat2.h>
#endif

#include "beneath.h"

/* Where the file open at FD lies; NULL when the kernel does not tell. */
static char *
path_of (int fd)
{
  g_autofree char *link = g_strdup_printf ("/proc/self/fd/%d", fd);

  return g_file_read_link (link, NULL);
}

/* Returns a file descriptor or a negative errno. */
static int
open_by_kernel (int directory_fd, const char *name)
{
#ifdef SYS_openat2
  const struct open_how how = {
    .flags = O_PATH | O_CLOEXEC,
    .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
  };
  long fd = syscall (SYS_openat2, directory_fd, name, &how, sizeof how);

  return fd == -1 ? -errno : (int) fd;
#else
  (void) directory_fd;
  (void) name;
  return -ENOSYS;
#endif
}

/* Is the kernel's answer not the last word?  Some containers say EPERM for
 * system calls that they do not know; EAGAIN is a rename meanwhile.
 */
static bool
needs_resolving (int r)
{
  return r == -EXDEV || r == -ENOSYS || r == -EPERM || r == -ELOOP
         || r == -EAGAIN;
}

/* The part of PATH below DIRECTORY, or NULL when it is not below. */
static const char *
part_below (const char *path, const char *directory)
{
  const size_t length = strlen (directory);

  if (length == 1)              /* the root */
    return path + 1;
  if (strncmp (path, directory, length) != 0 || path[length] != '/')
    return NULL;
  return path + length + 1;
}

/* Go down from the directory, one name after the other. */
static int
walk (int directory_fd, const char *below)
{
  g_auto (GStrv) names = g_strsplit (below, "/", -1);
  int fd = fcntl (directory_fd, F_DUPFD_CLOEXEC, 0);
  int r = fd == -1 ? -errno : fd;

  for (size_t i = 0; r >= 0 && names[i]; i++) {
    const int flags = O_PATH | O_NOFOLLOW | O_CLOEXEC
                      | (names[i + 1] ? O_DIRECTORY : 0);

    if (strcmp (names[i], "..") == 0)
      r = -EXDEV;
    else if ((r = openat (fd, names[i], flags)) == -1)
      r = -errno;
    close (fd);
    fd = r;
  }
  return r;
}

static int
open_by_resolving (int directory_fd, const char *name, char **path)
{
  g_autofree char *directory = path_of (directory_fd);
  const char *below;
  int fd = beneath_open_anywhere (directory_fd, name, path);

  if (fd < 0)
    return fd;
  close (fd);
  if (!directory || !*path)
    return -EXDEV;
  below = part_below (*path, directory);
  return below ? walk (directory_fd, below) : -EXDEV;
}

int
beneath_open (int directory_fd, const char *name, char **path)
{
  int fd = name[0] == '/' ? -EXDEV : open_by_kernel (directory_fd, name);

  *path = NULL;
  if (fd >= 0)
    *path = path_of (fd);
  else if (needs_resolving (fd))
    fd = open_by_resolving (directory_fd, name, path);
  return fd;
}

int
beneath_open_anywhere (int directory_fd, const char *name, char **path)
{
  const int fd = openat (directory_fd, name, O_PATH | O_CLOEXEC);

  *path = fd == -1 ? NULL : path_of (fd);
  return fd == -1 ? -errno : fd;
}
