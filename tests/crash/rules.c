/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Stamps and histories: see rules.h. */

#include <config.h>

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "rules.h"

#define SECTOR 512u
#define MAGIC UINT64_C (0x706c6f6f70637574)

struct stamp_bytes {
  uint64_t magic, sector, number, check;
};

struct flush {
  uint64_t begun, answered;
};

struct stray_trim {
  uint64_t first, end;          /* sectors */
  uint64_t begun, answered;
};

char *rules_broken;

static _Atomic uint64_t last_number;
static uint32_t nr_sectors, cluster_sectors;
static GArray **histories;      /* of struct change, by sector */
static uint64_t *initial;       /* the number before all changes, by sector */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static GArray *flushes;         /* of struct flush; under the lock */
static GArray *stray_trims;     /* of struct stray_trim; under the lock */

void
rules_break (const char *format, ...)
{
  va_list args;

  pthread_mutex_lock (&lock);
  if (!rules_broken) {
    va_start (args, format);
    rules_broken = g_strdup_vprintf (format, args);
    va_end (args);
  }
  pthread_mutex_unlock (&lock);
}

void
rules_forget_broken (void)
{
  g_clear_pointer (&rules_broken, g_free);
}

/* ---- Stamps ------------------------------------------------------------ */

uint64_t
rules_new_number (void)
{
  return ++last_number;
}

static struct stamp_bytes
make_stamp (uint64_t sector, uint64_t number)
{
  return (struct stamp_bytes) {
    .magic = MAGIC,
    .sector = sector,
    .number = number,
    .check = (sector * 31 + number) * UINT64_C (0x9e3779b97f4a7c15),
  };
}

void
rules_stamp (uint8_t *bytes, uint64_t sector, uint64_t number)
{
  const struct stamp_bytes stamp = make_stamp (sector, number);

  memset (bytes, (int) (number % 255 + 1), SECTOR);
  memcpy (bytes, &stamp, sizeof stamp);
}

enum stamp
rules_read_stamp (const uint8_t *bytes, uint64_t sector, uint64_t *number)
{
  static const uint8_t zeroes[SECTOR];
  struct stamp_bytes stamp;
  uint8_t whole[SECTOR];

  *number = 0;
  if (memcmp (bytes, zeroes, SECTOR) == 0)
    return STAMP_OURS;
  memcpy (&stamp, bytes, sizeof stamp);
  rules_stamp (whole, stamp.sector, stamp.number);
  if (memcmp (bytes, whole, SECTOR) != 0)
    return STAMP_DAMAGED;
  *number = stamp.sector == sector ? stamp.number : stamp.sector;
  return stamp.sector == sector ? STAMP_OURS : STAMP_FOREIGN;
}

/* ---- Histories --------------------------------------------------------- */

void
rules_begin (uint32_t nr, uint32_t in_cluster)
{
  nr_sectors = nr;
  cluster_sectors = in_cluster;
  histories = g_new0 (GArray *, nr);
  for (uint32_t i = 0; i < nr; i++)
    histories[i] = g_array_new (FALSE, FALSE, sizeof (struct change));
  initial = g_new0 (uint64_t, nr);
  flushes = g_array_new (FALSE, FALSE, sizeof (struct flush));
  stray_trims = g_array_new (FALSE, FALSE, sizeof (struct stray_trim));
}

void
rules_end (void)
{
  for (uint32_t i = 0; i < nr_sectors; i++)
    g_array_unref (histories[i]);
  g_clear_pointer (&histories, g_free);
  g_clear_pointer (&initial, g_free);
  g_clear_pointer (&flushes, g_array_unref);
  g_clear_pointer (&stray_trims, g_array_unref);
}

void
rules_set_initial (uint64_t sector, uint64_t number)
{
  initial[sector] = number;
}

void
rules_add_change (uint64_t sector, uint64_t nr, const struct change *change)
{
  for (uint64_t i = 0; i < nr; i++)
    g_array_append_vals (histories[sector + i], change, 1);
}

void
rules_add_flush (uint64_t begun, uint64_t answered)
{
  const struct flush flush = { begun, answered };

  pthread_mutex_lock (&lock);
  g_array_append_val (flushes, flush);
  pthread_mutex_unlock (&lock);
}

unsigned
rules_begin_stray_trim (uint64_t first, uint64_t end, uint64_t begun)
{
  const struct stray_trim trim = { first, end, begun, UINT64_MAX };
  unsigned index;

  pthread_mutex_lock (&lock);
  index = stray_trims->len;
  g_array_append_val (stray_trims, trim);
  pthread_mutex_unlock (&lock);
  return index;
}

void
rules_end_stray_trim (unsigned trim, uint64_t answered)
{
  pthread_mutex_lock (&lock);
  g_array_index (stray_trims, struct stray_trim, trim).answered = answered;
  pthread_mutex_unlock (&lock);
}

/* ---- Judging ----------------------------------------------------------- */

struct claim
rules_claim_at (uint64_t moment)
{
  struct claim claim = { .moment = moment };

  for (guint i = 0; i < flushes->len; i++) {
    const struct flush *flush = &g_array_index (flushes, struct flush, i);

    if (flush->answered < moment)
      claim.flushed = MAX (claim.flushed, flush->begun);
  }
  return claim;
}

struct claim
rules_claim_now (void)
{
  return (struct claim) {
    .moment = UINT64_MAX,
    .answered = true,
    .answered_trims = true,
  };
}

/* The last change of a sector that must not be lost: its index plus one, or 0.
 */
static guint
last_durable (const GArray *history, const struct claim *claim)
{
  guint last = 0;

  for (guint i = 0; i < history->len; i++) {
    const struct change *change = &g_array_index (history, struct change, i);

    if (change->answered >= claim->moment)
      break;
    if (!change->failed
        && (change->forced || change->answered < claim->flushed
            || (change->trim ? claim->answered_trims : claim->answered)))
      last = i + 1;
  }
  return last;
}

/* May a stray trim have cleared a sector since a change that was begun at
 * SINCE?
 */
static bool
may_be_trimmed (uint64_t sector, uint64_t since, const struct claim *claim)
{
  bool may = false;

  pthread_mutex_lock (&lock);
  for (guint i = 0; i < stray_trims->len && !may; i++) {
    const struct stray_trim *trim =
      &g_array_index (stray_trims, struct stray_trim, i);

    may = sector >= trim->first && sector < trim->end
          && trim->begun < claim->moment && trim->answered > since;
  }
  pthread_mutex_unlock (&lock);
  return may;
}

static bool
may_hold (uint64_t sector, uint64_t number, const struct claim *claim)
{
  const GArray *history = histories[sector];
  const guint durable = last_durable (history, claim);
  uint64_t since = 0;

  if (durable == 0 && number == initial[sector])
    return true;
  if (durable > 0)
    since = g_array_index (history, struct change, durable - 1).begun;
  for (guint i = durable > 0 ? durable - 1 : 0; i < history->len; i++) {
    const struct change *change = &g_array_index (history, struct change, i);

    if (change->begun < claim->moment && change->number == number)
      return true;
  }
  return number == 0 && may_be_trimmed (sector, since, claim);
}

static char *
describe_history (uint64_t sector, const struct claim *claim)
{
  const GArray *history = histories[sector];
  GString *text = g_string_new (NULL);

  g_string_printf (text, "initially %" G_GUINT64_FORMAT ", flushed up to %"
                   G_GUINT64_FORMAT ", %u may not be lost;", initial[sector],
                   claim->flushed, last_durable (history, claim));
  for (guint i = 0; i < history->len; i++) {
    const struct change *change = &g_array_index (history, struct change, i);

    g_string_append_printf (text, " %" G_GUINT64_FORMAT " (%" G_GUINT64_FORMAT
                            "-%" G_GUINT64_FORMAT "%s%s%s)", change->number,
                            change->begun, change->answered,
                            change->forced ? " forced" : "",
                            change->failed ? " failed" : "",
                            change->trim ? " trim" : "");
  }
  return g_string_free (text, FALSE);
}

void
rules_check_sector (const uint8_t *bytes, uint64_t sector,
                    const struct claim *claim, const char *where)
{
  g_autofree char *history = NULL;
  uint64_t number;

  switch (rules_read_stamp (bytes, sector, &number)) {
  case STAMP_OURS:
    if (may_hold (sector, number, claim))
      return;
    history = describe_history (sector, claim);
    rules_break ("rule 3 or 4, %s: sector %" G_GUINT64_FORMAT " (cluster %"
                 G_GUINT64_FORMAT ") holds change %" G_GUINT64_FORMAT
                 ", which is none of what it may hold: %s", where, sector,
                 sector / cluster_sectors, number, history);
    return;
  case STAMP_FOREIGN:
    rules_break ("rule 4, %s: sector %" G_GUINT64_FORMAT " holds what was "
                 "written to sector %" G_GUINT64_FORMAT, where, sector,
                 number);
    return;
  case STAMP_DAMAGED:
    rules_break ("rule 4, %s: sector %" G_GUINT64_FORMAT " holds what nobody "
                 "wrote", where, sector);
    return;
  }
}

bool
rules_may_hold (const uint8_t *bytes, uint64_t sector,
                const struct claim *claim)
{
  uint64_t number;

  return rules_read_stamp (bytes, sector, &number) == STAMP_OURS
         && may_hold (sector, number, claim);
}
