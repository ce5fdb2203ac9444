/* The wallet that a node makes for itself on its first start. */
#include "tests/support.h"

#include "node/base/err.h"
#include "node/base/log.h"
#include "node/cli/serve_wallet.h"
#include "node/config.h"
#include "wallet/wallet.h"

#include <pthread.h>
#include <stdlib.h>

struct start { /* a node's first, as far as its wallet */
    const struct config *config;
    pthread_barrier_t *together;
    struct wallet *wallet;
    struct err err;
};

static void *start_main(void *context)
{
    struct start *s = context;
    pthread_barrier_wait(s->together);
    s->wallet = serve_wallet_open(s->config, true, &s->err);
    return NULL;
}

/* Whose keys come first, and whose passphrase, is anybody's guess; one without the other would be a
 * node that never starts again. */
static void of_nodes_that_start_at_once_none_locks_the_keys_away(void **state)
{
    (void)state;
    enum { ROUNDS = 8, N = 3 };
    log_set_level(LOG_ERROR);
    for (int round = 0; round < ROUNDS; round++) {
        char *dir = temp_dir_create();
        struct config *c = config_create();
        struct err err = {0};
        pthread_barrier_t together;
        pthread_t threads[N];
        struct start starts[N] = {{.wallet = NULL}};
        assert_ok(config_set_flag(c, "data", dir, &err), err);
        assert_int_equal(pthread_barrier_init(&together, NULL, N), 0);
        for (int i = 0; i < N; i++) {
            starts[i] = (struct start){.config = c, .together = &together};
            assert_int_equal(pthread_create(&threads[i], NULL, start_main, &starts[i]), 0);
        }
        for (int i = 0; i < N; i++)
            assert_int_equal(pthread_join(threads[i], NULL), 0);
        for (int i = 0; i < N; i++)
            wallet_close(starts[i].wallet);
        struct wallet *later = serve_wallet_open(c, true, &err);
        if (later == NULL)
            fail_msg("round %d: the next start finds: %s", round, err.message);
        wallet_close(later);
        pthread_barrier_destroy(&together);
        config_free(c);
        temp_dir_remove(dir);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(of_nodes_that_start_at_once_none_locks_the_keys_away),
    };
    return cmocka_run_group_tests_name("serve_wallet", tests, NULL, NULL);
}
