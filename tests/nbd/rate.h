/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* How fast a server answers requests of one size: how many a second, and how long they
 * take.  Nothing is checked but that they succeed.
 */

#ifndef PLOOP_TEST_RATE_H
#define PLOOP_TEST_RATE_H

#include <stdbool.h>
#include <stdint.h>

#define RATE_MAX_CONNECTIONS 64u
#define RATE_MAX_DEPTH 256u

struct rate {
  const char *uri;
  unsigned nr_connections;
  unsigned depth;               /* requests in flight of each */
  uint64_t block;               /* bytes of a request */
  uint64_t length;              /* bytes of the disk that are used, from its start */
  double seconds;
  unsigned write_percent;       /* the rest reads */
  bool sequential;              /* each connection in a part of its own; else at random */
};

/* Run, and print what came out. */
void rate_run (const struct rate *rate);

#endif /* PLOOP_TEST_RATE_H */
