/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Durability: see commit.h.
 *
 * Three things are hard.
 *
 * A cluster that two requests write while it is new.  The first publishes the
 * map word, with the new bit; from then on the other finds the cluster mapped
 * and writes to it.  Neither may be answered before the entry is where killing
 * the process does not lose it.  So whoever has written to a word with the bit
 * calls commit_write_entry: the first one to get the page's lock writes the
 * entry and clears the bit, the other finds it cleared.  When the first write
 * fails, its owner takes the cluster back, under the same lock: only as long as
 * the bit says that nobody's write was answered.  Another, whose write to it is
 * still under way, finds out in commit_write_entry and starts again.
 *
 * Writing an entry takes the file's lock in the kernel, which has to wait for
 * direct writes that are under way.  So threads first say in the map word that
 * they are ready; whoever gets the page's lock writes the entries of all that
 * are, and the others find that done.
 *
 * What a commit covers.  It reads the number of the last change before it looks
 * for anything to write.  A page is put down as dirty before its change is
 * noted, and the dirty bit is cleared after the page was written; both under
 * the page's lock.  So a change that is noted by then is found dirty or was
 * written before the sync, and the number is durable after it.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "commit.h"
#include "sparse.h"

#define PAGE_SIZE_BYTES 4096u

/* Neighbouring pages that go into one write.  Not more than there are locks. */
#define MAX_RUN 32u

/* A page that is changed again and again waits for that many delays. */
#define MAX_DELAYS 8u

#define WORD_BITS 64u

/* When a page was put down, and when last; ms. */
struct commit_delay {
  uint64_t first, last;
};

/* ---- Making and ending ------------------------------------------------- */

static size_t
page_changes_bytes (const struct commit *commit)
{
  return (size_t) commit->nr_pages * sizeof *commit->page_changes;
}

static size_t
page_delays_bytes (const struct commit *commit)
{
  return (size_t) commit->nr_pages * sizeof *commit->page_delays;
}

static size_t
bitmap_words (const struct commit *commit)
{
  return (size_t) (commit->nr_pages / WORD_BITS + 1);
}

static int
allocate (struct commit *commit)
{
  commit->page_changes = sparse_new (page_changes_bytes (commit));
  commit->page_delays = sparse_new (page_delays_bytes (commit));
  if (!commit->page_changes || !commit->page_delays)
    return -errno;
  commit->dirty = g_new0 (_Atomic uint64_t, bitmap_words (commit));
  commit->unstable = g_new0 (_Atomic uint64_t, bitmap_words (commit));
  commit->buffer = g_malloc (MAX_RUN * PAGE_SIZE_BYTES);
  return 0;
}

static void
release (struct commit *commit)
{
  sparse_free ((void *) commit->page_changes, page_changes_bytes (commit));
  sparse_free (commit->page_delays, page_delays_bytes (commit));
  g_free ((void *) commit->dirty);
  g_free ((void *) commit->unstable);
  g_free (commit->buffer);
  g_clear_pointer (&commit->lost, g_array_unref);
}

int
commit_init (struct commit *commit, struct delta *delta, unsigned level,
             struct map *map, struct changes *changes, struct stats *stats,
             const struct log *log, const struct commit_hooks *hooks,
             unsigned write_back_delay, GArray *lost)
{
  int r;

  *commit = (struct commit) {
    .delta = delta,
    .level = level,
    .map = map,
    .changes = changes,
    .stats = stats,
    .log = log,
    .hooks = *hooks,
    .write_back_delay = write_back_delay,
    .lost = lost,
    .mark = FORMAT_IN_USE,
    .header = delta->header,
    .nr_pages = delta->layout.bat_end / PAGE_SIZE_BYTES + 1,
  };
  r = allocate (commit);
  if (r < 0) {
    release (commit);
    commit->nr_pages = 0;
    return r;
  }
  /* A server that was killed may have answered writes that are only in the
   * page cache; its client's flush may come to us.
   */
  if (format_is_dirty (delta->header.in_use))
    changes_note (changes);
  group_init (&commit->group, stats, hooks->need_leader, hooks->opaque);
  pthread_mutex_init (&commit->mark_lock, NULL);
  pthread_mutex_init (&commit->write_lock, NULL);
  for (size_t i = 0; i < COMMIT_NR_PAGE_LOCKS; i++)
    pthread_mutex_init (&commit->page_locks[i], NULL);
  return 0;
}

void
commit_destroy (struct commit *commit)
{
  if (commit->nr_pages == 0)
    return;
  release (commit);
  commit->nr_pages = 0;
  group_destroy (&commit->group);
  pthread_mutex_destroy (&commit->mark_lock);
  pthread_mutex_destroy (&commit->write_lock);
  for (size_t i = 0; i < COMMIT_NR_PAGE_LOCKS; i++)
    pthread_mutex_destroy (&commit->page_locks[i]);
}

static void
call (const struct commit *commit, void (*hook) (void *))
{
  if (hook)
    hook (commit->hooks.opaque);
}

/* ---- Pages ------------------------------------------------------------- */

static uint64_t
page_of (uint64_t cluster)
{
  return format_bat_offset ((uint32_t) cluster) / PAGE_SIZE_BYTES;
}

static pthread_mutex_t *
page_lock (struct commit *commit, uint64_t page)
{
  return &commit->page_locks[page % COMMIT_NR_PAGE_LOCKS];
}

static bool
test_page (const _Atomic uint64_t *bits, uint64_t page)
{
  /* Acquire: pairs with the release in clear_page. */
  return atomic_load_explicit (&bits[page / WORD_BITS], memory_order_acquire)
           >> page % WORD_BITS & 1;
}

/* With the page's lock held, here and below. */
static bool
set_page (_Atomic uint64_t *bits, _Atomic uint64_t *nr, uint64_t page)
{
  if (test_page (bits, page))
    return false;
  atomic_fetch_or_explicit (&bits[page / WORD_BITS],
                            UINT64_C (1) << page % WORD_BITS,
                            memory_order_release);
  atomic_fetch_add_explicit (nr, 1, memory_order_release);
  return true;
}

static void
clear_page (_Atomic uint64_t *bits, _Atomic uint64_t *nr, uint64_t page)
{
  atomic_fetch_and_explicit (&bits[page / WORD_BITS],
                             ~(UINT64_C (1) << page % WORD_BITS),
                             memory_order_release);
  atomic_fetch_sub_explicit (nr, 1, memory_order_release);
}

/* The first page from FROM up to, not including, END whose bit is set; END when
 * there is none.
 */
static uint64_t
next_page (const _Atomic uint64_t *bits, uint64_t from, uint64_t end)
{
  while (from < end) {
    /* Acquire: pairs with the release in clear_page. */
    const uint64_t word =
      atomic_load_explicit (&bits[from / WORD_BITS], memory_order_acquire)
      >> from % WORD_BITS;

    if (word != 0)
      return MIN (from + (uint64_t) __builtin_ctzll (word), end);
    from = (from / WORD_BITS + 1) * WORD_BITS;
  }
  return end;
}

static uint64_t
now_ms (void)
{
  return (uint64_t) g_get_monotonic_time () / 1000;
}

/* The page in the file is behind the map.  Returns true when it was not so
 * before.
 */
static bool
put_down (struct commit *commit, uint64_t page)
{
  const bool first = set_page (commit->dirty, &commit->nr_dirty, page);

  if (commit->write_back_delay > 0) {
    struct commit_delay *delay = &commit->page_delays[page];

    delay->last = now_ms ();
    if (first)
      delay->first = delay->last;
  }
  return first;
}

/* ---- Writing entries --------------------------------------------------- */

/* What belongs into the BAT for a map word. */
static uint32_t
entry_of (const struct commit *commit, uint64_t word)
{
  if (!map_word_is_mapped (word) || map_word_level (word) != commit->level
      || map_word_is_unstable (word)
      || (word & (MAP_NEW | MAP_READY)) == MAP_NEW)
    return 0;
  return map_word_entry (word);
}

/* An entry of the page was written or put down.  Both have to be done before,
 * for commits; and the word is still new or unstable.
 */
static void
note_entry (struct commit *commit, uint64_t page)
{
  const uint64_t change = changes_note (commit->changes);

  /* Made visible by the release in map_clear_flags: who sees that a word is
   * neither sees that its page has changed.
   */
  atomic_store_explicit (&commit->page_changes[page], change,
                         memory_order_relaxed);
}

/* The guest clusters whose entries are in a page. */
static void
clusters_of (const struct commit *commit, uint64_t page, uint64_t *first,
             uint64_t *end)
{
  const uint64_t start = page * PAGE_SIZE_BYTES;
  const uint64_t header = format_bat_offset (0);

  *first = start <= header ? 0 : (start - header) / FORMAT_ENTRY_SIZE;
  *end = MIN ((start + PAGE_SIZE_BYTES - header) / FORMAT_ENTRY_SIZE,
              commit->map->nr_clusters);
}

/* Encode the entries of clusters FIRST up to END. */
static size_t
encode_entries (const struct commit *commit, uint64_t first, uint64_t end,
                uint8_t *to)
{
  const uint8_t *const start = to;

  for (; first < end; first++, to += FORMAT_ENTRY_SIZE) {
    const uint32_t entry =
      GUINT32_TO_LE (entry_of (commit, map_lookup (commit->map, first)));

    memcpy (to, &entry, sizeof entry);
  }
  return (size_t) (to - start);
}

/* Write the entries of clusters FIRST up to END, encoded in BUF by now. */
static int
write_entries (struct commit *commit, uint64_t first, const uint8_t *buf,
               size_t length)
{
  stats_add (commit->stats, STATS_BAT_WRITES, 1);
  stats_add (commit->stats, STATS_BAT_BYTES, length);
  return delta_pwrite (commit->delta, buf, length,
                       format_bat_offset ((uint32_t) first));
}

/* The clusters around CLUSTER, in its page, that are ready: it, and others if
 * there may be any.
 */
static void
ready_clusters (struct commit *commit, uint64_t cluster, bool alone,
                uint64_t *first, uint64_t *end)
{
  *first = cluster;
  *end = cluster + 1;
  if (alone)
    return;
  clusters_of (commit, page_of (cluster), first, end);
  while (*first < cluster && !(map_lookup (commit->map, *first) & MAP_READY))
    ++*first;
  while (*end - 1 > cluster
         && !(map_lookup (commit->map, *end - 1) & MAP_READY))
    --*end;
}

/* Write the entries of CLUSTER and of whatever else is ready in its page. */
static int
write_ready_entries (struct commit *commit, uint64_t cluster, bool alone)
{
  uint8_t buf[PAGE_SIZE_BYTES];
  uint64_t first, end;
  size_t length;
  int r;

  ready_clusters (commit, cluster, alone, &first, &end);
  /* Those that become ready after this are not in it: remember who is. */
  length = encode_entries (commit, first, end, buf);
  r = write_entries (commit, first, buf, length);
  if (r < 0)
    return r;
  note_entry (commit, page_of (cluster));
  for (size_t i = 0; i < length / FORMAT_ENTRY_SIZE; i++)
    if (format_get_le32 (buf + i * FORMAT_ENTRY_SIZE) != 0
        && map_word_is_new (map_lookup (commit->map, first + i)))
      map_clear_flags (commit->map, first + i, MAP_NEW | MAP_READY);
  return 0;
}

/* With the page's lock held; the word is ready. */
static int
write_or_put_down (struct commit *commit, uint64_t cluster, bool alone)
{
  const uint64_t page = page_of (cluster);
  bool first;

  if (commit->write_back_delay == 0)
    return write_ready_entries (commit, cluster, alone);
  first = put_down (commit, page);
  note_entry (commit, page);
  map_clear_flags (commit->map, cluster, MAP_NEW | MAP_READY);
  if (first)
    call (commit, commit->hooks.put_off);
  return 0;
}

enum readiness {
  IS_READY,                     /* the entry has to be written */
  IS_WRITTEN,                   /* it was */
  IS_ELSEWHERE,                 /* the cluster is not where it was */
};

/* Say that the cluster may have its entry, if it is still where WORD says. */
static enum readiness
make_ready (struct commit *commit, uint64_t cluster, uint64_t word)
{
  uint64_t now = map_lookup (commit->map, cluster);

  for (;;) {
    if (!map_word_is_same_place (now, word))
      return IS_ELSEWHERE;
    if (!map_word_is_new (now))
      return IS_WRITTEN;
    if (now & MAP_READY)
      return IS_READY;
    if (map_replace (commit->map, cluster, &now, now | MAP_READY))
      return IS_READY;
  }
}

static int
write_entry (struct commit *commit, uint64_t cluster, uint64_t word)
{
  const uint64_t page = page_of (cluster);
  _Atomic unsigned *nr_writers =
    &commit->nr_writers[page % COMMIT_NR_PAGE_LOCKS];
  enum readiness now;
  int r = 0;

  /* Counted before the lock: whoever has it looks for others. */
  atomic_fetch_add_explicit (nr_writers, 1, memory_order_relaxed);
  pthread_mutex_lock (page_lock (commit, page));
  now = make_ready (commit, cluster, word);
  if (now == IS_ELSEWHERE)
    r = COMMIT_REMAPPED;
  else if (now == IS_READY)
    r = write_or_put_down (commit, cluster,
                           atomic_load_explicit (nr_writers,
                                                 memory_order_relaxed)
                             == 1);
  pthread_mutex_unlock (page_lock (commit, page));
  atomic_fetch_sub_explicit (nr_writers, 1, memory_order_relaxed);
  return r;
}

int
commit_write_entry (struct commit *commit, uint64_t cluster, uint64_t word)
{
  const enum readiness now = make_ready (commit, cluster, word);

  if (now != IS_READY)
    return now == IS_WRITTEN ? 0 : COMMIT_REMAPPED;
  return write_entry (commit, cluster, word);
}

/* Unmap the cluster, whose word is NOW unless it becomes ready meanwhile; with
 * the page's lock held.
 *
 * The change is noted first: who sees that the cluster is unmapped and flushes
 * then waits for the removal of the entry, too.
 */
static bool
unmap (struct commit *commit, uint64_t cluster, uint64_t now,
       uint64_t *removal)
{
  put_down (commit, page_of (cluster));
  *removal = changes_note (commit->changes);
  return map_replace (commit->map, cluster, &now, 0);
}

/* An entry may be on disk although it could not be written: the full way. */
bool
commit_undo (struct commit *commit, uint64_t cluster, uint64_t word,
             uint64_t *removal)
{
  pthread_mutex_t *lock = page_lock (commit, page_of (cluster));
  uint64_t now;
  bool ours = false;

  pthread_mutex_lock (lock);
  /* Others may become ready meanwhile, but not without noticing after. */
  do
    now = map_lookup (commit->map, cluster);
  while (map_word_is_same_place (now, word) && map_word_is_new (now)
         && !(ours = unmap (commit, cluster, now, removal)));
  pthread_mutex_unlock (lock);
  return ours;
}

bool
commit_remove (struct commit *commit, uint64_t cluster, uint64_t word,
               uint64_t *removal)
{
  pthread_mutex_t *lock = page_lock (commit, page_of (cluster));
  uint64_t now;
  bool ours = false;

  pthread_mutex_lock (lock);
  /* Its flag of parts that are trimmed may come and go meanwhile. */
  do
    now = map_lookup (commit->map, cluster);
  while (map_word_is_same_place (now, word) && !map_word_is_new (now)
         && !(ours = unmap (commit, cluster, now, removal)));
  pthread_mutex_unlock (lock);
  return ours;
}

/* The page is noted first: who finds the copy, writes to it and flushes finds
 * that there are unstable entries, too.
 */
bool
commit_publish_copy (struct commit *commit, uint64_t cluster, uint64_t *word,
                     uint64_t by)
{
  const uint64_t page = page_of (cluster);
  bool ours;

  pthread_mutex_lock (page_lock (commit, page));
  set_page (commit->unstable, &commit->nr_unstable, page);
  note_entry (commit, page);
  ours = map_replace (commit->map, cluster, word, by);
  pthread_mutex_unlock (page_lock (commit, page));
  call (commit, commit->hooks.unstable);
  return ours;
}

/* ---- Writing pages ----------------------------------------------------- */

/* With the locks of all these pages held. */
static int
write_pages (struct commit *commit, uint64_t first, uint64_t end)
{
  uint64_t from, to, ignored;
  size_t length;
  int r;

  clusters_of (commit, first, &from, &to);
  clusters_of (commit, end - 1, &ignored, &to);
  length = encode_entries (commit, from, to, commit->buffer);
  r = write_entries (commit, from, commit->buffer, length);
  if (r < 0)
    return r;
  for (uint64_t page = first; page < end; page++)
    clear_page (commit->dirty, &commit->nr_dirty, page);
  return 0;
}

/* With the write lock held, which is why taking several page locks is safe. */
static int
write_run (struct commit *commit, uint64_t first, uint64_t end)
{
  int r;

  for (uint64_t page = first; page < end; page++)
    pthread_mutex_lock (page_lock (commit, page));
  r = write_pages (commit, first, end);
  for (uint64_t page = first; page < end; page++)
    pthread_mutex_unlock (page_lock (commit, page));
  return r;
}

/* Write the dirty pages from FROM up to END. */
static int
write_dirty_pages (struct commit *commit, uint64_t from, uint64_t end)
{
  int r = 0;

  if (atomic_load_explicit (&commit->nr_dirty, memory_order_acquire) == 0)
    return 0;
  pthread_mutex_lock (&commit->write_lock);
  while (r == 0 && (from = next_page (commit->dirty, from, end)) < end) {
    uint64_t stop = from + 1;

    while (stop < end && stop < from + MAX_RUN
           && test_page (commit->dirty, stop))
      stop++;
    r = write_run (commit, from, stop);
    from = stop;
  }
  pthread_mutex_unlock (&commit->write_lock);
  return r;
}

int
commit_write_back (struct commit *commit, uint64_t first, uint64_t last)
{
  return write_dirty_pages (commit, page_of (first), page_of (last) + 1);
}

/* How long PAGE may still wait: ms, 0 if no longer. */
static uint64_t
remaining_delay (struct commit *commit, uint64_t page, uint64_t now)
{
  const uint64_t delay = commit->write_back_delay;
  struct commit_delay times;
  uint64_t due;

  pthread_mutex_lock (page_lock (commit, page));
  times = commit->page_delays[page];
  pthread_mutex_unlock (page_lock (commit, page));
  due = MIN (times.last + delay, times.first + MAX_DELAYS * delay);
  return due > now ? due - now : 0;
}

/* The end of the dirty pages from PAGE on that need not wait any more.  *NEXT is
 * the shortest delay that is left.
 */
static uint64_t
end_of_due (struct commit *commit, uint64_t page, uint64_t now, uint64_t *next)
{
  for (; page < commit->nr_pages && test_page (commit->dirty, page); page++) {
    const uint64_t remaining = remaining_delay (commit, page, now);

    if (remaining > 0) {
      *next = *next == 0 ? remaining : MIN (*next, remaining);
      break;
    }
  }
  return page;
}

int
commit_write_back_due (struct commit *commit)
{
  const uint64_t now = now_ms ();
  uint64_t next = 0, page = 0;

  while ((page = next_page (commit->dirty, page, commit->nr_pages))
         < commit->nr_pages) {
    const uint64_t end = end_of_due (commit, page, now, &next);
    int r = end == page ? 0 : write_dirty_pages (commit, page, end);

    if (r < 0)
      return r;
    page = MAX (end, page + 1);
  }
  return (int) MIN (next, G_MAXINT);
}

bool
commit_entry_is_durable (const struct commit *commit, uint64_t cluster,
                         uint64_t word)
{
  const uint64_t page = page_of (cluster);

  return !(word & (MAP_NEW | MAP_UNSTABLE)) && !test_page (commit->dirty, page)
         && changes_are_durable (
           commit->changes,
           atomic_load_explicit (&commit->page_changes[page],
                                 memory_order_relaxed));
}

/* ---- Unstable entries -------------------------------------------------- */

/* Let the unstable entries of a page be covered.  Returns false when there are
 * some that cannot be yet: they were not whole when this was called.
 */
static bool
cover_entries (struct commit *commit, uint64_t page)
{
  uint64_t cluster, end;
  bool all = true;

  clusters_of (commit, page, &cluster, &end);
  for (; cluster < end; cluster++) {
    const uint64_t word = map_lookup (commit->map, cluster);

    if (word & MAP_FILLING)
      all = false;
    else if (map_word_is_unstable (word))
      map_set_flags (commit->map, cluster, MAP_COVERED);
  }
  return all;
}

static void
stabilise_entries (struct commit *commit, uint64_t page)
{
  uint64_t cluster, end;

  clusters_of (commit, page, &cluster, &end);
  for (; cluster < end; cluster++)
    if (map_lookup (commit->map, cluster) & MAP_COVERED)
      map_clear_flags (commit->map, cluster, MAP_COVERED | MAP_UNSTABLE);
}

/* The sync that follows makes the entries stable that are unstable now; not
 * those that become so while it runs.  Returns the pages (of uint64_t).
 */
static GArray *
cover_unstable (struct commit *commit)
{
  GArray *pages = g_array_new (FALSE, FALSE, sizeof (uint64_t));

  for (uint64_t page = 0;
       (page = next_page (commit->unstable, page, commit->nr_pages))
         < commit->nr_pages; page++) {
    pthread_mutex_lock (page_lock (commit, page));
    if (cover_entries (commit, page))
      clear_page (commit->unstable, &commit->nr_unstable, page);
    pthread_mutex_unlock (page_lock (commit, page));
    g_array_append_val (pages, page);
  }
  return pages;
}

static void
stabilise (struct commit *commit, const GArray *pages)
{
  for (guint i = 0; i < pages->len; i++) {
    const uint64_t page = g_array_index (pages, uint64_t, i);

    pthread_mutex_lock (page_lock (commit, page));
    put_down (commit, page);
    stabilise_entries (commit, page);
    pthread_mutex_unlock (page_lock (commit, page));
  }
}

/* ---- Committing -------------------------------------------------------- */

bool
commit_has_failed (const struct commit *commit)
{
  return atomic_load_explicit (&commit->failed, memory_order_acquire);
}

static int
sync_delta (struct commit *commit)
{
  int r = delta_sync (commit->delta);

  stats_add (commit->stats, STATS_SYNCS, 1);
  if (r < 0) {
    log_warning (commit->log, "%s: sync failed: %s: what was written since the "
                 "last flush may be lost; flushes fail from now on until the "
                 "image is opened again", commit->delta->path,
                 g_strerror (-r));
    atomic_store_explicit (&commit->failed, true, memory_order_release);
  }
  return r;
}

static int
sync_unstable (struct commit *commit)
{
  g_autoptr (GArray) pages = NULL;
  int r;

  if (atomic_load_explicit (&commit->nr_unstable, memory_order_acquire) == 0)
    return 0;
  pages = cover_unstable (commit);
  r = sync_delta (commit);
  if (r == 0)
    stabilise (commit, pages);
  return r;
}

/* One commit.  *COVERED is the last change that it makes durable.  When a copy
 * cannot be filled in, all else that can be is made durable.
 */
static int
run_commit (struct commit *commit, uint64_t *covered)
{
  int filled = 0, r;

  *covered = changes_now (commit->changes);
  if (commit_has_failed (commit))
    return -EIO;
  if (commit->hooks.fill)
    filled = commit->hooks.fill (commit->hooks.opaque);
  r = sync_unstable (commit);
  if (r == 0)
    r = write_dirty_pages (commit, 0, commit->nr_pages);
  if (r == 0)
    r = sync_delta (commit);
  if (r < 0)
    return r;
  if (filled < 0) {
    changes_set_synced (commit->changes, *covered);
    return filled;
  }
  stats_add (commit->stats, STATS_COMMITS, 1);
  changes_set_durable (commit->changes, *covered);
  return 0;
}

/* Commit for all who wait now.  The group has let the caller lead. */
static int
lead (struct commit *commit)
{
  uint64_t covered;
  int r = run_commit (commit, &covered);

  group_end (&commit->group, covered, r);
  if (changes_are_synced (commit->changes, covered))
    call (commit, commit->hooks.committed);
  return r;
}

/* 0 or a negative errno when a commit up to TARGET needs nobody; else 1. */
static int
look (const struct commit *commit, uint64_t target)
{
  if (commit_has_failed (commit))
    return -EIO;
  return changes_are_durable (commit->changes, target) ? 0 : 1;
}

int
commit_flush (struct commit *commit)
{
  const uint64_t target = changes_now (commit->changes);
  int r = look (commit, target);

  if (r > 0 && group_wait (&commit->group, target, &r))
    return lead (commit);
  return r;
}

bool
commit_join (struct commit *commit, struct group_waiter *waiter, int *result)
{
  const uint64_t target = changes_now (commit->changes);

  *result = look (commit, target);
  if (*result <= 0)
    return true;
  group_join (&commit->group, waiter, target);
  return false;
}

void
commit_lead (struct commit *commit)
{
  if (group_take_lead (&commit->group))
    lead (commit);
}

/* ---- The in-use mark --------------------------------------------------- */

/* Write the header's changing fields: in one sector, so whole or not. */
static int
write_header (const struct delta *delta, const struct format_header *header)
{
  uint8_t bytes[FORMAT_HEADER_SIZE];

  format_encode_header (header, bytes);
  return delta_pwrite (delta, bytes + FORMAT_MUTABLE_OFFSET,
                       FORMAT_MUTABLE_SIZE, FORMAT_MUTABLE_OFFSET);
}

/* Clear the entries of clusters that a killed server never finished, before
 * the file grows and they would name somebody else's.
 */
static int
clear_lost_entries (struct commit *commit)
{
  static const uint8_t zero[FORMAT_ENTRY_SIZE];

  for (guint i = 0; commit->lost && i < commit->lost->len; i++) {
    const uint32_t index = g_array_index (commit->lost, uint32_t, i);
    int r = delta_pwrite (commit->delta, zero, sizeof zero,
                          format_bat_offset (index));

    if (r < 0)
      return r;
  }
  return 0;
}

static bool
has_lost_entries (const struct commit *commit)
{
  return commit->lost && commit->lost->len > 0;
}

/* When no entry is lost any more. */
static int
change_mark (struct commit *commit, struct format_header *header)
{
  int r;

  header->in_use = commit->mark;
  r = write_header (commit->delta, header);
  if (r < 0)
    return r;
  changes_note (commit->changes);
  return commit_flush (commit);
}

/* With the mark lock held. */
static int
mark_locked (struct commit *commit)
{
  struct format_header header = commit->header;
  int r;

  if (commit_has_failed (commit))
    return -EIO;
  /* Entries that are lost are only so with this mark. */
  header.in_use = has_lost_entries (commit) ? FORMAT_IN_USE : commit->mark;
  /* A conversion that is marked on a closed image has ended; together with the
   * in-use mark it would look as if it had been interrupted.
   */
  header.flags &= ~(FORMAT_FLAG_EMPTY | FORMAT_FLAG_CONVERSION);
  /* An extension of an image that was never closed is stale already; it must
   * not be taken for valid when the image is closed now.
   */
  if (!commit->keeps_extension)
    header.extension_sectors = 0;

  r = write_header (commit->delta, &header);
  if (r < 0)
    return r;
  /* Entries are lost only in an image that was found marked, so the mark is on
   * disk before they are cleared.
   */
  r = clear_lost_entries (commit);
  if (r < 0)
    return r;
  changes_note (commit->changes);
  r = commit_flush (commit);
  if (r == 0 && header.in_use != commit->mark)
    r = change_mark (commit, &header);
  if (r < 0)
    return r;
  commit->header = header;
  g_clear_pointer (&commit->lost, g_array_unref);
  log_debug (commit->log, "%s: marked as in use", commit->delta->path);
  return 0;
}

void
commit_keep_extension (struct commit *commit)
{
  commit->keeps_extension = true;
  commit->closed = commit->header.in_use;
}

void
commit_mark_repair (struct commit *commit)
{
  commit->mark = FORMAT_IN_REPAIR;
}

int
commit_mark (struct commit *commit)
{
  bool first = false;
  int r = 0;

  pthread_mutex_lock (&commit->mark_lock);
  if (!atomic_load_explicit (&commit->marked, memory_order_relaxed)) {
    r = mark_locked (commit);
    first = r == 0;
    if (first)
      /* Release: pairs with the acquire in commit_begin. */
      atomic_store_explicit (&commit->marked, true, memory_order_release);
  }
  pthread_mutex_unlock (&commit->mark_lock);
  if (first)
    call (commit, commit->hooks.marked);
  return r;
}

bool
commit_is_marked (const struct commit *commit)
{
  return atomic_load_explicit (&commit->marked, memory_order_acquire);
}

int
commit_unmark (struct commit *commit)
{
  struct format_header header = commit->header;
  int r;

  if (!commit_is_marked (commit))
    return 0;
  header.in_use = commit->closed;
  r = write_header (commit->delta, &header);
  if (r < 0)
    return r;
  changes_note (commit->changes);
  r = commit_flush (commit);
  if (r < 0) {
    /* Nobody knows what is on the disk; what others see says so. */
    if (write_header (commit->delta, &commit->header) < 0)
      log_warning (commit->log, "%s: looks as if it had been closed, but was "
                   "not: what was written since the last flush may be lost",
                   commit->delta->path);
    return r;
  }
  commit->header = header;
  atomic_store_explicit (&commit->marked, false, memory_order_release);
  log_debug (commit->log, "%s: closed", commit->delta->path);
  return 0;
}

int
commit_replace_header (struct commit *commit,
                       const struct format_header *header)
{
  struct format_header marked = *header;
  uint8_t bytes[FORMAT_HEADER_SIZE];
  int r;

  marked.in_use = commit->header.in_use;
  marked.flags = commit->header.flags;
  marked.extension_sectors = commit->header.extension_sectors;
  format_encode_header (&marked, bytes);
  /* In one sector, so whole or not. */
  r = delta_pwrite (commit->delta, bytes, sizeof bytes, 0);
  if (r < 0)
    return r;
  changes_note (commit->changes);
  r = commit_flush (commit);
  if (r == 0)
    commit->header = marked;
  return r;
}
