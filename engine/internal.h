/* internal: the engine's inside, for the files of this room and for tests that look behind the
 * door. */
#ifndef TRIBUTARY_ENGINE_INTERNAL_H
#define TRIBUTARY_ENGINE_INTERNAL_H

#include "engine/budget.h"
#include "engine/engine.h"
#include "engine/forward.h"
#include "engine/host_memory.h"
#include "engine/judge.h"
#include "engine/kv_pool.h"
#include "engine/loaded_adapters.h"
#include "engine/lora_pool.h"
#include "engine/model.h"
#include "engine/payers.h"
#include "engine/prefix_cache.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/step.h"
#include "engine/weights.h"
#include "node/base/err.h"

#include <pthread.h>
#include <string.h>

/* What engine_adapter_warm and its like ask of the engine thread; the caller's, who waits. */
enum engine_order_kind { ORDER_WARM, ORDER_KEEP, ORDER_LET_GO, ORDER_EVICT };

struct engine_order {
    enum engine_order_kind kind;
    struct content_digest content;
    struct loaded_adapter *adapter; /* used by the caller meanwhile; NULL: ORDER_EVICT */
    bool done;
    int rc;
    struct err err;
    struct engine_order *next;
};

/* engine_budget.c's own notes. */
struct mover {
    struct judge_costs costs;
    int32_t *moved;                                /* [blocks] new number of one that moves ... */
    int32_t *from, *to;                            /* ... and all that move, for the copies */
    uint64_t kv_quiet_until, adapters_quiet_until; /* plans */
    uint64_t look_after;                           /* the last look was in vain: a plan */
    uint64_t n_prefixes_then, n_adapters_then;     /* evicted, at the last look */
};

enum engine_state { ENGINE_OPENING, ENGINE_OPEN, ENGINE_CLOSING, ENGINE_FAILED };

/* A step whose results are about to be taken, as the engine counts it: its rows that decode, and
 * the distinct adapters of its sequences that haven't ended. On the engine thread. */
typedef void engine_step_hook(void *context, const struct step_batch *batch, int n_decode,
                              int n_distinct, uint64_t step_us);

struct engine {
    struct engine_options options; /* defaults filled in */
    struct model *model;
    struct engine_model public_model;
    struct tokenizer *tokenizer;
    struct chat_template *chat_template;
    struct loaded_adapters *adapters;
    struct host_memory *host;  /* where their matrices lie */
    int max_context;           /* the model's, the options' and the KV cache's least */
    enum lora_held held;       /* what adapters are held as; constant once the engine is open */
    size_t adapter_pool_bytes; /* at open: what a request's adapters may take together */
    char backend_text[128];
    struct prefix_secret prefix_secret;

    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;   /* for the engine thread: intake, cancel, closing */
    pthread_cond_t opened; /* for engine_open */
    pthread_cond_t obeyed; /* for those who have given orders */

    /* Under the lock. */
    enum engine_state state;
    struct err failure;       /* ENGINE_FAILED: why */
    struct sequence *live;    /* every sequence between submit and FINISHED */
    struct sequence **intake; /* [n_intake] submitted, not yet seen; memory for max_waiting */
    int n_intake;
    struct engine_order *orders;
    int n_queued; /* submitted or preempted, not running: what max_waiting bounds at submit */
    struct payers *payers; /* its door */
    uint64_t next_id;
    struct engine_stats stats;

    /* The engine thread's alone. */
    const struct ops *ops;
    struct backend *be;
    struct weights weights;
    struct forward forward;
    struct stepper stepper;
    bool overlaps;        /* steps are enqueued ahead */
    bool must_land;       /* but not now: an order waits until nothing flies */
    bool prefetches;      /* adapters of those that wait */
    struct step *flying;  /* enqueued, its results not taken; NULL: none */
    bool shares;          /* adapters and KV cache share their memory ... */
    struct budget budget; /* ... in bricks */
    struct mover mover;
    struct kv_pool *kv;
    int32_t pad_block; /* padding's, of kv */
    struct prefix_cache *prefixes;
    uint64_t n_evicted_then; /* of prefixes, when blocks were disowned the last time */
    struct lora_pool *lora;
    struct sequence **running; /* [n_running] ascending by id */
    int n_running;
    struct sequence **waiting; /* [n_waiting] ascending by id */
    int n_waiting;
    struct sequence **done; /* [n_done] finished, to be freed when their event is out and they fly
                               no more */
    int n_done;
    struct engine_event *events; /* [n_events] of max_events */
    int n_events, max_events;
    struct sched_seq *sched_running, *sched_waiting;
    struct sched_adapter *sched_adapters;
    struct sched_plan plan;
    int n_payers_known;
    struct sched_carry carry;    /* of the last plan that was carried out */
    struct engine_stats counts;  /* copied to stats once a step */
    uint64_t n_plans;            /* made */
    uint64_t n_carried;          /* plans carried out */
    int n_idle_plans;            /* of these, in a row, those that computed nothing */
    struct monotonic_us retired; /* when the newest results were taken */
    engine_step_hook *step_hook; /* NULL: none */
    void *step_context;
};

/* As engine_open, of a model that is already there and is taken over, success or not. No tokenizer.
 */
int engine_open_model(struct engine **out, struct model *model,
                      const struct engine_options *options, struct err *err);

/* As engine_adapter_load, of an adapter that is already in memory and is taken over. */
int engine_adapter_add(struct engine *e, struct lora_adapter *adapter, struct err *err);

/* engine_run.c: the engine thread; what it publishes once a step. */
void *engine_thread(void *engine);
void engine_publish_stats(struct engine *e);

/* engine_plan.c: fills e->plan. after: for the state behind the flying step, in which every running
 * sequence draws and none is taken to stop. */
void engine_make_plan(struct engine *e, bool after);

/* engine_budget.c: what it needs, when the engine opens, of an engine that shares; memory for the
 * KV cache's first bricks; and between plan and step, with nothing flying: moves bricks as e->plan
 * wants them. *moved: the plan must be made anew. Fails when the device does. */
void engine_budget_open(struct engine *e, bool own_memory);
int engine_budget_back_kv(struct engine *e, struct err *err);
int engine_budget_balance(struct engine *e, bool *moved, struct err *err);
/* With nothing flying: so many bytes more for adapters, if they can be had (*moved). */
int engine_budget_make_room(struct engine *e, size_t n_bytes, bool *moved, struct err *err);
void engine_budget_close(struct engine *e);

static inline bool engine_has_int8(const struct engine_options *o) /* weights, NULL or checked */
{
    return o->weights != NULL && strcmp(o->weights, "int8") == 0;
}

/* Blocks of the KV cache that have memory now, but padding's. */
static inline int engine_n_blocks(const struct engine *e)
{
    return kv_pool_n_blocks(e->kv) - 1;
}

/* engine_orders.c: does what was ordered, or says that the engine is closing; wakes who waits. What
 * needs memory that only moves with nothing flying is put back, and e->must_land set; fails when
 * the device does. */
int engine_obey(struct engine *e, struct engine_order *orders, struct err *err);
void engine_refuse(struct engine *e, struct engine_order *orders);

/* engine_device.c: opens and closes everything that thread owns; close also after a failed open. */
int engine_device_open(struct engine *e, struct err *err);
void engine_device_close(struct engine *e);

enum { ENGINE_WAITING_EVENTS_EXTRA = 256 }; /* room for the ends of waiting ones in one delivery */

/* Tests only: the operators of engines that are opened from now on, whatever their options name;
 * NULL: as named. */
extern const struct ops *engine_debug_ops;

/* Tests only; while nothing runs. */
void engine_set_step_hook(struct engine *e, engine_step_hook *hook, void *context);
void engine_set_logits_hook(struct engine *e, logits_hook *hook, void *context);
void engine_swap_adapters(struct engine *e, const struct content_digest *a,
                          const struct content_digest *b);

#endif
