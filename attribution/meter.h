/* meter: what an answer costs. The rules are in attribution.h (ledger_quote); pure functions. */
#ifndef TRIBUTARY_ATTRIBUTION_METER_H
#define TRIBUTARY_ATTRIBUTION_METER_H

#include "attribution/attribution.h"

struct meter_adapter {                              /* one adapter's part */
    struct amount prompt_per_1k, completion_per_1k; /* zero when it is nowhere registered */
    uint16_t weight_bps;
};

/* ERR_INVALID: weights that don't sum to 10,000 (with n > 0), or a product or sum above 128 bits,
 * by name. adapters [n], n up to USAGE_ADAPTERS_MAX. */
int meter_price(struct ledger_price *out, const struct ledger_rates *rates,
                const struct meter_adapter *adapters, uint32_t n, uint32_t tokens_prompt,
                uint32_t tokens_completion, struct err *err);

/* The most completion tokens, up to 2^32 - 1, with which the price stays at or below max_fee.
 * ERR_PAYMENT: the prompt alone costs more. ERR_INVALID: weights, or the prompt's price overflows.
 */
int meter_most_tokens(uint32_t *tokens_completion, struct amount max_fee,
                      const struct ledger_rates *rates, const struct meter_adapter *adapters,
                      uint32_t n, uint32_t tokens_prompt, struct err *err);

#endif
