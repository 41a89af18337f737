/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/disk-info.c, lib/snapshots.c and lib/check-disk.c, by the public API: what is told
 * of a disk of two images, and of one image.
 */

#include <config.h>

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ploop-core.h"
#include "run.h"

#define CLUSTER 32768u
#define NR_CLUSTERS 10u
#define BASE "{00000001-1111-2222-3333-444444444444}"
#define TOP "{5fbaabe3-6958-40ff-92a7-860e329aab41}"

static const char xml[] =
  "<Parallels_disk_image><Disk_Parameters><Disk_size>640</Disk_size>"
  "</Disk_Parameters><StorageData><Storage><Start>0</Start><End>640</End>"
  "<Blocksize>64</Blocksize>"
  "<Image><GUID>" BASE "</GUID><File>base.hds</File></Image>"
  "<Image><GUID>" TOP "</GUID><File>top.hds</File></Image>"
  "</Storage></StorageData><Snapshots><TopGUID>" TOP "</TopGUID>"
  "<Shot><GUID>" TOP "</GUID><ParentGUID>" BASE "</ParentGUID></Shot>"
  "<Shot><GUID>" BASE "</GUID><ParentGUID>"
  "{00000000-0000-0000-0000-000000000000}</ParentGUID><Temporary/></Shot>"
  "</Snapshots></Parallels_disk_image>";

static void
create (const char *directory, const char *name, unsigned nr_clusters)
{
  const struct ploop_create_options options = {
    .size = (uint64_t) nr_clusters * CLUSTER,
    .cluster_size = CLUSTER,
  };
  g_autofree char *path = g_build_filename (directory, name, NULL);

  ck_assert_int_eq (ploop_create (path, &options, NULL), 0);
}

/* A directory that holds the disk (g_free). */
static char *
make_disk (void)
{
  char *directory = scratch_path ("disk");
  g_autofree char *descriptor =
    g_build_filename (directory, "DiskDescriptor.xml", NULL);

  ck_assert_int_eq (mkdir (directory, 0700), 0);
  create (directory, "base.hds", NR_CLUSTERS - 1);
  create (directory, "top.hds", NR_CLUSTERS);
  ck_assert (g_file_set_contents (descriptor, xml, -1, NULL));
  return directory;
}

/* ---- Snapshots --------------------------------------------------------- */

START_TEST (tree_has_the_top_behind_what_it_rests_on)
{
  g_autofree char *disk = make_disk ();
  g_autoptr (GPtrArray) tree = ploop_list_tree (disk, false, NULL);
  const struct ploop_snapshot *base, *top;

  ck_assert_ptr_nonnull (tree);
  ck_assert_uint_eq (tree->len, 2);
  base = g_ptr_array_index (tree, 0);
  top = g_ptr_array_index (tree, 1);
  ck_assert_str_eq (base->guid, BASE);
  ck_assert_ptr_null (base->parent);
  ck_assert (base->is_temporary && !base->is_current);
  ck_assert_uint_eq (base->depth, 0);
  ck_assert_uint_eq (base->size, (NR_CLUSTERS - 1) * CLUSTER);
  ck_assert_str_eq (top->guid, TOP);
  ck_assert_str_eq (top->parent, BASE);
  ck_assert (!top->is_temporary && top->is_current);
  ck_assert_uint_eq (top->depth, 1);
  ck_assert_ptr_null (top->problem);
}
END_TEST

START_TEST (list_has_no_top)
{
  g_autofree char *disk = make_disk ();
  g_autoptr (GPtrArray) list = ploop_list_snapshots (disk, false, NULL);
  const struct ploop_snapshot *base;

  ck_assert_ptr_nonnull (list);
  ck_assert_uint_eq (list->len, 1);
  base = g_ptr_array_index (list, 0);
  ck_assert_str_eq (base->guid, BASE);
}
END_TEST

START_TEST (image_has_no_tree)
{
  g_autofree char *disk = make_disk ();
  g_autofree char *image = g_build_filename (disk, "top.hds", NULL);
  g_autoptr (GError) error = NULL;

  ck_assert_ptr_null (ploop_list_tree (image, false, &error));
  ck_assert (g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT));
}
END_TEST

/* ---- What a disk is ---------------------------------------------------- */

START_TEST (disk_is_described_with_its_deltas)
{
  g_autofree char *disk = make_disk ();
  struct ploop_disk_info *info = ploop_describe_disk (disk, false, NULL);
  const struct ploop_delta_info *base;

  ck_assert_ptr_nonnull (info);
  ck_assert (!info->is_image);
  ck_assert_uint_eq (info->size, NR_CLUSTERS * CLUSTER);
  ck_assert_uint_eq (info->descriptor_size, 640 * 512);
  ck_assert_str_eq (info->top, TOP);
  ck_assert_uint_eq (info->parts->len, 1);
  ck_assert_uint_eq (info->snapshots->len, 2);
  ck_assert_uint_eq (info->deltas->len, 2);
  base = g_ptr_array_index (info->deltas, 0);
  ck_assert_str_eq (base->guid, BASE);
  ck_assert (base->has_shot && !base->is_raw);
  ck_assert_ptr_null (base->problem);
  ck_assert_uint_eq (base->info.nr_clusters, NR_CLUSTERS - 1);
  ck_assert_int_eq (base->extension, PLOOP_EXTENSION_NONE);
  ploop_disk_info_free (info);
}
END_TEST

START_TEST (image_is_described_alone)
{
  g_autofree char *disk = make_disk ();
  g_autofree char *image = g_build_filename (disk, "top.hds", NULL);
  struct ploop_disk_info *info = ploop_describe_disk (image, false, NULL);
  const struct ploop_delta_info *only;

  ck_assert_ptr_nonnull (info);
  ck_assert (info->is_image);
  ck_assert_uint_eq (info->deltas->len, 1);
  only = g_ptr_array_index (info->deltas, 0);
  ck_assert_str_eq (only->file, image);
  ck_assert_str_eq (only->guid, TOP);
  ck_assert_str_eq (only->parent, BASE);
  ploop_disk_info_free (info);
  ploop_disk_info_free (NULL);
}
END_TEST

START_TEST (delta_that_is_missing_has_a_problem)
{
  g_autofree char *disk = make_disk ();
  g_autofree char *image = g_build_filename (disk, "top.hds", NULL);
  struct ploop_disk_info *info;
  const struct ploop_delta_info *top;

  ck_assert_int_eq (unlink (image), 0);
  info = ploop_describe_disk (disk, false, NULL);
  ck_assert_ptr_nonnull (info);
  ck_assert_uint_eq (info->size, 0);
  top = g_ptr_array_index (info->deltas, 1);
  ck_assert_ptr_nonnull (top->problem);
  ploop_disk_info_free (info);
}
END_TEST

/* ---- Checking ---------------------------------------------------------- */

static void
note_file (void *opaque, const char *file, enum ploop_finding finding,
           const char *message)
{
  GString *notes = opaque;
  g_autofree char *name = g_path_get_basename (file);

  if (finding == PLOOP_FINDING_ERROR)
    g_string_append_printf (notes, "%s: %s\n", name, message);
}

START_TEST (findings_name_their_file)
{
  g_autofree char *disk = make_disk ();
  g_autofree char *image = g_build_filename (disk, "base.hds", NULL);
  g_autoptr (GString) notes = g_string_new (NULL);
  struct ploop_check_result result;

  scratch_write_le32 (image, 1000, 64);
  ck_assert_int_eq (ploop_check_disk (disk, false, note_file, notes, &result,
                                      NULL), 0);
  ck_assert_uint_eq (result.nr_errors, 1);
  ck_assert_uint_eq (result.nr_clusters, 2 * NR_CLUSTERS - 1);
  ck_assert_msg (g_str_has_prefix (notes->str, "base.hds: BAT entry 0 is 1000"),
                 "%s", notes->str);
}
END_TEST

START_TEST (nobody_need_listen)
{
  g_autofree char *disk = make_disk ();
  g_autofree char *absent = scratch_path ("absent");

  ck_assert_int_eq (ploop_check_disk (disk, false, NULL, NULL, NULL, NULL), 0);
  ck_assert_int_eq (ploop_check_disk (absent, false, NULL, NULL, NULL, NULL),
                    -1);
  ck_assert_ptr_null (ploop_describe_disk (absent, false, NULL));
  ck_assert_ptr_null (ploop_list_tree (absent, false, NULL));
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, tree_has_the_top_behind_what_it_rests_on);
  tcase_add_test (tcase, list_has_no_top);
  tcase_add_test (tcase, image_has_no_tree);
  tcase_add_test (tcase, disk_is_described_with_its_deltas);
  tcase_add_test (tcase, image_is_described_alone);
  tcase_add_test (tcase, delta_that_is_missing_has_a_problem);
  tcase_add_test (tcase, findings_name_their_file);
  tcase_add_test (tcase, nobody_need_listen);
}

int
main (void)
{
  return run_tests ("describe", add_tests);
}
