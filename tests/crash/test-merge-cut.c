/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Power cuts at every instant while deltas of a disk are merged into the lowest of
 * them, with any part of what was not synced to that one's file lost:
 *
 *   until the descriptor is replaced   the upper deltas over the lower one, as it is at
 *                                      the cut, read as the disk
 *   from then on                       the lower one reads so without them
 *
 * So all is on disk before the descriptor is replaced.  Before the first byte is
 * written the descriptor on disk says that what goes is temporary; the upper deltas'
 * files are removed only when it names them no more, for good.  The same merge, done
 * again from what a cut has left, completes it.
 *
 * The lower delta may be raw, of a smaller disk, or rest on another one, which its
 * zeros must hide; there may be one to three upper ones, and one above that stays.
 *
 * At the end the same is done with syncs that do nothing: that must be noticed.
 */

#include <config.h>

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <glib.h>

#include "deltas.h"
#include "drawn.h"
#include "ploop-core.h"
#include "reader.h"
#include "recorder.h"
#include "rounds.h"
#include "rules.h"

#define SECTOR 512u
#define NR_ROUNDS 40u

enum way { MERGE_INTO, MERGE_ALL, DELETE_SNAPSHOT };

struct round {
  uint32_t seed;
  struct deltas deltas;
  unsigned lower, upper;        /* deltas */
  enum way way;
  struct recorder_faults faults;
  unsigned patience;            /* calls until it is interrupted; 0: never */
};

/* What is done to names, and when. */
struct step {
  enum { REPLACED, SYNCED, REMOVED } kind;
  uint64_t moment;              /* before it is replaced or removed, or after the
                                   sync of the directory */
  uint64_t nr_changes;          /* of the lower delta's file, so far */
  char *text;                   /* the descriptor's, if replaced */
};

static const char *disk_path, *again_path, *xml_path, *again_xml;
static GArray *steps;           /* of struct step */
static bool is_recorded;
static unsigned nr_calls_left;

/* ---- Names ------------------------------------------------------------- */

int __real_renameat (int, const char *, int, const char *);
int __real_unlink (const char *);
int __real_fsync (int);
int __wrap_renameat (int, const char *, int, const char *);
int __wrap_unlink (const char *);
int __wrap_fsync (int);

/* Returns the step, which lasts until the next one. */
static struct step *
add_step (int kind)
{
  const struct step step = {
    .kind = kind,
    .moment = recorder_now (),
    .nr_changes = recorder_nr_changes (),
  };

  g_array_append_val (steps, step);
  return &g_array_index (steps, struct step, steps->len - 1);
}

int
__wrap_renameat (int from_fd, const char *from, int to_fd, const char *to)
{
  struct step *step = is_recorded ? add_step (REPLACED) : NULL;
  const int r = __real_renameat (from_fd, from, to_fd, to);

  if (step && !g_file_get_contents (xml_path, &step->text, NULL, NULL))
    g_error ("%s cannot be read", xml_path);
  return r;
}

int
__wrap_unlink (const char *path)
{
  if (is_recorded)
    add_step (REMOVED);
  return __real_unlink (path);
}

int
__wrap_fsync (int fd)
{
  const int r = __real_fsync (fd);
  struct stat st;

  if (is_recorded && fstat (fd, &st) == 0 && S_ISDIR (st.st_mode))
    add_step (SYNCED);
  return r;
}

static void
clear_step (void *opaque)
{
  g_free (((struct step *) opaque)->text);
}

/* ---- Disks ------------------------------------------------------------- */

static uint32_t
smaller (GRand *random, uint32_t nr_sectors)
{
  return drawn_chance (random, 60)
           ? nr_sectors
           : (uint32_t) g_rand_int_range (random, (gint32) nr_sectors / 2,
                                          (gint32) nr_sectors + 1);
}

/* Base first; none is larger than one above it. */
static void
draw_deltas (GRand *random, unsigned nr, struct deltas *deltas)
{
  const bool raw_base = drawn_chance (random, 45);
  const unsigned version = DRAW (random, 1, 2);
  uint32_t sizes[DELTAS_MAX] = { 0 };

  deltas->cluster_sectors = DRAW (random, 8, 16, 63, 64);
  sizes[nr - 1] =
    (uint32_t) g_rand_int_range (random, 200, (gint32) DRAW (random, 900, 4500));
  for (unsigned i = nr - 1; i-- > 0;)
    sizes[i] = smaller (random, sizes[i + 1]);
  for (unsigned i = 0; i < nr; i++) {
    const struct delta_plan plan = {
      .parent = i > 0 ? i - 1 : DELTAS_NONE,
      .version = i == 0 && raw_base ? 0 : version,
      .nr_sectors = sizes[i],
      .used = DRAW (random, 10, 40, 60),
      .holes = DRAW (random, 0, 30),
      .empty = DRAW (random, 0, 20),
    };

    deltas_add (deltas, &plan, random);
  }
}

static void
draw_faults (GRand *random, struct recorder_faults *faults)
{
  faults->no_punch = drawn_chance (random, 20);
  faults->no_zero_range = drawn_chance (random, 20);
  faults->no_reserve = drawn_chance (random, 20);
  if (drawn_chance (random, 15))
    faults->no_space = 0.03;
  if (drawn_chance (random, 15))
    faults->failing_sync = (unsigned) g_rand_int_range (random, 1, 6);
}

static struct round
draw_round (uint32_t seed)
{
  GRand *random = g_rand_new_with_seed (seed);
  struct round round = { .seed = seed };
  const unsigned nr_below = DRAW (random, 0, 0, 1);
  const unsigned nr_uppers = DRAW (random, 1, 1, 2, 3);
  const unsigned nr_above = DRAW (random, 0, 0, 1);

  draw_deltas (random, nr_below + 1 + nr_uppers + nr_above, &round.deltas);
  round.lower = nr_below;
  round.upper = nr_below + nr_uppers;
  if (round.lower == 0 && drawn_chance (random, 30))
    round.way = MERGE_ALL;
  else if (nr_uppers == 1 && drawn_chance (random, 50))
    round.way = DELETE_SNAPSHOT;
  draw_faults (random, &round.faults);
  round.patience = DRAW (random, 0, 0, 0, 1, 2);
  g_rand_free (random);
  return round;
}

/* ---- Judging what is read ---------------------------------------------- */

/* Does delta I of DELTAS read as the delta that is kept did? */
static void
check_content (const struct round *round, const struct deltas *deltas,
               unsigned i, const char *what)
{
  const uint32_t nr = round->deltas.files[round->upper].nr_sectors;

  for (uint32_t s = 0; s < nr && !rules_broken; s++)
    if (memcmp (deltas_sector (deltas, i, s),
                deltas_sector (&round->deltas, round->upper, s), SECTOR) != 0)
      rules_break ("sector %u has changed, %s", s, what);
}

/* The disk as it was, but for the lower delta. */
static bool
exchange_lower (const struct round *round, struct deltas *deltas,
                const uint8_t *bytes, uint64_t size)
{
  g_autofree char *fault = NULL;

  *deltas = round->deltas;
  fault = deltas_exchange (deltas, round->lower, bytes, size);
  if (fault)
    rules_break ("the lower delta: %s", fault);
  return !fault;
}

static bool
names (const char *text, const struct deltas *deltas, unsigned i)
{
  return strstr (text, deltas->files[i].name) != NULL;
}

/* The descriptor is replaced for the last time: NULL, it is not. */
static const struct step *
find_last_step (const struct round *round)
{
  for (guint i = 0; i < steps->len; i++) {
    const struct step *step = &g_array_index (steps, struct step, i);

    if (step->kind == REPLACED
        && !names (step->text, &round->deltas, round->upper))
      return step;
  }
  return NULL;
}

/* The directory's sync after STEP: UINT64_MAX, there is none. */
static uint64_t
find_sync (const struct step *step)
{
  const struct step *end = &g_array_index (steps, struct step, steps->len);

  while (++step < end)
    if (step->kind == SYNCED)
      return step->moment;
  return UINT64_MAX;
}

/* At MOMENT, which descriptors may be there? */
static bool
may_be_old (const struct step *last, uint64_t moment)
{
  return !last || moment <= find_sync (last);
}

static bool
may_be_new (const struct step *last, uint64_t moment)
{
  return last && moment > last->moment;
}

static void
check_mark (const struct round *round, const struct deltas *deltas,
            const struct recorder_cut *cut, uint64_t moment)
{
  const struct delta_file *lower = &deltas->files[round->lower];
  static const uint8_t closed[4];

  /* One that grows is closed in between. */
  if (lower->raw
      || round->deltas.files[round->lower].nr_sectors
           < round->deltas.files[round->upper].nr_sectors)
    return;
  if (cut->changed && lower->reader.in_use != READER_IN_USE
      && moment <= recorder_find_write (44, closed, sizeof closed))
    rules_break ("changed, but not marked as in use");
}

static void
check_cut (const struct recorder_cut *cut, uint64_t moment, void *opaque)
{
  const struct round *round = opaque;
  const struct step *last = find_last_step (round);
  struct deltas deltas;

  if (!exchange_lower (round, &deltas, cut->bytes, cut->size))
    return;
  if (may_be_old (last, moment))
    check_content (round, &deltas, round->upper, "under the upper deltas");
  if (may_be_new (last, moment))
    check_content (round, &deltas, round->lower, "without the upper deltas");
  check_mark (round, &deltas, cut, moment);
}

/* ---- Judging the order of steps ---------------------------------------- */

/* Is each snapshot that goes said to be temporary? */
static bool
says_temporary (const struct round *round, const char *text)
{
  for (unsigned i = round->lower; i < round->upper; i++) {
    g_autofree char *guid =
      g_strdup_printf ("<GUID>%s</GUID>", round->deltas.files[i].guid);
    const char *shot = strstr (strstr (text, "<Snapshots>"), guid);
    const char *end = shot ? strstr (shot, "</Shot>") : NULL;
    const char *mark = shot ? strstr (shot, "<Temporary") : NULL;

    if (!mark || !end || mark > end)
      return false;
  }
  return true;
}

/* Before the first change, it is on disk that their content is lost. */
static void
check_first_step (const struct round *round)
{
  const struct step *step = &g_array_index (steps, struct step, 0);

  if (steps->len < 2)
    rules_break ("no snapshot was marked as temporary");
  else if (step[0].kind != REPLACED || step[1].kind != SYNCED)
    rules_break ("the descriptor is not replaced and synced first");
  else if (!says_temporary (round, step[0].text))
    rules_break ("what goes is not said to be temporary");
  else if (step[1].nr_changes != 0)
    rules_break ("the lower delta is written to before that is on disk");
}

static void
check_steps (const struct round *round, bool complete)
{
  const struct step *last = find_last_step (round);
  unsigned nr_removed = 0;

  check_first_step (round);
  if (!rules_broken && complete != (last != NULL))
    rules_break (complete ? "the upper deltas are named still"
                          : "the upper deltas are not named any more");
  for (guint i = 0; i < steps->len && !rules_broken; i++) {
    const struct step *step = &g_array_index (steps, struct step, i);

    if (step->kind != REMOVED)
      continue;
    nr_removed++;
    if (!last || step->moment < find_sync (last))
      rules_break ("a file is removed before the descriptor that does not name it "
                   "is there for good");
  }
  if (!rules_broken && complete && nr_removed != round->upper - round->lower)
    rules_break ("%u files are removed", nr_removed);
}

/* ---- Merging ----------------------------------------------------------- */

static bool
on_progress (void *opaque, uint64_t nr_bytes_done, uint64_t nr_bytes)
{
  (void) opaque;
  (void) nr_bytes_done;
  (void) nr_bytes;
  return nr_calls_left == 0 || --nr_calls_left > 0;
}

static int
merge (const struct round *round, const char *xml, bool *interrupted,
       GError **error)
{
  const struct delta_file *files = round->deltas.files;
  const struct ploop_merge_options options = {
    .snapshot = files[round->upper].guid,
    .into = round->way == MERGE_ALL ? NULL : files[round->lower].guid,
    .all = round->way == MERGE_ALL,
  };
  struct ploop_merge_result result;
  int r;

  if (round->way == DELETE_SNAPSHOT)
    r = ploop_delete_snapshot (xml, files[round->lower].guid, NULL, on_progress,
                               NULL, &result, error);
  else
    r = ploop_merge (xml, &options, on_progress, NULL, &result, error);
  *interrupted = result.interrupted;
  return r;
}

static void
check_files (const struct round *round, const char *directory)
{
  for (unsigned i = 0; i < round->deltas.nr && !rules_broken; i++) {
    g_autofree char *path =
      g_build_filename (directory, round->deltas.files[i].name, NULL);
    const bool goes = i > round->lower && i <= round->upper;

    if ((access (path, F_OK) == 0) == goes)
      rules_break ("%s is %s", path, goes ? "there still" : "gone");
  }
}

/* The lower delta is closed, and all that there is. */
static void
check_merged (const struct round *round, const char *directory)
{
  const char *name = round->deltas.files[round->lower].name;
  g_autofree char *path = g_build_filename (directory, name, NULL);
  g_autofree char *bytes = NULL;
  struct deltas deltas;
  gsize size;

  if (!g_file_get_contents (path, &bytes, &size, NULL))
    g_error ("%s cannot be read", path);
  if (!exchange_lower (round, &deltas, (const uint8_t *) bytes, size))
    return;
  check_content (round, &deltas, round->lower, "in the end");
  if (!deltas.files[round->lower].raw
      && deltas.files[round->lower].reader.in_use != READER_CLOSED)
    rules_break ("the lower delta is not closed in the end");
  if (deltas.files[round->lower].nr_sectors
      != round->deltas.files[round->upper].nr_sectors)
    rules_break ("the lower delta has %u sectors in the end",
                 deltas.files[round->lower].nr_sectors);
  check_files (round, directory);
}

/* Under the recorder.  Returns whether it got to its end. */
static bool
merge_recorded (const struct round *round)
{
  g_autoptr (GError) error = NULL;
  bool interrupted;
  int r;

  nr_calls_left = round->patience;
  r = merge (round, xml_path, &interrupted, &error);
  if (r == 0 && !interrupted)
    check_merged (round, disk_path);
  else if (r == -1 && round->faults.no_space == 0
           && round->faults.failing_sync == 0)
    rules_break ("it cannot be merged: %s", error->message);
  return r == 0 && !interrupted;
}

/* ---- Again ------------------------------------------------------------- */

/* The top, as the library reads it. */
static void
check_by_library (const struct round *round)
{
  const struct ploop_open_options options = { .read_only = true };
  const unsigned top = round->deltas.nr - 1;
  g_autoptr (GError) error = NULL;
  ploop_image *image = ploop_open (again_xml, &options, &error);
  uint8_t bytes[SECTOR];

  if (!image) {
    rules_break ("the disk cannot be opened: %s", error->message);
    return;
  }
  for (uint32_t s = 0;
       s < round->deltas.files[top].nr_sectors && !rules_broken; s++)
    if (ploop_pread (image, bytes, SECTOR, (uint64_t) s * SECTOR) != 0
        || memcmp (bytes, deltas_sector (&round->deltas, top, s), SECTOR) != 0)
      rules_break ("sector %u of the disk has changed, as the library reads it",
                   s);
  ploop_close (image, NULL);
}

/* The descriptor at MOMENT, from before the last step; NULL: the first one. */
static const char *
find_old_text (const struct step *last, uint64_t moment, GRand *random)
{
  const char *text = NULL;

  for (guint i = 0; i < steps->len; i++) {
    const struct step *step = &g_array_index (steps, struct step, i);

    if (step->kind == REPLACED && step != last && moment > step->moment
        && (moment > find_sync (step) || drawn_chance (random, 50)))
      text = step->text;
  }
  return text;
}

/* With that descriptor, merge once more. */
static void
merge_again (const struct round *round, bool is_old)
{
  g_autoptr (GError) error = NULL;
  bool interrupted;

  nr_calls_left = 0;
  check_by_library (round);
  if (rules_broken)
    return;
  if (merge (round, again_xml, &interrupted, &error) == 0)
    check_merged (round, again_path);
  else if (is_old)
    rules_break ("it cannot be merged again: %s", error->message);
  if (!rules_broken)
    check_by_library (round);
}

/* What is on disk after the cut. */
static void
lay_out (const struct round *round, const struct rounds_left *left,
         const char *text)
{
  g_autofree char *lower = g_build_filename (
    again_path, round->deltas.files[round->lower].name, NULL);

  deltas_save (&round->deltas, again_path);
  recorder_cut_save (left->cut, lower);
  if (text)
    drawn_save (again_xml, (const uint8_t *) text, strlen (text));
}

static void
go_on (const struct round *round, const struct rounds_left *left,
       GRand *random)
{
  const struct step *last = find_last_step (round);
  const bool is_old =
    may_be_old (last, left->moment)
    && !(may_be_new (last, left->moment) && drawn_chance (random, 50));

  lay_out (round, left,
           is_old ? find_old_text (last, left->moment, random) : last->text);
  merge_again (round, is_old);
  rounds_count_resumed ();
}

/* ---- Rounds ------------------------------------------------------------ */

static void
print_round (const struct round *round)
{
  const struct deltas *deltas = &round->deltas;
  static const char *const ways[] = { "into", "all", "delete" };

  fprintf (stderr, "PLOOP_TEST_SEED=%u: %s, %u deltas, %u to %u, %u sectors a "
           "cluster, patience %u, failing sync %u%s%s%s%s; sectors:", round->seed,
           ways[round->way], deltas->nr, round->lower, round->upper,
           deltas->cluster_sectors, round->patience, round->faults.failing_sync,
           round->faults.no_space > 0 ? ", no space" : "",
           round->faults.no_punch ? ", no punch" : "",
           round->faults.no_zero_range ? ", no zero range" : "",
           round->faults.no_reserve ? ", no reserve" : "");
  for (unsigned i = 0; i < deltas->nr; i++)
    fprintf (stderr, " %u%s", deltas->files[i].nr_sectors,
             deltas->files[i].raw ? " (raw)" : "");
  fputc ('\n', stderr);
}

static void
record (const struct round *round, bool broken_sync, GRand *random)
{
  g_autofree char *lower = g_build_filename (
    disk_path, round->deltas.files[round->lower].name, NULL);
  g_autoptr (GArray) left = NULL;
  uint64_t end;
  bool complete;

  recorder_start (lower, &round->faults, round->seed);
  steps = g_array_new (FALSE, FALSE, sizeof (struct step));
  g_array_set_clear_func (steps, clear_step);
  is_recorded = true;
  complete = merge_recorded (round);
  is_recorded = false;
  end = recorder_now ();
  if (!rules_broken)
    check_steps (round, complete);
  if (!rules_broken)
    left = rounds_cut (end, broken_sync, random, check_cut, (void *) round);
  recorder_stop ();
  for (guint i = 0; left && i < left->len && !rules_broken; i++)
    go_on (round, &g_array_index (left, struct rounds_left, i), random);
  g_array_unref (steps);
}

static void
run_round (uint32_t seed, bool broken_sync)
{
  struct round round = draw_round (seed);
  GRand *random = g_rand_new_with_seed (seed + 1);

  deltas_save (&round.deltas, disk_path);
  record (&round, broken_sync, random);
  if (rules_broken && !broken_sync)
    print_round (&round);
  deltas_remove (disk_path);
  deltas_remove (again_path);
  deltas_clear (&round.deltas);
  g_rand_free (random);
}

static const char *
make_directory (const char *name)
{
  const char *path = rounds_path (name);

  if (mkdir (path, 0700) == -1)
    g_error ("%s cannot be made", path);
  return path;
}

int
main (void)
{
  disk_path = make_directory ("disk");
  again_path = make_directory ("again");
  xml_path = rounds_path ("disk/DiskDescriptor.xml");
  again_xml = rounds_path ("again/DiskDescriptor.xml");
  return rounds_main (NR_ROUNDS, run_round);
}
