/* SHUTDOWN: TERM to all, KILL after a while, unmount, power off. */
#include <signal.h>
#include <stdlib.h>
#include <sys/reboot.h>
#include <unistd.h>

#include "agent.h"
#include "channel.h"
#include "loop.h"
#include "proc.h"
#include "system.h"

#define DEFAULT_GRACE_MS 5000
#define KILL_GRACE_MS 2000 /* for what KILL can't end, a process stuck in the kernel */

static enum { RUNNING, TERMINATING, KILLING } phase;
static uint64_t deadline;
static bool restart;

static void signal_all(int sig)
{
    if (agent.test)
        procs_signal(sig);
    else
        kill(-1, sig); /* never reaches the init process itself */
}

static void finish(void)
{
    channel_flush();
    if (agent.test)
        exit(0);
    sync();
    unmount_root();
    sync();
    reboot(restart ? RB_AUTOBOOT : RB_POWER_OFF);
    for (;;) /* the machine refused; init must not end */
        pause();
}

void svc_shutdown(struct stream *s, const struct msg *m)
{
    restart = msg_u64(m, TAG_FLAGS, 0) & 1;
    stream_done(s, stream_tlv());
    channel_flush();
    phase = TERMINATING;
    deadline = now_ms() + msg_u64(m, TAG_TIMEOUT_MS, DEFAULT_GRACE_MS);
    signal_all(SIGTERM);
    signal_all(SIGCONT); /* a stopped process would sleep through it */
    procs_reap();
}

void shutdown_no_children(void)
{
    if (phase != RUNNING)
        finish();
}

uint64_t shutdown_deadline(void) { return phase == RUNNING ? 0 : deadline; }

void shutdown_expire(uint64_t now)
{
    if (phase == RUNNING || now < deadline)
        return;
    if (phase == KILLING)
        finish();
    phase = KILLING;
    deadline = now + KILL_GRACE_MS;
    signal_all(SIGKILL);
}
