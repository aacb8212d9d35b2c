#!/usr/bin/env python3
"""The floor: how fast a VM can be restored here by a bare script, without any Spore code.

    python bench/floor.py --work DIR --runs N

Boots a small guest once under emulation, saves it, and restores it N times the plain way (QMP,
`migrate-incoming exec:cat`). F is the time from starting QEMU until the first process spawned in
the guest has ended; echo and exec are round trips on a live guest. Prints one JSON object. The
budgets of the project are multiples of F, measured in the same run: so don't make this faster.

Needs qemu-system-x86, busybox-static, cpio, apt and dpkg-deb, and gcc or the ziglang package.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MEMORY_MIB = 512
BOOT_DEADLINE = 60.0
ANSWER_DEADLINE = 20.0
MODULES = (
    "virtio_ring", "virtio", "virtio_mmio", "virtio_console", "virtio_blk", "squashfs", "overlay",
)  # fmt: skip
IGNORE_SHARED = [{"capability": "x-ignore-shared", "state": True}]

AGENT = r"""
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
extern char **environ;

/* 'e' + byte: echoed. 'x': one process is spawned and waited for, then 'X'. */
int main(void)
{
    static char buffer[65536];
    int fd = open("/dev/vport0p1", O_RDWR);
    for (;;) {
        struct pollfd waiting = {fd, POLLIN, 0};
        poll(&waiting, 1, -1);
        if (waiting.revents & POLLHUP && !(waiting.revents & POLLIN)) {
            usleep(1000);
            continue;
        }
        ssize_t n = read(fd, buffer, sizeof buffer);
        if (n <= 0) {
            usleep(500);
        } else if (buffer[0] == 'e') {
            write(fd, buffer, n);
        } else if (buffer[0] == 'x') {
            pid_t child;
            int status;
            char *argv[] = {"/bin/busybox", "true", 0};
            posix_spawn(&child, argv[0], 0, 0, argv, environ);
            waitpid(child, &status, 0);
            write(fd, "X", 1);
        }
    }
}
"""

INIT = f"""#!/bin/sh
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t devtmpfs dev /dev; $B mount -t sysfs s /sys
for m in {" ".join(MODULES)}; do $B insmod /m/$m.ko; done
echo READY
exec /bin/agent
"""


def run(*argv: str | Path, cwd: Path | None = None, input: bytes | None = None) -> bytes:
    return subprocess.run(argv, cwd=cwd, input=input, check=True, stdout=subprocess.PIPE).stdout


# -- the guest -------------------------------------------------------------------------------------


def unpack_kernel(work: Path) -> Path:
    """Debian's kernel for clouds, unpacked; returns the kernel's file."""
    tree = work / "kernel"
    if not any(tree.glob("boot/vmlinuz*")):
        try:
            listing = run("apt-cache", "depends", "linux-image-cloud-amd64").decode()
        except subprocess.CalledProcessError:
            listing = ""
        match = re.search(r"Depends: (\S+)", listing)
        if match is None:
            raise SystemExit("apt knows no linux-image-cloud-amd64: run apt-get update")
        run("apt-get", "-q", "download", match[1], cwd=work)
        package = next(work.glob("linux-image*.deb"))
        run("dpkg-deb", "-x", package, tree)
        package.unlink()
    return next(tree.glob("boot/vmlinuz*"))


def compiler() -> list[str]:
    if shutil.which("gcc"):
        return ["gcc"]
    return [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl"]


def build_initrd(work: Path) -> Path:
    initrd = work / "initrd"
    if initrd.exists():
        return initrd
    root = work / "root"
    for name in ("bin", "dev", "proc", "sys", "m"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    (root / "bin/sh").unlink(missing_ok=True)
    (root / "bin/sh").symlink_to("busybox")
    for module in MODULES:
        for path in (work / "kernel").glob(f"**/{module}.ko"):
            shutil.copy(path, root / "m")
    source = work / "agent.c"
    source.write_text(AGENT)
    run(*compiler(), "-O2", "-static", "-s", "-w", "-o", root / "bin/agent", source)
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    archive = run("cpio", "-o", "-H", "newc", "--quiet", cwd=root, input=names.encode())
    initrd.write_bytes(run("gzip", "-c", input=archive))
    return initrd


def tsc_option() -> str:
    """Spares the guest a calibration that fails on a busy host, and then hangs the boot."""
    match = re.search(r"^bogomips\s*:\s*([\d.]+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    if platform.machine() != "x86_64":
        return " tsc_early_khz=1000000"
    return f" tsc_early_khz={round(float(match[1]) * 500)}" if match else ""


# -- QEMU ------------------------------------------------------------------------------------------


class Files:
    """One VM's names in the working directory."""

    def __init__(self, work: Path, name: str) -> None:
        self.qmp = work / f"{name}.qmp"
        self.port = work / f"{name}.port"
        self.log = work / f"{name}.log"
        for path in (self.qmp, self.port, self.log):
            path.unlink(missing_ok=True)


def command(work: Path, files: Files, *, share: bool) -> list[str]:
    kernel = unpack_kernel(work)
    memory = f"memory-backend-file,id=mem,size={MEMORY_MIB}M,mem-path={work}/mem"
    return [
        "qemu-system-x86_64",
        *("-M", "microvm,acpi=on,memory-backend=mem"),
        *("-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max", "-smp", "1"),
        *("-m", str(MEMORY_MIB), "-object", f"{memory},share={'on' if share else 'off'}"),
        *("-kernel", str(kernel), "-initrd", str(work / "initrd")),
        *("-append", f"console=ttyS0 reboot=t panic=-1 quiet{tsc_option()}"),
        *("-nodefaults", "-nographic", "-serial", f"file:{files.log}"),
        *("-qmp", f"unix:{files.qmp},server=on,wait=off"),
        *("-device", "virtio-serial-device"),
        *("-chardev", f"socket,id=c,path={files.port},server=on,wait=off"),
        *("-device", "virtserialport,chardev=c,name=agent"),
        *("-drive", f"if=none,id=d0,file={work}/blank,format=raw,readonly=on"),
        *("-device", "virtio-blk-device,drive=d0"),
        *(() if share else ("-incoming", "defer")),
    ]


class Qmp:
    def __init__(self, path: Path) -> None:
        deadline = time.monotonic() + ANSWER_DEADLINE
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(ANSWER_DEADLINE)
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                self._socket.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.001)
        self._file = self._socket.makefile("rw")
        self._file.readline()
        self("qmp_capabilities")

    def __call__(self, name: str, **arguments: object) -> dict[str, str]:
        self._file.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "return" in answer:
                return dict(answer["return"])
            if "error" in answer:
                raise RuntimeError(f"{name}: {answer['error']}")

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@contextlib.contextmanager
def qemu(work: Path, files: Files, *, share: bool) -> Iterator[tuple[subprocess.Popen[bytes], Qmp]]:
    with contextlib.ExitStack() as stack:
        process = subprocess.Popen(command(work, files, share=share))
        stack.callback(process.wait)
        stack.callback(process.kill)
        qmp = Qmp(files.qmp)
        stack.callback(qmp.close)
        yield process, qmp


class Guest:
    def __init__(self, files: Files) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_DEADLINE)
        self._socket.connect(str(files.port))

    def ask(self, request: bytes, answer_length: int) -> None:
        self._socket.sendall(request)
        while answer_length > 0:
            data = self._socket.recv(65536)
            if not data:
                raise SystemExit("QEMU ended")
            answer_length -= len(data)

    def echo(self) -> None:
        self.ask(b"e1", 2)

    def spawn(self) -> None:
        self.ask(b"x", 1)

    def close(self) -> None:
        self._socket.close()


# -- the measurement -------------------------------------------------------------------------------


def make_template(work: Path) -> float:
    """Boot, warm, save; returns the seconds the boot took."""
    (work / "mem").unlink(missing_ok=True)
    with (work / "blank").open("wb") as blank:
        blank.truncate(8 << 30)
    files = Files(work, "template")
    began = time.perf_counter()
    with qemu(work, files, share=True) as (process, qmp):
        while "READY" not in (files.log.read_text() if files.log.exists() else ""):
            if time.perf_counter() - began > BOOT_DEADLINE or process.poll() is not None:
                raise SystemExit(f"the guest did not boot; its console is in {files.log}")
            time.sleep(0.01)
        took = time.perf_counter() - began
        guest = Guest(files)
        for _ in range(5):
            guest.echo()
            guest.spawn()
        guest.close()
        time.sleep(0.3)  # the guest notices the hang-up
        qmp("stop")
        qmp("migrate-set-capabilities", capabilities=IGNORE_SHARED)
        qmp("migrate", uri=f"exec:cat > {work}/state")
        while qmp("query-migrate").get("status") not in ("completed", "failed"):
            time.sleep(0.001)
        qmp("quit")
        process.wait()
    return took


def restore(work: Path, repeats: int) -> tuple[float, list[float], list[float]]:
    """One restore: seconds to the first exec, then that many round trips of both kinds."""
    files = Files(work, "clone")
    began = time.perf_counter()
    with qemu(work, files, share=False) as (_, qmp):
        qmp("migrate-set-capabilities", capabilities=IGNORE_SHARED)
        qmp("migrate-incoming", uri=f"exec:cat {work}/state")
        while qmp("query-status")["status"] == "inmigrate":
            time.sleep(0.0005)
        qmp("cont")
        guest = Guest(files)
        guest.echo()
        guest.spawn()
        took = time.perf_counter() - began
        echo, spawn = [], []
        for _ in range(repeats):
            a = time.perf_counter()
            guest.echo()
            b = time.perf_counter()
            guest.spawn()
            echo.append(b - a)
            spawn.append(time.perf_counter() - b)
        guest.close()
    return took, echo, spawn


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def milliseconds(seconds: float, digits: int = 1) -> float:
    return round(seconds * 1e3, digits)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the raw floor of a restore.")
    parser.add_argument("--work", type=Path, required=True, help="directory for kernel and memory")
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    unpack_kernel(work)
    build_initrd(work)
    boot = make_template(work)
    rows, echo, spawn = [], [], []
    for number in range(options.runs):
        took, echo, spawn = restore(work, 200 if number == options.runs - 1 else 0)
        rows.append(took)
    result = {
        "runs": options.runs,
        "samples_ms": [milliseconds(row) for row in rows],
        "cold_boot_ms": milliseconds(boot),
        "F_ms": {
            "p50": milliseconds(statistics.median(rows)),
            "p90": milliseconds(percentile(rows, 0.9)),
            "p99": milliseconds(percentile(rows, 0.99)),
            "min": milliseconds(min(rows)),
        },
        "echo_ms": milliseconds(statistics.median(echo), 2),
        "exec_ms": milliseconds(statistics.median(spawn), 2),
        "load1": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
