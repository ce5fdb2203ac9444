/* vector: what the wallet's tests share. Each function fails the test when its input is not what
 * it says. */
#ifndef TRIBUTARY_TESTS_WALLET_VECTOR_H
#define TRIBUTARY_TESTS_WALLET_VECTOR_H

#include "tests/support.h"

#include "node/base/err.h"
#include "node/base/hex.h"
#include "wallet/secmem.h"

#include <stdio.h>
#include <string.h>

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

static inline const char *vector_str(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    if (s == NULL)
        fail_msg("vector without a string \"%s\"", key);
    return s;
}

static inline uint32_t vector_num(const json_t *o, const char *key)
{
    if (!json_is_integer(json_object_get(o, key)))
        fail_msg("vector without a number \"%s\"", key);
    return (uint32_t)json_integer_value(json_object_get(o, key));
}

/* Hexadecimal, with or without 0x, replaces what b held. */
static inline void vector_bytes(struct buf *b, const char *hex)
{
    size_t n = strlen(hex + (strncmp(hex, "0x", 2) == 0 ? 2 : 0)) / 2;
    buf_reset(b);
    buf_reserve(b, n);
    if (hex_decode(b->data, n, hex) != 0)
        fail_msg("not hexadecimal: %s", hex);
    b->len = n;
}

static inline struct secret *vector_secret(const char *hex)
{
    struct buf b = BUF_INIT;
    vector_bytes(&b, hex);
    struct secret *s = secret_from_bytes(b.data == NULL ? (uint8_t *)"" : b.data, b.len);
    buf_release(&b);
    return s;
}

static inline struct secret *vector_secret_text(const char *text)
{
    return secret_from_bytes(text, strlen(text));
}

/* where names the case in the failure's message. s is freed. */
static inline void vector_expect(struct secret *s, const void *want, size_t n, const char *where,
                                 const struct err *err)
{
    if (s == NULL)
        fail_msg("%s: expected a value, got %s: %s", where, err_code_name(err->code), err->message);
    bool same = secret_len(s) == n && memcmp(secret_reveal(s), want, n) == 0;
    if (secret_len(s) == n)
        secret_conceal(s);
    secret_free(s);
    if (!same)
        fail_msg("%s: differs from the vector", where);
}

static inline void vector_expect_hex(struct secret *s, const char *hex, const char *where,
                                     const struct err *err)
{
    struct buf b = BUF_INIT;
    vector_bytes(&b, hex);
    vector_expect(s, b.data, b.len, where, err);
    buf_release(&b);
}

#endif
