/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Power cuts at every instant of a compaction, with any part of what was not
 * synced lost: every sector of the disk reads as before, no BAT entry is wrong,
 * and an image that has changed is marked as in use until all is done.
 *
 * Each round draws an image, clusters here and there in the file with garbage
 * and holes between them, lets it be compacted, and cuts at each event that the
 * recorder has seen.  What is left is read by this test's own reader.  Some of
 * it is compacted again, and must then be as small as can be and read the same.
 *
 * At the end the same is done with syncs that do nothing: that must be noticed.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <glib.h>

#include "ploop-core.h"
#include "reader.h"
#include "recorder.h"
#include "rules.h"

#define SECTOR 512u
#define BLOCK 4096u
#define NR_SECTORS 3000u
#define NR_ROUNDS 40u
/* Of a round with many events, some are left out, but for the last ones. */
#define NR_MOMENTS 60u
#define NR_LAST 15u
#define NR_LEFT_OVER 4u

struct round {
  uint32_t seed;
  struct reader_shape shape;
  struct ploop_compact_options options;
  struct recorder_faults faults;
  unsigned used, holes, garbage;        /* per cent of clusters, of blocks, of
                                           free cells */
  unsigned patience;            /* calls until it is interrupted; 0: never */
  bool in_use;                  /* before */
};

static char *image_path, *cut_path;
static uint8_t *disk;           /* what every sector must hold */
static uint64_t smallest;       /* bytes; what the file can come down to */
static unsigned nr_calls_left;
static bool is_recorded;
static uint64_t closing;        /* a moment, before the image is closed */
static uint64_t nr_states, nr_compacted;

/* ---- Images ------------------------------------------------------------ */

static unsigned
draw_one (GRand *random, const unsigned *values, size_t nr)
{
  return values[g_rand_int_range (random, 0, (gint32) nr)];
}

#define DRAW(random, ...)                                                    \
  draw_one ((random), (const unsigned[]){ __VA_ARGS__ },                      \
            G_N_ELEMENTS (((const unsigned[]){ __VA_ARGS__ })))

static bool
chance (GRand *random, unsigned per_cent)
{
  return (unsigned) g_rand_int_range (random, 0, 100) < per_cent;
}

static uint64_t
cluster_bytes (const struct round *round)
{
  return (uint64_t) round->shape.cluster_sectors * SECTOR;
}

static void
draw_shape (GRand *random, struct reader_shape *shape)
{
  const uint32_t cluster = DRAW (random, 1, 8, 16, 63, 64, 504);

  *shape = (struct reader_shape) {
    .version = DRAW (random, 1, 2),
    .cluster_sectors = cluster,
    .nr_sectors = NR_SECTORS,
    .nr_entries = (NR_SECTORS + cluster - 1) / cluster,
  };
  if (shape->version == 2 || chance (random, 50))
    shape->data_sectors =
      ((64 + 4 * shape->nr_entries + SECTOR - 1) / SECTOR + cluster - 1)
      / cluster * cluster;
}

static struct round
draw_round (uint32_t seed)
{
  GRand *random = g_rand_new_with_seed (seed);
  struct round round = { .seed = seed };

  draw_shape (random, &round.shape);
  round.options.keep_holes_out = chance (random, 25);
  round.options.batch = cluster_bytes (&round) * DRAW (random, 1, 3, 10, 1000);
  round.used = DRAW (random, 10, 40, 60, 90);
  round.holes = DRAW (random, 0, 30, 70);
  round.garbage = DRAW (random, 0, 50, 100);
  round.patience = DRAW (random, 0, 0, 0, 1, 2, 5);
  round.in_use = chance (random, 25);
  round.faults.no_punch = chance (random, 25);
  round.faults.no_zero_range = chance (random, 25);
  g_rand_free (random);
  return round;
}

/* Cells in an order by chance; twice as many as there are clusters. */
static uint32_t *
shuffle_cells (const struct round *round, GRand *random)
{
  const uint32_t nr = 2 * round->shape.nr_entries;
  uint32_t *cells = g_new (uint32_t, nr);

  for (uint32_t i = 0; i < nr; i++)
    cells[i] = i;
  for (uint32_t i = nr - 1; i > 0; i--) {
    const uint32_t j = (uint32_t) g_rand_int_range (random, 0, (gint32) i + 1);
    const uint32_t cell = cells[i];

    cells[i] = cells[j];
    cells[j] = cell;
  }
  return cells;
}

/* A cluster's sectors, some of its blocks holes. */
static void
put_cluster (uint8_t *bytes, const struct round *round, uint32_t index,
             uint64_t offset, GRand *random)
{
  const uint32_t nr = round->shape.cluster_sectors;
  bool hole = false;

  for (uint32_t i = 0; i < nr; i++) {
    if (i % (BLOCK / SECTOR) == 0)
      hole = chance (random, round->holes);
    if (!hole)
      rules_stamp (bytes + offset + i * SECTOR, (uint64_t) index * nr + i,
                   rules_new_number ());
  }
}

/* The whole file in memory: *SIZE bytes (g_free). */
static uint8_t *
make_bytes (const struct round *round, uint64_t *size, GRand *random)
{
  const uint64_t start = reader_data_start (&round->shape);
  const uint64_t cluster = cluster_bytes (round);
  const uint32_t nr_cells = 2 * round->shape.nr_entries;
  g_autofree uint32_t *cells = shuffle_cells (round, random);
  g_autofree uint8_t *head = reader_make (&round->shape, size);
  uint8_t *bytes;

  smallest = start;
  *size = start + nr_cells * cluster;
  bytes = g_malloc0 (*size);
  memcpy (bytes, head, start);
  bytes[52] = 0;                /* not empty */
  if (round->in_use)
    memcpy (bytes + 44, "Ynot", 4);
  for (uint32_t i = 0; i < nr_cells; i++) {
    const uint64_t offset = start + cells[i] * cluster;

    if (i < round->shape.nr_entries && chance (random, round->used)) {
      reader_put_entry (&round->shape, bytes, i, offset);
      put_cluster (bytes, round, i, offset, random);
      smallest += cluster;
    }
    else if (chance (random, round->garbage))
      memset (bytes + offset, 'g', cluster);
  }
  return bytes;
}

/* What is zeros becomes a hole. */
static void
save_sparse (const char *path, const uint8_t *bytes, uint64_t size)
{
  static const uint8_t zeroes[BLOCK];
  int fd;

  unlink (path);
  fd = open (path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd == -1 || ftruncate (fd, (off_t) size) == -1)
    g_error ("%s: %s", path, g_strerror (errno));
  for (uint64_t at = 0; at < size; at += BLOCK) {
    const size_t n = (size_t) MIN (size - at, BLOCK);

    if (memcmp (bytes + at, zeroes, n) != 0
        && pwrite (fd, bytes + at, n, (off_t) at) != (ssize_t) n)
      g_error ("%s: %s", path, g_strerror (errno));
  }
  close (fd);
}

/* ---- Reading ----------------------------------------------------------- */

static const uint8_t *
sector_or_zeroes (const struct reader *reader, uint64_t sector)
{
  static const uint8_t zeroes[SECTOR];
  const uint8_t *bytes = reader_sector (reader, sector);

  return bytes ? bytes : zeroes;
}

static void
remember_disk (const uint8_t *bytes, uint64_t size)
{
  struct reader reader;
  g_autofree char *fault = reader_open (&reader, bytes, size);

  if (fault)
    g_error ("the image to begin with: %s", fault);
  for (uint64_t i = 0; i < NR_SECTORS; i++)
    memcpy (disk + i * SECTOR, sector_or_zeroes (&reader, i), SECTOR);
}

static void
check_disk (struct reader *reader, const uint8_t *bytes, uint64_t size)
{
  g_autofree char *fault = reader_open (reader, bytes, size);

  if (fault) {
    rules_break ("%s", fault);
    return;
  }
  for (uint64_t i = 0; i < NR_SECTORS && !rules_broken; i++)
    if (memcmp (disk + i * SECTOR, sector_or_zeroes (reader, i), SECTOR) != 0)
      rules_break ("sector %" G_GUINT64_FORMAT " has changed", i);
}

/* Closed, and no longer than its clusters. */
static void
check_file (const char *path, bool whole)
{
  g_autofree char *bytes = NULL;
  struct reader reader;
  gsize size;

  if (!g_file_get_contents (path, &bytes, &size, NULL))
    g_error ("%s: %s", path, g_strerror (errno));
  check_disk (&reader, (const uint8_t *) bytes, size);
  if (rules_broken)
    return;
  if (reader.in_use != READER_CLOSED)
    rules_break ("it is not closed");
  else if (size != reader_data_end (&reader))
    rules_break ("the file is longer than its clusters");
  else if (whole && size != smallest)
    rules_break ("the file is longer than it has to be");
}

/* ---- Compacting -------------------------------------------------------- */

static bool
on_progress (void *opaque, uint64_t nr_bytes_done, uint64_t nr_bytes)
{
  (void) opaque;
  (void) nr_bytes_done;
  (void) nr_bytes;
  if (is_recorded)
    closing = recorder_now ();
  return nr_calls_left == 0 || --nr_calls_left > 0;
}

static void
compact (const struct round *round, const char *path, unsigned patience)
{
  struct ploop_compact_result result;
  g_autoptr (GError) error = NULL;

  nr_calls_left = patience;
  if (ploop_compact (path, &round->options, on_progress, NULL, &result,
                     &error) == -1)
    rules_break ("it cannot be compacted: %s", error->message);
  else
    check_file (path, !result.interrupted);
}

static void
check_cut (const struct recorder_cut *cut, uint64_t moment)
{
  struct reader reader;

  nr_states++;
  check_disk (&reader, cut->bytes, cut->size);
  if (!rules_broken && cut->changed && moment <= closing
      && reader.in_use != READER_IN_USE)
    rules_break ("changed, but not marked as in use");
}

/* Go on with what cuts have left; nothing is recorded any more. */
static void
compact_left_over (const struct round *round, const GPtrArray *left_over)
{
  for (guint i = 0; i < left_over->len && !rules_broken; i++) {
    recorder_cut_save (g_ptr_array_index (left_over, i), cut_path);
    compact (round, cut_path, 0);
    nr_compacted++;
  }
}

/* Cut at MOMENT with each chance of what is not synced to be there. */
static void
cut_at (uint64_t moment, uint64_t end, bool broken_sync, GRand *random,
        GPtrArray *left_over)
{
  static const double keeps[] = { 0, 0.5, 0.9, 1 };

  for (size_t i = 0; i < G_N_ELEMENTS (keeps) && !rules_broken; i++) {
    recorder_cut_t *cut =
      recorder_cut (moment, keeps[i], broken_sync, random);

    check_cut (cut, moment);
    if (rules_broken && !broken_sync)
      fprintf (stderr, "cut at %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT
               ", keeping %.1f\n", moment, end, keeps[i]);
    if (left_over->len < NR_LEFT_OVER && chance (random, 3))
      g_ptr_array_add (left_over, cut);
    else
      recorder_cut_free (cut);
  }
}

static void
cut_everywhere (uint64_t end, bool broken_sync, GRand *random,
                GPtrArray *left_over)
{
  const uint64_t stride = end / NR_MOMENTS + 1;
  uint64_t moment =
    (uint64_t) g_rand_int_range (random, 0, (gint32) stride);

  while (moment <= end && !rules_broken) {
    cut_at (moment, end, broken_sync, random, left_over);
    moment += moment + NR_LAST >= end ? 1 : stride;
  }
}

/* Has the recorder seen all that was done? */
static void
check_recorder (uint64_t end, GRand *random)
{
  g_autoptr (recorder_cut_t) all = recorder_cut (end, 1, false, random);

  if (!recorder_cut_is_file (all, image_path))
    g_error ("the file was changed in a way that the recorder does not see");
}

static char *
describe_round (const struct round *round)
{
  return g_strdup_printf (
    "PLOOP_TEST_SEED=%u: version %u, %u sectors a cluster, data at sector %u, "
    "batch %" G_GUINT64_FORMAT "; of a hundred %u clusters used, %u blocks "
    "holes, %u free cells garbage; patience %u%s%s%s%s",
    round->seed, round->shape.version, round->shape.cluster_sectors,
    round->shape.data_sectors, round->options.batch, round->used, round->holes,
    round->garbage, round->patience, round->in_use ? ", in use" : "",
    round->options.keep_holes_out ? ", no holes" : "",
    round->faults.no_punch ? ", no punch" : "",
    round->faults.no_zero_range ? ", no zero range" : "");
}

static void
run_round (uint32_t seed, bool broken_sync)
{
  const struct round round = draw_round (seed);
  GRand *random = g_rand_new_with_seed (seed + 1);
  g_autoptr (GPtrArray) left_over =
    g_ptr_array_new_with_free_func ((GDestroyNotify) recorder_cut_free);
  g_autofree uint8_t *bytes = NULL;
  uint64_t size, end;

  bytes = make_bytes (&round, &size, random);
  save_sparse (image_path, bytes, size);
  remember_disk (bytes, size);
  recorder_start (image_path, &round.faults, seed);
  is_recorded = true;
  closing = 0;
  compact (&round, image_path, round.patience);
  end = recorder_now ();
  is_recorded = false;
  check_recorder (end, random);
  if (!rules_broken)
    cut_everywhere (end, broken_sync, random, left_over);
  recorder_stop ();
  compact_left_over (&round, left_over);
  if (rules_broken && !broken_sync) {
    g_autofree char *text = describe_round (&round);

    fprintf (stderr, "%s\n", text);
  }
  g_rand_free (random);
}

/* ---- All rounds -------------------------------------------------------- */

static unsigned
number_from (const char *name, unsigned otherwise)
{
  const char *value = g_getenv (name);

  return value ? (unsigned) strtoul (value, NULL, 0) : otherwise;
}

static void
run_rounds (uint32_t seed)
{
  const unsigned nr =
    MAX (NR_ROUNDS * number_from ("PLOOP_TEST_SCALE", 100) / 100, 1);

  printf ("%u rounds, PLOOP_TEST_SEED=%u\n", nr, seed);
  fflush (stdout);
  for (unsigned i = 0; i < nr && !rules_broken; i++)
    run_round (seed + 1000 * i, false);
}

static void
run_without_syncs (uint32_t seed)
{
  for (unsigned i = 0; i < 20 && !rules_broken; i++)
    run_round (seed + 1000 * i, true);
  if (rules_broken) {
    printf ("without syncs, as it must be: %s\n", rules_broken);
    rules_forget_broken ();
  }
  else
    rules_break ("syncs that do nothing go unnoticed: this test cannot fail");
}

static void
clean_up (char *directory)
{
  unlink (image_path);
  unlink (cut_path);
  rmdir (directory);
  g_free (image_path);
  g_free (cut_path);
  g_free (directory);
  g_free (disk);
}

int
main (void)
{
  const uint32_t seed = number_from ("PLOOP_TEST_SEED", g_random_int ());
  char *directory;
  bool broken;

  /* In memory, where that is offered: nothing here need really be durable. */
  if (!g_getenv ("TMPDIR") && access ("/dev/shm", W_OK) == 0)
    g_setenv ("TMPDIR", "/dev/shm", TRUE);
  directory = g_dir_make_tmp ("ploop-crash-XXXXXX", NULL);
  image_path = g_build_filename (directory, "image", NULL);
  cut_path = g_build_filename (directory, "cut", NULL);
  disk = g_malloc (NR_SECTORS * SECTOR);
  run_rounds (seed);
  printf ("%" G_GUINT64_FORMAT " crash states, %" G_GUINT64_FORMAT
          " compacted again\n", nr_states, nr_compacted);
  if (!rules_broken)
    run_without_syncs (seed);
  broken = rules_broken != NULL;
  if (broken)
    fprintf (stderr, "%s\n", rules_broken);
  rules_forget_broken ();
  clean_up (directory);
  return broken ? EXIT_FAILURE : EXIT_SUCCESS;
}
