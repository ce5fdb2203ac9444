/* config_json: see config_json.h. */
#include "engine/config_json.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <inttypes.h>
#include <math.h>

int config_json_parse(json_t **out, const void *text, size_t n, const char *where, struct err *err)
{
    json_error_t e;
    json_t *j = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);
    if (j == NULL)
        return err_set(err, ERR_INVALID, "%s: line %d: %s", where, e.line, e.text);
    if (!json_is_object(j)) {
        json_decref(j);
        return err_set(err, ERR_INVALID, "%s: is not a JSON object", where);
    }
    *out = j;
    return 0;
}

int config_json_read(json_t **out, const char *path, size_t max_bytes, struct err *err)
{
    struct buf text = BUF_INIT;
    int rc = file_read(path, max_bytes, &text, err);
    if (rc == 0)
        rc = config_json_parse(out, text.data != NULL ? (const char *)text.data : "", text.len,
                               path, err);
    buf_release(&text);
    return rc;
}

bool config_json_is_set(const json_t *value)
{
    if (value == NULL)
        return false;
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return json_object_size(value) > 0;
    case JSON_ARRAY:
        return json_array_size(value) > 0;
    case JSON_STRING:
        return json_string_length(value) > 0;
    case JSON_INTEGER:
    case JSON_REAL:
    case JSON_TRUE:
        return true;
    case JSON_FALSE:
    case JSON_NULL:
        return false;
    }
    return true;
}

static const json_t *get(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    return json_is_null(v) ? NULL : v;
}

int config_json_int(const json_t *object, const char *key, const char *where, int64_t min,
                    int64_t max, int64_t *inout, struct err *err)
{
    const json_t *v = get(object, key);
    if (v == NULL)
        return 0;
    if (!json_is_integer(v))
        return err_set(err, ERR_INVALID, "%s: %s is not an integer", where, key);
    if (json_integer_value(v) < min || json_integer_value(v) > max)
        return err_set(err, ERR_INVALID,
                       "%s: %s is %" JSON_INTEGER_FORMAT ", must be %" PRId64 " to %" PRId64, where,
                       key, json_integer_value(v), min, max);
    *inout = json_integer_value(v);
    return 0;
}

int config_json_real(const json_t *object, const char *key, const char *where, double min,
                     double max, double *inout, struct err *err)
{
    const json_t *v = get(object, key);
    if (v == NULL)
        return 0;
    if (!json_is_number(v))
        return err_set(err, ERR_INVALID, "%s: %s is not a number", where, key);
    double x = json_number_value(v);
    if (!isfinite(x) || x < min || x > max)
        return err_set(err, ERR_INVALID, "%s: %s is %g, must be %g to %g", where, key, x, min, max);
    *inout = x;
    return 0;
}

int config_json_bool(const json_t *object, const char *key, const char *where, bool *inout,
                     struct err *err)
{
    const json_t *v = get(object, key);
    if (v == NULL)
        return 0;
    if (!json_is_boolean(v))
        return err_set(err, ERR_INVALID, "%s: %s is neither true nor false", where, key);
    *inout = json_is_true(v);
    return 0;
}

int config_json_string(const json_t *object, const char *key, const char *where, const char **inout,
                       struct err *err)
{
    const json_t *v = get(object, key);
    if (v == NULL)
        return 0;
    if (!json_is_string(v))
        return err_set(err, ERR_INVALID, "%s: %s is not a string", where, key);
    *inout = json_string_value(v);
    return 0;
}
