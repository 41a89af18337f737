/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A guest's disk as it must be: the model in memory that a server's answers
 * are compared with.
 *
 * It has two copies.  A request changes `submitted` before it is sent and
 * `answered` when its answer has come; requests that overlap are never in
 * flight together.  So where the two agree the content is known, and after a
 * crash every sector must be one of the two.
 *
 * What a trim was sent for is loose: it may read as before or as zeros, and
 * from the moment that it was seen to be zeros it is zeros.  It is loose until
 * it is written to again.
 */

#ifndef PLOOP_TEST_DISK_H
#define PLOOP_TEST_DISK_H

#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>

#include <libnbd.h>

struct disk {
  uint64_t size;
  uint64_t cluster_size;        /* for messages, and where borders are */
  uint8_t *answered;
  uint8_t *submitted;
  uint8_t *loose;               /* by byte; NULL until disk_expect_trims */
  bool long_extents;            /* the last one may go on behind what was asked for, as
                                   the protocol allows */
};

/* A disk of zeros.  Its memory is shared with children of the test. */
struct disk *disk_new (uint64_t size, uint64_t cluster_size);
void disk_free (struct disk *disk);

/* There will be trims. */
void disk_expect_trims (struct disk *disk);

/* Take the guest's content of the image PATH, as qemu-img reads it. */
void disk_load (struct disk *disk, const char *path);

/* Take what NBD reads as, from OFFSET. */
void disk_load_nbd (struct disk *disk, struct nbd_handle *nbd, uint64_t length,
                    uint64_t offset);

/* A request is about to be sent: DATA, or zeros when DATA is NULL. */
void disk_submit (struct disk *disk, const uint8_t *data, uint64_t length,
                  uint64_t offset);

/* ... and was answered. */
void disk_answer (struct disk *disk, uint64_t length, uint64_t offset);

/* ... or was answered with an error that means that nothing was changed. */
void disk_refuse (struct disk *disk, uint64_t length, uint64_t offset);

/* A trim is about to be sent. */
void disk_trim (struct disk *disk, uint64_t length, uint64_t offset);

/* Fail unless the LENGTH bytes at DATA are what was answered. */
void disk_compare (const struct disk *disk, const uint8_t *data,
                   uint64_t length, uint64_t offset, const char *what);

/* The answer to a block status request for LENGTH bytes: NR_ENTRIES numbers, a
 * length and base:allocation's flags by turns.  Fail when it is longer than
 * what was asked for, or calls a hole or zeros what is data.  What it calls
 * zeros, and was loose, is zeros.
 */
void disk_expect_extents (struct disk *disk, const uint32_t *entries,
                          size_t nr_entries, uint64_t length,
                          uint64_t offset);

/* Ask for the extents of the whole disk; the same.  Returns how many bytes
 * were said to be zeros.
 */
uint64_t disk_compare_extents (struct disk *disk, struct nbd_handle *nbd);

/* Read the whole disk, or LENGTH bytes of it, through NBD and compare. */
void disk_compare_nbd (const struct disk *disk, struct nbd_handle *nbd,
                       uint64_t length, uint64_t offset);

/* Read the whole disk through NBD after a crash: each sector (each byte, when
 * requests were not aligned) must be as answered or as submitted.  The model
 * then takes what was read.
 */
void disk_settle (struct disk *disk, struct nbd_handle *nbd,
                  bool sectors_are_whole);

/* Compare the image PATH with the model by qemu-img compare.  Nothing may be
 * loose that was not read since the server ended.
 */
void disk_compare_qemu (const struct disk *disk, const char *path);

/* The same for IMAGE, words of a shell that tell qemu-img what to open. */
void disk_compare_qemu_image (const struct disk *disk, const char *image);

#endif /* PLOOP_TEST_DISK_H */
