/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The shots of a descriptor, for who has read it already. */

#ifndef PLOOP_LIB_SNAPSHOTS_H
#define PLOOP_LIB_SNAPSHOTS_H

#include <stdbool.h>

#include <glib.h>

#include "descriptor.h"

/* As ploop_list_tree. */
GPtrArray *snapshots_tree (const struct descriptor *descriptor,
                           bool allow_outside);

#endif /* PLOOP_LIB_SNAPSHOTS_H */
