/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img convert: copy a disk, with all its deltas, into another form.  The
 * library does it.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ploop-core.h"
#include "ploop-img.h"

static void
print_human (char *const *names, const struct ploop_convert_result *result)
{
  g_autofree char *size = size_format_exact (result->size);
  g_autofree char *written = size_format (result->bytes_written);

  printf ("%s: copied to %s: %s, of which %s are data\n", names[0], names[1],
          size, written);
}

static void
print_json (char *const *names, const struct ploop_convert_result *result)
{
  g_autoptr (JsonBuilder) builder = json_builder_new ();

  json_builder_begin_object (builder);
  output_add_text (builder, "file", names[0]);
  output_add_text (builder, "target", names[1]);
  output_add_text (builder, "result",
                   result->interrupted ? "interrupted" : "converted");
  output_add_number (builder, "size", result->size);
  output_add_number (builder, "read-bytes", result->bytes_read);
  output_add_number (builder, "written-bytes", result->bytes_written);
  json_builder_end_object (builder);
  output_json (builder);
}

/* Returns the exit status. */
static int
tell (char *const *names, const struct common_options *common,
      const struct ploop_convert_result *result)
{
  if (!common->quiet && common->output == OUTPUT_JSON)
    print_json (names, result);
  else if (!common->quiet && !result->interrupted)
    print_human (names, result);
  if (!result->interrupted)
    return EXIT_SUCCESS;
  fflush (stdout);
  fprintf (stderr, "ploop-img: %s: interrupted: it was not made\n", names[1]);
  return EXIT_INTERRUPTED;
}

/* ---- The subcommand ---------------------------------------------------- */

int
convert_run (const struct subcommand *self, int argc, char **argv)
{
  g_autofree char *snapshot = NULL, *form = NULL;
  g_autofree char *version = NULL, *cluster_size = NULL, *size = NULL;
  gboolean force = FALSE, is_zero = FALSE;
  const GOptionEntry entries[] = {
    { "format", 'O', 0, G_OPTION_ARG_STRING, &form,
      "What TARGET becomes, if it is a file (default: ploop)", "ploop|raw" },
    { "version", 0, 0, G_OPTION_ARG_STRING, &version,
      "Version of the format (default: 2)", "1|2" },
    { "cluster-size", 0, 0, G_OPTION_ARG_STRING, &cluster_size,
      "A power of two from 32K to 64M (default: 1M)", "SIZE" },
    { "size", 0, 0, G_OPTION_ARG_STRING, &size,
      "Size of the copy, if larger than DISK", "SIZE" },
    { "snapshot", 0, 0, G_OPTION_ARG_STRING, &snapshot,
      "Copy this snapshot of DISK", "GUID" },
    { "target-is-zero", 0, 0, G_OPTION_ARG_NONE, &is_zero,
      "TARGET, an export, reads as zeros already", NULL },
    { "force", 0, 0, G_OPTION_ARG_NONE, &force,
      "Replace TARGET if it is a file that exists", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  struct ploop_convert_options options = { 0 };
  struct ploop_convert_result result;
  struct progress progress;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int r, status;

  arguments = command_line_parse (self, entries, COMMON_ALL, &common,
                                  argc, argv, &status);
  if (arguments == NULL)
    return status;
  if (!format_parse_form (form, &options.raw, &error)
      || !format_parse_version (version, &options.version, &error)
      || !format_parse_cluster_size (cluster_size, &options.cluster_size,
                                     &error)
      || (size != NULL && !size_parse (size, &options.size, &error)))
    return report_usage_error (self, "%s", error->message);
  if (size != NULL && options.size == 0)
    return report_usage_error (self, "--size: must not be 0");
  if (strcmp (arguments[1], "-") == 0 && !common.quiet
      && common.output == OUTPUT_JSON)
    return report_usage_error (self, "--output=json: standard output is where "
                               "the disk goes: use --quiet");
  if (strcmp (arguments[1], "-") == 0)
    common.quiet = true;
  options.snapshot = snapshot;
  options.overwrite = force;
  options.target_is_zero = is_zero;
  options.log = common.quiet ? NULL : report_log;
  progress_begin (&progress, &common);
  r = ploop_convert (arguments[0], arguments[1], &options, progress_step,
                     &progress, &result, &error);
  progress_end (&progress);
  return r == -1 ? report_error (error)
                 : tell (arguments, &common, &result);
}
