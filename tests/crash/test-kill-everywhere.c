/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Every command that changes a disk is killed at each of its system calls that change
 * something, and in the middle of each write: then the disk opens, reads as before or
 * as after, and has all its files; and the same command, run again, completes it.  What
 * a power cut would lose is judged by the order of the calls (killer.h); test-*-cut
 * lose it.
 *
 * A command is a row of the table at the end.  All work on the same disk, drawn at
 * random: a base, a snapshot of it, a leaf beside that where it is not in the way, the
 * top, and a file to be replaced.  What must be read is known from the format alone
 * (deltas.h).  This process only forks: the library's threads would be left behind.
 *
 * Environment: PLOOP_TEST_SEED; PLOOP_TEST_SCALE, per cent of the calls that are tried.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <glib.h>

#include "deltas.h"
#include "drawn.h"
#include "killer.h"
#include "ploop-core.h"
#include "rules.h"

#define SECTOR 512u
#define CLUSTER 64u             /* sectors */
#define OLD_SECTORS 320u        /* of base, snapshot and leaf */
#define NR_SECTORS 500u
#define MORE_SECTORS 620000u    /* so that the BAT takes another cluster */
#define FEWER_SECTORS 350u

/* The deltas; the last one is the top. */
enum { BASE, SNAPSHOT, LEAF };

/* What there is when a command has done its work. */
enum outcome {
  SAME,                         /* the disk reads as before */
  AS_SNAPSHOT,
  LARGER,
  SMALLER,
  COPIED,                       /* the other file is a copy of the disk */
  COPIED_RAW,
  EMPTIED,                      /* the other file is an empty image */
};

struct command {
  const char *name;
  int (*run) (GError **error);
  enum outcome outcome;
  bool with_leaf;
  bool once;                    /* again, when all is done, it fails */
  void (*prepare) (uint8_t *top, uint64_t size);        /* or NULL */
  bool is_damaged;              /* by that: cannot be read before */
};

static const struct command *command;
static char *directory, *other_directory;
static char *xml, *top_path, *other_path;
static struct deltas deltas;
static struct killer_report *report;
static unsigned nr_killed;

/* The other file, as it was drawn. */
static bool
is_old_file (void)
{
  struct stat st;

  return stat (other_path, &st) == 0 && st.st_size < 100;
}

/* ---- Commands ---------------------------------------------------------- */

static const char *
guid_of (unsigned i)
{
  return deltas.files[i].guid;
}

static int
create_snapshot (GError **error)
{
  return ploop_create_snapshot (xml, NULL, NULL, error);
}

static int
switch_and_keep (GError **error)
{
  const struct ploop_switch_options options = { .keep = true };

  return ploop_switch_snapshot (xml, guid_of (SNAPSHOT), &options, NULL, error);
}

static int
switch_and_discard (GError **error)
{
  const struct ploop_switch_options options = { .discard = true };

  return ploop_switch_snapshot (xml, guid_of (SNAPSHOT), &options, NULL, error);
}

static int
mark_temporary (GError **error)
{
  return ploop_mark_snapshot (xml, guid_of (SNAPSHOT), true, false, error);
}

static int
delete_snapshot (const char *guid, GError **error)
{
  struct ploop_merge_result result;

  return ploop_delete_snapshot (xml, guid, NULL, NULL, NULL, &result, error);
}

static int
delete_leaf (GError **error)
{
  return delete_snapshot (guid_of (LEAF), error);
}

static int
delete_by_merging (GError **error)
{
  return delete_snapshot (guid_of (SNAPSHOT), error);
}

static int
merge_all (GError **error)
{
  const struct ploop_merge_options options = { .all = true };
  struct ploop_merge_result result;

  return ploop_merge (xml, &options, NULL, NULL, &result, error);
}

static int
resize_to (uint64_t nr_sectors, GError **error)
{
  const struct ploop_resize_options options = { .discard = true };
  struct ploop_resize_result result;

  return ploop_resize (xml, nr_sectors * SECTOR, &options, NULL, NULL, &result,
                       error);
}

static int
make_larger (GError **error)
{
  return resize_to (MORE_SECTORS, error);
}

static int
make_smaller (GError **error)
{
  return resize_to (FEWER_SECTORS, error);
}

static int
compact (GError **error)
{
  struct ploop_compact_result result;

  return ploop_compact (top_path, NULL, NULL, NULL, &result, error);
}

static int
convert_to (bool raw, GError **error)
{
  const struct ploop_convert_options options = {
    .raw = raw,
    .overwrite = true,
    .cluster_size = CLUSTER * SECTOR,
  };
  struct ploop_convert_result result;

  return ploop_convert (xml, other_path, &options, NULL, NULL, &result, error);
}

static int
convert (GError **error)
{
  return convert_to (false, error);
}

static int
convert_to_raw (GError **error)
{
  return convert_to (true, error);
}

/* Both: to the other file, unless it is a copy already, and that into another form. */
static int
convert_in_place (GError **error)
{
  const struct ploop_convert_options options = {
    .overwrite = true,
    .version = 1,
    .cluster_size = 2 * CLUSTER * SECTOR,
  };
  struct ploop_convert_result result;

  if (is_old_file () && convert_to (false, error) == -1)
    return -1;
  return ploop_convert (other_path, other_path, &options, NULL, NULL, &result,
                        error);
}

static int
create (GError **error)
{
  const struct ploop_create_options options = {
    .size = NR_SECTORS * SECTOR,
    .overwrite = true,
  };

  return ploop_create (other_path, &options, error);
}

static int
repair_what (bool all, GError **error)
{
  const struct ploop_repair_options options = { .all = all };
  struct ploop_repair_result result;
  const int r = ploop_repair (xml, &options, NULL, NULL, NULL, NULL, &result,
                              error);

  ploop_repair_result_clear (&result);
  return r;
}

static int
repair_leaks (GError **error)
{
  return repair_what (false, error);
}

static int
repair_all (GError **error)
{
  return repair_what (true, error);
}

static int
add_bitmap (GError **error)
{
  struct ploop_bitmap_result result;

  return ploop_add_bitmap (xml, "{01234567-89ab-cdef-0123-456789abcdef}",
                           CLUSTER * SECTOR, true, NULL, &result, error);
}

static int
restore_descriptor (GError **error)
{
  const char *const files[] = { deltas.files[0].name, deltas.files[1].name,
                                deltas.files[2].name, NULL };
  const struct ploop_restore_options options = { .files = files };
  struct ploop_restore_result result;
  const int r = ploop_restore_descriptor (directory, &options, &result, error);

  ploop_restore_result_clear (&result);
  return r;
}

/* ---- The disk ---------------------------------------------------------- */

static void
add_delta (unsigned parent, uint32_t nr_sectors, GRand *random)
{
  const struct delta_plan plan = {
    .parent = parent,
    .version = 2,
    .nr_sectors = nr_sectors,
    .used = 50,
    .holes = 20,
    .empty = 10,
  };

  deltas_add (&deltas, &plan, random);
}

static void
draw_disk (uint32_t seed)
{
  GRand *random = g_rand_new_with_seed (seed);

  deltas.cluster_sectors = CLUSTER;
  add_delta (DELTAS_NONE, OLD_SECTORS, random);
  add_delta (BASE, OLD_SECTORS, random);
  if (command->with_leaf)
    add_delta (BASE, OLD_SECTORS, random);
  add_delta (SNAPSHOT, NR_SECTORS, random);
  g_free (top_path);
  top_path =
    g_build_filename (directory, deltas.files[deltas.nr - 1].name, NULL);
  if (command->prepare)
    command->prepare ((uint8_t *) deltas.files[deltas.nr - 1].bytes,
                      deltas.files[deltas.nr - 1].size);
  g_rand_free (random);
}

static void
save_disk (void)
{
  static const char old[] = "what was there before\n";

  deltas_save (&deltas, directory);
  deltas_remove (other_directory);
  drawn_save (other_path, (const uint8_t *) old, sizeof old);
}

/* It was in use when it was killed. */
static void
mark_in_use (uint8_t *top, uint64_t size)
{
  (void) size;
  memcpy (top + 44, "Ynot", 4);
}

/* Two entries name one place. */
static void
damage_bat (uint8_t *top, uint64_t size)
{
  uint32_t *entries = (uint32_t *) (void *) (top + 64);
  const uint32_t nr_entries = (NR_SECTORS + CLUSTER - 1) / CLUSTER;
  uint32_t last = 0;

  mark_in_use (top, size);
  for (uint32_t i = 0; i < nr_entries; i++) {
    if (entries[i] != 0 && last != 0) {
      entries[i] = last;
      break;
    }
    if (entries[i] != 0)
      last = entries[i];
  }
}

/* ---- What is read ------------------------------------------------------ */

static uint32_t
nr_sectors_after (void)
{
  switch (command->outcome) {
  case AS_SNAPSHOT: return OLD_SECTORS;
  case LARGER: return MORE_SECTORS;
  case SMALLER: return FEWER_SECTORS;
  default: return NR_SECTORS;
  }
}

/* The disk, before or after. */
static const uint8_t *
expected (bool after, uint32_t sector)
{
  static const uint8_t zeroes[SECTOR];

  if (sector >= NR_SECTORS)
    return zeroes;
  return deltas_sector (&deltas,
                        after && command->outcome == AS_SNAPSHOT ? SNAPSHOT
                                                                 : deltas.nr - 1,
                        sector);
}

static bool
reads_as (ploop_image *image, bool after)
{
  const uint32_t nr = after ? nr_sectors_after () : NR_SECTORS;
  /* What is added is zeros: not all of that is read.  What goes may be gone. */
  const uint32_t nr_read = command->outcome == SMALLER
                             ? FEWER_SECTORS : MIN (nr, NR_SECTORS + 100);
  uint8_t bytes[SECTOR];

  if (ploop_size (image) != (uint64_t) nr * SECTOR)
    return false;
  for (uint32_t i = 0; i < nr_read; i++)
    if (ploop_pread (image, bytes, SECTOR, (uint64_t) i * SECTOR) != 0
        || memcmp (bytes, expected (after, i), SECTOR) != 0)
      return false;
  return true;
}

/* In a process of its own: these print what is wrong, and return false. */

static bool
complain (const char *format, ...) G_GNUC_PRINTF (1, 2);

static bool
complain (const char *format, ...)
{
  va_list args;

  va_start (args, format);
  vfprintf (stderr, format, args);
  va_end (args);
  fputc ('\n', stderr);
  return false;
}

static bool
check_disk (bool done)
{
  const struct ploop_open_options options = { .read_only = true };
  g_autoptr (GError) error = NULL;
  ploop_image *image = ploop_open (xml, &options, &error);
  bool ok;

  if (!image)
    return complain ("the disk cannot be opened: %s", error->message);
  ok = reads_as (image, true) || (!done && reads_as (image, false));
  ploop_close (image, NULL);
  return ok || complain ("the disk does not read as %s after",
                         done ? "it must" : "before, nor as");
}

static void
print_finding (void *opaque, const char *file, enum ploop_finding finding,
               const char *message)
{
  (void) opaque;
  if (finding == PLOOP_FINDING_ERROR)
    fprintf (stderr, "%s: %s\n", file, message);
}

/* All files are there, and each is sound. */
static bool
check_structure (void)
{
  struct ploop_check_result result;
  g_autoptr (GError) error = NULL;

  if (ploop_check_disk (xml, false, print_finding, NULL, &result, &error) == -1)
    return complain ("the disk cannot be checked: %s", error->message);
  return result.nr_errors == 0 || complain ("the disk has errors");
}

static bool
is_copy (void)
{
  g_autoptr (GError) error = NULL;
  struct ploop_compare_result result;

  if (ploop_compare (xml, other_path, NULL, NULL, NULL, &result, &error) == -1)
    return complain ("the copy cannot be read: %s", error->message);
  return result.same;
}

static bool
is_empty (void)
{
  struct ploop_check_result result;
  g_autoptr (GError) error = NULL;

  if (ploop_check (other_path, NULL, NULL, &result, &error) == -1)
    return complain ("the new image cannot be read: %s", error->message);
  return result.nr_errors == 0 && result.nr_allocated == 0
         && result.nr_clusters > 0;
}

static bool
check_other (bool done)
{
  if (!done && is_old_file ())
    return true;
  if (command->outcome == COPIED || command->outcome == COPIED_RAW)
    return is_copy () || complain ("the copy is not one");
  if (command->outcome == EMPTIED)
    return is_empty () || complain ("the new image is not one");
  return is_old_file () || complain ("the other file has changed");
}

static bool
check_all (bool done)
{
  return check_structure () && check_disk (done) && check_other (done);
}

/* ---- Processes --------------------------------------------------------- */

/* Run BODY in a process of its own; returns its status. */
static int
in_process (int (*body) (uint64_t n, bool half), uint64_t n, bool half)
{
  const pid_t pid = fork ();
  int status;

  if (pid == -1)
    g_error ("fork: %s", g_strerror (errno));
  if (pid == 0) {
    /* One that hangs fails.  No two draw the same GUIDs. */
    alarm (100);
    g_random_set_seed ((guint32) getpid ());
    _exit (body (n, half));
  }
  while (waitpid (pid, &status, 0) == -1)
    if (errno != EINTR)
      g_error ("waitpid: %s", g_strerror (errno));
  return WIFEXITED (status) ? WEXITSTATUS (status) : 128 + WTERMSIG (status);
}

static int
run_command (uint64_t n, bool half)
{
  g_autoptr (GError) error = NULL;
  int r;

  killer_start (report, n, half);
  r = command->run (&error);
  killer_stop ();
  if (r == -1)
    complain ("%s", error->message);
  else if (report->broken[0] != '\0')
    complain ("order of calls: %s", report->broken);
  return r == -1 || report->broken[0] != '\0';
}

static int
look_at_end (uint64_t n, bool half)
{
  (void) n;
  (void) half;
  return check_all (true) ? EXIT_SUCCESS : EXIT_FAILURE;
}

static bool
was_done (void)
{
  const struct ploop_open_options options = { .read_only = true };
  ploop_image *image = ploop_open (xml, &options, NULL);
  const bool ok = image && reads_as (image, true);

  ploop_close (image, NULL);
  return ok;
}

/* What is left is sound, and the command is run again.  One that fails since there is
 * no more to do, must be done.
 */
static int
go_on (uint64_t n, bool half)
{
  g_autoptr (GError) error = NULL;

  (void) n;
  (void) half;
  if (!command->is_damaged && !check_all (false))
    return EXIT_FAILURE;
  if (command->run (&error) == -1
      && !(command->once && was_done ()
           && (g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT)
               || g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_EXISTS)))) {
    complain ("again: %s", error->message);
    return EXIT_FAILURE;
  }
  return check_all (true) ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* ---- Killing ----------------------------------------------------------- */

/* Returns false when there is no such call. */
static bool
kill_at (uint64_t n, bool half)
{
  int status;

  save_disk ();
  status = in_process (run_command, n, half);
  if (status != KILLER_STATUS) {
    if (status != EXIT_SUCCESS)
      rules_break ("it fails, with status %d", status);
    else if (in_process (look_at_end, 0, false) != EXIT_SUCCESS)
      rules_break ("it is not what it should be in the end");
    return false;
  }
  nr_killed++;
  if (in_process (go_on, 0, false) != EXIT_SUCCESS) {
    rules_break ("what is left is not sound, or cannot be gone on with");
    fprintf (stderr, "killed at call %" G_GUINT64_FORMAT "%s, %s\n", n,
             half ? ", half of it made" : "", report->last);
  }
  return true;
}

static void
kill_everywhere (const struct command *what, uint32_t seed, uint32_t stride)
{
  uint64_t n = 1 + seed % stride;

  command = what;
  draw_disk (seed);
  while (!rules_broken && kill_at (n, false)) {
    if (!rules_broken && report->wrote)
      kill_at (n, true);
    n += stride;
  }
  printf ("%-24s %3" G_GUINT64_FORMAT " calls\n", what->name, report->nr_calls);
  fflush (stdout);
  if (rules_broken)
    fprintf (stderr, "PLOOP_TEST_SEED=%u: %s\n", seed, what->name);
  deltas_clear (&deltas);
}

static const struct command commands[] = {
  { .name = "snapshot create", .run = create_snapshot, .with_leaf = true },
  { .name = "snapshot switch --keep", .run = switch_and_keep,
    .outcome = AS_SNAPSHOT, .with_leaf = true },
  { .name = "snapshot switch --discard", .run = switch_and_discard,
    .outcome = AS_SNAPSHOT, .with_leaf = true },
  { .name = "snapshot mark-temporary", .run = mark_temporary },
  { .name = "snapshot delete, a leaf", .run = delete_leaf, .with_leaf = true,
    .once = true },
  { .name = "snapshot delete, merging", .run = delete_by_merging,
    .with_leaf = true, .once = true },
  { .name = "merge --all", .run = merge_all, .once = true },
  { .name = "resize, larger", .run = make_larger, .outcome = LARGER },
  { .name = "resize, smaller", .run = make_smaller, .outcome = SMALLER },
  { .name = "compact", .run = compact },
  { .name = "convert", .run = convert, .outcome = COPIED },
  { .name = "convert, and in place", .run = convert_in_place,
    .outcome = COPIED },
  { .name = "convert to raw", .run = convert_to_raw, .outcome = COPIED_RAW },
  { .name = "create --force", .run = create, .outcome = EMPTIED },
  { .name = "bitmap add", .run = add_bitmap, .once = true },
  { .name = "descriptor restore", .run = restore_descriptor },
  { .name = "repair, leaks", .run = repair_leaks, .prepare = mark_in_use },
  { .name = "repair, all", .run = repair_all, .prepare = damage_bat,
    .is_damaged = true },
};

/* ---- All --------------------------------------------------------------- */

static unsigned
number_from (const char *name, unsigned otherwise)
{
  const char *value = g_getenv (name);

  return value ? (unsigned) strtoul (value, NULL, 0) : otherwise;
}

static void
make_paths (void)
{
  /* Nothing here need really be durable. */
  if (!g_getenv ("TMPDIR") && access ("/dev/shm", W_OK) == 0)
    g_setenv ("TMPDIR", "/dev/shm", TRUE);
  directory = g_dir_make_tmp ("ploop-crash-XXXXXX", NULL);
  other_directory = g_dir_make_tmp ("ploop-crash-XXXXXX", NULL);
  xml = g_build_filename (directory, "DiskDescriptor.xml", NULL);
  other_path = g_build_filename (other_directory, "other", NULL);
  report = mmap (NULL, sizeof *report, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (report == MAP_FAILED)
    g_error ("mmap: %s", g_strerror (errno));
}

static void
free_paths (void)
{
  deltas_remove (directory);
  deltas_remove (other_directory);
  rmdir (directory);
  rmdir (other_directory);
  munmap (report, sizeof *report);
  g_free (directory);
  g_free (other_directory);
  g_free (xml);
  g_free (top_path);
  g_free (other_path);
}

int
main (int argc, char **argv)
{
  const uint32_t seed = number_from ("PLOOP_TEST_SEED", g_random_int ());
  const unsigned scale = MAX (number_from ("PLOOP_TEST_SCALE", 100), 1);
  const unsigned nr_rounds = MAX (scale / 100, 1);
  bool broken;

  printf ("PLOOP_TEST_SEED=%u\n", seed);
  make_paths ();
  for (unsigned round = 0; round < nr_rounds; round++)
    for (size_t i = 0; i < G_N_ELEMENTS (commands) && !rules_broken; i++)
      if (argc < 2 || strstr (commands[i].name, argv[1]))
        kill_everywhere (&commands[i], seed + round, MAX (100 / scale, 1));
  printf ("%u crash states\n", nr_killed);
  broken = rules_broken != NULL;
  if (broken)
    fprintf (stderr, "%s\n", rules_broken);
  rules_forget_broken ();
  free_paths ();
  return broken ? EXIT_FAILURE : EXIT_SUCCESS;
}
