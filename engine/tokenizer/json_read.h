/* json_read: typed members of JSON objects, with a sentence when one is missing or of another type.
 * `where` names the object in that sentence ("pre_tokenizer Split"). */
#ifndef TRIBUTARY_ENGINE_TOKENIZER_JSON_READ_H
#define TRIBUTARY_ENGINE_TOKENIZER_JSON_READ_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct err;

struct json_text { /* a string inside a JSON value: lives as long as that; may hold NUL bytes */
    const char *bytes;
    size_t n;
};

/* The member must be there. */
int json_read_text(const json_t *object, const char *where, const char *key, struct json_text *out,
                   struct err *err);
int json_read_array(const json_t *object, const char *where, const char *key, const json_t **out,
                    struct err *err);
int json_read_object(const json_t *object, const char *where, const char *key, const json_t **out,
                     struct err *err);
int json_read_count(const json_t *object, const char *where, const char *key, json_int_t max,
                    json_int_t *out, struct err *err); /* an integer of 0 to max */

/* The member may be missing or null: *out keeps the default it came with. */
int json_read_bool(const json_t *object, const char *where, const char *key, bool *out,
                   struct err *err);
int json_read_text_optional(const json_t *object, const char *where, const char *key,
                            struct json_text *out, struct err *err); /* bytes NULL: missing */

bool json_text_is(struct json_text text, const char *word);

/* The member, or NULL when it is missing or null. */
const json_t *json_member(const json_t *object, const char *key);

const char *json_type_name(const json_t *value); /* "an array" */

#endif
