/* judge: what device memory is worth where it is, and whether a brick of it should move. Pure
 * functions of numbers: no clock, no device.
 *
 * Words: a brick is the unit in which memory moves between the adapters' region and the KV cache
 * (engine_budget.c). Worth is time expected to be saved, in seconds a step: what it would take to
 * have the thing again, times the chance that a step asks for it. */
#ifndef TRIBUTARY_ENGINE_JUDGE_H
#define TRIBUTARY_ENGINE_JUDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct judge_costs {
    double token_s; /* to prefill one token */
    double byte_s;  /* to bring one byte of an adapter to the device */
    double fixed_s; /* and any adapter, whatever its size */
};

/* Estimated from sizes: of a model with so many parameters, on a device with memory of its own or
 * on the host. */
struct judge_costs judge_costs(uint64_t n_params, bool own_memory);

/* A thing that nobody uses now: n_uses when it was last used, `age` steps ago. */
double judge_adapter(const struct judge_costs *costs, size_t n_bytes, uint32_t n_uses,
                     uint64_t age);

enum judge_owner { OWNER_HERE, OWNER_AWAY, OWNER_GONE };
/* A prefix block of n_tokens that was found n_found times. Its adapter is on the device (or it
 * needs none), away, or unloaded. adapter_bytes: of an adapter of the usual size. */
double judge_block(const struct judge_costs *costs, int n_tokens, uint32_t n_found, uint64_t age,
                   enum judge_owner owner, size_t adapter_bytes);

/* One side of the budget. */
struct judge_side {
    int n_bricks, n_min, n_max;
    /* Bricks without which a sequence can't go on (running: it would be preempted) or can't begin;
     * 0: none. */
    int n_wanted_running, n_wanted_waiting;
    /* Bricks it could give without taking anything from who uses it; giving the next one loses
     * `loss` (seconds a step). */
    int n_idle;
    double loss;
    /* What one more brick would have kept of what it evicts now; 0: it evicts nothing. */
    double gain;
    bool quiet; /* the other side got a brick from it a short while ago: not to be taken back yet */
};

enum judge_verdict { JUDGE_STAY, JUDGE_TO_KV, JUDGE_TO_ADAPTERS };

/* The next brick's move. idle: no sequence runs, so that steps don't pass and quiet doesn't end.
 *
 *  1. Blocks that running sequences need, to the last brick that can be had: idle adapters go
 *     before a sequence is preempted.
 *  2. Blocks, then adapters, that waiting sequences need, if all of what is wanted can be had. A
 *     side of which something is wanted in vain gives nothing.
 *  3. If nothing is wanted, a brick goes where it keeps more than twice of what it loses.
 *
 * 2 and 3 wait while the receiving side is quiet, 2 not when idle. */
enum judge_verdict judge(const struct judge_side *kv, const struct judge_side *adapters, bool idle);

#endif
