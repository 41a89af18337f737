/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Durability: see commit.h.
 *
 * The hard part is a cluster that two requests write while it is new.  The
 * first publishes the map word, with the unwritten bit; from then on the other
 * finds the cluster mapped and writes to it.  Neither may be answered before
 * the entry is in the page cache, or killing the process could lose what was
 * answered.  So whoever sees the bit calls commit_write_entry.  The first one
 * to get the page's lock writes the entry and clears the bit; the other waits
 * for the lock and finds it cleared.  When the write fails the bit stays, and
 * with it the duty: no later request is answered on top of an entry that is
 * not there.
 *
 * The page's lock also keeps the number of its last change in order.
 */

#include <config.h>

#include <errno.h>

#include "commit.h"
#include "sparse.h"

#define PAGE_SIZE_BYTES 4096u

/* ---- Making and ending ------------------------------------------------- */

static size_t
page_changes_bytes (const struct commit *commit)
{
  return (size_t) commit->nr_pages * sizeof *commit->page_changes;
}

int
commit_init (struct commit *commit, struct delta *delta, struct map *map,
             const struct log *log, GArray *lost)
{
  *commit = (struct commit) {
    .delta = delta,
    .map = map,
    .log = log,
    .lost = lost,
    .header = delta->header,
    .nr_pages = delta->layout.bat_end / PAGE_SIZE_BYTES + 1,
    /* A server that was killed may have answered writes that are only in the
     * page cache; its client's flush may come to us.
     */
    .nr_changes = format_is_dirty (delta->header.in_use),
  };
  commit->page_changes = sparse_new (page_changes_bytes (commit));
  if (!commit->page_changes) {
    const int errnum = errno;

    g_clear_pointer (&commit->lost, g_array_unref);
    return -errnum;
  }
  pthread_mutex_init (&commit->mark_lock, NULL);
  pthread_mutex_init (&commit->sync_lock, NULL);
  for (size_t i = 0; i < COMMIT_NR_PAGE_LOCKS; i++)
    pthread_mutex_init (&commit->page_locks[i], NULL);
  return 0;
}

void
commit_destroy (struct commit *commit)
{
  if (!commit->page_changes)
    return;
  sparse_free ((void *) commit->page_changes, page_changes_bytes (commit));
  commit->page_changes = NULL;
  g_clear_pointer (&commit->lost, g_array_unref);
  pthread_mutex_destroy (&commit->mark_lock);
  pthread_mutex_destroy (&commit->sync_lock);
  for (size_t i = 0; i < COMMIT_NR_PAGE_LOCKS; i++)
    pthread_mutex_destroy (&commit->page_locks[i]);
}

/* ---- Syncing ----------------------------------------------------------- */

bool
commit_has_failed (const struct commit *commit)
{
  return atomic_load_explicit (&commit->failed, memory_order_acquire);
}

/* Is everything up to change TARGET durable? */
static bool
is_synced (const struct commit *commit, uint64_t target)
{
  /* Acquire: pairs with the release in sync_all. */
  return atomic_load_explicit (&commit->nr_synced, memory_order_acquire)
         >= target;
}

/* With the sync lock held. */
static int
sync_all (struct commit *commit)
{
  /* Acquire: pairs with the release in commit_note_change.  What is noted
   * after this load may or may not be covered by the sync.
   */
  const uint64_t covered =
    atomic_load_explicit (&commit->nr_changes, memory_order_acquire);
  int r = delta_sync (commit->delta);

  if (r < 0) {
    log_warning (commit->log, "%s: sync failed: %s: what was written since the "
                 "last flush may be lost; flushes fail from now on until the "
                 "image is opened again", commit->delta->path,
                 g_strerror (-r));
    atomic_store_explicit (&commit->failed, true, memory_order_release);
    return r;
  }
  atomic_store_explicit (&commit->nr_synced, covered, memory_order_release);
  return 0;
}

int
commit_flush (struct commit *commit)
{
  const uint64_t target =
    atomic_load_explicit (&commit->nr_changes, memory_order_acquire);
  int r = 0;

  /* Those who wait for the lock are covered by the next one's sync, which
   * begins after they had arrived.
   */
  if (!commit_has_failed (commit) && !is_synced (commit, target)) {
    pthread_mutex_lock (&commit->sync_lock);
    if (!commit_has_failed (commit) && !is_synced (commit, target))
      r = sync_all (commit);
    pthread_mutex_unlock (&commit->sync_lock);
  }
  return r == 0 && commit_has_failed (commit) ? -EIO : r;
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

/* With the mark lock held. */
static int
mark_locked (struct commit *commit)
{
  struct format_header header = commit->header;
  int r;

  if (commit_has_failed (commit))
    return -EIO;
  header.in_use = FORMAT_IN_USE;
  /* A conversion that is marked on a closed image has ended; together with the
   * in-use mark it would look as if it had been interrupted.
   */
  header.flags &= ~(FORMAT_FLAG_EMPTY | FORMAT_FLAG_CONVERSION);
  /* An extension of an image that was never closed is stale already; it must
   * not be taken for valid when the image is closed now.
   */
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
  commit_note_change (commit);
  r = commit_flush (commit);
  if (r < 0)
    return r;
  commit->header = header;
  log_debug (commit->log, "%s: marked as in use", commit->delta->path);
  return 0;
}

int
commit_mark (struct commit *commit)
{
  int r = 0;

  pthread_mutex_lock (&commit->mark_lock);
  if (!atomic_load_explicit (&commit->marked, memory_order_relaxed)) {
    r = mark_locked (commit);
    if (r == 0)
      /* Release: pairs with the acquire in commit_begin. */
      atomic_store_explicit (&commit->marked, true, memory_order_release);
  }
  pthread_mutex_unlock (&commit->mark_lock);
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
  header.in_use = FORMAT_CLOSED;
  r = write_header (commit->delta, &header);
  if (r < 0)
    return r;
  commit_note_change (commit);
  r = commit_flush (commit);
  if (r < 0) {
    /* Nobody knows what is on the disk; what others see says so. */
    write_header (commit->delta, &commit->header);
    return r;
  }
  commit->header = header;
  atomic_store_explicit (&commit->marked, false, memory_order_release);
  log_debug (commit->log, "%s: closed", commit->delta->path);
  return 0;
}

/* ---- BAT entries ------------------------------------------------------- */

static uint64_t
page_of (uint64_t cluster)
{
  return format_bat_offset ((uint32_t) cluster) / PAGE_SIZE_BYTES;
}

/* With the page's lock held. */
static int
write_entry_locked (struct commit *commit, uint64_t cluster)
{
  const uint64_t word = map_lookup (commit->map, cluster);
  const uint32_t entry = GUINT32_TO_LE (map_word_entry (word));
  uint64_t change;
  int r;

  if (!map_word_is_unwritten (word))
    return 0;
  r = delta_pwrite (commit->delta, &entry, sizeof entry,
                    format_bat_offset ((uint32_t) cluster));
  if (r < 0)
    return r;
  change = atomic_fetch_add_explicit (&commit->nr_changes, 1,
                                      memory_order_release)
           + 1;
  /* Made visible by the release in map_set_written: who sees the entry as
   * written sees that its page has changed.
   */
  atomic_store_explicit (&commit->page_changes[page_of (cluster)], change,
                         memory_order_relaxed);
  map_set_written (commit->map, cluster);
  return 0;
}

int
commit_write_entry (struct commit *commit, uint64_t cluster)
{
  pthread_mutex_t *lock =
    &commit->page_locks[page_of (cluster) % COMMIT_NR_PAGE_LOCKS];
  int r;

  pthread_mutex_lock (lock);
  r = write_entry_locked (commit, cluster);
  pthread_mutex_unlock (lock);
  return r;
}

bool
commit_entry_is_durable (const struct commit *commit, uint64_t cluster)
{
  const uint64_t change =
    atomic_load_explicit (&commit->page_changes[page_of (cluster)],
                          memory_order_relaxed);

  return is_synced (commit, change);
}
