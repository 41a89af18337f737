/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Failing system calls, on demand: see faults.h. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "faults.h"

struct plan {
  int errnum;
  unsigned first, end;          /* calls, counted from 0 */
};

_Atomic unsigned fault_calls[FAULT_NR_CALLS];
static struct plan plans[FAULT_NR_CALLS];

ssize_t __real_pread (int, void *, size_t, off_t);
ssize_t __real_pwrite (int, const void *, size_t, off_t);
int __real_fallocate (int, int, off_t, off_t);
int __real_ftruncate (int, off_t);
int __real_fdatasync (int);

ssize_t __wrap_pread (int, void *, size_t, off_t);
ssize_t __wrap_pwrite (int, const void *, size_t, off_t);
int __wrap_fallocate (int, int, off_t, off_t);
int __wrap_ftruncate (int, off_t);
int __wrap_fdatasync (int);

void
fault_reset (void)
{
  for (int i = 0; i < FAULT_NR_CALLS; i++) {
    fault_calls[i] = 0;
    plans[i] = (struct plan) { 0, 0, 0 };
  }
}

void
fault_inject (enum fault_call call, int errnum, unsigned skip, unsigned nr)
{
  const unsigned first = fault_calls[call] + skip;

  plans[call] = (struct plan) { errnum, first, first + nr };
}

/* Is it this call's turn to fail? */
static int
fails (enum fault_call call)
{
  const unsigned n = fault_calls[call]++;

  if (n < plans[call].first || n >= plans[call].end)
    return 0;
  errno = plans[call].errnum;
  return 1;
}

ssize_t
__wrap_pread (int fd, void *buf, size_t length, off_t offset)
{
  if (!fails (FAULT_PREAD))
    return __real_pread (fd, buf, length, offset);
  return errno ? -1 : __real_pread (fd, buf, 1, offset);
}

ssize_t
__wrap_pwrite (int fd, const void *buf, size_t length, off_t offset)
{
  if (!fails (FAULT_PWRITE))
    return __real_pwrite (fd, buf, length, offset);
  return errno ? -1 : __real_pwrite (fd, buf, 1, offset);
}

int
__wrap_fallocate (int fd, int mode, off_t offset, off_t length)
{
  return fails (FAULT_FALLOCATE) ? -1
                                 : __real_fallocate (fd, mode, offset, length);
}

int
__wrap_ftruncate (int fd, off_t length)
{
  return fails (FAULT_FTRUNCATE) ? -1 : __real_ftruncate (fd, length);
}

int
__wrap_fdatasync (int fd)
{
  return fails (FAULT_FDATASYNC) ? -1 : __real_fdatasync (fd);
}
