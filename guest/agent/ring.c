#include "ring.h"

#include <string.h>
#include <sys/mman.h>

/* A short process must not pay for mapping fresh pages: a few used rings wait here. */
#define KEPT 8
static uint8_t *kept[KEPT];
static size_t kept_count;

static bool have_memory(struct ring *r)
{
    if (r->mem)
        return true;
    if (kept_count) {
        r->mem = kept[--kept_count];
        return true;
    }
    void *mem = mmap(NULL, WINDOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mem == MAP_FAILED)
        return false;
    r->mem = mem;
    return true;
}

uint8_t *ring_space(struct ring *r, size_t *room)
{
    if (r->len == WINDOW || !have_memory(r)) {
        *room = 0;
        return NULL;
    }
    if (!r->len)
        r->start = 0; /* small outputs stay in the first page */
    size_t end = (r->start + r->len) % WINDOW;
    *room = end < r->start ? r->start - end : WINDOW - end;
    return r->mem + end;
}

void ring_added(struct ring *r, size_t count) { r->len += count; }

const uint8_t *ring_peek(const struct ring *r, size_t offset, size_t *count)
{
    size_t at = (r->start + offset) % WINDOW;
    size_t left = r->len - offset;
    *count = left < WINDOW - at ? left : WINDOW - at;
    return r->mem + at;
}

void ring_drop(struct ring *r, size_t count)
{
    r->start = (r->start + count) % WINDOW;
    r->len -= count;
}

bool ring_put(struct ring *r, const uint8_t *data, size_t count)
{
    if (count > WINDOW - r->len || !have_memory(r))
        return false;
    while (count) {
        size_t room;
        uint8_t *at = ring_space(r, &room);
        if (room > count)
            room = count;
        memcpy(at, data, room);
        ring_added(r, room);
        data += room;
        count -= room;
    }
    return true;
}

void ring_trim(struct ring *r)
{
    const size_t page = 4096;
    if (!r->mem || r->start + r->len > WINDOW) /* wrapped: it is nearly full anyway, or soon gone */
        return;
    size_t head = r->start / page * page, tail = (r->start + r->len + page - 1) / page * page;
    if (head)
        madvise(r->mem, head, MADV_DONTNEED);
    if (tail < WINDOW)
        madvise(r->mem + tail, WINDOW - tail, MADV_DONTNEED);
}

void ring_free(struct ring *r)
{
    if (r->mem && kept_count < KEPT)
        kept[kept_count++] = r->mem;
    else if (r->mem)
        munmap(r->mem, WINDOW);
    *r = (struct ring){0};
}
