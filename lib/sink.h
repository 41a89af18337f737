/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Where the content of a disk goes: a new image, a new raw file, an NBD export that
 * is there, or standard output.
 *
 * A new file has another name (NAME.part) until it is whole and on disk: whoever
 * looks, and whenever the power is cut, finds what was there before, or all of it.
 * What an earlier attempt left under that name is replaced.
 */

#ifndef PLOOP_LIB_SINK_H
#define PLOOP_LIB_SINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <glib.h>

#include "error.h"

struct sink;

/* A size that is not known yet. */
#define SINK_GROWS UINT64_MAX

struct sink_options {
  bool raw;                     /* a raw file, if it is a file */
  unsigned version;             /* of an image; 0: 2 */
  uint32_t cluster_size;        /* bytes; 0: 1 MiB */
  enum ploop_create_space space;        /* of an image whose size is known */
  bool descriptor;              /* of an image, beside it */
  ploop_progress_fn progress;   /* while that makes clusters; or NULL */
  void *progress_opaque;
  bool overwrite;               /* a file that is there, if nobody uses it */
  bool in_place;                /* but the caller, who reads it, and has locked it */
  bool is_zero;                 /* an export reads as zeros already */
  unsigned nr_threads;          /* that will write */
};

/* Begin to write a disk of SIZE bytes to NAME; "-" is standard output, raw.  It reads
 * as zeros: an export is zeroed now, which may take its time.  LOG outlives the sink.
 * If SIZE is SINK_GROWS, all has to be written in order, and sink_set_size be called in
 * the end.
 *
 * Returns NULL and sets ERROR when that cannot be done; or, with *INTERRUPTED set, when
 * the callback has ended it.
 */
struct sink *sink_open (const char *name, uint64_t size,
                        const struct sink_options *options,
                        const struct log *log, bool *interrupted,
                        GError **error);

/* Of one that grows: SIZE bytes it was. */
void sink_set_size (struct sink *sink, uint64_t size);

/* Has all to be written in order, on one thread: to standard output? */
bool sink_is_stream (const struct sink *sink);

/* Write LENGTH bytes at OFFSET on thread number THREAD; each thread has one call at a
 * time, and no two calls write to the same byte.  Returns 0 or a negative errno.
 */
int sink_write (struct sink *sink, unsigned thread, const void *buf,
                size_t length, uint64_t offset);

/* The same, but zeros are left out, by blocks.  *NR_WRITTEN becomes how many bytes
 * were not.
 */
int sink_write_data (struct sink *sink, unsigned thread, const void *buf,
                     size_t length, uint64_t offset, uint64_t *nr_written);

/* Let it be there, for good.  Returns 0; or -1 with ERROR set, and what was there
 * before is there; but when the directory cannot be synced, the new one may be; or when a file
 * was replaced and has no descriptor, which ERROR says.  SINK is gone in each case.
 */
int sink_finish (struct sink *sink, GError **error);

/* Leave what was there before.  Of an export, nothing is left as it was.  NULL is
 * ignored.
 */
void sink_abandon (struct sink *sink);

#endif /* PLOOP_LIB_SINK_H */
