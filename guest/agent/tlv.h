/* Tag-length-value payloads. No I/O, no allocation. */
#ifndef SPORE_TLV_H
#define SPORE_TLV_H

#include <stdbool.h>
#include <stddef.h>

#include "proto.h"

#define TLV_HEAD 6U
/* As many fields as one frame can hold. */
#define TLV_MAX_FIELDS (MAX_PAYLOAD / TLV_HEAD + 1)

struct field {
    uint32_t len;
    uint16_t tag;
    uint8_t *val;
};

struct msg {
    struct field *fields;
    size_t count;
};

/* Split `len` bytes into fields; false if they don't end exactly at the end, or are too many. */
bool tlv_parse(uint8_t *buf, size_t len, struct field *fields, size_t max, struct msg *out);
/*
 * Make every value a C string, in place: a NUL overwrites the first byte of the next, already parsed
 * tag; so `buf` needs one byte beyond its end. False if a known tag has a value of a wrong form.
 */
bool tlv_seal(const struct msg *m);

const struct field *msg_find(const struct msg *m, uint16_t tag);
const char *msg_str(const struct msg *m, uint16_t tag); /* NULL if absent */
uint64_t msg_u64(const struct msg *m, uint16_t tag, uint64_t otherwise);

struct tlv_out {
    uint8_t *buf;
    size_t len, cap;
    bool full; /* something didn't fit and was left out */
};

void tlv_blob(struct tlv_out *t, uint16_t tag, const void *data, size_t len);
void tlv_str(struct tlv_out *t, uint16_t tag, const char *text);
void tlv_u64(struct tlv_out *t, uint16_t tag, uint64_t value);
/* A nested TLV: begin, add fields, end. On overflow end takes the whole entry back. */
size_t tlv_begin(struct tlv_out *t, uint16_t tag);
void tlv_end(struct tlv_out *t, size_t mark);

#endif
