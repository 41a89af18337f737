/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Threads of the library's own: named, and deaf to signals, which are for the
 * program that uses it.
 */

#ifndef PLOOP_LIB_THREAD_H
#define PLOOP_LIB_THREAD_H

#include <pthread.h>

/* NAME may have 15 bytes: what Linux allows.  Returns 0 or a negative errno. */
int thread_start (pthread_t *thread, const char *name, void *(*run) (void *),
                  void *opaque);

/* For the thread sanitizer, where it cannot see that memory passes from one
 * thread to another: HANDS_OVER stands before and TAKES_OVER after, for the
 * same address.
 */
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define HANDS_OVER(address) __tsan_release (address)
#define TAKES_OVER(address) __tsan_acquire (address)
#else
#define HANDS_OVER(address) ((void) 0)
#define TAKES_OVER(address) ((void) 0)
#endif

#endif /* PLOOP_LIB_THREAD_H */
