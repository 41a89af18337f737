/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/engine.c and lib/loop.c: images that share their threads work side by side,
 * and none is in the way of another.
 */

#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "faults.h"
#include "format.h"
#include "loop.h"
#include "pair.h"
#include "run.h"

#define NR_IMAGES 12u
#define NR_ROUNDS 60u

/* Threads of this process whose names begin with PREFIX. */
static unsigned
nr_threads (const char *prefix)
{
  DIR *tasks = opendir ("/proc/self/task");
  const struct dirent *entry;
  unsigned nr = 0;

  ck_assert_ptr_nonnull (tasks);
  while ((entry = readdir (tasks))) {
    g_autofree char *path =
      g_strdup_printf ("/proc/self/task/%s/comm", entry->d_name);
    g_autofree char *name = NULL;

    if (g_file_get_contents (path, &name, NULL, NULL)
        && g_str_has_prefix (name, prefix))
      nr++;
  }
  closedir (tasks);
  return nr;
}

static ploop_image *
open_with (ploop_engine *engine, const char *path, const char *const *bases,
           unsigned copy_delay)
{
  const struct ploop_open_options options = {
    .engine = engine,
    .no_fast_path = true,
    .bases = bases,
    .copy_delay = copy_delay,
  };
  g_autoptr (GError) error = NULL;
  ploop_image *image = ploop_open (path, &options, &error);

  ck_assert_msg (image != NULL, "%s", error ? error->message : "");
  return image;
}

static ploop_engine *
new_engine (unsigned nr_runners)
{
  ploop_engine *engine = ploop_engine_new (nr_runners, NULL);

  ck_assert_ptr_nonnull (engine);
  return engine;
}

/* ---- Threads ------------------------------------------------------------ */

START_TEST (images_of_an_engine_start_no_threads)
{
  ploop_engine *engine = new_engine (3);
  ploop_image *images[NR_IMAGES];
  char *paths[NR_IMAGES];

  for (unsigned i = 0; i < NR_IMAGES; i++) {
    paths[i] = empty_image ("image", NR_CLUSTERS);
    images[i] = open_with (engine, paths[i], NULL, 0);
    fill (images[i], i % NR_CLUSTERS, (uint8_t) (i + 1));
    ck_assert_uint_eq (nr_threads ("ploop-run-"), 3);
    ck_assert_uint_eq (nr_threads ("ploop-flush"), 1);
  }
  for (unsigned i = 0; i < NR_IMAGES; i++)
    ck_assert (is_all (images[i], CLUSTER, i % NR_CLUSTERS * (uint64_t) CLUSTER,
                       (uint8_t) (i + 1)));
  for (unsigned i = 0; i < NR_IMAGES; i++) {
    close_image (images[i]);
    g_free (paths[i]);
  }
  ck_assert_uint_eq (nr_threads ("ploop-run-"), 3);
  ploop_engine_free (engine);
  ck_assert_uint_eq (nr_threads ("ploop-run-"), 0);
  ck_assert_uint_eq (nr_threads ("ploop-flush"), 0);
}
END_TEST

START_TEST (too_many_runners_are_refused)
{
  g_autoptr (GError) error = NULL;

  ck_assert_ptr_null (ploop_engine_new (PLOOP_MAX_RUNNERS + 1, &error));
  ck_assert (g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT));
  ploop_engine_free (NULL);
}
END_TEST

/* ---- Side by side -------------------------------------------------------- */

/* The test hangs if that holds up the other's. */
START_TEST (suspended_image_holds_up_no_other)
{
  ploop_engine *engine = new_engine (1);
  g_autofree char *lower = make_lower ("lower", 1);
  g_autofree char *tops[2] = { NULL };
  const char *const bases[] = { lower, NULL };
  ploop_image *images[2];

  for (unsigned i = 0; i < 2; i++) {
    tops[i] = empty_image ("top", NR_CLUSTERS);
    images[i] = open_with (engine, tops[i], bases, 1);
  }
  /* It has something to commit, and may not. */
  ck_assert_int_eq (ploop_pwrite (images[0], "x", 1, 0, 0), 0);
  ck_assert_int_eq (ploop_suspend (images[0]), 0);
  ck_assert_int_eq (ploop_pwrite (images[1], "x", 1, 0, 0), 0);
  while (scratch_read_le32 (tops[1], format_bat_offset (0)) == 0)
    g_usleep (1000);
  ploop_resume (images[0]);
  ck_assert_int_eq (ploop_pwrite (images[0], "y", 1, STEP * CLUSTER, 0), 0);
  while (scratch_read_le32 (tops[0], format_bat_offset (STEP)) == 0)
    g_usleep (1000);
  for (unsigned i = 0; i < 2; i++)
    close_image (images[i]);
  ploop_engine_free (engine);
  g_free (g_steal_pointer (&tops[0]));
  g_free (g_steal_pointer (&tops[1]));
}
END_TEST

struct user {
  pthread_t thread;
  ploop_engine *engine;
  unsigned index;
  char *path, *lower;
};

/* Open, write, commit, close, again and again. */
static void *
use_image (void *opaque)
{
  const struct user *user = opaque;
  const char *path = user->path;
  const char *const bases[] = { user->lower, NULL };

  for (unsigned round = 0; round < NR_ROUNDS; round++) {
    const uint8_t byte = (uint8_t) (user->index * 16 + round % 16 + 1);
    const uint64_t cluster = (round * 7 + user->index) % NR_CLUSTERS;
    ploop_image *image = open_with (user->engine, path, bases, 1);

    fill (image, (unsigned) cluster, byte);
    if (round % 3 == 0)
      ck_assert_int_eq (ploop_trim (image, SIZE / 2, SIZE / 4, 0), 0);
    if (round % 2 == 0)
      ck_assert_int_eq (ploop_flush (image), 0);
    fill (image, (unsigned) cluster, byte);
    ck_assert (is_all (image, CLUSTER, cluster * CLUSTER, byte));
    close_image (image);
    image = open_with (user->engine, path, bases, 1);
    ck_assert (is_all (image, CLUSTER, cluster * CLUSTER, byte));
    close_image (image);
  }
  return NULL;
}

START_TEST (images_come_and_go_beside_others)
{
  ploop_engine *engine = new_engine (2);
  struct user users[4];

  for (unsigned i = 0; i < G_N_ELEMENTS (users); i++) {
    users[i] = (struct user) {
      .engine = engine,
      .index = i,
      .path = empty_image ("image", NR_CLUSTERS),
      .lower = make_lower ("lower", 1),
    };
  }
  for (unsigned i = 0; i < G_N_ELEMENTS (users); i++)
    ck_assert_int_eq (pthread_create (&users[i].thread, NULL, use_image,
                                      &users[i]), 0);
  for (unsigned i = 0; i < G_N_ELEMENTS (users); i++)
    ck_assert_int_eq (pthread_join (users[i].thread, NULL), 0);
  for (unsigned i = 0; i < G_N_ELEMENTS (users); i++) {
    g_free (users[i].path);
    g_free (users[i].lower);
  }
  ploop_engine_free (engine);
}
END_TEST

/* ---- The loop ------------------------------------------------------------ */

struct counted {
  struct loop_client client;
  _Atomic unsigned nr_runs, nr_leaves;
};

static void
count_run (struct loop_client *client, bool leaving)
{
  struct counted *counted = (struct counted *) client;

  counted->nr_runs++;
  counted->nr_leaves += leaving;
}

START_TEST (client_that_has_left_is_not_run)
{
  struct loop loop;
  struct counted counted = { .nr_runs = 0 };

  ck_assert_int_eq (loop_start (&loop, "test-loop"), 0);
  loop_client_init (&counted.client, count_run);
  loop_ask (&loop, &counted.client);
  while (counted.nr_runs == 0)
    g_usleep (1000);
  loop_leave (&loop, &counted.client);
  ck_assert_uint_eq (counted.nr_leaves, 1);
  counted.nr_runs = 0;
  loop_ask (&loop, &counted.client);
  loop_stop (&loop);
  loop_ask (&loop, &counted.client);
  loop_destroy (&loop);
  ck_assert_uint_eq (counted.nr_runs, 0);
}
END_TEST

START_TEST (loop_that_was_never_started_can_be_ended)
{
  struct loop loop = { .ev = NULL };

  loop_stop (&loop);
  loop_destroy (&loop);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, images_of_an_engine_start_no_threads);
  tcase_add_test (tcase, too_many_runners_are_refused);
  tcase_add_test (tcase, suspended_image_holds_up_no_other);
  tcase_add_test (tcase, images_come_and_go_beside_others);
  tcase_add_test (tcase, client_that_has_left_is_not_run);
  tcase_add_test (tcase, loop_that_was_never_started_can_be_ended);
}

int
main (void)
{
  return run_tests ("engine", add_tests);
}
