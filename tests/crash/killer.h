/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A process that ends at its Nth system call that changes a file or a name, and sees in
 * which order it does so.
 *
 * The test program links with --wrap for each such call that the library makes.  What
 * ends there is as good as killed: nothing of it runs any more.  What a power cut would
 * lose beyond that is judged by the order:
 *
 *   - a file that was there before is changed only when new ones, and their names, are
 *     on disk
 *   - a name is changed only when all files that were changed are synced, mode and
 *     owner, too
 *   - a descriptor is replaced only when the names of new files are on disk
 *   - a file that was there before goes only when the name that was put in the place of
 *     another is on disk
 */

#ifndef PLOOP_TESTS_KILLER_H
#define PLOOP_TESTS_KILLER_H

#include <stdbool.h>
#include <stdint.h>

/* The status of one that is killed. */
#define KILLER_STATUS 77

/* What the process leaves behind: in memory that it shares with its parent. */
struct killer_report {
  uint64_t nr_calls;            /* that change something, so far */
  char last[120];               /* the last one; if killed, the one not made */
  bool wrote;                   /* that one is a write of several sectors */
  char broken[240];             /* the first rule that was; empty: none */
};

/* From now on, end instead of making call number N (0: never); HALF: make the first
 * half of it, which is a write.
 */
void killer_start (struct killer_report *report, uint64_t n, bool half);

/* Judge nothing and kill nobody any more. */
void killer_stop (void);

#endif /* PLOOP_TESTS_KILLER_H */
