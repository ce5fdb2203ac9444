/* prompt_cap: how many rows of a step go to prompts while somebody favoured is about (scheduler.h).
 *
 * Who comes waits for the step that flies, for one that may be enqueued behind it, and for its own.
 * When sequences end together, others out of a long queue begin together and end together again:
 * now and then there is a step of a thousand rows of prompts, and in between there is none with
 * any. The same rows spread over all steps take as long, and nobody meets a long one.
 *
 * So a step's prompts get twice what they had on the average; those of the favoured have their
 * rows before, which count. Where that is too little, as places stay empty and prompts queue up,
 * they take all of it: the mean grows by e in PROMPT_CAP_WINDOW steps, and the cap with it, until
 * it no longer binds. It can't come to rest below what is asked for, since what binds is above the
 * mean. With nobody decoding there is no cap: prompts are all there is to fill a step with, and
 * full ones are the quickest. And where there is no queue, for there are places for all who are
 * there, nothing has to be held back for long: a step's prompts get a quarter of it at least, so
 * that who brings a long one isn't slowed down for nothing.
 *
 * Values only: no memory, no clock. */
#ifndef TRIBUTARY_ENGINE_PROMPT_CAP_H
#define TRIBUTARY_ENGINE_PROMPT_CAP_H

#include <stdbool.h>
#include <stdint.h>

enum {
    PROMPT_CAP_PLANS = 1024, /* who was there in one of so many plans is about */
    PROMPT_CAP_WINDOW = 32,  /* steps that the mean is of: each weighs 1/32 less than the next */
    PROMPT_CAP_TIMES = 2,    /* the mean, is the cap; ... */
    PROMPT_CAP_PART = 16,    /* ... but not less than one part of max_rows, ... */
    PROMPT_CAP_FEW_PART = 4, /* ... or one of these, without a queue, ... */
    PROMPT_CAP_LEAST = 64,   /* ... nor than so many rows, which make no step long */
};

/* What one plan hands to the next; zeroed at the beginning. */
struct prompt_cap {
    int n_plans; /* for so many more is somebody about */
    int64_t sum; /* PROMPT_CAP_WINDOW times the mean of the rows that a step's prompts have */
    bool paused; /* in the last step prompts paused */
};

/* What a plan sees. */
struct prompt_cap_view {
    bool seen;    /* somebody favoured is there */
    bool decodes; /* somebody decodes in the step */
    bool queues;  /* more are there than there are places */
};

/* The rows that prompts may have in the next step: max_rows, or fewer. */
int prompt_cap_rows(const struct prompt_cap *c, int max_rows, struct prompt_cap_view v);

/* May prompts pause for once in the next step, which has n_rows left for them? Not twice in a row;
 * and only if a step has room for twice the mean, so that the next one can make up for it. Then it
 * costs a step's delay and no throughput. */
bool prompt_cap_may_pause(const struct prompt_cap *c, int n_rows);

/* Behind a step in which prompts have n_rows, or paused, which says nothing about the mean. */
struct prompt_cap prompt_cap_next(const struct prompt_cap *c, int n_rows, bool seen, bool paused);

#endif
