/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What kind of image is to be made: options that several subcommands have. */

#include <string.h>

#include "ploop-img.h"

#define DEFAULT_VERSION 2
#define DEFAULT_CLUSTER_SIZE (1024 * 1024)

bool
format_parse_version (const char *text, unsigned *version, GError **error)
{
  if (text == NULL)
    *version = DEFAULT_VERSION;
  else if (strcmp (text, "1") == 0)
    *version = 1;
  else if (strcmp (text, "2") == 0)
    *version = 2;
  else {
    g_set_error (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
                 "--version: '%s' is not a version of the format: use 1 or 2",
                 text);
    return false;
  }
  return true;
}

/* 0 would ask the library for its default, which nobody means who writes it. */
bool
format_parse_cluster_size (const char *text, uint32_t *cluster_size,
                           GError **error)
{
  uint64_t bytes = DEFAULT_CLUSTER_SIZE;

  if (text != NULL && !size_parse (text, &bytes, error)) {
    g_prefix_error (error, "--cluster-size: ");
    return false;
  }
  if (bytes == 0 || bytes > UINT32_MAX) {
    g_set_error (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
                 "--cluster-size: '%s' cannot be used: use a power of two "
                 "from 32K to 64M", text);
    return false;
  }
  *cluster_size = (uint32_t) bytes;
  return true;
}

bool
format_parse_form (const char *text, bool *raw, GError **error)
{
  *raw = text != NULL && strcmp (text, "raw") == 0;
  if (text == NULL || *raw || strcmp (text, "ploop") == 0)
    return true;
  g_set_error (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
               "--format: '%s' is not known: use ploop or raw", text);
  return false;
}
