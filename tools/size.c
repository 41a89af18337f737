/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Sizes as people write and read them: "1.5G" to bytes, and back.
 *
 * Reading is exact.  A decimal fraction of a power of two is seldom a whole
 * number of bytes, and a size that was rounded silently would be another disk
 * than the one asked for; so everything is done in integers, and what does not
 * come out even is refused.
 */

#include <inttypes.h>
#include <string.h>

#include "ploop-img.h"

#define SECTOR 512

/* The unit with index i is 2^(10 i) bytes. */
static const char unit_letters[] = "BKMGTPE";

/* 5^MAX_FRACTION_DIGITS and 10^MAX_FRACTION_DIGITS fit in 64 bits. */
#define MAX_FRACTION_DIGITS 18

static bool
not_a_size (const char *text, GError **error)
{
  g_set_error (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
               "'%s' is not a size: use a number of bytes, or a number with "
               "K, M, G, T or P for powers of 1024, like 100M or 1.5G", text);
  return false;
}

static bool
too_large (const char *text, GError **error)
{
  g_set_error (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
               "'%s' is too large: sizes must be less than 16384P", text);
  return false;
}

static bool
not_whole (const char *text, GError **error)
{
  g_set_error (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
               "'%s' is not a multiple of %d bytes", text, SECTOR);
  return false;
}

/* SUFFIX is nothing, or K, M, G, T or P in either case, alone or as in KiB.
 * KB and the like are refused: for some they are powers of 1000.
 */
static bool
parse_unit (const char *suffix, unsigned *shift)
{
  static const char letters[] = "KMGTP";
  const char *letter;

  *shift = 0;
  if (*suffix == '\0')
    return true;
  letter = strchr (letters, g_ascii_toupper (*suffix));
  if (letter == NULL)
    return false;
  *shift = 10 * (unsigned) (letter - letters + 1);
  return suffix[1] == '\0' || g_ascii_strcasecmp (suffix + 1, "iB") == 0;
}

/* The fraction 0.DIGITS of 2^SHIFT bytes into *BYTES; false when that is not a
 * whole number.
 *
 * With n digits it is D * 2^SHIFT / 10^n = (D / 5^n) * 2^SHIFT / 2^n.  As D is
 * less than 10^n, the quotient is less than 2^n and nothing overflows.
 */
static bool
parse_fraction (const char *digits, size_t n, unsigned shift, uint64_t *bytes)
{
  uint64_t value = 0, power_of_5 = 1;

  while (n > 0 && digits[n - 1] == '0')
    n--;
  if (n > MAX_FRACTION_DIGITS)
    return false;
  for (size_t i = 0; i < n; i++) {
    value = 10 * value + (uint64_t) (digits[i] - '0');
    power_of_5 *= 5;
  }
  if (value % power_of_5 != 0)
    return false;
  value /= power_of_5;
  if (n > shift)                /* the last digit is not 0: D / 5^n is odd */
    return false;
  *bytes = value << (shift - n);
  return true;
}

bool
size_parse (const char *text, uint64_t *bytes, GError **error)
{
  static const char decimal[] = "0123456789";
  size_t nr_digits = strspn (text, decimal);
  const char *fraction = text + nr_digits;
  size_t nr_fraction = 0;
  uint64_t whole = 0, part = 0;
  unsigned shift;

  if (*fraction == '.')
    nr_fraction = strspn (++fraction, decimal);
  if (nr_digits == 0 || (fraction[-1] == '.' && nr_fraction == 0) ||
      !parse_unit (fraction + nr_fraction, &shift))
    return not_a_size (text, error);
  for (size_t i = 0; i < nr_digits; i++)
    if (!g_uint64_checked_mul (&whole, whole, 10) ||
        !g_uint64_checked_add (&whole, whole, (uint64_t) (text[i] - '0')))
      return too_large (text, error);
  if (!g_uint64_checked_mul (&whole, whole, UINT64_C (1) << shift))
    return too_large (text, error);
  if (!parse_fraction (fraction, nr_fraction, shift, &part) ||
      (whole + part) % SECTOR != 0)
    return not_whole (text, error);
  *bytes = whole + part;
  return true;
}

char *
size_format (uint64_t bytes)
{
  unsigned unit = 0;
  uint64_t whole, tenths;

  if (bytes < 1024)
    return g_strdup_printf ("%" PRIu64 " bytes", bytes);
  while (bytes >> (10 * unit) >= 1024)
    unit++;
  whole = bytes >> (10 * unit);
  if (whole << (10 * unit) == bytes)
    return g_strdup_printf ("%" PRIu64 " %ciB", whole, unit_letters[unit]);
  tenths = ((bytes >> (10 * (unit - 1))) & 1023) * 10 / 1024;
  return g_strdup_printf ("%" PRIu64 ".%" PRIu64 " %ciB", whole, tenths,
                          unit_letters[unit]);
}

char *
size_format_exact (uint64_t bytes)
{
  g_autofree char *rounded = size_format (bytes);

  if (bytes < 1024)
    return g_steal_pointer (&rounded);
  return g_strdup_printf ("%s (%" PRIu64 " bytes)", rounded, bytes);
}
