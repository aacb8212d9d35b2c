/*
 * spore-launch: confine, then become, a VMM. Every step is a system call that a fork in Python can't
 * do safely; inherited fds and the environment pass through untouched.
 *
 *   spore-launch [--cgroup DIR]... [--setns FD | --netns-new | --userns] [--rlimit NAME=SOFT:HARD]...
 *                [--uid N --gid N] [--no-new-privs] [--chdir DIR] [--umask OCT] -- PROG ARG...
 *
 * Failure: one line on stderr, exit 126.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_REPEATS 32
#define EXIT_FAILED 126

struct limit {
    int resource;
    struct rlimit value;
};

struct options {
    const char *cgroups[MAX_REPEATS];
    struct limit limits[MAX_REPEATS];
    int cgroup_count, limit_count;
    bool new_netns, userns, no_new_privs, has_uid, has_gid, has_umask;
    int netns_fd; /* -1 = none */
    uid_t uid;
    gid_t gid;
    mode_t mask;
    const char *dir;
    char **command;
};

static void say(const char *text)
{
    if (write(2, text, strlen(text)) < 0)
        _exit(EXIT_FAILED);
}

static _Noreturn void fail(const char *step, const char *why)
{
    char line[512];
    size_t len = 0;
    const char *parts[] = {"spore-launch: ", step, ": ", why, "\n"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        for (const char *c = parts[i]; *c && len < sizeof line - 1; c++)
            line[len++] = *c;
    line[len] = 0;
    say(line); /* one write: lines of several VMMs in one log don't mix */
    _exit(EXIT_FAILED);
}

static void check(int result, const char *step)
{
    if (result < 0)
        fail(step, strerror(errno));
}

static unsigned long number(const char *text, int base, unsigned long most, const char *option)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, base);
    if (errno || end == text || *end || *text == '-' || value > most)
        fail(option, "not a valid number");
    return value;
}

static const struct {
    const char *name;
    int resource;
} resources[] = {
    {"as", RLIMIT_AS}, {"core", RLIMIT_CORE}, {"cpu", RLIMIT_CPU}, {"data", RLIMIT_DATA},
    {"fsize", RLIMIT_FSIZE}, {"locks", RLIMIT_LOCKS}, {"memlock", RLIMIT_MEMLOCK},
    {"msgqueue", RLIMIT_MSGQUEUE}, {"nice", RLIMIT_NICE}, {"nofile", RLIMIT_NOFILE},
    {"nproc", RLIMIT_NPROC}, {"rss", RLIMIT_RSS}, {"rtprio", RLIMIT_RTPRIO},
    {"sigpending", RLIMIT_SIGPENDING}, {"stack", RLIMIT_STACK},
};

static rlim_t amount(char *text)
{
    if (strcmp(text, "infinity") == 0)
        return RLIM_INFINITY;
    return number(text, 10, ULONG_MAX, "--rlimit");
}

/* NAME=SOFT:HARD, names as in <sys/resource.h>, small, without RLIMIT_. */
static struct limit parse_limit(char *text)
{
    char *equals = strchr(text, '='), *colon = equals ? strchr(equals, ':') : NULL;
    if (!colon)
        fail("--rlimit", "must be NAME=SOFT:HARD");
    *equals = *colon = 0;
    for (size_t i = 0; i < sizeof resources / sizeof *resources; i++)
        if (strcasecmp(resources[i].name, text) == 0)
            return (struct limit){resources[i].resource, {amount(equals + 1), amount(colon + 1)}};
    fail("--rlimit", "no such limit");
}

/* An option without a value; false if `name` isn't one. */
static bool parse_flag(struct options *o, const char *name)
{
    if (strcmp(name, "--netns-new") == 0)
        o->new_netns = true;
    else if (strcmp(name, "--userns") == 0)
        o->userns = true;
    else if (strcmp(name, "--no-new-privs") == 0)
        o->no_new_privs = true;
    else
        return false;
    return true;
}

static void parse_value(struct options *o, const char *name, char *value)
{
    if (!value)
        fail(name, "unknown option, or its value is missing");
    if (strcmp(name, "--uid") == 0) {
        o->uid = (uid_t)number(value, 10, UINT32_MAX - 1, name);
        o->has_uid = true;
    } else if (strcmp(name, "--gid") == 0) {
        o->gid = (gid_t)number(value, 10, UINT32_MAX - 1, name);
        o->has_gid = true;
    } else if (strcmp(name, "--setns") == 0) {
        o->netns_fd = (int)number(value, 10, INT_MAX, name);
    } else if (strcmp(name, "--umask") == 0) {
        o->mask = (mode_t)number(value, 8, 0777, name);
        o->has_umask = true;
    } else if (strcmp(name, "--chdir") == 0) {
        o->dir = value;
    } else if (strcmp(name, "--cgroup") == 0 && o->cgroup_count < MAX_REPEATS) {
        o->cgroups[o->cgroup_count++] = value;
    } else if (strcmp(name, "--rlimit") == 0 && o->limit_count < MAX_REPEATS) {
        o->limits[o->limit_count++] = parse_limit(value);
    } else {
        fail(name, "unknown option, or too many of it");
    }
}

static void parse(struct options *o, char **argv)
{
    char **at = argv + 1;
    for (; *at && strcmp(*at, "--") != 0; at++) {
        if (parse_flag(o, *at))
            continue;
        parse_value(o, at[0], at[1]);
        at++;
    }
    o->command = *at ? at + 1 : at;
    if (!*o->command)
        fail("usage", "spore-launch [OPTION...] -- PROG [ARG...]");
    if (o->has_uid != o->has_gid)
        fail("usage", "--uid and --gid go together");
    if (o->new_netns + o->userns + (o->netns_fd >= 0) > 1)
        fail("usage", "only one of --netns-new, --userns and --setns");
}

static void write_text(const char *path, const char *text, const char *step)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    check(fd, step);
    check(write(fd, text, strlen(text)) < 0 ? -1 : 0, step);
    check(close(fd), step);
}

static void join_cgroup(const char *dir)
{
    char path[PATH_MAX];
    size_t len = strlen(dir);
    static const char file[] = "/cgroup.procs";
    if (len + sizeof file > sizeof path)
        fail("cgroup", strerror(ENAMETOOLONG));
    memcpy(path, dir, len);
    memcpy(path + len, file, sizeof file);
    write_text(path, "0", "cgroup"); /* 0 = the writer itself */
}

/* "ID ID 1\n" without stdio. */
static void write_map(const char *path, unsigned id, const char *step)
{
    char digits[16], text[48];
    size_t n = 0, len = 0;
    do
        digits[n++] = (char)('0' + id % 10);
    while ((id /= 10) != 0);
    for (int twice = 0; twice < 2; twice++) {
        for (size_t i = n; i-- > 0;)
            text[len++] = digits[i];
        text[len++] = ' ';
    }
    memcpy(text + len, "1\n", 3);
    write_text(path, text, step);
}

/* The current user, mapped to itself, owns a new user namespace and the empty network in it. */
static void enter_userns(void)
{
    uid_t uid = geteuid();
    gid_t gid = getegid();
    check(unshare(CLONE_NEWUSER | CLONE_NEWNET), "userns");
    write_text("/proc/self/setgroups", "deny", "setgroups deny");
    write_map("/proc/self/uid_map", uid, "uid_map");
    write_map("/proc/self/gid_map", gid, "gid_map");
}

static void drop_ids(const struct options *o)
{
    check(setgroups(0, NULL), "setgroups");
    check(setresgid(o->gid, o->gid, o->gid), "setresgid");
    check(setresuid(o->uid, o->uid, o->uid), "setresuid");
    if (o->uid != 0 && (setuid(0) == 0 || seteuid(0) == 0))
        fail("drop of privileges", "root could be regained");
    if (o->gid != 0 && (setgid(0) == 0 || setegid(0) == 0))
        fail("drop of privileges", "group root could be regained");
}

static void confine(const struct options *o)
{
    for (int i = 0; i < o->cgroup_count; i++)
        join_cgroup(o->cgroups[i]);
    if (o->netns_fd >= 0)
        check(setns(o->netns_fd, CLONE_NEWNET), "setns");
    if (o->new_netns)
        check(unshare(CLONE_NEWNET), "netns");
    if (o->userns)
        enter_userns();
    for (int i = 0; i < o->limit_count; i++)
        check(setrlimit(o->limits[i].resource, &o->limits[i].value), "rlimit");
    if (o->dir)
        check(chdir(o->dir), "chdir");
    if (o->has_umask)
        umask(o->mask);
    if (o->has_uid)
        drop_ids(o);
    if (o->no_new_privs)
        check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
}

int main(int argc, char **argv)
{
    struct options o = {.netns_fd = -1};
    if (argc < 1)
        return EXIT_FAILED;
    parse(&o, argv);
    confine(&o);
    if (o.netns_fd >= 0)
        close(o.netns_fd); /* the VMM must not hold a namespace open by accident */
    execvp(o.command[0], o.command);
    fail(o.command[0], strerror(errno));
}
