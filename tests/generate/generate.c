/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* generate: makes a ploop disk at random, for tests.
 *
 * All of it comes from the seed and the options: the same ones make the same bytes.
 * Beside the disk is what must be read from it.  DIRECTORY, which is created, gets
 *
 *   NAME.hds                    with --kind=image, or else
 *   disk/                       DiskDescriptor.xml and the images, nothing else
 *   expected/TOP.raw            what the disk reads as
 *   expected/{GUID}.raw         what each snapshot reads as
 *   expected/UUID.bits          a bitmap: a character, 0 or 1, for each bit
 *   manifest.tsv                what there is; fields are separated by tabs, none is
 *                               empty, and sizes are bytes:
 *
 *     disk     PATH SIZE STORAGES
 *     content  NAME RAW SIZE
 *     delta    PATH GUID PARENT STORAGE VERSION CLUSTER TRAITS
 *              ALLOCATED LEAKED FREE TAIL
 *     bitmap   PATH UUID GRANULARITY BITS
 *
 * Paths are relative to DIRECTORY.  NAME is TOP or the GUID of a snapshot; GUID and
 * PARENT may be "-".  VERSION is 0 for a raw base.  TRAITS are "-" or, with commas
 * between, ploop (ploop and the kernel take the file), raw, dirty, extension, cut (the
 * file ends inside its last cluster).  The last four are numbers of clusters in the
 * file: those in the BAT, those with data and not in the BAT, the same but holes, and
 * those behind the last one in the BAT.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "disk.h"

/* ---- Writing ----------------------------------------------------------- */

static bool
make_directory (const char *path, GError **error)
{
  if (mkdir (path, 0700) == 0)
    return true;
  g_set_error (error, G_FILE_ERROR, g_file_error_from_errno (errno), "%s: %s",
               path, g_strerror (errno));
  return false;
}

static bool
write_deltas (const char *directory, const struct disk *disk, GRand *dice,
              GError **error)
{
  for (unsigned i = 0; i < disk->nr_shots; i++)
    for (unsigned j = 0; j < disk->nr_storages; j++) {
      struct delta *delta = &disk->shots[i].deltas[j];
      g_autofree char *path = g_build_filename (directory, delta->path, NULL);

      if (!image_write (path, delta, dice, error))
        return false;
    }
  return true;
}

static bool
write_disk (const char *directory, const struct disk *disk, GRand *dice,
            GError **error)
{
  const bool alone = disk->kind == KIND_IMAGE;
  g_autofree char *expected = g_build_filename (directory, "expected", NULL);
  g_autofree char *place =
    g_build_filename (directory, alone ? "." : "disk", NULL);
  g_autofree char *descriptor =
    g_build_filename (place, "DiskDescriptor.xml", NULL);

  return make_directory (directory, error)
         && make_directory (expected, error)
         && (alone || make_directory (place, error))
         && write_deltas (place, disk, dice, error)
         && (alone || descriptor_write (descriptor, disk, dice, error))
         && manifest_write (directory,
                            alone ? disk->shots[0].deltas[0].path : "disk",
                            disk, error);
}

static bool
generate (const char *directory, uint32_t seed, const struct wishes *wishes,
          GError **error)
{
  GRand *dice = g_rand_new_with_seed (seed);
  struct disk *disk = disk_draw (seed, wishes, dice);
  bool written;

  disk_fill (disk, dice);
  written = write_disk (directory, disk, dice, error);
  disk_free (disk);
  g_rand_free (dice);
  return written;
}

/* ---- The command line -------------------------------------------------- */

static bool
parse_kind (const char *text, enum kind *kind, GError **error)
{
  static const char *const kinds[] = { "image", "chain", "tree" };

  for (unsigned i = 0; i < G_N_ELEMENTS (kinds); i++)
    if (strcmp (text, kinds[i]) == 0) {
      *kind = (enum kind) i;
      return true;
    }
  g_set_error (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
               "--kind: '%s' must be image, chain or tree", text);
  return false;
}

static bool
fit_together (const struct wishes *wishes, GError **error)
{
  const char *wrong = NULL;

  if (wishes->version > 2)
    wrong = "--version: must be 1 or 2";
  else if (wishes->nr_deltas > 254)
    wrong = "--deltas: must be at most 254";
  else if (wishes->kind == KIND_IMAGE
           && (wishes->split || wishes->mixed_versions
               || wishes->nr_deltas > 1))
    wrong = "--kind=image: is one delta";
  else if (wishes->kind != KIND_IMAGE && wishes->odd_clusters)
    wrong = "--odd-clusters: of images only";
  else if (wishes->for_ploop
           && (wishes->split || wishes->mixed_versions
               || wishes->odd_clusters || wishes->dirty))
    wrong = "--for-ploop: ploop does not take what else is asked for";
  if (wrong)
    g_set_error_literal (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
                         wrong);
  return wrong == NULL;
}

static bool
parse (int *argc, char ***argv, gint64 *seed, struct wishes *wishes,
       GError **error)
{
  g_autofree char *kind = NULL;
  gboolean split = FALSE, mixed_versions = FALSE, odd_clusters = FALSE;
  gboolean dirty = FALSE, for_ploop = FALSE;
  int version = 0, nr_deltas = 0;
  const GOptionEntry entries[] = {
    { "seed", 0, 0, G_OPTION_ARG_INT64, seed,
      "From which everything is drawn: 0 to 4294967295", "N" },
    { "kind", 0, 0, G_OPTION_ARG_STRING, &kind,
      "One file, or a disk with snapshots (default: image)",
      "image|chain|tree" },
    { "version", 0, 0, G_OPTION_ARG_INT, &version,
      "Version of the format (default: any)", "1|2" },
    { "deltas", 0, 0, G_OPTION_ARG_INT, &nr_deltas,
      "How many deltas a chain or a tree has (default: a few)", "N" },
    { "split", 0, 0, G_OPTION_ARG_NONE, &split,
      "Several storages", NULL },
    { "mixed-versions", 0, 0, G_OPTION_ARG_NONE, &mixed_versions,
      "Any version for each delta", NULL },
    { "odd-clusters", 0, 0, G_OPTION_ARG_NONE, &odd_clusters,
      "Cluster sizes that only qemu takes", NULL },
    { "dirty", 0, 0, G_OPTION_ARG_NONE, &dirty,
      "The top was not closed", NULL },
    { "for-ploop", 0, 0, G_OPTION_ARG_NONE, &for_ploop,
      "Nothing that ploop 1.15 or the kernel does not take", NULL },
    G_OPTION_ENTRY_NULL
  };
  g_autoptr (GOptionContext) context = g_option_context_new ("DIRECTORY");

  g_option_context_add_main_entries (context, entries, NULL);
  if (!g_option_context_parse (context, argc, argv, error)
      || (kind && !parse_kind (kind, &wishes->kind, error)))
    return false;
  wishes->version = (unsigned) version;
  wishes->nr_deltas = (unsigned) nr_deltas;
  wishes->split = split;
  wishes->mixed_versions = mixed_versions;
  wishes->odd_clusters = odd_clusters;
  wishes->dirty = dirty;
  wishes->for_ploop = for_ploop;
  return fit_together (wishes, error);
}

int
main (int argc, char **argv)
{
  gint64 seed = -1;
  struct wishes wishes = { .kind = KIND_IMAGE };
  g_autoptr (GError) error = NULL;

  if (!parse (&argc, &argv, &seed, &wishes, &error)
      || argc != 2 || seed < 0 || seed > UINT32_MAX) {
    fprintf (stderr, "generate: %s\n",
             error ? error->message : "usage: generate --seed=N DIRECTORY");
    return EXIT_FAILURE;
  }
  if (!generate (argv[1], (uint32_t) seed, &wishes, &error)) {
    fprintf (stderr, "generate: %s\n", error->message);
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
