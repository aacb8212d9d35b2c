"""What this machine can do, and what mends what it can't.

Every probe is a function that returns `Check`s and leaves nothing but caches. One that fails
becomes a line of the report: the doctor must not fall ill itself.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sporevm._sys import fs, kvm
from sporevm._sys.confine import Confiner, launcher_path
from sporevm.errors import NotFound, SetupError, SporeError
from sporevm.image.kernel import list_kernels
from sporevm.image.store import ImageStore
from sporevm.spec import DEFAULT_IMAGE, GIB, MIB, Arch, parse_arch
from sporevm.store.layout import Layout
from sporevm.vmm import registry
from sporevm.vmm.qemu import probe as qemu


class Status(StrEnum):
    OK = "ok"
    DEGRADED = "degraded"  # works, but slower, or with less
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. `needed`: without it no sandbox can run."""

    name: str
    status: Status
    detail: str
    mend: str = ""
    needed: bool = False

    @property
    def fatal(self) -> bool:
        return self.needed and self.status is Status.MISSING


Probe = Callable[[Layout], Awaitable[list[Check]]]

_LOW_DISK = 3 * GIB
_LOW_MEMORY = 768 * MIB
#: userfaultfd(2), by machine.
_UFFD = {"x86_64": 323, "aarch64": 282}
_UFFD_USER_MODE_ONLY = 1


async def examine(layout: Layout) -> list[Check]:
    """All checks, in the order they are best read."""
    groups = await asyncio.gather(*(_guarded(probe, layout) for probe in PROBES))
    return [check for group in groups for check in group]


def able(checks: Iterable[Check]) -> bool:
    """Can a sandbox run here, now or after what is made on first use?"""
    return not any(check.fatal for check in checks)


async def _guarded(probe: Probe, layout: Layout) -> list[Check]:
    name = probe.__name__.strip("_").replace("_", " ")
    try:
        return await probe(layout)
    except (SporeError, OSError) as error:
        return [Check(name, Status.DEGRADED, f"could not be checked: {error}")]


# -- what runs VMs ---------------------------------------------------------------------------------


async def _home(layout: Layout) -> list[Check]:
    try:
        layout.check()
        await asyncio.to_thread(_write_test, layout.home)
    except SporeError as error:
        return [Check("home", Status.MISSING, error.message, error.hint, needed=True)]
    return [Check("home", Status.OK, f"{layout.home} can be written")]


def _write_test(home: Path) -> None:
    place = next(path for path in (home, *home.parents) if path.exists())
    with fs.writing(place):
        probe = place / f".spore-doctor-{os.getpid()}"
        if place == home:
            probe.mkdir()
            probe.rmdir()
        elif not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(13, "permission denied", str(place))


async def _accelerator(layout: Layout) -> list[Check]:
    """What KVM is worth here, measured, and what `auto` makes of it."""
    verdict = await kvm.verdict(layout.cache)
    good = verdict.outcome is kvm.Outcome.USABLE
    checks = [
        Check(
            "kvm",
            Status.OK if good else Status.DEGRADED,
            verdict.sentence,
            "" if good else verdict.mend or "use a machine, or a VM, with (nested) virtualization",
        )
    ]
    try:
        choice = await registry.explain("auto", host_arch(), layout)
    except SetupError as error:
        # Which program is missing is the next probe's to say.
        return [*checks, Check("accelerator", Status.MISSING, f"none: {error.message}", error.hint)]
    able_to = choice.vmm.capabilities(host_arch())
    detail = f"auto picks {choice.vmm.name} {choice.vmm.version} with {able_to.accelerator}"
    if able_to.security_boundary:
        return [*checks, Check("accelerator", Status.OK, detail)]
    detail += "; emulation is slower, and its project does not call it a security boundary"
    mend = checks[0].mend or "use a machine with virtualization"
    return [*checks, Check("accelerator", Status.DEGRADED, detail, mend)]


async def _qemu(layout: Layout) -> list[Check]:
    checks = []
    for arch in Arch:
        own = arch is host_arch()
        name = f"qemu {arch.value}"
        try:
            found = await qemu.find(arch, layout.cache)
        except SetupError as error:
            status = Status.MISSING if own else Status.DEGRADED
            purpose = "" if own else f"; only needed for --arch {arch.value}"
            checks.append(Check(name, status, error.message + purpose, error.hint, needed=own))
        else:
            checks.append(Check(name, Status.OK, f"{found.version_text} at {found.path}"))
    return checks


async def _confinement(layout: Layout) -> list[Check]:
    confiner = await Confiner.probe()
    try:
        words = confiner.confinement(layout.sandboxes, seccomp=False).describe()
    finally:
        confiner.close()
    lacking = [word for word in words if word.startswith("not: ")]
    if not lacking:
        return [Check("confinement", Status.OK, f"VMs get: {', '.join(words)}")]
    mend = "allow unprivileged user namespaces (see below), or run as root"
    if not launcher_path().is_file():
        mend = "install sporevm from a wheel, or build the launcher: make agent"
    return [Check("confinement", Status.DEGRADED, "; ".join(words), mend)]


# -- what is made once -----------------------------------------------------------------------------


async def _artifacts(layout: Layout) -> list[Check]:
    return await asyncio.to_thread(_artifacts_now, layout)


def _artifacts_now(layout: Layout) -> list[Check]:
    arch = host_arch()
    kernels = [kernel for kernel in list_kernels(layout) if kernel.arch is arch]
    checks = [
        _made("kernel", kernels[0].name if kernels else "", "spore setup kernel"),
        _made("base image", _base_image(layout), "spore setup rootfs"),
    ]
    count = sum(1 for _ in layout.templates.glob("*/manifest.json"))
    checks.append(_made("template", f"{count} built" if count else "", "spore setup template"))
    return checks


def _made(name: str, found: str, mend: str) -> Check:
    if found:
        return Check(name, Status.OK, found)
    return Check(name, Status.DEGRADED, "not made yet; the first run makes it", mend)


def _base_image(layout: Layout) -> str:
    try:
        return ImageStore(layout).resolve(DEFAULT_IMAGE).id[:12]
    except NotFound:
        return ""


def _have_artifacts(layout: Layout) -> bool:
    kernels = [kernel for kernel in list_kernels(layout) if kernel.arch is host_arch()]
    return bool(kernels and _base_image(layout))


async def _tools(layout: Layout) -> list[Check]:
    """Programs that make images and disks: hardly needed once those are there."""
    needed = not _have_artifacts(layout)
    wanted = (
        ("mmdebstrap", ("mmdebstrap",), "makes the base image", needed),
        ("squashfs-tools", ("mksquashfs",), "packs images", needed),
        ("dpkg", ("dpkg-deb",), "unpacks the guest's kernel", needed),
        ("e2fsprogs", ("mkfs.ext4",), "formats writable disks", True),
    )
    checks = []
    for package, programs, purpose, required in wanted:
        found = [path for program in programs if (path := _which(program))]
        if found:
            checks.append(Check(package, Status.OK, f"{purpose}: {found[0]}"))
        else:
            status = Status.MISSING if required else Status.DEGRADED
            detail = f"{' or '.join(programs)} is not installed; it {purpose}"
            checks.append(Check(package, status, detail, f"apt install {package}", required))
    return checks


def _which(program: str) -> str | None:
    # The programs of the administrator are not on every user's PATH, and we need no more than them.
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    return shutil.which(program, path=path)


def host_arch() -> Arch:
    return parse_arch(os.uname().machine)


# -- what makes it faster, or safer ----------------------------------------------------------------


async def _kernel_features(layout: Layout) -> list[Check]:
    return [_userfaultfd(), _tun(), _nft(), _cgroups(), _user_namespaces()]


def _userfaultfd() -> Check:
    what = "memory that is loaded on demand"
    number = _UFFD.get(os.uname().machine)
    if number is None:
        return Check("userfaultfd", Status.DEGRADED, f"unknown on this machine; no {what}")
    libc = ctypes.CDLL(None, use_errno=True)
    for flags in (0, _UFFD_USER_MODE_ONLY):
        fd = libc.syscall(number, os.O_CLOEXEC | flags)
        if fd >= 0:
            os.close(fd)
            limit = " (user mode only)" if flags else ""
            return Check("userfaultfd", Status.OK, f"{what}{limit}")
    why = os.strerror(ctypes.get_errno())
    return Check(
        "userfaultfd", Status.DEGRADED, f"{why}; no {what}", "sysctl vm.unprivileged_userfaultfd=1"
    )


def _tun() -> Check:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        detail = f"/dev/net/tun: {error.strerror}; no network cards for guests"
        return Check("tun", Status.DEGRADED, detail, "modprobe tun")
    return Check("tun", Status.OK, "/dev/net/tun can be opened")


def _nft() -> Check:
    found = _which("nft")
    if found is None:
        detail = "nft is not installed; no packet filter for guests with a network card"
        return Check("nftables", Status.DEGRADED, detail, "apt install nftables")
    return Check("nftables", Status.OK, found)


def _cgroups() -> Check:
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.controllers").exists():
        return Check(
            "cgroups",
            Status.DEGRADED,
            "no cgroup v2; the host's limits for VMs can't be set",
            "boot with systemd.unified_cgroup_hierarchy=1",
        )
    own = _own_cgroup(root)
    if not os.access(own, os.W_OK):
        detail = f"{own} can't be written; the host's limits for VMs can't be set"
        return Check(
            "cgroups", Status.DEGRADED, detail, "systemd-run --user --scope -p Delegate=yes"
        )
    return Check("cgroups", Status.OK, "cgroup v2, writable")


def _own_cgroup(root: Path) -> Path:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return root
    relative = next((line[3:] for line in lines if line.startswith("0::")), "/")
    own = root / relative.lstrip("/")
    return own if own.exists() else root


def _user_namespaces() -> Check:
    name = "user namespaces"
    if os.geteuid() == 0:
        return Check(name, Status.OK, "not needed as root")
    switches = (
        ("/proc/sys/user/max_user_namespaces", "sysctl user.max_user_namespaces=10000"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "sysctl kernel.unprivileged_userns_clone=1"),
    )
    for path, mend in switches:
        try:
            value = Path(path).read_text().strip()
        except OSError:
            continue
        if value == "0":
            return Check(name, Status.DEGRADED, f"{path} is 0: VMs are confined less", mend)
    return Check(name, Status.OK, "unprivileged ones are allowed")


# -- room ------------------------------------------------------------------------------------------


async def _room(layout: Layout) -> list[Check]:
    return [*await asyncio.to_thread(_disk, layout), _memory()]


def _disk(layout: Layout) -> list[Check]:
    place = next(path for path in (layout.home, *layout.home.parents) if path.exists())
    stat = os.statvfs(place)
    free = stat.f_bavail * stat.f_frsize
    low = free < _LOW_DISK
    checks = [
        Check(
            "disk",
            Status.DEGRADED if low else Status.OK,
            f"{free / GIB:.1f} GiB free at {place}",
            "spore template rm --outdated, or set SPORE_HOME to another disk" if low else "",
        )
    ]
    if place == layout.home and os.access(place, os.W_OK):
        reflink = fs.can_reflink(place)
        checks.append(
            Check(
                "reflink",
                Status.OK if reflink else Status.DEGRADED,
                "copies share their blocks"
                if reflink
                else "the file system can't share blocks; copies of disks take time and space",
                "" if reflink else "set SPORE_HOME to a directory on XFS or btrfs",
            )
        )
    return checks


def _memory() -> Check:
    facts = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, value = line.partition(":")
        facts[key] = int(value.split()[0]) * 1024
    free, total = facts["MemAvailable"], facts["MemTotal"]
    low = free < _LOW_MEMORY
    return Check(
        "memory",
        Status.DEGRADED if low else Status.OK,
        f"{free / GIB:.1f} of {total / GIB:.1f} GiB available",
        "end something, or give sandboxes less with --memory" if low else "",
    )


PROBES: Sequence[Probe] = (
    _home,
    _accelerator,
    _qemu,
    _confinement,
    _artifacts,
    _tools,
    _kernel_features,
    _room,
)
