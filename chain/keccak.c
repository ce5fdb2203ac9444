/* keccak: see keccak.h. A sponge of 1600 bits, rate 1088 (136 bytes), 24 rounds.
 *
 * The state is a 5 x 5 square of 64-bit lanes, lane (x, y) at [x + 5 y], bytes little-endian. A
 * round is theta (each bit takes the parity of two columns), rho (lanes rotate) and pi (lanes
 * move), chi (the only non-linear step, along rows), iota (a round constant into lane 0). */
#include "chain/keccak.h"

#include <string.h>

enum { RATE_BYTES = 136 };

static const uint64_t round_constants[24] = {
    0x0000000000000001, 0x0000000000008082, 0x800000000000808A, 0x8000000080008000,
    0x000000000000808B, 0x0000000080000001, 0x8000000080008081, 0x8000000000008009,
    0x000000000000008A, 0x0000000000000088, 0x0000000080008009, 0x000000008000000A,
    0x000000008000808B, 0x800000000000008B, 0x8000000000008089, 0x8000000000008003,
    0x8000000000008002, 0x8000000000000080, 0x000000000000800A, 0x800000008000000A,
    0x8000000080008081, 0x8000000000008080, 0x0000000080000001, 0x8000000080008008,
};

static uint64_t rotate_left(uint64_t v, unsigned n)
{
    return n == 0 ? v : v << n | v >> (64 - n);
}

static void permute(uint64_t a[25])
{
    for (int round = 0; round < 24; round++) {
        uint64_t parity[5], b[25];
        for (int x = 0; x < 5; x++)
            parity[x] = a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20];
        for (int x = 0; x < 5; x++) {
            uint64_t d = parity[(x + 4) % 5] ^ rotate_left(parity[(x + 1) % 5], 1);
            for (int y = 0; y < 25; y += 5)
                a[x + y] ^= d;
        }
        /* rho and pi: lane (x, y) goes to (y, 2x + 3y); the walk from (1, 0) visits all but the
         * origin, rotated by the triangular numbers. */
        b[0] = a[0];
        for (int t = 0, x = 1, y = 0; t < 24; t++) {
            unsigned turn = (unsigned)((t + 1) * (t + 2) / 2 % 64);
            int to_x = y, to_y = (2 * x + 3 * y) % 5;
            b[to_x + 5 * to_y] = rotate_left(a[x + 5 * y], turn);
            x = to_x;
            y = to_y;
        }
        for (int y = 0; y < 25; y += 5) {
            for (int x = 0; x < 5; x++)
                a[x + y] = b[x + y] ^ (~b[(x + 1) % 5 + y] & b[(x + 2) % 5 + y]);
        }
        a[0] ^= round_constants[round];
    }
}

static void absorb_byte(struct keccak *k, uint8_t byte)
{
    k->lanes[k->at / 8] ^= (uint64_t)byte << (8 * (k->at % 8));
    if (++k->at == RATE_BYTES) {
        permute(k->lanes);
        k->at = 0;
    }
}

void keccak_init(struct keccak *k)
{
    memset(k, 0, sizeof *k);
}

void keccak_update(struct keccak *k, const void *bytes, size_t n)
{
    const uint8_t *p = bytes;
    for (; n > 0 && k->at % 8 != 0; n--)
        absorb_byte(k, *p++);
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t lane = 0;
        for (int i = 7; i >= 0; i--)
            lane = lane << 8 | p[i];
        k->lanes[k->at / 8] ^= lane;
        if ((k->at += 8) == RATE_BYTES) {
            permute(k->lanes);
            k->at = 0;
        }
    }
    for (; n > 0; n--)
        absorb_byte(k, *p++);
}

struct keccak_digest keccak_final(struct keccak *k)
{
    k->lanes[k->at / 8] ^= (uint64_t)1 << (8 * (k->at % 8));
    k->lanes[(RATE_BYTES - 1) / 8] ^= (uint64_t)0x80 << 56;
    permute(k->lanes);
    struct keccak_digest d;
    for (size_t i = 0; i < sizeof d.bytes; i++)
        d.bytes[i] = (uint8_t)(k->lanes[i / 8] >> (8 * (i % 8)));
    return d;
}

struct keccak_digest keccak256(const void *bytes, size_t n)
{
    struct keccak k;
    keccak_init(&k);
    keccak_update(&k, bytes, n);
    return keccak_final(&k);
}
