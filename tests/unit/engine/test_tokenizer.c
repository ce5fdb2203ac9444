/* Tokenizers of real model families against what the reference implementation answers.
 *
 * golden.jsonl.gz and golden_decode.jsonl.gz beside each tokenizer come from the Rust library
 * `tokenizers` 0.23.2 (through its npm package); so does golden_unicode16.jsonl.gz, with characters
 * that Unicode got after version 14. Each line is checked five ways: encode, encode
 * with the post-processor's tokens, decode, decode without special tokens, and both decodings
 * streamed token by token.
 *
 * Tokenizers whose licence doesn't let them lie in this tree are taken from the directory that
 * TRIBUTARY_TOKENIZERS names, as <name>/tokenizer.json (for llama3, llama3_1 and gemma3: the npm
 * packages @lenml/tokenizer-<name> 3.7.2, models/tokenizer.json); without it their tests are
 * skipped and say so. */
#include "tests/support.h"

#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"
#include "node/base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct family {
    const struct tokenizer *t;
    const char *name;
    size_t n_lines, n_encodings, n_decodings, n_streams;
    struct buf line; /* for messages */
};

static void ids_of(const json_t *list, struct token_ids *out)
{
    assert_true(json_is_array(list));
    for (size_t i = 0; i < json_array_size(list); i++)
        token_ids_append(out, (int32_t)json_integer_value(json_array_get(list, i)));
}

static void print_ids(struct buf *out, const struct token_ids *ids)
{
    for (size_t i = 0; i < ids->n && i < 200; i++)
        buf_appendf(out, "%s%d", i == 0 ? "" : " ", ids->ids[i]);
}

static void check_encode(struct family *f, const json_t *text, const json_t *wanted_json,
                         bool add_special)
{
    struct token_ids wanted = TOKEN_IDS_INIT, got = TOKEN_IDS_INIT;
    struct tokenizer_encode_options o = {.add_special = add_special, .parse_special = true};
    struct err err = {0};
    ids_of(wanted_json, &wanted);
    assert_ok(
        tokenizer_encode(f->t, &got, json_string_value(text), json_string_length(text), &o, &err),
        err);
    if (got.n != wanted.n ||
        (got.n > 0 && memcmp(got.ids, wanted.ids, got.n * sizeof *got.ids) != 0)) {
        struct buf a = BUF_INIT, b = BUF_INIT;
        print_ids(&a, &wanted);
        print_ids(&b, &got);
        fail_msg("%s: %s (add_special %d)\n  wanted %s\n  got    %s", f->name,
                 json_dumps(text, JSON_ENCODE_ANY), add_special, buf_cstr(&a), buf_cstr(&b));
    }
    f->n_encodings++;
    token_ids_release(&wanted);
    token_ids_release(&got);
}

static void check_text(struct family *f, const char *how, const struct token_ids *ids,
                       const json_t *wanted, struct buf *got)
{
    if (got->len != json_string_length(wanted) ||
        memcmp(buf_cstr(got), json_string_value(wanted), got->len) != 0) {
        struct buf list = BUF_INIT;
        print_ids(&list, ids);
        json_t *got_json = json_stringn(buf_cstr(got), got->len);
        fail_msg("%s: %s of %s\n  wanted %s\n  got    %s", f->name, how, buf_cstr(&list),
                 json_dumps(wanted, JSON_ENCODE_ANY),
                 got_json == NULL ? "no UTF-8" : json_dumps(got_json, JSON_ENCODE_ANY));
    }
}

/* Whole, and streamed: each push must add whole characters only. */
static void check_decode(struct family *f, const struct token_ids *ids, const json_t *wanted,
                         bool skip_special)
{
    struct buf text = BUF_INIT;
    tokenizer_decode(f->t, &text, ids->ids, ids->n, skip_special);
    check_text(f, skip_special ? "decode, skipping special tokens," : "decode", ids, wanted, &text);
    f->n_decodings++;

    struct detokenizer *d = detokenizer_create(f->t, skip_special ? DETOKENIZER_SKIP_SPECIAL : 0);
    for (int round = 0; round < 2; round++) { /* the second: after a flush it is as new */
        buf_reset(&text);
        for (size_t i = 0; i < ids->n; i++) {
            size_t before = text.len;
            detokenizer_push(d, &text, ids->ids[i]);
            if (!utf8_is_valid(text.data + before, text.len - before))
                fail_msg("%s: a push of id %d appends a part of a character", f->name, ids->ids[i]);
        }
        detokenizer_flush(d, &text);
        assert_int_equal(detokenizer_pending_bytes(d), 0);
        check_text(f, "streamed decode", ids, wanted, &text);
    }
    f->n_streams++;
    detokenizer_free(d);
    buf_release(&text);
}

static void golden_line(json_t *line, void *context)
{
    struct family *f = context;
    struct token_ids ids = TOKEN_IDS_INIT;
    const json_t *text = json_object_get(line, "text");
    check_encode(f, text, json_object_get(line, "ids"), false);
    check_encode(f, text, json_object_get(line, "ids_special"), true);
    ids_of(json_object_get(line, "ids"), &ids);
    check_decode(f, &ids, json_object_get(line, "decoded"), false);
    check_decode(f, &ids, json_object_get(line, "decoded_skip"), true);
    token_ids_release(&ids);
    f->n_lines++;
}

static void golden_decode_line(json_t *line, void *context)
{
    struct family *f = context;
    struct token_ids ids = TOKEN_IDS_INIT;
    ids_of(json_object_get(line, "ids"), &ids);
    check_decode(f, &ids, json_object_get(line, "text"), false);
    check_decode(f, &ids, json_object_get(line, "text_skip"), true);
    token_ids_release(&ids);
    f->n_lines++;
}

static void check_goldens(const struct tokenizer *t, const char *name, const char *dir)
{
    struct family f = {.t = t, .name = name};
    char *path = xasprintf("%s/%s/golden.jsonl.gz", dir, name);
    fixture_jsonl(path, golden_line, &f);
    free(path);
    path = xasprintf("%s/%s/golden_decode.jsonl.gz", dir, name);
    fixture_jsonl(path, golden_decode_line, &f);
    free(path);
    assert_true(f.n_lines > 100);
    printf(
        "note: tokenizer %-11s %4zu golden lines: %4zu encodings, %4zu decodings, each streamed as "
        "well\n",
        name, f.n_lines, f.n_encodings, f.n_decodings);
}

static void check_late_characters(const struct tokenizer *t, const char *name)
{
    struct family f = {.t = t, .name = name};
    char *path = xasprintf("tests/fixtures/tokenizers/%s/golden_unicode16.jsonl.gz", name);
    fixture_jsonl(path, golden_line, &f);
    free(path);
    assert_int_equal(f.n_lines, 184);
}

static struct tokenizer *open_fixture(const char *path)
{
    struct buf json = BUF_INIT;
    struct tokenizer *t;
    struct err err = {0};
    fixture_read(path, &json);
    assert_ok(tokenizer_open_memory(&t, json.data, json.len, &err), err);
    buf_release(&json);
    return t;
}

static void check_family(const char *name)
{
    char *path = xasprintf("tests/fixtures/tokenizers/%s/tokenizer.json.gz", name);
    struct tokenizer *t = open_fixture(path);
    check_goldens(t, name, "tests/fixtures/tokenizers");
    if (strcmp(name, "gpt2") == 0 || strcmp(name, "qwen3") == 0) /* those with a regex */
        check_late_characters(t, name);
    tokenizer_close(t);
    free(path);
}

static void gpt2_answers_as_the_reference(void **state)
{
    (void)state;
    check_family("gpt2");
}

static void mistral_v3_answers_as_the_reference(void **state)
{
    (void)state;
    check_family("mistral_v3");
}

static void stories260K_answers_as_the_reference(void **state)
{
    (void)state;
    check_family("stories260K");
}

static void qwen3_and_qwen2_answer_as_the_reference(void **state)
{
    (void)state;
    check_family("qwen3");

    /* Qwen 2 has the same vocabulary and only the first three of the added tokens. */
    json_t *json = fixture_json("tests/fixtures/tokenizers/qwen3/tokenizer.json.gz");
    json_t *added = json_object_get(json, "added_tokens");
    while (json_array_size(added) > 3)
        json_array_remove(added, 3);
    char *text = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    struct tokenizer *t;
    struct err err = {0};
    assert_ok(tokenizer_open_memory(&t, text, strlen(text), &err), err);
    free(text);
    check_goldens(t, "qwen2", "tests/vectors/tokenizers");
    tokenizer_close(t);
}

/* ---- tokenizers that are not in the tree ----------------------------------------------------- */

static void check_elsewhere(const char *name)
{
    const char *dir = getenv("TRIBUTARY_TOKENIZERS");
    char *path = xasprintf("%s/%s/tokenizer.json", dir == NULL ? "" : dir, name);
    if (dir == NULL || access(path, R_OK) != 0) {
        printf("note: tokenizer %s not checked: %s\n", name,
               dir == NULL ? "TRIBUTARY_TOKENIZERS names no directory with its tokenizer.json"
                           : "TRIBUTARY_TOKENIZERS has no such tokenizer.json");
        free(path);
        skip();
    }
    struct tokenizer *t;
    struct err err = {0};
    assert_ok(tokenizer_open(&t, path, &err), err);
    check_goldens(t, name, "tests/vectors/tokenizers");
    tokenizer_close(t);
    free(path);
}

static void llama2_answers_as_the_reference(void **state)
{
    (void)state;
    check_elsewhere("llama2");
}

static void llama3_answers_as_the_reference(void **state)
{
    (void)state;
    check_elsewhere("llama3");
}

static void llama3_1_answers_as_the_reference(void **state)
{
    (void)state;
    check_elsewhere("llama3_1");
}

static void gemma3_answers_as_the_reference(void **state)
{
    (void)state;
    check_elsewhere("gemma3");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stories260K_answers_as_the_reference),
        cmocka_unit_test(gpt2_answers_as_the_reference),
        cmocka_unit_test(mistral_v3_answers_as_the_reference),
        cmocka_unit_test(qwen3_and_qwen2_answer_as_the_reference),
        cmocka_unit_test(llama2_answers_as_the_reference),
        cmocka_unit_test(llama3_answers_as_the_reference),
        cmocka_unit_test(llama3_1_answers_as_the_reference),
        cmocka_unit_test(gemma3_answers_as_the_reference),
    };
    return cmocka_run_group_tests_name("tokenizer goldens", tests, NULL, NULL);
}
