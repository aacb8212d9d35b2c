"""Shared fixtures, and the watch that nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sporevm.store.layout import Layout, default_home


def processes_naming(text: str) -> dict[int, str]:
    """Live processes with `text` in their command line, this one left out."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if text in line and state != "Z":
                found[int(entry.name)] = line
    return found


def mounts_below(text: str) -> list[str]:
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if text in line]


def net_devices() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


def named_namespaces() -> set[str]:
    path = Path("/run/netns")
    return {p.name for p in path.iterdir()} if path.exists() else set()


def eventually(check: object, seconds: float = 10.0) -> bool:
    """Poll a condition of the outside world that offers nothing to wait on."""
    deadline = time.monotonic() + seconds
    while not check():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No network device, namespace or mount of ours outlives a test."""
    before = net_devices(), named_namespaces(), mounts_below("spore")
    yield
    assert (net_devices(), named_namespaces(), mounts_below("spore")) == before


ROOT_USER = os.geteuid() == 0


def set_up_home() -> Path:
    return default_home(
        is_root=os.geteuid() == 0, env_home=os.environ.get("SPORE_HOME"), user_home=Path.home()
    )


@pytest.fixture(scope="session")
def artifacts() -> Layout:
    """The home that `make test` has set up: its kernel and image are copied, never changed."""
    layout = Layout(set_up_home())
    assert any(layout.kernels.glob("*/manifest.json")), "no kernel: run make test, or spore setup"
    assert any(layout.images.glob("*/manifest.json")), "no image: run make test, or spore setup"
    return layout


def make_home(artifacts: Layout, path: Path) -> Layout:
    """A home of a test's own, with the kernel and images of the one that was set up."""
    layout = Layout(path)
    path.mkdir(mode=0o755, exist_ok=True)
    for name in ("kernels", "images"):
        shutil.copytree(getattr(artifacts, name), path / name, copy_function=_sparse_copy)
    return layout


def _sparse_copy(source: str, target: str) -> None:
    from sporevm._sys.fs import sparse_copy

    sparse_copy(Path(source), Path(target))
    shutil.copystat(source, target)


@pytest.fixture(scope="session")
def home(artifacts: Layout) -> Iterator[Layout]:
    """One home and one engine for all tests with real VMs; after them no process is left."""
    path = Path(tempfile.mkdtemp(prefix="sp-"))
    path.chmod(0o755)
    try:
        yield make_home(artifacts, path / "h")
    finally:
        end_engine(path / "h")
        left = processes_naming(str(path))
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(path, ignore_errors=True)
        assert not left, f"left behind: {left}"
        assert not path.exists()


def end_engine(home: Path) -> None:
    """Stop the engine of a home and wait until it is gone."""
    for pid, line in processes_naming(str(home)).items():
        if "sporevm.api.daemon" in line:
            os.kill(pid, signal.SIGTERM)
    assert eventually(
        lambda: not any("sporevm.api.daemon" in v for v in processes_naming(str(home)).values())
    ), "the engine did not end"
