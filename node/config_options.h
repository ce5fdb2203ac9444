/* config_options: every configuration option, once.
 *
 * Flags, names in the environment, keys in the INI file, validation, defaults and help all come
 * from this table. X(id, section, key, type, default, min, max, unit, flag, value, help):
 *
 *   id       CONFIG_<id>, the handle in the code
 *   section, key   "[section] key = value" in tributary.conf; TRIBUTARY_<SECTION>_<KEY>;
 *            --section-key unless `flag` names a shorter one
 *   type     STRING, PATH, INT, BOOL, BYTES (k, m, g: powers of 1,024), DURATION (ms, s, m, h;
 *            kept in milliseconds), AMOUNT (decimal, smallest unit), ADDRESS (0x and 40 digits),
 *            NUMBER (a decimal fraction), LIST (may be given more than once)
 *   min, max inclusive, for INT, BYTES, DURATION, NUMBER (both 0: any that is not negative)
 *   unit     for help; "" when the type says it
 *   flag     the long option, or NULL for "section-key"; of a BOOL, "no-..." turns it off
 *   value    the value's name in help; of a STRING, "this|that" are the only ones
 */
#ifndef TRIBUTARY_NODE_CONFIG_OPTIONS_H
#define TRIBUTARY_NODE_CONFIG_OPTIONS_H

/* clang-format off */
#define CONFIG_OPTIONS(X) \
/* ---- server ---- */ \
X(SERVER_LISTEN, "server", "listen", STRING, "127.0.0.1:8080", 0, 0, "", "listen", "HOST:PORT", \
  "Address of the HTTP server. Port 0 takes any free one and prints it.") \
X(SERVER_INSECURE_BIND, "server", "insecure_bind", BOOL, "no", 0, 0, "", "insecure-bind", NULL, \
  "Allow an address other than loopback without TLS.") \
X(SERVER_TLS_CERT, "server", "tls_cert", PATH, "", 0, 0, "", "tls-cert", "FILE", \
  "Certificate chain (PEM). Turns TLS on.") \
X(SERVER_TLS_KEY, "server", "tls_key", PATH, "", 0, 0, "", "tls-key", "FILE", \
  "Private key of the certificate (PEM).") \
X(SERVER_API_KEYS, "server", "api_keys", PATH, "", 0, 0, "", "api-keys", "FILE", \
  "API keys: one \"NAME SHA256-OF-KEY\" a line, then if wanted weight=, priority=, rps=, burst=, concurrent=, tpm= of that key. None: open to everyone who can connect.") \
X(SERVER_ADMIN_KEYS, "server", "admin_keys", PATH, "", 0, 0, "", "admin-keys", "FILE", \
  "Keys for /admin/v1, as in api_keys. None: only a node that listens on loopback answers there, and anyone on the machine may ask; any other answers 403.") \
X(SERVER_THREADS, "server", "threads", INT, "2", 1, 64, "threads", NULL, "N", \
  "Threads that serve sockets.") \
X(SERVER_MAX_CONNECTIONS, "server", "max_connections", INT, "4096", 1, 1000000, "connections", NULL, "N", \
  "Open connections in all.") \
X(SERVER_MAX_CONNECTIONS_PER_IP, "server", "max_connections_per_ip", INT, "1024", 0, 1000000, "connections", NULL, "N", \
  "Open connections from one address; 0: no limit.") \
X(SERVER_MAX_BODY, "server", "max_body", BYTES, "4m", 1024, 1073741824, "bytes", NULL, "BYTES", \
  "Largest request body.") \
X(SERVER_MAX_HEADERS, "server", "max_headers", BYTES, "32k", 4096, 1048576, "bytes", NULL, "BYTES", \
  "Largest request line and headers together.") \
X(SERVER_REQUEST_TIMEOUT, "server", "request_timeout", DURATION, "20s", 1000, 3600000, "", NULL, "TIME", \
  "In which a request's headers, and again its body, must arrive.") \
X(SERVER_IDLE_TIMEOUT, "server", "idle_timeout", DURATION, "60s", 1000, 3600000, "", NULL, "TIME", \
  "Between requests of a connection, and without progress on a write.") \
X(SERVER_STREAM_BUFFER, "server", "stream_buffer", BYTES, "256k", 4096, 67108864, "bytes", NULL, "BYTES", \
  "How far a reader may lag behind its stream before it is cut off.") \
X(SERVER_TICK, "server", "tick", DURATION, "15ms", 1, 1000, "", NULL, "TIME", \
  "Tokens of all streams are gathered for this long; the first of a stream leaves at once.") \
X(SERVER_MAX_REQUESTS, "server", "max_requests", INT, "512", 1, 1000000, "requests", NULL, "N", \
  "Requests being answered or waiting; more get 503 and Retry-After. One key or address may hold 8 " \
  "(times its weight) for each that is free, so never all of them.") \
X(SERVER_DRAIN_TIMEOUT, "server", "drain_timeout", DURATION, "30s", 0, 3600000, "", NULL, "TIME", \
  "After SIGTERM, how long running answers may take to end.") \
X(SERVER_CORS_ORIGIN, "server", "cors_origin", STRING, "", 0, 0, "", NULL, "ORIGIN", \
  "Origin that browsers may call from, or *. Empty: no CORS headers.") \
/* ---- limits ---- */ \
X(LIMITS_REQUESTS_PER_SECOND, "limits", "requests_per_second", NUMBER, "0", 0, 0, "requests/s", NULL, "N", \
  "For each API key (or address, when there are no keys); 0: no limit.") \
X(LIMITS_BURST, "limits", "burst", INT, "20", 1, 1000000, "requests", NULL, "N", \
  "Requests that may come at once before requests_per_second counts.") \
X(LIMITS_CONCURRENT, "limits", "concurrent", INT, "0", 0, 1000000, "requests", NULL, "N", \
  "Requests at the same time for each key; 0: no limit.") \
X(LIMITS_TOKENS_PER_MINUTE, "limits", "tokens_per_minute", INT, "0", 0, 1000000000000, "tokens", NULL, "N", \
  "Prompt and completion tokens computed for each key, waited for or not; 0: no limit.") \
X(LIMITS_MAX_TOKENS, "limits", "max_tokens", INT, "0", 0, 10000000, "tokens", NULL, "N", \
  "Most completion tokens a request may ask for; 0: what the context holds.") \
X(LIMITS_DEFAULT_MAX_TOKENS, "limits", "default_max_tokens", INT, "0", 0, 10000000, "tokens", NULL, "N", \
  "Completion tokens of a chat request that names no limit; 0: what the context holds.") \
X(LIMITS_ADAPTER_REQUESTS_PER_SECOND, "limits", "adapter_requests_per_second", NUMBER, "0", 0, 0, "requests/s", NULL, "N", \
  "For each adapter, whoever asks; `burst` may come at once. An ensemble counts for each of its own. 0: no limit.") \
X(LIMITS_ADAPTER_CONCURRENT, "limits", "adapter_concurrent", INT, "0", 0, 1000000, "requests", NULL, "N", \
  "Requests at the same time for each adapter; 0: no limit.") \
X(LIMITS_TIMEOUT, "limits", "timeout", DURATION, "0", 0, 86400000, "", NULL, "TIME", \
  "For a whole answer, waiting and fetching included; a request may ask for less (`timeout`). 0: no limit.") \
X(LIMITS_PAYER_CREDIT, "limits", "payer_credit", AMOUNT, "0", 0, 0, "smallest unit of the token", "payer-credit", "AMOUNT", \
  "What each payer who signs Requests (x-tributary-request) may owe: receipts that no voucher has redeemed, and the most that running answers may cost. Any address is a payer, and a stranger may have as many as it likes. 0: such Requests are refused.") \
/* ---- model ---- */ \
X(MODEL_DIR, "model", "dir", PATH, "", 0, 0, "", "model", "DIR", \
  "The base model, in Hugging Face layout.") \
X(MODEL_NAME, "model", "name", STRING, "", 0, 0, "", "model-name", "NAME", \
  "The base model's name for clients. Empty: the directory's last component.") \
X(MODEL_ADAPTERS, "model", "adapters", LIST, "", 0, 0, "", "adapter", "NAME=DIR", \
  "A local LoRA adapter (PEFT layout) and the name clients call it by.") \
X(MODEL_ADAPTERS_DIR, "model", "adapters_dir", PATH, "", 0, 0, "", "adapters-dir", "DIR", \
  "A directory of LoRA adapters: each sub-directory is one, under its own name. They are loaded when they are asked for.") \
/* ---- engine ---- */ \
X(ENGINE_BACKEND, "engine", "backend", STRING, "cpu", 0, 0, "", "backend", "cpu|ref|cuda", \
  "Who does the arithmetic.") \
X(ENGINE_THREADS, "engine", "threads", INT, "0", 0, 1024, "threads", "threads", "N", \
  "Threads of the cpu backend; 0: one a core.") \
X(ENGINE_WEIGHTS, "engine", "weights", STRING, "file", 0, 0, "", "weights", "file|int8", \
  "Base weights as they are in the file, or made int8 when the model loads: half the memory and bytes a token of bf16, and slightly other answers. Receipts then name a model of their own, derived from the files' (see README). Not on cuda.") \
X(ENGINE_ADAPTER_DTYPE, "engine", "adapter_dtype", STRING, "auto", 0, 0, "", "adapter-dtype", "auto|file|bf16", \
  "What adapters are held as, in host memory and on the device. auto: bf16 where the base model is and its activations are (a bf16 model on cuda), else as in their files. bf16 halves an F32 adapter.") \
X(ENGINE_GPU_MEMORY, "engine", "gpu_memory", NUMBER, "0.9", 0, 1, "", "gpu-memory", "FRACTION", \
  "How much of the memory that is free on the GPU to take: what weights and workspace leave of it holds adapters and KV cache.") \
X(ENGINE_KV_BYTES, "engine", "kv_bytes", BYTES, "0", 0, 1099511627776, "bytes", "kv-bytes", "BYTES", \
  "Memory of the KV cache; 0: shared with adapters, or, if these have a size, what is left (1 GiB on a CPU).") \
X(ENGINE_ADAPTER_BYTES, "engine", "adapter_bytes", BYTES, "0", 0, 1099511627776, "bytes", NULL, "BYTES", \
  "Device memory for adapters; 0: shared with the KV cache, or, if this has a size, a quarter of what is left (512 MiB on a CPU).") \
X(ENGINE_SHARED_BYTES, "engine", "shared_bytes", BYTES, "0", 0, 1099511627776, "bytes", "shared-bytes", "BYTES", \
  "Memory that adapters and the KV cache share, to and fro, when neither has a size; 0: what is left (1.5 GiB on a CPU).") \
X(ENGINE_ADAPTER_HOST_BYTES, "engine", "adapter_host_bytes", BYTES, "0", 0, 1099511627776, "bytes", NULL, "BYTES", \
  "Host memory for adapters that are not on the device; 0: the engine's default.") \
X(ENGINE_MAX_SEQS, "engine", "max_seqs", INT, "0", 0, 65536, "sequences", "max-seqs", "N", \
  "Sequences running at once; 0: the engine's default.") \
X(ENGINE_MAX_ROWS, "engine", "max_rows", INT, "0", 0, 65536, "rows", NULL, "N", \
  "Rows of one step, which bounds a chunk of prefill; 0: the engine's default.") \
X(ENGINE_MAX_WAITING, "engine", "max_waiting", INT, "0", 0, 1000000, "sequences", NULL, "N", \
  "Sequences waiting for a place; 0: the engine's default. One request may have eight ninths of them at most.") \
X(ENGINE_MAX_CONTEXT, "engine", "max_context", INT, "0", 0, 10000000, "tokens", "max-context", "N", \
  "Longest sequence, prompt and completion; 0: the model's.") \
X(ENGINE_PREFIX_CACHE, "engine", "prefix_cache", BOOL, "yes", 0, 0, "", "no-prefix-cache", NULL, \
  "Keep the KV of prompts and answers while there is room, so that requests that begin alike under the same adapters compute it once. Off: every prompt is computed whole.") \
/* ---- data ---- */ \
X(DATA_DIR, "data", "dir", PATH, "tributary-data", 0, 0, "", "data", "DIR", \
  "Ledger, keys and fetched adapters. Created when it isn't there.") \
/* ---- prices ---- */ \
X(PRICES_PROMPT_PER_1K, "prices", "prompt_per_1k", AMOUNT, "1000000000000000", 0, 0, "smallest unit of the token", "price-prompt", "AMOUNT", \
  "Compute fee for 1,000 prompt tokens.") \
X(PRICES_COMPLETION_PER_1K, "prices", "completion_per_1k", AMOUNT, "2000000000000000", 0, 0, "smallest unit of the token", "price-completion", "AMOUNT", \
  "Compute fee for 1,000 completion tokens.") \
X(PRICES_MAX_ROYALTY_PER_1K, "prices", "max_royalty_per_1k", AMOUNT, "1000000000000000000000", 0, 0, "smallest unit of the token", NULL, "AMOUNT", \
  "Fetched adapters whose royalty for 1,000 prompt or completion tokens is higher are not served: the house account would have to pay it. 0: no limit.") \
/* ---- chain ---- */ \
X(CHAIN_ID, "chain", "id", INT, "0", 0, 9007199254740991, "", "chain-id", "N", \
  "The settlement chain; 0: none, receipts stay local.") \
X(CHAIN_RPC, "chain", "rpc", LIST, "", 0, 0, "", "rpc", "URL", \
  "JSON-RPC endpoint of the chain. The first that answers is taken.") \
X(CHAIN_DEPLOYMENT, "chain", "deployment", PATH, "", 0, 0, "", "deployment", "FILE", \
  "What `tributary deploy` wrote: chain id and contract addresses, for those not given here.") \
X(CHAIN_STAKE_MANAGER, "chain", "stake_manager", ADDRESS, "", 0, 0, "", "stake-manager", "ADDRESS", \
  "The StakeManager contract.") \
X(CHAIN_ADAPTER_REGISTRY, "chain", "adapter_registry", ADDRESS, "", 0, 0, "", "adapter-registry", "ADDRESS", \
  "The AdapterRegistry contract.") \
X(CHAIN_ESCROW, "chain", "escrow", ADDRESS, "", 0, 0, "", "escrow", "ADDRESS", \
  "The Escrow contract.") \
X(CHAIN_ATTRIBUTION_LEDGER, "chain", "attribution_ledger", ADDRESS, "", 0, 0, "", "attribution-ledger", "ADDRESS", \
  "The AttributionLedger contract.") \
X(CHAIN_TOKEN, "chain", "token", ADDRESS, "", 0, 0, "", "token", "ADDRESS", \
  "The payment token (ERC-20).") \
X(CHAIN_OPERATOR, "chain", "operator", ADDRESS, "", 0, 0, "", "operator", "ADDRESS", \
  "The operator's stake address. Empty: the wallet's key \"operator\", or else \"signer\".") \
X(CHAIN_CONFIRMATIONS, "chain", "confirmations", INT, "12", 1, 100000, "blocks", "confirmations", "N", \
  "Depth at which a transaction counts as confirmed.") \
X(CHAIN_SAFE_TAG, "chain", "safe_tag", BOOL, "no", 0, 0, "", NULL, NULL, \
  "Count a transaction as confirmed when the chain's \"safe\" block has passed it.") \
X(CHAIN_POLL, "chain", "poll", DURATION, "2s", 50, 3600000, "", "chain-poll", "TIME", \
  "How often the chain is asked.") \
X(CHAIN_REPLACE_AFTER, "chain", "replace_after", DURATION, "60s", 1000, 86400000, "", NULL, "TIME", \
  "A transaction that isn't mined by then is replaced with a higher fee.") \
X(CHAIN_MAX_FEE_PER_GAS, "chain", "max_fee_per_gas", AMOUNT, "500000000000", 0, 0, "wei", NULL, "AMOUNT", \
  "Never pay more for a unit of gas.") \
X(CHAIN_MAX_SPEND_PER_DAY, "chain", "max_spend_per_day", AMOUNT, "1000000000000000000", 0, 0, "wei", NULL, "AMOUNT", \
  "Most that all transactions of 24 hours may cost.") \
X(CHAIN_REDEEM_MIN, "chain", "redeem_min", AMOUNT, "0", 0, 0, "smallest unit of the token", NULL, "AMOUNT", \
  "A payer's voucher that would move less waits for a bigger one: what redeeming costs in gas is yours, whatever it brings.") \
/* ---- batch ---- */ \
X(BATCH_MAX_RECEIPTS, "batch", "max_receipts", INT, "1000", 1, 20000, "receipts", "batch-max-receipts", "N", \
  "Receipts that make a batch.") \
X(BATCH_MAX_AGE, "batch", "max_age", DURATION, "10m", 1000, 2592000000, "", "batch-max-age", "TIME", \
  "Age of the oldest unsealed receipt that makes a batch.") \
X(BATCH_MAX_VALUE, "batch", "max_value", AMOUNT, "0", 0, 0, "smallest unit of the token", NULL, "AMOUNT", \
  "Value that makes a batch; 0: only the stake bounds it.") \
/* ---- registry ---- */ \
X(REGISTRY_URLS, "registry", "urls", LIST, "", 0, 0, "", "registry", "URL", \
  "A registry to fetch adapters from. The first that has one wins; where it fails, the others are asked for its files.") \
X(REGISTRY_REFRESH, "registry", "refresh", DURATION, "60s", 100, 86400000, "", NULL, "TIME", \
  "How old a registry's index may be before it is asked again.") \
X(REGISTRY_CACHE_BYTES, "registry", "cache_bytes", BYTES, "8g", 1048576, 109951162777600, "bytes", NULL, "BYTES", \
  "Disk space for fetched adapters.") \
/* ---- wallet ---- */ \
X(WALLET_DIR, "wallet", "dir", PATH, "", 0, 0, "", "wallet", "DIR", \
  "Key files. Empty: wallet/ in the data directory.") \
X(WALLET_PASSPHRASE_FILE, "wallet", "passphrase_file", PATH, "", 0, 0, "", "passphrase-file", "FILE", \
  "The wallet's passphrase. Empty: TRIBUTARY_PASSPHRASE_FILE, the file made at the first start, or the terminal.") \
X(WALLET_SIGNER, "wallet", "signer", STRING, "signer", 0, 0, "", NULL, "NAME", \
  "The key that signs receipts and batches.") \
X(WALLET_HOUSE, "wallet", "house", STRING, "house", 0, 0, "", NULL, "NAME", \
  "The key of the account that pays for API-key customers.") \
/* ---- log ---- */ \
X(LOG_LEVEL, "log", "level", STRING, "info", 0, 0, "", "log-level", "error|warn|info|debug", \
  "What is said on standard error.")
/* clang-format on */

#endif
