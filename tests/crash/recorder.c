/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Recording and cutting: see recorder.h. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "recorder.h"

enum kind {
  WRITE,                        /* data at offset */
  ZERO,                         /* zeros at offset */
  SIZE,                         /* the file's size becomes offset */
  GROW,                         /* ... unless it is larger */
  SYNC_END,                     /* all events before `covers` are durable */
  WRITE_END,                    /* event `covers` is durable */
  MARK,                         /* the workload's */
};

struct event {
  enum kind kind;
  uint64_t offset, length, covers;
  uint8_t *data;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static GArray *events;          /* of struct event; NULL: do not record */
static uint8_t *initial;
static gsize initial_size;
static uint64_t max_step;
static bool cut_changed;

ssize_t __real_pwrite (int, const void *, size_t, off_t);
int __real_fallocate (int, int, off_t, off_t);
int __real_ftruncate (int, off_t);
int __real_fdatasync (int);

ssize_t __wrap_pwrite (int, const void *, size_t, off_t);
int __wrap_fallocate (int, int, off_t, off_t);
int __wrap_ftruncate (int, off_t);
int __wrap_fdatasync (int);

static void
die (const char *what)
{
  fprintf (stderr, "recorder: %s: %s\n", what, g_strerror (errno));
  abort ();
}

/* ---- Recording --------------------------------------------------------- */

static void
clear_event (void *opaque)
{
  struct event *event = opaque;

  g_free (event->data);
}

void
recorder_start (const char *path, uint64_t step)
{
  max_step = step;
  if (!g_file_get_contents (path, (char **) &initial, &initial_size, NULL))
    die (path);
  events = g_array_new (FALSE, FALSE, sizeof (struct event));
  g_array_set_clear_func (events, clear_event);
}

void
recorder_stop (void)
{
  g_clear_pointer (&events, g_array_unref);
  g_clear_pointer (&initial, g_free);
}

/* With the lock held. */
static uint64_t
append (const struct event *event)
{
  g_array_append_vals (events, event, 1);
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

ssize_t
__wrap_pwrite (int fd, const void *buf, size_t length, off_t offset)
{
  const bool durable = (fcntl (fd, F_GETFL) & O_DSYNC) == O_DSYNC;
  struct event event = {
    .kind = WRITE,
    .offset = (uint64_t) offset,
    .length = length,
  };
  ssize_t n;

  if (!events)
    return __real_pwrite (fd, buf, length, offset);
  event.data = g_memdup2 (buf, length);
  pthread_mutex_lock (&lock);
  n = __real_pwrite (fd, buf, length, offset);
  if (n != (ssize_t) length)
    die ("pwrite");
  event.covers = append (&event);
  pthread_mutex_unlock (&lock);
  if (!durable)
    return n;

  sched_yield ();
  event.kind = WRITE_END;
  event.data = NULL;
  pthread_mutex_lock (&lock);
  append (&event);
  pthread_mutex_unlock (&lock);
  return n;
}

int
__wrap_fallocate (int fd, int mode, off_t offset, off_t length)
{
  const struct event event = {
    .kind = mode & FALLOC_FL_ZERO_RANGE ? ZERO : GROW,
    .offset = (uint64_t) (mode == 0 ? offset + length : offset),
    .length = (uint64_t) length,
  };
  int r;

  if (!events)
    return __real_fallocate (fd, mode, offset, length);
  if (mode == 0 && (uint64_t) length > max_step) {
    errno = ENOSPC;
    return -1;
  }
  pthread_mutex_lock (&lock);
  r = __real_fallocate (fd, mode, offset, length);
  if (r == 0)
    append (&event);
  pthread_mutex_unlock (&lock);
  return r;
}

int
__wrap_ftruncate (int fd, off_t length)
{
  const struct event event = { .kind = SIZE, .offset = (uint64_t) length };
  int r;

  if (!events)
    return __real_ftruncate (fd, length);
  pthread_mutex_lock (&lock);
  r = __real_ftruncate (fd, length);
  if (r == 0)
    append (&event);
  pthread_mutex_unlock (&lock);
  return r;
}

int
__wrap_fdatasync (int fd)
{
  struct event event = { .kind = SYNC_END };

  if (!events)
    return __real_fdatasync (fd);
  pthread_mutex_lock (&lock);
  event.covers = events->len;
  pthread_mutex_unlock (&lock);
  /* Let others write meanwhile. */
  for (int i = g_random_int_range (0, 8); i > 0; i--)
    sched_yield ();
  pthread_mutex_lock (&lock);
  append (&event);
  pthread_mutex_unlock (&lock);
  return 0;
}

/* ---- Cutting ----------------------------------------------------------- */

struct disk {
  uint8_t *bytes;
  uint64_t size, capacity;
};

static const struct event *
event_at (uint64_t i)
{
  return &g_array_index (events, struct event, i);
}

/* The longest that the file ever was. */
static uint64_t
largest_size (void)
{
  uint64_t largest = initial_size;

  for (uint64_t i = 0; i < events->len; i++) {
    const struct event *event = event_at (i);

    if (event->kind == SIZE || event->kind == GROW)
      largest = MAX (largest, event->offset);
    else if (event->kind == WRITE)
      largest = MAX (largest, event->offset + event->length);
  }
  return largest;
}

static void
set_size (struct disk *disk, uint64_t size)
{
  if (size < disk->size)
    memset (disk->bytes + size, 0, disk->size - size);
  disk->size = size;
}

/* Put on the disk each sector of a write with chance KEEP. */
static void
apply_sectors (struct disk *disk, const struct event *event, double keep,
               GRand *random)
{
  uint64_t done = 0;

  while (done < event->length) {
    const uint64_t at = event->offset + done;
    const uint64_t n = MIN (event->length - done,
                            RECORDER_SECTOR - at % RECORDER_SECTOR);

    if (keep >= 1 || g_rand_double (random) < keep) {
      if (event->kind == ZERO)
        memset (disk->bytes + at, 0, n);
      else {
        memcpy (disk->bytes + at, event->data + done, n);
        disk->size = MAX (disk->size, at + n);
      }
    }
    done += n;
  }
}

static void
apply (struct disk *disk, const struct event *event, double keep,
       GRand *random)
{
  switch (event->kind) {
  case WRITE:
  case ZERO:
    apply_sectors (disk, event, keep, random);
    break;
  case SIZE:
  case GROW:
    if (keep >= 1 || g_rand_double (random) < keep)
      set_size (disk, event->kind == SIZE ? event->offset
                                          : MAX (disk->size, event->offset));
    break;
  case SYNC_END:
  case WRITE_END:
  case MARK:
    break;
  }
}

/* Which events are durable at MOMENT. */
static GByteArray *
find_durable (uint64_t moment)
{
  GByteArray *durable = g_byte_array_new ();
  uint64_t covered = 0;

  g_byte_array_set_size (durable, (guint) moment);
  if (moment == 0)
    return durable;             /* no data to point at */
  memset (durable->data, 0, moment);
  for (uint64_t i = 0; i < moment; i++) {
    if (event_at (i)->kind == SYNC_END)
      covered = MAX (covered, event_at (i)->covers);
    else if (event_at (i)->kind == WRITE_END)
      durable->data[event_at (i)->covers] = 1;
  }
  memset (durable->data, 1, covered);
  return durable;
}

static bool
has_changed (const struct disk *disk)
{
  return disk->size != initial_size
         || memcmp (disk->bytes, initial, 44) != 0
         || memcmp (disk->bytes + 64, initial + 64, initial_size - 64) != 0;
}

void
recorder_cut (uint64_t moment, double keep, bool broken_sync, GRand *random,
              const char *path)
{
  g_autoptr (GByteArray) durable = find_durable (moment);
  struct disk disk = { .size = initial_size, .capacity = largest_size () };

  disk.bytes = g_malloc0 (disk.capacity);
  memcpy (disk.bytes, initial, initial_size);
  for (uint64_t i = 0; i < moment; i++)
    apply (&disk, event_at (i),
           durable->data[i] && !broken_sync ? 1 : keep, random);
  cut_changed = has_changed (&disk);
  if (!g_file_set_contents_full (path, (const char *) disk.bytes,
                                 (gssize) disk.size,
                                 G_FILE_SET_CONTENTS_NONE, 0600, NULL))
    die (path);
  g_free (disk.bytes);
}

bool
recorder_cut_changed (void)
{
  return cut_changed;
}
