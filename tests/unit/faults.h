/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Failing system calls, on demand.
 *
 * A test program links with --wrap for each call below; the library's calls
 * arrive here, are counted, and fail when a test has asked for it.  A write by
 * io_uring counts as a pwrite.
 */

#ifndef PLOOP_TESTS_FAULTS_H
#define PLOOP_TESTS_FAULTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

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

/* Syncs that do not fail succeed at once.  No power is cut in a unit test, so
 * nothing else changes but the time.  False at the start.
 */
extern _Atomic bool fault_no_syncs;

/* No faults, counts of 0. */
void fault_reset (void);

/* Let CALL fail with ERRNUM, NR times after the next SKIP calls.  EINTR is good
 * too.  ERRNUM 0 lets reads and writes be short instead: one byte.
 */
void fault_inject (enum fault_call call, int errnum, unsigned skip,
                   unsigned nr);

/* One system call. */
struct fault_event {
  enum fault_call call;
  int mode;                     /* fallocate's */
  uint64_t offset;              /* ftruncate's length */
  uint64_t length;
};

/* Called before each system call, in the thread that makes it; may wait.
 * Returns 0, or the errno that the call fails with.  NULL: none.
 */
extern int (*_Atomic fault_hook) (const struct fault_event *event);

#endif /* PLOOP_TESTS_FAULTS_H */
