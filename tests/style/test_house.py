"""The house stays livable: sizes, layers, types and style, checked like everything else."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src/sporevm").rglob("*.py"))
C_SOURCES = sorted((ROOT / "guest").rglob("*.[ch]"))
GENERATED = {"src/sporevm/sdk/_sync.py"}

MAX_MODULE = 500
MAX_FUNCTION = 60
MAX_METHODS = 20


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def written(paths: list[Path]) -> list[Path]:
    return [p for p in paths if name_of(p) not in GENERATED and "build" not in p.parts]


def run(*argv: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_modules_are_short() -> None:
    paths = written(SOURCES) + written(C_SOURCES)
    assert len(paths) > 30
    over = {name_of(p): n for p in paths if (n := len(p.read_text().splitlines())) > MAX_MODULE}
    assert not over


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_functions_and_classes_are_small() -> None:
    over = []
    for path in written(SOURCES):
        tree = ast.parse(path.read_text())
        for function in functions(tree):
            lines = (function.end_lineno or 0) - function.lineno + 1
            if lines > MAX_FUNCTION:
                over.append(f"{name_of(path)}:{function.lineno} {function.name}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                methods = [
                    n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
                ]
                if len(methods) > MAX_METHODS:
                    over.append(
                        f"{name_of(path)}:{node.lineno} {node.name}: {len(methods)} methods"
                    )
    assert not over


def test_c_functions_are_small() -> None:
    over = []
    for path in written(C_SOURCES):
        start = 0
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.startswith("{"):
                start = number
            elif line.startswith("}") and start:
                if number - start > MAX_FUNCTION:
                    over.append(f"{name_of(path)}:{start}: {number - start} lines")
                start = 0
            elif re.match(r"^[a-z].*\)\s*\{$", line):
                start = number
    assert not over


def test_processes_are_born_in_one_place() -> None:
    offenders = []
    for path in SOURCES:
        if name_of(path) == "src/sporevm/_sys/process.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                if "subprocess" in names:
                    offenders.append(f"{name_of(path)}:{node.lineno}")
            elif isinstance(node, ast.Attribute) and node.attr in {
                "create_subprocess_exec",
                "create_subprocess_shell",
                "posix_spawn",
                "fork",
                "system",
            }:
                offenders.append(f"{name_of(path)}:{node.lineno} {node.attr}")
    assert not offenders


def test_backends_are_named_only_inside_vmm() -> None:
    """Outside `vmm/`, code reads Capabilities; it does not ask which backend it has."""
    backend = re.compile(r"""(==|!=|\bin\b|\bcase\b)\s*\(?["'](qemu|firecracker|vfkit|kvm|tcg)\b""")
    allowed = ("src/sporevm/vmm/", "src/sporevm/_sys/")
    offenders = [
        f"{name_of(path)}:{number}"
        for path in SOURCES
        if not name_of(path).startswith(allowed)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if backend.search(line)
    ]
    assert not offenders


def test_ruff() -> None:
    run("ruff", "check", "src", "tests", "tools", "bench")


def test_format() -> None:
    run("ruff", "format", "--check", "src", "tests", "tools", "bench")


@pytest.mark.timeout(600)
def test_mypy() -> None:
    run("mypy")


def test_layers() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_foreign_hosts_or_machine_paths() -> None:
    """Registries are used through the clients as they are configured; no path is anybody's own."""
    words = [
        "py" + "pi.org",
        "python" + "hosted",
        "registry.npm" + "js",
        "deb.debian" + ".org",
        "/wo" + "rk/",
        "/ro" + "ot/",
    ]
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    offenders = []
    for name in filter(None, tracked):
        path = ROOT / name
        if not path.is_file():
            continue
        text = path.read_text(errors="replace")
        offenders += [f"{name}: {word}" for word in words if word in text]
    assert not offenders
