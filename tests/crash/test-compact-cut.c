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
#include <stdio.h>
#include <string.h>

#include <glib.h>

#include "drawn.h"
#include "ploop-core.h"
#include "reader.h"
#include "recorder.h"
#include "rounds.h"
#include "rules.h"

#define SECTOR 512u
#define NR_SECTORS 3000u
#define NR_ROUNDS 40u

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

static const char *image_path, *cut_path;
static uint8_t disk[NR_SECTORS * SECTOR];       /* what it must hold */
static uint64_t smallest;       /* bytes; what the file can come down to */
static unsigned nr_calls_left;
static bool is_recorded;
static uint64_t closing;        /* a moment, before the image is closed */

/* ---- Images ------------------------------------------------------------ */

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
  if (shape->version == 2 || drawn_chance (random, 50))
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
  round.options.keep_holes_out = drawn_chance (random, 25);
  round.options.batch = cluster_bytes (&round) * DRAW (random, 1, 3, 10, 1000);
  round.used = DRAW (random, 10, 40, 60, 90);
  round.holes = DRAW (random, 0, 30, 70);
  round.garbage = DRAW (random, 0, 50, 100);
  round.patience = DRAW (random, 0, 0, 0, 1, 2, 5);
  round.in_use = drawn_chance (random, 25);
  round.faults.one_thread = true;
  round.faults.no_punch = drawn_chance (random, 25);
  round.faults.no_zero_range = drawn_chance (random, 25);
  g_rand_free (random);
  return round;
}

/* The whole file in memory: *SIZE bytes (g_free). */
static uint8_t *
make_bytes (const struct round *round, uint64_t *size, GRand *random)
{
  const uint64_t start = reader_data_start (&round->shape);
  const uint64_t cluster = cluster_bytes (round);
  const uint32_t nr_cells = 2 * round->shape.nr_entries;
  g_autofree uint32_t *cells = drawn_order (nr_cells, random);
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

    if (i < round->shape.nr_entries && drawn_chance (random, round->used)) {
      reader_put_entry (&round->shape, bytes, i, offset);
      drawn_stamp (bytes + offset, (uint64_t) i * round->shape.cluster_sectors,
                   round->shape.cluster_sectors, round->holes, random);
      smallest += cluster;
    }
    else if (drawn_chance (random, round->garbage))
      memset (bytes + offset, 'g', cluster);
  }
  return bytes;
}

/* ---- Reading ----------------------------------------------------------- */

static void
remember_disk (const uint8_t *bytes, uint64_t size)
{
  struct reader reader;
  g_autofree char *fault = reader_open (&reader, bytes, size);

  if (fault)
    g_error ("the image to begin with: %s", fault);
  for (uint64_t i = 0; i < NR_SECTORS; i++)
    memcpy (disk + i * SECTOR, reader_content (&reader, i), SECTOR);
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
    if (memcmp (disk + i * SECTOR, reader_content (reader, i), SECTOR) != 0)
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
check_cut (const struct recorder_cut *cut, uint64_t moment, void *opaque)
{
  struct reader reader;

  (void) opaque;
  check_disk (&reader, cut->bytes, cut->size);
  if (!rules_broken && cut->changed && moment <= closing
      && reader.in_use != READER_IN_USE)
    rules_break ("changed, but not marked as in use");
}

/* Go on with what cuts have left; nothing is recorded any more. */
static void
compact_left_over (const struct round *round, const GArray *left_over)
{
  for (guint i = 0; i < left_over->len && !rules_broken; i++) {
    recorder_cut_save (g_array_index (left_over, struct rounds_left, i).cut,
                       cut_path);
    compact (round, cut_path, 0);
    rounds_count_resumed ();
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
  g_autoptr (GArray) left_over = NULL;
  g_autofree uint8_t *bytes = NULL;
  uint64_t size, end;

  bytes = make_bytes (&round, &size, random);
  drawn_save (image_path, bytes, size);
  remember_disk (bytes, size);
  recorder_start (image_path, &round.faults, seed);
  is_recorded = true;
  closing = 0;
  compact (&round, image_path, round.patience);
  end = recorder_now ();
  is_recorded = false;
  check_recorder (end, random);
  if (!rules_broken)
    left_over = rounds_cut (end, broken_sync, random, check_cut, NULL);
  recorder_stop ();
  if (left_over)
    compact_left_over (&round, left_over);
  if (rules_broken && !broken_sync) {
    g_autofree char *text = describe_round (&round);

    fprintf (stderr, "%s\n", text);
  }
  g_rand_free (random);
}

int
main (void)
{
  image_path = rounds_path ("image");
  cut_path = rounds_path ("cut");
  return rounds_main (NR_ROUNDS, run_round);
}
