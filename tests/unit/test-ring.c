/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/ring.c: writes arrive, fail as pwrite fails, leave nothing behind when
 * their thread ends, and do without a ring where the kernel refuses one.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <glib.h>

#include "ring.h"
#include "run.h"
#include "scratch.h"

#define NR_THREADS 8
#define NR_WRITES 100
#define PIECE 4096

static char *path;
static int fd;

static void
set_up (void)
{
  path = scratch_path ("ring");
  fd = open (path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  ck_assert_int_ge (fd, 0);
}

static void
tear_down (void)
{
  close (fd);
  g_free (path);
}

static unsigned
nr_descriptors (void)
{
  g_autoptr (GDir) dir = g_dir_open ("/proc/self/fd", 0, NULL);
  unsigned nr = 0;

  ck_assert_ptr_nonnull (dir);
  while (g_dir_read_name (dir))
    nr++;
  return nr;
}

/* Thread N fills its pieces with N. */
static void *
write_pieces (void *opaque)
{
  const int number = GPOINTER_TO_INT (opaque);
  char piece[PIECE];

  memset (piece, number, sizeof piece);
  if (!ring_is_there ())
    return NULL;
  for (int i = 0; i < NR_WRITES; i++) {
    const off_t at = (off_t) (i * NR_THREADS + number) * PIECE;

    if (ring_pwrite (fd, piece, sizeof piece, at) != PIECE)
      return NULL;
  }
  return opaque;
}

START_TEST (threads_write_and_leave_nothing_behind)
{
  pthread_t threads[NR_THREADS];
  char piece[PIECE], expected[PIECE];
  unsigned before;

  set_up ();
  if (!ring_is_there ()) {
    tear_down ();
    return;
  }
  before = nr_descriptors ();
  for (int n = 1; n < NR_THREADS; n++)
    pthread_create (&threads[n], NULL, write_pieces, GINT_TO_POINTER (n));
  for (int n = 1; n < NR_THREADS; n++) {
    void *result;

    pthread_join (threads[n], &result);
    ck_assert_ptr_eq (result, GINT_TO_POINTER (n));
  }
  ck_assert_uint_eq (nr_descriptors (), before);
  for (int i = 0; i < NR_WRITES * NR_THREADS; i++) {
    memset (expected, i % NR_THREADS, sizeof expected);
    ck_assert_int_gt (pread (fd, piece, sizeof piece, (off_t) i * PIECE), 0);
    ck_assert_mem_eq (piece, expected, sizeof piece);
  }
  tear_down ();
}
END_TEST

START_TEST (write_fails_as_pwrite_does)
{
  char piece[PIECE] = "";
  int reader;

  set_up ();
  reader = open (path, O_RDONLY | O_CLOEXEC);
  ck_assert_int_ge (reader, 0);
  if (ring_is_there ()) {
    errno = 0;
    ck_assert_int_eq (ring_pwrite (reader, piece, sizeof piece, 0), -1);
    ck_assert_int_eq (errno, EBADF);
    ck_assert_int_eq (ring_pwrite (fd, piece, sizeof piece, 0), PIECE);
  }
  close (reader);
  tear_down ();
}
END_TEST

/* Asks when no descriptor is left for a ring, and when there is one again. */
static void *
ask (void *opaque)
{
  struct rlimit limit, none;
  bool *there = opaque;

  getrlimit (RLIMIT_NOFILE, &limit);
  none = (struct rlimit) { 0, limit.rlim_max };
  setrlimit (RLIMIT_NOFILE, &none);
  there[0] = ring_is_there ();
  setrlimit (RLIMIT_NOFILE, &limit);
  there[1] = ring_is_there ();
  return NULL;
}

/* The last: nobody in this process asks the kernel again. */
START_TEST (kernel_may_refuse)
{
  bool there[2] = { true, true };
  pthread_t thread;

  pthread_create (&thread, NULL, ask, there);
  pthread_join (thread, NULL);
  ck_assert (!there[0]);
  ck_assert (!there[1]);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, threads_write_and_leave_nothing_behind);
  tcase_add_test (tcase, write_fails_as_pwrite_does);
  tcase_add_test (tcase, kernel_may_refuse);
}

int
main (void)
{
  return run_tests ("ring", add_tests);
}
