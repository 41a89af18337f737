/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Sending a trace; see replay.h.  One thread has all connections, in turn, so the order
 * in which requests are sent is that of the trace.  A request waits for those in flight
 * that it overlaps: a guest's kernel does that too, and only so is it known what must be
 * read.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include <libnbd.h>

#include "harness.h"
#include "replay.h"
#include "server.h"

struct slot {
  struct sender *sender;
  const struct trace_request *request;  /* NULL: free */
  uint8_t *buf;
};

struct sender {
  const struct replay *replay;
  struct disk *disk;
  struct nbd_handle *connections[REPLAY_MAX_CONNECTIONS];
  struct slot slots[REPLAY_MAX_DEPTH];
  unsigned nr_in_flight;
  struct rng rng;
};

static bool
has_bytes (const struct trace_request *request)
{
  return request->kind != TRACE_FLUSH && request->kind != TRACE_BARRIER;
}

/* ---- Answers ----------------------------------------------------------- */

static int
answered (void *opaque, int *error)
{
  struct slot *slot = opaque;
  struct sender *sender = slot->sender;
  const struct trace_request *request = slot->request;

  if (*error != 0)
    fail ("%c of %" PRIu64 " bytes at %" PRIu64 ": %s", request->kind,
          request->length, request->offset, strerror (*error));
  if (request->kind == TRACE_READ)
    disk_compare (sender->disk, slot->buf, request->length, request->offset,
                  "replay");
  else if (request->kind == TRACE_WRITE || request->kind == TRACE_ZERO)
    disk_answer (sender->disk, request->length, request->offset);
  free (slot->buf);
  slot->buf = NULL;
  slot->request = NULL;
  sender->nr_in_flight--;
  return 1;
}

/* Until at least one answer has come. */
static void
wait_for_answer (struct sender *sender)
{
  const unsigned nr = sender->replay->nr_connections;
  const unsigned before = sender->nr_in_flight;
  struct pollfd fds[REPLAY_MAX_CONNECTIONS];

  while (sender->nr_in_flight == before) {
    for (unsigned i = 0; i < nr; i++) {
      const unsigned direction =
        nbd_aio_get_direction (sender->connections[i]);

      fds[i].fd = nbd_aio_get_fd (sender->connections[i]);
      fds[i].events =
        (short) ((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                 (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
    }
    if (poll (fds, nr, HANG_SECONDS * 1000) <= 0)
      fail ("no answer to %u requests", sender->nr_in_flight);
    for (unsigned i = 0; i < nr; i++)
      if (fds[i].revents != 0 && nbd_poll (sender->connections[i], 0) == -1)
        fail_nbd ("replay");
  }
}

/* ---- Requests ---------------------------------------------------------- */

static bool
overlaps (const struct sender *sender, const struct trace_request *request)
{
  for (unsigned i = 0; i < sender->replay->depth; i++) {
    const struct trace_request *other = sender->slots[i].request;

    if (other != NULL && has_bytes (other) && has_bytes (request) &&
        request->offset < other->offset + other->length &&
        other->offset < request->offset + request->length)
      return true;
  }
  return false;
}

static struct slot *
free_slot (struct sender *sender)
{
  for (unsigned i = 0; i < sender->replay->depth; i++)
    if (sender->slots[i].request == NULL)
      return &sender->slots[i];
  return NULL;
}

static void
fill (struct sender *sender, uint8_t *buf, uint64_t length)
{
  uint64_t random;

  for (uint64_t i = 0; i < length; i += 8) {
    random = rng_next (&sender->rng);
    memcpy (buf + i, &random, length - i < 8 ? length - i : 8);
  }
}

static int64_t
send_request (struct sender *sender, struct nbd_handle *nbd, struct slot *slot)
{
  const struct trace_request *r = slot->request;
  const nbd_completion_callback done = {
    .callback = answered, .user_data = slot,
  };
  const uint32_t flags = r->fua ? LIBNBD_CMD_FLAG_FUA : 0;

  switch (r->kind) {
  case TRACE_READ:
    memset (slot->buf, 0xEE, r->length);
    return nbd_aio_pread (nbd, slot->buf, r->length, r->offset, done, 0);
  case TRACE_WRITE:
    fill (sender, slot->buf, r->length);
    disk_submit (sender->disk, slot->buf, r->length, r->offset);
    return nbd_aio_pwrite (nbd, slot->buf, r->length, r->offset, done, flags);
  case TRACE_ZERO:
    disk_submit (sender->disk, NULL, r->length, r->offset);
    return nbd_aio_zero (nbd, r->length, r->offset, done, flags);
  case TRACE_TRIM:
    disk_trim (sender->disk, r->length, r->offset);
    return nbd_aio_trim (nbd, r->length, r->offset, done, 0);
  default:
    return nbd_aio_flush (nbd, done, 0);
  }
}

/* NUMBER is its place in the trace. */
static void
start_request (struct sender *sender, size_t number)
{
  const struct trace_request *request =
    &sender->replay->trace->requests[number];
  struct slot *slot;

  while ((slot = free_slot (sender)) == NULL || overlaps (sender, request))
    wait_for_answer (sender);
  slot->request = request;
  slot->buf = request->kind == TRACE_READ || request->kind == TRACE_WRITE
                ? malloc (request->length) : NULL;
  sender->nr_in_flight++;
  if (send_request (sender,
                    sender->connections[number % sender->replay->nr_connections],
                    slot) == -1)
    fail_nbd ("replay");
}

static void
wait_for_all (struct sender *sender)
{
  while (sender->nr_in_flight > 0)
    wait_for_answer (sender);
}

/* ---- All of it --------------------------------------------------------- */

/* What is read before it is written must be known. */
static void
load_touched (const struct replay *replay, struct disk *disk,
              struct nbd_handle *nbd)
{
  for (size_t i = 0; i < replay->trace->nr_requests; i++) {
    const struct trace_request *r = &replay->trace->requests[i];

    if (!has_bytes (r))
      continue;
    if (r->offset > disk->size || r->length > disk->size - r->offset)
      fail ("request %zu of the trace is beyond the disk of %" PRIu64 " bytes",
            i + 1, disk->size);
    disk_load_nbd (disk, nbd, r->length, r->offset);
  }
}

void
replay_compare (const struct replay *replay, struct disk *disk)
{
  struct nbd_handle *nbd = server_connect_uri (replay->uri);

  for (size_t i = 0; i < replay->trace->nr_requests; i++) {
    const struct trace_request *r = &replay->trace->requests[i];

    if (has_bytes (r))
      disk_compare_nbd (disk, nbd, r->length, r->offset);
  }
  server_disconnect (nbd);
}

struct disk *
replay_run (const struct replay *replay)
{
  struct sender sender = { .replay = replay };

  rng_init (&sender.rng, 2);
  for (unsigned i = 0; i < replay->nr_connections; i++)
    sender.connections[i] = server_connect_uri (replay->uri);
  for (unsigned i = 0; i < replay->depth; i++)
    sender.slots[i].sender = &sender;
  sender.disk =
    disk_new ((uint64_t) nbd_get_size (sender.connections[0]), 64 * KIB);
  disk_expect_trims (sender.disk);
  load_touched (replay, sender.disk, sender.connections[0]);
  for (size_t i = 0; i < replay->trace->nr_requests; i++)
    if (replay->trace->requests[i].kind == TRACE_BARRIER)
      wait_for_all (&sender);
    else
      start_request (&sender, i);
  wait_for_all (&sender);
  for (unsigned i = 0; i < replay->nr_connections; i++)
    server_disconnect (sender.connections[i]);
  return sender.disk;
}
