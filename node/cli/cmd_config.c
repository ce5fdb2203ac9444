/* cmd_config: the effective configuration, and where each value comes from. */
#include "node/cli/commands.h"
#include "node/config.h"

#include "node/base/buf.h"
#include "node/json_util.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static json_t *value_json(const struct config *c, enum config_id id)
{
    const struct config_option *o = &config_options[id];
    switch (o->type) {
    case CONFIG_INT:
    case CONFIG_BYTES:
    case CONFIG_DURATION:
        return json_integer(config_int(c, id));
    case CONFIG_BOOL:
        return json_boolean(config_bool(c, id));
    case CONFIG_NUMBER:
        return json_real(config_number(c, id));
    case CONFIG_LIST: {
        json_t *list = json_array();
        for (size_t i = 0; i < config_list_len(c, id); i++)
            json_array_append_new(list, json_text(config_list_item(c, id, i)));
        return list;
    }
    case CONFIG_STRING:
    case CONFIG_PATH:
    case CONFIG_AMOUNT:
    case CONFIG_ADDRESS:
        return json_text(config_text(c, id));
    }
    BUG("config type %d", (int)o->type);
}

/* A tributary.conf with every option, commented out, at its default. */
static void print_template(void)
{
    const char *section = "";
    printf("# tributary.conf: every option at its default. Remove a \"#\" to change one.\n");
    for (int i = 0; i < CONFIG_N_OPTIONS; i++) {
        const struct config_option *o = &config_options[i];
        char env[64], flag[64];
        if (strcmp(section, o->section) != 0)
            printf("\n[%s]\n", section = o->section);
        printf("\n");
        cli_print_wrapped(stdout, "# ", o->help); /* the file's reader takes short lines only */
        printf("# (%s%s%s; %s; --%s)\n#%s = %s\n", config_type_name(o->type),
               o->unit[0] != '\0' ? ", " : "", o->unit, config_env_name(o, env),
               config_flag_name(o, flag), o->key, o->otherwise);
    }
}

static int run_config(const struct cli_args *a)
{
    const struct config *c = cli_config(a);
    if (cli_has(a, "template")) {
        print_template();
        return 0;
    }
    if (cli_has(a, "json")) {
        json_t *all = json_object();
        for (int i = 0; i < CONFIG_N_OPTIONS; i++) {
            const struct config_option *o = &config_options[i];
            char *name = xasprintf("%s.%s", o->section, o->key);
            json_object_set_new(all, name,
                                json_pack("{s:o, s:s}", "value", value_json(c, (enum config_id)i),
                                          "source", config_source(c, (enum config_id)i)));
            free(name);
        }
        cli_print_json(all);
        json_decref(all);
        return 0;
    }
    const char *titles[] = {"option", "value", "from"};
    const char **cells = xcalloc(CONFIG_N_OPTIONS * 3, sizeof(char *));
    for (int i = 0; i < CONFIG_N_OPTIONS; i++) {
        const struct config_option *o = &config_options[i];
        cells[i * 3] = xasprintf("%s.%s", o->section, o->key);
        cells[i * 3 + 1] = config_text(c, (enum config_id)i);
        cells[i * 3 + 2] = config_source(c, (enum config_id)i);
    }
    cli_print_table(stdout, titles, 3, cells, CONFIG_N_OPTIONS);
    for (int i = 0; i < CONFIG_N_OPTIONS; i++)
        free((char *)(uintptr_t)cells[i * 3]);
    free(cells);
    return 0;
}

const struct cli_command cmd_config = {
    .name = "config",
    .summary = "print the effective configuration",
    .synopsis = "[--json | --template] [configuration options]",
    .description =
        "Prints each option's value and where it comes from: the default, a line of the "
        "configuration file, a variable of the environment, or a flag; the later of these wins. "
        "Takes the same flags and reads the same files as tributary serve, and fails as it would.",
    .examples = "    tributary config --listen 127.0.0.1:9000\n"
                "    tributary config --template > tributary.conf\n",
    .options = (const struct cli_option[]){{"json", CLI_SWITCH, NULL,
                                            "Print JSON: sizes in bytes, times in milliseconds."},
                                           {"template", CLI_SWITCH, NULL,
                                            "Print a configuration file with every option."},
                                           {0}},
    .takes_config = true,
    .run = run_config,
};
