/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/flusher.c: what an image does by itself.  It extends the file ahead of
 * need, carries freed clusters on, syncs for nobody unless somebody waits for
 * space or for a copy, tries again what failed, and sleeps when it has done all.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>

#include "faults.h"
#include "flusher.h"
#include "rcu.h"
#include "run.h"

#define CLUSTER 32768u
#define NR_ENTRIES 1000u

static const struct log silent;

/* Warnings of the flusher's. */
static _Atomic unsigned nr_warnings;

static void
count_warning (void *opaque, enum ploop_log_level level, const char *message)
{
  (void) opaque;
  (void) message;
  nr_warnings += level == PLOOP_LOG_WARNING;
}

static const struct log counting = { count_warning, NULL };

/* Is CONDITION true before a generous deadline? */
#define comes_true(condition)                                                 \
  ({                                                                          \
    const gint64 deadline = g_get_monotonic_time () + 60 * G_USEC_PER_SEC;    \
    while (!(condition) && g_get_monotonic_time () < deadline)                \
      g_usleep (1000);                                                        \
    (condition);                                                              \
  })

/* ---- The bed: an image without its requests ---------------------------- */

struct bed {
  char *path;
  struct delta *delta;
  struct map map;
  struct changes changes;
  struct stats *stats;
  struct alloc alloc;
  struct commit commit;
  struct trims trims;
  struct loop loop;
  struct flusher flusher;
  _Atomic unsigned nr_freed;
};

static void
ask_to_extend (void *opaque)
{
  flusher_ask (&((struct bed *) opaque)->flusher, FLUSHER_EXTEND);
}

static void
ask_to_scrub (void *opaque)
{
  struct bed *bed = opaque;

  flusher_ask (&bed->flusher, FLUSHER_SCRUB);
  bed->nr_freed++;
}

static void
ask_to_write_back (void *opaque)
{
  flusher_ask (&((struct bed *) opaque)->flusher, FLUSHER_WRITE_BACK);
}

static void
ask_to_commit (void *opaque)
{
  flusher_ask (&((struct bed *) opaque)->flusher, FLUSHER_COMMIT);
}

static void
ask_to_lead (void *opaque)
{
  flusher_ask (&((struct bed *) opaque)->flusher, FLUSHER_LEAD);
}

static void
after_commit (void *opaque)
{
  struct bed *bed = opaque;

  if (alloc_nr_pending (&bed->alloc) > 0)
    flusher_ask (&bed->flusher, FLUSHER_SCRUB);
}

struct settings {
  uint64_t step;                /* clusters */
  unsigned write_back_delay, copy_delay;        /* ms */
  bool wait;
};

static void
ask_to_punch_parts (void *opaque)
{
  flusher_ask (&((struct bed *) opaque)->flusher, FLUSHER_TRIM);
}

static void
init_alloc (struct bed *bed, uint64_t step)
{
  const struct alloc_options options = {
    .data_end = bed->delta->layout.data_start,
    .nr_unmapped = NR_ENTRIES,
    .prealloc = step * CLUSTER,
    .low = ask_to_extend,
    .freed = ask_to_scrub,
    .opaque = bed,
  };

  ck_assert_int_eq (alloc_init (&bed->alloc, bed->delta, &bed->changes,
                                bed->stats, &silent, &options),
                    0);
}

static void
set_up (struct bed *bed, struct settings settings)
{
  const struct format_header header = scratch_header (2, 64, NR_ENTRIES);
  const struct commit_hooks hooks = {
    NULL, ask_to_lead, ask_to_write_back, ask_to_commit, after_commit, NULL, bed
  };
  const struct flusher_options options = {
    .copy_delay = settings.copy_delay,
    .wait_for_space = settings.wait,
  };

  const struct trims_options trims_options = {
    true, ask_to_punch_parts, bed
  };

  *bed = (struct bed) { .stats = stats_new (false) };
  bed->path = scratch_image ("flusher", &header, NULL, CLUSTER);
  bed->delta = delta_open (bed->path, DELTA_LOCK_WRITER, NULL);
  ck_assert_ptr_nonnull (bed->delta);
  ck_assert_int_eq (map_init (&bed->map, NR_ENTRIES), 0);
  flusher_init (&bed->flusher, &bed->alloc, &bed->commit, &bed->trims,
                bed->stats, &counting, &options);
  init_alloc (bed, settings.step);
  ck_assert_int_eq (commit_init (&bed->commit, bed->delta, 0, &bed->map,
                                 &bed->changes, bed->stats, &silent, &hooks,
                                 settings.write_back_delay, NULL),
                    0);
  trims_init (&bed->trims, bed->delta, &bed->map, &bed->commit, &bed->alloc,
              &trims_options);
  fault_reset ();
  ck_assert_int_eq (loop_start (&bed->loop, "test-flush"), 0);
  flusher_start (&bed->flusher, &bed->loop);
}

/* To look at what only the flusher's thread may touch. */
static void
stop (struct bed *bed)
{
  flusher_give_up (&bed->flusher);
  loop_ask (&bed->loop, &bed->flusher.client);
  loop_stop (&bed->loop);
}

static void
tear_down (struct bed *bed)
{
  fault_reset ();
  rcu_barrier ();
  trims_destroy (&bed->trims);
  alloc_destroy (&bed->alloc);
  flusher_destroy (&bed->flusher);
  loop_destroy (&bed->loop);
  commit_destroy (&bed->commit);
  map_destroy (&bed->map);
  delta_close (bed->delta);
  stats_free (bed->stats);
  g_free (bed->path);
}

static int64_t
nr_free (const struct bed *bed)
{
  return bed->alloc.nr_fresh + (int64_t) bed->alloc.nr_holes;
}

static bool
has_timer (const struct bed *bed)
{
  return ev_is_active (&bed->flusher.commit_timer)
         || ev_is_active (&bed->flusher.write_back_timer)
         || ev_is_active (&bed->flusher.retry_timer)
         || ev_is_active (&bed->flusher.trim_timer);
}

static struct ploop_statistics
statistics (struct bed *bed)
{
  struct ploop_statistics all = { 0 };

  stats_collect (bed->stats, &all);
  return all;
}

static uint32_t
entry_on_disk (struct bed *bed, uint32_t cluster)
{
  return scratch_read_le32 (bed->path, format_bat_offset (cluster));
}

/* A word for a host cluster that was taken, with FLAGS. */
static uint64_t
take_cluster (struct bed *bed, uint64_t flags)
{
  uint32_t entry;

  ck_assert_int_eq (alloc_take (&bed->alloc, &entry), 0);
  alloc_keep (&bed->alloc);
  return map_word (0, entry, flags);
}

/* Give CLUSTER a host cluster, with FLAGS in its word. */
static uint64_t
map_cluster (struct bed *bed, uint64_t cluster, uint64_t flags)
{
  const uint64_t word = take_cluster (bed, flags);
  uint64_t found;

  ck_assert (map_publish (&bed->map, cluster, word, &found));
  return word;
}

static void
write_cluster (struct bed *bed, uint64_t cluster)
{
  const uint64_t word = map_cluster (bed, cluster, MAP_NEW);

  ck_assert_int_eq (commit_write_entry (&bed->commit, cluster, word), 0);
}

static void
copy_cluster (struct bed *bed, uint64_t cluster)
{
  uint64_t none = 0;

  map_occupy (&bed->map, cluster);
  ck_assert (commit_publish_copy (&bed->commit, cluster, &none,
                                  take_cluster (bed, MAP_UNSTABLE)));
}

static void
trim_cluster (struct bed *bed, uint64_t cluster)
{
  const uint64_t word = map_lookup (&bed->map, cluster);
  uint64_t removal;

  ck_assert (commit_remove (&bed->commit, cluster, word, &removal));
  alloc_free (&bed->alloc, map_word_entry (word), removal);
}

/* ---- A small disk ------------------------------------------------------ */

static _Atomic uint64_t host_clusters;

static int
small_host (const struct fault_event *event)
{
  const bool reserves = event->call == FAULT_FALLOCATE
                        && !(event->mode & FALLOC_FL_PUNCH_HOLE);

  return reserves && event->offset + event->length > host_clusters * CLUSTER
           ? ENOSPC : 0;
}

/* Guest clusters 0 to NR - 1 are mapped, and there is room for no more. */
static void
fill_host (struct bed *bed, uint32_t nr)
{
  uint32_t entry;

  host_clusters = nr + 1;
  fault_hook = small_host;
  for (uint32_t i = 0; i < nr; i++)
    write_cluster (bed, i);
  ck_assert_int_eq (alloc_take (&bed->alloc, &entry), -ENOSPC);
  ck_assert_int_eq (commit_flush (&bed->commit), 0);
}

/* Whoever waits for space, and what it is told. */
struct waiting {
  struct flusher_waiter waiter;
  _Atomic unsigned nr;
  _Atomic int result;
};

static void
on_resume (struct flusher_waiter *waiter, int result)
{
  struct waiting *waiting = (struct waiting *) waiter;

  waiting->result = result;
  waiting->nr++;
}

static void
wait_for_space (struct bed *bed, struct waiting *waiting, bool needs_cluster)
{
  *waiting = (struct waiting) { .waiter.needs_cluster = needs_cluster,
                                .waiter.resume = on_resume };
  flusher_wait (&bed->flusher, &waiting->waiter);
}

/* ---- Ahead of need ----------------------------------------------------- */

START_TEST (file_is_extended_before_somebody_finds_nothing)
{
  struct bed bed;

  set_up (&bed, (struct settings) { .step = 8 });
  for (uint32_t i = 0; i < 5; i++)
    map_cluster (&bed, i, MAP_NEW);
  ck_assert (comes_true (bed.alloc.nr_fresh > 8));
  for (uint32_t i = 5; i < 500; i++) {
    map_cluster (&bed, i, MAP_NEW);
    ck_assert (comes_true (bed.alloc.nr_fresh >= 4));
  }
  stop (&bed);
  ck_assert (!has_timer (&bed));
  tear_down (&bed);
}
END_TEST

START_TEST (extension_that_fails_is_not_tried_again_and_again)
{
  struct bed bed;
  unsigned calls;

  set_up (&bed, (struct settings) { .step = 8 });
  host_clusters = 9;
  fault_hook = small_host;
  for (uint32_t i = 0; i < 5; i++)
    map_cluster (&bed, i, MAP_NEW);
  ck_assert (comes_true (bed.alloc.ahead_failed));
  calls = fault_calls[FAULT_FALLOCATE];
  for (uint32_t i = 5; i < 8; i++)
    map_cluster (&bed, i, MAP_NEW);
  stop (&bed);
  ck_assert_uint_eq (fault_calls[FAULT_FALLOCATE], calls);
  ck_assert (!has_timer (&bed));
  tear_down (&bed);
}
END_TEST

/* ---- Freed clusters ---------------------------------------------------- */

START_TEST (freed_clusters_cost_no_sync_of_their_own)
{
  struct bed bed;

  set_up (&bed, (struct settings) { .step = 8 });
  write_cluster (&bed, 0);
  write_cluster (&bed, 1);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert (comes_true (!alloc_is_low (&bed.alloc)));
  fault_reset ();
  trim_cluster (&bed, 0);
  /* Once when it is freed, once when the grace period is over. */
  ck_assert (comes_true (bed.nr_freed == 2));
  stop (&bed);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 0);
  ck_assert_uint_eq (fault_calls[FAULT_FALLOCATE], 0);
  ck_assert_uint_eq (alloc_nr_pending (&bed.alloc), 1);
  ck_assert (!has_timer (&bed));
  tear_down (&bed);
}
END_TEST

START_TEST (commits_of_others_bring_freed_clusters_back)
{
  struct bed bed;

  set_up (&bed, (struct settings) { .step = 8 });
  write_cluster (&bed, 0);
  write_cluster (&bed, 1);
  ck_assert (comes_true (!alloc_is_low (&bed.alloc)));
  fault_reset ();
  trim_cluster (&bed, 0);
  ck_assert (comes_true (bed.nr_freed == 2));
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert (comes_true (statistics (&bed).nr_punches == 1));
  changes_note (&bed.changes);
  /* The punch may be noted after it was counted. */
  ck_assert (comes_true (commit_flush (&bed.commit) == 0
                         && alloc_nr_pending (&bed.alloc) == 0));
  /* It is a hole before it is reserved again. */
  ck_assert (comes_true (atomic_load (&bed.alloc.fresh[0]) & 1));
  ck_assert_uint_le (fault_calls[FAULT_FDATASYNC], 3);
  ck_assert_uint_eq (map_word_entry (map_cluster (&bed, 7, MAP_NEW)), 1);
  stop (&bed);
  ck_assert (!has_timer (&bed));
  tear_down (&bed);
}
END_TEST

/* ---- Space: report ----------------------------------------------------- */

static int
fail_syncs (const struct fault_event *event)
{
  return event->call == FAULT_FDATASYNC ? EIO : 0;
}

START_TEST (nobody_waits_without_hope)
{
  struct bed bed;

  set_up (&bed, (struct settings) { .step = 1 });
  ck_assert (!flusher_may_wait (&bed.flusher));
  write_cluster (&bed, 0);
  trim_cluster (&bed, 0);
  ck_assert (flusher_may_wait (&bed.flusher));
  fault_hook = fail_syncs;
  ck_assert_int_eq (commit_flush (&bed.commit), -EIO);
  ck_assert (!flusher_may_wait (&bed.flusher));
  stop (&bed);
  tear_down (&bed);

  set_up (&bed, (struct settings) { .step = 1, .wait = true });
  ck_assert (flusher_may_wait (&bed.flusher));
  stop (&bed);
  tear_down (&bed);
}
END_TEST

START_TEST (freed_cluster_is_hurried_on_when_somebody_waits)
{
  struct bed bed;
  struct waiting waiting;

  set_up (&bed, (struct settings) { .step = 4, .wait = _i == 1 });
  fill_host (&bed, 6);
  trim_cluster (&bed, 3);
  wait_for_space (&bed, &waiting, true);
  ck_assert (comes_true (waiting.nr == 1));
  ck_assert_int_eq (waiting.result, 0);
  ck_assert_uint_eq (alloc_nr_pending (&bed.alloc), 0);
  ck_assert_uint_eq (map_word_entry (map_cluster (&bed, 9, MAP_NEW)), 4);
  ck_assert_uint_eq (statistics (&bed).nr_enospc_waits, 1);
  stop (&bed);
  tear_down (&bed);
}
END_TEST

START_TEST (room_is_waited_for_until_all_that_was_freed_has_come_back)
{
  struct bed bed;
  struct waiting waiting;

  set_up (&bed, (struct settings) { .step = 4 });
  fill_host (&bed, 6);
  /* Both in one batch. */
  flusher_hold (&bed.flusher);
  trim_cluster (&bed, 3);
  trim_cluster (&bed, 5);
  flusher_release (&bed.flusher);
  wait_for_space (&bed, &waiting, false);
  ck_assert (comes_true (waiting.nr == 1));
  ck_assert_int_eq (waiting.result, 0);
  ck_assert_uint_eq (alloc_nr_pending (&bed.alloc), 0);
  stop (&bed);
  tear_down (&bed);
}
END_TEST

static int
fail_fallocates (const struct fault_event *event)
{
  return event->call == FAULT_FALLOCATE ? EIO : 0;
}

START_TEST (waiter_looks_again_when_nothing_comes_back)
{
  struct bed bed;
  struct waiting waiting;

  set_up (&bed, (struct settings) { .step = 4 });
  fill_host (&bed, 6);
  /* Too late already. */
  wait_for_space (&bed, &waiting, true);
  ck_assert (comes_true (waiting.nr == 1));
  ck_assert_int_eq (waiting.result, 0);
  ck_assert (!flusher_may_wait (&bed.flusher));

  /* And when what was freed cannot be cleared. */
  fault_hook = fail_fallocates;
  trim_cluster (&bed, 3);
  wait_for_space (&bed, &waiting, true);
  ck_assert (comes_true (waiting.nr == 1));
  ck_assert_int_eq (waiting.result, 0);
  ck_assert_uint_eq (alloc_nr_pending (&bed.alloc), 0);
  ck_assert_int_eq (nr_free (&bed), 0);
  stop (&bed);
  ck_assert (!has_timer (&bed));
  tear_down (&bed);
}
END_TEST

START_TEST (waiter_gives_up_when_commits_fail)
{
  struct bed bed;
  struct waiting waiting;

  set_up (&bed, (struct settings) { .step = 4 });
  fill_host (&bed, 6);
  fault_hook = fail_syncs;
  trim_cluster (&bed, 3);
  wait_for_space (&bed, &waiting, true);
  ck_assert (comes_true (waiting.nr == 1));
  ck_assert_int_eq (waiting.result, -ENOSPC);
  stop (&bed);
  ck_assert (!has_timer (&bed));
  tear_down (&bed);
}
END_TEST

static int
refuse_writes (const struct fault_event *event)
{
  return event->call == FAULT_PWRITE ? ENOSPC : 0;
}

/* The file system is so full that not even the BAT can be written: a request that is to
 * be told of lack of space must not wait for a commit that does not come.
 */
START_TEST (waiter_gives_up_when_removals_cannot_be_written)
{
  struct bed bed;
  struct waiting waiting;

  set_up (&bed, (struct settings) { .step = 4 });
  fill_host (&bed, 6);
  fault_hook = refuse_writes;
  trim_cluster (&bed, 3);
  wait_for_space (&bed, &waiting, true);
  ck_assert (comes_true (waiting.nr == 1));
  ck_assert_int_eq (waiting.result, -ENOSPC);
  fault_hook = NULL;
  stop (&bed);
  tear_down (&bed);
}
END_TEST

/* A request that found the cluster stands in its way. */
START_TEST (waiter_outlasts_a_long_grace_period)
{
  struct bed bed;
  struct waiting waiting;

  set_up (&bed, (struct settings) { .step = 4 });
  fill_host (&bed, 6);
  rcu_read_lock ();
  trim_cluster (&bed, 3);
  wait_for_space (&bed, &waiting, true);
  g_usleep (50000);
  ck_assert_uint_eq (waiting.nr, 0);
  rcu_read_unlock ();
  ck_assert (comes_true (waiting.nr == 1));
  ck_assert_int_eq (nr_free (&bed), 1);
  stop (&bed);
  tear_down (&bed);
}
END_TEST

/* ---- Space: wait ------------------------------------------------------- */

START_TEST (space_is_looked_for_again_until_it_is_back)
{
  struct bed bed;
  struct waiting waiting[3];
  uint32_t entry;

  nr_warnings = 0;
  set_up (&bed, (struct settings) { .step = 4, .wait = true });
  fill_host (&bed, 6);
  for (int round = 0; round < 2; round++) {
    for (int i = 0; i < 3; i++)
      wait_for_space (&bed, &waiting[i], i != 1);
    for (int i = 0; i < 3; i++) {
      ck_assert (comes_true (waiting[i].nr == 1));
      ck_assert_int_eq (waiting[i].result, 0);
    }
    if (round == 0)
      ck_assert_int_eq (alloc_take (&bed.alloc, &entry), -ENOSPC);
    host_clusters = 100;
  }
  map_cluster (&bed, 10, MAP_NEW);
  /* It is said when it begins, and when it is over: then nothing is left to do. */
  ck_assert (comes_true (nr_warnings == 2));
  stop (&bed);
  ck_assert (!ev_is_active (&bed.flusher.retry_timer));
  ck_assert_uint_eq (nr_warnings, 2);
  tear_down (&bed);
}
END_TEST

START_TEST (all_who_wait_give_up_at_the_end)
{
  struct bed bed;
  struct waiting waiting[3], late;

  set_up (&bed, (struct settings) { .step = 4, .wait = true });
  fill_host (&bed, 6);
  for (int i = 0; i < 3; i++)
    wait_for_space (&bed, &waiting[i], i != 1);
  flusher_give_up (&bed.flusher);
  for (int i = 0; i < 3; i++)
    ck_assert (comes_true (waiting[i].nr == 1));
  wait_for_space (&bed, &late, true);
  ck_assert (comes_true (late.nr == 1));
  ck_assert_int_eq (late.result, -ENOSPC);
  stop (&bed);
  tear_down (&bed);
}
END_TEST

/* ---- Entries ----------------------------------------------------------- */

START_TEST (entries_that_were_put_off_are_written_without_a_flush)
{
  struct bed bed;

  set_up (&bed, (struct settings) { .step = 8, .write_back_delay = 5 });
  write_cluster (&bed, 0);
  write_cluster (&bed, 900);
  ck_assert (comes_true (entry_on_disk (&bed, 0) == 1
                         && entry_on_disk (&bed, 900) == 2));
  /* The size's only. */
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  ck_assert (comes_true (bed.commit.nr_dirty == 0));
  stop (&bed);
  ck_assert (!has_timer (&bed));
  tear_down (&bed);
}
END_TEST

static _Atomic unsigned nr_to_fail;

static int
fail_writes (const struct fault_event *event)
{
  if (event->call != FAULT_PWRITE || nr_to_fail == 0)
    return 0;
  nr_to_fail--;
  return EIO;
}

START_TEST (write_back_that_failed_is_tried_again)
{
  struct bed bed;

  set_up (&bed, (struct settings) { .step = 8, .write_back_delay = 5 });
  nr_to_fail = 1;
  fault_hook = fail_writes;
  write_cluster (&bed, 0);
  ck_assert (comes_true (entry_on_disk (&bed, 0) == 1));
  ck_assert (comes_true (statistics (&bed).nr_writeback_retries == 1));
  stop (&bed);
  ck_assert (!has_timer (&bed));
  tear_down (&bed);
}
END_TEST

/* As after a trim: no delay, but the page could not be written. */
START_TEST (removal_that_could_not_be_written_is_tried_again)
{
  struct bed bed;

  set_up (&bed, (struct settings) { .step = 8 });
  write_cluster (&bed, 0);
  nr_to_fail = 2;
  fault_hook = fail_writes;
  trim_cluster (&bed, 0);
  ck_assert_int_eq (commit_write_back (&bed.commit, 0, 0), -EIO);
  flusher_ask (&bed.flusher, FLUSHER_WRITE_BACK);
  ck_assert (comes_true (entry_on_disk (&bed, 0) == 0));
  stop (&bed);
  ck_assert (!ev_is_active (&bed.flusher.write_back_timer));
  tear_down (&bed);
}
END_TEST

START_TEST (copies_are_committed_without_a_flush)
{
  struct bed bed;

  set_up (&bed, (struct settings) { .step = 8, .copy_delay = 5 });
  copy_cluster (&bed, 0);
  ck_assert (comes_true (entry_on_disk (&bed, 0) == 1));
  copy_cluster (&bed, 1);
  ck_assert (comes_true (entry_on_disk (&bed, 1) == 2));
  ck_assert (comes_true (changes_are_durable (&bed.changes,
                                              changes_now (&bed.changes))));
  stop (&bed);
  ck_assert (!has_timer (&bed));
  tear_down (&bed);
}
END_TEST

START_TEST (commit_of_copies_that_failed_is_tried_again)
{
  struct bed bed;

  set_up (&bed, (struct settings) { .step = 8, .copy_delay = 5 });
  nr_to_fail = 1;
  fault_hook = fail_writes;
  copy_cluster (&bed, 0);
  ck_assert (comes_true (entry_on_disk (&bed, 0) == 1));
  ck_assert_uint_eq (statistics (&bed).nr_writeback_retries, 1);
  stop (&bed);
  tear_down (&bed);
}
END_TEST

START_TEST (commit_of_copies_whose_sync_failed_is_not_tried_again)
{
  struct bed bed;

  set_up (&bed, (struct settings) { .step = 8, .copy_delay = 5 });
  map_cluster (&bed, 5, MAP_NEW);
  fault_hook = fail_syncs;
  copy_cluster (&bed, 0);
  ck_assert (comes_true (commit_has_failed (&bed.commit)));
  stop (&bed);
  ck_assert (!has_timer (&bed));
  ck_assert_uint_eq (entry_on_disk (&bed, 0), 0);
  tear_down (&bed);
}
END_TEST

/* ---- Leading ----------------------------------------------------------- */

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

START_TEST (waiters_without_a_thread_are_answered)
{
  struct bed bed;

  set_up (&bed, (struct settings) { .step = 8 });
  for (int i = 0; i < 50; i++) {
    struct answer answers[4];

    changes_note (&bed.changes);
    for (int j = 0; j < 4; j++) {
      int result;

      answers[j] = (struct answer) { .waiter.done = on_answer };
      if (commit_join (&bed.commit, &answers[j].waiter, &result))
        on_answer (&answers[j].waiter, result);
      else
        flusher_ask (&bed.flusher, FLUSHER_LEAD);
    }
    for (int j = 0; j < 4; j++)
      ck_assert (comes_true (answers[j].nr == 1 && answers[j].result == 0));
  }
  stop (&bed);
  ck_assert (!has_timer (&bed));
  tear_down (&bed);
}
END_TEST

/* ---- Holding ----------------------------------------------------------- */

static sem_t entered, may_leave;
static _Atomic bool blocks;

static int
block_sync (const struct fault_event *event)
{
  if (event->call != FAULT_FDATASYNC || !blocks)
    return 0;
  sem_post (&entered);
  while (sem_wait (&may_leave) == -1)
    continue;
  return 0;
}

struct holder {
  struct bed *bed;
  _Atomic bool over;
};

static void *
hold (void *opaque)
{
  struct holder *holder = opaque;

  flusher_hold (&holder->bed->flusher);
  holder->over = true;
  return NULL;
}

START_TEST (hold_waits_for_what_is_under_way)
{
  struct bed bed;
  struct holder holder = { .bed = &bed };
  pthread_t thread;

  set_up (&bed, (struct settings) { .step = 8, .copy_delay = 1 });
  map_cluster (&bed, 5, MAP_NEW);
  sem_init (&entered, 0, 0);
  sem_init (&may_leave, 0, 0);
  blocks = true;
  fault_hook = block_sync;
  copy_cluster (&bed, 0);
  while (sem_wait (&entered) == -1)
    continue;
  blocks = false;
  pthread_create (&thread, NULL, hold, &holder);
  g_usleep (50000);
  ck_assert (!holder.over);
  sem_post (&may_leave);
  pthread_join (thread, NULL);
  flusher_release (&bed.flusher);
  ck_assert (comes_true (entry_on_disk (&bed, 0) != 0));
  stop (&bed);
  tear_down (&bed);
}
END_TEST

START_TEST (held_flusher_begins_nothing_until_the_last_release)
{
  struct bed bed;

  set_up (&bed, (struct settings) { .step = 8, .copy_delay = 1,
                                    .write_back_delay = 1 });
  map_cluster (&bed, 5, MAP_NEW);
  flusher_hold (&bed.flusher);
  flusher_hold (&bed.flusher);
  fault_reset ();
  for (uint32_t i = 6; i < 10; i++)
    write_cluster (&bed, i);
  copy_cluster (&bed, 0);
  g_usleep (50000);
  flusher_release (&bed.flusher);
  g_usleep (50000);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 0);
  ck_assert_uint_eq (fault_calls[FAULT_PWRITE], 0);
  ck_assert_uint_eq (fault_calls[FAULT_FALLOCATE], 0);
  flusher_release (&bed.flusher);
  ck_assert (comes_true (entry_on_disk (&bed, 0) != 0));
  ck_assert (comes_true (entry_on_disk (&bed, 9) != 0));
  ck_assert (comes_true (bed.alloc.nr_fresh > 2));
  stop (&bed);
  tear_down (&bed);
}
END_TEST

START_TEST (held_flusher_can_be_stopped)
{
  struct bed bed;

  set_up (&bed, (struct settings) { .step = 8, .copy_delay = 1 });
  copy_cluster (&bed, 0);
  flusher_hold (&bed.flusher);
  stop (&bed);
  flusher_release (&bed.flusher);
  tear_down (&bed);
}
END_TEST

/* ---- Nothing to do ----------------------------------------------------- */

START_TEST (flusher_that_is_not_started_does_nothing)
{
  const struct flusher_options options = { .wait_for_space = true };
  struct flusher flusher;

  flusher_init (&flusher, NULL, NULL, NULL, NULL, &silent, &options);
  flusher_ask (&flusher, FLUSHER_EXTEND);
  ck_assert (!flusher_may_wait (&flusher));
  flusher_stop (&flusher);
  flusher_destroy (&flusher);
}
END_TEST

START_TEST (idle_flusher_has_no_timer_and_calls_nothing)
{
  static const enum flusher_work works[] = {
    FLUSHER_EXTEND, FLUSHER_SCRUB, FLUSHER_WRITE_BACK, FLUSHER_SPACE,
    FLUSHER_LEAD,
  };
  struct bed bed;

  set_up (&bed, (struct settings) { .step = 8, .write_back_delay = 1 });
  for (size_t i = 0; i < G_N_ELEMENTS (works); i++)
    flusher_ask (&bed.flusher, works[i]);
  stop (&bed);
  ck_assert (!has_timer (&bed));
  for (int i = 0; i < FAULT_NR_CALLS; i++)
    /* alloc_extend: nothing is fresh before somebody takes a cluster. */
    if (i != FAULT_PREAD && bed.alloc.limit == 0)
      ck_assert_uint_eq (fault_calls[i], 0);
  tear_down (&bed);
}
END_TEST

/* ---- Many threads ------------------------------------------------------ */

/* Guests that write and trim on a host that is too small for them.  Each owns
 * guest clusters of its own.
 */
#define NR_GUESTS 4
#define NR_ROUNDS 60

struct guest {
  struct bed *bed;
  pthread_t thread;
  uint32_t first;
  unsigned nr_given_up;
  const char *wrong;
};

struct sleeper {
  struct flusher_waiter waiter;
  sem_t wake;
  int result;
};

static void
wake (struct flusher_waiter *waiter, int result)
{
  struct sleeper *sleeper = (struct sleeper *) waiter;

  sleeper->result = result;
  sem_post (&sleeper->wake);
}

static int
sleep_for_space (struct bed *bed)
{
  struct sleeper sleeper = { .waiter = { .needs_cluster = true,
                                         .resume = wake } };

  sem_init (&sleeper.wake, 0, 0);
  flusher_wait (&bed->flusher, &sleeper.waiter);
  while (sem_wait (&sleeper.wake) == -1)
    continue;
  sem_destroy (&sleeper.wake);
  return sleeper.result;
}

/* As a request does: in the read-side section but for waiting. */
static int
guest_write (struct guest *guest, uint64_t cluster)
{
  struct bed *bed = guest->bed;
  uint32_t entry;
  uint64_t found;
  int r;

  for (;;) {
    rcu_read_lock ();
    r = alloc_take (&bed->alloc, &entry);
    if (r == 0) {
      const uint64_t word = map_word (0, entry, MAP_NEW);

      if (!map_publish (&bed->map, cluster, word, &found))
        guest->wrong = "somebody else mapped it";
      alloc_keep (&bed->alloc);
      r = commit_write_entry (&bed->commit, cluster, word);
    }
    rcu_read_unlock ();
    if (r != -ENOSPC || !flusher_may_wait (&bed->flusher))
      return r;
    r = sleep_for_space (bed);
    if (r < 0)
      return r;
  }
}

static void
guest_trim (struct guest *guest, uint64_t cluster)
{
  struct bed *bed = guest->bed;
  const uint64_t word = map_lookup (&bed->map, cluster);
  uint64_t removal;

  rcu_read_lock ();
  if (commit_remove (&bed->commit, cluster, word, &removal))
    alloc_free (&bed->alloc, map_word_entry (word), removal);
  else
    guest->wrong = "cannot be removed";
  rcu_read_unlock ();
}

static void *
run_guest (void *opaque)
{
  struct guest *guest = opaque;

  for (int i = 0; i < NR_ROUNDS && !guest->wrong; i++) {
    const uint64_t cluster = guest->first + (uint32_t) i % 7;
    int r;

    if (map_word_is_mapped (map_lookup (&guest->bed->map, cluster)))
      guest_trim (guest, cluster);
    r = guest_write (guest, cluster);
    if (r == -ENOSPC) {
      guest->nr_given_up++;
      /* So that another can go on. */
      for (uint64_t c = guest->first; c < guest->first + 7; c++)
        if (map_word_is_mapped (map_lookup (&guest->bed->map, c)))
          guest_trim (guest, c);
    }
    else if (r < 0)
      guest->wrong = "write failed";
  }
  return NULL;
}

/* Seven clusters each would be 28. */
START_TEST (guests_on_a_small_host_all_get_on)
{
  struct bed bed;
  struct guest guests[NR_GUESTS];

  set_up (&bed, (struct settings) { .step = 4 });
  host_clusters = 1 + 18;
  fault_hook = small_host;
  for (uint32_t i = 0; i < NR_GUESTS; i++) {
    guests[i] = (struct guest) { .bed = &bed, .first = i * 100 };
    pthread_create (&guests[i].thread, NULL, run_guest, &guests[i]);
  }
  for (uint32_t i = 0; i < NR_GUESTS; i++) {
    pthread_join (guests[i].thread, NULL);
    ck_assert_msg (guests[i].wrong == NULL, "%s", guests[i].wrong);
  }
  stop (&bed);
  ck_assert_int_eq (commit_flush (&bed.commit), 0);
  ck_assert_uint_le (bed.alloc.limit, 18);
  for (uint32_t i = 0; i < NR_ENTRIES; i++)
    ck_assert_uint_eq (entry_on_disk (&bed, i),
                       map_word_entry (map_lookup (&bed.map, i)));
  tear_down (&bed);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, file_is_extended_before_somebody_finds_nothing);
  tcase_add_test (tcase, extension_that_fails_is_not_tried_again_and_again);
  tcase_add_test (tcase, freed_clusters_cost_no_sync_of_their_own);
  tcase_add_test (tcase, commits_of_others_bring_freed_clusters_back);
  tcase_add_test (tcase, nobody_waits_without_hope);
  tcase_add_loop_test (tcase, freed_cluster_is_hurried_on_when_somebody_waits,
                       0, 2);
  tcase_add_test (tcase,
                  room_is_waited_for_until_all_that_was_freed_has_come_back);
  tcase_add_test (tcase, waiter_looks_again_when_nothing_comes_back);
  tcase_add_test (tcase, waiter_gives_up_when_commits_fail);
  tcase_add_test (tcase, waiter_gives_up_when_removals_cannot_be_written);
  tcase_add_test (tcase, waiter_outlasts_a_long_grace_period);
  tcase_add_test (tcase, space_is_looked_for_again_until_it_is_back);
  tcase_add_test (tcase, all_who_wait_give_up_at_the_end);
  tcase_add_test (tcase,
                  entries_that_were_put_off_are_written_without_a_flush);
  tcase_add_test (tcase, write_back_that_failed_is_tried_again);
  tcase_add_test (tcase, removal_that_could_not_be_written_is_tried_again);
  tcase_add_test (tcase, copies_are_committed_without_a_flush);
  tcase_add_test (tcase, commit_of_copies_that_failed_is_tried_again);
  tcase_add_test (tcase,
                  commit_of_copies_whose_sync_failed_is_not_tried_again);
  tcase_add_test (tcase, waiters_without_a_thread_are_answered);
  tcase_add_test (tcase, hold_waits_for_what_is_under_way);
  tcase_add_test (tcase, held_flusher_begins_nothing_until_the_last_release);
  tcase_add_test (tcase, held_flusher_can_be_stopped);
  tcase_add_test (tcase, flusher_that_is_not_started_does_nothing);
  tcase_add_test (tcase, idle_flusher_has_no_timer_and_calls_nothing);
  tcase_add_loop_test (tcase, guests_on_a_small_host_all_get_on, 0, 4);
}

int
main (void)
{
  return run_tests ("flusher", add_tests);
}
