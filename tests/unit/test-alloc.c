/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/alloc.c: only clusters that are in the file, synced and zeros are handed
 * out, lowest first; a freed one comes back in three steps, none of them early;
 * the disk may be full; the unused tail goes.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <string.h>
#include <unistd.h>

#include "alloc.h"
#include "faults.h"
#include "rcu.h"
#include "run.h"

#define CLUSTER 32768u

static const struct log silent;

struct bed {
  char *path;
  struct delta *delta;
  struct changes changes;
  struct stats *stats;
  struct alloc alloc;
  _Atomic unsigned nr_low, nr_freed;
};

static void
on_low (void *opaque)
{
  struct bed *bed = opaque;

  bed->nr_low++;
}

static void
on_freed (void *opaque)
{
  struct bed *bed = opaque;

  bed->nr_freed++;
}

/* An image with HEADER whose clusters end at USED bytes, in a file of SIZE
 * bytes, that grows by STEP clusters.
 */
static void
set_up_image (struct bed *bed, const struct format_header *header,
              uint64_t used, uint64_t size, uint64_t step)
{
  const struct alloc_options options = {
    .data_end = used,
    .nr_unmapped = header->nr_entries,
    .prealloc = step * CLUSTER,
    .low = on_low,
    .freed = on_freed,
    .opaque = bed,
  };

  *bed = (struct bed) { .stats = stats_new (false) };
  bed->path = scratch_image ("alloc", header, NULL, size);
  bed->delta = delta_open (bed->path, DELTA_LOCK_WRITER, NULL);
  ck_assert_ptr_nonnull (bed->delta);
  ck_assert_int_eq (alloc_init (&bed->alloc, bed->delta, &bed->changes,
                                bed->stats, &silent, &options),
                    0);
  fault_reset ();
}

/* The first USED clusters of the file are in use: the header's, and those of
 * guest clusters, which do not count among NR_ENTRIES here.
 */
static void
set_up (struct bed *bed, uint32_t nr_entries, uint64_t used, uint64_t size,
        uint64_t step)
{
  const struct format_header header = scratch_header (2, 64, nr_entries);

  set_up_image (bed, &header, used * CLUSTER, size, step);
}

static void
tear_down (struct bed *bed)
{
  fault_reset ();
  alloc_destroy (&bed->alloc);
  delta_close (bed->delta);
  stats_free (bed->stats);
  g_free (bed->path);
}

static uint32_t
take (struct bed *bed)
{
  uint32_t entry;

  ck_assert_int_eq (alloc_take (&bed->alloc, &entry), 0);
  alloc_keep (&bed->alloc);
  return entry;
}

/* Take FIRST up to, not including, END, which are the lowest. */
static void
take_all (struct bed *bed, uint32_t first, uint32_t end)
{
  for (uint32_t i = first; i < end; i++)
    ck_assert_uint_eq (take (bed), i);
}

/* One that take has kept already. */
static void
give_back (struct bed *bed, uint32_t entry)
{
  bed->alloc.nr_held++;
  alloc_give_back (&bed->alloc, entry);
}

/* Returns the number of the removal. */
static uint64_t
release (struct bed *bed, uint32_t entry)
{
  const uint64_t removal = changes_note (&bed->changes);

  alloc_free (&bed->alloc, entry, removal);
  return removal;
}

static void
pretend_to_commit (struct bed *bed)
{
  changes_set_durable (&bed->changes, changes_now (&bed->changes));
}

/* Close the batch, and wait until no request can use its clusters. */
static void
settle (struct bed *bed)
{
  alloc_scrub (&bed->alloc);
  rcu_barrier ();
}

/* All three steps. */
static void
scrub_to_the_end (struct bed *bed)
{
  settle (bed);
  for (int i = 0; i < 2; i++) {
    pretend_to_commit (bed);
    alloc_scrub (&bed->alloc);
  }
  ck_assert_uint_eq (alloc_nr_pending (&bed->alloc), 0);
}

static void
fill_cluster (struct bed *bed, uint32_t entry, int byte)
{
  char content[CLUSTER];

  memset (content, byte, sizeof content);
  scratch_write (bed->path, content, sizeof content,
                 (uint64_t) entry * CLUSTER);
}

static bool
cluster_is (struct bed *bed, uint32_t entry, int byte)
{
  char content[CLUSTER];

  scratch_read (bed->path, content, sizeof content,
                (uint64_t) entry * CLUSTER);
  for (size_t i = 0; i < sizeof content; i++)
    if (content[i] != byte)
      return false;
  return true;
}

static uint64_t
nr_punches (struct bed *bed)
{
  struct ploop_statistics statistics = { 0 };

  stats_collect (bed->stats, &statistics);
  return statistics.nr_punches;
}

/* Is CONDITION true before a generous deadline? */
#define comes_true(condition)                                                 \
  ({                                                                          \
    const gint64 deadline = g_get_monotonic_time () + 60 * G_USEC_PER_SEC;    \
    while (!(condition) && g_get_monotonic_time () < deadline)                \
      g_usleep (1000);                                                        \
    (condition);                                                              \
  })

/* ---- Taking ------------------------------------------------------------ */

START_TEST (lowest_first_and_given_back_ones_again)
{
  struct bed bed;

  set_up (&bed, 1000, 1, CLUSTER, 1000);
  take_all (&bed, 1, 201);
  give_back (&bed, 150);
  give_back (&bed, 7);
  give_back (&bed, 70);
  ck_assert_uint_eq (take (&bed), 7);
  ck_assert_uint_eq (take (&bed), 70);
  ck_assert_uint_eq (take (&bed), 150);
  ck_assert_uint_eq (take (&bed), 201);
  tear_down (&bed);
}
END_TEST

START_TEST (freed_cluster_goes_before_the_end_of_the_file)
{
  struct bed bed;

  /* Clusters 1 to 99 were there at open. */
  set_up (&bed, 1000, 100, 100 * CLUSTER, 50);
  take_all (&bed, 100, 300);
  release (&bed, 290);
  release (&bed, 2);
  release (&bed, 99);
  scrub_to_the_end (&bed);
  ck_assert_uint_eq (take (&bed), 2);
  ck_assert_uint_eq (take (&bed), 99);
  ck_assert_uint_eq (take (&bed), 290);
  ck_assert_uint_eq (take (&bed), 300);
  tear_down (&bed);
}
END_TEST

START_TEST (what_lies_behind_the_last_cluster_is_not_handed_out)
{
  struct bed bed;

  set_up (&bed, 1000, 3, 10 * CLUSTER, 100);
  for (uint32_t i = 3; i < 10; i++)
    fill_cluster (&bed, i, 'g');
  for (uint32_t i = 3; i < 12; i++) {
    ck_assert_uint_eq (take (&bed), i);
    ck_assert (cluster_is (&bed, i, 0));
  }
  tear_down (&bed);
}
END_TEST

/* ---- The file's size --------------------------------------------------- */

START_TEST (nothing_is_handed_out_when_the_size_cannot_be_synced)
{
  struct bed bed;
  uint32_t entry;

  set_up (&bed, 1000, 1, CLUSTER, 100);
  fault_inject (FAULT_FDATASYNC, EIO, 0, 1);
  ck_assert_int_eq (alloc_take (&bed.alloc, &entry), -EIO);
  /* The kernel has reported it and forgotten: so must not we. */
  ck_assert_int_eq (alloc_take (&bed.alloc, &entry), -EIO);
  tear_down (&bed);
}
END_TEST

START_TEST (size_goes_many_steps_ahead_with_one_sync)
{
  struct bed bed;

  set_up (&bed, 1000, 1, CLUSTER, 4);
  bed.alloc.size_ahead = 30 * 4;
  take (&bed);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  ck_assert_uint_gt (scratch_size (bed.path), (1 + 10 * 4) * CLUSTER);
  take_all (&bed, 2, 1 + 10 * 4);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  ck_assert_uint_eq (fault_calls[FAULT_FALLOCATE], 10);
  /* And goes ahead again when it has been used up. */
  take_all (&bed, 1 + 10 * 4, 801);
  ck_assert_uint_ge (fault_calls[FAULT_FDATASYNC], 2);
  ck_assert_uint_le (fault_calls[FAULT_FDATASYNC], 800 / (10 * 4));
  tear_down (&bed);
}
END_TEST

/* What a power cut would leave of the file's size: that of the last sync, or
 * less when it was cut since.
 */
static uint64_t size_now, durable_size;
static GRand *dice;

static int
follow_size (const struct fault_event *event)
{
  if (event->call == FAULT_FTRUNCATE) {
    if (event->offset > size_now && g_rand_int_range (dice, 0, 8) == 0)
      return EFBIG;
    size_now = event->offset;
    durable_size = MIN (durable_size, size_now);
  }
  if (event->call == FAULT_FDATASYNC)
    durable_size = size_now;
  if (event->call == FAULT_FALLOCATE)
    return g_rand_int_range (dice, 0, 3) == 0 ? ENOSPC : 0;
  return 0;
}

START_TEST (every_cluster_that_is_handed_out_lies_in_the_durable_size)
{
  const unsigned seed = (unsigned) _i + 1;
  struct bed bed;

  dice = g_rand_new_with_seed (seed);
  set_up (&bed, 3000, 1, CLUSTER, 1 + seed % 40);
  size_now = durable_size = CLUSTER;
  fault_hook = follow_size;
  for (int i = 0; i < 2000; i++) {
    uint32_t entry;
    int r = alloc_take (&bed.alloc, &entry);

    if (r < 0) {
      ck_assert_int_eq (r, -ENOSPC);
      continue;
    }
    ck_assert_msg ((entry + UINT64_C (1)) * CLUSTER <= durable_size,
                   "seed %u: cluster %u, durable size %" G_GUINT64_FORMAT,
                   seed, entry, durable_size);
    if (g_rand_boolean (dice))
      alloc_keep (&bed.alloc);
    else
      alloc_give_back (&bed.alloc, entry);
    if (g_rand_int_range (dice, 0, 10) == 0)
      alloc_extend (&bed.alloc);
  }
  fault_hook = NULL;
  ck_assert_uint_eq (size_now, scratch_size (bed.path));
  g_rand_free (dice);
  tear_down (&bed);
}
END_TEST

/* Where reservations end, and how long they are. */
static uint64_t reserved_end, shortest_reservation, longest_reservation;

static int
follow_reservations (const struct fault_event *event)
{
  if (event->call != FAULT_FALLOCATE || (event->mode & FALLOC_FL_PUNCH_HOLE))
    return 0;
  reserved_end = MAX (reserved_end, event->offset + event->length);
  shortest_reservation = MIN (shortest_reservation, event->length);
  longest_reservation = MAX (longest_reservation, event->length);
  return 0;
}

static void
watch_reservations (void)
{
  reserved_end = longest_reservation = 0;
  shortest_reservation = UINT64_MAX;
  fault_hook = follow_reservations;
}

START_TEST (no_more_is_reserved_than_the_disk_can_use)
{
  struct bed bed;

  for (uint32_t step = 1; step <= 64; step *= 4) {
    set_up (&bed, 22, 1, CLUSTER, step);
    watch_reservations ();
    for (uint32_t i = 1; i <= 22; i++) {
      ck_assert_uint_eq (take (&bed), i);
      ck_assert_int_ge (alloc_extend (&bed.alloc), 0);
      ck_assert_uint_le (reserved_end, 23 * CLUSTER);
      ck_assert_uint_le (scratch_size (bed.path), 23 * CLUSTER);
    }
    tear_down (&bed);
  }
}
END_TEST

/* All clusters of the disk are freed: they will do for all that it needs. */
START_TEST (clusters_that_come_back_count_among_what_the_disk_can_use)
{
  struct bed bed;

  set_up (&bed, 10, 1, CLUSTER, 4);
  take_all (&bed, 1, 11);
  for (uint32_t i = 1; i <= 10; i++)
    release (&bed, i);
  ck_assert (!alloc_is_low (&bed.alloc));
  ck_assert_int_eq (alloc_extend (&bed.alloc), 0);
  ck_assert_uint_eq (scratch_size (bed.path), 11 * CLUSTER);
  scrub_to_the_end (&bed);
  take_all (&bed, 1, 11);
  ck_assert_uint_eq (scratch_size (bed.path), 11 * CLUSTER);
  tear_down (&bed);
}
END_TEST

START_TEST (reservations_are_as_long_as_was_asked_for)
{
  struct bed bed;

  set_up (&bed, 1000, 1, CLUSTER, 8);
  watch_reservations ();
  take_all (&bed, 1, 201);
  ck_assert_uint_eq (shortest_reservation, 8 * CLUSTER);
  ck_assert_uint_eq (longest_reservation, 8 * CLUSTER);
  ck_assert_uint_eq (reserved_end, 201 * CLUSTER);
  tear_down (&bed);

  /* Less than a cluster is one. */
  set_up (&bed, 1000, 1, CLUSTER, 0);
  watch_reservations ();
  take_all (&bed, 1, 10);
  ck_assert_uint_eq (longest_reservation, CLUSTER);
  tear_down (&bed);
}
END_TEST

START_TEST (without_reserving_no_fallocate_is_called)
{
  struct bed bed;

  set_up (&bed, 1000, 1, CLUSTER, 8);
  delta_reserve_nothing (bed.delta);
  take_all (&bed, 1, 401);
  ck_assert_uint_eq (fault_calls[FAULT_FALLOCATE], 0);
  ck_assert_uint_ge (scratch_size (bed.path), 401 * CLUSTER);
  tear_down (&bed);
}
END_TEST

/* ---- A full disk ------------------------------------------------------- */

START_TEST (full_disk_gives_what_there_is)
{
  struct bed bed;

  set_up (&bed, 1000, 1, CLUSTER, 1000);
  watch_reservations ();
  /* 1000 clusters do not fit, nor 500, nor 250. */
  fault_inject (FAULT_FALLOCATE, ENOSPC, 0, 3);
  ck_assert_uint_eq (take (&bed), 1);
  ck_assert_uint_eq (shortest_reservation, 125 * CLUSTER);
  ck_assert_int_eq (bed.alloc.nr_fresh, 124);
  take_all (&bed, 2, 1001);
  tear_down (&bed);
}
END_TEST

START_TEST (full_disk_leaves_nothing_behind_and_recovers)
{
  struct bed bed;
  uint32_t entry;

  set_up (&bed, 1000, 1, CLUSTER, 5);
  fault_inject (FAULT_FALLOCATE, ENOSPC, 0, 10);
  ck_assert_int_eq (alloc_take (&bed.alloc, &entry), -ENOSPC);
  ck_assert_uint_eq (scratch_size (bed.path), CLUSTER);
  fault_reset ();
  take_all (&bed, 1, 6);
  /* Whatever was reserved on the way goes with the size. */
  fault_inject (FAULT_FALLOCATE, EDQUOT, 0, 100);
  for (int i = 0; i < 3; i++)
    ck_assert_int_eq (alloc_take (&bed.alloc, &entry), -ENOSPC);
  ck_assert_uint_eq (scratch_size (bed.path), 6 * CLUSTER);
  /* What is given back does without the disk. */
  give_back (&bed, 3);
  ck_assert_uint_eq (take (&bed), 3);
  ck_assert_int_eq (alloc_take (&bed.alloc, &entry), -ENOSPC);
  release (&bed, 4);
  fault_reset ();
  scrub_to_the_end (&bed);
  fault_inject (FAULT_FALLOCATE, EDQUOT, 0, 100);
  ck_assert_uint_eq (take (&bed), 4);
  fault_reset ();
  take_all (&bed, 6, 1001 - 2);
  ck_assert_uint_eq (bed.alloc.nr_held, 0);
  tear_down (&bed);
}
END_TEST

START_TEST (limit_of_the_files_size_is_a_full_disk)
{
  struct bed bed;
  uint32_t entry;

  set_up (&bed, 1000, 1, CLUSTER, 4);
  fault_inject (FAULT_FTRUNCATE, EFBIG, 0, 1);
  take_all (&bed, 1, 5);
  fault_inject (FAULT_FTRUNCATE, EFBIG, 0, 100);
  ck_assert_int_eq (alloc_take (&bed.alloc, &entry), -ENOSPC);
  fault_reset ();
  ck_assert_uint_eq (take (&bed), 5);
  tear_down (&bed);
}
END_TEST

START_TEST (failed_extension_ahead_waits_until_somebody_needs_it)
{
  struct bed bed;

  set_up (&bed, 1000, 1, CLUSTER, 8);
  take_all (&bed, 1, 6);
  ck_assert (alloc_is_low (&bed.alloc));
  fault_inject (FAULT_FALLOCATE, ENOSPC, 0, 100);
  ck_assert_int_eq (alloc_extend (&bed.alloc), -ENOSPC);
  ck_assert (!alloc_is_low (&bed.alloc));
  fault_reset ();
  take_all (&bed, 6, 9);
  ck_assert_uint_eq (fault_calls[FAULT_FALLOCATE], 0);
  take_all (&bed, 9, 14);
  ck_assert (alloc_is_low (&bed.alloc));
  tear_down (&bed);
}
END_TEST

/* A file that ends inside its last cluster: a write there at the same time
 * makes it longer, and must survive whatever happens to the extension.
 */
START_TEST (failed_extension_cuts_nothing_off_the_last_cluster)
{
  struct bed bed;
  uint32_t entry;
  char buf[4];

  set_up (&bed, 1000, 3, 2 * CLUSTER + 100, 1000);
  scratch_write (bed.path, "data", 4, 3 * CLUSTER - 4);
  fault_inject (FAULT_FALLOCATE, ENOSPC, 0, 100);
  ck_assert_int_eq (alloc_take (&bed.alloc, &entry), -ENOSPC);
  ck_assert_int_eq (alloc_finish (&bed.alloc, false), 0);
  scratch_read (bed.path, buf, 4, 3 * CLUSTER - 4);
  ck_assert (memcmp (buf, "data", 4) == 0);
  tear_down (&bed);
}
END_TEST

/* Another thread that takes a cluster. */
struct taker {
  struct bed *bed;
  pthread_t thread;
  uint32_t entry;
  int result;
};

static void *
take_one (void *opaque)
{
  struct taker *taker = opaque;

  taker->result = alloc_take (&taker->bed->alloc, &taker->entry);
  if (taker->result == 0)
    alloc_keep (&taker->bed->alloc);
  return NULL;
}

static int
always_full (const struct fault_event *event)
{
  return event->call == FAULT_FALLOCATE ? ENOSPC : 0;
}

/* The disk is full, and we hold the last cluster: GIVE it back, or keep it. */
static struct taker
take_while_the_last_is_held (bool give)
{
  struct bed bed;
  struct taker taker = { .bed = &bed };
  uint32_t entry;
  unsigned calls;

  set_up (&bed, 1000, 1, CLUSTER, 1);
  ck_assert_int_eq (alloc_take (&bed.alloc, &entry), 0);
  ck_assert_uint_eq (entry, 1);
  fault_hook = always_full;
  calls = fault_calls[FAULT_FALLOCATE];
  pthread_create (&taker.thread, NULL, take_one, &taker);
  ck_assert (comes_true (fault_calls[FAULT_FALLOCATE] > calls + 1));
  if (give)
    alloc_give_back (&bed.alloc, entry);
  else
    alloc_keep (&bed.alloc);
  pthread_join (taker.thread, NULL);
  tear_down (&bed);
  return taker;
}

START_TEST (cluster_in_somebodys_hand_is_waited_for)
{
  struct taker taker = take_while_the_last_is_held (true);

  ck_assert_int_eq (taker.result, 0);
  ck_assert_uint_eq (taker.entry, 1);
  taker = take_while_the_last_is_held (false);
  ck_assert_int_eq (taker.result, -ENOSPC);
}
END_TEST

/* ---- Asking for more --------------------------------------------------- */

START_TEST (low_is_called_when_few_are_left)
{
  struct bed bed;
  unsigned nr_low;

  set_up (&bed, 1000, 1, CLUSTER, 8);
  take (&bed);
  ck_assert_int_eq (alloc_extend (&bed.alloc), 0);
  ck_assert (!alloc_is_low (&bed.alloc));
  nr_low = bed.nr_low;
  while (!alloc_is_low (&bed.alloc)) {
    ck_assert_uint_eq (bed.nr_low, nr_low);
    take (&bed);
  }
  ck_assert_uint_eq (bed.nr_low, nr_low + 1);
  /* In time. */
  ck_assert_int_gt (bed.alloc.nr_fresh, 0);
  tear_down (&bed);
}
END_TEST

START_TEST (low_is_not_called_when_the_disk_can_use_no_more)
{
  struct bed bed;

  set_up (&bed, 16, 1, CLUSTER, 16);
  take_all (&bed, 1, 17);
  ck_assert_uint_eq (bed.nr_low, 0);
  ck_assert (!alloc_is_low (&bed.alloc));
  tear_down (&bed);
}
END_TEST

/* ---- Freeing ----------------------------------------------------------- */

/* A request that found a cluster before it was freed. */
struct reader {
  pthread_t thread;
  sem_t inside, leave;
};

static void *
read_inside (void *opaque)
{
  struct reader *reader = opaque;

  rcu_read_lock ();
  sem_post (&reader->inside);
  while (sem_wait (&reader->leave) == -1)
    continue;
  rcu_read_unlock ();
  return NULL;
}

START_TEST (freed_cluster_is_not_touched_while_a_request_may_use_it)
{
  struct bed bed;
  struct reader reader;

  set_up (&bed, 1000, 1, CLUSTER, 8);
  take_all (&bed, 1, 4);
  sem_init (&reader.inside, 0, 0);
  sem_init (&reader.leave, 0, 0);
  pthread_create (&reader.thread, NULL, read_inside, &reader);
  while (sem_wait (&reader.inside) == -1)
    continue;

  fault_reset ();
  release (&bed, 2);
  for (int i = 0; i < 200; i++) {
    alloc_scrub (&bed.alloc);
    pretend_to_commit (&bed);
    g_usleep (500);
  }
  ck_assert_uint_eq (fault_calls[FAULT_FALLOCATE], 0);
  ck_assert_uint_eq (alloc_nr_pending (&bed.alloc), 1);
  ck_assert_uint_eq (take (&bed), 4);

  sem_post (&reader.leave);
  pthread_join (reader.thread, NULL);
  scrub_to_the_end (&bed);
  ck_assert_uint_eq (take (&bed), 2);
  sem_destroy (&reader.inside);
  sem_destroy (&reader.leave);
  tear_down (&bed);
}
END_TEST

START_TEST (freed_cluster_is_not_punched_before_its_removal_is_durable)
{
  struct bed bed;
  uint64_t first, last;

  set_up (&bed, 1000, 1, CLUSTER, 8);
  take_all (&bed, 1, 9);
  fill_cluster (&bed, 2, 'x');
  fill_cluster (&bed, 5, 'x');
  first = release (&bed, 2);
  last = release (&bed, 5);
  settle (&bed);
  fault_reset ();
  alloc_scrub (&bed.alloc);
  alloc_scrub (&bed.alloc);
  ck_assert_uint_eq (fault_calls[FAULT_FALLOCATE], 0);
  changes_set_durable (&bed.changes, first);
  alloc_scrub (&bed.alloc);
  ck_assert (cluster_is (&bed, 5, 'x'));
  changes_set_durable (&bed.changes, last);
  alloc_scrub (&bed.alloc);
  ck_assert (cluster_is (&bed, 2, 0));
  ck_assert (cluster_is (&bed, 5, 0));
  tear_down (&bed);
}
END_TEST

START_TEST (freed_cluster_is_not_reused_before_its_punch_is_durable)
{
  struct bed bed;
  uint64_t removal;

  set_up (&bed, 1000, 1, CLUSTER, 8);
  take_all (&bed, 1, 6);
  removal = release (&bed, 2);
  settle (&bed);
  changes_set_durable (&bed.changes, removal);
  alloc_scrub (&bed.alloc);
  ck_assert_uint_eq (nr_punches (&bed), 1);
  /* The punch is a change of its own. */
  ck_assert_uint_gt (changes_now (&bed.changes), removal);
  alloc_scrub (&bed.alloc);
  ck_assert_uint_eq (alloc_nr_pending (&bed.alloc), 1);
  ck_assert_uint_eq (take (&bed), 6);
  pretend_to_commit (&bed);
  ck_assert_uint_eq (take (&bed), 7);
  alloc_scrub (&bed.alloc);
  ck_assert_uint_eq (alloc_nr_pending (&bed.alloc), 0);
  ck_assert_uint_eq (take (&bed), 2);
  tear_down (&bed);
}
END_TEST

START_TEST (freed_cluster_reads_as_zeros_when_it_is_handed_out_again)
{
  struct bed bed;

  set_up (&bed, 1000, 1, CLUSTER, 8);
  take_all (&bed, 1, 9);
  for (uint32_t i = 1; i < 9; i++)
    fill_cluster (&bed, i, 'x');
  for (uint32_t i = 1; i < 9; i += 2)
    release (&bed, i);
  scrub_to_the_end (&bed);
  for (uint32_t i = 1; i < 9; i += 2) {
    ck_assert_uint_eq (take (&bed), i);
    ck_assert (cluster_is (&bed, i, 0));
    ck_assert (cluster_is (&bed, i + 1, 'x'));
  }
  tear_down (&bed);
}
END_TEST

START_TEST (several_batches_are_on_their_way_at_once)
{
  struct bed bed;

  set_up (&bed, 1000, 1, CLUSTER, 8);
  take_all (&bed, 1, 9);
  release (&bed, 1);
  settle (&bed);
  release (&bed, 2);
  settle (&bed);
  release (&bed, 3);
  ck_assert_uint_eq (alloc_nr_pending (&bed.alloc), 3);
  scrub_to_the_end (&bed);
  take_all (&bed, 1, 4);
  ck_assert_uint_ge (bed.nr_freed, 5);
  tear_down (&bed);
}
END_TEST

static uint64_t host_clusters;  /* of the host's disk; beyond it is full */

static int
small_host (const struct fault_event *event)
{
  const bool reserves = event->call == FAULT_FALLOCATE
                        && !(event->mode & FALLOC_FL_PUNCH_HOLE);

  return reserves && event->offset + event->length > host_clusters * CLUSTER
           ? ENOSPC : 0;
}

START_TEST (freed_cluster_is_not_handed_out_before_its_space_is_reserved)
{
  struct bed bed;
  uint32_t entry;

  set_up (&bed, 1000, 1, CLUSTER, 4);
  take_all (&bed, 1, 5);
  host_clusters = 0;
  fault_hook = small_host;
  release (&bed, 2);
  scrub_to_the_end (&bed);
  ck_assert_int_eq (alloc_take (&bed.alloc, &entry), -ENOSPC);
  fault_reset ();
  ck_assert_uint_eq (take (&bed), 2);
  tear_down (&bed);
}
END_TEST

START_TEST (reserved_cluster_that_nobody_took_is_let_go_at_the_end)
{
  struct bed bed;

  set_up (&bed, 1000, 1, CLUSTER, 8);
  take_all (&bed, 1, 9);
  release (&bed, 2);
  scrub_to_the_end (&bed);
  ck_assert_int_eq (bed.alloc.nr_fresh, 1);
  fault_reset ();
  ck_assert_int_eq (alloc_finish (&bed.alloc, false), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FALLOCATE], 1);
  tear_down (&bed);
}
END_TEST

/* Also where the file did not grow: all of it was in use at open. */
START_TEST (reserved_cluster_of_a_full_file_is_let_go_at_the_end)
{
  struct bed bed;

  set_up (&bed, 1000, 9, 9 * CLUSTER, 8);
  release (&bed, 2);
  scrub_to_the_end (&bed);
  ck_assert_int_eq (bed.alloc.nr_fresh, 1);
  fault_reset ();
  ck_assert_int_eq (alloc_finish (&bed.alloc, false), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FALLOCATE], 1);
  ck_assert_uint_eq (scratch_size (bed.path), 9 * CLUSTER);
  tear_down (&bed);
}
END_TEST

START_TEST (neighbours_are_punched_in_one_call)
{
  struct bed bed;

  set_up (&bed, 1000, 1, CLUSTER, 20);
  take_all (&bed, 1, 21);
  fault_reset ();
  release (&bed, 5);
  release (&bed, 3);
  release (&bed, 4);
  release (&bed, 10);
  release (&bed, 6);
  release (&bed, 12);
  release (&bed, 11);
  scrub_to_the_end (&bed);
  ck_assert_uint_eq (nr_punches (&bed), 2);
  /* And the lowest run is reserved. */
  ck_assert_uint_eq (fault_calls[FAULT_FALLOCATE], 2 + 1);
  take_all (&bed, 3, 7);
  take_all (&bed, 10, 13);
  ck_assert_uint_eq (take (&bed), 21);
  tear_down (&bed);
}
END_TEST

static int
no_fallocate (const struct fault_event *event)
{
  return event->call == FAULT_FALLOCATE ? EOPNOTSUPP : 0;
}

START_TEST (clusters_are_zeroed_where_they_cannot_be_punched)
{
  struct bed bed;

  set_up (&bed, 1000, 1, CLUSTER, 8);
  take_all (&bed, 1, 9);
  for (int i = 0; i < 2; i++) {
    fill_cluster (&bed, 3, 'x');
    fill_cluster (&bed, 4, 'y');
    fault_hook = no_fallocate;
    release (&bed, 3);
    scrub_to_the_end (&bed);
    ck_assert_uint_eq (take (&bed), 3);
    ck_assert (cluster_is (&bed, 3, 0));
    ck_assert (cluster_is (&bed, 4, 'y'));
  }
  tear_down (&bed);
}
END_TEST

START_TEST (cluster_that_cannot_be_cleared_is_never_handed_out_again)
{
  struct bed bed;

  set_up (&bed, 100, 1, CLUSTER, 20);
  take_all (&bed, 1, 21);
  release (&bed, 5);
  release (&bed, 10);
  release (&bed, 15);
  settle (&bed);
  pretend_to_commit (&bed);
  fault_inject (FAULT_FALLOCATE, EIO, 1, 1);
  alloc_scrub (&bed.alloc);
  pretend_to_commit (&bed);
  alloc_scrub (&bed.alloc);
  ck_assert_uint_eq (alloc_nr_pending (&bed.alloc), 0);
  ck_assert_uint_eq (take (&bed), 5);
  ck_assert_uint_eq (take (&bed), 15);
  take_all (&bed, 21, 100);
  tear_down (&bed);
}
END_TEST

/* An old image of another program: clusters begin at any sector. */
START_TEST (clusters_off_the_grid_are_punched_and_never_handed_out)
{
  const struct format_header header = scratch_header (1, 64, 1000);
  const uint32_t sectors = CLUSTER / FORMAT_SECTOR_SIZE;
  const uint32_t stray = 3 * sectors + 10;
  struct bed bed;

  set_up_image (&bed, &header, (stray + 2 * sectors) * 512, 6 * CLUSTER, 8);
  ck_assert_uint_eq (bed.alloc.base, 5);
  release (&bed, stray);
  release (&bed, stray + sectors);
  release (&bed, sectors);      /* on it */
  scrub_to_the_end (&bed);
  ck_assert_uint_eq (nr_punches (&bed), 2);
  ck_assert_uint_eq (take (&bed), sectors);
  for (uint32_t i = 6; i < 100; i++)
    ck_assert_uint_eq (take (&bed), i * sectors);
  tear_down (&bed);
}
END_TEST

/* ---- At the end -------------------------------------------------------- */

START_TEST (unused_tail_is_cut_off)
{
  struct bed bed;

  set_up (&bed, 1000, 3, 3 * CLUSTER, 100);
  ck_assert_int_eq (alloc_finish (&bed.alloc, false), 0);
  ck_assert_uint_eq (scratch_size (bed.path), 3 * CLUSTER);
  take_all (&bed, 3, 6);
  give_back (&bed, 4);
  ck_assert_int_eq (alloc_finish (&bed.alloc, false), 0);
  ck_assert_uint_eq (scratch_size (bed.path), 6 * CLUSTER);
  tear_down (&bed);

  set_up (&bed, 1000, 3, 3 * CLUSTER, 100);
  give_back (&bed, take (&bed));
  ck_assert_int_eq (alloc_finish (&bed.alloc, false), 0);
  ck_assert_uint_eq (scratch_size (bed.path), 3 * CLUSTER);
  tear_down (&bed);
}
END_TEST

START_TEST (what_was_there_at_open_is_cut_off_only_where_a_crash_left_it)
{
  struct bed bed;

  set_up (&bed, 1000, 3, 9 * CLUSTER, 100);
  ck_assert_int_eq (alloc_finish (&bed.alloc, false), 0);
  ck_assert_uint_eq (scratch_size (bed.path), 9 * CLUSTER);
  ck_assert_int_eq (alloc_finish (&bed.alloc, true), 0);
  ck_assert_uint_eq (scratch_size (bed.path), 3 * CLUSTER);
  tear_down (&bed);
}
END_TEST

START_TEST (freed_clusters_at_the_end_are_cut_off)
{
  struct bed bed;

  /* In each of the steps on their way back. */
  set_up (&bed, 1000, 3, 3 * CLUSTER, 100);
  take_all (&bed, 3, 10);
  fill_cluster (&bed, 4, 'x');
  release (&bed, 9);
  settle (&bed);
  pretend_to_commit (&bed);
  alloc_scrub (&bed.alloc);     /* punched */
  release (&bed, 8);
  settle (&bed);                /* settled */
  release (&bed, 7);
  alloc_scrub (&bed.alloc);     /* closed */
  release (&bed, 6);
  release (&bed, 4);
  pretend_to_commit (&bed);
  ck_assert_int_eq (alloc_finish (&bed.alloc, false), 0);
  ck_assert_uint_eq (alloc_nr_pending (&bed.alloc), 0);
  ck_assert_uint_eq (scratch_size (bed.path), 6 * CLUSTER);
  ck_assert (cluster_is (&bed, 4, 0));
  tear_down (&bed);

  /* Also those that were there at open. */
  set_up (&bed, 1000, 5, 5 * CLUSTER, 100);
  release (&bed, 4);
  release (&bed, 2);
  pretend_to_commit (&bed);
  ck_assert_int_eq (alloc_finish (&bed.alloc, false), 0);
  ck_assert_uint_eq (scratch_size (bed.path), 4 * CLUSTER);
  ck_assert (cluster_is (&bed, 2, 0));
  tear_down (&bed);
}
END_TEST

START_TEST (finish_stops_at_a_cluster_that_cannot_be_cleared)
{
  struct bed bed;

  set_up (&bed, 1000, 1, CLUSTER, 100);
  take_all (&bed, 1, 10);
  release (&bed, 9);
  release (&bed, 7);
  pretend_to_commit (&bed);
  fault_inject (FAULT_FALLOCATE, EIO, 0, 1);
  ck_assert_int_eq (alloc_finish (&bed.alloc, false), 0);
  ck_assert_uint_eq (scratch_size (bed.path), 9 * CLUSTER);
  tear_down (&bed);
}
END_TEST

/* ---- Ending while a grace period does ---------------------------------- */

static pthread_t main_thread;
static sem_t in_hook;
static _Atomic bool hook_is_slow, hook_is_over;

/* Slow in liburcu's thread only. */
static void
linger (void *opaque)
{
  (void) opaque;
  if (pthread_equal (pthread_self (), main_thread) || !hook_is_slow)
    return;
  sem_post (&in_hook);
  /* Not a limit: longer only makes a missing wait more likely to be seen. */
  g_usleep (200000);
  hook_is_over = true;
}

START_TEST (destroying_waits_for_who_tells_that_a_grace_period_is_over)
{
  struct bed bed;

  set_up (&bed, 1000, 1, CLUSTER, 100);
  main_thread = pthread_self ();
  sem_init (&in_hook, 0, 0);
  hook_is_slow = true;
  bed.alloc.freed.news = linger;
  take_all (&bed, 1, 4);
  release (&bed, 2);
  alloc_scrub (&bed.alloc);
  while (sem_wait (&in_hook) == -1)
    continue;
  /* The batch is settled: everything may come to its end. */
  for (int i = 0; i < 3; i++) {
    pretend_to_commit (&bed);
    alloc_scrub (&bed.alloc);
  }
  ck_assert_uint_eq (alloc_nr_pending (&bed.alloc), 0);
  ck_assert_int_eq (alloc_finish (&bed.alloc, false), 0);
  alloc_destroy (&bed.alloc);
  ck_assert_msg (hook_is_over, "a hook runs after alloc_destroy");
  tear_down (&bed);
}
END_TEST

/* ---- Many threads ------------------------------------------------------ */

#define NR_SLOTS 200u
#define NR_CELLS (NR_SLOTS + 5000u)
#define NR_WRITERS 6
#define NR_ROUNDS 1500

/* A map of SLOTS: the entry of each, or 0.  What is handed out reads as zeros;
 * who has it writes its number to it; nobody else does.
 */
struct crowd {
  struct bed bed;
  _Atomic uint32_t slots[NR_SLOTS];
  _Atomic int owners[NR_CELLS];
  _Atomic bool stop;
  _Atomic unsigned nr_full;
};

static uint64_t
label (struct bed *bed, uint32_t entry)
{
  uint64_t number = 0;

  if (delta_pread (bed->delta, &number, sizeof number,
                   (uint64_t) entry * CLUSTER)
      < 0)
    return UINT64_MAX;
  return number;
}

/* Map a slot, as a request does: what comes is ours alone, and zeros. */
static const char *
map_slot (struct crowd *crowd, uint32_t slot)
{
  struct alloc *alloc = &crowd->bed.alloc;
  uint32_t entry, none = 0;
  uint64_t number;
  int r = alloc_take (alloc, &entry);

  if (r == -ENOSPC) {
    crowd->nr_full++;
    return NULL;
  }
  if (r < 0)
    return "alloc_take failed";
  if (atomic_fetch_add (&crowd->owners[entry], 1) != 0)
    return "a cluster has two owners";
  if (label (&crowd->bed, entry) != 0)
    return "a cluster that is not zeros was handed out";
  if (atomic_load (&crowd->slots[slot]) == 0) {
    number = entry;
    delta_pwrite (crowd->bed.delta, &number, sizeof number,
                  (uint64_t) entry * CLUSTER);
    if (atomic_compare_exchange_strong (&crowd->slots[slot], &none, entry)) {
      alloc_keep (alloc);
      return NULL;
    }
    /* As if nothing had been written. */
    number = 0;
    delta_pwrite (crowd->bed.delta, &number, sizeof number,
                  (uint64_t) entry * CLUSTER);
  }
  atomic_fetch_sub (&crowd->owners[entry], 1);
  alloc_give_back (alloc, entry);
  return NULL;
}

static void
unmap_slot (struct crowd *crowd, uint32_t slot)
{
  const uint32_t entry = atomic_exchange (&crowd->slots[slot], 0);

  if (entry == 0)
    return;
  atomic_fetch_sub (&crowd->owners[entry], 1);
  alloc_free (&crowd->bed.alloc, entry, changes_note (&crowd->bed.changes));
}

/* What a slot names stays as it is while we are inside. */
static const char *
read_slot (struct crowd *crowd, uint32_t slot)
{
  const uint32_t entry = atomic_load (&crowd->slots[slot]);

  if (entry == 0)
    return NULL;
  for (int i = 0; i < 2; i++)
    if (label (&crowd->bed, entry) != entry)
      return "a cluster was cleared under a request";
  return NULL;
}

static void *
write_and_trim (void *opaque)
{
  struct crowd *crowd = opaque;
  const char *wrong = NULL;

  for (int i = 0; i < NR_ROUNDS && !wrong; i++) {
    const uint32_t slot = (uint32_t) g_random_int_range (0, NR_SLOTS);

    rcu_read_lock ();
    switch (g_random_int_range (0, 3)) {
    case 0:
      wrong = map_slot (crowd, slot);
      break;
    case 1:
      unmap_slot (crowd, slot);
      break;
    default:
      wrong = read_slot (crowd, slot);
    }
    rcu_read_unlock ();
  }
  return (void *) wrong;
}

static void *
scrub_for_ever (void *opaque)
{
  struct crowd *crowd = opaque;

  while (!crowd->stop) {
    alloc_scrub (&crowd->bed.alloc);
    alloc_extend (&crowd->bed.alloc);
    g_usleep (50);
  }
  return NULL;
}

static void *
commit_for_ever (void *opaque)
{
  struct crowd *crowd = opaque;

  while (!crowd->stop) {
    const uint64_t covered = changes_now (&crowd->bed.changes);

    g_usleep (100);
    changes_set_durable (&crowd->bed.changes, covered);
  }
  return NULL;
}

static void
run_crowd (struct crowd *crowd)
{
  pthread_t writers[NR_WRITERS], scrubber, committer;
  const char *wrong = NULL;

  pthread_create (&scrubber, NULL, scrub_for_ever, crowd);
  pthread_create (&committer, NULL, commit_for_ever, crowd);
  for (int i = 0; i < NR_WRITERS; i++)
    pthread_create (&writers[i], NULL, write_and_trim, crowd);
  for (int i = 0; i < NR_WRITERS; i++) {
    void *result;

    pthread_join (writers[i], &result);
    if (result)
      wrong = result;
  }
  crowd->stop = true;
  pthread_join (scrubber, NULL);
  pthread_join (committer, NULL);
  ck_assert_msg (wrong == NULL, "%s", wrong);
}

/* Each cell that ever was fresh is so now, or a hole, or has one owner. */
static void
assert_nothing_is_lost (struct crowd *crowd)
{
  struct alloc *alloc = &crowd->bed.alloc;
  int64_t nr_fresh = 0, nr_mapped = 0;
  uint64_t nr_holes = 0;

  for (uint32_t i = 0; i < NR_SLOTS; i++)
    nr_mapped += crowd->slots[i] != 0;
  /* Cell 0 begins at cluster 1 of the file. */
  for (uint64_t cell = 0; cell < alloc->limit; cell++) {
    const bool fresh = alloc->fresh[cell / 64] >> cell % 64 & 1;
    const bool hole = alloc->holes[cell / 64] >> cell % 64 & 1;

    ck_assert_int_eq (crowd->owners[cell + 1] + fresh + hole, 1);
    nr_fresh += fresh;
    nr_holes += hole;
  }
  ck_assert_int_eq (alloc->nr_fresh, nr_fresh);
  ck_assert_uint_eq (alloc->nr_holes, nr_holes);
  ck_assert_int_eq (alloc->nr_wanted, (int64_t) NR_SLOTS - nr_mapped);
  ck_assert_uint_eq (alloc->nr_held, 0);
}

START_TEST (threads_never_own_a_cluster_twice_and_lose_none)
{
  struct crowd *crowd = g_new0 (struct crowd, 1);
  uint32_t last = 0;

  set_up (&crowd->bed, NR_SLOTS, 1, CLUSTER, 16);
  host_clusters = _i % 2 ? 60 : NR_CELLS;
  fault_hook = small_host;
  run_crowd (crowd);
  scrub_to_the_end (&crowd->bed);
  assert_nothing_is_lost (crowd);
  for (uint32_t i = 0; i < NR_SLOTS; i++)
    last = MAX (last, crowd->slots[i]);
  ck_assert_int_eq (alloc_finish (&crowd->bed.alloc, false), 0);
  ck_assert_uint_eq (scratch_size (crowd->bed.path),
                     (last + UINT64_C (1)) * CLUSTER);
  tear_down (&crowd->bed);
  g_free (crowd);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, lowest_first_and_given_back_ones_again);
  tcase_add_test (tcase, freed_cluster_goes_before_the_end_of_the_file);
  tcase_add_test (tcase, what_lies_behind_the_last_cluster_is_not_handed_out);
  tcase_add_test (tcase, nothing_is_handed_out_when_the_size_cannot_be_synced);
  tcase_add_test (tcase, size_goes_many_steps_ahead_with_one_sync);
  tcase_add_loop_test (
    tcase, every_cluster_that_is_handed_out_lies_in_the_durable_size, 0, 12);
  tcase_add_test (tcase, no_more_is_reserved_than_the_disk_can_use);
  tcase_add_test (tcase,
                  clusters_that_come_back_count_among_what_the_disk_can_use);
  tcase_add_test (tcase, reservations_are_as_long_as_was_asked_for);
  tcase_add_test (tcase, without_reserving_no_fallocate_is_called);
  tcase_add_test (tcase, full_disk_gives_what_there_is);
  tcase_add_test (tcase, full_disk_leaves_nothing_behind_and_recovers);
  tcase_add_test (tcase, limit_of_the_files_size_is_a_full_disk);
  tcase_add_test (tcase, failed_extension_ahead_waits_until_somebody_needs_it);
  tcase_add_test (tcase, failed_extension_cuts_nothing_off_the_last_cluster);
  tcase_add_test (tcase, cluster_in_somebodys_hand_is_waited_for);
  tcase_add_test (tcase, low_is_called_when_few_are_left);
  tcase_add_test (tcase, low_is_not_called_when_the_disk_can_use_no_more);
  tcase_add_test (tcase,
                  freed_cluster_is_not_touched_while_a_request_may_use_it);
  tcase_add_test (tcase,
                  freed_cluster_is_not_punched_before_its_removal_is_durable);
  tcase_add_test (tcase,
                  freed_cluster_is_not_reused_before_its_punch_is_durable);
  tcase_add_test (tcase,
                  freed_cluster_reads_as_zeros_when_it_is_handed_out_again);
  tcase_add_test (tcase,
                  several_batches_are_on_their_way_at_once);
  tcase_add_test (
    tcase, freed_cluster_is_not_handed_out_before_its_space_is_reserved);
  tcase_add_test (
    tcase, reserved_cluster_that_nobody_took_is_let_go_at_the_end);
  tcase_add_test (tcase, reserved_cluster_of_a_full_file_is_let_go_at_the_end);
  tcase_add_test (tcase, neighbours_are_punched_in_one_call);
  tcase_add_test (tcase, clusters_are_zeroed_where_they_cannot_be_punched);
  tcase_add_test (tcase,
                  cluster_that_cannot_be_cleared_is_never_handed_out_again);
  tcase_add_test (tcase,
                  clusters_off_the_grid_are_punched_and_never_handed_out);
  tcase_add_test (tcase, unused_tail_is_cut_off);
  tcase_add_test (
    tcase, what_was_there_at_open_is_cut_off_only_where_a_crash_left_it);
  tcase_add_test (tcase, freed_clusters_at_the_end_are_cut_off);
  tcase_add_test (tcase, finish_stops_at_a_cluster_that_cannot_be_cleared);
  tcase_add_test (
    tcase, destroying_waits_for_who_tells_that_a_grace_period_is_over);
  /* Races are won and lost differently each time. */
  tcase_add_loop_test (
    tcase, threads_never_own_a_cluster_twice_and_lose_none, 0, 12);
}

int
main (void)
{
  return run_tests ("alloc", add_tests);
}
