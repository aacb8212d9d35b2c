#ifndef SPORE_TCP_H
#define SPORE_TCP_H

#include "stream.h"

void svc_tcp_connect(struct stream *s, const struct msg *m);

#endif
