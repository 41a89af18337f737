/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Power cuts at every instant while a disk gets another size, larger or smaller, with
 * any part of what was not synced lost: the image has the old size or the new one, each
 * sector that both have reads as before, what is added reads as zeros, no BAT entry is
 * wrong under the header that is there, and what has changed is marked as in use until
 * all is done.  The same resize, done again, completes it.
 *
 * What can go wrong is in the images: clusters where the longer BAT will be, off the
 * grid too; a data area that begins right behind the BAT; garbage in the last cluster
 * behind the end of the disk, which comes to light when that moves.
 *
 * At the end the same is done with syncs that do nothing: that must be noticed.
 */

#include <config.h>

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
#define MAX_SECTORS 8000u       /* of a disk */
#define NR_ROUNDS 60u

struct round {
  uint32_t seed;
  struct reader_shape old;
  uint32_t nr_sectors;          /* of the disk to be */
  struct ploop_resize_options options;
  struct recorder_faults faults;
  unsigned used, holes, garbage;        /* per cent of clusters, of blocks, of
                                           free cells */
  uint32_t gap;                 /* sectors between two cells: off the grid */
  unsigned patience;            /* calls until it is interrupted; 0: never */
  bool in_use;                  /* before */
};

static const char *image_path, *cut_path;
static uint8_t disk[MAX_SECTORS * SECTOR];      /* as it was */
static unsigned nr_calls_left;

/* ---- Images ------------------------------------------------------------ */

static uint32_t
divide_up (uint32_t n, uint32_t by)
{
  return (n + by - 1) / by;
}

/* Where the data area may begin, in sectors; 0: right behind the BAT. */
static uint32_t
draw_data_sectors (GRand *random, const struct reader_shape *shape)
{
  const uint32_t cluster = shape->cluster_sectors;
  const uint32_t least = divide_up (64 + 4 * shape->nr_entries, SECTOR);

  if (shape->version == 1 && drawn_chance (random, 40))
    return 0;
  if (shape->version == 1 && drawn_chance (random, 30))
    return least + DRAW (random, 0, 1, 2, 7);
  return (divide_up (least, cluster) + DRAW (random, 0, 0, 0, 1)) * cluster;
}

/* Some of a few clusters more or less; most so many that the BAT takes others. */
static uint32_t
draw_size (GRand *random, uint32_t most)
{
  return (uint32_t) g_rand_int_range (random, 1, (gint32) most + 1);
}

static void
draw_sizes (GRand *random, struct round *round)
{
  const uint32_t cluster = round->old.cluster_sectors;
  const uint32_t most =
    cluster < 8 ? 3000 : cluster < 60 ? 6000 : MAX_SECTORS;
  const uint32_t one = draw_size (random, most);
  const uint32_t other = draw_size (random, most);
  const bool grow = drawn_chance (random, 65);

  round->old.nr_sectors = grow ? MIN (one, other) : MAX (one, other);
  round->nr_sectors = grow ? MAX (one, other) : MIN (one, other);
  if (drawn_chance (random, 5))
    round->nr_sectors = round->old.nr_sectors;
}

static void
draw_shape (GRand *random, struct round *round)
{
  struct reader_shape *shape = &round->old;

  shape->version = DRAW (random, 1, 2);
  shape->cluster_sectors = DRAW (random, 1, 2, 3, 5, 8, 16, 63, 64);
  draw_sizes (random, round);
  shape->nr_entries = divide_up (shape->nr_sectors, shape->cluster_sectors);
  shape->data_sectors = draw_data_sectors (random, shape);
  if (shape->version == 1 && drawn_chance (random, 25))
    round->gap = DRAW (random, 1, 1, 2, 7);
}

static void
draw_faults (GRand *random, const struct round *round,
             struct recorder_faults *faults)
{
  faults->one_thread = true;
  faults->no_punch = drawn_chance (random, 25);
  faults->no_zero_range = drawn_chance (random, 25);
  faults->data_start = reader_data_start (&round->old);
  if (drawn_chance (random, 20))
    faults->no_space = 0.05;
  if (drawn_chance (random, 20))
    faults->failing_sync = (unsigned) g_rand_int_range (random, 1, 6);
}

static struct round
draw_round (uint32_t seed)
{
  GRand *random = g_rand_new_with_seed (seed);
  struct round round = { .seed = seed };

  draw_shape (random, &round);
  round.options.keep_holes_out = drawn_chance (random, 25);
  round.options.discard = drawn_chance (random, 50);
  round.options.shrink = true;
  round.used = DRAW (random, 10, 40, 60, 90);
  round.holes = DRAW (random, 0, 30, 70);
  round.garbage = DRAW (random, 0, 50, 100);
  round.patience = DRAW (random, 0, 0, 0, 1, 2, 5);
  round.in_use = drawn_chance (random, 25);
  draw_faults (random, &round, &round.faults);
  g_rand_free (random);
  return round;
}

/* Unless it may be lost, there is nothing behind the new end; but behind the old one,
 * where no disk is, there may be anything.
 */
static void
put_cluster (uint8_t *bytes, const struct round *round, uint32_t index,
             GRand *random)
{
  const uint32_t cluster = round->old.cluster_sectors;
  const uint32_t first = index * cluster;

  drawn_stamp (bytes, first, cluster, round->holes, random);
  for (uint32_t i = first; i < first + cluster && !round->options.discard; i++)
    if (i >= round->nr_sectors && i < round->old.nr_sectors)
      memset (bytes + (i - first) * SECTOR, 0, SECTOR);
}

/* The whole file in memory: *SIZE bytes (g_free). */
static uint8_t *
make_bytes (const struct round *round, uint64_t *size, GRand *random)
{
  const struct reader_shape *shape = &round->old;
  const uint64_t start = reader_data_start (shape);
  const uint64_t cluster = (uint64_t) shape->cluster_sectors * SECTOR;
  const uint64_t pitch = cluster + (uint64_t) round->gap * SECTOR;
  const uint32_t nr_cells = shape->nr_entries + shape->nr_entries / 2 + 1;
  g_autofree uint32_t *cells = drawn_order (nr_cells, random);
  g_autofree uint8_t *head = reader_make (shape, size);
  uint8_t *bytes;

  *size = start + nr_cells * pitch;
  bytes = g_malloc0 (*size);
  memcpy (bytes, head, start);
  bytes[52] = 0;                /* not empty */
  if (round->in_use)
    memcpy (bytes + 44, "Ynot", 4);
  for (uint32_t i = 0; i < nr_cells; i++) {
    const uint64_t offset = start + cells[i] * pitch;

    if (i < shape->nr_entries && drawn_chance (random, round->used)) {
      reader_put_entry (shape, bytes, i, offset);
      put_cluster (bytes + offset, round, i, random);
    }
    else if (drawn_chance (random, round->garbage))
      memset (bytes + offset, 'g', pitch);
  }
  return bytes;
}

/* ---- Judging ----------------------------------------------------------- */

static void
remember_disk (const struct round *round, const uint8_t *bytes, uint64_t size)
{
  struct reader reader;
  g_autofree char *fault = reader_open_off_grid (&reader, bytes, size);

  if (fault)
    g_error ("the image to begin with: %s", fault);
  memset (disk, 0, sizeof disk);
  for (uint64_t i = 0; i < round->old.nr_sectors; i++)
    memcpy (disk + i * SECTOR, reader_content (&reader, i), SECTOR);
}

static bool
is_old (const struct round *round, const struct reader_shape *shape)
{
  return memcmp (shape, &round->old, sizeof *shape) == 0;
}

static bool
is_new (const struct round *round, const struct reader_shape *shape)
{
  return shape->version == round->old.version
         && shape->cluster_sectors == round->old.cluster_sectors
         && shape->nr_sectors == round->nr_sectors
         && shape->nr_entries
              == divide_up (round->nr_sectors, shape->cluster_sectors);
}

/* What lies behind both ends is nobody's; behind the new one, it may be gone. */
static bool
may_hold (const struct round *round, uint32_t sector, const uint8_t *bytes)
{
  static const uint8_t zeroes[SECTOR];

  if (memcmp (disk + sector * SECTOR, bytes, SECTOR) == 0)
    return true;
  return sector >= round->nr_sectors && memcmp (bytes, zeroes, SECTOR) == 0;
}

static void
check_image (const struct round *round, struct reader *reader,
             const uint8_t *bytes, uint64_t size)
{
  g_autofree char *fault = reader_open_off_grid (reader, bytes, size);

  if (fault) {
    rules_break ("%s", fault);
    return;
  }
  if (!is_old (round, &reader->shape) && !is_new (round, &reader->shape))
    rules_break ("the header is neither the old one nor the new one: %u sectors, "
                 "%u entries", reader->shape.nr_sectors,
                 reader->shape.nr_entries);
  else if (reader_has_slack (reader))
    rules_break ("what follows the BAT is not zeros");
  for (uint32_t i = 0; i < reader->shape.nr_sectors && !rules_broken; i++)
    if (!may_hold (round, i, reader_content (reader, i)))
      rules_break ("sector %u of %u, that were %u and become %u, has changed", i,
                   reader->shape.nr_sectors, round->old.nr_sectors,
                   round->nr_sectors);
}

/* What would come to light when the disk becomes larger one day. */
static bool
has_rest (const struct reader *reader)
{
  const uint32_t cluster = reader->shape.cluster_sectors;
  static const uint8_t zeroes[SECTOR];

  for (uint32_t i = reader->shape.nr_sectors; i % cluster != 0; i++)
    if (memcmp (reader_content (reader, i), zeroes, SECTOR) != 0)
      return true;
  return false;
}

static void
check_file (const struct round *round, const char *path, bool complete,
            bool again)
{
  g_autofree char *bytes = NULL;
  struct reader reader;
  gsize size;

  if (!g_file_get_contents (path, &bytes, &size, NULL))
    g_error ("%s cannot be read", path);
  check_image (round, &reader, (const uint8_t *) bytes, size);
  if (rules_broken)
    return;
  if (reader.in_use != READER_CLOSED)
    rules_break ("it is not closed");
  else if (!(complete ? is_new : is_old) (round, &reader.shape))
    rules_break ("it has %u sectors in the end", reader.shape.nr_sectors);
  else if (complete && round->old.nr_sectors != round->nr_sectors
           && has_rest (&reader))
    rules_break ("the last cluster is not zeros behind the end of the disk");
  /* Space of clusters off the grid is not looked for; and a cut may have lost nothing
   * but that the file became shorter.
   */
  else if (complete && round->old.nr_sectors > round->nr_sectors
           && round->gap == 0 && !again && size != reader_data_end (&reader))
    rules_break ("made smaller, the file has %" G_GSIZE_FORMAT " bytes, but its "
                 "clusters end at byte %" G_GUINT64_FORMAT, size,
                 reader_data_end (&reader));
}

/* ---- Resizing ---------------------------------------------------------- */

static bool
on_progress (void *opaque, uint64_t nr_bytes_done, uint64_t nr_bytes)
{
  (void) opaque;
  (void) nr_bytes_done;
  (void) nr_bytes;
  return nr_calls_left == 0 || --nr_calls_left > 0;
}

static bool
may_fail (const struct round *round)
{
  return round->faults.no_space > 0 || round->faults.failing_sync > 0;
}

static void
resize (const struct round *round, const char *path, bool again)
{
  struct ploop_resize_result result;
  g_autoptr (GError) error = NULL;
  int r;

  nr_calls_left = again ? 0 : round->patience;
  r = ploop_resize (path, (uint64_t) round->nr_sectors * SECTOR,
                    &round->options, on_progress, NULL, &result, &error);
  if (r == 0)
    check_file (round, path, !result.interrupted, again);
  else if (again || !may_fail (round))
    rules_break ("it cannot be resized%s: %s", again ? " again" : "",
                 error->message);
}

/* CLOSING is a moment: not before it the image says that it is closed. */
static void
check_cut (const struct recorder_cut *cut, uint64_t moment, void *opaque)
{
  const struct round *round = opaque;
  static const uint8_t closed[4];
  struct reader reader;

  check_image (round, &reader, cut->bytes, cut->size);
  if (!rules_broken && cut->changed && reader.in_use != READER_IN_USE
      && moment <= recorder_find_write (44, closed, sizeof closed))
    rules_break ("changed, but not marked as in use");
}

/* Go on with what cuts have left; nothing is recorded any more. */
static void
resize_left_over (const struct round *round, const GArray *left_over)
{
  for (guint i = 0; i < left_over->len && !rules_broken; i++) {
    recorder_cut_save (g_array_index (left_over, struct rounds_left, i).cut,
                       cut_path);
    resize (round, cut_path, true);
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

static void
print_round (const struct round *round)
{
  fprintf (stderr,
           "PLOOP_TEST_SEED=%u: version %u, %u sectors a cluster, data at sector "
           "%u, gaps of %u; from %u to %u sectors; of a hundred %u clusters used, "
           "%u blocks holes, %u free cells garbage; patience %u, failing sync "
           "%u%s%s%s%s%s%s\n", round->seed, round->old.version,
           round->old.cluster_sectors, round->old.data_sectors, round->gap,
           round->old.nr_sectors, round->nr_sectors, round->used, round->holes,
           round->garbage, round->patience, round->faults.failing_sync,
           round->in_use ? ", in use" : "",
           round->options.discard ? ", discard" : "",
           round->options.keep_holes_out ? ", no holes" : "",
           round->faults.no_space > 0 ? ", no space" : "",
           round->faults.no_punch ? ", no punch" : "",
           round->faults.no_zero_range ? ", no zero range" : "");
}

static void
run_round (uint32_t seed, bool broken_sync)
{
  struct round round = draw_round (seed);
  GRand *random = g_rand_new_with_seed (seed + 1);
  g_autoptr (GArray) left_over = NULL;
  g_autofree uint8_t *bytes = NULL;
  uint64_t size, end;

  bytes = make_bytes (&round, &size, random);
  drawn_save (image_path, bytes, size);
  remember_disk (&round, bytes, size);
  recorder_start (image_path, &round.faults, seed);
  resize (&round, image_path, false);
  end = recorder_now ();
  check_recorder (end, random);
  if (!rules_broken)
    left_over = rounds_cut (end, broken_sync, random, check_cut, &round);
  recorder_stop ();
  if (!rules_broken)
    resize (&round, image_path, true);
  if (left_over)
    resize_left_over (&round, left_over);
  if (rules_broken && !broken_sync)
    print_round (&round);
  g_rand_free (random);
}

int
main (void)
{
  image_path = rounds_path ("image");
  cut_path = rounds_path ("cut");
  return rounds_main (NR_ROUNDS, run_round);
}
