/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img map: where everything of a disk is, and what is in the files of its
 * deltas.  The library tells; here it is written down, one line after the other, for
 * a map may be larger than memory.
 *
 * The names and values in JSON are an interface, described in ploop-img(1).
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ploop-core.h"
#include "ploop-img.h"

/* What is shown of a map: bits. */
enum {
  VIEW_DISK = 1,
  VIEW_FILES = 2,
};

/* What is being printed. */
struct listing {
  unsigned view;
  const char *name;             /* of the disk */
  GPtrArray *deltas;            /* of JsonNode or char: what is known before */
  const char *separator;        /* before the next element of the open array */
  unsigned delta;               /* whose ranges are listed */
  bool delta_begun, files_begun;
};

static const char *const kind_names[] = {
  [PLOOP_MAP_DATA] = "data",
  [PLOOP_MAP_ZERO] = "zero",
  [PLOOP_MAP_UNMAPPED] = "unmapped",
};

const char *const map_use_names[PLOOP_NR_USES] = {
  [PLOOP_USE_METADATA] = "metadata",
  [PLOOP_USE_DATA] = "data",
  [PLOOP_USE_HIDDEN] = "hidden",
  [PLOOP_USE_EXTENSION] = "extension",
  [PLOOP_USE_LEAKED] = "leaked",
  [PLOOP_USE_FREE] = "free",
};

static bool
has_guest_offset (enum ploop_map_use use)
{
  return use == PLOOP_USE_DATA || use == PLOOP_USE_HIDDEN;
}

char *
map_describe_usage (const struct ploop_map_usage *usage)
{
  g_autoptr (GString) text = g_string_new (NULL);

  for (unsigned i = 0; i < PLOOP_NR_USES; i++)
    if (usage->bytes[i] > 0) {
      g_autofree char *size = size_format (usage->bytes[i]);

      g_string_append_printf (text, "%s%s %s", text->len == 0 ? "" : ", ",
                              map_use_names[i], size);
    }
  g_string_append_printf (text, "%s%" PRIu32 " clusters in %" PRIu32
                          " fragments", text->len == 0 ? "" : "; ",
                          usage->nr_allocated, usage->nr_fragments);
  if (usage->nr_fragments > usage->nr_least_fragments)
    g_string_append_printf (text, ", %" PRIu32 " would do",
                            usage->nr_least_fragments);
  return g_string_free (g_steal_pointer (&text), FALSE);
}

/* ---- For people -------------------------------------------------------- */

static char *
describe_delta (const struct ploop_map_delta *delta)
{
  g_autofree char *part =
    delta->part == 0 ? g_strdup ("")
                     : g_strdup_printf ("part %u, ", delta->part);
  g_autofree char *form =
    delta->version == 0 ? g_strdup ("raw")
                        : g_strdup_printf ("version %u", delta->version);
  g_autofree char *size = size_format (delta->file_size);

  return g_strdup_printf ("delta %u: %s: %slevel %u, %s, file of %s",
                          delta->index, delta->path, part, delta->level, form,
                          size);
}

static bool
list_delta (void *opaque, const struct ploop_map_delta *delta)
{
  struct listing *listing = opaque;

  g_ptr_array_add (listing->deltas, describe_delta (delta));
  if (delta->index == 0 && (listing->view & VIEW_DISK))
    printf ("%20s %20s  %-8s  %5s %20s\n", "offset", "length", "kind", "delta",
            "host offset");
  return true;
}

static bool
list_extent (void *opaque G_GNUC_UNUSED,
             const struct ploop_map_extent *extent)
{
  printf ("%20" PRIu64 " %20" PRIu64 "  ", extent->offset, extent->length);
  if (extent->kind == PLOOP_MAP_UNMAPPED)
    printf ("%s\n", kind_names[extent->kind]);
  else
    printf ("%-8s  %5u %20" PRIu64 "\n", kind_names[extent->kind],
            extent->delta, extent->host_offset);
  return true;
}

static void
list_file (struct listing *listing, unsigned delta)
{
  if (listing->files_begun || (listing->view & VIEW_DISK))
    putchar ('\n');
  listing->files_begun = true;
  puts (g_ptr_array_index (listing->deltas, delta));
}

static bool
list_range (void *opaque, const struct ploop_map_range *range)
{
  struct listing *listing = opaque;

  if (!listing->delta_begun) {
    list_file (listing, range->delta);
    printf ("%20s %20s  %-9s %20s\n", "offset", "length", "use",
            "disk offset");
    listing->delta_begun = true;
  }
  printf ("%20" PRIu64 " %20" PRIu64 "  ", range->offset, range->length);
  if (has_guest_offset (range->use))
    printf ("%-9s %20" PRIu64 "\n", map_use_names[range->use],
            range->guest_offset);
  else
    printf ("%s\n", map_use_names[range->use]);
  return true;
}

static bool
list_usage (void *opaque, const struct ploop_map_usage *usage)
{
  struct listing *listing = opaque;
  g_autofree char *text = map_describe_usage (usage);

  if (!listing->delta_begun)
    list_file (listing, usage->delta);
  listing->delta_begun = false;
  printf ("  %s\n", text);
  return true;
}

static int
print_human (const char *name, const struct ploop_map_options *options,
             unsigned view, GError **error)
{
  g_autoptr (GPtrArray) deltas = g_ptr_array_new_with_free_func (g_free);
  struct listing listing = { .view = view, .name = name, .deltas = deltas };
  const struct ploop_map_visitor visitor = {
    .delta = list_delta,
    .extent = view & VIEW_DISK ? list_extent : NULL,
    .range = view & VIEW_FILES ? list_range : NULL,
    .usage = list_usage,
  };

  return ploop_map_disk (name, options, &visitor, &listing, error);
}

/* ---- For programs ------------------------------------------------------ */

/* What BUILDER has built, as one line (g_free). */
static char *
to_line (JsonBuilder *builder)
{
  g_autoptr (JsonNode) root = json_builder_get_root (builder);

  return json_to_string (root, FALSE);
}

/* The next element of the array that is open, a range of something.  There may be
 * millions of them, and nothing in them has to be quoted.
 */
static void
begin_element (struct listing *listing, uint64_t offset, uint64_t length)
{
  printf ("%s\n  {\"offset\":%" PRIu64 ",\"length\":%" PRIu64,
          listing->separator, offset, length);
  listing->separator = ",";
}

static bool
put_disk (void *opaque, uint64_t size, unsigned nr_deltas G_GNUC_UNUSED)
{
  struct listing *listing = opaque;
  g_autoptr (JsonBuilder) builder = json_builder_new ();
  g_autofree char *line = NULL;

  json_builder_begin_object (builder);
  output_add_text (builder, "file", listing->name);
  output_add_number (builder, "size", size);
  json_builder_end_object (builder);
  line = to_line (builder);
  /* Of this object more is to come. */
  printf ("%.*s", (int) strlen (line) - 1, line);
  if (listing->view & VIEW_DISK)
    printf (",\n\"extents\":[");
  listing->separator = "";
  return true;
}

static bool
take_delta (void *opaque, const struct ploop_map_delta *delta)
{
  struct listing *listing = opaque;
  JsonBuilder *builder = json_builder_new ();

  json_builder_begin_object (builder);
  output_add_number (builder, "delta", delta->index);
  output_add_text (builder, "file", delta->path);
  output_add_number (builder, "part", delta->part);
  output_add_number (builder, "level", delta->level);
  output_add_text (builder, "format", delta->version == 0 ? "raw" : "ploop");
  if (delta->version > 0)
    output_add_number (builder, "version", delta->version);
  output_add_number (builder, "size", delta->size);
  output_add_number (builder, "cluster-size", delta->cluster_size);
  output_add_number (builder, "file-size", delta->file_size);
  output_add_number (builder, "disk-usage", delta->disk_usage);
  g_ptr_array_add (listing->deltas, builder);
  return true;
}

static bool
put_extent (void *opaque, const struct ploop_map_extent *extent)
{
  begin_element (opaque, extent->offset, extent->length);
  printf (",\"kind\":\"%s\"", kind_names[extent->kind]);
  if (extent->kind != PLOOP_MAP_UNMAPPED)
    printf (",\"delta\":%u,\"host-offset\":%" PRIu64, extent->delta,
            extent->host_offset);
  putchar ('}');
  return true;
}

/* Begin the array of deltas, and the next one in it. */
static void
begin_delta (struct listing *listing)
{
  if (listing->delta_begun)
    return;
  if (listing->files_begun)
    printf (",\n {");
  else
    printf ("%s,\n\"deltas\":[\n {", listing->view & VIEW_DISK ? "]" : "");
  listing->files_begun = listing->delta_begun = true;
  if (listing->view & VIEW_FILES)
    printf ("\"ranges\":[");
  listing->separator = "";
}

static bool
put_range (void *opaque, const struct ploop_map_range *range)
{
  begin_delta (opaque);
  begin_element (opaque, range->offset, range->length);
  printf (",\"use\":\"%s\"", map_use_names[range->use]);
  if (has_guest_offset (range->use))
    printf (",\"disk-offset\":%" PRIu64, range->guest_offset);
  putchar ('}');
  return true;
}

/* The rest of a delta: what was known of it before, and what has become known. */
static bool
put_usage (void *opaque, const struct ploop_map_usage *usage)
{
  struct listing *listing = opaque;
  JsonBuilder *builder = g_ptr_array_index (listing->deltas, usage->delta);
  g_autofree char *line = NULL;

  begin_delta (listing);
  for (unsigned i = 0; i < PLOOP_NR_USES; i++) {
    g_autofree char *name = g_strdup_printf ("%s-bytes", map_use_names[i]);

    output_add_number (builder, name, usage->bytes[i]);
  }
  output_add_number (builder, "allocated-clusters", usage->nr_allocated);
  output_add_number (builder, "fragments", usage->nr_fragments);
  output_add_number (builder, "least-fragments", usage->nr_least_fragments);
  json_builder_end_object (builder);
  line = to_line (builder);
  printf ("%s%s", listing->view & VIEW_FILES ? "],\n  " : "", line + 1);
  listing->delta_begun = false;
  return true;
}

static int
print_json (const char *name, const struct ploop_map_options *options,
            unsigned view, GError **error)
{
  g_autoptr (GPtrArray) deltas =
    g_ptr_array_new_with_free_func (g_object_unref);
  struct listing listing = { .view = view, .name = name, .deltas = deltas };
  const struct ploop_map_visitor visitor = {
    .disk = put_disk,
    .delta = take_delta,
    .extent = view & VIEW_DISK ? put_extent : NULL,
    .range = view & VIEW_FILES ? put_range : NULL,
    .usage = put_usage,
  };

  if (ploop_map_disk (name, options, &visitor, &listing, error) == -1)
    return -1;
  printf ("]}\n");
  return 0;
}

/* ---- The subcommand ---------------------------------------------------- */

enum form { FORM_HUMAN, FORM_JSON, FORM_SVG };

/* The place of TEXT among NAMES, which ends with NULL; 0 if it is NULL.  What they
 * are is said in the error of OPTION.
 */
static bool
parse_choice (const char *option, const char *text, const char *const *names,
              unsigned *choice, GError **error)
{
  g_autofree char *known = NULL;

  for (*choice = 0; names[*choice]; ++*choice)
    if (text == NULL || strcmp (text, names[*choice]) == 0)
      return true;
  known = g_strjoinv (", ", (char **) names);
  g_set_error (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
               "--%s: '%s' is not known: use one of %s", option, text, known);
  return false;
}

static bool
parse_form (const char *text, enum form *form, GError **error)
{
  static const char *const names[] = { "human", "json", "svg", NULL };
  unsigned choice;

  if (!parse_choice ("output", text, names, &choice, error))
    return false;
  *form = (enum form) choice;
  return true;
}

/* People are shown the disk, and programs all, unless they say what. */
static bool
parse_view (const char *text, enum form form, unsigned *view, GError **error)
{
  static const char *const names[] = { "disk", "files", "all", NULL };
  static const unsigned views[] = {
    VIEW_DISK, VIEW_FILES, VIEW_DISK | VIEW_FILES,
  };
  unsigned choice;

  if (!parse_choice ("view", text, names, &choice, error))
    return false;
  if (text && form == FORM_SVG) {
    g_set_error (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
                 "--view: what is drawn with --output=svg is the files: leave "
                 "it out");
    return false;
  }
  *view = text || form == FORM_HUMAN ? views[choice]
                                     : VIEW_DISK | VIEW_FILES;
  return true;
}

static int
print_map (const char *name, const struct ploop_map_options *options,
           enum form form, unsigned view, GError **error)
{
  switch (form) {
  case FORM_HUMAN:
    return print_human (name, options, view, error);
  case FORM_JSON:
    return print_json (name, options, view, error);
  case FORM_SVG:
    return map_draw (name, options, error);
  }
  g_assert_not_reached ();
}

int
map_run (const struct subcommand *self, int argc, char **argv)
{
  g_autofree char *output = NULL, *shown = NULL, *snapshot = NULL;
  g_auto (GStrv) bases = NULL;
  gboolean allow_outside = FALSE;
  const GOptionEntry entries[] = {
    { "view", 0, 0, G_OPTION_ARG_STRING, &shown,
      "Where the disk is, or what is in the files (default: disk; of JSON all)",
      "disk|files|all" },
    { "snapshot", 0, 0, G_OPTION_ARG_STRING, &snapshot,
      "Show this snapshot of DISK", "GUID" },
    { "base", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &bases,
      "The delta below; again for the one below that", "FILE" },
    { "allow-outside", 0, 0, G_OPTION_ARG_NONE, &allow_outside,
      "Let the descriptor name files outside its directory", NULL },
    { "output", 0, 0, G_OPTION_ARG_STRING, &output,
      "Form of the output (default: human)", "human|json|svg" },
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  struct ploop_map_options options = { .log = report_log };
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  enum form form;
  unsigned view;
  int status;

  arguments = command_line_parse (self, entries, 0, &common, argc, argv,
                                  &status);
  if (arguments == NULL)
    return status;
  if (!parse_form (output, &form, &error)
      || !parse_view (shown, form, &view, &error))
    return report_usage_error (self, "%s", error->message);
  options.snapshot = snapshot;
  options.bases = (const char *const *) bases;
  options.allow_outside = allow_outside;
  return print_map (arguments[0], &options, form, view, &error) == -1
           ? report_error (error) : EXIT_SUCCESS;
}
