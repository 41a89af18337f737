/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The plugin's parameters: see parameters.h. */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "parameters.h"

#define DEFAULT_IDLE_SECONDS 30u
#define MAX_IDLE_SECONDS 86400u
#define DEFAULT_STATS_SECONDS 10u
#define MAX_STATS_SECONDS 3600u

struct parameters parameters = {
  .idle_seconds = DEFAULT_IDLE_SECONDS,
  .stats_seconds = DEFAULT_STATS_SECONDS,
};

/* What parameters.open refers to. */
static GPtrArray *bases;        /* of char *; ends with NULL once complete */
static char *overlay;
static char *snapshot_guid;
static bool idle_is_given, interval_is_given;

/* nbdkit changes its directory before anything is opened.  A URI (below an overlay,
 * or as a base) is no path.
 */
static char *
real_name (const char *value)
{
  return strstr (value, "://") ? strdup (value) : nbdkit_realpath (value);
}

static int
set_file (const char *value)
{
  if (parameters.file) {
    nbdkit_error ("file= is given twice ('%s' and '%s'): one image a server",
                  parameters.file, value);
    return -1;
  }
  if (*value == '\0') {
    nbdkit_error ("file= is empty: give the path of an image");
    return -1;
  }
  parameters.file = real_name (value);
  return parameters.file ? 0 : -1;
}

/* One of the words of a NULL-terminated list: its index, or -1. */
static int
parse_word (const char *key, const char *value, const char *const *words)
{
  g_autofree char *all = NULL;

  for (int i = 0; words[i]; i++)
    if (strcmp (value, words[i]) == 0)
      return i;
  all = g_strjoinv (", ", (char **) words);
  nbdkit_error ("%s=%s: must be one of: %s", key, value, all);
  return -1;
}

static int
set_word (const char *key, const char *value, const char *const *words,
          unsigned *index)
{
  const int i = parse_word (key, value, words);

  *index = i < 0 ? 0 : (unsigned) i;
  return i < 0 ? -1 : 0;
}

static int
set_cache (const char *key, const char *value)
{
  static const char *const words[] = {
    [PLOOP_CACHE_WRITEBACK] = "writeback",
    [PLOOP_CACHE_NONE] = "none",
    [PLOOP_CACHE_WRITETHROUGH] = "writethrough",
    NULL,
  };

  return set_word (key, value, words, &parameters.open.cache);
}

static int
set_prealloc_mode (const char *key, const char *value)
{
  static const char *const words[] = {
    [PLOOP_PREALLOC_FALLOC] = "falloc",
    [PLOOP_PREALLOC_TRUNCATE] = "truncate",
    NULL,
  };

  return set_word (key, value, words, &parameters.open.prealloc_mode);
}

static int
set_enospc (const char *key, const char *value)
{
  static const char *const words[] = {
    [PLOOP_ENOSPC_REPORT] = "report",
    [PLOOP_ENOSPC_WAIT] = "wait",
    NULL,
  };

  return set_word (key, value, words, &parameters.open.enospc);
}

static int
set_discard (const char *key, const char *value)
{
  static const char *const words[] = {
    [PLOOP_DISCARD_UNMAP] = "unmap",
    [PLOOP_DISCARD_KEEP] = "keep",
    [PLOOP_DISCARD_OFF] = "off",
    NULL,
  };

  return set_word (key, value, words, &parameters.open.discard);
}

static int
set_detect_zeroes (const char *key, const char *value)
{
  static const char *const words[] = {
    [PLOOP_DETECT_ZEROES_OFF] = "off",
    [PLOOP_DETECT_ZEROES_ON] = "on",
    [PLOOP_DETECT_ZEROES_UNMAP] = "unmap",
    NULL,
  };

  return set_word (key, value, words, &parameters.open.detect_zeroes);
}

static int
set_copy_on_write (const char *key, const char *value)
{
  static const char *const words[] = {
    [PLOOP_COPY_EAGER] = "eager",
    [PLOOP_COPY_LAZY] = "lazy",
    NULL,
  };

  return set_word (key, value, words, &parameters.open.copy_on_write);
}

static int
set_extents (const char *key, const char *value)
{
  static const char *const words[] = {
    [0] = "cluster",
    [PLOOP_EXTENTS_DETAIL] = "detail",
    NULL,
  };

  return set_word (key, value, words, &parameters.extents_flags);
}

static int
parse_bool (const char *key, const char *value, bool *on)
{
  const int r = nbdkit_parse_bool (value);

  /* nbdkit has said what is wrong, but not with what. */
  if (r < 0) {
    nbdkit_error ("%s=%s: must be on or off", key, value);
    return -1;
  }
  *on = r != 0;
  return 0;
}

static int
set_fast_path (const char *key, const char *value)
{
  bool on = true;
  const int r = parse_bool (key, value, &on);

  parameters.open.no_fast_path = !on;
  return r;
}

static int
set_prealloc (const char *key, const char *value)
{
  const int64_t size = nbdkit_parse_size (value);

  if (size <= 0 || (uint64_t) size > PLOOP_MAX_PREALLOC) {
    nbdkit_error ("%s=%s: must be from 1 to %" PRIu64 " bytes", key, value,
                  PLOOP_MAX_PREALLOC);
    return -1;
  }
  parameters.open.prealloc = (uint64_t) size;
  return 0;
}

static int
parse_number (const char *key, const char *value, unsigned least,
              unsigned most, unsigned *number)
{
  if (nbdkit_parse_unsigned (key, value, number) == -1
      || *number < least || *number > most) {
    nbdkit_error ("%s=%s: must be from %u to %u", key, value, least, most);
    return -1;
  }
  return 0;
}

static int
set_runners (const char *key, const char *value)
{
  return parse_number (key, value, 1, PLOOP_MAX_RUNNERS, &parameters.open.runners);
}

static int
set_copy_delay (const char *key, const char *value)
{
  return parse_number (key, value, 1, PLOOP_MAX_DELAY, &parameters.open.copy_delay);
}

static int
set_writeback_delay (const char *key, const char *value)
{
  return parse_number (key, value, 0, PLOOP_MAX_DELAY,
                       &parameters.open.writeback_delay);
}

static int
add_base (const char *key, const char *value)
{
  char *path;

  if (*value == '\0') {
    nbdkit_error ("%s= is empty: give the path of a lower delta", key);
    return -1;
  }
  path = real_name (value);
  if (!path)
    return -1;
  if (!bases)
    bases = g_ptr_array_new_with_free_func (free);
  g_ptr_array_add (bases, path);
  return 0;
}

static int
set_base_cache (const char *key, const char *value)
{
  return parse_bool (key, value, &parameters.open.base_cache);
}

static int
set_overlay (const char *key, const char *value)
{
  if (overlay || *value == '\0') {
    nbdkit_error ("%s=%s: give one path, once", key, value);
    return -1;
  }
  overlay = nbdkit_absolute_path (value);
  return overlay ? 0 : -1;
}

static int
set_snapshot (const char *key, const char *value)
{
  if (snapshot_guid || *value == '\0') {
    nbdkit_error ("%s=%s: give the GUID of one snapshot", key, value);
    return -1;
  }
  snapshot_guid = strdup (value);
  return snapshot_guid ? 0 : -1;
}

static int
set_allow_outside (const char *key, const char *value)
{
  return parse_bool (key, value, &parameters.open.allow_outside);
}

static int
set_dir (const char *key, const char *value)
{
  if (parameters.directory || *value == '\0') {
    nbdkit_error ("%s=%s: give the path of one directory", key, value);
    return -1;
  }
  parameters.directory = nbdkit_realpath (value);
  return parameters.directory ? 0 : -1;
}

static int
set_idle_close (const char *key, const char *value)
{
  idle_is_given = true;
  return parse_number (key, value, 0, MAX_IDLE_SECONDS, &parameters.idle_seconds);
}

static int
set_stats_file (const char *key, const char *value)
{
  if (parameters.stats_file || *value == '\0') {
    nbdkit_error ("%s=%s: give the path of one file", key, value);
    return -1;
  }
  parameters.stats_file = nbdkit_absolute_path (value);
  return parameters.stats_file ? 0 : -1;
}

static int
set_stats_interval (const char *key, const char *value)
{
  interval_is_given = true;
  return parse_number (key, value, 1, MAX_STATS_SECONDS,
                       &parameters.stats_seconds);
}

static const struct parameter {
  const char *key;
  int (*set) (const char *key, const char *value);
} known[] = {
  { "allow-outside", set_allow_outside },
  { "base", add_base },
  { "base-cache", set_base_cache },
  { "cache", set_cache },
  { "copy-delay", set_copy_delay },
  { "copy-on-write", set_copy_on_write },
  { "detect-zeroes", set_detect_zeroes },
  { "dir", set_dir },
  { "discard", set_discard },
  { "enospc", set_enospc },
  { "extents", set_extents },
  { "fast-path", set_fast_path },
  { "idle-close", set_idle_close },
  { "overlay", set_overlay },
  { "prealloc", set_prealloc },
  { "prealloc-mode", set_prealloc_mode },
  { "runners", set_runners },
  { "snapshot", set_snapshot },
  { "stats-file", set_stats_file },
  { "stats-interval", set_stats_interval },
  { "writeback-delay", set_writeback_delay },
};

int
parameters_set (const char *key, const char *value)
{
  if (strcmp (key, "file") == 0)
    return set_file (value);
  for (size_t i = 0; i < G_N_ELEMENTS (known); i++)
    if (strcmp (key, known[i].key) == 0)
      return known[i].set (key, value);
  nbdkit_error ("unknown parameter '%s': 'nbdkit ploop --help' lists those that "
                "there are", key);
  return -1;
}

/* What is said of a disk cannot be said of all below a directory. */
static bool
have_one_kind (void)
{
  const char *other = parameters.file ? "file"
                      : bases         ? "base"
                      : overlay       ? "overlay"
                      : snapshot_guid ? "snapshot"
                                      : NULL;

  if (parameters.directory && other) {
    nbdkit_error ("dir=%s: leave out %s=, which belongs to a server of one disk",
                  parameters.directory, other);
    return false;
  }
  if (!parameters.directory && idle_is_given) {
    nbdkit_error ("idle-close=%u is for dir=: the disk of file= is always open",
                  parameters.idle_seconds);
    return false;
  }
  return true;
}

/* A file of statistics replaces what is there, also an overlay that was just made. */
static bool
stats_go_elsewhere (void)
{
  g_autofree char *stats = NULL;
  g_autofree char *other = NULL;

  if (!parameters.stats_file || !overlay)
    return true;
  stats = g_canonicalize_filename (parameters.stats_file, NULL);
  other = g_canonicalize_filename (overlay, NULL);
  if (strcmp (stats, other) != 0)
    return true;
  nbdkit_error ("stats-file=%s: is the overlay= too, which has the data: give another "
                "name", parameters.stats_file);
  return false;
}

int
parameters_complete (void)
{
  if (!parameters.file && !parameters.directory) {
    nbdkit_error ("no image given: nbdkit ploop file=IMAGE, or dir=DIRECTORY");
    return -1;
  }
  if (!have_one_kind () || !stats_go_elsewhere ())
    return -1;
  if (interval_is_given && !parameters.stats_file) {
    nbdkit_error ("stats-interval=%u is for stats-file=PATH, which is not given",
                  parameters.stats_seconds);
    return -1;
  }
  if (bases) {
    g_ptr_array_add (bases, NULL);
    parameters.open.bases = (const char *const *) bases->pdata;
  }
  parameters.open.overlay = overlay;
  parameters.open.snapshot = snapshot_guid;
  if (parameters.open.discard == PLOOP_DISCARD_KEEP
      && parameters.open.prealloc_mode == PLOOP_PREALLOC_TRUNCATE) {
    nbdkit_error ("discard=keep makes no holes in the file, but "
                  "prealloc-mode=truncate does: use prealloc-mode=falloc");
    return -1;
  }
  return 0;
}

void
parameters_dump (void)
{
  for (size_t i = 0; i < G_N_ELEMENTS (known); i++)
    printf ("plugin_parameter=%s\n", known[i].key);
}

void
parameters_clear (void)
{
  g_clear_pointer (&bases, g_ptr_array_unref);
  g_clear_pointer (&overlay, free);
  g_clear_pointer (&snapshot_guid, free);
  g_clear_pointer (&parameters.directory, free);
  g_clear_pointer (&parameters.stats_file, free);
  g_clear_pointer (&parameters.file, free);
}
