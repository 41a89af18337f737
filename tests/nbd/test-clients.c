/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Proves that clients that die, at any byte of what they send, harm nobody but
 * themselves: in the handshake, inside the header of a request, in the middle of a
 * write's payload, and with requests in flight.  Meanwhile others read and write,
 * checked against the model.  What was not sent in full is never written, not even
 * in part; the server keeps no descriptor and no thread of those that are gone.
 *
 * nbdkit 1.32 may abort by an assertion of its own (raw_send_socket: sock >= 0) when
 * a client dies with requests in flight, one of them is enough.  So these come last,
 * and by themselves: then the image must be as after any other crash.
 */

#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "disk.h"
#include "harness.h"
#include "image.h"
#include "load.h"
#include "server.h"
#include "wire.h"

/* The disk is the model's up to here; behind it, each mortal has blocks of its own. */
#define MODEL_SIZE (24 * MIB)
#define BLOCK (64 * KIB)
#define NR_MORTALS 4u
#define BLOCKS_EACH 32u
#define NR_BLOCKS (NR_MORTALS * BLOCKS_EACH)

/* Of a write that is cut off. */
#define NEVER 0xEE

/* The most that are in flight when one dies. */
#define MANY 12u

/* Of the servers that they take with them. */
#define ROUNDS 8u

/* Requests in flight of each client that lives. */
#define DEPTH 4u

static const struct image_spec spec = {
  "clients", MADE_BY_PLOOP_IMG, 2, 64 * KIB, MODEL_SIZE + NR_BLOCKS * BLOCK,
  NULL,
};

/* What each block may have been filled with, all of it at once. */
static bool possible[NR_BLOCKS][256];

/* A client that dies again and again. */
struct mortal {
  const struct server *server;
  unsigned number;
  unsigned nr_lives;
  struct rng rng;
};

static unsigned nr_orderly, nr_aborted;

/* ---- How they die ------------------------------------------------------ */

/* With what was sent to it unread, and with or without a word that nothing more
 * will come.
 */
static void
die (struct mortal *mortal, int fd)
{
  static const int ways[] = { SHUT_WR, SHUT_RD, SHUT_RDWR };
  const uint64_t way = rng_below (&mortal->rng, 2 * ARRAY_SIZE (ways));

  if (way < ARRAY_SIZE (ways))
    shutdown (fd, ways[way]);
  close (fd);
}

/* Send a part of DATA, not all of it. */
static void
send_part (struct mortal *mortal, int fd, const uint8_t *data, size_t length)
{
  wire_send (fd, data, rng_below (&mortal->rng, length));
}

/* A whole handshake as it is sent, with all options at once. */
static size_t
build_handshake (uint8_t *bytes)
{
  static const uint8_t all[] = {
    0, 0, 0, 3,                 /* fixed new style, no zeroes */
    'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T', 0, 0, 0, 3, 0, 0, 0, 0,    /* list */
    'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T', 0, 0, 0, 6, 0, 0, 0, 6,    /* info */
    0, 0, 0, 0, 0, 0,
    'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T', 0, 0, 0, 7, 0, 0, 0, 6,    /* go */
    0, 0, 0, 0, 0, 0,
  };

  memcpy (bytes, all, sizeof all);
  return sizeof all;
}

static void
die_in_handshake (struct mortal *mortal)
{
  const int fd = wire_connect (mortal->server);
  uint8_t bytes[128];
  const size_t length = build_handshake (bytes);

  if (rng_percent (&mortal->rng, 50))
    wire_greet (fd);
  send_part (mortal, fd, bytes, length);
  die (mortal, fd);
}

static unsigned
choose_block (struct mortal *mortal)
{
  return mortal->number * BLOCKS_EACH
         + (unsigned) rng_below (&mortal->rng, BLOCKS_EACH);
}

/* A write that fills a block of MORTAL's; BYTES has room for its header too. */
static void
build_write (struct mortal *mortal, uint8_t *bytes, uint64_t cookie,
             uint8_t value, unsigned block)
{
  const uint16_t flags = rng_percent (&mortal->rng, 10) ? 1 : 0;

  wire_build_request (bytes, WIRE_WRITE, flags, cookie,
                      MODEL_SIZE + block * BLOCK, BLOCK);
  memset (bytes + WIRE_REQUEST_SIZE, value, BLOCK);
}

/* A value that few blocks have. */
static uint8_t
choose_value (struct mortal *mortal, unsigned block)
{
  const uint8_t value =
    (uint8_t) (1 + (block * 3 + rng_below (&mortal->rng, 3)) % 200);

  possible[block][value] = true;
  return value;
}

static void
die_in_a_write (struct mortal *mortal)
{
  static _Thread_local uint8_t bytes[WIRE_REQUEST_SIZE + BLOCK];
  const int fd = wire_open (mortal->server, "", NULL);
  const size_t length =
    rng_percent (&mortal->rng, 20) ? WIRE_REQUEST_SIZE : sizeof bytes;

  build_write (mortal, bytes, 1, NEVER, choose_block (mortal));
  send_part (mortal, fd, bytes, length);
  die (mortal, fd);
}

static void
die_with_some_in_flight (struct mortal *mortal)
{
  static _Thread_local uint8_t bytes[WIRE_REQUEST_SIZE + BLOCK];
  const int fd = wire_open (mortal->server, "", NULL);
  const uint64_t nr = 1 + rng_below (&mortal->rng, MANY);

  for (uint64_t i = 0; i < nr; i++) {
    const unsigned block = choose_block (mortal);

    if (rng_percent (&mortal->rng, 30)) {
      wire_build_request (bytes, WIRE_READ, 0, i, 0, BLOCK);
      wire_send (fd, bytes, WIRE_REQUEST_SIZE);
      continue;
    }
    build_write (mortal, bytes, i, choose_value (mortal, block), block);
    wire_send (fd, bytes, sizeof bytes);
  }
  build_write (mortal, bytes, nr, NEVER, choose_block (mortal));
  send_part (mortal, fd, bytes, sizeof bytes);
  die (mortal, fd);
}

static void *
live (void *arg)
{
  struct mortal *mortal = arg;

  for (unsigned i = 0; i < mortal->nr_lives; i++)
    if (rng_percent (&mortal->rng, 50))
      die_in_handshake (mortal);
    else
      die_in_a_write (mortal);
  return NULL;
}

/* ---- What they leave --------------------------------------------------- */

/* Entries of /proc/PID/NAME. */
static unsigned
count_entries (const struct server *server, const char *name)
{
  char *path = format_string ("/proc/%d/%s", (int) server_pid (server), name);
  DIR *dir = opendir (path);
  unsigned nr = 0;

  if (dir == NULL)
    fail ("%s: %m", path);
  while (readdir (dir) != NULL)
    nr++;
  closedir (dir);
  free (path);
  return nr;
}

/* Those that go may take a moment. */
static void
expect_at_most (const struct server *server, const char *name, unsigned most)
{
  const double limit = now_seconds () + HANG_SECONDS;

  while (count_entries (server, name) > most) {
    if (now_seconds () > limit)
      fail ("/proc/PID/%s: %u entries, must be %u once those clients have gone",
            name, count_entries (server, name), most);
    poll_pause ();
  }
}

static void
check_block (const uint8_t *data, unsigned block)
{
  for (size_t sector = 0; sector < BLOCK; sector += 512) {
    const uint8_t value = data[sector];

    if (value != 0 && !possible[block][value])
      fail ("block %u + %zu is 0x%02x, which nobody wrote%s", block, sector,
            value, value == NEVER ? " in full" : "");
    for (size_t i = 1; i < 512; i++)
      if (data[sector + i] != value)
        fail ("block %u + %zu is 0x%02x among 0x%02x", block, sector + i,
              data[sector + i], value);
  }
}

static void
check_blocks (struct nbd_handle *nbd)
{
  uint8_t *buf = malloc (BLOCK);

  if (buf == NULL)
    abort ();
  for (unsigned block = 0; block < NR_BLOCKS; block++) {
    memset (buf, 0xDD, BLOCK);
    if (nbd_pread (nbd, buf, BLOCK, MODEL_SIZE + block * BLOCK, 0) == -1)
      fail_nbd ("nbd_pread");
    check_block (buf, block);
  }
  free (buf);
}

/* ---- The rounds -------------------------------------------------------- */

static struct load
make_load (struct disk *disk, const struct server *server, uint64_t stream)
{
  return (struct load) {
    .disk = disk, .server = server, .nr_connections = 2, .depth = DEPTH,
    .length = disk->size, .stripe = 4096, .max_length = 128 * KIB,
    .stream = stream, .read_percent = 50, .aligned = true,
    .counts = load_counts_new (),
  };
}

static void
test_storm (const char *path, struct disk *disk)
{
  struct server *server = server_start (path, 0);
  struct load load = make_load (disk, server, 1);
  struct mortal mortals[NR_MORTALS];
  pthread_t threads[NR_MORTALS];
  unsigned nr_files, nr_threads;
  struct image_state state;
  struct load_run *run;
  struct nbd_handle *nbd;

  say ("a storm of clients that die");
  server_disconnect (server_connect (server));
  nr_files = count_entries (server, "fd");
  nr_threads = count_entries (server, "task");
  load.nr_requests = scaled (4000);
  run = load_start (&load);
  for (unsigned i = 0; i < NR_MORTALS; i++) {
    mortals[i] = (struct mortal) {
      .server = server, .number = i, .nr_lives = scaled (400),
    };
    rng_init (&mortals[i].rng, 100 + i);
    if (pthread_create (&threads[i], NULL, live, &mortals[i]) != 0)
      fail ("pthread_create");
  }
  for (unsigned i = 0; i < NR_MORTALS; i++)
    pthread_join (threads[i], NULL);
  load_join (run);
  expect_at_most (server, "fd", nr_files);
  /* liburcu starts a thread of its own when it is first needed. */
  expect_at_most (server, "task", nr_threads + 1);

  nbd = server_connect (server);
  disk_compare_nbd (disk, nbd, disk->size, 0);
  check_blocks (nbd);
  server_disconnect (nbd);
  server_stop (server);
  image_expect_clean (path, 0, &state);
}

/* They die until nbdkit does, or ROUNDS times. */
static bool
die_often (struct server *server, struct mortal *mortal, unsigned rounds)
{
  struct nbd_handle *nbd;

  for (unsigned i = 0; i < rounds; i++) {
    die_with_some_in_flight (mortal);
    nbd = server_try_connect (server);
    if (nbd == NULL)
      return false;
    nbd_close (nbd);
  }
  return true;
}

static void
wait_for_abort (struct server *server)
{
  const double limit = now_seconds () + HANG_SECONDS;

  while (!server_was_aborted_by_nbdkit (server)) {
    if (now_seconds () > limit)
      fail ("the server lives, and serves nobody");
    poll_pause ();
  }
}

static void
test_in_flight (const char *path, struct disk *disk, unsigned round)
{
  struct server *server = server_start (path, 0);
  struct load load = make_load (disk, server, 10 + round);
  struct mortal mortal = { .server = server, .number = round % NR_MORTALS };
  struct image_state state;
  struct load_run *run;
  struct nbd_handle *nbd;
  bool aborted = false;

  load.may_break = true;
  run = load_start (&load);
  rng_init (&mortal.rng, 200 + round);
  if (die_often (server, &mortal, 6))
    aborted = server_stop_or_aborted (server);
  else {
    wait_for_abort (server);
    aborted = true;
  }
  load_join (run);
  if (aborted) {
    nr_aborted++;
    image_expect_sound (path, &state);
  }
  else
    nr_orderly++;
  server = server_start (path, 0);
  nbd = server_connect (server);
  disk_settle (disk, nbd, true);
  check_blocks (nbd);
  server_disconnect (nbd);
  server_stop (server);
}

/* A server that only reads leaves the mark of one that has died. */
static void
write_last (const char *path, struct disk *disk)
{
  struct server *server = server_start (path, 0);
  struct nbd_handle *nbd = server_connect (server);
  const uint8_t sector[512] = { 1, 2, 3 };

  disk_submit (disk, sector, sizeof sector, 0);
  if (nbd_pwrite (nbd, sector, sizeof sector, 0, 0) == -1)
    fail_nbd ("nbd_pwrite");
  disk_answer (disk, sizeof sector, 0);
  disk_compare_nbd (disk, nbd, disk->size, 0);
  check_blocks (nbd);
  server_disconnect (nbd);
  server_stop (server);
}

int
main (void)
{
  struct image_state state;
  struct disk *disk;
  char *path;

  test_begin ("test-clients");
  test_requires ("qemu-img");
  path = image_make (&spec);
  disk = disk_new (MODEL_SIZE, spec.cluster_size);
  test_storm (path, disk);
  for (unsigned i = 0; i < scaled (ROUNDS); i++)
    test_in_flight (path, disk, i);
  say ("with requests in flight: %u orderly ends, %u aborted by nbdkit",
       nr_orderly, nr_aborted);
  write_last (path, disk);
  image_expect_clean (path, scaled (ROUNDS) * (MANY + 2 * DEPTH), &state);
  disk_free (disk);
  free (path);
  return test_end ();
}
