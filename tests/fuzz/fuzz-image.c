/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Any bytes at all as an image: no input may crash or hang the library, and
 * none may be changed by opening, reading, describing or checking it.  What opens
 * can be compacted, and reads the same then; what does not is left alone.
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
    write_disk (path);
  }
  unlink (path);
  return 0;
}

#ifndef WITH_LIBFUZZER

/* ---- By itself --------------------------------------------------------- */

#define SEED_SIZE 8192u

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
  const struct format_header header = {
    .version = version,
    .type = 2,
    .cluster_sectors = sectors,
    .nr_entries = nr_entries,
    .size_sectors = (uint64_t) nr_entries * sectors,
    .in_use = g_rand_boolean (random) ? FORMAT_IN_USE : FORMAT_CLOSED,
    .data_sectors = data_cluster * sectors,
  };

  memset (bytes, 0, SEED_SIZE);
  format_encode_header (&header, bytes);
  for (uint32_t i = 0; i < nr_entries; i += 3) {
    const uint32_t entry =
      GUINT32_TO_LE ((data_cluster + i / 3) * (version == 1 ? sectors : 1));

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
