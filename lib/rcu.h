/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* liburcu, and what the sanitizers must be told about it.
 *
 * The thread sanitizer understands neither liburcu's inline assembly nor grace
 * periods: where memory passes from one thread to another through a queue or a
 * call_rcu it is told so.  For the same reason a build with sanitizers calls
 * liburcu's functions instead of inlining them; and because liburcu 0.13 does
 * not align what a header of its own says is aligned, which is undefined, if
 * harmless.
 */

#ifndef PLOOP_LIB_RCU_H
#define PLOOP_LIB_RCU_H

#ifdef __has_feature
#if __has_feature (address_sanitizer) || __has_feature (thread_sanitizer)
#define BY_CALLS                /* clang */
#endif
#endif
#if defined __SANITIZE_THREAD__ || defined __SANITIZE_ADDRESS__
#define BY_CALLS                /* gcc */
#endif
#ifndef BY_CALLS
#define _LGPL_SOURCE            /* inline, as the LGPL allows */
#endif
#include <urcu-bp.h>
#include <urcu/wfcqueue.h>

#include "thread.h"

#endif /* PLOOP_LIB_RCU_H */
