"""The host's own Debian archives, read from its apt configuration.

Spore names no mirror: it takes the ones this machine uses already, with their keys and proxies,
and of those only the ones that carry Debian itself.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from sporevm.errors import SetupError

ETC_APT = Path("/etc/apt")
OS_RELEASE = Path("/etc/os-release")

_ROLLING = ("stable", "testing", "unstable", "sid", "oldstable")
_ONE_LINE = re.compile(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+)")
#: Fields of a source that decide whether its answers are trusted; the architecture is ours.
_KEPT = ("Signed-By", "Trusted", "Check-Valid-Until", "Check-Date")

Stanza = Mapping[str, str]


def read_codename(os_release: Path = OS_RELEASE) -> str:
    """Name of this machine's Debian release; SetupError if it isn't Debian."""
    try:
        text = os_release.read_text()
    except OSError:
        text = ""
    words = dict(line.split("=", 1) for line in shlex.split(text, comments=True) if "=" in line)
    if words.get("ID") != "debian":
        name = words.get("PRETTY_NAME", "this system")
        raise SetupError(
            f"{name} is not Debian, so there is no archive to take a guest kernel or base from",
            hint="give a kernel as file:PATH or URL#sha256=HEX, and import an image",
        )
    return words.get("VERSION_CODENAME", "sid")


def read_sources(codename: str, etc: Path = ETC_APT) -> str:
    """The Debian sources of this machine as one deb822 file; SetupError if there are none."""
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    stanzas = [s for file in files for s in _parse(file) if is_debian(s, codename)]
    if not stanzas:
        raise SetupError(
            f"apt on this machine has no source for Debian {codename}",
            hint=f"add one to {etc / 'sources.list.d'}",
        )
    return "\n".join("".join(f"{k}: {v}\n" for k, v in s.items()) for s in stanzas)


def is_debian(stanza: Stanza, codename: str) -> bool:
    """Whether a source carries Debian's own packages of that release, by its suites."""
    names = {codename, f"{codename}-updates", f"{codename}-security", f"{codename}/updates"}
    suites = stanza.get("Suites", "").split()
    known = all(s in names or s.removesuffix("-security") in _ROLLING for s in suites)
    return bool(suites) and known and "main" in stanza.get("Components", "").split()


def _parse(path: Path) -> Iterator[Stanza]:
    try:
        text = path.read_text() if path.suffix in (".list", ".sources") else ""
    except OSError:
        return
    parse = parse_one_line if path.suffix == ".list" else parse_deb822
    yield from parse(text)


def parse_one_line(text: str) -> Iterator[Stanza]:
    """Sources of the `deb [options] URI SUITE COMPONENTS` kind."""
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if match is None:
            continue
        options, uri, suite, components = match.groups()
        stanza = {"Types": "deb", "URIs": uri, "Suites": suite, "Components": components}
        given = dict(o.split("=", 1) for o in (options or "").split() if "=" in o)
        for name in _KEPT:
            if name.lower() in given:
                stanza[name] = given[name.lower()]
        yield stanza


def parse_deb822(text: str) -> Iterator[Stanza]:
    """Sources of the stanza kind; a value may go on in indented lines (an inline key does)."""
    for block in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        last = ""
        for line in block.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in " \t" and last:
                fields[last] += "\n" + line
            elif ":" in line:
                last, value = line.split(":", 1)
                fields[last] = value.strip()
        by_lower = {name.lower(): value for name, value in fields.items()}
        if by_lower.get("enabled", "yes").lower() in ("no", "false"):
            continue
        if "deb" not in by_lower.get("types", "").split():
            continue
        stanza = {"Types": "deb"}
        for name in ("URIs", "Suites", "Components", *_KEPT):
            if name.lower() in by_lower:
                stanza[name] = by_lower[name.lower()]
        yield stanza
