/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Image files for unit tests, in a directory that goes away at exit.  Failures
 * here end the test program.
 */

#ifndef PLOOP_TESTS_SCRATCH_H
#define PLOOP_TESTS_SCRATCH_H

#include <stddef.h>
#include <stdint.h>

#include "format.h"

/* A name in the scratch directory that no other call returns (g_free). */
char *scratch_path (const char *name);

/* A header of NR_ENTRIES clusters of CLUSTER_SECTORS, for a disk as large as
 * they are, closed, with the first data offset that the kernel wants.
 */
struct format_header scratch_header (unsigned version,
                                     uint32_t cluster_sectors,
                                     uint32_t nr_entries);

/* Write HEADER and the BAT of ENTRIES (header->nr_entries of them; NULL: all
 * zero) to a new file of FILE_SIZE bytes.  Returns its name (g_free).
 */
char *scratch_image (const char *name, const struct format_header *header,
                     const uint32_t *entries, uint64_t file_size);

/* Read and change files by hand. */
void scratch_read (const char *path, void *buf, size_t length,
                   uint64_t offset);
void scratch_write (const char *path, const void *buf, size_t length,
                    uint64_t offset);
uint32_t scratch_read_le32 (const char *path, uint64_t offset);
void scratch_write_le32 (const char *path, uint32_t value, uint64_t offset);
uint64_t scratch_size (const char *path);

#endif /* PLOOP_TESTS_SCRATCH_H */
