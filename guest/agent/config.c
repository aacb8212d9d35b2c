/* CONFIGURE: what makes a restored template a particular sandbox. */
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"
#include "files.h"
#include "frame.h"
#include "system.h"

#define MAX_ENTROPY 512
#define MAX_NESTED 16

static const char *no_env[] = {NULL};
static const char **default_env = no_env;

const char *const *config_env(void) { return default_env; }

/* One block: the pointers, then the strings. */
static int set_env(const struct msg *m)
{
    size_t count = 0, bytes = 0;
    for (size_t i = 0; i < m->count; i++) {
        if (m->fields[i].tag != TAG_ENV)
            continue;
        count++;
        bytes += m->fields[i].len + 1;
    }
    if (!count)
        return 0;
    const char **env = malloc((count + 1) * sizeof *env + bytes);
    if (!env)
        return ENOMEM;
    char *text = (char *)(env + count + 1);
    count = 0;
    for (size_t i = 0; i < m->count; i++) {
        if (m->fields[i].tag != TAG_ENV)
            continue;
        memcpy(text, m->fields[i].val, m->fields[i].len + 1);
        env[count++] = text;
        text += m->fields[i].len + 1;
    }
    env[count] = NULL;
    if (default_env != no_env)
        free(default_env);
    default_env = env;
    return 0;
}

static int set_clock(uint64_t ns)
{
    struct timespec ts = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
    return clock_settime(CLOCK_REALTIME, &ts) < 0 ? errno : 0;
}

/* Credited, and the generator reseeded at once: clones of one memory must part ways now. */
static int add_entropy(const struct field *f)
{
    uint32_t pool[2 + MAX_ENTROPY / 4]; /* struct rand_pool_info: bits credited, bytes, the bytes */
    if (f->len < 32 || f->len > MAX_ENTROPY)
        return EINVAL;
    pool[0] = f->len * 8;
    pool[1] = f->len;
    memcpy(pool + 2, f->val, f->len);
    int err = ioctl(agent.urandom_fd, RNDADDENTROPY, pool) < 0 ? errno : 0;
    explicit_bzero(pool, sizeof pool);
    if (!err && ioctl(agent.urandom_fd, RNDRESEEDCRNG) < 0)
        err = errno;
    return err;
}

static int set_hostname(const char *name)
{
    char text[512];
    size_t len = strlen(name);
    if (len == 0 || len > 63)
        return EINVAL;
    if (sethostname(name, len) < 0)
        return errno;
    memcpy(text, name, len);
    text[len] = '\n';
    int err = identity_write(ID_HOSTNAME, text, len + 1);
    static const char fixed[] = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
                                "127.0.1.1\t";
    memmove(text + sizeof fixed - 1, text, len + 1);
    memcpy(text, fixed, sizeof fixed - 1);
    if (!err)
        err = identity_write(ID_HOSTS, text, sizeof fixed + len);
    return err;
}

static int set_machine_id(const char *id)
{
    char text[33];
    if (strlen(id) != 32 || strspn(id, "0123456789abcdef") != 32)
        return EINVAL;
    memcpy(text, id, 32);
    text[32] = '\n';
    return identity_write(ID_MACHINE, text, sizeof text);
}

static int put_file(const struct msg *file, const char **what)
{
    const char *path = msg_str(file, TAG_PATH);
    const struct field *data = msg_find(file, TAG_DATA);
    if (!path || !*path)
        return EINVAL;
    *what = path;
    int err = make_parents(path, NULL);
    if (err)
        return err;
    return write_file(path, (mode_t)(msg_u64(file, TAG_MODE, 0644) & 07777),
                      data ? (const void *)data->val : "", data ? data->len : 0);
}

/* Every FILE or every VOLUME, in their order. */
static int each_nested(const struct msg *m, uint16_t tag,
                       int (*apply)(const struct msg *one, const char **what), const char **what)
{
    struct field fields[MAX_NESTED];
    struct msg one;
    for (size_t i = 0; i < m->count; i++) {
        struct field *f = &m->fields[i];
        if (f->tag != tag)
            continue;
        if (!tlv_parse(f->val, f->len, fields, MAX_NESTED, &one) || !tlv_seal(&one))
            return EBADMSG;
        int err = apply(&one, what);
        if (err)
            return err;
    }
    return 0;
}

/* The parts that concern the whole machine. Under test the machine isn't ours. */
static int set_machine(const struct msg *m, const char **what)
{
    const struct field *f;
    int err = 0;
    *what = "clock";
    if ((f = msg_find(m, TAG_CLOCK_NS)) && (err = set_clock(get64(f->val))))
        return err;
    *what = "entropy";
    if ((f = msg_find(m, TAG_ENTROPY)) && (err = add_entropy(f)))
        return err;
    *what = "root";
    if (msg_find(m, TAG_ROOT_DRIVE) && !agent.root_mounted && (err = mount_root(m, what)))
        return err;
    *what = "hostname";
    if ((f = msg_find(m, TAG_HOSTNAME)) && (err = set_hostname((char *)f->val)))
        return err;
    *what = "machine-id";
    if ((f = msg_find(m, TAG_MACHINE_ID)) && (err = set_machine_id((char *)f->val)))
        return err;
    return 0;
}

void svc_configure(struct stream *s, const struct msg *m)
{
    const char *what = "";
    int err = agent.test ? 0 : set_machine(m, &what);
    if (!err) {
        what = "file";
        err = each_nested(m, TAG_FILE, put_file, &what);
    }
    if (!err && !agent.test) {
        what = "volume";
        err = each_nested(m, TAG_VOLUME, mount_volume, &what);
    }
    if (!err) {
        what = "environment";
        err = set_env(m);
    }
    if (err)
        stream_fail(s, err, "configure", what);
    else
        stream_done(s, stream_tlv());
}
