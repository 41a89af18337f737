/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/alloc.c: only clusters that are in the file, synced and zeros are handed
 * out, lowest first; the disk may be full; the unused tail goes.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "alloc.h"
#include "faults.h"
#include "run.h"

#define CLUSTER 32768u
#define MIB (UINT64_C (1) << 20)

static const struct log silent;

struct bed {
  char *path;
  struct delta *delta;
  struct alloc alloc;
};

/* An image whose clusters end at USED clusters and whose file is SIZE long. */
static void
set_up (struct bed *bed, uint32_t nr_entries, uint64_t used, uint64_t size)
{
  const struct format_header header = scratch_header (2, 64, nr_entries);

  bed->path = scratch_image ("alloc", &header, NULL, size);
  bed->delta = delta_open (bed->path, DELTA_LOCK_WRITER, NULL);
  ck_assert_ptr_nonnull (bed->delta);
  ck_assert_int_eq (alloc_init (&bed->alloc, bed->delta, &silent,
                                used * CLUSTER, nr_entries),
                    0);
  fault_reset ();
}

static void
tear_down (struct bed *bed)
{
  alloc_destroy (&bed->alloc);
  delta_close (bed->delta);
  g_free (bed->path);
}

static uint32_t
take (struct bed *bed)
{
  uint32_t entry;

  ck_assert_int_eq (alloc_take (&bed->alloc, &entry), 0);
  alloc_keep (&bed->alloc);
  return entry;
}

/* One that take has kept already. */
static void
give_back (struct bed *bed, uint32_t entry)
{
  bed->alloc.nr_held++;
  alloc_give_back (&bed->alloc, entry);
}

START_TEST (lowest_first_and_given_back_ones_again)
{
  struct bed bed;

  set_up (&bed, 1000, 1, CLUSTER);
  for (uint32_t i = 1; i <= 200; i++)
    ck_assert_uint_eq (take (&bed), i);
  give_back (&bed, 150);
  give_back (&bed, 7);
  give_back (&bed, 70);
  ck_assert_uint_eq (take (&bed), 7);
  ck_assert_uint_eq (take (&bed), 70);
  ck_assert_uint_eq (take (&bed), 150);
  ck_assert_uint_eq (take (&bed), 201);
  tear_down (&bed);
}
END_TEST

START_TEST (size_is_synced_before_a_cluster_is_handed_out)
{
  struct bed bed;
  uint32_t entry;

  set_up (&bed, 1000, 1, CLUSTER);
  fault_inject (FAULT_FDATASYNC, EIO, 0, 1);
  ck_assert_int_eq (alloc_take (&bed.alloc, &entry), -EIO);
  /* The kernel has reported it and forgotten: so must not we. */
  ck_assert_int_eq (alloc_take (&bed.alloc, &entry), -EIO);
  tear_down (&bed);

  set_up (&bed, 1000, 1, CLUSTER);
  take (&bed);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  take (&bed);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  tear_down (&bed);
}
END_TEST

START_TEST (what_lies_behind_the_last_cluster_is_not_handed_out)
{
  struct bed bed;
  char garbage[CLUSTER], content[CLUSTER];

  set_up (&bed, 1000, 3, 10 * CLUSTER);
  memset (garbage, 'g', sizeof garbage);
  for (uint64_t i = 3; i < 10; i++)
    scratch_write (bed.path, garbage, sizeof garbage, i * CLUSTER);
  for (uint32_t i = 3; i < 12; i++) {
    ck_assert_uint_eq (take (&bed), i);
    scratch_read (bed.path, content, sizeof content, i * CLUSTER);
    for (size_t j = 0; j < sizeof content; j++)
      ck_assert_int_eq (content[j], 0);
  }
  tear_down (&bed);
}
END_TEST

START_TEST (file_grows_by_no_more_than_the_disk_can_use)
{
  struct bed bed;

  set_up (&bed, 20, 1, CLUSTER);
  take (&bed);
  ck_assert_uint_eq (scratch_size (bed.path), 21 * CLUSTER);
  tear_down (&bed);

  set_up (&bed, 100000, 13, 13 * CLUSTER);
  take (&bed);
  ck_assert_uint_eq (scratch_size (bed.path), 13 * CLUSTER + 128 * MIB);
  tear_down (&bed);
}
END_TEST

START_TEST (full_disk_gives_what_there_is_and_recovers)
{
  struct bed bed;
  uint32_t entry;

  set_up (&bed, 1000, 1, CLUSTER);
  /* 1000 clusters do not fit, nor 500, nor 250. */
  fault_inject (FAULT_FALLOCATE, ENOSPC, 0, 3);
  ck_assert_uint_eq (take (&bed), 1);
  ck_assert_uint_eq (scratch_size (bed.path), 126 * CLUSTER);
  tear_down (&bed);

  set_up (&bed, 1000, 1, CLUSTER);
  fault_inject (FAULT_FALLOCATE, ENOSPC, 0, 10);
  ck_assert_int_eq (alloc_take (&bed.alloc, &entry), -ENOSPC);
  ck_assert_uint_eq (scratch_size (bed.path), CLUSTER);
  /* Space is back. */
  fault_reset ();
  ck_assert_uint_eq (take (&bed), 1);
  tear_down (&bed);
}
END_TEST

START_TEST (unused_tail_is_cut_off)
{
  struct bed bed;

  set_up (&bed, 1000, 3, 3 * CLUSTER);
  ck_assert_int_eq (alloc_cut_tail (&bed.alloc, false), 0);
  ck_assert_uint_eq (scratch_size (bed.path), 3 * CLUSTER);
  take (&bed);
  take (&bed);
  take (&bed);
  give_back (&bed, 4);
  ck_assert_int_eq (alloc_cut_tail (&bed.alloc, false), 0);
  ck_assert_uint_eq (scratch_size (bed.path), 6 * CLUSTER);
  tear_down (&bed);

  set_up (&bed, 1000, 3, 3 * CLUSTER);
  give_back (&bed, take (&bed));
  ck_assert_int_eq (alloc_cut_tail (&bed.alloc, false), 0);
  ck_assert_uint_eq (scratch_size (bed.path), 3 * CLUSTER);
  tear_down (&bed);

  /* What was there before goes only where a crash has left it. */
  set_up (&bed, 1000, 3, 9 * CLUSTER);
  ck_assert_int_eq (alloc_cut_tail (&bed.alloc, false), 0);
  ck_assert_uint_eq (scratch_size (bed.path), 9 * CLUSTER);
  ck_assert_int_eq (alloc_cut_tail (&bed.alloc, true), 0);
  ck_assert_uint_eq (scratch_size (bed.path), 3 * CLUSTER);
  tear_down (&bed);
}
END_TEST

/* A file that ends inside its last cluster: a write there at the same time
 * makes it longer, and must survive whatever happens to the extension.
 */
START_TEST (failed_extension_cuts_nothing_off_the_last_cluster)
{
  struct bed bed;
  uint32_t entry;
  char buf[4];

  set_up (&bed, 1000, 3, 2 * CLUSTER + 100);
  scratch_write (bed.path, "data", 4, 3 * CLUSTER - 4);
  fault_inject (FAULT_FALLOCATE, ENOSPC, 0, 100);
  ck_assert_int_eq (alloc_take (&bed.alloc, &entry), -ENOSPC);
  ck_assert_int_eq (alloc_cut_tail (&bed.alloc, false), 0);
  scratch_read (bed.path, buf, 4, 3 * CLUSTER - 4);
  ck_assert (memcmp (buf, "data", 4) == 0);
  tear_down (&bed);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, lowest_first_and_given_back_ones_again);
  tcase_add_test (tcase, size_is_synced_before_a_cluster_is_handed_out);
  tcase_add_test (tcase, what_lies_behind_the_last_cluster_is_not_handed_out);
  tcase_add_test (tcase, file_grows_by_no_more_than_the_disk_can_use);
  tcase_add_test (tcase, full_disk_gives_what_there_is_and_recovers);
  tcase_add_test (tcase, unused_tail_is_cut_off);
  tcase_add_test (tcase,
                  failed_extension_cuts_nothing_off_the_last_cluster);
}

int
main (void)
{
  return run_tests ("alloc", add_tests);
}
