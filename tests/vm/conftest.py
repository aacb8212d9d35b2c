"""Real microVMs: the command line and the SDK against one engine in a home of the tests' own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sporevm import Sandbox
from sporevm.store.layout import Layout
from tests.conftest import eventually, processes_naming

SPORE = str(Path(sys.executable).with_name("spore"))

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def spore(home: Layout) -> Run:
    """`spore ARG…` as a process of its own."""

    def run(
        *argv: str, input: str | None = None, timeout: float = 100
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SPORE, *argv],
            env=os.environ | {"SPORE_HOME": str(home.home)},
            input=input if input is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def box(home: Layout) -> Iterator[Sandbox]:
    with Sandbox.create("base", home=home.home) as found:
        yield found


@pytest.fixture(autouse=True)
def no_vm_left(home: Layout) -> Iterator[None]:
    """After each test: no VMM, no sandbox directory, no record that was not there before."""
    yield
    # A foreground run answers as soon as its command has ended; its VM is freed right behind that.
    assert eventually(lambda: not vmms(home)), vmms(home)
    assert eventually(lambda: not directories(home)), directories(home)


def vmms(home: Layout) -> dict[int, str]:
    found = processes_naming(str(home.sandboxes))
    return {pid: line for pid, line in found.items() if "qemu" in line}


def directories(home: Layout) -> list[Path]:
    return list(home.sandboxes.iterdir()) if home.sandboxes.exists() else []


def listed(spore: Run) -> list[dict[str, object]]:
    done = spore("ls", "-a", "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found
