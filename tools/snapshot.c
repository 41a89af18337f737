/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img snapshot create, delete, switch and mark-temporary: what the library does
 * to the tree of a disk's snapshots, and what is said of it.
 */

#include <stdio.h>
#include <stdlib.h>

#include "ploop-core.h"
#include "ploop-img.h"

/* DONE as a result in JSON, or as the past tense for people. */
static void
print_result (const char *path, const struct common_options *common,
              bool dry_run, const char *guid_name, const char *guid,
              const char *done, const char *sentence)
{
  g_autoptr (JsonBuilder) builder = NULL;

  if (common->quiet)
    return;
  if (common->output == OUTPUT_HUMAN) {
    printf ("%s: %s%s\n", path, dry_run ? "would be: " : "", sentence);
    return;
  }
  builder = json_builder_new ();
  json_builder_begin_object (builder);
  output_add_text (builder, "file", path);
  output_add_text (builder, "result", dry_run ? "dry-run" : done);
  if (guid)
    output_add_text (builder, guid_name, guid);
  json_builder_end_object (builder);
  output_json (builder);
}

/* ---- create ------------------------------------------------------------ */

int
snapshot_create_run (const struct subcommand *self, int argc, char **argv)
{
  g_autofree char *guid = NULL, *taken = NULL, *sentence = NULL;
  gboolean temporary = FALSE, dry_run = FALSE;
  const GOptionEntry entries[] = {
    { "guid", 0, 0, G_OPTION_ARG_STRING, &guid,
      "What the snapshot is called (default: a random one)", "GUID" },
    { "temporary", 0, 0, G_OPTION_ARG_NONE, &temporary,
      "Mark it as to be deleted soon", NULL },
    { "dry-run", 'n', 0, G_OPTION_ARG_NONE, &dry_run,
      "Check whether it can be done, changing nothing", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct ploop_create_snapshot_options options = { 0 };
  struct common_options common;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int status;

  arguments = command_line_parse (self, entries, COMMON_OUTPUT | COMMON_QUIET,
                                  &common, argc, argv, &status);
  if (arguments == NULL)
    return status;
  options.guid = guid;
  options.temporary = temporary;
  options.dry_run = dry_run;
  options.log = common.quiet ? NULL : report_log;
  if (ploop_create_snapshot (arguments[0], &options, &taken, &error) == -1)
    return report_error (error);
  sentence = g_strdup_printf ("snapshot %s taken", taken);
  print_result (arguments[0], &common, dry_run, "snapshot", taken, "created",
                sentence);
  return EXIT_SUCCESS;
}

/* ---- switch ------------------------------------------------------------ */

int
snapshot_switch_run (const struct subcommand *self, int argc, char **argv)
{
  g_autofree char *kept = NULL, *sentence = NULL;
  gboolean discard = FALSE, keep = FALSE, dry_run = FALSE;
  const GOptionEntry entries[] = {
    { "discard", 0, 0, G_OPTION_ARG_NONE, &discard,
      "Lose what was written since the last snapshot", NULL },
    { "keep", 0, 0, G_OPTION_ARG_NONE, &keep,
      "Keep what was written since as a snapshot of its own", NULL },
    { "dry-run", 'n', 0, G_OPTION_ARG_NONE, &dry_run,
      "Check whether it can be done, changing nothing", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct ploop_switch_options options = { 0 };
  struct common_options common;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int status;

  arguments = command_line_parse (self, entries, COMMON_OUTPUT | COMMON_QUIET,
                                  &common, argc, argv, &status);
  if (arguments == NULL)
    return status;
  if (discard && keep)
    return report_usage_error (self, "--discard and --keep: give one of both");
  options.discard = discard;
  options.keep = keep;
  options.dry_run = dry_run;
  options.log = common.quiet ? NULL : report_log;
  if (ploop_switch_snapshot (arguments[0], arguments[1], &options, &kept,
                             &error) == -1)
    return report_error (error);
  sentence = kept ? g_strdup_printf ("switched to %s; what was written since the "
                                     "last snapshot is kept as %s", arguments[1],
                                     kept)
                  : g_strdup_printf ("switched to %s", arguments[1]);
  print_result (arguments[0], &common, dry_run, "kept", kept, "switched",
                sentence);
  return EXIT_SUCCESS;
}

/* ---- mark-temporary ---------------------------------------------------- */

int
snapshot_mark_run (const struct subcommand *self, int argc, char **argv)
{
  gboolean off = FALSE, dry_run = FALSE;
  const GOptionEntry entries[] = {
    { "off", 0, 0, G_OPTION_ARG_NONE, &off, "Take the mark away", NULL },
    { "dry-run", 'n', 0, G_OPTION_ARG_NONE, &dry_run,
      "Check whether it can be done, changing nothing", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  g_autoptr (GError) error = NULL;
  g_autofree char *sentence = NULL;
  g_auto (GStrv) arguments = NULL;
  int status;

  arguments = command_line_parse (self, entries, COMMON_OUTPUT | COMMON_QUIET,
                                  &common, argc, argv, &status);
  if (arguments == NULL)
    return status;
  if (ploop_mark_snapshot (arguments[0], arguments[1], !off, dry_run, &error) == -1)
    return report_error (error);
  sentence = g_strdup_printf ("%s is %stemporary", arguments[1],
                              off ? "no longer " : "");
  print_result (arguments[0], &common, dry_run, "snapshot", arguments[1],
                off ? "unmarked" : "marked", sentence);
  return EXIT_SUCCESS;
}
