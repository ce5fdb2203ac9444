/* publish: see publish.h. */
#include "node/cli/publish.h"

#include "chain/eip712.h"
#include "node/base/err.h"
#include "node/config.h"
#include "wallet/wallet.h"

int publish_sign(struct chain_session *s, const char *key, const struct manifest *fields,
                 struct registry_signature *out, struct err *err)
{
    struct eip712_domain domain = {s->contracts.chain_id, s->contracts.adapter_registry};
    struct manifest_digest digest = eip712_manifest(fields, &domain);
    out->chain_id = domain.chain_id;
    out->verifying_contract = domain.verifying_contract;
    return wallet_sign_manifest(s->wallet, key, &out->signature, &digest, err);
}

int publish_registry(const struct chain_session *s, struct http_client *http,
                     struct registry_client *out, struct err *err)
{
    if (config_list_len(s->config, CONFIG_REGISTRY_URLS) == 0)
        return err_set(err, ERR_INVALID, "no registry is configured (--registry URL)");
    *out = (struct registry_client){http, config_list_item(s->config, CONFIG_REGISTRY_URLS, 0),
                                    NULL};
    return 0;
}
