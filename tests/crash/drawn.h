/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What tests that draw their images at random share: chance, orders, clusters. */

#ifndef PLOOP_TESTS_DRAWN_H
#define PLOOP_TESTS_DRAWN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <glib.h>

/* One of these numbers. */
#define DRAW(random, ...)                                                    \
  drawn_one ((random), (const unsigned[]){ __VA_ARGS__ },                     \
             G_N_ELEMENTS (((const unsigned[]){ __VA_ARGS__ })))

unsigned drawn_one (GRand *random, const unsigned *values, size_t nr);
bool drawn_chance (GRand *random, unsigned per_cent);

/* The numbers from 0 up to NR, in an order by chance (g_free). */
uint32_t *drawn_order (uint32_t nr, GRand *random);

/* Stamp (rules.h) the NR sectors from SECTOR on of a disk, but for HOLES per cent of
 * their blocks, which stay as they are.
 */
void drawn_stamp (uint8_t *bytes, uint64_t sector, uint32_t nr, unsigned holes,
                  GRand *random);

/* A new file in the place of PATH; blocks of zeros become holes. */
void drawn_save (const char *path, const uint8_t *bytes, uint64_t size);

#endif /* PLOOP_TESTS_DRAWN_H */
