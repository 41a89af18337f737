/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Which parts of a copy are not what they should be: noted in any order, told in
 * order, the worst of each byte once.
 */

#ifndef PLOOP_LIB_RANGES_H
#define PLOOP_LIB_RANGES_H

#include <glib.h>

#include "ploop-core.h"

#define RANGES_NR_KINDS 3u

struct ranges {
  GArray *kinds[RANGES_NR_KINDS];       /* of struct ploop_rescue_range */
};

void ranges_init (struct ranges *ranges);
void ranges_clear (struct ranges *ranges);

/* Note one; those of no length are left out.  What range->path points to must outlive
 * RANGES.
 */
void ranges_note (struct ranges *ranges,
                  const struct ploop_rescue_range *range);

/* Tell FN (may be NULL) of all, ascending, and count them into RESULT: where several
 * overlap, the worst kind counts, and neighbours that say the same are told together.
 */
void ranges_tell (struct ranges *ranges, ploop_rescue_range_fn fn,
                  void *opaque, struct ploop_rescue_result *result);

#endif /* PLOOP_LIB_RANGES_H */
