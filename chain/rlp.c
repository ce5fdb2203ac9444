/* rlp: see rlp.h.
 *
 *   first byte       meaning
 *   00 .. 7f         the byte itself
 *   80 .. b7         a string of 0 to 55 bytes follows
 *   b8 .. bf         1 to 8 bytes of length follow, then a string of more than 55 bytes
 *   c0 .. f7         a list whose payload has 0 to 55 bytes
 *   f8 .. ff         1 to 8 bytes of length follow, then the payload of a longer list */
#include "chain/rlp.h"

#include "node/base/err.h"

#include <string.h>

enum { SHORT_MAX_BYTES = 55, DEPTH_MAX = 1024 };

static void append_header(struct buf *out, size_t n, uint8_t short_base)
{
    if (n <= SHORT_MAX_BYTES) {
        buf_append_byte(out, (uint8_t)(short_base + n));
        return;
    }
    unsigned bytes = (unsigned)(8 - __builtin_clzll((unsigned long long)n) / 8);
    buf_append_byte(out, (uint8_t)(short_base + SHORT_MAX_BYTES + bytes));
    while (bytes-- > 0)
        buf_append_byte(out, (uint8_t)(n >> (8 * bytes)));
}

void rlp_string(struct buf *out, const void *bytes, size_t n)
{
    const uint8_t *p = bytes;
    if (n != 1 || p[0] >= 0x80)
        append_header(out, n, 0x80);
    buf_append(out, bytes, n);
}

void rlp_u256(struct buf *out, struct u256 v)
{
    uint8_t bytes[32];
    u256_to_bytes(bytes, v);
    size_t n = (u256_bits(v) + 7) / 8;
    rlp_string(out, bytes + 32 - n, n);
}

void rlp_u64(struct buf *out, uint64_t v)
{
    rlp_u256(out, u256_of(v));
}

void rlp_list(struct buf *out, const struct buf *payload)
{
    append_header(out, payload->len, 0xc0);
    buf_append(out, payload->data, payload->len);
}

/* Reads one item off the front of r. */
static int take(struct rlp_reader *r, struct rlp_item *out, struct err *err)
{
    uint8_t first = r->at[0];
    if (first < 0x80) {
        *out = (struct rlp_item){r->at, 1, false};
        r->at++;
        r->left--;
        return 0;
    }
    bool is_list = first >= 0xc0;
    size_t n = (size_t)first - (is_list ? 0xc0 : 0x80), header = 1;
    if (n > SHORT_MAX_BYTES) {
        size_t length_bytes = n - SHORT_MAX_BYTES;
        if (r->left - 1 < length_bytes)
            return err_set(err, ERR_INVALID, "RLP ends inside a length");
        if (r->at[1] == 0)
            return err_set(err, ERR_INVALID, "RLP length has a leading zero");
        n = 0;
        for (size_t i = 0; i < length_bytes; i++)
            n = n << 8 | r->at[1 + i];
        if (n <= SHORT_MAX_BYTES)
            return err_set(err, ERR_INVALID, "RLP length %zu in the long form", n);
        header += length_bytes;
    }
    if (r->left - header < n)
        return err_set(err, ERR_INVALID, "RLP item of %zu bytes, %zu are left", n,
                       r->left - header);
    if (!is_list && n == 1 && r->at[header] < 0x80)
        return err_set(err, ERR_INVALID, "RLP byte 0x%02x with a needless prefix", r->at[header]);
    *out = (struct rlp_item){r->at + header, n, is_list};
    r->at += header + n;
    r->left -= header + n;
    return 0;
}

int rlp_decode(struct rlp_item *out, const void *bytes, size_t n, struct err *err)
{
    struct rlp_reader r = {bytes, n};
    if (n == 0)
        return err_set(err, ERR_INVALID, "RLP of no bytes");
    if (take(&r, out, err) != 0)
        return -1;
    if (r.left != 0)
        return err_set(err, ERR_INVALID, "RLP item is followed by %zu bytes", r.left);
    return 0;
}

struct rlp_reader rlp_items(const struct rlp_item *list)
{
    BUG_IF(!list->is_list);
    return (struct rlp_reader){list->payload, list->n_bytes};
}

int rlp_next(struct rlp_reader *r, struct rlp_item *out, struct err *err)
{
    if (r->left == 0)
        return 0;
    return take(r, out, err) != 0 ? -1 : 1;
}

static int check_items(struct rlp_reader r, int depth, struct err *err)
{
    if (depth > DEPTH_MAX)
        return err_set(err, ERR_INVALID, "RLP nested deeper than %d", DEPTH_MAX);
    struct rlp_item item;
    int more;
    while ((more = rlp_next(&r, &item, err)) == 1) {
        if (item.is_list && check_items(rlp_items(&item), depth + 1, err) != 0)
            return -1;
    }
    return more;
}

int rlp_check(const void *bytes, size_t n, struct err *err)
{
    struct rlp_item item;
    if (rlp_decode(&item, bytes, n, err) != 0)
        return -1;
    return item.is_list ? check_items(rlp_items(&item), 1, err) : 0;
}

int rlp_to_u256(struct u256 *out, const struct rlp_item *item, struct err *err)
{
    if (item->is_list || item->n_bytes > 32)
        return err_set(err, ERR_INVALID, "RLP item is no number of at most 256 bits");
    if (item->n_bytes > 0 && item->payload[0] == 0)
        return err_set(err, ERR_INVALID, "RLP number has a leading zero");
    uint8_t bytes[32] = {0};
    memcpy(bytes + 32 - item->n_bytes, item->payload, item->n_bytes);
    *out = u256_from_bytes(bytes);
    return 0;
}

int rlp_to_u64(uint64_t *out, const struct rlp_item *item, struct err *err)
{
    struct u256 v;
    if (rlp_to_u256(&v, item, err) != 0)
        return -1;
    if (u256_to_u64(out, v) != 0)
        return err_set(err, ERR_INVALID, "RLP number exceeds 64 bits");
    return 0;
}
