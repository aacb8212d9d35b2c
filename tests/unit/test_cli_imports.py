"""What a verb may load before it does something, and pages that are made from the program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Each of these costs a noticeable part of `spore exec`'s budget.
HEAVY = {"asyncio", "aiohttp", "sqlite3", "msgspec", "ssl", "subprocess", "logging", "h11"}


def loaded_by(*words: str) -> set[str]:
    """The modules `spore WORDS` has loaded when it ends."""
    code = (
        "import sys; from sporevm.cli.main import main; main(sys.argv[1:]); "
        "print('MODULES', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *words],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return set(done.stdout.rpartition("MODULES")[2].split())


def test_version_loads_next_to_nothing() -> None:
    found = loaded_by("--version")
    assert "sporevm.cli.main" in found
    assert not found & (HEAVY | {"dataclasses", "socket", "json", "sporevm.spec"})


@pytest.mark.parametrize(
    ("verb", "words"), [("exec", ["box", "--", "true"]), ("shell", ["box"]), ("run", ["--", "x"])]
)
def test_the_hot_path_stays_light(verb: str, words: list[str], tmp_path: Path) -> None:
    """Everything up to the connection: the home is a file, so that no engine can be started."""
    home = tmp_path / "file"
    home.touch()
    found = loaded_by("--home", str(home), verb, *words)
    assert "sporevm.cli.session" in found
    assert not found & (HEAVY | {"sporevm.spec", "sporevm.image", "sporevm.vmm"})


def test_only_the_verb_itself_is_loaded() -> None:
    found = loaded_by("kill", "--help")
    assert "sporevm.cli.kill" in found
    assert not found & {"sporevm.cli.run", "sporevm.cli.setup", "sporevm.cli.session"}


def test_the_environment_is_read_in_one_place() -> None:
    for path in (ROOT / "src/sporevm/cli").glob("*.py"):
        if path.name != "context.py":
            assert not re.search(r"os\.(environ|getenv)", path.read_text()), path.name


def test_the_reference_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/gen_cli_docs.py", "--check"],
        env=os.environ | {"COLUMNS": "40"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    from sporevm.cli import completion

    text = completion._fish() if shell == "fish" else completion._bash()
    for word in ("run", "template", "build", "workdir"):
        assert word in text


def test_bash_completion_completes() -> None:
    from sporevm.cli import completion

    script = completion._bash() + (
        "COMP_WORDS=(spore image i); COMP_CWORD=2; _spore; echo ${COMPREPLY[*]}\n"
        "COMP_WORDS=(spore ru); COMP_CWORD=1; _spore; echo ${COMPREPLY[*]}\n"
        "COMP_WORDS=(spore exec box --work); COMP_CWORD=3; _spore; echo ${COMPREPLY[*]}\n"
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout.splitlines() == ["inspect import", "run", "--workdir"]
