/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Fresh host clusters: see alloc.h.
 *
 * The hard part is the hint.  It says in which word of the bitmap the lowest
 * fresh cell may be; whoever finds the words before it empty moves it up,
 * whoever gives a cell back moves it down.  Both at once can leave it above a
 * fresh cell.  That is harmless: it is only a hint, and nobody says that there
 * is no fresh cell before having looked from the start.
 */

#include <config.h>

#include <errno.h>
#include <sched.h>

#include "alloc.h"
#include "sparse.h"

/* The most that one step adds to the file. */
#define EXTEND_STEP (UINT64_C (128) << 20)

/* Cells beyond what the disk can use: those who lose a race hold one until
 * they have given it back.
 */
#define SPARE_CELLS 4096u

#define WORD_BITS 64u

static size_t
bitmap_bytes (const struct alloc *alloc)
{
  return (size_t) (alloc->capacity / WORD_BITS + 1) * sizeof *alloc->fresh;
}

int
alloc_init (struct alloc *alloc, struct delta *delta, const struct log *log,
            uint64_t data_end, uint64_t nr_wanted)
{
  const struct format_layout *layout = &delta->layout;
  const uint64_t nr_cells = format_nr_cells (layout);
  const uint64_t base = format_cells_below (layout, data_end);

  *alloc = (struct alloc) {
    .delta = delta,
    .log = log,
    .base = base,
    .capacity = MIN (nr_wanted + SPARE_CELLS,
                     nr_cells > base ? nr_cells - base : 0),
    .nr_wanted = (int64_t) nr_wanted,
    .data_end = data_end,
  };
  alloc->fresh = sparse_new (bitmap_bytes (alloc));
  if (!alloc->fresh)
    return -errno;
  pthread_mutex_init (&alloc->extend_lock, NULL);
  return 0;
}

void
alloc_destroy (struct alloc *alloc)
{
  if (!alloc->fresh)
    return;
  sparse_free ((void *) alloc->fresh, bitmap_bytes (alloc));
  alloc->fresh = NULL;
  pthread_mutex_destroy (&alloc->extend_lock);
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

      /* Acquire: pairs with the release in make_fresh, so that whoever writes
       * to the cell does so after the file was extended.
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
  /* Acquire: pairs with the release in make_fresh. */
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
  if (take_lowest (alloc, cell))
    return true;
  atomic_fetch_sub (&alloc->nr_held, 1);
  return false;
}

void
alloc_give_back (struct alloc *alloc, uint32_t entry)
{
  const struct format_layout *layout = &alloc->delta->layout;
  const uint64_t offset = format_entry_offset (layout, entry);
  const uint64_t cell =
    (offset - layout->data_start) / layout->cluster_size - alloc->base;
  const uint64_t w = cell / WORD_BITS;
  uint64_t hint = atomic_load_explicit (&alloc->hint, memory_order_relaxed);

  atomic_fetch_or_explicit (&alloc->fresh[w],
                            UINT64_C (1) << cell % WORD_BITS,
                            memory_order_release);
  while (hint > w
         && !atomic_compare_exchange_weak_explicit (&alloc->hint, &hint, w,
                                                    memory_order_relaxed,
                                                    memory_order_relaxed))
    continue;
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

/* The cells from limit up to TO are in the file and durable. */
static void
make_fresh (struct alloc *alloc, uint64_t to)
{
  const uint64_t from =
    atomic_load_explicit (&alloc->limit, memory_order_relaxed);

  for (uint64_t cell = from; cell < to; cell++)
    atomic_fetch_or_explicit (&alloc->fresh[cell / WORD_BITS],
                              UINT64_C (1) << cell % WORD_BITS,
                              memory_order_release);
  atomic_store_explicit (&alloc->limit, to, memory_order_release);
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

/* How many cells to add: a large step, but no more than the disk can use. */
static uint64_t
choose_step (const struct alloc *alloc, uint64_t limit)
{
  const int64_t wanted =
    atomic_load_explicit (&alloc->nr_wanted, memory_order_relaxed);
  const uint64_t step =
    MAX (EXTEND_STEP / alloc->delta->layout.cluster_size, 1);

  return MIN (MIN (step, (uint64_t) MAX (wanted, 1)),
              alloc->capacity - limit);
}

/* Add cells to the file; fewer when there is not so much space. */
static int
grow_file (struct alloc *alloc, uint64_t limit, uint64_t *step)
{
  const struct format_layout *layout = &alloc->delta->layout;
  const uint64_t base = alloc->base;
  const uint64_t from =
    limit == 0 ? alloc->data_end : format_cell_offset (layout, base + limit);
  int r = -ENOSPC;

  for (; *step > 0; *step /= 2) {
    r = delta_extend (alloc->delta, from,
                      format_cell_offset (layout, base + limit + *step));
    if (r != -ENOSPC && r != -EDQUOT && r != -EFBIG)
      break;
  }
  return r;
}

static int
extend_locked (struct alloc *alloc)
{
  const uint64_t limit =
    atomic_load_explicit (&alloc->limit, memory_order_relaxed);
  uint64_t step;
  int r;

  if (alloc->failed)
    return alloc->failed;
  step = choose_step (alloc, limit);
  if (step == 0)
    return -ENOSPC;             /* BAT entries cannot name any more */
  if (!alloc->tail_cut) {
    r = cut_old_tail (alloc);
    if (r < 0)
      return r;
  }
  r = grow_file (alloc, limit, &step);
  if (r < 0)
    return r;
  r = delta_sync_apart (alloc->delta);
  if (r < 0) {
    alloc->failed = r;
    return r;
  }
  log_debug (alloc->log, "%s: extended by %" G_GUINT64_FORMAT " clusters to %"
             G_GUINT64_FORMAT " bytes", alloc->delta->path, step,
             format_cell_offset (&alloc->delta->layout,
                                 alloc->base + limit + step));
  make_fresh (alloc, limit + step);
  return 0;
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
  *entry = format_cell_entry (&alloc->delta->layout, alloc->base + cell);
  return 0;
}

/* ---- At the end -------------------------------------------------------- */

int
alloc_cut_tail (struct alloc *alloc, bool debris)
{
  const uint64_t limit =
    atomic_load_explicit (&alloc->limit, memory_order_acquire);
  uint64_t used = limit;

  if (!alloc->tail_cut)
    return debris ? cut_old_tail (alloc) : 0;
  while (used > 0
         && (atomic_load_explicit (&alloc->fresh[(used - 1) / WORD_BITS],
                                   memory_order_relaxed)
             & UINT64_C (1) << (used - 1) % WORD_BITS))
    used--;
  return delta_truncate (alloc->delta,
                         used == 0
                           ? alloc->data_end
                           : format_cell_offset (&alloc->delta->layout,
                                                 alloc->base + used));
}
