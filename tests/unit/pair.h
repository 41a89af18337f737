/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Chains for tests of copy-on-write: a lower delta with some clusters, and an empty
 * top one above it, through the public API.
 */

#ifndef PLOOP_TESTS_PAIR_H
#define PLOOP_TESTS_PAIR_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "parts.h"
#include "ploop-core.h"

#define CLUSTER 32768u
#define NR_CLUSTERS 40u
#define SIZE ((uint64_t) NR_CLUSTERS * CLUSTER)
/* Every so many clusters one that the lower delta has. */
#define STEP 3u

/* The kernel does not copy: copies are read and written then, by calls that can
 * be made to fail.
 */
extern _Atomic bool fault_no_kernel_copy;

/* How chains are opened from now on. */
extern enum ploop_copy_on_write pair_copy_on_write;

/* An image with no cluster.  Returns its path. */
char *empty_image (const char *name, unsigned nr_clusters);

/* A delta in whose cluster C, where C is a multiple of STEP, is BYTE. */
char *make_lower (const char *name, uint8_t byte);

/* Nothing is committed by itself while a test looks. */
ploop_image *open_chain (const char *top, const char *const *bases);
void close_image (ploop_image *image);

static inline struct chain *
chain_of (const ploop_image *image)
{
  return &image->parts[0].image->disk.chain;
}

/* As if it had been tried, and had failed: what is copied lazily is not shared. */
void share_no_blocks (const ploop_image *image);

/* Let a cluster have BYTE everywhere. */
void fill (ploop_image *image, unsigned cluster, uint8_t byte);
bool is_all (ploop_image *image, uint64_t length, uint64_t offset,
             uint8_t byte);

/* One lower delta of 1s, one empty top over it, open. */
struct pair {
  char *lower, *top;
  const char *bases[2];
  ploop_image *image;
};

void open_pair (struct pair *pair);
void reopen_pair (struct pair *pair);
void close_pair (struct pair *pair);

/* The top delta's BAT entry. */
uint32_t entry_on_disk (const struct pair *pair, uint32_t cluster);

#endif /* PLOOP_TESTS_PAIR_H */
