"""The HTTP API's data, as typed structures: validation, OpenAPI schemas and the SDK share them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

API_VERSION = "v1"
MAX_RUN_OUTPUT = 64 << 20
#: Bytes of stdin a stream takes before the process has read them.
STDIN_WINDOW = 256 << 10
#: Largest message on a stream, and largest JSON body.
MAX_MESSAGE = 1 << 20
MAX_BODY = 4 << 20

Name = Annotated[str, Meta(max_length=63, description="unique among sandboxes; made up if empty")]
PositiveInt = Annotated[int, Meta(ge=1, le=1 << 50)]
#: At most ten years, so that no sum of it leaves what timers and the guest can count.
Seconds = Annotated[float, Meta(gt=0, le=315_360_000)]


class Model(Struct, forbid_unknown_fields=True, omit_defaults=False, kw_only=True):
    """Base of request and answer bodies."""


class CommandBody(Model):
    """A process to run."""

    argv: Annotated[list[str], Meta(min_length=1)]
    env: dict[str, str] = {}
    cwd: str = ""
    user: str = ""
    tty: bool = False
    stdin: bool = False
    rows: Annotated[int, Meta(ge=1, le=65535)] = 24
    cols: Annotated[int, Meta(ge=1, le=65535)] = 80
    timeout: Seconds | None = None


class RunBody(CommandBody):
    """A process to run to its end. `input` is its whole stdin (base64 in JSON)."""

    input: bytes | None = None


class CreateBody(Model):
    """A sandbox to create. Without `command` it waits for execs until it is killed."""

    image: str = "base"
    name: Name = ""
    arch: str = ""
    vmm: str = "auto"
    cpus: PositiveInt = 1
    memory_mib: PositiveInt = 512
    disk_bytes: PositiveInt = 10 << 30
    env: dict[str, str] = {}
    workdir: str = ""
    user: str = ""
    hostname: str = ""
    labels: dict[str, str] = {}
    ttl: Seconds | None = None
    auto_remove: bool = False
    command: CommandBody | None = None


class SandboxView(Model):
    """What is known of a sandbox. Times are UNIX seconds."""

    id: str
    name: str
    state: str
    image: str
    image_id: str
    arch: str
    vmm: str
    accelerator: str
    cpus: int
    memory_mib: int
    disk_bytes: int
    created: float
    started: float | None = None
    finished: float | None = None
    pid: int | None = None
    command: list[str] = []
    exit_code: int | None = None
    error: str = ""
    labels: dict[str, str] = {}
    env: dict[str, str] = {}
    workdir: str = ""
    user: str = ""
    hostname: str = ""
    ttl: float | None = None
    auto_remove: bool = False
    confinement: list[str] = []
    #: Milliseconds each step of the start took.
    timings: dict[str, float] = {}


class RunResult(Model):
    """A finished process with its whole output (base64 in JSON)."""

    exit_code: int
    signal: int = 0
    timed_out: bool = False
    stdout: bytes = b""
    stderr: bytes = b""


class StopBody(Model):
    timeout: Annotated[float, Meta(ge=0, le=86_400)] = 10.0


class SignalBody(Model):
    """`signal` goes to the main process; without it the VM itself is ended, now."""

    signal: Annotated[int, Meta(ge=1, le=64)] | None = None


class RenameBody(Model):
    path: str
    to: str


class MkdirBody(Model):
    path: str
    mode: Annotated[int, Meta(ge=0, le=0o7777)] = 0o755
    user: str = ""
    parents: bool = True


class FileInfo(Model):
    name: str
    path: str
    kind: str  # file dir link char block fifo socket
    size: int
    mode: int
    uid: int
    gid: int
    mtime: float
    target: str = ""


class ImageView(Model):
    id: str
    names: list[str]
    arch: str
    size: int
    created: float
    fstype: str
    config: dict[str, object] = {}


class TemplateView(Model):
    key: str
    arch: str
    cpus: int
    memory_mib: int
    vmm: str
    accelerator: str
    image: str  # "" for a bare one
    created: float
    size: int  # bytes really on disk
    current: bool  # False: made by another version, kernel or machine; safe to remove


class TemplateBody(Model):
    arch: str = ""
    cpus: PositiveInt = 1
    memory_mib: PositiveInt = 512
    vmm: str = "auto"
    image: str = ""


class EngineView(Model):
    version: str
    pid: int
    home: str
    started: float
    sandboxes: int
    running: int
    rss_bytes: int


class VersionView(Model):
    version: str
    api: str
    pid: int


class ProcView(Model):
    """A process the agent knows: running, or ended and not yet claimed."""

    proc: str
    pid: int
    ended: bool = False
    exit_code: int | None = None
    signal: int = 0


class MetricsView(Model):
    """What the guest says of itself: mem_total, mem_available, load1_milli, uptime_ms …"""

    values: dict[str, int]


class LogRecord(Model):
    """A line of GET …/logs: bytes one of the outputs (1 stdout, 2 stderr) carried at `time`."""

    time: float
    channel: int
    data: bytes


class EventRecord(Model):
    """A line of GET /v1/events."""

    time: float
    kind: str
    sandbox: str = ""
    details: dict[str, object] = {}


class Removed(Model):
    """The answer to a DELETE."""

    removed: str


class ErrorBody(Model):
    """Every error, everywhere: `--json` prints the same."""

    code: str
    message: str
    hint: str = ""
    details: dict[str, object] = {}


class ErrorAnswer(Model):
    error: ErrorBody


# Messages on a stream (WebSocket). Binary messages are one channel byte (0 stdin, 1 stdout,
# 2 stderr), then data. Text messages are JSON of these, tagged by `type`.


class RunStart(Struct, tag="run", forbid_unknown_fields=True, kw_only=True):
    """First message on /v1/run: create a sandbox, run a command, end it when the client goes."""

    sandbox: CreateBody
    command: CommandBody


class ExecStart(Struct, tag="exec", forbid_unknown_fields=True, kw_only=True):
    """First message on /v1/sandboxes/{ref}/exec."""

    command: CommandBody
    detach: bool = False


class Resize(Struct, tag="resize", forbid_unknown_fields=True, kw_only=True):
    rows: Annotated[int, Meta(ge=1, le=65535)]
    cols: Annotated[int, Meta(ge=1, le=65535)]


class Signal(Struct, tag="signal", forbid_unknown_fields=True, kw_only=True):
    signal: Annotated[int, Meta(ge=1, le=64)]


class Eof(Struct, tag="eof", forbid_unknown_fields=True, kw_only=True):
    """No more stdin."""


class Detach(Struct, tag="detach", forbid_unknown_fields=True, kw_only=True):
    """Leave the process running and close the stream. Without it a client that goes away ends
    its process."""


class Room(Struct, tag="room", kw_only=True):
    """The process took `bytes` of stdin. A client that keeps at most STDIN_WINDOW bytes without
    their `room` never has a signal or resize wait behind unread stdin; others may ignore it."""

    bytes: int


class Progress(Struct, tag="progress", kw_only=True):
    """A long step of a start, e.g. building a template; `done` of `total` (0 = unknown)."""

    step: str
    done: float = 0
    total: float = 0


class Started(Struct, tag="started", kw_only=True):
    sandbox: str
    proc: str
    pid: int


class Exited(Struct, tag="exited", kw_only=True):
    exit_code: int
    signal: int = 0
    timed_out: bool = False


class Failed(Struct, tag="error", kw_only=True):
    error: ErrorBody


class Created(Struct, tag="created", kw_only=True):
    """Last line of a POST that was asked for its progress (`Accept: application/jsonl`)."""

    sandbox: SandboxView


class Built(Struct, tag="built", kw_only=True):
    template: TemplateView


ClientMessage = RunStart | ExecStart | Resize | Signal | Eof | Detach
ServerMessage = Progress | Started | Exited | Failed
#: Everything a stream's text messages can be; `Room` is for the client library alone.
StreamMessage = Progress | Started | Exited | Failed | Room
#: Lines of a POST that was asked for its progress.
ProgressLine = Progress | Created | Built | Failed

encode = msgspec.json.Encoder().encode
