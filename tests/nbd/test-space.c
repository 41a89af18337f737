/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Proves that giving space back costs nobody a byte.
 *
 * First a model test: trims, zeroes with every mix of flags, writes of data and
 * of zeros, reads, prefetch and block status, of every size and alignment, on
 * one connection and on eight that share clusters, for every way to trim and to
 * look for zeros.  In the pauses what is read and what block status says are
 * compared with the model; at the end all is trimmed, and nothing may be left.
 * Then the same with the server killed in the middle.
 *
 * Then what the model allows but does not ask for: that clusters are unmapped
 * when they are trimmed in pieces, that parts of clusters are punched, that
 * discard=keep never makes a hole and discard=off does nothing, that zeros are
 * detected, that prefetching reads, and that the largest requests do what they
 * say and no more.
 */

#include <config.h>

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk.h"
#include "extents.h"
#include "harness.h"
#include "image.h"
#include "load.h"
#include "server.h"

/* The block of the file systems that images are on. */
#define BLOCK UINT64_C (4096)

struct spec {
  struct image_spec image;
  const char *parameters;
};

static const struct spec specs[] = {
  { { "v2-32k", MADE_BY_PLOOP_IMG, 2, 32 * KIB, 24 * MIB + 512, NULL }, "" },
  { { "v1-32k-off", MADE_BY_PLOOP_IMG, 1, 32 * KIB, 12 * MIB - 512, NULL },
    "fast-path=off" },
  { { "q-63", MADE_BY_QEMU, 2, 63 * 512, 12 * MIB + 512, NULL }, "" },
  { { "v1-63-none", FROM_CORPUS, 1, 63 * 512, 8 * MIB, "e-v1-63/i.hds" },
    "cache=none" },
  { { "q-504", MADE_BY_QEMU, 2, 504 * 512, 24 * MIB + 512, NULL },
    "discard=unmap detect-zeroes=unmap" },
  { { "q-504-keep", MADE_BY_QEMU, 2, 504 * 512, 24 * MIB, NULL },
    "discard=keep extents=detail" },
  { { "v2-1m-detail", MADE_BY_PLOOP_IMG, 2, MIB, 48 * MIB + 512, NULL },
    "extents=detail" },
  { { "v1-1m", MADE_BY_PLOOP_IMG, 1, MIB, 32 * MIB - 4096, NULL },
    "detect-zeroes=on" },
  { { "v1-64k-keep", MADE_BY_PLOOP_IMG, 1, 64 * KIB, 16 * MIB, NULL },
    "discard=keep detect-zeroes=unmap" },
  { { "v2-32k-keep", MADE_BY_PLOOP_IMG, 2, 32 * KIB, 12 * MIB + 512, NULL },
    "discard=keep cache=none" },
  { { "v2-32k-none", MADE_BY_PLOOP_IMG, 2, 32 * KIB, 16 * MIB + 3 * 512,
      NULL }, "cache=none extents=detail detect-zeroes=on" },
  { { "v2-64k-discard", MADE_BY_PLOOP_IMG, 2, 64 * KIB, 16 * MIB + 512,
      NULL }, "discard=off" },
  { { "v2-32k-off", MADE_BY_PLOOP_IMG, 2, 32 * KIB, 12 * MIB, NULL },
    "fast-path=off detect-zeroes=unmap extents=detail prealloc-mode=truncate" },
};

/* Four rounds each. */
static const struct spec killed_specs[] = {
  { { "k-32k", MADE_BY_PLOOP_IMG, 2, 32 * KIB, 16 * MIB + 512, NULL }, "" },
  { { "k-64k-keep", MADE_BY_PLOOP_IMG, 1, 64 * KIB, 24 * MIB - 512, NULL },
    "discard=keep" },
  { { "k-63-none", MADE_BY_QEMU, 2, 63 * 512, 12 * MIB + 512, NULL },
    "cache=none detect-zeroes=on" },
  { { "k-1m", MADE_BY_PLOOP_IMG, 2, MIB, 32 * MIB + 512, NULL },
    "fast-path=off detect-zeroes=unmap" },
};

static uint64_t next_stream;

static bool
has_parameter (const struct spec *spec, const char *parameter)
{
  return strstr (spec->parameters, parameter) != NULL;
}

/* ---- The model --------------------------------------------------------- */

/* Nothing is in flight: what block status says, and then what is read, must be
 * the model's.
 */
static void
compare_in_a_pause (struct disk *disk, struct nbd_handle *nbd)
{
  disk_compare_extents (disk, nbd);
  disk_compare_nbd (disk, nbd, disk->size, 0);
}

static void
run_one (struct load load, struct nbd_handle *nbd)
{
  load.nr_connections = 1;
  load.depth = 16;
  load.nr_requests = scaled (800);
  load.length = load.disk->size;
  for (unsigned i = 0; i < 4; i++) {
    load.stream = next_stream++;
    load_run (&load);
    compare_in_a_pause (load.disk, nbd);
  }
}

/* As many phases as stripes, each in a part of the disk of its own, where what
 * is read across can be told by its owner; then one everywhere.
 */
static void
run_eight (struct load load, struct nbd_handle *nbd)
{
  const uint64_t cluster = load.disk->cluster_size;
  const uint64_t stripes[] = {
    512, 4096, cluster / 8, cluster, 2 * cluster + 512,
  };
  const uint64_t part = load.disk->size / ARRAY_SIZE (stripes);

  load.nr_connections = 8;
  load.depth = 8;
  load.nr_requests = scaled (800);
  for (size_t i = 0; i < ARRAY_SIZE (stripes); i++) {
    load.stream = next_stream++;
    load.stripe = stripes[i];
    load.offset = i * part;
    load.length = i + 1 == ARRAY_SIZE (stripes)
                    ? load.disk->size - load.offset : part;
    load_run (&load);
    compare_in_a_pause (load.disk, nbd);
  }
  load.stream = next_stream++;
  load.offset = 0;
  load.length = load.disk->size;
  load.stripe = 3 * cluster;
  load.tagged = false;
  load_run (&load);
  compare_in_a_pause (load.disk, nbd);
}

/* discard=keep: what was allocated once is never a hole. */
static void
expect_no_holes (const char *path)
{
  static bool said;
  struct image_state state;
  int64_t holes;

  image_read (path, &state);
  holes = image_holes (path, state.data_offset);
  if (holes > 0)
    fail ("%s: %" PRIi64 " bytes of the file are holes, with discard=keep",
          path, holes);
  if (holes < 0 && !said)
    say ("  the file system does not tell where holes are");
  said = holes < 0;
}

/* Stop the server; checkers and qemu must find nothing wrong and the same
 * content, a server for reading too.
 */
static void
stop_and_check (const struct spec *spec, struct server *server,
                struct disk *disk, const char *path)
{
  struct image_state state;
  struct nbd_handle *nbd;

  server_stop (server);
  /* What was given back late lies between the others. */
  image_expect_clean (path, disk->size / disk->cluster_size + 1, &state);
  say ("  %u of %u clusters allocated, %" PRIu64 " between them, file of %"
       PRIu64 " bytes", state.nr_allocated, state.nr_clusters,
       state.nr_leaked, state.file_size);
  server = server_start_with (path, SERVER_READ_ONLY, spec->parameters);
  nbd = server_connect (server);
  compare_in_a_pause (disk, nbd);
  server_disconnect (nbd);
  server_stop (server);
  disk_compare_qemu (disk, path);
}

/* Also the last, partial cluster, and all that was zeroed. */
static void
trim_everything (struct disk *disk, struct nbd_handle *nbd)
{
  disk_trim (disk, disk->size, 0);
  if (nbd_trim (nbd, disk->size, 0, 0) == -1)
    fail_nbd ("trim of the whole disk");
  extents_wait (nbd, disk->size, 0, IS_HOLE, disk->size,
                "the whole disk was trimmed");
  compare_in_a_pause (disk, nbd);
}

static void
test_model (const struct spec *spec, bool eight)
{
  char *path = image_make (&spec->image);
  struct disk *disk = disk_new (spec->image.size, spec->image.cluster_size);
  struct server *server = NULL;
  struct nbd_handle *nbd;
  struct image_state state;
  struct load load = {
    .disk = disk, .max_length = 2 * MIB, .read_percent = 40,
    .tagged = spec->image.maker != FROM_CORPUS, .space = true,
    .trims_do_nothing = has_parameter (spec, "discard=off"),
    .counts = load_counts_new (),
  };
  double begin = now_seconds ();

  disk_expect_trims (disk);
  if (spec->image.maker == FROM_CORPUS)
    disk_load (disk, path);
  load.server = server = server_start_with (path, 0, spec->parameters);
  nbd = server_connect (server);
  if (eight)
    run_eight (load, nbd);
  else
    run_one (load, nbd);
  say ("  %" PRIuFAST64 " trims, %" PRIuFAST64 " zeroes, of these %"
       PRIuFAST64 " fast, %" PRIuFAST64 " were not", load.counts->trimmed,
       load.counts->zeroed, load.counts->zeroed_fast, load.counts->not_fast);
  if (has_parameter (spec, "discard=keep"))
    expect_no_holes (path);
  server_disconnect (nbd);
  stop_and_check (spec, server, disk, path);
  if (has_parameter (spec, "discard=keep"))
    expect_no_holes (path);

  if (!load.trims_do_nothing) {
    server = server_start_with (path, 0, spec->parameters);
    nbd = server_connect (server);
    trim_everything (disk, nbd);
    server_disconnect (nbd);
    server_stop (server);
    image_read (path, &state);
    if (state.nr_allocated != 0)
      fail ("all was trimmed, but %u clusters are allocated",
            state.nr_allocated);
    disk_compare_qemu (disk, path);
  }
  say ("%s, %d connections, %s: %.1f s", spec->image.name, eight ? 8 : 1,
       spec->parameters, now_seconds () - begin);
  disk_free (disk);
  free (path);
}

/* ---- The model, with kill -9 ------------------------------------------- */

/* Nothing is read meanwhile: what a trim has unmapped in memory may be there
 * again after a kill.
 */
static void
test_round_of_kill (const struct spec *spec, struct disk *disk,
                    const char *path, struct rng *rng)
{
  static const uint64_t stripes[] = { 512, 4096, 32768, 262144 };
  struct server *server = server_start_with (path, 0, spec->parameters);
  struct load load = {
    .disk = disk, .server = server, .nr_connections = LOAD_MAX_CONNECTIONS,
    .depth = 8, .length = disk->size,
    .stripe = stripes[rng_below (rng, ARRAY_SIZE (stripes))],
    .max_length = 512 * KIB, .stream = next_stream++,
    .aligned = rng_percent (rng, 70), .may_break = true, .space = true,
    .counts = load_counts_new (),
  };
  const uint64_t after = 100 + rng_below (rng, 600);
  struct image_state state;
  struct load_run *run;
  struct nbd_handle *nbd;

  say ("  kill after %" PRIu64 " answers, stripes of %" PRIu64 "%s", after,
       load.stripe, load.aligned ? ", aligned" : "");
  atomic_store (&load.counts->front, rng_below (rng, 100000));
  run = load_start (&load);
  if (!load_wait_answered (load.counts, after))
    fail ("no progress");
  server_kill (server);
  load_join (run);
  image_expect_sound (path, &state);

  server = server_start_with (path, SERVER_READ_ONLY, spec->parameters);
  nbd = server_connect (server);
  disk_settle (disk, nbd, load.aligned);
  disk_compare_extents (disk, nbd);
  server_disconnect (nbd);
  server_stop (server);
}

static void
test_kill (const struct spec *spec)
{
  char *path = image_make (&spec->image);
  struct disk *disk = disk_new (spec->image.size, spec->image.cluster_size);
  double begin = now_seconds ();
  struct server *server;
  struct nbd_handle *nbd;
  struct rng rng;

  rng_init (&rng, next_stream++);
  disk_expect_trims (disk);
  for (unsigned i = 0; i < scaled (4); i++)
    test_round_of_kill (spec, disk, path, &rng);

  server = server_start_with (path, 0, spec->parameters);
  nbd = server_connect (server);
  disk_compare_nbd (disk, nbd, disk->size, 0);
  trim_everything (disk, nbd);
  server_disconnect (nbd);
  stop_and_check (spec, server, disk, path);
  say ("%s, kill -9, %s: %.1f s", spec->image.name, spec->parameters,
       now_seconds () - begin);
  disk_free (disk);
  free (path);
}

/* ---- One image, one connection, one thing at a time -------------------- */

struct served {
  char *path;
  char *parameters;
  struct disk *disk;
  struct server *server;
  struct nbd_handle *nbd;
};

static void
serve (struct served *s)
{
  s->server = server_start_with (s->path, 0, s->parameters);
  s->nbd = server_connect (s->server);
}

static struct served
serve_new (uint64_t cluster_size, uint64_t size, const char *parameters)
{
  const struct image_spec spec = {
    "one", MADE_BY_PLOOP_IMG, 2, cluster_size, size, NULL,
  };
  struct served s = {
    .path = image_make (&spec),
    .parameters = format_string ("%s", parameters),
    .disk = disk_new (size, cluster_size),
  };

  disk_expect_trims (s.disk);
  serve (&s);
  return s;
}

static void
stop (struct served *s)
{
  server_disconnect (s->nbd);
  server_stop (s->server);
}

/* Stop the server, and expect as many clusters as NR_ALLOCATED in the BAT. */
static void
stop_and_expect (struct served *s, uint32_t nr_allocated, const char *what)
{
  struct image_state state;

  disk_compare_nbd (s->disk, s->nbd, s->disk->size, 0);
  stop (s);
  /* What was freed and not used again lies between the others. */
  image_expect_clean (s->path, UINT64_MAX, &state);
  if (state.nr_allocated != nr_allocated)
    fail ("%s: %u clusters are allocated, must be %u", what,
          state.nr_allocated, nr_allocated);
  serve (s);
  disk_compare_nbd (s->disk, s->nbd, s->disk->size, 0);
  stop (s);
  disk_compare_qemu (s->disk, s->path);
}

static void
served_free (struct served *s)
{
  disk_free (s->disk);
  free (s->path);
  free (s->parameters);
}

/* VALUE in all bytes; 0 too is written as data. */
static void
put (struct served *s, uint8_t value, uint64_t length, uint64_t offset)
{
  uint8_t *buf = malloc (length);

  if (buf == NULL)
    abort ();
  memset (buf, value, length);
  disk_submit (s->disk, buf, length, offset);
  if (nbd_pwrite (s->nbd, buf, length, offset, 0) == -1)
    fail_nbd ("nbd_pwrite");
  disk_answer (s->disk, length, offset);
  free (buf);
}

static void
trim (struct served *s, uint64_t length, uint64_t offset)
{
  disk_trim (s->disk, length, offset);
  if (nbd_trim (s->nbd, length, offset, 0) == -1)
    fail_nbd ("nbd_trim");
}

static void
zero (struct served *s, uint64_t length, uint64_t offset, uint32_t flags)
{
  disk_submit (s->disk, NULL, length, offset);
  if (nbd_zero (s->nbd, length, offset, flags) == -1)
    fail_nbd ("nbd_zero");
  disk_answer (s->disk, length, offset);
}

static void
flush (struct served *s)
{
  if (nbd_flush (s->nbd, 0) == -1)
    fail_nbd ("nbd_flush");
}

/* ---- In pieces --------------------------------------------------------- */

static void
shuffle (uint64_t *numbers, uint64_t nr, struct rng *rng)
{
  for (uint64_t i = nr; i > 1; i--) {
    const uint64_t j = rng_below (rng, i);
    const uint64_t n = numbers[i - 1];

    numbers[i - 1] = numbers[j];
    numbers[j] = n;
  }
}

/* The second of three clusters is trimmed away in pieces of blocks, in random
 * order: it is unmapped when the last one is gone, the other two stay.
 */
static void
trimmed_in_pieces_is_unmapped (uint64_t cluster, bool restart,
                               const char *parameters)
{
  struct served s = serve_new (cluster, 8 * cluster, parameters);
  const uint64_t nr = cluster / BLOCK;
  uint64_t *pieces = malloc (nr * sizeof *pieces);
  struct rng rng;

  say ("trimmed in pieces: clusters of %" PRIu64 " %s%s", cluster, parameters,
       restart ? ", with a new server in between" : "");
  if (pieces == NULL)
    abort ();
  rng_init (&rng, next_stream++);
  for (uint64_t i = 0; i < nr; i++)
    pieces[i] = i;
  shuffle (pieces, nr, &rng);
  put (&s, 0x5a, 3 * cluster, 0);
  for (uint64_t i = 0; i < nr; i++) {
    if (restart && i == nr / 2) {
      stop (&s);
      serve (&s);
    }
    trim (&s, BLOCK, cluster + pieces[i] * BLOCK);
  }
  extents_wait (s.nbd, cluster, cluster, IS_HOLE, cluster,
                "a cluster was trimmed away in pieces");
  if (extents_count (s.nbd, 3 * cluster, 0, IS_HOLE) != cluster)
    fail ("more was unmapped than was trimmed");
  flush (&s);
  stop_and_expect (&s, 2, "trimmed in pieces");
  free (pieces);
  served_free (&s);
}

/* Halves of clusters are trimmed away; a few bytes are written just when the
 * cluster is found to be empty.  They must be there in the end.
 */
static void
written_after_the_last_piece_is_kept (const char *parameters)
{
  const uint64_t cluster = 64 * KIB;
  const uint64_t nr = 64;
  struct served s = serve_new (cluster, nr * cluster, parameters);
  struct rng rng;

  say ("written after the last piece was trimmed: %s", parameters);
  rng_init (&rng, next_stream++);
  for (unsigned round = 0; round < scaled (8); round++) {
    put (&s, (uint8_t) (0x10 + round), nr * cluster, 0);
    for (uint64_t i = 0; i < nr; i++) {
      const uint64_t at = rng_below (&rng, cluster - 600);

      trim (&s, cluster / 2, i * cluster);
      trim (&s, cluster / 2, i * cluster + cluster / 2);
      if (rng_percent (&rng, 30))
        poll_pause ();
      put (&s, (uint8_t) (1 + i), 1 + rng_below (&rng, 600),
           i * cluster + at);
    }
    compare_in_a_pause (s.disk, s.nbd);
  }
  stop_and_expect (&s, (uint32_t) nr, "one piece in each cluster");
  served_free (&s);
}

/* Wait until the file takes MOST bytes or less. */
static void
wait_for_usage (const char *path, uint64_t most, const char *what)
{
  const double limit = now_seconds () + HANG_SECONDS;

  while (image_usage (path) > most) {
    if (now_seconds () > limit)
      fail ("%s: the file takes %" PRIu64 " bytes, must be at most %" PRIu64,
            what, image_usage (path), most);
    poll_pause ();
  }
}

/* The ends of what is trimmed lie inside blocks, which must stay. */
static void
part_of_a_cluster_is_punched (const char *parameters)
{
  struct served s = serve_new (MIB, 8 * MIB, parameters);
  uint64_t full;

  say ("a part of a cluster: %s", parameters);
  put (&s, 0x5a, 2 * MIB, 0);
  flush (&s);
  full = image_usage (s.path);
  trim (&s, 512 * KIB, 200 * KIB + 100);
  trim (&s, 256 * KIB + 3, MIB + 333);
  wait_for_usage (s.path, full - (768 - 4 * 4) * KIB,
                  "768 KiB of two clusters were trimmed");
  compare_in_a_pause (s.disk, s.nbd);
  put (&s, 0x77, 1000, 300 * KIB + 7);
  compare_in_a_pause (s.disk, s.nbd);
  stop_and_expect (&s, 2, "parts of two clusters were trimmed");
  served_free (&s);
}

/* ---- Whole clusters ---------------------------------------------------- */

/* What is trimmed takes no space in the file, while it is served, except for
 * what is kept ready, and after.
 */
static void
trimmed_space_is_given_back (const char *parameters)
{
  struct served s = serve_new (MIB, 32 * MIB, parameters);
  uint64_t full;

  say ("whole clusters: %s", parameters);
  put (&s, 0x5a, 32 * MIB, 0);
  flush (&s);
  full = image_usage (s.path);
  trim (&s, 16 * MIB, 8 * MIB);
  extents_wait (s.nbd, 32 * MIB, 0, IS_HOLE, 16 * MIB, "16 MiB were trimmed");
  flush (&s);
  wait_for_usage (s.path, full - 8 * MIB, "16 MiB were trimmed");
  stop_and_expect (&s, 16, "16 of 32 clusters were trimmed");
  wait_for_usage (s.path, 18 * MIB, "the server has ended");
  served_free (&s);
}

/* Of four clusters the two in the middle are zeroed, with more at both ends.
 * Then the server is killed: they are zeros all the same.
 */
static void
zeroed_clusters_are_unmapped (uint32_t flags, bool unmaps, bool killed,
                              const char *parameters)
{
  struct served s = serve_new (64 * KIB, MIB, parameters);
  const uint64_t cluster = s.disk->cluster_size;
  uint64_t holes;

  say ("zeroed: flags %u, %s%s", flags, parameters,
       killed ? ", killed" : "");
  put (&s, 0x5a, 4 * cluster, 0);
  zero (&s, 2 * cluster + 1000, cluster - 500, flags);
  holes = extents_count (s.nbd, 4 * cluster, 0, LIBNBD_STATE_HOLE);
  if (holes != (unmaps ? 2 * cluster : 0))
    fail ("%" PRIu64 " bytes are holes after two clusters were zeroed, must "
          "be %" PRIu64, holes, unmaps ? 2 * cluster : 0);
  compare_in_a_pause (s.disk, s.nbd);
  if (killed) {
    nbd_close (s.nbd);
    server_kill (s.server);
    serve (&s);
    compare_in_a_pause (s.disk, s.nbd);
    put (&s, 0x77, 1, 0);       /* else it stays marked as in use */
  }
  stop_and_expect (&s, unmaps ? 2 : 4, "two of four clusters were zeroed");
  served_free (&s);
}

/* Zeros are written over a cluster with data, over parts of two, and where
 * there was nothing.
 */
static void
zeros_are_detected (const char *parameters, uint32_t nr_allocated)
{
  struct served s = serve_new (64 * KIB, 2 * MIB, parameters);
  const uint64_t cluster = s.disk->cluster_size;

  say ("zeros are written: %s", parameters);
  put (&s, 0x5a, 4 * cluster, 0);
  put (&s, 0, cluster, cluster);
  put (&s, 0, cluster, 2 * cluster + 100);
  put (&s, 0, cluster, 8 * cluster);
  put (&s, 0, 2 * cluster + 5, 16 * cluster - 3);
  put (&s, 0, 700, 30 * cluster + 9);
  /* Not zeros, by one byte. */
  put (&s, 0, 512, 20 * cluster);
  put (&s, 1, 1, 20 * cluster + 512);
  compare_in_a_pause (s.disk, s.nbd);
  stop_and_expect (&s, nr_allocated, "zeros were written");
  served_free (&s);
}

/* ---- discard=keep and discard=off -------------------------------------- */

/* Clusters are trimmed, and as many others written, round after round: they are
 * the same ones in the file, which has no hole at any time.
 */
static void
kept_space_is_used_again (const char *parameters)
{
  struct served s = serve_new (64 * KIB, 32 * MIB, parameters);
  const uint64_t cluster = s.disk->cluster_size;
  const uint64_t nr = 16, rounds = 48;
  struct image_state state;

  say ("used again: %s", parameters);
  for (uint64_t round = 0; round < rounds; round++) {
    const uint64_t at = round * (nr + 4) * cluster % (24 * MIB);

    for (uint64_t i = 0; i < nr; i++)
      put (&s, (uint8_t) (1 + round), round % 2 ? cluster : 777,
           at + i * cluster);
    flush (&s);
    trim (&s, nr * cluster, at);
    extents_wait (s.nbd, nr * cluster, at, IS_HOLE, nr * cluster,
                  "clusters were trimmed");
    flush (&s);
    expect_no_holes (s.path);
    disk_compare_nbd (s.disk, s.nbd, s.disk->size, 0);
  }
  put (&s, 0x5a, cluster, 31 * MIB);
  stop (&s);
  expect_no_holes (s.path);
  image_expect_clean (s.path, rounds * nr, &state);
  if (state.nr_allocated != 1)
    fail ("%u clusters are allocated, must be 1", state.nr_allocated);
  if (state.nr_leaked > rounds * nr / 3)
    fail ("never more than %" PRIu64 " clusters were in use, but the file has "
          "%" PRIu64, nr, state.nr_leaked);
  disk_compare_qemu (s.disk, s.path);
  served_free (&s);
}

static void
trim_does_nothing_when_it_is_off (void)
{
  struct served s = serve_new (64 * KIB, MIB, "discard=off");
  uint64_t full;

  say ("discard=off");
  put (&s, 0x5a, MIB, 0);
  flush (&s);
  full = image_usage (s.path);
  /* Not the model's trim: every byte must stay. */
  if (nbd_trim (s.nbd, MIB, 0, 0) == -1 ||
      nbd_trim (s.nbd, 4096, 0, LIBNBD_CMD_FLAG_FUA) == -1)
    fail_nbd ("nbd_trim");
  flush (&s);
  if (extents_count (s.nbd, MIB, 0, IS_HOLE) != 0)
    fail ("discard=off, but there are holes");
  stop_and_expect (&s, 16, "discard=off");
  if (image_usage (s.path) < full / 2)
    fail ("discard=off, but the file is smaller");
  served_free (&s);
}

/* ---- Prefetching -------------------------------------------------------- */

/* Bytes of PATH that are in the page cache.  With FORGET, after the kernel was
 * asked to drop them.
 */
static uint64_t
cached (const char *path, bool forget)
{
  const uint64_t page = (uint64_t) sysconf (_SC_PAGESIZE);
  int fd = open (path, O_RDONLY | O_CLOEXEC);
  uint64_t nr, count = 0;
  unsigned char *in_core;
  struct stat st;
  void *map;

  if (fd == -1 || fstat (fd, &st) == -1)
    fail ("%s: %m", path);
  if (forget && (fsync (fd) == -1 ||
                 posix_fadvise (fd, 0, 0, POSIX_FADV_DONTNEED) != 0))
    fail ("%s: cannot be dropped from the page cache", path);
  nr = ((uint64_t) st.st_size + page - 1) / page;
  in_core = malloc (nr);
  map = mmap (NULL, (size_t) st.st_size, PROT_READ, MAP_SHARED, fd, 0);
  if (in_core == NULL || map == MAP_FAILED ||
      mincore (map, (size_t) st.st_size, in_core) == -1)
    fail ("mincore %s: %m", path);
  for (uint64_t i = 0; i < nr; i++)
    count += in_core[i] & 1;
  munmap (map, (size_t) st.st_size);
  free (in_core);
  close (fd);
  return count * page;
}

/* What a client asks to be cached is read into the page cache, and is what it
 * was.
 */
static void
prefetched_data_is_cached (void)
{
  struct served s = serve_new (64 * KIB, 16 * MIB, "");
  const uint64_t cluster = s.disk->cluster_size;
  const double limit = now_seconds () + HANG_SECONDS;
  const char *outside = getenv ("PLOOP_PARAMETERS");

  say ("prefetch");
  for (uint64_t i = 0; i < 16 * MIB / cluster; i += 2)
    put (&s, (uint8_t) (1 + i), cluster, i * cluster);
  stop (&s);
  if (cached (s.path, true) > MIB ||
      (outside != NULL && strstr (outside, "cache=none") != NULL))
    say ("  not tried: the page cache cannot be emptied, or is not used");
  else {
    serve (&s);
    if (nbd_cache (s.nbd, 16 * MIB, 0, 0) == -1)
      fail_nbd ("nbd_cache");
    while (cached (s.path, false) < 8 * MIB) {
      if (now_seconds () > limit)
        fail ("8 MiB were to be cached, %" PRIu64 " bytes are",
              cached (s.path, false));
      poll_pause ();
    }
    if (nbd_cache (s.nbd, 12345, 777, 0) == -1)
      fail_nbd ("nbd_cache");
    compare_in_a_pause (s.disk, s.nbd);
    stop (&s);
  }
  served_free (&s);
}

/* ---- The largest disk and the largest requests ------------------------- */

static void
expect_byte (struct nbd_handle *nbd, uint64_t offset, uint8_t value)
{
  uint8_t byte = 0xEE;

  if (nbd_pread (nbd, &byte, 1, offset, 0) == -1)
    fail_nbd ("nbd_pread");
  if (byte != value)
    fail ("the byte at %" PRIu64 " is 0x%02x, must be 0x%02x", offset, byte,
          value);
}

static void
put_byte (struct nbd_handle *nbd, uint64_t offset, uint8_t value)
{
  if (nbd_pwrite (nbd, &value, 1, offset, 0) == -1)
    fail_nbd ("nbd_pwrite");
}

static void
test_largest (uint32_t flags)
{
  const struct image_spec spec = {
    "16t", MADE_BY_PLOOP_IMG, 2, MIB, 16 * TIB, NULL,
  };
  const uint64_t most = UINT64_C (0xffffffff);
  const uint64_t begin = 5 * TIB + 12345, end = begin + most;
  char *path = image_make (&spec);
  struct server *server = server_start_with (path, 0, "prealloc=8M");
  struct nbd_handle *nbd = server_connect (server);
  struct image_state state;

  say ("16 TiB, zero flags %u", flags);
  put_byte (nbd, begin - 1, 1);
  put_byte (nbd, begin, 2);
  put_byte (nbd, begin + GIB, 3);
  put_byte (nbd, end - 1, 4);
  put_byte (nbd, end, 5);
  put_byte (nbd, spec.size - 1, 6);
  if (nbd_zero (nbd, most, begin, flags) == -1)
    fail_nbd ("nbd_zero");
  expect_byte (nbd, begin - 1, 1);
  expect_byte (nbd, begin, 0);
  expect_byte (nbd, begin + GIB, 0);
  expect_byte (nbd, end - 1, 0);
  expect_byte (nbd, end, 5);
  put_byte (nbd, begin + GIB, 7);
  expect_byte (nbd, begin + GIB, 7);

  for (uint64_t at = 0; at < spec.size; at += most)
    if (nbd_trim (nbd, spec.size - at < most ? spec.size - at : most, at,
                  LIBNBD_CMD_FLAG_FUA) == -1)
      fail_nbd ("nbd_trim");
  /* At no border of two requests something may be left, in the end. */
  extents_wait (nbd, spec.size, 0, IS_HOLE, spec.size, "all was trimmed");
  server_disconnect (nbd);
  server_stop (server);
  image_read (path, &state);
  if (state.nr_allocated != 0)
    fail ("all was trimmed, but %u clusters are allocated",
          state.nr_allocated);
  unlink (path);
  free (path);
}

static const uint32_t largest_flags[] = { 0, LIBNBD_CMD_FLAG_FUA };

static void
test_zeroes (void)
{
  const uint32_t no_hole = LIBNBD_CMD_FLAG_NO_HOLE;
  const uint32_t fua = LIBNBD_CMD_FLAG_FUA;

  for (int killed = 0; killed < 2; killed++) {
    if (!chosen ((size_t) killed, 2))
      continue;
    zeroed_clusters_are_unmapped (0, true, killed, "");
    zeroed_clusters_are_unmapped (fua, true, killed, "cache=none");
    zeroed_clusters_are_unmapped (no_hole, false, killed, "");
    zeroed_clusters_are_unmapped (no_hole | fua, false, killed,
                                  "fast-path=off");
    zeroed_clusters_are_unmapped (0, true, killed, "discard=keep");
    zeroed_clusters_are_unmapped (no_hole, false, killed, "discard=keep");
  }
  /* Data at 0, 2 and 3 (parts of both), 20; with `off` also 1, 8, 15 to 18 and
   * 30; with `on` what was allocated stays.
   */
  zeros_are_detected ("detect-zeroes=off", 11);
  zeros_are_detected ("detect-zeroes=on", 5);
  zeros_are_detected ("detect-zeroes=unmap", 4);
  zeros_are_detected ("detect-zeroes=unmap discard=keep", 4);
}

static void
test_trims (void)
{
  for (int restart = 0; restart < 2; restart++) {
    if (!chosen ((size_t) restart, 2))
      continue;
    trimmed_in_pieces_is_unmapped (64 * KIB, restart, "");
    trimmed_in_pieces_is_unmapped (MIB, restart, "cache=none");
    trimmed_in_pieces_is_unmapped (32 * KIB, restart, "fast-path=off");
  }
  trimmed_in_pieces_is_unmapped (64 * KIB, false, "discard=keep");
  written_after_the_last_piece_is_kept ("");
  written_after_the_last_piece_is_kept ("cache=none");
  written_after_the_last_piece_is_kept ("discard=keep");
  part_of_a_cluster_is_punched ("prealloc-mode=truncate");
  part_of_a_cluster_is_punched ("prealloc-mode=truncate cache=none");
  trimmed_space_is_given_back ("prealloc-mode=truncate");
  trimmed_space_is_given_back ("cache=none prealloc=1M");
  kept_space_is_used_again ("discard=keep prealloc=1M");
  kept_space_is_used_again ("discard=keep prealloc=1M fast-path=off "
                            "cache=none");
  trim_does_nothing_when_it_is_off ();
}

int
main (void)
{
  test_begin ("test-space");
  test_requires ("qemu-img");
  test_trims ();
  test_zeroes ();
  prefetched_data_is_cached ();
  for (size_t i = 0; i < ARRAY_SIZE (largest_flags); i++)
    if (chosen (i, ARRAY_SIZE (largest_flags)))
      test_largest (largest_flags[i]);
  for (size_t i = 0; i < ARRAY_SIZE (specs); i++)
    if (chosen (i, ARRAY_SIZE (specs))) {
      test_model (&specs[i], false);
      test_model (&specs[i], true);
    }
  for (size_t i = 0; i < ARRAY_SIZE (killed_specs); i++)
    if (chosen (i, ARRAY_SIZE (killed_specs)))
      test_kill (&killed_specs[i]);
  return test_end ();
}
