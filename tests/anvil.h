/* anvil: a real EVM for a test, on a port of its own, gone when the test is. Its dev accounts are
 * unlocked: the node signs for them, so that tests of chain/ need no wallet. */
#ifndef TRIBUTARY_TESTS_ANVIL_H
#define TRIBUTARY_TESTS_ANVIL_H

#include "tests/support.h"

#include "node/base/clock.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define ANVIL_PROGRAM "contracts-abi/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil"
enum { ANVIL_OPTIONS_MAX = 24, ANVIL_START_MS = 30000 };

struct anvil {
    pid_t pid;
    char url[64];
};

/* What it said so far, in text [cap]. */
static inline void anvil_output(int log, char *text, size_t cap)
{
    ssize_t n = pread(log, text, cap - 1, 0);
    text[n > 0 ? n : 0] = '\0';
}

/* options: NULL-terminated, or NULL. Fails the test when anvil does not start. */
static inline void anvil_start(struct anvil *a, const char *const *options)
{
    static const char mark[] = "Listening on ";
    const char *argv[ANVIL_OPTIONS_MAX + 6] = {"anvil", "--host", "127.0.0.1", "--port", "0"};
    char said[65536], *at;
    size_t n = 5;
    for (; options != NULL && *options != NULL; options++) {
        assert_true(n < ANVIL_OPTIONS_MAX + 5);
        argv[n++] = *options;
    }
    if (access(ANVIL_PROGRAM, X_OK) != 0)
        fail_msg("%s is missing (make deps)", ANVIL_PROGRAM);
    /* A file and not a pipe: nobody reads what it says later. */
    int log = memfd_create("anvil", MFD_CLOEXEC);
    assert_true(log >= 0);
    pid_t parent = getpid();
    a->pid = fork();
    assert_true(a->pid >= 0);
    if (a->pid == 0) {
        /* Never outlives the test, however that ends. */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent || dup2(log, 1) < 0 || dup2(log, 2) < 0)
            _exit(126);
        execv(ANVIL_PROGRAM, (char *const *)argv);
        _exit(127);
    }
    struct monotonic_us begun = clock_monotonic_us();
    for (;;) {
        anvil_output(log, said, sizeof said);
        at = strstr(said, mark);
        if (at != NULL && strchr(at, '\n') != NULL)
            break;
        int status;
        if (waitpid(a->pid, &status, WNOHANG) == a->pid)
            fail_msg("anvil ends instead of starting: %s", said);
        if (clock_elapsed_us(begun, clock_monotonic_us()) > (uint64_t)ANVIL_START_MS * 1000)
            fail_msg("anvil does not start in %d ms: %s", ANVIL_START_MS, said);
        usleep(5000);
    }
    at += strlen(mark);
    snprintf(a->url, sizeof a->url, "http://%.*s", (int)strcspn(at, "\n"), at);
    close(log);
}

static inline void anvil_stop(struct anvil *a)
{
    int status;
    if (a->pid <= 0)
        return;
    kill(a->pid, SIGTERM);
    waitpid(a->pid, &status, 0);
    a->pid = 0;
}

#endif
