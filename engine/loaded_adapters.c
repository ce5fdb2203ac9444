/* loaded_adapters: see loaded_adapters.h.
 *
 * An entry lives while it has loads (engine_adapter_load, less engine_adapter_drop) or users
 * (sequences submitted and not finished). With no loads left it is found by nobody new; with no
 * users either its host memory is freed at once. What the device pool still holds of it then is a
 * cache by digest, which a later load of the same files finds again. */
#include "engine/loaded_adapters.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { N_CHAINS = 4096 };

struct loaded_adapters {
    pthread_mutex_t lock;
    struct loaded_adapter *chains[N_CHAINS];
    size_t max_bytes, used_bytes;
    int n_loaded;                                          /* with loads */
    struct content_digest forgotten[LOADED_FORGOTTEN_MAX]; /* a ring */
    uint64_t n_forgotten, n_forgotten_told;
};

struct loaded_adapters *loaded_adapters_create(size_t max_bytes)
{
    struct loaded_adapters *t = xcalloc(1, sizeof *t);
    pthread_mutex_init(&t->lock, NULL);
    t->max_bytes = max_bytes;
    return t;
}

static struct loaded_adapter **find(struct loaded_adapters *t, const struct content_digest *content)
{
    struct loaded_adapter **link =
        &t->chains[(content->bytes[0] | content->bytes[1] << 8) % N_CHAINS];
    while (*link != NULL && !DIGEST_EQ((*link)->lora->content, *content))
        link = &(*link)->next;
    return link;
}

/* Under the lock: frees the entry at *link when nobody wants it. */
static void forget_idle(struct loaded_adapters *t, struct loaded_adapter **link)
{
    struct loaded_adapter *a = *link;
    if (a->n_loads > 0 || a->n_users > 0)
        return;
    *link = a->next;
    t->used_bytes -= a->lora->n_bytes;
    t->forgotten[t->n_forgotten++ % LOADED_FORGOTTEN_MAX] = a->lora->content;
    lora_close(a->lora);
    free(a);
}

void loaded_adapters_free(struct loaded_adapters *t)
{
    if (t == NULL)
        return;
    for (int i = 0; i < N_CHAINS; i++) {
        while (t->chains[i] != NULL) {
            BUG_IF(t->chains[i]->n_users != 0);
            t->chains[i]->n_loads = 0;
            forget_idle(t, &t->chains[i]);
        }
    }
    pthread_mutex_destroy(&t->lock);
    free(t);
}

int loaded_adapters_add(struct loaded_adapters *t, struct lora_adapter *lora, struct err *err)
{
    int rc = 0;
    pthread_mutex_lock(&t->lock);
    struct loaded_adapter **link = find(t, &lora->content);
    struct loaded_adapter *a = *link;
    if (a != NULL) {
        t->n_loaded += a->n_loads == 0;
        a->n_loads++;
    } else if (lora->n_bytes > t->max_bytes - t->used_bytes) {
        rc = err_set(
            err, ERR_BUSY,
            "no room for an adapter of %zu bytes: %zu of %zu bytes of host memory are taken",
            lora->n_bytes, t->used_bytes, t->max_bytes);
    } else {
        a = xcalloc(1, sizeof *a);
        a->lora = lora;
        a->n_loads = 1;
        *link = a;
        t->used_bytes += lora->n_bytes;
        t->n_loaded++;
        lora = NULL;
    }
    pthread_mutex_unlock(&t->lock);
    if (rc == 0)
        lora_close(lora);
    return rc;
}

void loaded_adapters_again(struct loaded_adapters *t, struct loaded_adapter *a)
{
    pthread_mutex_lock(&t->lock);
    BUG_IF(a->n_users < 1);
    t->n_loaded += a->n_loads++ == 0;
    pthread_mutex_unlock(&t->lock);
}

int loaded_adapters_drop(struct loaded_adapters *t, const struct content_digest *content,
                         struct err *err)
{
    int rc = 0;
    pthread_mutex_lock(&t->lock);
    struct loaded_adapter **link = find(t, content);
    if (*link == NULL || (*link)->n_loads == 0) {
        char hex[65];
        rc = err_set(err, ERR_NOT_FOUND, "adapter %s is not loaded",
                     hex_encode(hex, content->bytes, 32));
    } else {
        t->n_loaded -= --(*link)->n_loads == 0;
        forget_idle(t, link);
    }
    pthread_mutex_unlock(&t->lock);
    return rc;
}

struct loaded_adapter *loaded_adapters_use(struct loaded_adapters *t,
                                           const struct content_digest *content)
{
    pthread_mutex_lock(&t->lock);
    struct loaded_adapter *a = *find(t, content);
    if (a != NULL && a->n_loads == 0)
        a = NULL;
    if (a != NULL)
        a->n_users++;
    pthread_mutex_unlock(&t->lock);
    return a;
}

int loaded_adapters_unuse(struct loaded_adapters *t, struct loaded_adapter *a)
{
    pthread_mutex_lock(&t->lock);
    BUG_IF(a->n_users < 1);
    int left = --a->n_users;
    forget_idle(t, find(t, &a->lora->content));
    pthread_mutex_unlock(&t->lock);
    return left;
}

void loaded_adapters_retain(struct loaded_adapters *t, struct loaded_adapter *a)
{
    pthread_mutex_lock(&t->lock);
    BUG_IF(a->n_users < 1);
    a->n_users++;
    pthread_mutex_unlock(&t->lock);
}

int loaded_adapters_take_forgotten(struct loaded_adapters *t, struct content_digest *out)
{
    int n = 0;
    pthread_mutex_lock(&t->lock);
    if (t->n_forgotten - t->n_forgotten_told > LOADED_FORGOTTEN_MAX)
        t->n_forgotten_told = t->n_forgotten - LOADED_FORGOTTEN_MAX;
    while (t->n_forgotten_told < t->n_forgotten)
        out[n++] = t->forgotten[t->n_forgotten_told++ % LOADED_FORGOTTEN_MAX];
    pthread_mutex_unlock(&t->lock);
    return n;
}

int loaded_adapters_n_loaded(struct loaded_adapters *t)
{
    pthread_mutex_lock(&t->lock);
    int n = t->n_loaded;
    pthread_mutex_unlock(&t->lock);
    return n;
}
