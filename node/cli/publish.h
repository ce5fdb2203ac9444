/* publish: what `adapter publish` and `datanet create` share: signing a manifest and uploading it.
 */
#ifndef TRIBUTARY_NODE_CLI_PUBLISH_H
#define TRIBUTARY_NODE_CLI_PUBLISH_H

#include "node/cli/chain_session.h"
#include "node/registry.h"

struct http_client;

/* Signs fields with the named key for this session's AdapterRegistry. */
int publish_sign(struct chain_session *s, const char *key, const struct manifest *fields,
                 struct registry_signature *out, struct err *err);

/* The first configured registry; ERR_INVALID when there is none. */
int publish_registry(const struct chain_session *s, struct http_client *http,
                     struct registry_client *out, struct err *err);

#endif
