/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Disks of any kind, to be read: see store.h. */

#include <config.h>

#include <fcntl.h>
#include <string.h>

#include "delta.h"
#include "location.h"
#include "parts.h"
#include "store.h"

struct store {
  char *name;
  ploop_image *image;           /* a ploop disk; or: */
  struct delta *delta;          /* raw, here or on a server */
  uint64_t size;
};

static bool
is_ploop (const char *name)
{
  g_autofree char *descriptor = location_descriptor (name);

  return descriptor || location_is_image (AT_FDCWD, name, 0);
}

static ploop_image *
open_image (const char *name, const char *snapshot, const struct log *log,
            GError **error)
{
  const struct ploop_open_options options = {
    .read_only = true,
    .snapshot = snapshot,
    .log = log->write,
    .log_opaque = log->opaque,
  };

  return ploop_open (name, &options, error);
}

static struct delta *
open_raw (const char *name, const char *snapshot, const struct log *log,
          GError **error)
{
  const struct delta_source source = {
    .path = name,
    .path_fd = -1,
    .raw_cluster_size = FORMAT_DEFAULT_CLUSTER,
    .log = log,
  };

  if (!snapshot)
    return delta_open_source (&source, DELTA_LOCK_NONE, error);
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: snapshot is %s, but it is no ploop disk, and has none", name,
               snapshot);
  return NULL;
}

struct store *
store_open (const char *name, const char *snapshot, const struct log *log,
            GError **error)
{
  struct store *store = g_new0 (struct store, 1);

  store->name = g_strdup (name);
  if (!strstr (name, "://") && is_ploop (name)) {
    store->image = open_image (name, snapshot, log, error);
    if (store->image)
      store->size = ploop_size (store->image);
  }
  else {
    store->delta = open_raw (name, snapshot, log, error);
    if (store->delta)
      store->size = store->delta->layout.size;
  }
  if (store->image || store->delta)
    return store;
  store_close (store);
  return NULL;
}

void
store_close (struct store *store)
{
  if (!store)
    return;
  ploop_close (store->image, NULL);
  delta_close (store->delta);
  g_free (store->name);
  g_free (store);
}

const char *
store_name (const struct store *store)
{
  return store->name;
}

uint64_t
store_size (const struct store *store)
{
  return store->size;
}

uint32_t
store_cluster_size (const struct store *store)
{
  return store->image ? ploop_cluster_size (store->image) : 0;
}

unsigned
store_version (const struct store *store)
{
  return store->image ? ploop_version (store->image) : 0;
}

unsigned
store_nr_parts (const struct store *store)
{
  return store->image ? store->image->nr_parts : 1;
}

int
store_read (struct store *store, void *buf, size_t length, uint64_t offset)
{
  const uint64_t left = offset < store->size ? store->size - offset : 0;
  const size_t inside = (size_t) MIN (length, left);

  memset ((char *) buf + inside, 0, length - inside);
  if (inside == 0)
    return 0;
  return store->image ? ploop_pread (store->image, buf, inside, offset)
                      : delta_pread (store->delta, buf, inside, offset);
}

/* The first range that is data. */
struct found {
  uint64_t start, stop;
};

static int
take_first_data (void *opaque, uint64_t offset, uint64_t length, bool hole)
{
  struct found *found = opaque;

  if (hole)
    return 0;
  *found = (struct found) { offset, offset + length };
  return 1;
}

/* Of a map that cannot be had, all is data: reading it says what is wrong. */
static bool
next_image_data (struct store *store, uint64_t end, uint64_t *start,
                 uint64_t *stop)
{
  struct found found = { end, end };

  if (ploop_extents (store->image, end - *start, *start, PLOOP_EXTENTS_DETAIL,
                     take_first_data, &found) < 0)
    found = (struct found) { *start, end };
  *start = found.start;
  *stop = found.stop;
  return found.start < end;
}

bool
store_next_data (struct store *store, uint64_t end, uint64_t *start,
                 uint64_t *stop)
{
  end = MIN (end, store->size);
  if (*start >= end)
    return false;
  return store->image ? next_image_data (store, end, start, stop)
                      : delta_next_data_at_open (store->delta, end, start,
                                                 stop);
}
