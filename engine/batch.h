/* batch: the ragged batch of one step, built from what the scheduler granted. Engine thread only.
 */
#ifndef TRIBUTARY_ENGINE_BATCH_H
#define TRIBUTARY_ENGINE_BATCH_H

#include "engine/sequence.h"
#include "kernels/ops.h"

struct err;

struct batch_seq { /* a sequence of the step */
    struct sequence *sequence;
    int n_rows; /* computes tokens n_cached to n_cached + n_rows */
    int first_row;
};

struct step_batch {
    struct batch batch;
    struct lora_step lora;
    struct batch_seq *seqs; /* [batch.n_seqs] in the order of their rows */

    /* Rows whose hidden state goes on to logits: first those that draw a token (sequence
     * draw_seq[i], its last row), then those that score a prompt token (sequence score_seq[i] at
     * row score_row). */
    int n_draw, n_score;
    int *draw_seq;       /* [n_draw] indexes into seqs */
    int *score_seq;      /* [n_score] */
    int32_t *logit_rows; /* [n_draw + n_score] rows */
    struct devptr d_logit_rows;

    /* Memory behind the above; host arrays are the backend's (pinned on cuda). */
    const struct ops *ops;
    struct backend *be;
    int max_rows, max_seqs, max_blocks;
    int32_t *host;        /* one block of host memory, cut into the arrays below */
    struct devptr device; /* its twin */
    int32_t *seq_indptr, *kv_len, *position, *token, *row_seq, *slot, *block_table;
    struct lora_seg *segs;
    struct devptr d_segs;
};

int step_batch_create(struct step_batch *b, const struct ops *ops, struct backend *be, int max_rows,
                      int max_seqs, int max_blocks, struct err *err);
void step_batch_release(struct step_batch *b); /* quiet on zeroed */

/* Orders seqs [n], which the caller wrote into b->seqs with sequence and n_rows, so that the rows
 * of one adapter lie together; fills everything and uploads it. Sequences must have the blocks for
 * their rows, and living pins. The lora pool is asked about every pin (lora_pool rule 5). */
void step_batch_build(struct step_batch *b, int n_seqs, const struct lora_pool *pool);

#endif
