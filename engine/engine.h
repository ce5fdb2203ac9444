/* engine.h: the door of the compute half.
 *
 * An engine is one base model on one device, its adapters, its KV cache and the sequences running
 * on it. It knows tensors, tokens and digests; it knows no HTTP, no names, no chain and no money.
 *
 * Threads. engine_open starts one thread, which alone touches the backend, the pools and the
 * sequences. Every function here may be called from any thread; they talk to that thread through a
 * bounded queue. Events come back through `on_events`, called from the engine thread once a step
 * with all that the step produced; it must not block and must not call engine_submit or
 * engine_adapter_* (engine_cancel is fine).
 *
 * A request is one sequence. Its life: submitted -> waiting -> running (prefill in chunks, then one
 * token a step) -> finished, exactly one ENGINE_EVENT_FINISHED, after which its `user` pointer is
 * never seen again. Preemption is invisible but for time: the bits don't change (see
 * kernels/ops.h).
 *
 * Memory is taken at open; after that no step allocates device memory. How much of it adapters and
 * the KV cache have may change (engine_options).
 *
 * K and V that a sequence leaves behind are kept while nobody needs their memory, and found by
 * later ones that begin with the same tokens under the same adapters (contents, weights, order):
 * those begin their prefill behind them. Like preemption this changes times and no bit. Times do
 * tell, however, that somebody sent that beginning before: requests whose prompts nobody may guess
 * piece by piece name a salt, and find only what was left under the same one, or set
 * no_prefix_cache. */
#ifndef TRIBUTARY_ENGINE_ENGINE_H
#define TRIBUTARY_ENGINE_ENGINE_H

#include "node/base/clock.h"
#include "node/base/digest.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct engine;
struct tokenizer;     /* engine/tokenizer/tokenizer.h */
struct chat_template; /* engine/chat_template/chat_template.h */

enum { ENGINE_TOP_LOGPROBS_MAX = 20, ENGINE_ADAPTERS_MAX = 8 };

struct engine_event;

struct engine_options {
    const char *model_dir; /* Hugging Face layout */
    const char *backend;   /* "cpu" (default when NULL), "ref", "cuda" */
    int n_threads;         /* 0: all cores */
    /* "file" (default when NULL): base weights in the file's dtype; "int8": made int8 at open, one
     * scale an output column. Half the bytes a token of bf16, and another model: answers differ.
     * cpu and ref; cuda's open refuses. */
    const char *weights;
    /* What adapters' A and B are held as, in host memory and on the device. "auto" (default when
     * NULL): as bf16 where activations and base weights are bf16, as those of a bf16 model on cuda
     * are; else as in their files. "file", "bf16": so in any case (engine/lora.h says why). */
    const char *adapter_dtype;
    /* Device memory. A device with memory of its own (cuda) is filled: of gpu_memory (0: 0.9) times
     * what was free there when the engine opened, adapters and KV cache have what weights and
     * workspace leave. Sizes in bytes fix a side: adapter_bytes (0: a quarter of it) and kv_bytes
     * (0: the rest, or less if max_seqs * max_context needs less); elsewhere 0 means 512 MiB and
     * 1 GiB. With both 0 they share: these are the sizes they begin with (where the KV cache needs
     * less, adapters have it on a device of its own), and memory goes to and fro, to where it is
     * worth most; each keeps a quarter, and the KV cache room for max_context. shared_bytes is
     * what they have together then; 0: all that is left, elsewhere 1.5 GiB. */
    float gpu_memory;
    size_t kv_bytes;
    size_t adapter_bytes;
    size_t shared_bytes;       /* ignored with a size for either */
    size_t adapter_host_bytes; /* host memory for adapters not on the device; 0: 2 GiB */
    int max_seqs;    /* sequences running at once; 0: 64 (cuda: 256); never more than max_rows */
    int max_rows;    /* rows of a step, i.e. the chunk of prefill; 0: 256 (cuda: 2048) */
    int max_waiting; /* sequences waiting; 0: 1024. Beyond: ERR_BUSY. Of several payers, one
                        alone fills it to eight ninths at most (engine_model.max_at_once) */
    int max_context; /* 0: the model's */
    bool no_prefix_cache; /* compute every prompt from its first token */
    bool debug_preempt;   /* tests: preempt some running sequence every few steps */
    bool debug_pad;       /* tests: fill decode steps up as if they were recorded */
    bool debug_overlap;   /* tests: enqueue a step ahead also where nothing is recorded */

    void (*on_events)(void *context, const struct engine_event *events, size_t n);
    void *context;
};

struct engine_sampling { /* zeroed: greedy */
    float temperature;   /* 0: greedy */
    int32_t top_k;       /* 0: off */
    float top_p;         /* 0 or 1: off */
    float min_p;
    float repetition_penalty; /* 0 or 1: off */
    float frequency_penalty, presence_penalty;
    uint64_t seed;
    int32_t
        n_top_logprobs; /* -1: no log-probabilities; 0 to 20: the token's own, and so many others */
    const int32_t *bias_ids; /* [n_bias]; copied at submit */
    const float *bias_values;
    int32_t n_bias;
};

struct engine_request {
    const int32_t *prompt; /* [n_prompt] token ids; copied */
    int32_t n_prompt;      /* >= 1 */
    int32_t max_tokens;    /* >= 0 (0 with prompt_logprobs: score only); bounded by the context */
    bool ignore_eos;
    bool prompt_logprobs; /* score the prompt: one ENGINE_EVENT_PROMPT for each position after the
                             first. It finds nothing in the prefix cache: all logits are needed */
    bool no_prefix_cache; /* finds nothing in the prefix cache and leaves nothing there */
    const void *prefix_salt; /* [n_prefix_salt] bytes, looked at during the call; 0: shared by all
                                who name none */
    size_t n_prefix_salt;
    const int32_t *stop_ids; /* further ids that end the sequence, beside the model's eos; copied */
    int32_t n_stop_ids;
    int32_t n_adapters; /* 0: base model */
    struct {
        struct content_digest content; /* loaded before; see engine_adapter_load */
        float weight;                  /* 1 for a single adapter; may be negative */
    } adapters[ENGINE_ADAPTERS_MAX];
    struct engine_sampling sampling;
    struct monotonic_us deadline; /* 0: none; passed: finished with ENGINE_FINISH_DEADLINE */
    /* Whose share of the device this comes out of: payers with work to do get equal shares, by
     * weight, in tokens (engine/payers.h). Any number, 0 is one too. */
    uint64_t payer;
    float payer_weight; /* the payer's share against others', from now on: 0.001 to 1000; 0: 1 */
    int32_t priority;   /* -100 to 100; higher goes first, whatever the shares; 0 is normal */
    void *user;         /* comes back in every event */
};

enum engine_finish {
    ENGINE_FINISH_STOP,      /* eos or a stop id; that token is the last ENGINE_EVENT_TOKEN */
    ENGINE_FINISH_LENGTH,    /* max_tokens, or the context is full */
    ENGINE_FINISH_CANCELLED, /* engine_cancel */
    ENGINE_FINISH_DEADLINE,
    ENGINE_FINISH_NOT_FINITE, /* all logits are NaN or infinite: there is no token to draw; the
                                 adapters or their weights do that to a sound model */
    ENGINE_FINISH_ERROR,      /* the device failed, or the engine is closing */
};

enum engine_event_kind { ENGINE_EVENT_TOKEN, ENGINE_EVENT_PROMPT, ENGINE_EVENT_FINISHED };

struct engine_event {
    enum engine_event_kind kind;
    void *user;
    /* TOKEN and PROMPT */
    int32_t token;
    int32_t position; /* in the sequence, from 0 */
    float logprob;    /* meaningful when log-probabilities were asked for */
    int32_t n_top;
    int32_t top_ids[ENGINE_TOP_LOGPROBS_MAX];
    float top_logprobs[ENGINE_TOP_LOGPROBS_MAX];
    bool is_eos; /* the token ends the sequence and is not text */
    /* FINISHED */
    enum engine_finish finish;
    int32_t n_prompt_cached; /* of the prompt, tokens whose K and V were in the prefix cache */
};

/* Opens the model and starts the engine thread. Fails naming the file and the reason. */
int engine_open(struct engine **out, const struct engine_options *options, struct err *err);

/* Cancels what runs, joins the thread, frees all. Every submitted request has had its FINISHED
 * event when this returns. Quiet on NULL. */
void engine_close(struct engine *e);

/* ---- the model ---------------------------------------------------------------------------------
 */

struct engine_model {
    char name[128];     /* the directory's last component */
    struct model_id id; /* of the files: what adapters are made for, and what is registered */
    /* Of the weights that compute, which is what an answer's receipt has to name: id, or with int8
     * weights int8_model_id(id). */
    struct model_id served_id;
    const char *weights;       /* "file" or "int8" */
    const char *adapter_dtype; /* what adapters are held as: "file" or "bf16" */
    int vocab, hidden, n_layers, n_heads, n_kv_heads, head_dim, ffn, max_context;
    int max_at_once; /* sequences that one payer can submit together, given an empty queue */
    uint64_t n_params;
    int32_t bos; /* -1: none */
    int32_t eos[8];
    int n_eos;
    char backend[160];
};

const struct engine_model *engine_model(const struct engine *e); /* lives as long as e */

/* The id of the model that a base model becomes under weights = "int8":
 * sha256("<id, hex>  int8, a scale an output column\n"). Whoever has the base model's files can
 * make the same weights, and the same id, again. */
struct model_id int8_model_id(struct model_id base);
const struct tokenizer *
engine_tokenizer(const struct engine *e); /* NULL: the model has no tokenizer.json */
const struct chat_template *
engine_chat_template(const struct engine *e); /* NULL: the model has none */

/* ---- adapters ----------------------------------------------------------------------------------
 */

struct engine_adapter {
    struct content_digest content;
    int rank_max;
    int n_sites;       /* linear modules touched */
    size_t n_bytes;    /* of A and B as they are held (engine_options.adapter_dtype) */
    char targets[256]; /* "q_proj v_proj ..." */
};

/* sha256 over the adapter's files, sorted by name: for each, "<sha256 hex>  <size>  <name>\n".
 * Only adapter_config.json and adapter_model.safetensors (or its shards and index) count. */
int adapter_content_digest(const char *dir, struct content_digest *out, struct err *err);

/* Reads and checks the adapter in dir (PEFT layout) against the base model and makes it usable by
 * its digest. Loading one that is loaded already counts one more reference. Reads files in the
 * calling thread: running sequences are not disturbed. The error names the file, tensor or key; not
 * dir, which is nothing to tell whoever asked for the adapter. */
int engine_adapter_load(struct engine *e, const char *dir, struct engine_adapter *out,
                        struct err *err);

/* The same; as long as there is no room for it (ERR_BUSY, ERR_NO_MEMORY) again(context) says
 * whether to go on, having waited or made room. What was read and checked is kept meanwhile, beside
 * what adapter_host_bytes counts, and is loaded under its own digest whatever becomes of the files.
 */
int engine_adapter_load_when(struct engine *e, const char *dir, bool (*again)(void *context),
                             void *context, struct engine_adapter *out, struct err *err);

/* The same reading and checks, and nothing is kept: for those who want to know an adapter's digest
 * and size before they need it. Any thread; blocks while it reads. */
int engine_adapter_check(struct engine *e, const char *dir, struct engine_adapter *out,
                         struct err *err);

/* What loading it takes of host memory, and then of the device: from its files' headers, with the
 * checks that these allow. Any thread. */
int engine_adapter_measure(struct engine *e, const char *dir, size_t *n_bytes, struct err *err);

/* For creators: the same checks against a model in model_dir, without an engine; the error names
 * the directory, too; n_bytes are of adapters held as in their files. model (may be NULL) gets the
 * base model's id and name [128]. Slow for a large model: its id is a hash over all its weights. */
int engine_check_adapter(const char *model_dir, const char *adapter_dir, struct model_id *model,
                         char *model_name, struct engine_adapter *out, struct err *err);

/* One reference less; at zero its host memory is freed once no sequence uses it. */
int engine_adapter_drop(struct engine *e, const struct content_digest *content, struct err *err);

/* Where a loaded adapter is. ERR_NOT_FOUND: it isn't loaded. */
struct engine_residency {
    size_t n_bytes; /* of A and B, in host memory and on the device each */
    int rank_max;
    int n_users; /* requests that were submitted and not finished */
    bool on_device, kept;
    uint64_t n_uses, n_uploads; /* admissions; of these, those for which it was brought in */
};
int engine_adapter_residency(struct engine *e, const struct content_digest *content,
                             struct engine_residency *out, struct err *err);

/* The device's tier by hand. These wait for the engine thread, a step at most, so they must not be
 * called from on_events. ERR_CANCELLED: the engine is closing; ERR_INTERNAL: the device has failed.
 *
 * warm: begins to bring a loaded adapter to the device, as is done by itself for those whose
 * requests wait. ERR_NOT_FOUND: it isn't loaded; ERR_BUSY: no room that may be used for it now.
 * keep: warm, and then it isn't evicted (but to let a request in that fits in no other way), and
 * stays loaded; keep false ends that. ERR_TOO_LARGE: over half of what adapters began with would
 * be kept.
 * evict: takes it off the device, loaded or not; fine when it isn't there. ERR_BUSY: a running
 * request uses it, or it is on its way. */
int engine_adapter_warm(struct engine *e, const struct content_digest *content, struct err *err);
int engine_adapter_keep(struct engine *e, const struct content_digest *content, bool keep,
                        struct err *err);
int engine_adapter_evict(struct engine *e, const struct content_digest *content, struct err *err);

/* ---- requests ----------------------------------------------------------------------------------
 */

/* Copies the request. Fails with ERR_INVALID (token out of range, too long for the context),
 * ERR_NOT_FOUND (adapter not loaded), ERR_BUSY (queue full, or full enough of this
 * payer's), ERR_TOO_LARGE
 * (its adapters together exceed what adapters began with), ERR_CANCELLED (closing) or ERR_INTERNAL
 * (the device has failed). No event comes for a refused one. *id (may be NULL) names it for
 * engine_cancel and is never reused. */
int engine_submit(struct engine *e, const struct engine_request *request, uint64_t *id,
                  struct err *err);

/* Asks for the end of a request. The FINISHED event still comes (with another reason if it was
 * faster). Unknown or finished ids are ignored. */
void engine_cancel(struct engine *e, uint64_t id);

/* ---- counters ----------------------------------------------------------------------------------
 */

enum { ENGINE_ENTROPY_BUCKETS = 9 };

struct engine_stats {
    uint64_t n_steps, n_decode_steps;         /* a decode step has at least one decoding row */
    uint64_t n_steps_ahead, n_steps_replayed; /* enqueued before the last one was done; recorded */
    uint64_t n_rows_prefill, n_rows_decode;
    uint64_t n_preemptions;
    /* Prompt tokens found and not found in the prefix cache, of requests that looked there when
     * they began. */
    uint64_t n_prefix_hit_tokens, n_prefix_miss_tokens;
    uint64_t n_prefix_evictions; /* blocks */
    /* The device's tier: admissions of an adapter that found it there or on its way; copies begun,
     * of these before an admission; evictions. */
    uint64_t n_adapter_hits, n_adapter_uploads, n_adapter_prefetches, n_adapter_evictions;
    int n_running, n_waiting;
    int n_blocks;        /* with memory now */
    int n_blocks_free;   /* used by no sequence; some of them are in the prefix cache */
    int n_blocks_cached; /* in the prefix cache, used or not */
    size_t adapter_bytes_used, adapter_bytes_total, adapter_bytes_kept; /* total: now */
    size_t kv_bytes_total;                                              /* now */
    /* Where they share: what moves at once (0: they don't), and how often it did. */
    size_t brick_bytes;
    uint64_t n_bricks_to_kv, n_bricks_to_adapters;
    uint64_t n_blocks_moved; /* blocks in use that made way at the KV cache's end */
    /* held: taken from the machine; total: what adapter_host_bytes came to */
    size_t adapter_host_bytes_used, adapter_host_bytes_held, adapter_host_bytes_total;
    int n_adapters_resident, n_adapters_loaded;
    /* decode steps by the number of distinct adapters they held: 0, 1, 2, 3, 4, 5-8, 9-16, 17-64,
     * more. The base model is not an adapter. */
    uint64_t steps_by_distinct[ENGINE_ENTROPY_BUCKETS];
    uint64_t last_step_us; /* duration of the newest step */
    struct monotonic_us
        progress; /* when the engine thread last turned its loop: a watchdog's input */
};

void engine_stats(const struct engine *e, struct engine_stats *out);

#endif
