"""Tables, times, sizes, logs, progress and errors."""

from __future__ import annotations

import io
import json

import pytest

from sporevm.api.models import LogRecord, SandboxView
from sporevm.cli import kill, ls, progress
from sporevm.cli.foreground import exit_status
from sporevm.cli.logs import last_lines
from sporevm.cli.main import main
from sporevm.cli.output import ago, safe, shorten, size, span, table
from sporevm.cli.progress import Progress, Ticking
from sporevm.cli.report import report
from sporevm.errors import (
    AgentError,
    DeadlineExceeded,
    EngineError,
    GuestError,
    NotFound,
    SporeError,
    StateError,
    UsageError,
    VmmError,
)


def test_table() -> None:
    text = table(("ID", "NAME"), [("1", "long name"), ("22", "")])
    assert text == "ID   NAME\n1    long name\n22"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 << 20, "200 MiB"), (5 << 40, "5.0 TiB")],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 seconds"),
        (1, "1 second"),
        (59.9, "59 seconds"),
        (60, "1 minute"),
        (7200, "2 hours"),
        (86400 * 3, "3 days"),
        (86400 * 30, "4 weeks"),
        (86400 * 800, "2 years"),
    ],
)
def test_span(seconds: float, text: str) -> None:
    assert span(seconds) == text
    assert ago(1000 - seconds, 1000) == f"{text} ago"


def test_what_a_guest_chose_cannot_steer_the_terminal() -> None:
    assert safe("a\x1b[2Jb\n") == "a?[2Jb?"
    assert shorten("abcdefgh", 6) == "abc..."


# -- ls --------------------------------------------------------------------------------------------


def view(**changes: object) -> SandboxView:
    facts: dict[str, object] = {
        "id": "abc", "name": "n", "state": "running", "image": "base", "image_id": "f" * 64,
        "arch": "x86_64", "vmm": "qemu", "accelerator": "tcg", "cpus": 1, "memory_mib": 512,
        "disk_bytes": 1, "created": 0.0,
    }  # fmt: skip
    return SandboxView(**(facts | changes))  # type: ignore[arg-type]


def test_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    assert ls.state(view(started=400.0)) == "up 10 minutes"
    assert ls.state(view(state="creating")) == "creating"
    assert ls.state(view(state="stopped", finished=940.0)) == "stopped 1 minute ago"
    ended = view(state="stopped", finished=940.0, exit_code=3)
    assert ls.state(ended) == "exited (3) 1 minute ago"


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("name=eb", True),
        ("name=x", False),
        ("state=running", True),
        ("image=base", True),
        ("arch=aarch64", False),
        ("label=job", True),
        ("label=job=nightly", True),
        ("label=job=x", False),
        ("label=other", False),
    ],
)
def test_filters(text: str, fits: bool) -> None:
    assert ls._test(text)(view(name="web", labels={"job": "nightly"})) is fits


@pytest.mark.parametrize("text", ["name", "colour=red", "label"])
def test_filters_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        ls._test(text)


# -- logs and signals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "count", "left"),
    [
        ([b"a\nb\nc\n"], 2, b"b\nc\n"),
        ([b"a\nb\nc"], 2, b"b\nc"),
        ([b"a\nb", b"b\nc", b"c\n"], 2, b"bb\ncc\n"),
        ([b"a\n", b"b\n", b"c\n"], 1, b"c\n"),
        ([b"a\n", b"\n"], 1, b"\n"),
        ([b"a\nb\n"], 9, b"a\nb\n"),
        ([b"a\n"], 0, b""),
        ([], 3, b""),
    ],
)
def test_last_lines(pieces: list[bytes], count: int, left: bytes) -> None:
    records = [LogRecord(time=0.0, channel=1, data=piece) for piece in pieces]
    assert b"".join(record.data for record in last_lines(records, count)) == left


@pytest.mark.parametrize(
    ("name", "number"), [("HUP", 1), ("sighup", 1), ("SIGTERM", 15), ("9", 9), ("64", 64)]
)
def test_signals(name: str, number: int) -> None:
    assert kill.number_of(name) == number


@pytest.mark.parametrize("name", ["0", "65", "TREM", "-1"])
def test_signals_that_are_none(name: str) -> None:
    with pytest.raises(UsageError):
        kill.number_of(name)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (GuestError("no such program", errno=2), 127),
        (GuestError("not executable", errno=13), 126),
        (GuestError("not a program", errno=8), 126),
        (VmmError("died"), 125),
        (AgentError("silent"), 125),
        (EngineError("gone"), 125),
        (DeadlineExceeded("late"), 124),
        (UsageError("wrong"), 2),
        (NotFound("nothing"), 1),
        (StateError("no", current="stopped", required="running"), 1),
    ],
)
def test_exit_statuses_of_the_foreground(error: SporeError, status: int) -> None:
    assert exit_status(error) == status


def test_errors_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(NotFound("no\x1b[2J\nsuch", hint="see: spore ls"), as_json=False) == 1
    assert capsys.readouterr().err == "spore: no [2J such\n  see: spore ls\n"


def test_errors_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    error = StateError("it has ended", current="stopped", required="running", hint="start it")
    assert report(error, as_json=True) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == {
        "error": {
            "code": "state",
            "message": "it has ended",
            "hint": "start it",
            "details": {"current": "stopped", "required": "running"},
        }
    }


def test_errors_in_the_command_line_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--json", "--filter", "nonsense"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"
    assert main(["ls", "--json", "--nonsense"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_a_bug_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("sporevm.cli.main.run", broken)
    assert main(["ls"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("spore: internal error: ZeroDivisionError: oh\n")
    assert "--debug" in err
    assert "Traceback" not in err


# -- progress --------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress.time, "monotonic", found)
    return found


def test_a_pipe_gets_a_line_for_each_slow_step(clock: Clock) -> None:
    stream = io.StringIO()
    shown = Progress(stream)
    shown.step("quick")
    clock.now += 0.1
    shown.step("building the template")
    clock.now += 2.1
    shown.tick()
    shown.tick()
    shown.step("next", 1, 2)
    shown.done()
    assert stream.getvalue() == "building the template ... done (2.1 s)\n"


def test_a_pipe_gets_every_step_if_asked_for(clock: Clock) -> None:
    stream = io.StringIO()
    shown = Progress(stream, verbose=True)
    shown.step("one")
    shown.step("two")
    clock.now += 1
    shown.failed()
    assert stream.getvalue() == "one ... done (0.0 s)\ntwo ... failed (1.0 s)\n"


def test_a_terminal_gets_one_line_that_goes_away(clock: Clock) -> None:
    stream = io.StringIO()
    shown = Progress(stream, terminal=True)
    shown.step("downloading", 10, 40)
    assert stream.getvalue() == ""
    clock.now += 1
    shown.tick()
    assert "downloading  [######" in stream.getvalue()
    assert " 25%  1.0 s" in stream.getvalue()
    shown.done()
    assert stream.getvalue().endswith("\r\x1b[K")
    assert "\n" not in stream.getvalue()


def test_quiet_is_silent(clock: Clock) -> None:
    stream = io.StringIO()
    shown = Progress(stream, quiet=True, terminal=True, verbose=True)
    shown.step("one")
    clock.now += 9
    shown.tick()
    shown.note("said")
    shown.done()
    assert stream.getvalue() == ""
    assert not shown.active


def test_ticking_tells_a_failure() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError), Ticking(Progress(stream, verbose=True)) as ticking:
        ticking.step("one")
        raise ValueError
    assert stream.getvalue().startswith("one ... failed (")


def test_a_closed_stream_does_not_stop_the_work(clock: Clock) -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    shown = Progress(Gone(), verbose=True)
    shown.step("one")
    shown.done()
