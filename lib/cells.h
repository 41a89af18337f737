/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Which cells (format.h) of a file are in use: a bit for each, for commands that have
 * an image to themselves.  Not for several threads.
 */

#ifndef PLOOP_LIB_CELLS_H
#define PLOOP_LIB_CELLS_H

#include <stdbool.h>
#include <stdint.h>

#define CELLS_WORD_BITS 64u
#define CELLS_NONE UINT64_MAX

struct cells {
  uint64_t nr;
  uint64_t *used;               /* bits */
};

enum cells_kind { CELLS_USED, CELLS_FREE };

/* NR cells, all free; those that are never touched take no memory.  Returns 0 or a
 * negative errno.
 */
int cells_init (struct cells *cells, uint64_t nr);

/* Of one of zeros, does nothing. */
void cells_destroy (struct cells *cells);

static inline bool
cells_is_used (const struct cells *cells, uint64_t cell)
{
  return (cells->used[cell / CELLS_WORD_BITS] >> cell % CELLS_WORD_BITS & 1)
         != 0;
}

static inline void
cells_set_used (struct cells *cells, uint64_t cell)
{
  cells->used[cell / CELLS_WORD_BITS] |= UINT64_C (1)
                                         << cell % CELLS_WORD_BITS;
}

static inline void
cells_set_free (struct cells *cells, uint64_t cell)
{
  cells->used[cell / CELLS_WORD_BITS] &=
    ~(UINT64_C (1) << cell % CELLS_WORD_BITS);
}

/* The first cell of that kind from FROM up to, not including, END; END when there is
 * none.
 */
uint64_t cells_next (const struct cells *cells, uint64_t from, uint64_t end,
                     enum cells_kind kind);

/* The last one below END; CELLS_NONE when there is none. */
uint64_t cells_previous (const struct cells *cells, uint64_t end,
                         enum cells_kind kind);

/* Find the next run of free cells at or after *FROM and below END: up to, not
 * including, *STOP.
 */
bool cells_next_free_run (const struct cells *cells, uint64_t end,
                          uint64_t *from, uint64_t *stop);

#endif /* PLOOP_LIB_CELLS_H */
