/* adapter_store_internal: what the files of the adapter store share. Nobody else includes it.
 *
 *   adapter_store.c   items and contents, resolving, life
 *   adapter_tiers.c   host memory: loading, what leaves first
 *   adapter_room.c    host memory: who gets what is left
 *   adapter_fetch.c   from the registries to the disk; the disk's bound
 *   adapter_local.c   adapters in the operator's own directories
 *   adapter_told.c    those that the admin API told of, beyond the node's end
 *   adapter_admin.c   what operators ask and order
 *
 * One lock, s->lock, guards every member below that is not constant after the start. It is never
 * held while a file, a registry, the chain or the engine thread are waited for, nor while a
 * waiter's done is called. */
#ifndef TRIBUTARY_NODE_ADAPTER_STORE_INTERNAL_H
#define TRIBUTARY_NODE_ADAPTER_STORE_INTERNAL_H

#include "engine/engine.h"
#include "node/adapter_index.h"
#include "node/adapter_store.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hash_map.h"

#include <pthread.h>

enum { IN_FLIGHT_MAX = 64 };

/* A request (or an order) that waits for an adapter. */
struct waiter {
    struct waiter *next;
    char *model; /* as it was asked for */
    uint64_t customer;
    struct resolved out;
    enum adapter_tier tier; /* the slowest that had to be gone to */
    struct monotonic_us began;
    uint64_t holder; /* who waits holds other adapters meanwhile (service.h); 0: none */
    bool again;      /* it was sent back to the registry once: not twice */
    bool fetches;    /* counted in n_fetch_waiters */
    bool failed;
    struct err err;
    service_resolved_fn *done;
    void *user;
};

struct waiters { /* in order of arrival; zeroed: none */
    struct waiter *first, *last;
};

/* A load's claim to room in host memory (adapter_room.c). Zeroed but for the first four: it wants
 * none yet. */
struct room {
    uint64_t asked; /* its place in the order: s->n_asked then */
    struct monotonic_us since;
    uint64_t holder; /* who waits for it holds others; 0: none. It is ahead while it is s->holder */
    bool lent;       /* the thread that waits is that of those that go ahead */
    size_t n_bytes;
    uint64_t entered; /* it has its room: s->n_entered then */
    /* While it waits: */
    struct room *next;
    uint64_t n_entered_before;
    size_t bytes_passed; /* held by those that asked later and came in since */
};

/* One set of files, whatever its names: what the tiers hold. Lives while an item means it, somebody
 * uses it, it is being loaded, or its fetched files are on disk. */
struct content {
    struct content_digest digest;
    struct item *items; /* those that mean it, the earliest first */
    /* Whom it is when it is asked for by digest: the earliest registration, as the chain said. */
    struct adapter_id first;         /* zero: none */
    struct monotonic_us first_asked; /* 0: never */
    /* Facts; n_bytes 0: not looked at yet. */
    size_t n_bytes;
    int rank_max, n_sites;
    char *targets;
    /* Host memory. */
    bool loaded;                /* the store holds one load in the engine */
    struct load *load;          /* on its way there */
    int users;                  /* resolved and not released */
    int n_pins;                 /* items that are pinned */
    bool kept, refused;         /* on the device, as pinned; and there was no room for that */
    bool keeping;               /* the keeper sees to it */
    uint64_t n_uses, frequency; /* since ever; since it was loaded */
    double priority;            /* adapter_tiers.c */
    size_t idle_at;             /* 1 + its place in s->idle; 0: not there */
    uint64_t load_us;           /* how long loading took, the last time; 0: not yet */
    double cost_us;             /* adapter_tiers.c */
    uint64_t asked, entered;    /* of the room that it was loaded into; 0: of none */
    bool perhaps_on_device;     /* it was loaded, under this struct or an earlier one */
    /* Disk: fetched files, in DATA/adapters/<digest>. */
    uint64_t disk_bytes; /* 0: not there */
    uint64_t part_bytes; /* in <digest>.part, of a fetch that broke off; of all while `fetching` */
    bool fetching;
    struct unix_ms used;
    bool distrusted;                    /* its files were fetched anew and still don't load */
    struct monotonic_us fetched_failed; /* as an item's `failed` */
};

/* A name for a content. */
struct item {
    struct content *content; /* NULL: local, not looked at yet */
    struct item *next;       /* of the same content */
    char name[SERVICE_NAME_BYTES];
    bool pinned;
    /* Local: */
    uint64_t number;            /* in the order in which they were added */
    char *dir;                  /* NULL: from a registry */
    struct load *load;          /* while content is NULL */
    char stamp[17];             /* of its files, when content was found out; "": never looked */
    bool examined;              /* by the examiner, with or without success */
    struct monotonic_us failed; /* when its files last failed to load; 0: not since they did */
    bool told;                  /* through the admin API: it comes back with the next start */
    /* From a registry; these live as long as the store. */
    uint64_t version;
    struct address creator;
    struct sha256_digest manifest; /* zero: known from the ledger only */
    struct adapter_id id;          /* zero without a chain */
    struct monotonic_us checked;   /* when the chain was last asked */
};

/* One content on its way into host memory; whoever wants it meanwhile waits for the same. */
struct load {
    struct adapter_store *store;
    struct content *content; /* NULL until the files have been read */
    struct item *item;       /* local, which gets the content; NULL: none, or it was removed */
    char name[SERVICE_NAME_BYTES];
    char *dir;
    bool fetched; /* dir is ours, filled from a registry */
    struct waiters waiters;
    struct room room;
    int n_jobs; /* of it, with threads; the first that gets its turn does the work */
    bool begun;
};

/* One name on its way from a registry to the disk. */
struct fetch {
    struct adapter_store *store;
    char *model;
    struct fetch *next; /* to be brought */
    struct waiters waiters;
    bool brings;     /* it has a thread that may wait for files; else ... */
    bool put_off;    /* ... it found that there are some to wait for */
    bool downloaded; /* files of it */
};

struct adapter_store {
    char *data_dir, *root; /* root: DATA/adapters */
    char *base_name;
    uint64_t refresh_us, cache_bytes;
    struct amount max_royalty_per_1k;
    size_t max_fetch_waiters;
    int n_loaders, n_fetchers;
    struct engine *engine;
    struct ledger *ledger;
    struct rpc *rpc;
    const struct deployment *deployment;
    struct http_client *http;
    struct adapter_index *index; /* NULL: no registry is configured */
    struct metrics *metrics;
    struct workers *loaders;
    struct workers *ahead;    /* one thread: loads that none of the loaders may be free for */
    struct workers *fetchers; /* ask the chain and the registries' indexes ... */
    struct workers *bringers; /* ... and wait for what that takes: manifests and files */
    struct workers *keeper;   /* one thread: tells the engine what to keep, in order */
    _Atomic bool cancelled;

    pthread_mutex_t lock;
    pthread_cond_t landed;    /* something left in_flight */
    pthread_cond_t room;      /* something in host memory became idle, or left */
    struct hash_map contents; /* by digest */
    uint64_t n_added;
    struct hash_map local;              /* items by name */
    struct hash_map by_manifest, by_id; /* registries' items */
    struct item **registry_items;       /* [n_registry_items] owns them */
    size_t n_registry_items, cap_registry_items;

    struct hash_map fetches; /* by model */
    size_t n_fetch_waiters;
    struct fetch *to_bring; /* in order of arrival */
    uint64_t *bringing;     /* [n_bringing] whose fetches the bringers are at */
    int n_bringing, n_bringers;
    bool refreshing;                               /* refresh_begin's is under way */
    struct sha256_digest in_flight[IN_FLIGHT_MAX]; /* manifests and contents */
    size_t n_in_flight;

    size_t host_total, host_used, host_reserved;
    size_t host_pinned; /* of host_used */
    struct room *rooms; /* that are waited for, in their order */
    uint64_t holder;    /* the last of those that held others while they waited for a load */
    uint64_t n_asked, n_entered;
    struct content **idle; /* a heap, the lowest priority first; 1 + index is idle_at */
    size_t n_idle, cap_idle;
    double age;         /* of the cache: the priority of what left last */
    double us_per_byte; /* of loads, on average */
    uint64_t disk_used;
    size_t n_pinned, n_in_use;
    uint64_t n_loads, n_fetches, n_failed, n_evicted_host, n_evicted_disk;
    _Atomic uint64_t hits[N_TIERS]; /* counted without the lock */

    pthread_mutex_t told_lock; /* taken before `lock`: see adapter_told.c */
    size_t n_told, n_told_lines;

    pthread_t examiner;
    bool examining; /* there is such a thread; not under the lock */
    bool examined_all, facts_changed;
};

/* ---- adapter_store.c ---------------------------------------------------------------------------
 */

struct content *content_get(struct adapter_store *s, const struct content_digest *digest);
void content_learn(struct content *c, const struct engine_adapter *facts);
/* The earliest of its names that has files of the operator's own; NULL: none. */
struct item *content_local(const struct content *c);
/* Frees it if nothing keeps it. With the lock; c is gone afterwards, perhaps. */
void content_settle(struct adapter_store *s, struct content *c);
void item_attach(struct adapter_store *s, struct item *i, struct content *c);
void item_detach(struct adapter_store *s, struct item *i);
/* A local adapter, a registry's item that is known, or NULL. fresh: a registry's name only counts
 * while the index does (adapter_index_counts). With the lock. */
struct item *item_find(struct adapter_store *s, const char *model, bool fresh);
bool item_is_checked(const struct adapter_store *s, const struct item *i);
bool item_is_here(const struct item *i); /* its files are, or what they hold */

void waiters_add(struct waiters *list, struct waiter *w);
/* All of from become failures and go to ready. */
void waiters_fail(struct waiters *from, const struct err *err, struct waiters *ready);
/* Tells each what it waited for, and frees it. Without the lock. */
void waiters_tell(struct adapter_store *s, struct waiters *ready);
/* Gives w the content of i: now (w goes to ready, perhaps as a failure) or once it is loaded. With
 * the lock. */
void item_use(struct adapter_store *s, struct item *i, struct waiter *w, struct waiters *ready);
/* Sends w to the registries, or to ready as a failure. With the lock. */
void fetch_begin(struct adapter_store *s, struct waiter *w, struct waiters *ready);
/* Who asked with `user` goes to ready, if it waits for a fetch. A fetch that hasn't begun and for
 * which nobody waits is none any more. With the lock. */
void fetch_leave(struct adapter_store *s, const void *user, struct waiters *ready);
/* Has the registries asked again, if the index isn't fresh; waits for nothing. With the lock. */
void refresh_begin(struct adapter_store *s);
/* f has ended with i, or with *err where i is NULL; frees f. With the lock, and lets go of it. */
void fetch_end(struct adapter_store *s, struct fetch *f, struct item *i, const struct err *err);
/* The local ones in the order in which they were added: [*n], free() it. With the lock. */
struct item **items_in_order(const struct adapter_store *s, size_t *n);

struct wanted {
    enum { BY_NAME, BY_CONTENT, BY_ID } by;
    char name[SERVICE_NAME_BYTES];
    uint64_t version; /* 0: the highest */
    uint8_t digest[32];
};
int wanted_parse(struct wanted *w, const char *model, struct err *err);

/* ---- adapter_tiers.c ---------------------------------------------------------------------------
 */

/* One more user. With the lock. */
void content_take(struct adapter_store *s, struct content *c);
void content_give_back(struct adapter_store *s, struct content *c);
/* Out of host memory; it is loaded and nobody uses it. With the lock. */
void content_unload(struct adapter_store *s, struct content *c);
void content_pin(struct adapter_store *s, struct content *c, int by);
/* The one worth least leaves host memory; false: none is idle. With the lock. */
bool host_evict_one(struct adapter_store *s);
/* Off the device, loaded or not. Waits for the engine; without the lock. */
int device_evict(struct adapter_store *s, const struct content_digest *digest, struct err *err);
/* The same from another thread, soon: what nobody means any more leaves nothing behind. */
void device_forget(struct adapter_store *s, const struct content_digest *digest);
/* Reads and checks the files now; into host memory, too, if there is room without sending another
 * away: then *loaded, and content_landed is owed. Without the lock. */
int files_read(struct adapter_store *s, const char *dir, struct engine_adapter *facts, bool *loaded,
               uint64_t *us, struct err *err);
/* The engine has one more load of c, which is the store's from here on. room: whose it was; NULL:
 * nobody waited. With the lock. */
void content_landed(struct adapter_store *s, struct content *c, uint64_t us,
                    const struct room *room);
/* w waits for the load of what i means, which is begun unless it is under way; it goes to ready as
 * a failure when there is no thread for it. With the lock. */
void load_join(struct adapter_store *s, struct item *i, struct waiter *w, struct waiters *ready);

/* ---- adapter_room.c ----------------------------------------------------------------------------
 */

enum { ROOM_WAIT_S = 30 };

/* A place in the order. With the lock, like all of these. */
void room_ask(struct adapter_store *s, struct room *r);
/* Goes in front of the order, if it waits or comes to; those that did so for earlier holders go
 * back to their places. */
void room_go_ahead(struct adapter_store *s, struct room *r, uint64_t holder);
bool room_is_ahead(const struct adapter_store *s, const struct room *r);
/* Keeps n_bytes for it; lets go of the lock while it waits for them. ERR_BUSY: in vain, or it is
 * `lent` its thread and isn't ahead any more. */
int room_reserve(struct adapter_store *s, struct room *r, size_t n_bytes, struct err *err);
/* The same if nobody has to leave, and nobody waits. */
bool room_try(struct adapter_store *s, struct room *r, size_t n_bytes);
/* It is loaded, which content_landed counts; or it isn't, and others may have the room. */
void room_give_back(struct adapter_store *s, const struct room *r);
/* c's bytes are held in room of whoever asked before (in), or not any more. */
void room_count(struct adapter_store *s, const struct content *c, bool in);
/* Whether n adapters, asked for as `models`, can be in host memory together while all that is
 * pinned there stays; else ERR_TOO_LARGE. And beside the claims of those who have been waiting
 * since before `since` (0: no matter); else ERR_BUSY. One without a handle counts as what its name
 * means now. */
int contents_fit(struct adapter_store *s, const char *const *models,
                 const struct resolved *adapters, size_t n, struct monotonic_us since,
                 struct err *err);

/* ---- adapter_fetch.c ---------------------------------------------------------------------------
 */

char *content_dir(const struct adapter_store *s, const struct content_digest *digest);
void fetch_run(void *store, void *fetch);
/* Another waits for a fetch that may be one to be brought. With the lock. */
void bring_begin(struct adapter_store *s);
/* Off the list of those that are to be brought; false: it isn't there. With the lock. */
bool bring_off(struct adapter_store *s, const struct fetch *f);
/* What lies in DATA/adapters from earlier runs. Before any thread starts. */
void disk_scan(struct adapter_store *s);
/* The fetched files go, as far as they are there. With the lock. */
void disk_remove(struct adapter_store *s, struct content *c);

/* ---- adapter_admin.c ---------------------------------------------------------------------------
 */

/* ERR_NOT_FOUND, in the words for what operators ask. */
int no_adapter(const struct adapter_store *s, const char *model, struct err *err);

/* ---- adapter_local.c ---------------------------------------------------------------------------
 */

/* Sum of the adapter's files in dir (0: none that count); stamp [17] identifies their names, sizes,
 * times and places on the disk. */
uint64_t local_files(const char *dir, char stamp[17]);
void local_examiner_stop(struct adapter_store *s);
/* Adds each name of dirs, an object of name: directory, unless the configuration has it, as told;
 * how many. Nothing is read but what was remembered of earlier runs. */
size_t local_recall(struct adapter_store *s, const json_t *dirs);
/* Writes down what is known, if that has changed. Without the lock. */
void local_remember(struct adapter_store *s);

/* ---- adapter_told.c ----------------------------------------------------------------------------
 */

/* That name means dir, or nothing any more, is on disk. With told_lock, and without the lock. */
int told_add(struct adapter_store *s, const char *name, const char *dir, struct err *err);
int told_remove(struct adapter_store *s, const char *name, struct err *err);

#endif
