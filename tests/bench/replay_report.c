/* replay_report: what a measurement says, as a table for people and as CSV. A row for each group of
 * the run, and one for all of them together when there are several. */
#include "tests/bench/replay.h"

#include "node/base/buf.h"

#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

static void tell_head(struct report *r, const struct rig *rig)
{
    const char *device = engine_model(rig->engine)->backend;
    printf("# device %s\n# commit %s\n# flags %s\n", device, r->commit, r->flags);
    printf("%-4s %-10s %-10s %8s %9s %24s %24s %17s %13s %11s\n", "row", "run", "group", "req/s",
           "output/s", "ttft resident p50/90/99", "ttft miss p50/90/99", "itl mean/p50/p99",
           "distinct/max", "up/evicted");
    if (r->csv != NULL)
        fprintf(r->csv,
                "# device %s\n# commit %s\n# flags %s\n"
                "row,run,group,registered,resident,pool_bytes,pool_used_bytes,pool_true_bytes,"
                "adapter_bytes,loop,rate,cv,streams,seconds,requests,finished,requests_s,output_s,"
                "prompt_s,ttft_mean_ms,ttft_p50_ms,ttft_p90_ms,ttft_p99_ms,resident_requests,"
                "resident_mean_ms,resident_p50_ms,resident_p90_ms,resident_p99_ms,miss_requests,"
                "miss_mean_ms,miss_p50_ms,miss_p90_ms,miss_p99_ms,itl_mean_ms,itl_p50_ms,"
                "itl_p99_ms,hits,uploads,prefetches,evictions,preemptions,prefix_tokens,distinct_"
                "mean,distinct_"
                "max,rank_mean,"
                "step_p50_ms,device_bytes,host_bytes,adapter_host_bytes,lag_max_ms,refused,"
                "unfinished,failed\n",
                device, r->commit, r->flags);
    r->has_head = true;
}

static void csv_latency(FILE *f, const struct latency *l, bool with_n)
{
    if (with_n)
        fprintf(f, "%" PRIu64 ",", l->n);
    fprintf(f, "%.3f,%.3f,%.3f,%.3f,", latency_mean(l), latency_percentile(l, 50),
            latency_percentile(l, 90), latency_percentile(l, 99));
}

static void csv_row(FILE *f, const struct rig *rig, const struct run_options *o,
                    const struct run_result *r, const struct group *g, const char *name,
                    const struct group_result *x)
{
    struct engine_stats stats;
    engine_stats(rig->engine, &stats);
    fprintf(f, "%s,%s,%s,%d,%d,%zu,%zu,%zu,%zu,", o->row, o->name, name, rig->n_adapters,
            r->n_resident, stats.adapter_bytes_total, r->pool_used, r->pool_true,
            rig->adapter_bytes);
    if (g != NULL)
        fprintf(f, "%s,%.3f,%g,%d,", g->n_streams > 0 ? "closed" : "open", g->workload.rate,
                g->n_streams > 0 ? 0 : g->workload.cv, g->n_streams);
    else
        fprintf(f, "-,-,-,-,");
    fprintf(f, "%g,%" PRIu64 ",%" PRIu64 ",%.3f,%.1f,%.1f,", r->seconds, x->n_requests,
            x->n_finished, (double)x->n_finished / r->seconds, (double)x->n_tokens / r->seconds,
            (double)x->n_prompt / r->seconds);
    csv_latency(f, &x->ttft, false);
    csv_latency(f, &x->ttft_resident, true);
    csv_latency(f, &x->ttft_miss, true);
    fprintf(f, "%.4f,%.4f,%.4f,", latency_mean(&x->itl), latency_percentile(&x->itl, 50),
            latency_percentile(&x->itl, 99));
    fprintf(f, "%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",",
            r->n_hits, r->n_uploads, r->n_prefetches, r->n_evictions, r->n_preemptions,
            r->n_prefix_tokens);
    fprintf(f, "%.2f,%d,%.2f,%.4f,%zu,%zu,%zu,%.3f,", r->distinct_mean, r->distinct_max,
            r->rank_mean, latency_percentile(&r->full, 50), r->device_bytes, r->host_bytes,
            r->adapter_host_bytes, x->lag_max_ms);
    fprintf(f, "%" PRIu64 ",%" PRIu64 ",%" PRIu64 "\n", x->n_refused, x->n_unfinished, x->n_failed);
}

static const char *three(char out[64], const struct latency *l)
{
    if (l->n == 0)
        return "-";
    snprintf(out, 64, "%.1f/%.1f/%.1f", latency_percentile(l, 50), latency_percentile(l, 90),
             latency_percentile(l, 99));
    return out;
}

static void table_row(const struct run_options *o, const struct run_result *r, const char *name,
                      const struct group_result *x)
{
    char resident[64], miss[64], itl[64];
    snprintf(itl, sizeof itl, "%.2f/%.2f/%.2f", latency_mean(&x->itl),
             latency_percentile(&x->itl, 50), latency_percentile(&x->itl, 99));
    printf("%-4s %-10s %-10s %8.2f %9.1f %24s %24s %17s %8.1f/%-4d %5" PRIu64 "/%-5" PRIu64, o->row,
           o->name, name, (double)x->n_finished / r->seconds, (double)x->n_tokens / r->seconds,
           three(resident, &x->ttft_resident), three(miss, &x->ttft_miss), itl, r->distinct_mean,
           r->distinct_max, r->n_uploads, r->n_evictions);
    if (x->n_unfinished > 0)
        printf("  %" PRIu64 " without a token", x->n_unfinished);
    if (x->n_refused > 0)
        printf("  %" PRIu64 " refused", x->n_refused);
    if (x->n_failed > 0)
        printf("  %" PRIu64 " FAILED", x->n_failed);
    printf("\n");
}

void report_run(struct report *r, const struct rig *rig, const struct run_options *o,
                const struct run_result *result)
{
    if (!r->has_head)
        tell_head(r, rig);
    for (int i = 0; i < o->n_groups; i++) {
        table_row(o, result, o->groups[i].name, &result->groups[i]);
        if (r->csv != NULL)
            csv_row(r->csv, rig, o, result, &o->groups[i], o->groups[i].name, &result->groups[i]);
    }
    if (o->n_groups > 1) {
        table_row(o, result, "all", &result->all);
        if (r->csv != NULL)
            csv_row(r->csv, rig, o, result, NULL, "all", &result->all);
    }
    r->n_failed += result->n_failed;
    fflush(stdout);
    if (r->csv != NULL)
        fflush(r->csv);
}

void report_note(struct report *r, const char *fmt, ...)
{
    va_list args;
    struct buf text = BUF_INIT;
    va_start(args, fmt);
    buf_appendfv(&text, fmt, args);
    va_end(args);
    printf("# %s\n", buf_cstr(&text));
    fflush(stdout);
    if (r->csv != NULL) {
        fprintf(r->csv, "# %s\n", buf_cstr(&text));
        fflush(r->csv);
    }
    buf_release(&text);
}
