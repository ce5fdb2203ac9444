/* model: see model.h. Opens config, generation config and weights, checks one against the other and
 * has the identity computed. The expected tensors are enumerated by one function, `each_tensor`,
 * which both the check of a directory and the making of a random model walk: they can't differ. */
#include "engine/model.h"

#include "engine/config_json.h"
#include "engine/noise.h"
#include "engine/tokenizer/utf8.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/sha256.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CONFIG_MAX_BYTES = 4 << 20, HASH_THREADS_MAX = 32, HASH_PIECE_BYTES = 16 << 20 };

/* ---- sites ------------------------------------------------------------------------------- */

static const char *const SITE_PATHS[SITE_KINDS] = {
    [SITE_Q] = "self_attn.q_proj", [SITE_K] = "self_attn.k_proj", [SITE_V] = "self_attn.v_proj",
    [SITE_O] = "self_attn.o_proj", [SITE_GATE] = "mlp.gate_proj", [SITE_UP] = "mlp.up_proj",
    [SITE_DOWN] = "mlp.down_proj",
};

int model_n_sites(const struct model_config *c)
{
    return c->n_layers * SITE_KINDS;
}

int model_site_d_in(const struct model_config *c, enum site_kind kind)
{
    switch (kind) {
    case SITE_Q:
    case SITE_K:
    case SITE_V:
    case SITE_GATE:
    case SITE_UP:
        return c->hidden;
    case SITE_O:
        return c->n_heads * c->head_dim;
    case SITE_DOWN:
        return c->ffn;
    case SITE_KINDS:
        break;
    }
    BUG("site kind %d", (int)kind);
}

int model_site_d_out(const struct model_config *c, enum site_kind kind)
{
    switch (kind) {
    case SITE_Q:
        return c->n_heads * c->head_dim;
    case SITE_K:
    case SITE_V:
        return c->n_kv_heads * c->head_dim;
    case SITE_O:
    case SITE_DOWN:
        return c->hidden;
    case SITE_GATE:
    case SITE_UP:
        return c->ffn;
    case SITE_KINDS:
        break;
    }
    BUG("site kind %d", (int)kind);
}

const char *model_site_kind_name(enum site_kind kind)
{
    return strchr(SITE_PATHS[kind], '.') + 1;
}

char *model_site_name(char out[SITE_NAME_BYTES], int site)
{
    snprintf(out, SITE_NAME_BYTES, "model.layers.%d.%s", site / SITE_KINDS,
             SITE_PATHS[site % SITE_KINDS]);
    return out;
}

/* ---- the tensors a config asks for ------------------------------------------------------- */

typedef int tensor_visit(void *context, const char *name, int64_t d0, int64_t d1, struct err *err);

static int each_tensor(const struct model_config *c, tensor_visit *visit, void *context,
                       struct err *err)
{
    char name[SITE_NAME_BYTES + 16], site[SITE_NAME_BYTES];
    if (visit(context, "model.embed_tokens.weight", c->vocab, c->hidden, err) != 0 ||
        visit(context, "model.norm.weight", c->hidden, -1, err) != 0 ||
        (!c->tied && visit(context, "lm_head.weight", c->vocab, c->hidden, err) != 0))
        return -1;
    for (int l = 0; l < c->n_layers; l++) {
        for (int k = 0; k < SITE_KINDS; k++) {
            enum site_kind kind = (enum site_kind)k;
            model_site_name(site, l * SITE_KINDS + k);
            snprintf(name, sizeof name, "%s.weight", site);
            if (visit(context, name, model_site_d_out(c, kind), model_site_d_in(c, kind), err) != 0)
                return -1;
            bool bias = k <= SITE_V ? c->qkv_bias : k == SITE_O ? c->o_bias : c->mlp_bias;
            snprintf(name, sizeof name, "%s.bias", site);
            if (bias && visit(context, name, model_site_d_out(c, kind), -1, err) != 0)
                return -1;
        }
        static const char *const norms[] = {"input_layernorm", "post_attention_layernorm",
                                            "self_attn.q_norm", "self_attn.k_norm"};
        for (int i = 0; i < (c->qk_norm ? 4 : 2); i++) {
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", l, norms[i]);
            if (visit(context, name, i < 2 ? c->hidden : c->head_dim, -1, err) != 0)
                return -1;
        }
    }
    return 0;
}

struct check {
    const struct tensor_dir *tensors;
    uint64_t n_params;
    size_t n_seen;
};

static int check_tensor(void *context, const char *name, int64_t d0, int64_t d1, struct err *err)
{
    struct check *check = context;
    char shape[128];
    const struct tensor *t = tensor_dir_find(check->tensors, name);
    if (t == NULL)
        return err_set(err, ERR_INVALID, "tensor %s is missing", name);
    if (t->dtype != TENSOR_F32 && t->dtype != TENSOR_F16 && t->dtype != TENSOR_BF16)
        return err_set(err, ERR_UNSUPPORTED,
                       "tensor %s: dtype %s is not supported (F32, F16 and "
                       "BF16 are)",
                       name, tensor_dtype_name(t->dtype));
    if (!tensor_is(t, d0, d1)) {
        struct tensor want = {.shape = {d0, d1}, .n_dims = d1 < 0 ? 1 : 2};
        char want_shape[64];
        return err_set(err, ERR_INVALID, "tensor %s: shape is %s, config.json asks for %s", name,
                       tensor_shape_text(t, shape, sizeof shape),
                       tensor_shape_text(&want, want_shape, sizeof want_shape));
    }
    check->n_params += (uint64_t)tensor_n_elements(t);
    check->n_seen++;
    return 0;
}

struct seek {
    const char *name;
    bool found;
};

static int seek_tensor(void *context, const char *name, int64_t d0, int64_t d1, struct err *err)
{
    struct seek *seek = context;
    (void)d0;
    (void)d1;
    (void)err;
    seek->found |= strcmp(name, seek->name) == 0;
    return 0;
}

/* Tensors that checkpoints carry although they say nothing: the rope's frequencies of old Llama 2
 * files, and a copy of the embedding as lm_head where it is tied. */
static bool tensor_is_idle(const struct model_config *c, const char *name)
{
    size_t n = strlen(name);
    static const char inv_freq[] = ".self_attn.rotary_emb.inv_freq";
    if (n > sizeof inv_freq - 1 && strcmp(name + n - (sizeof inv_freq - 1), inv_freq) == 0)
        return true;
    return c->tied && strcmp(name, "lm_head.weight") == 0;
}

static int check_tensors(struct model *m, struct err *err)
{
    struct check check = {.tensors = &m->tensors};
    if (each_tensor(&m->config, check_tensor, &check, err) != 0)
        return -1;
    m->n_params = check.n_params;
    if (check.n_seen == m->tensors.n_tensors)
        return 0;
    for (size_t i = 0; i < m->tensors.n_tensors; i++) {
        struct seek seek = {m->tensors.tensors[i]->name, false};
        if (tensor_is_idle(&m->config, seek.name))
            continue;
        each_tensor(&m->config, seek_tensor, &seek, NULL);
        if (!seek.found)
            return err_set(err, ERR_UNSUPPORTED,
                           "tensor %s belongs to nothing that config.json describes", seek.name);
    }
    return 0;
}

/* ---- identity ---------------------------------------------------------------------------- */

/* The weight files' hashes, by threads that take them one by one. They read mapped memory that
 * nobody changes and write each its file's digest; whoever asks for the id helps with what is left
 * and joins them. */
struct model_hashing {
    struct tensor_dir *tensors;
    atomic_size_t next; /* file */
    atomic_bool stop;   /* nobody wants the id any more */
    struct sha256_digest config;
    size_t config_bytes;
    pthread_t threads[HASH_THREADS_MAX];
    int n_threads;
};

static bool is_index(const struct tensor_dir_file *f)
{
    return strstr(f->name, ".index.json") != NULL;
}

static void *hash_files(void *context)
{
    struct model_hashing *job = context;
    for (size_t i; (i = atomic_fetch_add(&job->next, 1)) < job->tensors->n_files;) {
        struct tensor_dir_file *f = &job->tensors->files[i];
        struct sha256 h;
        sha256_init(&h);
        size_t at = is_index(f) ? f->n_bytes : 0; /* the index isn't in the id */
        while (at < f->n_bytes && !atomic_load(&job->stop)) {
            size_t n = f->n_bytes - at < HASH_PIECE_BYTES ? f->n_bytes - at : HASH_PIECE_BYTES;
            sha256_update(&h, f->bytes + at, n);
            at += n;
        }
        f->digest = sha256_final(&h);
    }
    return NULL;
}

static void begin_hashing(struct model *m, const struct buf *config)
{
    struct model_hashing *job = xcalloc(1, sizeof *job);
    job->tensors = &m->tensors;
    job->config = sha256(config->data, config->len);
    job->config_bytes = config->len;
    long n_cores = sysconf(_SC_NPROCESSORS_ONLN);
    size_t n_files = 0;
    for (size_t i = 0; i < m->tensors.n_files; i++)
        n_files += !is_index(&m->tensors.files[i]);
    while (job->n_threads < HASH_THREADS_MAX && job->n_threads < n_cores &&
           (size_t)job->n_threads < n_files &&
           pthread_create(&job->threads[job->n_threads], NULL, hash_files, job) == 0)
        job->n_threads++;
    m->hashing = job;
}

static void end_hashing(struct model *m)
{
    hash_files(m->hashing);
    for (int i = 0; i < m->hashing->n_threads; i++)
        pthread_join(m->hashing->threads[i], NULL);
    free(m->hashing);
    m->hashing = NULL;
}

struct line { /* of the text whose hash is the id */
    const char *name;
    size_t n_bytes;
    struct sha256_digest digest;
};

static int line_by_name(const void *a, const void *b)
{
    return strcmp(((const struct line *)a)->name, ((const struct line *)b)->name);
}

struct model_id model_identity(struct model *m)
{
    if (m->hashing == NULL)
        return m->id;
    const struct tensor_dir *tensors = &m->tensors;
    struct line *lines = xcalloc(tensors->n_files + 1, sizeof *lines);
    size_t n = 0;
    lines[n++] = (struct line){"config.json", m->hashing->config_bytes, m->hashing->config};
    end_hashing(m);
    for (size_t i = 0; i < tensors->n_files; i++) {
        const struct tensor_dir_file *f = &tensors->files[i];
        if (!is_index(f))
            lines[n++] = (struct line){f->name, f->n_bytes, f->digest};
    }
    qsort(lines, n, sizeof *lines, line_by_name);
    struct buf text = BUF_INIT;
    char hex[65];
    for (size_t i = 0; i < n; i++)
        buf_appendf(&text, "%s  %zu  %s\n", hex_encode(hex, lines[i].digest.bytes, 32),
                    lines[i].n_bytes, lines[i].name);
    struct sha256_digest digest = sha256(text.data, text.len);
    buf_release(&text);
    free(lines);
    memcpy(m->id.bytes, digest.bytes, 32);
    return m->id;
}

/* ---- open -------------------------------------------------------------------------------- */

/* The directory's last component, as far as it fits, as UTF-8 whatever the file system has. */
static void name_after(char *out, size_t n_out, const char *dir)
{
    size_t end = strlen(dir);
    while (end > 1 && dir[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && dir[begin - 1] != '/')
        begin--;
    struct buf name = BUF_INIT;
    utf8_append_lossy(&name, dir + begin, end - begin);
    size_t n = name.len;
    if (n >= n_out) {
        n = n_out - 1;
        while (n > 0 && (name.data[n] & 0xC0) == 0x80) /* not within a character */
            n--;
    }
    memcpy(out, name.data, n);
    out[n] = '\0';
    buf_release(&name);
}

int model_open(struct model **out, const char *dir, struct err *err)
{
    struct model *m = xcalloc(1, sizeof *m);
    struct buf text = BUF_INIT;
    json_t *config = NULL, *generation = NULL;
    char *path = xasprintf("%s/config.json", dir);
    char *generation_path = xasprintf("%s/generation_config.json", dir);
    int rc = -1;
    char *real = realpath(dir, NULL);
    name_after(m->name, sizeof m->name, real != NULL ? real : dir);
    if (file_read(path, CONFIG_MAX_BYTES, &text, err) != 0 ||
        config_json_parse(&config, text.data != NULL ? (const char *)text.data : "", text.len, path,
                          err) != 0)
        goto out;
    if (access(generation_path, F_OK) == 0 &&
        config_json_read(&generation, generation_path, CONFIG_MAX_BYTES, err) != 0)
        goto out;
    if (model_config_parse(&m->config, config, generation, path, err) != 0)
        goto out;
    if (tensor_dir_open(&m->tensors, dir, "model", TENSOR_DIR_MAP, SIZE_MAX, err) != 0 ||
        check_tensors(m, err) != 0) {
        err_wrap(err, "%s", dir);
        goto out;
    }
    begin_hashing(m, &text);
    rc = 0;
out:
    json_decref(config);
    json_decref(generation);
    buf_release(&text);
    free(path);
    free(generation_path);
    free(real);
    if (rc != 0) {
        model_close(m);
        return -1;
    }
    *out = m;
    return 0;
}

bool model_linears_are(const struct model *m, enum tensor_dtype dtype)
{
    char module[SITE_NAME_BYTES], name[SITE_NAME_BYTES + sizeof ".weight"];
    for (int site = 0; site < model_n_sites(&m->config); site++) {
        snprintf(name, sizeof name, "%s.weight", model_site_name(module, site));
        const struct tensor *t = tensor_dir_find(&m->tensors, name);
        BUG_IF(t == NULL); /* model_open checked */
        if (t->dtype != dtype)
            return false;
    }
    return true;
}

void model_close(struct model *m)
{
    if (m == NULL)
        return;
    if (m->hashing != NULL) {
        atomic_store(&m->hashing->stop, true);
        end_hashing(m);
    }
    tensor_dir_close(&m->tensors);
    free(m);
}

/* ---- random models ----------------------------------------------------------------------- */

struct make {
    struct safetensors *parsed;
    struct buf names;
    size_t n_bytes;
};

static int count_tensor(void *context, const char *name, int64_t d0, int64_t d1, struct err *err)
{
    struct make *make = context;
    (void)err;
    struct safetensors *s = make->parsed;
    s->tensors = xrealloc_array(s->tensors, s->n_tensors + 1, sizeof *s->tensors);
    struct tensor *t = &s->tensors[s->n_tensors++];
    *t = (struct tensor){.shape = {d0, d1}, .n_dims = d1 < 0 ? 1 : 2, .dtype = TENSOR_BF16};
    t->n_bytes = (size_t)(d1 < 0 ? d0 : d0 * d1) * 2;
    t->name = (const char *)(uintptr_t)make->names.len; /* an offset until names stand still */
    t->data = (const uint8_t *)(uintptr_t)make->n_bytes;
    make->n_bytes += (t->n_bytes + 63) & ~(size_t)63;
    buf_append(&make->names, name, strlen(name) + 1);
    return 0;
}

static void fill_random(const struct tensor *t, uint64_t seed)
{
    /* Norm weights about 1; matrices uniform in +-sqrt(3 / d_in): variance 1 / d_in. */
    float spread = t->n_dims == 1 ? 0.2f : sqrtf(3.0f / (float)t->shape[1]);
    float centre = t->n_dims == 1 && strstr(t->name, "norm") != NULL ? 1.0f : 0.0f;
    noise_fill((void *)(uintptr_t)t->data, DTYPE_BF16, t->n_bytes / 2, seed, centre, spread, 0);
}

static int tensor_by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

int model_random(struct model **out, const struct model_config *config, const char *name,
                 uint64_t seed, struct err *err)
{
    struct model *m = xcalloc(1, sizeof *m);
    m->config = *config;
    snprintf(m->name, sizeof m->name, "%s", name);
    m->tensors.how = TENSOR_DIR_READ;
    m->tensors.files = xcalloc(1, sizeof *m->tensors.files);
    m->tensors.n_files = 1;
    struct tensor_dir_file *f = &m->tensors.files[0];
    f->name = xstrdup("model.safetensors");
    struct make make = {.parsed = &f->parsed};
    each_tensor(config, count_tensor, &make, NULL);
    f->parsed.names = buf_detach(&make.names);
    f->n_bytes = make.n_bytes;
    f->bytes = noise_alloc(make.n_bytes);
    if (f->bytes == NULL) {
        size_t n_bytes = make.n_bytes;
        model_close(m);
        return err_set(err, ERR_NO_MEMORY, "a random model of shape %s needs %zu bytes", name,
                       n_bytes);
    }
    for (size_t i = 0; i < f->parsed.n_tensors; i++) {
        struct tensor *t = &f->parsed.tensors[i];
        t->name = f->parsed.names + (uintptr_t)t->name;
        t->data = f->bytes + (uintptr_t)t->data;
        fill_random(t, seed << 32 | i);
    }
    qsort(f->parsed.tensors, f->parsed.n_tensors, sizeof *f->parsed.tensors, tensor_by_name);
    m->tensors.n_tensors = f->parsed.n_tensors;
    m->tensors.tensors = xcalloc(m->tensors.n_tensors, sizeof(struct tensor *));
    for (size_t i = 0; i < m->tensors.n_tensors; i++)
        m->tensors.tensors[i] = &f->parsed.tensors[i];
    if (check_tensors(m, err) != 0)
        BUG("a random model lacks its own tensors");
    char *text = xasprintf("random %s %" PRIu64, name, seed);
    struct sha256_digest digest = sha256(text, strlen(text));
    free(text);
    memcpy(m->id.bytes, digest.bytes, 32);
    *out = m;
    return 0;
}

void model_forget_random(struct model *m)
{
    if (m->tensors.how != TENSOR_DIR_READ)
        return;
    struct tensor_dir_file *f = &m->tensors.files[0];
    for (size_t i = 0; i < f->parsed.n_tensors; i++)
        f->parsed.tensors[i].data = NULL;
    free(f->bytes);
    f->bytes = NULL;
}
