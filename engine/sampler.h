/* sampler: from hidden rows to drawn tokens and log-probabilities, of one step. Engine thread only.
 */
#ifndef TRIBUTARY_ENGINE_SAMPLER_H
#define TRIBUTARY_ENGINE_SAMPLER_H

#include "engine/batch.h"
#include "engine/forward.h"

/* Tests only: sees the raw logits [vocab] behind each drawn token. */
typedef void logits_hook(void *context, void *user, int position, const float *logits, int vocab);

struct sampler {
    const struct ops *ops;
    struct backend *be;
    void *host;                     /* the backend's host memory, cut into the arrays but history */
    struct sample_params *params;   /* [max_seqs] of the draws, in the step's order */
    struct sample_history *history; /* [max_seqs] */
    struct sample_result *draws;    /* [max_seqs] */
    int32_t *score_tokens;          /* [max_rows] */
    int32_t *score_n_top;           /* [max_rows] */
    struct sample_result *scores;   /* [max_rows] */
    logits_hook *hook;              /* or NULL */
    void *hook_context;
};

int sampler_create(struct sampler *s, const struct ops *ops, struct backend *be, int max_seqs,
                   int max_rows, struct err *err);
void sampler_release(struct sampler *s); /* quiet on zeroed */

/* Does drawing for it take more than its parameters: what it said before, or a bias? */
bool sampler_needs_history(const struct sequence *q);

/* Writes the parameters of the step's draws and scores. */
void sampler_prepare(struct sampler *s, const struct step_batch *b);

/* Enqueues logits, draws and scores of a prepared step; s->draws [b->n_draw] and s->scores
 * [b->n_score] are valid when the device is done with it. The drawn tokens also stay on the device,
 * where the batch has its tokens, in the order of the draws. with_history: false when no sequence
 * of the step needs it. */
void sampler_run(struct sampler *s, struct forward *f, const struct step_batch *b,
                 bool with_history);

#endif
