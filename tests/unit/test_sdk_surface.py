"""What `import sporevm` offers, what it costs, and that generated code is current."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sporevm
from sporevm import errors
from sporevm.api.models import ErrorBody
from sporevm.sdk._errors import EngineAnswered, from_answer, from_body

ROOT = Path(__file__).resolve().parents[2]


def test_all_is_explicit_and_complete() -> None:
    assert sorted(sporevm.__all__) == dir(sporevm)
    for name in sporevm.__all__:
        assert getattr(sporevm, name) is not None
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, errors.SporeError):
            assert name in sporevm.__all__, f"{name} is not exported"
    with pytest.raises(AttributeError):
        _ = sporevm.nothing  # type: ignore[attr-defined]


def test_version_is_the_package_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sporevm.__version__ == project["version"]


def imported(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_budget() -> None:
    assert not imported("import sporevm") & {"asyncio", "msgspec", "sporevm.errors"}
    heavy = {"aiohttp", "qemu", "sqlite3", "h11", "wsproto", "argparse", "sporevm.engine"}
    assert not imported("from sporevm import Sandbox, AsyncSandbox") & heavy
    assert not imported("import sporevm.sdk._engine") & {"asyncio", "msgspec", "subprocess"}


def test_sync_code_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/gen_sync.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, f"run: python tools/gen_sync.py\n{done.stdout}{done.stderr}"


def test_sync_and_async_offer_the_same() -> None:
    for name in ("Sandbox", "Commands", "Files", "CommandHandle"):
        plain = {n for n in dir(getattr(sporevm, name)) if not n.startswith("_")}
        other = {n for n in dir(getattr(sporevm, f"Async{name}")) if not n.startswith("_")}
        assert plain == other
        assert getattr(sporevm, name).__doc__


OWN = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.SporeError)]


@pytest.mark.parametrize("cls", OWN)
def test_errors_survive_the_way(cls: type[errors.SporeError]) -> None:
    fields: dict[str, object] = {
        errors.StateError: {"current": "stopped", "required": "running"},
        errors.GuestError: {"errno": 2, "path": "/x"},
        errors.VmmError: {"command": "qemu", "status": 1, "log_tail": "no"},
    }.get(cls, {})  # type: ignore[call-overload]
    error = cls("what", hint="do", **fields)  # type: ignore[arg-type]
    back = from_body(
        ErrorBody(code=error.code, message=str(error), hint=error.hint, details=error.details())
    )
    assert type(back) is cls
    assert (str(back), back.hint, back.details()) == ("what", "do", error.details())


def test_unknown_errors_keep_their_code() -> None:
    back = from_body(ErrorBody(code="weird", message="m", details={"a": 1}))
    assert isinstance(back, EngineAnswered) and back.code == "weird" and back.details() == {"a": 1}
    assert isinstance(from_answer(502, b"<html>"), errors.EngineError)
