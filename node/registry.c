/* registry: see registry.h. */
#include "node/registry.h"

#include "chain/eip712.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/http_client.h"
#include "node/base/sha256.h"
#include "wallet/wallet.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SIGNATURE_MAX_BYTES = 1024, HASH_TEXT_BYTES = 65, BLOB_TIMEOUT_MS = 3600000 };
/* In 20 s, http_client's default: a file that comes more slowly holds up who waits for it, and who
 * asks for it when the registry has become faster. */
enum { BLOB_STALL_BYTES = 64 << 10 };

static const char *hash_text(char out[HASH_TEXT_BYTES], struct sha256_digest hash)
{
    return hex_encode(out, hash.bytes, sizeof hash.bytes);
}

/* ---- small files
 * ----------------------------------------------------------------------------------- */

/* More than was asked for, or announced, is the registry's fault: whoever waits for an adapter
 * asked for nothing too large. */
static int blame_registry(struct err *err)
{
    if (err != NULL && err->code == ERR_TOO_LARGE)
        err->code = ERR_UPSTREAM;
    return -1;
}

/* GETs url/path into out. ERR_NOT_FOUND for 404 and 410, ERR_UPSTREAM for other failures. */
static int fetch_small(const struct registry_client *c, const char *path, uint64_t max_bytes,
                       struct buf *out, struct err *err)
{
    char *url = xasprintf("%s%s", c->url, path);
    struct http_call call = {.url = url,
                             .max_body_bytes = max_bytes,
                             .cancel = c->cancel,
                             .connect_timeout_ms = 5000,
                             .timeout_ms = 30000};
    struct http_reply reply;
    int rc = http_client_fetch(c->http, &call, out, &reply, err);
    if (rc != 0) {
        blame_registry(err);
    } else if (reply.status != 200) {
        enum err_code code = reply.status == 404 || reply.status == 410 ? ERR_NOT_FOUND
                                                                        : ERR_UPSTREAM;
        rc = err_set(err, code, "%s: the registry answers %d", url, reply.status);
    }
    free(url);
    return rc;
}

/* As fetch_small, with the bytes' hash checked. */
static int fetch_hashed(const struct registry_client *c, const char *path,
                        struct sha256_digest hash, uint64_t max_bytes, struct buf *out,
                        struct err *err)
{
    size_t before = out->len;
    if (fetch_small(c, path, max_bytes, out, err) != 0)
        return -1;
    struct sha256_digest got = sha256(out->data + before, out->len - before);
    if (DIGEST_EQ(got, hash))
        return 0;
    char text[HASH_TEXT_BYTES];
    return err_set(err, ERR_CORRUPT, "%s%s: the registry answers bytes whose sha256 is %s", c->url,
                   path, hash_text(text, got));
}

/* ---- the index
 * --------------------------------------------------------------------------------------- */

static int parse_entry(struct registry_entry *out, const json_t *item, struct err *err)
{
    *out = (struct registry_entry){0};
    const char *name = json_string_value(json_object_get(item, "name"));
    const char *kind = json_string_value(json_object_get(item, "kind"));
    const char *creator = json_string_value(json_object_get(item, "creator"));
    const char *manifest = json_string_value(json_object_get(item, "manifest"));
    json_int_t version = json_integer_value(json_object_get(item, "version"));
    if (name == NULL || strlen(name) >= sizeof out->name || kind == NULL || creator == NULL ||
        address_parse(&out->creator, creator) != 0 || manifest == NULL ||
        hex_decode(out->manifest.bytes, 32, manifest) != 0 || version < 0)
        return err_set(err, ERR_CORRUPT, "an entry of the registry's index is malformed");
    strcpy(out->name, name);
    out->is_datanet = strcmp(kind, "datanet") == 0;
    out->version = (uint64_t)version;
    return 0;
}

/* 1: each ended the walk; 0: go on with *previous (has_previous) or end. */
static int walk_page(const struct buf *text, registry_entry_fn *each, void *context,
                     struct sha256_digest *previous, bool *has_previous, struct err *err)
{
    json_error_t problem;
    json_t *page = json_loadb((const char *)text->data, text->len, JSON_REJECT_DUPLICATES,
                              &problem);
    const json_t *items = json_object_get(page, "items");
    const char *schema = json_string_value(json_object_get(page, "schema"));
    const char *before = json_string_value(json_object_get(page, "previous"));
    int rc = 0;
    if (schema == NULL || strcmp(schema, "tributary.index/1") != 0 || !json_is_array(items))
        rc = err_set(err, ERR_CORRUPT, "the registry's index is not a tributary.index/1");
    *has_previous = before != NULL;
    if (rc == 0 && before != NULL && hex_decode(previous->bytes, 32, before) != 0)
        rc = err_set(err, ERR_CORRUPT, "the registry's index names no page by \"%.70s\"", before);
    for (size_t i = json_array_size(items); rc == 0 && i-- > 0;) {
        struct registry_entry entry;
        rc = parse_entry(&entry, json_array_get(items, i), err);
        if (rc == 0)
            rc = each(context, &entry, err);
    }
    json_decref(page);
    return rc;
}

int registry_walk(const struct registry_client *c, registry_entry_fn *each, void *context,
                  struct err *err)
{
    struct buf text = BUF_INIT;
    struct sha256_digest previous = {{0}};
    bool more = true;
    int rc = fetch_small(c, "/v1/index.json", REGISTRY_INDEX_MAX_BYTES, &text, err);
    for (int page = 0; rc == 0 && more; page++) {
        rc = walk_page(&text, each, context, &previous, &more, err);
        if (rc != 0 || !more)
            break;
        if (page == REGISTRY_PAGES_MAX) {
            rc = err_set(err, ERR_TOO_LARGE, "%s: an index of more than %d pages", c->url,
                         REGISTRY_PAGES_MAX);
            break;
        }
        /* A page is named by its hash, so the chain can't be a circle. */
        char hex[HASH_TEXT_BYTES];
        char *path = xasprintf("/v1/blobs/%s", hash_text(hex, previous));
        buf_reset(&text);
        rc = fetch_hashed(c, path, previous, REGISTRY_INDEX_MAX_BYTES, &text, err);
        free(path);
    }
    buf_release(&text);
    return rc;
}

/* ---- manifests
 * --------------------------------------------------------------------------------------- */

void registry_signature_write(struct buf *out, const struct registry_signature *s)
{
    uint8_t bytes[SIGNATURE_BYTES];
    char hex[2 * SIGNATURE_BYTES + 3], contract[ADDRESS_TEXT_BYTES];
    signature_to_bytes(bytes, &s->signature);
    buf_appendf(out, "{\"chainId\":%llu,\"signature\":\"%s\",\"verifyingContract\":\"%s\"}",
                (unsigned long long)s->chain_id, hex_encode_0x(hex, bytes, sizeof bytes),
                address_format_lower(contract, s->verifying_contract));
}

int registry_signature_parse(struct registry_signature *out, const void *text, size_t n,
                             struct err *err)
{
    json_t *o = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    const json_t *chain_id = json_object_get(o, "chainId");
    const char *signature = json_string_value(json_object_get(o, "signature"));
    const char *contract = json_string_value(json_object_get(o, "verifyingContract"));
    uint8_t bytes[SIGNATURE_BYTES];
    int rc = 0;
    if (!json_is_integer(chain_id) || json_integer_value(chain_id) < 0 || signature == NULL ||
        contract == NULL || address_parse(&out->verifying_contract, contract) != 0 ||
        hex_decode(bytes, sizeof bytes, signature) != 0 ||
        signature_from_bytes(&out->signature, bytes) != 0)
        rc = err_set(err, ERR_CORRUPT, "the manifest's signature is malformed");
    else
        out->chain_id = (uint64_t)json_integer_value(chain_id);
    json_decref(o);
    return rc;
}

int registry_manifest(const struct registry_client *c, struct sha256_digest hash, struct buf *text,
                      struct registry_signature *signature, struct err *err)
{
    char hex[HASH_TEXT_BYTES];
    hash_text(hex, hash);
    char *path = xasprintf("/v1/manifests/%s.json", hex);
    int rc = fetch_hashed(c, path, hash, MANIFEST_MAX_BYTES, text, err);
    free(path);
    if (rc != 0)
        return -1;
    struct buf sig = BUF_INIT;
    path = xasprintf("/v1/manifests/%s.sig", hex);
    rc = fetch_small(c, path, SIGNATURE_MAX_BYTES, &sig, err);
    free(path);
    if (rc == 0)
        rc = registry_signature_parse(signature, sig.data, sig.len, err);
    if (rc != 0)
        err_wrap(err, "manifest %s", hex);
    buf_release(&sig);
    return rc;
}

static int check_signer(const struct manifest *fields, const struct registry_signature *s,
                        const char *what, const char *name, struct err *err)
{
    struct eip712_domain domain = {s->chain_id, s->verifying_contract};
    struct manifest_digest digest = eip712_manifest(fields, &domain);
    struct address signer;
    if (wallet_recover_manifest(&signer, &s->signature, &digest, err) != 0) {
        if (err != NULL)
            err->code = ERR_CORRUPT;
        return err_wrap(err, "%s %s: its manifest's signature", what, name);
    }
    if (address_eq(signer, fields->creator))
        return 0;
    char got[ADDRESS_TEXT_BYTES], want[ADDRESS_TEXT_BYTES];
    return err_set(err, ERR_CORRUPT, "%s %s: its manifest is signed by %s, not by its creator %s",
                   what, name, address_format(got, signer), address_format(want, fields->creator));
}

int registry_check_adapter(const struct manifest_adapter *m, struct sha256_digest hash,
                           const struct registry_signature *s, struct err *err)
{
    struct manifest fields;
    manifest_signed_fields(&fields, m, hash);
    return check_signer(&fields, s, "adapter", m->name, err);
}

void registry_datanet_fields(struct manifest *out, const struct manifest_datanet *m,
                             struct sha256_digest hash)
{
    *out = (struct manifest){.manifest_hash = hash, .creator = m->owner};
}

int registry_check_datanet(const struct manifest_datanet *m, struct sha256_digest hash,
                           const struct registry_signature *s, struct err *err)
{
    struct manifest fields;
    registry_datanet_fields(&fields, m, hash);
    return check_signer(&fields, s, "Datanet", m->name, err);
}

/* ---- files
 * ------------------------------------------------------------------------------------------- */

struct download {
    int fd;
    const char *url;
    struct sha256 hash;
    uint64_t have, size_bytes;
    uint64_t n_old; /* of `have`: what an earlier attempt left */
};

/* What lies on disk is hashed first, so that the rest can be added to it. */
static int rehash(struct download *d, struct err *err)
{
    uint8_t chunk[65536];
    sha256_init(&d->hash);
    d->have = 0;
    if (lseek(d->fd, 0, SEEK_SET) < 0)
        return err_set_errno(err, errno, "%s", d->url);
    for (;;) {
        ssize_t n = read(d->fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set_errno(err, errno, "%s", d->url);
        if (n == 0)
            break;
        sha256_update(&d->hash, chunk, (size_t)n);
        d->have += (uint64_t)n;
    }
    d->n_old = d->have;
    return 0;
}

static int restart(struct download *d, struct err *err)
{
    if (ftruncate(d->fd, 0) != 0)
        return err_set_errno(err, errno, "%s", d->url);
    return rehash(d, err);
}

static int on_blob_head(void *context, const struct http_reply *reply, struct err *err)
{
    struct download *d = context;
    if (reply->status != 200 && reply->status != 206)
        return err_set(err,
                       reply->status == 404 || reply->status == 410 ? ERR_NOT_FOUND : ERR_UPSTREAM,
                       "%s: the registry answers %d", d->url, reply->status);
    /* A server that ignores the range sends all of it again. */
    if (reply->range_from != d->have && restart(d, err) != 0)
        return -1;
    if (reply->has_length && d->have + reply->length_bytes != d->size_bytes)
        return err_set(err, ERR_CORRUPT, "%s: %llu bytes announced, the manifest says %llu", d->url,
                       (unsigned long long)(d->have + reply->length_bytes),
                       (unsigned long long)d->size_bytes);
    return 0;
}

static int on_blob_body(void *context, const void *bytes, size_t n, struct err *err)
{
    struct download *d = context;
    if (n > d->size_bytes - d->have)
        return err_set(err, ERR_CORRUPT, "%s: more bytes than the %llu of the manifest", d->url,
                       (unsigned long long)d->size_bytes);
    const uint8_t *p = bytes;
    for (size_t left = n; left > 0;) {
        ssize_t w = write(d->fd, p, left);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0)
            return err_set_errno(err, errno, "storing %s", d->url);
        p += w;
        left -= (size_t)w;
    }
    sha256_update(&d->hash, bytes, n);
    d->have += n;
    return 0;
}

static int check_hash(struct download *d, struct sha256_digest hash, struct err *err)
{
    struct sha256_digest got = sha256_final(&d->hash);
    char text[HASH_TEXT_BYTES];
    if (DIGEST_EQ(got, hash))
        return 0;
    return err_set(err, ERR_CORRUPT, "%s: the registry answers bytes whose sha256 is %s", d->url,
                   hash_text(text, got));
}

static int download(const struct registry_client *c, struct download *d, struct sha256_digest hash,
                    struct err *err)
{
    if (rehash(d, err) != 0 || (d->have > d->size_bytes && restart(d, err) != 0))
        return -1;
    if (d->have == d->size_bytes)
        return check_hash(d, hash, err);
    struct http_call call = {
        .url = d->url,
        .range_from = d->have,
        .max_body_bytes = d->size_bytes - d->have > 0 ? d->size_bytes : 1,
        .cancel = c->cancel,
        .connect_timeout_ms = 5000,
        .timeout_ms = BLOB_TIMEOUT_MS,
        .stall_bytes = BLOB_STALL_BYTES,
        .on_head = on_blob_head,
        .on_body = on_blob_body,
        .context = d,
    };
    if (http_client_call(c->http, &call, NULL, err) != 0)
        return blame_registry(err);
    if (d->have != d->size_bytes)
        return err_set(err, ERR_CORRUPT, "%s: ends after %llu of %llu bytes", d->url,
                       (unsigned long long)d->have, (unsigned long long)d->size_bytes);
    return check_hash(d, hash, err);
}

int registry_blob(const struct registry_client *c, struct sha256_digest hash, uint64_t size_bytes,
                  const char *path, struct err *err)
{
    char hex[HASH_TEXT_BYTES];
    char *url = xasprintf("%s/v1/blobs/%s", c->url, hash_text(hex, hash));
    char *part = xasprintf("%s.part", path);
    struct download d = {.url = url, .size_bytes = size_bytes};
    struct err local = {0};
    d.fd = open(part, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    int rc = d.fd < 0 ? err_set_errno(&local, errno, "%s", part) : download(c, &d, hash, &local);
    /* What an earlier attempt left may be what is wrong, as after a loss of power. */
    if (rc != 0 && local.code == ERR_CORRUPT && d.n_old > 0)
        rc = restart(&d, &local) == 0 ? download(c, &d, hash, &local) : -1;
    /* Not synced: somebody waits for his answer, and what a loss of power leaves of the file is
     * found out when it is hashed again, at its next load, and fetched anew. */
    if (rc == 0 && rename(part, path) != 0)
        rc = err_set_errno(&local, errno, "%s", path);
    if (d.fd >= 0)
        close(d.fd);
    /* Wrong bytes are of no use to a later attempt; a broken connection's are. */
    if (rc != 0 && local.code == ERR_CORRUPT)
        unlink(part);
    if (rc != 0 && err != NULL)
        *err = local;
    free(part);
    free(url);
    return rc;
}

/* ---- uploads
 * ----------------------------------------------------------------------------------------- */

static int put(const struct registry_client *c, const char *path, const void *body, size_t n,
               const char *header, struct err *err)
{
    char *url = xasprintf("%s%s", c->url, path);
    const char *headers[] = {header};
    struct http_call call = {
        .method = HTTP_PUT,
        .url = url,
        .headers = headers,
        .n_headers = header != NULL,
        .body = body,
        .n_body = n,
        .cancel = c->cancel,
        .timeout_ms = BLOB_TIMEOUT_MS,
        .no_redirects = true,
    };
    struct buf answer = BUF_INIT;
    struct http_reply reply;
    int rc = http_client_fetch(c->http, &call, &answer, &reply, err);
    if (rc == 0 && reply.status != 200 && reply.status != 201) {
        json_t *o = json_loadb((const char *)answer.data, answer.len, 0, NULL);
        const char *message = json_string_value(
            json_object_get(json_object_get(o, "error"), "message"));
        rc = err_set(err, reply.status == 401 || reply.status == 403 ? ERR_FORBIDDEN : ERR_UPSTREAM,
                     "%s: the registry answers %d%s%s", url, reply.status,
                     message != NULL ? ": " : "", message != NULL ? message : "");
        json_decref(o);
    }
    buf_release(&answer);
    free(url);
    return rc;
}

int registry_put_manifest(const struct registry_client *c, const struct buf *text,
                          const struct registry_signature *signature, struct err *err)
{
    char hex[HASH_TEXT_BYTES];
    char *path = xasprintf("/v1/manifests/%s.json", hash_text(hex, sha256(text->data, text->len)));
    struct buf header = BUF_INIT;
    buf_append_str(&header, "x-tributary-signature: ");
    registry_signature_write(&header, signature);
    int rc = put(c, path, text->data, text->len, buf_cstr(&header), err);
    buf_release(&header);
    free(path);
    return rc;
}

int registry_put_blob(const struct registry_client *c, struct sha256_digest hash, const char *path,
                      struct err *err)
{
    struct buf bytes = BUF_INIT;
    if (file_read(path, (size_t)1 << 34, &bytes, err) != 0) {
        buf_release(&bytes);
        return -1;
    }
    char hex[HASH_TEXT_BYTES];
    char *url_path = xasprintf("/v1/blobs/%s", hash_text(hex, hash));
    int rc = put(c, url_path, bytes.data, bytes.len, NULL, err);
    free(url_path);
    buf_release(&bytes);
    return rc;
}
