/* load: shared by load.c (the program: options, models, telling) and load_http.c (the requests on
 * their way). One thread. */
#ifndef TRIBUTARY_TESTS_BENCH_LOAD_H
#define TRIBUTARY_TESTS_BENCH_LOAD_H

#include "node/base/buf.h"
#include "node/base/clock.h"
#include "tests/bench/answer.h"
#include "tests/bench/latency.h"
#include "tests/bench/workload.h"

#include <curl/curl.h>
#include <stdbool.h>
#include <stdint.h>

enum { LOAD_BUCKETS = 9 };

struct load_options {
    const char *address, *csv, *commit, *popularity, *lengths, *keys, *models;
    int n_streams, n_adapters, n_prompt, n_generate, vocab, n_connections;
    double warm_s, seconds, drain_s, rate, cv;
    uint64_t seed;
};

struct load;

struct call { /* one connection, and the request on it */
    struct load *load;
    CURL *easy;
    struct curl_slist *headers;
    int index;
    bool busy, counts;
    int adapter, key, n_prompt, n_generate;
    struct buf body, refusal; /* what came with a status other than 200 */
    struct answer answer;
    struct monotonic_us due, last, not_before;
    char curl_error[CURL_ERROR_SIZE];
};

struct pending { /* open loop: due, and no connection was free */
    struct workload_request request;
    struct monotonic_us due;
};

struct load {
    struct load_options o;
    CURLM *multi;
    int epoll;
    struct monotonic_us timer; /* libcurl's; 0: none */
    char *url;
    char **models; /* [n_models]: the adapters, or the base model alone */
    int n_models;
    char **keys; /* [n_keys] */
    int n_keys;
    struct workload *workload;
    uint64_t random;
    struct call *calls; /* [n_calls] */
    int n_calls, n_busy;
    struct pending *waiting; /* [n_waiting] a queue; from first_waiting on */
    size_t first_waiting, n_waiting, max_waiting;
    struct workload_request next;
    struct monotonic_us begin, window, end;
    int *n_out; /* [n_models] requests under way */
    int n_distinct, distinct_max;
    double *served; /* [n_keys] tokens in the window */
    struct latency ttft, itl;
    uint64_t prompt_asked, generate_asked; /* tokens, of requests that began in the window */
    uint64_t n_tokens, n_prompt_tokens, n_answers, n_asked, n_429, n_503, n_unfinished, n_errors;
    uint64_t held_before[LOAD_BUCKETS], held[LOAD_BUCKETS];
};

/* What stops the program: exit status 2. */
_Noreturn void load_die(const char *what, const char *why);

/* GET path (with the first key), appended to out. Dies when it can't be had. */
void load_get(const struct load *l, const char *path, struct buf *out);

/* Opens the connections' handles; options, url, keys, models and workload must be there. */
void load_open(struct load *l);
/* The whole run: until the drain is over. */
void load_run(struct load *l);
void load_close(struct load *l); /* what load_open made */

/* Of the first few, a line on standard output; all are counted. */
void load_tell_error(struct load *l, const struct call *c, const char *why);

#endif
