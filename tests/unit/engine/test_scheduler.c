/* The scheduler's plans, as tables: no clock, no device. A sequence is written
 * {order, n_tokens, n_cached, n_blocks, n_bypassed, n_adapters, {adapters}}; its payer is 0. */
#include "engine/scheduler.h"
#include "kernels/ops.h"
#include "tests/support.h"

#include <stdio.h>
#include <string.h>

enum { SEQS = 8, ADAPTERS = 4, PAYERS = 4 };

struct plan_case {
    const char *name;
    struct sched_seq running[SEQS], waiting[SEQS]; /* up to the first with order 0 */
    struct sched_adapter adapters[ADAPTERS];
    size_t adapter_bytes_free;
    size_t adapter_bytes;                            /* 0: 1000 */
    int n_blocks, n_blocks_free, max_seqs, max_rows; /* n_blocks: 0 where it plays no part */
    int force;               /* index + 1 of the running one to preempt, or 0 */
    double counters[PAYERS]; /* 0 */
    double weights[PAYERS];  /* 0: 1 */
    int n_seqs_kept, n_blocks_kept;
    double level;
    struct sched_carry carry; /* admissions 0: far away, and not told; -1: none */
    /* "run 1:1 2:8+1" is order:rows, +blocks when any; empty parts are left out */
    const char *expected;
};

#pragma GCC diagnostic ignored \
    "-Wmissing-field-initializers" /* clang; the rest is zero on purpose */
/* clang-format off */
static const struct plan_case CASES[] = {
    {"nothing to do", .max_seqs = 4, .max_rows = 8, .expected = ""},
    {"a decode gets one row",
     .running = {{1, 17, 16, 2}}, .max_seqs = 4, .max_rows = 8, .expected = "run 1:1"},
    {"a decode at the end of its last block takes one more",
     .running = {{1, 17, 16, 1}}, .n_blocks_free = 1, .max_seqs = 4, .max_rows = 8,
     .expected = "run 1:1+1"},
    {"a prompt gets what decodes leave",
     .running = {{1, 100, 20, 7}, {2, 5, 4, 1}, {3, 9, 8, 1}}, .max_seqs = 4, .max_rows = 8,
     .expected = "run 1:6 2:1 3:1"},
    {"of two prompts the older goes first, and the younger may get nothing",
     .running = {{1, 100, 20, 7}, {2, 50, 10, 4}}, .max_seqs = 4, .max_rows = 8,
     .expected = "run 1:8"},
    {"the end of one prompt and the beginning of another share a step",
     .running = {{1, 23, 20, 2}, {2, 50, 10, 4}}, .max_seqs = 4, .max_rows = 8,
     .expected = "run 1:3 2:5"},
    {"a waiting one is admitted with the blocks of its whole prompt",
     .waiting = {{1, 40}}, .n_blocks_free = 3, .max_seqs = 4, .max_rows = 16,
     .expected = "admit 1:16+3"},
    {"admission keeps a free block for each that may grow",
     .running = {{1, 17, 16, 2, .n_blocks_max = 3}}, .waiting = {{2, 40}}, .n_blocks_free = 3, .max_seqs = 4,
     .max_rows = 16, .expected = "run 1:1"},
    {"but none for one that has all it will ever need",
     .running = {{1, 17, 16, 2, .n_blocks_max = 2}}, .waiting = {{2, 40}}, .n_blocks_free = 3,
     .max_seqs = 4, .max_rows = 16, .expected = "run 1:1 admit 2:15+3"},
    {"and admits when there is one",
     .running = {{1, 17, 16, 2, .n_blocks_max = 3}}, .waiting = {{2, 40}}, .n_blocks_free = 4, .max_seqs = 4,
     .max_rows = 16, .expected = "run 1:1 admit 2:15+3"},
    {"blocks are first come first served",
     .waiting = {{1, 100}, {2, 4}}, .n_blocks_free = 6, .max_seqs = 4, .max_rows = 16,
     .expected = ""},
    {"no more than max_seqs",
     .running = {{1, 5, 4, 1}}, .waiting = {{2, 3}, {3, 3}}, .n_blocks_free = 9, .max_seqs = 2,
     .max_rows = 16, .expected = "run 1:1 admit 2:3+1"},
    {"no admission without a row left",
     .running = {{1, 5, 4, 1}, {2, 60, 10, 4}}, .waiting = {{3, 3}}, .n_blocks_free = 9,
     .max_seqs = 4, .max_rows = 8, .expected = "run 1:1 2:7"},
    {"want of a block preempts the youngest, and nobody is admitted then",
     .running = {{1, 17, 16, 1}, {2, 5, 4, 1}, {3, 5, 4, 1}}, .waiting = {{4, 3}},
     .max_seqs = 8, .max_rows = 8, .expected = "preempt 3 run 1:1+1 2:1"},
    {"the youngest that wants a block goes itself",
     .running = {{1, 5, 4, 1}, {2, 17, 16, 1}}, .max_seqs = 8, .max_rows = 8,
     .expected = "preempt 2 run 1:1"},
    {"several go when one is not enough",
     .running = {{1, 17, 16, 1}, {2, 17, 16, 1}, {3, 17, 16, 1}, {4, 17, 16, 1}}, .max_seqs = 8,
     .max_rows = 8, .expected = "preempt 4 3 run 1:1+1 2:1+1"},
    {"a preempted one comes back at its old place, before younger ones",
     .running = {{1, 5, 4, 1, .n_blocks_max = 4}},
     .waiting = {{2, 20, .n_blocks_max = 4}, {9, 4, .n_blocks_max = 4}}, .n_blocks_free = 4, .max_seqs = 8,
     .max_rows = 32, .expected = "run 1:1 admit 2:20+2"},
    {"what a waiting one finds it neither computes nor takes from the free",
     .waiting = {{1, 40, .n_found = 2}}, .n_blocks_free = 1, .max_seqs = 4, .max_rows = 16,
     .expected = "admit 1:8+1"},
    {"but what it finds idle is free no more",
     .waiting = {{1, 40, .n_found = 2, .n_found_idle = 1}, {2, 4}}, .n_blocks_free = 2, .max_seqs = 4,
     .max_rows = 16, .expected = "admit 1:8+1"},
    {"and must be there for those who grow, too",
     .running = {{1, 17, 16, 2, .n_blocks_max = 3}}, .waiting = {{2, 40, .n_found = 2, .n_found_idle = 2}},
     .n_blocks_free = 3, .max_seqs = 4, .max_rows = 16, .expected = "run 1:1"},
    {"preempting one gives back what nobody else uses",
     .running = {{1, 33, 32, 2}, {2, 40, 39, 3}, {3, 34, 33, 3, .n_blocks_shared = 3},
                 {4, 34, 33, 3, .n_blocks_shared = 3}},
     .n_blocks = 8, .max_seqs = 8, .max_rows = 8, .expected = "preempt 4 3 run 1:1+1 2:1"},
    {"the last one left has what no list but its own names",
     .running = {{1, 33, 32, 2, .n_blocks_shared = 1}, {2, 34, 33, 3, .n_blocks_shared = 3},
                 {3, 34, 33, 3, .n_blocks_shared = 3}},
     .n_blocks = 4, .max_seqs = 8, .max_rows = 8, .expected = "preempt 3 2 run 1:1+1"},
    {"a forced preemption takes whom it is told",
     .running = {{1, 5, 4, 1}, {2, 5, 4, 1}}, .force = 1, .max_seqs = 8, .max_rows = 8,
     .expected = "preempt 1 run 2:1"},
    {"an adapter that does not fit is passed by those behind",
     .running = {{1, 5, 4, 1, 0, 1, {0}}}, .waiting = {{2, 3, 0, 0, 0, 1, {1}}, {3, 3}},
     .adapters = {{100, 1}, {100, 0}}, .adapter_bytes_free = 50, .n_blocks_free = 9, .max_seqs = 8,
     .max_rows = 32, .expected = "run 1:1 admit 3:3+1 bypassed 2"},
    {"a pinned adapter costs nothing more",
     .running = {{1, 5, 4, 1, 0, 1, {0}}}, .waiting = {{2, 3, 0, 0, 0, 1, {0}}},
     .adapters = {{100, 1}}, .adapter_bytes_free = 0, .n_blocks_free = 9, .max_seqs = 8,
     .max_rows = 32, .expected = "run 1:1 admit 2:3+1"},
    {"two of one plan share an adapter that is pinned once",
     .waiting = {{1, 3, 0, 0, 0, 1, {0}}, {2, 3, 0, 0, 0, 1, {0}}}, .adapters = {{100, 0}},
     .adapter_bytes_free = 100, .n_blocks_free = 9, .max_seqs = 8, .max_rows = 32,
     .expected = "admit 1:3+1 2:3+1"},
    {"two of one plan don't both get room that is there once",
     .waiting = {{1, 3, 0, 0, 0, 1, {0}}, {2, 3, 0, 0, 0, 1, {1}}},
     .adapters = {{100, 0}, {100, 0}}, .adapter_bytes_free = 150, .n_blocks_free = 9,
     .max_seqs = 8, .max_rows = 32, .expected = "admit 1:3+1"},
    {"an ensemble needs room for all of its adapters",
     .waiting = {{1, 3, 0, 0, 0, 2, {0, 1}}}, .adapters = {{100, 0}, {100, 0}},
     .adapter_bytes_free = 199, .n_blocks_free = 9, .max_seqs = 8, .max_rows = 32, .expected = ""},
    {"one passed by too often lets nobody with an adapter by, pinned or not",
     .running = {{1, 5, 4, 1, 0, 1, {0}}},
     .waiting = {{2, 3, 0, 0, SCHED_BYPASS_MAX, 1, {1}}, {3, 3, 0, 0, 0, 1, {0}},
                 {4, 3, 0, 0, 0, 1, {2}}, {5, 3}},
     .adapters = {{100, 1}, {100, 0}, {10, 0}}, .adapter_bytes_free = 50, .n_blocks_free = 9,
     .max_seqs = 8, .max_rows = 32, .expected = "run 1:1 admit 5:3+1 bypassed 2 3 4"},
    {"one passed by too often that needs more than the pool has lets nobody by at all",
     .running = {{1, 5, 4, 1}},
     .waiting = {{2, 3, 0, 0, SCHED_BYPASS_MAX, 1, {1}}, {3, 3}},
     .adapters = {{100, 0}, {100, 0}}, .adapter_bytes_free = 90, .adapter_bytes = 90,
     .n_blocks_free = 9, .max_seqs = 8, .max_rows = 32, .expected = "run 1:1"},
    {"one tried too often holds others back while it is tried again, for its bytes may not be in one place",
     .running = {{1, 5, 4, 1, 0, 1, {0}}},
     .waiting = {{2, 3, 0, 0, SCHED_BYPASS_MAX, 1, {1}}, {3, 3, 0, 0, 0, 1, {0}}, {4, 3}},
     .adapters = {{100, 1}, {100, 0}}, .adapter_bytes_free = 150, .n_blocks_free = 9,
     .max_seqs = 8, .max_rows = 32, .expected = "run 1:1 admit 2:3+1 4:3+1 bypassed 3"},
    {"being skipped with nobody admitted behind is no bypass",
     .running = {{1, 5, 4, 1, 0, 1, {0}}}, .waiting = {{2, 3, 0, 0, 0, 1, {1}}},
     .adapters = {{100, 1}, {100, 0}}, .adapter_bytes_free = 50, .n_blocks_free = 9, .max_seqs = 8,
     .max_rows = 32, .expected = "run 1:1"},

    /* Payers and priorities */
    {"of two payers the one who has had less goes first",
     .waiting = {{1, 3, .payer = 0}, {2, 3, .payer = 1}}, .counters = {10, 9}, .n_blocks_free = 9,
     .max_seqs = 1, .max_rows = 8, .expected = "admit 2:3+1"},
    {"what a plan gives counts in it: not ten of one payer while another waits",
     .waiting = {{1, 3}, {2, 3}, {3, 3}, {4, 3, .payer = 1}}, .n_blocks_free = 9, .max_seqs = 3,
     .max_rows = 16, .expected = "admit 1:3+1 4:3+1 2:3+1"},
    {"weight 2 gets two where weight 1 gets one",
     .waiting = {{1, 4}, {2, 4}, {3, 4}, {4, 4}, {5, 4, .payer = 1}, {6, 4, .payer = 1}},
     .weights = {1, 2}, .n_blocks_free = 9, .max_seqs = 6, .max_rows = 12,
     .expected = "admit 1:4+1 5:4+1 6:4+1"},
    {"with as much had, who has less running goes first",
     .running = {{1, 5, 4, 1}}, .waiting = {{2, 3}, {3, 3, .payer = 1}}, .n_blocks_free = 9,
     .max_seqs = 2, .max_rows = 8, .expected = "run 1:1 admit 3:3+1"},
    {"a higher priority goes first whoever has had what",
     .waiting = {{1, 3, .payer = 1}, {2, 3, .priority = 1}}, .counters = {1000, 0},
     .n_blocks_free = 9, .max_seqs = 1, .max_rows = 8, .expected = "admit 2:3+1"},
    {"of one payer and one priority the older goes first",
     .waiting = {{1, 3, .priority = -1}, {2, 3}, {3, 3}}, .n_blocks_free = 9, .max_seqs = 2,
     .max_rows = 8, .expected = "admit 2:3+1 3:3+1"},
    {"a prompt of a payer who has had much yields its rows, but the oldest keeps one",
     .running = {{1, 100, 20, 7}}, .waiting = {{2, 20, .payer = 1}}, .counters = {64, 0},
     .n_blocks_free = 9, .max_seqs = 4, .max_rows = 16, .expected = "run 1:1 admit 2:15+2"},
    {"and takes what is over",
     .running = {{1, 100, 20, 7}}, .waiting = {{2, 9, .payer = 1}}, .counters = {64, 0},
     .n_blocks_free = 9, .max_seqs = 4, .max_rows = 16, .expected = "run 1:7 admit 2:9+1"},
    {"one that runs goes before one that waits with a lower priority",
     .running = {{1, 100, 20, 7, .priority = 2}}, .waiting = {{2, 9, .payer = 1, .priority = 1}},
     .counters = {64, 0}, .n_blocks_free = 9, .max_seqs = 4, .max_rows = 16,
     .expected = "run 1:16"},
    {"want of a block preempts the payer who has had most, the youngest of its",
     .running = {{1, 5, 4, 1, .payer = 1}, {2, 5, 4, 1, .payer = 1}, {3, 17, 16, 1}},
     .counters = {5, 6}, .max_seqs = 8, .max_rows = 8, .expected = "preempt 2 run 1:1 3:1+1"},
    {"but before that the lowest priority",
     .running = {{1, 17, 16, 1}, {2, 5, 4, 1, .payer = 1}, {3, 5, 4, 1, .priority = -1}},
     .counters = {5, 6}, .max_seqs = 8, .max_rows = 8, .expected = "preempt 3 run 1:1+1 2:1"},
    {"and never the oldest, for it makes sure that something ends",
     .running = {{1, 17, 16, 1, .priority = -9}, {2, 17, 16, 1, .payer = 1}, {3, 5, 4, 1}},
     .counters = {50, 6}, .max_seqs = 8, .max_rows = 8, .expected = "preempt 3 2 run 1:1+1"},
    {"the oldest's turn comes whatever its priority and its payer has had",
     .waiting = {{1, 3, .priority = -100}, {2, 3, .payer = 1, .priority = 100}},
     .counters = {1000, 0}, .carry = {-1, 0}, .n_blocks_free = 9, .max_seqs = 1, .max_rows = 8,
     .expected = "admit 1:3+1 turn 32 192"},
    {"not before it has come by rows",
     .waiting = {{1, 3}, {2, 3, .payer = 1}}, .counters = {1000, 0}, .carry = {-1, 5},
     .n_blocks_free = 9, .max_seqs = 1, .max_rows = 8, .expected = "admit 2:3+1 turn 0 2"},
    {"nor before it has come by admissions, of which this plan's count",
     .waiting = {{1, 3}, {2, 3, .payer = 1}, {3, 3, .payer = 1}}, .counters = {1000, 0},
     .carry = {1, 0}, .n_blocks_free = 9, .max_seqs = 2, .max_rows = 8,
     .expected = "admit 2:3+1 1:3+1 turn 32 192"},
    {"an oldest that doesn't fit leaves its turn to the next, and that is a bypass",
     .waiting = {{1, 3, 0, 0, 0, 1, {0}}, {2, 3}, {3, 3, .payer = 1}}, .counters = {1000, 0},
     .adapters = {{100, 0}}, .adapter_bytes_free = 50, .carry = {-1, 0}, .n_blocks_free = 9,
     .max_seqs = 1, .max_rows = 8, .expected = "admit 2:3+1 bypassed 1 turn 32 192"},
    {"one whose adapter is on its way is no bypass and holds nobody back, however often",
     .waiting = {{1, 3, 0, 0, SCHED_BYPASS_MAX, 1, {0}, .loading = true}, {2, 3, 0, 0, 0, 1, {1}}},
     .adapters = {{100, 0}, {100, 0}}, .adapter_bytes_free = 100, .n_blocks_free = 9,
     .max_seqs = 4, .max_rows = 8, .expected = "admit 2:3+1"},
    {"one passed by too often goes first, also before payers who have had less",
     .waiting = {{1, 3, .payer = 1}, {2, 3, 0, 0, SCHED_BYPASS_MAX, 1, {0}}}, .counters = {1000, 0},
     .adapters = {{100, 0}}, .adapter_bytes_free = 100, .n_blocks_free = 9, .max_seqs = 1,
     .max_rows = 8, .expected = "admit 2:3+1"},
    {"and while it doesn't fit it holds back adapters of higher priority",
     .running = {{1, 5, 4, 1, 0, 1, {0}}},
     .waiting = {{2, 3, 0, 0, 0, 1, {0}, .priority = 9}, {3, 3, 0, 0, SCHED_BYPASS_MAX, 1, {1}}},
     .adapters = {{100, 1}, {100, 0}}, .adapter_bytes_free = 50, .n_blocks_free = 9, .max_seqs = 8,
     .max_rows = 8, .expected = "run 1:1"},

    /* What is kept for those who come seldom: payer 1's counter is below the level. */
    {"the last place is not for a payer who is always there",
     .running = {{1, 5, 4, 1}}, .waiting = {{2, 3}}, .level = 10, .counters = {10, 9},
     .n_seqs_kept = 1, .n_blocks_free = 9, .max_seqs = 2, .max_rows = 8, .expected = "run 1:1"},
    {"but for one who comes seldom, though the other was first in the order",
     .running = {{1, 5, 4, 1}}, .waiting = {{2, 3}, {3, 3}, {4, 3, .payer = 1, .priority = -1}},
     .level = 10, .counters = {10, 9}, .n_seqs_kept = 1, .n_blocks_free = 9, .max_seqs = 2,
     .max_rows = 8, .expected = "run 1:1 admit 4:3+1 bypassed 2"},
    {"and for a priority above 0",
     .running = {{1, 5, 4, 1}}, .waiting = {{2, 3, .priority = 1}}, .level = 10,
     .counters = {10, 9}, .n_seqs_kept = 1, .n_blocks_free = 9, .max_seqs = 2, .max_rows = 8,
     .expected = "run 1:1 admit 2:3+1"},
    {"and for one passed by too often",
     .running = {{1, 5, 4, 1}}, .waiting = {{2, 3, .n_bypassed = SCHED_BYPASS_MAX}}, .level = 10,
     .counters = {10, 9}, .n_seqs_kept = 1, .n_blocks_free = 9, .max_seqs = 2, .max_rows = 8,
     .expected = "run 1:1 admit 2:3+1"},
    {"with nothing running nothing is kept",
     .waiting = {{1, 48}}, .level = 10, .counters = {10}, .n_seqs_kept = 1, .n_blocks_kept = 1,
     .n_blocks_free = 3, .max_seqs = 2, .max_rows = 8, .expected = "admit 1:8+3"},
    {"blocks are kept, too, and one who comes seldom takes no more than those past one who waits",
     .running = {{1, 5, 4, 1}},
     .waiting = {{2, 100}, {3, 40, .payer = 1, .priority = -1}, {4, 30, .payer = 1, .priority = -1},
                 {5, 3}},
     .level = 10, .counters = {10, 9}, .n_seqs_kept = 1, .n_blocks_kept = 2, .n_blocks_free = 8,
     .max_seqs = 8, .max_rows = 64, .expected = "run 1:1 admit 4:30+2 bypassed 2"},
    {"nobody takes blocks past one who was passed by too often",
     .running = {{1, 5, 4, 1}},
     .waiting = {{2, 200, .n_bypassed = SCHED_BYPASS_MAX}, {3, 30, .payer = 1}},
     .level = 10, .counters = {10, 9}, .n_seqs_kept = 1, .n_blocks_kept = 2, .n_blocks_free = 8,
     .max_seqs = 8, .max_rows = 64, .expected = "run 1:1"},

    /* What may be spent for them: spare is in rows here, in 64ths of a row after the plan. */
    {"one who comes seldom displaces the last in the order, if computing that again is to spare",
     .running = {{1, 5, 4, 1}, {2, 9, 8, 1}}, .waiting = {{3, 3, .payer = 1}}, .level = 10,
     .counters = {10, 9}, .carry = {.spare = 8}, .n_blocks_free = 1, .max_seqs = 2, .max_rows = 8,
     .expected = "preempt 2 run 1:1 admit 3:3+1 spare 4"},
    {"and not if it is a row too much",
     .running = {{1, 5, 4, 1}, {2, 9, 8, 1}}, .waiting = {{3, 3, .payer = 1}}, .level = 10,
     .counters = {10, 9}, .carry = {.spare = 7}, .n_blocks_free = 1, .max_seqs = 2, .max_rows = 8,
     .expected = "run 1:1 2:1 spare 450"},
    {"never the oldest, nor who has a higher priority, nor who comes seldom, too",
     .running = {{1, 5, 4, 1}, {2, 9, 8, 1, .priority = 1}, {3, 9, 8, 1, .payer = 2}},
     .waiting = {{4, 3, .payer = 1}}, .level = 10, .counters = {10, 9, 9}, .carry = {.spare = 30},
     .n_blocks_free = 1, .max_seqs = 3, .max_rows = 8, .expected = "run 1:1 2:1 3:1 spare 1923"},
    {"a high priority displaces a lower one, but not its like",
     .running = {{1, 5, 4, 1}, {2, 9, 8, 1}, {3, 9, 8, 1, .priority = 5}},
     .waiting = {{4, 3, .payer = 1, .priority = 5}, {5, 3, .payer = 1, .priority = 5}},
     .counters = {10, 99}, .carry = {.spare = 30}, .n_blocks_free = 2, .max_seqs = 3,
     .max_rows = 8, .expected = "preempt 2 run 1:1 3:1 admit 4:3+1 spare 1413"},
    {"who is always there displaces nobody",
     .running = {{1, 5, 4, 1}, {2, 9, 8, 1}}, .waiting = {{3, 3, .payer = 1}}, .level = 10,
     .counters = {20, 10}, .carry = {.spare = 30}, .n_blocks_free = 1, .max_seqs = 2,
     .max_rows = 8, .expected = "run 1:1 2:1 spare 1922"},
    {"as many go as the blocks need",
     .running = {{1, 5, 4, 1}, {2, 20, 19, 2}, {3, 40, 39, 3}}, .waiting = {{4, 60, .payer = 1}},
     .level = 10, .counters = {10, 9}, .carry = {.spare = 58}, .max_seqs = 8, .max_rows = 64,
     .expected = "preempt 3 2 run 1:1 admit 4:60+4 spare 61"},
    {"and none if even all are not enough",
     .running = {{1, 5, 4, 1}, {2, 20, 19, 2}, {3, 40, 39, 3}}, .waiting = {{4, 90, .payer = 1}},
     .level = 10, .counters = {10, 9}, .carry = {.spare = 100}, .max_seqs = 8, .max_rows = 64,
     .expected = "run 1:1 2:1 3:1 spare 6403"},
    {"what it finds in use may be used by those alone who go: it counts like the rest",
     .running = {{1, 5, 4, 1}, {2, 40, 39, 3}}, .waiting = {{3, 40, .n_found = 2, .payer = 1}},
     .level = 10, .counters = {10, 9}, .carry = {.spare = 100}, .max_seqs = 8, .max_rows = 64,
     .expected = "preempt 2 run 1:1 admit 3:8+1 spare 3913"},
    {"so that two blocks don't do for three, one of them granted",
     .running = {{1, 5, 4, 1}, {2, 20, 19, 2}}, .waiting = {{3, 40, .n_found = 2, .payer = 1}},
     .level = 10, .counters = {10, 9}, .carry = {.spare = 100}, .max_seqs = 8, .max_rows = 64,
     .expected = "run 1:1 2:1 spare 6402"},
    {"nor three of which one is shared",
     .running = {{1, 5, 4, 1}, {2, 40, 39, 3, .n_blocks_shared = 1}},
     .waiting = {{3, 40, .n_found = 2, .payer = 1}}, .level = 10, .counters = {10, 9},
     .carry = {.spare = 100}, .max_seqs = 8, .max_rows = 64, .expected = "run 1:1 2:1 spare 6402"},
    {"what one admitted before found counts, too, for both may have been using it",
     .running = {{1, 5, 4, 1}, {2, 40, 39, 3}},
     .waiting = {{3, 20, .n_found = 1, .payer = 2}, {4, 40, .payer = 1}}, .level = 10,
     .counters = {10, 9, 5}, .carry = {.spare = 100}, .n_blocks_free = 1, .max_seqs = 8,
     .max_rows = 64, .expected = "run 1:1 2:1 admit 3:4+1 spare 6406"},
    {"while a prompt of one who comes seldom comes to its end, others' prompts pause",
     .running = {{1, 100, 20, 7}}, .waiting = {{2, 9, .payer = 1}, {3, 3}}, .level = 10,
     .counters = {10, 9}, .carry = {.spare = 1}, .n_blocks_free = 9, .max_seqs = 4, .max_rows = 16,
     .expected = "run 1:1 admit 2:9+1 spare 10"},
    {"which costs nothing when there are none",
     .running = {{1, 5, 4, 1}}, .waiting = {{2, 9, .payer = 1}}, .level = 10, .counters = {10, 9},
     .carry = {.spare = 1}, .n_blocks_free = 9, .max_seqs = 4, .max_rows = 16,
     .expected = "run 1:1 admit 2:9+1 spare 74"},
    {"nor when nobody could begin",
     .running = {{1, 5, 4, 1}}, .waiting = {{2, 9, .payer = 1}, {3, 3}}, .level = 10, .counters = {10, 9},
     .carry = {.spare = 1}, .n_blocks_free = 9, .max_seqs = 2, .max_rows = 16,
     .expected = "run 1:1 admit 2:9+1 spare 74"},
    {"and is not done before the end",
     .running = {{1, 100, 20, 7}, {2, 60, 4, 4, .payer = 1}}, .level = 10, .counters = {10, -30},
     .carry = {.spare = 8}, .max_seqs = 4, .max_rows = 16, .expected = "run 1:1 2:15 spare 528"},
    {"nor if the end is behind what it found, which is an end, too",
     .running = {{1, 100, 20, 7}}, .waiting = {{2, 20, .n_found = 1, .payer = 1}, {3, 3}}, .level = 10,
     .counters = {10, 9}, .carry = {.spare = 1}, .n_blocks_free = 9, .max_seqs = 4, .max_rows = 16,
     .expected = "run 1:1 admit 2:4+1 spare 5"},
    {"where only the place is lacking, what is in the prefix cache isn't computed again",
     .running = {{1, 5, 4, 1}, {2, 40, 39, 3, .n_blocks_cached = 1}}, .waiting = {{3, 3, .payer = 1}},
     .level = 10, .counters = {10, 9}, .carry = {.spare = 23}, .n_blocks_free = 1, .max_seqs = 2,
     .max_rows = 8, .expected = "preempt 2 run 1:1 admit 3:3+1 spare 4"},
    {"but it is where blocks are lacking",
     .running = {{1, 5, 4, 1}, {2, 40, 39, 3, .n_blocks_cached = 1}}, .waiting = {{3, 3, .payer = 1}},
     .level = 10, .counters = {10, 9}, .carry = {.spare = 38}, .max_seqs = 2, .max_rows = 16,
     .expected = "run 1:1 2:1 spare 2434"},
    {"and a place costs a block at least",
     .running = {{1, 5, 4, 1}, {2, 34, 33, 3, .n_blocks_cached = 2}}, .waiting = {{3, 3, .payer = 1}},
     .level = 10, .counters = {10, 9}, .carry = {.spare = 15}, .n_blocks_free = 1, .max_seqs = 2,
     .max_rows = 8, .expected = "run 1:1 2:1 spare 962"},
    {"one whose turn it is but who lacks a place doesn't keep a favoured one from displacing another",
     .running = {{1, 5, 4, 1}, {2, 9, 8, 1}}, .waiting = {{3, 3}, {4, 3, .payer = 1}}, .level = 10,
     .counters = {10, 9}, .carry = {-1, .spare = 8}, .n_blocks_free = 1, .max_seqs = 2, .max_rows = 8,
     .expected = "preempt 2 run 1:1 admit 4:3+1 bypassed 3 spare 4 turn 0 0"},
    {"unless it was passed by too often",
     .running = {{1, 5, 4, 1}, {2, 9, 8, 1}},
     .waiting = {{3, 3, .n_bypassed = SCHED_BYPASS_MAX}, {4, 3, .payer = 1}}, .level = 10,
     .counters = {10, 9}, .carry = {.spare = 8}, .n_blocks_free = 1, .max_seqs = 2, .max_rows = 8,
     .expected = "run 1:1 2:1 spare 514"},

    /* Even steps: the mean is 40 rows, so that prompts get 80, and the sum 1280. Payer 1 is below
     * the level. */
    {"while somebody favoured is there, prompts get a bit more than they had",
     .running = {{1, 5, 4, 1}, {2, 5, 4, 1, .payer = 1}}, .waiting = {{3, 200}}, .level = 10,
     .counters = {10, 9}, .carry = {.cap = {.sum = 1280}}, .n_blocks_free = 20, .max_seqs = 4,
     .max_rows = 256, .expected = "run 1:1 2:1 admit 3:80+13 sum 1320"},
    {"or was there lately",
     .running = {{1, 5, 4, 1}}, .waiting = {{3, 200}}, .level = 10,
     .counters = {10}, .carry = {.cap = {1, .sum = 1280}}, .n_blocks_free = 20, .max_seqs = 4,
     .max_rows = 256, .expected = "run 1:1 admit 3:80+13 sum 1320"},
    {"and else they get all, which is noted",
     .running = {{1, 5, 4, 1}}, .waiting = {{3, 200}}, .level = 10,
     .counters = {10}, .carry = {.cap = {.sum = 1280}}, .n_blocks_free = 20, .max_seqs = 4,
     .max_rows = 256, .expected = "run 1:1 admit 3:200+13 sum 1440"},
    {"and where nobody decodes",
     .waiting = {{3, 200}, {4, 50, .payer = 1}}, .level = 10, .counters = {10, 9},
     .carry = {.cap = {.sum = 1280, .paused = true}}, .n_blocks_free = 20, .max_seqs = 4,
     .max_rows = 256, .expected = "admit 4:50+4 3:200+13 sum 1490"},
    {"those who come behind what there was get nothing, not even a place",
     .running = {{1, 5, 4, 1}, {2, 120, 10, 8}}, .waiting = {{3, 20}, {4, 20, .payer = 2}}, .level = 10,
     .counters = {10, 9, 11}, .carry = {.cap = {1, .sum = 1280}}, .n_blocks_free = 20, .max_seqs = 4,
     .max_rows = 256, .expected = "run 1:1 2:80 sum 1320"},
    {"a favoured one's prompt is not held back, but counts",
     .running = {{1, 5, 4, 1}, {2, 120, 10, 8}, {3, 150, 10, 10, .payer = 1}}, .level = 10,
     .counters = {10, -200}, .carry = {.cap = {.sum = 1280, .paused = true}}, .max_seqs = 4,
     .max_rows = 256, .expected = "run 1:1 3:140 sum 1380"},
    {"nor is a high priority's",
     .running = {{1, 5, 4, 1}, {2, 120, 10, 8, .priority = 1}}, .level = 10, .counters = {10},
     .carry = {.cap = {.sum = 1280}}, .max_seqs = 4, .max_rows = 256,
     .expected = "run 1:1 2:110 sum 1350"},
    {"a low priority's is, and nobody is for its sake, however seldom it comes",
     .running = {{1, 5, 4, 1}, {2, 80, 10, 5}, {3, 200, 10, 13, .payer = 1, .priority = -1}}, .level = 10,
     .counters = {10, 9}, .carry = {.cap = {1, .sum = 1280}}, .max_seqs = 4, .max_rows = 256,
     .expected = "run 1:1 2:70 3:10 sum 1320"},
    {"nor has it a cap",
     .running = {{1, 5, 4, 1}, {2, 100, 10, 7}, {3, 200, 10, 13, .payer = 1, .priority = -1}}, .level = 10,
     .counters = {10, 9}, .carry = {.cap = {.sum = 1280}}, .max_seqs = 4, .max_rows = 512,
     .expected = "run 1:1 2:90 3:190 sum 1520"},
    {"the oldest has its part though others took all of the cap",
     .running = {{1, 300, 10, 19}, {2, 5, 4, 1}, {3, 120, 10, 8, .payer = 1}}, .level = 10,
     .counters = {10, -200}, .carry = {.cap = {.sum = 1280, .paused = true}}, .max_seqs = 4,
     .max_rows = 320, .expected = "run 1:1 2:1 3:110 sum 1351"},
    {"with places for all who are there, prompts get a quarter of a step",
     .running = {{1, 5, 4, 1}, {2, 300, 10, 19}}, .level = 10, .counters = {10},
     .carry = {.cap = {1, .sum = 1280}}, .max_seqs = 2, .max_rows = 512,
     .expected = "run 1:1 2:128 sum 1368"},
    {"and with one too many they don't",
     .running = {{1, 5, 4, 1}, {2, 300, 10, 19}}, .waiting = {{3, 20}}, .level = 10, .counters = {10},
     .carry = {.cap = {1, .sum = 1280}}, .n_blocks_free = 9, .max_seqs = 2, .max_rows = 512,
     .expected = "run 1:1 2:80 sum 1320"},
    {"a turn is not held back",
     .running = {{1, 5, 4, 1}}, .waiting = {{2, 200}, {3, 10}}, .level = 10, .counters = {10},
     .carry = {-1, .cap = {1, .sum = 1280}}, .n_blocks_free = 20, .max_seqs = 4, .max_rows = 256,
     .expected = "run 1:1 admit 2:200+13 sum 1440 turn 32 12800"},
    {"nor who was passed by too often",
     .running = {{1, 5, 4, 1}}, .waiting = {{2, 200, .n_bypassed = SCHED_BYPASS_MAX}}, .level = 10,
     .counters = {10}, .carry = {.cap = {1, .sum = 1280}}, .n_blocks_free = 20, .max_seqs = 4,
     .max_rows = 256, .expected = "run 1:1 admit 2:200+13 sum 1440"},
    {"under the cap others' prompts pause for a favoured one's end at no cost",
     .running = {{1, 5, 4, 1}, {2, 120, 10, 8}}, .waiting = {{3, 9, .payer = 1}}, .level = 10,
     .counters = {10, 9}, .carry = {.spare = 1, .cap = {.sum = 1280}}, .n_blocks_free = 9, .max_seqs = 4,
     .max_rows = 256, .expected = "run 1:1 admit 3:9+1 spare 74 sum 1280 paused"},
    {"but not in two steps in a row",
     .running = {{1, 5, 4, 1}, {2, 120, 10, 8}}, .waiting = {{3, 9, .payer = 1}}, .level = 10,
     .counters = {10, 9}, .carry = {.spare = 99, .cap = {.sum = 1280, .paused = true}}, .n_blocks_free = 9,
     .max_seqs = 4, .max_rows = 256, .expected = "run 1:1 2:71 admit 3:9+1 spare 6417 sum 1320"},
    {"and at the cost of a pause where the next step has no room to make up for it",
     .running = {{1, 5, 4, 1}, {2, 120, 10, 8}}, .waiting = {{3, 9, .payer = 1}}, .level = 10,
     .counters = {10, 9}, .carry = {.spare = 20, .cap = {.sum = 1280}}, .n_blocks_free = 9, .max_seqs = 4,
     .max_rows = 89, .expected = "run 1:1 admit 3:9+1 spare 970 sum 1280 paused"},
    {"a cap that holds nobody back is none: a pause costs what it costs",
     .running = {{1, 5, 4, 1}, {2, 120, 10, 8}}, .waiting = {{3, 9, .payer = 1}}, .level = 10,
     .counters = {10, 9}, .carry = {.spare = 20, .cap = {.sum = 4096}}, .n_blocks_free = 9,
     .max_seqs = 4, .max_rows = 256, .expected = "run 1:1 admit 3:9+1 spare 266 sum 4096 paused"},
};
/* clang-format on */

static int count(const struct sched_seq *list)
{
    int n = 0;
    while (n < SEQS && list[n].order != 0)
        n++;
    return n;
}

static void word(struct buf *out, const char *name, bool *named)
{
    if (!*named)
        buf_appendf(out, "%s%s", out->len > 0 ? " " : "", name);
    *named = true;
}

static void grants(struct buf *out, const char *name, const struct sched_grant *list, int n,
                   const struct sched_seq *seqs)
{
    bool named = false;
    for (int i = 0; i < n; i++) {
        word(out, name, &named);
        buf_appendf(out, " %d:%d", (int)seqs[list[i].index].order, list[i].n_rows);
        if (list[i].n_blocks > 0)
            buf_appendf(out, "+%d", list[i].n_blocks);
    }
}

static void text_of(struct buf *out, const struct sched_plan *plan, const struct sched_state *state)
{
    bool named = false;
    for (int i = 0; i < plan->n_preempt; i++) {
        word(out, "preempt", &named);
        buf_appendf(out, " %d", (int)state->running[plan->preempt[i]].order);
    }
    grants(out, "run", plan->run, plan->n_run, state->running);
    grants(out, "admit", plan->admit, plan->n_admit, state->waiting);
    named = false;
    for (int i = 0; i < plan->n_bypassed; i++) {
        word(out, "bypassed", &named);
        buf_appendf(out, " %d", (int)state->waiting[plan->bypassed[i]].order);
    }
}

static int turn_of(const struct plan_case *k)
{
    return k->carry.turn_admissions == 0  ? 1000
           : k->carry.turn_admissions < 0 ? 0
                                          : k->carry.turn_admissions;
}

static void plans_are_as_the_table_says(void **state)
{
    (void)state;
    struct sched_plan plan;
    sched_plan_init(&plan, SEQS, SEQS, ADAPTERS);
    for (size_t c = 0; c < sizeof CASES / sizeof CASES[0]; c++) {
        const struct plan_case *k = &CASES[c];
        struct sched_payer payers[PAYERS];
        for (int i = 0; i < PAYERS; i++)
            payers[i] = (struct sched_payer){.counter = k->counters[i],
                                             .weight = k->weights[i] > 0 ? k->weights[i] : 1};
        struct sched_state s = {.running = k->running,
                                .n_running = count(k->running),
                                .waiting = k->waiting,
                                .n_waiting = count(k->waiting),
                                .adapters = k->adapters,
                                .n_adapters = ADAPTERS,
                                .payers = payers,
                                .n_payers = PAYERS,
                                .adapter_bytes = k->adapter_bytes > 0 ? k->adapter_bytes : 1000,
                                .adapter_bytes_free = k->adapter_bytes_free,
                                .n_blocks = k->n_blocks,
                                .n_blocks_free = k->n_blocks_free,
                                .max_seqs = k->max_seqs,
                                .max_rows = k->max_rows,
                                .n_seqs_kept = k->n_seqs_kept,
                                .n_blocks_kept = k->n_blocks_kept,
                                .level = k->level,
                                .carry = {turn_of(k), k->carry.turn_rows,
                                          k->carry.spare * SCHED_SPARE_PART, k->carry.cap},
                                .force_preempt = k->force - 1};
        sched_plan_make(&plan, &s);
        struct buf text = BUF_INIT;
        text_of(&text, &plan, &s);
        if (k->carry.spare != 0)
            buf_appendf(&text, " spare %d", (int)plan.carry.spare);
        if (k->carry.cap.sum != 0)
            buf_appendf(&text, " sum %d%s", (int)plan.carry.cap.sum,
                        plan.carry.cap.paused ? " paused" : "");
        if (k->carry.turn_admissions != 0)
            buf_appendf(&text, " turn %d %d", plan.carry.turn_admissions,
                        (int)plan.carry.turn_rows);
        if (strcmp(buf_cstr(&text), k->expected) != 0)
            fail_msg("%s: expected \"%s\", got \"%s\"", k->name, k->expected, buf_cstr(&text));
        buf_release(&text);
    }
    print_message("note: %zu plans\n", sizeof CASES / sizeof CASES[0]);
    sched_plan_release(&plan);
}

/* ---- what was lacking --------------------------------------------------------------------- */

static void a_plan_says_what_it_lacked(void **state)
{
    static const struct {
        const char *what;
        struct sched_seq running[SEQS], waiting[SEQS];
        struct sched_adapter adapters[ADAPTERS];
        size_t adapter_bytes_free;
        int n_blocks_free, max_seqs;
        struct sched_want want;
    } cases[] = {
        {"nothing", .running = {{1, 17, 16, 1}}, .waiting = {{2, 16, .n_blocks_max = 1}},
         .n_blocks_free = 2, .max_seqs = 8},
        {"two running ones grow, one block is free", .running = {{1, 17, 16, 1}, {2, 17, 16, 1}},
         .n_blocks_free = 1, .max_seqs = 8, .want = {.n_blocks_running = 1}},
        {"nobody can begin beside a preemption, so nobody lacks anything",
         .running = {{1, 17, 16, 1}, {2, 17, 16, 1}}, .waiting = {{3, 99}}, .max_seqs = 8,
         .want = {.n_blocks_running = 2}},
        {"the first that waits lacks blocks, beside what running ones will want",
         .running = {{1, 10, 9, 1, .n_blocks_max = 2}}, .waiting = {{2, 100}, {3, 200}},
         .n_blocks_free = 3, .max_seqs = 8, .want = {.n_blocks_waiting = 5}},
        {"who lacks a place lacks no blocks", .running = {{1, 10, 9, 1}}, .waiting = {{2, 100}},
         .max_seqs = 1},
        {"the first that waits lacks bytes, the second more",
         .waiting = {{1, 9, 0, 0, 0, 1, {0}}, {2, 9, 0, 0, 0, 1, {1}}, {3, 16}},
         .adapters = {{100, 0}, {300, 0}}, .adapter_bytes_free = 60, .n_blocks_free = 9,
         .max_seqs = 8, .want = {.adapter_bytes = 40}},
        {"one lacks bytes, another blocks", .waiting = {{1, 9, 0, 0, 0, 1, {0}}, {2, 100}},
         .adapters = {{100, 0}}, .adapter_bytes_free = 60, .n_blocks_free = 5, .max_seqs = 8,
         .want = {.n_blocks_waiting = 2, .adapter_bytes = 40}},
    };
    (void)state;
    struct sched_plan plan;
    sched_plan_init(&plan, SEQS, SEQS, ADAPTERS);
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        const struct sched_payer payer = {.weight = 1};
        struct sched_state s = {.running = cases[c].running,
                                .n_running = count(cases[c].running),
                                .waiting = cases[c].waiting,
                                .n_waiting = count(cases[c].waiting),
                                .adapters = cases[c].adapters,
                                .n_adapters = ADAPTERS,
                                .payers = &payer,
                                .n_payers = 1,
                                .adapter_bytes = 1000,
                                .adapter_bytes_free = cases[c].adapter_bytes_free,
                                .n_blocks_free = cases[c].n_blocks_free,
                                .max_seqs = cases[c].max_seqs,
                                .max_rows = 64,
                                .force_preempt = -1};
        sched_plan_make(&plan, &s);
        const struct sched_want *w = &plan.want, *e = &cases[c].want;
        if (w->n_blocks_running != e->n_blocks_running ||
            w->n_blocks_waiting != e->n_blocks_waiting || w->adapter_bytes != e->adapter_bytes)
            fail_msg("%s: %d and %d blocks, %zu bytes", cases[c].what, w->n_blocks_running,
                     w->n_blocks_waiting, w->adapter_bytes);
    }
    sched_plan_release(&plan);
}

/* ---- who is next -------------------------------------------------------------------------- */

static void next_are_the_oldest_and_then_the_first_in_the_order_that_do_not_begin(void **state)
{
    (void)state;
    struct sched_plan plan;
    struct sched_seq waiting[14];
    struct sched_payer payers[3] = {{50, 1}, {5, 1}, {20, 1}};
    struct sched_adapter adapter = {0};
    for (int i = 0; i < 14; i++) /* payer 0's, but for three */
        waiting[i] = (struct sched_seq){.order = (uint64_t)i + 1, .n_tokens = 3};
    waiting[9].payer = 2;
    waiting[10].payer = 1;
    waiting[10].loading = true;
    waiting[12].payer = 1;
    waiting[13].priority = 1;
    struct sched_state s = {.waiting = waiting,
                            .n_waiting = 14,
                            .adapters = &adapter,
                            .payers = payers,
                            .n_payers = 3,
                            .n_blocks_free = 9,
                            .max_seqs = 2,
                            .max_rows = 8,
                            .carry = {1000, 0, 0},
                            .force_preempt = -1};
    sched_plan_init(&plan, 2, 14, 1);
    sched_plan_make(&plan, &s);
    assert_int_equal(plan.n_admit, 2); /* the priority, and payer 1's that is ready */
    assert_int_equal(plan.admit[0].index, 13);
    assert_int_equal(plan.admit[1].index, 12);
    static const int expected[SCHED_NEXT_MAX] = {0, 10, 9, 1, 2, 3, 4, 5};
    assert_int_equal(plan.n_next, SCHED_NEXT_MAX);
    assert_memory_equal(plan.next, expected, sizeof expected);
    sched_plan_release(&plan);
}

/* ---- a whole life, simulated ------------------------------------------------------------- */

enum { LIVES = 40, BLOCKS = 24, POOL_BYTES = 250 };

struct life {
    struct sched_seq seq;
    int n_total, steps_waited;
    enum { TO_COME, WAITING, RUNNING, DONE } state;
};

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* Carries plans out on paper until all are done; checks the plan's promises at every step. */
static void simulate(uint32_t seed)
{
    struct life lives[LIVES];
    struct sched_adapter adapters[ADAPTERS] = {{100, 0}, {120, 0}, {60, 0}, {200, 0}};
    struct sched_payer payers[PAYERS] = {{0, 1}, {0, 2}, {5, 0.5}, {90, 1}};
    struct sched_plan plan;
    int n_free = BLOCKS, n_done = 0;
    uint32_t random = seed;
    sched_plan_init(&plan, 6, LIVES, ADAPTERS);
    for (int i = 0; i < LIVES; i++) {
        lives[i] = (struct life){.seq = {.order = (uint64_t)i + 1}};
        lives[i].seq.n_tokens = 1 + (int)(next_random(&random) % 90);
        lives[i].n_total = lives[i].seq.n_tokens + 1 + (int)(next_random(&random) % 90);
        lives[i].seq.payer = (int)(next_random(&random) % PAYERS);
        lives[i].seq.priority = (int)(next_random(&random) % 3) - 1;
        lives[i].seq.n_blocks_max = (lives[i].n_total + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
        if (next_random(&random) % 3 != 0) {
            lives[i].seq.n_adapters = 1;
            lives[i].seq.adapters[0] = (int)(next_random(&random) % ADAPTERS);
        }
    }
    for (int step = 0; n_done < LIVES; step++) {
        if (step > 20000)
            fail_msg("seed %u: not done after %d steps", seed, step);
        struct sched_seq running[LIVES], waiting[LIVES];
        int at_running[LIVES], at_waiting[LIVES], n_running = 0, n_waiting = 0;
        size_t pinned = 0;
        for (int i = 0; i < LIVES; i++) {
            if (lives[i].state == TO_COME && step >= i * 3)
                lives[i].state = WAITING;
            if (lives[i].state == RUNNING) {
                at_running[n_running] = i;
                running[n_running++] = lives[i].seq;
            } else if (lives[i].state == WAITING) {
                at_waiting[n_waiting] = i;
                waiting[n_waiting] = lives[i].seq;
                waiting[n_waiting++].loading = next_random(&random) % 16 == 0;
            }
        }
        for (int a = 0; a < ADAPTERS; a++)
            pinned += adapters[a].n_pins > 0 ? adapters[a].n_bytes : 0;
        assert_true(pinned <= POOL_BYTES);
        struct sched_state s = {.running = running,
                                .n_running = n_running,
                                .waiting = waiting,
                                .n_waiting = n_waiting,
                                .adapters = adapters,
                                .n_adapters = ADAPTERS,
                                .payers = payers,
                                .n_payers = PAYERS,
                                .level = step / 2,
                                .n_seqs_kept = (int)(seed % 2),
                                .n_blocks_kept = (int)(seed % 3),
                                .carry = plan.carry,
                                .adapter_bytes_free = POOL_BYTES - pinned,
                                .n_blocks_free = n_free,
                                .max_seqs = 6,
                                .max_rows = 16,
                                .force_preempt = -1};
        sched_plan_make(&plan, &s);
        for (int i = 0; i < plan.n_preempt; i++) {
            struct life *l = &lives[at_running[plan.preempt[i]]];
            if (plan.preempt[i] == 0)
                fail_msg("seed %u step %d: the oldest was preempted", seed, step);
            n_free += l->seq.n_blocks;
            l->seq.n_blocks = l->seq.n_cached = 0;
            l->state = WAITING;
            if (l->seq.n_adapters > 0)
                adapters[l->seq.adapters[0]].n_pins--;
        }
        int n_rows = 0;
        for (int i = 0; i < plan.n_run + plan.n_admit; i++) {
            bool admitted = i >= plan.n_run;
            const struct sched_grant *g = admitted ? &plan.admit[i - plan.n_run] : &plan.run[i];
            struct life *l = &lives[admitted ? at_waiting[g->index] : at_running[g->index]];
            if (admitted) {
                if (waiting[g->index].loading)
                    fail_msg("seed %u step %d: admitted without its adapter", seed, step);
                l->state = RUNNING;
                l->seq.n_bypassed = 0;
                if (l->seq.n_adapters > 0)
                    adapters[l->seq.adapters[0]].n_pins++;
            }
            n_free -= g->n_blocks;
            l->seq.n_blocks += g->n_blocks;
            l->seq.n_cached += g->n_rows;
            n_rows += g->n_rows;
            payers[l->seq.payer].counter += g->n_rows / payers[l->seq.payer].weight;
            if (n_free < 0 || l->seq.n_blocks * BLOCK_TOKENS < l->seq.n_cached || g->n_rows < 1)
                fail_msg("seed %u step %d: blocks or rows that don't exist", seed, step);
            if (l->seq.n_cached == l->seq.n_tokens && ++l->seq.n_tokens == l->n_total) {
                n_free += l->seq.n_blocks;
                l->state = DONE;
                n_done++;
                if (l->seq.n_adapters > 0)
                    adapters[l->seq.adapters[0]].n_pins--;
            }
        }
        for (int i = 0; i < plan.n_bypassed; i++)
            lives[at_waiting[plan.bypassed[i]]].seq.n_bypassed++;
        int n_ready = n_running;
        for (int i = 0; i < n_waiting; i++)
            n_ready += !waiting[i].loading;
        if (n_rows > 16 || (n_rows == 0 && plan.n_preempt == 0 && n_ready > 0))
            fail_msg("seed %u step %d: %d rows", seed, step, n_rows);
        for (int i = 0; i < LIVES; i++)
            if (lives[i].seq.n_bypassed > SCHED_BYPASS_MAX * 4)
                fail_msg("seed %u: sequence %d starves", seed, i);
    }
    assert_int_equal(n_free, BLOCKS);
    sched_plan_release(&plan);
}

static void whatever_comes_everyone_finishes_and_no_promise_is_broken(void **state)
{
    (void)state;
    for (uint32_t seed = 1; seed <= 200; seed++)
        simulate(seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_are_as_the_table_says),
        cmocka_unit_test(a_plan_says_what_it_lacked),
        cmocka_unit_test(next_are_the_oldest_and_then_the_first_in_the_order_that_do_not_begin),
        cmocka_unit_test(whatever_comes_everyone_finishes_and_no_promise_is_broken),
    };
    return cmocka_run_group_tests_name("scheduler", tests, NULL, NULL);
}
