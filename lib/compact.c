/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Moving clusters towards the beginning of the file, so that its end can be
 * given back: ploop_compact in ploop-core.h.
 *
 * With N clusters on the grid of cells (format.h), the lowest N cells are the
 * ones in use in the end; more, where clusters off the grid, in an old image of
 * another program, stay where they are.  Those above go to the free cells below,
 * the highest first and without a change of their order.  So no cell is both
 * left and moved to, and nothing that is freed here is written here again.
 *
 * A cluster is moved as copy-on-write would do it: copied, and its map word made
 * unstable, so that its entry reaches the disk after a sync of the copy
 * (commit.h).  Only when that is committed is the old place given up; until then
 * both hold the same, and it does not matter which one the disk's entry names.
 *
 * The hard thing is what was there before.  A cell that is free in the BAT as we
 * read it may have an owner in the BAT on the disk, when somebody trimmed a
 * cluster, was killed, and nobody has synced.  The sync of the in-use mark, which
 * comes before the first copy, makes the two the same.
 */

#include <config.h>

#include <errno.h>
#include <stdarg.h>
#include <sys/stat.h>

#include "bat.h"
#include "commit.h"
#include "sparse.h"

/* Moved with one commit, so that syncs cost little. */
#define DEFAULT_BATCH (UINT64_C (64) << 20)

/* Read and written at once, between two calls of the progress callback. */
#define PIECE_BYTES ((size_t) 1 << 20)

#define WORD_BITS 64u

#define NO_CELL UINT64_MAX

/* Whose a cell is: a guest cluster's index and 1; 0: nobody's. */
#define PINNED UINT32_MAX       /* under a cluster off the grid */

struct move {
  uint32_t index;               /* of the guest cluster */
  uint64_t from, to;            /* cells */
};

struct compact {
  struct delta *delta;
  struct ploop_compact_options options;
  struct log log;
  ploop_progress_fn progress;
  void *opaque;
  uint64_t nr_bytes_done, nr_bytes_to_do;       /* for progress */
  struct ploop_compact_result result;

  /* The image. */
  struct map map;
  GArray *lost;                 /* of uint32_t: see bat_load */
  uint64_t nr_cells;
  uint64_t *used;               /* a bit a cell */
  uint32_t *owners;             /* by cell */
  uint64_t nr_on_grid;          /* clusters */
  uint64_t pinned_end;          /* bytes; of the highest cluster off the grid */
  uint64_t file_size;           /* now */

  /* The plan. */
  uint64_t nr_full;             /* cells below it are in use in the end */
  uint64_t nr_left;             /* clusters to be moved */
  uint64_t high;                /* no cell from here on is theirs */
  uint64_t source_end, target_end;      /* the next move is below both */

  /* Making changes durable. */
  struct changes changes;
  struct stats *stats;
  struct commit commit;
  uint8_t *buffer;

  int error;                    /* the first that was met, or 0 */
  char *failed;                 /* what failed with it */
};

/* ---- Cells ------------------------------------------------------------- */

static bool
is_used (const struct compact *compact, uint64_t cell)
{
  return (compact->used[cell / WORD_BITS] >> cell % WORD_BITS & 1) != 0;
}

static void
set_used (struct compact *compact, uint64_t cell)
{
  compact->used[cell / WORD_BITS] |= UINT64_C (1) << cell % WORD_BITS;
}

static void
clear_used (struct compact *compact, uint64_t cell)
{
  compact->used[cell / WORD_BITS] &= ~(UINT64_C (1) << cell % WORD_BITS);
}

/* The first cell from FROM up to, not including, END that is in use (FLIP 0) or
 * free (all ones); END when there is none.
 */
static uint64_t
next_cell (const struct compact *compact, uint64_t from, uint64_t end,
           uint64_t flip)
{
  while (from < end) {
    const uint64_t word =
      (compact->used[from / WORD_BITS] ^ flip) >> from % WORD_BITS;

    if (word != 0)
      return MIN (from + (uint64_t) __builtin_ctzll (word), end);
    from = (from / WORD_BITS + 1) * WORD_BITS;
  }
  return end;
}

/* The last cell below END that is in use or free; NO_CELL when there is none. */
static uint64_t
previous_cell (const struct compact *compact, uint64_t end, uint64_t flip)
{
  while (end > 0) {
    const uint64_t i = (end - 1) / WORD_BITS;
    const uint64_t word =
      (compact->used[i] ^ flip) << (WORD_BITS - 1 - (end - 1) % WORD_BITS);

    if (word != 0)
      return end - 1 - (uint64_t) __builtin_clzll (word);
    end = i * WORD_BITS;
  }
  return NO_CELL;
}

/* Find the next run of free cells at or after *FROM and below END. */
static bool
next_free_run (const struct compact *compact, uint64_t end, uint64_t *from,
               uint64_t *stop)
{
  *from = next_cell (compact, *from, end, UINT64_MAX);
  *stop = next_cell (compact, *from, end, 0);
  return *from < end;
}

static uint64_t
offset_of (const struct compact *compact, uint64_t cell)
{
  return format_cell_offset (&compact->delta->layout, cell);
}

/* Where the file can end now. */
static uint64_t
data_end (const struct compact *compact)
{
  return MAX (offset_of (compact, compact->high), compact->pinned_end);
}

/* ---- Loading ----------------------------------------------------------- */

static void
pin_cell (struct compact *compact, uint64_t cell)
{
  /* Two clusters off the grid may meet inside a cell. */
  if (cell >= compact->nr_cells || is_used (compact, cell))
    return;
  set_used (compact, cell);
  compact->owners[cell] = PINNED;
}

static void
load_entry (void *opaque, uint32_t index, uint32_t entry)
{
  struct compact *compact = opaque;
  const struct format_layout *layout = &compact->delta->layout;
  const uint64_t offset = format_entry_offset (layout, entry);
  const uint64_t cell = format_cell_at (layout, offset);

  map_fill (&compact->map, index, map_word (0, entry, 0));
  if (format_is_on_grid (layout, offset)) {
    set_used (compact, cell);
    compact->owners[cell] = index + 1;
    compact->nr_on_grid++;
    return;
  }
  pin_cell (compact, cell);
  pin_cell (compact, cell + 1);
  compact->pinned_end =
    MAX (compact->pinned_end, offset + layout->cluster_size);
}

static size_t
used_bytes (const struct compact *compact)
{
  return (size_t) (compact->nr_cells / WORD_BITS + 1) * sizeof *compact->used;
}

static size_t
owners_bytes (const struct compact *compact)
{
  return (size_t) (compact->nr_cells + 1) * sizeof *compact->owners;
}

static int
allocate (struct compact *compact)
{
  const struct format_layout *layout = &compact->delta->layout;
  int r;

  compact->nr_cells =
    MIN (format_cells_below (layout, compact->delta->file_size),
         format_nr_cells (layout));
  compact->used = sparse_new (used_bytes (compact));
  compact->owners = sparse_new (owners_bytes (compact));
  if (!compact->used || !compact->owners)
    return -errno;
  r = map_init (&compact->map, layout->nr_entries);
  if (r < 0)
    return r;
  compact->lost = g_array_new (FALSE, FALSE, sizeof (uint32_t));
  return 0;
}

/* Whoever left the image open may have met a failed sync, after which the page
 * cache and the disk differ.  The BAT on the disk is the one that counts.
 */
static int
forget_bat (const struct compact *compact, GError **error)
{
  int r;

  if (compact->options.dry_run
      || !format_is_dirty (compact->delta->header.in_use))
    return 0;
  r = delta_sync_and_forget (compact->delta, compact->delta->layout.bat_end);
  if (r < 0)
    error_set_system (error, r, "%s: cannot be synced", compact->delta->path);
  return r;
}

static int
load (struct compact *compact, GError **error)
{
  const struct bat_loader loader = { load_entry, NULL, compact };
  int r = allocate (compact);

  if (r < 0) {
    error_set_system (error, r, "%s: no memory for a map of %" G_GUINT32_FORMAT
                      " clusters", compact->delta->path,
                      compact->delta->layout.nr_entries);
    return -1;
  }
  compact->file_size = compact->delta->file_size;
  if (forget_bat (compact, error) < 0)
    return -1;
  return bat_load (compact->delta, &loader, &compact->log, compact->lost,
                   NULL, error);
}

/* ---- Planning ---------------------------------------------------------- */

/* How many of the lowest cells it takes for all clusters on the grid. */
static uint64_t
count_full (const struct compact *compact)
{
  uint64_t nr = compact->nr_on_grid;

  if (compact->pinned_end == 0)
    return nr;
  for (uint64_t cell = 0; (cell = next_cell (compact, cell, nr, 0)) < nr;
       cell++)
    if (compact->owners[cell] == PINNED)
      nr++;
  return nr;
}

/* The highest cell below END of a cluster that has to move, or NO_CELL. */
static uint64_t
find_source (const struct compact *compact, uint64_t end)
{
  do
    end = previous_cell (compact, end, 0);
  while (end != NO_CELL && end >= compact->nr_full
         && compact->owners[end] == PINNED);
  return end != NO_CELL && end >= compact->nr_full ? end : NO_CELL;
}

/* The cluster that is to be moved next, and where to.  Returns false when there
 * is none.
 */
static bool
next_move (const struct compact *compact, struct move *move)
{
  move->from = find_source (compact, compact->source_end);
  if (move->from == NO_CELL)
    return false;
  /* There are as many free cells below nr_full as clusters above. */
  move->to = previous_cell (compact, compact->target_end, UINT64_MAX);
  move->index = compact->owners[move->from] - 1;
  return true;
}

static void
pass_move (struct compact *compact, const struct move *move)
{
  compact->source_end = move->from;
  compact->target_end = move->to;
}

/* Everything that was passed is done. */
static void
update_high (struct compact *compact)
{
  const uint64_t source = find_source (compact, compact->source_end);

  compact->high = source == NO_CELL ? compact->nr_full : source + 1;
}

static void
plan (struct compact *compact)
{
  compact->nr_full = count_full (compact);
  for (uint64_t cell = compact->nr_cells;
       (cell = find_source (compact, cell)) != NO_CELL;)
    compact->nr_left++;
  compact->nr_bytes_to_do =
    compact->nr_left * compact->delta->layout.cluster_size;
  compact->source_end = compact->nr_cells;
  compact->target_end = compact->nr_full;
  update_high (compact);
}

/* ---- What would come back ---------------------------------------------- */

/* How many of LENGTH bytes at OFFSET may be data. */
static uint64_t
count_data (const struct compact *compact, uint64_t length, uint64_t offset)
{
  const uint64_t end = offset + length;
  uint64_t stop, nr = 0;

  for (; delta_next_data (compact->delta, end, &offset, &stop); offset = stop)
    nr += stop - offset;
  return nr;
}

/* In free cells, below END of the file. */
static uint64_t
count_free_data (const struct compact *compact, uint64_t end)
{
  const uint64_t nr_cells =
    MIN (format_cells_below (&compact->delta->layout, end), compact->nr_cells);
  uint64_t stop, nr = 0;

  for (uint64_t from = 0; next_free_run (compact, nr_cells, &from, &stop);
       from = stop)
    nr += count_data (compact,
                      (stop - from) * compact->delta->layout.cluster_size,
                      offset_of (compact, from));
  return nr;
}

/* Note a move as done, and how much data there will be less of for it. */
static int64_t
pretend_to_move (struct compact *compact, const struct move *move)
{
  const uint64_t size = compact->delta->layout.cluster_size;
  const uint64_t data = compact->options.keep_holes_out
                          ? size
                          : count_data (compact, size,
                                        offset_of (compact, move->from));
  const uint64_t overwritten =
    count_data (compact, size, offset_of (compact, move->to));

  set_used (compact, move->to);
  clear_used (compact, move->from);
  compact->result.nr_moved++;
  compact->result.bytes_copied += data;
  return (int64_t) overwritten - (int64_t) data;
}

/* What is reserved but was never written, the file system calls a hole: no less
 * than this comes back.
 */
static void
estimate (struct compact *compact)
{
  struct ploop_compact_result *result = &compact->result;
  struct move move;
  int64_t back = 0;
  uint64_t end;

  while (next_move (compact, &move)) {
    back += pretend_to_move (compact, &move);
    pass_move (compact, &move);
  }
  update_high (compact);
  end = MIN (data_end (compact), compact->file_size);
  back += (int64_t) count_data (compact, compact->file_size - end, end);
  if (!compact->options.keep_holes_out)
    back += (int64_t) count_free_data (compact, end);
  result->file_size_after = end;
  result->allocated_after =
    result->allocated_before
    - MIN ((uint64_t) MAX (back, 0), result->allocated_before);
}

/* ---- Failing ----------------------------------------------------------- */

static int fail (struct compact *compact, int r, const char *format, ...)
  G_GNUC_PRINTF (3, 4);

/* Remember what failed with R, unless something else has before. */
static int
fail (struct compact *compact, int r, const char *format, ...)
{
  va_list args;

  if (compact->error < 0)
    return r;
  va_start (args, format);
  compact->failed = g_strdup_vprintf (format, args);
  va_end (args);
  compact->error = r;
  return r;
}

/* ---- Copying ----------------------------------------------------------- */

static void
tell_progress (struct compact *compact, uint64_t nr_bytes)
{
  compact->nr_bytes_done += nr_bytes;
  if (compact->progress
      && !compact->progress (compact->opaque, compact->nr_bytes_done,
                             compact->nr_bytes_to_do))
    compact->result.interrupted = true;
}

/* Give back what may be data among LENGTH bytes at OFFSET.  -ENOTSUP when the
 * file system cannot.
 */
static int
punch_data (struct compact *compact, uint64_t length, uint64_t offset)
{
  const uint64_t end = offset + length;
  uint64_t stop;

  for (; delta_next_data (compact->delta, end, &offset, &stop);
       offset = stop) {
    int r = delta_punch (compact->delta, stop - offset, offset);

    if (r < 0)
      return r;
  }
  return 0;
}

/* The source is a hole: what is at its new place must read as zeros, too. */
static int
copy_hole (struct compact *compact, uint64_t length, uint64_t to)
{
  int r;

  if (length == 0)
    return 0;
  r = punch_data (compact, length, to);
  if (r == -ENOTSUP)
    r = delta_zero (compact->delta, length, to);
  if (r == 0)
    tell_progress (compact, length);
  return r;
}

/* Not by copy_file_range: where that shares blocks instead of copying them, the
 * guest's next write to one needs space that it did not need before.
 */
static int
copy_data (struct compact *compact, uint64_t length, uint64_t from,
           uint64_t to)
{
  while (length > 0 && !compact->result.interrupted) {
    const size_t n = (size_t) MIN (length, PIECE_BYTES);
    int r = delta_pread (compact->delta, compact->buffer, n, from);

    if (r == 0)
      r = delta_pwrite (compact->delta, compact->buffer, n, to);
    if (r < 0)
      return r;
    compact->result.bytes_copied += n;
    tell_progress (compact, n);
    from += n;
    to += n;
    length -= n;
  }
  return length > 0 ? -ECANCELED : 0;
}

/* Returns 0, a negative errno, or -ECANCELED when the caller wants an end of
 * it: the new place is half written then, and still free.
 */
static int
copy_cluster (struct compact *compact, const struct move *move)
{
  const uint64_t from = offset_of (compact, move->from);
  const uint64_t to = offset_of (compact, move->to);
  const uint64_t end = from + compact->delta->layout.cluster_size;
  uint64_t at = from, data, stop = end;
  int r = 0;

  for (; r == 0 && at < end; at = stop) {
    if (compact->result.interrupted)
      return -ECANCELED;
    data = at;
    if (!compact->options.keep_holes_out
        && !delta_next_data (compact->delta, end, &data, &stop))
      data = stop = end;
    r = copy_hole (compact, data - at, to + (at - from));
    if (r == 0)
      r = copy_data (compact, stop - data, data, to + (data - from));
  }
  return r;
}

/* ---- Moving ------------------------------------------------------------ */

/* The clusters of MOVES (of struct move) are copied: let their entries follow,
 * durably, and free the cells where they were.
 */
static int
commit_moves (struct compact *compact, const GArray *moves)
{
  const struct move *list = (const struct move *) moves->data;
  int r;

  for (guint i = 0; i < moves->len; i++) {
    const uint32_t entry =
      format_cell_entry (&compact->delta->layout, list[i].to);
    uint64_t word = map_lookup (&compact->map, list[i].index);

    set_used (compact, list[i].to);
    commit_publish_copy (&compact->commit, list[i].index, &word,
                         map_word (0, entry, MAP_UNSTABLE));
  }
  r = commit_flush (&compact->commit);
  if (r < 0)
    return fail (compact, r, "clusters that were moved cannot be committed");
  for (guint i = 0; i < moves->len; i++)
    clear_used (compact, list[i].from);
  update_high (compact);
  compact->nr_left -= moves->len;
  compact->result.nr_moved += moves->len;
  return 0;
}

static int
cut_tail (struct compact *compact)
{
  const uint64_t end = data_end (compact);
  int r;

  if (compact->file_size <= end)
    return 0;
  r = delta_truncate (compact->delta, end);
  if (r < 0)
    return fail (compact, r, "the file cannot be cut off at byte %"
                 G_GUINT64_FORMAT, end);
  compact->file_size = end;
  return 0;
}

/* Copy the highest clusters that are left, as many as make a batch, and add the
 * moves that this makes to MOVES.
 */
static int
copy_batch (struct compact *compact, GArray *moves)
{
  const uint64_t cluster_size = compact->delta->layout.cluster_size;
  struct move move;

  for (uint64_t bytes = 0;
       bytes < compact->options.batch && !compact->result.interrupted
       && next_move (compact, &move);
       bytes += cluster_size) {
    const uint64_t nr_bytes_before = compact->nr_bytes_done;
    int r = copy_cluster (compact, &move);

    if (r < 0) {
      compact->nr_bytes_done = nr_bytes_before;
      return r;
    }
    pass_move (compact, &move);
    g_array_append_val (moves, move);
  }
  return 0;
}

static int
fail_to_move (struct compact *compact, int r)
{
  struct move move;

  next_move (compact, &move);
  return fail (compact, r, "host cluster at byte %" G_GUINT64_FORMAT
               " cannot be moved to byte %" G_GUINT64_FORMAT,
               offset_of (compact, move.from), offset_of (compact, move.to));
}

static int
move_batch (struct compact *compact)
{
  g_autoptr (GArray) moves = g_array_new (FALSE, FALSE, sizeof (struct move));
  const int r = copy_batch (compact, moves);

  if (moves->len > 0 && (commit_moves (compact, moves) < 0
                         || cut_tail (compact) < 0))
    return compact->error;
  if (r == 0 || r == -ECANCELED)
    return r;
  /* What has just come back may be enough to go on. */
  if (delta_is_no_space (r) && moves->len > 0)
    return 0;
  return fail_to_move (compact, r);
}

static void
move_all (struct compact *compact)
{
  int r = cut_tail (compact);

  tell_progress (compact, 0);
  while (r == 0 && compact->nr_left > 0 && !compact->result.interrupted)
    r = move_batch (compact);
  /* Too late to matter. */
  if (compact->nr_left == 0)
    compact->result.interrupted = false;
}

/* ---- From the mark to the end ------------------------------------------ */

static int
punch_free (struct compact *compact)
{
  const struct format_layout *layout = &compact->delta->layout;
  const uint64_t nr_cells =
    MIN (format_cells_below (layout, data_end (compact)), compact->nr_cells);
  uint64_t stop;

  for (uint64_t from = 0; next_free_run (compact, nr_cells, &from, &stop);
       from = stop) {
    const uint64_t offset = offset_of (compact, from);
    int r = punch_data (compact, (stop - from) * layout->cluster_size, offset);

    if (r == -ENOTSUP)
      break;
    if (r < 0)
      return fail (compact, r, "free space at byte %" G_GUINT64_FORMAT
                   " cannot be given back", offset);
  }
  return 0;
}

/* Leave the file as one that was closed, if what was moved is durable.  What
 * may have failed before is no reason not to.
 */
static void
finish (struct compact *compact)
{
  int r = commit_flush (&compact->commit);

  if (r == 0) {
    if (!compact->options.keep_holes_out)
      punch_free (compact);
    cut_tail (compact);
    r = commit_unmark (&compact->commit);
  }
  if (r < 0)
    fail (compact, r, "the image cannot be closed");
}

static int
init_commit (struct compact *compact)
{
  static const struct commit_hooks no_hooks;
  int r;

  compact->buffer = g_malloc (PIECE_BYTES);
  compact->stats = stats_new (false);
  r = commit_init (&compact->commit, compact->delta, 0, &compact->map,
                   &compact->changes, compact->stats, &compact->log, &no_hooks,
                   0, g_array_ref (compact->lost));
  return r < 0 ? fail (compact, r, "no memory to write") : 0;
}

static int
run (struct compact *compact, GError **error)
{
  bool marked = false;
  int r = init_commit (compact);

  if (r == 0) {
    /* From here on the file may say so, even if that fails. */
    marked = true;
    r = commit_mark (&compact->commit);
    if (r < 0)
      fail (compact, r, "the image cannot be marked as in use");
  }
  if (r == 0) {
    move_all (compact);
    finish (compact);
    marked = commit_is_marked (&compact->commit);
  }
  if (compact->error == 0)
    return 0;
  error_set_system (error, compact->error, "%s: %s%s", compact->delta->path,
                    compact->failed,
                    marked ? "; it may stay marked as in use, with no data "
                             "lost: compact it again when the cause is gone"
                           : "");
  return -1;
}

/* ---- The whole --------------------------------------------------------- */

static bool
refuse_extension (const struct delta *delta, GError **error)
{
  if (!format_has_valid_extension (&delta->header))
    return false;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: extension offset is %" G_GUINT64_FORMAT " sectors: it "
               "carries changed-block bitmaps, which compacting would lose; "
               "let the program that keeps them remove them first",
               delta->path, delta->header.extension_sectors);
  return true;
}

static struct delta *
open_delta (const char *path, bool dry_run, GError **error)
{
  struct delta *delta =
    delta_open (path, dry_run ? DELTA_LOCK_READER : DELTA_LOCK_WRITER, error);

  if (!delta)
    return NULL;
  if (delta->read_only && !dry_run)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_SYSTEM,
                 "%s: may not be written: see its permissions, and whether "
                 "its file system is mounted read-only", delta->path);
  else if (!refuse_extension (delta, error))
    return delta;
  delta_close (delta);
  return NULL;
}

/* Is there anything to move, to give back, or to clean up? */
static bool
has_work (const struct compact *compact)
{
  return format_is_dirty (compact->delta->header.in_use)
         || compact->nr_left > 0 || compact->file_size > data_end (compact)
         || (!compact->options.keep_holes_out
             && count_free_data (compact, data_end (compact)) > 0);
}

static int
measure (const struct compact *compact, uint64_t *size, uint64_t *allocated,
         GError **error)
{
  struct stat st;

  if (fstat (compact->delta->fd, &st) == -1) {
    error_set_system (error, errno, "%s: cannot be examined",
                      compact->delta->path);
    return -1;
  }
  *size = (uint64_t) st.st_size;
  *allocated = (uint64_t) st.st_blocks * 512;
  return 0;
}

static int
compact_loaded (struct compact *compact, GError **error)
{
  struct ploop_compact_result *result = &compact->result;
  int r = 0;

  if (measure (compact, &result->file_size_before, &result->allocated_before,
               error) < 0)
    return -1;
  plan (compact);
  if (compact->options.dry_run) {
    estimate (compact);
    return 0;
  }
  if (has_work (compact))
    r = run (compact, error);
  if (measure (compact, &result->file_size_after, &result->allocated_after,
               r == 0 ? error : NULL) < 0)
    r = -1;
  return r;
}

static void
release (struct compact *compact)
{
  commit_destroy (&compact->commit);
  stats_free (compact->stats);
  g_free (compact->buffer);
  g_free (compact->failed);
  g_clear_pointer (&compact->lost, g_array_unref);
  map_destroy (&compact->map);
  sparse_free (compact->used, used_bytes (compact));
  sparse_free (compact->owners, owners_bytes (compact));
  delta_close (compact->delta);
}

int
ploop_compact (const char *path, const struct ploop_compact_options *options,
               ploop_progress_fn progress, void *opaque,
               struct ploop_compact_result *result, GError **error)
{
  struct compact compact = { .progress = progress, .opaque = opaque };
  int r;

  if (result)
    *result = compact.result;
  if (options)
    compact.options = *options;
  if (compact.options.batch == 0)
    compact.options.batch = DEFAULT_BATCH;
  compact.log =
    (struct log) { compact.options.log, compact.options.log_opaque };
  compact.delta = open_delta (path, compact.options.dry_run, error);
  if (!compact.delta)
    return -1;
  r = load (&compact, error);
  if (r == 0)
    r = compact_loaded (&compact, error);
  if (result)
    *result = compact.result;
  release (&compact);
  return r;
}
