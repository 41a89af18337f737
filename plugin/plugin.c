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
#include "hang-up.h"
#include "notify.h"
#include "parameters.h"
#include "ploop-core.h"
#include "stats.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* The most that one NBD request may carry. */
#define MAX_REQUEST (UINT32_C (64) << 20)
/* The largest preferred block size that nbdkit and the protocol allow. */
#define MAX_PREFERRED (UINT32_C (32) << 20)

/* The longest export name of the protocol, bytes. */
#define MAX_NAME 4096u

/* -D ploop.requests=1: each request.  -D ploop.metadata=1: what is done to the
 * image beside the guest's data.  -D ploop.stats=1: statistics at the end.
 */
NBDKIT_DLL_PUBLIC int ploop_debug_requests;
NBDKIT_DLL_PUBLIC int ploop_debug_metadata;
NBDKIT_DLL_PUBLIC int ploop_debug_stats;

static ploop_image *image;      /* of a server of one disk */
static ploop_engine *engine;    /* of one of many */

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

static void end_export (const struct export *export);

static void
print_opened (const struct export *export)
{
  nbdkit_debug ("%s%s%s: ploop version %u, %" PRIu64 " bytes in clusters of %"
                PRIu32 " bytes, opened for %s", export->path,
                export->guid ? "/" : "", export->guid ? export->guid : "",
                ploop_version (export->image), ploop_size (export->image),
                ploop_cluster_size (export->image),
                ploop_is_read_only (export->image) ? "reading" : "writing");
}

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
    .path = parameters.file ? parameters.file : parameters.directory,
    .disk = image,
    .open = &parameters.open,
    .idle_seconds = parameters.idle_seconds,
    .opened = print_opened,
    .closing = end_export,
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
  g_autoptr (GPtrArray) disks = ploop_list_disks (parameters.directory, &error);

  if (!disks) {
    nbdkit_error ("%s", error->message);
    return -1;
  }
  nbdkit_debug ("%s: %u disks", parameters.directory, disks->len);
  allow_many_files ();
  init_exports ();
  return 0;
}

static bool
get_stats_ready (GError **error)
{
  const struct stats_options options = {
    .file = parameters.stats_file,
    .seconds = parameters.stats_seconds,
    .served = parameters.file ? parameters.file : parameters.directory,
  };

  return stats_get_ready (&options, error);
}

static int
ploop_get_ready (void)
{
  g_autoptr (GError) error = NULL;

  /* A limit of the file size is an error of one request, not the end. */
  signal (SIGXFSZ, SIG_IGN);
  if (!get_stats_ready (&error)) {
    nbdkit_error ("%s", error->message);
    return -1;
  }
  parameters.open.read_only = command_line_is_read_only ();
  /* nbdkit forks after this. */
  parameters.open.defer_start = true;
  parameters.open.measure_latency =
    ploop_debug_stats || parameters.stats_file;
  parameters.open.log = write_log;
  parameters.open.give_up = is_ending;
  if (parameters.directory)
    return get_directory_ready ();
  image = ploop_open (parameters.file, &parameters.open, &error);
  if (!image) {
    nbdkit_error ("%s", error->message);
    return -1;
  }
  init_exports ();
  print_opened (&(const struct export) { image, parameters.file, NULL });
  return 0;
}

/* No reason not to serve. */
static void
start_hanging_up (void)
{
  g_autoptr (GError) error = NULL;

  if (!hang_up_start (&error))
    nbdkit_error ("warning: %s: clients that stay will keep the server from "
                  "ending", error->message);
}

/* nbdkit listens by now. */
static void
say_ready (void)
{
  if (parameters.directory)
    notify_ready ("Serving the disks below %s", parameters.directory);
  else
    notify_ready ("Serving %s for %s", parameters.file,
                  ploop_is_read_only (image) ? "reading" : "writing");
}

static int
ploop_after_fork (void)
{
  g_autoptr (GError) error = NULL;
  bool ok;

  if (parameters.directory) {
    engine = ploop_engine_new (parameters.open.runners, &error);
    parameters.open.engine = engine;
    ok = engine != NULL;
  }
  else
    ok = ploop_start (image, &error) == 0;
  if (ok && exports_start (&error) && stats_start (&error)) {
    start_hanging_up ();
    say_ready ();
    return 0;
  }
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

static void
print_stopped (const struct export *export)
{
  nbdkit_debug ("%s%s%s: stopped", export->path, export->guid ? "/" : "",
                export->guid ? export->guid : "");
}

static void
end_export (const struct export *export)
{
  print_stopped (export);
  stats_closing (export);
  print_statistics (export);
}

static void
stop_image (void)
{
  g_autoptr (GError) error = NULL;
  const struct export disk = { image, parameters.file, NULL };

  if (!image)
    return;
  if (ploop_stop (image, &error) == -1)
    nbdkit_error ("%s", error->message);
  print_stopped (&disk);
  print_statistics (&disk);
}

/* nbdkit may still be in a request: nothing is freed yet.  Disks first: statistics may
 * have to wait for another file system.
 */
static void
stop_all (void)
{
  static bool stopped;

  if (stopped)
    return;
  stopped = true;
  hang_up_stop ();
  if (image || engine)
    notify_stopping ("Closing %s",
                     image ? parameters.file : parameters.directory);
  exports_stop ();
  stop_image ();
  stats_stop ();
  stats_finish ();
}

static void
ploop_unload (void)
{
  g_autoptr (GError) error = NULL;

  stop_all ();
  exports_close ();
  if (ploop_close (g_steal_pointer (&image), &error) == -1)
    nbdkit_error ("%s", error->message);
  g_clear_pointer (&engine, ploop_engine_free);
  parameters_clear ();
}

/* ---- About the plugin -------------------------------------------------- */

static void
ploop_dump_plugin (void)
{
  printf ("ploop_core_version=%s\n", PACKAGE_VERSION);
  printf ("ploop_sd_notify=%s\n", notify_is_there () ? "yes" : "no");
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
  printf ("plugin_feature=statistics\n");
  parameters_dump ();
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
    description = g_strdup (
      parameters.directory       ? "disk"
      : parameters.open.snapshot ? "the snapshot that was chosen"
                                 : "the disk");
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
  return parameters.open.cache == PLOOP_CACHE_NONE ? NBDKIT_CACHE_NONE
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
  const int r = ploop_extents (image_of (h), count, offset,
                               parameters.extents_flags, add_extent, &wanted);

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
  .config = parameters_set,
  .config_complete = parameters_complete,
  .config_help = PARAMETERS_HELP,
  .magic_config_key = "file",
  .dump_plugin = ploop_dump_plugin,
  .get_ready = ploop_get_ready,
  .after_fork = ploop_after_fork,
  .cleanup = stop_all,
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
