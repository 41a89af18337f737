/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img compact: the library does it; here is what is said in the end. */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "ploop-core.h"
#include "ploop-img.h"

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

/* ---- The subcommand ---------------------------------------------------- */

int
compact_run (const struct subcommand *self, int argc, char **argv)
{
  gboolean dry_run = FALSE, no_holes = FALSE;
  const GOptionEntry entries[] = {
    { "dry-run", 'n', 0, G_OPTION_ARG_NONE, &dry_run,
      "Say what would come back, changing nothing", NULL },
    { "no-holes", 0, 0, G_OPTION_ARG_NONE, &no_holes,
      "Make no holes in FILE, for old kernels", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  struct ploop_compact_options options = { 0 };
  struct ploop_compact_result result;
  struct progress progress;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int r, status;

  arguments = command_line_parse (self, entries, COMMON_ALL, &common,
                                  argc, argv, &status);
  if (arguments == NULL)
    return status;
  options.dry_run = dry_run;
  options.keep_holes_out = no_holes;
  options.log = common.quiet ? NULL : report_log;
  progress_begin (&progress, &common);
  r = ploop_compact (arguments[0], &options, progress_step, &progress, &result,
                     &error);
  progress_end (&progress);
  if (r == -1)
    return report_error (error);
  if (!common.quiet && common.output == OUTPUT_JSON)
    print_json (arguments[0], dry_run, &result);
  else if (!common.quiet)
    print_human (arguments[0], dry_run, &result);
  return tell_end (arguments[0], &result);
}
