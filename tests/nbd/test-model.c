/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Proves that what is read is what was written: random reads, writes, zeroes,
 * flushes and FUA against a model in memory, on one connection and on eight
 * that fight for the same clusters, on images of both versions, of every maker
 * and of odd cluster and disk sizes.  At the end the server is stopped, the
 * image is checked by other programs and compared with the model by them, and
 * read once more from a server that may not write.
 */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>

#include "disk.h"
#include "harness.h"
#include "image.h"
#include "load.h"
#include "server.h"

/* Sizes leave the last cluster partial, and cross several BAT pages (the first
 * holds 1008 entries, the others 1024) where clusters are small.
 */
static const struct image_spec specs[] = {
  { "v2-32k", MADE_BY_PLOOP_IMG, 2, 32 * KIB, 68 * MIB + 3 * 512, NULL },
  { "v1-32k", MADE_BY_PLOOP_IMG, 1, 32 * KIB, 40 * MIB + 512, NULL },
  { "v2-64k", MADE_BY_PLOOP_IMG, 2, 64 * KIB, 24 * MIB - 512, NULL },
  { "v1-64k", MADE_BY_PLOOP_IMG, 1, 64 * KIB, 20 * MIB + 4096, NULL },
  { "v2-1m", MADE_BY_PLOOP_IMG, 2, MIB, 66 * MIB + 512, NULL },
  { "v1-1m", MADE_BY_PLOOP_IMG, 1, MIB, 24 * MIB - 512, NULL },
  { "q-512", MADE_BY_QEMU, 2, 512, 3100 * 512, NULL },
  { "q-4096", MADE_BY_QEMU, 2, 4096, 9 * MIB + 512, NULL },
  { "q-258048", MADE_BY_QEMU, 2, 258048, 30 * MIB + 512, NULL },
  { "v1-63", FROM_CORPUS, 1, 63 * 512, 8 * MIB, "e-v1-63/i.hds" },
  { "v1-128", FROM_CORPUS, 1, 64 * KIB, 16 * MIB, "b-data-v1-b128/root.hds" },
  { "full", FROM_CORPUS, 2, 32 * KIB, 2 * MIB, "a-prealloc-v2-b64/root.hds" },
  /* Never closed, with a tail that is nobody's. */
  { "killed", FROM_CORPUS, 2, 64 * KIB, 32 * MIB, "e-qemu-killed/i.hds" },
  { "tail", FROM_CORPUS, 2, 32 * KIB, 8 * MIB, "h-corrupt/leak-tail.hds" },
  { "cut", FROM_CORPUS, 2, 32 * KIB, 8 * MIB, "h-corrupt/tail-cut-1000.hds" },
  { "off-zero", FROM_CORPUS, 2, 32 * KIB, 8 * MIB, "h-corrupt/off-zero.hds" },
  /* With an extension that is stale, as the image is marked in use. */
  { "stale", FROM_CORPUS, 2, 32 * KIB, 16 * MIB, "g-cbt/inuse.hds" },
};

static uint64_t next_stream;

/* A request as large as the protocol lets a client hope for. */
static void
write_and_read_64_mib (const struct server *server, struct disk *disk)
{
  uint64_t length = 64 * MIB;
  uint64_t offset = disk->size - length;
  struct nbd_handle *nbd = server_connect (server);
  uint8_t *buf = malloc (length);
  struct rng rng;
  uint64_t i, random;

  if (buf == NULL)
    abort ();
  say ("  64 MiB at %" PRIu64, offset);
  rng_init (&rng, next_stream++);
  for (i = 0; i < length; i += 8) {
    random = rng_next (&rng);
    for (unsigned j = 0; j < 8; j++)
      buf[i + j] = (uint8_t) (random >> 8 * j);
  }
  disk_submit (disk, buf, length, offset);
  if (nbd_pwrite (nbd, buf, length, offset, LIBNBD_CMD_FLAG_FUA) == -1)
    fail_nbd ("64 MiB write");
  disk_answer (disk, length, offset);
  for (i = 0; i < length; i++)
    buf[i] = 0xEE;
  if (nbd_pread (nbd, buf, length, offset, 0) == -1)
    fail_nbd ("64 MiB read");
  disk_compare (disk, buf, length, offset, "64 MiB read");
  if (nbd_pread (nbd, buf, length, 0, 0) == -1)
    fail_nbd ("64 MiB read");
  disk_compare (disk, buf, length, 0, "64 MiB read at 0");
  free (buf);
  server_disconnect (nbd);
}

/* Eight connections, each phase with stripes of another width in a region of
 * its own, where all clusters are still to be allocated; then everywhere.
 */
static void
run_eight (struct load load)
{
  const uint64_t cluster = load.disk->cluster_size;
  const uint64_t stripes[] = {
    512, 1000, 4096, cluster / 8 < 512 ? 64 : cluster / 8, cluster + 512,
  };
  uint64_t part = load.disk->size / ARRAY_SIZE (stripes);
  size_t i;

  load.nr_connections = 8;
  load.depth = 8;
  load.nr_requests = scaled (1200);
  for (i = 0; i < ARRAY_SIZE (stripes); i++) {
    load.stream = next_stream++;
    load.stripe = stripes[i];
    load.offset = i * part;
    load.length = i + 1 == ARRAY_SIZE (stripes)
                    ? load.disk->size - load.offset : part;
    load_run (&load);
  }
  load.stream = next_stream++;
  load.offset = 0;
  load.length = load.disk->size;
  load.stripe = cluster / 8 < 512 ? 64 : cluster / 8;
  load.tagged = false;          /* owners were others in the phases before */
  load_run (&load);
}

static void
run_one (struct load load)
{
  load.nr_connections = 1;
  load.depth = 16;
  load.nr_requests = scaled (3000);
  load.stream = next_stream++;
  load.length = load.disk->size;
  load_run (&load);
}

static void
check_image (const struct image_spec *spec, const char *path,
             const struct disk *disk)
{
  struct image_state state;
  struct server *server;
  struct nbd_handle *nbd;

  image_expect_clean (path, 0, &state);
  if (state.size != spec->size || state.version != spec->version ||
      state.cluster_size != spec->cluster_size)
    fail ("%s: is now v%u, %" PRIu64 " bytes, clusters of %" PRIu64, path,
          state.version, state.size, state.cluster_size);
  say ("  %u of %u clusters allocated, file of %" PRIu64 " bytes",
       state.nr_allocated, state.nr_clusters, state.file_size);
  disk_compare_qemu (disk, path);

  server = server_start (path, SERVER_READ_ONLY);
  nbd = server_connect (server);
  disk_compare_nbd (disk, nbd, disk->size, 0);
  server_disconnect (nbd);
  server_stop (server);
}

static void
test_image (const struct image_spec *spec, bool eight)
{
  char *path = image_make (spec);
  struct disk *disk = disk_new (spec->size, spec->cluster_size);
  struct server *server;
  struct nbd_handle *nbd;
  struct load load = {
    .disk = disk, .max_length = 2 * MIB,
    .read_percent = 40, .tagged = spec->maker != FROM_CORPUS,
  };
  double begin = now_seconds ();

  if (spec->maker == FROM_CORPUS)
    disk_load (disk, path);
  load.server = server = server_start (path, 0);
  nbd = server_connect (server);
  if (nbd_get_size (nbd) != (int64_t) spec->size)
    fail ("%s: size is %" PRIi64 ", must be %" PRIu64, spec->name,
          nbd_get_size (nbd), spec->size);
  disk_compare_nbd (disk, nbd, disk->size, 0);

  if (eight)
    run_eight (load);
  else
    run_one (load);
  if (disk->size >= 64 * MIB)
    write_and_read_64_mib (server, disk);

  disk_compare_nbd (disk, nbd, disk->size, 0);
  if (nbd_flush (nbd, 0) == -1)
    fail_nbd ("nbd_flush");
  server_disconnect (nbd);
  server_stop (server);
  check_image (spec, path, disk);
  say ("%s, %d connections: %.1f s", spec->name, eight ? 8 : 1,
       now_seconds () - begin);
  disk_free (disk);
  free (path);
}

int
main (void)
{
  size_t i;

  test_begin ("test-model");
  test_requires ("qemu-img");
  for (i = 0; i < ARRAY_SIZE (specs); i++)
    if (chosen (i, ARRAY_SIZE (specs))) {
      test_image (&specs[i], false);
      test_image (&specs[i], true);
    }
  return test_end ();
}
