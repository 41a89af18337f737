/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Writing files, with errors that name them. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "disk.h"

/* What file systems make holes of. */
#define BLOCK 4096u

static bool
fail (const char *path, GError **error)
{
  g_set_error (error, G_FILE_ERROR, g_file_error_from_errno (errno), "%s: %s",
               path, g_strerror (errno));
  return false;
}

int
file_create (const char *path, GError **error)
{
  const int fd = open (path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

  if (fd == -1)
    fail (path, error);
  return fd;
}

bool
file_write (int fd, const char *path, const void *buf, size_t length,
            uint64_t offset, GError **error)
{
  const char *bytes = buf;

  while (length > 0) {
    const ssize_t n = pwrite (fd, bytes, length, (off_t) offset);

    if (n == -1 && errno != EINTR)
      return fail (path, error);
    if (n > 0) {
      bytes += n;
      offset += (uint64_t) n;
      length -= (size_t) n;
    }
  }
  return true;
}

static bool
is_zeros (const uint8_t *bytes, size_t length)
{
  for (size_t i = 0; i < length; i++)
    if (bytes[i] != 0)
      return false;
  return true;
}

bool
file_write_sparsely (int fd, const char *path, const void *buf,
                     size_t length, uint64_t offset, GError **error)
{
  const uint8_t *bytes = buf;

  while (length > 0) {
    const size_t n = MIN (length, BLOCK - offset % BLOCK);

    if (!is_zeros (bytes, n)
        && !file_write (fd, path, bytes, n, offset, error))
      return false;
    bytes += n;
    offset += n;
    length -= n;
  }
  return true;
}

bool
file_finish (int fd, const char *path, uint64_t length, GError **error)
{
  const bool sized = ftruncate (fd, (off_t) length) == 0
                     || fail (path, error);

  return close (fd) == 0 ? sized : sized && fail (path, error);
}
