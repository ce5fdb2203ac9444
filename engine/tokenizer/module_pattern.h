/* module_pattern: regular expressions over module names, as PEFT configurations write them.
 *
 * Python's `re` and PCRE2 agree on what such patterns use. Patterns come from strangers: length and
 * the work of a match are bounded. */
#ifndef TRIBUTARY_ENGINE_TOKENIZER_MODULE_PATTERN_H
#define TRIBUTARY_ENGINE_TOKENIZER_MODULE_PATTERN_H

#include <stdbool.h>

struct err;
struct module_pattern;

enum { MODULE_PATTERN_MAX_BYTES = 4096 };

/* before and after are put around the pattern unchanged ("(.*\\.)?(" and ")"), so that PEFT's own
 * wrappings can be spelt where they are needed. Fails with ERR_INVALID naming the pattern. */
int module_pattern_compile(struct module_pattern **out, const char *before, const char *pattern,
                           const char *after, struct err *err);
void module_pattern_free(struct module_pattern *p); /* quiet on NULL */

/* 1: matches from the name's beginning, and to its end when `whole` (re.fullmatch, else re.match);
 * 0: doesn't; -1: needs too many steps. *group_1 (may be NULL): begin and end of the first group in
 * the name, or -1, -1. */
int module_pattern_match(const struct module_pattern *p, const char *name, bool whole,
                         int group_1[2], struct err *err);

#endif
