/*
 * Preloaded into QEMU older than 8.2, for a VM whose memory is a private mapping of a template's file.
 *
 * Such a QEMU insists on opening that file for writing, though it never writes to it. Then a QEMU that a
 * guest has taken over could write into the template, and so into every later VM. This opens the one file
 * named by SPORE_MEMRO (a /proc/self/fd path) read-only instead; a private mapping needs no more.
 *
 * Built as a shared object against glibc: memro-x86_64.so. Without it QEMU keeps our uid, and says so.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int open_memro(const char *path, int flags, mode_t mode)
{
    const char *memory = getenv("SPORE_MEMRO");
    if (memory && strcmp(path, memory) == 0)
        flags = (flags & ~O_ACCMODE) | O_RDONLY;
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

static mode_t mode_of(int flags, va_list rest)
{
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    return open_memro(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    return open_memro(path, flags | O_LARGEFILE, mode);
}

int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);

/* What a call without a mode becomes in a program built with _FORTIFY_SOURCE, as QEMU is. */
int __open_2(const char *path, int flags)
{
    return open_memro(path, flags, 0);
}

int __open64_2(const char *path, int flags)
{
    return open_memro(path, flags | O_LARGEFILE, 0);
}
