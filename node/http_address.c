/* http_address: see http_address.h. */
#include "node/http_address.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void http_address_text(char out[INET6_ADDRSTRLEN], const struct sockaddr *a)
{
    snprintf(out, INET6_ADDRSTRLEN, "unknown");
    if (a == NULL)
        return;
    if (a->sa_family == AF_INET)
        inet_ntop(AF_INET, &((const struct sockaddr_in *)(const void *)a)->sin_addr, out,
                  INET6_ADDRSTRLEN);
    else if (a->sa_family == AF_INET6)
        inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)(const void *)a)->sin6_addr, out,
                  INET6_ADDRSTRLEN);
}

void http_address_network(char out[INET6_ADDRSTRLEN], const char *address)
{
    struct in6_addr a;
    snprintf(out, INET6_ADDRSTRLEN, "%s", address);
    if (inet_pton(AF_INET6, address, &a) != 1)
        return;
    if (IN6_IS_ADDR_V4MAPPED(&a)) {
        inet_ntop(AF_INET, a.s6_addr + 12, out, INET6_ADDRSTRLEN);
    } else {
        memset(a.s6_addr + 8, 0, 8);
        inet_ntop(AF_INET6, &a, out, INET6_ADDRSTRLEN);
    }
}

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET) {
        uint32_t ip = ntohl(((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr);
        return ip >> 24 == 127;
    }
    if (a->sa_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
    return false;
}

/* "host:port" or "[v6]:port" to a listening socket. */
int http_listen_on(const struct http_options *opt, int *fd_out, bool *loopback, char **url_out,
                   struct err *err)
{
    const char *text = opt->listen;
    const char *colon = strrchr(text, ':');
    if (colon == NULL || colon == text || colon[1] == '\0')
        return err_set(err, ERR_INVALID, "listen address \"%s\" is not HOST:PORT", text);
    size_t host_len = (size_t)(colon - text);
    bool v6 = text[0] == '[';
    if (v6 && (host_len < 3 || text[host_len - 1] != ']'))
        return err_set(err, ERR_INVALID, "listen address \"%s\" is not [HOST]:PORT", text);
    if (strspn(colon + 1, "0123456789") != strlen(colon + 1) || strtol(colon + 1, NULL, 10) > 65535)
        return err_set(err, ERR_INVALID, "listen address \"%s\": no port is called %s", text,
                       colon + 1);
    char *host = v6 ? xstrndup(text + 1, host_len - 2) : xstrndup(text, host_len);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    int rc = getaddrinfo(host, colon + 1, &hints, &found);
    free(host);
    if (rc != 0)
        return err_set(err, ERR_INVALID, "listen address \"%s\": %s", text, gai_strerror(rc));
    int fd = -1;
    *loopback = is_loopback(found->ai_addr);
    if (!*loopback && opt->loopback_only != NULL) {
        err_set(err, ERR_FORBIDDEN, "listening on %s is refused: %s", text, opt->loopback_only);
        goto fail;
    }
    if (!*loopback && !opt->insecure_bind && opt->tls_cert == NULL) {
        err_set(err, ERR_FORBIDDEN,
                "listening on %s would show keys and prompts to the network in the clear: give "
                "a certificate (server.tls_cert, server.tls_key), listen on 127.0.0.1 behind a "
                "proxy, or say --insecure-bind",
                text);
        goto fail;
    }
    fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int on = 1;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 1024) != 0) {
        err_set_errno(err, errno, "cannot listen on %s", text);
        goto fail;
    }
    struct sockaddr_storage bound;
    socklen_t bound_len = sizeof bound;
    char ip[INET6_ADDRSTRLEN];
    if (getsockname(fd, (struct sockaddr *)&bound, &bound_len) != 0) {
        err_set_errno(err, errno, "cannot listen on %s", text);
        goto fail;
    }
    http_address_text(ip, (struct sockaddr *)&bound);
    unsigned port = bound.ss_family == AF_INET
                        ? ntohs(((struct sockaddr_in *)(void *)&bound)->sin_port)
                        : ntohs(((struct sockaddr_in6 *)(void *)&bound)->sin6_port);
    *url_out = xasprintf("%s://%s%s%s:%u", opt->tls_cert != NULL ? "https" : "http",
                         bound.ss_family == AF_INET6 ? "[" : "", ip,
                         bound.ss_family == AF_INET6 ? "]" : "", port);
    freeaddrinfo(found);
    *fd_out = fd;
    return 0;
fail:
    if (fd >= 0)
        close(fd);
    freeaddrinfo(found);
    return -1;
}
