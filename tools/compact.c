/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img compact: the library does it; here are the progress bar, the signals
 * that end it early, and what is said in the end.
 */

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "ploop-core.h"
#include "ploop-img.h"

enum {
  EXIT_INTERRUPTED = 2,         /* 1, EXIT_FAILURE: something went wrong */
};

#define BAR_WIDTH 40

static volatile sig_atomic_t was_signalled;

struct bar {
  bool shown;
  int percent;                  /* as drawn; -1: not yet */
};

/* ---- Signals ----------------------------------------------------------- */

static void
on_signal (int signal G_GNUC_UNUSED)
{
  was_signalled = 1;
}

/* Whoever started us with a signal ignored, as nohup does, means it.  The second
 * signal kills: that costs no data, only time.
 */
static void
catch_signals (void)
{
  static const int signals[] = { SIGHUP, SIGINT, SIGTERM };
  const struct sigaction action = {
    .sa_handler = on_signal,
    .sa_flags = SA_RESTART | (int) SA_RESETHAND,
  };
  struct sigaction old;

  for (size_t i = 0; i < G_N_ELEMENTS (signals); i++)
    if (sigaction (signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
      sigaction (signals[i], &action, NULL);
}

/* ---- Progress ---------------------------------------------------------- */

static void
draw_bar (struct bar *bar, uint64_t nr_bytes_done, uint64_t nr_bytes)
{
  static const char full[] = "========================================";
  const double fraction =
    nr_bytes == 0 ? 1 : (double) nr_bytes_done / (double) nr_bytes;
  const int percent = (int) (100 * fraction);

  G_STATIC_ASSERT (sizeof full - 1 == BAR_WIDTH);
  if (percent == bar->percent)
    return;
  bar->percent = percent;
  fprintf (stderr, "\r[%-*.*s] %3d %%", BAR_WIDTH, BAR_WIDTH * percent / 100,
           full, percent);
  fflush (stderr);
}

static void
end_bar (const struct bar *bar)
{
  if (bar->percent >= 0)
    fputc ('\n', stderr);
}

static bool
on_progress (void *opaque, uint64_t nr_bytes_done, uint64_t nr_bytes)
{
  struct bar *bar = opaque;

  if (bar->shown)
    draw_bar (bar, nr_bytes_done, nr_bytes);
  return !was_signalled;
}

static void
on_log (void *opaque G_GNUC_UNUSED, enum ploop_log_level level,
        const char *message)
{
  if (level == PLOOP_LOG_WARNING)
    fprintf (stderr, "ploop-img: warning: %s\n", message);
}

/* ---- The result -------------------------------------------------------- */

static uint64_t
came_back (const struct ploop_compact_result *result)
{
  return result->allocated_before
         - MIN (result->allocated_before, result->allocated_after);
}

static void
print_human (const char *path, bool dry_run,
             const struct ploop_compact_result *result)
{
  g_autofree char *copied = size_format (result->bytes_copied);
  g_autofree char *size_before = size_format (result->file_size_before);
  g_autofree char *size_after = size_format (result->file_size_after);
  g_autofree char *usage_before = size_format (result->allocated_before);
  g_autofree char *usage_after = size_format (result->allocated_after);
  g_autofree char *back = size_format (came_back (result));

  if (dry_run)
    printf ("%s: would move %" PRIu64 " clusters and copy %s\n"
            "file size: %s, would be %s\n"
            "disk usage: %s, would be %s or less\n"
            "would come back: %s or more\n",
            path, result->nr_moved, copied, size_before, size_after,
            usage_before, usage_after, back);
  else
    printf ("%s: moved %" PRIu64 " clusters and copied %s\n"
            "file size: %s, was %s\n"
            "disk usage: %s, was %s\n"
            "came back: %s\n",
            path, result->nr_moved, copied, size_after, size_before,
            usage_after, usage_before, back);
}

static void
print_json (const char *path, bool dry_run,
            const struct ploop_compact_result *result)
{
  g_autoptr (JsonBuilder) builder = json_builder_new ();

  json_builder_begin_object (builder);
  output_add_text (builder, "file", path);
  output_add_text (builder, "result",
                   dry_run ? "dry-run"
                   : result->interrupted ? "interrupted" : "compacted");
  output_add_number (builder, "moved-clusters", result->nr_moved);
  output_add_number (builder, "copied-bytes", result->bytes_copied);
  output_add_number (builder, "file-size-before", result->file_size_before);
  output_add_number (builder, "file-size-after", result->file_size_after);
  output_add_number (builder, "disk-usage-before", result->allocated_before);
  output_add_number (builder, "disk-usage-after", result->allocated_after);
  json_builder_end_object (builder);
  output_json (builder);
}

/* Returns the exit status. */
static int
tell_end (const char *path, const struct ploop_compact_result *result)
{
  if (!result->interrupted)
    return EXIT_SUCCESS;
  fflush (stdout);
  fprintf (stderr, "ploop-img: %s: interrupted; it is sound and closed: "
           "compact it again to go on\n", path);
  return EXIT_INTERRUPTED;
}

static int
compact (const char *path, const struct ploop_compact_options *options,
         bool show_bar, struct ploop_compact_result *result, GError **error)
{
  struct bar bar = { .shown = show_bar, .percent = -1 };
  int r;

  catch_signals ();
  r = ploop_compact (path, options, on_progress, &bar, result, error);
  end_bar (&bar);
  return r;
}

/* ---- The subcommand ---------------------------------------------------- */

int
compact_run (const struct subcommand *self, int argc, char **argv)
{
  g_autofree char *output = NULL;
  gboolean dry_run = FALSE, progress = FALSE, quiet = FALSE, no_holes = FALSE;
  const GOptionEntry entries[] = {
    { "dry-run", 'n', 0, G_OPTION_ARG_NONE, &dry_run,
      "Say what would come back, changing nothing", NULL },
    { "no-holes", 0, 0, G_OPTION_ARG_NONE, &no_holes,
      "Make no holes in FILE, for old kernels", NULL },
    { "output", 0, 0, G_OPTION_ARG_STRING, &output,
      "Form of the output (default: human)", "human|json" },
    { "progress", 'p', 0, G_OPTION_ARG_NONE, &progress,
      "Show progress even if standard error is no terminal", NULL },
    { "quiet", 'q', 0, G_OPTION_ARG_NONE, &quiet,
      "Print nothing but errors", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct ploop_compact_options options = { 0 };
  struct ploop_compact_result result;
  enum output_format format;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int status;

  arguments = command_line_parse (self, entries, argc, argv, &status);
  if (arguments == NULL)
    return status;
  if (!output_parse_format (output, &format, &error))
    return report_usage_error (self, "%s", error->message);
  options.dry_run = dry_run;
  options.keep_holes_out = no_holes;
  options.log = quiet ? NULL : on_log;
  progress = progress || (!quiet && isatty (STDERR_FILENO));
  if (compact (arguments[0], &options, progress, &result, &error) == -1)
    return report_error (error);
  if (!quiet && format == OUTPUT_JSON)
    print_json (arguments[0], dry_run, &result);
  else if (!quiet)
    print_human (arguments[0], dry_run, &result);
  return tell_end (arguments[0], &result);
}
