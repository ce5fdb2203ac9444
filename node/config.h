/* config: the node's configuration, from one table (config_options.h).
 *
 * Each option takes its value from the last of these that names it:
 *
 *   default, tributary.conf (INI), the environment (TRIBUTARY_SECTION_KEY), flags (--section-key)
 *
 * and remembers which. Lists are replaced as a whole by the stronger source, not merged. In a file
 * or in the environment a list is comma-separated; in a file its key may also be repeated. Each
 * line of a file stands for itself, indented or not.
 *
 * Values are checked when they are set, so that the getters cannot fail. A config is filled by one
 * thread and then only read. */
#ifndef TRIBUTARY_NODE_CONFIG_H
#define TRIBUTARY_NODE_CONFIG_H

#include "node/base/amount.h"
#include "node/config_options.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct config;

enum config_type {
    CONFIG_STRING,
    CONFIG_PATH,
    CONFIG_INT,
    CONFIG_BOOL,
    CONFIG_BYTES,
    CONFIG_DURATION,
    CONFIG_AMOUNT,
    CONFIG_ADDRESS,
    CONFIG_NUMBER,
    CONFIG_LIST,
};

#define X(id, ...) CONFIG_##id,
enum config_id { CONFIG_OPTIONS(X) CONFIG_N_OPTIONS };
#undef X

struct config_option {
    const char *section, *key;
    enum config_type type;
    const char *otherwise; /* the default, as text */
    int64_t min, max;
    const char *unit;
    const char *flag; /* NULL: section-key */
    const char *value;
    const char *help;
};

extern const struct config_option config_options[CONFIG_N_OPTIONS];

struct config *config_create(void); /* all defaults */
void config_free(struct config *c); /* quiet on NULL */

/* Each fails with ERR_INVALID naming the source (file and line, variable, flag), the option and
 * what is wrong with the value; unknown names come with the nearest known one. ERR_NOT_FOUND: no
 * such file. What was set before the failure stays set. */
int config_read_file(struct config *c, const char *path, struct err *err);
/* environment [NULL-terminated]: "NAME=value" strings; others than TRIBUTARY_* are not looked at,
 * and TRIBUTARY_LOG, TRIBUTARY_CONFIG, TRIBUTARY_PASSPHRASE_FILE mean something elsewhere. */
int config_read_environment(struct config *c, char *const *environment, struct err *err);
/* flag without dashes. A flag that comes again adds to a list and replaces anything else. */
int config_set_flag(struct config *c, const char *flag, const char *value, struct err *err);

/* The option with this flag, or NULL. */
const struct config_option *config_by_flag(const char *flag);
/* out [64]: the flag's name, the environment's name. */
const char *config_flag_name(const struct config_option *o, char out[64]);
const char *config_env_name(const struct config_option *o, char out[64]);
const char *config_type_name(enum config_type type);

/* ---- values; asking with the wrong type is a bug ------------------------------------------------
 */

const char *config_text(const struct config *c, enum config_id id); /* as it was given; any type */
const char *config_string(const struct config *c,
                          enum config_id id); /* STRING, PATH; "" if unset */
const char *config_string_or_null(const struct config *c, enum config_id id);
int64_t config_int(const struct config *c, enum config_id id); /* INT, BYTES; DURATION in ms */
bool config_bool(const struct config *c, enum config_id id);
double config_number(const struct config *c, enum config_id id);
struct amount config_amount(const struct config *c, enum config_id id);
bool config_address(const struct config *c, enum config_id id, uint8_t out[20]); /* false: unset */
size_t config_list_len(const struct config *c, enum config_id id);
const char *config_list_item(const struct config *c, enum config_id id, size_t i);

/* "default", "tributary.conf:12", "TRIBUTARY_SERVER_LISTEN", "--listen". */
const char *config_source(const struct config *c, enum config_id id);

#endif
