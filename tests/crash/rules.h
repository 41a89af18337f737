/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What each sector of the disk may hold: stamps, histories, and who judges.
 *
 * Every write stamps its sectors with their number and its own.  A sector's
 * history is the changes of the one thread that owns it, in order, each begun
 * after the one before was answered.  Moments are the recorder's.
 *
 * What a sector may hold, after a cut or while the image is in use:
 *
 *   - the last change that may not be lost, or any that was begun after it
 *   - none of these may be lost: changes that were forced; those that were
 *     answered before a flush began that was answered before the cut; in some
 *     claims, all that were answered
 *   - a change that failed may be there or not, and nothing makes it durable
 *   - a trim is a change to zeros.  The interface would also let the sector
 *     stay as it was; but with one writer this library has no reason to, and
 *     old content that comes back after a flush would be a lost commit
 *     (but parts of clusters, and clusters that a lower delta has, too, are
 *     trimmed at leisure: like a change that failed.  What the lower delta has is
 *     not among what they may hold, once a change of them may not be lost)
 *   - a stray trim, of sectors to which others write meanwhile: zeros, until
 *     a change that was begun after it was answered may not be lost
 *   - never what was written to another sector
 */

#ifndef PLOOP_TESTS_RULES_H
#define PLOOP_TESTS_RULES_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

/* One change of one sector. */
struct change {
  uint64_t number;              /* 0: zeros */
  uint64_t begun, answered;     /* moments */
  bool forced, failed, trim;
};

/* What is claimed at some moment. */
struct claim {
  uint64_t moment;
  uint64_t flushed;             /* changes answered before it are durable */
  bool answered;                /* all that were answered are */
  bool answered_trims;          /* trims, too */
};

/* The first rule that was broken, or NULL. */
extern char *rules_broken;

/* From any thread.  Only the first one counts. */
void rules_break (const char *format, ...) G_GNUC_PRINTF (1, 2);
void rules_forget_broken (void);

/* ---- Stamps ------------------------------------------------------------ */

/* A number that no change ever had. */
uint64_t rules_new_number (void);

/* Fill the 512 bytes of a sector. */
void rules_stamp (uint8_t *bytes, uint64_t sector, uint64_t number);

enum stamp {
  STAMP_OURS,                   /* or zeros: number 0 */
  STAMP_FOREIGN,                /* what another sector should hold */
  STAMP_DAMAGED,
};

/* BYTES is what SECTOR holds.  *NUMBER is what was written; or the sector that
 * it was written to, if foreign.
 */
enum stamp rules_read_stamp (const uint8_t *bytes, uint64_t sector,
                             uint64_t *number);

/* ---- Histories --------------------------------------------------------- */

/* Begin anew: a disk that holds zeros. */
void rules_begin (uint32_t nr_sectors, uint32_t cluster_sectors);
void rules_end (void);

/* Before all changes. */
void rules_set_initial (uint64_t sector, uint64_t number);

/* By the thread that owns the sectors, when the change was answered. */
void rules_add_change (uint64_t sector, uint64_t nr,
                       const struct change *change);

/* From any thread. */
void rules_add_flush (uint64_t begun, uint64_t answered);
unsigned rules_begin_stray_trim (uint64_t first_sector, uint64_t end,
                                 uint64_t begun);
void rules_end_stray_trim (unsigned trim, uint64_t answered);

/* ---- Judging ----------------------------------------------------------- */

/* What flushes claim at MOMENT. */
struct claim rules_claim_at (uint64_t moment);

/* What is claimed while the image is in use. */
struct claim rules_claim_now (void);

/* Judge what a sector holds; WHERE is for the message. */
void rules_check_sector (const uint8_t *bytes, uint64_t sector,
                         const struct claim *claim, const char *where);

/* May SECTOR hold BYTES? */
bool rules_may_hold (const uint8_t *bytes, uint64_t sector,
                     const struct claim *claim);

#endif /* PLOOP_TESTS_RULES_H */
