/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Images that the ploop driver of a Virtuozzo or OpenVZ kernel (6 and 7) has as a part
 * of a device.  That driver holds no lock that others could see; where it is, sysfs
 * has a file for each delta of each device:
 *
 *   /sys/block/ploop12345/pdelta/0/image    its name, a line
 *   /sys/block/ploop12345/pdelta/0/ro       1 if the driver only reads it
 *
 * which is what libploop itself goes by to find the device of an image.
 */

#ifndef PLOOP_LIB_MOUNTED_H
#define PLOOP_LIB_MOUNTED_H

#include <stdbool.h>

#define MOUNTED_SYSFS "/sys/block"

/* Is the file open at FD a delta of a device of the running kernel?  Then *DEVICE is
 * the name of that (g_free), "ploop12345", and *WRITES whether the kernel may write
 * to the file: false only if it says that it does not.  SYSFS is MOUNTED_SYSFS, but
 * in tests.  A file is known by its device and inode, so by any of its names; a kernel
 * that tells a name of another mount namespace is not understood.
 */
bool mounted_find (const char *sysfs, int fd, char **device, bool *writes);

#endif /* PLOOP_LIB_MOUNTED_H */
