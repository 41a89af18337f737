/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Opening a file whose name a stranger wrote, and not leaving a directory by
 * it: neither by "..", nor by an absolute name, nor by links.
 */

#ifndef PLOOP_LIB_BENEATH_H
#define PLOOP_LIB_BENEATH_H

/* Open the file NAME, relative to the directory open at DIRECTORY_FD or
 * absolute, when it lies in this directory or further down; links are followed
 * as far as they end there.  What is returned lies there whoever renames
 * directories and links meanwhile.
 *
 * Returns a file descriptor (O_PATH, so opening a device or a fifo does nothing
 * to it), or a negative errno: -EXDEV when the file lies outside.  *PATH
 * becomes where it lies, also then (g_free); NULL where that is not known.
 */
int beneath_open (int directory_fd, const char *name, char **path);

/* The same without the limits. */
int beneath_open_anywhere (int directory_fd, const char *name, char **path);

#endif /* PLOOP_LIB_BENEATH_H */
