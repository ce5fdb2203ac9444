/* adapter_node: the sub-commands of `tributary adapter` that speak to a running node. */
#ifndef TRIBUTARY_NODE_CLI_ADAPTER_NODE_H
#define TRIBUTARY_NODE_CLI_ADAPTER_NODE_H

#include "node/cli/cli.h"

int adapter_node_list(const struct cli_args *a);
int adapter_node_show(const struct cli_args *a);
int adapter_node_add(const struct cli_args *a);
int adapter_node_remove(const struct cli_args *a);
int adapter_node_load(const struct cli_args *a);
int adapter_node_warm(const struct cli_args *a);
int adapter_node_unload(const struct cli_args *a);
int adapter_node_pin(const struct cli_args *a);
int adapter_node_unpin(const struct cli_args *a);

extern const struct cli_option adapter_node_options[];      /* --node, --admin-key-file, --json */
extern const struct cli_option adapter_node_list_options[]; /* and the filters */

#endif
