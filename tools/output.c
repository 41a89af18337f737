/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The two forms in which a result is printed, --output=human and json, and
 * what the subcommands need to build the latter.
 *
 * JSON is UTF-8 and json-glib's integers are signed.  File names need not be
 * the former, and the fields of a damaged image need not fit the latter.
 */

#include <stdio.h>
#include <string.h>

#include "ploop-img.h"

bool
output_parse_format (const char *text, enum output_format *format,
                     GError **error)
{
  if (text == NULL || strcmp (text, "human") == 0)
    *format = OUTPUT_HUMAN;
  else if (strcmp (text, "json") == 0)
    *format = OUTPUT_JSON;
  else {
    g_set_error (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
                 "--output: '%s' is not known: use human or json", text);
    return false;
  }
  return true;
}

void
output_add_text (JsonBuilder *builder, const char *name, const char *value)
{
  g_autofree char *valid = g_utf8_make_valid (value, -1);

  json_builder_set_member_name (builder, name);
  json_builder_add_string_value (builder, valid);
}

/* Past 2^63 a rounded number is better than a negative one. */
void
output_add_number (JsonBuilder *builder, const char *name, uint64_t value)
{
  json_builder_set_member_name (builder, name);
  if (value <= G_MAXINT64)
    json_builder_add_int_value (builder, (gint64) value);
  else
    json_builder_add_double_value (builder, (double) value);
}

void
output_add_truth (JsonBuilder *builder, const char *name, bool value)
{
  json_builder_set_member_name (builder, name);
  json_builder_add_boolean_value (builder, value);
}

void
output_add_time (JsonBuilder *builder, const char *name, int64_t value)
{
  json_builder_set_member_name (builder, name);
  json_builder_add_int_value (builder, value);
}

void
output_json (JsonBuilder *builder)
{
  g_autoptr (JsonNode) root = json_builder_get_root (builder);
  g_autofree char *text = json_to_string (root, TRUE);

  puts (text);
}
