#include "tlv.h"

#include <string.h>

#include "frame.h"

bool tlv_parse(uint8_t *buf, size_t len, struct field *fields, size_t max, struct msg *out)
{
    size_t at = 0, count = 0;
    while (at < len) {
        if (len - at < TLV_HEAD || count == max)
            return false;
        struct field *f = &fields[count++];
        f->tag = get16(buf + at);
        f->len = get32(buf + at + 2);
        f->val = buf + at + TLV_HEAD;
        at += TLV_HEAD;
        if (len - at < f->len)
            return false;
        at += f->len;
    }
    *out = (struct msg){fields, count};
    return true;
}

enum form { FORM_U64, FORM_STR, FORM_BLOB };

static enum form form_of(uint16_t tag)
{
    switch (tag) {
    case TAG_ERRNO: case TAG_MODE: case TAG_UID: case TAG_GID: case TAG_SIZE: case TAG_OFFSET:
    case TAG_FLAGS: case TAG_MTIME_NS: case TAG_KIND: case TAG_ROWS: case TAG_COLS:
    case TAG_SIGNAL: case TAG_EXIT_CODE: case TAG_TERM_SIGNAL: case TAG_PID: case TAG_TIMEOUT_MS:
    case TAG_STDOUT_SEEN: case TAG_STDERR_SEEN: case TAG_STDIN_SEEN: case TAG_CLOCK_NS:
    case TAG_VALUE: case TAG_PORT:
        return FORM_U64;
    case TAG_MESSAGE: case TAG_VERSION: case TAG_BOOT_ID: case TAG_PATH: case TAG_PATH2:
    case TAG_TARGET: case TAG_ARG: case TAG_ENV: case TAG_CWD: case TAG_USER: case TAG_PROC:
    case TAG_HOSTNAME: case TAG_MACHINE_ID: case TAG_ROOT_DRIVE: case TAG_ROOT_FSTYPE:
    case TAG_SCRATCH_DRIVE: case TAG_SCRATCH_FSTYPE: case TAG_DRIVE: case TAG_FSTYPE:
    case TAG_NAME: case TAG_TAG_ID: case TAG_HOST:
        return FORM_STR;
    default: /* blobs, and tags this version does not know */
        return FORM_BLOB;
    }
}

bool tlv_seal(const struct msg *m)
{
    for (size_t i = 0; i < m->count; i++) {
        struct field *f = &m->fields[i];
        enum form form = form_of(f->tag);
        if (form == FORM_U64 && f->len != 8)
            return false;
        if (form == FORM_STR && memchr(f->val, 0, f->len))
            return false;
        if (f->tag == TAG_MESSAGE && f->len > MAX_MESSAGE)
            return false;
        f->val[f->len] = 0;
    }
    return true;
}

const struct field *msg_find(const struct msg *m, uint16_t tag)
{
    for (size_t i = 0; i < m->count; i++)
        if (m->fields[i].tag == tag)
            return &m->fields[i];
    return NULL;
}

const char *msg_str(const struct msg *m, uint16_t tag)
{
    const struct field *f = msg_find(m, tag);
    return f ? (const char *)f->val : NULL;
}

uint64_t msg_u64(const struct msg *m, uint16_t tag, uint64_t otherwise)
{
    const struct field *f = msg_find(m, tag);
    return f ? get64(f->val) : otherwise;
}

void tlv_blob(struct tlv_out *t, uint16_t tag, const void *data, size_t len)
{
    if (t->full || t->cap - t->len < TLV_HEAD || t->cap - t->len - TLV_HEAD < len) {
        t->full = true;
        return;
    }
    uint8_t *at = t->buf + t->len;
    put16(at, tag);
    put32(at + 2, (uint32_t)len);
    if (len)
        memcpy(at + TLV_HEAD, data, len);
    t->len += TLV_HEAD + len;
}

void tlv_str(struct tlv_out *t, uint16_t tag, const char *text) { tlv_blob(t, tag, text, strlen(text)); }

void tlv_u64(struct tlv_out *t, uint16_t tag, uint64_t value)
{
    uint8_t raw[8];
    put64(raw, value);
    tlv_blob(t, tag, raw, sizeof raw);
}

size_t tlv_begin(struct tlv_out *t, uint16_t tag)
{
    size_t mark = t->len;
    tlv_blob(t, tag, NULL, 0);
    return mark;
}

void tlv_end(struct tlv_out *t, size_t mark)
{
    if (t->full)
        t->len = mark;
    else
        put32(t->buf + mark + 2, (uint32_t)(t->len - mark - TLV_HEAD));
}
