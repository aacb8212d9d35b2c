"""What must hold whatever happens: kills, floods of starts, full disks, hostile guests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sporevm import Sandbox
from sporevm.errors import SporeError, StorageError
from sporevm.store.layout import Layout
from tests.conftest import ROOT_USER, end_engine, eventually, make_home, processes_naming
from tests.vm.conftest import SPORE, Run, listed


def engine_pid(spore: Run) -> int:
    return int(json.loads(spore("daemon", "status", "--json").stdout)["pid"])


def files_below(layout: Layout) -> set[str]:
    """Everything in the home but caches, which may grow."""
    caches = (layout.templates, layout.cache, layout.images, layout.kernels)
    return {
        str(path.relative_to(layout.home))
        for path in layout.home.rglob("*")
        if not any(path == c or c in path.parents for c in caches)
        and not path.name.startswith("spore")
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hundred_in_a_row(spore: Run, home: Layout) -> None:
    assert spore("run", "--", "true").returncode == 0
    # The first start of an image has its template made behind it.
    assert eventually(lambda: not list((home.tmp / "e").iterdir()), 60)
    before = files_below(home)
    codes = [spore("run", "-q", "--", "sh", "-c", f"exit {n % 100}").returncode for n in range(200)]
    assert codes == [n % 100 for n in range(200)]
    assert eventually(lambda: files_below(home) == before)
    assert listed(spore) == []


@pytest.mark.timeout(300)
def test_twenty_at_once(spore: Run, home: Layout) -> None:
    def one(number: int) -> str:
        done = spore("run", "-q", "--", "echo", f"nonce-{number}", timeout=250)
        return done.stdout if done.returncode == 0 else done.stderr

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(one, range(20)))
    assert answers == [f"nonce-{n}\n" for n in range(20)]
    assert eventually(lambda: not listed(spore))


def test_engine_killed_during_an_exec(spore: Run, home: Layout) -> None:
    spore(
        "run",
        "-d",
        "--name",
        "lives",
        "--",
        "sh",
        "-c",
        "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo line $i; sleep 0.02; done; sleep 1000",
    )
    running = subprocess.Popen(
        [SPORE, "exec", "lives", "--", "sleep", "1000"],
        env=os.environ | {"SPORE_HOME": str(home.home)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        assert eventually(lambda: "line 50\n" in spore("logs", "lives").stdout)
        old = engine_pid(spore)
        os.kill(old, signal.SIGKILL)
        assert running.wait(timeout=30) == 125
        assert [(b["name"], b["state"]) for b in listed(spore)] == [("lives", "running")]
        assert engine_pid(spore) != old
        done = spore("exec", "lives", "--", "echo", "again")
        assert (done.returncode, done.stdout) == (0, "again\n")
        # Not a line is lost or doubled over the engine's death.
        wanted = "".join(f"line {n}\n" for n in range(1, 401))
        assert eventually(lambda: spore("logs", "lives").stdout == wanted, 60)
    finally:
        running.kill()
        running.communicate()
        spore("rm", "-f", "lives")


def test_engine_killed_during_a_foreground_run(spore: Run, home: Layout) -> None:
    """Its client can't come back: the sandbox is ended, not left running for nobody."""
    process = subprocess.Popen(
        [SPORE, "run", "--", "sh", "-c", "echo up; sleep 1000"],
        env=os.environ | {"SPORE_HOME": str(home.home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    os.kill(engine_pid(spore), signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == 125
    assert listed(spore) == []


def test_a_console_that_is_flooded_stays_small(spore: Run, home: Layout) -> None:
    with Sandbox.create("base", home=home.home) as box:
        flood = "for i in 1 2 3 4 5 6; do head -c2000000 /dev/zero >/dev/console; done"
        assert box.commands.run(flood).exit_code == 0
        console = home.sandbox(box.id).console
        assert eventually(lambda: console.stat().st_size < 5 << 20, 30)
        assert box.commands.run("echo well").stdout == "well\n"


def test_vmm_killed(spore: Run, home: Layout) -> None:
    spore("run", "-d", "--name", "dies", "--", "sleep", "1000")
    running = subprocess.Popen(
        [SPORE, "exec", "dies", "--", "sh", "-c", "echo up; sleep 1000"],
        env=os.environ | {"SPORE_HOME": str(home.home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        info = listed(spore)[0]
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        os.kill(int(str(info["pid"])), signal.SIGKILL)
        _, error = running.communicate(timeout=30)
        assert running.returncode == 125
        assert "spore: " in error
        assert eventually(lambda: listed(spore)[0]["state"] == "failed")
        failed = listed(spore)[0]
        assert failed["error"]
        assert failed["pid"] is None
        done = spore("exec", "dies", "--", "true")
        assert done.returncode == 1
        assert "failed" in done.stderr
    finally:
        running.kill()
        running.communicate()
        spore("rm", "-f", "dies")


_GARBAGE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
agent = libc.syscall(434, 1, 0)                      # pidfd_open(1)
for number in range(3, 64):
    try:
        link = os.readlink(f"/proc/1/fd/{number}")
    except OSError:
        continue
    if "vport" in link:
        stolen = libc.syscall(438, agent, number, 0)  # pidfd_getfd
        os.write(stolen, b"\\xff" * 4096)
"""


def test_garbage_from_a_hostile_guest(spore: Run, home: Layout) -> None:
    engine = engine_pid(spore) if listed(spore) == [] else 0
    with Sandbox.create("base", home=home.home) as other:
        with Sandbox.create("base", home=home.home) as evil:
            with pytest.raises(SporeError):
                evil.commands.run(["python3", "-c", _GARBAGE + "\nimport time; time.sleep(60)"])
            assert eventually(lambda: evil.info().state == "failed")
            assert "protocol" in evil.info().error
        assert other.commands.run("echo unharmed").stdout == "unharmed\n"
    assert engine_pid(spore) == engine


def test_a_damaged_template_is_never_used(spore: Run, home: Layout) -> None:
    assert spore("template", "build", "--image", "base", "-q").returncode == 0
    before = {path: path.stat().st_ino for path in home.templates.glob("*/mem")}
    for path in before:
        with path.open("r+b") as file:
            file.seek(50_000_000)
            byte = file.read(1)
            file.seek(50_000_000)
            file.write(bytes([byte[0] ^ 1]))
    assert spore("daemon", "restart").returncode == 0
    assert spore("run", "--", "echo", "whole").stdout == "whole\n"
    log = home.engine_log.read_text()
    assert "does not match its checksum" in log
    for path, inode in before.items():
        assert not path.exists() or path.stat().st_ino != inode or str(path) not in log


@pytest.fixture
def small_disk(artifacts: Layout) -> Iterator[Path]:
    """A file system with little room left, for a home of its own."""
    if not ROOT_USER:
        pytest.skip("mounting a small file system needs root")
    path = Path(tempfile.mkdtemp(prefix="sf-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900m,mode=755", "small", path], check=True)
    try:
        yield path
    finally:
        end_engine(path)
        subprocess.run(["umount", path], check=True)
        path.rmdir()


def test_full_disk(small_disk: Path, artifacts: Layout) -> None:
    layout = make_home(artifacts, small_disk / "h")
    Sandbox.create("base", home=layout.home).kill()  # its templates are there now
    assert eventually(lambda: len(list(layout.templates.glob("*/manifest.json"))) == 2, 60)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65536)
    before = sorted(p for p in layout.home.rglob("*") if not p.name.startswith("spore"))
    with pytest.raises(StorageError) as error:
        Sandbox.create("base", home=layout.home)
    assert "space" in str(error.value)
    assert not list(layout.sandboxes.iterdir())
    assert not processes_naming(str(layout.sandboxes))
    assert sorted(p for p in layout.home.rglob("*") if not p.name.startswith("spore")) == before
    filler.unlink()
    with Sandbox.create("base", home=layout.home) as box:
        assert box.commands.run("echo room").stdout == "room\n"


@pytest.mark.timeout(300)
def test_as_an_ordinary_user(artifacts: Layout) -> None:
    """No root, no sudo: another uid, a home of its own, the packages as they are."""
    if not ROOT_USER:
        pytest.skip("this whole run is already an ordinary user's")
    path = Path(tempfile.mkdtemp(prefix="su-"))
    try:
        path.chmod(0o755)
        make_home(artifacts, path / "h")
        program = _readable_copy(path)
        for each in [path / "h", *(path / "h").rglob("*")]:
            os.chown(each, 23456, 23456, follow_symlinks=False)
        env = {
            "PATH": os.environ["PATH"],
            "SPORE_HOME": str(path / "h"),
            "HOME": str(path / "h"),
            "PYTHONPATH": os.pathsep.join(program),
        }
        user = ["setpriv", "--reuid=23456", "--regid=23456", "--clear-groups", "--"]
        python = os.path.realpath(sys.executable)
        script = "from sporevm.cli.main import main; import sys; sys.exit(main())"
        for _ in range(2):
            done = subprocess.run(
                [*user, python, "-c", script, "run", "--", "python3", "-c", "print(6*7)"],
                env=env,
                cwd=path,
                capture_output=True,
                text=True,
                check=False,
                timeout=200,
            )
            assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
        subprocess.run(
            [*user, python, "-c", script, "daemon", "stop"], env=env, cwd=path, check=True
        )
        assert eventually(lambda: not processes_naming(str(path / "h")))
    finally:
        end_engine(path / "h")
        shutil.rmtree(path)


def _readable_copy(path: Path) -> list[str]:
    """The package and its libraries where any user can read them: a clone may be private."""
    import aiohttp

    import sporevm

    heavy = shutil.ignore_patterns(
        "ziglang*",
        "mypy*",
        "ruff*",
        "pip*",
        "hypothesis*",
        "__pycache__",
        "setuptools*",
        "*.dist-info",
    )
    site = Path(aiohttp.__file__).parents[1]
    package = Path(sporevm.__file__).parent
    shutil.copytree(site, path / "site", ignore=heavy)
    shutil.copytree(package, path / "src/sporevm", ignore=shutil.ignore_patterns("__pycache__"))
    return [str(path / "src"), str(path / "site")]
