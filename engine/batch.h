/* batch: the ragged batch of one step, built from what the scheduler granted. Engine thread only.
 */
#ifndef TRIBUTARY_ENGINE_BATCH_H
#define TRIBUTARY_ENGINE_BATCH_H

#include "engine/sequence.h"
#include "kernels/ops.h"

struct err;

/* A sequence of the step: computes its tokens n_cached to n_cached + n_rows. The two counts are
 * those that it has when the step begins on the device, which the sequence itself may not have
 * reached yet: a step may be built before the one in front of it is done (step.h). A hole
 * (sequence NULL, n_rows 1) is the place of one that has ended: it computes and draws as padding
 * does, for nobody, so that those behind it stay where they are. */
struct batch_seq {
    struct sequence *sequence;
    int n_rows;
    int n_cached, n_tokens;
    int first_row;
};

/* Does the step end with a token drawn for it? */
static inline bool batch_seq_draws(const struct batch_seq *s)
{
    return s->sequence == NULL ||
           (s->n_cached + s->n_rows == s->n_tokens && s->n_tokens < s->sequence->n_total_max);
}

struct step_batch {
    struct batch batch; /* what the operators see; with padding, see step_batch_build */
    struct lora_step lora;
    bool has_lora;       /* the linears are told of adapters */
    int ranks, rank_max; /* of its segments (lora_is_heavy) */
    struct batch_seq *seqs;
    int n_seqs, n_rows; /* without padding */

    /* Rows whose hidden state goes on to logits: first those that draw a token (sequence
     * draw_seq[i], its last row) and with padding the padding's, n_draw_rows in all; then those
     * that score a prompt token (sequence score_seq[i]). */
    int n_draw, n_draw_rows, n_score;
    int *draw_seq;       /* [n_draw] indexes into seqs */
    int *score_seq;      /* [n_score] */
    int32_t *logit_rows; /* [n_draw_rows + n_score] rows */
    struct devptr d_logit_rows;

    /* Memory behind the above: one piece of the backend's host memory (pinned on cuda) and its twin
     * on the device, cut anew for each step. */
    const struct ops *ops;
    struct backend *be;
    int max_rows, max_seqs, max_blocks;
    int32_t pad_block;
    int32_t *host;
    struct devptr device;
    size_t n_ints;                      /* of both */
    size_t n_used, n_tokens;            /* by this step; by its tokens, which lie first */
    int32_t *token, *n_segs;            /* n_segs [1] */
    struct lora_seg *segs;              /* [lora.n_segs] */
    int32_t *seq_indptr, *kv_len;       /* [batch.n_seqs + 1], [batch.n_seqs] */
    int32_t *position, *row_seq, *slot; /* [batch.n_rows] */
    int32_t *block_table;               /* [batch.n_seqs, batch.max_blocks] */
};

/* Bytes of the device memory that a batch wants. */
size_t step_batch_bytes(int max_rows, int max_seqs, int max_blocks);

/* device is the caller's, of step_batch_bytes; two batches may share it, if whoever uploads the
 * second one does so behind the first one's use. pad_block is a KV block that is nobody's. */
int step_batch_create(struct step_batch *b, const struct ops *ops, struct backend *be,
                      struct devptr device, int max_rows, int max_seqs, int max_blocks,
                      int32_t pad_block, struct err *err);
void step_batch_release(struct step_batch *b); /* quiet on zeroed */

/* Orders seqs [n_seqs], which the caller wrote into b->seqs (all but first_row), so that the rows
 * of one adapter lie together, and fills everything. Sequences must have the blocks for their rows,
 * and living pins. The lora pool is asked about every pin (lora_pool rule 5).
 *
 * as_before: they are in the order of the batch that was built last, each in its place there;
 * beside them there are holes. Only then may there be any.
 *
 * n_padded > 0: every sequence computes one row and draws; the batch is filled up to n_padded
 * sequences of one row, which read and write pad_block only and whose tokens nobody looks at.
 * Everything in it then lies where n_padded alone says, so that a recording finds it; n_seqs may be
 * 0. */
void step_batch_build(struct step_batch *b, int n_seqs, int n_padded, const struct lora_pool *pool,
                      bool as_before);

/* Enqueue the way to the device: of the tokens of all rows, of those of padding alone, and of
 * everything else. */
void step_batch_upload_tokens(const struct step_batch *b);
void step_batch_upload_padding(const struct step_batch *b);
void step_batch_upload_rest(const struct step_batch *b);
void step_batch_upload(const struct step_batch *b); /* both, as one */

#endif
