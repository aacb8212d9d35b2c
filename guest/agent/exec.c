/* The EXEC service: environment, pipes or a pty, start, first answer. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "agent.h"
#include "proc.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define MAX_VECTOR (TLV_MAX_FIELDS + 16)

static char *argv_buf[MAX_VECTOR];
static char *envp_buf[2 * MAX_VECTOR];
static size_t env_count;
static char made[4][320]; /* HOME, USER, LOGNAME, SHELL */

static bool env_has(const char *entry)
{
    const char *end = strchr(entry, '=');
    size_t len = end ? (size_t)(end - entry) + 1 : strlen(entry);
    for (size_t i = 0; i < env_count; i++)
        if (strncmp(envp_buf[i], entry, len) == 0)
            return true;
    return false;
}

static void env_default(const char *entry)
{
    if (!env_has(entry) && env_count < 2 * MAX_VECTOR - 1)
        envp_buf[env_count++] = (char *)entry;
}

static void env_made(int slot, const char *key, const char *value)
{
    size_t k = strlen(key), v = strnlen(value, sizeof made[0] - k - 1);
    memcpy(made[slot], key, k);
    memcpy(made[slot] + k, value, v);
    made[slot][k + v] = 0;
    env_default(made[slot]);
}

/* First come, first kept: the request's own, then the sandbox's defaults, then what the user gives. */
static void build_env(const struct msg *m, uint64_t flags, const struct identity *who)
{
    env_count = 0;
    for (size_t i = m->count; i-- > 0;) /* backwards: of repeats the last one stands */
        if (m->fields[i].tag == TAG_ENV && strchr((char *)m->fields[i].val, '='))
            env_default((char *)m->fields[i].val);
    if (!(flags & EXEC_CLEAR_ENV))
        for (const char *const *e = config_env(); *e; e++)
            env_default(*e);
    env_default("PATH=" DEFAULT_PATH);
    env_made(0, "HOME=", who->home);
    env_made(1, "USER=", who->name);
    env_made(2, "LOGNAME=", who->name);
    env_made(3, "SHELL=", who->shell);
    if (flags & EXEC_PTY)
        env_default("TERM=xterm");
    envp_buf[env_count] = NULL;
}

static const char *env_path(void)
{
    for (size_t i = 0; i < env_count; i++)
        if (strncmp(envp_buf[i], "PATH=", 5) == 0)
            return envp_buf[i] + 5;
    return DEFAULT_PATH;
}

static size_t build_argv(const struct msg *m)
{
    size_t n = 0;
    for (size_t i = 0; i < m->count; i++)
        if (m->fields[i].tag == TAG_ARG)
            argv_buf[n++] = (char *)m->fields[i].val;
    argv_buf[n] = NULL;
    return n;
}

static bool our_end(struct source *src, int fd)
{
    src->fd = fd;
    return fcntl(fd, F_SETFL, O_NONBLOCK) == 0;
}

static bool open_pipes(struct proc *p, uint64_t flags, int fds[3])
{
    int pair[2];
    if (flags & EXEC_STDIN) {
        if (pipe2(pair, O_CLOEXEC) < 0)
            return false;
        fds[0] = pair[0];
        p->in.open = true;
        if (!our_end(&p->in.src, pair[1]))
            return false;
    } else if ((fds[0] = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0) {
        return false;
    }
    for (int i = 0; i < 2; i++) {
        if (pipe2(pair, O_CLOEXEC) < 0)
            return false;
        fds[1 + i] = pair[1];
        if (!our_end(&p->out[i].src, pair[0]) || loop_add(&p->out[i].src, EPOLLIN) != 0)
            return false;
    }
    return true;
}

static bool open_pty(struct proc *p, const struct msg *m, const struct identity *who, int fds[3])
{
    int unlocked = 0;
    struct winsize size = {.ws_row = (uint16_t)msg_u64(m, TAG_ROWS, 24),
                           .ws_col = (uint16_t)msg_u64(m, TAG_COLS, 80)};
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (master < 0)
        return false;
    p->out[0].src.fd = master;
    p->in.open = true;
    if (ioctl(master, TIOCSPTLCK, &unlocked) < 0)
        return false;
    fds[0] = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fds[0] < 0)
        return false;
    fds[1] = fds[2] = fds[0];
    ioctl(master, TIOCSWINSZ, &size);
    if (fchown(fds[0], who->uid, (gid_t)-1) < 0 && geteuid() == 0)
        return false;
    return loop_add(&p->out[0].src, EPOLLIN | EPOLLOUT) == 0;
}

static void close_ends(const int fds[3])
{
    for (int i = 0; i < 3; i++)
        if (fds[i] >= 0 && (i == 0 || fds[i] != fds[i - 1]))
            close(fds[i]);
}

static struct proc *checked(struct stream *s, const struct msg *m, size_t argc,
                            const struct identity *who)
{
    const char *name = msg_str(m, TAG_PROC);
    struct proc *p;
    if (!name || !*name || strlen(name) > MAX_PROC_NAME)
        stream_fail(s, EINVAL, "a process needs a name of 1 to 64 characters", NULL);
    else if (proc_find(name))
        stream_fail(s, EEXIST, "there is already a process", name);
    else if (!argc)
        stream_fail(s, EINVAL, "no command", NULL);
    else if (!who)
        stream_fail(s, EINVAL, "no such user or group", msg_str(m, TAG_USER));
    else if (!(p = proc_new(name)))
        stream_fail(s, ENOMEM, "no memory", NULL);
    else
        return p;
    return NULL;
}

void svc_exec(struct stream *s, const struct msg *m)
{
    const struct identity *who = identity_of(msg_str(m, TAG_USER));
    uint64_t flags = msg_u64(m, TAG_FLAGS, 0), timeout = msg_u64(m, TAG_TIMEOUT_MS, 0);
    const char *cwd = msg_str(m, TAG_CWD);
    struct proc *p = checked(s, m, build_argv(m), who);
    if (!p)
        return;
    int fds[3] = {-1, -1, -1};
    build_env(m, flags, who);
    struct launch l = {.argv = argv_buf, .envp = envp_buf, .path = env_path(), .who = who,
                       .cwd = cwd && *cwd ? cwd : "/", .pty = (flags & EXEC_PTY) != 0};
    p->pty = l.pty;
    if (l.pty ? open_pty(p, m, who, fds) : open_pipes(p, flags, fds)) {
        memcpy(l.fds, fds, sizeof fds);
        p->pid = spawn(&l);
    } else {
        l.err = errno;
        l.where = "pipe or terminal";
        p->pid = -1;
    }
    close_ends(fds);
    if (p->pid < 0) {
        proc_discard(p);
        stream_fail(s, l.err, l.where, strcmp(l.where, "exec") ? l.cwd : argv_buf[0]);
        return;
    }
    if (timeout)
        p->deadline = now_ms() + timeout;
    proc_list(p);
    struct tlv_out *t = stream_tlv();
    tlv_u64(t, TAG_PID, (uint64_t)p->pid);
    stream_reply(s, t);
    proc_attach(p, s);
    agent.just_spawned = true;
}
