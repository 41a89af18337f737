/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What check --repair does beside checking: it reads its options, tells the plan before
 * anything is changed, and what came of it.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ploop-core.h"
#include "ploop-img.h"
#include "repair.h"

/* As many steps are in JSON at most: a hostile image can need millions. */
#define MAX_JSON_STEPS 10000

bool
repair_parse (struct repair *repair, GError **error)
{
  struct ploop_repair_options *options = &repair->options;
  const bool backs_up = repair->backup || repair->backup_file;

  if (repair->what && strcmp (repair->what, "leaks") != 0
      && strcmp (repair->what, "all") != 0)
    g_set_error (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
                 "--repair: '%s' is not known: use leaks or all", repair->what);
  else if (!repair->what && (backs_up || repair->no_backup || repair->dry_run))
    g_set_error (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
                 "--backup, --backup-file, --no-backup and --dry-run are of use only "
                 "with --repair");
  else if (backs_up && repair->no_backup)
    g_set_error (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
                 "--backup and --no-backup: give one of both");
  else {
    options->all = repair->what && strcmp (repair->what, "all") == 0;
    options->dry_run = repair->dry_run;
    options->backup = backs_up ? PLOOP_BACKUP_ALWAYS
                      : repair->no_backup ? PLOOP_BACKUP_NEVER
                                          : PLOOP_BACKUP_ERRORS;
    options->backup_path = repair->backup_file;
    return true;
  }
  return false;
}

void
repair_clear (struct repair *repair)
{
  g_free (repair->what);
  g_free (repair->backup_file);
  g_clear_pointer (&repair->steps, g_ptr_array_unref);
  ploop_repair_result_clear (&repair->result);
}

/* Of one file, each line is about that. */
static void
take_step (void *opaque, const char *file, const char *message)
{
  struct repair *repair = opaque;

  if (repair->is_told)
    printf ("repair: %s%s%s\n", strcmp (file, repair->path) == 0 ? "" : file,
            strcmp (file, repair->path) == 0 ? "" : ": ", message);
  else if (repair->steps->len < MAX_JSON_STEPS)
    g_ptr_array_add (repair->steps, g_strdup_printf ("%s: %s", file, message));
}

int
repair_run (struct repair *repair, const char *path,
            const struct common_options *common, GError **error)
{
  struct progress progress;
  int r;

  repair->path = path;
  repair->is_told = !common->quiet && common->output == OUTPUT_HUMAN;
  repair->steps = g_ptr_array_new_with_free_func (g_free);
  repair->options.log = common->quiet ? NULL : report_log;
  progress_begin (&progress, common);
  r = ploop_repair (path, &repair->options, take_step, repair, progress_step,
                    &progress, &repair->result, error);
  progress_end (&progress);
  for (guint i = 0; repair->is_told && i < repair->result.backups->len; i++)
    printf ("backup: %s\n",
            (const char *) g_ptr_array_index (repair->result.backups, i));
  return r;
}

/* ---- JSON -------------------------------------------------------------- */

static const char *
outcome (const struct repair *repair)
{
  return repair->options.dry_run        ? "dry-run"
         : repair->result.interrupted   ? "interrupted"
         : repair->result.changed       ? "repaired"
                                        : "nothing-to-do";
}

static void
add_texts (JsonBuilder *builder, const char *name, const GPtrArray *texts)
{
  json_builder_set_member_name (builder, name);
  json_builder_begin_array (builder);
  for (guint i = 0; i < texts->len; i++) {
    g_autofree char *valid =
      g_utf8_make_valid (g_ptr_array_index (texts, i), -1);

    json_builder_add_string_value (builder, valid);
  }
  json_builder_end_array (builder);
}

void
repair_add (const struct repair *repair, JsonBuilder *builder)
{
  const struct ploop_repair_result *result = &repair->result;

  json_builder_set_member_name (builder, "repair");
  json_builder_begin_object (builder);
  output_add_text (builder, "result", outcome (repair));
  add_texts (builder, "steps", repair->steps);
  add_texts (builder, "backups", result->backups);
  output_add_number (builder, "separated-clusters", result->nr_separated);
  output_add_number (builder, "zeroed-clusters", result->nr_zeroed);
  output_add_number (builder, "cleared-entries", result->nr_cleared);
  output_add_number (builder, "given-back-clusters", result->nr_given_back);
  output_add_number (builder, "left-alone", result->nr_left);
  json_builder_end_object (builder);
}
