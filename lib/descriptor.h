/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* DiskDescriptor.xml: which image files make a disk, and which snapshot rests
 * on which.  Knows no images.
 *
 *   Parallels_disk_image | Virtuozzo_disk_image
 *     Disk_Parameters   Disk_size
 *     StorageData
 *       Storage...      Start End Blocksize
 *         Image...      GUID Type? File
 *     Snapshots?        TopGUID?
 *       Shot...         GUID ParentGUID Temporary*?
 *
 * A shot is one delta, named by its GUID; the storage has its image.  What the
 * disk contained when a snapshot was taken is the image of that GUID over those
 * of its ancestors.  Sizes are sectors of 512 bytes.
 *
 * Nothing is trusted: every refusal names file, line, element and value, and
 * takes the file for what a stranger may have written.  What is not understood
 * is kept when the file is stored.
 *
 * What takes a const struct descriptor may be called from any thread at once.
 */

#ifndef PLOOP_LIB_DESCRIPTOR_H
#define PLOOP_LIB_DESCRIPTOR_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#include <glib.h>

#include "error.h"

/* What the file is called. */
#define DESCRIPTOR_FILE_NAME "DiskDescriptor.xml"

/* The top delta, that the disk is written to, where ploop names it. */
#define DESCRIPTOR_TOP_GUID "{5fbaabe3-6958-40ff-92a7-860e329aab41}"

/* No GUID: the parent of a base. */
#define DESCRIPTOR_NO_GUID "{00000000-0000-0000-0000-000000000000}"

/* Limits: bytes of the file, elements of a kind, deltas one over the other
 * (the kernel's).
 */
#define DESCRIPTOR_MAX_SIZE (2u << 20)
#define DESCRIPTOR_MAX_IMAGES 4096u
#define DESCRIPTOR_MAX_SHOTS 4096u
#define DESCRIPTOR_MAX_LEVELS 254u

/* GUIDs are kept in braces and in lower case, so strcmp compares them. */

struct descriptor_image {
  char *guid;
  bool is_plain;                /* Type; only a hint: over a raw base, ploop
                                   calls every image Plain */
  char *file;                   /* as written: descriptor_open_file opens it */
  struct _xmlNode *node;        /* private */
};

/* A part of the disk; most disks have one. */
struct descriptor_storage {
  uint64_t start_sectors;
  uint64_t end_sectors;         /* the first behind it; may be stale, the top
                                   image's header rules */
  uint32_t cluster_sectors;     /* Blocksize; each image's must be the same */
  GPtrArray *images;            /* of struct descriptor_image; not empty */
  struct _xmlNode *node;        /* private */
};

/* Markers of snapshots that backup programs take for a while. */
enum descriptor_temporary {
  DESCRIPTOR_PERMANENT,
  DESCRIPTOR_TEMPORARY,
  DESCRIPTOR_TEMPORARY_ZERO,
  DESCRIPTOR_TEMPORARY_ZERO_SWAP,
};

struct descriptor_shot {
  char *guid;
  char *parent_guid;            /* NULL: none, this is a base */
  enum descriptor_temporary temporary;
  struct _xmlNode *node;        /* private; NULL: the file has no Shot */
};

/* To be read by everybody, changed only by the functions below. */
struct descriptor {
  char *path;                   /* resolved */
  char *directory;              /* of PATH */
  uint64_t size_sectors;        /* may be stale, as end_sectors */
  GPtrArray *storages;          /* of struct descriptor_storage: without gaps
                                   from 0, in this order; not empty */
  GPtrArray *shots;             /* of struct descriptor_shot, as in the file */
  char *top_guid;               /* need not be among the shots */
  bool top_is_named;            /* by the file; else it follows from the shots */

  /* Private. */
  struct _xmlDoc *doc;
  int directory_fd;             /* O_PATH */
  struct stat read;             /* the file, when it was read */
};

/* Read the descriptor PATH.
 *
 * Where it says less than it should, libploop's rules apply.  Without a Shot,
 * and with one image in each storage, that is the only delta.  Without a
 * TopGUID, the top is DESCRIPTOR_TOP_GUID where a shot has it, else the one
 * shot that is nobody's parent.
 *
 * NULL with ERROR set: PLOOP_ERROR_SYSTEM; PLOOP_ERROR_FORMAT for a file that
 * is no descriptor; PLOOP_ERROR_CORRUPT for one that contradicts the format.
 * That the deltas make chains, descriptor_chain finds out.
 */
struct descriptor *descriptor_load (const char *path, GError **error);

/* NULL is ignored. */
void descriptor_free (struct descriptor *descriptor);
typedef struct descriptor Descriptor;    /* for g_autoptr */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Descriptor, descriptor_free)

/* GUID in braces and lower case (g_free), or NULL when it is none.  Braces may
 * be missing.
 */
char *descriptor_normalise_guid (const char *guid);

/* Is GUID, in any case, the delta that the disk is written to?  All others are
 * snapshots.
 */
bool descriptor_is_top (const struct descriptor *descriptor, const char *guid);

/* The shot of GUID, in any case, and that of SHOT's parent; or NULL.  From
 * parent to parent one may go round in circles: descriptor_chain does not.
 */
const struct descriptor_shot *
descriptor_find_shot (const struct descriptor *descriptor, const char *guid);
const struct descriptor_shot *
descriptor_find_parent (const struct descriptor *descriptor,
                        const struct descriptor_shot *shot);

/* The shot of GUID, or of the top if GUID is NULL.  NULL with ERROR set, which names
 * those that there are: PLOOP_ERROR_ARGUMENT; or PLOOP_ERROR_CORRUPT, of the top.
 */
const struct descriptor_shot *
descriptor_need_shot (const struct descriptor *descriptor, const char *guid,
                      GError **error);

/* The shots whose parent is GUID, in any case: pointers to struct descriptor_shot, to
 * be freed by g_ptr_array_unref.
 */
GPtrArray *descriptor_list_children (const struct descriptor *descriptor,
                                     const char *guid);

bool descriptor_has_children (const struct descriptor *descriptor,
                              const char *guid);

/* The image of GUID, in any case, in storage number STORAGE; or NULL. */
const struct descriptor_image *
descriptor_find_image (const struct descriptor *descriptor, guint storage,
                       const char *guid);

/* The file's name in its directory. */
static inline const char *
descriptor_base_name (const struct descriptor *descriptor)
{
  return strrchr (descriptor->path, '/') + 1;
}

/* The images of storage number STORAGE that make up the content of the snapshot
 * GUID (in any case; NULL: the top), base first: pointers to struct
 * descriptor_image that live as long as DESCRIPTOR.  To be freed by
 * g_ptr_array_unref.  Takes time that grows with the number of elements.
 *
 * NULL with ERROR set: PLOOP_ERROR_ARGUMENT when GUID is no GUID or no shot has
 * it; PLOOP_ERROR_CORRUPT for a cycle, a parent or an image that is missing, a
 * GUID that two shots or images have, and more than DESCRIPTOR_MAX_LEVELS.
 */
GPtrArray *descriptor_chain (const struct descriptor *descriptor,
                             guint storage, const char *guid, GError **error);

/* Open the file of IMAGE: a regular file in the descriptor's directory or
 * further down, after all links are followed; with ALLOW_OUTSIDE, anywhere.
 *
 * Returns a file descriptor, to be opened for use as /proc/self/fd/N, so that
 * it is this very file that is used; *PATH becomes where it lies, for messages
 * (g_free).  -1 with ERROR set: PLOOP_ERROR_SYSTEM; PLOOP_ERROR_ARGUMENT when
 * it lies outside; PLOOP_ERROR_FORMAT when it is not a regular file.
 */
int descriptor_open_file (const struct descriptor *descriptor,
                          const struct descriptor_image *image,
                          bool allow_outside, char **path, GError **error);

/* Is the file of IMAGE, wherever it lies, the one that ST is of?  IF_UNKNOWN, when it is
 * there but cannot be examined.
 */
bool descriptor_is_file_of (const struct descriptor *descriptor,
                            const struct descriptor_image *image,
                            const struct stat *st, bool if_unknown);

/* Change the descriptor in memory.  False with ERROR set (PLOOP_ERROR_ARGUMENT
 * for values that cannot be) and nothing changed.
 *
 * The size: of the disk, and so the end of the last storage.  The geometry
 * beside it is left alone; nobody computes with it.
 *
 * The top: the GUID, in any case, of a shot.
 */
bool descriptor_set_size_sectors (struct descriptor *descriptor,
                                  uint64_t size_sectors, GError **error);
bool descriptor_set_top (struct descriptor *descriptor, const char *guid,
                         GError **error);

/* What is said of deltas.  GUIDs in braces and lower case, of shots that are there,
 * or of none, where they are new.  After each of these all pointers to storages,
 * images and shots are others; after one that fails, there is nothing to be stored.
 *
 * A new shot that rests on PARENT_GUID (NULL: on nothing); its image in each storage.
 * A descriptor without shots gets them.
 */
bool descriptor_add_shot (struct descriptor *descriptor, const char *guid,
                          const char *parent_guid, GError **error);
bool descriptor_add_image (struct descriptor *descriptor, guint storage,
                           const char *guid, const char *file,
                           GError **error);

/* Call a delta NEW_GUID, wherever it is named, but not as the top. */
bool descriptor_rename (struct descriptor *descriptor, const char *guid,
                        const char *new_guid, GError **error);

/* Let the image of GUID be in the file of OTHER. */
bool descriptor_set_file (struct descriptor *descriptor, guint storage,
                          const char *guid,
                          const struct descriptor_image *other,
                          GError **error);

/* Take a delta out: what rested on it rests on its parent.  There are shots. */
bool descriptor_remove (struct descriptor *descriptor, const char *guid,
                        GError **error);

bool descriptor_set_temporary (struct descriptor *descriptor,
                               const char *guid, bool is_temporary,
                               GError **error);

/* For those functions: read the document anew. */
bool descriptor_parse (struct descriptor *descriptor, GError **error);

/* Replace the file by what is in memory, at once and for good: it is written
 * beside, synced, renamed over, and the directory is synced.  Mode and owner
 * stay (the owner as far as the process may).  For the caller to hold the
 * locks; a file that is not the one that was read is not replaced.
 *
 * False with ERROR set (PLOOP_ERROR_SYSTEM, PLOOP_ERROR_IN_USE) when the file
 * is what it was; or, and the error says so, when the directory could not be
 * synced.
 */
bool descriptor_store (struct descriptor *descriptor, GError **error);

#endif /* PLOOP_LIB_DESCRIPTOR_H */
