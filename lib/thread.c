/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Threads of the library's own: see thread.h. */

#include <config.h>

#include <signal.h>

#include "thread.h"

int
thread_start (pthread_t *thread, const char *name, void *(*run) (void *),
              void *opaque)
{
  sigset_t all, before;
  int r;

  /* Inherited by the new thread. */
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  r = pthread_create (thread, NULL, run, opaque);
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  if (r != 0)
    return -r;
  pthread_setname_np (*thread, name);
  return 0;
}
