/* cmd_serve: a node from its first byte to its last.
 *
 * Parts are opened from the floor up and closed in reverse:
 *
 *     data directory, wallet, chain endpoint, ledger, adapter store, service, engine, adapters,
 * HTTP
 *
 * On SIGTERM, SIGINT or SIGHUP (there is nothing that is read again): the listening socket closes
 * and /readyz says 503; what runs may finish until server.drain_timeout; the rest is cancelled,
 * billed for what was written, and told so; then the parts close. A second SIGTERM or SIGINT skips
 * the waiting.
 *
 * First start. A node without a chain and without keys makes its own: the wallet's keys `signer`
 * and `house`, encrypted with a random passphrase that lies beside them in the data directory
 * (wallet.passphrase, mode 0600), said so in the log. That protects copies of the key files, not
 * the machine; a node that handles money is given a wallet and a passphrase of the operator's own.
 */
#include "attribution/attribution.h"
#include "chain/rpc.h"
#include "engine/engine.h"
#include "node/adapter_store.h"
#include "node/admission.h"
#include "node/api_keys.h"
#include "node/base/buf.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/base/random.h"
#include "node/cli/cmd_wallet.h"
#include "node/cli/commands.h"
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
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* Queries run beside the HTTP threads; more than these wait, more than the queue get 503. */
enum { QUERY_THREADS = 2, QUERY_QUEUE = 256 };
enum { LARGE_PIECE_BYTES = 256 << 10 };

struct serving {
    const struct config *c;
    struct node node;
    struct deployment deployment;
    struct wallet *wallet;
    struct rpc *rpc;
    char *base_name;
};

/* ---- wallet ------------------------------------------------------------------------------------
 */

static char *auto_passphrase_path(const struct config *c)
{
    return xasprintf("%s/wallet.passphrase", config_string(c, CONFIG_DATA_DIR));
}

static bool passphrase_is_named(const struct config *c)
{
    return config_string(c, CONFIG_WALLET_PASSPHRASE_FILE)[0] != '\0' ||
           getenv("TRIBUTARY_PASSPHRASE_FILE") != NULL;
}

static int make_passphrase(const char *path, struct err *err)
{
    uint8_t random[24];
    char text[sizeof random * 2 + 2];
    random_bytes(random, sizeof random);
    hex_encode(text, random, sizeof random);
    text[sizeof text - 2] = '\n';
    int rc = file_write_atomic(path, text, sizeof text - 1, 0600, err);
    explicit_bzero(random, sizeof random);
    explicit_bzero(text, sizeof text);
    return rc;
}

/* Makes what is missing of signer and house, on a node that settles nowhere. */
static int make_keys(const struct config *c, const char *dir, const struct secret *passphrase,
                     struct err *err)
{
    const char *names[] = {config_string(c, CONFIG_WALLET_SIGNER),
                           config_string(c, CONFIG_WALLET_HOUSE)};
    for (int i = 0; i < 2; i++) {
        struct wallet_entry entry;
        struct address address;
        char hex[43];
        struct err why = {0};
        if (wallet_key_peek(dir, names[i], &entry, &why) == 0)
            continue;
        if (why.code != ERR_NOT_FOUND) {
            *err = why;
            return -1;
        }
        if (wallet_key_create(dir, names[i], &address, NULL, passphrase, NULL, err) != 0)
            return -1;
        log_info("wallet", "made the key %s in %s: address %s", names[i], dir,
                 hex_encode_0x(hex, address.bytes, 20));
    }
    return 0;
}

static int open_wallet(struct serving *s, struct err *err)
{
    const struct config *c = s->c;
    char *dir = cmd_wallet_dir(c), *auto_path = auto_passphrase_path(c);
    const char *names[] = {config_string(c, CONFIG_WALLET_SIGNER),
                           config_string(c, CONFIG_WALLET_HOUSE), NULL};
    struct wallet_entry *entries = NULL;
    struct secret *passphrase = NULL;
    size_t n = 0;
    int rc = wallet_list(dir, &entries, &n, err);
    free(entries);
    bool local = s->deployment.chain_id == 0;
    if (rc == 0 && n == 0 && !local)
        rc = err_set(err, ERR_NOT_FOUND,
                     "the wallet %s has no key: make or import the keys %s and %s (tributary "
                     "wallet new, tributary wallet import)",
                     dir, names[0], names[1]);
    bool named = passphrase_is_named(c);
    if (rc == 0 && n == 0 && !named && access(auto_path, F_OK) != 0) {
        rc = make_passphrase(auto_path, err);
        if (rc == 0)
            log_info("wallet", "made a random passphrase for the local wallet: %s", auto_path);
    }
    if (rc == 0) {
        const char *file = config_string_or_null(c, CONFIG_WALLET_PASSPHRASE_FILE);
        if (!named && access(auto_path, F_OK) == 0)
            file = auto_path;
        passphrase = secret_passphrase(file, "Wallet passphrase: ", n == 0, err);
        rc = passphrase != NULL ? 0 : -1;
    }
    if (rc == 0 && local)
        rc = make_keys(c, dir, passphrase, err);
    if (rc == 0) {
        s->wallet = wallet_open(dir, names, passphrase, err);
        rc = s->wallet != NULL ? 0 : -1;
    }
    secret_free(passphrase);
    free(dir);
    free(auto_path);
    return rc;
}

/* ---- ledger ------------------------------------------------------------------------------------
 */

/* Whoever names an endpoint wants to be paid; receipts without a chain can never be settled. */
static int check_chain(const struct serving *s, struct err *err)
{
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
        &(struct rpc_options){.urls = urls, .n_urls = n, .chain_id = s->deployment.chain_id}, err);
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
                    .max_spend_per_day = config_amount(c, CONFIG_CHAIN_MAX_SPEND_PER_DAY)},
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

/* Lists and answers say it in JSON, and requests in theirs ask for it. */
static int check_base_name(const char *name, struct err *err)
{
    if (utf8_is_text(name) && strlen(name) < SERVICE_NAME_BYTES)
        return 0;
    return err_set(
        err, ERR_INVALID,
        "the model's name must be UTF-8 of at most %d bytes: say another with --model-name",
        SERVICE_NAME_BYTES - 1);
}

static void create_store(struct serving *s)
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
}

static int open_engine(struct serving *s, struct err *err)
{
    const struct config *c = s->c;
    s->base_name = base_name(c);
    if (check_base_name(s->base_name, err) != 0)
        return -1;
    struct service_options so = {
        .base_name = s->base_name,
        .max_tokens = config_int(c, CONFIG_LIMITS_MAX_TOKENS),
        .default_max_tokens = config_int(c, CONFIG_LIMITS_DEFAULT_MAX_TOKENS),
        .max_time_ms = (uint64_t)config_int(c, CONFIG_LIMITS_TIMEOUT),
        .metrics = s->node.metrics,
    };
    create_store(s);
    so.resolver = adapter_store_resolver(s->node.adapters);
    s->node.service = service_create(&so);
    struct engine_options eo = {
        .model_dir = config_string(c, CONFIG_MODEL_DIR),
        .backend = config_string(c, CONFIG_ENGINE_BACKEND),
        .n_threads = (int)config_int(c, CONFIG_ENGINE_THREADS),
        .weights = config_string(c, CONFIG_ENGINE_WEIGHTS),
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
    if (engine_open(&s->node.engine, &eo, err) != 0)
        return -1;
    /* The engine can do without one (bench does); every answer over HTTP is text. */
    if (engine_tokenizer(s->node.engine) == NULL)
        return err_set(err, ERR_NOT_FOUND,
                       "%s/tokenizer.json: no such file; without it there is no text to serve",
                       eo.model_dir);
    const struct engine_model *m = engine_model(s->node.engine);
    log_info("engine", "%s: %d layers, hidden %d, vocabulary %d, context %d, on %s", s->base_name,
             m->n_layers, m->hidden, m->vocab, m->max_context, m->backend);
    return 0;
}

/* "NAME=DIR" */
static int add_adapter(struct serving *s, const char *item, struct err *err)
{
    const char *eq = strchr(item, '=');
    if (eq == NULL || eq == item || eq[1] == '\0')
        return err_set(err, ERR_INVALID, "model.adapters: \"%s\" is not NAME=DIR", item);
    char *name = xstrndup(item, (size_t)(eq - item));
    int rc = adapter_store_add(s->node.adapters, name, eq + 1, false, NULL, err);
    free(name);
    return rc;
}

static int start_service(struct serving *s, struct err *err)
{
    struct node *n = &s->node;
    const char *dir = config_string_or_null(s->c, CONFIG_MODEL_ADAPTERS_DIR);
    size_t n_found;
    if (adapter_store_start(n->adapters, n->engine, n->ledger, err) != 0 ||
        service_start(n->service, n->engine, n->ledger, err) != 0)
        return -1;
    for (size_t i = 0; i < config_list_len(s->c, CONFIG_MODEL_ADAPTERS); i++) {
        if (add_adapter(s, config_list_item(s->c, CONFIG_MODEL_ADAPTERS, i), err) != 0)
            return -1;
    }
    if (adapter_store_recall(n->adapters, &n_found, err) != 0)
        return -1;
    return dir != NULL ? adapter_store_add_all(n->adapters, dir, &n_found, err) : 0;
}

/* ---- HTTP --------------------------------------------------------------------------------------
 */

static int open_http(struct serving *s, struct err *err)
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

static int open_all(struct serving *s, struct err *err)
{
    /* First: a forgotten option must not leave a data directory and new keys behind. */
    if (config_string(s->c, CONFIG_MODEL_DIR)[0] == '\0')
        return err_set(err, ERR_INVALID,
                       "no model: say --model DIR, or model.dir in tributary.conf");
    return deployment_load(&s->deployment, s->c, err) != 0 || check_chain(s, err) != 0 ||
                   dir_ensure(config_string(s->c, CONFIG_DATA_DIR), err) != 0 ||
                   open_wallet(s, err) != 0 || open_rpc(s, err) != 0 || open_ledger(s, err) != 0 ||
                   open_engine(s, err) != 0 || start_service(s, err) != 0 || open_http(s, err) != 0
               ? -1
               : 0;
}

/* Waits until all answers are out, the time is up, or another signal comes: not SIGHUP, for a
 * terminal that goes sends that more than once, by the kernel and by the shell. */
static void drain(struct serving *s, const sigset_t *signals)
{
    sigset_t impatience = *signals;
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
    if (n->adapters != NULL)
        adapter_store_cancel(n->adapters);
    if (n->service != NULL)
        service_stop(n->service);
    adapter_store_stop(n->adapters);
    workers_stop(n->workers);
    http_close(n->http);
    workers_free(n->workers);
    engine_close(n->engine);
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
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    /* Its terminal has gone; under nohup that is nothing to it. */
    struct sigaction hangup;
    if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN)
        sigaddset(&signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    int status = 0;
    if (open_all(&s, &err) != 0) {
        status = cli_fail(a, &err);
    } else {
        printf("listening on %s\n", http_url(s.node.http));
        fflush(stdout);
        log_info("node", "serving %s on %s, chain id %llu", s.base_name, http_url(s.node.http),
                 (unsigned long long)s.deployment.chain_id);
        int signal_number;
        while (sigwait(&signals, &signal_number) != 0)
            ;
        log_info("node", "%s: shutting down", strsignal(signal_number));
        drain(&s, &signals);
    }
    close_all(&s);
    if (status == 0)
        log_info("node", "stopped");
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
        "to standard error. SIGTERM, SIGINT and SIGHUP end it: running answers may finish "
        "(server.drain_timeout), a second SIGTERM or SIGINT cancels them. Configuration and key "
        "files are read at the start, and only then.",
    .examples = "    tributary serve --model models/demo-7m --adapter law=adapters/law\n"
                "    curl http://127.0.0.1:8080/v1/completions --json "
                "'{\"model\":\"law\",\"prompt\":\"The people\"}'\n",
    .takes_config = true,
    .run = run_serve,
};
