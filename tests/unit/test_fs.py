"""Whole-or-absent writes, sparse copies, and what a full disk is turned into."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from sporevm._sys import fs
from sporevm.errors import StorageError

TIB = 1 << 40


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    fs.write_atomic(path, b"one")
    fs.write_atomic(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_write_atomic_keeps_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a"
    fs.write_atomic(path, b"one")
    with pytest.raises(TypeError):
        fs.write_atomic(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("number", "word"),
    [(errno.ENOSPC, "no space"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only")],
)
def test_disk_errors_name_path_and_remedy(tmp_path: Path, number: int, word: str) -> None:
    path = tmp_path / "x"
    with pytest.raises(StorageError) as caught, fs.writing(path):
        raise OSError(number, os.strerror(number))
    assert str(path) in caught.value.message
    assert word in caught.value.message
    assert caught.value.hint


def test_a_really_full_disk(tmp_path: Path) -> None:
    full = Path("/dev/full")
    with pytest.raises(StorageError, match="no space"), fs.writing(full), full.open("wb") as file:
        file.write(b"x")
        file.flush()
        file.close()


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), fs.writing(tmp_path):
        (tmp_path / "no" / "such").write_bytes(b"")


def test_sparse_copy_of_a_tebibyte(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    fs.make_sparse(source, TIB)
    places = {0: b"first" * 1000, 5 << 30: os.urandom(1 << 20), TIB - 4096: b"l" * 4096}
    with source.open("r+b") as file:
        for at, data in places.items():
            file.seek(at)
            file.write(data)
    fs.sparse_copy(source, target)
    assert target.stat().st_size == TIB
    assert fs.real_size(target) <= fs.real_size(source) + 8192
    with target.open("rb") as file:
        for at, data in places.items():
            file.seek(at)
            assert file.read(len(data)) == data
        file.seek(1 << 30)
        assert not any(file.read(4096))


def test_sparse_copy_of_nothing_but_a_hole(tmp_path: Path) -> None:
    fs.make_sparse(tmp_path / "a", 1 << 20)
    fs.sparse_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == bytes(1 << 20)
    assert fs.real_size(tmp_path / "b") == 0


def test_sparse_copy_falls_back_to_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "across file systems")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    data = os.urandom(3 << 20)
    (tmp_path / "a").write_bytes(data)
    fs.sparse_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == data


def test_sparse_copy_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    with pytest.raises(FileExistsError):
        fs.sparse_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"b"


def test_sparse_copy_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "copy_file_range", full)
    (tmp_path / "a").write_bytes(b"a" * 9999)
    with pytest.raises(StorageError):
        fs.sparse_copy(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_install_directory_once(tmp_path: Path) -> None:
    for expected in (True, False):
        with fs.scratch_directory(tmp_path / "tmp") as place:
            (place / "d").mkdir()
            (place / "d" / "f").write_bytes(b"x")
            assert fs.install_directory(place / "d", tmp_path / "final") is expected
    assert (tmp_path / "final" / "f").read_bytes() == b"x"
    assert list((tmp_path / "tmp").iterdir()) == []


def test_scratch_directory_is_gone_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom"), fs.scratch_directory(tmp_path) as place:
        (place / "deep" / "er").mkdir(parents=True)
        (place / "deep").chmod(0o500)
        raise ValueError("boom")
    assert list(tmp_path.iterdir()) == []


def test_remove_tree_is_idempotent_and_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "f").write_bytes(b"")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "top").symlink_to(tmp_path / "kept")
    for _ in range(2):
        fs.remove_tree(tmp_path / "d")
        fs.remove_tree(tmp_path / "top")
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "f").exists()


def test_reflink_probe_cleans_up(tmp_path: Path) -> None:
    assert fs.can_reflink(tmp_path) in (True, False)
    assert list(tmp_path.iterdir()) == []


def test_reflinks_on_btrfs(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not Path("/usr/bin/mkfs.btrfs").exists():
        pytest.skip("needs root and mkfs.btrfs")
    fs.make_sparse(tmp_path / "disk", 256 << 20)
    subprocess.run(["mkfs.btrfs", "-q", tmp_path / "disk"], check=True)
    mount = tmp_path / "m"
    mount.mkdir()
    if subprocess.run(["mount", "-o", "loop", tmp_path / "disk", mount]).returncode != 0:
        pytest.skip("can't mount a loop device here")
    try:
        assert fs.can_reflink(mount)
        (mount / "a").write_bytes(os.urandom(1 << 20))
        fs.sparse_copy(mount / "a", mount / "b")
        assert (mount / "a").read_bytes() == (mount / "b").read_bytes()
    finally:
        subprocess.run(["umount", mount], check=True)


def test_read_only_file_system(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    mount = tmp_path / "m"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", mount]).returncode != 0:
        pytest.skip("can't mount here")
    try:
        with pytest.raises(StorageError, match="read-only"):
            fs.write_atomic(mount / "a", b"x")
        with pytest.raises(StorageError, match="read-only"):
            fs.make_directory(mount / "d")
    finally:
        subprocess.run(["umount", mount], check=True)


def test_full_file_system_leaves_the_old_file(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    mount = tmp_path / "m"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", mount]).returncode != 0:
        pytest.skip("can't mount here")
    try:
        fs.write_atomic(mount / "a", b"old")
        with pytest.raises(StorageError, match="no space"):
            fs.write_atomic(mount / "a", bytes(1 << 20))
        assert (mount / "a").read_bytes() == b"old"
        assert [p.name for p in mount.iterdir()] == ["a"]
    finally:
        subprocess.run(["umount", mount], check=True)
