/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img rescue: copy all that can be read of a damaged disk, and list what
 * cannot.  The library does it; here the list is told to people, to programs, and to
 * those programs that read the maps of GNU ddrescue.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <glib/gstdio.h>

#include "ploop-core.h"
#include "ploop-img.h"

enum {
  EXIT_RANGES = 2,              /* there is a copy, but not of all; 1,
                                   EXIT_FAILURE: something went wrong */
  EXIT_ENDED_EARLY = 3,
};

/* As in check, so that a program's memory is bounded. */
#define MAX_JSON_RANGES 10000u

static const char *const kind_names[] = {
  [PLOOP_RESCUE_LOST] = "lost",
  [PLOOP_RESCUE_OLDER] = "older",
  [PLOOP_RESCUE_DOUBTFUL] = "doubtful",
};

static const struct {
  const char *name, *text;
} reasons[] = {
  [PLOOP_RESCUE_UNREADABLE] = { "unreadable", "it cannot be read" },
  [PLOOP_RESCUE_CUT_OFF] = { "cut-off", "the file ends before it, so it is zeros" },
  [PLOOP_RESCUE_PAST_END] =
    { "past-end", "the table points past the end of the file" },
  [PLOOP_RESCUE_BELOW_DATA] =
    { "below-data", "the table points into itself" },
  [PLOOP_RESCUE_SHARED] =
    { "shared", "the table has it and another cluster in one place" },
  [PLOOP_RESCUE_UNFINISHED] =
    { "unfinished", "it was never flushed, or the file was cut off: read as "
                    "before that" },
  [PLOOP_RESCUE_BAT_UNREADABLE] =
    { "table-unreadable", "the table cannot be read there" },
  [PLOOP_RESCUE_BAT_CUT_OFF] =
    { "table-cut-off", "the file ends inside the table" },
  [PLOOP_RESCUE_BAT_WIPED] =
    { "table-wiped", "the table is zeros there, like the header" },
  [PLOOP_RESCUE_MISSING_DELTA] = { "missing", "the file is missing" },
};

struct rescue {
  char *const *names;           /* disk and target */
  const char *map;              /* file; NULL: none */
  bool force;
  struct common_options common;
  FILE *people;                 /* where they read */
  GArray *ranges;               /* of struct ploop_rescue_range */
};

/* ---- The list ---------------------------------------------------------- */

/* The name that a range points to lasts no longer than the call. */
static void
keep_range (void *opaque, const struct ploop_rescue_range *range)
{
  struct rescue *rescue = opaque;
  struct ploop_rescue_range kept = *range;

  kept.path = g_intern_string (range->path);
  g_array_append_val (rescue->ranges, kept);
}

static const struct ploop_rescue_range *
get_range (const struct rescue *rescue, guint i)
{
  return &g_array_index (rescue->ranges, struct ploop_rescue_range, i);
}

static void
print_range (const struct rescue *rescue,
             const struct ploop_rescue_range *range)
{
  g_autofree char *length = size_format (range->length);

  fprintf (rescue->people, "%s: %s at byte %" PRIu64 ": %s: %s",
           kind_names[range->kind], length, range->offset, range->path,
           reasons[range->reason].text);
  if (range->reason == PLOOP_RESCUE_SHARED)
    fprintf (rescue->people, ", that at byte %" PRIu64, range->other);
  fputc ('\n', rescue->people);
}

static void
print_human (const struct rescue *rescue,
             const struct ploop_rescue_result *result)
{
  g_autofree char *size = size_format_exact (result->size);
  g_autofree char *written = size_format (result->bytes_written);

  for (guint i = 0; i < rescue->ranges->len; i++)
    print_range (rescue, get_range (rescue, i));
  fprintf (rescue->people, "%s: copied to %s: %s, of which %s are data\n",
           rescue->names[0], rescue->names[1], size, written);
  for (unsigned i = 0; i < G_N_ELEMENTS (kind_names); i++)
    if (result->bytes[i] > 0) {
      g_autofree char *bytes = size_format_exact (result->bytes[i]);

      fprintf (rescue->people, "%s: %s\n", kind_names[i], bytes);
    }
  if (result->nr_ranges == 0)
    fprintf (rescue->people, "nothing is lost\n");
}

static void
add_range (JsonBuilder *builder, const struct ploop_rescue_range *range)
{
  json_builder_begin_object (builder);
  output_add_text (builder, "kind", kind_names[range->kind]);
  output_add_text (builder, "reason", reasons[range->reason].name);
  output_add_number (builder, "offset", range->offset);
  output_add_number (builder, "length", range->length);
  output_add_text (builder, "file", range->path);
  if (range->reason == PLOOP_RESCUE_SHARED)
    output_add_number (builder, "other", range->other);
  json_builder_end_object (builder);
}

static void
print_json (const struct rescue *rescue,
            const struct ploop_rescue_result *result)
{
  const guint nr = MIN (rescue->ranges->len, MAX_JSON_RANGES);
  g_autoptr (JsonBuilder) builder = json_builder_new ();

  json_builder_begin_object (builder);
  output_add_text (builder, "file", rescue->names[0]);
  output_add_text (builder, "target", rescue->names[1]);
  output_add_text (builder, "result",
                   result->interrupted ? "interrupted"
                   : result->nr_ranges > 0 ? "partial" : "complete");
  output_add_number (builder, "size", result->size);
  output_add_number (builder, "read-bytes", result->bytes_read);
  output_add_number (builder, "written-bytes", result->bytes_written);
  output_add_number (builder, "lost-bytes", result->bytes[PLOOP_RESCUE_LOST]);
  output_add_number (builder, "older-bytes",
                     result->bytes[PLOOP_RESCUE_OLDER]);
  output_add_number (builder, "doubtful-bytes",
                     result->bytes[PLOOP_RESCUE_DOUBTFUL]);
  output_add_number (builder, "nr-ranges", result->nr_ranges);
  json_builder_set_member_name (builder, "ranges");
  json_builder_begin_array (builder);
  for (guint i = 0; i < nr; i++)
    add_range (builder, get_range (rescue, i));
  json_builder_end_array (builder);
  json_builder_end_object (builder);
  output_json (builder);
}

/* ---- The map ----------------------------------------------------------- */

static void
add_block (GString *map, uint64_t start, uint64_t end, char status)
{
  if (start < end)
    g_string_append_printf (map, "0x%08" PRIX64 "  0x%08" PRIX64 "  %c\n",
                            start, end - start, status);
}

/* GNU ddrescue's: blocks without gaps; "+" is copied, "-" is bad, and "*" is what it
 * has not finished with.
 */
static char *
print_map (const struct rescue *rescue,
           const struct ploop_rescue_result *result)
{
  GString *map = g_string_new (NULL);
  uint64_t position = 0;

  g_string_append_printf (map, "# Mapfile. Created by ploop-img\n"
                          "# current_pos  current_status  current_pass\n"
                          "0x%08" PRIX64 "     +               1\n"
                          "#      pos        size  status\n", result->size);
  for (guint i = 0; i < rescue->ranges->len; i++) {
    const struct ploop_rescue_range *range = get_range (rescue, i);

    add_block (map, position, range->offset, '+');
    position = range->offset + range->length;
    add_block (map, range->offset, position,
               range->kind == PLOOP_RESCUE_LOST ? '-' : '*');
  }
  add_block (map, position, result->size, '+');
  return g_string_free (map, FALSE);
}

static bool
write_map (const struct rescue *rescue,
           const struct ploop_rescue_result *result, GError **error)
{
  g_autofree char *text = print_map (rescue, result);

  if (g_file_set_contents_full (rescue->map, text, -1,
                                G_FILE_SET_CONTENTS_CONSISTENT
                                  | G_FILE_SET_CONTENTS_DURABLE, 0666, error))
    return true;
  g_prefix_error (error, "%s is there, but not its map: ", rescue->names[1]);
  return false;
}

static bool
check_map (const struct rescue *rescue, GError **error)
{
  GStatBuf st;

  if (!rescue->map || rescue->force || g_lstat (rescue->map, &st) == -1)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_EXISTS,
               "%s: exists already: choose another name, or overwrite it",
               rescue->map);
  return false;
}

/* ---- What is given ----------------------------------------------------- */

static bool
parse_version (const char *option, const char *text, unsigned *version,
               GError **error)
{
  if (text == NULL)
    return true;
  if (format_parse_version (text, version, NULL))
    return true;
  g_set_error (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
               "%s: '%s' is not a version of the format: use 1 or 2", option,
               text);
  return false;
}

static bool
parse_bytes (const char *option, const char *text, uint64_t largest,
             uint64_t *bytes, GError **error)
{
  if (text == NULL)
    return true;
  if (!size_parse (text, bytes, error)) {
    g_prefix_error (error, "%s: ", option);
    return false;
  }
  if (*bytes > 0 && *bytes <= largest)
    return true;
  g_set_error (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
               "%s: '%s' cannot be: use a size from 512 to %" PRIu64, option,
               text, largest);
  return false;
}

static bool
parse_cluster_size (const char *option, const char *text,
                    uint32_t *cluster_size, GError **error)
{
  uint64_t bytes = 0;

  if (!parse_bytes (option, text, UINT32_MAX, &bytes, error))
    return false;
  *cluster_size = (uint32_t) bytes;
  return true;
}

/* ---- The subcommand ---------------------------------------------------- */

/* Returns the exit status. */
static int
tell (const struct rescue *rescue, const struct ploop_rescue_result *result)
{
  g_autoptr (GError) error = NULL;
  const bool is_json = rescue->common.output == OUTPUT_JSON;

  if (!rescue->common.quiet && is_json)
    print_json (rescue, result);
  else if (!rescue->common.quiet && !result->interrupted)
    print_human (rescue, result);
  if (result->interrupted) {
    fflush (stdout);
    fprintf (stderr, "ploop-img: %s: interrupted: it was not made\n",
             rescue->names[1]);
    return EXIT_ENDED_EARLY;
  }
  if (rescue->map && !write_map (rescue, result, &error))
    return report_error (error);
  return result->nr_ranges > 0 ? EXIT_RANGES : EXIT_SUCCESS;
}

static int
run (struct rescue *rescue, struct ploop_rescue_options *options)
{
  struct ploop_rescue_result result;
  struct progress progress;
  g_autoptr (GError) error = NULL;
  int r, status;

  if (!check_map (rescue, &error))
    return report_error (error);
  options->overwrite = rescue->force;
  options->range = keep_range;
  options->range_opaque = rescue;
  options->log = rescue->common.quiet ? NULL : report_log;
  rescue->ranges =
    g_array_new (FALSE, FALSE, sizeof (struct ploop_rescue_range));
  progress_begin (&progress, &rescue->common);
  r = ploop_rescue (rescue->names[0], rescue->names[1], options,
                    progress_step, &progress, &result, &error);
  progress_end (&progress);
  status = r == -1 ? report_error (error) : tell (rescue, &result);
  g_array_unref (rescue->ranges);
  return status;
}

int
rescue_run (const struct subcommand *self, int argc, char **argv)
{
  g_autofree char *snapshot = NULL, *form = NULL, *map = NULL, *idx = NULL;
  g_autofree char *version = NULL, *cluster_size = NULL, *size = NULL;
  g_autofree char *target_version = NULL, *target_cluster_size = NULL;
  g_auto (GStrv) bases = NULL, arguments = NULL;
  gboolean force = FALSE, is_zero = FALSE;
  gboolean missing_ok = FALSE, fall_through = FALSE;
  const GOptionEntry entries[] = {
    { "base", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &bases,
      "The next lower delta of DISK, a file; once for each", "FILE" },
    { "snapshot", 0, 0, G_OPTION_ARG_STRING, &snapshot,
      "Copy this snapshot of DISK", "GUID" },
    { "missing-ok", 0, 0, G_OPTION_ARG_NONE, &missing_ok,
      "What a missing delta may have is lost; go on", NULL },
    { "fall-through", 0, 0, G_OPTION_ARG_NONE, &fall_through,
      "For what is lost, take what a lower delta has", NULL },
    { "version", 0, 0, G_OPTION_ARG_STRING, &version,
      "A damaged header should say this version", "1|2" },
    { "cluster-size", 0, 0, G_OPTION_ARG_STRING, &cluster_size,
      "... this cluster size", "SIZE" },
    { "size", 0, 0, G_OPTION_ARG_STRING, &size,
      "... this size of the disk", "SIZE" },
    { "index", 0, 0, G_OPTION_ARG_FILENAME, &idx,
      "Read header and table of DISK from FILE instead", "FILE" },
    { "map", 0, 0, G_OPTION_ARG_FILENAME, &map,
      "Write a map as of GNU ddrescue to FILE", "FILE" },
    { "format", 'O', 0, G_OPTION_ARG_STRING, &form,
      "What TARGET becomes, if it is a file (default: ploop)", "ploop|raw" },
    { "target-version", 0, 0, G_OPTION_ARG_STRING, &target_version,
      "Version of the format of TARGET (default: 2)", "1|2" },
    { "target-cluster-size", 0, 0, G_OPTION_ARG_STRING, &target_cluster_size,
      "Of TARGET: a power of two from 32K to 64M (default: 1M)", "SIZE" },
    { "target-is-zero", 0, 0, G_OPTION_ARG_NONE, &is_zero,
      "TARGET, an export, reads as zeros already", NULL },
    { "force", 0, 0, G_OPTION_ARG_NONE, &force,
      "Replace TARGET and map if they are files that exist", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct rescue rescue = { .people = stdout };
  struct ploop_rescue_options options = { 0 };
  g_autoptr (GError) error = NULL;
  int status;

  arguments = command_line_parse (self, entries, COMMON_ALL, &rescue.common,
                                  argc, argv, &status);
  if (arguments == NULL)
    return status;
  if (!format_parse_form (form, &options.raw, &error)
      || !parse_version ("--version", version, &options.version, &error)
      || !parse_cluster_size ("--cluster-size", cluster_size,
                              &options.cluster_size, &error)
      || !parse_bytes ("--size", size, INT64_MAX, &options.size, &error)
      || !parse_version ("--target-version", target_version,
                         &options.target_version, &error)
      || !parse_cluster_size ("--target-cluster-size", target_cluster_size,
                              &options.target_cluster_size, &error))
    return report_usage_error (self, "%s", error->message);
  if (strcmp (arguments[1], "-") == 0) {
    if (!rescue.common.quiet && rescue.common.output == OUTPUT_JSON)
      return report_usage_error (self, "--output=json: standard output is where "
                                 "the disk goes: use --map, and --quiet");
    rescue.people = stderr;
  }
  options.snapshot = snapshot;
  options.bases = (const char *const *) bases;
  options.index = idx;
  options.missing_ok = missing_ok;
  options.fall_through = fall_through;
  options.target_is_zero = is_zero;
  rescue.names = arguments;
  rescue.map = map;
  rescue.force = force;
  return run (&rescue, &options);
}
