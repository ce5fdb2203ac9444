/* Local adapters in the store: files that change, names pointed elsewhere, whole directories. */
#include "node/base/clock.h"
#include "node/base/hex.h"
#include "tests/unit/node/store_world.h"

#include <sys/stat.h>
#include <utime.h>

static void edited_files_never_serve_under_their_old_digest(void **state)
{
    (void)state;
    struct world *w = world_open(1, NULL, NULL);
    struct err err = {0};
    add_adapters(w, 2);
    struct resolved before = get(w, "a0");
    w->r.release(w->r.context, &before);
    use(w, "a1"); /* a0 leaves */
    char *dir = xasprintf("%s/made/a0", w->dir);
    write_adapter(dir, OTHER, 0);
    struct result r;
    ask(w, &r, "a0");
    await(&r);
    assert_int_equal(r.rc, -1);
    assert_int_equal(r.err.code, ERR_CONFLICT);
    if (strstr(r.err.message, "adapter a0") == NULL || strstr(r.err.message, "changed") == NULL ||
        strstr(r.err.message, w->dir) != NULL) /* where they lie is nobody's business */
        fail_msg("%s", r.err.message);
    assert_false(engine_has(w, before.content));
    struct engine_adapter facts;
    assert_ok(adapter_store_add(w->store, "a0", dir, true, &facts, &err), err);
    assert_false(DIGEST_EQ(facts.content, before.content));
    struct resolved after = get(w, "a0");
    assert_true(DIGEST_EQ(after.content, facts.content));
    w->r.release(w->r.context, &after);
    free(dir);
    world_close(w, false);
}

static void a_name_pointed_elsewhere_means_the_new_content_from_then_on(void **state)
{
    (void)state;
    struct world *w = world_open(4, NULL, NULL);
    struct err err = {0};
    char hex[65];
    add_adapters(w, 1);
    struct resolved old = get(w, "a0");
    assert_int_equal(adapter_store_add(w->store, "a0", OTHER, false, NULL, &err), -1);
    assert_int_equal(err.code, ERR_CONFLICT);
    assert_ok(adapter_store_add(w->store, "a0", OTHER, true, NULL, &err), err);
    struct resolved new = get(w, "a0");
    assert_false(DIGEST_EQ(old.content, new.content));
    assert_true(engine_has(w, old.content)); /* what is under way finishes with it */
    w->r.release(w->r.context, &old);
    assert_false(engine_has(w, old.content));
    assert_null(adapter_store_show(w->store, hex_encode(hex, old.content.bytes, 32), &err));
    w->r.release(w->r.context, &new);
    assert_ok(adapter_store_remove(w->store, "a0", &err), err);
    assert_false(engine_has(w, new.content));
    struct result r;
    ask(w, &r, "a0");
    await(&r);
    assert_int_equal(r.err.code, ERR_NOT_FOUND);
    assert_int_equal(adapter_store_remove(w->store, "a0", &err), -1);
    world_close(w, false);
}

static void two_names_of_one_content_share_its_memory(void **state)
{
    (void)state;
    struct world *w = world_open(3, NULL, NULL);
    struct err err = {0};
    char hex[65];
    assert_ok(adapter_store_add(w->store, "one", ADAPTER, false, NULL, &err), err);
    assert_ok(adapter_store_add(w->store, "two", ADAPTER, false, NULL, &err), err);
    assert_int_equal(stats(w).bytes[TIER_HOST], w->n_bytes);
    struct resolved one = get(w, "one"), two = get(w, "two");
    assert_string_equal(two.name, "two");
    assert_true(DIGEST_EQ(one.content, two.content));
    struct resolved by_digest = get(w, hex_encode(hex, one.content.bytes, 32));
    assert_string_equal(by_digest.name, "one");
    w->r.release(w->r.context, &by_digest);
    assert_ok(adapter_store_pin(w->store, "two", true, &err), err);
    assert_null(adapter_store_unload(w->store, "one", &err));
    assert_string_equal(err.message, "adapter one is pinned as two");
    assert_ok(adapter_store_pin(w->store, "two", false, &err), err);
    assert_ok(adapter_store_remove(w->store, "one", &err), err);
    w->r.release(w->r.context, &one);
    assert_true(engine_has(w, two.content));
    w->r.release(w->r.context, &two);
    world_close(w, false);
}

static void files_that_are_gone_take_no_other_name_of_the_content_with_them(void **state)
{
    (void)state;
    struct world *w = world_open(1, NULL, NULL);
    struct err err = {0};
    char *dir[2];
    static const char *const names[] = {"one", "two"};
    for (int i = 0; i < 2; i++) {
        dir[i] = xasprintf("%s/made/%s", w->dir, names[i]);
        write_adapter(dir[i], ADAPTER, 99);
        assert_ok(adapter_store_add(w->store, names[i], dir[i], false, NULL, &err), err);
    }
    add_adapters(w, 1);
    struct resolved held = get(w, "a0"); /* all of host memory: the next load waits */
    char *file = xasprintf("%s/adapter_model.safetensors", dir[0]);
    assert_int_equal(unlink(file), 0);
    struct result r[2];
    for (int i = 0; i < 2; i++) /* the second joins the first one's load */
        ask(w, &r[i], names[i]);
    usleep(20000);
    assert_false(has_come(&r[0]) || has_come(&r[1]));
    w->r.release(w->r.context, &held);
    await(&r[0]);
    await(&r[1]);
    assert_int_equal(r[0].rc, -1);
    if (r[1].rc != 0)
        fail_msg("two: %s", r[1].err.message);
    assert_string_equal(r[1].out.name, "two");
    w->r.release(w->r.context, &r[1].out);
    for (int i = 0; i < 2; i++)
        free(dir[i]);
    free(file);
    world_close(w, false);
}

/* Of three names of one content, the files of `broken` (bits) are damaged in different ways. */
static void ask_by_digest(int broken, bool serves)
{
    struct world *w = world_open(1, NULL, NULL);
    struct err err = {0};
    struct engine_adapter facts;
    char *dir[3], hex[65];
    static const char *const names[] = {"one", "two", "three"};
    for (int i = 0; i < 3; i++) {
        dir[i] = xasprintf("%s/made/%s", w->dir, names[i]);
        write_adapter(dir[i], ADAPTER, 99);
        assert_ok(adapter_store_add(w->store, names[i], dir[i], false, &facts, &err), err);
    }
    add_adapters(w, 1);
    use(w, "a0"); /* all of host memory: the three have left */
    for (int i = 0; i < 3; i++) {
        char *file = xasprintf("%s/adapter_model.safetensors", dir[i]);
        if ((broken >> i & 1) && i == 1)
            write_adapter(dir[i], ADAPTER, 98); /* another content */
        else if (broken >> i & 1)
            assert_int_equal(unlink(file), 0);
        free(file);
    }
    hex_encode(hex, facts.content.bytes, 32);
    for (int turn = 0; turn < 2; turn++) { /* what failed stays known, and still nobody's loss */
        struct result r;
        ask(w, &r, hex);
        await(&r);
        if ((r.rc == 0) != serves)
            fail_msg("broken %d, turn %d: %s", broken, turn, r.err.message);
        if (r.rc == 0) {
            assert_string_equal(r.out.name, "one"); /* whom it earns for doesn't change */
            w->r.release(w->r.context, &r.out);
            use(w, "a0");
        }
    }
    for (int i = 0; i < 3; i++) { /* a name is its own files, whatever others have */
        struct result r;
        ask(w, &r, names[i]);
        await(&r);
        if ((r.rc == 0) != !(broken >> i & 1))
            fail_msg("broken %d: %s: %s", broken, names[i], r.err.message);
        if (r.rc == 0) {
            w->r.release(w->r.context, &r.out);
            use(w, "a0");
        }
    }
    if (!serves) { /* mended files serve at once */
        write_adapter(dir[2], ADAPTER, 99);
        use(w, hex);
    }
    for (int i = 0; i < 3; i++)
        free(dir[i]);
    world_close(w, false);
}

static void a_digest_is_served_from_any_name_whose_files_are_whole(void **state)
{
    (void)state;
    for (int broken = 0; broken < 8; broken++)
        ask_by_digest(broken, broken != 7);
}

/* Fetched files that don't load leave the cache, and a file that is in the way of their new name
 * can't keep them there. */
static void fetched_files_that_do_not_load_are_deleted(bool in_the_way)
{
    enum { NAMES = 64 };
    char *data = temp_dir_create(), hex[65], *gone[NAMES];
    char *whole = xasprintf("%s/whole", data), *root = xasprintf("%s/adapters", data);
    struct err err = {0};
    struct content_digest digest;
    write_adapter(whole, ADAPTER, 99);
    assert_ok(adapter_content_digest(whole, &digest, &err), err);
    char *fetched = xasprintf("%s/%s", root, hex_encode(hex, digest.bytes, 32));
    assert_ok(dir_ensure(root, &err), err);
    write_adapter(fetched, ADAPTER, 98);
    struct world *w = world_open(1, "http://127.0.0.1:1", data);
    add_adapters(w, 1); /* all of host memory */
    assert_ok(adapter_store_add(w->store, "one", whole, false, NULL, &err), err);
    for (int i = 0; i < NAMES; i++) { /* see disk_remove */
        gone[i] = xasprintf("%s/gone-%d-%d", root, (int)getpid(), i);
        if (in_the_way)
            write_file(gone[i], "x", 1);
    }
    use(w, hex); /* the fetched files don't have the digest; those of "one" do */
    world_close(w, true);
    if (access(fetched, F_OK) == 0)
        fail_msg("files that don't load are still in the cache");
    for (int i = 0; i < NAMES; i++) {
        if ((access(gone[i], F_OK) == 0) != in_the_way)
            fail_msg("%s %s", gone[i], in_the_way ? "was deleted" : "was left behind");
        free(gone[i]);
    }
    temp_dir_remove(data);
    free(whole);
    free(root);
    free(fetched);
}

static void fetched_files_that_do_not_load_leave_the_cache(void **state)
{
    (void)state;
    fetched_files_that_do_not_load_are_deleted(false);
    fetched_files_that_do_not_load_are_deleted(true);
}

static void a_name_that_could_mean_something_else_is_refused(void **state)
{
    (void)state;
    struct world *w = world_open(3, NULL, NULL);
    static const struct {
        const char *name;
        enum err_code code;
    } cases[] = {
        {"", ERR_INVALID},
        {"base", ERR_CONFLICT},
        {".", ERR_INVALID},
        {"..", ERR_INVALID},
        {"a b", ERR_INVALID},
        {"a\nb", ERR_INVALID},
        {"caf\xe9", ERR_INVALID},
        {"a\xc3", ERR_INVALID},
        {"0x00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", ERR_INVALID},
        {"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", ERR_INVALID},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err err = {0};
        assert_int_equal(adapter_store_add(w->store, cases[i].name, ADAPTER, true, NULL, &err), -1);
        assert_int_equal(err.code, cases[i].code);
    }
    world_close(w, false);
}

static bool digest_known(struct world *w, const char *model)
{
    struct err err = {0};
    json_t *o = adapter_store_show(w->store, model, &err);
    bool known = json_is_string(json_object_get(o, "content_digest"));
    json_decref(o);
    return known;
}

static void a_directory_of_adapters_is_there_at_once_and_remembered(void **state)
{
    (void)state;
    enum { N = 300 };
    struct world *w = world_open(8, NULL, NULL);
    struct err err = {0};
    size_t n;
    char *root = temp_dir_create(), *dir, name[16];
    for (int i = 0; i < N; i++) {
        dir = xasprintf("%s/b%d", root, i);
        write_adapter(dir, ADAPTER, i + 1);
        free(dir);
    }
    dir = xasprintf("%s/empty", root);
    assert_ok(dir_ensure(dir, &err), err);
    free(dir);
    assert_ok(adapter_store_add(w->store, "b7", OTHER, false, NULL, &err), err);
    struct monotonic_us began = clock_monotonic_us();
    assert_ok(adapter_store_add_all(w->store, root, &n, &err), err);
    uint64_t us = clock_elapsed_us(began, clock_monotonic_us());
    printf("note: %d adapters found in %llu us\n", N, (unsigned long long)us);
    assert_int_equal(n, N - 1); /* b7 was given by name, empty is none */
    use(w, "b200");             /* whether anybody has looked at it or not */
    for (int i = 0; i < 2000 && !digest_known(w, "b99"); i++)
        usleep(10000);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "b%d", i);
        for (int k = 0; k < 2000 && !digest_known(w, name); k++)
            usleep(10000);
        assert_true(digest_known(w, name));
    }
    json_t *b8 = adapter_store_show(w->store, "b8", &err);
    char *data = world_close(w, true);

    /* The next run knows the digests without reading; what was edited since it doesn't. */
    dir = xasprintf("%s/b9", root);
    write_adapter(dir, OTHER, 0);
    free(dir);
    w = world_open(8, NULL, data);
    assert_ok(adapter_store_add_all(w->store, root, &n, &err), err);
    json_t *again = adapter_store_show(w->store, "b8", &err);
    assert_string_equal(json_string_value(json_object_get(again, "content_digest")),
                        json_string_value(json_object_get(b8, "content_digest")));
    struct resolved by_digest = get(w, json_string_value(json_object_get(b8, "content_digest")));
    assert_string_equal(by_digest.name, "b8");
    w->r.release(w->r.context, &by_digest);
    struct resolved b9 = get(w, "b9");
    struct content_digest other;
    dir = xasprintf("%s/b9", root);
    assert_ok(adapter_content_digest(dir, &other, &err), err);
    free(dir);
    assert_true(DIGEST_EQ(b9.content, other));
    w->r.release(w->r.context, &b9);
    json_decref(again);
    json_decref(b8);
    world_close(w, false);
    temp_dir_remove(root);
}

/* adapters.known again, with every size 1 and `behind` at the end of its first line. */
static void rewrite_known(const char *data, const char *behind)
{
    struct buf text = BUF_INIT, changed = BUF_INIT;
    struct err err = {0};
    char *path = xasprintf("%s/adapters.known", data);
    assert_ok(file_read(path, 1 << 20, &text, &err), err);
    char *rest = (char *)(uintptr_t)buf_cstr(&text), *line = strsep(&rest, "\n");
    assert_int_equal(strlen(line), strlen("tributary-known-adapters 1 ") + 64);
    buf_appendf(&changed, "%s%s\n", line, behind);
    while ((line = strsep(&rest, "\n")) != NULL && line[0] != '\0') {
        char *after = strchr(line + 65, ' ');
        line[64] = '\0';
        buf_appendf(&changed, "%s 1%s\n", line, after);
    }
    assert_ok(file_write_atomic(path, changed.data, changed.len, 0600, &err), err);
    buf_release(&text);
    buf_release(&changed);
    free(path);
}

static void sizes_are_not_remembered_of_adapters_held_as_something_else(void **state)
{
    (void)state;
    static const char *const behind[] = {"", " bf16"};
    char *root = temp_dir_create(), *dir = xasprintf("%s/one", root);
    write_adapter(dir, ADAPTER, 1);
    for (int i = 0; i < 2; i++) {
        struct world *w = world_open(8, NULL, NULL);
        struct err err = {0};
        size_t n;
        assert_ok(adapter_store_add_all(w->store, root, &n, &err), err);
        for (int k = 0; k < 2000 && !digest_known(w, "one"); k++)
            usleep(10000);
        char *data = world_close(w, true);
        rewrite_known(data, behind[i]);
        w = world_open(8, NULL, data);
        assert_ok(adapter_store_add_all(w->store, root, &n, &err), err);
        json_t *one = adapter_store_show(w->store, "one", &err);
        assert_int_equal(json_integer_value(json_object_get(one, "bytes")) == 1, i == 0);
        json_decref(one);
        world_close(w, false);
    }
    free(dir);
    temp_dir_remove(root);
}

static void a_list_comes_in_pages_and_can_be_filtered(void **state)
{
    (void)state;
    struct world *w = world_open(4, NULL, NULL);
    struct err err = {0};
    add_adapters(w, 25);
    assert_ok(adapter_store_pin(w->store, "a3", true, &err), err);
    struct adapter_filter f = {.limit = 10};
    char cursor[64];
    size_t seen = 0, pages_read = 0;
    char last[64] = "";
    for (;;) {
        json_t *page = adapter_store_list(w->store, &f, &err), *one;
        size_t i;
        json_array_foreach(json_object_get(page, "items"), i, one)
        {
            const char *id = json_string_value(json_object_get(one, "id"));
            assert_true(strcmp(id, last) > 0);
            snprintf(last, sizeof last, "%s", id);
            seen++;
        }
        pages_read++;
        const char *next = json_string_value(json_object_get(page, "next"));
        snprintf(cursor, sizeof cursor, "%s", next != NULL ? next : "");
        json_decref(page);
        if (cursor[0] == '\0')
            break;
        f.cursor = cursor;
    }
    assert_int_equal(seen, 25);
    assert_int_equal(pages_read, 3);
    static const struct {
        struct adapter_filter f;
        size_t n;
    } cases[] = {
        {{.tier = "host"}, 4},  {{.tier = "disk"}, 25}, {{.pinned = true}, 1},
        {{.prefix = "a1"}, 11}, {{.prefix = "b"}, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *page = adapter_store_list(w->store, &cases[i].f, &err);
        assert_int_equal(json_array_size(json_object_get(page, "items")), cases[i].n);
        assert_true(json_is_null(json_object_get(page, "next")));
        json_decref(page);
    }
    assert_null(adapter_store_list(w->store, &(struct adapter_filter){.tier = "moon"}, &err));
    assert_int_equal(err.code, ERR_INVALID);
    world_close(w, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(edited_files_never_serve_under_their_old_digest),
        cmocka_unit_test(a_name_pointed_elsewhere_means_the_new_content_from_then_on),
        cmocka_unit_test(two_names_of_one_content_share_its_memory),
        cmocka_unit_test(files_that_are_gone_take_no_other_name_of_the_content_with_them),
        cmocka_unit_test(a_digest_is_served_from_any_name_whose_files_are_whole),
        cmocka_unit_test(fetched_files_that_do_not_load_leave_the_cache),
        cmocka_unit_test(a_name_that_could_mean_something_else_is_refused),
        cmocka_unit_test(a_directory_of_adapters_is_there_at_once_and_remembered),
        cmocka_unit_test(sizes_are_not_remembered_of_adapters_held_as_something_else),
        cmocka_unit_test(a_list_comes_in_pages_and_can_be_filtered),
    };
    return cmocka_run_group_tests_name("adapter_local", tests, NULL, NULL);
}
