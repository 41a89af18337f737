/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/rescue.c and what it stands on: of disks that are damaged at random, in their
 * BATs, by bad sectors and by being cut off, every sector that can be read is copied,
 * and every other one is listed, and no sector is another one's.  What must come out
 * is worked out sector by sector, in the plainest way.
 */

#include <config.h>

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "faults.h"
#include "ploop-core.h"
#include "ranges.h"
#include "run.h"

#define CLUSTER_SECTORS 4u
#define CLUSTER (CLUSTER_SECTORS * FORMAT_SECTOR_SIZE)
/* The BAT takes three sectors. */
#define NR_CLUSTERS 300u
#define NR_SECTORS (NR_CLUSTERS * CLUSTER_SECTORS)
#define MAX_LEVELS 3u
#define MAX_FILE_SECTORS (2 * NR_SECTORS)
#define NR_DISKS 40u

#define FINE 99                 /* a sector that no range has */

struct level {
  char *path;
  struct format_header header;
  uint32_t entries[NR_CLUSTERS];
  uint64_t file_size;
};

static struct {
  struct level levels[MAX_LEVELS];
  unsigned nr_levels;
  bool fall_through;
} disk;

/* Of every file: a device fails where it fails. */
static bool bad[MAX_FILE_SECTORS];

static int
fail_bad_sectors (const struct fault_event *event)
{
  const uint64_t end = event->offset + event->length;

  for (uint64_t at = event->offset; event->call == FAULT_PREAD && at < end;
       at += FORMAT_SECTOR_SIZE)
    if (at / FORMAT_SECTOR_SIZE < MAX_FILE_SECTORS
        && bad[at / FORMAT_SECTOR_SIZE])
      return EIO;
  return 0;
}

/* ---- Making disks ------------------------------------------------------ */

static void
fill_sector (uint8_t sector[FORMAT_SECTOR_SIZE], unsigned level, uint64_t at)
{
  memset (sector, (int) (at % 250 + 1), FORMAT_SECTOR_SIZE);
  memcpy (sector, &at, sizeof at);
  sector[sizeof at] = (uint8_t) (level + 1);
}

static uint32_t
unit_of (const struct level *level)
{
  return level->header.version == 1 ? FORMAT_SECTOR_SIZE : CLUSTER;
}

static uint64_t
data_start (const struct level *level)
{
  return (uint64_t) level->header.data_sectors * FORMAT_SECTOR_SIZE;
}

/* Some entries, in a random order, and some of them wrong. */
static void
make_entries (struct level *level, GRand *rand)
{
  uint32_t next = (uint32_t) (data_start (level) / unit_of (level));

  memset (level->entries, 0, sizeof level->entries);
  for (unsigned i = 0; i < NR_CLUSTERS; i++) {
    const unsigned at = (i * 7 + 3) % NR_CLUSTERS;

    if (g_rand_int_range (rand, 0, 3) > 0)
      continue;
    level->entries[at] = next;
    next += CLUSTER / unit_of (level);
  }
  level->file_size = (uint64_t) next * unit_of (level);
  for (int n = g_rand_int_range (rand, 0, 6); n > 0; n--)
    level->entries[g_rand_int_range (rand, 0, NR_CLUSTERS)] =
      (uint32_t) g_rand_int_range (rand, 0, (gint32) next + 5);
  if (g_rand_int_range (rand, 0, 3) == 0)
    level->entries[g_rand_int_range (rand, 0, NR_CLUSTERS)] = UINT32_MAX;
}

static void
make_level (unsigned number, GRand *rand)
{
  struct level *level = &disk.levels[number];
  uint8_t sector[FORMAT_SECTOR_SIZE];

  level->header =
    scratch_header (1 + (unsigned) g_rand_int_range (rand, 0, 2),
                    CLUSTER_SECTORS, NR_CLUSTERS);
  make_entries (level, rand);
  level->path = scratch_image ("damaged", &level->header, level->entries,
                               level->file_size);
  for (uint64_t at = data_start (level); at < level->file_size;
       at += FORMAT_SECTOR_SIZE) {
    fill_sector (sector, number, at);
    scratch_write (level->path, sector, sizeof sector, at);
  }
  if (g_rand_int_range (rand, 0, 3) == 0) {
    level->file_size =
      (uint64_t) g_rand_int_range (
        rand, 1, (gint32) (level->file_size / FORMAT_SECTOR_SIZE))
      * FORMAT_SECTOR_SIZE;
    ck_assert_int_eq (truncate (level->path, (off_t) level->file_size), 0);
  }
}

static void
make_disk (GRand *rand)
{
  memset (bad, 0, sizeof bad);
  /* Not the first: without the header there is no disk. */
  for (int n = g_rand_int_range (rand, 0, 12); n > 0; n--)
    bad[g_rand_int_range (rand, 1, n % 3 == 0 ? 4 : NR_SECTORS / 2)] = true;
  disk.nr_levels = 1 + (unsigned) g_rand_int_range (rand, 0, MAX_LEVELS);
  disk.fall_through = g_rand_boolean (rand);
  for (unsigned i = 0; i < disk.nr_levels; i++)
    make_level (i, rand);
}

/* ---- What must come out ------------------------------------------------ */

/* Does the file have sector AT, and can it be read? */
static bool
can_read (const struct level *level, uint64_t at)
{
  return at < level->file_size && !bad[at / FORMAT_SECTOR_SIZE];
}

static bool
entry_is_known (const struct level *level, unsigned index)
{
  return can_read (level, format_bat_offset (index) / FORMAT_SECTOR_SIZE
                            * FORMAT_SECTOR_SIZE);
}

static bool
entry_is_sound (const struct level *level, unsigned index)
{
  const uint64_t offset = (uint64_t) level->entries[index] * unit_of (level);

  return entry_is_known (level, index) && level->entries[index] != 0
         && offset >= data_start (level) && offset < level->file_size;
}

static bool
is_shared (const struct level *level, unsigned index)
{
  const uint64_t offset = (uint64_t) level->entries[index] * unit_of (level);

  for (unsigned i = 0; i < NR_CLUSTERS; i++) {
    const uint64_t other = (uint64_t) level->entries[i] * unit_of (level);

    if (i != index && entry_is_sound (level, i)
        && MAX (offset, other) - MIN (offset, other) < CLUSTER)
      return true;
  }
  return false;
}

/* Guest sector S, as the levels below number BELOW have it.  Does any have it? */
static bool
expect_sector (unsigned below, unsigned s, uint8_t *sector, int *kind)
{
  const unsigned index = s / CLUSTER_SECTORS;
  const struct level *level;
  uint64_t at;

  *kind = FINE;
  memset (sector, 0, FORMAT_SECTOR_SIZE);
  if (below == 0)
    return false;
  level = &disk.levels[below - 1];
  if (entry_is_known (level, index) && level->entries[index] == 0)
    return expect_sector (below - 1, s, sector, kind);
  at = (uint64_t) level->entries[index] * unit_of (level)
       + s % CLUSTER_SECTORS * FORMAT_SECTOR_SIZE;
  if (entry_is_sound (level, index) && can_read (level, at)) {
    fill_sector (sector, below - 1, at);
    *kind = is_shared (level, index) ? PLOOP_RESCUE_DOUBTFUL : FINE;
    return true;
  }
  if (entry_is_sound (level, index) && at >= level->file_size) {
    *kind = PLOOP_RESCUE_DOUBTFUL;
    return true;
  }
  if (disk.fall_through && expect_sector (below - 1, s, sector, kind)) {
    *kind = MIN (*kind, PLOOP_RESCUE_OLDER);
    return true;
  }
  *kind = PLOOP_RESCUE_LOST;
  return false;
}

/* ---- What does --------------------------------------------------------- */

static int told[NR_SECTORS];
static uint64_t told_end;

static void
take_range (void *opaque, const struct ploop_rescue_range *range)
{
  (void) opaque;
  ck_assert_uint_ge (range->offset, told_end);
  ck_assert_uint_gt (range->length, 0);
  told_end = range->offset + range->length;
  ck_assert_uint_le (told_end, (uint64_t) NR_SECTORS * FORMAT_SECTOR_SIZE);
  for (uint64_t at = range->offset; at < told_end; at += FORMAT_SECTOR_SIZE)
    told[at / FORMAT_SECTOR_SIZE] = (int) range->kind;
}

static char *
rescue_disk (struct ploop_rescue_result *result)
{
  char *target = scratch_path ("target");
  const char *bases[MAX_LEVELS + 1] = { NULL };
  const struct ploop_rescue_options options = {
    .bases = bases,
    .fall_through = disk.fall_through,
    .raw = true,
    .range = take_range,
  };
  g_autoptr (GError) error = NULL;

  for (unsigned i = 0; i + 1 < disk.nr_levels; i++)
    bases[i] = disk.levels[disk.nr_levels - 2 - i].path;
  for (unsigned i = 0; i < NR_SECTORS; i++)
    told[i] = FINE;
  told_end = 0;
  fault_hook = fail_bad_sectors;
  ck_assert_msg (ploop_rescue (disk.levels[disk.nr_levels - 1].path, target,
                               &options, NULL, NULL, result, &error) == 0,
                 "%s", error ? error->message : "");
  fault_reset ();
  return target;
}

static void
compare_disk (const char *target, guint32 seed)
{
  uint8_t expected[FORMAT_SECTOR_SIZE], found[FORMAT_SECTOR_SIZE];
  int kind;

  for (unsigned s = 0; s < NR_SECTORS; s++) {
    expect_sector (disk.nr_levels, s, expected, &kind);
    scratch_read (target, found, sizeof found,
                  (uint64_t) s * FORMAT_SECTOR_SIZE);
    ck_assert_msg (told[s] == kind, "seed %u: sector %u is told as %d, not %d",
                   seed, s, told[s], kind);
    ck_assert_msg (memcmp (found, expected, sizeof found) == 0,
                   "seed %u: sector %u has the wrong content", seed, s);
  }
}

START_TEST (what_can_be_read_is_copied_and_the_rest_is_listed)
{
  const guint32 first = g_random_int ();
  unsigned nr_damaged = 0;

  for (guint32 seed = first; seed != first + NR_DISKS; seed++) {
    g_autoptr (GRand) rand = g_rand_new_with_seed (seed);
    g_autofree char *target = NULL;
    struct ploop_rescue_result result;

    make_disk (rand);
    target = rescue_disk (&result);
    compare_disk (target, seed);
    nr_damaged += result.nr_ranges > 0;
    unlink (target);
    for (unsigned i = 0; i < disk.nr_levels; i++) {
      unlink (disk.levels[i].path);
      g_free (disk.levels[i].path);
    }
  }
  ck_assert_uint_gt (nr_damaged, NR_DISKS / 2);
}
END_TEST

/* ---- Ranges ------------------------------------------------------------ */

static GString *list;

static void
append_range (void *opaque, const struct ploop_rescue_range *range)
{
  (void) opaque;
  g_string_append_printf (list, "%u:%u+%u ", (unsigned) range->kind,
                          (unsigned) range->offset, (unsigned) range->length);
}

static void
note_range (struct ranges *ranges, enum ploop_rescue_kind kind,
            uint64_t offset, uint64_t length)
{
  const struct ploop_rescue_range range = {
    .offset = offset,
    .length = length,
    .kind = kind,
    .reason = PLOOP_RESCUE_UNREADABLE,
    .path = "x",
  };

  ranges_note (ranges, &range);
}

START_TEST (of_ranges_that_overlap_the_worst_is_told)
{
  struct ranges ranges;
  struct ploop_rescue_result result = { 0 };

  list = g_string_new (NULL);
  ranges_init (&ranges);
  note_range (&ranges, PLOOP_RESCUE_DOUBTFUL, 100, 100);
  note_range (&ranges, PLOOP_RESCUE_LOST, 150, 10);
  note_range (&ranges, PLOOP_RESCUE_LOST, 160, 10);
  note_range (&ranges, PLOOP_RESCUE_LOST, 120, 5);
  note_range (&ranges, PLOOP_RESCUE_LOST, 121, 2);
  note_range (&ranges, PLOOP_RESCUE_OLDER, 190, 20);
  note_range (&ranges, PLOOP_RESCUE_OLDER, 300, 0);
  note_range (&ranges, PLOOP_RESCUE_DOUBTFUL, 0, 1);
  ranges_tell (&ranges, append_range, NULL, &result);
  ck_assert_str_eq (list->str, "2:0+1 2:100+20 0:120+5 2:125+25 0:150+20 "
                    "2:170+20 1:190+20 ");
  ck_assert_uint_eq (result.nr_ranges, 7);
  ck_assert_uint_eq (result.bytes[PLOOP_RESCUE_LOST], 25);
  ck_assert_uint_eq (result.bytes[PLOOP_RESCUE_OLDER], 20);
  ck_assert_uint_eq (result.bytes[PLOOP_RESCUE_DOUBTFUL], 66);
  ranges_clear (&ranges);
  g_string_free (list, TRUE);
}
END_TEST

/* ---- Ending early ------------------------------------------------------ */

static bool
end_at_once (void *opaque, uint64_t done, uint64_t all)
{
  (void) opaque;
  (void) done;
  (void) all;
  return false;
}

START_TEST (what_is_ended_early_leaves_no_copy)
{
  g_autoptr (GRand) rand = g_rand_new_with_seed (1);
  g_autofree char *target = scratch_path ("none");
  g_autofree char *part = g_strconcat (target, ".part", NULL);
  const struct ploop_rescue_options options = { .raw = true };
  struct ploop_rescue_result result;

  make_disk (rand);
  ck_assert_int_eq (ploop_rescue (disk.levels[0].path, target, &options,
                                  end_at_once, NULL, &result, NULL), 0);
  ck_assert (result.interrupted);
  ck_assert_int_ne (access (target, F_OK), 0);
  ck_assert_int_ne (access (part, F_OK), 0);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, what_can_be_read_is_copied_and_the_rest_is_listed);
  tcase_add_test (tcase, of_ranges_that_overlap_the_worst_is_told);
  tcase_add_test (tcase, what_is_ended_early_leaves_no_copy);
}

int
main (void)
{
  return run_tests ("rescue", add_tests);
}
