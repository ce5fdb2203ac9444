/* A tokenizer.json from a stranger: it is refused or it works, and what opens encodes and decodes.
 */
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"
#include "node/base/err.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const char text[] =
        "Hello  <s>w\xC3\xB6rld</s> 'S 123\n\n\xE2\x96\x81x \xF0\x9F\x98\x80 e\xCC\x81";
    struct tokenizer *t;
    struct err err = {0};
    if (tokenizer_open_memory(&t, data, n, &err) != 0) {
        BUG_IF(t != NULL || err.code == ERR_OK || err.message[0] == '\0');
        return 0;
    }
    for (int special = 0; special < 2; special++) {
        struct token_ids ids = TOKEN_IDS_INIT;
        struct tokenizer_encode_options o = {.add_special = special, .parse_special = special};
        if (tokenizer_encode(t, &ids, text, sizeof text - 1, &o, &err) == 0) {
            struct buf whole = BUF_INIT, streamed = BUF_INIT;
            struct detokenizer *d = detokenizer_create(t, special ? DETOKENIZER_SKIP_SPECIAL : 0);
            for (size_t i = 0; i < ids.n; i++) {
                BUG_IF(tokenizer_token(t, ids.ids[i], NULL) == NULL);
                detokenizer_push(d, &streamed, ids.ids[i]);
                BUG_IF(!utf8_is_valid(streamed.data, streamed.len));
            }
            detokenizer_flush(d, &streamed);
            detokenizer_free(d);
            tokenizer_decode(t, &whole, ids.ids, ids.n, special);
            BUG_IF(whole.len != streamed.len ||
                   (whole.len > 0 && memcmp(whole.data, streamed.data, whole.len) != 0));
            buf_release(&whole);
            buf_release(&streamed);
        }
        token_ids_release(&ids);
    }
    tokenizer_close(t);
    return 0;
}
