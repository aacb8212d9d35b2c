"""Spore beside the bare floor, in one run: `make bench`, or `python -m bench.bench --help`.

Nothing here asserts. It prints a table of measured figures with the budgets beside them, and writes
the same as JSON. Budgets that name F are ratios to the floor of this very run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.measure import Row, Series, private_bytes, rss_bytes, table
from sporevm import Sandbox
from sporevm.sdk._sync import Sandbox as SyncSandbox

ROOT = Path(__file__).resolve().parents[1]
SPORE = str(Path(sys.executable).with_name("spore"))


def floor(work: Path, runs: int) -> dict[str, object]:
    """The bare script in a process of its own: no Spore code in it."""
    done = subprocess.run(
        [sys.executable, "bench/floor.py", "--work", str(work), "--runs", str(runs)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    answer: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def create_and_exec(series: Series, runs: int) -> None:
    for _ in range(runs):
        start = time.perf_counter()
        box = Sandbox.create("base")
        result = box.commands.run(["true"])
        series.values.append((time.perf_counter() - start) * 1e3)
        assert result.exit_code == 0
        box.kill()


def whole_process(series: Series, runs: int, *argv: str) -> None:
    for _ in range(runs):
        series.time(lambda: subprocess.run([SPORE, *argv], check=True))


def engine_pid() -> int:
    done = subprocess.run(
        [SPORE, "daemon", "status", "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    return int(json.loads(done.stdout)["pid"])


def template_build() -> float:
    """A bare template from nothing, cold boot included: a home of its own with the same kernel."""
    home = Path(tempfile.mkdtemp(prefix="spb-"))
    try:
        env = os.environ | {"SPORE_HOME": str(home)}
        source = json.loads(
            subprocess.run(
                [SPORE, "daemon", "status", "--json"], check=True, stdout=subprocess.PIPE, text=True
            ).stdout
        )["home"]
        for name in ("kernels", "images"):
            subprocess.run(["cp", "-a", "--sparse=always", f"{source}/{name}", home], check=True)
        subprocess.run([SPORE, "ls"], env=env, check=True, stdout=subprocess.DEVNULL)
        start = time.perf_counter()
        subprocess.run(
            [SPORE, "template", "build", "-q"],
            env=env,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        spent = (time.perf_counter() - start) * 1e3
        subprocess.run([SPORE, "daemon", "stop"], env=env, check=True, stdout=subprocess.DEVNULL)
        return spent
    finally:
        shutil.rmtree(home, ignore_errors=True)


def throughput(box: SyncSandbox, mib: int) -> tuple[float, float]:
    data = os.urandom(1 << 20) * mib
    start = time.perf_counter()
    box.files.write("/var/tmp/bench.bin", data)
    up = mib / (time.perf_counter() - start)
    start = time.perf_counter()
    back = box.files.read("/var/tmp/bench.bin", format="bytes")
    down = mib / (time.perf_counter() - start)
    assert back == data
    return up, down


def agent_size() -> int:
    paths = sorted((ROOT / "src/sporevm/_bin").glob("agent-*"))
    return max(path.stat().st_size for path in paths)


def measure(args: argparse.Namespace) -> tuple[list[Row], dict[str, object]]:
    f, create, run_process, exec_process, live = Series(), Series(), Series(), Series(), Series()
    same = Series()
    raw_exec: list[float] = []
    boots: list[float] = []
    # Floor and Spore take turns, so that a change of the machine's mood meets both.
    Sandbox.create("base").kill()
    time.sleep(3)  # the image template is made behind the first start
    for _ in range(args.rounds):
        answer = floor(args.work, args.runs)
        f.values += answer["samples_ms"]  # type: ignore[operator]
        raw_exec.append(float(answer["exec_ms"]))  # type: ignore[arg-type]
        boots.append(float(answer["cold_boot_ms"]))  # type: ignore[arg-type]
        create_and_exec(create, args.runs)
        whole_process(run_process, args.runs, "run", "-q", "--", "true")
    with Sandbox.create("base") as box:
        for _ in range(args.execs):
            live.time(lambda: box.commands.run(["true"]))
        static = Path("/bin/busybox")
        box.files.write("/var/tmp/busybox", static.read_bytes(), mode=0o755)
        for _ in range(args.execs):
            same.time(lambda: box.commands.run(["/var/tmp/busybox", "true"]))
        whole_process(exec_process, args.runs * args.rounds, "exec", box.id, "--", "true")
    with Sandbox.create("base") as box:
        box.commands.run(["true"])
        pid = box.info().pid
        time.sleep(1)
        idle_private = private_bytes(pid)
        idle_guest = private_bytes(pid, "/mem")
        up, down = throughput(box, args.mib)
    engine = engine_pid()
    rss_empty = rss_bytes(engine)
    boxes = [Sandbox.create("base") for _ in range(args.boxes)]
    rss_full = rss_bytes(engine)
    for box in boxes:
        box.kill()
    build = template_build()
    raw = sorted(raw_exec)[len(raw_exec) // 2]
    boot = min(boots)
    mib = 1 << 20
    rows = [
        Row(
            "SDK create + first exec, p50",
            create.p50,
            1.25 * f.p50,
            "ms",
            f"1.25 F; {create.p50 / f.p50:.2f} F",
        ),
        Row(
            "SDK create + first exec, p99",
            create.p99,
            2 * f.p50,
            "ms",
            f"2 F; {create.p99 / f.p50:.2f} F",
        ),
        Row(
            "exec on a live sandbox, p50",
            same.p50,
            raw + 2,
            "ms",
            f"raw {raw:.2f} ms + 2; the floor's own program, static",
        ),
        Row(
            "the same with the image's `true`", live.p50, raw + 2, "ms", "dynamic: more guest work"
        ),
        Row("`spore exec BOX true`, p50", exec_process.p50, 100, "ms", "whole process"),
        Row(
            "`spore run -- true`, p50", run_process.p50, f.p50 + 150, "ms", "F + 150, whole process"
        ),
        Row(
            "template build, cold boot included",
            build,
            2500,
            "ms",
            f"whole process; the floor's bare cold boot {boot:.0f} ms",
        ),
        Row("agent binary, the larger", agent_size() / 1024, 200, "KB"),
        Row("private memory of an idle sandbox", idle_private / mib, 45, "MiB"),
        Row("of it guest RAM", idle_guest / mib, 8, "MiB"),
        Row("engine RSS", rss_empty / mib, 90, "MiB"),
        Row(
            f"engine RSS with {args.boxes} sandboxes", rss_full / mib, 90 + 0.5 * args.boxes, "MiB"
        ),
        Row("file upload", up, 80, "MB/s", at_least=True),
        Row("file download", down, 80, "MB/s", at_least=True),
    ]
    series = {
        "F": f,
        "create_exec": create,
        "exec_live": live,
        "exec_live_static": same,
        "exec_process": exec_process,
        "run_process": run_process,
    }
    return rows, {name: s.as_dict() for name, s in series.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="of each thing in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--execs", type=int, default=300)
    parser.add_argument("--boxes", type=int, default=10)
    parser.add_argument("--mib", type=int, default=64, help="size of the file sent both ways")
    parser.add_argument("--work", type=Path, default=ROOT / "bench/results/floor")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows, series = measure(args)
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, kernel {platform.release()}")
    print("series (ms):")
    for name, values in series.items():
        print(f"  {name:14} {values}")
    print()
    print(table(rows))
    result = {"series": series, "rows": [row.as_dict() for row in rows], "time": time.time()}
    path = ROOT / "bench/results/bench.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
