/* engine_orders: adapters warmed, kept and evicted by hand. Engine thread only; engine.c has the
 * callers' side. An order is done between steps, and who gave it wakes up when its effect can be
 * seen in the stats. One that finds no room in a region that could grow (engine_budget.c) is tried
 * once more, with nothing flying. */
#include "engine/internal.h"

enum outcome { DONE, LATER, DEVICE_FAILED }; /* LATER: when nothing flies */

/* Brings o's adapter to the device: o->rc. *err: of the device. */
static enum outcome bring(struct engine *e, struct engine_order *o, struct err *err)
{
    struct loaded_adapter *a = o->adapter;
    bool moved = false;
    o->rc = 0;
    if (lora_pool_prefetch(e->lora, a->lora, a, false))
        return DONE;
    if (e->shares && e->flying != NULL)
        return LATER;
    if (e->shares && engine_budget_make_room(e, a->lora->n_bytes, &moved, err) != 0)
        return DEVICE_FAILED;
    if (!moved || !lora_pool_prefetch(e->lora, a->lora, a, false))
        o->rc = err_set(&o->err, ERR_BUSY, "there is no room on the device for the adapter now");
    return DONE;
}

static int keep_adapter(struct engine *e, struct loaded_adapter *a, struct err *err)
{
    if (lora_pool_keep(e->lora, &a->lora->content, true, err) != 0)
        return -1;
    if (!a->kept)
        loaded_adapters_again(e->adapters, a);
    a->kept = true;
    return 0;
}

static int let_go_adapter(struct engine *e, struct loaded_adapter *a, struct err *err)
{
    if (!a->kept)
        return 0;
    a->kept = false;
    (void)lora_pool_keep(e->lora, &a->lora->content, false, err);
    return loaded_adapters_drop(e->adapters, &a->lora->content, err);
}

static enum outcome obey(struct engine *e, struct engine_order *o, struct err *err)
{
    enum outcome outcome;
    switch (o->kind) {
    case ORDER_WARM:
        return bring(e, o, err);
    case ORDER_KEEP:
        outcome = bring(e, o, err);
        if (outcome == DONE && o->rc == 0)
            o->rc = keep_adapter(e, o->adapter, &o->err);
        return outcome;
    case ORDER_LET_GO:
        o->rc = let_go_adapter(e, o->adapter, &o->err);
        return DONE;
    case ORDER_EVICT:
        o->rc = lora_pool_evict(e->lora, &o->content, &o->err);
        return DONE;
    }
    BUG("engine order %d", (int)o->kind);
}

static void report(struct engine *e, struct engine_order *orders)
{
    if (orders == NULL)
        return;
    pthread_mutex_lock(&e->lock);
    for (struct engine_order *o = orders; o != NULL; o = o->next)
        o->done = true; /* they are gone when the lock is */
    pthread_cond_broadcast(&e->obeyed);
    pthread_mutex_unlock(&e->lock);
}

/* To those that were given meanwhile, in no order. */
static void put_back(struct engine *e, struct engine_order *o)
{
    pthread_mutex_lock(&e->lock);
    o->next = e->orders;
    e->orders = o;
    pthread_mutex_unlock(&e->lock);
}

int engine_obey(struct engine *e, struct engine_order *orders, struct err *err)
{
    struct engine_order *done = NULL;
    int rc = 0;
    e->must_land = false;
    for (struct engine_order *o = orders, *next; o != NULL; o = next) {
        enum outcome outcome = rc == 0 ? obey(e, o, err) : LATER;
        next = o->next;
        rc = outcome == DEVICE_FAILED ? -1 : rc;
        if (outcome == DONE) {
            o->next = done;
            done = o;
        } else { /* an engine that failed refuses those that are left */
            e->must_land = true;
            put_back(e, o);
        }
    }
    if (done != NULL)
        engine_publish_stats(e); /* who gave an order sees in the stats what it has done */
    report(e, done);
    return rc;
}

void engine_refuse(struct engine *e, struct engine_order *orders)
{
    for (struct engine_order *o = orders; o != NULL; o = o->next)
        o->rc = err_set(&o->err, ERR_CANCELLED, "the engine is closing");
    report(e, orders);
}
