/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The file of a delta by ranges: see map-file.h.
 *
 * A BAT says where each guest cluster is; here the question is what lies at each
 * place of the file.  So the entries are collected, with their indices, and sorted
 * by place.  What is between them is the extension's, a hole, or leaked.
 */

#include <config.h>

#include <errno.h>

#include "bat.h"
#include "extension.h"
#include "map-file.h"

/* An entry and its index, in one number that sorts by what is in the upper half. */
#define PAIR(upper, lower) ((uint64_t) (upper) << 32 | (lower))
#define UPPER(pair) ((uint32_t) ((pair) >> 32))
#define LOWER(pair) ((uint32_t) (pair))

struct walk {
  const struct map_file *file;
  const struct delta *delta;
  GArray *clusters;             /* of uint64_t: PAIR of index and entry, then the
                                   other way round */
  GArray *extension;            /* of uint64_t: offsets of clusters, sorted */
  bool (*tell) (void *opaque, const struct ploop_map_range *range);
  void *opaque;
  struct ploop_map_range last;  /* not told yet; length 0: none */
  struct ploop_map_usage *usage;
  bool stopped;
};

/* ---- Clusters ---------------------------------------------------------- */

static gint
compare_numbers (gconstpointer a, gconstpointer b)
{
  const uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

  return x < y ? -1 : x > y;
}

/* BATs are in order already, and files often. */
static void
sort_numbers (GArray *numbers)
{
  for (guint i = 1; i < numbers->len; i++)
    if (g_array_index (numbers, uint64_t, i - 1)
        > g_array_index (numbers, uint64_t, i)) {
      g_array_sort (numbers, compare_numbers);
      return;
    }
}

static bool
collect_entry (void *opaque, uint32_t index, uint32_t entry)
{
  GArray *clusters = opaque;
  const uint64_t pair = PAIR (index, entry);

  g_array_append_val (clusters, pair);
  return true;
}

/* All clusters of a raw disk that are not holes, as the map has them. */
static void
collect_raw (const struct delta *delta, GArray *clusters)
{
  const uint32_t cluster_size = delta->layout.cluster_size;
  uint64_t start = 0, stop, next = 0;

  while (delta_next_data_at_open (delta, delta->file_size, &start, &stop)) {
    for (next = MAX (next, start / cluster_size); next * cluster_size < stop;
         next++)
      collect_entry (clusters, (uint32_t) next, (uint32_t) next);
    start = stop;
  }
}

/* An entry with a fault is that of a cluster that was never flushed: with any
 * other, the disk would not have been opened.
 */
static int
collect_clusters (struct walk *walk, GError **error)
{
  const struct bat_visitor visitor = {
    .entry = collect_entry,
    .opaque = walk->clusters,
  };

  if (!walk->delta->is_raw)
    return bat_scan (walk->delta, &visitor, NULL, error);
  collect_raw (walk->delta, walk->clusters);
  return 0;
}

/* By index: how many pieces of the disk there are. */
static void
count_pieces (struct walk *walk)
{
  const uint64_t *pairs = (const uint64_t *) walk->clusters->data;
  const guint nr = walk->clusters->len;

  walk->usage->nr_allocated = nr;
  for (guint i = 0; i < nr; i++)
    if (i == 0 || UPPER (pairs[i]) != UPPER (pairs[i - 1]) + 1)
      walk->usage->nr_least_fragments++;
}

/* From sorted by index to sorted by entry. */
static void
turn (GArray *clusters)
{
  for (guint i = 0; i < clusters->len; i++) {
    uint64_t *pair = &g_array_index (clusters, uint64_t, i);

    *pair = PAIR (LOWER (*pair), UPPER (*pair));
  }
  sort_numbers (clusters);
}

/* By entry. */
static void
count_fragments (struct walk *walk)
{
  const struct format_layout *layout = &walk->delta->layout;
  const uint64_t *pairs = (const uint64_t *) walk->clusters->data;

  for (guint i = 0; i < walk->clusters->len; i++)
    if (i == 0 || LOWER (pairs[i]) != LOWER (pairs[i - 1]) + 1
        || format_entry_offset (layout, UPPER (pairs[i]))
             != format_entry_offset (layout, UPPER (pairs[i - 1]))
                  + layout->cluster_size)
      walk->usage->nr_fragments++;
}

/* ---- The extension ----------------------------------------------------- */

/* Returns NULL, or what is wrong with it (g_free). */
static char *
parse_extension (struct walk *walk, const uint8_t *bytes)
{
  const struct delta *delta = walk->delta;
  const uint64_t offset = delta->header.extension_sectors * FORMAT_SECTOR_SIZE;
  struct extension extension;
  char *wrong = extension_parse (bytes, &delta->layout, delta->file_size,
                                 &extension);

  if (wrong)
    return wrong;
  g_array_append_val (walk->extension, offset);
  g_array_append_vals (walk->extension, extension.bit_clusters->data,
                       extension.bit_clusters->len);
  g_array_sort (walk->extension, compare_numbers);
  extension_clear (&extension);
  return NULL;
}

static int
read_extension (struct walk *walk, char **wrong, GError **error)
{
  const struct delta *delta = walk->delta;
  const uint32_t cluster_size = delta->layout.cluster_size;
  const uint64_t offset = delta->header.extension_sectors * FORMAT_SECTOR_SIZE;
  g_autofree uint8_t *bytes = NULL;
  int r = -ENOMEM;

  /* Nobody writes it into larger ones, and they may be 2 GiB. */
  if (cluster_size > FORMAT_MAX_CREATE_CLUSTER) {
    *wrong = g_strdup_printf ("extension in a cluster of %" G_GUINT32_FORMAT
                              " bytes", cluster_size);
    return 0;
  }
  bytes = g_try_malloc (cluster_size);
  if (bytes)
    r = delta_pread (delta, bytes, cluster_size, offset);
  if (r < 0) {
    error_set_system (error, r, "%s: extension cannot be read at byte %"
                      G_GUINT64_FORMAT, delta->path, offset);
    return -1;
  }
  *wrong = parse_extension (walk, bytes);
  return 0;
}

/* What is no valid extension is nobody's. */
static int
find_extension (struct walk *walk, GError **error)
{
  const struct delta *delta = walk->delta;
  g_autofree char *wrong = NULL;

  if (delta->is_raw || !format_has_valid_extension (&delta->header))
    return 0;
  wrong = extension_check_place (&delta->header, &delta->layout,
                                 delta->file_size);
  if (!wrong && read_extension (walk, &wrong, error) < 0)
    return -1;
  if (wrong)
    log_warning (walk->file->log, "%s: %s: its clusters are shown as leaked",
                 delta->path, wrong);
  return 0;
}

/* ---- Telling ----------------------------------------------------------- */

static bool
has_guest_offset (enum ploop_map_use use)
{
  return use == PLOOP_USE_DATA || use == PLOOP_USE_HIDDEN;
}

static void
tell_last (struct walk *walk)
{
  if (walk->last.length == 0 || walk->stopped)
    return;
  walk->usage->bytes[walk->last.use] += walk->last.length;
  if (walk->tell && !walk->tell (walk->opaque, &walk->last))
    walk->stopped = true;
}

/* Does what begins at GUEST_OFFSET of the disk, if it does, go on with the last? */
static bool
goes_on (const struct walk *walk, enum ploop_map_use use,
         uint64_t guest_offset)
{
  return walk->last.use == use
         && (!has_guest_offset (use)
             || walk->last.guest_offset + walk->last.length == guest_offset);
}

/* How far the file has been told. */
static uint64_t
told (const struct walk *walk)
{
  return walk->last.offset + walk->last.length;
}

/* What lies between what was told and END. */
static void
tell (struct walk *walk, enum ploop_map_use use, uint64_t end,
      uint64_t guest_offset)
{
  const uint64_t start = told (walk);

  end = MIN (end, walk->delta->file_size);
  if (end <= start)
    return;
  if (goes_on (walk, use, guest_offset)) {
    walk->last.length += end - start;
    return;
  }
  tell_last (walk);
  walk->last.use = use;
  walk->last.offset = start;
  walk->last.length = end - start;
  walk->last.guest_offset = guest_offset;
}

/* What is nobody's, up to END.  Of a raw disk all that is left is holes. */
static void
tell_unused (struct walk *walk, uint64_t end)
{
  while (told (walk) < end && !walk->stopped) {
    uint64_t start = told (walk), stop = end;

    if (walk->delta->is_raw
        || !delta_next_data (walk->delta, end, &start, &stop))
      start = end;
    tell (walk, PLOOP_USE_FREE, start, 0);
    if (start < end)
      tell (walk, PLOOP_USE_LEAKED, stop, 0);
  }
}

/* What is no guest's, up to END, which is not behind the end of the file. */
static void
tell_gap (struct walk *walk, uint64_t end)
{
  const uint64_t cluster_size = walk->delta->layout.cluster_size;

  for (guint i = 0; i < walk->extension->len && told (walk) < end; i++) {
    const uint64_t offset = g_array_index (walk->extension, uint64_t, i);

    if (offset + cluster_size <= told (walk))
      continue;
    if (offset >= end)
      break;
    tell_unused (walk, offset);
    tell (walk, PLOOP_USE_EXTENSION, MIN (offset + cluster_size, end), 0);
  }
  tell_unused (walk, end);
}

/* Does the guest read its cluster INDEX from here? */
static bool
is_read (const struct walk *walk, uint32_t index)
{
  const struct map_file *file = walk->file;

  if (index >= file->map->nr_clusters
      || (uint64_t) index * walk->delta->layout.cluster_size >= file->length)
    return false;
  return map_word_level (map_lookup (file->map, index)) == file->level;
}

static void
tell_cluster (struct walk *walk, uint64_t pair)
{
  const struct format_layout *layout = &walk->delta->layout;
  const uint64_t offset = format_entry_offset (layout, UPPER (pair));
  const uint64_t guest_offset =
    walk->file->start + (uint64_t) LOWER (pair) * layout->cluster_size;

  tell_gap (walk, MIN (offset, walk->delta->file_size));
  tell (walk, is_read (walk, LOWER (pair)) ? PLOOP_USE_DATA : PLOOP_USE_HIDDEN,
        offset + layout->cluster_size, guest_offset);
}

static void
tell_file (struct walk *walk)
{
  if (!walk->delta->is_raw)
    tell (walk, PLOOP_USE_METADATA, walk->delta->layout.data_start, 0);
  for (guint i = 0; i < walk->clusters->len && !walk->stopped; i++)
    tell_cluster (walk, g_array_index (walk->clusters, uint64_t, i));
  tell_gap (walk, walk->delta->file_size);
  tell_last (walk);
}

/* ---- All of it --------------------------------------------------------- */

static int
walk_file (struct walk *walk, GError **error)
{
  if (find_extension (walk, error) < 0 || collect_clusters (walk, error) < 0)
    return -1;
  sort_numbers (walk->clusters);
  count_pieces (walk);
  turn (walk->clusters);
  count_fragments (walk);
  tell_file (walk);
  return 0;
}

int
map_file_tell (const struct map_file *file,
               bool (*range) (void *opaque,
                              const struct ploop_map_range *range),
               void *opaque, struct ploop_map_usage *usage, bool *stopped,
               GError **error)
{
  g_autoptr (GArray) clusters = g_array_new (FALSE, FALSE, sizeof (uint64_t));
  g_autoptr (GArray) extension = g_array_new (FALSE, FALSE, sizeof (uint64_t));
  struct walk walk = {
    .file = file,
    .delta = file->chain->levels[file->level],
    .clusters = clusters,
    .extension = extension,
    .tell = range,
    .opaque = opaque,
    .last.delta = file->index,
    .usage = usage,
  };
  int r;

  *usage = (struct ploop_map_usage) { .delta = file->index };
  r = walk_file (&walk, error);
  *stopped = walk.stopped;
  return r;
}
