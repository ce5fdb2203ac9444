/* service: see service.h; the data of one answer is in answer.h.
 *
 * The service thread owns every answer from its START on, so nothing in an answer needs a lock.
 * What happens elsewhere comes to it as a message, in one inbox with one lock:
 *
 *     START      http or store thread: prompts are tokenised, submit
 *     (events)   engine thread: tokens, prompt scores, ends; copied once a step
 *     DRAINED    http thread: the socket has taken all that was queued
 *     GONE       http thread: the client vanished or was too slow
 *     COMMITTED  ledger thread: the receipt, or why there is none
 *
 * The inbox is bounded by what was admitted: a sequence can't produce more events than its tokens,
 * an answer has at most one of each other message under way. The thread takes the whole inbox at
 * once and works it off without the lock.
 *
 *     RUNNING --all sequences ended--> DRAINING --DRAINED--> COMMITTING --COMMITTED--> DONE
 *        |                            (streams only)            ^
 *        `--GONE: cancel, wait for the ends, count what was written
 *
 * Each message holds a reference, so one that is late finds a dead answer, not freed memory. */
#include "node/service.h"

#include "attribution/attribution.h"
#include "node/answer.h"
#include "node/service_internal.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/base/random.h"
#include "node/base/sha256.h"
#include "node/http.h"
#include "node/metrics.h"
#include "node/sse.h"
#include "node/workers.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the inbox ---------------------------------------------------------------------------------
 */

static void note_arrival(struct service *s)
{
    if (s->waiting_since_us == 0) {
        s->waiting_since_us = clock_monotonic_us().us;
        pthread_cond_signal(&s->arrived);
    }
}

void service_post(struct service *s, enum message_kind kind, struct answer *a, char *receipt,
                  struct err *err)
{
    atomic_fetch_add(&a->refs, 1);
    pthread_mutex_lock(&s->lock);
    struct inbox *in = &s->inbox;
    if (in->n_messages == in->cap_messages) {
        in->cap_messages = in->cap_messages == 0 ? 64 : in->cap_messages * 2;
        in->messages = xrealloc_array(in->messages, in->cap_messages, sizeof *in->messages);
    }
    in->messages[in->n_messages++] = (struct message){kind, a, receipt, err};
    note_arrival(s);
    pthread_mutex_unlock(&s->lock);
}

void service_on_events(void *service, const struct engine_event *events, size_t n)
{
    struct service *s = service;
    pthread_mutex_lock(&s->lock);
    struct inbox *in = &s->inbox;
    if (in->n_events + n > in->cap_events) {
        in->cap_events = (in->n_events + n) * 2;
        in->events = xrealloc_array(in->events, in->cap_events, sizeof *in->events);
    }
    if (n > 0)
        memcpy(in->events + in->n_events, events, n * sizeof *events);
    in->n_events += n;
    note_arrival(s);
    pthread_mutex_unlock(&s->lock);
}

void service_on_http_event(void *user, enum http_event event)
{
    struct answer *a = user;
    service_post(a->service, event == HTTP_GONE ? MESSAGE_GONE : MESSAGE_DRAINED, a, NULL, NULL);
}

/* ---- answers -----------------------------------------------------------------------------------
 */

const struct tokenizer *answer_tokenizer(const struct answer *a)
{
    return engine_tokenizer(a->service->engine);
}

void answer_drop(struct answer *a)
{
    if (atomic_fetch_sub(&a->refs, 1) != 1)
        return;
    for (size_t i = 0; i < a->n_choices; i++) {
        struct choice *c = &a->choices[i];
        token_ids_release(&c->ids);
        free(c->scores.items);
        free(c->prompt_scores.items);
        detokenizer_free(c->detokenizer);
        stop_match_free(c->stop);
        buf_release(&c->text);
    }
    for (size_t i = 0; i < a->n_prompts; i++)
        token_ids_release(&a->prompts[i]);
    for (size_t i = 0; i < a->n_models; i++)
        free(a->why_not[i]);
    openai_request_release(&a->request);
    free(a->choices);
    free(a->prompts);
    free(a->marks);
    free(a->receipt);
    free(a->model_name);
    free(a);
}

/* What the request asked for (answer_prepare holds it to the node's bound), or that bound. */
static struct monotonic_us deadline_of(const struct service *s, const struct answer *a)
{
    double timeout_us = a->request.timeout_s * 1e6;
    if (a->request.timeout_s <= 0)
        timeout_us = (double)s->opt.max_time_ms * 1e3;
    if (timeout_us <= 0)
        return (struct monotonic_us){0};
    return (struct monotonic_us){a->began.us + (uint64_t)timeout_us};
}

static struct answer *answer_create(struct service *s, struct http_exchange *x,
                                    struct openai_request *request,
                                    const struct service_customer *customer)
{
    struct answer *a = xcalloc(1, sizeof *a);
    a->service = s;
    a->refs = 1;
    a->x = x;
    http_retain(x);
    a->request = *request;
    *request = (struct openai_request){0};
    a->customer = *customer;
    a->created = clock_unix_ms();
    a->began = clock_monotonic_us();
    a->deadline = deadline_of(s, a);
    size_t n_body;
    const void *body = http_body(x, &n_body);
    a->n_body = n_body;
    a->request_hash = sha256(body, n_body);
    http_body_release(x);
    char hex[65];
    snprintf(a->id, sizeof a->id, "%s-%s", a->request.kind == OPENAI_CHAT ? "chatcmpl" : "cmpl",
             hex_encode(hex, http_request_id(x), 32));
    atomic_fetch_add(&s->n_answers, 1);
    return a;
}

void answer_release_models(struct answer *a)
{
    const struct service_resolver *r = &a->service->opt.resolver;
    for (size_t i = 0; i < a->n_models; i++) {
        if (a->models[i].handle != NULL)
            r->release(r->context, &a->models[i]);
    }
}

void answer_tell_customer(struct answer *a)
{
    if (a->customer.done != NULL)
        a->customer.done(a->customer.context, a->tokens_computed);
    a->customer.done = NULL;
}

/* The end of an answer: it owes nobody anything. The caller's reference is the last owner's. */
static void answer_end(struct answer *a)
{
    struct service *s = a->service;
    BUG_IF(a->state == ANSWER_DONE || a->n_running > 0);
    a->state = ANSWER_DONE;
    if (a->failed)
        atomic_fetch_add(&s->n_failed, 1);
    http_unlisten(a->x);
    http_drop(a->x);
    a->x = NULL;
    if (a->models_told)
        answer_release_models(a);
    answer_tell_customer(a);
    atomic_fetch_sub(&s->n_answers, 1);
    answer_drop(a);
}

/* Refuses an answer that hasn't been started. */
void answer_refuse(struct answer *a)
{
    a->tokens_prompt = 0;
    a->failed = !a->gone; /* whose client left has vanished */
    answer_tell_customer(a);
    api_error_reply(a->x, &a->failure);
    answer_end(a);
}

bool service_is_stopping(struct service *s)
{
    pthread_mutex_lock(&s->lock);
    bool stopping = s->stopping || !s->started;
    pthread_mutex_unlock(&s->lock);
    return stopping;
}

void answer_shutting_down(struct answer *a)
{
    api_error_set(&a->failure, ERR_BUSY, NULL, "the node is shutting down");
    a->failure.retry_after_s = 5;
}

void service_answer(struct service *s, struct http_exchange *x, struct openai_request *request,
                    const struct service_customer *customer)
{
    struct answer *a = answer_create(s, x, request, customer);
    if (service_is_stopping(s)) {
        answer_shutting_down(a);
        answer_refuse(a);
        return;
    }
    answer_resolve(a);
}

/* ---- the service thread: running ---------------------------------------------------------------
 */

static void cancel_sequences(struct answer *a)
{
    if (a->cancelled)
        return;
    a->cancelled = true;
    for (size_t i = 0; i < a->n_choices; i++) {
        if (a->choices[i].running)
            engine_cancel(a->service->engine, a->choices[i].sequence);
    }
}

void answer_finish(struct answer *a)
{
    if (a->prev != NULL)
        a->prev->next = a->next;
    else
        a->service->answers = a->next;
    if (a->next != NULL)
        a->next->prev = a->prev;
    answer_end(a);
}

static void begin_stream(struct answer *a)
{
    if (!a->streaming) {
        a->streaming = true;
        http_stream_begin(a->x, 200, "text/event-stream; charset=utf-8");
    }
}

void answer_send_event(struct answer *a, const struct buf *json, bool urgent)
{
    struct buf event = BUF_INIT;
    sse_append_event(&event, (const char *)json->data, json->len);
    if (!a->gone && !http_stream_write(a->x, event.data, event.len, urgent))
        a->gone = true;
    a->n_queued += event.len;
    buf_release(&event);
}

/* Sends what the choice has gathered: text, or ids and scores that have no text of their own. */
static void emit(struct choice *c)
{
    struct answer *a = c->answer;
    begin_stream(a);
    struct buf json = BUF_INIT;
    if (a->request.kind == OPENAI_CHAT && !c->begun) {
        format_role_chunk(&json, a, c);
        answer_send_event(a, &json, false);
        buf_reset(&json);
    }
    format_chunk(&json, a, c, NULL, NULL);
    answer_send_event(a, &json, !c->begun);
    buf_release(&json);
    buf_reset(&c->text);
    c->begun = true;
    c->n_sent = c->ids.n;
    if (a->n_marks == a->cap_marks) {
        a->cap_marks = a->cap_marks == 0 ? 32 : a->cap_marks * 2;
        a->marks = xrealloc_array(a->marks, a->cap_marks, sizeof *a->marks);
    }
    a->marks[a->n_marks++] = (struct mark){a->n_queued, c->index, (uint32_t)c->ids.n};
    if (a->gone)
        cancel_sequences(a);
}

/* n_held: as for offsets_settle. */
static void take_text(struct choice *c, size_t n_held, const char *piece, size_t n)
{
    offsets_settle(c, c->prompt_scores.n + c->scores.n, n_held, piece, n);
    size_t of_prompt = offsets_of_prompt(c, n_held, piece, n); /* no stop is looked for there */
    c->n_prompt_held = 0;
    buf_append(&c->text, piece, of_prompt);
    piece += of_prompt;
    n -= of_prompt;
    if (c->stop == NULL) {
        buf_append(&c->text, piece, n);
    } else if (stop_match_push(c->stop, &c->text, piece, n)) {
        c->stopped = true;
        engine_cancel(c->answer->service->engine, c->sequence);
    }
}

/* No score may still get another text_offset. In the middle of an answer none does when there is
 * text to send; but an echoed prompt is text at once, while its last bytes may wait for more. */
static bool may_emit(const struct choice *c)
{
    bool settled = c->first_open == c->prompt_scores.n + c->scores.n;
    return c->text.len > 0 && (c->begun || c->scores.n == 0 || settled);
}

static struct score copy_score(struct answer *a, const struct engine_event *ev)
{
    struct score s = {.token = ev->token, .logprob = ev->logprob, .known = true};
    int32_t n = ev->n_top < a->request.n_logprobs ? ev->n_top : a->request.n_logprobs;
    if (n > 0) {
        int32_t *ids = arena_array(&a->request.arena, (size_t)n, sizeof *ids);
        float *logprobs = arena_array(&a->request.arena, (size_t)n, sizeof *logprobs);
        memcpy(ids, ev->top_ids, (size_t)n * sizeof *ids);
        memcpy(logprobs, ev->top_logprobs, (size_t)n * sizeof *logprobs);
        s.n_top = n;
        s.top_ids = ids;
        s.top_logprobs = logprobs;
    }
    return s;
}

static void on_token(struct choice *c, const struct engine_event *ev)
{
    struct answer *a = c->answer;
    if (c->stopped || a->gone || a->failed)
        return;
    if (a->first_token.us == 0) {
        a->first_token = clock_monotonic_us();
        metrics_observe(a->service->opt.metrics, METRICS_FIRST_TOKEN_SECONDS,
                        clock_elapsed_us(a->began, a->first_token));
    }
    token_ids_append(&c->ids, ev->token);
    if (a->request.n_logprobs >= 0) {
        struct scores *s = &c->scores;
        if (s->n == s->cap) {
            s->cap = s->cap == 0 ? 32 : s->cap * 2;
            s->items = xrealloc_array(s->items, s->cap, sizeof *s->items);
        }
        s->items[s->n] = copy_score(a, ev);
        offsets_begin(c, &s->items[s->n++]);
    }
    if (!ev->is_eos) {
        struct buf piece = BUF_INIT;
        size_t n_held = detokenizer_pending_bytes(c->detokenizer);
        detokenizer_push(c->detokenizer, &piece, ev->token);
        if (piece.len > 0)
            take_text(c, n_held, (const char *)piece.data, piece.len);
        buf_release(&piece);
    }
    if (a->request.stream && may_emit(c))
        emit(c);
}

static void on_prompt_score(struct choice *c, const struct engine_event *ev)
{
    if (ev->position < 0 || (size_t)ev->position >= c->prompt_scores.n)
        return;
    struct score *s = &c->prompt_scores.items[ev->position];
    struct score was = *s;
    *s = copy_score(c->answer, ev);
    s->text_offset = was.text_offset;
    s->n_held = was.n_held;
}

/* See the head of service.h. */
static uint64_t tokens_computed(const struct answer *a)
{
    bool broken_off = a->gone || a->failed;
    uint64_t n = 0;
    for (size_t i = 0; i < a->n_choices; i++)
        n += a->choices[i].ids.n;
    if (a->failed && (a->failure.err.code == ERR_INTERNAL || a->failure.err.code == ERR_BUSY))
        return 0; /* the node's fault */
    return broken_off && n == 0 ? 0 : a->tokens_prompt + n;
}

static void all_finished(struct answer *a)
{
    a->tokens_computed = tokens_computed(a);
    if (a->gone) {
        answer_commit(a);
    } else if (a->failed && !a->streaming) {
        a->tokens_prompt = 0;
        answer_tell_customer(a);
        api_error_reply(a->x, &a->failure);
        answer_finish(a);
    } else if (a->request.stream) {
        begin_stream(a);
        a->state = ANSWER_DRAINING;
        if (http_stream_drained(a->x))
            answer_commit(a);
    } else {
        answer_commit(a);
    }
}

unsigned service_retry_after_s(struct service *s)
{
    struct engine_stats e;
    engine_stats(s->engine, &e);
    return pace_retry_after_s(atomic_load(&s->us_per_end), (size_t)e.n_waiting);
}

static void not_finite(struct answer *a)
{
    log_warn("service", "model %s: its logits are not finite", a->model_name);
    if (a->n_adapters > 0)
        api_error_set(&a->failure, ERR_INVALID, a->is_ensemble ? "adapters" : "model",
                      "%s takes the base model out of its numbers: there are no finite logits",
                      a->model_name);
    else
        api_error_set(&a->failure, ERR_INTERNAL, NULL, "the model has no finite logits");
}

static void on_finished(struct choice *c, const struct engine_event *ev)
{
    struct answer *a = c->answer;
    BUG_IF(!c->running);
    c->running = false;
    c->finish = ev->finish;
    c->n_prompt_cached = ev->n_prompt_cached;
    a->n_running--;
    pace_end(&a->service->pace, clock_monotonic_us().us);
    atomic_store(&a->service->us_per_end, pace_us_per_end(&a->service->pace));
    enum engine_finish finish = ev->finish;
    bool wanted = finish == ENGINE_FINISH_STOP || finish == ENGINE_FINISH_LENGTH || c->stopped;
    if (!wanted && !a->gone && !a->failed) {
        a->failed = true;
        if (finish == ENGINE_FINISH_DEADLINE)
            api_error_set(&a->failure, ERR_TIMEOUT, NULL, "the request's time was up");
        else if (finish == ENGINE_FINISH_NOT_FINITE)
            not_finite(a);
        else
            api_error_set(&a->failure, ERR_INTERNAL, NULL,
                          "the engine could not finish the answer");
        cancel_sequences(a);
    }
    if (wanted && !a->gone && !a->failed) {
        if (!c->stopped) {
            struct buf piece = BUF_INIT;
            size_t n_held = detokenizer_pending_bytes(c->detokenizer);
            detokenizer_flush(c->detokenizer, &piece);
            if (piece.len > 0)
                take_text(c, n_held, (const char *)piece.data, piece.len);
            if (!c->stopped && c->stop != NULL)
                stop_match_flush(c->stop, &c->text);
            buf_release(&piece);
        }
        /* An echoed prompt may have no text either. */
        bool loose = (c->n_sent < c->ids.n || !c->begun) &&
                     (a->request.return_token_ids || a->request.n_logprobs >= 0);
        if (a->request.stream && (c->text.len > 0 || loose))
            emit(c);
    }
    if (a->n_running == 0)
        all_finished(a);
}

static void on_event(const struct engine_event *ev)
{
    struct choice *c = ev->user;
    switch (ev->kind) {
    case ENGINE_EVENT_TOKEN:
        on_token(c, ev);
        return;
    case ENGINE_EVENT_PROMPT:
        on_prompt_score(c, ev);
        return;
    case ENGINE_EVENT_FINISHED:
        on_finished(c, ev);
        return;
    }
    BUG("engine event %d", (int)ev->kind);
}

/* Choices of one request differ by their seed; each prompt's first has the one that was asked for,
 * as it would have in a request of its own. Where none was, all differ: a prompt that is given
 * twice is asked twice. */
static uint64_t seed_of(const struct openai_request *r, uint32_t choice, uint64_t random)
{
    uint64_t seed = r->seed_given ? r->seed : random;
    uint32_t nth = r->seed_given ? choice % (uint32_t)r->n : choice;
    return seed + UINT64_C(0x9E3779B97F4A7C15) * nth;
}

static int submit(struct answer *a, struct choice *c, uint64_t random)
{
    const struct openai_request *r = &a->request;
    struct engine_request e = {
        .prompt = c->prompt->ids,
        .n_prompt = (int32_t)c->prompt->n,
        .max_tokens = (int32_t)c->max_tokens,
        .ignore_eos = r->ignore_eos,
        .prompt_logprobs = r->echo && (r->n_logprobs >= 0 || r->max_tokens == 0),
        .stop_ids = r->stop_ids,
        .n_stop_ids = r->n_stop_ids,
        .n_adapters = (int32_t)a->n_adapters,
        .sampling =
            {
                .temperature = r->temperature,
                .top_k = r->top_k,
                .top_p = r->top_p > 0 ? r->top_p : 1e-9F, /* the engine's 0 means "off" */
                .min_p = r->min_p,
                .repetition_penalty = r->repetition_penalty,
                .frequency_penalty = r->frequency_penalty,
                .presence_penalty = r->presence_penalty,
                .seed = seed_of(r, c->index, random),
                .n_top_logprobs = r->n_logprobs,
                .bias_ids = r->bias_ids,
                .bias_values = r->bias_values,
                .n_bias = r->n_bias,
            },
        .prefix_salt = r->cache_salt,
        .n_prefix_salt = r->cache_salt != NULL ? strlen(r->cache_salt) : 0,
        .deadline = a->deadline,
        .payer = a->customer.payer,
        .payer_weight = a->customer.payer_weight,
        .priority = a->customer.priority,
        .user = c,
    };
    for (size_t i = 0; i < a->n_adapters; i++) {
        e.adapters[i].content = a->models[i].content;
        e.adapters[i].weight = a->weights[i];
    }
    int32_t room = engine_model(a->service->engine)->max_context - e.n_prompt;
    if (e.max_tokens > room)
        e.max_tokens = room;
    if (e.prompt_logprobs && e.sampling.n_top_logprobs < 0)
        e.sampling.n_top_logprobs = 0;
    return engine_submit(a->service->engine, &e, &c->sequence, &a->failure.err);
}

static void start(struct answer *a)
{
    struct service *s = a->service;
    a->next = s->answers;
    if (a->next != NULL)
        a->next->prev = a;
    s->answers = a;
    uint64_t random = random_u64();
    if (http_gone(a->x))
        a->gone = true; /* it may have been told before anybody listened */
    if (s->cancelled_all) {
        a->failed = true;
        answer_shutting_down(a);
    }
    for (size_t i = 0; i < a->n_choices && !a->failed && !a->gone; i++) {
        if (submit(a, &a->choices[i], random) == 0) {
            a->choices[i].running = true;
            a->n_running++;
            pace_begin(&s->pace, clock_monotonic_us().us);
        } else {
            a->failed = true;
            if (a->failure.err.code == ERR_BUSY)
                a->failure.retry_after_s = service_retry_after_s(s);
            if (a->failure.err.code == ERR_TOO_LARGE) { /* one alone was refused when it loaded */
                err_wrap(&a->failure.err, "%s", a->model_name);
                snprintf(a->failure.param, sizeof a->failure.param, "adapters");
            }
        }
    }
    if (a->failed)
        cancel_sequences(a);
    if (a->n_running == 0)
        all_finished(a);
}

/* ---- the service thread: its loop --------------------------------------------------------------
 */

static void on_gone(struct answer *a)
{
    if (a->state == ANSWER_DONE || a->gone)
        return;
    a->gone = true;
    if (a->state == ANSWER_RUNNING)
        cancel_sequences(a);
    else if (a->state == ANSWER_DRAINING)
        answer_commit(a);
}

static void on_message(struct message *m)
{
    struct answer *a = m->answer;
    switch (m->kind) {
    case MESSAGE_START:
        start(a);
        break;
    case MESSAGE_GONE:
        on_gone(a);
        break;
    case MESSAGE_DRAINED:
        if (a->state == ANSWER_DRAINING)
            answer_commit(a);
        break;
    case MESSAGE_COMMITTED:
        answer_committed(a, m->receipt, m->err);
        free(m->err);
        answer_drop(a); /* the callback's reference */
        break;
    }
    answer_drop(a); /* the message's */
}

static void cancel_all(struct service *s)
{
    s->cancelled_all = true;
    for (struct answer *a = s->answers, *next; a != NULL; a = next) {
        next = a->next;
        if (a->state == ANSWER_RUNNING) {
            if (!a->failed && !a->gone) {
                a->failed = true;
                answer_shutting_down(a);
            }
            cancel_sequences(a);
        } else if (a->state == ANSWER_DRAINING) {
            on_gone(a);
        }
    }
}

/* On the monotonic clock. */
static void wait_until(struct service *s, uint64_t us)
{
    struct timespec until = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
    pthread_cond_timedwait(&s->arrived, &s->lock, &until);
}

static bool is_empty(const struct inbox *in)
{
    return in->n_messages == 0 && in->n_events == 0;
}

/* Under the lock: until there is work, those that wait for adapters are to be looked at, or the
 * service stops. While it stops, answers may also end on other threads, which don't wake this one:
 * it looks every few milliseconds. */
static void wait_for_work(struct service *s)
{
    enum { LOOK_AGAIN_US = 5000 };
    while (is_empty(&s->inbox) && !s->stopping) {
        uint64_t next = answers_next_deadline(s);
        if (next == 0)
            pthread_cond_wait(&s->arrived, &s->lock);
        else if (clock_monotonic_us().us < next)
            wait_until(s, next);
        else
            return;
    }
    if (is_empty(&s->inbox) && s->cancelled_all)
        wait_until(s, clock_monotonic_us().us + LOOK_AGAIN_US);
}

static void *service_main(void *context)
{
    struct service *s = context;
    struct inbox work = {0};
    for (;;) {
        pthread_mutex_lock(&s->lock);
        wait_for_work(s);
        struct inbox taken = s->inbox;
        work.n_messages = work.n_events = 0;
        s->inbox = work;
        work = taken;
        s->waiting_since_us = 0;
        bool stopping = s->stopping;
        pthread_mutex_unlock(&s->lock);
        atomic_store(&s->working_since_us, clock_monotonic_us().us);
        if (stopping && !s->cancelled_all)
            cancel_all(s);
        for (size_t i = 0; i < work.n_messages; i++)
            on_message(&work.messages[i]);
        for (size_t i = 0; i < work.n_events; i++)
            on_event(&work.events[i]);
        answers_expire(s);
        atomic_store(&s->working_since_us, 0);
        if (stopping && atomic_load(&s->n_answers) == 0 && is_empty(&work))
            break;
    }
    free(work.messages);
    free(work.events);
    return NULL;
}

/* ---- life --------------------------------------------------------------------------------------
 */

/* Large prompts at once, and how many may wait: as many requests as a node answers by default. */
enum { PREPARERS = 2, PREPARERS_QUEUE = 1024 };

struct service *service_create(const struct service_options *options)
{
    struct service *s = xcalloc(1, sizeof *s);
    s->opt = *options;
    s->base_name = xstrdup(options->base_name);
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&s->arrived, &clock);
    pthread_condattr_destroy(&clock);
    return s;
}

int service_start(struct service *s, struct engine *engine, struct ledger *ledger, struct err *err)
{
    s->engine = engine;
    s->ledger = ledger;
    service_fingerprint_make(s);
    if (workers_create(&s->preparers, PREPARERS, PREPARERS_QUEUE, err) != 0)
        return -1;
    if (pthread_create(&s->thread, NULL, service_main, s) != 0)
        return err_set(err, ERR_NO_MEMORY, "cannot start the service thread");
    pthread_mutex_lock(&s->lock);
    s->started = true;
    pthread_mutex_unlock(&s->lock);
    return 0;
}

void service_stop(struct service *s)
{
    pthread_mutex_lock(&s->lock);
    bool running = s->started && !s->stopping;
    s->stopping = true;
    pthread_cond_signal(&s->arrived);
    pthread_mutex_unlock(&s->lock);
    if (!running)
        return;
    /* A request that passed is_stopping before may still be on an http thread, or wait for an
     * adapter: n_answers counts it, and the thread doesn't end before that is zero. */
    pthread_join(s->thread, NULL);
    workers_stop(s->preparers); /* nothing is left for them */
}

void service_free(struct service *s)
{
    if (s == NULL)
        return;
    BUG_IF(s->started && !s->stopping);
    workers_stop(s->preparers);
    workers_free(s->preparers);
    free(s->base_name);
    free(s->inbox.messages);
    free(s->inbox.events);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->arrived);
    free(s);
}

void service_stats(struct service *s, struct service_stats *out)
{
    *out = (struct service_stats){
        .n_answers = atomic_load(&s->n_answers),
        .n_loading = atomic_load(&s->n_loading),
        .n_receipts = atomic_load(&s->n_receipts),
        .n_failed = atomic_load(&s->n_failed),
        .n_vanished = atomic_load(&s->n_vanished),
    };
    pthread_mutex_lock(&s->lock);
    uint64_t waiting = s->waiting_since_us;
    pthread_mutex_unlock(&s->lock);
    uint64_t working = atomic_load(&s->working_since_us), now = clock_monotonic_us().us;
    uint64_t since = waiting == 0 ? working : working == 0 || waiting < working ? waiting : working;
    if (since != 0 && now > since)
        out->stalled_ms = (now - since) / 1000;
}
