/* config_json: the JSON files beside a model or an adapter, read with bounds and types checked.
 *
 * `where` in the messages is the file's name. An absent key and a null leave the value alone, as
 * Hugging Face's configuration classes do. */
#ifndef TRIBUTARY_ENGINE_CONFIG_JSON_H
#define TRIBUTARY_ENGINE_CONFIG_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

struct err;

/* text [n] must be one JSON object without twin keys. */
int config_json_parse(json_t **out, const void *text, size_t n, const char *where, struct err *err);
int config_json_read(json_t **out, const char *path, size_t max_bytes, struct err *err);

/* Neither absent, null, false, "", [] nor {}. */
bool config_json_is_set(const json_t *value);

int config_json_int(const json_t *object, const char *key, const char *where, int64_t min,
                    int64_t max, int64_t *inout, struct err *err);
int config_json_real(const json_t *object, const char *key, const char *where, double min,
                     double max, double *inout, struct err *err);
int config_json_bool(const json_t *object, const char *key, const char *where, bool *inout,
                     struct err *err);
/* *inout: NULL, or a string that lives as long as object. */
int config_json_string(const json_t *object, const char *key, const char *where, const char **inout,
                       struct err *err);

#endif
