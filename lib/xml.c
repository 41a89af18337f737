/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* XML from strangers: see xml.h.
 *
 * What libxml2 would do with hostile bytes beyond parsing them is turned away
 * before it can: other character sets (they go through iconv's converters), a
 * DTD (parsing stops where it begins), and what takes older versions time that
 * grows with the square of the size, thousands of attributes or namespaces.
 * Its own limits, of depth and of the length of names and texts, stay on.
 */

#include <config.h>

#include <stdarg.h>
#include <string.h>

#include <libxml/parser.h>
#include <libxml/xmlerror.h>

#include "xml.h"

/* Each attribute is compared with the others of its element, and each element
 * looks through the namespaces.  Nobody has more than a few.
 */
#define MAX_ATTRIBUTES 100
#define MAX_NAMESPACES 64

/* How much of a value an error shows, bytes. */
#define MAX_SHOWN 100

/* The first LENGTH bytes of TEXT (g_free). */
static char *
shorten (const char *text, size_t length)
{
  return g_utf8_make_valid (text, (gssize) strnlen (text, length));
}

/* ---- Parsing ----------------------------------------------------------- */

/* What happened to a parser. */
struct parse {
  bool has_dtd;
  int line;                     /* of the first error */
  char *wrong;                  /* NULL: none so far */
};

#if LIBXML_VERSION >= 21200
typedef const xmlError *xml_error;
#else
typedef xmlError *xml_error;
#endif

static void
on_error (void *opaque, xml_error what)
{
  xmlParserCtxt *context = opaque;
  struct parse *parse = context->_private;

  if (parse->wrong || what->level < XML_ERR_ERROR)
    return;
  parse->line = what->line;
  parse->wrong =
    g_strstrip (shorten (what->message ? what->message : "", 4 * MAX_SHOWN));
}

static void
on_dtd (void *opaque, const xmlChar *name, const xmlChar *external_id,
        const xmlChar *system_id)
{
  xmlParserCtxt *context = opaque;
  struct parse *parse = context->_private;

  (void) name;
  (void) external_id;
  (void) system_id;
  parse->has_dtd = true;
  xmlStopParser (context);
}

static void
start_libxml (void)
{
  static gsize started;

  if (g_once_init_enter (&started)) {
    xmlInitParser ();
    /* GLib 2.74 calls a number invalid when another thread is just making the locale
     * for the first one: waiting for that leaves EAGAIN in errno.
     */
    (void) g_ascii_strtoull ("0", NULL, 10);
    g_once_init_leave (&started, 1);
  }
}

/* Does the text declare another encoding than UTF-8?  Then that is returned
 * (g_free).
 */
static char *
foreign_encoding (const char *text, size_t length)
{
  const char *bom = "\xef\xbb\xbf";
  const size_t skip = length >= 3 && memcmp (text, bom, 3) == 0 ? 3 : 0;
  const char *end = g_strstr_len (text, (gssize) length, "?>");
  g_autofree char *declaration = NULL;
  g_autoptr (GRegex) regex = NULL;
  g_autoptr (GMatchInfo) match = NULL;
  g_autofree char *encoding = NULL;

  if (!end || !g_str_has_prefix (text + skip, "<?xml"))
    return NULL;
  declaration = g_strndup (text + skip, (gsize) (end - text) - skip);
  regex = g_regex_new ("\\sencoding\\s*=\\s*[\"']([^\"']*)", 0, 0, NULL);
  if (!g_regex_match (regex, declaration, 0, &match))
    return NULL;
  encoding = g_match_info_fetch (match, 1);
  if (g_ascii_strcasecmp (encoding, "UTF-8") == 0
      || g_ascii_strcasecmp (encoding, "US-ASCII") == 0)
    return NULL;
  return g_steal_pointer (&encoding);
}

/* Does the text have so many attributes in one element, or namespaces, that
 * parsing would take long?  Counted roughly: by quotes after "=" between two
 * "<".
 */
static bool
is_costly (const char *text, size_t length)
{
  unsigned attributes = 0, namespaces = 0;
  char before = 0;              /* the last that is no white space */

  for (size_t i = 0; i < length; i++) {
    const char c = text[i];

    if (c == '<')
      attributes = 0;
    else if ((c == '"' || c == '\'') && before == '='
             && ++attributes > MAX_ATTRIBUTES)
      return true;
    else if (c == 'x' && length - i >= 5 && memcmp (text + i, "xmlns", 5) == 0
             && ++namespaces > MAX_NAMESPACES)
      return true;
    if (!g_ascii_isspace (c))
      before = c;
  }
  return false;
}

/* What is wrong with the text before libxml2 sees it (g_free); or NULL. */
static char *
judge_text (const char *text, size_t length)
{
  g_autofree char *encoding = NULL, *quoted = NULL;
  const char *bad;

  if (!g_utf8_validate_len (text, length, &bad))
    return g_strdup_printf ("byte %zu is 0x%02x, which is not text in UTF-8: "
                            "not a disk descriptor, or to be converted",
                            (size_t) (bad - text), (guint8) *bad);
  encoding = foreign_encoding (text, length);
  if (encoding) {
    quoted = xml_quote (encoding);
    return g_strdup_printf ("declares encoding %s: convert it to UTF-8",
                            quoted);
  }
  if (is_costly (text, length))
    return g_strdup_printf ("more than %d attributes in an element or %d "
                            "namespaces: not a disk descriptor",
                            MAX_ATTRIBUTES, MAX_NAMESPACES);
  return NULL;
}

/* What went wrong with the parser (g_free); or NULL. */
static char *
judge_parse (const xmlParserCtxt *context, const struct parse *parse)
{
  if (parse->has_dtd)
    return g_strdup_printf ("line %d: <!DOCTYPE> is not allowed in a disk "
                            "descriptor: remove it, and the entities that it "
                            "defines", context->input ? context->input->line
                                                      : 1);
  if (context->myDoc && context->wellFormed
      && xmlDocGetRootElement (context->myDoc))
    return NULL;
  return g_strdup_printf ("line %d: not well-formed XML: %s", parse->line,
                          parse->wrong ? parse->wrong : "no root element");
}

static xmlDoc *
parse_text (const char *text, size_t length, char **wrong)
{
  struct parse parse = { 0 };
  xmlParserCtxt *context = xmlNewParserCtxt ();
  xmlDoc *doc;

  if (!context || !context->sax) {
    *wrong = g_strdup ("no memory to parse it");
    xmlFreeParserCtxt (context);
    return NULL;
  }
  context->_private = &parse;
  context->sax->serror = on_error;
  context->sax->internalSubset = on_dtd;
  doc = xmlCtxtReadMemory (context, text, (int) length, NULL, NULL,
                           XML_PARSE_NONET | XML_PARSE_IGNORE_ENC
                           | XML_PARSE_BIG_LINES);
  context->myDoc = doc;
  *wrong = judge_parse (context, &parse);
  context->myDoc = NULL;
  if (*wrong)
    g_clear_pointer (&doc, xmlFreeDoc);
  xmlFreeParserCtxt (context);
  g_free (parse.wrong);
  return doc;
}

xmlDoc *
xml_parse (const char *path, const char *text, size_t length, GError **error)
{
  g_autofree char *wrong = NULL;
  xmlDoc *doc = NULL;

  g_assert (length <= G_MAXINT);
  start_libxml ();
  wrong = judge_text (text, length);
  if (!wrong)
    doc = parse_text (text, length, &wrong);
  if (wrong)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_FORMAT, "%s: %s", path,
                 wrong);
  return doc;
}

/* ---- Looking ----------------------------------------------------------- */

char *
xml_quote (const char *value)
{
  /* All but control characters, quotes and backslashes as they are. */
  static char exceptions[129];
  static gsize made;
  g_autofree char *start = NULL, *escaped = NULL;

  if (g_once_init_enter (&made)) {
    for (int i = 0; i < 128; i++)
      exceptions[i] = (char) (128 + i);
    g_once_init_leave (&made, 1);
  }
  start = shorten (value, MAX_SHOWN);
  escaped = g_strescape (start, exceptions);
  return g_strdup_printf ("'%s%s'", escaped,
                          strlen (value) > MAX_SHOWN ? "..." : "");
}

void
xml_set_error (GError **error, const char *path, const xmlNode *node,
               const char *format, ...)
{
  g_autofree char *text = NULL, *name = NULL;
  va_list args;

  va_start (args, format);
  text = g_strdup_vprintf (format, args);
  va_end (args);

  name = shorten ((const char *) node->name, MAX_SHOWN);
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
               "%s: line %ld: <%s> %s", path, xmlGetLineNo (node), name, text);
}

static bool
is_called (const xmlNode *node, const char *name)
{
  return strcmp ((const char *) node->name, name) == 0;
}

xmlNode *
xml_first (xmlNode *parent, const char *name)
{
  xmlNode *node = xmlFirstElementChild (parent);

  return !node || is_called (node, name) ? node : xml_next (node, name);
}

xmlNode *
xml_next (xmlNode *node, const char *name)
{
  do
    node = xmlNextElementSibling (node);
  while (node && !is_called (node, name));
  return node;
}

bool
xml_find (const char *path, xmlNode *parent, const char *name,
          xmlNode **child, GError **error)
{
  xmlNode *second;

  *child = xml_first (parent, name);
  second = *child ? xml_next (*child, name) : NULL;
  if (second)
    xml_set_error (error, path, second, "is there for the second time in <%s>, "
                   "after line %ld: remove one",
                   (const char *) parent->name, xmlGetLineNo (*child));
  return !second;
}

xmlNode *
xml_need (const char *path, xmlNode *parent, const char *name,
          GError **error)
{
  xmlNode *child;

  if (!xml_find (path, parent, name, &child, error))
    return NULL;
  if (!child)
    xml_set_error (error, path, parent, "has no <%s>, which must be there",
                   name);
  return child;
}

char *
xml_text (const char *path, xmlNode *node, GError **error)
{
  const xmlNode *inner = xmlFirstElementChild (node);
  g_autofree char *name = NULL;
  xmlChar *content;
  char *text;

  if (inner) {
    name = shorten ((const char *) inner->name, MAX_SHOWN);
    xml_set_error (error, path, node, "contains <%s>, must be only text",
                   name);
    return NULL;
  }
  content = xmlNodeGetContent (node);
  text = g_strstrip (g_strdup (content ? (const char *) content : ""));
  xmlFree (content);
  return text;
}

bool
xml_number (const char *path, xmlNode *node, uint64_t min, uint64_t max,
            uint64_t *number, GError **error)
{
  g_autofree char *text = xml_text (path, node, error);
  g_autofree char *quoted = NULL;
  const char *digits = text;
  unsigned base = 10;

  if (!text)
    return false;
  if (g_ascii_strncasecmp (text, "0x", 2) == 0) {
    digits += 2;
    base = 16;
  }
  if (g_ascii_string_to_unsigned (digits, base, min, max, number, NULL))
    return true;
  quoted = xml_quote (text);
  xml_set_error (error, path, node, "is %s, must be a number from %"
                 G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT
                 " (decimal, or 0x and hexadecimal)", quoted, min, max);
  return false;
}

/* ---- Changing ---------------------------------------------------------- */

bool
xml_set_text (xmlNode *node, const char *text)
{
  xmlNode *next, *new = xmlNewDocText (node->doc, (const xmlChar *) text);

  if (!new)
    return false;
  for (xmlNode *child = node->children; child; child = next) {
    next = child->next;
    if (child->type == XML_TEXT_NODE || child->type == XML_CDATA_SECTION_NODE) {
      xmlUnlinkNode (child);
      xmlFreeNode (child);
    }
  }
  return xmlAddChild (node, new) != NULL;
}

bool
xml_add_first (xmlNode *parent, const char *name, const char *text)
{
  xmlNode *before = parent->children;
  const bool is_indented = before && xmlIsBlankNode (before);
  xmlNode *new = xmlNewDocNode (parent->doc, parent->ns,
                                (const xmlChar *) name, (const xmlChar *) text);

  if (!new)
    return false;
  if (!before)
    return xmlAddChild (parent, new) != NULL;
  if (!is_indented)
    return xmlAddPrevSibling (before, new) != NULL;
  /* As deep as what stood first. */
  return xmlAddNextSibling (before, new)
         && xmlAddNextSibling (new, xmlCopyNode (before, 1));
}

/* The line break before an element inside PARENT, with OUT levels less (g_free); or
 * NULL when the document has none.
 */
static char *
line_break (const xmlNode *parent, unsigned out)
{
  const xmlNode *root = xmlDocGetRootElement (parent->doc);
  unsigned depth = 1;

  if (!root->children || !xmlIsBlankNode (root->children))
    return NULL;
  for (; parent != root; parent = parent->parent)
    depth++;
  return g_strdup_printf ("\n%*s", (int) (2 * (depth - out)), "");
}

static bool
add_text (xmlNode *parent, const char *text)
{
  return !text || xmlAddChild (parent, xmlNewDocText (parent->doc,
                                                      (const xmlChar *) text));
}

/* Text nodes that meet become one: so the element goes in first. */
static bool
insert_before_end (xmlNode *parent, xmlNode *new, const char *before)
{
  xmlNode *end = parent->last;

  return xmlAddPrevSibling (end, new)
         && (!before
             || xmlAddPrevSibling (new, xmlNewDocText (parent->doc,
                                                       (const xmlChar *) before)));
}

xmlNode *
xml_add_last (xmlNode *parent, const char *name, const char *text)
{
  g_autofree char *before = line_break (parent, 0);
  g_autofree char *after = line_break (parent, 1);
  const bool has_end = parent->last && xmlIsBlankNode (parent->last);
  xmlNode *new = xmlNewDocRawNode (parent->doc, parent->ns,
                                   (const xmlChar *) name,
                                   (const xmlChar *) text);

  if (!new)
    return NULL;
  if (has_end)
    return insert_before_end (parent, new, before) ? new : NULL;
  return add_text (parent, before) && xmlAddChild (parent, new)
         && add_text (parent, after) ? new : NULL;
}

void
xml_remove (xmlNode *node)
{
  xmlNode *before = node->prev;

  if (before && xmlIsBlankNode (before)) {
    xmlUnlinkNode (before);
    xmlFreeNode (before);
  }
  xmlUnlinkNode (node);
  xmlFreeNode (node);
}

/* ---- Printing ---------------------------------------------------------- */

/* A namespace, and what it is without what was done to print it. */
struct plain_namespace {
  xmlNs *ns;
  const xmlChar *href;
};

/* libxml2 prints the names of namespaces as they are, also '<' and '&', which no reader
 * takes.  Those that are changed for it are added to PLAIN.
 */
static void
escape_namespaces (xmlNode *node, GArray *plain)
{
  for (; node; node = node->next) {
    if (node->type != XML_ELEMENT_NODE)
      continue;
    for (xmlNs *ns = node->nsDef; ns; ns = ns->next) {
      const struct plain_namespace namespace = { ns, ns->href };

      if (!ns->href || !strpbrk ((const char *) ns->href, "<&"))
        continue;
      g_array_append_val (plain, namespace);
      ns->href =
        (xmlChar *) g_markup_escape_text ((const char *) ns->href, -1);
    }
    escape_namespaces (node->children, plain);
  }
}

static void
restore_namespaces (GArray *plain)
{
  for (guint i = 0; i < plain->len; i++) {
    struct plain_namespace *namespace =
      &g_array_index (plain, struct plain_namespace, i);

    g_free ((gpointer) namespace->ns->href);
    namespace->ns->href = namespace->href;
  }
}

GBytes *
xml_print (xmlDoc *doc)
{
  g_autoptr (GArray) plain =
    g_array_new (FALSE, FALSE, sizeof (struct plain_namespace));
  xmlChar *text = NULL;
  int length = 0;
  GBytes *bytes = NULL;

  escape_namespaces (xmlDocGetRootElement (doc), plain);
  xmlDocDumpMemoryEnc (doc, &text, &length, "UTF-8");
  restore_namespaces (plain);
  if (text)
    bytes = g_bytes_new (text, (gsize) length);
  xmlFree (text);
  return bytes;
}
