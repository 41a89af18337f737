/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Fresh host clusters: see alloc.h.
 *
 * Two things are hard.
 *
 * The hint says in which word of the bitmap the lowest fresh cell may be;
 * whoever finds the words before it empty moves it up, whoever gives a cell
 * back moves it down.  Both at once can leave it above a fresh cell.  That is
 * harmless: it is only a hint, and nobody says that there is no fresh cell
 * before having looked from the start.
 *
 * The file's size must be durable before a cell that it covers is handed out,
 * and a sync takes long.  So the size, which costs nothing, goes many steps
 * ahead with one sync, and the space is reserved step by step without one:
 * reserved or not, what was never written to reads as zeros.
 */

#include <config.h>

#include <errno.h>
#include <sched.h>

#include "alloc.h"
#include "sparse.h"

/* How far the durable size goes ahead, if that is more than a few steps; when
 * half is left, it goes on.  A sync in the middle of much writing takes tens of
 * milliseconds, in which the file system holds everybody up.
 */
#define SIZE_AHEAD (UINT64_C (64) << 30)
#define SIZE_STEPS 4u

/* When so few steps are fresh, the next is reserved. */
#define LOW_STEPS 2u

/* When the next is needed within that time, it is twice as large, up to so many
 * times: writers wait in the file system while it reserves.
 */
#define BURST_US 100000
#define MAX_BURST 8u

/* Cells beyond what the disk can use: those who lose a race hold one until
 * they have given it back, and freed ones take a while to come back.
 */
#define SPARE_CELLS 4096u

/* Leaks that are reclaimed at once: each is a call of the file system. */
#define RECLAIM_RUNS 256u

#define WORD_BITS 64u

/* ---- Making and ending ------------------------------------------------- */

static size_t
bitmap_bytes (const struct alloc *alloc)
{
  return (size_t) (alloc->capacity / WORD_BITS + 1) * sizeof *alloc->fresh;
}

static void
release (struct alloc *alloc)
{
  sparse_free ((void *) alloc->fresh, bitmap_bytes (alloc));
  sparse_free (alloc->holes, bitmap_bytes (alloc));
  g_clear_pointer (&alloc->leaks, g_array_unref);
  alloc->fresh = NULL;
}

int
alloc_init (struct alloc *alloc, struct delta *delta, struct changes *changes,
            struct stats *stats, const struct log *log,
            const struct alloc_options *options)
{
  const struct format_layout *layout = &delta->layout;
  const uint64_t nr_cells = format_nr_cells (layout);
  const uint64_t base = format_cells_below (layout, options->data_end);

  *alloc = (struct alloc) {
    .delta = delta,
    .stats = stats,
    .log = log,
    .base = base,
    .limit = base,
    .durable_limit = base,
    .hint = base / WORD_BITS,
    /* Room for every cluster of the disk: those that have one now may be freed,
     * and want another before theirs is fresh again.
     */
    .capacity = MAX (base, MIN (nr_cells, base + layout->nr_entries
                                            + SPARE_CELLS)),
    .nr_wanted = (int64_t) options->nr_unmapped,
    .step = MAX (options->prealloc / layout->cluster_size, 1),
    .burst = 1,
    .size_ahead = MAX (SIZE_AHEAD, SIZE_STEPS * options->prealloc)
                  / layout->cluster_size,
    .data_end = options->data_end,
    .leaks = options->leaks ? g_array_ref (options->leaks) : NULL,
    .low = options->low,
    .opaque = options->opaque,
  };
  alloc->fresh = sparse_new (bitmap_bytes (alloc));
  alloc->holes = sparse_new (bitmap_bytes (alloc));
  if (!alloc->fresh || !alloc->holes) {
    release (alloc);
    return -ENOMEM;
  }
  pthread_mutex_init (&alloc->extend_lock, NULL);
  pthread_cond_init (&alloc->covered, NULL);
  freed_init (&alloc->freed, delta, changes, stats, log, options->freed,
              options->opaque);
  return 0;
}

void
alloc_destroy (struct alloc *alloc)
{
  if (!alloc->fresh)
    return;
  freed_destroy (&alloc->freed);
  release (alloc);
  pthread_mutex_destroy (&alloc->extend_lock);
  pthread_cond_destroy (&alloc->covered);
}

/* ---- Taking and giving back -------------------------------------------- */

/* Take a fresh cell from words FROM up to, not including, TO. */
static bool
take_between (struct alloc *alloc, uint64_t from, uint64_t to, uint64_t *cell)
{
  for (uint64_t w = from; w < to; w++) {
    uint64_t bits =
      atomic_load_explicit (&alloc->fresh[w], memory_order_relaxed);

    while (bits != 0) {
      const uint64_t bit = bits & -bits;

      /* Acquire: pairs with the release in set_fresh, so that whoever writes
       * to the cell does so after the file was extended, or the cell
       * scrubbed.
       */
      bits = atomic_fetch_and_explicit (&alloc->fresh[w], ~bit,
                                        memory_order_acq_rel);
      if (bits & bit) {
        *cell = w * WORD_BITS + (uint64_t) __builtin_ctzll (bit);
        return true;
      }
    }
  }
  return false;
}

/* Take the lowest fresh cell. */
static bool
take_lowest (struct alloc *alloc, uint64_t *cell)
{
  /* Acquire: pairs with the release in extend_locked. */
  const uint64_t limit =
    atomic_load_explicit (&alloc->limit, memory_order_acquire);
  const uint64_t words = (limit + WORD_BITS - 1) / WORD_BITS;
  uint64_t hint = atomic_load_explicit (&alloc->hint, memory_order_relaxed);

  if (take_between (alloc, hint, words, cell)) {
    const uint64_t found = *cell / WORD_BITS;

    /* Only over words that were empty when we looked. */
    if (found > hint)
      atomic_compare_exchange_strong_explicit (&alloc->hint, &hint, found,
                                               memory_order_relaxed,
                                               memory_order_relaxed);
    return true;
  }
  return take_between (alloc, 0, MIN (hint, words), cell);
}

/* Take a fresh cell, if there is one, and hold it. */
static bool
take_fresh (struct alloc *alloc, uint64_t *cell)
{
  /* Counted before it is taken: nobody shall find neither the cell nor its
   * holder.
   */
  atomic_fetch_add (&alloc->nr_held, 1);
  if (take_lowest (alloc, cell)) {
    atomic_fetch_sub_explicit (&alloc->nr_fresh, 1, memory_order_relaxed);
    return true;
  }
  atomic_fetch_sub (&alloc->nr_held, 1);
  return false;
}

/* Make NR cells from CELL up fresh. */
static void
set_fresh (struct alloc *alloc, uint64_t cell, uint64_t nr)
{
  const uint64_t w = cell / WORD_BITS;
  uint64_t hint;

  for (uint64_t c = cell; c < cell + nr; c++)
    atomic_fetch_or_explicit (&alloc->fresh[c / WORD_BITS],
                              UINT64_C (1) << c % WORD_BITS,
                              memory_order_release);
  atomic_fetch_add_explicit (&alloc->nr_fresh, (int64_t) nr,
                             memory_order_release);
  hint = atomic_load_explicit (&alloc->hint, memory_order_relaxed);
  while (hint > w
         && !atomic_compare_exchange_weak_explicit (&alloc->hint, &hint, w,
                                                    memory_order_relaxed,
                                                    memory_order_relaxed))
    continue;
}

void
alloc_give_back (struct alloc *alloc, uint32_t entry)
{
  const struct format_layout *layout = &alloc->delta->layout;
  const uint64_t offset = format_entry_offset (layout, entry);

  set_fresh (alloc, (offset - layout->data_start) / layout->cluster_size, 1);
  atomic_fetch_add_explicit (&alloc->nr_wanted, 1, memory_order_relaxed);
  /* Sequentially consistent, as in may_come_back: returned first. */
  atomic_fetch_add (&alloc->nr_returned, 1);
  atomic_fetch_sub (&alloc->nr_held, 1);
}

void
alloc_keep (struct alloc *alloc)
{
  atomic_fetch_sub (&alloc->nr_held, 1);
}

/* ---- Extending the file ------------------------------------------------ */

/* What the disk can use beyond what is fresh or will be; up to nr_held too many,
 * while clusters are being taken.
 */
static int64_t
shortage (const struct alloc *alloc)
{
  return atomic_load_explicit (&alloc->nr_wanted, memory_order_relaxed)
         - atomic_load_explicit (&alloc->nr_fresh, memory_order_relaxed)
         - (int64_t) alloc_nr_pending (alloc);
}

/* For a moment a counter may be behind the other one: never show less than none. */
static uint64_t
load_count (const _Atomic int64_t *count)
{
  return (uint64_t) MAX (atomic_load_explicit (count, memory_order_relaxed), 0);
}

uint64_t
alloc_nr_wanted (const struct alloc *alloc)
{
  return load_count (&alloc->nr_wanted);
}

uint64_t
alloc_nr_free (const struct alloc *alloc)
{
  return load_count (&alloc->nr_fresh)
         + atomic_load_explicit (&alloc->nr_holes, memory_order_relaxed)
         + alloc_nr_pending (alloc);
}

bool
alloc_is_low (const struct alloc *alloc)
{
  return load_count (&alloc->nr_fresh) < alloc->step * LOW_STEPS
         && shortage (alloc)
              > (int64_t) atomic_load_explicit (&alloc->nr_held,
                                                memory_order_relaxed)
         && !atomic_load_explicit (&alloc->ahead_failed, memory_order_relaxed);
}

/* Before the file grows for the first time, let it end with the last cluster:
 * what lies behind is nobody's, and not known to be zeros.  A file that ends
 * inside that cluster gets the rest of it, so that nothing that follows can cut
 * off what a request writes there.
 */
static int
cut_old_tail (struct alloc *alloc)
{
  uint64_t size;
  int r;

  r = delta_size (alloc->delta, &size);
  if (r < 0)
    return r;
  if (size > alloc->data_end)
    log_debug (alloc->log, "%s: cutting off %" G_GUINT64_FORMAT " bytes "
               "behind the last cluster", alloc->delta->path,
               size - alloc->data_end);
  if (size != alloc->data_end) {
    r = delta_truncate (alloc->delta, alloc->data_end);
    if (r < 0)
      return r;
  }
  alloc->tail_cut = true;
  return 0;
}

/* Where the cells from CELL up begin in the file. */
static uint64_t
tail_offset (const struct alloc *alloc, uint64_t cell)
{
  return cell == alloc->base
           ? alloc->data_end : format_cell_offset (&alloc->delta->layout, cell);
}

/* Let the file end behind cell AHEAD, or, when that is too far for the file
 * system or the process, behind cell TO.  Returns 0 and how far it got.
 */
static int
move_end (struct alloc *alloc, uint64_t to, uint64_t *ahead)
{
  int r = delta_truncate (alloc->delta, tail_offset (alloc, *ahead));

  if (delta_is_no_space (r) && *ahead > to) {
    *ahead = to;
    r = delta_truncate (alloc->delta, tail_offset (alloc, *ahead));
  }
  return r;
}

/* Let the file's durable size cover the cells below TO, and more if the disk can
 * use them.  With the extend lock held, which is let go during the sync: others
 * go on with what is covered.
 */
static int
cover_cells (struct alloc *alloc, uint64_t to)
{
  const uint64_t use = (uint64_t) MAX (shortage (alloc), 0);
  uint64_t ahead = MIN (MIN (alloc->size_ahead, use),
                        alloc->capacity - alloc->limit);
  int r;

  ahead = MAX (alloc->limit + ahead, to);
  if (ahead <= alloc->durable_limit)
    return 0;
  r = move_end (alloc, to, &ahead);
  if (r < 0)
    return r;
  alloc->covering = true;
  pthread_mutex_unlock (&alloc->extend_lock);
  r = delta_sync_apart (alloc->delta);
  stats_add (alloc->stats, STATS_EXTENSION_SYNCS, 1);
  pthread_mutex_lock (&alloc->extend_lock);
  alloc->covering = false;
  pthread_cond_broadcast (&alloc->covered);
  if (r == 0)
    alloc->durable_limit = ahead;
  else {
    alloc->failed = r;
    log_warning (alloc->log, "%s: sync of the file's new size failed: %s: it is "
                 "not made larger any more", alloc->delta->path,
                 g_strerror (-r));
  }
  return r;
}

static void
wait_until_covered (struct alloc *alloc)
{
  while (alloc->covering)
    pthread_cond_wait (&alloc->covered, &alloc->extend_lock);
}

/* The lock was let go: whatever was known about the end of the file may be
 * different now.
 */
#define LOOK_AGAIN 1

/* Reserve the cells FROM up to TO. */
static int
add_cells (struct alloc *alloc, uint64_t from, uint64_t to)
{
  if (to > alloc->durable_limit && alloc->covering) {
    wait_until_covered (alloc);
    return LOOK_AGAIN;
  }
  if (to > alloc->durable_limit) {
    int r = cover_cells (alloc, to);

    return r < 0 ? r : LOOK_AGAIN;
  }
  return delta_reserve (alloc->delta, tail_offset (alloc, from),
                        tail_offset (alloc, to));
}

/* A reservation up to TO may have got halfway before the disk was full: let go
 * of what lies behind FROM.  Without holes, that may take a shorter file.
 */
static void
let_go (struct alloc *alloc, uint64_t from, uint64_t to)
{
  const uint64_t offset = tail_offset (alloc, from);

  if (delta_punch (alloc->delta, tail_offset (alloc, to) - offset, offset) == 0
      || alloc->covering)
    return;
  if (delta_truncate (alloc->delta, offset) == 0)
    alloc->durable_limit = from;
}

/* How many cells the next extension adds. */
static uint64_t
next_step (const struct alloc *alloc)
{
  const uint64_t use = (uint64_t) MAX (shortage (alloc), 1);

  return MIN (MIN (alloc->step * alloc->burst, use),
              alloc->capacity - alloc->limit);
}

/* Make the cells FROM up to TO fresh. */
static void
hand_out (struct alloc *alloc, uint64_t from, uint64_t to)
{
  atomic_store_explicit (&alloc->ahead_failed, false, memory_order_relaxed);
  set_fresh (alloc, from, to - from);
}

/* Add cells to the file: a step, fewer when there is not so much space or the
 * disk cannot use so many.
 */
static int
extend_file (struct alloc *alloc)
{
  uint64_t limit, tried, step = next_step (alloc);
  int r = -ENOSPC;              /* BAT entries cannot name any more */

  if (step > 0 && !alloc->tail_cut) {
    r = cut_old_tail (alloc);
    if (r < 0)
      return r;
  }
  limit = atomic_load_explicit (&alloc->limit, memory_order_relaxed);
  for (tried = step; step > 0; step /= 2) {
    r = add_cells (alloc, limit, limit + step);
    if (!delta_is_no_space (r))
      break;
  }
  if (step < tried && r != LOOK_AGAIN)
    let_go (alloc, limit + step, MIN (limit + tried, alloc->durable_limit));
  if (r != 0)
    return r;
  log_debug (alloc->log, "%s: extended by %" G_GUINT64_FORMAT " clusters to %"
             G_GUINT64_FORMAT " bytes", alloc->delta->path, step,
             tail_offset (alloc, limit + step));
  stats_add (alloc->stats, STATS_EXTENSIONS, 1);
  /* Release: pairs with the acquire in take_lowest. */
  atomic_store_explicit (&alloc->limit, limit + step, memory_order_release);
  hand_out (alloc, limit, limit + step);
  return 0;
}

/* ---- Holes ------------------------------------------------------------- */

static bool
is_fresh (const struct alloc *alloc, uint64_t cell)
{
  return atomic_load_explicit (&alloc->fresh[cell / WORD_BITS],
                               memory_order_relaxed)
           >> cell % WORD_BITS & 1;
}

/* The lowest fresh cell from CELL up; the limit when there is none.  Others may
 * take it meanwhile.
 */
static uint64_t
next_fresh (const struct alloc *alloc, uint64_t cell)
{
  const uint64_t limit =
    atomic_load_explicit (&alloc->limit, memory_order_relaxed);

  while (cell < limit && !is_fresh (alloc, cell)) {
    const bool empty =
      atomic_load_explicit (&alloc->fresh[cell / WORD_BITS],
                            memory_order_relaxed) == 0;

    cell = empty ? (cell / WORD_BITS + 1) * WORD_BITS : cell + 1;
  }
  return MIN (cell, limit);
}

static uint64_t
lowest_fresh (const struct alloc *alloc)
{
  const uint64_t hint =
    atomic_load_explicit (&alloc->hint, memory_order_relaxed);

  return next_fresh (alloc, hint * WORD_BITS);
}

static bool
is_hole (const struct alloc *alloc, uint64_t cell)
{
  return alloc->holes[cell / WORD_BITS] >> cell % WORD_BITS & 1;
}

static void
add_holes (struct alloc *alloc, uint64_t cell, uint64_t nr)
{
  for (uint64_t c = cell; c < cell + nr; c++)
    alloc->holes[c / WORD_BITS] |= UINT64_C (1) << c % WORD_BITS;
  alloc->hole_hint = MIN (alloc->hole_hint, cell / WORD_BITS);
  alloc->nr_holes += nr;
}

static void
remove_holes (struct alloc *alloc, uint64_t from, uint64_t to)
{
  for (uint64_t c = from; c < to; c++)
    alloc->holes[c / WORD_BITS] &= ~(UINT64_C (1) << c % WORD_BITS);
  alloc->nr_holes -= to - from;
}

/* The lowest hole; there is one. */
static uint64_t
lowest_hole (struct alloc *alloc)
{
  while (alloc->holes[alloc->hole_hint] == 0)
    alloc->hole_hint++;
  return alloc->hole_hint * WORD_BITS
         + (uint64_t) __builtin_ctzll (alloc->holes[alloc->hole_hint]);
}

/* Make the lowest holes fresh that lie together: up to MOST, fewer when there
 * is not so much space.  What a reservation has got before it failed is let go.
 */
static int
reserve_holes (struct alloc *alloc, uint64_t most)
{
  const struct format_layout *layout = &alloc->delta->layout;
  const uint64_t from = lowest_hole (alloc);
  uint64_t to = from + 1, tried;
  int r = -ENOSPC;

  while (to - from < most && to < alloc->capacity && is_hole (alloc, to))
    to++;
  for (tried = to; to > from; to = from + (to - from) / 2) {
    r = delta_reserve (alloc->delta, format_cell_offset (layout, from),
                       format_cell_offset (layout, to));
    if (!delta_is_no_space (r))
      break;
  }
  if (to < tried)
    delta_punch (alloc->delta, (tried - to) * layout->cluster_size,
                 format_cell_offset (layout, to));
  if (r < 0)
    return r;
  remove_holes (alloc, from, to);
  hand_out (alloc, from, to);
  return 0;
}

/* The lowest free cluster is the next to be taken, so that the file's tail
 * stays free: when holes have come back below what is fresh, reserve a step of them.
 * Where there is no space they stay holes.
 */
static void
prefer_low_holes (struct alloc *alloc)
{
  pthread_mutex_lock (&alloc->extend_lock);
  if (alloc->nr_holes > 0
      && atomic_load_explicit (&alloc->nr_fresh, memory_order_relaxed)
           < (int64_t) (alloc->step * (LOW_STEPS + MAX_BURST))
      && lowest_hole (alloc) < lowest_fresh (alloc))
    reserve_holes (alloc, alloc->step);
  pthread_mutex_unlock (&alloc->extend_lock);
}

/* ---- Fresh ones from either -------------------------------------------- */

/* Make some clusters fresh.  May make none, although it returns 0: the caller
 * looks again.
 */
static int
extend_locked (struct alloc *alloc)
{
  int r;

  if (alloc->nr_holes > 0)
    r = reserve_holes (alloc, MAX (next_step (alloc), 1));
  else
    r = alloc->failed ? alloc->failed : extend_file (alloc);
  if (r == LOOK_AGAIN)
    return 0;
  return delta_is_no_space (r) ? -ENOSPC : r;
}

/* Is the end of the durable size near, and could the disk use more? */
static bool
is_size_low (const struct alloc *alloc)
{
  const uint64_t left = alloc->durable_limit - alloc->limit;

  return left < alloc->size_ahead / 2
         && shortage (alloc)
              > (int64_t) (left + atomic_load_explicit (&alloc->nr_held,
                                                        memory_order_relaxed));
}

/* Is the file growing quickly? */
static void
adapt_step (struct alloc *alloc)
{
  const int64_t now = g_get_monotonic_time ();

  if (now - alloc->extended_at > BURST_US)
    alloc->burst = 1;
  else if (alloc->burst < MAX_BURST)
    alloc->burst *= 2;
  alloc->extended_at = now;
}

int
alloc_extend (struct alloc *alloc)
{
  int r = 0;

  pthread_mutex_lock (&alloc->extend_lock);
  wait_until_covered (alloc);
  if (alloc_is_low (alloc))
    adapt_step (alloc);
  while (r == 0 && alloc_is_low (alloc))
    r = extend_locked (alloc);
  if (r == 0 && !alloc->failed && alloc->tail_cut && is_size_low (alloc))
    r = cover_cells (alloc, alloc->durable_limit);
  /* Who needs a cluster tries again; there is no point in trying for each that
   * is taken.
   */
  if (r < 0)
    atomic_store_explicit (&alloc->ahead_failed, true, memory_order_relaxed);
  pthread_mutex_unlock (&alloc->extend_lock);
  return r;
}

/* Since NR_RETURNED was read, a cell was given back, or somebody holds one who
 * may do so: losing a race must not look like a full disk to others.
 */
static bool
may_come_back (struct alloc *alloc, uint64_t nr_returned)
{
  return atomic_load (&alloc->nr_held) > 0
         || atomic_load (&alloc->nr_returned) != nr_returned;
}

/* With the extend lock held.  Those who hold a cell need no lock to say what
 * becomes of it, so waiting for them here ends.
 */
static int
take_or_extend (struct alloc *alloc, uint64_t *cell)
{
  for (;;) {
    const uint64_t nr_returned = atomic_load (&alloc->nr_returned);
    int r;

    /* Somebody else may have extended meanwhile; and what is extended may be
     * gone before we get to it.
     */
    if (take_fresh (alloc, cell))
      return 0;
    r = extend_locked (alloc);
    if (r < 0 && !may_come_back (alloc, nr_returned))
      return r;
    if (r < 0)
      sched_yield ();
  }
}

int
alloc_take (struct alloc *alloc, uint32_t *entry)
{
  uint64_t cell;

  if (!take_fresh (alloc, &cell)) {
    int r;

    pthread_mutex_lock (&alloc->extend_lock);
    r = take_or_extend (alloc, &cell);
    pthread_mutex_unlock (&alloc->extend_lock);
    if (r < 0)
      return r;
  }
  atomic_fetch_sub_explicit (&alloc->nr_wanted, 1, memory_order_relaxed);
  if (alloc_is_low (alloc))
    alloc->low (alloc->opaque);
  *entry = format_cell_entry (&alloc->delta->layout, cell);
  return 0;
}

/* ---- Freeing ----------------------------------------------------------- */

void
alloc_free (struct alloc *alloc, uint32_t entry, uint64_t removal)
{
  atomic_fetch_add_explicit (&alloc->nr_wanted, 1, memory_order_relaxed);
  stats_add (alloc->stats, STATS_FREES, 1);
  freed_add (&alloc->freed, entry, removal);
}

/* A piece of the file has been cleared.  Clusters that are not on the grid of
 * cells, in an old image of another program, no cell can name.
 */
static void
take_back (void *opaque, uint64_t offset, uint64_t length)
{
  struct alloc *alloc = opaque;
  const struct format_layout *layout = &alloc->delta->layout;
  const uint64_t cell = (offset - layout->data_start) / layout->cluster_size;
  const uint64_t nr = length / layout->cluster_size;

  if (offset != format_cell_offset (layout, cell))
    return;
  pthread_mutex_lock (&alloc->extend_lock);
  add_holes (alloc, cell, nr);
  pthread_mutex_unlock (&alloc->extend_lock);
  stats_add (alloc->stats, STATS_REUSES, nr);
  atomic_fetch_add (&alloc->nr_returned, 1);
}

void
alloc_scrub (struct alloc *alloc)
{
  freed_scrub (&alloc->freed, take_back, alloc);
  prefer_low_holes (alloc);
}

bool
alloc_reclaim (struct alloc *alloc)
{
  const struct format_layout *layout = &alloc->delta->layout;
  const guint nr = alloc->leaks ? alloc->leaks->len : 0;
  const guint stop = MIN (nr, alloc->nr_reclaimed + RECLAIM_RUNS);

  for (; alloc->nr_reclaimed < stop; alloc->nr_reclaimed++) {
    const struct alloc_leak *leak =
      &g_array_index (alloc->leaks, struct alloc_leak, alloc->nr_reclaimed);

    log_debug (alloc->log, "%s: %" G_GUINT64_FORMAT " leaked clusters from byte "
               "%" G_GUINT64_FORMAT " on are brought back", alloc->delta->path,
               leak->nr, format_cell_offset (layout, leak->first));
    freed_add_unused (&alloc->freed, format_cell_offset (layout, leak->first),
                      leak->nr * layout->cluster_size);
  }
  return stop < nr;
}

/* ---- At the end -------------------------------------------------------- */

/* Reserved clusters that nobody took, among those in use below cell END, take
 * space no longer.
 */
static void
let_go_of_fresh (struct alloc *alloc, uint64_t end)
{
  for (uint64_t from = 0, to; (from = next_fresh (alloc, from)) < end;
       from = to) {
    for (to = from + 1; to < end && is_fresh (alloc, to);)
      to++;
    delta_punch (alloc->delta,
                 (to - from) * alloc->delta->layout.cluster_size,
                 format_cell_offset (&alloc->delta->layout, from));
  }
}

int
alloc_finish (struct alloc *alloc, bool old_tail)
{
  uint64_t used = atomic_load_explicit (&alloc->limit, memory_order_acquire);

  freed_finish (&alloc->freed, take_back, alloc);
  while (used > 0
         && (is_fresh (alloc, used - 1) || is_hole (alloc, used - 1)))
    used--;
  let_go_of_fresh (alloc, used);
  if (!alloc->tail_cut && used == alloc->base)
    return old_tail ? cut_old_tail (alloc) : 0;
  return delta_truncate (alloc->delta, tail_offset (alloc, used));
}
