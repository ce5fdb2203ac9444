/* http_address: addresses as text, and a listening socket from one. Part of the HTTP server. */
#ifndef TRIBUTARY_NODE_HTTP_ADDRESS_H
#define TRIBUTARY_NODE_HTTP_ADDRESS_H

#include "node/http.h"

#include <netinet/in.h>
#include <sys/socket.h>

/* "127.0.0.1", "::1", or "unknown"; a may be NULL. */
void http_address_text(char out[INET6_ADDRSTRLEN], const struct sockaddr *a);

/* Of an address as http_address_text writes it, the part that stays the same however its host
 * changes it: of IPv6 the network, "2001:db8:1:2::" (/64), else all of it. An IPv4 address in IPv6
 * ("::ffff:192.0.2.1") is an IPv4 address. */
void http_address_network(char out[INET6_ADDRSTRLEN], const char *address);

/* Resolves opt->listen ("host:port", "[v6]:port"), applies the rules of struct http_options about
 * who may reach it, and listens. *url: free() it. */
int http_listen_on(const struct http_options *opt, int *fd, bool *loopback, char **url,
                   struct err *err);

#endif
