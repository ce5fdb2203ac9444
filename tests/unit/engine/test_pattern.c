/* Regular expressions of tokenizer files: PCRE2, told to mean what Oniguruma means. What is
 * expected here is what `tokenizers` 0.23.2 answers (a Split pre-tokenizer with the expression). */
#include "tests/support.h"

#include "engine/tokenizer/pattern.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdio.h>
#include <string.h>

static void matches_are_those_of_oniguruma(void **state)
{
    (void)state;
    static const struct {
        const char *regex, *text, *matches, *why;
    } rows[] = {
        {"\\p{L}+", "a\U00031350b1", "a\U00031350b", "Unicode 15: a Chinese character"},
        {"\\p{L}+", "a\U00013460.", "a\U00013460", "Unicode 16: a hieroglyph"},
        {"[^\\s\\p{L}\\p{N}]+", "\u2427\U00031350!\U00010d40", "\u2427|!", "in a negated class"},
        {"\\P{L}+", "a\U00031350!", "!", "the complement"},
        {"\\p{N}", "\U00010d40\U0001d2c0", "\U00010d40|\U0001d2c0", "late digit and number"},
        {"\\p{Lu}\\p{Ll}", "\u1c89\u1c8a", "\u1c89\u1c8a", "a late pair of cases"},
        {"[\\p{M}\\p{P}\\p{S}]+", "a\u0897\u1b4e\u2427", "\u0897\u1b4e\u2427",
         "mark, punctuation, sign"},
        {"\\p{Han}+", "\u4e00\u3001\u4e01\U000323af", "\u4e00|\u4e01\U000323af",
         "the script, not its extensions"},
        {"\\P{Han}", "\u4e00\u3001", "\u3001", "and what is not of it"},
        {"\\w+", "x\u00b2 \u09f4 \U00031350", "x\u00b2|\U00031350",
         "superscript two is a word's, a Bengali fraction isn't"},
        {"(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'S '\u017f 'RE 'k '\u212a", "'S|'\u017f|'RE",
         "the long s folds to s"},
        {"(?i:k)", "k\u212aK", "k|\u212a|K", "the Kelvin sign folds to k"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err err = {0};
        struct buf got = BUF_INIT;
        struct pattern *p = pattern_regex(rows[i].regex, strlen(rows[i].regex), &err);
        if (p == NULL)
            fail_msg("%s: %s", rows[i].regex, err.message);
        struct pattern_search s;
        size_t begin, end;
        pattern_search_init(&s, p, rows[i].text, strlen(rows[i].text));
        while (pattern_search_next(&s, &begin, &end, &err) == 1)
            buf_appendf(&got, "%s%.*s", got.len > 0 ? "|" : "", (int)(end - begin),
                        rows[i].text + begin);
        if (strcmp(buf_cstr(&got), rows[i].matches) != 0)
            fail_msg("%s (%s): expected %s, got %s", rows[i].regex, rows[i].why, rows[i].matches,
                     buf_cstr(&got));
        pattern_search_release(&s);
        pattern_free(p);
        buf_release(&got);
    }
}

static void what_would_mean_something_else_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *regex;
        size_t n;
        const char *message;
    } rows[] = {
        {"[a\\P{L}]", 8, "a negated class inside brackets"},
        {"[a\\W]", 5, "a negated class inside brackets"},
        {"\\p{Han\0}", 8, "a property with a zero in its name"},
        {"\\p{L", 4, "\\p{ without }"},
        {"\\p{NoSuch}", 10, "unknown property"},
        {"a{2}+", 5, "a repeated repetition"},
        {"[a[b]]", 6, "a class inside brackets"},
        {"(?s)a", 5, "the group"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err err = {0};
        assert_null(pattern_regex(rows[i].regex, rows[i].n, &err));
        if (strstr(err.message, rows[i].message) == NULL)
            fail_msg("%s: %s", rows[i].regex, err.message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matches_are_those_of_oniguruma),
        cmocka_unit_test(what_would_mean_something_else_is_refused),
    };
    return cmocka_run_group_tests_name("pattern", tests, NULL, NULL);
}
