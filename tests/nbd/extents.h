/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a server says of base:allocation, one request at a time, and held to the
 * protocol: extents that follow each other, none empty, no more bytes than were
 * asked for, neighbours that differ, one only when one was asked for.
 */

#ifndef PLOOP_TEST_EXTENTS_H
#define PLOOP_TEST_EXTENTS_H

#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>

#include <libnbd.h>

/* The flags of what no data is behind. */
#define IS_HOLE (LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO)

struct extent {
  uint64_t offset, length;      /* bytes */
  uint32_t flags;
};

/* An answer.  Zeroed before its first use; used again and again; freed with
 * extents_free.
 */
struct extents {
  struct extent *list;
  size_t nr, allocated;
  uint64_t end;                 /* of the last one */
};

/* Ask once, with FLAGS of libnbd's.  Fails the test when the answer breaks the
 * rules above.
 */
void extents_ask (struct nbd_handle *nbd, uint64_t length, uint64_t offset,
                  uint32_t flags, struct extents *answer);

void extents_free (struct extents *answer);

/* Ask until all of the LENGTH bytes are known: those with all of FLAGS. */
uint64_t extents_count (struct nbd_handle *nbd, uint64_t length,
                        uint64_t offset, uint32_t flags);

/* Wait until COUNT of them have FLAGS; fails with WHAT when they never do. */
void extents_wait (struct nbd_handle *nbd, uint64_t length, uint64_t offset,
                   uint32_t flags, uint64_t count, const char *what);

#endif /* PLOOP_TEST_EXTENTS_H */
