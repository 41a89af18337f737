/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Moving clusters: see mover.h. */

#include <config.h>

#include <errno.h>
#include <stdarg.h>

#include "bat.h"
#include "mover.h"
#include "sparse.h"

/* ---- Loading ----------------------------------------------------------- */

static size_t
owners_bytes (const struct mover *mover)
{
  return (size_t) (mover->cells.nr + 1) * sizeof *mover->owners;
}

static int
allocate (struct mover *mover, uint64_t nr_more)
{
  const struct format_layout *layout = &mover->delta->layout;
  const uint64_t nr =
    format_cells_below (layout, mover->delta->file_size) + nr_more;
  int r = cells_init (&mover->cells, MIN (nr, format_nr_cells (layout)));

  if (r == 0) {
    mover->owners = sparse_new (owners_bytes (mover));
    r = mover->owners ? map_init (&mover->map, layout->nr_entries) : -errno;
  }
  mover->lost = g_array_new (FALSE, FALSE, sizeof (uint32_t));
  return r;
}

int
mover_init (struct mover *mover, uint64_t nr_more, GError **error)
{
  const int r = allocate (mover, nr_more);

  mover->file_size = mover->delta->file_size;
  if (r < 0)
    error_set_system (error, r, "%s: no memory for a map of %" G_GUINT32_FORMAT
                      " clusters", mover->delta->path,
                      mover->delta->layout.nr_entries);
  return r < 0 ? -1 : 0;
}

void
mover_destroy (struct mover *mover)
{
  commit_destroy (&mover->commit);
  stats_free (mover->stats);
  g_free (mover->buffer);
  g_free (mover->failed);
  g_clear_pointer (&mover->lost, g_array_unref);
  map_destroy (&mover->map);
  if (mover->owners)
    sparse_free (mover->owners, owners_bytes (mover));
  cells_destroy (&mover->cells);
  delta_close (mover->delta);
}

static void
pin_cell (struct mover *mover, uint64_t cell)
{
  /* Two clusters off the grid may meet inside a cell. */
  if (cell >= mover->cells.nr || cells_is_used (&mover->cells, cell))
    return;
  cells_set_used (&mover->cells, cell);
  mover->owners[cell] = MOVER_PINNED;
}

void
mover_add_entry (struct mover *mover, uint32_t index, uint32_t entry)
{
  const struct format_layout *layout = &mover->delta->layout;
  const uint64_t offset = format_entry_offset (layout, entry);
  const uint64_t cell = format_cell_at (layout, offset);

  map_fill (&mover->map, index, map_word (0, entry, 0));
  if (format_is_on_grid (layout, offset)) {
    cells_set_used (&mover->cells, cell);
    mover->owners[cell] = index + 1;
    mover->nr_on_grid++;
    return;
  }
  pin_cell (mover, cell);
  pin_cell (mover, cell + 1);
  mover->pinned_end = MAX (mover->pinned_end, offset + layout->cluster_size);
}

static void
load_entry (void *opaque, uint32_t index, uint32_t entry)
{
  mover_add_entry (opaque, index, entry);
}

int
mover_forget_cached (const struct mover *mover)
{
  if (mover->delta->read_only
      || !format_is_dirty (mover->delta->header.in_use))
    return 0;
  return delta_sync_and_forget (mover->delta, mover->delta->layout.bat_end);
}

int
mover_load (struct mover *mover, GError **error)
{
  const struct bat_loader loader = { load_entry, NULL, mover };
  const int r = mover_forget_cached (mover);

  if (r < 0) {
    error_set_system (error, r, "%s: cannot be synced", mover->delta->path);
    return -1;
  }
  return bat_load (mover->delta, &loader, &mover->log, mover->lost, NULL,
                   error);
}

/* ---- Failing ----------------------------------------------------------- */

int
mover_fail (struct mover *mover, int r, const char *format, ...)
{
  va_list args;

  if (mover->error < 0)
    return r;
  va_start (args, format);
  mover->failed = g_strdup_vprintf (format, args);
  va_end (args);
  mover->error = r;
  return r;
}

int
mover_report (const struct mover *mover, const char *again, GError **error)
{
  if (mover->error == 0)
    return 0;
  error_set_system (error, mover->error, "%s: %s%s%s", mover->delta->path,
                    mover->failed,
                    mover->is_marked ? "; it may stay marked as in use, with no "
                                       "data lost: " : "",
                    mover->is_marked ? again : "");
  return -1;
}

/* ---- Copying ----------------------------------------------------------- */

void
mover_tell (struct mover *mover, uint64_t nr_bytes)
{
  mover->nr_bytes_done += nr_bytes;
  if (mover->progress
      && !mover->progress (mover->opaque, mover->nr_bytes_done,
                           mover->nr_bytes_to_do))
    mover->interrupted = true;
}

/* Give back what may be data among LENGTH bytes at OFFSET.  -ENOTSUP when the
 * file system cannot.
 */
static int
punch_data (struct mover *mover, uint64_t length, uint64_t offset)
{
  const uint64_t end = offset + length;
  uint64_t stop;

  for (; delta_next_data (mover->delta, end, &offset, &stop); offset = stop) {
    int r = delta_punch (mover->delta, stop - offset, offset);

    if (r < 0)
      return r;
  }
  return 0;
}

static int
clear (struct mover *mover, uint64_t length, uint64_t offset)
{
  int r = punch_data (mover, length, offset);

  return r == -ENOTSUP ? delta_zero (mover->delta, length, offset) : r;
}

int
mover_clear (struct mover *mover, uint64_t length, uint64_t offset)
{
  const int r = clear (mover, length, offset);

  return r < 0 ? mover_fail (mover, r, "byte %" G_GUINT64_FORMAT " and what "
                             "follows cannot be cleared", offset) : 0;
}

/* The source is a hole: what is at its new place must read as zeros, too. */
static int
copy_hole (struct mover *mover, uint64_t length, uint64_t to)
{
  int r;

  if (length == 0)
    return 0;
  r = clear (mover, length, to);
  if (r == 0)
    mover_tell (mover, length);
  return r;
}

/* Not by copy_file_range: where that shares blocks instead of copying them, the
 * guest's next write to one needs space that it did not need before.
 */
static int
copy_data (struct mover *mover, uint64_t length, uint64_t from, uint64_t to)
{
  while (length > 0 && !mover->interrupted) {
    const size_t n = (size_t) MIN (length, MOVER_PIECE_BYTES);
    int r = delta_pread (mover->delta, mover->buffer, n, from);

    if (r == 0)
      r = delta_pwrite (mover->delta, mover->buffer, n, to);
    if (r < 0)
      return r;
    mover->bytes_copied += n;
    mover_tell (mover, n);
    from += n;
    to += n;
    length -= n;
  }
  return length > 0 ? -ECANCELED : 0;
}

int
mover_reach (struct mover *mover, uint64_t cell)
{
  const uint64_t end =
    mover_offset (mover, cell) + mover->delta->layout.cluster_size;
  int r;

  if (end <= mover->file_size)
    return 0;
  r = delta_truncate (mover->delta, end);
  if (r < 0)
    return mover_fail (mover, r, "the file cannot grow to %" G_GUINT64_FORMAT
                       " bytes", end);
  mover->file_size = end;
  return 0;
}

int
mover_copy (struct mover *mover, uint64_t from, uint64_t to)
{
  const uint64_t end = from + mover->delta->layout.cluster_size;
  uint64_t at = from, data, stop = end;
  int r = 0;

  to = mover_offset (mover, to);
  for (; r == 0 && at < end; at = stop) {
    if (mover->interrupted)
      return -ECANCELED;
    data = at;
    if (!mover->keep_holes_out
        && !delta_next_data (mover->delta, end, &data, &stop))
      data = stop = end;
    r = copy_hole (mover, data - at, to + (at - from));
    if (r == 0)
      r = copy_data (mover, stop - data, data, to + (data - from));
  }
  return r;
}

/* ---- Making it last ---------------------------------------------------- */

static int
init_commit (struct mover *mover)
{
  static const struct commit_hooks no_hooks;

  mover->buffer = g_malloc (MOVER_PIECE_BYTES);
  mover->stats = stats_new (false);
  return commit_init (&mover->commit, mover->delta, 0, &mover->map,
                      &mover->changes, mover->stats, &mover->log, &no_hooks, 0,
                      g_array_ref (mover->lost));
}

int
mover_begin (struct mover *mover)
{
  int r = init_commit (mover);

  if (r < 0)
    return mover_fail (mover, r, "no memory to write");
  if (mover->keeps_extension)
    commit_keep_extension (&mover->commit);
  if (mover->marks_repair)
    commit_mark_repair (&mover->commit);
  /* From here on the file may say so, even if that fails. */
  mover->is_marked = true;
  r = commit_mark (&mover->commit);
  return r < 0 ? mover_fail (mover, r, "the image cannot be marked as in use")
               : 0;
}

void
mover_publish (struct mover *mover, uint32_t index, uint64_t to)
{
  const uint32_t entry = format_cell_entry (&mover->delta->layout, to);
  uint64_t word = map_lookup (&mover->map, index);

  cells_set_used (&mover->cells, to);
  mover->owners[to] = index + 1;
  map_occupy (&mover->map, index);
  commit_publish_copy (&mover->commit, index, &word,
                       map_word (0, entry, MAP_UNSTABLE));
}

void
mover_drop (struct mover *mover, uint32_t index)
{
  const struct format_layout *layout = &mover->delta->layout;
  const uint64_t word = map_lookup (&mover->map, index);
  uint64_t offset, removal;

  if (!map_word_is_mapped (word))
    return;
  offset = format_entry_offset (layout, map_word_entry (word));
  commit_remove (&mover->commit, index, word, &removal);
  if (format_is_on_grid (layout, offset))
    cells_set_free (&mover->cells, format_cell_at (layout, offset));
}

int
mover_commit (struct mover *mover)
{
  const int r = commit_flush (&mover->commit);

  return r < 0 ? mover_fail (mover, r, "clusters that were moved cannot be "
                             "committed") : 0;
}

int
mover_cut (struct mover *mover, uint64_t end)
{
  int r;

  if (mover->file_size <= end)
    return 0;
  r = delta_truncate (mover->delta, end);
  if (r < 0)
    return mover_fail (mover, r, "the file cannot be cut off at byte %"
                       G_GUINT64_FORMAT, end);
  mover->file_size = end;
  return 0;
}

int
mover_punch_free (struct mover *mover, uint64_t end)
{
  const struct format_layout *layout = &mover->delta->layout;
  const uint64_t nr_cells =
    MIN (format_cells_below (layout, end), mover->cells.nr);
  uint64_t stop;

  for (uint64_t from = 0;
       cells_next_free_run (&mover->cells, nr_cells, &from, &stop);
       from = stop) {
    const uint64_t offset = mover_offset (mover, from);
    /* All of it: what was reserved and never written, the file system calls a hole. */
    int r = delta_punch (mover->delta, (stop - from) * layout->cluster_size,
                         offset);

    if (r == -ENOTSUP)
      break;
    if (r < 0)
      return mover_fail (mover, r, "free space at byte %" G_GUINT64_FORMAT
                         " cannot be given back", offset);
  }
  return 0;
}

int
mover_finish (struct mover *mover, uint64_t end)
{
  int r = commit_flush (&mover->commit);

  if (r == 0) {
    if (end > 0 && !mover->keep_holes_out)
      mover_punch_free (mover, end);
    if (end > 0)
      mover_cut (mover, end);
    r = commit_unmark (&mover->commit);
  }
  if (r < 0)
    mover_fail (mover, r, "the image cannot be closed");
  mover->is_marked = commit_is_marked (&mover->commit);
  return r;
}

/* ---- Looking ----------------------------------------------------------- */

uint64_t
mover_end (const struct mover *mover)
{
  const uint64_t last =
    cells_previous (&mover->cells, mover->cells.nr, CELLS_USED);

  return MAX (last == CELLS_NONE ? mover->delta->layout.data_start
                                 : mover_offset (mover, last + 1),
              mover->pinned_end);
}

uint64_t
mover_count_data (const struct mover *mover, uint64_t length, uint64_t offset)
{
  const uint64_t end = offset + length;
  uint64_t stop, nr = 0;

  for (; delta_next_data (mover->delta, end, &offset, &stop); offset = stop)
    nr += stop - offset;
  return nr;
}

uint64_t
mover_count_free_data (const struct mover *mover, uint64_t end)
{
  const struct format_layout *layout = &mover->delta->layout;
  const uint64_t nr_cells =
    MIN (format_cells_below (layout, end), mover->cells.nr);
  uint64_t stop, nr = 0;

  for (uint64_t from = 0;
       cells_next_free_run (&mover->cells, nr_cells, &from, &stop);
       from = stop)
    nr += mover_count_data (mover, (stop - from) * layout->cluster_size,
                            mover_offset (mover, from));
  return nr;
}
