/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Image files of a test: made by different tools, and judged by a reader of
 * the format that shares no code with the library.
 */

#ifndef PLOOP_TEST_IMAGE_H
#define PLOOP_TEST_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#define IN_USE_CLOSED 0u
#define IN_USE_OPEN 0x746F6E59u

enum image_maker {
  MADE_BY_PLOOP_IMG,            /* ploop-img create */
  MADE_BY_QEMU,                 /* qemu-img create: v2, any sectors */
  FROM_CORPUS,                  /* tests/corpus, by name */
};

struct image_spec {
  const char *name;             /* of the file that is made */
  enum image_maker maker;
  unsigned version;
  uint64_t cluster_size;        /* bytes */
  uint64_t size;                /* of the disk, bytes */
  const char *corpus_file;      /* FROM_CORPUS: path below corpus/ */
};

/* Make the image in the test's directory; returns its path, to be freed.
 * FROM_CORPUS fills in nothing: spec says what the image has.
 */
char *image_make (const struct image_spec *spec);

/* What an image file has on disk. */
struct image_state {
  unsigned version;
  uint64_t cluster_size;        /* bytes */
  uint64_t size;                /* of the disk, bytes */
  uint32_t nr_clusters;         /* BAT entries */
  uint32_t nr_allocated;        /* BAT entries that are not 0 */
  uint64_t nr_leaked;           /* clusters of the file that no entry names */
  uint64_t nr_holes;            /* of these, those that are holes of the file */
  uint32_t in_use;
  uint32_t flags;
  uint64_t data_offset;         /* bytes, where clusters may begin */
  uint64_t file_size;
};

/* Read the header and the BAT of PATH, and fail the test when an entry is
 * outside the data area or the file, when two entries share bytes, or when
 * something is between the BAT and the first cluster.
 */
void image_read (const char *path, struct image_state *state);

/* image_read, and for each cluster whether the BAT has it: nr_clusters, to be
 * freed.
 */
bool *image_read_map (const char *path, struct image_state *state);

/* Bytes that the file system keeps for PATH. */
uint64_t image_usage (const char *path);

/* Bytes of PATH, from byte FROM to the last that the file system keeps a block
 * for, that it keeps none for: holes, but not what is preallocated.  -1 where
 * the file system does not tell.
 */
int64_t image_holes (const char *path, uint64_t from);

/* image_read and the checks of other programs (qemu-img, ploop-img), for an
 * image that was closed in the orderly way: not in use, and no more than
 * MAX_LEAKED clusters leaked that are not holes; 0 unless a server was killed on
 * it before.
 */
void image_expect_clean (const char *path, uint64_t max_leaked,
                         struct image_state *state);

/* For an image whose server was killed: errors are not allowed, leaks are.
 * The programs look at a copy with the in-use mark taken off.
 */
void image_expect_sound (const char *path, struct image_state *state);

/* The u32 at byte 44 of the file. */
uint32_t image_in_use (const char *path);

#endif /* PLOOP_TEST_IMAGE_H */
