/* What the node shows of itself: the status page, the metrics page, the OpenRPC document, and
 * errors as JSON. All of it repeats text that came from outside. */
#include "tests/support.h"

#include "node/api_error.h"
#include "node/api_rpc.h"
#include "node/metrics.h"
#include "node/node.h"
#include "node/service.h"
#include "node/status_page.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t count(const char *text, const char *part)
{
    size_t n = 0;
    for (; (text = strstr(text, part)) != NULL; text += strlen(part))
        n++;
    return n;
}

static void the_status_page_escapes_names_and_loads_nothing(void **state)
{
    (void)state;
    json_t *status = json_pack("{s:b, s:s, s:I, s:{s:s}, s:{s:s}, s:{s:b}, s:[{s:s}, {s:s, s:s}]}",
                               "ready", 0, "reason", "<b>\"disk\" & more</b>", "uptimeMs",
                               (json_int_t)3723000, "model", "name", "<script>alert(1)</script>",
                               "engine", "backend", "cpu", "chain", "configured", 0, "models", "id",
                               "base", "id", "<img src=x>", "parent", "base");
    assert_non_null(status);
    struct buf b = BUF_INIT;
    status_page_render(&b, status);
    const char *page = buf_cstr(&b);
    static const char *const must[] = {
        "not ready",         "&lt;script&gt;alert(1)&lt;/script&gt;",
        "&lt;img src=x&gt;", "&lt;b&gt;&quot;disk&quot; &amp; more&lt;/b&gt;",
        "1 h 02 min",        "receipts stay local",
        "name=\"viewport\""};
    static const char *const never[] = {"<script", "<img",    "http://", "https://",
                                        "src=\"",  "@import", "url("};
    for (size_t i = 0; i < sizeof must / sizeof *must; i++) {
        if (strstr(page, must[i]) == NULL)
            fail_msg("the page lacks %s", must[i]);
    }
    for (size_t i = 0; i < sizeof never / sizeof *never; i++) {
        if (strstr(page, never[i]) != NULL)
            fail_msg("the page has %s", never[i]);
    }
    assert_int_equal(count(page, "<table"), count(page, "</table>"));
    assert_int_equal(count(page, "<tr>"), count(page, "</tr>"));
    buf_release(&b);
    json_decref(status);
}

static void an_empty_status_is_a_page_too(void **state)
{
    (void)state;
    json_t *status = json_object();
    struct buf b = BUF_INIT;
    status_page_render(&b, status);
    assert_non_null(strstr(buf_cstr(&b), "</html>"));
    buf_release(&b);
    json_decref(status);
}

static void names_from_outside_cannot_make_the_metrics_grow(void **state)
{
    (void)state;
    struct metrics *m = metrics_create();
    metrics_tokens(m, "evil\"} 1\nforged \xC3\xA9\xFF", 5, 5);
    metrics_tokens(m, "other", 7, 7);
    for (int i = 0; i < 1000; i++) {
        char name[32];
        snprintf(name, sizeof name, "adapter-%d", i);
        metrics_tokens(m, name, 1, 2);
    }
    metrics_tokens(m, "adapter-3", 10, 20);
    metrics_http(m, "/v1/models", 200, 900);
    metrics_http(m, "/v1/models", 404, 70 * 1000 * 1000);
    metrics_http(m, "/v1/models", 0, 1);
    struct buf b = BUF_INIT;
    metrics_render(m, &b, &(struct metrics_sources){0});
    const char *page = buf_cstr(&b);
    assert_int_equal(count(page, "tributary_prompt_tokens_total{"), 65);
    assert_non_null(strstr(page, "tributary_prompt_tokens_total{model=\"adapter-3\"} 11\n"));
    assert_non_null(strstr(page, "tributary_prompt_tokens_total{model=\"all others\"} 938\n"));
    assert_int_equal(count(page, "tributary_prompt_tokens_total{model=\"other\"}"), 1);
    assert_non_null(strstr(page, "tributary_prompt_tokens_total{model=\"other\"} 7\n"));
    assert_null(strstr(page, "\nforged"));
    assert_non_null(strstr(page, "{model=\"evil\\\"} 1\\nforged \xC3\xA9\\\\xFF\"} 5\n"));
    assert_non_null(strstr(page, "{route=\"/v1/models\",status=\"2xx\"} 1\n"));
    assert_non_null(strstr(page, "{route=\"/v1/models\",status=\"none\"} 1\n"));
    assert_non_null(strstr(page, "tributary_http_request_seconds_bucket{le=\"0.001\"} 2\n"));
    assert_non_null(strstr(page, "tributary_http_request_seconds_bucket{le=\"60\"} 2\n"));
    assert_non_null(strstr(page, "tributary_http_request_seconds_bucket{le=\"+Inf\"} 3\n"));
    struct metrics_totals t;
    metrics_totals(m, &t);
    assert_int_equal(t.requests, 1003);
    assert_int_equal(t.tokens_prompt, 1022);
    buf_release(&b);
    metrics_free(m);
}

static void the_openrpc_document_has_every_method_with_its_parameters(void **state)
{
    (void)state;
    struct buf b = BUF_INIT;
    rpc_openrpc(&b);
    json_t *doc = json_loadb((const char *)b.data, b.len, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(doc);
    static const char *const names[] = {
        "attribution_usage",   "attribution_rewards", "attribution_receipt", "attribution_proof",
        "attribution_batches", "registry_adapters",   "registry_datanets",   "node_status"};
    json_t *methods = json_object_get(doc, "methods"), *m, *p;
    size_t i, k;
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        bool found = false;
        json_array_foreach(methods, i, m)
            found = found || strcmp(json_string_value(json_object_get(m, "name")), names[n]) == 0;
        if (!found)
            fail_msg("%s is missing", names[n]);
    }
    json_array_foreach(methods, i, m)
    {
        assert_non_null(json_object_get(json_object_get(m, "result"), "schema"));
        json_array_foreach(json_object_get(m, "params"), k, p)
        {
            assert_non_null(json_object_get(p, "name"));
            assert_non_null(json_object_get(json_object_get(p, "schema"), "type"));
        }
    }
    json_decref(doc);
    buf_release(&b);
}

/* What an error quotes may be cut in the middle of a character; the caller waits for an answer. */
static void a_wrong_call_is_answered_wherever_its_quotation_is_cut(void **state)
{
    (void)state;
    static const char *const calls[] = {
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"@\"}",
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"node_status\",\"params\":{\"@\":1}}",
    };
    static const int codes[] = {-32601, -32602};
    char euros[91] = "";
    for (int i = 0; i < 30; i++)
        strcat(euros, "\xE2\x82\xAC");
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        for (int pad = 0; pad < 3; pad++) {
            struct buf body = BUF_INIT, out = BUF_INIT;
            const char *at = strchr(calls[i], '@');
            buf_append(&body, calls[i], (size_t)(at - calls[i]));
            buf_append(&body, "aa", (size_t)pad);
            buf_append_str(&body, euros);
            buf_append_str(&body, at + 1);
            rpc_answer(&(struct node){0}, &out, body.data, body.len, true);
            json_t *answer = json_loadb(buf_cstr(&out), out.len, 0, NULL);
            const json_t *error = json_object_get(answer, "error");
            const char *message = json_string_value(json_object_get(error, "message"));
            if (json_integer_value(json_object_get(error, "code")) != codes[i] || message == NULL ||
                strstr(message, "\xE2\x82\xAC\xE2\x82\xAC") == NULL)
                fail_msg("%s: %s", buf_cstr(&body), buf_cstr(&out));
            json_decref(answer);
            buf_release(&body);
            buf_release(&out);
        }
    }
}

static void an_error_reads_as_openais(void **state)
{
    (void)state;
    static const struct {
        enum err_code code;
        const char *param, *message, *json;
    } rows[] = {
        {ERR_INVALID, "n", "say \"1\"",
         "{\"error\":{\"message\":\"say \\\"1\\\"\",\"type\":\"invalid_request_error\",\"param\":"
         "\"n\",\"code\":\"invalid\"}}"},
        {ERR_UNAUTHORIZED, NULL, "who?",
         "{\"error\":{\"message\":\"who?\",\"type\":\"authentication_error\",\"param\":null,"
         "\"code\":"
         "\"unauthorized\"}}"},
        {ERR_RATE_LIMITED, NULL, "slowly",
         "{\"error\":{\"message\":\"slowly\",\"type\":\"rate_limit_error\",\"param\":null,\"code\":"
         "\"rate_limited\"}}"},
        {ERR_IO, NULL, "disk\n",
         "{\"error\":{\"message\":\"disk\\n\",\"type\":\"server_error\",\"param\":null,\"code\":"
         "\"io\"}"
         "}"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct api_error e = {0};
        api_error_set(&e, rows[i].code, rows[i].param, "%s", rows[i].message);
        struct buf b = BUF_INIT;
        api_error_append(&b, &e);
        assert_string_equal(buf_cstr(&b), rows[i].json);
        buf_release(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_status_page_escapes_names_and_loads_nothing),
        cmocka_unit_test(an_empty_status_is_a_page_too),
        cmocka_unit_test(names_from_outside_cannot_make_the_metrics_grow),
        cmocka_unit_test(the_openrpc_document_has_every_method_with_its_parameters),
        cmocka_unit_test(a_wrong_call_is_answered_wherever_its_quotation_is_cut),
        cmocka_unit_test(an_error_reads_as_openais),
    };
    return cmocka_run_group_tests_name("pages", tests, NULL, NULL);
}
