/* batch: see batch.h.
 *
 *   seqs        base | base | adapter 4 | adapter 4 | adapter 9 | 2 + 7 (ensemble)
 *   rows        0      1 2 3  4           5 6         7           8
 *   segments                  [4 .. 6] slot 4         [7] slot 9  [8] slot 2, [8] slot 7
 *
 * Sequences of the base model come first and are in no segment: they pay nothing for the adapters
 * beside them. Sequences under one adapter with one weight are neighbours and share a segment, so
 * the adapter's matrices are read once a step. Ensembles come last, each with its own segments, in
 * the request's order. The order is a matter of speed only: no row's bits depend on it
 * (kernels/ops.h). */
#include "engine/batch.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>

int step_batch_create(struct step_batch *b, const struct ops *ops, struct backend *be, int max_rows,
                      int max_seqs, int max_blocks, struct err *err)
{
    *b = (struct step_batch){
        .ops = ops, .be = be, .max_rows = max_rows, .max_seqs = max_seqs, .max_blocks = max_blocks};
    size_t rows = (size_t)max_rows, seqs = (size_t)max_seqs;
    size_t n_table = seqs * (size_t)max_blocks;
    size_t n_segs = seqs * ENGINE_ADAPTERS_MAX * (sizeof(struct lora_seg) / sizeof(int32_t));
    /* seq_indptr, kv_len, position, token, row_seq, slot, logit_rows, segments, block table */
    size_t n = (seqs + 1) + seqs + 5 * rows + seqs + n_segs + n_table;
    void *host = NULL;
    if (ops->host_alloc(be, &host, n * sizeof(int32_t), err) != 0)
        return err_wrap(err, "batch of %d rows", max_rows);
    b->host = host;
    if (ops->mem_alloc(be, &b->device, n * sizeof(int32_t), err) != 0) {
        ops->host_free(be, host);
        b->host = NULL;
        return err_wrap(err, "batch of %d rows", max_rows);
    }
    int32_t *at = b->host;
    b->segs = (struct lora_seg *)(void *)at; /* first: it is made of int32_t and floats */
    at += n_segs;
    b->seq_indptr = at;
    at += seqs + 1;
    b->kv_len = at;
    at += seqs;
    b->position = at;
    at += rows;
    b->token = at;
    at += rows;
    b->row_seq = at;
    at += rows;
    b->slot = at;
    at += rows;
    b->logit_rows = at; /* a row may draw and be scored */
    at += rows + seqs;
    b->block_table = at;
    at += n_table;
    BUG_IF((size_t)(at - b->host) != n);
    b->seqs = xcalloc(seqs, sizeof *b->seqs);
    b->draw_seq = xcalloc(seqs, sizeof *b->draw_seq);
    b->score_seq = xcalloc(rows, sizeof *b->score_seq);
    return 0;
}

void step_batch_release(struct step_batch *b)
{
    if (b->host != NULL) {
        b->ops->host_free(b->be, b->host);
        b->ops->mem_free(b->be, b->device);
    }
    free(b->seqs);
    free(b->draw_seq);
    free(b->score_seq);
    *b = (struct step_batch){0};
}

/* ---- order ------------------------------------------------------------------------------- */

static int by_adapter(const void *a, const void *b)
{
    const struct sequence *x = ((const struct batch_seq *)a)->sequence;
    const struct sequence *y = ((const struct batch_seq *)b)->sequence;
    int class_x = x->n_adapters < 2 ? x->n_adapters : 2,
        class_y = y->n_adapters < 2 ? y->n_adapters : 2;
    if (class_x != class_y)
        return class_x < class_y ? -1 : 1;
    if (class_x == 1) {
        if (x->pins[0].slot != y->pins[0].slot)
            return x->pins[0].slot < y->pins[0].slot ? -1 : 1;
        if (x->weights[0] < y->weights[0] || x->weights[0] > y->weights[0])
            return x->weights[0] < y->weights[0] ? -1 : 1;
    }
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Insertion sort: n is small, nearly ordered from step to step, and qsort may allocate. */
static void sort_seqs(struct batch_seq *seqs, int n)
{
    for (int i = 1; i < n; i++) {
        struct batch_seq s = seqs[i];
        int j = i;
        for (; j > 0 && by_adapter(&seqs[j - 1], &s) > 0; j--)
            seqs[j] = seqs[j - 1];
        seqs[j] = s;
    }
}

/* ---- filling ----------------------------------------------------------------------------- */

static void add_segments(struct step_batch *b, const struct batch_seq *s,
                         const struct lora_pool *pool)
{
    const struct sequence *q = s->sequence;
    for (int i = 0; i < q->n_adapters; i++) {
        lora_pool_check(pool, q->pins[i], &q->adapters[i]->lora->content);
        struct lora_seg seg = {s->first_row, s->n_rows, q->pins[i].slot, q->weights[i]};
        struct lora_seg *last = b->lora.n_segs > 0 ? &b->segs[b->lora.n_segs - 1] : NULL;
        /* An ensemble's rows end where its last segment ends, so a single adapter, which comes
         * before every ensemble, never joins one. */
        if (q->n_adapters == 1 && last != NULL && last->slot == seg.slot &&
            memcmp(&last->weight, &seg.weight, sizeof seg.weight) == 0 &&
            last->row_begin + last->n_rows == seg.row_begin)
            last->n_rows += seg.n_rows;
        else
            b->segs[b->lora.n_segs++] = seg;
    }
}

static void add_rows(struct step_batch *b, int index)
{
    struct batch_seq *s = &b->seqs[index];
    struct sequence *q = s->sequence;
    BUG_IF(s->n_rows < 1 || q->n_cached + s->n_rows > q->n_tokens);
    BUG_IF(q->n_blocks * BLOCK_TOKENS < q->n_cached + s->n_rows);
    for (int i = 0; i < s->n_rows; i++) {
        int row = s->first_row + i, position = q->n_cached + i;
        b->token[row] = q->tokens[position];
        b->position[row] = position;
        b->row_seq[row] = index;
        b->slot[row] = q->blocks[position / BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS;
    }
    b->seq_indptr[index] = s->first_row;
    b->seq_indptr[index + 1] = s->first_row + s->n_rows;
    b->kv_len[index] = q->n_cached + s->n_rows;
}

static bool draws(const struct batch_seq *s)
{
    const struct sequence *q = s->sequence;
    return q->n_cached + s->n_rows == q->n_tokens && q->n_tokens < q->n_total_max;
}

/* Row i of a sequence scores the prompt's token behind it, once: not again after a preemption. */
static bool scores(const struct sequence *q, int position)
{
    return q->prompt_logprobs && position + 1 < q->n_prompt && position + 1 > q->n_scored;
}

static void choose_logit_rows(struct step_batch *b)
{
    b->n_draw = b->n_score = 0;
    for (int s = 0; s < b->batch.n_seqs; s++)
        if (draws(&b->seqs[s])) {
            b->draw_seq[b->n_draw] = s;
            b->logit_rows[b->n_draw++] = b->seq_indptr[s + 1] - 1;
        }
    for (int s = 0; s < b->batch.n_seqs; s++)
        for (int row = b->seq_indptr[s]; row < b->seq_indptr[s + 1]; row++)
            if (scores(b->seqs[s].sequence, b->position[row])) {
                b->score_seq[b->n_score] = s;
                b->logit_rows[b->n_draw + b->n_score++] = row;
            }
}

static struct devptr send(struct step_batch *b, const void *from, size_t n_bytes)
{
    struct devptr to = devptr_at(b->device,
                                 (size_t)((const uint8_t *)from - (const uint8_t *)b->host));
    if (n_bytes > 0)
        b->ops->upload(b->be, to, from, n_bytes);
    return to;
}

void step_batch_build(struct step_batch *b, int n_seqs, const struct lora_pool *pool)
{
    BUG_IF(n_seqs < 1 || n_seqs > b->max_seqs);
    sort_seqs(b->seqs, n_seqs);
    int n_rows = 0, n_blocks = 0;
    b->lora.n_segs = 0;
    for (int s = 0; s < n_seqs; s++) {
        b->seqs[s].first_row = n_rows;
        n_rows += b->seqs[s].n_rows;
        BUG_IF(n_rows > b->max_rows);
        add_rows(b, s);
        add_segments(b, &b->seqs[s], pool);
        if (b->seqs[s].sequence->n_blocks > n_blocks)
            n_blocks = b->seqs[s].sequence->n_blocks;
    }
    BUG_IF(n_blocks > b->max_blocks);
    for (int s = 0; s < n_seqs; s++) {
        const struct sequence *q = b->seqs[s].sequence;
        int32_t *row = b->block_table + (size_t)s * (size_t)n_blocks;
        for (int i = 0; i < n_blocks; i++) /* block 0 behind the end: never read */
            row[i] = i < q->n_blocks ? q->blocks[i] : 0;
    }
    b->batch = (struct batch){.n_rows = n_rows, .n_seqs = n_seqs, .max_blocks = n_blocks};
    choose_logit_rows(b);

    size_t rows = (size_t)n_rows * sizeof(int32_t), seqs = (size_t)n_seqs * sizeof(int32_t);
    b->batch.seq_indptr = b->seq_indptr;
    b->batch.kv_len = b->kv_len;
    b->batch.position = b->position;
    b->batch.d_seq_indptr = send(b, b->seq_indptr, seqs + sizeof(int32_t));
    b->batch.d_kv_len = send(b, b->kv_len, seqs);
    b->batch.d_position = send(b, b->position, rows);
    b->batch.d_token = send(b, b->token, rows);
    b->batch.d_row_seq = send(b, b->row_seq, rows);
    b->batch.d_slot = send(b, b->slot, rows);
    b->batch.d_block_table = send(b, b->block_table, seqs * (size_t)n_blocks);
    b->d_logit_rows = send(b, b->logit_rows, (size_t)(b->n_draw + b->n_score) * sizeof(int32_t));
    b->lora.segs = b->segs;
    b->lora.d_segs = send(b, b->segs, (size_t)b->lora.n_segs * sizeof *b->segs);
}
