/* answer: whole ones pass, however they are cut into pieces; everything else is named. */
#include "node/base/err.h"
#include "node/base/hex.h"
#include "tests/bench/answer.h"
#include "tests/support.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static const char REQUEST[] = "{\"model\":\"a\"}";
static const uint8_t IDS[] = {20, 0, 0, 0, 7, 1, 0, 0, 2, 0, 0, 0}; /* 20, 263, 2 */

static const char FIRST[] =
    "data: {\"choices\":[{\"text\":\"x \\\"token_ids\\\":[9\",\"token_ids\":[20],"
    "\"prompt_token_ids\":[1,2,3,4],\"finish_reason\":null}]}\n\n";
static const char SECOND[] = "data: {\"choices\":[{\"text\":\"y\",\"token_ids\":[263,2]}]}\n\n";
static const char DONE[] = "data: [DONE]\n\n";

/* The last chunk, with a receipt over so many tokens; the hashes are right unless told. */
static char *receipt(int n_prompt, int n_completion, bool wrong_request, bool wrong_ids)
{
    char request[67], response[67];
    struct sha256_digest r = sha256(REQUEST, strlen(REQUEST)), i = sha256(IDS, sizeof IDS);
    r.bytes[5] ^= wrong_request;
    i.bytes[9] ^= wrong_ids;
    return xasprintf("data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}],"
                     "\"tributary\":{\"receipt\":{\"promptTokens\":%d,\"completionTokens\":%d,"
                     "\"requestHash\":\"%s\",\"responseHash\":\"%s\"},\"signature\":\"0x\"}}\n\n",
                     n_prompt, n_completion, hex_encode_0x(request, r.bytes, 32),
                     hex_encode_0x(response, i.bytes, 32));
}

/* What answer_check says of the text, fed `piece` bytes at a time; "" when it is whole. */
static void verdict(char out[512], const char *text, size_t piece, int *n_tokens)
{
    struct answer a = {0};
    struct err err = {0};
    answer_init(&a);
    *n_tokens = 0;
    for (size_t at = 0, n = strlen(text); at < n; at += piece)
        *n_tokens += answer_feed(&a, text + at, n - at < piece ? n - at : piece);
    out[0] = '\0';
    if (answer_check(&a, 4, 3, REQUEST, strlen(REQUEST), &err) != 0)
        snprintf(out, 512, "%s", err.message);
    answer_release(&a);
}

static void a_whole_answer_passes_in_pieces_of_any_size(void **state)
{
    (void)state;
    char *last = receipt(4, 3, false, false), said[512];
    char *text = xasprintf(": hello\n\n%s%s%s%s", FIRST, SECOND, last, DONE);
    int n;
    for (size_t piece = 1; piece <= strlen(text); piece++) {
        verdict(said, text, piece, &n);
        if (said[0] != '\0' || n != 3)
            fail_msg("in pieces of %zu: %d tokens, \"%s\"", piece, n, said);
    }
    free(text);
    free(last);
}

static void whatever_is_wrong_with_an_answer_is_named(void **state)
{
    (void)state;
    char *good = receipt(4, 3, false, false), *prompt = receipt(5, 3, false, false);
    char *completion = receipt(4, 2, false, false), *request = receipt(4, 3, true, false);
    char *ids = receipt(4, 3, false, true);
    const struct {
        const char *parts[5], *wrong;
    } rows[] = {
        {{FIRST, good, DONE}, "1 tokens of 3"},
        {{FIRST, SECOND, SECOND, good, DONE}, "5 tokens of 3"},
        {{FIRST, SECOND, DONE}, "0 receipts"},
        {{FIRST, SECOND, good}, "no [DONE]"},
        {{FIRST, SECOND, good, good, DONE}, "behind the receipt"},
        {{FIRST, good, SECOND, DONE}, "behind the receipt"},
        {{FIRST, SECOND, good, DONE, "data: "}, "half an event"},
        {{FIRST, SECOND, prompt, DONE}, "5 prompt and 3 completion"},
        {{FIRST, SECOND, completion, DONE}, "4 prompt and 2 completion"},
        {{FIRST, SECOND, request, DONE}, "requestHash"},
        {{FIRST, SECOND, ids, DONE}, "responseHash"},
        {{FIRST, "data: {\"error\":{\"message\":\"too late\"}}\n\n", good, DONE}, "too late"},
        {{FIRST, "data: {\"choices\n\n"}, "no JSON"},
        {{"data: {\"token_ids\":[1,x]}\n\n"}, "no list of ids"},
        {{FIRST, SECOND, "data: {\"tributary\":{}}\n\n"}, "no hashes"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct buf text = BUF_INIT;
        char said[512];
        int n;
        for (size_t k = 0; k < 5 && rows[i].parts[k] != NULL; k++)
            buf_append_str(&text, rows[i].parts[k]);
        verdict(said, buf_cstr(&text), 17, &n);
        if (strstr(said, rows[i].wrong) == NULL)
            fail_msg("row %zu: should say \"%s\", says \"%s\"", i, rows[i].wrong, said);
        buf_release(&text);
    }
    free(good);
    free(prompt);
    free(completion);
    free(request);
    free(ids);
}

static void one_that_was_used_begins_anew(void **state)
{
    (void)state;
    struct answer a = {0};
    struct err err = {0};
    char *last = receipt(4, 3, false, false);
    answer_init(&a);
    answer_feed(&a, "data: {\"error\":{}}\n\ndata: {", 26);
    assert_int_equal(answer_check(&a, 4, 3, REQUEST, strlen(REQUEST), &err), -1);
    answer_init(&a);
    const char *const parts[] = {FIRST, SECOND, last, DONE};
    for (size_t i = 0; i < 4; i++)
        answer_feed(&a, parts[i], strlen(parts[i]));
    assert_ok(answer_check(&a, 4, 3, REQUEST, strlen(REQUEST), &err), err);
    answer_release(&a);
    free(last);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_whole_answer_passes_in_pieces_of_any_size),
        cmocka_unit_test(whatever_is_wrong_with_an_answer_is_named),
        cmocka_unit_test(one_that_was_used_begins_anew),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
