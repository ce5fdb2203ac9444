/* cmd_serve: a node from its first byte to its last.
 *
 * Loading a model may take minutes, so all that can be told without it is told before it: first
 * what leaves nothing behind when it is wrong, then what makes files. opening_steps below is the
 * order:
 *
 *     configuration, names and directories, key files, HTTP     no trace yet
 *     data directory, wallet, ledger                            files
 *     engine                                                    minutes
 *     service, adapters
 *
 * The door is the first to open and the first to close: a port that is taken is known at once, and
 * /healthz and /readyz answer while the model is loaded; everything else is 503 until all parts
 * are there (node->opened, routes.c). "listening on URL" is said then and not before.
 *
 * On SIGTERM, SIGINT or SIGHUP (there is nothing that is read again): the listening socket closes
 * and /readyz says 503; what runs may finish until server.drain_timeout; the rest is cancelled,
 * billed for what was written, and told so; then the parts close. A second SIGTERM or SIGINT skips
 * the waiting. While the node is still opening there is nothing to wait for: open_all says how
 * that is left. */
#include "attribution/attribution.h"
#include "chain/rpc.h"
#include "engine/engine.h"
#include "node/adapter_store.h"
#include "node/admission.h"
#include "node/api_keys.h"
#include "node/base/buf.h"
#include "node/base/log.h"
#include "node/cli/cmd_wallet.h"
#include "node/cli/commands.h"
#include "node/cli/serve_wallet.h"
#include "node/config.h"
#include "node/deployment.h"
#include "node/http.h"
#include "node/json_util.h"
#include "node/metrics.h"
#include "node/node.h"
#include "node/service.h"
#include "node/workers.h"
#include "wallet/wallet.h"

#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* Queries run beside the HTTP threads; more than these wait, more than the queue get 503. */
enum { QUERY_THREADS = 2, QUERY_QUEUE = 256 };
enum { LARGE_PIECE_BYTES = 256 << 10 };
enum { OPENING_TICK_MS = 10 }; /* how often it is looked whether the node is open */

struct serving {
    const struct config *c;
    struct node node;
    struct deployment deployment;
    struct wallet *wallet;
    struct rpc *rpc;
    _Atomic bool hang_up; /* no chain endpoint is worth waiting for any more */
    char *base_name;
    sigset_t signals; /* that end the node; blocked in all threads */

    pthread_mutex_t lock; /* while the node is opened */
    int told;             /* the signal that came; 0: none yet */
    enum { OPENER_STEPS, OPENER_LOADS, OPENER_IS_LEFT } opener;
    struct err opening_err;
    int opening_rc;
};

/* For the opener, between things that take a while: fails once a signal has come. */
static int may_go_on(struct serving *s, struct err *err)
{
    pthread_mutex_lock(&s->lock);
    bool told = s->told != 0;
    pthread_mutex_unlock(&s->lock);
    return told ? err_set(err, ERR_CANCELLED, "told to end while the node was opened") : 0;
}

/* ---- wallet and ledger -------------------------------------------------------------------------
 */

static int open_wallet(struct serving *s, struct err *err)
{
    s->wallet = serve_wallet_open(s->c, s->deployment.chain_id == 0, err);
    return s->wallet != NULL ? 0 : -1;
}

static int load_deployment(struct serving *s, struct err *err)
{
    if (deployment_load(&s->deployment, s->c, err) != 0)
        return -1;
    /* Whoever names an endpoint wants to be paid; receipts without a chain can never be settled. */
    if (s->deployment.chain_id != 0 || config_list_len(s->c, CONFIG_CHAIN_RPC) == 0)
        return 0;
    return err_set(err, ERR_INVALID,
                   "an endpoint is named (chain.rpc), but no chain: add --deployment FILE, or "
                   "--chain-id and the contracts' addresses, or leave out --rpc");
}

static int open_rpc(struct serving *s, struct err *err)
{
    size_t n = config_list_len(s->c, CONFIG_CHAIN_RPC);
    if (n == 0 || s->deployment.chain_id == 0)
        return 0;
    const char *urls[RPC_ENDPOINTS_MAX];
    if (n > RPC_ENDPOINTS_MAX)
        return err_set(err, ERR_INVALID, "chain.rpc names more than %d endpoints",
                       RPC_ENDPOINTS_MAX);
    for (size_t i = 0; i < n; i++)
        urls[i] = config_list_item(s->c, CONFIG_CHAIN_RPC, i);
    s->rpc = rpc_open(
        &(struct rpc_options){
            .urls = urls, .n_urls = n, .chain_id = s->deployment.chain_id, .cancel = &s->hang_up},
        err);
    return s->rpc != NULL ? 0 : -1;
}

static struct address operator_address(const struct serving *s)
{
    struct address a = {0};
    if (config_address(s->c, CONFIG_CHAIN_OPERATOR, a.bytes))
        return a;
    char *dir = cmd_wallet_dir(s->c);
    struct wallet_entry entry;
    /* The stake key's address is public; the key itself need not be opened, or be here at all. */
    if (wallet_key_peek(dir, "operator", &entry, NULL) == 0)
        memcpy(a.bytes, entry.address, 20);
    free(dir);
    return a;
}

static int open_ledger(struct serving *s, struct err *err)
{
    const struct config *c = s->c;
    const struct deployment *d = &s->deployment;
    struct ledger_options o = {
        .data_dir = config_string(c, CONFIG_DATA_DIR),
        .wallet = s->wallet,
        .signer_key = config_string(c, CONFIG_WALLET_SIGNER),
        .house_key = config_string(c, CONFIG_WALLET_HOUSE),
        .operator_address = operator_address(s),
        .rates = {config_amount(c, CONFIG_PRICES_PROMPT_PER_1K),
                  config_amount(c, CONFIG_PRICES_COMPLETION_PER_1K)},
        .payer_credit = config_amount(c, CONFIG_LIMITS_PAYER_CREDIT),
        .seal = {.max_receipts = (uint32_t)config_int(c, CONFIG_BATCH_MAX_RECEIPTS),
                 .max_age_ms = (uint64_t)config_int(c, CONFIG_BATCH_MAX_AGE),
                 .max_value = config_amount(c, CONFIG_BATCH_MAX_VALUE)},
        .publish = {.confirmations = (uint32_t)config_int(c, CONFIG_CHAIN_CONFIRMATIONS),
                    .use_safe_tag = config_bool(c, CONFIG_CHAIN_SAFE_TAG),
                    .poll_ms = (uint64_t)config_int(c, CONFIG_CHAIN_POLL),
                    .replace_after_ms = (uint64_t)config_int(c, CONFIG_CHAIN_REPLACE_AFTER),
                    .max_fee_per_gas = config_amount(c, CONFIG_CHAIN_MAX_FEE_PER_GAS),
                    .max_spend_per_day = config_amount(c, CONFIG_CHAIN_MAX_SPEND_PER_DAY),
                    .redeem_min = config_amount(c, CONFIG_CHAIN_REDEEM_MIN)},
        .rpc = s->rpc,
    };
    if (d->chain_id != 0)
        o.chain = (struct ledger_chain){d->chain_id, d->stake_manager, d->adapter_registry,
                                        d->escrow, d->attribution_ledger};
    s->node.ledger = ledger_open(&o, err);
    return s->node.ledger != NULL ? 0 : -1;
}

/* ---- engine and service ------------------------------------------------------------------------
 */

static char *base_name(const struct config *c)
{
    const char *name = config_string(c, CONFIG_MODEL_NAME);
    if (name[0] != '\0')
        return xstrdup(name);
    char *path = realpath(config_string(c, CONFIG_MODEL_DIR), NULL);
    const char *whole = path != NULL ? path : config_string(c, CONFIG_MODEL_DIR);
    const char *slash = strrchr(whole, '/');
    char *last = xstrdup(slash != NULL && slash[1] != '\0' ? slash + 1 : whole);
    free(path);
    return last;
}

/* What a look at the directory tells; the engine reads it. */
static int check_model(struct serving *s, struct err *err)
{
    /* The engine can do without a tokenizer (bench does); every answer over HTTP is text. */
    static const struct {
        const char *name, *why;
    } needed[] = {{"config.json", "this is no model's directory"},
                  {"tokenizer.json", "without it there is no text to serve"}};
    const char *dir = config_string(s->c, CONFIG_MODEL_DIR);
    if (dir[0] == '\0')
        return err_set(err, ERR_INVALID,
                       "no model: say --model DIR, or model.dir in tributary.conf");
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        char *path = xasprintf("%s/%s", dir, needed[i].name);
        int why = access(path, R_OK) == 0 ? 0 : errno;
        free(path);
        if (why == ENOENT)
            return err_set(err, ERR_NOT_FOUND, "%s/%s: no such file; %s", dir, needed[i].name,
                           needed[i].why);
        if (why != 0)
            return err_set_errno(err, why, "%s/%s", dir, needed[i].name);
    }
    /* Lists and answers say the name in JSON, and requests in theirs ask for it. */
    s->base_name = base_name(s->c);
    if (utf8_is_text(s->base_name) && strlen(s->base_name) < SERVICE_NAME_BYTES)
        return 0;
    return err_set(
        err, ERR_INVALID,
        "the model's name must be UTF-8 of at most %d bytes: say another with --model-name",
        SERVICE_NAME_BYTES - 1);
}

/* One of model.adapters, "NAME=DIR". *name: free() it. */
static int split_adapter(const char *item, char **name, const char **dir, struct err *err)
{
    const char *eq = strchr(item, '=');
    if (eq == NULL || eq == item || eq[1] == '\0')
        return err_set(err, ERR_INVALID, "model.adapters: \"%s\" is not NAME=DIR", item);
    *name = xstrndup(item, (size_t)(eq - item));
    *dir = eq + 1;
    return 0;
}

/* Their tensors are read when the base model is there to check them against. */
static int check_adapters(struct serving *s, struct err *err)
{
    size_t n = config_list_len(s->c, CONFIG_MODEL_ADAPTERS);
    char **names = xcalloc(n + 1, sizeof *names);
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++) {
        const char *dir;
        rc = split_adapter(config_list_item(s->c, CONFIG_MODEL_ADAPTERS, i), &names[i], &dir, err);
        if (rc == 0)
            rc = adapter_store_check(s->node.adapters, names[i], dir, err);
        for (size_t k = 0; k < i && rc == 0; k++)
            if (strcmp(names[k], names[i]) == 0)
                rc = err_set(err, ERR_CONFLICT, "two models are named \"%s\"", names[i]);
    }
    for (size_t i = 0; i < n; i++)
        free(names[i]);
    free(names);
    const char *dir = config_string_or_null(s->c, CONFIG_MODEL_ADAPTERS_DIR);
    if (rc == 0 && dir != NULL && access(dir, R_OK | X_OK) != 0)
        rc = err_set_errno(err, errno, "%s", dir);
    return rc;
}

static int create_store(struct serving *s, struct err *err)
{
    size_t n = config_list_len(s->c, CONFIG_REGISTRY_URLS);
    const char **urls = xcalloc(n + 1, sizeof *urls);
    for (size_t i = 0; i < n; i++)
        urls[i] = config_list_item(s->c, CONFIG_REGISTRY_URLS, i);
    struct adapter_store_options o = {
        .data_dir = config_string(s->c, CONFIG_DATA_DIR),
        .base_name = s->base_name,
        .registries = urls,
        .n_registries = n,
        .refresh_ms = (uint64_t)config_int(s->c, CONFIG_REGISTRY_REFRESH),
        .cache_bytes = (uint64_t)config_int(s->c, CONFIG_REGISTRY_CACHE_BYTES),
        .max_royalty_per_1k = config_amount(s->c, CONFIG_PRICES_MAX_ROYALTY_PER_1K),
        .rpc = s->deployment.chain_id != 0 ? s->rpc : NULL,
        .deployment = &s->deployment,
        .metrics = s->node.metrics,
    };
    s->node.adapters = adapter_store_create(&o);
    free(urls);
    return check_adapters(s, err);
}

/* What it takes is left to itself on a signal (open_all), so it may touch nothing but its
 * options before it knows that it wasn't. */
static int load_model(struct serving *s, const struct engine_options *options, struct err *err)
{
    struct engine *engine = NULL;
    pthread_mutex_lock(&s->lock);
    s->opener = s->told != 0 ? s->opener : OPENER_LOADS;
    bool loads = s->opener == OPENER_LOADS;
    pthread_mutex_unlock(&s->lock);
    if (!loads)
        return may_go_on(s, err);
    int rc = engine_open(&engine, options, err);
    pthread_mutex_lock(&s->lock);
    if (s->opener == OPENER_IS_LEFT) {
        rc = err_set(err, ERR_CANCELLED, "told to end while the model was loaded");
    } else {
        s->opener = OPENER_STEPS;
        s->node.engine = engine;
    }
    pthread_mutex_unlock(&s->lock);
    return rc;
}

static int open_engine(struct serving *s, struct err *err)
{
    const struct config *c = s->c;
    struct service_options so = {
        .base_name = s->base_name,
        .max_tokens = config_int(c, CONFIG_LIMITS_MAX_TOKENS),
        .default_max_tokens = config_int(c, CONFIG_LIMITS_DEFAULT_MAX_TOKENS),
        .max_time_ms = (uint64_t)config_int(c, CONFIG_LIMITS_TIMEOUT),
        .resolver = adapter_store_resolver(s->node.adapters),
        .metrics = s->node.metrics,
    };
    s->node.service = service_create(&so);
    struct engine_options eo = {
        .model_dir = config_string(c, CONFIG_MODEL_DIR),
        .backend = config_string(c, CONFIG_ENGINE_BACKEND),
        .n_threads = (int)config_int(c, CONFIG_ENGINE_THREADS),
        .weights = config_string(c, CONFIG_ENGINE_WEIGHTS),
        .adapter_dtype = config_string(c, CONFIG_ENGINE_ADAPTER_DTYPE),
        .gpu_memory = (float)config_number(c, CONFIG_ENGINE_GPU_MEMORY),
        .kv_bytes = (size_t)config_int(c, CONFIG_ENGINE_KV_BYTES),
        .adapter_bytes = (size_t)config_int(c, CONFIG_ENGINE_ADAPTER_BYTES),
        .shared_bytes = (size_t)config_int(c, CONFIG_ENGINE_SHARED_BYTES),
        .adapter_host_bytes = (size_t)config_int(c, CONFIG_ENGINE_ADAPTER_HOST_BYTES),
        .max_seqs = (int)config_int(c, CONFIG_ENGINE_MAX_SEQS),
        .max_rows = (int)config_int(c, CONFIG_ENGINE_MAX_ROWS),
        .max_waiting = (int)config_int(c, CONFIG_ENGINE_MAX_WAITING),
        .max_context = (int)config_int(c, CONFIG_ENGINE_MAX_CONTEXT),
        .no_prefix_cache = !config_bool(c, CONFIG_ENGINE_PREFIX_CACHE),
        .on_events = service_on_events,
        .context = s->node.service,
    };
    log_info("node", "loading %s; %s answers 503 until it is there", s->base_name,
             http_url(s->node.http));
    if (load_model(s, &eo, err) != 0)
        return -1;
    BUG_IF(engine_tokenizer(s->node.engine) == NULL); /* check_model */
    const struct engine_model *m = engine_model(s->node.engine);
    log_info("engine", "%s: %d layers, hidden %d, vocabulary %d, context %d, on %s", s->base_name,
             m->n_layers, m->hidden, m->vocab, m->max_context, m->backend);
    return 0;
}

static int start_service(struct serving *s, struct err *err)
{
    struct node *n = &s->node;
    return adapter_store_start(n->adapters, n->engine, n->ledger, err) != 0 ||
                   service_start(n->service, n->engine, n->ledger, err) != 0
               ? -1
               : 0;
}

static int add_adapters(struct serving *s, struct err *err)
{
    struct node *n = &s->node;
    const char *root = config_string_or_null(s->c, CONFIG_MODEL_ADAPTERS_DIR);
    size_t n_found;
    for (size_t i = 0; i < config_list_len(s->c, CONFIG_MODEL_ADAPTERS); i++) {
        char *name;
        const char *dir;
        if (may_go_on(s, err) != 0)
            return -1;
        if (split_adapter(config_list_item(s->c, CONFIG_MODEL_ADAPTERS, i), &name, &dir, err) != 0)
            return -1;
        int rc = adapter_store_add(n->adapters, name, dir, false, NULL, err);
        free(name);
        if (rc != 0)
            return -1;
    }
    if (adapter_store_recall(n->adapters, &n_found, err) != 0)
        return -1;
    return root != NULL ? adapter_store_add_all(n->adapters, root, &n_found, err) : 0;
}

/* ---- HTTP --------------------------------------------------------------------------------------
 */

static int open_keys(struct serving *s, struct err *err)
{
    const struct config *c = s->c;
    struct node *n = &s->node;
    const char *keys = config_string_or_null(c, CONFIG_SERVER_API_KEYS);
    struct admission_limits customer = {
        .requests_per_second = config_number(c, CONFIG_LIMITS_REQUESTS_PER_SECOND),
        .burst = (uint32_t)config_int(c, CONFIG_LIMITS_BURST),
        .concurrent = (uint32_t)config_int(c, CONFIG_LIMITS_CONCURRENT),
        .tokens_per_minute = (uint64_t)config_int(c, CONFIG_LIMITS_TOKENS_PER_MINUTE),
    };
    const char *admin_keys = config_string_or_null(c, CONFIG_SERVER_ADMIN_KEYS);
    if (keys != NULL && api_keys_open(&n->keys, keys, &customer, err) != 0)
        return -1;
    if (admin_keys != NULL &&
        api_keys_open(&n->admin_keys, admin_keys, &(struct admission_limits){0}, err) != 0)
        return -1;
    n->admission = admission_create(&(struct admission_options){
        .customer = customer,
        .adapter =
            {
                .requests_per_second = config_number(c, CONFIG_LIMITS_ADAPTER_REQUESTS_PER_SECOND),
                .burst = customer.burst,
                .concurrent = (uint32_t)config_int(c, CONFIG_LIMITS_ADAPTER_CONCURRENT),
            },
        .max_requests = (uint32_t)config_int(c, CONFIG_SERVER_MAX_REQUESTS),
    });
    return 0;
}

static int open_http(struct serving *s, struct err *err)
{
    const struct config *c = s->c;
    struct node *n = &s->node;
    struct http_options o = {
        .listen = config_string(c, CONFIG_SERVER_LISTEN),
        .insecure_bind = config_bool(c, CONFIG_SERVER_INSECURE_BIND),
        .loopback_only = n->keys != NULL
                             ? NULL
                             : "without API keys (server.api_keys) only this machine may ask",
        .tls_cert = config_string_or_null(c, CONFIG_SERVER_TLS_CERT),
        .tls_key = config_string_or_null(c, CONFIG_SERVER_TLS_KEY),
        .n_threads = (int)config_int(c, CONFIG_SERVER_THREADS),
        .max_connections = (int)config_int(c, CONFIG_SERVER_MAX_CONNECTIONS),
        .max_connections_per_ip = (int)config_int(c, CONFIG_SERVER_MAX_CONNECTIONS_PER_IP),
        .max_header_bytes = (size_t)config_int(c, CONFIG_SERVER_MAX_HEADERS),
        .max_body_bytes = (size_t)config_int(c, CONFIG_SERVER_MAX_BODY),
        .stream_buffer_bytes = (size_t)config_int(c, CONFIG_SERVER_STREAM_BUFFER),
        .request_timeout_s = (unsigned)(config_int(c, CONFIG_SERVER_REQUEST_TIMEOUT) / 1000),
        .idle_timeout_s = (unsigned)(config_int(c, CONFIG_SERVER_IDLE_TIMEOUT) / 1000),
        .tick_ms = (unsigned)config_int(c, CONFIG_SERVER_TICK),
        .cors_origin = config_string_or_null(c, CONFIG_SERVER_CORS_ORIGIN),
        .on_head = routes_on_head,
        .on_request = routes_on_request,
        .on_done = routes_on_done,
        .context = n,
    };
    struct http_server *server;
    if (workers_create(&n->workers, QUERY_THREADS, QUERY_QUEUE, err) != 0 ||
        http_open(&server, &o, err) != 0)
        return -1;
    atomic_store(&n->http, server);
    return 0;
}

/* ---- life --------------------------------------------------------------------------------------
 */

static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int make_data_dir(struct serving *s, struct err *err)
{
    return dir_ensure(config_string(s->c, CONFIG_DATA_DIR), err);
}

/* What makes files comes late: a forgotten option must not leave a data directory and new keys
 * behind. */
static int (*const opening_steps[])(struct serving *s, struct err *err) = {
    check_model,   load_deployment, open_rpc,    create_store, open_keys,     open_http,
    make_data_dir, open_wallet,     open_ledger, open_engine,  start_service, add_adapters,
};

static void *opener_main(void *context)
{
    struct serving *s = context;
    size_t n = sizeof opening_steps / sizeof *opening_steps;
    for (size_t i = 0; i < n && s->opening_rc == 0; i++)
        s->opening_rc = may_go_on(s, &s->opening_err) != 0 ||
                                opening_steps[i](s, &s->opening_err) != 0
                            ? -1
                            : 0;
    return NULL;
}

/* Minutes may lie in a single call into a file system or a driver, which nobody can break off. So a
 * thread of its own opens the node, and this one waits for its end or a signal, whatever is first.
 * On a signal the opener ends with the step that it is at, but for the engine's, where it is left:
 * all it holds there is memory, of the host and the device, and no file, which goes with the
 * process once the other parts are closed in order (run_serve).
 *
 * -1 with s->told set: told to end meanwhile. */
static int open_all(struct serving *s, struct err *err)
{
    pthread_t opener;
    const struct timespec tick = {0, OPENING_TICK_MS * 1000000};
    int why = pthread_create(&opener, NULL, opener_main, s);
    if (why != 0)
        return err_set_errno(err, why, "cannot start the thread that opens the node");
    while (pthread_tryjoin_np(opener, NULL) != 0) {
        int signal_number = sigtimedwait(&s->signals, NULL, &tick);
        if (signal_number <= 0)
            continue;
        pthread_mutex_lock(&s->lock);
        s->told = signal_number;
        bool loads = s->opener == OPENER_LOADS;
        if (loads)
            s->opener = OPENER_IS_LEFT;
        pthread_mutex_unlock(&s->lock);
        atomic_store(&s->hang_up, true);
        if (loads)
            pthread_detach(opener);
        else
            pthread_join(opener, NULL);
        return -1;
    }
    if (s->opening_rc != 0)
        *err = s->opening_err;
    else
        atomic_store(&s->node.opened, true);
    return s->opening_rc;
}

/* Waits until all answers are out, the time is up, or another signal comes: not SIGHUP, for a
 * terminal that goes sends that more than once, by the kernel and by the shell. */
static void drain(struct serving *s)
{
    sigset_t impatience = s->signals;
    sigdelset(&impatience, SIGHUP);
    uint64_t patience_ms = (uint64_t)config_int(s->c, CONFIG_SERVER_DRAIN_TIMEOUT);
    struct monotonic_us began = clock_monotonic_us();
    atomic_store(&s->node.draining, true);
    http_drain(s->node.http);
    struct service_stats stats;
    for (;;) {
        service_stats(s->node.service, &stats);
        if (stats.n_answers == 0 && http_n_active(s->node.http) == 0)
            return;
        if (clock_elapsed_us(began, clock_monotonic_us()) / 1000 >= patience_ms)
            break;
        struct timespec tick = {0, 20 * 1000000};
        if (sigtimedwait(&impatience, NULL, &tick) > 0)
            break;
    }
    log_warn("node", "%zu answers are cancelled", stats.n_answers);
}

static void close_all(struct serving *s)
{
    struct node *n = &s->node;
    atomic_store(&s->hang_up, true);
    if (n->adapters != NULL)
        adapter_store_cancel(n->adapters);
    if (n->service != NULL)
        service_stop(n->service);
    adapter_store_stop(n->adapters);
    workers_stop(n->workers);
    http_close(n->http);
    workers_free(n->workers);
    engine_close(n->engine);
    if (s->opener != OPENER_IS_LEFT) /* else the engine's options name it */
        service_free(n->service);
    adapter_store_free(n->adapters);
    ledger_close(n->ledger);
    rpc_close(s->rpc);
    wallet_close(s->wallet);
    admission_free(n->admission);
    api_keys_close(n->keys);
    api_keys_close(n->admin_keys);
    metrics_free(n->metrics);
    free(s->base_name);
}

static int run_serve(const struct cli_args *a)
{
    struct serving s = {.c = cli_config(a)};
    s.node.config = s.c;
    s.node.started = clock_monotonic_us();
    s.node.metrics = metrics_create();
    struct err err = {0};
    enum log_level level;
    if (log_level_parse(config_string(s.c, CONFIG_LOG_LEVEL), &level) != 0)
        BUG("log.level %s", config_string(s.c, CONFIG_LOG_LEVEL));
    if (getenv("TRIBUTARY_LOG") == NULL ||
        strcmp(config_source(s.c, CONFIG_LOG_LEVEL), "default") != 0)
        log_set_level(level);
    raise_descriptor_limit();
    /* What is large is given back to the system when it is freed: adapters that were unloaded,
     * files that were read, bodies. By default the C library raises this bound as it sees large
     * pieces come and go, and keeps them. */
    mallopt(M_MMAP_THRESHOLD, LARGE_PIECE_BYTES);
    /* Blocked before any thread is made: all inherit it, and only this one waits for them. */
    sigemptyset(&s.signals);
    sigaddset(&s.signals, SIGTERM);
    sigaddset(&s.signals, SIGINT);
    /* Its terminal has gone; under nohup that is nothing to it. */
    struct sigaction hangup;
    if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN)
        sigaddset(&s.signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &s.signals, NULL);
    pthread_mutex_init(&s.lock, NULL);
    int status = 0;
    bool opened = open_all(&s, &err) == 0;
    if (opened) {
        printf("listening on %s\n", http_url(s.node.http));
        fflush(stdout);
        log_info("node", "serving %s on %s, chain id %llu", s.base_name, http_url(s.node.http),
                 (unsigned long long)s.deployment.chain_id);
        while (s.told == 0)
            sigwait(&s.signals, &s.told);
    }
    if (s.told == 0)
        status = cli_fail(a, &err);
    else
        log_info("node", "%s: shutting down", strsignal(s.told));
    if (opened)
        drain(&s);
    close_all(&s);
    if (status == 0)
        log_info("node", "stopped");
    if (s.opener == OPENER_IS_LEFT) /* returning would free what it reads */
        _exit(status);
    return status;
}

const struct cli_command cmd_serve = {
    .name = "serve",
    .summary = "run a node: serve a model and its adapters, meter, receipt, settle",
    .synopsis = "--model DIR [--adapter NAME=DIR]... [--adapters-dir DIR] [--listen HOST:PORT]\n"
                "        [--data DIR] [--backend cpu|ref|cuda] [configuration options]",
    .description =
        "Serves the base model and its LoRA adapters over OpenAI's HTTP API. Every answer is "
        "metered and carries a signed receipt, which is on disk before the answer ends.\n\n"
        "Without a chain the node works alone: receipts have chain id 0 and stay local. On its "
        "first start it then makes the keys it needs, encrypted with a random passphrase which it "
        "keeps in the data directory (wallet.passphrase) and says so. With a chain (--deployment, "
        "or --chain-id and the contracts' addresses) the wallet's keys signer and house must be "
        "there.\n\n"
        "When it is ready it prints \"listening on URL\" on standard output; everything else goes "
        "to standard error. While the model is loaded the port is open already: /healthz is 200, "
        "/readyz and everything else 503. SIGTERM, SIGINT and SIGHUP end it with exit status 0, at "
        "once while it is loading; later running answers may finish (server.drain_timeout), a "
        "second SIGTERM or SIGINT cancels them. Configuration and key files are read at the start, "
        "and only then.",
    .examples = "    tributary serve --model models/demo-7m --adapter law=adapters/law\n"
                "    curl http://127.0.0.1:8080/v1/completions --json "
                "'{\"model\":\"law\",\"prompt\":\"The people\"}'\n",
    .takes_config = true,
    .run = run_serve,
};
