/* FILE_WRITE: beside the file, then renamed over it, so that a broken write changes nothing. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "files.h"

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#endif

struct writing {
    int fd;
    bool exclusive;
    uint64_t size;
    char path[PATH_MAX]; /* the final place, links resolved */
    char temp[PATH_MAX]; /* "" = written in place */
};

static void over(struct writing *w)
{
    if (w->fd >= 0)
        close(w->fd);
    if (w->temp[0])
        unlink(w->temp);
    free(w);
}

static void say_end(struct stream *s, int err)
{
    struct writing *w = s->state;
    struct tlv_out *t = stream_tlv();
    tlv_u64(t, TAG_SIZE, w->size);
    tlv_u64(t, TAG_ERRNO, (uint64_t)err);
    s->ops = NULL;
    over(w);
    stream_event(s, t);
    stream_close(s, 0);
}

static void write_data(struct stream *s, uint8_t channel, const uint8_t *bytes, size_t len)
{
    struct writing *w = s->state;
    size_t done = 0;
    while (channel == 0 && done < len) {
        ssize_t n = write(w->fd, bytes + done, len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            say_end(s, errno);
            return;
        }
        done += (size_t)n;
        w->size += (uint64_t)n;
    }
    stream_passed(s, channel, len);
}

static int install(struct writing *w)
{
    int err = close(w->fd) < 0 ? errno : 0;
    w->fd = -1;
    if (err || !w->temp[0])
        return err;
    unsigned flags = w->exclusive ? RENAME_NOREPLACE : 0;
    if (syscall(SYS_renameat2, AT_FDCWD, w->temp, AT_FDCWD, w->path, flags) < 0)
        return errno;
    w->temp[0] = 0;
    return 0;
}

static void write_eof(struct stream *s, uint8_t channel)
{
    if (channel == 0)
        say_end(s, install(s->state));
}

static void write_gone(struct stream *s, const struct msg *m)
{
    (void)m;
    over(s->state);
}

static const struct stream_ops write_ops = {.data = write_data, .eof = write_eof, .gone = write_gone};

/* `w->path`, and what is there now: *exists says whether `st` means anything. */
static int look(struct writing *w, const char *path, uint64_t flags, struct stat *st, bool *exists)
{
    if (strlen(path) >= sizeof w->path)
        return ENAMETOOLONG;
    strcpy(w->path, path);
    *exists = lstat(path, st) == 0;
    if (*exists && (flags & WRITE_EXCLUSIVE))
        return EEXIST;
    if (*exists && S_ISLNK(st->st_mode)) {
        /* The file a link names is what is meant; a link to nowhere is replaced. */
        *exists = realpath(path, w->path) && stat(w->path, st) == 0;
        if (!*exists)
            strcpy(w->path, path);
    }
    return *exists && S_ISDIR(st->st_mode) ? EISDIR : 0;
}

static int open_temp(struct writing *w)
{
    static unsigned serial;
    const char *slash = strrchr(w->path, '/');
    int dir_len = slash ? (int)(slash - w->path) + 1 : 0;
    for (int tries = 0; tries < 100; tries++) {
        int n = snprintf(w->temp, sizeof w->temp, "%.*s.spore-%x.tmp", dir_len, w->path, ++serial);
        if (n < 0 || (size_t)n >= sizeof w->temp) {
            w->temp[0] = 0;
            return ENAMETOOLONG;
        }
        w->fd = open(w->temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (w->fd >= 0)
            return 0;
        if (errno != EEXIST)
            break;
    }
    w->temp[0] = 0;
    return errno;
}

static int open_target(struct writing *w, const struct msg *m, const struct identity *owner)
{
    struct stat st;
    bool exists = false;
    const char *path = msg_str(m, TAG_PATH);
    uint64_t flags = msg_u64(m, TAG_FLAGS, 0);
    int err = flags & WRITE_PARENTS ? make_parents(path, owner) : 0;
    if (!err)
        err = look(w, path, flags, &st, &exists);
    if (err)
        return err;
    w->exclusive = (flags & WRITE_EXCLUSIVE) != 0;
    mode_t mode = (mode_t)(msg_u64(m, TAG_MODE, exists ? st.st_mode : 0644) & 07777);
    bool fresh = true;
    if (exists && !S_ISREG(st.st_mode)) { /* a device or FIFO is written to, never replaced */
        w->fd = open(w->path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        return w->fd < 0 ? errno : 0;
    }
    if (flags & WRITE_APPEND) {
        w->fd = open(w->path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        if (w->fd < 0)
            return errno;
        fresh = !exists;
    } else if ((err = open_temp(w)) != 0) {
        return err;
    }
    if (owner && fchown(w->fd, owner->uid, owner->gid) < 0)
        return errno;
    if (!owner && exists && fresh && fchown(w->fd, st.st_uid, st.st_gid) < 0)
        return errno;
    return (fresh || msg_find(m, TAG_MODE)) && fchmod(w->fd, mode) < 0 ? errno : 0;
}

void svc_file_write(struct stream *s, const struct msg *m)
{
    const char *path = msg_str(m, TAG_PATH), *user = msg_str(m, TAG_USER);
    const struct identity *owner = user ? identity_of(user) : NULL;
    struct writing *w;
    int err;
    if (!path || !*path)
        stream_fail(s, EINVAL, "no path", NULL);
    else if (user && !owner)
        stream_fail(s, EINVAL, "no such user or group", user);
    else if (!(w = calloc(1, sizeof *w)))
        stream_fail(s, ENOMEM, "no memory", NULL);
    else {
        w->fd = -1;
        err = open_target(w, m, owner);
        if (err) {
            over(w);
            stream_fail(s, err, "write", path);
            return;
        }
        s->ops = &write_ops;
        s->state = w;
        stream_reply_ok(s);
    }
}
