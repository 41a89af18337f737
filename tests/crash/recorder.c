/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Recording, failing and cutting: see recorder.h. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <linux/fs.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "recorder.h"

#define BLOCK 4096u
#define MAX_FDS 1024
/* The most that one call copies. */
#define MAX_COPY ((size_t) 256 << 10)

enum kind {
  WRITE,                        /* data at offset */
  ZERO,                         /* zeros at offset */
  SIZE,                         /* the file's size becomes offset */
  RESERVE,                      /* space, which nobody sees */
  LAST_CHANGE = RESERVE,
  SYNC_END,                     /* all events before `covers` are durable */
  SYNC_FAILED,                  /* what is not durable now never will be */
  WRITE_END,                    /* event `covers` is durable */
  MARK,                         /* the workload's */
};

struct event {
  enum kind kind;
  uint64_t offset, length, covers;
  uint8_t *data;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool recording;
static GArray *events;          /* of struct event */
static uint64_t nr_changes;
static uint8_t *initial;
static gsize initial_size;
static struct recorder_faults faults;
static unsigned nr_syncs;
static bool pending[MAX_FDS];   /* descriptors that a failed sync waits for */
static int plain_fd = -1, direct_fd = -1;
static const char *_Atomic stray;       /* a call */

static uint32_t seed;
static _Atomic uint32_t nr_threads;
static _Thread_local uint64_t thread_random;

ssize_t __real_pwrite (int, const void *, size_t, off_t);
int __real_fallocate (int, int, off_t, off_t);
int __real_ftruncate (int, off_t);
int __real_fdatasync (int);
int __real_fstat (int, struct stat *);
int __real_statx (int, const char *, int, unsigned, struct statx *);
ssize_t __real_copy_file_range (int, off_t *, int, off_t *, size_t, unsigned);
int __real_ioctl (int, unsigned long, ...);

ssize_t __wrap_pwrite (int, const void *, size_t, off_t);
ssize_t __wrap_ring_pwrite (int, const void *, size_t, off_t);
int __wrap_fallocate (int, int, off_t, off_t);
int __wrap_ftruncate (int, off_t);
int __wrap_fdatasync (int);
int __wrap_fstat (int, struct stat *);
int __wrap_statx (int, const char *, int, unsigned, struct statx *);
ssize_t __wrap_copy_file_range (int, off_t *, int, off_t *, size_t, unsigned);
int __wrap_ioctl (int, unsigned long, ...);

static void
die (const char *what)
{
  fprintf (stderr, "recorder: %s: %s\n", what, g_strerror (errno));
  abort ();
}

/* ---- Chance ------------------------------------------------------------ */

/* xorshift64*, one a thread: a lock would bring threads into step. */
static uint64_t
draw (void)
{
  if (thread_random == 0)
    thread_random = (UINT64_C (0x9e3779b97f4a7c15) * (seed + ++nr_threads)) | 1;
  thread_random ^= thread_random >> 12;
  thread_random ^= thread_random << 25;
  thread_random ^= thread_random >> 27;
  return thread_random * UINT64_C (0x2545f4914f6cdd1d) >> 16;
}

static bool
happens (double chance)
{
  return chance > 0 && (double) (draw () & 0xffffff) < chance * 0x1000000;
}

/* The lock makes calls come one after the other.  Let others overtake. */
static void
dawdle (unsigned per_thousand, unsigned max_us)
{
  if (faults.one_thread)
    return;
  for (uint64_t n = draw () % 4; n > 0; n--)
    sched_yield ();
  if (draw () % 1000 < per_thousand)
    g_usleep (draw () % max_us);
}

/* ---- Recording --------------------------------------------------------- */

static void
clear_event (void *opaque)
{
  struct event *event = opaque;

  g_free (event->data);
}

void
recorder_start (const char *path, const struct recorder_faults *what_fails,
                uint32_t what_seed)
{
  if (!g_file_get_contents (path, (char **) &initial, &initial_size, NULL))
    die (path);
  plain_fd = open (path, O_RDWR | O_CLOEXEC);
  direct_fd = open (path, O_RDWR | O_CLOEXEC | O_DIRECT);
  if (plain_fd == -1)
    die (path);
  faults = *what_fails;
  seed = what_seed;
  nr_changes = 0;
  nr_syncs = 0;
  atomic_store (&stray, NULL);
  memset (pending, 0, sizeof pending);
  events = g_array_new (FALSE, FALSE, sizeof (struct event));
  g_array_set_clear_func (events, clear_event);
  recording = true;
}

void
recorder_stop (void)
{
  recording = false;
  g_clear_pointer (&events, g_array_unref);
  g_clear_pointer (&initial, g_free);
  close (plain_fd);
  if (direct_fd >= 0)
    close (direct_fd);
}

/* With the lock held. */
static uint64_t
append (const struct event *event)
{
  g_array_append_vals (events, event, 1);
  nr_changes += event->kind <= LAST_CHANGE;
  return events->len - 1;
}

uint64_t
recorder_now (void)
{
  const struct event mark = { .kind = MARK };
  uint64_t now;

  pthread_mutex_lock (&lock);
  now = append (&mark);
  pthread_mutex_unlock (&lock);
  return now;
}

uint64_t
recorder_nr_changes (void)
{
  uint64_t nr;

  pthread_mutex_lock (&lock);
  nr = nr_changes;
  pthread_mutex_unlock (&lock);
  return nr;
}

static const struct event *
event_at (uint64_t i)
{
  return &g_array_index (events, struct event, i);
}

char *
recorder_describe_change (uint64_t nr)
{
  static const char *const names[] = { "write", "clear", "size", "reserve" };
  char *text = NULL;

  pthread_mutex_lock (&lock);
  for (uint64_t i = 0; i < events->len && !text; i++)
    if (event_at (i)->kind <= LAST_CHANGE && nr-- == 0)
      text = g_strdup_printf (
        "%s at byte %" G_GUINT64_FORMAT ", %" G_GUINT64_FORMAT " bytes",
        names[event_at (i)->kind], event_at (i)->offset, event_at (i)->length);
  pthread_mutex_unlock (&lock);
  return text;
}

static bool
puts_there (const struct event *event, uint64_t offset, const void *bytes,
            size_t length)
{
  return event->kind == WRITE && event->offset <= offset
         && offset + length <= event->offset + event->length
         && memcmp (event->data + (offset - event->offset), bytes, length) == 0;
}

uint64_t
recorder_find_write (uint64_t offset, const void *bytes, size_t length)
{
  for (uint64_t i = 0; i < events->len; i++)
    if (puts_there (event_at (i), offset, bytes, length))
      return i;
  return UINT64_MAX;
}

bool
recorder_sync_had_failed (uint64_t moment)
{
  for (uint64_t i = 0; i < moment; i++)
    if (event_at (i)->kind == SYNC_FAILED)
      return true;
  return false;
}

const char *
recorder_stray (void)
{
  return atomic_load (&stray);
}

/* ---- The calls --------------------------------------------------------- */

/* Is a call, whose NAME is what it does, for the recorder?  While it records,
 * all other files are only read.
 */
static bool
is_ours (int fd, const char *name)
{
  struct stat ours, its;
  const char *none = NULL;

  if (!recording)
    return false;
  if (__real_fstat (plain_fd, &ours) == 0 && __real_fstat (fd, &its) == 0
      && ours.st_dev == its.st_dev && ours.st_ino == its.st_ino)
    return true;
  atomic_compare_exchange_strong (&stray, &none, name);
  return false;
}

static bool
is_beyond (uint64_t end)
{
  return faults.max_size > 0 && end > faults.max_size;
}

/* How a write shall end: *LENGTH bytes of it are done, and then the error that
 * is returned, if it is not 0.
 */
static int
choose_write_error (int fd_flags, uint64_t offset, size_t *length)
{
  const bool is_data = offset >= faults.data_start;
  /* What is less than a block, direct I/O cannot write. */
  const size_t unit = fd_flags & O_DIRECT ? BLOCK : RECORDER_SECTOR;
  const size_t some = draw () % (*length / unit + 1) * unit;
  int error = 0;

  if (is_data && is_beyond (offset + *length))
    error = ENOSPC;
  else if (is_data && happens (faults.no_space))
    error = ENOSPC;
  else if (happens (is_data ? faults.data_eio : faults.bat_eio))
    error = EIO;
  if (error != 0) {
    /* None, some, or even all of it is written. */
    if (error == ENOSPC || draw () % 3 != 0)
      *length = some < *length && !is_beyond (offset + some)
                && draw () % 2 ? some : 0;
    return error;
  }
  if (happens (faults.partial)) {
    if (some == 0 || some == *length) {
      *length = 0;
      return EINTR;
    }
    *length = some;
  }
  return 0;
}

/* Really durable it need not be, and that takes long. */
static int
stand_in (int fd, int fd_flags)
{
  if ((fd_flags & O_DSYNC) != O_DSYNC)
    return fd;
  if (!(fd_flags & O_DIRECT))
    return plain_fd;
  return direct_fd >= 0 ? direct_fd : fd;
}

/* With the lock held. */
static bool
take_pending (int fd)
{
  const bool was = fd < MAX_FDS && pending[fd];

  if (was)
    pending[fd] = false;
  return was;
}

/* A write to a descriptor with O_DSYNC ends. */
static int
end_durable_write (int fd, uint64_t write)
{
  const struct event event = { .kind = WRITE_END, .covers = write };
  bool failed;

  dawdle (50, 500);
  pthread_mutex_lock (&lock);
  failed = take_pending (fd);
  if (!failed)
    append (&event);
  pthread_mutex_unlock (&lock);
  return failed ? EIO : 0;
}

ssize_t
__wrap_pwrite (int fd, const void *buf, size_t length, off_t offset)
{
  const int fd_flags = fcntl (fd, F_GETFL);
  struct event event = { .kind = WRITE, .offset = (uint64_t) offset };
  uint64_t write = 0;
  int error;

  if (!is_ours (fd, "a write"))
    return __real_pwrite (fd, buf, length, offset);
  dawdle (20, 2000);
  /* Now and then, long enough for a cluster to be freed and used again. */
  dawdle (5, 30000);
  error = choose_write_error (fd_flags, (uint64_t) offset, &length);
  if (length > 0) {
    event.length = length;
    event.data = g_memdup2 (buf, length);
    pthread_mutex_lock (&lock);
    if (__real_pwrite (stand_in (fd, fd_flags), buf, length, offset)
        != (ssize_t) length)
      die ("pwrite");
    write = append (&event);
    pthread_mutex_unlock (&lock);
  }
  if (error == 0 && (fd_flags & O_DSYNC) == O_DSYNC)
    error = end_durable_write (fd, write);
  dawdle (10, 200);
  if (error == 0)
    return (ssize_t) length;
  errno = error;
  return -1;
}

/* The same write to the same file, by io_uring. */
ssize_t
__wrap_ring_pwrite (int fd, const void *buf, size_t length, off_t offset)
{
  return __wrap_pwrite (fd, buf, length, offset);
}

/* As much as a call that copies wants to, by a write. */
static ssize_t
copy (int from_fd, off_t from, int fd, off_t offset, size_t length)
{
  uint8_t *buf;
  ssize_t n;

  length = MIN (length, MAX_COPY);
  buf = g_aligned_alloc (1, length, BLOCK);
  n = pread (from_fd, buf, length, from);
  if (n > 0)
    n = __wrap_pwrite (fd, buf, (size_t) n, offset);
  g_aligned_free (buf);
  return n;
}

ssize_t
__wrap_copy_file_range (int from_fd, off_t *from, int fd, off_t *to,
                        size_t length, unsigned flags)
{
  ssize_t n;

  if (!is_ours (fd, "a copy"))
    return __real_copy_file_range (from_fd, from, fd, to, length, flags);
  if (faults.no_copy_range) {
    errno = EXDEV;
    return -1;
  }
  n = copy (from_fd, *from, fd, *to, length);
  if (n > 0) {
    *from += n;
    *to += n;
  }
  return n;
}

/* Blocks are shared whole; only the end of a file may be less. */
static bool
can_clone (const struct file_clone_range *range)
{
  const uint64_t end = range->src_offset + range->src_length;
  struct stat st;

  return __real_fstat ((int) range->src_fd, &st) == 0
         && end <= (uint64_t) st.st_size && range->src_offset % BLOCK == 0
         && range->dest_offset % BLOCK == 0
         && (end % BLOCK == 0 || end == (uint64_t) st.st_size);
}

static int
clone_range (int fd, const struct file_clone_range *range)
{
  uint64_t done = 0;

  errno = faults.no_clone ? EOPNOTSUPP : EINVAL;
  if (faults.no_clone || !can_clone (range))
    return -1;
  while (done < range->src_length) {
    const ssize_t n = copy ((int) range->src_fd,
                            (off_t) (range->src_offset + done), fd,
                            (off_t) (range->dest_offset + done),
                            (size_t) (range->src_length - done));

    if (n <= 0)
      return -1;
    done += (uint64_t) n;
  }
  return 0;
}

int
__wrap_ioctl (int fd, unsigned long request, ...)
{
  va_list args;
  void *argument;

  va_start (args, request);
  argument = va_arg (args, void *);
  va_end (args);
  if (request != FICLONERANGE || !is_ours (fd, "a shared block"))
    return __real_ioctl (fd, request, argument);
  return clone_range (fd, argument);
}

static int
choose_fallocate_error (int mode, uint64_t end)
{
  if (mode & FALLOC_FL_PUNCH_HOLE)
    return faults.no_punch ? EOPNOTSUPP : happens (faults.data_eio) ? EIO : 0;
  if (mode & FALLOC_FL_ZERO_RANGE)
    return faults.no_zero_range ? EOPNOTSUPP
           : happens (faults.data_eio) ? EIO
           : happens (faults.no_space) ? ENOSPC : 0;
  if (faults.no_reserve)
    return EOPNOTSUPP;
  return is_beyond (end) || happens (faults.no_space) ? ENOSPC : 0;
}

int
__wrap_fallocate (int fd, int mode, off_t offset, off_t length)
{
  const bool clears = mode & (FALLOC_FL_ZERO_RANGE | FALLOC_FL_PUNCH_HOLE);
  const struct event event = {
    .kind = clears ? ZERO : RESERVE,
    .offset = (uint64_t) offset,
    .length = (uint64_t) length,
  };
  int r;

  if (!is_ours (fd, "a reservation or clear"))
    return __real_fallocate (fd, mode, offset, length);
  if (!(mode & FALLOC_FL_KEEP_SIZE))
    die ("fallocate that changes the size");
  dawdle (50, 1000);
  errno = choose_fallocate_error (mode, (uint64_t) (offset + length));
  if (errno != 0)
    return -1;
  pthread_mutex_lock (&lock);
  r = __real_fallocate (fd, mode, offset, length);
  /* tmpfs has no zero range. */
  if (r == -1 && errno == EOPNOTSUPP && clears)
    r = __real_fallocate (fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                          offset, length);
  if (r == 0)
    append (&event);
  pthread_mutex_unlock (&lock);
  dawdle (50, 500);
  return r;
}

int
__wrap_ftruncate (int fd, off_t length)
{
  const struct event event = { .kind = SIZE, .offset = (uint64_t) length };
  int r;

  if (!is_ours (fd, "a truncation"))
    return __real_ftruncate (fd, length);
  dawdle (50, 1000);
  if (is_beyond ((uint64_t) length)) {
    errno = draw () % 2 ? ENOSPC : EFBIG;
    return -1;
  }
  pthread_mutex_lock (&lock);
  r = __real_ftruncate (fd, length);
  if (r == 0)
    append (&event);
  pthread_mutex_unlock (&lock);
  dawdle (50, 500);
  return r;
}

int
__wrap_fdatasync (int fd)
{
  struct event event = { .kind = SYNC_END };
  bool failed;

  if (!is_ours (fd, "a sync"))
    return __real_fdatasync (fd);
  dawdle (50, 300);
  pthread_mutex_lock (&lock);
  event.covers = events->len;
  failed = ++nr_syncs == faults.failing_sync;
  pthread_mutex_unlock (&lock);
  /* Let others write meanwhile. */
  dawdle (200, 500);
  pthread_mutex_lock (&lock);
  if (failed) {
    event.kind = SYNC_FAILED;
    memset (pending, true, sizeof pending);
    take_pending (fd);
  }
  else
    failed = take_pending (fd);
  if (!failed || event.kind == SYNC_FAILED)
    append (&event);
  pthread_mutex_unlock (&lock);
  dawdle (50, 300);
  if (!failed)
    return 0;
  errno = EIO;
  return -1;
}

int
__wrap_statx (int fd, const char *path, int flags, unsigned mask,
              struct statx *st)
{
  const int r = __real_statx (fd, path, flags, mask, st);

#ifdef STATX_DIOALIGN
  if (recording && r == 0 && faults.direct_block > 0
      && (st->stx_mask & STATX_DIOALIGN))
    st->stx_dio_offset_align = faults.direct_block;
#endif
  return r;
}

/* Small blocks, so that small parts of clusters are punched, too. */
int
__wrap_fstat (int fd, struct stat *st)
{
  const int r = __real_fstat (fd, st);

  st->st_blksize = 512;
  return r;
}

/* ---- Cutting ----------------------------------------------------------- */

/* The longest that the file ever was. */
static uint64_t
largest_size (void)
{
  uint64_t largest = initial_size;

  for (uint64_t i = 0; i < events->len; i++) {
    const struct event *event = event_at (i);

    if (event->kind == SIZE)
      largest = MAX (largest, event->offset);
    else if (event->kind == WRITE)
      largest = MAX (largest, event->offset + event->length);
  }
  return largest;
}

static void
cut_write (struct recorder_cut *cut, uint64_t offset, const uint8_t *data,
           uint64_t length)
{
  memcpy (cut->bytes + offset, data, length);
  for (uint64_t b = offset / BLOCK; b <= (offset + length - 1) / BLOCK; b++)
    cut->touched[b] = 1;
  cut->size = MAX (cut->size, offset + length);
}

static void
cut_clear (struct recorder_cut *cut, uint64_t offset, uint64_t end)
{
  while (offset < end) {
    const uint64_t n = MIN (end - offset, BLOCK - offset % BLOCK);

    if (cut->touched[offset / BLOCK])
      memset (cut->bytes + offset, 0, n);
    offset += n;
  }
}

/* Put on the disk each sector of a write or a clear with chance KEEP. */
static void
apply_sectors (struct recorder_cut *cut, const struct event *event,
               double keep, GRand *random)
{
  const uint64_t end = MIN (event->offset + event->length, cut->capacity);
  uint64_t at = event->offset;

  while (at < end) {
    const uint64_t n =
      keep >= 1 ? end - at
                : MIN (end - at, RECORDER_SECTOR - at % RECORDER_SECTOR);

    if (keep >= 1 || (keep > 0 && g_rand_double (random) < keep)) {
      if (event->kind == ZERO)
        cut_clear (cut, at, at + n);
      else
        cut_write (cut, at, event->data + (at - event->offset), n);
    }
    at += n;
  }
}

static void
apply (struct recorder_cut *cut, const struct event *event, double keep,
       GRand *random)
{
  if (event->kind == WRITE || event->kind == ZERO)
    apply_sectors (cut, event, keep, random);
  else if (event->kind == SIZE
           && (keep >= 1 || g_rand_double (random) < keep)) {
    if (event->offset < cut->size)
      cut_clear (cut, event->offset, cut->size);
    cut->size = event->offset;
  }
}

/* Which events are durable at MOMENT. */
static GByteArray *
find_durable (uint64_t moment)
{
  GByteArray *durable = g_byte_array_new ();
  uint64_t next = 0;            /* all before it are durable or doomed */

  g_byte_array_set_size (durable, (guint) moment + 1);
  memset (durable->data, 0, moment + 1);
  for (uint64_t i = 0; i < moment; i++) {
    const struct event *event = event_at (i);

    if (event->kind == SYNC_END)
      for (; next < event->covers; next++)
        durable->data[next] = 1;
    else if (event->kind == SYNC_FAILED)
      next = i;
    else if (event->kind == WRITE_END)
      durable->data[event->covers] = 1;
  }
  return durable;
}

static bool
has_changed (const struct recorder_cut *cut)
{
  return cut->size != initial_size
         || memcmp (cut->bytes, initial, 44) != 0
         || memcmp (cut->bytes + 64, initial + 64, initial_size - 64) != 0;
}

static void
lay_initial (struct recorder_cut *cut)
{
  static const uint8_t zeroes[BLOCK];

  for (uint64_t at = 0; at < initial_size; at += BLOCK) {
    const uint64_t n = MIN (initial_size - at, BLOCK);

    if (memcmp (initial + at, zeroes, n) != 0)
      cut_write (cut, at, initial + at, n);
  }
  cut->size = initial_size;
}

struct recorder_cut *
recorder_cut (uint64_t moment, double keep, bool broken_sync, GRand *random)
{
  g_autoptr (GByteArray) durable = find_durable (moment);
  struct recorder_cut *cut = g_new0 (struct recorder_cut, 1);

  cut->capacity = largest_size ();
  cut->bytes = g_malloc0 (cut->capacity);
  cut->touched = g_malloc0 (cut->capacity / BLOCK + 1);
  lay_initial (cut);
  for (uint64_t i = 0; i < moment; i++)
    apply (cut, event_at (i), durable->data[i] && !broken_sync ? 1 : keep,
           random);
  cut->changed = has_changed (cut);
  return cut;
}

void
recorder_cut_free (struct recorder_cut *cut)
{
  g_free (cut->bytes);
  g_free (cut->touched);
  g_free (cut);
}

void
recorder_cut_save (const struct recorder_cut *cut, const char *path)
{
  int fd;

  /* A new file: an old one's truncation would be waited for. */
  unlink (path);
  fd = open (path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd == -1 || __real_ftruncate (fd, (off_t) cut->size) == -1)
    die (path);
  for (uint64_t at = 0; at < cut->size; at += BLOCK) {
    const size_t n = (size_t) MIN (cut->size - at, BLOCK);

    if (cut->touched[at / BLOCK]
        && __real_pwrite (fd, cut->bytes + at, n, (off_t) at) != (ssize_t) n)
      die (path);
  }
  close (fd);
}

bool
recorder_cut_is_file (const struct recorder_cut *cut, const char *path)
{
  g_autofree char *bytes = NULL;
  gsize size;

  if (!g_file_get_contents (path, &bytes, &size, NULL))
    die (path);
  return size == cut->size && memcmp (bytes, cut->bytes, size) == 0;
}
