/* merkle: a complete binary tree in one array, as OpenZeppelin's library lays it out.
 *
 * nodes[0] is the root, the children of nodes[i] are nodes[2i+1] and nodes[2i+2], and the n leaves
 * fill the last n places from the end backwards:
 *
 *     n = 5:   index   0     1    2    3    4    5    6    7    8
 *              holds  root   .    .    .   l4   l3   l2   l1   l0
 *
 *                        0
 *                   1         2
 *                 3   4     5   6        3 = hash(l1, l0), leaf 4 sits one level higher
 *                7 8
 *
 * A node is keccak256 of its children in ascending order of their bytes, so that a verifier needs
 * no left and right; positions are bound by the leaf's contents instead (merkle_receipt_leaf).
 *
 * A multiproof climbs from all wanted leaves at once, deepest first, in a queue: each step joins
 * the queue's first node with its sibling, which is either the next in the queue (flag true) or
 * comes from the proof (flag false), and appends the parent. */
#include "attribution/merkle.h"

#include "chain/keccak.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>

static struct merkle_node hash_pair(const struct merkle_node *a, const struct merkle_node *b)
{
    uint8_t both[64];
    bool swap = memcmp(a->bytes, b->bytes, 32) > 0;
    memcpy(both, (swap ? b : a)->bytes, 32);
    memcpy(both + 32, (swap ? a : b)->bytes, 32);
    struct keccak_digest hash = keccak256(both, sizeof(both));
    struct merkle_node out;
    memcpy(out.bytes, hash.bytes, 32);
    return out;
}

struct placed_leaf {
    const struct merkle_node *hash;
    size_t number;
};

static int compare_leaves(const void *a, const void *b)
{
    const struct placed_leaf *x = a, *y = b;
    int order = memcmp(x->hash->bytes, y->hash->bytes, 32);
    return order ? order : x->number < y->number ? -1 : x->number > y->number;
}

void merkle_init(struct merkle *m, const struct merkle_node *leaves, size_t n, bool sorted)
{
    BUG_IF(n == 0);
    size_t n_nodes = 2 * n - 1;
    m->n_leaves = n;
    m->nodes = xcalloc(n_nodes, sizeof(*m->nodes));
    m->place = xcalloc(n, sizeof(*m->place));
    struct placed_leaf *order = xcalloc(n, sizeof(*order));
    for (size_t i = 0; i < n; i++)
        order[i] = (struct placed_leaf){&leaves[i], i};
    if (sorted)
        qsort(order, n, sizeof(*order), compare_leaves);
    for (size_t i = 0; i < n; i++) {
        m->place[order[i].number] = n_nodes - 1 - i;
        m->nodes[n_nodes - 1 - i] = *order[i].hash;
    }
    free(order);
    for (size_t i = n - 1; i-- > 0;)
        m->nodes[i] = hash_pair(&m->nodes[2 * i + 1], &m->nodes[2 * i + 2]);
}

void merkle_release(struct merkle *m)
{
    free(m->nodes);
    free(m->place);
    memset(m, 0, sizeof(*m));
}

struct merkle_node merkle_root(const struct merkle *m)
{
    return m->nodes[0];
}

static size_t sibling_of(size_t i)
{
    return i % 2 ? i + 1 : i - 1;
}

size_t merkle_proof(const struct merkle *m, size_t i, struct merkle_node *proof)
{
    BUG_IF(i >= m->n_leaves);
    size_t n = 0;
    for (size_t at = m->place[i]; at > 0; at = (at - 1) / 2)
        proof[n++] = m->nodes[sibling_of(at)];
    return n;
}

bool merkle_verify(struct merkle_node root, struct merkle_node leaf,
                   const struct merkle_node *proof, size_t n)
{
    for (size_t i = 0; i < n; i++)
        leaf = hash_pair(&leaf, &proof[i]);
    return memcmp(leaf.bytes, root.bytes, 32) == 0;
}

static int deepest_first(const void *a, const void *b)
{
    size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return x > y ? -1 : x < y;
}

int merkle_multiproof(struct merkle_multiproof *out, const struct merkle *m, const size_t *indices,
                      size_t n, struct err *err)
{
    size_t n_nodes = 2 * m->n_leaves - 1;
    memset(out, 0, sizeof(*out));
    /* Each step makes one parent, and a node is made once. */
    size_t *queue = xcalloc(n + n_nodes, sizeof(*queue));
    for (size_t i = 0; i < n; i++) {
        BUG_IF(indices[i] >= m->n_leaves);
        queue[i] = m->place[indices[i]];
    }
    qsort(queue, n, sizeof(*queue), deepest_first);
    for (size_t i = 1; i < n; i++) {
        if (queue[i] == queue[i - 1]) {
            free(queue);
            return err_set(err, ERR_INVALID, "a leaf is named twice in a multiproof");
        }
    }
    out->n_leaves = n;
    out->leaves = xcalloc(n + 1, sizeof(*out->leaves));
    out->proof = xcalloc(n_nodes, sizeof(*out->proof));
    out->flags = xcalloc(n_nodes, sizeof(*out->flags));
    for (size_t i = 0; i < n; i++)
        out->leaves[i] = m->nodes[queue[i]];
    size_t first = 0, end = n;
    while (first < end && queue[first] > 0) {
        size_t at = queue[first++];
        bool sibling_is_next = first < end && queue[first] == sibling_of(at);
        out->flags[out->n_flags++] = sibling_is_next;
        if (sibling_is_next)
            first++;
        else
            out->proof[out->n_proof++] = m->nodes[sibling_of(at)];
        queue[end++] = (at - 1) / 2;
    }
    if (n == 0)
        out->proof[out->n_proof++] = m->nodes[0];
    free(queue);
    return 0;
}

bool merkle_multiproof_verify(struct merkle_node root, const struct merkle_multiproof *p)
{
    /* Every step takes two nodes and gives one: the counts must come out at a single node. */
    if (p->n_leaves + p->n_proof != p->n_flags + 1)
        return false;
    struct merkle_node *made = xcalloc(p->n_flags + 1, sizeof(*made));
    size_t leaf = 0, taken = 0, proof = 0;
    bool ok = true;
    for (size_t i = 0; i < p->n_flags && ok; i++) {
        const struct merkle_node *operand[2] = {NULL, NULL};
        for (int j = 0; j < 2; j++) {
            if (j == 1 && !p->flags[i])
                operand[j] = proof < p->n_proof ? &p->proof[proof++] : NULL;
            else if (leaf < p->n_leaves)
                operand[j] = &p->leaves[leaf++];
            else
                operand[j] = taken < i ? &made[taken++] : NULL;
        }
        ok = operand[0] && operand[1];
        if (ok)
            made[i] = hash_pair(operand[0], operand[1]);
    }
    struct merkle_node top = {{0}};
    if (p->n_flags > 0) {
        ok = ok && proof == p->n_proof;
        top = made[p->n_flags - 1];
    } else {
        top = p->n_leaves ? p->leaves[0] : p->proof[0];
    }
    free(made);
    return ok && memcmp(top.bytes, root.bytes, 32) == 0;
}

void merkle_multiproof_release(struct merkle_multiproof *p)
{
    free(p->leaves);
    free(p->proof);
    free(p->flags);
    memset(p, 0, sizeof(*p));
}

struct merkle_node merkle_receipt_leaf(uint32_t position, const uint8_t receipt_hash[32])
{
    uint8_t encoded[64] = {0}; /* abi.encode(uint32, bytes32) */
    struct merkle_node out;
    for (int i = 0; i < 4; i++)
        encoded[31 - i] = (uint8_t)(position >> (8 * i));
    memcpy(encoded + 32, receipt_hash, 32);
    struct keccak_digest hash = keccak256(encoded, sizeof(encoded));
    hash = keccak256(hash.bytes, 32);
    memcpy(out.bytes, hash.bytes, 32);
    return out;
}
