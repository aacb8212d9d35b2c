/* Processes: they belong to the VM, not to a stream, and outlive the connection. */
#ifndef SPORE_PROC_H
#define SPORE_PROC_H

#include <stdbool.h>
#include <sys/types.h>

#include "loop.h"
#include "ring.h"
#include "stream.h"
#include "users.h"

struct proc;

/* An output: bytes wait in the ring until the host has credited them. */
struct output {
    struct source src; /* must be first */
    struct proc *proc;
    struct ring ring;
    uint64_t base; /* position in the whole output of the ring's first byte: all before is credited */
    uint64_t sent; /* position of the first byte not sent on the present stream */
    bool readable, eof_sent;
};

struct input {
    struct source src; /* must be first; unused for a pty, whose master is out[0] */
    struct proc *proc;
    struct ring ring; /* what the process hasn't taken yet */
    uint64_t passed;
    bool open, eof_wanted, watched, writable;
};

struct proc {
    struct proc *next;
    pid_t pid;
    bool pty, ended, timed_out;
    int status; /* of waitpid */
    struct stream *stream; /* NULL: nobody is attached */
    struct output out[2]; /* stdout (or the pty), stderr */
    struct input in;
    uint64_t deadline; /* ms, 0 = none */
    uint64_t ended_order;
    char name[MAX_PROC_NAME + 1];
};

/* What to start: everything is resolved, nothing is looked up in the child. */
struct launch {
    char **argv, **envp;
    const char *path; /* PATH to search */
    const char *cwd;
    const struct identity *who;
    int fds[3];
    bool pty;
    int err;           /* filled in on failure */
    const char *where; /* what failed */
};

/* spawn.c: start it. The pid, or -1 with `err` and `where` set. */
pid_t spawn(struct launch *l);

/* exec.c */
void svc_exec(struct stream *s, const struct msg *m);

/* proc.c */
struct proc *proc_find(const char *name);
struct proc *proc_new(const char *name); /* not yet listed; NULL without memory */
void proc_list(struct proc *p);
void proc_discard(struct proc *p); /* one that was never listed */
void proc_attach(struct proc *p, struct stream *s);
void svc_attach(struct stream *s, const struct msg *m);
void svc_procs(struct stream *s, const struct msg *m);
void svc_kill(struct stream *s, const struct msg *m);
/* Take in what has ended; called when SIGCHLD came. */
void procs_reap(void);
/* Some process has closed its outputs and is probably just ending. */
bool procs_about_to_end(void);
uint64_t procs_deadline(void); /* the nearest, 0 = none */
void procs_expire(uint64_t now);
void procs_signal(int sig); /* every listed live group: under test, where kill(-1) is not ours */

#endif
