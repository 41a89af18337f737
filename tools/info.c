/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img info: what an image is, for people or as JSON.
 *
 * The names and values in JSON are an interface, described in ploop-img(1).
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "ploop-core.h"
#include "ploop-img.h"

static const struct {
  uint32_t bit;
  const char *name;
} known_flags[] = {
  { 1, "empty" },
  { 2, "conversion" },
};

/* How an enum's values are called in JSON, and said to people. */
struct wording {
  const char *name;
  const char *sentence;
};

static const struct wording cleanliness_wording[] = {
  [PLOOP_CLEAN] = { "clean", "closed" },
  [PLOOP_CLEAN_EXTENSION] = { "clean-extension",
    "closed, with a valid extension" },
  [PLOOP_CLEAN_DESKTOP] = { "clean-desktop", "closed by Parallels Desktop" },
  [PLOOP_DIRTY] = { "dirty", "open for writing, or never closed" },
  [PLOOP_DIRTY_UNKNOWN] = { "unknown", "marked with an unknown value" },
};

static const struct wording lock_wording[] = {
  [PLOOP_UNLOCKED] = { "none", "none" },
  [PLOOP_LOCKED_FOR_READING] = { "reading",
    "held by a reader, which keeps writers out" },
  [PLOOP_LOCKED_FOR_WRITING] = { "writing",
    "held by a writer, which keeps everybody out" },
};

static void
print_size (const char *label, uint64_t bytes)
{
  g_autofree char *text = size_format_exact (bytes);

  printf ("%s: %s\n", label, text);
}

static void
print_flags (uint32_t flags)
{
  const char *separator = "";

  printf ("flags: ");
  for (size_t i = 0; i < G_N_ELEMENTS (known_flags); i++)
    if (flags & known_flags[i].bit) {
      printf ("%s%s", separator, known_flags[i].name);
      separator = ", ";
      flags &= ~known_flags[i].bit;
    }
  if (flags != 0)
    printf ("%sunknown (0x%" PRIx32 ")", separator, flags);
  else if (*separator == '\0')
    printf ("none");
  printf ("\n");
}

static void
print_extension (uint64_t offset)
{
  if (offset == 0)
    printf ("extension: none\n");
  else
    printf ("extension: at byte %" PRIu64 "\n", offset);
}

static void
print_human (const char *path, const struct ploop_info *info)
{
  const double percent = info->nr_clusters == 0 ? 0 :
    100.0 * info->nr_allocated / info->nr_clusters;

  printf ("file: %s\n", path);
  printf ("format: ploop, version %u\n", info->version);
  print_size ("disk size", info->size);
  print_size ("cluster size", info->cluster_size);
  printf ("clusters: %" PRIu32 ", of which %" PRIu32 " allocated (%.2f %%)\n",
          info->nr_clusters, info->nr_allocated, percent);
  printf ("geometry: %" PRIu32 " heads, %" PRIu32 " cylinders\n",
          info->heads, info->cylinders);
  printf ("data: from byte %" PRIu64 "\n", info->data_offset);
  print_flags (info->flags);
  printf ("state: %s (0x%" PRIx32 ")\n",
          cleanliness_wording[info->cleanliness].sentence, info->in_use);
  printf ("lock: %s\n", lock_wording[info->lock].sentence);
  print_extension (info->extension_offset);
  print_size ("file size", info->file_size);
  print_size ("disk usage", info->disk_usage);
}

static void
add_flags (JsonBuilder *builder, uint32_t flags)
{
  output_add_number (builder, "flags", flags);
  json_builder_set_member_name (builder, "flag-names");
  json_builder_begin_array (builder);
  for (size_t i = 0; i < G_N_ELEMENTS (known_flags); i++)
    if (flags & known_flags[i].bit)
      json_builder_add_string_value (builder, known_flags[i].name);
  json_builder_end_array (builder);
}

static void
print_json (const char *path, const struct ploop_info *info)
{
  g_autoptr (JsonBuilder) builder = json_builder_new ();

  json_builder_begin_object (builder);
  output_add_text (builder, "file", path);
  output_add_text (builder, "format", "ploop");
  output_add_number (builder, "version", info->version);
  output_add_number (builder, "size", info->size);
  output_add_number (builder, "cluster-size", info->cluster_size);
  output_add_number (builder, "clusters", info->nr_clusters);
  output_add_number (builder, "allocated-clusters", info->nr_allocated);
  output_add_number (builder, "heads", info->heads);
  output_add_number (builder, "cylinders", info->cylinders);
  output_add_number (builder, "data-offset", info->data_offset);
  add_flags (builder, info->flags);
  output_add_number (builder, "in-use", info->in_use);
  output_add_text (builder, "state",
                   cleanliness_wording[info->cleanliness].name);
  output_add_text (builder, "lock", lock_wording[info->lock].name);
  output_add_number (builder, "extension-offset", info->extension_offset);
  output_add_number (builder, "file-size", info->file_size);
  output_add_number (builder, "disk-usage", info->disk_usage);
  json_builder_end_object (builder);
  output_json (builder);
}

int
info_run (const struct subcommand *self, int argc, char **argv)
{
  const GOptionEntry entries[] = {
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  struct ploop_info info;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int status;

  arguments = command_line_parse (self, entries, COMMON_OUTPUT, &common,
                                  argc, argv, &status);
  if (arguments == NULL)
    return status;
  if (ploop_get_info (arguments[0], &info, &error) == -1)
    return report_error (error);
  if (common.output == OUTPUT_JSON)
    print_json (arguments[0], &info);
  else
    print_human (arguments[0], &info);
  return EXIT_SUCCESS;
}
