/* fault: named moments at which the process may be told to die.
 *
 * FAULT_POINT("commit.after") kills the process with SIGKILL, as a power cut would, when the
 * environment's TRIBUTARY_FAULT names it: "commit.after", or "commit.after:3" for the third
 * passing. The fault campaign and the crash tests use it to hit each state between two durable
 * steps. Always compiled in; unset it costs one relaxed load. Any thread. */
#ifndef TRIBUTARY_BASE_FAULT_H
#define TRIBUTARY_BASE_FAULT_H

#include <stdatomic.h>
#include <stdbool.h>

extern _Atomic bool fault_armed;

/* Reads TRIBUTARY_FAULT (at the program's start; tests call it again after setenv). */
void fault_init(void);
void fault_hit(const char *name); /* kills, or returns when it is another's turn */

#define FAULT_POINT(name)                                                                  \
    do {                                                                                   \
        if (__builtin_expect(atomic_load_explicit(&fault_armed, memory_order_relaxed), 0)) \
            fault_hit(name);                                                               \
    } while (0)

#endif
