/* answer_resolve: from the names in a request to adapters that stay loaded until the answer's end.
 *
 * A request names one model, or an ensemble of adapters. What is local is found at once, on the
 * http thread; if anything is not, the answer waits for a loader thread, since the resolver may
 * have to fetch it. One loader takes all that an answer lacks, one after the other. All or nothing:
 * where one name fails, what was resolved before it is released by answer_end. See service.h for
 * the whole. */
#include "node/service_internal.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/base/queue.h"
#include "node/base/usage.h"
#include "node/ensemble.h"

#include <stdio.h>
#include <string.h>

_Static_assert((int)OPENAI_ADAPTERS_MAX <= (int)USAGE_ADAPTERS_MAX &&
                   (int)OPENAI_ADAPTERS_MAX <= (int)ENGINE_ADAPTERS_MAX,
               "an ensemble must fit into a usage and into an engine's request");

/* Which field of the request gives name i; param [48]. */
static const char *name_param(const struct answer *a, size_t i, char param[48])
{
    if (a->is_ensemble)
        snprintf(param, 48, "adapters[%zu].model", i);
    else
        snprintf(param, 48, "model");
    return param;
}

static int not_resolved(struct answer *a, size_t i, const struct err *err)
{
    char param[48];
    api_error_set(&a->failure, err->code, name_param(a, i, param), "%s", err->message);
    if (err->code == ERR_NOT_FOUND)
        a->failure.code = "model_not_found";
    return -1;
}

static int check_ensemble(struct answer *a)
{
    char param[48];
    for (size_t i = 0; i < a->n_models; i++) {
        if (a->models[i].is_base)
            return api_error_set(&a->failure, ERR_INVALID, name_param(a, i, param),
                                 "'%s' is %s, the base model; 'adapters' takes adapters of it",
                                 param, a->models[i].name);
        for (size_t k = 0; k < i; k++) {
            if (DIGEST_EQ(a->models[i].content, a->models[k].content))
                return api_error_set(&a->failure, ERR_INVALID, name_param(a, i, param),
                                     "'%s' is the same adapter as 'adapters[%zu].model'; give it "
                                     "one weight",
                                     param, k);
        }
    }
    return 0;
}

static void name_and_share(struct answer *a)
{
    const char *names[OPENAI_ADAPTERS_MAX];
    struct buf name = BUF_INIT;
    for (size_t i = 0; i < a->n_models; i++)
        names[i] = a->models[i].name;
    ensemble_name(&name, names, a->weights, a->n_models);
    a->model_name = xstrdup(buf_cstr(&name));
    buf_release(&name);
    a->n_adapters = a->models[0].is_base ? 0 : a->n_models;
    if (a->n_adapters > 0)
        ensemble_shares(a->shares, a->weights, a->n_adapters);
}

/* All models are there. */
static void resolved(struct answer *a)
{
    if (a->is_ensemble && check_ensemble(a) != 0) {
        answer_refuse(a);
        return;
    }
    name_and_share(a);
    answer_prepare(a);
}

static int resolve_missing(struct answer *a)
{
    const struct service_resolver *r = &a->service->opt.resolver;
    for (size_t i = 0; i < a->n_models; i++) {
        struct err err = {0};
        const char *name = a->request.adapters[i].model;
        if (a->models[i].name[0] != '\0')
            continue;
        if (r->resolve(r->context, name, &a->models[i], &err) == 0)
            continue;
        a->models[i] = (struct resolved){0};
        if (err.code != ERR_NOT_FOUND) {
            log_warn("service", "model %s: %s", name, err.message);
            api_error_hide(&err, "service");
        }
        return not_resolved(a, i, &err);
    }
    return 0;
}

void *service_loader_main(void *context)
{
    struct service *s = context;
    struct answer *a;
    while ((a = queue_pop(s->loading)) != NULL) {
        bool stopping = service_is_stopping(s);
        if (stopping)
            answer_shutting_down(a);
        int rc = stopping ? -1 : resolve_missing(a);
        atomic_fetch_sub(&s->n_loading, 1);
        if (rc != 0)
            answer_refuse(a);
        else
            resolved(a);
    }
    return NULL;
}

/* The names as one list, whichever way they were given. */
static int take_names(struct answer *a)
{
    struct openai_request *r = &a->request;
    a->is_ensemble = r->n_adapters > 0;
    if (!a->is_ensemble)
        r->adapters[r->n_adapters++] = (struct openai_adapter){r->model, 1.0F};
    else if (r->model != NULL && strcmp(r->model, a->service->base_name) != 0)
        return api_error_set(&a->failure, ERR_INVALID, "model",
                             "with 'adapters', 'model' must be %s, the base model, or be left out",
                             a->service->base_name);
    a->n_models = r->n_adapters;
    for (size_t i = 0; i < a->n_models; i++)
        a->weights[i] = r->adapters[i].weight;
    return 0;
}

void answer_resolve(struct answer *a)
{
    struct service *s = a->service;
    bool all = true;
    if (take_names(a) != 0) {
        answer_refuse(a);
        return;
    }
    for (size_t i = 0; i < a->n_models; i++) {
        const char *name = a->request.adapters[i].model;
        if (service_find_local(s, name, &a->models[i]))
            continue;
        all = false;
        if (s->opt.resolver.resolve == NULL) {
            struct err err;
            err_set(&err, ERR_NOT_FOUND, "the model '%s' does not exist", name);
            not_resolved(a, i, &err);
            answer_refuse(a);
            return;
        }
    }
    if (all) {
        resolved(a);
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
