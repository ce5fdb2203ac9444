/* sequence: one request while the engine has it. Private to engine/. */
#ifndef TRIBUTARY_ENGINE_SEQUENCE_H
#define TRIBUTARY_ENGINE_SEQUENCE_H

#include "engine/loaded_adapters.h"
#include "engine/engine.h"
#include "engine/lora_pool.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct prefix_key; /* prefix_cache.h */

/* Allocated whole by the thread that submits, so that no step allocates for it; freed by the engine
 * thread after its FINISHED event was delivered and no step with it is on its way. */
struct sequence {
    uint64_t id; /* also its place in the order of arrival */
    void *user;
    struct sequence *previous, *next; /* of all that live; under the engine's lock */
    atomic_bool cancelled;            /* set by any thread */

    int32_t *tokens; /* [n_total_max] prompt, then what was generated */
    int n_prompt, n_tokens;
    int n_total_max; /* n_prompt + max_tokens, bounded by the context */
    int n_scored;    /* prompt positions whose log-probability was reported; from 1 */
    int32_t *stop_ids;
    int n_stop_ids;
    bool ignore_eos, prompt_logprobs;
    struct engine_sampling sampling; /* bias arrays are copies */
    int32_t *bias_ids;
    float *bias_values;
    struct monotonic_us deadline; /* 0: none */
    int payer;                    /* its place in the engine's table */
    float payer_weight;
    int priority;

    int n_adapters; /* those that do something: weight 0 is left out */
    struct loaded_adapter *adapters[ENGINE_ADAPTERS_MAX];
    float weights[ENGINE_ADAPTERS_MAX];

    /* The engine thread's. */
    bool running;
    bool was_admitted;
    bool queued;   /* in the engine's n_queued; under its lock */
    int n_charged; /* of the prompt, tokens the payer was charged or needn't be */
    int n_bypassed, n_preempted;
    int n_decoded; /* since it was admitted last */
    int n_flying;  /* steps enqueued with it whose results weren't taken */
    struct lora_pin pins[ENGINE_ADAPTERS_MAX];
    int32_t *blocks; /* [n_blocks] of blocks_for(n_total_max) */
    int n_blocks;
    int n_cached;
    /* sequence_blocks.c */
    struct prefix_key *keys; /* [1 + n_keys]; NULL: it takes no part in the prefix cache */
    int n_keys;
    int n_published;           /* its first blocks that are in the prefix cache */
    int n_found, n_found_idle; /* waiting: blocks it would find there; of these, used by nobody */
    int n_prompt_cached;       /* tokens that it found when it was first admitted */
    bool finished;
    enum engine_finish finish;
};

struct engine;

/* Frees it and lets its adapters go. It must not be running. */
void sequence_free(struct engine *e, struct sequence *s);

#endif
