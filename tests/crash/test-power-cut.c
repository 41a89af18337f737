/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Power cuts at any instant, with any part of what was not synced lost: the
 * rules of durability hold.
 *
 *   1  every BAT entry is 0 or a host cluster inside the file's data area
 *   2  no two name the same host cluster
 *   3  what was flushed, or forced, is there
 *   4  any other sector reads as its old or its new content, and never as
 *      another sector's
 *   5  the in-use mark is on disk before anything else has changed, and
 *      until all that was answered is
 *
 * Threads write, zero and flush through the library; each owns sectors of its
 * own, in the same clusters as the others'.  Each write stamps its sectors
 * with their number and its own.  After a cut the disk is read by the library
 * and each stamp is looked up in the sector's history.  Every other workload
 * goes on with what a cut has left of the one before, and garbage behind it.
 *
 * At the end the same is done with syncs that do nothing: if no rule is
 * broken then, this test is worth nothing, and it fails.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <glib.h>

#include "format.h"
#include "ploop-core.h"
#include "recorder.h"

#define NR_THREADS 4
#define NR_CLUSTERS 48u
#define CLUSTER_SECTORS 64u
#define CLUSTER (CLUSTER_SECTORS * 512u)
#define NR_SECTORS (NR_CLUSTERS * CLUSTER_SECTORS)
/* More host clusters than this the file never has, leaks included. */
#define MAX_CELLS (4 * NR_CLUSTERS)
/* Sectors in a row that belong to one thread. */
#define RUN 8u
#define OPS_PER_THREAD 120
#define STAMP_MAGIC UINT64_C (0x706c6f6f70637574)

/* One change of one sector. */
struct change {
  uint64_t number;              /* 0: zeros */
  uint64_t begun, answered;     /* moments */
  bool forced;
};

struct stamp {
  uint64_t magic, sector, number;
};

static GArray *histories[NR_SECTORS];   /* of struct change, in order */
static uint64_t initial[NR_SECTORS];    /* number of the change before all */
static GArray *flushes;                 /* of struct flush */
static pthread_mutex_t flushes_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint64_t next_number = 1;
static ploop_image *image;
static uint32_t seed;
static uint64_t closing;                /* the moment */
static char *broken;                    /* the first rule that was */

struct flush {
  uint64_t begun, answered;
};

/* ---- The workload ------------------------------------------------------ */

static void
remember (uint64_t sector, unsigned nr, uint64_t number, uint64_t begun,
          bool forced)
{
  const struct change change = {
    .number = number,
    .begun = begun,
    .answered = recorder_now (),
    .forced = forced,
  };

  for (unsigned i = 0; i < nr; i++)
    g_array_append_val (histories[sector + i], change);
}

static int
write_stamped (uint64_t sector, unsigned nr, bool forced)
{
  const uint64_t number = next_number++;
  const uint64_t begun = recorder_now ();
  uint8_t buf[RUN * 512];
  int r;

  for (unsigned i = 0; i < nr; i++) {
    const struct stamp stamp = { STAMP_MAGIC, sector + i, number };

    memset (buf + i * 512, (int) number, 512);
    memcpy (buf + i * 512, &stamp, sizeof stamp);
  }
  r = ploop_pwrite (image, buf, nr * 512, sector * 512,
                    forced ? PLOOP_FUA : 0);
  remember (sector, nr, number, begun, forced);
  return r;
}

static int
zero (uint64_t sector, unsigned nr, bool forced)
{
  const uint64_t begun = recorder_now ();
  int r = ploop_zero (image, nr * 512, sector * 512, forced ? PLOOP_FUA : 0);

  remember (sector, nr, 0, begun, forced);
  return r;
}

static int
flush (void)
{
  struct flush f = { .begun = recorder_now () };
  int r = ploop_flush (image);

  f.answered = recorder_now ();
  pthread_mutex_lock (&flushes_lock);
  g_array_append_val (flushes, f);
  pthread_mutex_unlock (&flushes_lock);
  return r;
}

static void *
work (void *opaque)
{
  const unsigned thread = GPOINTER_TO_UINT (opaque);
  GRand *random = g_rand_new_with_seed (seed + thread);
  int r = 0;

  for (int i = 0; i < OPS_PER_THREAD && r == 0; i++) {
    const uint64_t run =
      (uint64_t) g_rand_int_range (random, 0, NR_SECTORS / RUN / NR_THREADS);
    const unsigned first = (unsigned) g_rand_int_range (random, 0, RUN);
    const unsigned nr =
      (unsigned) g_rand_int_range (random, 1, (int) (RUN - first) + 1);
    const uint64_t sector = (run * NR_THREADS + thread) * RUN + first;
    const int what = g_rand_int_range (random, 0, 100);

    if (what < 70)
      r = write_stamped (sector, nr, false);
    else if (what < 80)
      r = write_stamped (sector, nr, true);
    else if (what < 90)
      r = zero (sector, nr, what % 2);
    else
      r = flush ();
  }
  g_rand_free (random);
  return GINT_TO_POINTER (r);
}

static void
run_workload (const char *path)
{
  g_autoptr (GError) error = NULL;
  pthread_t threads[NR_THREADS];

  image = ploop_open (path, NULL, &error);
  if (!image)
    g_error ("%s", error->message);
  for (unsigned i = 0; i < NR_THREADS; i++)
    if (pthread_create (&threads[i], NULL, work, GUINT_TO_POINTER (i)) != 0)
      g_error ("pthread_create");
  for (unsigned i = 0; i < NR_THREADS; i++) {
    void *r;

    pthread_join (threads[i], &r);
    if (r != NULL)
      g_error ("a request failed: %s", g_strerror (-GPOINTER_TO_INT (r)));
  }
  closing = recorder_now ();
  if (ploop_close (image, &error) == -1)
    g_error ("%s", error->message);
}

/* ---- The rules --------------------------------------------------------- */

static void break_rule (const char *format, ...) G_GNUC_PRINTF (1, 2);

static void
break_rule (const char *format, ...)
{
  va_list args;

  if (broken)
    return;
  va_start (args, format);
  broken = g_strdup_vprintf (format, args);
  va_end (args);
}

/* Rules 1, 2 and 5, by the bytes of the file. */
static void
check_metadata (const uint8_t *bytes, gsize size, uint64_t moment)
{
  bool taken[MAX_CELLS] = { false };

  if (recorder_cut_changed () && moment < closing
      && format_get_le32 (bytes + FORMAT_IN_USE_OFFSET) != FORMAT_IN_USE)
    break_rule ("rule 5: not marked as in use");
  for (uint32_t i = 0; i < NR_CLUSTERS; i++) {
    const uint32_t entry = format_get_le32 (bytes + format_bat_offset (i));

    if (entry == 0)
      continue;
    if (entry >= MAX_CELLS || (entry + 1) * CLUSTER > size) {
      break_rule ("rule 1: BAT entry %u is %u, the file has %zu bytes", i,
                  entry, size);
      return;
    }
    if (taken[entry])
      break_rule ("rule 2: host cluster %u is named twice", entry);
    taken[entry] = true;
  }
}

/* The last change of a sector that must not be lost in a cut at MOMENT: its
 * index plus one, or 0.  All, when the image says that it was closed.
 */
static guint
durable_change (const GArray *history, uint64_t moment, bool closed)
{
  guint last = 0;

  if (closed)
    return history->len;
  for (guint i = 0; i < history->len; i++) {
    const struct change *change = &g_array_index (history, struct change, i);

    if (change->answered >= moment)
      break;
    if (change->forced)
      last = i + 1;
    for (guint j = 0; j < flushes->len; j++) {
      const struct flush *f = &g_array_index (flushes, struct flush, j);

      if (f->begun > change->answered && f->answered < moment)
        last = i + 1;
    }
  }
  return last;
}

/* Rules 3 and 4 for one sector: NUMBER is what its stamp says. */
static void
check_number (uint64_t sector, uint64_t number, uint64_t moment, bool closed)
{
  const GArray *history = histories[sector];
  const guint durable = durable_change (history, moment, closed);

  if (durable == 0 && number == initial[sector])
    return;
  for (guint i = durable > 0 ? durable - 1 : 0; i < history->len; i++) {
    const struct change *change = &g_array_index (history, struct change, i);

    if (change->begun < moment && change->number == number)
      return;
  }
  break_rule ("rule 3 or 4: sector %" G_GUINT64_FORMAT " holds change %"
              G_GUINT64_FORMAT ", which is none of what it may hold", sector,
              number);
}

static void
check_sector (const uint8_t *bytes, uint64_t sector, uint64_t moment,
              bool closed)
{
  static const uint8_t zeroes[512];
  struct stamp stamp;

  memcpy (&stamp, bytes, sizeof stamp);
  if (memcmp (bytes, zeroes, 512) == 0)
    check_number (sector, 0, moment, closed);
  else if (stamp.magic != STAMP_MAGIC || stamp.sector != sector)
    break_rule ("rule 4: sector %" G_GUINT64_FORMAT " holds what was written "
                "to sector %" G_GUINT64_FORMAT, sector, stamp.sector);
  else
    check_number (sector, stamp.number, moment, closed);
}

static void
check_content (const char *path, uint64_t moment, bool closed)
{
  const struct ploop_open_options read_only = { .read_only = true };
  g_autofree uint8_t *bytes = g_malloc (NR_SECTORS * 512);
  g_autoptr (GError) error = NULL;
  ploop_image *after = ploop_open (path, &read_only, &error);

  if (!after) {
    break_rule ("it does not open: %s", error->message);
    return;
  }
  if (ploop_pread (after, bytes, NR_SECTORS * 512, 0) != 0)
    break_rule ("it cannot be read");
  ploop_close (after, NULL);
  for (uint64_t sector = 0; sector < NR_SECTORS && !broken; sector++)
    check_sector (bytes + sector * 512, sector, moment, closed);
}

static void
check_cut (const char *path, uint64_t moment)
{
  g_autofree char *bytes = NULL;
  gsize size;

  if (!g_file_get_contents (path, &bytes, &size, NULL))
    g_error ("%s", path);
  check_metadata ((const uint8_t *) bytes, size, moment);
  check_content (path, moment,
                 moment >= closing
                   && format_get_le32 ((const uint8_t *) bytes
                                       + FORMAT_IN_USE_OFFSET)
                        == FORMAT_CLOSED);
}

/* ---- Rounds ------------------------------------------------------------ */

static void
make_image (const char *path)
{
  const struct ploop_create_options options = {
    .size = NR_CLUSTERS * CLUSTER,
    .cluster_size = CLUSTER,
    .overwrite = true,
  };
  g_autoptr (GError) error = NULL;

  if (ploop_create (path, &options, &error) == -1)
    g_error ("%s", error->message);
}

static void
forget (void)
{
  for (unsigned i = 0; i < NR_SECTORS; i++)
    g_clear_pointer (&histories[i], g_array_unref);
  g_clear_pointer (&flushes, g_array_unref);
  recorder_stop ();
}

/* Anywhere; but the first and the last few events are the mark's and the
 * extension's, and there are few of them.
 */
static uint64_t
choose_moment (GRand *random, uint64_t end)
{
  const uint64_t few = MIN (end, 40);
  const uint64_t n =
    (uint64_t) g_rand_int_range (random, 0, (gint32) end + 1);

  switch (g_rand_int_range (random, 0, 4)) {
  case 0:
    return n % (few + 1);
  case 1:
    return end - n % (few + 1);
  default:
    return n;
  }
}

/* Replace what lies behind the last cluster by garbage. */
static void
add_garbage (const char *path)
{
  g_autofree uint8_t *bytes = NULL;
  uint64_t data_end = CLUSTER;
  gsize size;
  FILE *file;

  if (!g_file_get_contents (path, (char **) &bytes, &size, NULL))
    g_error ("%s cannot be read", path);
  for (uint32_t i = 0; i < NR_CLUSTERS; i++) {
    const uint64_t entry = format_get_le32 (bytes + format_bat_offset (i));

    data_end = MAX (data_end, (entry + 1) * CLUSTER);
  }
  if (truncate (path, (off_t) data_end) == -1
      || !(file = fopen (path, "ab")))
    g_error ("%s: %s", path, g_strerror (errno));
  for (int n = g_random_int_range (0, 3 * CLUSTER); n > 0; n--)
    putc ('g', file);
  if (fclose (file) != 0)
    g_error ("%s: %s", path, g_strerror (errno));
}

/* What a cut has left becomes the image of the next workload.  Its content is
 * what nobody may lose from now on.
 */
static void
go_on_with (const char *cut, const char *path)
{
  const struct ploop_open_options read_only = { .read_only = true };
  g_autofree uint8_t *bytes = g_malloc (NR_SECTORS * 512);
  ploop_image *before;

  if (rename (cut, path) == -1)
    g_error ("%s: %s", path, g_strerror (errno));
  add_garbage (path);

  before = ploop_open (path, &read_only, NULL);
  if (!before || ploop_pread (before, bytes, NR_SECTORS * 512, 0) != 0)
    g_error ("%s cannot be read", path);
  ploop_close (before, NULL);
  for (uint64_t i = 0; i < NR_SECTORS; i++) {
    struct stamp stamp;

    memcpy (&stamp, bytes + i * 512, sizeof stamp);
    initial[i] = stamp.number;
  }
}

/* One workload and NR_CUTS cuts of it, on a new image or on what the last cut
 * has left.
 */
static void
run_round (const char *directory, unsigned nr_cuts, bool go_on,
           bool broken_sync)
{
  static const double keeps[] = { 0, 0.1, 0.5, 0.9, 1 };
  g_autofree char *path = g_build_filename (directory, "image", NULL);
  g_autofree char *cut = g_build_filename (directory, "cut", NULL);
  GRand *random = g_rand_new_with_seed (seed);
  uint64_t end;

  for (unsigned i = 0; i < NR_SECTORS; i++)
    histories[i] = g_array_new (FALSE, FALSE, sizeof (struct change));
  flushes = g_array_new (FALSE, FALSE, sizeof (struct flush));
  memset (initial, 0, sizeof initial);
  if (go_on)
    go_on_with (cut, path);
  else
    make_image (path);
  recorder_start (path, 5 * CLUSTER);
  run_workload (path);
  end = recorder_now ();

  for (unsigned i = 0; i < nr_cuts && !broken; i++) {
    const uint64_t moment = choose_moment (random, end);
    const double keep =
      keeps[g_rand_int_range (random, 0, (gint32) G_N_ELEMENTS (keeps))];

    recorder_cut (moment, keep, broken_sync, random, cut);
    check_cut (cut, moment);
    if (broken && !broken_sync)
      fprintf (stderr, "cut at %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT
               ", keeping %.1f, seed %u: %s\n", moment, end, keep, seed,
               broken);
  }
  g_rand_free (random);
  forget ();
  unlink (path);
}

static void
remove_all (const char *directory)
{
  g_autofree char *cut = g_build_filename (directory, "cut", NULL);

  unlink (cut);
  rmdir (directory);
}

static unsigned
scaled (unsigned n)
{
  const char *scale = g_getenv ("PLOOP_TEST_SCALE");

  return scale ? MAX (n * (unsigned) atoi (scale) / 100, 1) : n;
}

int
main (void)
{
  const unsigned nr_rounds = scaled (20), nr_cuts = 60;
  g_autofree char *directory = g_dir_make_tmp ("ploop-crash-XXXXXX", NULL);
  const char *given = g_getenv ("PLOOP_TEST_SEED");

  seed = given ? (uint32_t) strtoul (given, NULL, 0) : g_random_int ();
  printf ("%u workloads of %u cuts each, PLOOP_TEST_SEED=%u\n", nr_rounds,
          nr_cuts, seed);
  for (unsigned i = 0; i < nr_rounds && !broken; i++, seed += NR_THREADS)
    run_round (directory, nr_cuts, i % 2 == 1, false);
  if (broken) {
    remove_all (directory);
    return EXIT_FAILURE;
  }

  /* And now without syncs. */
  for (int i = 0; i < 20 && !broken; i++, seed += NR_THREADS)
    run_round (directory, 60, false, true);
  remove_all (directory);
  if (!broken) {
    fprintf (stderr, "syncs that do nothing go unnoticed: this test cannot "
             "fail\n");
    return EXIT_FAILURE;
  }
  printf ("without syncs, as it must be: %s\n", broken);
  return EXIT_SUCCESS;
}
