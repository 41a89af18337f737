/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The deltas of a disk, from base to top, and their BATs as one map.
 *
 * The top delta is the one that is written to, if any; those below it are opened
 * for reading and locked so that nobody else writes to them.  A cluster is where
 * the highest delta has it.  A lower delta may be smaller than the top one: past
 * its end it has nothing.  The base may be a raw disk.
 */

#ifndef PLOOP_LIB_CHAIN_H
#define PLOOP_LIB_CHAIN_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "bat.h"
#include "delta.h"
#include "error.h"
#include "map.h"

#define CHAIN_MAX_LEVELS 254u

struct chain {
  struct delta **levels;        /* base first */
  unsigned nr_levels;
  int lock_fd;                  /* of a descriptor by another name; 0: none */
};

static inline struct delta *
chain_top (const struct chain *chain)
{
  return chain->levels[chain->nr_levels - 1];
}

static inline unsigned
chain_top_level (const struct chain *chain)
{
  return chain->nr_levels - 1;
}

/* The delta that has what WORD, which is mapped, names. */
static inline struct delta *
chain_delta (const struct chain *chain, uint64_t word)
{
  return chain->levels[map_word_level (word)];
}

/* The file of one delta, to be found. */
struct chain_source {
  char *path;
  int path_fd;                  /* see delta_source; -1: none */
  bool may_be_raw;              /* without a ploop signature it is a raw disk;
                                   only the base's */
};

/* Add a source to SOURCES; PATH is copied, PATH_FD taken over. */
void chain_sources_add (GArray *sources, const char *path, int path_fd,
                        bool may_be_raw);

/* A new array of struct chain_source, which closes and frees what is in it. */
GArray *chain_sources_new (void);

/* For remote deltas; see delta_source. */
struct chain_options {
  const struct log *log;
  bool (*give_up) (void *opaque);
  void *give_up_opaque;
};

/* Open what SOURCES (of struct chain_source) say, base first.  TOP, the last of
 * them, is open already and taken over.
 *
 * Returns false and sets ERROR, with nothing left open, when one cannot be opened
 * or locked, or does not fit the others.
 */
bool chain_open (struct chain *chain, const GArray *sources,
                 struct delta *top, const struct chain_options *options,
                 GError **error);

/* Lock the descriptor whose name is DESCRIPTOR for this chain, if the deltas' own
 * locks are not that.
 */
bool chain_lock (struct chain *chain, const char *descriptor, GError **error);

/* Let those who wait for what is remote wait no longer. */
void chain_stop (const struct chain *chain);

/* Closes all deltas.  Of one of zeros, does nothing. */
void chain_close (struct chain *chain);

/* What is to be known of the top delta's BAT. */
struct chain_summary {
  struct bat_summary top;
  GArray *lost;                 /* of uint32_t: see bat_load */
  void (*leak) (void *opaque, uint64_t first, uint64_t nr);     /* or NULL */
  void *opaque;
};

/* Read the BATs of all deltas into MAP, which has nothing mapped: as many at a
 * time as there are CPUs, in threads of their own that have ended when this
 * returns.  LOG is called from them.
 *
 * Returns 0, or -1 with ERROR set, as bat_load.
 */
int chain_load (const struct chain *chain, struct map *map,
                const struct log *log, struct chain_summary *summary,
                GError **error);

#endif /* PLOOP_LIB_CHAIN_H */
