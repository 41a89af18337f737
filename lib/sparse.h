/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Arrays as large as a disk may claim, of which only what is touched takes
 * memory: anonymous mappings, all zero at first.
 */

#ifndef PLOOP_LIB_SPARSE_H
#define PLOOP_LIB_SPARSE_H

#include <stddef.h>

/* Returns BYTES (not 0) of zeros, aligned to a page, or NULL with errno set. */
void *sparse_new (size_t bytes);

/* NULL is ignored. */
void sparse_free (void *array, size_t bytes);

#endif /* PLOOP_LIB_SPARSE_H */
