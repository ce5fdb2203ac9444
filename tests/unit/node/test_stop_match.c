/* Stop strings: the table of texts, and every way to cut them. */
#include "tests/support.h"

#include "node/base/err.h"
#include "node/stop_match.h"

#include <string.h>

static const struct {
    const char *stops[STOP_MATCH_MAX];
    const char *text;
    const char *delivered; /* before the stop, or everything */
    int which;             /* -1: none */
    const char *why;
} rows[] = {
    {{"END"}, "the END of it", "the ", 0, "in the middle"},
    {{"END"}, "END", "", 0, "the whole text"},
    {{"END"}, "the EN", "the EN", -1, "only begun: given back at the end"},
    {{"END"}, "ENEND", "EN", 0, "begins again inside itself"},
    {{"aab"}, "aaab", "a", 0, "a border must be kept"},
    {{"aaaaab"}, "aaaaaaaaab", "aaaa", 0, "long runs"},
    {{"abc", "b"}, "abc", "a", 1, "the first to be complete wins, not the first to begin"},
    {{"bc", "abc"}, "abc", "", 1, "of two that end together the longer"},
    {{"abc", "bc"}, "abc", "", 0, "whatever their order"},
    {{"\n\n", "."}, "one\ntwo. three", "one\ntwo", 1, "several stops"},
    {{"\xC3\xA9"}, "caf\xC3\xA8 \xC3\xA9t\xC3\xA9", "caf\xC3\xA8 ", 0, "shares a first byte"},
    {{"xyz"}, "", "", -1, "no text"},
    {{"ababac"}, "abababac", "ab", 0, "overlapping borders"},
    {{"stop", "top"}, "nonstop", "non", 0, "a suffix of the other"},
    {{"STOP"}, "STO STO STOP", "STO STO ", 0, "false starts"},
};

/* Pushes text in pieces of whole characters, at most `step` bytes and at least one character. */
static void run(size_t row, size_t step)
{
    size_t n_stops = 0;
    while (n_stops < STOP_MATCH_MAX && rows[row].stops[n_stops] != NULL)
        n_stops++;
    struct stop_match *m = stop_match_create(rows[row].stops, n_stops);
    struct buf out = BUF_INIT;
    const char *text = rows[row].text;
    size_t len = strlen(text);
    bool stopped = false;
    for (size_t at = 0; at < len && !stopped;) {
        size_t end = at + step < len ? at + step : len;
        while (end < len && ((unsigned char)text[end] & 0xC0) == 0x80)
            end++;
        stopped = stop_match_push(m, &out, text + at, end - at);
        at = end;
    }
    if (!stopped)
        stop_match_flush(m, &out);
    if (strcmp(buf_cstr(&out), rows[row].delivered) != 0 || stop_match_which(m) != rows[row].which)
        fail_msg("\"%s\" in pieces of %zu (%s): delivered \"%s\", stop %d; expected \"%s\", %d",
                 text, step, rows[row].why, buf_cstr(&out), stop_match_which(m),
                 rows[row].delivered, rows[row].which);
    buf_release(&out);
    stop_match_free(m);
}

static void the_answer_does_not_depend_on_the_pieces(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (size_t step = 1; step <= strlen(rows[i].text) + 1; step++)
            run(i, step);
    }
}

static void only_what_may_begin_a_stop_is_held_back(void **state)
{
    (void)state;
    static const struct {
        const char *pieces[4];
        const char *after[4]; /* delivered in all, after each piece */
    } table[] = {
        {{"th", "e E", "NO", "END"}, {"th", "the ", "the ENO", "the ENO"}},
        {{"EEE", "N", "E", "x"}, {"EE", "EE", "EEEN", "EEENEx"}},
    };
    for (size_t i = 0; i < 2; i++) {
        struct stop_match *m = stop_match_create((const char *const[]){"END"}, 1);
        struct buf out = BUF_INIT;
        for (size_t k = 0; k < 4; k++) {
            stop_match_push(m, &out, table[i].pieces[k], strlen(table[i].pieces[k]));
            if (strcmp(buf_cstr(&out), table[i].after[k]) != 0)
                fail_msg("after piece %zu \"%s\": \"%s\", expected \"%s\"", k, table[i].pieces[k],
                         buf_cstr(&out), table[i].after[k]);
        }
        buf_release(&out);
        stop_match_free(m);
    }
}

static void random_texts_agree_with_a_plain_search(void **state)
{
    (void)state;
    /* Twin: after each byte, does some stop end here? Small alphabet, so that stops overlap. */
    uint32_t seed = 1;
    int n_stopped = 0;
    for (int round = 0; round < 3000; round++) {
        char stops[2][6], text[40];
        for (int s = 0; s < 2; s++) {
            seed = seed * 1664525 + 1013904223;
            size_t n = 1 + (seed >> 20) % 4;
            for (size_t i = 0; i < n; i++) {
                seed = seed * 1664525 + 1013904223;
                stops[s][i] = (char)('a' + (seed >> 24) % 2);
            }
            stops[s][n] = '\0';
        }
        for (size_t i = 0; i + 1 < sizeof text; i++) {
            seed = seed * 1664525 + 1013904223;
            text[i] = (char)('a' + (seed >> 24) % 3);
        }
        text[sizeof text - 1] = '\0';
        size_t expected = strlen(text);
        for (size_t end = 1; end <= strlen(text); end++) {
            size_t longest = 0;
            for (int s = 0; s < 2; s++) {
                size_t n = strlen(stops[s]);
                if (n <= end && memcmp(text + end - n, stops[s], n) == 0 && n > longest)
                    longest = n;
            }
            if (longest > 0) {
                expected = end - longest;
                n_stopped++;
                break;
            }
        }
        struct stop_match *m = stop_match_create((const char *const[]){stops[0], stops[1]}, 2);
        struct buf out = BUF_INIT;
        bool stopped = false;
        for (size_t at = 0; at < strlen(text) && !stopped; at += 3)
            stopped = stop_match_push(m, &out, text + at,
                                      strlen(text) - at < 3 ? strlen(text) - at : 3);
        if (!stopped)
            stop_match_flush(m, &out);
        if (out.len != expected || memcmp(buf_cstr(&out), text, expected) != 0)
            fail_msg("stops \"%s\", \"%s\" in \"%s\": delivered \"%s\", expected %zu bytes",
                     stops[0], stops[1], text, buf_cstr(&out), expected);
        buf_release(&out);
        stop_match_free(m);
    }
    assert_true(n_stopped > 500 && n_stopped < 3000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_answer_does_not_depend_on_the_pieces),
        cmocka_unit_test(only_what_may_begin_a_stop_is_held_back),
        cmocka_unit_test(random_texts_agree_with_a_plain_search),
    };
    return cmocka_run_group_tests_name("stop_match", tests, NULL, NULL);
}
