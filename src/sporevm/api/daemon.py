"""`spored`: the process that serves one home.

    python -m sporevm.api.daemon --home H [--lock-fd N --listen-fd N]

Started by a client it inherits the home's lock and a socket that listens already; started by hand
it takes and makes them. SIGTERM and SIGINT end it and leave the sandboxes running: the next engine
takes charge of them.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sporevm._version import __version__
from sporevm.api.context import App
from sporevm.api.listen import listen
from sporevm.api.port import EnginePort
from sporevm.errors import Conflict, EngineError, SporeError
from sporevm.store.layout import Layout

log = logging.getLogger(__name__)

EngineFactory = Callable[[Layout], EnginePort]
#: How long an engine that failed to start stays to say why.
_EXPLAIN_SECONDS = 5.0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="spored", description="Serve the sandboxes of one home.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--lock-fd", type=int, default=-1, help="the home's lock, held")
    parser.add_argument("--listen-fd", type=int, default=-1, help="a listening Unix socket")
    return parser.parse_args(argv)


def take_lock(layout: Layout) -> int:
    """The home's lock, for life; Conflict if an engine has it."""
    layout.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(layout.engine_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Conflict(
            f"an engine serves {layout.home} already", hint="end it: spore daemon stop"
        ) from None
    return fd


@contextmanager
def _owned(layout: Layout, lock_fd: int, listen_fd: int) -> Iterator[socket.socket]:
    """The listening socket, with the home's lock held. Leaving frees both, the lock last."""
    with ExitStack() as stack:
        if lock_fd < 0:
            lock_fd = take_lock(layout)
        # VMMs outlive the engine: one that inherited the lock would keep the next engine out.
        os.set_inheritable(lock_fd, False)
        stack.callback(os.close, lock_fd)
        if listen_fd < 0:
            sock = listen(layout)
        else:
            os.set_inheritable(listen_fd, False)
            sock = socket.socket(fileno=listen_fd)
        stack.enter_context(sock)
        stack.callback(layout.socket.unlink, missing_ok=True)
        yield sock


async def serve(layout: Layout, sock: socket.socket, make_engine: EngineFactory) -> int:
    """Serve until told to stop; the exit status."""
    from sporevm.api.server import ApiServer

    app = App(make_engine(layout))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.stopping.set)
    server = ApiServer(app)
    await server.serve(sock)
    starting = asyncio.ensure_future(_start(app))
    stop = asyncio.ensure_future(app.stopping.wait())
    try:
        await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
        if app.failure is not None:
            # The client that started us is waiting for an answer: it gets the reason.
            await asyncio.wait((stop,), timeout=_EXPLAIN_SECONDS)
        else:
            await app.stopping.wait()
        log.info("leaving")
    finally:
        # From here on a new client finds no socket, waits for the lock and starts a new engine.
        layout.socket.unlink(missing_ok=True)
        for task in (starting, stop):
            task.cancel()
        await asyncio.gather(starting, stop, return_exceptions=True)
        await server.close()
        await app.engine.close()
    return 1 if app.failure is not None else 0


async def _start(app: App) -> None:
    try:
        await app.engine.start()
    except SporeError as error:
        log.error("cannot start: %s", error)
        app.failure = error
    except Exception as error:  # noqa: BLE001 - told to every client, then the engine ends
        log.exception("cannot start")
        app.failure = EngineError(f"the engine cannot start: {error}", hint="spored.log says more")
    finally:
        app.ready.set()
    if app.failure is None:
        log.info("ready")


def run(argv: Sequence[str] | None, make_engine: EngineFactory) -> int:
    """The whole life of an engine's process."""
    args = _arguments(argv)
    layout = Layout(args.home.absolute())
    logging.basicConfig(
        stream=sys.stderr,
        level=os.environ.get("SPORE_LOG", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        layout.check()
        with _owned(layout, args.lock_fd, args.listen_fd) as sock:
            log.info("spored %s, pid %d, home %s", __version__, os.getpid(), layout.home)
            return asyncio.run(serve(layout, sock, make_engine))
    except SporeError as error:
        log.error("%s%s", error, f" ({error.hint})" if error.hint else "")
        return error.exit_code


def _engine(layout: Layout) -> EnginePort:
    from sporevm.api.adapter import StockAdapter

    return StockAdapter(layout)


def main() -> int:
    return run(None, _engine)


if __name__ == "__main__":
    sys.exit(main())
