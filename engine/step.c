/* step: see step.h.
 *
 * Decode steps. Nearly all steps of a busy engine are alike: each sequence computes one row and
 * draws one token by its parameters alone. Only the number of rows differs, and some hundred calls
 * of operators take the host longer than small models take the device. So such a step is filled up
 * with rows that nobody looks at, to the next of a few sizes (buckets), and there is a recording
 * (ops.h; a CUDA graph) for each size, which reads all that changes from memory: the batch, the
 * segments and their number, the adapters' tables, the sampling parameters. Two recordings of a
 * size serve any number and mix of adapters: one where they are little beside the base model, one
 * where they are heavy (ops.h). A row's bits don't depend on its neighbours (ops.h), so padding and
 * replaying change nothing but time.
 *
 *   bucket 8     token    position  block table          logits   draw
 *   row 0        617      41        [3, 9, 12]           yes      by its parameters
 *   row 1        22       7         [5]                  yes      by its parameters
 *   ...
 *   row 6, 7     0        0         [pad_block]          yes      greedy, dropped
 *
 * Memory of a step. The batch's host memory, the parameters and the results lie at addresses that
 * a recording knows, so each step object has recordings of its own. The device's twin of the batch
 * is one for both steps: the copy of the second waits in the stream for the first to end.
 *
 * Tokens. Every step leaves the tokens it draws where the batch has its tokens on the device, in
 * the order of its draws. When all its sequences drew and the next step is a decode step over the
 * same sequences, that is exactly the next step's tokens in the order of its rows, because its
 * sequences keep their order. So the next step can be enqueued before the host has seen them: it
 * uploads everything but the tokens. Padding drew no tokens if the step before had none, or less
 * of it; then its tokens are uploaded. Otherwise all tokens are, in front of the replay. Where a
 * sequence has ended the next step has a hole (batch.h), so that this holds behind an end, too. */
#include "engine/step.h"

#include "node/base/err.h"
#include "node/base/log.h"

static const int BUCKETS[STEP_BUCKETS_MAX] = {
    1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, STEP_DECODE_ROWS_MAX};

/* The sizes up to max_seqs, and max_seqs itself. */
static void choose_buckets(struct stepper *t, int max_seqs)
{
    int most = max_seqs < STEP_DECODE_ROWS_MAX ? max_seqs : STEP_DECODE_ROWS_MAX;
    while (t->n_buckets < STEP_BUCKETS_MAX && BUCKETS[t->n_buckets] < most) {
        t->buckets[t->n_buckets] = BUCKETS[t->n_buckets];
        t->n_buckets++;
    }
    t->buckets[t->n_buckets++] = most;
}

size_t stepper_bytes(int max_rows, int max_seqs, int max_blocks)
{
    return step_batch_bytes(max_rows, max_seqs, max_blocks);
}

int stepper_create(struct stepper *t, const struct ops *ops, struct backend *be,
                   struct forward *forward, struct lora_pool *lora, int max_rows, int max_seqs,
                   int max_blocks, int32_t pad_block, bool pads, struct err *err)
{
    *t = (struct stepper){.ops = ops, .be = be, .forward = forward, .lora = lora, .pads = pads};
    choose_buckets(t, max_seqs);
    int rc = ops->mem_alloc(be, &t->device, stepper_bytes(max_rows, max_seqs, max_blocks), err);
    for (int i = 0; rc == 0 && i < 2; i++) {
        struct step *s = &t->steps[i];
        if (step_batch_create(&s->batch, ops, be, t->device, max_rows, max_seqs, max_blocks,
                              pad_block, err) != 0 ||
            sampler_create(&s->sampler, ops, be, max_seqs, max_rows, err) != 0)
            rc = -1;
    }
    if (rc != 0)
        stepper_release(t);
    return rc;
}

void stepper_release(struct stepper *t)
{
    if (t->ops == NULL)
        return;
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < t->n_buckets; k++)
            for (int heavy = 0; heavy < 2; heavy++)
                t->ops->recording_free(t->be, t->steps[i].recordings[k][heavy]);
        step_batch_release(&t->steps[i].batch);
        sampler_release(&t->steps[i].sampler);
    }
    t->ops->mem_free(t->be, t->device);
    *t = (struct stepper){0};
}

/* ---- enqueuing --------------------------------------------------------------------------- */

static void compute(struct stepper *t, struct step *s, bool with_history)
{
    forward_run(t->forward, &s->batch, t->lora);
    sampler_run(&s->sampler, t->forward, &s->batch, with_history);
}

/* The smallest bucket for n rows; stepper_is_decode said that there is one. */
static int bucket_for(const struct stepper *t, int n)
{
    int i = 0;
    while (t->buckets[i] < n)
        i++;
    return i;
}

bool stepper_is_decode(const struct stepper *t, const struct batch_seq *seqs, int n)
{
    if (n > t->buckets[t->n_buckets - 1])
        return false;
    int n_segs = 0; /* a recorded step has at most one a row (ops.h); ensembles may have more */
    for (int i = 0; i < n; i++) {
        if (seqs[i].sequence == NULL)
            continue;
        if (n > LORA_ALONE_ROWS && seqs[i].sequence->n_adapters > 1)
            return false;
        n_segs += seqs[i].sequence->n_adapters;
        /* The last known token's row scores nothing: there is no token behind it. */
        if (seqs[i].n_rows != 1 || !batch_seq_draws(&seqs[i]) ||
            sampler_needs_history(seqs[i].sequence))
            return false;
    }
    return n_segs <= n;
}

void stepper_enqueue(struct stepper *t, struct step *s, int n_seqs, bool follows)
{
    bool decode = stepper_is_decode(t, s->batch.seqs, n_seqs), padded = decode && t->pads;
    int bucket = padded ? bucket_for(t, n_seqs) : 0;
    BUG_IF(follows && !decode);
    int n_padded = padded ? t->buckets[bucket] : 0;
    s->enqueued = clock_monotonic_us();
    step_batch_build(&s->batch, n_seqs, n_padded, t->lora, follows);
    if (follows && n_padded > t->n_padded)
        step_batch_upload_padding(&s->batch);
    t->n_padded = n_padded;
    sampler_prepare(&s->sampler, &s->batch);
    struct recording *recording = padded ? s->recordings[bucket][s->batch.lora.heavy] : NULL;
    if (recording != NULL && s->sampler.hook == NULL) {
        if (!follows)
            step_batch_upload_tokens(&s->batch);
        if (s->batch.has_lora) /* a recording can't wait for adapters on their way */
            lora_pool_need(t->lora, t->forward->config->n_layers - 1);
        t->ops->replay(t->be, recording);
        t->n_replayed++;
    } else {
        if (follows)
            step_batch_upload_rest(&s->batch);
        else
            step_batch_upload(&s->batch);
        compute(t, s, !padded);
    }
    s->mark = t->ops->mark(t->be);
}

int stepper_wait(struct stepper *t, const struct step *s, struct err *err)
{
    return t->ops->wait(t->be, s->mark, err);
}

void stepper_set_hook(struct stepper *t, logits_hook *hook, void *context)
{
    for (int i = 0; i < 2; i++) {
        t->steps[i].sampler.hook = hook;
        t->steps[i].sampler.hook_context = context;
    }
}

/* ---- recording --------------------------------------------------------------------------- */

/* A decode step of padding alone, with adapters to be looked for. */
static void build_empty(struct stepper *t, struct step *s, int n_rows)
{
    step_batch_build(&s->batch, 0, n_rows, t->lora, false);
    sampler_prepare(&s->sampler, &s->batch);
    s->batch.has_lora = true;
}

/* Runs one first: what the backend does at the first use of a kernel (loading it, raising its
 * limits) can't be done while recording. A segment under an empty slot makes it use all kernels. */
static int warm_up(struct stepper *t, struct step *s, int n_rows, bool heavy, struct err *err)
{
    build_empty(t, s, n_rows);
    s->batch.lora.heavy = heavy;
    s->batch.segs[0] = (struct lora_seg){.row_begin = 0, .n_rows = 1, .slot = 0, .weight = 1};
    s->batch.lora.n_segs = *s->batch.n_segs = 1;
    step_batch_upload(&s->batch);
    compute(t, s, false);
    return t->ops->sync(t->be, err);
}

static void record(struct stepper *t, struct step *s, int bucket, bool heavy)
{
    struct err err = {0};
    int n_rows = t->buckets[bucket];
    build_empty(t, s, n_rows);
    s->batch.lora.n_segs = n_rows > LORA_ALONE_ROWS && !heavy ? LORA_SEGS_FEW : n_rows;
    s->batch.lora.heavy = heavy;
    if (!t->ops->record_begin(t->be))
        return;
    step_batch_upload_rest(&s->batch);
    compute(t, s, false);
    if (t->ops->record_end(t->be, &s->recordings[bucket][heavy], &err) != 0)
        log_warn("engine", "steps of %d rows run unrecorded: %s", n_rows, err.message);
    else
        t->recorded = true;
}

/* Does this backend record? Asked with something small. */
static bool can_record(struct stepper *t)
{
    struct recording *recording = NULL;
    build_empty(t, &t->steps[0], t->buckets[0]);
    if (!t->ops->record_begin(t->be))
        return false;
    step_batch_upload_tokens(&t->steps[0].batch);
    bool can = t->ops->record_end(t->be, &recording, NULL) == 0;
    t->ops->recording_free(t->be, recording);
    return can;
}

int stepper_record(struct stepper *t, struct err *err)
{
    if (!can_record(t))
        return 0;
    struct monotonic_us begin = clock_monotonic_us();
    for (int k = t->n_buckets - 1; k >= 0; k--) {
        for (int heavy = 0; heavy < 2; heavy++) {
            if (warm_up(t, &t->steps[0], t->buckets[k], heavy, err) != 0)
                return err_wrap(err, "a first step of %d rows", t->buckets[k]);
            for (int i = 0; i < 2; i++)
                record(t, &t->steps[i], k, heavy);
        }
    }
    t->pads |= t->recorded;
    log_info("engine", "recorded decode steps of up to %d rows in %llu ms",
             t->buckets[t->n_buckets - 1],
             (unsigned long long)(clock_elapsed_us(begin, clock_monotonic_us()) / 1000));
    return t->ops->sync(t->be, err);
}
