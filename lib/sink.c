/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* New images, raw files and exports: see sink.h. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <libnbd.h>

#include "blank.h"
#include "descriptor-new.h"
#include "format.h"
#include "growing.h"
#include "location.h"
#include "lock.h"
#include "parts.h"
#include "replace.h"
#include "sink.h"

/* Zeros shorter than that are written like data. */
#define BLOCK_BYTES ((size_t) 4096)

/* What one request to a server zeroes; some take no more than 32 bits allow. */
#define ZERO_BYTES (UINT64_C (1) << 30)

struct sink {
  char *name;
  ploop_image *image;           /* one of these three */
  int fd;                       /* -1: none; an image's, too, beside it */
  struct growing *growing;      /* what is written to that, if it is not raw */
  struct nbd_handle **handles;  /* one a thread, or the same for all */
  unsigned nr_handles;          /* that are connected */
  uint64_t room;                /* of the export: bytes */
  unsigned nr_threads;
  pthread_mutex_t lock;         /* for a handle that is for all */

  bool is_stream;               /* standard output */
  uint64_t position;            /* of that: bytes */
  uint64_t size;                /* of the disk, bytes */

  char *part;                   /* a file's name until it is whole */
  bool is_ours;                 /* nobody else writes to that */
  bool overwrite, in_place;
  int old_fd;                   /* what is replaced, locked; -1: nothing */
  int descriptor_fd;            /* with the lock of its descriptor; -1: it has none */
  bool descriptor;              /* is to be written */
  enum ploop_create_space space;
};

static void
free_sink (struct sink *sink)
{
  for (unsigned i = 0; i < sink->nr_handles; i++)
    nbd_close (sink->handles[i]);
  g_free (sink->handles);
  growing_free (sink->growing);
  if (sink->fd >= 0)
    close (sink->fd);
  if (sink->old_fd >= 0)
    close (sink->old_fd);
  if (sink->descriptor_fd >= 0)
    close (sink->descriptor_fd);
  pthread_mutex_destroy (&sink->lock);
  g_free (sink->part);
  g_free (sink->name);
  g_free (sink);
}

/* ---- Files ------------------------------------------------------------- */

/* Of a disk that others know by its descriptor: these respect the lock of that. */
static bool
lock_owner (struct sink *sink, GError **error)
{
  g_autofree char *owner = NULL;

  if (!location_find_owner (sink->name, &owner, error))
    return false;
  if (!owner)
    return true;
  if (!sink->in_place)
    return lock_descriptor (sink->name, DESCRIPTOR_LOCK_WRITER,
                            &sink->descriptor_fd, error);
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: is one delta of %s, which it has to fit: choose another name",
               sink->name, owner);
  return false;
}

static bool
lock_old (struct sink *sink, GError **error)
{
  if (!sink->in_place && !lock_image (sink->old_fd, sink->name, true, error)) {
    g_prefix_error (error, "%s: ", sink->name);
    return false;
  }
  return lock_owner (sink, error);
}

/* What is there already, if anything: may it be replaced?  It is kept locked until
 * it has been.
 */
static bool
look_at_old (struct sink *sink, GError **error)
{
  struct stat st;

  if (lstat (sink->name, &st) == -1) {
    if (errno == ENOENT)
      return true;
    error_set_system (error, errno, "%s: cannot be examined", sink->name);
    return false;
  }
  if (!sink->overwrite || !S_ISREG (st.st_mode)) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_EXISTS,
                 S_ISREG (st.st_mode)
                   ? "%s: exists already: choose another name, or overwrite it"
                   : "%s: exists and is not a regular file: choose another "
                     "name", sink->name);
    return false;
  }
  sink->old_fd = open (sink->name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (sink->old_fd == -1) {
    error_set_system (error, errno, "%s: cannot be replaced", sink->name);
    return false;
  }
  return lock_old (sink, error);
}

/* Emptied only when it is locked: another copy may be on its way to it. */
static bool
open_empty (struct sink *sink, GError **error)
{
  sink->fd = open (sink->part, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW,
                   0600);
  if (sink->fd >= 0 && !lock_image (sink->fd, sink->part, true, error)) {
    g_prefix_error (error, "%s: ", sink->part);
    return false;
  }
  sink->is_ours = sink->fd >= 0;
  if (sink->fd >= 0 && ftruncate (sink->fd, 0) == 0)
    return true;
  error_set_system (error, errno, "%s: cannot be created", sink->part);
  return false;
}

static bool
set_file_size (struct sink *sink, GError **error)
{
  if (ftruncate (sink->fd, (off_t) sink->size) == 0)
    return true;
  error_set_system (error, errno, "%s: cannot have %" G_GUINT64_FORMAT " bytes",
                    sink->part, sink->size);
  return false;
}

static bool
open_raw (struct sink *sink, GError **error)
{
  return open_empty (sink, error)
         && (sink->size == SINK_GROWS || set_file_size (sink, error));
}

static bool
open_growing (struct sink *sink, const struct sink_options *options,
              GError **error)
{
  const uint32_t cluster_size =
    options->cluster_size ? options->cluster_size : FORMAT_DEFAULT_CLUSTER;
  const unsigned version = options->version ? options->version : 2;
  struct format_header header;

  /* Of any size. */
  if (!format_new_header (FORMAT_SECTOR_SIZE, cluster_size, version, &header,
                          error)) {
    g_prefix_error (error, "%s: ", sink->name);
    return false;
  }
  if (options->space != PLOOP_CREATE_SPARSE) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: cannot be preallocated, as the size of the disk is not "
                 "known before its end: give a size", sink->name);
    return false;
  }
  if (!open_empty (sink, error))
    return false;
  sink->growing = growing_begin (sink->fd, cluster_size, version);
  return true;
}

/* What an earlier attempt has left, if no other copy is at it. */
static bool
remove_part (const struct sink *sink, GError **error)
{
  const int fd = open (sink->part, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  bool ok;

  if (fd == -1 && errno == ENOENT)
    return true;
  if (fd == -1) {
    error_set_system (error, errno, "%s: cannot be opened", sink->part);
    return false;
  }
  ok = lock_image (fd, sink->part, true, error);
  if (!ok)
    g_prefix_error (error, "%s: ", sink->part);
  else if (unlink (sink->part) == -1 && errno != ENOENT) {
    error_set_system (error, errno, "%s: cannot be removed", sink->part);
    ok = false;
  }
  close (fd);
  return ok;
}

/* It is nobody's delta yet, so a descriptor beside it, whose disk may be what is copied,
 * is not locked.
 */
static ploop_image *
open_part (const struct sink *sink, const struct log *log, GError **error)
{
  const struct ploop_open_options options = {
    .log = log->write,
    .log_opaque = log->opaque,
  };
  struct location location = {
    .deltas = chain_sources_new (),
    .descriptor_is_locked = true,
    .nr_parts = 1,
  };
  ploop_image *image;

  chain_sources_add (location.deltas, sink->part, -1, false);
  image = parts_open (&location, &options, error);
  location_clear (&location);
  return image;
}

/* Another copy may have put its own in this place before it was locked. */
static bool
is_as_created (const struct sink *sink, const struct ploop_create_options *create,
               GError **error)
{
  if (ploop_size (sink->image) == create->size
      && ploop_cluster_size (sink->image) == create->cluster_size)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_IN_USE,
               "%s: another copy to it has begun meanwhile", sink->part);
  return false;
}

static bool
open_image (struct sink *sink, const struct sink_options *options,
            const struct log *log, bool *interrupted, GError **error)
{
  struct ploop_create_options create = {
    .space = options->space,
    .progress = options->progress,
    .progress_opaque = options->progress_opaque,
  };
  int r;

  blank_like (sink->size, options->cluster_size, options->version, &create);
  if (create.cluster_size == 0)
    create.cluster_size = FORMAT_DEFAULT_CLUSTER;
  if (!remove_part (sink, error))
    return false;
  r = blank_create (sink->part, &create, error);
  *interrupted = r > 0;
  if (r != 0)
    return false;
  sink->image = open_part (sink, log, error);
  sink->is_ours = sink->image && is_as_created (sink, &create, error);
  if (!sink->is_ours)
    return false;
  /* It is locked, so this is the same file. */
  sink->fd = open (sink->part, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (sink->fd == -1)
    error_set_system (error, errno, "%s: cannot be opened", sink->part);
  return sink->fd >= 0;
}

static bool
open_file (struct sink *sink, const struct sink_options *options,
           const struct log *log, bool *interrupted, GError **error)
{
  if (!look_at_old (sink, error)
      || (sink->descriptor && !descriptor_new_is_possible (sink->name, error)))
    return false;
  sink->part = g_strconcat (sink->name, ".part", NULL);
  if (options->raw)
    return open_raw (sink, error);
  return sink->size == SINK_GROWS
           ? open_growing (sink, options, error)
           : open_image (sink, options, log, interrupted, error);
}

/* A closed image is not locked any more, and another copy may have begun there in
 * between: lock it until it has its name.
 */
static bool
lock_part (struct sink *sink, GError **error)
{
  struct stat ours, now;

  if (!lock_image (sink->fd, sink->part, true, error)) {
    g_prefix_error (error, "%s: ", sink->part);
    sink->is_ours = false;
    return false;
  }
  if (fstat (sink->fd, &ours) == 0 && stat (sink->part, &now) == 0
      && ours.st_dev == now.st_dev && ours.st_ino == now.st_ino)
    return true;
  sink->is_ours = false;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_IN_USE,
               "%s: another copy to it has begun meanwhile", sink->part);
  return false;
}

/* With the mode of the one that it replaces; both and the content before the name. */
static int
sync_content (const struct sink *sink)
{
  struct stat st;

  if (sink->old_fd >= 0 && fstat (sink->old_fd, &st) == 0
      && fchmod (sink->fd, st.st_mode & 07777) == -1)
    return -errno;
  return fsync (sink->fd) == -1 ? -errno : 0;
}

static int
put_in_place (struct sink *sink)
{
  g_autofree char *directory = g_path_get_dirname (sink->name);
  int fd, r;

  if (renameat2 (AT_FDCWD, sink->part, AT_FDCWD, sink->name,
                 sink->old_fd >= 0 ? 0 : RENAME_NOREPLACE) == -1)
    return -errno;
  /* From now on the other name may be somebody else's. */
  sink->is_ours = false;
  fd = open (directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (fd == -1)
    return -errno;
  r = replace_sync (fd);
  close (fd);
  return r == -EINVAL ? 0 : r;
}

/* In place of another, the image stays: the other one is gone. */
static int
add_descriptor (struct sink *sink, GError **error)
{
  const int r = descriptor_new_write (sink->name, sink->space, error);

  if (r == -1 && sink->old_fd == -1)
    unlink (sink->name);
  else if (r == -1)
    g_prefix_error (error, "%s: is replaced, but has no descriptor: ",
                    sink->name);
  return r;
}

/* What was written has been in order, and without a size. */
static bool
end_growing (struct sink *sink, GError **error)
{
  const uint64_t nr_sectors =
    (sink->size + FORMAT_SECTOR_SIZE - 1) / FORMAT_SECTOR_SIZE;

  if (!sink->growing)
    return set_file_size (sink, error);
  if (growing_end (sink->growing, nr_sectors * FORMAT_SECTOR_SIZE, error) == 0)
    return true;
  g_prefix_error (error, "%s: ", sink->name);
  return false;
}

static int
finish_file (struct sink *sink, GError **error)
{
  const bool is_image = sink->image != NULL;
  int r;

  if (!is_image && !end_growing (sink, error))
    return -1;
  if (is_image && ploop_close (g_steal_pointer (&sink->image), error) == -1)
    return -1;
  if (is_image && !lock_part (sink, error))
    return -1;
  r = sync_content (sink);
  if (r == 0)
    r = put_in_place (sink);
  if (r < 0) {
    error_set_system (error, r, "%s: cannot be put in its place, from %s",
                      sink->name, sink->part);
    return -1;
  }
  return sink->descriptor ? add_descriptor (sink, error) : 0;
}

/* ---- Exports ----------------------------------------------------------- */

static bool
set_nbd_error (struct sink *sink, GError **error)
{
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_SYSTEM, "%s: %s", sink->name,
               nbd_get_error ());
  return false;
}

static bool
connect_one (struct sink *sink, GError **error)
{
  struct nbd_handle *nbd = nbd_create ();

  if (!nbd)
    return set_nbd_error (sink, error);
  sink->handles[sink->nr_handles++] = nbd;
  return nbd_connect_uri (nbd, sink->name) == 0
         || set_nbd_error (sink, error);
}

static bool
may_be_written (struct sink *sink, GError **error)
{
  struct nbd_handle *nbd = sink->handles[0];
  const int64_t found = nbd_get_size (nbd);
  const uint64_t size = sink->size == SINK_GROWS ? 0 : sink->size;

  if (found == -1 || nbd_is_read_only (nbd) == -1)
    return set_nbd_error (sink, error);
  sink->room = (uint64_t) found;
  if (nbd_is_read_only (nbd) == 0 && sink->room >= size)
    return true;
  if (nbd_is_read_only (nbd))
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: the export is read-only", sink->name);
  else
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: the export has %" G_GINT64_FORMAT " bytes, but %"
                 G_GUINT64_FORMAT " are needed", sink->name, found, size);
  return false;
}

/* By writing, where the server cannot do it. */
static int
zero_range (struct nbd_handle *nbd, uint64_t length, uint64_t offset)
{
  static const uint8_t zeros[64 << 10];

  if (nbd_can_zero (nbd) == 1)
    return nbd_zero (nbd, length, offset, 0);
  while (length > 0) {
    const size_t n = (size_t) MIN (length, sizeof zeros);

    if (nbd_pwrite (nbd, zeros, n, offset, 0) == -1)
      return -1;
    offset += n;
    length -= n;
  }
  return 0;
}

static bool
zero_export (struct sink *sink, GError **error)
{
  struct nbd_handle *nbd = sink->handles[0];
  const uint64_t size = (uint64_t) nbd_get_size (nbd);

  for (uint64_t offset = 0, n; offset < size; offset += n) {
    n = MIN (size - offset, ZERO_BYTES);
    if (zero_range (nbd, n, offset) == -1)
      return set_nbd_error (sink, error);
  }
  return true;
}

static bool
open_export (struct sink *sink, const struct sink_options *options,
             GError **error)
{
  sink->handles = g_new0 (struct nbd_handle *, sink->nr_threads);
  if (!connect_one (sink, error) || !may_be_written (sink, error))
    return false;
  /* Several connections only where a flush on one is good for all. */
  while (nbd_can_multi_conn (sink->handles[0]) == 1
         && sink->nr_handles < sink->nr_threads)
    if (!connect_one (sink, error))
      return false;
  return options->is_zero || zero_export (sink, error);
}

static int
write_export (struct sink *sink, unsigned thread, const void *buf,
              size_t length, uint64_t offset)
{
  const bool own = sink->nr_handles == sink->nr_threads;
  int r;

  /* Only of a disk whose size was not known. */
  if (offset + length > sink->room)
    return -ENOSPC;
  if (!own)
    pthread_mutex_lock (&sink->lock);
  r = nbd_pwrite (sink->handles[own ? thread : 0], buf, length, offset, 0);
  if (!own)
    pthread_mutex_unlock (&sink->lock);
  if (r == 0)
    return 0;
  return nbd_get_errno () > 0 ? -nbd_get_errno () : -EIO;
}

static int
finish_export (struct sink *sink, GError **error)
{
  struct nbd_handle *nbd = sink->handles[0];

  if (nbd_can_flush (nbd) == 1 && nbd_flush (nbd, 0) == -1) {
    set_nbd_error (sink, error);
    return -1;
  }
  for (unsigned i = 0; i < sink->nr_handles; i++)
    nbd_shutdown (sink->handles[i], 0);
  return 0;
}

/* ---- Standard output --------------------------------------------------- */

static bool
open_stream (const struct sink_options *options, GError **error)
{
  if (options->raw)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "an image cannot be written to standard output, where nothing can "
               "be changed any more: a raw disk can");
  return false;
}

static int
write_on (struct sink *sink, const char *buf, size_t length)
{
  while (length > 0) {
    const ssize_t n = write (STDOUT_FILENO, buf, length);

    if (n == -1 && errno != EINTR)
      return -errno;
    if (n > 0) {
      buf += n;
      length -= (size_t) n;
      sink->position += (uint64_t) n;
    }
  }
  return 0;
}

/* What was left out are zeros. */
static int
write_zeros_up_to (struct sink *sink, uint64_t offset)
{
  static const char zeros[64 << 10];
  int r = 0;

  while (sink->position < offset && r == 0)
    r = write_on (sink, zeros,
                  (size_t) MIN (offset - sink->position, sizeof zeros));
  return r;
}

static int
write_stream (struct sink *sink, const char *buf, size_t length,
              uint64_t offset)
{
  int r = write_zeros_up_to (sink, offset);

  return r == 0 ? write_on (sink, buf, length) : r;
}

static int
finish_stream (struct sink *sink, GError **error)
{
  int r = write_zeros_up_to (sink, sink->size);

  if (r < 0)
    error_set_system (error, r, "standard output cannot be written");
  return r < 0 ? -1 : 0;
}

/* ---- Any of them ------------------------------------------------------- */

static bool
open_any (struct sink *sink, const struct sink_options *options,
          const struct log *log, bool *interrupted, GError **error)
{
  if (sink->is_stream)
    return open_stream (options, error);
  return strstr (sink->name, "://")
           ? open_export (sink, options, error)
           : open_file (sink, options, log, interrupted, error);
}

struct sink *
sink_open (const char *name, uint64_t size,
           const struct sink_options *options, const struct log *log,
           bool *interrupted, GError **error)
{
  struct sink *sink = g_new0 (struct sink, 1);

  *interrupted = false;
  sink->name = g_strdup (name);
  sink->size = size;
  sink->is_stream = strcmp (name, "-") == 0;
  sink->fd = sink->old_fd = sink->descriptor_fd = -1;
  sink->overwrite = options->overwrite;
  sink->in_place = options->in_place;
  sink->descriptor = options->descriptor;
  sink->space = options->space;
  sink->nr_threads = options->nr_threads;
  pthread_mutex_init (&sink->lock, NULL);
  if (open_any (sink, options, log, interrupted, error))
    return sink;
  sink_abandon (sink);
  return NULL;
}

static int
write_raw (int fd, const char *buf, size_t length, uint64_t offset)
{
  while (length > 0) {
    const ssize_t n = pwrite (fd, buf, length, (off_t) offset);

    if (n == -1 && errno != EINTR)
      return -errno;
    if (n > 0) {
      buf += n;
      offset += (uint64_t) n;
      length -= (size_t) n;
    }
  }
  return 0;
}

bool
sink_is_stream (const struct sink *sink)
{
  return sink->is_stream;
}

void
sink_set_size (struct sink *sink, uint64_t size)
{
  sink->size = size;
}

int
sink_write (struct sink *sink, unsigned thread, const void *buf,
            size_t length, uint64_t offset)
{
  if (sink->image)
    return ploop_pwrite (sink->image, buf, length, offset, 0);
  if (sink->growing)
    return growing_write (sink->growing, buf, length, offset);
  if (sink->is_stream)
    return write_stream (sink, buf, length, offset);
  return sink->handles ? write_export (sink, thread, buf, length, offset)
                       : write_raw (sink->fd, buf, length, offset);
}

static bool
is_zeros (const uint8_t *buf, size_t length)
{
  return buf[0] == 0 && memcmp (buf, buf + 1, length - 1) == 0;
}

/* The blocks at BUF that are all zeros, or are all not: their length. */
static size_t
like_blocks (const uint8_t *buf, size_t length, bool *zeros)
{
  size_t n = MIN (length, BLOCK_BYTES);

  *zeros = is_zeros (buf, n);
  while (n < length) {
    const size_t more = MIN (length - n, BLOCK_BYTES);

    if (is_zeros (buf + n, more) != *zeros)
      break;
    n += more;
  }
  return n;
}

int
sink_write_data (struct sink *sink, unsigned thread, const void *buf,
                 size_t length, uint64_t offset, uint64_t *nr_written)
{
  const uint8_t *p = buf;
  int r = 0;

  *nr_written = 0;
  for (size_t n; length > 0 && r == 0; length -= n) {
    bool zeros;

    n = like_blocks (p, length, &zeros);
    if (!zeros) {
      r = sink_write (sink, thread, p, n, offset);
      *nr_written += n;
    }
    p += n;
    offset += n;
  }
  return r;
}

int
sink_finish (struct sink *sink, GError **error)
{
  const int r = sink->is_stream ? finish_stream (sink, error)
                : sink->handles ? finish_export (sink, error)
                                : finish_file (sink, error);

  if (r == 0)
    free_sink (sink);
  else
    sink_abandon (sink);
  return r;
}

void
sink_abandon (struct sink *sink)
{
  if (!sink)
    return;
  ploop_close (g_steal_pointer (&sink->image), NULL);
  if (sink->is_ours)
    unlink (sink->part);
  free_sink (sink);
}
