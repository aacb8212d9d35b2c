"""Sessions of `run`, `exec` and `shell`: real processes and terminals, a scripted engine."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sporevm.cli.session import STDIN_WINDOW
from tests.fake.cli_peer import BINARY, PING, PONG, Gone, Peer, begin, playing, spore


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sc-") as path:
        yield Path(path)


def simple(code: int = 0, out: bytes = b"", err: bytes = b"", **more: object) -> object:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.started()
        if out:
            peer.out(out)
        if err:
            peer.out(err, 2)
        peer.exited(code, **more)

    return script


# -- what is asked for -----------------------------------------------------------------------------


def test_exec_asks_for_what_was_typed(home: Path) -> None:
    seen: list[Peer] = []

    def script(peer: Peer) -> None:
        peer.accept()
        seen.append(peer)
        peer.exited()

    with playing(home, script):
        done = spore(home, "exec", "-u", "nobody", "-e", "A=1", "my box", "--", "ls", "-l")
    assert done.returncode == 0, done.stderr
    assert seen[0].path == "/v1/sandboxes/my%20box/exec"
    command = seen[0].first["command"]
    assert seen[0].first["type"] == "exec"
    assert (command["argv"], command["user"], command["env"]) == (
        ["ls", "-l"],
        "nobody",
        {"A": "1"},
    )
    assert (command["tty"], command["stdin"]) == (False, False)


def test_run_asks_for_a_sandbox(home: Path) -> None:
    seen: list[Peer] = []

    def script(peer: Peer) -> None:
        peer.accept()
        seen.append(peer)
        peer.exited()

    with playing(home, script):
        assert spore(home, "run", "-m", "1G", "alpine", "id").returncode == 0
    assert seen[0].path == "/v1/run"
    assert seen[0].first["sandbox"] == {"image": "alpine", "memory_mib": 1024, "auto_remove": True}
    assert seen[0].first["command"]["argv"] == ["id"]


def test_first_messages_are_what_the_api_takes(home: Path) -> None:
    import msgspec

    from sporevm.api.models import ExecStart, RunStart

    raw: list[object] = []

    def script(peer: Peer) -> None:
        peer.accept()
        raw.append(peer.first)
        peer.exited()

    with playing(home, script, script, script):
        spore(home, "run", "--timeout", "5", "--", "id")
        spore(home, "exec", "-i", "box", "--", "id")
        spore(home, "shell", "box")
    msgspec.convert(raw[0], RunStart)
    msgspec.convert(raw[1], ExecStart)
    msgspec.convert(raw[2], ExecStart)


# -- how it ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ({"code": 0}, 0),
        ({"code": 42}, 42),
        ({"code": 137, "signal": 9}, 137),
        ({"code": 137, "signal": 9, "timed_out": True}, 124),
    ],
)
def test_exit_status(home: Path, ending: dict[str, object], status: int) -> None:
    with playing(home, simple(**ending)):  # type: ignore[arg-type]
        assert spore(home, "exec", "box", "true").returncode == status


def test_outputs_stay_apart(home: Path) -> None:
    with playing(home, simple(3, b"out\x00\xff", b"err")):
        done = spore(home, "exec", "box", "x")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\x00\xff", b"err")


def failing(code: str, **details: object) -> object:
    def script(peer: Peer) -> None:
        peer.accept()
        error = {"code": code, "message": "it went wrong", "hint": "do this", "details": details}
        peer.say(type="error", error=error)

    return script


@pytest.mark.parametrize(
    ("code", "details", "status"),
    [
        ("guest", {"errno": 2}, 127),
        ("guest", {"errno": 13}, 126),
        ("vmm", {}, 125),
        ("agent", {}, 125),
        ("protocol", {}, 125),
        ("engine", {}, 125),
        ("deadline", {}, 124),
        ("not_found", {}, 1),
        ("usage", {}, 2),
        ("of the future", {}, 1),
    ],
)
def test_failures(home: Path, code: str, details: dict[str, object], status: int) -> None:
    with playing(home, failing(code, **details)):  # type: ignore[arg-type]
        done = spore(home, "exec", "box", "x")
    assert done.returncode == status
    assert done.stderr == b"spore: it went wrong\n  do this\n"


def test_failures_as_json(home: Path) -> None:
    with playing(home, failing("not_found")):  # type: ignore[arg-type]
        done = spore(home, "--json", "exec", "box", "x")
    assert json.loads(done.stdout)["error"]["code"] == "not_found"


def test_a_refused_upgrade(home: Path) -> None:
    body = json.dumps({"error": {"code": "not_found", "message": "no sandbox box"}}).encode()

    def script(peer: Peer) -> None:
        peer.read_request()
        head = f"HTTP/1.1 404 Not Found\r\nContent-Length: {len(body)}\r\n\r\n"
        peer.sock.sendall(head.encode() + body)
        peer.gone()

    with playing(home, script):
        done = spore(home, "exec", "box", "x")
    assert (done.returncode, done.stderr) == (1, b"spore: no sandbox box\n")


@pytest.mark.parametrize("when", ["before the upgrade", "after it", "while it runs"])
def test_an_engine_that_dies(home: Path, when: str) -> None:
    def script(peer: Peer) -> None:
        if when == "before the upgrade":
            return
        peer.accept()
        if when == "while it runs":
            peer.started()
            peer.out(b"half")

    with playing(home, script):
        done = spore(home, "exec", "box", "x")
    assert done.returncode == 125
    assert done.stderr.startswith(b"spore: the engine closed the connection\n")


def test_what_is_no_engine(home: Path) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        peer.gone()

    with playing(home, script):
        done = spore(home, "exec", "box", "x")
    assert done.returncode == 125
    assert b"is no engine" in done.stderr


def test_pings_are_answered(home: Path) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.started()
        peer.send(PING, b"there?")
        assert peer.receive() == (PONG, b"there?")
        peer.exited()

    with playing(home, script):
        assert spore(home, "exec", "box", "x").returncode == 0


# -- input and output ------------------------------------------------------------------------------


def test_no_input_without_i(home: Path) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        assert peer.first["command"]["stdin"] is False
        peer.started()
        peer.exited()
        assert peer.gone()

    with playing(home, script):
        assert spore(home, "exec", "box", "cat", input=b"not for you").returncode == 0


def echo(peer: Peer) -> None:
    """`cat`, an engine that gives room as it goes."""
    peer.accept()
    peer.started()
    while True:
        kind, data = peer.receive()
        if kind == BINARY:
            assert data[0] == 0
            peer.say(type="room", bytes=len(data) - 1)
            peer.out(data[1:])
        elif json.loads(data)["type"] == "eof":
            break
    peer.exited()


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_input_comes_back(home: Path, size: int) -> None:
    data = os.urandom(size)
    with playing(home, echo):
        done = spore(home, "exec", "-i", "box", "cat", input=data)
    assert (done.returncode, done.stdout) == (0, data)


def test_closed_input_is_an_end(home: Path) -> None:
    with playing(home, echo):
        client = begin(
            home, ["exec", "-i", "box", "cat"], stdin=None, preexec_fn=lambda: os.close(0)
        )
        assert client.wait(20) == 0


@pytest.mark.parametrize("closed", [0, 1])
def test_a_closed_stream_is_not_the_connection(home: Path, closed: int) -> None:
    """A new descriptor gets the lowest free number, and that would be the closed stream's."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.started()
        peer.settle()
        standing_in = Path(f"/proc/{client.pid}/fd/{closed}").readlink()
        if closed:
            peer.out(b"lost", closed)
            with pytest.raises((Gone, ConnectionError)):  # and the output does not come back
                peer.receive()
        else:
            peer.exited()
        assert standing_in == Path(os.devnull)

    with playing(home, script):
        client = begin(home, ["exec", "box", "x"], preexec_fn=lambda: os.close(closed))
        client.wait(20)


def test_input_waits_for_room_and_signals_do_not(home: Path) -> None:
    """A process that reads nothing: at most a window is sent, and Ctrl-C gets through."""
    full = []

    def script(peer: Peer) -> None:
        peer.accept()
        peer.started()
        taken = 0
        while taken < STDIN_WINDOW:
            kind, data = peer.receive()
            assert kind == BINARY
            taken += len(data) - 1
        full.append(taken)
        os.kill(client.pid, signal.SIGINT)
        assert peer.receive() == (1, b'{"type": "signal", "signal": 2}')
        peer.exited(130, signal=2)

    with Path("/dev/zero").open("rb") as zeros, playing(home, script):
        client = begin(home, ["exec", "-i", "box", "sleep"], stdin=zeros)
        assert client.wait(20) == 130
    assert full == [STDIN_WINDOW]


def test_a_slow_reader_slows_the_engine_and_loses_nothing(home: Path) -> None:
    sent = bytes(range(256)) * 4096 * 8

    def script(peer: Peer) -> None:
        peer.accept()
        peer.started()
        for start in range(0, len(sent), 60_000):
            peer.out(sent[start : start + 60_000])
        peer.exited(5)

    with playing(home, script):
        client = begin(home, ["exec", "box", "x"], stdout=subprocess.PIPE)
        assert client.stdout is not None
        parts = []
        while part := client.stdout.read1(200_000):
            parts.append(part)
        assert client.wait(20) == 5
        client.stdout.close()
    assert b"".join(parts) == sent


def test_a_reader_that_goes_away_ends_the_session(home: Path) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.started()
        try:
            while True:
                peer.out(b"y\n" * 10_000)
        except ConnectionError:
            pass

    with playing(home, script):
        client = begin(home, ["exec", "box", "yes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert client.stdout is not None
        assert client.stderr is not None
        assert client.stdout.read(2) == b"y\n"
        client.stdout.close()
        assert client.wait(20) == 141
        assert client.stderr.read() == b""
        client.stderr.close()


def test_detach(home: Path) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        assert peer.first["detach"] is True
        peer.say(type="started", sandbox="abc", proc="p-1", pid=7)
        assert peer.gone()

    with playing(home, script):
        done = spore(home, "exec", "-d", "box", "x")
    assert (done.returncode, done.stdout) == (0, b"p-1\n")


# -- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_process_each_time(home: Path, number: signal.Signals) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.started()
        peer.settle()
        for _ in range(3):
            os.kill(client.pid, number)
            assert peer.text() == {"type": "signal", "signal": int(number)}
        peer.exited(7)

    with playing(home, script):
        client = begin(home, ["exec", "box", "x"])
        assert client.wait(20) == 7


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_before_anything_runs_cancel(
    home: Path, number: signal.Signals, status: int
) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        os.kill(client.pid, number)
        assert peer.gone()

    with playing(home, script):
        client = begin(home, ["run", "--", "x"], stderr=subprocess.PIPE)
        _, err = client.communicate(timeout=20)
    assert (client.returncode, err) == (status, b"")


def test_an_ignored_signal_stays_ignored(home: Path) -> None:
    """As `nohup` wants it."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.started()
        peer.settle()
        os.kill(client.pid, signal.SIGHUP)
        os.kill(client.pid, signal.SIGUSR1)
        assert peer.text() == {"type": "signal", "signal": int(signal.SIGUSR1)}
        peer.exited()

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with playing(home, script):
        client = begin(home, ["exec", "box", "x"], preexec_fn=ignore)
        assert client.wait(20) == 0


# -- terminals -------------------------------------------------------------------------------------


class Terminal:
    """A pty with a `spore` in it, as in a user's window."""

    def __init__(self, home: Path, *words: str) -> None:
        self.master, slave = pty.openpty()
        self.resize(30, 100)
        self.before = termios.tcgetattr(slave)
        self.slave = slave

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        self.client = begin(
            home, words, stdin=slave, stdout=slave, stderr=slave, preexec_fn=own_terminal
        )
        self.seen = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.client.poll() is None:
            self.client.kill()
        self.client.wait()
        for fd in (self.master, self.slave):
            os.close(fd)

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def read_until(self, text: bytes, seconds: float = 20) -> bytes:
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], deadline - time.monotonic())
            assert ready, f"only saw {self.seen!r}"
            self.seen += os.read(self.master, 4096)
        return self.seen

    def restored(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before


def test_a_terminal_is_raw_while_the_process_runs(home: Path) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        command = peer.first["command"]
        assert (command["tty"], command["rows"], command["cols"]) == (True, 30, 100)
        peer.started()
        assert peer.text() == {"type": "resize", "rows": 30, "cols": 100}
        peer.out(b"$ ")
        # Keys come at once, and Ctrl-C, Ctrl-Z and Ctrl-D are keys.
        assert peer.receive() == (BINARY, b"\0a\x03\x1a\x04")
        peer.out(b"bye\r\n")
        peer.exited(4)

    with playing(home, script), Terminal(home, "exec", "-it", "box", "sh") as window:
        window.read_until(b"$ ")
        window.type(b"a\x03\x1a\x04")
        window.read_until(b"bye\r\n")
        assert window.client.wait(20) == 4
        assert window.restored()
        assert b"a\x03" not in window.seen, "the terminal must not echo"


def test_resizes_are_passed_on(home: Path) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.started()
        peer.until("resize")
        window.resize(50, 132)
        assert peer.until("resize") == {"type": "resize", "rows": 50, "cols": 132}
        peer.exited()

    with Terminal(home, "shell", "box") as window, playing(home, script):
        assert window.client.wait(20) == 0


@pytest.mark.parametrize("ending", ["engine", "error", "term"])
def test_the_terminal_is_restored_whatever_happens(home: Path, ending: str) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.started()
        peer.until("resize")
        if ending == "error":
            error = {"code": "vmm", "message": "the VM died"}
            peer.say(type="error", error=error)
            peer.gone()
        elif ending == "term":
            os.kill(window.client.pid, signal.SIGTERM)
            assert peer.until("signal") == {"type": "signal", "signal": 15}
            peer.exited(143, signal=15)

    with playing(home, script), Terminal(home, "exec", "-it", "box", "sh") as window:
        assert window.client.wait(20) == (143 if ending == "term" else 125)
        assert window.restored()


def test_a_closed_window_ends_the_session(home: Path) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.started()
        peer.until("resize")
        os.kill(window.client.pid, signal.SIGHUP)
        assert peer.gone()

    with playing(home, script), Terminal(home, "exec", "-it", "box", "sh") as window:
        assert window.client.wait(20) == 129
        assert window.restored()


def test_ctrl_c_before_the_process_runs_cancels(home: Path) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        window.type(b"\x03")
        assert peer.gone()

    with playing(home, script), Terminal(home, "run", "-it", "--", "sh") as window:
        assert window.client.wait(20) == 130
        assert window.restored()


def test_it_needs_a_terminal(home: Path) -> None:
    done = spore(home, "exec", "-it", "box", "sh")
    assert done.returncode == 2
    assert b"standard input is not a terminal" in done.stderr


# -- progress --------------------------------------------------------------------------------------


def slow_start(peer: Peer) -> None:
    peer.accept()
    peer.say(type="progress", step="building the template", done=0, total=0)
    time.sleep(0.9)  # the time itself is what is shown
    peer.started()
    peer.out(b"ran\n")
    peer.exited()


def test_progress_in_a_pipe(home: Path) -> None:
    with playing(home, slow_start):
        done = spore(home, "run", "--", "x")
    assert done.stdout == b"ran\n"
    assert done.stderr.startswith(b"building the template ... done (0.9 s)\n") or (
        done.stderr.startswith(b"building the template ... done (1.")
    )


def test_progress_on_a_terminal_leaves_nothing(home: Path) -> None:
    with playing(home, slow_start), Terminal(home, "run", "--", "x") as window:
        seen = window.read_until(b"ran\r\n")
    assert b"building the template" in seen
    assert seen.endswith(b"\r\x1b[Kran\r\n")


def test_no_progress_if_quiet(home: Path) -> None:
    with playing(home, slow_start):
        assert spore(home, "run", "-q", "--", "x").stderr == b""
