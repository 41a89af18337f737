/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Creating an empty image: ploop_create in ploop-core.h.
 *
 * The BAT is written, not left as a hole: the kernels of OpenVZ 6 and 7 do not
 * take holes in an image file.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"
#include "format.h"
#include "lock.h"
#include "replace.h"

/* Write zeros from the file position on.  Returns 0 or a negative errno. */
static int
write_zeroes (int fd, uint64_t length)
{
  const size_t chunk = 1 << 20;
  g_autofree uint8_t *zeroes = g_malloc0 (chunk);

  while (length > 0) {
    ssize_t n = write (fd, zeroes, (size_t) MIN (length, chunk));

    if (n < 0 && errno != EINTR)
      return -errno;
    if (n > 0)
      length -= (size_t) n;
  }
  return 0;
}

/* Write header and BAT of a new image to the empty file FD; the header last, so
 * that what is cut short is no image.  Returns 0 or a negative errno.
 */
static int
write_image (int fd, const struct format_header *header)
{
  uint8_t bytes[FORMAT_HEADER_SIZE];
  ssize_t n;
  int r;

  r = write_zeroes (fd, (uint64_t) header->data_sectors * FORMAT_SECTOR_SIZE);
  if (r < 0)
    return r;
  format_encode_header (header, bytes);
  n = pwrite (fd, bytes, sizeof bytes, 0);
  if (n != sizeof bytes)
    return n < 0 ? -errno : -EIO;
  return 0;
}

/* The directory that the file is in, for *at calls, or a negative errno. */
static int
open_directory (const char *path)
{
  g_autofree char *directory = g_path_get_dirname (path);
  const int fd = open (directory, O_PATH | O_DIRECTORY | O_CLOEXEC);

  return fd == -1 ? -errno : fd;
}

/* Make the names in a directory durable. */
static int
sync_names (int directory_fd)
{
  const int r = replace_sync (directory_fd);

  /* Some file systems cannot sync a directory; it is theirs to keep then. */
  return r == -EINVAL ? 0 : r;
}

/* Make the new file's name durable too. */
static int
sync_name (const char *path)
{
  const int directory_fd = open_directory (path);
  int r;

  if (directory_fd < 0)
    return directory_fd;
  r = sync_names (directory_fd);
  close (directory_fd);
  return r;
}

static int
create_new (const char *path, const struct format_header *header,
            GError **error)
{
  int fd, r;

  fd = open (path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd == -1) {
    if (errno == EEXIST)
      g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_EXISTS,
                   "%s: exists already: choose another name, or say that it "
                   "may be overwritten (--force)", path);
    else
      error_set_system (error, errno, "%s: cannot be created", path);
    return -1;
  }
  r = write_image (fd, header);
  if (r == 0 && fsync (fd) == -1)
    r = -errno;
  if (close (fd) == -1 && r == 0)
    r = -errno;
  if (r == 0)
    r = sync_name (path);
  if (r < 0) {
    unlink (path);
    error_set_system (error, r, "%s: cannot be written", path);
    return -1;
  }
  return 0;
}

/* Put a new image in the place of the file that ST is about. */
static int
replace_old (int directory_fd, const char *path, const struct stat *st,
             const struct format_header *header, GError **error)
{
  g_autofree char *directory = g_path_get_dirname (path);
  g_autofree char *name = g_path_get_basename (path);
  g_autofree char *beside = NULL;
  struct replacement replacement;
  struct stat new;
  int r = replace_begin (&replacement, directory_fd, name);

  beside = replacement.beside;
  if (r < 0) {
    error_set_system (error, r, "%s/%s: cannot be created", directory, beside);
    return -1;
  }
  r = replace_end (&replacement, write_image (replacement.fd, header), st,
                   &new);
  if (r < 0) {
    error_set_system (error, r, "%s: cannot be replaced", path);
    return -1;
  }
  r = sync_names (directory_fd);
  if (r < 0)
    error_set_system (error, r, "%s: is replaced, but its directory cannot be "
                      "synced", path);
  return r < 0 ? -1 : 0;
}

static int
replace_in_directory (const char *path, const struct stat *st,
                      const struct format_header *header, GError **error)
{
  const int directory_fd = open_directory (path);
  int r;

  if (directory_fd < 0) {
    error_set_system (error, directory_fd, "%s: cannot be replaced", path);
    return -1;
  }
  r = replace_old (directory_fd, path, st, header, error);
  close (directory_fd);
  return r;
}

/* Keep everybody out of the old file, FD, while it is replaced. */
static int
lock_and_replace (int fd, const char *path,
                  const struct format_header *header, GError **error)
{
  int descriptor_fd = -1, r = -1;
  struct stat st;

  if (fstat (fd, &st) == -1)
    error_set_system (error, errno, "%s: cannot be examined", path);
  else if (!S_ISREG (st.st_mode))
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_EXISTS,
                 "%s: exists and is not a regular file: choose another name",
                 path);
  else if (lock_image (fd, path, true, error)
           && lock_descriptor (path, DESCRIPTOR_LOCK_WRITER, &descriptor_fd,
                               error))
    r = replace_in_directory (path, &st, header, error);

  if (descriptor_fd >= 0)
    close (descriptor_fd);
  return r;
}

static int
replace (const char *path, const struct format_header *header,
         GError **error)
{
  /* A link is followed, as it is when the image is opened. */
  g_autofree char *resolved = NULL;
  char *real = realpath (path, NULL);
  int fd, r;

  if (!real && g_file_test (path, G_FILE_TEST_IS_SYMLINK)) {
    error_set_system (error, errno, "%s: is a link whose target cannot be "
                      "opened", path);
    return -1;
  }
  if (!real)
    return create_new (path, header, error);
  resolved = g_strdup (real);
  free (real);

  fd = open (resolved, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  if (fd == -1) {
    error_set_system (error, errno, "%s: cannot be replaced", resolved);
    return -1;
  }
  r = lock_and_replace (fd, resolved, header, error);
  close (fd);
  return r;
}

int
ploop_create (const char *path, const struct ploop_create_options *options,
              GError **error)
{
  struct format_header header;

  if (!format_new_header (options->size,
                          options->cluster_size ? options->cluster_size
                                                : FORMAT_DEFAULT_CLUSTER,
                          options->version ? options->version : 2, &header,
                          error)) {
    g_prefix_error (error, "%s: ", path);
    return -1;
  }
  return options->overwrite ? replace (path, &header, error)
                            : create_new (path, &header, error);
}
