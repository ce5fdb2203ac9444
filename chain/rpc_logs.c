/* rpc_logs: events of a range of blocks, page by page. See rpc.h.
 *
 * Public nodes bound eth_getLogs by blocks, by results, by bytes or by time, and say so in
 * different words. So whatever error a page meets, other than that nobody answers, its half is
 * tried, down to one block; after GROW_AFTER pages that worked the next may be twice as long again.
 *
 * Nodes are believed about what happened, not about what was asked: each log must lie in the page,
 * come after the one before it, and match the filter. */
#include "chain/rpc_internal.h"

#include "node/base/arena.h"
#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>

enum { GROW_AFTER = 8 };

static json_t *filter_object(const struct rpc_log_filter *f, uint64_t from, uint64_t to)
{
    json_t *o = json_pack("{s:o, s:o}", "fromBlock", rpc_value_quantity(from), "toBlock",
                          rpc_value_quantity(to));
    if (f->n_addresses > 0) {
        json_t *list = json_array();
        for (size_t i = 0; i < f->n_addresses; i++)
            json_array_append_new(list, rpc_value_hex(f->addresses[i].bytes, 20));
        json_object_set_new(o, "address", list);
    }
    size_t n_topics = RPC_TOPICS_MAX;
    while (n_topics > 0 && f->topics[n_topics - 1] == NULL)
        n_topics--;
    json_t *topics = json_array();
    for (size_t i = 0; i < n_topics; i++)
        json_array_append_new(
            topics, f->topics[i] == NULL ? json_null() : rpc_value_hex(f->topics[i]->bytes, 32));
    json_object_set_new(o, "topics", topics);
    return o;
}

static bool matches(const struct rpc_log_filter *f, const struct rpc_log *log)
{
    bool address_ok = f->n_addresses == 0;
    for (size_t i = 0; i < f->n_addresses; i++)
        address_ok |= address_eq(f->addresses[i], log->address);
    for (size_t i = 0; i < RPC_TOPICS_MAX; i++) {
        if (f->topics[i] != NULL &&
            (i >= log->n_topics || !DIGEST_EQ(*f->topics[i], log->topics[i])))
            return false;
    }
    return address_ok;
}

/* Where the walk is: the last log that was seen. */
struct position {
    bool any;
    uint64_t block, index;
};

static int walk_page(const json_t *list, const struct rpc_log_filter *f, uint64_t from, uint64_t to,
                     struct position *last, rpc_log_fn *each, void *context, struct err *err)
{
    if (!json_is_array(list))
        return err_set(err, ERR_UPSTREAM, "eth_getLogs answers with no array");
    int rc = 0;
    for (size_t i = 0; i < json_array_size(list) && rc == 0; i++) {
        struct arena arena = ARENA_INIT;
        struct rpc_log log;
        rc = rpc_json_log(&log, json_array_get(list, i), &arena, err);
        if (rc == 0 && (log.block_number < from || log.block_number > to || !matches(f, &log)))
            rc = err_set(err, ERR_UPSTREAM, "eth_getLogs answers with a log nobody asked for");
        if (rc == 0 && last->any &&
            (log.block_number < last->block ||
             (log.block_number == last->block && log.log_index <= last->index)))
            rc = err_set(err, ERR_UPSTREAM, "eth_getLogs answers out of order");
        if (rc == 0) {
            *last = (struct position){true, log.block_number, log.log_index};
            rc = each(context, &log, err);
        }
        arena_release(&arena);
    }
    return rc;
}

int rpc_logs(struct rpc *rpc, const struct rpc_log_filter *filter, rpc_log_fn *each, void *context,
             struct err *err)
{
    uint64_t page = rpc_logs_page(rpc), from = filter->from_block;
    struct position last = {0};
    int rc = 0, n_good = 0;
    while (rc == 0 && from <= filter->to_block) {
        uint64_t left = filter->to_block - from; /* blocks after this one */
        uint64_t to = from + (page - 1 < left ? page - 1 : left);
        json_t *list = NULL;
        struct rpc_node_error e;
        struct err why = {.code = ERR_OK};
        int asked = rpc_ask(rpc, RPC_ASK_ONE, "eth_getLogs",
                            json_pack("[o]", filter_object(filter, from, to)), &list, &e, &why);
        if (asked == 1) {
            rpc_fail_with(&e, "eth_getLogs", &why);
            rpc_node_error_release(&e);
        }
        if (asked != 0) {
            if (to == from || (asked < 0 && why.code != ERR_TOO_LARGE)) {
                if (err != NULL)
                    *err = why;
                return -1;
            }
            page = (to - from + 1) / 2;
            n_good = 0;
            continue;
        }
        rc = walk_page(list, filter, from, to, &last, each, context, err);
        json_decref(list);
        if (to == filter->to_block)
            break;
        from = to + 1;
        if (++n_good >= GROW_AFTER && page < rpc_logs_page(rpc)) {
            page = page * 2 < rpc_logs_page(rpc) ? page * 2 : rpc_logs_page(rpc);
            n_good = 0;
        }
    }
    return rc;
}
