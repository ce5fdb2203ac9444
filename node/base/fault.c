/* fault: SIGKILL at a named point. See fault.h.
 *
 * SIGKILL and not abort(): no handler runs, no buffer is flushed, so what the next start finds is
 * what the file system had. The environment is read once, before any thread exists, and kept. */
#include "node/base/fault.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Atomic bool fault_armed;

static char fault_name[64];
static _Atomic long fault_passings_left;

__attribute__((constructor)) void fault_init(void)
{
    const char *text = getenv("TRIBUTARY_FAULT");
    atomic_store(&fault_armed, false);
    if (!text || !*text || strlen(text) >= sizeof(fault_name))
        return;
    long passings = 1;
    const char *colon = strchr(text, ':');
    size_t len = colon ? (size_t)(colon - text) : strlen(text);
    if (colon) {
        char *end;
        passings = strtol(colon + 1, &end, 10);
        if (*end || passings < 1)
            return;
    }
    memcpy(fault_name, text, len);
    fault_name[len] = '\0';
    atomic_store(&fault_passings_left, passings);
    atomic_store(&fault_armed, true);
}

void fault_hit(const char *name)
{
    if (strcmp(name, fault_name) != 0 || atomic_fetch_sub(&fault_passings_left, 1) != 1)
        return;
    kill(getpid(), SIGKILL);
    for (;;)
        pause(); /* until the signal arrives */
}
