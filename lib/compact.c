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
 * How a cluster is moved, mover.h says.
 */

#include <config.h>

#include <errno.h>
#include <sys/stat.h>

#include "mover.h"

/* Moved with one commit, so that syncs cost little. */
#define DEFAULT_BATCH (UINT64_C (64) << 20)

struct move {
  uint32_t index;               /* of the guest cluster */
  uint64_t from, to;            /* cells */
};

struct compact {
  struct mover mover;
  struct ploop_compact_options options;
  struct ploop_compact_result result;

  /* The plan. */
  uint64_t nr_full;             /* cells below it are in use in the end */
  uint64_t nr_left;             /* clusters to be moved */
  uint64_t high;                /* no cell from here on is theirs */
  uint64_t source_end, target_end;      /* the next move is below both */
};

/* Where the file can end now. */
static uint64_t
data_end (const struct compact *compact)
{
  return MAX (mover_offset (&compact->mover, compact->high),
              compact->mover.pinned_end);
}

/* ---- Planning ---------------------------------------------------------- */

/* How many of the lowest cells it takes for all clusters on the grid. */
static uint64_t
count_full (const struct compact *compact)
{
  const struct cells *cells = &compact->mover.cells;
  uint64_t nr = compact->mover.nr_on_grid;

  if (compact->mover.pinned_end == 0)
    return nr;
  for (uint64_t cell = 0; (cell = cells_next (cells, cell, nr, CELLS_USED)) < nr;
       cell++)
    if (compact->mover.owners[cell] == MOVER_PINNED)
      nr++;
  return nr;
}

/* The highest cell below END of a cluster that has to move, or CELLS_NONE. */
static uint64_t
find_source (const struct compact *compact, uint64_t end)
{
  do
    end = cells_previous (&compact->mover.cells, end, CELLS_USED);
  while (end != CELLS_NONE && end >= compact->nr_full
         && compact->mover.owners[end] == MOVER_PINNED);
  return end != CELLS_NONE && end >= compact->nr_full ? end : CELLS_NONE;
}

/* The cluster that is to be moved next, and where to.  Returns false when there
 * is none.
 */
static bool
next_move (const struct compact *compact, struct move *move)
{
  move->from = find_source (compact, compact->source_end);
  if (move->from == CELLS_NONE)
    return false;
  /* There are as many free cells below nr_full as clusters above. */
  move->to = cells_previous (&compact->mover.cells, compact->target_end,
                             CELLS_FREE);
  move->index = compact->mover.owners[move->from] - 1;
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

  compact->high = source == CELLS_NONE ? compact->nr_full : source + 1;
}

static void
plan (struct compact *compact)
{
  compact->nr_full = count_full (compact);
  for (uint64_t cell = compact->mover.cells.nr;
       (cell = find_source (compact, cell)) != CELLS_NONE;)
    compact->nr_left++;
  compact->mover.nr_bytes_to_do =
    compact->nr_left * compact->mover.delta->layout.cluster_size;
  compact->source_end = compact->mover.cells.nr;
  compact->target_end = compact->nr_full;
  update_high (compact);
}

/* Note a move as done, and how much data there will be less of for it. */
static int64_t
pretend_to_move (struct compact *compact, const struct move *move)
{
  struct mover *mover = &compact->mover;
  const uint64_t size = mover->delta->layout.cluster_size;
  const uint64_t data = compact->options.keep_holes_out
                          ? size
                          : mover_count_data (mover, size,
                                              mover_offset (mover, move->from));
  const uint64_t overwritten =
    mover_count_data (mover, size, mover_offset (mover, move->to));

  cells_set_used (&mover->cells, move->to);
  cells_set_free (&mover->cells, move->from);
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
  const struct mover *mover = &compact->mover;
  struct move move;
  int64_t back = 0;
  uint64_t end;

  while (next_move (compact, &move)) {
    back += pretend_to_move (compact, &move);
    pass_move (compact, &move);
  }
  update_high (compact);
  end = MIN (data_end (compact), mover->file_size);
  back += (int64_t) mover_count_data (mover, mover->file_size - end, end);
  if (!compact->options.keep_holes_out)
    back += (int64_t) mover_count_free_data (mover, end);
  result->file_size_after = end;
  result->allocated_after =
    result->allocated_before
    - MIN ((uint64_t) MAX (back, 0), result->allocated_before);
}

/* ---- Moving ------------------------------------------------------------ */

/* The clusters of MOVES (of struct move) are copied: let their entries follow,
 * durably, and free the cells where they were.
 */
static int
commit_moves (struct compact *compact, const GArray *moves)
{
  struct mover *mover = &compact->mover;
  const struct move *list = (const struct move *) moves->data;
  int r;

  for (guint i = 0; i < moves->len; i++)
    mover_publish (mover, list[i].index, list[i].to);
  r = mover_commit (mover);
  if (r < 0)
    return r;
  for (guint i = 0; i < moves->len; i++)
    cells_set_free (&mover->cells, list[i].from);
  update_high (compact);
  compact->nr_left -= moves->len;
  compact->result.nr_moved += moves->len;
  return 0;
}

/* Copy the highest clusters that are left, as many as make a batch, and add the
 * moves that this makes to MOVES.
 */
static int
copy_batch (struct compact *compact, GArray *moves)
{
  struct mover *mover = &compact->mover;
  struct move move;

  for (uint64_t bytes = 0;
       bytes < compact->options.batch && !mover->interrupted
       && next_move (compact, &move);
       bytes += mover->delta->layout.cluster_size) {
    const uint64_t nr_bytes_before = mover->nr_bytes_done;
    int r = mover_copy (mover, mover_offset (mover, move.from), move.to);

    if (r < 0) {
      mover->nr_bytes_done = nr_bytes_before;
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
  struct mover *mover = &compact->mover;
  struct move move;

  if (!next_move (compact, &move))
    return mover_fail (mover, r, "a host cluster cannot be moved");
  return mover_fail (mover, r, "host cluster at byte %" G_GUINT64_FORMAT
                     " cannot be moved to byte %" G_GUINT64_FORMAT,
                     mover_offset (mover, move.from),
                     mover_offset (mover, move.to));
}

static int
move_batch (struct compact *compact)
{
  g_autoptr (GArray) moves = g_array_new (FALSE, FALSE, sizeof (struct move));
  const int r = copy_batch (compact, moves);

  if (moves->len > 0
      && (commit_moves (compact, moves) < 0
          || mover_cut (&compact->mover, data_end (compact)) < 0))
    return compact->mover.error;
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
  struct mover *mover = &compact->mover;
  int r = mover_cut (mover, data_end (compact));

  mover_tell (mover, 0);
  while (r == 0 && compact->nr_left > 0 && !mover->interrupted)
    r = move_batch (compact);
  /* Too late to matter. */
  if (compact->nr_left == 0)
    mover->interrupted = false;
}

static int
run (struct compact *compact, GError **error)
{
  struct mover *mover = &compact->mover;

  if (mover_begin (mover) == 0) {
    move_all (compact);
    mover_finish (mover, data_end (compact));
  }
  compact->result.interrupted = mover->interrupted;
  compact->result.bytes_copied = mover->bytes_copied;
  return mover_report (mover, "compact it again when the cause is gone", error);
}

/* ---- The whole --------------------------------------------------------- */

static bool
refuse_extension (const struct delta *delta, GError **error)
{
  if (!format_has_valid_extension (&delta->header))
    return false;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: extension offset is %" G_GUINT64_FORMAT " sectors: it "
               "carries changed-block bitmaps, which compacting would lose: "
               "ploop-img bitmap remove takes them away",
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
  const struct mover *mover = &compact->mover;

  return format_is_dirty (mover->delta->header.in_use)
         || compact->nr_left > 0 || mover->file_size > data_end (compact)
         || (!compact->options.keep_holes_out
             && mover_count_free_data (mover, data_end (compact)) > 0);
}

static int
measure (const struct compact *compact, uint64_t *size, uint64_t *allocated,
         GError **error)
{
  const struct delta *delta = compact->mover.delta;
  struct stat st;

  if (fstat (delta->fd, &st) == -1) {
    error_set_system (error, errno, "%s: cannot be examined", delta->path);
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

int
ploop_compact (const char *path, const struct ploop_compact_options *options,
               ploop_progress_fn progress, void *opaque,
               struct ploop_compact_result *result, GError **error)
{
  struct compact compact = {
    .mover = { .progress = progress, .opaque = opaque },
  };
  int r;

  if (result)
    *result = compact.result;
  if (options)
    compact.options = *options;
  if (compact.options.batch == 0)
    compact.options.batch = DEFAULT_BATCH;
  compact.mover.keep_holes_out = compact.options.keep_holes_out;
  compact.mover.log =
    (struct log) { compact.options.log, compact.options.log_opaque };
  compact.mover.delta = open_delta (path, compact.options.dry_run, error);
  if (!compact.mover.delta)
    return -1;
  r = mover_init (&compact.mover, 0, error);
  if (r == 0)
    r = mover_load (&compact.mover, error);
  if (r == 0)
    r = compact_loaded (&compact, error);
  if (result)
    *result = compact.result;
  mover_destroy (&compact.mover);
  return r;
}
