/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Proves that requests are served at the same time, on one connection and on many,
 * and that it does not matter how: with one thread a connection, with a few or with
 * more than there are requests, and with filters in front that make reads or writes
 * slow, or let only one through.  All of it against the model.  That answers come in
 * another order than the requests is looked at by itself.
 */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "disk.h"
#include "harness.h"
#include "image.h"
#include "load.h"
#include "server.h"
#include "wire.h"

static const struct image_spec spec = {
  "parallel", MADE_BY_PLOOP_IMG, 2, 64 * KIB, 40 * MIB + 512, NULL,
};

/* How the server is run, and how many requests that may take. */
static const struct way {
  const char *options;
  unsigned nr_requests;
} ways[] = {
  { "--threads=1", 1500 },
  { "--threads=3", 1500 },
  { "--threads=64", 1500 },
  { "--filter=delay delay-read=3ms delay-write=1ms", 600 },
  { "--filter=delay delay-write=3ms delay-zero=1ms delay-trim=2ms --threads=64", 600 },
  { "--filter=noparallel", 800 },
  { "--filter=noparallel serialize=requests --filter=delay delay-read=1ms", 300 },
};

static void
test_way (const char *path, struct disk *disk, const struct way *way,
          uint64_t stream)
{
  struct server *server = server_start_with (path, 0, way->options);
  struct load load = {
    .disk = disk, .server = server, .nr_connections = 1, .depth = 32,
    .nr_requests = scaled (way->nr_requests), .length = disk->size,
    .max_length = 256 * KIB, .stream = stream, .read_percent = 50,
    .stripe = 8 * KIB, .space = true,
  };
  struct nbd_handle *nbd;

  say ("%s", way->options);
  load_run (&load);
  load.nr_connections = LOAD_MAX_CONNECTIONS;
  load.depth = 8;
  load.stream++;
  load_run (&load);
  nbd = server_connect (server);
  disk_compare_nbd (disk, nbd, disk->size, 0);
  server_disconnect (nbd);
  server_stop (server);
}

/* Writes that come after slow reads are answered before the last of them. */
static void
test_out_of_order (const char *path)
{
  enum { NR_READS = 4, NR_WRITES = 4 };
  struct server *server = server_start_with (
    path, 0, "--filter=delay delay-read=1 --threads=16");
  const int fd = wire_open (server, "", NULL);
  uint8_t buf[512] = { 0 };
  unsigned nr_reads = 0, nr_early = 0;
  uint64_t cookie;

  say ("answers out of order");
  for (uint64_t i = 0; i < NR_READS; i++)
    wire_request (fd, WIRE_READ, 0, i, i * MIB, sizeof buf);
  for (uint64_t i = 0; i < NR_WRITES; i++) {
    wire_request (fd, WIRE_WRITE, 0, NR_READS + i, spec.size - 512, 512);
    if (!wire_send (fd, buf, sizeof buf))
      fail ("a write cannot be sent");
  }
  for (unsigned i = 0; i < NR_READS + NR_WRITES; i++) {
    if (wire_reply (fd, &cookie) != 0)
      fail ("request %" PRIu64 " fails", cookie);
    if (cookie >= NR_READS)
      nr_early += nr_reads < NR_READS;
    else {
      nr_reads++;
      if (!wire_receive (fd, buf, sizeof buf))
        fail ("a read has no data");
    }
  }
  wire_close (fd);
  server_stop (server);
  if (nr_early == 0)
    fail ("writes wait for reads that came before them");
}

int
main (void)
{
  struct image_state state;
  struct disk *disk;
  char *path;

  test_begin ("test-parallel");
  test_requires ("qemu-img");
  path = image_make (&spec);
  disk = disk_new (spec.size, spec.cluster_size);
  disk_expect_trims (disk);
  test_out_of_order (path);
  for (size_t i = 0; i < ARRAY_SIZE (ways); i++)
    if (chosen (i, ARRAY_SIZE (ways)))
      test_way (path, disk, &ways[i], 2 * i);
  image_read (path, &state);
  if (state.in_use != IN_USE_CLOSED)
    fail ("the image is still marked in use");
  disk_free (disk);
  free (path);
  return test_end ();
}
