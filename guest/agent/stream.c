#include "stream.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "agent.h"
#include "channel.h"
#include "frame.h"

/* Credits are sent in lumps: a quarter of a window never starves the sender. */
#define CREDIT_LUMP (WINDOW / 4)
/* One write to a virtio port takes 32 KiB: larger frames would only wait for their second half. */
#define DATA_CHUNK (32U * 1024U)

static struct parser parser;
static struct stream table[MAX_STREAMS];
static int table_top; /* slots from here on were never used on this connection */
static int pump_next; /* round robin */
static uint32_t highest_id;
static bool any_dirty;
static bool waiting; /* there may be whole frames in the parser */

/* The payload of the OPEN or EVENT in hand: its values become C strings in place. */
static uint8_t request[MAX_PAYLOAD + 1];
static struct field request_fields[TLV_MAX_FIELDS];

static uint8_t answer_buf[MAX_PAYLOAD];
static struct tlv_out answer;

struct tlv_out *stream_tlv(void)
{
    answer = (struct tlv_out){.buf = answer_buf, .cap = sizeof answer_buf};
    return &answer;
}

void stream_reply(struct stream *s, struct tlv_out *t)
{
    /* ERRNO goes last so that callers may fill the answer first. */
    t->cap = sizeof answer_buf;
    tlv_u64(t, TAG_ERRNO, 0);
    s->replied = true;
    channel_frame(s->id, T_REPLY, 0, t->buf, t->len);
}

void stream_reply_ok(struct stream *s) { stream_reply(s, stream_tlv()); }

void stream_done(struct stream *s, struct tlv_out *t)
{
    stream_reply(s, t);
    stream_close(s, 0);
}

void stream_fail(struct stream *s, int err, const char *what, const char *detail)
{
    char text[512];
    struct tlv_out *t = stream_tlv();
    size_t len = 0;
    const char *parts[] = {what, detail ? ": " : "", detail ? detail : ""};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        for (const char *c = parts[i]; *c && len < sizeof text - 1;)
            text[len++] = *c++;
    text[len] = 0;
    tlv_u64(t, TAG_ERRNO, (uint64_t)(err > 0 ? err : EIO));
    tlv_str(t, TAG_MESSAGE, text);
    s->replied = true;
    channel_frame(s->id, T_REPLY, 0, t->buf, t->len);
    s->ops = NULL;
    stream_close(s, 0);
}

void stream_event(struct stream *s, struct tlv_out *t)
{
    channel_frame(s->id, T_EVENT, 0, t->buf, t->len);
}

void stream_eof(struct stream *s, uint8_t channel) { channel_frame(s->id, T_EOF, channel, NULL, 0); }

void stream_close(struct stream *s, int err)
{
    if (s->closed)
        return;
    struct tlv_out *t = stream_tlv();
    if (err)
        tlv_u64(t, TAG_ERRNO, (uint64_t)err);
    channel_frame(s->id, T_CLOSE, 0, t->buf, t->len);
    s->closed = true;
    s->dirty = false;
}

size_t stream_room(const struct stream *s, uint8_t channel)
{
    size_t window = WINDOW - s->unacked[channel], room = channel_data_room();
    if (room > DATA_CHUNK)
        room = DATA_CHUNK;
    return window < room ? window : room;
}

void stream_data_inplace(struct stream *s, uint8_t channel, size_t len)
{
    channel_data_end(s->id, channel, len);
    s->unacked[channel] += (uint32_t)len;
}

void stream_data(struct stream *s, uint8_t channel, const uint8_t *bytes, size_t len)
{
    memcpy(channel_data_begin(), bytes, len);
    stream_data_inplace(s, channel, len);
}

void stream_passed(struct stream *s, uint8_t channel, size_t len)
{
    uint8_t raw[4];
    s->owed[channel] += (uint32_t)len;
    if (s->owed[channel] < CREDIT_LUMP || s->closed)
        return;
    put32(raw, s->owed[channel]);
    channel_frame(s->id, T_CREDIT, channel, raw, sizeof raw);
    s->taken[channel] -= s->owed[channel];
    s->owed[channel] = 0;
}

void stream_dirty(struct stream *s) { s->dirty = any_dirty = true; }

bool streams_pump(void)
{
    while (any_dirty) {
        any_dirty = false;
        int top = table_top;
        for (int i = 0; i < top; i++) {
            int at = (pump_next + i) % top;
            struct stream *s = &table[at];
            if (!s->dirty)
                continue;
            if (!channel_data_room()) {
                pump_next = at;
                any_dirty = true;
                return true;
            }
            s->dirty = false;
            if (s->id && !s->closed && s->ops && s->ops->pump && s->ops->pump(s))
                stream_dirty(s);
        }
    }
    return false;
}

static void forget(struct stream *s, const struct msg *m)
{
    const struct stream_ops *ops = s->ops;
    s->ops = NULL; /* gone() comes once */
    if (ops && ops->gone)
        ops->gone(s, m);
    *s = (struct stream){0};
}

/* Processes go on without; nothing is said, for nobody listens. */
static void drop_streams(void)
{
    for (int i = 0; i < table_top; i++)
        if (table[i].id)
            forget(&table[i], NULL);
    table_top = pump_next = 0;
    highest_id = 0;
    any_dirty = false;
}

void connection_lost(void)
{
    drop_streams();
    channel_drop_output();
    parser_reset(&parser);
}

void connection_quiesce(void)
{
    drop_streams();
    parser_scan(&parser);
}

/* The host sent what no host sends: both sides have to find each other again. */
static void break_off(void)
{
    drop_streams();
    channel_drop_output();
    parser_scan(&parser);
}

static struct stream *find(uint32_t id)
{
    for (int i = 0; i < table_top; i++)
        if (table[i].id == id)
            return &table[i];
    return NULL;
}

static struct stream *new_stream(uint32_t id)
{
    for (int i = 0; i < MAX_STREAMS; i++) {
        if (table[i].id)
            continue;
        if (i >= table_top)
            table_top = i + 1;
        table[i] = (struct stream){.id = id};
        return &table[i];
    }
    return NULL;
}

static bool parse_request(const uint8_t *payload, size_t len, struct msg *m)
{
    memcpy(request, payload, len);
    return tlv_parse(request, len, request_fields, TLV_MAX_FIELDS, m) && tlv_seal(m);
}

static bool handle_open(const struct frame *f)
{
    struct msg m;
    if (!(f->stream & 1) || f->stream <= highest_id)
        return false;
    highest_id = f->stream;
    struct stream *s = new_stream(f->stream);
    if (!s) {
        struct stream none = {.id = f->stream};
        stream_fail(&none, EMFILE, "too many streams", NULL);
    } else if (!parse_request(f->payload + 1, f->length - 1, &m)) {
        stream_fail(s, EBADMSG, "malformed request", NULL);
    } else {
        service_open(s, f->payload[0], &m);
    }
    return true;
}

static bool handle_data(struct stream *s, const struct frame *f)
{
    if (f->length > WINDOW - s->taken[f->channel])
        return false;
    s->taken[f->channel] += f->length;
    if (s->ops && s->ops->data)
        s->ops->data(s, f->channel, f->payload, f->length);
    else
        stream_passed(s, f->channel, f->length);
    return true;
}

static bool handle_credit(struct stream *s, const struct frame *f)
{
    uint32_t bytes = get32(f->payload);
    if (bytes == 0 || bytes > s->unacked[f->channel])
        return false;
    s->unacked[f->channel] -= bytes;
    if (s->ops && s->ops->credit)
        s->ops->credit(s, f->channel, bytes);
    stream_dirty(s);
    return true;
}

static bool handle_close(struct stream *s, const struct frame *f)
{
    struct msg m;
    if (!parse_request(f->payload, f->length, &m))
        return false;
    stream_close(s, 0);
    forget(s, &m);
    return true;
}

/* A frame of an open stream; false = malformed. */
static bool handle_stream(const struct frame *f)
{
    struct msg m;
    struct stream *s = find(f->stream);
    if (!s) /* an OPEN refused for want of a slot is still answered with the peer's CLOSE */
        return (f->stream & 1) && f->stream <= highest_id;
    if (f->type == T_CLOSE)
        return handle_close(s, f);
    if (s->closed && f->type != T_CREDIT)
        return true;
    switch (f->type) {
    case T_DATA:
        return handle_data(s, f);
    case T_CREDIT:
        return handle_credit(s, f);
    case T_EOF:
        if (s->ops && s->ops->eof)
            s->ops->eof(s, f->channel);
        return true;
    case T_EVENT:
        if (!parse_request(f->payload, f->length, &m))
            return false;
        if (s->ops && s->ops->event)
            s->ops->event(s, &m);
        return true;
    default:
        return false;
    }
}

static bool handle_frame(const struct frame *f)
{
    switch (f->type) {
    case T_NOP:
        return true;
    case T_PING:
        channel_frame(0, T_PONG, 0, f->payload, f->length);
        return true;
    case T_OPEN:
        return handle_open(f);
    case T_HELLO:
    case T_PONG:
    case T_REPLY: /* the agent opens no streams in version 1 */
        return false;
    default:
        return handle_stream(f);
    }
}

static void handle_sync(const struct sync *sync)
{
    uint8_t ack[SYNC_LEN];
    bool ok = sync->lowest <= PROTO_VERSION && sync->highest >= PROTO_VERSION;
    drop_streams();
    channel_drop_output();
    sync_ack(ack, ok ? PROTO_VERSION : 0, sync->nonce);
    channel_raw(ack, sizeof ack);
    if (!ok) {
        parser_scan(&parser);
        return;
    }
    struct tlv_out *t = stream_tlv();
    tlv_str(t, TAG_VERSION, AGENT_VERSION);
    tlv_str(t, TAG_BOOT_ID, agent.boot_id);
    tlv_u64(t, TAG_FLAGS, agent.root_mounted ? 1 : 0);
    channel_frame(0, T_HELLO, 0, t->buf, t->len);
}

uint8_t *connection_space(size_t *room) { return parser_space(&parser, room); }

void connection_received(size_t count)
{
    parser_added(&parser, count);
    connection_resume();
}

bool connection_waiting(void) { return waiting; }

/* Handle what is buffered, unless the queue must drain first: a frame's answer must always fit. */
void connection_resume(void)
{
    struct frame f;
    struct sync sync;
    waiting = true;
    while (channel_input_allowed()) {
        switch (parser_next(&parser, &f, &sync)) {
        case PARSED_NOTHING:
            waiting = false;
            return;
        case PARSED_SYNC:
            handle_sync(&sync);
            break;
        case PARSED_BAD:
            break_off();
            break;
        case PARSED_FRAME:
            if (!handle_frame(&f))
                break_off();
            break;
        }
    }
}
