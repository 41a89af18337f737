/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/bat.c: every fault of an entry is found, with the partner it collides
 * with, on the grid of clusters and off it.
 */

#include <config.h>

#include <string.h>

#include "bat.h"
#include "run.h"

#define MAX_SEEN 32

struct seen {
  struct bat_fault faults[MAX_SEEN];
  unsigned nr_faults;
  uint32_t sound[MAX_SEEN];     /* indices */
  unsigned nr_sound;
  uint64_t leaks[MAX_SEEN][2];  /* first cell, number */
  unsigned nr_leaks;
  unsigned stop_after;          /* entries; 0: never */
};

static bool
see_entry (void *opaque, uint32_t index, uint32_t entry)
{
  struct seen *seen = opaque;

  (void) entry;
  if (seen->nr_sound < MAX_SEEN)
    seen->sound[seen->nr_sound] = index;
  seen->nr_sound++;
  return seen->stop_after == 0 || seen->nr_sound < seen->stop_after;
}

static bool
see_fault (void *opaque, const struct bat_fault *fault)
{
  struct seen *seen = opaque;

  ck_assert_uint_lt (seen->nr_faults, MAX_SEEN);
  seen->faults[seen->nr_faults++] = *fault;
  return true;
}

static void
see_leak (void *opaque, uint64_t first, uint64_t nr)
{
  struct seen *seen = opaque;

  ck_assert_uint_lt (seen->nr_leaks, MAX_SEEN);
  seen->leaks[seen->nr_leaks][0] = first;
  seen->leaks[seen->nr_leaks++][1] = nr;
}

static struct bat_summary
scan (const struct format_header *header, const uint32_t *entries,
      uint64_t file_size, struct seen *seen)
{
  g_autofree char *path = scratch_image ("bat", header, entries, file_size);
  struct delta *delta = delta_open (path, DELTA_LOCK_NONE, NULL);
  const struct bat_visitor visitor = {
    see_entry, see_fault, see_leak, seen
  };
  struct bat_summary summary;

  ck_assert_ptr_nonnull (delta);
  ck_assert_int_eq (bat_scan (delta, &visitor, &summary, NULL), 0);
  delta_close (delta);
  return summary;
}

static void
assert_fault (const struct bat_fault *fault, enum bat_fault_kind kind,
              uint32_t index)
{
  ck_assert_int_eq (fault->kind, kind);
  ck_assert_uint_eq (fault->index, index);
}

/* What lies behind the last cluster is not told: it is cut off anyway. */
START_TEST (leaks_are_told_together)
{
  const struct format_header header = scratch_header (2, 64, 300);
  uint32_t entries[300] = { [0] = 3, [7] = 100, [9] = 101, [299] = 200 };
  struct seen seen = { .nr_faults = 0 };
  struct bat_summary summary = scan (&header, entries, 300 * 32768, &seen);
  static const uint64_t expected[][2] = { { 0, 2 }, { 3, 96 }, { 101, 98 } };

  ck_assert_uint_eq (summary.nr_leaked, 299 - 4);
  ck_assert_uint_eq (seen.nr_leaks, 3);
  for (int i = 0; i < 3; i++) {
    ck_assert_uint_eq (seen.leaks[i][0], expected[i][0]);
    ck_assert_uint_eq (seen.leaks[i][1], expected[i][1]);
  }
}
END_TEST

/* A cluster that lies across two cells leaks neither. */
START_TEST (cells_of_clusters_off_the_grid_are_no_leaks)
{
  const struct format_header header = scratch_header (1, 64, 100);
  uint32_t entries[100] = { [1] = 64 + 64 + 1, [2] = 64 * 6 };
  struct seen seen = { .nr_faults = 0 };

  scan (&header, entries, 7 * 32768, &seen);
  ck_assert_uint_eq (seen.nr_leaks, 2);
  ck_assert_uint_eq (seen.leaks[0][0], 0);
  ck_assert_uint_eq (seen.leaks[0][1], 1);
  ck_assert_uint_eq (seen.leaks[1][0], 3);
  ck_assert_uint_eq (seen.leaks[1][1], 2);
}
END_TEST

START_TEST (sound_entries_are_told_in_order)
{
  const struct format_header header = scratch_header (2, 64, 100);
  uint32_t entries[100] = { [0] = 3, [7] = 1, [99] = 2 };
  struct seen seen = { .nr_faults = 0 };
  struct bat_summary summary =
    scan (&header, entries, 6 * 32768, &seen);

  ck_assert_uint_eq (seen.nr_faults, 0);
  ck_assert_uint_eq (seen.nr_sound, 3);
  ck_assert_uint_eq (seen.sound[0], 0);
  ck_assert_uint_eq (seen.sound[1], 7);
  ck_assert_uint_eq (seen.sound[2], 99);
  ck_assert_uint_eq (summary.nr_allocated, 3);
  ck_assert_uint_eq (summary.data_end, 4 * 32768);
  ck_assert_uint_eq (summary.nr_leaked, 2);
}
END_TEST

START_TEST (each_fault_is_found)
{
  const struct format_header header = scratch_header (2, 64, 20000);
  g_autofree uint32_t *entries = g_new0 (uint32_t, 20000);
  struct seen seen = { .nr_faults = 0 };

  /* The BAT takes 3 clusters; the file has 6 and a bit. */
  entries[1] = 3;
  entries[2] = 2;               /* in the BAT */
  entries[3] = 3;               /* shared with 1 */
  entries[4] = 6;               /* begins in the file */
  entries[5] = 7;               /* does not */
  entries[19999] = UINT32_MAX;
  scan (&header, entries, 6 * 32768 + 1, &seen);

  ck_assert_uint_eq (seen.nr_sound, 2);
  ck_assert_uint_eq (seen.nr_faults, 4);
  assert_fault (&seen.faults[0], BAT_BELOW_DATA, 2);
  assert_fault (&seen.faults[1], BAT_PAST_END, 5);
  assert_fault (&seen.faults[2], BAT_PAST_END, 19999);
  assert_fault (&seen.faults[3], BAT_SHARED, 3);
  ck_assert_uint_eq (seen.faults[3].other, 1);
}
END_TEST

START_TEST (v1_entries_off_the_grid_may_not_overlap)
{
  const struct format_header header = scratch_header (1, 64, 100);
  uint32_t entries[100] = { [0] = 64, [1] = 191, [2] = 255, [3] = 319,
                            [4] = 400, [5] = 463, [6] = 127 };
  struct seen seen = { .nr_faults = 0 };

  scan (&header, entries, 1000 * 512, &seen);
  ck_assert_uint_eq (seen.nr_faults, 2);
  /* 5 begins in the last sector of 4; 6 in the last of 0. */
  assert_fault (&seen.faults[0], BAT_SHARED, 5);
  ck_assert_uint_eq (seen.faults[0].other, 4);
  assert_fault (&seen.faults[1], BAT_SHARED, 6);
  ck_assert_uint_eq (seen.faults[1].other, 0);
  ck_assert_uint_eq (seen.nr_sound, 5);
}
END_TEST

START_TEST (v1_entry_off_the_grid_may_not_overlap_a_later_one_on_it)
{
  const struct format_header header = scratch_header (1, 64, 100);
  uint32_t entries[100] = { [0] = 129, [1] = 192 };
  struct seen seen = { .nr_faults = 0 };

  scan (&header, entries, 1000 * 512, &seen);
  ck_assert_uint_eq (seen.nr_faults, 1);
  assert_fault (&seen.faults[0], BAT_SHARED, 0);
  ck_assert_uint_eq (seen.faults[0].other, 1);
}
END_TEST

START_TEST (each_of_many_is_told_its_partner)
{
  const struct format_header header = scratch_header (2, 64, 100);
  uint32_t entries[100] = { [3] = 5, [4] = 2, [9] = 5, [10] = 2, [50] = 5,
                            [51] = 2, [99] = 3 };
  static const uint32_t partners[][2] = { { 9, 3 }, { 10, 4 }, { 50, 3 },
                                          { 51, 4 } };
  struct seen seen = { .nr_faults = 0 };
  struct bat_summary summary = scan (&header, entries, 6 * 32768, &seen);

  ck_assert_uint_eq (seen.nr_faults, 4);
  for (unsigned i = 0; i < 4; i++) {
    assert_fault (&seen.faults[i], BAT_SHARED, partners[i][0]);
    ck_assert_uint_eq (seen.faults[i].other, partners[i][1]);
  }
  ck_assert_uint_eq (summary.nr_leaked, 2);
}
END_TEST

START_TEST (scan_ends_when_it_is_told)
{
  const struct format_header header = scratch_header (2, 64, 100);
  uint32_t entries[100] = { 1, 2, 3, 4, 5 };
  struct seen seen = { .stop_after = 2 };

  scan (&header, entries, 6 * 32768, &seen);
  ck_assert_uint_eq (seen.nr_sound, 2);
}
END_TEST

START_TEST (past_the_end_is_unfinished_only_in_a_marked_image)
{
  struct format_header header = scratch_header (2, 64, 100);
  g_autofree char *path = NULL;
  struct bat_fault fault = { .kind = BAT_PAST_END, .index = 1, .entry = 50 };
  struct delta *delta;

  path = scratch_image ("closed", &header, NULL, 32768);
  delta = delta_open (path, DELTA_LOCK_NONE, NULL);
  ck_assert (!bat_fault_is_unfinished (delta, &fault));
  delta_close (delta);

  g_free (path);
  header.in_use = FORMAT_IN_USE;
  path = scratch_image ("marked", &header, NULL, 32768);
  delta = delta_open (path, DELTA_LOCK_NONE, NULL);
  ck_assert (bat_fault_is_unfinished (delta, &fault));
  /* No writer goes that far at once: the file was cut off. */
  fault.entry = 5000;
  ck_assert (!bat_fault_is_unfinished (delta, &fault));
  fault.kind = BAT_SHARED;
  fault.entry = 50;
  ck_assert (!bat_fault_is_unfinished (delta, &fault));
  delta_close (delta);
}
END_TEST

/* ---- Loading ----------------------------------------------------------- */

static void
count_entry (void *opaque, uint32_t index, uint32_t entry)
{
  unsigned *nr = opaque;

  (void) index;
  (void) entry;
  ++*nr;
}

/* Load it.  Returns how many entries there are, or -1 with ERROR set; LOST is
 * how many were never flushed.
 */
static int
load (const struct format_header *header, const uint32_t *entries,
      unsigned *lost, GError **error)
{
  g_autofree char *path = scratch_image ("bat", header, entries, 6 * 32768);
  g_autoptr (GArray) array = g_array_new (FALSE, FALSE, sizeof (uint32_t));
  struct delta *delta = delta_open (path, DELTA_LOCK_NONE, NULL);
  unsigned nr = 0;
  const struct bat_loader loader = { count_entry, NULL, &nr };
  const struct log log = { NULL, NULL };
  const int r = bat_load (delta, &loader, &log, array, NULL, error);

  ck_assert_ptr_nonnull (delta);
  delta_close (delta);
  *lost = array->len;
  return r < 0 ? -1 : (int) nr;
}

START_TEST (unfinished_entries_are_loaded_as_lost)
{
  struct format_header header = scratch_header (2, 64, 100);
  const uint32_t entries[100] = { [3] = 5, [4] = 6, [7] = 2 };
  g_autoptr (GError) error = NULL;
  unsigned lost;

  header.in_use = FORMAT_IN_USE;
  ck_assert_int_eq (load (&header, entries, &lost, NULL), 2);
  ck_assert_uint_eq (lost, 1);
  header.in_use = FORMAT_CLOSED;
  ck_assert_int_eq (load (&header, entries, &lost, &error), -1);
  ck_assert (g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT));
  ck_assert_ptr_nonnull (strstr (error->message, "BAT entry 4 is 6"));
}
END_TEST

START_TEST (half_converted_bat_is_not_loaded)
{
  struct format_header header = scratch_header (2, 64, 100);
  g_autoptr (GError) error = NULL;
  unsigned lost;

  header.flags = FORMAT_FLAG_CONVERSION;
  ck_assert_int_eq (load (&header, NULL, &lost, NULL), 0);
  header.in_use = FORMAT_IN_USE;
  ck_assert_int_eq (load (&header, NULL, &lost, &error), -1);
  ck_assert (g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT));
  ck_assert_ptr_nonnull (strstr (error->message, "flags are 2"));
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, leaks_are_told_together);
  tcase_add_test (tcase, cells_of_clusters_off_the_grid_are_no_leaks);
  tcase_add_test (tcase, sound_entries_are_told_in_order);
  tcase_add_test (tcase, each_fault_is_found);
  tcase_add_test (tcase, v1_entries_off_the_grid_may_not_overlap);
  tcase_add_test (tcase,
                  v1_entry_off_the_grid_may_not_overlap_a_later_one_on_it);
  tcase_add_test (tcase, each_of_many_is_told_its_partner);
  tcase_add_test (tcase, scan_ends_when_it_is_told);
  tcase_add_test (tcase, past_the_end_is_unfinished_only_in_a_marked_image);
  tcase_add_test (tcase, unfinished_entries_are_loaded_as_lost);
  tcase_add_test (tcase, half_converted_bat_is_not_loaded);
}

int
main (void)
{
  return run_tests ("bat", add_tests);
}
