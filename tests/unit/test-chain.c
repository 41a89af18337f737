/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/chain.c, lib/location.c and copy-on-write through the public API: what a
 * chain reads as, what a write to a lower delta's cluster does and when it is on
 * disk, and what is left of it when a call fails.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "faults.h"
#include "format.h"
#include "location.h"
#include "map.h"
#include "pair.h"
#include "ploop-core.h"
#include "run.h"

#define NR_THREADS 8u

/* ---- The map ----------------------------------------------------------- */

/* In any order. */
START_TEST (highest_delta_has_the_cluster)
{
  static const unsigned orders[][3] = {
    { 0, 1, 2 }, { 2, 1, 0 }, { 1, 2, 0 }, { 1, 0, 2 }, { 2, 0, 1 }, { 0, 2, 1 },
  };
  struct map map;

  ck_assert_int_eq (map_init (&map, 10), 0);
  for (unsigned i = 0; i < 3; i++) {
    const unsigned level = orders[_i][i];

    map_merge (&map, 4, map_word (level, level + 10, 0));
  }
  ck_assert_uint_eq (map_lookup (&map, 4), map_word (2, 12, MAP_COVERS));
  map_merge (&map, 5, map_word (2, 1, 0));
  ck_assert_uint_eq (map_lookup (&map, 5), map_word (2, 1, 0));
  ck_assert_uint_eq (map_next_mapped (&map, 0, 10), 4);
  map_destroy (&map);
}
END_TEST

/* ---- Reading ----------------------------------------------------------- */

START_TEST (long_chain_reads_as_its_highest_deltas)
{
  enum { NR_LEVELS = 254 };
  g_autofree char *paths[NR_LEVELS] = { NULL };
  const char *bases[NR_LEVELS] = { NULL };
  ploop_image *image;

  for (unsigned i = 0; i < NR_LEVELS; i++) {
    const struct format_header header =
      scratch_header (1 + i % 2, CLUSTER / 512, NR_CLUSTERS);
    uint32_t entries[NR_CLUSTERS] = { 0 };
    uint8_t byte = (uint8_t) i;

    entries[i % NR_CLUSTERS] = i % 2 ? 1 : CLUSTER / 512;
    paths[i] = scratch_image ("level", &header, entries, 2 * CLUSTER);
    scratch_write (paths[i], &byte, 1, CLUSTER);
  }
  for (unsigned i = 0; i + 1 < NR_LEVELS; i++)
    bases[i] = paths[NR_LEVELS - 2 - i];
  image = open_chain (paths[NR_LEVELS - 1], bases);
  for (unsigned c = 0; c < NR_CLUSTERS; c++) {
    const unsigned highest =
      (NR_LEVELS - 1 - c) / NR_CLUSTERS * NR_CLUSTERS + c;

    ck_assert (is_all (image, 1, (uint64_t) c * CLUSTER, (uint8_t) highest));
  }
  close_image (image);
  for (unsigned i = 0; i < NR_LEVELS; i++)
    g_free (g_steal_pointer (&paths[i]));
}
END_TEST

START_TEST (past_the_end_of_a_lower_delta_is_nothing)
{
  g_autofree char *lower = make_lower ("small", 1);
  g_autofree char *top = empty_image ("large", 2 * NR_CLUSTERS);
  const char *const bases[] = { lower, NULL };
  ploop_image *image = open_chain (top, bases);

  ck_assert_uint_eq (ploop_size (image), 2 * SIZE);
  ck_assert (is_all (image, CLUSTER, 0, 1));
  ck_assert (is_all (image, SIZE, SIZE, 0));
  fill (image, NR_CLUSTERS + 3, 9);
  ck_assert (is_all (image, CLUSTER, SIZE + 3 * CLUSTER, 9));
  close_image (image);
}
END_TEST

START_TEST (raw_base_may_end_anywhere)
{
  g_autofree char *raw = scratch_path ("base.raw");
  g_autofree char *top = empty_image ("top", NR_CLUSTERS);
  g_autofree char *bytes = g_malloc (CLUSTER + 777);
  const char *const bases[] = { raw, NULL };
  ploop_image *image;

  memset (bytes, 5, CLUSTER + 777);
  ck_assert (g_file_set_contents (raw, bytes, CLUSTER + 777, NULL));
  image = open_chain (top, bases);
  ck_assert (is_all (image, CLUSTER + 777, 0, 5));
  ck_assert (is_all (image, SIZE - CLUSTER - 777, CLUSTER + 777, 0));
  ck_assert_int_eq (ploop_pwrite (image, "x", 1, CLUSTER + 10, 0), 0);
  ck_assert (is_all (image, 766, CLUSTER + 11, 5));
  ck_assert (is_all (image, CLUSTER - 777, CLUSTER + 777, 0));
  close_image (image);
  ck_assert_uint_eq (scratch_size (raw), CLUSTER + 777);
}
END_TEST

/* ---- Copy-on-write ----------------------------------------------------- */

START_TEST (rest_of_the_cluster_is_copied)
{
  struct pair pair;
  struct ploop_statistics statistics;

  open_pair (&pair);
  ck_assert_int_eq (ploop_pwrite (pair.image, "abc", 3, 1000, 0), 0);
  for (unsigned i = 0; i < 2; i++) {
    ck_assert (is_all (pair.image, 1000, 0, 1));
    ck_assert (is_all (pair.image, 1, 1000, 'a'));
    ck_assert (is_all (pair.image, CLUSTER - 1003, 1003, 1));
    if (i == 0) {
      ploop_get_statistics (pair.image, &statistics);
      ck_assert_uint_eq (statistics.nr_copies, 1);
      reopen_pair (&pair);
    }
  }
  close_pair (&pair);
}
END_TEST

START_TEST (whole_cluster_copies_nothing)
{
  struct pair pair;

  open_pair (&pair);
  fill (pair.image, 0, 7);
  ck_assert_uint_eq (fault_calls[FAULT_PREAD], 0);
  ck_assert_int_eq (ploop_zero (pair.image, CLUSTER, STEP * CLUSTER, 0), 0);
  ck_assert_uint_eq (fault_calls[FAULT_PREAD], 0);
  ck_assert (is_all (pair.image, CLUSTER, 0, 7));
  ck_assert (is_all (pair.image, CLUSTER, STEP * CLUSTER, 0));
  close_pair (&pair);
}
END_TEST

/* Before that a power cut must show what the lower delta has. */
START_TEST (copy_is_in_the_bat_after_a_flush_and_not_before)
{
  struct pair pair;

  open_pair (&pair);
  fill (pair.image, 0, 7);
  ck_assert_int_eq (ploop_pwrite (pair.image, "x", 1, STEP * CLUSTER, 0), 0);
  ck_assert_uint_eq (entry_on_disk (&pair, 0), 0);
  ck_assert_uint_eq (entry_on_disk (&pair, STEP), 0);
  ck_assert_int_eq (ploop_flush (pair.image), 0);
  ck_assert_uint_ne (entry_on_disk (&pair, 0), 0);
  ck_assert_uint_ne (entry_on_disk (&pair, STEP), 0);
  ck_assert_int_eq (ploop_pwrite (pair.image, "x", 1, 2 * STEP * CLUSTER,
                                  PLOOP_FUA), 0);
  ck_assert_uint_ne (entry_on_disk (&pair, 2 * STEP), 0);
  close_pair (&pair);
}
END_TEST

/* A write that lands in a copy that is not stable yet is covered by its flush. */
START_TEST (write_to_an_unstable_copy_is_durable_after_a_flush)
{
  struct pair pair;

  open_pair (&pair);
  ck_assert_int_eq (ploop_pwrite (pair.image, "x", 1, 0, 0), 0);
  ck_assert_int_eq (ploop_pwrite (pair.image, "y", 1, 5, PLOOP_FUA), 0);
  ck_assert_uint_ne (entry_on_disk (&pair, 0), 0);
  close_pair (&pair);
}
END_TEST

START_TEST (trim_never_shows_the_lower_delta)
{
  struct pair pair;

  open_pair (&pair);
  fill (pair.image, 0, 7);
  ck_assert_int_eq (ploop_pwrite (pair.image, "x", 1, STEP * CLUSTER, 0), 0);
  ck_assert_int_eq (ploop_flush (pair.image), 0);
  ck_assert_int_eq (ploop_trim (pair.image, SIZE, 0, PLOOP_FUA), 0);
  reopen_pair (&pair);
  ck_assert (is_all (pair.image, CLUSTER, 0, 0));
  ck_assert (is_all (pair.image, CLUSTER, STEP * CLUSTER, 0));
  /* What only the lower delta has cannot be trimmed. */
  ck_assert (is_all (pair.image, CLUSTER, 2 * STEP * CLUSTER, 1));
  close_pair (&pair);
}
END_TEST

START_TEST (zeros_hide_the_lower_delta)
{
  struct pair pair;
  const unsigned flags = _i == 1 ? PLOOP_UNMAP : 0;

  open_pair (&pair);
  ck_assert_int_eq (ploop_zero (pair.image, SIZE - 1000, 500, flags), 0);
  for (unsigned i = 0; i < 2; i++) {
    ck_assert (is_all (pair.image, 500, 0, 1));
    ck_assert (is_all (pair.image, SIZE - 1000, 500, 0));
    ck_assert (is_all (pair.image, 500, SIZE - 500, 1));
    reopen_pair (&pair);
  }
  close_pair (&pair);
}
END_TEST

START_TEST (zeroing_in_part_is_not_fast)
{
  struct pair pair;

  open_pair (&pair);
  ck_assert_int_eq (ploop_zero (pair.image, 4096, 0, PLOOP_FAST), -ENOTSUP);
  ck_assert (is_all (pair.image, CLUSTER, 0, 1));
  ck_assert_int_eq (ploop_zero (pair.image, CLUSTER, 0, PLOOP_FAST), 0);
  ck_assert (is_all (pair.image, CLUSTER, 0, 0));
  close_pair (&pair);
}
END_TEST

/* ---- Two at a time ----------------------------------------------------- */

struct writer {
  pthread_t thread;
  ploop_image *image;
  unsigned index;
};

/* Every writer has its own sectors of every cluster. */
static void *
write_own_sectors (void *opaque)
{
  const struct writer *writer = opaque;
  uint8_t sector[512];

  memset (sector, (int) (100 + writer->index), sizeof sector);
  for (unsigned c = 0; c < NR_CLUSTERS; c++)
    if (ploop_pwrite (writer->image, sector, sizeof sector,
                      (uint64_t) c * CLUSTER
                        + writer->index * sizeof sector,
                      c % 7 == 0 ? PLOOP_FUA : 0) != 0)
      return opaque;
  return NULL;
}

START_TEST (many_writers_make_one_copy)
{
  struct pair pair;
  struct writer writers[NR_THREADS];
  struct ploop_statistics statistics;
  void *failed;

  open_pair (&pair);
  for (unsigned i = 0; i < NR_THREADS; i++) {
    writers[i] = (struct writer) { .image = pair.image, .index = i };
    ck_assert_int_eq (pthread_create (&writers[i].thread, NULL,
                                      write_own_sectors, &writers[i]), 0);
  }
  for (unsigned i = 0; i < NR_THREADS; i++) {
    ck_assert_int_eq (pthread_join (writers[i].thread, &failed), 0);
    ck_assert_ptr_null (failed);
  }
  ploop_get_statistics (pair.image, &statistics);
  ck_assert_uint_eq (statistics.nr_copies, (NR_CLUSTERS + STEP - 1) / STEP);
  for (unsigned c = 0; c < NR_CLUSTERS; c++) {
    const uint64_t start = (uint64_t) c * CLUSTER;

    for (unsigned i = 0; i < NR_THREADS; i++)
      ck_assert (is_all (pair.image, 512, start + i * 512,
                         (uint8_t) (100 + i)));
    ck_assert (is_all (pair.image, CLUSTER - NR_THREADS * 512,
                       start + NR_THREADS * 512, c % STEP == 0));
  }
  close_pair (&pair);
}
END_TEST

/* ---- What fails -------------------------------------------------------- */

/* The copy cannot be made or filled: nothing has changed, and the next try works.
 * _i: by reading, writing, growing the file.
 */
START_TEST (failed_copy_changes_nothing)
{
  static const struct {
    enum fault_call call;
    int errnum;
  } faults[] = {
    { FAULT_PREAD, EIO }, { FAULT_PWRITE, EIO }, { FAULT_PWRITE, ENOSPC },
    { FAULT_FALLOCATE, ENOSPC }, { FAULT_FTRUNCATE, ENOSPC },
  };
  struct ploop_check_result result;
  struct pair pair;
  int r;

  open_pair (&pair);
  /* Marked in use, and what is read and written goes through calls that fail. */
  ck_assert_int_eq (ploop_pwrite (pair.image, "x", 1, CLUSTER, 0), 0);
  fault_no_kernel_copy = true;
  fault_reset ();
  fault_inject (faults[_i].call, faults[_i].errnum, 0, 1000);
  r = ploop_pwrite (pair.image, "y", 1, 0, 0);
  fault_reset ();
  if (r != 0) {
    ck_assert_int_eq (r, -faults[_i].errnum);
    ck_assert (is_all (pair.image, CLUSTER, 0, 1));
    ck_assert_int_eq (ploop_pwrite (pair.image, "y", 1, 0, 0), 0);
  }
  ck_assert (is_all (pair.image, 1, 0, 'y'));
  ck_assert (is_all (pair.image, CLUSTER - 1, 1, 1));
  reopen_pair (&pair);
  ck_assert (is_all (pair.image, 1, 0, 'y'));
  ck_assert (is_all (pair.image, CLUSTER - 1, 1, 1));
  fault_no_kernel_copy = false;
  close_image (pair.image);
  ck_assert_int_eq (ploop_check (pair.top, NULL, NULL, &result, NULL), 0);
  ck_assert_uint_eq (result.nr_errors, 0);
  g_free (pair.lower);
  g_free (pair.top);
}
END_TEST

/* ---- What is refused --------------------------------------------------- */

static void
expect_refusal (const char *top, const struct ploop_open_options *options,
                const char *text)
{
  g_autoptr (GError) error = NULL;
  ploop_image *image = ploop_open (top, options, &error);

  ck_assert_msg (image == NULL, "'%s' was expected", text);
  ck_assert_msg (strstr (error->message, text) != NULL, "'%s' is not in '%s'",
                 text, error->message);
}

START_TEST (deltas_that_do_not_fit_are_refused)
{
  const struct format_header header = scratch_header (2, 128, NR_CLUSTERS);
  g_autofree char *other = scratch_image ("other", &header, NULL, 65536);
  g_autofree char *lower = make_lower ("lower", 1);
  g_autofree char *top = empty_image ("top", NR_CLUSTERS);
  g_autofree char *raw = scratch_path ("raw");
  const char *wrong_size[] = { other, NULL };
  const char *twice[] = { lower, lower, NULL };
  const char *itself[] = { top, NULL };
  const char *raw_between[] = { raw, lower, NULL };
  const char *missing[] = { "/nonexistent/base", NULL };
  struct ploop_open_options options = { .bases = wrong_size };

  ck_assert (g_file_set_contents (raw, "raw", 3, NULL));
  expect_refusal (top, &options, "cluster size is 65536");
  options.bases = twice;
  expect_refusal (top, &options, "twice");
  options.bases = itself;
  expect_refusal (top, &options, top);
  options.bases = raw_between;
  expect_refusal (top, &options, raw);
  options.bases = missing;
  expect_refusal (top, &options, "/nonexistent/base");
  options.bases = NULL;
  options.snapshot = "{00000001-1111-2222-3333-444444444444}";
  expect_refusal (top, &options, "snapshot");
}
END_TEST

/* ---- Overlays ---------------------------------------------------------- */

START_TEST (overlay_takes_all_that_is_written)
{
  g_autofree char *lower = make_lower ("lower", 1);
  g_autofree char *overlay = scratch_path ("overlay");
  const struct ploop_open_options options = { .overlay = overlay };
  const uint64_t size = scratch_size (lower);

  for (unsigned i = 0; i < 2; i++) {
    g_autoptr (GError) error = NULL;
    ploop_image *image = ploop_open (lower, &options, &error);

    ck_assert_msg (image != NULL, "%s", error ? error->message : "");
    ck_assert_uint_eq (ploop_size (image), SIZE);
    ck_assert (is_all (image, 1, 0, i == 0 ? 1 : 'x'));
    ck_assert_int_eq (ploop_pwrite (image, "x", 1, 0, 0), 0);
    close_image (image);
  }
  ck_assert_uint_eq (scratch_size (lower), size);
  ck_assert_uint_eq (scratch_read_le32 (lower, FORMAT_IN_USE_OFFSET), 0);
}
END_TEST

START_TEST (overlay_on_a_raw_disk_has_its_size)
{
  g_autofree char *raw = scratch_path ("disk.raw");
  g_autofree char *overlay = scratch_path ("overlay");
  const struct ploop_open_options options = { .overlay = overlay };
  ploop_image *image;

  ck_assert (g_file_set_contents (raw, "0123456789", 10, NULL));
  expect_refusal (raw, NULL, "too short");
  image = ploop_open (raw, &options, NULL);
  ck_assert_ptr_nonnull (image);
  ck_assert_uint_eq (ploop_size (image), 512);
  ck_assert (is_all (image, 1, 9, '9'));
  ck_assert (is_all (image, 502, 10, 0));
  close_image (image);
}
END_TEST

/* Made here, and taken by another server before we had it. */
START_TEST (overlay_that_is_in_use_is_left_to_who_has_it)
{
  g_autofree char *lower = make_lower ("lower", 1);
  g_autofree char *overlay = scratch_path ("overlay");
  const struct ploop_open_options options = { .overlay = overlay };
  const struct location location = { .created = overlay };
  ploop_image *image = ploop_open (lower, &options, NULL);

  ck_assert_ptr_nonnull (image);
  location_undo (&location);
  ck_assert_int_eq (access (overlay, F_OK), 0);
  close_image (image);
  location_undo (&location);
  ck_assert_int_eq (access (overlay, F_OK), -1);
}
END_TEST

START_TEST (failed_opening_leaves_no_overlay)
{
  g_autofree char *lower = make_lower ("lower", 1);
  g_autofree char *overlay = scratch_path ("overlay");
  const char *const bases[] = { lower, NULL };
  const struct ploop_open_options options = { .overlay = overlay,
                                              .bases = bases };

  expect_refusal (lower, &options, "twice");
  ck_assert_int_eq (access (overlay, F_OK), -1);
}
END_TEST

static void
add_copy_tests (TCase *tcase)
{
  tcase_add_test (tcase, past_the_end_of_a_lower_delta_is_nothing);
  tcase_add_test (tcase, raw_base_may_end_anywhere);
  tcase_add_test (tcase, rest_of_the_cluster_is_copied);
  tcase_add_test (tcase, whole_cluster_copies_nothing);
  tcase_add_test (tcase, copy_is_in_the_bat_after_a_flush_and_not_before);
  tcase_add_test (tcase, write_to_an_unstable_copy_is_durable_after_a_flush);
  tcase_add_test (tcase, trim_never_shows_the_lower_delta);
  tcase_add_loop_test (tcase, zeros_hide_the_lower_delta, 0, 2);
  tcase_add_test (tcase, zeroing_in_part_is_not_fast);
  tcase_add_test (tcase, many_writers_make_one_copy);
  tcase_add_loop_test (tcase, failed_copy_changes_nothing, 0, 5);
}

static void
add_tests (TCase *tcase)
{
  add_copy_tests (tcase);
  tcase_add_loop_test (tcase, highest_delta_has_the_cluster, 0, 6);
  tcase_add_test (tcase, long_chain_reads_as_its_highest_deltas);
  tcase_add_test (tcase, deltas_that_do_not_fit_are_refused);
  tcase_add_test (tcase, overlay_takes_all_that_is_written);
  tcase_add_test (tcase, overlay_on_a_raw_disk_has_its_size);
  tcase_add_test (tcase, overlay_that_is_in_use_is_left_to_who_has_it);
  tcase_add_test (tcase, failed_opening_leaves_no_overlay);
}

/* What is true of copies is true of lazy ones. */
int
main (void)
{
  int r = run_tests ("chain", add_tests);

  pair_copy_on_write = PLOOP_COPY_LAZY;
  return run_tests ("chain, lazily copied", add_copy_tests) | r;
}
