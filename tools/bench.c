/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img bench: how quick is the store on which disks lie?  The library measures;
 * here are the options, and a table.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ploop-core.h"
#include "ploop-img.h"

static const char *const names[PLOOP_NR_BENCHES] = {
  [PLOOP_BENCH_SEQUENTIAL_WRITE] = "sequential-write",
  [PLOOP_BENCH_RANDOM_WRITE] = "random-write",
  [PLOOP_BENCH_FLUSH] = "flush",
  [PLOOP_BENCH_RANDOM_READ] = "random-read",
  [PLOOP_BENCH_SEQUENTIAL_READ] = "sequential-read",
};

/* Which quantiles are told, and how they are called. */
static const struct {
  double q;
  const char *name;
} quantiles[] = {
  { .5, "latency-50-ns" },
  { .99, "latency-99-ns" },
  { .999, "latency-99.9-ns" },
  { 1, "latency-100-ns" },
};

/* ---- Options ----------------------------------------------------------- */

static bool
bad_number (const char *option, const char *text, const char *range,
            GError **error)
{
  g_set_error (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
               "--%s: '%s' is not %s", option, text, range);
  return false;
}

static bool
parse_seconds (const char *text, unsigned *milliseconds, GError **error)
{
  const double most = PLOOP_MAX_DELAY / 1000.;
  char *end;
  double seconds;

  if (text == NULL)
    return true;
  seconds = g_ascii_strtod (text, &end);
  /* No hexadecimal, no infinity, no space. */
  if (*text == '\0' || text[strspn (text, "0123456789.")] != '\0'
      || *end != '\0' || seconds < .001 || seconds > most)
    return bad_number ("seconds", text, "a number from 0.001 to 3600", error);
  *milliseconds = (unsigned) (seconds * 1000 + .5);
  return true;
}

static bool
parse_depth (const char *text, unsigned *depth, GError **error)
{
  guint64 number;

  if (text == NULL)
    return true;
  if (!g_ascii_string_to_unsigned (text, 10, 1, PLOOP_BENCH_MAX_DEPTH,
                                   &number, NULL))
    return bad_number ("depth", text, "a number from 1 to 256", error);
  *depth = (unsigned) number;
  return true;
}

static bool
parse_bytes (const char *option, const char *text, uint64_t *bytes,
             GError **error)
{
  if (text == NULL)
    return true;
  if (!size_parse (text, bytes, error)) {
    g_prefix_error (error, "--%s: ", option);
    return false;
  }
  return *bytes > 0
         || bad_number (option, text, "more than 0 bytes", error);
}

static bool
parse_block_size (const char *text, uint32_t *block_size, GError **error)
{
  uint64_t bytes = 0;

  if (!parse_bytes ("block-size", text, &bytes, error))
    return false;
  if (bytes > PLOOP_BENCH_MAX_BLOCK)
    return bad_number ("block-size", text, "at most 1M", error);
  *block_size = (uint32_t) bytes;
  return true;
}

/* ---- Output ------------------------------------------------------------ */

/* N a second, in NS. */
static double
rate (uint64_t n, uint64_t ns)
{
  return ns == 0 ? 0 : (double) n * 1e9 / (double) ns;
}

static uint64_t
mean_ns (const struct ploop_histogram *latency)
{
  return latency->count == 0 ? 0 : latency->sum_ns / latency->count;
}

static void
print_time (uint64_t ns)
{
  if (ns == UINT64_MAX)
    printf (" %10s", "> 2 min");
  else
    printf (" %7.3f ms", (double) ns / 1e6);
}

static void
print_human (const struct ploop_bench_result *result)
{
  printf ("%-16s %12s %10s %10s %10s %10s %10s %10s\n", "", "requests/s",
          "MiB/s", "mean", "50 %", "99 %", "99.9 %", "100 %");
  for (unsigned i = 0; i < PLOOP_NR_BENCHES; i++) {
    const struct ploop_bench_measurement *m = &result->measurements[i];

    if (m->nr_requests == 0)
      continue;
    printf ("%-16s %12.1f %10.1f", names[i], rate (m->nr_requests, m->ns),
            rate (m->bytes, m->ns) / (1 << 20));
    print_time (mean_ns (&m->latency));
    for (size_t j = 0; j < G_N_ELEMENTS (quantiles); j++)
      print_time (ploop_histogram_quantile (&m->latency, quantiles[j].q));
    putchar ('\n');
  }
}

static void
add_measurement (JsonBuilder *builder, const char *name,
                 const struct ploop_bench_measurement *m)
{
  json_builder_begin_object (builder);
  output_add_text (builder, "name", name);
  output_add_number (builder, "requests", m->nr_requests);
  output_add_number (builder, "bytes", m->bytes);
  output_add_number (builder, "duration-ns", m->ns);
  output_add_number (builder, "requests-per-second",
                     (uint64_t) (rate (m->nr_requests, m->ns) + .5));
  output_add_number (builder, "bytes-per-second",
                     (uint64_t) (rate (m->bytes, m->ns) + .5));
  output_add_number (builder, "latency-mean-ns", mean_ns (&m->latency));
  for (size_t j = 0; j < G_N_ELEMENTS (quantiles); j++)
    output_add_number (builder, quantiles[j].name,
                       ploop_histogram_quantile (&m->latency,
                                                 quantiles[j].q));
  json_builder_end_object (builder);
}

static void
print_json (const char *name, const struct ploop_bench_result *result)
{
  g_autoptr (JsonBuilder) builder = json_builder_new ();

  json_builder_begin_object (builder);
  output_add_text (builder, "file", name);
  output_add_text (builder, "result",
                   result->interrupted ? "interrupted" : "measured");
  json_builder_set_member_name (builder, "measurements");
  json_builder_begin_array (builder);
  for (unsigned i = 0; i < PLOOP_NR_BENCHES; i++)
    if (result->measurements[i].nr_requests > 0)
      add_measurement (builder, names[i], &result->measurements[i]);
  json_builder_end_array (builder);
  json_builder_end_object (builder);
  output_json (builder);
}

/* Returns the exit status. */
static int
tell (const char *name, const struct common_options *common,
      const struct ploop_bench_result *result)
{
  if (common->output == OUTPUT_JSON)
    print_json (name, result);
  else
    print_human (result);
  if (!result->interrupted)
    return EXIT_SUCCESS;
  fflush (stdout);
  fprintf (stderr, "ploop-img: interrupted: not all was measured\n");
  return EXIT_INTERRUPTED;
}

/* ---- The subcommand ---------------------------------------------------- */

int
bench_run (const struct subcommand *self, int argc, char **argv)
{
  g_autofree char *seconds = NULL, *size = NULL;
  g_autofree char *depth = NULL, *block_size = NULL;
  gboolean write = FALSE, page_cache = FALSE;
  const GOptionEntry entries[] = {
    { "write", 'w', 0, G_OPTION_ARG_NONE, &write,
      "DISK is a directory: write to a new image in it, and remove it", NULL },
    { "seconds", 0, 0, G_OPTION_ARG_STRING, &seconds,
      "For each measurement at most (default: 3)", "N" },
    { "size", 0, 0, G_OPTION_ARG_STRING, &size,
      "Bytes for each at most (default: no limit; to write: 256M)", "SIZE" },
    { "depth", 0, 0, G_OPTION_ARG_STRING, &depth,
      "Requests at a time (default: 16)", "N" },
    { "block-size", 0, 0, G_OPTION_ARG_STRING, &block_size,
      "Of random requests (default: 4K)", "SIZE" },
    { "page-cache", 0, 0, G_OPTION_ARG_NONE, &page_cache,
      "Go through the page cache", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  struct ploop_bench_options options = { .log = report_log };
  struct ploop_bench_result result;
  struct progress progress;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int r, status;

  arguments =
    command_line_parse (self, entries, COMMON_OUTPUT | COMMON_PROGRESS,
                        &common, argc, argv, &status);
  if (arguments == NULL)
    return status;
  if (!parse_seconds (seconds, &options.milliseconds, &error)
      || !parse_bytes ("size", size, &options.size, &error)
      || !parse_depth (depth, &options.depth, &error)
      || !parse_block_size (block_size, &options.block_size, &error))
    return report_usage_error (self, "%s", error->message);
  options.write = write;
  options.page_cache = page_cache;
  progress_begin (&progress, &common);
  progress.is_time = true;
  r = ploop_bench (arguments[0], &options, progress_step, &progress, &result,
                   &error);
  progress_end (&progress);
  return r == -1 ? report_error (error)
                 : tell (arguments[0], &common, &result);
}
