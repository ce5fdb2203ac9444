/* Chat templates of real models, rendered and compared with Python's jinja2 as transformers sets it up.
 *
 * tests/vectors/chat_templates/golden.jsonl.gz holds the renderings of 24 conversations by each
 * template, or the error that Python raised. Templates whose licence doesn't let them lie in this tree
 * are taken from the directory that TRIBUTARY_CHAT_TEMPLATES names, as <name>.jinja; without it they
 * are skipped and that is said. */
#include "tests/support.h"

#include "engine/chat_template/chat_template.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"
#include "node/base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* 2025-07-10T12:00:00Z, when the goldens were rendered. */
static const struct unix_ms GOLDEN_NOW = {1752148800000};

static struct chat_template *parse(const char *source)
{
    struct chat_template *t;
    struct err err = {0};
    assert_ok(chat_template_parse(&t, source, strlen(source), &err), err);
    return t;
}

/* ---- goldens ----------------------------------------------------------------------------------- */

struct goldens {
    const char *only; /* the template to be checked */
    struct chat_template *t;
    const json_t *conversations, *about; /* of the template: bos_token, eos_token */
    size_t n_outputs, n_errors;
};

static void golden_line(json_t *line, void *context)
{
    struct goldens *g = context;
    const char *name = json_string_value(json_object_get(line, "template"));
    const char *what = json_string_value(json_object_get(line, "name"));
    if (strcmp(name, g->only) != 0)
        return;
    json_t *input = json_deep_copy(json_object_get(
        json_array_get(g->conversations,
                       (size_t)json_integer_value(json_object_get(line, "conversation"))),
        "input"));
    struct chat_template_input in = {
        .messages = json_object_get(input, "messages"),
        .tools = json_object_get(input, "tools"),
        .documents = json_object_get(input, "documents"),
        .add_generation_prompt = json_is_true(json_object_get(input, "add_generation_prompt")),
        .bos_token = json_string_value(json_object_get(g->about, "bos_token")),
        .eos_token = json_string_value(json_object_get(g->about, "eos_token")),
        .now = GOLDEN_NOW,
    };
    /* Everything else that the conversation has is a variable of its own. */
    json_t *extra = json_copy(input);
    json_object_del(extra, "messages");
    json_object_del(extra, "tools");
    json_object_del(extra, "documents");
    json_object_del(extra, "add_generation_prompt");
    in.extra = extra;

    struct buf out = BUF_INIT;
    struct err err = {0};
    int rc = chat_template_render(g->t, &out, NULL, &in, &err);
    const json_t *wanted = json_object_get(line, "output");
    if (wanted != NULL) {
        assert_ok(rc, err);
        if (out.len != json_string_length(wanted) ||
            memcmp(buf_cstr(&out), json_string_value(wanted), out.len) != 0)
            fail_msg("%s, %s:\n  wanted %s\n  got    %s", name, what, json_string_value(wanted),
                     buf_cstr(&out));
        g->n_outputs++;
    } else {
        /* "TypeError: can only concatenate ..." */
        const char *error = json_string_value(json_object_get(line, "error"));
        const char *message = strstr(error, ": ") + 2;
        size_t n = strlen(err.message), m = strlen(message);
        if (rc == 0)
            fail_msg("%s, %s: rendered, should have raised %s", name, what, error);
        if (err.code != ERR_INVALID || n < m || strcmp(err.message + n - m, message) != 0)
            fail_msg("%s, %s:\n  wanted %s\n  got    %s", name, what, error, err.message);
        /* What a template raises is told in its own words. */
        if (strncmp(error, "TemplateError", 13) == 0)
            assert_string_equal(err.message, message);
        g->n_errors++;
    }
    buf_release(&out);
    json_decref(extra);
    json_decref(input);
}

/* Returns false when the template isn't there. */
static bool check_goldens(const char *dir, const char *name)
{
    char *path = xasprintf("%s/%s.jinja", dir, name);
    bool there = access(path, R_OK) == 0;
    if (there) {
        struct buf source = BUF_INIT;
        struct err err = {0};
        json_t *conversations = fixture_json("tests/vectors/chat_templates/conversations.json");
        json_t *about = fixture_json("tests/vectors/chat_templates/templates.json");
        struct goldens g = {.only = name,
                            .conversations = json_object_get(conversations, "conversations"),
                            .about = json_object_get(about, name)};
        fixture_read(path, &source);
        assert_ok(chat_template_parse(&g.t, (const char *)source.data, source.len, &err), err);
        fixture_jsonl("tests/vectors/chat_templates/golden.jsonl.gz", golden_line, &g);
        assert_int_equal(g.n_outputs + g.n_errors, 24);
        printf("note: chat template %-16s %2zu renderings and %2zu errors as jinja2\n", name,
               g.n_outputs, g.n_errors);
        chat_template_free(g.t);
        buf_release(&source);
        json_decref(conversations);
        json_decref(about);
    }
    free(path);
    return there;
}

static void templates_in_the_tree_render_as_in_python(void **state)
{
    (void)state;
    static const char *const names[] = {"chatml",       "qwen2_5",      "qwen3",   "mistral_v0_1",
                                        "mistral_v0_3", "mixtral",      "smollm3", "zephyr_tinyllama"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!check_goldens("tests/vectors/chat_templates/templates", names[i]))
            fail_msg("the template %s is missing", names[i]);
}

static void templates_from_elsewhere_render_as_in_python(void **state)
{
    (void)state;
    static const char *const names[] = {"llama2", "llama3", "llama3_1", "gemma3", "hermes2_llama3"};
    const char *dir = getenv("TRIBUTARY_CHAT_TEMPLATES");
    size_t n = 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        bool there = dir != NULL && check_goldens(dir, names[i]);
        n += there;
        if (!there)
            printf("note: chat template %s not checked: TRIBUTARY_CHAT_TEMPLATES names no "
                   "directory with it\n",
                   names[i]);
    }
    if (n == 0)
        skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(templates_in_the_tree_render_as_in_python),
        cmocka_unit_test(templates_from_elsewhere_render_as_in_python),
    };
    (void)parse;
    return cmocka_run_group_tests_name("chat template", tests, NULL, NULL);
}
