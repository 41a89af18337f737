/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Statistics: see stats.h for how they are counted, ploop-core.h for what they
 * mean.
 */

#include <config.h>

#include <stddef.h>
#include <time.h>

#include "stats.h"

/* ---- Counting ---------------------------------------------------------- */

_Thread_local unsigned stats_thread_shard;

struct stats *
stats_new (bool measure_latency)
{
  struct stats *stats = g_aligned_alloc0 (1, sizeof *stats, STATS_CACHE_LINE);

  stats->measure_latency = measure_latency;
  return stats;
}

void
stats_free (struct stats *stats)
{
  g_aligned_free (stats);
}

unsigned
stats_enter_thread (void)
{
  static _Atomic unsigned nr_threads;
  const unsigned thread =
    atomic_fetch_add_explicit (&nr_threads, 1, memory_order_relaxed);

  stats_thread_shard = thread % STATS_NR_SHARDS + 1;
  return stats_thread_shard;
}

uint64_t
stats_now (void)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  return (uint64_t) now.tv_sec * 1000000000 + (uint64_t) now.tv_nsec;
}

/* The inverse of ploop_histogram_bound. */
static unsigned
histogram_bucket (uint64_t ns)
{
  unsigned octave, step, bucket;

  if (ns <= 256)
    return 0;
  /* Bounds belong to the bucket below them. */
  ns--;
  octave = 63 - (unsigned) __builtin_clzll (ns);
  step = (unsigned) (ns >> (octave - 2)) & 3;
  bucket = (octave - 8) * 4 + step + 1;
  return MIN (bucket, PLOOP_HISTOGRAM_NR_BUCKETS - 1);
}

void
stats_end (struct stats *stats, enum ploop_operation operation,
           uint64_t begun)
{
  struct stats_operation *counts = &stats_shard (stats)->operations[operation];

  if (!stats->measure_latency)
    atomic_fetch_add_explicit (&counts->nr_unmeasured, 1,
                               memory_order_relaxed);
  else {
    const uint64_t ns = stats_now () - begun;

    atomic_fetch_add_explicit (&counts->sum_ns, ns, memory_order_relaxed);
    atomic_fetch_add_explicit (&counts->buckets[histogram_bucket (ns)], 1,
                               memory_order_relaxed);
  }
}

/* ---- Adding up --------------------------------------------------------- */

/* Where each counter goes and what people call it, in the order in which they
 * are described.
 */
static const struct counter {
  size_t field;                 /* in struct ploop_statistics */
  const char *name;
  bool is_bytes;
} counters[STATS_NR_COUNTERS] = {
#define BYTES(field, name) \
  { offsetof (struct ploop_statistics, field), name, true }
#define EVENTS(field, name) \
  { offsetof (struct ploop_statistics, field), name, false }
  [STATS_READ_BYTES] = BYTES (read_bytes, "data read"),
  [STATS_WRITE_BYTES] = BYTES (write_bytes, "data written"),
  [STATS_ZERO_BYTES] = BYTES (zero_bytes, "data zeroed"),
  [STATS_TRIM_BYTES] = BYTES (trim_bytes, "data trimmed"),
  [STATS_FUA] = EVENTS (nr_fua, "requests with FUA"),
  [STATS_FAST_PATH] = EVENTS (nr_fast_path, "served by the caller"),
  [STATS_QUEUED] = EVENTS (nr_queued, "served by runners"),
  [STATS_FAILED] = EVENTS (nr_failed, "requests that failed"),
  [STATS_ALLOCATIONS] = EVENTS (nr_allocations, "clusters allocated"),
  [STATS_FREES] = EVENTS (nr_frees, "clusters freed"),
  [STATS_REUSES] = EVENTS (nr_reuses, "clusters used again"),
  [STATS_COPIES] = EVENTS (nr_copies, "clusters copied"),
  [STATS_LAZY_COPIES] = EVENTS (nr_lazy_copies, "of them lazily"),
  [STATS_FILL_BYTES] = BYTES (fill_bytes, "data filled in"),
  [STATS_COMMITS] = EVENTS (nr_commits, "commits"),
  [STATS_COMMIT_WAITERS] = EVENTS (nr_commit_waiters, "answered by commits"),
  [STATS_SYNCS] = EVENTS (nr_syncs, "syncs"),
  [STATS_DURABLE_WRITES] = EVENTS (nr_durable_writes,
                                   "writes without a commit"),
  [STATS_BAT_WRITES] = EVENTS (nr_bat_writes, "BAT writes"),
  [STATS_BAT_BYTES] = BYTES (bat_bytes, "BAT data written"),
  [STATS_EXTENSIONS] = EVENTS (nr_extensions, "file extensions"),
  [STATS_EXTENSION_SYNCS] = EVENTS (nr_extension_syncs,
                                    "syncs of extensions"),
  [STATS_PUNCHES] = EVENTS (nr_punches, "holes punched"),
  [STATS_ENOSPC_WAITS] = EVENTS (nr_enospc_waits, "waits for space"),
  [STATS_WRITEBACK_RETRIES] = EVENTS (nr_writeback_retries,
                                      "writebacks tried again"),
#undef BYTES
#undef EVENTS
};

static uint64_t
load (const _Atomic uint64_t *count)
{
  return atomic_load_explicit (count, memory_order_relaxed);
}

static void
collect_operation (const struct stats_operation *counts,
                   struct ploop_histogram *histogram)
{
  histogram->count += load (&counts->nr_unmeasured);
  histogram->sum_ns += load (&counts->sum_ns);
  for (unsigned i = 0; i < PLOOP_HISTOGRAM_NR_BUCKETS; i++) {
    const uint64_t n = load (&counts->buckets[i]);

    histogram->buckets[i] += n;
    histogram->count += n;
  }
}

void
stats_collect (const struct stats *stats, struct ploop_statistics *statistics)
{
  statistics->latency_measured |= stats->measure_latency;
  for (unsigned i = 0; i < STATS_NR_SHARDS; i++) {
    const struct stats_shard *shard = &stats->shards[i];

    for (unsigned c = 0; c < STATS_NR_COUNTERS; c++)
      G_STRUCT_MEMBER (uint64_t, statistics, counters[c].field) +=
        load (&shard->counters[c]);
    for (unsigned o = 0; o < PLOOP_NR_OPERATIONS; o++)
      collect_operation (&shard->operations[o], &statistics->operations[o]);
  }
}

static void
add_histogram (struct ploop_histogram *total,
               const struct ploop_histogram *more)
{
  total->count += more->count;
  total->sum_ns += more->sum_ns;
  for (unsigned i = 0; i < PLOOP_HISTOGRAM_NR_BUCKETS; i++)
    total->buckets[i] += more->buckets[i];
}

void
ploop_add_statistics (struct ploop_statistics *total,
                      const struct ploop_statistics *more)
{
  total->latency_measured |= more->latency_measured;
  for (unsigned c = 0; c < STATS_NR_COUNTERS; c++)
    G_STRUCT_MEMBER (uint64_t, total, counters[c].field) +=
      G_STRUCT_MEMBER (const uint64_t, more, counters[c].field);
  for (unsigned o = 0; o < PLOOP_NR_OPERATIONS; o++)
    add_histogram (&total->operations[o], &more->operations[o]);
}

/* ---- Histograms -------------------------------------------------------- */

uint64_t
ploop_histogram_bound (unsigned bucket)
{
  /* Four steps an octave, as if the last of the octave up to 256 came first. */
  const unsigned step = bucket + 3;

  if (bucket >= PLOOP_HISTOGRAM_NR_BUCKETS - 1)
    return UINT64_MAX;
  return (UINT64_C (5) + step % 4) << (5 + step / 4);
}

static uint64_t
nr_measured (const struct ploop_histogram *histogram)
{
  uint64_t total = 0;

  for (unsigned i = 0; i < PLOOP_HISTOGRAM_NR_BUCKETS; i++)
    total += histogram->buckets[i];
  return total;
}

/* How many of TOTAL (not 0) the fraction Q is, rounded up, at least 1. */
static uint64_t
rank (double q, uint64_t total)
{
  const double exact = q * (double) total;
  uint64_t whole;

  if (q >= 1)
    return total;
  /* Also true of what is no number. */
  if (!(exact > 1))
    return 1;
  whole = (uint64_t) exact;
  return (double) whole < exact ? whole + 1 : whole;
}

uint64_t
ploop_histogram_quantile (const struct ploop_histogram *histogram, double q)
{
  const uint64_t total = nr_measured (histogram);
  uint64_t wanted;
  unsigned i = 0;

  if (total == 0)
    return 0;
  wanted = rank (q, total);
  for (; wanted > histogram->buckets[i]; i++)
    wanted -= histogram->buckets[i];
  return ploop_histogram_bound (i);
}

/* ---- Describing -------------------------------------------------------- */

/* Each of FACTOR times the one before. */
struct units {
  double factor;
  const char *names[6];         /* up to a NULL */
};

static const struct units bytes_units = {
  1024, { "B", "KiB", "MiB", "GiB", "TiB" },
};
static const struct units time_units = { 1000, { "ns", "us", "ms", "s" } };

/* VALUE to three digits, in the unit that suits it. */
static char *
with_unit (double value, const struct units *units)
{
  const char *const *name = units->names;

  for (; value >= units->factor && name[1]; name++)
    value /= units->factor;
  if (name == units->names || value >= 100)
    return g_strdup_printf ("%.0f %s", value, *name);
  return g_strdup_printf ("%.*f %s", value < 10 ? 2 : 1, value, *name);
}

static void
append_mean (GString *text, const struct ploop_histogram *histogram)
{
  const double total = (double) MAX (nr_measured (histogram), 1);
  g_autofree char *mean =
    with_unit ((double) histogram->sum_ns / total, &time_units);

  g_string_append_printf (text, " %9s", mean);
}

static void
append_quantile (GString *text, const struct ploop_histogram *histogram,
                 double q)
{
  const unsigned last = PLOOP_HISTOGRAM_NR_BUCKETS - 1;
  const uint64_t bound = ploop_histogram_quantile (histogram, q);
  const bool bounded = bound < ploop_histogram_bound (last);
  g_autofree char *time =
    with_unit ((double) (bounded ? bound : ploop_histogram_bound (last - 1)),
               &time_units);
  g_autofree char *shown = g_strconcat (bounded ? "" : ">", time, NULL);

  g_string_append_printf (text, " %9s", shown);
}

static void
append_operation (GString *text, const char *name,
                  const struct ploop_histogram *histogram, bool measured)
{
  static const double quantiles[] = { 0.5, 0.99, 0.999, 1 };

  g_string_append_printf (text, "%-9s %14" G_GUINT64_FORMAT, name,
                          histogram->count);
  if (measured) {
    append_mean (text, histogram);
    for (unsigned i = 0; i < G_N_ELEMENTS (quantiles); i++)
      append_quantile (text, histogram, quantiles[i]);
  }
  g_string_append_c (text, '\n');
}

/* The header of the table, too, is left out when there is nothing below it. */
static void
append_operations (GString *text, const struct ploop_statistics *statistics)
{
  static const char *const names[PLOOP_NR_OPERATIONS] = {
    [PLOOP_READ] = "read",
    [PLOOP_WRITE] = "write",
    [PLOOP_ZERO] = "zero",
    [PLOOP_TRIM] = "trim",
    [PLOOP_FLUSH] = "flush",
  };
  const bool measured = statistics->latency_measured;

  for (unsigned o = 0; o < PLOOP_NR_OPERATIONS; o++) {
    if (statistics->operations[o].count == 0)
      continue;
    if (text->len == 0) {
      g_string_append_printf (text, "%-9s %14s", "operation", "count");
      if (measured)
        g_string_append_printf (text, " %9s %9s %9s %9s %9s", "mean", "p50",
                                "p99", "p99.9", "max");
      g_string_append_c (text, '\n');
    }
    append_operation (text, names[o], &statistics->operations[o], measured);
  }
}

/* N of something for TOTAL of what is called NAME; nothing if TOTAL is 0. */
static void
append_ratio (GString *text, uint64_t n, uint64_t total, const char *name)
{
  if (total > 0)
    g_string_append_printf (text, "  (%.2f a %s)",
                            (double) n / (double) total, name);
}

/* What a count says about another. */
static void
append_derived (GString *text, enum stats_counter counter,
                const struct ploop_statistics *s)
{
  switch (counter) {
  case STATS_COMMIT_WAITERS:
    append_ratio (text, s->nr_commit_waiters, s->nr_commits, "commit");
    break;
  case STATS_SYNCS:
    append_ratio (text, s->nr_syncs,
                  s->operations[PLOOP_FLUSH].count + s->nr_fua,
                  "flush or FUA");
    break;
  case STATS_BAT_WRITES:
    append_ratio (text, s->nr_bat_writes, s->nr_allocations, "cluster");
    break;
  default:
    break;
  }
}

static char *
describe_value (const struct counter *counter, uint64_t value)
{
  return counter->is_bytes ? with_unit ((double) value, &bytes_units)
                           : g_strdup_printf ("%" G_GUINT64_FORMAT, value);
}

char *
ploop_describe_statistics (const struct ploop_statistics *statistics)
{
  GString *text = g_string_new (NULL);

  append_operations (text, statistics);
  for (enum stats_counter c = 0; c < STATS_NR_COUNTERS; c++) {
    const uint64_t value =
      G_STRUCT_MEMBER (const uint64_t, statistics, counters[c].field);
    g_autofree char *shown = describe_value (&counters[c], value);

    if (value == 0)
      continue;
    g_string_append_printf (text, "%-23s %10s", counters[c].name, shown);
    append_derived (text, c, statistics);
    g_string_append_c (text, '\n');
  }
  return g_string_free (text, FALSE);
}
