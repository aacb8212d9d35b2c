"""The images on this machine: one read-only disk each, kept under a hash of what a guest sees.

An image's id is the hash of its disk's bytes, architecture and config. Names are small files that
hold an id, so tagging and removing a name is one atomic step.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from sporevm._sys import fs
from sporevm.errors import ArtifactError, NotFound, UsageError
from sporevm.image import squashfs, tarball
from sporevm.image.progress import Progress, silent
from sporevm.spec import SLOT_BYTES, Arch, ImageId
from sporevm.store.checksums import Checksums, sha256_of
from sporevm.store.layout import ImageFiles, Layout
from sporevm.store.locks import lock

_ID = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{4,64}")
_MAX_NAME = 240
_LOCK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the store. `config` is like an OCI image's: Env, Cmd, Entrypoint, …"""

    id: ImageId
    arch: Arch
    fstype: str
    size: int  # bytes of the file system; the file itself is a sparse SLOT_BYTES long
    created: float
    sha256: str  # of those bytes
    disk: Path
    names: tuple[str, ...] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    #: Hash of the recipe it was made by, if it was made here: tells when to make it again.
    recipe: str = ""

    @property
    def name(self) -> str:
        """Its first name, or "" if it has none any more."""
        return self.names[0] if self.names else ""


class ImageStore:
    """All images of one SPORE_HOME. Safe to use from several processes at once."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._refs = layout.images / "refs"

    def list(self) -> list[Image]:
        """All images, newest first."""
        names = self._names()
        images = [self._load(image_id, names) for image_id in self._ids()]
        return sorted(images, key=lambda image: -image.created)

    def get(self, image_id: str) -> Image:
        """The image with that full id; NotFound."""
        if _ID.fullmatch(image_id) is None or not self._layout.image(image_id).manifest.is_file():
            raise NotFound(f"there is no image {image_id[:12]}", hint="see: spore image ls")
        return self._load(image_id, self._names())

    def find(self, name: str) -> Image | None:
        """The image that has that very name, if there is one."""
        image_id = self._read_ref(self._ref(name))
        if image_id is None or not self._layout.image(image_id).manifest.is_file():
            return None
        return self.get(image_id)

    def resolve(self, ref: str) -> Image:
        """An image by name, by id, or by the first 4 or more digits of its id.

        Raises NotFound, and UsageError if several ids start so.
        """
        named = self.find(ref) if ref else None
        if named is not None:
            return named
        text = ref.removeprefix("sha256:")
        found = [i for i in self._ids() if i.startswith(text)] if _PREFIX.fullmatch(text) else []
        if len(found) == 1:
            return self.get(found[0])
        if found:
            raise UsageError(f"{len(found)} images have an id that starts with {text}")
        raise NotFound(f"there is no image {ref!r}", hint="see: spore image ls")

    def tag(self, ref: str, name: str) -> Image:
        """Give an image one more name; a name that was another image's moves."""
        path = self._ref(name)
        with self._locked():
            image = self.resolve(ref)
            fs.make_directory(path.parent)
            fs.write_atomic(path, f"{image.id}\n".encode())
        return self.get(image.id)

    def remove(self, ref: str) -> Image:
        """Remove a name, and the image with its last one; by id: the image with all its names.

        Whether a sandbox uses it is the caller's to know. Returns the image as it was.
        """
        with self._locked():
            image = self.resolve(ref)
            gone = [ref] if ref in image.names else list(image.names)
            for name in gone:
                self._ref(name).unlink(missing_ok=True)
            if len(gone) == len(image.names):
                fs.remove_tree(self._layout.image(image.id).root)
        return image

    def verify(self, image: Image) -> None:
        """Compare the disk with its checksum (from the cache if unchanged); ArtifactError."""
        checksums = Checksums(self._layout.cache / "checksums.json")
        found = "no file"
        if image.disk.is_file():
            found = checksums.sha256(image.disk, length=image.size)
            checksums.save()
        if found != image.sha256:
            raise ArtifactError(
                f"image {image.id[:12]} is damaged: {image.disk} should have sha256 "
                f"{image.sha256}, it has {found}",
                hint=f"remove it and import or pull it again: spore image rm {image.id[:12]}",
            )

    async def import_tar(
        self,
        source: Path | int,
        name: str,
        arch: Arch | None = None,
        *,
        config: Mapping[str, object] | None = None,
        recipe: str = "",
        progress: Progress = silent,
    ) -> Image:
        """Make an image of a root file system's archive: a path, or a descriptor to read.

        The archive may be packed with gzip, bzip2, xz or zstd. Raises UsageError or ArtifactError
        for one that can't be used, and for one that is not for `arch`; nothing is left then.
        """
        self._ref(name)
        label = f"archive {source}" if isinstance(source, Path) else "the archive on standard input"
        with fs.scratch_directory(self._layout.tmp) as place:
            progress("read the archive", 0, 0)
            tar = await tarball.plain_tar(source, place)
            contents = await asyncio.to_thread(tarball.scan, tar, label)
            files = ImageFiles(place / "image")
            files.root.mkdir()
            progress("make the image", 0, 0)
            found = _check_arch(contents.arch, arch, label)
            await squashfs.from_tar(
                tar, files.disk, label, root=contents.root, newest=contents.newest
            )
            return await asyncio.to_thread(
                self._install, files, name, found, dict(config or {}), recipe
            )

    async def import_dir(
        self,
        path: Path,
        name: str,
        arch: Arch | None = None,
        *,
        config: Mapping[str, object] | None = None,
        progress: Progress = silent,
    ) -> Image:
        """Make an image of a directory, with owners and modes as this user sees them."""
        self._ref(name)
        with fs.scratch_directory(self._layout.tmp) as place:
            contents = await asyncio.to_thread(tarball.scan_directory, path)
            found = _check_arch(contents.arch, arch, f"directory {path}")
            files = ImageFiles(place / "image")
            files.root.mkdir()
            progress("make the image", 0, 0)
            await squashfs.from_directory(path, files.disk)
            return await asyncio.to_thread(
                self._install, files, name, found, dict(config or {}), ""
            )

    def _install(
        self,
        files: ImageFiles,
        name: str,
        arch: Arch,
        config: dict[str, object],
        recipe: str,
    ) -> Image:
        size = files.disk.stat().st_size
        sha256 = sha256_of(files.disk)
        seen = {"sha256": sha256, "arch": arch.value, "fstype": squashfs.FSTYPE, "config": config}
        image_id = hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()
        fs.make_sparse(files.disk, SLOT_BYTES)
        files.disk.chmod(0o444)
        manifest = {"id": image_id, "size": size, "created": time.time(), "recipe": recipe, **seen}
        fs.write_atomic(files.manifest, json.dumps(manifest, indent=1, sort_keys=True).encode())
        target = self._layout.image(image_id)
        with self._locked():
            if not fs.install_directory(files.root, target.root):
                # The same image again: its recipe may be a newer one that comes to the same bytes.
                fs.install_file(files.manifest, target.manifest)
            fs.make_directory(self._refs)
            fs.write_atomic(self._ref(name), f"{image_id}\n".encode())
        return self.get(image_id)

    def _locked(self) -> AbstractContextManager[None]:
        return lock(self._layout.images / ".lock", what="the image store", timeout=_LOCK_SECONDS)

    def _ids(self) -> Iterator[str]:
        for path in self._layout.images.glob("*/manifest.json"):
            if _ID.fullmatch(path.parent.name):
                yield path.parent.name

    def _ref(self, name: str) -> Path:
        """The file that holds the id behind a name."""
        quoted = quote(name, safe="")
        if not name or len(quoted) > _MAX_NAME or not name.isprintable() or " " in name:
            raise UsageError(
                f"image name {name!r} is not allowed", hint="a name like debian, or my/app:1.2"
            )
        # quote() leaves dots alone, and a name may be nothing else.
        return self._refs / quoted.replace(".", "%2E", 1 if name.startswith(".") else 0)

    def _read_ref(self, path: Path) -> str | None:
        try:
            text = path.read_text().strip()
        except FileNotFoundError:
            return None
        return text if _ID.fullmatch(text) else None

    def _names(self) -> dict[str, tuple[str, ...]]:
        """The names of each image id."""
        found: dict[str, tuple[str, ...]] = {}
        for path in sorted(self._refs.glob("[!.]*")):
            image_id = self._read_ref(path)
            if image_id is not None:
                found[image_id] = (*found.get(image_id, ()), unquote(path.name))
        return found

    def _load(self, image_id: str, names: Mapping[str, tuple[str, ...]]) -> Image:
        files = self._layout.image(image_id)
        try:
            data = json.loads(files.manifest.read_bytes())
            return Image(
                id=ImageId(image_id),
                arch=Arch(data["arch"]),
                fstype=data["fstype"],
                size=int(data["size"]),
                created=float(data["created"]),
                sha256=data["sha256"],
                disk=files.disk,
                names=names.get(image_id, ()),
                config=data["config"],
                recipe=data["recipe"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{files.manifest} is damaged: {error!r}", hint=f"remove {files.root}"
            ) from error


def _check_arch(found: Arch | None, wanted: Arch | None, label: str) -> Arch:
    """The image's architecture: what was found in it, which must be what was asked for."""
    arch = found or wanted
    if arch is None:
        raise UsageError(
            f"{label} has no program that tells its architecture", hint="give it with --arch"
        )
    if wanted is not None and arch != wanted:
        raise ArtifactError(
            f"{label} holds programs for {arch.value} ({arch.debian}), not for "
            f"{wanted.value} ({wanted.debian})",
            hint=f"use --arch {arch.value}",
        )
    return arch
