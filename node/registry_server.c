/* registry_server: see registry_server.h.
 *
 * The index is a chain of pages of REGISTRY_PAGE_ITEMS entries. The newest page is index.json and
 * is rewritten (atomically) with each manifest that becomes visible; a full page is stored as a
 * blob under its hash, and the next page names it. So older pages never change and can be cached
 * for ever. */
#include "node/registry_server.h"

#include "attribution/manifest.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/base/sha256.h"
#include "node/http.h"
#include "node/json_util.h"
#include "node/registry.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HASH_TEXT_BYTES = 65, PENDING_MAX = 1000 };

struct registry_server {
    char *root;
    bool anyone_uploads;
    struct address *uploaders;
    size_t n_uploaders;
    uint64_t max_blob_bytes;
    pthread_mutex_t lock; /* index, and what moves between pending and manifests */
    json_t *page;         /* the newest */
};

/* ---- paths
 * ----------------------------------------------------------------------------------------- */

static char *path_of(const struct registry_server *s, const char *folder, const char *name)
{
    return xasprintf("%s/%s/%s", s->root, folder, name);
}

static bool exists(const struct registry_server *s, const char *folder, const char *name)
{
    char *path = path_of(s, folder, name);
    bool there = access(path, F_OK) == 0;
    free(path);
    return there;
}

/* "<64 hex><suffix>" at the end of a request's path. false: anything else. */
static bool name_of(const char *path, const char *prefix, const char *suffix,
                    char hex[HASH_TEXT_BYTES])
{
    size_t n = strlen(prefix);
    if (strncmp(path, prefix, n) != 0 || strlen(path) != n + 64 + strlen(suffix) ||
        strcmp(path + n + 64, suffix) != 0)
        return false;
    memcpy(hex, path + n, 64);
    hex[64] = '\0';
    return strspn(hex, "0123456789abcdef") == 64;
}

/* ---- answers
 * --------------------------------------------------------------------------------------- */

static void reply_json(struct http_exchange *x, unsigned status, json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT);
    http_reply_text(x, status, "application/json", text);
    free(text);
    json_decref(value);
}

static void reply_error(struct http_exchange *x, const struct err *err)
{
    reply_json(x, (unsigned)err_http_status(err->code),
               json_pack("{s:{s:s,s:o}}", "error", "code", err_code_name(err->code), "message",
                         json_text(err->message)));
}

static void refuse(struct http_exchange *x, enum err_code code, const char *message)
{
    struct err err;
    err_set(&err, code, "%s", message);
    reply_error(x, &err);
}

/* "bytes=N-"; an N that doesn't fit becomes UINT64_MAX, which is behind the end of every file.
 * false: another form, which is ignored as the standard allows; *from is as it was. */
static bool range_from(const struct http_exchange *x, uint64_t *from)
{
    const char *range = http_header(x, "Range");
    char *end;
    if (range == NULL || strncmp(range, "bytes=", 6) != 0 || range[6] < '0' || range[6] > '9')
        return false;
    uint64_t n = strtoull(range + 6, &end, 10);
    if (strcmp(end, "-") != 0)
        return false;
    *from = n;
    return true;
}

static void serve_file(struct registry_server *s, struct http_exchange *x, const char *folder,
                       const char *name, bool immutable)
{
    char *path = path_of(s, folder, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat st;
    free(path);
    if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        if (fd >= 0)
            close(fd);
        refuse(x, ERR_NOT_FOUND, "no such file in this registry");
        return;
    }
    uint64_t size = (uint64_t)st.st_size, from = 0;
    bool ranged = range_from(x, &from);
    http_set_header(x, "Accept-Ranges", "bytes");
    http_set_header(x, "Cache-Control",
                    immutable ? "public, max-age=31536000, immutable" : "no-cache");
    if (ranged && from >= size) {
        close(fd);
        char *all = xasprintf("bytes */%" PRIu64, size);
        http_set_header(x, "Content-Range", all);
        free(all);
        http_reply_text(x, 416, "text/plain", "");
        return;
    }
    if (ranged) {
        char *part = xasprintf("bytes %" PRIu64 "-%" PRIu64 "/%" PRIu64, from, size - 1, size);
        http_set_header(x, "Content-Range", part);
        free(part);
    }
    const char *type = strcmp(folder, "blobs") == 0 ? "application/octet-stream"
                                                    : "application/json";
    http_reply_file(x, ranged ? 206 : 200, type, fd, from, size - from);
}

/* ---- the index
 * ------------------------------------------------------------------------------------- */

static int write_index(struct registry_server *s, struct err *err)
{
    struct buf text = BUF_INIT;
    json_object_set_new(s->page, "updated", json_integer((json_int_t)(clock_unix_ms().ms / 1000)));
    int rc = canonical_json_write(s->page, &text, err);
    if (rc == 0) {
        char *path = path_of(s, ".", "index.json");
        rc = file_write_atomic(path, text.data, text.len, 0644, err);
        free(path);
    }
    buf_release(&text);
    return rc;
}

/* Turns a full page into a blob and begins the next one. */
static int turn_page(struct registry_server *s, struct err *err)
{
    struct buf text = BUF_INIT;
    char hex[HASH_TEXT_BYTES];
    int rc = canonical_json_write(s->page, &text, err);
    if (rc == 0) {
        hex_encode(hex, sha256(text.data, text.len).bytes, 32);
        char *path = path_of(s, "blobs", hex);
        rc = file_write_atomic(path, text.data, text.len, 0644, err);
        free(path);
    }
    buf_release(&text);
    if (rc == 0) {
        json_decref(s->page);
        s->page = json_pack("{s:[],s:s,s:s,s:i}", "items", "previous", hex, "schema",
                            "tributary.index/1", "updated", 0);
    }
    return rc;
}

static int add_to_index(struct registry_server *s, json_t *entry, struct err *err)
{
    if (json_array_size(json_object_get(s->page, "items")) >= REGISTRY_PAGE_ITEMS &&
        turn_page(s, err) != 0) {
        json_decref(entry);
        return -1;
    }
    json_array_append_new(json_object_get(s->page, "items"), entry);
    return write_index(s, err);
}

/* ---- manifests
 * -------------------------------------------------------------------------------------- */

/* What the server needs of either kind of manifest. */
struct facts {
    bool is_datanet;
    const char *name;
    uint64_t version;
    struct address creator;
    struct sha256_digest hash;
    const struct manifest_file *files;
    uint32_t n_files;
    struct manifest_adapter adapter;
    struct manifest_datanet datanet;
};

static int read_facts(struct facts *f, struct arena *arena, const void *text, size_t n,
                      struct err *err)
{
    *f = (struct facts){0};
    struct err adapter_err = {0};
    if (manifest_adapter_parse(&f->adapter, &f->hash, arena, text, n, &adapter_err) == 0) {
        f->name = f->adapter.name;
        f->version = f->adapter.version;
        f->creator = f->adapter.creator;
        f->files = f->adapter.files;
        f->n_files = f->adapter.n_files;
        return 0;
    }
    if (adapter_err.code == ERR_UNSUPPORTED &&
        manifest_datanet_parse(&f->datanet, &f->hash, arena, text, n, err) == 0) {
        f->is_datanet = true;
        f->name = f->datanet.name;
        f->creator = f->datanet.owner;
        return 0;
    }
    if (adapter_err.code != ERR_UNSUPPORTED && err != NULL)
        *err = adapter_err;
    return -1;
}

static bool may_upload(const struct registry_server *s, struct address who)
{
    bool may = s->anyone_uploads;
    for (size_t i = 0; i < s->n_uploaders; i++)
        may |= address_eq(s->uploaders[i], who);
    return may;
}

static bool complete(const struct registry_server *s, const struct facts *f)
{
    for (uint32_t i = 0; i < f->n_files; i++) {
        char hex[HASH_TEXT_BYTES];
        hex_encode(hex, f->files[i].sha256.bytes, 32);
        if (!exists(s, "blobs", hex))
            return false;
    }
    return true;
}

static int move(const struct registry_server *s, const char *hex, const char *suffix,
                struct err *err)
{
    char *name = xasprintf("%s%s", hex, suffix);
    char *from = path_of(s, "pending", name), *to = path_of(s, "manifests", name);
    int rc = rename(from, to) == 0 ? 0 : err_set_errno(err, errno, "publishing %s", name);
    free(to);
    free(from);
    free(name);
    return rc;
}

/* Makes a pending manifest visible. The index comes first: a crash in between leaves the manifest
 * pending, and the next start publishes it again (its name is then in the index twice, which harms
 * nobody); the other way round it would be in no index for ever. The signature moves before the
 * manifest, which is never seen without it. Called with the lock. */
static int publish(struct registry_server *s, const struct facts *f, struct err *err)
{
    char hex[HASH_TEXT_BYTES], creator[ADDRESS_TEXT_BYTES];
    hex_encode(hex, f->hash.bytes, 32);
    json_t *entry = json_pack("{s:s,s:s,s:s,s:s,s:I}", "creator",
                              address_format_lower(creator, f->creator), "kind",
                              f->is_datanet ? "datanet" : "adapter", "manifest", hex, "name",
                              f->name, "version", (json_int_t)f->version);
    if (add_to_index(s, entry, err) != 0 || move(s, hex, ".sig", err) != 0 ||
        move(s, hex, ".json", err) != 0)
        return -1;
    log_info("registry", "%s %s version %" PRIu64 " is published, manifest %s",
             f->is_datanet ? "Datanet" : "adapter", f->name, f->version, hex);
    return 0;
}

static int store_pending(struct registry_server *s, const char *hex, const void *text, size_t n,
                         const struct registry_signature *signature, struct err *err)
{
    struct buf sig = BUF_INIT;
    registry_signature_write(&sig, signature);
    char *sig_name = xasprintf("%s.sig", hex), *name = xasprintf("%s.json", hex);
    char *sig_path = path_of(s, "pending", sig_name), *path = path_of(s, "pending", name);
    int rc = file_write_atomic(sig_path, sig.data, sig.len, 0644, err);
    if (rc == 0)
        rc = file_write_atomic(path, text, n, 0644, err);
    free(path);
    free(sig_path);
    free(name);
    free(sig_name);
    buf_release(&sig);
    return rc;
}

static size_t count_pending(const struct registry_server *s)
{
    char *path = path_of(s, "pending", "");
    DIR *d = opendir(path);
    size_t n = 0;
    free(path);
    while (d != NULL && readdir(d) != NULL)
        n++;
    if (d != NULL)
        closedir(d);
    return n / 2;
}

static int accept_manifest(struct registry_server *s, struct http_exchange *x, const char *hex,
                           struct err *err)
{
    size_t n;
    const void *text = http_body(x, &n);
    const char *header = http_header(x, "x-tributary-signature");
    struct registry_signature signature;
    struct arena arena = ARENA_INIT;
    struct facts f;
    struct sha256_digest asked;
    int rc = 0;
    if (header == NULL)
        rc = err_set(err, ERR_UNAUTHORIZED, "an upload needs the header x-tributary-signature");
    else if (registry_signature_parse(&signature, header, strlen(header), err) != 0)
        rc = err_set(err, ERR_UNAUTHORIZED, "the header x-tributary-signature is malformed");
    if (rc == 0)
        rc = read_facts(&f, &arena, text, n, err);
    if (rc == 0 && (hex_decode(asked.bytes, 32, hex) != 0 || !DIGEST_EQ(asked, f.hash)))
        rc = err_set(err, ERR_INVALID, "the manifest's sha256 is not the one in the path");
    if (rc == 0) {
        rc = f.is_datanet ? registry_check_datanet(&f.datanet, f.hash, &signature, err)
                          : registry_check_adapter(&f.adapter, f.hash, &signature, err);
        if (rc != 0 && err->code == ERR_CORRUPT)
            err->code = ERR_UNAUTHORIZED; /* here it is the client's */
    }
    if (rc == 0 && !may_upload(s, f.creator))
        rc = err_set(err, ERR_FORBIDDEN, "this creator may not upload here");
    for (uint32_t i = 0; rc == 0 && i < f.n_files; i++) {
        if (f.files[i].size_bytes > s->max_blob_bytes)
            rc = err_set(err, ERR_TOO_LARGE, "%s is larger than the %" PRIu64 " bytes allowed here",
                         f.files[i].path, s->max_blob_bytes);
    }
    char *name = xasprintf("%s.json", hex);
    if (rc == 0) {
        pthread_mutex_lock(&s->lock);
        if (!exists(s, "manifests", name)) {
            if (!exists(s, "pending", name) && count_pending(s) >= PENDING_MAX)
                rc = err_set(err, ERR_BUSY, "too many manifests wait for their files");
            else
                rc = store_pending(s, hex, text, n, &signature, err);
            if (rc == 0 && complete(s, &f))
                rc = publish(s, &f, err);
        }
        pthread_mutex_unlock(&s->lock);
    }
    free(name);
    arena_release(&arena);
    return rc;
}

/* ---- blobs
 * ------------------------------------------------------------------------------------------ */

/* Calls each with every pending manifest that parses; ends when it returns non-zero. */
static int each_pending(struct registry_server *s,
                        int (*each)(void *context, const struct facts *f), void *context)
{
    char *folder = path_of(s, "pending", "");
    DIR *d = opendir(folder);
    free(folder);
    int rc = 0;
    struct dirent *entry;
    while (d != NULL && rc == 0 && (entry = readdir(d)) != NULL) {
        if (strlen(entry->d_name) != 69 || strcmp(entry->d_name + 64, ".json") != 0)
            continue;
        struct buf text = BUF_INIT;
        struct arena arena = ARENA_INIT;
        struct facts f;
        char *path = path_of(s, "pending", entry->d_name);
        if (file_read(path, MANIFEST_MAX_BYTES, &text, NULL) == 0 &&
            read_facts(&f, &arena, text.data, text.len, NULL) == 0)
            rc = each(context, &f);
        free(path);
        arena_release(&arena);
        buf_release(&text);
    }
    if (d != NULL)
        closedir(d);
    return rc;
}

struct wanted {
    struct sha256_digest hash;
    uint64_t size_bytes;
};

static int find_wanted(void *context, const struct facts *f)
{
    struct wanted *w = context;
    for (uint32_t i = 0; i < f->n_files; i++) {
        if (DIGEST_EQ(f->files[i].sha256, w->hash)) {
            w->size_bytes = f->files[i].size_bytes;
            return 1;
        }
    }
    return 0;
}

struct ready {
    struct registry_server *server;
    struct err *err;
    int rc;
};

static int publish_if_complete(void *context, const struct facts *f)
{
    struct ready *r = context;
    if (complete(r->server, f))
        r->rc = publish(r->server, f, r->err);
    return r->rc;
}

/* An upload under way: the temporary file that the body goes to. */
struct upload {
    struct wanted wanted;
    char *path;
    int fd;
};

static void upload_free(struct upload *u)
{
    if (u->fd >= 0)
        close(u->fd);
    unlink(u->path);
    free(u->path);
    free(u);
}

void registry_server_on_head(void *server, struct http_exchange *x)
{
    struct registry_server *s = server;
    char hex[HASH_TEXT_BYTES];
    if (strcmp(http_method(x), "PUT") != 0 || !name_of(http_path(x), "/v1/blobs/", "", hex))
        return;
    struct wanted wanted = {0};
    hex_decode(wanted.hash.bytes, 32, hex);
    pthread_mutex_lock(&s->lock);
    bool known = exists(s, "blobs", hex), is_wanted = each_pending(s, find_wanted, &wanted) == 1;
    pthread_mutex_unlock(&s->lock);
    if (!is_wanted) {
        if (known)
            reply_json(x, 200, json_pack("{s:s}", "blob", hex));
        else
            refuse(x, ERR_FORBIDDEN, "no manifest here waits for this file: upload it first");
        return;
    }
    struct upload *u = xcalloc(1, sizeof *u);
    u->wanted = wanted;
    u->path = xasprintf("%s/blobs/.upload-XXXXXX", s->root);
    u->fd = mkostemp(u->path, O_CLOEXEC);
    if (u->fd < 0) {
        struct err err;
        err_set_errno(&err, errno, "storing an upload");
        free(u->path);
        free(u);
        reply_error(x, &err);
        return;
    }
    http_set_user(x, u);
    http_body_to_file(x, u->fd, wanted.size_bytes);
}

static int accept_blob(struct registry_server *s, struct upload *u, const char *hex,
                       struct err *err)
{
    struct sha256_digest got;
    uint64_t size;
    if (fsync(u->fd) != 0)
        return err_set_errno(err, errno, "storing blob %s", hex);
    if (sha256_file(u->path, &got, &size, err) != 0)
        return -1;
    if (!DIGEST_EQ(got, u->wanted.hash) || size != u->wanted.size_bytes)
        return err_set(err, ERR_INVALID, "the bytes sent are not those of blob %s", hex);
    char *path = path_of(s, "blobs", hex);
    struct ready ready = {s, err, 0};
    pthread_mutex_lock(&s->lock);
    if (rename(u->path, path) != 0) {
        ready.rc = err_set_errno(err, errno, "storing blob %s", hex);
    } else {
        chmod(path, 0644);
        each_pending(s, publish_if_complete, &ready);
    }
    pthread_mutex_unlock(&s->lock);
    free(path);
    return ready.rc;
}

/* ---- routes
 * ----------------------------------------------------------------------------------------- */

static void serve_get(struct registry_server *s, struct http_exchange *x)
{
    const char *path = http_path(x);
    char hex[HASH_TEXT_BYTES];
    if (strcmp(path, "/v1/index.json") == 0)
        serve_file(s, x, ".", "index.json", false);
    else if (name_of(path, "/v1/manifests/", ".json", hex) ||
             name_of(path, "/v1/manifests/", ".sig", hex))
        serve_file(s, x, "manifests", path + strlen("/v1/manifests/"), true);
    else if (name_of(path, "/v1/blobs/", "", hex))
        serve_file(s, x, "blobs", hex, true);
    else if (strcmp(path, "/healthz") == 0)
        http_reply_text(x, 200, "text/plain", "ok\n");
    else
        refuse(x, ERR_NOT_FOUND, "there are /v1/index.json, /v1/manifests/ and /v1/blobs/ here");
}

void registry_server_on_request(void *server, struct http_exchange *x)
{
    struct registry_server *s = server;
    char hex[HASH_TEXT_BYTES];
    struct err err = {0};
    const char *method = http_method(x), *path = http_path(x);
    if (strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0) {
        serve_get(s, x);
    } else if (strcmp(method, "PUT") == 0 && name_of(path, "/v1/manifests/", ".json", hex)) {
        if (accept_manifest(s, x, hex, &err) == 0)
            reply_json(x, 201, json_pack("{s:s}", "manifest", hex));
        else
            reply_error(x, &err);
    } else if (strcmp(method, "PUT") == 0 && name_of(path, "/v1/blobs/", "", hex) &&
               http_user(x) != NULL) {
        struct upload *u = http_user(x);
        http_set_user(x, NULL);
        if (accept_blob(s, u, hex, &err) == 0)
            reply_json(x, 201, json_pack("{s:s}", "blob", hex));
        else
            reply_error(x, &err);
        upload_free(u);
    } else {
        http_reply_text(x, 405, "text/plain", "GET, or PUT of a manifest or blob\n");
    }
}

void registry_server_on_done(void *server, struct http_exchange *x, unsigned status, uint64_t us)
{
    (void)server;
    (void)status;
    (void)us;
    /* An upload that broke off left its file. */
    struct upload *u = http_user(x);
    if (u != NULL) {
        http_set_user(x, NULL);
        upload_free(u);
    }
}

/* ---- open and close
 * --------------------------------------------------------------------------------- */

static int read_index(struct registry_server *s, struct err *err)
{
    char *path = path_of(s, ".", "index.json");
    struct buf text = BUF_INIT;
    struct err read_err = {0};
    int rc = file_read(path, REGISTRY_INDEX_MAX_BYTES, &text, &read_err);
    if (rc != 0 && read_err.code == ERR_NOT_FOUND) {
        s->page = json_pack("{s:[],s:n,s:s,s:i}", "items", "previous", "schema",
                            "tributary.index/1", "updated", 0);
        rc = write_index(s, err);
    } else if (rc != 0) {
        *err = read_err;
    } else {
        s->page = json_loadb((const char *)text.data, text.len, JSON_REJECT_DUPLICATES, NULL);
        if (!json_is_array(json_object_get(s->page, "items")))
            rc = err_set(err, ERR_CORRUPT, "%s: not an index of a registry", path);
    }
    buf_release(&text);
    free(path);
    return rc;
}

int registry_server_open(struct registry_server **out,
                         const struct registry_server_options *options, struct err *err)
{
    struct registry_server *s = xcalloc(1, sizeof *s);
    struct err local = {0};
    s->root = xstrdup(options->root);
    s->anyone_uploads = options->anyone_uploads;
    s->n_uploaders = options->n_uploaders;
    s->uploaders = xcalloc(options->n_uploaders, sizeof *s->uploaders);
    if (options->n_uploaders > 0)
        memcpy(s->uploaders, options->uploaders, options->n_uploaders * sizeof *s->uploaders);
    s->max_blob_bytes = options->max_blob_bytes ? options->max_blob_bytes : (uint64_t)4 << 30;
    pthread_mutex_init(&s->lock, NULL);
    static const char *const folders[] = {"manifests", "blobs", "pending"};
    int rc = 0;
    for (size_t i = 0; i < 3 && rc == 0; i++) {
        char *path = path_of(s, folders[i], "");
        path[strlen(path) - 1] = '\0';
        rc = dir_ensure(path, &local);
        free(path);
    }
    if (rc == 0)
        rc = read_index(s, &local);
    /* A crash between the last blob and the manifest's move leaves a complete one waiting. */
    struct ready ready = {s, &local, rc};
    if (rc == 0)
        each_pending(s, publish_if_complete, &ready);
    if (ready.rc != 0) {
        if (err != NULL)
            *err = local;
        registry_server_close(s);
        return -1;
    }
    *out = s;
    return 0;
}

void registry_server_close(struct registry_server *s)
{
    if (s == NULL)
        return;
    json_decref(s->page);
    pthread_mutex_destroy(&s->lock);
    free(s->uploaders);
    free(s->root);
    free(s);
}
