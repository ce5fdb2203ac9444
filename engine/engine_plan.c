/* engine_plan: what the scheduler is shown. Engine thread only.
 *
 * The scheduler is a pure function (scheduler.h); here is the state that it is a function of, as it
 * is or as it will be when the flying step has landed: sequences, payers, adapters, and what of the
 * prefix cache those that wait would find. */
#include "engine/internal.h"
#include "engine/sequence_blocks.h"

#include <stdlib.h>

enum {
    LANE_BYTES_MAX = 128 << 20, /* on their way, with which one more may begin: 2.5 ms of the bus */
    DEBUG_PREEMPT_STEPS = 3,    /* options.debug_preempt */
    KEPT_PART = 64,             /* of places and blocks, one part is kept (scheduler.h) */
};

static int show_adapter(struct engine *e, struct sched_state *state, struct loaded_adapter *a)
{
    if (a->sched_step != e->n_plans) {
        a->sched_step = e->n_plans;
        a->sched_index = state->n_adapters++;
        e->sched_adapters[a->sched_index] = (struct sched_adapter){.n_bytes = a->lora->n_bytes,
                                                                   .n_pins = a->n_pins};
    }
    return a->sched_index;
}

/* Is it to wait until its adapters have arrived? The step that it begins in waits for them, layer
 * by layer, and so do the others in that step; a few are hidden by the prefill, many are not. */
static bool is_loading(const struct engine *e, const struct sequence *s)
{
    if (s->running || e->n_running == 0 || lora_pool_bytes_loading(e->lora) <= LANE_BYTES_MAX)
        return false;
    for (int i = 0; i < s->n_adapters; i++)
        if (!lora_pool_has_arrived(e->lora, &s->adapters[i]->lora->content))
            return true;
    return false;
}

static void show_seq(struct engine *e, struct sched_state *state, struct sched_seq *out,
                     const struct sequence *s, bool after)
{
    bool loading = is_loading(e, s);
    *out = (struct sched_seq){
        .order = s->id,
        .n_tokens = after ? s->n_tokens + 1 : s->n_tokens,
        .n_cached = after ? s->n_tokens : s->n_cached,
        .n_blocks = s->n_blocks,
        .n_blocks_cached = s->running ? s->n_published : 0,
        .n_bypassed = s->n_bypassed,
        .n_adapters = s->n_adapters,
        .n_blocks_max = (s->n_total_max + BLOCK_TOKENS - 1) / BLOCK_TOKENS,
        .payer = payers_view_add(e->payers, s->payer, !s->running && !loading),
        .priority = s->priority,
        .loading = loading};
    for (int i = 0; i < s->n_adapters; i++)
        out->adapters[i] = show_adapter(e, state, s->adapters[i]);
}

/* options.debug_preempt: another one each time; only one that has computed something since it was
 * admitted, so that all still get to their end, and one in the middle of its prompt only once. */
static int choose_victim(const struct engine *e)
{
    uint64_t n = e->n_carried + 1;
    if (!e->options.debug_preempt || e->n_running == 0 || n % DEBUG_PREEMPT_STEPS != 0)
        return -1;
    int start = (int)(n / DEBUG_PREEMPT_STEPS % (uint64_t)e->n_running);
    for (int i = 0; i < e->n_running; i++) {
        int index = (start + i) % e->n_running;
        const struct sequence *s = e->running[index];
        if (s->n_decoded > 0 || (s->n_cached > 0 && s->n_preempted == 0))
            return index;
    }
    return -1;
}

/* May the plan preempt in favour of somebody who waits? See sched_plan_make. */
static bool may_displace(const struct sched_state *state)
{
    for (int i = 0; i < state->n_waiting && state->carry.spare > 0; i++)
        if (state->waiting[i].priority > 0 ||
            state->payers[state->waiting[i].payer].counter < state->level)
            return true;
    return false;
}

/* Who shares blocks, which only a plan that preempts asks (for want of blocks none does that has
 * one for each running), and what waiting ones would find, if any may be admitted. */
static void show_blocks(struct engine *e, const struct sched_state *state)
{
    bool displaces = may_displace(state);
    bool scarce = state->n_blocks_free < e->n_running || state->force_preempt >= 0;
    for (int i = 0; i < e->n_running && (scarce || displaces); i++)
        e->sched_running[i].n_blocks_shared = sequence_blocks_n_shared(e->prefixes, e->running[i]);
    for (int i = 0; i < e->n_waiting && (displaces || e->n_running < e->options.max_seqs); i++) {
        sequence_blocks_look_up(e->prefixes, e->waiting[i]);
        e->sched_waiting[i].n_found = e->waiting[i]->n_found;
        e->sched_waiting[i].n_found_idle = e->waiting[i]->n_found_idle;
    }
}

/* after: for the state behind the flying step, in which every running sequence draws and none is
 * taken to stop. With several payers, a little is kept for those who come seldom. */
void engine_make_plan(struct engine *e, bool after)
{
    struct lora_pool_stats pool;
    lora_pool_stats(e->lora, &pool);
    e->n_plans++;
    prefix_cache_tick(e->prefixes, e->n_carried);
    lora_pool_tick(e->lora, e->n_carried);
    bool shared = e->n_payers_known > 1;
    struct sched_state state = {
        .running = e->sched_running,
        .n_running = e->n_running,
        .waiting = e->sched_waiting,
        .n_waiting = e->n_waiting,
        .adapters = e->sched_adapters,
        .adapter_bytes = pool.bytes_total,
        .adapter_bytes_free = pool.bytes_total - pool.bytes_pinned,
        .n_blocks = engine_n_blocks(e),
        .n_blocks_free = kv_pool_n_free(e->kv) + prefix_cache_n_idle(e->prefixes),
        .max_seqs = e->options.max_seqs,
        .max_rows = e->options.max_rows,
        .n_seqs_kept = shared ? e->options.max_seqs / KEPT_PART : 0,
        .n_blocks_kept = shared ? engine_n_blocks(e) / KEPT_PART : 0,
        .carry = e->carry,
        .force_preempt = choose_victim(e),
    };
    payers_view_begin(e->payers);
    for (int i = 0; i < e->n_running; i++)
        show_seq(e, &state, &e->sched_running[i], e->running[i], after);
    for (int i = 0; i < e->n_waiting; i++)
        show_seq(e, &state, &e->sched_waiting[i], e->waiting[i], false);
    state.payers = payers_view_end(e->payers, &state.n_payers);
    state.level = payers_level(e->payers);
    show_blocks(e, &state);
    sched_plan_make(&e->plan, &state);
}
