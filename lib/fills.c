/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Lazy copy-on-write: see fills.h.
 *
 * What is hard is that a fill ends under the hands of those who use it.  So it is
 * found under the room's lock, which also counts who has it; then its own lock is
 * taken, and it is looked whether it has become whole meanwhile.  A fill that is
 * whole is never written to through here: others write to the cluster by then
 * without any lock.
 *
 * The fill's lock comes before the room's.
 */

#include <config.h>

#include <string.h>

#include "copy.h"
#include "fills.h"

/* What is copied while a request to the same cluster waits. */
#define PIECE_BYTES ((uint32_t) 128 << 10)

/* How much copying may be put off: a flush waits for all of it. */
#define MAX_BYTES (UINT64_C (256) << 20)
#define MIN_FILLS 8u
#define MAX_FILLS 4096u

#define WORD_BITS 64u

struct fill {
  struct fills *fills;
  uint64_t cluster;
  uint64_t serial;
  struct delta *source;         /* and where the cluster begins there */
  uint64_t source_offset;
  uint64_t target_offset;       /* and in the top delta */
  uint32_t length;              /* bytes of the cluster that are on the disk */
  uint32_t source_length;       /* and that the source has */
  GList link;                   /* the queue's */
  unsigned nr_users;            /* the room is one; under its lock, as is: */
  bool failed;                  /* not to be tried again in the background */

  pthread_rwlock_t lock;        /* for what follows */
  bool over;                    /* whole, or dropped */
  bool soiled;                  /* what is not there may not be zeros: a call has
                                   failed half-way */
  uint32_t nr_missing;          /* sectors */
  uint64_t there[];             /* a bit a sector */
};

static struct delta *
target_of (const struct fill *fill)
{
  return chain_top (fill->fills->chain);
}

static uint32_t
cluster_size (const struct fills *fills)
{
  return chain_top (fills->chain)->layout.cluster_size;
}

/* ---- Sectors ----------------------------------------------------------- */

static uint32_t
nr_sectors (const struct fill *fill)
{
  return fill->length / FORMAT_SECTOR_SIZE;
}

static bool
is_there (const struct fill *fill, uint32_t sector)
{
  return fill->there[sector / WORD_BITS] >> sector % WORD_BITS & 1;
}

/* The first sector from FROM on that is there, or is not; nr_sectors if none. */
static uint32_t
next_sector (const struct fill *fill, uint32_t from, bool there)
{
  const uint32_t end = nr_sectors (fill);

  while (from < end) {
    const uint64_t bits = there ? fill->there[from / WORD_BITS]
                                : ~fill->there[from / WORD_BITS];
    const uint64_t left = bits >> from % WORD_BITS;

    if (left != 0)
      return MIN (from + (uint32_t) __builtin_ctzll (left), end);
    from = (from / WORD_BITS + 1) * WORD_BITS;
  }
  return end;
}

/* With the lock held, here and below. */
static void
set_there (struct fill *fill, uint32_t from, uint32_t to)
{
  for (; from < to; from++) {
    fill->nr_missing -= !is_there (fill, from);
    fill->there[from / WORD_BITS] |= UINT64_C (1) << from % WORD_BITS;
  }
}

/* ---- Making and ending ------------------------------------------------- */

void
fills_init (struct fills *fills, const struct chain *chain, struct map *map,
            struct stats *stats, const struct fills_options *options)
{
  const uint32_t size = chain_top (chain)->layout.cluster_size;

  *fills = (struct fills) {
    .chain = chain,
    .map = map,
    .stats = stats,
    .log = options->log,
    .lazy = options->lazy,
    .max = (unsigned) CLAMP (MAX_BYTES / size, MIN_FILLS, MAX_FILLS),
    .news = options->news,
    .opaque = options->opaque,
    /* The key lies in the fill. */
    .by_cluster = g_hash_table_new (g_int64_hash, g_int64_equal),
    .queue = G_QUEUE_INIT,
  };
  pthread_mutex_init (&fills->lock, NULL);
}

static void
free_fill (struct fill *fill)
{
  pthread_rwlock_destroy (&fill->lock);
  g_free (fill);
}

/* With the room's lock held. */
static struct fill *
use (struct fill *fill)
{
  fill->nr_users++;
  return fill;
}

static void
put (struct fill *fill)
{
  struct fills *fills = fill->fills;
  bool last;

  pthread_mutex_lock (&fills->lock);
  last = --fill->nr_users == 0;
  pthread_mutex_unlock (&fills->lock);
  if (last)
    free_fill (fill);
}

void
fills_destroy (struct fills *fills)
{
  if (!fills->by_cluster)
    return;
  /* Those that could never be filled in. */
  for (GList *link = fills->queue.head, *next; link; link = next) {
    next = link->next;
    free_fill (link->data);
  }
  g_hash_table_unref (fills->by_cluster);
  fills->by_cluster = NULL;
  pthread_mutex_destroy (&fills->lock);
}

/* Locked: its lock comes before the room's. */
static struct fill *
new_fill (struct fills *fills, uint64_t cluster, uint64_t word,
          uint32_t entry)
{
  const struct format_layout *layout = &chain_top (fills->chain)->layout;
  struct delta *source = chain_delta (fills->chain, word);
  const uint64_t offset = cluster * layout->cluster_size;
  const size_t words =
    layout->cluster_size / FORMAT_SECTOR_SIZE / WORD_BITS + 1;
  struct fill *fill =
    g_malloc0 (sizeof *fill + words * sizeof fill->there[0]);
  pthread_rwlockattr_t attr;

  fill->fills = fills;
  fill->cluster = cluster;
  fill->source = source;
  fill->source_offset = format_entry_offset (&source->layout,
                                             map_word_entry (word));
  fill->target_offset = format_entry_offset (layout, entry);
  fill->length = (uint32_t) delta_length_inside (
    chain_top (fills->chain), layout->cluster_size, offset);
  fill->source_length =
    (uint32_t) delta_length_inside (source, fill->length, offset);
  fill->nr_missing = nr_sectors (fill);
  fill->link.data = fill;
  fill->nr_users = 2;           /* and whoever makes it */
  pthread_rwlockattr_init (&attr);
  /* However many read, a flush comes to its end. */
  pthread_rwlockattr_setkind_np (
    &attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
  pthread_rwlock_init (&fill->lock, &attr);
  pthread_rwlockattr_destroy (&attr);
  pthread_rwlock_wrlock (&fill->lock);
  return fill;
}

/* Only a hint: others come and go. */
static bool
is_full (struct fills *fills)
{
  bool full;

  pthread_mutex_lock (&fills->lock);
  full = fills->queue.length >= fills->max;
  pthread_mutex_unlock (&fills->lock);
  return full;
}

/* In case of a doubt, no space is reserved. */
static bool
is_reserved (const struct fills *fills)
{
  return !atomic_load_explicit (&chain_top (fills->chain)->no_fallocate,
                                memory_order_relaxed);
}

struct fill *
fills_begin (struct fills *fills, uint64_t cluster, uint64_t word,
             uint32_t entry)
{
  struct fill *fill;
  bool admitted;

  if (!fills->lazy || copy_may_clone (chain_delta (fills->chain, word))
      || !is_reserved (fills) || is_full (fills))
    return NULL;
  fill = new_fill (fills, cluster, word, entry);
  pthread_mutex_lock (&fills->lock);
  admitted = !fills->stopped && fills->queue.length < fills->max;
  if (admitted) {
    fill->serial = ++fills->last_serial;
    g_hash_table_insert (fills->by_cluster, &fill->cluster, fill);
    g_queue_push_tail_link (&fills->queue, &fill->link);
  }
  pthread_mutex_unlock (&fills->lock);
  if (admitted)
    return fill;
  pthread_rwlock_unlock (&fill->lock);
  free_fill (fill);
  return NULL;
}

/* Nobody finds it any more; with its lock held. */
static void
end (struct fills *fills, struct fill *fill)
{
  fill->over = true;
  pthread_mutex_lock (&fills->lock);
  g_hash_table_remove (fills->by_cluster, &fill->cluster);
  g_queue_unlink (&fills->queue, &fill->link);
  fill->nr_users--;             /* the caller is another one */
  pthread_mutex_unlock (&fills->lock);
}

/* The caller has used it, and ends it if it is whole.  The flag
 * goes first, so that it is there for nobody who finds no fill.
 */
static void
unlock (struct fills *fills, struct fill *fill)
{
  if (fill->nr_missing == 0 && !fill->over) {
    map_clear_flags (fills->map, fill->cluster, MAP_FILLING);
    end (fills, fill);
  }
  pthread_rwlock_unlock (&fill->lock);
}

bool
fill_is_whole (const struct fill *fill)
{
  return fill->nr_missing == 0;
}

void
fill_published (struct fills *fills, struct fill *fill)
{
  const bool news = !fill_is_whole (fill);

  unlock (fills, fill);
  put (fill);
  if (news)
    fills->news (fills->opaque);
}

void
fill_drop (struct fills *fills, struct fill *fill)
{
  end (fills, fill);
  pthread_rwlock_unlock (&fill->lock);
  put (fill);
}

/* ---- Copying ----------------------------------------------------------- */

/* What is not there becomes zeros again. */
static int
clean (struct fill *fill, uint32_t from, uint32_t to)
{
  return fill->soiled ? delta_zero (target_of (fill), to - from,
                                    fill->target_offset + from)
                      : 0;
}

/* Copy sectors FROM up to TO, none of which is there. */
static int
copy_sectors (struct fill *fill, uint32_t from, uint32_t to)
{
  const uint32_t start = from * FORMAT_SECTOR_SIZE;
  const uint32_t stop = MIN (to * FORMAT_SECTOR_SIZE, fill->source_length);
  int r = clean (fill, start, to * FORMAT_SECTOR_SIZE);

  if (r == 0 && start < stop)
    r = copy_range (target_of (fill), fill->target_offset + start,
                    fill->source, fill->source_offset + start, stop - start);
  if (r < 0) {
    fill->soiled = true;
    return r;
  }
  set_there (fill, from, to);
  stats_add (fill->fills->stats, STATS_FILL_BYTES,
             (uint64_t) (to - from) * FORMAT_SECTOR_SIZE);
  return 0;
}

/* Some of what is missing. */
static int
copy_piece (struct fill *fill)
{
  const uint32_t from = next_sector (fill, 0, false);
  const uint32_t to = MIN (next_sector (fill, from, true),
                           from + PIECE_BYTES / FORMAT_SECTOR_SIZE);

  return from == to ? 0 : copy_sectors (fill, from, to);
}

/* ---- Using ------------------------------------------------------------- */

/* A sector that is there in part has to be there as a whole. */
static int
complete_sector (struct fill *fill, uint32_t offset)
{
  const uint32_t sector = offset / FORMAT_SECTOR_SIZE;

  return offset % FORMAT_SECTOR_SIZE == 0 || is_there (fill, sector)
           ? 0 : copy_sectors (fill, sector, sector + 1);
}

/* Zeros over what is not there are in the file already, but perhaps as a hole. */
static int
zero (struct fill *fill, uint32_t from, uint32_t to)
{
  int r = 0;

  while (from < to && r == 0) {
    const uint32_t sector = from / FORMAT_SECTOR_SIZE;
    const bool there = is_there (fill, sector);
    const uint32_t stop =
      MIN (to, next_sector (fill, sector, !there) * FORMAT_SECTOR_SIZE);

    r = there || target_of (fill)->no_holes
          ? delta_zero (target_of (fill), stop - from, fill->target_offset + from)
          : clean (fill, from, stop);
    from = stop;
  }
  return r;
}

/* Bytes of a cluster. */
struct range {
  uint32_t from, to;
};

static struct range
range_in_cluster (const struct fill *fill, uint64_t length, uint64_t offset)
{
  const uint64_t start = fill->cluster * cluster_size (fill->fills);

  return (struct range) { (uint32_t) (offset - start),
                          (uint32_t) (offset - start + length) };
}

int
fill_write (struct fill *fill, const void *buf, size_t length,
            uint64_t offset)
{
  const struct range range = range_in_cluster (fill, length, offset);
  int r = complete_sector (fill, range.from);

  if (r == 0)
    r = complete_sector (fill, range.to);
  if (r == 0)
    r = buf ? delta_pwrite (target_of (fill), buf, length,
                            fill->target_offset + range.from)
            : zero (fill, range.from, range.to);
  if (r == 0)
    set_there (fill, range.from / FORMAT_SECTOR_SIZE,
               (range.to + FORMAT_SECTOR_SIZE - 1) / FORMAT_SECTOR_SIZE);
  else
    fill->soiled = true;
  return r;
}

/* The fill of the cluster that OFFSET lies in; NULL when there is none. */
static struct fill *
get (struct fills *fills, uint64_t offset)
{
  const uint64_t cluster = offset / cluster_size (fills);
  struct fill *fill;

  pthread_mutex_lock (&fills->lock);
  fill = g_hash_table_lookup (fills->by_cluster, &cluster);
  if (fill)
    use (fill);
  pthread_mutex_unlock (&fills->lock);
  return fill;
}

/* Likewise, locked. */
static struct fill *
lock (struct fills *fills, uint64_t offset, bool shared)
{
  struct fill *fill = get (fills, offset);

  if (!fill)
    return NULL;
  if (shared)
    pthread_rwlock_rdlock (&fill->lock);
  else
    pthread_rwlock_wrlock (&fill->lock);
  if (!fill->over)
    return fill;
  pthread_rwlock_unlock (&fill->lock);
  put (fill);
  return NULL;
}

int
fills_write (struct fills *fills, const void *buf, size_t length,
             uint64_t offset)
{
  struct fill *fill = lock (fills, offset, false);
  int r;

  if (!fill)
    return FILLS_WHOLE;
  r = fill_write (fill, buf, length, offset);
  unlock (fills, fill);
  put (fill);
  return r;
}

bool
fills_trim (struct fills *fills, uint64_t length, uint64_t offset)
{
  struct fill *fill = lock (fills, offset, false);
  struct range range;
  bool given_up;

  if (!fill)
    return true;
  range = range_in_cluster (fill, length, offset);
  given_up = !fill->soiled && !target_of (fill)->no_holes;
  if (given_up)
    set_there (fill,
               (range.from + FORMAT_SECTOR_SIZE - 1) / FORMAT_SECTOR_SIZE,
               range.to / FORMAT_SECTOR_SIZE);
  unlock (fills, fill);
  put (fill);
  return given_up;
}

/* What the lower delta has; behind its end nothing. */
static int
read_below (const struct fill *fill, uint8_t *buf, uint32_t from, uint32_t to)
{
  const uint32_t stop = CLAMP (fill->source_length, from, to);

  memset (buf + (stop - from), 0, to - stop);
  return delta_pread (fill->source, buf, stop - from,
                      fill->source_offset + from);
}

static int
read_range (const struct fill *fill, uint8_t *buf, struct range range)
{
  int r = 0;

  while (range.from < range.to && r == 0) {
    const uint32_t sector = range.from / FORMAT_SECTOR_SIZE;
    const bool there = is_there (fill, sector);
    const uint32_t stop =
      MIN (range.to, next_sector (fill, sector, !there) * FORMAT_SECTOR_SIZE);

    r = there ? delta_pread (target_of (fill), buf, stop - range.from,
                             fill->target_offset + range.from)
              : read_below (fill, buf, range.from, stop);
    buf += stop - range.from;
    range.from = stop;
  }
  return r;
}

int
fills_read (struct fills *fills, void *buf, size_t length, uint64_t offset)
{
  struct fill *fill = lock (fills, offset, true);
  int r;

  if (!fill)
    return FILLS_WHOLE;
  r = read_range (fill, buf, range_in_cluster (fill, length, offset));
  pthread_rwlock_unlock (&fill->lock);
  put (fill);
  return r;
}

/* ---- Filling ----------------------------------------------------------- */

bool
fills_are_due (struct fills *fills)
{
  bool due;

  pthread_mutex_lock (&fills->lock);
  due = fills->last_serial == fills->seen_serial
        || fills->queue.length > fills->max / 2;
  fills->seen_serial = fills->last_serial;
  pthread_mutex_unlock (&fills->lock);
  return due;
}

/* Copy a piece of a fill.  Returns 1 when it is over, 0 when there is more to
 * copy, or a negative errno.
 */
static int
work_on (struct fills *fills, struct fill *fill)
{
  int r = 1;

  pthread_rwlock_wrlock (&fill->lock);
  if (!fill->over)
    r = copy_piece (fill);
  if (r == 0)
    r = fill_is_whole (fill);
  unlock (fills, fill);
  return r;
}

/* The oldest fill behind serial number AFTER, up to LAST; of those that failed
 * before only if AGAIN.
 */
static struct fill *
next_fill (struct fills *fills, uint64_t after, uint64_t last, bool again)
{
  struct fill *found = NULL;

  pthread_mutex_lock (&fills->lock);
  for (GList *link = fills->queue.head; link && !found; link = link->next) {
    struct fill *fill = link->data;

    if (fill->serial > last)
      break;
    if (fill->serial > after && (again || !fill->failed))
      found = use (fill);
  }
  pthread_mutex_unlock (&fills->lock);
  return found;
}

/* R is how filling it in has ended.  That it fails is told once, until all goes
 * well again.
 */
static void
set_result (struct fills *fills, struct fill *fill, int r)
{
  bool news;

  pthread_mutex_lock (&fills->lock);
  fill->failed = r < 0;
  news = r < 0 && !fills->warned;
  fills->warned = fills->warned || r < 0;
  pthread_mutex_unlock (&fills->lock);
  if (news)
    log_warning (fills->log, "%s: a cluster that was copied lazily cannot be "
                 "completed from %s: %s: flushes fail as long as that is so",
                 target_of (fill)->path, fill->source->path, g_strerror (-r));
}

static void
all_went_well (struct fills *fills)
{
  pthread_mutex_lock (&fills->lock);
  fills->warned = false;
  pthread_mutex_unlock (&fills->lock);
}

bool
fills_work (struct fills *fills)
{
  struct fill *fill = next_fill (fills, 0, UINT64_MAX, false);
  bool more;
  int r;

  if (!fill)
    return false;
  r = work_on (fills, fill);
  if (r < 0)
    set_result (fills, fill, r);
  put (fill);
  fill = next_fill (fills, 0, UINT64_MAX, false);
  more = fill != NULL;
  if (fill)
    put (fill);
  return more;
}

static int
complete (struct fills *fills, struct fill *fill)
{
  int r;

  do
    r = work_on (fills, fill);
  while (r == 0);
  set_result (fills, fill, r);
  return MIN (r, 0);
}

static bool
is_silent (const struct fill *fill)
{
  return fill->source->remote && remote_is_lost (fill->source->remote);
}

/* What fails must not keep the others from being filled in.  But a server that
 * does not answer is waited for once.
 */
int
fills_complete (struct fills *fills)
{
  const struct delta *silent = NULL;
  struct fill *fill;
  uint64_t last, serial = 0;
  int result = 0;

  if (!fills->lazy)
    return 0;
  pthread_mutex_lock (&fills->lock);
  last = fills->last_serial;
  pthread_mutex_unlock (&fills->lock);
  while ((fill = next_fill (fills, serial, last, true))) {
    int r = 0;

    serial = fill->serial;
    if (fill->source != silent)
      r = complete (fills, fill);
    if (r < 0 && is_silent (fill))
      silent = fill->source;
    if (r < 0 && result == 0)
      result = r;
    put (fill);
  }
  if (result == 0)
    all_went_well (fills);
  return result;
}

int
fills_stop (struct fills *fills)
{
  if (!fills->lazy)
    return 0;
  pthread_mutex_lock (&fills->lock);
  fills->stopped = true;
  pthread_mutex_unlock (&fills->lock);
  return fills_complete (fills);
}
