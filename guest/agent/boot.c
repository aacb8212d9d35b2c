/* From the kernel's first step in user space to an open channel. Runs once, as PID 1. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"
#include "channel.h"
#include "files.h"
#include "system.h"

#define MODULE_LIST "/modules.list"
#define PORT_NAME "agent"
#define PATIENCE_MS 10000 /* until the console says what we are waiting for */
#define AGENT_NOFILE 524288
#ifndef MODULE_INIT_COMPRESSED_FILE
#define MODULE_INIT_COMPRESSED_FILE 4
#endif

#define MAX_DRIVES 32
static struct {
    char serial[32], node[32];
} drives[MAX_DRIVES];
static int drive_count;

void console(const char *text)
{
    int fd = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (write(fd, text, strlen(text)) < 0) {
        /* nobody to tell */
    }
    close(fd);
}

/* Standard fds must exist: a channel or pipe that became fd 0 would be handed to a child. */
static void standard_fds(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd < 3);
    if (fd > 2)
        close(fd);
}

static const struct {
    const char *type, *path, *options;
    unsigned long flags;
} mounts[] = {
    {"proc", "/proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"sysfs", "/sys", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"devtmpfs", "/dev", "mode=0755", MS_NOSUID},
    {"devpts", "/dev/pts", "gid=5,mode=0620,ptmxmode=0666", MS_NOSUID | MS_NOEXEC},
    {"tmpfs", "/dev/shm", "mode=1777", MS_NOSUID | MS_NODEV},
    {"mqueue", "/dev/mqueue", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"tmpfs", "/run", "mode=0755", MS_NOSUID | MS_NODEV},
    {"cgroup2", "/sys/fs/cgroup", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
};

/* Each is missing in some kernel; without it the guest does with less. */
static void mount_all(void)
{
    static const char *const links[][2] = {{"/proc/self/fd", "/dev/fd"},
                                           {"/proc/self/fd/0", "/dev/stdin"},
                                           {"/proc/self/fd/1", "/dev/stdout"},
                                           {"/proc/self/fd/2", "/dev/stderr"}};
    for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
        mkdir(mounts[i].path, 0755);
        mount(mounts[i].type, mounts[i].path, mounts[i].type, mounts[i].flags, mounts[i].options);
    }
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        if (symlink(links[i][0], links[i][1]) < 0)
            continue;
    mkdir("/tmp", 01777);
    chmod("/tmp", 01777);
}

static void load_module(const char *path)
{
    char text[320];
    size_t len = strlen(path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool plain = len > 3 && strcmp(path + len - 3, ".ko") == 0;
    long done = fd < 0 ? -1 : syscall(SYS_finit_module, fd, "", plain ? 0 : MODULE_INIT_COMPRESSED_FILE);
    if (done < 0 && errno != EEXIST) {
        snprintf(text, sizeof text, "spore-agent: module %.200s: %s\n", path, strerror(errno));
        console(text);
    }
    if (fd >= 0)
        close(fd);
    unlink(path); /* an initramfs file is memory */
}

static void load_modules(void)
{
    static char list[16384];
    int fd = open(MODULE_LIST, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, list, sizeof list - 1);
    if (fd >= 0)
        close(fd);
    list[n > 0 ? n : 0] = 0;
    char *rest = list;
    for (char *line; (line = strsep(&rest, "\n")) != NULL;)
        if (*line)
            load_module(line);
    unlink(MODULE_LIST);
}

static void loopback_up(void)
{
    struct ifreq ifr = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (ioctl(fd, SIOCGIFFLAGS, &ifr) == 0) {
        ifr.ifr_flags = (short)(ifr.ifr_flags | IFF_UP);
        ioctl(fd, SIOCSIFFLAGS, &ifr);
    }
    close(fd);
}

/* Asking a drive for its serial is a request to the host: done once, not when time counts. */
static void find_drives(void)
{
    char path[300];
    DIR *dir = opendir("/sys/block");
    struct dirent *e;
    drive_count = 0;
    while (dir && (e = readdir(dir)) != NULL && drive_count < MAX_DRIVES) {
        char *serial = drives[drive_count].serial;
        if (e->d_name[0] == '.' || strlen(e->d_name) > 24)
            continue;
        snprintf(path, sizeof path, "/sys/block/%s/serial", e->d_name);
        read_line(path, serial, sizeof drives[0].serial);
        if (!*serial)
            continue;
        snprintf(drives[drive_count].node, sizeof drives[0].node, "/dev/%.24s", e->d_name);
        drive_count++;
    }
    if (dir)
        closedir(dir);
}

const char *boot_drive(const char *serial)
{
    for (int round = 0; round < 2; round++) {
        for (int i = 0; serial && i < drive_count; i++)
            if (strcmp(drives[i].serial, serial) == 0)
                return drives[i].node;
        if (round == 0)
            find_drives(); /* plugged in since */
    }
    return NULL;
}

/* Open the virtio port whose name is ours; -1 if it isn't there (yet). */
static int open_port(void)
{
    char path[300], name[64];
    DIR *dir = opendir("/sys/class/virtio-ports");
    struct dirent *e;
    int fd = -1;
    while (dir && fd < 0 && (e = readdir(dir)) != NULL) {
        if (e->d_name[0] == '.' || strlen(e->d_name) > 64)
            continue;
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%.64s/name", e->d_name);
        read_line(path, name, sizeof name);
        if (strcmp(name, PORT_NAME) != 0)
            continue;
        snprintf(path, sizeof path, "/dev/%.64s", e->d_name);
        fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    }
    if (dir)
        closedir(dir);
    return fd;
}

/* The port gets its name by a message from the host: the kernel announces that as a uevent. */
static int wait_for_port(void)
{
    struct sockaddr_nl addr = {.nl_family = AF_NETLINK, .nl_groups = 1};
    struct pollfd event = {.events = POLLIN};
    char scrap[4096];
    bool told = false;
    event.fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);
    if (event.fd >= 0)
        bind(event.fd, (struct sockaddr *)&addr, sizeof addr);
    int fd;
    while ((fd = open_port()) < 0) {
        /* Without netlink: look again every 20 ms, at boot only. */
        int timeout = event.fd < 0 ? 20 : told ? -1 : PATIENCE_MS;
        if (poll(&event, 1, timeout) == 0 && event.fd >= 0 && !told) {
            console("spore-agent: there is no virtio port named " PORT_NAME "; waiting for one\n");
            told = true;
        }
        while (event.fd >= 0 && recv(event.fd, scrap, sizeof scrap, 0) > 0)
            continue;
    }
    if (event.fd >= 0)
        close(event.fd);
    return fd;
}

static bool wants_vsock(void)
{
    char line[4096];
    read_line("/proc/cmdline", line, sizeof line);
    return strstr(line, "spore.channel=vsock") != NULL;
}

void boot(void)
{
    struct rlimit files = {AGENT_NOFILE, AGENT_NOFILE};
    umask(022);
    mount_all();
    standard_fds();
    setrlimit(RLIMIT_NOFILE, &files);
    load_modules();
    loopback_up();
    find_drives();
    agent.initramfs_fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    agent.urandom_fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    read_line("/proc/sys/kernel/random/boot_id", agent.boot_id, sizeof agent.boot_id);
    if (wants_vsock()) {
        int err = channel_listen_vsock();
        if (err)
            console("spore-agent: no vsock in this guest\n");
    } else {
        channel_attach(wait_for_port(), true);
    }
    console("spore-agent: ready\n");
}
