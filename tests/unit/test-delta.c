/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/delta.c and lib/lock.c: what the system does to a call is dealt with
 * once; what is not an image is turned away by name; locks keep out.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "delta.h"
#include "faults.h"
#include "lock.h"
#include "ploop-core.h"
#include "run.h"

static char *
good_image (void)
{
  const struct format_header header = scratch_header (2, 64, 100);

  return scratch_image ("delta", &header, NULL, 10 * 32768);
}

static struct delta *
open_writer (const char *path)
{
  g_autoptr (GError) error = NULL;
  struct delta *delta = delta_open (path, DELTA_LOCK_WRITER, &error);

  ck_assert_msg (delta != NULL, "%s", error ? error->message : "");
  fault_reset ();
  return delta;
}

static void
expect_refused (const char *path, enum delta_lock lock, int code,
                const char *words)
{
  g_autoptr (GError) error = NULL;

  ck_assert_ptr_null (delta_open (path, lock, &error));
  ck_assert_msg (g_error_matches (error, PLOOP_ERROR, code), "%s",
                 error->message);
  ck_assert_msg (strstr (error->message, words) != NULL, "%s",
                 error->message);
  ck_assert_msg (strstr (error->message, path) != NULL, "%s",
                 error->message);
}

START_TEST (interrupted_and_short_calls_are_finished)
{
  g_autofree char *path = good_image ();
  struct delta *delta = open_writer (path);
  char out[1000], in[1000];

  memset (out, 'x', sizeof out);
  fault_inject (FAULT_PWRITE, EINTR, 0, 3);
  ck_assert_int_eq (delta_pwrite (delta, out, sizeof out, 40000), 0);
  fault_inject (FAULT_PWRITE, 0, 0, 10);
  ck_assert_int_eq (delta_pwrite_durable (delta, out, sizeof out, 41000), 0);
  fault_inject (FAULT_PREAD, 0, 0, 10);
  ck_assert_int_eq (delta_pread (delta, in, sizeof in, 40500), 0);
  ck_assert (memcmp (in, out, sizeof in) == 0);
  fault_inject (FAULT_PREAD, EINTR, 0, 3);
  ck_assert_int_eq (delta_pread (delta, in, sizeof in, 41000), 0);
  ck_assert (memcmp (in, out, sizeof in) == 0);
  fault_inject (FAULT_FDATASYNC, EINTR, 0, 2);
  ck_assert_int_eq (delta_sync (delta), 0);
  delta_close (delta);
}
END_TEST

START_TEST (errors_come_back_as_they_are)
{
  g_autofree char *path = good_image ();
  struct delta *delta = open_writer (path);
  char buf[16] = { 0 };

  fault_inject (FAULT_PREAD, EIO, 0, 1);
  ck_assert_int_eq (delta_pread (delta, buf, sizeof buf, 0), -EIO);
  fault_inject (FAULT_PWRITE, ENOSPC, 0, 1);
  ck_assert_int_eq (delta_pwrite (delta, buf, sizeof buf, 40000), -ENOSPC);
  fault_inject (FAULT_FDATASYNC, EIO, 0, 1);
  ck_assert_int_eq (delta_sync (delta), -EIO);
  delta_close (delta);
}
END_TEST

START_TEST (past_the_end_reads_as_zeros)
{
  g_autofree char *path = good_image ();
  struct delta *delta = open_writer (path);
  const uint64_t end = scratch_size (path);
  char buf[100];

  scratch_write (path, "abc", 3, end - 3);
  memset (buf, 'x', sizeof buf);
  ck_assert_int_eq (delta_pread (delta, buf, sizeof buf, end - 3), 0);
  ck_assert (memcmp (buf, "abc\0\0", 5) == 0);
  ck_assert_int_eq (buf[99], 0);
  ck_assert_int_eq (delta_pread (delta, buf, sizeof buf, end + 1000), 0);
  ck_assert_int_eq (buf[0], 0);
  delta_close (delta);
}
END_TEST

/* By the file system, and by writing where it cannot. */
START_TEST (zeroed_range_reads_as_zeros)
{
  g_autofree char *path = good_image ();
  struct delta *delta = open_writer (path);
  char ones[3000], buf[3000];
  const uint64_t size = scratch_size (path);

  if (_i == 1)
    fault_inject (FAULT_FALLOCATE, EOPNOTSUPP, 0, 100);
  memset (ones, 1, sizeof ones);
  scratch_write (path, ones, sizeof ones, 40000);
  ck_assert_int_eq (delta_zero (delta, 1000, 41000), 0);
  scratch_read (path, buf, sizeof buf, 40000);
  ck_assert (memcmp (buf, ones, 1000) == 0);
  ck_assert_int_eq (buf[1000], 0);
  ck_assert_int_eq (buf[1999], 0);
  ck_assert (memcmp (buf + 2000, ones, 1000) == 0);
  /* The size stays, also at and past the end. */
  ck_assert_int_eq (delta_zero (delta, 5000, size - 100), 0);
  ck_assert_int_eq (delta_zero (delta, 5000, size + 100), 0);
  ck_assert_uint_eq (scratch_size (path), size);
  delta_close (delta);
}
END_TEST

START_TEST (punched_range_reads_as_zeros_and_takes_no_space)
{
  g_autofree char *path = good_image ();
  struct delta *delta = open_writer (path);
  g_autofree char *buf = g_malloc (5 * 32768);
  const uint64_t size = scratch_size (path);
  struct stat before, after;
  int r;

  memset (buf, 1, 5 * 32768);
  ck_assert_int_eq (delta_pwrite (delta, buf, 5 * 32768, 5 * 32768), 0);
  ck_assert_int_eq (delta_sync (delta), 0);
  ck_assert_int_eq (stat (path, &before), 0);
  r = delta_punch (delta, 3 * 32768, 6 * 32768);
  if (r != -ENOTSUP) {          /* this file system can */
    ck_assert_int_eq (r, 0);
    ck_assert_int_eq (stat (path, &after), 0);
    ck_assert_int_lt (after.st_blocks, before.st_blocks);
    scratch_read (path, buf, 5 * 32768, 5 * 32768);
    ck_assert_int_eq (buf[32767], 1);
    ck_assert_int_eq (buf[32768], 0);
    ck_assert_int_eq (buf[4 * 32768 - 1], 0);
    ck_assert_int_eq (buf[4 * 32768], 1);
  }
  ck_assert_uint_eq (scratch_size (path), size);
  /* A file system that cannot is asked once. */
  fault_inject (FAULT_FALLOCATE, EOPNOTSUPP, 0, 1);
  ck_assert_int_eq (delta_punch (delta, 32768, 32768), -ENOTSUP);
  ck_assert_int_eq (delta_punch (delta, 32768, 32768), -ENOTSUP);
  delta_close (delta);
}
END_TEST

START_TEST (reserved_space_leaves_size_and_content)
{
  g_autofree char *path = good_image ();
  struct delta *delta = open_writer (path);
  const uint64_t size = scratch_size (path);
  char byte = 1;

  ck_assert_int_eq (delta_pwrite (delta, &byte, 1, size - 1), 0);
  ck_assert_int_eq (delta_reserve (delta, size / 2, size), 0);
  byte = 0;
  scratch_read (path, &byte, 1, size - 1);
  ck_assert_int_eq (byte, 1);
  fault_inject (FAULT_FALLOCATE, ENOSPC, 0, 1);
  ck_assert_int_eq (delta_reserve (delta, size / 2, size), -ENOSPC);
  ck_assert_uint_eq (scratch_size (path), size);
  delta_close (delta);
}
END_TEST

/* A file system that cannot, and a user who wants no space reserved. */
START_TEST (nothing_is_reserved_where_that_is_not_possible_or_wanted)
{
  g_autofree char *path = good_image ();
  struct delta *delta = open_writer (path);

  if (_i == 0) {
    fault_inject (FAULT_FALLOCATE, EOPNOTSUPP, 0, 1);
    ck_assert_int_eq (delta_reserve (delta, 0, 32768), 0);
  }
  else
    delta_reserve_nothing (delta);
  fault_reset ();
  ck_assert_int_eq (delta_reserve (delta, 0, 32768), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FALLOCATE], 0);
  delta_close (delta);
}
END_TEST

START_TEST (what_is_no_image_is_refused_by_name)
{
  g_autofree char *dir = scratch_path ("dir"), *fifo = scratch_path ("fifo");
  g_autofree char *none = scratch_path ("none");
  g_autofree char *tiny = scratch_path ("tiny"), *raw = scratch_path ("raw");
  g_autofree char *zeroes = g_malloc0 (4096);

  ck_assert_int_eq (mkdir (dir, 0700), 0);
  ck_assert_int_eq (mkfifo (fifo, 0600), 0);
  ck_assert (g_file_set_contents (tiny, "WithouFreSpacExt", 16, NULL));
  ck_assert (g_file_set_contents (raw, zeroes, 4096, NULL));
  expect_refused (none, DELTA_LOCK_READER, PLOOP_ERROR_SYSTEM, "No such");
  expect_refused (dir, DELTA_LOCK_READER, PLOOP_ERROR_FORMAT, "a directory");
  expect_refused (fifo, DELTA_LOCK_WRITER, PLOOP_ERROR_FORMAT,
                  "not a regular file");
  expect_refused (tiny, DELTA_LOCK_READER, PLOOP_ERROR_FORMAT,
                  "file size is 16 bytes");
  expect_refused (raw, DELTA_LOCK_READER, PLOOP_ERROR_FORMAT,
                  "signature is \"\"");
  rmdir (dir);
}
END_TEST

START_TEST (writer_keeps_all_out_and_readers_share)
{
  g_autofree char *path = good_image ();
  struct delta *first = delta_open (path, DELTA_LOCK_READER, NULL), *second;

  ck_assert_ptr_nonnull (first);
  second = delta_open (path, DELTA_LOCK_READER, NULL);
  ck_assert_ptr_nonnull (second);
  delta_close (second);
  expect_refused (path, DELTA_LOCK_WRITER, PLOOP_ERROR_IN_USE, "in use by");
  ck_assert_int_eq (lock_look (first->fd), PLOOP_UNLOCKED);
  delta_close (first);

  first = delta_open (path, DELTA_LOCK_WRITER, NULL);
  ck_assert_ptr_nonnull (first);
  expect_refused (path, DELTA_LOCK_WRITER, PLOOP_ERROR_IN_USE, "in use by");
  expect_refused (path, DELTA_LOCK_READER, PLOOP_ERROR_IN_USE, "in use by");
  second = delta_open (path, DELTA_LOCK_NONE, NULL);
  ck_assert_int_eq (lock_look (second->fd), PLOOP_LOCKED_FOR_WRITING);
  delta_close (second);
  delta_close (first);
}
END_TEST

/* libploop 9: a traditional lock of another process on bytes 200 to 204. */
START_TEST (libploop_keeps_us_out)
{
  g_autofree char *path = good_image ();
  int to_parent[2], to_child[2];
  char byte = 0;
  pid_t pid;

  ck_assert_int_eq (pipe (to_parent), 0);
  ck_assert_int_eq (pipe (to_child), 0);
  pid = fork ();
  if (pid == 0) {
    struct flock lock = { .l_type = F_RDLCK, .l_whence = SEEK_SET,
                          .l_start = 200, .l_len = 5 };
    int fd = open (path, O_RDONLY);

    _exit (fcntl (fd, F_SETLK, &lock) == 0
           && write (to_parent[1], &byte, 1) == 1
           && read (to_child[0], &byte, 1) == 1 ? 0 : 1);
  }
  ck_assert_int_eq (read (to_parent[0], &byte, 1), 1);
  expect_refused (path, DELTA_LOCK_WRITER, PLOOP_ERROR_IN_USE, "process");
  expect_refused (path, DELTA_LOCK_READER, PLOOP_ERROR_IN_USE, "process");
  ck_assert_int_eq (write (to_child[1], &byte, 1), 1);
  waitpid (pid, NULL, 0);
}
END_TEST

/* ploop 1.15: flock on the file beside the descriptor. */
START_TEST (descriptor_lock_is_taken_and_respected)
{
  g_autofree char *path = good_image ();
  g_autofree char *dir = g_path_get_dirname (path);
  g_autofree char *xml = g_build_filename (dir, "DiskDescriptor.xml", NULL);
  g_autofree char *lck = g_strconcat (xml, ".lck", NULL);
  struct delta *delta;
  int fd;

  ck_assert (g_file_set_contents (xml, "x", 1, NULL));
  /* A reader leaves no file behind. */
  delta = delta_open (path, DELTA_LOCK_READER, NULL);
  ck_assert_ptr_nonnull (delta);
  delta_close (delta);
  ck_assert_int_eq (access (lck, F_OK), -1);

  delta = delta_open (path, DELTA_LOCK_WRITER, NULL);
  ck_assert_ptr_nonnull (delta);
  fd = open (lck, O_RDONLY | O_CLOEXEC);
  ck_assert_int_ge (fd, 0);
  ck_assert_int_eq (flock (fd, LOCK_EX | LOCK_NB), -1);
  delta_close (delta);
  ck_assert_int_eq (flock (fd, LOCK_EX | LOCK_NB), 0);
  expect_refused (path, DELTA_LOCK_WRITER, PLOOP_ERROR_IN_USE, "by ploop");
  expect_refused (path, DELTA_LOCK_READER, PLOOP_ERROR_IN_USE, "by ploop");
  close (fd);
  unlink (lck);
  unlink (xml);
}
END_TEST

/* Whatever lies under the name of ploop's lock, we do not wait for it. */
START_TEST (odd_lock_file_hangs_nobody)
{
  g_autofree char *path = good_image ();
  g_autofree char *dir = g_path_get_dirname (path);
  g_autofree char *xml = g_build_filename (dir, "DiskDescriptor.xml", NULL);
  g_autofree char *lck = g_strconcat (xml, ".lck", NULL);
  g_autoptr (GError) error = NULL;
  struct delta *delta;

  ck_assert (g_file_set_contents (xml, "x", 1, NULL));
  ck_assert_int_eq (mkfifo (lck, 0600), 0);
  delta = delta_open (path, DELTA_LOCK_READER, NULL);
  ck_assert_ptr_nonnull (delta);
  delta_close (delta);
  ck_assert_ptr_null (delta_open (path, DELTA_LOCK_WRITER, &error));
  ck_assert_ptr_nonnull (strstr (error->message, lck));
  unlink (lck);
  unlink (xml);
}
END_TEST

START_TEST (full_disk_quota_and_size_limit_are_no_space)
{
  ck_assert (delta_is_no_space (-ENOSPC));
  ck_assert (delta_is_no_space (-EDQUOT));
  ck_assert (delta_is_no_space (-EFBIG));
  ck_assert (!delta_is_no_space (-EIO));
  ck_assert (!delta_is_no_space (0));
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, interrupted_and_short_calls_are_finished);
  tcase_add_test (tcase, errors_come_back_as_they_are);
  tcase_add_test (tcase, past_the_end_reads_as_zeros);
  tcase_add_loop_test (tcase, zeroed_range_reads_as_zeros, 0, 2);
  tcase_add_test (tcase, punched_range_reads_as_zeros_and_takes_no_space);
  tcase_add_test (tcase, reserved_space_leaves_size_and_content);
  tcase_add_loop_test (tcase,
                       nothing_is_reserved_where_that_is_not_possible_or_wanted,
                       0, 2);
  tcase_add_test (tcase, what_is_no_image_is_refused_by_name);
  tcase_add_test (tcase, writer_keeps_all_out_and_readers_share);
  tcase_add_test (tcase, libploop_keeps_us_out);
  tcase_add_test (tcase, descriptor_lock_is_taken_and_respected);
  tcase_add_test (tcase, odd_lock_file_hangs_nobody);
  tcase_add_test (tcase, full_disk_quota_and_size_limit_are_no_space);
}

int
main (void)
{
  return run_tests ("delta", add_tests);
}
