/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Chance that can be had again: everything about a disk comes from its seed. */

#include <config.h>

#include "disk.h"

uint32_t
dice_range (GRand *dice, uint32_t from, uint32_t to)
{
  return from + (uint32_t) g_rand_int_range (dice, 0, (gint32) (to - from) + 1);
}

bool
dice_chance (GRand *dice, unsigned percent)
{
  return dice_range (dice, 0, 99) < percent;
}
