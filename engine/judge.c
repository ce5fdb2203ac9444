/* judge: see judge.h.
 *
 * Rates. Only ratios matter, and only roughly: recomputing a byte of KV is ten to a hundred times
 * as dear as bringing back a byte of an adapter. So the rates are constants of the two kinds of
 * machine, not measured: what is evicted doesn't depend on how loaded the machine was.
 *
 * Chance. A thing used n times and idle for a steps is taken to be asked for n / (a + 1) times a
 * step: frequency over recency. An adapter's first use counts; somebody needed it. A block's first
 * use is its computation, which says nothing about coming again: most prompts never do. So it
 * counts as FIRST_USE of one that was found.
 *
 * A block whose adapter is away saves less: what it saves of the prefill would have hidden a part
 * of the adapter's copy, which is now waited for instead. That is CHAIN_BLOCKS blocks' saving, one
 * copy. One whose adapter was unloaded is worth nothing: its next request must load it first. */
#include "engine/judge.h"

static const double FLOPS_DEVICE = 4e14, FLOPS_HOST = 2e11; /* of prefill */
static const double BUS_DEVICE = 5e10, BUS_HOST = 5e9;      /* bytes a second */
static const double FIXED_S = 150e-6;
static const double FIRST_USE = 1.0 / 16;
static const double MARGIN = 2; /* what is moved must be worth so many times what goes */

enum { CHAIN_BLOCKS = 16 };

struct judge_costs judge_costs(uint64_t n_params, bool own_memory)
{
    return (struct judge_costs){
        .token_s = 2 * (double)n_params / (own_memory ? FLOPS_DEVICE : FLOPS_HOST),
        .byte_s = 1 / (own_memory ? BUS_DEVICE : BUS_HOST),
        .fixed_s = FIXED_S,
    };
}

static double reload_s(const struct judge_costs *costs, size_t n_bytes)
{
    return costs->fixed_s + costs->byte_s * (double)n_bytes;
}

double judge_adapter(const struct judge_costs *costs, size_t n_bytes, uint32_t n_uses, uint64_t age)
{
    return reload_s(costs, n_bytes) * (n_uses > 0 ? n_uses : 1) / ((double)age + 1);
}

double judge_block(const struct judge_costs *costs, int n_tokens, uint32_t n_found, uint64_t age,
                   enum judge_owner owner, size_t adapter_bytes)
{
    double saved = costs->token_s * n_tokens;
    switch (owner) {
    case OWNER_HERE:
        break;
    case OWNER_AWAY:
        saved -= reload_s(costs, adapter_bytes) / CHAIN_BLOCKS;
        break;
    case OWNER_GONE:
        return 0;
    }
    return saved > 0 ? saved * (n_found + FIRST_USE) / ((double)age + 1) : 0;
}

static int most(const struct judge_side *to, const struct judge_side *from)
{
    int give = from->n_bricks - from->n_min, take = to->n_max - to->n_bricks;
    give = give < from->n_idle ? give : from->n_idle;
    return give < take ? give : take;
}

enum judge_verdict judge(const struct judge_side *kv, const struct judge_side *adapters, bool idle)
{
    int to_kv = most(kv, adapters), to_adapters = most(adapters, kv);
    if (kv->n_wanted_running > 0)
        return to_kv > 0 ? JUDGE_TO_KV : JUDGE_STAY;
    if (kv->n_wanted_waiting > 0)
        return to_kv >= kv->n_wanted_waiting && (idle || !kv->quiet) ? JUDGE_TO_KV : JUDGE_STAY;
    if (adapters->n_wanted_waiting > 0)
        return to_adapters >= adapters->n_wanted_waiting && (idle || !adapters->quiet)
                   ? JUDGE_TO_ADAPTERS
                   : JUDGE_STAY;
    if (kv->gain > MARGIN * adapters->loss && to_kv > 0 && !kv->quiet)
        return JUDGE_TO_KV;
    if (adapters->gain > MARGIN * kv->loss && to_adapters > 0 && !adapters->quiet)
        return JUDGE_TO_ADAPTERS;
    return JUDGE_STAY;
}
