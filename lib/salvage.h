/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* One delta of a damaged disk, as far as it can be read: where each guest cluster is,
 * or why that is not known.
 *
 * Takes 4 bytes of memory for each BAT entry that is not zero, and as much again for a
 * while.
 */

#ifndef PLOOP_LIB_SALVAGE_H
#define PLOOP_LIB_SALVAGE_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "error.h"
#include "format.h"
#include "header.h"
#include "tolerant.h"

struct salvage {
  char *name;
  struct tolerant *file;        /* NULL: it is missing */
  bool is_raw;
  struct format_layout layout;

  /* Private. */
  bool has_in_use_mark;
  uint32_t *entries;            /* the BAT */
  size_t entries_bytes;
  uint32_t nr_wiped;            /* first entries that are not known if zero */
  GArray *unknown;              /* of struct unknown, by index */
  GArray *shared;               /* of struct shared, by index */
};

struct salvage_source {
  const char *path;             /* or a URI */
  int path_fd;                  /* -1: go by the name */
  bool may_be_raw;              /* without a signature it is a raw disk */
  const char *index;            /* a file that begins as the image once did, to read
                                   header and BAT from; NULL: the image itself */
  struct header_given given;
  bool insist;                  /* what is given holds also where the header could be
                                   believed */
};

/* Open the file and read its BAT.  A raw disk's layout is not known until
 * salvage_be_raw.  Returns NULL and sets ERROR when the file cannot be opened, is in
 * use, or its header cannot be believed.
 */
struct salvage *salvage_open (const struct salvage_source *source,
                              const struct log *log, GError **error);

/* One that is missing, of which it is only known that it may have had everything. */
struct salvage *salvage_new_missing (const char *name);

/* Let a raw disk have clusters of CLUSTER_SIZE bytes. */
void salvage_be_raw (struct salvage *salvage, uint32_t cluster_size);

/* NULL is ignored. */
void salvage_close (struct salvage *salvage);

enum salvage_state {
  SALVAGE_NOTHING,              /* the delta does not have the cluster */
  SALVAGE_SOUND,
  SALVAGE_SHARED,               /* it has, but another one claims the place too */
  SALVAGE_UNFINISHED,           /* it does not have it: it was never flushed */
  SALVAGE_LOST,                 /* it had it, or may have had it */
};

struct salvage_place {
  enum salvage_state state;
  enum ploop_rescue_reason reason;      /* if unfinished or lost */
  uint64_t offset;              /* in the file, if sound or shared */
  uint32_t length;              /* bytes of the cluster that the delta has; the rest
                                   is behind its end, and zeros */
  uint32_t nr_there;            /* of these, how many the file has */
  uint32_t other;               /* if shared: a guest cluster that shares it */
};

/* Where is guest cluster INDEX?  From any thread. */
void salvage_look (const struct salvage *salvage, uint64_t index,
                   struct salvage_place *place);

#endif /* PLOOP_LIB_SALVAGE_H */
