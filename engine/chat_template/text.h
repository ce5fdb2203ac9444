/* text: Python's str methods, for the methods and filters of templates. Positions are characters.
 */
#ifndef TRIBUTARY_ENGINE_CHAT_TEMPLATE_TEXT_H
#define TRIBUTARY_ENGINE_CHAT_TEMPLATE_TEXT_H

#include "engine/chat_template/value.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

bool text_is_space(uint32_t c); /* str.isspace() */

/* chars NULL: white space. */
const struct string *text_strip(struct eval *e, const struct string *s, const struct string *chars,
                                bool left, bool right);

/* count < 0: all. An empty `old` is found before each character and at the end. */
const struct string *text_replace(struct eval *e, const struct string *s, const struct string *old,
                                  const struct string *new, int64_t count);

/* A list. separator NULL: runs of white space, none at the ends. max < 0: no limit. */
struct value text_split(struct eval *e, const struct string *s, const struct string *separator,
                        int64_t max, bool from_right);
struct value text_lines(struct eval *e, const struct string *s, bool keep_ends);

enum text_case { TEXT_UPPER, TEXT_LOWER, TEXT_SWAP, TEXT_TITLE, TEXT_CAPITALIZE };
const struct string *text_recase(struct eval *e, const struct string *s, enum text_case how);

/* The byte where `part` begins in s from byte `from` on (the last place, with from_right), or -1.
 */
ptrdiff_t text_find(struct eval *e, const struct string *s, const struct string *part, size_t from,
                    bool from_right);

/* s with spaces (or `fill`) around it up to width characters. */
enum text_align { TEXT_LEFT, TEXT_CENTER, TEXT_RIGHT };
const struct string *text_align(struct eval *e, const struct string *s, int64_t width,
                                enum text_align how, const struct string *fill);

#endif
