/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/parts.c: a split disk behaves as one, whichever way a request goes and
 * wherever it crosses from one part into the next.
 */

#include <config.h>

#include <errno.h>
#include <semaphore.h>
#include <string.h>

#include <glib/gstdio.h>

#include "ploop-core.h"
#include "run.h"

#define CLUSTER 32768u
#define NR_PARTS 3u
/* The last part's header says more than the descriptor: it has grown. */
#define NR_CLUSTERS 10u
#define NR_GROWN 4u
#define PART ((uint64_t) NR_CLUSTERS * CLUSTER)
#define SIZE (NR_PARTS * PART + NR_GROWN * CLUSTER)

static char *
name_of (unsigned part)
{
  return g_strdup_printf ("part-%u.hds", part);
}

/* The descriptor's path. */
static char *
make_disk (void)
{
  char *directory = scratch_path ("split");
  char *path = g_build_filename (directory, "DiskDescriptor.xml", NULL);
  g_autoptr (GString) xml = g_string_new (NULL);

  ck_assert_int_eq (g_mkdir (directory, 0700), 0);
  g_string_append_printf (xml, "<Parallels_disk_image><Disk_Parameters>"
                          "<Disk_size>%u</Disk_size><Padding>0</Padding>"
                          "</Disk_Parameters><StorageData>",
                          (unsigned) (NR_PARTS * PART / 512));
  for (unsigned i = 0; i < NR_PARTS; i++) {
    const struct format_header header =
      scratch_header (2, CLUSTER / 512,
                      NR_CLUSTERS + (i + 1 == NR_PARTS ? NR_GROWN : 0));
    g_autofree char *name = name_of (i);
    g_autofree char *to = g_build_filename (directory, name, NULL);
    g_autofree char *image = scratch_image (name, &header, NULL, CLUSTER);

    ck_assert_int_eq (g_rename (image, to), 0);
    g_string_append_printf (
      xml, "<Storage><Start>%u</Start><End>%u</End><Blocksize>%u</Blocksize>"
           "<Image><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>"
           "<Type>Compressed</Type><File>%s</File></Image></Storage>",
      (unsigned) (i * PART / 512), (unsigned) ((i + 1) * PART / 512),
      CLUSTER / 512, name);
  }
  g_string_append (xml, "</StorageData><Snapshots><Shot><GUID>"
                   "{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><ParentGUID>"
                   "{00000000-0000-0000-0000-000000000000}</ParentGUID></Shot>"
                   "</Snapshots></Parallels_disk_image>");
  ck_assert (g_file_set_contents (path, xml->str, -1, NULL));
  g_free (directory);
  return path;
}

static ploop_image *
open_disk (const char *path, const struct ploop_open_options *options)
{
  g_autoptr (GError) error = NULL;
  ploop_image *image = ploop_open (path, options, &error);

  ck_assert_msg (image != NULL, "%s", error ? error->message : "");
  return image;
}

/* ---- Requests ---------------------------------------------------------- */

struct answer {
  sem_t come;
  int result;
};

static void
take_answer (ploop_request *request, int result)
{
  struct answer *answer = request->opaque;

  answer->result = result;
  sem_post (&answer->come);
}

/* Submit and wait, or just wait. */
static int
request (ploop_image *image, bool submit, enum ploop_operation operation,
         void *buf, uint64_t length, uint64_t offset, unsigned flags)
{
  struct answer answer;
  ploop_request r = {
    .operation = operation, .flags = flags, .buf = buf, .length = length,
    .offset = offset, .complete = take_answer, .opaque = &answer,
  };

  if (submit) {
    ck_assert_int_eq (sem_init (&answer.come, 0, 0), 0);
    ck_assert_int_eq (ploop_submit (image, &r), 0);
    while (sem_wait (&answer.come) == -1)
      continue;
    return answer.result;
  }
  switch (operation) {
  case PLOOP_READ:
    return ploop_pread (image, buf, length, offset);
  case PLOOP_WRITE:
    return ploop_pwrite (image, buf, length, offset, flags);
  case PLOOP_ZERO:
    return ploop_zero (image, length, offset, flags);
  case PLOOP_TRIM:
    return ploop_trim (image, length, offset, flags);
  default:
    return ploop_flush (image);
  }
}

static void
compare (ploop_image *image, bool submit, const uint8_t *model)
{
  g_autofree uint8_t *buf = g_malloc (SIZE);

  ck_assert_int_eq (request (image, submit, PLOOP_READ, buf, SIZE, 0, 0), 0);
  ck_assert_mem_eq (buf, model, SIZE);
}

/* _i: by submission, or waiting. */
START_TEST (split_disk_is_one_disk)
{
  g_autofree char *path = make_disk ();
  g_autofree uint8_t *model = g_malloc0 (SIZE);
  g_autofree uint8_t *buf = g_malloc (2 * PART + 1000);
  ploop_image *image = open_disk (path, NULL);
  const bool submit = _i == 1;

  ck_assert_uint_eq (ploop_size (image), SIZE);
  compare (image, submit, model);
  for (unsigned i = 0; i < 300; i++) {
    const uint64_t border = PART * (uint64_t) g_random_int_range (1, NR_PARTS);
    const uint64_t offset =
      border - (uint64_t) g_random_int_range (0, (gint32) PART);
    const uint64_t wanted =
      (uint64_t) g_random_int_range (1, 2 * (gint32) PART);
    const uint64_t length = MIN (wanted, SIZE - offset);
    const unsigned flags = g_random_boolean () ? PLOOP_FUA : 0;

    if (i % 4 == 0) {
      memset (model + offset, 0, length);
      ck_assert_int_eq (request (image, submit, PLOOP_ZERO, NULL, length,
                                 offset, flags | PLOOP_UNMAP), 0);
    }
    else {
      memset (buf, (int) i, length);
      memset (model + offset, (int) i, length);
      ck_assert_int_eq (request (image, submit, PLOOP_WRITE, buf, length,
                                 offset, flags), 0);
    }
    if (i % 50 == 0) {
      ck_assert_int_eq (request (image, submit, PLOOP_FLUSH, NULL, 0, 0, 0),
                        0);
      compare (image, submit, model);
    }
  }
  ck_assert_int_eq (ploop_close (image, NULL), 0);
  image = open_disk (path, NULL);
  compare (image, submit, model);
  ck_assert_int_eq (ploop_close (image, NULL), 0);
}
END_TEST

static int
add_extent (void *opaque, uint64_t offset, uint64_t length, bool hole)
{
  uint8_t *map = opaque;

  ck_assert_uint_le (offset + length, SIZE);
  memset (map + offset, hole ? 1 : 2, length);
  return 0;
}

START_TEST (extents_of_all_parts_are_told)
{
  g_autofree char *path = make_disk ();
  g_autofree uint8_t *map = g_malloc0 (SIZE);
  ploop_image *image = open_disk (path, NULL);
  const uint64_t at = PART + CLUSTER;
  const char byte = 1;

  ck_assert_int_eq (ploop_pwrite (image, &byte, 1, at, 0), 0);
  ck_assert_int_eq (ploop_extents (image, SIZE, 0, 0, add_extent, map), 0);
  for (uint64_t i = 0; i < SIZE; i++)
    ck_assert_uint_eq (map[i], i >= at && i < at + CLUSTER ? 2 : 1);
  ck_assert_int_eq (ploop_prefetch (image, SIZE, 0), 0);
  ck_assert_int_eq (ploop_close (image, NULL), 0);
}
END_TEST

START_TEST (range_past_the_end_is_refused)
{
  g_autofree char *path = make_disk ();
  ploop_image *image = open_disk (path, NULL);
  char byte;

  ck_assert_int_eq (ploop_pread (image, &byte, 1, SIZE), -EINVAL);
  ck_assert_int_eq (ploop_pread (image, &byte, 0, SIZE), 0);
  ck_assert_int_eq (ploop_trim (image, SIZE, 1, 0), -EINVAL);
  ck_assert_int_eq (ploop_close (image, NULL), 0);
}
END_TEST

START_TEST (one_part_that_cannot_be_written_makes_all_read_only)
{
  const struct ploop_open_options reading = { .read_only = true };
  g_autofree char *path = make_disk ();
  ploop_image *image = open_disk (path, &reading);
  const char byte = 1;

  ck_assert (ploop_is_read_only (image));
  ck_assert_int_eq (ploop_pwrite (image, &byte, 1, 0, 0), -EROFS);
  ck_assert_int_eq (ploop_flush (image), 0);
  ck_assert_int_eq (ploop_close (image, NULL), 0);
}
END_TEST

START_TEST (suspended_disk_is_committed_in_all_parts)
{
  g_autofree char *path = make_disk ();
  g_autofree uint8_t *buf = g_malloc0 (SIZE);
  struct ploop_statistics before, after;
  ploop_image *image = open_disk (path, NULL);

  memset (buf, 3, SIZE);
  ck_assert_int_eq (ploop_pwrite (image, buf, SIZE, 0, 0), 0);
  ck_assert_int_eq (ploop_suspend (image), 0);
  ploop_get_statistics (image, &before);
  ck_assert_uint_ge (before.nr_commits, NR_PARTS);
  ploop_resume (image);
  ck_assert_int_eq (ploop_flush (image), 0);
  ploop_get_statistics (image, &after);
  ck_assert_uint_eq (after.nr_syncs, before.nr_syncs);
  ck_assert_int_eq (ploop_close (image, NULL), 0);
}
END_TEST

START_TEST (part_that_is_too_short_is_refused)
{
  g_autofree char *path = make_disk ();
  g_autofree char *directory = g_path_get_dirname (path);
  g_autofree char *name = name_of (0);
  g_autofree char *part = g_build_filename (directory, name, NULL);
  const struct format_header header =
    scratch_header (2, CLUSTER / 512, NR_CLUSTERS - 1);
  g_autofree char *shorter = scratch_image ("shorter", &header, NULL, CLUSTER);
  g_autoptr (GError) error = NULL;

  ck_assert_int_eq (g_rename (shorter, part), 0);
  ck_assert_ptr_null (ploop_open (path, NULL, &error));
  ck_assert (g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT));
  ck_assert_ptr_nonnull (strstr (error->message, "<Storage> number 0"));
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_loop_test (tcase, split_disk_is_one_disk, 0, 2);
  tcase_add_test (tcase, extents_of_all_parts_are_told);
  tcase_add_test (tcase, range_past_the_end_is_refused);
  tcase_add_test (tcase, one_part_that_cannot_be_written_makes_all_read_only);
  tcase_add_test (tcase, suspended_disk_is_committed_in_all_parts);
  tcase_add_test (tcase, part_that_is_too_short_is_refused);
}

int
main (void)
{
  return run_tests ("parts", add_tests);
}
