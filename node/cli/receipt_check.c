/* receipt_check: see receipt_check.h. */
#include "node/cli/receipt_check.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/cli/chain_session.h"
#include "node/signed_request.h"
#include "wallet/wallet.h"

#include <inttypes.h>
#include <string.h>
#include <strings.h>

enum { REQUEST_FILE_MAX_BYTES = 1 << 20 };

int receipt_check_signature(const struct parsed_receipt *r, struct err *err)
{
    char who[ADDRESS_TEXT_BYTES];
    struct receipt_digest digest = eip712_receipt(&r->receipt, &r->domain);
    if (!DIGEST_EQ(digest, r->hash))
        return err_set(err, ERR_CORRUPT,
                       "the receipt's fields don't hash to its receiptHash: it was altered");
    struct address signer;
    if (wallet_recover_receipt(&signer, &r->signature, &digest, err) != 0)
        return -1;
    if (!address_eq(signer, r->signer))
        return err_set(err, ERR_CORRUPT, "it is signed by %s, not by the signer it names",
                       address_format(who, signer));
    return 0;
}

int receipt_check_signer(const struct parsed_receipt *r, const struct chain_session *chain,
                         bool *revoked, struct err *err)
{
    struct stake_signer state;
    struct contract_at at = chain_at(chain, CONTRACT_STAKE_MANAGER);
    char signer[ADDRESS_TEXT_BYTES], who[ADDRESS_TEXT_BYTES];
    if (chain->contracts.chain_id != r->domain.chain_id ||
        !address_eq(chain->contracts.attribution_ledger, r->domain.verifying_contract))
        return err_set(err, ERR_CORRUPT,
                       "the receipt is for chain %" PRIu64
                       " and ledger %s, not for these contracts",
                       r->domain.chain_id, address_format(who, r->domain.verifying_contract));
    if (view_stake_signer(&at, &state, r->signer, err) != 0)
        return -1;
    if (state.added_at_s == 0 || !address_eq(state.operator_address, r->receipt.operator_address))
        return err_set(err, ERR_CORRUPT, "%s is no signer of operator %s",
                       address_format(signer, r->signer),
                       address_format(who, r->receipt.operator_address));
    *revoked = state.revoked_at_s != 0;
    return 0;
}

int receipt_check_sums(const struct receipt *r, struct err *err)
{
    struct amount royalty = AMOUNT_ZERO;
    unsigned bps = 0;
    for (size_t i = 0; i < r->n_adapters; i++) {
        bps += r->adapters[i].bps;
        if (amount_add(&royalty, royalty, r->adapters[i].royalty) != 0)
            return err_set(err, ERR_CORRUPT, "the royalties overflow");
    }
    if (amount_cmp(royalty, r->royalty) != 0)
        return err_set(err, ERR_CORRUPT, "royalty is not the sum of its adapters'");
    if (r->n_adapters > 0 && bps != BPS_WHOLE)
        return err_set(err, ERR_CORRUPT, "the adapters' shares sum to %u basis points", bps);
    return 0;
}

/* What the channel came to before this receipt. */
static int total_before(struct amount *out, const struct receipt *r, struct err *err)
{
    struct amount fees;
    if (amount_add(&fees, r->compute_fee, r->royalty) != 0 ||
        amount_sub(out, r->channel_total, fees) != 0)
        return err_set(err, ERR_CORRUPT, "channelTotal is below the receipt's own fees");
    return 0;
}

int receipt_check_order(const struct receipt *r, const struct receipt *previous, struct err *err)
{
    struct amount before;
    if (total_before(&before, r, err) != 0)
        return -1;
    if (previous->index + 1 != r->index || memcmp(previous->channel, r->channel, 32) != 0 ||
        amount_cmp(previous->channel_total, before) != 0)
        return err_set(err, ERR_CORRUPT, "it does not continue the receipt before it");
    return 0;
}

int receipt_check_link(const struct parsed_receipt *p, const struct receipt *previous,
                       struct err *err)
{
    const struct receipt *r = &p->receipt;
    struct amount before;
    if (total_before(&before, r, err) != 0)
        return -1;
    if (previous == NULL) {
        if (r->index != 0)
            return err_set(err, ERR_CORRUPT, "it has index %" PRIu64 ", a channel begins with 0",
                           r->index);
        if (!bytes32_is_zero(r->prev_receipt_hash) || !amount_is_zero(before))
            return err_set(err, ERR_CORRUPT, "the first receipt of a channel names a predecessor");
        return 0;
    }
    /* For this receipt's chain and ledger, whatever the node says: there it would have to answer.
     */
    struct receipt_digest digest = eip712_receipt(previous, &p->domain);
    if (memcmp(digest.bytes, r->prev_receipt_hash, 32) != 0)
        return err_set(err, ERR_CORRUPT, "the receipt before it has another hash");
    return receipt_check_order(r, previous, err);
}

int receipt_check_request(const struct parsed_receipt *p, const struct signed_request *q,
                          struct address escrow, struct err *err)
{
    const struct receipt *r = &p->receipt;
    struct amount fee;
    struct address signer;
    char hex[67], most[64];
    struct eip712_domain domain = {p->domain.chain_id, escrow};
    struct request_digest id = eip712_request(&q->request, &domain);
    if (wallet_recover_request(&signer, &q->signature, &id, err) != 0 ||
        !address_eq(signer, q->request.payer))
        return err_set(err, ERR_CORRUPT, "the Request is not signed by its payer");
    if (memcmp(id.bytes, r->request_id, 32) != 0)
        return err_set(err, ERR_CORRUPT,
                       "the receipt's requestId is not the Request's digest %s: it answers another",
                       hex_encode_0x(hex, id.bytes, 32));
    if (!address_eq(r->payer, q->request.payer) ||
        !address_eq(r->operator_address, q->request.operator_address) ||
        memcmp(r->channel, q->request.channel, 32) != 0 ||
        !DIGEST_EQ(r->request_hash, q->request.request_hash))
        return err_set(err, ERR_CORRUPT,
                       "the receipt contradicts the Request: payer, operator, channel or "
                       "requestHash is another");
    if (amount_add(&fee, r->compute_fee, r->royalty) != 0 ||
        amount_cmp(fee, q->request.max_fee) > 0)
        return err_set(err, ERR_CORRUPT, "it bills more than the Request's maxFee of %s",
                       amount_to_tokens(most, q->request.max_fee));
    return 0;
}

int request_from_file(struct signed_request *out, const char *path, struct err *err)
{
    static const char name[] = SIGNED_REQUEST_HEADER ":";
    struct buf text = BUF_INIT;
    int rc = file_read(path, REQUEST_FILE_MAX_BYTES, &text, err);
    if (rc == 0) {
        const char *value = buf_cstr(&text);
        if (strncasecmp(value, name, strlen(name)) == 0)
            value += strlen(name);
        rc = signed_request_parse(out, value, err);
        if (rc != 0)
            err_wrap(err, "%s", path);
    }
    buf_release(&text);
    return rc;
}
