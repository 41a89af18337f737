/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Rounds, and cuts everywhere: see rounds.h. */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <glib/gstdio.h>

#include "drawn.h"
#include "rounds.h"
#include "rules.h"

/* Of a round with many events, some are left out, but for the last ones. */
#define NR_MOMENTS 60u
#define NR_LAST 15u
#define NR_LEFT 4u
#define NR_WITHOUT_SYNCS 20u

static char *directory;
static GPtrArray *paths;        /* of char * */
static uint64_t nr_states, nr_resumed;

/* ---- Files ------------------------------------------------------------- */

static void
make_directory (void)
{
  /* Nothing here need really be durable. */
  if (!g_getenv ("TMPDIR") && access ("/dev/shm", W_OK) == 0)
    g_setenv ("TMPDIR", "/dev/shm", TRUE);
  directory = g_dir_make_tmp ("ploop-crash-XXXXXX", NULL);
  paths = g_ptr_array_new_with_free_func (g_free);
}

const char *
rounds_path (const char *name)
{
  char *path;

  if (!directory)
    make_directory ();
  path = g_build_filename (directory, name, NULL);

  g_ptr_array_add (paths, path);
  return path;
}

static void
remove_all (void)
{
  for (guint i = paths->len; i-- > 0;)
    g_remove (g_ptr_array_index (paths, i));
  g_ptr_array_unref (paths);
  rmdir (directory);
  g_free (directory);
}

/* ---- Cutting ----------------------------------------------------------- */

static void
clear_left (void *opaque)
{
  recorder_cut_free (((struct rounds_left *) opaque)->cut);
}

static void
cut_at (uint64_t moment, double keep, bool broken_sync, GRand *random,
        rounds_check_fn check, void *opaque, GArray *left)
{
  const struct rounds_left one = {
    recorder_cut (moment, keep, broken_sync, random), moment
  };

  nr_states++;
  check (one.cut, moment, opaque);
  if (rules_broken && !broken_sync)
    fprintf (stderr, "cut at %" G_GUINT64_FORMAT ", keeping %.1f\n", moment,
             keep);
  if (left->len < NR_LEFT && drawn_chance (random, 3))
    g_array_append_val (left, one);
  else
    recorder_cut_free (one.cut);
}

GArray *
rounds_cut (uint64_t end, bool broken_sync, GRand *random,
            rounds_check_fn check, void *opaque)
{
  static const double keeps[] = { 0, 0.5, 0.9, 1 };
  const uint64_t stride = end / NR_MOMENTS + 1;
  GArray *left = g_array_new (FALSE, FALSE, sizeof (struct rounds_left));
  uint64_t moment =
    (uint64_t) g_rand_int_range (random, 0, (gint32) stride);

  g_array_set_clear_func (left, clear_left);
  while (moment <= end && !rules_broken) {
    for (size_t i = 0; i < G_N_ELEMENTS (keeps) && !rules_broken; i++)
      cut_at (moment, keeps[i], broken_sync, random, check, opaque, left);
    moment += moment + NR_LAST >= end ? 1 : stride;
  }
  return left;
}

void
rounds_count_resumed (void)
{
  nr_resumed++;
}

/* ---- Rounds ------------------------------------------------------------ */

static unsigned
number_from (const char *name, unsigned otherwise)
{
  const char *value = g_getenv (name);

  return value ? (unsigned) strtoul (value, NULL, 0) : otherwise;
}

static void
run_rounds (unsigned nr, uint32_t seed, rounds_fn run)
{
  nr = MAX (nr * number_from ("PLOOP_TEST_SCALE", 100) / 100, 1);
  printf ("%u rounds, PLOOP_TEST_SEED=%u\n", nr, seed);
  fflush (stdout);
  for (unsigned i = 0; i < nr && !rules_broken; i++)
    run (seed + 1000 * i, false);
  printf ("%" G_GUINT64_FORMAT " crash states, %" G_GUINT64_FORMAT
          " gone on with\n", nr_states, nr_resumed);
}

static void
run_without_syncs (uint32_t seed, rounds_fn run)
{
  for (unsigned i = 0; i < NR_WITHOUT_SYNCS && !rules_broken; i++)
    run (seed + 1000 * i, true);
  if (rules_broken) {
    printf ("without syncs, as it must be: %s\n", rules_broken);
    rules_forget_broken ();
  }
  else
    rules_break ("syncs that do nothing go unnoticed: this test cannot fail");
}

int
rounds_main (unsigned nr, rounds_fn run)
{
  const uint32_t seed = number_from ("PLOOP_TEST_SEED", g_random_int ());
  bool broken;

  run_rounds (nr, seed, run);
  if (!rules_broken)
    run_without_syncs (seed, run);
  broken = rules_broken != NULL;
  if (broken)
    fprintf (stderr, "%s\n", rules_broken);
  rules_forget_broken ();
  remove_all ();
  return broken ? EXIT_FAILURE : EXIT_SUCCESS;
}
