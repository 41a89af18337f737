/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/fills.c, lazy copy-on-write, through the public API: what may be done to a
 * cluster before it is whole, what a flush waits for, and what is left when
 * filling fails.  test-chain.c has what is true of all copies.
 *
 * Who fills behind does so whenever it likes.  So that a test sees a cluster that
 * is not whole, calls of all threads but the test's own fail, or wait.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "faults.h"
#include "format.h"
#include "pair.h"
#include "run.h"

#define SECTOR 512u
#define NR_THREADS 8u

static pthread_t tester;

/* Nobody else reads a lower delta: what was copied lazily stays as it is. */
static int
only_the_tester_reads (const struct fault_event *event)
{
  return event->call == FAULT_PREAD && !pthread_equal (pthread_self (), tester)
           ? EIO : 0;
}

/* But for a BAT entry. */
static int
nobody_reads (const struct fault_event *event)
{
  return event->call == FAULT_PREAD && event->length >= SECTOR ? EIO : 0;
}

static void
open_lazily (struct pair *pair)
{
  pair_copy_on_write = PLOOP_COPY_LAZY;
  open_pair (pair);
  /* Marked as in use. */
  fill (pair->image, 1, 3);
  tester = pthread_self ();
  fault_no_kernel_copy = true;
  fault_hook = only_the_tester_reads;
}

static void
let_all_read (void)
{
  fault_hook = NULL;
  fault_no_kernel_copy = false;
}

static void
close_lazily (struct pair *pair)
{
  let_all_read ();
  close_pair (pair);
}

static void
put (const struct pair *pair, char byte, uint64_t length, uint64_t offset)
{
  g_autofree char *bytes = g_malloc (length);

  memset (bytes, byte, length);
  ck_assert_int_eq (ploop_pwrite (pair->image, bytes, length, offset, 0), 0);
}

static struct ploop_statistics
statistics_of (const struct pair *pair)
{
  struct ploop_statistics statistics;

  ploop_get_statistics (pair->image, &statistics);
  return statistics;
}

/* Is the cluster at OFFSET 1s but for LENGTH bytes of BYTE, FROM bytes into it? */
static bool
is_changed (const struct pair *pair, uint64_t offset, uint64_t from,
            uint64_t length, uint8_t byte)
{
  return (from == 0 || is_all (pair->image, from, offset, 1))
         && is_all (pair->image, length, offset + from, byte)
         && (from + length == CLUSTER
             || is_all (pair->image, CLUSTER - from - length,
                        offset + from + length, 1));
}

/* ---- What is not whole -------------------------------------------------- */

START_TEST (write_is_answered_before_the_rest_is_copied)
{
  struct pair pair;

  open_lazily (&pair);
  put (&pair, 'x', SECTOR, 3 * SECTOR);
  put (&pair, 'y', SECTOR, STEP * CLUSTER);
  ck_assert_uint_eq (statistics_of (&pair).nr_lazy_copies, 2);
  ck_assert_uint_eq (statistics_of (&pair).fill_bytes, 0);
  ck_assert (is_changed (&pair, 0, 3 * SECTOR, SECTOR, 'x'));
  ck_assert (is_changed (&pair, STEP * CLUSTER, 0, SECTOR, 'y'));
  close_lazily (&pair);
}
END_TEST

START_TEST (all_of_it_is_there_after_a_flush)
{
  struct pair pair;

  open_lazily (&pair);
  put (&pair, 'x', SECTOR, 3 * SECTOR);
  ck_assert_uint_eq (entry_on_disk (&pair, 0), 0);
  ck_assert_int_eq (ploop_flush (pair.image), 0);
  ck_assert_uint_ne (entry_on_disk (&pair, 0), 0);
  ck_assert_uint_eq (statistics_of (&pair).fill_bytes, CLUSTER - SECTOR);
  ck_assert (is_changed (&pair, 0, 3 * SECTOR, SECTOR, 'x'));
  let_all_read ();
  reopen_pair (&pair);
  ck_assert (is_changed (&pair, 0, 3 * SECTOR, SECTOR, 'x'));
  close_lazily (&pair);
}
END_TEST

START_TEST (forced_write_waits_for_the_rest)
{
  struct pair pair;

  open_lazily (&pair);
  put (&pair, 'x', SECTOR, 0);
  ck_assert_int_eq (ploop_zero (pair.image, SECTOR, SECTOR, PLOOP_FUA), 0);
  ck_assert_uint_ne (entry_on_disk (&pair, 0), 0);
  ck_assert_uint_eq (statistics_of (&pair).fill_bytes, CLUSTER - 2 * SECTOR);
  close_lazily (&pair);
}
END_TEST

/* Half a sector of the new cluster would be nobody's. */
START_TEST (parts_of_sectors_are_as_good_as_sectors)
{
  struct pair pair;

  open_lazily (&pair);
  put (&pair, 'x', SECTOR, 0);
  put (&pair, 'y', 3, 5000);
  put (&pair, 'z', SECTOR, 8 * SECTOR + 100);
  ck_assert_int_eq (ploop_zero (pair.image, 700, 10001, 0), 0);
  for (unsigned i = 0; i < 2; i++) {
    ck_assert (is_all (pair.image, SECTOR, 0, 'x'));
    ck_assert (is_all (pair.image, 8 * SECTOR + 100 - SECTOR, SECTOR, 1));
    ck_assert (is_all (pair.image, SECTOR, 8 * SECTOR + 100, 'z'));
    ck_assert (is_all (pair.image, 5000 - 9 * SECTOR - 100,
                       9 * SECTOR + 100, 1));
    ck_assert (is_all (pair.image, 3, 5000, 'y'));
    ck_assert (is_all (pair.image, 10001 - 5003, 5003, 1));
    ck_assert (is_all (pair.image, 700, 10001, 0));
    ck_assert (is_all (pair.image, CLUSTER - 10701, 10701, 1));
    ck_assert_int_eq (ploop_flush (pair.image), 0);
  }
  close_lazily (&pair);
}
END_TEST

START_TEST (cluster_that_is_written_bit_by_bit_is_not_copied)
{
  struct pair pair;

  open_lazily (&pair);
  fault_hook = nobody_reads;
  for (unsigned i = 0; i < 8; i++)
    put (&pair, (char) ('a' + i), CLUSTER / 8, i * 5 % 8 * (CLUSTER / 8));
  ck_assert_int_eq (ploop_flush (pair.image), 0);
  ck_assert_uint_ne (entry_on_disk (&pair, 0), 0);
  ck_assert_uint_eq (statistics_of (&pair).fill_bytes, 0);
  let_all_read ();
  for (unsigned i = 0; i < 8; i++)
    ck_assert (is_all (pair.image, CLUSTER / 8, i * 5 % 8 * (CLUSTER / 8),
                       (uint8_t) ('a' + i)));
  close_lazily (&pair);
}
END_TEST

/* Who was told that it may be zeros does not need what is below. */
START_TEST (what_is_trimmed_or_zeroed_is_not_copied)
{
  struct pair pair;
  const unsigned flags = _i == 1 ? PLOOP_UNMAP : 0;

  open_lazily (&pair);
  put (&pair, 'x', SECTOR, 0);
  fault_hook = nobody_reads;
  if (_i == 0)
    ck_assert_int_eq (ploop_trim (pair.image, CLUSTER - SECTOR, SECTOR, 0), 0);
  else
    ck_assert_int_eq (ploop_zero (pair.image, CLUSTER - SECTOR, SECTOR, flags),
                      0);
  ck_assert_int_eq (ploop_flush (pair.image), 0);
  let_all_read ();
  for (unsigned i = 0; i < 2; i++) {
    ck_assert (is_all (pair.image, SECTOR, 0, 'x'));
    ck_assert (is_all (pair.image, CLUSTER - SECTOR, SECTOR, 0));
    reopen_pair (&pair);
  }
  close_lazily (&pair);
}
END_TEST

/* Of the sectors at its ends, the rest is not. */
START_TEST (what_is_left_of_a_sector_is_copied)
{
  struct pair pair;

  open_lazily (&pair);
  put (&pair, 'x', SECTOR, 0);
  ck_assert_int_eq (ploop_trim (pair.image, 20000 - 1000, 1000, 0), 0);
  for (unsigned i = 0; i < 2; i++) {
    ck_assert (is_all (pair.image, 1000 - SECTOR, SECTOR, 1));
    ck_assert (is_all (pair.image, CLUSTER - 20000, 20000, 1));
    ck_assert_int_eq (ploop_flush (pair.image), 0);
  }
  close_lazily (&pair);
}
END_TEST

static int
add_data (void *opaque, uint64_t offset, uint64_t length, bool hole)
{
  uint64_t *data = opaque;

  if (offset == 0 && !hole)
    *data = length;
  return 0;
}

/* The file has a hole where the lower delta has data. */
START_TEST (holes_of_the_new_cluster_are_not_told)
{
  struct pair pair;
  uint64_t data = 0;

  open_lazily (&pair);
  put (&pair, 'x', SECTOR, 0);
  ck_assert_int_eq (ploop_extents (pair.image, CLUSTER, 0,
                                   PLOOP_EXTENTS_DETAIL, add_data, &data), 0);
  ck_assert_uint_eq (data, CLUSTER);
  close_lazily (&pair);
}
END_TEST

START_TEST (suspended_disk_has_whole_clusters)
{
  struct pair pair;

  open_lazily (&pair);
  put (&pair, 'x', SECTOR, 0);
  ck_assert_int_eq (ploop_suspend (pair.image), 0);
  ck_assert_uint_ne (entry_on_disk (&pair, 0), 0);
  ploop_resume (pair.image);
  close_lazily (&pair);
}
END_TEST

/* ---- In the background -------------------------------------------------- */

/* The test hangs if nobody does it. */
START_TEST (rest_is_copied_behind)
{
  struct pair pair;

  open_lazily (&pair);
  fault_hook = NULL;
  for (unsigned c = 0; c < NR_CLUSTERS; c += STEP)
    put (&pair, 'x', SECTOR, (uint64_t) c * CLUSTER);
  while (statistics_of (&pair).fill_bytes
         < (NR_CLUSTERS + STEP - 1) / STEP * (CLUSTER - SECTOR))
    g_usleep (1000);
  for (unsigned c = 0; c < NR_CLUSTERS; c += STEP)
    ck_assert (is_changed (&pair, (uint64_t) c * CLUSTER, 0, SECTOR, 'x'));
  close_lazily (&pair);
}
END_TEST

struct writer {
  pthread_t thread;
  ploop_image *image;
  unsigned index;
  _Atomic bool *stop;
};

/* A sector here and there, in the first half of a cluster, as long as it is told to.
 */
static void *
write_own_sectors (void *opaque)
{
  const struct writer *writer = opaque;
  uint8_t sectors[2][SECTOR];

  for (unsigned turn = 0; !*writer->stop; turn++) {
    const unsigned c = turn % NR_CLUSTERS;
    const uint64_t offset =
      (uint64_t) c * CLUSTER
      + ((turn * 7 + writer->index) % 4 * NR_THREADS + writer->index) * SECTOR;

    memset (sectors[0], (int) (100 + turn % 100), SECTOR);
    if (ploop_pwrite (writer->image, sectors[0], SECTOR, offset, 0) != 0
        || ploop_pread (writer->image, sectors[1], SECTOR, offset) != 0
        || memcmp (sectors[0], sectors[1], SECTOR) != 0)
      return opaque;
    if (turn % 97 == 0 && ploop_flush (writer->image) != 0)
      return opaque;
  }
  return NULL;
}

/* The other half stays what the lower delta has. */
START_TEST (writers_and_who_fills_do_not_meet)
{
  enum { NR_ROUNDS = 20 };

  for (unsigned round = 0; round < NR_ROUNDS; round++) {
    struct writer writers[NR_THREADS];
    _Atomic bool stop = false;
    struct pair pair;
    void *failed;

    open_lazily (&pair);
    let_all_read ();
    for (unsigned i = 0; i < NR_THREADS; i++) {
      writers[i] = (struct writer) { .image = pair.image, .index = i,
                                     .stop = &stop };
      ck_assert_int_eq (pthread_create (&writers[i].thread, NULL,
                                        write_own_sectors, &writers[i]), 0);
    }
    g_usleep (20000);
    stop = true;
    for (unsigned i = 0; i < NR_THREADS; i++) {
      ck_assert_int_eq (pthread_join (writers[i].thread, &failed), 0);
      ck_assert_ptr_null (failed);
    }
    for (unsigned c = 0; c < NR_CLUSTERS; c += STEP)
      ck_assert (is_all (pair.image, CLUSTER / 2,
                         (uint64_t) c * CLUSTER + CLUSTER / 2, 1));
    close_lazily (&pair);
  }
}
END_TEST

/* ---- When it is not lazy ------------------------------------------------ */

/* A copy whose rest finds no space would fail when it is too late. */
START_TEST (without_reserved_space_copies_are_eager)
{
  struct pair pair;
  const struct ploop_open_options options = {
    .bases = pair.bases,
    .prealloc_mode = PLOOP_PREALLOC_TRUNCATE,
    .copy_on_write = PLOOP_COPY_LAZY,
  };

  open_pair (&pair);
  close_image (pair.image);
  pair.image = ploop_open (pair.top, &options, NULL);
  ck_assert_ptr_nonnull (pair.image);
  share_no_blocks (pair.image);
  put (&pair, 'x', SECTOR, 0);
  ck_assert_uint_eq (statistics_of (&pair).nr_copies, 1);
  ck_assert_uint_eq (statistics_of (&pair).nr_lazy_copies, 0);
  close_pair (&pair);
}
END_TEST

/* The first copy is the one to find out. */
START_TEST (where_blocks_can_be_shared_copies_are_eager)
{
  struct pair pair;

  open_lazily (&pair);
  fault_hook = NULL;
  chain_of (pair.image)->levels[0]->no_clone_from = false;
  put (&pair, 'x', SECTOR, 0);
  ck_assert_uint_eq (statistics_of (&pair).nr_copies, 1);
  ck_assert_uint_eq (statistics_of (&pair).nr_lazy_copies, 0);
  put (&pair, 'x', SECTOR, STEP * CLUSTER);
  ck_assert_uint_eq (statistics_of (&pair).nr_lazy_copies, 1);
  close_lazily (&pair);
}
END_TEST

START_TEST (as_many_as_may_be_are_lazy)
{
  struct pair pair;

  open_lazily (&pair);
  pair.image->parts[0].image->disk.fills.max = 3;
  for (unsigned c = 0; c < 3 * STEP; c += STEP)
    put (&pair, 'x', SECTOR, (uint64_t) c * CLUSTER);
  fault_hook = NULL;
  put (&pair, 'x', SECTOR, 3 * STEP * CLUSTER);
  ck_assert_uint_eq (statistics_of (&pair).nr_copies, 4);
  ck_assert_uint_eq (statistics_of (&pair).nr_lazy_copies, 3);
  ck_assert_int_eq (ploop_flush (pair.image), 0);
  put (&pair, 'x', SECTOR, 4 * STEP * CLUSTER);
  ck_assert_uint_eq (statistics_of (&pair).nr_lazy_copies, 4);
  close_lazily (&pair);
}
END_TEST

/* ---- What fails --------------------------------------------------------- */

/* Others are committed all the same. */
START_TEST (flush_tells_what_cannot_be_filled)
{
  struct pair pair;

  open_lazily (&pair);
  put (&pair, 'x', SECTOR, 0);
  fill (pair.image, STEP, 9);
  fault_hook = nobody_reads;
  ck_assert_int_eq (ploop_flush (pair.image), -EIO);
  ck_assert_uint_eq (entry_on_disk (&pair, 0), 0);
  ck_assert_uint_ne (entry_on_disk (&pair, STEP), 0);
  ck_assert_int_eq (ploop_flush (pair.image), -EIO);
  fault_hook = only_the_tester_reads;
  ck_assert (is_changed (&pair, 0, 0, SECTOR, 'x'));
  ck_assert_int_eq (ploop_flush (pair.image), 0);
  ck_assert_uint_ne (entry_on_disk (&pair, 0), 0);
  close_lazily (&pair);
}
END_TEST

START_TEST (space_comes_back_though_a_flush_fails)
{
  struct pair pair;

  open_lazily (&pair);
  put (&pair, 'x', SECTOR, 0);
  fault_hook = nobody_reads;
  for (unsigned i = 0; i < 1000 && statistics_of (&pair).nr_reuses == 0; i++) {
    fill (pair.image, 1, 9);
    ck_assert_int_eq (ploop_trim (pair.image, CLUSTER, CLUSTER, 0), 0);
    ck_assert_int_eq (ploop_flush (pair.image), -EIO);
    g_usleep (1000);
  }
  ck_assert_uint_gt (statistics_of (&pair).nr_reuses, 0);
  close_lazily (&pair);
}
END_TEST

static unsigned nr_warnings;

static void
count_warning (void *opaque, enum ploop_log_level level, const char *message)
{
  const char *path = opaque;

  if (level == PLOOP_LOG_WARNING && strstr (message, path))
    nr_warnings++;
}

START_TEST (failing_is_told_once)
{
  struct pair pair;
  struct ploop_open_options options = {
    .copy_delay = PLOOP_MAX_DELAY,
    .copy_on_write = PLOOP_COPY_LAZY,
    .log = count_warning,
  };

  open_lazily (&pair);
  fault_hook = NULL;
  close_image (pair.image);
  options.bases = pair.bases;
  options.log_opaque = pair.lower;
  pair.image = ploop_open (pair.top, &options, NULL);
  ck_assert_ptr_nonnull (pair.image);
  share_no_blocks (pair.image);
  nr_warnings = 0;
  fault_hook = only_the_tester_reads;
  put (&pair, 'x', SECTOR, 0);
  put (&pair, 'x', SECTOR, STEP * CLUSTER);
  fault_hook = nobody_reads;
  ck_assert_int_eq (ploop_flush (pair.image), -EIO);
  ck_assert_int_eq (ploop_flush (pair.image), -EIO);
  ck_assert_uint_eq (nr_warnings, 1);
  fault_hook = NULL;
  ck_assert_int_eq (ploop_flush (pair.image), 0);
  close_lazily (&pair);
}
END_TEST

START_TEST (close_tells_what_cannot_be_filled)
{
  g_autoptr (GError) error = NULL;
  struct pair pair;

  open_lazily (&pair);
  put (&pair, 'x', SECTOR, 0);
  fill (pair.image, STEP, 9);
  fault_hook = nobody_reads;
  ck_assert_int_eq (ploop_close (pair.image, &error), -1);
  ck_assert_ptr_nonnull (strstr (error->message, pair.top));
  let_all_read ();
  pair.image = open_chain (pair.top, pair.bases);
  ck_assert (is_all (pair.image, CLUSTER, 0, 1));
  ck_assert (is_all (pair.image, CLUSTER, STEP * CLUSTER, 9));
  close_pair (&pair);
}
END_TEST

static _Atomic unsigned nr_writes;

/* Of one that is short at first, the rest. */
static int
second_write_fails (const struct fault_event *event)
{
  if (event->call == FAULT_PWRITE)
    return nr_writes++ == 1 ? EIO : 0;
  return only_the_tester_reads (event);
}

/* It has left its first byte where the lower delta's should be one day. */
START_TEST (failed_write_leaves_nothing_behind)
{
  char bytes[SECTOR];
  struct pair pair;

  open_lazily (&pair);
  put (&pair, 'x', SECTOR, 0);
  memset (bytes, 'y', SECTOR);
  nr_writes = 0;
  fault_reset ();
  fault_inject (FAULT_PWRITE, 0, 0, 1);
  fault_hook = second_write_fails;
  ck_assert_int_eq (ploop_pwrite (pair.image, bytes, SECTOR, 9 * SECTOR, 0),
                    -EIO);
  fault_reset ();
  fault_hook = only_the_tester_reads;
  ck_assert (is_changed (&pair, 0, 0, SECTOR, 'x'));
  switch (_i) {
  case 0:
    ck_assert_int_eq (ploop_zero (pair.image, SECTOR, 9 * SECTOR, 0), 0);
    ck_assert (is_all (pair.image, SECTOR, 9 * SECTOR, 0));
    break;
  case 1:
    ck_assert_int_eq (ploop_trim (pair.image, SECTOR, 9 * SECTOR, 0), 0);
    break;
  default:
    ck_assert_int_eq (ploop_flush (pair.image), 0);
    ck_assert (is_changed (&pair, 0, 0, SECTOR, 'x'));
  }
  ck_assert (is_all (pair.image, CLUSTER - 10 * SECTOR, 10 * SECTOR, 1));
  close_lazily (&pair);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, write_is_answered_before_the_rest_is_copied);
  tcase_add_test (tcase, all_of_it_is_there_after_a_flush);
  tcase_add_test (tcase, forced_write_waits_for_the_rest);
  tcase_add_test (tcase, parts_of_sectors_are_as_good_as_sectors);
  tcase_add_test (tcase, cluster_that_is_written_bit_by_bit_is_not_copied);
  tcase_add_loop_test (tcase, what_is_trimmed_or_zeroed_is_not_copied, 0, 3);
  tcase_add_test (tcase, what_is_left_of_a_sector_is_copied);
  tcase_add_test (tcase, holes_of_the_new_cluster_are_not_told);
  tcase_add_test (tcase, suspended_disk_has_whole_clusters);
  tcase_add_test (tcase, rest_is_copied_behind);
  tcase_add_test (tcase, writers_and_who_fills_do_not_meet);
  tcase_add_test (tcase, without_reserved_space_copies_are_eager);
  tcase_add_test (tcase, where_blocks_can_be_shared_copies_are_eager);
  tcase_add_test (tcase, as_many_as_may_be_are_lazy);
  tcase_add_test (tcase, flush_tells_what_cannot_be_filled);
  tcase_add_test (tcase, space_comes_back_though_a_flush_fails);
  tcase_add_test (tcase, failing_is_told_once);
  tcase_add_test (tcase, close_tells_what_cannot_be_filled);
  tcase_add_loop_test (tcase, failed_write_leaves_nothing_behind, 0, 3);
}

int
main (void)
{
  return run_tests ("lazy", add_tests);
}
