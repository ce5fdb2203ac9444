/* engine_orders: adapters warmed, kept and evicted by hand. Engine thread only; engine.c has the
 * callers' side. An order is done between steps, and who gave it wakes up when its effect can be
 * seen in the stats. */
#include "engine/internal.h"

static int keep_adapter(struct engine *e, struct loaded_adapter *a, struct err *err)
{
    if (!lora_pool_prefetch(e->lora, a->lora, a, false))
        return err_set(err, ERR_BUSY, "there is no room on the device for the adapter now");
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

static int obey(struct engine *e, struct engine_order *o)
{
    switch (o->kind) {
    case ORDER_WARM:
        if (!lora_pool_prefetch(e->lora, o->adapter->lora, o->adapter, false))
            return err_set(&o->err, ERR_BUSY, "there is no room on the device for the adapter now");
        return 0;
    case ORDER_KEEP:
        return keep_adapter(e, o->adapter, &o->err);
    case ORDER_LET_GO:
        return let_go_adapter(e, o->adapter, &o->err);
    case ORDER_EVICT:
        return lora_pool_evict(e->lora, &o->content, &o->err);
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

void engine_obey(struct engine *e, struct engine_order *orders)
{
    for (struct engine_order *o = orders; o != NULL; o = o->next)
        o->rc = obey(e, o);
    if (orders != NULL)
        engine_publish_stats(e); /* who gave an order sees in the stats what it has done */
    report(e, orders);
}

void engine_refuse(struct engine *e, struct engine_order *orders)
{
    for (struct engine_order *o = orders; o != NULL; o = o->next)
        o->rc = err_set(&o->err, ERR_CANCELLED, "the engine is closing");
    report(e, orders);
}
