/* From a request to a running program. The child shares our memory until its execve. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "files.h"
#include "proc.h"

#define CHILD_STACK (64 * 1024)
/* What programs expect; the agent's own limit is far higher. */
#define CHILD_NOFILE 1024

static _Alignas(64) uint8_t child_stack[CHILD_STACK];

static int failed(struct launch *l, const char *where)
{
    l->err = errno;
    l->where = where;
    return -1;
}

/* A text file without `#!` is a shell script, as execvp has it. */
static void exec_script(struct launch *l, const char *file)
{
    static char *args[1024];
    size_t n = 0;
    args[n++] = (char *)"/bin/sh";
    args[n++] = (char *)file;
    for (char **a = l->argv + 1; *a && n < 1023; a++)
        args[n++] = *a;
    args[n] = NULL;
    execve(args[0], args, l->envp);
}

static void try_exec(struct launch *l, const char *file)
{
    execve(file, l->argv, l->envp);
    if (errno == ENOEXEC)
        exec_script(l, file);
}

/* Search PATH; a file we may not run is worth more than "not found". */
static void exec_search(struct launch *l)
{
    static char file[4096];
    const char *name = l->argv[0], *dir = l->path;
    size_t name_len = strlen(name);
    int verdict = ENOENT;
    if (strchr(name, '/')) {
        try_exec(l, name);
        return;
    }
    for (;;) {
        const char *end = strchr(dir, ':');
        size_t len = end ? (size_t)(end - dir) : strlen(dir);
        if (name_len && len + name_len + 2 <= sizeof file) {
            memcpy(file, dir, len);
            if (len)
                file[len++] = '/';
            memcpy(file + len, name, name_len + 1);
            try_exec(l, file);
            if (errno == EACCES)
                verdict = EACCES;
            else if (errno != ENOENT && errno != ENOTDIR)
                return;
        }
        if (!end)
            break;
        dir = end + 1;
    }
    errno = verdict;
}

/* Straight system calls: libc's would stop "all threads" of the memory we share with the agent. */
static int become(const struct identity *who)
{
    if (syscall(SYS_setgroups, who->group_count, who->groups) < 0 && geteuid() == 0)
        return -1;
    if (syscall(SYS_setresgid, who->gid, who->gid, who->gid) < 0)
        return -1;
    return (int)syscall(SYS_setresuid, who->uid, who->uid, who->uid);
}

static int enter_cwd(const struct launch *l)
{
    if (chdir(l->cwd) == 0)
        return 0;
    if (errno != ENOENT)
        return -1;
    errno = make_dirs(l->cwd, 0755, l->who);
    return errno ? -1 : chdir(l->cwd);
}

static int child(void *arg)
{
    struct launch *l = arg;
    struct rlimit files;
    sigset_t none;
    setsid();
    if (l->pty && ioctl(l->fds[0], TIOCSCTTY, 0) < 0)
        return failed(l, "controlling terminal");
    for (int i = 0; i < 3; i++)
        if (dup2(l->fds[i], i) < 0)
            return failed(l, "dup2");
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur > CHILD_NOFILE) {
        files.rlim_cur = CHILD_NOFILE;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    if (enter_cwd(l) < 0)
        return failed(l, "working directory");
    if (become(l->who) < 0)
        return failed(l, "user");
    /* The agent blocks signals but changes no action, so the mask is all there is to reset. */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    exec_search(l);
    return failed(l, "exec");
}

/*
 * The OOM score needs no care: the kernel never picks the init process, and its children start at 0.
 */
pid_t spawn(struct launch *l)
{
    l->err = 0;
    int pid = clone(child, child_stack + CHILD_STACK, CLONE_VM | CLONE_VFORK | SIGCHLD, l);
    if (pid < 0)
        return failed(l, "clone");
    return l->err ? -1 : pid; /* a failed child is reaped like an orphan */
}
