/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Direct I/O for requests of any alignment: see direct.h. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <glib.h>

#include "direct.h"
#include "ring.h"

/* One system call moves at most this much: Linux cuts at 2^31 - 4096. */
#define MAX_IO ((size_t) 1 << 30)

/* What fits every file system that does not tell, and bounce buffers. */
#define USUAL_ALIGNMENT 4096u

/* A slice of a bounced request, and one system call's worth, are whole blocks;
 * a block is in one region.
 */
G_STATIC_ASSERT (DIRECT_BUFFER_SIZE % DIRECT_MAX_ALIGNMENT == 0);
G_STATIC_ASSERT (DIRECT_SMALL_SIZE % DIRECT_MAX_ALIGNMENT == 0);
G_STATIC_ASSERT (DIRECT_MAX_KEPT_LARGE <= DIRECT_MAX_KEPT);
G_STATIC_ASSERT (MAX_IO % DIRECT_MAX_ALIGNMENT == 0);
G_STATIC_ASSERT (DIRECT_REGION_SIZE % DIRECT_MAX_ALIGNMENT == 0);

/* ---- Blocks and alignment ---------------------------------------------- */

/* How far OFFSET is into its block. */
static size_t
into_block (const struct direct *direct, uint64_t offset)
{
  return (size_t) (offset & (direct->block_size - 1));
}

static size_t
whole_blocks (const struct direct *direct, size_t length)
{
  return length & ~((size_t) direct->block_size - 1);
}

static bool
is_memory_aligned (const struct direct *direct, const void *buf)
{
  return ((uintptr_t) buf & (direct->memory_alignment - 1)) == 0;
}

/* ---- Bounce buffers ---------------------------------------------------- */

static void
init_pool (struct direct_pool *pool, size_t size, unsigned most)
{
  pool->size = size;
  pool->most = most;
  pthread_mutex_init (&pool->lock, NULL);
}

static void
empty_pool (struct direct_pool *pool)
{
  pthread_mutex_destroy (&pool->lock);
  while (pool->nr_kept > 0)
    free (pool->kept[--pool->nr_kept]);
}

/* The pool whose buffers hold SPAN bytes, at most DIRECT_BUFFER_SIZE. */
static struct direct_pool *
pool_for (struct direct *direct, size_t span)
{
  return span <= DIRECT_SMALL_SIZE ? &direct->small : &direct->large;
}

/* A buffer of SPAN bytes; NULL: out of memory. */
static char *
take_buffer (struct direct *direct, size_t span)
{
  struct direct_pool *pool = pool_for (direct, span);
  void *buffer = NULL;

  pthread_mutex_lock (&pool->lock);
  if (pool->nr_kept > 0)
    buffer = pool->kept[--pool->nr_kept];
  pthread_mutex_unlock (&pool->lock);

  if (!buffer
      && posix_memalign (&buffer,
                         MAX (direct->memory_alignment, USUAL_ALIGNMENT),
                         pool->size) != 0)
    return NULL;
  return buffer;
}

static void
give_buffer (struct direct *direct, void *buffer, size_t span)
{
  struct direct_pool *pool = pool_for (direct, span);

  pthread_mutex_lock (&pool->lock);
  if (pool->nr_kept < pool->most)
    pool->kept[pool->nr_kept++] = g_steal_pointer (&buffer);
  pthread_mutex_unlock (&pool->lock);
  free (buffer);
}

/* ---- Stripes ----------------------------------------------------------- */

/* The stripes of a range's regions, a bit each. */
G_STATIC_ASSERT (DIRECT_NR_STRIPES == 64);

static uint64_t
stripes_of (uint64_t length, uint64_t offset)
{
  const uint64_t first = offset / DIRECT_REGION_SIZE;
  const uint64_t last = (offset + MAX (length, 1) - 1) / DIRECT_REGION_SIZE;
  const uint64_t nr = last - first + 1;
  const unsigned shift = first % DIRECT_NR_STRIPES;
  uint64_t set;

  if (nr >= DIRECT_NR_STRIPES)
    return UINT64_MAX;
  set = (UINT64_C (1) << nr) - 1;
  return shift == 0 ? set
                    : set << shift | set >> (DIRECT_NR_STRIPES - shift);
}

/* Take the stripes of SET out of it, lowest first. */
static pthread_rwlock_t *
next_stripe (struct direct *direct, uint64_t *set)
{
  const int n = __builtin_ctzll (*set);

  *set &= *set - 1;
  return &direct->stripes[n].lock;
}

static void
lock_shared (struct direct *direct, uint64_t set)
{
  while (set != 0)
    pthread_rwlock_rdlock (next_stripe (direct, &set));
}

static void
lock_exclusively (struct direct *direct, uint64_t set)
{
  while (set != 0)
    pthread_rwlock_wrlock (next_stripe (direct, &set));
}

static void
unlock (struct direct *direct, uint64_t set)
{
  while (set != 0)
    pthread_rwlock_unlock (next_stripe (direct, &set));
}

void
direct_begin_change (struct direct *direct, uint64_t length, uint64_t offset)
{
  lock_shared (direct, stripes_of (length, offset));
}

void
direct_end_change (struct direct *direct, uint64_t length, uint64_t offset)
{
  unlock (direct, stripes_of (length, offset));
}

/* Writers ask with a stripe in their hands.  Readers may find out late: what
 * they read is coherent either way.
 */
static bool
is_stopped (const struct direct *direct)
{
  /* Acquire: pairs with the release in direct_stop. */
  return atomic_load_explicit (&direct->stopped, memory_order_acquire);
}

bool
direct_stop (struct direct *direct)
{
  bool first;

  if (is_stopped (direct))
    return false;
  /* With all stripes in our hands no direct write runs; whoever takes one after
   * us sees the flag.
   */
  lock_exclusively (direct, UINT64_MAX);
  first = !is_stopped (direct);
  atomic_store_explicit (&direct->stopped, true, memory_order_release);
  unlock (direct, UINT64_MAX);
  return first;
}

/* ---- Whole blocks, aligned memory -------------------------------------- */

static int
io_error (int errnum)
{
  return errnum == EINVAL ? -ENOTBLK : -errnum;
}

/* Does the file end at or before OFFSET?  Returns 0, 1 or a negative errno. */
static int
ends_at (const struct direct *direct, uint64_t offset)
{
  struct stat st;

  if (fstat (direct->fd, &st) == -1)
    return -errno;
  return (uint64_t) st.st_size <= offset;
}

static int
read_blocks (const struct direct *direct, char *buf, size_t length,
             uint64_t offset)
{
  size_t done = 0;

  while (done < length) {
    ssize_t n = pread (direct->fd, buf + done, MIN (length - done, MAX_IO),
                       (off_t) (offset + done));
    int end = n == 0;

    if (n < 0) {
      if (errno == EINTR)
        continue;
      return io_error (errno);
    }
    /* Inside a block only the file's end stops the kernel, as a rule. */
    if (into_block (direct, (uint64_t) n) != 0)
      end = ends_at (direct, offset + done + (size_t) n);
    if (end < 0)
      return end;
    if (end) {
      done += (size_t) n;
      memset (buf + done, 0, length - done);
      return 0;
    }
    /* A block that was begun is read again. */
    done += whole_blocks (direct, (size_t) n);
  }
  return 0;
}

static ssize_t
write_some (int fd, const char *buf, size_t length, uint64_t offset)
{
  return ring_is_there () ? ring_pwrite (fd, buf, length, (off_t) offset)
                          : pwrite (fd, buf, length, (off_t) offset);
}

static int
write_blocks (const struct direct *direct, int fd, const char *buf,
              size_t length, uint64_t offset)
{
  size_t done = 0;

  while (done < length) {
    ssize_t n = write_some (fd, buf + done, MIN (length - done, MAX_IO),
                            offset + done);

    if (n < 0) {
      if (errno == EINTR)
        continue;
      return io_error (errno);
    }
    if (n == 0)
      return -EIO;
    /* A block that was begun is written again. */
    done += whole_blocks (direct, (size_t) n);
  }
  return 0;
}

/* ---- Reading ----------------------------------------------------------- */

/* Up to a bounce buffer's worth. */
static int
read_bounced (struct direct *direct, void *buf, size_t length,
              uint64_t offset)
{
  const size_t head = into_block (direct, offset);
  const size_t span =
    whole_blocks (direct, head + length + direct->block_size - 1);
  char *bounce = take_buffer (direct, span);
  int r;

  if (!bounce)
    return -ENOMEM;
  r = read_blocks (direct, bounce, span, offset - head);
  if (r == 0)
    memcpy (buf, bounce + head, length);
  give_buffer (direct, bounce, span);
  return r;
}

/* Read the next piece of a request; *N is its length. */
static int
read_piece (struct direct *direct, void *buf, size_t length, uint64_t offset,
            size_t *n)
{
  const size_t head = into_block (direct, offset);

  if (head == 0 && length >= direct->block_size
      && is_memory_aligned (direct, buf)) {
    *n = whole_blocks (direct, length);
    return read_blocks (direct, buf, *n, offset);
  }
  /* Also what could be had without a copy, once its head has been read by
   * itself: copying costs less than one more system call.
   */
  *n = MIN (length, DIRECT_BUFFER_SIZE - head);
  return read_bounced (direct, buf, *n, offset);
}

int
direct_pread (struct direct *direct, void *buf, size_t length,
              uint64_t offset)
{
  while (length > 0) {
    size_t n;
    int r = is_stopped (direct) ? -ENOTBLK
                                : read_piece (direct, buf, length, offset, &n);

    if (r < 0)
      return r;
    buf = (char *) buf + n;
    offset += n;
    length -= n;
  }
  return 0;
}

/* ---- Writing ----------------------------------------------------------- */

static int
write_aligned (struct direct *direct, int fd, const char *buf, size_t length,
               uint64_t offset)
{
  const uint64_t set = stripes_of (length, offset);
  int r;

  lock_shared (direct, set);
  r = is_stopped (direct) ? -ENOTBLK
                          : write_blocks (direct, fd, buf, length, offset);
  unlock (direct, set);
  return r;
}

/* Up to a bounce buffer's worth of whole blocks. */
static int
write_bounced (struct direct *direct, int fd, const void *buf, size_t length,
               uint64_t offset)
{
  char *bounce = take_buffer (direct, length);
  int r;

  if (!bounce)
    return -ENOMEM;
  memcpy (bounce, buf, length);
  r = write_aligned (direct, fd, bounce, length, offset);
  give_buffer (direct, bounce, length);
  return r;
}

/* With the block's stripe held exclusively. */
static int
modify_locked (struct direct *direct, int fd, char *bounce, const void *buf,
               size_t length, uint64_t offset)
{
  const size_t head = into_block (direct, offset);
  int r;

  if (is_stopped (direct))
    return -ENOTBLK;
  r = read_blocks (direct, bounce, direct->block_size, offset - head);
  if (r < 0)
    return r;
  memcpy (bounce + head, buf, length);
  return write_blocks (direct, fd, bounce, direct->block_size, offset - head);
}

/* RMW: write a part of one block. */
static int
modify_block (struct direct *direct, int fd, const void *buf, size_t length,
              uint64_t offset)
{
  const uint64_t set = stripes_of (length, offset);
  char *bounce = take_buffer (direct, direct->block_size);
  int r;

  if (!bounce)
    return -ENOMEM;
  lock_exclusively (direct, set);
  r = modify_locked (direct, fd, bounce, buf, length, offset);
  unlock (direct, set);
  give_buffer (direct, bounce, direct->block_size);
  return r;
}

/* Write the next piece of a request; *N is its length. */
static int
write_piece (struct direct *direct, int fd, const void *buf, size_t length,
             uint64_t offset, size_t *n)
{
  const size_t head = into_block (direct, offset);

  if (head != 0 || length < direct->block_size) {
    *n = MIN (length, direct->block_size - head);
    return modify_block (direct, fd, buf, *n, offset);
  }
  *n = whole_blocks (direct, length);
  if (is_memory_aligned (direct, buf))
    return write_aligned (direct, fd, buf, *n, offset);
  *n = MIN (*n, DIRECT_BUFFER_SIZE);
  return write_bounced (direct, fd, buf, *n, offset);
}

int
direct_pwrite (struct direct *direct, const void *buf, size_t length,
               uint64_t offset, bool durable)
{
  const int fd = durable ? direct->durable_fd : direct->fd;

  while (length > 0) {
    size_t n;
    int r = write_piece (direct, fd, buf, length, offset, &n);

    if (r < 0)
      return r;
    buf = (const char *) buf + n;
    offset += n;
    length -= n;
  }
  return 0;
}

/* ---- Opening ----------------------------------------------------------- */

static bool
is_usable (uint32_t alignment)
{
  return alignment > 0 && alignment <= DIRECT_MAX_ALIGNMENT
         && (alignment & (alignment - 1)) == 0;
}

/* Ask the kernel (Linux 6.1, some file systems) for the alignments. */
static int
find_alignments (struct direct *direct)
{
  direct->block_size = direct->memory_alignment = USUAL_ALIGNMENT;
#ifdef STATX_DIOALIGN
  struct statx st;

  if (statx (direct->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) == 0
      && (st.stx_mask & STATX_DIOALIGN)) {
    direct->block_size = st.stx_dio_offset_align;
    direct->memory_alignment = st.stx_dio_mem_align;
    /* Its way to say: not for this file. */
    if (direct->block_size == 0)
      return -EOPNOTSUPP;
  }
#endif
  return is_usable (direct->block_size) && is_usable (direct->memory_alignment)
           ? 0 : -EINVAL;
}

/* Some file systems take O_DIRECT at open and refuse the first request. */
static int
try_read (struct direct *direct)
{
  char *bounce = take_buffer (direct, direct->block_size);
  int r = 0;

  if (!bounce)
    return -ENOMEM;
  while (pread (direct->fd, bounce, direct->block_size, 0) == -1)
    if (errno != EINTR) {
      r = -errno;
      break;
    }
  give_buffer (direct, bounce, direct->block_size);
  return r;
}

static void
init_locks (struct direct *direct)
{
  pthread_rwlockattr_t attr;

  pthread_rwlockattr_init (&attr);
#ifdef __GLIBC__
  /* An RMW must not starve among writers that overlap. */
  pthread_rwlockattr_setkind_np (
    &attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
#endif
  for (size_t i = 0; i < DIRECT_NR_STRIPES; i++)
    pthread_rwlock_init (&direct->stripes[i].lock, &attr);
  pthread_rwlockattr_destroy (&attr);
}

int
direct_open (int fd, int durable_fd, struct direct **direct)
{
  /* Cache lines: malloc does not align to them. */
  struct direct *d =
    g_aligned_alloc0 (1, sizeof *d, G_ALIGNOF (struct direct));
  int r;

  d->fd = fd;
  d->durable_fd = durable_fd;
  init_pool (&d->small, DIRECT_SMALL_SIZE, DIRECT_MAX_KEPT);
  init_pool (&d->large, DIRECT_BUFFER_SIZE, DIRECT_MAX_KEPT_LARGE);
  init_locks (d);
  r = find_alignments (d);
  if (r == 0)
    r = try_read (d);
  if (r < 0)
    direct_close (g_steal_pointer (&d));
  *direct = d;
  return r;
}

void
direct_close (struct direct *direct)
{
  if (!direct)
    return;
  for (size_t i = 0; i < DIRECT_NR_STRIPES; i++)
    pthread_rwlock_destroy (&direct->stripes[i].lock);
  empty_pool (&direct->small);
  empty_pool (&direct->large);
  if (direct->durable_fd >= 0)
    close (direct->durable_fd);
  close (direct->fd);
  g_aligned_free (direct);
}
