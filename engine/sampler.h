/* sampler: from hidden rows to drawn tokens and log-probabilities. Engine thread only. */
#ifndef TRIBUTARY_ENGINE_SAMPLER_H
#define TRIBUTARY_ENGINE_SAMPLER_H

#include "engine/batch.h"
#include "engine/forward.h"

/* Tests only: sees the raw logits [vocab] behind each drawn token. */
typedef void logits_hook(void *context, void *user, int position, const float *logits, int vocab);

struct sampler {
    struct sample_params *params;   /* [max_seqs] of the draws, in the step's order */
    struct sample_history *history; /* [max_seqs] */
    struct sample_result *draws;    /* [max_seqs] */
    int32_t *score_tokens;          /* [max_rows] */
    int32_t *score_n_top;           /* [max_rows] */
    struct sample_result *scores;   /* [max_rows] */
    logits_hook *hook;
    void *hook_context;
};

void sampler_init(struct sampler *s, int max_seqs, int max_rows);
void sampler_release(struct sampler *s);

/* Enqueues logits, draws and scores of the step; s->draws [b->n_draw] and s->scores [b->n_score]
 * are valid after the backend's next sync. */
void sampler_run(struct sampler *s, struct forward *f, const struct step_batch *b);

#endif
