/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A disk that the generator makes up, before any byte of it is written: its storages
 * (one, but for split disks), its shots (the deltas of all storages that were made at
 * one time; the top is one of them), and what each delta has and looks like.
 *
 * It passes through the files in this order: draw.c decides what it is like, fill.c
 * what is in it, image.c and descriptor.c write it down, manifest.c says what must be
 * read from it.  None of them knows libploop-core: what they know of the format is
 * what its description says, so that a mistake is not made on both sides of a test.
 */

#ifndef GENERATE_DISK_H
#define GENERATE_DISK_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#define SECTOR 512u
#define HEADER_SIZE 64u

#define IN_USE_CLOSED 0u
#define IN_USE_OPEN 0x746F6E59u
#define IN_USE_EXTENSION 0x312e3276u    /* "v2.1" */
#define IN_USE_PD17 0x37316470u         /* "pd17" */
#define IN_USE_PD22 0x32326470u         /* "pd22" */

#define FLAG_EMPTY 1u

#define NO_GUID "{00000000-0000-0000-0000-000000000000}"

enum kind { KIND_IMAGE, KIND_CHAIN, KIND_TREE };

/* What the command line asks for; the rest is drawn. */
struct wishes {
  enum kind kind;
  unsigned version;             /* 0: any */
  unsigned nr_deltas;           /* 0: any */
  bool split;
  bool mixed_versions;          /* within a chain */
  bool odd_clusters;            /* such as only qemu takes */
  bool dirty;                   /* the top was not closed */
  bool for_ploop;               /* only what ploop and the kernel take */
};

/* What a delta has of a cluster of the disk. */
enum holding {
  HOLDS_NOTHING,                /* it is what the next lower delta says */
  HOLDS_DATA,
  HOLDS_HOLE,                   /* zeros, and a hole of the file */
  HOLDS_LOST,                   /* nothing: a crash came before the data, so its entry
                                   points past the end of the file */
};

enum host_order {
  HOST_IN_ORDER,
  HOST_REVERSED,
  HOST_SHUFFLED,
  HOST_FRAGMENTED,
};

enum tail { TAIL_EXACT, TAIL_PREALLOCATED, TAIL_CUT };

struct bitmap {
  uint8_t uuid[16];
  uint32_t granularity;         /* sectors */
  uint8_t *bits;                /* one byte for each bit */
  uint32_t nr_bits;
  bool is_mixed;                /* not all bits are alike */
};

#define MAX_BITMAPS 2u

struct delta {
  /* draw.c */
  char *path;                   /* relative to the directory of the descriptor */
  bool is_raw;
  unsigned version;
  uint32_t cluster_sectors;
  uint32_t size_sectors;
  uint32_t data_sectors;        /* as the header says it: 0 is behind the BAT */
  uint32_t size_high;           /* of version 1: the word to be ignored */
  uint32_t in_use;
  bool claims_empty;            /* whatever is in it, as qemu leaves it */
  unsigned density;             /* per cent of the clusters that it has */
  enum host_order order;
  enum tail tail;
  unsigned nr_tail;             /* clusters preallocated */
  unsigned nr_leaked;           /* clusters with data that nothing refers to */
  unsigned nr_free;             /* the same, holes of the file */
  bool is_sparse;               /* zeros in a cluster are holes */
  unsigned nr_bitmaps;

  /* fill.c */
  uint32_t nr_clusters;
  enum holding *holds;          /* by cluster */
  uint32_t flags;
  uint8_t *content;             /* of the disk with this delta on top */
  struct bitmap bitmaps[MAX_BITMAPS];

  /* image.c: what came out, where what was drawn did not fit */
  uint32_t nr_allocated;
  bool is_cut;
};

struct storage {
  uint32_t start, end;          /* sectors; of the base */
  uint32_t cluster_sectors;
};

struct shot {
  char *guid;                   /* in braces */
  int parent;                   /* an index; -1: the base */
  const char *mark;             /* Temporary and the like, or NULL */
  struct delta *deltas;         /* by storage */
};

struct disk {
  uint32_t seed;
  enum kind kind;

  struct storage *storages;
  unsigned nr_storages;
  struct shot *shots;           /* a parent comes before its children */
  unsigned nr_shots;
  unsigned top;                 /* an index */

  /* The descriptor. */
  const char *root_element;
  bool has_version;             /* an attribute of that element */
  bool has_unknown;             /* elements that ploop does not know */
  bool has_preallocated;
  bool all_plain;               /* over a raw base, every Type is Plain */
  bool is_shuffled;             /* the base is not listed first */
  bool is_stale;                /* Disk_size is that of the base */
  bool is_upper_case;           /* the shots' GUIDs, unlike the images' */
};

/* How many clusters a disk of this size has. */
static inline uint32_t
clusters_of (uint32_t size_sectors, uint32_t cluster_sectors)
{
  return (size_sectors + cluster_sectors - 1) / cluster_sectors;
}

/* Where the BAT ends, in sectors of the file. */
static inline uint32_t
bat_end_of (const struct delta *delta)
{
  const uint32_t nr_clusters =
    clusters_of (delta->size_sectors, delta->cluster_sectors);

  return (HEADER_SIZE + 4 * nr_clusters + SECTOR - 1) / SECTOR;
}

/* And where the first cluster is. */
static inline uint32_t
data_start_of (const struct delta *delta)
{
  return delta->data_sectors != 0 ? delta->data_sectors : bat_end_of (delta);
}

/* What the header says a disk's geometry is. */
void geometry_of (uint32_t size_sectors, uint32_t *heads, uint32_t *sectors,
                  uint32_t *cylinders);

/* dice.c: from FROM to TO, both included; true PERCENT times of a hundred. */
uint32_t dice_range (GRand *dice, uint32_t from, uint32_t to);
bool dice_chance (GRand *dice, unsigned percent);

/* draw.c */
struct disk *disk_draw (uint32_t seed, const struct wishes *wishes,
                        GRand *dice);
void disk_free (struct disk *disk);

/* fill.c */
void disk_fill (struct disk *disk, GRand *dice);

/* image.c: write DELTA to the file PATH. */
bool image_write (const char *path, struct delta *delta, GRand *dice,
                  GError **error);

/* descriptor.c */
bool descriptor_write (const char *path, const struct disk *disk, GRand *dice,
                       GError **error);

/* manifest.c: what must be read, and the list of it, in DIRECTORY.  PATH is where the
 * disk is in it.
 */
bool manifest_write (const char *directory, const char *path,
                     const struct disk *disk, GError **error);

/* file.c */

/* Create the file PATH, of which nobody may exist.  -1 with ERROR set. */
int file_create (const char *path, GError **error);

bool file_write (int fd, const char *path, const void *buf, size_t length,
                 uint64_t offset, GError **error);

/* The same, but blocks of zeros are left out. */
bool file_write_sparsely (int fd, const char *path, const void *buf,
                          size_t length, uint64_t offset, GError **error);

/* Set the length of the file and close FD, which is closed in any case. */
bool file_finish (int fd, const char *path, uint64_t length, GError **error);

#endif /* GENERATE_DISK_H */
