"""Every verb as a process of its own, against a real engine process that has no VMs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake import cli_peer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sv-") as path:
        engine = subprocess.Popen(
            [sys.executable, "-m", "tests.fake.fake_engine", "--home", path],
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        assert engine.stderr is not None
        for line in engine.stderr:
            if b"ready" in line:
                break
        try:
            yield Path(path)
        finally:
            engine.terminate()
            engine.stderr.read()
            assert engine.wait(20) == 0
            engine.stderr.close()


class Done:
    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.status = done.returncode
        self.out = done.stdout.decode()
        self.err = done.stderr.decode()

    @property
    def json(self) -> object:
        return json.loads(self.out)


@pytest.fixture
def box(home: Path) -> Iterator[str]:
    """A sandbox that waits for commands."""
    name = f"box{os.urandom(3).hex()}"
    made = spore(home, "run", "-d", "--name", name, "-l", "test=yes")
    assert made.status == 0, made.err
    yield name
    spore(home, "rm", "-f", name)


def spore(home: Path, *words: str, input: bytes = b"") -> Done:
    return Done(cli_peer.spore(home, *words, input=input))


# -- running ---------------------------------------------------------------------------------------


def test_run(home: Path) -> None:
    done = spore(home, "run", "--", "sh", "-c", "echo out; echo err >&2; exit 42")
    assert (done.status, done.out, done.err) == (42, "out\n", "err\n")
    assert spore(home, "ls", "-aq").out == ""


def test_run_docker_form(home: Path) -> None:
    assert spore(home, "run", "-e", "A=b c", "base", "printenv", "A").out == "b c\n"


def test_run_keeps_a_named_one(home: Path) -> None:
    assert spore(home, "run", "--name", "kept", "--", "echo", "hi").out == "hi\n"
    assert spore(home, "ls", "-aq").out.count("\n") == 1
    assert spore(home, "logs", "kept").out == "hi\n"
    assert spore(home, "wait", "kept").out == "0\n"
    assert spore(home, "rm", "kept").out == "kept\n"


def test_run_input(home: Path) -> None:
    assert spore(home, "run", "-i", "--", "cat", input=b"in\n").out == "in\n"
    assert spore(home, "run", "--", "cat", input=b"in\n").out == ""


def test_run_timeout(home: Path) -> None:
    assert spore(home, "run", "--timeout", "0.2", "--", "sleep", "60").status == 124


def test_run_without_a_command(home: Path) -> None:
    done = spore(home, "run")
    assert (done.status, done.err.split("\n")[0]) == (2, "spore: no command given")


def test_run_of_an_unknown_image(home: Path) -> None:
    done = spore(home, "run", "nowhere", "true")
    assert (done.status, done.err) == (1, "spore: no image 'nowhere'\n  spore image ls\n")


def test_exec(home: Path, box: str) -> None:
    done = spore(home, "exec", box, "--", "sh", "-c", "kill -9 $$")
    assert done.status == 137
    assert spore(home, "exec", "-i", box, "wc", "-c", input=bytes(1_000_000)).out == "1000000\n"
    assert spore(home, "exec", box, "no-such-program").status == 127
    assert spore(home, "exec", box, "/etc/passwd").status == 126


def test_exec_in_what_is_not_there(home: Path) -> None:
    done = spore(home, "exec", "nobody", "true")
    assert (done.status, done.err) == (
        1, "spore: no sandbox 'nobody'\n  spore ls -a shows them all\n",
    )  # fmt: skip


def test_exec_in_what_has_ended(home: Path, box: str) -> None:
    assert spore(home, "stop", box).out == f"{box}\n"
    done = spore(home, "exec", box, "true")
    assert done.status == 1
    assert "is stopped" in done.err


def test_exec_detached(home: Path, box: str) -> None:
    done = spore(home, "exec", "-d", box, "sleep", "1000")
    assert done.status == 0
    assert done.out.strip()


def test_shell_with_a_script(home: Path, box: str) -> None:
    assert spore(home, "shell", box, input=b"echo $((6*7)); exit 3").out == "42\n"


# -- looking ---------------------------------------------------------------------------------------


def test_ls(home: Path, box: str) -> None:
    text = spore(home, "ls").out
    assert text.startswith("ID  ")
    assert f"   {box}   base " in text
    assert " running " in text or " up " in text
    listed = spore(home, "ls", "--json").json
    assert isinstance(listed, list)
    assert [view["name"] for view in listed] == [box]
    assert spore(home, "ls", "--filter", "label=test=no", "-q").out == ""
    assert spore(home, "--json", "ps", "--filter", f"name={box[2:]}").json == listed


def test_inspect(home: Path, box: str) -> None:
    done = spore(home, "inspect", box, "base", "t1")
    found = done.json
    assert isinstance(found, list)
    assert found[0]["name"] == box
    assert found[1]["names"] == ["base"]
    assert found[2]["key"] == "t1"
    lost = spore(home, "inspect", box, "nothing")
    assert lost.status == 1
    assert len(lost.json) == 1  # type: ignore[arg-type]
    assert "no sandbox, image or template 'nothing'" in lost.err


def test_logs(home: Path) -> None:
    script = "echo one; echo two >&2; echo three; echo four"
    spore(home, "run", "--name", "talker", "--", "sh", "-c", script)
    try:
        done = spore(home, "logs", "talker")
        assert (done.out, done.err) == ("one\nthree\nfour\n", "two\n")
        tail = spore(home, "logs", "--tail", "1", "talker")
        assert tail.out + tail.err in ("four\n", "two\n")  # two outputs have no common order
        stamped = spore(home, "logs", "--timestamps", "talker").out.splitlines()
        assert [line.split()[1] for line in stamped] == ["one", "three", "four"]
        assert spore(home, "logs", "-f", "talker").out == "one\nthree\nfour\n"
    finally:
        spore(home, "rm", "-f", "talker")


# -- ending ----------------------------------------------------------------------------------------


def test_several_at_once(home: Path) -> None:
    for name in ("a1", "a2"):
        spore(home, "run", "-d", "--name", name)
    done = spore(home, "stop", "-t", "0", "a1", "nobody", "a2")
    assert (done.status, done.out) == (1, "a1\na2\n")
    assert done.err.startswith("spore: no sandbox 'nobody'\n")
    assert spore(home, "rm", "a1", "a2").out == "a1\na2\n"


def test_rm_refuses_and_forces(home: Path, box: str) -> None:
    assert spore(home, "rm", box).status == 1
    assert spore(home, "rm", "-f", box, "nobody").out == f"{box}\n"
    assert spore(home, "rm", "-f").status == 0


def test_kill(home: Path) -> None:
    spore(home, "run", "-d", "--name", "k", "--", "sleep", "1000")
    assert spore(home, "kill", "-s", "TERM", "k").out == "k\n"
    assert spore(home, "wait", "k").out == "143\n"
    assert spore(home, "kill", "k").status == 1
    spore(home, "rm", "-f", "k")


# -- the rest --------------------------------------------------------------------------------------


def test_images(home: Path) -> None:
    assert "base" in spore(home, "image", "ls").out
    assert len(spore(home, "image", "ls", "--json").json) == 1  # type: ignore[arg-type]
    assert spore(home, "image", "inspect", "nowhere").status == 1
    done = spore(home, "image", "import", "x", "nowhere")
    assert (done.status, done.err) == (1, "spore: there is no file or directory nowhere\n")


def test_templates(home: Path) -> None:
    assert "t1" in spore(home, "template", "ls").out
    assert spore(home, "template", "build", "-q").out == "t2\n"
    assert spore(home, "template", "rm", "t1").out == "t1\n"
    assert spore(home, "template", "rm").status == 2


def test_daemon(home: Path) -> None:
    status = spore(home, "daemon", "status", "--json").json
    assert isinstance(status, dict)
    assert status["home"] == str(home)
    assert str(status["pid"]) in spore(home, "daemon", "status").out
    facts = spore(home, "version", "--json").json
    assert isinstance(facts, dict)
    assert facts["engine"] == facts["spore"]


def test_daemon_that_does_not_run(tmp_path: Path) -> None:
    assert spore(tmp_path, "daemon", "status", "--json").json is None
    assert spore(tmp_path, "daemon", "stop").out == "it was not running\n"
    assert spore(tmp_path, "daemon", "logs").status == 1
    assert "not running" in spore(tmp_path, "version").out


def test_doctor(home: Path) -> None:
    done = spore(home, "doctor", "--json")
    checks = done.json
    assert isinstance(checks, list)
    named = {check["name"]: check for check in checks}
    assert {"home", "kvm", "accelerator", "kernel", "disk", "memory"} <= set(named)
    assert named["home"]["status"] == "ok"
    fatal = any(check["needed"] and check["status"] == "missing" for check in checks)
    assert done.status == (1 if fatal else 0)
    for check in checks:
        assert check["status"] == "ok" or check["mend"], check
    text = spore(home, "setup", "preflight").out
    assert all(f" {check['name']} " in text for check in checks)


def test_setup_of_what_there_is_not(home: Path) -> None:
    done = spore(home, "setup", "kernle")
    assert (done.status, done.err.split("\n")[0]) == (2, "spore: setup: there is no part 'kernle'")


def test_a_reader_that_goes_away(home: Path, box: str) -> None:
    client = cli_peer.begin(home, ["ls", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert client.stdout is not None
    assert client.stderr is not None
    client.stdout.close()
    assert client.stderr.read() == b""
    client.stderr.close()
    assert client.wait(20) == 141
