/* log: one line an event to stderr, "time level room message".
 *
 * Any thread; a line is written with one write(2). Secrets have no formatter and are never passed
 * here. Level from TRIBUTARY_LOG (error, warn, info, debug; default info) or log_set_level. */
#ifndef TRIBUTARY_BASE_LOG_H
#define TRIBUTARY_BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

void log_set_level(enum log_level level);
int log_level_parse(const char *name, enum log_level *out); /* 0, or -1 when unknown */
bool log_enabled(enum log_level level);

/* room: the folder or part that speaks ("engine", "ledger", "http"). Control characters in the
 * message become spaces, so that outside text cannot forge lines. */
void log_at(enum log_level level, const char *room, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define log_error(room, ...) log_at(LOG_ERROR, room, __VA_ARGS__)
#define log_warn(room, ...)  log_at(LOG_WARN, room, __VA_ARGS__)
#define log_info(room, ...)  log_at(LOG_INFO, room, __VA_ARGS__)
#define log_debug(room, ...)                      \
    do {                                          \
        if (log_enabled(LOG_DEBUG))               \
            log_at(LOG_DEBUG, room, __VA_ARGS__); \
    } while (0)

#endif
