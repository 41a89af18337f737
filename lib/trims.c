/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Parts of clusters that are trimmed: see trims.h.
 *
 * A record may go at any time, when its cluster is written to or unmapped.  So
 * the queues hold tickets, and whoever takes one looks the record up again; a
 * serial number tells it from a later one of the same cluster.
 *
 * What is punched is the place in the file where the record found the cluster.
 * The cluster may have been unmapped since, and its place given to another; or
 * to itself again, so that the place alone tells nothing.  The flag does: it
 * goes when a cluster is unmapped, and is set only here.  A record is good as
 * long as its cluster is where it was and has the flag; that is checked inside
 * an RCU read-side section that lasts until the punch has ended: if it is
 * unmapped meanwhile, its place is not given to anybody before that.
 */

#include <config.h>

#include <string.h>

#include "rcu.h"
#include "trims.h"

/* A trim of a fragmented file system leaves a record a cluster; they are punched
 * at some thousands a second.
 */
#define MAX_RECORDS 65536u

/* Records that are punched at once: who wants to write there waits for all. */
#define BATCH 64u

/* A part of a cluster: bytes. */
struct part {
  uint32_t from, to;
};

enum record_state {
  RECORD_WAITING,
  RECORD_BUSY,
  RECORD_SETTLING,
  RECORD_RESTING,
};

struct trims_record {
  uint64_t cluster;
  uint64_t serial;
  uint64_t word;                /* where it was found */
  GArray *parts;                /* of struct part: sorted, apart */
  GArray *busy;                 /* those that are being punched */
  enum record_state state;
  bool may_rest;                /* it has a ticket in `resting` */
};

struct trims_ticket {
  uint64_t cluster, serial;
};

/* Tickets that wait for a grace period. */
struct batch {
  struct rcu_head rcu;
  struct trims *trims;
  GQueue tickets;
};

/* ---- Parts ------------------------------------------------------------- */

static struct part *
part_at (const GArray *parts, guint i)
{
  return &g_array_index (parts, struct part, i);
}

/* The first that ends at or behind OFFSET. */
static guint
find_part (const GArray *parts, uint32_t offset)
{
  guint i = 0;

  while (i < parts->len && part_at (parts, i)->to < offset)
    i++;
  return i;
}

static void
add_part (GArray *parts, struct part part)
{
  const guint first = find_part (parts, part.from);
  guint end = first;

  for (; end < parts->len && part_at (parts, end)->from <= part.to; end++) {
    part.from = MIN (part.from, part_at (parts, end)->from);
    part.to = MAX (part.to, part_at (parts, end)->to);
  }
  if (end > first)
    g_array_remove_range (parts, first, end - first);
  g_array_insert_val (parts, first, part);
}

static void
remove_part (GArray *parts, struct part part)
{
  for (guint i = find_part (parts, part.from);
       i < parts->len && part_at (parts, i)->from < part.to;) {
    struct part *here = part_at (parts, i);
    const struct part before = { here->from, MIN (here->to, part.from) };
    const struct part after = { MAX (here->from, part.to), here->to };

    g_array_remove_index (parts, i);
    if (before.from < before.to)
      g_array_insert_val (parts, i++, before);
    if (after.from < after.to)
      g_array_insert_val (parts, i++, after);
  }
}

static bool
overlaps (const GArray *parts, struct part part)
{
  for (guint i = 0; i < parts->len; i++)
    if (part_at (parts, i)->from < part.to
        && part.from < part_at (parts, i)->to)
      return true;
  return false;
}

/* ---- Records, with the lock held --------------------------------------- */

static struct trims_record *
find_record (struct trims *trims, uint64_t cluster)
{
  return g_hash_table_lookup (trims->records, &cluster);
}

/* The record that TICKET was for, if it is still in STATE. */
static struct trims_record *
find_ticket (struct trims *trims, const struct trims_ticket *ticket,
             enum record_state state)
{
  struct trims_record *record = find_record (trims, ticket->cluster);

  return record && record->serial == ticket->serial && record->state == state
           ? record : NULL;
}

static void
free_record (gpointer opaque)
{
  struct trims_record *record = opaque;

  g_array_unref (record->parts);
  g_array_unref (record->busy);
  g_free (record);
}

/* Is the cluster where it was, and was so all the time? */
static bool
is_good (const struct trims *trims, const struct trims_record *record)
{
  const uint64_t now = map_lookup (trims->map, record->cluster);

  return (now & MAP_TRIMMED) && map_word_is_same_place (now, record->word);
}

/* The flag goes with it, unless it is gone already. */
static void
drop_record (struct trims *trims, struct trims_record *record)
{
  map_clear_trimmed (trims->map, record->cluster, record->word);
  g_hash_table_remove (trims->records, &record->cluster);
  atomic_fetch_sub (&trims->nr_records, 1);
  pthread_cond_broadcast (&trims->changed);
}

static void
push_ticket (GQueue *queue, const struct trims_record *record)
{
  struct trims_ticket *ticket = g_new (struct trims_ticket, 1);

  *ticket = (struct trims_ticket) { record->cluster, record->serial };
  g_queue_push_tail (queue, ticket);
}

static void
let_rest (struct trims *trims, struct trims_record *record)
{
  record->state = RECORD_RESTING;
  if (!record->may_rest)
    push_ticket (&trims->resting, record);
  record->may_rest = true;
}

/* Records that only may be of use make room for others. */
static void
drop_resting (struct trims *trims)
{
  while (atomic_load (&trims->nr_records) >= MAX_RECORDS) {
    g_autofree struct trims_ticket *ticket =
      g_queue_pop_head (&trims->resting);
    struct trims_record *record;

    if (!ticket)
      return;
    record = find_record (trims, ticket->cluster);
    if (!record || record->serial != ticket->serial)
      continue;
    record->may_rest = false;
    if (record->state == RECORD_RESTING)
      drop_record (trims, record);
  }
}

static struct trims_record *
new_record (struct trims *trims, uint64_t cluster, uint64_t word)
{
  struct trims_record *record = g_new0 (struct trims_record, 1);

  drop_resting (trims);
  record->cluster = cluster;
  record->serial = ++trims->last_serial;
  record->word = word;
  record->parts = g_array_new (FALSE, FALSE, sizeof (struct part));
  record->busy = g_array_new (FALSE, FALSE, sizeof (struct part));
  record->state = RECORD_RESTING;
  g_hash_table_insert (trims->records, &record->cluster, record);
  atomic_fetch_add (&trims->nr_records, 1);
  return record;
}

/* The record of CLUSTER, with its flag set; NULL when it is not where WORD says,
 * or new.
 */
static struct trims_record *
get_record (struct trims *trims, uint64_t cluster, uint64_t word)
{
  struct trims_record *record = find_record (trims, cluster);

  if (record && !is_good (trims, record)) {
    drop_record (trims, record);
    record = NULL;
  }
  if (!map_set_trimmed (trims->map, cluster, word))
    return NULL;
  return record ? record : new_record (trims, cluster, word);
}

/* ---- Making and ending ------------------------------------------------- */

void
trims_init (struct trims *trims, struct delta *delta, struct map *map,
            struct commit *commit, struct alloc *alloc,
            const struct trims_options *options)
{
  *trims = (struct trims) {
    .delta = delta,
    .map = map,
    .commit = commit,
    .alloc = alloc,
    .punches = options->punches,
    .news = options->news,
    .opaque = options->opaque,
    /* The key lies in the record. */
    .records = g_hash_table_new_full (g_int64_hash, g_int64_equal, NULL,
                                      free_record),
    .waiting = G_QUEUE_INIT,
    .settled = G_QUEUE_INIT,
    .resting = G_QUEUE_INIT,
  };
  pthread_mutex_init (&trims->lock, NULL);
  pthread_cond_init (&trims->changed, NULL);
}

/* Until no call_rcu of ours is under way.  A barrier takes tens of milliseconds,
 * so only if there is one.
 */
static void
wait_for_callbacks (struct trims *trims)
{
  /* Acquire: pairs with the release in settle. */
  if (atomic_load_explicit (&trims->nr_graces, memory_order_acquire) > 0)
    rcu_barrier ();
  TAKES_OVER (trims);
}

void
trims_destroy (struct trims *trims)
{
  if (!trims->records)
    return;
  wait_for_callbacks (trims);
  g_queue_clear_full (&trims->waiting, g_free);
  g_queue_clear_full (&trims->settled, g_free);
  g_queue_clear_full (&trims->resting, g_free);
  g_hash_table_unref (trims->records);
  trims->records = NULL;
  pthread_mutex_destroy (&trims->lock);
  pthread_cond_destroy (&trims->changed);
}

/* ---- Trimming ---------------------------------------------------------- */

/* The bytes of the disk that lie in CLUSTER: its last one may be shorter. */
static uint32_t
cluster_length (const struct trims *trims, uint64_t cluster)
{
  const struct format_layout *layout = &trims->delta->layout;

  return (uint32_t) MIN (layout->cluster_size,
                         layout->size - cluster * layout->cluster_size);
}

/* Would nothing show if the cluster were unmapped?  Above a lower delta it stays
 * mapped, as a hole.
 */
static bool
may_unmap (const struct trims_record *record)
{
  return !(record->word & MAP_COVERS);
}

static bool
is_whole (const struct trims *trims, const struct trims_record *record)
{
  return record->parts->len == 1 && part_at (record->parts, 0)->from == 0
         && part_at (record->parts, 0)->to
              == cluster_length (trims, record->cluster);
}

/* Nothing is left of the cluster.  With the lock held and the flag set: whoever
 * comes to write waits for us, and finds it unmapped.
 */
static void
unmap (struct trims *trims, struct trims_record *record)
{
  const uint32_t entry = map_word_entry (record->word);
  uint64_t removal;

  if (commit_remove (trims->commit, record->cluster, record->word, &removal))
    alloc_free (trims->alloc, entry, removal);
  drop_record (trims, record);
}

/* With the lock held; the cluster's flag is set. */
static void
add_to_record (struct trims *trims, struct trims_record *record,
               struct part part)
{
  add_part (record->parts, part);
  if (may_unmap (record) && is_whole (trims, record))
    unmap (trims, record);
  else if (record->state == RECORD_BUSY)
    return;                     /* it will be seen when that has ended */
  else if (!trims->punches)
    let_rest (trims, record);
  else if (record->state != RECORD_WAITING) {
    record->state = RECORD_WAITING;
    push_ticket (&trims->waiting, record);
  }
}

void
trims_add (struct trims *trims, uint64_t cluster, uint64_t word,
           uint32_t from, uint32_t to)
{
  const struct part part = {
    (from + FORMAT_SECTOR_SIZE - 1) / FORMAT_SECTOR_SIZE * FORMAT_SECTOR_SIZE,
    to / FORMAT_SECTOR_SIZE * FORMAT_SECTOR_SIZE,
  };
  struct trims_record *record;
  bool news;

  if (part.from >= part.to)
    return;
  pthread_mutex_lock (&trims->lock);
  news = g_queue_is_empty (&trims->waiting);
  record = get_record (trims, cluster, word);
  if (record)
    add_to_record (trims, record, part);
  news = news && !g_queue_is_empty (&trims->waiting);
  pthread_mutex_unlock (&trims->lock);
  if (news)
    trims->news (trims->opaque);
}

void
trims_wait_for_room (struct trims *trims)
{
  if (G_LIKELY (atomic_load_explicit (&trims->nr_records, memory_order_relaxed)
                < MAX_RECORDS))
    return;
  pthread_mutex_lock (&trims->lock);
  drop_resting (trims);
  while (atomic_load (&trims->nr_records) >= MAX_RECORDS)
    pthread_cond_wait (&trims->changed, &trims->lock);
  pthread_mutex_unlock (&trims->lock);
}

/* ---- Writing ----------------------------------------------------------- */

void
trims_write (struct trims *trims, uint64_t cluster, uint32_t from,
             uint32_t to)
{
  const struct part part = { from, to };
  struct trims_record *record;

  pthread_mutex_lock (&trims->lock);
  while ((record = find_record (trims, cluster))
         && overlaps (record->busy, part))
    pthread_cond_wait (&trims->changed, &trims->lock);
  if (record) {
    remove_part (record->parts, part);
    /* One that settles would be looked at: not any more. */
    if (record->state == RECORD_SETTLING || record->state == RECORD_RESTING
        || (record->state == RECORD_WAITING && record->parts->len == 0))
      drop_record (trims, record);
  }
  pthread_mutex_unlock (&trims->lock);
}

/* ---- Punching ---------------------------------------------------------- */

/* A range of the file: bytes. */
struct run {
  uint64_t from, to;
};

static gint
compare_runs (gconstpointer a, gconstpointer b)
{
  const struct run *left = a, *right = b;

  return left->from < right->from ? -1 : left->from > right->from;
}

/* The blocks of the file system that lie in the record's parts. */
static void
collect_runs (const struct trims *trims, const struct trims_record *record,
              GArray *runs)
{
  const uint64_t block = trims->delta->block_size;
  const uint64_t start = format_entry_offset (&trims->delta->layout,
                                              map_word_entry (record->word));

  for (guint i = 0; i < record->busy->len; i++) {
    const struct part *part = part_at (record->busy, i);
    const struct run run = {
      (start + part->from + block - 1) / block * block,
      (start + part->to) / block * block,
    };

    if (run.from < run.to)
      g_array_append_val (runs, run);
  }
}

/* With the lock held and inside a read-side section: take records that wait. */
static void
begin_batch (struct trims *trims, struct batch *batch, GArray *runs)
{
  while (g_queue_get_length (&batch->tickets) < BATCH) {
    struct trims_ticket *ticket = g_queue_pop_head (&trims->waiting);
    struct trims_record *record;

    if (!ticket)
      return;
    record = find_ticket (trims, ticket, RECORD_WAITING);
    if (!record || !is_good (trims, record)) {
      if (record)
        drop_record (trims, record);
      g_free (ticket);
      continue;
    }
    record->state = RECORD_BUSY;
    g_array_append_vals (record->busy, record->parts->data,
                         record->parts->len);
    collect_runs (trims, record, runs);
    g_queue_push_tail (&batch->tickets, ticket);
  }
}

/* What cannot be punched stays: nobody was promised that it goes. */
static void
punch_runs (struct trims *trims, GArray *runs)
{
  g_array_sort (runs, compare_runs);
  for (guint i = 0; i < runs->len;) {
    struct run run = g_array_index (runs, struct run, i);

    for (i++; i < runs->len
              && g_array_index (runs, struct run, i).from <= run.to; i++)
      run.to = MAX (run.to, g_array_index (runs, struct run, i).to);
    delta_punch (trims->delta, run.to - run.from, run.from);
  }
}

/* With the lock held: those that were trimmed further wait again, of the others
 * the tickets stay.
 */
static void
end_batch (struct trims *trims, struct batch *batch)
{
  for (guint n = g_queue_get_length (&batch->tickets); n > 0; n--) {
    struct trims_ticket *ticket = g_queue_pop_head (&batch->tickets);
    struct trims_record *record = find_ticket (trims, ticket, RECORD_BUSY);
    bool more;

    if (!record) {
      g_free (ticket);
      continue;
    }
    more = record->parts->len != record->busy->len
           || memcmp (record->parts->data, record->busy->data,
                      record->parts->len * sizeof (struct part)) != 0;
    g_array_set_size (record->busy, 0);
    record->state = more ? RECORD_WAITING : RECORD_SETTLING;
    g_queue_push_tail (more ? &trims->waiting : &batch->tickets, ticket);
  }
  pthread_cond_broadcast (&trims->changed);
}

/* In liburcu's thread: the grace period is over. */
static void
settle (struct rcu_head *rcu)
{
  struct batch *batch = caa_container_of (rcu, struct batch, rcu);
  struct trims *trims;
  struct trims_ticket *ticket;

  TAKES_OVER (batch);
  trims = batch->trims;
  pthread_mutex_lock (&trims->lock);
  while ((ticket = g_queue_pop_head (&batch->tickets)))
    g_queue_push_tail (&trims->settled, ticket);
  pthread_mutex_unlock (&trims->lock);
  g_free (batch);
  trims->news (trims->opaque);
  HANDS_OVER (trims);
  /* Release: all of this is over for who sees it. */
  atomic_fetch_sub_explicit (&trims->nr_graces, 1, memory_order_release);
}

static void
punch_batch (struct trims *trims)
{
  struct batch *batch = g_new0 (struct batch, 1);
  g_autoptr (GArray) runs = g_array_new (FALSE, FALSE, sizeof (struct run));

  batch->trims = trims;
  g_queue_init (&batch->tickets);
  rcu_read_lock ();
  pthread_mutex_lock (&trims->lock);
  begin_batch (trims, batch, runs);
  pthread_mutex_unlock (&trims->lock);
  punch_runs (trims, runs);
  rcu_read_unlock ();
  pthread_mutex_lock (&trims->lock);
  end_batch (trims, batch);
  pthread_mutex_unlock (&trims->lock);

  if (g_queue_is_empty (&batch->tickets)) {
    g_free (batch);
    return;
  }
  HANDS_OVER (batch);
  atomic_fetch_add_explicit (&trims->nr_graces, 1, memory_order_relaxed);
  call_rcu (&batch->rcu, settle);
}

/* ---- What has become empty --------------------------------------------- */

static bool
is_hole (const struct trims *trims, const struct trims_record *record)
{
  const uint64_t offset = format_entry_offset (&trims->delta->layout,
                                               map_word_entry (record->word));

  return delta_is_hole (trims->delta, trims->delta->layout.cluster_size,
                        offset);
}

/* With the lock held, so that nobody begins to write to it; whoever did before
 * has ended.  And inside a read-side section.
 */
static void
look_at (struct trims *trims, struct trims_record *record)
{
  if (!is_good (trims, record) || !may_unmap (record))
    drop_record (trims, record);
  else if (is_hole (trims, record))
    unmap (trims, record);
  else
    let_rest (trims, record);
}

static void
unmap_empty (struct trims *trims)
{
  struct trims_ticket *ticket;

  rcu_read_lock ();
  pthread_mutex_lock (&trims->lock);
  while ((ticket = g_queue_pop_head (&trims->settled))) {
    struct trims_record *record =
      find_ticket (trims, ticket, RECORD_SETTLING);

    if (record)
      look_at (trims, record);
    g_free (ticket);
  }
  pthread_mutex_unlock (&trims->lock);
  rcu_read_unlock ();
}

/* ---- In the background ------------------------------------------------- */

static bool
has_waiting (struct trims *trims)
{
  bool has;

  pthread_mutex_lock (&trims->lock);
  has = !g_queue_is_empty (&trims->waiting);
  pthread_mutex_unlock (&trims->lock);
  return has;
}

bool
trims_work (struct trims *trims)
{
  unmap_empty (trims);
  if (!has_waiting (trims))
    return false;
  punch_batch (trims);
  /* A change like others: what is durable is no longer what is in the file. */
  changes_note (trims->commit->changes);
  return has_waiting (trims);
}

void
trims_finish (struct trims *trims)
{
  while (trims_work (trims))
    continue;
  wait_for_callbacks (trims);
  unmap_empty (trims);
}
