"""Is there a KVM here that is worth using? Found out by running code in a tiny guest.

That `/dev/kvm` exists, opens, and makes a VM proves nothing: there are kernels whose KVM has no
hardware behind it and interprets a guest one instruction at a time, 500 times slower than QEMU's
own translator. So a probe runs a loop that stores to memory, with paging on, and counts. It does
that in a child process with a deadline: a vCPU that never comes back is simply killed.

The verdict holds until the next boot and is kept in a small file.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import struct
import sys
import time
from enum import StrEnum
from pathlib import Path

import msgspec

from sporevm._sys import fs, process
from sporevm.errors import DeadlineExceeded, SporeError

DEVICE = Path("/dev/kvm")

#: Millions of instructions a second. Hardware does thousands, QEMU's translator several hundred,
#: a KVM that interprets less than one.
THRESHOLD = 100.0

_DEADLINE = 5.0
_MEASURE_SECONDS = 0.03


class Outcome(StrEnum):
    USABLE = "usable"
    ABSENT = "absent"
    NO_PERMISSION = "no_permission"
    ENODEV = "enodev"
    TOO_SLOW = "too_slow"
    BROKEN = "broken"


class Verdict(msgspec.Struct, frozen=True):
    """What was found out, and a sentence for people."""

    outcome: Outcome
    sentence: str
    mips: float = 0.0  # millions of guest instructions a second, if it came that far
    mend: str = ""


class _Kept(msgspec.Struct):
    boot_id: str
    uid: int
    device: tuple[int, int]
    verdict: Verdict


async def verdict(cache: Path, device: Path = DEVICE) -> Verdict:
    """The verdict of this boot, probed if nobody did yet."""
    note = cache / "kvm.json"
    key = _key(device)
    if key is not None:
        try:
            kept = msgspec.json.decode(note.read_bytes(), type=_Kept)
            if (kept.boot_id, kept.uid, kept.device) == key:
                return kept.verdict
        except (OSError, msgspec.MsgspecError):
            pass
    found = await probe(device)
    if key is not None:
        fs.make_directory(cache)
        fs.write_atomic(note, msgspec.json.encode(_Kept(*key, found)))
    return found


def _key(device: Path) -> tuple[str, int, tuple[int, int]] | None:
    """What a kept verdict depends on; None where there is nothing worth keeping."""
    try:
        info = device.stat()
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return boot_id, os.geteuid(), (info.st_mode, info.st_gid)


async def probe(device: Path = DEVICE) -> Verdict:
    """Look, open, then run code in a child that may get stuck."""
    refused = _opens(device)
    if refused is not None:
        return refused
    argv = [sys.executable, "-I", "-c", f"from {__name__} import main; main()", os.fspath(device)]
    try:
        done = await process.run(argv, timeout=_DEADLINE, check=False)
        answer = json.loads(done.stdout) if done.returncode == 0 else {}
    except DeadlineExceeded:
        return Verdict(Outcome.BROKEN, f"KVM did not run a loop to its end in {_DEADLINE:g} s")
    except (SporeError, ValueError) as error:
        return Verdict(Outcome.BROKEN, f"the KVM probe failed: {error}")
    if "mips" in answer:
        return judge(float(answer["mips"]))
    last = done.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
    return Verdict(Outcome.BROKEN, f"KVM does not run code: {answer.get('error', last)}")


def judge(mips: float) -> Verdict:
    speed = f"{mips:.1f} million guest instructions a second"
    if mips >= THRESHOLD:
        return Verdict(Outcome.USABLE, f"KVM runs {speed}", mips)
    sentence = f"KVM opens, but runs only {speed}: it interprets them, emulation is faster"
    return Verdict(Outcome.TOO_SLOW, sentence, mips)


def _opens(device: Path) -> Verdict | None:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Verdict(
            Outcome.ABSENT, f"there is no {device}", mend="enable virtualization, load kvm"
        )
    except PermissionError:
        return Verdict(
            Outcome.NO_PERMISSION,
            f"{device} may not be opened by this user",
            mend="sudo usermod -aG kvm $USER, then log in again",
        )
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENXIO):
            sentence = f"{device} is there, but no virtualization behind it (ENODEV)"
            return Verdict(Outcome.ENODEV, sentence)
        return Verdict(Outcome.BROKEN, f"{device} does not open: {error.strerror}")
    return None


# -- in the child ----------------------------------------------------------------------------------

_GET_API_VERSION = 0xAE00
_CREATE_VM = 0xAE01
_GET_VCPU_MMAP_SIZE = 0xAE04
_CREATE_VCPU = 0xAE41
_RUN = 0xAE80
_SET_USER_MEMORY_REGION = 0x4020AE46
_SET_REGS, _GET_SREGS, _SET_SREGS = 0x4090AE82, 0x8138AE83, 0x4138AE84
_ARM_PREFERRED_TARGET, _ARM_VCPU_INIT, _SET_ONE_REG = 0x8020AEAF, 0x4020AEAE, 0x4010AEAC
_ARM_CORE_REG = 0x6030_0000_0010_0000

_EXIT_HLT, _EXIT_MMIO = 5, 6
_MEMORY = 4 << 20
_CODE = 0x1000
_TABLES = 0x2000
_DATA = 0x10_0000

#: mov [rdi], ecx; add edi, 64; and edi, 0x1fffff; or edi, 0x100000; dec ecx; jnz; hlt
#: The stores walk over a megabyte, above the code and the tables.
_X86_LOOP = bytes.fromhex("890f 83c740 81e7ffff1f00 81cf00001000 ffc9 75eb f4".replace(" ", ""))
_X86_INSTRUCTIONS = 6
#: str x0, [x2]; subs x0, x0, #1; b.ne -8; str x0, [x1]: the last one leaves the memory.
_ARM_LOOP = struct.pack("<4I", 0xF9000040, 0xF1000400, 0x54FFFFC1, 0xF9000020)
_ARM_INSTRUCTIONS = 3


def main() -> None:
    """Measure and print JSON; runs in a process of its own."""
    try:
        answer: dict[str, object] = {"mips": round(_measure(sys.argv[1]), 3)}
    except OSError as error:
        answer = {"error": f"{error.strerror or error}"}
    json.dump(answer, sys.stdout)


def _measure(device: str) -> float:
    """Millions of guest instructions a second."""
    kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    version = fcntl.ioctl(kvm, _GET_API_VERSION, 0)
    if version != 12:
        raise OSError(0, f"API version {version}")
    vm = fcntl.ioctl(kvm, _CREATE_VM, 0)
    memory = mmap.mmap(-1, _MEMORY)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    region = struct.pack("<IIQQQ", 0, 0, 0, _MEMORY, address)
    fcntl.ioctl(vm, _SET_USER_MEMORY_REGION, region)
    vcpu = fcntl.ioctl(vm, _CREATE_VCPU, 0)
    run = mmap.mmap(vcpu, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE, 0))
    if platform.machine() == "aarch64":
        target = fcntl.ioctl(vm, _ARM_PREFERRED_TARGET, bytes(32))
        fcntl.ioctl(vcpu, _ARM_VCPU_INIT, target)
        prepare, instructions, expected = _prepare_arm, _ARM_INSTRUCTIONS, _EXIT_MMIO
    else:
        prepare, instructions, expected = _prepare_x86, _X86_INSTRUCTIONS, _EXIT_HLT
    rounds = 1000
    while True:
        prepare(vcpu, memory, rounds)
        began = time.perf_counter()
        fcntl.ioctl(vcpu, _RUN, 0)
        seconds = time.perf_counter() - began
        reason = struct.unpack_from("<I", run, 8)[0]
        if reason != expected:
            raise OSError(0, f"the guest stopped for reason {reason}, not {expected}")
        if seconds >= _MEASURE_SECONDS or rounds >= 1 << 30:
            return rounds * instructions / max(seconds, 1e-9) / 1e6
        rounds *= 4


def _prepare_x86(vcpu: int, memory: mmap.mmap, rounds: int) -> None:
    """Long mode with 2 MiB pages, where a kernel spends its life."""
    for level in range(2):
        struct.pack_into(
            "<Q", memory, _TABLES + level * 0x1000, (_TABLES + (level + 1) * 0x1000) | 3
        )
    struct.pack_into("<QQ", memory, _TABLES + 0x2000, 0x83, 0x20_0083)
    memory[_CODE : _CODE + len(_X86_LOOP)] = _X86_LOOP
    special = bytearray(312)
    fcntl.ioctl(vcpu, _GET_SREGS, special)
    for index in range(6):  # cs ds es fs gs ss: flat, cs is 64-bit code
        code = index == 0
        segment = struct.pack(
            "<QIH10B", 0, 0xFFFFFFFF, 8 if code else 16, 0xB if code else 3,
            1, 0, 0 if code else 1, 1, 1 if code else 0, 1, 0, 0, 0,
        )  # fmt: skip
        special[index * 24 : index * 24 + 24] = segment
    struct.pack_into("<QQQQ", special, 224, 0x8000_0011, 0, _TABLES, 0x20)  # cr0 cr2 cr3 cr4
    struct.pack_into("<Q", special, 264, 0x500)  # EFER: LME, LMA
    fcntl.ioctl(vcpu, _SET_SREGS, bytes(special))
    # rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags
    fcntl.ioctl(
        vcpu, _SET_REGS,
        struct.pack("<18Q", 0, 0, rounds, 0, 0, _DATA, 0x8000, 0, *[0] * 8, _CODE, 2),
    )  # fmt: skip


def _prepare_arm(vcpu: int, memory: mmap.mmap, rounds: int) -> None:
    """EL1 with the MMU off, as it is after reset; x1 points outside of the memory."""
    memory[_CODE : _CODE + len(_ARM_LOOP)] = _ARM_LOOP
    for offset, value in ((0, rounds), (2, 2 * _MEMORY), (4, _DATA), (64, _CODE)):
        number = ctypes.c_uint64(value)
        pointer = ctypes.addressof(number)
        fcntl.ioctl(vcpu, _SET_ONE_REG, struct.pack("<QQ", _ARM_CORE_REG + offset, pointer))
