/* Helpers on files that several services share. */
#ifndef SPORE_FILES_H
#define SPORE_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

#include "stream.h"
#include "users.h"

/* mkdir -p. New directories get mode and owner (NULL: leave root). 0 or an errno. */
int make_dirs(const char *path, mode_t mode, const struct identity *owner);
/* The same for everything above the last name. */
int make_parents(const char *path, const struct identity *owner);
/* A small file, whole, replacing what is there. 0 or an errno. */
int write_file(const char *path, mode_t mode, const void *data, size_t len);
/* A small file into a C string, "" if unreadable; a trailing newline is cut. */
void read_line(const char *path, char *to, size_t size);

void stat_fields(struct tlv_out *t, const struct stat *st);

void svc_stat(struct stream *s, const struct msg *m);
void svc_remove(struct stream *s, const struct msg *m);
void svc_rename(struct stream *s, const struct msg *m);
void svc_mkdir(struct stream *s, const struct msg *m);
void svc_file_read(struct stream *s, const struct msg *m);  /* read.c */
void svc_list(struct stream *s, const struct msg *m);       /* read.c */
void svc_file_write(struct stream *s, const struct msg *m); /* write.c */

#endif
