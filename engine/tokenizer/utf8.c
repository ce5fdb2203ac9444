/* utf8: see utf8.h.
 *
 * The table is that of the Unicode Standard 15.0, table 3-7, "Well-Formed UTF-8 Byte Sequences":
 *
 *   first      second     third      fourth
 *   00..7F
 *   C2..DF     80..BF
 *   E0         A0..BF     80..BF
 *   E1..EC     80..BF     80..BF
 *   ED         80..9F     80..BF                 (no surrogates)
 *   EE..EF     80..BF     80..BF
 *   F0         90..BF     80..BF     80..BF
 *   F1..F3     80..BF     80..BF     80..BF
 *   F4         80..8F     80..BF     80..BF      (nothing above U+10FFFF)
 *
 * Only the second byte has special ranges, so a sequence is cut at the first byte that doesn't fit,
 * and that is the maximal subpart. */
#include "engine/tokenizer/utf8.h"

#include "node/base/err.h"

int utf8_scan(const uint8_t *bytes, size_t n)
{
    uint8_t a = bytes[0];
    if (a < 0x80)
        return 1;
    int len = a >= 0xC2 && a <= 0xDF   ? 2
              : a >= 0xE0 && a <= 0xEF ? 3
              : a >= 0xF0 && a <= 0xF4 ? 4
                                       : 0;
    if (len == 0)
        return -1;
    uint8_t low = a == 0xE0 ? 0xA0 : a == 0xF0 ? 0x90 : 0x80;
    uint8_t high = a == 0xED ? 0x9F : a == 0xF4 ? 0x8F : 0xBF;
    for (int i = 1; i < len; i++) {
        if ((size_t)i == n)
            return 0;
        if (bytes[i] < low || bytes[i] > high)
            return -i;
        low = 0x80;
        high = 0xBF;
    }
    return len;
}

bool utf8_is_valid(const void *bytes, size_t n)
{
    const uint8_t *p = bytes;
    for (size_t at = 0; at < n;) {
        if (p[at] < 0x80) {
            at++;
            continue;
        }
        int len = utf8_scan(p + at, n - at);
        if (len <= 0)
            return false;
        at += (size_t)len;
    }
    return true;
}

void utf8_append_lossy(struct buf *out, const void *bytes, size_t n)
{
    const uint8_t *p = bytes;
    size_t done = 0, at = 0; /* [done, at) is good and not yet copied */
    if (n == 0)
        return; /* bytes may be NULL */
    while (at < n) {
        int len = utf8_scan(p + at, n - at);
        if (len > 0) {
            at += (size_t)len;
            continue;
        }
        buf_append(out, p + done, at - done);
        buf_append_str(out, "\xEF\xBF\xBD");
        at += len == 0 ? n - at : (size_t)-len;
        done = at;
    }
    buf_append(out, p + done, at - done);
}

uint32_t utf8_next(const char *text, size_t *at)
{
    const uint8_t *p = (const uint8_t *)text + *at;
    if (p[0] < 0x80) {
        *at += 1;
        return p[0];
    }
    if (p[0] < 0xE0) {
        *at += 2;
        return (uint32_t)(p[0] & 0x1F) << 6 | (uint32_t)(p[1] & 0x3F);
    }
    if (p[0] < 0xF0) {
        *at += 3;
        return (uint32_t)(p[0] & 0x0F) << 12 | (uint32_t)(p[1] & 0x3F) << 6 |
               (uint32_t)(p[2] & 0x3F);
    }
    *at += 4;
    return (uint32_t)(p[0] & 0x07) << 18 | (uint32_t)(p[1] & 0x3F) << 12 |
           (uint32_t)(p[2] & 0x3F) << 6 | (uint32_t)(p[3] & 0x3F);
}

size_t utf8_before(const char *text, size_t at)
{
    do
        at--;
    while (((uint8_t)text[at] & 0xC0) == 0x80);
    return at;
}

size_t utf8_char_bytes(uint8_t first_byte)
{
    return first_byte < 0x80 ? 1 : first_byte < 0xE0 ? 2 : first_byte < 0xF0 ? 3 : 4;
}

size_t utf8_count(const char *text, size_t n_bytes)
{
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++)
        n += ((uint8_t)text[i] & 0xC0) != 0x80;
    return n;
}

size_t utf8_encode(char out[UTF8_MAX_BYTES], uint32_t c)
{
    BUG_IF(c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF));
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3F));
        out[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3F));
    out[2] = (char)(0x80 | (c >> 6 & 0x3F));
    out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

void utf8_append(struct buf *out, uint32_t code_point)
{
    char bytes[UTF8_MAX_BYTES];
    buf_append(out, bytes, utf8_encode(bytes, code_point));
}
