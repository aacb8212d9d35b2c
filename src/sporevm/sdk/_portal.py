"""From ordinary code into the event loop: one thread with one loop, for the whole process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from sporevm.errors import UsageError

T = TypeVar("T")

_lock = threading.Lock()
_portal: Portal | None = None


class Portal:
    """A thread that runs an event loop until the process ends."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True, name="spore")
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`. Ctrl-C cancels it, and is raised when it has ended."""
        self._check(work)
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
                _settle(future)
            raise

    def run_with(self, caller: Caller, work: Coroutine[Any, Any, T]) -> T:
        """Like `run`, while `caller` calls back into this thread."""
        self._check(work)
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        future.add_done_callback(lambda _: caller.end())
        try:
            caller.serve()
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
                _settle(future)
            raise

    def iterate(self, source: AsyncIterator[T]) -> Iterator[T]:
        """The items of an asynchronous iterator; leaving early closes it."""

        async def step() -> tuple[bool, T | None]:
            async for item in source:
                return True, item
            return False, None

        async def close() -> None:
            if isinstance(source, AsyncGenerator):
                await source.aclose()

        try:
            while True:
                more, item = self.run(step())
                if not more:
                    return
                yield item  # type: ignore[misc]
        finally:
            self.run(close())

    def _check(self, work: Coroutine[Any, Any, Any]) -> None:
        if threading.get_ident() == self._thread.ident:
            work.close()
            raise UsageError(
                "Sandbox can't be used from inside Spore's event loop",
                hint="use AsyncSandbox there",
            )


def _settle(future: concurrent.futures.Future[Any]) -> None:
    """Wait until cancelled work has cleaned up, so that nothing goes on behind an exception."""
    concurrent.futures.wait([future], timeout=10.0)


class Caller:
    """Calls made on the thread that waits, on behalf of the loop that works for it."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def bring(
        self, function: Callable[[str], object] | None
    ) -> Callable[[str], Awaitable[None]] | None:
        """An asynchronous function that calls `function` on the waiting thread."""
        if function is None:
            return None

        async def call(text: str) -> None:
            loop = asyncio.get_running_loop()
            done: asyncio.Future[None] = loop.create_future()

            def here() -> None:
                try:
                    function(text)
                except BaseException as error:
                    loop.call_soon_threadsafe(_fail, done, error)
                    raise
                loop.call_soon_threadsafe(_succeed, done)

            self._calls.put(here)
            await done

        return call

    def serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def end(self) -> None:
        self._calls.put(None)


def _succeed(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _fail(done: asyncio.Future[None], error: BaseException) -> None:
    if not done.done():
        done.cancel()


def portal() -> Portal:
    """The process's portal. A forked child gets one of its own: threads do not survive a fork."""
    global _portal
    if _portal is None or _portal.pid != os.getpid():
        with _lock:
            if _portal is None or _portal.pid != os.getpid():
                _portal = Portal()
    return _portal
