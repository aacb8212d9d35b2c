"""Reading QEMU's own lists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from sporevm.errors import SetupError
from sporevm.spec import Arch
from sporevm.vmm.qemu import probe

MACHINES = """Supported machines are:
microvm              microvm (i386)
pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)
"""
X86_CPUS = """Available CPUs:
x86 486                   (alias configured by machine type)
x86 max                   Enables all features supported by the accelerator in the current host

Recognized CPUID flags:
  3dnow 3dnowext
"""
ARM_CPUS = """Available CPUs:
  cortex-a72
  neoverse-n1
"""
DEVICES = """Storage devices:
name "virtio-blk-device", bus virtio-bus
name "virtserialport", bus virtio-serial-bus
"""
GOOD = probe.Found(
    path="/usr/bin/qemu-system-x86_64",
    mtime_ns=1,
    size=2,
    version=(7, 2, 22),
    machines=("microvm",),
    cpus=("max",),
    devices=probe._NEEDED_DEVICES,
    sandbox=True,
)


def test_lists():
    assert probe.first_words(MACHINES) == ("microvm", "pc")
    assert "max" in probe.cpu_names(X86_CPUS)
    assert probe.cpu_names(ARM_CPUS) == ("cortex-a72", "neoverse-n1")
    assert probe.device_names(DEVICES) == ("virtio-blk-device", "virtserialport")


def test_what_is_missing_is_named():
    assert GOOD.missing(Arch.X86_64) == []
    assert replace(GOOD, version=(6, 2, 0)).missing(Arch.X86_64) == [
        "version 7.2 or newer (this is 6.2.0)"
    ]
    assert replace(GOOD, machines=(), devices=()).missing(Arch.X86_64)[:2] == [
        "machine microvm",
        "device virtio-serial-device",
    ]
    assert "CPU model neoverse-n1" in GOOD.missing(Arch.AARCH64)


@pytest.mark.parametrize(
    ("version", "can"),
    [((7, 2, 22), False), ((8, 1, 5), False), ((8, 2, 0), True), ((10, 0, 0), True)],
)
def test_read_only_memory_by_version(version: tuple[int, int, int], can: bool):
    assert replace(GOOD, version=version).private_mem_read_only is can


async def test_a_missing_binary_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError) as caught:
        await probe.find(Arch.AARCH64, tmp_path / "cache")
    assert caught.value.hint == "apt-get install qemu-system-arm"


async def test_answers_are_kept_until_the_binary_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    binary = tmp_path / "qemu-system-x86_64"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    asked = []

    async def ask(path: Path) -> probe.Found:
        asked.append(path)
        mtime_ns, size = probe._stamp(path)
        return replace(GOOD, path=str(path), mtime_ns=mtime_ns, size=size)

    monkeypatch.setattr(probe, "ask", ask)
    cache = tmp_path / "cache"
    first = await probe.find(Arch.X86_64, cache)
    assert await probe.find(Arch.X86_64, cache) == first
    assert len(asked) == 1
    binary.write_text("#!/bin/sh\n# newer\n")
    await probe.find(Arch.X86_64, cache)
    assert len(asked) == 2
    note = next(cache.iterdir())
    note.write_bytes(b"{broken")
    await probe.find(Arch.X86_64, cache)
    assert len(asked) == 3
    assert msgspec.json.decode(note.read_bytes(), type=probe.Found).path == str(binary)
