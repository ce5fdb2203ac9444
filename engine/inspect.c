/* inspect: adapters checked against a base model and not kept; see engine.h. */
#include "engine/engine.h"
#include "engine/internal.h"
#include "engine/lora.h"
#include "engine/model.h"
#include "node/base/err.h"

#include <stdio.h>
#include <string.h>

enum { ADAPTER_BYTES_MAX = 0x7fffffff };

static void describe(struct engine_adapter *out, const struct lora_adapter *a)
{
    *out = (struct engine_adapter){.content = a->content,
                                   .rank_max = a->rank_max,
                                   .n_sites = a->n_sites,
                                   .n_bytes = a->n_bytes};
    memcpy(out->targets, a->targets, sizeof out->targets);
}

int engine_adapter_check(struct engine *e, const char *dir, struct engine_adapter *out,
                         struct err *err)
{
    struct lora_adapter *a;
    if (lora_open(&a, &e->model->config, dir, e->held, e->options.adapter_host_bytes, NULL, err) !=
        0)
        return -1;
    describe(out, a);
    lora_close(a);
    if (out->n_bytes > e->adapter_pool_bytes)
        return err_set(err, ERR_TOO_LARGE, "it needs %zu bytes, the device has %zu for adapters",
                       out->n_bytes, e->adapter_pool_bytes);
    return 0;
}

int engine_adapter_measure(struct engine *e, const char *dir, size_t *n_bytes, struct err *err)
{
    return lora_measure(n_bytes, &e->model->config, dir, e->held, e->options.adapter_host_bytes,
                        err);
}

int engine_check_adapter(const char *model_dir, const char *adapter_dir, struct model_id *model,
                         char *model_name, struct engine_adapter *out, struct err *err)
{
    struct model *m;
    struct lora_adapter *a;
    if (model_open(&m, model_dir, err) != 0)
        return -1;
    int rc = lora_open(&a, &m->config, adapter_dir, LORA_HELD_FILE, ADAPTER_BYTES_MAX, NULL, err);
    if (rc == 0) {
        describe(out, a);
        if (model != NULL) {
            *model = model_identity(m);
            snprintf(model_name, 128, "%s", m->name);
        }
        lora_close(a);
    } else {
        err_wrap(err, "adapter %s", adapter_dir);
    }
    model_close(m);
    return rc;
}
