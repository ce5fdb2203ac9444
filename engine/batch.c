/* batch: see batch.h.
 *
 *   seqs        adapter 4 | adapter 4 | 2 + 7 (ensemble) | base | adapter 7, in a prompt
 *   rows        0           1           2                  3 4    5 6 7
 *   segments    [0 .. 1] slot 4         [2] slot 2         none   [5 .. 7] slot 7
 *                                       [2] slot 7
 *
 * Single rows under adapters come first, ensembles' behind the others' (by_adapter says why), then
 * sequences of the base model, which are in no segment and pay nothing for the adapters beside
 * them, then more rows under adapters. Sequences under one adapter with one weight are neighbours
 * and share a segment, so the adapter's matrices are read once a step. An ensemble has segments of
 * its own, in the request's order. The order is a matter of speed only: no row's bits depend on it
 * (kernels/ops.h). A step that follows another one keeps that one's order, whatever its rows.
 *
 * All arrays of a step lie in one piece of host memory, packed, and go to the device as one copy:
 *
 *   token | n_segs | segs | seq_indptr | kv_len | position | row_seq | slot | logit_rows | table
 *
 * Tokens lie first, because a step may find them on the device, where the step before it drew them,
 * and then leaves them out of the copy. In a padded step each place depends on the padded size
 * alone, and the table's rows have their full length, of which only the used part is written, and
 * zeros for TABLE_TAIL entries behind it, so that a kernel that looks at a tile of keys at once
 * finds a block there; what follows is some earlier step's. */
#include "engine/batch.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>

enum {
    ALIGN_INTS = 16, /* each array begins at 64 bytes */
    TABLE_TAIL = 16,
};

/* ---- memory ------------------------------------------------------------------------------ */

struct extent { /* how much a step needs of each array */
    size_t n_rows, n_seqs, n_segs, n_logit_rows, n_blocks;
};

static size_t cut(size_t *used, size_t n)
{
    size_t at = *used;
    *used += (n + ALIGN_INTS - 1) / ALIGN_INTS * ALIGN_INTS;
    return at;
}

/* Cuts the piece for this step; returns the ints used. b may be NULL: only to count. */
static size_t lay_out(struct step_batch *b, const struct extent *x)
{
    size_t used = 0, at[10];
    const size_t n[10] = {x->n_rows,
                          1,
                          x->n_segs * sizeof(struct lora_seg) / 4,
                          x->n_seqs + 1,
                          x->n_seqs,
                          x->n_rows,
                          x->n_rows,
                          x->n_rows,
                          x->n_logit_rows,
                          x->n_seqs * x->n_blocks};
    for (int i = 0; i < 10; i++)
        at[i] = cut(&used, n[i]);
    if (b == NULL)
        return used;
    BUG_IF(used > b->n_ints);
    int32_t **const arrays[10] = {&b->token,      NULL,           NULL,        &b->seq_indptr,
                                  &b->kv_len,     &b->position,   &b->row_seq, &b->slot,
                                  &b->logit_rows, &b->block_table};
    struct devptr d[10];
    for (int i = 0; i < 10; i++) {
        d[i] = devptr_at(b->device, at[i] * sizeof(int32_t));
        if (arrays[i] != NULL)
            *arrays[i] = b->host + at[i];
    }
    b->n_segs = b->host + at[1];
    b->segs = (struct lora_seg *)(void *)(b->host + at[2]); /* made of int32_t and floats */
    b->n_used = used;
    b->n_tokens = at[1];
    b->batch = (struct batch){.n_rows = (int)x->n_rows,
                              .n_seqs = (int)x->n_seqs,
                              .max_blocks = (int)x->n_blocks,
                              .seq_indptr = b->seq_indptr,
                              .kv_len = b->kv_len,
                              .position = b->position,
                              .d_token = d[0],
                              .d_seq_indptr = d[3],
                              .d_kv_len = d[4],
                              .d_position = d[5],
                              .d_row_seq = d[6],
                              .d_slot = d[7],
                              .d_block_table = d[9]};
    b->lora = (struct lora_step){.segs = b->segs, .d_segs = d[2], .d_n_segs = d[1]};
    b->d_logit_rows = d[8];
    return used;
}

static size_t ints_max(int max_rows, int max_seqs, int max_blocks)
{
    struct extent x = {.n_rows = (size_t)max_rows,
                       .n_seqs = (size_t)max_seqs,
                       .n_segs = (size_t)max_seqs * ENGINE_ADAPTERS_MAX,
                       .n_logit_rows = (size_t)max_rows + (size_t)max_seqs,
                       .n_blocks = (size_t)max_blocks};
    return lay_out(NULL, &x);
}

size_t step_batch_bytes(int max_rows, int max_seqs, int max_blocks)
{
    return ints_max(max_rows, max_seqs, max_blocks) * sizeof(int32_t);
}

int step_batch_create(struct step_batch *b, const struct ops *ops, struct backend *be,
                      struct devptr device, int max_rows, int max_seqs, int max_blocks,
                      int32_t pad_block, struct err *err)
{
    *b = (struct step_batch){.ops = ops,
                             .be = be,
                             .max_rows = max_rows,
                             .max_seqs = max_seqs,
                             .max_blocks = max_blocks,
                             .pad_block = pad_block,
                             .device = device,
                             .n_ints = ints_max(max_rows, max_seqs, max_blocks)};
    void *host = NULL;
    if (ops->host_alloc(be, &host, b->n_ints * sizeof(int32_t), err) != 0)
        return err_wrap(err, "batch of %d rows", max_rows);
    memset(host, 0, b->n_ints * sizeof(int32_t));
    b->host = host;
    b->seqs = xcalloc((size_t)max_seqs, sizeof *b->seqs);
    b->draw_seq = xcalloc((size_t)max_seqs, sizeof *b->draw_seq);
    b->score_seq = xcalloc((size_t)max_rows, sizeof *b->score_seq);
    return 0;
}

void step_batch_release(struct step_batch *b)
{
    if (b->host != NULL)
        b->ops->host_free(b->be, b->host);
    free(b->seqs);
    free(b->draw_seq);
    free(b->score_seq);
    *b = (struct step_batch){0};
}

/* ---- order ------------------------------------------------------------------------------- */

/* Rows of many adapters together, and first, where a device may take them in a way of their own;
 * then those of one adapter together. */
static int by_adapter(const void *a, const void *b)
{
    const struct sequence *x = ((const struct batch_seq *)a)->sequence;
    const struct sequence *y = ((const struct batch_seq *)b)->sequence;
    bool lone_x = x->n_adapters > 0 && ((const struct batch_seq *)a)->n_rows == 1;
    bool lone_y = y->n_adapters > 0 && ((const struct batch_seq *)b)->n_rows == 1;
    if (lone_x != lone_y)
        return lone_x ? -1 : 1;
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
        const struct lora_adapter *lora = q->adapters[i]->lora;
        lora_pool_check(pool, q->pins[i], &lora->content);
        struct lora_seg seg = {s->first_row, s->n_rows, q->pins[i].slot, q->weights[i]};
        struct lora_seg *last = b->lora.n_segs > 0 ? &b->segs[b->lora.n_segs - 1] : NULL;
        /* Segments of an ensemble are over the same rows, all of them (ops.h): nobody joins one. */
        bool ensemble = b->lora.n_segs > 1 && last[-1].row_begin == last->row_begin;
        if (q->n_adapters == 1 && last != NULL && !ensemble && last->slot == seg.slot &&
            memcmp(&last->weight, &seg.weight, sizeof seg.weight) == 0 &&
            last->row_begin + last->n_rows == seg.row_begin) {
            last->n_rows += seg.n_rows;
            continue;
        }
        b->segs[b->lora.n_segs++] = seg;
        b->ranks += lora->rank_mean;
        b->rank_max = lora->rank_max > b->rank_max ? lora->rank_max : b->rank_max;
    }
}

/* Row of sequence `index` at `position`, whose K and V go into `block`. */
static void add_row(struct step_batch *b, int row, int index, int32_t token, int position,
                    int32_t block)
{
    b->token[row] = token;
    b->position[row] = position;
    b->row_seq[row] = index;
    b->slot[row] = block * BLOCK_TOKENS + position % BLOCK_TOKENS;
}

static void add_table(struct step_batch *b, int index, const int32_t *blocks, int n)
{
    int32_t *table = b->block_table + (size_t)index * (size_t)b->batch.max_blocks;
    for (int i = 0; i < n + TABLE_TAIL && i < b->batch.max_blocks; i++)
        table[i] = i < n ? blocks[i] : 0;
}

static void add_padding(struct step_batch *b, int row, int index)
{
    add_row(b, row, index, 0, 0, b->pad_block);
    b->seq_indptr[index] = row;
    b->kv_len[index] = 1;
    add_table(b, index, &b->pad_block, 1);
}

static void add_seq(struct step_batch *b, int index)
{
    const struct batch_seq *s = &b->seqs[index];
    const struct sequence *q = s->sequence;
    BUG_IF(s->n_rows < 1 || s->n_cached + s->n_rows > s->n_tokens);
    BUG_IF(q->n_blocks * BLOCK_TOKENS < s->n_cached + s->n_rows);
    for (int i = 0; i < s->n_rows; i++) {
        int position = s->n_cached + i;
        /* A token that the step before this one draws is not known here. */
        add_row(b, s->first_row + i, index, position < q->n_tokens ? q->tokens[position] : 0,
                position, q->blocks[position / BLOCK_TOKENS]);
    }
    b->seq_indptr[index] = s->first_row;
    b->kv_len[index] = s->n_cached + s->n_rows;
    add_table(b, index, q->blocks, q->n_blocks);
}

/* Row i of a sequence scores the prompt's token behind it, once: not again after a preemption. */
static bool scores(const struct sequence *q, int position)
{
    return q->prompt_logprobs && position + 1 < q->n_prompt && position + 1 > q->n_scored;
}

static void choose_logit_rows(struct step_batch *b, bool padded)
{
    b->n_draw = b->n_score = 0;
    for (int s = 0; s < b->n_seqs; s++)
        if (batch_seq_draws(&b->seqs[s])) {
            b->draw_seq[b->n_draw] = s;
            b->logit_rows[b->n_draw++] = b->seq_indptr[s + 1] - 1;
        }
    BUG_IF(padded && (b->n_draw != b->n_seqs || b->n_rows != b->n_seqs));
    b->n_draw_rows = b->n_draw;
    while (padded && b->n_draw_rows < b->batch.n_rows) {
        b->logit_rows[b->n_draw_rows] = b->n_draw_rows;
        b->n_draw_rows++;
    }
    for (int s = 0; s < b->n_seqs; s++)
        for (int row = b->seq_indptr[s]; row < b->seq_indptr[s + 1]; row++)
            if (b->seqs[s].sequence != NULL && scores(b->seqs[s].sequence, b->position[row])) {
                b->score_seq[b->n_score] = s;
                b->logit_rows[b->n_draw_rows + b->n_score++] = row;
            }
    BUG_IF(padded && b->n_score > 0);
}

void step_batch_build(struct step_batch *b, int n_seqs, int n_padded, const struct lora_pool *pool,
                      bool as_before)
{
    bool padded = n_padded > 0;
    BUG_IF(n_seqs < (padded ? 0 : 1) || n_seqs > b->max_seqs || n_padded > b->max_seqs ||
           (padded && n_seqs > n_padded));
    if (!as_before)
        sort_seqs(b->seqs, n_seqs);
    struct extent x = {.n_blocks = 1}; /* a hole's */
    for (int s = 0; s < n_seqs; s++) {
        const struct sequence *q = b->seqs[s].sequence;
        b->seqs[s].first_row = (int)x.n_rows;
        x.n_rows += (size_t)b->seqs[s].n_rows;
        x.n_segs += q != NULL ? (size_t)q->n_adapters : 0;
        if (q != NULL && (size_t)q->n_blocks > x.n_blocks)
            x.n_blocks = (size_t)q->n_blocks;
    }
    BUG_IF(x.n_rows > (size_t)b->max_rows || x.n_blocks > (size_t)b->max_blocks);
    b->n_seqs = n_seqs;
    b->n_rows = (int)x.n_rows;
    x.n_seqs = (size_t)n_seqs;
    x.n_logit_rows = x.n_rows + x.n_seqs; /* a row may draw and be scored */
    if (padded)
        x = (struct extent){.n_rows = (size_t)n_padded,
                            .n_seqs = (size_t)n_padded,
                            .n_segs = (size_t)n_padded * ENGINE_ADAPTERS_MAX,
                            .n_logit_rows = (size_t)n_padded,
                            .n_blocks = (size_t)b->max_blocks};
    lay_out(b, &x);
    b->ranks = b->rank_max = 0;
    for (int s = 0; s < n_seqs; s++) {
        if (b->seqs[s].sequence == NULL) {
            add_padding(b, b->seqs[s].first_row, s);
            continue;
        }
        add_seq(b, s);
        add_segments(b, &b->seqs[s], pool);
    }
    for (int i = n_seqs; i < b->batch.n_seqs; i++)
        add_padding(b, i, i);
    b->seq_indptr[b->batch.n_seqs] = b->batch.n_rows;
    *b->n_segs = b->lora.n_segs;
    b->has_lora = b->lora.n_segs > 0;
    b->lora.heavy = lora_is_heavy(b->batch.n_rows, b->lora.n_segs, b->ranks, b->rank_max);
    choose_logit_rows(b, padded);
}

/* ---- the way to the device --------------------------------------------------------------- */

static void upload(const struct step_batch *b, size_t begin, size_t end)
{
    b->ops->upload(b->be, devptr_at(b->device, begin * sizeof(int32_t)), b->host + begin,
                   (end - begin) * sizeof(int32_t));
}

void step_batch_upload_tokens(const struct step_batch *b)
{
    upload(b, 0, b->n_tokens);
}

void step_batch_upload_padding(const struct step_batch *b)
{
    upload(b, (size_t)b->n_seqs, b->n_tokens);
}

void step_batch_upload_rest(const struct step_batch *b)
{
    upload(b, b->n_tokens, b->n_used);
}

void step_batch_upload(const struct step_batch *b)
{
    upload(b, 0, b->n_used);
}
