/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img info: what a disk is, with all its deltas, or an image alone; for people
 * or as JSON.
 *
 * The names and values in JSON are an interface, described in ploop-img(1).
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static const struct wording extension_wording[] = {
  [PLOOP_EXTENSION_NONE] = { "none", "none" },
  [PLOOP_EXTENSION_VALID] = { "valid", "valid" },
  [PLOOP_EXTENSION_STALE] = { "stale",
    "stale, as the image was not closed since" },
  [PLOOP_EXTENSION_DAMAGED] = { "damaged", "damaged" },
};

static const struct ploop_delta_info *
get_delta (const struct ploop_disk_info *disk, guint i)
{
  return g_ptr_array_index (disk->deltas, i);
}

static bool
is_current (const struct ploop_disk_info *disk,
            const struct ploop_delta_info *delta)
{
  return disk->top && delta->guid && strcmp (disk->top, delta->guid) == 0;
}

/* ---- For people -------------------------------------------------------- */

/* In front of each line of a delta, if there are many of them. */
static const char *indent = "";

static void
print_size (const char *label, uint64_t bytes)
{
  g_autofree char *text = size_format_exact (bytes);

  printf ("%s%s: %s\n", indent, label, text);
}

static void
print_flags (uint32_t flags)
{
  const char *separator = "";

  printf ("%sflags: ", indent);
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
print_bitmap (const struct ploop_bitmap_info *bitmap)
{
  g_autofree char *granularity = size_format (bitmap->granularity);
  g_autofree char *size = size_format (bitmap->size);

  printf ("%sbitmap: %s, a bit for %s, of a disk of %s\n", indent, bitmap->uuid,
          granularity, size);
}

static void
print_extension (const struct ploop_delta_info *delta)
{
  const uint64_t offset = delta->info.extension_offset;

  if (offset == 0) {
    printf ("%sextension: none\n", indent);
    return;
  }
  printf ("%sextension: at byte %" PRIu64 "\n", indent, offset);
  printf ("%stracking: %s%s%s\n", indent,
          extension_wording[delta->extension].sentence,
          delta->extension_problem ? ": " : "",
          delta->extension_problem ? delta->extension_problem : "");
  for (guint i = 0; i < delta->bitmaps->len; i++)
    print_bitmap (g_ptr_array_index (delta->bitmaps, i));
}

static void
print_header (const struct ploop_delta_info *delta)
{
  const struct ploop_info *info = &delta->info;

  printf ("%sgeometry: %" PRIu32 " heads, %" PRIu32 " cylinders\n", indent,
          info->heads, info->cylinders);
  printf ("%sdata: from byte %" PRIu64 "\n", indent, info->data_offset);
  print_flags (info->flags);
  printf ("%sstate: %s (0x%" PRIx32 ")\n", indent,
          cleanliness_wording[info->cleanliness].sentence, info->in_use);
}

static void
print_image (const struct ploop_delta_info *delta)
{
  const struct ploop_info *info = &delta->info;
  const double percent = info->nr_clusters == 0 ? 0 :
    100.0 * info->nr_allocated / info->nr_clusters;

  if (delta->is_raw)
    printf ("%sformat: raw\n", indent);
  else
    printf ("%sformat: ploop, version %u\n", indent, info->version);
  print_size ("disk size", info->size);
  print_size ("cluster size", info->cluster_size);
  printf ("%sclusters: %" PRIu32 ", of which %" PRIu32
          " allocated (%.2f %%)\n", indent, info->nr_clusters,
          info->nr_allocated, percent);
  if (!delta->is_raw)
    print_header (delta);
  printf ("%slock: %s\n", indent, lock_wording[info->lock].sentence);
  if (!delta->is_raw)
    print_extension (delta);
  print_size ("file size", info->file_size);
  print_size ("disk usage", info->disk_usage);
}

static void
print_alone (const char *path, const struct ploop_disk_info *disk)
{
  const struct ploop_delta_info *delta = get_delta (disk, 0);

  printf ("file: %s\n", path);
  print_image (delta);
  if (delta->guid)
    printf ("delta: %s of %s\n", delta->guid, disk->descriptor);
  if (delta->parent)
    printf ("parent: %s\n", delta->parent);
}

static void
print_delta (const struct ploop_disk_info *disk,
             const struct ploop_delta_info *delta)
{
  printf ("\ndelta: %s\n", delta->file);
  indent = "  ";
  printf ("  guid: %s%s%s\n", delta->guid,
          is_current (disk, delta) ? " (the disk is written to this one)" : "",
          delta->has_shot ? "" : " (which no snapshot has)");
  if (disk->parts->len > 1)
    printf ("  part: %u\n", delta->part);
  if (delta->problem)
    printf ("  problem: %s\n", delta->problem);
  else
    print_image (delta);
  indent = "";
}

static void
print_disk (const struct ploop_disk_info *disk)
{
  printf ("disk: %s\n", disk->descriptor);
  if (disk->size != 0)
    print_size ("disk size", disk->size);
  else
    printf ("disk size: unknown, as its top cannot be opened\n");
  if (disk->size != disk->descriptor_size)
    print_size ("disk size by the descriptor", disk->descriptor_size);
  if (disk->parts->len > 1)
    printf ("parts: %u\n", disk->parts->len);
  printf ("top: %s\n", disk->top);
  printf ("lock: %s\n", lock_wording[disk->lock].sentence);
  print_size ("disk usage", disk->disk_usage);
  printf ("snapshots:\n");
  tree_print (disk->snapshots);
  for (guint i = 0; i < disk->deltas->len; i++)
    print_delta (disk, get_delta (disk, i));
}

/* ---- For programs ------------------------------------------------------ */

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
add_bitmap (JsonBuilder *builder, const struct ploop_bitmap_info *bitmap)
{
  json_builder_begin_object (builder);
  output_add_text (builder, "uuid", bitmap->uuid);
  output_add_number (builder, "size", bitmap->size);
  output_add_number (builder, "granularity", bitmap->granularity);
  json_builder_end_object (builder);
}

static void
add_extension (JsonBuilder *builder, const struct ploop_delta_info *delta)
{
  output_add_number (builder, "extension-offset", delta->info.extension_offset);
  output_add_text (builder, "extension",
                   extension_wording[delta->extension].name);
  if (delta->extension_problem)
    output_add_text (builder, "extension-problem", delta->extension_problem);
  json_builder_set_member_name (builder, "bitmaps");
  json_builder_begin_array (builder);
  for (guint i = 0; i < delta->bitmaps->len; i++)
    add_bitmap (builder, g_ptr_array_index (delta->bitmaps, i));
  json_builder_end_array (builder);
}

static void
add_header (JsonBuilder *builder, const struct ploop_info *info)
{
  output_add_number (builder, "heads", info->heads);
  output_add_number (builder, "cylinders", info->cylinders);
  output_add_number (builder, "data-offset", info->data_offset);
  add_flags (builder, info->flags);
  output_add_number (builder, "in-use", info->in_use);
  output_add_text (builder, "state",
                   cleanliness_wording[info->cleanliness].name);
}

static void
add_image (JsonBuilder *builder, const struct ploop_delta_info *delta)
{
  const struct ploop_info *info = &delta->info;

  output_add_text (builder, "format", delta->is_raw ? "raw" : "ploop");
  if (!delta->is_raw)
    output_add_number (builder, "version", info->version);
  output_add_number (builder, "size", info->size);
  output_add_number (builder, "cluster-size", info->cluster_size);
  output_add_number (builder, "clusters", info->nr_clusters);
  output_add_number (builder, "allocated-clusters", info->nr_allocated);
  if (!delta->is_raw)
    add_header (builder, info);
  output_add_text (builder, "lock", lock_wording[info->lock].name);
  if (!delta->is_raw)
    add_extension (builder, delta);
  output_add_number (builder, "file-size", info->file_size);
  output_add_number (builder, "disk-usage", info->disk_usage);
  output_add_time (builder, "last-change", delta->last_change);
}

static void
add_alone (JsonBuilder *builder, const struct ploop_disk_info *disk)
{
  const struct ploop_delta_info *delta = get_delta (disk, 0);

  add_image (builder, delta);
  if (disk->descriptor)
    output_add_text (builder, "descriptor", disk->descriptor);
  if (delta->guid)
    output_add_text (builder, "guid", delta->guid);
  if (delta->parent)
    output_add_text (builder, "parent", delta->parent);
}

static void
add_delta (JsonBuilder *builder, const struct ploop_disk_info *disk,
           const struct ploop_delta_info *delta)
{
  json_builder_begin_object (builder);
  output_add_text (builder, "file", delta->file);
  if (delta->path)
    output_add_text (builder, "path", delta->path);
  output_add_text (builder, "guid", delta->guid);
  if (delta->parent)
    output_add_text (builder, "parent", delta->parent);
  output_add_number (builder, "part", delta->part);
  output_add_truth (builder, "current", is_current (disk, delta));
  output_add_truth (builder, "unused", !delta->has_shot);
  if (delta->problem)
    output_add_text (builder, "problem", delta->problem);
  else
    add_image (builder, delta);
  json_builder_end_object (builder);
}

static void
add_part (JsonBuilder *builder, const struct ploop_part_info *part)
{
  json_builder_begin_object (builder);
  output_add_number (builder, "start", part->start);
  output_add_number (builder, "length", part->length);
  output_add_number (builder, "cluster-size", part->cluster_size);
  json_builder_end_object (builder);
}

static void
add_disk (JsonBuilder *builder, const struct ploop_disk_info *disk)
{
  output_add_text (builder, "format", "ploop");
  output_add_text (builder, "descriptor", disk->descriptor);
  output_add_number (builder, "size", disk->size);
  output_add_number (builder, "descriptor-size", disk->descriptor_size);
  output_add_text (builder, "top", disk->top);
  output_add_text (builder, "lock", lock_wording[disk->lock].name);
  output_add_number (builder, "disk-usage", disk->disk_usage);
  json_builder_set_member_name (builder, "parts");
  json_builder_begin_array (builder);
  for (guint i = 0; i < disk->parts->len; i++)
    add_part (builder, &g_array_index (disk->parts, struct ploop_part_info, i));
  json_builder_end_array (builder);
  tree_add (builder, disk->snapshots);
  json_builder_set_member_name (builder, "deltas");
  json_builder_begin_array (builder);
  for (guint i = 0; i < disk->deltas->len; i++)
    add_delta (builder, disk, get_delta (disk, i));
  json_builder_end_array (builder);
}

static void
print_json (const char *path, const struct ploop_disk_info *disk)
{
  g_autoptr (JsonBuilder) builder = json_builder_new ();

  json_builder_begin_object (builder);
  output_add_text (builder, "file", path);
  if (disk->is_image)
    add_alone (builder, disk);
  else
    add_disk (builder, disk);
  json_builder_end_object (builder);
  output_json (builder);
}

/* ---- The subcommand ---------------------------------------------------- */

int
info_run (const struct subcommand *self, int argc, char **argv)
{
  gboolean allow_outside = FALSE;
  const GOptionEntry entries[] = {
    { "allow-outside", 0, 0, G_OPTION_ARG_NONE, &allow_outside,
      "The descriptor may name files outside its directory", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  struct ploop_disk_info *disk;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int status;

  arguments = command_line_parse (self, entries, COMMON_OUTPUT, &common,
                                  argc, argv, &status);
  if (arguments == NULL)
    return status;
  disk = ploop_describe_disk (arguments[0], allow_outside, &error);
  if (!disk)
    return report_error (error);
  if (common.output == OUTPUT_JSON)
    print_json (arguments[0], disk);
  else if (disk->is_image)
    print_alone (arguments[0], disk);
  else
    print_disk (disk);
  ploop_disk_info_free (disk);
  return EXIT_SUCCESS;
}
