/* api_keys: see api_keys.h. Every entry is compared whole, found or not: the time says nothing
 * about which bytes of a guess's hash were right. */
#include "node/api_keys.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/sha256.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct api_keys {
    struct api_key *keys;
    size_t n;
};

/* ---- fields ------------------------------------------------------------------------------------
 */

enum field { WEIGHT, PRIORITY, RPS, BURST, CONCURRENT, TPM, N_FIELDS };

static const struct {
    const char *name;
    bool whole; /* an integer */
    double min, max;
} fields[N_FIELDS] = {
    [WEIGHT] = {"weight", false, 0.001, 1000},
    [PRIORITY] = {"priority", true, -100, 100},
    [RPS] = {"rps", false, 0, 1e6},
    [BURST] = {"burst", true, 1, 1e6},
    [CONCURRENT] = {"concurrent", true, 0, 1e6},
    [TPM] = {"tpm", true, 0, 1e12},
};

/* Digits, with a sign or a point where they may be; nothing else that strtod would take. */
static bool read_value(double *out, const char *text, bool whole)
{
    const char *p = text + (text[0] == '-');
    size_t n = strspn(p, "0123456789");
    if (n == 0 || n > 15)
        return false;
    if (!whole && p[n] == '.') {
        size_t n_fraction = strspn(p + n + 1, "0123456789");
        if (n_fraction == 0)
            return false;
        n += 1 + n_fraction;
    }
    if (p[n] != '\0')
        return false;
    *out = strtod(text, NULL); /* the program never leaves the C locale */
    return true;
}

static void set_field(struct api_key *key, enum field f, double value)
{
    switch (f) {
    case WEIGHT:
        key->weight = (float)value;
        return;
    case PRIORITY:
        key->priority = (int32_t)value;
        return;
    case RPS:
        key->limits.requests_per_second = value;
        return;
    case BURST:
        key->limits.burst = (uint32_t)value;
        return;
    case CONCURRENT:
        key->limits.concurrent = (uint32_t)value;
        return;
    case TPM:
        key->limits.tokens_per_minute = (uint64_t)value;
        return;
    case N_FIELDS:
        break;
    }
    BUG("field %d", (int)f);
}

/* One "name=value"; seen: a bit for each field that the line had before. */
static int add_field(struct api_key *key, const char *text, unsigned *seen, struct err *err)
{
    size_t n = strcspn(text, "=");
    unsigned f = 0;
    double value = 0;
    while (f < N_FIELDS && (strlen(fields[f].name) != n || strncmp(fields[f].name, text, n) != 0))
        f++;
    if (f == N_FIELDS || text[n] != '=')
        return err_set(
            err, ERR_INVALID,
            "\"%.80s\" is none of weight=, priority=, rps=, burst=, concurrent=, tpm=", text);
    if (*seen & 1U << f)
        return err_set(err, ERR_INVALID, "%s= is there twice", fields[f].name);
    *seen |= 1U << f;
    if (!read_value(&value, text + n + 1, fields[f].whole) || value < fields[f].min ||
        value > fields[f].max)
        return err_set(err, ERR_INVALID, "%.80s: %s must be %s from %.13g to %.13g", text,
                       fields[f].name, fields[f].whole ? "an integer" : "a number", fields[f].min,
                       fields[f].max);
    set_field(key, (enum field)f, value);
    return 0;
}

/* ---- lines -------------------------------------------------------------------------------------
 */

static int add_line(struct api_keys *k, char *line, const char *path, int number,
                    const struct admission_limits *otherwise, struct err *err)
{
    line[strcspn(line, "\r\n")] = '\0';
    line += strspn(line, " \t");
    if (line[0] == '\0' || line[0] == '#')
        return 0;
    size_t name_len = strcspn(line, " \t");
    char *hash = line + name_len + strspn(line + name_len, " \t");
    char *rest = hash + strcspn(hash, " \t"), *text;
    if (*rest != '\0')
        *rest++ = '\0';
    struct api_key key = {.weight = 1.0F, .limits = *otherwise};
    unsigned seen = 0;
    if (strncmp(hash, "0x", 2) == 0 || hex_decode(key.sha256, 32, hash) != 0)
        return err_set(err, ERR_INVALID,
                       "%s:%d: not \"NAME SHA256 ...\" (64 hexadecimal digits; never the key "
                       "itself)",
                       path, number);
    for (int i = 0; i < 8; i++)
        key.tag = key.tag << 8 | key.sha256[i];
    for (size_t i = 0; i < k->n; i++) {
        if (strlen(k->keys[i].name) == name_len && strncmp(k->keys[i].name, line, name_len) == 0)
            return err_set(err, ERR_INVALID, "%s:%d: the name %s is there twice", path, number,
                           k->keys[i].name);
    }
    while ((text = strsep(&rest, " \t")) != NULL) {
        if (text[0] != '\0' && add_field(&key, text, &seen, err) != 0)
            return err_wrap(err, "%s:%d", path, number);
    }
    for (size_t i = 0; i < k->n; i++) { /* only one of the lines would count */
        if (memcmp(k->keys[i].sha256, key.sha256, 32) == 0)
            return err_set(err, ERR_INVALID, "%s:%d: this key is that of %s, too", path, number,
                           k->keys[i].name);
    }
    if (k->n == API_KEYS_MAX)
        return err_set(err, ERR_TOO_LARGE, "%s has more than %d keys", path, API_KEYS_MAX);
    key.name = xstrndup(line, name_len);
    if ((k->n & (k->n - 1)) == 0) /* at powers of two */
        k->keys = xrealloc_array(k->keys, k->n == 0 ? 1 : k->n * 2, sizeof *k->keys);
    k->keys[k->n++] = key;
    return 0;
}

int api_keys_open(struct api_keys **out, const char *path, const struct admission_limits *otherwise,
                  struct err *err)
{
    struct buf text = BUF_INIT;
    if (file_read(path, 16 << 20, &text, err) != 0)
        return -1;
    struct api_keys *k = xcalloc(1, sizeof *k);
    int rc = 0, number = 0;
    char *rest = (char *)(uintptr_t)buf_cstr(&text), *line;
    while (rc == 0 && (line = strsep(&rest, "\n")) != NULL)
        rc = add_line(k, line, path, ++number, otherwise, err);
    if (rc == 0 && k->n == 0)
        rc = err_set(err, ERR_INVALID, "%s has no key", path);
    buf_release(&text);
    if (rc != 0) {
        api_keys_close(k);
        return -1;
    }
    *out = k;
    return 0;
}

void api_keys_close(struct api_keys *k)
{
    if (k == NULL)
        return;
    for (size_t i = 0; i < k->n; i++)
        free(k->keys[i].name);
    free(k->keys);
    free(k);
}

static uint32_t differ(const uint8_t a[32], const uint8_t b[32])
{
    uint32_t d = 0;
    for (int i = 0; i < 32; i++)
        d |= (uint32_t)(a[i] ^ b[i]);
    return d;
}

const struct api_key *api_keys_find(const struct api_keys *k, const char *header)
{
    if (header == NULL || strncasecmp(header, "Bearer ", 7) != 0)
        return NULL;
    const char *key = header + 7;
    key += strspn(key, " ");
    size_t n = strlen(key);
    if (n == 0 || n > API_KEY_BYTES_MAX)
        return NULL;
    struct sha256_digest hash = sha256(key, n);
    const struct api_key *found = NULL;
    for (size_t i = 0; i < k->n; i++) {
        if (differ(k->keys[i].sha256, hash.bytes) == 0)
            found = &k->keys[i];
    }
    return found;
}

size_t api_keys_count(const struct api_keys *k)
{
    return k->n;
}
