/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Which file of a disk rests on which, by what the files tell, and how sure that is.
 *
 * A wrong order reads as a file system that is partly older than itself, and what is
 * then written mixes contents, so what is not known is not decided.
 */

#ifndef PLOOP_LIB_ORDER_H
#define PLOOP_LIB_ORDER_H

#include <stdbool.h>

#include <glib.h>

#include "evidence.h"
#include "ploop-core.h"

/* Where the reasons go, line by line. */
struct order_say {
  ploop_reason_fn fn;           /* NULL: nowhere */
  void *opaque;
};

void order_say (const struct order_say *say, const char *format, ...)
  G_GNUC_PRINTF (2, 3);

/* One delta of the disk. */
struct order_level {
  const struct evidence *file;
  char *guid;
  char *parent;                 /* NULL: the base */
  char *marker;                 /* of a temporary snapshot; or NULL */
};

struct order {
  GPtrArray *levels;            /* of struct order_level: parents before those that
                                   rest on them */
  char *top_guid;
  enum ploop_confidence confidence;
  char *refusal;                /* it is a guess, and why nothing may be written by it;
                                   NULL: it may */
};

void order_clear (struct order *order);

/* Find the order of FILES (of struct evidence, which must outlive it), with what RELICS
 * say.  Returns false and sets ERROR (PLOOP_ERROR_ARGUMENT, or PLOOP_ERROR_CORRUPT for
 * damaged files) when it is not known.
 */
bool order_find (struct order *order, const GPtrArray *files,
                 const struct relics *relics, const struct order_say *say,
                 GError **error);

/* Take FILES, base first, as they are.  Returns false and sets ERROR when they cannot
 * be a disk.
 */
bool order_take (struct order *order, const GPtrArray *files,
                 const struct relics *relics, const struct order_say *say,
                 GError **error);

/* The delta that the disk is written to. */
const struct order_level *order_top (const struct order *order);

#endif /* PLOOP_LIB_ORDER_H */
