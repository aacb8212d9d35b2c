/* Which service answers which OPEN. */
#include <errno.h>
#include <unistd.h>

#include "files.h"
#include "jobs.h"
#include "proc.h"
#include "system.h"
#include "tcp.h"

static int sync_job(const char *arg)
{
    (void)arg;
    sync();
    return 0;
}

static void svc_sync_fs(struct stream *s, const struct msg *m)
{
    (void)m;
    job_start(s, sync_job, NULL);
}

static void svc_quiesce(struct stream *s, const struct msg *m)
{
    struct stream last = {.id = s->id};
    (void)m;
    connection_quiesce(); /* s is gone with the others */
    stream_done(&last, stream_tlv());
}

static void (*const services[SVC_LAST + 1])(struct stream *s, const struct msg *m) = {
    [SVC_CONFIGURE] = svc_configure, [SVC_EXEC] = svc_exec, [SVC_ATTACH] = svc_attach,
    [SVC_PROCS] = svc_procs, [SVC_KILL] = svc_kill, [SVC_FILE_READ] = svc_file_read,
    [SVC_FILE_WRITE] = svc_file_write, [SVC_STAT] = svc_stat, [SVC_LIST] = svc_list,
    [SVC_REMOVE] = svc_remove, [SVC_RENAME] = svc_rename, [SVC_MKDIR] = svc_mkdir,
    [SVC_METRICS] = svc_metrics, [SVC_TCP_CONNECT] = svc_tcp_connect,
    [SVC_SYNC_FS] = svc_sync_fs, [SVC_QUIESCE] = svc_quiesce, [SVC_SHUTDOWN] = svc_shutdown,
};

void service_open(struct stream *s, uint8_t service, const struct msg *m)
{
    if (service > SVC_LAST || !services[service])
        stream_fail(s, ENOSYS, "no such service", NULL);
    else
        services[service](s, m);
}
