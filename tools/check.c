/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img check: every finding of the library's check, a summary, and an
 * exit status that scripts can tell damage from leaks by; the numbers are
 * those of qemu-img check.
 *
 * Findings are printed as they come, but JSON only when the check has ended:
 * half a document is of no use to anybody.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ploop-core.h"
#include "ploop-img.h"
#include "repair.h"

/* A hostile image can have a finding for each of millions of BAT entries. */
#define MAX_JSON_FINDINGS 10000

enum {
  EXIT_CLEAN = 0,
  EXIT_ERRORS = 2,              /* 1, EXIT_FAILURE: could not be checked */
  EXIT_LEAKS = 3,
};

static const char *const finding_names[] = {
  [PLOOP_FINDING_ERROR] = "error",
  [PLOOP_FINDING_LEAK] = "leak",
  [PLOOP_FINDING_NOTE] = "note",
};

struct json_findings {
  JsonBuilder *builder;         /* with the array of findings open */
  unsigned nr_added;
};

static int
exit_status (const struct ploop_check_result *result)
{
  if (result->nr_errors > 0)
    return EXIT_ERRORS;
  if (result->nr_leaks > 0)
    return EXIT_LEAKS;
  return EXIT_CLEAN;
}

static const char *
verdict (const struct ploop_check_result *result)
{
  switch (exit_status (result)) {
  case EXIT_ERRORS:
    return "errors";
  case EXIT_LEAKS:
    return "leaks";
  default:
    return "clean";
  }
}

/* OPAQUE is the name that was given.  Of one file, each line is about that. */
static void
print_finding (void *opaque, const char *file, enum ploop_finding finding,
               const char *message)
{
  if (strcmp (opaque, file) == 0)
    printf ("%s: %s\n", finding_names[finding], message);
  else
    printf ("%s: %s: %s\n", finding_names[finding], file, message);
}

static void
print_summary (const struct ploop_check_result *result)
{
  printf ("clusters: %" PRIu64 ", of which %" PRIu64 " allocated, %" PRIu64
          " leaked\n",
          result->nr_clusters, result->nr_allocated,
          result->nr_leaked_clusters);
  if (result->nr_free_clusters > 0)
    printf ("free: %" PRIu64 " clusters of the file, which take no space\n",
            result->nr_free_clusters);
  printf ("found: errors %" PRIu64 ", leaks %" PRIu64 ", notes %" PRIu64 "\n",
          result->nr_errors, result->nr_leaks, result->nr_notes);
  printf ("result: %s\n", verdict (result));
}

static int
check_human (char *path, bool allow_outside, struct ploop_check_result *result,
             GError **error)
{
  if (ploop_check_disk (path, allow_outside, print_finding, path, result, error)
      == -1)
    return -1;
  print_summary (result);
  return 0;
}

static void
add_finding (void *opaque, const char *file, enum ploop_finding finding,
             const char *message)
{
  struct json_findings *findings = opaque;

  if (findings->nr_added == MAX_JSON_FINDINGS)
    return;
  findings->nr_added++;
  json_builder_begin_object (findings->builder);
  output_add_text (findings->builder, "kind", finding_names[finding]);
  output_add_text (findings->builder, "file", file);
  output_add_text (findings->builder, "message", message);
  json_builder_end_object (findings->builder);
}

static void
add_summary (JsonBuilder *builder, const struct ploop_check_result *result)
{
  output_add_text (builder, "result", verdict (result));
  output_add_number (builder, "errors", result->nr_errors);
  output_add_number (builder, "leaks", result->nr_leaks);
  output_add_number (builder, "notes", result->nr_notes);
  output_add_number (builder, "leaked-clusters", result->nr_leaked_clusters);
  output_add_number (builder, "free-clusters", result->nr_free_clusters);
  output_add_number (builder, "allocated-clusters", result->nr_allocated);
  output_add_number (builder, "clusters", result->nr_clusters);
}

/* REPAIR: what was done before, or NULL. */
static int
check_json (const char *path, bool allow_outside, const struct repair *repair,
            struct ploop_check_result *result, GError **error)
{
  g_autoptr (JsonBuilder) builder = json_builder_new ();
  struct json_findings findings = { .builder = builder };

  json_builder_begin_object (builder);
  output_add_text (builder, "file", path);
  json_builder_set_member_name (builder, "findings");
  json_builder_begin_array (builder);
  if (ploop_check_disk (path, allow_outside, add_finding, &findings, result,
                        error) == -1)
    return -1;
  json_builder_end_array (builder);
  add_summary (builder, result);
  if (repair)
    repair_add (repair, builder);
  json_builder_end_object (builder);
  output_json (builder);
  return 0;
}

/* With REPAIR, the first of two: what is wrong.  In JSON there is one object, of the
 * second one.  Returns 0 or -1.
 */
static int
check (char *path, bool allow_outside, const struct common_options *common,
       const struct repair *repair, bool is_first,
       struct ploop_check_result *result, GError **error)
{
  if (common->quiet || (is_first && common->output == OUTPUT_JSON))
    return ploop_check_disk (path, allow_outside, NULL, NULL, result, error);
  if (common->output == OUTPUT_JSON)
    return check_json (path, allow_outside, repair, result, error);
  return check_human (path, allow_outside, result, error);
}

/* Returns the exit status. */
static int
check_and_repair (char *path, bool allow_outside,
                  const struct common_options *common, struct repair *repair)
{
  struct ploop_check_result result;
  g_autoptr (GError) error = NULL;

  if (check (path, allow_outside, common, NULL, true, &result, &error) == -1
      || repair_run (repair, path, common, &error) == -1
      || ((repair->result.changed || common->output == OUTPUT_JSON)
          && !(repair->options.dry_run && common->output == OUTPUT_HUMAN)
          && check (path, allow_outside, common, repair, false, &result, &error)
               == -1))
    return report_error (error);
  if (repair->result.interrupted)
    fprintf (stderr, "ploop-img: %s: interrupted: not repaired\n", path);
  return exit_status (&result);
}

int
check_run (const struct subcommand *self, int argc, char **argv)
{
  g_auto (repair_t) repair = { .what = NULL };
  gboolean allow_outside = FALSE;
  const GOptionEntry entries[] = {
    { "repair", 'r', 0, G_OPTION_ARG_STRING, &repair.what,
      "Repair what is found", "leaks|all" },
    { "dry-run", 'n', 0, G_OPTION_ARG_NONE, &repair.dry_run,
      "Only say what would be repaired", NULL },
    { "backup", 0, 0, G_OPTION_ARG_NONE, &repair.backup,
      "Keep what is changed in FILE.backup (default: if there are errors)", NULL },
    { "backup-file", 0, 0, G_OPTION_ARG_FILENAME, &repair.backup_file,
      "Keep it there", "FILE" },
    { "no-backup", 0, 0, G_OPTION_ARG_NONE, &repair.no_backup,
      "Do not keep it", NULL },
    { "allow-outside", 0, 0, G_OPTION_ARG_NONE, &allow_outside,
      "The descriptor may name files outside its directory", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  struct ploop_check_result result;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int status;

  arguments = command_line_parse (self, entries, COMMON_ALL, &common, argc, argv,
                                  &status);
  if (arguments == NULL)
    return status;
  if (!repair_parse (&repair, &error))
    return report_usage_error (self, "%s", error->message);
  if (repair.what && allow_outside)
    return report_usage_error (self, "--allow-outside is only for looking: with "
                               "--repair, repair such images one by one");
  if (repair.what)
    return check_and_repair (arguments[0], allow_outside, &common, &repair);
  status = check (arguments[0], allow_outside, &common, NULL, false, &result,
                  &error);
  return status == -1 ? report_error (error) : exit_status (&result);
}
