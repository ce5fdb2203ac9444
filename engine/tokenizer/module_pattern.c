/* module_pattern: see module_pattern.h. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/tokenizer/module_pattern.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

enum { MATCH_STEPS_MAX = 1000 * 1000, MATCH_HEAP_MAX_KIB = 4096 };

struct module_pattern {
    pcre2_code *code;
    pcre2_match_context *limits;
    char *text; /* for messages */
};

/* PCRE2 calls this in front of each item of a pattern that it tries. */
static int count_step(pcre2_callout_block *block, void *context)
{
    int64_t *steps_left = context;
    (void)block;
    return --*steps_left < 0 ? PCRE2_ERROR_MATCHLIMIT : 0;
}

int module_pattern_compile(struct module_pattern **out, const char *before, const char *pattern,
                           const char *after, int64_t *steps_left, struct err *err)
{
    if (strlen(pattern) > MODULE_PATTERN_MAX_BYTES)
        return err_set(err, ERR_TOO_LARGE, "a pattern of %zu bytes, limit is %d", strlen(pattern),
                       MODULE_PATTERN_MAX_BYTES);
    char *whole = xasprintf("%s%s%s", before, pattern, after);
    int code_error;
    PCRE2_SIZE at;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)whole, PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C | PCRE2_AUTO_CALLOUT,
                                     &code_error, &at, NULL);
    free(whole);
    if (code == NULL) {
        PCRE2_UCHAR message[256];
        pcre2_get_error_message(code_error, message, sizeof message);
        return err_set(err, ERR_INVALID, "pattern \"%s\": %s", pattern, (const char *)message);
    }
    struct module_pattern *p = xcalloc(1, sizeof *p);
    p->code = code;
    p->limits = pcre2_match_context_create(NULL);
    BUG_IF(p->limits == NULL);
    pcre2_set_match_limit(p->limits, MATCH_STEPS_MAX);
    pcre2_set_heap_limit(p->limits, MATCH_HEAP_MAX_KIB);
    pcre2_set_callout(p->limits, count_step, steps_left);
    p->text = xstrdup(pattern);
    *out = p;
    return 0;
}

void module_pattern_free(struct module_pattern *p)
{
    if (p == NULL)
        return;
    pcre2_code_free(p->code);
    pcre2_match_context_free(p->limits);
    free(p->text);
    free(p);
}

int module_pattern_match(const struct module_pattern *p, const char *name, bool whole,
                         int group_1[2], struct err *err)
{
    pcre2_match_data *data = pcre2_match_data_create_from_pattern(p->code, NULL);
    BUG_IF(data == NULL);
    uint32_t how = PCRE2_ANCHORED | (whole ? PCRE2_ENDANCHORED : 0);
    int rc = pcre2_match(p->code, (PCRE2_SPTR)name, PCRE2_ZERO_TERMINATED, 0, how, data, p->limits);
    int result;
    if (group_1 != NULL)
        group_1[0] = group_1[1] = -1;
    if (rc >= 0) {
        const PCRE2_SIZE *span = pcre2_get_ovector_pointer(data);
        if (group_1 != NULL && rc > 1 && span[2] != PCRE2_UNSET) {
            group_1[0] = (int)span[2];
            group_1[1] = (int)span[3];
        }
        result = 1;
    } else if (rc == PCRE2_ERROR_NOMATCH) {
        result = 0;
    } else {
        PCRE2_UCHAR message[256];
        pcre2_get_error_message(rc, message, sizeof message);
        result = err_set(err, ERR_INVALID, "pattern \"%s\" on %s: %s", p->text, name,
                         (const char *)message);
    }
    pcre2_match_data_free(data);
    return result;
}
