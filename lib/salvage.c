/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A delta of a damaged disk: see salvage.h.
 *
 * bat_scan, which judges the BATs of images that are going to be served, gives up at
 * what cannot be read.  Here every entry is judged by itself, when it is asked for;
 * only who shares a place with whom has to be found out beforehand, by sorting the
 * entries.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "bat.h"
#include "salvage.h"
#include "sparse.h"

/* BAT bytes read at once. */
#define CHUNK ((size_t) 1 << 20)

/* Entries that are not known. */
struct unknown {
  uint32_t first;
  uint32_t end;                 /* the first behind them */
  enum ploop_rescue_reason reason;
};

struct shared {
  uint32_t index, other;
};

void
salvage_close (struct salvage *salvage)
{
  if (!salvage)
    return;
  tolerant_close (salvage->file);
  sparse_free (salvage->entries, salvage->entries_bytes);
  g_array_unref (salvage->unknown);
  g_array_unref (salvage->shared);
  g_free (salvage->name);
  g_free (salvage);
}

struct salvage *
salvage_new_missing (const char *name)
{
  struct salvage *salvage = g_new0 (struct salvage, 1);

  salvage->name = g_strdup (name);
  salvage->unknown = g_array_new (FALSE, FALSE, sizeof (struct unknown));
  salvage->shared = g_array_new (FALSE, FALSE, sizeof (struct shared));
  return salvage;
}

void
salvage_be_raw (struct salvage *salvage, uint32_t cluster_size)
{
  salvage->layout = (struct format_layout) {
    .size = salvage->file->delta->file_size,
    .cluster_size = cluster_size,
    .entry_unit = cluster_size,
  };
}

/* ---- The BAT ----------------------------------------------------------- */

/* The entry at byte OFFSET of the file, from the header's end on. */
static uint32_t
entry_at (uint64_t offset)
{
  return (uint32_t) ((offset - FORMAT_HEADER_SIZE) / FORMAT_ENTRY_SIZE);
}

/* Those from byte START to END of the file, behind all that were added before. */
static void
add_unknown (struct salvage *salvage, uint64_t start, uint64_t end,
             enum ploop_rescue_reason reason)
{
  const struct unknown unknown = {
    .first = entry_at (start),
    .end = entry_at (end + FORMAT_ENTRY_SIZE - 1),
    .reason = reason,
  };
  GArray *list = salvage->unknown;
  struct unknown *last =
    list->len > 0 ? &g_array_index (list, struct unknown, list->len - 1) : NULL;

  if (last && last->end == unknown.first && last->reason == reason)
    last->end = unknown.end;
  else
    g_array_append_val (list, unknown);
}

static void
note_bad_bat (void *opaque, uint64_t offset, uint64_t length)
{
  add_unknown (opaque, offset, offset + length, PLOOP_RESCUE_BAT_UNREADABLE);
}

static void
take_entries (struct salvage *salvage, const uint8_t *bytes, size_t length,
              uint64_t offset)
{
  const uint32_t first = entry_at (offset);

  for (size_t i = 0; i + FORMAT_ENTRY_SIZE <= length; i += FORMAT_ENTRY_SIZE) {
    const uint32_t entry = format_get_le32 (bytes + i);

    if (entry != 0)
      salvage->entries[first + i / FORMAT_ENTRY_SIZE] = entry;
  }
}

/* Read what FILE has of the BAT. */
static void
read_bat (struct salvage *salvage, const struct tolerant *file)
{
  const uint64_t end = MIN (salvage->layout.bat_end, file->delta->file_size);
  uint64_t start = FORMAT_HEADER_SIZE, stop;
  g_autofree uint8_t *buffer = g_malloc (CHUNK);

  while (delta_next_data (file->delta, end, &start, &stop)) {
    start -= (start - FORMAT_HEADER_SIZE) % FORMAT_ENTRY_SIZE;
    for (size_t n; start < stop; start += n) {
      n = (size_t) MIN (stop - start, CHUNK);
      tolerant_read (file, buffer, n, start, note_bad_bat, salvage);
      take_entries (salvage, buffer, n, start);
    }
  }
  if (end < salvage->layout.bat_end)
    add_unknown (salvage,
                 MAX (end / FORMAT_ENTRY_SIZE * FORMAT_ENTRY_SIZE,
                      FORMAT_HEADER_SIZE),
                 salvage->layout.bat_end, PLOOP_RESCUE_BAT_CUT_OFF);
}

/* ---- Who shares a place ------------------------------------------------ */

static int
compare_by_entry (gconstpointer a, gconstpointer b, gpointer opaque)
{
  const struct salvage *salvage = opaque;
  const uint32_t x = *(const uint32_t *) a, y = *(const uint32_t *) b;
  const uint32_t s = salvage->entries[x], t = salvage->entries[y];

  return s != t ? (s < t ? -1 : 1) : (x > y) - (x < y);
}

static int
compare_shared (gconstpointer a, gconstpointer b)
{
  const struct shared *x = a, *y = b;

  return (x->index > y->index) - (x->index < y->index);
}

/* The clusters of the file: what other entries say cannot be shared. */
static bool
is_in_file (const struct salvage *salvage, uint32_t index)
{
  const uint64_t offset =
    format_entry_offset (&salvage->layout, salvage->entries[index]);

  return offset >= salvage->layout.data_start
         && offset < salvage->file->delta->file_size;
}

static void
add_shared (struct salvage *salvage, uint32_t index, uint32_t other)
{
  const struct shared shared = { index, other };
  const GArray *list = salvage->shared;

  if (list->len > 0
      && g_array_index (list, struct shared, list->len - 1).index == index)
    return;
  g_array_append_val (salvage->shared, shared);
}

/* Neighbours by place that overlap.  One may overlap two that follow it only if
 * these overlap each other, as all are of one length.
 */
static void
find_shared (struct salvage *salvage)
{
  const struct format_layout *layout = &salvage->layout;
  g_autoptr (GArray) order = g_array_new (FALSE, FALSE, sizeof (uint32_t));

  for (uint32_t i = 0; i < layout->nr_entries; i++)
    if (salvage->entries[i] != 0 && is_in_file (salvage, i))
      g_array_append_val (order, i);
  g_array_sort_with_data (order, compare_by_entry, salvage);
  for (guint i = 1; i < order->len; i++) {
    const uint32_t before = g_array_index (order, uint32_t, i - 1);
    const uint32_t here = g_array_index (order, uint32_t, i);

    if (format_entry_offset (layout, salvage->entries[here])
          - format_entry_offset (layout, salvage->entries[before])
        < layout->cluster_size) {
      add_shared (salvage, before, here);
      add_shared (salvage, here, before);
    }
  }
  g_array_sort (salvage->shared, compare_shared);
}

/* ---- Opening ----------------------------------------------------------- */

static void
note_bad_header (void *opaque, uint64_t offset G_GNUC_UNUSED,
                 uint64_t length G_GNUC_UNUSED)
{
  bool *is_bad = opaque;

  *is_bad = true;
}

/* How many entries may have been overwritten with the header: those that are zeros
 * from the first one on, in whole sectors, one at least.
 */
static uint32_t
nr_wiped (const struct salvage *salvage)
{
  const uint32_t nr_entries = salvage->layout.nr_entries;
  uint32_t i = 0;

  while (i < nr_entries && salvage->entries[i] == 0)
    i++;
  if (i == nr_entries)
    return i;
  return entry_at (MAX (format_bat_offset (i) / FORMAT_SECTOR_SIZE, 1)
                   * FORMAT_SECTOR_SIZE);
}

static bool
new_entries (struct salvage *salvage, GError **error)
{
  salvage->entries_bytes =
    (size_t) salvage->layout.nr_entries * FORMAT_ENTRY_SIZE;
  salvage->entries = sparse_new (salvage->entries_bytes);
  if (!salvage->entries)
    error_set_system (error, errno, "%s: no memory for its BAT (%zu bytes)",
                      salvage->name, salvage->entries_bytes);
  return salvage->entries != NULL;
}

/* The index clusters are in one form or in the other. */
static bool
check_conversion (const struct salvage *salvage,
                  const struct format_header *header, GError **error)
{
  if (!(header->flags & FORMAT_FLAG_CONVERSION)
      || !format_is_dirty (header->in_use))
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
               "%s: flags are %" G_GUINT32_FORMAT " and in use is 0x%08"
               G_GINT32_MODIFIER "x: a version conversion was interrupted, and "
               "the BAT may be in the form of either version: give %s.idx, where "
               "the ploop tool keeps the old one, as the index; or the image "
               "itself, to take the BAT as it is", salvage->name,
               header->flags, header->in_use, salvage->name);
  return false;
}

/* Read header and BAT from FILE. */
static bool
read_index (struct salvage *salvage, const struct tolerant *file,
            const struct salvage_source *source, const struct log *log,
            GError **error)
{
  static const struct header_given nothing;
  uint8_t bytes[FORMAT_HEADER_SIZE];
  struct format_header header;
  bool is_bad = false, is_sound, has_signature;

  tolerant_read (file, bytes, sizeof bytes, 0, note_bad_header, &is_bad);
  is_sound = !is_bad && header_is_sound (bytes, file->delta->file_size);
  if (source->may_be_raw && source->given.version == 0
      && !format_decode_header (bytes, &header)) {
    log_warning (log, "%s: has no ploop signature%s: taken for a raw disk",
                 salvage->name, is_bad ? ", as far as it can be read" : "");
    salvage->is_raw = true;
    return true;
  }
  has_signature = format_decode_header (bytes, &header);
  if (!header_judge (file, salvage->name, bytes,
                     is_sound && !source->insist ? &nothing : &source->given,
                     log, &header, &salvage->layout, error)
      || (!source->index && has_signature
          && !check_conversion (salvage, &header, error))
      || !new_entries (salvage, error))
    return false;
  salvage->has_in_use_mark = has_signature && header.in_use == FORMAT_IN_USE;
  read_bat (salvage, file);
  salvage->nr_wiped = has_signature ? 0 : nr_wiped (salvage);
  find_shared (salvage);
  return true;
}

static bool
open_index (struct salvage *salvage, const struct salvage_source *source,
            const struct log *log, GError **error)
{
  struct tolerant *index;
  bool ok;

  if (!source->index)
    return read_index (salvage, salvage->file, source, log, error);
  index = tolerant_open (source->index, -1, log, error);
  ok = index && read_index (salvage, index, source, log, error);
  tolerant_close (index);
  return ok;
}

struct salvage *
salvage_open (const struct salvage_source *source, const struct log *log,
              GError **error)
{
  struct salvage *salvage = salvage_new_missing (source->path);

  salvage->file = tolerant_open (source->path, source->path_fd, log, error);
  if (salvage->file && salvage->file->delta->remote)
    salvage->is_raw = true;
  else if (!salvage->file || !open_index (salvage, source, log, error)) {
    salvage_close (salvage);
    return NULL;
  }
  return salvage;
}

/* ---- Looking ----------------------------------------------------------- */

/* Is the entry not known?  Then *REASON is why. */
static bool
is_unknown (const struct salvage *salvage, uint32_t index,
            enum ploop_rescue_reason *reason)
{
  const struct unknown *list = (const struct unknown *) salvage->unknown->data;
  guint low = 0, high = salvage->unknown->len;

  while (low < high) {
    const guint middle = low + (high - low) / 2;

    if (list[middle].end <= index)
      low = middle + 1;
    else
      high = middle;
  }
  *reason = PLOOP_RESCUE_BAT_WIPED;
  if (low == salvage->unknown->len || list[low].first > index)
    return index < salvage->nr_wiped && salvage->entries[index] == 0;
  *reason = list[low].reason;
  return true;
}

static bool
find_shared_with (const struct salvage *salvage, uint32_t index,
                  uint32_t *other)
{
  const struct shared key = { index, 0 };
  guint at;

  if (!g_array_binary_search (salvage->shared, &key, compare_shared, &at))
    return false;
  *other = g_array_index (salvage->shared, struct shared, at).other;
  return true;
}

/* What the entry of a cluster that is on the disk says. */
static void
look_at_entry (const struct salvage *salvage, uint32_t index,
               struct salvage_place *place)
{
  const struct format_layout *layout = &salvage->layout;
  const uint64_t file_size = salvage->file->delta->file_size;
  const uint32_t entry = salvage->entries[index];
  const uint64_t offset = format_entry_offset (layout, entry);

  if (is_unknown (salvage, index, &place->reason))
    place->state = SALVAGE_LOST;
  else if (entry == 0)
    return;
  else if (offset < layout->data_start) {
    place->state = SALVAGE_LOST;
    place->reason = PLOOP_RESCUE_BELOW_DATA;
  }
  else if (offset >= file_size) {
    const bool unfinished =
      salvage->has_in_use_mark
      && bat_is_within_preallocation (layout, file_size, offset);

    place->state = unfinished ? SALVAGE_UNFINISHED : SALVAGE_LOST;
    place->reason =
      unfinished ? PLOOP_RESCUE_UNFINISHED : PLOOP_RESCUE_PAST_END;
  }
  else {
    place->offset = offset;
    place->nr_there = (uint32_t) MIN (place->length, file_size - offset);
    place->state = find_shared_with (salvage, index, &place->other)
                     ? SALVAGE_SHARED : SALVAGE_SOUND;
  }
}

void
salvage_look (const struct salvage *salvage, uint64_t index,
              struct salvage_place *place)
{
  const struct format_layout *layout = &salvage->layout;
  uint64_t start;

  *place = (struct salvage_place) { .state = SALVAGE_NOTHING };
  if (!salvage->file) {
    place->state = SALVAGE_LOST;
    place->reason = PLOOP_RESCUE_MISSING_DELTA;
    return;
  }
  start = index * layout->cluster_size;
  if (start >= layout->size)
    return;
  place->length = (uint32_t) MIN (layout->cluster_size, layout->size - start);
  if (!salvage->is_raw)
    look_at_entry (salvage, (uint32_t) index, place);
  else {
    place->state = SALVAGE_SOUND;
    place->offset = start;
    place->nr_there = place->length;
  }
}
