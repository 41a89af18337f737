/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img merge, and snapshot delete, which is that most of the time: how deltas
 * become one, and what is said of it.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "ploop-core.h"
#include "ploop-img.h"

static void
print_human (const char *path, bool dry_run,
             const struct ploop_merge_result *result)
{
  g_autofree char *copied =
    size_format (dry_run ? result->bytes_to_copy : result->bytes_copied);

  printf ("%s: %s %u deltas into another, copying %s at most\n", path,
          dry_run ? "would merge" : "merged", result->nr_deltas, copied);
}

static void
print_json (const char *path, bool dry_run, const char *done,
            const struct ploop_merge_result *result)
{
  g_autoptr (JsonBuilder) builder = json_builder_new ();

  json_builder_begin_object (builder);
  output_add_text (builder, "file", path);
  output_add_text (builder, "result",
                   dry_run ? "dry-run"
                   : result->interrupted ? "interrupted" : done);
  output_add_number (builder, "merged-deltas", result->nr_deltas);
  output_add_number (builder, "bytes-to-copy", result->bytes_to_copy);
  output_add_number (builder, "copied-bytes", result->bytes_copied);
  json_builder_end_object (builder);
  output_json (builder);
}

/* DONE: what JSON calls it.  Returns the exit status. */
static int
tell (const char *path, const struct common_options *common, bool dry_run,
      const char *done, const struct ploop_merge_result *result)
{
  if (!common->quiet && common->output == OUTPUT_JSON)
    print_json (path, dry_run, done, result);
  else if (!common->quiet && !result->interrupted && result->nr_deltas == 0)
    printf ("%s: %sremoved a delta that nothing rests on\n", path,
            dry_run ? "would have " : "");
  else if (!common->quiet && !result->interrupted)
    print_human (path, dry_run, result);
  if (!result->interrupted)
    return EXIT_SUCCESS;
  fflush (stdout);
  fprintf (stderr, "ploop-img: %s: interrupted; the disk is sound, the snapshots "
           "that were to go are spoilt: do the same again to complete it\n", path);
  return EXIT_INTERRUPTED;
}

/* ---- merge ------------------------------------------------------------- */

int
merge_run (const struct subcommand *self, int argc, char **argv)
{
  g_autofree char *snapshot = NULL, *into = NULL;
  g_auto (GStrv) bases = NULL, arguments = NULL;
  gboolean all = FALSE, dry_run = FALSE;
  const GOptionEntry entries[] = {
    { "snapshot", 0, 0, G_OPTION_ARG_STRING, &snapshot,
      "The highest delta to be merged (default: the top)", "GUID" },
    { "into", 0, 0, G_OPTION_ARG_STRING, &into,
      "The lowest one (default: the one below the highest)", "GUID" },
    { "all", 'a', 0, G_OPTION_ARG_NONE, &all, "The lowest one is the base",
      NULL },
    { "base", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &bases,
      "DISK is an image on top of this (again for those below)", "FILE" },
    { "dry-run", 'n', 0, G_OPTION_ARG_NONE, &dry_run,
      "Say what would be done, changing nothing", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct ploop_merge_options options = { 0 };
  struct ploop_merge_result result;
  struct common_options common;
  struct progress progress;
  g_autoptr (GError) error = NULL;
  int r, status;

  arguments = command_line_parse (self, entries, COMMON_ALL, &common, argc, argv,
                                  &status);
  if (arguments == NULL)
    return status;
  options.snapshot = snapshot;
  options.into = into;
  options.all = all;
  options.bases = (const char *const *) bases;
  options.dry_run = dry_run;
  options.log = common.quiet ? NULL : report_log;
  progress_begin (&progress, &common);
  r = ploop_merge (arguments[0], &options, progress_step, &progress, &result,
                   &error);
  progress_end (&progress);
  if (r == -1)
    return report_error (error);
  return tell (arguments[0], &common, dry_run, "merged", &result);
}

/* ---- snapshot delete --------------------------------------------------- */

int
snapshot_delete_run (const struct subcommand *self, int argc, char **argv)
{
  gboolean dry_run = FALSE;
  const GOptionEntry entries[] = {
    { "dry-run", 'n', 0, G_OPTION_ARG_NONE, &dry_run,
      "Say what would be done, changing nothing", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct ploop_delete_snapshot_options options = { 0 };
  struct ploop_merge_result result;
  struct common_options common;
  struct progress progress;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int r, status;

  arguments = command_line_parse (self, entries, COMMON_ALL, &common, argc, argv,
                                  &status);
  if (arguments == NULL)
    return status;
  options.dry_run = dry_run;
  options.log = common.quiet ? NULL : report_log;
  progress_begin (&progress, &common);
  r = ploop_delete_snapshot (arguments[0], arguments[1], &options, progress_step,
                             &progress, &result, &error);
  progress_end (&progress);
  if (r == -1)
    return report_error (error);
  return tell (arguments[0], &common, dry_run, "deleted", &result);
}
