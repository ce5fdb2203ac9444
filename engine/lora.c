/* lora: see lora.h.
 *
 * The matrices lie packed site by site, in the order of sites, each at its true size, so that the
 * device pool can copy an adapter in one piece or in few. The headers of the files say what is to
 * come, so memory is taken for just that and each matrix is read to its place in it; the digest is
 * computed over those very bytes. Touching new memory costs as much as hashing it or more (a page
 * fault for every 4 kB, while pinned memory has had its own long ago), so nothing is read elsewhere
 * and copied; what is held as another dtype than it has in its file goes through a few pieces of
 * memory that stay in the processor's cache (tensor_read.c).
 *
 * contentDigest (engine.h): sha256 over lines "<sha256 hex>  <size>  <name>\n", ascending by name,
 * of adapter_config.json and the weight files, the index of shards included. */
#include "engine/lora.h"

#include "engine/engine.h"
#include "engine/host_memory.h"
#include "engine/lora_config.h"
#include "engine/noise.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/sha256.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the files and their digest ---------------------------------------------------------- */

struct adapter_files {
    struct buf config;
    struct tensor_dir tensors;
};

struct line {
    const char *name;
    size_t n_bytes;
    struct sha256_digest digest;
};

static int line_by_name(const void *a, const void *b)
{
    return strcmp(((const struct line *)a)->name, ((const struct line *)b)->name);
}

static struct content_digest digest_of(const struct adapter_files *files)
{
    const struct tensor_dir *d = &files->tensors;
    struct line *lines = xcalloc(d->n_files + 1, sizeof *lines);
    size_t n = 0;
    lines[n++] = (struct line){"adapter_config.json", files->config.len,
                               sha256(files->config.data, files->config.len)};
    for (size_t i = 0; i < d->n_files; i++)
        lines[n++] = (struct line){d->files[i].name, d->files[i].n_bytes, d->files[i].digest};
    qsort(lines, n, sizeof *lines, line_by_name);
    struct buf text = BUF_INIT;
    char hex[65];
    for (size_t i = 0; i < n; i++)
        buf_appendf(&text, "%s  %zu  %s\n", hex_encode(hex, lines[i].digest.bytes, 32),
                    lines[i].n_bytes, lines[i].name);
    struct sha256_digest whole = sha256(text.data, text.len);
    buf_release(&text);
    free(lines);
    struct content_digest content;
    memcpy(content.bytes, whole.bytes, 32);
    return content;
}

static void files_release(struct adapter_files *files)
{
    buf_release(&files->config);
    tensor_dir_close(&files->tensors);
}

static int files_open(struct adapter_files *files, const char *dir, enum tensor_dir_how how,
                      size_t max_bytes, struct err *err)
{
    *files = (struct adapter_files){.config = BUF_INIT};
    char *pickle = xasprintf("%s/adapter_model.bin", dir);
    int rc = file_read_regular(dir, "adapter_config.json", LORA_CONFIG_MAX_BYTES, &files->config,
                               err);
    if (rc == 0) {
        buf_reserve(&files->config, 1);
        rc = tensor_dir_open(&files->tensors, dir, "adapter_model", how, max_bytes, err);
        if (rc != 0 && err != NULL && err->code == ERR_NOT_FOUND && access(pickle, F_OK) == 0)
            err_set(err, ERR_UNSUPPORTED,
                    "adapter_model.bin is a pickle, which can run code; save the adapter as "
                    "safetensors");
    }
    free(pickle);
    if (rc != 0) {
        files_release(files);
        return -1;
    }
    return 0;
}

int adapter_content_digest(const char *dir, struct content_digest *out, struct err *err)
{
    struct adapter_files files;
    if (files_open(&files, dir, TENSOR_DIR_READ, SIZE_MAX, err) != 0)
        return -1;
    *out = digest_of(&files);
    files_release(&files);
    return 0;
}

/* ---- what matrices are held as ------------------------------------------------------------ */

int lora_held_for(enum lora_held *out, const char *adapter_dtype, const struct model *model,
                  enum dtype activation, struct err *err)
{
    const char *asked = adapter_dtype != NULL ? adapter_dtype : "auto";
    bool is_auto = strcmp(asked, "auto") == 0;
    if (!is_auto && strcmp(asked, "file") != 0 && strcmp(asked, "bf16") != 0)
        return err_set(err, ERR_INVALID,
                       "engine options: adapter_dtype = \"%s\" (--adapter-dtype) is none of auto, "
                       "file and bf16",
                       asked);
    bool all_bf16 = activation == DTYPE_BF16 && model_linears_are(model, TENSOR_BF16);
    *out = strcmp(asked, "bf16") == 0 || (is_auto && all_bf16) ? LORA_HELD_BF16 : LORA_HELD_FILE;
    return 0;
}

/* ---- checking and packing ---------------------------------------------------------------- */

static size_t aligned(size_t n)
{
    return (n + LORA_ALIGN_BYTES - 1) & ~(size_t)(LORA_ALIGN_BYTES - 1);
}

static const struct tensor *find_matrix(const struct tensor_dir *d, const char *module,
                                        const char *which, char name[static 160])
{
    snprintf(name, 160, "base_model.model.%s.%s.weight", module, which);
    const struct tensor *t = tensor_dir_find(d, name);
    return t != NULL ? t : tensor_dir_find(d, name + strlen("base_model.model."));
}

static int check_matrix(const struct tensor_dir *d, const struct tensor **out, const char *module,
                        const char *which, int64_t d0, int64_t d1, struct err *err)
{
    char name[160], shape[128];
    const struct tensor *t = find_matrix(d, module, which, name);
    if (t == NULL)
        return err_set(err, ERR_INVALID, "tensor %s is missing", name);
    if (t->dtype != TENSOR_F32 && t->dtype != TENSOR_F16 && t->dtype != TENSOR_BF16)
        return err_set(err, ERR_UNSUPPORTED,
                       "tensor %s: dtype %s is not supported (F32, F16 and "
                       "BF16 are)",
                       t->name, tensor_dtype_name(t->dtype));
    if (!tensor_is(t, d0, d1))
        return err_set(err, ERR_INVALID,
                       "tensor %s: shape is %s, base model and adapter_config.json ask for "
                       "[%" PRId64 ", %" PRId64 "]",
                       t->name, tensor_shape_text(t, shape, sizeof shape), d0, d1);
    *out = t;
    return 0;
}

struct matrices {
    const struct tensor *a, *b;
};

static enum tensor_dtype held_as(const struct matrices *m, enum lora_held held)
{
    if (held == LORA_HELD_BF16)
        return TENSOR_BF16;
    return m->a->dtype == m->b->dtype ? m->a->dtype : TENSOR_F32;
}

static enum dtype dtype_of(enum tensor_dtype t)
{
    return t == TENSOR_F32 ? DTYPE_F32 : t == TENSOR_F16 ? DTYPE_F16 : DTYPE_BF16;
}

/* Adds a site to a, with offsets; returns it. */
static struct lora_site *add_site(struct lora_adapter *a, const struct model_config *model,
                                  int site, int rank, float scaling, enum dtype dtype)
{
    enum site_kind kind = (enum site_kind)(site % SITE_KINDS);
    size_t n_a = (size_t)rank * (size_t)model_site_d_in(model, kind) * dtype_bytes(dtype);
    size_t n_b = (size_t)rank * (size_t)model_site_d_out(model, kind) * dtype_bytes(dtype);
    struct lora_site *s = &a->sites[a->n_sites++];
    *s = (struct lora_site){.site = site, .rank = rank, .scaling = scaling, .dtype = dtype};
    s->a_offset = a->n_bytes;
    s->b_offset = s->a_offset + aligned(n_a);
    s->end_offset = s->b_offset + aligned(n_b);
    a->n_bytes = s->end_offset;
    if (rank > a->rank_max)
        a->rank_max = rank;
    const char *name = model_site_kind_name(kind);
    if (strstr(a->targets, name) == NULL) {
        size_t at = strlen(a->targets);
        snprintf(a->targets + at, sizeof a->targets - at, "%s%s", at > 0 ? " " : "", name);
    }
    return s;
}

/* Which sites of a layer are parts of one fused linear (weights.c). */
static int fused_group(int kind)
{
    return kind <= SITE_V ? 0 : kind == SITE_O ? 1 : kind <= SITE_UP ? 2 : 3;
}

static void sum_ranks(struct lora_adapter *a, const struct model_config *model)
{
    int sum = 0, last = -1, n_sites = model_n_sites(model);
    int64_t all = n_sites - 1;
    for (int i = 0; i < a->n_sites; i++) {
        all += a->sites[i].rank;
        int site = a->sites[i].site;
        int group = site / SITE_KINDS * 4 + fused_group(site % SITE_KINDS);
        sum = group == last ? sum + a->sites[i].rank : a->sites[i].rank;
        last = group;
        if (sum > a->rank_sum_max)
            a->rank_sum_max = sum;
    }
    a->rank_mean = (int)(all / n_sites);
}

static int take_memory(struct lora_adapter *a, struct host_memory *home, struct err *err)
{
    void *data;
    if (home == NULL)
        data = host_memory_plain(a->n_bytes);
    else if (host_memory_take(home, &data, a->n_bytes, err) != 0)
        return -1;
    if (data == NULL)
        return err_set(err, ERR_NO_MEMORY, "no memory for its %zu bytes", a->n_bytes);
    a->data = data;
    a->home = home;
    return 0;
}

static int check_surplus(const struct tensor_dir *d, const struct lora_adapter *a, struct err *err)
{
    char module[SITE_NAME_BYTES], name[160];
    for (size_t i = 0; i < d->n_tensors; i++) {
        bool known = false;
        for (int s = 0; s < a->n_sites && !known; s++) {
            model_site_name(module, a->sites[s].site);
            known = find_matrix(d, module, "lora_A", name) == d->tensors[i] ||
                    find_matrix(d, module, "lora_B", name) == d->tensors[i];
        }
        if (!known)
            return err_set(err, ERR_INVALID,
                           "tensor %s belongs to no module that adapter_config.json and the base "
                           "model agree on",
                           d->tensors[i]->name);
    }
    return 0;
}

/* Modules of these models that LoRA could touch and this engine can't. */
static int refuse_other_modules(const struct lora_config *config, struct err *err)
{
    static const char *const others[] = {"model.embed_tokens", "lm_head"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        bool targeted;
        int rank;
        float scaling;
        /* Neither is a linear layer in the sense of "all-linear". */
        if (lora_config_module(config, others[i], true, &targeted, &rank, &scaling, err) != 0)
            return -1;
        if (targeted)
            return err_set(
                err, ERR_UNSUPPORTED,
                "adapter_config.json: target_modules takes in %s, which is not supported",
                strrchr(others[i], '.') != NULL ? strrchr(others[i], '.') + 1 : others[i]);
    }
    return 0;
}

/* Which sites, of what rank and dtype, and where in a's memory: all but the numbers. *matrices
 * [a->n_sites] is the caller's to free. */
static int plan(struct lora_adapter *a, struct matrices **matrices,
                const struct model_config *model, const struct lora_config *config,
                const struct tensor_dir *d, enum lora_held held, struct err *err)
{
    int n_sites = model_n_sites(model);
    char module[SITE_NAME_BYTES];
    *matrices = xcalloc((size_t)n_sites, sizeof **matrices);
    a->sites = xcalloc((size_t)n_sites, sizeof *a->sites);
    if (refuse_other_modules(config, err) != 0)
        return -1;
    for (int site = 0; site < n_sites; site++) {
        enum site_kind kind = (enum site_kind)(site % SITE_KINDS);
        bool targeted;
        int rank;
        float scaling;
        model_site_name(module, site);
        if (lora_config_module(config, module, false, &targeted, &rank, &scaling, err) != 0)
            return -1;
        if (!targeted)
            continue;
        struct matrices *m = &(*matrices)[a->n_sites];
        if (check_matrix(d, &m->a, module, "lora_A", rank, model_site_d_in(model, kind), err) !=
                0 ||
            check_matrix(d, &m->b, module, "lora_B", model_site_d_out(model, kind), rank, err) != 0)
            return -1;
        add_site(a, model, site, rank, scaling, dtype_of(held_as(m, held)));
    }
    if (a->n_sites == 0)
        return err_set(
            err, ERR_INVALID,
            "adapter_config.json: target_modules matches no linear module of the base model");
    if ((size_t)a->n_sites * 2 != d->n_tensors && check_surplus(d, a, err) != 0)
        return -1;
    sum_ranks(a, model);
    if (a->rank_sum_max > LORA_RANK_SUM_MAX)
        return err_set(err, ERR_UNSUPPORTED,
                       "ranks of one fused module sum to %d, at most %d are supported",
                       a->rank_sum_max, LORA_RANK_SUM_MAX);
    return 0;
}

/* To [begin, end) of a's memory, with zeros behind it. */
static void place(const struct lora_adapter *a, struct tensor_dir *d, const struct tensor *t,
                  enum tensor_dtype held, size_t begin, size_t end)
{
    size_t n_bytes = tensor_n_elements(t) * tensor_dtype_bytes(held);
    tensor_dir_place(d, t, a->data + begin, held);
    memset(a->data + begin + n_bytes, 0, end - begin - n_bytes);
}

static int fill(struct lora_adapter *a, const struct matrices *matrices, struct tensor_dir *d,
                enum lora_held held, struct host_memory *home, struct err *err)
{
    if (take_memory(a, home, err) != 0)
        return -1;
    for (int i = 0; i < a->n_sites; i++) {
        const struct lora_site *s = &a->sites[i];
        const struct matrices *m = &matrices[i];
        place(a, d, m->a, held_as(m, held), s->a_offset, s->b_offset);
        place(a, d, m->b, held_as(m, held), s->b_offset, s->end_offset);
    }
    return tensor_dir_read(d, err);
}

/* Not `read`: a gets its sites and n_bytes, and no numbers. */
static int open_files(struct lora_adapter *a, const struct model_config *model, const char *dir,
                      enum lora_held held, size_t max_bytes, bool read, struct host_memory *home,
                      struct err *err)
{
    struct adapter_files files;
    struct lora_config *config = NULL;
    struct matrices *matrices = NULL;
    /* Held in half of a file's bytes at least. */
    if (files_open(&files, dir, TENSOR_DIR_HEADERS,
                   max_bytes < SIZE_MAX / 2 ? 2 * max_bytes : SIZE_MAX, err) != 0)
        return -1;
    int rc = lora_config_parse(&config, (const char *)files.config.data, files.config.len,
                               "adapter_config.json", err);
    if (rc == 0)
        rc = plan(a, &matrices, model, config, &files.tensors, held, err);
    if (rc == 0 && a->n_bytes > max_bytes)
        rc = err_set(err, ERR_TOO_LARGE,
                     "it needs %zu bytes, %zu are allowed (engine.adapter_host_bytes)", a->n_bytes,
                     max_bytes);
    if (rc == 0 && read)
        rc = fill(a, matrices, &files.tensors, held, home, err);
    if (rc == 0 && read)
        a->content = digest_of(&files);
    free(matrices);
    lora_config_free(config);
    files_release(&files);
    return rc;
}

int lora_open(struct lora_adapter **out, const struct model_config *model, const char *dir,
              enum lora_held held, size_t max_bytes, struct host_memory *home, struct err *err)
{
    struct lora_adapter *a = xcalloc(1, sizeof *a);
    if (open_files(a, model, dir, held, max_bytes, true, home, err) != 0) {
        lora_close(a);
        return -1;
    }
    *out = a;
    return 0;
}

int lora_measure(size_t *n_bytes, const struct model_config *model, const char *dir,
                 enum lora_held held, size_t max_bytes, struct err *err)
{
    struct lora_adapter *a = xcalloc(1, sizeof *a);
    int rc = open_files(a, model, dir, held, max_bytes, false, NULL, err);
    *n_bytes = a->n_bytes;
    lora_close(a);
    return rc;
}

void lora_close(struct lora_adapter *a)
{
    if (a == NULL)
        return;
    if (a->home != NULL)
        host_memory_give(a->home, a->data, a->n_bytes);
    else
        free(a->data);
    free(a->sites);
    free(a);
}

int lora_move(struct lora_adapter *a, struct host_memory *home, struct err *err)
{
    void *to;
    BUG_IF(a->home != NULL);
    if (host_memory_take(home, &to, a->n_bytes, err) != 0)
        return -1;
    memcpy(to, a->data, a->n_bytes);
    free(a->data);
    a->data = to;
    a->home = home;
    return 0;
}

/* ---- random adapters --------------------------------------------------------------------- */

struct lora_adapter *lora_random_mixed(const struct model_config *model, const int *ranks,
                                       const float *scalings, enum dtype dtype, uint64_t seed)
{
    struct lora_adapter *a = xcalloc(1, sizeof *a);
    int n_sites = model_n_sites(model);
    size_t word = dtype_bytes(dtype);
    a->sites = xcalloc((size_t)n_sites, sizeof *a->sites);
    for (int site = 0; site < n_sites; site++)
        if (ranks[site] > 0)
            add_site(a, model, site, ranks[site], scalings != NULL ? scalings[site] : 1.0f, dtype);
    sum_ranks(a, model);
    BUG_IF(a->n_sites == 0 || a->rank_sum_max > LORA_RANK_SUM_MAX);
    a->data = noise_alloc(a->n_bytes);
    BUG_IF(a->data == NULL);
    for (int i = 0; i < a->n_sites; i++) {
        const struct lora_site *s = &a->sites[i];
        enum site_kind kind = (enum site_kind)(s->site % SITE_KINDS);
        int d_in = model_site_d_in(model, kind), d_out = model_site_d_out(model, kind);
        size_t n_a = (size_t)s->rank * (size_t)d_in, n_b = (size_t)s->rank * (size_t)d_out;
        uint8_t *at_a = a->data + s->a_offset, *at_b = a->data + s->b_offset;
        uint64_t seed_a = seed << 32 | (uint64_t)(2 * i);
        noise_fill(at_a, dtype, n_a, seed_a, 0, sqrtf(3.0f / (float)d_in), 1);
        noise_fill(at_b, dtype, n_b, seed_a + 1, 0, 0.1f / (float)s->rank, 1);
        memset(at_a + n_a * word, 0, s->b_offset - s->a_offset - n_a * word); /* between them */
        memset(at_b + n_b * word, 0, s->end_offset - s->b_offset - n_b * word);
    }
    struct sha256_digest digest = sha256(a->data, a->n_bytes);
    memcpy(a->content.bytes, digest.bytes, 32);
    return a;
}

struct lora_adapter *lora_random(const struct model_config *model, int rank, enum dtype dtype,
                                 uint64_t seed)
{
    int n_sites = model_n_sites(model), *ranks = xcalloc((size_t)n_sites, sizeof *ranks);
    for (int site = 0; site < n_sites; site++)
        ranks[site] = rank;
    struct lora_adapter *a = lora_random_mixed(model, ranks, NULL, dtype, seed);
    free(ranks);
    return a;
}
