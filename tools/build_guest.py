#!/usr/bin/env python3
"""Build what runs inside a guest, and the launcher that confines a VMM, from `guest/`.

    build_guest.py                    the binaries, into src/sporevm/_bin, if sources changed
    build_guest.py --native-tests     the C unit tests and the agent itself, under sanitizers
    build_guest.py --fuzz 100000      that many mutated inputs for the frame and TLV parsers

The compiler is zig's clang with its own musl (PyPI `ziglang`): no system compiler is needed, and
the same sources give the same bytes everywhere. The native tests prefer gcc with AddressSanitizer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GUEST = ROOT / "guest"
BIN = ROOT / "src" / "sporevm" / "_bin"
STAMP = "stamp.json"
ARCHES = ("x86_64", "aarch64")
AGENT_LIMIT = 200 * 1024

COMMON = [
    "-std=c17", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow", "-Wvla",
    "-Wstrict-prototypes", "-Wmissing-prototypes", "-Wundef", "-Wformat=2",
    "-Wimplicit-fallthrough",
]  # fmt: skip
#: -g0, no build id and a relative working directory: no path of the building machine gets inside.
HARDENED = [
    "-O2", "-fPIE", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2", "-fno-strict-aliasing",
    "-ffunction-sections", "-fdata-sections", "-fno-asynchronous-unwind-tables", "-g0",
    "-fno-ident",
]  # fmt: skip
LINK = [
    "-static", "-pie", "-s", "-Wl,-z,relro,-z,now,-z,noexecstack,--gc-sections,--build-id=none",
]  # fmt: skip


#: A library preloaded into the host's QEMU: glibc, as old a one as any QEMU that needs it has.
PRELOAD = ["-shared", "-fPIC", "-O2", "-g0", "-fno-ident", "-s", "-Wl,--build-id=none"]
PRELOAD_GLIBC = "2.17"


class BuildError(Exception):
    """A tool failed; the message is its command and what it printed."""


@dataclass(frozen=True)
class Target:
    name: str  # the file in _bin is "name-arch"
    directory: str
    preload: bool = False

    def file(self, arch: str) -> str:
        return f"{self.name}-{arch}" + (".so" if self.preload else "")

    def argv(self, arch: str) -> list[str]:
        if self.preload:
            return [*zig(), "-target", f"{arch}-linux-gnu.{PRELOAD_GLIBC}", *COMMON, *PRELOAD]
        return [*zig(), "-target", f"{arch}-linux-musl", *COMMON, *HARDENED, *LINK]

    def sources(self) -> list[str]:
        """Relative to `guest/`, in a fixed order: it decides the layout of the binary."""
        return sorted(str(p.relative_to(GUEST)) for p in (GUEST / self.directory).glob("*.c"))


TARGETS = (
    Target("agent", "agent"),
    Target("launch", "launch"),
    Target("memro", "memro", preload=True),
)


def say(text: str) -> None:
    print(text, flush=True)


def run(argv: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        argv, cwd=cwd or GUEST, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise BuildError(f"{' '.join(argv)}\n{done.stdout}{done.stderr}".rstrip())


def zig() -> list[str]:
    return [sys.executable, "-m", "ziglang", "cc"]


def zig_version() -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ziglang", "version"], capture_output=True, text=True
    )
    if done.returncode:
        raise BuildError("zig is missing; install it with: pip install ziglang")
    return done.stdout.strip()


def digest(paths: Iterable[Path], *extra: str) -> str:
    """Of contents and relative names, so that it is the same in every checkout."""
    h = hashlib.sha256("\0".join(extra).encode())
    for path in sorted(paths):
        data = path.read_bytes()
        h.update(f"{path.relative_to(ROOT)}\0{len(data)}\0".encode())
        h.update(data)
    return h.hexdigest()


def source_digest(compiler: str) -> str:
    files = [p for t in TARGETS for p in (GUEST / t.directory).glob("*.[ch]")]
    return digest(files, compiler, *COMMON, *HARDENED, *LINK, *PRELOAD, PRELOAD_GLIBC)


def compile_target(target: Target, arch: str, out: Path) -> None:
    """Compile into a private name and rename: others may be reading the old binary."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".build-") as tmp:
        made = Path(tmp) / target.name
        run([*target.argv(arch), "-o", str(made), *target.sources()])
        if target.name == "agent" and made.stat().st_size > AGENT_LIMIT:
            raise BuildError(f"agent-{arch} has {made.stat().st_size} bytes, over {AGENT_LIMIT}")
        made.chmod(0o755)
        made.rename(out)


def build(out: Path = BIN, *, force: bool = False) -> bool:
    """Build all of them; False if they were there already, from these sources."""
    out.mkdir(parents=True, exist_ok=True)
    wanted = source_digest(zig_version())
    names = [t.file(arch) for t in TARGETS for arch in ARCHES]
    if not force and _stamp(out) == wanted and all((out / n).exists() for n in names):
        say(f"guest: up to date ({wanted[:12]})")
        return False
    for target in TARGETS:
        for arch in ARCHES:
            path = out / target.file(arch)
            compile_target(target, arch, path)
            say(f"guest: {path.name} {path.stat().st_size} bytes")
    (out / STAMP).write_text(json.dumps({"sources": wanted}) + "\n")
    return True


def _stamp(out: Path) -> str:
    try:
        return str(json.loads((out / STAMP).read_text())["sources"])
    except (OSError, ValueError, KeyError):
        return ""


# Native tests


def native_compiler() -> tuple[list[str], str]:
    """The machine's own compiler with AddressSanitizer, else zig's with UBSan alone."""
    probe = "int main(void) { return 0; }\n"
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    for name in ("gcc", "clang"):
        found = shutil.which(name)
        if not found:
            continue
        with tempfile.TemporaryDirectory() as tmp:
            source = Path(tmp) / "probe.c"
            source.write_text(probe)
            try:
                run([found, *checks, str(source), "-o", f"{tmp}/probe"])
                run([f"{tmp}/probe"])
            except BuildError:
                continue
        return [found, *checks], f"{name}, address and undefined-behaviour sanitizers"
    return (
        [*zig(), "-fsanitize=undefined", "-fno-sanitize-recover=all"],
        "zig, undefined-behaviour sanitizer only (no native compiler with AddressSanitizer)",
    )


def _bytes(text: str) -> str:
    escaped = "".join("\\x" + text[i : i + 2] for i in range(0, len(text), 2))
    return f'(const uint8_t *)"{escaped}"'


def vectors_header() -> str:
    """The golden vectors of tests/vectors as C tables."""
    vectors = ROOT / "tests" / "vectors"
    lines = ["/* Made by tools/build_guest.py from tests/vectors. */"]
    rows = []
    for i, v in enumerate(json.loads((vectors / "frames.json").read_text())):
        parts = [
            f"{{{f['stream']}u, {f['type']}, {f['channel']}, {len(f['payload_hex']) // 2}, "
            f"{_bytes(f['payload_hex'])}}}"
            for f in v["frames"]
        ]
        lines.append(
            f"static const struct vec_one_frame frames_{i}[] = {{{', '.join(parts) or '{0}'}}};"
        )
        rows.append(_row(v, f"frames_{i}, {len(parts)}"))
    lines.append(_table("vec_frames", rows))
    rows = []
    for i, v in enumerate(json.loads((vectors / "tlv.json").read_text())):
        parts = [f"{{{tag}, {len(h) // 2}, {_bytes(h)}}}" for tag, h in v["fields"]]
        lines.append(
            f"static const struct vec_one_field fields_{i}[] = {{{', '.join(parts) or '{0}'}}};"
        )
        rows.append(_row(v, f"fields_{i}, {len(parts)}"))
    lines.append(_table("vec_tlvs", rows))
    rows = []
    for v in json.loads((vectors / "sync.json").read_text()):
        if v["role"] == "agent":
            nonce, ack = v.get("nonce_hex") or "", v.get("ack_hex") or ""
            numbers = f"{v.get('end') or 0}, {v.get('lowest') or 0}, {v.get('highest') or 0}"
            extra = f"{numbers}, {int(bool(v.get('end')))}, {_bytes(nonce)}, {_bytes(ack)}"
            head = f"{json.dumps(v['name'])}, {_bytes(v['hex'])}, {len(v['hex']) // 2}"
            rows.append(f"{{{head}, {extra}}}")
    lines.append(_table("vec_syncs", rows))
    return "\n".join(lines) + "\n"


def _row(vector: dict[str, object], extra: str) -> str:
    text = str(vector["hex"])
    head = f"{json.dumps(vector['name'])}, {_bytes(text)}, {len(text) // 2}"
    return f"{{{head}, {int(bool(vector['error']))}, {extra}}}"


def _table(name: str, rows: list[str]) -> str:
    kind = name.removesuffix("s")
    body = ",\n".join(f"    {row}" for row in rows)
    return f"static const struct {kind} {name}[] = {{\n{body},\n}};"


def build_native(into: Path) -> dict[str, Path]:
    """The C unit test, the parser fuzzer and the agent for a test socket, all under sanitizers."""
    compiler, how = native_compiler()
    say(f"native: {how}")
    (into / "vectors.h").write_text(vectors_header())
    common = [*compiler, *COMMON, "-g", "-O1", "-DSPORE_TEST", "-Iagent", f"-I{into}"]
    parsers = ["agent/frame.c", "agent/tlv.c"]
    plans = {
        "test_parsers": ["tests/test_parsers.c", *parsers],
        "fuzz_parsers": ["tests/fuzz_parsers.c", *parsers],
        "agent": TARGETS[0].sources(),
    }
    made = {}
    for name, sources in plans.items():
        made[name] = into / name
        run([*common, "-o", str(made[name]), *sources])
        say(f"native: built {name}")
    return made


def native_env() -> dict[str, str]:
    return {**os.environ, "ASAN_OPTIONS": "abort_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


def native_tests() -> None:
    with tempfile.TemporaryDirectory(prefix="guest-native-") as tmp:
        made = build_native(Path(tmp))
        run([str(made["test_parsers"])], env=native_env())
        say("native: golden vectors hold")
        run([sys.executable, str(GUEST / "tests" / "scenarios.py"), str(made["agent"])])
        say("native: agent scenarios pass")


def fuzz(iterations: int, seed: int = 1) -> None:
    with tempfile.TemporaryDirectory(prefix="guest-fuzz-") as tmp:
        made = build_native(Path(tmp))
        run([str(made["fuzz_parsers"]), str(seed), str(iterations)], env=native_env())
        say(f"fuzz: {iterations} inputs, seed {seed}, no finding")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the guest agent and the launcher.")
    parser.add_argument("--out", type=Path, default=BIN, help="directory of the binaries")
    parser.add_argument("--force", action="store_true", help="build even if nothing changed")
    parser.add_argument("--native-tests", action="store_true")
    parser.add_argument("--fuzz", type=int, metavar="ITERATIONS", default=0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    try:
        if args.native_tests:
            native_tests()
        if args.fuzz:
            fuzz(args.fuzz, args.seed)
        if not (args.native_tests or args.fuzz):
            build(args.out.resolve(), force=args.force)
    except BuildError as error:
        print(f"build_guest: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
