/* post_processor: see post_processor.h.
 *
 * TemplateProcessing lists what a text is made of: {"SpecialToken": {"id": "<s>"}} and
 * {"Sequence": {"id": "A"}}, the ids of the special tokens being in a table beside it. Only the
 * template for a single text matters here, and it must hold that text exactly once. ByteLevel
 * changes offsets, which nobody here asks for. */
#include "engine/tokenizer/post_processor.h"

#include "node/base/err.h"

enum { NESTING_MAX = 8, IDS_MAX = 64 };

static const char where[] = "post_processor TemplateProcessing";

static int add_special(struct token_ids *list, const json_t *piece, const json_t *table,
                       struct err *err)
{
    struct json_text name;
    const json_t *ids;
    if (json_read_text(piece, where, "id", &name, err) != 0)
        return -1;
    const json_t *token = json_object_get(table, name.bytes);
    if (token == NULL)
        return err_set(err, ERR_INVALID, "%s: special_tokens has no \"%.64s\"", where, name.bytes);
    if (json_read_array(token, where, "ids", &ids, err) != 0)
        return -1;
    if (list->n + json_array_size(ids) > IDS_MAX)
        return err_set(err, ERR_INVALID, "%s adds more than %d tokens", where, IDS_MAX);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > TOKENIZER_ID_MAX)
            return err_set(err, ERR_INVALID, "%s: the ids of \"%.64s\" are no token ids", where,
                           name.bytes);
        token_ids_append(list, (int32_t)json_integer_value(id));
    }
    return 0;
}

static int read_template(struct post_processor *p, const json_t *json, struct err *err)
{
    const json_t *single, *table;
    if (json_read_array(json, where, "single", &single, err) != 0 ||
        json_read_object(json, where, "special_tokens", &table, err) != 0)
        return -1;
    int n_texts = 0;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i);
        const json_t *special = json_object_get(piece, "SpecialToken");
        const json_t *sequence = json_object_get(piece, "Sequence");
        struct json_text name;
        if (special != NULL) {
            if (add_special(n_texts == 0 ? &p->before : &p->after, special, table, err) != 0)
                return -1;
        } else if (sequence != NULL) {
            if (json_read_text(sequence, where, "id", &name, err) != 0)
                return -1;
            n_texts++;
            if (!json_text_is(name, "A"))
                return err_set(err, ERR_UNSUPPORTED, "%s: single holds text \"%.64s\"", where,
                               name.bytes);
        } else {
            return err_set(err, ERR_INVALID, "%s: single holds neither SpecialToken nor Sequence",
                           where);
        }
    }
    if (n_texts != 1)
        return err_set(err, ERR_UNSUPPORTED, "%s: single holds the text %d times", where, n_texts);
    return 0;
}

static int read_processor(struct post_processor *p, const json_t *json, bool *templated,
                          int nesting, struct err *err)
{
    struct json_text type;
    if (nesting > NESTING_MAX)
        return err_set(err, ERR_INVALID, "post_processor: sequences nest deeper than %d",
                       NESTING_MAX);
    if (json_read_text(json, "post_processor", "type", &type, err) != 0)
        return -1;
    if (json_text_is(type, "ByteLevel"))
        return 0;
    if (json_text_is(type, "TemplateProcessing")) {
        if (*templated)
            return err_set(err, ERR_UNSUPPORTED, "%s: two of them are not supported", where);
        *templated = true;
        return read_template(p, json, err);
    }
    if (json_text_is(type, "Sequence")) {
        const json_t *list;
        if (json_read_array(json, "post_processor Sequence", "processors", &list, err) != 0)
            return -1;
        for (size_t i = 0; i < json_array_size(list); i++)
            if (read_processor(p, json_array_get(list, i), templated, nesting + 1, err) != 0)
                return -1;
        return 0;
    }
    return err_set(err, ERR_UNSUPPORTED, "post_processor: type \"%.64s\" is not supported",
                   type.bytes);
}

int post_processor_read(struct post_processor *out, const json_t *json, struct err *err)
{
    bool templated = false;
    *out = (struct post_processor){TOKEN_IDS_INIT, TOKEN_IDS_INIT};
    if (json == NULL || read_processor(out, json, &templated, 0, err) == 0)
        return 0;
    post_processor_release(out);
    return -1;
}

void post_processor_release(struct post_processor *p)
{
    token_ids_release(&p->before);
    token_ids_release(&p->after);
}
