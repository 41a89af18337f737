/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Power cuts and kill -9 above a lower delta, one thing at a time.
 *
 * test-power-cut does all at once and at random; here each mistake that
 * copy-on-write invites has a case that meets it every time: a few requests to
 * clusters that a lower delta has, cut at every event that the recorder has seen,
 * with any part of what was not synced lost, or nothing of it (kill -9).  What is
 * left reads by this test's own reader as rules.h says: what the lower delta has
 * as long as nothing is flushed, never again after, and never zeros unless they
 * were asked for.
 *
 * Each case is done in several ways, which are drawn and told when a rule is
 * broken.  PLOOP_TEST_SEED repeats them, PLOOP_TEST_SCALE is their number in per
 * cent.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <glib.h>

#include "lower.h"
#include "parts.h"
#include "ploop-core.h"
#include "reader.h"
#include "recorder.h"
#include "rules.h"

#define SECTOR 512u
#define CLUSTER 64u             /* sectors */
/* The last cluster is short. */
#define NR_SECTORS (9 * CLUSTER + 40)
/* The lower deltas have all clusters before it, or nearly so, and no others. */
#define LOWER_END 5u
#define NR_WAYS 12u
#define DIRECT_SECTORS (16u << 10)      /* as in test-power-cut */
#define PATIENCE_US (10 * G_USEC_PER_SEC)

static char *directory, *image_path;
static struct lower *lower;
static struct ploop_open_options options;
static ploop_image *image;
static uint64_t nr_states;
static uint64_t nr_lost;        /* states without a copy that was answered */

/* ---- Requests ---------------------------------------------------------- */

/* As if it had been tried by a copy before: what is copied lazily is not shared. */
static void
share_no_blocks (const ploop_image *of)
{
  const struct chain *chain = &of->parts[0].image->disk.chain;

  for (unsigned i = 0; i < chain->nr_levels; i++)
    chain->levels[i]->no_clone_from = true;
}

static void
open_image (void)
{
  g_autoptr (GError) error = NULL;

  image = ploop_open (image_path, &options, &error);
  if (!image)
    g_error ("%s", error->message);
  if (options.copy_on_write == PLOOP_COPY_LAZY)
    share_no_blocks (image);
}

/* All that was answered is durable then. */
static void
close_image (void)
{
  const uint64_t begun = recorder_now ();
  g_autoptr (GError) error = NULL;

  if (ploop_close (image, &error) == -1)
    rules_break ("%s", error->message);
  rules_add_flush (begun, recorder_now ());
}

static void
reopen (void)
{
  close_image ();
  open_image ();
}

static void
check_now (void)
{
  const struct claim now = rules_claim_now ();
  g_autofree uint8_t *bytes = g_malloc (NR_SECTORS * SECTOR);

  if (ploop_pread (image, bytes, NR_SECTORS * SECTOR, 0) != 0)
    rules_break ("it cannot be read");
  for (uint64_t i = 0; i < NR_SECTORS && !rules_broken; i++)
    rules_check_sector (bytes + i * SECTOR, i, &now, "read");
}

static int
do_change (enum ploop_operation operation, const uint8_t *bytes,
           uint64_t sector, uint64_t nr, unsigned flags)
{
  switch (operation) {
  case PLOOP_WRITE:
    return ploop_pwrite (image, bytes, nr * SECTOR, sector * SECTOR, flags);
  case PLOOP_ZERO:
    return ploop_zero (image, nr * SECTOR, sector * SECTOR, flags);
  default:
    return ploop_trim (image, nr * SECTOR, sector * SECTOR, flags);
  }
}

/* A trim of what a lower delta has, or of less than a cluster, is done or not,
 * and at any time.
 */
static bool
unmaps (uint64_t sector, uint64_t nr)
{
  return sector % CLUSTER == 0 && nr == CLUSTER
         && !lower_has (lower, sector / CLUSTER);
}

static void
request (enum ploop_operation operation, bool zeros, uint64_t sector,
         uint64_t nr, unsigned flags)
{
  g_autofree uint8_t *bytes = g_malloc0 (nr * SECTOR);
  struct change change = {
    .begun = recorder_now (),
    .forced = (flags & PLOOP_FUA)
              || options.cache == PLOOP_CACHE_WRITETHROUGH,
    .trim = operation == PLOOP_TRIM,
    .failed = operation == PLOOP_TRIM && !unmaps (sector, nr),
  };
  int r;

  if (operation == PLOOP_WRITE && !zeros) {
    change.number = rules_new_number ();
    for (uint64_t i = 0; i < nr; i++)
      rules_stamp (bytes + i * SECTOR, sector + i, change.number);
  }
  r = do_change (operation, bytes, sector, nr, flags);
  if (r < 0)
    rules_break ("a request failed: %s", g_strerror (-r));
  change.answered = recorder_now ();
  rules_add_change (sector, nr, &change);
  check_now ();
}

static void
write_to (uint64_t sector, uint64_t nr, unsigned flags)
{
  request (PLOOP_WRITE, false, sector, nr, flags);
}

static void
write_zeros_to (uint64_t sector, uint64_t nr)
{
  request (PLOOP_WRITE, true, sector, nr, 0);
}

static void
zero (uint64_t sector, uint64_t nr, unsigned flags)
{
  request (PLOOP_ZERO, false, sector, nr, flags);
}

static void
trim (uint64_t sector, uint64_t nr, unsigned flags)
{
  request (PLOOP_TRIM, false, sector, nr, flags);
}

static void
flush (void)
{
  const uint64_t begun = recorder_now ();

  if (ploop_flush (image) != 0)
    rules_break ("a flush failed");
  rules_add_flush (begun, recorder_now ());
}

static uint64_t
nr_commits (void)
{
  struct ploop_statistics statistics;

  ploop_get_statistics (image, &statistics);
  return statistics.nr_commits;
}

/* ---- Cases ------------------------------------------------------------- */

static void
a_copy_is_whole_or_not_there (void)
{
  write_to (0, 1, 0);
  write_to (CLUSTER + 20, 9, 0);
  write_to (3 * CLUSTER - 1, 1, 0);
  write_to (4 * CLUSTER - 3, 5, 0);
  flush ();
}

static void
a_whole_cluster_is_not_copied (void)
{
  write_to (CLUSTER, CLUSTER, 0);
  zero (2 * CLUSTER, CLUSTER, 0);
  zero (3 * CLUSTER, CLUSTER, PLOOP_UNMAP);
  flush ();
}

static void
zeros_in_part_leave_the_rest (void)
{
  zero (5, 9, 0);
  zero (CLUSTER + 5, 9, PLOOP_UNMAP);
  zero (2 * CLUSTER + 50, CLUSTER, PLOOP_FUA);
  write_zeros_to (4 * CLUSTER + 10, 4);
  flush ();
}

static void
a_forced_write_commits_its_copy (void)
{
  write_to (3, 4, PLOOP_FUA);
  write_to (9, 4, PLOOP_FUA);
  write_to (CLUSTER + 9, CLUSTER, 0);
  write_to (CLUSTER + 50, 4, PLOOP_FUA);
  zero (3 * CLUSTER + 50, 4, PLOOP_FUA);
}

static void
what_is_written_to_a_copy_is_committed_with_it (void)
{
  write_to (3, 4, 0);
  write_to (5, 9, 0);
  trim (3, 2, 0);
  flush ();
  write_to (5, 1, 0);
  write_to (CLUSTER + 5, 1, 0);
  flush ();
}

/* Without anybody's flush: as good as one. */
static void
copies_commit_themselves (void)
{
  const gint64 begun = g_get_monotonic_time ();
  uint64_t moment, before;

  /* Marks the image as in use, which takes a commit. */
  write_to (CLUSTER + 3, 4, PLOOP_FUA);
  before = nr_commits ();
  write_to (3, 4, 0);
  moment = recorder_now ();
  while (nr_commits () == before) {
    if (g_get_monotonic_time () - begun > PATIENCE_US) {
      rules_break ("nobody commits a copy");
      return;
    }
    g_usleep (1000);
  }
  rules_add_flush (moment, recorder_now ());
}

/* The classic mistake: the cluster would be unmapped, and what is below it, older
 * than what was flushed, would show.
 */
static void
what_is_trimmed_does_not_bring_back_the_lower_delta (void)
{
  write_to (0, CLUSTER, 0);
  write_to (CLUSTER + 3, 20, 0);
  write_to (2 * CLUSTER, CLUSTER, 0);
  flush ();
  trim (0, 2 * CLUSTER, 0);
  trim (2 * CLUSTER, 40, 0);
  trim (2 * CLUSTER + 40, 24, PLOOP_FUA);
  trim (3 * CLUSTER, CLUSTER, PLOOP_FUA);
  flush ();
  write_to (CLUSTER + 9, 1, 0);
  flush ();
  trim (CLUSTER, CLUSTER, 0);
  /* A copy that is not committed yet. */
  write_to (4 * CLUSTER, 20, 0);
  trim (4 * CLUSTER, CLUSTER, 0);
  flush ();
  reopen ();
  trim (0, 2 * CLUSTER, PLOOP_FUA);
}

static void
zeros_that_unmap_do_not_either (void)
{
  write_to (0, 2 * CLUSTER, PLOOP_FUA);
  zero (0, CLUSTER, PLOOP_UNMAP);
  zero (CLUSTER, 40, PLOOP_UNMAP);
  zero (CLUSTER + 40, 24, PLOOP_UNMAP | PLOOP_FUA);
  write_zeros_to (2 * CLUSTER, CLUSTER);
  flush ();
  reopen ();
  write_to (3, 1, 0);
  flush ();
  zero (0, 2 * CLUSTER, PLOOP_UNMAP | PLOOP_FUA);
}

/* The entries of copies are in the same page as those of clusters that no delta
 * had, which are written at once, and removed with all of the page.
 */
static void
other_entries_do_not_take_copies_along (void)
{
  for (uint64_t i = 0; i < 4; i++) {
    write_to (i * CLUSTER + 7, 3, 0);
    write_to ((LOWER_END + i) * CLUSTER, CLUSTER, 0);
    trim ((LOWER_END + i) * CLUSTER, CLUSTER, 0);
  }
}

/* What is done to a lazy copy before it is whole. */
static void
what_is_not_copied_yet_is_as_good_as_copied (void)
{
  write_to (20, 3, 0);
  write_to (22, 10, 0);
  zero (10, 12, 0);
  zero (40, 10, PLOOP_UNMAP);
  write_to (45, 2, 0);
  trim (50, 9, 0);
  write_to (52, 1, 0);
  write_to (CLUSTER + 1, 1, 0);
  write_to (CLUSTER + 3, CLUSTER, 0);
  flush ();
  zero (3 * CLUSTER + 9, 3, 0);
  write_to (3 * CLUSTER + 20, 1, 0);
  trim (3 * CLUSTER, CLUSTER, 0);
  write_to (3 * CLUSTER + 30, 1, PLOOP_FUA);
}

/* Each part of a cluster by itself: nothing is left to be copied. */
static void
a_copy_becomes_whole_by_writing (void)
{
  for (uint64_t i = 0; i < CLUSTER; i += 8)
    write_to (CLUSTER + (i * 5) % CLUSTER, 8, 0);
  zero (2 * CLUSTER + 30, 34, 0);
  write_to (2 * CLUSTER, 30, 0);
  flush ();
}

static const struct {
  const char *name;
  void (*run) (void);
} cases[] = {
#define CASE(name) { #name, name }
  CASE (a_copy_is_whole_or_not_there),
  CASE (a_whole_cluster_is_not_copied),
  CASE (zeros_in_part_leave_the_rest),
  CASE (a_forced_write_commits_its_copy),
  CASE (what_is_written_to_a_copy_is_committed_with_it),
  CASE (copies_commit_themselves),
  CASE (what_is_trimmed_does_not_bring_back_the_lower_delta),
  CASE (zeros_that_unmap_do_not_either),
  CASE (other_entries_do_not_take_copies_along),
  CASE (what_is_not_copied_yet_is_as_good_as_copied),
  CASE (a_copy_becomes_whole_by_writing),
};

/* ---- Judging ----------------------------------------------------------- */

/* When nothing else is lost, a copy that was not committed is: rule 6 of
 * test-power-cut.
 */
static void
check_cut (const struct recorder_cut *cut, uint64_t moment, double keep)
{
  const struct claim flushed = rules_claim_at (moment);
  struct claim killed = flushed;
  struct reader reader;
  g_autofree char *fault = reader_open (&reader, cut->bytes, cut->size);
  bool lost = false;

  nr_states++;
  if (fault)
    rules_break ("%s", fault);
  killed.answered = killed.answered_trims = keep >= 1;
  for (uint64_t i = 0; i < NR_SECTORS && !rules_broken; i++) {
    const uint8_t *bytes = lower_merged (lower, &reader, i);
    const bool below =
      !reader_sector (&reader, i) && lower_has (lower, i / CLUSTER);

    rules_check_sector (bytes, i, below ? &flushed : &killed, "cut");
    lost = lost || (below && keep >= 1 && !rules_may_hold (bytes, i, &killed));
  }
  nr_lost += lost;
}

static unsigned
draw (GRand *random, unsigned n)
{
  return (unsigned) g_rand_int_range (random, 0, (gint32) n);
}

static void
cut_everywhere (uint64_t end, GRand *random)
{
  static const double keeps[] = { 0, 0.1, 0.5, 0.9, 1 };
  /* Of a file as large as direct I/O asks for, a cut takes long. */
  const unsigned step = options.cache == PLOOP_CACHE_NONE ? 8 : 1;

  for (uint64_t moment = draw (random, step); moment <= end && !rules_broken;
       moment += step)
    for (size_t i = 0; i < G_N_ELEMENTS (keeps) && !rules_broken; i++) {
      g_autoptr (recorder_cut_t) cut =
        recorder_cut (moment, keeps[i], false, random);

      check_cut (cut, moment, keeps[i]);
      if (rules_broken)
        fprintf (stderr, "cut at %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT
                 ", keeping %.1f\n", moment, end, keeps[i]);
    }
}

/* ---- Ways -------------------------------------------------------------- */

static void
make_image (void)
{
  const bool direct = options.cache == PLOOP_CACHE_NONE;
  const struct reader_shape shape = {
    .version = 2,
    .cluster_sectors = CLUSTER,
    .nr_sectors = NR_SECTORS,
    .nr_entries = (NR_SECTORS + CLUSTER - 1) / CLUSTER,
    .data_sectors = direct ? DIRECT_SECTORS : CLUSTER,
  };
  uint64_t size;
  g_autofree uint8_t *bytes = reader_make (&shape, &size);

  if (!g_file_set_contents (image_path, (const char *) bytes, (gssize) size,
                            NULL))
    g_error ("%s: %s", image_path, g_strerror (errno));
  for (uint64_t i = 0; i < NR_SECTORS; i++) {
    uint64_t number;

    rules_read_stamp (lower_merged (lower, NULL, i), i, &number);
    rules_set_initial (i, number);
  }
}

/* What matters most goes by turns. */
static char *
draw_way (unsigned turn, GRand *random, struct recorder_faults *faults)
{
  static const struct lower_shape shapes[] = {
    { 1, false, 100, LOWER_END },
    { 0, true, 100, LOWER_END },
    { 2, true, 70, LOWER_END },
  };
  const unsigned shape = turn % G_N_ELEMENTS (shapes);

  options = (struct ploop_open_options) {
    /* One that can lose a copy is among them. */
    .cache = turn == 0 ? PLOOP_CACHE_WRITEBACK
                       : (enum ploop_cache) draw (random, 3),
    .no_fast_path = draw (random, 2),
    /* Without reserved space no copy is lazy. */
    .prealloc_mode = turn % 2 ? PLOOP_PREALLOC_FALLOC
                              : (enum ploop_prealloc_mode) draw (random, 2),
    .discard = turn % 4 == 3 ? PLOOP_DISCARD_KEEP : PLOOP_DISCARD_UNMAP,
    .detect_zeroes = (enum ploop_detect_zeroes) draw (random, 3),
    .runners = 1 + draw (random, 2),
    .prealloc = (uint64_t) (1 + draw (random, 3)) * CLUSTER * SECTOR,
    .copy_delay = draw (random, 2) ? 1 : 100,
    .copy_on_write = turn % 2 ? PLOOP_COPY_LAZY : PLOOP_COPY_EAGER,
  };
  *faults = (struct recorder_faults) {
    .no_clone = draw (random, 2),
    .no_copy_range = draw (random, 2),
  };
  lower = lower_new (directory, &shapes[shape], CLUSTER, NR_SECTORS, random);
  options.bases = lower_bases (lower);
  return g_strdup_printf (
    "%u images%s below, cache %d, %s, prealloc mode %d, discard %d, detect "
    "zeroes %d, copies %s, copy delay %u%s%s", shapes[shape].nr_images,
    shapes[shape].raw_base ? " and a raw one" : "", (int) options.cache,
    options.no_fast_path ? "no fast path" : "fast path",
    (int) options.prealloc_mode, (int) options.discard,
    (int) options.detect_zeroes,
    options.copy_on_write == PLOOP_COPY_LAZY ? "lazy" : "eager",
    options.copy_delay,
    faults->no_clone ? "" : ", clones", faults->no_copy_range ? "" : ", copies");
}

static void
run_case (size_t n, unsigned turn, uint32_t seed)
{
  GRand *random = g_rand_new_with_seed (seed + turn);
  struct recorder_faults faults;
  g_autofree char *way = draw_way (turn, random, &faults);
  uint64_t end;

  rules_begin (NR_SECTORS, CLUSTER);
  make_image ();
  recorder_start (image_path, &faults, seed);
  open_image ();
  cases[n].run ();
  close_image ();
  end = recorder_now ();
  if (recorder_stray ())
    rules_break ("rule 8: %s in a lower delta", recorder_stray ());
  lower_check_untouched (lower);
  if (!rules_broken)
    cut_everywhere (end, random);
  recorder_stop ();
  rules_end ();
  g_clear_pointer (&lower, lower_free);
  g_rand_free (random);
  if (rules_broken)
    fprintf (stderr, "%s, way %u, PLOOP_TEST_SEED=%u: %s\n", cases[n].name,
             turn, seed, way);
}

static unsigned
number_from (const char *name, unsigned otherwise)
{
  const char *value = g_getenv (name);

  return value ? (unsigned) strtoul (value, NULL, 0) : otherwise;
}

int
main (void)
{
  const uint32_t seed = number_from ("PLOOP_TEST_SEED", g_random_int ());
  const unsigned nr =
    MAX (NR_WAYS * number_from ("PLOOP_TEST_SCALE", 100) / 100, 2);
  const gint64 begun = g_get_monotonic_time ();
  bool broken;

  if (!g_getenv ("TMPDIR") && access ("/dev/shm", W_OK) == 0)
    g_setenv ("TMPDIR", "/dev/shm", TRUE);
  directory = g_dir_make_tmp ("ploop-crash-XXXXXX", NULL);
  image_path = g_build_filename (directory, "image", NULL);
  for (unsigned i = 0; i < nr; i++)
    for (size_t n = 0; n < G_N_ELEMENTS (cases) && !rules_broken; n++)
      run_case (n, i, seed);
  printf ("%" G_GUINT64_FORMAT " crash states in %.1f s, %" G_GUINT64_FORMAT
          " without a copy that was answered, PLOOP_TEST_SEED=%u\n", nr_states,
          (double) (g_get_monotonic_time () - begun) / 1e6, nr_lost, seed);
  if (nr_lost == 0)
    rules_break ("no copy was ever lost: this test cannot fail");
  broken = rules_broken != NULL;
  if (broken)
    fprintf (stderr, "%s\n", rules_broken);
  rules_forget_broken ();
  unlink (image_path);
  rmdir (directory);
  g_free (image_path);
  g_free (directory);
  return broken ? EXIT_FAILURE : EXIT_SUCCESS;
}
