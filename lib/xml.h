/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* XML from strangers, by libxml2: any bytes in, and a document out, or an error
 * that names file, line, element and value; in memory and time that grow with
 * their number.  No network, no DTD, so no entities but the five of XML itself.
 *
 * Elements are found by their local name, whatever their namespace.  All that
 * is not looked for stays in the document, and is printed with it.
 */

#ifndef PLOOP_LIB_XML_H
#define PLOOP_LIB_XML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <glib.h>
#include <libxml/tree.h>

#include "error.h"

/* Parse LENGTH bytes at TEXT, which a NUL follows, of the file PATH.  NULL with
 * ERROR set (PLOOP_ERROR_FORMAT) when they are no XML, or more than that.  To
 * be freed by xmlFreeDoc.
 */
xmlDoc *xml_parse (const char *path, const char *text, size_t length,
                   GError **error);

/* The document as text, in UTF-8; NULL when memory is short. */
GBytes *xml_print (xmlDoc *doc);

/* Set ERROR (PLOOP_ERROR_CORRUPT) to PATH, NODE's line and name, and the
 * formatted text, which goes on from the name.
 */
void xml_set_error (GError **error, const char *path, const xmlNode *node,
                    const char *format, ...) G_GNUC_PRINTF (4, 5);

/* A value for such a text: in quotes, without control characters, and not too
 * long (g_free).
 */
char *xml_quote (const char *value);

/* The first element NAME in PARENT, and the next one after NODE, or NULL. */
xmlNode *xml_first (xmlNode *parent, const char *name);
xmlNode *xml_next (xmlNode *node, const char *name);

/* *CHILD becomes the element NAME inside PARENT, or NULL where there is none.
 * Two of them are an error.
 */
bool xml_find (const char *path, xmlNode *parent, const char *name,
               xmlNode **child, GError **error);

/* The element NAME inside PARENT; none is an error too. */
xmlNode *xml_need (const char *path, xmlNode *parent, const char *name,
                   GError **error);

/* What NODE contains, without white space around it (g_free).  Elements inside
 * are an error, comments are not.
 */
char *xml_text (const char *path, xmlNode *node, GError **error);

/* The same as a number, decimal or 0x and hexadecimal, from MIN to MAX. */
bool xml_number (const char *path, xmlNode *node, uint64_t min, uint64_t max,
                 uint64_t *number, GError **error);

/* Let NODE contain TEXT instead of what text it has.  False when memory is
 * short.
 */
bool xml_set_text (xmlNode *node, const char *text);

/* Make an element NAME with TEXT, the first of PARENT's. */
bool xml_add_first (xmlNode *parent, const char *name, const char *text);

/* The same, the last; TEXT may be NULL.  Returns it, or NULL when memory is short. */
xmlNode *xml_add_last (xmlNode *parent, const char *name, const char *text);

/* Take NODE out of its document, with all that is in it. */
void xml_remove (xmlNode *node);

#endif /* PLOOP_LIB_XML_H */
