"""What the engine asks of a VMM: a tiny protocol, and a record of what it can do.

Names of backends are compared only inside `vmm/`. Callers read `Capabilities`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sporevm._sys.process import Identity
from sporevm.errors import VmmError
from sporevm.spec import Arch, TemplateKey


@dataclass(frozen=True, slots=True)
class Capabilities:
    accelerator: str  # "kvm" or "tcg"
    security_boundary: bool  # False for TCG: its own project does not call it one
    live_resume_from_template: bool = True
    pause: bool = True
    balloon: bool = False
    nic: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """All that decides whether a saved memory can be resumed by a VMM on this host."""

    arch: Arch
    cpus: int
    memory_mib: int
    vmm: str  # the backend with its exact version, e.g. "qemu-7.2.22"
    accelerator: str
    cpu_model: str
    machine: str
    kernel: str  # content hash of kernel + initramfs (the agent is in it)
    extra: Mapping[str, str] = field(default_factory=dict)  # e.g. tsc_khz

    def as_dict(self) -> dict[str, object]:
        return {
            "arch": self.arch.value,
            "cpus": self.cpus,
            "memory_mib": self.memory_mib,
            "vmm": self.vmm,
            "accelerator": self.accelerator,
            "cpu_model": self.cpu_model,
            "machine": self.machine,
            "kernel": self.kernel,
            "extra": dict(sorted(self.extra.items())),
        }

    def key(self, *, image: str = "") -> TemplateKey:
        """Name of the template of this shape, or of this shape with an image already mounted."""
        text = json.dumps({**self.as_dict(), "image": image}, sort_keys=True)
        return TemplateKey(hashlib.sha256(text.encode()).hexdigest()[:24])


@dataclass(frozen=True, slots=True)
class Drive:
    path: Path
    read_only: bool


@dataclass(frozen=True, slots=True)
class Boot:
    """A cold boot, memory in a shared file so that `Machine.save` need not write it."""

    shape: Shape
    run_dir: Path  # sockets, console log; owned by the VMM's user
    log: Path  # stdout and stderr of the VMM
    mem: Path  # created by the driver, `memory_mib` long
    kernel: Path
    initrd: Path
    drives: Mapping[str, Drive] = field(default_factory=dict)  # by serial; others are placeholders


@dataclass(frozen=True, slots=True)
class Restore:
    """A VM from saved state. `share` maps `mem` shared (to derive a template), else privately."""

    shape: Shape
    run_dir: Path
    log: Path
    mem: Path
    state: Path
    drives: Mapping[str, Drive] = field(default_factory=dict)
    share: bool = False
    paused: bool = False


class Machine(Protocol):
    """A VMM process that runs one VM."""

    @property
    def identity(self) -> Identity: ...

    @property
    def channel(self) -> Path:
        """Unix socket that is the agent's channel; one connection at a time."""

    @property
    def console(self) -> Path: ...

    @property
    def confinement(self) -> list[str]:
        """What holds the VMM process back on this host, for people to read."""

    def trim_console(self, limit: int) -> None:
        """Empty the console's file if the guest has made it larger than `limit` bytes."""

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def save(self, state: Path) -> None:
        """Pause for good and write the device state; the memory is already in its shared file."""

    async def wait(self) -> int | None:
        """Return the exit status when the VMM has ended (None if it is not our child)."""

    async def kill(self) -> None:
        """End the VMM now; idempotent; returns when it and its sockets are gone."""

    def failure(self, what: str) -> VmmError:
        """A VmmError with command, status and log tail, for a VMM that died."""


class Vmm(Protocol):
    """A backend, found and probed on this host."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def capabilities(self, arch: Arch) -> Capabilities: ...

    def shape(self, *, arch: Arch, cpus: int, memory_mib: int, kernel: str) -> Shape: ...

    async def boot(self, what: Boot) -> Machine:
        """Start a VM from its kernel. The caller owns the Machine from here on."""

    async def restore(self, what: Restore) -> Machine:
        """Start a VM from saved state; returns as soon as the channel can be connected."""

    async def adopt(self, identity: Identity, shape: Shape, run_dir: Path, log: Path) -> Machine:
        """Take charge of a VMM left by an earlier engine; raises VmmError if it is not that one."""
