"""Blank writable disks: formatted once per size, then copied for each sandbox.

A blank disk of any size holds about 30 blocks of data, so a copy takes about a millisecond.
"""

from __future__ import annotations

from pathlib import Path

from sporevm._sys import fs, process
from sporevm.errors import UsageError
from sporevm.spec import MIB, SLOT_BYTES
from sporevm.store.layout import Layout

#: Raised when the options below change.
_FORMAT = 1

_BLOCK = 4096
_UUID = "8f0c1ac6-3a0e-4a5c-9d8b-53706f726501"
_HASH_SEED = "8f0c1ac6-3a0e-4a5c-9d8b-53706f726502"
#: Named one by one, so that the host's mke2fs.conf has no say. Everything here works with a 5.10
#: kernel. No resize_inode and the fewest backups: both would only be more blocks to copy.
_FEATURES = (
    "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super2,large_file,"
    "huge_file,dir_nlink,extra_isize,metadata_csum"
)
#: `discard` punches holes and so knows that the inode tables are zeros already. Otherwise each
#: guest's kernel would spend its first minutes writing those zeros, 160 MB for a disk of 10 GiB.
_EXTENDED = (
    f"discard,hash_seed={_HASH_SEED},packed_meta_blocks=1,num_backup_sb=0,"
    "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"
)


def mkfs_argv(path: Path, disk_bytes: int) -> list[str]:
    """The command that formats a blank disk. The same size gives the same bytes."""
    journal_mib = 4 if disk_bytes < 1 << 30 else 8
    return [
        "mkfs.ext4",
        "-q",
        "-F",
        *("-b", str(_BLOCK)),
        *("-I", "256"),
        *("-i", "16384"),
        *("-m", "0"),
        *("-O", _FEATURES),
        *("-E", _EXTENDED),
        *("-J", f"size={journal_mib}"),
        *("-U", _UUID),
        str(path),
        str(disk_bytes // _BLOCK),
    ]


async def ensure_blank(layout: Layout, disk_bytes: int) -> Path:
    """A blank ext4 disk of that size, sparse and `SLOT_BYTES` long; never write to it, copy it.

    Raises StorageError, SetupError without mkfs.ext4, and UsageError for an impossible size.
    """
    if not 16 * MIB <= disk_bytes <= SLOT_BYTES:
        raise UsageError(f"disk: {disk_bytes} bytes is out of range", hint="16M to 1T")
    final = layout.cache / "blank" / f"ext4-{_FORMAT}-{disk_bytes // _BLOCK}"
    if final.exists():
        return final
    fs.make_directory(final.parent)
    with fs.scratch_directory(layout.tmp) as place, fs.writing(final):
        made = place / "disk"
        # e2fsprogs' switch for a fixed time in the superblock.
        env = process.minimal_env(E2FSPROGS_FAKE_TIME="1")
        fs.make_sparse(made, disk_bytes)
        await process.run(mkfs_argv(made, disk_bytes), env=env, timeout=60)
        fs.make_sparse(made, SLOT_BYTES)
        fs.install_file(made, final)
    return final
