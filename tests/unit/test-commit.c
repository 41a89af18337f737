/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/commit.c: the in-use mark comes first; an entry is written once however
 * many threads want it, and not before it may be; a flush costs one sync, or
 * none, or two; whoever waits is answered, once, by a commit that covers it; a
 * failed sync is never forgotten.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <string.h>

#include "commit.h"
#include "faults.h"
#include "run.h"

#define CLUSTER 32768u
#define NR_ENTRIES 100000u      /* a BAT of 98 pages */
#define PER_PAGE 1024u
#define NR_THREADS 8

static const struct log silent;

/* ---- The clock --------------------------------------------------------- */

/* The library's; the tests' own deadlines use the real one. */
static _Atomic gint64 fake_ms = 1000000;

gint64 __real_g_get_monotonic_time (void);
gint64 __wrap_g_get_monotonic_time (void);

gint64
__wrap_g_get_monotonic_time (void)
{
  return fake_ms * 1000;
}

/* Is CONDITION true before a generous deadline? */
#define comes_true(condition)                                                 \
  ({                                                                          \
    const gint64 deadline =                                                   \
      __real_g_get_monotonic_time () + 60 * G_USEC_PER_SEC;                   \
    while (!(condition) && __real_g_get_monotonic_time () < deadline)         \
      g_usleep (1000);                                                        \
    (condition);                                                              \
  })

/* ---- What happens to the file ------------------------------------------ */

/* The order of writes and syncs: "WSW". */
static char happened[64];
static _Atomic unsigned nr_happened;
static int (*_Atomic on_sync) (unsigned nr);
static _Atomic unsigned nr_syncs;

static int
watch (const struct fault_event *event)
{
  const char what = event->call == FAULT_PWRITE      ? 'W'
                    : event->call == FAULT_FDATASYNC ? 'S' : 0;
  int (*hook) (unsigned) = on_sync;
  unsigned n;

  if (what == 0)
    return 0;
  n = nr_happened++;
  if (n < sizeof happened - 1)
    happened[n] = what;
  return what == 'S' && hook ? hook (++nr_syncs) : 0;
}

static void
forget_what_happened (void)
{
  memset (happened, 0, sizeof happened);
  nr_happened = nr_syncs = 0;
  fault_hook = watch;
}

/* A sync that waits until it is let go: the first NR_BLOCKED ones. */
static _Atomic unsigned nr_blocked;
static sem_t sync_entered, sync_may_end;
static _Atomic int sync_error;

static int
block_sync (unsigned nr)
{
  if (nr > nr_blocked)
    return 0;
  sem_post (&sync_entered);
  while (sem_wait (&sync_may_end) == -1)
    continue;
  return sync_error;
}

static void
block_syncs (unsigned nr)
{
  forget_what_happened ();
  sem_init (&sync_entered, 0, 0);
  sem_init (&sync_may_end, 0, 0);
  sync_error = 0;
  nr_blocked = nr;
  on_sync = block_sync;
}

static void
wait_for (sem_t *sem)
{
  while (sem_wait (sem) == -1)
    continue;
}

/* ---- The bed ----------------------------------------------------------- */

struct bed {
  char *path;
  struct delta *delta;
  struct map map;
  struct changes changes;
  struct stats *stats;
  struct commit commit;
  _Atomic unsigned nr_marked, nr_need_leader, nr_put_off, nr_unstable;
  _Atomic unsigned nr_committed;
};

static void
on_marked (void *opaque)
{
  ((struct bed *) opaque)->nr_marked++;
}

static void
on_need_leader (void *opaque)
{
  ((struct bed *) opaque)->nr_need_leader++;
}

static void
on_put_off (void *opaque)
{
  ((struct bed *) opaque)->nr_put_off++;
}

static void
on_unstable (void *opaque)
{
  ((struct bed *) opaque)->nr_unstable++;
}

static void
on_committed (void *opaque)
{
  ((struct bed *) opaque)->nr_committed++;
}

static void
set_up_image (struct bed *bed, const struct format_header *header,
              const uint32_t *entries, unsigned delay, GArray *lost)
{
  const struct commit_hooks hooks = {
    on_marked, on_need_leader, on_put_off, on_unstable, on_committed, NULL, bed
  };

  *bed = (struct bed) { .stats = stats_new (false) };
  bed->path = scratch_image ("commit", header, entries,
                             (uint64_t) header->data_sectors
                               * FORMAT_SECTOR_SIZE);
  bed->delta = delta_open (bed->path, DELTA_LOCK_WRITER, NULL);
  ck_assert_ptr_nonnull (bed->delta);
  ck_assert_int_eq (map_init (&bed->map, header->nr_entries), 0);
  for (uint32_t i = 0; entries && i < header->nr_entries; i++)
    if (entries[i] != 0)
      map_fill (&bed->map, i, map_word (0, entries[i], 0));
  ck_assert_int_eq (commit_init (&bed->commit, bed->delta, 0, &bed->map,
                                 &bed->changes, bed->stats, &silent, &hooks,
                                 delay, lost),
                    0);
  fault_reset ();
  on_sync = NULL;
}

/* Guest cluster 17 is in host cluster 40. */
static void
set_up (struct bed *bed, uint32_t in_use, GArray *lost)
{
  struct format_header header = scratch_header (2, 64, 5000);
  uint32_t entries[5000] = { [17] = 40 };

  header.flags = FORMAT_FLAG_EMPTY;
  header.in_use = in_use;
  set_up_image (bed, &header, entries, 0, lost);
}

/* A large BAT, in which all is mapped: cluster C to C + 100. */
static void
set_up_full (struct bed *bed, unsigned delay)
{
  const struct format_header header = scratch_header (2, 64, NR_ENTRIES);

  set_up_image (bed, &header, NULL, delay, NULL);
  for (uint32_t i = 0; i < NR_ENTRIES; i++)
    map_fill (&bed->map, i, map_word (0, i + 100, 0));
}

static void
tear_down (struct bed *bed)
{
  fault_reset ();
  commit_destroy (&bed->commit);
  map_destroy (&bed->map);
  delta_close (bed->delta);
  stats_free (bed->stats);
  g_free (bed->path);
}

static uint32_t
entry_on_disk (struct bed *bed, uint32_t cluster)
{
  return scratch_read_le32 (bed->path, format_bat_offset (cluster));
}

/* The first cluster whose entry is in a page, but for the first. */
static uint32_t
first_of_page (uint32_t page)
{
  return page * PER_PAGE - FORMAT_HEADER_SIZE / FORMAT_ENTRY_SIZE;
}

/* Returns the word. */
static uint64_t
publish (struct bed *bed, uint64_t cluster, uint32_t entry, uint64_t flags)
{
  const uint64_t word = map_word (0, entry, flags);
  uint64_t found;

  ck_assert (map_publish (&bed->map, cluster, word, &found));
  return word;
}

static uint64_t
publish_unstable (struct bed *bed, uint64_t cluster, uint32_t entry)
{
  const uint64_t word = map_word (0, entry, MAP_UNSTABLE);
  uint64_t none = 0;

  map_occupy (&bed->map, cluster);
  ck_assert (commit_publish_copy (&bed->commit, cluster, &none, word));
  return word;
}

static void
write_new (struct bed *bed, uint64_t cluster, uint32_t entry)
{
  const uint64_t word = publish (bed, cluster, entry, MAP_NEW);

  ck_assert_int_eq (commit_write_entry (&bed->commit, cluster, word), 0);
}

static void
discard (struct bed *bed, uint64_t cluster)
{
  uint64_t removal;

  ck_assert (commit_remove (&bed->commit, cluster,
                            map_lookup (&bed->map, cluster), &removal));
  ck_assert_uint_eq (removal, changes_now (&bed->changes));
}

/* ---- The in-use mark --------------------------------------------------- */

START_TEST (mark_is_synced_once_and_cleared_at_the_end)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  ck_assert (!commit_is_marked (&bed.commit));
  ck_assert_int_eq (commit_begin (&bed.commit), 0);
  ck_assert_uint_eq (scratch_read_le32 (bed.path, 44), FORMAT_IN_USE);
  ck_assert_uint_eq (scratch_read_le32 (bed.path, 52), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  ck_assert_int_eq (commit_begin (&bed.commit), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  ck_assert_uint_eq (fault_calls[FAULT_PWRITE], 1);
  ck_assert_uint_eq (bed.nr_marked, 1);
  ck_assert_int_eq (commit_unmark (&bed.commit), 0);
  ck_assert_uint_eq (scratch_read_le32 (bed.path, 44), FORMAT_CLOSED);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 2);
  tear_down (&bed);
}
END_TEST

START_TEST (nothing_goes_on_without_the_mark)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  fault_inject (FAULT_PWRITE, EIO, 0, 1);
  ck_assert_int_eq (commit_begin (&bed.commit), -EIO);
  fault_reset ();
  fault_inject (FAULT_FDATASYNC, EIO, 0, 1);
  ck_assert_int_eq (commit_begin (&bed.commit), -EIO);
  /* And not by trying again: the kernel has forgotten. */
  ck_assert_int_eq (commit_begin (&bed.commit), -EIO);
  ck_assert_uint_eq (bed.nr_marked, 0);
  tear_down (&bed);
}
END_TEST

static void *
begin_only (void *opaque)
{
  struct bed *bed = opaque;

  return commit_begin (&bed->commit) == 0
             && scratch_read_le32 (bed->path, 44) == FORMAT_IN_USE
           ? NULL : "not marked";
}

static void
run_threads (struct bed *bed, void *(*run) (void *))
{
  pthread_t threads[NR_THREADS];

  for (int i = 0; i < NR_THREADS; i++)
    ck_assert_int_eq (pthread_create (&threads[i], NULL, run, bed), 0);
  for (int i = 0; i < NR_THREADS; i++) {
    void *wrong;

    pthread_join (threads[i], &wrong);
    ck_assert_msg (wrong == NULL, "%s", (const char *) wrong);
  }
}

START_TEST (mark_is_waited_for_by_all_and_written_by_one)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  run_threads (&bed, begin_only);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  tear_down (&bed);
}
END_TEST

static GArray *
lost_cluster (uint32_t index)
{
  GArray *lost = g_array_new (FALSE, FALSE, sizeof (uint32_t));

  g_array_append_val (lost, index);
  return lost;
}

/* As the image does: an entry that is lost is not mapped. */
static void
set_up_lost (struct bed *bed)
{
  set_up (bed, FORMAT_IN_USE, lost_cluster (17));
  map_fill (&bed->map, 17, 0);
}

START_TEST (lost_entries_are_cleared_with_the_mark)
{
  struct bed bed;

  set_up_lost (&bed);
  ck_assert_uint_eq (entry_on_disk (&bed, 17), 40);
  ck_assert_int_eq (commit_begin (&bed.commit), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 17), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  tear_down (&bed);
}
END_TEST

START_TEST (lost_entry_that_cannot_be_cleared_stops_the_first_change)
{
  struct bed bed;

  set_up_lost (&bed);
  fault_inject (FAULT_PWRITE, EIO, 1, 1);
  ck_assert_int_eq (commit_begin (&bed.commit), -EIO);
  ck_assert (!commit_is_marked (&bed.commit));
  ck_assert_int_eq (commit_begin (&bed.commit), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 17), 0);
  tear_down (&bed);
}
END_TEST

/* By the second time its cluster may have come to be. */
START_TEST (lost_entries_are_cleared_once)
{
  struct bed bed;

  set_up_lost (&bed);
  ck_assert_int_eq (commit_begin (&bed.commit), 0);
  write_new (&bed, 17, 41);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_int_eq (commit_unmark (&bed.commit), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 17), 41);
  ck_assert_int_eq (commit_begin (&bed.commit), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 17), 41);
  tear_down (&bed);
}
END_TEST

START_TEST (stale_extension_is_not_made_valid)
{
  struct format_header header = scratch_header (2, 64, 100);
  struct bed bed;

  header.in_use = FORMAT_IN_USE;
  header.extension_sectors = 64;
  set_up_image (&bed, &header, NULL, 0, NULL);
  ck_assert_int_eq (commit_begin (&bed.commit), 0);
  ck_assert_int_eq (commit_unmark (&bed.commit), 0);
  ck_assert_uint_eq (scratch_read_le32 (bed.path, 56), 0);
  tear_down (&bed);
}
END_TEST

/* ---- What a flush costs ------------------------------------------------ */

START_TEST (flush_costs_one_sync_or_none)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 0);
  changes_note (&bed.changes);
  changes_note (&bed.changes);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  changes_note (&bed.changes);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 2);
  ck_assert_uint_eq (bed.nr_committed, 2);
  ck_assert (!commit_is_busy (&bed.commit));
  tear_down (&bed);
}
END_TEST

START_TEST (first_flush_of_an_image_that_was_never_closed_syncs)
{
  struct bed bed;

  set_up (&bed, FORMAT_IN_USE, NULL);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  tear_down (&bed);
}
END_TEST

START_TEST (only_unstable_entries_cost_a_sync_before_they_are_written)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  forget_what_happened ();
  write_new (&bed, 1, 50);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_str_eq (happened, "WS");

  forget_what_happened ();
  discard (&bed, 1);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_str_eq (happened, "WS");
  ck_assert_uint_eq (entry_on_disk (&bed, 1), 0);

  forget_what_happened ();
  publish_unstable (&bed, 2, 51);
  ck_assert_uint_eq (bed.nr_unstable, 1);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_str_eq (happened, "SWS");
  ck_assert_uint_eq (entry_on_disk (&bed, 2), 51);
  ck_assert_uint_eq (map_lookup (&bed.map, 2), map_word (0, 51, 0));

  forget_what_happened ();
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_str_eq (happened, "");
  tear_down (&bed);
}
END_TEST

/* ---- Unstable entries -------------------------------------------------- */

static struct bed *syncing;

/* While the sync runs that makes others stable, two more become unstable: one
 * beside them, one in another page; and one that is being made stable moves.
 */
static int
add_unstable (unsigned nr)
{
  uint64_t removal;

  if (nr != 1)
    return 0;
  publish_unstable (syncing, 3, 53);
  publish_unstable (syncing, 3000, 54);
  if (!commit_remove (&syncing->commit, 5, map_lookup (&syncing->map, 5),
                      &removal))
    return EBADE;
  publish_unstable (syncing, 5, 66);
  return 0;
}

START_TEST (entry_that_becomes_unstable_during_a_sync_stays_off_the_disk)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  syncing = &bed;
  publish_unstable (&bed, 2, 51);
  publish_unstable (&bed, 5, 55);
  publish_unstable (&bed, 4000, 52);
  forget_what_happened ();
  on_sync = add_unstable;
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 2), 51);
  ck_assert_uint_eq (entry_on_disk (&bed, 4000), 52);
  ck_assert_uint_eq (entry_on_disk (&bed, 3), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 3000), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 5), 0);
  ck_assert (map_word_is_unstable (map_lookup (&bed.map, 3)));
  ck_assert (!commit_entry_is_durable (&bed.commit, 3,
                                       map_lookup (&bed.map, 3)));
  ck_assert (commit_entry_is_durable (&bed.commit, 4000,
                                      map_lookup (&bed.map, 4000)));

  forget_what_happened ();
  on_sync = NULL;
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_str_eq (happened, "SWWS"); /* distant pages */
  ck_assert_uint_eq (entry_on_disk (&bed, 3), 53);
  ck_assert_uint_eq (entry_on_disk (&bed, 3000), 54);
  ck_assert_uint_eq (entry_on_disk (&bed, 5), 66);
  tear_down (&bed);
}
END_TEST

START_TEST (entry_stays_off_the_disk_when_the_sync_before_it_fails)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  publish_unstable (&bed, 2, 51);
  fault_inject (FAULT_FDATASYNC, EIO, 0, 1);
  ck_assert_int_eq (commit_flush (&bed.commit), -EIO);
  ck_assert_int_eq (commit_flush (&bed.commit), -EIO);
  ck_assert_int_eq (commit_write_back (&bed.commit, 0, 4999), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 2), 0);
  ck_assert (map_word_is_unstable (map_lookup (&bed.map, 2)));
  tear_down (&bed);
}
END_TEST

START_TEST (unstable_cluster_that_is_removed_is_never_written)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  publish_unstable (&bed, 2, 51);
  discard (&bed, 2);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 2), 0);
  ck_assert_uint_eq (map_lookup (&bed.map, 2), 0);
  tear_down (&bed);
}
END_TEST

START_TEST (page_writes_leave_out_what_is_new_or_unstable)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  publish (&bed, 18, 50, MAP_NEW);
  publish_unstable (&bed, 19, 51);
  publish (&bed, 20, 52, MAP_NEW | MAP_UNSTABLE);
  write_new (&bed, 21, 53);
  discard (&bed, 17);
  ck_assert_int_eq (commit_write_back (&bed.commit, 17, 17), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 17), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 18), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 19), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 20), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 21), 53);
  tear_down (&bed);
}
END_TEST

/* ---- Pages ------------------------------------------------------------- */

START_TEST (neighbouring_pages_go_out_in_one_write)
{
  struct bed bed;

  set_up_full (&bed, 0);
  for (uint32_t page = 3; page <= 6; page++)
    discard (&bed, first_of_page (page) + page);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_uint_eq (fault_calls[FAULT_PWRITE], 1);
  for (uint32_t page = 3; page <= 6; page++) {
    ck_assert_uint_eq (entry_on_disk (&bed, first_of_page (page) + page), 0);
    ck_assert_uint_eq (entry_on_disk (&bed, first_of_page (page)),
                       first_of_page (page) + 100);
  }
  /* The pages on either side were clean. */
  ck_assert_uint_eq (entry_on_disk (&bed, first_of_page (3) - 1), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, first_of_page (7)), 0);
  tear_down (&bed);
}
END_TEST

START_TEST (distant_pages_go_out_in_several_writes)
{
  struct bed bed;

  set_up_full (&bed, 0);
  discard (&bed, first_of_page (70));
  discard (&bed, first_of_page (71));
  discard (&bed, first_of_page (5));
  discard (&bed, first_of_page (7));
  forget_what_happened ();
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_str_eq (happened, "WWWS");
  ck_assert_uint_eq (entry_on_disk (&bed, first_of_page (71) + 1),
                     first_of_page (71) + 101);
  ck_assert_uint_eq (entry_on_disk (&bed, first_of_page (6)), 0);
  tear_down (&bed);
}
END_TEST

/* More than one write can have, and more pages than there are locks. */
START_TEST (whole_table_goes_out_in_a_few_writes)
{
  struct bed bed;

  set_up_full (&bed, 0);
  for (uint32_t i = 0; i < NR_ENTRIES; i += 500)
    discard (&bed, i);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_uint_le (fault_calls[FAULT_PWRITE], 4);
  for (uint32_t i = 0; i < NR_ENTRIES; i += 250)
    ck_assert_uint_eq (entry_on_disk (&bed, i), i % 500 ? i + 100 : 0);
  tear_down (&bed);
}
END_TEST

START_TEST (first_and_last_page_leave_their_neighbours_alone)
{
  struct bed bed;
  uint8_t before[FORMAT_HEADER_SIZE], after[FORMAT_HEADER_SIZE];
  char behind[300];

  set_up_full (&bed, 0);
  scratch_read (bed.path, before, sizeof before, 0);
  memset (behind, 'b', sizeof behind);
  scratch_write (bed.path, behind, sizeof behind,
                 format_bat_offset (NR_ENTRIES));
  discard (&bed, 1);
  discard (&bed, NR_ENTRIES - 1);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  scratch_read (bed.path, after, sizeof after, 0);
  ck_assert (memcmp (before, after, sizeof before) == 0);
  scratch_read (bed.path, behind, sizeof behind,
                format_bat_offset (NR_ENTRIES));
  for (size_t i = 0; i < sizeof behind; i++)
    ck_assert_int_eq (behind[i], 'b');
  ck_assert_uint_eq (entry_on_disk (&bed, 0), 100);
  ck_assert_uint_eq (entry_on_disk (&bed, 1), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 2), 102);
  ck_assert_uint_eq (entry_on_disk (&bed, NR_ENTRIES - 2), NR_ENTRIES + 98);
  ck_assert_uint_eq (entry_on_disk (&bed, NR_ENTRIES - 1), 0);
  tear_down (&bed);
}
END_TEST

/* BATs that end at, just before and just behind the end of a page. */
START_TEST (tables_of_all_lengths_are_written_as_a_whole)
{
  const uint32_t nr_entries = 2 * PER_PAGE - 18 + (uint32_t) _i;
  const struct format_header header = scratch_header (2, 64, nr_entries);
  struct bed bed;

  set_up_image (&bed, &header, NULL, 0, NULL);
  for (uint32_t i = 0; i < nr_entries; i++)
    map_fill (&bed.map, i, map_word (0, i + 100, 0));
  for (uint32_t i = 0; i < nr_entries; i += 600)
    discard (&bed, i);
  discard (&bed, nr_entries - 1);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  for (uint32_t i = 0; i < nr_entries; i++)
    ck_assert_uint_eq (entry_on_disk (&bed, i),
                       i % 600 == 0 || i == nr_entries - 1 ? 0 : i + 100);
  tear_down (&bed);
}
END_TEST

START_TEST (write_back_is_of_the_clusters_asked_for)
{
  struct bed bed;

  set_up_full (&bed, 0);
  discard (&bed, first_of_page (3));
  discard (&bed, first_of_page (5));
  ck_assert_int_eq (commit_write_back (&bed.commit, first_of_page (5),
                                       first_of_page (5)),
                    0);
  ck_assert_uint_eq (fault_calls[FAULT_PWRITE], 1);
  ck_assert_uint_eq (entry_on_disk (&bed, first_of_page (5) + 1),
                     first_of_page (5) + 101);
  ck_assert_uint_eq (entry_on_disk (&bed, first_of_page (3) + 1), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 0);
  tear_down (&bed);
}
END_TEST

/* ---- A write-back delay ------------------------------------------------ */

#define DELAY 100u

START_TEST (entry_is_put_off_until_its_delay_is_over)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  bed.commit.write_back_delay = DELAY;
  ck_assert_int_eq (commit_write_back_due (&bed.commit), 0);
  write_new (&bed, 1, 50);
  ck_assert_uint_gt (bed.nr_put_off, 0);
  ck_assert (!map_word_is_new (map_lookup (&bed.map, 1)));
  ck_assert (!commit_entry_is_durable (&bed.commit, 1,
                                       map_lookup (&bed.map, 1)));
  ck_assert_int_eq (commit_write_back_due (&bed.commit), DELAY);
  fake_ms += DELAY - 1;
  ck_assert_int_eq (commit_write_back_due (&bed.commit), 1);
  ck_assert_uint_eq (fault_calls[FAULT_PWRITE], 0);
  fake_ms++;
  ck_assert_int_eq (commit_write_back_due (&bed.commit), 0);
  ck_assert_uint_eq (fault_calls[FAULT_PWRITE], 1);
  ck_assert_uint_eq (entry_on_disk (&bed, 1), 50);
  ck_assert (!commit_entry_is_durable (&bed.commit, 1,
                                       map_lookup (&bed.map, 1)));
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert (commit_entry_is_durable (&bed.commit, 1,
                                      map_lookup (&bed.map, 1)));
  tear_down (&bed);
}
END_TEST

START_TEST (flush_does_not_wait_for_a_delay)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  bed.commit.write_back_delay = DELAY;
  write_new (&bed, 1, 50);
  write_new (&bed, 2, 51);
  forget_what_happened ();
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_str_eq (happened, "WS");
  ck_assert_uint_eq (entry_on_disk (&bed, 1), 50);
  ck_assert_uint_eq (entry_on_disk (&bed, 2), 51);
  ck_assert_int_eq (commit_write_back_due (&bed.commit), 0);
  tear_down (&bed);
}
END_TEST

START_TEST (hot_page_is_put_off_up_to_a_bound)
{
  struct bed bed;
  uint32_t nr = 0;

  set_up (&bed, FORMAT_CLOSED, NULL);
  bed.commit.write_back_delay = DELAY;
  /* One that is changed once, beside it. */
  write_new (&bed, 4000, 200);
  do {
    write_new (&bed, 18 + nr, 50 + nr);
    ck_assert_int_gt (commit_write_back_due (&bed.commit), 0);
    fake_ms += DELAY / 2;
    nr++;
    commit_write_back_due (&bed.commit);
  } while (entry_on_disk (&bed, 18) == 0 && nr < 1000);
  /* Put off more than once, but not for ever. */
  ck_assert_uint_gt (nr, 4);
  ck_assert_uint_le (nr, 16);
  ck_assert_uint_eq (entry_on_disk (&bed, 18 + nr - 1), 50 + nr - 1);
  ck_assert_uint_eq (entry_on_disk (&bed, 4000), 200);
  ck_assert_uint_eq (fault_calls[FAULT_PWRITE], 2);
  tear_down (&bed);
}
END_TEST

START_TEST (failed_write_back_is_done_again)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  bed.commit.write_back_delay = DELAY;
  write_new (&bed, 1, 50);
  fake_ms += DELAY;
  fault_inject (FAULT_PWRITE, EIO, 0, 1);
  ck_assert_int_eq (commit_write_back_due (&bed.commit), -EIO);
  ck_assert (!commit_has_failed (&bed.commit));
  ck_assert_int_eq (commit_write_back_due (&bed.commit), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 1), 50);
  tear_down (&bed);
}
END_TEST

START_TEST (nothing_is_put_off_for_a_cluster_that_has_moved)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  bed.commit.write_back_delay = DELAY;
  ck_assert_int_eq (commit_write_entry (&bed.commit, 17,
                                        map_word (0, 41, MAP_NEW)),
                    COMMIT_REMAPPED);
  ck_assert_int_eq (commit_write_back_due (&bed.commit), 0);
  ck_assert_int_eq (commit_write_entry (&bed.commit, 17,
                                        map_word (0, 40, MAP_NEW)),
                    0);
  ck_assert_int_eq (commit_write_back_due (&bed.commit), 0);
  tear_down (&bed);
}
END_TEST

/* ---- Entries ----------------------------------------------------------- */

START_TEST (entry_is_written_once_and_durable_after_a_flush)
{
  struct bed bed;
  uint64_t word;

  set_up (&bed, FORMAT_CLOSED, NULL);
  word = publish (&bed, 4000, 9, MAP_NEW);
  ck_assert (!commit_entry_is_durable (&bed.commit, 4000, word));
  ck_assert_int_eq (commit_write_entry (&bed.commit, 4000, word), 0);
  ck_assert_int_eq (commit_write_entry (&bed.commit, 4000, word), 0);
  ck_assert_uint_eq (fault_calls[FAULT_PWRITE], 1);
  ck_assert_uint_eq (entry_on_disk (&bed, 4000), 9);
  word = map_lookup (&bed.map, 4000);
  ck_assert (!map_word_is_new (word));
  ck_assert (!commit_entry_is_durable (&bed.commit, 4000, word));
  ck_assert (commit_entry_is_durable (&bed.commit, 17,
                                      map_lookup (&bed.map, 17)));
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert (commit_entry_is_durable (&bed.commit, 4000, word));
  tear_down (&bed);
}
END_TEST

START_TEST (entry_that_failed_is_written_by_the_next_who_needs_it)
{
  struct bed bed;
  uint64_t word;

  set_up (&bed, FORMAT_CLOSED, NULL);
  word = publish (&bed, 3, 5, MAP_NEW);
  fault_inject (FAULT_PWRITE, ENOSPC, 0, 2);
  ck_assert_int_eq (commit_write_entry (&bed.commit, 3, word), -ENOSPC);
  ck_assert (map_word_is_new (map_lookup (&bed.map, 3)));
  ck_assert_int_eq (commit_write_entry (&bed.commit, 3, word), -ENOSPC);
  ck_assert_int_eq (commit_write_entry (&bed.commit, 3, word), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 3), 5);
  tear_down (&bed);
}
END_TEST

START_TEST (write_to_a_cluster_that_has_moved_is_done_again)
{
  struct bed bed;
  uint64_t word, removal;

  set_up (&bed, FORMAT_CLOSED, NULL);
  word = publish (&bed, 3, 5, MAP_NEW);
  ck_assert (commit_undo (&bed.commit, 3, word, &removal));
  ck_assert_int_eq (commit_write_entry (&bed.commit, 3, word),
                    COMMIT_REMAPPED);
  publish (&bed, 3, 6, MAP_NEW);
  ck_assert_int_eq (commit_write_entry (&bed.commit, 3, word),
                    COMMIT_REMAPPED);
  ck_assert_uint_eq (fault_calls[FAULT_PWRITE], 0);
  tear_down (&bed);
}
END_TEST

START_TEST (new_cluster_is_taken_back_unless_a_write_to_it_succeeded)
{
  struct bed bed;
  uint64_t word, removal = 0;

  set_up (&bed, FORMAT_CLOSED, NULL);
  word = publish (&bed, 3, 5, MAP_NEW);
  /* It may have reached the disk all the same. */
  fault_inject (FAULT_PWRITE, EIO, 0, 1);
  ck_assert_int_eq (commit_write_entry (&bed.commit, 3, word), -EIO);
  scratch_write_le32 (bed.path, 5, format_bat_offset (3));
  ck_assert (commit_undo (&bed.commit, 3, word, &removal));
  ck_assert_uint_eq (map_lookup (&bed.map, 3), 0);
  ck_assert (!changes_are_durable (&bed.changes, removal));
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert (changes_are_durable (&bed.changes, removal));
  ck_assert_uint_eq (entry_on_disk (&bed, 3), 0);
  ck_assert (!commit_undo (&bed.commit, 3, word, &removal));

  word = publish (&bed, 3, 6, MAP_NEW);
  ck_assert_int_eq (commit_write_entry (&bed.commit, 3, word), 0);
  ck_assert (!commit_undo (&bed.commit, 3, word, &removal));
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 3), 6);
  tear_down (&bed);
}
END_TEST

/* Two write to the same new cluster: one fails, one succeeds. */
struct duel {
  struct bed *bed;
  uint64_t word;
  pthread_barrier_t start;
  int written;
};

static void *
succeed (void *opaque)
{
  struct duel *duel = opaque;

  pthread_barrier_wait (&duel->start);
  duel->written = commit_write_entry (&duel->bed->commit, 3, duel->word);
  return NULL;
}

START_TEST (either_the_failed_write_or_the_other_has_its_way)
{
  struct bed bed;
  struct duel duel = { .bed = &bed };

  set_up (&bed, FORMAT_CLOSED, NULL);
  pthread_barrier_init (&duel.start, NULL, 2);
  for (uint32_t i = 1; i <= 300; i++) {
    pthread_t thread;
    uint64_t removal;
    bool undone;

    duel.word = publish (&bed, 3, i, MAP_NEW);
    pthread_create (&thread, NULL, succeed, &duel);
    pthread_barrier_wait (&duel.start);
    undone = commit_undo (&bed.commit, 3, duel.word, &removal);
    pthread_join (thread, NULL);
    ck_assert_int_eq (duel.written, undone ? COMMIT_REMAPPED : 0);
    ck_assert_int_eq (commit_write_back (&bed.commit, 3, 3), 0);
    ck_assert_uint_eq (entry_on_disk (&bed, 3), undone ? 0 : i);
    if (!undone)
      discard (&bed, 3);
  }
  pthread_barrier_destroy (&duel.start);
  tear_down (&bed);
}
END_TEST

START_TEST (removal_is_of_the_word_that_was_seen)
{
  struct bed bed;
  uint64_t removal;

  set_up (&bed, FORMAT_CLOSED, NULL);
  ck_assert (!commit_remove (&bed.commit, 17, map_word (0, 41, 0), &removal));
  ck_assert (!commit_remove (&bed.commit, 18, map_word (0, 40, 0), &removal));
  ck_assert (commit_remove (&bed.commit, 17, map_word (0, 40, 0), &removal));
  ck_assert (!commit_remove (&bed.commit, 17, map_word (0, 40, 0), &removal));
  ck_assert_uint_eq (entry_on_disk (&bed, 17), 40);
  ck_assert_uint_eq (fault_calls[FAULT_PWRITE], 0);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 17), 0);
  tear_down (&bed);
}
END_TEST

START_TEST (removal_that_is_written_late_does_not_undo_a_new_entry)
{
  struct bed bed;
  uint64_t word;

  set_up (&bed, FORMAT_CLOSED, NULL);
  discard (&bed, 17);
  write_new (&bed, 17, 50);
  ck_assert_uint_eq (entry_on_disk (&bed, 17), 50);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 17), 50);

  /* The page is written while the new one is not yet to be seen. */
  discard (&bed, 17);
  word = publish (&bed, 17, 60, MAP_NEW);
  ck_assert_int_eq (commit_write_back (&bed.commit, 17, 17), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 17), 0);
  ck_assert_int_eq (commit_write_entry (&bed.commit, 17, word), 0);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 17), 60);
  tear_down (&bed);
}
END_TEST

START_TEST (entry_in_a_page_that_is_behind_is_not_durable)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  publish_unstable (&bed, 18, 50);
  ck_assert (!commit_entry_is_durable (&bed.commit, 18,
                                       map_lookup (&bed.map, 18)));
  /* Synced, but not written: the first sync has ended, the write fails. */
  fault_inject (FAULT_PWRITE, EIO, 0, 1);
  ck_assert_int_eq (commit_flush (&bed.commit), -EIO);
  ck_assert (!map_word_is_unstable (map_lookup (&bed.map, 18)));
  ck_assert (!commit_entry_is_durable (&bed.commit, 18,
                                       map_lookup (&bed.map, 18)));
  ck_assert_int_eq (commit_write_back (&bed.commit, 18, 18), 0);
  ck_assert (!commit_entry_is_durable (&bed.commit, 18,
                                       map_lookup (&bed.map, 18)));
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert (commit_entry_is_durable (&bed.commit, 18,
                                      map_lookup (&bed.map, 18)));
  tear_down (&bed);
}
END_TEST

/* ---- Errors ------------------------------------------------------------ */

START_TEST (failed_sync_is_never_forgotten)
{
  struct bed bed;
  struct group_waiter waiter = { 0 };
  int result = 0;

  set_up (&bed, FORMAT_CLOSED, NULL);
  changes_note (&bed.changes);
  fault_inject (FAULT_FDATASYNC, EIO, 0, 1);
  ck_assert_int_eq (commit_flush (&bed.commit), -EIO);
  for (int i = 0; i < 3; i++) {
    ck_assert_int_eq (commit_flush (&bed.commit), -EIO);
    ck_assert (commit_join (&bed.commit, &waiter, &result));
    ck_assert_int_eq (result, -EIO);
    changes_note (&bed.changes);
  }
  ck_assert (commit_has_failed (&bed.commit));
  ck_assert_uint_eq (bed.nr_committed, 0);
  tear_down (&bed);
}
END_TEST

START_TEST (entries_that_cannot_be_written_stay_for_the_next_flush)
{
  struct bed bed;

  set_up_full (&bed, 0);
  discard (&bed, first_of_page (3));
  discard (&bed, first_of_page (5));
  discard (&bed, first_of_page (7));
  fault_inject (FAULT_PWRITE, ENOSPC, 1, 1);
  ck_assert_int_eq (commit_flush (&bed.commit), -ENOSPC);
  ck_assert (!commit_has_failed (&bed.commit));
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 0);
  ck_assert (!changes_are_durable (&bed.changes, 1));
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  for (uint32_t page = 3; page <= 7; page += 2)
    ck_assert_uint_eq (entry_on_disk (&bed, first_of_page (page) + 1),
                       first_of_page (page) + 101);
  ck_assert (changes_are_durable (&bed.changes, 3));
  tear_down (&bed);
}
END_TEST

/* ---- The group --------------------------------------------------------- */

/* A thread that flushes. */
struct flush {
  struct bed *bed;
  pthread_t thread;
  _Atomic bool is_over;
  int result;
};

static void *
flush (void *opaque)
{
  struct flush *f = opaque;

  f->result = commit_flush (&f->bed->commit);
  f->is_over = true;
  return NULL;
}

static void
start_flush (struct flush *f, struct bed *bed)
{
  *f = (struct flush) { .bed = bed };
  ck_assert_int_eq (pthread_create (&f->thread, NULL, flush, f), 0);
}

static void
end_flushes (struct flush *flushes, unsigned nr, int result)
{
  for (unsigned i = 0; i < nr; i++) {
    pthread_join (flushes[i].thread, NULL);
    ck_assert_int_eq (flushes[i].result, result);
  }
}

static unsigned
nr_waiting (struct bed *bed)
{
  unsigned nr = 0;

  pthread_mutex_lock (&bed->commit.group.lock);
  for (struct group_waiter *w = bed->commit.group.waiters; w; w = w->next)
    nr++;
  pthread_mutex_unlock (&bed->commit.group.lock);
  return nr;
}

/* A request that waits without a thread. */
struct answer {
  struct group_waiter waiter;
  _Atomic unsigned nr;
  _Atomic int result;
};

static void
on_answer (struct group_waiter *waiter, int result)
{
  struct answer *answer = (struct answer *) waiter;

  answer->result = result;
  answer->nr++;
}

static void
join (struct bed *bed, struct answer *answer)
{
  int result;

  *answer = (struct answer) { .waiter.done = on_answer };
  ck_assert (!commit_join (&bed->commit, &answer->waiter, &result));
}

#define NR_EARLY 4
#define NR_LATE 6

START_TEST (those_who_come_during_a_sync_share_the_next_one)
{
  struct bed bed;
  struct flush first, early[NR_EARLY], late[NR_LATE];
  struct answer early_answer, late_answer;

  set_up (&bed, FORMAT_CLOSED, NULL);
  block_syncs (2);
  changes_note (&bed.changes);
  start_flush (&first, &bed);
  wait_for (&sync_entered);

  /* What they wait for was noted before the commit began. */
  for (int i = 0; i < NR_EARLY; i++)
    start_flush (&early[i], &bed);
  join (&bed, &early_answer);
  ck_assert (comes_true (nr_waiting (&bed) == NR_EARLY + 1));
  for (int i = 0; i < NR_LATE; i++) {
    changes_note (&bed.changes);
    start_flush (&late[i], &bed);
  }
  join (&bed, &late_answer);
  ck_assert (comes_true (nr_waiting (&bed) == NR_EARLY + NR_LATE + 2));
  ck_assert (commit_is_busy (&bed.commit));

  sem_post (&sync_may_end);
  wait_for (&sync_entered);
  end_flushes (&first, 1, 0);
  end_flushes (early, NR_EARLY, 0);
  ck_assert (comes_true (early_answer.nr == 1));
  for (int i = 0; i < NR_LATE; i++)
    ck_assert (!late[i].is_over);
  ck_assert_uint_eq (late_answer.nr, 0);

  sem_post (&sync_may_end);
  end_flushes (late, NR_LATE, 0);
  ck_assert (comes_true (late_answer.nr == 1));
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 2);
  ck_assert (!commit_is_busy (&bed.commit));
  ck_assert_uint_eq (nr_waiting (&bed), 0);
  ck_assert_uint_eq (bed.nr_need_leader, 0);
  tear_down (&bed);
}
END_TEST

START_TEST (failed_sync_is_told_to_all_who_wait)
{
  struct bed bed;
  struct flush first, early[NR_EARLY], late[NR_LATE];
  struct answer early_answer, late_answer;

  set_up (&bed, FORMAT_CLOSED, NULL);
  block_syncs (1);
  changes_note (&bed.changes);
  start_flush (&first, &bed);
  wait_for (&sync_entered);
  for (int i = 0; i < NR_EARLY; i++)
    start_flush (&early[i], &bed);
  join (&bed, &early_answer);
  changes_note (&bed.changes);
  for (int i = 0; i < NR_LATE; i++)
    start_flush (&late[i], &bed);
  join (&bed, &late_answer);
  ck_assert (comes_true (nr_waiting (&bed) == NR_EARLY + NR_LATE + 2));
  sync_error = EIO;
  sem_post (&sync_may_end);
  end_flushes (&first, 1, -EIO);
  end_flushes (early, NR_EARLY, -EIO);
  end_flushes (late, NR_LATE, -EIO);
  ck_assert (comes_true (early_answer.nr == 1 && late_answer.nr == 1));
  ck_assert_int_eq (early_answer.result, -EIO);
  ck_assert_int_eq (late_answer.result, -EIO);
  /* The kernel was asked once. */
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  tear_down (&bed);
}
END_TEST

/* The write waits, as a sync does, and fails. */
static int
block_and_fail_write (const struct fault_event *event)
{
  if (event->call != FAULT_PWRITE || nr_happened++ > 0)
    return 0;
  sem_post (&sync_entered);
  wait_for (&sync_may_end);
  return ENOSPC;
}

START_TEST (failed_write_is_told_to_all_whom_the_commit_covers)
{
  struct bed bed;
  struct flush first, early[NR_EARLY];
  struct answer early_answer, late_answer;

  set_up (&bed, FORMAT_CLOSED, NULL);
  block_syncs (0);
  on_sync = NULL;
  discard (&bed, 17);
  fault_hook = block_and_fail_write;
  start_flush (&first, &bed);
  wait_for (&sync_entered);
  for (int i = 0; i < NR_EARLY; i++)
    start_flush (&early[i], &bed);
  join (&bed, &early_answer);
  changes_note (&bed.changes);
  join (&bed, &late_answer);
  ck_assert (comes_true (nr_waiting (&bed) == NR_EARLY + 2));
  sem_post (&sync_may_end);
  end_flushes (&first, 1, -ENOSPC);
  ck_assert (comes_true (early_answer.nr == 1));
  ck_assert_int_eq (early_answer.result, -ENOSPC);
  /* One of those who sleep leads the next if the first did not cover it. */
  for (int i = 0; i < NR_EARLY; i++)
    pthread_join (early[i].thread, NULL);
  if (late_answer.nr == 0)
    commit_lead (&bed.commit);
  ck_assert_uint_eq (late_answer.nr, 1);
  ck_assert_int_eq (late_answer.result, 0);
  ck_assert_uint_eq (entry_on_disk (&bed, 17), 0);
  ck_assert (!commit_has_failed (&bed.commit));
  tear_down (&bed);
}
END_TEST

START_TEST (waiter_without_a_thread_is_answered_by_whoever_leads)
{
  struct bed bed;
  struct answer answers[3];
  struct group_waiter waiter = { .done = on_answer };
  int result = 1;

  set_up (&bed, FORMAT_CLOSED, NULL);
  ck_assert (commit_join (&bed.commit, &waiter, &result));
  ck_assert_int_eq (result, 0);
  /* Nobody waits: nothing to do. */
  changes_note (&bed.changes);
  commit_lead (&bed.commit);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 0);

  for (int i = 0; i < 3; i++)
    join (&bed, &answers[i]);
  ck_assert_uint_eq (answers[0].nr, 0);
  commit_lead (&bed.commit);
  for (int i = 0; i < 3; i++)
    ck_assert_uint_eq (answers[i].nr, 1);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  commit_lead (&bed.commit);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);

  /* By a thread that flushes. */
  changes_note (&bed.changes);
  join (&bed, &answers[0]);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_uint_eq (answers[0].nr, 1);
  ck_assert_int_eq (answers[0].result, 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 2);
  tear_down (&bed);
}
END_TEST

START_TEST (leader_is_asked_for_when_only_waiters_without_threads_are_left)
{
  struct bed bed;
  struct flush first;
  struct answer answer;

  set_up (&bed, FORMAT_CLOSED, NULL);
  block_syncs (1);
  changes_note (&bed.changes);
  start_flush (&first, &bed);
  wait_for (&sync_entered);
  changes_note (&bed.changes);
  join (&bed, &answer);
  /* Somebody leads already. */
  commit_lead (&bed.commit);
  ck_assert_uint_eq (bed.nr_need_leader, 0);
  sem_post (&sync_may_end);
  end_flushes (&first, 1, 0);
  ck_assert_uint_eq (bed.nr_need_leader, 1);
  ck_assert_uint_eq (answer.nr, 0);
  commit_lead (&bed.commit);
  ck_assert_uint_eq (answer.nr, 1);
  ck_assert_int_eq (answer.result, 0);
  tear_down (&bed);
}
END_TEST

/* ---- Many threads ------------------------------------------------------ */

/* Threads note changes and flush: after each flush, the number that was noted
 * before it is durable.
 */
static void *
note_and_flush (void *opaque)
{
  struct bed *bed = opaque;

  for (int i = 0; i < 200; i++) {
    const uint64_t noted = changes_note (&bed->changes);

    if (commit_flush (&bed->commit) != 0
        || !changes_are_durable (&bed->changes, noted))
      return "not flushed";
  }
  return NULL;
}

START_TEST (flushes_of_many_threads_cover_what_came_before)
{
  struct bed bed;

  set_up (&bed, FORMAT_CLOSED, NULL);
  run_threads (&bed, note_and_flush);
  /* Shared, so never more than one each. */
  ck_assert_uint_le (fault_calls[FAULT_FDATASYNC], NR_THREADS * 200);
  tear_down (&bed);
}
END_TEST

/* A thread that leads when it is asked to, as the flusher does. */
static sem_t leader_wanted;
static _Atomic bool leader_may_go;

static void
want_leader (void *opaque)
{
  (void) opaque;
  sem_post (&leader_wanted);
}

static void *
lead_when_asked (void *opaque)
{
  struct bed *bed = opaque;

  for (;;) {
    wait_for (&leader_wanted);
    if (leader_may_go)
      return NULL;
    commit_lead (&bed->commit);
  }
}

/* An answer that knows what it must cover. */
struct promise {
  struct group_waiter waiter;
  struct bed *bed;
  uint64_t noted;
};

static _Atomic unsigned nr_promised, nr_kept;

static void
on_promise (struct group_waiter *waiter, int result)
{
  struct promise *promise = (struct promise *) waiter;

  if (result == 0
      && changes_are_durable (&promise->bed->changes, promise->noted))
    nr_kept++;
  g_free (promise);
}

static void
promise (struct bed *bed)
{
  struct promise *p = g_new0 (struct promise, 1);
  int result;

  p->bed = bed;
  p->waiter.done = on_promise;
  p->noted = changes_now (&bed->changes);
  nr_promised++;
  if (commit_join (&bed->commit, &p->waiter, &result))
    on_promise (&p->waiter, result);
  else
    want_leader (NULL);
}

/* One of this thread's own clusters gets a mapping, or loses it. */
static const char *
change_something (struct bed *bed, uint32_t first, GRand *rand)
{
  const uint64_t cluster = first + (uint32_t) g_rand_int_range (rand, 0, 600);
  const uint64_t word = map_lookup (&bed->map, cluster);
  uint64_t ours, found, removal;

  if (map_word_is_mapped (word)) {
    /* A commit may flag it as covered meanwhile. */
    commit_remove (&bed->commit, cluster, word, &removal);
    return NULL;
  }
  if (g_rand_boolean (rand)) {
    ours = map_word (0, (uint32_t) cluster + 100, MAP_UNSTABLE);
    found = 0;
    map_occupy (&bed->map, cluster);
    commit_publish_copy (&bed->commit, cluster, &found, ours);
    return NULL;
  }
  ours = map_word (0, (uint32_t) cluster + 100, MAP_NEW);
  map_publish (&bed->map, cluster, ours, &found);
  return commit_write_entry (&bed->commit, cluster, ours) == 0
           ? NULL : "entry not written";
}

static _Atomic uint32_t next_thread;

static void *
change_and_commit (void *opaque)
{
  struct bed *bed = opaque;
  /* Neighbours share pages. */
  const uint32_t number = next_thread++;
  GRand *rand = g_rand_new_with_seed (number);
  const char *wrong = NULL;

  for (int i = 0; i < 600 && !wrong; i++) {
    wrong = change_something (bed, number * 600, rand);
    if (wrong)
      break;
    switch (g_rand_int_range (rand, 0, 6)) {
    case 0:
      if (commit_flush (&bed->commit) != 0)
        wrong = "not flushed";
      break;
    case 1:
    case 2:
      promise (bed);
      break;
    case 3:
      if (commit_write_back (&bed->commit, number * 600, number * 600 + 599)
          != 0)
        wrong = "not written back";
      break;
    default:
      break;
    }
  }
  g_rand_free (rand);
  return (void *) wrong;
}

START_TEST (nobody_is_forgotten_and_the_disk_is_as_the_map)
{
  struct bed bed;
  pthread_t leader;

  set_up (&bed, FORMAT_CLOSED, NULL);
  bed.commit.write_back_delay = _i % 2 ? DELAY : 0;
  bed.commit.group.need_leader = want_leader;
  sem_init (&leader_wanted, 0, 0);
  leader_may_go = false;
  nr_promised = nr_kept = next_thread = 0;
  pthread_create (&leader, NULL, lead_when_asked, &bed);
  run_threads (&bed, change_and_commit);
  ck_assert_msg (comes_true (nr_kept == nr_promised),
                 "%u of %u were answered well", nr_kept, nr_promised);
  leader_may_go = true;
  want_leader (NULL);
  pthread_join (leader, NULL);
  ck_assert_uint_eq (nr_waiting (&bed), 0);

  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  for (uint32_t i = 0; i < 5000; i++) {
    const uint64_t word = map_lookup (&bed.map, i);

    ck_assert_uint_eq (word & (MAP_NEW | MAP_UNSTABLE | MAP_COVERED), 0);
    ck_assert_uint_eq (entry_on_disk (&bed, i), map_word_entry (word));
  }
  ck_assert_uint_eq (bed.commit.nr_dirty, 0);
  ck_assert_uint_eq (bed.commit.nr_unstable, 0);
  tear_down (&bed);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, mark_is_synced_once_and_cleared_at_the_end);
  tcase_add_test (tcase, nothing_goes_on_without_the_mark);
  tcase_add_test (tcase, mark_is_waited_for_by_all_and_written_by_one);
  tcase_add_test (tcase, lost_entries_are_cleared_with_the_mark);
  tcase_add_test (tcase,
                  lost_entry_that_cannot_be_cleared_stops_the_first_change);
  tcase_add_test (tcase, lost_entries_are_cleared_once);
  tcase_add_test (tcase, stale_extension_is_not_made_valid);
  tcase_add_test (tcase, flush_costs_one_sync_or_none);
  tcase_add_test (tcase, first_flush_of_an_image_that_was_never_closed_syncs);
  tcase_add_test (tcase,
                  only_unstable_entries_cost_a_sync_before_they_are_written);
  tcase_add_test (tcase,
                  entry_that_becomes_unstable_during_a_sync_stays_off_the_disk);
  tcase_add_test (tcase,
                  entry_stays_off_the_disk_when_the_sync_before_it_fails);
  tcase_add_test (tcase, unstable_cluster_that_is_removed_is_never_written);
  tcase_add_test (tcase, page_writes_leave_out_what_is_new_or_unstable);
  tcase_add_test (tcase, neighbouring_pages_go_out_in_one_write);
  tcase_add_test (tcase, distant_pages_go_out_in_several_writes);
  tcase_add_test (tcase, whole_table_goes_out_in_a_few_writes);
  tcase_add_test (tcase, first_and_last_page_leave_their_neighbours_alone);
  tcase_add_loop_test (tcase, tables_of_all_lengths_are_written_as_a_whole, 0,
                       4);
  tcase_add_test (tcase, write_back_is_of_the_clusters_asked_for);
  tcase_add_test (tcase, entry_is_put_off_until_its_delay_is_over);
  tcase_add_test (tcase, flush_does_not_wait_for_a_delay);
  tcase_add_test (tcase, hot_page_is_put_off_up_to_a_bound);
  tcase_add_test (tcase, failed_write_back_is_done_again);
  tcase_add_test (tcase, nothing_is_put_off_for_a_cluster_that_has_moved);
  tcase_add_test (tcase, entry_is_written_once_and_durable_after_a_flush);
  tcase_add_test (tcase,
                  entry_that_failed_is_written_by_the_next_who_needs_it);
  tcase_add_test (tcase, write_to_a_cluster_that_has_moved_is_done_again);
  tcase_add_test (tcase,
                  new_cluster_is_taken_back_unless_a_write_to_it_succeeded);
  tcase_add_test (tcase, either_the_failed_write_or_the_other_has_its_way);
  tcase_add_test (tcase, removal_is_of_the_word_that_was_seen);
  tcase_add_test (tcase,
                  removal_that_is_written_late_does_not_undo_a_new_entry);
  tcase_add_test (tcase, entry_in_a_page_that_is_behind_is_not_durable);
  tcase_add_test (tcase, failed_sync_is_never_forgotten);
  tcase_add_test (tcase, entries_that_cannot_be_written_stay_for_the_next_flush);
  tcase_add_test (tcase, those_who_come_during_a_sync_share_the_next_one);
  tcase_add_test (tcase, failed_sync_is_told_to_all_who_wait);
  tcase_add_test (tcase, failed_write_is_told_to_all_whom_the_commit_covers);
  tcase_add_test (tcase, waiter_without_a_thread_is_answered_by_whoever_leads);
  tcase_add_test (tcase,
                  leader_is_asked_for_when_only_waiters_without_threads_are_left);
  tcase_add_test (tcase, flushes_of_many_threads_cover_what_came_before);
  /* Races are won and lost differently each time. */
  tcase_add_loop_test (tcase, nobody_is_forgotten_and_the_disk_is_as_the_map, 0,
                       6);
}

int
main (void)
{
  return run_tests ("commit", add_tests);
}
