/* meter: exact integer prices.
 *
 * A rate is an amount per 1,000 tokens. Both products of a line are added before the one division,
 * so a line is rounded once, down: a bill never exceeds the stated rates, and it is the same in
 * every implementation that follows the formula. Every step is checked against 128 bits. */
#include "attribution/meter.h"

#include "node/base/err.h"

enum { TOKENS_PER_RATE = 1000 };

/* prompt * tokens_prompt + completion * tokens_completion */
static int token_product(struct amount *out, struct amount prompt, struct amount completion,
                         uint32_t tokens_prompt, uint32_t tokens_completion)
{
    struct amount a, b;
    if (amount_mul(&a, prompt, tokens_prompt) != 0 ||
        amount_mul(&b, completion, tokens_completion) != 0)
        return -1;
    return amount_add(out, a, b);
}

int meter_price(struct ledger_price *out, const struct ledger_rates *rates,
                const struct meter_adapter *adapters, uint32_t n, uint32_t tokens_prompt,
                uint32_t tokens_completion, struct err *err)
{
    struct ledger_price p = {.royalty = AMOUNT_ZERO};
    uint32_t weights = 0;
    BUG_IF(n > USAGE_ADAPTERS_MAX);
    if (token_product(&p.compute_fee, rates->prompt_per_1k, rates->completion_per_1k, tokens_prompt,
                      tokens_completion) != 0)
        return err_set(err, ERR_INVALID, "the compute fee exceeds 128 bits");
    p.compute_fee = amount_div(p.compute_fee, TOKENS_PER_RATE);
    for (uint32_t i = 0; i < n; i++) {
        struct amount product;
        if (token_product(&product, adapters[i].prompt_per_1k, adapters[i].completion_per_1k,
                          tokens_prompt, tokens_completion) != 0 ||
            amount_mul(&product, product, adapters[i].weight_bps) != 0)
            return err_set(err, ERR_INVALID, "the royalty of adapter %u exceeds 128 bits", i);
        p.adapter_royalty[i] = amount_div(product, (uint64_t)TOKENS_PER_RATE * BPS_WHOLE);
        weights += adapters[i].weight_bps;
        if (amount_add(&p.royalty, p.royalty, p.adapter_royalty[i]) != 0)
            return err_set(err, ERR_INVALID, "the royalties exceed 128 bits");
    }
    if (n > 0 && weights != BPS_WHOLE)
        return err_set(err, ERR_INVALID, "the adapters' weights sum to %u, not to 10000", weights);
    if (amount_add(&p.total, p.compute_fee, p.royalty) != 0)
        return err_set(err, ERR_INVALID, "the price exceeds 128 bits");
    *out = p;
    return 0;
}

/* A price never falls when a token is added, so it is searched by halves; what can't be priced in
 * 128 bits is above every fee. */
int meter_most_tokens(uint32_t *tokens_completion, struct amount max_fee,
                      const struct ledger_rates *rates, const struct meter_adapter *adapters,
                      uint32_t n, uint32_t tokens_prompt, struct err *err)
{
    struct ledger_price p;
    char cost[AMOUNT_TEXT_BYTES], fee[AMOUNT_TEXT_BYTES];
    if (meter_price(&p, rates, adapters, n, tokens_prompt, 0, err) != 0)
        return -1;
    if (amount_cmp(p.total, max_fee) > 0)
        return err_set(err, ERR_PAYMENT,
                       "the prompt's %u tokens cost %s, which is above the Request's maxFee of %s",
                       tokens_prompt, amount_format(cost, p.total), amount_format(fee, max_fee));
    uint64_t most = 0, above = (uint64_t)UINT32_MAX + 1; /* most fits, above doesn't */
    while (above - most > 1) {
        uint64_t middle = most + (above - most) / 2;
        bool fits = meter_price(&p, rates, adapters, n, tokens_prompt, (uint32_t)middle, NULL) ==
                        0 &&
                    amount_cmp(p.total, max_fee) <= 0;
        if (fits)
            most = middle;
        else
            above = middle;
    }
    *tokens_completion = (uint32_t)most;
    return 0;
}
