/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The content of a disk, to be read from one end to the other, whatever the disk is:
 * a ploop disk by any name that ploop_open takes, a raw file or block device, or an
 * NBD export.
 */

#ifndef PLOOP_LIB_STORE_H
#define PLOOP_LIB_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <glib.h>

#include "error.h"

struct store;

/* Open NAME for reading, and lock it as a reader if it is a ploop disk; of its
 * snapshots that which SNAPSHOT names, if it is not NULL.  LOG outlives the store.
 *
 * Returns NULL and sets ERROR when that cannot be done.
 */
struct store *store_open (const char *name, const char *snapshot,
                          const struct log *log, GError **error);

/* NULL is ignored. */
void store_close (struct store *store);

const char *store_name (const struct store *store);

/* Bytes. */
uint64_t store_size (const struct store *store);

/* Of what is written to, the top delta, if it is a ploop disk: bytes, and the version of
 * its format; 0 of what is raw.
 */
uint32_t store_cluster_size (const struct store *store);
unsigned store_version (const struct store *store);

/* Of a split disk, more than one. */
unsigned store_nr_parts (const struct store *store);

/* Read LENGTH bytes at OFFSET; what lies behind the end is zeros.  From any thread.
 * Returns 0 or a negative errno.
 */
int store_read (struct store *store, void *buf, size_t length,
                uint64_t offset);

/* Find the next range at or after *START and below END that may hold data.  Returns
 * false when there is none.  One thread at a time.
 */
bool store_next_data (struct store *store, uint64_t end, uint64_t *start,
                      uint64_t *stop);

#endif /* PLOOP_LIB_STORE_H */
