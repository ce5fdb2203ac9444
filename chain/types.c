/* types: addresses and signatures as text and bytes; see types.h. */
#include "chain/types.h"

#include "chain/keccak.h"
#include "node/base/hex.h"

#include <string.h>

bool address_is_zero(struct address a)
{
    static const struct address zero;
    return memcmp(&a, &zero, sizeof a) == 0;
}

bool address_eq(struct address a, struct address b)
{
    return memcmp(&a, &b, sizeof a) == 0;
}

char *address_format_lower(char *out, struct address a)
{
    return hex_encode_0x(out, a.bytes, sizeof a.bytes);
}

/* EIP-55: a letter is upper case where the same nibble of keccak256 of the lower-case digits is 8
 * or more. */
char *address_format(char *out, struct address a)
{
    address_format_lower(out, a);
    struct keccak_digest h = keccak256(out + 2, 40);
    for (int i = 0; i < 40; i++) {
        int nibble = h.bytes[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15;
        if (out[2 + i] >= 'a' && nibble >= 8)
            out[2 + i] = (char)(out[2 + i] - 'a' + 'A');
    }
    return out;
}

int address_parse(struct address *out, const char *text)
{
    struct address a = {{0}};
    if (text[0] != '0' || text[1] != 'x' || hex_decode(a.bytes, sizeof a.bytes, text) != 0)
        return -1;
    bool lower = false, upper = false;
    for (const char *p = text + 2; *p != '\0'; p++) {
        lower |= *p >= 'a';
        upper |= *p >= 'A' && *p <= 'F';
    }
    char checked[ADDRESS_TEXT_BYTES];
    if (lower && upper && strcmp(address_format(checked, a), text) != 0)
        return -1;
    *out = a;
    return 0;
}

static struct address low_20(struct keccak_digest h)
{
    struct address a;
    memcpy(a.bytes, h.bytes + 12, sizeof a.bytes);
    return a;
}

/* keccak256(rlp([sender, nonce]))[12:]; the list is at most 31 bytes, so its prefix is one byte. */
struct address address_create(struct address sender, uint64_t nonce)
{
    uint8_t list[32];
    size_t n = 1;
    list[n++] = 0x80 + sizeof sender.bytes;
    memcpy(list + n, sender.bytes, sizeof sender.bytes);
    n += sizeof sender.bytes;
    if (nonce == 0) {
        list[n++] = 0x80;
    } else if (nonce < 0x80) {
        list[n++] = (uint8_t)nonce;
    } else {
        unsigned bytes = (unsigned)(8 - __builtin_clzll(nonce) / 8);
        list[n++] = (uint8_t)(0x80 + bytes);
        while (bytes-- > 0)
            list[n++] = (uint8_t)(nonce >> (8 * bytes));
    }
    list[0] = (uint8_t)(0xc0 + n - 1);
    return low_20(keccak256(list, n));
}

struct address address_create2(struct address sender, const uint8_t salt[32],
                               const uint8_t init_code_hash[32])
{
    uint8_t bytes[1 + 20 + 32 + 32] = {0xff};
    memcpy(bytes + 1, sender.bytes, 20);
    memcpy(bytes + 21, salt, 32);
    memcpy(bytes + 53, init_code_hash, 32);
    return low_20(keccak256(bytes, sizeof bytes));
}

void signature_to_bytes(uint8_t out[SIGNATURE_BYTES], const struct signature *s)
{
    memcpy(out, s->r, 32);
    memcpy(out + 32, s->s, 32);
    out[64] = (uint8_t)(27 + s->y_parity);
}

int signature_from_bytes(struct signature *out, const uint8_t bytes[SIGNATURE_BYTES])
{
    uint8_t v = bytes[64] >= 27 ? (uint8_t)(bytes[64] - 27) : bytes[64];
    if (v > 1)
        return -1;
    memcpy(out->r, bytes, 32);
    memcpy(out->s, bytes + 32, 32);
    out->y_parity = v;
    return 0;
}

struct channel_id channel_id_of(struct address payer, struct address operator_address,
                                uint64_t epoch)
{
    uint8_t words[96] = {0};
    memcpy(words + 12, payer.bytes, 20);
    memcpy(words + 44, operator_address.bytes, 20);
    for (int i = 0; i < 8; i++)
        words[95 - i] = (uint8_t)(epoch >> (8 * i));
    struct keccak_digest h = keccak256(words, sizeof words);
    struct channel_id c;
    memcpy(c.bytes, h.bytes, sizeof c.bytes);
    return c;
}
