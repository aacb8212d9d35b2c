/* Streams of the present connection, and how services answer on them. */
#ifndef SPORE_STREAM_H
#define SPORE_STREAM_H

#include <stdbool.h>
#include <stddef.h>

#include "proto.h"
#include "tlv.h"

struct stream;

struct stream_ops {
    /* Bytes from the host. Call stream_passed() when they are passed on. */
    void (*data)(struct stream *s, uint8_t channel, const uint8_t *bytes, size_t len);
    void (*eof)(struct stream *s, uint8_t channel);
    void (*event)(struct stream *s, const struct msg *m);
    void (*credit)(struct stream *s, uint8_t channel, uint32_t bytes);
    /* Queue at most one DATA frame; true if there is more to do as soon as there is room. */
    bool (*pump)(struct stream *s);
    /* The stream is gone: the peer's CLOSE (`m`), or NULL: the connection was lost. */
    void (*gone)(struct stream *s, const struct msg *m);
};

struct stream {
    uint32_t id; /* 0 = free slot */
    bool closed; /* our CLOSE is sent, the peer's is awaited */
    bool dirty;  /* pump() has something to look at */
    bool replied;
    const struct stream_ops *ops; /* NULL: nothing but the peer's CLOSE matters */
    void *state;
    uint32_t unacked[MAX_CHANNELS]; /* bytes we sent and were not credited for */
    uint32_t taken[MAX_CHANNELS];   /* bytes we got and did not credit */
    uint32_t owed[MAX_CHANNELS];    /* part of `taken` that is passed on */
};

/* A REPLY or EVENT under construction. */
struct tlv_out *stream_tlv(void);
void stream_reply(struct stream *s, struct tlv_out *t); /* adds ERRNO 0 */
void stream_reply_ok(struct stream *s);
/* REPLY with an errno and a message, then CLOSE. `detail` may be NULL. */
void stream_fail(struct stream *s, int err, const char *what, const char *detail);
void stream_event(struct stream *s, struct tlv_out *t);
void stream_eof(struct stream *s, uint8_t channel);
/* CLOSE, with ERRNO if it isn't 0. `ops->gone` comes when the peer closes too, unless ops is NULL. */
void stream_close(struct stream *s, int err);
void stream_done(struct stream *s, struct tlv_out *t); /* REPLY + CLOSE of a one-shot service */

/* How much DATA may be sent now: the least of the window and the queue's room. */
size_t stream_room(const struct stream *s, uint8_t channel);
void stream_data(struct stream *s, uint8_t channel, const uint8_t *bytes, size_t len);
/* Account for a payload already put at channel_data_begin(). */
void stream_data_inplace(struct stream *s, uint8_t channel, size_t len);
void stream_passed(struct stream *s, uint8_t channel, size_t len);
void stream_dirty(struct stream *s);

/* Move data from every dirty stream to the queue; true if the queue's room was the limit. */
bool streams_pump(void);
/* For QUIESCE: no streams, scan mode. */
void connection_quiesce(void);

/* service.c: start the service of an OPEN. */
void service_open(struct stream *s, uint8_t service, const struct msg *m);

#endif
