/* service_names: the models of /v1/models: the base model, and what the resolver lists; and what
 * says how the base model computes. */
#include "node/service_internal.h"

#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/node.h"

#include <stdio.h>
#include <string.h>

static json_t *base_object(const struct service *s)
{
    const struct engine_model *m = engine_model(s->engine);
    char hex[67], served[67];
    return json_pack("{s:s, s:s, s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:i}", "id", s->base_name,
                     "object", "model", "created", 0, "owned_by", "operator", "model_id",
                     hex_encode_0x(hex, m->id.bytes, 32), "weights", m->weights, "adapter_dtype",
                     m->adapter_dtype, "receipt_model_id",
                     hex_encode_0x(served, m->served_id.bytes, 32), "system_fingerprint",
                     s->fingerprint, "max_model_len", m->max_context);
}

void service_fingerprint_make(struct service *s)
{
    const struct engine_model *m = engine_model(s->engine);
    char hex[65], *p = s->fingerprint;
    bool as_in_file = strcmp(m->adapter_dtype, "file") == 0;
    snprintf(s->fingerprint, sizeof s->fingerprint, "%s-%.*s-%s%s%s-%.12s", TRIBUTARY_VERSION,
             (int)strcspn(m->backend, ","), m->backend, m->weights, as_in_file ? "" : "-adapters-",
             as_in_file ? "" : m->adapter_dtype, hex_encode(hex, m->served_id.bytes, 32));
    for (const char *from = s->fingerprint; *from != '\0'; from++) {
        bool plain = strchr("._-", *from) != NULL || (*from >= '0' && *from <= '9') ||
                     (*from >= 'a' && *from <= 'z') || (*from >= 'A' && *from <= 'Z');
        if (plain || (p > s->fingerprint && p[-1] != '-'))
            *p++ = plain ? *from : '-';
    }
    *p = '\0';
}

const char *answer_fingerprint(const struct answer *a)
{
    return a->service->fingerprint;
}

const char *service_fingerprint(const struct service *s)
{
    return s->fingerprint;
}

json_t *service_models(struct service *s, size_t max)
{
    json_t *data = json_array();
    json_array_append_new(data, base_object(s));
    if (s->opt.resolver.list != NULL)
        s->opt.resolver.list(s->opt.resolver.context, data, max > 0 ? max : SIZE_MAX);
    return json_pack("{s:s, s:o}", "object", "list", "data", data);
}

json_t *service_model(struct service *s, const char *name, struct err *err)
{
    json_t *found = NULL;
    if (strcmp(name, s->base_name) == 0)
        found = base_object(s);
    else if (s->opt.resolver.show != NULL)
        found = s->opt.resolver.show(s->opt.resolver.context, name);
    if (found == NULL)
        err_set(err, ERR_NOT_FOUND, "the model '%s' does not exist", name);
    return found;
}
