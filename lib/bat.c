/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Reading and judging a BAT: see bat.h.
 *
 * Who owns a cell is kept in an array of one word a cell: an anonymous mapping
 * that takes memory only where entries are.  That finds every pair of entries
 * with the same host cluster in one pass, as long as all clusters lie on the
 * grid.  v1 entries count sectors, so one may lie across two cells; those are
 * put aside and compared with their neighbours at the end.
 */

#include <config.h>

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "bat.h"

/* BAT bytes read at once. */
#define CHUNK ((size_t) 1 << 20)

struct placed {
  uint64_t offset;              /* of the host cluster in the file */
  uint32_t index;
};

struct scan {
  const struct delta *delta;
  const struct bat_visitor *visitor;
  struct bat_summary summary;
  uint32_t *owners;             /* of each cell: index + 1, 0: nobody */
  uint64_t nr_cells;            /* that the file holds and an entry can name */
  uint64_t nr_owned;            /* cells */
  GArray *off_grid;             /* of struct placed */
  bool stopped;
};

/* ---- Judging an entry -------------------------------------------------- */

static void
found_fault (struct scan *scan, enum bat_fault_kind kind, uint32_t index,
             uint32_t entry, uint32_t other)
{
  const struct bat_fault fault = {
    .kind = kind,
    .index = index,
    .entry = entry,
    .other = other,
  };

  if (scan->visitor->fault
      && !scan->visitor->fault (scan->visitor->opaque, &fault))
    scan->stopped = true;
}

static void
found_sound (struct scan *scan, uint32_t index, uint32_t entry,
             uint64_t offset)
{
  const uint64_t end = offset + scan->delta->layout.cluster_size;

  scan->summary.data_end = MAX (scan->summary.data_end, end);
  if (scan->visitor->entry
      && !scan->visitor->entry (scan->visitor->opaque, index, entry))
    scan->stopped = true;
}

/* Take a cell for INDEX.  Returns its owner before, as index + 1. */
static uint32_t
own (struct scan *scan, uint64_t cell, uint32_t index)
{
  const uint32_t before = scan->owners[cell];

  if (before == 0) {
    scan->owners[cell] = index + 1;
    scan->nr_owned++;
  }
  return before;
}

static void
judge (struct scan *scan, uint32_t index, uint32_t entry)
{
  const struct format_layout *layout = &scan->delta->layout;
  const uint64_t offset = format_entry_offset (layout, entry);
  const struct placed placed = { .offset = offset, .index = index };
  uint64_t cell;
  uint32_t owner;

  scan->summary.nr_allocated++;
  if (offset < layout->data_start) {
    found_fault (scan, BAT_BELOW_DATA, index, entry, 0);
    return;
  }
  if (offset >= scan->delta->file_size) {
    found_fault (scan, BAT_PAST_END, index, entry, 0);
    return;
  }
  if ((offset - layout->data_start) % layout->cluster_size != 0) {
    g_array_append_val (scan->off_grid, placed);
    return;
  }
  cell = (offset - layout->data_start) / layout->cluster_size;
  owner = own (scan, cell, index);
  if (owner != 0)
    found_fault (scan, BAT_SHARED, index, entry, owner - 1);
  else
    found_sound (scan, index, entry, offset);
}

/* ---- Entries off the grid ---------------------------------------------- */

static int
compare_placed (gconstpointer a, gconstpointer b)
{
  const struct placed *x = a, *y = b;

  if (x->offset != y->offset)
    return x->offset < y->offset ? -1 : 1;
  return x->index < y->index ? -1 : x->index > y->index;
}

/* Does a cluster on the grid overlap this one?  Its owner + 1, or 0. */
static uint32_t
on_grid_neighbour (const struct scan *scan, const struct placed *placed)
{
  const struct format_layout *layout = &scan->delta->layout;
  const uint64_t first =
    (placed->offset - layout->data_start) / layout->cluster_size;

  if (scan->owners[first] != 0)
    return scan->owners[first];
  return first + 1 < scan->nr_cells ? scan->owners[first + 1] : 0;
}

/* All clusters on the grid are known by now.  Two passes: whoever lies off the
 * grid is compared with the grid before it takes part of it.
 */
static void
judge_off_grid (struct scan *scan)
{
  const struct format_layout *layout = &scan->delta->layout;
  const struct placed *list = (const struct placed *) scan->off_grid->data;
  const guint n = scan->off_grid->len;

  g_array_sort (scan->off_grid, compare_placed);
  for (guint i = 0; i < n && !scan->stopped; i++) {
    const uint32_t entry = (uint32_t) (list[i].offset / layout->entry_unit);
    const uint32_t owner = on_grid_neighbour (scan, &list[i]);

    if (owner != 0)
      found_fault (scan, BAT_SHARED, list[i].index, entry, owner - 1);
    else if (i > 0
             && list[i].offset - list[i - 1].offset < layout->cluster_size)
      found_fault (scan, BAT_SHARED, list[i].index, entry, list[i - 1].index);
    else
      found_sound (scan, list[i].index, entry, list[i].offset);
  }
  for (guint i = 0; i < n; i++) {
    const uint64_t first =
      (list[i].offset - layout->data_start) / layout->cluster_size;

    own (scan, first, list[i].index);
    if (first + 1 < scan->nr_cells)
      own (scan, first + 1, list[i].index);
  }
}

/* ---- Reading ----------------------------------------------------------- */

/* Judge the entries in BYTES, LENGTH bytes at OFFSET of the file. */
static void
judge_chunk (struct scan *scan, const uint8_t *bytes, size_t length,
             uint64_t offset)
{
  for (size_t i = 0; i + FORMAT_ENTRY_SIZE <= length && !scan->stopped;
       i += FORMAT_ENTRY_SIZE) {
    const uint32_t entry = format_get_le32 (bytes + i);

    if (entry != 0)
      judge (scan,
             (uint32_t) ((offset + i - FORMAT_HEADER_SIZE) / FORMAT_ENTRY_SIZE),
             entry);
  }
}

/* Judge the entries between two offsets of the file. */
static int
judge_range (struct scan *scan, uint64_t start, uint64_t stop,
             uint8_t *buffer, GError **error)
{
  while (start < stop && !scan->stopped) {
    const size_t length = (size_t) MIN (stop - start, CHUNK);
    int r = delta_pread (scan->delta, buffer, length, start);

    if (r < 0) {
      error_set_system (error, r, "%s: BAT cannot be read at byte %"
                        G_GUINT64_FORMAT, scan->delta->path, start);
      return -1;
    }
    judge_chunk (scan, buffer, length, start);
    start += length;
  }
  return 0;
}

static int
scan_data (struct scan *scan, GError **error)
{
  const uint64_t end = scan->delta->layout.bat_end;
  g_autofree uint8_t *buffer = g_malloc (CHUNK);
  uint64_t start = FORMAT_HEADER_SIZE, stop;

  while (!scan->stopped
         && delta_next_data (scan->delta, end, &start, &stop)) {
    /* A hole may begin or end inside an entry; never at ours, but who knows
     * who wrote the file.
     */
    start -= (start - FORMAT_HEADER_SIZE) % FORMAT_ENTRY_SIZE;
    stop = MIN (end, stop + (end - stop) % FORMAT_ENTRY_SIZE);
    if (judge_range (scan, start, stop, buffer, error) < 0)
      return -1;
    start = stop;
  }
  return 0;
}

static int
map_owners (struct scan *scan, size_t *bytes, GError **error)
{
  *bytes = (size_t) MAX (scan->nr_cells, 1) * sizeof *scan->owners;
  scan->owners = mmap (NULL, *bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (scan->owners == MAP_FAILED) {
    error_set_system (error, errno, "%s: no memory to check the BAT (%zu "
                      "bytes)", scan->delta->path, *bytes);
    return -1;
  }
  /* Huge pages would make a sparse disk's array dense. */
  madvise (scan->owners, *bytes, MADV_NOHUGEPAGE);
  return 0;
}

int
bat_scan (const struct delta *delta, const struct bat_visitor *visitor,
          struct bat_summary *summary, GError **error)
{
  const struct format_layout *layout = &delta->layout;
  const uint64_t in_file = format_cells_below (layout, delta->file_size);
  struct scan scan = {
    .delta = delta,
    .visitor = visitor,
    .summary.data_end = layout->data_start,
    .nr_cells = MIN (in_file, format_nr_cells (layout)),
  };
  size_t bytes;
  int r;

  if (map_owners (&scan, &bytes, error) < 0)
    return -1;
  scan.off_grid = g_array_new (FALSE, FALSE, sizeof (struct placed));

  r = scan_data (&scan, error);
  if (r == 0 && !scan.stopped)
    judge_off_grid (&scan);
  scan.summary.nr_leaked = in_file - scan.nr_owned;
  if (summary)
    *summary = scan.summary;

  g_array_unref (scan.off_grid);
  munmap (scan.owners, bytes);
  return r;
}

/* ---- Faults ----------------------------------------------------------- */

bool
bat_fault_is_unfinished (const struct delta *delta,
                         const struct bat_fault *fault)
{
  const struct format_layout *layout = &delta->layout;
  /* Below 2^61: no overflow. */
  const uint64_t disk =
    (uint64_t) layout->nr_entries * layout->cluster_size;

  return fault->kind == BAT_PAST_END && format_is_dirty (delta->header.in_use)
         && format_entry_offset (layout, fault->entry)
              <= delta->file_size + layout->cluster_size + disk;
}

char *
bat_fault_describe (const struct delta *delta, const struct bat_fault *fault)
{
  const struct format_layout *layout = &delta->layout;
  const uint64_t offset = format_entry_offset (layout, fault->entry);
  g_autofree char *start =
    g_strdup_printf ("BAT entry %" G_GUINT32_FORMAT " is %" G_GUINT32_FORMAT
                     " (byte %" G_GUINT64_FORMAT ")", fault->index,
                     fault->entry, offset);

  switch (fault->kind) {
  case BAT_BELOW_DATA:
    return g_strdup_printf ("%s, before the first data offset (byte %"
                            G_GUINT64_FORMAT ")", start, layout->data_start);
  case BAT_PAST_END:
    return g_strdup_printf ("%s, past the end of the file (%" G_GUINT64_FORMAT
                            " bytes)", start, delta->file_size);
  case BAT_SHARED:
    return g_strdup_printf ("%s, which overlaps the host cluster of BAT entry %"
                            G_GUINT32_FORMAT, start, fault->other);
  }
  g_assert_not_reached ();
}
