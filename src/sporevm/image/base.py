"""The default image: a small Debian with Python, made on this machine from its own archives."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
from pathlib import Path

from sporevm._sys import fs, process
from sporevm.errors import SetupError
from sporevm.image import sources, squashfs
from sporevm.image.apt import Apt
from sporevm.image.progress import Progress, silent
from sporevm.image.store import Image, ImageStore
from sporevm.spec import DEFAULT_IMAGE, Arch, parse_arch
from sporevm.store.layout import Layout
from sporevm.store.locks import lock_async

_PACKAGES = ("python3", "ca-certificates")
_EXCLUDED = ("doc", "man", "info", "locale", "lintian", "i18n", "doc-base", "bug", "pixmaps")
#: What each machine must have its own of, what only one build could have written, and what
#: mmdebstrap leaves of the host's own apt settings (a proxy, perhaps with its password).
_REMOVED = (
    "etc/machine-id",
    "etc/hostname",
    "etc/resolv.conf",
    "etc/.pwd.lock",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "var/lib/dbus/machine-id",
    "var/cache/ldconfig/aux-cache",
    "var/cache/debconf/*-old",
    "var/lib/dpkg/*-old",
    "var/lib/systemd/random-seed",
)
_ENV = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CONFIG: dict[str, object] = {"Cmd": ["/bin/bash"], "Env": [_ENV, "LANG=C.UTF-8"]}
_BUILD_SECONDS = 1800.0
#: Without it mmdebstrap installs the package usrmerge, and with that all of Perl (48 MB).
_MERGED_USR = "/usr/share/mmdebstrap/hooks/merged-usr"


def base_name(arch: Arch) -> str:
    """Name of the default image for an architecture: `base` for this machine's own."""
    own = parse_arch(platform.machine())
    return DEFAULT_IMAGE if arch == own else f"{DEFAULT_IMAGE}:{arch.value}"


def recipe(codename: str, arch: Arch) -> str:
    """Hash of all that decides what is in the image, apart from the archive's packages."""
    parts = (codename, arch.value, _argv(codename, arch, "root", ()), _CONFIG, squashfs.FORMAT)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


async def ensure_base(
    layout: Layout, arch: Arch, progress: Progress = silent, *, refresh: bool = False
) -> Image:
    """The default image; made (in about a minute) if there is none by the present recipe.

    `refresh` makes it anew, with the archive's present packages. Raises SetupError, with what
    mends it, if this machine can't make one.
    """
    store = ImageStore(layout)
    name = base_name(arch)
    present = store.find(name)
    # Not Debian any more, or never was: an image under that name is then the user's own.
    if present is not None and not refresh and not present.recipe:
        return present
    codename = sources.read_codename()
    wanted = recipe(codename, arch)
    if present is not None and not refresh and present.recipe == wanted:
        return present
    async with lock_async(layout.images / ".base.lock"):
        now = store.find(name)
        if now is not None and now.recipe == wanted and now != present:
            return now
        return await _make(layout, arch, codename, wanted, progress)


async def _make(
    layout: Layout, arch: Arch, codename: str, wanted: str, progress: Progress
) -> Image:
    mode = _mode(arch)
    apt = Apt(layout.cache / f"apt-{arch.debian}", arch)
    async with lock_async(layout.kernels / ".lock"):  # it has the same private apt
        await apt.update(progress)
    with fs.scratch_directory(layout.tmp) as place:
        progress("install Debian", 0, 0)
        tar = place / "base.tar"
        env = process.minimal_env(SOURCE_DATE_EPOCH=str(apt.archive_time()), **apt.proxies())
        with fs.writing(tar), tar.open("wb") as out:
            try:
                await process.run(
                    _argv(codename, arch, mode, apt.transport()),
                    env=env,
                    input=apt.source_list.read_bytes(),
                    stdout=out.fileno(),
                    timeout=_BUILD_SECONDS,
                )
            except process.ProcessFailed as error:
                raise _failed(error, mode) from error
        return await ImageStore(layout).import_tar(
            tar, base_name(arch), arch, config=_CONFIG, recipe=wanted, progress=progress
        )


def _argv(codename: str, arch: Arch, mode: str, transport: tuple[str, ...]) -> list[str]:
    """mmdebstrap that reads its sources from standard input and writes a tar archive."""
    return [
        "mmdebstrap",
        "--quiet",
        f"--mode={mode}",
        "--format=tar",
        "--variant=apt",
        f"--architectures={arch.debian}",
        f"--hook-dir={_MERGED_USR}",
        f"--include={','.join(_PACKAGES)}",
        '--aptopt=APT::Install-Recommends "false"',
        '--aptopt=Acquire::Languages "none"',
        *(f"--aptopt={line}" for line in transport),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _EXCLUDED),
        "--customize-hook=" + _clean_hook(),
        codename,
        "-",
        "-",
    ]


def _clean_hook() -> str:
    """What mmdebstrap runs last; `$1` is the tree.

    Its /tmp is not for us to empty: mmdebstrap's own apt.conf is in there. Without that file its
    last steps, `apt-get update` with no sources and `apt-get clean`, would work on the host's apt.
    """
    names = " ".join(f'"$1"/{name}' for name in _REMOVED)
    return (
        f"rm -f {names}; "
        'find "$1"/var/log "$1"/var/cache/apt "$1"/var/lib/apt/lists -type f -delete; '
        ': >"$1"/etc/machine-id; '
        'echo spore >"$1"/etc/hostname; : >"$1"/etc/resolv.conf'
    )


def _mode(arch: Arch) -> str:
    """How mmdebstrap gets to be root in the tree; SetupError if it can't."""
    if not Path(_MERGED_USR).is_dir():
        raise SetupError(
            "making the base image needs mmdebstrap 1.3 or newer", hint="apt install mmdebstrap"
        )
    own = parse_arch(platform.machine())
    if arch != own and not Path("/proc/sys/fs/binfmt_misc", f"qemu-{arch.value}").exists():
        raise SetupError(
            f"this {own.value} machine can't run {arch.value} programs to install them",
            hint="apt install qemu-user-static binfmt-support, or import an image",
        )
    if os.geteuid() == 0:
        return "root"
    user = getpass.getuser()
    for file in ("/etc/subuid", "/etc/subgid"):
        lines = Path(file).read_text().splitlines() if Path(file).exists() else []
        if not any(line.split(":")[0] in (user, str(os.getuid())) for line in lines):
            raise SetupError(
                f"user {user} has no range of ids in {file}, which making an image needs",
                hint=f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
            )
    return "unshare"


def _failed(error: process.ProcessFailed, mode: str) -> SetupError:
    lines = [line for line in error.tail.splitlines() if line.startswith("E: ")]
    reason = (lines or error.tail.strip().splitlines() or ["it gave no reason"])[0]
    hint = "check the network and the sources of apt on this machine"
    if mode == "unshare" and ("unshare" in reason or "newuidmap" in error.tail):
        hint = (
            "apt install uidmap, and sysctl kernel.unprivileged_userns_clone=1; or run it as root"
        )
    return SetupError(f"mmdebstrap failed: {reason.removeprefix('E: ')}", hint=hint)
