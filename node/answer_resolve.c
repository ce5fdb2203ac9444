/* answer_resolve: from the names in a request to adapters that stay loaded until the answer's end.
 *
 * A request names one model, or an ensemble of adapters. Each name is a slot, and each slot is told
 * once, by this thread (what is in host memory) or by a thread of the resolver's, which had to
 * bring it:
 *
 *     answer_resolve --asks for every slot--> tell ... tell --the last--> all_told
 *
 * a->n_untold counts the slots that wait, and answer_resolve itself, so that nothing is finished
 * before everything was asked for. All or nothing: where a name fails, the first that did (in the
 * request's order) is what the client reads, and what the others found is released.
 *
 * What an answer holds takes room in host memory, so two that hold a part of what they need and
 * wait for the rest could wait for each other. So only one answer at a time, the one that gathers,
 * holds adapters while it waits for others. An ensemble that isn't there at once gives back what it
 * was told, lets every adapter be brought near (from a registry, which may take long, to the disk),
 * and then stands in line to gather, when what it waits for is room, which running answers leave
 * soon:
 *
 *     answer_resolve --all there at once---------------------------> all_told --> resolved
 *            `--let_go--> all_told --> stand_in_line --> gather ---> all_told --> resolved
 *
 * Who stands in line doesn't begin while somebody else waits for room who asked before and whom it
 * would be in the way of; once it gathers, what it waits for goes first (adapter_room.c).
 *
 * What gets pinned while an answer gathers may leave no room for what it waits for, and then it
 * would hold its part in vain, and up everybody else; so the service thread looks again now and
 * then.
 *
 * An answer whose time is up meanwhile, or whose client has gone, is taken away by the service
 * thread (answers_expire), so that it holds no place among those that may wait, here or for a
 * fetch. Who takes it off the list of waiting answers, under the service's lock, is the one who
 * goes on with it; then all_told has nothing left to do but to release. See service.h for the
 * whole. */
#include "node/service_internal.h"

#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/log.h"
#include "node/base/usage.h"
#include "node/ensemble.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

_Static_assert((int)OPENAI_ADAPTERS_MAX <= (int)USAGE_ADAPTERS_MAX &&
                   (int)OPENAI_ADAPTERS_MAX <= (int)ENGINE_ADAPTERS_MAX,
               "an ensemble must fit into a usage and into an engine's request");

enum { LINE_WAIT_US = 30000000, LOOK_AGAIN_US = 200000, LOOK_FOR_GONE_US = 500000 };

static void ask_for_all(struct answer *a);

/* Which field of the request gives name i; param [48]. */
static const char *name_param(const struct answer *a, size_t i, char param[48])
{
    if (a->is_ensemble)
        snprintf(param, 48, "adapters[%zu].model", i);
    else
        snprintf(param, 48, "model");
    return param;
}

static void not_resolved(struct answer *a, size_t i, const struct err *why)
{
    char param[48];
    struct err err = *why;
    if (err.code != ERR_NOT_FOUND && err.code != ERR_BUSY) {
        log_warn("service", "model %s: %s", a->request.adapters[i].model, err.message);
        api_error_hide(&err, "service");
    }
    api_error_set(&a->failure, err.code, name_param(a, i, param), "%s", err.message);
    if (err.code == ERR_NOT_FOUND)
        a->failure.code = "model_not_found";
}

static int check_ensemble(struct answer *a)
{
    char param[48];
    if (!a->is_ensemble)
        return 0;
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

static int admit(struct answer *a)
{
    const struct service_customer *c = &a->customer;
    if (c->admit == NULL || a->n_adapters == 0 ||
        c->admit(c->context, a->models, a->n_adapters, &a->failure) == 0)
        return 0;
    snprintf(a->failure.param, sizeof a->failure.param, "%s",
             a->is_ensemble ? "adapters" : "model");
    return -1;
}

/* All models are there; goes on as answer_prepare does. */
static void resolved(struct answer *a)
{
    name_and_share(a);
    if (admit(a) != 0) {
        answer_refuse(a);
        return;
    }
    answer_prepare(a);
}

/* ---- waiting -----------------------------------------------------------------------------------
 */

static void wait_for_models(struct answer *a)
{
    struct service *s = a->service;
    pthread_mutex_lock(&s->lock);
    a->waits = true;
    a->prev = NULL;
    a->next = s->waiting;
    if (a->next != NULL)
        a->next->prev = a;
    else
        s->look_for_gone.us = clock_monotonic_us().us + LOOK_FOR_GONE_US;
    s->waiting = a;
    atomic_fetch_add(&s->n_loading, 1);
    pthread_cond_signal(&s->arrived); /* it may be the next that is up, or the first */
    pthread_mutex_unlock(&s->lock);
}

/* Under the service's lock. False: somebody else has it. */
static bool take_waiting(struct answer *a)
{
    struct service *s = a->service;
    if (!a->waits)
        return false;
    if (a->prev != NULL)
        a->prev->next = a->next;
    else
        s->waiting = a->next;
    if (a->next != NULL)
        a->next->prev = a->prev;
    a->waits = false;
    a->prev = a->next = NULL;
    atomic_fetch_sub(&s->n_loading, 1);
    return true;
}

uint64_t answers_next_deadline(const struct service *s)
{
    uint64_t next = 0;
    for (const struct answer *a = s->waiting; a != NULL; a = a->next) {
        if (a->deadline.us != 0 && (next == 0 || a->deadline.us < next))
            next = a->deadline.us;
    }
    if (s->waiting != NULL && (next == 0 || s->look_for_gone.us < next))
        next = s->look_for_gone.us;
    if ((s->gatherer != NULL || s->line != NULL) && (next == 0 || s->look_again.us < next))
        next = s->look_again.us;
    return next;
}

/* ---- gathering ---------------------------------------------------------------------------------
 */

static void give_back(struct answer *a, const struct resolved *r)
{
    struct service *s = a->service;
    if (r->handle != NULL)
        s->opt.resolver.release(s->opt.resolver.context, r);
}

/* From now on nothing is held that is found: not what was, and not what will be. */
static void let_go(struct answer *a)
{
    struct resolved found[OPENAI_ADAPTERS_MAX];
    pthread_mutex_lock(&a->service->lock);
    a->lets_go = true;
    memcpy(found, a->models, sizeof found);
    for (size_t i = 0; i < a->n_models; i++)
        a->models[i].handle = NULL;
    pthread_mutex_unlock(&a->service->lock);
    for (size_t i = 0; i < a->n_models; i++)
        give_back(a, &found[i]);
}

/* Room that there will never be is not waited for: ERR_TOO_LARGE. ERR_BUSY: somebody waits for it
 * who asked before `since`. */
static int check_room(struct answer *a, struct monotonic_us since, struct err *err)
{
    const struct service_resolver *r = &a->service->opt.resolver;
    const char *names[OPENAI_ADAPTERS_MAX];
    for (size_t i = 0; i < a->n_models; i++)
        names[i] = a->request.adapters[i].model;
    return r->fits == NULL ? 0 : r->fits(r->context, names, a->models, a->n_models, since, err);
}

static void no_room(struct answer *a, const struct err *why)
{
    api_error_set(&a->failure, why->code, "adapters", "%s", why->message);
}

static void stand_in_line(struct answer *a)
{
    struct service *s = a->service;
    struct answer **end = &s->line;
    a->in_line = clock_monotonic_us();
    pthread_mutex_lock(&s->lock);
    while (*end != NULL)
        end = &(*end)->next_in_line;
    *end = a;
    pthread_mutex_unlock(&s->lock);
}

/* Takes the first in line who still waits, whom somebody in front didn't hold up for too long, and
 * for whom there still can be room; NULL: nobody, or its time hasn't come. Under the service's
 * lock, let go of meanwhile. */
static struct answer *next_in_line(struct service *s)
{
    for (struct answer *a; (a = s->line) != NULL;) {
        struct err err = {0};
        bool too_early = false;
        pthread_mutex_unlock(&s->lock);
        if (clock_elapsed_us(a->in_line, clock_monotonic_us()) > LINE_WAIT_US)
            err_set(&err, ERR_BUSY, "too many wait for room in host memory");
        else if (check_room(a, a->in_line, &err) != 0)
            too_early = err.code == ERR_BUSY;
        pthread_mutex_lock(&s->lock);
        if (a->waits && too_early)
            return NULL;
        s->line = a->next_in_line;
        if (a->waits && err.code == ERR_OK)
            return a;
        bool mine = take_waiting(a);
        pthread_mutex_unlock(&s->lock);
        if (mine) {
            no_room(a, &err);
            answer_refuse(a);
        }
        answer_drop(a); /* the slots' reference */
        pthread_mutex_lock(&s->lock);
    }
    return NULL;
}

/* Lets one after another gather, as long as nobody has to be waited for. */
static void gather(struct service *s)
{
    pthread_mutex_lock(&s->lock);
    if (s->calls_up) { /* a call below this one, or another thread's, goes on with it */
        pthread_mutex_unlock(&s->lock);
        return;
    }
    s->calls_up = true;
    while (s->gatherer == NULL && (s->gatherer = next_in_line(s)) != NULL) {
        struct answer *a = s->gatherer;
        a->lets_go = false;
        a->gathers = ++s->n_gathered;
        s->look_again.us = clock_monotonic_us().us + LOOK_AGAIN_US;
        pthread_cond_signal(&s->arrived);
        pthread_mutex_unlock(&s->lock);
        ask_for_all(a);
        pthread_mutex_lock(&s->lock);
    }
    s->calls_up = false;
    if (s->gatherer == NULL && s->line != NULL) { /* others come first */
        s->look_again.us = clock_monotonic_us().us + LOOK_AGAIN_US;
        pthread_cond_signal(&s->arrived);
    }
    pthread_mutex_unlock(&s->lock);
}

/* Refuses an answer that was taken: what it holds and its place are others' at once, not when the
 * loads that it waited for have ended. */
static void give_up(struct answer *a)
{
    struct service *s = a->service;
    pthread_mutex_lock(&s->lock);
    if (s->gatherer == a)
        s->gatherer = NULL;
    pthread_mutex_unlock(&s->lock);
    let_go(a);
    atomic_fetch_add(&a->refs, 1);
    answer_refuse(a);
    for (size_t i = 0; i < a->n_models && s->opt.resolver.give_up != NULL; i++)
        s->opt.resolver.give_up(s->opt.resolver.context, &a->slots[i]);
    answer_drop(a);
}

static void look_at_gatherer(struct service *s)
{
    struct err err = {0};
    bool mine = false;
    uint64_t now = clock_monotonic_us().us;
    pthread_mutex_lock(&s->lock);
    struct answer *a = s->gatherer;
    if (a == NULL || now < s->look_again.us) {
        pthread_mutex_unlock(&s->lock);
        return;
    }
    s->look_again.us = now + LOOK_AGAIN_US;
    /* Under the lock, so that nobody goes on with it meanwhile. */
    if (check_room(a, (struct monotonic_us){0}, &err) != 0)
        mine = take_waiting(a);
    pthread_mutex_unlock(&s->lock);
    if (mine) {
        no_room(a, &err);
        give_up(a);
    }
}

void answers_expire(struct service *s)
{
    struct answer *up = NULL;
    uint64_t now = clock_monotonic_us().us;
    pthread_mutex_lock(&s->lock);
    bool looks = s->look_for_gone.us <= now;
    if (looks)
        s->look_for_gone.us = now + LOOK_FOR_GONE_US;
    for (struct answer *a = s->waiting, *next; a != NULL; a = next) {
        next = a->next;
        bool late = a->deadline.us != 0 && a->deadline.us <= now;
        a->gone = looks && http_gone(a->x);
        if ((late || a->gone) && take_waiting(a)) {
            a->next = up;
            up = a;
        }
    }
    pthread_mutex_unlock(&s->lock);
    for (struct answer *next; up != NULL; up = next) {
        next = up->next;
        up->next = NULL;
        if (up->gone) {
            atomic_fetch_add(&s->n_vanished, 1);
            api_error_set(&up->failure, ERR_CANCELLED, NULL, "nobody waits for the answer");
        } else {
            api_error_set(&up->failure, ERR_TIMEOUT, NULL,
                          "the request's time was up before its adapter was here");
        }
        give_up(up);
    }
    look_at_gatherer(s);
    gather(s);
}

static void all_told(struct answer *a)
{
    struct service *s = a->service;
    bool gathered = a->gathers != 0;
    pthread_mutex_lock(&s->lock);
    bool mine = take_waiting(a);
    if (s->gatherer == a)
        s->gatherer = NULL;
    pthread_mutex_unlock(&s->lock);
    struct err err;
    size_t failed = 0;
    while (failed < a->n_models && a->why_not[failed] == NULL)
        failed++;
    if (mine)
        a->models_told = true;
    else
        let_go(a);
    if (!mine) {
        /* whoever took it has answered */
    } else if (service_is_stopping(s)) {
        answer_shutting_down(a);
        answer_refuse(a);
    } else if (failed < a->n_models) {
        not_resolved(a, failed, a->why_not[failed]);
        answer_refuse(a);
    } else if (check_ensemble(a) != 0) {
        answer_refuse(a);
    } else if (a->lets_go && check_room(a, (struct monotonic_us){0}, &err) != 0) {
        no_room(a, &err);
        answer_refuse(a);
    } else if (a->lets_go) {
        a->models_told = false;
        wait_for_models(a);
        stand_in_line(a);
        gather(s);
        return;
    } else {
        resolved(a);
    }
    answer_drop(a); /* the slots' reference */
    if (gathered)
        gather(s);
}

/* Once for each slot: out (copied), or NULL and why not. Any thread. */
static void tell(struct answer_slot *slot, const struct resolved *out, const struct err *why)
{
    struct answer *a = slot->answer;
    if (out != NULL) {
        pthread_mutex_lock(&a->service->lock);
        bool held = !a->lets_go;
        a->models[slot->i] = *out;
        if (!held)
            a->models[slot->i].handle = NULL;
        pthread_mutex_unlock(&a->service->lock);
        if (!held)
            give_back(a, out);
    } else {
        a->why_not[slot->i] = xmalloc(sizeof *why);
        *a->why_not[slot->i] = *why;
    }
    if (atomic_fetch_sub(&a->n_untold, 1) == 1)
        all_told(a);
}

/* ---- asking ------------------------------------------------------------------------------------
 */

static void on_resolved(void *user, const struct resolved *out, const struct err *why)
{
    tell(user, out, why);
}

static void ask(struct answer_slot *slot)
{
    struct answer *a = slot->answer;
    struct service *s = a->service;
    const char *name = a->request.adapters[slot->i].model;
    struct err err;
    if (strcmp(name, s->base_name) == 0) {
        struct resolved base = {.is_base = true};
        snprintf(base.name, sizeof base.name, "%s", s->base_name);
        tell(slot, &base, NULL);
    } else if (s->opt.resolver.resolve == NULL) {
        err_set(&err, ERR_NOT_FOUND, "the model '%s' does not exist", name);
        tell(slot, NULL, &err);
    } else {
        s->opt.resolver.resolve(s->opt.resolver.context, name, a->customer.payer, a->gathers,
                                on_resolved, slot);
    }
}

static void ask_for_all(struct answer *a)
{
    atomic_store(&a->n_untold, (int)a->n_models + 1);
    for (size_t i = 0; i < a->n_models; i++) {
        a->slots[i] = (struct answer_slot){a, i};
        ask(&a->slots[i]);
    }
    if (a->n_models > 1 && a->gathers == 0 && atomic_load(&a->n_untold) > 1)
        let_go(a);
    if (atomic_fetch_sub(&a->n_untold, 1) == 1)
        all_told(a);
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
    if (take_names(a) != 0) {
        answer_refuse(a);
        return;
    }
    atomic_fetch_add(&a->refs, 1); /* the slots' */
    wait_for_models(a);
    ask_for_all(a);
}
