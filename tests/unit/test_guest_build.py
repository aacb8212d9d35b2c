"""The guest's binaries: how they are built, and that they do what `docs/protocol.md` promises.

No VM here: the agent runs as an ordinary process on a socket, under sanitizers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine
NAMES = [f"{name}-{arch}" for name in ("agent", "launch") for arch in MACHINES]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the guest is Linux")


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


builder = _module(ROOT / "tools" / "build_guest.py")
peer = _module(ROOT / "guest" / "tests" / "peer.py")
scenarios = _module(ROOT / "guest" / "tests" / "scenarios.py")

needs_zig = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="no compiler: pip install ziglang"
)


@pytest.fixture(scope="session")
def binaries() -> Path:
    """The package's own binaries, built if their sources changed."""
    if importlib.util.find_spec("ziglang") is not None:
        builder.build()
    if not all((builder.BIN / name).exists() for name in NAMES):
        pytest.skip("no binaries, and no compiler to make them: pip install ziglang")
    return Path(builder.BIN)


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made: dict[str, Path] = builder.build_native(tmp_path_factory.mktemp("native"))
    return made


# The binaries


@needs_zig
@pytest.mark.timeout(900)  # the first build of all compiles musl, twice
def test_build_is_cached(binaries: Path) -> None:
    before = {name: (binaries / name).stat().st_mtime_ns for name in NAMES}
    assert builder.build() is False
    assert {name: (binaries / name).stat().st_mtime_ns for name in NAMES} == before


@pytest.mark.parametrize("name", NAMES)
def test_binary_is_small_static_and_hardened(binaries: Path, name: str) -> None:
    path = binaries / name
    data = path.read_bytes()
    assert len(data) <= builder.AGENT_LIMIT
    assert os.access(path, os.X_OK)
    assert data[:6] == b"\x7fELF\2\1"
    assert int.from_bytes(data[18:20], "little") == MACHINES[name.rpartition("-")[2]]
    kinds = _segments(data)
    assert 3 not in kinds, "an interpreter: not static"
    assert 0x6474E552 in kinds, "no RELRO"
    assert kinds[0x6474E551] & 1 == 0, "the stack is executable"
    assert not any(flags & 3 == 3 for flags in _loads(data)), "memory both writable and executable"
    for hint in (str(ROOT), "/.venv", "/home/", "/tmp/", "ziglang"):
        assert hint.encode() not in data


def _headers(data: bytes) -> list[tuple[int, int]]:
    offset = int.from_bytes(data[32:40], "little")
    size, count = (int.from_bytes(data[at : at + 2], "little") for at in (54, 56))
    starts = range(offset, offset + size * count, size)
    return [struct.unpack_from("<II", data, at) for at in starts]


def _segments(data: bytes) -> dict[int, int]:
    return dict(_headers(data))


def _loads(data: bytes) -> list[int]:
    return [flags for kind, flags in _headers(data) if kind == 1]


@needs_zig
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_same_sources_same_bytes(
    binaries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a copy of the sources elsewhere, so that the compiler's cache doesn't answer."""
    shutil.copytree(ROOT / "guest", tmp_path / "a" / "guest")
    monkeypatch.setattr(builder, "ROOT", tmp_path / "a")
    monkeypatch.setattr(builder, "GUEST", tmp_path / "a" / "guest")
    builder.build(tmp_path / "bin")
    for name in (*NAMES, builder.STAMP):
        assert (tmp_path / "bin" / name).read_bytes() == (binaries / name).read_bytes(), name


def test_a_broken_compiler_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(builder, "zig", lambda: ["false"])
    target = builder.TARGETS[0]
    with pytest.raises(builder.BuildError, match="false -target"):
        builder.compile_target(target, "x86_64", tmp_path / "agent")
    assert list(tmp_path.iterdir()) == []


def test_sources_are_short() -> None:
    """The same gate as for Python: no file over 500 lines."""
    for path in (ROOT / "guest").rglob("*.[ch]"):
        assert len(path.read_text().splitlines()) <= 500, path


# The agent's parsers and behaviour


def test_golden_vectors(native: dict[str, Path]) -> None:
    done = subprocess.run([native["test_parsers"]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    frames = json.loads((ROOT / "tests" / "vectors" / "frames.json").read_text())
    assert int(done.stdout.split()[0]) > len(frames)


def test_mutated_inputs(native: dict[str, Path]) -> None:
    subprocess.run([native["fuzz_parsers"], "7", "20000"], check=True, timeout=100)


@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_agent(native: dict[str, Path], name: str) -> None:
    if name == "user_and_cwd" and os.geteuid() != 0:
        pytest.skip("only root can become another user")
    scenarios.run_one(name, native["agent"])


def test_agent_is_only_an_init(binaries: Path) -> None:
    done = subprocess.run([_own(binaries, "agent")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "spore-agent: this is the init process of a microVM\n",
    )


# The launcher


def _own(binaries: Path, name: str) -> Path:
    machine = platform.machine()
    if machine not in MACHINES:
        pytest.skip(f"no build for {machine}")
    return binaries / f"{name}-{machine}"


Launch = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def launch(binaries: Path) -> Launch:
    def call(*args: str, fds: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
        argv = [str(_own(binaries, "launch")), *args]
        env = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "KEPT": "yes"}
        return subprocess.run(argv, capture_output=True, text=True, env=env, pass_fds=fds)

    return call


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_launch_plain(launch: Launch, tmp_path: Path) -> None:
    done = launch("--chdir", str(tmp_path), "--umask", "077", "--", "sh", "-c", "pwd; umask; env")
    assert done.stdout.splitlines()[:2] == [str(tmp_path), "0077"]
    assert "KEPT=yes" in done.stdout
    assert launch("--", "sh", "-c", "exit 42").returncode == 42


def test_launch_keeps_fds(launch: Launch) -> None:
    read, write = os.pipe()
    with os.fdopen(read) as reader:
        launch("--", "sh", "-c", f"echo through > /proc/self/fd/{write}", fds=(write,))
        os.close(write)
        assert reader.read() == "through\n"


def test_launch_limits(launch: Launch) -> None:
    soft, hard = 100, min(200, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    done = launch("--rlimit", f"nofile={soft}:{hard}", "--rlimit", "core=0:0", "--",
                  "sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -c")  # fmt: skip
    assert done.stdout.split() == [str(soft), str(hard), "0"]


def test_launch_no_new_privs(launch: Launch) -> None:
    script = "grep NoNewPrivs /proc/self/status"
    assert launch("--no-new-privs", "--", "sh", "-c", script).stdout.split()[1] == "1"
    assert launch("--", "sh", "-c", script).stdout.split()[1] == "0"


@as_root
def test_launch_drops_root_for_good(launch: Launch) -> None:
    done = launch("--uid", "12345", "--gid", "23456", "--", "cat", "/proc/self/status")
    status = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert set(status["Uid"].split()) == {"12345"}
    assert set(status["Gid"].split()) == {"23456"}
    assert status["Groups"].split() == []
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0


def _network(pid: int | str) -> str:
    return str(Path(f"/proc/{pid}/ns/net").readlink())


_INTERFACES = "import socket; print([name for _, name in socket.if_nameindex()])"


@as_root
def test_launch_new_network(launch: Launch) -> None:
    done = launch("--netns-new", "--", "readlink", "/proc/self/ns/net")
    if "netns: " in done.stderr:
        pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
    assert done.stdout.strip() != _network("self")
    done = launch("--netns-new", "--", sys.executable, "-c", _INTERFACES)
    assert done.stdout.strip() == "['lo']"


@as_root
def test_launch_enters_a_namespace(launch: Launch) -> None:
    holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
    assert holder.stdin is not None
    with holder, holder.stdin:
        # `cat` runs once unshare has exec'd; its namespace is then another than ours.
        mine = _network("self")
        while holder.poll() is None and _network(holder.pid) == mine:
            os.sched_yield()
        if holder.poll() is not None:
            pytest.skip("no network namespaces here")
        fd = os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY)
        try:
            script = f"readlink /proc/self/ns/net; ls /proc/self/fd | grep -x {fd}"
            done = launch("--setns", str(fd), "--", "sh", "-c", script, fds=(fd,))
            assert done.stdout.split() == [_network(holder.pid)]
        finally:
            os.close(fd)


def test_launch_user_namespace(launch: Launch) -> None:
    script = "id -u; readlink /proc/self/ns/net"
    done = launch("--userns", "--no-new-privs", "--", "sh", "-c", script)
    if "userns: " in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    uid, net = done.stdout.split()
    assert int(uid) == os.geteuid() and net != _network("self")


def test_launch_cgroup(launch: Launch, tmp_path: Path) -> None:
    """The protocol of a cgroup directory, on a plain one: `0` is written to its cgroup.procs."""
    (tmp_path / "cgroup.procs").touch()
    assert launch("--cgroup", str(tmp_path), "--", "true").returncode == 0
    assert (tmp_path / "cgroup.procs").read_text() == "0"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ((), "usage: spore-launch [OPTION...] -- PROG [ARG...]"),
        (("--", "/no/such/program"), "/no/such/program: No such file or directory"),
        (("--chdir", "/no/such", "--", "true"), "chdir: No such file or directory"),
        (("--cgroup", "/no/such", "--", "true"), "cgroup: No such file or directory"),
        (("--setns", "200", "--", "true"), "setns: Bad file descriptor"),
        (("--rlimit", "nonsense=1:1", "--", "true"), "--rlimit: no such limit"),
        (("--rlimit", "nofile=1", "--", "true"), "--rlimit: must be NAME=SOFT:HARD"),
        (("--uid", "-1", "--gid", "1", "--", "true"), "--uid: not a valid number"),
        (("--uid", "1", "--", "true"), "usage: --uid and --gid go together"),
        (("--umask", "8", "--", "true"), "--umask: not a valid number"),
        (("--bogus", "x", "--", "true"), "--bogus: unknown option, or too many of it"),
        (("--netns-new", "--userns", "--", "true"),
         "usage: only one of --netns-new, --userns and --setns"),
    ],
)  # fmt: skip
def test_launch_failures(launch: Launch, args: tuple[str, ...], line: str) -> None:
    done = launch(*args)
    assert (done.returncode, done.stdout, done.stderr) == (126, "", f"spore-launch: {line}\n")
