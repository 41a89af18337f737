/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What the user wants: nbdkit's KEY=VALUE parameters. */

#ifndef PLOOP_PLUGIN_PARAMETERS_H
#define PLOOP_PLUGIN_PARAMETERS_H

#include <stdbool.h>

#include <glib.h>

#include "ploop-core.h"

struct parameters {
  char *file;                   /* the disk; NULL: those below a directory */
  char *directory;
  unsigned idle_seconds;
  char *stats_file;             /* absolute; NULL: none */
  unsigned stats_seconds;       /* from one time it is written to the next */
  unsigned extents_flags;       /* for ploop_extents */
  struct ploop_open_options open;
};

/* Changes no more once the server runs. */
extern struct parameters parameters;

/* Each returns 0, or -1 with the error told: nbdkit's .config and .config_complete.
 */
int parameters_set (const char *key, const char *value);
int parameters_complete (void);

/* Print all there are, for .dump_plugin. */
void parameters_dump (void);

void parameters_clear (void);

#define PARAMETERS_HELP \
  "[file=]<DISK>          A ploop image (.hds), a DiskDescriptor.xml or the\n" \
  "                       directory that holds one; or:\n" \
  "dir=<DIRECTORY>        All disks below it, as exports by their relative names.\n" \
  "idle-close=<SECONDS>   With dir=: close a disk that nobody uses (default 30).\n" \
  "snapshot=<GUID>        Serve this snapshot of it, to be read.\n" \
  "base=<IMAGE>           A lower delta; once for each, the base last.\n" \
  "base-cache=<BOOL>      Keep what is read from a base on a server (default off).\n" \
  "overlay=<IMAGE>        Write to this delta only (created if missing).\n" \
  "allow-outside=<BOOL>   The descriptor may name files elsewhere (default off).\n" \
  "cache=writeback|none|writethrough\n" \
  "                       The page cache (default), O_DIRECT, or durable at once.\n" \
  "discard=unmap|keep|off\n" \
  "                       Trims give space back (default), without holes, or not.\n" \
  "detect-zeroes=off|on|unmap\n" \
  "                       Zeros: written (default), take no new space, give it back.\n" \
  "extents=cluster|detail How finely holes are told (default cluster).\n" \
  "enospc=report|wait     What requests without space do (default report).\n" \
  "prealloc=<SIZE>        How much the file grows at once (default 128M).\n" \
  "prealloc-mode=falloc|truncate\n" \
  "                       Reserve that space (default), or only its size.\n" \
  "runners=<N>            Worker threads (default: one a CPU, at most 16).\n" \
  "fast-path=<BOOL>       Serve in the request's own thread (default on).\n" \
  "writeback-delay=<MS>   How long BAT entries may wait (default 0).\n" \
  "copy-on-write=eager|lazy\n" \
  "                       When small writes are answered (default eager).\n" \
  "copy-delay=<MS>        Commit copied clusters after (default 500).\n" \
  "stats-file=<PATH>      Write statistics there, for Prometheus.\n" \
  "stats-interval=<SECONDS>  How often (default 10)."

#endif /* PLOOP_PLUGIN_PARAMETERS_H */
