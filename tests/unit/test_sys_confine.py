"""Confinement: the launcher's command line, what is said of it, and what it really does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sporevm._sys import process
from sporevm._sys.confine import FIRST_UID, UIDS, Confinement, Confiner, launcher_path, uid_for

LIMITS = [
    *("--rlimit", "NOFILE=1024:1024", "--rlimit", "CORE=0:0"),
    *("--rlimit", f"FSIZE={1 << 41}:{1 << 41}"),
]
TAIL = ["--no-new-privs", "--umask", "077", "--chdir", "/", "--", "qemu", "-x"]

launcher = pytest.mark.skipif(not launcher_path().exists(), reason="the launcher is not built")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_root_s_way():
    confinement = Confinement(
        launcher="/l", uid=61200, gid=61201, netns=9, cgroups=("/sys/fs/cgroup/x",), seccomp=True
    )
    assert confinement.wrap(["qemu", "-x"]) == [
        *("/l", "--setns", "9", "--uid", "61200", "--gid", "61201"),
        *LIMITS,
        *("--cgroup", "/sys/fs/cgroup/x"),
        *TAIL,
    ]
    assert confinement.fds == (9,)
    assert confinement.describe() == [
        "uid 61200",
        "empty network namespace",
        "no-new-privs",
        "limits",
        "cgroup",
        "seccomp",
    ]


def test_an_ordinary_user_s_way():
    confinement = Confinement(launcher="/l", own_namespaces=True)
    assert confinement.wrap(["qemu", "-x"]) == ["/l", "--userns", *LIMITS, *TAIL]
    assert confinement.fds == ()
    assert confinement.describe()[:2] == ["user namespace", "empty network namespace"]


def test_without_launcher_it_says_what_is_not_in_force():
    confinement = Confinement(seccomp=True, notes=("uid (no launcher)",))
    assert confinement.wrap(["qemu", "-x"]) == ["qemu", "-x"]
    assert confinement.describe() == ["seccomp", "not: uid (no launcher)"]


def test_uids_are_stable_and_ours():
    uids = {uid_for(Path(f"/home/sb/{number}/vm")) for number in range(200)}
    assert len(uids) > 180
    assert all(FIRST_UID <= uid < FIRST_UID + UIDS for uid in uids)
    assert uid_for(Path("/a")) == uid_for(Path("/a"))


async def test_a_missing_launcher_is_said(tmp_path: Path):
    confiner = await Confiner.probe(tmp_path / "launch-none")
    words = confiner.confinement(tmp_path, seccomp=False).describe()
    confiner.close()
    assert words == ["not: uid, namespaces, limits (launch-none is missing)"]


@launcher
@as_root
async def test_what_a_program_really_gets(tmp_path: Path):
    confiner = await Confiner.probe()
    try:
        confinement = confiner.confinement(tmp_path, seccomp=False)
        script = "id -u; id -G; pwd; umask; ulimit -n; ulimit -c; tail -n +3 /proc/net/dev; "
        script += "grep NoNewPrivs /proc/self/status"
        done = await process.run(confinement.wrap(["sh", "-c", script]), pass_fds=confinement.fds)
    finally:
        confiner.close()
    uid, groups, directory, umask, files, core, *devices, privileges = done.text.splitlines()
    assert int(uid) == int(groups) == uid_for(tmp_path)
    assert (directory, umask, files, core) == ("/", "0077", "1024", "0")
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]
    assert privileges.split()[-1] == "1"


@launcher
@as_root
async def test_a_reason_to_keep_the_uid_is_told(tmp_path: Path):
    confiner = await Confiner.probe()
    kept = confiner.confinement(tmp_path, seccomp=True, keep_uid="old QEMU")
    group = confiner.confinement(tmp_path, seccomp=True, gid=105)
    confiner.close()
    assert kept.uid == 0
    assert "not: own uid (old QEMU)" in kept.describe()
    assert group.gid == 105
