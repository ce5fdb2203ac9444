/* sampler: see sampler.h. Logits are large (vocabulary times rows), so they are made and used up in
 * pieces of max_logit_rows; operators take effect in order, so the pieces may share one buffer. */
#include "engine/sampler.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdlib.h>

int sampler_create(struct sampler *s, const struct ops *ops, struct backend *be, int max_seqs,
                   int max_rows, struct err *err)
{
    *s = (struct sampler){.ops = ops, .be = be};
    size_t seqs = (size_t)max_seqs, rows = (size_t)max_rows;
    if (ops->host_alloc(be, &s->host,
                        seqs * sizeof *s->params + (seqs + rows) * sizeof *s->draws +
                            2 * rows * sizeof(int32_t),
                        err) != 0)
        return err_wrap(err, "results of %d rows", max_rows);
    s->params = s->host; /* first: it has the widest members */
    s->draws = (struct sample_result *)(s->params + seqs);
    s->scores = s->draws + seqs;
    s->score_tokens = (int32_t *)(s->scores + rows);
    s->score_n_top = s->score_tokens + rows;
    s->history = xcalloc(seqs, sizeof *s->history);
    return 0;
}

void sampler_release(struct sampler *s)
{
    if (s->host != NULL)
        s->ops->host_free(s->be, s->host);
    free(s->history);
    *s = (struct sampler){0};
}

static int32_t n_top_of(const struct sequence *q)
{
    return q->sampling.n_top_logprobs > 0 ? q->sampling.n_top_logprobs : 0;
}

static bool has_penalty(const struct engine_sampling *a)
{
    float repetition = a->repetition_penalty;
    return (repetition > 0 && (repetition < 1 || repetition > 1)) || a->frequency_penalty < 0 ||
           a->frequency_penalty > 0 || a->presence_penalty < 0 || a->presence_penalty > 0;
}

bool sampler_needs_history(const struct sequence *q)
{
    return q->sampling.n_bias > 0 || has_penalty(&q->sampling);
}

static void prepare_draw(struct sample_params *p, struct sample_history *h,
                         const struct batch_seq *s)
{
    const struct sequence *q = s->sequence;
    const struct engine_sampling *a = &q->sampling;
    *p = (struct sample_params){
        .temperature = a->temperature,
        .top_k = a->top_k,
        .top_p = a->top_p > 0 ? a->top_p : 1,
        .min_p = a->min_p,
        .repetition_penalty = a->repetition_penalty > 0 ? a->repetition_penalty : 1,
        .frequency_penalty = a->frequency_penalty,
        .presence_penalty = a->presence_penalty,
        .n_top = n_top_of(q),
        .seed = a->seed,
        .position = (uint64_t)s->n_tokens,
    };
    *h = (struct sample_history){.n_prompt = q->n_prompt,
                                 .n_tokens = s->n_tokens,
                                 .bias_ids = q->bias_ids,
                                 .bias_values = q->bias_values,
                                 .n_bias = a->n_bias};
    if (has_penalty(a)) {
        BUG_IF(s->n_tokens != q->n_tokens); /* its last token isn't known yet */
        h->tokens = q->tokens;
    }
}

void sampler_prepare(struct sampler *s, const struct step_batch *b)
{
    for (int i = 0; i < b->n_draw_rows; i++) {
        const struct batch_seq *q = i < b->n_draw ? &b->seqs[b->draw_seq[i]] : NULL;
        if (q != NULL && q->sequence != NULL) {
            prepare_draw(&s->params[i], &s->history[i], q);
            continue;
        }
        /* Padding or a hole: greedy, for nobody. */
        s->params[i] = (struct sample_params){.top_p = 1, .repetition_penalty = 1};
        s->history[i] = (struct sample_history){0};
    }
    for (int i = 0; i < b->n_score; i++) {
        const struct sequence *q = b->seqs[b->score_seq[i]].sequence;
        s->score_tokens[i] = q->tokens[b->position[b->logit_rows[b->n_draw_rows + i]] + 1];
        s->score_n_top[i] = n_top_of(q);
    }
}

static void show_logits(struct sampler *s, struct forward *f, const struct step_batch *b, int first,
                        int n)
{
    size_t vocab = (size_t)f->config->vocab;
    float *logits = xcalloc((size_t)n * vocab, sizeof *logits);
    f->ops->download(f->be, logits, f->logits, (size_t)n * vocab * sizeof *logits);
    BUG_IF(f->ops->sync(f->be, NULL) != 0);
    for (int i = 0; i < n && first + i < b->n_draw; i++) {
        const struct batch_seq *q = &b->seqs[b->draw_seq[first + i]];
        s->hook(s->hook_context, q->sequence->user, q->n_tokens, logits + (size_t)i * vocab,
                f->config->vocab);
    }
    free(logits);
}

void sampler_run(struct sampler *s, struct forward *f, const struct step_batch *b,
                 bool with_history)
{
    int vocab = f->config->vocab;
    for (int first = 0, n; first < b->n_draw_rows; first += n) {
        n = b->n_draw_rows - first < f->max_logit_rows ? b->n_draw_rows - first : f->max_logit_rows;
        size_t offset = (size_t)first * sizeof(int32_t);
        forward_logits(f, devptr_at(b->d_logit_rows, offset), n);
        f->ops->sample(f->be, s->draws + first, devptr_at(b->batch.d_token, offset), f->logits, n,
                       vocab, s->params + first, with_history ? s->history + first : NULL);
        if (s->hook != NULL)
            show_logits(s, f, b, first, n);
    }
    for (int first = 0, n; first < b->n_score; first += n) {
        n = b->n_score - first < f->max_logit_rows ? b->n_score - first : f->max_logit_rows;
        size_t offset = (size_t)(b->n_draw_rows + first) * sizeof(int32_t);
        forward_logits(f, devptr_at(b->d_logit_rows, offset), n);
        f->ops->score(f->be, s->scores + first, f->logits, n, vocab, s->score_tokens + first,
                      s->score_n_top + first);
    }
}
