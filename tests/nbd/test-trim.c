/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Proves that trimming loses nothing but what was trimmed, and gives space back.
 *
 * Three tests of each image, with the server's file limited so that it has room
 * for part of the disk only, and every cluster has to be used again and again:
 *
 *   apart     each connection has clusters of its own, so a model knows what
 *             every byte must be; as it never has more clusters in use than it
 *             has a right to, there must always be space
 *   together  all write, trim, zero and read everywhere at once; each byte has
 *             one value that may ever be written to it, so what is read must be
 *             that or zero, whoever won; here the space does run out.  Then
 *             all is trimmed, and all the space must be there again
 *   the end   everything is trimmed: the file shrinks, at first by holes, and
 *             when the server ends by its size
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "disk.h"
#include "harness.h"
#include "image.h"
#include "server.h"

#define NR_CONNECTIONS 8

/* Clusters in turn that are one connection's. */
#define STRIPE 6

/* Percent of the disk's clusters that the file has room for. */
#define ROOM_PERCENT 60

#define POISON 0xEE

struct spec {
  struct image_spec image;
  const char *parameters;
};

static const struct spec specs[] = {
  { { "v2-32k", MADE_BY_PLOOP_IMG, 2, 32 * KIB, 24 * MIB + 512, NULL },
    "prealloc=1M" },
  { { "v1-64k", MADE_BY_PLOOP_IMG, 1, 64 * KIB, 32 * MIB - 512, NULL },
    "fast-path=off prealloc=1M" },
  { { "q-258048", MADE_BY_QEMU, 2, 258048, 64 * MIB + 512, NULL },
    "prealloc-mode=truncate prealloc=4M" },
  { { "v2-32k-none", MADE_BY_PLOOP_IMG, 2, 32 * KIB, 16 * MIB + 3 * 512, NULL },
    "cache=none prealloc=512K" },
  { { "v2-1m", MADE_BY_PLOOP_IMG, 2, MIB, 80 * MIB + 512, NULL },
    "writeback-delay=20 prealloc=2M" },
};

static uint64_t next_stream;
static bool have_prlimit;

/* ---- The server -------------------------------------------------------- */

/* Serve PATH; its file may have LIMIT bytes at most, 0: any number. */
static struct server *
serve (const char *path, const char *parameters, uint64_t limit)
{
  static char *nbdkit, *outside;
  char *prefix, *all;
  struct server *server;

  if (nbdkit == NULL) {
    const char *n = getenv ("NBDKIT");
    const char *p = getenv ("PLOOP_PARAMETERS");

    nbdkit = format_string ("%s", n && *n ? n : "nbdkit");
    outside = format_string ("%s", p ? p : "");
  }
  prefix = limit && have_prlimit
             ? format_string ("prlimit --fsize=%" PRIu64 " %s", limit, nbdkit)
             : format_string ("%s", nbdkit);
  all = format_string ("%s %s", parameters, outside);
  setenv ("NBDKIT", prefix, 1);
  setenv ("PLOOP_PARAMETERS", all, 1);
  server = server_start (path, 0);
  setenv ("NBDKIT", nbdkit, 1);
  setenv ("PLOOP_PARAMETERS", outside, 1);
  free (prefix);
  free (all);
  return server;
}

/* ---- What all connections share ---------------------------------------- */

struct trimmed_disk {
  struct disk *disk;            /* `answered` is the model */
  uint8_t *loose;               /* by byte: trimmed, may be zero already */
  uint64_t nr_clusters;
  uint64_t quota;               /* clusters that a connection may have mapped */
  uint64_t room;                /* clusters that the file has room for */
  const struct server *server;
  uint64_t stream;
  atomic_uint tickets;
  unsigned nr_requests;
  atomic_uint nr_no_space;
};

struct connection {
  struct trimmed_disk *d;
  unsigned number;
  struct nbd_handle *nbd;
  struct rng rng;
  bool *mapped;                 /* by cluster, of ours */
  uint64_t nr_mapped;
  uint8_t *buf;
  uint64_t buf_size;
};

static bool
take_ticket (struct connection *c)
{
  return atomic_fetch_add (&c->d->tickets, 1) < c->d->nr_requests;
}

static uint32_t
choose_flags (struct connection *c)
{
  return rng_percent (&c->rng, 10) ? LIBNBD_CMD_FLAG_FUA : 0;
}

static void
run_connections (struct trimmed_disk *d, void *(*body) (void *))
{
  struct connection connections[NR_CONNECTIONS];
  pthread_t threads[NR_CONNECTIONS];

  d->stream = next_stream++;
  d->tickets = 0;
  for (unsigned i = 0; i < NR_CONNECTIONS; i++) {
    struct connection *c = &connections[i];

    *c = (struct connection) {
      .d = d,
      .number = i,
      .nbd = server_connect (d->server),
      .mapped = calloc (d->nr_clusters, sizeof *c->mapped),
      .buf_size = STRIPE * d->disk->cluster_size,
    };
    c->buf = malloc (c->buf_size);
    if (c->mapped == NULL || c->buf == NULL)
      abort ();
    rng_init (&c->rng, d->stream * NR_CONNECTIONS + i);
  }
  for (unsigned i = 0; i < NR_CONNECTIONS; i++)
    if (pthread_create (&threads[i], NULL, body, &connections[i]) != 0)
      fail ("pthread_create");
  for (unsigned i = 0; i < NR_CONNECTIONS; i++) {
    pthread_join (threads[i], NULL);
    server_disconnect (connections[i].nbd);
    free (connections[i].mapped);
    free (connections[i].buf);
  }
}

/* A range of [LOW, HIGH): sectors, or any bytes. */
static void
choose_range (struct connection *c, uint64_t low, uint64_t high,
              uint64_t *offset, uint64_t *length)
{
  uint64_t start = low + rng_below (&c->rng, high - low);
  uint64_t most = high - start < c->buf_size ? high - start : c->buf_size;
  uint64_t n = 1 + rng_below (&c->rng, most);

  if (rng_percent (&c->rng, 60))
    n = 1 + n % (16 * KIB);
  if (rng_percent (&c->rng, 60)) {
    start -= start % 512;
    n += 511 - (n + 511) % 512;
  }
  if (start < low)
    start = low;
  *offset = start;
  *length = n < high - start ? n : high - start;
}

/* Whole clusters of [LOW, HIGH), which begins with one. */
static void
choose_clusters (struct connection *c, uint64_t low, uint64_t high,
                 uint64_t *offset, uint64_t *length)
{
  const uint64_t size = c->d->disk->cluster_size;
  const uint64_t nr = (high - low + size - 1) / size;
  const uint64_t first = rng_below (&c->rng, nr);
  const uint64_t end = first + 1 + rng_below (&c->rng, nr - first);

  *offset = low + first * size;
  *length = (low + end * size < high ? low + end * size : high) - *offset;
}

/* ---- Apart ------------------------------------------------------------- */

/* A stripe of ours, as [*LOW, *HIGH). */
static void
choose_stripe (struct connection *c, uint64_t *low, uint64_t *high)
{
  const struct disk *disk = c->d->disk;
  const uint64_t bytes = STRIPE * disk->cluster_size;
  const uint64_t nr = (disk->size + bytes - 1) / bytes;
  const uint64_t ours = (nr - c->number + NR_CONNECTIONS - 1) / NR_CONNECTIONS;
  const uint64_t stripe =
    c->number + rng_below (&c->rng, ours) * NR_CONNECTIONS;

  *low = stripe * bytes;
  *high = *low + bytes < disk->size ? *low + bytes : disk->size;
}

/* Does the range have room in our quota?  Then its clusters are ours. */
static bool
claim (struct connection *c, uint64_t length, uint64_t offset)
{
  const uint64_t size = c->d->disk->cluster_size;
  uint64_t nr = 0;

  for (uint64_t i = offset / size; i <= (offset + length - 1) / size; i++)
    nr += !c->mapped[i];
  if (c->nr_mapped + nr > c->d->quota)
    return false;
  for (uint64_t i = offset / size; i <= (offset + length - 1) / size; i++)
    c->mapped[i] = true;
  c->nr_mapped += nr;
  return true;
}

/* A trim was answered: whole clusters are not ours any more. */
static void
disclaim (struct connection *c, uint64_t length, uint64_t offset)
{
  const struct disk *disk = c->d->disk;
  const uint64_t size = disk->cluster_size;
  uint64_t end = (offset + length) / size;

  if (offset + length == disk->size)
    end = c->d->nr_clusters;
  for (uint64_t i = (offset + size - 1) / size; i < end; i++)
    if (c->mapped[i]) {
      c->mapped[i] = false;
      c->nr_mapped--;
    }
}

static void
write_apart (struct connection *c, uint64_t length, uint64_t offset)
{
  struct trimmed_disk *d = c->d;
  uint64_t random = 0;

  for (uint64_t i = 0; i < length; i++, random >>= 8) {
    if (i % 8 == 0)
      random = rng_next (&c->rng) | UINT64_C (0x0101010101010101);
    c->buf[i] = (uint8_t) random;
  }
  if (nbd_pwrite (c->nbd, c->buf, length, offset, choose_flags (c)) == -1)
    fail_nbd ("write, with space for it");
  memset (d->loose + offset, 0, length);
  disk_submit (d->disk, c->buf, length, offset);
  disk_answer (d->disk, length, offset);
}

static void
zero_apart (struct connection *c, uint64_t length, uint64_t offset)
{
  struct trimmed_disk *d = c->d;
  const uint32_t no_hole =
    rng_percent (&c->rng, 50) ? LIBNBD_CMD_FLAG_NO_HOLE : 0;

  if (nbd_zero (c->nbd, length, offset, choose_flags (c) | no_hole) == -1)
    fail_nbd ("zero");
  memset (d->loose + offset, 0, length);
  disk_submit (d->disk, NULL, length, offset);
  disk_answer (d->disk, length, offset);
}

static void
trim_apart (struct connection *c, uint64_t length, uint64_t offset)
{
  struct trimmed_disk *d = c->d;

  if (nbd_trim (c->nbd, length, offset, choose_flags (c)) == -1)
    fail_nbd ("trim");
  memset (d->loose + offset, 1, length);
  disclaim (c, length, offset);
}

/* Compare BUF with the model.  What is loose may be zero or as before; it may
 * become zero later, too, but stays so.
 */
static void
compare_loosely (struct trimmed_disk *d, const uint8_t *buf, uint64_t length,
                 uint64_t offset)
{
  uint8_t *model = d->disk->answered;

  for (uint64_t i = offset; i < offset + length; i++) {
    if (d->loose[i] && buf[i - offset] == 0) {
      model[i] = d->disk->submitted[i] = 0;
      d->loose[i] = 0;
    }
  }
  disk_compare (d->disk, buf, length, offset, "read");
}

static void
read_apart (struct connection *c, uint64_t length, uint64_t offset)
{
  memset (c->buf, POISON, length);
  if (nbd_pread (c->nbd, c->buf, length, offset, 0) == -1)
    fail_nbd ("read");
  compare_loosely (c->d, c->buf, length, offset);
}

static void
one_apart (struct connection *c)
{
  uint64_t low, high, offset, length;
  const uint64_t dice = rng_below (&c->rng, 100);

  choose_stripe (c, &low, &high);
  choose_range (c, low, high, &offset, &length);
  if (dice < 40 && claim (c, length, offset)) {
    write_apart (c, length, offset);
    return;
  }
  if (dice < 65) {
    /* Also when there was no room for a write. */
    if (dice < 58)
      choose_clusters (c, low, high, &offset, &length);
    trim_apart (c, length, offset);
  }
  else if (dice < 73)
    zero_apart (c, length, offset);
  else if (dice < 97)
    read_apart (c, length, offset);
  else if (nbd_flush (c->nbd, 0) == -1)
    fail_nbd ("flush");
}

static void *
run_apart (void *opaque)
{
  struct connection *c = opaque;

  while (take_ticket (c))
    one_apart (c);
  return NULL;
}

static void
compare_all_loosely (struct trimmed_disk *d)
{
  struct nbd_handle *nbd = server_connect (d->server);
  uint8_t *buf = malloc (MIB);

  if (buf == NULL)
    abort ();
  for (uint64_t offset = 0; offset < d->disk->size; offset += MIB) {
    const uint64_t left = d->disk->size - offset;
    const uint64_t n = left < MIB ? left : MIB;

    memset (buf, POISON, n);
    if (nbd_pread (nbd, buf, n, offset, 0) == -1)
      fail_nbd ("nbd_pread");
    compare_loosely (d, buf, n, offset);
  }
  free (buf);
  server_disconnect (nbd);
}

/* ---- Together ---------------------------------------------------------- */

/* The one byte that may ever be written at OFFSET, never 0.  Cluster sizes and
 * distances of clusters do not divide 251.
 */
static uint8_t
byte_at (uint64_t offset)
{
  return (uint8_t) (1 + (offset + offset / 4096 * 7) % 251);
}

static void
check_together (const uint8_t *buf, uint64_t length, uint64_t offset)
{
  for (uint64_t i = 0; i < length; i++)
    if (buf[i] != 0 && buf[i] != byte_at (offset + i))
      fail ("byte %" PRIu64 " is 0x%02x, was never anything but 0 or 0x%02x",
            offset + i, buf[i], byte_at (offset + i));
}

/* Only a lack of space may make a request fail. */
static void
expect_ok_or_no_space (struct connection *c, int r, const char *what)
{
  if (r == 0)
    return;
  if (nbd_get_errno () != ENOSPC)
    fail_nbd (what);
  atomic_fetch_add (&c->d->nr_no_space, 1);
}

static void
one_together (struct connection *c)
{
  const uint64_t bytes = STRIPE * c->d->disk->cluster_size;
  const uint64_t dice = rng_below (&c->rng, 100);
  uint64_t offset, length;
  /* All crowd together in a part that moves on. */
  uint64_t low = atomic_load (&c->d->tickets) / 64 * bytes
                 + rng_below (&c->rng, 4) * bytes;
  uint64_t high;

  if (rng_percent (&c->rng, 30))
    low = rng_next (&c->rng);
  low = low % c->d->disk->size / bytes * bytes;
  high = low + bytes < c->d->disk->size ? low + bytes : c->d->disk->size;
  choose_range (c, low, high, &offset, &length);
  if (dice < 45) {
    for (uint64_t i = 0; i < length; i++)
      c->buf[i] = byte_at (offset + i);
    expect_ok_or_no_space (c, nbd_pwrite (c->nbd, c->buf, length, offset,
                                          choose_flags (c)), "write");
  }
  else if (dice < 70) {
    if (dice < 65)
      choose_clusters (c, low, high, &offset, &length);
    if (nbd_trim (c->nbd, length, offset, choose_flags (c)) == -1)
      fail_nbd ("trim");
  }
  else if (dice < 78)
    expect_ok_or_no_space (c, nbd_zero (c->nbd, length, offset,
                                        choose_flags (c)), "zero");
  else if (dice < 98) {
    memset (c->buf, POISON, length);
    if (nbd_pread (c->nbd, c->buf, length, offset, 0) == -1)
      fail_nbd ("read");
    check_together (c->buf, length, offset);
  }
  else if (nbd_flush (c->nbd, 0) == -1)
    fail_nbd ("flush");
}

static void *
run_together (void *opaque)
{
  struct connection *c = opaque;

  while (take_ticket (c))
    one_together (c);
  return NULL;
}

static void
trim_all (struct trimmed_disk *d, struct nbd_handle *nbd)
{
  if (nbd_trim (nbd, d->disk->size, 0, 0) == -1)
    fail_nbd ("trim of the whole disk");
}

/* No cluster was lost: as many as the file has room for can be written. */
static void
use_all_room (struct trimmed_disk *d)
{
  struct nbd_handle *nbd = server_connect (d->server);
  const uint64_t nr = have_prlimit ? d->room : d->nr_clusters;
  char byte;

  trim_all (d, nbd);
  for (uint64_t i = 0; i < nr; i++) {
    const uint64_t offset = i * d->disk->cluster_size;

    byte = (char) byte_at (offset);
    if (nbd_pwrite (nbd, &byte, 1, offset, 0) == -1)
      fail ("all was trimmed, but write %" PRIu64 " of %" PRIu64 " failed: %s",
            i + 1, nr, nbd_get_error ());
  }
  server_disconnect (nbd);
}

/* ---- The end ----------------------------------------------------------- */

static uint64_t
disk_usage (const char *path)
{
  struct stat st;

  if (stat (path, &st) == -1)
    fail ("%s: %m", path);
  return (uint64_t) st.st_blocks * 512;
}

/* Fill the disk with data, trim it and flush twice: the file takes no more than
 * what is kept ready for new clusters.
 */
static void
test_shrinking (struct trimmed_disk *d, const struct spec *spec,
                const char *path)
{
  const uint64_t length = MIB;
  struct server *server = serve (path, spec->parameters, 0);
  struct nbd_handle *nbd = server_connect (server);
  double limit = now_seconds () + HANG_SECONDS;
  struct image_state state;
  uint8_t *buf = malloc (length);
  uint64_t full, bound;

  if (buf == NULL)
    abort ();
  memset (buf, 0x5a, length);
  for (uint64_t offset = 0; offset + length <= d->disk->size;
       offset += length)
    if (nbd_pwrite (nbd, buf, length, offset, 0) == -1)
      fail_nbd ("nbd_pwrite");
  free (buf);
  if (nbd_flush (nbd, 0) == -1)
    fail_nbd ("nbd_flush");
  full = disk_usage (path);
  bound = d->disk->size / 2;
  if (full < bound)
    fail ("%s: takes only %" PRIu64 " bytes when it is full", path, full);
  trim_all (d, nbd);
  for (unsigned i = 0; i < 2; i++)
    if (nbd_flush (nbd, 0) == -1)
      fail_nbd ("nbd_flush");
  while (disk_usage (path) > bound) {
    if (now_seconds () > limit)
      fail ("%s: all was trimmed, but it takes %" PRIu64 " bytes of %" PRIu64,
            path, disk_usage (path), full);
    poll_pause ();
  }
  disk_compare_nbd (d->disk, nbd, d->disk->size, 0);
  server_disconnect (nbd);
  server_stop (server);
  image_expect_clean (path, 0, &state);
  say ("  %" PRIu64 " bytes when full, %" PRIu64 " when trimmed, a file of %"
       PRIu64 " at the end", full, disk_usage (path), state.file_size);
  if (state.nr_allocated != 0)
    fail ("%s: %u clusters are left", path, state.nr_allocated);
  if (state.file_size > state.data_offset + d->disk->cluster_size)
    fail ("%s: is of %" PRIu64 " bytes without any data", path,
          state.file_size);
}

/* ---- An image ---------------------------------------------------------- */

static void
stop_and_check (struct trimmed_disk *d, struct server *server,
                const char *path)
{
  struct image_state state;

  server_stop (server);
  /* What was trimmed and not used again has left holes. */
  image_expect_clean (path, d->room, &state);
  say ("  %u of %u clusters allocated, %" PRIu64 " holes, file of %" PRIu64
       " bytes", state.nr_allocated, state.nr_clusters, state.nr_leaked,
       state.file_size);
  if (have_prlimit && state.nr_allocated + state.nr_leaked > d->room)
    fail ("%s: has more clusters than room", path);
}

/* Of parts of clusters, what was trimmed last may be punched only as the image
 * is closed: what had its old data until then is zero from then on, for ever.
 */
static void
compare_closed (struct trimmed_disk *d, const char *path)
{
  struct server *server = server_start (path, SERVER_READ_ONLY);

  d->server = server;
  compare_all_loosely (d);
  server_stop (server);
  disk_compare_qemu (d->disk, path);
}

static void
test_image (const struct spec *spec)
{
  char *path = image_make (&spec->image);
  struct image_state state;
  struct server *server;
  double begin = now_seconds ();
  uint64_t limit;
  struct trimmed_disk d = {
    .disk = disk_new (spec->image.size, spec->image.cluster_size),
    .loose = calloc (1, spec->image.size),
    .nr_clusters = (spec->image.size + spec->image.cluster_size - 1)
                   / spec->image.cluster_size,
  };

  if (d.loose == NULL)
    abort ();
  say ("%s, %s", spec->image.name, spec->parameters);
  image_read (path, &state);
  d.room = d.nr_clusters * ROOM_PERCENT / 100;
  d.quota = d.room / NR_CONNECTIONS;
  limit = state.data_offset + d.room * d.disk->cluster_size;

  d.server = server = serve (path, spec->parameters, limit);
  d.nr_requests = scaled (6000);
  run_connections (&d, run_apart);
  compare_all_loosely (&d);
  stop_and_check (&d, server, path);
  compare_closed (&d, path);

  /* Holes that were left are not used again: an image without any. */
  free (path);
  path = image_make (&spec->image);
  d.server = server = serve (path, spec->parameters, limit);
  run_connections (&d, run_together);
  say ("  together: %u requests found no space",
       atomic_load (&d.nr_no_space));
  use_all_room (&d);
  stop_and_check (&d, server, path);

  memset (d.disk->answered, 0, d.disk->size);
  test_shrinking (&d, spec, path);
  say ("%s: %.1f s", spec->image.name, now_seconds () - begin);
  disk_free (d.disk);
  free (d.loose);
  free (path);
}

int
main (void)
{
  test_begin ("test-trim");
  test_requires ("qemu-img");
  have_prlimit = run ("command -v prlimit") == 0;
  if (!have_prlimit)
    say ("no prlimit: the file is not limited");
  for (size_t i = 0; i < ARRAY_SIZE (specs); i++)
    if (chosen (i, ARRAY_SIZE (specs)))
      test_image (&specs[i]);
  return test_end ();
}
