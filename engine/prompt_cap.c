/* prompt_cap: see prompt_cap.h. */
#include "engine/prompt_cap.h"

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

int prompt_cap_rows(const struct prompt_cap *c, int max_rows, struct prompt_cap_view v)
{
    int part = v.queues ? PROMPT_CAP_PART : PROMPT_CAP_FEW_PART;
    int64_t least = larger(max_rows / part, PROMPT_CAP_LEAST);
    int64_t cap = larger(PROMPT_CAP_TIMES * c->sum / PROMPT_CAP_WINDOW, least);
    bool about = v.seen || c->n_plans > 0;
    return about && v.decodes && cap < max_rows ? (int)cap : max_rows;
}

bool prompt_cap_may_pause(const struct prompt_cap *c, int n_rows)
{
    return !c->paused && 2 * c->sum <= (int64_t)n_rows * PROMPT_CAP_WINDOW;
}

struct prompt_cap prompt_cap_next(const struct prompt_cap *c, int n_rows, bool seen, bool paused)
{
    struct prompt_cap next = {.sum = c->sum, .paused = paused};
    if (seen)
        next.n_plans = PROMPT_CAP_PLANS;
    else if (c->n_plans > 0)
        next.n_plans = c->n_plans - 1;
    if (!paused)
        next.sum += n_rows - c->sum / PROMPT_CAP_WINDOW;
    return next;
}
