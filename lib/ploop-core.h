/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* libploop-core: ploop disk images, without a server or a kernel module.
 *
 * A ploop image is an expandable file: a header, a block allocation table
 * (BAT) with one entry for each cluster of the guest's disk, and the clusters
 * that were written so far.  This library opens such an image, checks it in
 * full, reads and writes the guest's disk from any number of threads, and
 * creates, describes and checks images.
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

enum ploop_log_level {
  PLOOP_LOG_DEBUG,              /* for whoever looks for a fault */
  PLOOP_LOG_WARNING,            /* the user should know; service goes on */
};

/* Receives one line without a newline.  May be called from any thread that
 * calls into the library, never concurrently with the return of ploop_close.
 */
typedef void (*ploop_log_fn) (void *opaque, enum ploop_log_level level,
                              const char *message);

struct ploop_open_options {
  bool read_only;               /* never change the file */
  ploop_log_fn log;             /* NULL: no messages */
  void *log_opaque;
};

/* Open the image file PATH and check its header and its whole BAT.
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
 * No threads are started, so a process may fork between opening an image and
 * its first request, and go on using it in the child.
 *
 * Returns NULL and sets ERROR when the file cannot be opened or locked, or is
 * not an image that can be served without a doubt.
 */
ploop_image *ploop_open (const char *path,
                         const struct ploop_open_options *options,
                         GError **error);

/* Write back what is pending, cut off unused preallocated space, clear the
 * in-use mark, release the locks and free IMAGE.
 *
 * No other call on IMAGE may be running or follow.  Returns 0, or -1 with
 * ERROR set when something could not be made durable; IMAGE is freed then too,
 * and stays marked as in use on disk.  NULL is ignored.
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

/* Flag for requests that write: do not return before this request, by itself,
 * is on stable storage.
 */
#define PLOOP_FUA 1u

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
 * and killing the process does not lose it; a power cut may, until a flush.
 *
 * Returns 0, -EINVAL for a range past the end of the disk or an unknown flag,
 * -EROFS, -ENOSPC when the file cannot grow, or the negative errno of what
 * failed.  After an error each sector of the range reads as its old or its new
 * content.
 */
int ploop_pwrite (ploop_image *image, const void *buf, size_t length,
                  uint64_t offset, unsigned flags);

/* Make LENGTH bytes at byte OFFSET read as zeros.  Clusters without data stay
 * without; space that is allocated stays allocated.
 *
 * LENGTH may be as large as the disk.  Flags and errors as for ploop_pwrite.
 */
int ploop_zero (ploop_image *image, uint64_t length, uint64_t offset,
                unsigned flags);

/* Make every request that returned before this call durable.
 *
 * Costs nothing when nothing was written since the last flush.  Returns 0 or a
 * negative errno; after a failed sync every later flush and every write with
 * PLOOP_FUA returns -EIO until the image is opened again, because the kernel
 * reports such a failure once and then forgets the data.
 */
int ploop_flush (ploop_image *image);

/* ---- Creating ---------------------------------------------------------- */

struct ploop_create_options {
  uint64_t size;                /* of the disk, bytes, a multiple of 512 */
  uint32_t cluster_size;        /* bytes, a power of two from 32 KiB to
                                   64 MiB; 0: 1 MiB */
  unsigned version;             /* 1 or 2; 0: 2 */
  bool overwrite;               /* replace a file that exists */
};

/* Create an empty image at PATH, in the layout that the Virtuozzo kernel,
 * ploop and qemu accept, durable when this returns.
 *
 * Without overwrite a file that exists is left alone (PLOOP_ERROR_EXISTS).
 * With it, it is replaced by rename, so that it is there whole, old or new, at
 * every instant; it must not be in use (PLOOP_ERROR_IN_USE).
 *
 * Returns 0, or -1 with ERROR set and everything as it was; but when ERROR says
 * that the directory could not be synced, the new file is there.
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

G_END_DECLS

#endif /* PLOOP_CORE_H */
