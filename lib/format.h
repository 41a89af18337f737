/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The bytes of an image file: header, block allocation table (BAT), geometry
 * and limits.  Pure functions, no files and no threads.
 *
 * Everything that comes from a file is turned into bytes here, once, in 64
 * bits, with every sum and product checked; the other rooms know only offsets
 * and lengths in bytes, and BAT entries as opaque 32-bit numbers.
 *
 *   offset  size  field                       unit on disk
 *   0       16    signature                   v1 or v2
 *   16      4     type                        always 2
 *   20      4     heads                       geometry only
 *   24      4     cylinders                   geometry only
 *   28      4     cluster size                sectors of 512 bytes
 *   32      4     number of BAT entries
 *   36      8     disk size                   sectors; v1: low 4 bytes only
 *   44      4     in use
 *   48      4     first data offset           sectors, 0: right after the BAT
 *   52      4     flags
 *   56      8     extension offset            sectors, 0: none
 *   64      4*n   BAT                         v1: sectors, v2: clusters
 */

#ifndef PLOOP_LIB_FORMAT_H
#define PLOOP_LIB_FORMAT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include <glib.h>

#define FORMAT_SECTOR_SIZE 512u
#define FORMAT_HEADER_SIZE 64u
#define FORMAT_ENTRY_SIZE 4u

/* Where the fields lie that change while an image is in use: in one sector,
 * so that one write changes them together.
 */
#define FORMAT_IN_USE_OFFSET 44u
#define FORMAT_MUTABLE_OFFSET FORMAT_IN_USE_OFFSET
#define FORMAT_MUTABLE_SIZE (FORMAT_HEADER_SIZE - FORMAT_MUTABLE_OFFSET)

/* Values of the in-use field. */
#define FORMAT_CLOSED 0u
#define FORMAT_IN_USE 0x746F6E59u            /* open, or never closed */
#define FORMAT_IN_REPAIR 0x646e656du         /* "mend", ours: see commit_mark_repair */
#define FORMAT_CLOSED_EXTENSION 0x312e3276u  /* "v2.1": extension valid */
#define FORMAT_CLOSED_PD17 0x37316470u       /* "pd17" */
#define FORMAT_CLOSED_PD22 0x32326470u       /* "pd22" */

/* Flags. */
#define FORMAT_FLAG_EMPTY 1u
#define FORMAT_FLAG_CONVERSION 2u

/* Limits.  The first two are qemu's: what it opens, we open. */
#define FORMAT_MAX_CLUSTER_SECTORS ((uint32_t) INT32_MAX / 513u)
#define FORMAT_MAX_ENTRIES ((uint32_t) INT32_MAX / 4u)
#define FORMAT_MAX_SIZE_SECTORS ((uint64_t) INT64_MAX / FORMAT_SECTOR_SIZE)
/* What is created: powers of two that ploop and the kernel take, no larger
 * than one NBD request can be.
 */
#define FORMAT_MIN_CREATE_CLUSTER (32u << 10)
#define FORMAT_MAX_CREATE_CLUSTER (64u << 20)
#define FORMAT_DEFAULT_CLUSTER (1u << 20)

/* The header as stored, in the host's byte order. */
struct format_header {
  unsigned version;             /* 1 or 2, from the signature */
  uint32_t type;
  uint32_t heads;
  uint32_t cylinders;
  uint32_t cluster_sectors;
  uint32_t nr_entries;
  uint64_t size_sectors;
  uint32_t in_use;
  uint32_t data_sectors;        /* first data offset */
  uint32_t flags;
  uint64_t extension_sectors;
};

/* Does the in-use field say that nobody closed the image? */
bool format_is_dirty (uint32_t in_use);

/* Does the image carry changed-block bitmaps that a change would make untrue?
 * In one that was never closed they are stale already.
 */
bool format_has_valid_extension (const struct format_header *header);

/* What follows from a plausible header, in bytes. */
struct format_layout {
  uint64_t size;                /* of the guest's disk */
  uint32_t cluster_size;
  uint32_t entry_unit;          /* a BAT entry times this is a file offset */
  uint32_t nr_entries;
  uint64_t bat_end;             /* end of the BAT in the file */
  uint64_t data_start;          /* no cluster lies below; see below */
};

/* Decode the header.  Returns false when the signature is neither version's:
 * HEADER is not filled in then.
 */
bool format_decode_header (const uint8_t bytes[FORMAT_HEADER_SIZE],
                           struct format_header *header);

void format_encode_header (const struct format_header *header,
                           uint8_t bytes[FORMAT_HEADER_SIZE]);

/* Judge a header of a file of FILE_SIZE bytes and work out LAYOUT.  Returns
 * false and sets ERROR (PLOOP_ERROR_CORRUPT; field and value, not the file's
 * name) when a field is absurd.
 *
 * The extension offset is not judged: the guest's data does not depend on it.
 */
bool format_check_header (const struct format_header *header,
                          uint64_t file_size, struct format_layout *layout,
                          GError **error);

/* Fill in the header of a new, empty image, as the Virtuozzo kernel wants it.
 * SIZE is the disk's in bytes.  Returns false and sets ERROR
 * (PLOOP_ERROR_ARGUMENT) when the values cannot make an image.
 */
bool format_new_header (uint64_t size, uint32_t cluster_size,
                        unsigned version, struct format_header *header,
                        GError **error);

/* The header of an image whose disk gets another size, SIZE bytes, and what follows from
 * it: the BAT has as many entries as that takes, and the data area begins behind it, by
 * whole clusters later or earlier than now, so that all that lies at a multiple of them
 * still does.  OLD and OLD_LAYOUT are plausible.
 *
 * Returns false and sets ERROR (PLOOP_ERROR_ARGUMENT) when there can be no such image.
 */
bool format_resize_header (const struct format_header *old,
                           const struct format_layout *old_layout,
                           uint64_t size, struct format_header *header,
                           struct format_layout *layout, GError **error);

/* Geometry of a new image, computed as ploop does. */
void format_geometry (uint64_t size_sectors, uint32_t *heads,
                      uint32_t *cylinders);

/* Little-endian numbers, at any alignment. */
static inline uint32_t
format_get_le32 (const uint8_t *p)
{
  uint32_t v;

  memcpy (&v, p, sizeof v);
  return GUINT32_FROM_LE (v);
}

static inline uint64_t
format_get_le64 (const uint8_t *p)
{
  uint64_t v;

  memcpy (&v, p, sizeof v);
  return GUINT64_FROM_LE (v);
}

/* Offset of BAT entry INDEX in the file. */
static inline uint64_t
format_bat_offset (uint32_t index)
{
  return FORMAT_HEADER_SIZE + (uint64_t) index * FORMAT_ENTRY_SIZE;
}

/* Offset in the file that a BAT entry names.  Cannot overflow: the largest
 * cluster is below 2^31 bytes.
 */
static inline uint64_t
format_entry_offset (const struct format_layout *layout, uint32_t entry)
{
  return (uint64_t) entry * layout->entry_unit;
}

/* Host clusters are handed out on a grid of cells: cell 0 begins at
 * data_start, each is a cluster long.  A v1 image of another program may have
 * clusters off this grid; a v2 image cannot.
 */
static inline uint64_t
format_cell_offset (const struct format_layout *layout, uint64_t cell)
{
  return layout->data_start + cell * layout->cluster_size;
}

/* Does a cell begin at OFFSET, which is not below data_start? */
static inline bool
format_is_on_grid (const struct format_layout *layout, uint64_t offset)
{
  return (offset - layout->data_start) % layout->cluster_size == 0;
}

/* The cell in which OFFSET lies, which is not below data_start. */
static inline uint64_t
format_cell_at (const struct format_layout *layout, uint64_t offset)
{
  return (offset - layout->data_start) / layout->cluster_size;
}

/* BAT entry of a cell.  CELL must be below format_nr_cells. */
static inline uint32_t
format_cell_entry (const struct format_layout *layout, uint64_t cell)
{
  return (uint32_t) (format_cell_offset (layout, cell) / layout->entry_unit);
}

/* How many cells a BAT entry can name. */
uint64_t format_nr_cells (const struct format_layout *layout);

/* How many cells, whole or begun, END bytes of file hold. */
uint64_t format_cells_below (const struct format_layout *layout,
                             uint64_t end);

#endif /* PLOOP_LIB_FORMAT_H */
