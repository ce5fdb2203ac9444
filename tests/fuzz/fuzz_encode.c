/* Text from a stranger, through three tokenizers that lie in the tree: byte-level with a regular
 * expression, byte fallback without one, and a small one with every kind of added token. Ids must
 * be real, and what a byte-level vocabulary encodes must decode to the text that was read. */
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"
#include "node/base/err.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const char small[] =
    "{\"added_tokens\":["
    "{\"id\":10,\"content\":\"<s>\",\"special\":true,\"lstrip\":true},"
    "{\"id\":11,\"content\":\"<s>x\",\"special\":false,\"rstrip\":true},"
    "{\"id\":12,\"content\":\"ab\",\"special\":false,\"single_word\":true,\"normalized\":true},"
    "{\"id\":13,\"content\":\"  \",\"special\":false,\"normalized\":false}],"
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},"
    "{\"type\":\"Prepend\",\"prepend\":\"_\"},"
    "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"\\\\s+\"},\"content\":\"_\"}]},"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
    "{\"type\":\"Digits\",\"individual_digits\":false},"
    "{\"type\":\"Split\",\"pattern\":{\"String\":\"_\"},\"behavior\":\"MergedWithNext\",\"invert\":"
    "false}]},"
    "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteFallback\"},{\"type\":"
    "\"Fuse\"},"
    "{\"type\":\"Strip\",\"content\":\"_\",\"start\":1,\"stop\":1}]},"
    "\"model\":{\"type\":\"BPE\",\"unk_token\":\"?\",\"fuse_unk\":true,\"byte_fallback\":true,"
    "\"vocab\":{\"?\":0,\"a\":1,\"b\":2,\"_\":3,\"_a\":4,\"<0xC3>\":5,\"<0xA9>\":6,\"aa\":7},"
    "\"merges\":[\"_ a\",\"a a\"]}}";

static void check(const struct tokenizer *t, const uint8_t *data, size_t n, bool exact)
{
    struct token_ids ids = TOKEN_IDS_INIT;
    struct buf valid = BUF_INIT, text = BUF_INIT;
    struct text_spans literal = TEXT_SPANS_INIT;
    struct tokenizer_encode_options o = {.parse_special = true};
    struct err err = {0};
    utf8_append_lossy(&valid, data, n);
    BUG_IF(tokenizer_encode(t, &ids, (const char *)data, n, &o, &err) != 0);
    for (size_t i = 0; i < ids.n; i++)
        BUG_IF(tokenizer_token(t, ids.ids[i], NULL) == NULL);
    tokenizer_decode(t, &text, ids.ids, ids.n, false);
    BUG_IF(!utf8_is_valid(text.data, text.len));
    BUG_IF(exact && (text.len != valid.len ||
                     (text.len > 0 && memcmp(text.data, valid.data, text.len) != 0)));

    /* Where everything is literal, no special token is found. */
    text_spans_append(&literal, 0, valid.len);
    o.literal = &literal;
    ids.n = 0;
    BUG_IF(tokenizer_encode(t, &ids, buf_cstr(&valid), valid.len, &o, &err) != 0);
    for (size_t i = 0; i < ids.n; i++)
        BUG_IF(tokenizer_is_special(t, ids.ids[i]));
    text_spans_release(&literal);
    token_ids_release(&ids);
    buf_release(&valid);
    buf_release(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct tokenizer *demo, *stories, *tiny; /* opened once, for all inputs */
    if (demo == NULL) {
        struct err err = {0};
        BUG_IF(tokenizer_open(&demo, "tests/fixtures/models/demo-7m", &err) != 0);
        BUG_IF(tokenizer_open(&stories, "tests/fixtures/models/stories260K", &err) != 0);
        BUG_IF(tokenizer_open_memory(&tiny, small, sizeof small - 1, &err) != 0);
    }
    check(demo, data, n, true);
    check(stories, data, n, false);
    check(tiny, data, n, false);
    return 0;
}
