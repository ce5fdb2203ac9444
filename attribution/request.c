/* request: who may have an answer without an API key, for how much, and how often: once.
 *
 * Two memories say whether a Request was used. While it is answered it is in a list here; from its
 * receipt's commit on it is in the table `receipt`, whose request_id is unique, and stays there
 * through restarts. It leaves the list after the commit, so one that comes again is in the one or
 * the other: it is put into the list first and looked for in the table then.
 *
 * Credit works the same way round. What is being answered is summed before the database is asked:
 * a Request that gets its receipt between the two counts twice, and never not at all. Two that come
 * at once see each other, so both may be refused where one would have fitted; neither may take what
 * is the other's.
 *
 * The list is as long as the node answers requests at once, some hundreds: it is walked. */
#include "attribution/request.h"

#include "attribution/payer.h"
#include "chain/eip712.h"
#include "node/base/buf.h"
#include "node/base/hex.h"
#include "wallet/wallet.h"

#include <stdlib.h>
#include <string.h>

int ledger_request_check(const struct ledger *l, struct request_digest *id,
                         const struct signed_request *q, const struct sha256_digest *body,
                         struct err *err)
{
    const struct request_auth *r = &q->request;
    struct eip712_domain domain = {l->opt.chain.chain_id, l->opt.chain.escrow};
    char text[ADDRESS_TEXT_BYTES], other[ADDRESS_TEXT_BYTES];
    struct address signer;
    if (!l->has_chain)
        return err_set(err, ERR_UNSUPPORTED,
                       "this node settles on no chain, so nobody can pay it with a signed Request");
    if (amount_is_zero(l->opt.payer_credit))
        return err_set(err, ERR_FORBIDDEN,
                       "this node takes no signed Requests: it gives payers no credit");
    if (!address_eq(r->operator_address, l->operator_address))
        return err_set(err, ERR_UNAUTHORIZED, "the Request is for operator %s, this is %s",
                       address_format(text, r->operator_address),
                       address_format(other, l->operator_address));
    if (body != NULL && !DIGEST_EQ(r->request_hash, *body))
        return err_set(err, ERR_UNAUTHORIZED,
                       "the Request's requestHash is not the sha256 of this body");
    if (r->deadline_ms <= clock_unix_ms().ms)
        return err_set(err, ERR_UNAUTHORIZED, "the Request's deadline has passed");
    *id = eip712_request(r, &domain); /* last: a signature takes 40 us, and a stranger asks */
    struct err none;
    if (wallet_recover_request(&signer, &q->signature, id, &none) != 0 ||
        !address_eq(signer, r->payer))
        return err_set(err, ERR_UNAUTHORIZED,
                       "the Request is not signed by its payer %s for chain %llu and Escrow %s",
                       address_format(text, r->payer), (unsigned long long)domain.chain_id,
                       address_format(other, domain.verifying_contract));
    if (address_eq(r->payer, l->house)) /* its channel is the API keys' */
        return err_set(err, ERR_UNAUTHORIZED,
                       "%s is this node's house account, which signs no Requests",
                       address_format(text, r->payer));
    return 0;
}

/* ---- the list --------------------------------------------------------------------------------
 */

static struct open_request **place_of(struct ledger *l, const uint8_t id[32])
{
    struct open_request **at = &l->requests;
    while (*at != NULL && memcmp((*at)->id, id, 32) != 0)
        at = &(*at)->next;
    return at;
}

bool request_find(struct ledger *l, struct open_request *out, const uint8_t id[32])
{
    pthread_mutex_lock(&l->requests_lock);
    const struct open_request *found = *place_of(l, id);
    if (found != NULL)
        *out = *found;
    pthread_mutex_unlock(&l->requests_lock);
    return found != NULL;
}

void ledger_request_leave(struct ledger *l, struct request_digest id)
{
    pthread_mutex_lock(&l->requests_lock);
    struct open_request **at = place_of(l, id.bytes), *gone = *at;
    BUG_IF(gone == NULL);
    *at = gone->next;
    pthread_mutex_unlock(&l->requests_lock);
    free(gone);
}

void requests_release(struct ledger *l)
{
    while (l->requests != NULL) {
        struct open_request *next = l->requests->next;
        free(l->requests);
        l->requests = next;
    }
}

/* The maxFee of all that is being answered for a payer; under the lock. */
static struct amount pending_of(const struct ledger *l, struct address payer)
{
    struct amount sum = AMOUNT_ZERO;
    for (const struct open_request *o = l->requests; o != NULL; o = o->next) {
        if (address_eq(o->payer, payer) && amount_add(&sum, sum, o->max_fee) != 0)
            sum = AMOUNT_MAX;
    }
    return sum;
}

struct amount requests_pending(struct ledger *l, struct address payer)
{
    pthread_mutex_lock(&l->requests_lock);
    struct amount sum = pending_of(l, payer);
    pthread_mutex_unlock(&l->requests_lock);
    return sum;
}

/* Puts one in. *pending: what all of its payer may cost, this one included (2^128 - 1 when it
 * overflows). False: it is there. */
static bool put(struct ledger *l, struct request_digest id, const struct request_auth *q,
                struct amount *pending)
{
    struct open_request *mine = xcalloc(1, sizeof(*mine));
    memcpy(mine->id, id.bytes, 32);
    mine->payer = q->payer;
    memcpy(mine->channel.bytes, q->channel, 32);
    mine->max_fee = q->max_fee;
    pthread_mutex_lock(&l->requests_lock);
    bool is_new = *place_of(l, id.bytes) == NULL;
    if (is_new) {
        mine->next = l->requests;
        l->requests = mine;
        *pending = pending_of(l, q->payer);
    }
    pthread_mutex_unlock(&l->requests_lock);
    if (!is_new)
        free(mine);
    return is_new;
}

/* ---- what the database says -------------------------------------------------------------------
 */

static int check_unused(struct db *db, struct request_digest id, struct err *err)
{
    char hex[67];
    struct db_stmt *s = db_stmt(db, "SELECT 1 FROM receipt WHERE request_id = ?");
    db_put_blob(s, id.bytes, 32);
    int row = db_step(s, err);
    if (db_end_checked(s, err) != 0 || row < 0)
        return -1;
    return row == 0 ? 0
                    : err_set(err, ERR_CONFLICT,
                              "this Request has been answered, and has its receipt (GET "
                              "/v1/receipts/%s); another needs another nonce",
                              hex_encode_0x(hex, id.bytes, 32));
}

static int check_channel(struct ledger *l, struct db *db, const struct request_auth *q,
                         struct err *err)
{
    struct channel_state open;
    struct err none;
    char hex[67], payer[ADDRESS_TEXT_BYTES];
    if (ledger_load_channel(l, db, &open, q->payer, &none) != 0) {
        if (none.code != ERR_NOT_FOUND)
            return *err = none, -1;
        ledger_new_channel(l, &open, q->payer);
    }
    if (memcmp(open.hash.bytes, q->channel, 32) == 0)
        return 0;
    return err_set(err, ERR_CONFLICT,
                   "the Request names another channel than the one that is open for %s here: %s, "
                   "epoch %llu",
                   address_format(payer, q->payer), hex_encode_0x(hex, open.hash.bytes, 32),
                   (unsigned long long)open.epoch);
}

static int check_credit(const struct ledger *l, struct db *db, const struct request_auth *q,
                        struct amount pending, struct err *err)
{
    struct amount unpaid, owed;
    char payer[ADDRESS_TEXT_BYTES], a[AMOUNT_TEXT_BYTES], b[AMOUNT_TEXT_BYTES],
        c[AMOUNT_TEXT_BYTES];
    if (payer_debt(l, db, &unpaid, q->payer, err) != 0)
        return -1;
    if (amount_add(&owed, unpaid, pending) == 0 && amount_cmp(owed, l->opt.payer_credit) <= 0)
        return 0;
    return err_set(err, ERR_PAYMENT,
                   "%s owes %s for receipts that no voucher has redeemed; with %s for what is "
                   "being answered, this Request's maxFee included, that is above the credit of "
                   "%s that this node gives",
                   address_format(payer, q->payer), amount_format(a, unpaid),
                   amount_format(b, pending), amount_format(c, l->opt.payer_credit));
}

int ledger_request_enter(struct ledger *l, struct request_digest id, const struct request_auth *q,
                         struct err *err)
{
    struct amount pending;
    struct err local;
    if (err == NULL)
        err = &local;
    if (!put(l, id, q, &pending))
        return err_set(err, ERR_CONFLICT, "this Request is being answered");
    struct db *db = ledger_reader(l, err);
    int rc = db != NULL ? check_unused(db, id, err) : -1;
    if (rc == 0)
        rc = check_channel(l, db, q, err);
    if (rc == 0)
        rc = check_credit(l, db, q, pending, err);
    ledger_reader_done(l, db);
    if (rc != 0)
        ledger_request_leave(l, id);
    return rc;
}
