#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"
#include "loop.h"

/*
 * The output queue. DATA may fill the first part only; input is read only while the second part is
 * free too. So the answer to a frame, the last words of every stream and all credits always fit.
 */
#define DATA_LIMIT (2U * (MAX_PAYLOAD + HEADER_LEN))
#define INPUT_LIMIT DATA_LIMIT
/* No DATA for less room than this: any one directory entry fits. */
#define DATA_LEAST 8192U
#define QUEUE_CAP (DATA_LIMIT + 3U * 65536U)

static uint8_t queue[QUEUE_CAP];
static size_t queue_start, queue_end;

static void on_channel(struct source *src, uint32_t events);
static void on_listener(struct source *src, uint32_t events);
static struct source port = {-1, on_channel};
static struct source listener = {-1, on_listener};
static bool port_forever, readable, writable;

void channel_attach(int fd, bool forever)
{
    source_close(&port);
    port.fd = fd;
    port_forever = forever;
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    readable = writable = true;
    loop_add(&port, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
}

int channel_listen_vsock(void)
{
    struct sockaddr_vm addr = {
        .svm_family = AF_VSOCK, .svm_port = VSOCK_PORT, .svm_cid = VMADDR_CID_ANY};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return errno;
    if (bind(fd, (struct sockaddr *)&addr, sizeof addr) < 0 || listen(fd, 4) < 0) {
        int err = errno;
        close(fd);
        return err;
    }
    listener.fd = fd;
    return loop_add(&listener, EPOLLIN);
}

static void on_listener(struct source *src, uint32_t events)
{
    (void)events;
    for (;;) {
        int fd = accept4(src->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0)
            return;
        connection_lost();
        channel_attach(fd, false);
    }
}

static void on_channel(struct source *src, uint32_t events)
{
    (void)src;
    if (events & ~(uint32_t)EPOLLOUT)
        readable = true;
    if (events & EPOLLOUT)
        writable = true;
}

static void hang_up(void)
{
    readable = false;
    connection_lost();
    if (port_forever)
        return;
    source_close(&port);
    if (agent.test)
        agent.test_over = true;
}

bool channel_input_allowed(void) { return queue_end - queue_start <= INPUT_LIMIT; }

bool channel_input_waiting(void)
{
    return channel_input_allowed() && (readable || connection_waiting());
}

bool channel_input(void)
{
    size_t room;
    if (connection_waiting())
        connection_resume();
    if (!readable || !channel_input_allowed())
        return false;
    uint8_t *at = connection_space(&room);
    ssize_t n = read(port.fd, at, room);
    if (n > 0) {
        connection_received((size_t)n);
        return true;
    }
    if (n < 0 && errno == EINTR)
        return true;
    readable = false;
    /*
     * A virtio port reads 0 while the host is away, and also just after a restore: what the host
     * sent arrives before the news that it is there. Taking that for a hang-up would drop the
     * answer to its SYNC. Nothing is lost by waiting: the next SYNC resets everything anyway.
     */
    if (n == 0 && port_forever)
        return false;
    if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK))
        hang_up();
    return false;
}

void channel_drop_output(void) { queue_start = queue_end = 0; }

size_t channel_queued(void) { return queue_end - queue_start; }

void channel_flush(void)
{
    while (queue_start < queue_end && writable) {
        ssize_t n = write(port.fd, queue + queue_start, queue_end - queue_start);
        if (n > 0) {
            queue_start += (size_t)n;
        } else if (n < 0 && errno == EINTR) {
            continue;
        } else {
            writable = false;
            if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
                hang_up();
        }
    }
    if (queue_start == queue_end)
        queue_start = queue_end = 0;
}

/* Make room at the end; what is queued is moved only when a partial write left a hole in front. */
static bool reserve(size_t len)
{
    if (QUEUE_CAP - queue_end >= len)
        return true;
    memmove(queue, queue + queue_start, queue_end - queue_start);
    queue_end -= queue_start;
    queue_start = 0;
    return QUEUE_CAP - queue_end >= len;
}

void channel_raw(const void *bytes, size_t len)
{
    if (!reserve(len)) { /* the reserves above make this impossible; a broken stream is the end of it */
        connection_lost();
        return;
    }
    memcpy(queue + queue_end, bytes, len);
    queue_end += len;
}

void channel_frame(uint32_t stream, uint8_t type, uint8_t channel, const void *payload, size_t len)
{
    uint8_t head[HEADER_LEN];
    if (!reserve(HEADER_LEN + len)) {
        connection_lost();
        return;
    }
    frame_header(head, (uint32_t)len, stream, type, channel);
    channel_raw(head, HEADER_LEN);
    if (len)
        channel_raw(payload, len);
}

size_t channel_data_room(void)
{
    size_t used = queue_end - queue_start;
    if (used + HEADER_LEN >= DATA_LIMIT || !reserve(HEADER_LEN + MAX_PAYLOAD))
        return 0;
    size_t room = DATA_LIMIT - used - HEADER_LEN;
    if (room < DATA_LEAST)
        return 0;
    return room < MAX_PAYLOAD ? room : MAX_PAYLOAD;
}

uint8_t *channel_data_begin(void) { return queue + queue_end + HEADER_LEN; }

void channel_data_end(uint32_t stream, uint8_t channel, size_t len)
{
    frame_header(queue + queue_end, (uint32_t)len, stream, T_DATA, channel);
    queue_end += HEADER_LEN + len;
}
