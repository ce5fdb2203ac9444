/* filters: what the two files of filters share. */
#ifndef TRIBUTARY_ENGINE_CHAT_TEMPLATE_FILTERS_H
#define TRIBUTARY_ENGINE_CHAT_TEMPLATE_FILTERS_H

#include "engine/chat_template/eval.h"

/* One filter: v[0] is what is filtered, v[1..] the arguments in the order of the file's table. */
#define FILTER(name)                                                          \
    static struct value filter_##name(struct eval *e __attribute__((unused)), \
                                      const struct value *v,                  \
                                      const struct args *args __attribute__((unused)))

/* Neither missing nor None. */
static inline bool filter_given(struct value v)
{
    return v.type != VALUE_ABSENT && v.type != VALUE_NONE;
}

/* An integer argument; fails when it is something else. */
int64_t filter_int_or(struct eval *e, struct value v, int64_t absent);

/* The filter of that name in each file, or NULL. */
const struct function *filter_of_lists(const struct string *name);
const struct function *filter_of_texts(const struct string *name);

#endif
