/* log: see log.h. */
#include "node/base/log.h"

#include "node/base/clock.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const level_names[] = {"error", "warn", "info", "debug"};
static _Atomic int current_level = -1; /* -1: not yet read from the environment */

int log_level_parse(const char *name, enum log_level *out)
{
    for (int i = 0; i < 4; i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *out = (enum log_level)i;
            return 0;
        }
    }
    return -1;
}

void log_set_level(enum log_level level)
{
    atomic_store(&current_level, (int)level);
}

bool log_enabled(enum log_level level)
{
    int cur = atomic_load_explicit(&current_level, memory_order_relaxed);
    if (cur < 0) {
        const char *env = getenv("TRIBUTARY_LOG");
        enum log_level parsed = LOG_INFO;
        if (env != NULL && log_level_parse(env, &parsed) != 0)
            parsed = LOG_INFO;
        cur = (int)parsed;
        atomic_store(&current_level, cur);
    }
    return (int)level <= cur;
}

void log_at(enum log_level level, const char *room, const char *fmt, ...)
{
    if (!log_enabled(level))
        return;
    char message[1024], line[1400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    for (unsigned char *p = (unsigned char *)message; *p; p++) {
        if (*p < 0x20 || *p == 0x7f)
            *p = ' ';
        else if (*p == 0xC2 && p[1] >= 0x80 && p[1] < 0xA0) /* in UTF-8: U+009B is another ESC [ */
            p[0] = p[1] = ' ';
    }
    struct unix_ms now = clock_unix_ms();
    time_t seconds = (time_t)(now.ms / 1000);
    struct tm tm;
    gmtime_r(&seconds, &tm);
    char stamp[32];
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &tm);
    int n = snprintf(line, sizeof line, "%s.%03uZ %-5s %s: %s\n", stamp, (unsigned)(now.ms % 1000),
                     level_names[level], room, message);
    if (n > (int)sizeof line - 1)
        n = (int)sizeof line - 1;
    if (n > 0 && write(STDERR_FILENO, line, (size_t)n) < 0)
        return; /* nowhere left to say it */
}
