#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "jobs.h"

/* Make one directory; one that is there is fine. */
static int make_one(const char *path, mode_t mode, const struct identity *owner)
{
    struct stat st;
    if (mkdir(path, mode) < 0) {
        int err = errno;
        if (err != EEXIST)
            return err;
        if (stat(path, &st) < 0)
            return errno;
        return S_ISDIR(st.st_mode) ? 0 : ENOTDIR;
    }
    if (chmod(path, mode) < 0) /* the umask took its part */
        return errno;
    if (owner && chown(path, owner->uid, owner->gid) < 0)
        return errno;
    return 0;
}

static int make_upto(const char *path, size_t len, mode_t mode, const struct identity *owner)
{
    char part[PATH_MAX];
    struct stat st;
    if (len >= sizeof part)
        return ENAMETOOLONG;
    memcpy(part, path, len);
    part[len] = 0;
    if (len && stat(part, &st) == 0)
        return S_ISDIR(st.st_mode) ? 0 : ENOTDIR;
    for (size_t i = 1; i <= len; i++) {
        if (i < len && part[i] != '/')
            continue;
        part[i] = 0;
        int err = make_one(part, mode, owner);
        if (err)
            return err;
        if (i < len)
            part[i] = '/';
    }
    return 0;
}

int make_dirs(const char *path, mode_t mode, const struct identity *owner)
{
    return make_upto(path, strlen(path), mode, owner);
}

int make_parents(const char *path, const struct identity *owner)
{
    const char *slash = strrchr(path, '/');
    return slash ? make_upto(path, (size_t)(slash - path), 0755, owner) : 0;
}

int write_file(const char *path, mode_t mode, const void *data, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, mode);
    int err = 0;
    if (fd < 0)
        return errno;
    while (len && !err) {
        ssize_t n = write(fd, data, len);
        if (n < 0) {
            err = errno == EINTR ? 0 : errno;
            continue;
        }
        data = (const char *)data + n;
        len -= (size_t)n;
    }
    if (!err && fchmod(fd, mode) < 0)
        err = errno;
    if (close(fd) < 0 && !err)
        err = errno;
    return err;
}

void read_line(const char *path, char *to, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, to, size - 1);
    if (fd >= 0)
        close(fd);
    to[n > 0 ? n : 0] = 0;
    to[strcspn(to, "\n")] = 0;
}

static uint64_t kind_of(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFDIR: return KIND_DIR;
    case S_IFLNK: return KIND_LINK;
    case S_IFCHR: return KIND_CHAR;
    case S_IFBLK: return KIND_BLOCK;
    case S_IFIFO: return KIND_FIFO;
    case S_IFSOCK: return KIND_SOCKET;
    default: return KIND_FILE;
    }
}

void stat_fields(struct tlv_out *t, const struct stat *st)
{
    int64_t ns = (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
    tlv_u64(t, TAG_KIND, kind_of(st->st_mode));
    tlv_u64(t, TAG_SIZE, (uint64_t)st->st_size);
    tlv_u64(t, TAG_MODE, st->st_mode & 07777);
    tlv_u64(t, TAG_UID, st->st_uid);
    tlv_u64(t, TAG_GID, st->st_gid);
    tlv_u64(t, TAG_MTIME_NS, ns < 0 ? 0 : (uint64_t)ns);
}

static const char *need_path(struct stream *s, const struct msg *m, uint16_t tag)
{
    const char *path = msg_str(m, tag);
    if (path && *path)
        return path;
    stream_fail(s, EINVAL, "no path", NULL);
    return NULL;
}

void svc_stat(struct stream *s, const struct msg *m)
{
    struct stat st;
    char target[PATH_MAX];
    const char *path = need_path(s, m, TAG_PATH);
    bool follow = msg_u64(m, TAG_FLAGS, 0) & 1;
    if (!path)
        return;
    if ((follow ? stat(path, &st) : lstat(path, &st)) < 0) {
        stream_fail(s, errno, "stat", path);
        return;
    }
    struct tlv_out *t = stream_tlv();
    stat_fields(t, &st);
    if (S_ISLNK(st.st_mode)) {
        ssize_t n = readlink(path, target, sizeof target);
        if (n >= 0)
            tlv_blob(t, TAG_TARGET, target, (size_t)n);
    }
    stream_done(s, t);
}

/* Remove one name of the working directory: 0, or ENOTEMPTY for a directory with something in it. */
static int remove_name(const char *name)
{
    if (unlink(name) == 0)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return errno;
    if (rmdir(name) == 0)
        return 0;
    return errno == EEXIST ? ENOTEMPTY : errno;
}

/* Empty the working directory up to the first subdirectory that isn't empty: its name, then. */
static int remove_entries(char *deeper, size_t size)
{
    DIR *dir = opendir(".");
    struct dirent *e;
    int err = 0;
    if (!dir)
        return errno;
    while (!err && (errno = 0, e = readdir(dir)) != NULL) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        err = remove_name(e->d_name);
        if (err == ENOTEMPTY)
            snprintf(deeper, size, "%s", e->d_name);
    }
    if (!err)
        err = errno;
    closedir(dir);
    return err;
}

static int descend(const char *name)
{
    int fd = open(name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int err = fchdir(fd) < 0 ? errno : 0;
    close(fd);
    return err;
}

/*
 * Remove a tree by moving the working directory through it; back up, the parent is read again and
 * its now empty subdirectory goes. So depth costs neither stack nor open files. Follows no link.
 */
static int remove_tree(const char *name)
{
    char deeper[NAME_MAX + 1];
    int err = remove_name(name);
    if (err != ENOTEMPTY)
        return err;
    err = descend(name);
    for (size_t depth = 1; !err && depth > 0;) {
        err = remove_entries(deeper, sizeof deeper);
        if (err == ENOTEMPTY) {
            err = descend(deeper);
            depth++;
        } else if (!err) {
            err = chdir("..") < 0 ? errno : 0;
            depth--;
        }
    }
    return err ? err : remove_name(name);
}

static int remove_job(const char *path)
{
    /* Our own process: its working directory is ours to move. */
    char parent[PATH_MAX];
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/')
        len--;
    if (len >= sizeof parent)
        return ENAMETOOLONG;
    memcpy(parent, path, len);
    parent[len] = 0;
    char *slash = strrchr(parent, '/');
    if (!slash)
        return remove_tree(parent);
    *slash = 0;
    if (chdir(slash == parent ? "/" : parent) < 0)
        return errno;
    return slash[1] ? remove_tree(slash + 1) : EBUSY;
}

void svc_remove(struct stream *s, const struct msg *m)
{
    const char *path = need_path(s, m, TAG_PATH);
    if (!path)
        return;
    if (msg_u64(m, TAG_FLAGS, 0) & 1)
        job_start(s, remove_job, path);
    else if (remove(path) < 0)
        stream_fail(s, errno, "remove", path);
    else
        stream_done(s, stream_tlv());
}

void svc_rename(struct stream *s, const struct msg *m)
{
    const char *from = need_path(s, m, TAG_PATH);
    const char *to = from ? need_path(s, m, TAG_PATH2) : NULL;
    if (!to)
        return;
    if (rename(from, to) < 0)
        stream_fail(s, errno, "rename", from);
    else
        stream_done(s, stream_tlv());
}

void svc_mkdir(struct stream *s, const struct msg *m)
{
    const char *path = need_path(s, m, TAG_PATH), *user = msg_str(m, TAG_USER);
    mode_t mode = (mode_t)(msg_u64(m, TAG_MODE, 0755) & 07777);
    const struct identity *owner = NULL;
    if (!path)
        return;
    if (user && !(owner = identity_of(user))) {
        stream_fail(s, EINVAL, "no such user or group", user);
        return;
    }
    int err;
    if (msg_u64(m, TAG_FLAGS, 0) & WRITE_PARENTS) {
        err = make_parents(path, owner);
        if (!err)
            err = make_one(path, mode, owner);
    } else if (mkdir(path, mode) < 0) {
        err = errno;
    } else {
        err = chmod(path, mode) < 0 || (owner && chown(path, owner->uid, owner->gid) < 0) ? errno : 0;
    }
    if (err)
        stream_fail(s, err, "mkdir", path);
    else
        stream_done(s, stream_tlv());
}
