#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "loop.h"
#include "system.h"

/* MemAvailable in bytes; 0 if unknown. */
static uint64_t mem_available(void)
{
    char text[512];
    int fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = 0;
    const char *at = strstr(text, "MemAvailable:");
    return at ? strtoull(at + strlen("MemAvailable:"), NULL, 10) * 1024 : 0;
}

static void put(struct tlv_out *t, const char *name, uint64_t value)
{
    size_t mark = tlv_begin(t, TAG_ENTRY);
    tlv_str(t, TAG_NAME, name);
    tlv_u64(t, TAG_VALUE, value);
    tlv_end(t, mark);
}

void svc_metrics(struct stream *s, const struct msg *m)
{
    struct sysinfo si;
    struct statvfs fs;
    struct tlv_out *t = stream_tlv();
    (void)m;
    memset(&si, 0, sizeof si);
    memset(&fs, 0, sizeof fs);
    sysinfo(&si);
    statvfs("/", &fs);
    put(t, "mem_total", (uint64_t)si.totalram * si.mem_unit);
    put(t, "mem_available", mem_available());
    put(t, "procs", si.procs);
    put(t, "load1_milli", (uint64_t)si.loads[0] * 1000 / 65536);
    put(t, "uptime_ms", now_ms());
    put(t, "disk_total", (uint64_t)fs.f_blocks * fs.f_frsize);
    put(t, "disk_free", (uint64_t)fs.f_bavail * fs.f_frsize);
    stream_done(s, t);
}
