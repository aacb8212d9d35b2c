"""The SDK from `create` to the end. `SandboxContract` runs here on a fake engine in a real daemon;
tests with real VMs run the same class with a `home` of their own."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import sporevm
from sporevm import (
    AsyncSandbox,
    CommandFailed,
    Conflict,
    DeadlineExceeded,
    GuestError,
    NotFound,
    Sandbox,
    StateError,
    UsageError,
)
from sporevm.sdk import _engine
from sporevm.store.layout import Layout
from tests.conftest import eventually, processes_naming

FAKE = [sys.executable, "-P", str(Path(__file__).with_name("fake_engine.py"))]
ROOT = Path(__file__).resolve().parents[2]


class SandboxContract:
    """What holds for any engine. Needs a fixture `home`, a Layout."""

    @pytest.fixture
    def box(self, home: Layout) -> Iterator[Sandbox]:
        with Sandbox.create("base", home=home.home, envs={"A": "b"}) as box:
            yield box

    def test_life(self, home: Layout) -> None:
        with Sandbox.create(
            memory="256M", metadata={"k": "v"}, timeout="1h", home=home.home
        ) as box:
            info = box.info()
            assert (info.memory_mib, info.labels, info.ttl) == (256, {"k": "v"}, 3600)
            assert box.is_running() and box.id == info.id and box.id in repr(box)
            assert box.id in [b.id for b in Sandbox.list(home=home.home)]
            other = Sandbox.connect(box.name, home=home.home)
            with other:
                assert other.id == box.id
            assert box.is_running()
            with pytest.raises(Conflict):
                Sandbox.create(name=box.name, home=home.home)
        assert not box.is_running() and box.kill() is False
        assert box.id not in [b.id for b in Sandbox.list(home=home.home)]
        with pytest.raises(NotFound):
            box.info()
        with pytest.raises(NotFound):
            Sandbox.connect(box.id, home=home.home)

    def test_stop_keeps_it(self, home: Layout) -> None:
        with Sandbox.create(home=home.home) as box:
            assert box.stop(grace=0).state == "stopped"
            assert not box.is_running()
            with pytest.raises(StateError) as caught:
                box.commands.run("true")
            assert caught.value.current == "stopped"

    @pytest.mark.parametrize(
        "wrong", [{"memory": "x"}, {"memory": 1}, {"cpus": 0}, {"disk": "1"}, {"name": "a b"},
                  {"timeout": -1}, {"arch": "vax"}],
    )  # fmt: skip
    def test_wrong_arguments(self, home: Layout, wrong: dict[str, object]) -> None:
        with pytest.raises(UsageError):
            Sandbox.create(home=home.home, **wrong)  # type: ignore[arg-type]

    def test_run(self, box: Sandbox) -> None:
        result = box.commands.run("echo out; echo err >&2; exit 3")
        assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)
        assert not result.ok and result.stdout_bytes == b"out\n"
        assert box.commands.run("echo $A $B", envs={"B": "c"}).stdout == "b c\n"
        assert box.commands.run(["echo", "$A"]).stdout == "$A\n"
        assert box.commands.run("pwd", cwd="/").stdout == "/\n"
        assert box.commands.run("kill -9 $$").exit_code == 137

    def test_check_and_timeout(self, box: Sandbox) -> None:
        assert box.commands.run("true", check=True).ok
        with pytest.raises(CommandFailed, match="exit code 3: sad") as caught:
            box.commands.run("echo sad >&2; exit 3", check=True)
        assert caught.value.details()["exit_code"] == 3
        with pytest.raises(DeadlineExceeded):
            box.commands.run("sleep 60", timeout=0.5)
        with pytest.raises(GuestError) as missing:
            box.commands.run(["/no/such/program"])
        assert missing.value.errno == 2

    @pytest.mark.parametrize("size", [0, 5, 300_000, 3_000_000])
    def test_stdin(self, box: Sandbox, size: int) -> None:
        data = os.urandom(size)
        assert box.commands.run(["cat"], stdin=data).stdout_bytes == data
        assert box.commands.run(["cat"], stdin="é").stdout == "é"
        assert box.commands.run(["true"], stdin=data).ok
        assert box.commands.run(["cat"]).stdout == ""

    def test_callbacks_come_on_the_calling_thread(self, box: Sandbox) -> None:
        out: list[str] = []
        err: list[str] = []
        threads = set()

        def take(text: str) -> None:
            threads.add(threading.get_ident())
            out.append(text)

        result = box.commands.run(
            "printf 'a\\303'; sleep 0.1; printf '\\251b'; echo e >&2",
            on_stdout=take,
            on_stderr=err.append,
        )
        assert "".join(out) == "aéb" == result.stdout and "".join(err) == "e\n"
        assert threads == {threading.get_ident()}

    def test_a_callback_that_raises_ends_the_command(self, box: Sandbox) -> None:
        def no(text: str) -> None:
            raise ZeroDivisionError(text)

        with pytest.raises(ZeroDivisionError):
            box.commands.run("while :; do echo x; done", on_stdout=no)
        assert box.commands.run("echo still").stdout == "still\n"

    def test_a_callback_may_use_the_sandbox(self, box: Sandbox) -> None:
        got: list[str] = []
        box.commands.run("echo x", on_stdout=lambda _: got.append(box.commands.run("id -u").stdout))
        assert len(got) == 1

    def test_background(self, box: Sandbox) -> None:
        handle = box.commands.run(["cat"], background=True, stdin=True)
        assert handle.pid > 0 and handle.running
        handle.send_stdin("one ")
        handle.send_stdin(b"two")
        handle.close_stdin()
        assert handle.wait().stdout == "one two" == handle.wait().stdout
        assert handle.kill() is False
        handle = box.commands.run("echo a; sleep 60", background=True)
        assert handle.kill(signal.SIGTERM)
        seen: list[str] = []
        result = handle.wait(on_stdout=seen.append)
        assert result.exit_code == 143 and "".join(seen) == result.stdout
        with pytest.raises(UsageError):
            box.commands.run("true", background=True, on_stdout=print)
        with pytest.raises(UsageError):
            box.commands.run("true", stdin=True)

    def test_disconnect_leaves_it_running(self, box: Sandbox) -> None:
        handle = box.commands.run("sleep 60", background=True)
        handle.disconnect()
        pid = handle.pid
        assert any(p.pid == pid and not p.ended for p in box.commands.list())

    def test_files(self, box: Sandbox) -> None:
        info = box.files.write("/tmp/t/a.txt", "héllo")
        assert (info.size, info.kind, info.name) == (6, "file", "a.txt")
        assert box.files.read("/tmp/t/a.txt") == "héllo"
        assert box.files.read("/tmp/t/a.txt", "bytes") == "héllo".encode()
        assert b"".join(box.files.read("/tmp/t/a.txt", format="stream")) == "héllo".encode()
        box.files.write("/tmp/t/b", io.BytesIO(b"x" * 600_000), mode=0o755)
        box.files.write("/tmp/t/c", (b"y" * 10 for _ in range(3)))
        assert {e.name: e.size for e in box.files.list("/tmp/t")} == {
            "a.txt": 6, "b": 600_000, "c": 30
        }  # fmt: skip
        assert box.files.get_info("/tmp/t/b").mode == 0o755
        box.files.rename("/tmp/t/c", "/tmp/t/d")
        assert box.files.exists("/tmp/t/d") and not box.files.exists("/tmp/t/c")
        assert not box.files.exists("/tmp/t/d/e")
        assert box.files.make_dir("/tmp/t/e/f").kind == "dir"
        with pytest.raises(GuestError):
            box.files.remove("/tmp/t")
        box.files.remove("/tmp/t", recursive=True)
        with pytest.raises(GuestError) as caught:
            box.files.read("/tmp/t/a.txt")
        assert caught.value.errno == 2

    def test_a_stream_left_early(self, box: Sandbox) -> None:
        box.files.write("/tmp/big", b"z" * (8 << 20))
        for piece in box.files.read("/tmp/big", format="stream"):
            assert piece
            break
        assert box.commands.run("echo on").stdout == "on\n"

    def test_metrics_and_logs(self, box: Sandbox) -> None:
        assert box.metrics()["mem_total"] > 0
        assert list(box.logs()) == []

    def test_threads_share_a_sandbox(self, box: Sandbox) -> None:
        results: dict[int, str] = {}

        def work(number: int) -> None:
            results[number] = box.commands.run(["echo", str(number)]).stdout

        threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {n: f"{n}\n" for n in range(12)}

    async def test_async(self, home: Layout) -> None:
        async with await AsyncSandbox.create(home=home.home) as box:
            seen: list[str] = []

            async def take(text: str) -> None:
                seen.append(text)

            await box.commands.run("echo x", on_stdout=take)
            assert seen == ["x\n"]
            handle = await box.commands.run("sleep 60", background=True)
            await handle.kill()
            assert (await handle.wait()).signal == 9
            await box.files.write("/tmp/x", b"123")
            pieces = [p async for p in await box.files.read("/tmp/x", "stream")]
            assert b"".join(pieces) == b"123"
        assert not await box.is_running()
        await box.close()


@pytest.fixture(scope="module")
def home() -> Iterator[Layout]:
    with tempfile.TemporaryDirectory(prefix="sp-") as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_engine, "daemon_argv", lambda: FAKE)
        layout = Layout(Path(path) / "h")
        yield layout
        _stop(layout)


def _stop(layout: Layout) -> None:
    for pid, line in processes_naming(str(layout.home)).items():
        if "fake_engine.py" in line:
            os.kill(pid, signal.SIGTERM)
    assert eventually(lambda: not processes_naming(str(layout.home)))


class TestFakeEngine(SandboxContract):
    pass


CLIENT = """
import sys
from sporevm.sdk import _engine
_engine.daemon_argv = lambda: {argv!r}
from sporevm import Sandbox
from sporevm.sdk._client import Client
import asyncio
sys.stdin.readline()
async def main():
    async with Client({home!r}) as client:
        print((await client.version()).pid, flush=True)
asyncio.run(main())
"""


@pytest.fixture
def fresh() -> Iterator[Layout]:
    with tempfile.TemporaryDirectory(prefix="sp-") as path:
        layout = Layout(Path(path) / "h")
        yield layout
        _stop(layout)


def start_clients(layout: Layout, count: int, argv: list[str]) -> set[str]:
    """Clients that are all ready and then let go at once; the engines they found."""
    code = CLIENT.format(argv=argv, home=str(layout.home))
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
        )
        for _ in range(count)
    ]  # fmt: skip
    for client in clients:
        assert client.stdin is not None
        client.stdin.write(b"\n")
        client.stdin.flush()
    found = set()
    for client in clients:
        out, err = client.communicate(timeout=60)
        assert client.returncode == 0, err.decode()
        found.add(out.decode().strip())
    return found


def test_ten_clients_start_one_engine(fresh: Layout) -> None:
    engines = start_clients(fresh, 10, FAKE)
    assert len(engines) == 1
    lines = processes_naming(str(fresh.home))
    assert sorted(lines) == [int(engines.pop())]


def test_a_killed_engine_is_replaced(fresh: Layout) -> None:
    [first] = start_clients(fresh, 1, FAKE)
    os.kill(int(first), signal.SIGKILL)
    assert eventually(lambda: not processes_naming(str(fresh.home)))
    assert fresh.socket.exists()
    engines = start_clients(fresh, 4, FAKE)
    assert len(engines) == 1 and engines != {first}


def test_an_engine_that_cannot_start_says_why(fresh: Layout) -> None:
    code = "import sys; sys.exit('no such luck')"
    with pytest.raises(sporevm.EngineError) as caught:
        _list(fresh, [sys.executable, "-c", code])
    assert "no such luck" in caught.value.hint
    with pytest.raises(sporevm.SetupError):
        _list(fresh, ["/no/such/daemon"])


def _list(layout: Layout, argv: list[str], *, start: bool = True) -> object:
    import asyncio

    from sporevm.sdk._client import Client

    async def main() -> object:
        async with Client(layout.home, daemon=argv, start=start) as client:
            return await client.list()

    return asyncio.run(main())


def test_no_engine_is_started_if_not_wanted(fresh: Layout) -> None:
    with pytest.raises(sporevm.EngineError, match="no engine is running"):
        _list(fresh, FAKE, start=False)
    assert not fresh.home.exists()


def test_an_older_engine_is_replaced(fresh: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    from sporevm.sdk import _link

    [old] = start_clients(fresh, 1, FAKE)
    monkeypatch.setattr(_link, "__version__", "99.0.0")
    with pytest.raises(sporevm.SporeError, match="older than the client"):
        _list(fresh, FAKE)  # the new engine is no newer here, so it is told once and no more
    assert int(old) not in processes_naming(str(fresh.home))


def test_a_second_daemon_refuses(fresh: Layout) -> None:
    start_clients(fresh, 1, FAKE)
    done = subprocess.run([*FAKE, "--home", str(fresh.home)], capture_output=True, timeout=30)
    assert done.returncode == 1 and b"already" in done.stderr
    assert len(start_clients(fresh, 2, FAKE)) == 1


def test_stop_and_start_race(fresh: Layout) -> None:
    import asyncio

    from sporevm.sdk._client import Client

    async def main() -> None:
        async with Client(fresh.home, daemon=FAKE) as one, Client(fresh.home, daemon=FAKE) as two:
            for _ in range(5):
                await one.list()
                await one.engine.stop()
                assert await two.engine.status() is None
                assert await two.list() == []

    asyncio.run(main())


def test_interrupt_cancels_the_call(home: Layout) -> None:
    with Sandbox.create(home=home.home) as box:
        timer = threading.Timer(
            0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)
        )
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            box.commands.run("sleep 60")
        assert eventually(lambda: not any(not p.ended for p in box.commands.list()))


def test_sync_in_the_portal_is_refused(home: Layout) -> None:
    with Sandbox.create(home=home.home) as box:
        handle = box.commands.run("echo x", background=True)
        assert handle.wait().ok


def test_the_event_loop_s_own_thread_can_t_wait_for_itself(home: Layout) -> None:
    from sporevm.sdk._portal import portal

    async def inside() -> None:
        Sandbox.list(home=home.home)

    with pytest.raises(UsageError, match="event loop"):
        portal().run(inside())
