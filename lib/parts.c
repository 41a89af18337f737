/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Ranges of a disk that may be split: see parts.h. */

#include <config.h>

#include <errno.h>
#include <sys/stat.h>

#include "parts.h"

/* ---- Putting it together ----------------------------------------------- */

/* How much of the disk IMAGE has: what the descriptor says, but the last part may
 * have grown since.
 */
static bool
part_length (const ploop_image *disk, const struct location *location,
             const struct image *image, uint64_t *length, GError **error)
{
  const struct delta *delta = image->disk.delta;

  *length = delta->layout.size;
  if (disk->nr_open + 1 == location->nr_parts)
    return true;
  *length = location->length;
  if (delta->layout.size >= *length)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
               "%s: <Storage> number %u has %" G_GUINT64_FORMAT " bytes, but %s "
               "only %" G_GUINT64_FORMAT ": they do not belong together",
               location->descriptor->path, location->part, *length,
               delta->path, delta->layout.size);
  return false;
}

bool
parts_add (ploop_image *disk, const struct location *location,
           struct image *image, GError **error)
{
  struct part *part;
  uint64_t length;
  const bool fits = part_length (disk, location, image, &length, error);

  if (disk->nr_open == 0) {
    disk->nr_parts = location->nr_parts;
    disk->parts = g_new0 (struct part, disk->nr_parts);
  }
  part = &disk->parts[disk->nr_open++];
  *part = (struct part) { image, disk->size, length };
  if (!fits)
    return false;
  disk->size += part->length;
  disk->read_only |= image_is_read_only (image);
  return true;
}

static bool
has_file (const struct part *part, const struct stat *st)
{
  const struct chain *chain = &part->image->disk.chain;
  struct stat open;

  for (unsigned i = 0; i < chain->nr_levels; i++)
    if (fstat (chain->levels[i]->fd, &open) == 0
        && open.st_dev == st->st_dev && open.st_ino == st->st_ino)
      return true;
  return false;
}

bool
parts_share_file (const ploop_image *disk, const struct location *location,
                  GError **error)
{
  for (guint i = 0; i < location->deltas->len; i++) {
    const struct chain_source *source =
      &g_array_index (location->deltas, struct chain_source, i);
    struct stat st;

    for (unsigned p = 0; p < disk->nr_open; p++)
      if (fstat (source->path_fd, &st) == 0
          && has_file (&disk->parts[p], &st)) {
        g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
                     "%s: <Storage> number %u has the <File> %s, which number %u "
                     "has, too", location->descriptor->path, location->part,
                     source->path, p);
        return true;
      }
  }
  return false;
}

/* ---- Cutting ----------------------------------------------------------- */

/* The part that has OFFSET, or the last one. */
static const struct part *
part_at (const ploop_image *disk, uint64_t offset)
{
  const struct part *part = disk->parts;

  while (part + 1 < disk->parts + disk->nr_parts
         && offset >= part->start + part->length)
    part++;
  return part;
}

/* A range inside one part. */
struct piece {
  const struct part *part;
  uint64_t length, offset;      /* bytes; in the part */
};

static struct piece
next_piece (const ploop_image *disk, uint64_t length, uint64_t offset)
{
  const struct part *part = part_at (disk, offset);
  const uint64_t in_part = offset - part->start;

  return (struct piece) { part, MIN (length, part->length - in_part),
                          in_part };
}

/* ---- Without data ------------------------------------------------------ */

static int
check_piece (const struct piece *piece, unsigned flags)
{
  struct disk *disk = &piece->part->image->disk;
  /* Only the map is looked at: no need to wait while requests are held back. */
  int r = gate_admit (&disk->gate);

  if (r < 0)
    return r;
  if (!request_zero_is_fast (disk, piece->length, piece->offset, flags))
    r = -ENOTSUP;
  gate_leave (&disk->gate);
  return r;
}

int
parts_check_fast (const ploop_image *disk, uint64_t length, uint64_t offset,
                  unsigned flags)
{
  int r = 0;

  while (length > 0 && r == 0) {
    const struct piece piece = next_piece (disk, length, offset);

    r = check_piece (&piece, flags);
    offset += piece.length;
    length -= piece.length;
  }
  return r;
}

/* Whom to tell of extents, and where the part begins on the disk. */
struct listener {
  ploop_extent_fn fn;
  void *opaque;
  uint64_t start;
};

static int
tell (void *opaque, uint64_t offset, uint64_t length, bool hole)
{
  const struct listener *listener = opaque;

  return listener->fn (listener->opaque, listener->start + offset, length,
                       hole);
}

static int
describe_piece (const struct piece *piece, unsigned flags,
                ploop_extent_fn fn, void *opaque)
{
  struct disk *disk = &piece->part->image->disk;
  struct listener listener = { fn, opaque, piece->part->start };
  int r = gate_enter (&disk->gate);

  if (r < 0)
    return r;
  r = request_extents (disk, piece->length, piece->offset, flags, tell,
                       &listener);
  gate_leave (&disk->gate);
  return r;
}

int
parts_extents (ploop_image *disk, uint64_t length, uint64_t offset,
               unsigned flags, ploop_extent_fn fn, void *opaque)
{
  int r = 0;

  while (length > 0 && r == 0) {
    const struct piece piece = next_piece (disk, length, offset);

    r = describe_piece (&piece, flags, fn, opaque);
    offset += piece.length;
    length -= piece.length;
  }
  return r;
}

int
parts_prefetch (ploop_image *disk, uint64_t length, uint64_t offset)
{
  while (length > 0) {
    const struct piece piece = next_piece (disk, length, offset);
    struct disk *of_part = &piece.part->image->disk;
    int r = gate_enter (&of_part->gate);

    if (r < 0)
      return r;
    request_prefetch (of_part, piece.length, piece.offset);
    gate_leave (&of_part->gate);
    offset += piece.length;
    length -= piece.length;
  }
  return 0;
}

/* ---- Requests ---------------------------------------------------------- */

/* The part of REQUEST that PIECE is, DONE bytes into it. */
static void
cut (const ploop_request *request, const struct piece *piece, uint64_t done,
     ploop_request *part)
{
  part->operation = request->operation;
  /* Whether all of it is fast was looked at before any of it was begun. */
  part->flags = request->flags & ~PLOOP_FAST;
  part->buf = request->buf ? (char *) request->buf + done : NULL;
  part->length = piece->length;
  part->offset = piece->offset;
}

/* Cut a request: one piece for each part that it touches, and for a flush one for
 * every part.  Returns how many there are.
 */
static unsigned
cut_all (ploop_image *disk, const ploop_request *request,
         struct piece *pieces)
{
  uint64_t offset = request->offset, length = request->length;
  unsigned nr = 0;

  if (request->operation == PLOOP_FLUSH) {
    for (; nr < disk->nr_parts; nr++)
      pieces[nr] = (struct piece) { &disk->parts[nr], 0, 0 };
    return nr;
  }
  do {
    pieces[nr] = next_piece (disk, length, offset);
    offset += pieces[nr].length;
    length -= pieces[nr].length;
    nr++;
  } while (length > 0);
  return nr;
}

int
parts_do (ploop_image *disk, ploop_request *request)
{
  g_autofree struct piece *pieces = g_new (struct piece, disk->nr_parts);
  const unsigned nr = cut_all (disk, request, pieces);
  uint64_t done = 0;
  int r = 0;

  for (unsigned i = 0; i < nr; i++) {
    ploop_request part;
    int result;

    cut (request, &pieces[i], done, &part);
    result = submit_and_wait (&pieces[i].part->image->submit, &part);
    done += pieces[i].length;
    if (r == 0)
      r = result;
  }
  return r;
}

/* A request that was cut, until its last piece is done. */
struct spread {
  ploop_request *request;
  _Atomic unsigned nr_left;
  _Atomic int result;           /* of the first piece that failed */
  ploop_request pieces[];
};

static void
end_piece (struct spread *spread, int result)
{
  int none = 0;

  if (result < 0)
    atomic_compare_exchange_strong (&spread->result, &none, result);
  if (atomic_fetch_sub (&spread->nr_left, 1) > 1)
    return;
  result = atomic_load (&spread->result);
  spread->request->complete (spread->request, result);
  g_free (spread);
}

static void
complete_piece (ploop_request *piece, int result)
{
  end_piece (piece->opaque, result);
}

/* A piece that cannot be begun, because a part has been stopped, has failed; only
 * if it is the first one has the whole request not been begun.
 */
int
parts_submit (ploop_image *disk, ploop_request *request)
{
  g_autofree struct piece *pieces = g_new (struct piece, disk->nr_parts);
  const unsigned nr = cut_all (disk, request, pieces);
  struct spread *spread =
    g_malloc (sizeof *spread + nr * sizeof *spread->pieces);
  uint64_t done = 0;

  spread->request = request;
  spread->nr_left = nr;
  spread->result = 0;
  for (unsigned i = 0; i < nr; i++) {
    ploop_request *piece = &spread->pieces[i];
    int r;

    cut (request, &pieces[i], done, piece);
    piece->complete = complete_piece;
    piece->opaque = spread;
    done += pieces[i].length;
    /* With the last one begun, the spread may be gone. */
    r = submit_queue (&pieces[i].part->image->submit, piece);
    if (r < 0 && i == 0) {
      g_free (spread);
      return r;
    }
    if (r < 0)
      end_piece (spread, r);
  }
  return 0;
}
