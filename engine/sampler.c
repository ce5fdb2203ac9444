/* sampler: see sampler.h. Logits are large (vocabulary times rows), so they are made and used up in
 * pieces of max_logit_rows; operators take effect in order, so the pieces may share one buffer. */
#include "engine/sampler.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdlib.h>

void sampler_init(struct sampler *s, int max_seqs, int max_rows)
{
    *s = (struct sampler){0};
    s->params = xcalloc((size_t)max_seqs, sizeof *s->params);
    s->history = xcalloc((size_t)max_seqs, sizeof *s->history);
    s->draws = xcalloc((size_t)max_seqs, sizeof *s->draws);
    s->score_tokens = xcalloc((size_t)max_rows, sizeof *s->score_tokens);
    s->score_n_top = xcalloc((size_t)max_rows, sizeof *s->score_n_top);
    s->scores = xcalloc((size_t)max_rows, sizeof *s->scores);
}

void sampler_release(struct sampler *s)
{
    free(s->params);
    free(s->history);
    free(s->draws);
    free(s->score_tokens);
    free(s->score_n_top);
    free(s->scores);
    *s = (struct sampler){0};
}

static int32_t n_top_of(const struct sequence *q)
{
    return q->sampling.n_top_logprobs > 0 ? q->sampling.n_top_logprobs : 0;
}

static void prepare_draw(struct sample_params *p, struct sample_history *h,
                         const struct sequence *q)
{
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
        .position = (uint64_t)q->n_tokens,
    };
    *h = (struct sample_history){.n_prompt = q->n_prompt,
                                 .n_tokens = q->n_tokens,
                                 .bias_ids = q->bias_ids,
                                 .bias_values = q->bias_values,
                                 .n_bias = a->n_bias};
    if (p->repetition_penalty < 1 || p->repetition_penalty > 1 || p->frequency_penalty < 0 ||
        p->frequency_penalty > 0 || p->presence_penalty < 0 || p->presence_penalty > 0)
        h->tokens = q->tokens;
}

static void show_logits(struct sampler *s, struct forward *f, const struct step_batch *b, int first,
                        int n)
{
    size_t vocab = (size_t)f->config->vocab;
    float *logits = xcalloc((size_t)n * vocab, sizeof *logits);
    f->ops->download(f->be, logits, f->logits, (size_t)n * vocab * sizeof *logits);
    BUG_IF(f->ops->sync(f->be, NULL) != 0);
    for (int i = 0; i < n; i++) {
        const struct sequence *q = b->seqs[b->draw_seq[first + i]].sequence;
        s->hook(s->hook_context, q->user, q->n_tokens, logits + (size_t)i * vocab,
                f->config->vocab);
    }
    free(logits);
}

void sampler_run(struct sampler *s, struct forward *f, const struct step_batch *b)
{
    int vocab = f->config->vocab;
    for (int i = 0; i < b->n_draw; i++)
        prepare_draw(&s->params[i], &s->history[i], b->seqs[b->draw_seq[i]].sequence);
    for (int i = 0; i < b->n_score; i++) {
        const struct sequence *q = b->seqs[b->score_seq[i]].sequence;
        s->score_tokens[i] = q->tokens[b->position[b->logit_rows[b->n_draw + i]] + 1];
        s->score_n_top[i] = n_top_of(q);
    }
    for (int first = 0, n; first < b->n_draw; first += n) {
        n = b->n_draw - first < f->max_logit_rows ? b->n_draw - first : f->max_logit_rows;
        forward_logits(f, devptr_at(b->d_logit_rows, (size_t)first * sizeof(int32_t)), n);
        f->ops->sample(f->be, s->draws + first, f->logits, n, vocab, s->params + first,
                       s->history + first);
        if (s->hook != NULL)
            show_logits(s, f, b, first, n);
    }
    for (int first = 0, n; first < b->n_score; first += n) {
        n = b->n_score - first < f->max_logit_rows ? b->n_score - first : f->max_logit_rows;
        forward_logits(f, devptr_at(b->d_logit_rows, (size_t)(b->n_draw + first) * sizeof(int32_t)),
                       n);
        f->ops->score(f->be, s->scores + first, f->logits, n, vocab, s->score_tokens + first,
                      s->score_n_top + first);
    }
}
