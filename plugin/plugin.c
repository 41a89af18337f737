/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* nbdkit-ploop-plugin: parameters in, libploop-core calls out.
 *
 * One image a server, opened and checked in get_ready, so that what is wrong
 * with it is said before the server goes to the background; closed in cleanup
 * or, if that is not reached, in unload, once.  nbdkit 1.32 may end without
 * either: the library keeps the file such that this does no harm.
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

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "command-line.h"
#include "ploop-core.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* The most that one NBD request may carry. */
#define MAX_REQUEST (UINT32_C (64) << 20)
/* The largest preferred block size that nbdkit and the protocol allow. */
#define MAX_PREFERRED (UINT32_C (32) << 20)

/* -D ploop.requests=1: each request.  -D ploop.metadata=1: what is done to the
 * image beside the guest's data.
 */
NBDKIT_DLL_PUBLIC int ploop_debug_requests;
NBDKIT_DLL_PUBLIC int ploop_debug_metadata;

static char *file;
static ploop_image *image;

/* Connections differ in nothing. */
static int handle;

/* ---- Starting ---------------------------------------------------------- */

static int
ploop_config (const char *key, const char *value)
{
  if (strcmp (key, "file") != 0) {
    nbdkit_error ("unknown parameter '%s': this plugin takes file=IMAGE", key);
    return -1;
  }
  if (file) {
    nbdkit_error ("file= is given twice ('%s' and '%s'): one image a server",
                  file, value);
    return -1;
  }
  if (*value == '\0') {
    nbdkit_error ("file= is empty: give the path of an image");
    return -1;
  }
  /* nbdkit changes its directory before the image is opened. */
  file = nbdkit_realpath (value);
  return file ? 0 : -1;
}

static int
ploop_config_complete (void)
{
  if (!file) {
    nbdkit_error ("no image given: nbdkit ploop file=IMAGE");
    return -1;
  }
  return 0;
}

#define ploop_config_help \
  "[file=]<IMAGE>  (required) The ploop image (.hds) to serve."

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

static int
ploop_get_ready (void)
{
  const struct ploop_open_options options = {
    .read_only = command_line_is_read_only (),
    .log = write_log,
  };
  g_autoptr (GError) error = NULL;

  /* A limit of the file size is an error of one request, not the end. */
  signal (SIGXFSZ, SIG_IGN);
  image = ploop_open (file, &options, &error);
  if (!image) {
    nbdkit_error ("%s", error->message);
    return -1;
  }
  nbdkit_debug ("%s: ploop version %u, %" PRIu64 " bytes in clusters of %"
                PRIu32 " bytes, opened for %s", file, ploop_version (image),
                ploop_size (image), ploop_cluster_size (image),
                ploop_is_read_only (image) ? "reading" : "writing");
  return 0;
}

/* ---- Ending ------------------------------------------------------------ */

static void
close_image (void)
{
  g_autoptr (GError) error = NULL;

  if (ploop_close (g_steal_pointer (&image), &error) == -1)
    nbdkit_error ("%s", error->message);
}

static void
ploop_unload (void)
{
  close_image ();
  free (file);
  file = NULL;
}

/* ---- About the plugin -------------------------------------------------- */

static void
ploop_dump_plugin (void)
{
  printf ("ploop_core_version=%s\n", PACKAGE_VERSION);
  printf ("plugin_feature=format-v1\n");
  printf ("plugin_feature=format-v2\n");
  printf ("plugin_feature=write\n");
  printf ("plugin_feature=fua\n");
  printf ("plugin_feature=multi-conn\n");
  printf ("plugin_feature=zero\n");
}

/* ---- A connection ------------------------------------------------------ */

static void *
ploop_plugin_open (int readonly)
{
  (void) readonly;
  /* nbdkit may let a client in while it ends. */
  if (!image) {
    nbdkit_error ("the server is about to end");
    return NULL;
  }
  return &handle;
}

static int64_t
ploop_get_size (void *h)
{
  (void) h;
  return (int64_t) ploop_size (image);
}

static int
ploop_plugin_block_size (void *h, uint32_t *minimum, uint32_t *preferred,
                         uint32_t *maximum)
{
  uint32_t power = 4096;

  (void) h;
  /* The protocol wants a power of two from 512 to 32 MiB: the largest that a
   * cluster holds.
   */
  while (power * 2 <= ploop_cluster_size (image) && power < MAX_PREFERRED)
    power *= 2;
  *minimum = 1;
  *preferred = power;
  *maximum = MAX_REQUEST;
  return 0;
}

static const char *
ploop_export_description (void *h)
{
  (void) h;
  return nbdkit_printf_intern ("ploop version %u image, clusters of %" PRIu32
                               " bytes", ploop_version (image),
                               ploop_cluster_size (image));
}

static int
ploop_can_write (void *h)
{
  (void) h;
  return !ploop_is_read_only (image);
}

static int
ploop_rotational (void *h)
{
  (void) h;
  return ploop_is_rotational (image);
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

/* ---- Requests ---------------------------------------------------------- */

/* What nbdkit wants of a request that returned R: 0 or a negative errno. */
static int
answer (int r, const char *what, uint64_t length, uint64_t offset)
{
  if (ploop_debug_requests)
    nbdkit_debug ("%s %" PRIu64 " bytes at %" PRIu64 ": %s", what, length,
                  offset, r == 0 ? "ok" : g_strerror (-r));
  if (r == 0)
    return 0;
  nbdkit_error ("%s: %s of %" PRIu64 " bytes at %" PRIu64 " failed: %s", file,
                what, length, offset, g_strerror (-r));
  nbdkit_set_error (-r);
  errno = -r;
  return -1;
}

static unsigned
core_flags (uint32_t flags)
{
  return flags & NBDKIT_FLAG_FUA ? PLOOP_FUA : 0;
}

static int
ploop_plugin_pread (void *h, void *buf, uint32_t count, uint64_t offset,
                    uint32_t flags)
{
  (void) h;
  (void) flags;
  return answer (ploop_pread (image, buf, count, offset), "read", count,
                 offset);
}

static int
ploop_plugin_pwrite (void *h, const void *buf, uint32_t count,
                     uint64_t offset, uint32_t flags)
{
  (void) h;
  return answer (ploop_pwrite (image, buf, count, offset, core_flags (flags)),
                 "write", count, offset);
}

static int
ploop_plugin_zero (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void) h;
  return answer (ploop_zero (image, count, offset, core_flags (flags)),
                 "zero", count, offset);
}

static int
ploop_plugin_flush (void *h, uint32_t flags)
{
  (void) h;
  (void) flags;
  return answer (ploop_flush (image), "flush", 0, 0);
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
  .cleanup = close_image,
  .open = ploop_plugin_open,
  .get_size = ploop_get_size,
  .block_size = ploop_plugin_block_size,
  .export_description = ploop_export_description,
  .can_write = ploop_can_write,
  .is_rotational = ploop_rotational,
  .can_multi_conn = ploop_can_multi_conn,
  .can_fua = ploop_can_fua,
  .pread = ploop_plugin_pread,
  .pwrite = ploop_plugin_pwrite,
  .zero = ploop_plugin_zero,
  .flush = ploop_plugin_flush,
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN (plugin)
