/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Numbers for the changes to a file, and how many of them are durable.
 *
 * A change is noted after it was made (written, or put down to be written by
 * the next commit) and before it is answered.  Its number is durable when a
 * commit has ended that began after the change was noted.
 */

#ifndef PLOOP_LIB_CHANGES_H
#define PLOOP_LIB_CHANGES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct changes {
  _Atomic uint64_t nr;          /* so far */
  _Atomic uint64_t nr_durable;  /* all up to this one are */
  _Atomic uint64_t nr_synced;   /* the same, but for what was written to copies
                                   that could not be made whole */
};

/* Returns the change's number. */
static inline uint64_t
changes_note (struct changes *changes)
{
  /* Release: pairs with the acquire in changes_now, from which a commit
   * begins.
   */
  return atomic_fetch_add_explicit (&changes->nr, 1, memory_order_release) + 1;
}

/* The number of the last change that was noted. */
static inline uint64_t
changes_now (const struct changes *changes)
{
  return atomic_load_explicit (&changes->nr, memory_order_acquire);
}

static inline bool
changes_are_durable (const struct changes *changes, uint64_t number)
{
  /* Acquire: pairs with the release in changes_set_durable. */
  return atomic_load_explicit (&changes->nr_durable, memory_order_acquire)
         >= number;
}

/* Likewise, for whoever does not wait for copies: a cluster was unmapped, or
 * punched.
 */
static inline bool
changes_are_synced (const struct changes *changes, uint64_t number)
{
  /* Acquire: pairs with the release in changes_set_synced. */
  return atomic_load_explicit (&changes->nr_synced, memory_order_acquire)
         >= number;
}

/* For whoever commits; one at a time. */
static inline void
changes_set_synced (struct changes *changes, uint64_t number)
{
  atomic_store_explicit (&changes->nr_synced, number, memory_order_release);
}

/* Both. */
static inline void
changes_set_durable (struct changes *changes, uint64_t number)
{
  changes_set_synced (changes, number);
  atomic_store_explicit (&changes->nr_durable, number, memory_order_release);
}

#endif /* PLOOP_LIB_CHANGES_H */
