/* payout: exact splits and the Merkle sum tree. Formats in payout.h, reasons in PayoutTree.sol.
 *
 * The tree's shape is RFC 6962's (section 2.1): of n > 1 leaves the left subtree takes the largest
 * power of two below n. It is built by recursion over [from, from + n) of the sorted leaves, as the
 * RFC defines it; depth is at most 32. A proof descends along the same cuts and collects the other
 * half's node on the way back, which puts the lowest sibling first.
 *
 * A split never uses more than 128 bits: amount = 10,000 q + r gives floor(amount * bps / 10,000) =
 * q * bps + floor(r * bps / 10,000), and the second term's numerator is below 10^8. */
#include "attribution/payout.h"

#include "chain/keccak.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <string.h>

int payout_compare(const struct payout *a, const struct payout *b)
{
    if (a->kind != b->kind)
        return a->kind < b->kind ? -1 : 1;
    int order = memcmp(a->id, b->id, 32);
    if (order)
        return order < 0 ? -1 : 1;
    return a->position < b->position ? -1 : a->position > b->position;
}

const char *payout_kind_name(enum payout_kind kind)
{
    switch (kind) {
    case PAYOUT_OPERATOR:
        return "operator";
    case PAYOUT_ADAPTER:
        return "adapter";
    case PAYOUT_DATANET:
        return "datanet";
    }
    BUG("payout kind %d", (int)kind);
}

/* ---- splits --------------------------------------------------------------------------------- */

void payout_split(struct amount *parts, struct amount amount, const uint16_t *bps, size_t n)
{
    uint32_t remainder[2 * MANIFEST_SHARES_MAX], sum_bps = 0;
    uint128 whole = amount.units / BPS_WHOLE;
    uint32_t rest = (uint32_t)(amount.units % BPS_WHOLE);
    uint128 left = amount.units;
    BUG_IF(n == 0 || n > 2 * MANIFEST_SHARES_MAX);
    for (size_t i = 0; i < n; i++) {
        parts[i].units = whole * bps[i] + rest * bps[i] / BPS_WHOLE;
        remainder[i] = rest * bps[i] % BPS_WHOLE;
        left -= parts[i].units;
        sum_bps += bps[i];
    }
    BUG_IF(sum_bps != BPS_WHOLE);
    /* The remainders sum to left * 10,000, each is below 10,000, so fewer than n units are left,
     * and no share gets two. */
    for (; left > 0; left--) {
        size_t best = 0;
        for (size_t i = 1; i < n; i++) {
            if (remainder[i] > remainder[best])
                best = i;
        }
        BUG_IF(remainder[best] == 0);
        remainder[best] = 0;
        parts[best].units++;
    }
}

/* ---- the tree ------------------------------------------------------------------------------- */

static struct payout_node leaf_node(const struct payout *p)
{
    uint8_t bytes[1 + 1 + 32 + 2 + 16];
    struct payout_node out = {.sum = p->amount};
    bytes[0] = 0x00;
    bytes[1] = (uint8_t)p->kind;
    memcpy(bytes + 2, p->id, 32);
    bytes[34] = (uint8_t)(p->position >> 8);
    bytes[35] = (uint8_t)p->position;
    amount_to_bytes(bytes + 36, p->amount);
    memcpy(out.hash, keccak256(bytes, sizeof(bytes)).bytes, 32);
    return out;
}

/* -1 when the sums overflow. */
static int join(struct payout_node *out, const struct payout_node *left,
                const struct payout_node *right)
{
    uint8_t bytes[1 + 2 * (32 + 16)];
    bytes[0] = 0x01;
    memcpy(bytes + 1, left->hash, 32);
    amount_to_bytes(bytes + 33, left->sum);
    memcpy(bytes + 49, right->hash, 32);
    amount_to_bytes(bytes + 81, right->sum);
    struct amount sum;
    if (amount_add(&sum, left->sum, right->sum) != 0)
        return -1;
    memcpy(out->hash, keccak256(bytes, sizeof(bytes)).bytes, 32);
    out->sum = sum;
    return 0;
}

static void close_root(uint8_t root[32], const struct payout_node *top, uint32_t n_leaves)
{
    uint8_t bytes[1 + 32 + 16 + 4];
    bytes[0] = 0x02;
    memcpy(bytes + 1, top->hash, 32);
    amount_to_bytes(bytes + 33, top->sum);
    for (int i = 0; i < 4; i++)
        bytes[49 + i] = (uint8_t)(n_leaves >> (24 - 8 * i));
    memcpy(root, keccak256(bytes, sizeof(bytes)).bytes, 32);
}

/* The largest power of two below n (n > 1). */
static size_t left_leaves(size_t n)
{
    size_t k = 1;
    while (2 * k < n)
        k *= 2;
    return k;
}

static int subtree(struct payout_node *out, const struct payout *leaves, size_t n)
{
    if (n == 1) {
        *out = leaf_node(leaves);
        return 0;
    }
    struct payout_node left, right;
    size_t k = left_leaves(n);
    if (subtree(&left, leaves, k) != 0 || subtree(&right, leaves + k, n - k) != 0)
        return -1;
    return join(out, &left, &right);
}

int payout_root(uint8_t root[32], struct amount *sum, const struct payout *leaves, size_t n,
                struct err *err)
{
    struct payout_node top;
    BUG_IF(n == 0 || n > UINT32_MAX);
    for (size_t i = 1; i < n; i++) {
        if (payout_compare(&leaves[i - 1], &leaves[i]) >= 0)
            return err_set(err, ERR_INVALID, "payout leaf %zu is not above the one before it", i);
    }
    if (subtree(&top, leaves, n) != 0)
        return err_set(err, ERR_INVALID, "the payouts sum to more than 128 bits hold");
    close_root(root, &top, (uint32_t)n);
    *sum = top.sum;
    return 0;
}

size_t payout_proof(struct payout_node *siblings, const struct payout *leaves, size_t n, size_t i)
{
    BUG_IF(i >= n);
    if (n == 1)
        return 0;
    size_t k = left_leaves(n), depth;
    struct payout_node other;
    bool in_left = i < k;
    depth = in_left ? payout_proof(siblings, leaves, k, i)
                    : payout_proof(siblings, leaves + k, n - k, i - k);
    BUG_IF(subtree(&other, in_left ? leaves + k : leaves, in_left ? n - k : k) != 0);
    siblings[depth] = other;
    return depth + 1;
}

/* RFC 9162, section 2.1.3.2, with sums. fn and sn are the RFC's names. */
int payout_climb(uint8_t root[32], struct amount *sum, const struct payout *leaf, uint32_t i,
                 uint32_t n, const struct payout_node *siblings, size_t n_siblings, struct err *err)
{
    if (n == 0 || i >= n)
        return err_set(err, ERR_INVALID, "payout leaf %u is not among %u", i, n);
    uint32_t fn = i, sn = n - 1;
    struct payout_node at = leaf_node(leaf);
    for (size_t s = 0; s < n_siblings; s++) {
        int overflow;
        if (sn == 0)
            return err_set(err, ERR_INVALID, "the payout proof of leaf %u of %u is too long", i, n);
        if ((fn & 1) || fn == sn) {
            overflow = join(&at, &siblings[s], &at);
            while (!(fn & 1) && fn != 0) {
                fn >>= 1;
                sn >>= 1;
            }
        } else {
            overflow = join(&at, &at, &siblings[s]);
        }
        if (overflow)
            return err_set(err, ERR_INVALID, "the payout proof's sums exceed 128 bits");
        fn >>= 1;
        sn >>= 1;
    }
    if (sn != 0)
        return err_set(err, ERR_INVALID, "the payout proof of leaf %u of %u is too short", i, n);
    close_root(root, &at, n);
    *sum = at.sum;
    return 0;
}
