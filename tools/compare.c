/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img compare: do two disks read the same?  The library does it; here is what
 * is said, and an exit status like those of cmp and qemu-img compare.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "ploop-core.h"
#include "ploop-img.h"

enum {
  EXIT_SAME = 0,
  EXIT_DIFFERENT = 1,
  EXIT_TROUBLE = 2,
};

static void
print_human (char *const *names, bool strict,
             const struct ploop_compare_result *result)
{
  if (result->same)
    printf ("%s and %s are the same\n", names[0], names[1]);
  else if (strict && result->sizes[0] != result->sizes[1])
    printf ("%s has %" PRIu64 " bytes, and %s has %" PRIu64 "\n", names[0],
            result->sizes[0], names[1], result->sizes[1]);
  else
    printf ("%s and %s differ from byte %" PRIu64 " on\n", names[0], names[1],
            result->offset);
}

static void
print_json (char *const *names, const struct ploop_compare_result *result)
{
  g_autoptr (JsonBuilder) builder = json_builder_new ();

  json_builder_begin_object (builder);
  output_add_text (builder, "file", names[0]);
  output_add_text (builder, "other", names[1]);
  output_add_text (builder, "result",
                   result->interrupted ? "interrupted"
                   : result->same      ? "same"
                                       : "different");
  if (!result->same)
    output_add_number (builder, "offset", result->offset);
  output_add_number (builder, "size", result->sizes[0]);
  output_add_number (builder, "other-size", result->sizes[1]);
  output_add_number (builder, "read-bytes", result->bytes_read);
  json_builder_end_object (builder);
  output_json (builder);
}

/* Returns the exit status. */
static int
tell (char *const *names, bool strict, const struct common_options *common,
      const struct ploop_compare_result *result)
{
  if (!common->quiet && common->output == OUTPUT_JSON)
    print_json (names, result);
  else if (!common->quiet && !result->interrupted)
    print_human (names, strict, result);
  if (!result->interrupted)
    return result->same ? EXIT_SAME : EXIT_DIFFERENT;
  fflush (stdout);
  fprintf (stderr, "ploop-img: interrupted: no difference so far\n");
  return EXIT_TROUBLE;
}

/* ---- The subcommand ---------------------------------------------------- */

int
compare_run (const struct subcommand *self, int argc, char **argv)
{
  g_autofree char *snapshot = NULL, *other_snapshot = NULL;
  gboolean strict = FALSE;
  const GOptionEntry entries[] = {
    { "snapshot", 0, 0, G_OPTION_ARG_STRING, &snapshot,
      "Compare this snapshot of DISK", "GUID" },
    { "other-snapshot", 0, 0, G_OPTION_ARG_STRING, &other_snapshot,
      "Compare this snapshot of OTHER", "GUID" },
    { "strict", 's', 0, G_OPTION_ARG_NONE, &strict,
      "Disks of different sizes are different", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  struct ploop_compare_options options = { .log = report_log };
  struct ploop_compare_result result;
  struct progress progress;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int r, status;

  arguments = command_line_parse (self, entries, COMMON_ALL, &common,
                                  argc, argv, &status);
  if (arguments == NULL)
    return status == EXIT_SUCCESS ? status : EXIT_TROUBLE;
  options.snapshots[0] = snapshot;
  options.snapshots[1] = other_snapshot;
  options.strict = strict;
  if (common.quiet)
    options.log = NULL;
  progress_begin (&progress, &common);
  r = ploop_compare (arguments[0], arguments[1], &options, progress_step,
                     &progress, &result, &error);
  progress_end (&progress);
  if (r == 0)
    return tell (arguments, strict, &common, &result);
  report_error (error);
  return EXIT_TROUBLE;
}
