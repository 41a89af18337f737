/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/bench.c and lib/load.c: whatever fails, and whenever it is ended, is told, and
 * nothing of what was written is left.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include <glib/gstdio.h>

#include "faults.h"
#include "ploop-core.h"
#include "run.h"

#define CLUSTER 32768u
#define NR_CLUSTERS 8u

/* As short as can be, but for what it is that is limited by size. */
static const struct ploop_bench_options brief = {
  .page_cache = true,           /* whose calls can be made to fail */
  .milliseconds = 10000,
  .size = 65536,
  .depth = 3,
};

static char *
make_disk (void)
{
  static const uint32_t entries[NR_CLUSTERS] = { 0, 2, 0, 1, 3 };
  const struct format_header header =
    scratch_header (2, CLUSTER / 512, NR_CLUSTERS);
  g_autofree uint8_t *bytes = g_malloc (3 * CLUSTER);
  char *path = scratch_image ("disk", &header, entries, 4 * CLUSTER);

  memset (bytes, 1, 3 * CLUSTER);
  scratch_write (path, bytes, 3 * CLUSTER, CLUSTER);
  return path;
}

static char *
make_directory (void)
{
  char *path = scratch_path ("store");

  ck_assert_int_eq (g_mkdir (path, 0700), 0);
  return path;
}

static void
check_empty (const char *directory)
{
  /* It would fail if there were anything in it. */
  ck_assert_int_eq (g_rmdir (directory), 0);
}

/* ---- What is measured -------------------------------------------------- */

START_TEST (disk_is_read_and_no_more)
{
  g_autofree char *path = make_disk ();
  struct ploop_bench_options options = brief;
  struct ploop_bench_result result;
  const struct ploop_bench_measurement *m = result.measurements;

  options.size = 0;
  options.milliseconds = 50;
  ck_assert_int_eq (ploop_bench (path, &options, NULL, NULL, &result, NULL), 0);
  ck_assert (!result.interrupted);
  ck_assert_uint_eq (m[PLOOP_BENCH_SEQUENTIAL_WRITE].nr_requests, 0);
  ck_assert_uint_eq (m[PLOOP_BENCH_RANDOM_WRITE].nr_requests, 0);
  ck_assert_uint_eq (m[PLOOP_BENCH_FLUSH].nr_requests, 0);
  ck_assert_uint_gt (m[PLOOP_BENCH_RANDOM_READ].nr_requests, 0);
  ck_assert_uint_eq (m[PLOOP_BENCH_RANDOM_READ].bytes,
                     4096 * m[PLOOP_BENCH_RANDOM_READ].nr_requests);
  /* Two spans. */
  ck_assert_uint_eq (m[PLOOP_BENCH_SEQUENTIAL_READ].nr_requests, 2);
  ck_assert_uint_eq (m[PLOOP_BENCH_SEQUENTIAL_READ].bytes, 3 * CLUSTER);
}
END_TEST

START_TEST (directory_is_written_to_and_left_as_it_was)
{
  g_autofree char *path = make_directory ();
  struct ploop_bench_options options = brief;
  struct ploop_bench_result result;

  options.write = true;
  ck_assert_int_eq (ploop_bench (path, &options, NULL, NULL, &result, NULL), 0);
  ck_assert (!result.interrupted);
  for (unsigned i = 0; i < PLOOP_NR_BENCHES; i++) {
    const struct ploop_bench_measurement *m = &result.measurements[i];

    ck_assert_uint_gt (m->nr_requests, 0);
    ck_assert_uint_eq (m->bytes, options.size);
    ck_assert_uint_eq (m->latency.count, m->nr_requests);
  }
  check_empty (path);
}
END_TEST

START_TEST (option_out_of_range_is_refused)
{
  const struct ploop_bench_options options[] = {
    { .milliseconds = PLOOP_MAX_DELAY + 1 },
    { .depth = PLOOP_BENCH_MAX_DEPTH + 1 },
    { .block_size = PLOOP_BENCH_MAX_BLOCK + 512 },
    { .block_size = 4095 },
    { .size = 4095 },
    { .write = true, .size = UINT64_MAX },
  };
  g_autofree char *path = make_directory ();

  for (size_t i = 0; i < G_N_ELEMENTS (options); i++) {
    struct ploop_bench_result result;
    g_autoptr (GError) error = NULL;

    ck_assert_int_eq (
      ploop_bench (path, &options[i], NULL, NULL, &result, &error), -1);
    ck_assert (g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT));
  }
  check_empty (path);
}
END_TEST

/* ---- Ending early ------------------------------------------------------ */

struct ending {
  unsigned nr_left;             /* calls until it is ended */
  uint64_t last;
};

static bool
count_down (void *opaque, uint64_t done, uint64_t all)
{
  struct ending *ending = opaque;

  ck_assert_uint_le (done, all);
  ck_assert_uint_le (ending->last, done);
  ending->last = done;
  return --ending->nr_left > 0;
}

START_TEST (callback_ends_it_at_any_call)
{
  struct ploop_bench_options options = brief;
  struct ploop_bench_result result;
  unsigned nr = 1;

  options.write = true;
  do {
    g_autofree char *path = make_directory ();
    struct ending ending = { .nr_left = nr };

    ck_assert_int_eq (
      ploop_bench (path, &options, count_down, &ending, &result, NULL), 0);
    ck_assert (result.interrupted == (ending.nr_left == 0));
    check_empty (path);
  } while (result.interrupted && nr++ < 100);
  /* Before, and after each measurement. */
  ck_assert_uint_gt (nr, PLOOP_NR_BENCHES);
}
END_TEST

/* Long before its time. */
START_TEST (callback_ends_a_measurement_in_its_midst)
{
  g_autofree char *path = make_disk ();
  struct ploop_bench_options options = brief;
  struct ending ending = { .nr_left = 3 };
  struct ploop_bench_result result;

  options.size = 0;
  options.milliseconds = PLOOP_MAX_DELAY;
  ck_assert_int_eq (
    ploop_bench (path, &options, count_down, &ending, &result, NULL), 0);
  ck_assert (result.interrupted);
  ck_assert_uint_gt (
    result.measurements[PLOOP_BENCH_RANDOM_READ].nr_requests, 0);
  ck_assert_uint_eq (
    result.measurements[PLOOP_BENCH_SEQUENTIAL_READ].nr_requests, 0);
}
END_TEST

/* ---- Failing ----------------------------------------------------------- */

static const struct {
  enum fault_call call;
  int errnum;
} faults[] = {
  { FAULT_PREAD, EIO },
  { FAULT_PWRITE, ENOSPC },
  { FAULT_PWRITE, EIO },
  { FAULT_FALLOCATE, ENOSPC },
  { FAULT_FTRUNCATE, ENOSPC },
  { FAULT_FDATASYNC, EIO },
};

/* From some call on, for good, or not at all. */
START_TEST (whatever_fails_is_told_and_nothing_is_left)
{
  struct ploop_bench_options options = brief;
  struct ploop_bench_result result;
  unsigned nr_skipped = 0, nr_errors = 0;
  bool failed;

  options.write = true;
  do {
    g_autofree char *path = make_directory ();
    g_autoptr (GError) error = NULL;
    int r;

    fault_reset ();
    fault_inject (faults[_i].call, faults[_i].errnum, nr_skipped, 1000000);
    r = ploop_bench (path, &options, NULL, NULL, &result, &error);
    failed = fault_calls[faults[_i].call] > nr_skipped;
    fault_reset ();
    ck_assert (r == 0 || error->message[0] != '\0');
    nr_errors += r == -1;
    check_empty (path);
    /* Each of the first, and then fewer. */
    nr_skipped += 1 + nr_skipped;
  } while (failed);
  ck_assert_uint_gt (nr_errors, 0);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, disk_is_read_and_no_more);
  tcase_add_test (tcase, directory_is_written_to_and_left_as_it_was);
  tcase_add_test (tcase, option_out_of_range_is_refused);
  tcase_add_test (tcase, callback_ends_it_at_any_call);
  tcase_add_test (tcase, callback_ends_a_measurement_in_its_midst);
  tcase_add_loop_test (tcase, whatever_fails_is_told_and_nothing_is_left, 0,
                       G_N_ELEMENTS (faults));
}

int
main (void)
{
  return run_tests ("bench", add_tests);
}
