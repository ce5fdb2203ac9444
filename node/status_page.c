/* status_page: see status_page.h. One page, no script, nothing loaded from elsewhere; it reloads
 * itself every ten seconds. All text that comes from outside is escaped. */
#include "node/status_page.h"

#include "node/base/buf.h"
#include "node/http.h"
#include "node/node.h"

#include <stdio.h>
#include <string.h>

static void escape(struct buf *b, const char *text)
{
    for (; *text != '\0'; text++) {
        switch (*text) {
        case '<':
            buf_append_str(b, "&lt;");
            break;
        case '>':
            buf_append_str(b, "&gt;");
            break;
        case '&':
            buf_append_str(b, "&amp;");
            break;
        case '"':
            buf_append_str(b, "&quot;");
            break;
        default:
            buf_append_byte(b, (uint8_t)*text);
        }
    }
}

static json_int_t integer(const json_t *o, const char *section, const char *key)
{
    return json_integer_value(json_object_get(json_object_get(o, section), key));
}

static void row(struct buf *b, const char *title, const char *value)
{
    buf_append_str(b, "<tr><th>");
    escape(b, title);
    buf_append_str(b, "</th><td>");
    escape(b, value);
    buf_append_str(b, "</td></tr>\n");
}

static void row_int(struct buf *b, const char *title, json_int_t value)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)value);
    row(b, title, text);
}

static const char *text_or(const json_t *v, const char *otherwise)
{
    return json_is_string(v) ? json_string_value(v) : otherwise;
}

void status_page_render(struct buf *b, const json_t *s)
{
    bool ready = json_is_true(json_object_get(s, "ready"));
    const json_t *model = json_object_get(s, "model");
    buf_append_str(
        b, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
           "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
           "<meta http-equiv=\"refresh\" content=\"10\">\n<title>Tributary</title>\n<style>\n"
           ":root{color-scheme:light dark}\n"
           "body{font:16px/1.4 system-ui,sans-serif;max-width:44rem;margin:1rem auto;"
           "padding:0 1rem}\n"
           "h1{font-size:1.4rem}h2{font-size:1.05rem;margin:1.4rem 0 .3rem}\n"
           "table{border-collapse:collapse;width:100%}\n"
           "th,td{text-align:left;padding:.25rem 0;border-bottom:1px solid #8884;"
           "font-weight:normal;overflow-wrap:anywhere;vertical-align:top}\n"
           "td{text-align:right;font-variant-numeric:tabular-nums;padding-left:1rem}\n"
           ".ok{color:#187a32}.bad{color:#c62828}\n"
           "</style></head><body>\n<h1>Tributary node: <span class=\"");
    buf_append_str(b, ready ? "ok\">ready" : "bad\">not ready");
    buf_append_str(b, "</span></h1>\n");
    const char *reason = text_or(json_object_get(s, "reason"), "");
    if (reason[0] != '\0') {
        buf_append_str(b, "<p class=\"bad\">");
        escape(b, reason);
        buf_append_str(b, "</p>\n");
    }
    buf_append_str(b, "<table>\n");
    row(b, "Model", text_or(json_object_get(model, "name"), ""));
    row(b, "Backend", text_or(json_object_get(json_object_get(s, "engine"), "backend"), ""));
    json_int_t up = json_integer_value(json_object_get(s, "uptimeMs")) / 1000;
    char text[64];
    snprintf(text, sizeof text, "%lld h %02lld min", (long long)(up / 3600),
             (long long)(up / 60 % 60));
    row(b, "Up for", text);
    row(b, "Version", text_or(json_object_get(s, "version"), ""));
    buf_append_str(b, "</table>\n<h2>Requests</h2><table>\n");
    row_int(b, "Being answered", integer(s, "requests", "inFlight"));
    row_int(b, "With a receipt", integer(s, "requests", "receipts"));
    row_int(b, "Refused or failed", integer(s, "requests", "failed"));
    row_int(b, "Client went away", integer(s, "requests", "vanished"));
    row_int(b, "Prompt tokens", integer(s, "requests", "promptTokens"));
    row_int(b, "Completion tokens", integer(s, "requests", "completionTokens"));
    row_int(b, "Connections", json_integer_value(json_object_get(s, "connections")));
    buf_append_str(b, "</table>\n<h2>Engine</h2><table>\n");
    row_int(b, "Sequences running", integer(s, "engine", "running"));
    row_int(b, "Sequences waiting", integer(s, "engine", "waiting"));
    row_int(b, "Steps", integer(s, "engine", "steps"));
    snprintf(text, sizeof text, "%lld of %lld", (long long)integer(s, "engine", "kvBlocksFree"),
             (long long)integer(s, "engine", "kvBlocks"));
    row(b, "KV blocks free", text);
    const json_t *adapters = json_object_get(s, "adapters");
    if (adapters != NULL) {
        static const char *const tiers[][2] = {{"device", "Adapters on the device"},
                                               {"host", "in host memory"},
                                               {"disk", "on disk"},
                                               {"registry", "listed by registries"}};
        buf_append_str(b, "</table>\n<h2>Adapters</h2><table>\n");
        for (int i = 0; i < 4; i++) {
            const json_t *tier = json_object_get(adapters, tiers[i][0]);
            snprintf(text, sizeof text, "%lld, %lld MB; %lld requests",
                     (long long)json_integer_value(json_object_get(tier, "adapters")),
                     (long long)json_integer_value(json_object_get(tier, "bytes")) / 1000000,
                     (long long)json_integer_value(json_object_get(tier, "requests")));
            row(b, tiers[i][1], text);
        }
    }
    buf_append_str(b, "</table>\n<h2>Ledger</h2><table>\n");
    row_int(b, "Receipts not sealed", integer(s, "ledger", "unsealedReceipts"));
    row_int(b, "Batches sealed", integer(s, "ledger", "batchesSealed"));
    row_int(b, "Batches final", integer(s, "ledger", "batchesFinal"));
    row_int(b, "Transactions waiting", integer(s, "ledger", "outboxWaiting"));
    const json_t *chain = json_object_get(s, "chain");
    row(b, "Chain",
        !json_is_true(json_object_get(chain, "configured"))       ? "none: receipts stay local"
        : json_is_true(json_object_get(chain, "endpointAnswers")) ? "answers"
                                                                  : "does not answer");
    row(b, "Operator", text_or(json_object_get(json_object_get(s, "ledger"), "operator"), ""));
    if (json_object_get(chain, "houseBalance") != NULL)
        row(b, "House account's deposit",
            text_or(json_object_get(chain, "houseBalance"), "not known yet"));
    buf_append_str(b, "</table>\n<h2>Models</h2><table>\n"); /* the first ones */
    size_t i;
    const json_t *one;
    json_array_foreach(json_object_get(s, "models"), i, one)
    {
        const char *parent = text_or(json_object_get(one, "parent"), "");
        row(b, text_or(json_object_get(one, "id"), ""), parent[0] != '\0' ? "adapter" : "base");
    }
    buf_append_str(b, "</table>\n<p><a href=\"/metrics\">metrics</a> · "
                      "<a href=\"/rpc/openrpc.json\">rpc</a> · <a href=\"/readyz\">readyz</a></p>\n"
                      "</body></html>\n");
}

void status_page(struct node *n, struct http_exchange *x)
{
    json_t *status = health_status(n);
    struct buf b = BUF_INIT;
    status_page_render(&b, status);
    json_decref(status);
    http_set_header(x, "Content-Security-Policy",
                    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
                    "frame-ancestors 'none'");
    http_set_header(x, "X-Content-Type-Options", "nosniff");
    http_reply(x, 200, "text/html; charset=utf-8", &b);
}
