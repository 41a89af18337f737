/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Proves that a disk of many deltas is one disk: random writes, trims, zeroes,
 * flushes and reads from several connections against a model in memory, on
 * chains of 2, 5 and 30 deltas, each made on top of what the one before left.
 * The base is an image of either version or a raw disk, and may be smaller.
 * Lower deltas never change by a byte, and qemu, which is told the chain by hand,
 * reads the same.  Also an overlay, which leaves a whole chain as it is.
 */

#include <config.h>

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "disk.h"
#include "harness.h"
#include "image.h"
#include "load.h"
#include "server.h"

#define MAX_LEVELS 30u

struct spec {
  const char *name;
  unsigned nr_levels;           /* with the base */
  uint64_t cluster_size;
  uint64_t size;                /* of the top's disk */
  uint64_t base_size;
  unsigned base_version;        /* 0: raw */
  unsigned versions[2];         /* of those above it, by turns */
  unsigned nr_requests;         /* for each level */
};

/* Raw disks need not be whole clusters, nor sectors. */
static const struct spec specs[] = {
  { "two", 2, 32 * KIB, 16 * MIB + 512, 16 * MIB + 512, 2, { 2, 2 }, 1500 },
  { "two-raw", 2, MIB, 24 * MIB + 512, 21 * MIB + 777, 0, { 2, 2 }, 800 },
  { "two-raw-v1", 2, 64 * KIB, 12 * MIB, 12 * MIB, 0, { 1, 1 }, 1000 },
  { "five", 5, 32 * KIB, 8 * MIB + 512, 5 * MIB, 2, { 2, 2 }, 500 },
  { "five-mixed", 5, 64 * KIB, 12 * MIB - 512, 10 * MIB, 1, { 2, 1 }, 500 },
  { "thirty", 30, 32 * KIB, 6 * MIB, 6 * MIB, 2, { 2, 2 }, 100 },
};

/* Where a longer chain is looked at from outside, too. */
#define LOOK_EVERY 7u

/* Each level takes the next of them. */
static const char *const ways[] = {
  "", "copy-on-write=lazy", "cache=none", "fast-path=off copy-on-write=lazy",
  "discard=keep detect-zeroes=on", "cache=none copy-on-write=lazy copy-delay=5",
  "detect-zeroes=unmap extents=detail", "writeback-delay=50 discard=off",
  "copy-on-write=lazy discard=keep detect-zeroes=unmap extents=detail",
};

static uint64_t next_stream;

/* ---- The chain --------------------------------------------------------- */

struct chain {
  const struct spec *spec;
  char *paths[MAX_LEVELS + 1];  /* base first */
  unsigned nr_levels;
  struct disk *disk;
};

static char *
level_path (const struct chain *chain, unsigned level)
{
  char *name = format_string ("%s.%u", chain->spec->name, level);
  char *path = test_path (name);

  free (name);
  return path;
}

/* The parameters for all deltas below LEVEL, and OTHERS. */
static char *
parameters_for (const struct chain *chain, unsigned level, const char *others)
{
  char *text = format_string ("%s", others);

  while (level-- > 0) {
    char *more = format_string ("%s base=%s", text, chain->paths[level]);

    free (text);
    text = more;
  }
  return text;
}

/* The chain up to LEVEL, for qemu-img. */
static char *
qemu_image (const struct chain *chain, unsigned level)
{
  char *json = NULL;
  char *words;

  for (unsigned i = 0; i <= level; i++) {
    const bool raw = i == 0 && chain->spec->base_version == 0;
    char *more =
      format_string ("{\"driver\":\"%s\",\"file\":{\"driver\":\"file\","
                     "\"filename\":\"%s\"}%s%s}", raw ? "raw" : "parallels",
                     chain->paths[i], json ? ",\"backing\":" : "",
                     json ? json : "");

    free (json);
    json = more;
  }
  words = format_string ("'json:%s'", json);
  free (json);
  return words;
}

/* Random data but for some holes. */
static void
fill_base (struct disk *disk, uint64_t size)
{
  uint8_t *buf = malloc (64 * KIB);
  struct rng rng;

  if (buf == NULL)
    abort ();
  rng_init (&rng, next_stream++);
  for (uint64_t offset = 0, n; offset < size; offset += n) {
    n = size - offset < 64 * KIB ? size - offset : 64 * KIB;
    if (rng_percent (&rng, 40))
      continue;
    for (uint64_t i = 0; i < n; i++)
      buf[i] = (uint8_t) (1 + rng_below (&rng, 255));
    disk_submit (disk, buf, n, offset);
    disk_answer (disk, n, offset);
  }
  free (buf);
}

/* The model's content, sparse where it is zeros. */
static void
write_file (const struct disk *disk, const char *path, uint64_t size)
{
  static const uint8_t zeros[4096];
  const int fd = open (path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

  if (fd == -1 || ftruncate (fd, (off_t) size) == -1)
    fail ("%s: %m", path);
  for (uint64_t offset = 0, n; offset < size; offset += n) {
    n = size - offset < sizeof zeros ? size - offset : sizeof zeros;
    if (memcmp (disk->answered + offset, zeros, n) != 0
        && pwrite (fd, disk->answered + offset, n, (off_t) offset)
             != (ssize_t) n)
      fail ("%s: %m", path);
  }
  close (fd);
}

static void
make_base (struct chain *chain)
{
  const struct spec *spec = chain->spec;
  char *raw = level_path (chain, 0);

  fill_base (chain->disk, spec->base_size);
  if (spec->base_version == 0) {
    write_file (chain->disk, raw, spec->base_size);
    chain->paths[0] = raw;
  }
  else {
    const struct image_spec image = {
      spec->name, MADE_BY_PLOOP_IMG, spec->base_version, spec->cluster_size,
      spec->base_size, NULL
    };

    write_file (chain->disk, raw, spec->base_size);
    chain->paths[0] = image_make (&image);
    run_ok ("qemu-img convert -n -f raw -O parallels %s %s", raw,
            chain->paths[0]);
    free (raw);
  }
  chain->nr_levels = 1;
}

static void
add_level (struct chain *chain)
{
  const struct spec *spec = chain->spec;
  const unsigned level = chain->nr_levels;
  char *name = format_string ("%s.%u", spec->name, level);
  const struct image_spec image = {
    name, MADE_BY_PLOOP_IMG, spec->versions[level % 2], spec->cluster_size,
    spec->size, NULL
  };

  chain->paths[level] = image_make (&image);
  chain->nr_levels++;
  free (name);
}

/* ---- One level --------------------------------------------------------- */

/* The top is finished, and becomes a lower delta. */
static void
keep_copy (const struct chain *chain)
{
  const char *top = chain->paths[chain->nr_levels - 1];

  run_ok ("cp --sparse=always %s %s.as-it-was", top, top);
}

/* All that have become lower deltas are as they were. */
static void
compare_copies (const struct chain *chain)
{
  for (unsigned i = 0; i + 1 < chain->nr_levels; i++)
    run_ok ("cmp %s %s.as-it-was", chain->paths[i], chain->paths[i]);
}

static void
compare (struct disk *disk, struct nbd_handle *nbd)
{
  disk_compare_extents (disk, nbd);
  disk_compare_nbd (disk, nbd, disk->size, 0);
}

static void
run_load (const struct chain *chain, const struct server *server,
          bool trims_do_nothing)
{
  struct load load = {
    .disk = chain->disk, .server = server, .length = chain->disk->size,
    .max_length = MIB, .read_percent = 40, .space = true,
    .trims_do_nothing = trims_do_nothing,
  };

  load.nr_connections = 1;
  load.depth = 16;
  load.nr_requests = scaled (chain->spec->nr_requests / 3);
  load.stream = next_stream++;
  load_run (&load);
  load.nr_connections = 8;
  load.depth = 8;
  load.nr_requests = scaled (chain->spec->nr_requests);
  load.stripe = chain->spec->cluster_size / 8;
  load.stream = next_stream++;
  load_run (&load);
}

/* What was trimmed last may be punched only when the image is closed: take what
 * is there now.
 */
static void
settle (const struct chain *chain, const char *parameters)
{
  struct server *server =
    server_start_with (chain->paths[chain->nr_levels - 1], SERVER_READ_ONLY,
                       parameters);
  struct nbd_handle *nbd = server_connect (server);

  compare (chain->disk, nbd);
  server_disconnect (nbd);
  server_stop (server);
}

/* The top is closed, and read by a server for reading and by qemu. */
static void
compare_closed (const struct chain *chain, const char *parameters)
{
  const unsigned top = chain->nr_levels - 1;
  struct image_state state;
  char *image;

  image_expect_clean (chain->paths[top],
                      chain->disk->size / chain->disk->cluster_size + 1,
                      &state);
  settle (chain, parameters);
  image = qemu_image (chain, top);
  disk_compare_qemu_image (chain->disk, image);
  free (image);
  say ("  level %u: %u of %u clusters, file of %" PRIu64 " bytes", top,
       state.nr_allocated, state.nr_clusters, state.file_size);
}

/* Write to the top. */
static void
work_on_top (struct chain *chain)
{
  const unsigned top = chain->nr_levels - 1;
  const char *way = ways[top % ARRAY_SIZE (ways)];
  char *parameters = parameters_for (chain, top, way);
  struct server *server;
  struct nbd_handle *nbd;

  server = server_start_with (chain->paths[top], 0, parameters);
  nbd = server_connect (server);
  compare (chain->disk, nbd);
  run_load (chain, server, strstr (way, "discard=off") != NULL);
  compare (chain->disk, nbd);
  if (nbd_flush (nbd, 0) == -1)
    fail_nbd ("nbd_flush");
  server_disconnect (nbd);
  server_stop (server);
  if (top < LOOK_EVERY || top % LOOK_EVERY == 0
      || chain->nr_levels == chain->spec->nr_levels)
    compare_closed (chain, parameters);
  else
    settle (chain, parameters);
  free (parameters);
}

/* ---- An overlay -------------------------------------------------------- */

/* It is made when it is missing, and found when it is not. */
static void
test_overlay (struct chain *chain)
{
  const unsigned top = chain->nr_levels - 1;
  char *parameters = parameters_for (chain, top, "");
  char *overlay = format_string ("%s.overlay", chain->paths[top]);
  char *with_overlay =
    format_string ("%s overlay=%s", parameters, overlay);

  keep_copy (chain);
  chain->paths[chain->nr_levels++] = overlay;
  for (unsigned i = 0; i < 2; i++) {
    struct server *server =
      server_start_with (chain->paths[top], 0, with_overlay);
    struct nbd_handle *nbd = server_connect (server);

    compare (chain->disk, nbd);
    run_load (chain, server, false);
    compare (chain->disk, nbd);
    server_disconnect (nbd);
    server_stop (server);
  }
  free (parameters);
  parameters = parameters_for (chain, chain->nr_levels - 1, "");
  compare_closed (chain, parameters);
  free (with_overlay);
  free (parameters);
}

static void
test_chain (const struct spec *spec)
{
  struct chain chain = {
    .spec = spec,
    .disk = disk_new (spec->size, spec->cluster_size),
  };
  double begin = now_seconds ();

  disk_expect_trims (chain.disk);
  make_base (&chain);
  while (chain.nr_levels < spec->nr_levels) {
    keep_copy (&chain);
    add_level (&chain);
    work_on_top (&chain);
  }
  if (spec->nr_levels < MAX_LEVELS)
    test_overlay (&chain);
  compare_copies (&chain);
  say ("%s: %.1f s", spec->name, now_seconds () - begin);
  disk_free (chain.disk);
  for (unsigned i = 0; i < chain.nr_levels; i++) {
    unlink (chain.paths[i]);
    free (chain.paths[i]);
  }
}

int
main (void)
{
  test_begin ("test-chain");
  test_requires ("qemu-img");
  for (size_t i = 0; i < ARRAY_SIZE (specs); i++)
    if (chosen (i, ARRAY_SIZE (specs)))
      test_chain (&specs[i]);
  return test_end ();
}
