/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The three steps of a freed cluster: see freed.h. */

#include <config.h>

#include <errno.h>

#include <glib.h>

#include "format.h"
#include "freed.h"
#include "rcu.h"

/* A piece of the file. */
struct run {
  uint64_t offset, length;      /* bytes */
};

enum batch_step {
  BATCH_IN_USE,                 /* requests may still use the clusters */
  BATCH_SETTLED,                /* none does */
  BATCH_PUNCHED,
};

struct freed_batch {
  struct rcu_head rcu;
  struct freed *freed;
  struct freed_batch *next;
  GArray *runs;                 /* of struct run */
  uint64_t nr_clusters;
  uint64_t change;              /* to become durable: the last removal, then
                                   the punch */
  _Atomic int step;             /* enum batch_step */
};

/* ---- Making and ending ------------------------------------------------- */

void
freed_init (struct freed *freed, struct delta *delta, struct changes *changes,
            struct stats *stats, const struct log *log,
            void (*news) (void *opaque), void *opaque)
{
  *freed = (struct freed) {
    .delta = delta,
    .changes = changes,
    .stats = stats,
    .log = log,
    .news = news,
    .opaque = opaque,
  };
  pthread_mutex_init (&freed->lock, NULL);
}

static struct freed_batch *
new_batch (struct freed *freed)
{
  struct freed_batch *batch = g_new0 (struct freed_batch, 1);

  batch->freed = freed;
  batch->runs = g_array_new (FALSE, FALSE, sizeof (struct run));
  return batch;
}

static void
free_batch (struct freed_batch *batch)
{
  g_array_unref (batch->runs);
  g_free (batch);
}

/* Until no call_rcu of ours is under way.  A barrier takes tens of milliseconds,
 * so only if there is one.
 */
static void
wait_for_callbacks (struct freed *freed)
{
  /* Acquire: pairs with the release in settle. */
  if (atomic_load_explicit (&freed->nr_graces, memory_order_acquire) > 0)
    rcu_barrier ();
  TAKES_OVER (freed);
}

static struct freed_batch *
take_closed (struct freed *freed)
{
  struct freed_batch *batch = freed->closed;

  if (batch)
    freed->closed = batch->next;
  return batch;
}

void
freed_destroy (struct freed *freed)
{
  struct freed_batch *batch;

  /* Also for whoever still tells that a grace period is over. */
  wait_for_callbacks (freed);
  while ((batch = take_closed (freed)))
    free_batch (batch);
  if (freed->open)
    free_batch (freed->open);
  pthread_mutex_destroy (&freed->lock);
}

/* ---- Collecting -------------------------------------------------------- */

static void
add_run (struct freed_batch *batch, uint64_t offset, uint64_t length)
{
  const struct run run = { offset, length };
  struct run *last;

  if (batch->runs->len > 0) {
    last = &g_array_index (batch->runs, struct run, batch->runs->len - 1);
    if (last->offset + last->length == offset) {
      last->length += length;
      return;
    }
  }
  g_array_append_val (batch->runs, run);
}

static void
add (struct freed *freed, uint64_t offset, uint64_t length, uint64_t removal)
{
  const uint64_t nr = length / freed->delta->layout.cluster_size;
  struct freed_batch *batch;
  bool first;

  pthread_mutex_lock (&freed->lock);
  first = !freed->open;
  if (first)
    freed->open = new_batch (freed);
  batch = freed->open;
  add_run (batch, offset, length);
  batch->nr_clusters += nr;
  batch->change = MAX (batch->change, removal);
  atomic_fetch_add_explicit (&freed->nr_pending, nr, memory_order_release);
  pthread_mutex_unlock (&freed->lock);
  if (first)
    freed->news (freed->opaque);
}

void
freed_add (struct freed *freed, uint32_t entry, uint64_t removal)
{
  const struct format_layout *layout = &freed->delta->layout;

  add (freed, format_entry_offset (layout, entry), layout->cluster_size,
       removal);
}

void
freed_add_unused (struct freed *freed, uint64_t offset, uint64_t length)
{
  add (freed, offset, length, 0);
}

/* ---- Step 1: grace ----------------------------------------------------- */

/* In liburcu's thread: a grace period is over. */
static void
settle (struct rcu_head *rcu)
{
  struct freed_batch *batch = caa_container_of (rcu, struct freed_batch, rcu);
  struct freed *freed;

  TAKES_OVER (batch);
  freed = batch->freed;
  /* Release: pairs with the acquire in scrub_batch.  The batch may be gone
   * after it.
   */
  atomic_store_explicit (&batch->step, BATCH_SETTLED, memory_order_release);
  freed->news (freed->opaque);
  HANDS_OVER (freed);
  /* Release: all of this is over for who sees it. */
  atomic_fetch_sub_explicit (&freed->nr_graces, 1, memory_order_release);
}

/* Wait for whoever may still use what was collected. */
static void
close_batch (struct freed *freed)
{
  struct freed_batch *batch;

  pthread_mutex_lock (&freed->lock);
  batch = g_steal_pointer (&freed->open);
  pthread_mutex_unlock (&freed->lock);
  if (!batch)
    return;
  batch->next = freed->closed;
  freed->closed = batch;
  HANDS_OVER (batch);
  atomic_fetch_add_explicit (&freed->nr_graces, 1, memory_order_relaxed);
  call_rcu (&batch->rcu, settle);
}

bool
freed_expects_news (const struct freed *freed)
{
  /* What is settled behind our back is told after that. */
  for (const struct freed_batch *batch = freed->closed; batch;
       batch = batch->next)
    if (atomic_load_explicit (&batch->step, memory_order_acquire)
        == BATCH_IN_USE)
      return true;
  return false;
}

/* ---- Step 2: punch ----------------------------------------------------- */

static gint
compare_runs (gconstpointer a, gconstpointer b)
{
  const struct run *left = a, *right = b;

  return left->offset < right->offset ? -1 : left->offset > right->offset;
}

/* Sort the runs, and join those that have become neighbours. */
static void
join_runs (GArray *runs)
{
  guint last = 0;

  g_array_sort (runs, compare_runs);
  for (guint i = 1; i < runs->len; i++) {
    struct run *a = &g_array_index (runs, struct run, last);
    const struct run *b = &g_array_index (runs, struct run, i);

    if (a->offset + a->length == b->offset)
      a->length += b->length;
    else
      g_array_index (runs, struct run, ++last) = *b;
  }
  if (runs->len > 0)
    g_array_set_size (runs, last + 1);
}

/* Let a run read as zeros, and take no space if possible. */
static int
clear_run (struct freed *freed, const struct run *run)
{
  int r = delta_punch (freed->delta, run->length, run->offset);

  stats_add (freed->stats, STATS_PUNCHES, 1);
  return r == -ENOTSUP ? delta_zero (freed->delta, run->length, run->offset)
                       : r;
}

static void
punch_batch (struct freed *freed, struct freed_batch *batch)
{
  join_runs (batch->runs);
  for (guint i = 0; i < batch->runs->len;) {
    const struct run *run = &g_array_index (batch->runs, struct run, i);
    int r = clear_run (freed, run);

    if (r == 0) {
      i++;
      continue;
    }
    log_warning (freed->log, "%s: %" G_GUINT64_FORMAT " bytes at %"
                 G_GUINT64_FORMAT " were freed but cannot be cleared: %s: they "
                 "stay unused", freed->delta->path, run->length, run->offset,
                 g_strerror (-r));
    g_array_remove_index (batch->runs, i);
  }
  atomic_store_explicit (&batch->step, BATCH_PUNCHED, memory_order_relaxed);
}

/* ---- Step 3: back ------------------------------------------------------ */

static void
give_batch_back (struct freed *freed, struct freed_batch *batch,
                 freed_back *back, void *opaque)
{
  for (guint i = 0; i < batch->runs->len; i++) {
    const struct run *run = &g_array_index (batch->runs, struct run, i);

    back (opaque, run->offset, run->length);
  }
  /* After it: who finds nothing pending finds them back. */
  atomic_fetch_sub_explicit (&freed->nr_pending, batch->nr_clusters,
                             memory_order_release);
}

/* ---- All of them ------------------------------------------------------- */

/* Returns true when the batch has come to its end. */
static bool
scrub_batch (struct freed *freed, struct freed_batch *batch, freed_back *back,
             void *opaque)
{
  /* Acquire: pairs with the release in settle. */
  const int step = atomic_load_explicit (&batch->step, memory_order_acquire);

  if (step == BATCH_IN_USE
      || !changes_are_synced (freed->changes, batch->change))
    return false;
  if (step == BATCH_SETTLED) {
    punch_batch (freed, batch);
    batch->change = changes_note (freed->changes);
    return false;
  }
  give_batch_back (freed, batch, back, opaque);
  return true;
}

void
freed_scrub (struct freed *freed, freed_back *back, void *opaque)
{
  struct freed_batch **link = &freed->closed;

  close_batch (freed);
  while (*link) {
    struct freed_batch *batch = *link;

    if (scrub_batch (freed, batch, back, opaque)) {
      *link = batch->next;
      free_batch (batch);
    }
    else
      link = &batch->next;
  }
}

/* Nobody takes any more, so no step has to wait for the disk. */
void
freed_finish (struct freed *freed, freed_back *back, void *opaque)
{
  struct freed_batch *batch;

  close_batch (freed);
  if (!freed->closed)
    return;
  wait_for_callbacks (freed);
  while ((batch = take_closed (freed))) {
    if (atomic_load_explicit (&batch->step, memory_order_acquire)
        == BATCH_SETTLED)
      punch_batch (freed, batch);
    give_batch_back (freed, batch, back, opaque);
    free_batch (batch);
  }
  changes_note (freed->changes);
}
