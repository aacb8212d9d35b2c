"""How a VMM is confined on this host.

A small static launcher does in the child what may not be done in ours: it joins an empty network
namespace, sets limits, drops to an unprivileged uid and forbids new privileges, then executes the
VMM. Without the launcher, or where the kernel refuses, less is in force, and `describe` says so.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import platform
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sporevm._sys import process
from sporevm.errors import SporeError

#: Uids no account uses. Each VM has one of its own, derived from its directory, so that one VMM
#: can neither trace nor signal another, and nothing has to be allocated or given back.
FIRST_UID = 61184
UIDS = 4096

#: Soft and hard limits. A VMM writes no file but its disk, opens few, and dumps no core: a core
#: would hold the guest's memory.
LIMITS = (("NOFILE", 1024, 1024), ("CORE", 0, 0), ("FSIZE", 1 << 41, 1 << 41))

_CLONE_NEWNET = 0x40000000
_PROBE_DEADLINE = 10.0


@dataclass(frozen=True, slots=True)
class Confinement:
    """What is in force for one VMM; a `process.Launcher`."""

    launcher: str = ""
    uid: int = 0  # 0 = ours
    gid: int = 0
    netns: int = -1  # descriptor of an empty network namespace
    own_namespaces: bool = False  # an ordinary user's way: new user and network namespace
    cgroups: tuple[str, ...] = ()
    seccomp: bool = False  # the VMM's own filter: only reported here
    notes: tuple[str, ...] = ()  # what is not in force, and why

    def wrap(self, argv: Sequence[str]) -> list[str]:
        if not self.launcher:
            return list(argv)
        words = [self.launcher]
        if self.own_namespaces:
            words.append("--userns")  # with an empty network of its own
        elif self.netns >= 0:
            words += ["--setns", str(self.netns)]
        if self.uid:
            words += ["--uid", str(self.uid), "--gid", str(self.gid)]
        for name, soft, hard in LIMITS:
            words += ["--rlimit", f"{name}={soft}:{hard}"]
        for cgroup in self.cgroups:
            words += ["--cgroup", cgroup]
        return [*words, "--no-new-privs", "--umask", "077", "--chdir", "/", "--", *argv]

    @property
    def fds(self) -> tuple[int, ...]:
        return (self.netns,) if self.launcher and self.netns >= 0 else ()

    def describe(self) -> list[str]:
        """What is in force, then what is not; for people."""
        words = []
        if self.launcher:
            if self.uid:
                words.append(f"uid {self.uid}")
            if self.own_namespaces:
                words.append("user namespace")
            if self.own_namespaces or self.netns >= 0:
                words.append("empty network namespace")
            words += ["no-new-privs", "limits"]
            if self.cgroups:
                words.append("cgroup")
        if self.seccomp:
            words.append("seccomp")
        return words + [f"not: {note}" for note in self.notes]


def uid_for(directory: Path) -> int:
    """The uid of the VM that lives in a directory."""
    digest = hashlib.sha256(os.fsencode(directory)).digest()
    return FIRST_UID + int.from_bytes(digest[:4], "big") % UIDS


def launcher_path() -> Path:
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    return Path(__file__).resolve().parent.parent / "_bin" / f"launch-{machine}"


class Confiner:
    """Makes Confinements for this host; holds the one network namespace they share."""

    def __init__(self, base: Confinement) -> None:
        self._base = base

    @classmethod
    async def probe(cls, launcher: Path | None = None) -> Confiner:
        """Find out, by doing it, how far a program can be confined here."""
        program = launcher or launcher_path()
        if not os.access(program, os.X_OK):
            return cls(Confinement(notes=(f"uid, namespaces, limits ({program.name} is missing)",)))
        plain = Confinement(launcher=str(program))
        if os.geteuid() == 0:
            netns, why = await asyncio.to_thread(_empty_netns)
            wanted = replace(plain, uid=FIRST_UID, gid=FIRST_UID, netns=netns)
            note = f"empty network namespace ({why})" if why else ""
        else:
            wanted, note = replace(plain, own_namespaces=True), ""
        notes = (note,) if note else ()
        refused = await _refusal(wanted)
        if not refused:
            return cls(replace(wanted, notes=notes))
        if wanted.netns >= 0:
            os.close(wanted.netns)
        # Limits and no-new-privs need no privilege.
        less = replace(plain, notes=(f"namespaces and uid ({refused})",))
        refused = await _refusal(less)
        return cls(
            Confinement(notes=(f"uid, namespaces, limits ({refused})",)) if refused else less
        )

    def confinement(
        self, directory: Path, *, seccomp: bool, keep_uid: str = "", gid: int | None = None
    ) -> Confinement:
        """For the VM in `directory`. `keep_uid` is the reason why it can't have a uid of its own,
        `gid` a group that it needs (that of /dev/kvm)."""
        base = replace(self._base, seccomp=seccomp)
        if base.uid and keep_uid:
            return replace(base, uid=0, gid=0, notes=(*base.notes, f"own uid ({keep_uid})"))
        if base.uid:
            uid = uid_for(directory)
            return replace(base, uid=uid, gid=uid if gid is None else gid)
        return base

    def close(self) -> None:
        if self._base.netns >= 0:
            os.close(self._base.netns)
            self._base = replace(self._base, netns=-1)


async def _refusal(confinement: Confinement) -> str:
    """Why a program can't be run like that here; empty if it can."""
    try:
        await process.run(
            confinement.wrap(["/bin/true"]), pass_fds=confinement.fds, timeout=_PROBE_DEADLINE
        )
    except SporeError as error:
        return error.message
    return ""


def _empty_netns() -> tuple[int, str]:
    """A descriptor of a new network namespace, made by a thread that dies in it.

    Runs in a thread of a pool, so it starts one of its own: a thread can't come back.
    """
    result: list[tuple[int, str]] = []

    def make() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            result.append((-1, os.strerror(ctypes.get_errno())))
            return
        result.append((os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC), ""))

    thread = threading.Thread(target=make, name="netns")
    thread.start()
    thread.join()
    return result[0]
