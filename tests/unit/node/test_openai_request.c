/* Request bodies: what is understood, what is refused and under which name; hostile JSON. */
#include "tests/support.h"

#include "node/api_error.h"
#include "node/ensemble.h"
#include "node/json_util.h"
#include "node/openai_request.h"
#include "node/sse.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define C   OPENAI_COMPLETION
#define M   OPENAI_CHAT
#define MSG "\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
#define PRO "\"model\":\"m\",\"prompt\":\"hi\""

static void a_wrong_field_is_refused_by_its_name(void **state)
{
    (void)state;
    static const struct {
        enum openai_kind kind;
        const char *body;
        enum err_code code;
        const char *param;
    } rows[] = {
        {C, "{\"prompt\":\"x\"}", ERR_INVALID, "model"},
        {C, "{\"model\":7,\"prompt\":\"x\"}", ERR_INVALID, "model"},
        {C, "{\"model\":\"\",\"prompt\":\"x\"}", ERR_INVALID, "model"},
        {C, "{\"model\":\"m\"}", ERR_INVALID, "prompt"},
        {C, "{\"model\":\"m\",\"prompt\":null}", ERR_INVALID, "prompt"},
        {C, "{\"model\":\"m\",\"prompt\":[]}", ERR_INVALID, "prompt"},
        {C, "{\"model\":\"m\",\"prompt\":7}", ERR_INVALID, "prompt"},
        {C, "{\"model\":\"m\",\"prompt\":[1,\"a\"]}", ERR_INVALID, "prompt"},
        {C, "{\"model\":\"m\",\"prompt\":[\"a\",1]}", ERR_INVALID, "prompt"},
        {C, "{\"model\":\"m\",\"prompt\":[[1],\"a\"]}", ERR_INVALID, "prompt"},
        {C, "{\"model\":\"m\",\"prompt\":[[]]}", ERR_INVALID, "prompt[0]"},
        {C, "{\"model\":\"m\",\"prompt\":[[1],[2,-1]]}", ERR_INVALID, "prompt[1]"},
        {C, "{\"model\":\"m\",\"prompt\":[1.5]}", ERR_INVALID, "prompt"},
        {C, "{\"model\":\"m\",\"prompt\":[4294967296]}", ERR_INVALID, "prompt"},
        {C, "{" PRO ",\"max_tokens\":0}", ERR_INVALID, "max_tokens"},
        {C, "{" PRO ",\"max_tokens\":-1}", ERR_INVALID, "max_tokens"},
        {C, "{" PRO ",\"max_tokens\":\"9\"}", ERR_INVALID, "max_tokens"},
        {C, "{" PRO ",\"max_tokens\":1e3}", ERR_INVALID, "max_tokens"},
        {C, "{" PRO ",\"logprobs\":21}", ERR_INVALID, "logprobs"},
        {C, "{" PRO ",\"logprobs\":true}", ERR_INVALID, "logprobs"},
        {C, "{" PRO ",\"best_of\":2}", ERR_UNSUPPORTED, "best_of"},
        {C, "{" PRO ",\"suffix\":\"x\"}", ERR_UNSUPPORTED, "suffix"},
        {C, "{" PRO ",\"echo\":1}", ERR_INVALID, "echo"},
        {M, "{\"model\":\"m\"}", ERR_INVALID, "messages"},
        {M, "{\"model\":\"m\",\"messages\":{}}", ERR_INVALID, "messages"},
        {M, "{\"model\":\"m\",\"messages\":[]}", ERR_INVALID, "messages"},
        {M, "{\"model\":\"m\",\"messages\":[\"hi\"]}", ERR_INVALID, "messages[0]"},
        {M, "{\"model\":\"m\",\"messages\":[{\"content\":\"x\"}]}", ERR_INVALID,
         "messages[0].role"},
        {M, "{\"model\":\"m\",\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}", ERR_INVALID,
         "messages[0].role"},
        {M, "{\"model\":\"m\",\"messages\":[{\"role\":1,\"content\":\"x\"}]}", ERR_INVALID,
         "messages[0].role"},
        {M, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\"}]}", ERR_INVALID,
         "messages[0].content"},
        {M, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":7}]}", ERR_INVALID,
         "messages[0].content"},
        {M,
         "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}"
         "]}",
         ERR_UNSUPPORTED, "messages[0].content[0].type"},
        {M,
         "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}",
         ERR_INVALID, "messages[0].content[0].text"},
        {M,
         "{\"model\":\"m\",\"messages\":[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":"
         "[{}]}]}",
         ERR_UNSUPPORTED, "messages[0].tool_calls"},
        {M, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"a\\u0000b\"}]}",
         ERR_INVALID, "messages[0].content"},
        {M,
         "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\","
         "\"text\":"
         "\"\\u0000\"}]}]}",
         ERR_INVALID, "messages[0].content[0].text"},
        {M, "{" MSG ",\"stop\":\"\\u0000\"}", ERR_INVALID, "stop"},
        {M, "{" MSG ",\"stop\":[\"a\",\"b\\u0000\"]}", ERR_INVALID, "stop[1]"},
        {M, "{" MSG ",\"cache_salt\":\"a\\u0000\"}", ERR_INVALID, "cache_salt"},
        {M, "{" MSG ",\"user\":\"a\\u0000\"}", ERR_INVALID, "user"},
        {M, "{" MSG ",\"chat_template_kwargs\":{\"a\":\"\\u0000\"}}", ERR_INVALID,
         "chat_template_kwargs.a"},
        {C, "{\"model\":\"m\\u0000\",\"prompt\":\"x\"}", ERR_INVALID, "model"},
        {C, "{\"model\":\"m\",\"prompt\":\"x\\u0000\"}", ERR_INVALID, "prompt"},
        {C, "{\"model\":\"m\",\"prompt\":[\"x\",\"\\u0000\"]}", ERR_INVALID, "prompt[1]"},
        {C, "{\"adapters\":[{\"model\":\"m\\u0000\"}],\"prompt\":\"x\"}", ERR_INVALID,
         "adapters[0].model"},
        {C, "{\"model\":\"m\",\"prompt\":\"\\u0000", ERR_INVALID, ""},
        {M, "{" MSG ",\"temperature\":2.5}", ERR_INVALID, "temperature"},
        {M, "{" MSG ",\"temperature\":\"hot\"}", ERR_INVALID, "temperature"},
        {M, "{" MSG ",\"temperature\":-0.1}", ERR_INVALID, "temperature"},
        {M, "{" MSG ",\"top_p\":1.1}", ERR_INVALID, "top_p"},
        {M, "{" MSG ",\"min_p\":-1}", ERR_INVALID, "min_p"},
        {M, "{" MSG ",\"top_k\":0.5}", ERR_INVALID, "top_k"},
        {M, "{" MSG ",\"presence_penalty\":3}", ERR_INVALID, "presence_penalty"},
        {M, "{" MSG ",\"frequency_penalty\":-3}", ERR_INVALID, "frequency_penalty"},
        {M, "{" MSG ",\"repetition_penalty\":0}", ERR_INVALID, "repetition_penalty"},
        {M, "{" MSG ",\"n\":0}", ERR_INVALID, "n"},
        {M, "{" MSG ",\"n\":9}", ERR_INVALID, "n"},
        {M, "{" MSG ",\"seed\":1.5}", ERR_INVALID, "seed"},
        {M, "{" MSG ",\"seed\":18446744073709551615}", ERR_INVALID, "seed"},
        {M, "{" MSG ",\"seed\":-9223372036854775809}", ERR_INVALID, "seed"},
        {M, "{" MSG ",\"top_p\":0.12345678901234567890,\"n\":9223372036854775808}", ERR_INVALID,
         "n"},
        {C, "{\"model\":\"m\",\"prompt\":[[1],[2,99999999999999999999]]}", ERR_INVALID,
         "prompt[1][1]"},
        {M, "{" MSG ",\"seed\":18446744073709551615", ERR_INVALID, ""},
        {M, "{" MSG ",\"stream\":\"yes\"}", ERR_INVALID, "stream"},
        {M, "{" MSG ",\"stream_options\":{}}", ERR_INVALID, "stream_options"},
        {M, "{" MSG ",\"stream\":true,\"stream_options\":{\"include_usage\":1}}", ERR_INVALID,
         "stream_options.include_usage"},
        {M, "{" MSG ",\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\"]}", ERR_INVALID, "stop"},
        {M, "{" MSG ",\"stop\":\"\"}", ERR_INVALID, "stop"},
        {M, "{" MSG ",\"stop\":[1]}", ERR_INVALID, "stop"},
        {M, "{" MSG ",\"logit_bias\":{\"a\":1}}", ERR_INVALID, "logit_bias"},
        {M, "{" MSG ",\"logit_bias\":{\"1\":101}}", ERR_INVALID, "logit_bias"},
        {M, "{" MSG ",\"logit_bias\":{\"-1\":1}}", ERR_INVALID, "logit_bias"},
        {M, "{" MSG ",\"logit_bias\":{\"5\":100,\"05\":100}}", ERR_INVALID, "logit_bias"},
        {M, "{" MSG ",\"logit_bias\":[]}", ERR_INVALID, "logit_bias"},
        {M, "{" MSG ",\"top_logprobs\":2}", ERR_INVALID, "top_logprobs"},
        {M, "{" MSG ",\"logprobs\":5}", ERR_INVALID, "logprobs"},
        {M, "{" MSG ",\"logprobs\":true,\"top_logprobs\":21}", ERR_INVALID, "top_logprobs"},
        {M, "{" MSG ",\"max_completion_tokens\":0}", ERR_INVALID, "max_completion_tokens"},
        {M, "{" MSG ",\"user\":1}", ERR_INVALID, "user"},
        {M, "{" MSG ",\"tools\":[{\"type\":\"function\"}]}", ERR_UNSUPPORTED, "tools"},
        {M, "{" MSG ",\"tool_choice\":\"required\"}", ERR_UNSUPPORTED, "tool_choice"},
        {M, "{" MSG ",\"functions\":[{}]}", ERR_UNSUPPORTED, "functions"},
        {M, "{" MSG ",\"response_format\":{\"type\":\"json_object\"}}", ERR_UNSUPPORTED,
         "response_format"},
        {M, "{" MSG ",\"audio\":{\"voice\":\"x\"}}", ERR_UNSUPPORTED, "audio"},
        {M, "{" MSG ",\"web_search_options\":{}}", ERR_UNSUPPORTED, "web_search_options"},
        {M, "{" MSG ",\"modalities\":[\"text\",\"audio\"]}", ERR_UNSUPPORTED, "modalities"},
        {M, "{" MSG ",\"reasoning_effort\":\"high\"}", ERR_UNSUPPORTED, "reasoning_effort"},
        {M, "{" MSG ",\"guided_json\":{\"a\":1}}", ERR_UNSUPPORTED, "guided_json"},
        {M, "{" MSG ",\"add_generation_prompt\":false}", ERR_UNSUPPORTED, "add_generation_prompt"},
        {M, "{" MSG ",\"echo\":true}", ERR_UNSUPPORTED, "echo"},
        {M, "{" MSG ",\"prompt_logprobs\":0}", ERR_UNSUPPORTED, "prompt_logprobs"},
        {C, "{" PRO ",\"prompt_logprobs\":1}", ERR_UNSUPPORTED, "prompt_logprobs"},
        {M, "{" MSG ",\"chat_template_kwargs\":1}", ERR_INVALID, "chat_template_kwargs"},
        {M, "{" MSG ",\"chat_template_kwargs\":{\"tools\":[{}]}}", ERR_UNSUPPORTED,
         "chat_template_kwargs.tools"},
        {M, "{" MSG ",\"chat_template_kwargs\":{\"messages\":[{}]}}", ERR_UNSUPPORTED,
         "chat_template_kwargs.messages"},
        {M, "{" MSG ",\"chat_template_kwargs\":{\"add_generation_prompt\":false}}", ERR_UNSUPPORTED,
         "chat_template_kwargs.add_generation_prompt"},
        {C, "{" PRO ",\"adapters\":{}}", ERR_INVALID, "adapters"},
        {C, "{" PRO ",\"adapters\":[]}", ERR_INVALID, "adapters"},
        {C, "{" PRO ",\"adapters\":[\"a\"]}", ERR_INVALID, "adapters[0]"},
        {C, "{" PRO ",\"adapters\":[{\"weight\":1}]}", ERR_INVALID, "adapters[0].model"},
        {C, "{" PRO ",\"adapters\":[{\"model\":\"a\"},{\"model\":\"b\",\"wieght\":2}]}",
         ERR_INVALID, "adapters[1]"},
        {C, "{" PRO ",\"adapters\":[{\"model\":\"a\"},{\"model\":1}]}", ERR_INVALID,
         "adapters[1].model"},
        {C, "{" PRO ",\"adapters\":[{\"model\":\"\"}]}", ERR_INVALID, "adapters[0].model"},
        {C, "{" PRO ",\"adapters\":[{\"model\":\"a\",\"weight\":\"1\"}]}", ERR_INVALID,
         "adapters[0].weight"},
        {C, "{" PRO ",\"adapters\":[{\"model\":\"a\",\"weight\":1000001}]}", ERR_INVALID,
         "adapters[0].weight"},
        {C, "{" PRO ",\"adapters\":[{\"model\":\"a\",\"weight\":-1e300}]}", ERR_INVALID,
         "adapters[0].weight"},
        {C,
         "{" PRO
         ",\"adapters\":[{\"model\":\"a\",\"weight\":0},{\"model\":\"b\",\"weight\":-0.0}]}",
         ERR_INVALID, "adapters"},
        {C, "{" PRO ",\"adapters\":[{\"model\":\"a\",\"weight\":1e-60}]}", ERR_INVALID, "adapters"},
        {C, "{\"model\":7,\"prompt\":\"x\",\"adapters\":[{\"model\":\"a\"}]}", ERR_INVALID,
         "model"},
        {C,
         "{" PRO
         ",\"adapters\":[{\"model\":\"1\"},{\"model\":\"2\"},{\"model\":\"3\"},{\"model\":\"4\"},"
         "{\"model\":\"5\"},{\"model\":\"6\"},{\"model\":\"7\"},{\"model\":\"8\"},{\"model\":\"9\"}"
         "]}",
         ERR_INVALID, "adapters"},
        {M, "{" MSG ",\"priority\":101}", ERR_INVALID, "priority"},
        {M, "{" MSG ",\"priority\":0.5}", ERR_INVALID, "priority"},
        {M, "{" MSG ",\"priority\":\"high\"}", ERR_INVALID, "priority"},
        {M, "{" MSG ",\"cache_salt\":7}", ERR_INVALID, "cache_salt"},
        {M, "{" MSG ",\"cache_salt\":\"\"}", ERR_INVALID, "cache_salt"},
        {M, "{" MSG ",\"timeout\":0}", ERR_INVALID, "timeout"},
        {M, "{" MSG ",\"timeout\":-1}", ERR_INVALID, "timeout"},
        {M, "{" MSG ",\"timeout\":\"1s\"}", ERR_INVALID, "timeout"},
        {M, "{" MSG ",\"timeout\":86401}", ERR_INVALID, "timeout"},
        {M, "[]", ERR_INVALID, ""},
        {M, "\"x\"", ERR_INVALID, ""},
        {M, "7", ERR_INVALID, ""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct openai_request r = {0};
        struct api_error e = {0};
        int rc = openai_request_parse(&r, rows[i].kind, rows[i].body, strlen(rows[i].body), &e);
        if (rc == 0 || e.err.code != rows[i].code || strcmp(e.param, rows[i].param) != 0)
            fail_msg("%s: expected %s of \"%s\", got %s of \"%s\" (%s)", rows[i].body,
                     err_code_name(rows[i].code), rows[i].param,
                     rc == 0 ? "success" : err_code_name(e.err.code), e.param, e.err.message);
        openai_request_release(&r);
    }
    printf("note: %zu wrong requests, each refused by the name of its field\n",
           sizeof rows / sizeof *rows);
}

static void harmless_and_unknown_fields_are_accepted(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        "{" MSG ",\"never_heard_of\":{\"a\":[1]}}",
        "{" MSG ",\"tools\":[],\"tool_choice\":\"none\",\"functions\":null}",
        "{" MSG ",\"response_format\":{\"type\":\"text\"},\"modalities\":[\"text\"]}",
        "{" MSG ",\"store\":false,\"metadata\":{},\"service_tier\":\"auto\",\"user\":\"u\"}",
        "{" MSG ",\"temperature\":null,\"stop\":null,\"n\":null,\"logit_bias\":null}",
        "{" MSG ",\"best_of\":1}",
        "{" MSG ",\"reasoning_effort\":\"none\"}",
        "{" MSG ",\"add_generation_prompt\":true,\"echo\":false,\"prompt_logprobs\":null}",
        "{" MSG ",\"stop\":[]}",
        "{" MSG ",\"top_k\":-1,\"seed\":-5}",
        "{" MSG
        ",\"chat_template_kwargs\":{\"enable_thinking\":false,\"tools\":[],\"documents\":null,"
        "\"add_generation_prompt\":true}}",
    };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        struct openai_request r = {0};
        struct api_error e = {0};
        if (openai_request_parse(&r, OPENAI_CHAT, bodies[i], strlen(bodies[i]), &e) != 0)
            fail_msg("%s: %s", bodies[i], e.err.message);
        openai_request_release(&r);
    }
}

static struct openai_request parsed(enum openai_kind kind, const char *body)
{
    struct openai_request r = {0};
    struct api_error e = {0};
    if (openai_request_parse(&r, kind, body, strlen(body), &e) != 0)
        fail_msg("%s: %s", body, e.err.message);
    return r;
}

static void defaults_are_openais(void **state)
{
    (void)state;
    struct openai_request r = parsed(OPENAI_COMPLETION, "{" PRO "}");
    assert_int_equal(r.max_tokens, 16);
    assert_int_equal(r.n, 1);
    assert_true(r.temperature == 1.0F && r.top_p == 1.0F && !r.seed_given && !r.stream);
    assert_int_equal(r.n_logprobs, -1);
    openai_request_release(&r);
    r = parsed(OPENAI_CHAT, "{" MSG "}");
    assert_int_equal(r.max_tokens, -1);
    openai_request_release(&r);
}

static void every_form_of_prompt_is_read(void **state)
{
    (void)state;
    struct openai_request r = parsed(OPENAI_COMPLETION,
                                     "{\"model\":\"m\",\"prompt\":[\"a\",\"\xC3\xA9\"]}");
    assert_int_equal(r.n_prompts, 2);
    assert_int_equal(r.prompts[1].n_bytes, 2);
    openai_request_release(&r);
    r = parsed(OPENAI_COMPLETION, "{\"model\":\"m\",\"prompt\":[5,6,7]}");
    assert_int_equal(r.n_prompts, 1);
    assert_null(r.prompts[0].text);
    assert_int_equal(r.prompts[0].n_ids, 3);
    assert_int_equal(r.prompts[0].ids[2], 7);
    openai_request_release(&r);
    r = parsed(
        OPENAI_COMPLETION,
        "{\"model\":\"m\",\"prompt\":[[5],[6,7]],\"max_tokens\":0,\"echo\":true,\"logprobs\":0}");
    assert_int_equal(r.n_prompts, 2);
    assert_int_equal(r.prompts[1].n_ids, 2);
    assert_int_equal(r.max_tokens, 0);
    assert_int_equal(r.n_logprobs, 0);
    openai_request_release(&r);
}

static void content_parts_become_one_text(void **state)
{
    (void)state;
    struct openai_request r = parsed(
        OPENAI_CHAT,
        "{\"model\":\"m\",\"messages\":[{\"role\":\"developer\",\"content\":\"be kind\"},{\"role\":"
        "\"user\",\"name\":\"ann\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":"
        "\"text\","
        "\"text\":\"b\"}]}]}");
    const json_t *first = json_array_get(r.messages, 0), *second = json_array_get(r.messages, 1);
    assert_string_equal(json_string_value(json_object_get(first, "role")), "system");
    assert_string_equal(json_string_value(json_object_get(second, "content")), "a\nb");
    assert_string_equal(json_string_value(json_object_get(second, "name")), "ann");
    openai_request_release(&r);
}

static void an_ensemble_is_read_in_its_order(void **state)
{
    (void)state;
    struct openai_request r = parsed(
        OPENAI_COMPLETION,
        "{\"prompt\":\"x\",\"adapters\":[{\"model\":\"law@2\",\"weight\":-0.5},"
        "{\"weight\":null,\"model\":\"med\"},{\"model\":\"code\",\"weight\":3}]}");
    assert_null(r.model);
    assert_int_equal(r.n_adapters, 3);
    static const struct {
        const char *model;
        float weight;
    } rows[] = {{"law@2", -0.5F}, {"med", 1.0F}, {"code", 3.0F}};
    for (size_t i = 0; i < 3; i++) {
        if (strcmp(r.adapters[i].model, rows[i].model) != 0 ||
            r.adapters[i].weight != rows[i].weight)
            fail_msg("adapter %zu is %g * %s", i, (double)r.adapters[i].weight,
                     r.adapters[i].model);
    }
    openai_request_release(&r);
    r = parsed(OPENAI_CHAT, "{" MSG ",\"adapters\":null}");
    assert_int_equal(r.n_adapters, 0);
    assert_string_equal(r.model, "m");
    openai_request_release(&r);
}

static void shares_sum_to_the_whole_by_largest_remainder(void **state)
{
    (void)state;
    static const struct {
        size_t n;
        float weights[8];
        uint16_t shares[8];
        const char *name;
    } rows[] = {
        {1, {1}, {10000}, "a"},
        {1, {-0.25F}, {10000}, "-0.25*a"},
        {2, {0.7F, 0.3F}, {7000, 3000}, "0.7*a+0.3*b"},
        {2, {1, 0}, {10000, 0}, "a+0*b"},
        {2, {1, -1}, {5000, 5000}, "a-b"},
        {2, {-3, 1}, {7500, 2500}, "-3*a+b"},
        {3, {1, 1, 1}, {3334, 3333, 3333}, "a+b+c"},
        {3, {0.1F, 0.1F, 0.1F}, {3334, 3333, 3333}, "0.1*a+0.1*b+0.1*c"},
        {3, {1, 2, 4}, {1429, 2857, 5714}, "a+2*b+4*c"},
        {6, {1, 1, 1, 1, 1, 1}, {1667, 1667, 1667, 1667, 1666, 1666}, "a+b+c+d+e+f"},
        {2, {1e6F, 1e-6F}, {10000, 0}, "1e+06*a+1e-06*b"},
        {2, {1e-30F, 3e-30F}, {2500, 7500}, "1e-30*a+3e-30*b"},
        {8, {1, 1, 1, 1, 1, 1, 1, 9993}, {1, 1, 1, 1, 1, 1, 1, 9993}, "a+b+c+d+e+f+g+9993*h"},
    };
    static const char *const names[] = {"a", "b", "c", "d", "e", "f", "g", "h"};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint16_t got[8] = {0};
        ensemble_shares(got, rows[i].weights, rows[i].n);
        for (size_t k = 0; k < rows[i].n; k++) {
            if (got[k] != rows[i].shares[k])
                fail_msg("%s: share %zu is %u, expected %u", rows[i].name, k, got[k],
                         rows[i].shares[k]);
        }
        struct buf name = BUF_INIT;
        ensemble_name(&name, names, rows[i].weights, rows[i].n);
        assert_string_equal(buf_cstr(&name), rows[i].name);
        buf_release(&name);
    }
    /* Whatever the weights, nothing is lost and nobody gets a basis point more than 1 too much. */
    uint64_t random = 88172645463325252U;
    for (int round = 0; round < 20000; round++) {
        float weights[8];
        uint16_t got[8];
        size_t n = 1 + (size_t)round % 8;
        double sum = 0;
        for (size_t k = 0; k < n; k++) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            weights[k] = ldexpf((float)(int16_t)(random >> 20) + 0.5F, (int)(random % 37) - 30);
            sum += fabs((double)weights[k]);
        }
        ensemble_shares(got, weights, n);
        int total = 0;
        for (size_t k = 0; k < n; k++) {
            total += got[k];
            if (fabs(got[k] - fabs((double)weights[k]) / sum * 10000) >= 1)
                fail_msg("round %d: weight %g of %g gets %u", round, (double)weights[k], sum,
                         got[k]);
        }
        assert_int_equal(total, 10000);
    }
}

static void urgency_is_read(void **state)
{
    (void)state;
    struct openai_request r = parsed(OPENAI_CHAT, "{" MSG "}");
    assert_true(!r.priority_given && r.timeout_s == 0);
    openai_request_release(&r);
    r = parsed(OPENAI_CHAT, "{" MSG ",\"priority\":-100,\"timeout\":0.25}");
    assert_true(r.priority_given && r.priority == -100 && r.timeout_s == 0.25);
    assert_null(r.cache_salt);
    openai_request_release(&r);
    r = parsed(OPENAI_CHAT, "{" MSG ",\"cache_salt\":\"mine\"}");
    assert_string_equal(r.cache_salt, "mine");
    openai_request_release(&r);
}

static void the_newer_name_of_max_tokens_wins(void **state)
{
    (void)state;
    struct openai_request r = parsed(
        OPENAI_CHAT, "{" MSG ",\"max_tokens\":5,\"max_completion_tokens\":9,\"seed\":-1}");
    assert_int_equal(r.max_tokens, 9);
    assert_true(r.seed_given && r.seed == UINT64_MAX);
    openai_request_release(&r);
}

static void hostile_json_is_refused_with_a_sentence(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t n; /* 0: strlen */
        const char *why;
    } rows[] = {
        {"", 0, "nothing"},
        {"{", 0, "cut off"},
        {"{\"a\":1}x", 0, "something behind it"},
        {"{\"a\":1,\"a\":2}", 0, "a key twice"},
        {"{\"a\":\"\\u0000\"}", 0, "NUL in a string"},
        {"{\"a\\u0000b\":1}", 0, "NUL in a key"},
        {"{\"a\":\"x\0y\"}", 11, "raw NUL"},
        {"{\"a\":\"\xFF\"}", 0, "no UTF-8"},
        {"{\"a\":\"\xC0\xAF\"}", 0, "overlong UTF-8"},
        {"{\"a\":\"\xED\xA0\x80\"}", 0, "surrogate in UTF-8"},
        {"{\"a\":\"\\ud800\"}", 0, "lone high surrogate"},
        {"{\"a\":\"\\udc00\"}", 0, "lone low surrogate"},
        {"{\"a\":\"\\ud800\\u0041\"}", 0, "high surrogate before a letter"},
        {"{\"a\":01}", 0, "leading zero"},
        {"{\"a\":1e999}", 0, "number out of range"},
        {"{\"a\":99999999999999999999}", 0, "integer out of range"},
        {"{\"a\":NaN}", 0, "no JSON number"},
        {"{'a':1}", 0, "single quotes"},
        {"{\"a\":1,}", 0, "trailing comma"},
        {"{\"a\":\"\n\"}", 0, "raw line end in a string"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err err = {0};
        size_t n = rows[i].n > 0 ? rows[i].n : strlen(rows[i].text);
        /* On the heap and without a NUL behind it: reading on is an error the sanitizer sees. */
        char *copy = xmalloc(n > 0 ? n : 1);
        memcpy(copy, rows[i].text, n);
        json_t *v = json_parse(copy, n, &err);
        free(copy);
        if (v != NULL)
            fail_msg("%s: accepted", rows[i].why);
        if (err.code != ERR_INVALID || err.message[0] == '\0')
            fail_msg("%s: %s %s", rows[i].why, err_code_name(err.code), err.message);
        if (strstr(err.message, "JSON_") != NULL)
            fail_msg("%s: \"%s\" names a flag of the library", rows[i].why, err.message);
        for (const char *p = err.message; *p != '\0'; p++) {
            if ((unsigned char)*p < 0x20 || (unsigned char)*p >= 0x7F)
                fail_msg("%s: the sentence repeats hostile bytes", rows[i].why);
        }
    }
}

static void depth_and_number_of_values_are_bounded(void **state)
{
    (void)state;
    struct buf b = BUF_INIT;
    for (int depth = 30; depth <= 100000; depth = depth < 40 ? depth + 1 : depth * 10) {
        buf_reset(&b);
        for (int i = 0; i < depth; i++)
            buf_append_byte(&b, '[');
        for (int i = 0; i < depth; i++)
            buf_append_byte(&b, ']');
        struct err err = {0};
        json_t *v = json_parse(b.data, b.len, &err);
        if ((v != NULL) != (depth <= JSON_DEPTH_MAX))
            fail_msg("%d levels: %s", depth, v != NULL ? "accepted" : err.message);
        if (v == NULL)
            assert_int_equal(err.code, ERR_TOO_LARGE);
        json_decref(v);
    }
    buf_reset(&b);
    buf_append_byte(&b, '[');
    for (int i = 0; i < JSON_VALUES_MAX + 10; i++)
        buf_append_str(&b, "0,");
    buf_append_str(&b, "0]");
    struct err err = {0};
    assert_null(json_parse(b.data, b.len, &err));
    assert_int_equal(err.code, ERR_TOO_LARGE);
    buf_release(&b);
    /* Brackets and commas in strings are text. */
    const char *text = "\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\\"[[[[[[[[[,,,,\"";
    json_t *v = json_parse(text, strlen(text), &err);
    assert_non_null(v);
    json_decref(v);
}

static void written_strings_read_back(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t n;
        const char *json;
    } rows[] = {
        {"plain", 5, "\"plain\""},
        {"a\"b\\c\n\t\r", 8, "\"a\\\"b\\\\c\\n\\t\\r\""},
        {"\x01\x7F", 2, "\"\\u0001\\u007f\""},
        {"\xE2\x82\xAC", 3, "\"\xE2\x82\xAC\""},
        {"a\xFF"
         "b",
         3,
         "\"a\xEF\xBF\xBD"
         "b\""},
        {"\xE2\x82", 2, "\"\xEF\xBF\xBD\xEF\xBF\xBD\""},
        {"", 0, "\"\""},
        {"x\0y", 3, "\"x\\u0000y\""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct buf b = BUF_INIT;
        json_append_string(&b, rows[i].text, rows[i].n);
        assert_string_equal(buf_cstr(&b), rows[i].json);
        buf_release(&b);
    }
    static const float floats[] = {0.0F, -0.1F, 1.0F / 3, -12.345678F, 1e-30F, 3.4e38F, -1e-45F};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) {
        struct buf b = BUF_INIT;
        json_append_float(&b, floats[i]);
        if (strtof(buf_cstr(&b), NULL) != floats[i])
            fail_msg("%.9g was written as %s", (double)floats[i], buf_cstr(&b));
        buf_release(&b);
    }
    struct buf b = BUF_INIT;
    json_append_float(&b, -INFINITY);
    assert_string_equal(buf_cstr(&b), "null");
    buf_release(&b);
}

static void an_event_cannot_be_forged_by_a_line_end(void **state)
{
    (void)state;
    static const struct {
        const char *data, *event;
    } rows[] = {
        {"{\"a\":1}", "data: {\"a\":1}\n\n"},
        {"", "data: \n\n"},
        {"one\ntwo", "data: one\ndata: two\n\n"},
        {"one\r\ntwo", "data: one\ndata: two\n\n"},
        {"one\rdata: [DONE]", "data: one\ndata: data: [DONE]\n\n"},
        {"one\n\ntwo", "data: one\ndata: \ndata: two\n\n"},
        {"end\n", "data: end\ndata: \n\n"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct buf b = BUF_INIT;
        sse_append_event(&b, rows[i].data, strlen(rows[i].data));
        assert_string_equal(buf_cstr(&b), rows[i].event);
        buf_release(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_wrong_field_is_refused_by_its_name),
        cmocka_unit_test(harmless_and_unknown_fields_are_accepted),
        cmocka_unit_test(defaults_are_openais),
        cmocka_unit_test(every_form_of_prompt_is_read),
        cmocka_unit_test(content_parts_become_one_text),
        cmocka_unit_test(an_ensemble_is_read_in_its_order),
        cmocka_unit_test(shares_sum_to_the_whole_by_largest_remainder),
        cmocka_unit_test(urgency_is_read),
        cmocka_unit_test(the_newer_name_of_max_tokens_wins),
        cmocka_unit_test(hostile_json_is_refused_with_a_sentence),
        cmocka_unit_test(depth_and_number_of_values_are_bounded),
        cmocka_unit_test(written_strings_read_back),
        cmocka_unit_test(an_event_cannot_be_forged_by_a_line_end),
    };
    return cmocka_run_group_tests_name("openai_request", tests, NULL, NULL);
}
