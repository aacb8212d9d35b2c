"""Numbers of the guest protocol (docs/protocol.md), named once."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

VERSION: Final = 1

SYNC_MAGIC: Final = bytes.fromhex("F59AC3E1B78DD296AFE891CBF0A4BD87")
ACK_MAGIC: Final = bytes.fromhex("D186FAB39CE7A5C88BF492BEE097CDAA")
NONCE_BYTES: Final = 16
RECORD_BYTES: Final = 40
#: Completes any frame the agent may be in the middle of; the rest of it reads as NOPs.
FLUSH_BYTES: Final = 65_552
#: Most that is skipped in the search for an ACK.
MAX_SKIP: Final = 1 << 20

HEADER_BYTES: Final = 12
MAX_PAYLOAD: Final = 65_536
WINDOW: Final = 262_144
MAX_STREAMS: Final = 256
MAX_STREAM_ID: Final = 0xFFFF_FFFF
MAX_PING: Final = 64
MAX_MESSAGE: Final = 4_096
MAX_LIST_BYTES: Final = 64 << 20

# Frame types. Plain ints: they are compared for every frame.
NOP: Final = 0
HELLO: Final = 1
OPEN: Final = 2
REPLY: Final = 3
DATA: Final = 4
CREDIT: Final = 5
EOF: Final = 6
EVENT: Final = 7
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

TYPE_NAMES: Final = (
    "NOP", "HELLO", "OPEN", "REPLY", "DATA", "CREDIT", "EOF", "EVENT", "CLOSE", "PING", "PONG",
)  # fmt: skip

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2


class Tag(IntEnum):
    ERRNO = 1
    MESSAGE = 2
    VERSION = 3
    BOOT_ID = 4
    PATH = 5
    PATH2 = 6
    MODE = 7
    UID = 8
    GID = 9
    SIZE = 10
    OFFSET = 11
    FLAGS = 12
    MTIME_NS = 13
    KIND = 14
    ENTRY = 15
    TARGET = 16
    ARG = 20
    ENV = 21
    CWD = 22
    USER = 23
    PROC = 24
    ROWS = 25
    COLS = 26
    SIGNAL = 27
    EXIT_CODE = 28
    TERM_SIGNAL = 29
    PID = 30
    TIMEOUT_MS = 31
    STDOUT_SEEN = 32
    STDERR_SEEN = 33
    STDIN_SEEN = 34
    HOSTNAME = 40
    MACHINE_ID = 41
    CLOCK_NS = 42
    ENTROPY = 43
    ROOT_DRIVE = 44
    ROOT_FSTYPE = 45
    SCRATCH_DRIVE = 46
    SCRATCH_FSTYPE = 47
    VOLUME = 48
    FILE = 49
    DRIVE = 50
    FSTYPE = 51
    DATA = 52
    NAME = 53
    VALUE = 54
    TAG_ID = 55
    PORT = 60
    HOST = 61


_T = Tag
U64_TAGS: Final = frozenset(
    {_T.ERRNO, _T.MODE, _T.UID, _T.GID, _T.SIZE, _T.OFFSET, _T.FLAGS, _T.MTIME_NS, _T.KIND}
    | {_T.ROWS, _T.COLS, _T.SIGNAL, _T.EXIT_CODE, _T.TERM_SIGNAL, _T.PID, _T.TIMEOUT_MS}
    | {_T.STDOUT_SEEN, _T.STDERR_SEEN, _T.STDIN_SEEN, _T.CLOCK_NS, _T.VALUE, _T.PORT}
)
BLOB_TAGS: Final = frozenset({_T.ENTRY, _T.ENTROPY, _T.VOLUME, _T.FILE, _T.DATA})
STR_TAGS: Final = frozenset(_T) - U64_TAGS - BLOB_TAGS


class Service(IntEnum):
    CONFIGURE = 1
    EXEC = 2
    ATTACH = 3
    PROCS = 4
    KILL = 5
    FILE_READ = 6
    FILE_WRITE = 7
    STAT = 8
    LIST = 9
    REMOVE = 10
    RENAME = 11
    MKDIR = 12
    METRICS = 13
    TCP_CONNECT = 14
    SYNC_FS = 15
    QUIESCE = 16
    SHUTDOWN = 17


class Rules(NamedTuple):
    """What may happen in a stream of a service, besides one REPLY and one CLOSE."""

    host_sends: tuple[int, ...] = ()  # channels
    agent_sends: tuple[int, ...] = ()
    event: bool = False  # the agent sends one EVENT, behind the EOF of all its channels


ONE_SHOT: Final = Rules()
RULES: Final = dict.fromkeys(Service, ONE_SHOT) | {
    Service.EXEC: Rules((STDIN,), (STDOUT, STDERR), event=True),
    Service.ATTACH: Rules((STDIN,), (STDOUT, STDERR), event=True),
    Service.FILE_READ: Rules((), (1,)),
    Service.FILE_WRITE: Rules((0,), (), event=True),
    Service.LIST: Rules((), (1,)),
    Service.TCP_CONNECT: Rules((0,), (1,)),
}

# Values of FLAGS, by where they stand.
HELLO_ROOT_MOUNTED: Final = 1
EXEC_TTY: Final = 1
EXEC_STDIN: Final = 2
EXEC_CLEAR_ENV: Final = 4
EXIT_TIMED_OUT: Final = 1
PROC_ENDED: Final = 1
WRITE_APPEND: Final = 1
MAKE_PARENTS: Final = 2
WRITE_EXCLUSIVE: Final = 4
STAT_FOLLOW: Final = 1
REMOVE_RECURSIVE: Final = 1
SHUTDOWN_REBOOT: Final = 1
CLOSE_KILL: Final = 1
VOLUME_READ_ONLY: Final = 1
