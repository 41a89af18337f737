/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A bit for each cell: see cells.h. */

#include <config.h>

#include <errno.h>

#include <glib.h>

#include "cells.h"
#include "sparse.h"

static size_t
used_bytes (const struct cells *cells)
{
  return (size_t) (cells->nr / CELLS_WORD_BITS + 1) * sizeof *cells->used;
}

int
cells_init (struct cells *cells, uint64_t nr)
{
  cells->nr = nr;
  cells->used = sparse_new (used_bytes (cells));
  return cells->used ? 0 : -errno;
}

void
cells_destroy (struct cells *cells)
{
  if (cells->used)
    sparse_free (cells->used, used_bytes (cells));
  cells->used = NULL;
}

/* What makes cells of that kind bits that are set. */
static uint64_t
flip_for (enum cells_kind kind)
{
  return kind == CELLS_FREE ? UINT64_MAX : 0;
}

uint64_t
cells_next (const struct cells *cells, uint64_t from, uint64_t end,
            enum cells_kind kind)
{
  const uint64_t flip = flip_for (kind);

  while (from < end) {
    const uint64_t word = (cells->used[from / CELLS_WORD_BITS] ^ flip)
                          >> from % CELLS_WORD_BITS;

    if (word != 0)
      return MIN (from + (uint64_t) __builtin_ctzll (word), end);
    from = (from / CELLS_WORD_BITS + 1) * CELLS_WORD_BITS;
  }
  return end;
}

uint64_t
cells_previous (const struct cells *cells, uint64_t end, enum cells_kind kind)
{
  const uint64_t flip = flip_for (kind);

  while (end > 0) {
    const uint64_t i = (end - 1) / CELLS_WORD_BITS;
    const uint64_t word =
      (cells->used[i] ^ flip)
      << (CELLS_WORD_BITS - 1 - (end - 1) % CELLS_WORD_BITS);

    if (word != 0)
      return end - 1 - (uint64_t) __builtin_clzll (word);
    end = i * CELLS_WORD_BITS;
  }
  return CELLS_NONE;
}

bool
cells_next_free_run (const struct cells *cells, uint64_t end, uint64_t *from,
                     uint64_t *stop)
{
  *from = cells_next (cells, *from, end, CELLS_FREE);
  *stop = cells_next (cells, *from, end, CELLS_USED);
  return *from < end;
}
