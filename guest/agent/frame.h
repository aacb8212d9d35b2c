/* The byte stream from the host, cut into sync records and frames. No I/O: feed it and ask it. */
#ifndef SPORE_FRAME_H
#define SPORE_FRAME_H

#include <stdbool.h>
#include <stddef.h>

#include "proto.h"

struct frame {
    uint32_t length;
    uint32_t stream;
    uint8_t type;
    uint8_t channel;
    const uint8_t *payload; /* inside the parser's buffer: valid until the next parser_space() */
};

struct sync {
    uint16_t lowest, highest;
    uint32_t flags;
    uint8_t nonce[NONCE_LEN];
};

enum parsed {
    PARSED_NOTHING, /* more bytes are needed */
    PARSED_SYNC,    /* the parser is in frame mode now */
    PARSED_FRAME,
    PARSED_BAD      /* a malformed header: the parser is in scan mode, at that header's first byte */
};

/* Room for one whole frame and a good part of the next, so that a partial frame is moved rarely. */
#define PARSER_CAP (2U * (MAX_PAYLOAD + HEADER_LEN))

struct parser {
    bool framing; /* false: scanning for a sync record */
    size_t start, end;
    uint8_t buf[PARSER_CAP];
};

/* Where to put new bytes, and how many at most (never 0 after parser_next said PARSED_NOTHING). */
uint8_t *parser_space(struct parser *p, size_t *room);
void parser_added(struct parser *p, size_t count);
enum parsed parser_next(struct parser *p, struct frame *frame, struct sync *sync);
/* Forget everything, also what is buffered: the stream begins anew. */
void parser_reset(struct parser *p);
/* Back to scanning, from the next unread byte. */
void parser_scan(struct parser *p);

void frame_header(uint8_t out[HEADER_LEN], uint32_t length, uint32_t stream, uint8_t type,
                  uint8_t channel);
void sync_ack(uint8_t out[SYNC_LEN], uint16_t version, const uint8_t nonce[NONCE_LEN]);

uint16_t get16(const uint8_t *p);
uint32_t get32(const uint8_t *p);
uint64_t get64(const uint8_t *p);
void put16(uint8_t *p, uint16_t v);
void put32(uint8_t *p, uint32_t v);
void put64(uint8_t *p, uint64_t v);

#endif
