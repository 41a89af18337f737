/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/map.c with lib/alloc.c: many threads allocate the same and neighbouring
 * clusters; none is lost, none doubled.
 */

#include <config.h>

#include <pthread.h>

#include "alloc.h"
#include "map.h"
#include "run.h"

#define NR_THREADS 8
#define NR_CLUSTERS 3000u

struct race {
  struct map map;
  struct alloc alloc;
  struct changes changes;
  struct log log;
  pthread_barrier_t start;
};

START_TEST (word_keeps_its_parts)
{
  const uint64_t word = map_word (253, UINT32_MAX, MAP_NEW | MAP_UNSTABLE);

  ck_assert (map_word_is_mapped (word));
  ck_assert (map_word_is_new (word));
  ck_assert (map_word_is_unstable (word));
  ck_assert_uint_eq (map_word_entry (word), UINT32_MAX);
  ck_assert_uint_eq (map_word_level (word), 253);
  ck_assert_uint_eq (map_word_level (map_word (255, 0, MAP_COVERED)), 255);
  ck_assert (!map_word_is_new (map_word (0, 0, MAP_UNSTABLE)));
  ck_assert (!map_word_is_unstable (map_word (0, 0, MAP_NEW)));
  ck_assert (map_word_is_mapped (map_word (0, 0, 0)));
  ck_assert (!map_word_is_mapped (0));
}
END_TEST

START_TEST (publishing_fails_where_something_is)
{
  uint64_t wrong = map_word (0, 5, 0);
  struct map map;
  uint64_t found;

  ck_assert_int_eq (map_init (&map, 10), 0);
  ck_assert (map_publish (&map, 9, map_word (0, 5, MAP_NEW), &found));
  ck_assert (!map_publish (&map, 9, map_word (0, 6, 0), &found));
  ck_assert_uint_eq (map_word_entry (found), 5);
  ck_assert_uint_eq (map_lookup (&map, 8), 0);
  ck_assert (!map_replace (&map, 9, &wrong, 0));
  ck_assert_uint_eq (wrong, map_word (0, 5, MAP_NEW));
  ck_assert (map_replace (&map, 9, &wrong, 0));
  ck_assert (map_publish (&map, 9, map_word (0, 6, 0), &found));
  ck_assert_uint_eq (map_lookup (&map, 9), map_word (0, 6, 0));
  map_destroy (&map);
}
END_TEST

START_TEST (flags_come_and_go_and_the_place_stays)
{
  const uint64_t place = map_word (7, UINT32_MAX, 0);
  struct map map;

  ck_assert_int_eq (map_init (&map, 2), 0);
  map_fill (&map, 1, place | MAP_NEW);
  map_set_flags (&map, 1, MAP_UNSTABLE | MAP_COVERED);
  ck_assert_uint_eq (map_lookup (&map, 1),
                     place | MAP_NEW | MAP_UNSTABLE | MAP_COVERED);
  map_clear_flags (&map, 1, MAP_COVERED | MAP_UNSTABLE);
  ck_assert_uint_eq (map_lookup (&map, 1), place | MAP_NEW);
  map_clear_flags (&map, 1, MAP_NEW);
  ck_assert_uint_eq (map_lookup (&map, 1), place);
  ck_assert_uint_eq (map_lookup (&map, 0), 0);
  map_destroy (&map);
}
END_TEST

/* As many as the format allows: only what is touched takes memory. */
START_TEST (largest_map_costs_no_memory_until_it_is_used)
{
  struct map map;
  uint64_t found;

  ck_assert_int_eq (map_init (&map, FORMAT_MAX_ENTRIES), 0);
  ck_assert (map_publish (&map, FORMAT_MAX_ENTRIES - 1, map_word (0, 1, 0),
                          &found));
  ck_assert_uint_eq (map_lookup (&map, FORMAT_MAX_ENTRIES / 2), 0);
  map_destroy (&map);
}
END_TEST

/* All threads map all clusters, each from its own place on. */
static void *
allocate_all (void *opaque)
{
  struct race *race = opaque;
  const uint64_t first = (uint64_t) g_random_int_range (0, NR_CLUSTERS);

  pthread_barrier_wait (&race->start);
  for (uint64_t i = 0; i < NR_CLUSTERS; i++) {
    const uint64_t cluster = (first + i) % NR_CLUSTERS;
    uint32_t entry;
    uint64_t found;

    if (map_lookup (&race->map, cluster) != 0)
      continue;
    if (alloc_take (&race->alloc, &entry) != 0)
      return "alloc_take failed";
    if (map_publish (&race->map, cluster, map_word (0, entry, 0), &found))
      alloc_keep (&race->alloc);
    else
      alloc_give_back (&race->alloc, entry);
  }
  return NULL;
}

static void
nothing (void *opaque)
{
  (void) opaque;
}

/* Each cluster has a host cluster of its own, and nothing else is taken. */
static void
assert_complete (struct race *race, uint32_t data_start)
{
  g_autofree bool *taken = g_new0 (bool, NR_CLUSTERS + NR_THREADS + 1);

  for (uint64_t i = 0; i < NR_CLUSTERS; i++) {
    const uint64_t word = map_lookup (&race->map, i);
    const uint32_t cell = map_word_entry (word) - data_start;

    ck_assert (map_word_is_mapped (word));
    /* Lowest first: gaps are only what losers of a race held meanwhile. */
    ck_assert_uint_lt (cell, NR_CLUSTERS + NR_THREADS);
    ck_assert_msg (!taken[cell], "host cluster %u is doubled", cell);
    taken[cell] = true;
  }
  ck_assert_int_eq ((int) race->alloc.nr_wanted, 0);
  ck_assert_uint_eq (race->alloc.nr_held, 0);
}

START_TEST (threads_lose_and_double_no_cluster)
{
  const struct format_header header = scratch_header (2, 64, NR_CLUSTERS);
  g_autofree char *path = scratch_image ("race", &header, NULL, 32768);
  struct delta *delta = delta_open (path, DELTA_LOCK_WRITER, NULL);
  struct stats *stats = stats_new (false);
  const struct alloc_options options = {
    .data_end = delta->layout.data_start,
    .nr_unmapped = NR_CLUSTERS,
    .prealloc = 100 * 32768,
    .low = nothing,
    .freed = nothing,
  };
  struct race race = { .log = { NULL, NULL } };
  pthread_t threads[NR_THREADS];

  ck_assert_ptr_nonnull (delta);
  ck_assert_int_eq (map_init (&race.map, NR_CLUSTERS), 0);
  ck_assert_int_eq (alloc_init (&race.alloc, delta, &race.changes, stats,
                                &race.log, &options),
                    0);
  pthread_barrier_init (&race.start, NULL, NR_THREADS);
  for (int i = 0; i < NR_THREADS; i++)
    ck_assert_int_eq (
      pthread_create (&threads[i], NULL, allocate_all, &race), 0);
  for (int i = 0; i < NR_THREADS; i++) {
    void *wrong;

    pthread_join (threads[i], &wrong);
    ck_assert_msg (wrong == NULL, "%s", (const char *) wrong);
  }
  assert_complete (&race, 1);

  pthread_barrier_destroy (&race.start);
  alloc_destroy (&race.alloc);
  map_destroy (&race.map);
  delta_close (delta);
  stats_free (stats);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, word_keeps_its_parts);
  tcase_add_test (tcase, publishing_fails_where_something_is);
  tcase_add_test (tcase, flags_come_and_go_and_the_place_stays);
  tcase_add_test (tcase, largest_map_costs_no_memory_until_it_is_used);
  /* Races are won and lost differently each time. */
  tcase_add_loop_test (tcase, threads_lose_and_double_no_cluster, 0, 20);
}

int
main (void)
{
  return run_tests ("map", add_tests);
}
