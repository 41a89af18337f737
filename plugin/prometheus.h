/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Statistics in Prometheus' text format, version 0.0.4: what node_exporter's textfile
 * collector reads.  Pure functions from numbers to text.
 *
 * That collector puts the files of all servers of a host together, and takes the same
 * series twice, or another help text for the same name, for an error.  So each series
 * names what it is about by its path, and help texts are constants.
 */

#ifndef PLOOP_PLUGIN_PROMETHEUS_H
#define PLOOP_PLUGIN_PROMETHEUS_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "ploop-core.h"

/* What every text begins with. */
#define PROMETHEUS_START "# HELP ploop_"

struct prometheus_server {
  const char *served;           /* the path of its disk or directory */
  const char *version;
  gint64 start_time;            /* us since 1970 */
};

/* A disk or one of its snapshots. */
struct prometheus_disk {
  const char *labels;           /* of prometheus_labels */
  struct ploop_statistics statistics;
  bool is_open;                 /* else nothing is known of what follows */
  bool read_only;
  unsigned version;             /* of the format */
  uint64_t size;                /* bytes */
  uint64_t cluster_size;        /* bytes */
  struct ploop_state state;
};

/* The labels that tell one disk from all others: its path, and GUID when it is a
 * snapshot (else NULL).  Different ones have different labels, whatever bytes they
 * are of: one that is not UTF-8 becomes U+FFFD and its two hexadecimal digits, and so
 * do those of U+FFFD itself.  For g_free.
 */
char *prometheus_labels (const char *path, const char *guid);

/* The whole text; DISKS is of struct prometheus_disk *.  For g_string_free. */
GString *prometheus_text (const struct prometheus_server *server,
                          const GPtrArray *disks);

#endif /* PLOOP_PLUGIN_PROMETHEUS_H */
