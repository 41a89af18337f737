/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* libploop-core: ploop disk images, without a server or a kernel module.
 *
 * A ploop image is an expandable file: a header, a block allocation table
 * (BAT) with one entry for each cluster of the guest's disk, and the clusters
 * that were written so far.  This library opens such an image, checks it in
 * full, reads and writes the guest's disk from any number of threads, and
 * creates, describes, checks and compacts images.
 *
 * Errors have two shapes.  Requests return 0 or a negative errno.  Opening,
 * closing and maintenance take a GError (domain PLOOP_ERROR) whose message
 * names the file, the field, the value and what to do.  Passing NULL for the
 * GError discards the message, as everywhere in GLib.
 *
 * Unless a function's comment says otherwise, it blocks (it does file I/O)
 * and it may be called from any thread.
 */

#ifndef PLOOP_CORE_H
#define PLOOP_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <glib.h>

G_BEGIN_DECLS

/* ---- Errors ------------------------------------------------------------ */

#define PLOOP_ERROR (ploop_error_quark ())

enum ploop_error {
  PLOOP_ERROR_SYSTEM,           /* a system call failed; the text says why */
  PLOOP_ERROR_FORMAT,           /* not a ploop image */
  PLOOP_ERROR_CORRUPT,          /* header or BAT contradict themselves or the
                                   file */
  PLOOP_ERROR_IN_USE,           /* another program holds the image */
  PLOOP_ERROR_EXISTS,           /* would overwrite a file */
  PLOOP_ERROR_ARGUMENT,         /* an argument is out of range */
};

GQuark ploop_error_quark (void);

/* ---- Opening and closing ----------------------------------------------- */

typedef struct ploop_image ploop_image;

/* The threads that images work with. */
typedef struct ploop_engine ploop_engine;

enum ploop_log_level {
  PLOOP_LOG_DEBUG,              /* for whoever looks for a fault */
  PLOOP_LOG_WARNING,            /* the user should know; service goes on */
};

/* Receives one line without a newline.  May be called from any thread that
 * calls into the library, never concurrently with the return of ploop_close.
 */
typedef void (*ploop_log_fn) (void *opaque, enum ploop_log_level level,
                              const char *message);

/* How the guest's data reaches the disk. */
enum ploop_cache {
  PLOOP_CACHE_WRITEBACK,        /* through the page cache; durable at a flush */
  PLOOP_CACHE_NONE,             /* past the page cache (O_DIRECT), where the
                                   file system allows it; durable at a flush */
  PLOOP_CACHE_WRITETHROUGH,     /* through the page cache; every write is
                                   durable when it returns */
};

/* How the file is extended. */
enum ploop_prealloc_mode {
  PLOOP_PREALLOC_FALLOC,        /* with the space reserved (fallocate) */
  PLOOP_PREALLOC_TRUNCATE,      /* by a hole: quick, takes no space before it
                                   is written to, but may run out of it then */
};

/* What a write does for which there is no space. */
enum ploop_enospc {
  PLOOP_ENOSPC_REPORT,          /* returns -ENOSPC */
  PLOOP_ENOSPC_WAIT,            /* waits until there is space */
};

/* What becomes of what is trimmed. */
enum ploop_discard {
  PLOOP_DISCARD_UNMAP,          /* clusters are unmapped, their space and that
                                   of parts of others is given back */
  PLOOP_DISCARD_KEEP,           /* clusters are unmapped and used again, but no
                                   hole is made in the file: for programs that
                                   do not know any */
  PLOOP_DISCARD_OFF,            /* nothing */
};

/* What a write does whose data is zeros, cluster by cluster. */
enum ploop_detect_zeroes {
  PLOOP_DETECT_ZEROES_OFF,      /* what every write does */
  PLOOP_DETECT_ZEROES_ON,       /* allocates nothing for them */
  PLOOP_DETECT_ZEROES_UNMAP,    /* and gives back what they replace, as a trim
                                   does */
};

/* When a write to a part of a cluster that only a lower delta has is answered. */
enum ploop_copy_on_write {
  PLOOP_COPY_EAGER,             /* with the whole cluster copied */
  PLOOP_COPY_LAZY,              /* with its own sectors in place; the rest is
                                   copied behind it, before the next flush ends */
};

/* The most runners that an image may have. */
#define PLOOP_MAX_RUNNERS 16u

#define PLOOP_MAX_PREALLOC (UINT64_C (1) << 40)
#define PLOOP_MAX_DELAY 3600000u

/* Zero in any field means the default that is named.  Strings need not outlive
 * ploop_open.
 */
struct ploop_open_options {
  bool read_only;               /* never change the file */
  bool defer_start;             /* start no threads: see ploop_start */
  bool no_fast_path;            /* every request goes through the runners */
  bool measure_latency;         /* fill the histograms of the statistics */
  enum ploop_cache cache;       /* writeback */
  enum ploop_prealloc_mode prealloc_mode;       /* falloc */
  enum ploop_enospc enospc;     /* report */
  enum ploop_discard discard;   /* unmap */
  enum ploop_detect_zeroes detect_zeroes;       /* off */
  enum ploop_copy_on_write copy_on_write;       /* eager */
  ploop_engine *engine;         /* threads that are there already, for many images;
                                   NULL: the image starts its own */
  unsigned runners;             /* worker threads, 1 to PLOOP_MAX_RUNNERS; 0: one
                                   a CPU; not with an engine */
  uint64_t prealloc;            /* bytes that one extension adds, at most
                                   PLOOP_MAX_PREALLOC; 0: 128 MiB */
  unsigned copy_delay;          /* ms until copied clusters are committed without
                                   a flush, at most PLOOP_MAX_DELAY; 0: 500 */
  unsigned writeback_delay;     /* ms that entries of new clusters may wait in
                                   memory for others, at most PLOOP_MAX_DELAY;
                                   0: not at all */
  const char *snapshot;         /* GUID of the snapshot to read; NULL: the disk as
                                   it is now */
  bool allow_outside;           /* the descriptor may name files that lie outside
                                   its directory */
  /* Of the same disk, open in this process: its locks on the descriptor are good
   * for this one, too, which must be closed before it.  NULL: none.
   */
  const ploop_image *beside;
  /* Lower deltas, from the one below PATH down to the base, which may be a raw
   * disk; ends with NULL.  NULL: none.
   */
  const char *const *bases;
  bool base_cache;              /* what is read from an NBD export is copied to the
                                   top delta, if that may be written */
  const char *overlay;          /* a delta for all changes, created if missing;
                                   the rest is only read.  NULL: none */
  ploop_log_fn log;             /* NULL: no messages */
  void *log_opaque;
  /* With PLOOP_ENOSPC_WAIT, asked about once a second as long as somebody waits:
   * true ends all waiting, now and later, with -ENOSPC.  For servers that cannot
   * stop before their requests have returned.  NULL: never.
   */
  bool (*give_up) (void *opaque);
  void *give_up_opaque;
};

/* Open the disk PATH and check its headers and all of its BATs.
 *
 * PATH is an image file; or a DiskDescriptor.xml, or a directory that holds one:
 * all deltas that belong to the disk (or to the snapshot that options->snapshot
 * names, to be read only).  An image file may have lower deltas, options->bases;
 * with options->overlay, PATH and they are only read, and may be a raw disk, and
 * the overlay, as large as they and with clusters of the same size, takes what is
 * written.  The last of the bases, or PATH below an overlay, may be the URI of an
 * NBD export.  A disk that is one raw file is opened for reading, unless there is
 * an overlay.
 *
 * OPTIONS may be NULL: open for reading and writing, no messages.  When
 * read_only is not set but the file or its file system does not allow writing,
 * or the image carries changed-block bitmaps that a write would make untrue,
 * the image is opened for reading (see ploop_is_read_only) and a warning is
 * logged.
 *
 * The file is locked in the ways that qemu, libploop 9 and ploop 1.15 respect:
 * for writing nobody else may use it, for reading others may read it.
 *
 * Opening changes nothing in the file.  The image is marked as in use on disk
 * by the first request that changes it.
 *
 * Starts threads, unless they are given: runners named ploop-run-N and a flusher
 * named ploop-flush, with all signals blocked.  A process that forks after this must
 * not use the image in the child; one that has to, sets defer_start.
 *
 * Returns NULL and sets ERROR when the file cannot be opened or locked, or is
 * not an image that can be served without a doubt.
 */
ploop_image *ploop_open (const char *path,
                         const struct ploop_open_options *options,
                         GError **error);

/* Start threads for any number of images: runners, named ploop-run-N, one a CPU if
 * NR_RUNNERS is 0, and a flusher for all, named ploop-flush; with all signals
 * blocked, after a fork if there is one.  With hundreds of images that is what
 * keeps them apart from hundreds of threads each; what one of them waits for (a
 * disk, a server) the others may have to wait for, too.
 *
 * Returns NULL and sets ERROR when that is too many, or they cannot be started.
 */
ploop_engine *ploop_engine_new (unsigned nr_runners, GError **error);

/* End them, when all images that use them are closed.  NULL is ignored. */
void ploop_engine_free (ploop_engine *engine);

/* Start the threads of an image that was opened with defer_start, once, before
 * its first request.
 *
 * A process that forks between opening and this goes on in the child, and
 * closes the image there only.  Returns 0, or -1 with ERROR set; the image can
 * only be closed then.
 */
int ploop_start (ploop_image *image, GError **error);

/* Complete every request that was accepted, and refuse those that come from
 * now on with -ESHUTDOWN; those that wait for space get -ENOSPC, and those that
 * wait for an NBD server -ESHUTDOWN.  Then write back what is pending, cut off
 * unused preallocated space and clear the in-use mark.
 *
 * For servers that cannot keep their clients from calling meanwhile; others just
 * close.  Returns 0, or -1 with ERROR set when something could not be made
 * durable; the image stays marked as in use on disk then.  Does nothing the
 * second time.
 */
int ploop_stop (ploop_image *image, GError **error);

/* Stop, release the locks and free IMAGE.
 *
 * No other call on IMAGE may be running or follow.  Returns 0, or -1 with
 * ERROR set as ploop_stop does; IMAGE is freed then too.  NULL is ignored.
 */
int ploop_close (ploop_image *image, GError **error);

/* ---- The guest's disk -------------------------------------------------- */

/* What never changes while an image is open.  These do not block. */

/* Size of the guest's disk in bytes, a multiple of 512. */
uint64_t ploop_size (const ploop_image *image);

/* Cluster size in bytes, a multiple of 512, not always a power of two. */
uint32_t ploop_cluster_size (const ploop_image *image);

/* Version of the format, 1 or 2. */
unsigned ploop_version (const ploop_image *image);

/* True when writes are refused with EROFS. */
bool ploop_is_read_only (const ploop_image *image);

/* True when the file lies on a device that the kernel knows to rotate. */
bool ploop_is_rotational (const ploop_image *image);

/* Flags for requests that write. */

/* Do not return before this request, by itself, is on stable storage. */
#define PLOOP_FUA 1u

/* Only for zeroing: the space may be given back. */
#define PLOOP_UNMAP 2u

/* Only for zeroing: return -ENOTSUP at once, with nothing done, when zeros would
 * have to be written.
 */
#define PLOOP_FAST 4u

/* Read LENGTH bytes at byte OFFSET of the guest's disk into BUF.  Clusters
 * that were never written read as zeros.
 *
 * Any alignment and any length, also 0.  Returns 0, -EINVAL for a range past
 * the end of the disk, or the negative errno of the read that failed (the
 * content of BUF is then undefined).
 */
int ploop_pread (ploop_image *image, void *buf, size_t length,
                 uint64_t offset);

/* Write LENGTH bytes from BUF at byte OFFSET of the guest's disk.
 *
 * FLAGS is 0 or PLOOP_FUA.  When this returns, other requests see the data
 * and killing the process does not lose it (but what went to a cluster that was
 * copied from a lower delta, until that is committed: a flush, or copy_delay); a
 * power cut may, until a flush.
 *
 * Returns 0, -EINVAL for a range past the end of the disk or an unknown flag,
 * -EROFS, -ENOSPC when the file cannot grow, or the negative errno of what
 * failed.  After an error each sector of the range reads as its old or its new
 * content.
 */
int ploop_pwrite (ploop_image *image, const void *buf, size_t length,
                  uint64_t offset, unsigned flags);

/* Make LENGTH bytes at byte OFFSET read as zeros.  Clusters without data stay
 * without.
 *
 * LENGTH may be as large as the disk.  FLAGS are PLOOP_FUA, PLOOP_UNMAP and
 * PLOOP_FAST.  With PLOOP_UNMAP (and not PLOOP_DISCARD_OFF) whole clusters are
 * unmapped, and the space of parts of others is given back in the background;
 * without it, space that is allocated stays so.  Errors as for ploop_pwrite, and
 * -ENOTSUP with PLOOP_FAST (the first time that the file system turns out not to
 * zero ranges, it is slow instead).
 */
int ploop_zero (ploop_image *image, uint64_t length, uint64_t offset,
                unsigned flags);

/* Say that LENGTH bytes at byte OFFSET are of no more use.  They read as
 * zeros or as before from now on.
 *
 * Whole clusters are unmapped; their space is given back to the file system
 * and used again.  Parts of clusters are given back in the background, down to
 * the blocks of the file system; a cluster of which nothing is left is unmapped
 * then.  LENGTH may be as large as the disk.  FLAGS is 0 or PLOOP_FUA, errors
 * are as for ploop_pwrite.  See enum ploop_discard.
 */
int ploop_trim (ploop_image *image, uint64_t length, uint64_t offset,
                unsigned flags);

/* Make every request that returned before this call durable.
 *
 * Costs nothing when nothing was written since the last flush.  Returns 0 or a
 * negative errno; after a failed sync every later flush and every write with
 * PLOOP_FUA returns -EIO until the image is opened again, because the kernel
 * reports such a failure once and then forgets the data.
 */
int ploop_flush (ploop_image *image);

/* Look also for holes of the file inside clusters; where the file system tells
 * them truly.
 */
#define PLOOP_EXTENTS_DETAIL 1u

/* LENGTH bytes of the disk at byte OFFSET read as zeros and take no space
 * (HOLE), or may be data.  Returns 0 to go on; anything else ends it.  Must not
 * call the library.
 */
typedef int (*ploop_extent_fn) (void *opaque, uint64_t offset,
                                uint64_t length, bool hole);

/* Tell FN which of LENGTH bytes at byte OFFSET are holes: one call an extent, in
 * order, without gaps, neighbours of one kind joined; together the range, and no
 * more.  FLAGS is 0 or PLOOP_EXTENTS_DETAIL.
 *
 * What was answered before this call is never in a hole if it was data; of what
 * is written meanwhile either may be told.
 *
 * Blocks only while requests are held back, and with PLOOP_EXTENTS_DETAIL for a
 * system call or two a hole; from any thread.  Returns 0, -EINVAL, -ESHUTDOWN or
 * what FN returned.
 */
int ploop_extents (ploop_image *image, uint64_t length, uint64_t offset,
                   unsigned flags, ploop_extent_fn fn, void *opaque);

/* LENGTH bytes at byte OFFSET will be read soon: let the page cache have them.
 * Does nothing where data goes past it (PLOOP_CACHE_NONE).
 *
 * Does not wait for the disk; from any thread.  Returns 0, -EINVAL or
 * -ESHUTDOWN.
 */
int ploop_prefetch (ploop_image *image, uint64_t length, uint64_t offset);

/* ---- The guest's disk, without waiting --------------------------------- */

enum ploop_operation {
  PLOOP_READ,
  PLOOP_WRITE,
  PLOOP_ZERO,
  PLOOP_TRIM,
  PLOOP_FLUSH,
};
#define PLOOP_NR_OPERATIONS 5

typedef struct ploop_request ploop_request;

/* RESULT is what the function that waits would have returned.
 *
 * Called once, from any thread that is inside the library, never from within
 * the ploop_submit of the same request.  The request is the caller's again, to
 * be used anew or freed.  May submit requests; must not wait for any, nor stop,
 * suspend or close the image.
 */
typedef void (*ploop_complete_fn) (ploop_request *request, int result);

/* One request, in memory of the caller's, who owns it again when it is
 * complete.  The library allocates nothing for it.
 */
struct ploop_request {
  enum ploop_operation operation;
  unsigned flags;               /* as for the function that waits */
  void *buf;                    /* read into or written from; not changed by a
                                   write */
  uint64_t length, offset;      /* bytes; not of a flush */
  ploop_complete_fn complete;
  void *opaque;                 /* the caller's */

  /* The library's, from submission to completion.  Need not be initialised. */
  uint64_t reserved[16 + 3 * PLOOP_MAX_RUNNERS];
};

/* Begin REQUEST.  Does not block.  Requests that run at the same time may
 * overtake each other: who needs an order waits for completion.  A flush covers
 * what was complete when it was submitted.
 *
 * Returns 0 when complete will be called; else -EINVAL, -EROFS, -ESHUTDOWN or
 * (PLOOP_FAST) -ENOTSUP, and it will not.
 */
int ploop_submit (ploop_image *image, ploop_request *request);

/* ---- Holding requests back --------------------------------------------- */

/* Let the requests that run end, commit everything, and hold back those that
 * come: they wait for ploop_resume (or ploop_stop).
 *
 * The file does not change in between, and everything answered is durable in
 * it.  Not from a completion callback.  Calls nest: as many resumes are needed.
 * Returns 0, or a negative errno when the commit failed; requests are not held
 * back then.
 */
int ploop_suspend (ploop_image *image);
void ploop_resume (ploop_image *image);

/* ---- Statistics -------------------------------------------------------- */

/* How often something happened, and how long it took.
 *
 * Bucket I counts what took at most ploop_histogram_bound (I) ns and more than
 * the bound of the bucket before.  The first bound is 256; from there to 2^37
 * (137 s) four equal steps lead to each power of two (320, 384, 448, 512, 640,
 * ...), so no bound is more than a quarter above what its bucket counts.  The
 * last bucket takes the rest.
 */
#define PLOOP_HISTOGRAM_NR_BUCKETS 118

struct ploop_histogram {
  uint64_t count;               /* also of what was not measured */
  uint64_t sum_ns;              /* of what was measured, as all below */
  uint64_t buckets[PLOOP_HISTOGRAM_NR_BUCKETS];
};

/* The most ns that BUCKET counts: UINT64_MAX for the last bucket.  Does not
 * block.
 */
uint64_t ploop_histogram_bound (unsigned bucket);

/* The time in ns within which the fraction Q of what was measured was done: the
 * bound of its bucket, so at most a quarter too high (or up to 256), and
 * UINT64_MAX in the last bucket.
 *
 * Q is from 0 (the fastest) to 1 (the slowest).  Returns 0 when nothing was
 * measured.  Does not block.
 */
uint64_t ploop_histogram_quantile (const struct ploop_histogram *histogram,
                                   double q);

/* Since the image was opened.  Units are bytes or, for nr_, events. */
struct ploop_statistics {
  bool latency_measured;        /* else the buckets are empty */
  /* By enum ploop_operation: requests that are complete. */
  struct ploop_histogram operations[PLOOP_NR_OPERATIONS];

  uint64_t read_bytes;          /* that guests asked for */
  uint64_t write_bytes;
  uint64_t zero_bytes;
  uint64_t trim_bytes;
  uint64_t nr_fua;              /* requests with PLOOP_FUA */
  uint64_t nr_fast_path;        /* requests served in the caller's thread */
  uint64_t nr_queued;           /* requests served by runners */
  uint64_t nr_failed;           /* of both, those answered with an error */

  uint64_t nr_allocations;      /* clusters that got space */
  uint64_t nr_frees;            /* clusters that trimming unmapped */
  uint64_t nr_reuses;           /* allocations that took freed space */
  uint64_t nr_copies;           /* clusters copied from a lower delta */
  uint64_t nr_lazy_copies;      /* of them those whose write was answered first */
  uint64_t fill_bytes;          /* copied into those, until now */

  uint64_t nr_commits;
  uint64_t nr_commit_waiters;   /* flushes and requests with PLOOP_FUA that
                                   commits have answered */
  uint64_t nr_syncs;            /* syncs (fdatasync) of commits */
  uint64_t nr_durable_writes;   /* forced writes that needed no commit */
  uint64_t nr_bat_writes;       /* writes to the BAT in the file */
  uint64_t bat_bytes;           /* written by them */

  uint64_t nr_extensions;       /* times that the file was made larger */
  uint64_t nr_extension_syncs;  /* syncs that this took */
  uint64_t nr_punches;          /* ranges given back to the file system */
  uint64_t nr_enospc_waits;     /* requests that waited for space */
  uint64_t nr_writeback_retries;        /* background commits tried again */
};

/* Read IMAGE's statistics into STATISTICS.
 *
 * Takes no lock and holds nobody up: the counts are those of a moment, each of
 * its own when requests run meanwhile, so sums may not agree by a few.  What
 * was complete before the call is in them.  Does not block.
 */
void ploop_get_statistics (const ploop_image *image,
                           struct ploop_statistics *statistics);

/* Add MORE to TOTAL: for sums over several images, or over the times that one was
 * open.  Does not block.
 */
void ploop_add_statistics (struct ploop_statistics *total,
                           const struct ploop_statistics *more);

/* STATISTICS for people: lines of text, each with its newline.  A table of the
 * operations (with latencies, if measured: mean, and quantiles as
 * ploop_histogram_quantile gives them), then what else was counted.
 *
 * What is zero is left out; the text is empty when all is.  The wording may
 * change: programs read the fields.  Returns a string for g_free.  Does not
 * block.
 */
char *ploop_describe_statistics (const struct ploop_statistics *statistics);

/* How an image is, at a moment.  Of the delta that is on top, which is written to;
 * of a split disk, the sums over its parts.
 */
struct ploop_state {
  uint64_t file_size;           /* bytes */
  uint64_t file_space;          /* bytes that the file takes in its file system */
  uint64_t nr_clusters;         /* of the guest's disk */
  uint64_t nr_allocated;        /* of them those that the file has */
  uint64_t nr_free;             /* clusters of the file for those it will have,
                                   or on their way to become such; 0 if it is
                                   only read */
  bool sync_failed;             /* a sync has: flushes fail until the image is
                                   opened again */
};

/* Read IMAGE's state into STATE: each field that of a moment of its own.  Takes no
 * lock and holds nobody up; asks the file system for the file's size.  Returns 0, or
 * a negative errno when that fails: file_size and file_space are 0 then.
 */
int ploop_get_state (const ploop_image *image, struct ploop_state *state);

/* ---- What takes its time ----------------------------------------------- */

/* Called before the first piece of work and after each one (of compacting: a MiB of
 * data at most, or a hole), with how many bytes of NR_BYTES are done; while a pipe is
 * waited for, five times a second, and then NR_BYTES may be 0: not known.  Returns false
 * to end it; is not called again then.  Called by the thread that is in the function
 * that works, on whose disks it must not work.
 */
typedef bool (*ploop_progress_fn) (void *opaque, uint64_t nr_bytes_done,
                                   uint64_t nr_bytes);

/* ---- Creating ---------------------------------------------------------- */

/* What is there before anything is written to the disk. */
enum ploop_create_space {
  PLOOP_CREATE_SPARSE,          /* no clusters: the file is as small as can be */
  PLOOP_CREATE_METADATA,        /* all clusters are in the BAT, in a row, so none is
                                   ever allocated; in the file they are a hole */
  PLOOP_CREATE_FALLOC,          /* the same, with their space reserved: what ploop
                                   calls preallocated */
  PLOOP_CREATE_FULL,            /* the same, with zeros written to them: for
                                   programs that take neither holes nor space that
                                   was reserved only */
};

/* Zero in any field means the default that is named. */
struct ploop_create_options {
  uint64_t size;                /* of the disk, bytes, a multiple of 512; 0, only with
                                   overlay_of: as large */
  uint32_t cluster_size;        /* bytes, a power of two from 32 KiB to
                                   64 MiB; 0: 1 MiB, or that of overlay_of */
  unsigned version;             /* 1 or 2; 0: 2, or that of overlay_of */
  bool overwrite;               /* replace a file that exists */
  bool descriptor;              /* with a DiskDescriptor.xml in its directory */
  enum ploop_create_space space;        /* sparse */
  const char *overlay_of;       /* the disk that it is to be an overlay of: what
                                   ploop_compare takes; NULL: none */
  const char *snapshot;         /* GUID of the snapshot of it; NULL: the disk as it
                                   is now */
  ploop_progress_fn progress;   /* NULL: none is told */
  void *progress_opaque;
  ploop_log_fn log;             /* NULL: no messages */
  void *log_opaque;
};

/* Create an empty image at PATH, in the layout that the Virtuozzo kernel,
 * ploop and qemu accept, durable when this returns.
 *
 * Without overwrite a file that exists is left alone (PLOOP_ERROR_EXISTS).
 * With it, it is replaced by rename, so that it is there whole, old or new, at
 * every instant; it must not be in use (PLOOP_ERROR_IN_USE).
 *
 * With a descriptor it is a disk of its own, as ploop init makes it; one that is
 * there is never replaced (PLOOP_ERROR_EXISTS), and the new one is there after the
 * image.
 *
 * As an overlay, the image takes what is written, and shows the disk below where
 * nothing was: open that, with the image as its overlay, or as the first of its bases.
 * The disk is opened and locked as for reading meanwhile.  Its size (unless a larger
 * one is given), cluster size and version are the image's.
 *
 * PROGRESS is called when clusters are written (PLOOP_CREATE_FULL), which takes its
 * time; of nothing else.
 *
 * Returns 0; 1 when PROGRESS has ended it, and everything is as it was; or -1 with
 * ERROR set and everything as it was, but for what ERROR says: that the directory
 * could not be synced, and so the new file is there; or that in place of the one that
 * was overwritten there is the new one, without a descriptor.
 */
int ploop_create (const char *path,
                  const struct ploop_create_options *options,
                  GError **error);

/* ---- Describing -------------------------------------------------------- */

enum ploop_cleanliness {
  PLOOP_CLEAN,                  /* closed */
  PLOOP_CLEAN_EXTENSION,        /* closed, extension valid ("v2.1") */
  PLOOP_CLEAN_DESKTOP,          /* closed by Parallels Desktop */
  PLOOP_DIRTY,                  /* open for write, or never closed */
  PLOOP_DIRTY_UNKNOWN,          /* a value that the format does not know */
};

enum ploop_lock_state {
  PLOOP_UNLOCKED,
  PLOOP_LOCKED_FOR_READING,     /* somebody keeps writers out */
  PLOOP_LOCKED_FOR_WRITING,     /* somebody writes, or lets nobody in */
};

struct ploop_info {
  unsigned version;             /* 1 or 2 */
  uint64_t size;                /* of the guest's disk, bytes */
  uint32_t cluster_size;        /* bytes */
  uint32_t nr_clusters;         /* BAT entries */
  uint32_t nr_allocated;        /* BAT entries that are not zero */
  uint32_t heads, cylinders;    /* geometry, of no use beyond display */
  uint64_t data_offset;         /* first data offset as stored, bytes */
  uint64_t extension_offset;    /* bytes, 0: none */
  uint32_t flags;               /* 1 empty, 2 conversion in progress */
  uint32_t in_use;              /* as stored */
  enum ploop_cleanliness cleanliness;
  enum ploop_lock_state lock;
  uint64_t file_size;           /* bytes */
  uint64_t disk_usage;          /* bytes of storage that the file takes */
};

/* Read the header of the image PATH and count its BAT entries into INFO.
 *
 * Keeps nobody out and changes nothing, so the counts of an image that somebody
 * writes are those of a moment ago.  Returns 0, or -1 with ERROR set when the
 * file cannot be read or its header is not plausible.
 */
int ploop_get_info (const char *path, struct ploop_info *info,
                    GError **error);

/* A delta of a disk that is written to no more; or, in ploop_list_tree, the one that
 * is.
 */
struct ploop_snapshot {
  char *guid;                   /* in braces, lower case */
  char *parent;                 /* its parent's; NULL: none */
  char *path;                   /* of its file; NULL: it cannot be opened */
  uint64_t size;                /* of the disk then, bytes; 0: unknown */
  int64_t last_change;          /* of the file, seconds since 1970; 0: unknown */
  bool is_temporary;            /* made by a backup program, for a while */
  bool is_current;              /* the disk is written to this one */
  unsigned depth;               /* how many it rests on; in ploop_list_tree */
  char *problem;                /* why something is not known; NULL: all is */
};

void ploop_snapshot_free (struct ploop_snapshot *snapshot);

/* The snapshots of the disk PATH, as its descriptor lists them: all shots but the
 * one that is written to.  Without a descriptor there are none.
 *
 * Locks nothing and changes nothing; does not wait for anybody.  ALLOW_OUTSIDE as
 * in ploop_open.  Returns an array of struct ploop_snapshot, for
 * g_ptr_array_unref; or NULL with ERROR set when the descriptor cannot be read.
 */
GPtrArray *ploop_list_snapshots (const char *path, bool allow_outside,
                                 GError **error);

/* The same with the delta that is written to, as a tree: each after the one that it
 * rests on, and what rests on a first child before the second child; those that have
 * no parent, or one that is missing, begin a tree each.  What the descriptor lets go
 * round in circles comes last, with a depth from 0 on.
 *
 * As above, but a disk without a descriptor is an error.
 */
GPtrArray *ploop_list_tree (const char *path, bool allow_outside,
                            GError **error);

/* Is the extension of an image, with its changed-block bitmaps, to be trusted? */
enum ploop_extension_state {
  PLOOP_EXTENSION_NONE,         /* there is none */
  PLOOP_EXTENSION_VALID,
  PLOOP_EXTENSION_STALE,        /* the image was not closed since */
  PLOOP_EXTENSION_DAMAGED,      /* no */
};

/* A changed-block bitmap. */
struct ploop_bitmap_info {
  char *uuid;                   /* in braces, lower case */
  uint64_t size;                /* of the disk that it is of, bytes */
  uint64_t granularity;         /* bytes of the disk that a bit is for */
};

/* A delta: one image file. */
struct ploop_delta_info {
  char *guid;                   /* NULL: no descriptor knows the file */
  char *parent;                 /* of the delta that it rests on; NULL: none, or not
                                   known */
  unsigned part;                /* of a split disk, from 0 on; else 0 */
  bool has_shot;                /* some snapshot, or the disk, has its content */
  char *file;                   /* as the descriptor has it, or as given */
  char *path;                   /* where it lies; NULL: it cannot be found */
  char *problem;                /* why nothing that follows is known; NULL: it is */
  bool is_raw;                  /* no header, so version, geometry, data_offset, flags
                                   and in_use are 0; allocated is what is no hole */
  struct ploop_info info;
  int64_t last_change;          /* of the file, seconds since 1970 */
  enum ploop_extension_state extension;
  char *extension_problem;      /* what is damaged, or NULL */
  GPtrArray *bitmaps;           /* of struct ploop_bitmap_info, unless damaged */
};

/* A part of a disk, as the descriptor has it; most disks have one. */
struct ploop_part_info {
  uint64_t start, length;       /* bytes of the disk */
  uint32_t cluster_size;        /* bytes */
};

struct ploop_disk_info {
  bool is_image;                /* one image was asked for: there is nothing but one
                                   delta, and the descriptor that knows it */
  char *descriptor;             /* its path; NULL: none */
  uint64_t size;                /* of the disk, bytes, by the images; 0: unknown */
  uint64_t descriptor_size;     /* by the descriptor, which may be stale */
  char *top;                    /* GUID of the delta that is written to */
  enum ploop_lock_state lock;   /* on the descriptor, as ploop takes it: for writing,
                                   or none that can be seen */
  uint64_t disk_usage;          /* bytes of storage that all its files take */
  GArray *parts;                /* of struct ploop_part_info */
  GPtrArray *deltas;            /* of struct ploop_delta_info: in the order of
                                   SNAPSHOTS, part by part, then those of no shot */
  GPtrArray *snapshots;         /* of struct ploop_snapshot, as ploop_list_tree */
};

void ploop_disk_info_free (struct ploop_disk_info *info);

/* All that there is to know of the disk PATH (a DiskDescriptor.xml, or a directory
 * that holds one) without reading its data; or of an image alone.  A delta that cannot
 * be opened has a problem; the rest is described all the same.
 *
 * Locks nothing and changes nothing: of a disk in use, it is what was a moment ago.
 * ALLOW_OUTSIDE as in ploop_open.  Returns NULL with ERROR set when the descriptor, or
 * the image if it is one, cannot be read.
 */
struct ploop_disk_info *ploop_describe_disk (const char *path,
                                             bool allow_outside,
                                             GError **error);

/* The disks below DIRECTORY, however deep: by their names relative to it, sorted.
 * A directory that holds a DiskDescriptor.xml is one disk, and nothing in it
 * another; any other file that begins as an image does is one, too.  Links are not
 * followed, and what cannot be read is left out.
 *
 * Reads the beginning of every file.  Returns an array of char *, for
 * g_ptr_array_unref; or NULL with ERROR set when DIRECTORY cannot be read, or is a
 * disk itself.
 */
GPtrArray *ploop_list_disks (const char *directory, GError **error);

/* Where the disk NAME of that list lies (g_free), to be opened.  NAME may come from
 * a stranger: nothing is found that lies elsewhere, or by any other name.  Whoever
 * may rename directories there meanwhile is trusted.
 *
 * Returns NULL and sets ERROR when there is no such disk.
 */
char *ploop_find_disk (const char *directory, const char *name,
                       GError **error);

/* ---- Checking ---------------------------------------------------------- */

enum ploop_finding {
  PLOOP_FINDING_ERROR,          /* data is lost, shared or unreachable */
  PLOOP_FINDING_LEAK,           /* space that no guest can reach */
  PLOOP_FINDING_NOTE,           /* allowed, but worth knowing */
};

/* Receives each finding, one line without a newline, in the order found. */
typedef void (*ploop_finding_fn) (void *opaque, enum ploop_finding finding,
                                  const char *message);

struct ploop_check_result {
  uint64_t nr_errors;           /* findings of each kind */
  uint64_t nr_leaks;
  uint64_t nr_notes;
  uint64_t nr_leaked_clusters;  /* host clusters that nothing refers to */
  uint64_t nr_free_clusters;    /* more of them, between others, that are holes
                                   of the file: no space is lost */
  uint64_t nr_allocated;        /* BAT entries that are not zero */
  uint64_t nr_clusters;         /* BAT entries */
};

/* Check the image PATH against every rule of the format; report only.
 *
 * The file is locked as for reading, and never changed.  Findings go to
 * REPORT (may be NULL); RESULT (may be NULL) receives the counts.
 *
 * Returns 0 when the check ran to its end, whatever it found, or -1 with ERROR
 * set when it could not: the file cannot be read or locked, or is no ploop
 * image at all.
 */
int ploop_check (const char *path, ploop_finding_fn report, void *opaque,
                 struct ploop_check_result *result, GError **error);

/* The same, of a disk of many files: FILE is the one that MESSAGE is about. */
typedef void (*ploop_disk_finding_fn) (void *opaque, const char *file,
                                       enum ploop_finding finding,
                                       const char *message);

/* Check the disk PATH: a DiskDescriptor.xml, or a directory that holds one.  The
 * descriptor is checked, each image that it names as by ploop_check, and whether
 * they belong together: sizes, versions, files that are missing or there twice,
 * parents, circles, the top.  Images beside it that it does not name are worth a
 * note.  If PATH is an image, that is checked alone.
 *
 * A descriptor that cannot be parsed is a finding; every image beside it is checked
 * then, each alone.  ALLOW_OUTSIDE as in ploop_open: without it, a file that lies
 * elsewhere is an error, and not looked at.
 *
 * The descriptor is locked as for reading, each image while it is checked; nothing is
 * changed.  Findings go to REPORT (may be NULL), those of an image together; RESULT
 * (may be NULL) receives the sums.
 *
 * Returns 0 when the check ran to its end, whatever it found, or -1 with ERROR set
 * when it could not: a file cannot be read or locked, or is neither.
 */
int ploop_check_disk (const char *path, bool allow_outside,
                      ploop_disk_finding_fn report, void *opaque,
                      struct ploop_check_result *result, GError **error);

/* ---- Mapping ----------------------------------------------------------- */

/* A file that a disk consists of. */
struct ploop_map_delta {
  unsigned index;               /* by which the others name it */
  const char *path;             /* resolved; or the URI of an NBD export */
  unsigned part;                /* of a split disk; else 0 */
  unsigned level;               /* in the chain, 0: the base */
  unsigned version;             /* 1 or 2; 0: a raw disk */
  uint64_t size;                /* of its disk, bytes */
  uint32_t cluster_size;        /* bytes */
  uint64_t file_size;           /* bytes */
  uint64_t disk_usage;          /* bytes of storage; 0 of an export */
};

enum ploop_map_kind {
  PLOOP_MAP_DATA,               /* in a file, and may be data */
  PLOOP_MAP_ZERO,               /* a delta has it, but as a hole of its file, or
                                   behind the end of the file or of its disk:
                                   zeros */
  PLOOP_MAP_UNMAPPED,           /* no delta has it: zeros */
};

/* A range of the disk, and where it is read from. */
struct ploop_map_extent {
  uint64_t offset, length;      /* bytes of the disk */
  enum ploop_map_kind kind;
  unsigned delta;               /* index; not of PLOOP_MAP_UNMAPPED, as below */
  uint64_t host_offset;         /* bytes of its file */
};

enum ploop_map_use {
  PLOOP_USE_METADATA,           /* header and BAT, to the first data offset */
  PLOOP_USE_DATA,               /* clusters that are read */
  PLOOP_USE_HIDDEN,             /* clusters that a higher delta has, too, or that
                                   lie behind the end of the disk */
  PLOOP_USE_EXTENSION,          /* valid changed-block bitmaps */
  PLOOP_USE_LEAKED,             /* nobody's, and may take space */
  PLOOP_USE_FREE,               /* nobody's, a hole */
};
#define PLOOP_NR_USES 6

/* A range of a delta's file, and what it is there for. */
struct ploop_map_range {
  unsigned delta;               /* index */
  enum ploop_map_use use;
  uint64_t offset, length;      /* bytes of the file */
  uint64_t guest_offset;        /* bytes of the disk; of DATA and HIDDEN */
};

/* A delta's file in figures.  Its fragments are the longest pieces that are in one
 * piece on the disk and in the file; there cannot be fewer than there are pieces of
 * the disk that the delta has.
 */
struct ploop_map_usage {
  unsigned delta;               /* index */
  uint64_t bytes[PLOOP_NR_USES];        /* of the file; together its size */
  uint32_t nr_allocated;        /* clusters, also hidden ones */
  uint32_t nr_fragments;
  uint32_t nr_least_fragments;
};

/* Who is told; each may be NULL, and what only it needs is not done then.  Returns
 * false to end it.  What is pointed to is good until it returns.  Must not work on
 * the disk.
 */
struct ploop_map_visitor {
  /* First. */
  bool (*disk) (void *opaque, uint64_t size, unsigned nr_deltas);
  /* For each, by index: base first, and one part of a split disk after another. */
  bool (*delta) (void *opaque, const struct ploop_map_delta *delta);
  /* In the order of the disk, from its beginning to its end without gaps; what is
   * alike and in one piece in the file, too, is one.
   */
  bool (*extent) (void *opaque, const struct ploop_map_extent *extent);
  /* For each delta, by index: all ranges of its file, in order, from its beginning
   * to its end without gaps; what is alike and in one piece on the disk, too, is one.
   */
  bool (*range) (void *opaque, const struct ploop_map_range *range);
  /* After the ranges of each. */
  bool (*usage) (void *opaque, const struct ploop_map_usage *usage);
};

struct ploop_map_options {
  const char *snapshot;         /* as in ploop_open, as the next two */
  bool allow_outside;
  const char *const *bases;
  ploop_log_fn log;             /* NULL: no messages */
  void *log_opaque;
};

/* Tell VISITOR where everything of the disk PATH, by any name that ploop_open takes,
 * is, and what is in the files of its deltas.  Those of other snapshots are not
 * looked at.
 *
 * The disk is locked as for reading, and not changed.  Memory is needed for 8 bytes
 * a cluster that some delta has, and for as much again of the delta with the most.
 * Where the file system does not tell holes truly (see ploop_extents), nothing is
 * PLOOP_MAP_ZERO by them, and nothing PLOOP_USE_FREE.  OPTIONS may be NULL.
 *
 * Returns 0, also when VISITOR has ended it; or -1 with ERROR set: what ploop_open
 * would refuse, before anybody is told anything; or a file could not be read, and
 * what was told so far is true, but not all.  Starts no threads that are left.
 */
int ploop_map_disk (const char *path, const struct ploop_map_options *options,
                    const struct ploop_map_visitor *visitor, void *opaque,
                    GError **error);

/* ---- Repairing --------------------------------------------------------- */

/* When what is to be changed is copied to a file of its own first. */
enum ploop_backup {
  PLOOP_BACKUP_ERRORS,          /* when errors are to be repaired */
  PLOOP_BACKUP_ALWAYS,
  PLOOP_BACKUP_NEVER,
};

struct ploop_repair_options {
  bool all;                     /* errors, too; else only leaks */
  bool dry_run;                 /* only say what would be done */
  enum ploop_backup backup;     /* errors */
  const char *backup_path;      /* a file that is not there; NULL: PATH.backup, or
                                   PATH.backup.2 and so on */
  ploop_log_fn log;             /* NULL: no messages */
  void *log_opaque;
};

struct ploop_repair_result {
  bool interrupted;             /* by the callback: nothing is repaired */
  bool changed;                 /* something was, or would be, changed */
  uint64_t nr_separated;        /* clusters that shared their place with another */
  uint64_t nr_zeroed;           /* clusters whose entries named nothing */
  uint64_t nr_cleared;          /* entries of clusters that never came to be, or of
                                   zeros behind the end of the disk */
  uint64_t nr_given_back;       /* host clusters that nothing names */
  bool extension_dropped;       /* with the changed-block bitmaps */
  uint64_t nr_left;             /* findings that are left alone */
  GPtrArray *backups;           /* of char *: files that were made */
};

/* Free what is in RESULT. */
void ploop_repair_result_clear (struct ploop_repair_result *result);

/* Receives each step of a plan for the image FILE, one line without a newline, before
 * the first is made; or what is left alone.
 */
typedef void (*ploop_step_fn) (void *opaque, const char *file,
                               const char *message);

/* Repair what ploop_check finds in the image PATH, which nobody may use meanwhile; or,
 * if PATH is a DiskDescriptor.xml or a directory that holds one, in each image that it
 * names, one after the other.
 *
 * Leaks: an image that was not closed is closed, with entries of clusters that were
 * never flushed removed; space that nothing names is given back.  If there are errors,
 * nothing is done, because what nothing names may be what a damaged entry has lost.
 *
 * All: of guest clusters that are in one place each gets its own copy; one whose entry
 * names no place in the data area reads as zeros from now on, and never as what a lower
 * delta has there; an extension that cannot be read is dropped, and so are its bitmaps.
 * All that reads now reads the same then.
 *
 * What is done is planned first: REPORT (may be NULL) hears each step before anything
 * is changed.  Then what is to be changed is copied to a backup, a sparse file in which
 * each byte is where it is in the image: header, BAT, the extension, and, if there are
 * errors, what nothing names.  Then new copies are made in space that nothing names and
 * nothing will name, all entries follow at once, and space is given back last.  At every
 * instant the image is one that reads no less than before; cut short, it is repaired by
 * doing it again.
 *
 * A header that is not plausible is not repaired (PLOOP_ERROR_CORRUPT), nor an
 * interrupted conversion; and clusters behind the end of the disk that are no zeros are
 * left alone: a disk of another size may have them.
 *
 * OPTIONS and PROGRESS may be NULL.  Returns 0, also when there is nothing to do or it
 * was interrupted; or -1 with ERROR set.  RESULT (ploop_repair_result_clear, in each case)
 * is what was, or would be, done.
 */
int ploop_repair (const char *path, const struct ploop_repair_options *options,
                  ploop_step_fn report, void *report_opaque,
                  ploop_progress_fn progress, void *opaque,
                  struct ploop_repair_result *result, GError **error);

/* ---- Compacting -------------------------------------------------------- */

struct ploop_compact_options {
  bool dry_run;                 /* only say what would be done */
  bool keep_holes_out;          /* make no holes in the file, for kernels that
                                   do not take them */
  uint64_t batch;               /* bytes of clusters that are moved before space
                                   is given back; 0: 64 MiB */
  ploop_log_fn log;             /* NULL: no messages */
  void *log_opaque;
};

struct ploop_compact_result {
  bool interrupted;             /* by the callback, with clusters left to move */
  uint64_t nr_moved;            /* clusters */
  uint64_t bytes_copied;        /* of their data; holes are not copied */
  uint64_t file_size_before;    /* bytes */
  uint64_t file_size_after;
  uint64_t allocated_before;    /* bytes of storage that the file takes */
  uint64_t allocated_after;
};

/* Make the file of the image PATH, which nobody may use meanwhile, as small as
 * its clusters: the highest are moved into free space below them, the end of the
 * file is cut off, and what is free inside it is given back to the file system.
 *
 * The guest's disk stays what it is.  At every instant, whether the process is
 * killed or power fails, the file is an image that reads the same; what was cut
 * short is marked as in use then, and can be compacted again.  A hole in a
 * cluster stays one, and so space that was only reserved for it comes back.
 * Where the free space in the file consists of holes, a batch needs as much room
 * in the file system; with less, fewer clusters are moved at a time.
 *
 * OPTIONS may be NULL.  With keep_holes_out, clusters are copied in full, zeros
 * for holes, and only the end of the file is given back.  With dry_run, nothing
 * is changed and PATH is locked as for reading; RESULT says what would be, and
 * allocated_after is the most that it would be.
 *
 * PROGRESS may be NULL.  When it returns false, the clusters that are copied in
 * full stay where they are now, the image is closed, and RESULT says interrupted.
 *
 * An image that was not closed is judged as ploop_open does, and closed in the
 * end.  When there is nothing to do, nothing is changed.
 *
 * Returns 0, also when interrupted, or -1 with ERROR set: PLOOP_ERROR_SYSTEM for
 * a system call that failed, lack of space among them; PLOOP_ERROR_IN_USE;
 * PLOOP_ERROR_FORMAT or PLOOP_ERROR_CORRUPT for what ploop_open would refuse;
 * PLOOP_ERROR_ARGUMENT for an image with changed-block bitmaps, which would be
 * lost.  What was moved before an error stays moved.  Unless ERROR says that the
 * image may stay marked as in use, it is closed.  RESULT (may be NULL) is what
 * was done, after an error too.
 *
 * Blocks for as long as it takes; starts no threads.
 */
int ploop_compact (const char *path,
                   const struct ploop_compact_options *options,
                   ploop_progress_fn progress, void *opaque,
                   struct ploop_compact_result *result, GError **error);

/* ---- Resizing ---------------------------------------------------------- */

struct ploop_resize_options {
  bool shrink;                  /* clusters behind the new end may go if they are
                                   zeros */
  bool discard;                 /* they may go whatever they are */
  bool keep_holes_out;          /* make no holes in the file, for kernels that do not
                                   take them */
  bool dry_run;                 /* only say what would be done */
  ploop_log_fn log;             /* NULL: no messages */
  void *log_opaque;
};

struct ploop_resize_result {
  bool interrupted;             /* by the callback: the size is the old one */
  uint64_t old_size, new_size;  /* of the disk, bytes */
  uint64_t nr_moved;            /* clusters that made room for a longer BAT */
  uint64_t bytes_copied;        /* of their data; holes are not copied */
  uint64_t nr_dropped;          /* clusters behind the new end */
};

/* Let the disk PATH, which nobody may use meanwhile, have SIZE bytes, a multiple of 512.
 * PATH is an image; or a DiskDescriptor.xml or the directory that holds one: then it is
 * the top delta that gets another size (of a split disk, that of the last part; if the
 * disk is one raw file, that), and the descriptor is told.
 *
 * What is added reads as zeros.  To be smaller, nothing may be mapped behind the new
 * end, unless options->shrink or discard; and no lower delta may be larger, for what it
 * has would come back when the disk grows again.
 *
 * At every instant the image is one that has the old size or the new one, and reads the
 * same as far as both go; what was cut short can be done again.
 *
 * OPTIONS and PROGRESS may be NULL.  Returns 0, also when interrupted; or -1 with ERROR
 * set: PLOOP_ERROR_ARGUMENT for a size that cannot be, data behind the end, or an image
 * with changed-block bitmaps; and as ploop_compact.  Blocks for as long as it takes;
 * starts no threads.
 */
int ploop_resize (const char *path, uint64_t size,
                  const struct ploop_resize_options *options,
                  ploop_progress_fn progress, void *opaque,
                  struct ploop_resize_result *result, GError **error);

/* ---- Snapshots and merging --------------------------------------------- */

/* All of these change a disk that has a DiskDescriptor.xml (PATH is that, or the
 * directory that holds it) and that nobody may use meanwhile: descriptor and images
 * are locked as for writing.  At every instant the descriptor on disk, replaced as a
 * whole, names files that are there and whole; a file goes only when no descriptor on
 * disk names it.  A power cut leaves the disk as it was or as it is to be, and at most
 * a file beside that nothing names.  A split disk has all its parts changed at once.
 *
 * They block; of one disk, one at a time.  Each returns 0, or -1 with ERROR set
 * (PLOOP_ERROR_ARGUMENT for a GUID that is not there or cannot be, or when PATH has no
 * descriptor; PLOOP_ERROR_IN_USE; what ploop_open would refuse; PLOOP_ERROR_SYSTEM),
 * and the disk as it was; but when ERROR says that a directory cannot be synced or a
 * file not be removed, it is changed.
 */

struct ploop_create_snapshot_options {
  const char *guid;             /* of the snapshot; NULL: a random one */
  bool temporary;               /* marked as to be deleted soon */
  bool dry_run;                 /* check all, change nothing */
  ploop_log_fn log;             /* NULL: no messages */
  void *log_opaque;
};

/* Keep what the disk contains now as a snapshot: what is written from now on goes to a
 * new delta, in a new file beside the base, "NAME.{GUID}".  A top delta that was not
 * closed is closed first; valid changed-block bitmaps go to the new delta.  OPTIONS may
 * be NULL.
 *
 * *GUID (may be NULL) becomes the snapshot's, in braces and lower case (g_free).
 */
int ploop_create_snapshot (const char *path,
                           const struct ploop_create_snapshot_options *options,
                           char **guid, GError **error);

struct ploop_switch_options {
  bool discard;                 /* what was written since the last snapshot is lost */
  bool keep;                    /* it becomes a snapshot first; not with discard */
  bool dry_run;                 /* check all, change nothing */
  ploop_log_fn log;             /* NULL: no messages */
  void *log_opaque;
};

/* Let the disk contain again what the snapshot GUID has, which stays: a new delta rests
 * on it.  The disk has the size that it had then.
 *
 * Without options->discard or keep, it is an error when the top delta has any cluster.
 * *KEPT (may be NULL) becomes the GUID of what was kept (g_free), or NULL.
 */
int ploop_switch_snapshot (const char *path, const char *guid,
                           const struct ploop_switch_options *options,
                           char **kept, GError **error);

/* Say of the snapshot GUID that it is temporary, or that it is not; with DRY_RUN, only see
 * whether that can be done.
 */
int ploop_mark_snapshot (const char *path, const char *guid, bool temporary,
                         bool dry_run, GError **error);

struct ploop_merge_options {
  const char *snapshot;         /* GUID of the highest delta; NULL: the top */
  const char *into;             /* GUID of the lowest one; NULL: its parent */
  bool all;                     /* the lowest one is the base */
  /* Of an image without a descriptor: lower deltas, from the one below PATH to the
   * base, as of ploop_open.  PATH is merged into the first of them; with all, into the
   * last one.  NULL: PATH has a descriptor.
   */
  const char *const *bases;
  bool dry_run;                 /* check all, change nothing */
  ploop_log_fn log;             /* NULL: no messages */
  void *log_opaque;
};

struct ploop_merge_result {
  bool interrupted;             /* by the callback: merge again to complete it */
  unsigned nr_deltas;           /* that are merged into another, and gone then */
  uint64_t bytes_to_copy;       /* clusters of those, at most the disk's size */
  uint64_t bytes_copied;
};

/* Let neighbouring deltas become one: what the upper ones have is copied to the lowest
 * one, which may be a raw base; it becomes as large as the highest one and takes its
 * GUID; the others are removed.  Nothing else may rest on any but the highest.
 *
 * The disk, and each snapshot that stays, reads the same at every instant.  The
 * snapshots that go are marked as temporary before the first byte is written: their
 * content is lost from then on, also when the merge is cut short; and then the same
 * merge, done again, completes it.
 *
 * Valid changed-block bitmaps of the highest delta go with its data.  Where bitmaps would
 * be lost (of a delta in between, of the lowest one if the highest has none, or because
 * that is raw), it is an error.
 *
 * With options->bases, the files of the upper deltas are left for the caller to
 * remove.  OPTIONS and PROGRESS may be NULL.  Several threads work, with 4 MiB of
 * memory in all, and 8 bytes a cluster of the disk.
 */
int ploop_merge (const char *path, const struct ploop_merge_options *options,
                 ploop_progress_fn progress, void *opaque,
                 struct ploop_merge_result *result, GError **error);

struct ploop_delete_snapshot_options {
  bool dry_run;                 /* check all, change nothing */
  ploop_log_fn log;             /* NULL: no messages */
  void *log_opaque;
};

/* Delete the snapshot GUID.  If one delta rests on it, it is merged with that, as
 * ploop_merge does it; if none does, its file is removed; if more do, that is an error.
 * RESULT is as of ploop_merge.
 */
int ploop_delete_snapshot (const char *path, const char *guid,
                           const struct ploop_delete_snapshot_options *options,
                           ploop_progress_fn progress, void *opaque,
                           struct ploop_merge_result *result, GError **error);

/* ---- Changed-block bitmaps ---------------------------------------------- */

/* An image may carry bitmaps in which a backup program notes what has changed since
 * its last run: of each piece of the disk (the granularity), a bit.  A bitmap is known
 * by a UUID.
 *
 * PATH is an image, or a DiskDescriptor.xml or the directory that holds one; then it is
 * the top delta that carries the bitmaps.  A split disk is refused: each part has its
 * own.
 *
 * Bitmaps are stale when the image was not closed, or was closed by a program that
 * knows none: it may have been written to behind their back.
 */

struct ploop_bitmap {
  char uuid[37];                /* lower case */
  bool is_stale;
  uint64_t size;                /* of the disk that it is of, bytes */
  uint64_t granularity;         /* of the disk, that a bit is for, bytes */
  uint64_t nr_dirty;            /* bytes of the disk that are marked */
};

/* Frees what ploop_list_bitmaps puts into its array. */
void ploop_bitmap_free (struct ploop_bitmap *bitmap);

/* The bitmaps that PATH carries, in the order in which they are stored.
 *
 * Locks PATH as for reading and changes nothing.  Returns an array of struct
 * ploop_bitmap, for g_ptr_array_unref; or NULL with ERROR set, PLOOP_ERROR_CORRUPT if
 * what carries them is damaged.
 */
GPtrArray *ploop_list_bitmaps (const char *path, GError **error);

/* Receives a range of the disk, in bytes.  Returns false to end it. */
typedef bool (*ploop_dirty_fn) (void *opaque, uint64_t offset,
                                uint64_t length);

/* Tell what bitmap UUID of PATH marks: ranges in ascending order, no two of which
 * touch.  REPORT is called by this thread.
 *
 * Locks PATH as for reading and changes nothing.  Returns 0, also when REPORT ended it,
 * or -1 with ERROR set: PLOOP_ERROR_ARGUMENT when there is no such bitmap, or it is
 * stale; PLOOP_ERROR_CORRUPT.
 */
int ploop_dump_bitmap (const char *path, const char *uuid,
                       ploop_dirty_fn report, void *opaque, GError **error);

struct ploop_bitmap_options {
  bool dry_run;                 /* only say what would be done */
  ploop_log_fn log;             /* NULL: no messages */
  void *log_opaque;
};

struct ploop_bitmap_result {
  struct ploop_bitmap bitmap;   /* that was added, or merged into, as it is then */
  unsigned nr_removed;          /* bitmaps */
  bool was_unusable;            /* what was removed was damaged or stale */
  uint64_t file_size_before;    /* bytes */
  uint64_t file_size_after;
};

/* All that follow lock PATH as for writing (with dry_run as for reading, changing
 * nothing), and refuse an image that was not closed, whose table is damaged, whose
 * bitmaps are stale or damaged, or of which they say that only a program that knows
 * all of their extension may change them.
 *
 * The guest's disk is not written to.  At every instant, whether the process is killed
 * or power fails, PATH carries the bitmaps that it had, or those that it is to have;
 * what was cut short may leave free space in the file.  One that had none, or is to have
 * none, may be marked as in use then.  OPTIONS and RESULT may be NULL.
 *
 * Each returns 0, with the change on stable storage, or -1 with ERROR set, and PATH as it
 * was (unless ERROR says that it may be either): PLOOP_ERROR_ARGUMENT for what is
 * refused, and when the bitmaps do not fit into one cluster; PLOOP_ERROR_CORRUPT;
 * PLOOP_ERROR_IN_USE; PLOOP_ERROR_SYSTEM.
 */

/* Add a bitmap that marks nothing, or with ALL_SET everything.  UUID may be NULL: then
 * it is a random one; it must not be that of another.  GRANULARITY is a power of two
 * from 512 bytes to 2 GiB; 0 is 64 KiB.
 */
int ploop_add_bitmap (const char *path, const char *uuid,
                      uint64_t granularity, bool all_set,
                      const struct ploop_bitmap_options *options,
                      struct ploop_bitmap_result *result, GError **error);

/* Remove bitmap UUID; or with NULL all, even if they are stale or damaged, which is
 * worth a warning.  An image that has none is then closed as one that never had any,
 * but if it was not closed it stays so.  When there is nothing to remove with NULL,
 * nothing is changed.
 */
int ploop_remove_bitmap (const char *path, const char *uuid,
                         const struct ploop_bitmap_options *options,
                         struct ploop_bitmap_result *result, GError **error);

/* Mark in bitmap INTO what bitmap SOURCE marks, of the image SOURCE_PATH, which is
 * named as PATH is (NULL: PATH); of a disk of the same size.  What one bit of either
 * marks is marked whole.
 */
int ploop_merge_bitmap (const char *path, const char *into,
                        const char *source_path, const char *source,
                        const struct ploop_bitmap_options *options,
                        struct ploop_bitmap_result *result, GError **error);

/* ---- Comparing --------------------------------------------------------- */

struct ploop_compare_options {
  const char *snapshots[2];     /* GUIDs; NULL: the disk as it is now */
  bool strict;                  /* disks of different sizes are different */
  ploop_log_fn log;             /* NULL: no messages */
  void *log_opaque;
};

struct ploop_compare_result {
  bool same;
  bool interrupted;             /* by the callback; no difference until then */
  uint64_t offset;              /* of the first byte that differs, if not same */
  uint64_t sizes[2];            /* of the disks, bytes */
  uint64_t bytes_read;          /* of each: holes that both have are left out */
};

/* Do the disks PATH and OTHER read the same?  Each is a ploop disk by any name that
 * ploop_open takes, a raw file or block device, or the URI of an NBD export.  A disk
 * that ends before the other goes on with zeros, unless options->strict.
 *
 * Ploop disks are locked as for reading; nothing is changed.  Several threads read,
 * with 8 MiB of memory in all.  OPTIONS and PROGRESS may be NULL.  What changes
 * meanwhile (raw files, exports) is compared as it is when it is read.
 *
 * Returns 0 with RESULT filled in, or -1 with ERROR set when a disk cannot be opened,
 * or not be read up to the first difference.
 */
int ploop_compare (const char *path, const char *other,
                   const struct ploop_compare_options *options,
                   ploop_progress_fn progress, void *opaque,
                   struct ploop_compare_result *result, GError **error);

/* ---- Converting -------------------------------------------------------- */

struct ploop_convert_options {
  const char *snapshot;         /* GUID; NULL: the disk as it is now */
  uint64_t size;                /* of the copy, bytes; not less than that of the disk,
                                   the rest is zeros; 0: as large */
  bool raw;                     /* to a raw file; else to an image: */
  unsigned version;             /* 1 or 2; 0: 2 */
  uint32_t cluster_size;        /* as in ploop_create; 0: 1 MiB */
  enum ploop_create_space space;        /* sparse; before the data is written */
  bool descriptor;              /* as in ploop_create */
  bool overwrite;               /* replace a file that exists */
  bool target_is_zero;          /* the export that is written to reads as zeros */
  ploop_log_fn log;             /* NULL: no messages */
  void *log_opaque;
};

struct ploop_convert_result {
  bool interrupted;             /* by the callback: there is no copy */
  uint64_t size;                /* of the disk, bytes */
  uint64_t bytes_read;          /* the rest are holes */
  uint64_t bytes_written;       /* the rest are zeros */
};

/* Copy the disk PATH, with all its deltas, to TARGET, alone and whole.  PATH is what
 * ploop_compare takes, or a raw disk that comes through a pipe: a fifo, or "-" for
 * standard input.  TARGET is a new image, a new raw file, the URI of an NBD export
 * that may be written and is as large at least, or "-": standard output, raw, in
 * order.  An image is as large as the disk, rounded up to sectors.  Zeros become
 * holes.
 *
 * A file is written under another name, TARGET.part, and renamed when all of it is on
 * disk: at every instant there is what was there before, or the copy.  Without
 * overwrite a file that exists is left alone (PLOOP_ERROR_EXISTS); with it, it must
 * not be in use, but may be PATH itself, an image without lower deltas and bitmaps: so it
 * is converted in place.  An export is zeroed first, unless it is zeros; it is flushed in the
 * end.
 *
 * What comes through a pipe is read to its end, which tells the size; an export has to
 * be large enough then, and an image cannot be preallocated, unless a size is given.
 * Until then an image takes 4 bytes of memory for each of its clusters.
 *
 * PATH is locked as for reading if it is a ploop disk, and not changed.  Several
 * threads work, but one when something is a pipe, with 4 MiB of memory in all.  OPTIONS
 * and PROGRESS may be NULL.
 *
 * Returns 0, also when interrupted, with RESULT filled in; or -1 with ERROR set, and
 * no copy; but a copy that has its name already stays when its directory cannot be
 * synced.
 */
int ploop_convert (const char *path, const char *target,
                   const struct ploop_convert_options *options,
                   ploop_progress_fn progress, void *opaque,
                   struct ploop_convert_result *result, GError **error);

/* ---- Measuring a store ------------------------------------------------- */

/* What is measured, in this order; reading only, unless options->write. */
enum ploop_bench_kind {
  PLOOP_BENCH_SEQUENTIAL_WRITE, /* of new clusters, to the last one on disk */
  PLOOP_BENCH_RANDOM_WRITE,     /* over them, to the last one on disk */
  PLOOP_BENCH_FLUSH,            /* a random write, and a flush, one by one */
  PLOOP_BENCH_RANDOM_READ,      /* of what is data */
  PLOOP_BENCH_SEQUENTIAL_READ,  /* the same, once from its beginning to its end */
};
#define PLOOP_NR_BENCHES 5

#define PLOOP_BENCH_MAX_DEPTH 256u
#define PLOOP_BENCH_MAX_BLOCK (UINT32_C (1) << 20)

struct ploop_bench_options {
  bool write;                   /* measure writing, too, in a new image */
  bool page_cache;              /* go through the page cache; else past it, where
                                   the file system allows that */
  unsigned milliseconds;        /* for each measurement, at most PLOOP_MAX_DELAY;
                                   0: 3000 */
  uint64_t size;                /* bytes for each at most, and to write the size of
                                   the disk; 0: no limit, and 256 MiB */
  unsigned depth;               /* requests at a time, to PLOOP_BENCH_MAX_DEPTH;
                                   0: 16 */
  uint32_t block_size;          /* of a random request, to PLOOP_BENCH_MAX_BLOCK, a
                                   multiple of 512 bytes; 0: 4096 */
  ploop_log_fn log;             /* NULL: no messages */
  void *log_opaque;
};

struct ploop_bench_measurement {
  uint64_t nr_requests;         /* 0: it was not measured.  Of FLUSH the flushes */
  uint64_t bytes;               /* read or written */
  uint64_t ns;                  /* that it took */
  struct ploop_histogram latency;       /* of these requests */
};

struct ploop_bench_result {
  bool interrupted;             /* by the callback; what was measured is true */
  struct ploop_bench_measurement measurements[PLOOP_NR_BENCHES];
};

/* Measure how quick the store is on which PATH lies: a disk by any name that
 * ploop_open takes, of which all that is data is read; it is locked as for reading,
 * and not changed.
 *
 * With write, PATH is a directory.  A new image is made there for the time, written to
 * and read; no other is touched.  It has no name any more when the measuring begins,
 * so however that ends, it is gone.  It may take half of the space that is free, at
 * most.
 *
 * Sequential requests are 1 MiB.  Memory: depth of them.  Starts as many threads as
 * depth says, 16 at most, and ends them.
 *
 * PROGRESS (may be NULL) is called about ten times a second with milliseconds in the
 * place of bytes: how many have passed of those that it takes at most.  OPTIONS may be
 * NULL.
 *
 * Returns 0, also when interrupted, or -1 with ERROR set: PLOOP_ERROR_ARGUMENT for an
 * option out of range, a disk without data, or a PATH that is no directory to write;
 * what ploop_open or ploop_create would refuse; or a request has failed.
 */
int ploop_bench (const char *path, const struct ploop_bench_options *options,
                 ploop_progress_fn progress, void *opaque,
                 struct ploop_bench_result *result, GError **error);

/* ---- Rescuing ---------------------------------------------------------- */

/* What a part of the copy is that is not what it should be. */
enum ploop_rescue_kind {
  PLOOP_RESCUE_LOST,            /* zeros, for there is nothing better */
  PLOOP_RESCUE_OLDER,           /* what a lower delta has there: with fall_through */
  PLOOP_RESCUE_DOUBTFUL,        /* copied, but perhaps not its own */
};

/* Why. */
enum ploop_rescue_reason {
  PLOOP_RESCUE_UNREADABLE,      /* reading failed, down to the sector */
  PLOOP_RESCUE_CUT_OFF,         /* the file ends inside the cluster, of which the rest
                                   reads as zeros, as in ploop_open: doubtful */
  PLOOP_RESCUE_PAST_END,        /* the BAT entry points past the end of the file */
  PLOOP_RESCUE_BELOW_DATA,      /* it points into the header or the BAT */
  PLOOP_RESCUE_SHARED,          /* another one points to the same place: doubtful */
  PLOOP_RESCUE_UNFINISHED,      /* it points to what was never flushed, and reads as
                                   before that, as in ploop_open: doubtful */
  PLOOP_RESCUE_BAT_UNREADABLE,  /* reading the BAT entry failed */
  PLOOP_RESCUE_BAT_CUT_OFF,     /* the file ends before it */
  PLOOP_RESCUE_BAT_WIPED,       /* it is zero, but so may be what was written over it
                                   with the header */
  PLOOP_RESCUE_MISSING_DELTA,   /* the delta that may have it is missing */
};

struct ploop_rescue_range {
  uint64_t offset, length;      /* bytes of the disk */
  enum ploop_rescue_kind kind;
  enum ploop_rescue_reason reason;
  const char *path;             /* of the delta that is damaged, for as long as the
                                   call lasts */
  uint64_t other;               /* PLOOP_RESCUE_SHARED: where the disk has a cluster
                                   in the same place */
};

typedef void (*ploop_rescue_range_fn) (void *opaque,
                                       const struct ploop_rescue_range *range);

struct ploop_rescue_options {
  const char *snapshot;         /* GUID; NULL: the disk as it is now */
  const char *const *bases;     /* lower deltas, as in ploop_open; NULL: none */

  /* What is known of a damaged header; 0 or NULL: nothing. */
  unsigned version;             /* 1 or 2 */
  uint32_t cluster_size;        /* bytes, a multiple of 512 */
  uint64_t size;                /* of the disk, bytes, a multiple of 512 */
  const char *index;            /* a file that begins as the image PATH once did, for
                                   header and BAT */

  bool missing_ok;              /* deltas that cannot be opened are only missing */
  bool fall_through;            /* lower deltas' data for what is lost, if any has it */

  /* Of the copy, as in ploop_convert. */
  bool raw;
  unsigned target_version;
  uint32_t target_cluster_size;
  bool overwrite;
  bool target_is_zero;

  ploop_rescue_range_fn range;  /* NULL: not told */
  void *range_opaque;
  ploop_log_fn log;             /* NULL: no messages */
  void *log_opaque;
};

struct ploop_rescue_result {
  bool interrupted;             /* by the callback: there is no copy */
  uint64_t size;                /* of the disk, bytes */
  uint64_t bytes_read;          /* the rest are holes */
  uint64_t bytes_written;       /* the rest are zeros */
  uint64_t nr_ranges;
  uint64_t bytes[3];            /* in ranges of each kind */
};

/* Copy all that can be read of the damaged disk PATH to TARGET: what ploop_open
 * refuses, too.  PATH is an image, a DiskDescriptor.xml or a directory that holds one;
 * TARGET is as in ploop_convert.
 *
 * A BAT entry that cannot be right costs its own cluster.  What cannot be read is
 * tried again in smaller pieces, down to sectors.  A file may end anywhere.  That an
 * image was not closed does not matter.  What is lost reads as zeros in TARGET, even
 * where a lower delta has older data, unless options->fall_through.
 *
 * A header that cannot be believed is an error (PLOOP_ERROR_CORRUPT) that says what is
 * plausible: nothing is guessed.  What is given in OPTIONS holds for every image with
 * such a header; if the disk is one image file, for that in any case.  The first data
 * offset and the type are not needed.
 *
 * When the copy is there, RANGE is called, by the calling thread, for each part of it
 * that is not what it should be: in order, none overlapping another.  Of a disk that
 * ploop_open takes nothing is lost; but clusters that were never flushed are doubtful,
 * and the rest of a last cluster that the file does not have in full.
 *
 * PATH is locked as for reading, where it can be locked, and not changed.  Several
 * threads work, with 4 MiB of memory, 8 bytes for each cluster that is allocated, and
 * 56 for each range.  OPTIONS and PROGRESS may be NULL.
 *
 * Returns 0, also when interrupted, with RESULT filled in: there are ranges if
 * result->nr_ranges is not 0.  Or -1 with ERROR set, and no copy; but see
 * ploop_convert.
 */
int ploop_rescue (const char *path, const char *target,
                  const struct ploop_rescue_options *options,
                  ploop_progress_fn progress, void *opaque,
                  struct ploop_rescue_result *result, GError **error);

/* ---- Restoring a descriptor -------------------------------------------- */

/* Receives what was seen and decided, one line without a newline, in order. */
typedef void (*ploop_reason_fn) (void *opaque, const char *reason);

enum ploop_confidence {
  PLOOP_CONFIDENCE_GIVEN,       /* the files were given, base first */
  PLOOP_CONFIDENCE_CERTAIN,
  PLOOP_CONFIDENCE_LIKELY,      /* times contradict it, or it is a guess: see refusal */
};

struct ploop_restore_options {
  const char *const *files;     /* names in the directory, or paths: base first; NULL:
                                   to be found out */
  bool dry_run;                 /* change nothing */
  ploop_reason_fn reason;       /* NULL: not told */
  void *reason_opaque;
};

/* A delta of the disk. */
struct ploop_restored_image {
  char *guid;                   /* in braces, lower case */
  char *parent;                 /* its parent's; NULL: the base */
  char *file;                   /* name in the directory */
  bool is_raw;
  bool is_top;                  /* what the disk is written to */
};

struct ploop_restore_result {
  enum ploop_confidence confidence;
  GPtrArray *images;            /* of struct ploop_restored_image: parents before those
                                   that rest on them */
  char *xml;                    /* the descriptor, whole */
  char *backup;                 /* the old one's new name, in the directory; NULL: there
                                   was none, or nothing was changed */
  char *refusal;                /* after a dry run: the order is a guess, and why nothing
                                   would be written by it; NULL: it would */
};

/* Free what RESULT points to. */
void ploop_restore_result_clear (struct ploop_restore_result *result);

/* Make the DiskDescriptor.xml of the disk whose files lie in DIRECTORY anew.  The path
 * of the one that is there, if it is damaged, may be given instead.
 *
 * Which files belong to it, and which rests on which, is found out from what is left of
 * the old descriptor, names, contents, sizes and times, unless options->files says it.
 * When that leaves a doubt, nothing is changed.  Of three files and more only the old
 * descriptor tells a chain from a tree; without it the order is a guess, which only a
 * dry run returns, with result->refusal.  GUIDs are those of the old descriptor,
 * or of the files' names, or random; the top's is the one that ploop gives it.
 *
 * The old descriptor is kept under a new name, DiskDescriptor.xml.bak or with a number
 * behind that; the new one takes its place at once, when it is on disk.  Nobody may use
 * the disk meanwhile: its files are locked as for writing, and not changed.
 *
 * OPTIONS may be NULL.  Returns 0 with RESULT filled in.  Or -1 with ERROR set and
 * nothing changed: PLOOP_ERROR_ARGUMENT when the order is not known, or the files given
 * cannot be a disk; PLOOP_ERROR_CORRUPT when a file is damaged; PLOOP_ERROR_EXISTS when
 * the descriptor that is there is sound, and no files were given; PLOOP_ERROR_IN_USE;
 * PLOOP_ERROR_SYSTEM, after which, if the directory could not be synced, the new one may
 * be there.
 */
int ploop_restore_descriptor (const char *directory,
                              const struct ploop_restore_options *options,
                              struct ploop_restore_result *result,
                              GError **error);

G_END_DECLS

#endif /* PLOOP_CORE_H */
