/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Ranges that overlap, made into a list that does not: see ranges.h. */

#include <config.h>

#include "ranges.h"

void
ranges_init (struct ranges *ranges)
{
  for (unsigned i = 0; i < RANGES_NR_KINDS; i++)
    ranges->kinds[i] =
      g_array_new (FALSE, FALSE, sizeof (struct ploop_rescue_range));
}

void
ranges_clear (struct ranges *ranges)
{
  for (unsigned i = 0; i < RANGES_NR_KINDS; i++)
    g_array_unref (ranges->kinds[i]);
}

/* Does B, behind A, say the same? */
static bool
goes_on (const struct ploop_rescue_range *a,
         const struct ploop_rescue_range *b)
{
  return a->offset + a->length == b->offset && a->kind == b->kind
         && a->reason == b->reason && a->path == b->path
         && a->reason != PLOOP_RESCUE_SHARED;
}

void
ranges_note (struct ranges *ranges, const struct ploop_rescue_range *range)
{
  GArray *list = ranges->kinds[range->kind];
  struct ploop_rescue_range *last =
    list->len > 0
      ? &g_array_index (list, struct ploop_rescue_range, list->len - 1) : NULL;

  if (range->length == 0)
    return;
  if (last && goes_on (last, range))
    last->length += range->length;
  else
    g_array_append_val (list, *range);
}

static int
compare_offsets (gconstpointer a, gconstpointer b)
{
  const struct ploop_rescue_range *x = a, *y = b;

  return (x->offset > y->offset) - (x->offset < y->offset);
}

/* Of one kind, sorted: the first range that ends behind POSITION, or NULL.  AT is
 * where it was found the last time.
 */
static const struct ploop_rescue_range *
find_next (const GArray *list, guint *at, uint64_t position)
{
  for (; *at < list->len; (*at)++) {
    const struct ploop_rescue_range *range =
      &g_array_index (list, struct ploop_rescue_range, *at);

    if (range->offset + range->length > position)
      return range;
  }
  return NULL;
}

struct telling {
  ploop_rescue_range_fn fn;
  void *opaque;
  struct ploop_rescue_result *result;
  struct ploop_rescue_range pending;    /* told when it goes on no further */
};

static void
flush (struct telling *telling)
{
  const struct ploop_rescue_range *range = &telling->pending;

  if (range->length == 0)
    return;
  telling->result->nr_ranges++;
  telling->result->bytes[range->kind] += range->length;
  if (telling->fn)
    telling->fn (telling->opaque, range);
}

static void
tell (struct telling *telling, const struct ploop_rescue_range *range,
      uint64_t start, uint64_t end)
{
  struct ploop_rescue_range part = *range;

  part.offset = start;
  part.length = end - start;
  if (telling->pending.length > 0 && goes_on (&telling->pending, &part))
    telling->pending.length += part.length;
  else {
    flush (telling);
    telling->pending = part;
  }
}

void
ranges_tell (struct ranges *ranges, ploop_rescue_range_fn fn, void *opaque,
             struct ploop_rescue_result *result)
{
  struct telling telling = { .fn = fn, .opaque = opaque, .result = result };
  guint at[RANGES_NR_KINDS] = { 0 };
  uint64_t position = 0, next;

  for (unsigned i = 0; i < RANGES_NR_KINDS; i++)
    g_array_sort (ranges->kinds[i], compare_offsets);
  for (;; position = next) {
    const struct ploop_rescue_range *worst = NULL;

    next = UINT64_MAX;
    for (unsigned i = 0; i < RANGES_NR_KINDS; i++) {
      const struct ploop_rescue_range *range =
        find_next (ranges->kinds[i], &at[i], position);

      if (range && range->offset > position)
        next = MIN (next, range->offset);
      else if (range) {
        next = MIN (next, range->offset + range->length);
        worst = worst ? worst : range;
      }
    }
    if (next == UINT64_MAX)
      break;
    if (worst)
      tell (&telling, worst, position, next);
  }
  flush (&telling);
}
