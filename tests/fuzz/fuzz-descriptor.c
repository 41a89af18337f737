/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Any bytes at all as a DiskDescriptor.xml: no input may crash or hang the
 * library, or lead out of its directory; a refusal says why.  What loads can be
 * stored, and says the same then, but for what was changed.
 *
 * Two ways to run: under libFuzzer ("make fuzz", with clang), and by itself,
 * with descriptors that this program damages at random, for a while or for
 * PLOOP_TEST_SCALE per cent of it.  Files named on the command line are tried
 * as they are.
 */

#include <config.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <glib.h>

#include "descriptor.h"

/* A hostile descriptor names many; the first are tried. */
#define MAX_TRIED 20u

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* No power is cut here; syncs would take most of the time. */
int
fsync (int fd)
{
  (void) fd;
  return 0;
}

static void
must (bool ok, const char *what)
{
  if (ok)
    return;
  perror (what);
  abort ();
}

/* ---- A directory with files that inputs may name ------------------------ */

static char *outer, *directory, *xml;

static const char *const files[] = { "disk/root.hds", "disk/a/b.hds",
                                     "out.hds" };
static const char *const links[][2] = {
  { "root.hds", "disk/link" }, { "../out.hds", "disk/out" },
  { "..", "disk/up" }, { "loop", "disk/loop" },
};

static char *
outer_path (const char *name)
{
  return g_build_filename (outer, name, NULL);
}

static void
make_directory (void)
{
  g_autofree char *below = NULL;
  char *real;

  if (outer)
    return;
  outer = g_dir_make_tmp ("ploop-fuzz-XXXXXX", NULL);
  must (outer != NULL, "temporary directory");
  real = realpath (outer, NULL);
  g_free (outer);
  outer = g_strdup (real);
  free (real);
  directory = outer_path ("disk");
  xml = outer_path ("disk/DiskDescriptor.xml");
  below = outer_path ("disk/a");
  must (mkdir (directory, 0700) == 0 && mkdir (below, 0700) == 0, "mkdir");
  for (size_t i = 0; i < G_N_ELEMENTS (files); i++) {
    g_autofree char *path = outer_path (files[i]);

    must (g_file_set_contents (path, files[i], -1, NULL), path);
  }
  for (size_t i = 0; i < G_N_ELEMENTS (links); i++) {
    g_autofree char *path = outer_path (links[i][1]);

    must (symlink (links[i][0], path) == 0, path);
  }
}

/* ---- What must hold ---------------------------------------------------- */

/* A refusal says in which file, and can be printed. */
static void
expect_told (const GError *error)
{
  must (error && error->domain == PLOOP_ERROR, "no error");
  must (g_str_has_prefix (error->message, xml), error->message);
  must (g_utf8_validate (error->message, -1, NULL), error->message);
  must (strlen (error->message) < 4096, error->message);
}

static void
open_images (const struct descriptor *descriptor, const GPtrArray *chain)
{
  g_autofree char *inside = g_strconcat (directory, "/", NULL);

  must (chain->len > 0 && chain->len <= DESCRIPTOR_MAX_LEVELS, "levels");
  for (guint i = 0; i < chain->len && i < MAX_TRIED; i++) {
    const struct descriptor_image *image = g_ptr_array_index (chain, i);
    g_autoptr (GError) error = NULL;
    g_autofree char *path = NULL;
    int fd = descriptor_open_file (descriptor, image, false, &path, &error);

    if (fd == -1) {
      expect_told (error);
      continue;
    }
    must (g_str_has_prefix (path, inside), path);
    close (fd);
  }
}

static void
try_chain (const struct descriptor *descriptor, guint storage,
           const char *guid)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (GPtrArray) chain =
    descriptor_chain (descriptor, storage, guid, &error);

  if (chain)
    open_images (descriptor, chain);
  else
    expect_told (error);
}

static void
try_chains (const struct descriptor *descriptor)
{
  for (guint i = 0; i < descriptor->storages->len && i < MAX_TRIED; i++) {
    try_chain (descriptor, i, NULL);
    for (guint n = 0; n < descriptor->shots->len && n < MAX_TRIED; n++) {
      const struct descriptor_shot *shot =
        g_ptr_array_index (descriptor->shots, n);

      try_chain (descriptor, i, shot->guid);
      must (descriptor_find_shot (descriptor, shot->guid) != NULL, "shot");
      descriptor_find_parent (descriptor, shot);
    }
  }
}

/* All that was read, in one text (g_free). */
static char *
describe (const struct descriptor *descriptor)
{
  g_autoptr (GString) text = g_string_new (NULL);

  g_string_append_printf (text, "%" G_GUINT64_FORMAT " %s\n",
                          descriptor->size_sectors, descriptor->top_guid);
  for (guint i = 0; i < descriptor->storages->len; i++) {
    const struct descriptor_storage *storage =
      g_ptr_array_index (descriptor->storages, i);

    g_string_append_printf (text, "%" G_GUINT64_FORMAT " %" G_GUINT64_FORMAT
                            " %u\n", storage->start_sectors,
                            storage->end_sectors, storage->cluster_sectors);
    for (guint n = 0; n < storage->images->len; n++) {
      const struct descriptor_image *image =
        g_ptr_array_index (storage->images, n);

      g_string_append_printf (text, "%s %d %s\n", image->guid,
                              image->is_plain, image->file);
    }
  }
  for (guint i = 0; i < descriptor->shots->len; i++) {
    const struct descriptor_shot *shot =
      g_ptr_array_index (descriptor->shots, i);

    g_string_append_printf (text, "%s %s %u\n", shot->guid,
                            shot->parent_guid ? shot->parent_guid : "-",
                            shot->temporary);
  }
  return g_strdup (text->str);
}

/* Store, load, and compare.  Returns the file (g_free). */
static char *
store (struct descriptor *descriptor)
{
  g_autoptr (Descriptor) again = NULL;
  g_autoptr (GError) error = NULL;
  g_autofree char *before = describe (descriptor), *after = NULL;
  char *text;

  must (descriptor_store (descriptor, &error),
        error ? error->message : "store");
  must (g_file_get_contents (xml, &text, NULL, NULL), xml);
  if (strlen (text) > DESCRIPTOR_MAX_SIZE)
    return text;
  again = descriptor_load (xml, &error);
  must (again != NULL, error ? error->message : "load");
  after = describe (again);
  must (strcmp (before, after) == 0, "what was stored says something else");
  return text;
}

static void
try_store (struct descriptor *descriptor)
{
  g_autofree char *first = store (descriptor), *second = NULL;
  const struct descriptor_shot *shot =
    g_ptr_array_index (descriptor->shots, descriptor->shots->len - 1);

  second = store (descriptor);
  must (strcmp (first, second) == 0, "stored twice, and not the same");
  descriptor_set_size_sectors (descriptor, 12345, NULL);
  must (descriptor_set_top (descriptor, shot->guid, NULL), "set_top");
  g_free (store (descriptor));
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  g_autoptr (Descriptor) descriptor = NULL;
  g_autoptr (GError) error = NULL;
  int fd;

  make_directory ();
  unlink (xml);
  fd = open (xml, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  must (fd >= 0 && write (fd, data, size) == (ssize_t) size, xml);
  close (fd);

  descriptor = descriptor_load (xml, &error);
  if (!descriptor) {
    expect_told (error);
    return 0;
  }
  try_chains (descriptor);
  try_store (descriptor);
  return 0;
}

#ifndef WITH_LIBFUZZER

/* ---- By itself --------------------------------------------------------- */

#define G1 "{00000001-1111-2222-3333-444444444444}"
#define NONE "{00000000-0000-0000-0000-000000000000}"

static const char *const seeds[] = {
  /* A snapshot. */
  "<?xml version=\"1.0\"?>\n<Parallels_disk_image>\n  <Disk_Parameters>\n"
  "    <Disk_size>16384</Disk_size>\n    <Padding>0</Padding>\n"
  "  </Disk_Parameters>\n  <StorageData>\n    <Storage>\n"
  "      <Start>0</Start>\n      <End>16384</End>\n"
  "      <Blocksize>64</Blocksize>\n      <Image>\n"
  "        <GUID>" G1 "</GUID>\n        <Type>Compressed</Type>\n"
  "        <File>root.hds</File>\n      </Image>\n      <Image>\n"
  "        <GUID>" DESCRIPTOR_TOP_GUID "</GUID>\n"
  "        <Type>Compressed</Type>\n        <File>a/b.hds</File>\n"
  "      </Image>\n    </Storage>\n  </StorageData>\n  <Snapshots>\n"
  "    <TopGUID>" DESCRIPTOR_TOP_GUID "</TopGUID>\n    <Shot>\n"
  "      <GUID>" G1 "</GUID>\n      <ParentGUID>" NONE "</ParentGUID>\n"
  "    </Shot>\n    <Shot>\n      <GUID>" DESCRIPTOR_TOP_GUID "</GUID>\n"
  "      <ParentGUID>" G1 "</ParentGUID>\n    </Shot>\n  </Snapshots>\n"
  "</Parallels_disk_image>\n",
  /* A split disk without snapshots, and with what ploop does not know. */
  "<?xml version='1.0' encoding='UTF-8'?><!-- c -->\n"
  "<x:Virtuozzo_disk_image xmlns:x='urn:x' Version='1.0'>\n"
  "<x:Disk_Parameters><Disk_size>0x80</Disk_size><UID a='b'/>\n"
  "<Name><![CDATA[<n>]]></Name></x:Disk_Parameters>\n"
  "<StorageData><Storage><Start>64</Start><End>128</End>\n"
  "<Blocksize>63</Blocksize><Image><GUID>" G1 "</GUID>\n"
  "<Type>Plain</Type><File>link</File></Image></Storage>\n"
  "<Storage><Start>0</Start><End>64</End><Blocksize>63</Blocksize>\n"
  "<Image><GUID>" G1 "</GUID><File> link\n</File></Image></Storage>\n"
  "</StorageData><?pi x?>\n</x:Virtuozzo_disk_image>\n",
};

static const char *const words[] = {
  G1, NONE, DESCRIPTOR_TOP_GUID, "5FBAABE3-6958-40FF-92A7-860E329AAB41",
  "{xyz}", "0", "1", "64", "128", "0x7fffffffffffffff", "0xffffffffffffffff",
  "18446744073709551616", "-1", "", " ", "\n", "&lt;", "&#13;", "&#0;", "&a;",
  "../out.hds", "out", "up/out.hds", "up/disk/root.hds", "/etc/passwd", "loop",
  "a", ".", "/", "/proc/self/cwd/x", "<!-- x -->", "<?x y?>", "<![CDATA[1]]>",
  "<a>", "</a>", "<a/>", "<Shot>", "</Shot>", "<Temporary/>", "xmlns='urn:y'",
  "<!DOCTYPE a [<!ENTITY a 'b'>]>", "Plain", "Compressed", "\xef\xbb\xbf",
  "\xff", "\xc3\xa4", "]]>", "--", "\x01", "<x:y>", "x:", "<", ">", "&", "'",
};

/* Where a text may begin: behind a ">", mostly. */
static gsize
pick (GRand *random, const GString *text)
{
  const char *found;
  gsize at = (gsize) g_rand_int_range (random, 0, (gint32) text->len + 1);

  if (g_rand_int_range (random, 0, 4) == 0)
    return at;
  found = strchr (text->str + at, '>');
  return found ? (gsize) (found + 1 - text->str) : at;
}

static void
damage_once (GRand *random, GString *text)
{
  const char *word =
    words[g_rand_int_range (random, 0, G_N_ELEMENTS (words))];
  const gsize at = pick (random, text), to = pick (random, text);
  const gsize length = strcspn (text->str + at, "<");

  switch (g_rand_int_range (random, 0, 5)) {
  case 0:                       /* another text in an element */
  case 1:
    g_string_erase (text, (gssize) at, (gssize) length);
    g_string_insert (text, (gssize) at, word);
    break;
  case 2:
    g_string_insert (text, (gssize) at, word);
    break;
  case 3:
    if (to > at)
      g_string_erase (text, (gssize) at, (gssize) (to - at));
    break;
  default:
    if (to > at) {
      g_autofree char *piece = g_strndup (text->str + at, to - at);

      g_string_insert (text, (gssize) pick (random, text), piece);
    }
  }
}

static void
try_damaged (GRand *random)
{
  g_autoptr (GString) text =
    g_string_new (seeds[g_rand_int_range (random, 0, G_N_ELEMENTS (seeds))]);

  for (int n = g_rand_int_range (random, 0, 6); n > 0; n--)
    damage_once (random, text);
  LLVMFuzzerTestOneInput ((const uint8_t *) text->str, text->len);
}

static void
try_file (const char *name)
{
  g_autofree char *content = NULL;
  gsize length;

  must (g_file_get_contents (name, &content, &length, NULL), name);
  LLVMFuzzerTestOneInput ((const uint8_t *) content, length);
}

static void
remove_directory (void)
{
  g_autofree char *below = NULL;

  unlink (xml);
  for (size_t i = 0; i < G_N_ELEMENTS (files); i++) {
    g_autofree char *path = outer_path (files[i]);

    unlink (path);
  }
  for (size_t i = 0; i < G_N_ELEMENTS (links); i++) {
    g_autofree char *path = outer_path (links[i][1]);

    unlink (path);
  }
  below = outer_path ("disk/a");
  must (rmdir (below) == 0 && rmdir (directory) == 0,
        "something is left behind");
  must (rmdir (outer) == 0, outer);
}

int
main (int argc, char *argv[])
{
  const char *given = g_getenv ("PLOOP_TEST_SEED");
  const char *scale = g_getenv ("PLOOP_TEST_SCALE");
  const uint32_t seed =
    given ? (uint32_t) strtoul (given, NULL, 0) : g_random_int ();
  const int nr = 3000 * (scale ? atoi (scale) : 100) / 100;
  GRand *random = g_rand_new_with_seed (seed);

  for (int i = 1; i < argc; i++)
    try_file (argv[i]);
  printf ("%d damaged descriptors, PLOOP_TEST_SEED=%u\n", nr, seed);
  fflush (stdout);
  make_directory ();
  for (int i = 0; i < nr; i++)
    try_damaged (random);
  g_rand_free (random);
  remove_directory ();
  return EXIT_SUCCESS;
}

#endif /* !WITH_LIBFUZZER */
