/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* One chain of deltas, opened: ties the other rooms together.  Most disks are one
 * image; a split disk is several.
 */

#ifndef PLOOP_LIB_IMAGE_H
#define PLOOP_LIB_IMAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "engine.h"
#include "error.h"
#include "location.h"
#include "submit.h"

struct image {
  struct disk disk;
  struct submit submit;
  struct ploop_open_options options;
  struct log log;
  uint64_t nr_allocated;        /* clusters of the top delta, at open */
  ploop_engine own;             /* if it has no other one */
  struct runner_job forget;     /* the page cache, piece by piece */
  uint64_t forgotten;           /* bytes of the file */
  struct runner_job fill;       /* what was copied lazily, piece by piece */
  _Atomic bool filling;         /* it is queued, or runs */
  unsigned filler;              /* the runner that fills next; the flusher's */
  pthread_mutex_t job_lock;     /* for: */
  unsigned nr_jobs;             /* forget, fill: queued, or running */
  pthread_cond_t job_ended;
  bool started;
  _Atomic bool stopped;
};

/* Open what LOCATION says, with all defaults filled in in OPTIONS; starts no
 * threads.  Returns NULL and sets ERROR as ploop_open does.
 */
struct image *image_open (const struct location *location,
                          const struct ploop_open_options *options,
                          GError **error);

/* With all of the disk open, for its first image: lock the descriptor, if that is
 * not done yet, and see that it is the one that was read.  Returns false and sets
 * ERROR when it is not, or somebody else has it.
 */
bool image_lock (struct image *image, const struct location *location,
                 const struct ploop_open_options *options, GError **error);

/* If the top delta was not closed: let image_stop leave it as one that was, even if
 * nothing is written.  Returns 0 or a negative errno.
 */
int image_recover (struct image *image);

/* As the functions of ploop-core.h that are called alike. */
int image_start (struct image *image, GError **error);
int image_stop (struct image *image, GError **error);
int image_suspend (struct image *image);
void image_resume (struct image *image);

/* Add IMAGE's state to STATE.  Returns 0 or a negative errno, with all but the file
 * added.
 */
int image_add_state (const struct image *image, struct ploop_state *state);

/* When it has stopped, or never started. */
void image_free (struct image *image);

static inline bool
image_is_read_only (const struct image *image)
{
  return image->disk.delta->read_only;
}

#endif /* PLOOP_LIB_IMAGE_H */
