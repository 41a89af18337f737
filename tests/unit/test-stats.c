/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/stats.c, with a clock that shows what a test wants: the program links
 * with --wrap=clock_gettime.
 */

#include <config.h>

#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "run.h"
#include "stats.h"

#define NR_ROUNDS 20000u
#define MAX_THREADS (2 * STATS_NR_SHARDS + 1)
#define LAST_BUCKET (PLOOP_HISTOGRAM_NR_BUCKETS - 1u)

/* ---- The clock --------------------------------------------------------- */

static _Atomic bool clock_is_ours;
static _Atomic uint64_t clock_ns;
static _Atomic unsigned nr_clock_reads;

int __real_clock_gettime (clockid_t, struct timespec *);
int __wrap_clock_gettime (clockid_t, struct timespec *);

int
__wrap_clock_gettime (clockid_t clock, struct timespec *now)
{
  const uint64_t ns = clock_ns;

  /* check has a use for the real one. */
  if (!clock_is_ours)
    return __real_clock_gettime (clock, now);
  ck_assert_int_eq (clock, CLOCK_MONOTONIC);
  nr_clock_reads++;
  now->tv_sec = (time_t) (ns / 1000000000);
  now->tv_nsec = (long) (ns % 1000000000);
  return 0;
}

static struct stats *stats;
static struct ploop_statistics statistics;

static void
set_up (bool measure_latency)
{
  stats = stats_new (measure_latency);
  nr_clock_reads = 0;
  clock_is_ours = true;
}

static void
tear_down (void)
{
  clock_is_ours = false;
  stats_free (stats);
}

/* A request that takes NS. */
static void
count_request (enum ploop_operation operation, uint64_t ns)
{
  const uint64_t begun = stats_begin (stats);

  clock_ns += ns;
  stats_end (stats, operation, begun);
}

static struct ploop_statistics *
collect (void)
{
  memset (&statistics, 0, sizeof statistics);
  stats_collect (stats, &statistics);
  return &statistics;
}

/* ---- Counting ---------------------------------------------------------- */

/* The fields, by enum stats_counter. */
static const uint64_t *const fields[STATS_NR_COUNTERS] = {
  &statistics.read_bytes,
  &statistics.write_bytes,
  &statistics.zero_bytes,
  &statistics.trim_bytes,
  &statistics.nr_fua,
  &statistics.nr_fast_path,
  &statistics.nr_queued,
  &statistics.nr_failed,
  &statistics.nr_allocations,
  &statistics.nr_frees,
  &statistics.nr_reuses,
  &statistics.nr_copies,
  &statistics.nr_lazy_copies,
  &statistics.fill_bytes,
  &statistics.nr_commits,
  &statistics.nr_commit_waiters,
  &statistics.nr_syncs,
  &statistics.nr_durable_writes,
  &statistics.nr_bat_writes,
  &statistics.bat_bytes,
  &statistics.nr_extensions,
  &statistics.nr_extension_syncs,
  &statistics.nr_punches,
  &statistics.nr_enospc_waits,
  &statistics.nr_writeback_retries,
};

START_TEST (counter_goes_to_its_field)
{
  set_up (false);
  for (unsigned c = 0; c < STATS_NR_COUNTERS; c++)
    stats_add (stats, c, 100 + c);
  collect ();
  for (unsigned c = 0; c < STATS_NR_COUNTERS; c++)
    ck_assert_uint_eq (*fields[c], 100 + c);
  tear_down ();
}
END_TEST

START_TEST (statistics_add_up)
{
  struct ploop_statistics total = { 0 };

  set_up (true);
  for (unsigned c = 0; c < STATS_NR_COUNTERS; c++)
    stats_add (stats, c, 100 + c);
  count_request (PLOOP_TRIM, 300);
  collect ();
  for (int i = 0; i < 3; i++)
    ploop_add_statistics (&total, &statistics);
  statistics = total;
  for (unsigned c = 0; c < STATS_NR_COUNTERS; c++)
    ck_assert_uint_eq (*fields[c], 3 * (100 + c));
  ck_assert (total.latency_measured);
  ck_assert_uint_eq (total.operations[PLOOP_TRIM].count, 3);
  ck_assert_uint_eq (total.operations[PLOOP_TRIM].sum_ns, 900);
  ck_assert_uint_eq (total.operations[PLOOP_TRIM].buckets[1], 3);
  tear_down ();
}
END_TEST

static pthread_barrier_t start;
static _Atomic unsigned nr_counting;

static void *
count_everything (void *opaque G_GNUC_UNUSED)
{
  pthread_barrier_wait (&start);
  for (unsigned i = 0; i < NR_ROUNDS; i++) {
    for (unsigned c = 0; c < STATS_NR_COUNTERS; c++)
      stats_add (stats, c, c + 1);
    /* All operations in turn; of each, some take longer. */
    stats_end (stats, i % PLOOP_NR_OPERATIONS, i % 2 ? 0 : clock_ns - 512);
  }
  nr_counting--;
  return NULL;
}

/* While others count: nothing goes down. */
static void
watch_counts (void)
{
  uint64_t counts[STATS_NR_COUNTERS] = { 0 };
  uint64_t nr_reads = 0;

  while (nr_counting > 0) {
    collect ();
    for (unsigned c = 0; c < STATS_NR_COUNTERS; c++) {
      ck_assert_uint_ge (*fields[c], counts[c]);
      counts[c] = *fields[c];
    }
    ck_assert_uint_ge (statistics.operations[PLOOP_READ].count, nr_reads);
    nr_reads = statistics.operations[PLOOP_READ].count;
  }
}

static void
assert_totals (uint64_t nr_threads)
{
  const uint64_t nr_each = nr_threads * NR_ROUNDS / PLOOP_NR_OPERATIONS;

  collect ();
  for (unsigned c = 0; c < STATS_NR_COUNTERS; c++)
    ck_assert_uint_eq (*fields[c], (c + 1) * nr_threads * NR_ROUNDS);
  for (unsigned o = 0; o < PLOOP_NR_OPERATIONS; o++) {
    const struct ploop_histogram *histogram = &statistics.operations[o];

    ck_assert_uint_eq (histogram->count, nr_each);
    if (!statistics.latency_measured)
      continue;
    /* Buckets up to 512 and 1024 ns: see count_everything. */
    ck_assert_uint_eq (histogram->sum_ns, nr_each / 2 * (512 + 1024));
    ck_assert_uint_eq (histogram->buckets[4], nr_each / 2);
    ck_assert_uint_eq (histogram->buckets[8], nr_each / 2);
  }
}

/* As few threads as have a shard each, and so many that they share. */
static const unsigned nrs_threads[] = { 8, MAX_THREADS };

START_TEST (threads_lose_no_count)
{
  const unsigned nr_threads = nrs_threads[_i / 2];
  pthread_t threads[MAX_THREADS];

  set_up (_i % 2);
  clock_ns = 1024;
  nr_counting = nr_threads;
  pthread_barrier_init (&start, NULL, nr_threads);
  for (unsigned i = 0; i < nr_threads; i++)
    ck_assert_int_eq (
      pthread_create (&threads[i], NULL, count_everything, NULL), 0);
  watch_counts ();
  for (unsigned i = 0; i < nr_threads; i++)
    pthread_join (threads[i], NULL);
  assert_totals (nr_threads);
  pthread_barrier_destroy (&start);
  tear_down ();
}
END_TEST

static void *
own_shard (void *opaque G_GNUC_UNUSED)
{
  struct stats_shard *shard = stats_shard (stats);

  /* The same when asked again. */
  return shard == stats_shard (stats) ? shard : NULL;
}

START_TEST (threads_take_shards_in_turn)
{
  void *shards[2 * STATS_NR_SHARDS];

  set_up (false);
  for (unsigned i = 0; i < G_N_ELEMENTS (shards); i++) {
    pthread_t thread;

    ck_assert_int_eq (pthread_create (&thread, NULL, own_shard, NULL), 0);
    pthread_join (thread, &shards[i]);
    ck_assert_ptr_nonnull (shards[i]);
    ck_assert_uint_eq ((uintptr_t) shards[i] % STATS_CACHE_LINE, 0);
    for (unsigned j = 0; j < i; j++)
      ck_assert_int_eq (shards[i] == shards[j],
                        i % STATS_NR_SHARDS == j % STATS_NR_SHARDS);
  }
  tear_down ();
}
END_TEST

START_TEST (clock_is_not_read_unless_latency_is_measured)
{
  for (int measure = 0; measure < 2; measure++) {
    set_up (measure);
    clock_ns = 1;
    ck_assert_uint_eq (stats_begin (stats), (uint64_t) measure);
    count_request (PLOOP_WRITE, 1000);
    stats_add (stats, STATS_WRITE_BYTES, 4096);
    collect ();
    ck_assert_uint_eq (nr_clock_reads, measure ? 3 : 0);
    ck_assert_int_eq (statistics.latency_measured, measure);
    ck_assert_uint_eq (statistics.operations[PLOOP_WRITE].count, 1);
    ck_assert_uint_eq (statistics.operations[PLOOP_WRITE].sum_ns,
                       measure ? 1000 : 0);
    ck_assert_uint_eq (
      ploop_histogram_quantile (&statistics.operations[PLOOP_WRITE], 0.5),
      measure ? 1024 : 0);
    tear_down ();
  }
}
END_TEST

/* ---- Histograms -------------------------------------------------------- */

START_TEST (bounds_rise_in_quarters_of_an_octave)
{
  ck_assert_uint_eq (ploop_histogram_bound (0), 256);
  for (unsigned i = 1; i < LAST_BUCKET; i++) {
    const uint64_t below = ploop_histogram_bound (i - 1);
    const uint64_t bound = ploop_histogram_bound (i);

    ck_assert_uint_gt (bound, below);
    ck_assert_uint_le (bound - below, below / 4);
    if (i % 4 == 0)
      ck_assert_uint_eq (bound, UINT64_C (256) << i / 4);
  }
  ck_assert_uint_ge (ploop_histogram_bound (LAST_BUCKET - 1),
                     UINT64_C (100000000000));
  ck_assert_uint_eq (ploop_histogram_bound (LAST_BUCKET), UINT64_MAX);
  ck_assert_uint_eq (ploop_histogram_bound (LAST_BUCKET + 1), UINT64_MAX);
  ck_assert_uint_eq (ploop_histogram_bound (UINT_MAX), UINT64_MAX);
}
END_TEST

/* The bucket that a request which takes NS is counted in. */
static unsigned
bucket_of (uint64_t ns)
{
  unsigned bucket = PLOOP_HISTOGRAM_NR_BUCKETS;

  set_up (true);
  clock_ns = ns;
  stats_end (stats, PLOOP_FLUSH, 0);
  collect ();
  ck_assert_uint_eq (statistics.operations[PLOOP_FLUSH].count, 1);
  ck_assert_uint_eq (statistics.operations[PLOOP_FLUSH].sum_ns, ns);
  for (unsigned i = 0; i < PLOOP_HISTOGRAM_NR_BUCKETS; i++)
    if (statistics.operations[PLOOP_FLUSH].buckets[i] > 0)
      bucket = i;
  tear_down ();
  ck_assert_uint_lt (bucket, PLOOP_HISTOGRAM_NR_BUCKETS);
  return bucket;
}

static void
assert_within_bounds (uint64_t ns)
{
  const unsigned bucket = bucket_of (ns);

  ck_assert_uint_le (ns, ploop_histogram_bound (bucket));
  if (bucket > 0)
    ck_assert_uint_gt (ns, ploop_histogram_bound (bucket - 1));
}

START_TEST (bounds_belong_to_the_bucket_below)
{
  for (unsigned i = 0; i < LAST_BUCKET; i++) {
    ck_assert_uint_eq (bucket_of (ploop_histogram_bound (i)), i);
    ck_assert_uint_eq (bucket_of (ploop_histogram_bound (i) + 1), i + 1);
  }
  ck_assert_uint_eq (bucket_of (0), 0);
  ck_assert_uint_eq (bucket_of (1), 0);
  ck_assert_uint_eq (bucket_of (UINT64_MAX), LAST_BUCKET);
}
END_TEST

START_TEST (values_lie_within_the_bounds_of_their_bucket)
{
  for (uint64_t ns = 0; ns < 2100; ns++)
    assert_within_bounds (ns);
  for (unsigned bit = 0; bit < 64; bit++) {
    const uint64_t power = UINT64_C (1) << bit;

    assert_within_bounds (power - 1);
    assert_within_bounds (power);
    assert_within_bounds (power + 1);
    assert_within_bounds (power
                          | ((uint64_t) g_random_int () << 32 & (power - 1)));
  }
}
END_TEST

static int
compare_ns (const void *a, const void *b)
{
  const uint64_t *x = a, *y = b;

  return *x < *y ? -1 : *x > *y;
}

/* The value of rank Q in what is sorted. */
static uint64_t
reference_quantile (const uint64_t *sorted, unsigned nr, double q)
{
  const unsigned rank = (unsigned) ceil (q * nr);

  return sorted[MAX (rank, 1) - 1];
}

START_TEST (quantiles_are_at_most_a_quarter_too_high)
{
  static const double quantiles[] = { 0, 0.001, 0.1, 0.25, 0.5, 0.75, 0.9,
                                      0.99, 0.999, 1 };
  /* From one value to as many as fill all buckets. */
  const unsigned nr = 1u << (2 * _i);
  g_autofree uint64_t *values = g_new (uint64_t, nr);

  set_up (true);
  for (unsigned i = 0; i < nr; i++) {
    /* As many in each octave, from 16 ns to 69 s. */
    values[i] = (uint64_t) exp2 (g_random_double_range (4, 36));
    count_request (PLOOP_READ, values[i]);
  }
  qsort (values, nr, sizeof *values, compare_ns);
  collect ();
  for (unsigned i = 0; i < G_N_ELEMENTS (quantiles); i++) {
    const uint64_t exact = reference_quantile (values, nr, quantiles[i]);
    const uint64_t ns = ploop_histogram_quantile (
      &statistics.operations[PLOOP_READ], quantiles[i]);

    ck_assert_uint_ge (ns, exact);
    ck_assert_uint_le (ns, MAX (exact + exact / 4, 256));
  }
  tear_down ();
}
END_TEST

START_TEST (quantile_takes_what_is_out_of_range)
{
  struct ploop_histogram histogram = { 0 };

  ck_assert_uint_eq (ploop_histogram_quantile (&histogram, 0.5), 0);
  /* Counted, but not measured. */
  histogram.count = 5;
  ck_assert_uint_eq (ploop_histogram_quantile (&histogram, 1), 0);

  histogram.buckets[3] = UINT64_MAX - 1;
  histogram.buckets[LAST_BUCKET] = 1;
  ck_assert_uint_eq (ploop_histogram_quantile (&histogram, -1), 448);
  ck_assert_uint_eq (ploop_histogram_quantile (&histogram, 0), 448);
  ck_assert_uint_eq (ploop_histogram_quantile (&histogram, (double) NAN), 448);
  ck_assert_uint_eq (ploop_histogram_quantile (&histogram, 0.999), 448);
  ck_assert_uint_eq (ploop_histogram_quantile (&histogram, 1), UINT64_MAX);
  ck_assert_uint_eq (ploop_histogram_quantile (&histogram, 2), UINT64_MAX);
}
END_TEST

/* ---- Describing -------------------------------------------------------- */

static void
assert_described (const char *expected)
{
  g_autofree char *text = ploop_describe_statistics (collect ());

  ck_assert_str_eq (text, expected);
}

START_TEST (nothing_is_described_when_all_is_zero)
{
  set_up (_i);
  assert_described ("");
  tear_down ();
}
END_TEST

START_TEST (zeros_are_left_out)
{
  set_up (false);
  count_request (PLOOP_READ, 0);
  count_request (PLOOP_READ, 0);
  stats_add (stats, STATS_READ_BYTES, 4096);
  stats_add (stats, STATS_FAST_PATH, 2);
  assert_described ("operation          count\n"
                    "read                   2\n"
                    "data read                 4.00 KiB\n"
                    "served by the caller             2\n");
  tear_down ();
}
END_TEST

START_TEST (latencies_are_in_units_that_suit_them)
{
  set_up (true);
  for (int i = 0; i < 999; i++)
    count_request (PLOOP_READ, 10000);
  count_request (PLOOP_READ, 80000000);
  count_request (PLOOP_FLUSH, 100);
  count_request (PLOOP_FLUSH, UINT64_C (200000000000));
  assert_described (
    "operation          count      mean       p50       p99     p99.9"
    "       max\n"
    "read                1000   90.0 us   10.2 us   10.2 us   10.2 us"
    "   83.9 ms\n"
    "flush                  2     100 s    256 ns    >137 s    >137 s"
    "    >137 s\n");
  tear_down ();
}
END_TEST

START_TEST (counters_are_set_in_relation)
{
  set_up (false);
  stats_add (stats, STATS_FUA, 10);
  stats_add (stats, STATS_ALLOCATIONS, 1000);
  stats_add (stats, STATS_COMMITS, 4);
  stats_add (stats, STATS_COMMIT_WAITERS, 10);
  stats_add (stats, STATS_SYNCS, 3);
  stats_add (stats, STATS_BAT_WRITES, 130);
  for (int i = 0; i < 2; i++)
    count_request (PLOOP_FLUSH, 0);
  assert_described ("operation          count\n"
                    "flush                  2\n"
                    "requests with FUA               10\n"
                    "clusters allocated            1000\n"
                    "commits                          4\n"
                    "answered by commits             10  (2.50 a commit)\n"
                    "syncs                            3"
                    "  (0.25 a flush or FUA)\n"
                    "BAT writes                     130  (0.13 a cluster)\n");
  tear_down ();
}
END_TEST

START_TEST (nothing_is_divided_by_zero)
{
  set_up (false);
  stats_add (stats, STATS_COMMIT_WAITERS, 1);
  stats_add (stats, STATS_SYNCS, 1);
  stats_add (stats, STATS_BAT_WRITES, 1);
  assert_described ("answered by commits              1\n"
                    "syncs                            1\n"
                    "BAT writes                       1\n");
  tear_down ();
}
END_TEST

START_TEST (every_counter_is_described_once)
{
  g_autofree char *text = NULL;
  g_auto (GStrv) lines = NULL;

  set_up (false);
  for (unsigned c = 0; c < STATS_NR_COUNTERS; c++)
    stats_add (stats, c, UINT64_MAX);
  text = ploop_describe_statistics (collect ());
  ck_assert (g_str_has_suffix (text, "\n"));
  lines = g_strsplit (text, "\n", 0);
  ck_assert_uint_eq (g_strv_length (lines), STATS_NR_COUNTERS + 1);
  for (unsigned i = 0; i < STATS_NR_COUNTERS; i++) {
    ck_assert (strstr (lines[i], "18446744073709551615")
               || strstr (lines[i], "16777216 TiB"));
    for (unsigned j = 0; j < i; j++)
      ck_assert_int_ne (strncmp (lines[i], lines[j], 23), 0);
  }
  tear_down ();
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, counter_goes_to_its_field);
  tcase_add_test (tcase, statistics_add_up);
  tcase_add_loop_test (tcase, threads_lose_no_count, 0, 4);
  tcase_add_test (tcase, threads_take_shards_in_turn);
  tcase_add_test (tcase, clock_is_not_read_unless_latency_is_measured);
  tcase_add_test (tcase, bounds_rise_in_quarters_of_an_octave);
  tcase_add_test (tcase, bounds_belong_to_the_bucket_below);
  tcase_add_test (tcase, values_lie_within_the_bounds_of_their_bucket);
  tcase_add_loop_test (tcase, quantiles_are_at_most_a_quarter_too_high, 0, 9);
  tcase_add_test (tcase, quantile_takes_what_is_out_of_range);
  tcase_add_loop_test (tcase, nothing_is_described_when_all_is_zero, 0, 2);
  tcase_add_test (tcase, zeros_are_left_out);
  tcase_add_test (tcase, latencies_are_in_units_that_suit_them);
  tcase_add_test (tcase, counters_are_set_in_relation);
  tcase_add_test (tcase, nothing_is_divided_by_zero);
  tcase_add_test (tcase, every_counter_is_described_once);
}

int
main (void)
{
  return run_tests ("stats", add_tests);
}
