/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* check --repair: between two checks. */

#ifndef PLOOP_IMG_REPAIR_H
#define PLOOP_IMG_REPAIR_H

#include <stdbool.h>

#include <glib.h>
#include <json-glib/json-glib.h>

#include "ploop-core.h"
#include "ploop-img.h"

struct repair {
  /* From the command line. */
  char *what;                   /* "leaks" or "all"; NULL: only check */
  char *backup_file;
  gboolean backup, no_backup, dry_run;

  struct ploop_repair_options options;
  struct ploop_repair_result result;
  GPtrArray *steps;             /* of char *, for JSON */
  const char *path;
  bool is_told;                 /* steps are printed as they come */
};

/* Do the options fit together?  Returns false and sets ERROR if not. */
bool repair_parse (struct repair *repair, GError **error);

/* Repair PATH.  Returns 0; or -1 with ERROR set. */
int repair_run (struct repair *repair, const char *path,
                const struct common_options *common, GError **error);

/* Add what was done to the object that BUILDER has open. */
void repair_add (const struct repair *repair, JsonBuilder *builder);

/* Of one of zeros, does nothing. */
void repair_clear (struct repair *repair);
typedef struct repair repair_t;
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC (repair_t, repair_clear)

#endif /* PLOOP_IMG_REPAIR_H */
