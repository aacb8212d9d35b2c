/* Slow one-shot work (sync, removing a tree) in a forked copy, so that the agent never stands still. */
#ifndef SPORE_JOBS_H
#define SPORE_JOBS_H

#include <stdbool.h>
#include <sys/types.h>

#include "stream.h"

/* Run work(arg) in a child; it returns an errno, which becomes the stream's REPLY. */
void job_start(struct stream *s, int (*work)(const char *arg), const char *arg);
/* True if `pid` was a job; its stream is answered. */
bool job_ended(pid_t pid, int status);

#endif
