/* manifest: strict reading and writing of adapter and Datanet manifests. See manifest.h for the
 * format.
 *
 * Problem. A manifest comes from a stranger's web server, decides who is paid, and is identified by
 * a hash. So it must be bounded, mean one thing, and have one text.
 *
 * Idea. Bytes -> jansson (duplicate keys refused, depth bounded) -> field readers that know each
 * key, its type and its bounds -> a rule check on the struct -> the struct is written again and
 * must give the same bytes. The last step makes the parser strict without a second list of rules:
 * whatever is not canonical, or not carried by the struct (an unknown key, "01", upper-case
 * hexadecimal), comes out differently. The readers still name the common mistakes, so that errors
 * help.
 *
 * A reader keeps the first error and goes quiet; the end of the parse looks once. */
#include "attribution/manifest.h"

#include "chain/keccak.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/sha256.h"
#include "node/base/usage.h"

#include <stdlib.h>
#include <string.h>

#define SCHEMA_ADAPTER "tributary.adapter/1"
#define SCHEMA_DATANET "tributary.datanet/1"
#define INTEGER_MAX    ((uint64_t)9007199254740991) /* 2^53 - 1 */

/* ---- rules on values, shared by parsing and writing ----------------------------------------- */

static bool name_ok(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n >= MANIFEST_NAME_BYTES)
        return false;
    for (size_t i = 0; i < n; i++) {
        char c = name[i];
        bool alnum = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        if (!alnum && (i == 0 || !strchr("._-", c)))
            return false;
    }
    return true;
}

/* Relative, '/'-separated, printable ASCII without backslash; no part is empty, "." or "..". */
static bool path_ok(const char *path)
{
    size_t n = strlen(path);
    if (n == 0 || n > MANIFEST_PATH_MAX_BYTES)
        return false;
    const char *part = path;
    for (size_t i = 0; i <= n; i++) {
        char c = path[i];
        if (c == '/' || c == '\0') {
            size_t len = (size_t)(path + i - part);
            if (len == 0 || (len == 1 && part[0] == '.') ||
                (len == 2 && part[0] == '.' && part[1] == '.'))
                return false;
            part = path + i + 1;
        } else if (c < 0x20 || c > 0x7e || c == '\\') {
            return false;
        }
    }
    return true;
}

static int bad(struct err *err, const char *what)
{
    return err_set(err, ERR_INVALID, "%s", what);
}

static int check_shares(const struct manifest_adapter *m, struct err *err)
{
    uint32_t sum = 0;
    if (m->n_splits > MANIFEST_SHARES_MAX || m->n_datanets > MANIFEST_SHARES_MAX)
        return err_set(err, ERR_TOO_LARGE, "splits and datanets may have %d entries each",
                       (int)MANIFEST_SHARES_MAX);
    for (uint32_t i = 0; i < m->n_splits; i++) {
        if (m->splits[i].bps == 0 || m->splits[i].bps > BPS_WHOLE)
            return err_set(err, ERR_INVALID, "splits[%u].bps is %u, not 1 to 10000", i,
                           m->splits[i].bps);
        if (address_is_zero(m->splits[i].payee))
            return err_set(err, ERR_INVALID, "splits[%u].payee is the zero address", i);
        sum += m->splits[i].bps;
    }
    for (uint32_t i = 0; i < m->n_datanets; i++) {
        if (m->datanets[i].bps == 0 || m->datanets[i].bps > BPS_WHOLE)
            return err_set(err, ERR_INVALID, "datanets[%u].bps is %u, not 1 to 10000", i,
                           m->datanets[i].bps);
        for (uint32_t j = 0; j < i; j++) {
            if (DIGEST_EQ(m->datanets[i].id, m->datanets[j].id))
                return err_set(err, ERR_INVALID, "datanets[%u] names the Datanet of datanets[%u]",
                               i, j);
        }
        sum += m->datanets[i].bps;
    }
    if (sum != BPS_WHOLE)
        return err_set(err, ERR_INVALID, "splits and datanets sum to %u basis points, not to 10000",
                       sum);
    return 0;
}

static int check_adapter(const struct manifest_adapter *m, struct err *err)
{
    if (!name_ok(m->name))
        return bad(err, "name is not [a-z0-9][a-z0-9._-]{0,95}");
    if (m->version == 0 || m->version > INTEGER_MAX)
        return bad(err, "version is not 1 to 2^53 - 1");
    if (m->has_parent == bytes32_is_zero(m->parent.bytes))
        return bad(err, "parent is all zero; leave it out when there is none");
    if (!*m->base_model_name || strlen(m->base_model_name) > MANIFEST_TEXT_MAX_BYTES)
        return bad(err, "baseModel.name is empty or too long");
    if (bytes32_is_zero(m->base_model.bytes) || bytes32_is_zero(m->content.bytes))
        return bad(err, "baseModel.modelId or contentDigest is all zero");
    if (address_is_zero(m->creator))
        return bad(err, "creator is the zero address");
    if (strlen(m->licence) > MANIFEST_TEXT_MAX_BYTES)
        return bad(err, "licence is longer than 4096 bytes");
    if (m->chat_template && strlen(m->chat_template) > MANIFEST_TEMPLATE_MAX_BYTES)
        return bad(err, "chatTemplate is longer than 64 KiB");
    if (m->rank == 0 || m->rank > MANIFEST_RANK_MAX)
        return bad(err, "rank is not 1 to 65535");
    if (m->n_target_modules == 0 || m->n_target_modules > MANIFEST_MODULES_MAX)
        return bad(err, "targetModules has no entry, or more than 64");
    for (uint32_t i = 0; i < m->n_target_modules; i++) {
        if (!*m->target_modules[i] || strlen(m->target_modules[i]) > MANIFEST_PATH_MAX_BYTES)
            return err_set(err, ERR_INVALID, "targetModules[%u] is empty or too long", i);
    }
    if (m->n_files == 0 || m->n_files > MANIFEST_FILES_MAX)
        return bad(err, "files has no entry, or more than 256");
    for (uint32_t i = 0; i < m->n_files; i++) {
        if (!path_ok(m->files[i].path))
            return err_set(err, ERR_INVALID,
                           "files[%u].path is not a plain relative path of printable ASCII", i);
        if (m->files[i].size_bytes > INTEGER_MAX)
            return err_set(err, ERR_INVALID, "files[%u].size is above 2^53 - 1", i);
        if (i > 0 && strcmp(m->files[i - 1].path, m->files[i].path) >= 0)
            return err_set(err, ERR_INVALID, "files[%u].path is not above the one before it", i);
    }
    struct content_digest content = manifest_content_digest(m->files, m->n_files);
    if (!DIGEST_EQ(content, m->content))
        return bad(err, "contentDigest is not the digest of files");
    return check_shares(m, err);
}

static int check_datanet(const struct manifest_datanet *m, struct err *err)
{
    if (!name_ok(m->name))
        return bad(err, "name is not [a-z0-9][a-z0-9._-]{0,95}");
    if (strlen(m->description) > MANIFEST_TEXT_MAX_BYTES ||
        strlen(m->licence) > MANIFEST_TEXT_MAX_BYTES)
        return bad(err, "description or licence is longer than 4096 bytes");
    if (address_is_zero(m->owner) || address_is_zero(m->payee))
        return bad(err, "owner or payee is the zero address");
    if (m->n_sources > MANIFEST_FILES_MAX)
        return bad(err, "sources has more than 256 entries");
    for (uint32_t i = 0; i < m->n_sources; i++) {
        if (!*m->sources[i].url || strlen(m->sources[i].url) > MANIFEST_TEXT_MAX_BYTES)
            return err_set(err, ERR_INVALID, "sources[%u].url is empty or too long", i);
    }
    return 0;
}

/* ---- reading -------------------------------------------------------------------------------- */

struct reader {
    struct arena *arena;
    struct err *err;
    bool failed; /* *err is set; later reads return zeros */
};

static void reject(struct reader *r, const char *where, const char *key, const char *why)
{
    if (!r->failed)
        err_set(r->err, ERR_INVALID, "%s%s%s %s", where, *where && *key ? "." : "", key, why);
    r->failed = true;
}

/* An object whose keys are all in the list: names separated by spaces. */
static void only_keys(struct reader *r, const json_t *object, const char *where, const char *list)
{
    if (r->failed)
        return;
    if (!json_is_object(object)) {
        reject(r, where, "", "is not an object");
        return;
    }
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        (void)value;
        size_t n = strlen(key);
        const char *hit = n ? strstr(list, key) : NULL;
        while (hit && ((hit != list && hit[-1] != ' ') || (hit[n] != ' ' && hit[n] != '\0')))
            hit = strstr(hit + 1, key);
        if (!hit || strchr(key, ' ')) {
            char shown[48];
            snprintf(shown, sizeof(shown), "%.40s", key);
            reject(r, where, shown, "is not a key of this schema");
            return;
        }
    }
}

static const char *read_text(struct reader *r, const json_t *object, const char *where,
                             const char *key)
{
    const json_t *value = r->failed ? NULL : json_object_get(object, key);
    if (!json_is_string(value)) {
        reject(r, where, key, value ? "is not a string" : "is missing");
        return "";
    }
    return arena_strdup(r->arena, json_string_value(value));
}

static uint64_t read_integer(struct reader *r, const json_t *object, const char *where,
                             const char *key)
{
    const json_t *value = r->failed ? NULL : json_object_get(object, key);
    if (json_is_real(value))
        reject(r, where, key, "is a floating point number; it must be an integer");
    else if (!json_is_integer(value))
        reject(r, where, key, value ? "is not an integer" : "is missing");
    else if (json_integer_value(value) < 0 || (uint64_t)json_integer_value(value) > INTEGER_MAX)
        reject(r, where, key, "is not 0 to 2^53 - 1");
    return r->failed ? 0 : (uint64_t)json_integer_value(value);
}

static uint16_t read_bps(struct reader *r, const json_t *object, const char *where)
{
    uint64_t bps = read_integer(r, object, where, "bps");
    if (!r->failed && bps > BPS_WHOLE)
        reject(r, where, "bps", "is above 10000");
    return r->failed ? 0 : (uint16_t)bps;
}

/* n bytes of hexadecimal, with 0x or without, as the schema has it. */
static void read_hex(struct reader *r, uint8_t *out, size_t n, const json_t *object,
                     const char *where, const char *key, bool prefixed)
{
    memset(out, 0, n);
    const char *text = read_text(r, object, where, key);
    if (r->failed)
        return;
    bool has_prefix = text[0] == '0' && text[1] == 'x';
    if (has_prefix != prefixed || strlen(text) != 2 * n + (prefixed ? 2 : 0) ||
        hex_decode(out, n, text) != 0 || strpbrk(text, "ABCDEF"))
        reject(r, where, key,
               n == 20    ? "is not an address (0x and 40 lower-case hexadecimal digits)"
               : prefixed ? "is not an id (0x and 64 lower-case hexadecimal digits)"
                          : "is not a digest (64 lower-case hexadecimal digits)");
}

static struct amount read_amount(struct reader *r, const json_t *object, const char *where,
                                 const char *key)
{
    struct amount a = AMOUNT_ZERO;
    const json_t *value = r->failed ? NULL : json_object_get(object, key);
    if (json_is_number(value))
        reject(r, where, key, "is a JSON number; amounts are decimal strings");
    const char *text = read_text(r, object, where, key);
    if (!r->failed && amount_parse(&a, text) != 0)
        reject(r, where, key, "is not a decimal amount below 2^128");
    return a;
}

static const json_t *read_array(struct reader *r, const json_t *object, const char *key, size_t max,
                                uint32_t *n)
{
    const json_t *array = r->failed ? NULL : json_object_get(object, key);
    *n = 0;
    if (!json_is_array(array)) {
        reject(r, "", key, array ? "is not an array" : "is missing");
        return NULL;
    }
    if (json_array_size(array) > max) {
        if (!r->failed)
            err_set(r->err, ERR_TOO_LARGE, "%s has %zu entries, at most %zu are allowed", key,
                    json_array_size(array), max);
        r->failed = true;
        return NULL;
    }
    *n = (uint32_t)json_array_size(array);
    return array;
}

static void read_adapter(struct reader *r, const json_t *o, struct manifest_adapter *m)
{
    only_keys(r, o, "",
              "baseModel chatTemplate contentDigest created creator datanets files licence name "
              "parent rank royalty schema splits targetModules version");
    m->name = read_text(r, o, "", "name");
    m->version = read_integer(r, o, "", "version");
    m->has_parent = !r->failed && json_object_get(o, "parent") != NULL;
    if (m->has_parent)
        read_hex(r, m->parent.bytes, 32, o, "", "parent", false);
    const json_t *base = r->failed ? NULL : json_object_get(o, "baseModel");
    only_keys(r, base, "baseModel", "modelId name");
    m->base_model_name = read_text(r, base, "baseModel", "name");
    read_hex(r, m->base_model.bytes, 32, base, "baseModel", "modelId", false);
    read_hex(r, m->content.bytes, 32, o, "", "contentDigest", false);
    read_hex(r, m->creator.bytes, 20, o, "", "creator", true);
    m->created_unix_s = read_integer(r, o, "", "created");
    m->licence = read_text(r, o, "", "licence");
    if (!r->failed && json_object_get(o, "chatTemplate"))
        m->chat_template = read_text(r, o, "", "chatTemplate");
    uint64_t rank = read_integer(r, o, "", "rank");
    m->rank = rank > MANIFEST_RANK_MAX ? 0 : (uint32_t)rank;
    const json_t *royalty = r->failed ? NULL : json_object_get(o, "royalty");
    only_keys(r, royalty, "royalty", "completionPer1k promptPer1k");
    m->royalty_prompt_per_1k = read_amount(r, royalty, "royalty", "promptPer1k");
    m->royalty_completion_per_1k = read_amount(r, royalty, "royalty", "completionPer1k");

    const json_t *array = read_array(r, o, "targetModules", MANIFEST_MODULES_MAX,
                                     &m->n_target_modules);
    const char **modules = arena_array(r->arena, m->n_target_modules + 1, sizeof(*modules));
    for (uint32_t i = 0; i < m->n_target_modules && !r->failed; i++) {
        const json_t *module = json_array_get(array, i);
        if (!json_is_string(module))
            reject(r, "", "targetModules", "has an entry that is not a string");
        else
            modules[i] = arena_strdup(r->arena, json_string_value(module));
    }
    m->target_modules = modules;

    array = read_array(r, o, "files", MANIFEST_FILES_MAX, &m->n_files);
    struct manifest_file *files = arena_array(r->arena, m->n_files + 1, sizeof(*files));
    for (uint32_t i = 0; i < m->n_files && !r->failed; i++) {
        char where[32];
        snprintf(where, sizeof(where), "files[%u]", i);
        const json_t *file = json_array_get(array, i);
        only_keys(r, file, where, "path sha256 size");
        files[i].path = read_text(r, file, where, "path");
        files[i].size_bytes = read_integer(r, file, where, "size");
        read_hex(r, files[i].sha256.bytes, 32, file, where, "sha256", false);
    }
    m->files = files;

    array = read_array(r, o, "splits", MANIFEST_SHARES_MAX, &m->n_splits);
    struct manifest_split *splits = arena_array(r->arena, m->n_splits + 1, sizeof(*splits));
    for (uint32_t i = 0; i < m->n_splits && !r->failed; i++) {
        char where[32];
        snprintf(where, sizeof(where), "splits[%u]", i);
        const json_t *split = json_array_get(array, i);
        only_keys(r, split, where, "bps payee");
        splits[i].bps = read_bps(r, split, where);
        read_hex(r, splits[i].payee.bytes, 20, split, where, "payee", true);
    }
    m->splits = splits;

    array = read_array(r, o, "datanets", MANIFEST_SHARES_MAX, &m->n_datanets);
    struct manifest_datanet_share *shares = arena_array(r->arena, m->n_datanets + 1,
                                                        sizeof(*shares));
    for (uint32_t i = 0; i < m->n_datanets && !r->failed; i++) {
        char where[32];
        snprintf(where, sizeof(where), "datanets[%u]", i);
        const json_t *share = json_array_get(array, i);
        only_keys(r, share, where, "bps id");
        shares[i].bps = read_bps(r, share, where);
        read_hex(r, shares[i].id.bytes, 32, share, where, "id", true);
    }
    m->datanets = shares;
}

static void read_datanet(struct reader *r, const json_t *o, struct manifest_datanet *m)
{
    only_keys(r, o, "", "created description licence name owner payee schema sources");
    m->name = read_text(r, o, "", "name");
    m->description = read_text(r, o, "", "description");
    m->licence = read_text(r, o, "", "licence");
    read_hex(r, m->owner.bytes, 20, o, "", "owner", true);
    read_hex(r, m->payee.bytes, 20, o, "", "payee", true);
    m->created_unix_s = read_integer(r, o, "", "created");
    const json_t *array = read_array(r, o, "sources", MANIFEST_FILES_MAX, &m->n_sources);
    struct manifest_source *sources = arena_array(r->arena, m->n_sources + 1, sizeof(*sources));
    for (uint32_t i = 0; i < m->n_sources && !r->failed; i++) {
        char where[32];
        snprintf(where, sizeof(where), "sources[%u]", i);
        const json_t *source = json_array_get(array, i);
        only_keys(r, source, where, "sha256 url");
        sources[i].url = read_text(r, source, where, "url");
        read_hex(r, sources[i].sha256.bytes, 32, source, where, "sha256", false);
    }
    m->sources = sources;
}

/* Bytes to a JSON object of the schema. */
static json_t *load(const void *text, size_t n, const char *schema, struct err *err)
{
    if (n > MANIFEST_MAX_BYTES) {
        err_set(err, ERR_TOO_LARGE, "the manifest has %zu bytes, at most %d are allowed", n,
                (int)MANIFEST_MAX_BYTES);
        return NULL;
    }
    json_error_t why;
    json_t *o = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    if (!o) {
        err_set(err, ERR_INVALID, "the manifest is not JSON: %s at byte %d", why.text,
                why.position);
        return NULL;
    }
    const char *got = json_string_value(json_object_get(o, "schema"));
    if (got && strcmp(got, schema) == 0)
        return o;
    if (got)
        err_set(err, ERR_UNSUPPORTED, "schema is \"%.64s\", expected \"%s\"", got, schema);
    else
        err_set(err, ERR_INVALID, "schema is missing, expected \"%s\"", schema);
    json_decref(o);
    return NULL;
}

/* What was written again must be what was read. */
static int same_text(struct buf *again, const void *text, size_t n, struct sha256_digest *hash,
                     struct err *err)
{
    size_t same = 0;
    while (same < n && same < again->len && again->data[same] == ((const uint8_t *)text)[same])
        same++;
    if (same != n || again->len != n)
        return err_set(err, ERR_INVALID,
                       "the manifest is not in canonical form (RFC 8785): byte %zu differs", same);
    if (hash)
        *hash = sha256(text, n);
    return 0;
}

int manifest_adapter_parse(struct manifest_adapter *out, struct sha256_digest *hash,
                           struct arena *arena, const void *text, size_t n, struct err *err)
{
    struct buf again = BUF_INIT;
    struct err local;
    struct reader r = {arena, err ? err : &local, false};
    int rc = -1;
    memset(out, 0, sizeof(*out));
    json_t *o = load(text, n, SCHEMA_ADAPTER, err);
    if (!o)
        return -1;
    read_adapter(&r, o, out);
    if (!r.failed && manifest_adapter_write(out, &again, err) == 0)
        rc = same_text(&again, text, n, hash, err);
    buf_release(&again);
    json_decref(o);
    return rc;
}

int manifest_datanet_parse(struct manifest_datanet *out, struct sha256_digest *hash,
                           struct arena *arena, const void *text, size_t n, struct err *err)
{
    struct buf again = BUF_INIT;
    struct err local;
    struct reader r = {arena, err ? err : &local, false};
    int rc = -1;
    memset(out, 0, sizeof(*out));
    json_t *o = load(text, n, SCHEMA_DATANET, err);
    if (!o)
        return -1;
    read_datanet(&r, o, out);
    if (!r.failed && manifest_datanet_write(out, &again, err) == 0)
        rc = same_text(&again, text, n, hash, err);
    buf_release(&again);
    json_decref(o);
    return rc;
}

/* ---- writing -------------------------------------------------------------------------------- */

static json_t *hex_value(const uint8_t *bytes, size_t n, bool prefixed)
{
    char text[2 * 32 + 3];
    return json_string(prefixed ? hex_encode_0x(text, bytes, n) : hex_encode(text, bytes, n));
}

static json_t *amount_value(struct amount a)
{
    char text[AMOUNT_TEXT_BYTES];
    return json_string(amount_format(text, a));
}

/* jansson returns -1 for a NULL value (text that is not UTF-8, no memory); one look at the end. */
struct writer {
    json_t *root;
    bool failed;
};

static void put(struct writer *w, json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, value) != 0)
        w->failed = true;
}

static void append(struct writer *w, json_t *array, json_t *value)
{
    if (json_array_append_new(array, value) != 0)
        w->failed = true;
}

static int finish(struct writer *w, struct buf *out, struct err *err)
{
    struct buf text = BUF_INIT;
    int rc = w->failed ? err_set(err, ERR_INVALID, "a text of the manifest is not UTF-8")
                       : canonical_json_write(w->root, &text, err);
    if (rc == 0 && text.len > MANIFEST_MAX_BYTES)
        rc = err_set(err, ERR_TOO_LARGE, "the manifest has %zu bytes, at most %d are allowed",
                     text.len, (int)MANIFEST_MAX_BYTES);
    if (rc == 0)
        buf_append(out, text.data, text.len);
    buf_release(&text);
    json_decref(w->root);
    return rc;
}

int manifest_adapter_write(const struct manifest_adapter *m, struct buf *out, struct err *err)
{
    if (check_adapter(m, err) != 0)
        return -1;
    struct writer w = {json_object(), false};
    json_t *o = w.root, *base = json_object(), *royalty = json_object();
    put(&w, o, "schema", json_string(SCHEMA_ADAPTER));
    put(&w, o, "name", json_string(m->name));
    put(&w, o, "version", json_integer((json_int_t)m->version));
    if (m->has_parent)
        put(&w, o, "parent", hex_value(m->parent.bytes, 32, false));
    put(&w, base, "name", json_string(m->base_model_name));
    put(&w, base, "modelId", hex_value(m->base_model.bytes, 32, false));
    put(&w, o, "baseModel", base);
    put(&w, o, "contentDigest", hex_value(m->content.bytes, 32, false));
    put(&w, o, "creator", hex_value(m->creator.bytes, 20, true));
    put(&w, o, "created", json_integer((json_int_t)m->created_unix_s));
    put(&w, o, "licence", json_string(m->licence));
    if (m->chat_template)
        put(&w, o, "chatTemplate", json_string(m->chat_template));
    put(&w, o, "rank", json_integer((json_int_t)m->rank));
    put(&w, royalty, "promptPer1k", amount_value(m->royalty_prompt_per_1k));
    put(&w, royalty, "completionPer1k", amount_value(m->royalty_completion_per_1k));
    put(&w, o, "royalty", royalty);
    json_t *array = json_array();
    for (uint32_t i = 0; i < m->n_target_modules; i++)
        append(&w, array, json_string(m->target_modules[i]));
    put(&w, o, "targetModules", array);
    array = json_array();
    for (uint32_t i = 0; i < m->n_files; i++) {
        json_t *file = json_object();
        put(&w, file, "path", json_string(m->files[i].path));
        put(&w, file, "size", json_integer((json_int_t)m->files[i].size_bytes));
        put(&w, file, "sha256", hex_value(m->files[i].sha256.bytes, 32, false));
        append(&w, array, file);
    }
    put(&w, o, "files", array);
    array = json_array();
    for (uint32_t i = 0; i < m->n_splits; i++) {
        json_t *split = json_object();
        put(&w, split, "bps", json_integer(m->splits[i].bps));
        put(&w, split, "payee", hex_value(m->splits[i].payee.bytes, 20, true));
        append(&w, array, split);
    }
    put(&w, o, "splits", array);
    array = json_array();
    for (uint32_t i = 0; i < m->n_datanets; i++) {
        json_t *share = json_object();
        put(&w, share, "bps", json_integer(m->datanets[i].bps));
        put(&w, share, "id", hex_value(m->datanets[i].id.bytes, 32, true));
        append(&w, array, share);
    }
    put(&w, o, "datanets", array);
    return finish(&w, out, err);
}

int manifest_datanet_write(const struct manifest_datanet *m, struct buf *out, struct err *err)
{
    if (check_datanet(m, err) != 0)
        return -1;
    struct writer w = {json_object(), false};
    json_t *o = w.root, *array = json_array();
    put(&w, o, "schema", json_string(SCHEMA_DATANET));
    put(&w, o, "name", json_string(m->name));
    put(&w, o, "description", json_string(m->description));
    put(&w, o, "licence", json_string(m->licence));
    put(&w, o, "owner", hex_value(m->owner.bytes, 20, true));
    put(&w, o, "payee", hex_value(m->payee.bytes, 20, true));
    put(&w, o, "created", json_integer((json_int_t)m->created_unix_s));
    for (uint32_t i = 0; i < m->n_sources; i++) {
        json_t *source = json_object();
        put(&w, source, "url", json_string(m->sources[i].url));
        put(&w, source, "sha256", hex_value(m->sources[i].sha256.bytes, 32, false));
        append(&w, array, source);
    }
    put(&w, o, "sources", array);
    return finish(&w, out, err);
}

/* ---- digests and ids ------------------------------------------------------------------------ */

static int compare_paths(const void *a, const void *b)
{
    const struct manifest_file *const *x = a, *const *y = b;
    return strcmp((*x)->path, (*y)->path);
}

struct content_digest manifest_content_digest(const struct manifest_file *files, size_t n)
{
    const struct manifest_file **sorted = xcalloc(n + 1, sizeof(const struct manifest_file *));
    for (size_t i = 0; i < n; i++)
        sorted[i] = &files[i];
    qsort(sorted, n, sizeof(*sorted), compare_paths);
    struct sha256 h;
    sha256_init(&h);
    for (size_t i = 0; i < n; i++) {
        char hash[65];
        char *line = xasprintf("%s  %llu  %s\n", hex_encode(hash, sorted[i]->sha256.bytes, 32),
                               (unsigned long long)sorted[i]->size_bytes, sorted[i]->path);
        sha256_update(&h, line, strlen(line));
        free(line);
    }
    free(sorted);
    struct content_digest out;
    memcpy(out.bytes, sha256_final(&h).bytes, 32);
    return out;
}

void manifest_signed_fields(struct manifest *out, const struct manifest_adapter *m,
                            struct sha256_digest hash)
{
    *out = (struct manifest){
        .manifest_hash = hash,
        .content_digest = m->content,
        .model_id = m->base_model,
        .creator = m->creator,
        .version = m->version,
        .parent = m->parent,
    };
}

/* Static members only, so abi.encode is one 32-byte word each, numbers and addresses on the right.
 */
static struct keccak_digest hash_words(uint64_t chain_id, struct address registry,
                                       struct address owner, const uint8_t (*words)[32], size_t n)
{
    uint8_t encoded[5][32] = {{0}};
    for (int i = 0; i < 8; i++)
        encoded[0][31 - i] = (uint8_t)(chain_id >> (8 * i));
    memcpy(encoded[1] + 12, registry.bytes, 20);
    memcpy(encoded[2] + 12, owner.bytes, 20);
    memcpy(encoded[3], words, n * 32);
    return keccak256(encoded, (3 + n) * 32);
}

struct adapter_id manifest_adapter_id(uint64_t chain_id, struct address registry,
                                      struct address creator, struct model_id model,
                                      struct sha256_digest manifest_hash)
{
    uint8_t words[2][32];
    struct adapter_id id;
    memcpy(words[0], model.bytes, 32);
    memcpy(words[1], manifest_hash.bytes, 32);
    memcpy(id.bytes, hash_words(chain_id, registry, creator, words, 2).bytes, 32);
    return id;
}

struct datanet_id manifest_datanet_id(uint64_t chain_id, struct address registry,
                                      struct address owner, struct sha256_digest manifest_hash)
{
    uint8_t words[1][32];
    struct datanet_id id;
    memcpy(words[0], manifest_hash.bytes, 32);
    memcpy(id.bytes, hash_words(chain_id, registry, owner, words, 1).bytes, 32);
    return id;
}
