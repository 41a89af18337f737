/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Any bytes at all as an image: no input may crash or hang the library, and
 * none may be changed by opening, reading, describing or checking it, nor by reading
 * its bitmaps.  What opens can be compacted, and reads the same then; what does not is
 * left alone.  Bitmaps come and go without a change of the disk.
 *
 * Two ways to run: under libFuzzer ("make fuzz", with clang), and by itself,
 * with images that this program makes and damages at random, for a while or
 * for PLOOP_TEST_SCALE per cent of it.  Files named on the command line are
 * tried as they are.
 */

#include <config.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <glib.h>

#include "extension.h"
#include "format.h"
#include "ploop-core.h"

/* What a hostile header may claim is not what is read. */
#define MAX_READ (UINT64_C (4) << 20)
/* Inputs are small: a file of zeros follows them, up to this. */
#define FILE_SIZE (UINT64_C (256) << 10)

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

static const char *
scratch_file (void)
{
  static char *path;

  if (!path)
    path = g_strdup_printf ("%s/ploop-fuzz-%ld.hds", g_get_tmp_dir (),
                            (long) getpid ());
  return path;
}

static void
must (bool ok, const char *what)
{
  if (ok)
    return;
  perror (what);
  abort ();
}

static void
write_input (const char *path, const uint8_t *data, size_t size)
{
  int fd = open (path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

  must (fd >= 0, path);
  must (write (fd, data, size) == (ssize_t) size, "write");
  must (ftruncate (fd, (off_t) MAX (size, FILE_SIZE)) == 0, "ftruncate");
  close (fd);
}

/* The input is as it was. */
static void
expect_unchanged (const char *path, const uint8_t *data, size_t size)
{
  g_autofree char *content = NULL;
  gsize length;

  must (g_file_get_contents (path, &content, &length, NULL), path);
  must (length == MAX (size, FILE_SIZE), "the file's size has changed");
  must (memcmp (content, data, size) == 0, "the file has changed");
  for (size_t i = size; i < length; i++)
    must (content[i] == 0, "the file has changed behind the input");
}

/* Read the beginning and the end of the disk. */
static GBytes *
read_disk (ploop_image *image)
{
  const uint64_t size = ploop_size (image), n = MIN (size, MAX_READ);
  uint8_t *buf = g_malloc (2 * n);

  must (ploop_pread (image, buf, n, 0) == 0, "pread");
  must (ploop_pread (image, buf + n, n, size - n) == 0, "pread");
  return g_bytes_new_take (buf, 2 * n);
}

/* An image that may be written can be compacted, and no other.  BEFORE is what
 * is read.
 */
static void
compact_disk (const char *path, GBytes *before)
{
  ploop_image *image = ploop_open (path, NULL, NULL);
  const bool writable = !ploop_is_read_only (image);
  g_autoptr (GBytes) after = NULL;

  must (ploop_close (image, NULL) == 0, "close");
  must ((ploop_compact (path, NULL, NULL, NULL, NULL, NULL) == 0) == writable,
        "compact");
  image = ploop_open (path, NULL, NULL);
  must (image != NULL, "what was compacted does not open");
  after = read_disk (image);
  must (g_bytes_equal (before, after), "what was compacted reads otherwise");
  must (ploop_close (image, NULL) == 0, "close");
}

static bool
count_range (void *opaque, uint64_t offset, uint64_t length)
{
  struct ploop_bitmap *bitmap = opaque;

  must (length > 0 && offset + length <= bitmap->size, "range");
  must (length <= bitmap->nr_dirty, "dirty bytes");
  bitmap->nr_dirty -= length;
  return true;
}

/* What is listed can be dumped, unless it is stale or has the name of another. */
static void
read_bitmaps (const char *path)
{
  g_autoptr (GPtrArray) list = ploop_list_bitmaps (path, NULL);

  for (guint i = 0; list && i < list->len; i++) {
    struct ploop_bitmap *bitmap = g_ptr_array_index (list, i);

    if (ploop_dump_bitmap (path, bitmap->uuid, count_range, bitmap, NULL) == 0)
      must (!bitmap->is_stale && bitmap->nr_dirty == 0, "dump");
  }
}

/* Bitmaps are added and removed, if at all, without a change of the disk. */
static void
change_bitmaps (const char *path, GBytes *before)
{
  const char name[] = "01234567-89ab-cdef-0123-456789abcdef";
  g_autoptr (GBytes) after = NULL;
  ploop_image *image;

  if (ploop_add_bitmap (path, name, 0, true, NULL, NULL, NULL) == 0) {
    read_bitmaps (path);
    must (ploop_check (path, NULL, NULL, NULL, NULL) == 0, "check");
  }
  else
    ploop_remove_bitmap (path, NULL, NULL, NULL, NULL);
  ploop_remove_bitmap (path, name, NULL, NULL, NULL);
  image = ploop_open (path, NULL, NULL);
  must (image != NULL, "without bitmaps it does not open");
  after = read_disk (image);
  must (g_bytes_equal (before, after), "without bitmaps it reads otherwise");
  must (ploop_close (image, NULL) == 0, "close");
}

/* What is written to an image that opens is read again, also after closing. */
static void
write_disk (const char *path)
{
  const char word[] = "written";
  char read[sizeof word];
  ploop_image *image = ploop_open (path, NULL, NULL);
  uint64_t at;

  if (!image)
    return;
  if (!ploop_is_read_only (image) && ploop_size (image) >= sizeof word) {
    at = (ploop_size (image) - sizeof word) / 2;
    /* A v1 image may have no room for one more cluster. */
    if (ploop_pwrite (image, word, sizeof word, at, PLOOP_FUA) == 0) {
      must (ploop_close (image, NULL) == 0, "close");
      image = ploop_open (path, NULL, NULL);
      must (image != NULL, "what we wrote does not open");
      must (ploop_pread (image, read, sizeof read, at) == 0, "pread");
      must (memcmp (read, word, sizeof word) == 0, "what we wrote is gone");
    }
  }
  must (ploop_close (image, NULL) == 0, "close");
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  const struct ploop_open_options read_only = { .read_only = true };
  const struct ploop_compact_options dry_run = { .dry_run = true };
  const char *path = scratch_file ();
  g_autoptr (GBytes) content = NULL;
  struct ploop_info info;
  ploop_image *image;

  write_input (path, data, size);
  ploop_get_info (path, &info, NULL);
  ploop_check (path, NULL, NULL, NULL, NULL);
  read_bitmaps (path);
  image = ploop_open (path, &read_only, NULL);
  if (image) {
    content = read_disk (image);
    must (ploop_close (image, NULL) == 0, "close");
  }
  ploop_compact (path, &dry_run, NULL, NULL, NULL, NULL);
  must (image || ploop_compact (path, NULL, NULL, NULL, NULL, NULL) == -1,
        "compacted what does not open");
  expect_unchanged (path, data, size);
  if (image) {
    compact_disk (path, content);
    change_bitmaps (path, content);
    write_disk (path);
  }
  unlink (path);
  return 0;
}

#ifndef WITH_LIBFUZZER

/* ---- By itself --------------------------------------------------------- */

#define SEED_SIZE 8192u

static void
put_digest (uint8_t *bytes, size_t cluster_size)
{
  g_autoptr (GChecksum) md5 = g_checksum_new (G_CHECKSUM_MD5);
  gsize length = 16;

  g_checksum_update (md5, bytes + 24, (gssize) (cluster_size - 24));
  g_checksum_get_digest (md5, bytes + 8, &length);
}

/* An extension at OFFSET, with a bitmap whose bits are in the next cluster; some of its
 * numbers are absurd.
 */
static void
put_extension (GRand *random, uint64_t offset, struct format_header *header,
               uint8_t bytes[SEED_SIZE])
{
  const struct format_layout layout = {
    .cluster_size = header->cluster_sectors * 512,
  };
  struct extension_bitmap bitmap = {
    .size_sectors = header->size_sectors,
    .granularity = 1u << g_rand_int_range (random, 0, 8),
  };
  g_autofree uint8_t *cluster = g_malloc (layout.cluster_size);
  struct extension extension;

  bitmap.nr_l1 =
    (uint32_t) extension_nr_l1 (&layout, extension_nr_bits (&bitmap));
  bitmap.l1 = g_new0 (uint64_t, bitmap.nr_l1);
  bitmap.l1[0] = offset / 512 + header->cluster_sectors;
  extension_init (&extension);
  extension_add_bitmap (&extension, &bitmap);
  if (extension_length (&extension) <= layout.cluster_size) {
    extension_encode (&extension, &layout, cluster);
    for (int n = g_rand_int_range (random, 0, 3); n > 0; n--)
      cluster[g_rand_int_range (random, 24, 128)] =
        (uint8_t) g_rand_int_range (random, 0, 256);
    put_digest (cluster, layout.cluster_size);
    memcpy (bytes + offset, cluster,
            MIN (layout.cluster_size, SEED_SIZE - offset));
    header->extension_sectors = offset / 512;
    header->in_use = FORMAT_CLOSED_EXTENSION;
  }
  extension_clear (&extension);
}

/* A good image of small clusters, so that damage is near. */
static void
make_seed (GRand *random, uint8_t bytes[SEED_SIZE])
{
  static const uint32_t clusters[] = { 1, 8, 63, 64 };
  const unsigned version = (unsigned) g_rand_int_range (random, 1, 3);
  const uint32_t sectors = clusters[g_rand_int_range (random, 0, 4)];
  const uint32_t nr_entries = (uint32_t) g_rand_int_range (random, 1, 200);
  const uint32_t data_cluster =
    (uint32_t) (format_bat_offset (nr_entries) / 512 / sectors + 1);
  const uint64_t data_start = (uint64_t) data_cluster * sectors * 512;
  struct format_header header = {
    .version = version,
    .type = 2,
    .cluster_sectors = sectors,
    .nr_entries = nr_entries,
    .size_sectors = (uint64_t) nr_entries * sectors,
    .in_use = g_rand_boolean (random) ? FORMAT_IN_USE : FORMAT_CLOSED,
    .data_sectors = data_cluster * sectors,
  };

  memset (bytes, 0, SEED_SIZE);
  if (data_start + 512 <= SEED_SIZE && g_rand_boolean (random))
    put_extension (random, data_start, &header, bytes);
  format_encode_header (&header, bytes);
  for (uint32_t i = 0; i < nr_entries; i += 3) {
    const uint32_t entry =
      GUINT32_TO_LE ((data_cluster + 2 + i / 3) * (version == 1 ? sectors : 1));

    memcpy (bytes + format_bat_offset (i), &entry, sizeof entry);
  }
}

/* Change a few numbers of the header and the BAT into likely or absurd ones. */
static void
damage (GRand *random, uint8_t bytes[SEED_SIZE])
{
  static const uint32_t values[] = { 0, 1, 2, 63, 64, 0x7fffffff, 0x80000000,
                                     0xffffffff, FORMAT_IN_USE,
                                     FORMAT_CLOSED_EXTENSION };

  for (int n = g_rand_int_range (random, 0, 5); n > 0; n--) {
    const size_t at =
      4 * (size_t) g_rand_int_range (random, 4,
                                     g_rand_boolean (random) ? 16 : 200);
    uint32_t value = values[g_rand_int_range (random, 0,
                                              G_N_ELEMENTS (values))];

    if (g_rand_boolean (random))
      value = g_rand_int (random) >> g_rand_int_range (random, 0, 32);
    value = GUINT32_TO_LE (value);
    memcpy (bytes + at, &value, sizeof value);
  }
}

static void
try_file (const char *name)
{
  g_autofree char *content = NULL;
  gsize length;

  must (g_file_get_contents (name, &content, &length, NULL), name);
  LLVMFuzzerTestOneInput ((const uint8_t *) content, length);
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
  uint8_t bytes[SEED_SIZE];

  for (int i = 1; i < argc; i++)
    try_file (argv[i]);
  printf ("%d damaged images, PLOOP_TEST_SEED=%u\n", nr, seed);
  fflush (stdout);
  for (int i = 0; i < nr; i++) {
    make_seed (random, bytes);
    damage (random, bytes);
    LLVMFuzzerTestOneInput (bytes, (size_t) g_rand_int_range (
                                     random, i % 10 ? 1000 : 0, SEED_SIZE));
  }
  g_rand_free (random);
  return EXIT_SUCCESS;
}

#endif /* !WITH_LIBFUZZER */
