/* Services about the machine as a whole, and what PID 1 does before and after. */
#ifndef SPORE_SYSTEM_H
#define SPORE_SYSTEM_H

#include "stream.h"

void svc_configure(struct stream *s, const struct msg *m); /* config.c */
void svc_metrics(struct stream *s, const struct msg *m);   /* metrics.c */
void svc_shutdown(struct stream *s, const struct msg *m);  /* shutdown.c */

/* boot.c: everything up to an open channel, when we are PID 1. */
void boot(void);
/* The node in /dev of the drive with this serial number; NULL if there is none. */
const char *boot_drive(const char *serial);
void console(const char *text);

/* mounts.c. 0 or an errno; *what is the step that failed. */
int mount_root(const struct msg *m, const char **what);
int mount_volume(const struct msg *volume, const char **what);
/* identity.c: the files that name this machine, in the root. */
enum named { ID_HOSTNAME, ID_HOSTS, ID_MACHINE };
void identity_prepare(void);
int identity_write(enum named which, const void *text, size_t len); /* 0 or an errno */
/* Put the image's root away again, as far as that is possible. */
void unmount_root(void);

#endif
