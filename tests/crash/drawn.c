/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Images drawn at random: see drawn.h. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "drawn.h"
#include "rules.h"

#define SECTOR 512u
#define BLOCK 4096u

unsigned
drawn_one (GRand *random, const unsigned *values, size_t nr)
{
  return values[g_rand_int_range (random, 0, (gint32) nr)];
}

bool
drawn_chance (GRand *random, unsigned per_cent)
{
  return (unsigned) g_rand_int_range (random, 0, 100) < per_cent;
}

uint32_t *
drawn_order (uint32_t nr, GRand *random)
{
  uint32_t *order = g_new (uint32_t, nr);

  for (uint32_t i = 0; i < nr; i++) {
    const uint32_t j = (uint32_t) g_rand_int_range (random, 0, (gint32) i + 1);

    order[i] = order[j];
    order[j] = i;
  }
  return order;
}

void
drawn_stamp (uint8_t *bytes, uint64_t sector, uint32_t nr, unsigned holes,
             GRand *random)
{
  bool hole = false;

  for (uint32_t i = 0; i < nr; i++) {
    if (i % (BLOCK / SECTOR) == 0)
      hole = drawn_chance (random, holes);
    if (!hole)
      rules_stamp (bytes + i * SECTOR, sector + i, rules_new_number ());
  }
}

void
drawn_save (const char *path, const uint8_t *bytes, uint64_t size)
{
  static const uint8_t zeroes[BLOCK];
  int fd;

  unlink (path);
  fd = open (path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd == -1 || ftruncate (fd, (off_t) size) == -1)
    g_error ("%s: %s", path, g_strerror (errno));
  for (uint64_t at = 0; at < size; at += BLOCK) {
    const size_t n = (size_t) MIN (size - at, BLOCK);

    if (memcmp (bytes + at, zeroes, n) != 0
        && pwrite (fd, bytes + at, n, (off_t) at) != (ssize_t) n)
      g_error ("%s: %s", path, g_strerror (errno));
  }
  close (fd);
}
