/* sse: see sse.h. JSON has no raw line ends, so our events are one line; the framing is right for
 * any text all the same, since a line end let through would be a forged event. */
#include "node/sse.h"

void sse_append_event(struct buf *b, const char *data, size_t n)
{
    buf_append_str(b, "data: ");
    for (size_t i = 0; i < n; i++) {
        if (data[i] != '\n' && data[i] != '\r') {
            buf_append_byte(b, (uint8_t)data[i]);
            continue;
        }
        if (data[i] == '\r' && i + 1 < n && data[i + 1] == '\n')
            i++;
        buf_append_str(b, "\ndata: ");
    }
    buf_append_str(b, "\n\n");
}
