/* service_names: the base model's name and the local adapters', given on the command line. Adapters
 * that come from registries are the resolver's. The table only grows. */
#include "node/service_internal.h"

#include "attribution/attribution.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int digest_of(const char *model, struct content_digest *out)
{
    if (strncmp(model, "sha256:", 7) == 0)
        model += 7;
    return hex_decode(out->bytes, 32, model);
}

bool service_find_local(struct service *s, const char *model, struct resolved *out)
{
    *out = (struct resolved){0};
    if (strcmp(model, s->base_name) == 0) {
        snprintf(out->name, sizeof out->name, "%s", s->base_name);
        out->is_base = true;
        return true;
    }
    struct content_digest digest;
    bool by_digest = digest_of(model, &digest) == 0, found = false;
    pthread_mutex_lock(&s->names_lock);
    for (const struct local_adapter *l = s->adapters; l != NULL && !found; l = l->next) {
        found = strcmp(l->name, model) == 0 || (by_digest && DIGEST_EQ(l->facts.content, digest));
        if (found) {
            memcpy(out->name, l->name, sizeof out->name);
            out->content = l->facts.content;
        }
    }
    pthread_mutex_unlock(&s->names_lock);
    struct ledger_adapter known;
    /* Registered or not, a local adapter is served; it earns for its earliest registration. */
    if (found && ledger_adapter_by_content(s->ledger, &known, out->content, NULL) == 0)
        out->id = known.id;
    return found;
}

int service_add_adapter(struct service *s, const char *name, const char *dir, struct err *err)
{
    if (name[0] == '\0' || strlen(name) >= SERVICE_NAME_BYTES)
        return err_set(err, ERR_INVALID, "adapter name \"%s\" must have 1 to %d bytes", name,
                       SERVICE_NAME_BYTES - 1);
    struct local_adapter *l = xcalloc(1, sizeof *l);
    snprintf(l->name, sizeof l->name, "%s", name);
    if (engine_adapter_load(s->engine, dir, &l->facts, err) != 0) {
        free(l);
        return err_wrap(err, "adapter %s", name);
    }
    pthread_mutex_lock(&s->names_lock);
    bool taken = strcmp(name, s->base_name) == 0;
    struct local_adapter **tail = &s->adapters;
    for (; *tail != NULL; tail = &(*tail)->next)
        taken = taken || strcmp((*tail)->name, name) == 0;
    if (!taken)
        *tail = l;
    pthread_mutex_unlock(&s->names_lock);
    if (taken) {
        engine_adapter_drop(s->engine, &l->facts.content, NULL);
        free(l);
        return err_set(err, ERR_CONFLICT, "two models are named \"%s\"", name);
    }
    char hex[65];
    log_info("service", "adapter %s: rank %d, %d linears (%s), digest %s", name, l->facts.rank_max,
             l->facts.n_sites, l->facts.targets, hex_encode(hex, l->facts.content.bytes, 32));
    return 0;
}

static json_t *model_object(const char *name, const char *owner)
{
    return json_pack("{s:s, s:s, s:i, s:s}", "id", name, "object", "model", "created", 0,
                     "owned_by", owner);
}

json_t *service_models(struct service *s)
{
    json_t *data = json_array();
    const struct engine_model *m = engine_model(s->engine);
    json_t *base = model_object(s->base_name, "operator");
    char hex[67];
    json_object_set_new(base, "model_id", json_string(hex_encode_0x(hex, m->id.bytes, 32)));
    json_object_set_new(base, "max_model_len", json_integer(m->max_context));
    json_array_append_new(data, base);
    pthread_mutex_lock(&s->names_lock);
    for (const struct local_adapter *l = s->adapters; l != NULL; l = l->next) {
        json_t *one = model_object(l->name, "operator");
        json_object_set_new(one, "parent", json_string(s->base_name));
        json_object_set_new(one, "content_digest",
                            json_string(hex_encode(hex, l->facts.content.bytes, 32)));
        json_object_set_new(one, "rank", json_integer(l->facts.rank_max));
        json_array_append_new(data, one);
    }
    pthread_mutex_unlock(&s->names_lock);
    if (s->opt.resolver.list != NULL)
        s->opt.resolver.list(s->opt.resolver.context, data);
    return json_pack("{s:s, s:o}", "object", "list", "data", data);
}

json_t *service_model(struct service *s, const char *name, struct err *err)
{
    json_t *list = service_models(s), *one, *found = NULL;
    size_t i;
    json_array_foreach(json_object_get(list, "data"), i, one)
    {
        const char *id = json_string_value(json_object_get(one, "id"));
        const char *digest = json_string_value(json_object_get(one, "content_digest"));
        if ((id != NULL && strcmp(id, name) == 0) ||
            (digest != NULL && strcmp(digest, name) == 0)) {
            found = json_incref(one);
            break;
        }
    }
    json_decref(list);
    if (found == NULL)
        err_set(err, ERR_NOT_FOUND, "the model '%s' does not exist", name);
    return found;
}
