/* openai_format: answers as OpenAI's clients read them. See answer.h.
 *
 * Chat and completion differ in their envelopes and in how they show log-probabilities; the rest is
 * shared. Numbers of scores are printed so that they read back as the same float: tests compare
 * them for equality through HTTP. */
#include "node/answer.h"
#include "node/json_util.h"

#include <string.h>

const char *format_finish(const struct choice *c)
{
    if (c->stopped)
        return "stop";
    switch (c->finish) {
    case ENGINE_FINISH_STOP:
        return "stop";
    case ENGINE_FINISH_LENGTH:
        return "length";
    case ENGINE_FINISH_CANCELLED:
    case ENGINE_FINISH_DEADLINE:
    case ENGINE_FINISH_NOT_FINITE:
    case ENGINE_FINISH_ERROR:
        return "error";
    }
    BUG("finish %d", (int)c->finish);
}

static bool is_utf8(const char *s, size_t n)
{
    for (size_t i = 0, len; i < n; i += len) {
        len = utf8_char_len(s + i, n - i);
        if (len == 0)
            return false;
    }
    return true;
}

void format_token_text(struct buf *b, const struct tokenizer *t, int32_t id)
{
    struct buf bytes = BUF_INIT;
    tokenizer_token_bytes(t, &bytes, id);
    if (is_utf8(buf_cstr(&bytes), bytes.len)) {
        buf_append(b, buf_cstr(&bytes), bytes.len);
    } else {
        buf_append_str(b, "bytes:");
        for (size_t i = 0; i < bytes.len; i++)
            buf_appendf(b, "\\x%02x", bytes.data[i]);
    }
    buf_release(&bytes);
}

static void append_token_string(struct buf *b, const struct tokenizer *t, int32_t id)
{
    struct buf text = BUF_INIT;
    format_token_text(&text, t, id);
    json_append_string(b, buf_cstr(&text), text.len);
    buf_release(&text);
}

/* "token": ..., "logprob": ..., "bytes": [...] */
static void append_chat_token(struct buf *b, const struct tokenizer *t, int32_t id, float logprob)
{
    struct buf bytes = BUF_INIT;
    tokenizer_token_bytes(t, &bytes, id);
    buf_append_str(b, "\"token\":");
    append_token_string(b, t, id);
    buf_append_str(b, ",\"logprob\":");
    json_append_float(b, logprob);
    buf_append_str(b, ",\"bytes\":[");
    for (size_t i = 0; i < bytes.len; i++)
        buf_appendf(b, "%s%u", i > 0 ? "," : "", bytes.data[i]);
    buf_append_byte(b, ']');
    buf_release(&bytes);
}

static void append_chat_logprobs(struct buf *b, const struct tokenizer *t, const struct score *s,
                                 size_t n)
{
    buf_append_str(b, "{\"content\":[");
    for (size_t i = 0; i < n; i++) {
        buf_append_str(b, i > 0 ? ",{" : "{");
        append_chat_token(b, t, s[i].token, s[i].logprob);
        buf_append_str(b, ",\"top_logprobs\":[");
        for (int32_t k = 0; k < s[i].n_top; k++) {
            buf_append_str(b, k > 0 ? ",{" : "{");
            append_chat_token(b, t, s[i].top_ids[k], s[i].top_logprobs[k]);
            buf_append_byte(b, '}');
        }
        buf_append_str(b, "]}");
    }
    buf_append_str(b, "],\"refusal\":null}");
}

/* One member of such an object, unless its text is there; keys: the JSON strings so far, each
 * followed by a NUL. */
static void append_top(struct buf *b, struct buf *keys, const struct tokenizer *t, int32_t id,
                       float logprob)
{
    struct buf key = BUF_INIT;
    append_token_string(&key, t, id);
    bool seen = false;
    for (size_t at = 0; at < keys->len && !seen; at += strlen((char *)keys->data + at) + 1)
        seen = strcmp((char *)keys->data + at, buf_cstr(&key)) == 0;
    if (!seen) {
        buf_appendf(b, "%s%s:", keys->len > 0 ? "," : "", buf_cstr(&key));
        json_append_float(b, logprob);
        buf_append(keys, key.data, key.len + 1);
    }
    buf_release(&key);
}

/* The object of a completion's alternatives has token texts as keys: where two tokens have the same
 * text, the likelier stays. The token itself is always among them, so that there may be one more
 * than was asked for (OpenAI's reference, "logprobs"). */
static void append_top_object(struct buf *b, const struct tokenizer *t, const struct score *s)
{
    struct buf keys = BUF_INIT;
    buf_append_byte(b, '{');
    for (int32_t k = 0; k < s->n_top; k++)
        append_top(b, &keys, t, s->top_ids[k], s->top_logprobs[k]);
    append_top(b, &keys, t, s->token, s->logprob);
    buf_append_byte(b, '}');
    buf_release(&keys);
}

static const struct score *nth_score(const struct score *a, size_t n_a, const struct score *s,
                                     size_t i)
{
    return i < n_a ? &a[i] : &s[i - n_a];
}

/* Scores of two runs (the echoed prompt's, then the completion's). */
static void append_completion_logprobs(struct buf *b, const struct answer *a, const struct score *p,
                                       size_t n_p, const struct score *s, size_t n_s)
{
    const struct tokenizer *t = answer_tokenizer(a);
    size_t n = n_p + n_s;
    buf_append_str(b, "{\"tokens\":[");
    for (size_t i = 0; i < n; i++) {
        if (i > 0)
            buf_append_byte(b, ',');
        append_token_string(b, t, nth_score(p, n_p, s, i)->token);
    }
    buf_append_str(b, "],\"token_logprobs\":[");
    for (size_t i = 0; i < n; i++) {
        const struct score *one = nth_score(p, n_p, s, i);
        if (i > 0)
            buf_append_byte(b, ',');
        if (one->known)
            json_append_float(b, one->logprob);
        else
            buf_append_str(b, "null");
    }
    buf_append_str(b, "],\"top_logprobs\":");
    if (a->request.n_logprobs == 0) {
        buf_append_str(b, "null");
    } else {
        buf_append_byte(b, '[');
        for (size_t i = 0; i < n; i++) {
            const struct score *one = nth_score(p, n_p, s, i);
            if (i > 0)
                buf_append_byte(b, ',');
            if (one->known)
                append_top_object(b, t, one);
            else
                buf_append_str(b, "null");
        }
        buf_append_byte(b, ']');
    }
    buf_append_str(b, ",\"text_offset\":[");
    for (size_t i = 0; i < n; i++)
        buf_appendf(b, "%s%u", i > 0 ? "," : "", nth_score(p, n_p, s, i)->text_offset);
    buf_append_str(b, "]}");
}

static void append_ids(struct buf *b, const int32_t *ids, size_t n)
{
    buf_append_byte(b, '[');
    for (size_t i = 0; i < n; i++)
        buf_appendf(b, "%s%d", i > 0 ? "," : "", ids[i]);
    buf_append_byte(b, ']');
}

static void append_envelope(struct buf *b, const struct answer *a, bool chunk)
{
    bool chat = a->request.kind == OPENAI_CHAT;
    buf_appendf(b, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%llu,\"model\":", a->id,
                !chat   ? "text_completion"
                : chunk ? "chat.completion.chunk"
                        : "chat.completion",
                (unsigned long long)(a->created.ms / 1000));
    json_append_cstr(b, a->model_name);
    buf_appendf(b, ",\"system_fingerprint\":\"%s\"", answer_fingerprint(a));
}

/* "logprobs": of a choice's scores from `from` on, with the prompt's before them when echo is set
 * and nothing was sent yet. */
static void append_logprobs(struct buf *b, const struct answer *a, const struct choice *c,
                            size_t from)
{
    buf_append_str(b, ",\"logprobs\":");
    if (a->request.n_logprobs < 0)
        buf_append_str(b, "null");
    else if (a->request.kind == OPENAI_CHAT)
        append_chat_logprobs(b, answer_tokenizer(a), c->scores.items + from, c->scores.n - from);
    else
        append_completion_logprobs(b, a, c->prompt_scores.items, c->begun ? 0 : c->prompt_scores.n,
                                   c->scores.items + from, c->scores.n - from);
}

static void append_choice_ids(struct buf *b, const struct answer *a, const struct choice *c,
                              size_t from)
{
    if (!a->request.return_token_ids)
        return;
    buf_append_str(b, ",\"token_ids\":");
    append_ids(b, c->ids.ids + from, c->ids.n - from);
    if (!c->begun) {
        buf_append_str(b, ",\"prompt_token_ids\":");
        append_ids(b, c->prompt->ids, c->prompt->n);
    }
}

static void append_no_usage(struct buf *b, const struct answer *a)
{
    if (a->request.include_usage)
        buf_append_str(b, ",\"usage\":null");
}

void format_role_chunk(struct buf *b, const struct answer *a, const struct choice *c)
{
    append_envelope(b, a, true);
    buf_appendf(b,
                ",\"choices\":[{\"index\":%u,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                "\"logprobs\":null,\"finish_reason\":null}]",
                c->index);
    append_no_usage(b, a);
    buf_append_byte(b, '}');
}

void format_chunk(struct buf *b, const struct answer *a, const struct choice *c, const char *finish,
                  const char *receipt)
{
    bool chat = a->request.kind == OPENAI_CHAT;
    append_envelope(b, a, true);
    buf_appendf(b, ",\"choices\":[{\"index\":%u,", c->index);
    struct buf text = c->text; /* read only */
    if (chat) {
        buf_append_str(b, "\"delta\":{");
        if (finish == NULL) {
            buf_append_str(b, "\"content\":");
            json_append_string(b, buf_cstr(&text), text.len);
        } else if (!c->begun) { /* there was no text: the only one */
            buf_append_str(b, "\"role\":\"assistant\",\"content\":\"\"");
        }
        buf_append_byte(b, '}');
    } else {
        buf_append_str(b, "\"text\":");
        json_append_string(b, buf_cstr(&text), finish == NULL ? text.len : 0);
    }
    if (finish == NULL) {
        append_logprobs(b, a, c, c->n_sent);
        append_choice_ids(b, a, c, c->n_sent);
        buf_append_str(b, ",\"finish_reason\":null}]");
    } else {
        buf_appendf(b, ",\"logprobs\":null,\"finish_reason\":\"%s\"}]", finish);
    }
    append_no_usage(b, a);
    if (receipt != NULL)
        buf_appendf(b, ",\"tributary\":%s", receipt);
    buf_append_byte(b, '}');
}

/* Prompt tokens that nobody had to compute for this answer. A prompt counts once however many
 * choices it has, so what counts is the choice that found the least. */
static uint32_t tokens_cached(const struct answer *a)
{
    uint32_t total = 0;
    size_t n = a->n_choices / a->n_prompts;
    for (size_t p = 0; p < a->n_prompts; p++) {
        const struct choice *c = &a->choices[p * n];
        int32_t least = c[0].n_prompt_cached;
        for (size_t i = 1; i < n; i++)
            least = c[i].n_prompt_cached < least ? c[i].n_prompt_cached : least;
        total += (uint32_t)least;
    }
    return total;
}

static void append_usage(struct buf *b, const struct answer *a)
{
    buf_appendf(b,
                ",\"usage\":{\"prompt_tokens\":%u,\"completion_tokens\":%u,\"total_tokens\":%llu,"
                "\"prompt_tokens_details\":{\"cached_tokens\":%u}}",
                a->tokens_prompt, a->tokens_billed,
                (unsigned long long)a->tokens_prompt + a->tokens_billed, tokens_cached(a));
}

void format_usage_chunk(struct buf *b, const struct answer *a)
{
    append_envelope(b, a, true);
    buf_append_str(b, ",\"choices\":[]");
    append_usage(b, a);
    buf_append_byte(b, '}');
}

void format_stream_error(struct buf *b, const struct answer *a)
{
    api_error_append(b, &a->failure);
    if (a->receipt != NULL) {
        b->len--; /* the closing brace */
        buf_appendf(b, ",\"tributary\":%s}", a->receipt);
    }
}

void format_body(struct buf *b, const struct answer *a)
{
    append_envelope(b, a, false);
    buf_append_str(b, ",\"choices\":[");
    for (size_t i = 0; i < a->n_choices; i++) {
        const struct choice *c = &a->choices[i];
        struct buf text = c->text; /* read only */
        buf_appendf(b, "%s{\"index\":%u,", i > 0 ? "," : "", c->index);
        if (a->request.kind == OPENAI_CHAT) {
            buf_append_str(b, "\"message\":{\"role\":\"assistant\",\"content\":");
            json_append_string(b, buf_cstr(&text), text.len);
            buf_append_str(b, ",\"refusal\":null}");
        } else {
            buf_append_str(b, "\"text\":");
            json_append_string(b, buf_cstr(&text), text.len);
        }
        append_logprobs(b, a, c, 0);
        append_choice_ids(b, a, c, 0);
        buf_appendf(b, ",\"finish_reason\":\"%s\"}", format_finish(c));
    }
    buf_append_byte(b, ']');
    append_usage(b, a);
    buf_appendf(b, ",\"tributary\":%s}", a->receipt);
}
