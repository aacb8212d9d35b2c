/* TCP_CONNECT: a connection inside the guest, carried by a stream. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "channel.h"
#include "loop.h"
#include "ring.h"
#include "tcp.h"

#define OUT 1

struct tcp {
    struct source src; /* must be first */
    struct stream *stream;
    struct ring ring; /* from the host, not taken by the peer yet */
    uint16_t port;
    bool connecting, may_retry; /* by IPv6, if nobody listens on IPv4 loopback */
    bool readable, writable;
    bool in_eof, in_done; /* the host said EOF; it is passed on */
    bool out_done;        /* the peer said EOF; it is passed on */
};

static void finish(struct tcp *c, int err)
{
    struct stream *s = c->stream;
    s->ops = NULL;
    source_close(&c->src);
    ring_free(&c->ring);
    loop_free_later(c);
    if (s->replied)
        stream_close(s, err);
    else
        stream_fail(s, err, "connect", NULL);
}

static int dial(struct tcp *c, const struct sockaddr *addr, socklen_t len)
{
    int yes = 1, fd = socket(addr->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return errno;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (connect(fd, addr, len) < 0 && errno != EINPROGRESS) {
        int err = errno;
        close(fd);
        return err;
    }
    c->src.fd = fd;
    int err = loop_add(&c->src, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
    if (err)
        source_close(&c->src);
    return err;
}

static int dial_host(struct tcp *c, const char *host)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(c->port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(c->port)};
    if (inet_pton(AF_INET, host, &v4.sin_addr) == 1)
        return dial(c, (struct sockaddr *)&v4, sizeof v4);
    if (inet_pton(AF_INET6, host, &v6.sin6_addr) == 1)
        return dial(c, (struct sockaddr *)&v6, sizeof v6);
    return EINVAL; /* the agent resolves no names */
}

/* The socket became writable for the first time, or failed. */
static void connected(struct tcp *c)
{
    int err = 0;
    socklen_t len = sizeof err;
    if (getsockopt(c->src.fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0)
        err = errno;
    if (err == ECONNREFUSED && c->may_retry) {
        c->may_retry = false;
        source_close(&c->src);
        c->readable = c->writable = false;
        if (dial_host(c, "::1") != 0)
            finish(c, err);
        return;
    }
    if (err) {
        finish(c, err);
        return;
    }
    c->connecting = false;
    stream_reply_ok(c->stream);
}

/* Pass on what the host sent. False if the connection failed and is finished. */
static bool drain(struct tcp *c)
{
    while (c->writable && c->ring.len) {
        size_t piece;
        const uint8_t *at = ring_peek(&c->ring, 0, &piece);
        ssize_t n = send(c->src.fd, at, piece, MSG_NOSIGNAL);
        if (n > 0) {
            ring_drop(&c->ring, (size_t)n);
            stream_passed(c->stream, 0, (size_t)n);
        } else if (n < 0 && errno == EAGAIN) {
            c->writable = false;
        } else if (n < 0 && errno != EINTR) {
            finish(c, errno);
            return false;
        }
    }
    if (c->in_eof && !c->ring.len && !c->in_done && !c->connecting) {
        c->in_done = true;
        shutdown(c->src.fd, SHUT_WR);
    }
    if (c->in_done && c->out_done) {
        finish(c, 0);
        return false;
    }
    return true;
}

static void on_socket(struct source *src, uint32_t events)
{
    struct tcp *c = (struct tcp *)src;
    if (c->connecting) {
        if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
            return;
        connected(c);
        if (c->src.fd < 0 || c->connecting)
            return;
    }
    if (events & ~(uint32_t)EPOLLOUT)
        c->readable = true;
    if (events & EPOLLOUT)
        c->writable = true;
    if (drain(c))
        stream_dirty(c->stream);
}

static bool tcp_pump(struct stream *s)
{
    struct tcp *c = s->state;
    size_t room = stream_room(s, OUT);
    if (!c->readable || c->connecting || c->out_done)
        return false;
    if (!room)
        return s->unacked[OUT] < WINDOW;
    ssize_t n = recv(c->src.fd, channel_data_begin(), room, 0);
    if (n > 0) {
        stream_data_inplace(s, OUT, (size_t)n);
        return true;
    }
    if (n < 0 && errno == EINTR)
        return true;
    c->readable = false;
    if (n < 0 && errno == EAGAIN)
        return false;
    if (n < 0) {
        finish(c, errno);
        return false;
    }
    c->out_done = true;
    stream_eof(s, OUT);
    drain(c);
    return false;
}

static void tcp_data(struct stream *s, uint8_t channel, const uint8_t *bytes, size_t len)
{
    struct tcp *c = s->state;
    if (channel != 0) {
        stream_passed(s, channel, len);
        return;
    }
    if (c->in_done || c->in_eof)
        return;
    if (!ring_put(&c->ring, bytes, len))
        finish(c, ENOMEM);
    else
        drain(c);
}

static void tcp_eof(struct stream *s, uint8_t channel)
{
    struct tcp *c = s->state;
    if (channel != 0)
        return;
    c->in_eof = true;
    drain(c);
}

static void tcp_gone(struct stream *s, const struct msg *m)
{
    struct tcp *c = s->state;
    (void)m;
    source_close(&c->src);
    ring_free(&c->ring);
    loop_free_later(c);
}

static const struct stream_ops tcp_ops = {
    .data = tcp_data, .eof = tcp_eof, .pump = tcp_pump, .gone = tcp_gone};

void svc_tcp_connect(struct stream *s, const struct msg *m)
{
    const char *host = msg_str(m, TAG_HOST);
    uint64_t port = msg_u64(m, TAG_PORT, 0);
    struct tcp *c = calloc(1, sizeof *c);
    if (!c) {
        stream_fail(s, ENOMEM, "no memory", NULL);
        return;
    }
    c->may_retry = !host || strcmp(host, "localhost") == 0;
    c->src = (struct source){-1, on_socket};
    c->stream = s;
    c->port = (uint16_t)port;
    c->connecting = true;
    int err = port < 1 || port > 65535 ? EINVAL : dial_host(c, c->may_retry ? "127.0.0.1" : host);
    if (err) {
        free(c);
        stream_fail(s, err, "connect", host);
        return;
    }
    s->ops = &tcp_ops;
    s->state = c;
}
