/* stop_match: see stop_match.h.
 *
 * One Knuth-Morris-Pratt automaton a stop. Its state is how many bytes of the stop the text's end
 * matches, so that the longest state over all stops is exactly what must be held back, and each
 * byte costs amortised constant time, whatever the stops ("aaaaaaab" included). */
#include "node/stop_match.h"

#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>

struct pattern {
    char *text;
    size_t n;
    size_t *border; /* [n + 1] length of the longest proper border of each prefix */
    size_t state;   /* bytes matched */
};

struct stop_match {
    struct pattern patterns[STOP_MATCH_MAX];
    size_t n_patterns;
    struct buf held; /* the last bytes of the text, as many as the longest state */
    int which;
};

struct stop_match *stop_match_create(const char *const *stops, size_t n)
{
    BUG_IF(n > STOP_MATCH_MAX);
    struct stop_match *m = xcalloc(1, sizeof *m);
    m->which = -1;
    for (size_t i = 0; i < n; i++) {
        struct pattern *p = &m->patterns[m->n_patterns++];
        p->n = strlen(stops[i]);
        BUG_IF(p->n == 0 || p->n > STOP_MATCH_BYTES_MAX);
        p->text = xstrdup(stops[i]);
        p->border = xcalloc(p->n + 1, sizeof *p->border);
        for (size_t at = 1, k = 0; at < p->n; at++) {
            while (k > 0 && p->text[at] != p->text[k])
                k = p->border[k];
            if (p->text[at] == p->text[k])
                k++;
            p->border[at + 1] = k;
        }
    }
    return m;
}

void stop_match_free(struct stop_match *m)
{
    if (m == NULL)
        return;
    for (size_t i = 0; i < m->n_patterns; i++) {
        free(m->patterns[i].text);
        free(m->patterns[i].border);
    }
    buf_release(&m->held);
    free(m);
}

static void pattern_step(struct pattern *p, char byte)
{
    while (p->state > 0 && p->text[p->state] != byte)
        p->state = p->border[p->state];
    if (p->text[p->state] == byte)
        p->state++;
}

bool stop_match_push(struct stop_match *m, struct buf *out, const char *piece, size_t n)
{
    BUG_IF(m->which >= 0);
    for (size_t at = 0; at < n; at++) {
        buf_append_byte(&m->held, (uint8_t)piece[at]);
        size_t longest = 0;
        for (size_t i = 0; i < m->n_patterns; i++) {
            struct pattern *p = &m->patterns[i];
            pattern_step(p, piece[at]);
            if (p->state == p->n && (m->which < 0 || p->n > m->patterns[m->which].n))
                m->which = (int)i;
            if (p->state > longest)
                longest = p->state;
        }
        if (m->which >= 0) {
            buf_append(out, m->held.data, m->held.len - m->patterns[m->which].n);
            buf_reset(&m->held);
            return true;
        }
        if (m->held.len > longest + 256 || at + 1 == n) {
            size_t certain = m->held.len - longest;
            buf_append(out, m->held.data, certain);
            memmove(m->held.data, m->held.data + certain, longest);
            m->held.len = longest;
        }
    }
    return false;
}

void stop_match_flush(struct stop_match *m, struct buf *out)
{
    if (m->held.len > 0)
        buf_append(out, m->held.data, m->held.len);
    buf_reset(&m->held);
}

int stop_match_which(const struct stop_match *m)
{
    return m->which;
}
