/* Request bodies from strangers. The first byte picks the endpoint, the rest is the body. What is
 * accepted keeps every promise of openai_request.h; what is refused has a sentence, which is ASCII
 * or UTF-8 and can be answered as JSON. */
#include "node/api_error.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/json_util.h"
#include "node/openai_request.h"

#include <math.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check_accepted(const struct openai_request *r)
{
    BUG_IF(r->model == NULL && r->n_adapters == 0);
    BUG_IF(r->model != NULL && r->model[0] == '\0');
    BUG_IF(r->n_adapters > OPENAI_ADAPTERS_MAX);
    bool any = r->n_adapters == 0;
    for (size_t i = 0; i < r->n_adapters; i++) {
        BUG_IF(r->adapters[i].model[0] == '\0' || !isfinite(r->adapters[i].weight));
        any |= fpclassify(r->adapters[i].weight) != FP_ZERO;
    }
    BUG_IF(!any);
    BUG_IF(r->priority < -OPENAI_PRIORITY_MAX || r->priority > OPENAI_PRIORITY_MAX);
    BUG_IF(!(r->timeout_s >= 0 && r->timeout_s <= 86400));
    BUG_IF(r->n < 1 || r->n > OPENAI_N_MAX || r->n_prompts < 1 ||
           r->n_prompts > OPENAI_PROMPTS_MAX);
    BUG_IF(!(r->temperature >= 0 && r->temperature <= 2) || !(r->top_p >= 0 && r->top_p <= 1));
    BUG_IF(r->max_tokens < -1 || r->top_k < 0 || r->n_logprobs < -1 || r->n_logprobs > 20);
    BUG_IF(r->n_stops > OPENAI_STOPS_MAX || r->n_bias > OPENAI_BIAS_MAX);
    for (size_t i = 0; i < r->n_stops; i++)
        BUG_IF(r->stops[i][0] == '\0' || strlen(r->stops[i]) > OPENAI_STOP_BYTES_MAX);
    if (r->kind == OPENAI_CHAT) {
        size_t i;
        json_t *m;
        json_array_foreach(r->messages, i, m)
            BUG_IF(!json_is_string(json_object_get(m, "role")) ||
                   !json_is_string(json_object_get(m, "content")));
        return;
    }
    BUG_IF(r->max_tokens == 0 && !r->echo);
    for (size_t i = 0; i < r->n_prompts; i++) {
        const struct openai_prompt *p = &r->prompts[i];
        BUG_IF((p->text == NULL) == (p->ids == NULL));
        for (size_t k = 0; k < p->n_ids; k++)
            BUG_IF(p->ids[k] < 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n == 0)
        return 0;
    struct openai_request r = {0};
    struct api_error e = {0};
    enum openai_kind kind = data[0] & 1 ? OPENAI_CHAT : OPENAI_COMPLETION;
    if (openai_request_parse(&r, kind, data + 1, n - 1, &e) == 0) {
        check_accepted(&r);
    } else {
        struct buf b = BUF_INIT;
        BUG_IF(e.err.code == ERR_OK || e.err.message[0] == '\0');
        api_error_append(&b, &e);
        json_t *back = json_loadb((const char *)b.data, b.len, JSON_REJECT_DUPLICATES, NULL);
        BUG_IF(!json_is_object(json_object_get(back, "error")));
        json_decref(back);
        buf_release(&b);
    }
    openai_request_release(&r);
    return 0;
}
