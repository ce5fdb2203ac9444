/* lora_config: an adapter's adapter_config.json (PEFT), as a question: which modules, which rank,
 * which scaling. */
#ifndef TRIBUTARY_ENGINE_LORA_CONFIG_H
#define TRIBUTARY_ENGINE_LORA_CONFIG_H

#include <stdbool.h>
#include <stddef.h>

struct err;
struct lora_config;

enum {
    LORA_CONFIG_MAX_BYTES = 1 << 20,
    LORA_RANK_MAX = 1024,
    LORA_CONFIG_NAMES_MAX = 4096, /* names and patterns of one list */
};

/* text [n] is the file. Refuses with ERR_UNSUPPORTED, naming the key, whatever would change the
 * maths in a way this engine doesn't compute; warns in the log of keys it doesn't know, of the
 * first few by name. */
int lora_config_parse(struct lora_config **out, const char *text, size_t n, const char *where,
                      struct err *err);
void lora_config_free(struct lora_config *c); /* quiet on NULL */

/* Is the linear module of that name ("model.layers.3.self_attn.q_proj") a target, and with which
 * rank and scaling? is_output: it is the output matrix, which "all-linear" leaves out. 0 or -1. */
int lora_config_module(const struct lora_config *c, const char *module, bool is_output,
                       bool *targeted, int *rank, float *scaling, struct err *err);

#endif
