/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Checking what a descriptor says of its shots: parents, circles, the top. */

#ifndef PLOOP_LIB_CHECK_SHOTS_H
#define PLOOP_LIB_CHECK_SHOTS_H

#include <glib.h>

#include "descriptor.h"
#include "findings.h"

/* Tell FINDINGS of all that is wrong.  Returns the shots by their GUIDs, the first of
 * each; as long as DESCRIPTOR lives, for g_hash_table_unref.
 */
GHashTable *check_shots (const struct descriptor *descriptor,
                         struct findings *findings);

#endif /* PLOOP_LIB_CHECK_SHOTS_H */
