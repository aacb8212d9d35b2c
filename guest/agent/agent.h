/* What the whole agent knows. */
#ifndef SPORE_AGENT_H
#define SPORE_AGENT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct agent {
    bool test;      /* an ordinary process under test: the machine is not ours to configure */
    bool test_over; /* its socket was closed */
    bool just_spawned; /* a short process may be over in a moment: its answer can wait for it */
    bool root_mounted;
    int urandom_fd;
    int initramfs_fd; /* directory: the way back from the image's root, to unmount it */
    char boot_id[40];
};

extern struct agent agent;

/* main.c: the loop's turn, once everything is set up. */
void agent_run(void);

/* config.c */
const char *const *config_env(void); /* NULL-terminated K=V defaults */

/* shutdown.c */
void shutdown_no_children(void); /* the reaper found none left */
uint64_t shutdown_deadline(void); /* 0 = none */
void shutdown_expire(uint64_t now);

#endif
