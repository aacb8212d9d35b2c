/* The guest agent: PID 1 of a microVM, one thread, one loop. See docs/protocol.md. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "agent.h"
#include "channel.h"
#include "files.h"
#include "loop.h"
#include "proc.h"
#include "system.h"

/* While input pours in, other sources get their turn after so many reads. */
#define READS_IN_A_ROW 8

struct agent agent = {.urandom_fd = -1, .initramfs_fd = -1};

static void on_child(struct source *src, uint32_t events)
{
    struct signalfd_siginfo info[8];
    (void)events;
    while (read(src->fd, info, sizeof info) == (ssize_t)sizeof info)
        continue;
    procs_reap();
}

static struct source child_signals = {-1, on_child};

/*
 * Signals are blocked, never caught or ignored: so a child has nothing to reset but its mask, and a
 * write to a closed pipe is an errno.
 */
static void signals_init(void)
{
    sigset_t all, child;
    for (int sig = 1; sig < 32; sig++)
        signal(sig, SIG_DFL);
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    child_signals.fd = signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
    loop_add(&child_signals, EPOLLIN);
}

static int timeout_until(uint64_t deadline)
{
    uint64_t now = now_ms();
    if (deadline <= now)
        return 0;
    return deadline - now > 60000 ? 60000 : (int)(deadline - now);
}

/* How long to wait; -1 = nothing is due. Expires what is. */
static int next_timeout(void)
{
    uint64_t procs = procs_deadline(), halt = shutdown_deadline();
    uint64_t nearest = procs && (!halt || procs < halt) ? procs : halt;
    if (!nearest)
        return -1;
    int timeout = timeout_until(nearest);
    if (timeout == 0) {
        procs_expire(now_ms());
        shutdown_expire(now_ms());
    }
    return timeout;
}

/*
 * A process that was just started, or just closed its outputs, is often over within microseconds.
 * Let it run first: then all there is to say about it leaves in one write.
 */
static void settle(void)
{
    if (!agent.just_spawned && !procs_about_to_end())
        return;
    agent.just_spawned = false;
    sched_yield();
    loop_turn(0);
    procs_reap();
    streams_pump();
}

void agent_run(void)
{
    for (unsigned reads = 0;;) {
        bool got = channel_input();
        bool more = streams_pump();
        settle();
        channel_flush();
        if (agent.test_over)
            return;
        if (got && ++reads < READS_IN_A_ROW)
            continue;
        reads = 0;
        bool busy = got || channel_input_waiting() || (more && channel_data_room());
        loop_turn(busy ? 0 : next_timeout());
    }
}

#ifdef SPORE_TEST
/* An ordinary process that serves one connected socket: `agent --test-socket FD`. */
static void test_boot(int argc, char **argv)
{
    if (argc != 3 || strcmp(argv[1], "--test-socket") != 0)
        exit(2);
    agent.test = true;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    read_line("/proc/sys/kernel/random/boot_id", agent.boot_id, sizeof agent.boot_id);
    channel_attach(atoi(argv[2]), false);
}
#endif

int main(int argc, char **argv)
{
#ifndef SPORE_TEST
    (void)argc;
    (void)argv;
    if (getpid() != 1) {
        static const char text[] = "spore-agent: this is the init process of a microVM\n";
        return write(2, text, sizeof text - 1) < 0 ? 3 : 2;
    }
#endif
    loop_init();
    signals_init();
#ifdef SPORE_TEST
    test_boot(argc, argv);
#else
    boot();
#endif
    agent_run();
    return 0;
}
