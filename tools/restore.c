/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img descriptor restore: make the DiskDescriptor.xml of a disk anew, from its
 * files.  The library does it, and says why; here that is printed.
 */

#include <stdio.h>
#include <stdlib.h>

#include "ploop-core.h"
#include "ploop-img.h"

struct restore {
  const char *directory;
  bool dry_run;
  struct common_options common;
  GPtrArray *reasons;           /* of char * */
};

static const char *const confidence_names[] = {
  [PLOOP_CONFIDENCE_GIVEN] = "given",
  [PLOOP_CONFIDENCE_CERTAIN] = "certain",
  [PLOOP_CONFIDENCE_LIKELY] = "likely",
};

/* People read them as they come, on standard error after a dry run: there standard
 * output has the descriptor.
 */
static void
take_reason (void *opaque, const char *reason)
{
  struct restore *restore = opaque;

  if (restore->common.output == OUTPUT_JSON)
    g_ptr_array_add (restore->reasons, g_strdup (reason));
  else if (!restore->common.quiet)
    fprintf (restore->dry_run ? stderr : stdout, "%s\n", reason);
}

/* ---- For people -------------------------------------------------------- */

static void
print_human (const struct restore *restore,
             const struct ploop_restore_result *result)
{
  FILE *people = restore->dry_run ? stderr : stdout;

  for (guint i = 0; i < result->images->len; i++) {
    const struct ploop_restored_image *image =
      g_ptr_array_index (result->images, i);

    fprintf (people, "%s %s: %s%s%s%s\n", image->guid,
             image->is_top ? "(top)" : "(snapshot)", image->file,
             image->is_raw ? ", raw" : "", image->parent ? ", on " : ", base",
             image->parent ? image->parent : "");
  }
  fprintf (people, "order: %s\n", confidence_names[result->confidence]);
  if (result->backup)
    fprintf (people, "%s: restored; the old descriptor is %s\n",
             restore->directory, result->backup);
  else if (!restore->dry_run)
    fprintf (people, "%s: restored\n", restore->directory);
}

/* ---- For programs ------------------------------------------------------ */

static void
add_images (JsonBuilder *builder, const GPtrArray *images)
{
  json_builder_set_member_name (builder, "images");
  json_builder_begin_array (builder);
  for (guint i = 0; i < images->len; i++) {
    const struct ploop_restored_image *image = g_ptr_array_index (images, i);

    json_builder_begin_object (builder);
    output_add_text (builder, "guid", image->guid);
    if (image->parent)
      output_add_text (builder, "parent", image->parent);
    output_add_text (builder, "file", image->file);
    output_add_text (builder, "type", image->is_raw ? "raw" : "ploop");
    json_builder_set_member_name (builder, "top");
    json_builder_add_boolean_value (builder, image->is_top);
    json_builder_end_object (builder);
  }
  json_builder_end_array (builder);
}

static void
add_reasons (JsonBuilder *builder, const GPtrArray *reasons)
{
  json_builder_set_member_name (builder, "reasons");
  json_builder_begin_array (builder);
  for (guint i = 0; i < reasons->len; i++) {
    g_autofree char *valid =
      g_utf8_make_valid (g_ptr_array_index (reasons, i), -1);

    json_builder_add_string_value (builder, valid);
  }
  json_builder_end_array (builder);
}

static void
print_json (const struct restore *restore,
            const struct ploop_restore_result *result)
{
  g_autoptr (JsonBuilder) builder = json_builder_new ();

  json_builder_begin_object (builder);
  output_add_text (builder, "directory", restore->directory);
  output_add_text (builder, "result",
                   restore->dry_run ? "dry-run" : "restored");
  output_add_text (builder, "confidence",
                   confidence_names[result->confidence]);
  add_images (builder, result->images);
  add_reasons (builder, restore->reasons);
  output_add_text (builder, "xml", result->xml);
  if (result->backup)
    output_add_text (builder, "backup", result->backup);
  json_builder_end_object (builder);
  output_json (builder);
}

/* ---- The subcommand ---------------------------------------------------- */

/* Without a result there is no object; but the reasons say what was not clear. */
static int
tell_failure (const struct restore *restore, const GError *error)
{
  for (guint i = 0; !restore->common.quiet && i < restore->reasons->len; i++)
    fprintf (stderr, "%s\n",
             (const char *) g_ptr_array_index (restore->reasons, i));
  return report_error (error);
}

/* What was found, or is guessed. */
static void
tell (const struct restore *restore, const struct ploop_restore_result *result)
{
  if (restore->common.quiet)
    return;
  if (restore->common.output == OUTPUT_JSON)
    print_json (restore, result);
  else {
    print_human (restore, result);
    if (restore->dry_run)
      fputs (result->xml, stdout);
  }
}

/* A dry run ends as what it tries would. */
static int
tell_result (const struct restore *restore,
             const struct ploop_restore_result *result)
{
  g_autoptr (GError) error = NULL;

  tell (restore, result);
  if (!result->refusal)
    return EXIT_SUCCESS;
  g_set_error (&error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT, "%s: %s",
               restore->directory, result->refusal);
  return report_error (error);
}

static int
run (struct restore *restore, char *const *files)
{
  const struct ploop_restore_options options = {
    .files = (const char *const *) files,
    .dry_run = restore->dry_run,
    .reason = take_reason,
    .reason_opaque = restore,
  };
  struct ploop_restore_result result;
  g_autoptr (GError) error = NULL;
  int status = EXIT_SUCCESS;

  restore->reasons = g_ptr_array_new_with_free_func (g_free);
  if (ploop_restore_descriptor (restore->directory, &options, &result, &error)
      == -1)
    status = tell_failure (restore, error);
  else {
    status = tell_result (restore, &result);
    ploop_restore_result_clear (&result);
  }
  g_ptr_array_unref (restore->reasons);
  return status;
}

int
descriptor_restore_run (const struct subcommand *self, int argc, char **argv)
{
  g_auto (GStrv) files = NULL, arguments = NULL;
  gboolean dry_run = FALSE;
  const GOptionEntry entries[] = {
    { "file", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &files,
      "A file of the disk: once for each, base first", "FILE" },
    { "dry-run", 'n', 0, G_OPTION_ARG_NONE, &dry_run,
      "Print the descriptor instead, and change nothing", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct restore restore = { 0 };
  int status;

  arguments = command_line_parse (self, entries, COMMON_OUTPUT | COMMON_QUIET,
                                  &restore.common, argc, argv, &status);
  if (arguments == NULL)
    return status;
  restore.directory = arguments[0];
  restore.dry_run = dry_run;
  return run (&restore, files);
}
