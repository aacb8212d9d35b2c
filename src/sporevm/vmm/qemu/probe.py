"""What a QEMU binary can do, found out by asking the binary itself, and kept."""

from __future__ import annotations

import asyncio
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sporevm._sys import fs, process
from sporevm.errors import SetupError
from sporevm.spec import Arch
from sporevm.vmm.qemu import argv

OLDEST = (7, 2)
#: From here on a private mapping of a file opened read-only can be a guest's RAM.
READ_ONLY_MEM = (8, 2)

_VERSION = re.compile(r"version (\d+)\.(\d+)\.(\d+)")
_NEEDED_DEVICES = (
    "virtio-serial-device",
    "virtserialport",
    "virtio-blk-device",
    "virtio-rng-device",
)
_ASK_DEADLINE = 20.0


@dataclass(frozen=True, slots=True)
class Found:
    """One binary's answers."""

    path: str
    mtime_ns: int
    size: int
    version: tuple[int, int, int]
    machines: tuple[str, ...]
    cpus: tuple[str, ...]
    devices: tuple[str, ...]
    sandbox: bool

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))

    @property
    def private_mem_read_only(self) -> bool:
        return self.version[:2] >= READ_ONLY_MEM

    def missing(self, arch: Arch) -> list[str]:
        """What this binary lacks to run our machine."""
        lacks = []
        if self.version[:2] < OLDEST:
            lacks.append(f"version {OLDEST[0]}.{OLDEST[1]} or newer (this is {self.version_text})")
        machine = argv.machine_type(arch).split(",")[0]
        if machine not in self.machines:
            lacks.append(f"machine {machine}")
        cpu = argv.cpu_model(arch, "tcg").split(",")[0]
        if cpu not in self.cpus:
            lacks.append(f"CPU model {cpu}")
        return lacks + [f"device {name}" for name in _NEEDED_DEVICES if name not in self.devices]


def binary_name(arch: Arch) -> str:
    return f"qemu-system-{arch.value}"


def package_hint(arch: Arch) -> str:
    package = {Arch.X86_64: "qemu-system-x86", Arch.AARCH64: "qemu-system-arm"}[arch]
    return f"apt-get install {package}"


async def find(arch: Arch, cache: Path) -> Found:
    """The QEMU for an architecture; raises SetupError, with what mends it."""
    name = binary_name(arch)
    where = shutil.which(name)
    if where is None:
        raise SetupError(f"{name} is not installed", hint=package_hint(arch))
    path = Path(where)
    found = _remembered(cache, path)
    if found is None:
        found = await ask(path)
        fs.make_directory(cache)
        fs.write_atomic(_note(cache, path), msgspec.json.encode(found))
    if lacks := found.missing(arch):
        raise SetupError(f"{path} lacks {', '.join(lacks)}", hint=package_hint(arch))
    return found


def _note(cache: Path, path: Path) -> Path:
    return cache / f"{path.name}.probe.json"


def _remembered(cache: Path, path: Path) -> Found | None:
    try:
        found = msgspec.json.decode(_note(cache, path).read_bytes(), type=Found)
    except (OSError, msgspec.MsgspecError):
        return None
    same = (found.path, found.mtime_ns, found.size) == (str(path), *_stamp(path))
    return found if same else None


def _stamp(path: Path) -> tuple[int, int]:
    """A binary that was replaced has another time or size."""
    info = path.stat()
    return info.st_mtime_ns, info.st_size


async def ask(path: Path) -> Found:
    """Run the binary a few times for its lists."""
    mtime_ns, size = _stamp(path)
    asks = (["-version"], ["-M", "help"], ["-cpu", "help"], ["-device", "help"], ["-help"])
    answers = await asyncio.gather(*(_ask(path, words) for words in asks))
    version, machines, cpus, devices, options = answers
    match = _VERSION.search(version)
    if match is None:
        raise SetupError(f"{path} does not say its version")
    return Found(
        path=str(path),
        mtime_ns=mtime_ns,
        size=size,
        version=(int(match[1]), int(match[2]), int(match[3])),
        machines=first_words(machines),
        cpus=cpu_names(cpus),
        devices=device_names(devices),
        sandbox="\n-sandbox " in options,
    )


async def _ask(path: Path, words: list[str]) -> str:
    done = await process.run([path, *words], timeout=_ASK_DEADLINE)
    return done.text


def first_words(text: str) -> tuple[str, ...]:
    """Names of a list with one heading: `name   description` in each line."""
    return tuple(line.split()[0] for line in text.splitlines()[1:] if line.strip())


def cpu_names(text: str) -> tuple[str, ...]:
    """`x86 NAME  description`, or `  NAME`; the format differs by target and version."""
    names = []
    for line in text.splitlines():
        words = line.split()
        if words and line.startswith(("x86 ", " ")):
            names.append(words[1] if words[0] == "x86" and len(words) > 1 else words[0])
    return tuple(names)


def device_names(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r'^name "([^"]+)"', text, re.MULTILINE))
