/* engine: the door's other side; see engine.h. What callers' threads do is in this file, what the
 * engine thread does in engine_run.c; they meet under one lock:
 *
 *   caller                            engine thread
 *   engine_submit  ──intake──────────> waiting ──plan──> running ──> FINISHED
 *   engine_cancel  ──flag, wake──────> looked at between steps
 *   engine_adapter_load ─> loaded_adapters (a lock of its own) <── pins at admission
 *   engine_adapter_warm ─order, waits─> done between steps ──> obeyed
 *   engine_stats   <──copy, once a step
 *
 * The lock is held for moments only, never during a step or a callback; so submit, cancel and stats
 * return at once whatever the device does. All checks that can fail happen in engine_submit, in the
 * caller's thread: an accepted request can no longer be wrong, only unlucky (cancelled, too late).
 *
 * The backend is opened, used and closed by the engine thread, because a device's context may
 * belong to the thread that made it. engine_open waits for the outcome. */
#include "engine/internal.h"

#include "engine/chat_template/chat_template.h"
#include "engine/sequence_blocks.h"
#include "engine/tokenizer/tokenizer.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/base/random.h"
#include "node/base/sha256.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    STOP_IDS_MAX = 1024,
    BIAS_MAX = 1 << 20,
    MAX_SEQS_LIMIT = 4096,
    MAX_ROWS_LIMIT = 1 << 16,
    PRIORITY_MAX = 100,
    CREDIT_STEPS = 4, /* of a payer that comes back (payers.h), full steps */
};

/* ---- open and close ---------------------------------------------------------------------- */

static int check_options(struct engine_options *o, struct err *err)
{
    if (o->backend == NULL)
        o->backend = "cpu";
    bool wide = strcmp(o->backend, "cuda") == 0; /* wants many rows to be busy */
    if (o->adapter_host_bytes == 0)
        o->adapter_host_bytes = (size_t)2 << 30;
    if (o->max_rows == 0)
        o->max_rows = wide ? 2048 : 256;
    if (o->max_seqs == 0)
        o->max_seqs = wide ? 256 : 64;
    if (fpclassify(o->gpu_memory) == FP_ZERO)
        o->gpu_memory = 0.9f;
    if (o->max_waiting == 0)
        o->max_waiting = 1024;
    if (o->max_seqs < 1 || o->max_seqs > MAX_SEQS_LIMIT || o->max_rows < 1 ||
        o->max_rows > MAX_ROWS_LIMIT || o->max_waiting < 1 || o->max_waiting > 1 << 20 ||
        o->max_context < 0 || o->n_threads < 0 || !(o->gpu_memory > 0 && o->gpu_memory <= 1))
        return err_set(err, ERR_INVALID,
                       "engine options: max_seqs %d, max_rows %d, max_waiting %d, "
                       "max_context %d, n_threads %d or gpu_memory %g is out of range",
                       o->max_seqs, o->max_rows, o->max_waiting, o->max_context, o->n_threads,
                       (double)o->gpu_memory);
    if (o->weights != NULL && strcmp(o->weights, "file") != 0 && strcmp(o->weights, "int8") != 0)
        return err_set(err, ERR_INVALID,
                       "engine options: weights = \"%s\" (--weights) is neither file nor int8",
                       o->weights);
    /* Every decoding sequence has its row in every step. */
    if (o->max_seqs > o->max_rows)
        o->max_seqs = o->max_rows;
    return 0;
}

struct model_id int8_model_id(struct model_id base)
{
    struct buf text = BUF_INIT;
    struct model_id id;
    char hex[65];
    buf_appendf(&text, "%s  int8, a scale an output column\n", hex_encode(hex, base.bytes, 32));
    struct sha256_digest digest = sha256(text.data, text.len);
    buf_release(&text);
    memcpy(id.bytes, digest.bytes, 32);
    return id;
}

static void describe(struct engine *e)
{
    bool int8 = engine_has_int8(&e->options);
    const struct model_config *c = &e->model->config;
    struct engine_model *m = &e->public_model;
    *m = (struct engine_model){.id = model_identity(e->model), /* hashed beside the upload */
                               .vocab = c->vocab,
                               .hidden = c->hidden,
                               .n_layers = c->n_layers,
                               .n_heads = c->n_heads,
                               .n_kv_heads = c->n_kv_heads,
                               .head_dim = c->head_dim,
                               .ffn = c->ffn,
                               .max_context = e->max_context,
                               .max_at_once = payers_share(e->options.max_waiting),
                               .n_params = e->model->n_params,
                               .bos = c->bos,
                               .n_eos = c->n_eos};
    m->served_id = int8 ? int8_model_id(m->id) : m->id;
    m->weights = int8 ? "int8" : "file";
    m->adapter_dtype = e->held == LORA_HELD_BF16 ? "bf16" : "file";
    snprintf(m->name, sizeof m->name, "%s", e->model->name);
    snprintf(m->backend, sizeof m->backend, "%s", e->backend_text);
    memcpy(m->eos, c->eos, sizeof m->eos);
}

static void engine_free(struct engine *e)
{
    loaded_adapters_free(e->adapters);
    host_memory_free(e->host);
    if (e->tokenizer != NULL)
        tokenizer_close(e->tokenizer);
    if (e->chat_template != NULL)
        chat_template_free(e->chat_template);
    model_close(e->model);
    pthread_cond_destroy(&e->wake);
    pthread_cond_destroy(&e->opened);
    pthread_cond_destroy(&e->obeyed);
    pthread_mutex_destroy(&e->lock);
    free(e->intake);
    payers_free(e->payers);
    free(e);
}

static struct engine *engine_new(struct model *model, const struct engine_options *options)
{
    struct engine *e = xcalloc(1, sizeof *e);
    e->options = *options;
    e->model = model;
    random_bytes(e->prefix_secret.bytes, sizeof e->prefix_secret.bytes);
    e->max_context = model->config.max_context;
    if (options->max_context > 0 && options->max_context < e->max_context)
        e->max_context = options->max_context;
    pthread_mutex_init(&e->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&e->wake, &attr);
    pthread_cond_init(&e->opened, &attr);
    pthread_cond_init(&e->obeyed, &attr);
    pthread_condattr_destroy(&attr);
    return e;
}

/* Starts the thread and waits until the device is ready or failed. Frees e when it failed. */
static int engine_start(struct engine **out, struct engine *e, struct err *err)
{
    int rc = 0;
    e->adapters = loaded_adapters_create(e->options.adapter_host_bytes);
    const struct engine_options *o = &e->options;
    e->intake = xcalloc((size_t)o->max_waiting, sizeof(struct sequence *));
    e->payers = payers_create(o->max_waiting + o->max_seqs, CREDIT_STEPS * o->max_rows);
    e->next_id = 1;
    int rc_thread = pthread_create(&e->thread, NULL, engine_thread, e);
    if (rc_thread != 0) {
        engine_free(e);
        return err_set_errno(err, rc_thread, "cannot start the engine thread");
    }
    pthread_mutex_lock(&e->lock);
    while (e->state == ENGINE_OPENING)
        pthread_cond_wait(&e->opened, &e->lock);
    if (e->state == ENGINE_FAILED)
        rc = err_set(err, e->failure.code, "%s", e->failure.message);
    int n_blocks = e->stats.n_blocks;
    pthread_mutex_unlock(&e->lock);
    if (rc != 0) {
        pthread_join(e->thread, NULL);
        engine_free(e);
        return -1;
    }
    describe(e);
    log_info("engine", "%s on %s: %d blocks of KV cache, %zu MiB for adapters (%s), context %d",
             e->public_model.name, e->backend_text, n_blocks, e->adapter_pool_bytes >> 20,
             e->held == LORA_HELD_BF16 ? "held as bf16" : "as in their files", e->max_context);
    *out = e;
    return 0;
}

int engine_open_model(struct engine **out, struct model *model,
                      const struct engine_options *options, struct err *err)
{
    struct engine_options o = *options;
    if (check_options(&o, err) != 0) {
        model_close(model);
        return -1;
    }
    return engine_start(out, engine_new(model, &o), err);
}

int engine_open(struct engine **out, const struct engine_options *options, struct err *err)
{
    struct engine_options o = *options;
    struct model *model = NULL;
    BUG_IF(options->model_dir == NULL || options->on_events == NULL);
    if (check_options(&o, err) != 0 || model_open(&model, options->model_dir, err) != 0)
        return -1;
    struct engine *e = engine_new(model, &o);
    char *path = xasprintf("%s/tokenizer.json", options->model_dir);
    int rc = 0;
    if (access(path, F_OK) == 0)
        rc = tokenizer_open(&e->tokenizer, path, err);
    free(path);
    if (rc == 0)
        rc = chat_template_open(&e->chat_template, options->model_dir, err);
    /* Ids beyond the model's are refused where they are submitted. */
    if (rc == 0 && e->tokenizer != NULL && tokenizer_vocab_size(e->tokenizer) > model->config.vocab)
        log_warn("engine", "%s: tokenizer.json has ids up to %d, the model knows %d",
                 options->model_dir, tokenizer_vocab_size(e->tokenizer) - 1, model->config.vocab);
    if (rc != 0) {
        engine_free(e);
        return -1;
    }
    e->options.model_dir = NULL; /* the caller's memory */
    return engine_start(out, e, err);
}

void engine_close(struct engine *e)
{
    if (e == NULL)
        return;
    pthread_mutex_lock(&e->lock);
    if (e->state == ENGINE_OPEN)
        e->state = ENGINE_CLOSING;
    else
        BUG_IF(e->state != ENGINE_FAILED);
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    BUG_IF(e->live != NULL || e->n_intake != 0);
    engine_free(e);
}

const struct engine_model *engine_model(const struct engine *e)
{
    return &e->public_model;
}

const struct tokenizer *engine_tokenizer(const struct engine *e)
{
    return e->tokenizer;
}

const struct chat_template *engine_chat_template(const struct engine *e)
{
    return e->chat_template;
}

/* ---- adapters ---------------------------------------------------------------------------- */

/* On failure adapter stays the caller's. */
static int add(struct engine *e, struct lora_adapter *adapter, struct err *err)
{
    if (adapter->n_bytes > e->adapter_pool_bytes)
        return err_set(err, ERR_TOO_LARGE,
                       "adapter needs %zu bytes, the device has %zu for adapters", adapter->n_bytes,
                       e->adapter_pool_bytes);
    if (adapter->home == NULL && !host_memory_has(e->host, adapter->data) &&
        lora_move(adapter, e->host, err) != 0)
        return -1;
    return loaded_adapters_add(e->adapters, adapter, err);
}

int engine_adapter_add(struct engine *e, struct lora_adapter *adapter, struct err *err)
{
    int rc = add(e, adapter, err);
    if (rc != 0)
        lora_close(adapter);
    return rc;
}

int engine_adapter_load_when(struct engine *e, const char *dir, bool (*again)(void *context),
                             void *context, struct engine_adapter *out, struct err *err)
{
    struct lora_adapter *a = NULL;
    struct engine_adapter info = {0};
    struct err why = {0};
    int rc;
    do {
        rc = a != NULL ? 0
                       : lora_open(&a, &e->model->config, dir, e->held,
                                   e->options.adapter_host_bytes, e->host, &why);
        if (rc == 0) {
            info = (struct engine_adapter){.content = a->content,
                                           .rank_max = a->rank_max,
                                           .n_sites = a->n_sites,
                                           .n_bytes = a->n_bytes};
            memcpy(info.targets, a->targets, sizeof info.targets);
            rc = add(e, a, &why);
        }
    } while (rc != 0 && (why.code == ERR_BUSY || why.code == ERR_NO_MEMORY) && again(context));
    if (rc != 0) {
        lora_close(a);
        if (err != NULL)
            *err = why;
    } else if (out != NULL) {
        *out = info;
    }
    return rc;
}

static bool never(void *context)
{
    (void)context;
    return false;
}

int engine_adapter_load(struct engine *e, const char *dir, struct engine_adapter *out,
                        struct err *err)
{
    return engine_adapter_load_when(e, dir, never, NULL, out, err);
}

int engine_adapter_drop(struct engine *e, const struct content_digest *content, struct err *err)
{
    return loaded_adapters_drop(e->adapters, content, err);
}

static int not_loaded(const struct content_digest *content, struct err *err)
{
    char hex[65];
    return err_set(err, ERR_NOT_FOUND, "adapter %s is not loaded",
                   hex_encode(hex, content->bytes, 32));
}

int engine_adapter_residency(struct engine *e, const struct content_digest *content,
                             struct engine_residency *out, struct err *err)
{
    struct loaded_adapter *a = loaded_adapters_use(e->adapters, content);
    struct lora_place place;
    if (a == NULL)
        return not_loaded(content, err);
    pthread_mutex_lock(&e->lock);
    bool open = e->state == ENGINE_OPEN;
    if (open) /* the pool lives while the state is so and the lock is held */
        lora_pool_look(e->lora, content, &place);
    pthread_mutex_unlock(&e->lock);
    *out = (struct engine_residency){.n_bytes = a->lora->n_bytes,
                                     .rank_max = a->lora->rank_max,
                                     .on_device = open && place.is_here,
                                     .kept = open && place.is_kept,
                                     .n_uses = atomic_load(&a->n_uses),
                                     .n_uploads = atomic_load(&a->n_uploads)};
    out->n_users = loaded_adapters_unuse(e->adapters, a);
    return 0;
}

/* Gives an order and waits until it is done. */
static int order(struct engine *e, enum engine_order_kind kind,
                 const struct content_digest *content, struct err *err)
{
    struct loaded_adapter *a = NULL;
    if (kind != ORDER_EVICT && (a = loaded_adapters_use(e->adapters, content)) == NULL)
        return not_loaded(content, err);
    struct engine_order *o = xcalloc(1, sizeof *o);
    *o = (struct engine_order){.kind = kind, .content = *content, .adapter = a};
    pthread_mutex_lock(&e->lock);
    if (e->state == ENGINE_OPEN) {
        o->next = e->orders;
        e->orders = o;
        pthread_cond_signal(&e->wake);
        while (!o->done)
            pthread_cond_wait(&e->obeyed, &e->lock);
    } else if (e->state == ENGINE_FAILED) {
        o->rc = err_set(&o->err, ERR_INTERNAL, "the device failed: %s", e->failure.message);
    } else {
        o->rc = err_set(&o->err, ERR_CANCELLED, "the engine is closing");
    }
    pthread_mutex_unlock(&e->lock);
    if (a != NULL)
        loaded_adapters_unuse(e->adapters, a);
    int rc = o->rc;
    if (rc != 0 && err != NULL)
        *err = o->err;
    free(o);
    return rc;
}

int engine_adapter_warm(struct engine *e, const struct content_digest *content, struct err *err)
{
    return order(e, ORDER_WARM, content, err);
}

int engine_adapter_keep(struct engine *e, const struct content_digest *content, bool keep,
                        struct err *err)
{
    return order(e, keep ? ORDER_KEEP : ORDER_LET_GO, content, err);
}

int engine_adapter_evict(struct engine *e, const struct content_digest *content, struct err *err)
{
    return order(e, ORDER_EVICT, content, err);
}

/* ---- requests ---------------------------------------------------------------------------- */

static int check_sampling(const struct engine *e, const struct engine_sampling *s, struct err *err)
{
    const struct {
        const char *name;
        float value, min, max;
    } numbers[] = {
        {"temperature", s->temperature, 0, 1e6f},
        {"top_p", s->top_p, 0, 1},
        {"min_p", s->min_p, 0, 1},
        {"repetition_penalty", s->repetition_penalty, 0, 1e6f},
        {"frequency_penalty", s->frequency_penalty, -1e6f, 1e6f},
        {"presence_penalty", s->presence_penalty, -1e6f, 1e6f},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (!(numbers[i].value >= numbers[i].min && numbers[i].value <= numbers[i].max))
            return err_set(err, ERR_INVALID, "%s is %g, must be %g to %g", numbers[i].name,
                           (double)numbers[i].value, (double)numbers[i].min,
                           (double)numbers[i].max);
    if (s->top_k < 0)
        return err_set(err, ERR_INVALID, "top_k is %d, must not be negative", s->top_k);
    if (s->n_top_logprobs < -1 || s->n_top_logprobs > ENGINE_TOP_LOGPROBS_MAX)
        return err_set(err, ERR_INVALID,
                       "%d top log-probabilities are asked for, at most %d are given",
                       s->n_top_logprobs, ENGINE_TOP_LOGPROBS_MAX);
    if (s->n_bias < 0 || s->n_bias > BIAS_MAX)
        return err_set(err, ERR_INVALID, "logit bias of %d tokens", s->n_bias);
    for (int i = 0; i < s->n_bias; i++) {
        if (s->bias_ids[i] < 0 || s->bias_ids[i] >= e->model->config.vocab)
            return err_set(err, ERR_INVALID, "logit bias: token %d is not in the vocabulary of %d",
                           s->bias_ids[i], e->model->config.vocab);
        if (isnan(s->bias_values[i]) || s->bias_values[i] > 1e30f)
            return err_set(err, ERR_INVALID, "logit bias of token %d is no number to add",
                           s->bias_ids[i]);
    }
    return 0;
}

static int check_request(const struct engine *e, const struct engine_request *r, struct err *err)
{
    int vocab = e->model->config.vocab;
    if (r->n_prompt < 1)
        return err_set(err, ERR_INVALID, "the prompt is empty");
    if (r->max_tokens < 0)
        return err_set(err, ERR_INVALID, "max_tokens is %d", r->max_tokens);
    if (r->n_prompt > e->max_context || (r->n_prompt == e->max_context && r->max_tokens > 0))
        return err_set(err, ERR_INVALID,
                       "the prompt has %d tokens, the context of %d leaves no room for an answer",
                       r->n_prompt, e->max_context);
    for (int i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] < 0 || r->prompt[i] >= vocab)
            return err_set(err, ERR_INVALID,
                           "token %d at position %d is not in the vocabulary of %d", r->prompt[i],
                           i, vocab);
    if (r->n_stop_ids < 0 || r->n_stop_ids > STOP_IDS_MAX)
        return err_set(err, ERR_INVALID, "%d stop ids, at most %d are taken", r->n_stop_ids,
                       STOP_IDS_MAX);
    if (r->n_adapters < 0 || r->n_adapters > ENGINE_ADAPTERS_MAX)
        return err_set(err, ERR_INVALID, "%d adapters, at most %d are taken", r->n_adapters,
                       ENGINE_ADAPTERS_MAX);
    if (fpclassify(r->payer_weight) != FP_ZERO &&
        !(r->payer_weight >= 0.001f && r->payer_weight <= 1000))
        return err_set(err, ERR_INVALID, "the payer's weight is %g, must be 0.001 to 1000",
                       (double)r->payer_weight);
    if (r->priority < -PRIORITY_MAX || r->priority > PRIORITY_MAX)
        return err_set(err, ERR_INVALID, "the priority is %d, must be -%d to %d", r->priority,
                       PRIORITY_MAX, PRIORITY_MAX);
    for (int i = 0; i < r->n_adapters; i++) {
        if (!isfinite(r->adapters[i].weight) || fabsf(r->adapters[i].weight) > 1e6f)
            return err_set(err, ERR_INVALID, "adapter %d has weight %g", i,
                           (double)r->adapters[i].weight);
        for (int j = 0; j < i; j++)
            if (DIGEST_EQ(r->adapters[i].content, r->adapters[j].content))
                return err_set(err, ERR_INVALID, "adapter %d is named twice", i);
    }
    return check_sampling(e, &r->sampling, err);
}

void sequence_free(struct engine *e, struct sequence *s)
{
    for (int i = 0; i < s->n_adapters; i++)
        loaded_adapters_unuse(e->adapters, s->adapters[i]);
    free(s->tokens);
    free(s->stop_ids);
    free(s->bias_ids);
    free(s->bias_values);
    sequence_blocks_release(s);
    free(s);
}

/* Finds the adapters and sees that the device can hold them together. */
static int use_adapters(struct engine *e, struct sequence *s, const struct engine_request *r,
                        struct err *err)
{
    size_t n_bytes = 0;
    int ranks = 0;
    for (int i = 0; i < r->n_adapters; i++) {
        struct loaded_adapter *a = loaded_adapters_use(e->adapters, &r->adapters[i].content);
        if (a == NULL)
            return not_loaded(&r->adapters[i].content, err);
        if (fpclassify(r->adapters[i].weight) == FP_ZERO) {
            loaded_adapters_unuse(e->adapters, a); /* adds nothing */
            continue;
        }
        s->weights[s->n_adapters] = r->adapters[i].weight;
        s->adapters[s->n_adapters++] = a;
        n_bytes += a->lora->n_bytes;
        ranks += a->lora->rank_sum_max;
    }
    if (n_bytes > e->adapter_pool_bytes)
        return err_set(err, ERR_TOO_LARGE,
                       "its adapters need %zu bytes together, the device has %zu for adapters",
                       n_bytes, e->adapter_pool_bytes);
    if (ranks > LORA_RANK_SUM_MAX)
        return err_set(err, ERR_INVALID,
                       "the ranks of its adapters sum to %d, at most %d are taken", ranks,
                       LORA_RANK_SUM_MAX);
    return 0;
}

static void *copy_array(const void *from, int n, size_t size)
{
    if (n == 0)
        return NULL;
    void *to = xcalloc((size_t)n, size);
    memcpy(to, from, (size_t)n * size);
    return to;
}

static int sequence_create(struct sequence **out, struct engine *e, const struct engine_request *r,
                           struct err *err)
{
    struct sequence *s = xcalloc(1, sizeof *s);
    if (use_adapters(e, s, r, err) != 0) {
        sequence_free(e, s);
        return -1;
    }
    s->user = r->user;
    s->n_prompt = s->n_tokens = r->n_prompt;
    s->n_total_max = r->max_tokens > e->max_context - r->n_prompt ? e->max_context
                                                                  : r->n_prompt + r->max_tokens;
    s->tokens = xcalloc((size_t)s->n_total_max, sizeof *s->tokens);
    memcpy(s->tokens, r->prompt, (size_t)r->n_prompt * sizeof *s->tokens);
    struct prefix_secret secret = e->prefix_secret;
    if (r->n_prefix_salt > 0)
        secret = prefix_secret_salted(&secret, r->prefix_salt, r->n_prefix_salt);
    sequence_blocks_init(s, &secret, !e->options.no_prefix_cache && !r->no_prefix_cache);
    s->stop_ids = copy_array(r->stop_ids, r->n_stop_ids, sizeof *s->stop_ids);
    s->n_stop_ids = r->n_stop_ids;
    s->payer_weight = fpclassify(r->payer_weight) == FP_ZERO ? 1 : r->payer_weight;
    s->priority = r->priority;
    s->ignore_eos = r->ignore_eos;
    s->prompt_logprobs = r->prompt_logprobs;
    s->sampling = r->sampling;
    s->bias_ids = copy_array(r->sampling.bias_ids, r->sampling.n_bias, sizeof *s->bias_ids);
    s->bias_values = copy_array(r->sampling.bias_values, r->sampling.n_bias,
                                sizeof *s->bias_values);
    s->sampling.bias_ids = s->bias_ids;
    s->sampling.bias_values = s->bias_values;
    s->deadline = r->deadline;
    *out = s;
    return 0;
}

/* A place in the queue, if there is one for this payer; under the lock. */
static int enqueue(struct engine *e, struct sequence *s, uint64_t payer, struct err *err)
{
    int n_free = e->options.max_waiting - e->n_queued;
    if (n_free <= 0)
        return err_set(err, ERR_BUSY, "%d requests are waiting already", e->n_queued);
    s->payer = payers_hold(e->payers, payer);
    if (!payers_may_wait(e->payers, s->payer, n_free)) {
        payers_drop(e->payers, s->payer);
        return err_set(err, ERR_BUSY, "%d requests are waiting, most of them this payer's",
                       e->n_queued);
    }
    payers_wait(e->payers, s->payer);
    s->queued = true;
    e->n_queued++;
    return 0;
}

int engine_submit(struct engine *e, const struct engine_request *request, uint64_t *id,
                  struct err *err)
{
    struct sequence *s;
    if (check_request(e, request, err) != 0 || sequence_create(&s, e, request, err) != 0)
        return -1;
    int rc = 0;
    pthread_mutex_lock(&e->lock);
    if (e->state == ENGINE_FAILED) {
        rc = err_set(err, ERR_INTERNAL, "the device failed: %s", e->failure.message);
    } else if (e->state != ENGINE_OPEN) {
        rc = err_set(err, ERR_CANCELLED, "the engine is closing");
    } else {
        rc = enqueue(e, s, request->payer, err);
    }
    if (rc == 0) {
        s->id = e->next_id++;
        if (id != NULL)
            *id = s->id;
        s->next = e->live;
        if (e->live != NULL)
            e->live->previous = s;
        e->live = s;
        e->intake[e->n_intake++] = s;
        pthread_cond_signal(&e->wake);
    }
    pthread_mutex_unlock(&e->lock);
    if (rc != 0)
        sequence_free(e, s);
    return rc;
}

void engine_cancel(struct engine *e, uint64_t id)
{
    pthread_mutex_lock(&e->lock);
    for (struct sequence *s = e->live; s != NULL; s = s->next) {
        if (s->id == id) {
            atomic_store(&s->cancelled, true);
            pthread_cond_signal(&e->wake);
            break;
        }
    }
    pthread_mutex_unlock(&e->lock);
}

void engine_stats(const struct engine *e, struct engine_stats *out)
{
    struct engine *mutable = (struct engine *)(uintptr_t)e; /* the lock is no part of its value */
    pthread_mutex_lock(&mutable->lock);
    *out = e->stats;
    out->n_waiting = e->n_queued > out->n_waiting ? e->n_queued : out->n_waiting;
    pthread_mutex_unlock(&mutable->lock);
    out->n_adapters_loaded = loaded_adapters_n_loaded(e->adapters);
    host_memory_stats(e->host, &out->adapter_host_bytes_used, &out->adapter_host_bytes_held);
    out->adapter_host_bytes_total = e->options.adapter_host_bytes;
}

/* ---- tests ------------------------------------------------------------------------------- */

void engine_set_step_hook(struct engine *e, engine_step_hook *hook, void *context)
{
    pthread_mutex_lock(&e->lock);
    e->step_hook = hook;
    e->step_context = context;
    pthread_mutex_unlock(&e->lock);
}

void engine_set_logits_hook(struct engine *e, logits_hook *hook, void *context)
{
    pthread_mutex_lock(&e->lock);
    stepper_set_hook(&e->stepper, hook, context);
    pthread_mutex_unlock(&e->lock);
}

void engine_swap_adapters(struct engine *e, const struct content_digest *a,
                          const struct content_digest *b)
{
    pthread_mutex_lock(&e->lock);
    int32_t slot_a = lora_pool_slot(e->lora, a), slot_b = lora_pool_slot(e->lora, b);
    BUG_IF(slot_a < 0 || slot_b < 0);
    lora_pool_swap_entries(e->lora, slot_a, slot_b);
    pthread_mutex_unlock(&e->lock);
}
