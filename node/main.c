/* tributary: the program. Begin reading here.
 *
 * Tributary serves one base model and many LoRA adapters of it, meters every answer, and settles on
 * a chain what the people behind the adapters have earned. The program has two halves and a roof:
 *
 *     node/           the roof: this file, the command line (cli/), HTTP, OpenAI's API, the service
 *     engine/         tokens in, tokens out; stands on kernels/
 *     attribution/    usage in, signed receipts, batches and payouts out; stands on wallet/, chain/
 *     node/base/      the floor: errors, logs, buffers, clocks, and struct usage, through which the
 *                     halves meet
 *
 * A request's way through it, file by file:
 *
 *     http_accept.c      a connection comes in and gets its thread (http.c has the whole picture)
 *     http_request.c     a request on it becomes an exchange
 *     routes.c           the path picks a handler, the API key is checked
 *     api_openai.c       admission.c lets it in, openai_request.c reads its body
 *     service.c          runs it through engine/engine.h, turns tokens into chunks
 *                        (openai_format.c, stop_match.c); before that answer_resolve.c finds its
 *                        model and answer_prepare.c renders and tokenises the prompt
 *     service_billing.c  hands the usage to attribution/attribution.h, and sends the last chunk
 *                        with the receipt once that is on disk
 *     api_rpc.c          answers questions about receipts, batches and rewards afterwards
 *
 * `tributary serve` (cli/cmd_serve.c) builds all of it and takes it down again. This file only
 * sends the words of the command line to the command they name; commands.h lists them. */
#include "node/base/err.h"
#include "node/base/fault.h"
#include "node/cli/commands.h"

#include <fcntl.h>
#include <signal.h>

#define X(name) &cmd_##name,
const struct cli_command *const cli_commands[] = {CLI_COMMANDS(X)};
#undef X
const size_t cli_n_commands = sizeof cli_commands / sizeof *cli_commands;

/* Whoever starts us with a standard file closed must not find the log in the next file opened. */
static void open_standard_files(void)
{
    for (int fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            BUG("no /dev/null for descriptor %d", fd);
    }
}

int main(int argc, char **argv)
{
    open_standard_files();
    /* A client that hangs up is an error code of write(2), not the end of the node. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* nor is a file that may not grow */
    fault_init();
    return cli_main(cli_commands, cli_n_commands, argc, argv);
}
