"""An engine's socket that plays a script: what a real engine does only when it is broken or slow.

It speaks real WebSocket frames over a real Unix socket, to a real `spore` process.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Gone(Exception):
    """The client has closed the connection."""


class Peer:
    """The engine's side of one stream."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._file = sock.makefile("rb")
        self.path = ""
        self.first: dict[str, Any] = {}

    def accept(self) -> None:
        """Answer the upgrade and read the first message."""
        self.read_request()
        self.sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
        self.first = self.text()

    def read_request(self) -> None:
        lines = []
        while (line := self._file.readline()) not in (b"\r\n", b""):
            lines.append(line)
        if not lines:
            raise Gone
        self.path = lines[0].split()[1].decode()

    def started(self) -> None:
        self.say(type="started", sandbox="abc", proc="main", pid=7)

    def settle(self) -> None:
        """Return when the client has taken in all that was sent."""
        self.send(PING, b"settled")
        assert self.receive() == (PONG, b"settled")

    def exited(self, code: int = 0, **more: object) -> None:
        self.say(type="exited", exit_code=code, **more)

    def say(self, **message: object) -> None:
        self.send(TEXT, json.dumps(message).encode())

    def out(self, data: bytes, channel: int = 1) -> None:
        self.send(BINARY, bytes((channel,)) + data)

    def send(self, kind: int, data: bytes) -> None:
        size = len(data)
        if size < 126:
            head = struct.pack(">BB", 0x80 | kind, size)
        elif size < 1 << 16:
            head = struct.pack(">BBH", 0x80 | kind, 126, size)
        else:
            head = struct.pack(">BBQ", 0x80 | kind, 127, size)
        self.sock.sendall(head + data)

    def close(self) -> None:
        self._file.close()
        self.sock.close()

    def receive(self) -> tuple[int, bytes]:
        head = self._exactly(2)
        size = head[1] & 0x7F
        if size >= 126:
            size = int.from_bytes(self._exactly(2 if size == 126 else 8), "big")
        assert self._exactly(4) == bytes(4)
        return head[0] & 0x0F, self._exactly(size)

    def text(self) -> dict[str, Any]:
        kind, data = self.receive()
        assert kind == TEXT, (kind, data)
        found: dict[str, Any] = json.loads(data)
        return found

    def until(self, kind: str) -> dict[str, Any]:
        """The next message of a type; others are skipped."""
        while True:
            what, data = self.receive()
            if what == TEXT and json.loads(data)["type"] == kind:
                found: dict[str, Any] = json.loads(data)
                return found

    def gone(self) -> bool:
        """Wait until the client has closed the connection."""
        try:
            while True:
                self.receive()
        except (Gone, ConnectionError):
            return True

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise Gone
        return data


Script = Callable[[Peer], None]


@contextmanager
def playing(home: Path, *scripts: Script) -> Iterator[list[BaseException]]:
    """Serve one connection for each script. On leaving, all must have been played to the end."""
    home.mkdir(exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(home / "spored.sock"))
    listener.listen()
    listener.settimeout(20)
    failures: list[BaseException] = []

    def serve() -> None:
        for script in scripts:
            try:
                sock, _ = listener.accept()
                sock.settimeout(20)
                with closing(Peer(sock)) as peer:
                    script(peer)
            except BaseException as error:  # noqa: BLE001  raised again by the test itself
                failures.append(error)
                return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield failures
    finally:
        thread.join(30)
        listener.close()
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def argv(home: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "sporevm.cli", "--home", str(home), *words]


def spore(
    home: Path, *words: str, input: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        argv(home, *words),
        input=input, capture_output=True, timeout=30, check=False, env=os.environ | (env or {}),
    )  # fmt: skip


def begin(home: Path, words: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv(home, *words), **options)
