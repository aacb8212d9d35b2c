#include "users.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TABLE_MAX (256 * 1024)

/* The last answer stands as long as neither file has changed: the usual exec asks again and again. */
struct stamp {
    ino_t ino;
    off_t size;
    struct timespec mtime, ctime;
};
static struct identity cached;
static char cached_spec[160];
static struct stamp cached_passwd, cached_group;
static bool cache_valid;

static char table[TABLE_MAX + 1];

static struct stamp stamp_of(const char *path)
{
    struct stat st;
    struct stamp s;
    memset(&s, 0, sizeof s);
    if (stat(path, &st) == 0)
        s = (struct stamp){st.st_ino, st.st_size, st.st_mtim, st.st_ctim};
    return s;
}

static bool same(const struct stamp *a, const struct stamp *b)
{
    return a->ino == b->ino && a->size == b->size && a->mtime.tv_sec == b->mtime.tv_sec &&
           a->mtime.tv_nsec == b->mtime.tv_nsec && a->ctime.tv_sec == b->ctime.tv_sec &&
           a->ctime.tv_nsec == b->ctime.tv_nsec;
}

static char *load(const char *path)
{
    size_t len = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    while (fd >= 0 && len < TABLE_MAX) {
        ssize_t n = read(fd, table + len, TABLE_MAX - len);
        if (n <= 0)
            break;
        len += (size_t)n;
    }
    if (fd >= 0)
        close(fd);
    table[len] = 0;
    return table;
}

/* Cut the next line of `*text` into at most `max` fields at colons; 0 at the end. */
static int next_entry(char **text, char **fields, int max)
{
    char *line = *text;
    int count = 0;
    if (!*line)
        return 0;
    char *end = strchr(line, '\n');
    *text = end ? end + 1 : line + strlen(line);
    if (end)
        *end = 0;
    fields[count++] = line;
    for (char *c = line; *c && count < max; c++) {
        if (*c != ':')
            continue;
        *c = 0;
        fields[count++] = c + 1;
    }
    return count;
}

static bool number(const char *text, uint32_t *out)
{
    uint64_t value = 0;
    if (!*text)
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || value > UINT32_MAX / 10)
            return false;
        value = value * 10 + (uint64_t)(*text - '0');
    }
    *out = (uint32_t)value;
    return value < UINT32_MAX; /* -1 means "leave it" to the kernel */
}

static void copy(char *to, size_t size, const char *from)
{
    size_t len = strnlen(from, size - 1);
    memcpy(to, from, len);
    to[len] = 0;
}

/* A user by name, else by number; a bare number need not be in the table. */
static bool find_user(const char *user, struct identity *who)
{
    char *text = load("/etc/passwd"), *f[7];
    uint32_t uid, gid, wanted = 0;
    bool numeric = number(user, &wanted) || strcmp(user, "root") == 0, found = false;
    int n;
    while ((n = next_entry(&text, f, 7)) > 0) {
        if (n < 7 || !number(f[2], &uid) || !number(f[3], &gid))
            continue;
        bool named = strcmp(f[0], user) == 0;
        if (!named && (found || !numeric || uid != wanted))
            continue;
        found = true;
        who->uid = uid;
        who->gid = gid;
        copy(who->name, sizeof who->name, f[0]);
        copy(who->home, sizeof who->home, *f[5] ? f[5] : "/");
        copy(who->shell, sizeof who->shell, *f[6] ? f[6] : "/bin/sh");
        if (named)
            break;
    }
    if (found || !numeric)
        return found;
    who->uid = wanted;
    who->gid = 0;
    copy(who->name, sizeof who->name, wanted ? user : "root");
    copy(who->home, sizeof who->home, "/");
    copy(who->shell, sizeof who->shell, "/bin/sh");
    return true;
}

static bool member(char *list, const char *name)
{
    char *rest = list;
    for (char *one; (one = strsep(&rest, ",")) != NULL;)
        if (strcmp(one, name) == 0)
            return true;
    return false;
}

static bool find_groups(const char *group, struct identity *who)
{
    char *text = load("/etc/group"), *f[4];
    uint32_t gid, wanted = 0;
    bool numeric = group && number(group, &wanted), found = false;
    int n;
    who->group_count = 1; /* the first place is for the primary group */
    while ((n = next_entry(&text, f, 4)) > 0) {
        if (n < 3 || !number(f[2], &gid))
            continue;
        if (group && strcmp(f[0], group) == 0) {
            who->gid = gid;
            found = true;
        }
        /* An explicit group stands alone, as `docker run -u` has it. */
        if (!group && n == 4 && gid != who->gid && who->group_count < MAX_GROUPS &&
            member(f[3], who->name))
            who->groups[who->group_count++] = gid;
    }
    if (group && !found && numeric)
        who->gid = wanted;
    who->groups[0] = who->gid;
    return !group || found || numeric;
}

static bool resolve(const char *spec, struct identity *who)
{
    char user[80];
    const char *colon = strchr(spec, ':');
    size_t len = colon ? (size_t)(colon - spec) : strlen(spec);
    if (len >= sizeof user)
        return false;
    memcpy(user, spec, len);
    user[len] = 0;
    if (!find_user(len ? user : "0", who))
        return false;
    return find_groups(colon && colon[1] ? colon + 1 : NULL, who);
}

const struct identity *identity_of(const char *spec)
{
    if (!spec)
        spec = "";
    if (strlen(spec) >= sizeof cached_spec)
        return NULL;
    struct stamp passwd = stamp_of("/etc/passwd"), group = stamp_of("/etc/group");
    if (cache_valid && strcmp(spec, cached_spec) == 0 && same(&passwd, &cached_passwd) &&
        same(&group, &cached_group))
        return &cached;
    cache_valid = false;
    memset(&cached, 0, sizeof cached);
    if (!resolve(spec, &cached))
        return NULL;
    strcpy(cached_spec, spec);
    cached_passwd = passwd;
    cached_group = group;
    cache_valid = true;
    return &cached;
}
