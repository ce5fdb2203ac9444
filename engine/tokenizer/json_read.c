/* json_read: see json_read.h. */
#include "engine/tokenizer/json_read.h"

#include "node/base/err.h"

#include <string.h>

const char *json_type_name(const json_t *value)
{
    if (value == NULL)
        return "missing";
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    BUG("json type %d", (int)json_typeof(value));
}

const json_t *json_member(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

static int wrong(const json_t *value, const char *where, const char *key, const char *wanted,
                 struct err *err)
{
    return err_set(err, ERR_INVALID, "%s: %s should be %s and is %s", where, key, wanted,
                   json_type_name(value));
}

int json_read_text(const json_t *object, const char *where, const char *key, struct json_text *out,
                   struct err *err)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_string(value))
        return wrong(value, where, key, "a string", err);
    *out = (struct json_text){json_string_value(value), json_string_length(value)};
    return 0;
}

int json_read_array(const json_t *object, const char *where, const char *key, const json_t **out,
                    struct err *err)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_array(value))
        return wrong(value, where, key, "an array", err);
    *out = value;
    return 0;
}

int json_read_object(const json_t *object, const char *where, const char *key, const json_t **out,
                     struct err *err)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_object(value))
        return wrong(value, where, key, "an object", err);
    *out = value;
    return 0;
}

int json_read_count(const json_t *object, const char *where, const char *key, json_int_t max,
                    json_int_t *out, struct err *err)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_integer(value))
        return wrong(value, where, key, "an integer", err);
    json_int_t n = json_integer_value(value);
    if (n < 0 || n > max)
        return err_set(err, ERR_INVALID,
                       "%s: %s is %" JSON_INTEGER_FORMAT ", outside 0 to %" JSON_INTEGER_FORMAT,
                       where, key, n, max);
    *out = n;
    return 0;
}

int json_read_bool(const json_t *object, const char *where, const char *key, bool *out,
                   struct err *err)
{
    const json_t *value = json_member(object, key);
    if (value == NULL)
        return 0;
    if (!json_is_boolean(value))
        return wrong(value, where, key, "true or false", err);
    *out = json_is_true(value);
    return 0;
}

int json_read_text_optional(const json_t *object, const char *where, const char *key,
                            struct json_text *out, struct err *err)
{
    *out = (struct json_text){NULL, 0};
    return json_member(object, key) == NULL ? 0 : json_read_text(object, where, key, out, err);
}

bool json_text_is(struct json_text text, const char *word)
{
    return text.bytes != NULL && text.n == strlen(word) && memcmp(text.bytes, word, text.n) == 0;
}
