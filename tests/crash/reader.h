/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A second opinion: makes and reads ploop images by the rules of the format
 * alone, and shares no line with the library.  Knows only one file, in memory.
 */

#ifndef PLOOP_TESTS_READER_H
#define PLOOP_TESTS_READER_H

#include <stdbool.h>
#include <stdint.h>

#define READER_CLOSED 0u
#define READER_IN_USE 0x746f6e59u

/* How an image is laid out. */
struct reader_shape {
  unsigned version;             /* 1 or 2 */
  uint32_t cluster_sectors;
  uint32_t nr_sectors;          /* of the disk */
  uint32_t nr_entries;
  uint32_t data_sectors;        /* first data offset; version 1: may be 0 */
};

struct reader {
  struct reader_shape shape;
  const uint8_t *bytes;
  uint64_t size;                /* of the file */
  uint64_t data_start;          /* bytes */
  uint32_t in_use;
};

/* Where the data area begins: bytes. */
uint64_t reader_data_start (const struct reader_shape *shape);

/* An empty image: header, BAT and what is before the data (g_free). */
uint8_t *reader_make (const struct reader_shape *shape, uint64_t *size);

/* Let entry I of an image's BYTES name the host cluster at byte OFFSET. */
void reader_put_entry (const struct reader_shape *shape, uint8_t *bytes,
                       uint32_t i, uint64_t offset);

/* Read the header and judge the BAT.  Returns NULL, or what is wrong (g_free);
 * in READER all is set but for a bad header.
 */
char *reader_open (struct reader *reader, const uint8_t *bytes,
                   uint64_t size);

/* The same of an image whose clusters may lie anywhere in the data area, as long as no
 * two overlap: in version 1, not only where whole clusters from its start lead to.
 */
char *reader_open_off_grid (struct reader *reader, const uint8_t *bytes,
                            uint64_t size);

/* Is there anything but zeros between the BAT and the data? */
bool reader_has_slack (const struct reader *reader);

/* The end of the last cluster that is in use: bytes of the file. */
uint64_t reader_data_end (const struct reader *reader);

/* Where a sector of the disk is in the file: NULL if nowhere, so zeros. */
const uint8_t *reader_sector (const struct reader *reader, uint64_t sector);

/* The same, and zeros if nowhere. */
const uint8_t *reader_content (const struct reader *reader, uint64_t sector);

#endif /* PLOOP_TESTS_READER_H */
