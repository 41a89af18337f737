/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Block status, one answer at a time; see extents.h. */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "extents.h"
#include "harness.h"

/* Of one request: the protocol has 32 bits. */
#define MOST_ASKED UINT64_C (0xffffffff)

struct question {
  struct extents *answer;
  unsigned nr_answers;
};

static void
append (struct extents *answer, uint64_t length, uint32_t flags)
{
  if (answer->nr == answer->allocated) {
    answer->allocated = 2 * answer->allocated + 16;
    answer->list =
      realloc (answer->list, answer->allocated * sizeof *answer->list);
    if (answer->list == NULL)
      abort ();
  }
  answer->list[answer->nr++] = (struct extent) {
    .offset = answer->end, .length = length, .flags = flags,
  };
  answer->end += length;
}

static int
take (void *opaque, const char *context, uint64_t offset, uint32_t *entries,
      size_t nr_entries, int *error)
{
  struct question *question = opaque;

  (void) error;
  if (strcmp (context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0)
    fail ("an answer for %s", context);
  if (question->nr_answers++ > 0)
    fail ("a second answer to one request");
  if (offset != question->answer->end)
    fail ("asked at %" PRIu64 ", answered at %" PRIu64,
          question->answer->end, offset);
  for (size_t i = 0; i + 1 < nr_entries; i += 2)
    append (question->answer, entries[i], entries[i + 1]);
  return 0;
}

static void
expect_valid (const struct extents *answer, uint64_t length, uint64_t offset,
              uint32_t flags)
{
  const struct extent *e = answer->list;

  if (answer->nr == 0)
    fail ("no extent at %" PRIu64, offset);
  if (answer->end - offset > length)
    fail ("%" PRIu64 " bytes at %" PRIu64 " were asked for, extents of %"
          PRIu64 " were answered", length, offset, answer->end - offset);
  if ((flags & LIBNBD_CMD_FLAG_REQ_ONE) && answer->nr != 1)
    fail ("%zu extents at %" PRIu64 " instead of one", answer->nr, offset);
  for (size_t i = 0; i < answer->nr; i++) {
    if (e[i].length == 0)
      fail ("an extent of no bytes at %" PRIu64, e[i].offset);
    if ((e[i].flags & ~(uint32_t) IS_HOLE) != 0)
      fail ("an extent at %" PRIu64 " has the flags 0x%" PRIx32, e[i].offset,
            e[i].flags);
    if (i > 0 && e[i].flags == e[i - 1].flags)
      fail ("the extents at %" PRIu64 " and %" PRIu64 " are not joined",
            e[i - 1].offset, e[i].offset);
  }
}

void
extents_ask (struct nbd_handle *nbd, uint64_t length, uint64_t offset,
             uint32_t flags, struct extents *answer)
{
  struct question question = { .answer = answer };
  nbd_extent_callback callback = { .callback = take, .user_data = &question };

  answer->nr = 0;
  answer->end = offset;
  if (nbd_block_status (nbd, length, offset, callback, flags) == -1)
    fail_nbd ("nbd_block_status");
  expect_valid (answer, length, offset, flags);
}

void
extents_free (struct extents *answer)
{
  free (answer->list);
  *answer = (struct extents) { 0 };
}

uint64_t
extents_count (struct nbd_handle *nbd, uint64_t length, uint64_t offset,
               uint32_t flags)
{
  const uint64_t end = offset + length;
  struct extents answer = { 0 };
  uint64_t count = 0;

  while (offset < end) {
    extents_ask (nbd, end - offset < MOST_ASKED ? end - offset : MOST_ASKED,
                 offset, 0, &answer);
    for (size_t i = 0; i < answer.nr; i++)
      if ((answer.list[i].flags & flags) == flags)
        count += answer.list[i].length;
    offset = answer.end;
  }
  extents_free (&answer);
  return count;
}

void
extents_wait (struct nbd_handle *nbd, uint64_t length, uint64_t offset,
              uint32_t flags, uint64_t count, const char *what)
{
  const double limit = now_seconds () + HANG_SECONDS;
  uint64_t found;

  while ((found = extents_count (nbd, length, offset, flags)) < count) {
    if (now_seconds () > limit)
      fail ("%s: %" PRIu64 " of %" PRIu64 " bytes at %" PRIu64
            " are reported with the flags 0x%" PRIx32 ", must be %" PRIu64,
            what, found, length, offset, flags, count);
    poll_pause ();
  }
}
