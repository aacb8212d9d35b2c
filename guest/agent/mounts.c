/* The sandbox's root: an overlay of the image (read-only) and the scratch disk, switched to. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"
#include "files.h"
#include "system.h"

/* In the initramfs; out of sight once the root is switched. */
#define IMAGE "/.image"
#define SCRATCH "/.scratch"
#define ROOT "/.root"

static const char *const moved[] = {"/dev", "/proc", "/sys", "/run"};
#define MOVED (sizeof moved / sizeof *moved)

/*
 * The drive may be another file than when the memory was saved, and at boot the kernel has looked
 * for partitions: throw away what it remembers.
 */
static int mount_drive(const char *serial, const char *fstype, const char *path, bool read_only)
{
    const char *node = boot_drive(serial);
    if (!node)
        return ENODEV;
    int fd = open(node, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int err = ioctl(fd, BLKFLSBUF, 0) < 0 ? errno : 0;
    close(fd);
    if (err)
        return err;
    if (mkdir(path, 0755) < 0 && errno != EEXIST)
        return errno;
    /* No lazy initialisation: its thread would keep an idle guest awake, and dirty the disk. */
    const char *options = !read_only && strcmp(fstype, "ext4") == 0 ? "noinit_itable" : NULL;
    unsigned long flags = MS_NOATIME | (read_only ? MS_RDONLY : 0);
    return mount(node, path, fstype, flags, options) < 0 ? errno : 0;
}

static int mount_scratch(const struct msg *m)
{
    const char *serial = msg_str(m, TAG_SCRATCH_DRIVE), *fstype = msg_str(m, TAG_SCRATCH_FSTYPE);
    struct stat st;
    int err;
    if (serial) {
        err = mount_drive(serial, fstype ? fstype : "ext4", SCRATCH, false);
    } else {
        if (mkdir(SCRATCH, 0755) < 0 && errno != EEXIST)
            return errno;
        err = mount("scratch", SCRATCH, "tmpfs", MS_NOATIME, "mode=0755") < 0 ? errno : 0;
    }
    if (err)
        return err;
    if (mkdir(SCRATCH "/work", 0755) < 0 && errno != EEXIST)
        return errno;
    if (mkdir(SCRATCH "/upper", 0755) < 0)
        return errno == EEXIST ? 0 : errno;
    /* The merged root shows the upper directory's own attributes: they are to be the image's. */
    if (stat(IMAGE, &st) < 0 || chown(SCRATCH "/upper", st.st_uid, st.st_gid) < 0 ||
        chmod(SCRATCH "/upper", st.st_mode & 07777) < 0)
        return errno;
    return 0;
}

static int mount_overlay(void)
{
    static const char layers[] = "lowerdir=" IMAGE ",upperdir=" SCRATCH "/upper,workdir=" SCRATCH "/work";
    if (mkdir(ROOT, 0755) < 0 && errno != EEXIST)
        return errno;
    return mount("overlay", ROOT, "overlay", MS_NOATIME, layers) < 0 ? errno : 0;
}

static int prepare_root(void)
{
    static const char *const dirs[] = {ROOT "/dev", ROOT "/proc", ROOT "/sys", ROOT "/run"};
    for (size_t i = 0; i < MOVED; i++)
        if (mkdir(dirs[i], 0755) < 0 && errno != EEXIST)
            return errno;
    if (mkdir(ROOT "/tmp", 01777) == 0)
        return chmod(ROOT "/tmp", 01777) < 0 ? errno : 0;
    return errno == EEXIST ? 0 : errno;
}

static int switch_root(void)
{
    static const char *const to[] = {ROOT "/dev", ROOT "/proc", ROOT "/sys", ROOT "/run"};
    for (size_t i = 0; i < MOVED; i++)
        if (mount(moved[i], to[i], NULL, MS_MOVE, NULL) < 0)
            return errno;
    if (chdir(ROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 ||
        chdir("/") < 0)
        return errno;
    return 0;
}

int mount_root(const struct msg *m, const char **what)
{
    const char *fstype = msg_str(m, TAG_ROOT_FSTYPE);
    int err;
    *what = "image";
    err = mount_drive(msg_str(m, TAG_ROOT_DRIVE), fstype ? fstype : "squashfs", IMAGE, true);
    if (!err) {
        *what = "scratch";
        err = mount_scratch(m);
    }
    if (!err) {
        *what = "overlay";
        err = mount_overlay();
    }
    if (!err) {
        *what = "root directories";
        err = prepare_root();
    }
    if (err)
        umount2(ROOT, MNT_DETACH);
    /* The overlay holds its layers itself; detached here they end with it, cleanly, at shutdown. */
    umount2(SCRATCH, MNT_DETACH);
    umount2(IMAGE, MNT_DETACH);
    if (err)
        return err;
    *what = "switch of the root";
    err = switch_root();
    agent.root_mounted = !err;
    if (!err)
        identity_prepare();
    return err;
}

int mount_volume(const struct msg *volume, const char **what)
{
    const char *serial = msg_str(volume, TAG_DRIVE), *path = msg_str(volume, TAG_PATH);
    const char *fstype = msg_str(volume, TAG_FSTYPE);
    if (!serial || !path || !*path)
        return EINVAL;
    *what = path;
    int err = make_dirs(path, 0755, NULL);
    bool read_only = msg_u64(volume, TAG_FLAGS, 0) & 1;
    return err ? err : mount_drive(serial, fstype ? fstype : "ext4", path, read_only);
}

void unmount_root(void)
{
    if (!agent.root_mounted || fchdir(agent.initramfs_fd) < 0 || chroot(".") < 0)
        return;
    umount2("/", MNT_DETACH);
}
