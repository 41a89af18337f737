/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Reading and judging a BAT: see bat.h.
 *
 * Which cells are taken is a bitmap that takes memory only where entries are,
 * and never more than 512 MiB, whatever the file claims.  That finds every entry
 * whose host cluster is taken in one pass, as long as all clusters lie on the
 * grid; a second pass, only when there are such, finds whom they share it with.
 * v1 entries count sectors, so one may lie across two cells; those are put aside
 * and compared with their neighbours at the end.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "bat.h"
#include "sparse.h"

/* The most that a writer adds to a file at once: qemu's and the kernel's
 * default, and ours.
 */
#define PREALLOCATION (UINT64_C (128) << 20)

/* BAT bytes read at once. */
#define CHUNK ((size_t) 1 << 20)

/* An entry off the grid. */
struct placed {
  uint64_t offset;              /* of the host cluster in the file */
  uint32_t index;
};

/* An entry whose host cluster is taken: by the entry on the grid that owns
 * CELL, to be found yet, or by OTHER.
 */
struct conflict {
  uint32_t index, entry;
  uint64_t cell;                /* NO_CELL: other is known */
  uint32_t other;
};

#define NO_CELL UINT64_MAX
#define WORD_BITS 64u

/* Of entries that are off the grid, or share a cluster: what takes a GiB of
 * memory to remember is no image.
 */
#define MAX_REMEMBERED (UINT32_C (1) << 25)

struct scan {
  const struct delta *delta;
  const struct bat_visitor *visitor;
  struct bat_summary summary;
  uint64_t *taken;              /* a bit a cell */
  uint64_t nr_cells;            /* that the file holds and an entry can name */
  uint64_t nr_taken;
  GArray *off_grid;             /* of struct placed */
  GArray *conflicts;            /* of struct conflict */
  bool stopped;
  bool too_many;                /* to remember; stopped for that */
};

/* ---- Remembering ------------------------------------------------------- */

/* May another be added to LIST? */
static bool
has_room (struct scan *scan, const GArray *list)
{
  if (list->len < MAX_REMEMBERED)
    return true;
  scan->stopped = scan->too_many = true;
  return false;
}

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

static bool
is_taken (const struct scan *scan, uint64_t cell)
{
  return cell < scan->nr_cells
         && (scan->taken[cell / WORD_BITS] >> cell % WORD_BITS & 1) != 0;
}

static void
take_cell (struct scan *scan, uint64_t cell)
{
  if (cell >= scan->nr_cells || is_taken (scan, cell))
    return;
  scan->taken[cell / WORD_BITS] |= UINT64_C (1) << cell % WORD_BITS;
  scan->nr_taken++;
}

static void
found_conflict (struct scan *scan, uint32_t index, uint32_t entry,
                uint64_t cell, uint32_t other)
{
  const struct conflict conflict = {
    .index = index,
    .entry = entry,
    .cell = cell,
    .other = other,
  };

  if (has_room (scan, scan->conflicts))
    g_array_append_val (scan->conflicts, conflict);
}

static void
judge (struct scan *scan, uint32_t index, uint32_t entry)
{
  const struct format_layout *layout = &scan->delta->layout;
  const uint64_t offset = format_entry_offset (layout, entry);
  const struct placed placed = { .offset = offset, .index = index };

  scan->summary.nr_allocated++;
  if (offset < layout->data_start)
    found_fault (scan, BAT_BELOW_DATA, index, entry, 0);
  else if (offset >= scan->delta->file_size)
    found_fault (scan, BAT_PAST_END, index, entry, 0);
  else if (!format_is_on_grid (layout, offset)) {
    if (has_room (scan, scan->off_grid))
      g_array_append_val (scan->off_grid, placed);
  }
  else if (is_taken (scan, format_cell_at (layout, offset)))
    found_conflict (scan, index, entry, format_cell_at (layout, offset), 0);
  else {
    take_cell (scan, format_cell_at (layout, offset));
    found_sound (scan, index, entry, offset);
  }
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

/* Judge LIST[I], one of a sorted list. */
static void
judge_placed (struct scan *scan, const struct placed *list, guint i)
{
  const struct format_layout *layout = &scan->delta->layout;
  const struct placed *placed = &list[i];
  const uint64_t first = format_cell_at (layout, placed->offset);
  const uint32_t entry = (uint32_t) (placed->offset / layout->entry_unit);

  if (is_taken (scan, first))
    found_conflict (scan, placed->index, entry, first, 0);
  else if (is_taken (scan, first + 1))
    found_conflict (scan, placed->index, entry, first + 1, 0);
  else if (i > 0
           && placed->offset - list[i - 1].offset < layout->cluster_size)
    found_conflict (scan, placed->index, entry, NO_CELL, list[i - 1].index);
  else
    found_sound (scan, placed->index, entry, placed->offset);
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
  for (guint i = 0; i < n && !scan->stopped; i++)
    judge_placed (scan, list, i);
  for (guint i = 0; i < n; i++) {
    const uint64_t first = format_cell_at (layout, list[i].offset);

    take_cell (scan, first);
    take_cell (scan, first + 1);
  }
}

/* ---- Conflicts --------------------------------------------------------- */

static int
compare_by_cell (gconstpointer a, gconstpointer b)
{
  const struct conflict *x = a, *y = b;

  if (x->cell != y->cell)
    return x->cell < y->cell ? -1 : 1;
  return x->index < y->index ? -1 : x->index > y->index;
}

static int
compare_by_index (gconstpointer a, gconstpointer b)
{
  const struct conflict *x = a, *y = b;

  return x->index < y->index ? -1 : x->index > y->index;
}

/* The first of the sorted conflicts about CELL, or NULL. */
static struct conflict *
conflict_about (const struct scan *scan, uint64_t cell)
{
  struct conflict *list = (struct conflict *) scan->conflicts->data;
  guint low = 0, high = scan->conflicts->len;

  while (low < high) {
    const guint middle = low + (high - low) / 2;

    if (list[middle].cell < cell)
      low = middle + 1;
    else
      high = middle;
  }
  return low < scan->conflicts->len && list[low].cell == cell ? &list[low]
                                                              : NULL;
}

/* In the second pass: is this the owner of a cell that others want?  The first
 * of the conflicts about it notes the owner for all of them, as index + 1.
 */
static void
look_for_owner (struct scan *scan, uint32_t index, uint32_t entry)
{
  const struct format_layout *layout = &scan->delta->layout;
  const uint64_t offset = format_entry_offset (layout, entry);
  struct conflict *conflict;

  if (offset < layout->data_start || offset >= scan->delta->file_size
      || !format_is_on_grid (layout, offset))
    return;
  conflict = conflict_about (scan, format_cell_at (layout, offset));
  if (conflict && conflict->other == 0)
    conflict->other = index + 1;
}

/* After the second pass: give each conflict its partner, and tell. */
static void
tell_conflicts (struct scan *scan)
{
  struct conflict *list = (struct conflict *) scan->conflicts->data;
  const guint n = scan->conflicts->len;

  for (guint i = 0; i < n && list[i].cell != NO_CELL; i++)
    list[i].other = i > 0 && list[i - 1].cell == list[i].cell
                      ? list[i - 1].other : list[i].other - 1;
  g_array_sort (scan->conflicts, compare_by_index);
  for (guint i = 0; i < n && !scan->stopped; i++)
    found_fault (scan, BAT_SHARED, list[i].index, list[i].entry,
                 list[i].other);
}

/* ---- Reading ----------------------------------------------------------- */

/* Are the BLOCK bytes here all zero?  Most of a sparse disk's BAT is, so this
 * is where opening one spends its time.
 */
#define BLOCK 64u

static bool
is_zero_block (const uint8_t *bytes)
{
  uint64_t words[BLOCK / sizeof (uint64_t)], any = 0;

  memcpy (words, bytes, sizeof words);
  for (size_t i = 0; i < G_N_ELEMENTS (words); i++)
    any |= words[i];
  return any == 0;
}

/* What is done with each entry that is not zero. */
typedef void (*entry_fn) (struct scan *scan, uint32_t index, uint32_t entry);

/* The entries in BYTES, LENGTH bytes at OFFSET of the file. */
static void
each_in_chunk (struct scan *scan, entry_fn fn, const uint8_t *bytes,
               size_t length, uint64_t offset)
{
  for (size_t i = 0; i + FORMAT_ENTRY_SIZE <= length && !scan->stopped;
       i += FORMAT_ENTRY_SIZE) {
    uint32_t entry;

    while (i + BLOCK <= length && is_zero_block (bytes + i))
      i += BLOCK;
    if (i + FORMAT_ENTRY_SIZE > length)
      break;
    entry = format_get_le32 (bytes + i);
    if (entry != 0)
      fn (scan,
          (uint32_t) ((offset + i - FORMAT_HEADER_SIZE) / FORMAT_ENTRY_SIZE),
          entry);
  }
}

/* The entries between two offsets of the file. */
static int
each_in_range (struct scan *scan, entry_fn fn, uint64_t start, uint64_t stop,
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
    each_in_chunk (scan, fn, buffer, length, start);
    start += length;
  }
  return 0;
}

/* All entries. */
static int
each_entry (struct scan *scan, entry_fn fn, GError **error)
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
    if (each_in_range (scan, fn, start, stop, buffer, error) < 0)
      return -1;
    start = stop;
  }
  return 0;
}

static int
scan_all (struct scan *scan, GError **error)
{
  if (each_entry (scan, judge, error) < 0)
    return -1;
  if (!scan->stopped)
    judge_off_grid (scan);
  if (scan->stopped || scan->conflicts->len == 0)
    return 0;

  g_array_sort (scan->conflicts, compare_by_cell);
  if (each_entry (scan, look_for_owner, error) < 0)
    return -1;
  tell_conflicts (scan);
  return 0;
}

/* ---- Leaks ------------------------------------------------------------- */

/* The first cell from CELL up to END that is taken, or is not; or END. */
static uint64_t
next_cell (const struct scan *scan, uint64_t cell, uint64_t end, bool taken)
{
  const uint64_t invert = taken ? 0 : UINT64_MAX;

  while (cell < end) {
    const uint64_t bits = (scan->taken[cell / WORD_BITS] ^ invert)
                          >> cell % WORD_BITS;

    if (bits != 0)
      return MIN (cell + (uint64_t) __builtin_ctzll (bits), end);
    cell = (cell / WORD_BITS + 1) * WORD_BITS;
  }
  return end;
}

static void
tell_leaks (const struct scan *scan)
{
  const uint64_t end =
    MIN (scan->nr_cells, format_cells_below (&scan->delta->layout,
                                             scan->summary.data_end));
  uint64_t first = 0, stop;

  for (; (first = next_cell (scan, first, end, false)) < end; first = stop) {
    stop = next_cell (scan, first, end, true);
    scan->visitor->leak (scan->visitor->opaque, first, stop - first);
  }
}

/* ---- All of it --------------------------------------------------------- */

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
  const size_t bytes =
    (size_t) (scan.nr_cells / WORD_BITS + 1) * sizeof *scan.taken;
  int r;

  scan.taken = sparse_new (bytes);
  if (!scan.taken) {
    error_set_system (error, errno, "%s: no memory to check the BAT (%zu "
                      "bytes)", delta->path, bytes);
    return -1;
  }
  scan.off_grid = g_array_new (FALSE, FALSE, sizeof (struct placed));
  scan.conflicts = g_array_new (FALSE, FALSE, sizeof (struct conflict));

  r = scan_all (&scan, error);
  if (r == 0 && scan.too_many) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
                 "%s: more than %u BAT entries share host clusters or lie off "
                 "their grid: the image is damaged; work on a copy",
                 delta->path, MAX_REMEMBERED);
    r = -1;
  }
  scan.summary.nr_leaked = in_file - scan.nr_taken;
  if (r == 0 && !scan.stopped && visitor->leak)
    tell_leaks (&scan);
  if (summary)
    *summary = scan.summary;

  g_array_unref (scan.conflicts);
  g_array_unref (scan.off_grid);
  sparse_free (scan.taken, bytes);
  return r;
}

/* ---- Faults ----------------------------------------------------------- */

bool
bat_is_within_preallocation (const struct format_layout *layout,
                             uint64_t file_size, uint64_t offset)
{
  return offset < file_size + MAX (PREALLOCATION, layout->cluster_size);
}

bool
bat_fault_is_unfinished (const struct delta *delta,
                         const struct bat_fault *fault)
{
  const struct format_layout *layout = &delta->layout;

  return fault->kind == BAT_PAST_END && delta->header.in_use == FORMAT_IN_USE
         && bat_is_within_preallocation (
              layout, delta->file_size,
              format_entry_offset (layout, fault->entry));
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

/* ---- Loading ----------------------------------------------------------- */

struct loading {
  const struct delta *delta;
  const struct bat_loader *loader;
  GArray *lost;
  GError **error;
  bool failed;
};

static bool
load_entry (void *opaque, uint32_t index, uint32_t entry)
{
  const struct loading *loading = opaque;

  loading->loader->entry (loading->loader->opaque, index, entry);
  return true;
}

static bool
load_fault (void *opaque, const struct bat_fault *fault)
{
  struct loading *loading = opaque;
  const struct delta *delta = loading->delta;
  g_autofree char *text = NULL;

  if (bat_fault_is_unfinished (delta, fault)) {
    g_array_append_val (loading->lost, fault->index);
    return true;
  }
  text = bat_fault_describe (delta, fault);
  g_set_error (loading->error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
               "%s: %s: the image is damaged; run 'ploop-img check %s' for all "
               "that is wrong, and work on a copy", delta->path, text,
               delta->path);
  loading->failed = true;
  return false;
}

static void
load_leak (void *opaque, uint64_t first, uint64_t nr)
{
  const struct loading *loading = opaque;

  if (loading->loader->leak)
    loading->loader->leak (loading->loader->opaque, first, nr);
}

/* The BAT is in neither version's form then. */
static bool
refuse_conversion (const struct delta *delta, GError **error)
{
  if (!(delta->header.flags & FORMAT_FLAG_CONVERSION)
      || !format_is_dirty (delta->header.in_use))
    return false;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
               "%s: flags are %" G_GUINT32_FORMAT " and in use is 0x%08"
               G_GINT32_MODIFIER "x: a version conversion was interrupted; "
               "finish it with the ploop tool, which keeps the old index in "
               "%s.idx", delta->path, delta->header.flags,
               delta->header.in_use, delta->path);
  return true;
}

int
bat_load (const struct delta *delta, const struct bat_loader *loader,
          const struct log *log, GArray *lost, struct bat_summary *summary,
          GError **error)
{
  struct loading loading = {
    .delta = delta,
    .loader = loader,
    .lost = lost,
    .error = error,
  };
  const struct bat_visitor visitor = {
    .entry = load_entry,
    .fault = load_fault,
    .leak = load_leak,
    .opaque = &loading,
  };

  if (refuse_conversion (delta, error)
      || bat_scan (delta, &visitor, summary, error) < 0 || loading.failed)
    return -1;
  if (format_is_dirty (delta->header.in_use))
    log_warning (log, "%s: was not closed (in use is 0x%08"
                 G_GINT32_MODIFIER "x), or a Virtuozzo kernel has it mounted: "
                 "do not write to it then; its BAT was checked, and %u entries "
                 "of clusters that are not in the file count as unallocated",
                 delta->path, delta->header.in_use, lost->len);
  return 0;
}

/* ---- Space that is nobody's -------------------------------------------- */

/* Of the cells from FIRST to END, in all of which there is data. */
static uint64_t
count_wasted (const struct delta *delta, uint64_t first, uint64_t end)
{
  const struct format_layout *layout = &delta->layout;
  const bool is_aligned = layout->data_start % delta->block_size == 0
                          && layout->cluster_size % delta->block_size == 0;
  uint64_t nr = 0;

  if (is_aligned)
    return end - first;
  /* Those that were given back may share their first and last block with others. */
  for (uint64_t cell = first; cell < end; cell++)
    nr += delta_wastes_space (delta, layout->cluster_size,
                              format_cell_offset (layout, cell));
  return nr;
}

uint64_t
bat_count_wasted (const struct delta *delta, uint64_t first, uint64_t nr)
{
  const struct format_layout *layout = &delta->layout;
  const uint64_t end = first + nr;
  uint64_t start = format_cell_offset (layout, first), stop;
  uint64_t seen = first, nr_wasted = 0; /* cells below SEEN are counted */

  while (delta_next_data (delta, format_cell_offset (layout, end), &start,
                          &stop)) {
    const uint64_t from = MAX (format_cell_at (layout, start), seen);
    const uint64_t to = MIN (format_cells_below (layout, stop), end);

    if (from < to) {
      nr_wasted += count_wasted (delta, from, to);
      seen = to;
    }
    start = stop;
  }
  return nr_wasted;
}
