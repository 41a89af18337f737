/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Checking one image that is open, for who checks more than one.  (The name check.h is
 * that of the library of the unit tests.)
 */

#ifndef PLOOP_LIB_CHECK_DELTA_H
#define PLOOP_LIB_CHECK_DELTA_H

#include <glib.h>

#include "delta.h"
#include "ploop-core.h"

/* Check DELTA, an expandable image, as ploop_check does.  Findings go to REPORT (may
 * be NULL); what is counted is added to RESULT.
 *
 * Returns 0 when the check ran to its end, or -1 with ERROR set.
 */
int check_delta (struct delta *delta, ploop_finding_fn report, void *opaque,
                 struct ploop_check_result *result, GError **error);

/* Count one finding. */
void check_count (struct ploop_check_result *result, enum ploop_finding finding);

/* Add what RESULT has to SUM. */
void check_add_result (struct ploop_check_result *sum,
                       const struct ploop_check_result *result);

#endif /* PLOOP_LIB_CHECK_DELTA_H */
