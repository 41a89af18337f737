/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Failing system calls, on demand.
 *
 * A test program links with --wrap for each call below; the library's calls
 * arrive here, are counted, and fail when a test has asked for it.
 */

#ifndef PLOOP_TESTS_FAULTS_H
#define PLOOP_TESTS_FAULTS_H

#include <stdatomic.h>

enum fault_call {
  FAULT_PREAD,
  FAULT_PWRITE,
  FAULT_FALLOCATE,
  FAULT_FTRUNCATE,
  FAULT_FDATASYNC,
  FAULT_NR_CALLS,
};

/* Calls since the start or the last fault_reset, failed ones too. */
extern _Atomic unsigned fault_calls[FAULT_NR_CALLS];

/* No faults, counts of 0. */
void fault_reset (void);

/* Let CALL fail with ERRNUM, NR times after the next SKIP calls.  EINTR is good
 * too.  ERRNUM 0 lets reads and writes be short instead: one byte.
 */
void fault_inject (enum fault_call call, int errnum, unsigned skip,
                   unsigned nr);

#endif /* PLOOP_TESTS_FAULTS_H */
