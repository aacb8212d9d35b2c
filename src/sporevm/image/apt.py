"""Debian packages without root and without touching the system's own apt.

apt runs with a configuration, lists and cache of its own below our cache directory, for whichever
architecture is asked. Archives, keys and proxies are the host's; signatures are checked by apt as
always.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from sporevm._sys import fs, process
from sporevm.errors import ArtifactError, SetupError
from sporevm.image import sources
from sporevm.image.progress import Progress
from sporevm.spec import Arch
from sporevm.store.checksums import sha256_of

_UPDATE_SECONDS = 300.0
_DOWNLOAD_SECONDS = 900.0
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_META_DEPENDS = re.compile(r"(linux-image-\d[^ ,|]*)")


@dataclass(frozen=True, slots=True)
class Package:
    """A package file that has been fetched and checked."""

    name: str
    version: str
    sha256: str
    file: Path


class Apt:
    """A private apt for one architecture, in one directory. Not safe for two users at once."""

    def __init__(self, root: Path, arch: Arch) -> None:
        self.root = root
        self.arch = arch
        self._transport: tuple[str, ...] = ()

    @property
    def config(self) -> Path:
        return self.root / "apt.conf"

    @property
    def source_list(self) -> Path:
        return self.root / "debian.sources"

    async def update(self, progress: Progress) -> None:
        """Write the configuration anew and fetch the package lists."""
        progress("read package lists", 0, 1)
        codename = sources.read_codename()
        for name in ("lists/partial", "archives/partial", "empty"):
            fs.make_directory(self.root / name)
        fs.write_atomic(self.source_list, sources.read_sources(codename).encode())
        fs.write_atomic(self.root / "status", b"")
        self._transport = host_transport((await process.run(["apt-config", "dump"])).text)
        fs.write_atomic(self.config, self._configuration().encode())
        await self._run("apt-get", "update", "--error-on=any", "-qq", seconds=_UPDATE_SECONDS)
        progress("read package lists", 1, 1)

    def transport(self) -> tuple[str, ...]:
        """The host's settings of how to reach archives; known after `update`."""
        return self._transport

    def proxies(self) -> dict[str, str]:
        """The environment variables that tell apt of a proxy."""
        return {name: os.environ[name] for name in _PROXIES if name in os.environ}

    def _configuration(self) -> str:
        parts = sources.ETC_APT / "trusted.gpg.d"
        ours = {
            "Dir::Etc::parts": self.root / "empty",
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::sourcelist": self.source_list,
            "Dir::Etc::sourceparts": self.root / "empty",
            "Dir::Etc::preferencesparts": self.root / "empty",
            "Dir::Etc::trustedparts": parts,
            "Dir::State": self.root,
            "Dir::State::lists": self.root / "lists",
            "Dir::State::status": self.root / "status",
            "Dir::Cache": self.root,
            "Dir::Cache::archives": self.root / "archives",
            "APT::Architecture": self.arch.debian,
            # Our directories are private to this user; apt's own user could not write there.
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        lines = [f'{key} "{value}";' for key, value in ours.items()]
        lines.append(f'APT::Architectures {{ "{self.arch.debian}"; }};')
        return "\n".join([*self._transport, *lines, ""])

    async def _run(self, *argv: str, seconds: float, cwd: Path | None = None) -> str:
        env = process.minimal_env(APT_CONFIG=str(self.config), **self.proxies())
        try:
            return (await process.run(argv, env=env, cwd=cwd, timeout=seconds)).text
        except process.ProcessFailed as error:
            last = error.tail.strip().splitlines()[-1:] or ["it gave no reason"]
            raise SetupError(
                f"{argv[0]} {argv[1]} failed: {last[0]}",
                hint="check the network, the proxy and the sources of apt on this machine",
            ) from error

    async def show(self, name: str) -> dict[str, str]:
        """The fields of a package's newest version; ArtifactError if there is no such package."""
        try:
            text = await self._run("apt-cache", "show", "--no-all-versions", name, seconds=60)
        except SetupError as error:
            raise ArtifactError(
                f"the archives of this machine have no package {name} for {self.arch.debian}",
                hint="check the sources of apt on this machine",
            ) from error
        stanza = text.split("\n\n", 1)[0]
        return dict(re.findall(r"^(\S+): (.*)$", stanza, re.MULTILINE))

    async def resolve_kernel(self) -> dict[str, str]:
        """The real kernel package behind Debian's meta package for clouds."""
        meta = await self.show(f"linux-image-cloud-{self.arch.debian}")
        match = _META_DEPENDS.search(meta.get("Depends", ""))
        if match is None:
            raise ArtifactError(f"package {meta['Package']} names no kernel in its dependencies")
        return await self.show(match[1])

    async def fetch(self, fields: dict[str, str], into: Path, progress: Progress) -> Package:
        """Download the package that `show` described; its checksum is the signed one."""
        name, version, size = fields["Package"], fields["Version"], float(fields["Size"])
        step = f"download {name}"
        progress(step, 0, size)
        fs.make_directory(into)
        with fs.scratch_directory(into) as place:
            await self._run(
                "apt-get", "download", f"{name}={version}", seconds=_DOWNLOAD_SECONDS, cwd=place
            )
            (file,) = place.glob("*.deb")
            found = sha256_of(file)
            if found != fields["SHA256"]:
                raise ArtifactError(
                    f"package {name} {version} is damaged: expected sha256 {fields['SHA256']}, "
                    f"found {found}",
                    hint="try again",
                )
            final = into / f"{name}_{self.arch.debian}.deb"
            with fs.writing(final):
                file.replace(final)
        progress(step, size, size)
        return Package(name, version, found, final)

    def archive_time(self) -> int:
        """UNIX time of the newest of the archives' signed release files: when `now` is for them."""
        times = [0]
        for path in (self.root / "lists").glob("*Release"):
            for line in path.read_text(errors="replace").splitlines():
                if line.startswith("Date: "):
                    times.append(int(parsedate_to_datetime(line[6:]).timestamp()))
                    break
        return max(times)


def host_transport(dump: str) -> tuple[str, ...]:
    """Of the host's apt settings only how to reach archives: its hooks may change the system."""
    ours = ("Acquire::IndexTargets", "Acquire::Languages")
    lines = dump.splitlines()
    return tuple(x for x in lines if x.startswith("Acquire::") and not x.startswith(ours))


async def unpack(package: Path, target: Path) -> None:
    """Unpack a .deb; ArtifactError if it is not one, or not whole."""
    try:
        await process.run(["dpkg-deb", "-x", str(package), str(target)], timeout=300)
    except process.ProcessFailed as error:
        raise ArtifactError(
            f"{package} can't be unpacked as a Debian package: {error.message}",
            hint="fetch or copy it again",
        ) from error
