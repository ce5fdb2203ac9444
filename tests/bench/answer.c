/* answer: see answer.h. An event with tokens is small and there are tens of thousands a second, so
 * their ids are read in place: `"token_ids":[` can't be part of a string in JSON, where its quotes
 * would have a backslash before them. Whatever else matters is parsed whole, and a count that went
 * wrong shows against the receipt. */
#include "tests/bench/answer.h"

#include "node/base/err.h"
#include "node/base/hex.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { EVENT_MAX = 1 << 20 };

static const char IDS[] = "\"token_ids\":[", DATA[] = "data: ";

void answer_init(struct answer *a)
{
    struct buf event = a->event;
    buf_reset(&event);
    *a = (struct answer){.event = event};
    sha256_init(&a->ids);
}

void answer_release(struct answer *a)
{
    buf_release(&a->event);
}

static void fail(struct answer *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void fail(struct answer *a, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(a->wrong, sizeof a->wrong, fmt, args);
    va_end(args);
    a->failed = true;
}

static int read_ids(struct answer *a, const char *at)
{
    int n = 0;
    while (*at != ']') {
        char *end;
        unsigned long id = strtoul(at, &end, 10);
        if (end == at || id > UINT32_MAX || (*end != ',' && *end != ']')) {
            fail(a, "an event's token_ids are no list of ids");
            return n;
        }
        uint8_t bytes[4] = {(uint8_t)id, (uint8_t)(id >> 8), (uint8_t)(id >> 16),
                            (uint8_t)(id >> 24)};
        sha256_update(&a->ids, bytes, sizeof bytes);
        n++;
        at = *end == ',' ? end + 1 : end;
    }
    a->n_tokens += n;
    return n;
}

static void read_receipt(struct answer *a, const json_t *event)
{
    const json_t *receipt = json_object_get(json_object_get(event, "tributary"), "receipt");
    const char *request = json_string_value(json_object_get(receipt, "requestHash"));
    const char *response = json_string_value(json_object_get(receipt, "responseHash"));
    a->receipt_prompt = json_integer_value(json_object_get(receipt, "promptTokens"));
    a->receipt_completion = json_integer_value(json_object_get(receipt, "completionTokens"));
    if (request == NULL || response == NULL) {
        fail(a, "the receipt has no hashes");
        return;
    }
    snprintf(a->request_hash, sizeof a->request_hash, "%s", request);
    snprintf(a->response_hash, sizeof a->response_hash, "%s", response);
    a->n_receipts++;
}

static void read_other(struct answer *a, const char *text)
{
    json_error_t where;
    json_t *event = json_loads(text, 0, &where);
    if (event == NULL) {
        fail(a, "an event is no JSON: %.80s", text);
        return;
    }
    const json_t *error = json_object_get(event, "error");
    if (error != NULL) {
        const char *message = json_string_value(json_object_get(error, "message"));
        fail(a, "an error event: %s", message != NULL ? message : "without a message");
    } else if (json_object_get(event, "tributary") != NULL) {
        read_receipt(a, event);
    }
    json_decref(event);
}

static int read_event(struct answer *a)
{
    const char *text = buf_cstr(&a->event);
    if (strncmp(text, DATA, sizeof DATA - 1) != 0)
        return 0; /* a comment */
    text += sizeof DATA - 1;
    if (strcmp(text, "[DONE]") == 0) {
        a->is_done = true;
        return 0;
    }
    if (a->is_done || a->n_receipts > 0) {
        fail(a, "an event behind the receipt: %.80s", text);
        return 0;
    }
    const char *ids = strstr(text, IDS);
    int n = ids != NULL ? read_ids(a, ids + sizeof IDS - 1) : 0;
    if (n == 0 && !a->failed)
        read_other(a, text);
    return n;
}

int answer_feed(struct answer *a, const void *bytes, size_t n)
{
    const char *at = bytes, *end = at + n;
    int n_tokens = 0;
    while (at < end && !a->failed) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        const char *stop = newline != NULL ? newline : end;
        buf_append(&a->event, at, (size_t)(stop - at));
        if (a->event.len > EVENT_MAX)
            fail(a, "an event of more than %d bytes", EVENT_MAX);
        at = stop;
        if (newline == NULL)
            break;
        at++;
        if (a->event.len > 0) /* our events are one line each; the empty one ends it */
            n_tokens += read_event(a);
        buf_reset(&a->event);
    }
    return n_tokens;
}

static bool is_hash(const char *text, struct sha256_digest digest)
{
    char hex[67];
    return strcmp(text, hex_encode_0x(hex, digest.bytes, sizeof digest.bytes)) == 0;
}

int answer_check(const struct answer *a, int n_prompt, int n_generate, const void *body,
                 size_t n_body, struct err *err)
{
    struct sha256 ids = a->ids;
    if (a->failed)
        return err_set(err, ERR_CORRUPT, "%s", a->wrong);
    if (a->n_tokens != n_generate)
        return err_set(err, ERR_CORRUPT, "%d tokens of %d", a->n_tokens, n_generate);
    if (a->n_receipts != 1 || !a->is_done || a->event.len > 0)
        return err_set(err, ERR_CORRUPT, "%d receipts, %s", a->n_receipts,
                       !a->is_done ? "and no [DONE]" : "and half an event at the end");
    if (a->receipt_prompt != n_prompt || a->receipt_completion != n_generate)
        return err_set(err, ERR_CORRUPT,
                       "the receipt is over %" PRId64 " prompt and %" PRId64
                       " completion tokens, not %d and %d",
                       a->receipt_prompt, a->receipt_completion, n_prompt, n_generate);
    if (!is_hash(a->request_hash, sha256(body, n_body)))
        return err_set(err, ERR_CORRUPT, "the receipt's requestHash is not that of the request");
    if (!is_hash(a->response_hash, sha256_final(&ids)))
        return err_set(err, ERR_CORRUPT, "the receipt's responseHash is not that of the tokens");
    return 0;
}
