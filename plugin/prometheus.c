/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Prometheus' text format: see prometheus.h.
 *
 * The text goes by metrics, each with its help, its type, and a line for each disk.
 * Numbers are written without the locale's help, which may write a comma.
 */

#include <config.h>

#include <inttypes.h>
#include <stddef.h>
#include <string.h>

#include "prometheus.h"

/* ---- Labels ------------------------------------------------------------ */

static bool
is_replacement (const char *p)
{
  return strncmp (p, "\xef\xbf\xbd", 3) == 0;
}

static void
append_byte (GString *text, char c)
{
  switch (c) {
  case '\\':
  case '"':
    g_string_append_c (text, '\\');
    g_string_append_c (text, c);
    break;
  case '\n':
    g_string_append (text, "\\n");
    break;
  default:
    g_string_append_c (text, c);
  }
}

/* NAME="VALUE", escaped. */
static void
append_label (GString *text, const char *name, const char *value)
{
  const char *end = value;

  g_string_append_printf (text, "%s=\"", name);
  for (const char *p = value; *p; p++) {
    if (p >= end)
      g_utf8_validate (p, -1, &end);
    if (p < end && !is_replacement (p))
      append_byte (text, *p);
    else {
      /* One byte; of a replacement character the other two follow, and are no
       * character by themselves.
       */
      g_string_append_printf (text, "\xef\xbf\xbd%02x", (guint8) *p);
      end = p + 1;
    }
  }
  g_string_append_c (text, '"');
}

char *
prometheus_labels (const char *path, const char *guid)
{
  GString *text = g_string_new (NULL);

  append_label (text, "disk", path);
  if (guid) {
    g_string_append_c (text, ',');
    append_label (text, "snapshot", guid);
  }
  return g_string_free (text, FALSE);
}

/* ---- Metrics ----------------------------------------------------------- */

static void
append_head (GString *text, const char *name, const char *type,
             const char *help)
{
  g_string_append_printf (text, "# HELP ploop_%s %s\n# TYPE ploop_%s %s\n",
                          name, help, name, type);
}

static void
append_server (GString *text, const struct prometheus_server *server)
{
  GString *labels = g_string_new (NULL);

  append_label (labels, "served", server->served);
  append_head (text, "server_info", "gauge", "What serves the disk or directory.");
  g_string_append_printf (text, "ploop_server_info{%s,", labels->str);
  append_label (text, "version", server->version);
  g_string_append (text, "} 1\n");
  append_head (text, "server_start_time_seconds", "gauge",
               "When the server started, since 1970.");
  g_string_append_printf (text, "ploop_server_start_time_seconds{%s} %" PRId64
                          ".%03d\n", labels->str,
                          server->start_time / G_USEC_PER_SEC,
                          (int) (server->start_time % G_USEC_PER_SEC / 1000));
  g_string_free (labels, TRUE);
}

static void
append_info (GString *text, const GPtrArray *disks)
{
  append_head (text, "disk_info", "gauge",
               "Version of the disk's format, and whether it can be written.");
  for (guint i = 0; i < disks->len; i++) {
    const struct prometheus_disk *disk = g_ptr_array_index (disks, i);

    if (disk->is_open)
      g_string_append_printf (text, "ploop_disk_info{%s,format=\"%u\","
                              "mode=\"%s\"} 1\n", disk->labels, disk->version,
                              disk->read_only ? "ro" : "rw");
  }
}

static void
append_open (GString *text, const GPtrArray *disks)
{
  append_head (text, "disk_open", "gauge",
               "1 if the disk is open, 0 if it was closed.");
  for (guint i = 0; i < disks->len; i++) {
    const struct prometheus_disk *disk = g_ptr_array_index (disks, i);

    g_string_append_printf (text, "ploop_disk_open{%s} %d\n", disk->labels,
                            disk->is_open);
  }
}

static void
append_sync_failed (GString *text, const GPtrArray *disks)
{
  append_head (text, "disk_sync_failed", "gauge",
               "1 if a sync has failed: all flushes fail until the disk is "
               "opened again.");
  for (guint i = 0; i < disks->len; i++) {
    const struct prometheus_disk *disk = g_ptr_array_index (disks, i);

    if (disk->is_open)
      g_string_append_printf (text, "ploop_disk_sync_failed{%s} %d\n",
                              disk->labels, disk->state.sync_failed);
  }
}

/* ---- Metrics that are a number of a struct ------------------------------- */

struct metric {
  const char *name, *help;
  size_t field;                 /* a uint64_t in struct prometheus_disk */
};

/* Of open disks. */
static const struct metric gauges[] = {
#define FIELD(member) offsetof (struct prometheus_disk, member)
  { "disk_size_bytes", "Size of the disk.", FIELD (size) },
  { "disk_cluster_size_bytes", "Size of a cluster.", FIELD (cluster_size) },
  { "disk_file_size_bytes", "Size of the file that is written to.",
    FIELD (state.file_size) },
  { "disk_file_space_bytes", "What the file takes in its file system.",
    FIELD (state.file_space) },
  { "disk_clusters", "Clusters of the disk.", FIELD (state.nr_clusters) },
  { "disk_allocated_clusters", "Clusters of the disk that the file has.",
    FIELD (state.nr_allocated) },
  { "disk_free_clusters", "Clusters of the file that nothing uses.",
    FIELD (state.nr_free) },
#undef FIELD
};

/* Of all. */
static const struct metric counters[] = {
#define FIELD(member) offsetof (struct prometheus_disk, statistics.member)
  { "failed_requests_total", "Requests answered with an error.",
    FIELD (nr_failed) },
  { "fua_requests_total", "Requests with FUA.", FIELD (nr_fua) },
  { "fast_path_requests_total", "Requests served in the thread that got them.",
    FIELD (nr_fast_path) },
  { "queued_requests_total", "Requests served by runners.", FIELD (nr_queued) },
  { "enospc_waits_total", "Requests that waited for space.",
    FIELD (nr_enospc_waits) },
  { "cluster_allocations_total", "Clusters that got space.",
    FIELD (nr_allocations) },
  { "cluster_frees_total", "Clusters that trimming unmapped.",
    FIELD (nr_frees) },
  { "cluster_reuses_total", "Allocations that took freed space.",
    FIELD (nr_reuses) },
  { "cluster_copies_total", "Clusters copied from a lower delta.",
    FIELD (nr_copies) },
  { "lazy_cluster_copies_total", "Those whose write was answered first.",
    FIELD (nr_lazy_copies) },
  { "filled_bytes_total", "Data copied into those.", FIELD (fill_bytes) },
  { "commits_total", "Commits.", FIELD (nr_commits) },
  { "committed_requests_total", "Flushes and requests with FUA that commits "
    "have answered.", FIELD (nr_commit_waiters) },
  { "syncs_total", "Syncs of commits.", FIELD (nr_syncs) },
  { "durable_writes_total", "Forced writes that needed no commit.",
    FIELD (nr_durable_writes) },
  { "bat_writes_total", "Writes to the block allocation table in the file.",
    FIELD (nr_bat_writes) },
  { "bat_written_bytes_total", "Data written by them.", FIELD (bat_bytes) },
  { "file_extensions_total", "Times that the file was made larger.",
    FIELD (nr_extensions) },
  { "file_extension_syncs_total", "Syncs that this took.",
    FIELD (nr_extension_syncs) },
  { "hole_punches_total", "Ranges given back to the file system.",
    FIELD (nr_punches) },
  { "writeback_retries_total", "Commits in the background tried again.",
    FIELD (nr_writeback_retries) },
};

/* With a label more: what was asked for. */
static const struct {
  const char *name;
  size_t count, bytes;          /* fields; bytes of a flush: 0 */
} operations[PLOOP_NR_OPERATIONS] = {
  [PLOOP_READ] = { "read", FIELD (operations[PLOOP_READ].count),
                   FIELD (read_bytes) },
  [PLOOP_WRITE] = { "write", FIELD (operations[PLOOP_WRITE].count),
                    FIELD (write_bytes) },
  [PLOOP_ZERO] = { "zero", FIELD (operations[PLOOP_ZERO].count),
                   FIELD (zero_bytes) },
  [PLOOP_TRIM] = { "trim", FIELD (operations[PLOOP_TRIM].count),
                   FIELD (trim_bytes) },
  [PLOOP_FLUSH] = { "flush", FIELD (operations[PLOOP_FLUSH].count), 0 },
#undef FIELD
};

static uint64_t
value_of (const struct prometheus_disk *disk, size_t field)
{
  return G_STRUCT_MEMBER (const uint64_t, disk, field);
}

static void
append_metric (GString *text, const struct metric *metric, const char *type,
               bool only_open, const GPtrArray *disks)
{
  append_head (text, metric->name, type, metric->help);
  for (guint i = 0; i < disks->len; i++) {
    const struct prometheus_disk *disk = g_ptr_array_index (disks, i);

    if (disk->is_open || !only_open)
      g_string_append_printf (text, "ploop_%s{%s} %" PRIu64 "\n", metric->name,
                              disk->labels, value_of (disk, metric->field));
  }
}

static void
append_by_operation (GString *text, const char *name, size_t field,
                     const char *operation, const struct prometheus_disk *disk)
{
  g_string_append_printf (text, "ploop_%s{%s,operation=\"%s\"} %" PRIu64 "\n",
                          name, disk->labels, operation,
                          value_of (disk, field));
}

static void
append_requests (GString *text, const GPtrArray *disks)
{
  append_head (text, "requests_total", "counter", "Requests answered.");
  for (guint i = 0; i < disks->len; i++)
    for (unsigned o = 0; o < PLOOP_NR_OPERATIONS; o++)
      append_by_operation (text, "requests_total", operations[o].count,
                           operations[o].name, g_ptr_array_index (disks, i));
  append_head (text, "request_bytes_total", "counter",
               "Data that requests were for.");
  for (guint i = 0; i < disks->len; i++)
    for (unsigned o = 0; o < PLOOP_NR_OPERATIONS; o++)
      if (operations[o].bytes > 0)
        append_by_operation (text, "request_bytes_total", operations[o].bytes,
                             operations[o].name,
                             g_ptr_array_index (disks, i));
}

/* ---- Histograms -------------------------------------------------------- */

/* From 8 us to 8.6 s, by twos: the library has finer ones, too many for a database. */
#define FIRST_BOUND (UINT64_C (1) << 13)        /* ns */
#define LAST_BOUND (UINT64_C (1) << 33)

#define DURATION "ploop_request_duration_seconds"

static void
append_buckets (GString *text, const char *labels,
                const struct ploop_histogram *histogram)
{
  uint64_t below = 0;
  unsigned bucket = 0;

  for (uint64_t bound = FIRST_BOUND; bound <= LAST_BOUND; bound *= 2) {
    char le[G_ASCII_DTOSTR_BUF_SIZE];

    while (ploop_histogram_bound (bucket) <= bound)
      below += histogram->buckets[bucket++];
    g_ascii_formatd (le, sizeof le, "%.10g", (double) bound / 1e9);
    g_string_append_printf (text, DURATION "_bucket{%s,le=\"%s\"} %" PRIu64
                            "\n", labels, le, below);
  }
  while (bucket < PLOOP_HISTOGRAM_NR_BUCKETS)
    below += histogram->buckets[bucket++];
  g_string_append_printf (text, DURATION "_bucket{%s,le=\"+Inf\"} %" PRIu64
                          "\n", labels, below);
  g_string_append_printf (text, DURATION "_sum{%s} %" PRIu64 ".%09" PRIu64
                          "\n", labels, histogram->sum_ns / 1000000000,
                          histogram->sum_ns % 1000000000);
  g_string_append_printf (text, DURATION "_count{%s} %" PRIu64 "\n", labels,
                          below);
}

static void
append_durations (GString *text, const GPtrArray *disks)
{
  g_string_append (text, "# HELP " DURATION " How long requests took.\n"
                         "# TYPE " DURATION " histogram\n");
  for (guint i = 0; i < disks->len; i++) {
    const struct prometheus_disk *disk = g_ptr_array_index (disks, i);

    for (unsigned o = 0; o < PLOOP_NR_OPERATIONS
                         && disk->statistics.latency_measured; o++) {
      g_autofree char *labels =
        g_strdup_printf ("%s,operation=\"%s\"", disk->labels,
                         operations[o].name);

      append_buckets (text, labels, &disk->statistics.operations[o]);
    }
  }
}

/* ---- All --------------------------------------------------------------- */

GString *
prometheus_text (const struct prometheus_server *server,
                 const GPtrArray *disks)
{
  GString *text = g_string_new (NULL);

  append_server (text, server);
  append_open (text, disks);
  append_info (text, disks);
  for (size_t i = 0; i < G_N_ELEMENTS (gauges); i++)
    append_metric (text, &gauges[i], "gauge", true, disks);
  append_sync_failed (text, disks);
  append_requests (text, disks);
  append_durations (text, disks);
  for (size_t i = 0; i < G_N_ELEMENTS (counters); i++)
    append_metric (text, &counters[i], "counter", false, disks);
  return text;
}
