#include "frame.h"

#include <string.h>

static const uint8_t SYNC_MAGIC[16] = {0xF5, 0x9A, 0xC3, 0xE1, 0xB7, 0x8D, 0xD2, 0x96,
                                       0xAF, 0xE8, 0x91, 0xCB, 0xF0, 0xA4, 0xBD, 0x87};
static const uint8_t ACK_MAGIC[16] = {0xD1, 0x86, 0xFA, 0xB3, 0x9C, 0xE7, 0xA5, 0xC8,
                                      0x8B, 0xF4, 0x92, 0xBE, 0xE0, 0x97, 0xCD, 0xAA};

uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] | (unsigned)p[1] << 8); }

uint32_t get32(const uint8_t *p) { return get16(p) | (uint32_t)get16(p + 2) << 16; }

uint64_t get64(const uint8_t *p) { return get32(p) | (uint64_t)get32(p + 4) << 32; }

void put16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

void put32(uint8_t *p, uint32_t v)
{
    put16(p, (uint16_t)v);
    put16(p + 2, (uint16_t)(v >> 16));
}

void put64(uint8_t *p, uint64_t v)
{
    put32(p, (uint32_t)v);
    put32(p + 4, (uint32_t)(v >> 32));
}

void frame_header(uint8_t out[HEADER_LEN], uint32_t length, uint32_t stream, uint8_t type,
                  uint8_t channel)
{
    put32(out, length);
    put32(out + 4, stream);
    out[8] = type;
    out[9] = channel;
    put16(out + 10, 0);
}

void sync_ack(uint8_t out[SYNC_LEN], uint16_t version, const uint8_t nonce[NONCE_LEN])
{
    memcpy(out, ACK_MAGIC, sizeof ACK_MAGIC);
    put16(out + 16, version);
    put16(out + 18, 0);
    put32(out + 20, 0);
    memcpy(out + 24, nonce, NONCE_LEN);
}

void parser_reset(struct parser *p)
{
    p->framing = false;
    p->start = p->end = 0;
}

void parser_scan(struct parser *p) { p->framing = false; }

uint8_t *parser_space(struct parser *p, size_t *room)
{
    if (p->start == p->end) {
        p->start = p->end = 0;
    } else if (p->start && PARSER_CAP - p->start < MAX_PAYLOAD + HEADER_LEN) {
        memmove(p->buf, p->buf + p->start, p->end - p->start);
        p->end -= p->start;
        p->start = 0;
    }
    *room = PARSER_CAP - p->end;
    return p->buf + p->end;
}

void parser_added(struct parser *p, size_t count) { p->end += count; }

static bool header_ok(uint32_t length, uint32_t stream, uint8_t type, uint8_t channel, uint16_t zero)
{
    uint32_t least = 0, most = MAX_PAYLOAD;
    bool connection = false, channels = false;
    switch (type) {
    case T_NOP: most = 0; connection = true; break;
    case T_HELLO: connection = true; break;
    case T_OPEN: least = 1; break;
    case T_REPLY: case T_EVENT: case T_CLOSE: break;
    case T_DATA: least = 1; channels = true; break;
    case T_CREDIT: least = most = 4; channels = true; break;
    case T_EOF: most = 0; channels = true; break;
    case T_PING: case T_PONG: most = 64; connection = true; break;
    default: return false;
    }
    return length >= least && length <= most && (stream == 0) == connection && zero == 0 &&
           channel < (channels ? MAX_CHANNELS : 1);
}

static enum parsed scan(struct parser *p, struct sync *sync)
{
    while (p->start < p->end) {
        const uint8_t *at = memchr(p->buf + p->start, SYNC_MAGIC[0], p->end - p->start);
        if (!at) {
            p->start = p->end;
            break;
        }
        p->start = (size_t)(at - p->buf);
        size_t have = p->end - p->start;
        size_t known = have < sizeof SYNC_MAGIC ? have : sizeof SYNC_MAGIC;
        if (memcmp(at, SYNC_MAGIC, known) != 0) {
            p->start++;
            continue;
        }
        if (have < SYNC_LEN)
            return PARSED_NOTHING;
        sync->lowest = get16(at + 16);
        sync->highest = get16(at + 18);
        sync->flags = get32(at + 20);
        memcpy(sync->nonce, at + 24, NONCE_LEN);
        p->start += SYNC_LEN;
        p->framing = true;
        return PARSED_SYNC;
    }
    return PARSED_NOTHING;
}

enum parsed parser_next(struct parser *p, struct frame *frame, struct sync *sync)
{
    if (!p->framing)
        return scan(p, sync);
    const uint8_t *at = p->buf + p->start;
    if (p->end - p->start < HEADER_LEN)
        return PARSED_NOTHING;
    frame->length = get32(at);
    frame->stream = get32(at + 4);
    frame->type = at[8];
    frame->channel = at[9];
    if (!header_ok(frame->length, frame->stream, frame->type, frame->channel, get16(at + 10))) {
        p->framing = false;
        return PARSED_BAD;
    }
    if (p->end - p->start - HEADER_LEN < frame->length)
        return PARSED_NOTHING;
    frame->payload = at + HEADER_LEN;
    p->start += HEADER_LEN + frame->length;
    return PARSED_FRAME;
}
