/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Failing system calls, on demand: see faults.h. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "faults.h"

struct plan {
  int errnum;
  unsigned first, end;          /* calls, counted from 0 */
};

_Atomic unsigned fault_calls[FAULT_NR_CALLS];
_Atomic bool fault_no_syncs;
int (*_Atomic fault_hook) (const struct fault_event *event);
/* Other threads of the library may be in a call at any time. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct plan plans[FAULT_NR_CALLS];

ssize_t __real_pread (int, void *, size_t, off_t);
ssize_t __real_pwrite (int, const void *, size_t, off_t);
ssize_t __real_ring_pwrite (int, const void *, size_t, off_t);
int __real_fallocate (int, int, off_t, off_t);
int __real_ftruncate (int, off_t);
int __real_fdatasync (int);

ssize_t __wrap_pread (int, void *, size_t, off_t);
ssize_t __wrap_pwrite (int, const void *, size_t, off_t);
ssize_t __wrap_ring_pwrite (int, const void *, size_t, off_t);
int __wrap_fallocate (int, int, off_t, off_t);
int __wrap_ftruncate (int, off_t);
int __wrap_fdatasync (int);

void
fault_reset (void)
{
  fault_hook = NULL;
  pthread_mutex_lock (&lock);
  for (int i = 0; i < FAULT_NR_CALLS; i++) {
    fault_calls[i] = 0;
    plans[i] = (struct plan) { 0, 0, 0 };
  }
  pthread_mutex_unlock (&lock);
}

void
fault_inject (enum fault_call call, int errnum, unsigned skip, unsigned nr)
{
  unsigned first;

  pthread_mutex_lock (&lock);
  first = fault_calls[call] + skip;
  plans[call] = (struct plan) { errnum, first, first + nr };
  pthread_mutex_unlock (&lock);
}

/* Count a call.  The plan for its kind is in *PLAN. */
static unsigned
count (enum fault_call call, struct plan *plan)
{
  unsigned n;

  pthread_mutex_lock (&lock);
  n = fault_calls[call]++;
  *plan = plans[call];
  pthread_mutex_unlock (&lock);
  return n;
}

/* Is it this call's turn to fail? */
static int
fails (enum fault_call call, int mode, uint64_t offset, uint64_t length)
{
  const struct fault_event event = { call, mode, offset, length };
  struct plan plan;
  const unsigned n = count (call, &plan);
  int (*hook) (const struct fault_event *) = fault_hook;
  const int errnum = hook ? hook (&event) : 0;

  if (errnum != 0) {
    errno = errnum;
    return 1;
  }
  if (n < plan.first || n >= plan.end)
    return 0;
  errno = plan.errnum;
  return 1;
}

ssize_t
__wrap_pread (int fd, void *buf, size_t length, off_t offset)
{
  if (!fails (FAULT_PREAD, 0, (uint64_t) offset, length))
    return __real_pread (fd, buf, length, offset);
  return errno ? -1 : __real_pread (fd, buf, 1, offset);
}

ssize_t
__wrap_pwrite (int fd, const void *buf, size_t length, off_t offset)
{
  if (!fails (FAULT_PWRITE, 0, (uint64_t) offset, length))
    return __real_pwrite (fd, buf, length, offset);
  return errno ? -1 : __real_pwrite (fd, buf, 1, offset);
}

ssize_t
__wrap_ring_pwrite (int fd, const void *buf, size_t length, off_t offset)
{
  if (!fails (FAULT_PWRITE, 0, (uint64_t) offset, length))
    return __real_ring_pwrite (fd, buf, length, offset);
  return errno ? -1 : __real_ring_pwrite (fd, buf, 1, offset);
}

int
__wrap_fallocate (int fd, int mode, off_t offset, off_t length)
{
  return fails (FAULT_FALLOCATE, mode, (uint64_t) offset, (uint64_t) length)
           ? -1 : __real_fallocate (fd, mode, offset, length);
}

int
__wrap_ftruncate (int fd, off_t length)
{
  return fails (FAULT_FTRUNCATE, 0, (uint64_t) length, 0)
           ? -1 : __real_ftruncate (fd, length);
}

int
__wrap_fdatasync (int fd)
{
  if (fails (FAULT_FDATASYNC, 0, 0, 0))
    return -1;
  return fault_no_syncs ? 0 : __real_fdatasync (fd);
}
