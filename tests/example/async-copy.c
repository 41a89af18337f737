/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* An example of the asynchronous API, without nbdkit, from one event loop:
 *
 *     async-copy RAW IMAGE
 *
 * copies the file RAW to the ploop image IMAGE, which must be as large, many
 * requests at a time; flushes; reads the image back the same way; and prints
 * the SHA-256 of what it has read.  Blocks of zeros are not written.
 *
 * libploop-core completes requests on threads of its own.  The callback does
 * the least that is right there: it puts the request into a list and rings the
 * loop.  Everything else happens in the loop, without locks.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <ev.h>
#include <glib.h>

#include "ploop-core.h"

#define NR_SLOTS 32u
#define BLOCK (UINT64_C (256) << 10)

/* One request that is in flight, or done, or not begun. */
struct slot {
  ploop_request request;
  struct slot *next;            /* in the list of those that are done */
  struct copy *copy;
  int result;
  uint8_t buf[BLOCK];
};

enum phase { WRITING, FLUSHING, READING, ENDED };

struct copy {
  struct ev_loop *loop;
  ev_async ring;
  ploop_image *image;
  int raw_fd;
  uint64_t size, next_offset;
  enum phase phase;
  unsigned nr_in_flight;
  int result;                   /* of the first request that failed */

  GMutex lock;                  /* for what follows */
  struct slot *done;

  /* Blocks arrive in any order; the checksum wants them in one. */
  GChecksum *checksum;
  uint64_t summed;
  struct slot *waiting[NR_SLOTS];
  struct slot *slots;
};

static void fill (struct copy *copy, struct slot *slot);

/* ---- On the library's threads ------------------------------------------ */

static void
on_complete (ploop_request *request, int result)
{
  struct slot *slot = request->opaque;
  struct copy *copy = slot->copy;

  slot->result = result;
  g_mutex_lock (&copy->lock);
  slot->next = copy->done;
  copy->done = slot;
  g_mutex_unlock (&copy->lock);
  ev_async_send (copy->loop, &copy->ring);
}

/* ---- In the loop ------------------------------------------------------- */

static void
submit (struct copy *copy, struct slot *slot, enum ploop_operation operation,
        uint64_t offset, uint64_t length)
{
  int r;

  slot->copy = copy;
  slot->request.operation = operation;
  slot->request.flags = 0;
  slot->request.buf = slot->buf;
  slot->request.offset = offset;
  slot->request.length = length;
  slot->request.complete = on_complete;
  slot->request.opaque = slot;
  r = ploop_submit (copy->image, &slot->request);
  if (r == 0)
    copy->nr_in_flight++;
  else if (copy->result == 0)
    copy->result = r;
}

static bool
is_zero (const uint8_t *buf, uint64_t length)
{
  return buf[0] == 0 && memcmp (buf, buf + 1, length - 1) == 0;
}

/* Read the next block of RAW that is not all zeros.  Returns its length, 0 at
 * the end.
 */
static uint64_t
next_block (struct copy *copy, uint8_t *buf)
{
  while (copy->next_offset < copy->size) {
    const uint64_t n = MIN (BLOCK, copy->size - copy->next_offset);

    if (pread (copy->raw_fd, buf, n, (off_t) copy->next_offset)
        != (ssize_t) n) {
      copy->result = -EIO;
      return 0;
    }
    copy->next_offset += n;
    if (!is_zero (buf, n))
      return n;
  }
  return 0;
}

static void
next_write (struct copy *copy, struct slot *slot)
{
  const uint64_t n = next_block (copy, slot->buf);

  if (n > 0)
    submit (copy, slot, PLOOP_WRITE, copy->next_offset - n, n);
}

static void
next_read (struct copy *copy, struct slot *slot)
{
  const uint64_t n = MIN (BLOCK, copy->size - copy->next_offset);

  if (n == 0)
    return;
  submit (copy, slot, PLOOP_READ, copy->next_offset, n);
  copy->next_offset += n;
}

/* Add to the checksum what is there in order, and use its slots again. */
static void
sum (struct copy *copy, struct slot *slot)
{
  copy->waiting[slot->request.offset / BLOCK % NR_SLOTS] = slot;
  while ((slot = copy->waiting[copy->summed / BLOCK % NR_SLOTS])
         && slot->request.offset == copy->summed) {
    copy->waiting[copy->summed / BLOCK % NR_SLOTS] = NULL;
    g_checksum_update (copy->checksum, slot->buf,
                       (gssize) slot->request.length);
    copy->summed += slot->request.length;
    fill (copy, slot);
  }
}

/* Give a free slot its next request. */
static void
fill (struct copy *copy, struct slot *slot)
{
  if (copy->result < 0)
    return;
  if (copy->phase == WRITING)
    next_write (copy, slot);
  else if (copy->phase == READING)
    next_read (copy, slot);
}

static void
begin (struct copy *copy, enum phase phase)
{
  copy->phase = phase;
  copy->next_offset = 0;
  if (phase == FLUSHING)
    submit (copy, &copy->slots[0], PLOOP_FLUSH, 0, 0);
  else
    for (unsigned i = 0; i < NR_SLOTS; i++)
      fill (copy, &copy->slots[i]);
}

/* Nothing is in flight: what comes after this phase? */
static void
advance (struct copy *copy)
{
  while (copy->nr_in_flight == 0 && copy->phase != ENDED) {
    if (copy->result < 0)
      copy->phase = ENDED;
    else
      begin (copy, copy->phase + 1);
  }
  if (copy->phase == ENDED)
    ev_break (copy->loop, EVBREAK_ALL);
}

static void
on_ring (struct ev_loop *loop, ev_async *ring, int events)
{
  struct copy *copy = ring->data;
  struct slot *slot;

  (void) loop;
  (void) events;
  g_mutex_lock (&copy->lock);
  slot = g_steal_pointer (&copy->done);
  g_mutex_unlock (&copy->lock);
  while (slot) {
    struct slot *next = slot->next;

    copy->nr_in_flight--;
    if (slot->result < 0 && copy->result == 0)
      copy->result = slot->result;
    if (copy->phase == READING && copy->result == 0)
      sum (copy, slot);
    else
      fill (copy, slot);
    slot = next;
  }
  advance (copy);
}

static int
run (struct copy *copy)
{
  copy->loop = ev_loop_new (EVFLAG_AUTO);
  ev_async_init (&copy->ring, on_ring);
  copy->ring.data = copy;
  ev_async_start (copy->loop, &copy->ring);
  begin (copy, WRITING);
  advance (copy);
  if (copy->phase != ENDED)
    ev_run (copy->loop, 0);
  ev_loop_destroy (copy->loop);
  return copy->result;
}

static int
copy_and_print (const char *raw, const char *path)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (GChecksum) checksum = g_checksum_new (G_CHECKSUM_SHA256);
  g_autofree struct slot *slots = g_new0 (struct slot, NR_SLOTS);
  struct copy copy = { .checksum = checksum, .slots = slots };
  int r;

  copy.image = ploop_open (path, NULL, &error);
  if (!copy.image) {
    fprintf (stderr, "async-copy: %s\n", error->message);
    return -1;
  }
  copy.size = ploop_size (copy.image);
  copy.raw_fd = open (raw, O_RDONLY);
  g_mutex_init (&copy.lock);
  r = run (&copy);
  if (r < 0)
    fprintf (stderr, "async-copy: %s\n", g_strerror (-r));
  else
    printf ("%s\n", g_checksum_get_string (checksum));
  g_mutex_clear (&copy.lock);
  close (copy.raw_fd);
  if (ploop_close (copy.image, &error) == -1) {
    fprintf (stderr, "async-copy: %s\n", error->message);
    return -1;
  }
  return r;
}

int
main (int argc, char *argv[])
{
  if (argc != 3) {
    fprintf (stderr, "usage: async-copy RAW IMAGE\n");
    return 2;
  }
  return copy_and_print (argv[1], argv[2]) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
