/* Who a process or file belongs to, by the guest root's own /etc/passwd and /etc/group. */
#ifndef SPORE_USERS_H
#define SPORE_USERS_H

#include <stdbool.h>
#include <sys/types.h>

#define MAX_GROUPS 64

struct identity {
    uid_t uid;
    gid_t gid;
    int group_count;
    gid_t groups[MAX_GROUPS];
    char name[64], home[256], shell[128];
};

/* `spec` as in USER; NULL or "" is root. NULL if there is no such user or group. */
const struct identity *identity_of(const char *spec);

#endif
