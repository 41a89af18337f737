/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The file of an empty image: see blank.h.
 *
 * The BAT is written, not left as a hole: the kernels of OpenVZ 6 and 7 do not
 * take holes in an image file.  What is new has no name before it is whole and on
 * disk, where the file system can do that.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blank.h"
#include "format.h"
#include "lock.h"
#include "replace.h"

#define CHUNK_BYTES ((uint64_t) 1 << 20)

/* What is to be in the file. */
struct blank {
  struct format_header header;
  enum ploop_create_space space;
  ploop_progress_fn progress;   /* or NULL */
  void *progress_opaque;
};

/* ---- The content ------------------------------------------------------- */

static uint64_t
data_start (const struct blank *blank)
{
  return (uint64_t) blank->header.data_sectors * FORMAT_SECTOR_SIZE;
}

static uint64_t
data_bytes (const struct blank *blank)
{
  return (uint64_t) blank->header.nr_entries * blank->header.cluster_sectors
         * FORMAT_SECTOR_SIZE;
}

/* Write LENGTH bytes at the file position.  Returns 0 or a negative errno. */
static int
write_on (int fd, const uint8_t *buf, size_t length)
{
  while (length > 0) {
    const ssize_t n = write (fd, buf, length);

    if (n < 0 && errno != EINTR)
      return -errno;
    if (n > 0) {
      buf += n;
      length -= (size_t) n;
    }
  }
  return 0;
}

/* The BAT, from the file position on: of nothing, or of all clusters in a row. */
static int
write_bat (int fd, const struct blank *blank)
{
  const struct format_header *header = &blank->header;
  const uint32_t first = header->version == 1
                           ? header->data_sectors
                           : header->data_sectors / header->cluster_sectors;
  const uint32_t step = header->version == 1 ? header->cluster_sectors : 1;
  const uint64_t nr = (data_start (blank) - FORMAT_HEADER_SIZE)
                      / FORMAT_ENTRY_SIZE;
  const size_t nr_chunk = CHUNK_BYTES / FORMAT_ENTRY_SIZE;
  g_autofree uint32_t *entries = g_new0 (uint32_t, nr_chunk);
  int r = 0;

  for (uint64_t i = 0, n; i < nr && r == 0; i += n) {
    n = MIN (nr - i, nr_chunk);
    for (uint64_t j = 0; blank->space != PLOOP_CREATE_SPARSE && j < n; j++)
      entries[j] = i + j < header->nr_entries
                     ? GUINT32_TO_LE (first + (uint32_t) (i + j) * step)
                     : 0;
    r = write_on (fd, (const uint8_t *) entries, n * FORMAT_ENTRY_SIZE);
  }
  return r;
}

/* Returns 0, a negative errno, or -ECANCELED. */
static int
write_clusters (int fd, const struct blank *blank)
{
  g_autofree uint8_t *zeros = g_malloc0 (CHUNK_BYTES);
  const uint64_t length = data_bytes (blank);
  int r = 0;

  for (uint64_t done = 0, n; done < length && r == 0; done += n) {
    if (blank->progress
        && !blank->progress (blank->progress_opaque, done, length))
      return -ECANCELED;
    n = MIN (length - done, CHUNK_BYTES);
    r = write_on (fd, zeros, (size_t) n);
  }
  if (r == 0 && blank->progress)
    blank->progress (blank->progress_opaque, length, length);
  return r;
}

/* To be full, too, space is reserved first: when there is too little, that is known
 * at once.
 */
static int
make_clusters (int fd, const struct blank *blank)
{
  const uint64_t end = data_start (blank) + data_bytes (blank);

  if (blank->space == PLOOP_CREATE_SPARSE)
    return 0;
  if (blank->space == PLOOP_CREATE_METADATA)
    return ftruncate (fd, (off_t) end) == -1 ? -errno : 0;
  if (fallocate (fd, 0, 0, (off_t) end) == -1
      && (blank->space != PLOOP_CREATE_FULL || errno != EOPNOTSUPP))
    return -errno;
  return blank->space == PLOOP_CREATE_FULL ? write_clusters (fd, blank) : 0;
}

/* Write all of a new image to the empty file FD; the header last, so that what is cut
 * short is no image.  Returns 0, a negative errno, or -ECANCELED.
 */
static int
write_image (int fd, const struct blank *blank)
{
  static const uint8_t no_header[FORMAT_HEADER_SIZE];
  uint8_t bytes[FORMAT_HEADER_SIZE];
  ssize_t n;
  int r;

  r = write_on (fd, no_header, sizeof no_header);
  if (r == 0)
    r = write_bat (fd, blank);
  if (r == 0)
    r = make_clusters (fd, blank);
  if (r < 0)
    return r;
  format_encode_header (&blank->header, bytes);
  n = pwrite (fd, bytes, sizeof bytes, 0);
  if (n != sizeof bytes)
    return n < 0 ? -errno : -EIO;
  return 0;
}

/* Returns -1, or 1 when it was the callback that ended it. */
static int
set_write_error (const char *path, int r, GError **error)
{
  if (r == -ECANCELED)
    return 1;
  if (r == -EOPNOTSUPP)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_SYSTEM,
                 "%s: the file system cannot reserve space (fallocate): let the "
                 "clusters be written instead (full)", path);
  else
    error_set_system (error, r, "%s: cannot be written", path);
  return -1;
}

/* ---- A new file -------------------------------------------------------- */

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

/* A file without a name, in the directory of PATH; or, where there is no such thing,
 * with it.  -1 with errno set.
 */
static int
open_new (const char *path, bool *is_named)
{
  g_autofree char *directory = g_path_get_dirname (path);
  int fd = open (directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

  *is_named = fd == -1 && (errno == EOPNOTSUPP || errno == EISDIR);
  return *is_named ? open (path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)
                   : fd;
}

static int
give_name (int fd, const char *path)
{
  g_autofree char *link = g_strdup_printf ("/proc/self/fd/%d", fd);

  return linkat (AT_FDCWD, link, AT_FDCWD, path, AT_SYMLINK_FOLLOW) == -1
           ? -errno : 0;
}

/* Returns 0 or a negative errno, -ECANCELED among them; if the file is there in
 * spite of that, *IS_NAMED is true.
 */
static int
write_new (int fd, const char *path, const struct blank *blank,
           bool *is_named)
{
  int r = write_image (fd, blank);

  if (r == 0 && fsync (fd) == -1)
    r = -errno;
  if (r == 0 && !*is_named) {
    r = give_name (fd, path);
    *is_named = r == 0;
  }
  if (close (fd) == -1 && r == 0)
    r = -errno;
  return r == 0 ? sync_name (path) : r;
}

static int
set_exists_error (const char *path, GError **error)
{
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_EXISTS,
               "%s: exists already: choose another name, or say that it may be "
               "overwritten (--force)", path);
  return -1;
}

static int
create_new (const char *path, const struct blank *blank, GError **error)
{
  struct stat st;
  bool is_named;
  int fd, r;

  if (lstat (path, &st) == 0)
    return set_exists_error (path, error);
  fd = open_new (path, &is_named);
  if (fd == -1 && errno == EEXIST)
    return set_exists_error (path, error);
  if (fd == -1) {
    error_set_system (error, errno, "%s: cannot be created", path);
    return -1;
  }
  r = write_new (fd, path, blank, &is_named);
  if (r == 0)
    return 0;
  if (is_named)
    unlink (path);
  /* Somebody was faster. */
  return r == -EEXIST ? set_exists_error (path, error)
                      : set_write_error (path, r, error);
}

/* ---- In the place of another ------------------------------------------- */

/* Put a new image in the place of the file that ST is about. */
static int
replace_old (int directory_fd, const char *path, const struct stat *st,
             const struct blank *blank, GError **error)
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
  r = replace_end (&replacement, write_image (replacement.fd, blank), st,
                   &new);
  if (r < 0)
    return set_write_error (path, r, error);
  r = sync_names (directory_fd);
  if (r < 0)
    error_set_system (error, r, "%s: is replaced, but its directory cannot be "
                      "synced", path);
  return r < 0 ? -1 : 0;
}

static int
replace_in_directory (const char *path, const struct stat *st,
                      const struct blank *blank, GError **error)
{
  const int directory_fd = open_directory (path);
  int r;

  if (directory_fd < 0) {
    error_set_system (error, directory_fd, "%s: cannot be replaced", path);
    return -1;
  }
  r = replace_old (directory_fd, path, st, blank, error);
  close (directory_fd);
  return r;
}

/* Keep everybody out of the old file, FD, while it is replaced. */
static int
lock_and_replace (int fd, const char *path,
                  const struct blank *blank, GError **error)
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
    r = replace_in_directory (path, &st, blank, error);

  if (descriptor_fd >= 0)
    close (descriptor_fd);
  return r;
}

static int
replace (const char *path, const struct blank *blank, GError **error)
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
    return create_new (path, blank, error);
  resolved = g_strdup (real);
  free (real);

  fd = open (resolved, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  if (fd == -1) {
    error_set_system (error, errno, "%s: cannot be replaced", resolved);
    return -1;
  }
  r = lock_and_replace (fd, resolved, blank, error);
  close (fd);
  return r;
}

/* ---- All of it --------------------------------------------------------- */

int
blank_create (const char *path, const struct ploop_create_options *options,
              GError **error)
{
  struct blank blank = {
    .space = options->space,
    .progress = options->progress,
    .progress_opaque = options->progress_opaque,
  };

  if (!format_new_header (options->size,
                          options->cluster_size ? options->cluster_size
                                                : FORMAT_DEFAULT_CLUSTER,
                          options->version ? options->version : 2,
                          &blank.header, error)) {
    g_prefix_error (error, "%s: ", path);
    return -1;
  }
  /* Nothing will be allocated, which is when it would be cleared. */
  if (blank.space != PLOOP_CREATE_SPARSE)
    blank.header.flags &= ~FORMAT_FLAG_EMPTY;
  return options->overwrite ? replace (path, &blank, error)
                            : create_new (path, &blank, error);
}

void
blank_like (uint64_t size, uint32_t cluster_size, unsigned version,
            struct ploop_create_options *options)
{
  options->size = (size + FORMAT_SECTOR_SIZE - 1) / FORMAT_SECTOR_SIZE
                  * FORMAT_SECTOR_SIZE;
  options->cluster_size = cluster_size;
  options->version = version;
}
