"""Docs are checked like code: links lead somewhere, examples run, generated pages are current."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_verb_of_the_readme_exists() -> None:
    from sporevm.cli.verbs import find

    lines = re.findall(r"^    (?:.*[;&] )?spore (.*)$", (ROOT / "README.md").read_text(), re.M)
    assert len(lines) >= 6
    for line in lines:
        assert find(line.split()) is not None, line


def test_a_wheel_carries_all_binaries(tmp_path: Path) -> None:
    """Whoever installs a wheel compiles nothing."""
    argv = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), "."]
    subprocess.run(argv, cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for arch in ("x86_64", "aarch64"):
        for name in (f"agent-{arch}", f"launch-{arch}", f"memro-{arch}.so"):
            assert f"sporevm/_bin/{name}" in names
