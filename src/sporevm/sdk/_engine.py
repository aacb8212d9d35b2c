"""Find the engine of a home, or start it.

The client takes the engine's lock, binds and listens, and hands both descriptors to the engine it
spawns. So the engine can be connected to before its first line has run, nobody waits for a socket
file to appear, and of any number of clients that start at once exactly one starts an engine.

    home directory   flock: held by a client for the moment it starts an engine
    spored.lock      flock: held by the engine for life (the description is inherited)
    spored.sock      exists while an engine listens; a dead one's is replaced under both locks

Everything here is synchronous and free of asyncio, which takes longer to import than a command may
take; only the rare start needs it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from sporevm.api.listen import listen
from sporevm.errors import EngineError, SetupError
from sporevm.store.layout import Layout, default_home

#: How long a client waits for another one, or for an engine that is just ending.
START_SECONDS = 20.0
#: What of the caller's environment an engine may need beyond the minimum.
_PASSED_ENV = (
    "PYTHONPATH", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "DOCKER_CONFIG", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR",
)  # fmt: skip


def layout_of(home: Path | str | None = None) -> Layout:
    """The layout of `home`; None means SPORE_HOME, or else the user's own place."""
    if home is None:
        home = default_home(
            is_root=os.getuid() == 0,
            env_home=os.environ.get("SPORE_HOME"),
            user_home=Path("~").expanduser(),
        )
    layout = Layout(Path(home).absolute())
    layout.check()
    return layout


def daemon_argv() -> list[str]:
    if not sys.executable:
        raise EngineError("can't start the engine: this Python does not know its own program")
    return [sys.executable, "-P", "-m", "sporevm.api.daemon"]


def dial(layout: Layout) -> socket.socket | None:
    """A connection to the engine, or None if there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(str(layout.socket))
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise EngineError(
            f"cannot reach the engine at {layout.socket}: {error.strerror}",
            hint="it belongs to another user" if isinstance(error, PermissionError) else "",
        ) from None
    except BaseException:
        sock.close()
        raise
    return sock


def not_running(layout: Layout) -> EngineError:
    return EngineError(
        f"no engine is running for {layout.home}", hint="any command that needs it starts it"
    )


def connect(layout: Layout, *, argv: Sequence[str] | None = None) -> socket.socket:
    """A connection to the engine, which is started if there is none. May block for a while."""
    sock = dial(layout)
    return start(layout, argv or daemon_argv()) if sock is None else sock


def start(layout: Layout, argv: Sequence[str]) -> socket.socket:
    """Start the engine unless somebody else just did; a connection to it in either case."""
    _make_home(layout.home)
    with ExitStack() as stack:
        home = os.open(layout.home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, home)
        _lock(home, "another client has been starting the engine for too long")
        if (sock := dial(layout)) is not None:
            return sock
        lock = os.open(layout.engine_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, lock)
        _lock(lock, "an engine runs but does not listen")
        listener = stack.enter_context(listen(layout))
        _spawn(layout, argv, lock, listener.fileno())
        sock = dial(layout)
    if sock is None:
        raise EngineError("the engine ended at once", hint=last_words(layout))
    return sock


def _make_home(home: Path) -> None:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"cannot make SPORE_HOME {home}: {error.strerror}",
            hint="set SPORE_HOME to a directory that can be written",
        ) from None


def _lock(fd: int, too_long: str) -> None:
    """Take an exclusive flock, waiting at most START_SECONDS."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        pass
    if not _in_thread(lambda: fcntl.flock(fd, fcntl.LOCK_EX), START_SECONDS):
        raise EngineError(too_long, hint="see its log, or end it: spore daemon stop")


def _in_thread(work: Callable[[], object], seconds: float) -> bool:
    """Whether `work` was done in time. flock has no timeout, so a thread of its own waits for it;
    one that waits in vain ends with the process."""
    import threading

    failure: list[OSError] = []

    def body() -> None:
        try:
            work()
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=body, daemon=True, name="spore-lock")
    thread.start()
    thread.join(seconds)
    return not thread.is_alive() and not failure


def _spawn(layout: Layout, argv: Sequence[str], lock: int, listener: int) -> None:
    """Start the engine's process with its two descriptors; it belongs to nobody from then on."""
    import asyncio

    from sporevm._sys import process

    env = process.minimal_env(**{k: os.environ[k] for k in _PASSED_ENV if k in os.environ})
    words = [*argv, "--home", str(layout.home)]
    words += ["--lock-fd", str(lock), "--listen-fd", str(listener)]

    async def spawn() -> None:
        log = os.open(
            layout.engine_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            child = await process.start(
                words, env=env, cwd="/", stdout=log, stderr=log, pass_fds=(lock, listener)
            )
            child.release()
        finally:
            os.close(log)

    asyncio.run(spawn())


def wait_gone(layout: Layout) -> None:
    """Return when no engine holds the home; EngineError after START_SECONDS."""
    try:
        lock = os.open(layout.engine_lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _lock(lock, "the engine does not end")
    finally:
        os.close(lock)


def last_words(layout: Layout) -> str:
    """The end of the engine's log, for an error about an engine that died."""
    try:
        lines = layout.engine_log.read_text(errors="replace")[-2000:].strip().splitlines()
    except OSError:
        return ""
    return f"{layout.engine_log} ends with: {lines[-1]}" if lines else f"see {layout.engine_log}"
