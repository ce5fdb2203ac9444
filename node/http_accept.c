/* http_accept: from the listening socket to a connection of one of the loops, and its end.
 *
 * MHD could listen by itself, but not stop again: MHD_quiesce_daemon takes the listening socket out
 * of each loop's epoll set while that loop, which has seen the flag, does the same, and whoever
 * comes second ends the process (0.9.75: "Failed to remove listen FD from epoll set"). So MHD never
 * sees it. One thread of ours waits for connections and hands each to the loop that has the fewest;
 * draining stops that thread and closes the socket, and the loops don't notice.
 *
 * MHD's limits are for each loop, and MHD documents MHD_USE_NO_LISTEN_SOCKET for a daemon of one
 * thread only. So both limits are kept here, over all loops, and each loop is a daemon of its own:
 *
 *     connections in all       none is accepted while max_connections are open; they wait in the
 *                              kernel's backlog until one ends
 *     ... from one address     one more is closed as soon as it is accepted
 *
 * A connection is counted from accept4 on. MHD tells us when it begins to serve it (STARTED, on the
 * loop's thread), and when it is about to close the descriptor (CLOSED). Without memory MHD closes
 * one before STARTED and says nothing; that it is gone shows when its number is accepted again. */
#include "node/http_internal.h"

#include "node/base/err.h"
#include "node/base/log.h"
#include "node/http_address.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    NO_RESOURCE_MS = 20, /* until the next try, when there was no descriptor or memory to accept */
    COMPLAIN_US = 1000 * 1000, /* at most one line of the log in this time */
};

static void wake(struct http_server *s)
{
    uint64_t one = 1;
    if (write(s->accept_wake, &one, sizeof one) < 0)
        BUG_IF(errno != EAGAIN); /* EAGAIN: it will wake anyway */
}

/* ---- the list of connections; conn_lock is held ------------------------------------------------
 */

/* NULL: its address has as many as it may. */
static struct conn *conn_add(struct http_server *s, int fd, const struct sockaddr *address)
{
    char text[INET6_ADDRSTRLEN];
    http_address_text(text, address);
    struct http_peer *peer = hash_map_get(&s->peers, text, strlen(text));
    if (peer == NULL) {
        peer = xcalloc(1, sizeof *peer);
        memcpy(peer->text, text, sizeof peer->text);
        hash_map_put(&s->peers, peer->text, strlen(peer->text), peer);
    } else if (s->opt.max_connections_per_ip > 0 &&
               peer->n_conns >= s->opt.max_connections_per_ip) {
        return NULL;
    }
    struct conn *c = xcalloc(1, sizeof *c);
    c->fd = fd;
    c->peer = peer;
    peer->n_conns++;
    c->loop = s->loops;
    for (int i = 1; i < s->opt.n_threads; i++) {
        if (s->loops[i].n_conns < c->loop->n_conns)
            c->loop = &s->loops[i];
    }
    c->loop->n_conns++;
    c->next = s->conns;
    if (c->next != NULL)
        c->next->prev = c;
    s->conns = c;
    s->n_conns++;
    return c;
}

static void conn_remove(struct http_server *s, struct conn *c)
{
    if (c->prev != NULL)
        c->prev->next = c->next;
    else
        s->conns = c->next;
    if (c->next != NULL)
        c->next->prev = c->prev;
    s->n_conns--;
    c->loop->n_conns--;
    if (--c->peer->n_conns == 0) {
        hash_map_remove(&s->peers, c->peer->text, strlen(c->peer->text));
        free(c->peer);
    }
    free(c);
    if (s->accept_full) {
        s->accept_full = false;
        wake(s);
    }
}

/* ---- what MHD says of connections --------------------------------------------------------------
 */

void mhd_on_connection(void *context, struct MHD_Connection *mhd, void **socket_context,
                       enum MHD_ConnectionNotificationCode code)
{
    struct http_server *s = context;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        int fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        pthread_mutex_lock(&s->conn_lock);
        struct conn *c = hash_map_remove(&s->handed, &fd, sizeof fd);
        BUG_IF(c == NULL);
        atomic_store(&c->deadline_us, http_now_us() + s->opt.request_timeout_s * UINT64_C(1000000));
        pthread_mutex_unlock(&s->conn_lock);
        *socket_context = c;
        return;
    }
    pthread_mutex_lock(&s->conn_lock);
    conn_remove(s, *socket_context);
    pthread_mutex_unlock(&s->conn_lock);
}

/* ---- the thread --------------------------------------------------------------------------------
 */

static void take(struct http_server *s, int fd, const struct sockaddr_storage *address,
                 socklen_t n_address)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    pthread_mutex_lock(&s->conn_lock);
    struct conn *lost = hash_map_remove(&s->handed, &fd, sizeof fd);
    if (lost != NULL)
        conn_remove(s, lost);
    struct conn *c = conn_add(s, fd, (const struct sockaddr *)address);
    struct MHD_Daemon *daemon = NULL;
    if (c != NULL) {
        hash_map_put(&s->handed, &c->fd, sizeof c->fd, c);
        daemon = c->loop->daemon;
    }
    pthread_mutex_unlock(&s->conn_lock);
    if (c == NULL) {
        log_debug("http", "too many connections from one address: one is closed");
        close(fd);
        return;
    }
    /* From here c is the loop's. MHD closes fd when it fails; what it fails before, c is still in
     * `handed`, and only this thread could put another there. */
    if (MHD_add_connection(daemon, fd, (const struct sockaddr *)address, n_address) == MHD_YES)
        return;
    pthread_mutex_lock(&s->conn_lock);
    lost = hash_map_remove(&s->handed, &fd, sizeof fd);
    if (lost != NULL)
        conn_remove(s, lost);
    pthread_mutex_unlock(&s->conn_lock);
}

/* Accepts what waits, as far as the limit allows. False: there is no descriptor or memory now. */
static bool accept_all(struct http_server *s, uint64_t *complain_next_us)
{
    while (!atomic_load(&s->draining)) {
        pthread_mutex_lock(&s->conn_lock);
        bool full = s->accept_full = s->n_conns >= (size_t)s->opt.max_connections;
        pthread_mutex_unlock(&s->conn_lock);
        if (full)
            return true;
        struct sockaddr_storage address;
        socklen_t n_address = sizeof address;
        int fd = accept4(s->listen_fd, (struct sockaddr *)&address, &n_address,
                         SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            take(s, fd, &address, n_address);
        } else if (errno == EAGAIN) {
            return true;
        } else if (errno != ECONNABORTED && errno != EINTR) {
            int why = errno;
            uint64_t now = http_now_us();
            if (now >= *complain_next_us) {
                log_warn("http", "cannot accept a connection on %s: %s", s->url, strerror(why));
                *complain_next_us = now + COMPLAIN_US;
            }
            return false;
        }
    }
    return true;
}

static void *accept_main(void *context)
{
    struct http_server *s = context;
    uint64_t complain_next_us = 0;
    while (!atomic_load(&s->draining)) {
        bool resources = accept_all(s, &complain_next_us);
        pthread_mutex_lock(&s->conn_lock);
        bool look = resources && !s->accept_full;
        pthread_mutex_unlock(&s->conn_lock);
        struct pollfd fds[] = {{s->accept_wake, POLLIN, 0}, {s->listen_fd, POLLIN, 0}};
        if (poll(fds, look ? 2 : 1, resources ? -1 : NO_RESOURCE_MS) < 0 && errno != EINTR)
            usleep(NO_RESOURCE_MS * 1000);
        uint64_t n;
        if ((fds[0].revents & POLLIN) != 0 && read(s->accept_wake, &n, sizeof n) < 0)
            BUG_IF(errno != EAGAIN && errno != EINTR);
    }
    return NULL;
}

/* ---- open and close ----------------------------------------------------------------------------
 */

int http_accept_start(struct http_server *s, struct err *err)
{
    s->accept_wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->accept_wake < 0)
        return err_set_errno(err, errno, "cannot accept connections on %s", s->url);
    int rc = pthread_create(&s->acceptor, NULL, accept_main, s);
    if (rc != 0)
        return err_set_errno(err, rc, "cannot start the thread that accepts on %s", s->url);
    s->accepting = true;
    return 0;
}

void http_accept_stop(struct http_server *s)
{
    if (s->accepting) {
        wake(s);
        pthread_join(s->acceptor, NULL);
        s->accepting = false;
    }
    if (s->listen_fd >= 0)
        close(s->listen_fd);
    s->listen_fd = -1;
}

void http_accept_release(struct http_server *s)
{
    while (s->conns != NULL) /* handed to a loop that was stopped before it looked */
        conn_remove(s, s->conns);
    hash_map_release(&s->handed);
    hash_map_release(&s->peers);
    if (s->accept_wake >= 0)
        close(s->accept_wake);
}
