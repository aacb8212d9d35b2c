#!/usr/bin/env python3
"""What the agent promises, tried on a build that serves a socket as an ordinary process.

    scenarios.py AGENT [NAME...]     every scenario, or some; exits 1 at the first that fails

Every function `check_*` is one scenario: it gets a synchronised Peer and an empty directory.
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import peer as p


@contextmanager
def agent(binary: Path) -> Iterator[tuple[p.Peer, subprocess.Popen[bytes]]]:
    """An agent and a host that has synchronised; the agent must end without a sanitizer's word."""
    ours, theirs = socket.socketpair()
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1"}
    fd = theirs.fileno()
    argv = [str(binary), "--test-socket", str(fd)]
    popen = subprocess.Popen(argv, pass_fds=[fd], stderr=subprocess.PIPE, env=env)
    with ours, popen as child:
        theirs.close()
        try:
            host = p.Peer(ours)
            host.sync()
            yield host, child
            ours.close()
            _, said = child.communicate(timeout=20)
            assert child.returncode == 0, f"agent ended with {child.returncode}: {said.decode()}"
            assert not said, said.decode()
        except BaseException:
            child.kill()
            raise


def check_hello_and_ping(host: p.Peer, tmp: Path) -> None:
    assert host.version == 1
    assert host.hello["version"] and host.hello["flags"] == [0]
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    assert host.hello["boot_id"] == [boot_id]
    host.frame(0, p.PING)
    host.frame(0, p.PING, b"x" * 64)
    while len(host.pongs) < 2:
        host.step()
    assert host.pongs == [b"", b"x" * 64]


def check_no_common_version(host: p.Peer, tmp: Path) -> None:
    host.sync(low=2, high=9)
    assert host.version == 0
    host.sync(low=0, high=7)
    assert host.version == 1


def check_exec(host: p.Peer, tmp: Path) -> None:
    s = host.run("sh", "-c", "echo out; echo err >&2; exit 3", proc="main")
    assert s.exit() == (3, 0, 0)
    assert (bytes(s.out[1]), bytes(s.out[2])) == (b"out\n", b"err\n")
    assert s.frames[0] == p.REPLY and s.frames[-2:] == [p.EVENT, p.CLOSE]
    assert host.ok(p.PROCS).reply == {"errno": [0]}, "our CLOSE freed the record"
    assert host.run("sh", "-c", "kill -9 $$", proc="a").exit() == (0, 9, 0)


def check_not_found(host: p.Peer, tmp: Path) -> None:
    assert host.run("no-such-program", proc="a").errno == errno.ENOENT
    assert host.run(str(tmp / "x"), proc="a").errno == errno.ENOENT
    (tmp / "x").write_text("plain")
    assert host.run(str(tmp / "x"), proc="a").errno == errno.EACCES
    assert host.run("x", proc="a", env=[f"PATH=/nowhere:{tmp}"]).errno == errno.EACCES
    (tmp / "x").chmod(0o755)
    (tmp / "x").write_text("echo $0 $1\n")
    s = host.run("x", "arg", proc="a", env=[f"PATH={tmp}:/bin"])
    assert s.out[1] == f"{tmp}/x arg\n".encode()


def check_bad_requests(host: p.Peer, tmp: Path) -> None:
    assert host.run(proc="a").errno == errno.EINVAL
    assert host.run("true", proc="").errno == errno.EINVAL
    assert host.run("true", proc="x" * 65).errno == errno.EINVAL
    assert host.run("true", proc="a", user="nobody-knows-me").errno == errno.EINVAL
    assert host.call(99).errno == errno.ENOSYS
    assert host.call(p.STAT).errno == errno.EINVAL
    bad = p.Stream(host.next_id)
    host.streams[bad.id] = bad
    host.next_id += 2
    host.frame(bad.id, p.OPEN, bytes([p.STAT]) + b"\x05\x00\xff\xff")
    assert host.finish(bad).errno == errno.EBADMSG
    host.replied(host.open(p.EXEC, proc="same", arg=["sleep", "60"]))
    assert host.run("true", proc="same").errno == errno.EEXIST
    host.ok(p.KILL, proc="same", signal=9)


def check_environment(host: p.Peer, tmp: Path) -> None:
    host.ok(p.CONFIGURE, env=["A=default", "B=default"])
    out = host.run("env", proc="a", env=["B=own", "C=1", "C=2"]).out[1]
    env = dict(line.split("=", 1) for line in out.decode().splitlines())
    assert (env["A"], env["B"], env["C"]) == ("default", "own", "2")
    assert env["PATH"].startswith("/usr/local/sbin:") and env["SHELL"]
    assert (env["USER"], env["LOGNAME"], env["HOME"]) == ("root", "root", "/root")
    out = host.run("env", proc="b", flags=4, env=["HOME=/x"]).out[1]
    env = dict(line.split("=", 1) for line in out.decode().splitlines())
    assert "A" not in env and env["HOME"] == "/x"


def check_user_and_cwd(host: p.Peer, tmp: Path) -> None:
    tmp.chmod(0o755)
    tmp.parent.chmod(0o755)
    s = host.run("sh", "-c", "id -u; id -g; pwd", proc="a", user="1234:2345", cwd=f"{tmp}/new/dir")
    assert s.out[1] == f"1234\n2345\n{tmp}/new/dir\n".encode(), s
    assert ((tmp / "new/dir").stat().st_uid, (tmp / "new").stat().st_gid) == (1234, 2345)
    s = host.run("sh", "-c", "id -un; id -gn; cd; pwd", proc="a", user="daemon", cwd="/")
    assert s.out[1].split()[:2] == [b"daemon", b"daemon"], s
    assert host.run("sh", "-c", "id -G", proc="a", user="daemon:sys").out[1] == b"3\n"
    assert host.run("pwd", proc="a", cwd="/etc/passwd").errno == errno.ENOTDIR


def check_clean_child(host: p.Peer, tmp: Path) -> None:
    """No fd of the agent, default signals, its own session."""
    s = host.run("ls", "/proc/self/fd", proc="a")
    assert s.out[1].split() == [b"0", b"1", b"2", b"3"], s  # 3 is ls's own
    status = host.run("cat", "/proc/self/status", proc="b").out[1].decode().splitlines()
    masks = [
        int(line.split()[1], 16) for line in status if line[:6] in ("SigBlk", "SigIgn", "SigCgt")
    ]
    # 32 and 33 are libc's own; glibc's posix_spawn, which make uses, leaves them ignored.
    assert [mask & ~0x180000000 for mask in masks] == [0, 0, 0], status
    s = host.run("sh", "-c", "cut -d' ' -f1,5,6 /proc/$$/stat", proc="c")
    assert len(set(bytes(s.out[1]).split())) == 1, s


def check_stdin(host: p.Peer, tmp: Path) -> None:
    data = os.urandom(1 << 20)
    s = host.open(p.EXEC, proc="a", arg=["sha256sum"], flags=2)
    host.send(s, data)
    host.frame(s.id, p.EOF)
    assert host.finish(s).out[1].split()[0].decode() == hashlib.sha256(data).hexdigest()
    s = host.open(p.EXEC, proc="b", arg=["true"], flags=2)
    host.send(s, data)  # nobody reads it: it is swallowed
    assert host.finish(s).exit() == (0, 0, 0)
    assert host.run("cat", proc="c").exit() == (0, 0, 0)


def check_large_output(host: p.Peer, tmp: Path) -> None:
    s = host.run("sh", "-c", "head -c 3000000 /dev/zero; head -c 700000 /dev/zero >&2", proc="a")
    assert (len(s.out[1]), len(s.out[2])) == (3000000, 700000)


def check_windows(host: p.Peer, tmp: Path) -> None:
    """A stalled reader gets one window, and stops nobody else."""
    s = host.open(p.EXEC, proc="a", arg=["head", "-c", "1000000", "/dev/zero"])
    s.paused = True
    while len(s.out[1]) < p.WINDOW:
        host.step()
    assert host.run("echo", "hi", proc="b").out[1] == b"hi\n"
    assert len(s.out[1]) == p.WINDOW and s.event is None
    s.paused = False
    host.frame(s.id, p.CREDIT, struct.pack("<I", p.WINDOW), 1)
    assert len(host.finish(s).out[1]) == 1000000


def check_signal_and_timeout(host: p.Peer, tmp: Path) -> None:
    s = host.replied(host.open(p.EXEC, proc="a", arg=["sh", "-c", "sleep 60; true"]))
    host.frame(s.id, p.EVENT, p.tlv(signal=15))
    assert host.finish(s).exit() == (0, 15, 0)
    begin = time.monotonic()
    s = host.run("sh", "-c", "sleep 60; true", proc="b", timeout_ms=200)
    assert s.exit() == (0, 9, 1) and 0.15 < time.monotonic() - begin < 10
    script = "setsid sleep 60 & exit 0"
    assert host.run("sh", "-c", script, proc="c", timeout_ms=300).exit() == (0, 0, 1)


def check_kill_without_stream(host: p.Peer, tmp: Path) -> None:
    s = host.replied(host.open(p.EXEC, proc="a", arg=["sleep", "60"]))
    host.frame(s.id, p.CLOSE)
    entry = host.ok(p.PROCS).reply
    assert entry is not None and p.parse(entry["entry"][0])["proc"] == [b"a"]  # type: ignore[arg-type]
    host.ok(p.KILL, proc="a", signal=signal.SIGKILL)
    s = host.finish(host.open(p.ATTACH, proc="a"))
    assert s.exit() == (0, 9, 0)
    assert host.call(p.KILL, proc="a", signal=9).errno == errno.ESRCH


def check_attach(host: p.Peer, tmp: Path) -> None:
    """A lost connection: output goes on from the byte the host names, input from the agent's."""
    script = "echo one; read x; echo got $x; read y; echo got $y; exit 7"
    s = host.open(p.EXEC, proc="main", arg=["sh", "-c", script], flags=2)
    s.paused = True
    host.send(s, b"first\n")
    while b"got first" not in s.out[1]:
        host.step()
    host.sync()
    assert host.call(p.ATTACH, proc="other").errno == errno.ESRCH
    assert host.call(p.ATTACH, proc="main", stdout_seen=99).errno == errno.ERANGE
    s = host.replied(host.open(p.ATTACH, proc="main", stdout_seen=4, stderr_seen=0))
    assert s.number("stdin_seen") == 6 and s.number("pid") > 0
    assert host.call(p.ATTACH, proc="main").errno == errno.EBUSY
    host.send(s, b"second\n")
    assert host.finish(s).out[1] == b"got first\ngot second\n" and s.exit() == (7, 0, 0)


def check_attach_after_end(host: p.Peer, tmp: Path) -> None:
    s = host.open(p.EXEC, proc="main", arg=["sh", "-c", "echo out; echo err >&2; exit 5"])
    s.paused = True
    while s.close is None:
        host.step()
    for _ in range(2):  # the CLOSE that would free it was lost
        host.sync(flush=True)
        s = host.open(p.ATTACH, proc="main", stdout_seen=1)
        s.paused = True
        while s.close is None:
            host.step()
        assert (bytes(s.out[1]), bytes(s.out[2]), s.exit()) == (b"ut\n", b"err\n", (5, 0, 0))
    host.frame(s.id, p.CLOSE)
    assert host.call(p.ATTACH, proc="main").errno == errno.ESRCH


def check_pty(host: p.Peer, tmp: Path) -> None:
    script = "stty size; tty; echo $TERM; read x; stty size; exit 4"
    s = host.open(p.EXEC, proc="a", arg=["sh", "-c", script], flags=3, rows=33, cols=99)
    while b"xterm" not in s.out[1]:
        host.step()
    host.frame(s.id, p.EVENT, p.tlv(rows=50, cols=120))
    host.send(s, b"line\n")
    host.finish(s)
    lines = s.out[1].decode().split("\r\n")
    assert lines[0] == "33 99" and lines[1].startswith("/dev/pts/") and "50 120" in lines, lines
    assert s.exit() == (4, 0, 0) and s.ended == {1, 2}
    s = host.open(p.EXEC, proc="b", arg=["cat"], flags=3)
    host.frame(s.id, p.EOF)
    assert host.finish(s).exit() == (0, 0, 0), s
    s = host.replied(host.open(p.EXEC, proc="c", arg=["sleep", "60"], flags=3))
    host.send(s, b"\x03")
    assert host.finish(s).exit() == (0, 2, 0)


def check_ended_records_are_bounded(host: p.Peer, tmp: Path) -> None:
    for i in range(70):  # each leaves nearly a window of output that nobody fetches
        s = host.open(p.EXEC, proc=f"p{i}", arg=["head", "-c", str(p.WINDOW - 1), "/dev/zero"])
        s.paused = True
        while s.close is None:
            host.step()
        host.sync()
    entries = host.ok(p.PROCS).reply
    assert entries is not None and len(entries["entry"]) == 64, entries
    assert host.call(p.ATTACH, proc="p5").errno == errno.ESRCH
    assert len(host.ok(p.ATTACH, proc="p6").out[1]) == p.WINDOW - 1


def check_file_write_and_read(host: p.Peer, tmp: Path) -> None:
    data, path = os.urandom(1_000_000), tmp / "a/b/f"
    assert host.write(str(path), data).errno == errno.ENOENT
    s = host.write(str(path), data, flags=2, mode=0o640, user="12:34")
    assert s.event == {"size": [len(data)], "errno": [0]}
    st = path.stat()
    assert (st.st_mode & 0o7777, st.st_uid, st.st_gid) == (0o640, 12, 34)
    assert (path.parent.stat().st_uid, list(path.parent.iterdir())) == (12, [path])
    s = host.ok(p.FILE_READ, path=str(path))
    assert bytes(s.out[1]) == data and s.number("size") == len(data) and s.number("kind") == 1
    s = host.ok(p.FILE_READ, path=str(path), offset=10, size=70000)
    assert bytes(s.out[1]) == data[10:70010]
    host.write(str(path), b"more", flags=1)
    assert path.read_bytes() == data + b"more"
    host.write(str(path), b"new")
    st = path.stat()
    assert (path.read_bytes(), st.st_mode & 0o7777, st.st_uid) == (b"new", 0o640, 12)
    assert host.write(str(path), b"", flags=4).errno == errno.EEXIST
    assert host.ok(p.FILE_READ, path="/proc/self/status").out[1].startswith(b"Name:")
    for bad in (p.FILE_READ, p.FILE_WRITE):
        assert host.call(bad, path=str(tmp)).errno == errno.EISDIR
        assert host.call(bad, path=str(tmp / "none/none")).errno == errno.ENOENT


def check_write_keeps_the_old(host: p.Peer, tmp: Path) -> None:
    (tmp / "f").write_text("old")
    for how in ("close", "sync"):
        s = host.replied(host.open(p.FILE_WRITE, path=str(tmp / "f")))
        host.send(s, b"half")
        if how == "close":
            host.frame(s.id, p.CLOSE)
        else:
            host.sync()
    host.ok(p.METRICS)
    assert list(tmp.iterdir()) == [tmp / "f"] and (tmp / "f").read_text() == "old"
    (tmp / "link").symlink_to("target")
    (tmp / "target").write_text("t")
    host.write(str(tmp / "link"), b"through")
    assert (tmp / "link").is_symlink() and (tmp / "target").read_text() == "through"
    assert host.write("/dev/null", b"x" * 100000).event == {"size": [100000], "errno": [0]}
    s = host.write("/dev/full", b"x")
    assert s.event is not None and s.event["errno"] == [errno.ENOSPC]


def check_stat_list(host: p.Peer, tmp: Path) -> None:
    (tmp / "dir").mkdir()
    (tmp / "link").symlink_to("dir")
    os.mkfifo(tmp / "fifo")
    names = {f"file-{i:04}-{'x' * 100}" for i in range(1500)}
    for name in names:
        (tmp / "dir" / name).touch()
    s = host.ok(p.STAT, path=str(tmp / "link"))
    assert s.reply is not None and s.reply["target"] == [b"dir"] and s.number("kind") == 3
    s = host.ok(p.STAT, path=str(tmp / "link"), flags=1)
    assert (s.number("kind"), s.number("mtime_ns")) == (2, (tmp / "dir").stat().st_mtime_ns)
    assert host.call(p.STAT, path=str(tmp / "none")).errno == errno.ENOENT
    found = p.parse(bytes(host.ok(p.LIST, path=str(tmp / "dir")).out[1]))["entry"]
    assert {e["name"][0].decode() for e in host.entries(found)} == names  # type: ignore[union-attr]
    found = p.parse(bytes(host.ok(p.LIST, path=str(tmp)).out[1]))["entry"]
    kinds = {e["name"][0]: e["kind"][0] for e in host.entries(found)}
    assert kinds == {b"dir": 2, b"link": 3, b"fifo": 6}
    assert host.call(p.LIST, path=str(tmp / "fifo")).errno == errno.ENOTDIR


def check_remove_rename_mkdir(host: p.Peer, tmp: Path) -> None:
    host.ok(p.MKDIR, path=str(tmp / "a/b"), flags=2, mode=0o700, user="7:8")
    assert (tmp / "a/b").stat().st_mode & 0o777 == 0o700 and (tmp / "a").stat().st_uid == 7
    assert host.call(p.MKDIR, path=str(tmp / "a/b")).errno == errno.EEXIST
    host.ok(p.MKDIR, path=str(tmp / "a/b"), flags=2)
    host.ok(p.RENAME, path=str(tmp / "a/b"), path2=str(tmp / "a/c"))
    assert host.call(p.REMOVE, path=str(tmp / "a")).errno == errno.ENOTEMPTY
    deep = tmp / "a"
    fd = os.open(deep, os.O_RDONLY)
    for i in range(600):  # deeper than a path can be long
        os.mkdir("long-directory-name", dir_fd=fd)
        os.close(os.open(f"file{i % 3}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.symlink("/etc", "link", dir_fd=fd)
        fd, old = os.open("long-directory-name", os.O_RDONLY, dir_fd=fd), fd
        os.close(old)
    os.close(fd)
    host.ok(p.REMOVE, path=str(deep) + "/", flags=1)
    assert not deep.exists() and Path("/etc/passwd").exists()
    assert host.call(p.REMOVE, path=str(deep), flags=1).errno == errno.ENOENT
    assert host.call(p.REMOVE, path="/", flags=1).errno == errno.EBUSY
    host.ok(p.SYNC_FS)


def check_tcp(host: p.Peer, tmp: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        s = host.replied(host.open(p.TCP_CONNECT, port=port))
        assert s.errno == 0
        conn, _ = server.accept()
        with conn:
            blob = os.urandom(100_000)
            host.send(s, blob)
            host.frame(s.id, p.EOF)
            got = b""
            while piece := conn.recv(65536):
                got += piece
            assert got == blob
            conn.sendall(blob * 2)
        assert bytes(host.finish(s).out[1]) == blob * 2 and s.close == {}
        s = host.replied(host.open(p.TCP_CONNECT, port=port))
        server.accept()[0].close()
        while 1 not in s.ended:
            host.step()
        host.frame(s.id, p.CLOSE)
    assert host.call(p.TCP_CONNECT, port=port).errno == errno.ECONNREFUSED
    assert host.call(p.TCP_CONNECT, port=0).errno == errno.EINVAL
    assert host.call(p.TCP_CONNECT, port=port, host="example.org").errno == errno.EINVAL
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        assert host.replied(host.open(p.TCP_CONNECT, port=server.getsockname()[1])).errno == 0


def check_configure_files(host: p.Peer, tmp: Path) -> None:
    host.ok(p.CONFIGURE, file=[{"path": f"{tmp}/x/f{i}", "mode": 0o600, "data": b"\0" * i}
                               for i in range(3)])  # fmt: skip
    assert [(tmp / f"x/f{i}").read_bytes() for i in range(3)] == [b"\0" * i for i in range(3)]
    below: p.Value = {"path": f"{tmp}/x/f0/below", "data": b""}
    assert host.call(p.CONFIGURE, file=below).errno == errno.ENOTDIR


def check_metrics(host: p.Peer, tmp: Path) -> None:
    reply = host.ok(p.METRICS).reply
    assert reply is not None
    found = {e["name"][0]: e["value"][0] for e in host.entries(reply["entry"])}
    assert set(found) == {b"mem_total", b"mem_available", b"procs", b"load1_milli", b"uptime_ms",
                          b"disk_total", b"disk_free"}  # fmt: skip
    assert all(isinstance(v, int) for v in found.values()) and found[b"mem_total"] > 1 << 24  # type: ignore[operator]


def check_too_many_streams(host: p.Peer, tmp: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=300) as server:
        port = server.getsockname()[1]
        all_of_them = [host.open(p.TCP_CONNECT, port=port) for _ in range(256)]
        for s in all_of_them:
            assert host.replied(s).errno == 0
        assert host.call(p.METRICS).errno == errno.EMFILE
        host.frame(all_of_them[0].id, p.CLOSE)
        host.ok(p.METRICS)


def check_malformed_then_sync(host: p.Peer, tmp: Path) -> None:
    """Whatever a confused host says, a SYNC is understood, and processes are still there."""
    s = host.replied(host.open(p.EXEC, proc="main", arg=["sleep", "60"]))
    host.sock.sendall(b"\xff" * 100)
    host.sync()
    for kind, stream, payload in (
        (p.HELLO, 0, b""), (p.OPEN, 2, b"\1"), (p.DATA, 77, b"x"), (p.REPLY, 1, b""),
        (p.CREDIT, s.id, struct.pack("<I", 5)),
    ):  # fmt: skip
        host.frame(stream, kind, payload)
        host.sync()
    host.frame(1, p.OPEN, bytes([p.METRICS]))
    host.frame(1, p.OPEN, bytes([p.METRICS]))
    host.sync()
    host.sock.sendall(struct.pack("<IIBBH", 65536, 1, p.DATA, 0, 0) + b"part of a frame")
    host.sync(flush=True)
    host.ok(p.KILL, proc="main", signal=9)


def check_quiesce(host: p.Peer, tmp: Path) -> None:
    lost = host.replied(host.open(p.EXEC, proc="main", arg=["sleep", "60"]))
    last = host.open(p.QUIESCE)
    while last.close is None:
        host.step()
    assert last.errno == 0
    host.frame(0, p.PING, b"nobody listens")
    host.sync()
    assert not host.pongs and lost.close is None
    host.ok(p.KILL, proc="main", signal=9)


def check_few_writes(host: p.Peer, tmp: Path) -> None:
    """A short process costs the host few reads: its frames leave together."""
    host.run("true", proc="warm")
    best = 99
    for i in range(20):
        before = host.reads
        host.run("true", proc=f"p{i}")
        best = min(best, host.reads - before)
    assert best <= 3, best


def check_idle_costs_nothing(host: p.Peer, tmp: Path) -> None:
    host.replied(host.open(p.EXEC, proc="main", arg=["sleep", "60"]))
    pid = int(host.run("sh", "-c", "echo $PPID", proc="a").out[1])

    def switches() -> int:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if "ctxt" in line)

    host.frame(0, p.PING)
    host.step()
    before = switches()
    time.sleep(0.3)  # the measurement itself, not a wait for something
    assert switches() - before <= 2, "only the way to sleep after the last answer"
    host.ok(p.KILL, proc="main", signal=9)


def check_shutdown(host: p.Peer, tmp: Path) -> None:
    stubborn: list[p.Value] = ["sh", "-c", "trap '' TERM; sleep 60; sleep 60"]
    plain: list[p.Value] = ["sleep", "60"]
    both = [host.open(p.EXEC, proc=str(argv[0]), arg=argv) for argv in (plain, stubborn)]
    pids = [host.replied(s).number("pid") for s in both]
    host.run("true", proc="c")
    host.ok(p.SHUTDOWN, timeout_ms=300)
    while host.sock.recv(65536):
        pass
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


SCENARIOS: dict[str, Callable[[p.Peer, Path], None]] = {
    name.removeprefix("check_"): function
    for name, function in list(globals().items())
    if name.startswith("check_")
}


def run_one(name: str, binary: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="guest-") as tmp, agent(binary) as (host, _):
        work = Path(tmp) / "w"
        work.mkdir()
        SCENARIOS[name](host, work)


def main() -> int:
    binary = Path(sys.argv[1]).resolve()
    for name in sys.argv[2:] or SCENARIOS:
        begin = time.monotonic()
        run_one(name, binary)
        sys.stdout.write(f"{name}: {time.monotonic() - begin:.2f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
