/* FILE_READ and LIST: data that the stream pulls as fast as the host takes it. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "channel.h"
#include "files.h"

#define OUT 1 /* the channel */

struct reading {
    int fd;
    uint64_t left; /* bytes still wanted */
    DIR *dir;      /* LIST only */
    struct dirent *entry; /* the one that didn't fit */
};

static void over(struct stream *s)
{
    struct reading *r = s->state;
    if (r->dir)
        closedir(r->dir);
    else
        close(r->fd);
    free(r);
    s->ops = NULL;
}

static bool end(struct stream *s, int err)
{
    over(s);
    if (!err)
        stream_eof(s, OUT);
    stream_close(s, err);
    return false;
}

static void gone(struct stream *s, const struct msg *m)
{
    (void)m;
    over(s);
}

static bool read_pump(struct stream *s)
{
    struct reading *r = s->state;
    size_t room = stream_room(s, OUT);
    if (!room)
        return s->unacked[OUT] < WINDOW;
    if (room > r->left)
        room = (size_t)r->left;
    if (!room)
        return end(s, 0);
    ssize_t n = read(r->fd, channel_data_begin(), room);
    if (n < 0)
        return errno == EINTR || end(s, errno);
    if (n == 0)
        return end(s, 0);
    stream_data_inplace(s, OUT, (size_t)n);
    r->left -= (uint64_t)n;
    return true;
}

static const struct stream_ops read_ops = {.pump = read_pump, .gone = gone};

static void start(struct stream *s, const struct stream_ops *ops, const struct reading *from)
{
    struct reading *r = malloc(sizeof *r);
    if (!r) {
        if (from->dir)
            closedir(from->dir);
        else
            close(from->fd);
        stream_fail(s, ENOMEM, "no memory", NULL);
        return;
    }
    *r = *from;
    s->ops = ops;
    s->state = r;
    stream_dirty(s);
}

void svc_file_read(struct stream *s, const struct msg *m)
{
    struct stat st;
    const char *path = msg_str(m, TAG_PATH);
    uint64_t offset = msg_u64(m, TAG_OFFSET, 0);
    /* Non-blocking: a FIFO without a writer must not stop the agent. */
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY) : (errno = EINVAL, -1);
    int err = fd < 0 || fstat(fd, &st) < 0 ? errno : 0;
    if (!err && S_ISDIR(st.st_mode))
        err = EISDIR;
    if (!err && offset && (offset > INT64_MAX || lseek(fd, (off_t)offset, SEEK_SET) < 0))
        err = offset > INT64_MAX ? EINVAL : errno;
    if (err) {
        if (fd >= 0)
            close(fd);
        stream_fail(s, err, "read", path);
        return;
    }
    struct reading r = {.fd = fd, .left = msg_u64(m, TAG_SIZE, UINT64_MAX)};
    struct tlv_out *t = stream_tlv();
    stat_fields(t, &st);
    stream_reply(s, t);
    start(s, &read_ops, &r);
}

/* One entry; false if it doesn't fit. */
static bool put_entry(struct tlv_out *t, int dirfd, const char *name)
{
    struct stat st;
    char target[PATH_MAX];
    if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return true; /* removed meanwhile */
    size_t mark = tlv_begin(t, TAG_ENTRY);
    tlv_str(t, TAG_NAME, name);
    stat_fields(t, &st);
    if (S_ISLNK(st.st_mode)) {
        ssize_t n = readlinkat(dirfd, name, target, sizeof target);
        if (n >= 0)
            tlv_blob(t, TAG_TARGET, target, (size_t)n);
    }
    tlv_end(t, mark);
    return !t->full;
}

/* Whole entries only. One is at most 5 KB: a window or queue with less room gets more in time. */
static bool list_pump(struct stream *s)
{
    struct reading *r = s->state;
    struct tlv_out t = {.buf = channel_data_begin(), .cap = stream_room(s, OUT)};
    bool fits = true;
    while (fits) {
        if (!r->entry && (errno = 0, r->entry = readdir(r->dir)) == NULL)
            break;
        const char *name = r->entry->d_name;
        if (strcmp(name, ".") != 0 && strcmp(name, "..") != 0)
            fits = put_entry(&t, dirfd(r->dir), name);
        if (fits)
            r->entry = NULL;
    }
    int err = fits ? errno : 0;
    if (t.len)
        stream_data_inplace(s, OUT, t.len);
    if (fits)
        return end(s, err);
    return t.len > 0;
}

static const struct stream_ops list_ops = {.pump = list_pump, .gone = gone};

void svc_list(struct stream *s, const struct msg *m)
{
    const char *path = msg_str(m, TAG_PATH);
    DIR *dir = path ? opendir(path) : (errno = EINVAL, (DIR *)NULL);
    if (!dir) {
        stream_fail(s, errno, "list", path);
        return;
    }
    struct reading r = {.fd = -1, .dir = dir};
    stream_reply_ok(s);
    start(s, &list_ops, &r);
}
