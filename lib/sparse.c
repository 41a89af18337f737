/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Arrays that take memory where they are touched: see sparse.h. */

#include <config.h>

#include <sys/mman.h>

#include "sparse.h"

void *
sparse_new (size_t bytes)
{
  void *array = mmap (NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

  if (array == MAP_FAILED)
    return NULL;
  /* A huge page would take 2 MiB for one word. */
  madvise (array, bytes, MADV_NOHUGEPAGE);
  return array;
}

void
sparse_free (void *array, size_t bytes)
{
  if (array)
    munmap (array, bytes);
}
