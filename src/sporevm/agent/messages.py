"""What is said in the guest protocol, as plain data, and its TLV form both ways."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from sporevm.errors import GuestError, ProtocolViolation
from sporevm.spec import Command
from sporevm.wire import constants as c
from sporevm.wire.constants import Tag
from sporevm.wire.tlv import Field, Fields, encode

#: File kinds by their number in KIND; 0 is not used.
KINDS: Final = ("", "file", "dir", "link", "char", "block", "fifo", "socket")

_MAX_ERRNO: Final = 4095
_MAX_PID: Final = (1 << 31) - 1
_MAX_SIGNAL: Final = 64
_MAX_SIZE: Final = (1 << 63) - 1
_MAX_ID: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Hello:
    version: str
    boot_id: str
    root_mounted: bool


@dataclass(frozen=True, slots=True)
class Mount:
    """A drive, by its serial, and the type of the file system on it."""

    drive: str
    fstype: str


@dataclass(frozen=True, slots=True)
class Volume:
    drive: str
    fstype: str
    path: str
    read_only: bool = False

    def fields(self) -> list[Field]:
        flags = c.VOLUME_READ_ONLY if self.read_only else 0
        made: list[Field] = [(Tag.DRIVE, self.drive), (Tag.FSTYPE, self.fstype)]
        return [*made, (Tag.PATH, self.path), (Tag.FLAGS, flags)]


@dataclass(frozen=True, slots=True)
class GuestFile:
    """A small file, written into the root; all of CONFIGURE must fit into one frame (64 KiB)."""

    path: str
    data: bytes
    mode: int = 0o644

    def fields(self) -> list[Field]:
        return [(Tag.PATH, self.path), (Tag.MODE, self.mode), (Tag.DATA, self.data)]


@dataclass(frozen=True, slots=True)
class Configure:
    """What makes a restored template one particular sandbox. Anything may be left out."""

    clock_ns: int | None = None
    entropy: bytes = b""
    hostname: str = ""
    machine_id: str = ""
    root: Mount | None = None
    scratch: Mount | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    files: tuple[GuestFile, ...] = ()
    volumes: tuple[Volume, ...] = ()

    def fields(self) -> list[Field]:
        made: list[Field] = []
        if self.clock_ns is not None:
            made.append((Tag.CLOCK_NS, self.clock_ns))
        if self.entropy:
            made.append((Tag.ENTROPY, self.entropy))
        if self.hostname:
            made.append((Tag.HOSTNAME, self.hostname))
        if self.machine_id:
            made.append((Tag.MACHINE_ID, self.machine_id))
        if self.root is not None:
            made += [(Tag.ROOT_DRIVE, self.root.drive), (Tag.ROOT_FSTYPE, self.root.fstype)]
        if self.scratch is not None:
            made.append((Tag.SCRATCH_DRIVE, self.scratch.drive))
            made.append((Tag.SCRATCH_FSTYPE, self.scratch.fstype))
        made += [(Tag.ENV, f"{key}={value}") for key, value in self.env.items()]
        for file in self.files:
            made.append((Tag.FILE, encode(file.fields())))
        for volume in self.volumes:
            made.append((Tag.VOLUME, encode(volume.fields())))
        return made


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. `code` is 0 when a signal ended it; a shell shows 128 + signal then."""

    code: int
    signal: int = 0
    timed_out: bool = False

    @property
    def status(self) -> int:
        return 128 + self.signal if self.signal else self.code


@dataclass(frozen=True, slots=True)
class ProcInfo:
    proc: str
    pid: int
    exit: Exit | None  # None: it runs


@dataclass(frozen=True, slots=True)
class FileStat:
    """`mode` is the permission bits; the type is in `kind`: one of KINDS."""

    name: str
    kind: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    target: str = ""


def exec_fields(proc: str, command: Command) -> list[Field]:
    flags = (c.EXEC_TTY if command.tty else 0) | (c.EXEC_STDIN if command.stdin else 0)
    made: list[Field] = [(Tag.PROC, proc), (Tag.FLAGS, flags)]
    made += [(Tag.ARG, argument) for argument in command.argv]
    made += [(Tag.ENV, f"{key}={value}") for key, value in command.env.items()]
    if command.cwd:
        made.append((Tag.CWD, command.cwd))
    if command.user:
        made.append((Tag.USER, command.user))
    if command.tty:
        made += [(Tag.ROWS, command.rows), (Tag.COLS, command.cols)]
    if command.timeout is not None:
        made.append((Tag.TIMEOUT_MS, milliseconds(command.timeout)))
    return made


def milliseconds(seconds: float) -> int:
    """Rounded up to at least one: zero would mean something else."""
    return max(1, round(seconds * 1000))


def hello(fields: Fields) -> Hello:
    flags = fields.u64(Tag.FLAGS, 0)
    return Hello(
        version=clean(fields.raw(Tag.VERSION))[:64],
        boot_id=clean(fields.raw(Tag.BOOT_ID, b""))[:64],
        root_mounted=bool(flags & c.HELLO_ROOT_MOUNTED),
    )


def pid(fields: Fields) -> int:
    return fields.u64(Tag.PID, most=_MAX_PID)


def exit_status(fields: Fields) -> Exit:
    return Exit(
        code=fields.u64(Tag.EXIT_CODE, 0, most=255),
        signal=fields.u64(Tag.TERM_SIGNAL, 0, most=_MAX_SIGNAL),
        timed_out=bool(fields.u64(Tag.FLAGS, 0) & c.EXIT_TIMED_OUT),
    )


def proc_info(fields: Fields) -> ProcInfo:
    flags = fields.u64(Tag.FLAGS, 0)
    ended = None
    if flags & c.PROC_ENDED:
        code = fields.u64(Tag.EXIT_CODE, 0, most=255)
        ended = Exit(code, fields.u64(Tag.TERM_SIGNAL, 0, most=_MAX_SIGNAL))
    return ProcInfo(proc=fields.text(Tag.PROC), pid=pid(fields), exit=ended)


def file_stat(fields: Fields, name: str | None = None) -> FileStat:
    """From a REPLY about the file `name`, or from a directory entry that carries its own name."""
    kind = fields.u64(Tag.KIND, most=len(KINDS) - 1)
    if kind == 0:
        raise ProtocolViolation("the guest sent KIND 0")
    if name is None:
        name = fields.text(Tag.NAME)
        if name in {"", ".", ".."} or "/" in name:
            raise ProtocolViolation(f"the guest sent {name!r} as the name of a directory's entry")
    return FileStat(
        name=name,
        kind=KINDS[kind],
        size=fields.u64(Tag.SIZE, most=_MAX_SIZE),
        mode=fields.u64(Tag.MODE, most=0o177777) & 0o7777,
        uid=fields.u64(Tag.UID, most=_MAX_ID),
        gid=fields.u64(Tag.GID, most=_MAX_ID),
        mtime_ns=fields.u64(Tag.MTIME_NS, 0, most=_MAX_SIZE),
        target=fields.text(Tag.TARGET, ""),
    )


def metrics(fields: Fields) -> dict[str, int]:
    return {
        clean(entry.raw(Tag.NAME)): entry.u64(Tag.VALUE, most=_MAX_SIZE)
        for entry in fields.nested(Tag.ENTRY)
    }


def failure(fields: Fields, what: str, path: str = "") -> GuestError | None:
    """The error that an ERRNO other than 0 is; `what` completes "cannot …"."""
    number = fields.u64(Tag.ERRNO, 0, most=_MAX_ERRNO)
    if number == 0:
        return None
    message = f"cannot {what}: {strerror(number)}"
    head, _, detail = (said := clean(fields.raw(Tag.MESSAGE, b""))).partition(": ")
    if " " in head or detail not in what:  # more than the name of a call and what we know
        message += f" ({said})"
    return GuestError(message, errno=number, path=path)


def strerror(number: int) -> str:
    """Linux's text; on another system the numbers mean other things, so only their number."""
    return os.strerror(number) if sys.platform == "linux" else f"Linux error {number}"


def clean(text: bytes) -> str:
    """Text from the guest, fit for a terminal or a log: no control characters, no escapes."""
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for char in text.decode("utf-8", "replace")
    )
