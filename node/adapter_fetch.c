/* adapter_fetch: an adapter's way from the registries to the disk, and the disk's bound.
 *
 * A fetch ends with an item whose manifest, signature and registration were checked and whose files
 * are on disk; from there it is loaded like any other. One manifest is fetched once: who wants it
 * under another name meanwhile waits.
 *
 * It begins on the fetchers, which ask the index and the chain only. Most that come are for what is
 * here and has to be checked again; files may take an hour, and a registry's answer half a minute.
 * So who finds that manifests or files are to be waited for, whoever fetches them, or that the
 * registries are to be asked for a name that the index doesn't have, goes on among the bringers,
 * from the beginning:
 *
 *     fetchers: here, and counts ----------------------------------------> end
 *        `------put off--> bringers: index, manifest, checks, files -----> end
 *
 * DATA/adapters/
 *     <contentDigest>/        whole; its age is that of its last load
 *     <contentDigest>.part/   on its way, taken up where it broke off
 *     gone-*                  being deleted
 *
 * All of it counts against the bound, and what is being fetched from the beginning as a whole. */
#include "node/adapter_store_internal.h"

#include "attribution/attribution.h"
#include "chain/contracts.h"
#include "chain/keccak.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/deployment.h"
#include "node/workers.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { UNKNOWN_AGAIN_US = 500000 };

/* What was learnt about an adapter on the way; memory in the arena. */
struct found {
    struct arena arena;
    struct buf text;
    struct manifest_adapter m;
    struct sha256_digest hash;
    struct registry_signature signature;
    struct adapter_id id;
    bool downloaded;
};

static void found_release(struct found *f)
{
    buf_release(&f->text);
    arena_release(&f->arena);
}

/* ---- mirrors -----------------------------------------------------------------------------------
 *
 * What is named by its hash is the same wherever it comes from. So where the registry that lists it
 * fails, the others are asked; what is told is why the first did. */

struct wish {
    struct sha256_digest hash;
    struct found *found; /* gets a manifest and its signature */
    const char *path;    /* or gets a file ... */
    uint64_t size_bytes; /* ... of this size */
};

static int grant(const struct registry_client *c, const struct wish *w, struct err *err)
{
    if (w->path != NULL)
        return registry_blob(c, w->hash, w->size_bytes, w->path, err);
    buf_reset(&w->found->text);
    return registry_manifest(c, w->hash, &w->found->text, &w->found->signature, err);
}

static int ask_in_turn(struct adapter_store *s, const struct wish *w, size_t first, struct err *err)
{
    size_t n = adapter_index_n_registries(s->index);
    for (size_t k = 0; k < n; k++) {
        struct registry_client c = adapter_index_client(s->index, (first + k) % n);
        struct err why = {0};
        if (grant(&c, w, &why) == 0)
            return 0;
        bool ours = why.code == ERR_IO || why.code == ERR_CANCELLED;
        if (err != NULL && (k == 0 || ours))
            *err = why;
        if (ours)
            break;
    }
    return -1;
}

/* ---- checks ------------------------------------------------------------------------------------
 */

static int read_manifest(struct adapter_store *s, struct found *f, const struct index_entry *e,
                         struct err *err)
{
    struct wish wish = {.hash = e->e.manifest, .found = f};
    if (ask_in_turn(s, &wish, e->registry, err) != 0)
        return err_wrap(err, "adapter %s", e->e.name);
    if (manifest_adapter_parse(&f->m, &f->hash, &f->arena, f->text.data, f->text.len, err) != 0) {
        if (err != NULL)
            err->code = ERR_CORRUPT;
        return err_wrap(err, "adapter %s: its manifest", e->e.name);
    }
    if (registry_check_adapter(&f->m, f->hash, &f->signature, err) != 0)
        return -1;
    const struct engine_model *model = engine_model(s->engine);
    if (!DIGEST_EQ(f->m.base_model, model->id))
        return err_set(err, ERR_NOT_FOUND,
                       "adapter %s is for another base model (%s), this node serves %s", f->m.name,
                       f->m.base_model_name, model->name);
    return 0;
}

/* The house account pays the royalties of API-key customers. A receipt that it can't pay would hold
 * up all that follow in its channel, and anybody may register an adapter at any rate. */
static int check_royalty(const struct adapter_store *s, const char *name, struct amount prompt,
                         struct amount completion, struct err *err)
{
    struct amount most = amount_cmp(prompt, completion) > 0 ? prompt : completion;
    char asked[AMOUNT_TEXT_BYTES], paid[AMOUNT_TEXT_BYTES];
    if (amount_is_zero(s->max_royalty_per_1k) || amount_cmp(most, s->max_royalty_per_1k) <= 0)
        return 0;
    return err_set(err, ERR_FORBIDDEN,
                   "adapter %s asks for a royalty of %s for 1,000 tokens, this node pays at most "
                   "%s (prices.max_royalty_per_1k)",
                   name, amount_format(asked, most), amount_format(paid, s->max_royalty_per_1k));
}

static struct contract_at registry_contract(const struct adapter_store *s)
{
    return (struct contract_at){.rpc = s->rpc, .address = s->deployment->adapter_registry};
}

/* Known on chain, not retired; with m the splits are those that were registered, too. */
static int check_registration(struct adapter_store *s, const char *name, struct adapter_id id,
                              const struct manifest_adapter *m, struct err *err)
{
    struct contract_at where = registry_contract(s);
    struct registry_adapter state;
    char hex[67];
    if (view_registry_adapter(&where, &state, id, err) != 0)
        return err_wrap(err, "adapter %s: its registration", name);
    if (!state.registered)
        return err_set(err, ERR_NOT_FOUND, "adapter %s (%s) is not registered on chain %" PRIu64,
                       name, hex_encode_0x(hex, id.bytes, 32), s->deployment->chain_id);
    if (state.retired) {
        ledger_adapter_retire(s->ledger, id, NULL);
        return err_set(err, ERR_NOT_FOUND, "adapter %s (%s) was retired by its creator", name,
                       hex_encode_0x(hex, id.bytes, 32));
    }
    if (m == NULL)
        return 0;
    struct payee_share *payees = xcalloc(m->n_splits, sizeof *payees);
    struct datanet_share *datanets = xcalloc(m->n_datanets, sizeof *datanets);
    for (uint32_t i = 0; i < m->n_splits; i++)
        payees[i] = (struct payee_share){m->splits[i].payee, m->splits[i].bps};
    for (uint32_t i = 0; i < m->n_datanets; i++) {
        memcpy(datanets[i].datanet, m->datanets[i].id.bytes, 32);
        datanets[i].bps = m->datanets[i].bps;
    }
    struct splits splits = {payees, m->n_splits, datanets, m->n_datanets};
    struct buf encoded = BUF_INIT;
    splits_encode(&encoded, &splits);
    struct keccak_digest hash = keccak256(encoded.data, encoded.len);
    buf_release(&encoded);
    free(payees);
    free(datanets);
    if (memcmp(hash.bytes, state.splits_hash, 32) != 0)
        return err_set(err, ERR_CORRUPT,
                       "adapter %s (%s) is registered with other splits than its manifest's", name,
                       hex_encode_0x(hex, id.bytes, 32));
    return 0;
}

/* ---- files -------------------------------------------------------------------------------------
 */

char *content_dir(const struct adapter_store *s, const struct content_digest *digest)
{
    char hex[65];
    return xasprintf("%s/%s", s->root, hex_encode(hex, digest->bytes, 32));
}

static uint64_t dir_bytes(const char *path, struct unix_ms *used)
{
    uint64_t total = 0;
    struct stat st;
    DIR *d = opendir(path);
    if (used != NULL)
        used->ms = stat(path, &st) == 0 ? (uint64_t)st.st_mtime * 1000 : 0;
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        if (fstatat(dirfd(d), e->d_name, &st, 0) == 0 && S_ISREG(st.st_mode))
            total += (uint64_t)st.st_size;
    }
    if (d != NULL)
        closedir(d);
    return total;
}

static void remove_dir(const char *path)
{
    DIR *d = opendir(path);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            unlinkat(dirfd(d), e->d_name, 0);
    }
    if (d != NULL)
        closedir(d);
    rmdir(path);
}

static int check_sizes(const struct adapter_store *s, const struct found *f, uint64_t *total,
                       struct err *err)
{
    *total = 0;
    for (uint32_t i = 0; i < f->m.n_files; i++) {
        if (strchr(f->m.files[i].path, '/') != NULL)
            return err_set(err, ERR_UNSUPPORTED, "adapter %s: file %s lies in a folder", f->m.name,
                           f->m.files[i].path);
        if (__builtin_add_overflow(*total, f->m.files[i].size_bytes, total) ||
            *total > s->cache_bytes)
            return err_set(err, ERR_TOO_LARGE,
                           "adapter %s: its files exceed the %" PRIu64
                           " bytes that this node keeps (registry.cache_bytes)",
                           f->m.name, s->cache_bytes);
    }
    return 0;
}

/* All files into DIR.part, which becomes DIR when it is complete. */
static int fetch_files(struct adapter_store *s, const struct found *f, size_t registry,
                       struct err *err)
{
    /* Each file has the manifest's hash when it is here, so the whole's is known before. What
     * counts in the end is what the engine reads. */
    struct content_digest whole = manifest_content_digest(f->m.files, f->m.n_files);
    if (!DIGEST_EQ(whole, f->m.content))
        return err_set(err, ERR_CORRUPT,
                       "adapter %s: its files don't have the content digest of its manifest",
                       f->m.name);
    char *dir = content_dir(s, &f->m.content), *part = xasprintf("%s.part", dir);
    int rc = dir_ensure(part, err);
    for (uint32_t i = 0; i < f->m.n_files && rc == 0; i++) {
        char *path = xasprintf("%s/%s", part, f->m.files[i].path);
        struct wish wish = {
            .hash = f->m.files[i].sha256, .path = path, .size_bytes = f->m.files[i].size_bytes};
        rc = ask_in_turn(s, &wish, registry, err);
        free(path);
    }
    if (rc == 0 && rename(part, dir) != 0)
        rc = err_set_errno(err, errno, "cannot store %s", dir);
    if (rc != 0)
        err_wrap(err, "adapter %s", f->m.name);
    free(part);
    free(dir);
    return rc;
}

/* Of how many bytes DIR.part is after a failure: of none where the disk failed, which is full,
 * perhaps, and the ledger wants to write, too. */
static uint64_t part_left(const struct adapter_store *s, const struct found *f,
                          const struct err *why)
{
    char *dir = content_dir(s, &f->m.content), *part = xasprintf("%s.part", dir);
    uint64_t left = why->code == ERR_IO ? 0 : dir_bytes(part, NULL);
    if (left == 0)
        remove_dir(part);
    free(part);
    free(dir);
    return left;
}

/* ---- the disk's bound --------------------------------------------------------------------------
 */

static void remove_run(void *store, void *path)
{
    (void)store;
    remove_dir(path);
    free(path);
}

/* DIR or DIR.part goes, of *n_bytes. */
static void remove_aside(struct adapter_store *s, const struct content *c, const char *suffix,
                         uint64_t *n_bytes)
{
    static _Atomic unsigned counter;
    char hex[65];
    if (*n_bytes == 0)
        return;
    s->disk_used -= *n_bytes;
    *n_bytes = 0;
    char *dir = xasprintf("%s/%s%s", s->root, hex_encode(hex, c->digest.bytes, 32), suffix);
    char *gone = xasprintf("%s/gone-%d-%u", s->root, (int)getpid(), atomic_fetch_add(&counter, 1));
    /* Out of the way at once; deleting a large file may take a while and needs no lock. */
    bool moved = rename(dir, gone) == 0;
    if (!moved || !workers_submit(s->fetchers, remove_run, s, gone)) {
        remove_dir(moved ? gone : dir);
        free(gone);
    }
    free(dir);
}

void disk_remove(struct adapter_store *s, struct content *c)
{
    remove_aside(s, c, "", &c->disk_bytes);
    if (!c->fetching)
        remove_aside(s, c, ".part", &c->part_bytes);
}

static bool may_leave(const struct content *c)
{
    return c->disk_bytes + c->part_bytes > 0 && !c->fetching && !c->loaded && c->load == NULL;
}

/* Adapters leave, the longest unused first, until the bound is kept; what is loaded or on its way
 * stays. With the lock. */
static void trim_disk(struct adapter_store *s)
{
    while (s->disk_used > s->cache_bytes) {
        struct content *oldest = NULL;
        size_t at = 0;
        for (struct content *c; (c = hash_map_next(&s->contents, &at)) != NULL;) {
            if (may_leave(c) && (oldest == NULL || c->used.ms < oldest->used.ms))
                oldest = c;
        }
        if (oldest == NULL)
            return;
        s->n_evicted_disk += oldest->disk_bytes > 0;
        disk_remove(s, oldest);
        content_settle(s, oldest);
    }
}

void disk_scan(struct adapter_store *s)
{
    DIR *d = opendir(s->root);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        struct content_digest digest;
        char *path = xasprintf("%s/%s", s->root, e->d_name), *suffix = strchr(e->d_name, '.');
        bool part = suffix != NULL && strcmp(suffix, ".part") == 0;
        if (part)
            *suffix = '\0';
        if (strncmp(e->d_name, "gone-", 5) == 0) {
            remove_dir(path);
        } else if (strlen(e->d_name) == 64 && hex_decode(digest.bytes, 32, e->d_name) == 0) {
            struct content *c = content_get(s, &digest);
            uint64_t n_bytes = dir_bytes(path, &c->used);
            *(part ? &c->part_bytes : &c->disk_bytes) = n_bytes;
            if (n_bytes > 0) {
                s->disk_used += n_bytes;
            } else { /* a loss of power left names without bytes: not to be in a new fetch's way */
                remove_dir(path);
                content_settle(s, c);
            }
        }
        free(path);
    }
    if (d != NULL)
        closedir(d);
}

/* ---- Datanets ----------------------------------------------------------------------------------
 */

/* Datanets that the adapter pays, if the index has their manifests: for people who ask who they
 * are. */
static void learn_datanets(struct adapter_store *s, const struct manifest_adapter *m)
{
    for (uint32_t k = 0; k < m->n_datanets; k++) {
        struct index_entry hit;
        if (!adapter_index_datanet(s->index, m->datanets[k].id, &hit))
            continue;
        struct registry_client c = adapter_index_client(s->index, hit.registry);
        struct buf text = BUF_INIT;
        struct registry_signature signature;
        struct arena arena = ARENA_INIT;
        struct manifest_datanet d;
        struct sha256_digest hash;
        struct err err = {0};
        if (registry_manifest(&c, hit.e.manifest, &text, &signature, &err) != 0 ||
            manifest_datanet_parse(&d, &hash, &arena, text.data, text.len, &err) != 0 ||
            registry_check_datanet(&d, hash, &signature, &err) != 0 ||
            ledger_datanet_put(s->ledger, m->datanets[k].id, text.data, text.len, &err) != 0)
            log_warn("registry", "Datanet %s: %s", hit.e.name, err.message);
        arena_release(&arena);
        buf_release(&text);
    }
}

/* ---- one manifest ------------------------------------------------------------------------------
 */

/* Waits until nobody fetches this manifest, or content, then claims it. With the lock. */
static int claim(struct adapter_store *s, struct sha256_digest what, struct err *err)
{
    for (;;) {
        bool busy = false;
        for (size_t i = 0; i < s->n_in_flight; i++)
            busy |= DIGEST_EQ(s->in_flight[i], what);
        if (!busy)
            break;
        pthread_cond_wait(&s->landed, &s->lock);
    }
    if (s->n_in_flight == IN_FLIGHT_MAX)
        return err_set(err, ERR_BUSY, "too many adapters are being fetched");
    s->in_flight[s->n_in_flight++] = what;
    return 0;
}

static void unclaim(struct adapter_store *s, struct sha256_digest what)
{
    for (size_t i = 0; i < s->n_in_flight; i++) {
        if (DIGEST_EQ(s->in_flight[i], what)) {
            s->in_flight[i] = s->in_flight[--s->n_in_flight];
            break;
        }
    }
    pthread_cond_broadcast(&s->landed);
}

/* The files, unless they are here: `total` bytes. Whoever fetches them under another manifest is
 * waited for, as there is one DIR.part. Without the lock. */
static int bring_files(struct adapter_store *s, struct found *f, size_t registry, uint64_t total,
                       struct err *err)
{
    struct sha256_digest what;
    struct err why = {0};
    memcpy(what.bytes, f->m.content.bytes, sizeof what.bytes);
    pthread_mutex_lock(&s->lock);
    int rc = claim(s, what, err);
    if (rc != 0) {
        pthread_mutex_unlock(&s->lock);
        return -1;
    }
    struct content *c = content_get(s, &f->m.content);
    if (c->disk_bytes == 0 && !c->loaded) {
        s->disk_used += total - c->part_bytes;
        c->part_bytes = total;
        c->fetching = true;
        c->used = clock_unix_ms();
        trim_disk(s);
        pthread_mutex_unlock(&s->lock);
        rc = fetch_files(s, f, registry, &why);
        uint64_t left = rc == 0 ? 0 : part_left(s, f, &why);
        pthread_mutex_lock(&s->lock);
        c->fetching = false;
        c->part_bytes = left;
        if (rc == 0) {
            c->disk_bytes = total;
            c->fetched_failed.us = 0;
            s->n_fetches++;
        } else {
            s->disk_used -= total - left;
            if (err != NULL)
                *err = why;
        }
        f->downloaded = rc == 0;
        content_settle(s, c);
    }
    unclaim(s, what);
    pthread_mutex_unlock(&s->lock);
    return rc;
}

/* Everything between a manifest's hash and its files on disk; without the lock. */
static int bring_in(struct adapter_store *s, const struct index_entry *e, struct found *f,
                    struct err *err)
{
    uint64_t total;
    if (read_manifest(s, f, e, err) != 0)
        return -1;
    if (s->rpc != NULL) {
        if (f->signature.chain_id != s->deployment->chain_id ||
            !address_eq(f->signature.verifying_contract, s->deployment->adapter_registry))
            return err_set(err, ERR_NOT_FOUND,
                           "adapter %s is signed for another chain or registry contract",
                           f->m.name);
        f->id = manifest_adapter_id(s->deployment->chain_id, s->deployment->adapter_registry,
                                    f->m.creator, f->m.base_model, f->hash);
        if (check_registration(s, f->m.name, f->id, &f->m, err) != 0 ||
            check_royalty(s, f->m.name, f->m.royalty_prompt_per_1k, f->m.royalty_completion_per_1k,
                          err) != 0)
            return -1;
    }
    if (check_sizes(s, f, &total, err) != 0 || bring_files(s, f, e->registry, total, err) != 0)
        return -1;
    if (s->rpc != NULL) {
        if (ledger_adapter_put(s->ledger, f->id, f->text.data, f->text.len, err) != 0)
            return -1;
        learn_datanets(s, &f->m);
    }
    return 0;
}

/* A registry's item for this content; with the lock. */
static struct item *item_make(struct adapter_store *s, const char *name, uint64_t version,
                              struct address creator, struct adapter_id id,
                              const struct content_digest *content)
{
    struct item *i = xcalloc(1, sizeof *i);
    snprintf(i->name, sizeof i->name, "%s", name);
    i->version = version;
    i->creator = creator;
    i->id = id;
    if (s->n_registry_items == s->cap_registry_items) {
        s->cap_registry_items = s->cap_registry_items == 0 ? 64 : s->cap_registry_items * 2;
        s->registry_items = xrealloc_array(s->registry_items, s->cap_registry_items,
                                           sizeof *s->registry_items);
    }
    s->registry_items[s->n_registry_items++] = i;
    if (!bytes32_is_zero(i->id.bytes))
        hash_map_put(&s->by_id, i->id.bytes, 32, i);
    item_attach(s, i, content_get(s, content));
    return i;
}

/* With the lock. */
static struct item *item_brought(struct adapter_store *s, const struct found *f)
{
    struct item *i = hash_map_get(&s->by_manifest, f->hash.bytes, 32);
    if (i == NULL && !bytes32_is_zero(f->id.bytes)) /* known from the ledger so far? */
        i = hash_map_get(&s->by_id, f->id.bytes, 32);
    if (i == NULL)
        i = item_make(s, f->m.name, f->m.version, f->m.creator, f->id, &f->m.content);
    if (bytes32_is_zero(i->manifest.bytes)) {
        i->manifest = f->hash;
        hash_map_put(&s->by_manifest, i->manifest.bytes, 32, i);
    }
    i->checked = clock_monotonic_us();
    return i;
}

/* A known item whose registration counts now and whose files are here. With the lock, let go of
 * while the chain is asked. ERR_IO: the files have left. */
static int check_item(struct adapter_store *s, struct item *i, struct err *err)
{
    if (!item_is_checked(s, i)) {
        struct err problem = {0};
        pthread_mutex_unlock(&s->lock);
        int rc = check_registration(s, i->name, i->id, NULL, &problem);
        pthread_mutex_lock(&s->lock);
        if (rc != 0 && problem.code == ERR_NOT_FOUND) {
            if (err != NULL)
                *err = problem;
            return -1;
        }
        if (rc == 0)
            i->checked = clock_monotonic_us();
        else
            log_warn("registry", "%s", problem.message);
        struct ledger_adapter known; /* under another limit, perhaps */
        if (ledger_adapter_by_id(s->ledger, &known, i->id, NULL) == 0 &&
            check_royalty(s, i->name, known.royalty_prompt_per_1k, known.royalty_completion_per_1k,
                          err) != 0) {
            i->checked.us = 0;
            return -1;
        }
    }
    if (!item_is_here(i))
        return err_set(err, ERR_IO, "adapter %s: its files are not on disk", i->name);
    i->content->used = clock_unix_ms();
    return 0;
}

static int put_off(struct fetch *f, struct err *err)
{
    f->put_off = true;
    return err_set(err, ERR_BUSY, "it has to be fetched first");
}

/* By entry of the index. With the lock, let go of meanwhile. */
static int resolve_entry(struct adapter_store *s, struct fetch *f, const struct index_entry *e,
                         struct item **out, struct err *err)
{
    struct err problem = {0};
    if (f->brings && claim(s, e->e.manifest, err) != 0)
        return -1;
    struct item *i = hash_map_get(&s->by_manifest, e->e.manifest.bytes, 32);
    int rc = i != NULL ? check_item(s, i, &problem) : -1;
    if (i != NULL && (rc == 0 || problem.code != ERR_IO)) {
        if (f->brings)
            unclaim(s, e->e.manifest);
        *out = i;
        if (rc != 0 && err != NULL)
            *err = problem;
        return rc;
    }
    if (!f->brings)
        return put_off(f, err);
    pthread_mutex_unlock(&s->lock);
    struct found found = {.arena = ARENA_INIT, .text = BUF_INIT};
    struct monotonic_us began = clock_monotonic_us();
    rc = bring_in(s, e, &found, err);
    pthread_mutex_lock(&s->lock);
    if (rc == 0) {
        *out = item_brought(s, &found);
        f->downloaded = found.downloaded;
        log_info(
            "registry",
            "adapter %s version %" PRIu64 " is here, %" PRIu64 " ms after it was first asked for",
            (*out)->name, (*out)->version, clock_elapsed_us(began, clock_monotonic_us()) / 1000);
    } else {
        log_warn("registry", "refused: %s", err != NULL ? err->message : "");
    }
    unclaim(s, e->e.manifest);
    found_release(&found);
    return rc;
}

/* ---- one name ----------------------------------------------------------------------------------
 */

static enum index_look look(void *context, const struct index_entry *e,
                            struct content_digest *content, struct adapter_id *id)
{
    struct adapter_store *s = context;
    struct found f = {.arena = ARENA_INIT, .text = BUF_INIT};
    struct err err = {0};
    enum index_look saw = INDEX_KNOWN;
    if (read_manifest(s, &f, e, &err) != 0) {
        /* A manifest that is for another model stays so; one that doesn't come may come later. */
        saw = err.code == ERR_NOT_FOUND && f.text.len > 0 ? INDEX_OTHER : INDEX_LATER;
    } else {
        *content = f.m.content;
        if (s->rpc != NULL)
            *id = manifest_adapter_id(s->deployment->chain_id, s->deployment->adapter_registry,
                                      f.m.creator, f.m.base_model, f.hash);
    }
    found_release(&f);
    return saw;
}

/* No registry answers: what the ledger knows and the disk still has. With the lock. */
static int resolve_from_ledger(struct adapter_store *s, const struct wanted *w, struct item **out,
                               struct err *err)
{
    struct ledger_adapter a;
    struct content_digest content;
    struct adapter_id id;
    memcpy(content.bytes, w->digest, 32);
    memcpy(id.bytes, w->digest, 32);
    int rc = w->by == BY_NAME ? ledger_adapter_by_name(s->ledger, &a, w->name, w->version, NULL)
             : w->by == BY_ID ? ledger_adapter_by_id(s->ledger, &a, id, NULL)
                              : ledger_adapter_by_content(s->ledger, &a, content, NULL);
    if (rc != 0 || bytes32_is_zero(a.id.bytes))
        return -1; /* the sentence about the registry stands */
    struct item *i = hash_map_get(&s->by_id, a.id.bytes, 32);
    if (i == NULL) {
        const struct content *c = hash_map_get(&s->contents, a.content.bytes, 32);
        if (c == NULL || c->disk_bytes == 0)
            return -1;
        i = item_make(s, a.name, a.version, a.creator, a.id, &a.content);
    }
    *out = i;
    return check_item(s, i, err);
}

/* By what the index says now; *known is false when it says nothing. With the lock. */
static int resolve_indexed(struct adapter_store *s, struct fetch *f, const struct wanted *w,
                           struct item **out, bool *known, struct err *err)
{
    struct index_entry e;
    *known = true;
    if (w->by == BY_NAME) {
        if (adapter_index_named(s->index, w->name, w->version, &e))
            return resolve_entry(s, f, &e, out, err);
    } else {
        struct item *i = w->by == BY_ID ? hash_map_get(&s->by_id, w->digest, 32)
                                        : item_find(s, f->model, false);
        struct err problem = {0};
        int rc = -1;
        if (i != NULL) {
            rc = check_item(s, i, &problem);
            *out = i;
        }
        if (i != NULL && (rc == 0 || problem.code != ERR_IO)) {
            if (rc != 0 && err != NULL)
                *err = problem;
            return rc;
        }
        if (!f->brings)
            return put_off(f, err);
        pthread_mutex_unlock(&s->lock);
        rc = adapter_index_find(s->index, w->by == BY_ID, w->digest, look, s, &e, &problem);
        pthread_mutex_lock(&s->lock);
        if (rc == 0)
            return resolve_entry(s, f, &e, out, err);
        if (problem.code == ERR_BUSY) {
            if (err != NULL)
                *err = problem;
            return -1;
        }
    }
    *known = false;
    return err_set(err, ERR_NOT_FOUND, "there is no model \"%.100s\"", f->model);
}

/* Asks the chain for a content's earliest registration; -1: it can't be asked. With the lock, let
 * go of meanwhile. */
static int ask_first(struct adapter_store *s, struct content_digest content,
                     struct adapter_id *first)
{
    struct contract_at where = registry_contract(s);
    struct err problem = {0};
    pthread_mutex_unlock(&s->lock);
    int rc = view_registry_first_by_content(&where, first, content, &problem);
    pthread_mutex_lock(&s->lock);
    if (rc != 0)
        log_warn("registry", "whose a content was first: %s", problem.message);
    struct content *c = hash_map_get(&s->contents, content.bytes, 32);
    if (c != NULL) {
        c->first_asked = clock_monotonic_us();
        if (rc == 0)
            c->first = *first;
    }
    return rc;
}

/* A content digest becomes the id of its earliest registration (content_meant), if the chain knows
 * one; when it can't be asked, what is here has to do. With the lock, let go of meanwhile. */
static void mean_first(struct adapter_store *s, struct wanted *w)
{
    struct content_digest content;
    struct adapter_id first;
    if (w->by != BY_CONTENT || s->rpc == NULL)
        return;
    memcpy(content.bytes, w->digest, 32);
    if (ask_first(s, content, &first) != 0 || bytes32_is_zero(first.bytes))
        return;
    const struct content *c = hash_map_get(&s->contents, content.bytes, 32);
    if (c != NULL && content_local(c) != NULL && hash_map_get(&s->by_id, first.bytes, 32) == NULL)
        return;
    w->by = BY_ID;
    memcpy(w->digest, first.bytes, 32);
}

/* A local adapter under this name, once the chain has said whose its content is; NULL: there is
 * none. With the lock, let go of meanwhile. */
static struct item *local_first(struct adapter_store *s, const char *name)
{
    struct adapter_id first;
    const struct item *i = hash_map_get(&s->local, name, strlen(name));
    if (i != NULL && i->content != NULL && s->rpc != NULL)
        ask_first(s, i->content->digest, &first);
    return hash_map_get(&s->local, name, strlen(name)); /* it may have been removed meanwhile */
}

static int refresh(struct adapter_store *s, uint64_t max_age_us, struct err *err)
{
    pthread_mutex_unlock(&s->lock);
    int rc = adapter_index_refresh(s->index, max_age_us, err);
    pthread_mutex_lock(&s->lock);
    return rc;
}

static void refresh_run(void *store, void *nothing)
{
    struct adapter_store *s = store;
    (void)nothing;
    pthread_mutex_lock(&s->lock);
    if (!atomic_load(&s->cancelled))
        refresh(s, s->refresh_us, NULL);
    s->refreshing = false;
    pthread_mutex_unlock(&s->lock);
}

void refresh_begin(struct adapter_store *s)
{
    if (!s->refreshing && !adapter_index_is_fresh(s->index))
        s->refreshing = workers_submit(s->fetchers, refresh_run, s, NULL);
}

/* ---- bringing ----------------------------------------------------------------------------------
 *
 * Files may take long, and a customer may want many that do. So whose fetch begins next isn't who
 * came first: a customer may begin another while it has fewer under way than there are free
 * bringers (the rule of admission.h), and of those who may, who has the fewest comes first. One
 * alone has half of the bringers, and who comes beside it finds some free. Where several wait for a
 * fetch, it is whose of them has the fewest, so that nobody is held up by who asked for the same. A
 * fetch that may not begin now is looked at again when one ends, or another joins it. */

static int n_bringing_of(const struct adapter_store *s, uint64_t customer)
{
    int n = 0;
    for (int i = 0; i < s->n_bringing; i++)
        n += s->bringing[i] == customer;
    return n;
}

/* The next to begin, taken off the list, and for whom; or NULL. With the lock. */
static struct fetch *next_to_bring(struct adapter_store *s, uint64_t *customer)
{
    struct fetch **best = NULL;
    int fewest = s->n_bringers - s->n_bringing; /* and fewer than the free ones */
    for (struct fetch **at = &s->to_bring; *at != NULL; at = &(*at)->next) {
        for (const struct waiter *w = (*at)->waiters.first; w != NULL; w = w->next) {
            int n = n_bringing_of(s, w->customer);
            if (n < fewest) {
                fewest = n;
                best = at;
                *customer = w->customer;
            }
        }
    }
    struct fetch *f = best != NULL ? *best : NULL;
    if (f != NULL)
        *best = f->next;
    return f;
}

/* On a bringer: whatever may begin, one after another. */
static void bring_run(void *store, void *nothing)
{
    struct adapter_store *s = store;
    (void)nothing;
    uint64_t customer;
    pthread_mutex_lock(&s->lock);
    for (struct fetch *f; (f = next_to_bring(s, &customer)) != NULL;) {
        s->bringing[s->n_bringing++] = customer;
        pthread_mutex_unlock(&s->lock);
        fetch_run(s, f);
        pthread_mutex_lock(&s->lock);
        int i = 0;
        while (s->bringing[i] != customer)
            i++;
        s->bringing[i] = s->bringing[--s->n_bringing];
    }
    pthread_mutex_unlock(&s->lock);
}

void bring_begin(struct adapter_store *s)
{
    workers_submit(s->bringers, bring_run, s, NULL); /* if it can't, others are about to look */
}

bool bring_off(struct adapter_store *s, const struct fetch *f)
{
    struct fetch **at = &s->to_bring;
    while (*at != NULL && *at != f)
        at = &(*at)->next;
    if (*at == NULL)
        return false;
    *at = f->next;
    return true;
}

/* False: the bringers have stopped. With the lock. */
static bool bring(struct adapter_store *s, struct fetch *f)
{
    struct fetch **end = &s->to_bring;
    while (*end != NULL)
        end = &(*end)->next;
    *end = f;
    if (workers_submit(s->bringers, bring_run, s, NULL))
        return true;
    *end = NULL;
    return false;
}

void fetch_run(void *store, void *argument)
{
    struct adapter_store *s = store;
    struct fetch *f = argument;
    struct item *i = NULL;
    struct err err = {0};
    struct wanted w;
    bool known = true;
    int rc = wanted_parse(&w, f->model, &err);
    pthread_mutex_lock(&s->lock);
    if (rc == 0 && atomic_load(&s->cancelled)) {
        rc = err_set(&err, ERR_CANCELLED, "the node is shutting down");
    } else if (rc == 0 && (i = local_first(s, f->model)) == NULL) {
        mean_first(s, &w);
        refresh_begin(s);
        if (refresh(s, f->brings ? s->refresh_us : 2 * s->refresh_us, &err) != 0)
            rc = resolve_from_ledger(s, &w, &i, &err);
        else
            rc = resolve_indexed(s, f, &w, &i, &known, &err);
        /* What was published a moment ago is asked for a moment later: an unknown name looks
         * again, but not at every request. */
        if (!known && adapter_index_age_us(s->index) >= UNKNOWN_AGAIN_US) {
            if (!f->brings)
                rc = put_off(f, &err);
            else if (refresh(s, UNKNOWN_AGAIN_US, NULL) == 0)
                rc = resolve_indexed(s, f, &w, &i, &known, &err);
        }
    }
    if (f->put_off) {
        f->put_off = false;
        f->brings = true;
        if (f->waiters.first == NULL) {
            err_set(&err, ERR_CANCELLED, "nobody waits for it any more");
        } else if (bring(s, f)) {
            pthread_mutex_unlock(&s->lock);
            return;
        } else {
            err_set(&err, ERR_BUSY, "the node is shutting down");
        }
    }
    s->n_failed += rc != 0 && err.code != ERR_NOT_FOUND;
    fetch_end(s, f, rc == 0 ? i : NULL, &err);
}
