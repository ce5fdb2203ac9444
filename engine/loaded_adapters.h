/* loaded_adapters: the adapters that are loaded, by digest, in host memory. Any thread. */
#ifndef TRIBUTARY_ENGINE_LOADED_ADAPTERS_H
#define TRIBUTARY_ENGINE_LOADED_ADAPTERS_H

#include "engine/lora.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct loaded_adapters;

/* An adapter that somebody loaded or a sequence uses. The first two members never change. */
struct loaded_adapter {
    struct lora_adapter *lora;
    struct loaded_adapter *next;     /* in its chain; the table's */
    int n_loads, n_users;            /* the table's, under its lock */
    atomic_ullong n_uses, n_uploads; /* admissions with it; of these, those that brought it in */
    /* The engine thread's own notes. */
    bool kept;           /* on the device; that is one of its loads */
    int n_pins;          /* running sequences that pin it */
    int sched_index;     /* in the state shown to the scheduler ... */
    uint64_t sched_step; /* ... at this step */
    uint64_t counted_step;
};

struct loaded_adapters *loaded_adapters_create(size_t max_bytes);
void loaded_adapters_free(struct loaded_adapters *t); /* quiet on NULL; no users may be left */

/* Takes lora over. One already there gets one more load and `lora` is closed. Fails with ERR_BUSY
 * when max_bytes would be passed; lora stays the caller's then. */
int loaded_adapters_add(struct loaded_adapters *t, struct lora_adapter *lora, struct err *err);

/* One load more of one that a user holds. */
void loaded_adapters_again(struct loaded_adapters *t, struct loaded_adapter *a);

/* One load less. ERR_NOT_FOUND when there is none. */
int loaded_adapters_drop(struct loaded_adapters *t, const struct content_digest *content,
                         struct err *err);

/* For a sequence: one more user, or NULL when nobody has it loaded. It stays, whatever is dropped,
 * until as many unuse calls. */
struct loaded_adapter *loaded_adapters_use(struct loaded_adapters *t,
                                           const struct content_digest *content);
int loaded_adapters_unuse(struct loaded_adapters *t, struct loaded_adapter *a); /* users left */
/* One more user of one that has a user already. */
void loaded_adapters_retain(struct loaded_adapters *t, struct loaded_adapter *a);

int loaded_adapters_n_loaded(struct loaded_adapters *t);

/* Contents that left since the last call, [return value] of at most LOADED_FORGOTTEN_MAX: the
 * newest, if more did. For one caller: each is told once. */
enum { LOADED_FORGOTTEN_MAX = 64 };
int loaded_adapters_take_forgotten(struct loaded_adapters *t, struct content_digest *out);

#endif
