/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img bitmap list, add, remove, dump and merge: the library does it; here is
 * what is said of it.
 *
 * A bitmap can mark millions of ranges, so they are printed as they come, in both
 * forms.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "ploop-core.h"
#include "ploop-img.h"

static void
set_log (struct ploop_bitmap_options *options,
         const struct common_options *common)
{
  options->log = common->quiet ? NULL : report_log;
}

/* ---- list -------------------------------------------------------------- */

static const char *
state_name (const struct ploop_bitmap *bitmap)
{
  return bitmap->is_stale ? "stale" : "valid";
}

static void
list_human (const char *path, const GPtrArray *list)
{
  if (list->len == 0)
    printf ("%s: no bitmaps\n", path);
  else
    printf ("%-36s  %11s  %10s  %10s  %s\n", "UUID", "GRANULARITY", "DIRTY",
            "OF", "STATE");
  for (guint i = 0; i < list->len; i++) {
    const struct ploop_bitmap *bitmap = g_ptr_array_index (list, i);
    g_autofree char *granularity = size_format (bitmap->granularity);
    g_autofree char *dirty = size_format (bitmap->nr_dirty);
    g_autofree char *size = size_format (bitmap->size);

    printf ("%s  %11s  %10s  %10s  %s\n", bitmap->uuid, granularity, dirty,
            size, state_name (bitmap));
  }
}

static void
add_bitmap (JsonBuilder *builder, const struct ploop_bitmap *bitmap)
{
  output_add_text (builder, "uuid", bitmap->uuid);
  output_add_number (builder, "size", bitmap->size);
  output_add_number (builder, "granularity", bitmap->granularity);
  output_add_number (builder, "dirty-bytes", bitmap->nr_dirty);
}

static void
list_json (const char *path, const GPtrArray *list)
{
  g_autoptr (JsonBuilder) builder = json_builder_new ();

  json_builder_begin_object (builder);
  output_add_text (builder, "file", path);
  json_builder_set_member_name (builder, "bitmaps");
  json_builder_begin_array (builder);
  for (guint i = 0; i < list->len; i++) {
    const struct ploop_bitmap *bitmap = g_ptr_array_index (list, i);

    json_builder_begin_object (builder);
    add_bitmap (builder, bitmap);
    output_add_text (builder, "state", state_name (bitmap));
    json_builder_end_object (builder);
  }
  json_builder_end_array (builder);
  json_builder_end_object (builder);
  output_json (builder);
}

int
bitmap_list_run (const struct subcommand *self, int argc, char **argv)
{
  const GOptionEntry entries[] = {
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  g_autoptr (GPtrArray) list = NULL;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int status;

  arguments = command_line_parse (self, entries, COMMON_OUTPUT, &common, argc,
                                  argv, &status);
  if (arguments == NULL)
    return status;
  list = ploop_list_bitmaps (arguments[0], &error);
  if (list == NULL)
    return report_error (error);
  if (common.output == OUTPUT_JSON)
    list_json (arguments[0], list);
  else
    list_human (arguments[0], list);
  return EXIT_SUCCESS;
}

/* ---- What was changed --------------------------------------------------- */

/* The beginning of the object that tells of a change; DONE when it was one. */
static JsonBuilder *
begin_json (const char *path, bool dry_run, const char *done)
{
  JsonBuilder *builder = json_builder_new ();

  json_builder_begin_object (builder);
  output_add_text (builder, "file", path);
  output_add_text (builder, "result", dry_run ? "dry-run" : done);
  return builder;
}

static void
end_json (JsonBuilder *builder, const struct ploop_bitmap_result *result)
{
  output_add_number (builder, "file-size-before", result->file_size_before);
  output_add_number (builder, "file-size-after", result->file_size_after);
  json_builder_end_object (builder);
  output_json (builder);
}

/* ---- add --------------------------------------------------------------- */

static void
tell_added (const char *path, bool dry_run,
            const struct common_options *common,
            const struct ploop_bitmap_result *result)
{
  g_autofree char *granularity = size_format (result->bitmap.granularity);

  if (common->output == OUTPUT_JSON) {
    g_autoptr (JsonBuilder) builder = begin_json (path, dry_run, "added");

    add_bitmap (builder, &result->bitmap);
    end_json (builder, result);
  }
  else
    printf ("%s: %s bitmap %s, granularity %s, %s\n", path,
            dry_run ? "would add" : "added", result->bitmap.uuid, granularity,
            result->bitmap.nr_dirty > 0 ? "all set" : "all clear");
}

int
bitmap_add_run (const struct subcommand *self, int argc, char **argv)
{
  g_autofree char *uuid = NULL, *granularity = NULL;
  gboolean all_set = FALSE, dry_run = FALSE;
  const GOptionEntry entries[] = {
    { "uuid", 0, 0, G_OPTION_ARG_STRING, &uuid,
      "The bitmap's name (default: a random one)", "UUID" },
    { "granularity", 0, 0, G_OPTION_ARG_STRING, &granularity,
      "What a bit is for: a power of two from 512 to 2G (default: 64K)",
      "SIZE" },
    { "set", 0, 0, G_OPTION_ARG_NONE, &all_set,
      "Mark everything as changed, not nothing", NULL },
    { "dry-run", 'n', 0, G_OPTION_ARG_NONE, &dry_run,
      "Say what would be done, changing nothing", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  struct ploop_bitmap_options options = { 0 };
  struct ploop_bitmap_result result;
  uint64_t bytes = 64 << 10;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int status;

  arguments = command_line_parse (self, entries, COMMON_OUTPUT | COMMON_QUIET,
                                  &common, argc, argv, &status);
  if (arguments == NULL)
    return status;
  if (granularity != NULL && !size_parse (granularity, &bytes, &error))
    return report_usage_error (self, "--granularity: %s", error->message);
  /* 0 would ask the library for its default, which nobody means who writes it. */
  if (bytes == 0)
    return report_usage_error (self, "--granularity: '%s' cannot be used: use a "
                               "power of two from 512 to 2G", granularity);
  options.dry_run = dry_run;
  set_log (&options, &common);
  if (ploop_add_bitmap (arguments[0], uuid, bytes, all_set, &options, &result,
                        &error) == -1)
    return report_error (error);
  if (!common.quiet)
    tell_added (arguments[0], dry_run, &common, &result);
  return EXIT_SUCCESS;
}

/* ---- remove ------------------------------------------------------------ */

static void
tell_removed (const char *path, bool dry_run,
              const struct common_options *common,
              const struct ploop_bitmap_result *result)
{
  if (common->output == OUTPUT_JSON) {
    g_autoptr (JsonBuilder) builder = begin_json (path, dry_run, "removed");

    output_add_number (builder, "removed-bitmaps", result->nr_removed);
    output_add_text (builder, "state",
                     result->was_unusable ? "unusable" : "valid");
    end_json (builder, result);
  }
  else if (result->nr_removed == 0 && !result->was_unusable)
    printf ("%s: no bitmaps\n", path);
  else
    printf ("%s: %s %u bitmaps%s\n", path,
            dry_run ? "would remove" : "removed", result->nr_removed,
            result->was_unusable
              ? ", with an extension that was stale or damaged" : "");
}

int
bitmap_remove_run (const struct subcommand *self, int argc, char **argv)
{
  g_autofree char *uuid = NULL;
  gboolean all = FALSE, dry_run = FALSE;
  const GOptionEntry entries[] = {
    { "uuid", 0, 0, G_OPTION_ARG_STRING, &uuid, "Remove this bitmap", "UUID" },
    { "all", 0, 0, G_OPTION_ARG_NONE, &all,
      "Remove all, even if they are stale or damaged", NULL },
    { "dry-run", 'n', 0, G_OPTION_ARG_NONE, &dry_run,
      "Say what would be done, changing nothing", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  struct ploop_bitmap_options options = { 0 };
  struct ploop_bitmap_result result;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int status;

  arguments = command_line_parse (self, entries, COMMON_OUTPUT | COMMON_QUIET,
                                  &common, argc, argv, &status);
  if (arguments == NULL)
    return status;
  if ((uuid != NULL) == all)
    return report_usage_error (self, "give either --uuid=UUID or --all");
  options.dry_run = dry_run;
  set_log (&options, &common);
  if (ploop_remove_bitmap (arguments[0], uuid, &options, &result, &error)
      == -1)
    return report_error (error);
  if (!common.quiet)
    tell_removed (arguments[0], dry_run, &common, &result);
  return EXIT_SUCCESS;
}

/* ---- dump -------------------------------------------------------------- */

/* A string as JSON has it (g_free). */
static char *
quote (const char *text)
{
  g_autofree char *valid = g_utf8_make_valid (text, -1);
  g_autoptr (JsonNode) node = json_node_init_string (json_node_alloc (), valid);

  return json_to_string (node, FALSE);
}

static bool
print_range (void *opaque, uint64_t offset, uint64_t length)
{
  (void) opaque;
  printf ("%" PRIu64 " %" PRIu64 "\n", offset, length);
  return true;
}

/* Nothing is printed if there is no such bitmap: the head comes with the first range,
 * or at the end.
 */
struct dump {
  const char *path, *uuid;
  const char *separator;        /* NULL: the head is to come */
};

static void
print_head (struct dump *dump)
{
  g_autofree char *path = NULL, *uuid = NULL;

  if (dump->separator != NULL)
    return;
  path = quote (dump->path);
  uuid = quote (dump->uuid);
  printf ("{\n  \"file\" : %s,\n  \"uuid\" : %s,\n  \"ranges\" : [", path,
          uuid);
  dump->separator = "";
}

static bool
print_json_range (void *opaque, uint64_t offset, uint64_t length)
{
  struct dump *dump = opaque;

  print_head (dump);
  printf ("%s\n    { \"offset\" : %" PRIu64 ", \"length\" : %" PRIu64 " }",
          dump->separator, offset, length);
  dump->separator = ",";
  return true;
}

int
bitmap_dump_run (const struct subcommand *self, int argc, char **argv)
{
  g_autofree char *uuid = NULL;
  const GOptionEntry entries[] = {
    { "uuid", 0, 0, G_OPTION_ARG_STRING, &uuid, "Which bitmap", "UUID" },
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  struct dump dump = { 0 };
  int r, status;

  arguments = command_line_parse (self, entries, COMMON_OUTPUT, &common, argc,
                                  argv, &status);
  if (arguments == NULL)
    return status;
  if (uuid == NULL)
    return report_usage_error (self, "--uuid=UUID is missing");
  dump.path = arguments[0];
  dump.uuid = uuid;
  r = ploop_dump_bitmap (arguments[0], uuid,
                         common.output == OUTPUT_JSON ? print_json_range
                                                      : print_range,
                         &dump, &error);
  if (r == -1)
    return report_error (error);
  if (common.output == OUTPUT_JSON) {
    print_head (&dump);
    printf ("%s]\n}\n", *dump.separator ? "\n  " : "");
  }
  return EXIT_SUCCESS;
}

/* ---- merge ------------------------------------------------------------- */

static void
tell_merged (char *const *arguments, bool dry_run,
             const struct common_options *common,
             const struct ploop_bitmap_result *result)
{
  g_autofree char *dirty = size_format (result->bitmap.nr_dirty);

  if (common->output == OUTPUT_JSON) {
    g_autoptr (JsonBuilder) builder =
      begin_json (arguments[0], dry_run, "merged");

    add_bitmap (builder, &result->bitmap);
    end_json (builder, result);
  }
  else
    printf ("%s: %s into bitmap %s, which %s %s\n", arguments[0],
            dry_run ? "would merge" : "merged", result->bitmap.uuid,
            dry_run ? "would mark" : "marks", dirty);
}

int
bitmap_merge_run (const struct subcommand *self, int argc, char **argv)
{
  g_autofree char *into = NULL, *source = NULL;
  gboolean dry_run = FALSE;
  const GOptionEntry entries[] = {
    { "into", 0, 0, G_OPTION_ARG_STRING, &into, "The bitmap that is changed",
      "UUID" },
    { "source", 0, 0, G_OPTION_ARG_FILENAME, &source,
      "Where bitmap SOURCE_UUID is (default: FILE)", "FILE2" },
    { "dry-run", 'n', 0, G_OPTION_ARG_NONE, &dry_run,
      "Say what would be done, changing nothing", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  struct ploop_bitmap_options options = { 0 };
  struct ploop_bitmap_result result;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int status;

  arguments = command_line_parse (self, entries, COMMON_OUTPUT | COMMON_QUIET,
                                  &common, argc, argv, &status);
  if (arguments == NULL)
    return status;
  if (into == NULL)
    return report_usage_error (self, "--into=UUID is missing");
  options.dry_run = dry_run;
  set_log (&options, &common);
  if (ploop_merge_bitmap (arguments[0], into, source, arguments[1], &options,
                          &result, &error) == -1)
    return report_error (error);
  if (!common.quiet)
    tell_merged (arguments, dry_run, &common, &result);
  return EXIT_SUCCESS;
}
