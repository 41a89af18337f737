/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The load generator; see load.h.  A connection's thread owns its libnbd
 * handle and its slots.  The hard thing is the rule that keeps the model
 * exact: a request is sent only when none in flight of the same connection
 * overlaps it (two reads may, as long as nothing is trimmed: the one that is
 * answered first need not be the one that saw the zeros last), and no other
 * connection writes to its bytes.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <libnbd.h>

#include "harness.h"
#include "load.h"

#define MAX_DEPTH 32
#define SECTOR 512u
#define POISON 0xEE

enum kind {
  IDLE, READ, READ_NEIGHBOURS, EXTENTS, CACHE, WRITE, WRITE_ZEROS, ZERO, TRIM,
  FLUSH,
};

static const char *const kind_names[] = {
  "idle", "read", "read across", "block status", "prefetch", "write",
  "write of zeros", "zero", "trim", "flush",
};

struct connection;

struct slot {
  struct connection *connection;
  enum kind kind;
  uint64_t offset, length;
  uint32_t flags;
  uint8_t *buf;                 /* LENGTH bytes, allocated for each request */
};

struct connection {
  const struct load *load;
  struct load_counts *counts;
  unsigned number;
  struct nbd_handle *nbd;
  struct rng rng;
  struct slot slots[MAX_DEPTH];
  unsigned nr_in_flight;
  bool can_fast_zero, can_cache, can_flush, can_fua, can_zero;
  bool broken;                  /* nothing more is sent */
  bool dead;                    /* and nothing more will be answered */
};

struct load_run {
  struct load load;
  pthread_t threads[LOAD_MAX_CONNECTIONS];
  struct connection connections[LOAD_MAX_CONNECTIONS];
};

struct load_counts *
load_counts_new (void)
{
  void *p = mmap (NULL, sizeof (struct load_counts), PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);

  if (p == MAP_FAILED)
    fail ("mmap: %m");
  return p;
}

bool
load_wait_answered (struct load_counts *counts, uint64_t n)
{
  double limit = now_seconds () + HANG_SECONDS;
  uint64_t last = 0, answered;

  while ((answered = atomic_load (&counts->answered)) < n) {
    if (answered != last)
      limit = now_seconds () + HANG_SECONDS;
    last = answered;
    if (now_seconds () > limit)
      return false;
    poll_pause ();
  }
  return true;
}

/* Whose byte is at OFFSET? */
static unsigned
owner_of (const struct load *load, uint64_t offset)
{
  return (unsigned) (offset / load->stripe % load->nr_connections);
}

/* A byte that only connection NUMBER writes, never 0. */
static uint8_t
tagged_byte (unsigned number, uint64_t random)
{
  return (uint8_t) (number << 5 | (1 + random % 31));
}

static void
fill_tagged (struct connection *c, uint8_t *buf, uint64_t length)
{
  uint64_t i, random = 0;

  for (i = 0; i < length; i++, random /= 31) {
    if (i % 8 == 0)
      random = rng_next (&c->rng);
    buf[i] = tagged_byte (c->number, random);
  }
}

/* Those that learn nothing from the bytes and leave them as they are. */
static bool
minds_no_bytes (enum kind kind)
{
  return kind == IDLE || kind == FLUSH || kind == CACHE;
}

static bool
overlaps_in_flight (const struct connection *c, enum kind kind,
                    uint64_t offset, uint64_t length)
{
  const struct slot *s;
  unsigned i;

  for (i = 0; i < c->load->depth; i++) {
    s = &c->slots[i];
    if (minds_no_bytes (kind) || minds_no_bytes (s->kind))
      continue;
    if (!c->load->space &&
        (kind == READ || kind == READ_NEIGHBOURS) &&
        (s->kind == READ || s->kind == READ_NEIGHBOURS))
      continue;
    if (offset < s->offset + s->length && s->offset < offset + length)
      return true;
  }
  return false;
}

/* Bytes of others carry the other's number, or were never written. */
static void
check_neighbours (const struct connection *c, const struct slot *s)
{
  const struct load *load = c->load;
  uint64_t i, at, run;
  unsigned owner;

  for (i = 0; i < s->length; i += run) {
    at = s->offset + i;
    owner = owner_of (load, at);
    run = load->stripe - at % load->stripe;
    if (run > s->length - i)
      run = s->length - i;
    if (owner == c->number) {
      disk_compare (load->disk, s->buf + i, run, at, "read across");
      continue;
    }
    for (uint64_t j = 0; j < run && load->tagged; j++)
      if (s->buf[i + j] != 0 && s->buf[i + j] >> 5 != owner)
        fail ("byte %" PRIu64 " (cluster %" PRIu64 " + %" PRIu64
              ") belongs to connection %u but reads as 0x%02x",
              at + j, (at + j) / load->disk->cluster_size,
              (at + j) % load->disk->cluster_size, owner, s->buf[i + j]);
  }
}

/* Called by libnbd with the answer to a block status request, before
 * answered is.
 */
static int
extents_came (void *opaque, const char *context, uint64_t offset,
              uint32_t *entries, size_t nr_entries, int *error)
{
  struct slot *s = opaque;

  (void) context;
  (void) error;
  if (offset != s->offset)
    fail ("extents of %" PRIu64 " instead of %" PRIu64, offset, s->offset);
  disk_expect_extents (s->connection->load->disk, entries, nr_entries,
                       s->length, s->offset);
  return 0;
}

/* What an answer to a request that succeeded means for the model. */
static void
succeeded (struct connection *c, struct slot *s)
{
  struct disk *disk = c->load->disk;

  switch (s->kind) {
  case READ:
    disk_compare (disk, s->buf, s->length, s->offset, "read");
    break;
  case READ_NEIGHBOURS:
    check_neighbours (c, s);
    break;
  case ZERO:
    atomic_fetch_add (&c->counts->zeroed, 1);
    if (s->flags & LIBNBD_CMD_FLAG_FAST_ZERO)
      atomic_fetch_add (&c->counts->zeroed_fast, 1);
    disk_answer (disk, s->length, s->offset);
    break;
  case WRITE:
  case WRITE_ZEROS:
    disk_answer (disk, s->length, s->offset);
    break;
  case TRIM:
    atomic_fetch_add (&c->counts->trimmed, 1);
    break;
  case IDLE:
  case EXTENTS:
  case CACHE:
  case FLUSH:
    break;
  }
}

/* Called by libnbd, on the connection's thread, when an answer has come. */
static int
answered (void *opaque, int *error)
{
  struct slot *s = opaque;
  struct connection *c = s->connection;
  const struct load *load = c->load;

  c->nr_in_flight--;
  if (*error == ENOTSUP && (s->flags & LIBNBD_CMD_FLAG_FAST_ZERO)) {
    atomic_fetch_add (&c->counts->not_fast, 1);
    atomic_fetch_add (&c->counts->answered, 1);
    disk_refuse (load->disk, s->length, s->offset);
  }
  else if (*error != 0) {
    if (!load->may_break)
      fail ("connection %u: %s of %" PRIu64 " bytes at %" PRIu64
            ", flags %" PRIu32 ": %s", c->number, kind_names[s->kind],
            s->length, s->offset, s->flags, strerror (*error));
    c->broken = true;
  }
  else {
    succeeded (c, s);
    atomic_fetch_add (&c->counts->answered, 1);
  }
  free (s->buf);
  s->buf = NULL;
  s->kind = IDLE;
  return 1;                     /* libnbd may forget the command */
}

static uint64_t
clamp (uint64_t value, uint64_t low, uint64_t high)
{
  return value < low ? low : value > high ? high : value;
}

/* A point of the region: where the front is, or anywhere. */
static uint64_t
choose_point (struct connection *c)
{
  const struct load *load = c->load;
  uint64_t cluster = load->disk->cluster_size;
  uint64_t first = load->offset / cluster;
  uint64_t count = (load->offset + load->length - 1) / cluster - first + 1;
  uint64_t n;

  if (rng_percent (&c->rng, 50))
    n = atomic_fetch_add (&c->counts->front, 1) / 16 % count;
  else
    n = rng_below (&c->rng, count);
  return clamp ((first + n) * cluster + (rng_percent (&c->rng, 50) ? 0 :
                                         rng_below (&c->rng, cluster)),
                load->offset, load->offset + load->length - 1);
}

/* The bytes of connection C about POINT, as [*LOW, *HIGH). */
static bool
own_bytes (const struct connection *c, uint64_t point, uint64_t *low,
           uint64_t *high)
{
  const struct load *load = c->load;
  uint64_t end = load->offset + load->length;
  uint64_t stripe;

  if (load->nr_connections == 1) {
    *low = load->offset;
    *high = end;
    return true;
  }
  stripe = point / load->stripe;
  stripe = stripe - stripe % load->nr_connections + c->number;
  *low = clamp (stripe * load->stripe, load->offset, end);
  *high = clamp ((stripe + 1) * load->stripe, load->offset, end);
  return *low < *high;
}

static uint64_t
choose_length (struct connection *c)
{
  static const uint64_t lengths[] = {
    1, 2, 511, 512, 513, 4095, 4096, 4097, 8192, 65536,
  };
  uint64_t cluster = c->load->disk->cluster_size;

  switch (rng_below (&c->rng, 5)) {
  case 0: return cluster - 1 + rng_below (&c->rng, 3);
  case 1: return 1 + rng_below (&c->rng, 2 * cluster);
  case 2: return 1 + rng_below (&c->rng, 16384);
  default: return lengths[rng_below (&c->rng, ARRAY_SIZE (lengths))];
  }
}

/* A distance from a border: on it, a byte beside it, or some way off. */
static int64_t
choose_skew (struct connection *c)
{
  static const int64_t skews[] = {
    0, 0, 0, -1, 1, -511, -512, -513, 511, 512, 513, -4095, -4096, -4097,
    4095, 4096, 4097,
  };

  return skews[rng_below (&c->rng, ARRAY_SIZE (skews))];
}

/* Choose bytes for a request; false when there are none. */
static bool
choose_range (struct connection *c, bool across, uint64_t *offset,
              uint64_t *length)
{
  const struct load *load = c->load;
  uint64_t point = choose_point (c);
  uint64_t low = load->offset, high = load->offset + load->length;
  uint64_t start, end;

  if (!across && !own_bytes (c, point, &low, &high))
    return false;
  if (!across && load->nr_connections > 1 && rng_percent (&c->rng, 25)) {
    start = low;
    end = high;
  }
  else {
    if (load->nr_connections > 1 && !across)
      point = low + rng_below (&c->rng, high - low);
    start = point + (uint64_t) choose_skew (c);
    if (start < low || start >= high)
      start = clamp (point, low, high - 1);
    end = clamp (start + choose_length (c), start + 1, high);
  }
  if (end - start > load->max_length)
    end = start + load->max_length;
  if (load->aligned) {
    start -= start % SECTOR;
    end -= end % SECTOR;
    start = clamp (start, low, high);
    if (start >= end || start % SECTOR != 0)
      return false;
  }
  *offset = start;
  *length = end - start;
  return true;
}

/* Whole clusters of [LOW, HIGH), a few of them; false when it has none. */
static bool
choose_clusters (struct connection *c, uint64_t low, uint64_t high,
                 uint64_t *offset, uint64_t *length)
{
  const uint64_t cluster = c->load->disk->cluster_size;
  const uint64_t first = (low + cluster - 1) / cluster;
  uint64_t end = high / cluster;
  uint64_t from, nr;

  if (high == c->load->disk->size)
    end = (high + cluster - 1) / cluster;
  if (first >= end)
    return false;
  from = first + rng_below (&c->rng, end - first);
  nr = 1 + rng_below (&c->rng, end - from < 16 ? end - from : 16);
  if (rng_percent (&c->rng, 60))
    nr = 1;
  *offset = from * cluster;
  *length = clamp ((from + nr) * cluster, low, high) - *offset;
  return true;
}

/* Whole clusters are what is unmapped: half of those that may be should be. */
static bool
choose_bytes (struct connection *c, enum kind kind, uint64_t *offset,
              uint64_t *length)
{
  uint64_t low, high;

  if ((kind == TRIM || kind == WRITE_ZEROS ||
       (kind == ZERO && c->load->space)) &&
      rng_percent (&c->rng, 50) &&
      own_bytes (c, choose_point (c), &low, &high) &&
      choose_clusters (c, low, high, offset, length))
    return true;
  return choose_range (c, kind == READ_NEIGHBOURS, offset, length);
}

static enum kind
choose_space_kind (struct connection *c, bool reads)
{
  const uint64_t dice = rng_below (&c->rng, 100);

  if (reads)
    return dice < 15 ? EXTENTS : dice < 20 && c->can_cache ? CACHE : READ;
  return dice < 25 ? TRIM : dice < 50 ? ZERO : dice < 60 ? WRITE_ZEROS : WRITE;
}

static enum kind
choose_kind (struct connection *c)
{
  if (rng_percent (&c->rng, c->load->read_percent))
    return c->load->nr_connections > 1 && rng_percent (&c->rng, 25)
             ? READ_NEIGHBOURS
             : c->load->space ? choose_space_kind (c, true) : READ;
  if (rng_percent (&c->rng, 3) && c->can_flush)
    return FLUSH;
  if (c->load->space)
    return choose_space_kind (c, false);
  return rng_percent (&c->rng, 20) && c->can_zero ? ZERO : WRITE;
}

/* FUA now and then; for zeroes every mix of flags. */
static uint32_t
choose_flags (struct connection *c, enum kind kind)
{
  uint32_t fua =
    rng_percent (&c->rng, 4) && c->can_fua ? LIBNBD_CMD_FLAG_FUA : 0;
  uint32_t no_hole = rng_percent (&c->rng, 50) ? LIBNBD_CMD_FLAG_NO_HOLE : 0;
  uint32_t fast = c->load->space && c->can_fast_zero && kind == ZERO &&
                  rng_percent (&c->rng, 25) ? LIBNBD_CMD_FLAG_FAST_ZERO : 0;

  switch (kind) {
  case WRITE:
  case WRITE_ZEROS:
  case TRIM:
    return fua;
  case ZERO:
    return fua | no_hole | fast;
  default:
    return 0;
  }
}

static int64_t
send_request (struct connection *c, struct slot *s)
{
  nbd_completion_callback done = { .callback = answered, .user_data = s };
  nbd_extent_callback came = { .callback = extents_came, .user_data = s };
  struct disk *disk = c->load->disk;

  switch (s->kind) {
  case READ:
  case READ_NEIGHBOURS:
    memset (s->buf, POISON, s->length);
    return nbd_aio_pread (c->nbd, s->buf, s->length, s->offset, done, 0);
  case EXTENTS:
    return nbd_aio_block_status (c->nbd, s->length, s->offset, came, done, 0);
  case CACHE:
    return nbd_aio_cache (c->nbd, s->length, s->offset, done, 0);
  case WRITE:
    fill_tagged (c, s->buf, s->length);
    disk_submit (disk, s->buf, s->length, s->offset);
    return nbd_aio_pwrite (c->nbd, s->buf, s->length, s->offset, done,
                           s->flags);
  case WRITE_ZEROS:
    memset (s->buf, 0, s->length);
    disk_submit (disk, NULL, s->length, s->offset);
    return nbd_aio_pwrite (c->nbd, s->buf, s->length, s->offset, done,
                           s->flags);
  case ZERO:
    disk_submit (disk, NULL, s->length, s->offset);
    return nbd_aio_zero (c->nbd, s->length, s->offset, done, s->flags);
  case TRIM:
    if (!c->load->trims_do_nothing)
      disk_trim (disk, s->length, s->offset);
    return nbd_aio_trim (c->nbd, s->length, s->offset, done, s->flags);
  case FLUSH:
    return nbd_aio_flush (c->nbd, done, 0);
  case IDLE:
    break;
  }
  abort ();
}

/* Those that carry data, either way. */
static bool
has_buffer (enum kind kind)
{
  return kind == READ || kind == READ_NEIGHBOURS || kind == WRITE ||
         kind == WRITE_ZEROS;
}

/* Start one request in the free slot S.  False when none was found that may be
 * in flight together with the others.
 */
static bool
start_request (struct connection *c, struct slot *s)
{
  enum kind kind;
  uint64_t offset = 0, length = 0;
  unsigned tries;

  for (tries = 0; tries < 8; tries++) {
    kind = choose_kind (c);
    if (kind == FLUSH)
      break;
    if (choose_bytes (c, kind, &offset, &length) &&
        !overlaps_in_flight (c, kind, offset, length))
      break;
  }
  if (tries == 8)
    return false;

  s->kind = kind;
  s->offset = offset;
  s->length = length;
  s->flags = choose_flags (c, kind);
  s->buf = has_buffer (kind) ? malloc (length) : NULL;
  c->nr_in_flight++;
  if (send_request (c, s) == -1) {
    if (!c->load->may_break)
      fail_nbd (kind_names[kind]);
    /* When libnbd took it, answered was called and the slot is free. */
    if (s->kind != IDLE) {
      c->nr_in_flight--;
      free (s->buf);
      s->kind = IDLE;
    }
    c->broken = true;
    return false;
  }
  return true;
}

/* May this connection send one more? */
static bool
take_ticket (struct connection *c)
{
  return atomic_fetch_add (&c->counts->issued, 1) < c->load->nr_requests ||
         c->load->nr_requests == 0;
}

static void
wait_for_answers (struct connection *c)
{
  int r = nbd_poll (c->nbd, HANG_SECONDS * 1000);

  if (r == 0)
    fail ("connection %u: no answer to %u requests for %d seconds",
          c->number, c->nr_in_flight, HANG_SECONDS);
  if (r == -1) {
    if (!c->load->may_break)
      fail_nbd ("nbd_poll");
    c->broken = true;
    c->dead = true;
  }
}

static struct slot *
free_slot (struct connection *c)
{
  unsigned i;

  for (i = 0; i < c->load->depth; i++)
    if (c->slots[i].kind == IDLE)
      return &c->slots[i];
  return NULL;
}

static void *
run_connection (void *arg)
{
  struct connection *c = arg;
  bool ended = false;
  struct slot *s;
  unsigned i;

  while (!c->dead && !(ended && c->nr_in_flight == 0)) {
    while (!ended && !c->broken && (s = free_slot (c)) != NULL) {
      if (!take_ticket (c))
        ended = true;
      else if (!start_request (c, s))
        break;
    }
    if (c->nr_in_flight > 0)
      wait_for_answers (c);
    ended = ended || c->broken;
  }
  if (c->broken) {
    nbd_close (c->nbd);         /* calls answered for what is in flight */
    for (i = 0; i < c->load->depth; i++)
      free (c->slots[i].buf);
  }
  else
    server_disconnect (c->nbd);
  return NULL;
}

static void
connect_connection (struct connection *c)
{
  const struct load *load = c->load;

  c->nbd = load->uri
             ? server_connect_uri (load->uri)
             : server_connect_to (load->server,
                                  load->export ? load->export : "");
  c->can_fast_zero = nbd_can_fast_zero (c->nbd) == 1;
  c->can_cache = nbd_can_cache (c->nbd) == 1;
  c->can_flush = nbd_can_flush (c->nbd) == 1;
  c->can_fua = nbd_can_fua (c->nbd) == 1;
  c->can_zero = nbd_can_zero (c->nbd) == 1;
}

struct load_run *
load_start (const struct load *load)
{
  struct load_run *run = calloc (1, sizeof *run);
  struct connection *c;
  unsigned i, j;

  if (run == NULL)
    abort ();
  if (load->nr_connections > LOAD_MAX_CONNECTIONS || load->depth > MAX_DEPTH)
    fail ("too many connections or requests in flight");
  run->load = *load;
  if (run->load.counts == NULL)
    run->load.counts = load_counts_new ();
  atomic_store (&run->load.counts->issued, 0);
  if (run->load.nr_connections == 1)
    run->load.stripe = load->disk->size;
  for (i = 0; i < load->nr_connections; i++) {
    c = &run->connections[i];
    c->load = &run->load;
    c->counts = run->load.counts;
    c->number = i;
    connect_connection (c);
    rng_init (&c->rng, load->stream * LOAD_MAX_CONNECTIONS + i);
    for (j = 0; j < load->depth; j++)
      c->slots[j].connection = c;
  }
  for (i = 0; i < load->nr_connections; i++)
    if (pthread_create (&run->threads[i], NULL, run_connection,
                        &run->connections[i]) != 0)
      fail ("pthread_create");
  return run;
}

void
load_join (struct load_run *run)
{
  unsigned i;

  for (i = 0; i < run->load.nr_connections; i++)
    pthread_join (run->threads[i], NULL);
  free (run);
}

void
load_run (const struct load *load)
{
  load_join (load_start (load));
}
