/* status_page: the node at a glance, for an operator with a phone. */
#ifndef TRIBUTARY_NODE_STATUS_PAGE_H
#define TRIBUTARY_NODE_STATUS_PAGE_H

#include <jansson.h>

struct buf;

/* Appends the page for a status object (health_status). */
void status_page_render(struct buf *out, const json_t *status);

#endif
