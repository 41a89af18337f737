/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* One image file: see delta.h. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "delta.h"
#include "lock.h"

/* One system call moves at most this much: Linux cuts at 2^31 - 4096. */
#define MAX_IO ((size_t) 1 << 30)

/* What is searched for bytes that are not zero, at once. */
#define SEARCH_BYTES ((size_t) 1 << 20)

/* ---- Opening ----------------------------------------------------------- */

/* Open for writing if WRITER and the file allows it, else for reading. */
static int
open_file (const struct delta_source *source, const char *path, bool writer,
           bool *read_only)
{
  /* O_NONBLOCK: opening a fifo must not wait for a writer. */
  const int flags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  char known[64];
  int fd;

  if (source->path_fd >= 0) {
    snprintf (known, sizeof known, "/proc/self/fd/%d", source->path_fd);
    path = known;
  }

  *read_only = !writer;
  if (writer) {
    fd = open (path, O_RDWR | flags);
    if (fd >= 0)
      return fd;
    if (errno != EACCES && errno != EPERM && errno != EROFS
        && errno != ETXTBSY)
      return -1;
    *read_only = true;
  }
  return open (path, O_RDONLY | flags);
}

static bool
check_file_type (struct delta *delta, const struct delta_source *source,
                 GError **error)
{
  struct stat st;

  if (fstat (delta->fd, &st) == -1) {
    error_set_system (error, errno, "%s: cannot be examined", delta->path);
    return false;
  }
  if (S_ISBLK (st.st_mode)
      && (source->raw_cluster_size > 0 || source->any_header))
    st.st_size = lseek (delta->fd, 0, SEEK_END);
  else if (!S_ISREG (st.st_mode)) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_FORMAT,
                 "%s: is %s: give the image file itself", delta->path,
                 S_ISDIR (st.st_mode) ? "a directory" : "not a regular file");
    return false;
  }
  delta->file_size = (uint64_t) st.st_size;
  delta->device = st.st_dev;
  delta->block_size = (uint32_t) CLAMP (st.st_blksize, 512, 4096);
  return true;
}

/* A file that was renamed over between our opening and locking it is not the
 * one that others know by this name.
 */
static bool
check_name (const struct delta *delta, GError **error)
{
  struct stat here, named;

  if (fstat (delta->fd, &here) == 0 && stat (delta->path, &named) == 0
      && here.st_dev == named.st_dev && here.st_ino == named.st_ino)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_IN_USE,
               "%s: was replaced while it was opened: try again",
               delta->path);
  return false;
}

/* Does the file system tell a hole only where nothing was ever written? */
static bool
tells_true_holes (int fd)
{
  struct statfs fs;

  if (fstatfs (fd, &fs) == -1)
    return false;
  switch ((unsigned long) fs.f_type) {
  case EXT4_SUPER_MAGIC:
  case XFS_SUPER_MAGIC:
  case BTRFS_SUPER_MAGIC:
  case TMPFS_MAGIC:
    return true;
  default:
    return false;
  }
}

static void
be_raw (struct delta *delta, uint32_t cluster_size)
{
  delta->is_raw = true;
  memset (&delta->header, 0, sizeof delta->header);
  delta->layout = (struct format_layout) {
    .size = delta->file_size,
    .cluster_size = cluster_size,
    .entry_unit = cluster_size,
    .nr_entries = (uint32_t) ((delta->file_size + cluster_size - 1)
                              / cluster_size),
  };
}

static bool
is_uri (const char *path)
{
  static const char *const schemes[] = {
    "nbd://", "nbds://", "nbd+unix://", "nbds+unix://",
  };

  for (size_t i = 0; i < G_N_ELEMENTS (schemes); i++)
    if (g_str_has_prefix (path, schemes[i]))
      return true;
  return false;
}

static bool
check_raw_size (const struct delta *delta, uint32_t cluster_size,
                GError **error)
{
  if (delta->file_size > 0
      && delta->file_size <= (uint64_t) FORMAT_MAX_ENTRIES * cluster_size)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_FORMAT,
               "%s: file size is %" G_GUINT64_FORMAT " bytes: a raw disk must "
               "have from 1 byte to %" G_GUINT64_FORMAT ", which is what "
               "clusters of %" G_GUINT32_FORMAT " bytes allow", delta->path,
               delta->file_size, (uint64_t) FORMAT_MAX_ENTRIES * cluster_size,
               cluster_size);
  return false;
}

static bool
read_header (struct delta *delta, const struct delta_source *source,
             GError **error)
{
  uint8_t bytes[FORMAT_HEADER_SIZE] = { 0 };
  int r;

  if (source->any_header)
    return true;
  if (delta->file_size < sizeof bytes && source->raw_cluster_size == 0) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_FORMAT,
                 "%s: file size is %" G_GUINT64_FORMAT " bytes, too short for "
                 "a ploop image's header (%u bytes)", delta->path,
                 delta->file_size, FORMAT_HEADER_SIZE);
    return false;
  }
  r = delta_pread (delta, bytes, sizeof bytes, 0);
  if (r < 0) {
    error_set_system (error, r, "%s: header cannot be read", delta->path);
    return false;
  }
  if (!format_decode_header (bytes, &delta->header)) {
    if (source->raw_cluster_size > 0) {
      be_raw (delta, source->raw_cluster_size);
      return check_raw_size (delta, source->raw_cluster_size, error);
    }
    g_autofree char *start = g_strndup ((const char *) bytes, 16);
    g_autofree char *shown = g_strescape (start, NULL);

    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_FORMAT,
                 "%s: signature is \"%s\", not \"WithoutFreeSpace\" or "
                 "\"WithouFreSpacExt\": not an expandable ploop image",
                 delta->path, shown);
    return false;
  }
  if (!format_check_header (&delta->header, delta->file_size, &delta->layout,
                            error)) {
    g_prefix_error (error, "%s: ", delta->path);
    return false;
  }
  return true;
}

/* Open the file once more, as an open file description of its own.  By its
 * number: its name may have changed.  Without /proc, by name.
 *
 * Closing it does not unlock: the locks are those of the first description.
 *
 * Returns a descriptor or a negative errno; -ESTALE: the name is another
 * file's now.
 */
static int
open_again (const struct delta *delta, int flags)
{
  char self[64];
  struct stat st, again;
  int fd, r = 0;

  flags |= (delta->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY;
  snprintf (self, sizeof self, "/proc/self/fd/%d", delta->fd);
  fd = open (self, flags);
  if (fd == -1)
    fd = open (delta->path, flags | O_NONBLOCK);
  if (fd == -1)
    return -errno;
  if (fstat (delta->fd, &st) == -1 || fstat (fd, &again) == -1)
    r = -errno;
  else if (st.st_dev != again.st_dev || st.st_ino != again.st_ino)
    r = -ESTALE;
  if (r < 0) {
    close (fd);
    return r;
  }
  return fd;
}

static bool
open_apart (struct delta *delta, GError **error)
{
  const int fd = open_again (delta, O_DSYNC);

  if (fd == -ESTALE)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_IN_USE,
                 "%s: was replaced while it was opened: try again",
                 delta->path);
  else if (fd < 0)
    error_set_system (error, fd, "%s: cannot be opened a second time",
                      delta->path);
  else
    delta->apart_fd = fd;
  return fd >= 0;
}

static bool
lock_delta (struct delta *delta, const struct delta_source *source,
            enum delta_lock lock, GError **error)
{
  const bool writer = lock == DELTA_LOCK_WRITER && !delta->read_only;

  if (lock == DELTA_LOCK_NONE)
    return true;
  if (!lock_image (delta->fd, delta->path, writer, error))
    return false;
  return source->descriptor_is_locked
         || lock_descriptor (delta->path,
                             writer ? DESCRIPTOR_LOCK_WRITER
                                    : DESCRIPTOR_LOCK_READER,
                             &delta->descriptor_lock_fd, error);
}

static bool
open_and_check (struct delta *delta, const struct delta_source *source,
                enum delta_lock lock, GError **error)
{
  /* The descriptor lies beside the file itself, not beside a link to it. */
  delta->path = realpath (source->path, NULL);
  if (!delta->path) {
    error_set_system (error, errno, "%s: cannot be opened", source->path);
    return false;
  }
  delta->fd = open_file (source, delta->path, lock == DELTA_LOCK_WRITER,
                         &delta->read_only);
  if (delta->fd == -1) {
    error_set_system (error, errno, "%s: cannot be opened", delta->path);
    return false;
  }
  if (!check_file_type (delta, source, error)
      || !lock_delta (delta, source, lock, error))
    return false;
  /* What was seen before the lock was there may have changed. */
  if (!check_name (delta, error) || !check_file_type (delta, source, error)
      || !read_header (delta, source, error))
    return false;
  delta->holes_are_true = tells_true_holes (delta->fd);
  return delta->read_only || open_apart (delta, error);
}

static bool
connect (struct delta *delta, const struct delta_source *source,
         GError **error)
{
  const struct remote_options options = {
    .log = source->log,
    .give_up = source->give_up,
    .give_up_opaque = source->give_up_opaque,
  };

  delta->path = strdup (source->path);
  delta->read_only = true;
  if (source->raw_cluster_size == 0) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: an NBD export can only be the base of a chain: give it as "
                 "the last base=", source->path);
    return false;
  }
  delta->remote = remote_open (source->path, &options, error);
  if (!delta->remote)
    return false;
  delta->file_size = remote_size (delta->remote);
  be_raw (delta, source->raw_cluster_size);
  return check_raw_size (delta, source->raw_cluster_size, error);
}

struct delta *
delta_open_source (const struct delta_source *source, enum delta_lock lock,
                   GError **error)
{
  struct delta *delta = g_new0 (struct delta, 1);

  delta->fd = delta->apart_fd = delta->descriptor_lock_fd = -1;
  delta->log = source->log;
  if (is_uri (source->path) ? !connect (delta, source, error)
                            : !open_and_check (delta, source, lock, error)) {
    delta_close (delta);
    return NULL;
  }
  return delta;
}

struct delta *
delta_open (const char *path, enum delta_lock lock, GError **error)
{
  const struct delta_source source = { .path = path, .path_fd = -1 };

  return delta_open_source (&source, lock, error);
}

void
delta_close (struct delta *delta)
{
  if (!delta)
    return;
  remote_close (delta->remote);
  direct_close (delta->direct);
  if (delta->apart_fd >= 0)
    close (delta->apart_fd);
  if (delta->fd >= 0)
    close (delta->fd);
  if (delta->descriptor_lock_fd >= 0)
    close (delta->descriptor_lock_fd);
  free (delta->path);
  g_free (delta);
}

/* ---- Past the page cache ----------------------------------------------- */

static int
open_direct (struct delta *delta)
{
  const int fd = open_again (delta, O_DIRECT);
  int durable_fd = -1;

  if (fd < 0)
    return fd;
  if (!delta->read_only) {
    durable_fd = open_again (delta, O_DIRECT | O_DSYNC);
    if (durable_fd < 0) {
      close (fd);
      return durable_fd;
    }
  }
  return direct_open (fd, durable_fd, &delta->direct);
}

/* Header and BAT are written through the page cache, a few bytes at a time.  A
 * write through the cache that dirties a folio while a direct write to the same
 * folio runs makes the kernel lose one of the two, and report EIO to the next
 * sync ("Page cache invalidation failure on direct I/O").
 *
 * A folio is naturally aligned and at most page size << 11 large.  So none ever
 * holds bytes of both kinds when what is direct starts at such a boundary.
 */
static uint64_t
find_direct_start (const struct delta *delta)
{
  const uint64_t folio = (uint64_t) sysconf (_SC_PAGESIZE) << 11;
  const uint64_t end = MAX (delta->layout.bat_end, FORMAT_HEADER_SIZE);

  return (end + folio - 1) / folio * folio;
}

bool
delta_use_direct (struct delta *delta, const struct log *log)
{
  int r;

  if (delta->remote)
    return false;
  r = open_direct (delta);
  if (r < 0) {
    log_warning (log, "%s: does not allow direct I/O: %s: the page cache is "
                 "used instead", delta->path, g_strerror (-r));
    return false;
  }
  delta->log = log;
  delta->direct_start = find_direct_start (delta);
  log_debug (log, "%s: direct I/O from byte %" G_GUINT64_FORMAT " on, in "
             "blocks of %u bytes, memory aligned to %u", delta->path,
             delta->direct_start, delta->direct->block_size,
             delta->direct->memory_alignment);
  return true;
}

/* The file system refuses a request that it should take. */
static void
stop_direct (const struct delta *delta)
{
  if (direct_stop (delta->direct))
    log_warning (delta->log, "%s: the file system refuses direct I/O that is "
                 "aligned as it asks for: the page cache is used from now on",
                 delta->path);
}

/* As much of a request as goes through the page cache; the rest is direct. */
static size_t
cached_length (const struct delta *delta, size_t length, uint64_t offset)
{
  if (!delta->direct)
    return length;
  if (offset >= delta->direct_start)
    return 0;
  return (size_t) MIN (length, delta->direct_start - offset);
}

void
delta_forget_cached (const struct delta *delta, uint64_t length,
                     uint64_t offset)
{
  const size_t cached = cached_length (delta, (size_t) length, offset);

  if (length > cached)
    posix_fadvise (delta->fd, (off_t) (offset + cached),
                   (off_t) (length - cached), POSIX_FADV_DONTNEED);
}

/* ---- Reading and writing ----------------------------------------------- */

static int
read_all (int fd, void *buf, size_t length, uint64_t offset)
{
  while (length > 0) {
    ssize_t n = pread (fd, buf, MIN (length, MAX_IO), (off_t) offset);

    if (n < 0) {
      if (errno == EINTR)
        continue;
      return -errno;
    }
    if (n == 0) {
      /* The file ends inside a cluster: the rest is zeros. */
      memset (buf, 0, length);
      return 0;
    }
    buf = (char *) buf + n;
    offset += (size_t) n;
    length -= (size_t) n;
  }
  return 0;
}

static int
write_all (int fd, const void *buf, size_t length, uint64_t offset)
{
  while (length > 0) {
    ssize_t n = pwrite (fd, buf, MIN (length, MAX_IO), (off_t) offset);

    if (n < 0) {
      if (errno == EINTR)
        continue;
      return -errno;
    }
    if (n == 0)
      return -EIO;
    buf = (const char *) buf + n;
    offset += (size_t) n;
    length -= (size_t) n;
  }
  return 0;
}

static int
read_direct (const struct delta *delta, void *buf, size_t length,
             uint64_t offset)
{
  int r = direct_pread (delta->direct, buf, length, offset);

  if (r != -ENOTBLK)
    return r;
  stop_direct (delta);
  return read_all (delta->fd, buf, length, offset);
}

static int
write_direct (const struct delta *delta, const void *buf, size_t length,
              uint64_t offset, bool durable)
{
  int r = direct_pwrite (delta->direct, buf, length, offset, durable);

  if (r != -ENOTBLK)
    return r;
  stop_direct (delta);
  return write_all (durable ? delta->apart_fd : delta->fd, buf, length,
                    offset);
}

int
delta_pread (const struct delta *delta, void *buf, size_t length,
             uint64_t offset)
{
  size_t cached;
  int r;

  if (G_UNLIKELY (delta->remote))
    return remote_pread (delta->remote, buf, length, offset);
  cached = cached_length (delta, length, offset);
  r = read_all (delta->fd, buf, cached, offset);

  if (r < 0 || cached == length)
    return r;
  return read_direct (delta, (char *) buf + cached, length - cached,
                      offset + cached);
}

static int
write_both_ways (const struct delta *delta, const void *buf, size_t length,
                 uint64_t offset, bool durable)
{
  const size_t cached = cached_length (delta, length, offset);
  int r = write_all (durable ? delta->apart_fd : delta->fd, buf, cached,
                     offset);

  if (r < 0 || cached == length)
    return r;
  return write_direct (delta, (const char *) buf + cached, length - cached,
                       offset + cached, durable);
}

int
delta_pwrite (const struct delta *delta, const void *buf, size_t length,
              uint64_t offset)
{
  return write_both_ways (delta, buf, length, offset, false);
}

int
delta_pwrite_durable (const struct delta *delta, const void *buf,
                      size_t length, uint64_t offset)
{
  return write_both_ways (delta, buf, length, offset, true);
}

/* ---- Space ------------------------------------------------------------- */

static bool
is_unsupported (int r)
{
  return r == -EOPNOTSUPP || r == -ENOSYS || r == -ENODEV || r == -EINVAL;
}

void
delta_lacks (const struct delta *delta, _Atomic bool *flag,
             const char *instead)
{
  if (!atomic_exchange_explicit (flag, true, memory_order_relaxed)
      && delta->log)
    log_debug (delta->log, "%s: %s", delta->path, instead);
}

static int
try_fallocate (const struct delta *delta, int mode, uint64_t offset,
               uint64_t length)
{
  if (length == 0)
    return 0;
  while (fallocate (delta->fd, mode, (off_t) offset, (off_t) length) == -1)
    if (errno != EINTR)
      return -errno;
  return 0;
}

/* Clear a range by the file system.  The rest of its first and last block is
 * the neighbours': a direct write of theirs to it must not bring back what is
 * cleared.
 */
static int
try_clear (const struct delta *delta, int mode, uint64_t offset,
           uint64_t length)
{
  int r;

  if (delta->direct)
    direct_begin_change (delta->direct, length, offset);
  r = try_fallocate (delta, mode | FALLOC_FL_KEEP_SIZE, offset, length);
  if (delta->direct)
    direct_end_change (delta->direct, length, offset);
  return r;
}

static int
write_zeroes (struct delta *delta, uint64_t length, uint64_t offset)
{
  /* Aligned, so that direct writes need no copy. */
  static const _Alignas (4096) char zeroes[256 << 10];

  while (length > 0) {
    const size_t n = (size_t) MIN (length, sizeof zeroes);
    int r = delta_pwrite (delta, zeroes, n, offset);

    if (r < 0)
      return r;
    offset += n;
    length -= n;
  }
  return 0;
}

bool
delta_zero_is_fast (const struct delta *delta, uint64_t length,
                    uint64_t offset)
{
  const uint64_t cluster_size = delta->layout.cluster_size;

  if (atomic_load_explicit (&delta->no_zero_range, memory_order_relaxed))
    return false;
  return !delta->no_holes
         || (length % cluster_size == 0 && offset % cluster_size == 0);
}

int
delta_zero (struct delta *delta, uint64_t length, uint64_t offset)
{
  uint64_t size;
  int r;

  /* Past its end a file reads as zeros already. */
  r = delta_size (delta, &size);
  if (r < 0)
    return r;
  if (offset >= size)
    return 0;
  if (delta_zero_is_fast (delta, length, offset)) {
    r = try_clear (delta, FALLOC_FL_ZERO_RANGE, offset,
                   MIN (length, size - offset));
    if (!is_unsupported (r))
      return r;
    delta_lacks (delta, &delta->no_zero_range,
                 "the file system cannot zero: zeros are written");
  }
  return write_zeroes (delta, MIN (length, size - offset), offset);
}

int
delta_punch (struct delta *delta, uint64_t length, uint64_t offset)
{
  int r;

  if (atomic_load_explicit (&delta->no_punch, memory_order_relaxed))
    return -ENOTSUP;
  r = try_clear (delta, FALLOC_FL_PUNCH_HOLE, offset, length);
  if (!is_unsupported (r))
    return r;
  delta_lacks (delta, &delta->no_punch,
               "the file system cannot punch holes: what is trimmed keeps its "
               "space");
  return -ENOTSUP;
}

/* ---- From another delta ------------------------------------------------- */

int
delta_clone_range (struct delta *target, uint64_t target_offset,
                   const struct delta *source, uint64_t offset,
                   uint64_t length)
{
  struct file_clone_range range = {
    .src_fd = source->fd,
    .src_offset = offset,
    .src_length = length,
    .dest_offset = target_offset,
  };
  int r = 0;

  /* Unwritten blocks would be cloned as such. */
  if (target->no_holes || source->remote)
    return -ENOTSUP;
  if (target->direct)
    direct_begin_change (target->direct, length, target_offset);
  while (ioctl (target->fd, FICLONERANGE, &range) == -1)
    if (errno != EINTR) {
      r = -errno;
      break;
    }
  if (target->direct)
    direct_end_change (target->direct, length, target_offset);
  return is_unsupported (r) || r == -EXDEV || r == -ENOTTY || r == -EBADF
           || r == -EPERM || r == -EISDIR
           ? -ENOTSUP : r;
}

int
delta_copy_range (struct delta *target, uint64_t target_offset,
                  const struct delta *source, uint64_t offset,
                  uint64_t length)
{
  off_t from = (off_t) offset, to = (off_t) target_offset;
  bool begun = false;

  /* It copies through the page cache. */
  if (target->direct || source->direct || source->remote)
    return -ENOTSUP;
  while (length > 0) {
    const ssize_t n = copy_file_range (source->fd, &from, target->fd, &to,
                                       (size_t) MIN (length, MAX_IO), 0);

    if (n == 0)
      return 0;                 /* SOURCE's file ends */
    if (n > 0) {
      begun = true;
      length -= (uint64_t) n;
    }
    else if (errno != EINTR)
      return !begun && (is_unsupported (-errno) || errno == EXDEV
                        || errno == EBADF || errno == EPERM)
               ? -ENOTSUP : -errno;
  }
  return 0;
}

void
delta_make_no_holes (struct delta *delta)
{
  delta->no_holes = true;
  atomic_store_explicit (&delta->no_punch, true, memory_order_relaxed);
}

int
delta_reserve (struct delta *delta, uint64_t from, uint64_t to)
{
  int r;

  if (atomic_load_explicit (&delta->no_fallocate, memory_order_relaxed))
    return 0;
  r = try_fallocate (delta, FALLOC_FL_KEEP_SIZE, from, to - from);
  if (!is_unsupported (r))
    return r;
  delta_lacks (delta, &delta->no_fallocate,
               "the file system cannot reserve space: it is taken when it is "
               "written to");
  return 0;
}

void
delta_reserve_nothing (struct delta *delta)
{
  atomic_store_explicit (&delta->no_fallocate, true, memory_order_relaxed);
}

static int
try_truncate (const struct delta *delta, uint64_t size)
{
  while (ftruncate (delta->fd, (off_t) size) == -1)
    if (errno != EINTR)
      return -errno;
  return 0;
}

int
delta_truncate (const struct delta *delta, uint64_t size)
{
  int r;

  /* A direct write to the block where the file is cut must not bring back what
   * is cut off: it would be there when the file grows again.
   */
  if (delta->direct)
    direct_begin_change (delta->direct, 1, size);
  r = try_truncate (delta, size);
  if (delta->direct)
    direct_end_change (delta->direct, 1, size);
  return r;
}

static int
sync_fd (int fd)
{
  while (fdatasync (fd) == -1)
    if (errno != EINTR)
      return -errno;
  return 0;
}

int
delta_sync (const struct delta *delta)
{
  return sync_fd (delta->fd);
}

int
delta_sync_apart (const struct delta *delta)
{
  return sync_fd (delta->apart_fd);
}

int
delta_sync_and_forget (const struct delta *delta, uint64_t length)
{
  const int r = sync_fd (delta->fd);

  if (r == 0)
    posix_fadvise (delta->fd, 0, (off_t) length, POSIX_FADV_DONTNEED);
  return r;
}

int
delta_space (const struct delta *delta, uint64_t *size, uint64_t *space)
{
  struct stat st;

  if (fstat (delta->fd, &st) == -1)
    return -errno;
  *size = (uint64_t) st.st_size;
  *space = (uint64_t) st.st_blocks * 512;
  return 0;
}

int
delta_size (const struct delta *delta, uint64_t *size)
{
  uint64_t space;

  return delta_space (delta, size, &space);
}

bool
delta_next_data (const struct delta *delta, uint64_t end, uint64_t *start,
                 uint64_t *stop)
{
  off_t data, hole;

  if (*start >= end)
    return false;
  if (!delta->holes_are_true) {
    *stop = end;
    return true;
  }
  data = lseek (delta->fd, (off_t) *start, SEEK_DATA);
  if (data == -1 && errno == ENXIO)
    return false;
  hole = data == -1 ? -1 : lseek (delta->fd, data, SEEK_HOLE);
  if (hole == -1) {
    /* This file system does not tell: all may be data. */
    *stop = end;
    return true;
  }
  if ((uint64_t) data >= end)
    return false;
  *start = (uint64_t) data;
  *stop = MIN ((uint64_t) hole, end);
  return true;
}

bool
delta_next_data_at_open (const struct delta *delta, uint64_t end,
                         uint64_t *start, uint64_t *stop)
{
  return delta->remote ? remote_next_data (delta->remote, end, start, stop)
                       : delta_next_data (delta, end, start, stop);
}

void
delta_stop (struct delta *delta)
{
  if (delta->remote)
    remote_stop (delta->remote);
}

bool
delta_is_hole (const struct delta *delta, uint64_t length, uint64_t offset)
{
  uint64_t stop;

  return !delta_next_data (delta, offset + length, &offset, &stop);
}

void
delta_prefetch (const struct delta *delta, uint64_t length, uint64_t offset)
{
  const size_t cached = cached_length (delta, (size_t) length, offset);

  /* A length of 0 would be the rest of the file. */
  if (cached > 0 && !delta->remote)
    posix_fadvise (delta->fd, (off_t) offset, (off_t) cached,
                   POSIX_FADV_WILLNEED);
}

/* ---- The device below -------------------------------------------------- */

bool
delta_is_rotational (const struct delta *delta)
{
  /* A partition has no queue of its own: its disk is the directory above. */
  static const char *const places[] = { "queue", "../queue" };

  for (size_t i = 0; i < G_N_ELEMENTS (places); i++) {
    g_autofree char *name =
      g_strdup_printf ("/sys/dev/block/%u:%u/%s/rotational",
                       major (delta->device), minor (delta->device),
                       places[i]);
    g_autofree char *content = NULL;

    if (g_file_get_contents (name, &content, NULL, NULL))
      return content[0] == '1';
  }
  /* A file system without a block device of its own (network, memory). */
  return false;
}

/* ---- Searching --------------------------------------------------------- */

static size_t
count_zeros (const uint8_t *buf, size_t length)
{
  size_t n = 0;

  while (n < length && buf[n] == 0)
    n++;
  return n;
}

static int
find_in_data (const struct delta *delta, uint8_t *buf, uint64_t end,
              uint64_t *position)
{
  while (*position < end) {
    const size_t length = (size_t) MIN (end - *position, SEARCH_BYTES);
    const int r = delta_pread (delta, buf, length, *position);
    size_t n;

    if (r < 0)
      return r;
    n = count_zeros (buf, length);
    *position += n;
    if (n < length)
      break;
  }
  return 0;
}

int
delta_find_nonzero (const struct delta *delta, uint64_t start, uint64_t end,
                    uint64_t *position)
{
  g_autofree uint8_t *buf = g_malloc (SEARCH_BYTES);
  uint64_t stop;

  for (*position = start; delta_next_data (delta, end, position, &stop);) {
    const int r = find_in_data (delta, buf, stop, position);

    if (r < 0 || *position < stop)
      return r;
  }
  *position = end;
  return 0;
}

static bool
has_nonzero (const struct delta *delta, uint64_t start, uint64_t end)
{
  uint64_t position;

  return start < end
         && (delta_find_nonzero (delta, start, end, &position) < 0
             || position < end);
}

bool
delta_wastes_space (const struct delta *delta, uint64_t length,
                    uint64_t offset)
{
  const uint64_t block = delta->block_size, end = offset + length;
  const uint64_t first = MIN ((offset + block - 1) / block * block, end);
  const uint64_t last = MAX (end / block * block, first);

  return !delta_is_hole (delta, last - first, first)
         || has_nonzero (delta, offset, first) || has_nonzero (delta, last, end);
}
