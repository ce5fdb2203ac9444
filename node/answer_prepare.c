/* answer_prepare: what happens to a request before the service thread owns it, on an http or store
 * thread: limits are checked, the chat template is rendered, prompts
 * become token ids, and each choice gets its detokenizer and stop matcher. Then the JSON is
 * forgotten and a START message hands the answer over. See service.h for the whole.
 *
 * A long prompt takes a while to become tokens: 4 MB of text a fifth of a second, 4 MB of spaces
 * some seconds. On an http thread, that would hold up every stream of that thread, on a store
 * thread every load behind it; so what comes from a large body goes to threads of its own. */
#include "node/service_internal.h"

#include "engine/chat_template/chat_template.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/signed_request.h"
#include "node/workers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LARGE_BODY_BYTES = 32768 };

static int encode_chat(struct answer *a, struct token_ids *out)
{
    struct service *s = a->service;
    const struct chat_template *t = engine_chat_template(s->engine);
    if (t == NULL)
        return api_error_set(&a->failure, ERR_INVALID, "model",
                             "the model %s has no chat template; use /v1/completions",
                             s->base_name);
    struct buf text = BUF_INIT;
    struct text_spans literal = TEXT_SPANS_INIT;
    struct chat_template_input input = {
        .messages = a->request.messages,
        .extra = a->request.template_kwargs,
        .add_generation_prompt = true,
        .now = a->created,
    };
    int rc = chat_template_render(t, &text, &literal, &input, &a->failure.err);
    if (rc == 0)
        rc = tokenizer_encode(
            answer_tokenizer(a), out, buf_cstr(&text), text.len,
            &(struct tokenizer_encode_options){.parse_special = true, .literal = &literal},
            &a->failure.err);
    if (rc != 0)
        snprintf(a->failure.param, sizeof a->failure.param, "messages");
    text_spans_release(&literal);
    buf_release(&text);
    return rc;
}

/* The field that prompt i came in; param [32]. */
static const char *prompt_param(const struct openai_request *r, size_t i, char param[32])
{
    if (r->kind == OPENAI_CHAT)
        snprintf(param, 32, "messages");
    else if (r->n_prompts == 1)
        snprintf(param, 32, "prompt");
    else
        snprintf(param, 32, "prompt[%zu]", i);
    return param;
}

static int encode_prompt(struct answer *a, size_t i)
{
    const struct openai_request *r = &a->request;
    const struct openai_prompt *p = &r->prompts[i];
    const struct engine_model *m = engine_model(a->service->engine);
    struct token_ids *ids = &a->prompts[i];
    char param[32];
    prompt_param(r, i, param);
    if (p->text != NULL) {
        struct tokenizer_encode_options options = {.add_special = r->add_special_tokens,
                                                   .parse_special = true};
        if (tokenizer_encode(answer_tokenizer(a), ids, p->text, p->n_bytes, &options,
                             &a->failure.err) != 0) {
            snprintf(a->failure.param, sizeof a->failure.param, "%s", param);
            return -1;
        }
        return 0;
    }
    for (size_t k = 0; k < p->n_ids; k++) {
        if (p->ids[k] >= m->vocab)
            return api_error_set(&a->failure, ERR_INVALID, param,
                                 "'%s' has the token id %d; the vocabulary ends at %d", param,
                                 p->ids[k], m->vocab - 1);
        token_ids_append(ids, p->ids[k]);
    }
    return 0;
}

static int check_length(struct answer *a, size_t i)
{
    const struct openai_request *r = &a->request;
    const struct engine_model *m = engine_model(a->service->engine);
    size_t n = a->prompts[i].n, most = (size_t)m->max_context;
    char param[32];
    prompt_param(r, i, param);
    if (n == 0)
        return api_error_set(&a->failure, ERR_INVALID, param, "'%s' has no token", param);
    if (n + (r->max_tokens == 0 ? 0 : 1) <= most)
        return 0;
    api_error_set(&a->failure, ERR_INVALID, param,
                  "this model's maximum context length is %zu tokens; '%s' has %zu%s", most, param,
                  n, n == most ? ", which leaves none for an answer" : "");
    a->failure.code = "context_length_exceeded";
    return -1;
}

static int encode_prompts(struct answer *a)
{
    const struct openai_request *r = &a->request;
    a->n_prompts = r->n_prompts;
    a->prompts = xcalloc(a->n_prompts, sizeof *a->prompts);
    uint64_t total = 0;
    for (size_t i = 0; i < a->n_prompts; i++) {
        int rc = r->kind == OPENAI_CHAT ? encode_chat(a, &a->prompts[i]) : encode_prompt(a, i);
        if (rc != 0 || check_length(a, i) != 0)
            return -1;
        total += a->prompts[i].n;
    }
    if (total > UINT32_MAX)
        return api_error_set(&a->failure, ERR_TOO_LARGE, "prompt", "'prompt' has too many tokens");
    a->tokens_prompt = (uint32_t)total;
    return 0;
}

static int check_limits(struct answer *a)
{
    struct openai_request *r = &a->request;
    const struct service *s = a->service;
    const struct engine_model *m = engine_model(s->engine);
    size_t n_choices = r->n_prompts * (size_t)r->n;
    if (n_choices > (size_t)m->max_at_once) /* later is no better */
        return api_error_set(&a->failure, ERR_INVALID, r->n_prompts > 1 ? "prompt" : "n",
                             "%zu prompts of %d choices each are more than the %d sequences that a "
                             "request to this node may have (its part of engine.max_waiting)",
                             r->n_prompts, r->n, m->max_at_once);
    for (int32_t i = 0; i < r->n_bias; i++) {
        if (r->bias_ids[i] >= m->vocab)
            return api_error_set(&a->failure, ERR_INVALID, "logit_bias",
                                 "'logit_bias' names the token id %d; the vocabulary ends at %d",
                                 r->bias_ids[i], m->vocab - 1);
    }
    for (int32_t i = 0; i < r->n_stop_ids; i++) {
        if (r->stop_ids[i] >= m->vocab)
            return api_error_set(&a->failure, ERR_INVALID, "stop_token_ids",
                                 "'stop_token_ids' names the token id %d; the vocabulary ends at "
                                 "%d",
                                 r->stop_ids[i], m->vocab - 1);
    }
    if (s->opt.max_tokens > 0 && r->max_tokens > s->opt.max_tokens && r->max_tokens_param != NULL)
        return api_error_set(&a->failure, ERR_INVALID, r->max_tokens_param,
                             "'%s' is %lld; this node gives at most %lld", r->max_tokens_param,
                             (long long)r->max_tokens, (long long)s->opt.max_tokens);
    if (s->opt.max_time_ms > 0 && r->timeout_s > (double)s->opt.max_time_ms / 1000)
        return api_error_set(&a->failure, ERR_INVALID, "timeout",
                             "'timeout' is %g seconds; this node gives at most %g", r->timeout_s,
                             (double)s->opt.max_time_ms / 1000);
    if (r->max_tokens < 0)
        r->max_tokens = s->opt.default_max_tokens > 0 ? s->opt.default_max_tokens : m->max_context;
    if (s->opt.max_tokens > 0 && r->max_tokens > s->opt.max_tokens) /* nobody asked for as many */
        r->max_tokens = s->opt.max_tokens;
    return 0;
}

/* The prompt as the beginning of the choice's text, and where each of its tokens begins. */
static void echo_prompt(struct choice *c)
{
    const struct token_ids *prompt = c->prompt;
    c->prompt_scores.items = xcalloc(prompt->n, sizeof *c->prompt_scores.items);
    c->prompt_scores.n = c->prompt_scores.cap = prompt->n;
    for (size_t i = 0; i < prompt->n; i++) {
        size_t before = c->text.len;
        c->prompt_scores.items[i].token = prompt->ids[i];
        offsets_begin(c, &c->prompt_scores.items[i]);
        detokenizer_push(c->detokenizer, &c->text, prompt->ids[i]);
        offsets_settle(c, i + 1, c->prompt_scores.items[i].n_held, buf_cstr(&c->text) + before,
                       c->text.len - before);
    }
    c->n_prompt_held = detokenizer_pending_bytes(c->detokenizer);
}

static void make_choices(struct answer *a)
{
    const struct openai_request *r = &a->request;
    a->n_choices = a->n_prompts * (size_t)r->n;
    a->choices = xcalloc(a->n_choices, sizeof *a->choices);
    for (size_t i = 0; i < a->n_choices; i++) {
        struct choice *c = &a->choices[i];
        c->answer = a;
        c->index = (uint32_t)i;
        c->max_tokens = r->max_tokens;
        c->prompt = &a->prompts[i / (size_t)r->n];
        unsigned flags = r->skip_special_tokens ? DETOKENIZER_SKIP_SPECIAL : 0;
        if (r->kind == OPENAI_COMPLETION && !r->echo)
            flags |= DETOKENIZER_CONTINUES;
        c->detokenizer = detokenizer_create(answer_tokenizer(a), flags);
        if (r->n_stops > 0)
            c->stop = stop_match_create(r->stops, r->n_stops);
        if (r->echo)
            echo_prompt(c);
    }
}

/* All choices share what the fee is enough for: each the same, the first ones one more while there
 * is a rest. A choice that ends early leaves its part unspent. */
static int share_fee(struct answer *a)
{
    const struct service_customer *c = &a->customer;
    struct usage_adapter adapters[USAGE_ADAPTERS_MAX];
    char fee[AMOUNT_TEXT_BYTES];
    uint32_t most;
    if (!c->has_max_fee)
        return 0;
    answer_usage_adapters(a, adapters);
    int rc = ledger_most_tokens(a->service->ledger, &most, c->max_fee, adapters,
                                (uint32_t)a->n_adapters, a->tokens_prompt, &a->failure.err);
    if (rc == 0 && most < a->n_choices && a->request.max_tokens > 0)
        rc = err_set(&a->failure.err, ERR_PAYMENT,
                     "the Request's maxFee of %s is enough for the prompt and %u tokens, which is "
                     "not one for each of %zu choices",
                     amount_format(fee, c->max_fee), most, a->n_choices);
    for (size_t i = 0; i < a->n_choices && rc == 0; i++) {
        int64_t share = (int64_t)(most / a->n_choices + (i < most % a->n_choices));
        if (a->choices[i].max_tokens > share)
            a->choices[i].max_tokens = share;
    }
    if (rc != 0)
        snprintf(a->failure.param, sizeof a->failure.param, SIGNED_REQUEST_HEADER);
    return rc;
}

/* What was read from the body is needed no more; a client may have put megabytes into fields that
 * nobody looks at, and a request can wait for long. */
static void forget_json(struct openai_request *r)
{
    json_decref(r->root);
    r->root = r->messages = r->template_kwargs = NULL;
    r->model = NULL;
    r->n_adapters = 0;
    r->prompts = NULL;
    r->n_stops = 0;
}

static void prepare(struct answer *a)
{
    if (check_limits(a) != 0 || encode_prompts(a) != 0) {
        answer_refuse(a);
        return;
    }
    make_choices(a);
    if (share_fee(a) != 0) {
        answer_refuse(a);
        return;
    }
    forget_json(&a->request);
    http_listen(a->x, service_on_http_event, a);
    /* From here the service thread owns the answer, and the owner's reference with it. */
    service_post(a->service, MESSAGE_START, a, NULL, NULL);
}

static void prepare_large(void *service, void *answer)
{
    struct answer *a = answer;
    (void)service;
    if (a->deadline.us != 0 && a->deadline.us <= clock_monotonic_us().us) {
        api_error_set(&a->failure, ERR_TIMEOUT, NULL, "the request's time was up");
        answer_refuse(a);
    } else if (http_gone(a->x)) {
        api_error_set(&a->failure, ERR_CANCELLED, NULL, "nobody waits for the answer");
        answer_refuse(a);
    } else {
        prepare(a);
    }
}

/* Everything after the model is known. Takes the owner's reference. */
void answer_prepare(struct answer *a)
{
    if (a->n_body < LARGE_BODY_BYTES) {
        prepare(a);
    } else if (!workers_submit(a->service->preparers, prepare_large, a->service, a)) {
        api_error_set(&a->failure, ERR_BUSY, NULL, "too many large prompts at the same time");
        answer_refuse(a);
    }
}
