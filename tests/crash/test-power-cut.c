/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Power cuts at any instant, with any part of what was not synced lost: the
 * rules of durability hold.
 *
 *   1  every BAT entry is 0 or a host cluster inside the file's data area
 *   2  no two name the same host cluster
 *   3  what was flushed, or forced, is there
 *   4  any other sector reads as its old or its new content, and never as
 *      another sector's (rules.h says what a sector may hold)
 *   5  the in-use mark is on disk before anything else has changed, and
 *      until all that was answered is
 *   6  without a write-back delay, all that was answered is in the page cache:
 *      killing the process loses nothing; but a cluster of a lower delta that was
 *      copied and not committed may be as it was before the copy
 *   7  while the image is suspended the file does not change, and all that was
 *      answered is durable
 *   8  lower deltas are never written to
 *
 * Each round draws the image's shape, what is below it, the options, the mix of
 * requests and what fails, and says so when a rule is broken.  After a cut the
 * image is read twice, by this test's own reader and by the library, which must
 * agree.  A workload may go on with what a cut of the one before has left, and
 * garbage behind it.
 *
 * At the end the same is done with syncs that do nothing: if no rule is broken
 * then, this test is worth nothing, and it fails.  test-mutations.sh asks it
 * for more.
 *
 * PLOOP_TEST_SEED repeats a round's choices (not the threads' timing, so a rare
 * find may take PLOOP_TEST_REPEAT=100); PLOOP_TEST_SCALE is the length in per
 * cent.
 */

#include <config.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <glib.h>

#include "lower.h"
#include "ploop-core.h"
#include "reader.h"
#include "recorder.h"
#include "rules.h"
#include "workload.h"

#define NR_SECTORS WORKLOAD_NR_SECTORS
#define SECTOR 512u
#define NR_ROUNDS 60u
#define CUTS_PER_LEG 60u
/* A round that takes longer hangs. */
#define ROUND_SECONDS 120u

/* Where direct I/O begins, for a BAT as small as ours (lib/delta.c). */
#define DIRECT_SECTORS (16u << 10)

/* What a round draws. */
struct round {
  uint32_t seed;
  unsigned nr_legs;
  struct reader_shape shape;
  struct lower_shape lower_shape;
  struct workload workload;
  struct recorder_faults faults;
  unsigned limit;               /* host clusters that fit; 0: all */
};

/* What a cut is compared with. */
struct leg {
  uint64_t end, closing;        /* moments */
  bool first_in_use;            /* the mark, before the leg */
};

static char *directory, *image_path, *cut_path;
static struct lower *lower;     /* the round's */
static uint64_t nr_states, nr_opened;
static char *current;           /* the round, for who finds it hanging */

/* ---- Drawing ----------------------------------------------------------- */

static unsigned
draw_one (GRand *random, const unsigned *values, size_t nr)
{
  return values[g_rand_int_range (random, 0, (gint32) nr)];
}

#define DRAW(random, ...)                                                    \
  draw_one ((random), (const unsigned[]){ __VA_ARGS__ },                      \
            G_N_ELEMENTS (((const unsigned[]){ __VA_ARGS__ })))

static bool
one_in (GRand *random, int n)
{
  return g_rand_int_range (random, 0, n) == 0;
}

static void
draw_shape (GRand *random, bool direct, struct reader_shape *shape)
{
  uint32_t needed;

  shape->version = DRAW (random, 1, 2, 2);
  shape->cluster_sectors = DRAW (random, 1, 2, 8, 16, 63, 64, 64, 64);
  shape->nr_sectors = NR_SECTORS;
  shape->nr_entries =
    (NR_SECTORS + shape->cluster_sectors - 1) / shape->cluster_sectors;
  if (!direct && shape->version == 1 && one_in (random, 3)) {
    shape->data_sectors = 0;
    return;
  }
  needed = MAX ((64 + 4 * shape->nr_entries + SECTOR - 1) / SECTOR,
                direct ? DIRECT_SECTORS : 0);
  shape->data_sectors = (needed + shape->cluster_sectors - 1)
                        / shape->cluster_sectors * shape->cluster_sectors;
}

static void
draw_options (GRand *random, uint32_t cluster,
              struct ploop_open_options *options)
{
  options->no_fast_path = one_in (random, 3);
  options->prealloc_mode = one_in (random, 4) ? PLOOP_PREALLOC_TRUNCATE
                                              : PLOOP_PREALLOC_FALLOC;
  options->runners = DRAW (random, 1, 2, 3, 4);
  options->prealloc = (uint64_t) cluster * DRAW (random, 1, 1, 2, 4, 9, 1000);
  options->writeback_delay = DRAW (random, 0, 0, 0, 1, 5, 50);
  options->measure_latency = one_in (random, 2);
  options->discard =
    options->prealloc_mode == PLOOP_PREALLOC_FALLOC && one_in (random, 5)
      ? PLOOP_DISCARD_KEEP : PLOOP_DISCARD_UNMAP;
  options->detect_zeroes = DRAW (random, PLOOP_DETECT_ZEROES_OFF,
                                 PLOOP_DETECT_ZEROES_ON,
                                 PLOOP_DETECT_ZEROES_UNMAP);
}

static void
draw_workload (GRand *random, struct workload *workload)
{
  workload->nr_threads = 4;
  workload->nr_operations = 120;
  workload->in_flight = DRAW (random, 1, 2, 4, 16);
  workload->flushes = DRAW (random, 2, 10, 25);
  workload->zeroes = DRAW (random, 0, 10);
  workload->trims = DRAW (random, 0, 8, 25);
  workload->stray_trims = DRAW (random, 0, 0, 3, 8);
  workload->reads = 10;
  workload->forced = DRAW (random, 0, 5, 25);
  workload->hot = one_in (random, 2);
  workload->suspends = one_in (random, 3);
}

static void
draw_faults (GRand *random, struct round *round)
{
  struct recorder_faults *faults = &round->faults;
  const uint64_t cluster = round->shape.cluster_sectors * SECTOR;

  faults->data_start = reader_data_start (&round->shape);
  if (one_in (random, 3)) {
    round->limit = round->shape.nr_entries / DRAW (random, 2, 3, 5) + 1;
    faults->max_size = faults->data_start + round->limit * cluster;
    round->workload.trims = MAX (round->workload.trims, 15);
  }
  if (one_in (random, 4))
    faults->data_eio = 0.02;
  if (one_in (random, 4))
    faults->bat_eio = 0.02;
  if (one_in (random, 5))
    faults->no_space = 0.02;
  if (one_in (random, 3))
    faults->partial = 0.02;
  if (one_in (random, 6))
    faults->failing_sync = DRAW (random, 1, 2, 3, 5, 10, 20, 40);
  faults->direct_block = DRAW (random, 0, 4096, 4096);
  faults->no_punch = one_in (random, 8);
  faults->no_zero_range = one_in (random, 8);
  faults->no_reserve = one_in (random, 8);
}

/* What is below: in half of the rounds, something. */
static void
draw_lower (GRand *random, struct round *round)
{
  static const struct lower_shape shapes[] = {
    { .nr_images = 1 },
    { .raw_base = true },
    { .nr_images = 1, .raw_base = true },
    { .nr_images = 2 },
  };

  if (one_in (random, 2))
    return;
  round->lower_shape =
    shapes[g_rand_int_range (random, 0, (gint32) G_N_ELEMENTS (shapes))];
  round->lower_shape.filled = DRAW (random, 20, 60, 95);
  round->workload.options.copy_delay = DRAW (random, 1, 10, 500);
  round->workload.options.copy_on_write =
    one_in (random, 2) ? PLOOP_COPY_LAZY : PLOOP_COPY_EAGER;
  round->faults.no_clone = one_in (random, 2);
  round->faults.no_copy_range = one_in (random, 3);
}

static struct round
draw_round (uint32_t seed)
{
  GRand *random = g_rand_new_with_seed (seed);
  struct round round = { .seed = seed };
  const enum ploop_cache cache =
    (enum ploop_cache) DRAW (random, PLOOP_CACHE_WRITEBACK,
                             PLOOP_CACHE_WRITEBACK, PLOOP_CACHE_NONE,
                             PLOOP_CACHE_WRITETHROUGH);

  round.nr_legs = DRAW (random, 1, 2, 3);
  draw_shape (random, cache == PLOOP_CACHE_NONE, &round.shape);
  round.workload.cluster_sectors = round.shape.cluster_sectors;
  round.workload.options.cache = cache;
  draw_options (random, round.shape.cluster_sectors * SECTOR,
                &round.workload.options);
  draw_workload (random, &round.workload);
  draw_faults (random, &round);
  draw_lower (random, &round);
  round.workload.may_fail = round.faults.data_eio > 0
                            || round.faults.bat_eio > 0
                            || round.faults.failing_sync > 0;
  round.workload.may_lack_space =
    round.limit > 0 || round.faults.no_space > 0;
  g_rand_free (random);
  return round;
}

static char *
describe_round (const struct round *round)
{
  static const char *const caches[] = { "writeback", "none", "writethrough" };
  const struct workload *w = &round->workload;
  const struct ploop_open_options *o = &w->options;
  const struct recorder_faults *f = &round->faults;

  return g_strdup_printf (
    "PLOOP_TEST_SEED=%u: %u legs, version %u, %u sectors a cluster, data at %"
    G_GUINT64_FORMAT "; cache %s, %s, %s, %u runners, prealloc %"
    G_GUINT64_FORMAT ", write-back delay %u; %u in flight, of a hundred %u "
    "flushes, %u zeroes, %u trims, %u stray trims, %u forced%s%s; "
    "EIO %.2f data, %.2f BAT, no space %.2f, limit %u clusters, sync %u fails, "
    "direct I/O %u%s%s%s; %u lower images%s, %u of a hundred clusters, copied "
    "%s, copy delay %u%s%s",
    round->seed, round->nr_legs, round->shape.version,
    round->shape.cluster_sectors, f->data_start, caches[o->cache],
    o->no_fast_path ? "no fast path" : "fast path",
    o->prealloc_mode == PLOOP_PREALLOC_TRUNCATE ? "truncate" : "falloc",
    o->runners, o->prealloc, o->writeback_delay, w->in_flight, w->flushes,
    w->zeroes, w->trims, w->stray_trims, w->forced,
    w->hot ? ", hot" : "", w->suspends ? ", suspended at times" : "",
    f->data_eio, f->bat_eio, f->no_space, round->limit, f->failing_sync,
    f->direct_block,
    f->no_punch ? ", no punch" : "", f->no_zero_range ? ", no zero range" : "",
    f->no_reserve ? ", no reservation" : "", round->lower_shape.nr_images,
    round->lower_shape.raw_base ? " and a raw one" : "",
    round->lower_shape.filled,
    o->copy_on_write == PLOOP_COPY_LAZY ? "lazily" : "eagerly", o->copy_delay,
    f->no_clone ? ", no clone" : "",
    f->no_copy_range ? ", no copying" : "");
}

/* ---- Judging a cut ----------------------------------------------------- */

/* What a cut has of a copied cluster may only be as old as what was flushed, if
 * the copy was not committed: rule 6.
 */
static void
check_content (const struct reader *reader, const struct claim *claim,
               const struct claim *of_copies)
{
  for (uint64_t i = 0; i < NR_SECTORS && !rules_broken; i++) {
    const bool below = !reader_sector (reader, i)
                       && lower_has (lower, i / reader->shape.cluster_sectors);

    rules_check_sector (lower_merged (lower, reader, i), i,
                        below ? of_copies : claim,
                        below ? "cut, in a lower delta" : "cut");
  }
}

/* The library opens what is left, finds no error, and reads the same. */
static void
check_library (const struct recorder_cut *cut, const struct reader *reader)
{
  const struct ploop_open_options read_only = {
    .read_only = true,
    .bases = lower_bases (lower),
  };
  g_autofree uint8_t *bytes = g_malloc (NR_SECTORS * SECTOR);
  g_autoptr (GError) error = NULL;
  struct ploop_check_result result = { 0 };
  ploop_image *after;

  recorder_cut_save (cut, cut_path);
  nr_opened++;
  after = ploop_open (cut_path, &read_only, &error);
  if (!after) {
    rules_break ("it does not open: %s", error->message);
    return;
  }
  if (ploop_pread (after, bytes, NR_SECTORS * SECTOR, 0) != 0)
    rules_break ("it cannot be read");
  ploop_close (after, NULL);
  for (uint64_t i = 0; i < NR_SECTORS && !rules_broken; i++)
    if (memcmp (bytes + i * SECTOR, lower_merged (lower, reader, i), SECTOR) != 0)
      rules_break ("the library reads sector %" G_GUINT64_FORMAT " otherwise "
                   "than this test does", i);
  if (ploop_check (cut_path, NULL, NULL, &result, NULL) != 0
      || result.nr_errors > 0)
    rules_break ("the library's check finds %" G_GUINT64_FORMAT " errors",
                 result.nr_errors);
}

/* What may be claimed of a cut, beside what flushes claim. */
static struct claim
claim_of (const struct round *round, bool closed, uint64_t moment, double keep)
{
  const bool killed = keep >= 1
                      && round->workload.options.writeback_delay == 0
                      && !recorder_sync_had_failed (moment);
  struct claim claim = rules_claim_at (moment);

  claim.answered = closed || killed;
  /* A removal that cannot be written is left to later. */
  claim.answered_trims = closed || (killed && !round->workload.may_fail);
  return claim;
}

static void
check_cut (const struct round *round, const struct leg *leg,
           const struct recorder_cut *cut, uint64_t moment, double keep)
{
  struct reader reader;
  struct claim claim, of_copies;
  bool closed;
  g_autofree char *fault = reader_open (&reader, cut->bytes, cut->size);

  nr_states++;
  if (fault)
    rules_break ("%s", fault);
  else if (reader.in_use == READER_CLOSED
           && (leg->first_in_use || cut->changed) && moment <= leg->closing)
    rules_break ("rule 5: not marked as in use");
  if (rules_broken)
    return;
  closed = moment > leg->closing && reader.in_use == READER_CLOSED;
  claim = claim_of (round, closed, moment, keep);
  of_copies = closed ? claim : rules_claim_at (moment);
  check_content (&reader, &claim, &of_copies);
  if (!rules_broken)
    check_library (cut, &reader);
}

/* ---- Legs -------------------------------------------------------------- */

static void
save (const char *path, const uint8_t *bytes, uint64_t size)
{
  if (!g_file_set_contents_full (path, (const char *) bytes, (gssize) size,
                                 G_FILE_SET_CONTENTS_NONE, 0600, NULL))
    g_error ("%s: %s", path, g_strerror (errno));
}

/* What the disk holds is what nobody may lose from now on. */
static void
set_initial (const struct reader *reader)
{
  for (uint64_t i = 0; i < NR_SECTORS; i++) {
    uint64_t number;

    rules_read_stamp (lower_merged (lower, reader, i), i, &number);
    rules_set_initial (i, number);
  }
}

static void
make_image (const struct round *round)
{
  uint64_t size;
  g_autofree uint8_t *bytes = reader_make (&round->shape, &size);

  save (image_path, bytes, size);
  set_initial (NULL);
}

/* What a cut has left becomes the image of the next leg, with garbage behind
 * its last cluster.
 */
static void
go_on_with (const struct recorder_cut *cut, GRand *random)
{
  const uint64_t cluster = 64 * SECTOR;
  const uint64_t garbage =
    (uint64_t) g_rand_int_range (random, 0, 3 * (gint32) cluster);
  struct reader reader;
  g_autofree char *fault = reader_open (&reader, cut->bytes, cut->size);
  g_autofree uint8_t *bytes = NULL;
  uint64_t data_end;

  g_assert_null (fault);
  data_end = reader_data_end (&reader);
  bytes = g_malloc (data_end + garbage);
  memcpy (bytes, cut->bytes, data_end);
  memset (bytes + data_end, 'g', garbage);
  save (image_path, bytes, data_end + garbage);
  set_initial (&reader);
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

static struct recorder_cut *
cut_and_check (const struct round *round, const struct leg *leg,
               uint64_t moment, double keep, bool broken_sync, GRand *random)
{
  struct recorder_cut *cut = recorder_cut (moment, keep, broken_sync, random);

  check_cut (round, leg, cut, moment, keep);
  if (rules_broken && !broken_sync)
    fprintf (stderr, "cut at %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT
             ", keeping %.1f\n", moment, leg->end, keep);
  return cut;
}

/* Cut the leg that was recorded, here and there.  Returns one of the cuts. */
static struct recorder_cut *
cut_leg (const struct round *round, const struct leg *leg,
         const GArray *suspended, bool broken_sync, GRand *random)
{
  static const double keeps[] = { 0, 0, 0.1, 0.5, 0.9, 1 };
  struct recorder_cut *cut = NULL;

  for (guint i = 0; i < MIN (suspended->len, 10) && !rules_broken; i++) {
    const guint n = (guint) g_rand_int_range (random, 0,
                                              (gint32) suspended->len);

    g_clear_pointer (&cut, recorder_cut_free);
    cut = cut_and_check (round, leg, g_array_index (suspended, uint64_t, n), 0,
                         broken_sync, random);
  }
  for (unsigned i = 0; i < CUTS_PER_LEG && !rules_broken; i++) {
    g_clear_pointer (&cut, recorder_cut_free);
    cut = cut_and_check (
      round, leg, choose_moment (random, leg->end),
      keeps[g_rand_int_range (random, 0, (gint32) G_N_ELEMENTS (keeps))],
      broken_sync, random);
  }
  return cut;
}

/* Has the recorder seen all that was done, and to nothing else? */
static void
check_recorder (uint64_t end, GRand *random)
{
  g_autoptr (recorder_cut_t) all = recorder_cut (end, 1, false, random);

  if (!recorder_cut_is_file (all, image_path))
    g_error ("the file was changed in a way that the recorder does not see");
  if (recorder_stray ())
    rules_break ("rule 8: %s in another file than the image",
                 recorder_stray ());
  lower_check_untouched (lower);
}

/* Run a workload on the image and cut it.  Returns one of the cuts. */
static struct recorder_cut *
run_leg (const struct round *round, unsigned n, bool broken_sync,
         bool in_use, GRand *random)
{
  g_autoptr (GArray) suspended = g_array_new (FALSE, FALSE, sizeof (uint64_t));
  struct leg leg = { .first_in_use = in_use };
  struct recorder_cut *cut = NULL;

  recorder_start (image_path, &round->faults, round->seed + n);
  workload_run (&round->workload, image_path, round->seed + 7 * n,
                &leg.closing, suspended);
  leg.end = recorder_now ();
  check_recorder (leg.end, random);
  if (!rules_broken)
    cut = cut_leg (round, &leg, suspended, broken_sync, random);
  recorder_stop ();
  return cut;
}

static void
run_round (uint32_t seed, bool broken_sync)
{
  struct round round = draw_round (seed);
  g_autofree char *text = describe_round (&round);
  g_autoptr (recorder_cut_t) cut = NULL;
  GRand *random = g_rand_new_with_seed (seed + 1);

  current = text;
  alarm (ROUND_SECONDS);
  if (round.lower_shape.nr_images > 0 || round.lower_shape.raw_base)
    lower = lower_new (directory, &round.lower_shape,
                       round.shape.cluster_sectors, NR_SECTORS, random);
  round.workload.options.bases = lower_bases (lower);
  round.workload.covered = lower_covered (lower);
  for (unsigned n = 0; n < round.nr_legs && !rules_broken; n++) {
    struct recorder_cut *next;
    bool in_use = false;

    rules_begin (NR_SECTORS, round.shape.cluster_sectors);
    if (cut) {
      go_on_with (cut, random);
      in_use = cut->bytes[44] != 0;
    }
    else
      make_image (&round);
    next = run_leg (&round, n, broken_sync, in_use, random);
    g_clear_pointer (&cut, recorder_cut_free);
    cut = next;
    rules_end ();
    if (rules_broken && !broken_sync)
      fprintf (stderr, "%s (leg %u)\n", text, n + 1);
  }
  g_clear_pointer (&lower, lower_free);
  alarm (0);
  current = NULL;
  g_rand_free (random);
}

/* ---- All rounds -------------------------------------------------------- */

static void
tell_hanging (int signal)
{
  static const char message[] = "\nthis round does not end\n";

  (void) signal;
  if (write (STDERR_FILENO, current, strlen (current)) == -1
      || write (STDERR_FILENO, message, sizeof message - 1) == -1)
    _exit (3);
  abort ();
}

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
  const unsigned repeat = number_from ("PLOOP_TEST_REPEAT", 1);

  printf ("%u rounds, PLOOP_TEST_SEED=%u\n", nr * repeat, seed);
  fflush (stdout);
  for (unsigned i = 0; i < nr && !rules_broken; i++)
    for (unsigned j = 0; j < repeat && !rules_broken; j++)
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
clean_up (void)
{
  unlink (image_path);
  unlink (cut_path);
  rmdir (directory);
  g_free (image_path);
  g_free (cut_path);
  g_free (directory);
}

/* In memory, where that is offered: small direct reads are slow elsewhere. */
static char *
make_directory (void)
{
  if (!g_getenv ("TMPDIR") && access ("/dev/shm", W_OK) == 0)
    g_setenv ("TMPDIR", "/dev/shm", TRUE);
  return g_dir_make_tmp ("ploop-crash-XXXXXX", NULL);
}

int
main (void)
{
  const uint32_t seed = number_from ("PLOOP_TEST_SEED", g_random_int ());
  const gint64 begun = g_get_monotonic_time ();
  bool broken;

  directory = make_directory ();
  image_path = g_build_filename (directory, "image", NULL);
  cut_path = g_build_filename (directory, "cut", NULL);
  signal (SIGALRM, tell_hanging);
  run_rounds (seed);
  printf ("%" G_GUINT64_FORMAT " crash states in %.1f s\n", nr_states,
          (double) (g_get_monotonic_time () - begun) / 1e6);
  if (!rules_broken)
    run_without_syncs (seed);
  broken = rules_broken != NULL;
  if (broken)
    fprintf (stderr, "%s\n", rules_broken);
  rules_forget_broken ();
  clean_up ();
  return broken ? EXIT_FAILURE : EXIT_SUCCESS;
}
