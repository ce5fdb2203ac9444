/* adapter_local: adapters in the operator's own directories.
 *
 * An adapter that is given by name (--adapter, the admin API) is read and checked at once. Of a
 * directory full of them (--adapters-dir) only names, sizes and times are looked at, so that ten
 * thousand are there within two seconds; each one's digest is then
 *
 *   remembered   from an earlier run, in DATA/adapters.known, as long as its files' names, sizes,
 *                times and inodes are what they were;
 *   or found     by the examiner, a thread of the lowest priority that reads one after another;
 *   or found     by the first load, if a request is faster.
 *
 * None of this is trusted to serve: each load takes the digest of what it has read, and what
 * differs is refused (adapter_tiers.c).
 *
 *   adapters.known   a line "tributary-known-adapters 1 <modelId>" (and " bf16" where adapters are
 *                    held as that, which their sizes are of), then for each adapter
 *                    "<contentDigest> <bytes> <rank> <sites> <stamp> <targets, commas> <directory>"
 *                    Sizes and ranks are those that the base model of the first line checked. */
#include "node/adapter_store_internal.h"

#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/base/sha256.h"
#include "node/json_util.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KNOWN_MAX_BYTES = 256 << 20 };

/* ---- files -------------------------------------------------------------------------------------
 */

/* Those that the content digest is made of (engine.h). */
static bool counts(const char *name)
{
    static const char weights[] = ".safetensors", shards[] = ".safetensors.index.json";
    size_t n = strlen(name);
    return strcmp(name, "adapter_config.json") == 0 ||
           (strncmp(name, "adapter_model", 13) == 0 &&
            ((n > sizeof weights && strcmp(name + n - sizeof weights + 1, weights) == 0) ||
             (n > sizeof shards && strcmp(name + n - sizeof shards + 1, shards) == 0)));
}

uint64_t local_files(const char *dir, char stamp[17])
{
    uint64_t total = 0, sum = 0;
    struct stat st;
    DIR *d = opendir(dir);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        if (!counts(e->d_name) || fstatat(dirfd(d), e->d_name, &st, 0) != 0 || !S_ISREG(st.st_mode))
            continue;
        struct {
            uint64_t size, inode;
            int64_t seconds[2], nanoseconds[2];
            char name[256];
        } one = {.size = (uint64_t)st.st_size,
                 .inode = st.st_ino,
                 .seconds = {st.st_mtim.tv_sec, st.st_ctim.tv_sec},
                 .nanoseconds = {st.st_mtim.tv_nsec, st.st_ctim.tv_nsec}};
        snprintf(one.name, sizeof one.name, "%s", e->d_name);
        struct sha256_digest h = sha256(&one, sizeof one);
        uint64_t word;
        memcpy(&word, h.bytes, sizeof word);
        sum += word; /* a directory lists its files in any order */
        total += (uint64_t)st.st_size;
    }
    if (d != NULL)
        closedir(d);
    snprintf(stamp, 17, "%016" PRIx64, sum);
    return total;
}

/* ---- adding and removing -----------------------------------------------------------------------
 */

static int check_name(const struct adapter_store *s, const char *name, struct err *err)
{
    struct wanted w;
    size_t n = strlen(name), len;
    bool plain = n > 0 && n < SERVICE_NAME_BYTES;
    for (size_t i = 0; i < n && plain; i += len) {
        len = utf8_char_len(name + i, n - i); /* else JSON could not say it */
        plain = len > 0 && (unsigned char)name[i] > 0x20 && name[i] != 0x7f;
    }
    if (!plain)
        return err_set(err, ERR_INVALID,
                       "adapter name \"%.200s\" must have 1 to %d bytes of UTF-8, none of them a "
                       "space or a control character",
                       name, SERVICE_NAME_BYTES - 1);
    /* Clients take these out of a URL, however they are written (RFC 3986, section 5.2.4). */
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return err_set(err, ERR_INVALID, "adapter name \"%s\" can't stand in a path", name);
    if (wanted_parse(&w, name, NULL) == 0 && w.by != BY_NAME)
        return err_set(err, ERR_INVALID, "adapter name \"%s\" looks like a digest", name);
    if (strcmp(name, s->base_name) == 0)
        return err_set(err, ERR_CONFLICT, "two models are named \"%s\"", name);
    return 0;
}

/* Takes the item's load and content away. With the lock. */
static void item_loosen(struct adapter_store *s, struct item *i)
{
    if (i->load != NULL) {
        i->load->item = NULL; /* who waits for it gets what was asked for; nobody new joins */
        i->load = NULL;
    }
    item_detach(s, i);
}

/* With the lock. dir is taken. */
static struct item *item_new(struct adapter_store *s, const char *name, char *dir)
{
    struct item *i = xcalloc(1, sizeof *i);
    snprintf(i->name, sizeof i->name, "%s", name);
    i->dir = dir;
    i->number = s->n_added++;
    hash_map_put(&s->local, i->name, strlen(i->name), i);
    return i;
}

/* Where dir really is; free() it. NULL: name or dir can't be an adapter's. */
static char *place(const struct adapter_store *s, const char *name, const char *dir,
                   struct err *err)
{
    if (check_name(s, name, err) != 0)
        return NULL;
    char *path = realpath(dir, NULL);
    if (path == NULL) {
        err_set(err, ERR_NOT_FOUND, "adapter %s: %s: no such directory", name, dir);
        return NULL;
    }
    struct stat st;
    if (stat(path, &st) == 0 && !S_ISDIR(st.st_mode)) {
        err_set(err, ERR_INVALID, "adapter %s: %s: not a directory", name, path);
        free(path);
        return NULL;
    }
    return path;
}

int adapter_store_check(const struct adapter_store *s, const char *name, const char *dir,
                        struct err *err)
{
    char *path = place(s, name, dir, err);
    if (path == NULL)
        return -1;
    char *config = xasprintf("%s/adapter_config.json", path);
    int rc = access(config, R_OK) == 0 ? 0
                                       : err_set_errno(err, errno, "adapter %s: %s", name, config);
    free(config);
    free(path);
    return rc;
}

int adapter_store_add(struct adapter_store *s, const char *name, const char *dir, bool told,
                      struct engine_adapter *facts, struct err *err)
{
    struct engine_adapter seen;
    char stamp[17], hex[65];
    bool loaded = false;
    uint64_t us = 0;
    char *path = place(s, name, dir, err);
    if (path == NULL)
        return -1;
    local_files(path, stamp); /* before the reading: what changes meanwhile has another next time */
    if (files_read(s, path, &seen, &loaded, &us, err) != 0) {
        err_wrap(err, "adapter %s (%s)", name, path);
        free(path);
        return -1;
    }
    pthread_mutex_lock(&s->told_lock);
    int rc = told ? told_add(s, name, path, err) : 0;
    pthread_mutex_lock(&s->lock);
    struct item *i = hash_map_get(&s->local, name, strlen(name));
    if (rc == 0 && i != NULL && !told)
        rc = err_set(err, ERR_CONFLICT, "two models are named \"%s\"", name);
    if (rc != 0) {
        if (loaded)
            engine_adapter_drop(s->engine, &seen.content, NULL);
        pthread_mutex_unlock(&s->lock);
        pthread_mutex_unlock(&s->told_lock);
        free(path);
        return rc;
    }
    if (i != NULL) {
        item_loosen(s, i);
        free(i->dir);
        i->dir = path;
        i->failed.us = 0;
    } else {
        i = item_new(s, name, path);
    }
    struct content *c = content_get(s, &seen.content);
    content_learn(c, &seen);
    item_attach(s, i, c);
    if (loaded)
        content_landed(s, c, us, NULL);
    memcpy(i->stamp, stamp, sizeof stamp);
    i->examined = true;
    s->n_told += told && !i->told;
    i->told |= told;
    s->facts_changed = true;
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_unlock(&s->told_lock);
    log_info("adapters", "adapter %s: rank %d, %d linears (%s), digest %s", name, seen.rank_max,
             seen.n_sites, seen.targets, hex_encode(hex, seen.content.bytes, 32));
    if (facts != NULL)
        *facts = seen;
    return 0;
}

int adapter_store_remove(struct adapter_store *s, const char *name, struct err *err)
{
    pthread_mutex_lock(&s->told_lock);
    pthread_mutex_lock(&s->lock);
    struct item *i = hash_map_get(&s->local, name, strlen(name));
    bool told = i != NULL &&
                i->told; /* which only changes under told_lock, as what is local does */
    pthread_mutex_unlock(&s->lock);
    int rc = told ? told_remove(s, name, err) : 0;
    pthread_mutex_lock(&s->lock);
    if (rc == 0 && i != NULL) {
        hash_map_remove(&s->local, name, strlen(name));
        s->n_told -= told;
        item_loosen(s, i);
        free(i->dir);
        free(i);
        s->facts_changed = true;
    } else if (rc == 0 && item_find(s, name, false) != NULL) {
        rc = err_set(err, ERR_CONFLICT,
                     "adapter %s comes from a registry or goes by another name; only the name of a "
                     "local adapter can be removed",
                     name);
    } else if (rc == 0) {
        rc = no_adapter(s, name, err);
    }
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_unlock(&s->told_lock);
    return rc;
}

/* ---- what is remembered ------------------------------------------------------------------------
 */

struct known {
    struct engine_adapter facts;
    char stamp[17];
    const char *dir;
};

static char *known_path(const struct adapter_store *s)
{
    return xasprintf("%s/adapters.known", s->data_dir);
}

static void known_head(const struct adapter_store *s, char out[128])
{
    const struct engine_model *m = engine_model(s->engine);
    char hex[65];
    bool as_in_file = strcmp(m->adapter_dtype, "file") == 0;
    snprintf(out, 128, "tributary-known-adapters 1 %s%s%s", hex_encode(hex, m->id.bytes, 32),
             as_in_file ? "" : " ", as_in_file ? "" : m->adapter_dtype);
}

/* false: not such a line. */
static bool known_parse(struct known *k, char *line)
{
    char digest[65], targets[256];
    int at = -1;
    if (sscanf(line, "%64s %zu %d %d %16s %255s %n", digest, &k->facts.n_bytes, &k->facts.rank_max,
               &k->facts.n_sites, k->stamp, targets, &at) != 6 ||
        at < 0 || line[at] != '/' || hex_decode(k->facts.content.bytes, 32, digest) != 0 ||
        k->facts.n_bytes == 0)
        return false;
    for (char *p = targets; *p != '\0'; p++) {
        if (*p == ',')
            *p = ' ';
    }
    memcpy(k->facts.targets, targets, sizeof targets);
    k->dir = line + at;
    return true;
}

struct memory { /* of struct known, by directory */
    struct buf text;
    struct known *items;
    struct hash_map by_dir;
};

static void memory_read(const struct adapter_store *s, struct memory *m)
{
    char head[128], *path = known_path(s);
    *m = (struct memory){.text = BUF_INIT};
    if (file_read(path, KNOWN_MAX_BYTES, &m->text, NULL) == 0) {
        known_head(s, head);
        char *rest = (char *)(uintptr_t)buf_cstr(&m->text), *line = strsep(&rest, "\n");
        size_t n = 0, n_lines = 0;
        for (const char *p = rest; p != NULL && *p != '\0'; p++)
            n_lines += *p == '\n';
        m->items = xcalloc(n_lines + 1, sizeof *m->items);
        bool ours = strcmp(line, head) == 0; /* else of another base model, or of other sizes */
        while (ours && n < n_lines && (line = strsep(&rest, "\n")) != NULL) {
            struct known *k = &m->items[n];
            if (known_parse(k, line)) {
                hash_map_put(&m->by_dir, k->dir, strlen(k->dir), k);
                n++;
            }
        }
    }
    free(path);
}

static void memory_release(struct memory *m)
{
    buf_release(&m->text);
    free(m->items);
    hash_map_release(&m->by_dir);
}

void local_remember(struct adapter_store *s)
{
    char head[128], hex[65], *path = known_path(s);
    struct buf text = BUF_INIT;
    size_t at = 0;
    known_head(s, head);
    buf_appendf(&text, "%s\n", head);
    pthread_mutex_lock(&s->lock);
    bool changed = s->facts_changed;
    s->facts_changed = false;
    for (struct item *i; (i = hash_map_next(&s->local, &at)) != NULL;) {
        const struct content *c = i->content;
        if (c == NULL || c->n_bytes == 0 || i->stamp[0] == '\0' || strchr(i->dir, '\n') != NULL)
            continue;
        buf_appendf(&text, "%s %zu %d %d %s ", hex_encode(hex, c->digest.bytes, 32), c->n_bytes,
                    c->rank_max, c->n_sites, i->stamp);
        for (const char *p = c->targets; *p != '\0'; p++)
            buf_append_byte(&text, *p == ' ' ? ',' : (uint8_t)*p);
        buf_appendf(&text, " %s\n", i->dir);
    }
    pthread_mutex_unlock(&s->lock);
    struct err err = {0};
    if (changed && file_write_atomic(path, text.data, text.len, 0600, &err) != 0)
        log_warn("adapters", "%s", err.message);
    buf_release(&text);
    free(path);
}

/* ---- a directory of them -----------------------------------------------------------------------
 */

/* A name that is free, for files that nobody has looked at unless m remembers them; dir is taken.
 * With the lock. */
static struct item *add_unread(struct adapter_store *s, const struct memory *m, const char *name,
                               char *dir, const char stamp[17])
{
    struct item *i = item_new(s, name, dir);
    const struct known *k = hash_map_get(&m->by_dir, dir, strlen(dir));
    memcpy(i->stamp, stamp, sizeof i->stamp);
    if (k != NULL && strcmp(k->stamp, stamp) == 0) {
        struct content *c = content_get(s, &k->facts.content);
        content_learn(c, &k->facts);
        item_attach(s, i, c);
        i->examined = true;
    }
    return i;
}

/* false: it isn't an adapter's directory, or its name is taken. */
static bool add_found(struct adapter_store *s, const struct memory *m, const char *root,
                      const char *name)
{
    struct err err = {0};
    char stamp[17];
    char *dir = xasprintf("%s/%s", root, name), *config = xasprintf("%s/adapter_config.json", dir);
    bool there = access(config, R_OK) == 0 && local_files(dir, stamp) > 0;
    free(config);
    if (there && check_name(s, name, &err) != 0) {
        log_warn("adapters", "%s is left out: %s", dir, err.message);
        there = false;
    }
    pthread_mutex_lock(&s->lock);
    if (there && hash_map_get(&s->local, name, strlen(name)) != NULL)
        there = false; /* what was said by name counts more */
    if (there)
        add_unread(s, m, name, dir, stamp);
    pthread_mutex_unlock(&s->lock);
    if (!there)
        free(dir);
    return there;
}

/* Looks at one adapter that nobody has looked at. */
static void examine(struct adapter_store *s, const char *name)
{
    char *dir = NULL, stamp[17];
    struct engine_adapter facts;
    struct err err = {0};
    pthread_mutex_lock(&s->lock);
    struct item *i = hash_map_get(&s->local, name, strlen(name));
    if (i != NULL && i->content == NULL && i->load == NULL && !i->examined) {
        i->examined = true;
        dir = xstrdup(i->dir);
    }
    pthread_mutex_unlock(&s->lock);
    if (dir == NULL)
        return;
    local_files(dir, stamp);
    int rc = engine_adapter_check(s->engine, dir, &facts, &err);
    pthread_mutex_lock(&s->lock);
    i = hash_map_get(&s->local, name, strlen(name));
    /* Unless a request was faster, or the name means something else by now. */
    if (rc == 0 && i != NULL && i->content == NULL && i->load == NULL && strcmp(i->dir, dir) == 0) {
        struct content *c = content_get(s, &facts.content);
        content_learn(c, &facts);
        item_attach(s, i, c);
        memcpy(i->stamp, stamp, sizeof stamp);
        s->facts_changed = true;
    }
    pthread_mutex_unlock(&s->lock);
    if (rc != 0)
        log_warn("adapters", "adapter %s (%s) can't serve: %s", name, dir, err.message);
    free(dir);
}

static void *examiner_main(void *context)
{
    struct adapter_store *s = context;
    setpriority(PRIO_PROCESS, (id_t)gettid(), 19); /* of this thread only */
    pthread_mutex_lock(&s->lock);
    uint64_t n_seen = 0;
    while (n_seen != s->n_added && !atomic_load(&s->cancelled)) {
        size_t n;
        struct item **items = items_in_order(s, &n);
        char **names = xcalloc(n + 1, sizeof *names);
        for (size_t i = 0; i < n; i++)
            names[i] = xstrdup(items[i]->name);
        free(items);
        n_seen = s->n_added;
        pthread_mutex_unlock(&s->lock);
        for (size_t i = 0; i < n; i++) {
            if (!atomic_load(&s->cancelled))
                examine(s, names[i]);
            free(names[i]);
        }
        free(names);
        pthread_mutex_lock(&s->lock);
    }
    s->examined_all = true;
    pthread_mutex_unlock(&s->lock);
    local_remember(s);
    return NULL;
}

/* What is there now will be looked at. */
static int examiner_start(struct adapter_store *s, struct err *err)
{
    pthread_mutex_lock(&s->lock);
    bool under_way = s->examining && !s->examined_all;
    pthread_mutex_unlock(&s->lock);
    if (under_way)
        return 0; /* it looks for more before it ends */
    local_examiner_stop(s);
    s->examined_all = false;
    if (pthread_create(&s->examiner, NULL, examiner_main, s) != 0)
        return err_set(err, ERR_NO_MEMORY, "cannot start a thread");
    s->examining = true;
    return 0;
}

void local_examiner_stop(struct adapter_store *s)
{
    if (s->examining)
        pthread_join(s->examiner, NULL);
    s->examining = false;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The names of d's sub-directories [*n], sorted; the caller's to free. */
static char **names_in(DIR *d, size_t *n)
{
    char **names = NULL;
    size_t cap = 0;
    *n = 0;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        if (e->d_name[0] == '.' ||
            (e->d_type != DT_DIR && e->d_type != DT_LNK && e->d_type != DT_UNKNOWN))
            continue;
        if (*n == cap) {
            cap = cap == 0 ? 64 : cap * 2;
            names = xrealloc_array(names, cap, sizeof *names);
        }
        names[(*n)++] = xstrdup(e->d_name);
    }
    if (*n > 1)
        qsort(names, *n, sizeof *names, by_text);
    return names;
}

int adapter_store_add_all(struct adapter_store *s, const char *root, size_t *n, struct err *err)
{
    struct monotonic_us began = clock_monotonic_us();
    *n = 0;
    char *path = realpath(root, NULL);
    DIR *d = path != NULL ? opendir(path) : NULL;
    if (d == NULL) {
        free(path);
        return err_set(err, ERR_NOT_FOUND, "%s: no such directory, or it can't be read", root);
    }
    struct memory m;
    memory_read(s, &m);
    size_t n_names;
    char **names = names_in(d, &n_names);
    closedir(d);
    for (size_t i = 0; i < n_names; i++) {
        *n += add_found(s, &m, path, names[i]);
        free(names[i]);
    }
    free(names);
    memory_release(&m);
    free(path);
    log_info("adapters", "%zu adapters in %s, found in %" PRIu64 " ms", *n, root,
             clock_elapsed_us(began, clock_monotonic_us()) / 1000);
    return examiner_start(s, err);
}

size_t local_recall(struct adapter_store *s, const json_t *dirs)
{
    struct memory m;
    size_t n = 0;
    const char *name;
    json_t *dir;
    memory_read(s, &m);
    json_object_foreach((json_t *)(uintptr_t)dirs, name, dir)
    {
        char stamp[17];
        struct err err = {0};
        local_files(json_string_value(dir), stamp);
        int rc = check_name(s, name, &err);
        pthread_mutex_lock(&s->lock);
        if (rc == 0 && hash_map_get(&s->local, name, strlen(name)) != NULL)
            rc = err_set(&err, ERR_CONFLICT, "the configuration names it");
        if (rc == 0) {
            add_unread(s, &m, name, xstrdup(json_string_value(dir)), stamp)->told = true;
            n++;
        }
        pthread_mutex_unlock(&s->lock);
        if (rc != 0)
            log_warn("adapters", "adapter %s, of which the node was told earlier, is forgotten: %s",
                     name, err.message);
    }
    memory_release(&m);
    struct err err = {0};
    if (n > 0 && examiner_start(s, &err) != 0)
        log_warn("adapters", "%s", err.message); /* requests look for themselves */
    return n;
}
