/* What a running node was told of its adapters, and its next starts. */
#include "tests/unit/node/store_world.h"

#include "node/base/buf.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>

/* The next run on the same data directory; given: a name of its configuration, for OTHER. */
static struct world *next_run(struct world *w, const char *given, size_t expected)
{
    struct err err = {0};
    size_t n;
    w = world_open(4, NULL, world_close(w, true));
    if (given != NULL)
        assert_ok(adapter_store_add(w->store, given, OTHER, false, NULL, &err), err);
    assert_ok(adapter_store_recall(w->store, &n, &err), err);
    assert_int_equal(n, expected);
    return w;
}

static char *told_path(const struct world *w)
{
    return xasprintf("%s/adapters.told", w->dir);
}

static void append_to_told(const struct world *w, const char *text)
{
    char *path = told_path(w);
    FILE *f = fopen(path, "ab");
    if (f == NULL || fputs(text, f) == EOF || fclose(f) != 0)
        fail_msg("cannot append to %s", path);
    free(path);
}

static size_t told_lines(const struct world *w)
{
    struct buf b = BUF_INIT;
    struct err err = {0};
    char *path = told_path(w);
    size_t n = 0;
    assert_ok(file_read(path, 1 << 24, &b, &err), err);
    for (size_t i = 0; i < b.len; i++)
        n += b.data[i] == '\n';
    if (b.len > 0)
        assert_int_equal(b.data[b.len - 1], '\n');
    buf_release(&b);
    free(path);
    return n;
}

static void tell(struct world *w, const char *name, const char *dir)
{
    struct err err = {0};
    assert_ok(adapter_store_add(w->store, name, dir, true, NULL, &err), err);
}

static void is_content_of(struct world *w, const char *name, const char *dir)
{
    struct content_digest digest;
    struct err err = {0};
    assert_ok(adapter_content_digest(dir, &digest, &err), err);
    struct resolved got = get(w, name);
    if (!DIGEST_EQ(got.content, digest))
        fail_msg("%s isn't what %s holds", name, dir);
    w->r.release(w->r.context, &got);
}

static void is_unknown(struct world *w, const char *name)
{
    struct result r;
    ask(w, &r, name);
    await(&r);
    assert_int_equal(r.rc, -1);
    assert_int_equal(r.err.code, ERR_NOT_FOUND);
}

static void what_was_told_comes_back_and_what_was_forgotten_does_not(void **state)
{
    (void)state;
    struct err err = {0};
    struct world *w = next_run(world_open(4, NULL, NULL), "given", 0);
    tell(w, "law", ADAPTER);
    tell(w, "na\"me/\xc3\xa9@2", OTHER);
    tell(w, "pointed", ADAPTER);
    tell(w, "pointed", OTHER);
    tell(w, "forgotten", ADAPTER);
    assert_ok(adapter_store_remove(w->store, "forgotten", &err), err);
    assert_ok(adapter_store_remove(w->store, "given", &err), err);
    for (int run = 0; run < 3; run++) {
        w = next_run(w, "given", 3);
        assert_int_equal(told_lines(w), 3); /* what counts no more has gone */
        is_content_of(w, "law", ADAPTER);
        is_content_of(w, "na\"me/\xc3\xa9@2", OTHER);
        is_content_of(w, "pointed", OTHER);
        is_content_of(w, "given", OTHER);
        is_unknown(w, "forgotten");
    }
    /* Without the file nobody would know: the configuration's name was not told. */
    w = next_run(w, NULL, 3);
    is_unknown(w, "given");
    assert_ok(adapter_store_remove(w->store, "law", &err), err); /* of an earlier run */
    w = next_run(w, NULL, 2);
    is_unknown(w, "law");
    world_close(w, false);
}

static void the_configuration_counts_more_than_what_was_told(void **state)
{
    (void)state;
    struct world *w = next_run(world_open(4, NULL, NULL), NULL, 0);
    tell(w, "law", ADAPTER);
    w = next_run(w, "law", 0);
    is_content_of(w, "law", OTHER);
    w = next_run(w, NULL, 0);
    is_unknown(w, "law");
    world_close(w, false);
}

static void a_directory_that_has_gone_is_an_error_of_who_asks(void **state)
{
    (void)state;
    struct err err = {0};
    struct world *w = next_run(world_open(4, NULL, NULL), NULL, 0);
    char *dir = xasprintf("%s/elsewhere", w->dir), *away = xasprintf("%s/away", w->dir);
    write_adapter(dir, ADAPTER, 7);
    tell(w, "moved", dir);
    assert_int_equal(rename(dir, away), 0);
    w = next_run(w, NULL, 1);
    struct result r;
    ask(w, &r, "moved");
    await(&r);
    assert_int_equal(r.rc, -1);
    assert_non_null(strstr(r.err.message, "moved"));
    assert_null(strstr(r.err.message, dir)); /* which is the operator's to know */
    assert_int_equal(rename(away, dir), 0);
    is_content_of(w, "moved", dir); /* it is back: no need to tell again */
    assert_ok(adapter_store_remove(w->store, "moved", &err), err);
    w = next_run(w, NULL, 0);
    world_close(w, false);
    free(dir);
    free(away);
}

static void half_a_line_and_foreign_lines_do_no_harm(void **state)
{
    (void)state;
    struct world *w = next_run(world_open(4, NULL, NULL), NULL, 0);
    tell(w, "law", ADAPTER);
    append_to_told(w, "{\"add\":5,\"dir\":\"/x\"}\nnonsense\n{\"add\":\"base\",\"dir\":\"/x\"}\n"
                      "{\"add\":\"a b\",\"dir\":\"/x\"}\n{\"add\":\"rel\",\"dir\":\"x\"}\n\n"
                      "{\"remove\":\"law\"");
    w = next_run(w, NULL, 1);
    assert_int_equal(told_lines(w), 1);
    tell(w, "two", OTHER); /* not onto half a line */
    w = next_run(w, NULL, 2);
    is_content_of(w, "law", ADAPTER);
    is_content_of(w, "two", OTHER);
    world_close(w, false);
}

static void what_cannot_be_written_down_is_refused(void **state)
{
    (void)state;
    struct err err = {0};
    struct world *w = next_run(world_open(4, NULL, NULL), NULL, 0);
    tell(w, "law", ADAPTER);
    struct rlimit before, tight;
    struct stat st;
    char *path = told_path(w);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    tight = before;
    tight.rlim_cur = (rlim_t)st.st_size + 10; /* room for half a line */
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
    int added = adapter_store_add(w->store, "two", OTHER, true, NULL, &err);
    struct err why = {0};
    int removed = adapter_store_remove(w->store, "law", &why);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(added, -1);
    assert_non_null(strstr(err.message, path));
    assert_int_equal(removed, -1);
    assert_non_null(strstr(why.message, path));
    is_unknown(w, "two");
    assert_int_equal(stats(w).n_adapters[TIER_HOST], 1); /* two takes no memory either */
    is_content_of(w, "law", ADAPTER);
    assert_int_equal(told_lines(w), 1); /* a whole one */
    tell(w, "two", OTHER);
    w = next_run(w, NULL, 2);
    world_close(w, false);
    free(path);
}

static void churn_does_not_grow_the_file_for_ever(void **state)
{
    (void)state;
    struct err err = {0};
    struct world *w = next_run(world_open(4, NULL, NULL), NULL, 0);
    tell(w, "stays", OTHER);
    for (int i = 0; i < 1500; i++) {
        tell(w, "comes", ADAPTER);
        assert_ok(adapter_store_remove(w->store, "comes", &err), err);
    }
    assert_in_range(told_lines(w), 1, 1010);
    w = next_run(w, NULL, 1);
    is_content_of(w, "stays", OTHER);
    world_close(w, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_told_comes_back_and_what_was_forgotten_does_not),
        cmocka_unit_test(the_configuration_counts_more_than_what_was_told),
        cmocka_unit_test(a_directory_that_has_gone_is_an_error_of_who_asks),
        cmocka_unit_test(half_a_line_and_foreign_lines_do_no_harm),
        cmocka_unit_test(what_cannot_be_written_down_is_refused),
        cmocka_unit_test(churn_does_not_grow_the_file_for_ever),
    };
    return cmocka_run_group_tests_name("adapters that were told", tests, NULL, NULL);
}
