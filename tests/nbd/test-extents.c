/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Proves what block status says.
 *
 * Of images of both makers, filled at random, the answer to every question is
 * exactly what the BAT says in the part that was asked for, as a reader of the
 * format that shares no code with the library sees it: joined, not a byte more,
 * whatever the offset, also with 4 GiB - 1 bytes of a disk of 16 TiB.
 *
 * While others write, trim and write again, what was answered before a question
 * and not trimmed until its answer is never a hole in it.
 *
 * Then holes inside of clusters, the flags that the server announces, and that
 * a zero request that must be fast is either done or refused.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "extents.h"
#include "harness.h"
#include "image.h"
#include "server.h"

#define MOST_ASKED UINT64_C (0xffffffff)

static uint64_t next_stream;

/* ---- What the BAT says ------------------------------------------------- */

struct bat {
  bool *has;                    /* by cluster */
  struct image_state state;
};

static struct bat
bat_read (const char *path)
{
  struct bat bat;

  bat.has = image_read_map (path, &bat.state);
  return bat;
}

/* The end of the clusters like the one at OFFSET, but not past END. */
static uint64_t
bat_run_end (const struct bat *bat, uint64_t offset, uint64_t end)
{
  const uint64_t cluster = bat->state.cluster_size;
  uint64_t i = offset / cluster;
  const bool has = bat->has[i];

  while (i < bat->state.nr_clusters && i * cluster < end &&
         bat->has[i] == has)
    i++;
  return i * cluster < end ? i * cluster : end;
}

/* Ask, and compare with the BAT.  An answer may end early, where one extent
 * does, but not before it has had a hundred.
 */
static uint64_t
ask_and_compare (struct nbd_handle *nbd, const struct bat *bat,
                 uint64_t length, uint64_t offset, uint32_t flags,
                 struct extents *answer)
{
  uint64_t at = offset, run_end;

  extents_ask (nbd, length, offset, flags, answer);
  for (size_t i = 0; i < answer->nr; i++) {
    const struct extent *e = &answer->list[i];
    const bool has = bat->has[at / bat->state.cluster_size];

    run_end = bat_run_end (bat, at, offset + length);
    if (e->flags != (has ? 0 : IS_HOLE))
      fail ("at %" PRIu64 ": the flags are %" PRIu32
            ", but the BAT has %s cluster %" PRIu64, at, e->flags,
            has ? "a" : "no", at / bat->state.cluster_size);
    if (at + e->length != run_end)
      fail ("the extent at %" PRIu64 " ends at %" PRIu64 ", must end at %"
            PRIu64 " (%" PRIu64 " bytes at %" PRIu64 " were asked for)", at,
            at + e->length, run_end, length, offset);
    at = run_end;
  }
  if (at < offset + length && answer->nr < 100 &&
      !(flags & LIBNBD_CMD_FLAG_REQ_ONE))
    fail ("%" PRIu64 " bytes at %" PRIu64 " were asked for, %zu extents end "
          "at %" PRIu64, length, offset, answer->nr, at);
  return at - offset;
}

/* From the beginning to the end, by requests of LENGTH. */
static void
walk (struct nbd_handle *nbd, const struct bat *bat, uint64_t length,
      uint32_t flags, struct extents *answer)
{
  const uint64_t size = bat->state.size;
  uint64_t nr = 0, n;

  for (uint64_t at = 0; at < size; nr++) {
    n = size - at < length ? size - at : length;
    at += ask_and_compare (nbd, bat, n, at, flags, answer);
  }
  say ("  by %" PRIu64 " bytes, flags %" PRIu32 ": %" PRIu64 " requests",
       length, flags, nr);
}

static void
ask_at_random (struct nbd_handle *nbd, const struct bat *bat,
               struct extents *answer)
{
  const uint64_t size = bat->state.size;
  struct rng rng;

  rng_init (&rng, next_stream++);
  for (unsigned i = 0; i < scaled (2000); i++) {
    uint64_t offset = rng_below (&rng, size);
    uint64_t most = size - offset < MOST_ASKED ? size - offset : MOST_ASKED;
    uint64_t length = 1 + rng_below (&rng, most);

    if (rng_percent (&rng, 40))
      length = 1 + length % (3 * bat->state.cluster_size) % most;
    if (rng_percent (&rng, 30))
      offset -= offset % bat->state.cluster_size;
    ask_and_compare (nbd, bat, length, offset,
                     rng_percent (&rng, 30) ? LIBNBD_CMD_FLAG_REQ_ONE : 0,
                     answer);
  }
}

static void
compare_with_bat (const char *path, const char *parameters)
{
  struct bat bat = bat_read (path);
  struct server *server =
    server_start_with (path, SERVER_READ_ONLY, parameters);
  struct nbd_handle *nbd = server_connect (server);
  const uint64_t size = bat.state.size;
  const uint64_t cluster = bat.state.cluster_size;
  struct extents answer = { 0 };

  say ("%s: %u of %u clusters %s", path, bat.state.nr_allocated,
       bat.state.nr_clusters, parameters);
  walk (nbd, &bat, size < MOST_ASKED ? size : MOST_ASKED, 0, &answer);
  walk (nbd, &bat, size < MOST_ASKED ? size : MOST_ASKED,
        LIBNBD_CMD_FLAG_REQ_ONE, &answer);
  if (size / cluster < 10000) {
    walk (nbd, &bat, cluster, 0, &answer);
    walk (nbd, &bat, 3 * cluster - 1, 0, &answer);
    walk (nbd, &bat, cluster / 2 + 1, LIBNBD_CMD_FLAG_REQ_ONE, &answer);
  }
  /* The last bytes. */
  ask_and_compare (nbd, &bat, 1, size - 1, 0, &answer);
  ask_and_compare (nbd, &bat, 513, size - 513, 0, &answer);
  ask_at_random (nbd, &bat, &answer);
  extents_free (&answer);
  server_disconnect (nbd);
  server_stop (server);
  free (bat.has);
}

/* ---- Images filled at random ------------------------------------------- */

/* Runs of clusters with a few bytes in each, as `write` commands. */
static void
fill_with_qemu_io (const struct image_spec *spec, const char *path,
                   unsigned percent)
{
  const uint64_t nr = (spec->size + spec->cluster_size - 1)
                      / spec->cluster_size;
  char *orders = format_string ("%s.orders", path);
  FILE *f = fopen (orders, "w");
  bool on = false;
  struct rng rng;

  if (f == NULL)
    fail ("%s: %m", orders);
  rng_init (&rng, next_stream++);
  for (uint64_t i = 0; i < nr; i++) {
    if (rng_percent (&rng, 40))
      on = rng_percent (&rng, percent);
    if (on)
      fprintf (f, "write -P %u %" PRIu64 " 512\n",
               1 + (unsigned) (i % 250), i * spec->cluster_size);
  }
  fclose (f);
  run_ok ("out=$(qemu-io -t writeback -f parallels %s < %s 2>&1) || exit 1; "
          "case $out in *[Ff]ailed*) echo \"$out\"; exit 1 ;; esac", path, orders);
  unlink (orders);
  free (orders);
}

/* Through the server; then some of it is trimmed. */
static void
fill_through_server (const struct image_spec *spec, const char *path,
                     unsigned percent)
{
  const uint64_t nr = (spec->size + spec->cluster_size - 1)
                      / spec->cluster_size;
  struct server *server = server_start_with (path, 0, "prealloc=1M");
  struct nbd_handle *nbd = server_connect (server);
  bool on = false;
  struct rng rng;

  rng_init (&rng, next_stream++);
  for (uint64_t i = 0; i < nr; i++) {
    if (rng_percent (&rng, 40))
      on = rng_percent (&rng, percent);
    if (on && nbd_pwrite (nbd, "some", 4, i * spec->cluster_size + 77, 0)
              == -1)
      fail_nbd ("nbd_pwrite");
  }
  for (uint64_t i = 0; i < nr; i++)
    if (rng_percent (&rng, 10) &&
        nbd_trim (nbd, spec->size - i * spec->cluster_size
                       < spec->cluster_size
                         ? spec->size - i * spec->cluster_size
                         : spec->cluster_size, i * spec->cluster_size, 0)
          == -1)
      fail_nbd ("nbd_trim");
  server_disconnect (nbd);
  server_stop (server);
}

static void
test_random_images (void)
{
  static const struct image_spec specs[] = {
    { "q-63", MADE_BY_QEMU, 2, 63 * 512, 16 * MIB + 512, NULL },
    { "q-504", MADE_BY_QEMU, 2, 504 * 512, 32 * MIB, NULL },
    { "q-4096", MADE_BY_QEMU, 2, 4096, 6 * MIB + 512, NULL },
    { "v2-32k", MADE_BY_PLOOP_IMG, 2, 32 * KIB, 40 * MIB + 512, NULL },
    { "v1-64k", MADE_BY_PLOOP_IMG, 1, 64 * KIB, 32 * MIB - 512, NULL },
    { "v1-1m", MADE_BY_PLOOP_IMG, 1, MIB, 96 * MIB, NULL },
    { "v2-1m", MADE_BY_PLOOP_IMG, 2, MIB, 128 * MIB + 1024, NULL },
  };
  static const unsigned percents[] = { 0, 8, 50, 92, 100 };

  for (size_t i = 0; i < ARRAY_SIZE (specs); i++)
    for (size_t j = 0; j < ARRAY_SIZE (percents); j++) {
      char *path;

      if (!chosen (i + j, ARRAY_SIZE (percents)))
        continue;
      path = image_make (&specs[i]);
      if (specs[i].maker == MADE_BY_QEMU)
        fill_with_qemu_io (&specs[i], path, percents[j]);
      else
        fill_through_server (&specs[i], path, percents[j]);
      compare_with_bat (path, j % 2 ? "fast-path=off" : "");
      unlink (path);
      free (path);
    }
}

static void
test_corpus_images (void)
{
  static const struct image_spec specs[] = {
    { "v1-63", FROM_CORPUS, 1, 63 * 512, 8 * MIB, "e-v1-63/i.hds" },
    { "odd", FROM_CORPUS, 2, 64 * KIB, 8 * MIB + 512, "e-qemu-oddsize/i.hds" },
    { "full", FROM_CORPUS, 2, 32 * KIB, 2 * MIB,
      "a-prealloc-v2-b64/root.hds" },
  };

  for (size_t i = 0; i < ARRAY_SIZE (specs); i++) {
    char *path = image_make (&specs[i]);

    compare_with_bat (path, "");
    free (path);
  }
}

/* The largest disk, with data at both ends and in a few places. */
static void
test_16_tib (void)
{
  const struct image_spec spec = {
    "16t", MADE_BY_PLOOP_IMG, 2, MIB, 16 * TIB, NULL,
  };
  const uint64_t places[] = {
    0, 4 * GIB - 1, 4 * GIB, 8 * GIB - 2, 3 * TIB + 5 * MIB, 3 * TIB + 6 * MIB,
    9 * TIB - 1, spec.size - MIB, spec.size - 1,
  };
  char *path = image_make (&spec);
  struct server *server = server_start_with (path, 0, "prealloc=1M");
  struct nbd_handle *nbd = server_connect (server);

  if (extents_count (nbd, spec.size, 0, IS_HOLE) != spec.size)
    fail ("an empty disk of 16 TiB is not one hole");
  for (size_t i = 0; i < ARRAY_SIZE (places); i++)
    if (nbd_pwrite (nbd, "x", 1, places[i], 0) == -1)
      fail_nbd ("nbd_pwrite");
  server_disconnect (nbd);
  server_stop (server);
  compare_with_bat (path, "");
  unlink (path);
  free (path);
}

/* ---- While others write ------------------------------------------------ */

#define NR_WRITERS 4
#define NR_PLACES 256           /* clusters */

struct polled {
  const struct server *server;
  uint64_t cluster_size;
  /* Of each place, odd: its data was answered; even: it may be gone.  The
   * writer counts before it sends a trim and when a write was answered.
   */
  atomic_uint state[NR_PLACES];
  atomic_uint nr_steps;         /* of all writers */
  unsigned all_steps;
  atomic_uint nr_running;
};

struct writer {
  struct polled *polled;
  unsigned number;
  pthread_t thread;
};

/* Some bytes of the cluster PLACE, not the same in each. */
static uint64_t
place_offset (const struct polled *p, uint64_t place)
{
  return place * p->cluster_size + place * 8191 % (p->cluster_size - 4096);
}

static uint64_t
place_length (uint64_t place)
{
  return 512 + place * 37 % 3584;
}

static void
write_place (struct polled *p, struct nbd_handle *nbd, uint64_t place)
{
  uint8_t data[4096], back[4096];
  const uint64_t length = place_length (place);

  memset (data, (int) (1 + place % 255), length);
  if (nbd_pwrite (nbd, data, length, place_offset (p, place), 0) == -1)
    fail_nbd ("nbd_pwrite");
  atomic_fetch_add (&p->state[place], 1);
  memset (back, 0xEE, length);
  if (nbd_pread (nbd, back, length, place_offset (p, place), 0) == -1)
    fail_nbd ("nbd_pread");
  if (memcmp (data, back, length) != 0)
    fail ("cluster %" PRIu64 ": what was written a moment ago is gone", place);
}

/* Whole, in two pieces, or by zeroing it. */
static void
empty_place (struct polled *p, struct nbd_handle *nbd, uint64_t place,
             struct rng *rng)
{
  const uint64_t size = p->cluster_size, at = place * size;
  int r;

  atomic_fetch_add (&p->state[place], 1);
  switch (rng_below (rng, 3)) {
  case 0:
    r = nbd_trim (nbd, size, at, 0);
    break;
  case 1:
    r = nbd_trim (nbd, size / 2, at + size / 2, 0) == -1
          ? -1 : nbd_trim (nbd, size / 2, at, 0);
    break;
  default:
    r = nbd_zero (nbd, size, at, 0);
  }
  if (r == -1)
    fail_nbd ("nbd_trim or nbd_zero");
}

static void *
run_writer (void *opaque)
{
  struct writer *w = opaque;
  struct polled *p = w->polled;
  struct nbd_handle *nbd = server_connect (p->server);
  struct rng rng;

  rng_init (&rng, next_stream + w->number);
  while (atomic_fetch_add (&p->nr_steps, 1) < p->all_steps) {
    const uint64_t place =
      rng_below (&rng, NR_PLACES / NR_WRITERS) * NR_WRITERS + w->number;

    if (atomic_load (&p->state[place]) % 2 == 0)
      write_place (p, nbd, place);
    else
      empty_place (p, nbd, place, &rng);
  }
  server_disconnect (nbd);
  atomic_fetch_sub (&p->nr_running, 1);
  return NULL;
}

/* Are these bytes data in all of ANSWER? */
static bool
is_data (const struct extents *answer, uint64_t length, uint64_t offset)
{
  for (size_t i = 0; i < answer->nr; i++) {
    const struct extent *e = &answer->list[i];

    if (e->flags != 0 && e->offset < offset + length &&
        offset < e->offset + e->length)
      return false;
  }
  return true;
}

static unsigned
poll_once (struct polled *p, struct nbd_handle *nbd, struct extents *answer)
{
  unsigned before[NR_PLACES];
  unsigned nr_sure = 0;
  uint64_t place;

  for (place = 0; place < NR_PLACES; place++)
    before[place] = atomic_load (&p->state[place]);
  extents_ask (nbd, NR_PLACES * p->cluster_size, 0, 0, answer);
  for (place = 0; place < NR_PLACES; place++) {
    if (before[place] % 2 == 0 ||
        atomic_load (&p->state[place]) != before[place])
      continue;
    nr_sure++;
    if (!is_data (answer, place_length (place), place_offset (p, place)))
      fail ("cluster %" PRIu64 " has data that was answered, and is a hole",
            place);
  }
  return nr_sure;
}

static void
test_polled (uint64_t cluster_size, const char *parameters)
{
  const struct image_spec spec = {
    "polled", MADE_BY_PLOOP_IMG, 2, cluster_size, NR_PLACES * cluster_size,
    NULL,
  };
  char *path = image_make (&spec);
  struct server *server = server_start_with (path, 0, parameters);
  struct nbd_handle *nbd = server_connect (server);
  struct polled p = {
    .server = server, .cluster_size = cluster_size,
    .all_steps = scaled (6000), .nr_running = NR_WRITERS,
  };
  struct writer writers[NR_WRITERS];
  struct extents answer = { 0 };
  uint64_t nr_sure = 0;
  unsigned nr_polls = 0;

  for (unsigned i = 0; i < NR_WRITERS; i++) {
    writers[i] = (struct writer) { .polled = &p, .number = i };
    if (pthread_create (&writers[i].thread, NULL, run_writer, &writers[i])
        != 0)
      fail ("pthread_create");
  }
  while (atomic_load (&p.nr_running) > 0) {
    nr_sure += poll_once (&p, nbd, &answer);
    nr_polls++;
  }
  for (unsigned i = 0; i < NR_WRITERS; i++)
    pthread_join (writers[i].thread, NULL);
  next_stream += NR_WRITERS;
  nr_sure += poll_once (&p, nbd, &answer);
  say ("polled, clusters of %" PRIu64 ", %s: %u polls, %" PRIu64
       " times data", cluster_size, parameters, nr_polls, nr_sure);
  extents_free (&answer);
  server_disconnect (nbd);
  server_stop (server);
  free (path);
}

/* ---- Holes inside of clusters ------------------------------------------ */

/* Does the file system of the test tell holes from data? */
static bool
file_system_tells_holes (void)
{
  char *path = test_path ("holes");
  int fd = open (path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  bool tells;

  if (fd == -1 || ftruncate (fd, 1 << 20) == -1 ||
      pwrite (fd, "x", 1, 0) != 1 || fsync (fd) == -1)
    fail ("%s: %m", path);
  tells = lseek (fd, 0, SEEK_HOLE) < 1 << 20;
  close (fd);
  unlink (path);
  free (path);
  return tells;
}

/* 64 KiB at the start of a cluster: the rest of it is said to be zeros with
 * DETAIL, and data without.  Later the data's second half is trimmed.
 */
static void
test_inside (bool detail, const char *parameters)
{
  const struct image_spec spec = {
    "inside", MADE_BY_PLOOP_IMG, 2, MIB, 8 * MIB, NULL,
  };
  char *path = image_make (&spec);
  struct server *server = server_start_with (path, 0, parameters);
  struct nbd_handle *nbd = server_connect (server);
  struct extents answer = { 0 };
  const uint64_t length = 64 * KIB;
  uint8_t *buf = malloc (length);

  say ("inside of a cluster: %s", parameters);
  if (buf == NULL)
    abort ();
  memset (buf, 0x5a, length);
  if (nbd_pwrite (nbd, buf, length, 3 * MIB, LIBNBD_CMD_FLAG_FUA) == -1)
    fail_nbd ("nbd_pwrite");
  extents_ask (nbd, 8 * MIB, 0, 0, &answer);
  if (answer.nr != 3 || answer.end != 8 * MIB ||
      answer.list[0].length != 3 * MIB || answer.list[1].flags != 0 ||
      answer.list[1].length != (detail ? length : MIB))
    fail ("the data is an extent of %" PRIu64 " bytes at %" PRIu64
          ", one of %zu",
          answer.nr > 1 ? answer.list[1].length : 0,
          answer.nr > 1 ? answer.list[1].offset : 0, answer.nr);
  if (extents_count (nbd, 8 * MIB, 0, LIBNBD_STATE_ZERO) !=
      8 * MIB - (detail ? length : MIB))
    fail ("not all of the rest reads as zeros");

  if (nbd_trim (nbd, length / 2, 3 * MIB + length / 2, 0) == -1)
    fail_nbd ("nbd_trim");
  if (detail)
    extents_wait (nbd, MIB, 3 * MIB, LIBNBD_STATE_ZERO, MIB - length / 2,
                  "half of the data was trimmed");
  else if (extents_count (nbd, MIB, 3 * MIB, 0) != MIB ||
           extents_count (nbd, MIB, 3 * MIB, LIBNBD_STATE_ZERO) != 0)
    fail ("a cluster with data is not data with extents=cluster");
  /* A write in the middle of the hole. */
  if (nbd_pwrite (nbd, buf, 1000, 3 * MIB + 500 * KIB + 3, 0) == -1)
    fail_nbd ("nbd_pwrite");
  extents_ask (nbd, 1000, 3 * MIB + 500 * KIB + 3, 0, &answer);
  if (answer.nr != 1 || answer.list[0].flags != 0 ||
      answer.list[0].length != 1000)
    fail ("what was written a moment ago is not data");
  free (buf);
  extents_free (&answer);
  server_disconnect (nbd);
  server_stop (server);
  free (path);
}

/* ---- What is announced, and fast zeroes -------------------------------- */

static void
expect_yes (int answer, const char *what)
{
  if (answer == -1)
    fail_nbd (what);
  if (answer == 0)
    fail ("%s is false, must be true", what);
}

/* There is nothing to cache in with cache=none. */
static bool
has_page_cache (void)
{
  const char *outside = getenv ("PLOOP_PARAMETERS");

  return outside == NULL || strstr (outside, "cache=none") == NULL;
}

static void
expect_cache (struct nbd_handle *nbd)
{
  if (!has_page_cache ())
    return;
  expect_yes (nbd_can_cache (nbd), "can_cache");
  if (nbd_cache (nbd, 8 * MIB, 0, 0) == -1 || nbd_cache (nbd, 1, 77, 0) == -1)
    fail_nbd ("nbd_cache");
}

static void
test_announced (const char *parameters)
{
  const struct image_spec spec = {
    "announced", MADE_BY_PLOOP_IMG, 2, MIB, 8 * MIB, NULL,
  };
  char *path = image_make (&spec);
  struct server *server = server_start_with (path, 0, parameters);
  struct nbd_handle *nbd = server_connect (server);

  say ("announced: %s", parameters);
  expect_yes (nbd_can_trim (nbd), "can_trim");
  expect_yes (nbd_can_zero (nbd), "can_zero");
  expect_yes (nbd_can_fast_zero (nbd), "can_fast_zero");
  expect_yes (nbd_can_fua (nbd), "can_fua");
  expect_yes (nbd_can_multi_conn (nbd), "can_multi_conn");
  expect_yes (nbd_can_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION),
              "can_meta_context");
  expect_cache (nbd);
  server_disconnect (nbd);
  server_stop (server);

  server = server_start_with (path, SERVER_READ_ONLY, parameters);
  nbd = server_connect (server);
  expect_yes (nbd_is_read_only (nbd), "is_read_only");
  expect_yes (nbd_can_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION),
              "can_meta_context, read-only");
  expect_cache (nbd);
  if (extents_count (nbd, 8 * MIB, 0, IS_HOLE) != 8 * MIB)
    fail ("an empty disk is not one hole");
  server_disconnect (nbd);
  server_stop (server);
  free (path);
}

/* LENGTH bytes at OFFSET are all VALUE. */
static void
expect_content (struct nbd_handle *nbd, uint64_t length, uint64_t offset,
                uint8_t value, const char *what)
{
  uint8_t *buf = malloc (length);

  if (buf == NULL)
    abort ();
  memset (buf, 0xEE, length);
  if (nbd_pread (nbd, buf, length, offset, 0) == -1)
    fail_nbd ("nbd_pread");
  for (uint64_t i = 0; i < length; i++)
    if (buf[i] != value)
      fail ("%s: byte %" PRIu64 " is 0x%02x, must be 0x%02x", what, offset + i,
            buf[i], value);
  free (buf);
}

/* Data of 0x5a is there.  True when it was zeroed, else all of it must be as it
 * was.
 */
static bool
zero_fast (struct nbd_handle *nbd, uint64_t length, uint64_t offset,
           uint32_t flags, uint8_t before)
{
  const bool done = nbd_zero (nbd, length, offset,
                              flags | LIBNBD_CMD_FLAG_FAST_ZERO) == 0;

  if (!done && nbd_get_errno () != ENOTSUP)
    fail_nbd ("a fast zero request");
  expect_content (nbd, length, offset, done ? 0 : before,
                  done ? "zeroed" : "refused");
  return done;
}

static void
test_fast_zero (const char *parameters)
{
  const struct image_spec spec = {
    "fast", MADE_BY_PLOOP_IMG, 2, 64 * KIB, 4 * MIB, NULL,
  };
  const uint64_t cluster = spec.cluster_size;
  char *path = image_make (&spec);
  struct server *server = server_start_with (path, 0, parameters);
  struct nbd_handle *nbd = server_connect (server);
  uint8_t *buf = malloc (16 * cluster);
  bool no_hole, piece, both_ends;

  if (buf == NULL)
    abort ();
  memset (buf, 0x5a, 16 * cluster);
  if (nbd_pwrite (nbd, buf, 16 * cluster, 0, 0) == -1)
    fail_nbd ("nbd_pwrite");
  free (buf);

  /* There is nothing to do where nothing is. */
  if (!zero_fast (nbd, 2 * MIB, 2 * MIB, 0, 0))
    fail ("%s: zeroing nothing is not fast", parameters);
  if (!zero_fast (nbd, 1000, 3 * MIB + 77, 0, 0))
    fail ("%s: zeroing a piece of nothing is not fast", parameters);
  /* Unmapping is fast. */
  if (!zero_fast (nbd, 2 * cluster, 2 * cluster, 0, 0x5a))
    fail ("%s: zeroing whole clusters is not fast", parameters);
  if (extents_count (nbd, 2 * cluster, 2 * cluster, IS_HOLE) != 2 * cluster)
    fail ("%s: clusters that were zeroed fast are there", parameters);
  no_hole = zero_fast (nbd, 2 * cluster, 5 * cluster,
                       LIBNBD_CMD_FLAG_NO_HOLE, 0x5a);
  piece = zero_fast (nbd, 5000, 8 * cluster + 33, LIBNBD_CMD_FLAG_FUA, 0x5a);
  both_ends = zero_fast (nbd, 2 * cluster, 10 * cluster + 100, 0, 0x5a);
  say ("fast, %s: without a hole %d, a piece %d, with odd ends %d",
       parameters, no_hole, piece, both_ends);
  expect_content (nbd, 33, 8 * cluster, 0x5a, "before the piece");
  expect_content (nbd, cluster - 5033, 8 * cluster + 5033, 0x5a,
                  "after the piece");
  expect_content (nbd, 100, 10 * cluster, 0x5a, "before the odd ends");
  expect_content (nbd, cluster - 100, 12 * cluster + 100, 0x5a,
                  "after the odd ends");
  expect_content (nbd, 3 * cluster, 13 * cluster, 0x5a, "untouched");
  server_disconnect (nbd);
  server_stop (server);
  free (path);
}

int
main (void)
{
  test_begin ("test-extents");
  test_requires ("qemu-img");
  test_requires ("qemu-io");
  test_announced ("");
  test_announced ("discard=off extents=detail");
  test_fast_zero ("");
  test_fast_zero ("cache=none");
  test_fast_zero ("fast-path=off");
  test_fast_zero ("discard=keep");
  test_fast_zero ("discard=keep fast-path=off");
  test_corpus_images ();
  test_random_images ();
  test_16_tib ();
  test_polled (64 * KIB, "");
  test_polled (64 * KIB, "extents=detail");
  test_polled (MIB, "extents=detail fast-path=off prealloc-mode=truncate");
  test_polled (32 * KIB, "cache=none extents=detail");
  test_polled (32 * KIB, "discard=keep");
  if (file_system_tells_holes ()) {
    test_inside (true, "extents=detail");
    test_inside (true, "extents=detail prealloc-mode=truncate");
    test_inside (true, "extents=detail cache=none");
  }
  else
    say ("the file system does not tell holes: extents=detail is not tried");
  test_inside (false, "extents=cluster");
  test_inside (false, "");
  return test_end ();
}
