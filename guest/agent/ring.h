/* A byte ring of exactly one window. Memory is taken at the first byte and recycled, not cleared. */
#ifndef SPORE_RING_H
#define SPORE_RING_H

#include <stdbool.h>
#include <stddef.h>

#include "proto.h"

struct ring {
    uint8_t *mem; /* NULL until the first byte */
    size_t start, len;
};

/* The free part that is in one piece: NULL if the ring is full or there is no memory. */
uint8_t *ring_space(struct ring *r, size_t *room);
void ring_added(struct ring *r, size_t count);
/* The stored bytes from `offset` on that are in one piece. */
const uint8_t *ring_peek(const struct ring *r, size_t offset, size_t *count);
void ring_drop(struct ring *r, size_t count);
/* All or nothing; false only if it doesn't fit or there is no memory. */
bool ring_put(struct ring *r, const uint8_t *data, size_t count);
/* Give back the memory that holds no byte now. */
void ring_trim(struct ring *r);
void ring_free(struct ring *r);

#endif
