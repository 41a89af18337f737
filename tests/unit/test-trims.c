/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/trims.c: parts of clusters that are trimmed are punched, but for what was
 * written since; and what becomes empty is unmapped, but not under a writer.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <string.h>

#include "faults.h"
#include "rcu.h"
#include "run.h"
#include "trims.h"

#define CLUSTER 65536u
#define BLOCK 4096u
#define SECTOR 512u
#define NR_MAPPED 8u
#define NR_ENTRIES 70000u
#define MAX_RECORDS 65536u      /* trims.c's */

static const struct log silent;

/* ---- The bed: an image without requests and without its flusher -------- */

struct bed {
  char *path;
  struct delta *delta;
  struct map map;
  struct changes changes;
  struct stats *stats;
  struct alloc alloc;
  struct commit commit;
  struct trims trims;
  uint64_t data_start;
};

static _Atomic unsigned nr_news;

static void
note_news (void *opaque)
{
  (void) opaque;
  nr_news++;
}

static void
nothing (void *opaque)
{
  (void) opaque;
}

static void
start_trims (struct bed *bed, bool punches)
{
  const struct trims_options options = { punches, note_news, bed };

  trims_init (&bed->trims, bed->delta, &bed->map, &bed->commit, &bed->alloc,
              &options);
  bed->delta->block_size = BLOCK;
}

/* The first NR_MAPPED clusters of the disk, which lie in order, hold 0xaa; the
 * disk's last one is three sectors long.
 */
static void
set_up (struct bed *bed, bool punches)
{
  struct format_header header =
    scratch_header (2, CLUSTER / SECTOR, NR_ENTRIES);
  const struct commit_hooks hooks = { .opaque = bed };
  g_autofree char *data = g_malloc (CLUSTER);
  struct alloc_options options = {
    .nr_unmapped = NR_ENTRIES - NR_MAPPED,
    .prealloc = CLUSTER,
    .low = nothing,
    .freed = nothing,
    .opaque = bed,
  };

  header.size_sectors -= CLUSTER / SECTOR - 3;
  *bed = (struct bed) { .stats = stats_new (false) };
  bed->data_start = header.data_sectors * (uint64_t) SECTOR;
  options.data_end = bed->data_start + NR_MAPPED * CLUSTER;
  bed->path = scratch_image ("trims", &header, NULL, options.data_end);
  memset (data, 0xaa, CLUSTER);
  for (uint64_t i = 0; i < NR_MAPPED; i++)
    scratch_write (bed->path, data, CLUSTER, bed->data_start + i * CLUSTER);

  bed->delta = delta_open (bed->path, DELTA_LOCK_WRITER, NULL);
  ck_assert_ptr_nonnull (bed->delta);
  ck_assert_int_eq (map_init (&bed->map, NR_ENTRIES), 0);
  for (uint32_t i = 0; i < NR_MAPPED; i++)
    map_fill (&bed->map, i,
              map_word (0, format_cell_entry (&bed->delta->layout, i), 0));
  ck_assert_int_eq (alloc_init (&bed->alloc, bed->delta, &bed->changes,
                                bed->stats, &silent, &options), 0);
  ck_assert_int_eq (commit_init (&bed->commit, bed->delta, 0, &bed->map,
                                 &bed->changes, bed->stats, &silent, &hooks,
                                 0, NULL), 0);
  start_trims (bed, punches);
  fault_reset ();
  nr_news = 0;
}

static void
tear_down (struct bed *bed)
{
  fault_hook = NULL;
  fault_reset ();
  trims_destroy (&bed->trims);
  rcu_barrier ();
  alloc_destroy (&bed->alloc);
  commit_destroy (&bed->commit);
  map_destroy (&bed->map);
  delta_close (bed->delta);
  stats_free (bed->stats);
  g_free (bed->path);
}

/* Returns true when it is unmapped after that. */
static bool
add (struct bed *bed, uint64_t cluster, uint32_t from, uint32_t to)
{
  trims_add (&bed->trims, cluster, map_lookup (&bed->map, cluster), from, to);
  return map_lookup (&bed->map, cluster) == 0;
}

static bool
is_flagged (const struct bed *bed, uint64_t cluster)
{
  return (map_lookup (&bed->map, cluster) & MAP_TRIMMED) != 0;
}

/* All that can be done now, grace periods included. */
static void
work (struct bed *bed)
{
  do
    rcu_barrier ();
  while (trims_work (&bed->trims));
  rcu_barrier ();
  trims_work (&bed->trims);
}

/* What the file holds of the disk's sector: its first byte. */
static unsigned char
byte_at (const struct bed *bed, uint64_t cluster, uint64_t offset)
{
  unsigned char byte;

  scratch_read (bed->path, &byte, 1,
                bed->data_start + cluster * CLUSTER + offset);
  return byte;
}

static void
expect (const struct bed *bed, uint64_t cluster, uint32_t from, uint32_t to,
        unsigned char byte)
{
  for (uint32_t i = from; i < to; i += SECTOR)
    ck_assert_msg (byte_at (bed, cluster, i) == byte,
                   "cluster %u, byte %u is 0x%02x, not 0x%02x",
                   (unsigned) cluster, i, byte_at (bed, cluster, i), byte);
}

/* ---- Punching ---------------------------------------------------------- */

START_TEST (part_is_punched_later_and_nothing_else)
{
  struct bed bed;

  set_up (&bed, true);
  ck_assert (!add (&bed, 1, BLOCK, 3 * BLOCK));
  ck_assert_uint_eq (nr_news, 1);
  ck_assert (is_flagged (&bed, 1));
  ck_assert_uint_eq (fault_calls[FAULT_FALLOCATE], 0);
  work (&bed);
  expect (&bed, 0, 0, CLUSTER, 0xaa);
  expect (&bed, 1, 0, BLOCK, 0xaa);
  expect (&bed, 1, BLOCK, 3 * BLOCK, 0);
  expect (&bed, 1, 3 * BLOCK, CLUSTER, 0xaa);
  expect (&bed, 2, 0, CLUSTER, 0xaa);
  tear_down (&bed);
}
END_TEST

START_TEST (parts_are_rounded_inwards)
{
  struct bed bed;

  set_up (&bed, true);
  add (&bed, 1, 1, SECTOR);             /* no sector */
  ck_assert (!is_flagged (&bed, 1));
  add (&bed, 1, BLOCK + 1, 3 * BLOCK - 1);      /* one block */
  add (&bed, 2, BLOCK + 1, 2 * BLOCK + BLOCK / 2);      /* none */
  work (&bed);
  expect (&bed, 1, 0, 2 * BLOCK - SECTOR, 0xaa);
  expect (&bed, 1, 2 * BLOCK, CLUSTER, 0xaa);
  expect (&bed, 2, 0, CLUSTER, 0xaa);
  tear_down (&bed);
}
END_TEST

START_TEST (neighbours_are_punched_in_one_call)
{
  struct bed bed;

  set_up (&bed, true);
  add (&bed, 2, 0, 5 * BLOCK);
  add (&bed, 0, CLUSTER - BLOCK, CLUSTER);
  add (&bed, 1, CLUSTER / 2, CLUSTER);
  add (&bed, 1, BLOCK, CLUSTER / 2);
  work (&bed);
  ck_assert_uint_eq (fault_calls[FAULT_FALLOCATE], 2);
  expect (&bed, 1, 0, BLOCK, 0xaa);
  expect (&bed, 1, BLOCK, CLUSTER, 0);
  expect (&bed, 2, 5 * BLOCK, CLUSTER, 0xaa);
  tear_down (&bed);
}
END_TEST

START_TEST (what_is_written_is_not_trimmed_any_more)
{
  struct bed bed;

  set_up (&bed, true);
  add (&bed, 1, 0, 8 * BLOCK);
  trims_write (&bed.trims, 1, 2 * BLOCK, 3 * BLOCK);
  ck_assert (is_flagged (&bed, 1));
  add (&bed, 2, 0, 8 * BLOCK);
  trims_write (&bed.trims, 2, 0, 8 * BLOCK);
  ck_assert (!is_flagged (&bed, 2));
  work (&bed);
  expect (&bed, 1, 0, 2 * BLOCK, 0);
  expect (&bed, 1, 2 * BLOCK, 3 * BLOCK, 0xaa);
  expect (&bed, 1, 3 * BLOCK, 8 * BLOCK, 0);
  expect (&bed, 2, 0, CLUSTER, 0xaa);
  tear_down (&bed);
}
END_TEST

/* Random trims and writes: what is punched in the end are the blocks of which
 * every sector was trimmed after it was written.
 */
START_TEST (random_parts_are_punched_like_the_model)
{
  bool trimmed[NR_MAPPED][CLUSTER / SECTOR] = { 0 };
  struct bed bed;

  set_up (&bed, true);
  for (int i = 0; i < 300; i++) {
    const uint32_t c = (uint32_t) g_random_int_range (0, NR_MAPPED);
    const uint32_t from =
      (uint32_t) g_random_int_range (0, CLUSTER / SECTOR - 1);
    const uint32_t to = (uint32_t) g_random_int_range (
      (gint32) from + 1, MIN ((gint32) from + 40, (gint32) (CLUSTER / SECTOR)));
    const bool trims = g_random_int_range (0, 100) < 70;

    if (trims)
      ck_assert (!add (&bed, c, from * SECTOR, to * SECTOR));
    else if (is_flagged (&bed, c))
      trims_write (&bed.trims, c, from * SECTOR, to * SECTOR);
    for (uint32_t s = from; s < to; s++)
      trimmed[c][s] = trims;
  }
  work (&bed);
  for (uint32_t c = 0; c < NR_MAPPED; c++)
    for (uint32_t s = 0; s < CLUSTER / SECTOR; s += BLOCK / SECTOR) {
      bool all = true;

      for (uint32_t i = s; i < s + BLOCK / SECTOR; i++)
        all = all && trimmed[c][i];
      expect (&bed, c, s * SECTOR, s * SECTOR + BLOCK, all ? 0 : 0xaa);
    }
  tear_down (&bed);
}
END_TEST

START_TEST (failed_punch_does_no_harm)
{
  struct bed bed;

  set_up (&bed, true);
  add (&bed, 1, 0, BLOCK);
  fault_inject (FAULT_FALLOCATE, EIO, 0, 1);
  work (&bed);
  ck_assert_uint_eq (fault_calls[FAULT_FALLOCATE], 1);
  expect (&bed, 1, 0, CLUSTER, 0xaa);
  add (&bed, 1, 0, BLOCK);
  work (&bed);
  expect (&bed, 1, 0, BLOCK, 0);
  tear_down (&bed);
}
END_TEST

/* ---- While it is being punched ----------------------------------------- */

static sem_t punching, go_on;
static _Atomic bool has_gone_on;

static int
hold_punch (const struct fault_event *event)
{
  if (event->call == FAULT_FALLOCATE) {
    sem_post (&punching);
    sem_wait (&go_on);
    has_gone_on = true;
  }
  return 0;
}

static void *
work_once (void *opaque)
{
  trims_work (&((struct bed *) opaque)->trims);
  return NULL;
}

static void *
write_second_block (void *opaque)
{
  struct bed *bed = opaque;

  trims_write (&bed->trims, 1, BLOCK, 2 * BLOCK);
  ck_assert (has_gone_on);
  return NULL;
}

START_TEST (only_who_writes_what_is_being_punched_waits)
{
  pthread_t worker, writer;
  struct bed bed;

  set_up (&bed, true);
  sem_init (&punching, 0, 0);
  sem_init (&go_on, 0, 0);
  has_gone_on = false;
  add (&bed, 1, BLOCK, 3 * BLOCK);
  fault_hook = hold_punch;
  pthread_create (&worker, NULL, work_once, &bed);
  sem_wait (&punching);
  /* These return. */
  trims_write (&bed.trims, 1, 0, BLOCK);
  trims_write (&bed.trims, 1, 3 * BLOCK, CLUSTER);
  trims_write (&bed.trims, 2, 0, CLUSTER);
  ck_assert (!add (&bed, 1, 6 * BLOCK, 7 * BLOCK));
  pthread_create (&writer, NULL, write_second_block, &bed);
  g_usleep (20000);
  sem_post (&go_on);
  pthread_join (writer, NULL);
  pthread_join (worker, NULL);
  fault_hook = NULL;
  /* What was trimmed meanwhile is punched, too. */
  work (&bed);
  expect (&bed, 1, BLOCK, 3 * BLOCK, 0);
  expect (&bed, 1, 3 * BLOCK, 6 * BLOCK, 0xaa);
  expect (&bed, 1, 6 * BLOCK, 7 * BLOCK, 0);
  tear_down (&bed);
}
END_TEST

/* ---- A cluster that is not where it was -------------------------------- */

/* _i: 0 unmapped, 1 elsewhere, 2 in the same place again, which the record does
 * not know: 3 and trimmed again.
 */
START_TEST (record_of_another_time_is_not_used)
{
  const uint64_t cluster = 1;
  uint64_t word, removal, found;
  struct bed bed;

  set_up (&bed, true);
  word = map_lookup (&bed.map, cluster);
  add (&bed, cluster, 0, 4 * BLOCK);
  ck_assert (commit_remove (&bed.commit, cluster, word, &removal));
  if (_i == 1)
    map_publish (&bed.map, cluster, word + 100, &found);
  if (_i >= 2)
    map_publish (&bed.map, cluster, word, &found);
  if (_i == 3)
    add (&bed, cluster, 6 * BLOCK, 7 * BLOCK);
  work (&bed);
  expect (&bed, cluster, 0, 6 * BLOCK, 0xaa);
  expect (&bed, cluster, 6 * BLOCK, 7 * BLOCK, _i == 3 ? 0 : 0xaa);
  expect (&bed, cluster, 7 * BLOCK, CLUSTER, 0xaa);
  ck_assert (is_flagged (&bed, cluster) == (_i == 3));
  tear_down (&bed);
}
END_TEST

START_TEST (new_and_unmapped_clusters_are_left_alone)
{
  struct bed bed;

  set_up (&bed, true);
  map_fill (&bed.map, 1, map_lookup (&bed.map, 1) | MAP_NEW);
  ck_assert (!add (&bed, 1, 0, CLUSTER));
  trims_add (&bed.trims, 50, map_word (0, 77, 0), 0, CLUSTER);
  ck_assert (!is_flagged (&bed, 1));
  ck_assert_uint_eq (map_lookup (&bed.map, 50), 0);
  ck_assert_uint_eq (bed.trims.nr_records, 0);
  work (&bed);
  expect (&bed, 1, 0, CLUSTER, 0xaa);
  tear_down (&bed);
}
END_TEST

/* ---- Nothing left ------------------------------------------------------ */

/* _i: with punches, and without. */
START_TEST (pieces_that_are_the_whole_are_told)
{
  const uint64_t last = NR_ENTRIES - 1;
  struct bed bed;

  set_up (&bed, _i == 0);
  ck_assert (!add (&bed, 1, 700, CLUSTER));
  ck_assert (!add (&bed, 1, 0, SECTOR));
  ck_assert (add (&bed, 1, SECTOR, 2 * SECTOR));
  ck_assert_uint_eq (alloc_nr_pending (&bed.alloc), 1);
  /* Written to in between. */
  ck_assert (!add (&bed, 2, 0, 9 * BLOCK));
  trims_write (&bed.trims, 2, 10, 11);
  ck_assert (!add (&bed, 2, 9 * BLOCK, CLUSTER));
  /* The disk ends inside its last cluster. */
  map_fill (&bed.map, last, map_lookup (&bed.map, 3));
  map_fill (&bed.map, 3, 0);
  ck_assert (!add (&bed, last, SECTOR, 3 * SECTOR));
  ck_assert (add (&bed, last, 0, SECTOR));
  tear_down (&bed);
}
END_TEST

START_TEST (without_punching_only_the_whole_is_of_use)
{
  struct bed bed;

  set_up (&bed, false);
  add (&bed, 1, 0, CLUSTER - BLOCK);
  ck_assert_uint_eq (nr_news, 0);
  work (&bed);
  ck_assert_uint_eq (fault_calls[FAULT_FALLOCATE], 0);
  expect (&bed, 1, 0, CLUSTER, 0xaa);
  ck_assert (add (&bed, 1, CLUSTER - BLOCK, CLUSTER));
  tear_down (&bed);
}
END_TEST

/* As after a restart: nobody remembers the first half. */
static void
punch_by_halves (struct bed *bed, uint64_t cluster)
{
  add (bed, cluster, 0, CLUSTER / 2);
  work (bed);
  trims_destroy (&bed->trims);
  map_clear_trimmed (&bed->map, cluster, map_lookup (&bed->map, cluster));
  start_trims (bed, true);
  ck_assert (!add (bed, cluster, CLUSTER / 2, CLUSTER));
}

START_TEST (cluster_that_became_a_hole_is_unmapped)
{
  const uint64_t cluster = 3;
  struct bed bed;

  set_up (&bed, true);
  punch_by_halves (&bed, cluster);
  work (&bed);
  if (bed.delta->holes_are_true)
    ck_assert_uint_eq (map_lookup (&bed.map, cluster), 0);
  ck_assert_uint_eq (alloc_nr_pending (&bed.alloc),
                     bed.delta->holes_are_true ? 1 : 0);
  ck_assert (map_word_is_mapped (map_lookup (&bed.map, 2)));
  tear_down (&bed);
}
END_TEST

/* Somebody looked the cluster up before it had the flag, and writes when it has
 * been punched.
 */
struct late {
  struct bed *bed;
  sem_t inside, write;
};

static void *
write_late (void *opaque)
{
  struct late *late = opaque;

  rcu_read_lock ();
  sem_post (&late->inside);
  sem_wait (&late->write);
  scratch_write (late->bed->path, "x", 1,
                 late->bed->data_start + 3 * CLUSTER);
  rcu_read_unlock ();
  return NULL;
}

/* _i: 0, a writer that has not seen the flag; 1, one that has. */
START_TEST (cluster_is_not_unmapped_under_a_writer)
{
  const uint64_t cluster = 3;
  struct late late;
  pthread_t thread;
  struct bed bed;

  set_up (&bed, true);
  late.bed = &bed;
  sem_init (&late.inside, 0, 0);
  sem_init (&late.write, 0, 0);
  if (_i == 0) {
    pthread_create (&thread, NULL, write_late, &late);
    sem_wait (&late.inside);
  }
  add (&bed, cluster, 0, CLUSTER - BLOCK);
  scratch_write (bed.path, (char[BLOCK]) { 0 }, BLOCK,
                 bed.data_start + (cluster + 1) * CLUSTER - BLOCK);
  ck_assert_int_eq (delta_punch (bed.delta, BLOCK, bed.data_start
                                 + (cluster + 1) * CLUSTER - BLOCK), 0);
  trims_work (&bed.trims);      /* all of it is punched now */
  if (_i == 1) {
    trims_write (&bed.trims, cluster, 0, 1);
    ck_assert (!is_flagged (&bed, cluster));
  }
  g_usleep (20000);
  trims_work (&bed.trims);      /* not settled, or not any more */
  ck_assert (map_word_is_mapped (map_lookup (&bed.map, cluster)));
  if (_i == 0) {
    sem_post (&late.write);
    pthread_join (thread, NULL);
  }
  work (&bed);
  ck_assert (map_word_is_mapped (map_lookup (&bed.map, cluster)));
  ck_assert_uint_eq (byte_at (&bed, cluster, 0), _i == 0 ? 'x' : 0);
  tear_down (&bed);
}
END_TEST

/* ---- Many -------------------------------------------------------------- */

/* Those that only may be of use go, with their flags. */
START_TEST (records_are_bounded)
{
  unsigned nr = 0;
  struct bed bed;

  set_up (&bed, false);
  for (uint32_t i = 0; i < NR_ENTRIES - 1; i++) {
    map_fill (&bed.map, i, map_word (0, i + 1, 0));
    trims_wait_for_room (&bed.trims);
    add (&bed, i, 0, BLOCK);
    ck_assert_uint_le (bed.trims.nr_records, MAX_RECORDS);
  }
  for (uint32_t i = 0; i < NR_ENTRIES - 1; i++)
    nr += is_flagged (&bed, i);
  ck_assert_uint_eq (nr, bed.trims.nr_records);
  ck_assert (is_flagged (&bed, NR_ENTRIES - 2));
  ck_assert (!is_flagged (&bed, 0));
  tear_down (&bed);
}
END_TEST

/* And whoever finds no room for one that has to be punched waits for that. */
static void *
trim_one_more (void *opaque)
{
  struct bed *bed = opaque;

  trims_wait_for_room (&bed->trims);
  ck_assert (has_gone_on);
  return NULL;
}

START_TEST (who_finds_no_room_waits)
{
  pthread_t thread;
  struct bed bed;

  set_up (&bed, true);
  has_gone_on = false;
  for (uint32_t i = 0; i < MAX_RECORDS; i++) {
    map_fill (&bed.map, i, map_word (0, i + 1, 0));
    add (&bed, i, 0, SECTOR);   /* no block: nothing to punch */
  }
  pthread_create (&thread, NULL, trim_one_more, &bed);
  g_usleep (20000);
  has_gone_on = true;
  work (&bed);
  pthread_join (thread, NULL);
  tear_down (&bed);
}
END_TEST

START_TEST (finishing_does_all_of_it)
{
  struct bed bed;

  set_up (&bed, true);
  for (uint32_t c = 0; c < NR_MAPPED; c++)
    add (&bed, c, 0, BLOCK);
  punch_by_halves (&bed, 3);
  trims_finish (&bed.trims);
  for (uint32_t c = 0; c < NR_MAPPED; c++)
    expect (&bed, c, 0, BLOCK, 0);
  if (bed.delta->holes_are_true)
    ck_assert_uint_eq (map_lookup (&bed.map, 3), 0);
  tear_down (&bed);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, part_is_punched_later_and_nothing_else);
  tcase_add_test (tcase, parts_are_rounded_inwards);
  tcase_add_test (tcase, neighbours_are_punched_in_one_call);
  tcase_add_test (tcase, what_is_written_is_not_trimmed_any_more);
  tcase_add_loop_test (tcase, random_parts_are_punched_like_the_model, 0, 5);
  tcase_add_test (tcase, failed_punch_does_no_harm);
  tcase_add_test (tcase, only_who_writes_what_is_being_punched_waits);
  tcase_add_loop_test (tcase, record_of_another_time_is_not_used, 0, 4);
  tcase_add_test (tcase, new_and_unmapped_clusters_are_left_alone);
  tcase_add_loop_test (tcase, pieces_that_are_the_whole_are_told, 0, 2);
  tcase_add_test (tcase, without_punching_only_the_whole_is_of_use);
  tcase_add_test (tcase, cluster_that_became_a_hole_is_unmapped);
  tcase_add_loop_test (tcase, cluster_is_not_unmapped_under_a_writer, 0, 2);
  tcase_add_test (tcase, records_are_bounded);
  tcase_add_test (tcase, who_finds_no_room_waits);
  tcase_add_test (tcase, finishing_does_all_of_it);
}

int
main (void)
{
  return run_tests ("trims", add_tests);
}
