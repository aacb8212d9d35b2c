/*
 * Fuzz target of the frame and TLV parsers. Two ways in: LLVMFuzzerTestOneInput for libFuzzer
 * (-DLIBFUZZER), and a loop of its own, `fuzz_parsers SEED ITERATIONS`, the same on every machine.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "frame.h"
#include "tlv.h"

#define MAX_INPUT 200000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void need(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "broken promise: %s\n", what);
    abort();
}

static void fuzz_tlv(const uint8_t *data, size_t size)
{
    static struct field fields[TLV_MAX_FIELDS];
    struct msg m;
    if (size > MAX_PAYLOAD)
        return;
    uint8_t *copy = malloc(size + 1);
    memcpy(copy, data, size);
    if (tlv_parse(copy, size, fields, TLV_MAX_FIELDS, &m)) {
        size_t sum = 0;
        for (size_t i = 0; i < m.count; i++)
            sum += TLV_HEAD + fields[i].len;
        need(sum == size, "fields fill their payload");
        if (tlv_seal(&m)) {
            (void)msg_u64(&m, TAG_SIZE, 0);
            const char *path = msg_str(&m, TAG_PATH);
            need(!path || strlen(path) == msg_find(&m, TAG_PATH)->len, "a str ends at its length");
        }
    }
    free(copy);
}

/* The first byte says in what pieces the rest arrives. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct parser p;
    size_t at = 1, frames = 0;
    if (size < 2)
        return 0;
    size_t piece = data[0] ? data[0] : SIZE_MAX;
    parser_reset(&p);
    while (at < size) {
        size_t room;
        uint8_t *space = parser_space(&p, &room);
        need(room > 0, "there is always room");
        size_t n = size - at < room ? size - at : room;
        n = n < piece ? n : piece;
        memcpy(space, data + at, n);
        parser_added(&p, n);
        at += n;
        struct frame f;
        struct sync s;
        enum parsed got;
        while ((got = parser_next(&p, &f, &s)) != PARSED_NOTHING) {
            need(p.start <= p.end && p.end <= PARSER_CAP, "positions");
            need(p.framing == (got != PARSED_BAD), "mode");
            if (got != PARSED_FRAME)
                continue;
            need(++frames <= size / HEADER_LEN, "a frame costs a header");
            need(f.payload + f.length <= p.buf + p.end, "payload inside the buffer");
            if (f.type == T_OPEN)
                fuzz_tlv(f.payload + 1, f.length - 1);
            else if (f.type == T_EVENT || f.type == T_CLOSE)
                fuzz_tlv(f.payload, f.length);
        }
    }
    return 0;
}

#ifndef LIBFUZZER

static uint64_t state;

static uint32_t dice(uint32_t sides) /* xorshift64* */
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)((state * 0x2545F4914F6CDD1DULL) >> 33) % sides;
}

static const uint8_t SYNC_RECORD[SYNC_LEN] = {0xF5, 0x9A, 0xC3, 0xE1, 0xB7, 0x8D, 0xD2, 0x96,
                                              0xAF, 0xE8, 0x91, 0xCB, 0xF0, 0xA4, 0xBD, 0x87, 1, 0, 1};

static size_t put_payload(uint8_t *to, size_t room)
{
    struct tlv_out t = {.buf = to, .cap = room};
    for (uint32_t fields = dice(6); fields-- > 0;) {
        uint16_t tag = (uint16_t)(dice(64) + 1);
        uint8_t raw[300];
        for (size_t i = 0; i < sizeof raw; i++)
            raw[i] = (uint8_t)('a' + dice(26));
        if (dice(2))
            tlv_u64(&t, tag, dice(1U << 31));
        else
            tlv_blob(&t, tag, raw, dice(sizeof raw));
    }
    return t.len;
}

/* Mostly sensible input, so that mutations reach deep. */
static size_t compose(uint8_t *to)
{
    size_t len = 0;
    to[len++] = (uint8_t)(dice(4) ? dice(256) : 0);
    for (uint32_t parts = 1 + dice(8); parts-- > 0;) {
        if (dice(4) == 0 || len == 1) {
            memcpy(to + len, SYNC_RECORD, SYNC_LEN);
            len += SYNC_LEN;
            continue;
        }
        uint8_t type = (uint8_t)dice(T_LAST + 1);
        size_t body = dice(40) == 0 ? dice(MAX_PAYLOAD / 4) : dice(80), at = len + HEADER_LEN;
        memset(to + at, (int)dice(256), body);
        if (type == T_OPEN || type == T_EVENT || type == T_CLOSE) {
            to[at] = (uint8_t)dice(SVC_LAST + 2);
            body = type == T_OPEN;
            body += put_payload(to + at + body, 4096);
        }
        body = type == T_CREDIT ? 4 : type == T_EOF || type == T_NOP ? 0 : body;
        bool connection = type == T_NOP || type == T_HELLO || type >= T_PING;
        frame_header(to + len, (uint32_t)body, connection ? 0 : dice(9) + 1, type,
                     (uint8_t)(type >= T_DATA && type <= T_EOF ? dice(4) : 0));
        len = at + body;
    }
    return len;
}

static size_t mutate(uint8_t *bytes, size_t len)
{
    for (uint32_t times = dice(6); times-- > 0 && len > 2;) {
        size_t at = dice((uint32_t)len), n = 1 + dice(16);
        n = n < len - at ? n : len - at;
        switch (dice(5)) {
        case 0: bytes[at] ^= (uint8_t)(1U << dice(8)); break;
        case 1: bytes[at] = (uint8_t)dice(256); break;
        case 2: memset(bytes + at, dice(2) ? 0xFF : 0, n); break;
        case 3: memmove(bytes + at, bytes + at + n, len - at - n); len -= n; break;
        default: memmove(bytes + at + n, bytes + at, len - at); len += n; break;
        }
    }
    return len;
}

int main(int argc, char **argv)
{
    static uint8_t input[MAX_INPUT];
    if (argc != 3)
        return 2;
    state = strtoull(argv[1], NULL, 10) * 2654435761U + 88172645463325252ULL;
    for (unsigned long i = strtoul(argv[2], NULL, 10); i-- > 0;) {
        size_t len = mutate(input, compose(input));
        uint8_t *exact = malloc(len);
        memcpy(exact, input, len);
        LLVMFuzzerTestOneInput(exact, len);
        free(exact);
    }
    return 0;
}
#endif
