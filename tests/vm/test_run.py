"""`spore run` and the verbs around it, on real VMs."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

from sporevm.store.layout import Layout
from tests.conftest import eventually
from tests.vm.conftest import SPORE, Run, listed


def test_output_and_exit_code_pass_through(spore: Run) -> None:
    done = spore("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\n")
    assert done.stderr.endswith("err\n")


def test_the_readme_line(spore: Run) -> None:
    done = spore("run", "--", "python3", "-c", "print(6*7)")
    assert (done.returncode, done.stdout) == (0, "42\n")


def test_death_by_signal_is_128_plus_n(spore: Run) -> None:
    assert spore("run", "--", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM


def test_missing_program_is_127_and_not_executable_126(spore: Run) -> None:
    done = spore("run", "--", "no-such-program")
    assert done.returncode == 127
    assert "no-such-program" in done.stderr
    assert spore("run", "--", "/etc/passwd").returncode == 126


def test_stdin_environment_directory_and_user(spore: Run) -> None:
    done = spore("run", "-i", "--", "tr", "a-z", "A-Z", input="hello\n")
    assert done.stdout == "HELLO\n"
    done = spore(
        "run",
        "-e",
        "A=b c",
        "-w",
        "/made/here",
        "-u",
        "nobody",
        "--",
        "sh",
        "-c",
        'echo "$A $(pwd) $(id -un)"',
    )
    assert done.stdout == "b c /made/here nobody\n"


def test_timeout_is_124(spore: Run) -> None:
    done = spore("run", "--timeout", "1", "--", "sleep", "60")
    assert done.returncode == 124


def test_ctrl_c_reaches_the_process(home: Layout) -> None:
    process = subprocess.Popen(
        [
            SPORE,
            "run",
            "--",
            "sh",
            "-c",
            'trap "echo caught; exit 9" INT; echo up; while :; do sleep 0.1; done',
        ],
        env=os.environ | {"SPORE_HOME": str(home.home)},
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (9, b"caught\n")


def test_a_killed_client_ends_its_sandbox(home: Layout, spore: Run) -> None:
    process = subprocess.Popen(
        [SPORE, "run", "--", "sh", "-c", "echo up; sleep 1000"],
        env=os.environ | {"SPORE_HOME": str(home.home)},
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.kill()
    process.communicate()
    assert eventually(lambda: not listed(spore))


def test_pty_has_the_size_and_a_terminal(home: Layout) -> None:
    parent, child = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    process = subprocess.Popen(
        [SPORE, "run", "-it", "--", "sh", "-c", "tty; stty size; exit 3"],
        env=os.environ | {"SPORE_HOME": str(home.home)},
        stdin=child,
        stdout=child,
        stderr=child,
        start_new_session=True,
    )
    os.close(child)
    output = b""
    while True:
        try:
            piece = os.read(parent, 4096)
        except OSError:
            break
        if not piece:
            break
        output += piece
    os.close(parent)
    assert process.wait(timeout=60) == 3
    assert b"/dev/pts/" in output
    assert b"33 101" in output


def test_detached_named_exec_logs_stop_rm(spore: Run) -> None:
    done = spore("run", "-d", "--name", "web", "--", "sh", "-c", "echo started; exec sleep 1000")
    assert done.returncode == 0, done.stderr
    box_id = done.stdout.strip()
    assert re.fullmatch("[0-9a-f]{12}", box_id)
    try:
        assert [b["name"] for b in listed(spore)] == ["web"]
        done = spore(
            "exec", "web", "--", "sh", "-c", "hostname; cat /etc/machine-id | wc -c; exit 5"
        )
        assert (done.returncode, done.stdout) == (5, "web\n33\n")
        assert eventually(lambda: spore("logs", "web").stdout == "started\n")
        info = json.loads(spore("inspect", "web").stdout)
        found = info[0] if isinstance(info, list) else info
        assert found["state"] == "running"
        assert found["confinement"]
        assert spore("rm", "web").returncode == 1  # it runs
        assert spore("stop", "-t", "2", "web").returncode == 0
        assert spore("logs", "web").stdout == "started\n"
        assert spore("exec", "web", "--", "true").returncode == 1
    finally:
        assert spore("rm", "-f", "web").returncode == 0
    assert not listed(spore)


def test_main_process_end_ends_the_sandbox_and_keeps_code_and_log(spore: Run) -> None:
    spore("run", "-d", "--name", "once", "--", "sh", "-c", "echo done; exit 3")
    try:
        assert spore("wait", "once").stdout.strip() == "3"
        assert listed(spore)[0]["state"] == "stopped"
        assert spore("logs", "once").stdout == "done\n"
    finally:
        spore("rm", "-f", "once")


def test_memory_and_cpus_are_what_was_asked(spore: Run) -> None:
    done = spore(
        "run", "-m", "256M", "-c", "2", "--", "sh", "-c", "nproc; grep MemTotal /proc/meminfo"
    )
    lines = done.stdout.split("\n")
    assert lines[0] == "2"
    assert 180_000 < int(lines[1].split()[1]) < 262_144


def test_disk_is_what_was_asked(spore: Run) -> None:
    done = spore(
        "run",
        "--disk",
        "64M",
        "--",
        "sh",
        "-c",
        "df -k / | tail -1; dd if=/dev/zero of=/f bs=1M count=100 2>&1 | head -1",
    )
    assert int(done.stdout.split()[1]) < 65_536
    assert "No space left" in done.stdout


def test_no_network_card(spore: Run) -> None:
    done = spore("run", "--", "sh", "-c", "ls /sys/class/net; cat /proc/net/route | wc -l")
    assert done.stdout == "lo\n1\n"


def test_bad_input_is_one_clear_line(spore: Run, tmp_path: Path) -> None:
    cases = {
        ("run", "nosuchimage", "--", "true"): 1,
        ("run", "-m", "0", "--", "true"): 2,
        ("run", "-m", "99999G", "--", "true"): 2,
        ("run", "--name", "bad name!", "--", "true"): 2,
        ("run", "--cpus", "0", "--", "true"): 2,
        ("exec", "nosuchbox", "--", "true"): 1,
        ("exec", "nosuchbox"): 2,
        ("nosuchverb",): 2,
        ("image", "import", "x", str(tmp_path / "missing.tar")): 1,
    }
    broken = tmp_path / "broken.tar"
    broken.write_bytes(b"this is no tar" * 100)
    cases["image", "import", "x", str(broken)] = 1
    for argv, code in cases.items():
        done = spore(*argv)
        assert done.returncode == code, (argv, done)
        assert done.stderr.startswith("spore: "), (argv, done.stderr)
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) <= 3, done.stderr
    error = json.loads(spore("inspect", "--json", "nosuchbox").stdout)["error"]
    assert error["code"] == "not_found"


def test_name_is_unique(spore: Run) -> None:
    assert spore("run", "-d", "--name", "one", "--", "sleep", "100").returncode == 0
    done = spore("run", "-d", "--name", "one", "--", "sleep", "100")
    assert done.returncode == 1
    assert "taken" in done.stderr
    assert spore("rm", "-f", "one").returncode == 0


def test_wall_clock_and_randomness_differ(spore: Run) -> None:
    one, two = (
        spore(
            "run",
            "--",
            "sh",
            "-c",
            "date +%s; head -c16 /dev/urandom | od -An -tx1; cat /etc/machine-id",
        ).stdout.split("\n")
        for _ in range(2)
    )
    assert abs(int(one[0]) - time.time()) < 120
    assert one[1] != two[1]
    assert one[2] != two[2]
