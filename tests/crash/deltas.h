/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Described disks, made at random: deltas that rest on each other, images or a raw
 * base, and the DiskDescriptor.xml that names them.
 *
 * A sector is the highest delta's that has its cluster, as the format says; not a line
 * of it is the library's.
 */

#ifndef PLOOP_TESTS_DELTAS_H
#define PLOOP_TESTS_DELTAS_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "reader.h"

#define DELTAS_MAX 6u
#define DELTAS_NONE UINT_MAX    /* rests on nothing */

struct delta_file {
  char name[16];                /* in the directory */
  char guid[40];
  unsigned parent;              /* or DELTAS_NONE */
  bool raw;
  uint32_t nr_sectors;          /* of the disk */
  const uint8_t *bytes;
  uint64_t size;
  struct reader reader;         /* of an image */
};

struct deltas {
  uint32_t cluster_sectors;
  unsigned nr;                  /* the last is the top */
  struct delta_file files[DELTAS_MAX];
};

/* What a new delta is like. */
struct delta_plan {
  unsigned parent;
  unsigned version;             /* 0: raw */
  uint32_t nr_sectors;
  unsigned used, holes, empty;  /* per cent of clusters, of blocks in them, of
                                   clusters that are all zeros */
};

/* Add one, with clusters here and there in its file.  Its bytes are g_free'd by
 * deltas_clear.
 */
void deltas_add (struct deltas *deltas, const struct delta_plan *plan,
                 GRand *random);
void deltas_clear (struct deltas *deltas);

/* Let delta I be what is in BYTES, which stay the caller's: to be done to a copy.
 * Returns NULL, or what is wrong (g_free).
 */
char *deltas_exchange (struct deltas *deltas, unsigned i, const uint8_t *bytes,
                       uint64_t size);

/* The 512 bytes at SECTOR of what delta I and those below it make. */
const uint8_t *deltas_sector (const struct deltas *deltas, unsigned i,
                              uint64_t sector);

/* The text of the descriptor (g_free). */
char *deltas_describe (const struct deltas *deltas);

/* Let DIRECTORY hold the descriptor and the files, and nothing else. */
void deltas_save (const struct deltas *deltas, const char *directory);

/* Remove all files in a directory. */
void deltas_remove (const char *directory);

#endif /* PLOOP_TESTS_DELTAS_H */
