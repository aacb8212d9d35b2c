/* One epoll, one thread. Edge-triggered throughout: a hung-up port or a full pipe costs nothing. */
#ifndef SPORE_LOOP_H
#define SPORE_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

struct source {
    int fd; /* -1 = none */
    void (*ready)(struct source *src, uint32_t events);
};

void loop_init(void);
/* Edge-triggered. 0 or an errno. */
int loop_add(struct source *src, uint32_t events);
/* Close the fd. A pending event of this turn finds fd == -1 and is dropped. */
void source_close(struct source *src);
/* free() it at the end of this turn: events already fetched may still point into it. */
void loop_free_later(void *memory);
uint64_t now_ms(void); /* monotonic */
/* One turn: wait at most timeout_ms (-1 = for ever) and call the sources that are ready. */
void loop_turn(int timeout_ms);

#endif
