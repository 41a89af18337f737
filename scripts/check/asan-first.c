/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Starts AddressSanitizer before anything else in a program that is not
 * instrumented and gets the sanitizer by LD_PRELOAD (make check-asan, the
 * server).
 *
 * Without this it starts at the first malloc, which in nbdkit is in newlocale,
 * called by the constructor of libp11-kit with glibc's locale lock held for
 * writing.  What the sanitizer does then takes the same lock for reading and
 * leaves it with a reader too few; once strerror was called, freelocale at exit
 * waits for ever.  Linked with -z initfirst, the constructor below is the first.
 */

#include <stdlib.h>

__attribute__ ((constructor)) static void
start_sanitizer (void)
{
  void *volatile p = malloc (1);

  free (p);
}
