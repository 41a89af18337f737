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

#include "ploop-core.h"
#include "ploop-img.h"

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

static void
print_finding (void *opaque G_GNUC_UNUSED, enum ploop_finding finding,
               const char *message)
{
  printf ("%s: %s\n", finding_names[finding], message);
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
check_human (const char *path, struct ploop_check_result *result,
             GError **error)
{
  if (ploop_check (path, print_finding, NULL, result, error) == -1)
    return -1;
  print_summary (result);
  return 0;
}

static void
add_finding (void *opaque, enum ploop_finding finding, const char *message)
{
  struct json_findings *findings = opaque;

  if (findings->nr_added == MAX_JSON_FINDINGS)
    return;
  findings->nr_added++;
  json_builder_begin_object (findings->builder);
  output_add_text (findings->builder, "kind", finding_names[finding]);
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

static int
check_json (const char *path, struct ploop_check_result *result,
            GError **error)
{
  g_autoptr (JsonBuilder) builder = json_builder_new ();
  struct json_findings findings = { .builder = builder };

  json_builder_begin_object (builder);
  output_add_text (builder, "file", path);
  json_builder_set_member_name (builder, "findings");
  json_builder_begin_array (builder);
  if (ploop_check (path, add_finding, &findings, result, error) == -1)
    return -1;
  json_builder_end_array (builder);
  add_summary (builder, result);
  json_builder_end_object (builder);
  output_json (builder);
  return 0;
}

int
check_run (const struct subcommand *self, int argc, char **argv)
{
  const GOptionEntry entries[] = {
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  struct ploop_check_result result;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int status;

  arguments = command_line_parse (self, entries, COMMON_OUTPUT | COMMON_QUIET, &common,
                                  argc, argv, &status);
  if (arguments == NULL)
    return status;
  if (common.quiet)
    status = ploop_check (arguments[0], NULL, NULL, &result, &error);
  else if (common.output == OUTPUT_JSON)
    status = check_json (arguments[0], &result, &error);
  else
    status = check_human (arguments[0], &result, &error);
  return status == -1 ? report_error (error) : exit_status (&result);
}
