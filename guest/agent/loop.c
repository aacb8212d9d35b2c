#include "loop.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define BATCH 16

static int epoll_fd = -1;

/* Freed memory of this turn, chained through its own first word: needs no memory itself. */
struct grave {
    struct grave *next;
};
static struct grave *graves;

/* Which sources of the present batch are still to be called. */
static struct epoll_event batch[BATCH];
static int batch_at, batch_len;

void loop_init(void) { epoll_fd = epoll_create1(EPOLL_CLOEXEC); }

int loop_add(struct source *src, uint32_t events)
{
    struct epoll_event ev = {.events = events | EPOLLET, .data.ptr = src};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, src->fd, &ev) < 0 ? errno : 0;
}

void source_close(struct source *src)
{
    if (src->fd < 0)
        return;
    for (int i = batch_at; i < batch_len; i++)
        if (batch[i].data.ptr == src)
            batch[i].data.ptr = NULL;
    /* Explicit: a copy of the fd in a just-forked job would keep the registration alive. */
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, src->fd, NULL);
    close(src->fd);
    src->fd = -1;
}

void loop_free_later(void *memory)
{
    struct grave *g = memory;
    if (!g)
        return;
    g->next = graves;
    graves = g;
}

uint64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

void loop_turn(int timeout_ms)
{
    batch_len = epoll_wait(epoll_fd, batch, BATCH, timeout_ms);
    for (batch_at = 0; batch_at < batch_len;) {
        struct epoll_event *ev = &batch[batch_at++];
        struct source *src = ev->data.ptr;
        if (src)
            src->ready(src, ev->events);
    }
    batch_at = batch_len = 0;
    while (graves) {
        struct grave *g = graves;
        graves = g->next;
        free(g);
    }
}
