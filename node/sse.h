/* sse: framing of server-sent events (WHATWG HTML, "9.2.5 Parsing an event stream"). */
#ifndef TRIBUTARY_NODE_SSE_H
#define TRIBUTARY_NODE_SSE_H

#include "node/base/buf.h"

#include <stddef.h>

/* Appends one event with data [n]: each of its lines under a "data: ", then an empty line. A CR, LF
 * or CR LF in data ends a line; the reader gets them all as LF. */
void sse_append_event(struct buf *b, const char *data, size_t n);

#endif
