"""Which VMM runs a sandbox on this host."""

from __future__ import annotations

import asyncio
import platform
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from sporevm._sys import kvm
from sporevm._sys.confine import Confiner
from sporevm.errors import UsageError
from sporevm.spec import Arch
from sporevm.store.layout import Layout
from sporevm.vmm.base import Vmm
from sporevm.vmm.qemu.driver import QemuVmm

NAMES = ("auto", "qemu")


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and why."""

    vmm: Vmm
    accelerator: str
    why: str


_choices: dict[tuple[Arch, str], Choice] = {}
_confiners: list[Confiner] = []
#: One per event loop: a lock belongs to the loop that first had to wait for it.
_locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def choose(name: str, arch: Arch, layout: Layout) -> Vmm:
    """The backend for a sandbox; raises UsageError, or SetupError with what mends it."""
    return (await explain(name, arch, layout)).vmm


async def explain(name: str, arch: Arch, layout: Layout) -> Choice:
    """The same with its reason, for the doctor."""
    if name not in NAMES:
        raise UsageError(f"there is no VMM {name!r}", hint=f"use one of {', '.join(NAMES)}")
    key = (arch, str(layout.home))
    async with _locks.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
        if key not in _choices:
            _choices[key] = await _choose(arch, layout)
        return _choices[key]


async def _choose(arch: Arch, layout: Layout) -> Choice:
    if not _confiners:
        _confiners.append(await Confiner.probe())
    if host_arch() is arch:
        verdict = await kvm.verdict(layout.cache)
        usable, why = verdict.outcome is kvm.Outcome.USABLE, verdict.sentence
    else:
        usable, why = False, f"KVM runs {platform.machine()} guests here, not {arch.value}"
    accelerator = "kvm" if usable else "tcg"
    vmm = await QemuVmm.find(arch, accelerator, _confiners[0], layout.cache)
    return Choice(vmm, accelerator, why)


def host_arch() -> Arch | None:
    names = {"x86_64": Arch.X86_64, "amd64": Arch.X86_64}
    names |= {"aarch64": Arch.AARCH64, "arm64": Arch.AARCH64}
    return names.get(platform.machine().lower())
