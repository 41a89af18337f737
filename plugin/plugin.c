/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* nbdkit-ploop-plugin: parameters in, libploop-core calls out.
 *
 * Of a server of one disk, that is opened and checked in get_ready, so that what is
 * wrong with it is said before the server goes to the background; started after it
 * has; stopped in cleanup or, if that is not reached, in unload.  Its snapshots, and
 * the disks below a directory, are opened when clients ask for them (exports.h).
 * nbdkit 1.32 may end without either: the library keeps the files such that this
 * does no harm.
 *
 * Every callback may run on many threads at once.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "command-line.h"
#include "exports.h"
#include "ploop-core.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* The most that one NBD request may carry. */
#define MAX_REQUEST (UINT32_C (64) << 20)
/* The largest preferred block size that nbdkit and the protocol allow. */
#define MAX_PREFERRED (UINT32_C (32) << 20)

/* The longest export name of the protocol, bytes. */
#define MAX_NAME 4096u

#define DEFAULT_IDLE_SECONDS 30u
#define MAX_IDLE_SECONDS 86400u

/* -D ploop.requests=1: each request.  -D ploop.metadata=1: what is done to the
 * image beside the guest's data.  -D ploop.stats=1: statistics at the end.
 */
NBDKIT_DLL_PUBLIC int ploop_debug_requests;
NBDKIT_DLL_PUBLIC int ploop_debug_metadata;
NBDKIT_DLL_PUBLIC int ploop_debug_stats;

static char *file;
static char *directory;         /* instead of a file */
static unsigned idle_seconds = DEFAULT_IDLE_SECONDS;
static bool idle_is_given;
static GPtrArray *bases;        /* of char *; ends with NULL once complete */
static char *overlay;
static char *snapshot_guid;
static unsigned extents_flags;
static struct ploop_open_options options;
static ploop_image *image;      /* of a server of one disk */
static ploop_engine *engine;    /* of one of many */

/* ---- Parameters -------------------------------------------------------- */

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
  if (file) {
    nbdkit_error ("file= is given twice ('%s' and '%s'): one image a server",
                  file, value);
    return -1;
  }
  if (*value == '\0') {
    nbdkit_error ("file= is empty: give the path of an image");
    return -1;
  }
  file = real_name (value);
  return file ? 0 : -1;
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

  return set_word (key, value, words, &options.cache);
}

static int
set_prealloc_mode (const char *key, const char *value)
{
  static const char *const words[] = {
    [PLOOP_PREALLOC_FALLOC] = "falloc",
    [PLOOP_PREALLOC_TRUNCATE] = "truncate",
    NULL,
  };

  return set_word (key, value, words, &options.prealloc_mode);
}

static int
set_enospc (const char *key, const char *value)
{
  static const char *const words[] = {
    [PLOOP_ENOSPC_REPORT] = "report",
    [PLOOP_ENOSPC_WAIT] = "wait",
    NULL,
  };

  return set_word (key, value, words, &options.enospc);
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

  return set_word (key, value, words, &options.discard);
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

  return set_word (key, value, words, &options.detect_zeroes);
}

static int
set_copy_on_write (const char *key, const char *value)
{
  static const char *const words[] = {
    [PLOOP_COPY_EAGER] = "eager",
    [PLOOP_COPY_LAZY] = "lazy",
    NULL,
  };

  return set_word (key, value, words, &options.copy_on_write);
}

static int
set_extents (const char *key, const char *value)
{
  static const char *const words[] = {
    [0] = "cluster",
    [PLOOP_EXTENTS_DETAIL] = "detail",
    NULL,
  };

  return set_word (key, value, words, &extents_flags);
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

  options.no_fast_path = !on;
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
  options.prealloc = (uint64_t) size;
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
  return parse_number (key, value, 1, PLOOP_MAX_RUNNERS, &options.runners);
}

static int
set_copy_delay (const char *key, const char *value)
{
  return parse_number (key, value, 1, PLOOP_MAX_DELAY, &options.copy_delay);
}

static int
set_writeback_delay (const char *key, const char *value)
{
  return parse_number (key, value, 0, PLOOP_MAX_DELAY,
                       &options.writeback_delay);
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
  return parse_bool (key, value, &options.base_cache);
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
  return parse_bool (key, value, &options.allow_outside);
}

static int
set_dir (const char *key, const char *value)
{
  if (directory || *value == '\0') {
    nbdkit_error ("%s=%s: give the path of one directory", key, value);
    return -1;
  }
  directory = nbdkit_realpath (value);
  return directory ? 0 : -1;
}

static int
set_idle_close (const char *key, const char *value)
{
  idle_is_given = true;
  return parse_number (key, value, 0, MAX_IDLE_SECONDS, &idle_seconds);
}

static const struct parameter {
  const char *key;
  int (*set) (const char *key, const char *value);
} parameters[] = {
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
  { "writeback-delay", set_writeback_delay },
};

static int
ploop_config (const char *key, const char *value)
{
  if (strcmp (key, "file") == 0)
    return set_file (value);
  for (size_t i = 0; i < G_N_ELEMENTS (parameters); i++)
    if (strcmp (key, parameters[i].key) == 0)
      return parameters[i].set (key, value);
  nbdkit_error ("unknown parameter '%s': 'nbdkit ploop --help' lists those that "
                "there are", key);
  return -1;
}

/* What is said of a disk cannot be said of all below a directory. */
static bool
have_one_kind (void)
{
  const char *other = file ? "file" : bases ? "base" : overlay ? "overlay"
                      : snapshot_guid ? "snapshot" : NULL;

  if (directory && other) {
    nbdkit_error ("dir=%s: leave out %s=, which belongs to a server of one disk",
                  directory, other);
    return false;
  }
  if (!directory && idle_is_given) {
    nbdkit_error ("idle-close=%u is for dir=: the disk of file= is always open",
                  idle_seconds);
    return false;
  }
  return true;
}

static int
ploop_config_complete (void)
{
  if (!file && !directory) {
    nbdkit_error ("no image given: nbdkit ploop file=IMAGE, or dir=DIRECTORY");
    return -1;
  }
  if (!have_one_kind ())
    return -1;
  if (bases) {
    g_ptr_array_add (bases, NULL);
    options.bases = (const char *const *) bases->pdata;
  }
  options.overlay = overlay;
  options.snapshot = snapshot_guid;
  if (options.discard == PLOOP_DISCARD_KEEP
      && options.prealloc_mode == PLOOP_PREALLOC_TRUNCATE) {
    nbdkit_error ("discard=keep makes no holes in the file, but "
                  "prealloc-mode=truncate does: use prealloc-mode=falloc");
    return -1;
  }
  return 0;
}

#define ploop_config_help \
  "[file=]<DISK>          A ploop image (.hds), a DiskDescriptor.xml or the\n" \
  "                       directory that holds one; or:\n" \
  "dir=<DIRECTORY>        All disks below it, as exports by their relative names.\n" \
  "idle-close=<SECONDS>   With dir=: close a disk that nobody uses (default 30).\n" \
  "snapshot=<GUID>        Serve this snapshot of it, to be read.\n" \
  "base=<IMAGE>           A lower delta; once for each, the base last.\n" \
  "base-cache=<BOOL>      Keep what is read from a base on a server (default off).\n" \
  "overlay=<IMAGE>        Write to this delta only (created if missing).\n" \
  "allow-outside=<BOOL>   The descriptor may name files elsewhere (default off).\n" \
  "cache=<MODE>           writeback (default), none (O_DIRECT), writethrough.\n" \
  "discard=<MODE>         unmap (default), keep (no holes in the file) or off.\n" \
  "detect-zeroes=<MODE>   off (default), on or unmap: writes of zeros.\n" \
  "extents=<MODE>         cluster (default) or detail: how holes are told.\n" \
  "enospc=<MODE>          report (default) or wait when there is no space.\n" \
  "prealloc=<SIZE>        How much the file grows at once (default 128M).\n" \
  "prealloc-mode=<MODE>   falloc (default) or truncate.\n" \
  "runners=<N>            Worker threads (default: one a CPU, at most 16).\n" \
  "fast-path=<BOOL>       Serve in the request's own thread (default on).\n" \
  "writeback-delay=<MS>   How long BAT entries may wait (default 0).\n" \
  "copy-on-write=<MODE>   eager (default) or lazy: when small writes are answered.\n" \
  "copy-delay=<MS>        Commit copied clusters after (default 500)."

/* ---- Starting ---------------------------------------------------------- */

static void
write_log (void *opaque, enum ploop_log_level level, const char *message)
{
  (void) opaque;
  /* nbdkit has no warnings: an error that is only said. */
  if (level == PLOOP_LOG_WARNING)
    nbdkit_error ("warning: %s", message);
  else if (ploop_debug_metadata)
    nbdkit_debug ("%s", message);
}

/* nbdkit waits for its requests before it calls cleanup: those that wait for
 * space must learn earlier that the server is to end.  The one way to ask is a
 * sleep that is cut short then.
 */
static bool
is_ending (void *opaque)
{
  (void) opaque;
  return nbdkit_nanosleep (0, 1) == -1;
}

static void print_statistics (const struct export *export);

static void
say_error (const GError *error)
{
  nbdkit_error ("%s", error->message);
}

/* Also of a server of one disk, which will have snapshots. */
static void
init_exports (void)
{
  const struct exports_options exports_options = {
    .path = file ? file : directory,
    .disk = image,
    .open = &options,
    .idle_seconds = idle_seconds,
    .closing = print_statistics,
    .failed = say_error,
  };

  exports_init (&exports_options);
}

/* Every disk takes some file descriptors. */
static void
allow_many_files (void)
{
  struct rlimit limit;

  if (getrlimit (RLIMIT_NOFILE, &limit) == -1)
    return;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit (RLIMIT_NOFILE, &limit) == -1)
    nbdkit_debug ("RLIMIT_NOFILE cannot be raised: %s", g_strerror (errno));
}

static int
get_directory_ready (void)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (GPtrArray) disks = ploop_list_disks (directory, &error);

  if (!disks) {
    nbdkit_error ("%s", error->message);
    return -1;
  }
  nbdkit_debug ("%s: %u disks", directory, disks->len);
  allow_many_files ();
  init_exports ();
  return 0;
}

static int
ploop_get_ready (void)
{
  g_autoptr (GError) error = NULL;

  /* A limit of the file size is an error of one request, not the end. */
  signal (SIGXFSZ, SIG_IGN);
  options.read_only = command_line_is_read_only ();
  /* nbdkit forks after this. */
  options.defer_start = true;
  options.measure_latency = ploop_debug_stats;
  options.log = write_log;
  options.give_up = is_ending;
  if (directory)
    return get_directory_ready ();
  image = ploop_open (file, &options, &error);
  if (!image) {
    nbdkit_error ("%s", error->message);
    return -1;
  }
  init_exports ();
  nbdkit_debug ("%s: ploop version %u, %" PRIu64 " bytes in clusters of %"
                PRIu32 " bytes, opened for %s", file, ploop_version (image),
                ploop_size (image), ploop_cluster_size (image),
                ploop_is_read_only (image) ? "reading" : "writing");
  return 0;
}

static int
ploop_after_fork (void)
{
  g_autoptr (GError) error = NULL;
  bool ok;

  if (directory) {
    engine = options.engine = ploop_engine_new (options.runners, &error);
    ok = engine != NULL;
  }
  else
    ok = ploop_start (image, &error) == 0;
  if (ok && exports_start (&error))
    return 0;
  nbdkit_error ("%s", error->message);
  return -1;
}

/* ---- Ending ------------------------------------------------------------ */

static void
print_statistics (const struct export *export)
{
  struct ploop_statistics statistics;
  g_autofree char *text = NULL;
  g_auto (GStrv) lines = NULL;

  if (!ploop_debug_stats)
    return;
  nbdkit_debug ("stats: %s", export->path);
  ploop_get_statistics (export->image, &statistics);
  text = ploop_describe_statistics (&statistics);
  lines = g_strsplit (text, "\n", -1);
  for (char **line = lines; *line; line++)
    if (**line)
      nbdkit_debug ("stats: %s", *line);
}

/* nbdkit may still be in a request: nothing is freed yet. */
static void
stop_image (void)
{
  g_autoptr (GError) error = NULL;
  const struct export disk = { image, file };

  exports_stop ();
  if (!image)
    return;
  if (ploop_stop (image, &error) == -1)
    nbdkit_error ("%s", error->message);
  print_statistics (&disk);
}

static void
ploop_unload (void)
{
  g_autoptr (GError) error = NULL;

  exports_close ();
  if (ploop_close (g_steal_pointer (&image), &error) == -1)
    nbdkit_error ("%s", error->message);
  g_clear_pointer (&engine, ploop_engine_free);
  g_clear_pointer (&directory, free);
  g_clear_pointer (&bases, g_ptr_array_unref);
  g_clear_pointer (&overlay, free);
  g_clear_pointer (&snapshot_guid, free);
  g_clear_pointer (&file, free);
}

/* ---- About the plugin -------------------------------------------------- */

static void
ploop_dump_plugin (void)
{
  printf ("ploop_core_version=%s\n", PACKAGE_VERSION);
  printf ("plugin_feature=format-v1\n");
  printf ("plugin_feature=format-v2\n");
  printf ("plugin_feature=chains\n");
  printf ("plugin_feature=snapshot-exports\n");
  printf ("plugin_feature=directory-exports\n");
  printf ("plugin_feature=write\n");
  printf ("plugin_feature=fua\n");
  printf ("plugin_feature=multi-conn\n");
  printf ("plugin_feature=zero\n");
  printf ("plugin_feature=trim\n");
  printf ("plugin_feature=extents\n");
  printf ("plugin_feature=cache\n");
  for (size_t i = 0; i < G_N_ELEMENTS (parameters); i++)
    printf ("plugin_parameter=%s\n", parameters[i].key);
}

/* ---- Exports ----------------------------------------------------------- */

/* Date, parent and size: what one tells snapshots apart by. */
static char *
describe_snapshot (const struct ploop_snapshot *snapshot)
{
  GString *text = g_string_new (snapshot->is_temporary ? "temporary snapshot"
                                                       : "snapshot");
  g_autoptr (GDateTime) date =
    snapshot->last_change > 0
      ? g_date_time_new_from_unix_local (snapshot->last_change) : NULL;

  if (date) {
    g_autofree char *shown = g_date_time_format (date, "%Y-%m-%d %H:%M:%S");

    g_string_append_printf (text, " of %s", shown);
  }
  if (snapshot->parent)
    g_string_append_printf (text, ", parent %s", snapshot->parent);
  if (snapshot->size > 0)
    g_string_append_printf (text, ", %" PRIu64 " bytes", snapshot->size);
  return g_string_free (text, FALSE);
}

static int
add_export (void *opaque, const char *name,
            const struct ploop_snapshot *snapshot)
{
  g_autofree char *description = snapshot ? describe_snapshot (snapshot) : NULL;

  /* What the protocol cannot say. */
  if (strlen (name) > MAX_NAME || !g_utf8_validate (name, -1, NULL))
    return 0;
  if (!description)
    description = g_strdup (options.snapshot ? "the snapshot that was chosen"
                            : directory ? "disk" : "the disk");
  return nbdkit_add_export (opaque, name, description);
}

static int
ploop_plugin_list_exports (int readonly, int is_tls,
                           struct nbdkit_exports *exports)
{
  g_autoptr (GError) error = NULL;
  const int r = exports_list (add_export, exports, &error);

  (void) readonly;
  (void) is_tls;
  if (error)
    nbdkit_error ("%s", error->message);
  return r;
}

/* ---- A connection ------------------------------------------------------ */

static void *
ploop_plugin_open (int readonly)
{
  g_autoptr (GError) error = NULL;
  struct export *export = exports_get (nbdkit_export_name (), &error);

  (void) readonly;
  if (!export)
    nbdkit_error ("%s", error->message);
  return export;
}

static void
ploop_plugin_close (void *h)
{
  exports_put (h);
}

/* The image that a connection uses. */
static ploop_image *
image_of (void *h)
{
  const struct export *export = h;

  return export->image;
}

static int64_t
ploop_get_size (void *h)
{
  return (int64_t) ploop_size (image_of (h));
}

static int
ploop_plugin_block_size (void *h, uint32_t *minimum, uint32_t *preferred,
                         uint32_t *maximum)
{
  const uint32_t cluster_size = ploop_cluster_size (image_of (h));
  uint32_t power = 4096;

  /* The protocol wants a power of two from 512 to 32 MiB: the largest that a
   * cluster holds.
   */
  while (power * 2 <= cluster_size && power < MAX_PREFERRED)
    power *= 2;
  *minimum = 1;
  *preferred = power;
  *maximum = MAX_REQUEST;
  return 0;
}

static const char *
ploop_export_description (void *h)
{
  return nbdkit_printf_intern ("ploop version %u image, clusters of %" PRIu32
                               " bytes", ploop_version (image_of (h)),
                               ploop_cluster_size (image_of (h)));
}

static int
ploop_can_write (void *h)
{
  return !ploop_is_read_only (image_of (h));
}

static int
ploop_rotational (void *h)
{
  return ploop_is_rotational (image_of (h));
}

/* All connections work on one image: a flush on one covers all. */
static int
ploop_can_multi_conn (void *h)
{
  (void) h;
  return 1;
}

static int
ploop_can_fua (void *h)
{
  (void) h;
  return NBDKIT_FUA_NATIVE;
}

/* What is not fast is refused at once, as the flag wants it. */
static int
ploop_can_fast_zero (void *h)
{
  (void) h;
  return 1;
}

static int
ploop_can_extents (void *h)
{
  (void) h;
  return 1;
}

/* Without a page cache there is nowhere to prefetch to; the client is not to
 * send what would do nothing, nor shall nbdkit read it for that.
 */
static int
ploop_can_cache (void *h)
{
  (void) h;
  return options.cache == PLOOP_CACHE_NONE ? NBDKIT_CACHE_NONE
                                           : NBDKIT_CACHE_NATIVE;
}

/* ---- Requests ---------------------------------------------------------- */

/* What nbdkit wants of a request that returned R: 0 or a negative errno. */
static int
answer (const struct export *export, int r, const char *what, uint64_t length,
        uint64_t offset)
{
  if (ploop_debug_requests)
    nbdkit_debug ("%s %" PRIu64 " bytes at %" PRIu64 ": %s", what, length,
                  offset, r == 0 ? "ok" : g_strerror (-r));
  if (r == 0)
    return 0;
  nbdkit_error ("%s: %s of %" PRIu64 " bytes at %" PRIu64 " failed: %s",
                export->path, what, length, offset, g_strerror (-r));
  nbdkit_set_error (-r);
  errno = -r;
  return -1;
}

static unsigned
core_flags (uint32_t flags)
{
  return (flags & NBDKIT_FLAG_FUA ? PLOOP_FUA : 0)
         | (flags & NBDKIT_FLAG_MAY_TRIM ? PLOOP_UNMAP : 0)
         | (flags & NBDKIT_FLAG_FAST_ZERO ? PLOOP_FAST : 0);
}

static int
ploop_plugin_pread (void *h, void *buf, uint32_t count, uint64_t offset,
                    uint32_t flags)
{
  (void) flags;
  return answer (h, ploop_pread (image_of (h), buf, count, offset), "read",
                 count, offset);
}

static int
ploop_plugin_pwrite (void *h, const void *buf, uint32_t count,
                     uint64_t offset, uint32_t flags)
{
  return answer (h, ploop_pwrite (image_of (h), buf, count, offset,
                                  core_flags (flags)),
                 "write", count, offset);
}

static int
ploop_plugin_zero (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  const int r = ploop_zero (image_of (h), count, offset, core_flags (flags));

  /* Asked whether it is fast, and told that it is not: no error to speak of. */
  if (r == -ENOTSUP && (flags & NBDKIT_FLAG_FAST_ZERO)) {
    nbdkit_set_error (ENOTSUP);
    errno = ENOTSUP;
    return -1;
  }
  return answer (h, r, "zero", count, offset);
}

static int
ploop_plugin_trim (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  return answer (h, ploop_trim (image_of (h), count, offset,
                                core_flags (flags)),
                 "trim", count, offset);
}

static int
ploop_plugin_flush (void *h, uint32_t flags)
{
  (void) flags;
  return answer (h, ploop_flush (image_of (h)), "flush", 0, 0);
}

/* Which extents nbdkit wants. */
struct wanted {
  struct nbdkit_extents *extents;
  bool only_first;
};

static int
add_extent (void *opaque, uint64_t offset, uint64_t length, bool hole)
{
  const struct wanted *wanted = opaque;

  if (nbdkit_add_extent (wanted->extents, offset, length,
                         hole ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0)
      == -1)
    return errno != 0 ? -errno : -ENOMEM;
  return wanted->only_first;
}

static int
ploop_plugin_extents (void *h, uint32_t count, uint64_t offset,
                      uint32_t flags, struct nbdkit_extents *extents)
{
  struct wanted wanted = {
    .extents = extents,
    .only_first = (flags & NBDKIT_FLAG_REQ_ONE) != 0,
  };
  const int r = ploop_extents (image_of (h), count, offset, extents_flags,
                               add_extent, &wanted);

  return answer (h, MIN (r, 0), "extents", count, offset);
}

static int
ploop_plugin_cache (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void) flags;
  return answer (h, ploop_prefetch (image_of (h), count, offset), "cache",
                 count, offset);
}

static struct nbdkit_plugin plugin = {
  .name = "ploop",
  .longname = "nbdkit ploop plugin",
  .version = PACKAGE_VERSION,
  .description = "Serve Virtuozzo and OpenVZ ploop disk images",
  .unload = ploop_unload,
  .config = ploop_config,
  .config_complete = ploop_config_complete,
  .config_help = ploop_config_help,
  .magic_config_key = "file",
  .dump_plugin = ploop_dump_plugin,
  .get_ready = ploop_get_ready,
  .after_fork = ploop_after_fork,
  .cleanup = stop_image,
  .list_exports = ploop_plugin_list_exports,
  .open = ploop_plugin_open,
  .close = ploop_plugin_close,
  .get_size = ploop_get_size,
  .block_size = ploop_plugin_block_size,
  .export_description = ploop_export_description,
  .can_write = ploop_can_write,
  .is_rotational = ploop_rotational,
  .can_multi_conn = ploop_can_multi_conn,
  .can_fua = ploop_can_fua,
  .can_fast_zero = ploop_can_fast_zero,
  .can_extents = ploop_can_extents,
  .can_cache = ploop_can_cache,
  .pread = ploop_plugin_pread,
  .pwrite = ploop_plugin_pwrite,
  .zero = ploop_plugin_zero,
  .trim = ploop_plugin_trim,
  .extents = ploop_plugin_extents,
  .cache = ploop_plugin_cache,
  .flush = ploop_plugin_flush,
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN (plugin)
