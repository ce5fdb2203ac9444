/* answer_resolve: from the name in a request to a model that stays loaded until the answer's end.
 * A local name is found at once, on the http thread; another waits for a loader thread, since the
 * resolver may have to fetch it. See service.h for the whole. */
#include "node/service_internal.h"

#include "node/base/err.h"
#include "node/base/log.h"
#include "node/base/queue.h"

static void model_not_found(struct answer *a, const struct err *err)
{
    api_error_set(&a->failure, ERR_NOT_FOUND, "model", "%s", err->message);
    a->failure.code = "model_not_found";
}

void *service_loader_main(void *context)
{
    struct service *s = context;
    struct answer *a;
    while ((a = queue_pop(s->loading)) != NULL) {
        struct err err = {0};
        if (service_is_stopping(s)) {
            answer_shutting_down(a);
            atomic_fetch_sub(&s->n_loading, 1);
            answer_refuse(a);
            continue;
        }
        int rc = s->opt.resolver.resolve(s->opt.resolver.context, a->request.model, &a->model,
                                         &err);
        atomic_fetch_sub(&s->n_loading, 1);
        if (rc != 0 && err.code == ERR_NOT_FOUND) {
            model_not_found(a, &err);
            answer_refuse(a);
        } else if (rc != 0) {
            log_warn("service", "model %s: %s", a->request.model, err.message);
            api_error_hide(&err, "service");
            api_error_set(&a->failure, err.code, "model", "%s", err.message);
            answer_refuse(a);
        } else {
            a->model_resolved = true;
            answer_prepare(a);
        }
    }
    return NULL;
}

void answer_resolve(struct answer *a)
{
    struct service *s = a->service;
    if (service_find_local(s, a->request.model, &a->model)) {
        a->model_resolved = true;
        answer_prepare(a);
        return;
    }
    if (s->opt.resolver.resolve == NULL) {
        struct err err;
        err_set(&err, ERR_NOT_FOUND, "the model '%s' does not exist", a->request.model);
        model_not_found(a, &err);
        answer_refuse(a);
        return;
    }
    atomic_fetch_add(&s->n_loading, 1);
    if (!queue_try_push(s->loading, a)) {
        atomic_fetch_sub(&s->n_loading, 1);
        api_error_set(&a->failure, ERR_BUSY, "model",
                      "too many requests wait for adapters to be fetched");
        a->failure.retry_after_s = 2;
        answer_refuse(a);
    }
}
