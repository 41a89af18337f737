/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img resize: the library does it; here is how sizes are read, and what is said
 * in the end.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "ploop-core.h"
#include "ploop-img.h"

static void
print_human (const char *path, bool dry_run,
             const struct ploop_resize_result *result)
{
  g_autofree char *from = size_format_exact (result->old_size);
  g_autofree char *to = size_format_exact (result->new_size);

  printf ("%s: %s %s, was %s\n", path, dry_run ? "would have" : "has", to, from);
  if (result->nr_moved > 0)
    printf ("moved: %" PRIu64 " clusters, to make room for a longer BAT\n",
            result->nr_moved);
  if (result->nr_dropped > 0)
    printf ("dropped: %" PRIu64 " clusters behind the end\n",
            result->nr_dropped);
}

static void
print_json (const char *path, bool dry_run,
            const struct ploop_resize_result *result)
{
  g_autoptr (JsonBuilder) builder = json_builder_new ();

  json_builder_begin_object (builder);
  output_add_text (builder, "file", path);
  output_add_text (builder, "result",
                   dry_run ? "dry-run"
                   : result->interrupted ? "interrupted" : "resized");
  output_add_number (builder, "old-size", result->old_size);
  output_add_number (builder, "new-size", result->new_size);
  output_add_number (builder, "moved-clusters", result->nr_moved);
  output_add_number (builder, "copied-bytes", result->bytes_copied);
  output_add_number (builder, "dropped-clusters", result->nr_dropped);
  json_builder_end_object (builder);
  output_json (builder);
}

/* Returns the exit status. */
static int
tell (const char *path, const struct common_options *common, bool dry_run,
      const struct ploop_resize_result *result)
{
  if (!common->quiet && common->output == OUTPUT_JSON)
    print_json (path, dry_run, result);
  else if (!common->quiet && !result->interrupted)
    print_human (path, dry_run, result);
  if (!result->interrupted)
    return EXIT_SUCCESS;
  fflush (stdout);
  fprintf (stderr, "ploop-img: %s: interrupted; it is sound and has its old size\n",
           path);
  return EXIT_INTERRUPTED;
}

int
resize_run (const struct subcommand *self, int argc, char **argv)
{
  gboolean shrink = FALSE, discard = FALSE, no_holes = FALSE, dry_run = FALSE;
  const GOptionEntry entries[] = {
    { "shrink", 0, 0, G_OPTION_ARG_NONE, &shrink,
      "Clusters behind the new end may go if they are zeros", NULL },
    { "discard", 0, 0, G_OPTION_ARG_NONE, &discard,
      "Lose what is behind the new end, whatever it is", NULL },
    { "no-holes", 0, 0, G_OPTION_ARG_NONE, &no_holes,
      "Make no holes in the file, for old kernels", NULL },
    { "dry-run", 'n', 0, G_OPTION_ARG_NONE, &dry_run,
      "Say what would be done, changing nothing", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct ploop_resize_options options = { 0 };
  struct ploop_resize_result result;
  struct common_options common;
  struct progress progress;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  uint64_t size;
  int r, status;

  arguments = command_line_parse (self, entries, COMMON_ALL, &common, argc, argv,
                                  &status);
  if (arguments == NULL)
    return status;
  if (shrink && discard)
    return report_usage_error (self, "--shrink and --discard: give one of both");
  if (!size_parse (arguments[1], &size, &error))
    return report_usage_error (self, "%s", error->message);
  options.shrink = shrink;
  options.discard = discard;
  options.keep_holes_out = no_holes;
  options.dry_run = dry_run;
  options.log = common.quiet ? NULL : report_log;
  progress_begin (&progress, &common);
  r = ploop_resize (arguments[0], size, &options, progress_step, &progress,
                    &result, &error);
  progress_end (&progress);
  return r == -1 ? report_error (error)
                 : tell (arguments[0], &common, dry_run, &result);
}
