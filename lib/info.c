/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Describing an image without serving it: ploop_get_info in ploop-core.h. */

#include <config.h>

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bat.h"
#include "delta.h"
#include "info.h"
#include "lock.h"

static enum ploop_cleanliness
cleanliness (uint32_t in_use)
{
  switch (in_use) {
  case FORMAT_CLOSED:
    return PLOOP_CLEAN;
  case FORMAT_CLOSED_EXTENSION:
    return PLOOP_CLEAN_EXTENSION;
  case FORMAT_CLOSED_PD17:
  case FORMAT_CLOSED_PD22:
    return PLOOP_CLEAN_DESKTOP;
  case FORMAT_IN_USE:
  case FORMAT_IN_REPAIR:
    return PLOOP_DIRTY;
  default:
    return PLOOP_DIRTY_UNKNOWN;
  }
}

/* Who holds the image: a byte range of the file, or ploop's own lock. */
static enum ploop_lock_state
lock_state (const struct delta *delta)
{
  const enum ploop_lock_state state = lock_look (delta->fd);
  int fd;

  if (state != PLOOP_UNLOCKED)
    return state;
  if (!lock_descriptor (delta->path, DESCRIPTOR_LOCK_READER, &fd, NULL))
    return PLOOP_LOCKED_FOR_WRITING;
  if (fd >= 0)
    close (fd);
  return PLOOP_UNLOCKED;
}

/* Clusters of a raw disk that its file has. */
static uint32_t
count_raw (const struct delta *delta)
{
  const uint32_t cluster_size = delta->layout.cluster_size;
  uint64_t start = 0, stop, next = 0, nr = 0;

  while (delta_next_data (delta, delta->file_size, &start, &stop)) {
    const uint64_t first = MAX (next, start / cluster_size);

    next = (stop + cluster_size - 1) / cluster_size;
    nr += next - first;
    start = stop;
  }
  return (uint32_t) nr;
}

static int
count_allocated (const struct delta *delta, uint32_t *nr_allocated,
                 GError **error)
{
  const struct bat_visitor count_only = { .opaque = NULL };
  struct bat_summary summary;

  if (delta->is_raw)
    *nr_allocated = count_raw (delta);
  else if (bat_scan (delta, &count_only, &summary, error) < 0)
    return -1;
  else
    *nr_allocated = summary.nr_allocated;
  return 0;
}

int
info_get (const struct delta *delta, struct ploop_info *info, GError **error)
{
  const struct format_header *header = &delta->header;
  uint32_t nr_allocated;
  struct stat st;

  if (fstat (delta->fd, &st) == -1) {
    error_set_system (error, errno, "%s: cannot be examined", delta->path);
    return -1;
  }
  if (count_allocated (delta, &nr_allocated, error) < 0)
    return -1;
  *info = (struct ploop_info) {
    .version = header->version,
    .size = delta->layout.size,
    .cluster_size = delta->layout.cluster_size,
    .nr_clusters = delta->layout.nr_entries,
    .nr_allocated = nr_allocated,
    .heads = header->heads,
    .cylinders = header->cylinders,
    .data_offset = (uint64_t) header->data_sectors * FORMAT_SECTOR_SIZE,
    /* Not judged here: a value past every file stays what it is. */
    .extension_offset =
      header->extension_sectors > UINT64_MAX / FORMAT_SECTOR_SIZE
        ? UINT64_MAX
        : header->extension_sectors * FORMAT_SECTOR_SIZE,
    .flags = header->flags,
    .in_use = header->in_use,
    .cleanliness = cleanliness (header->in_use),
    .lock = lock_state (delta),
    .file_size = (uint64_t) st.st_size,
    .disk_usage = (uint64_t) st.st_blocks * 512,
  };
  return 0;
}

int
ploop_get_info (const char *path, struct ploop_info *info, GError **error)
{
  struct delta *delta = delta_open (path, DELTA_LOCK_NONE, error);
  int r = -1;

  if (delta)
    r = info_get (delta, info, error);
  delta_close (delta);
  return r;
}
