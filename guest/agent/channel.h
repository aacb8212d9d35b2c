/* The channel to the host: a virtio-serial port, a vsock connection, or a socket under test. */
#ifndef SPORE_CHANNEL_H
#define SPORE_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>

#include "frame.h"

/* Take an open stream. `forever`: a hang-up is not its end (virtio-serial), the fd stays. */
void channel_attach(int fd, bool forever);
/* Accept connections; a new one replaces the older. 0 or an errno. */
int channel_listen_vsock(void);

/* Read once what is there and feed the connection; false if there was nothing. */
bool channel_input(void);
/* There is, or may be, input to handle now. */
bool channel_input_waiting(void);
/* The queue is short enough for the answer to one more frame. */
bool channel_input_allowed(void);
/* Write the queue out, as far as the channel takes it. */
void channel_flush(void);
/* Bytes in the queue. */
size_t channel_queued(void);
/* Room for DATA now. Control frames have a reserve of their own beyond it. */
size_t channel_data_room(void);
void channel_drop_output(void);

/* Append one frame. */
void channel_frame(uint32_t stream, uint8_t type, uint8_t channel, const void *payload, size_t len);
void channel_raw(const void *bytes, size_t len);
/* The same without a copy: where a DATA payload of at most channel_data_room() bytes may be put. */
uint8_t *channel_data_begin(void);
void channel_data_end(uint32_t stream, uint8_t channel, size_t len);


/* What the connection above provides: a place for bytes, and what to do when there are new ones. */
uint8_t *connection_space(size_t *room);
void connection_received(size_t count);
void connection_resume(void); /* the same, after input was not allowed for a while */
bool connection_waiting(void);
void connection_lost(void);

#endif
