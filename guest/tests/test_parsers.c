/* The golden vectors, whole and byte by byte, against the frame and TLV parsers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "frame.h"
#include "tlv.h"

struct vec_one_frame {
    uint32_t stream;
    uint8_t type, channel;
    size_t length;
    const uint8_t *payload;
};
struct vec_one_field {
    uint16_t tag;
    size_t length;
    const uint8_t *value;
};
struct vec_frame {
    const char *name;
    const uint8_t *bytes;
    size_t length;
    int error;
    const struct vec_one_frame *frames;
    size_t count;
};
struct vec_tlv {
    const char *name;
    const uint8_t *bytes;
    size_t length;
    int error;
    const struct vec_one_field *fields;
    size_t count;
};
struct vec_sync {
    const char *name;
    const uint8_t *bytes;
    size_t length, end;
    uint16_t lowest, highest;
    int found;
    const uint8_t *nonce, *ack;
};
#include "vectors.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define PREFIX 40

static struct parser parser;
static int failures;

static void expect(bool ok, const char *kind, const char *name, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "%s %s: %s\n", kind, name, what);
    failures++;
}

static void sync_first(void)
{
    static const uint8_t record[SYNC_LEN] = {0xF5, 0x9A, 0xC3, 0xE1, 0xB7, 0x8D, 0xD2, 0x96, 0xAF,
                                             0xE8, 0x91, 0xCB, 0xF0, 0xA4, 0xBD, 0x87, 1, 0, 1};
    struct frame f;
    struct sync s;
    size_t room;
    parser_reset(&parser);
    memcpy(parser_space(&parser, &room), record, SYNC_LEN);
    parser_added(&parser, SYNC_LEN);
    if (parser_next(&parser, &f, &s) != PARSED_SYNC)
        abort();
}

static void test_frames(const struct vec_frame *v, size_t piece)
{
    size_t at = 0, seen = 0;
    bool bad = false;
    sync_first();
    while (at < v->length) {
        size_t room, n = v->length - at;
        uint8_t *space = parser_space(&parser, &room);
        struct frame f;
        struct sync s;
        n = n < room ? n : room;
        n = n < piece ? n : piece;
        memcpy(space, v->bytes + at, n);
        parser_added(&parser, n);
        at += n;
        for (enum parsed p; !bad && (p = parser_next(&parser, &f, &s)) != PARSED_NOTHING;) {
            bad = p == PARSED_BAD;
            if (p != PARSED_FRAME)
                break;
            const struct vec_one_frame *w = &v->frames[seen++];
            expect(seen <= v->count && f.stream == w->stream && f.type == w->type &&
                       f.channel == w->channel && f.length == w->length &&
                       memcmp(f.payload, w->payload, f.length) == 0,
                   "frame", v->name, "wrong frame");
        }
    }
    expect(seen == v->count, "frame", v->name, "wrong number of frames");
    expect(bad == (v->error != 0), "frame", v->name, bad ? "refused" : "not refused");
}

static void test_tlv(const struct vec_tlv *v)
{
    struct field fields[64];
    struct msg m = {fields, 0};
    /* Exact allocations, so that the sanitizer sees one byte too many. */
    uint8_t *copy = malloc(v->length + 1);
    memcpy(copy, v->bytes, v->length);
    bool ok = tlv_parse(copy, v->length, fields, COUNT(fields), &m) && tlv_seal(&m);
    expect(ok == !v->error, "tlv", v->name, ok ? "not refused" : "refused");
    if (ok && !v->error) {
        expect(m.count == v->count, "tlv", v->name, "wrong number of fields");
        for (size_t i = 0; i < m.count && i < v->count; i++)
            expect(fields[i].tag == v->fields[i].tag && fields[i].len == v->fields[i].length &&
                       memcmp(fields[i].val, v->fields[i].value, fields[i].len) == 0,
                   "tlv", v->name, "wrong field");
    }
    free(copy);
}

static void test_sync(const struct vec_sync *v, size_t piece)
{
    struct frame f;
    struct sync s;
    size_t at = 0;
    bool found = false;
    parser_reset(&parser);
    while (at < v->length && !found) {
        size_t room, n = v->length - at;
        uint8_t *space = parser_space(&parser, &room);
        n = n < room ? n : room;
        n = n < piece ? n : piece;
        memcpy(space, v->bytes + at, n);
        parser_added(&parser, n);
        at += n;
        found = parser_next(&parser, &f, &s) == PARSED_SYNC;
    }
    expect(found == (v->found != 0), "sync", v->name, found ? "found" : "not found");
    if (!found || !v->found)
        return;
    uint8_t ack[SYNC_LEN];
    bool ok = s.lowest <= PROTO_VERSION && s.highest >= PROTO_VERSION;
    sync_ack(ack, ok ? PROTO_VERSION : 0, s.nonce);
    expect(s.lowest == v->lowest && s.highest == v->highest, "sync", v->name, "versions");
    expect(memcmp(s.nonce, v->nonce, NONCE_LEN) == 0, "sync", v->name, "nonce");
    expect(memcmp(ack, v->ack, SYNC_LEN) == 0, "sync", v->name, "answer");
    expect(at - (parser.end - parser.start) == v->end, "sync", v->name, "where it ends");
}

/* The flush of section 1: from any state, 65,552 zeros and a SYNC are understood. */
static void test_flush(size_t cut)
{
    static uint8_t bytes[PREFIX + 65552 + SYNC_LEN];
    struct frame f;
    struct sync s;
    size_t at = 0, total = sizeof bytes - PREFIX + cut;
    bool found = false;
    memset(bytes, 0, sizeof bytes);
    frame_header(bytes, MAX_PAYLOAD, 1, T_DATA, 0); /* the longest frame there is, cut anywhere */
    memset(bytes + HEADER_LEN, 0x55, PREFIX - HEADER_LEN);
    memset(bytes + cut, 0, PREFIX - cut);
    memcpy(bytes + cut + 65552, vec_syncs[0].bytes, SYNC_LEN);
    sync_first();
    while (at < total && !found) {
        size_t room;
        uint8_t *space = parser_space(&parser, &room);
        size_t n = total - at < room ? total - at : room;
        memcpy(space, bytes + at, n);
        parser_added(&parser, n);
        at += n;
        for (enum parsed p; (p = parser_next(&parser, &f, &s)) != PARSED_NOTHING;)
            if (p == PARSED_SYNC)
                found = true;
    }
    expect(found, "flush", "any state", "the SYNC was not seen");
}

static void test_writer(void)
{
    uint8_t buf[64];
    struct tlv_out t = {.buf = buf, .cap = sizeof buf};
    size_t mark = tlv_begin(&t, TAG_ENTRY);
    tlv_u64(&t, TAG_SIZE, UINT64_MAX);
    tlv_end(&t, mark);
    expect(t.len == 20 && get32(buf + 2) == 14, "writer", "nested", "length");
    mark = tlv_begin(&t, TAG_ENTRY);
    for (int i = 0; i < 5; i++)
        tlv_str(&t, TAG_NAME, "overflow");
    tlv_end(&t, mark);
    expect(t.full && t.len == 20, "writer", "overflow", "not taken back");
}

int main(void)
{
    static const size_t pieces[] = {1, 7, 4096, SIZE_MAX};
    for (size_t p = 0; p < COUNT(pieces); p++) {
        for (size_t i = 0; i < COUNT(vec_frames); i++)
            test_frames(&vec_frames[i], pieces[p]);
        for (size_t i = 0; i < COUNT(vec_syncs); i++)
            test_sync(&vec_syncs[i], pieces[p]);
    }
    for (size_t i = 0; i < COUNT(vec_tlvs); i++)
        test_tlv(&vec_tlvs[i]);
    for (size_t cut = 0; cut <= PREFIX; cut++)
        test_flush(cut);
    test_writer();
    printf("%zu vectors, %d failures\n",
           COUNT(vec_frames) + COUNT(vec_tlvs) + COUNT(vec_syncs), failures);
    return failures != 0;
}
