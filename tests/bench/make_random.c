/* make_random: a random model of a named shape and random adapters, on disk.
 *
 *     make_random SHAPE DIR [ADAPTERS [RANK [DTYPE]]]
 *     make_random MODEL/ DIR ADAPTERS ...      adapters only, for a model that is there
 *     make_random only SHAPE DIR ADAPTERS ...  adapters only, for a model that needs not be there
 *
 * Writes DIR/model (config.json, 32 shards or fewer, their index, tokenizer.json) and
 * DIR/adapter-00 and so on (PEFT layout), all different, in BF16, or DTYPE: F16 or F32. The numbers
 * are those of `tributary bench`. The tokenizer knows 256 bytes and otherwise words that nothing
 * merges into: it can tell what ids say, which is all that a load of token ids needs. Meant for a
 * folder with room: the 8b shape takes 16 GB, an adapter of rank 16 for it 84 MB. */
#include "engine/bench.h"
#include "engine/lora.h"
#include "engine/model.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SHARDS_MAX = 32, THREADS_MAX = 32 };

_Noreturn static void die(const char *what, const char *why)
{
    fprintf(stderr, "make_random: %s: %s\n", what, why);
    exit(1);
}

static void write_text(const char *dir, const char *name, struct buf *text)
{
    char *path = xasprintf("%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    if (f == NULL || fwrite(text->data, 1, text->len, f) != text->len || fclose(f) != 0)
        die(path, "cannot be written");
    free(path);
    buf_release(text);
}

/* ---- safetensors ------------------------------------------------------------------------- */

struct piece {
    const char *name;
    int64_t shape[2];
    int n_dims;
    enum tensor_dtype dtype;
    const uint8_t *data;
    size_t n_bytes;
};

/* 8 bytes of header length, the header as JSON, the tensors. Source: the format's own README. */
static void write_safetensors(const char *path, const struct piece *pieces, size_t n)
{
    struct buf header = BUF_INIT;
    size_t at = 0;
    buf_append_str(&header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < n; i++) {
        const struct piece *p = &pieces[i];
        buf_appendf(&header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%" PRId64, p->name,
                    tensor_dtype_name(p->dtype), p->shape[0]);
        if (p->n_dims == 2)
            buf_appendf(&header, ",%" PRId64, p->shape[1]);
        buf_appendf(&header, "],\"data_offsets\":[%zu,%zu]}", at, at + p->n_bytes);
        at += p->n_bytes;
    }
    buf_append_str(&header, "}");
    while (header.len % 8 != 0)
        buf_append_byte(&header, ' ');
    uint64_t n_header = header.len; /* little-endian, as every machine here */
    FILE *f = fopen(path, "w");
    bool ok = f != NULL && fwrite(&n_header, 8, 1, f) == 1 &&
              fwrite(header.data, 1, header.len, f) == header.len;
    for (size_t i = 0; ok && i < n; i++)
        ok = fwrite(pieces[i].data, 1, pieces[i].n_bytes, f) == pieces[i].n_bytes;
    if (!ok || fclose(f) != 0)
        die(path, "cannot be written");
    buf_release(&header);
}

/* ---- the model --------------------------------------------------------------------------- */

struct sharding {
    const struct model *model;
    const char *dir;
    size_t n_shards;
    atomic_size_t next;
};

static char *shard_name(const struct sharding *s, size_t shard)
{
    return xasprintf("model-%05zu-of-%05zu.safetensors", shard + 1, s->n_shards);
}

static void *write_shards(void *context)
{
    struct sharding *s = context;
    const struct tensor_dir *d = &s->model->tensors;
    for (size_t shard; (shard = atomic_fetch_add(&s->next, 1)) < s->n_shards;) {
        struct piece *pieces = xcalloc(d->n_tensors, sizeof *pieces);
        size_t n = 0;
        for (size_t i = shard; i < d->n_tensors; i += s->n_shards) {
            const struct tensor *t = d->tensors[i];
            pieces[n++] = (struct piece){t->name,   {t->shape[0], t->n_dims > 1 ? t->shape[1] : 0},
                                         t->n_dims, t->dtype,
                                         t->data,   t->n_bytes};
        }
        char *name = shard_name(s, shard), *path = xasprintf("%s/%s", s->dir, name);
        write_safetensors(path, pieces, n);
        free(name);
        free(path);
        free(pieces);
    }
    return NULL;
}

static void in_threads(void *(*work)(void *), void *context)
{
    pthread_t threads[THREADS_MAX];
    long n_cores = sysconf(_SC_NPROCESSORS_ONLN);
    int n = 0;
    while (n < THREADS_MAX && n + 1 < n_cores &&
           pthread_create(&threads[n], NULL, work, context) == 0)
        n++;
    work(context);
    for (int i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
}

static void write_config(const struct model_config *c, const char *dir)
{
    struct buf text = BUF_INIT;
    buf_appendf(&text,
                "{\n  \"architectures\": [\"LlamaForCausalLM\"],\n  \"model_type\": \"llama\",\n"
                "  \"vocab_size\": %d,\n  \"hidden_size\": %d,\n  \"intermediate_size\": %d,\n"
                "  \"num_hidden_layers\": %d,\n  \"num_attention_heads\": %d,\n"
                "  \"num_key_value_heads\": %d,\n  \"head_dim\": %d,\n"
                "  \"max_position_embeddings\": %d,\n  \"rms_norm_eps\": %g,\n"
                "  \"tie_word_embeddings\": %s,\n  \"hidden_act\": \"silu\",\n"
                "  \"attention_bias\": false,\n  \"mlp_bias\": false,\n  \"rope_theta\": %g,\n",
                c->vocab, c->hidden, c->ffn, c->n_layers, c->n_heads, c->n_kv_heads, c->head_dim,
                c->max_context, (double)c->norm_eps, c->tied ? "true" : "false",
                (double)c->rope.theta);
    if (c->rope.scaling == ROPE_LLAMA3)
        buf_appendf(&text,
                    "  \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": %g, "
                    "\"low_freq_factor\": %g, \"high_freq_factor\": %g, "
                    "\"original_max_position_embeddings\": %g},\n",
                    (double)c->rope.factor, (double)c->rope.low_freq_factor,
                    (double)c->rope.high_freq_factor, (double)c->rope.original_context);
    buf_append_str(&text, "  \"torch_dtype\": \"bfloat16\"\n}\n");
    write_text(dir, "config.json", &text);
}

static void write_index(const struct sharding *s)
{
    const struct tensor_dir *d = &s->model->tensors;
    struct buf text = BUF_INIT;
    size_t n_bytes = 0;
    for (size_t i = 0; i < d->n_tensors; i++)
        n_bytes += d->tensors[i]->n_bytes;
    buf_appendf(&text, "{\"metadata\":{\"total_size\":%zu},\"weight_map\":{", n_bytes);
    for (size_t i = 0; i < d->n_tensors; i++) {
        char *name = shard_name(s, i % s->n_shards);
        buf_appendf(&text, "%s\n\"%s\":\"%s\"", i > 0 ? "," : "", d->tensors[i]->name, name);
        free(name);
    }
    buf_append_str(&text, "}}\n");
    write_text(s->dir, "model.safetensors.index.json", &text);
}

/* Byte-level BPE without merges. The 256 bytes are written as GPT-2 does: printable ones as
 * themselves, the others from U+0100 on. */
static void append_utf8(struct buf *text, unsigned c)
{
    if (c == '"' || c == '\\')
        buf_append_byte(text, '\\');
    if (c < 0x80) {
        buf_append_byte(text, (uint8_t)c);
    } else {
        buf_append_byte(text, (uint8_t)(0xc0 | c >> 6));
        buf_append_byte(text, (uint8_t)(0x80 | (c & 0x3f)));
    }
}

static void write_tokenizer(int vocab, const char *dir)
{
    struct buf text = BUF_INIT;
    unsigned unprintable = 0x100;
    buf_append_str(&text, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,"
                          "\"added_tokens\":[],\"normalizer\":null,\"pre_tokenizer\":{\"type\":"
                          "\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,"
                          "\"use_regex\":true},\"post_processor\":null,\"decoder\":{\"type\":"
                          "\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,"
                          "\"use_regex\":true},\"model\":{\"type\":\"BPE\",\"dropout\":null,"
                          "\"unk_token\":null,\"continuing_subword_prefix\":null,"
                          "\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,"
                          "\"ignore_merges\":false,\"vocab\":{");
    for (unsigned id = 0; id < (unsigned)vocab; id++) {
        buf_append_str(&text, id > 0 ? ",\n\"" : "\"");
        if (id < 256) {
            bool printable = (id >= 33 && id <= 126) || (id >= 161 && id <= 172) || id >= 174;
            append_utf8(&text, printable ? id : unprintable++);
        } else {
            buf_appendf(&text, "\xc4\xa0w%u", id); /* a space and a word */
        }
        buf_appendf(&text, "\":%u", id);
    }
    buf_append_str(&text, "},\"merges\":[]}}\n");
    write_text(dir, "tokenizer.json", &text);
}

static void make_model(const struct model_config *config, const char *shape, const char *dir)
{
    struct err err = {0};
    struct model *m;
    if (model_random(&m, config, shape, 1, &err) != 0)
        die(dir, err.message);
    struct sharding s = {.model = m, .dir = dir, .n_shards = m->tensors.n_tensors};
    if (s.n_shards > SHARDS_MAX)
        s.n_shards = SHARDS_MAX;
    in_threads(write_shards, &s);
    write_config(config, dir);
    write_index(&s);
    write_tokenizer(config->vocab, dir);
    model_close(m);
}

/* ---- adapters ---------------------------------------------------------------------------- */

struct adapters {
    const struct model_config *config;
    const char *dir;
    int n, rank;
    enum tensor_dtype dtype;
    atomic_int next;
};

static void write_adapter(const struct adapters *all, int i, const struct lora_adapter *a)
{
    struct err err = {0};
    char *dir = xasprintf("%s/adapter-%02d", all->dir, i);
    if (dir_ensure(dir, &err) != 0)
        die(dir, err.message);
    size_t n = (size_t)a->n_sites * 2;
    size_t width = tensor_dtype_bytes(all->dtype);
    struct piece *pieces = xcalloc(n, sizeof *pieces);
    for (int s = 0; s < a->n_sites; s++) {
        const struct lora_site *site = &a->sites[s];
        enum site_kind kind = (enum site_kind)(site->site % SITE_KINDS);
        char module[SITE_NAME_BYTES];
        int d_in = model_site_d_in(all->config, kind), d_out = model_site_d_out(all->config, kind);
        model_site_name(module, site->site);
        pieces[2 * s] = (struct piece){xasprintf("base_model.model.%s.lora_A.weight", module),
                                       {site->rank, d_in},
                                       2,
                                       all->dtype,
                                       a->data + site->a_offset,
                                       (size_t)site->rank * (size_t)d_in * width};
        pieces[2 * s + 1] = (struct piece){xasprintf("base_model.model.%s.lora_B.weight", module),
                                           {d_out, site->rank},
                                           2,
                                           all->dtype,
                                           a->data + site->b_offset,
                                           (size_t)site->rank * (size_t)d_out * width};
    }
    char *path = xasprintf("%s/adapter_model.safetensors", dir);
    write_safetensors(path, pieces, n);
    for (size_t p = 0; p < n; p++)
        free((void *)(uintptr_t)pieces[p].name);
    free(pieces);
    struct buf text = BUF_INIT;
    buf_appendf(&text,
                "{\n  \"peft_type\": \"LORA\",\n  \"task_type\": \"CAUSAL_LM\",\n  \"r\": %d,\n"
                "  \"lora_alpha\": %d,\n  \"bias\": \"none\",\n  \"target_modules\": [\"q_proj\", "
                "\"k_proj\", \"v_proj\", \"o_proj\", \"gate_proj\", \"up_proj\", \"down_proj\"]\n"
                "}\n",
                all->rank, all->rank);
    write_text(dir, "adapter_config.json", &text);
    free(path);
    free(dir);
}

static void *write_adapters(void *context)
{
    struct adapters *all = context;
    for (int i; (i = atomic_fetch_add(&all->next, 1)) < all->n;) {
        enum dtype dtype = all->dtype == TENSOR_F32   ? DTYPE_F32
                           : all->dtype == TENSOR_F16 ? DTYPE_F16
                                                      : DTYPE_BF16;
        struct lora_adapter *a = lora_random(all->config, all->rank, dtype, 1000 + (uint64_t)i);
        write_adapter(all, i, a);
        lora_close(a);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    bool only = argc > 1 && strcmp(argv[1], "only") == 0;
    argc -= only;
    argv += only;
    if (argc < 3 || argc > 6)
        die("usage", "make_random SHAPE DIR [ADAPTERS [RANK [DTYPE]]]");
    struct err err = {0};
    struct model *model = NULL;
    bool is_dir = strchr(argv[1], '/') != NULL;
    if (is_dir && model_open(&model, argv[1], &err) != 0)
        die(argv[1], err.message);
    const struct model_config *config = is_dir ? &model->config : bench_shape(argv[1]);
    struct adapters all = {.config = config,
                           .dir = argv[2],
                           .n = argc > 3 ? atoi(argv[3]) : 0,
                           .rank = argc > 4 ? atoi(argv[4]) : 16,
                           .dtype = TENSOR_F32};
    const char *dtype = argc > 5 ? argv[5] : "BF16";
    while (strcmp(tensor_dtype_name(all.dtype), dtype) != 0)
        if (all.dtype++ == TENSOR_BF16)
            die(dtype, "is none of BF16, F16 and F32");
    if (config == NULL || all.n < 0 || all.n > 100000 || all.rank < 1 || all.rank > 1024)
        die(argv[1], "no such shape, or ADAPTERS or RANK is out of range");
    char *dir = xasprintf("%s/model", argv[2]);
    if (dir_ensure(is_dir || only ? argv[2] : dir, &err) != 0)
        die(dir, err.message);
    if (!is_dir && !only)
        make_model(config, argv[1], dir);
    in_threads(write_adapters, &all);
    model_close(model);
    free(dir);
    return 0;
}
