/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What the files of a directory tell about the disk that they make up, when its
 * descriptor is lost: each file by itself, and what is left of an old descriptor.
 */

#ifndef PLOOP_LIB_EVIDENCE_H
#define PLOOP_LIB_EVIDENCE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include <glib.h>

#include "descriptor.h"
#include "error.h"

enum evidence_kind {
  EVIDENCE_OTHER,               /* nothing that a disk has */
  EVIDENCE_IMAGE,
  EVIDENCE_DAMAGED,             /* an image whose header cannot be believed */
  EVIDENCE_RAW,                 /* may be a raw disk, as large as one */
};

struct evidence {
  char *name;                   /* in its directory */
  enum evidence_kind kind;
  char *sign;                   /* of a raw disk: what it begins with; of a damaged
                                   image: what is wrong; NULL: nothing */
  uint64_t size_sectors;        /* of the disk */
  uint32_t cluster_sectors;     /* raw: 0 */
  unsigned version;             /* raw: 0 */
  uint32_t nr_allocated;        /* BAT entries that are not zero */
  bool is_in_use;               /* it says so itself */
  struct stat st;
  int64_t changed_ns, born_ns;  /* since 1970; born: 0 if that is not known */
};

void evidence_free (struct evidence *evidence);

/* Look at NAME in the directory open at DIRECTORY_FD, which is DIRECTORY.  Never NULL;
 * what cannot be read is damaged.
 */
struct evidence *evidence_look (int directory_fd, const char *directory,
                                const char *name);

/* Of all files of the directory, but for those that programs leave behind: an array of
 * struct evidence, by name.  NULL with ERROR set when it cannot be read.
 */
GPtrArray *evidence_collect (int directory_fd, const char *directory,
                             GError **error);

/* Is NAME the base's name, followed by a GUID, as ploop calls a delta above it? */
bool evidence_is_named_after (const char *name, const char *base);

/* The GUID at the end of NAME, normalised (g_free), or NULL. */
char *evidence_name_guid (const char *name);

/* ---- What is left of a descriptor -------------------------------------- */

struct relic_image {
  char *guid;                   /* normalised */
  char *file;                   /* name, without directories */
};

struct relic_shot {
  char *guid, *parent;          /* parent NULL: none */
  char *marker;                 /* the element Temporary...; NULL: none */
};

struct relics {
  bool is_there;                /* a file, whatever is in it */
  bool is_virtuozzo;            /* its root element is libploop 9's */
  char *top_guid;               /* NULL: not known */
  GPtrArray *images;            /* of struct relic_image */
  GPtrArray *shots;             /* of struct relic_shot */
  GHashTable *file_of, *guid_of;        /* GUID to file and back, of the first image
                                           that has either */
};

/* Read what can be made out of the file DESCRIPTOR_FILE_NAME, well-formed or not. */
void relics_read (struct relics *relics, int directory_fd);
void relics_clear (struct relics *relics);

/* The GUID that the file NAME had, or NULL. */
const char *relics_find_guid (const struct relics *relics, const char *name);

/* The file that has GUID; or NULL. */
const char *relics_find_file (const struct relics *relics, const char *guid);

#endif /* PLOOP_LIB_EVIDENCE_H */
