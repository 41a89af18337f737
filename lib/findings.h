/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Where the findings about a disk of many files go, and how many there were. */

#ifndef PLOOP_LIB_FINDINGS_H
#define PLOOP_LIB_FINDINGS_H

#include <glib.h>

#include "ploop-core.h"

struct findings {
  ploop_disk_finding_fn report; /* NULL: nobody listens */
  void *opaque;
  const char *file;             /* that findings_pass_on tells of */
  struct ploop_check_result result;
};

/* Tell of what was found in FILE, and count it. */
void findings_add (struct findings *findings, const char *file,
                   enum ploop_finding finding, const char *format, ...)
  G_GNUC_PRINTF (4, 5);

/* The same of an error that says why FILE cannot be opened, whose name need not be
 * said twice; HINT follows, and may be empty.
 */
void findings_add_error (struct findings *findings, const char *file,
                         const GError *error, const char *hint);

/* A ploop_finding_fn for who checks one image and counts by itself; OPAQUE is the
 * findings.
 */
void findings_pass_on (void *opaque, enum ploop_finding finding,
                       const char *message);

#endif /* PLOOP_LIB_FINDINGS_H */
