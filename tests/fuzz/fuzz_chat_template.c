/* A chat template from a stranger, and a request to render with it: the input is a template, a zero
 * byte, and the messages as JSON (a fixed conversation when there are none). */
#include "engine/chat_template/chat_template.h"
#include "engine/tokenizer/utf8.h"
#include "node/base/err.h"

#include <jansson.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const char conversation[] =
    "[{\"role\":\"system\",\"content\":\"S\"},{\"role\":\"user\",\"content\":\"a <b> \\u00e9\"},"
    "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"function\":{\"name\":\"f\","
    "\"arguments\":{\"x\":[1,2.5,true]}}}]},{\"role\":\"tool\",\"content\":\"{}\"}]";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    const uint8_t *zero = n == 0 ? NULL : memchr(data, 0, n);
    size_t n_source = zero == NULL ? n : (size_t)(zero - data);
    struct chat_template *t;
    struct err err = {0};
    if (chat_template_parse(&t, (const char *)data, n_source, &err) != 0) {
        BUG_IF(t != NULL || err.message[0] == '\0');
        return 0;
    }
    json_t *messages = NULL;
    if (zero != NULL)
        messages = json_loadb((const char *)zero + 1, n - n_source - 1, JSON_ALLOW_NUL, NULL);
    if (messages == NULL)
        messages = json_loads(conversation, 0, NULL);
    json_t *extra = json_pack("{s:b,s:s}", "enable_thinking", 0, "x", "<x>");
    struct chat_template_input in = {.messages = messages,
                                     .tools = json_is_array(messages) ? messages : NULL,
                                     .extra = extra,
                                     .add_generation_prompt = true,
                                     .bos_token = "<s>",
                                     .eos_token = "</s>",
                                     .now = {1752148800000}};
    struct buf out = BUF_INIT;
    struct text_spans literal = TEXT_SPANS_INIT;
    if (chat_template_render(t, &out, &literal, &in, &err) == 0) {
        BUG_IF(!utf8_is_valid(out.data, out.len));
        BUG_IF(literal.n > 0 && literal.spans[literal.n - 1].end > out.len);
    } else {
        BUG_IF(err.message[0] == '\0' || out.len > 0 || literal.n > 0);
    }
    text_spans_release(&literal);
    buf_release(&out);
    json_decref(messages);
    json_decref(extra);
    chat_template_free(t);
    return 0;
}
