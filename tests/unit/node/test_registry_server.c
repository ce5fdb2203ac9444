/* The reference registry over HTTP: what a stranger may send it, and what that is answered. That a
 * creator's upload is taken and served again is in tests/e2e/registry.test.mjs. */
#include "tests/support.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/http_client.h"
#include "node/base/log.h"
#include "node/base/sha256.h"
#include "node/http.h"
#include "node/registry_server.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define DIGITS_64 "1111111111111111111111111111111111111111111111111111111111111111"
/* Well formed, and nobody's. */
#define A_SIGNATURE                                                                \
    "x-tributary-signature: {\"chainId\":1,\"signature\":\"0x" DIGITS_64 DIGITS_64 \
    "1b\",\"verifyingContract\":\"0x1111111111111111111111111111111111111111\"}"

struct world {
    char *dir;
    struct registry_server *registry;
    struct http_server *http;
    struct http_client *client;
};

static int world_open(void **state)
{
    struct world *w = xcalloc(1, sizeof *w);
    struct err err = {0};
    log_set_level(LOG_ERROR);
    w->dir = temp_dir_create();
    struct registry_server_options ro = {.root = w->dir};
    assert_ok(registry_server_open(&w->registry, &ro, &err), err);
    struct http_options ho = {.listen = "127.0.0.1:0",
                              .tick_ms = 1,
                              .on_head = registry_server_on_head,
                              .on_request = registry_server_on_request,
                              .on_done = registry_server_on_done,
                              .context = w->registry};
    assert_ok(http_open(&w->http, &ho, &err), err);
    w->client = http_client_create();
    *state = w;
    return 0;
}

static int world_close(void **state)
{
    struct world *w = *state;
    http_close(w->http);
    registry_server_close(w->registry);
    http_client_free(w->client);
    temp_dir_remove(w->dir);
    free(w);
    return 0;
}

/* Uploads the manifest; *status gets the answer's. A new reference: its "error". */
static json_t *refusal(struct world *w, const char *manifest, const char *header, int *status)
{
    char hex[65];
    struct sha256_digest hash = sha256(manifest, strlen(manifest));
    char *url = xasprintf("%s/v1/manifests/%s.json", http_url(w->http),
                          hex_encode(hex, hash.bytes, 32));
    struct http_call call = {.method = HTTP_PUT,
                             .url = url,
                             .headers = &header,
                             .n_headers = 1,
                             .body = manifest,
                             .n_body = strlen(manifest)};
    struct buf text = BUF_INIT;
    struct http_reply reply = {0};
    struct err err = {0};
    assert_ok(http_client_fetch(w->client, &call, &text, &reply, &err), err);
    json_t *answer = json_loadb(buf_cstr(&text), text.len, 0, NULL);
    json_t *error = json_incref(json_object_get(answer, "error"));
    if (json_string_value(json_object_get(error, "message")) == NULL)
        fail_msg("%.60s: status %d, no error with a message: %s", manifest, reply.status,
                 buf_cstr(&text));
    json_decref(answer);
    buf_release(&text);
    free(url);
    *status = reply.status;
    return error;
}

/* A sentence that quotes the beginning of a text may end in the middle of a character. */
static void a_manifest_is_refused_with_a_sentence_wherever_a_quotation_is_cut(void **state)
{
    struct world *w = *state;
    struct buf many = BUF_INIT;
    for (int i = 0; i < 60; i++)
        buf_append_str(&many, "\xE2\x82\xAC"); /* one euro */
    static const char *const shapes[] = {"{\"schema\":\"@\"}", "{\"@\":1.5}"};
    for (size_t i = 0; i < 3 * sizeof shapes / sizeof *shapes; i++) {
        struct buf manifest = BUF_INIT;
        const char *shape = shapes[i / 3], *at = strchr(shape, '@');
        buf_append(&manifest, shape, (size_t)(at - shape));
        buf_append(&manifest, "aa", i % 3);
        buf_append(&manifest, many.data, many.len);
        buf_append_str(&manifest, at + 1);
        int status;
        json_t *error = refusal(w, buf_cstr(&manifest), A_SIGNATURE, &status);
        assert_int_equal(status, 400);
        json_decref(error);
        buf_release(&manifest);
    }
    buf_release(&many);
}

/* 502 would blame a server behind this one. */
static void a_signature_that_cannot_be_read_is_the_clients_fault(void **state)
{
    struct world *w = *state;
    static const char *const headers[] = {
        "x-tributary-signature: 0x1111", "x-tributary-signature: {}",
        "x-tributary-signature: "
        "{\"chainId\":-1,\"signature\":\"0x\",\"verifyingContract\":\"0x\"}"};
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        int status;
        json_t *error = refusal(w, "{}", headers[i], &status);
        const char *message = json_string_value(json_object_get(error, "message"));
        if (status != 401 || strstr(message, "x-tributary-signature") == NULL)
            fail_msg("%s: %d, %s", headers[i], status, message);
        json_decref(error);
    }
}

/* A form that the server doesn't know is as no Range at all, a start behind the end is 416. */
static void a_range_gives_the_rest_of_a_file_or_all_of_it(void **state)
{
    struct world *w = *state;
    static const struct {
        const char *range;
        int status;
        size_t from; /* of the body, in the file */
    } rows[] = {
        {NULL, 206, 5}, /* the client writes that header itself */
        {"Range: bytes=5-10", 200, 0},
        {"Range: bytes=5-,7-", 200, 0},
        {"Range: bytes=4096-4100", 200, 0},
        {"Range: bytes=-5", 200, 0},
        {"Range: lines=5-", 200, 0},
        {"Range: bytes=99999999999999999999-99999999999999999999", 200, 0},
        {"Range: bytes=4096-", 416, 0},
        {"Range: bytes=18446744073709551615-", 416, 0},
        {"Range: bytes=99999999999999999999-", 416, 0},
    };
    char *url = xasprintf("%s/v1/index.json", http_url(w->http));
    struct buf whole = BUF_INIT;
    struct err err = {0};
    assert_ok(http_client_fetch(w->client, &(struct http_call){.url = url}, &whole, NULL, &err),
              err);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct http_call call = {.url = url,
                                 .headers = &rows[i].range,
                                 .n_headers = rows[i].range != NULL ? 1 : 0,
                                 .range_from = rows[i].from};
        struct buf text = BUF_INIT;
        struct http_reply reply = {0};
        assert_ok(http_client_fetch(w->client, &call, &text, &reply, &err), err);
        const char *wanted = rows[i].status == 416 ? "" : buf_cstr(&whole) + rows[i].from;
        if (reply.status != rows[i].status || strcmp(buf_cstr(&text), wanted) != 0)
            fail_msg("row %zu: %d \"%s\", expected %d \"%s\"", i, reply.status, buf_cstr(&text),
                     rows[i].status, wanted);
        buf_release(&text);
    }
    buf_release(&whole);
    free(url);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            a_manifest_is_refused_with_a_sentence_wherever_a_quotation_is_cut, world_open,
            world_close),
        cmocka_unit_test_setup_teardown(a_signature_that_cannot_be_read_is_the_clients_fault,
                                        world_open, world_close),
        cmocka_unit_test_setup_teardown(a_range_gives_the_rest_of_a_file_or_all_of_it, world_open,
                                        world_close),
    };
    return cmocka_run_group_tests_name("registry_server", tests, NULL, NULL);
}
