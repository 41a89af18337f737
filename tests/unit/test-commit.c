/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/commit.c: the in-use mark comes first, an entry is written once however
 * many threads want it, a flush costs one sync or none, a failed sync is never
 * forgotten.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>

#include "commit.h"
#include "faults.h"
#include "run.h"

#define CLUSTER 32768u
#define NR_THREADS 8

static const struct log silent;

struct bed {
  char *path;
  struct delta *delta;
  struct map map;
  struct commit commit;
};

static void
set_up (struct bed *bed, uint32_t in_use, GArray *lost)
{
  struct format_header header = scratch_header (2, 64, 5000);
  uint32_t entries[5000] = { [17] = 40 };

  header.flags = FORMAT_FLAG_EMPTY;
  header.in_use = in_use;
  bed->path = scratch_image ("commit", &header, entries, CLUSTER);
  bed->delta = delta_open (bed->path, DELTA_LOCK_WRITER, NULL);
  ck_assert_ptr_nonnull (bed->delta);
  ck_assert_int_eq (map_init (&bed->map, 5000), 0);
  ck_assert_int_eq (commit_init (&bed->commit, bed->delta, &bed->map, &silent,
                                 lost),
                    0);
  fault_reset ();
}

static void
tear_down (struct bed *bed)
{
  commit_destroy (&bed->commit);
  map_destroy (&bed->map);
  delta_close (bed->delta);
  g_free (bed->path);
}

START_TEST (mark_is_synced_once_and_cleared_at_the_end)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  ck_assert_int_eq (commit_begin (&bed.commit), 0);
  ck_assert_uint_eq (scratch_read_le32 (bed.path, 44), FORMAT_IN_USE);
  ck_assert_uint_eq (scratch_read_le32 (bed.path, 52), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  ck_assert_int_eq (commit_begin (&bed.commit), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  ck_assert_uint_eq (fault_calls[FAULT_PWRITE], 1);
  ck_assert_int_eq (commit_unmark (&bed.commit), 0);
  ck_assert_uint_eq (scratch_read_le32 (bed.path, 44), FORMAT_CLOSED);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 2);
  tear_down (&bed);
}
END_TEST

START_TEST (nothing_goes_on_without_the_mark)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  fault_inject (FAULT_PWRITE, EIO, 0, 1);
  ck_assert_int_eq (commit_begin (&bed.commit), -EIO);
  fault_reset ();
  fault_inject (FAULT_FDATASYNC, EIO, 0, 1);
  ck_assert_int_eq (commit_begin (&bed.commit), -EIO);
  /* And not by trying again: the kernel has forgotten. */
  ck_assert_int_eq (commit_begin (&bed.commit), -EIO);
  tear_down (&bed);
}
END_TEST

START_TEST (lost_entries_are_cleared_with_the_mark)
{
  GArray *lost = g_array_new (FALSE, FALSE, sizeof (uint32_t));
  const uint32_t index = 17;
  struct bed bed;

  g_array_append_val (lost, index);
  set_up (&bed, FORMAT_IN_USE, lost);
  ck_assert_uint_eq (scratch_read_le32 (bed.path, format_bat_offset (17)), 40);
  ck_assert_int_eq (commit_begin (&bed.commit), 0);
  ck_assert_uint_eq (scratch_read_le32 (bed.path, format_bat_offset (17)), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  tear_down (&bed);
}
END_TEST

START_TEST (stale_extension_is_not_made_valid)
{
  struct format_header header = scratch_header (2, 64, 100);
  g_autofree char *path = NULL;
  struct bed bed;

  header.in_use = FORMAT_IN_USE;
  header.extension_sectors = 64;
  path = scratch_image ("stale", &header, NULL, 2 * CLUSTER);
  bed.delta = delta_open (path, DELTA_LOCK_WRITER, NULL);
  ck_assert_int_eq (map_init (&bed.map, 100), 0);
  ck_assert_int_eq (
    commit_init (&bed.commit, bed.delta, &bed.map, &silent, NULL), 0);
  bed.path = g_steal_pointer (&path);
  ck_assert_int_eq (commit_begin (&bed.commit), 0);
  ck_assert_int_eq (commit_unmark (&bed.commit), 0);
  ck_assert_uint_eq (scratch_read_le32 (bed.path, 56), 0);
  tear_down (&bed);
}
END_TEST

START_TEST (flush_costs_one_sync_or_none)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 0);
  commit_note_change (&bed.commit);
  commit_note_change (&bed.commit);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  commit_note_change (&bed.commit);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 2);
  tear_down (&bed);
}
END_TEST

START_TEST (failed_sync_is_never_forgotten)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  commit_note_change (&bed.commit);
  fault_inject (FAULT_FDATASYNC, EIO, 0, 1);
  ck_assert_int_eq (commit_flush (&bed.commit), -EIO);
  for (int i = 0; i < 3; i++) {
    ck_assert_int_eq (commit_flush (&bed.commit), -EIO);
    commit_note_change (&bed.commit);
  }
  ck_assert (commit_has_failed (&bed.commit));
  tear_down (&bed);
}
END_TEST

START_TEST (entry_is_written_once_and_durable_after_a_flush)
{
  struct bed bed;
  uint64_t found;

  set_up (&bed, FORMAT_CLOSED, NULL);
  ck_assert (map_publish (&bed.map, 4000, map_word (0, 9, MAP_UNWRITTEN),
                          &found));
  ck_assert_int_eq (commit_write_entry (&bed.commit, 4000), 0);
  ck_assert_int_eq (commit_write_entry (&bed.commit, 4000), 0);
  ck_assert_uint_eq (fault_calls[FAULT_PWRITE], 1);
  ck_assert_uint_eq (scratch_read_le32 (bed.path, format_bat_offset (4000)),
                     9);
  ck_assert (!map_word_is_unwritten (map_lookup (&bed.map, 4000)));
  ck_assert (!commit_entry_is_durable (&bed.commit, 4000));
  ck_assert (commit_entry_is_durable (&bed.commit, 0));
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert (commit_entry_is_durable (&bed.commit, 4000));
  tear_down (&bed);
}
END_TEST

START_TEST (entry_that_failed_is_written_by_the_next_who_needs_it)
{
  struct bed bed;
  uint64_t found;

  set_up (&bed, FORMAT_CLOSED, NULL);
  ck_assert (map_publish (&bed.map, 3, map_word (0, 5, MAP_UNWRITTEN),
                          &found));
  fault_inject (FAULT_PWRITE, ENOSPC, 0, 2);
  ck_assert_int_eq (commit_write_entry (&bed.commit, 3), -ENOSPC);
  ck_assert (map_word_is_unwritten (map_lookup (&bed.map, 3)));
  ck_assert_int_eq (commit_write_entry (&bed.commit, 3), -ENOSPC);
  ck_assert_int_eq (commit_write_entry (&bed.commit, 3), 0);
  ck_assert_uint_eq (scratch_read_le32 (bed.path, format_bat_offset (3)), 5);
  tear_down (&bed);
}
END_TEST

/* Threads note changes and flush: after each flush, the number that was noted
 * before it is synced.
 */
static void *
note_and_flush (void *opaque)
{
  struct bed *bed = opaque;

  for (int i = 0; i < 200; i++) {
    uint64_t noted;

    commit_note_change (&bed->commit);
    noted = bed->commit.nr_changes;
    if (commit_flush (&bed->commit) != 0 || bed->commit.nr_synced < noted)
      return "not flushed";
  }
  return NULL;
}

START_TEST (flushes_of_many_threads_cover_what_came_before)
{
  struct bed bed;
  pthread_t threads[NR_THREADS];

  set_up (&bed, FORMAT_CLOSED, NULL);
  for (int i = 0; i < NR_THREADS; i++)
    ck_assert_int_eq (
      pthread_create (&threads[i], NULL, note_and_flush, &bed), 0);
  for (int i = 0; i < NR_THREADS; i++) {
    void *wrong;

    pthread_join (threads[i], &wrong);
    ck_assert_msg (wrong == NULL, "%s", (const char *) wrong);
  }
  /* Shared, so never more than one each. */
  ck_assert_uint_le (fault_calls[FAULT_FDATASYNC], NR_THREADS * 200);
  tear_down (&bed);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, mark_is_synced_once_and_cleared_at_the_end);
  tcase_add_test (tcase, nothing_goes_on_without_the_mark);
  tcase_add_test (tcase, lost_entries_are_cleared_with_the_mark);
  tcase_add_test (tcase, stale_extension_is_not_made_valid);
  tcase_add_test (tcase, flush_costs_one_sync_or_none);
  tcase_add_test (tcase, failed_sync_is_never_forgotten);
  tcase_add_test (tcase, entry_is_written_once_and_durable_after_a_flush);
  tcase_add_test (tcase,
                  entry_that_failed_is_written_by_the_next_who_needs_it);
  tcase_add_test (tcase, flushes_of_many_threads_cover_what_came_before);
}

int
main (void)
{
  return run_tests ("commit", add_tests);
}
