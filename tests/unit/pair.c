/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Two deltas for a test: see pair.h. */

#include <config.h>

#include <errno.h>
#include <string.h>
#include <linux/fs.h>
#include <sys/types.h>

#include "faults.h"
#include "format.h"
#include "pair.h"
#include "run.h"

enum ploop_copy_on_write pair_copy_on_write;

/* ---- No copies by the kernel ------------------------------------------- */

/* Copies are read and written then, by calls that can be made to fail. */
_Atomic bool fault_no_kernel_copy;

ssize_t __real_copy_file_range (int, off_t *, int, off_t *, size_t, unsigned);
ssize_t __wrap_copy_file_range (int, off_t *, int, off_t *, size_t, unsigned);
int __real_ioctl (int, unsigned long, void *);
int __wrap_ioctl (int, unsigned long, void *);

ssize_t
__wrap_copy_file_range (int in, off_t *from, int out, off_t *to, size_t length,
                        unsigned flags)
{
  if (!fault_no_kernel_copy)
    return __real_copy_file_range (in, from, out, to, length, flags);
  errno = EXDEV;
  return -1;
}

int
__wrap_ioctl (int fd, unsigned long request, void *argument)
{
  if (request != FICLONERANGE || !fault_no_kernel_copy)
    return __real_ioctl (fd, request, argument);
  errno = EOPNOTSUPP;
  return -1;
}

/* ---- Chains ------------------------------------------------------------ */

char *
empty_image (const char *name, unsigned nr_clusters)
{
  const struct format_header header =
    scratch_header (2, CLUSTER / 512, nr_clusters);

  return scratch_image (name, &header, NULL, CLUSTER);
}

void
share_no_blocks (const ploop_image *image)
{
  const struct chain *chain = chain_of (image);

  for (unsigned i = 0; i < chain->nr_levels; i++)
    chain->levels[i]->no_clone_from = true;
}

ploop_image *
open_chain (const char *top, const char *const *bases)
{
  const struct ploop_open_options options = {
    .bases = bases,
    .copy_delay = PLOOP_MAX_DELAY,
    .copy_on_write = pair_copy_on_write,
  };
  g_autoptr (GError) error = NULL;
  ploop_image *image = ploop_open (top, &options, &error);

  ck_assert_msg (image != NULL, "%s", error ? error->message : "");
  if (pair_copy_on_write == PLOOP_COPY_LAZY)
    share_no_blocks (image);
  return image;
}

void
close_image (ploop_image *image)
{
  g_autoptr (GError) error = NULL;

  ck_assert_msg (ploop_close (image, &error) == 0, "%s",
                 error ? error->message : "");
}

void
fill (ploop_image *image, unsigned cluster, uint8_t byte)
{
  g_autofree uint8_t *buf = g_malloc (CLUSTER);

  memset (buf, byte, CLUSTER);
  ck_assert_int_eq (ploop_pwrite (image, buf, CLUSTER,
                                  (uint64_t) cluster * CLUSTER, 0), 0);
}

bool
is_all (ploop_image *image, uint64_t length, uint64_t offset, uint8_t byte)
{
  g_autofree uint8_t *buf = g_malloc (length);

  ck_assert_int_eq (ploop_pread (image, buf, length, offset), 0);
  return buf[0] == byte && memcmp (buf, buf + 1, length - 1) == 0;
}

/* A delta in whose cluster C, where C is a multiple of STEP, is BYTE. */
char *
make_lower (const char *name, uint8_t byte)
{
  char *path = empty_image (name, NR_CLUSTERS);
  ploop_image *image = open_chain (path, NULL);

  for (unsigned c = 0; c < NR_CLUSTERS; c += STEP)
    fill (image, c, byte);
  close_image (image);
  return path;
}

void
open_pair (struct pair *pair)
{
  *pair = (struct pair) { .lower = make_lower ("lower", 1),
                          .top = empty_image ("top", NR_CLUSTERS) };
  pair->bases[0] = pair->lower;
  pair->image = open_chain (pair->top, pair->bases);
  fault_reset ();
}

void
reopen_pair (struct pair *pair)
{
  close_image (pair->image);
  pair->image = open_chain (pair->top, pair->bases);
}

void
close_pair (struct pair *pair)
{
  close_image (pair->image);
  g_free (pair->lower);
  g_free (pair->top);
}

uint32_t
entry_on_disk (const struct pair *pair, uint32_t cluster)
{
  return scratch_read_le32 (pair->top, format_bat_offset (cluster));
}
