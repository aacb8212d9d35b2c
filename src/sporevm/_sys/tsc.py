"""The frequency of the time-stamp counter that a guest sees under emulation.

A guest kernel measures it against the PIT, and gives up on a busy host ("could not calculate TSC
khz"). Told in advance (`tsc_early_khz=`), it boots every time. QEMU's emulation hands out the
host's own counter where there is one, and nanoseconds where there is none.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

#: Without `rdtsc` on the host, QEMU's emulation counts nanoseconds.
NANOSECONDS_KHZ = 1_000_000

_X86 = ("x86_64", "amd64", "i686", "i386")
_BOGOMIPS = re.compile(r"^bogomips\s*:\s*([\d.]+)", re.MULTILINE)


def khz_from_cpuinfo(text: str) -> int:
    """`loops_per_jiffy` of x86 comes from the TSC: bogomips is twice its MHz. 0 if not there."""
    match = _BOGOMIPS.search(text)
    return round(float(match[1]) * 500) if match else 0


def emulated_tsc_khz(cpuinfo: Path = Path("/proc/cpuinfo"), machine: str = "") -> int:
    """TSC frequency of an emulated x86 guest on this host; 0 = unknown, let the guest measure."""
    if (machine or platform.machine()).lower() not in _X86:
        return NANOSECONDS_KHZ
    try:
        return khz_from_cpuinfo(cpuinfo.read_text())
    except OSError:
        return 0
