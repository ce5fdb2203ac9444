/* module_pattern: regular expressions over module names, as PEFT configurations write them.
 *
 * Python's `re` and PCRE2 agree on what such patterns use. Patterns come from strangers: length,
 * the work of a match, and that of all matches together are bounded. */
#ifndef TRIBUTARY_ENGINE_TOKENIZER_MODULE_PATTERN_H
#define TRIBUTARY_ENGINE_TOKENIZER_MODULE_PATTERN_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct module_pattern;

enum {
    MODULE_PATTERN_MAX_BYTES = 4096,
    /* What the patterns of one configuration may do together, a second or two of work: thousands of
     * them, each for hundreds of modules, could else take hours. A rank for each of the 882 modules
     * of a 405B model, by its whole name, takes less than a tenth of it. */
    MODULE_PATTERN_STEPS_MAX = 100 * 1000 * 1000,
};

/* before and after are put around the pattern unchanged ("(.*\\.)?(" and ")"), so that PEFT's own
 * wrappings can be spelt where they are needed. Each match takes its steps off *steps_left, which
 * outlives the pattern and may be shared by patterns of one thread. Fails with ERR_INVALID naming
 * the pattern. */
int module_pattern_compile(struct module_pattern **out, const char *before, const char *pattern,
                           const char *after, int64_t *steps_left, struct err *err);
void module_pattern_free(struct module_pattern *p); /* quiet on NULL */

/* 1: matches from the name's beginning, and to its end when `whole` (re.fullmatch, else re.match);
 * 0: doesn't; -1: needs too many steps, or those before it did. *group_1 (may be NULL): begin and
 * end of the first group in the name, or -1, -1. */
int module_pattern_match(const struct module_pattern *p, const char *name, bool whole,
                         int group_1[2], struct err *err);

#endif
