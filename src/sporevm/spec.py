"""What a caller may ask for, parsed and validated once, then frozen.

Everything here is plain data: no I/O, no environment. Inner layers take these and never look at
strings from a command line again.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

from sporevm.errors import UsageError

SandboxId = NewType("SandboxId", str)
ImageId = NewType("ImageId", str)
TemplateKey = NewType("TemplateKey", str)

MIB = 1 << 20
GIB = 1 << 30

#: Logical size of every drive a VM sees. A drive's file is sparse; the file system on it knows its
#: own length, so the file behind a slot can be swapped without telling the guest.
SLOT_BYTES = 1 << 40

DRIVE_IMAGE = "image"
DRIVE_SCRATCH = "scratch"
VOLUME_DRIVES = ("vol0", "vol1", "vol2", "vol3")
#: Serial numbers of the placeholder drives, in the order every VMM attaches them.
DRIVES = (DRIVE_IMAGE, DRIVE_SCRATCH, *VOLUME_DRIVES)

DEFAULT_IMAGE = "base"
DEFAULT_MEMORY_MIB = 512
DEFAULT_DISK_BYTES = 10 * GIB
MIN_MEMORY_MIB = 128
MAX_CPUS = 64

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")
_ENV_NAME = re.compile(r"[^=\0]+")


class Arch(StrEnum):
    X86_64 = "x86_64"
    AARCH64 = "aarch64"

    @property
    def debian(self) -> str:
        return {"x86_64": "amd64", "aarch64": "arm64"}[self.value]


class State(StrEnum):
    CREATING = "creating"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    FAILED = "failed"
    REMOVED = "removed"


def parse_arch(text: str) -> Arch:
    names = {"x86_64": Arch.X86_64, "amd64": Arch.X86_64, "x64": Arch.X86_64}
    names |= {"aarch64": Arch.AARCH64, "arm64": Arch.AARCH64}
    try:
        return names[text.lower()]
    except KeyError:
        raise UsageError(
            f"unknown architecture {text!r}", hint="use x86_64 (amd64) or aarch64 (arm64)"
        ) from None


def parse_size(text: str, *, what: str, unit: str = "") -> int:
    """Bytes from `512M`, `1.5G`, `10GiB`; a bare number is in `unit` (powers of 1024)."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{what}: {text!r} is not a size", hint="write it like 512M or 2G")
    number, suffix = match.groups()
    power = " kmgt".index((suffix or unit or " ").lower())
    return int(float(number) * 1024**power)


def parse_memory(text: str) -> int:
    """Guest memory in MiB; a bare number is MiB."""
    mib = parse_size(text, what="memory", unit="m") // MIB
    if mib < MIN_MEMORY_MIB:
        raise UsageError(
            f"memory: {text!r} is too little for a guest",
            hint=f"the least is {MIN_MEMORY_MIB}M, the default {DEFAULT_MEMORY_MIB}M",
        )
    return mib


def parse_duration(text: str, *, what: str) -> float:
    """Seconds from `90`, `1.5s`, `10m`, `1h30m`, `2d`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise UsageError(f"{what}: {text!r} is not a duration", hint="write it like 30s, 10m or 1h")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total <= 0:
        raise UsageError(f"{what}: must be more than zero")
    return total


def check_name(name: str, *, what: str = "name") -> str:
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{what} {name!r} is not allowed",
            hint="1 to 63 letters, digits, '_', '.' or '-', starting with a letter or digit",
        )
    return name


def new_sandbox_id() -> SandboxId:
    return SandboxId(secrets.token_hex(6))


@dataclass(frozen=True, slots=True)
class Command:
    """A process to run in a sandbox."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    user: str = ""
    tty: bool = False
    stdin: bool = False
    rows: int = 24
    cols: int = 80
    timeout: float | None = None

    def __post_init__(self) -> None:
        if not self.argv or not self.argv[0]:
            raise UsageError("no command given", hint="put it after --, like: spore run -- ls /")
        for text in (*self.argv, self.cwd, self.user):
            if "\0" in text:
                raise UsageError("a command, directory or user can't contain a NUL character")
        for key, value in self.env.items():
            if _ENV_NAME.fullmatch(key) is None or "\0" in value:
                raise UsageError(f"environment variable {key!r} is not allowed")


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What to create. Validated here; checked against this host by the engine."""

    image: str = DEFAULT_IMAGE
    name: str = ""
    arch: Arch | None = None  # None = this machine's
    vmm: str = "auto"
    cpus: int = 1
    memory_mib: int = DEFAULT_MEMORY_MIB
    disk_bytes: int = DEFAULT_DISK_BYTES
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    user: str = ""
    hostname: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    #: Seconds after which the engine removes the sandbox; None = no limit.
    ttl: float | None = None
    #: Remove the sandbox when its main process ends, or when its owner goes away.
    auto_remove: bool = False
    #: A foreground run: it ends with its client. After the death of an engine there is none.
    bound: bool = False

    def __post_init__(self) -> None:
        if self.name:
            check_name(self.name)
        if not 1 <= self.cpus <= MAX_CPUS:
            raise UsageError(f"cpus: {self.cpus} is out of range", hint=f"1 to {MAX_CPUS}")
        if self.memory_mib < MIN_MEMORY_MIB:
            raise UsageError(
                f"memory: {self.memory_mib} MiB is too little for a guest",
                hint=f"the least is {MIN_MEMORY_MIB}M, the default {DEFAULT_MEMORY_MIB}M",
            )
        if not 16 * MIB <= self.disk_bytes <= SLOT_BYTES:
            raise UsageError("disk: size is out of range", hint="16M to 1T; the default is 10G")
        if self.ttl is not None and self.ttl <= 0:
            raise UsageError("timeout: must be more than zero")
