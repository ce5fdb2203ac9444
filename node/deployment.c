/* deployment: see deployment.h. */
#include "node/deployment.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/config.h"
#include "node/json_util.h"

#include <string.h>

static int take_address(struct address *out, const struct config *c, enum config_id id,
                        const json_t *file, const char *key, const char *path, struct err *err)
{
    if (config_address(c, id, out->bytes))
        return 0;
    const json_t *v = json_object_get(file, key);
    if (v == NULL)
        return 0;
    const char *text = json_string_value(v);
    if (text == NULL || strncmp(text, "0x", 2) != 0 || hex_decode(out->bytes, 20, text) != 0)
        return err_set(err, ERR_INVALID, "%s: \"%s\" is not an address", path, key);
    return 0;
}

static int take_all(struct deployment *d, const struct config *c, const json_t *file,
                    const char *path, struct err *err)
{
    int64_t id = config_int(c, CONFIG_CHAIN_ID);
    const json_t *v = json_object_get(file, "chainId");
    if (v != NULL && (!json_is_integer(v) || json_integer_value(v) <= 0))
        return err_set(err, ERR_INVALID, "%s: \"chainId\" is not a positive integer", path);
    if (v != NULL && id != 0 && json_integer_value(v) != id)
        return err_set(err, ERR_CONFLICT, "%s is of chain %lld, and chain.id is %lld", path,
                       (long long)json_integer_value(v), (long long)id);
    d->chain_id = (uint64_t)(v != NULL ? json_integer_value(v) : id);
    return take_address(&d->stake_manager, c, CONFIG_CHAIN_STAKE_MANAGER, file, "stakeManager",
                        path, err) != 0 ||
                   take_address(&d->adapter_registry, c, CONFIG_CHAIN_ADAPTER_REGISTRY, file,
                                "adapterRegistry", path, err) != 0 ||
                   take_address(&d->escrow, c, CONFIG_CHAIN_ESCROW, file, "escrow", path, err) !=
                       0 ||
                   take_address(&d->attribution_ledger, c, CONFIG_CHAIN_ATTRIBUTION_LEDGER, file,
                                "attributionLedger", path, err) != 0 ||
                   take_address(&d->token, c, CONFIG_CHAIN_TOKEN, file, "token", path, err) != 0
               ? -1
               : 0;
}

int deployment_load(struct deployment *out, const struct config *c, struct err *err)
{
    *out = (struct deployment){0};
    const char *path = config_string_or_null(c, CONFIG_CHAIN_DEPLOYMENT);
    json_t *file = NULL;
    if (path != NULL) {
        struct buf text = BUF_INIT;
        if (file_read(path, 1 << 20, &text, err) != 0)
            return -1;
        file = json_parse(text.data, text.len, err);
        buf_release(&text);
        if (file == NULL)
            return err_wrap(err, "%s", path);
    }
    int rc = take_all(out, c, file, path, err);
    json_decref(file);
    return rc;
}
