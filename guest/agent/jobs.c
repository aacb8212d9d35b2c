#include "jobs.h"

#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_JOBS MAX_STREAMS

static struct job {
    pid_t pid; /* 0 = free */
    struct stream *stream; /* NULL: nobody waits any more */
} jobs[MAX_JOBS];
static int running;

static void job_gone(struct stream *s, const struct msg *m)
{
    (void)m;
    ((struct job *)s->state)->stream = NULL;
}

static const struct stream_ops job_ops = {.gone = job_gone};

void job_start(struct stream *s, int (*work)(const char *arg), const char *arg)
{
    struct job *j = jobs;
    while (j < jobs + MAX_JOBS && j->pid)
        j++;
    if (j == jobs + MAX_JOBS) {
        stream_fail(s, EAGAIN, "too much work at once", NULL);
        return;
    }
    pid_t pid = fork();
    if (pid == 0)
        _exit(work(arg));
    if (pid < 0) {
        stream_fail(s, errno, "fork", NULL);
        return;
    }
    *j = (struct job){pid, s};
    running++;
    s->ops = &job_ops;
    s->state = j;
}

bool job_ended(pid_t pid, int status)
{
    if (!running)
        return false;
    for (struct job *j = jobs; j < jobs + MAX_JOBS; j++) {
        if (j->pid != pid)
            continue;
        struct stream *s = j->stream;
        int err = WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
        *j = (struct job){0};
        running--;
        if (!s)
            return true;
        s->ops = NULL;
        if (err)
            stream_fail(s, err, "failed", NULL);
        else
            stream_done(s, stream_tlv());
        return true;
    }
    return false;
}
